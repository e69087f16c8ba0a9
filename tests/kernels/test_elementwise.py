"""Fused element-wise kernels against float64: sizes, widths, layouts, values, gradients, errors."""

import inspect
import math
import re

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.bounds import traffic

DTYPES = [
    torch.float32,
    torch.float16,
    # the interpreter rounds bfloat16 otherwise
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]
HALF_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SIZES = [0, 1, 2, 31, 1023, 1024, 1025, 2049, 7919]
# around the multiples of 16 that rows are made of, and around a tile
SHAPES = [(0, 5), (3, 0), (1, 1), (1, 4099), (5, 3), (22000, 3), (70, 48), (3, 255), (9, 257)]
SHAPES += [(80, 1000), (129, 1023), (4, 1024), (5, 2064), (3, 12289)]
FORMS = ["none", "tanh"]


def randn(*shape, device, dtype=torch.float32):
    return (2 * torch.randn(*shape, device=device)).to(dtype)


def guarded(like):
    """Memory for a tensor, NaN, and the guard behind it."""
    buffer = torch.full((like.numel() + 4096,), torch.nan, dtype=like.dtype, device=like.device)
    return buffer[: like.numel()].view(like.shape), buffer[like.numel() :]


def assert_near(got, want, terms, unit=None):
    """Within half a unit of the last place and a millionth of what was added up."""
    assert got.shape == want.shape
    allowed = HALF_UNIT[unit or got.dtype] * want.abs() + 1e-6 * terms + 6e-8
    assert ((got.double() - want).abs() <= allowed).all()


def gelu64(x, bias, form="none"):
    return torch.nn.functional.gelu(x.double() + bias.double(), approximate=form)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flat(lecture, device, dtype, n):
    x, y, z = randn(3, n, device=device, dtype=dtype)
    product, total = x.double() * y.double(), x.double() + y.double()
    out, guard = guarded(x)
    assert lecture.multiply_add(x, y, z, out=out) is out
    assert_near(out, product + z.double(), product.abs() + z.double().abs())
    assert torch.equal(lecture.multiply_add(x, y, z), out)
    assert lecture.add_relu(x, y, out=out.fill_(torch.nan)) is out
    assert_near(out, total.relu(), total.abs())
    assert torch.equal(lecture.add_relu(x, y), out)
    assert guard.isnan().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_gelu(lecture, device, shape, form):
    x, bias = randn(*shape, device=device), randn(shape[1], device=device)
    out, guard = guarded(x)
    assert lecture.bias_gelu(x, bias, form, out=out) is out
    assert_near(out, gelu64(x, bias, form), 1 + x.double().abs() + bias.double().abs())
    assert guard.isnan().all()
    assert torch.equal(lecture.bias_gelu(x, bias, form), out)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_gelu_gradient(lecture, device, dtype, shape, form):
    x, dout = randn(2, *shape, device=device, dtype=dtype)
    bias = randn(shape[1], device=device, dtype=dtype)
    (dx, guard), (dbias, bias_guard) = guarded(x), guarded(bias)
    lecture.bias_gelu_backward(dout, x, bias, dx, dbias, form)
    wide = [t.double().requires_grad_() for t in (x, bias)]
    dx64, dbias64 = torch.autograd.grad(gelu64(*wide, form), wide, dout.double())
    assert_near(dx, dx64, dout.double().abs())
    assert_near(dbias, dbias64, dout.double().abs().sum(0))
    assert guard.isnan().all() and bias_guard.isnan().all()
    x.requires_grad_()
    bias.requires_grad_()
    out = lecture.bias_gelu(x, bias, form)
    for got, want in zip(torch.autograd.grad(out, (x, bias), dout), (dx, dbias), strict=True):
        assert torch.equal(got, want), "not the same bits in each run"


def test_gelu_is_near_its_definition_everywhere(lecture, device):
    u = torch.linspace(-20, 20, 100_001, device=device)
    zero = torch.zeros(1, device=device)
    got, want = lecture.bias_gelu(u[:, None], zero).double()[:, 0], gelu64(u, zero)
    assert ((got - want).abs() <= 5e-7 + 2.0**-24 * want.abs()).all()
    small = u.abs() < 5
    # torch subtracts 1 from nearly 1, and has nothing left there
    assert ((got - want).abs() / want.abs().clamp_min(1e-30))[small & (u != 0)].max() < 1.2e-3
    assert (got[u < -17] == 0).all() and torch.equal(got[u > 6], u[u > 6].double())


