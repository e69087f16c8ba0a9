"""Pictures that move: what they draw without a script, what they compute, keys, phones, readers."""

import gzip
import math
import random
import re

import pytest

from scripts import rows
from scripts.lectures import ROOT
from scripts.pages import Site
from tests.site.built import DESKTOP, LECTURES, PHONE, axe

PICTURES = sorted(path.stem for path in ROOT.glob("docs/pictures/*.html"))
HERE = "[data-part=says]"
# every element of a drawing, every cell of a table and the caption; numbers to a tenth
DRAWN = """figure => {
  const round = text => text.replace(/-?\\d+\\.\\d+/g, x => String(Math.round(x * 10) / 10));
  const skip = ["aria-label", "data-part", "display"];
  const shown = element => [element.tagName, element.childElementCount ? "" : element.textContent,
    ...[...element.attributes].filter(({ name }) => !skip.includes(name))
      .map(({ name, value }) => `${name}=${round(value.trim())}`).sort()].join(" ");
  return [...figure.querySelectorAll("svg *, td"), figure.querySelector("output")].map(shown);
}"""
SLIDE = """(input, value) => {
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}"""
STILL = "!document.getAnimations().some(change => change.playState === 'running')"
# the rest of the page would only cost time
ALONE = """figure => {
  for (let element = figure; element !== document.body; element = element.parentElement) {
    element.parentElement.replaceChildren(element);
  }
}"""


@pytest.fixture
def open_picture(open_page, pages):
    """A function that opens the page of a picture; returns the page and the picture."""

    def open_picture(name: str, ready: bool = True, **options):
        address = next(a for a, page in pages.items() if f"picture-{name}" in page.anchors)
        page = open_page(address, **options)
        figure = page.locator(f"#picture-{name}{'[data-ready]' if ready else ''}")
        figure.wait_for()
        return page, figure

    return open_picture


def put(figure, **values) -> str:
    """Moves inputs; returns what the caption then says."""
    for name, value in values.items():
        figure.locator(f"[name={name}]").evaluate(SLIDE, str(value))
    return says(figure)


def says(figure) -> str:
    return figure.locator(HERE).inner_text().replace("\u00a0", " ")


def call(page, base: str, name: str, expression: str, given=None):
    """The value of an expression in the names that a picture's script exports."""
    module = f"await import('{base}javascripts/pictures/{name}.js')"
    return page.evaluate(f"async given => {{ const m = {module}; return {expression}; }}", given)


def recording(name: str) -> rows.Recording:
    return Site(ROOT, "nvidia-h200", lambda _: None).recording(name)


@pytest.mark.parametrize("name", PICTURES)
def test_the_script_begins_with_what_the_template_drew(open_picture, name):
    page, figure = open_picture(name)
    address = page.url
    moving = figure.evaluate(DRAWN)
    assert len(moving) > 10
    nothing = {"body": "", "content_type": "text/javascript"}
    page.route("**/javascripts/pictures/*", lambda route: route.fulfill(**nothing))
    page.goto(address)
    still = page.locator(f"#picture-{name}").evaluate(DRAWN)
    assert still == moving


@pytest.mark.parametrize("name", PICTURES)
def test_without_scripts_a_picture_its_caption_and_the_answer(open_picture, name):
    _, figure = open_picture(name, ready=False, java_script_enabled=False)
    assert figure.locator("svg").is_visible()
    assert not figure.locator("form").is_visible()
    assert re.search(r"\d", says(figure))
    figure.locator("summary").click()
    assert figure.locator("details p").first.is_visible()
    assert figure.locator("svg").get_attribute("aria-label")


@pytest.mark.parametrize("name", PICTURES)
def test_keys_reach_and_move_everything(open_picture, name):
    page, figure = open_picture(name)
    controls = figure.locator("form :is(input, select, button:not([hidden])):enabled")
    controls.first.focus()
    seen, said = 1, {says(figure)}
    while True:
        focused = page.locator(":focus")
        kind = focused.get_attribute("type") or "select"
        # to the left and back, since some stand at their end
        for key in {"range": ("ArrowLeft", "ArrowRight"), "button": ("Enter",)}.get(kind, ()):
            focused.press(key)
            said.add(says(figure))
        page.keyboard.press("Tab")
        if not page.evaluate("document.activeElement.closest('form.picture-controls')"):
            break
        seen += 1
    assert seen >= controls.count()
    if figure.locator("[type=range], button").count():
        assert len(said) > 1
    for control in figure.locator("form :is(input, select)").all():
        assert control.evaluate("input => input.labels.length") == 1


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_overflows_and_axe_is_content_after_use(open_picture, name):
    for scheme, viewport in (("light", DESKTOP), ("dark", PHONE)):
        page, figure = open_picture(name, color_scheme=scheme, viewport=viewport)
        for slider in figure.locator("[type=range]").all():
            slider.press("Home")
        figure.locator("details").evaluate("fold => fold.open = true")
        page.wait_for_function(STILL)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        figure.evaluate(ALONE)
        assert not axe(page, f"#picture-{name}")


