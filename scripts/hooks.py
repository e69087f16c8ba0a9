"""MkDocs hooks: scripts and recordings become pages, notebooks, figures and a reference.

For each lecture, its cells and what they printed on a GPU go as a notebook through mkdocs-jupyter,
whose output is Material's Markdown. Figures are drawn here and now. Whatever is wrong with a
lecture or its recording is a warning, which the strict build turns into a failure; `mkdocs serve
--no-strict` shows the page all the same.
"""

from __future__ import annotations

import functools
import html
import importlib
import logging
import re
import sys
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scripts import (  # noqa: E402
    figures,
    lectures,
    mathml,
    notebooks,
    pages,
    palette,
    rows,
    templates,
)

log = logging.getLogger("mkdocs.plugins.lectures")
site: pages.Site

_BODY = re.compile(r'<script type="text/markdown">(.*)</script>', re.S)
_MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_config(config):
    # a preview loads this file once; what it rests on follows every edit
    for module in (lectures, palette, rows, figures, templates, mathml, pages, notebooks):
        importlib.reload(module)


@event_priority(100)  # before mkdocs-jupyter, which takes up the notebooks
def on_files(files, config):
    global site
    # each message once: a loop repeats a claim that fails
    report = functools.cache(log.warning)
    site = pages.Site(ROOT, config.extra["gpu"], report, lectures.syllabus(ROOT))
    cache = ROOT / ".cache" / "lectures"
    for name, lecture in site.lectures.items():
        page, download = notebooks.notebooks(site, lecture, f"{name}/", config.site_url)
        path = cache / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
        file = File.generated(config, f"{name}.py", abs_src_path=str(path))
        file.edit_uri = f"../examples/{name}.py"
        files.append(file)
        beside = f"{name}/{lecture.script.stem}"
        files.append(File.generated(config, f"{beside}.py", abs_src_path=str(lecture.script)))
        files.append(File.generated(config, f"{beside}.ipynb", content=download))
    script = ROOT / "scripts" / "verify_install.py"  # the install guide offers it
    files.append(File.generated(config, script.name, abs_src_path=str(script)))
    _hand_over_files(files, config)
    return files


def _hand_over_files(files, config) -> None:
    """Gives MkDocs the figures that pages asked for."""
    for uri, content in site.files.items():
        if not files.get_file_from_path(uri):  # two pages may show one figure
            files.append(File.generated(config, uri, content=content))
    site.files.clear()


def _lecture(page) -> pages.Lecture | None:
    return site.lectures.get(page.file.src_uri.removesuffix(".py"))


@event_priority(-50)  # after mkdocs-jupyter wrote the page's Markdown
def on_page_markdown(markdown, page, config, files):
    if lecture := _lecture(page):
        page.meta.update(lecture.meta)
        body = _BODY.search(markdown)[1]
        parts = (_header(lecture, config), _not_recorded(lecture))
        top = "\n\n".join(part for part in parts if part)
        body = re.sub(r"(?m)^# .+\n", lambda title: f"{title[0]}\n{top}\n", body, count=1)
        return body + _kernel(lecture, page)
    source = Path(page.file.abs_src_path) if page.file.abs_src_path else None
    if not source or not page.file.src_uri.endswith(".md"):
        return None
    text = source.read_text(encoding="utf-8")
    above = text[: text.find(markdown)].count("\n")  # the front matter
    url = page.file.url.removeprefix("./")
    rendered = site.templates.render(markdown, source, site.context(url), above + 1)
    _hand_over_files(files, config)
    return rendered


def _header(lecture: pages.Lecture, config) -> str:
    """What stands under a lecture's title: time, prerequisites, outcome, downloads."""
    name, stem = lecture.name, lecture.script.stem
    facts = [f"{lecture.minutes} minutes to read"]
    known = [other for other in lecture.meta.get("prerequisites", []) if other in site.lectures]
    if known:
        links = [f"[{site.lectures[other].meta['title']}](../{other}.py)" for other in known]
        facts.append(f"after {' and '.join(links)}")
    facts.append(f"[API](../reference.md#{pages.anchor(name)})")
    repo = config.repo_url.removesuffix("/")
    colab = repo.replace("github.com", "colab.research.google.com/github", 1)
    branch = config.extra["notebooks_branch"]
    buttons = [
        (f"{stem}.py", "material-download", f"{stem}.py", True),
        (f"{stem}.ipynb", "material-notebook", "Notebook", True),
        (f"{colab}/blob/{branch}/{name}/{stem}.ipynb", "simple-googlecolab", "Colab", False),
        (f"{repo}/blob/main/examples/{name}.py", "material-code-tags", "View source", False),
    ]
    links = [
        f'<a class="md-button" href="{href}"{" download" if download else ""}>:{icon}: {text}</a>'
        for href, icon, text, download in buttons
    ]
    outcome = lecture.meta["outcome"]
    return (
        '<div class="lecture-header" markdown>\n\n'
        f"{' · '.join(facts)}\n{{: .lecture-facts }}\n\n"
        f"Afterwards you can {outcome[:1].lower()}{outcome[1:]}\n{{: .lecture-outcome }}\n\n"
        f"{' '.join(links)}\n{{: .lecture-links data-search-exclude='' }}\n\n</div>"
    )


def _not_recorded(lecture: pages.Lecture) -> str:
    """What a preview says on top of a page that the strict build refuses."""
    if not site.raw(lecture.name):
        state = "was not recorded: it has no outputs and no numbers."
    elif lecture.name in site.stale:
        state = "changed after it was recorded: its numbers are of the old code, its outputs gone."
    else:
        return ""
    repair = f"On a machine with a GPU: `python scripts/record.py {lecture.name}`."
    return f'!!! warning "Without outputs"\n\n    This lecture {state} {repair}'


def _kernel(lecture: pages.Lecture, page) -> str:
    """The block at a page's end that a project copies."""
    if not lecture.kernel:
        return ""
    code = f"# from {page.canonical_url} (MIT)\n{lecture.kernel}"
    indented = "\n".join(f"    {line}".rstrip() for line in code.splitlines())
    return (
        "\n\n## Copy this kernel { #copy-this-kernel data-search-exclude='' }\n\n"
        "Imports, kernels and public function: a module of its own, which needs torch and triton"
        " alone.\n\n"
        f'??? example "{lecture.script.name}, {len(code.splitlines())} lines"\n\n'
        f"    `````` {{ .python .lecture-kernel }}\n{indented}\n    ``````\n"
    )


@event_priority(-50)
def on_page_content(content, page, config, files):
    def formula(match: re.Match) -> str:
        tag, latex = match[1], html.unescape(match[2]).strip()
        display = tag == "div"
        hide = " data-search-exclude" if display else ""
        try:
            return f'<{tag} class="math"{hide}>{mathml.to_mathml(latex, display)}</{tag}>'
        except mathml.MathError as error:
            log.warning("%s: %s, in: %s", page.file.edit_uri or page.file.src_uri, error, latex)
            return f"<{tag}><code>{html.escape(latex)}</code></{tag}>"

    return site.fill(_MATH.sub(formula, content), "html")
