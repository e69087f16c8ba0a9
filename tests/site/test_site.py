"""The built site: links and files as they lie on disk, then every page in headless Chromium."""

import gzip
import re
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import nbformat
import pytest
from playwright.sync_api import TimeoutError

from scripts.lectures import cells
from scripts.pages import Lecture
from tests.site.built import DESKTOP, LECTURES, PHONE, PREFIX, SITE_URL, axe, file_of

SWITCH = "document.querySelector('[data-md-component=palette] label:not([hidden])').click()"
OPEN_FOLDS = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
# the theme wraps tables, names code blocks, blends colours, and on a desktop measures its sidebars
COMPLETE = """() =>
    !document.getAnimations().some(change => change.playState === "running") &&
    [...document.querySelectorAll(".md-typeset table:not([class])")]
        .every(table => table.closest(".md-typeset__scrollwrap")) &&
    [...document.querySelectorAll(".md-code__nav")].every(nav => nav.ariaLabel) &&
    [...document.querySelectorAll(".md-sidebar__scrollwrap")]
        .every(sidebar => !sidebar.style.height === innerWidth < 1220)"""
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
BROKEN_IMAGES = """[...document.images]
    .filter(image => image.checkVisibility() && image.complete && !image.naturalWidth)
    .map(image => "broken image " + image.src)"""
CLIPPED = """[...document.querySelectorAll("svg[role=img] text")].filter(text => {
    const [box, picture] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
    return box.width && (box.left < picture.left - 1 || box.right > picture.right + 1
        || box.top < picture.top - 1 || box.bottom > picture.bottom + 1);
}).map(text => "clipped in its picture: " + text.textContent)"""
OVERLAPPING = """[...document.querySelectorAll("svg[role=img]")].flatMap(picture => {
    const texts = [...picture.querySelectorAll("text")].filter(text => text.textContent.trim())
        .map(text => [text, text.getBoundingClientRect()]).filter(([, box]) => box.width);
    return texts.flatMap(([text, box], i) => texts.slice(0, i).filter(([, other]) => {
        const wide = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        const high = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
        return wide > 1.5 && high > 0.4 * Math.min(box.height, other.height);
    }).map(([other]) => `one over the other: ${other.textContent}, ${text.textContent}`));
})"""
# prose glued to a figure, which then is no paragraph
LOOSE = """[...document.querySelectorAll("article, article > div")]
    .flatMap(part => [...part.childNodes])
    .filter(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim().length > 40)
    .map(node => "in no paragraph: " + node.textContent.trim().slice(0, 60))"""
DRAWN = (BROKEN_IMAGES, CLIPPED, OVERLAPPING, LOOSE)
# bytes a second: 1.6 Mbit/s down
SLOW = {"offline": False, "latency": 150, "downloadThroughput": 2e5, "uploadThroughput": 1e5}
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')"
SHARDS = 8  # of the pages, for as many processors


# as it lies on disk


def test_links_anchors_and_images_resolve(site, pages):
    broken = []
    for address, page in pages.items():
        for _, _, reference in page.references:
            url, fragment = urldefrag(urljoin(SITE_URL + address, reference))
            if not url.startswith(SITE_URL):
                continue
            target = unquote(urlsplit(url).path.removeprefix(PREFIX))
            if target in pages:
                if fragment and unquote(fragment) not in pages[target].anchors:
                    broken.append(f"{address}: no anchor {reference}")
            elif not (site / target).is_file():
                broken.append(f"{address}: no {reference}")
    assert not broken


@pytest.mark.parametrize("name", LECTURES)
def test_lecture_and_reference_link_each_other(pages, name):
    reference, module = pages["reference/"], f"examples.{name.replace('/', '.')}"
    copied = [
        function
        for cell in cells(LECTURES[name].read_text(encoding="utf-8"))
        if "copy" in cell.tags
        for function in re.findall(r"(?m)^def ([a-z]\w*)", cell.source)
    ]
    assert copied and {f"{module}.{function}" for function in copied} <= reference.anchors
    assert any(target == f"../{name}/" for _, _, target in reference.references)
    linked = {target.partition("#")[2] for _, _, target in pages[f"{name}/"].references}
    assert any(target.startswith(f"{module}.") for target in linked)


