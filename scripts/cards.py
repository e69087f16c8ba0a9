"""The picture of a page that other sites show beside a link to it: 1200 × 630, drawn by Pillow.

A card holds the page's part and title, the site's name and, for a lecture, its kernel's recorded
time beside that of its peers. The same bytes on every build, kept in a cache by what is on them.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import matplotlib
import PIL
from PIL import Image, ImageDraw, ImageFont

from scripts import figures, palette, rows
from scripts.kept import kept

SIZE = WIDTH, HEIGHT = 1200, 630
EDGE = 72
BARS = 4
COLOURS = palette.SCHEMES["light"]
VERSION = 1  # of the drawing, for the cache
# DejaVu comes with matplotlib, so every machine draws the same
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


@dataclass(frozen=True)
class Card:
    """What is drawn: `bars` are (name, time in words, share of the longest, is it our own)."""

    part: str
    title: str
    line: str = ""
    bars: tuple[tuple[str, str, float, bool], ...] = ()
    source: str = ""


def of_recording(part: str, title: str, line: str, recording: rows.Recording) -> Card:
    """A lecture's card: the first benchmark with a peer, at its largest size."""
    for benchmark in recording.benchmarks.values():
        for own in reversed(benchmark.all):
            if own.provider != "triton" or not hasattr(own, "ms"):
                continue
            if peers := sorted(benchmark.peers(own), key=lambda peer: peer[1])[: BARS - 1]:
                times = [("triton", 1.0), *peers]
                longest = max(ratio for _, ratio in times)
                bars = tuple(
                    (
                        palette.provider_name(provider),
                        rows.format_ms(own.ms * ratio).replace("\u00a0", " "),
                        ratio / longest,
                        provider == "triton",
                    )
                    for provider, ratio in times
                )
                x = f"{benchmark.x} = {figures.human(getattr(own, benchmark.x), benchmark.x)}"
                source = f"measured on {recording.env['gpu']}"
                return Card(part, title, f"{benchmark.title}, {x}", bars, source)
    return Card(part, title, line)


def png(card: Card, cache_folder: Path) -> bytes:
    """The card's file."""
    inputs = VERSION, PIL.__version__, COLOURS, astuple(card)
    return kept(cache_folder, ".png", inputs, lambda: _draw(card))


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    file = _FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    # the other layout engine is not in every build of Pillow
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def _draw(card: Card) -> bytes:
    image = Image.new("RGB", SIZE, COLOURS["bg"])
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, WIDTH, 12), COLOURS["a"])
    draw.text((EDGE, 62), card.part.upper(), COLOURS["a"], _font(24, bold=True))

    size = next(size for size in (64, 56, 48, 40) if len(_wrap(card.title, size)) <= 2)
    y = 112
    for text in _wrap(card.title, size):
        draw.text((EDGE, y), text, COLOURS["text"], _font(size, bold=True))
        y += round(size * 1.22)
    y += 22
    for text in _wrap(card.line, 27, bold=False)[: 2 if card.bars else 4]:
        draw.text((EDGE, y), text, COLOURS["muted"], _font(27))
        y += 38

    bottom = HEIGHT - 104
    step = min(58, (bottom - y - 14) // max(1, len(card.bars)))
    y = bottom - step * len(card.bars)
    left, right = EDGE + 280, WIDTH - EDGE - 190
    for name, time, share, own in card.bars:
        end = left + max(4, round((right - left) * share))
        draw.text((EDGE, y + 2), name, COLOURS["text"], _font(26, bold=own))
        draw.rectangle((left, y, end, y + step - 20), COLOURS["a" if own else "g"])
        draw.text((end + 16, y + 2), time, COLOURS["text"], _font(26, bold=own))
        y += step

    if not card.bars:
        _draw_grid(draw)
    base = HEIGHT - 66
    draw.rectangle((EDGE, base + 3, EDGE + 22, base + 25), COLOURS["a"])
    draw.text((EDGE + 36, base - 2), "Triton lectures", COLOURS["text"], _font(26, bold=True))
    draw.text((WIDTH - EDGE, base), card.source, COLOURS["muted"], _font(22), anchor="ra")

    file = io.BytesIO()
    # a palette halves the file, and hardly shows on letters and flat colours
    image.quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_grid(draw: ImageDraw.ImageDraw) -> None:
    """The elements of a matrix, and the block of them that one program owns."""
    cell, step, columns, lines = 26, 34, 16, 6
    left, top = WIDTH - EDGE - columns * step + step - cell, HEIGHT - EDGE - lines * step
    for i in range(columns * lines):
        column, line = i % columns, i // columns
        own = 9 <= column <= 11 and 1 <= line <= 3
        x, y = left + column * step, top + line * step
        draw.rectangle((x, y, x + cell, y + cell), COLOURS["a" if own else "line"])


def _wrap(text: str, size: int, bold: bool = True) -> list[str]:
    """The lines of a text that is as wide as the card lets it be."""
    font, room = _font(size, bold), WIDTH - 2 * EDGE
    for columns in range(90, 10, -1):
        lines = textwrap.wrap(text, columns)
        if all(font.getlength(line) <= room for line in lines):
            return lines
    return [text]
