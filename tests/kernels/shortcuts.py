"""Shortcuts through the interpreter: it takes a third of the time, and tests see no difference."""

import contextlib
import functools
from dataclasses import replace
from unittest import mock

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

whole_patch_lang = interpreter._patch_lang
whole_np_dtype = interpreter._get_np_dtype
whole_block_type = tl.block_type.__init__
whole_tensor = tl.tensor.__init__
whole_broadcast = TritonSemantic.broadcast_impl_value
whole_reduce = interpreter.ReduceOps.generic_reduce

dtype_of_scalar = functools.cache(whole_np_dtype)
scalar = tl.tensor(None, tl.int1)
options = interpreter.interpreter_builder.options


@functools.cache
def known(fn):
    """The modules of the language that a function knows."""
    return [value for value in fn.__globals__.values() if value is tl or value is tl.core]


def patch_lang(fn):
    """Exchanges the language's functions for the interpreter's, unless that is done.

    The interpreter searches the whole language at a launch, and again wherever a kernel calls a
    function, though by then nothing is left to exchange.
    """
    functions = [function for module in known(fn) for function in (module.load, module.tensor.to)]
    if any(map(tl.core.is_builtin, functions)):
        return whole_patch_lang(fn)
    return interpreter._LangPatchScope()


def np_dtype(dtype):
    """The type of numpy's that stands for one of Triton's, from a table not built each time."""
    return np.dtype(np.uint64) if dtype.scalar.is_ptr() else dtype_of_scalar(dtype.scalar)


@functools.lru_cache(maxsize=None, typed=True)  # a shape of 2.0 is refused
def measures(*shape):
    """A block's shape, its name, its number of elements; and how tensors show shape and number."""
    block = tl.block_type.__new__(tl.block_type)
    whole_block_type(block, tl.int1, list(shape))
    shown = tl.tensor.__new__(tl.tensor)
    whole_tensor(shown, None, block)
    return block.shape, str(block.shape), block.numel, (shown.shape, shown.numel)


def block_type(self, element_ty, shape):
    """Makes a type without validating each shape anew."""
    assert isinstance(shape, list | tl.tuple)
    self.element_ty = element_ty
    sizes = [size.value if isinstance(size, tl.constexpr) else size for size in shape]
    self.shape, name, self.numel, self.shown = measures(*sizes)
    self.name = f"<{name}, {element_ty}>"


def tensor(self, handle, type):
    """Makes a tensor without new constants for each."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = type.shown if type.is_block() else (scalar.shape, scalar.numel)


def broadcast(self, lhs, rhs):
    """Leaves alone what has one shape already."""
    alike = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
    return (lhs, rhs) if alike else whole_broadcast(self, lhs, rhs)


def reduce(self, inputs):
    """Combines slices, where there is more than one axis, in the order in which numbers would be.

    So it goes for a function of the kernel's own; the language's sums and maxima are numpy's.
    """
    if self.axis is None or len(inputs[0].shape) == 1:
        return whole_reduce(self, inputs)

    def tensors(values):
        return [self.to_tensor(v, x.dtype) for v, x in zip(values, inputs, strict=True)]

    slices = zip(*(np.moveaxis(x.handle.data, self.axis, 0) for x in inputs), strict=True)
    total = tensors(next(slices))
    for one in slices:
        combined = self.combine_fn.fn(*total, *tensors(one))
        combined = combined if isinstance(combined, tuple) else (combined,)
        total = tensors([x.handle.data for x in combined])
    if self.keep_dims:
        total = tensors([np.expand_dims(x.handle.data, self.axis) for x in total])
    return total


SHORTCUTS = [
    (interpreter, "_patch_lang", patch_lang),
    (interpreter, "_get_np_dtype", np_dtype),
    (tl.block_type, "__init__", block_type),
    (tl.tensor, "__init__", tensor),
    (TritonSemantic, "broadcast_impl_value", broadcast),
    (interpreter.ReduceOps, "generic_reduce", reduce),
    # integers are added in 64 bits too, for an assertion that would need the option debug
    (interpreter.interpreter_builder, "options", replace(options, sanitize_overflow=options.debug)),
]
WHOLE_WAY = [(owner, name, getattr(owner, name)) for owner, name, _ in SHORTCUTS]


@contextlib.contextmanager
def taken(ways):
    """Within it, the interpreter goes these ways: SHORTCUTS or the WHOLE_WAY."""
    with contextlib.ExitStack() as stack:
        for way in ways:
            stack.enter_context(mock.patch.object(*way))
        yield
