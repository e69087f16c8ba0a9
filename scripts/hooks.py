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
import json
import logging
import re
import sys
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, InclusionLevel
from mkdocs.utils.meta import get_data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scripts import (  # noqa: E402
    cards,
    export,
    figures,
    kept,
    lectures,
    mathml,
    notebooks,
    pages,
    palette,
    rows,
    tags,
    templates,
)

log = logging.getLogger("mkdocs.plugins.lectures")
site: pages.Site
texts: dict[str, str]  # pages as plain Markdown, by their source
syllabus: list[tuple]  # the parts' titles and pages, in order

_BODY = re.compile(r'<script type="text/markdown">(.*)</script>', re.S)
_OUTSIDE = re.compile(r'<a (?=href="https?://)')
_MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
# a formula and the punctuation at it, which no line may part
_BESIDE_MATH = re.compile(r'[(\[“]*<span class="math">(?:(?!</span>).)*</span>[)\]”,.;:!?]+', re.S)


def on_config(config):
    # a preview loads this file once; what it rests on follows every edit
    rests_on = (kept, lectures, palette, rows, figures, templates, mathml, pages, notebooks)
    for module in (*rests_on, tags, cards, export):
        importlib.reload(module)


@event_priority(100)  # before mkdocs-jupyter, which takes up the notebooks
def on_files(files, config):
    global site, texts
    # each message once: a loop repeats a claim that fails
    report = functools.cache(log.warning)
    site = pages.Site(ROOT, config.extra["gpu"], report, lectures.syllabus(ROOT))
    texts = {}
    cache = ROOT / ".cache" / "lectures"
    for name, lecture in site.lectures.items():
        url = f"{name}/"
        cells = notebooks.rendered(site, lecture, url)
        texts[f"{name}.py"] = export.from_cells(site, cells, url, config.site_url)
        page, download = notebooks.notebooks(site, lecture, cells, url, config.site_url)
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
    for uri, text in tags.pages(site).items():
        # outside the syllabus: no page before them and none after
        outside = InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=text, inclusion=outside))
    files.append(File.generated(config, "javascripts/lectures.js", content=_lecture_list()))
    _hand_over_files(files, config)
    return files


def _lecture_list() -> str:
    """What docs/javascripts/progress.js knows of the syllabus."""
    known = [[name, found.meta["title"], found.minutes] for name, found in site.lectures.items()]
    listed = json.dumps(known, ensure_ascii=False, separators=(",", ":"))
    return f"// Generated: path, title and minutes of every lecture.\nvar lectures = {listed};\n"


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
        markdown = body + _kernel(lecture, page) + _end(lecture, page)
    elif page.file.abs_src_path and page.file.src_uri.endswith(".md"):
        source = Path(page.file.abs_src_path)
        text = source.read_text(encoding="utf-8")
        above = text[: text.find(markdown)].count("\n")  # the front matter
        url = page.file.url.removeprefix("./")
        markdown = site.templates.render(markdown, source, site.context(url), above + 1)
        filled = site.fill(markdown, "text")
        texts[page.file.src_uri] = export.plain(filled, url, config.site_url)
        _hand_over_files(files, config)
    page.meta["image"] = f"cards/{page.file.src_uri.rpartition('.')[0]}.png"
    card = cards.png(_card(page, config), ROOT / ".cache" / "cards")
    files.append(File.generated(config, page.meta["image"], content=card))
    return markdown


