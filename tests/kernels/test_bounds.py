"""The bounds of the interpreter hold: each way out of a tensor is found, none within it."""

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.bounds import OutOfBounds

pytestmark = pytest.mark.interpreter


@triton.jit
def load_kernel(x_ptr, y_ptr, n, first):
    lane = tl.arange(0, 8)
    tl.store(y_ptr + lane, tl.load(x_ptr + first + lane, mask=lane < n), mask=lane < 4)


@triton.jit
def store_kernel(x_ptr, y_ptr, n, first):
    lane = tl.arange(0, 8)
    tl.store(y_ptr + first + lane, tl.load(x_ptr + lane, mask=lane < 4), mask=lane < n)


@triton.jit
def atomic_kernel(x_ptr, y_ptr, n, first):
    lane = tl.arange(0, 8)
    tl.atomic_add(y_ptr + first + lane, 1.0, mask=lane < n)


@pytest.mark.parametrize("kernel", [load_kernel, store_kernel, atomic_kernel])
def test_a_lane_outside_is_found(kernel):
    x, y = torch.zeros(5), torch.zeros(5)
    kernel[(1,)](x, y, 5, 0)
    kernel[(1,)](x, y, 0, 99)  # masked lanes may point anywhere
    for n, first in ((6, 0), (5, 1), (1, -1)):
        with pytest.raises(OutOfBounds):
            kernel[(1,)](x, y, n, first)


def test_a_tensor_of_another_launch_is_outside():
    x, y = torch.zeros(8), torch.zeros(8)
    load_kernel[(1,)](x, y, 8, 0)
    with pytest.raises(OutOfBounds):
        load_kernel[(1,)](torch.zeros(2), y, 8, 0)
