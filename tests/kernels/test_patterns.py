"""The kernels of the guide to patterns run, agree with PyTorch, and become what it says of them."""

import pytest
import torch

from scripts.lectures import EXAMPLES
from tests.kernels.test_guides import programs, run

CODE = "\n\n".join(programs("patterns.md"))


@pytest.fixture(scope="module")
def patterns(load, tmp_path_factory):
    """What the guide to patterns defines, as a module."""
    script = tmp_path_factory.mktemp("patterns") / "patterns.py"
    script.write_text(CODE, encoding="utf-8")
    return load(script)


def test_patterns_swiglu(patterns, device):
    for n in (1, 1023, 1024, 3001):
        gate, up = torch.randn(2, n, device=device).half()
        wanted = torch.nn.functional.silu(gate.double()) * up.double()
        assert torch.allclose(patterns.swiglu(gate, up).double(), wanted, rtol=2e-3, atol=1e-6)


def test_patterns_unit_rows(patterns, device):
    for shape in ((1, 1), (37, 130), (300, 1000), (3, 5000)):
        x = torch.randn(shape, device=device) + 1
        assert torch.allclose(patterns.unit_rows(x), torch.nn.functional.normalize(x))


@pytest.mark.parametrize("name", ["logsumexp", "split_logsumexp"])
def test_patterns_logsumexp(patterns, device, name):
    for n_cols in (1, 4096, 9001):
        x = torch.randn(4, n_cols, device=device) + 200
        x[1] -= torch.linspace(400, 0, n_cols, device=device)  # each block raises the maximum
        x[2, : n_cols // 2] = -torch.inf
        x[3, n_cols // 2] = torch.inf
        lse = getattr(patterns, name)(x)
        assert torch.allclose(lse.double(), x.double().logsumexp(1), rtol=1e-6)


def test_patterns_matmul(patterns, device):
    for M, N, K in ((1, 1, 1), (130, 200, 70), (257, 300, 129)):
        a, b = (torch.randn(shape, device=device).half() for shape in ((M, K), (K, N)))
        wanted = a.double() @ b.double()
        assert torch.allclose(patterns.matmul(a, b).double(), wanted, rtol=1e-3, atol=2e-2)


def test_patterns_column_sums(patterns, device):
    for shape in ((1, 1), (67, 300), (500, 129)):
        x = torch.randn(shape, device=device)
        assert torch.allclose(patterns.column_sums(x), x.sum(0), atol=1e-4)
        assert torch.equal(patterns.column_sums(x), patterns.column_sums(x))


COMPILE = """
from compiler import compile_kernel

wide, tile = {"BLOCK": 4096, "num_warps": 8}, {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}
sizes = {"M": "i32:16", "N": "i32:16", "K": "i32:16"}
for kernel, arguments in (
    (swiglu_kernel, {"n": "i32:16", "BLOCK": 1024}),
    (unit_rows_kernel, {"n_rows": "i32", "n_cols": "i32:16", "ROWS": 2, "BLOCK": 1024}),
    (logsumexp_kernel, {"n_cols": "i32:16"} | wide),
    (matmul_kernel, sizes | tile | {"GROUP_M": 8, "num_warps": 8}),
    (column_sums_kernel, {"n_rows": "i32", "n_cols": "i32:16"} | wide),
    (part_kernel, {"n_cols": "i32:16"} | wide),
):
    names = (name for name in kernel.arg_names if name.endswith("_ptr"))
    arguments |= dict.fromkeys(names, "*bf16:16")
    compiled = compile_kernel(kernel, "sm_90", **arguments)
    assert compiled.resources["spills"] == 0, kernel.__name__
    features = ("v4.b32", "ex2.approx", "wgmma.mma_async", "cp.async")
    print(kernel.__name__, *(f for f in features if f in compiled.stages["ptx"]))
"""


@pytest.mark.interpreter  # a GPU's tests compile them anyway
def test_patterns_compile_for_hopper(tmp_path):
    """Each kernel becomes what the guide says of its shape, and none spills."""
    code = CODE + COMPILE
    path = str(EXAMPLES / "foundations")
    result = run(code, tmp_path, TRITON_INTERPRET="0", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "swiglu_kernel v4.b32 ex2.approx",
        "unit_rows_kernel v4.b32",
        "logsumexp_kernel v4.b32 ex2.approx",
        "matmul_kernel v4.b32 wgmma.mma_async cp.async",
        "column_sums_kernel v4.b32 cp.async",
        "part_kernel v4.b32 ex2.approx",
    ]


def test_patterns_estimates(patterns):
    # a copy of 4 GB at 4 TB/s; a product of 8 TFLOP at 800 TFLOP/s
    assert patterns.floor_ms(4e9, 1e9, 4, 800) == pytest.approx(1)
    assert patterns.floor_ms(4e9, 8e12, 4, 800) == pytest.approx(10)
    assert patterns.step_gain(0.5, 2) == pytest.approx(4 / 3)
    assert patterns.step_gain(0.1, 1e9) == pytest.approx(10 / 9)


def test_patterns_profile(patterns, capsys):
    x = torch.randn(64, 32)
    patterns.by_time(lambda: torch.softmax(x, dim=1))
    printed = capsys.readouterr().out
    assert "aten::softmax" in printed and "[64, 32]" in printed
