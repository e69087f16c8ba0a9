"""Records lectures on a GPU: outputs of cells, rows of benchmarks, ceilings of the card.

    python scripts/record.py                  every lecture whose recording is missing or stale
    python scripts/record.py fusion/softmax   only the named ones, recorded anew in any case
    python scripts/record.py --all            every lecture, recorded anew

Needs torch, triton and the standard library; no Jupyter. A lecture is written when all of it has
run, so a run that fails or is interrupted leaves the old recording whole, and the next run goes on
where this one stopped.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime
import io
import json
import os
import platform
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import lectures

SIGNIFICANT_DIGITS = 5


class LectureError(Exception):
    """A lecture that failed; the message names script, cell and line."""


class Progress:
    """One status line for the terminal; plain lines where the output is a file."""

    def __init__(self, names: list[str], expected: dict[str, float]):
        self.names, self.expected = names, expected
        self.position, self.started = 0, time.monotonic()

    def lecture(self, name: str) -> None:
        self.position, self.started = self.names.index(name), time.monotonic()

    def say(self, what: str) -> None:
        name = self.names[self.position]
        spent = time.monotonic() - self.started
        left = max(0.0, self.expected[name] - spent)
        left += sum(self.expected[later] for later in self.names[self.position + 1 :])
        line = f"[{self.position + 1}/{len(self.names)}] {name}: {what}, about {left:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class _Stream(io.StringIO):
    """Appends what is printed to a cell's outputs, in nbformat's shape."""

    def __init__(self, outputs: list[dict], name: str):
        super().__init__()
        self.outputs, self.name = outputs, name

    def write(self, text: str) -> int:
        last = self.outputs[-1] if self.outputs else {}
        if last.get("output_type") == "stream" and last["name"] == self.name:
            last["text"] += text
        elif text:
            self.outputs.append({"output_type": "stream", "name": self.name, "text": text})
        return len(text)


def _run_cell(cell: lectures.Cell, script: Path, namespace: dict) -> list[dict]:
    """Runs one cell under the script's own file name and line numbers, and returns its outputs.

    `inspect.getsource`, which `@triton.jit` needs, and tracebacks then point into the script.
    """
    outputs: list[dict] = []
    tree = ast.parse(cell.source, filename=str(script))
    ast.increment_lineno(tree, cell.line - 1)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(_Stream(outputs, "stdout")):
        # without this module's own future imports
        exec(compile(tree, str(script), "exec", dont_inherit=True), namespace)
        value = None
        if last:
            value = eval(compile(last, str(script), "eval", dont_inherit=True), namespace)
    if value is not None:
        data = {"text/plain": repr(value)}
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}})
    return outputs


def _where(error: BaseException, script: Path) -> str:
    """`line 12` of the script: the deepest frame of the traceback that lies in it."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(script)]
    return f"line {lines[-1]}" if lines else "line unknown"


@contextlib.contextmanager
def named(script: Path, what: str):
    """Turns an error in the lecture into one that names the script, the part of it and the line."""
    try:
        yield
    except Exception as error:
        place = f"{script}: {what}, {_where(error, script)}"
        raise LectureError(f"{place}: {type(error).__name__}: {error}") from error


def run_lecture(script: Path, measure, say=lambda what: None) -> tuple[list[dict], list[dict]]:
    """Runs a lecture's cells as `__main__`, then its check, then its benchmarks.

    Args:
        script: The lecture.
        measure: What its `bench` gets; without one no benchmark is run.
        say: Called with a few words before each step.

    Returns:
        The recorded code cells and the benchmarks.

    Raises:
        LectureError: A cell, the check or a benchmark failed.
    """
    # recorded tracebacks show the path from the working directory, not this machine's folders
    script = Path(os.path.relpath(script))
    module = types.ModuleType("__main__")
    module.__file__ = str(script)
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    recorded, benchmarks = [], []
    try:
        code = [c for c in lectures.cells(script.read_text("utf-8")) if c.kind == "code"]
        for number, cell in enumerate(code, 1):
            say(f"cell {number} of {len(code)}")
            with named(script, f"cell {number} of {len(code)}"):
                outputs = _run_cell(cell, script, module.__dict__)
            sha256 = lectures.code_sha256(cell.source)
            recorded.append({"code_sha256": sha256, "outputs": outputs})
        if measure and hasattr(module, "bench"):
            # correctness before the clock starts
            say("check")
            with named(script, "check"), contextlib.redirect_stdout(io.StringIO()):
                module.check("cuda")
            say("benchmarks")
            with named(script, "bench"):
                for benchmark in module.bench(measure):
                    benchmarks.append(benchmark)
                    say(f"benchmarks, {len(benchmarks)} done")
    finally:
        sys.modules["__main__"] = before
    return recorded, benchmarks


