"""The pipeline from script and recording to page, with small lectures and recordings of its own."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from matplotlib.text import Text

from scripts import figures, lectures, mathml, pages, palette, rows
from scripts.notebooks import SETUP, notebooks, rendered, to_jupyter
from scripts.pages import Lecture, Site
from scripts.templates import Templates

ROOT = lectures.ROOT
GPU = "nvidia-h200"

LECTURE = '''\
# %% [markdown]
# ---
# title: Tiny
# description: A lecture for tests.
# outcome: Do little.
# ---
#
# # A tiny lecture
#
# The formula $x < y$ and [a page](../results.md#the-roofline), [the API][examples.demo.tiny.op].
# Triton takes {{ row("op_forward", provider="triton", n=2048).ms | ms }}.
#
# !!! note "Mind"
#     A note.
#
# {{ figure("op_forward", caption="Triton is at the *ceiling*.") }}

# %% tags=["copy"]
import math


# %% tags=["copy"]
def op(x: float) -> float:
    """The operation.

    Args:
        x: A number.

    Returns:
        Its root.
    """
    return math.sqrt(x)


# %% tags=["fold"]
def check(device="cuda"):
    print("all is", "well")


# %%
if __name__ == "__main__":
    check()
'''


def recording(script: Path) -> dict:
    """A recording as the recorder would make it: Triton at the ceiling, torch at half of it."""
    text = script.read_text("utf-8")
    code = [cell for cell in lectures.cells(text) if cell.kind == "code"]
    said = [{"output_type": "stream", "name": "stdout", "text": "all is well\n"}]
    timed = []
    for n in (1024, 1823, 2048, 65536):
        for provider, ms in (("triton", n * 1e-6), ("torch", n * 2e-6)):
            quantiles = {"ms_p20": ms * 0.99, "ms_p80": ms * 1.02}
            stored = {"provider": provider, "n": n, "ms": ms, "bytes": n * 1000, "flops": n * 500}
            timed.append(stored | quantiles)
    return {
        "schema": lectures.SCHEMA,
        "code_sha256": lectures.script_sha256(text),
        "environment": {
            "gpu": "NVIDIA H200",
            "driver": "1.2",
            "torch": "2.11.0",
            "triton": "3.6.0",
            "date": "2026-11-21",
            "interpreter": False,
        },
        # 1 GB/ms, so the floor of n * 1000 bytes is n * 1e-6 ms
        "ceilings": {
            "copy": [{"bytes": b, "ms": b * 1e-9} for b in (1000, 10_000_000, 100_000_000)],
            "matmul": [
                {"dtype": "bfloat16", "n": 4096, "tflops": 770.0, "tflops_hot": 690.0},
                {"dtype": "bfloat16", "n": 8192, "tflops": 815.0, "tflops_hot": 683.0},
            ],
        },
        "cells": [
            {
                "code_sha256": lectures.code_sha256(cell.source),
                "outputs": said if "__main__" in cell.source else [],
            }
            for cell in code
        ],
        "benchmarks": [
            {
                "name": "op_forward",
                "title": "Op",
                "x": "n",
                "dtype": "bfloat16",
                "mode": "forward",
                "ceiling": "copy",
                "rows": timed,
            }
        ],
    }


class Repository:
    """A root with one lecture, recorded."""

    def __init__(self, root: Path):
        self.root = root
        self.script = root / "examples" / "demo" / "tiny.py"
        self.script.parent.mkdir(parents=True)
        self.script.write_text(LECTURE, "utf-8")
        self.path = lectures.recording_path(self.script, GPU, root)
        self.path.parent.mkdir(parents=True)
        self.write(recording(self.script))

    def write(self, recorded: dict) -> None:
        self.path.write_text(json.dumps(recorded), "utf-8")

    def edit(self, old: str, new: str) -> None:
        text = self.script.read_text("utf-8")
        assert old in text
        self.script.write_text(text.replace(old, new), "utf-8")

    def site(self) -> tuple[Site, list[str]]:
        said: list[str] = []
        return Site(self.root, GPU, said.append), said

    def pages(self) -> tuple[str, str, list[str]]:
        """The lecture's two notebooks, and what was reported."""
        site, said = self.site()
        lecture = site.lectures["demo/tiny"]
        url = "demo/tiny/"
        cells = rendered(site, lecture, url)
        return (*notebooks(site, lecture, cells, url, "https://example.org/"), said)


