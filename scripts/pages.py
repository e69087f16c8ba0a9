"""What pages are made of: lectures and their recordings, figure cards, tables, the reference.

Knows nothing of MkDocs: `scripts/hooks.py` hands over what it found, and takes Markdown, HTML and
files back.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import markdown
import matplotlib
import yaml

from scripts import figures, lectures, palette, rows
from scripts.kept import kept
from scripts.templates import Templates

# what a figure of the same rows depends on
_DRAWN_BY = (
    matplotlib.__version__,
    *(Path(module.__file__).read_text(encoding="utf-8") for module in (figures, palette, rows)),
)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.S)
_NEXT = re.compile(r"\bNext:\s+\[[^\]]*\]\((?P<path>[\w/.]+)\.py\)")
# what Jinja2 replaces, a number for the reader or nothing
_TEMPLATE = re.compile(r"{{.*?}}|{%.*?%}|{##.*?##}", re.S)
WORDS_A_MINUTE, CODE_LINES_A_MINUTE = 200, 25


@dataclass(frozen=True)
class Block:
    """A piece of a page that Markdown must not touch: a token stands for it meanwhile."""

    html: str
    notebook: str  # the same in Jupyter's Markdown
    numbers: str = ""  # a figure's table, for readers who have text alone

    @property
    def text(self) -> str:
        """The block in plain Markdown."""
        return self.numbers or self.notebook


class LectureError(Exception):
    """A script that is no lecture; the message says what it lacks."""


class Lecture:
    """One script: its front matter, and its cells with the prose freed of comment signs."""

    def __init__(self, script: Path):
        self.script, self.name = script, lectures.lecture_name(script)
        self.cells = []
        for cell in lectures.cells(script.read_text(encoding="utf-8")):
            if cell.kind == "markdown":
                prose = re.sub(r"(?m)^# ?", "", cell.source)
                cell = replace(cell, source=prose)
            self.cells.append(cell)
        match = _FRONT_MATTER.match(self.cells[0].source) if self.cells else None
        self.meta = yaml.safe_load(match[1]) if match else {}
        if missing := [key for key in ("title", "description", "outcome") if key not in self.meta]:
            raise LectureError(f"the front matter of its first cell lacks {', '.join(missing)}")
        first = self.cells[0]
        body, skipped = first.source[match.end() :], match[0].count("\n")
        self.cells[0] = replace(first, source=body, line=first.line + skipped)

    @cached_property
    def kernel(self) -> str:
        """The part of the file that a project needs: its cells tagged "copy"."""
        copied = [cell.source.strip("\n") for cell in self.cells if "copy" in cell.tags]
        return "\n\n\n".join(copied)

    @cached_property
    def minutes(self) -> int:
        """Reading time."""
        prose = (_TEMPLATE.sub("", c.source) for c in self.cells if c.kind == "markdown")
        words = sum(len(text.split()) for text in prose)
        lines = sum(c.source.count("\n") for c in self.cells if c.kind == "code")
        return max(1, round(words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE))

    @cached_property
    def leads_to(self) -> str:
        """The lecture that its own last words send a reader to; empty where they name none."""
        prose = "".join(cell.source for cell in self.cells if cell.kind == "markdown")
        found = _NEXT.search(prose)
        if not found:
            return ""
        target = self.script.parent / found["path"]
        return f"{target.resolve().parent.name}/{target.stem}"


class Site:
    """One build: all lectures, their recordings, and the files that pages ask for.

    Args:
        root: The repository.
        gpu: Whose recordings the pages show, such as `nvidia-h200`.
        report: Called with one message for each thing that is wrong.
        scripts: The lectures to show; all unless given.
    """

    def __init__(
        self, root: Path, gpu: str, report: Callable[[str], None], scripts: list[Path] | None = None
    ):
        self.root, self.gpu, self.report = root, gpu, report
        self.templates = Templates(root, report)
        self.lectures: dict[str, Lecture] = {}
        for script in lectures.lecture_paths(root) if scripts is None else scripts:
            try:
                self.lectures[lectures.lecture_name(script)] = Lecture(script)
            except LectureError as error:
                report(f"{script.relative_to(root)}: {error}")
        self.files: dict[str, str] = {"stylesheets/palette.css": palette.css()}
        self.blocks: list[Block] = []
        self.stale: set[str] = set()
        self._raw: dict[tuple[str, str], dict | None] = {}

    # recordings

    def raw(self, name: str, gpu: str | None = None) -> dict | None:
        """A lecture's recording as it lies on disk; None, reported, where it cannot be shown.

        A stale one is reported too, and its numbers shown: a strict build fails, a preview helps
        who is at work on the lecture. On further GPUs, which few have, it is left out.
        """
        key = (name, gpu or self.gpu)
        if key not in self._raw:
            script = self.lectures[name].script
            place = script.relative_to(self.root)
            recording = None
            try:
                path = lectures.recording_path(script, key[1], self.root)
                recording = lectures.load_recording(path, script)
            except lectures.RecordingError as error:
                self.report(f"{place}: {error}")
            if recording and lectures.is_stale(recording, script):
                if key[1] == self.gpu:
                    self.stale.add(name)
                    repair = lectures.repair(script)
                    self.report(f"{place}: its code changed after it was recorded: {repair}")
                else:
                    recording = None
            self._raw[key] = recording
        return self._raw[key]

    def outputs(self, name: str) -> list[list[dict]]:
        """What each code cell of a lecture printed; nothing where the code is not what ran."""
        recording = self.raw(name)
        fresh = recording and name not in self.stale
        return [cell["outputs"] for cell in recording["cells"]] if fresh else []

    @cache  # noqa: B019  one site a build
    def recording(self, name: str, gpu: str | None = None) -> rows.Recording | rows.Unknown:
        """What templates call `rec`."""
        raw = self.raw(self._known(name), gpu)
        return rows.Recording(raw) if raw else rows.UNKNOWN

    def _known(self, name: str) -> str:
        if name not in self.lectures:
            raise rows.RowError(f"no lecture {name!r}; there are: {', '.join(self.lectures)}")
        return name

    @cache  # noqa: B019  one site a build
    def profile(self, name: str) -> rows.Recording | rows.Unknown:
        """What scripts/profile_gpu.py saw of a lecture; reported where it is missing or stale."""
        script = self.lectures[self._known(name)].script
        place = script.relative_to(self.root)
        try:
            path = lectures.profile_path(script, self.gpu, self.root)
            raw = lectures.load_recording(path, script, "profile_gpu")
        except lectures.RecordingError as error:
            self.report(f"{place}: {error}")
            return rows.UNKNOWN
        if lectures.is_stale(raw, script):
            repair = lectures.repair(script, "profile_gpu")
            self.report(f"{place}: its code changed after it was profiled: {repair}")
        return rows.Recording(raw | {"ceilings": {"copy": [], "matmul": []}})

    def recordings(self) -> list[tuple[str, str, rows.Recording]]:
        """GPU, lecture and recording of everything that was recorded, the default GPU first."""
        folder = self.root / "docs" / "recorded"
        others = {path.name for path in folder.glob("*") if path.is_dir()} - {self.gpu}
        found = []
        for gpu in (self.gpu, *sorted(others)):
            for name, lecture in self.lectures.items():
                there = lectures.recording_path(lecture.script, gpu, self.root).exists()
                if there and (recording := self.recording(name, gpu)) is not rows.UNKNOWN:
                    found.append((gpu, name, recording))
        return found

    # what templates may call

    def context(self, url: str, lecture: str | None = None) -> dict:
        """The names that a page's expressions may use.

        Args:
            url: Of the page, below the site's root: links are relative to it.
            lecture: Whose recording the page is about, if any.
        """
        up = "../" * url.count("/")
        context: dict = {"rec": self.recording, "lectures": self.lectures}
        if lecture:
            recording = self.recording(lecture)
            names = ("env", "row", "rows", "copy_ms", "copy_tbps", "matmul_tflops")
            if recording is rows.UNKNOWN:
                context |= dict.fromkeys(names, rows.UNKNOWN)
            else:
                context |= recording.context
        else:
            found = self.recordings()
            context["env"] = found[0][2].env if found else rows.UNKNOWN

        def figure(name: str, caption: str = "", lecture: str | None = lecture, **options):
            return self._token(self._figure(up, name, caption, lecture, **options))

        def heatmap(name: str, caption: str = "", lecture: str | None = lecture, **options):
            kind = figures.HeatMap
            return self._token(self._figure(up, name, caption, lecture, kind, **options))

        def table(name: str, lecture: str | None = lecture, **options):
            return self._token(self._table(name, lecture, **options))

        def ladder(name: str, lecture: str | None = lecture, **where):
            return self._token(self._ladder(name, lecture, **where))

        def profile(name: str, lecture: str | None = lecture, **where):
            return self.profile(lecture).row(name, **where)

        def profile_source(lecture: str | None = lecture):
            return self._token(self._profile_source(up, lecture))

        def diagram(name: str):
            return self._token(self._diagram(name, url, context))

        def picture(name: str):
            return self._token(self._picture(name, up, url, context))

        context |= {
            "figure": figure,
            "heatmap": heatmap,
            "table": table,
            "ladder": ladder,
            "profile": profile,
            "profile_source": profile_source,
            "diagram": diagram,
            "picture": picture,
            "roofline": lambda **options: self._token(self._roofline(up, **options)),
            "results": lambda **options: self._token(self._results(up, **options)),
            "gpu_tests": lambda: self._token(self._gpu_tests()),
            "reference": self._reference,
        }
        return context

    def _token(self, block: Block | rows.Unknown) -> str:
        if block is rows.UNKNOWN:
            return "*Not recorded yet.*"
        self.blocks.append(block)
        return f"\ue000{len(self.blocks) - 1}\ue001"

    def fill(self, text: str, form: str) -> str:
        """Blocks in place of their tokens: `form` is "html", "notebook" or "text"."""
        token = r"\ue000(\d+)\ue001"
        if form == "html":
            token = rf"<p>\s*{token}\s*</p>|{token}"
        return re.sub(token, lambda m: getattr(self.blocks[int(m[m.lastindex])], form), text)

    # blocks

    def _figure(
        self,
        up: str,
        name: str,
        caption: str,
        lecture: str,
        kind: type[figures.Chart | figures.HeatMap] = figures.Chart,
        **options,
    ) -> Block | rows.Unknown:
        recording = self.recording(lecture)
        if recording is rows.UNKNOWN:
            return rows.UNKNOWN
        chart = kind(recording.benchmark(name), **options)
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
        stem = f"figures/{lecture}/{name}-{digest}" if options else f"figures/{lecture}/{name}"
        return self._card(
            up,
            stem,
            self._drawn(chart.svg, kind.__name__, options, *self._recorded(name, lecture)),
            chart.alt(),
            title=chart.benchmark.title,
            caption=caption,
            source=f"{_environment(recording.env)} · {self._data_link(up, lecture)}",
            summary=chart.label,
            numbers=chart.table(),
        )

    def _recorded(self, name: str, lecture: str) -> tuple[dict, dict]:
        """A benchmark and the card's ceilings, as the recording has them."""
        raw = self.raw(lecture)
        return next(b for b in raw["benchmarks"] if b["name"] == name), raw["ceilings"]

    def _drawn(self, draw: Callable[[], str], *inputs) -> str:
        """A figure, drawn anew only where its rows, or the code that draws it, have changed."""
        folder = self.root / ".cache" / "figures"
        return kept(folder, ".svg", (_DRAWN_BY, inputs), lambda: draw().encode()).decode()

    def _card(
        self,
        up: str,
        stem: str,
        svg: str,
        alt: str,
        *,
        title: str,
        caption: str,
        source: str,
        summary: str,
        numbers: tuple[list[str], list[list[str]]],
    ) -> Block:
        width, height = figures.pixels(svg)
        images = []
        for scheme, drawing in (("light", svg), ("dark", palette.to_dark(svg))):
            self.files[f"{stem}.{scheme}.svg"] = drawing
            images.append(
                f'<img src="{up}{stem}.{scheme}.svg#only-{scheme}" alt="{html.escape(alt)}"'
                f' width="{width}" height="{height}" loading="lazy">'
            )
        text = f"<p>{_inline(caption)}</p>" if caption else ""
        page = (
            f'<figure class="measurement"><p class="measurement-title">{html.escape(title)}</p>'
            f"{''.join(images)}<figcaption>{text}"
            f'<p class="measurement-source" data-search-exclude>{source}</p>'
            f"</figcaption><details data-search-exclude><summary>The numbers: "
            f"{html.escape(summary)}</summary>{_html_table(*numbers)}</details></figure>"
        )
        image = f"![{alt}]({{site}}{stem}.light.svg)"
        source = re.sub(r"<[^>]+>", "", source).removesuffix(" · data (JSON)")
        table = f"**{title}: {summary}**\n\n{_markdown_table(*numbers)}"
        return Block(
            page,
            f"**{title}**\n\n{image}\n\n{caption}\n\n*{source}*",
            f"{table}\n\n{caption}\n\n*{source}*",
        )

    def _data_link(self, up: str, lecture: str) -> str:
        path = f"recorded/{self.gpu}/{lecture}.json"
        return f'<a href="{up}{path}" download>data (JSON)</a>'

    def _table(
        self,
        name: str,
        lecture: str,
        where: dict | None = None,
        columns: list[str] | None = None,
        providers: list[str] | None = None,
    ) -> Block | rows.Unknown:
        """A plain table of chosen rows; a column is any key of a row, stored or derived."""
        recording = self.recording(lecture)
        if recording is rows.UNKNOWN:
            return rows.UNKNOWN
        benchmark = recording.benchmark(name)
        derived = [figures.default_y(benchmark)] if benchmark.ceiling else []
        columns = columns or ["provider", benchmark.x, "ms", *derived]
        chosen = benchmark.rows(**(where or {}))
        if providers:
            chosen = [row for row in chosen if row.provider in providers]
        body = []
        for row in chosen:
            missing = [column for column in columns if not hasattr(row, column)]
            if missing:
                raise rows.RowError(f"rows of {name} have no {', '.join(missing)}")
            body.append([_cell(getattr(row, column), column) for column in columns])
        header = [figures.LABELS.get(c, c.replace("_", " ")) for c in columns]
        return Block(_html_table(header, body), _markdown_table(header, body))

    def _ladder(self, name: str, lecture: str, **where) -> Block | rows.Unknown:
        """The rungs at one size, in order, each with what it gains on the one before."""
        recording = self.recording(lecture)
        if recording is rows.UNKNOWN:
            return rows.UNKNOWN
        benchmark = recording.benchmark(name)
        if "x" in where:
            where[benchmark.x] = where.pop("x")
        rungs = [row for row in benchmark.rows(**where) if row.provider.startswith("triton")]
        y = figures.default_y(benchmark)
        header = ["Step", "time", figures.label(benchmark, y), "gain"]
        body, before = [], None
        for row in sorted(rungs, key=lambda row: row.provider == "triton"):
            gain = rows.format_times(before.ms / row.ms) if before else ""
            value = figures.number(getattr(row, y), y)
            body.append([palette.provider_name(row.provider), rows.format_ms(row.ms), value, gain])
            before = row
        if not body:
            raise rows.RowError(f"no rung of {name} matches {where}")
        return Block(_html_table(header, body), _markdown_table(header, body))

    def _profile_source(self, up: str, lecture: str) -> Block | rows.Unknown:
        """The line below numbers of the profiler: machine, versions, data."""
        profile = self.profile(lecture)
        if profile is rows.UNKNOWN:
            return rows.UNKNOWN
        source = _environment(profile.env)
        link = self._data_link(up, f"{lecture}.profile")
        page = f'<p class="measurement-source" data-search-exclude>{source} · {link}</p>'
        return Block(page, f"*{source}*")

    def _diagram(self, name: str, url: str, context: dict) -> Block:
        path = self.root / "docs" / "diagrams" / f"{name}.svg"
        if not path.exists():
            raise rows.RowError(f"no diagram {path.relative_to(self.root)}")
        svg = self.templates.render(path.read_text(encoding="utf-8"), path, context)
        title = re.search(r"<title[^>]*>(.*?)</title>", svg, re.S)
        page = f'<figure class="diagram"><div class="diagram-scroll">{svg.strip()}</div></figure>'
        words = html.unescape(title[1]) if title else name
        return Block(page, f"*Diagram: {words}* ([see it on the page]({{site}}{url}))")

    def _picture(self, name: str, up: str, url: str, context: dict) -> Block:
        """A drawing that a script of its name sets in motion; a notebook shows it as it stands."""
        path = self.root / "docs" / "pictures" / f"{name}.html"
        if not path.exists():
            raise rows.RowError(f"no picture {path.relative_to(self.root)}")

        def source(lecture: str) -> str:
            env = self.recording(lecture).env
            return f"{_environment(env)} · {self._data_link(up, lecture)}"

        template = path.read_text(encoding="utf-8")
        content = self.templates.render(template, path, context | {"source": source})
        page = (
            f'<figure class="picture" id="picture-{name}" data-search-exclude>{content.strip()}'
            f'<script type="module" src="{up}javascripts/pictures/{name}.js"></script></figure>'
        )
        svg = re.search(r'<svg .*?aria-label="(.*?)".*</svg>', content, re.S)
        file = f"figures/pictures/{name}.svg"
        self.files[file] = self._standalone(svg[0])
        image = f"![{html.unescape(svg[1])}]({{site}}{file})"
        return Block(page, f"{image}\n\n*[Move it on the page]({{site}}{url}#picture-{name})*")

    def _standalone(self, svg: str) -> str:
        """An SVG of a page as a file, with the style sheet's classes and the light scheme."""
        styles = (self.root / "docs" / "stylesheets" / "site.css").read_text(encoding="utf-8")
        rules = "".join(re.findall(r"(?m)^(?:\.dg-|:is\(\.dg-).*}$", styles))
        for role, colour in palette.variables("light").items():
            rules = rules.replace(f"var(--tl-{role})", colour)
        rules += "text { font-family: sans-serif } .dg-mono { font-family: monospace }"
        ground = f'<rect width="100%" height="100%" fill="{palette.SCHEMES["light"]["bg"]}"/>'
        opening, _, drawing = svg.partition(">")
        return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{rules}</style>{ground}{drawing}\n'

    def _roofline(self, up: str, caption: str = "", dtype: str = "bfloat16"):
        """This GPU's ceilings, and the fastest row of every recorded kernel under them."""
        found = [(name, rec) for gpu, name, rec in self.recordings() if gpu == self.gpu]
        points, body, named = [], [], []
        for name, recording in found:
            fastest = []
            for benchmark in recording.benchmarks.values():
                own = [
                    row
                    for row in benchmark.all
                    if row.provider == "triton" and row.bytes and row.flops and hasattr(row, "ms")
                ]
                if own:
                    best = max(own, key=lambda row: row.tflops)
                    fastest.append(best)
                    percent = rows.format_pct(best.percent) if benchmark.ceiling else "–"
                    intensity = rows.significant(best.flops / best.bytes)
                    rate = rows.format_tflops(best.tflops)
                    body.append([benchmark.title, name, intensity, rate, percent])
            # names of all kernels would not fit
            shown = max(fastest, key=lambda row: row.tflops, default=None)
            title = self.lectures[name].meta["title"]
            points += [(title if row is shown else "", row) for row in fastest]
            if shown:
                named.append(f"{title} {rows.format_tflops(shown.tflops)}")
        if not points:
            return rows.UNKNOWN
        name, newest = found[-1]
        header = ["Kernel", "Lecture", "flops for each byte", "rate", "percent of its ceiling"]
        return self._card(
            up,
            "figures/roofline",
            self._drawn(
                lambda: figures.roofline(points, newest.ceilings, dtype),
                [(title, row.stored) for title, row in points],
                vars(newest.ceilings),
                dtype,
            ),
            f"Roofline of the {newest.env['gpu']}: measured ceilings, and under them each lecture's"
            f" fastest kernel: {', '.join(named)}.",
            title=f"Roofline, {newest.env['gpu']}",
            caption=caption,
            source=f"{_environment(newest.env)} · {self._data_link(up, name)}",
            summary="the fastest row of each kernel",
            numbers=(header, body),
        )

    def _results(self, up: str, without: Collection[str] = ()) -> Block:
        """Every recorded size of every kernel, for the results page.

        Args:
            without: Benchmarks that are trials, or measure the machine.
        """
        header = ["Kernel", "Size", "Time", "Of the ceiling", "Against", "Type", "Mode"]
        recorded = self.recordings()
        if len({gpu for gpu, *_ in recorded}) > 1:
            header.append("GPU")
        benchmarks = [
            (name, recording, benchmark)
            for _, name, recording in recorded
            for benchmark in recording.benchmarks.values()
            if benchmark.name not in without
        ]
        benchmarks.sort(key=lambda found: not found[2].ceiling)  # those with a ceiling first
        body = [
            self._result(up, name, recording, row)[: len(header)]
            for name, recording, benchmark in benchmarks
            for row in benchmark.all
            if row.provider == "triton" and hasattr(row, "ms")  # some rows count, and time nothing
        ]
        if not body:
            return Block("<p>Nothing is recorded yet.</p>", "")
        head = "".join(f'<th scope="col">{name}</th>' for name in header)
        rows_ = "\n".join(f"<tr>{''.join(row)}</tr>" for row in body)
        return Block(
            '<div class="results" data-search-exclude>'
            f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows_}\n</tbody></table></div>",
            "",
        )

    def _result(self, up: str, name: str, recording: rows.Recording, row: rows.Row) -> list[str]:
        benchmark = row.benchmark
        # what is alike in all rows says the title
        sizes = [other.size() for other in benchmark.all]
        size = ", ".join(
            _said(key, value)
            for key, value in row.size().items()
            if key != "width"  # a shape says it
            and (key == benchmark.x or any(other.get(key) != value for other in sizes))
        )
        peers = sorted(benchmark.peers(row), key=lambda peer: peer[1])
        against = "<br>".join(
            f"{rows.format_times(ratio)} {palette.provider_name(provider)}".replace(" ", "\u00a0")
            for provider, ratio in peers
        )
        ceiling = f"{row.percent:.1f}" if benchmark.ceiling else ""

        def cell(shown: str, key=None) -> str:
            sort = f' data-sort="{key}"' if key is not None else ""
            return f"<td{sort}>{shown}</td>"

        return [
            cell(
                f'<a href="{up}{name}/">{html.escape(benchmark.title)}</a>'
                f"<br><small>{html.escape(self.lectures[name].meta['title'])}</small>"
            ),
            cell(html.escape(size), getattr(row, benchmark.x)),
            cell(rows.format_ms(row.ms), row.ms),
            cell(rows.format_pct(row.percent) if ceiling else "–", ceiling or -1),
            cell(against or "–", f"{peers[0][1]:.4g}" if peers else 0),
            cell(benchmark.dtype or ""),
            cell(benchmark.mode or ""),
            cell(html.escape(recording.env["gpu"])),
        ]

    def _gpu_tests(self) -> Block:
        """What the tests and compute-sanitizer said on the GPU."""
        path = self.root / "docs" / "recorded" / self.gpu / "tests.json"
        recorded = lectures.load_tests(path)
        table = []
        for name, lecture in self.lectures.items():
            if found := recorded.get(name):
                stale = found["code_sha256"] != lectures.script_sha256(
                    lecture.script.read_text(encoding="utf-8")
                )
                errors = [found["sanitizer"][tool] for tool in ("memcheck", "racecheck")]
                table.append(
                    [
                        lecture.meta["title"],
                        *(f"{found[key]:,}" for key in ("passed", "failed", "skipped")),
                        *("no end" if count is None else f"{count:,}" for count in errors),
                        found["environment"]["date"] + (", code since changed" if stale else ""),
                    ]
                )
        if not table:
            text = "The suite's result on the GPU is not recorded yet."
            return Block(f"<p>{text}</p>", text)
        head = ["Lecture", "Passed", "Failed", "Skipped", "memcheck", "racecheck", "Tested"]
        newest = max((recorded[name] for name in recorded), key=lambda t: t["environment"]["date"])
        source = f'<p class="measurement-source">{_environment(newest["environment"])}</p>'
        return Block(_html_table(head, table) + source, "")

    def _reference(self) -> str:
        """Markdown with the API of every lecture, in mkdocstrings' notation."""
        parts = []
        for name, lecture in self.lectures.items():
            module = f"examples.{name.replace('/', '.')}"
            parts.append(
                f"## {lecture.meta['title']} {{ #{anchor(name)} }}\n\n"
                f"{lecture.meta['description']} [The lecture]({name}.py)\n\n"
                f"::: {module}\n"
                "    options: {heading_level: 3, show_root_heading: false, "
                "show_root_toc_entry: false}\n"
            )
        return "\n".join(parts)


