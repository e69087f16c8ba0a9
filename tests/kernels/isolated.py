"""Runs a script as a project would that has torch and triton and nothing else.

python isolated.py import softmax.py          imports it; defining must be all that it does
python isolated.py run softmax.py             runs it as `python softmax.py`
python isolated.py call softmax.py softmax    imports it, calls functions with CPU tensors
"""

import contextlib
import importlib.util
import inspect
import io
import itertools
import json
import re
import runpy
import sys
from importlib import metadata
from importlib.machinery import PathFinder


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


def main(action: str, path: str, *functions: str) -> None:
    sys.path.pop(0)  # this script's own folder
    # triton needs numpy for the interpreter only, and does not say so
    only = OnlyTorchAndTriton(*(["numpy"] if action == "run" else []))
    sys.meta_path = [only if finder is PathFinder else finder for finder in sys.meta_path]
    if action == "run":
        import torch

        torch.manual_seed(0)  # as the tests do
        sys.argv = [path]
        runpy.run_path(path, run_name="__main__")
        return

    import torch
    import triton  # noqa: F401

    output = io.StringIO()
    spec = importlib.util.spec_from_file_location("lecture", path)
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        spec.loader.exec_module(module)
    assert not output.getvalue(), f"importing printed {output.getvalue()!r}"
    assert not torch.cuda.is_initialized(), "importing woke the GPU"
    print(json.dumps({name: call_on_cpu(getattr(module, name)) for name in functions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
