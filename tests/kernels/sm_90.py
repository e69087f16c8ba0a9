"""Kernels compiled for compute capability 9.0 on a machine without a GPU, and what became of them.

A test file that wants it runs as a script too, without the interpreter, in which nothing compiles:
there it calls `pretend`, lets kernels warm up, and prints what `facts` says of them as JSON.
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SHARED_LIMIT = 227 << 10  # bytes that a program may have
shared_folder = Path()  # of all workers of a run; conftest.py sets it


def pretend() -> None:
    """From now on Triton compiles for a GPU that is not there."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device=0):
            return 0

    triton.runtime.driver.set_active(Driver())


def launched(lecture, *names: str) -> list:
    """A list that grows by a compiled kernel with each launch of the lecture's kernels so named."""
    found = []

    class Kernel:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: found.append(
                self.kernel.warmup(*args, grid=grid, **options)
            )

    for name in names:
        setattr(lecture, name, Kernel(getattr(lecture, name)))
    return found


def told_by(tool, options: list[str], source: bytes) -> str:
    """What a tool of the compiler prints of a file; kept beside the kernels in Triton's cache."""
    from triton.runtime.cache import get_cache_manager

    command = [tool.path, *options]
    key = hashlib.sha256(" ".join([*command, tool.version, ""]).encode() + source).hexdigest()
    cache = get_cache_manager(key)
    if kept := cache.get_file("told.txt"):
        return Path(kept).read_text()
    with tempfile.NamedTemporaryFile() as file:
        file.write(source)
        file.flush()
        ran = subprocess.run([*command, file.name], capture_output=True, text=True, check=True)
    cache.put(ran.stdout + ran.stderr, "told.txt", binary=False)
    return ran.stdout + ran.stderr


def facts(kernel) -> dict:
    """Resources and instructions of a compiled kernel, and what ptxas warned of."""
    import triton

    ptx, options = kernel.asm["ptx"], ["-v", "--gpu-name=sm_90a", "-o", os.devnull]
    told = told_by(triton.knobs.nvidia.ptxas, options, ptx.encode())
    return {
        "threads": 32 * kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "loads": len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.shared", ptx)),
        "stores": len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.global", ptx)),
        "copies": re.findall(r"cp\.async\.c[ag][^;]*?\], (0x[0-9a-f]+)", ptx),  # bytes of each
        "masked": len(re.findall(r"@%p\d+ (?:ld|st)\.global", ptx)),
        "atomics": len(re.findall(r"\b(atom|red)\.", ptx)),
        "setmaxnreg": ptx.count("setmaxnreg"),
        "early": "griddepcontrol" in ptx,
        "registers": int(re.search(r"Used (\d+) registers", told)[1]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", told))),
        "serialized": "serialized" in told,
    }


def run_as_script(test: str) -> list:
    """What a test file prints as a script; workers that test side by side run it once."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    printed = shared_folder / f"{Path(test).stem}.json"
    with printed.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            command = [sys.executable, test]
            made = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
            assert made.returncode == 0, made.stderr
            printed.write_text(made.stdout)
    return json.loads(printed.read_text())
