"""RMSNorm, alone and after an addition, against float64: widths, strides, gradients, errors.

Run as a script, the file compiles the forward of long rows for sm_90 without a GPU.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.sm_90 import facts, launched, pretend, run_as_script

DTYPES = [
    torch.float32,
    torch.float16,
    # the interpreter rounds bfloat16 otherwise
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# around each change of kernel, and beyond
WIDTHS = [1, 2, 127, 128, 129, 255, 1000, 1823, 4097, 8193, 16400, 32769, 32776, 40960]

# rows walked twice: dtype, columns, gap between rows, with a residual
TWICE = list(
    itertools.product((torch.float32, torch.bfloat16), (65536, 65000, 65001), (0, 3), (False, True))
) + [(torch.bfloat16, n_cols, 0, False) for n_cols in (8192, 16384, 32768)]
MIXED = [96, 129, 8192, 16384]  # columns of rows of 16 bits, whose weight has 32


def compile_all() -> list:
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/fusion"))
    import rms_norm as lecture

    found = launched(lecture, "rms_norm_kernel")
    for dtype, n_cols, gap, added in TWICE:
        x = torch.empty(4, n_cols + gap, dtype=dtype)[:, :n_cols]
        y, h, residual = torch.empty_like(x), *((x, x) if added else (None, None))
        lecture.rms_norm_forward(x, residual, y[0], 1e-6, y, h)
    mixed = launched(lecture, "rms_norm_bwd_kernel")
    launched(lecture, "column_sum_kernel")
    for n_cols in MIXED:
        x, weight = torch.empty(4, n_cols, dtype=torch.bfloat16), torch.empty(n_cols)
        lecture.rms_norm_backward(x, None, x, weight, torch.empty(4), x, weight)
    return [facts(kernel) for kernel in found + mixed]


@pytest.fixture(scope="module")
def compiled() -> list:
    return run_as_script(__file__)


@pytest.mark.interpreter  # a GPU's tests compile and run them
def test_programs_that_walk_twice_fit_an_sm(compiled):
    for variant, kernel in zip(TWICE, compiled[: len(TWICE)], strict=True):
        dtype, n_cols, gap, added = variant
        # two of them, but with a residual and in whole blocks one
        whole = n_cols == 65536 and gap * dtype.itemsize % 16 == 0
        fits = 65536 if added and whole else 32768
        assert kernel["threads"] * kernel["registers"] <= fits and kernel["spills"] == 0, variant


@pytest.mark.interpreter
def test_a_weight_of_32_bits_compiles(compiled):
    assert [kernel["spills"] for kernel in compiled[len(TWICE) :]] == [0] * len(MIXED)


def randn(*shape, device, dtype=torch.float32):
    return torch.randn(*shape, device=device).to(dtype)


def norm64(h, weight, eps):
    h, weight = h.double(), weight.double()
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight


def assert_norm(got, h, weight, eps=1e-6):
    assert got.dtype == h.dtype and got.shape == h.shape and got.is_contiguous()
    want = norm64(h, weight, eps)
    tolerance = {"rtol": TOLERANCE[h.dtype], "atol": 1e-7}
    torch.testing.assert_close(got.double(), want, equal_nan=True, **tolerance)


def gradients(h, weight, dy, dh=None, eps=1e-6):
    """dx and dweight, each with the scale of what is added up for it."""
    h, weight = h.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    dy, dh = dy.double(), torch.zeros_like(h) if dh is None else dh.double()
    dx, dw = torch.autograd.grad(norm64(h, weight, eps), (h, weight), dy)
    rstd = torch.rsqrt(h.detach().square().mean(-1, keepdim=True) + eps)
    most = (rstd * weight.detach() * dy).abs().amax(-1, keepdim=True)
    terms = (dy * h.detach() * rstd).abs()
    return (dx + dh, dx.abs() + dh.abs() + most), (dw, terms.reshape(-1, terms.shape[-1]).sum(0))


def assert_gradients(got, wanted, dtype):
    for g, (want, scale) in zip(got, wanted, strict=True):
        assert g.dtype == dtype and g.shape == want.shape
        assert ((g.double() - want).abs() <= TOLERANCE[dtype] * scale + 1e-7).all()


@pytest.mark.parametrize("n_cols", [1, 100, 1000, 1024])
def test_the_kernel_that_the_page_shows(shown, device, n_cols):
    x = randn(5, n_cols + 3, device=device)[:, :n_cols]
    weight, y = randn(n_cols, device=device), torch.full((5, n_cols), math.nan, device=device)
    kernel, block = shown("rms_norm_row_kernel"), triton.next_power_of_2(n_cols)
    kernel[(5,)](x, weight, y, x.stride(0), n_cols, 1e-6, BLOCK=block)
    assert_norm(y, x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_widths(lecture, device, n_cols, dtype):
    x, residual, dy, dh = (randn(5, n_cols, device=device, dtype=dtype) for _ in range(4))
    weight = randn(n_cols, device=device, dtype=dtype)
    assert_norm(lecture.rms_norm(x, weight), x, weight)
    y, h = lecture.add_rms_norm(x, residual, weight)
    assert torch.equal(h, x + residual)
    assert_norm(y, h, weight)
    if n_cols > 2**15 and device == "cpu":
        return  # too long for the interpreter's two multiprocessors
    for tensor in (x, residual, weight):
        tensor.requires_grad_()
    y, h = lecture.add_rms_norm(x, residual, weight)
    dx, dr, dw = torch.autograd.grad((y, h), (x, residual, weight), (dy, dh))
    assert torch.equal(dx, dr)
    assert_gradients((dx, dw), gradients(h, weight, dy, dh), dtype)


# in the interpreter few programs, some of which take two tiles of rows; on a GPU other work beside
@pytest.mark.parametrize(("n_rows", "n_cols"), [(40, 96), (40, 1000), (9, 4097), (11, 16500)])
def test_the_same_bits_every_time(lecture, device, n_rows, n_cols):
    x, residual, dy, dh = (randn(n_rows, n_cols, device=device) for _ in range(4))
    tensors = x, residual, randn(n_cols, device=device)
    for tensor in tensors:
        tensor.requires_grad_()

    def run():
        y, h = lecture.add_rms_norm(*tensors)
        return y, h, *torch.autograd.grad((y, h), tensors, (dy, dh))

    first = run()
    for _ in range(1 if device == "cpu" else 20):
        if device == "cuda":
            busy, other = torch.randn(2048, 2048, device=device), torch.cuda.Stream()
            with torch.cuda.stream(other):
                busy @ busy
        assert all(map(torch.equal, first, run()))


VIEWS = {
    "slice": lambda x: x[:, 1:200],
    "aligned slice": lambda x: x[:, 8:136],
    "odd slice of a wide matrix": lambda x: x[:, :281],
    "every third row": lambda x: x[::3],
    "transposed": lambda x: x.t(),
    "every other column": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(5, -1),
    "overlapping": lambda x: x.as_strided((20, 100), (3, 1)),
    "four dimensions": lambda x: x.view(4, 2, 8, 36).transpose(0, 2),
    "one dimension": lambda x: x[0],
    "one column": lambda x: x[:, 5:6],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views(lecture, device, view):
    x, residual = (view(randn(8, 288, device=device)) for _ in range(2))
    x, dy = x.detach().requires_grad_(), view(randn(8, 288, device=device))
    weight = randn(2 * x.shape[-1], device=device)[::2].requires_grad_()
    y = lecture.rms_norm(x, weight)
    assert_norm(y.detach(), x.detach(), weight.detach())
    assert_gradients(torch.autograd.grad(y, (x, weight), dy), gradients(x, weight, dy), x.dtype)
    y, h = lecture.add_rms_norm(x, residual, weight)
    assert torch.equal(h, x + residual)
    assert_norm(y.detach(), h.detach(), weight.detach())


def test_strides_that_differ(lecture, device):
    weight = randn(136, device=device)
    x, residual = randn(9, 140, device=device)[:, :136], randn(9, 144, device=device)[:, 8:]
    for a, b in ((x, residual), (residual, x)):
        y, h = lecture.add_rms_norm(a, b, weight)
        assert torch.equal(h, a + b)
        assert_norm(y, h, weight)


@settings(max_examples=30, deadline=None)
@given(
    n_rows=st.integers(1, 300),
    n_cols=st.integers(1, 700),
    gap=st.integers(0, 20),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 2**16),
)
def test_properties(lecture, device, n_rows, n_cols, gap, dtype, seed):
    torch.manual_seed(seed)
    x = randn(n_rows, n_cols + gap, device=device, dtype=dtype)[:, :n_cols].requires_grad_()
    weight = randn(n_cols, device=device, dtype=dtype).requires_grad_()
    dy = randn(n_rows, n_cols, device=device, dtype=dtype)
    y = lecture.rms_norm(x, weight, 1e-4)
    assert_norm(y.detach(), x.detach(), weight.detach(), 1e-4)
    got = torch.autograd.grad(y, (x, weight), dy)
    assert_gradients(got, gradients(x, weight, dy, eps=1e-4), dtype)


def test_either_gradient_may_be_missing(lecture, device):
    x, residual = (randn(6, 40, device=device).requires_grad_() for _ in range(2))
    weight = randn(40, device=device).requires_grad_()
    inputs = x, residual, weight
    for pick in (lambda y, h: y, lambda y, h: h * weight, lambda y, h: (y + h).sum()):
        got = torch.autograd.grad(pick(*lecture.add_rms_norm(*inputs)).sum(), inputs)
        want = torch.autograd.grad(pick(*lecture.add_rms_norm_reference(*inputs)).sum(), inputs)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)
    (dw,) = torch.autograd.grad(lecture.rms_norm(x.detach(), weight).sum(), weight)
    torch.testing.assert_close(dw, lecture.rms_norm_reference(x, torch.ones_like(weight)).sum(0))


def test_gradients_do_not_share_memory_with_what_follows(lecture, device):
    x, residual = (randn(6, 40, device=device).requires_grad_() for _ in range(2))
    weight = randn(40, device=device)
    lecture.add_rms_norm(x, residual, weight)[0].sum().backward()
    before = residual.grad.clone()
    x.grad.zero_()
    assert torch.equal(residual.grad, before)


def test_weight_of_another_dtype(lecture, device):
    x = randn(7, 96, device=device, dtype=torch.float16).requires_grad_()
    weight = randn(96, device=device).requires_grad_()
    y = lecture.rms_norm(x, weight)
    assert_norm(y.detach(), x.detach(), weight.detach())
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert dx.dtype == torch.float16 and dw.dtype == torch.float32


@pytest.mark.parametrize("n_cols", [5, 130, 33000])
def test_extreme_values(lecture, device, n_cols):
    inf, nan = float("inf"), float("nan")
    x = torch.ones(6, n_cols, device=device)
    x[0] = 0
    x[1, 2] = nan
    x[2, 2] = inf
    x[3] = 1e-20
    x[4] = 1e15
    x[5, n_cols - 1] = -1e4
    weight = torch.ones(n_cols, device=device)
    assert_norm(lecture.rms_norm(x, weight), x, weight)


@pytest.mark.parametrize("n_cols", [5, 130, 259, 16500])
def test_gradient_of_extreme_values(lecture, device, n_cols):
    scale = torch.tensor([[1e15], [1e-13]], device=device)
    x, dy = (randn(2, n_cols, device=device) * s for s in (scale, 1))
    weight = randn(n_cols, device=device).requires_grad_()
    y = lecture.rms_norm(x.requires_grad_(), weight, 0.0)
    got = torch.autograd.grad(y, (x, weight), dy)
    for g, (want, size) in zip(got, gradients(x, weight, dy, eps=0.0), strict=True):
        assert ((g.double() - want).abs() <= TOLERANCE[x.dtype] * size).all()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty(lecture, device, shape):
    x = torch.empty(shape, device=device, requires_grad=True)
    weight = torch.ones(shape[-1], device=device, requires_grad=True)
    y, h = lecture.add_rms_norm(x, x, weight)
    assert y.shape == h.shape == x.shape
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape and torch.equal(dw, torch.zeros_like(weight))


def test_refuses(lecture, device):
    x, weight = torch.zeros(3, 5, device=device), torch.ones(5, device=device)
    for error, words, arguments in (
        (TypeError, "float32, float16 or bfloat16", (x.long(), weight)),
        (TypeError, r"torch\.float64", (x, weight.double())),
        (ValueError, "as long as x's rows", (x, torch.ones(3, device=device))),
        (ValueError, "as long as x's rows", (x[0, 0], weight)),
        (ValueError, "rows up to", (x[:, :1].expand(3, 2**31), weight[:1].expand(2**31))),
        (ValueError, "one device", (x, weight.to("meta"))),
    ):
        with pytest.raises(error, match=words):
            lecture.rms_norm(*arguments)
    long = x[:, :1].expand(3, 2**30).requires_grad_()
    with pytest.raises(ValueError, match=r"rows up to \d+, with gradients"):
        lecture.rms_norm(long, weight[:1].expand(2**30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lecture, "_sms", lambda x: 8)
        with pytest.raises(ValueError, match="rows up to 32768, with gradients"):
            lecture.rms_norm(long[:, : 2**15 + 1], weight[:1].expand(2**15 + 1))
    for residual in (x[:2], x.half(), x[None]):
        with pytest.raises(ValueError, match="residual of x's shape and dtype"):
            lecture.add_rms_norm(x, residual, weight)


def test_no_gradient_no_limit(lecture, device):
    x = randn(2, 2**24 if device == "cuda" else 70001, device=device)
    weight = randn(x.shape[1], device=device)
    assert_norm(lecture.rms_norm(x, weight), x, weight)


def test_second_derivative_is_refused(lecture, device):
    x = randn(2, 5, device=device).requires_grad_()
    dy = torch.ones_like(x).requires_grad_()
    y = lecture.rms_norm(x, torch.ones(5, device=device))
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.interpreter
def test_exercise_1_widths_that_hide_the_block(lecture, changed):
    widths = [*range(1, 3000), *range(4000, 4200), *(2**i for i in range(12, 18)), 5000, 12289]
    blocks = {n: lecture._plan(n, n, 8192, n, 2, True)[1][1] for n in widths}
    assert [n for n, block in blocks.items() if n == block] == [2**i for i in range(4, 13)]
    wrong = changed({"rsqrt(squares / n_cols": "rsqrt(squares / BLOCK"})
    for n in (8, 100, 1000, 4096, 4097, 8192):
        x, weight = torch.randn(8, n, dtype=torch.bfloat16), torch.ones(n, dtype=torch.bfloat16)
        got, want = (m.rms_norm(x, weight, 1e-12).double() for m in (wrong, lecture))
        factor = math.sqrt(blocks[n] / n)
        torch.testing.assert_close(got, factor * want, rtol=2e-2, atol=0)
        assert (factor == 1) == torch.equal(got, want)


def test_answer_to_exercise_3(lecture, device):
    x, weight = randn(8, 96, device=device), randn(96, device=device).requires_grad_()
    norms = lecture.rms_norm, lecture.rms_norm_reference
    losses = (norm(x, 1 + weight).square().sum() for norm in norms)
    got, want = (torch.autograd.grad(loss, weight)[0] for loss in losses)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1024, 1823, 4096, 5120, 8192, 12289, 16384, 65536, 100001])
def test_full_grid(lecture, n_cols, dtype):
    shape = 2**25 // n_cols, n_cols
    x, residual, dy, dh = (randn(*shape, device="cuda", dtype=dtype) for _ in range(4))
    weight = randn(n_cols, device="cuda", dtype=dtype).requires_grad_()
    x.requires_grad_()
    y, h = lecture.add_rms_norm(x, residual, weight)
    assert_norm(y.detach(), h.detach(), weight.detach())
    got = torch.autograd.grad((y, h), (x, weight), (dy, dh), retain_graph=True)
    assert_gradients(got, gradients(h, weight, dy, dh), dtype)
    again = torch.autograd.grad((y, h), (x, weight), (dy, dh))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2**17 + 3, 2**14 + 8), (2**31 // 8 + 5, 8), (2**12 + 3, 2**19)])
def test_more_than_2_to_the_31_elements(lecture, shape):
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    weight = torch.rand(shape[1], device="cuda", dtype=torch.bfloat16)
    y = lecture.rms_norm(x, weight)
    for rows in (slice(0, 1), slice(-1, None)):
        part = slice(0, 2**20)
        rstd = torch.rsqrt(x[rows].float().square().mean(-1, keepdim=True) + 1e-6)
        want = x[rows, part].float() * rstd * weight[part].float()
        torch.testing.assert_close(y[rows, part].float(), want, rtol=1e-2, atol=1e-5)


if __name__ == "__main__":
    print(json.dumps(compile_all()))
