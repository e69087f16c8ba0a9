"""A page for each tag of the lectures, and one of all tags, as Markdown that the build makes."""

from __future__ import annotations

import re

import yaml

from scripts.pages import Lecture, Site

_FILE = "docs/tags.yml"


def slug(tag: str) -> str:
    """`online-softmax` for `online softmax`: the tag's page is tags/<slug>/."""
    return re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-")


def links(lecture: Lecture) -> str:
    """A lecture's tags, each a link to its page, as Markdown of a page in a part's folder."""
    tags = lecture.meta.get("tags", ())
    return " ".join(f"[{tag}](../tags/{slug(tag)}.md){{ .lecture-tag }}" for tag in tags)


def pages(site: Site) -> dict[str, str]:
    """The pages by their path under docs/; a tag that nobody explained is reported."""
    path = site.root / _FILE
    meanings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    tagged: dict[str, list[Lecture]] = {tag: [] for tag in meanings}
    for lecture in site.lectures.values():
        for tag in lecture.meta.get("tags", ()):
            if tag not in meanings:
                place = lecture.script.relative_to(site.root)
                site.report(f"{place}: no line in {_FILE} says what the tag {tag!r} means")
            tagged.setdefault(tag, []).append(lecture)
    tagged = {tag: found for tag, found in tagged.items() if found}
    made = {f"tags/{slug(tag)}.md": _page(tag, meanings, found) for tag, found in tagged.items()}
    if made:
        made["tags/index.md"] = _index(meanings, tagged)
    return made


def _page(tag: str, meanings: dict[str, str], found: list[Lecture]) -> str:
    meaning = meanings.get(tag, tag)
    lines = [
        f"- [{lecture.meta['title']}](../{lecture.name}.py): {lecture.meta['description']}"
        for lecture in found
    ]
    listed = "\n".join(("<div data-progress markdown>\n", *lines, "\n</div>"))
    text = [f"# {tag[:1].upper()}{tag[1:]}", meaning, listed]
    text += ["All tags are on [one page](index.md), words in the [glossary](../glossary.md)."]
    return _front_matter(f"Tag: {tag}", f"Lectures on {tag}. {meaning}") + "\n\n".join(text) + "\n"


def _index(meanings: dict[str, str], tagged: dict[str, list[Lecture]]) -> str:
    lines = [
        f"- [{tag}]({slug(tag)}.md): {meanings.get(tag, '')}"
        f" ({len(found)} lecture{'s' if len(found) > 1 else ''})"
        for tag, found in tagged.items()
    ]
    text = ["# Tags", "What the lectures are about, across the parts of the syllabus."]
    description = "Every tag of the lectures, with what it means and how many lectures have it."
    return _front_matter("Tags", description) + "\n\n".join((*text, "\n".join(lines))) + "\n"


def _front_matter(title: str, description: str) -> str:
    # the lectures themselves are what a search should find
    meta = {"title": title, "description": description, "search": {"exclude": True}}
    return f"---\n{yaml.safe_dump(meta)}---\n\n"
