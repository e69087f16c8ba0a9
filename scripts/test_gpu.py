"""Runs lectures' tests on a GPU, then their checks under compute-sanitizer; records the results.

    python scripts/test_gpu.py                  lectures whose code changed since they were tested
    python scripts/test_gpu.py fusion/softmax   only the named ones, tested anew in any case

Writes docs/recorded/<gpu>/tests.json, one entry a lecture, so that a run may cover some of them.
Needs torch, triton, pytest and hypothesis, and CUDA's compute-sanitizer.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import lectures
from scripts.record import LectureError, environment, write_atomically

TOOLS = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warn",
}
SANITIZER_SECONDS = 550
# racecheck comes to no end with these lectures' larger cases: it sees those of at most so many
# queries and keys
RACECHECK_MOST = 600
RACECHECK_SLOW = (
    "attention/flash_attention",
    "attention/flash_attention_backward",
    "attention/gqa_varlen",
    "attention/hopper_attention",
    "attention/hopper_backward",
)
# of tests, and of sanitizer runs beside them: they wait for the compiler more than for the GPU
AT_ONCE = 8
TESTS = lectures.ROOT / "tests" / "kernels"
CHECK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lecture", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.check("cuda")
"""


def run_tests(scripts: list[Path]) -> dict[str, dict]:
    """Runs the tests of lectures; returns how many passed, failed and were skipped, by lecture."""
    stems = {script.stem: lectures.lecture_name(script) for script in scripts}
    own = [path for stem in stems if (path := TESTS / f"test_{stem}.py").exists()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(AT_ONCE)]
        shared = (TESTS / "test_examples.py", TESTS / "test_mutants.py")
        # a lecture's own file, or its name as a parameter, alone or the first of several
        theirs = [f"test_{stem}.py" for stem in stems]
        theirs += [f"[{name}{end}" for pair in stems.items() for name in pair for end in "]-"]
        command += [*own, *shared, "-k", " or ".join(theirs)]
        subprocess.run(command, cwd=lectures.ROOT, check=False)
        cases = list(xml.parse(report).getroot().iter("testcase"))
    names = ("passed", "failed", "skipped", "seconds")
    counts = {lecture: dict.fromkeys(names, 0) for lecture in stems.values()}
    for case in cases:
        # test_softmax, or the parameter of a test that every lecture goes through
        place = re.search(r"test_(\w+)$", case.get("classname"))[1]
        if place not in stems:
            place = re.search(r"\[(?:\w+/)?(\w+)", f"{case.get('name')}[none")[1]
        if place in stems:
            kinds = {child.tag for child in case}
            state = "failed" if kinds & {"failure", "error"} else "passed"
            found = counts[stems[place]]
            found["skipped" if "skipped" in kinds else state] += 1
            found["seconds"] += float(case.get("time"))
    return counts


def captures_graph(source: str) -> bool:
    """Whether a lecture's check, or what it calls in that file, captures a CUDA graph."""
    parts = {part.name: part for part in ast.parse(source).body if hasattr(part, "name")}
    todo, seen = ["check"], set()
    while todo:
        name = todo.pop()
        if name in parts and name not in seen:
            seen.add(name)
            code = list(ast.walk(parts[name]))
            called = {ast.unparse(node.func) for node in code if isinstance(node, ast.Call)}
            if called & {"torch.cuda.graph", "torch.cuda.make_graphed_callables"}:
                return True
            todo += [node.id for node in code if isinstance(node, ast.Name)]
    return False


def small_cases(source: str) -> str:
    """A lecture's source, its check without the cases that hold a number above the limit."""
    check = next(part for part in ast.parse(source).body if getattr(part, "name", "") == "check")
    loop = next(part for part in check.body if isinstance(part, ast.For))
    few = f"all(int(n) <= {RACECHECK_MOST} for n in re.findall('[0-9]+', str(case)))"
    lines = source.splitlines()
    lines.insert(loop.lineno - 1, f"    import re; cases = [case for case in cases if {few}]")
    return "\n".join(lines) + "\n"


def sanitize(tool: str, script: Path) -> int:
    """Counts the errors that a tool of compute-sanitizer finds in a check's Triton kernels.

    Raises:
        LectureError: The check failed or did not end, so the tool's count says nothing.
    """
    source = script.read_text(encoding="utf-8")
    kernels = re.findall(r"^@(?:triton|gluon)\.jit.*\ndef (\w+)", source, re.M)
    # torch's own kernels, which make inputs and references, run at full speed
    only = [option for kernel in kernels for option in ("--kernel-name", f"kns={kernel}")]
    command = ["compute-sanitizer", "--tool", tool, "--target-processes", "application-only", *only]
    command += [sys.executable, "-c", CHECK, str(script)]
    env = dict(os.environ)
    if tool == "memcheck" and not captures_graph(source):
        # torch would carve tensors out of one block, whose inner borders memcheck does not see;
        # but while a graph is captured, CUDA gives no memory
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    name = lectures.lecture_name(script)
    with tempfile.TemporaryDirectory() as folder:
        if tool == "racecheck" and name in RACECHECK_SLOW:
            command[-1] = str(Path(folder) / script.name)
            Path(command[-1]).write_text(small_cases(source), encoding="utf-8")
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
    found = sum(map(int, summary.groups()))
    if found:
        print(output, file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lectures", nargs="*", help="such as fusion/softmax; none: what changed")
    names = parser.parse_args().lectures

    modules = ("torch", "triton", "pytest", "hypothesis")
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    missing += [tool for tool in ("compute-sanitizer",) if not shutil.which(tool)]
    if missing:
        print(f"{sys.executable} finds no {', no '.join(missing)} here", file=sys.stderr)
        return 2
    try:
        machine = environment()
        scripts = [lectures.find_lecture(name) for name in names]
    except (LectureError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    path = lectures.RECORDED / lectures.gpu_slug(machine["gpu"]) / "tests.json"
    tested = lectures.load_tests(path)
    scripts = scripts or [
        script
        for script in lectures.lecture_paths()
        if tested.get(lectures.lecture_name(script), {}).get("code_sha256") != sha256(script)
    ]
    if not scripts:
        print("every lecture was tested as it is; name one to test it anew")
        return 0

    results = {}
    for script in scripts:
        results[lectures.lecture_name(script)] = {
            "code_sha256": sha256(script),
            "environment": machine,
            "sanitizer": {},
        }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = {
            pool.submit(sanitize, tool, script): (lectures.lecture_name(script), tool)
            for script in scripts
            for tool in TOOLS
        }
        for name, counts in run_tests(scripts).items():  # meanwhile
            results[name] |= counts
        for run in as_completed(runs):
            name, tool = runs[run]
            try:
                results[name]["sanitizer"][tool] = run.result()
            except LectureError as error:
                # said on the page, as a count is: this tool came to no end
                results[name]["sanitizer"][tool] = None
                print(error, file=sys.stderr)
            found = results[name]
            if len(found["sanitizer"]) == len(TOOLS):
                # read again: a run beside this one may have written other lectures meanwhile
                entries = lectures.load_tests(path) | {name: found}
                write_atomically(path, {"schema": lectures.TESTS_SCHEMA, "lectures": entries})
                counts = f"{found['passed']} passed, {found['failed']} failed"
                print(f"{name}: {counts}, {found['sanitizer']}", flush=True)
    clean = {"memcheck": 0, "racecheck": 0}
    return int(any(found["failed"] or found["sanitizer"] != clean for found in results.values()))


def sha256(script: Path) -> str:
    return lectures.script_sha256(script.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
