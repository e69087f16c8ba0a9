"""Sums, maxima and scans against float64: widths, layouts, types and values; gradients; errors."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.sm_90 import pretend, run_as_script

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# the interpreter rounds to bfloat16 towards zero
ROUNDING = {torch.float32: 0.0, torch.float16: 6e-4, torch.bfloat16: 8e-3}
WIDTHS = [1, 2, 7, 8, 9, 127, 128, 129, 1000, 1823, 2049, 4097]
SHAPES = [(1, 1), (3, 7), (33, 16), (5, 129), (129, 5), (40, 520), (2, 1823)]


def randn(*shape, device, dtype=torch.float32):
    return torch.randn(*shape, device=device).to(dtype)


def assert_sum(got, x, dim):
    want, size = x.double().sum(dim), x.double().abs().sum(dim)
    assert got.dtype == x.dtype and got.shape == want.shape
    error = (got.double() - want).abs() - (1e-6 * size + ROUNDING[x.dtype] * want.abs())
    assert (error <= 0).all()


def assert_max(got, x):
    values, columns = got
    want = x.amax(-1)
    first = ((x == want[..., None]) | x.isnan()).int().argmax(-1)
    assert values.dtype == x.dtype and columns.dtype == torch.int64
    assert torch.equal(columns, first)
    torch.testing.assert_close(values, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("n_cols", [1, 100, 1000, 1024])
def test_the_kernel_that_the_page_shows(shown, device, n_cols):
    x, out = randn(5, n_cols + 3, device=device)[:, :n_cols], torch.empty(5, device=device)
    kernel, block = shown("plain_row_sum_kernel"), triton.next_power_of_2(n_cols)
    kernel[(5,)](x, out, x.stride(0), n_cols, BLOCK=block)
    assert_sum(out, x, -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_row_sum_widths(lecture, device, n_cols, dtype):
    x = randn(3, n_cols, device=device, dtype=dtype)
    assert_sum(lecture.reduce_sum(x, -1), x, -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_column_and_full_sum(lecture, device, shape, dtype):
    x = randn(*shape, device=device, dtype=dtype)
    assert_sum(lecture.reduce_sum(x, 0), x, 0)
    assert_sum(lecture.reduce_sum(x), x, None)


@pytest.mark.parametrize("n", [0, 1, 15, 17, 4096, 4097, 8191, 40_000, 1_100_003])
def test_full_sum_of_any_length(lecture, device, n):
    x = randn(n, device=device)
    assert_sum(lecture.reduce_sum(x), x, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 2, 9, 129, 1823])
def test_row_max(lecture, device, n_cols, dtype):
    x = randn(3, n_cols, device=device, dtype=dtype)
    assert_max(lecture.row_max(x), x)
    assert_max(lecture.row_max(-x.abs()), -x.abs())


@pytest.mark.parametrize("n_cols", [1, 5, 129, 260])
def test_row_max_special_values(lecture, device, n_cols):
    x = torch.zeros(6, n_cols, device=device)
    x[0] = -torch.inf
    x[1, n_cols // 2] = torch.nan
    x[2, n_cols // 3 :] = torch.nan
    x[3, n_cols // 3 :] = torch.inf
    x[4, n_cols - 1] = 1e-40
    assert_max(lecture.row_max(x), x)


def layouts(x):
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 5), 1e30, device=x.device)
    for left in (0, 1, 3):
        view = wide[1:-1, left : left + x.shape[1]]
        yield view.copy_(x)
        wide.fill_(1e30)
    yield x.t().contiguous().t()
    yield torch.stack([x, x], -1)[..., 0]
    yield x[:1].expand(7, -1)
    yield x[::2]


def test_layouts(lecture, device):
    for view in layouts(randn(9, 70, device=device)):
        for dim in (-1, 0, None):
            assert_sum(lecture.reduce_sum(view, dim), view, dim)
        assert_max(lecture.row_max(view), view)
        torch.testing.assert_close(lecture.scan(view), view.cumsum(-1))


def test_more_dimensions(lecture, device):
    x = randn(2, 3, 5, 17, device=device)
    assert_sum(lecture.reduce_sum(x, -1), x, -1)
    assert_sum(lecture.reduce_sum(x.permute(3, 1, 0, 2), -1), x.permute(3, 1, 0, 2), -1)
    assert_max(lecture.row_max(x), x)
    torch.testing.assert_close(lecture.scan(x), x.cumsum(-1))


def test_empty(lecture, device):
    x = torch.empty(0, 5, device=device)
    for view in (x, x.t()):
        for dim in (-1, 0, None):
            assert torch.equal(lecture.reduce_sum(view, dim), view.sum(dim))
        assert lecture.scan(view).shape == view.shape
        inputs = [torch.empty_like(view, requires_grad=True) for _ in range(2)]
        grads = torch.autograd.grad(lecture.scan(*inputs).sum(), inputs)
        assert [grad.shape for grad in grads] == [view.shape] * 2
    assert [out.shape for out in lecture.row_max(x)] == [(0,), (0,)]


def test_columns_of_rows_that_lie_far_apart(lecture, device):
    # so wide that a program takes all rows; what lies between them is never touched
    x = torch.empty(40, 2**26, dtype=torch.bfloat16, device=device)[:, 8:140_008]
    x.copy_(randn(40, 140_000, device=device))
    assert_sum(lecture.reduce_sum(x, 0), x, 0)


def loads_before_additions() -> list[int]:
    """Compiles bfloat16 column sums for sm_90 without a GPU: how many loads come before a sum."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/fusion"))
    from reductions import column_sum_kernel

    x, out, found = torch.empty(64, dtype=torch.bfloat16), torch.empty(64), []
    for n_cols in (512, 5000, 8192):
        sizes, blocks = (n_cols, 2**29 // n_cols, n_cols, 2080), (32, 512, 8)
        kernel = column_sum_kernel.warmup(x, out, *sizes, *blocks, num_warps=8, grid=(1,))
        found.append(len(re.findall(r"LDG\.E\.128", kernel.asm["sass"].partition("FADD")[0])))
    return found


@pytest.mark.interpreter  # a GPU's tests compile and run it
def test_loads_are_under_way_together():
    # one that waits for the sum of the one before took 1.8 times as long
    assert min(run_as_script(__file__)) >= 6


@settings(max_examples=15, deadline=None)
@given(
    n_rows=st.integers(1, 20),
    n_cols=st.integers(1, 300),
    left=st.integers(0, 9),
    top=st.integers(0, 2),
)
def test_any_slice(lecture, device, n_rows, n_cols, left, top):
    x = torch.full((n_rows + top, n_cols + left), 1e30, device=device)[top:, left:]
    x.copy_(randn(n_rows, n_cols, device=device))
    for dim in (-1, 0, None):
        assert_sum(lecture.reduce_sum(x, dim), x, dim)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 2.0, torch.inf, -torch.inf, torch.nan]), min_size=1))
