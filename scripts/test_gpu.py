"""Runs the kernels' tests on a GPU, then their checks under compute-sanitizer; records the result.

    python scripts/test_gpu.py                  everything; writes docs/recorded/<gpu>/tests.json
    python scripts/test_gpu.py fusion/softmax   only these lectures; prints, writes nothing

Needs torch, triton, pytest and hypothesis, and CUDA's compute-sanitizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import lectures
from scripts.record import LectureError, environment, write_atomically

TOOLS = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazard",
}
SANITIZER_SECONDS = 200
# compiling binds the processor, so tests and sanitizer runs share the GPU
AT_ONCE = 4
CHECK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lecture", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.check("cuda")
"""


def run_tests(names: list[str]) -> dict[str, int]:
    """Runs pytest on the kernels' tests; returns how many passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/kernels", f"--junitxml={report}"]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(AT_ONCE)]
        if names:
            command += ["-k", " or ".join(name.rpartition("/")[2] for name in names)]
        subprocess.run(command, cwd=lectures.ROOT, check=False)
        suite = xml.parse(report).getroot().find("testsuite")
    total, skipped = int(suite.get("tests")), int(suite.get("skipped"))
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def sanitize(tool: str, script: Path) -> dict[str, str | int]:
    """Runs a lecture's check under a tool of compute-sanitizer, which watches its Triton kernels.

    Raises:
        LectureError: The check failed or did not end, so the tool's count says nothing.
    """
    source = script.read_text(encoding="utf-8")
    kernels = re.findall(r"^@(?:triton|gluon)\.jit.*\ndef (\w+)", source, re.M)
    # torch's own kernels, which make inputs and references, run at full speed
    only = [option for kernel in kernels for option in ("--kernel-name", f"kns={kernel}")]
    command = ["compute-sanitizer", "--tool", tool, *only, sys.executable, "-c", CHECK, str(script)]
    # torch would carve tensors out of one block, whose inner borders memcheck does not see
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    name = lectures.lecture_name(script)
    try:
        run = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=SANITIZER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise LectureError(f"{tool} {name}: stopped after {SANITIZER_SECONDS} s") from None
    output = run.stdout + run.stderr
    summary = re.search(TOOLS[tool], output)
    if run.returncode or not summary:
        raise LectureError(f"{tool} {name}: exit {run.returncode}\n{output}")
    if int(summary[1]):
        print(output, file=sys.stderr)
    return {"tool": tool, "target": name, "errors": int(summary[1])}


def run_sanitizer(scripts: list[Path]) -> tuple[list[dict], list[LectureError]]:
    """Every tool on every lecture: what it counted, and the runs that came to nothing."""
    found, failures = [], []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(sanitize, tool, script) for script in scripts for tool in TOOLS]
        for run in runs:
            try:
                found.append(run.result())
                print("{tool} {target}: {errors} errors".format(**found[-1]))
            except LectureError as error:
                failures.append(error)
                print(error, file=sys.stderr)
    return found, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lectures", nargs="*", help="such as fusion/softmax; none: all")
    names = parser.parse_args().lectures

    modules = ("torch", "triton", "pytest", "hypothesis")
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    missing += [tool for tool in ("compute-sanitizer",) if not shutil.which(tool)]
    if missing:
        print(f"{sys.executable} finds no {', no '.join(missing)} here", file=sys.stderr)
        return 2
    try:
        machine = environment()
    except LectureError as error:
        print(error, file=sys.stderr)
        return 2
    scripts = [lectures.find_lecture(name) for name in names] or lectures.lecture_paths()

    started = time.monotonic()
    counts = run_tests(names)
    sanitizer, failures = run_sanitizer(scripts)
    result = {
        "schema": lectures.SCHEMA,
        "environment": machine,
        "command": "python scripts/test_gpu.py",
        **counts,
        "seconds": time.monotonic() - started,
        "sanitizer": sanitizer,
    }
    if not names:
        folder = lectures.RECORDED / lectures.gpu_slug(machine["gpu"])
        write_atomically(folder / "tests.json", result)
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts))
    return int(bool(counts["failed"] or failures or any(run["errors"] for run in sanitizer)))


if __name__ == "__main__":
    sys.exit(main())
