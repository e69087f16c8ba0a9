"""Prints, as Markdown, what moved between the recordings of a commit and those of the working tree.

    python scripts/compare_recordings.py [COMMIT]

Without a commit: the last one. A row is listed where its time moved by more than 3 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.lectures import ROOT
from scripts.rows import Benchmark, Ceilings

MOVED = 0.03
VERSIONS = ("driver", "cuda", "torch", "triton", "python")


def times(recording: dict) -> dict[tuple[str, str, str], float]:
    """Milliseconds of every row, by benchmark, size and provider."""
    ceilings = Ceilings(recording["ceilings"])
    return {
        (benchmark.name, ", ".join(f"{k} {v}" for k, v in row.size().items()), row.provider): row.ms
        for benchmark in (Benchmark(stored, ceilings) for stored in recording["benchmarks"])
        for row in benchmark.all
        if hasattr(row, "ms")  # some rows count, and time nothing
    }


def compare(before: dict[str, dict], after: dict[str, dict]) -> str:
    """The summary of two sets of recordings, each by file name."""
    lines, moved, compared = [], [], 0
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            lines.append(f"- {name}: {'new' if name in after else 'gone'}")
            continue
        old_env, new_env = before[name]["environment"], after[name]["environment"]
        lines += [
            f"- {name}: {key} {old_env.get(key)} → {new_env.get(key)}"
            for key in VERSIONS
            if old_env.get(key) != new_env.get(key)
        ]
        old, new = times(before[name]), times(after[name])
        if old.keys() != new.keys():
            added, gone = len(new.keys() - old.keys()), len(old.keys() - new.keys())
            lines.append(f"- {name}: {added} rows new, {gone} rows gone")
        for row in old.keys() & new.keys():
            compared += 1
            change = new[row] / old[row] - 1
            if abs(change) > MOVED:
                moved.append((change, name, *row, old[row], new[row]))
    lines.append(f"- {len(moved)} of {compared} rows moved by more than {MOVED:.0%}")
    if moved:
        lines += ["", "| change | recording | benchmark | size | provider | ms before | ms after |"]
        lines += ["|--:|---|---|---|---|--:|--:|"]
        moved.sort(key=lambda row: (-abs(row[0]), row[1:]))
        lines += [f"| {row[0]:+.1%} | " + " | ".join(map(str, row[1:])) + " |" for row in moved]
    return "\n".join(lines) + "\n"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def committed(commit: str, root: Path) -> dict[str, dict]:
    """The recordings of a commit, as `nvidia-h200/fusion/softmax`."""
    tree = _git(root, "ls-tree", "-r", "--name-only", commit, "docs/recorded").splitlines()
    found = {path: _git(root, "show", f"{commit}:{path}") for path in tree}
    return _recordings(found)


def present(root: Path) -> dict[str, dict]:
    """The recordings of the working tree."""
    paths = (root / "docs" / "recorded").rglob("*.json")
    return _recordings({path.relative_to(root).as_posix(): path.read_text() for path in paths})


def _recordings(texts: dict[str, str]) -> dict[str, dict]:
    read = {path: json.loads(text) for path, text in texts.items()}
    return {
        path.removeprefix("docs/recorded/").removesuffix(".json"): recording
        for path, recording in read.items()
        if "ceilings" in recording  # tests.json and profiles have none
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", nargs="?", default="HEAD", help="such as main or v1.0")
    print(compare(committed(parser.parse_args().commit, ROOT), present(ROOT)), end="")


if __name__ == "__main__":
    main()
