"""What holds the house together: workflows, scripts, style, and the summary of new recordings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compare_recordings import committed, compare, present
from scripts.lectures import ROOT

BIN = Path(sys.executable).parent


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=ROOT, **options
    )


def test_workflows():
    workflows = sorted(ROOT.glob(".github/workflows/*.yml"))
    config = ("-config-file", ".github/actionlint.yaml", "-shellcheck", BIN / "shellcheck")
    result = run(BIN / "actionlint", "-no-color", *config, *workflows)
    assert result.returncode == 0, result.stdout + result.stderr


def test_shell_scripts():
    result = run(BIN / "shellcheck", ".ci/run", *sorted(ROOT.glob("scripts/*.sh")))
    assert result.returncode == 0, result.stdout


def test_dockerfile():
    result = run(BIN / "hadolint", "--no-color", "examples/Dockerfile")
    assert result.returncode == 0, result.stdout


def test_python_style():
    result = run(BIN / "ruff", "check", "--output-format=concise", "examples", "scripts", "tests")
    assert result.returncode == 0, result.stdout


def test_help_names_every_target():
    targets = {"serve", "site", "test", "test-gpu", "record", "profile", "clean"}
    described = {line.split()[0] for line in run("make", "help").stdout.splitlines()}
    assert targets <= described


@pytest.fixture
def only(tmp_path):
    """Runs find_python.sh where the given programs are all there is."""

    def only(*names: str, lowest: str) -> subprocess.CompletedProcess:
        for name in names:
            (tmp_path / name).symlink_to(sys.executable)
        for name in ("cat", "sh"):
            (tmp_path / name).symlink_to(shutil.which(name))
        return run(ROOT / "scripts/find_python.sh", lowest, env={"PATH": str(tmp_path)})

    return only


def test_a_python_is_found(only):
    result = only("python3.12", lowest="3.10")
    assert result.returncode == 0 and result.stdout.strip(), result.stderr


def test_a_missing_python_is_said(only):
    result = only("python3", lowest="4.0")
    assert result.returncode == 1 and not result.stdout
    assert "No Python 4.0 or later" in result.stderr and "SITE_PYTHON" in result.stderr


def recording(version: str, **ms: float) -> dict:
    rows = [
        {"provider": provider, "n_cols": 1024, "ms": time, "bytes": 8, "flops": 0}
        for provider, time in ms.items()
    ]
    rows.append({"provider": "triton", "n_cols": 2048, "wrong": 0})  # it counts, and times nothing
    names = {"name": "softmax_forward", "title": "", "x": "n_cols", "ceiling": "copy"}
    return {
        "environment": {"torch": version},
        "ceilings": {"copy": [], "matmul": []},
        "benchmarks": [names | {"rows": rows}],
    }


def test_summary_lists_what_moved():
    before = {"gpu/a": recording("2.11", triton=1.0, torch=2.0), "gpu/b": recording("2.11")}
    after = {"gpu/a": recording("2.12", triton=1.02, torch=1.8), "gpu/c": recording("2.12")}
    assert compare(before, after).splitlines() == [
        "- gpu/a: torch 2.11 → 2.12",
        "- gpu/b: gone",
        "- gpu/c: new",
        "- 1 of 2 rows moved by more than 3%",
        "",
        "| change | recording | benchmark | size | provider | ms before | ms after |",
        "|--:|---|---|---|---|--:|--:|",
        "| -10.0% | gpu/a | softmax_forward | n_cols 1024 | torch | 2.0 | 1.8 |",
    ]


def test_summary_reads_commit_and_tree(tmp_path):
    path = tmp_path / "docs/recorded/nvidia-h200/fusion/softmax.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"ceilings": {}, "was": "before"}')
    (path.parents[1] / "tests.json").write_text('{"passed": 1}')
    path.with_suffix(".profile.json").write_text('{"benchmarks": []}')
    git = ("git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "recordings")):
        assert run(*git, *command).returncode == 0
    path.write_text('{"ceilings": {}, "was": "after"}')
    name = "nvidia-h200/fusion/softmax"
    assert committed("HEAD", tmp_path)[name]["was"] == "before"
    assert present(tmp_path) == {name: {"ceilings": {}, "was": "after"}}


def test_summary_of_no_commit_names_it():
    done = run(sys.executable, "scripts/compare_recordings.py", "no-such-commit")
    assert done.returncode == 1 and "no-such-commit" in done.stderr
    assert "Traceback" not in done.stderr


def test_chromium_that_cannot_be_installed_says_what_to_do(tmp_path):
    for tool in ("cat", "id"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = run("/bin/sh", "scripts/ensure_chromium.sh", env={"PATH": str(tmp_path)})
    assert done.returncode == 1 and "sudo apt-get install chromium" in done.stderr