def fit(degree):
    """A polynomial for log2 of the normal distribution's tail, and the error of its GELU."""
    a = 5 - 5 * torch.cos(torch.linspace(0, math.pi, 4001, dtype=torch.float64))
    log2_tail, weight = torch.special.log_ndtr(-a) / math.log(2), a * torch.special.ndtr(-a) / 0.17
    # near zero the weight vanishes, far out only the order of magnitude counts
    weight = torch.where(a < 0.75, 1.0, weight).clamp_min(1e-3)[:, None]
    powers = torch.stack([(a / 10) ** k for k in range(degree + 1)], 1)
    fitted = torch.linalg.lstsq(powers * weight, log2_tail[:, None] * weight).solution[:, 0]
    error = ((2 ** (powers @ fitted) - 2**log2_tail) * a).abs().max().item()
    return [c.item() / 10**k for k, c in enumerate(fitted)], error


def test_where_the_polynomial_comes_from(lecture):
    source = inspect.getsource(getattr(lecture._below, "fn", lecture._below))
    digits = re.findall(r"(-?) ?(\d[\d.e-]+\d)", source.partition("p =")[2])
    # as written: the highest power, the next, and so on down to the constant
    written = [float(sign + number) for sign, number in digits]
    coefficients, error = fit(7)
    assert error < 2.5e-7 and coefficients[-1] < 0
    assert written == pytest.approx(coefficients[::-1], rel=1e-6)
    # exercise 3
    assert 1e-5 < fit(5)[1] < 3e-5 and fit(5)[0][-1] < 0 < fit(6)[0][-1]


@pytest.mark.parametrize("form", FORMS)
def test_values_at_the_ends(lecture, device, form):
    u = torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, 3e38, -3e38, torch.inf, torch.nan])
    u = u.to(device)[:, None].requires_grad_()
    zero = torch.zeros(1, device=device, requires_grad=True)
    out = lecture.bias_gelu(u, zero, form)
    torch.testing.assert_close(out, gelu64(u, zero, form).float(), equal_nan=True)
    (slope,) = torch.autograd.grad(out.sum(), u)
    want = torch.tensor([0.5, 0.5, 0.5, 1, 0, 1, 0, 1, torch.nan], device=device)
    torch.testing.assert_close(slope[:, 0], want, equal_nan=True)
    # torch says NaN
    assert lecture.bias_gelu(torch.full_like(u.detach(), -torch.inf), zero, form).eq(0).all()


def test_relu_keeps_nan_and_gives_zero_no_gradient(lecture, device):
    values = [1.0, -1.0, 0.0, torch.inf, -torch.inf, torch.nan]
    x = torch.tensor(values, device=device, requires_grad=True)
    out = lecture.add_relu(x, torch.zeros_like(x))
    torch.testing.assert_close(out, torch.relu(x), equal_nan=True)
    dout = torch.full_like(x, 3)
    want = torch.autograd.grad(torch.relu(x), x, dout)
    torch.testing.assert_close(torch.autograd.grad(out, x, dout), want)


LAYOUTS = {
    "transposed alike": lambda x: x.mT,
    "transposed": lambda x: (x[0].mT, *(t.mT.contiguous() for t in x[1:])),
    "channels last": lambda x: x.view(3, 2, 5, 8, 9).permute(0, 1, 4, 2, 3),
    "a slice": lambda x: x[:, 1:, 2:-3],
    "every other": lambda x: x[:, ::2, ::3],
    "expanded": lambda x: x[:, :1].expand(-1, 10, -1),
    "a column": lambda x: x[:, :, 4:5],
    "flipped": lambda x: x.flip(1),
    "a number": lambda x: x[:, 3, 3],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(lecture, device, layout):
    x, y, z = (t.detach().requires_grad_() for t in layout(torch.randn(3, 10, 72, device=device)))
    cases = [(lecture.multiply_add, lecture.multiply_add_reference, (x, y, z))]
    cases += [(lecture.add_relu, lecture.add_relu_reference, (x, y))]
    if x.dim():
        bias = torch.randn(2 * x.shape[-1], device=device)[::2].requires_grad_()
        cases += [(lecture.bias_gelu, lecture.bias_gelu_reference, (x, bias))]
    for op, reference, inputs in cases:
        out, want = op(*inputs), reference(*inputs)
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
        dout = torch.randn(want.shape[::-1], device=device).permute(list(range(want.dim()))[::-1])
        for pair in zip(*(torch.autograd.grad(o, inputs, dout) for o in (out, want)), strict=True):
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(op(*inputs), out)


def test_equal_strides_are_kept(lecture, device):
    x, y = torch.randn(2, 30, 50, device=device).mT
    assert lecture.add_relu(x, y).stride() == x.stride()


def test_in_place(lecture, device):
    x, y, z = torch.randn(3, 3000, device=device)
    for op, inputs in ((lecture.multiply_add, (x, y, z)), (lecture.add_relu, (x, y))):
        for i in range(len(inputs)):
            mine = [t.clone() for t in inputs]
            want = op(*mine)
            assert op(*mine, out=mine[i]) is mine[i] and torch.equal(mine[i], want)
    x = x.view(30, 100)
    want = lecture.bias_gelu(x, y[:100])
    lecture.bias_gelu(x, y[:100], out=x)
    assert torch.equal(x, want)


def test_autograd_sees_what_is_written_to_out(lecture, device):
    x, y, z = torch.randn(3, 4, 8, device=device)
    for write in (
        lambda out: lecture.multiply_add(x, x, z, out=out),
        lambda out: lecture.add_relu(x, z, out=out),
        lambda out: lecture.bias_gelu(x, z[0], out=out),
    ):
        a = x.clone().requires_grad_()
        loss = (a * y).sum()
        write(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        with torch.inference_mode():
            out = torch.empty_like(y)
            assert write(out) is out


def test_only_what_a_gradient_needs_is_kept(lecture, device):
    x, y, z = torch.randn(3, 8, device=device)
    for wanted, needed in (([2], []), ([0], [1]), ([1, 2], [0]), ([0, 1], [0, 1])):
        leaves, kept = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((x, y, z))], []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, id):
            lecture.multiply_add(*leaves)
        assert sorted(t.data_ptr() for t in kept) == sorted(leaves[i].data_ptr() for i in needed)


