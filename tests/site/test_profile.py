"""The profiler's script without a GPU or ncu: stand-ins for torch and ncu, a small lecture."""

import json
import shutil
import subprocess
import sys

import pytest

from scripts import lectures, profile_gpu
from scripts.record import LectureError

MACHINE = {"gpu": "NVIDIA Test 1", "torch": "2", "triton": "3", "interpreter": False}
MACHINE |= {"driver": "1", "date": "2026-11-21", "ncu": "2025.3"}
# two providers at two sizes; the second size of "torch" launches two kernels
LECTURE = """# %%
import functools

import torch


def bench(measure):
    yield {"name": "other", "title": "Other", "x": "n", "rows": [
        {"provider": p, "n": 1, **t} for p, t in measure({"triton": int}, host=True).items()]}
    rows = []
    for n in (512, 4096):
        fns = {"triton": functools.partial(torch.launch, f"ours_{n}")}
        fns["torch"] = lambda n=n: [torch.launch(f"theirs_{n}_{i}") for i in range(n // 2048 + 1)]
        for provider, timing in measure(fns, hot=True).items():
            assert timing["ms"] and timing["ms_hot"]
            rows.append({"provider": provider, "n": n, "bytes": 8, **timing})
    yield {"name": "op", "title": "Op", "x": "n", "rows": rows}
    raise RuntimeError("no row behind this one was asked for")
"""
CHOICES = [("op", {"n": 4096}, ("triton", "torch")), ("op", {"n": 512}, ("triton",))]
# what torch has to do with it: kernels go to a file while the profiler listens
TORCH = """
import os, types
listens = False
def launch(name):
    if listens:
        print(name, file=open(os.environ["KERNELS"], "a"))
def switch(on):
    global listens
    listens = on
cuda = types.SimpleNamespace(synchronize=lambda: None)
cuda._sleep = lambda cycles: launch("at::spin_kernel(long)")
cuda.profiler = types.SimpleNamespace(start=lambda: switch(True), stop=lambda: switch(False))
"""
# ncu's options; runs the program and writes its log: a kernel's n-th metric is its number + n
NCU = """#!{python}
import os, subprocess, sys
options = sys.argv[1:]
program = options[options.index({python!r}):]
metrics = options[options.index("--metrics") + 1].split(",")
log = open(options[options.index("--log-file") + 1], "w")
assert options[options.index("--profile-from-start") + 1] == "off"
status = subprocess.run(program).returncode
if status:
    sys.exit(print("==ERROR== The application returned an error code (1).", file=log) or status)
units = {{"gpu__time_duration.sum": "ns", "gpc__cycles_elapsed.avg.per_second": "hz"}}
units |= {{metrics[-2]: "register/thread", metrics[-1]: "byte/block"}}
kernels = open(os.environ["KERNELS"]).read().splitlines()
print("==PROF== Connected to process 1", file=log)
def line(*cells):
    print(",".join(f'"{{cell}}"' for cell in cells), file=log)
line("ID", "Kernel Name", *metrics)
line("", "", *(units.get(metric, "%") for metric in metrics))
for i, kernel in enumerate(kernels):
    line(i, kernel, f"{{i:,}},000,000", "1,500,000,000.25", *range(i, i + len(metrics) - 2))
print("==PROF== Disconnected from process 1", file=log)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A lecture, its old profile, and an `ncu` and a torch that need no GPU."""
    script = tmp_path / "examples/part/one.py"
    script.parent.mkdir(parents=True)
    script.write_text(LECTURE)
    path = lectures.profile_path(script, "nvidia-test-1", tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("old")
    (tmp_path / "ncu").write_text(NCU.format(python=sys.executable))
    (tmp_path / "ncu").chmod(0o755)
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs/torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    monkeypatch.setenv("KERNELS", str(tmp_path / "kernels"))
    monkeypatch.setattr(profile_gpu, "PROFILED", {"part/one": CHOICES})
    return tmp_path


def write(root):
    script = root / "examples/part/one.py"
    path = lectures.profile_path(script, "nvidia-test-1", root)
    return profile_gpu.write_profile(script, MACHINE, str(root / "ncu"), path), path


def test_chosen_rows_are_launched_and_written(root):
    count, path = write(root)
    made = json.loads(path.read_text())
    script = root / "examples/part/one.py"
    assert count == 3 and lectures.is_fresh(path, script, "profile_gpu")
    assert made["environment"]["ncu"] == "2025.3" and made["source"] == "examples/part/one.py"
    (benchmark,) = made["benchmarks"]
    assert {key: benchmark[key] for key in ("name", "title", "x")} == {
        "name": "op", "title": "Op", "x": "n"
    }  # fmt: skip
    # in the order in which bench measures them, each kernel with a mark before it
    first, second, third = benchmark["rows"]
    assert first["provider"] == "triton" and first["n"] == 512 and first["kernel"] == "ours_512"
    assert second["kernel"] == "ours_4096" and second["ms"] == 3 and second["clock_ghz"] == 1.5
    # kernels 5, 6 and 7: the time of all, the rest of the longest
    assert third["kernels"] == 3 and third["kernel"] == "theirs_4096_2"
    assert third["ms"] == 5 + 6 + 7 and third["busy"] == 7
    assert set(first) == {"provider", "n", "kernel", "kernels", *profile_gpu.METRICS}


@pytest.mark.parametrize(
    ("choices", "old", "new", "messages"),
    [
        ([("op", {"n": 7}, ("triton",))], "", "", ["0 rows of op are provider triton, n 7"]),
        ([("op", {}, ("triton",))], "", "", ["2 rows of op are", "mend PROFILED"]),
        ([("off", {}, ("triton",))], "raise ", "return #", ["part/one: 0 rows of off are"]),
        (CHOICES, "torch.launch, f", "1 / 0, f", ["ZeroDivisionError"]),
        (CHOICES, '"triton": functools', '"triton": lambda: 1 / 0 or functools', [
            "op, provider triton, n 512, line 12: ZeroDivisionError"]),
    ],
)  # fmt: skip
def test_a_run_that_fails_says_where_and_leaves_the_old_file(
    root, monkeypatch, capfd, choices, old, new, messages
):
    monkeypatch.setattr(profile_gpu, "PROFILED", {"part/one": choices})
    script = root / "examples/part/one.py"
    assert old in LECTURE
    script.write_text(LECTURE.replace(old, new))
    with pytest.raises(LectureError, match="part/one: ncu ended with status 1, see above. ==ERROR"):
        write(root)
    said = capfd.readouterr().err
    assert all(message in said for message in messages), said
    path = lectures.profile_path(script, "nvidia-test-1", root)
    assert path.read_text() == "old" and not list(path.parent.glob("*.part"))


def test_a_row_without_a_kernel_is_said(root):
    script = root / "examples/part/one.py"
    script.write_text(LECTURE.replace("torch.launch, f", "str, f"))
    with pytest.raises(LectureError, match="3 rows were launched, ncu saw kernels of 1; .*n 4096"):
        write(root)


def test_a_lecture_that_is_not_listed_is_refused(root, monkeypatch):
    monkeypatch.setattr(profile_gpu, "PROFILED", {"part/two": []})
    with pytest.raises(LectureError, match="part/one: PROFILED in .* has no rows of it: part/two"):
        write(root)


# as ncu 2025.3 writes it, some columns left out
LOG = """==WARNING== Note: Running with unmodified GPU clocks. If not controlled otherwise, [...]
==PROF== Connected to process 1396 (/usr/bin/python3.12)
"ID","Kernel Name","Block Size","CC",{names}
"","","","",{units}
"0","at::cuda::<unnamed>::spin_kernel(long)","(1, 1, 1)","9.0",{marks}
"1","hopper_attention_kernel","(384, 1, 1)","9.0",{values}
==PROF== Disconnected from process 1396
"""
KERNEL = {
    "gpu__time_duration.sum": ("ns", "1,025,216"),
    "gpc__cycles_elapsed.avg.per_second": ("hz", "1,775,171,402.90"),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": ("%", "55.88"),
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_elapsed": ("%", "28.84"),
    "launch__registers_per_thread": ("register/thread", "168"),
    "launch__shared_mem_per_block": ("byte/block", "230,692"),
}


def log(kernel: dict) -> str:
    kernel = {metric: ("%", "12.34") for metric in profile_gpu.METRICS.values()} | kernel
    columns = list(kernel), *zip(*kernel.values(), strict=True)
    names, units, values = (",".join(f'"{cell}"' for cell in column) for column in columns)
    return LOG.format(names=names, units=units, values=values, marks=values)


def test_what_ncu_writes_is_read():
    (row,) = profile_gpu.read_log(log(KERNEL))
    assert row["ms"] == pytest.approx(1.025216) and row["clock_ghz"] == pytest.approx(1.7751714)
    assert (row["tensor"], row["xu"], row["busy"]) == (55.88, 28.84, 12.34)
    assert (row["registers"], row["shared_bytes"]) == (168, 230692)
    assert row["kernel"] == "hopper_attention_kernel"
    assert profile_gpu.read_log("==ERROR== Failed") == []


@pytest.mark.parametrize("said", [("%", "n/a"), ("furlong", "1")])
def test_what_ncu_does_not_know_is_named(said):
    metric = profile_gpu.METRICS["xu"]
    with pytest.raises(ValueError, match=f"{said[1]}.*{said[0]}.*{metric}: mend METRICS"):
        profile_gpu.read_log(log(KERNEL | {metric: said}))


def test_ncu_is_found_or_missed(root, monkeypatch):
    monkeypatch.setattr(profile_gpu, "PLACES", (str(root / "version-*/ncu"),))
    monkeypatch.setenv("PATH", str(root / "none"))
    with pytest.raises(LectureError, match="no ncu on the PATH, as .*: install Nsight Compute"):
        profile_gpu.find_ncu(None)
    with pytest.raises(LectureError, match="no here/ncu: "):
        profile_gpu.find_ncu("here/ncu")
    for version in (1, 2):
        (root / f"version-{version}").mkdir()
        shutil.copy(root / "ncu", root / f"version-{version}/ncu")
    assert profile_gpu.find_ncu(None) == str(root / "version-2/ncu")
    monkeypatch.setenv("PATH", str(root))
    assert profile_gpu.find_ncu(None) == str(root / "ncu")


def test_rows_of_the_tree_are_chosen_from_lectures_that_there_are():
    for name in profile_gpu.PROFILED:
        assert lectures.lecture_name(lectures.find_lecture(name)) == name


def test_the_script_hides_no_module_of_the_standard_library():
    # cProfile, which torch imports, imports `profile`; scripts/ is first on a script's path
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, 'scripts'); import cProfile"]
    subprocess.run(command, cwd=lectures.ROOT, check=True)