def test_text_in_drawings_is_large_enough():
    for name in PICTURES:
        text = (ROOT / "docs" / "pictures" / f"{name}.html").read_text("utf-8")
        script = (ROOT / "docs" / "javascripts" / "pictures" / f"{name}.js").read_text("utf-8")
        width = int(re.search(r'viewBox="0 0 (\d+) ', text)[1])
        sizes = re.findall(r'font-size"?[=:] ?"?(\d+)', text + script)
        assert min(map(int, sizes)) * 720 / width >= 15, name


def test_scripts_are_small(site):
    scripts = {path.stem: path for path in site.glob("javascripts/pictures/*.js")}
    assert scripts.keys() == {*PICTURES, "common"}
    for path in scripts.values():
        assert len(gzip.compress(path.read_bytes(), 6)) < 3 * 1024, path.name


def test_after_instant_navigation(open_picture):
    page, _ = open_picture("masks")
    page.evaluate("stayed = true")
    for part in ("memory_hierarchy", "programming_model"):
        page.locator(f'.md-nav--primary a[href$="{part}/"]').first.click()
        name = {"memory_hierarchy": "memory", "programming_model": "masks"}[part]
        figure = page.locator(f"#picture-{name}[data-ready]")
        figure.wait_for()
    assert page.evaluate("stayed")
    assert put(figure, n=64, block=6).startswith("1 program has 64 lanes, none of them idle: 0 %.")


def test_motion_is_reduced_on_request(open_picture):
    _, figure = open_picture("grouped_order", reduced_motion="reduce")
    assert not figure.locator("[name=play]").is_visible()
    _, figure = open_picture("online_softmax", reduced_motion="reduce")
    bar = figure.locator("[data-part=bars] rect").first
    assert bar.evaluate("bar => getComputedStyle(bar).transitionDuration") == "0s"


def test_a_notebook_shows_the_drawing(site):
    for name in LECTURES:
        for path in (site / name).glob("*.ipynb"):
            for file in re.findall(r"figures/pictures/(\w+)\.svg", path.read_text("utf-8")):
                svg = (site / "figures" / "pictures" / f"{file}.svg").read_text("utf-8")
                assert svg.startswith("<svg ") and 'xmlns="http://www.w3.org/2000/svg"' in svg
                assert "var(" not in svg and ".dg-text { fill: #" in svg and "{{" not in svg


def test_an_unknown_picture_is_an_error():
    site = Site(ROOT, "nvidia-h200", lambda _: None, scripts=[])
    with pytest.raises(rows.RowError, match=r"no picture docs/pictures/nothing\.html"):
        site.context("page/")["picture"]("nothing")


# what they compute


def test_numbers_are_written_as_in_prose(open_picture, base):
    page, _ = open_picture("masks")
    values = [10.0**power * x for power in range(-4, 10) for x in (1, 1.234, 5.68, 9.996)]
    for script, expected in (
        ("significant", rows.significant),
        ("time", rows.format_time),
        ("bytes", rows.format_bytes),
        ("percent", rows.format_pct),
    ):
        got = call(page, base, "common", f"given.map(x => m.{script}(x))", values)
        assert got == [expected(value) for value in values], script