def test_row_max_of_any_row(lecture, device, values):
    x = torch.tensor([values], device=device)
    assert_max(lecture.row_max(x), x)


def test_the_first_element_moves_the_boundary(lecture, device):
    x = randn(600, device=device, dtype=torch.float16)
    for start in range(9):
        assert_sum(lecture.reduce_sum(x[start:]), x[start:], None)
        rows = x[start : start + 510].view(3, 170)
        assert_sum(lecture.reduce_sum(rows, -1), rows, -1)


@pytest.mark.parametrize("n_cols", [1, 2, 511, 512, 513, 2050])
def test_scan(lecture, device, n_cols):
    x, gates = torch.rand(2, 2, n_cols, device=device)
    want = lecture.scan_reference(x.double(), gates.double())
    torch.testing.assert_close(lecture.scan(x, gates).double(), want, rtol=1e-5, atol=1e-5)
    want = x.double().cumsum(-1)
    torch.testing.assert_close(lecture.scan(x).double(), want, rtol=1e-5, atol=1e-5)


def test_a_gate_of_zero_begins_a_segment(lecture, device):
    x = randn(2, 700, device=device)
    gates = torch.ones_like(x)
    gates[:, 300] = 0
    want = torch.cat([x[:, :300].cumsum(-1), x[:, 300:].cumsum(-1)], -1)
    torch.testing.assert_close(lecture.scan(x, gates), want, rtol=1e-5, atol=1e-4)