@pytest.fixture
def repository(tmp_path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture
def recorded(repository) -> rows.Recording:
    return rows.Recording(recording(repository.script))


# recordings


def test_a_fresh_recording_is_shown(repository):
    page, _, said = repository.pages()
    assert not said
    assert "Triton takes 0.00205\u00a0ms" in page
    assert "all is well" in page


def test_prose_is_free(repository):
    repository.edit("# # A tiny lecture", "# # A small lecture\n#\n# More prose.")
    page, _, said = repository.pages()
    assert not said
    assert "all is well" in page


def break_file(repository):
    repository.path.unlink()


def break_code(repository):
    repository.edit("math.sqrt(x)", "math.sqrt(x) + 0")


def break_json(repository):
    repository.path.write_text("not JSON", "utf-8")


def break_half(repository):
    text = repository.path.read_text("utf-8")
    repository.path.write_text(text[: len(text) // 2], "utf-8")


def break_interpreter(repository):
    made = recording(repository.script)
    made["environment"]["interpreter"] = True
    repository.write(made)


def break_gpu(repository):
    made = recording(repository.script)
    del made["environment"]["gpu"]
    repository.write(made)


def break_schema(repository):
    repository.write(recording(repository.script) | {"schema": 0})


BREAKAGES = {
    "no such recording": break_file,
    "code changed": break_code,
    "not a whole JSON file": break_json,
    "not a whole JSON file, half": break_half,
    "made by the interpreter": break_interpreter,
    "names no GPU": break_gpu,
    "not a recording of schema": break_schema,
}


@pytest.mark.parametrize("problem", BREAKAGES)
def test_a_recording_that_cannot_be_shown(repository, problem):
    BREAKAGES[problem](repository)
    page, _, said = repository.pages()
    assert len(said) == 1
    assert problem.partition(",")[0] in said[0]
    assert "examples/demo/tiny.py" in said[0]
    assert "python scripts/record.py demo/tiny" in said[0]
    # the page stands, without outputs; and without numbers where there are none
    assert "all is well" not in page
    number = "0.00205\u00a0ms" if problem == "code changed" else "–"
    assert f"Triton takes {number}" in page


# profiles


def with_profile(repository) -> dict:
    """Lets the lecture's page show a number of the profiler, and returns a profile that has it."""
    shown = "# Busy {{ profile('op_forward', provider='triton', n=2048).tensor | pct }}.\n#\n"
    shown += "# {{ profile_source() }}\n#\n"
    repository.edit("# !!! note", f"{shown}# !!! note")
    made = recording(repository.script)
    seen = {"provider": "triton", "n": 2048, "tensor": 81.2, "ms": 1.0}
    benchmark = {"name": "op_forward", "title": "Op", "x": "n", "ceiling": None, "rows": [seen]}
    made["environment"]["ncu"] = "2025.3"
    keys = ("schema", "code_sha256", "environment")
    return {key: made[key] for key in keys} | {"benchmarks": [benchmark]}


def write_profile(repository, made: dict) -> None:
    path = lectures.profile_path(repository.script, GPU, repository.root)
    path.write_text(json.dumps(made), "utf-8")


def test_a_profile_is_shown_with_its_source(repository):
    write_profile(repository, with_profile(repository))
    site, said = repository.site()
    first = rendered(site, site.lectures["demo/tiny"], "demo/tiny/")[0]
    page = site.fill(first.source, "html")
    assert not said
    assert "Busy 81\u00a0%." in page
    assert "triton 3.6.0 · ncu 2025.3 · 2026-11-21" in page
    assert f'href="../../recorded/{GPU}/demo/tiny.profile.json"' in page
    # it is no recording
    assert [name for _, name, _ in site.recordings()] == ["demo/tiny"]


@pytest.mark.parametrize("problem", ["there is no such", "changed after it was profiled", "n=2049"])
def test_a_profile_that_cannot_be_shown(repository, problem):
    made = with_profile(repository)
    if problem.startswith("changed"):
        made["code_sha256"] = "of other code"
    elif problem == "n=2049":
        repository.edit("n=2048).tensor", "n=2049).tensor")
    if not problem.startswith("there"):
        write_profile(repository, made)
    page, _, said = repository.pages()
    assert len(said) == 1 and "examples/demo/tiny.py" in said[0]
    if problem == "n=2049":
        assert "0 rows of op_forward match" in said[0]
    else:
        assert problem in said[0] and "python scripts/profile_gpu.py demo/tiny" in said[0]
        # outputs and numbers of the recording are there all the same
        assert "all is well" in page and "Triton takes 0.00205" in page
    assert ("Busy 81" in page) == problem.startswith("changed")


# templates


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("{{ speed }}", "'speed' is undefined"),
        ("{{ 1 | furlongs }}", "No filter named 'furlongs'"),
        ("{{ row('op_forward', provider='triton', n=7).ms }}", "0 rows of op_forward match"),
        ("{{ row('op_forward', provider='triton').ms }}", "4 rows of op_forward match"),
        ("{{ row('op_forward', N=2048).ms }}", "no row of op_forward has a key N"),
        ("{{ row('op_backward').ms }}", "no benchmark named 'op_backward'; there are: op_forward"),
        ("{{ rec('demo/huge').row('x') }}", "no lecture 'demo/huge'; there are: demo/tiny"),
        ("{{ row('op_forward', provider='triton', n=2048).joule }}", "no attribute 'joule'"),
        ("{{ figure('op_forward', y='joule') }}", "no row of triton with joule"),
        ("{{ diagram('none') }}", "no diagram docs/diagrams/none.svg"),
        ("{{ claim(1 > 2) }}", "do not support this claim, in: A line. {{ claim(1 > 2) }}"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% endif %}", "unknown tag 'endif'"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(repository, expression, message):
    repository.edit("# !!! note", f"# A line. {expression}\n#\n# !!! note")
    line = 1 + repository.script.read_text("utf-8").splitlines().index(f"# A line. {expression}")
    *_, said = repository.pages()
    assert len(said) == 1
    assert said[0].startswith(f"examples/demo/tiny.py:{line}: ")
    assert message in said[0]


def test_all_that_is_wrong_is_listed_at_once(repository):
    repository.edit("# !!! note", "# {{ claim(1 > 2) }} {{ claim(2 > 3) }}\n#\n# !!! note")
    *_, said = repository.pages()
    assert len(said) == 2


def test_a_claim_that_holds_leaves_nothing(repository):
    repository.edit("# !!! note", "# Left{{ claim(2 > 1) }}Right\n#\n# !!! note")
    page, _, said = repository.pages()
    assert not said
    assert "LeftRight" in page


def test_a_loop_writes_a_table_without_gaps(tmp_path):
    said: list[str] = []
    text = (
        "{% set sizes = [1, 2] %}\n| n |\n|---|\n    {% for n in sizes %}\n{{ claim(n < 2) }}\n"
        "| {{ n }} |\n{% endfor %}\n\nInline {% if sizes %}yes{% endif %}\nand on. {{ nothing }}\n"
    )
    templates = Templates(tmp_path, said.append)
    templates.render(text, tmp_path / "page.md", {})
    assert [message.partition(": ")[0] for message in said] == ["page.md:5", "page.md:10"]
    shown = templates.render(text.replace(" {{ nothing }}", ""), tmp_path / "page.md", {})
    assert shown == "| n |\n|---|\n| 1 |\n| 2 |\n\nInline yes\nand on.\n"


def test_what_is_raw_is_shown_as_it_stands(tmp_path):
    said: list[str] = []
    shown = "```jinja\n{% set x = row(1) %}\n{{ claim(x) }}\n```\n"
    text = f"{{% raw %}}\n{shown}{{% endraw %}}\n{{% set x = 1 %}}\n{{{{ x }}}}\n"
    rendered = Templates(tmp_path, said.append).render(text, tmp_path / "page.md", {})
    assert (rendered, said) == (f"\n{shown}\n1\n", [])


def test_a_line_in_a_diagram_is_named(repository):
    diagram = repository.root / "docs" / "diagrams" / "tile.svg"
    diagram.parent.mkdir()
    diagram.write_text(
        "<svg>\n<text>{{ row('op_forward', n=1).ms | ms }}</text>\n</svg>\n", "utf-8"
    )
    repository.edit("# !!! note", "# {{ diagram('tile') }}\n#\n# !!! note")
    *_, said = repository.pages()
    assert [message.partition(": ")[0] for message in said] == ["docs/diagrams/tile.svg:2"]


def test_a_script_without_front_matter(repository):
    repository.edit("# outcome: Do little.\n", "")
    _, said = repository.site()
    assert said == ["examples/demo/tiny.py: the front matter of its first cell lacks outcome"]


# rows


def test_what_a_row_derives(recorded):
    row = recorded.row("op_forward", provider="torch", n=65536)
    assert row.floor_ms == pytest.approx(65536e-6)
    assert row.percent == pytest.approx(50)
    assert row.tbps == pytest.approx(0.5)
    assert row.gbps == pytest.approx(500)
    assert row.tflops == pytest.approx(0.25)
    assert row.size() == {"n": 65536}
    own = recorded.row("op_forward", provider="triton", n=65536)
    assert dict(recorded.benchmark("op_forward").peers(own)) == {"torch": pytest.approx(2)}


def test_ceilings():
    points = [{"bytes": b, "ms": ms} for b, ms in ((100, 1.0), (200, 1.5), (400, 2.0))]
    ceilings = rows.Ceilings({"copy": points, "matmul": []})
    assert ceilings.copy_ms(10) == 1.0  # a launch costs what it costs
    assert ceilings.copy_ms(150) == pytest.approx(1.25)
    assert ceilings.copy_ms(300) == pytest.approx(1.75)
    assert ceilings.copy_ms(800) == pytest.approx(3.0)
    with pytest.raises(rows.RowError, match="no matmul ceiling for int4"):
        ceilings.matmul_tflops("int4")


def test_the_matmul_ceiling_is_the_best_rate_cool_or_hot(recorded):
    assert recorded.ceilings.matmul_tflops("bfloat16") == 815
    assert recorded.ceilings.matmul_tflops("bfloat16", 4096) == 770
    assert recorded.ceilings.matmul_tflops("bfloat16", hot=True) == 690


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("ms", 0.0373, "0.0373 ms"),
        ("ms", 0.037, "0.0370 ms"),
        ("ms", 0.00073, "0.730 µs"),
        ("ms", 9.999, "10.0 ms"),
        ("ms", 1234.5, "1,234 ms"),
        ("pct", 97.4, "97 %"),
        ("times", 1.84, "1.8×"),
        ("times", 0.97, "0.97×"),
        ("times", 1.04, "1.04×"),
        ("times", 12.3, "12×"),
        ("tbps", 4.187, "4.19 TB/s"),
        ("tflops", 741.3, "741 TFLOP/s"),
        ("bytes", 64 << 20, "64 MiB"),
        ("bytes", 1536, "1.5 KiB"),
        ("bytes", 512, "512 B"),
        ("bytes", 1 << 33, "8 GiB"),
    ],
)
def test_filters(name, value, shown):
    assert rows.FILTERS[name](value).replace("\u00a0", " ") == shown


def test_plain_rounding():
    assert rows.format_n(1234.567, 2) == "1,234.57"


# figures


def test_a_figure_is_the_same_bytes_every_time(recorded):
    first, second = (figures.Chart(recorded.benchmark("op_forward")).svg() for _ in range(2))
    assert first == second


def test_a_figure_is_drawn_again_where_what_it_shows_has_changed(repository, monkeypatch):
    drawn = []

    def draw(chart) -> str:
        drawn.append(chart.y)
        return '<svg viewBox="0 0 1 1"/>'

    def build() -> int:
        before = len(drawn)
        figure = repository.site()[0].context("demo/tiny/", "demo/tiny")["figure"]
        for y in ("percent", "tbps"):
            figure("op_forward", y=y)
        return len(drawn) - before

    monkeypatch.setattr(figures.Chart, "svg", draw)
    assert [build(), build()] == [2, 0]
    made = recording(repository.script)
    made["benchmarks"][0]["rows"][0]["ms"] *= 2
    repository.write(made)
    assert [build(), build()] == [2, 0]
    made["ceilings"]["copy"][0]["ms"] *= 2
    repository.write(made)
    assert [build(), build()] == [2, 0]
    monkeypatch.setattr(pages, "_DRAWN_BY", "other code")
    assert build() == 2


def test_the_dark_figure_has_no_colour_of_the_light_one(recorded):
    light = figures.Chart(recorded.benchmark("op_forward"), y="tbps").svg()
    dark = palette.to_dark(light)
    assert palette.SCHEMES["light"]["a"] in light
    assert not any(colour in dark for colour in palette.SCHEMES["light"].values())
    assert len(set(palette.SCHEMES["light"].values())) == len(palette.SCHEMES["light"])


def test_a_figure_says_what_it_shows(recorded):
    chart = figures.Chart(recorded.benchmark("op_forward"))
    assert chart.alt() == (
        "Op: percent of a copy of the same bytes against n, 1k to 64k. Triton 100; torch 50."
    )
    header, body = chart.table()
    assert header == ["n", "Triton", "torch"]
    assert body[1] == ["1,823", "100", "50"]


def test_a_figure_carries_size_source_and_data(repository):
    site, said = repository.site()
    token = site.context("demo/tiny/", "demo/tiny")["figure"]("op_forward", caption="So `it` is.")
    card = site.fill(f"<p>{token}</p>", "html")
    assert not said
    assert not re.search("[\ue000\ue001]", card)
    for part in ("alt=", "width=", "height=", "So <code>it</code> is.", "driver 1.2", "2026-11-21"):
        assert part in card
    assert 'href="../../recorded/nvidia-h200/demo/tiny.json"' in card
    for source in re.findall(r'src="\.\./\.\./([^"#]+)', card):
        assert source in site.files


@pytest.fixture
def sweep(repository) -> Repository:
    """The repository, its benchmark a sweep in which one setting does not fit."""
    made = recording(repository.script)
    about = {"provider": "triton_config", "bytes": 1000, "flops": 500}
    timed = [
        {"tile": tile, "warps": warps, "stages": stages, "ms": ms, "ms_p20": ms, "ms_p80": ms}
        for tile, warps, stages, ms in (
            ("64 × 64", 4, 2, 4e-6),
            ("64 × 64", 4, 3, 2e-6),
            ("64 × 64", 8, 2, 4e-6),
            ("64 × 64", 8, 3, 1e-5),
            ("128 × 64", 4, 2, 1e-6),
            ("128 × 64", 4, 3, 2e-6),
            ("128 × 64", 8, 2, 1e-5),
        )
    ]
    peer = {"provider": "torch", "n": 1024, "ms": 1e-6, "ms_p20": 1e-6, "ms_p80": 1e-6}
    rows_ = [row | about | {"spills": 7} for row in timed] + [peer | {"bytes": 1000, "flops": 500}]
    made["benchmarks"][0]["rows"] = rows_
    repository.write(made)
    return repository


AXES = {"x": "stages", "y": "tile", "panels": "warps"}


def test_a_heat_map_says_what_it_shows(sweep):
    benchmark = Site(sweep.root, GPU, print).recording("demo/tiny").benchmark("op_forward")
    chart = figures.HeatMap(benchmark, **AXES)
    assert chart.alt() == (
        "Op: percent of a copy of the same bytes by stages and tile and warps. 10 to 100;"
        " best at warps 4, tile 128 × 64, stages 2."
    )
    header, body = chart.table()
    assert header[:2] == ["tile", "warps 4, stages 2"]
    assert body == [["64 × 64", "25", "50", "25", "10"], ["128 × 64", "100", "50", "10", "–"]]
    light = chart.svg()
    assert light == chart.svg()
    assert not any(colour in palette.to_dark(light) for colour in palette.SCHEMES["light"].values())
    # what is neither good nor bad has no best
    assert figures.HeatMap(benchmark, value="spills", **AXES).alt().endswith("warps. 7 to 7.")
    assert figures.HeatMap(benchmark, "stages", "tile", where={"warps": 8}).panels == [()]
    with pytest.raises(rows.RowError, match="two rows at tile 64 × 64, stages 2"):
        figures.HeatMap(benchmark, "stages", "tile")


def test_a_heat_map_is_a_card_like_any_figure(sweep):
    site, said = sweep.site()
    token = site.context("demo/tiny/", "demo/tiny")["heatmap"]("op_forward", "A `tile`.", **AXES)
    card = site.fill(f"<p>{token}</p>", "html")
    assert not said
    for part in ("alt=", "width=", "A <code>tile</code>.", "driver 1.2", "<details", "data (JSON)"):
        assert part in card
    for scheme in ("light", "dark"):
        assert any(name in card for name in site.files if name.endswith(f".{scheme}.svg"))


@pytest.mark.parametrize("scheme", palette.SCHEMES)
def test_contrast_on_the_darkest_cell_of_a_heat_map(scheme):
    colours = palette.SCHEMES[scheme]
    tint = palette.mix(colours["a"], colours["bg"], 0.45)
    assert contrast(colours["text"], tint) >= 4.5


def test_one_size_is_drawn_as_bars(recorded):
    chart = figures.Chart(recorded.benchmark("op_forward"), y="us", where={"n": 1024})
    assert not chart.sweep
    assert "<svg" in chart.svg()


def test_the_roofline_is_drawn_from_all_recordings(repository):
    site, said = repository.site()
    card = site.fill(site.context("results/")["roofline"](), "html")
    assert not said
    assert "<td>Op</td>" in card
    assert "figures/roofline.dark.svg" in site.files


def test_names_in_the_roofline_have_room(recorded, monkeypatch):
    """As many lectures as this site has, and four times as many kernels."""

    def kernel(intensity: float) -> SimpleNamespace:
        rate = 0.9 * min(815, intensity)  # the recording's copy moves 1 TB/s
        return SimpleNamespace(bytes=1, flops=intensity, tflops=rate)

    names = [f"The title of lecture {i}" for i in range(20)]
    bound = [kernel(0.1 * 1.4**i) for i in range(10)] + [kernel(1500 * 1.2**i) for i in range(10)]
    dots = [("", kernel(0.1 * 1.1**i)) for i in range(80)]
    monkeypatch.setattr(figures, "_write", lambda fig: fig)
    fig = figures.roofline([*dots, *zip(names, bound, strict=True)], recorded.ceilings, "bfloat16")
    fig.canvas.draw()
    shown = [text for text in fig.axes[0].texts if text.get_text()]
    assert {text.get_text() for text in shown} > set(names)
    boxes = [Text.get_window_extent(text) for text in shown]  # without the lead
    for i, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= fig.bbox.width and 0 <= box.y0 < box.y1 <= fig.bbox.height
        assert not any(box.overlaps(other) for other in boxes[:i])
    assert fig.bbox.height < 2 * fig.bbox.width


def test_the_results_list_every_gpu_that_was_recorded(repository):
    other = recording(repository.script)
    other["environment"]["gpu"] = "NVIDIA A100"
    path = lectures.recording_path(repository.script, "nvidia-a100", repository.root)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(other), "utf-8")
    for stale in (False, True):
        if stale:
            break_code(repository)
            repository.write(recording(repository.script))
        site, said = repository.site()
        table = site.fill(site.context("results/")["results"](), "html")
        assert not said
        assert table.count("<td>NVIDIA H200</td>") == (0 if stale else 4)  # one needs no column
        assert table.count("<td>NVIDIA A100</td>") == (0 if stale else 4)
        assert "1.0×" not in table  # Triton is no peer of itself