def anchor(name: str) -> str:
    """Where the reference page speaks of a lecture."""
    return name.replace("/", "-").replace("_", "-")


def _environment(env: dict) -> str:
    """One line: GPU, versions, date."""
    tools = ("driver", "torch", "triton", "ncu")
    versions = [f"{tool} {env[tool]}" for tool in tools if tool in env]
    return " · ".join(html.escape(part) for part in (env["gpu"], *versions, env["date"]))


def _inline(text: str) -> str:
    """A caption's Markdown as HTML, without the paragraph around it."""
    return markdown.markdown(text).removeprefix("<p>").removesuffix("</p>")


# how the table of results says a size; what is not here reads "n = 4k"
_SAID = {
    "batch": "batch {}",
    "bytes_moved": "{}",
    "case": "{}",
    "length": "{} length",
    "longest": "up to {} tokens",
    "n_cols": "{} columns",
    "n_keys": "{} keys",
    "n_rows": "{} rows",
    "n_seqs": "{} sequences",
    "op": "{}",
    "room": "room for {}",
    "seq_len": "length {}",
    "shape": "{}",
    "side": "{} a side",
    "window": "window {}",
}


def _said(key: str, value) -> str:
    if key == "causal":
        return "causal" if value else "full"
    return _SAID.get(key, f"{key.replace('_', ' ')} = {{}}").format(figures.human(value, key))


def _cell(value, column: str) -> str:
    if column == "provider":
        return palette.provider_name(value)
    if column in ("ms", "floor_ms", "ms_hot"):
        return rows.format_ms(value)
    if column in ("percent", "percent_hot"):
        return rows.format_pct(value)
    if column in ("bytes", "peak_bytes"):
        return rows.format_bytes(value)
    if isinstance(value, float):
        return rows.significant(value)
    return figures.exact(value, column).replace(" × ", "\u00a0×\u00a0")  # a shape stays in one line


def _html_table(header: list[str], body: list[list[str]]) -> str:
    """The first column reads from the left, numbers from the right."""

    def line(tag: str, cells: list[str]) -> str:
        right = ' style="text-align:right"'
        scope = ' scope="col"' if tag == "th" else ""
        written = [
            f"<{tag}{scope}{right if i else ''}>{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(written)}</tr>"

    rows_ = "\n".join(line("td", cells) for cells in body)
    return f"<table><thead>{line('th', header)}</thead><tbody>\n{rows_}\n</tbody></table>"


def _markdown_table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
