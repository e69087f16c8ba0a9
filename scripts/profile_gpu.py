"""Profiles rows of lectures' benchmarks with NVIDIA's ncu: how busy each unit of the GPU was.

    python scripts/profile_gpu.py                   lectures whose profile is missing or stale
    python scripts/profile_gpu.py hopper_attention  only the named ones, profiled anew in any case

Which rows: `PROFILED`, below. Writes docs/recorded/<gpu>/<part>/<stem>.profile.json when all rows
of a lecture were seen, so a run that fails leaves the old file whole. Needs torch, triton, and ncu
of Nsight Compute, which comes with the CUDA toolkit.
"""

# not named profile.py, which would hide the standard library's module of that name from torch

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from glob import glob
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import lectures
from scripts.record import LectureError, environment, named, write_atomically

_RUNGS = ("triton_one", "triton_two", "triton_overlap", "triton")
# benchmark, what its rows have in common, providers
PROFILED = {
    "attention/hopper_attention": [
        (f"hopper_{kind}", {"seq_len": 4096}, _RUNGS)
        for kind in ("d128_full", "d128_causal", "d64_full")
    ],
    "attention/flash_attention": [
        ("attention_d128_full", {"seq_len": 4096}, ("triton", "sdpa_cudnn")),
    ],
    "attention/flash_decoding": [("decoding_b1", {"seq_len": 8192}, ("triton", "triton_read"))],
    "fusion/elementwise": [
        ("forward_bfloat16", {"op": "bias_gelu", "length": length}, ("triton",))
        for length in ("even", "odd")
    ],
    "fusion/layer_norm": [
        ("layer_norm_forward", {"n_cols": 1000}, ("triton", "torch_compile")),
        ("layer_norm_forward", {"n_cols": 1024}, ("triton",)),
    ],
    "fusion/reductions": [
        ("row_max", {"n_cols": 256}, ("triton", "triton_read")),
        ("logsumexp", {"n_cols": 256}, ("triton", "triton_read")),
    ],
}

# "elapsed" counts all cycles of a launch, "active" those in which an SM has a program
METRICS = {
    "ms": "gpu__time_duration.sum",
    "clock_ghz": "gpc__cycles_elapsed.avg.per_second",
    # percent of cycles in which an SM has a program
    "busy": "sm__cycles_active.avg.pct_of_peak_sustained_elapsed",
    # percent of what the unit can do: tensor cores, exponentials and the like, multiply-adds,
    # whole numbers and comparisons, instructions issued, L2, HBM
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "xu": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_elapsed",
    "fma": "sm__pipe_fma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "alu": "sm__pipe_alu_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "issue": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
    "l2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block",
}
# ncu's base units, and what makes ours of them: milliseconds, GHz
UNITS = {"ns": 1e-6, "hz": 1e-9, "%": 1, "register/thread": 1, "byte/block": 1}
OPTIONS = (
    *("--profile-from-start", "off", "--target-processes", "all", "--replay-mode", "kernel"),
    # at the clocks that the GPU chooses, as in a recording
    *("--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"),
)
PLACES = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda/bin/ncu")
SECONDS = 600
LAUNCH = "import sys; from scripts.profile_gpu import launch; launch(*sys.argv[1:])"
# a kernel of torch, launched ahead of each row: where one row ends and the next begins
MARK = "spin_kernel"
TIMING = dict.fromkeys(("ms", "ms_p20", "ms_p80", "ms_hot", "host_us", "peak_bytes"), 1.0)


def stand_in(visit: Callable[[int, Callable], None]) -> Callable:
    """A `measure` that times nothing: `visit` gets every function, with its number in order.

    The number is in the timing, and so in the row that a benchmark makes of it.
    """
    numbers = itertools.count()

    def measure(fns, **options):
        timings = {}
        for provider, fn in fns.items():
            timings[provider] = TIMING | {"number": next(numbers)}
            visit(timings[provider]["number"], fn)
        return timings

    return measure