def test_a_result_says_what_its_rows_do_not_share(repository):
    made = recording(repository.script)
    for row in made["benchmarks"][0]["rows"]:
        row |= {"heads": 16, "batch": row["n"] % 2 + 7}
    repository.write(made)
    site, _ = repository.site()
    table = site.fill(site.context("results/")["results"](), "html")
    assert ">n = 1,823, batch 8<" in table and ">n = 1k, batch 7<" in table
    assert "heads" not in table
    made["benchmarks"][0]["rows"] = made["benchmarks"][0]["rows"][:2]
    repository.write(made)
    site, _ = repository.site()
    table = site.fill(site.context("results/")["results"](), "html")
    assert ">n = 1k<" in table  # one row, one size
    empty = site.context("results/")["results"](without=["op_forward"])
    assert "<td" not in site.fill(empty, "html")


def test_the_suite_on_the_gpu_is_shown(repository):
    found = {"passed": 1234, "failed": 0, "skipped": 5, "seconds": 67.8, "code_sha256": "old"}
    found |= {"environment": recording(repository.script)["environment"]}
    found |= {"sanitizer": {"memcheck": 0, "racecheck": None}}
    name = lectures.lecture_name(repository.script)
    made = {"schema": lectures.TESTS_SCHEMA, "lectures": {name: found}}
    (repository.path.parents[1] / "tests.json").write_text(json.dumps(made), "utf-8")
    site, _ = repository.site()
    shown = site.fill(site.context("results/")["gpu_tests"](), "html")
    for cell in ("1,234", "5", "no end"):
        assert f">{cell}<" in shown
    assert "code since changed" in shown


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(18, 125, [20, 50, 100]), (0.9, 9, [1, 2, 5]), (3, 4.5, [3, 4]), (0.5, 200, [1, 10, 100])],
)
def test_ticks_of_a_logarithmic_axis(low, high, ticks):
    assert figures.log_ticks(low, high) == ticks


