"""Shortcuts through the interpreter: it takes half the time, and a test sees no difference.

A lecture that is run by itself (isolated.py) goes the whole way.
"""

import functools
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

whole_patch_lang = interpreter._patch_lang
whole_np_dtype = interpreter._get_np_dtype
dtype_of_scalar = functools.cache(whole_np_dtype)


def patch_lang(fn):
    """Exchanges the language's functions for the interpreter's, unless that is done.

    The interpreter searches the whole language at a launch, and again wherever a kernel calls a
    function, though by then nothing is left to exchange.
    """
    modules = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
    functions = [function for module in modules for function in (module.load, module.tensor.to)]
    if any(map(tl.core.is_builtin, functions)):
        return whole_patch_lang(fn)
    return interpreter._LangPatchScope()


def np_dtype(dtype):
    """The type of numpy's that stands for one of Triton's, from a table not built each time."""
    return np.dtype(np.uint64) if dtype.scalar.is_ptr() else dtype_of_scalar(dtype.scalar)


def shortcuts():
    """Within it, the interpreter takes them."""
    return mock.patch.multiple(interpreter, _patch_lang=patch_lang, _get_np_dtype=np_dtype)
