"""The programs in the guides run as the guides say, each as a reader would start it."""

import os
import re
import subprocess
import sys

import pytest

from scripts.lectures import ROOT


def program(page: str) -> tuple[str, str]:
    """A guide's longest block of Python, and the output that the guide shows after it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    code = max(re.findall(r"(?ms)^```python\n(.*?)^```", text), key=len)
    shown = re.findall(r"(?ms)^``` \{ \.text \.no-copy \}\n(.*?)^```", text.partition(code)[2])
    return code, shown[0]


def run(code: str, folder, **environment) -> subprocess.CompletedProcess:
    script = folder / "program.py"
    script.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, script.name],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_first_kernel(tmp_path):
    code, shown = program("start.md")
    result = run(code, tmp_path)
    assert (result.returncode, result.stdout) == (0, shown), result.stderr


def test_verify_program(tmp_path, device):
    code, shown = program("install.md")
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    versions = r"Python [\d.]+\S*, torch \S+, triton \S+\n"
    assert re.fullmatch(versions + r"Ran a kernel on .+: the result is right\.\n", result.stdout)
    assert re.fullmatch(versions + r"Ran a kernel on .+: the result is right\.\n", shown)


@pytest.mark.interpreter
def test_verify_program_says_what_is_missing(tmp_path):
    code, _ = program("install.md")
    result = run(code, tmp_path, TRITON_INTERPRET="0")
    assert result.returncode == 1
    assert result.stderr.startswith("Not ready: torch ")
