"""What leads to a page: its neighbours, header, tags, card, text for language models, 404."""

import html
import io
import re
from itertools import pairwise
from urllib.parse import urljoin

import pytest
from PIL import Image

from scripts import cards, export
from scripts.lectures import ROOT
from scripts.pages import Lecture, Site
from scripts.tags import pages as tag_pages
from scripts.tags import slug
from tests.site.built import LECTURES, SITE_URL, file_of

NAV = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
# every page of the syllabus by its address, in order
SYLLABUS = [
    "" if name == "index" else f"{name}/"
    for name in re.findall(r"(?m)^ +- (?:[^:\n]+: )?([\w/]+)\.(?:md|py)$", NAV)
]
PARTS = re.findall(r"(?m)^  - (\w+):$", NAV.partition("\n\n")[0])
FENCED = re.compile(r"(?ms)^( *)(`{3,})[^\n]*\n.*?^\1\2[ \t]*$")


@pytest.fixture
def source(site):
    """A function that reads a page as it was built."""
    return lambda address: (site / file_of(address)).read_text("utf-8")


def property_of(page: str, name: str) -> str:
    found = re.search(rf'<meta (?:name|property)="{name}" content="([^"]*)">', page)
    return html.unescape(found[1]) if found else ""


def linked(piece: str, address: str) -> list[str]:
    """The addresses below the site's root that a piece of a page links."""
    links = [urljoin(SITE_URL + address, link) for link in re.findall(r'href="([^"]*)"', piece)]
    return [link.removeprefix(SITE_URL) for link in links]


# order


def test_previous_and_next_follow_the_syllabus(source):
    assert len(SYLLABUS) > len(LECTURES)

    def leads(address: str, direction: str) -> list[str]:
        links = re.findall(rf'<link rel="{direction}" [^>]*>', source(address))
        return linked("".join(links), address)

    for before, after in pairwise(SYLLABUS):
        assert leads(before, "next") == [after]
        assert leads(after, "prev") == [before]
    assert not leads("", "prev") and not leads(SYLLABUS[-1], "next")


def test_every_lecture_says_what_is_next_once(source):
    for name, script in LECTURES.items():
        own, said = f"{name}/", Lecture(script).leads_to
        after = SYLLABUS[SYLLABUS.index(own) + 1]
        assert said in ("", after[:-1]), f"{script} leads to {said}, the syllabus to {after[:-1]}"
        end = source(own).partition('<div class="lecture-end"')[2].partition("</div>")[0]
        assert ("Next:" in end) is not bool(said)
        assert linked(end, own) == [after] * (not said)


@pytest.mark.parametrize("name", LECTURES)
def test_a_lecture_says_what_it_needs_takes_and_gives(source, name):
    lecture = Lecture(LECTURES[name])
    header = source(f"{name}/").partition('<div class="lecture-header">')[2].partition("</div>")[0]
    links = linked(header, f"{name}/")
    assert f"{lecture.minutes} minutes to read" in header
    assert "Afterwards you can " in header
    for needed in lecture.meta.get("prerequisites", ()):
        assert f"{needed}/" in links
    assert lecture.meta["tags"]
    for tag in lecture.meta["tags"]:
        assert f"tags/{slug(tag)}/" in links


# tags


def test_every_tag_has_a_page_with_its_lectures(source, pages):
    tags = {tag for script in LECTURES.values() for tag in Lecture(script).meta["tags"]}
    index = source("tags/")
    for tag in tags:
        assert f'href="{slug(tag)}/"' in index
        page = source(f"tags/{slug(tag)}/")
        for name, script in LECTURES.items():
            listed = f'href="../../{name}/"' in page.partition("<article")[2]
            assert listed == (tag in Lecture(script).meta["tags"])


def test_a_tag_that_nobody_explained_is_reported(tmp_path):
    script = tmp_path / "examples" / "demo" / "tiny.py"
    script.parent.mkdir(parents=True)
    front = "title: Tiny\ndescription: A test.\noutcome: Do little.\ntags: [new, known]"
    lines = ["---", *front.splitlines(), "---", "", "# Tiny"]
    script.write_text("# %% [markdown]\n" + "".join(f"# {line}\n" for line in lines), "utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tags.yml").write_text("known: A word.\nunused: Another.\n", "utf-8")
    said: list[str] = []
    made = tag_pages(Site(tmp_path, "nvidia-h200", said.append))
    assert said == ["examples/demo/tiny.py: no line in docs/tags.yml says what the tag 'new' means"]
    assert set(made) == {"tags/index.md", "tags/new.md", "tags/known.md"}
    assert "[Tiny](../demo/tiny.py): A test." in made["tags/known.md"]


# cards


def test_every_page_has_a_card_and_says_whose_it_is(site, source, pages):
    for address in pages.keys() - {"404.html"}:
        page = source(address)
        assert property_of(page, "og:url") == f"{SITE_URL}{address}"
        assert f'<link rel="canonical" href="{SITE_URL}{address}">' in page
        assert property_of(page, "og:title")
        assert property_of(page, "og:description") == property_of(page, "description")
        assert property_of(page, "twitter:card") == "summary_large_image"
        card = property_of(page, "og:image")
        assert card.startswith(SITE_URL)
        file = site / card.removeprefix(SITE_URL)
        assert Image.open(file).size == (1200, 630) and file.stat().st_size < 60 * 1024, address


