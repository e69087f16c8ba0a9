"""The course for readers that have text alone: a Markdown file a page, one of them all, llms.txt.

Numbers are filled in, what the code printed stands below it, and a figure is its table. The form of
`llms.txt` is that of llmstxt.org: title, summary, then sections of links with descriptions.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from nbformat import NotebookNode

from scripts import notebooks
from scripts.pages import Site

COURSE, INDEX = "course.md", "llms.txt"
# pages that are tables rather than text
MORE = (
    ("Results", "results/", "Every recorded benchmark in one table."),
    ("Reference", "reference/", "The API of every kernel and function."),
    ("Tags", "tags/", "The lectures by what they are about."),
)
_FENCED = re.compile(r"(?ms)^( *)(`{3,}|~{3,})(?P<info>[^\n]*)\n.*?^\1\2[ \t]*$")
_INFO = re.compile(r"\{ *\.(\w+)[^}]*\}")
_DRAWING = re.compile(r"<svg\b.*?</svg>\n?", re.S)
_TERM = re.compile(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", re.S)
# a tag that is not code; attributes and icons of Material's Markdown
_NOISE = re.compile(r"`[^`\n]+`|</?[a-zA-Z][^<>]*>|[ \t]*\{:? *[.#][^{}\n]*\}| ?:[a-z]+-[\w-]+:")


@dataclass(frozen=True)
class Text:
    """One page as text."""

    url: str  # below the site's root, as "fusion/softmax/"
    part: str  # the section of the syllabus
    title: str
    description: str
    markdown: str

    @property
    def path(self) -> str:
        """Where llmstxt.org's readers look for a page's Markdown."""
        return f"{self.url}index.html.md"


def plain(prose: str, url: str, site_url: str) -> str:
    """Markdown without Material's own notation and without HTML, its links absolute."""
    prose = notebooks.to_jupyter(prose, folds=False).replace("{site}", site_url)
    prose = notebooks.absolute_links(prose, url, site_url)
    parts, end = [], 0
    for block in _FENCED.finditer(prose):
        info = _INFO.sub(r"\1", block["info"]).strip()
        code = block[0].replace(block["info"], info, 1)
        parts += [_clean(prose[end : block.start()]), code]
        end = block.end()
    text = "".join((*parts, _clean(prose[end:])))
    return re.sub(r"\n\s*\n(\s*\n)+", "\n\n", text).strip("\n") + "\n"


def _clean(prose: str) -> str:
    """Prose between blocks of code, without tags, attribute lists and icons."""
    prose = _TERM.sub(r"- \1: \2", _DRAWING.sub("", prose))
    return html.unescape(_NOISE.sub(lambda m: m[0] if m[0].startswith("`") else "", prose))


def from_cells(site: Site, cells: list[NotebookNode], url: str, site_url: str) -> str:
    """A lecture's rendered cells: prose, code, and what it printed."""
    parts = []
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(plain(site.fill(cell.source, "text"), url, site_url).rstrip())
            continue
        parts.append(f"``````python\n{cell.source}\n``````")
        for output in cell.outputs:
            said = output.get("text") or output.get("data", {}).get("text/plain") or ""
            said = said or "\n".join(output.get("traceback", ()))
            parts.append(f"``````text\n{said.rstrip()}\n``````")
    return "\n\n".join(parts) + "\n"


def course(title: str, summary: str, site_url: str, texts: list[Text]) -> str:
    """All pages in one file, in the order of the syllabus."""
    head = f"# {title}\n\n{summary}\n\nFrom {site_url}. Code: MIT. Text and figures: CC BY 4.0.\n"
    pages = [f"<!-- {site_url}{text.url} -->\n\n{text.markdown}" for text in texts]
    return "\n---\n\n".join((head, *pages))


def index(title: str, summary: str, site_url: str, texts: list[Text]) -> str:
    """`llms.txt`: every page of the syllabus, part by part."""
    lines = [f"# {title}", "", f"> {summary}", ""]
    lines += [
        "Each lecture is one Python file: explanation, kernel, check and benchmark. Its outputs and"
        " numbers were recorded on a GPU.",
        "",
        f"All of it in one file: [{COURSE}]({site_url}{COURSE}).",
    ]
    part = None
    for text in texts:
        if text.part != part:
            part = text.part
            lines += ["", f"## {part}", ""]
        lines.append(f"- [{text.title}]({site_url}{text.path}): {text.description}")
    lines += ["", "## Optional", ""]
    lines += [f"- [{name}]({site_url}{path}): {words}" for name, path, words in MORE]
    return "\n".join((*lines, ""))
