"""A check that cannot fail checks nothing: each planted bug must turn its lecture's check red.

`mutants/<stem>.toml` lists the bugs of a lecture:

    [[mutant]]
    name = "the mask is dropped"
    old = "tl.store(out_ptr + offs, y, mask=mask)"
    new = "tl.store(out_ptr + offs, y)"

`old` occurs in the script exactly once, or `count` times, all of which are replaced. The check must
raise an AssertionError or leave a tensor's bounds; another exception counts where `raises` names
it. Checks run in the interpreter, those of Gluon's lectures, for which there is none, on a GPU.
"""

import ast
import faulthandler
import functools
import gc
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lectures import cells, find_lecture, lecture_name, lecture_paths, script_sha256

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

MUTANTS = Path(__file__).with_name("mutants")
MINIMUM = 5
SECONDS = 60
# what a lecture's kernels use, its mutants must break
ASPECTS = ("mask", "stride", "scale|max")

sha256 = functools.cache(script_sha256)  # of a lecture, for each of its mutants


def mutants(stem: str) -> list[dict]:
    path = MUTANTS / f"{stem}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["mutant"] if path.exists() else []


def mutate(source: str, mutant: dict) -> str:
    """The source with the bug planted."""
    occurrences, wanted = source.count(mutant["old"]), mutant.get("count", 1)
    assert occurrences == wanted, f"{mutant['old']!r} occurs {occurrences} times, not {wanted}"
    broken = source.replace(mutant["old"], mutant["new"])
    assert script_sha256(broken) != sha256(source), "the mutant changes no code"
    ast.parse(broken)  # else it is red whatever the check compares
    return broken


def verdict(load, script: Path) -> str:
    """What becomes of the check, in a process of its own.

    A store without its mask can corrupt the heap, and a loop without its step never ends; neither
    may reach the other tests.
    """

    def run():
        faulthandler.disable()  # a crash is a verdict, not news
        gc.freeze()  # else the first collection copies every page that is shared with the parent
        try:
            load(script).check("cpu")
            sender.send("survived")
        except BaseException as error:
            sender.send(type(error).__name__)

    context = multiprocessing.get_context("fork")  # torch and triton are imported already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else "TimeoutError"
    except EOFError:
        return "crashed"
    finally:
        process.kill()
        process.join()


def verdict_on_gpu(script: Path) -> str:
    """The same of a Gluon script on a GPU, whose context a broken kernel takes with it."""
    command = [sys.executable, script]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=5 * SECONDS)
    except subprocess.TimeoutExpired:
        return "TimeoutError"
    if "CUDA error" in run.stderr:
        return "crashed"
    errors = re.findall(r"^(\w+Error)\b", run.stderr, re.M)
    return errors[-1] if run.returncode else "survived"


def is_gluon(script: Path) -> bool:
    return "triton.experimental.gluon" in script.read_text(encoding="utf-8")


PLANTED = [
    pytest.param(
        script,
        mutant,
        id=f"{script.stem}-{mutant['name']}",
        # on a GPU a broken kernel would take the context with it
        marks=pytest.mark.gpu if is_gluon(script) else pytest.mark.interpreter,
    )
    for script in (find_lecture(path.stem) for path in sorted(MUTANTS.glob("*.toml")))
    for mutant in mutants(script.stem)
]


@pytest.mark.parametrize(("script", "mutant"), PLANTED)
def test_check_goes_red(script, mutant, load, tmp_path):
    copy = tmp_path / script.name
    copy.write_text(mutate(script.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    red = {"crashed", "OutOfBounds", mutant.get("raises", "AssertionError")}
    assert (verdict_on_gpu(copy) if is_gluon(script) else verdict(load, copy)) in red


@pytest.mark.parametrize("script", lecture_paths(), ids=lecture_name)
def test_enough_mutants(script):
    planted = mutants(script.stem)
    assert len(planted) >= MINIMUM, f"mutants/{script.stem}.toml holds {len(planted)} mutants"
    source = script.read_text(encoding="utf-8")
    for mutant in planted:
        mutate(source, mutant)
    copied = [c.source for c in cells(source) if "copy" in c.tags]
    for aspect in ASPECTS:
        if any(re.search(aspect, source) for source in copied):
            told = [mutant["name"] + mutant["old"] for mutant in planted]
            assert any(re.search(aspect, text) for text in told), f"no mutant of: {aspect}"


def test_a_check_that_cannot_fail_is_found(load, tmp_path):
    lazy, fatal = tmp_path / "lazy.py", tmp_path / "crash.py"
    lazy.write_text("def check(device):\n    pass\n")
    fatal.write_text("import os\n\n\ndef check(device):\n    os.abort()\n")
    assert verdict(load, lazy) == "survived"
    assert verdict(load, fatal) == "crashed"