def test_only_the_gradients_that_are_wanted(lecture, device):
    x, y, z = torch.randn(3, 8, device=device)
    for wanted in ((x,), (y,), (z,), (x, z)):
        leaves = [t.detach().requires_grad_(any(t is w for w in wanted)) for t in (x, y, z)]
        lecture.multiply_add(*leaves).sum().backward()
        grads = [t.grad for t in leaves]
        ones = torch.ones_like(x)
        for leaf, grad, want in zip(leaves, grads, (y, x, ones), strict=True):
            assert grad is None if not leaf.requires_grad else torch.equal(grad, want)
    assert not lecture.multiply_add(x, y, z).requires_grad
    bias = z.clone().requires_grad_()
    lecture.bias_gelu(x.view(1, 8), bias).sum().backward()
    assert bias.grad is not None and x.grad is None


def test_gradients_do_not_share_memory_with_what_follows(lecture, device):
    x, y = (torch.randn(6, device=device).requires_grad_() for _ in range(2))
    lecture.add_relu(x, y).sum().backward()
    before = y.grad.clone()
    x.grad.zero_()
    assert torch.equal(y.grad, before)


def test_second_derivatives(lecture, device):
    x, y, z = (torch.randn(6, device=device, requires_grad=True) for _ in range(3))
    for op, reference, inputs in (
        (lecture.multiply_add, lecture.multiply_add_reference, (x, y, z)),
        (lecture.add_relu, lecture.add_relu_reference, (x, y)),
    ):
        seconds = []
        for fn in (op, reference):
            (dx,) = torch.autograd.grad(fn(*inputs).pow(3).sum(), x, create_graph=True)
            seconds.append(torch.autograd.grad(dx.pow(2).sum(), inputs))
        torch.testing.assert_close(*seconds)
    (dx,) = torch.autograd.grad(lecture.bias_gelu(x[None], y).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@triton.jit
def product_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = (tl.load(x_ptr + offs, mask=offs < n), tl.load(y_ptr + offs, mask=offs < n))
    tl.store(out_ptr + offs, x * y, mask=offs < n)


@triton.jit
def gradient_kernel(dout_ptr, x_ptr, y_ptr, dx_ptr, dy_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dout = tl.load(dout_ptr + offs, mask=offs < n)
    tl.store(dx_ptr + offs, dout * tl.load(y_ptr + offs, mask=offs < n), mask=offs < n)
    tl.store(dy_ptr + offs, dout * tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)


@pytest.mark.interpreter
def test_exercise_2_one_trip_less(lecture):
    x, y, z, dout, dx, dy = torch.randn(6, 700)
    one, other = (
        traffic(lambda a=arguments: product_kernel[(3,)](dout, *a, 700, BLOCK=256))
        for arguments in ((y, dx), (x, dy))
    )
    fused = traffic(lambda: gradient_kernel[(3,)](dout, x, y, dx, dy, 700, BLOCK=256))
    forward = traffic(lambda: lecture.multiply_add(x, y, z))
    assert (one, other, fused, forward) == (3 * 700, 3 * 700, 5 * 700, 4 * 700)
    leaves = [t.requires_grad_() for t in (x, y, z)]
    want = torch.autograd.grad(lecture.multiply_add_reference(*leaves), leaves, dout)
    torch.testing.assert_close((dx, dy, dout), want)


@settings(max_examples=25, deadline=None)
@given(
    n_rows=st.integers(0, 90),
    n_cols=st.integers(1, 700),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_any_shape(lecture, device, n_rows, n_cols, form, dtype):
    x, y = randn(2, n_rows, n_cols, device=device, dtype=dtype)
    bias = randn(n_cols, device=device, dtype=dtype)
    out = lecture.bias_gelu(x, bias, form)
    assert_near(out, gelu64(x, bias, form), 1 + x.double().abs() + bias.double().abs())
    total = x.double() + y.double()
    assert_near(lecture.add_relu(x, y), total.relu(), total.abs())


def wide(x):
    """A matrix without rows, so without memory, and a bias for it."""
    return x.new_empty(0, 2**30 + 1), x[0, :1].expand(2**30 + 1)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "y \\(3, 4\\)", lambda m, x: m.multiply_add(x, x[:2], x)),
        (ValueError, "z \\(3, 4\\)", lambda m, x: m.multiply_add(x, x, x[:1])),
        (ValueError, "got .*float16", lambda m, x: m.add_relu(x, x.half())),
        (ValueError, "got .*meta", lambda m, x: m.add_relu(x, x.to("meta"))),
        (TypeError, "float64", lambda m, x: m.multiply_add(x.double(), x.double(), x.double())),
        (TypeError, "int32", lambda m, x: m.add_relu(x.int(), x.int())),
        (ValueError, "bias \\(4,\\)", lambda m, x: m.bias_gelu(x, x[:, 0])),
        (ValueError, "bias \\(4,\\)", lambda m, x: m.bias_gelu(x, x)),
        (ValueError, "'erf'", lambda m, x: m.bias_gelu(x, x[0], "erf")),
        (ValueError, "out \\(3, 4\\)", lambda m, x: m.add_relu(x, x, out=x.new_empty(4, 3))),
        (ValueError, "out .*got .*float16", lambda m, x: m.add_relu(x, x, out=x.half())),
        (ValueError, "contiguous", lambda m, x: m.bias_gelu(x, x[0], out=x.new_empty(4, 3).t())),
        (ValueError, "gradient", lambda m, x: m.add_relu(x, x.clone().requires_grad_(), out=x)),
        (ValueError, "gradient", lambda m, x: m.add_relu(x, x, out=x.clone().requires_grad_())),
        (ValueError, "gradient", lambda m, x: m.bias_gelu(x, x[0], out=x.clone().requires_grad_())),
        (ValueError, "2\\*\\*30 col", lambda m, x: m.bias_gelu(*wide(x))),
    ],
)
def test_refuses(lecture, device, error, words, call):
    with pytest.raises(error, match=words):
        call(lecture, torch.randn(3, 4, device=device))


