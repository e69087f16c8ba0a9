"""Draws recorded benchmarks as SVG: a pure function of the rows, the same bytes on every build.

Each figure is drawn once, in the light scheme; `palette.to_dark` exchanges the colours. Text is
large for the figure's width, because a phone shows it 330 pixels wide. Names stand at the ends of
their lines, pushed apart, in a margin that holds no data.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from itertools import pairwise

import matplotlib

matplotlib.use("agg")  # measures text; the file itself is SVG
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

from scripts import palette, rows

LIGHT = palette.SCHEMES["light"]
WIDTH, HEIGHT = 5.0, 3.4  # inches
NAME_HEIGHT = 14.5  # points, of a name in small print
PIXELS_PER_INCH = 112  # as shown on a desktop
STYLE = {
    "svg.hashsalt": "figures",  # else every build invents new ids
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 12.5,
    "text.color": LIGHT["text"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": LIGHT["bg"],
    "figure.facecolor": LIGHT["bg"],
    "savefig.facecolor": LIGHT["bg"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["muted"],
    "axes.titlesize": 12.5,
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "round",
}

CEILINGS = {"copy": "a copy of the same bytes", "matmul": "the best cuBLAS rate"}
LABELS = {
    "percent_hot": "percent of the ceiling, back to back",
    "tbps": "TB/s",
    "gbps": "GB/s",
    "tflops": "TFLOP/s",
    "tflops_hot": "TFLOP/s, back to back",
    "ms": "time, ms",
    "us": "time, µs",
    "host_us": "time on the host, µs",
    "ns": "time, ns",
    "peak_bytes": "peak memory",
}
# what a y can be worth at the time of the ceiling
_TIMED = {"percent", "tbps", "gbps", "tflops", "ms", "us"}
_HOT = {"percent_hot", "tflops_hot"}


def default_y(benchmark: rows.Benchmark) -> str:
    return {"copy": "percent", "matmul": "tflops"}.get(benchmark.ceiling, "ms")


def label(benchmark: rows.Benchmark, y: str) -> str:
    """The name of a y axis."""
    if y == "percent":
        return f"percent of {CEILINGS[benchmark.ceiling]}"
    return LABELS.get(y, y.replace("_", " "))


def human(value, key: str = "") -> str:
    """A size as people write it: 4k, 1M, 64 MiB; 1,823 stays."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if "bytes" in key or "working_set" in key:
        return rows.format_bytes(value)
    if isinstance(value, float):
        return rows.significant(value)
    for power, suffix in ((30, "G"), (20, "M"), (10, "k")):
        if value >= 1 << power and value % (1 << power) == 0:
            return f"{value >> power}{suffix}"
    return f"{value:,}"


def exact(value, key: str = "") -> str:
    """A size for tables, where 1,024 may stand beside 1,000: below a million as it is, not 1k."""
    sized = isinstance(value, int) and not isinstance(value, bool) and value < 1 << 20
    if sized and not ("bytes" in key or "working_set" in key):
        return f"{value:,}"
    return human(value, key)


def number(value: float, y: str) -> str:
    """A value of the y axis, for tables and alt texts; its unit stands in the label."""
    if y == "peak_bytes":
        return rows.format_bytes(value)
    if y in ("percent", "percent_hot"):
        return f"{value:.0f}"
    return rows.significant(value)