def test_memory(open_picture):
    _, figure = open_picture("memory")
    recorded = recording("foundations/memory_hierarchy")
    full = recorded.ceilings.copy_tbps(2**33)
    for step, place in (
        (28, "the registers of one SM would hold it"),
        (36, "the registers of one SM would hold it"),
        (37, "the registers of all 132 SMs together would hold it"),
        (50, "the registers of all 132 SMs together would hold it"),
        (51, "L2 holds it, the SMs do not"),
        (52, "only HBM holds it all"),
        (64, "only HBM holds it all"),
    ):
        size = 2 ** (step // 2) * (1.5 if step % 2 else 1)
        ms = recorded.ceilings.copy_ms(2 * size)
        said = put(figure, size=step)
        begins = f"{rows.format_bytes(size)}, {size / 4:,.0f} float32 numbers: {place}. A pass"
        assert said.startswith(begins.replace("\u00a0", " "))
        share = rows.format_pct(2 * size / ms / full * 1e-7)
        assert f"{rows.format_time(ms)}, {share} of memory".replace("\u00a0", " ") in said
        assert ("pay for the launch" in said) == (ms < 0.0055)
        reads = figure.locator("[data-part=reads] td:nth-child(2)").all_inner_texts()
        assert ["does not fit" in read for read in reads] == [size > 33 * 2**20] * 2 + [
            size > 48 * 2**20,
            False,
        ]


@pytest.mark.parametrize(
    ("n", "power", "programs", "idle", "percent"),
    [
        (10, 2, 3, "2", 17),
        (1, 6, 1, "63", 98),
        (64, 6, 1, "none", 0),
        (33, 5, 2, "31", 48),
        (33, 0, 33, "none", 0),
        (17, 4, 2, "15", 47),
    ],
)
def test_masks(open_picture, n, power, programs, idle, percent):
    _, figure = open_picture("masks")
    said, lanes = put(figure, n=n, block=power), programs * 2**power
    assert f" {lanes} lanes, {idle} of them idle: {percent} %." in said
    assert f"offs {lanes - 2**power} to {lanes - 1} and the mask offs < {n}." in said
    assert f"take {programs * 32:,} threads" in said
    on = figure.locator("[data-part=lanes] .dg-mono")
    assert on.all_text_contents() == [str(i) for i in range(n)]
    assert figure.get_by_text("off", exact=True).count() == lanes - n


def test_masks_by_dragging(open_picture):
    page, figure = open_picture("masks")
    cells = figure.locator("[data-part=lanes] rect")
    cells.nth(40).scroll_into_view_if_needed()
    start, end = cells.nth(3).bounding_box(), cells.nth(40).bounding_box()
    page.mouse.move(start["x"] + 8, start["y"] + 8)
    page.mouse.down()
    assert "the mask offs < 4." in says(figure)
    page.mouse.move(end["x"] + 8, end["y"] + 8)
    page.mouse.up()
    assert "the mask offs < 41." in says(figure)


def test_grouped_order(open_picture, base):
    page, figure = open_picture("grouped_order")

    def tile(pid: int, group: int) -> tuple[int, int]:
        band = pid // (group * 16)  # as matmul_kernel of the autotuning lecture
        height = min(16 - band * group, group)
        return band * group + pid % (group * 16) % height, pid % (group * 16) // height

    for group in range(1, 17):
        every = "[...Array(256).keys()].map(pid => m.tile(pid, given))"
        tiles = call(page, base, "grouped_order", every, group)
        assert [tuple(found) for found in tiles] == [tile(pid, group) for pid in range(256)]
        assert len(set(map(tuple, tiles))) == 256
    known = ((1, 4, 17, 272), (4, 4, 8, 128), (8, 6, 16, 64), (16, 4, 17, 272))
    for group, power, loads, total in known:
        wave = 2**power
        said = put(figure, group=group, wave=power, started=wave)
        assert f": {loads} loads from HBM, where each alone would need {2 * wave}." in said
        assert f"All {256 // wave} waves: {total} loads; row by row (GROUP_M = 1)" in said
    said = put(figure, group=3, wave=4, started=17)
    assert said.startswith("Program 16 touches 1 band of A and 1 of B: 2 loads from HBM.")
    figure.locator("[name=whole]").click()
    assert says(figure).startswith("Programs 16 to 31 run together.")
    put(figure, started=255)
    figure.locator("[name=play]").click()
    page.wait_for_function("document.querySelector('[name=started]').value === '256'")
    assert figure.locator("[name=next]").is_disabled()


def test_online_softmax(open_picture, base):
    page, figure = open_picture("online_softmax")
    random.seed(0)
    for width in (1, 2, 4):
        for _ in range(20):
            row = [random.uniform(-20, 20) for _ in range(random.randint(1, 8))]
            steps = call(page, base, "online_softmax", "m.online(...given)", [row, width])
            for i, step in enumerate(steps, 1):
                read = row[: i * width]
                assert step["m"] == max(read)
                assert math.isclose(step["s"], sum(math.exp(x - max(read)) for x in read))
    assert call(page, base, "online_softmax", "m.numbers(given)", "1, -2.5; 3e2") == [1, -2.5, 300]
    for text in ("", "1 2 x", "inf", "1 2 3 4 5 6 7 8 9"):
        assert call(page, base, "online_softmax", "m.numbers(given)", text) is None

    def choose(label: str) -> str:
        figure.locator("[name=preset]").select_option(label=label)
        return says(figure)

    factors = "[data-part=steps] td:nth-child(4)"
    assert choose("the maximum comes first").startswith("Nothing is read")
    put(figure, step=4)
    assert figure.locator(factors).all_inner_texts() == ["–"] + ["×\u00a01.00"] * 3
    choose("rising all the way")
    said = put(figure, step=2)
    assert said.startswith("Tile 2 raises the maximum from 1 to 3: the old sum, 1.37, is multi")
    assert said.endswith("multiplied by 0.135.")
    choose("the first, plus 1000")
    assert "m = 1005, s = 1.65" in put(figure, step=4)
    assert says(figure).endswith("Without the maximum the sum would be infinite.")
    choose("masked entries")
    assert put(figure, step=1).startswith("Tile 1 sets the maximum to lowest and the sum to 0.")
    assert "m = 3, s = 1.55" in put(figure, step=4)
    put(figure, row="-inf -inf")
    assert "the outputs are NaN" in put(figure, step=1)
    assert put(figure, row="what").startswith("Write one to eight numbers")
    assert figure.locator("[name=row]").get_attribute("aria-invalid") == "true"


def test_roofline(open_picture, base):
    page, figure = open_picture("roofline")
    for text, value in (
        ("2 * 8192 * 8192 * 2", 2**28),
        ("3 * 4096^2 * 2", 3 * 2**25),
        ("2**10 × 3", 3072),
        ("256 MiB", 2**28),
        ("1.5 GFLOP", 1.5e9),
        ("1,000", 1000),
        ("3e9", 3e9),
    ):
        assert call(page, base, "roofline", "m.parse(given)", text) == value, text
    for text in ("", "two", "3 *", "1 + 1", "-4"):
        assert call(page, base, "roofline", "String(m.parse(given))", text) == "NaN", text

    recorded = recording("foundations/memory_hierarchy")
    roofs = {"simt": recorded.row("multiply_add", warps_per_sm=16).tflops}
    roofs["bfloat16"] = recorded.ceilings.matmul_tflops("bfloat16")
    assert "Memory is the limit" in says(figure)
    for option in figure.locator("[name=preset] option[data-bytes]").all():
        figure.locator("[name=preset]").select_option(label=option.inner_text())
        values = [option.get_attribute(f"data-{key}") for key in ("bytes", "flops", "us", "unit")]
        moved, flops = (eval(text.replace("^", "**")) for text in values[:2])
        memory, arithmetic = recorded.ceilings.copy_ms(moved), flops / roofs[values[3]] * 1e-9
        said, least = says(figure), max(memory, arithmetic)
        assert f"{rows.significant(flops / moved)} FLOPs for each byte" in said
        assert ("Memory" if memory > arithmetic else "Arithmetic") + " is the limit" in said
        assert f"At best {rows.format_time(least)};".replace("\u00a0", " ") in said
        share = least * 1e5 / float(values[2])
        assert f"is {share:.0f} % of that speed." in said and 20 < share < 110
    said = put(figure, unit="bfloat16", bytes="2 GiB", flops="1e15", us="")
    assert "Arithmetic is the limit" in said and "measured" not in said
    assert figure.locator("[name=preset]").input_value() == ""
    assert not figure.locator("[data-part=own]").is_visible()
    assert put(figure, bytes="many").startswith("Write numbers or products")
    assert figure.locator("[name=bytes]").get_attribute("aria-invalid") == "true"


def test_cost(open_picture, base):
    page, figure = open_picture("cost")
    for share, speedup, left in ((0.1, 2, 0.95), (0.5, 5, 0.6), (1, 4, 0.25), (0.02, 10, 0.982)):
        got = call(page, base, "cost", "m.remaining(...given)", [share, speedup])
        assert got == pytest.approx(left)
    # 12,000 million tokens a day at 5,000 a second are 2/3 of a thousand GPU-hours a day
    said = put(figure, tokens=12000, rate=5000, price=3, share=10, speedup=2, days=10, day=730)
    assert said == (
        "The whole becomes 1.05× as fast: 1 / (1 − 0.1 + 0.1 / 2). Of 20,278 GPU-hours a month it "
        "saves 1,014, $3,042 a month and $36,500 a year; 10 days of work, $7,300, are paid back "
        "after 2.40 months."
    )
    assert figure.locator("[name=op]").input_value() == ""
    assert "never paid back" in put(figure, speedup=0.5)
    figure.locator("[name=op]").select_option(index=1)
    norm = recording("fusion/rms_norm")
    own = norm.row("add_forward", provider="triton", shape="8192 × 4096")
    peer = norm.row("add_forward", provider="torch_compile", shape="8192 × 4096")
    chosen = figure.locator("[name=speedup]").input_value()
    assert float(chosen) == pytest.approx(peer.ms / own.ms, abs=0.006)

    def saved() -> list[int]:
        texts = figure.locator("[data-part=rows] td:nth-child(3)").all_inner_texts()
        return [int(re.sub(r"[$,]", "", text).replace("−", "-")) for text in texts]

    once = saved()
    put(figure, price=6)
    assert saved() == pytest.approx([2 * amount for amount in once], abs=2)
    assert put(figure, rate="").startswith("Needs a number: Tokens a second")