def test_the_bias_is_repeated_to_whole_vectors(lecture):
    for n_cols in (1, 3, 100, 1000, 1023, 12289):
        bias = torch.arange(n_cols)
        longer = lecture._repeated(bias, 10**7)
        assert len(longer) % 16 == 0 and len(longer) >= 16384
        assert torch.equal(longer.view(-1, n_cols)[-1], bias)
        assert lecture._repeated(bias, n_cols) is bias, "one row"
    assert len(lecture._repeated(torch.arange(4096), 10**7)) == 4096
    long = torch.zeros(1).expand(2**27 + 1)
    with pytest.MonkeyPatch.context() as patch:  # so that nothing is copied
        patch.setattr(torch.Tensor, "contiguous", lambda bias: bias)
        patch.setattr(torch.Tensor, "repeat", lambda b, n: b[:1].expand(n * len(b)))
        assert len(lecture._repeated(long[: 2**26 - 1], 2**40)) == 16 * (2**26 - 1)
        assert lecture._repeated(long, 2**40) is long, "past 2**30 columns"


@pytest.mark.gpu
def test_beyond_int32(lecture):
    n = 2**31 + 8193
    x = torch.ones(n, dtype=torch.float16, device="cuda")
    x[2**31 :] = 3
    out = torch.full_like(x, torch.nan)
    lecture.add_relu(x, x, out=out)
    assert (out[: 2**31] == 2).all() and (out[2**31 :] == 6).all()
    lecture.multiply_add(x, x, x, out=out.fill_(torch.nan))
    assert (out[: 2**31] == 2).all() and (out[2**31 :] == 12).all()
    rows, bias = x[: n // 4095 * 4095].view(-1, 4095), torch.full_like(x[:4095], 20)
    lecture.bias_gelu(rows, bias, out=out[: rows.numel()].view(rows.shape).fill_(torch.nan))
    assert (out[: 2**31] == 21).all() and (out[2**31 : rows.numel()] == 23).all()
    dbias, dx = torch.empty_like(bias), out[: rows.numel()].view(rows.shape)
    lecture.bias_gelu_backward(torch.full_like(rows, 2.0**-19), rows, bias, dx, dbias)
    assert math.isclose(dbias[-1].item(), len(rows) * 2.0**-19, rel_tol=1e-3)