def _card(page, config) -> cards.Card:
    """What other sites show beside a link to the page; a guide may name the lecture it shows."""
    title = page.meta.setdefault("title", page.title)
    description = page.meta.setdefault("description", config.site_description)
    words = page.parent.title if page.parent else config.site_name, title, description
    shown = page.meta.get("card", page.file.src_uri.removesuffix(".py"))
    recording = site.recording(shown) if shown in site.lectures else rows.UNKNOWN
    if recording is rows.UNKNOWN:
        return cards.Card(*words)
    return cards.of_recording(*words, recording)


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
    tagged = tags.links(lecture)
    about = f"About {tagged}\n{{: .lecture-tags data-search-exclude='' }}\n\n" if tagged else ""
    return (
        '<div class="lecture-header" markdown>\n\n'
        f"{' · '.join(facts)}\n{{: .lecture-facts }}\n\n"
        f"Afterwards you can {outcome[:1].lower()}{outcome[1:]}\n{{: .lecture-outcome }}\n\n"
        f"{about}"
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
    holder = re.search(r"Copyright.*", (ROOT / "LICENSE").read_text(encoding="utf-8"))[0]
    code = f"# {holder}, MIT licence\n# from {page.canonical_url}\n{lecture.kernel}"
    imported = dict.fromkeys(re.findall(r"(?m)^ *from (\w+) import", lecture.kernel))
    beside = [f", and `{n}.py`" for n in imported if lecture.script.with_stem(n).exists()]
    indented = "\n".join(f"    {line}".rstrip() for line in code.splitlines())
    return (
        "\n\n## Copy this kernel { #copy-this-kernel data-search-exclude='' }\n\n"
        "Imports, kernels and public function: a module of its own, which needs torch and triton"
        f"{''.join(beside) or ' alone'}.\n\n"
        f'??? example "{lecture.script.name}, {len(code.splitlines())} lines"\n\n'
        f"    `````` {{ .python .lecture-kernel }}\n{indented}\n    ``````\n"
    )


def _end(lecture: pages.Lecture, page) -> str:
    """What comes next, where the lecture does not say it itself; progress.js adds to it."""
    following, words = page.next_page, ""
    if following and not lecture.leads_to:
        source = following.file.src_uri
        meta = _lecture(following).meta if _lecture(following) else _front_matter(following.file)
        words = f"Next: [{meta['title']}](../{source}). {meta['description']}"
    return (
        f'\n\n<div class="lecture-end" data-lecture="{lecture.name}" data-search-exclude markdown>'
        f"\n\n{words}\n\n</div>\n"
    )


def _front_matter(file) -> dict:
    return get_data(Path(file.abs_src_path).read_text(encoding="utf-8"))[1]


def on_nav(nav, config, files):
    global syllabus
    syllabus = [(item.title, page) for item in nav if item.is_section for page in item.children]


def on_post_build(config):
    """Writes what language models and other readers of plain text ask for; mends the search."""
    _mend_search(Path(config.site_dir))
    written = [
        export.Text(
            page.file.url,
            part,
            page.meta["title"],
            page.meta["description"],
            texts[page.file.src_uri],
        )
        for part, page in syllabus
    ]
    about = config.site_name, config.site_description, config.site_url
    folder = Path(config.site_dir)
    for text in written:
        (folder / text.path).write_text(text.markdown, encoding="utf-8")
    (folder / export.COURSE).write_text(export.course(*about, written), encoding="utf-8")
    (folder / export.INDEX).write_text(export.index(*about, written), encoding="utf-8")


def _mend_search(folder: Path) -> None:
    """Parts what lunr, in Material's script, writes without a mark between: letters and numbers.

    It takes nodes of its tree of words for the same if they are written alike. Where words hold
    digits, different ones can be; a search that comes upon such a node then finds nothing at all
    (https://github.com/olivernn/lunr.js/issues/503).
    """
    for script in folder.glob("assets/javascripts/workers/search.*.min.js"):
        mended, times = re.subn(
            r"(this\._str\)return this\._str;.{,150}?(\w)=\2\+\w\+\w\.id)\}",
            r'\1+";"}',
            script.read_text(encoding="utf-8"),
        )
        if times != 1:
            log.warning(f"{script.name}: the line of lunr that _mend_search mends is not there")
        script.write_text(mended, encoding="utf-8")


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

    content = _OUTSIDE.sub('<a rel="external" ', content)
    content = _BESIDE_MATH.sub(r'<span class="nobr">\g<0></span>', _MATH.sub(formula, content))
    return site.fill(content, "html")
