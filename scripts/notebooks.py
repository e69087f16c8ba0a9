"""Lectures as notebooks: one that mkdocs-jupyter turns into the page, one to download.

They differ in their prose alone. The page's speaks Material's Markdown and has tokens where cards
and diagrams go; the other speaks Jupyter's, with absolute links.
"""

from __future__ import annotations

import posixpath
import re
import textwrap

import nbformat

from scripts.lectures import Cell
from scripts.pages import Lecture, Site

# versions as in examples/requirements.txt
SETUP = """\
# a fresh machine, such as Colab's, may lack Triton; one without a GPU runs Triton's interpreter
import importlib.util
import os

if importlib.util.find_spec("triton") is None:
    %pip install -q "torch>=2.11,<2.14" "triton>=3.6,<3.8"

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
"""

_FENCE = re.compile(r"^ *(`{3,}|~{3,})")
_BLOCK = re.compile(r'^(?P<mark>!!!|\?\?\?\+?|===) +(?P<kind>[\w -]*?) *(?:"(?P<title>.*)")?$')
_LINK = re.compile(r"\]\((?P<path>[^)#:\s]+\.(?:py|md))(?P<anchor>#[^)\s]*)?\)")
_REFERENCE = re.compile(r"\]\[(?P<id>examples\.[\w.]+)\]")


def _summary(cell: Cell) -> str:
    """What a folded cell holds: the names it defines, and its length."""
    names = re.findall(r"(?m)^(?:def|class) (\w+)", cell.source)
    lines = len(cell.source.strip("\n").splitlines())
    return f"{', '.join(f'`{name}`' for name in names) or 'Code'}, {lines} lines"


def _output(recorded: dict) -> nbformat.NotebookNode:
    if recorded["output_type"] == "execute_result":
        recorded = recorded | {"execution_count": None}
    return nbformat.from_dict(recorded)


def rendered(site: Site, lecture: Lecture, url: str) -> list[nbformat.NotebookNode]:
    """The lecture's cells with expressions evaluated and recorded outputs in place."""
    context = site.context(url, lecture.name)
    recorded = iter(site.outputs(lecture.name))
    made = []
    for i, cell in enumerate(lecture.cells):
        if cell.kind == "markdown":
            prose = site.templates.render(cell.source, lecture.script, context, cell.line)
            node = nbformat.v4.new_markdown_cell(prose.strip("\n"))
        else:
            outputs = [_output(output) for output in next(recorded, ())]
            metadata = {"tags": list(cell.tags)} if cell.tags else {}
            if "fold" in cell.tags:
                metadata["summary"] = _summary(cell)
            node = nbformat.v4.new_code_cell(
                cell.source.strip("\n"), outputs=outputs, metadata=metadata
            )
        node.id = f"cell-{i}"  # nbformat's own are random
        made.append(node)
    return made


def _write(cells: list[nbformat.NotebookNode], lecture: Lecture) -> str:
    metadata = {
        "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
        "language_info": {"name": "python"},
        "title": lecture.meta["title"],
    }
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def notebooks(
    site: Site, lecture: Lecture, cells: list[nbformat.NotebookNode], url: str, site_url: str
) -> tuple[str, str]:
    """The page's notebook and the one to download, as JSON; uses up the rendered cells."""
    page = _write(cells, lecture)
    own = nbformat.v4.new_code_cell(SETUP.strip("\n"), metadata={"tags": ["setup"]})
    own.id = "setup"
    for cell in cells:
        cell.metadata.pop("summary", None)
        if cell.cell_type == "markdown":
            prose = site.fill(cell.source, "notebook").replace("{site}", site_url)
            cell.source = absolute_links(to_jupyter(prose), url, site_url)
    return page, _write([cells[0], own, *cells[1:]], lecture)


def absolute_links(prose: str, url: str, site_url: str) -> str:
    """Links to the site's sources made absolute; `url` is the page's, below the site's root."""
    folder = posixpath.dirname(url.rstrip("/"))

    def page(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["path"]))
        path = path.rpartition(".")[0] + "/"
        path = path.removesuffix("index/")
        return f"]({site_url}{path}{match['anchor'] or ''})"

    prose = _LINK.sub(page, prose)
    return _REFERENCE.sub(lambda m: f"]({site_url}reference/#{m['id']})", prose)


def to_jupyter(prose: str, folds: bool = True) -> str:
    """Material's notes, folds and tabs in Markdown that Jupyter and Colab render.

    Args:
        prose: Material's Markdown.
        folds: As HTML, which Markdown has no word for; else their titles stand in bold.
    """
    lines, out, fence = prose.split("\n"), [], None
    while lines:
        line = lines.pop(0)
        if mark := _FENCE.match(line):
            fence = None if fence and line.strip().startswith(fence) else fence or mark[1]
        block = None if fence else _BLOCK.match(line)
        if not block:
            out.append(line)
            continue
        body = []
        while lines and (lines[0].startswith("    ") or not lines[0].strip()):
            body.append(lines.pop(0))
        inner = to_jupyter(textwrap.dedent("\n".join(body)).strip("\n"), folds)
        title = block["title"] or block["kind"].partition(" ")[0].capitalize()
        if block["mark"] == "!!!":
            quoted = textwrap.indent(f"**{title}**\n\n{inner}", "> ", lambda line: True)
            out += [quoted, ""]
        elif block["mark"] == "===" or not folds:
            out += [f"**{title}**", "", inner, ""]
        else:
            out += [f"<details><summary>{title}</summary>", "", inner, "", "</details>", ""]
    return "\n".join(out)
