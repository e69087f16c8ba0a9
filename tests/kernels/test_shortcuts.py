"""Shortcuts through the interpreter lead where the whole way does, to the bit."""

import inspect
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from scripts.lectures import find_lecture
from tests.kernels.shortcuts import (
    SHORTCUTS,
    WHOLE_WAY,
    np_dtype,
    patch_lang,
    taken,
    whole_np_dtype,
    whole_patch_lang,
)

pytestmark = pytest.mark.interpreter

seen = []


def look():
    """Notes what stands under each name of the language."""
    parts = tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base
    members = [(part, *member) for part in parts for member in inspect.getmembers(part)]
    seen.append([(str(p), name, getattr(m, "__qualname__", type(m))) for p, name, m in members])


@triton.jit
def plus_one(x):
    look()
    return x + 1


@triton.jit
def sum_kernel(x_ptr, y_ptr):
    # a function of the language, which knows tl.core, and one of ours, which knows tl
    total = tl.sum(tl.load(x_ptr + tl.arange(0, 8)))
    tl.store(y_ptr, plus_one(total))


def test_a_function_finds_the_language_exchanged():
    seen.clear()
    look()
    # twice each, since a launch does not undo all
    for way in (patch_lang, patch_lang, whole_patch_lang, whole_patch_lang):
        y = torch.zeros(1)
        with mock.patch.object(interpreter, "_patch_lang", way):
            sum_kernel[(1,)](torch.ones(8), y)
        assert y == 9
    plain, *launches = seen
    assert plain != launches[0]
    assert all(launch == launches[0] for launch in launches)


def test_types_are_the_same():
    scalars = [value for value in vars(tl).values() if type(value) is tl.dtype]
    scalars.remove(tl.void)
    assert tl.bfloat16 in scalars and tl.int1 in scalars
    for scalar in scalars:
        pointer = tl.pointer_type(scalar)
        for dtype in (scalar, pointer, *(tl.block_type(t, [2, 4]) for t in (scalar, pointer))):
            assert np_dtype(dtype) == whole_np_dtype(dtype)


def both_ways(run):
    """What a function gives by the shortcuts, which is what it gives by the whole way."""
    given = []
    for ways in (SHORTCUTS, WHOLE_WAY):
        with taken(ways):
            given.append(run())
    short, whole = given
    assert len(short) == len(whole)
    for x, y in zip(short, whole, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    return short


@pytest.mark.parametrize("shape", [[4], [2, 8], [tl.constexpr(4), 2]], ids=str)
@pytest.mark.parametrize("element", [tl.int1, tl.bfloat16, tl.pointer_type(tl.int8)], ids=str)
def test_blocks_are_the_same(element, shape):
    looks = []
    for ways in (SHORTCUTS, WHOLE_WAY):
        with taken(ways):
            for type in (element, tl.block_type(element, shape), tl.block_type(element, shape)):
                block = tl.tensor("a handle", type)
                attributes = (name for name in vars(block) if name != "type")
                look = {
                    name: (getattr(block, name).__class__, str(getattr(block, name)))
                    for name in attributes
                }
                look |= {name: str(value) for name, value in vars(type).items() if name != "shown"}
                looks.append(look)
    assert looks[:3] == looks[3:] and looks[1] == looks[2] != looks[0]


@pytest.mark.parametrize("shape", [[3], [2.0], [2**21], [], (2, 2)], ids=str)
def test_no_block_is_refused_by_one_way_only(shape):
    with taken(SHORTCUTS):
        tl.block_type(tl.int1, [2])  # 2.0 == 2
    said = []
    for ways in (SHORTCUTS, WHOLE_WAY):
        with taken(ways), pytest.raises(Exception) as caught:
            tl.block_type(tl.int1, shape)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def fold(value, at, other, other_at):
    """Rounds, and the order matters."""
    return value * 0.7 + other, tl.where(other > value, other_at, at)


@triton.jit
def reduce_kernel(x_ptr, most_ptr, sum_ptr, at_ptr, AXIS: tl.constexpr, KEEP: tl.constexpr):
    offs = tl.arange(0, 4)[:, None, None] * 16 + tl.arange(0, 2)[:, None] * 8 + tl.arange(0, 8)
    x = tl.load(x_ptr + offs)
    most = tl.reduce(x, AXIS, larger, keep_dims=KEEP)
    total, at = tl.reduce((x, offs), AXIS, fold, keep_dims=KEEP)
    out = tl.arange(0, most.numel)
    tl.store(most_ptr + out, tl.reshape(most, [most.numel]))
    tl.store(sum_ptr + out, tl.reshape(total, [most.numel]))
    tl.store(at_ptr + out, tl.reshape(at, [most.numel]))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_reductions_are_the_same(dtype, axis, keep):
    x = (torch.randn(64) * 100).to(dtype)
    if dtype != torch.int32:
        x[5] = torch.nan

    def run():
        out = torch.zeros(64, dtype=dtype), torch.zeros(64), torch.zeros(64, dtype=torch.int32)
        reduce_kernel[(1,)](x, *out, axis, keep)
        return out

    most, *_ = both_ways(run)
    want = x.view(4, 2, 8).amax(axis).flatten()
    torch.testing.assert_close(most[: want.numel()], want, equal_nan=True)


def softmax(lecture):
    x = torch.randn(3, 129).half().requires_grad_()
    y = lecture.softmax(x)
    return y.detach(), *torch.autograd.grad(y.sum(), x)


def reductions(lecture):
    x, gates = torch.rand(2, 5, 70)
    sums = (lecture.reduce_sum(x.bfloat16(), dim) for dim in (-1, 0, None))
    return *sums, *lecture.row_max(x), lecture.scan(x, gates)


def dropout(lecture):
    return lecture.dropout(torch.ones(3000), 0.3, seed=2**40, offset=2**35), torch.zeros(1)


def flash_attention(lecture):
    q, k, v = torch.randn(3, 1, 2, 70, 32).half()
    return lecture.flash_attention(q, k, v, causal=True, return_lse=True)


@pytest.mark.parametrize("run", [softmax, reductions, dropout, flash_attention])
def test_lectures_give_the_same(run, load):
    lecture = load(find_lecture(run.__name__))

    def seeded():
        torch.manual_seed(0)
        return run(lecture)

    assert any(x.any() for x in both_ways(seeded))