class Chart:
    """The chosen rows of a benchmark, ready to be drawn, tabulated and described."""

    def __init__(
        self,
        benchmark: rows.Benchmark,
        y: str | None = None,
        providers: list[str] | None = None,
        where: dict | None = None,
        logy: bool = False,
    ):
        self.benchmark, self.y, self.logy = benchmark, y or default_y(benchmark), logy
        self.providers = list(providers or benchmark.providers())
        self.label = label(benchmark, self.y)
        chosen = benchmark.rows(**(where or {}))
        self.lines = {}
        for provider in self.providers:
            line = {}
            for row in chosen:
                if row.provider != provider or not hasattr(row, self.y):
                    continue
                x = getattr(row, benchmark.x)
                if x in line:
                    raise rows.RowError(
                        f"{benchmark.name} has two rows for {provider} at {benchmark.x}={x}:"
                        " choose with where={...}"
                    )
                line[x] = row
            if not line:
                raise rows.RowError(f"{benchmark.name} has no row of {provider} with {self.y}")
            self.lines[provider] = line
        self.xs = list(dict.fromkeys(x for line in self.lines.values() for x in line))
        self.sweep = len(self.xs) > 1 and all(isinstance(x, int | float) for x in self.xs)
        if self.sweep:
            self.xs.sort()

    def ceilings(self) -> dict[str, dict]:
        """By name, the value at every x of a kernel that takes the ceiling's time."""
        kind = self.benchmark.ceiling
        if not kind or self.y not in _TIMED | _HOT:
            return {}
        row_at = {x: row for line in self.lines.values() for x, row in line.items()}
        name = {"copy": "copy", "matmul": "cuBLAS"}[kind]
        if name in map(palette.provider_name, self.lines):
            name += ", best"
        found = {}
        if self.y in _TIMED:
            found[name] = {x: getattr(row.at(ms=row.floor_ms), self.y) for x, row in row_at.items()}
        timed_hot = any("ms_hot" in row.stored for row in row_at.values())
        if kind == "matmul" and timed_hot and self.y in {"tflops", *_HOT}:
            y = self.y if self.y in _HOT else "tflops_hot"
            found[f"{name}, hot"] = {
                x: getattr(row.at(ms_hot=row.floor_ms_hot), y) for x, row in row_at.items()
            }
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: one row for each x, one column for each provider."""
        header = [self.benchmark.x, *map(palette.provider_name, self.lines)]
        body = []
        for x in self.xs:
            values = [line.get(x) for line in self.lines.values()]
            cells = [number(getattr(row, self.y), self.y) if row else "–" for row in values]
            body.append([exact(x, self.benchmark.x), *cells])
        return header, body

    def alt(self) -> str:
        """What the drawing shows, in words."""
        parts = []
        for provider, line in self.lines.items():
            values = [getattr(row, self.y) for row in line.values()]
            span = " to ".join(dict.fromkeys(number(v, self.y) for v in (min(values), max(values))))
            parts.append(f"{palette.provider_name(provider)} {span}")
        text = f"{self.benchmark.title}: {self.label}"
        if len(self.xs) > 1:
            first, last = (human(x, self.benchmark.x) for x in (self.xs[0], self.xs[-1]))
            text += f" against {self.benchmark.x}, {first} to {last}"
        return f"{text}. {'; '.join(parts)}."

    def svg(self) -> str:
        """The drawing, in the light scheme."""
        with plt.rc_context(STYLE):
            return _lines(self) if self.sweep else _bars(self)


def _lines(chart: Chart) -> str:
    fig, ax = plt.subplots(figsize=(WIDTH, HEIGHT))
    colours = {p: LIGHT[s] for p, s in palette.provider_series(chart.providers).items()}
    tags = []
    for name, line in chart.ceilings().items():
        xs = sorted(line)
        ys = [line[x] for x in xs]
        ax.plot(xs, ys, color=LIGHT["muted"], lw=1.3, dashes=(4, 2))
        tags.append((name, xs[-1], ys[-1], LIGHT["muted"]))
    # Triton's line lies on top of its peers'
    for provider in reversed(chart.providers):
        line = chart.lines[provider]
        xs = sorted(line)
        ys = [getattr(line[x], chart.y) for x in xs]
        strong = provider == "triton"
        ax.plot(xs, ys, color=colours[provider], lw=2.6 if strong else 1.7, marker="o", ms=4)
        if chart.y in _TIMED and all("ms_p80" in line[x].stored for x in xs):
            band = [
                [getattr(line[x].at(ms=line[x].stored[key]), chart.y) for x in xs]
                for key in ("ms_p20", "ms_p80")
            ]
            ax.fill_between(xs, *band, color=colours[provider], alpha=0.18, lw=0)
        tags.append((palette.provider_name(provider), xs[-1], ys[-1], colours[provider]))
    low, high = chart.xs[0], chart.xs[-1]
    logx = low > 0 and high / low > 4
    if logx:
        ax.set_xscale("log", base=2)
    if chart.logy:
        ax.set_yscale("log", base=4 if chart.y == "peak_bytes" else 10)
    else:
        ax.set_ylim(bottom=0)
    if chart.y == "peak_bytes":
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rows.format_bytes(value)))
    elif chart.logy:
        _set_log_ticks(ax.yaxis)
    ax.set_xlabel(chart.benchmark.x)
    ax.set_title(chart.label, loc="left")
    ax.grid(True)
    _tag_line_ends(fig, ax, tags)
    _set_size_ticks(ax, chart)
    return _write(fig)


def _set_size_ticks(ax, chart: Chart) -> None:
    """Ticks at measured sizes, as many as have room for their labels, powers of two first."""
    kept: dict = {}
    for x in sorted(chart.xs, key=lambda x: (isinstance(x, int) and x & (x - 1) != 0, -x)):
        text = human(x, chart.benchmark.x)
        at, _ = ax.transData.transform((x, 1))
        width = (len(text) + 1) * 0.68 * STYLE["font.size"] * ax.figure.dpi / 72
        if all(abs(at - other) >= (width + w) / 2 for other, w, _ in kept.values()):
            kept[x] = at, width, text
    ax.set_xticks(list(kept), [text for *_, text in kept.values()])
    ax.xaxis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high and, where there are few, multiples of them as well."""
    steps = (1,) if high > 100 * low else (1, 2, 5) if high > 5 * low else range(1, 10)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in [*ticks, 10.0**powers.stop] if low <= tick <= high]


