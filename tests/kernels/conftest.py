"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

import contextlib
import importlib.util
import os
import re
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.kernels import sm_90

# the same examples in every run: what a change broke is seen with the change
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    # triton reads it when it is imported, and a kernel when it is defined
    assert "triton" not in sys.modules, "triton was imported before the interpreter was turned on"
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)  # one process a core; and a pool of threads does not survive a fork


def pytest_runtest_logreport(report):
    """Says at once what failed: a run that is cut short has no summary."""
    if HAS_GPU and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        why = str(report.longrepr).strip().splitlines()[-3:]
        print(f"\nFAILED {report.nodeid}", *why, sep="\n  ", file=sys.__stderr__, flush=True)


def pytest_collection_modifyitems(items):
    mark, reason = ("interpreter", "for the interpreter") if HAS_GPU else ("gpu", "needs a GPU")
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run: "cuda", or "cpu" through the interpreter."""
    return "cuda" if HAS_GPU else "cpu"


@pytest.fixture(scope="session", autouse=True)
def a_folder_that_workers_share(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    sm_90.shared_folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    """Draws the same inputs in every run, so that no test fails by a rare draw alone."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def give_memory_back():
    """Leaves the GPU's memory to the other processes that test on it."""
    yield
    if HAS_GPU:
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def language_as_it_was():
    """Undoes what the interpreter leaves behind in triton.language, over which a compiler stumbles.

    It exchanges the language's functions for its own, and does not restore all those that a kernel
    reaches through a function of the standard library.
    """
    import triton.language as tl

    parts = tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base
    before = [dict(vars(part)) for part in parts]
    yield
    for part, names in zip(parts, before, strict=True):
        for name, value in names.items():
            if vars(part)[name] is not value:
                setattr(part, name, value)


@pytest.fixture(autouse=True)
def within_bounds():
    """In the interpreter a kernel that leaves its tensors fails; on a GPU a sanitizer watches."""
    from tests.kernels.bounds import bounds

    with contextlib.nullcontext() if HAS_GPU else bounds():
        yield


@pytest.fixture(autouse=True, scope="session")
def in_less_time():
    """The interpreter takes shortcuts."""
    from tests.kernels.shortcuts import SHORTCUTS, taken

    with contextlib.nullcontext() if HAS_GPU else taken(SHORTCUTS):
        yield


@pytest.fixture(scope="session")
def load():
    """A function that imports a script from its path under its own stem, and returns the module."""

    def load(script: Path):
        spec = importlib.util.spec_from_file_location(script.stem, script)
        module = importlib.util.module_from_spec(spec)
        sys.modules[script.stem] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def shown(lecture, load, tmp_path):
    """A function that returns a kernel, by name, that the lecture shows in its prose."""

    def shown(name: str):
        page = Path(lecture.__file__).read_text(encoding="utf-8")
        blocks = re.findall(r"(?ms)^# ```python\n(.*?)^# ```", page)
        [block] = [block for block in blocks if f"def {name}(" in block]
        code = "import triton\nimport triton.language as tl\n" + re.sub(r"(?m)^# ?", "", block)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        return getattr(load(tmp_path / f"{name}.py"), name)

    return shown


@pytest.fixture(scope="module")
def lecture(load, request):
    """The lecture that a test file is about: `softmax` for `test_softmax.py`."""
    from scripts.lectures import find_lecture

    return load(find_lecture(request.path.stem.removeprefix("test_")))


@pytest.fixture
def changed(lecture, tmp_path):
    """A function that loads the lecture with texts of its script replaced."""
    from tests.kernels.changed import changed_lecture

    return lambda changes: changed_lecture(lecture, changes, tmp_path)
