"""The probes of the memory hierarchy: what they read, where they end, and what they refuse."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCK = 64


def filled(shape, device) -> torch.Tensor:
    return torch.full(shape, float("nan"), device=device)


@settings(deadline=None, max_examples=25)
@given(n_blocks=st.integers(1, 12), n_loads=st.integers(1, 9), data=st.data())
def test_read_goes_round_its_own_blocks(lecture, device, n_blocks, n_loads, data):
    n_programs = data.draw(st.integers(1, n_blocks))
    x = torch.randn(n_blocks, BLOCK, device=device)
    got = lecture.read(x, n_programs, n_loads, block=BLOCK, out=filled((n_programs,), device))
    want = lecture.read_reference(x, n_programs, n_loads, BLOCK)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cache", ["", ".ca", ".cg"])
def test_read_once(lecture, device, cache):
    x = torch.randn(5, 1024, device=device)
    got = lecture.read(x, cache=cache)
    torch.testing.assert_close(got.double(), x.double().sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_programs", [None, 1, 3, 7])
def test_copy(lecture, device, n_programs):
    x = torch.randn(7 * BLOCK, device=device)
    y = filled(x.shape, device)
    assert lecture.copy(x, y, n_programs, n_loads=7, block=BLOCK) is y
    assert torch.equal(x, y)


def test_copy_stops_where_told(lecture, device):
    x = torch.randn(4, BLOCK, device=device)
    y = lecture.copy(x, filled(x.shape, device), n_programs=2, n_loads=1, block=BLOCK)
    assert torch.equal(y[:2], x[:2]) and y[2:].isnan().all()


@pytest.mark.parametrize("n_lines", [1, 2, 3, 64, 257])
def test_random_cycle_visits_every_line_once(lecture, device, n_lines):
    table = lecture.random_cycle(n_lines, device)
    assert table.dtype == torch.int32 and table.shape == (n_lines * 32,)
    entries, position, seen = table.tolist(), 0, set()
    for _ in range(n_lines):
        seen.add(position)
        position = entries[position]
    assert position == 0 and seen == set(range(0, n_lines * 32, 32))


def test_chase_goes_on_where_it_stopped(lecture, device):
    table = lecture.random_cycle(50, device)
    step, leap = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
    for _ in range(5):
        lecture.chase(table, step, 7)
    assert lecture.chase(table, leap, 35).item() == step.item() != 0
    assert lecture.chase(table, step, 0).item() == leap.item()


def test_multiply_add(lecture, device):
    out = lecture.multiply_add(filled((256,), device), -0.5, 3.0, 1)
    # a chain that contracts ends at b / (1 - a)
    torch.testing.assert_close(out, torch.full_like(out, 2.0))


@pytest.mark.parametrize("op", ["row_softmax", "row_softmax_unfused"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (2, 32), (5, 123), (2, 1823), (1, 16384)])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_softmax(lecture, device, op, shape, offset):
    x = torch.randn(shape, device=device) * 4 + offset
    got = getattr(lecture, op)(x, filled(shape, device))
    want = torch.softmax(x.double(), 1)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    assert torch.equal(getattr(lecture, op)(x), got)


@pytest.mark.parametrize("op", ["row_softmax", "row_softmax_unfused"])
def test_softmax_of_what_is_not_finite(lecture, device, op):
    x = torch.randn(4, 100, device=device)
    x[0, :50], x[1], x[2, 7], x[3, 99] = -torch.inf, -torch.inf, torch.inf, torch.nan
    got = getattr(lecture, op)(x, filled((4, 100), device))
    torch.testing.assert_close(got, torch.softmax(x, 1), equal_nan=True)


def test_reference_is_softmax(lecture, device):
    x = torch.randn(5, 123, device=device, dtype=torch.float64)
    torch.testing.assert_close(lecture.row_softmax_reference(x), torch.softmax(x, 1))


BAD_INPUT = {
    "dtype": (lambda m, x: m.read(x.half()), TypeError, "read needs torch.float32"),
    "strides": (lambda m, x: m.read(x[:, ::2]), ValueError, "contiguous tensor, got strides"),
    "empty": (lambda m, x: m.read(x[:0]), ValueError, "multiple of 1024 elements, got 0"),
    "uneven": (lambda m, x: m.copy(x[:1], x), ValueError, "multiple of 1024 elements, got 512"),
    "no programs": (lambda m, x: m.read(x, 0), ValueError, "1 to 2 programs, got 0"),
    "programs": (lambda m, x: m.copy(x, x, 3), ValueError, "1 to 2 programs, got 3"),
    "table": (lambda m, x: m.chase(x, x, 1), TypeError, "chase needs torch.int32"),
    "position": (lambda m, x: m.chase(x.int(), x, 1), TypeError, "chase needs torch.int32"),
    "lanes": (lambda m, x: m.multiply_add(x[0, :8], 1.0, 1.0, 1), ValueError, "multiple of 128"),
    "rank": (lambda m, x: m.row_softmax(x[0]), ValueError, "matrix of at most 16384 columns"),
    "wide": (
        lambda m, x: m.row_softmax_unfused(x.new_zeros(1, 16385)),
        ValueError,
        "at most 16384 columns, got (1, 16385)",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(lecture, device, name):
    call, error, message = BAD_INPUT[name]
    with pytest.raises(error, match=re.escape(message)):
        call(lecture, torch.zeros(4, 512, device=device))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(lecture, device):
    """Offsets in 32 bits would wrap, and read and write elsewhere."""
    n = 2**31 + 1024
    x = torch.zeros(n, device=device)
    x[-1024:] = 1.0
    assert lecture.read(x)[-1].item() == 1024
    y = lecture.copy(x, torch.full_like(x, float("nan")))
    assert torch.equal(x[-1024:], y[-1024:]) and torch.equal(x[:1024], y[:1024])
