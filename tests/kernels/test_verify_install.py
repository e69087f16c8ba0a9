"""scripts/verify_install.py: what it says of this machine, and of machines that lack something."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import verify_install
from scripts.lectures import ROOT

SCRIPT = ROOT / "scripts" / "verify_install.py"
LINE = r"(ok|note|problem) +(.+)"
TORCH = """
__version__ = {version!r}
class version:
    cuda, hip = {cuda!r}, None
class cuda:
    is_available = staticmethod(lambda: {available!r})
    get_device_name = staticmethod(lambda: "NVIDIA Pretence")
    get_device_capability = staticmethod(lambda: {capability!r})
"""


def run(*flags: str, **environment: str) -> tuple[int, list[tuple[str, str]]]:
    """The script's exit status, and its lines but the verdict."""
    result = subprocess.run(
        [sys.executable, *flags, SCRIPT],
        env=os.environ | {"TRITON_INTERPRET": ""} | environment,
        capture_output=True,
        text=True,
    )
    lines, verdict = result.stdout.rstrip().rsplit("\n\n", 1)
    assert verdict.startswith("Not ready" if result.returncode else "Ready"), result.stderr
    return result.returncode, [re.fullmatch(LINE, line).groups() for line in lines.splitlines()]


def texts(lines: list[tuple[str, str]], status: str) -> str:
    return "\n".join(text for given, text in lines if given == status)


@pytest.fixture
def pretend(tmp_path):
    """A function that runs the script where torch, triton and nvidia-smi are what it is told."""

    def pretend(triton="3.7.1", smi=None, **torch) -> tuple[int, list[tuple[str, str]]]:
        facts = {"version": "2.13.0+cu130", "cuda": "13.0", "available": True, "capability": (9, 0)}
        (tmp_path / "torch.py").write_text(TORCH.format(**facts | torch))
        (tmp_path / "triton.py").write_text(f"__version__ = {triton!r}\n")
        if smi:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        return run(PYTHONPATH=str(tmp_path), PATH=str(tmp_path), TRITON_HOME=str(tmp_path))

    return pretend


def test_this_machine(device):
    status, lines = run()
    assert status == 0, lines
    assert "1000 of 1000 elements right" in lines[-1][1]
    assert ("in the interpreter" in lines[-1][1]) == (device == "cpu")


def test_shown_output():
    """The guide shows a run with the lines that the script prints, and the script itself."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    verify = page[page.index("## Verify") : page.index("## Troubleshooting")]
    assert '--8<-- "scripts/verify_install.py"' in verify
    shown = re.search(r"(?ms)^``` \{ \.text \.no-copy \}\n(.*?)\n\n(.*?)\n```", verify)
    assert shown[2] == "Ready."
    for line in shown[1].splitlines():
        assert re.fullmatch(LINE, line), line
        start = re.sub(r"\W.*", "", line.split(maxsplit=1)[1])
        assert start in SCRIPT.read_text(encoding="utf-8"), line


def test_needs_nothing_but_python():
    status, lines = run("-I", "-S")  # no site-packages
    assert status == 1
    for name in ("torch", "triton"):
        assert f"{name} is not installed here: {sys.executable} -m pip" in texts(lines, "problem")


def test_old_python_can_say_so(monkeypatch):
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert [status for status, _ in verify_install.check_python()] == ["problem"]
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    assert [status for status, _ in verify_install.check_python()] == ["note"]


def test_versions(pretend):
    status, lines = pretend(triton="3.1.0", version="2.5.1+cu121")
    assert status == 1
    assert "torch 2.5.1+cu121 is too old" in texts(lines, "problem")
    assert "triton 3.1.0 is too old" in texts(lines, "problem")
    status, lines = pretend(triton="3.9.0", version="2.15.0")
    assert "torch 2.15.0; the lectures are tested with 2.11 to 2.13" in texts(lines, "note")
    status, lines = pretend(triton="3.6.0")
    assert "made for triton 3.7" in texts(lines, "note")


def test_broken_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    status, lines = run(PYTHONPATH=str(tmp_path))
    assert status == 1
    assert "cannot be imported, OSError: libcudart.so.13: cannot open" in texts(lines, "problem")


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"smi": "echo 535.1, NVIDIA A10"}, "driver 535.1 is too old"),
        ({"smi": "echo NVML: Driver mismatch; exit 18"}, "Driver mismatch"),
        ({"capability": (7, 5)}, "compute capability 7.5: not supported"),
        (
            {"smi": "echo 580.1, NVIDIA A10", "cuda": None, "available": False},
            "there is a GPU (NVIDIA A10), but this torch is built without CUDA",
        ),
        ({"smi": "echo 580.1, NVIDIA A10", "available": False}, "though nvidia-smi does"),
    ],
)
def test_gpu_that_does_not_work(pretend, facts, problem):
    status, lines = pretend(**facts)
    assert status == 1 and problem in texts(lines, "problem"), lines


def test_hidden_gpu(pretend, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _, lines = pretend(smi="echo 580.1, NVIDIA A10", available=False)
    assert "CUDA_VISIBLE_DEVICES='' hides it" in texts(lines, "problem")


def test_a_gpu_that_works(pretend):
    _, lines = pretend(smi="echo 580.1, NVIDIA Pretence")
    assert "driver 580.1, torch made with CUDA 13.0" in texts(lines, "ok")
    assert "NVIDIA Pretence, compute capability 9.0" in texts(lines, "ok")
    # the pretended torch has no tensors
    assert "a kernel on NVIDIA Pretence fails with: " in texts(lines, "problem")
    assert "no C compiler" in texts(lines, "problem")


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    [(status, text)] = verify_install.check_compiler("problem")
    assert status == "problem" and "neither no-such-compiler" in text
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(verify_install.sysconfig, "get_path", lambda *_: "/no/include")
    [(status, text)] = verify_install.check_compiler("problem")
    assert status == "problem" and "no /no/include/Python.h" in text


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert [status for status, _ in verify_install.check_cache("problem")] == ["ok"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    [(status, text)] = verify_install.check_cache("problem")
    assert status == "problem" and "Not a directory: set TRITON_CACHE_DIR" in text


def test_numpy(monkeypatch):
    class Triton:
        __version__ = "3.6.0"

    class NumPy:
        __version__ = "2.4.6"

    monkeypatch.setattr(verify_install.importlib, "import_module", lambda name: NumPy)
    [(status, text)] = verify_install.check_numpy(Triton, "problem")
    assert status == "problem" and '"numpy<2.4"' in text
    NumPy.__version__ = "2.3.5"
    assert [status for status, _ in verify_install.check_numpy(Triton, "problem")] == ["ok"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("2 * tl.load", "3 * tl.load", "computes wrongly: 1 of 1000"),
        ("BLOCK)\n    mask", "48)\n    mask", "arange's range must be a power of 2"),
        ("import sys", "import os; os._exit(7)\nimport sys", "exit status 7"),
    ],
)
def test_kernel_that_fails(monkeypatch, device, old, new, said):
    assert old in verify_install.KERNEL
    monkeypatch.setattr(verify_install, "KERNEL", verify_install.KERNEL.replace(old, new))
    [(status, text)] = verify_install.check_kernel("this GPU" if device == "cuda" else None)
    assert status == "problem" and said in text


def test_a_file_that_hides_triton(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not list(verify_install.check_shadow())
    Path("triton.py").write_text("")
    [(status, text)] = verify_install.check_shadow()
    assert status == "note" and f"{tmp_path}/triton.py hides the package" in text