def test_sums_are_float32_whatever_the_default(lecture, device):
    x = randn(6, 40, device=device)[:, ::2]
    torch.set_default_dtype(torch.float64)
    try:
        got = lecture.atomic_sum(x), lecture.row_logsumexp(x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, (x.sum(), x.logsumexp(-1)))


def test_gradients(lecture, device):
    x, gates = (torch.rand(3, 40, device=device, requires_grad=True) for _ in range(2))
    sums = lecture.reduce_sum, lecture.reduce_sum_reference
    for got, want, inputs in (
        *((*(fn(x, dim) for fn in sums), (x,)) for dim in (-1, 0, None)),
        (lecture.row_max(x)[0], x.max(-1).values, (x,)),
        (lecture.scan(x), lecture.scan_reference(x), (x,)),
        (lecture.scan(x, gates), lecture.scan_reference(x, gates), (x, gates)),
    ):
        dout = torch.randn_like(want)
        gots, wants = (torch.autograd.grad(out, inputs, dout) for out in (got, want))
        for g, w in zip(gots, wants, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not lecture.reduce_sum(x, 0).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (70, 9), (5, 300), (3, 1824), (2, 4097)], ids=str)
def test_logsumexp(lecture, device, shape, dtype):
    x = (randn(*shape, device=device) * 50).to(dtype)
    x[1:2] = -torch.inf
    x[2:3, 7:] = -torch.inf
    x[3:4, -1], x[4:5, 0], x[5:6, :2], x[5:6, 0] = torch.inf, torch.nan, torch.inf, torch.nan
    x[6:7] = torch.finfo(dtype).max
    want = x.double().logsumexp(-1).float()
    got = lecture.row_logsumexp(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "int32", lambda m, x: m.reduce_sum(x.int())),
        (TypeError, "float64", lambda m, x: m.row_max(x.double())),
        (TypeError, "bool", lambda m, x: m.scan(x > 0)),
        (ValueError, "dim", lambda m, x: m.reduce_sum(x, 1)),
        (ValueError, "dim", lambda m, x: m.reduce_sum(x[None], 0)),
        (ValueError, "dim", lambda m, x: m.reduce_sum(x[0, 0], -1)),
        (ValueError, "column", lambda m, x: m.row_max(x[:, :0])),
        (ValueError, "column", lambda m, x: m.row_max(x[0, 0])),
        (ValueError, "dimension", lambda m, x: m.scan(x[0, 0])),
        (ValueError, "without gradient", lambda m, x: m.row_logsumexp(x.requires_grad_())),
        (ValueError, "of rows", lambda m, x: m.row_logsumexp(x[:, :0])),
        (TypeError, "float64", lambda m, x: m.row_logsumexp(x.double())),
        (ValueError, "gates like x", lambda m, x: m.scan(x, x[:1])),
        (ValueError, "gates like x", lambda m, x: m.scan(x, x.half())),
        (ValueError, "columns", lambda m, x: m.reduce_sum(x[:1, :1].expand(1, 2**30 + 1))),
    ],
)
def test_refuses(lecture, device, error, words, call):
    with pytest.raises(error, match=words):
        call(lecture, torch.randn(3, 4, device=device))


@triton.jit
def _pair(value, col, other, other_col):
    """The answer to exercise 2."""
    lower = other_col < col
    nan = (other != other) & ((value == value) | lower)
    wins = (other > value) | ((other == value) & lower) | nan
    return tl.where(wins, other, value), tl.where(wins, other_col, col)


@triton.jit
def _pair_kernel(x_ptr, out_ptr, col_ptr, n_cols, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * n_cols + cols, mask=cols < n_cols, other=-float("inf"))
    value, col = tl.reduce((x, cols), 0, _pair)
    tl.store(out_ptr + row, value)
    tl.store(col_ptr + row, col)


