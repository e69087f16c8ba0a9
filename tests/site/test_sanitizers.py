"""How scripts/test_gpu.py runs a check under compute-sanitizer; nothing here needs a GPU."""

import ast
import subprocess
from pathlib import Path

import pytest

from scripts import lectures, test_gpu
from scripts.record import LectureError

CAPTURES = "        with torch.cuda.graph(torch.cuda.CUDAGraph()):\n            pass\n"
IN_CHECK = f"def check(device):\n    if device:\n{CAPTURES}"
IN_A_HELPER = f"def replayed(fn):\n    if fn:\n{CAPTURES}\n\ndef check(device):\n    replayed(1)\n"
FURTHER_DOWN = (
    IN_A_HELPER.replace("    replayed(1)", "    run()") + "\n\ndef run():\n    replayed(1)\n"
)
IN_BENCH = f"def check(device):\n    pass\n\n\ndef bench(measure):\n    if measure:\n{CAPTURES}"
NO_RACE = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
TOLD = 'def check(device):\n    """No torch.cuda.graph() here."""\n    check(device)\n'


@pytest.fixture
def ran(monkeypatch):
    """Environment and lecture's source of the sanitizer's runs, which find nothing."""
    runs = []

    def run(command, env, **options):
        runs.append((env, Path(command[-1]).read_text(encoding="utf-8")))
        said = f"ERROR SUMMARY: 0 errors\n{NO_RACE}"
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(test_gpu.subprocess, "run", run)
    monkeypatch.delenv("PYTORCH_NO_CUDA_MEMORY_CACHING", raising=False)
    return runs


@pytest.mark.parametrize(
    ("source", "tool", "cached"),
    [
        (IN_BENCH, "memcheck", False),
        (TOLD, "memcheck", False),
        (IN_BENCH, "racecheck", True),
        (IN_CHECK, "memcheck", True),
        (IN_A_HELPER, "memcheck", True),
        (FURTHER_DOWN, "memcheck", True),
        (IN_CHECK, "racecheck", True),
    ],
)
def test_only_memcheck_without_a_graph_goes_without_cached_memory(
    ran, tmp_path, monkeypatch, source, tool, cached
):
    script = tmp_path / "tiny.py"
    script.write_text(source, encoding="utf-8")
    monkeypatch.setattr(lectures, "lecture_name", lambda path: path.stem)
    assert test_gpu.sanitize(tool, script) == 0
    assert ("PYTORCH_NO_CUDA_MEMORY_CACHING" not in ran[0][0]) == cached


def test_a_lecture_whose_check_captures_a_graph_keeps_cached_memory(ran):
    for name, cached in {"fusion/dropout": True, "fusion/softmax": False}.items():
        test_gpu.sanitize("memcheck", lectures.find_lecture(name))
        assert ("PYTORCH_NO_CUDA_MEMORY_CACHING" not in ran[-1][0]) == cached


@pytest.mark.parametrize(
    ("code", "said", "found"),
    [
        (0, "RACECHECK SUMMARY: 9 hazards displayed (9 errors, 0 warnings)", 9),
        (0, "RACECHECK SUMMARY: 100 hazards displayed (144 errors, 2 warnings)", 146),
        (0, "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", 1),
        (1, NO_RACE, None),
        (0, "", None),
    ],
)
def test_a_count_is_that_of_a_check_that_passed(monkeypatch, code, said, found):
    def run(command, **options):
        return subprocess.CompletedProcess(command, code, said, "")

    monkeypatch.setattr(test_gpu.subprocess, "run", run)
    script = lectures.find_lecture("fusion/softmax")
    if found is None:
        with pytest.raises(LectureError, match="racecheck fusion/softmax: exit"):
            test_gpu.sanitize("racecheck", script)
    else:
        assert test_gpu.sanitize("racecheck", script) == found


def cases_on_a_gpu(source):
    """What `cases` holds when the check of a lecture begins to go through them."""
    check = next(part for part in ast.parse(source).body if getattr(part, "name", "") == "check")
    code, names = [], {}
    for statement in check.body:
        if isinstance(statement, ast.For):
            break
        code += [part for part in ast.walk(statement) if isinstance(part, ast.stmt)]
    for part in code:
        targets = {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}
        if isinstance(part, ast.Assign | ast.AugAssign | ast.Import) and targets <= {
            *("cases", "case", "a", "b", "all", "int", "n", "re", "str")
        }:
            exec(ast.unparse(part), names)
    return names["cases"]


@pytest.mark.parametrize("name", test_gpu.RACECHECK_SLOW)
def test_racecheck_leaves_out_the_large_cases_of_slow_lectures(ran, name):
    script = lectures.find_lecture(name)
    for tool in ("memcheck", "racecheck"):
        test_gpu.sanitize(tool, script)
    (_, whole), (_, short) = ran
    assert whole == script.read_text(encoding="utf-8")
    every, some = cases_on_a_gpu(whole), cases_on_a_gpu(short)
    assert len(every) > len(some) >= 3 and set(some) < set(every)
    assert max(max(flat(case)) for case in some) <= test_gpu.RACECHECK_MOST
    assert all(max(flat(c)) > test_gpu.RACECHECK_MOST for c in every if c not in some)


def flat(case):
    """The numbers of a case, those of its tuples too."""
    return [n for part in case for n in (flat(part) if isinstance(part, tuple) else [part])]


def test_nothing_to_test_runs_nothing(monkeypatch, capsys):
    tested = {
        lectures.lecture_name(script): {"code_sha256": test_gpu.sha256(script)}
        for script in lectures.lecture_paths()
    }
    monkeypatch.setattr(test_gpu.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(test_gpu.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(test_gpu, "environment", lambda: {"gpu": "NVIDIA Test 1"})
    monkeypatch.setattr(lectures, "load_tests", lambda path: tested)
    monkeypatch.setattr(test_gpu.sys, "argv", ["test_gpu.py"])
    assert test_gpu.main() == 0
    assert "every lecture was tested" in capsys.readouterr().out
