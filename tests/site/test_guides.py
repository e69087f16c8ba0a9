"""Guides that speak of all lectures leave none out; the glossary is a list in order."""

import re

import pytest

from scripts.lectures import ROOT, lecture_name, syllabus

LECTURES = [lecture_name(script) for script in syllabus(ROOT)]


def guide(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def path(variable: str) -> list[str]:
    """The lectures that a path's reading time counts."""
    return re.findall(r'"([a-z_]+/[a-z_]+)"', re.search(rf"set {variable} = \[(.*?)\]", paths)[1])


paths = guide("paths.md")


def test_the_home_page_lists_the_syllabus():
    assert re.findall(r"(?m)^\| \[.*?\]\(([a-z_]+/[a-z_]+)\.py\)", guide("index.md")) == LECTURES


@pytest.mark.parametrize(
    ("variable", "title"),
    [("hands_on", "Hands-on"), ("theory", "Theory"), ("production", "Production")],
)
def test_a_path_counts_its_own_steps(variable, title):
    section = re.search(rf"(?ms)^## {title} first\n(.*?)^## ", paths)[1]
    assert re.findall(r'step\("([a-z_/]+)"', section) == path(variable)


def test_every_lecture_is_on_a_path_and_on_the_map():
    assert {*path("hands_on"), *path("theory"), *path("production")} == {*LECTURES}
    drawn = re.findall(r'(?m)^  "([a-z_/]+)": \(', guide("diagrams/paths_map.svg"))
    assert {*LECTURES} <= {*drawn}


def test_the_glossary_is_in_order():
    entries = re.findall(r"(?m)^## (.+)$", guide("glossary.md"))
    assert entries == sorted(entries, key=str.casefold)
    assert len(entries) == len(set(entries))