def test_answer_2(device):
    x = torch.randint(-3, 3, (40, 50), device=device).float()
    x[1, 7], x[2, 9:20], x[3] = torch.nan, torch.nan, -torch.inf
    values, columns = x.new_empty(40), x.new_empty(40, dtype=torch.int64)
    _pair_kernel[(40,)](x, values, columns, 50, BLOCK=64)
    assert_max((values, columns), x)


@triton.jit
def _then(gate, y, next_gate, next_y):
    return gate * next_gate, next_gate * y + next_y


@triton.jit
def _scan_gradient_kernel(dy_ptr, gate_ptr, dx_ptr, n_cols, BLOCK: tl.constexpr):
    """The answer to exercise 3."""
    row, lane, carry = tl.program_id(0) * n_cols, tl.arange(0, BLOCK), 0.0
    for back in range(0, n_cols, BLOCK):
        cols = (n_cols - 1) // BLOCK * BLOCK - back + lane
        dy = tl.load(dy_ptr + row + cols, mask=cols < n_cols, other=0.0)
        gate = tl.load(gate_ptr + row + cols + 1, mask=cols + 1 < n_cols, other=0.0)
        gate, dx = tl.associative_scan((gate, dy), 0, _then, reverse=True)
        dx += gate * carry
        tl.store(dx_ptr + row + cols, dx, mask=cols < n_cols)
        carry = tl.sum(tl.where(lane == 0, dx, 0.0), axis=0)


@pytest.mark.parametrize("n_cols", [1, 64, 65, 200])
def test_answer_3(lecture, device, n_cols):
    x, gates, dy = torch.rand(3, 2, n_cols, device=device)
    dx = torch.empty_like(x)
    _scan_gradient_kernel[(2,)](dy, gates, dx, n_cols, BLOCK=64)
    x.requires_grad_()
    (want,) = torch.autograd.grad(lecture.scan(x, gates), x, dy)
    torch.testing.assert_close(dx, want)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [2**26, 2**26 + 5])
def test_the_same_bits_every_time(lecture, n):
    x = torch.randn(n, device="cuda")
    matrix = x[: 2**26].view(-1, 1024)
    for fn in (lecture.reduce_sum, lambda x: lecture.reduce_sum(matrix, 0)):
        first = fn(x)
        assert all(torch.equal(fn(x), first) for _ in range(20))


@pytest.mark.gpu
def test_calls_on_two_streams_do_not_meet(lecture):
    x = torch.rand(2**24, device="cuda")
    want, gots = lecture.reduce_sum(x), []
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for i in range(40):
        with torch.cuda.stream(streams[i % 2]):
            gots.append(lecture.reduce_sum(x))
    torch.cuda.synchronize()
    assert all(torch.equal(got, want) for got in gots)


@pytest.mark.gpu
def test_beyond_int32(lecture):
    matrix = torch.ones(2**19 + 1, 4096, dtype=torch.float16, device="cuda")
    matrix[-1] = 0.5
    assert matrix.numel() > 2**31
    total = lecture.reduce_sum(matrix * 2**-20).item()
    assert total == pytest.approx((2**31 + 2048) * 2**-20, rel=1e-3)
    with pytest.raises(ValueError, match="rows of up to"):
        lecture.reduce_sum(matrix.view(-1))
    sums = lecture.reduce_sum(matrix, -1)
    assert (sums[:-1] == 4096).all() and sums[-1] == 2048
    assert (lecture.row_max(matrix)[0] == torch.tensor([1.0] * 524288 + [0.5], device="cuda")).all()
    wide = matrix.view(-1)[: 31 * 2**26].view(31, -1)
    wide = torch.cat([wide, wide[:9]])  # 40 rows: more than a program takes at once
    assert (lecture.reduce_sum(wide, 0) == 40).all()
    steps = torch.arange(1, 4097, device="cuda")
    assert (lecture.scan(matrix)[-1] == matrix[-1] * steps).sum() > 2000


if __name__ == "__main__":
    print(json.dumps(loads_before_additions()))
