"""The recorder, without a GPU: what it captures, and what it leaves alone when a lecture fails."""

import json
import sys
import types

import pytest

from scripts import lectures, record

MACHINE = {"gpu": "NVIDIA Test 1", "torch": "2", "triton": "3", "interpreter": False}
LECTURE = """# %% [markdown]
# # A lecture

# %%
import inspect


def double(x):
    return 2 * x


# %%
if __name__ == "__main__":
    print("the double of 21 is", double(21))
    print("and its source:", inspect.getsource(double).splitlines()[0])

# %%
double(4)


# %%
def check(device="cuda"):
    assert double(1) == 2


def bench(measure):
    yield {"name": "double", "title": "Double", "x": "n", "ceiling": None,
           "rows": [{"provider": "triton", "n": 1, **measure({"triton": double})["triton"]}]}
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one lecture, a machine that seems to have a GPU, and a clock."""
    monkeypatch.setattr(record, "environment", lambda: MACHINE)
    clock = types.ModuleType("scripts.measure")
    clock.ceilings = lambda: {"copy": [], "matmul": []}
    clock.measure = lambda fns, **options: {name: {"ms": 0.123456789} for name in fns}
    monkeypatch.setitem(sys.modules, "scripts.measure", clock)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, LECTURE)
    return tmp_path


def write(root, text, name="part/one"):
    script = root / "examples" / f"{name}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    return script


def recording(root, name="part/one"):
    return root / "docs" / "recorded" / "nvidia-test-1" / f"{name}.json"


def test_captures_outputs_and_rows(root, capsys):
    assert record.record(lectures.lecture_paths(root), root) == 0
    made = json.loads(recording(root).read_text())
    outputs = [cell["outputs"] for cell in made["cells"]]
    assert outputs[0] == []
    printed = "the double of 21 is 42\nand its source: def double(x):\n"
    assert outputs[1] == [{"output_type": "stream", "name": "stdout", "text": printed}]
    assert outputs[2][0]["data"] == {"text/plain": "8"}
    assert made["benchmarks"][0]["rows"][0]["ms"] == 0.12346
    assert made["source"] == "examples/part/one.py"
    assert "part/one" in capsys.readouterr().out
    script = root / "examples/part/one.py"
    assert lectures.is_fresh(recording(root), script)


def test_says_what_runs_what_is_left_and_what_came_of_it(root, capsys):
    write(root, LECTURE, "part/two")
    scripts = [root / f"examples/part/{name}.py" for name in ("one", "two")]
    record.record(scripts, root)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0] == "[1/2] part/one: ceilings of the card, about 120 s left"
    assert "[2/2] part/two: cell 3 of 4, about 60 s left" in lines
    assert "[2/2] part/two: benchmarks, 1 done, about 60 s left" in lines
    table = [line.split()[:4] for line in said.out.splitlines()[-2:]]
    assert table == [[f"part/{name}", "recorded", "4", "1"] for name in ("one", "two")]
    # what it took is what the next run expects
    record.record(scripts, root)
    assert capsys.readouterr().err.startswith("[1/2] part/one: ceilings of the card, about 0 s")


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('    print("the d', '    1 / 0; print("the d', "cell 2 of 4, line 14: ZeroDiv"),
        ("    return 2 * x", "    return x ** 2", "check, line 23: AssertionError"),
        ('measure({"triton": double})', "{}", "bench, line 28: KeyError"),
        ("def double(x):", "def double(x:", "cell 1 of 4, line"),
    ],
)
def test_failure_names_its_place_and_leaves_the_old_recording(root, capsys, old, new, where):
    record.record(lectures.lecture_paths(root), root)
    before = recording(root).read_bytes()
    capsys.readouterr()
    assert LECTURE.count(old) == 1
    write(root, LECTURE.replace(old, new))
    assert record.record(lectures.lecture_paths(root), root) == 1
    said = capsys.readouterr()
    assert f"examples/part/one.py: {where}" in said.err
    assert "failed" in said.out
    assert recording(root).read_bytes() == before
    assert not list(recording(root).parent.glob("*.part"))


def test_failed_lecture_does_not_stop_the_others(root):
    write(root, "# %%\nraise RuntimeError\n", "part/bad")
    assert record.record(lectures.lecture_paths(root), root) == 1
    assert recording(root).exists()
    assert not recording(root, "part/bad").exists()


def test_ceilings_that_cannot_be_measured_are_named(root, monkeypatch, capsys):
    def fails():
        raise RuntimeError("no room for 8 GiB")

    monkeypatch.setattr(sys.modules["scripts.measure"], "ceilings", fails)
    assert record.record([root / "examples/part/one.py"], root) == 1
    assert "ceilings of the card: no room for 8 GiB" in capsys.readouterr().err
    assert not (root / "docs").exists()


def test_interrupt_in_mid_write_leaves_the_old_recording(root, monkeypatch):
    record.record(lectures.lecture_paths(root), root)
    before = recording(root).read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.record(lectures.lecture_paths(root), root)
    assert recording(root).read_bytes() == before
    assert not list(recording(root).parent.glob("*.part"))


def test_goes_on_with_what_is_not_fresh(root, monkeypatch, capsys):
    write(root, LECTURE, "part/two")
    record.record([root / "examples/part/two.py"], root)
    asked = []
    monkeypatch.setattr(lectures, "lecture_paths", lambda: sorted(root.glob("examples/*/*.py")))
    monkeypatch.setattr(lectures, "ROOT", root)
    monkeypatch.setattr(record, "record", lambda scripts: asked.extend(scripts) or 0)
    monkeypatch.setattr(sys, "argv", ["record.py"])
    assert record.main() == 0
    assert asked == [root / "examples/part/one.py"]


def test_unknown_lecture_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["record.py", "fusion/sofmax"])
    assert record.main() == 1
    assert "no lecture named 'fusion/sofmax'; there are: " in capsys.readouterr().err


def test_no_gpu_is_refused(monkeypatch, capsys):
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: False)
    triton = types.ModuleType("triton")
    runtime = types.SimpleNamespace(interpret=False)
    triton.knobs = types.SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setattr(sys, "argv", ["record.py"])
    assert record.main() == 1
    assert "finds no GPU" in capsys.readouterr().err
    runtime.interpret = True
    assert record.main() == 1
    assert "the interpreter measures nothing" in capsys.readouterr().err