def test_labels_do_not_overlap():
    centres = figures.spread([10, 11, 12, 90], [6, 6, 12, 6], 0, 100)
    assert centres == sorted(centres)
    assert centres[1] - centres[0] >= 6
    assert centres[2] - centres[1] >= 9
    assert figures.spread([99, 100], [10, 10], 0, 100)[-1] <= 95


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", palette.SCHEMES)
def test_contrast(scheme):
    colours = palette.SCHEMES[scheme]
    for role in ("text", "muted", *palette.SERIES):
        assert contrast(colours[role], colours["bg"]) >= 4.5, role
        assert contrast(colours[role], colours["surface"]) >= 4.5, role
    for series in palette.SERIES:
        fill = palette.mix(colours[series], colours["bg"], palette.FILL)
        assert contrast(colours["text"], fill) >= 4.5, series
        assert f"--tl-{series}-fill: {fill};" in palette.css()


# mathematics


@pytest.mark.parametrize(
    "latex",
    [
        r"x \in \mathbb{R}^{n}",
        r"\frac{e^{x_i - m}}{\sum_{j=1}^{n} e^{x_j - m}}",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"QK^\top / \sqrt{d}, \quad \text{bytes} < 4",
    ],
)
def test_latex_becomes_mathml(latex):
    element = mathml.to_mathml(latex, display=True)
    assert element.startswith("<math")
    assert 'display="block"' in element