def _set_log_ticks(axis) -> None:
    # matplotlib's own are powers of ten as formulas, and where few fit it puts more between them
    axis.set_ticks(ticks := log_ticks(*axis.get_view_interval()), [f"{tick:,g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def spread(wanted: list[float], heights: list[float], low: float, high: float) -> list[float]:
    """Centres near those wanted (ascending) of labels that do not overlap, within low and high."""
    centres = [max(w, low + h / 2) for w, h in zip(wanted, heights, strict=True)]
    for i, (below, above) in enumerate(pairwise(heights), 1):
        centres[i] = max(centres[i], centres[i - 1] + (below + above) / 2)
    top = high
    for i in reversed(range(len(centres))):
        centres[i] = min(centres[i], top - heights[i] / 2)
        top = centres[i] - heights[i] / 2
    return centres


def _tag_line_ends(fig, ax, tags: Iterable[tuple]) -> None:
    """Writes each line's name into the right margin, with a thin lead from the line's end."""
    renderer = fig.canvas.get_renderer()
    tags = sorted(tags, key=lambda tag: tag[2])
    texts = [
        fig.text(0, 0, textwrap.fill(name, 18), color=colour, va="center", linespacing=1.1)
        for name, _, _, colour in tags
    ]
    boxes = [text.get_window_extent(renderer) for text in texts]
    scale = fig.dpi / 72
    margin = max(box.width for box in boxes) + 20 * scale
    fig.subplots_adjust(left=0.01, right=0.99, bottom=0.17, top=0.88)
    ticks = max(t.get_window_extent(renderer).width for t in ax.get_yticklabels())
    wide = fig.bbox.width
    fig.subplots_adjust(left=(ticks + 9 * scale) / wide, right=1 - margin / wide)
    ends = [ax.transData.transform((x, y)) for _, x, y, _ in tags]
    heights = [box.height + 3 * scale for box in boxes]
    centres = spread([y for _, y in ends], heights, 0, ax.bbox.y1 + 6 * scale)
    start = ax.bbox.x1 + 14 * scale
    for text, centre, end, (_, _, _, colour) in zip(texts, centres, ends, tags, strict=True):
        text.set_position((start / wide, centre / fig.bbox.height))
        lead = fig.transFigure.inverted().transform([end, (start - 3 * scale, centre)])
        line = plt.Line2D(*lead.T, color=colour, lw=0.7, alpha=0.8, transform=fig.transFigure)
        fig.add_artist(line)


def _bars(chart: Chart) -> str:
    """One bar for each provider, or for each named x: there is nothing to sweep.

    Where there are several of both, those of an x stand together under its name.
    """
    bars, heads, at = [], [], 0.0
    series = palette.provider_series(chart.providers)
    for x in chart.xs:
        size = human(x, chart.benchmark.x)
        if len(chart.xs) > 1 and len(chart.lines) > 1:
            at -= 0.3
            heads.append((size, at))
            at -= 0.9
        for provider, line in chart.lines.items():
            if x in line:
                alone = len(chart.xs) > 1 == len(chart.lines)
                name = textwrap.fill(size if alone else palette.provider_name(provider), 20)
                bars.append((name, line[x], LIGHT[series[provider]], at))
                at -= 1
    each = 0.5 if any("\n" in name for name, *_ in bars) else 0.32 if heads else 0.38  # inches
    fig, ax = plt.subplots(figsize=(WIDTH, 0.9 - each * at), layout="constrained")
    names, shown, colours, places = zip(*bars, strict=True)
    values = [getattr(row, chart.y) for row in shown]
    ax.barh(places, values, color=colours, height=0.22 / each)
    clear = {"facecolor": LIGHT["bg"], "edgecolor": "none", "pad": 1}
    for place, value in zip(places, values, strict=True):
        beside = {"textcoords": "offset points", "va": "center", "zorder": 3}
        ax.annotate(number(value, chart.y), (value, place), (7, 0), bbox=clear, **beside)
    for size, place in heads:
        edge = {"transform": ax.get_yaxis_transform(), "va": "center", "zorder": 3}
        ax.text(0, place, size, weight="bold", color=LIGHT["text"], bbox=clear, **edge)
    for line in chart.ceilings().values():
        ends = [line[getattr(row, chart.benchmark.x)] for row in shown]
        spans = [place - 0.5 for place in places], [place + 0.5 for place in places]
        ax.vlines(ends, *spans, color=LIGHT["muted"], ls="--")
    ax.set_yticks(places, names, color=LIGHT["text"])
    ax.set_ylim(at + 0.4, 0.6)
    ax.tick_params(axis="y", length=0)
    if chart.logy:
        ax.set_xscale("log")
    ax.margins(x=0.16)
    if chart.logy:
        _set_log_ticks(ax.xaxis)
    fig.suptitle(chart.label, x=0.02, ha="left", fontsize="medium", color=LIGHT["muted"])
    ax.grid(True, axis="x")
    return _write(fig)


class HeatMap:
    """The chosen rows of a sweep over two settings, or three, as a grid of tinted cells."""

    def __init__(
        self,
        benchmark: rows.Benchmark,
        x: str,
        y: str,
        value: str | None = None,
        panels: str | None = None,
        where: dict | None = None,
    ):
        self.benchmark, self.value = benchmark, value or default_y(benchmark)
        self.keys = [key for key in (panels, y, x) if key]
        self.label = label(benchmark, self.value)
        self.cells = {}
        for row in benchmark.rows(**(where or {})):
            # a peer has no such settings
            if all(hasattr(row, key) for key in (*self.keys, self.value)):
                place = tuple(getattr(row, key) for key in self.keys)
                if place in self.cells:
                    raise rows.RowError(f"{benchmark.name} has two rows at {self.at(place)}")
                self.cells[place] = getattr(row, self.value)
        if not self.cells:
            raise rows.RowError(f"{benchmark.name} has no row with {', '.join(self.keys)}")
        axes = [list(dict.fromkeys(axis)) for axis in zip(*self.cells, strict=True)]
        self.panels = [(panel,) for panel in axes[0]] if panels else [()]
        self.ys, self.xs = axes[-2:]

    def best(self) -> tuple | None:
        """Where the value is best; None for one that is neither good nor bad."""
        choose = {"ms": min, "us": min}.get(self.value, max)
        return choose(self.cells, key=self.cells.get) if self.value in _TIMED else None

    def shown(self, place: tuple) -> str:
        value = self.cells.get(place, "–")
        return number(value, self.value) if isinstance(value, float) else human(value, "plain")

    def at(self, place: tuple) -> str:
        pairs = zip(self.keys[: len(place)], place, strict=True)
        return ", ".join(f"{key} {value}" for key, value in pairs)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: one row for each y, one column for each x of each panel."""
        places = [(panel, x) for panel in self.panels for x in self.xs]
        name = self.keys[-1]
        header = [", ".join(filter(None, (self.at(panel), f"{name} {x}"))) for panel, x in places]
        body = [[str(y), *(self.shown((*panel, y, x)) for panel, x in places)] for y in self.ys]
        return [self.keys[-2], *header], body

    def alt(self) -> str:
        """What the drawing shows, in words."""
        names = " and ".join(reversed(self.keys))
        low, high = (self.shown(f(self.cells, key=self.cells.get)) for f in (min, max))
        best = f"; best at {self.at(place)}" if (place := self.best()) else ""
        return f"{self.benchmark.title}: {self.label} by {names}. {low} to {high}{best}."

    def svg(self) -> str:
        """The drawing, in the light scheme."""
        with plt.rc_context(STYLE):
            return _cells(self)


def _cells(chart: HeatMap) -> str:
    size = WIDTH, 1.2 + 0.34 * len(chart.ys)
    columns = {"ncols": len(chart.panels), "sharey": True, "squeeze": False}
    fig, axes = plt.subplots(figsize=size, layout="constrained", **columns)
    low, high = min(chart.cells.values()), max(chart.cells.values())
    best = chart.best()
    for panel, ax in zip(chart.panels, axes[0], strict=True):
        for i, y in enumerate(chart.ys):
            for j, x in enumerate(chart.xs):
                place = (*panel, y, x)
                shown = {"ha": "center", "va": "center", "fontsize": 11}
                shown["color"] = LIGHT["text" if place in chart.cells else "muted"]
                if place == best:
                    shown["weight"] = "bold"
                ax.text(j, i, chart.shown(place), **shown)
                if place in chart.cells:
                    # so light that text on it keeps its contrast in both schemes
                    share = (chart.cells[place] - low) / (high - low or 1)
                    tint = {"color": LIGHT["a"], "alpha": 0.03 + 0.42 * share, "lw": 0}
                    ax.add_patch(plt.Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, **tint))
                if place == best:
                    frame = {"fill": False, "edgecolor": LIGHT["text"], "lw": 1.6}
                    ax.add_patch(plt.Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, **frame))
        ax.set_xlim(-0.5, len(chart.xs) - 0.5)
        ax.set_ylim(len(chart.ys) - 0.5, -0.5)
        ax.set_xticks(range(len(chart.xs)), map(str, chart.xs))
        ax.set_yticks(range(len(chart.ys)), map(str, chart.ys))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if panel:
            ax.set_title(chart.at(panel), fontsize=12.5)
        ax.set_xlabel(chart.keys[-1])
    title = f"{chart.label}, by {chart.keys[-2]}"
    fig.suptitle(title, x=0.02, ha="left", fontsize="medium", color=LIGHT["muted"])
    return _write(fig)


def _write(fig) -> str:
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)
    return out.getvalue()


def pixels(svg: str) -> tuple[int, int]:
    """Width and height at which a page shows a drawing."""
    _, _, width, height = svg.partition('viewBox="')[2].partition('"')[0].split()
    return tuple(round(float(side) / 72 * PIXELS_PER_INCH) for side in (width, height))


def roofline(points: list[tuple[str, rows.Row]], ceilings: rows.Ceilings, dtype: str) -> str:
    """The card's measured ceilings, and kernels under them.

    Args:
        points: Name and fastest row of each kernel; without a name it is a dot among the others.
            Rows without flops or bytes have no place here.
        ceilings: Of the card.
        dtype: Whose matrix rate is the roof.
    """
    with plt.rc_context(STYLE):
        slope = max(ceilings.copy_tbps(nbytes) for nbytes, _ in ceilings.copy)
        roof = ceilings.matmul_tflops(dtype)
        ridge = roof / slope
        dots = sorted((row.flops / row.bytes, row.tflops, name) for name, row in points)
        named = [dot for dot in dots if dot[2]]
        memory_bound = [dot for dot in named if dot[0] < ridge]
        others = named[len(memory_bound) :]
        size = WIDTH, max(0.86 * WIDTH, 1.5 + 0.3 * len(named))
        fig, ax = plt.subplots(figsize=size, layout="constrained")
        low, high = min(0.1, dots[0][0]) / 2, max(30 * ridge, dots[-1][0]) * 2
        ax.loglog([low, ridge, high], [low * slope, roof, roof], color=LIGHT["muted"], lw=1.5)
        for drawn, marker in ((dots, {"s": 14, "alpha": 0.45}), (named, {"s": 34})):
            xs, ys, _ = zip(*drawn, strict=True)
            ax.scatter(xs, ys, color=LIGHT["a"], lw=0, zorder=3, **marker)
        ax.set_xlim(low, high)
        # above the roof there is room for names
        bottom, free = low * slope / 4, min(0.5, 0.15 + NAME_HEIGHT / 72 / size[1] * len(others))
        ax.set_ylim(bottom, bottom * (roof / bottom) ** (1 / (1 - free)))
        ax.set_yticks(log_ticks(bottom, 2 * roof))
        ax.set_xlabel("flops for each byte moved")
        ax.set_title("TFLOP/s; named: the fastest of each lecture", loc="left")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_locator(NullLocator())
        ax.grid(True)
        fig.canvas.draw()  # settles the layout, on which the places of the names depend
        fig.set_layout_engine("none")
        note = {"textcoords": "offset points", "color": LIGHT["muted"], "ha": "right"}
        ax.annotate(f"copy, {slope:.2f} TB/s", (ridge / 5, roof / 5), (-6, 4), **note)
        ax.annotate(f"{dtype}, {roof:.0f} TFLOP/s", (ridge, roof), (-2, 2), **note)
        _name_under_slope(ax, memory_bound, slope)
        _name_above_roof(ax, others, roof)
        return _write(fig)


def _name_under_slope(ax, dots: list[tuple[float, float, str]], slope: float) -> None:
    """Names memory-bound kernels in a column right of them, where all have room below the slope."""
    if not dots:
        return
    pixel, scale = ax.transData.transform, ax.figure.dpi / 72
    heights = [NAME_HEIGHT * scale] * len(dots)
    _, needed = ax.transData.inverted().transform((0, ax.bbox.y0 + sum(heights) + 8 * scale))
    ends = [pixel((x, y)) for x, y, _ in dots]
    column = max(ends[-1][0] + 24 * scale, pixel((needed / slope, 1))[0])
    x, _ = ax.transData.inverted().transform((column, 0))
    _, under = pixel((1, slope * x))
    centres = spread([y for _, y in ends], heights, ax.bbox.y0, under - 4 * scale)
    _name(ax, dots, column, centres, "left")


def _name_above_roof(ax, dots: list[tuple[float, float, str]], roof: float) -> None:
    """Names the other kernels in a column left of them, the rightmost on top."""
    if not dots:
        return
    pixel, scale = ax.transData.transform, ax.figure.dpi / 72
    column, lowest = pixel((dots[0][0], roof))
    centres = [lowest + (22 + NAME_HEIGHT * i) * scale for i in range(len(dots))]
    _name(ax, dots, column - 24 * scale, centres, "right")


def _name(ax, dots: list[tuple[float, float, str]], column: float, centres, side: str) -> None:
    # in fractions of the figure: a pixel of the SVG is not one of the renderer's
    fraction = ax.figure.transFigure.inverted().transform
    lead = {"arrowstyle": "-", "color": LIGHT["a"], "lw": 0.6, "shrinkA": 2}
    for (x, y, name), centre in zip(dots, centres, strict=True):
        ax.annotate(
            name,
            fraction(ax.transData.transform((x, y))),
            fraction((column, centre)),
            xycoords="figure fraction",
            textcoords="figure fraction",
            color=LIGHT["a"],
            fontsize="small",
            ha=side,
            va="center",
            arrowprops=lead | {"relpos": (0 if side == "left" else 1, 0.5)},
        )