def environment() -> dict:
    """The machine and the versions that a recording is stamped with.

    Raises:
        LectureError: torch or triton is missing, there is no GPU, or the interpreter is on.
    """
    try:
        import torch
        import triton
    except ModuleNotFoundError as error:
        remedy = "pip install -r examples/requirements.txt"
        raise LectureError(f"{sys.executable} has no {error.name}: {remedy}") from None

    if triton.knobs.runtime.interpret:
        raise LectureError("TRITON_INTERPRET is set: the interpreter measures nothing; unset it")
    if not torch.cuda.is_available():
        raise LectureError("torch finds no GPU here; a recording needs one")
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": driver.stdout.splitlines()[0].strip(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "interpreter": False,
    }


def rounded(value):
    """Floats to a few significant digits, through lists and dictionaries."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def write_atomically(path: Path, recording: dict) -> None:
    """Writes all of it or nothing: a reader never sees half a recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".json.part")
    try:
        half.write_text(json.dumps(rounded(recording), indent=1) + "\n", encoding="utf-8")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def _expected_seconds(script: Path, gpu: str, root: Path) -> float:
    try:
        recording = lectures.load_recording(lectures.recording_path(script, gpu, root), script)
        return recording.get("seconds", 60.0)
    except lectures.RecordingError:
        return 60.0


def record(scripts: list[Path], root: Path = lectures.ROOT) -> int:
    """Records lectures one after the other and prints a summary; returns the number that failed."""
    from scripts.measure import ceilings, measure

    machine = environment()
    gpu = lectures.gpu_slug(machine["gpu"])
    names = [lectures.lecture_name(script) for script in scripts]
    expected = dict(zip(names, (_expected_seconds(s, gpu, root) for s in scripts), strict=True))
    progress = Progress(names, expected)
    summary, measured = [], None
    for script, name in zip(scripts, names, strict=True):
        progress.lecture(name)
        started = time.monotonic()
        try:
            if measured is None:
                progress.say("ceilings of the card")
                try:
                    measured = ceilings()
                except RuntimeError as error:
                    raise LectureError(f"ceilings of the card: {error}") from error
            cells, benchmarks = run_lecture(script, measure, progress.say)
        except LectureError as error:
            progress.close()
            print(f"FAILED {error}\n(the old recording, if any, is untouched)", file=sys.stderr)
            summary.append((name, "failed", "-", "-", time.monotonic() - started))
            continue
        seconds = time.monotonic() - started
        recording = {
            "schema": lectures.SCHEMA,
            "source": script.relative_to(root).as_posix(),
            "code_sha256": lectures.script_sha256(script.read_text("utf-8")),
            "environment": machine,
            "seconds": seconds,
            "ceilings": measured,
            "cells": cells,
            "benchmarks": benchmarks,
        }
        write_atomically(lectures.recording_path(script, gpu, root), recording)
        rows = sum(len(benchmark["rows"]) for benchmark in benchmarks)
        summary.append((name, "recorded", str(len(cells)), str(rows), seconds))
    progress.close()
    print(f"{machine['gpu']}, torch {machine['torch']}, triton {machine['triton']}")
    print(f"{'lecture':<36}{'state':<10}{'cells':>6}{'rows':>6}{'seconds':>9}")
    for name, state, cells, rows, seconds in summary:
        print(f"{name:<36}{state:<10}{cells:>6}{rows:>6}{seconds:>9.1f}")
    return sum(state == "failed" for _, state, *_ in summary)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lectures", nargs="*", help="such as fusion/softmax; none: those not fresh")
    parser.add_argument("--all", action="store_true", help="every lecture, fresh or not")
    options = parser.parse_args()
    try:
        if options.lectures:
            scripts = [lectures.find_lecture(name) for name in options.lectures]
        else:
            gpu = lectures.gpu_slug(environment()["gpu"])
            scripts = [
                script
                for script in lectures.lecture_paths()
                if options.all
                or not lectures.is_fresh(
                    lectures.recording_path(script, gpu, lectures.ROOT), script
                )
            ]
        if not scripts:
            print("every recording is fresh; name a lecture, or pass --all, to record it anew")
            return 0
        return min(1, record(scripts))
    except (LectureError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