def test_signs_are_not_set_as_subtractions():
    element = mathml.to_mathml(r"f(-|u|) = -\infty - x", display=False)
    assert element.count('form="prefix"') == 2 and element.count('lspace="0"') == 2
    assert "<mi>∞</mi>" in element


@pytest.mark.parametrize("latex", [r"\foo x", r"\frac{1}", "{ a", "a_b_c", "a & b", r"\left( a"])
def test_wrong_latex_is_refused(latex):
    with pytest.raises(mathml.MathError):
        mathml.to_mathml(latex, display=False)


# notebooks


def test_the_notebook_to_download(repository):
    _, text, _ = repository.pages()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    prose, setup = notebook.cells[:2]
    assert "TRITON_INTERPRET" in setup.source
    assert "{{" not in text
    assert "\ue000" not in text
    assert "https://example.org/results/#the-roofline" in prose.source
    assert "https://example.org/reference/#examples.demo.tiny.op" in prose.source
    assert "https://example.org/figures/demo/tiny/op_forward.light.svg" in prose.source
    assert "> **Mind**" in prose.source
    assert notebook.cells[-1].outputs[0].text == "all is well\n"


def test_a_notebook_installs_the_versions_that_lectures_run_on():
    lines = (ROOT / "examples" / "requirements.txt").read_text("utf-8").splitlines()
    needed = [f'"{line}"' for line in lines if line.startswith("t")]
    assert len(needed) == 2 and f"%pip install -q {' '.join(needed)}\n" in SETUP