def plan(name: str, bench: Callable, choices: list) -> dict[int, dict]:
    """The chosen rows by the number of their function, from a run of `bench` that launches nothing.

    Raises:
        LectureError: Not exactly one row is what was chosen.
    """
    wanted = {benchmark for benchmark, _, _ in choices}
    benchmarks = {}
    for benchmark in bench(stand_in(lambda number, fn: None)):
        benchmarks[benchmark["name"]] = benchmark
        if wanted <= benchmarks.keys():
            break
    planned = {}
    for chosen, where, providers in choices:
        benchmark = benchmarks.get(chosen, {"rows": []})
        for provider in providers:
            row = {"provider": provider, **where}
            found = [r for r in benchmark["rows"] if "number" in r and row.items() <= r.items()]
            if len(found) != 1:
                problem = f"{len(found)} rows of {chosen} are {_words(row)}"
                raise LectureError(f"{name}: {problem}: mend PROFILED in scripts/profile_gpu.py")
            about = {key: benchmark[key] for key in ("name", "title", "x")}
            planned[found[0]["number"]] = about | {"row": row}
    return planned


def _words(row: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items())


def launch(script: str, choices: str, file: str) -> None:
    """Launches the chosen rows of a lecture for ncu, in a process of its own.

    Args:
        script: The lecture.
        choices: Its entry in `PROFILED`, as JSON.
        file: Gets the rows as JSON, in the order of their launches.
    """
    import torch

    name = lectures.lecture_name(Path(script))
    spec = importlib.util.spec_from_file_location("lecture", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    launched = []

    def visit(number: int, fn: Callable) -> None:
        if number not in planned:
            return
        about = planned.pop(number)
        what = f"{about['name']}, {_words(about['row'])}"
        print(f"{name}: {what}", file=sys.stderr, flush=True)
        with named(Path(script), what):
            for _ in range(3):  # compiles, tunes, warms up
                fn()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            torch.cuda._sleep(1)
            fn()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        launched.append(about)

    try:
        planned = plan(name, module.bench, json.loads(choices))
        for _ in module.bench(stand_in(visit)):
            if not planned:
                break
    except LectureError as error:
        sys.exit(str(error))
    Path(file).write_text(json.dumps(launched), encoding="utf-8")


def read_log(log: str) -> list[dict]:
    """What ncu said of each row: the figures of its longest kernel, and the time of all of them.

    Raises:
        ValueError: ncu gave no number for a metric, or one in a unit that is not known.
    """
    lines = [line for line in log.splitlines() if line.startswith('"')]
    units, *kernels = csv.DictReader(lines) if lines else ({},)
    rows: list[list[dict]] = [[]]
    for kernel in kernels:
        if MARK in kernel["Kernel Name"]:
            rows.append([])
            continue
        figures = {}
        for figure, metric in METRICS.items():
            value, unit = kernel.get(metric, "nothing"), units.get(metric)
            try:
                figures[figure] = float(value.replace(",", "")) * UNITS[unit]
            except (ValueError, KeyError):
                told = f"ncu says {value!r}, in {unit!r}, for {metric}: mend METRICS or UNITS"
                raise ValueError(f"{told} in scripts/profile_gpu.py") from None
        rows[-1].append({"kernel": kernel["Kernel Name"], "kernels": 1} | figures)
    return [_together(kernels) for kernels in rows[1:] if kernels]


def _together(kernels: list[dict]) -> dict:
    longest = max(kernels, key=lambda kernel: kernel["ms"])
    return longest | {"kernels": len(kernels), "ms": sum(kernel["ms"] for kernel in kernels)}


def profile(script: Path, choices: list, ncu: str) -> list[dict]:
    """The benchmarks of a lecture with the chosen rows alone, as ncu saw them.

    Raises:
        LectureError: The lecture or ncu failed; the message says what to do.
    """
    name = lectures.lecture_name(script)
    with tempfile.TemporaryDirectory() as folder:
        log, file = Path(folder) / "ncu.csv", Path(folder) / "rows.json"
        command = [ncu, *OPTIONS, "--metrics", ",".join(METRICS.values()), "--log-file", str(log)]
        command += [sys.executable, "-c", LAUNCH, str(script), json.dumps(choices), str(file)]
        try:
            run = subprocess.run(command, cwd=lectures.ROOT, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise LectureError(f"{name}: stopped after {SECONDS} s") from None
        said = log.read_text(encoding="utf-8") if log.exists() else ""
        if run.returncode or not file.exists():
            errors = " ".join(re.findall(r"(?m)^==ERROR== .*", said))
            problem = f"{name}: ncu ended with status {run.returncode}, see above. {errors}"
            if "ERR_NVGPUCTRPERM" in said:
                problem += " Run it as root, or let users read the counters, as the address says."
            raise LectureError(problem.strip())
        launched = json.loads(file.read_text(encoding="utf-8"))
    try:
        seen = read_log(said)
    except ValueError as error:
        raise LectureError(f"{name}: {error}") from None
    if len(seen) != len(launched):
        rows = "; ".join(f"{about['name']}, {_words(about['row'])}" for about in launched)
        problem = f"{len(launched)} rows were launched, ncu saw kernels of {len(seen)}"
        raise LectureError(f"{name}: {problem}; each must launch one or more: {rows}")
    benchmarks: dict[str, dict] = {}
    for about, figures in zip(launched, seen, strict=True):
        row = about.pop("row")
        benchmark = benchmarks.setdefault(about["name"], about | {"ceiling": None, "rows": []})
        benchmark["rows"].append(row | figures)
    return list(benchmarks.values())


def find_ncu(given: str | None) -> str:
    """Where ncu is: as given, on the PATH, or where its packages put it, the newest.

    Raises:
        LectureError: There is none.
    """
    places = [path for place in PLACES for path in sorted(glob(place))]
    candidates = [given] if given else ["ncu", *reversed(places)]
    found = next(filter(None, map(shutil.which, candidates)), None)
    if not found:
        where = given or f"ncu on the PATH, as {' or '.join(PLACES)}"
        raise LectureError(f"no {where}: install Nsight Compute, or name its ncu: --ncu PATH")
    return found


def write_profile(script: Path, machine: dict, ncu: str, path: Path) -> int:
    """Profiles a lecture, writes the file, and returns the number of its rows.

    Raises:
        LectureError: The lecture, ncu, or the choice of rows failed; nothing is written.
    """
    name = lectures.lecture_name(script)
    if name not in PROFILED:
        known = ", ".join(PROFILED)
        raise LectureError(f"{name}: PROFILED in scripts/profile_gpu.py has no rows of it: {known}")
    benchmarks = profile(script, PROFILED[name], ncu)
    made = {
        "schema": lectures.SCHEMA,
        "source": f"examples/{name}.py",
        "code_sha256": lectures.script_sha256(script.read_text(encoding="utf-8")),
        "environment": machine,
        "benchmarks": benchmarks,
    }
    write_atomically(path, made)
    return sum(len(benchmark["rows"]) for benchmark in benchmarks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lectures", nargs="*", help="such as attention/hopper_attention")
    parser.add_argument("--ncu", help="path of ncu, if it is not on the PATH")
    options = parser.parse_args()
    try:
        ncu = find_ncu(options.ncu)
        version = subprocess.run([ncu, "--version"], capture_output=True, text=True, check=True)
        machine = environment() | {"ncu": re.search(r"Version (\S+)", version.stdout)[1]}
        scripts = [lectures.find_lecture(name) for name in options.lectures or PROFILED]
    except (LectureError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    gpu, failed = lectures.gpu_slug(machine["gpu"]), 0
    for script in scripts:
        name, path = lectures.lecture_name(script), lectures.profile_path(script, gpu)
        if not options.lectures and lectures.is_fresh(path, script, "profile_gpu"):
            print(f"{name}: its profile is fresh; name it to profile it anew")
            continue
        try:
            print(f"{name}: {write_profile(script, machine, ncu, path)} rows profiled")
        except LectureError as error:
            print(f"FAILED {error}\n(the old profile, if any, is untouched)", file=sys.stderr)
            failed += 1
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