def test_nothing_loads_from_another_host(site, pages):
    loading = {"script", "img", "iframe", "source", "video", "object", "embed", "use", "image"}
    own, foreign = (SITE_URL, "data:"), []
    for address, page in pages.items():
        for tag, attrs, reference in page.references:
            linked = tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev")
            loads = tag in loading or linked
            if loads and not urljoin(SITE_URL + address, reference).startswith(own):
                foreign.append(f"{address}: {reference}")
    for style in site.rglob("*.css"):
        for reference in re.findall(r"url\(\s*[\"']?([^\"')]+)", style.read_text()):
            if urlsplit(reference).netloc:
                foreign.append(f"{style.relative_to(site)}: {reference}")
    assert not foreign


def test_external_links_are_https(pages):
    schemes = {"", "https", "data", "mailto"}
    assert not [
        f"{address}: {reference}"
        for address, page in pages.items()
        for _, _, reference in page.references
        if urlsplit(reference).scheme not in schemes
    ]


def test_every_page_describes_itself(site, pages):
    for address in pages:
        text = (site / file_of(address)).read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]{5,}</title>", text), address
        assert re.search(r'<meta name="description" content="[^"]{30,}', text), address
        assert text.count("<h1") == 1, address


@pytest.mark.parametrize("name", LECTURES)
def test_downloads(site, pages, name):
    script, stem = LECTURES[name], LECTURES[name].stem
    links = pages[f"{name}/"].references
    offered = {reference for _, attrs, reference in links if "download" in attrs}
    assert {f"{stem}.py", f"{stem}.ipynb"} <= offered
    assert (site / name / f"{stem}.py").read_bytes() == script.read_bytes()
    notebook = nbformat.read(site / name / f"{stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert "{{" not in "".join(cell.source for cell in notebook.cells if cell not in code)


def test_weight(site, pages):
    """What a page loads before it is complete, without its figures."""
    packed: dict = {}

    def weight(file) -> int:
        if file not in packed:
            packed[file] = len(gzip.compress(file.read_bytes(), 6))
        return packed[file]

    workers = set(site.glob("assets/javascripts/workers/search*.js"))
    for address, page in pages.items():
        files = {site / file_of(address), *workers}
        for tag, attrs, reference in page.references:
            if tag == "script" or attrs.get("rel") == "stylesheet":
                url = urljoin(SITE_URL + address, reference)
                files.add(site / url.removeprefix(SITE_URL))
        total = sum(map(weight, files))
        assert total <= 150 * 1024, f"{address}: {total / 1024:.0f} KB"
    # comes after the page, once, and is what a reader may wait for
    assert weight(site / "search/search_index.json") <= 250 * 1024


# in a browser


@pytest.mark.parametrize("shard", range(SHARDS))
def test_pages_in_a_browser(open_page, base, pages, shard):
    """No error, no request elsewhere, no overflow, nothing that axe finds, with all folds open."""
    wrong: list[str] = []
    for first, second in ((DESKTOP, PHONE), (PHONE, DESKTOP)):
        page = open_page("", viewport=first, reduced_motion="reduce")
        # every other page opens on a phone, which is then turned into a desktop
        for address in list(pages)[shard :: 2 * SHARDS]:
            page.goto(base + address)
            page.evaluate(OPEN_FOLDS)
            look(page, address, wrong)
            page.set_viewport_size(second)
            # axe sees both widths and both schemes: colours are the same at every width, and what
            # is not a colour in both schemes
            look(page, address, wrong, axe)
            page.evaluate(SWITCH)
            page.wait_for_selector("body[data-md-color-scheme=slate]")
            look(page, address, wrong)
            page.set_viewport_size(first)
            look(page, address, wrong, axe)
            page.evaluate("localStorage.clear()")  # the next one opens in the light scheme
        shard += SHARDS
    assert not wrong


def look(page, address: str, wrong: list[str], judge=None) -> None:
    """Notes what is wrong with a page as it is open now."""
    page.wait_for_function(COMPLETE)
    state = page.evaluate("`${document.body.dataset.mdColorScheme}, ${innerWidth} px`")
    found = [what for script in DRAWN for what in page.evaluate(script)]
    if (over := page.evaluate(TOO_WIDE)) > 0:
        found.append(f"{over} px too wide")
    if judge:
        found += judge(page)
    wrong += [f"{address}: {state}: {what}" for what in found]


@pytest.mark.parametrize("name", LECTURES)
def test_copy_button_copies_the_kernel(open_page, name):
    page = open_page(f"{name}/")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator("details:has(.lecture-kernel)")
    block.evaluate("fold => fold.open = true")
    block.locator(".md-code__button[data-md-type=copy]").click()
    page.wait_for_selector(".md-dialog--active")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip().endswith(Lecture(LECTURES[name]).kernel.strip())
    assert re.search(r"^@(triton|gluon)\.jit", copied, re.M)
    compile(copied, f"{name}, copied", "exec")
    assert copied.startswith("# Copyright (c)")
    beside = re.findall(r"^ *from (\w+) import", copied, re.M)
    said = page.locator("#copy-this-kernel + p").inner_text()
    assert all(f"{n}.py" in said for n in beside if LECTURES[name].with_stem(n).exists())


def test_the_table_of_results_needs_no_script(open_page):
    page = open_page("results/", java_script_enabled=False)
    rows = page.locator(".results tbody tr")
    assert rows.count() >= len(LECTURES)
    assert rows.first.is_visible()


def test_results_sort_and_filter(open_page):
    page = open_page("results/")
    rows = page.locator(".results tbody tr")
    page.click(".results th:nth-child(3) button")
    times = page.evaluate(
        "[...document.querySelectorAll('.results td:nth-child(3)')].map(cell => +cell.dataset.sort)"
    )
    assert times == sorted(times) and len(times) == rows.count()
    page.click(".results th:nth-child(4) button")
    ceilings = page.locator(".results td:nth-child(4)").all_inner_texts()
    assert ceilings[0] != "–" == ceilings[-1]  # what is not known comes last
    page.fill(".results-filter input", "softmax float32")
    found = page.locator(".results tbody tr:visible")
    assert 0 < found.count() < rows.count()
    told = [text.lower() for text in found.all_inner_texts()]
    assert all("softmax" in text and "float32" in text for text in told)
    page.fill(".results-filter input", "no such kernel")
    assert page.locator(".results tbody tr:visible").count() == 0


def test_the_menu_opens_by_keys_and_hides_its_links_till_then(open_page):
    page = open_page("fusion/softmax/", viewport=PHONE)
    links = page.locator(".md-sidebar--primary a:visible")
    assert links.count() == 0
    for _ in range(3):  # past the link to the content and the name of the site
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Menu"
    page.keyboard.press("Enter")
    assert links.count() > 3


@pytest.fixture(scope="module")
def phone(browser):
    """A context in which no page makes the next one faster, since nothing is cached."""
    context = browser.new_context(viewport=PHONE, is_mobile=True)
    context.new_page()
    yield context
    context.close()


@pytest.mark.parametrize("name", LECTURES)
def test_first_paint_on_a_slow_phone(phone, base, name):
    """Under 1.5 s at 1.6 Mbit/s with 150 ms of latency and a quarter of this machine's speed."""
    times = []
    for _ in range(3):  # other work on this machine only ever adds
        page = phone.new_page()
        session = phone.new_cdp_session(page)
        session.send("Network.enable")
        session.send("Network.setCacheDisabled", {"cacheDisabled": True})
        session.send("Network.emulateNetworkConditions", SLOW)
        session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        page.goto(f"{base}{name}/", wait_until="commit")
        try:  # by a timer: a browser that shows no frame asks for none either
            page.wait_for_function(f"{FIRST_PAINT}.length", polling=100, timeout=10_000)
            times.append(page.evaluate(f"{FIRST_PAINT}[0].startTime"))
        except TimeoutError:
            times.append(float("inf"))
        page.close()
        if times[-1] < 1500:
            return
    pytest.fail(f"{name}: {min(times):.0f} ms")


def test_paper_shows_the_lecture_and_nothing_to_click(open_page):
    page = open_page("fusion/softmax/", color_scheme="dark")
    page.emulate_media(media="print")
    for hidden in (".md-header", ".md-sidebar", ".md-footer", ".md-button", ".md-code__nav"):
        assert not any(found.is_visible() for found in page.locator(hidden).all()), hidden
    hidden = "details.code pre, .lecture-kernel pre, .lecture-end, img[src$='#only-dark']"
    assert not any(found.is_visible() for found in page.locator(hidden).all())
    for shown in ("h1", ".measurement img[src$='#only-light']", ".diagram svg"):
        assert page.locator(shown).first.is_visible(), shown
    code = page.locator(".lecture-code code").first
    assert code.evaluate("code => getComputedStyle(code).whiteSpace") == "pre-wrap"
    text = page.locator("article").evaluate("page => getComputedStyle(page).color")
    assert text == "rgb(29, 38, 41)"  # the light scheme's, whatever the screen shows
    outside = page.locator("article a[rel=external]").first
    content = outside.evaluate("link => getComputedStyle(link, '::after').content")
    assert outside.get_attribute("href") in content
    internal = page.locator("article a[href*='/glossary/']").first
    assert internal.evaluate("link => getComputedStyle(link, '::after').content") == "none"