def test_blocks_of_material_in_jupyter():
    prose = '??? question "Why?"\n    Because.\n\n    ```\n    !!! note\n    ```\n\nAfter.'
    assert to_jupyter(prose) == (
        "<details><summary>Why?</summary>\n\nBecause.\n\n```\n!!! note\n```\n\n</details>\n\nAfter."
    )


def test_the_kernel_to_copy_is_a_module(repository):
    lecture = Lecture(repository.script)
    module: dict = {}
    exec(lecture.kernel, module)
    assert module["op"](4) == 2
    assert "check" not in module


# the build


def build(repository: Repository, *options: str) -> subprocess.CompletedProcess:
    """Runs MkDocs with the real configuration over the tiny lecture."""
    root = repository.root
    for name in ("mkdocs.yml", "LICENSE", "scripts", "docs/overrides", "docs/assets"):
        source, target = ROOT / name, root / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        target.exists() or copy(source, target)
    for name in ("results.md", "reference.md"):
        # pictures and links speak of lectures that are not here
        text = re.sub(r"{{ picture\(.*?\) }}", "", (ROOT / "docs" / name).read_text("utf-8"))
        text = re.sub(r"\]\(\w+/\w+\.py[^)]*\)|\]\[examples[^]]*\]", "]", text)
        (root / "docs" / name).write_text(text, "utf-8")
    (root / "docs" / "index.md").write_text("# Home\n", "utf-8")
    settings = root / "mkdocs.yml"
    pages = ("index.md", "demo/tiny.py", "results.md", "reference.md")
    nav = "nav:\n" + "".join(f"  - {page}\n" for page in pages)
    settings.write_text(re.sub(r"(?ms)^nav:.*?^(?=\n)", nav, settings.read_text("utf-8")), "utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", *options]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=root)


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_a_strict_build_is_complete_and_repeatable(repository):
    first, second = repository.root / "one", repository.root / "two"
    for target in (first, second):
        done = build(repository, "-d", str(target))
        assert done.returncode == 0, done.stderr
        shutil.rmtree(repository.root / ".cache")  # of drawings
    assert files(first) == files(second)
    dated = {Path("sitemap.xml"), Path("sitemap.xml.gz")}
    names = [str(name) for name in files(first) - dated]
    assert filecmp.cmpfiles(first, second, names, shallow=False)[1:] == ([], [])

    page = (first / "demo/tiny/index.html").read_text("utf-8")
    for part in (
        "<math",
        "Copy this kernel",
        "The authors of Triton lectures",
        "all is well",
        'href="tiny.py"',
        'href="tiny.ipynb"',
    ):
        assert part in page
    assert "colab.research.google.com/github/" in page
    assert 'href="../../reference/#examples.demo.tiny.op"' in page
    assert (first / "demo/tiny/tiny.py").read_text("utf-8") == LECTURE
    reference = (first / "reference/index.html").read_text("utf-8")
    assert 'href="../demo/tiny/"' in reference
    assert 'id="examples.demo.tiny.op"' in reference
    assert 'id="examples.demo.tiny.check"' not in reference
    results = (first / "results/index.html").read_text("utf-8")
    assert "2.0×\u00a0torch" in results
    for name in ("stylesheets/palette.css", "recorded/nvidia-h200/demo/tiny.json"):
        assert (first / name).exists()


