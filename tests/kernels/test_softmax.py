"""Softmax against float64: awkward widths, strides, types and values; its gradient; its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# around each change of kernel, and beyond
WIDTHS = [1, 2, 127, 128, 129, 1823, 16383, 16384, 16385, 32769, 50257]


def randn(*shape, device, dtype=torch.float32):
    return torch.randn(*shape, device=device).to(dtype)


def assert_softmax(got: torch.Tensor, x: torch.Tensor) -> None:
    want = torch.softmax(x.double(), dim=-1)
    assert got.dtype == x.dtype and got.shape == x.shape and got.is_contiguous()
    tolerance = {"rtol": TOLERANCE[x.dtype], "atol": 1e-7}
    torch.testing.assert_close(got.double(), want, equal_nan=True, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_widths(lecture, device, n_cols, dtype):
    x = randn(3, n_cols, device=device, dtype=dtype) * 4
    assert_softmax(lecture.softmax(x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 129, 1823, 16385, 50257])
def test_gradient(lecture, device, n_cols, dtype):
    x = randn(3, n_cols, device=device, dtype=dtype).requires_grad_()
    dy = randn(3, n_cols, device=device, dtype=dtype)
    y = lecture.softmax(x)
    (got,) = torch.autograd.grad(y, x, dy)
    assert got.dtype == dtype
    y, dy = y.detach().double(), dy.double()
    want = y * (dy - (y * dy).sum(dim=-1, keepdim=True))
    error = (got.double() - want).abs()
    assert (error <= TOLERANCE[dtype] * (want.abs() + y) + 1e-7).all()


def test_gradcheck_against_torch(lecture, device):
    x = randn(4, 3, 77, device=device).requires_grad_()
    dy = randn(4, 3, 77, device=device)
    (got,) = torch.autograd.grad(lecture.softmax(x), x, dy)
    (want,) = torch.autograd.grad(torch.softmax(x, dim=-1), x, dy)
    torch.testing.assert_close(got, want)


def test_a_gradient_that_is_not_adjacent(lecture, device):
    x = randn(6, 40, device=device).requires_grad_()
    # the gradient of a sum is one number seen everywhere: all its strides are 0
    (got,) = torch.autograd.grad(lecture.softmax(x).sum(), x)
    torch.testing.assert_close(got, torch.zeros_like(x), atol=1e-6, rtol=0)
    dy = randn(40, 6, device=device).t()
    (got,) = torch.autograd.grad(lecture.softmax(x), x, dy)
    (want,) = torch.autograd.grad(torch.softmax(x, dim=-1), x, dy)
    torch.testing.assert_close(got, want)


VIEWS = {
    "slice": lambda x: x[:, 1:200],
    "aligned slice": lambda x: x[:, 8:136],
    "every third row": lambda x: x[::3],
    "transposed": lambda x: x.t(),
    "every other column": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(5, -1),
    "overlapping": lambda x: x.as_strided((20, 100), (3, 1)),
    "four dimensions": lambda x: x.view(4, 2, 8, 36).transpose(0, 2),
    "gap in the middle": lambda x: x.view(2, 2, 2, 288)[:, 0],
    "one dimension": lambda x: x[0],
    "one column": lambda x: x[:, 5:6],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views(lecture, device, view, dtype):
    x = view(randn(8, 288, device=device, dtype=dtype))
    assert_softmax(lecture.softmax(x), x)


@pytest.mark.parametrize("n_cols", [1823, 16400, 50257])
def test_long_strided_rows(lecture, device, n_cols):
    x = randn(3, n_cols + 7, device=device)[:, 5 : n_cols + 5]
    assert_softmax(lecture.softmax(x), x)


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 40),
    n_cols=st.integers(1, 700),
    gap=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES),
    shift=st.floats(-1e4, 1e4),
    seed=st.integers(0, 2**16),
)
def test_properties(lecture, device, n_rows, n_cols, gap, dtype, shift, seed):
    torch.manual_seed(seed)
    x = (randn(n_rows, n_cols + gap, device=device) + shift).to(dtype)[:, :n_cols]
    y = lecture.softmax(x)
    assert_softmax(y, x)
    assert (y >= 0).all()
    torch.testing.assert_close(
        y.double().sum(-1), torch.ones(n_rows, device=device).double(), rtol=0, atol=8e-3
    )


@pytest.mark.parametrize("n_cols", [5, 130, 40000])
def test_extreme_values(lecture, device, n_cols):
    inf, nan = float("inf"), float("nan")
    rows = torch.zeros(7, n_cols, device=device)
    rows[0] = -inf
    rows[1, 2] = nan
    rows[2, 2] = inf
    rows[3, : n_cols - 1] = -inf
    rows[4, n_cols - 1] = 1e4
    rows[5] = -1e4
    rows[6, 1:] = -inf
    assert_softmax(lecture.softmax(rows), rows)


def test_outside_is_untouched(lecture, device):
    """Outputs in a frame of NaN: every element inside is written, none outside."""
    for n_rows, n_cols in [(5, 3), (33, 129), (2, 1823), (3, 16385), (2, 50257)]:
        for dtype in DTYPES:
            x = randn(n_rows, n_cols, device=device, dtype=dtype)
            for launch, inputs in [
                (lecture.softmax_forward, (x,)),
                (lecture.softmax_backward, (torch.softmax(x, dim=-1), x)),
            ]:
                frame = torch.full((n_rows + 70, n_cols + 9), float("nan")).to(device, dtype)
                launch(*inputs, frame[2 : n_rows + 2, 4 : n_cols + 4])
                assert frame[2 : n_rows + 2, 4 : n_cols + 4].isfinite().all()
                assert frame.isnan().sum() == frame.numel() - x.numel()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty(lecture, device, shape):
    x = torch.empty(shape, device=device, requires_grad=True)
    y = lecture.softmax(x)
    assert y.shape == x.shape
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


def test_refuses(lecture, device):
    with pytest.raises(TypeError, match="float32, float16 or bfloat16, got torch.int64"):
        lecture.softmax(torch.arange(5, device=device))
    with pytest.raises(TypeError, match=r"torch\.float64"):
        lecture.softmax(torch.zeros(5, device=device, dtype=torch.float64))
    with pytest.raises(ValueError, match="a scalar"):
        lecture.softmax(torch.tensor(1.0, device=device))
    with pytest.raises(ValueError, match=r"2\*\*30 columns, got 1073741825"):
        lecture.softmax(torch.zeros(1, device=device).expand(2, 2**30 + 1))


def test_second_derivative_is_refused(lecture, device):
    x = randn(2, 5, device=device).requires_grad_()
    dy = torch.ones_like(x).requires_grad_()
    (dx,) = torch.autograd.grad(lecture.softmax(x), x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def finish(room, slow=(), n=40, parts=4):
    """Programs that start in order and end when all of their row have left their pairs.

    Returns:
        Those that ended, in order, and those that wait, when nothing moves any more.
    """
    ended, running, todo = [], [], list(range(n))
    while True:
        while todo and len(running) < room:
            running.append(todo.pop(0))
        left = {*ended, *running} - {*slow}
        rows = {p: range(p // parts * parts, p // parts * parts + parts) for p in running}
        free = [p for p in running if left.issuperset(rows[p])]
        if not free:
            return ended, [p for p in running if p not in slow]
        ended, running = ended + free, [p for p in running if p not in free]


def test_exercise_3_who_waits_for_whom():
    ended, waiting = finish(8, slow=[6])
    assert ended[:8] == [0, 1, 2, 3, 8, 9, 10, 11] and waiting == [4, 5, 7]
    assert finish(8) == ([*range(40)], [])
    assert finish(3) == ([], [0, 1, 2])
    # so many parts as there is room for
    assert all((finish(room)[1] == []) == (room >= 4) for room in range(1, 12))


@pytest.mark.interpreter
def test_exercise_3_a_row_has_32_parts_at_most(lecture, monkeypatch):
    parts = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: parts.append(options.get("PARTS", 1))

    for name in ("kernel", "online_kernel", "bwd_kernel"):
        monkeypatch.setattr(lecture, f"softmax_{name}", Kernel())
    for n_cols in (8193, 20000, 100_001, 2**17, 2**18 - 1, 2**18, 2**18 + 1, 2**20, 10**7):
        for dtype in DTYPES:
            x = torch.empty(1, n_cols, dtype=dtype, device="meta")
            lecture.softmax_forward(x, x)
            lecture.softmax_backward(x, x, x)
    assert max(parts) == 32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1024, 1823, 8192, 16384, 32768, 50257, 65536, 131072, 300001])
def test_full_grid(lecture, n_cols, dtype):
    x = randn(2**25 // n_cols, n_cols, device="cuda", dtype=dtype).requires_grad_()
    dy = torch.randn_like(x)
    y = lecture.softmax(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert_softmax(y.detach(), x.detach())
    y, dy = y.detach().double(), dy.double()
    want = y * (dy - (y * dy).sum(dim=-1, keepdim=True))
    error = (dx.double() - want).abs()
    assert (error <= TOLERANCE[dtype] * (want.abs() + y) + 1e-7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2**17 + 3, 2**14 + 1), (2**31 + 5, 1), (3, 2**30)])
def test_more_than_2_to_the_31_elements(lecture, shape):
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    y = lecture.softmax(x)
    for rows in (slice(0, 2), slice(-2, None)):
        if shape[1] < 2**30:
            assert_softmax(y[rows], x[rows])
        else:
            assert ((y[rows].float().sum(-1) - 1).abs() < 8e-3).all()
