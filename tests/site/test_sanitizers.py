"""How scripts/test_gpu.py runs a check under compute-sanitizer; nothing here needs a GPU."""

import subprocess

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
TOLD = 'def check(device):\n    """No torch.cuda.graph() here."""\n    check(device)\n'


@pytest.fixture
def ran(monkeypatch):
    """The environments of the sanitizer's runs, which find nothing."""
    environments = []

    def run(command, env, **options):
        environments.append(env)
        said = "ERROR SUMMARY: 0 errors\nRACECHECK SUMMARY: 0 hazards displayed"
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(test_gpu.subprocess, "run", run)
    monkeypatch.delenv("PYTORCH_NO_CUDA_MEMORY_CACHING", raising=False)
    return environments


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
    assert ("PYTORCH_NO_CUDA_MEMORY_CACHING" not in ran[0]) == cached


def test_a_lecture_whose_check_captures_a_graph_keeps_cached_memory(ran):
    for name, cached in {"fusion/dropout": True, "fusion/softmax": False}.items():
        test_gpu.sanitize("memcheck", lectures.find_lecture(name))
        assert ("PYTORCH_NO_CUDA_MEMORY_CACHING" not in ran[-1]) == cached


@pytest.mark.parametrize(
    ("code", "said", "found"),
    [
        (0, "RACECHECK SUMMARY: 9 hazards displayed", 9),
        (1, "RACECHECK SUMMARY: 0", None),
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
