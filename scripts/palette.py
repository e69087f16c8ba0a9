"""The site's colours, and the name and colour of every provider: the one place for both.

Figures take their colours from here, and `css()` hands the same ones to the style sheet and the
diagrams, as `--tl-*` variables. Text and every series colour keep a contrast of 4.5 : 1 against
page and card in both schemes; tests/test_pipeline.py checks it.
"""

from __future__ import annotations

SERIES = "abcdefg"
FILL = 0.16  # how much of a series colour its tint for areas holds

# a is Triton's, and the site's accent. No two roles share a value: figures are drawn in the light
# scheme and made dark by exchanging one value for the other.
SCHEMES = {
    "light": {
        "bg": "#fdfdfb",
        "surface": "#f1f4f3",
        "text": "#1d2629",
        "muted": "#556267",
        "line": "#d3dad9",
        "a": "#00706b",
        "b": "#a84500",
        "c": "#6d3fc0",
        "d": "#b01e5b",
        "e": "#1f5fc4",
        "f": "#756000",
        "g": "#5c6166",
    },
    "dark": {
        "bg": "#11181b",
        "surface": "#1a2327",
        "text": "#e3e9ea",
        "muted": "#a2afb4",
        "line": "#35424a",
        "a": "#4fd6c8",
        "b": "#ffa35c",
        "c": "#bda0ff",
        "d": "#ff8fb8",
        "e": "#86b6ff",
        "f": "#dcc252",
        "g": "#b4bbc1",
    },
}
MATERIAL_SCHEMES = {"light": "default", "dark": "slate"}

# provider -> (name in legends and tables, series colour)
PROVIDERS = {
    "triton": ("Triton", "a"),
    "triton_read": ("Triton, read", "e"),
    "torch": ("torch", "b"),
    "torch_compile": ("torch.compile", "c"),
    "torch_unfused": ("torch, unfused", "f"),
    "cublas": ("cuBLAS", "d"),
    "sdpa_cudnn": ("SDPA cuDNN", "d"),
    "sdpa_flash": ("SDPA flash", "b"),
    "sdpa_efficient": ("SDPA efficient", "e"),
    "sdpa_math": ("SDPA math", "g"),
}
# rungs of a ladder, in the order of their appearance; never Triton's own colour
_RUNGS = "ecfgdb"


def provider_name(provider: str) -> str:
    """`torch.compile` for `torch_compile`; `Triton, two pass` for `triton_two_pass`."""
    prefixes = [p for p in PROVIDERS if f"{provider}_".startswith(f"{p}_")]
    prefix = max(prefixes, key=len, default=provider.partition("_")[0])
    name, rung = PROVIDERS.get(prefix, (prefix,))[0], provider[len(prefix) + 1 :]
    return f"{name}, {rung.replace('_', ' ')}" if rung else name


def provider_series(providers: list[str]) -> dict[str, str]:
    """A series letter for each provider of a figure: fixed where named, else the next one free."""
    fixed = {p: PROVIDERS[p][1] for p in providers if p in PROVIDERS}
    free = [s for s in _RUNGS if s not in fixed.values()] or list(_RUNGS)
    others = [p for p in providers if p not in fixed]
    return fixed | {p: free[i % len(free)] for i, p in enumerate(others)}


def mix(colour: str, other: str, share: float) -> str:
    """`share` of one colour in another."""

    def channels(text: str) -> list[int]:
        return [int(text[i : i + 2], 16) for i in (1, 3, 5)]

    pairs = zip(channels(colour), channels(other), strict=True)
    return "#" + "".join(f"{round(share * x + (1 - share) * y):02x}" for x, y in pairs)


def to_dark(drawing: str) -> str:
    """A drawing made in the light scheme, in the dark one."""
    for role, colour in SCHEMES["light"].items():
        drawing = drawing.replace(colour, SCHEMES["dark"][role])
    return drawing


def variables(scheme: str) -> dict[str, str]:
    """A scheme's colours by name, and `<series>-fill`, a tint for areas."""
    colours = SCHEMES[scheme]
    return colours | {f"{s}-fill": mix(colours[s], colours["bg"], FILL) for s in SERIES}


def css() -> str:
    """The style sheet of variables: `--tl-<name>` for each of a scheme's."""
    blocks = []
    for scheme in SCHEMES:
        lines = [f"  --tl-{name}: {value};" for name, value in variables(scheme).items()]
        selector = f'[data-md-color-scheme="{MATERIAL_SCHEMES[scheme]}"]'
        blocks.append("\n".join([selector + " {", *lines, "}"]))
    # paper is light
    on_paper = blocks[0].replace(MATERIAL_SCHEMES["light"], MATERIAL_SCHEMES["dark"])
    blocks.append(f"@media print {{\n{on_paper}\n}}")
    header = "/* Generated from scripts/palette.py by the build. */\n"
    return header + "\n".join(blocks) + "\n"
