"""Runs scripts as a project would that has torch and triton and nothing else.

Reads line by line, as JSON, a folder and what to do there. Each is done in a fork of this process,
which has torch and triton imported, and answered with its exit code, stdout and stderr:

["/tmp", "import", "softmax.py"]            imports it; defining must be all that it does
["/tmp", "run", "softmax.py"]               runs it as `python softmax.py`
["/tmp", "call", "softmax.py", "softmax"]   imports it, calls functions with CPU tensors

Arguments name what the scripts may import besides. The interpreter, where it is on, takes its
shortcuts (shortcuts.py).
"""

import contextlib
import gc
import importlib.util
import inspect
import io
import itertools
import json
import os
import re
import runpy
import signal
import sys
import tempfile
from importlib import metadata
from importlib.machinery import PathFinder

SECONDS = 500  # that a task may take


def distributions(*roots: str) -> set[str]:
    """The named distributions and all that they require, by normalised name."""
    found, todo = set(), list(roots)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        with contextlib.suppress(metadata.PackageNotFoundError):
            if name not in found:
                needs = [line for line in metadata.requires(name) or [] if "extra ==" not in line]
                todo += [re.match(r"[\w.-]+", need)[0] for need in needs]
                found.add(name)
    return found


class OnlyTorchAndTriton:
    """Finds what is installed, but for modules that neither torch nor triton requires.

    Those are as good as not installed: torch asks for some, and goes without.
    """

    def __init__(self, *more: str):
        allowed = distributions("torch", "triton", *more)
        self.refused = {
            module
            for module, names in metadata.packages_distributions().items()
            if not allowed & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
        }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.refused:
            return None
        return PathFinder.find_spec(name, path, target)

    # triton looks for its backends
    find_distributions = staticmethod(PathFinder.find_distributions)


def call_on_cpu(function) -> list[str]:
    """Calls a function with CPU tensors of several ranks and dtypes; says what each call raised.

    Some of them have the shape and dtype that the function wants.
    """
    import torch

    dtypes = (torch.float32, torch.float16, torch.uint8)
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
    ]
    said = []
    for rank, dtype in itertools.product((1, 2, 3, 4), dtypes):
        shape = (2, 3, 64, 64)[-rank:]
        try:
            function(**{name: torch.ones(shape, dtype=dtype) for name in names})
            said.append("returned")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def carry_out(action: str, path: str, *functions: str) -> None:
    import torch

    if action == "run":
        torch.manual_seed(0)  # as the tests do
        sys.argv = [path]
        runpy.run_path(path, run_name="__main__")
        return

    output = io.StringIO()
    spec = importlib.util.spec_from_file_location("lecture", path)
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        spec.loader.exec_module(module)
    assert not output.getvalue(), f"importing printed {output.getvalue()!r}"
    assert not torch.cuda.is_initialized(), "importing woke the GPU"
    print(json.dumps({name: call_on_cpu(getattr(module, name)) for name in functions}))


def serve() -> None:
    gc.freeze()  # else a fork's first collection copies every page that it shares with this process
    for line in sys.stdin:
        folder, *task = json.loads(line)
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            child = os.fork()
            if not child:
                signal.alarm(SECONDS)
                os.chdir(folder)
                sys.path[0] = folder
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # not to read what comes next
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                return carry_out(*task)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told = [(file.seek(0), file.read())[1] for file in (stdout, stderr)]
        print(json.dumps([code, *told]), flush=True)


def main(*more: str) -> None:
    only = OnlyTorchAndTriton(*more)
    sys.meta_path = [only if finder is PathFinder else finder for finder in sys.meta_path]
    import torch  # noqa: F401
    import triton

    if triton.knobs.runtime.interpret:
        from shortcuts import SHORTCUTS, taken

        with taken(SHORTCUTS):
            serve()
    else:
        serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
