"""flash_attention, differentiable: gradients against float64, what compiles, what is refused.

Without a GPU the kernels run in the interpreter; every variant is compiled for sm_90 as well, by
this file run as a script, and its machine code is looked at.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

HEAD_DIMS = [32, 64, 128, 256]
SHARED_LIMIT = 227 << 10  # bytes that a program may have on compute capability 9.0
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
both_kinds = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])

# head_dim, causal, queries, keys
VARIANTS = [
    (head_dim, causal, *rows)
    for head_dim, causal, rows in itertools.product(
        HEAD_DIMS, (False, True), ((1024, 1024), (300, 1111))
    )
]


def facts_of(kernel, ptxas: str) -> dict:
    """Registers, spills and shared memory of a compiled kernel, and what ptxas warned of."""
    ptx = kernel.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", "--gpu-name=sm_90a", source, "-o", source.with_suffix(".cubin")]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": kernel.metadata.name,
        "shared": kernel.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "loads": len(re.findall(r"cp\.async\.bulk\.tensor\.4d\.shared", ptx)),
        "atomics": len(re.findall(r"\b(atom|red)\.", ptx)),
        "registers": int(re.search(r"Used (\d+) registers", told)[1]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", told))),
        "serialized": "serialized" in told,
    }


def compile_all(variants=VARIANTS, tiles=None) -> list:
    """Compiles each variant's three kernels for sm_90 without a GPU."""
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
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import flash_attention_backward as lecture

    facts, ptxas = [], triton.knobs.nvidia.ptxas.path

    class Compiled:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def compile_(*args, **options):
                found[-1].append(self.kernel.warmup(*args, grid=grid, **options))

            return compile_

    found = []
    names = ["flash_attention_kernel", "flash_attention_dq_kernel", "flash_attention_dkdv_kernel"]
    for name in names:
        setattr(lecture, name, Compiled(getattr(lecture, name)))
    for head_dim, causal, queries, keys in variants:
        found.append([])
        q = torch.empty(2, 4, queries, head_dim, dtype=torch.bfloat16)
        k, lse = q.new_empty(2, 4, keys, head_dim), torch.empty(2, 4, -(-queries // 128) * 128)
        lecture.flash_attention_forward(q, k, k, q, lse, causal, 0.1)
        lecture.flash_attention_backward(q, q, k, k, q, lse, q, k, k, causal, 0.1, tiles)
        facts.append([facts_of(kernel, ptxas) for kernel in found[-1]])
    return facts


if __name__ == "__main__":
    print(json.dumps(compile_all()))
