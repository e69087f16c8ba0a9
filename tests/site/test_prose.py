"""Spelling and style of what people read: Markdown cells of the lectures, and guides.

codespell knows misspellings, and from `house_words.txt` the words that this site does without;
proselint knows clichés, needless and doubled words, mixed spellings. Words of the field that either
mistakes are in `pyproject.toml` and `proselint.json`.
"""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import lectures

BIN, HERE = Path(sys.executable).parent, Path(__file__).parent
GUIDES = sorted((lectures.ROOT / "docs").glob("*.md"))
FRONT_MATTER = re.compile(r"\A---\n.*?^---$", re.S | re.M)
BLOCK = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2[ \t]*$", re.S | re.M)
# what is no prose inside it: code, expressions, formulas, addresses, tags and attributes
NO_PROSE = re.compile(
    r"<svg.*?</svg>|\{%.*?%\}|\{\{.*?\}\}|`[^`]+`|\$\$.*?\$\$|\$[^$\n]+\$|(?<=\])\([^()\s]*\)"
    r"|\]\[[\w.]+\]|<[^>]+>|\{:?[^{}\n]*\}|https://\S+|(?m:^ *(?:!!!|\?\?\?\+?|===)[ \w]*)",
    re.S,
)
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u26ff\u2705\u274c\u2728]")


def prose(text: str) -> str:
    """The text, of the same lines, with a sign of its own in place of what is no prose."""
    signs = itertools.count()

    def blank(match: re.Match) -> str:
        return "\n" * match[0].count("\n")

    text = BLOCK.sub(blank, FRONT_MATTER.sub(blank, text))
    # else a heading and the word below it could be a word said twice
    text = re.sub(r"(?m)^(#+ .*?[\w`)])$", r"\1.", text)
    return NO_PROSE.sub(lambda match: f"q{next(signs)}x{blank(match)}", text)


def of_lecture(script: Path) -> str:
    """A lecture's Markdown, each line where it stands in the script."""
    text = script.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for cell in lectures.cells(text):
        if cell.kind == "markdown":
            for i, line in enumerate(cell.source.splitlines(), cell.line - 1):
                lines[i] = re.sub("^# ?", "", line)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the linters read: one file of prose for each page, under the page's own name."""
    folder = tmp_path_factory.mktemp("prose")
    for path in (*lectures.lecture_paths(), *GUIDES):
        target = folder / f"{path.relative_to(lectures.ROOT)}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = of_lecture(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")
        target.write_text(prose(text), encoding="utf-8")
    return folder


def lint(folder: Path, *command: object) -> list[str]:
    """What a linter says, one line each."""
    command = [str(part) for part in command]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode in (0, 1, 65), run.stderr
    return [line.replace(f"{folder}/", "") for line in run.stdout.splitlines() if line.strip()]


def test_spelling(folder):
    options = ("--toml", lectures.ROOT / "pyproject.toml")
    dictionaries = ("--dictionary", "-", "--dictionary", HERE / "house_words.txt")
    assert not lint(folder, BIN / "codespell", *options, *dictionaries, ".")


def test_style(folder):
    # it reads the settings of the folder where it runs
    shutil.copy(HERE / "proselint.json", folder / ".proselintrc.json")
    assert not lint(folder, BIN / "proselint", "check", ".")


def test_no_emoji(folder):
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))}
    assert not [str(path.relative_to(folder)) for path, text in texts.items() if EMOJI.search(text)]


@pytest.mark.parametrize(
    ("wrong", "linter"),
    [
        ("The kernal is launched.", test_spelling),
        ("You simply launch it.", test_spelling),
        ("It is blazing fast.", test_spelling),
        ("This is a very unique kernel.", test_style),
        ("At the end of the day it is memory.", test_style),
        ("Well done \U0001f680", test_no_emoji),
    ],
)
def test_the_linters_find_what_is_wrong(tmp_path, wrong, linter):
    (tmp_path / "page.md").write_text(wrong, encoding="utf-8")
    with pytest.raises(AssertionError):
        linter(tmp_path)


def test_only_prose_is_read():
    text = "A `kernal` and\n```python\nkernal\n```\n$kernal$ [link](kernal.md) {{ kernal }}\n"
    assert "kernal" not in prose(text)
    assert prose(text).count("\n") == text.count("\n")
