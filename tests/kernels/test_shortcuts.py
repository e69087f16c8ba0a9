"""Shortcuts through the interpreter lead where the whole way does."""

import inspect
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from tests.kernels.shortcuts import np_dtype, patch_lang, whole_np_dtype, whole_patch_lang

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
