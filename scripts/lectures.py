"""What a lecture and its recording are: cells, hashes, paths. Standard library only.

The recorder (which needs a GPU), the site build (which has neither torch nor a GPU) and the tests
all read lectures and recordings through this module, so that they agree on both.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RECORDED = ROOT / "docs" / "recorded"
SCHEMA = 1
TESTS_SCHEMA = 2

_MARK = re.compile(r"# %%(?P<options>.*)")
_TAGS = re.compile(r"tags=(\[[^\]]*\])")


class RecordingError(Exception):
    """A recording that cannot be shown; the message names the file and the remedy."""


@dataclass(frozen=True)
class Cell:
    """One percent cell: `line` is the 1-based line of its first source line."""

    line: int
    kind: str  # "markdown" or "code"
    tags: tuple[str, ...]
    source: str


def cells(text: str) -> list[Cell]:
    """Splits a script into its percent cells; what stands above the first mark is not a cell."""
    lines = text.splitlines(keepends=True)
    marks = [(i, m) for i, line in enumerate(lines) if (m := _MARK.match(line))]
    stops = [i for i, _ in marks[1:]] + [len(lines)]
    found = []
    for (start, mark), stop in zip(marks, stops, strict=True):
        options = mark["options"]
        tags = _TAGS.search(options)
        kind = "markdown" if "[markdown]" in options else "code"
        tags = tuple(json.loads(tags[1])) if tags else ()
        found.append(Cell(start + 2, kind, tags, "".join(lines[start + 1 : stop])))
    return found


def code_sha256(source: str) -> str:
    """Hash of code as text, without blank lines and trailing white space.

    The syntax tree would be a worse key: `ast.dump` differs between Python versions.
    """
    kept = "\n".join(line.rstrip() for line in source.splitlines() if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()


def script_sha256(text: str) -> str:
    """Hash of all code cells of a script; prose does not count."""
    return code_sha256("\n".join(cell.source for cell in cells(text) if cell.kind == "code"))


def lecture_paths(root: Path = ROOT) -> list[Path]:
    """All lectures, sorted by path; those not on the syllabus are drafts, tested and not shown."""
    found = (root / "examples").glob("[!_]*/[!_]*.py")
    return sorted(found)


def syllabus(root: Path = ROOT) -> list[Path]:
    """The lectures that the site shows, in the order of `nav` in mkdocs.yml."""
    nav = (root / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    names = re.findall(r"(?m)^ +- (?:[^:\n]+: )?([a-z0-9_]+/[a-z0-9_]+\.py)$", nav)
    return [root / "examples" / name for name in names]


def lecture_name(script: Path) -> str:
    """`fusion/softmax` for `examples/fusion/softmax.py`."""
    return f"{script.parent.name}/{script.stem}"


def find_lecture(name: str, root: Path = ROOT) -> Path:
    """The script of `fusion/softmax`, of `softmax`, or of a path to it.

    Raises:
        FileNotFoundError: No such lecture; the message lists those there are.
    """
    wanted = name.removesuffix(".py").removeprefix("examples/")
    for script in lecture_paths(root):
        if wanted in (lecture_name(script), script.stem):
            return script
    known = ", ".join(map(lecture_name, lecture_paths(root)))
    raise FileNotFoundError(f"no lecture named {name!r}; there are: {known}")


def gpu_slug(gpu: str) -> str:
    """`nvidia-h200` for `NVIDIA H200`: the folder of a GPU's recordings."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def recording_path(script: Path, gpu: str, root: Path = ROOT) -> Path:
    """Where the recording of a script on a GPU (its slug) lies."""
    return root / "docs" / "recorded" / gpu / script.parent.name / f"{script.stem}.json"


def profile_path(script: Path, gpu: str, root: Path = ROOT) -> Path:
    """Where scripts/profile_gpu.py writes what it saw: beside the recording."""
    return recording_path(script, gpu, root).with_suffix(".profile.json")


def repair(script: Path, tool: str = "record") -> str:
    """The command that makes a lecture's recording or profile anew."""
    return f"python scripts/{tool}.py {lecture_name(script)}   (on a machine with a GPU)"


def load_recording(path: Path, script: Path, tool: str = "record") -> dict:
    """Reads a recording, or a profile, which has neither ceilings nor cells.

    Args:
        path: The file.
        script: The lecture.
        tool: What made it: "record" or "profile_gpu".

    Raises:
        RecordingError: It is missing, not JSON, of another schema, made by the interpreter, or
            names no GPU. The message says which, and how to repair it.
    """

    def refuse(problem: str) -> RecordingError:
        return RecordingError(f"{path}: {problem}; to make it: {repair(script, tool)}")

    try:
        recording = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refuse("there is no such recording") from None
    except ValueError as error:
        raise refuse(f"not a whole JSON file ({error})") from None
    if not isinstance(recording, dict) or recording.get("schema") != SCHEMA:
        raise refuse(f"not a recording of schema {SCHEMA}")
    needed = {"environment", "benchmarks", "code_sha256"}
    needed |= {"ceilings", "cells"} if tool == "record" else set()
    if missing := needed - recording.keys():
        raise refuse(f"without {', '.join(sorted(missing))}")
    environment = recording["environment"]
    if environment.get("interpreter"):
        raise refuse("made by the interpreter, not by a GPU")
    if not environment.get("gpu"):
        raise refuse("names no GPU")
    return recording


def is_stale(recording: dict, script: Path) -> bool:
    """True where a code cell changed after the recording was made."""
    return recording["code_sha256"] != script_sha256(script.read_text(encoding="utf-8"))


def is_fresh(path: Path, script: Path, tool: str = "record") -> bool:
    """True where a lecture's recording or profile can stay as it is."""
    try:
        return not is_stale(load_recording(path, script, tool), script)
    except RecordingError:
        return False


def load_tests(path: Path) -> dict[str, dict]:
    """What scripts/test_gpu.py found on a GPU, by lecture; nothing where it has not run yet."""
    if not path.exists():
        return {}
    tests = json.loads(path.read_text(encoding="utf-8"))
    return tests["lectures"] if tests.get("schema") == TESTS_SCHEMA else {}