def test_a_stale_recording_fails_the_strict_build_and_not_the_preview(repository):
    break_code(repository)
    strict = build(repository)
    assert strict.returncode != 0
    assert "python scripts/record.py demo/tiny" in strict.stderr
    preview = build(repository, "--no-strict")
    assert preview.returncode == 0, preview.stderr
    page = (repository.root / "site/demo/tiny/index.html").read_text("utf-8")
    assert "Without outputs" in page
    assert "all is well" not in page


# what is in the tree


@pytest.mark.parametrize("script", lectures.syllabus(), ids=lectures.lecture_name)
def test_every_lecture_is_recorded(script):
    path = lectures.recording_path(script, GPU)
    made = lectures.load_recording(path, script)
    assert not lectures.is_stale(made, script), lectures.repair(script)
    code = [cell for cell in lectures.cells(script.read_text("utf-8")) if cell.kind == "code"]
    hashes = [lectures.code_sha256(cell.source) for cell in code]
    assert [cell["code_sha256"] for cell in made["cells"]] == hashes
    for benchmark in rows.Recording(made).benchmarks.values():
        for row in benchmark.all:
            # a row may count instead of timing, and a clock on show has no quantiles
            times = [getattr(row, key) for key in ("ms_p20", "ms", "ms_p80") if hasattr(row, key)]
            assert times == sorted(times) and all(time > 0 for time in times)
            getattr(row, benchmark.x)
