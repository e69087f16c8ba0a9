"""Bounds for the interpreter: an access outside the tensors of its launch fails.

A store that lacks its mask otherwise writes into whatever follows the tensor in memory, and what
lies there decides whether anything goes wrong. On a GPU compute-sanitizer does the same.
"""

import contextlib
from unittest import mock

import numpy as np
from triton.runtime import interpreter


class OutOfBounds(BaseException):
    """An address lies in none of the launch's tensors.

    Not an Exception: the interpreter would wrap it in one of its own.
    """


class Memory:
    """Stands before the interpreter's memory, and lets pass what meets a tensor."""

    def __init__(self, native):
        self.native = native
        self.starts = self.ends = np.zeros(0, np.uint64)

    def __getattr__(self, name):
        return getattr(self.native, name)

    def admit(self, arguments) -> None:
        """From now on these may be met: the tensors of a launch."""
        storages = [tensor.untyped_storage() for tensor in tensors(arguments)]
        spans = sorted((s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages)
        self.starts, self.ends = np.array(spans or [(0, 0)], np.uint64).T

    def check(self, pointers, mask, dtype) -> None:
        size = np.uint64(np.dtype(dtype).itemsize)
        met = pointers[np.asarray(mask, bool)]  # a descriptor brings a memoryview
        span = np.searchsorted(self.starts, met, side="right") - 1
        outside = met[(span < 0) | (met + size > self.ends[span])]
        if outside.size:
            raise OutOfBounds(f"{outside.size} of {met.size} lanes lie outside every tensor")

    def load(self, pointers, mask, other, dtype):
        self.check(pointers, mask, dtype)
        return self.native.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self.check(pointers, mask, value.dtype)
        return self.native.store(pointers, value, mask)

    def atomic_rmw(self, operation, pointers, value, mask, semantic):
        self.check(pointers, mask, value.dtype)
        return self.native.atomic_rmw(operation, pointers, value, mask, semantic)

    def atomic_cas(self, pointers, compare, value, semantic):
        self.check(pointers, np.ones_like(pointers), value.dtype)
        return self.native.atomic_cas(pointers, compare, value, semantic)


def tensors(arguments):
    """The tensors among arguments, also those in tuples, descriptors and reinterpreted ones."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from tensors(argument)
        elif hasattr(argument, "untyped_storage"):
            yield argument
        elif hasattr(argument, "base"):
            yield from tensors((argument.base,))


@contextlib.contextmanager
def bounds():
    """Within it, the interpreter raises OutOfBounds where a lane leaves its launch's tensors."""
    memory = Memory(interpreter._interpreter)
    executor = interpreter.GridExecutor

    def init_args_hst(self, args, kwargs, original=executor._init_args_hst):
        on_host = original(self, args, kwargs)
        memory.admit((*on_host[0], *on_host[1].values()))
        return on_host

    with (
        mock.patch.object(interpreter, "_interpreter", memory),
        mock.patch.object(executor, "_init_args_hst", init_args_hst),
    ):
        yield


def traffic(run) -> int:
    """How many numbers a launch reads and writes, each once, since a cache keeps it meanwhile."""
    memory, met = interpreter._interpreter, {"load": [], "store": []}

    def load(pointers, mask, *rest):
        met["load"].append(pointers[np.asarray(mask, bool)])
        return Memory.load(memory, pointers, mask, *rest)

    def store(pointers, value, mask):
        met["store"].append(pointers[np.asarray(mask, bool)])
        return Memory.store(memory, pointers, value, mask)

    with mock.patch.object(memory, "load", load), mock.patch.object(memory, "store", store):
        run()
    return sum(np.unique(np.concatenate(pointers)).size for pointers in met.values())