CARD = cards.Card("Fusion", "Softmax", "Forward", (("Triton", "1.00 ms", 0.5, True),), "on a GPU")


def test_a_card_is_the_same_on_every_build(tmp_path):
    first = cards.png(CARD, tmp_path / "one")
    assert cards.png(CARD, tmp_path / "two") == first
    assert cards.png(CARD, tmp_path / "one") == first  # from the cache
    assert len(list((tmp_path / "one").iterdir())) == 1


@pytest.mark.parametrize("title", ["Short", "A title of many words " * 3, "unbreakable" * 6])
def test_a_long_title_stays_on_the_card(tmp_path, title):
    made = cards.png(cards.Card("Part", title.strip(), "A line. " * 30, CARD.bars), tmp_path)
    image = Image.open(io.BytesIO(made)).convert("RGB")
    margin = image.crop((1200 - cards.EDGE + 8, 20, 1200, 630))
    assert len(margin.getcolors()) == 1  # nothing but the background


# text


def test_llms_txt_lists_the_syllabus(site):
    lines = (site / export.INDEX).read_text("utf-8").splitlines()
    assert lines[0] == "# Triton lectures" and lines[2].startswith("> ")
    assert [line[3:] for line in lines if line.startswith("## ")] == [*PARTS, "Optional"]
    links = [re.fullmatch(r"- \[[^\]]+\]\((\S+)\): \S.+", li) for li in lines if li[:2] == "- "]
    assert all(links)
    addresses = [link[1].removeprefix(SITE_URL) for link in links]
    listed = [file.removesuffix("index.html.md") for file in addresses if file.endswith(".md")]
    parts = {address for address in SYLLABUS if address not in ("", "results/", "reference/")}
    assert listed == [address for address in SYLLABUS if address in parts]
    for address in addresses:
        assert (site / file_of(address) if address.endswith("/") else site / address).is_file()


def test_the_course_is_one_file_of_plain_text(site):
    course = (site / export.COURSE).read_text("utf-8")
    assert "\ue000" not in course  # a figure's place, not filled
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", course))
    assert "{{" not in prose
    assert not re.findall(r"</?(?:div|span|p|a|svg|figure|details|table|td|dl)\b", prose)
    assert not re.findall(r"(?m)^(?:!!!|\?\?\?|===) ", prose)
    assert not re.findall(r"\]\((?!https?://|mailto:|#)[^)]*\)", prose)
    for name, script in LECTURES.items():
        assert f"<!-- {SITE_URL}{name}/ -->" in course
        text = (site / name / "index.html.md").read_text("utf-8")
        assert text in course
        lecture = Lecture(script)
        assert re.search(r"(?m)^# .+$", lecture.cells[0].source)[0] in text
        assert all(cell.source.strip() in text for cell in lecture.cells if cell.kind == "code")


def test_a_figure_is_its_table(site):
    text = (site / "fusion/softmax/index.html.md").read_text("utf-8")
    header = re.search(r"\n\| n_cols \| Triton .*\n\| --- \| ---: .*\n\| 1,024 \| \d+ ", text)
    assert header and ".light.svg" not in text


def test_plain_markdown():
    prose = (
        '??? question "Why?"\n    Because.\n\n'
        "[A page](../results.md#all){ .md-button } :material-download: `<b>`\n{: .note }\n"
        "<dl><dt>a</dt><dd>b</dd></dl><svg><text>no</text></svg>\n\n\n\n"
        "``` { .sh .no-copy }\nls <x>\n```\n"
    )
    assert export.plain(prose, "fusion/softmax/", "https://x.org/") == (
        "**Why?**\n\nBecause.\n\n[A page](https://x.org/results/#all) `<b>`\n\n- a: b\n\n"
        "```sh\nls <x>\n```\n"
    )


# 404


@pytest.fixture(scope="module")
def page(browser):
    """A page that may miss what it asks for."""
    page = browser.new_page()
    yield page
    page.close()


@pytest.mark.parametrize(
    ("asked", "proposed"),
    [
        ("fusion/soft_max/", "fusion/softmax/"),
        ("foundations/debuging.html", "foundations/debugging/"),
        ("attention/flash-attention", "attention/flash_attention/"),
        ("softmax/", "fusion/softmax/"),
        ("fuson/rmsnorm/", "fusion/rms_norm/"),
        ("gloss", "glossary/"),
        ("zzz/qqq/", None),
    ],
)
def test_a_missing_page_proposes_the_closest(page, base, asked, proposed):
    assert page.goto(base + asked).status == 404
    links = [link.get_attribute("href") for link in page.locator("#closest a").all()]
    assert links == ([base + proposed] if proposed else [])
    assert page.locator("#parts li").count() == len(PARTS) + 1
    assert page.locator(".md-header__button.md-logo").is_visible()
