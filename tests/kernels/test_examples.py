"""What holds for every lecture: it is importable, copyable, documented, and of readable size."""

import ast
import builtins
import json
import os
import re
import subprocess
import symtable
import sys
import textwrap
from pathlib import Path

import pytest

from scripts.lectures import EXAMPLES, cells, lecture_name, lecture_paths

LECTURES = [*lecture_paths(), EXAMPLES / "_template.py"]
every_lecture = pytest.mark.parametrize("script", LECTURES, ids=lecture_name)

MAX_LINES = 700
MAX_COLUMNS = 100
LAST_WORD = 'check("cuda" if torch.cuda.is_available() else "cpu")'


@pytest.fixture(scope="module")
def isolated(device):
    """A function that has a script in a folder of its own run alone; see isolated.py.

    The interpreter is on where the script is to run without a GPU.
    """
    servers = {}

    def server(runs: bool) -> subprocess.Popen:
        env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
        command = [sys.executable, Path(__file__).with_name("isolated.py")]
        if runs:
            command.append("numpy")  # triton needs it for the interpreter only, and does not say so
            env |= {} if device == "cuda" else {"TRITON_INTERPRET": "1"}
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        return subprocess.Popen(command, env=env, text=True, **pipes)

    def isolated(action: str, script: Path, *more: str) -> subprocess.CompletedProcess:
        runs = action == "run"
        servers[runs] = servers.get(runs) or server(runs)
        task = [str(script.parent), action, script.name, *more]
        print(json.dumps(task), file=servers[runs].stdin, flush=True)
        return subprocess.CompletedProcess(task, *json.loads(servers[runs].stdout.readline()))

    yield isolated
    for process in servers.values():
        process.communicate()


def copied(source: str, name: str, folder: Path) -> Path:
    copy = folder / name
    copy.write_text(source, encoding="utf-8")
    return copy


def copy_cells(script: Path) -> str:
    """The part of a lecture that a project needs: the cells tagged "copy", in order."""
    found = cells(script.read_text(encoding="utf-8"))
    return "\n".join(cell.source for cell in found if "copy" in cell.tags)


def is_kernel(function: ast.FunctionDef) -> bool:
    return any(".jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def public_functions(source: str) -> list[ast.FunctionDef]:
    body = ast.parse(source).body
    return [f for f in body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]


def operations(script: Path) -> list[ast.FunctionDef]:
    """The functions that a lecture is about: those to copy that have a `<name>_reference`."""
    names = {function.name for function in public_functions(script.read_text(encoding="utf-8"))}
    functions = public_functions(copy_cells(script))
    return [f for f in functions if f"{f.name}_reference" in names]


def answers(script: Path) -> list[str]:
    """The programs in the folded answers to a lecture's exercises."""
    prose = re.sub(r"(?m)^# ?", "", script.read_text(encoding="utf-8"))
    folded = re.findall(r'(?m)^ +\?\?\? success "Answer"\n((?: {8}.*\n|\n)+)', prose)
    found = [re.findall(r"(?ms)^ +```python\n(.*?)^ +```$", answer) for answer in folded]
    return [textwrap.dedent(program) for programs in found for program in programs]


ANSWERS = [
    pytest.param(script, program, id=f"{script.stem}-{number}")
    for script in LECTURES
    for number, program in enumerate(answers(script), 1)
]


def undefined_names(source: str) -> set[str]:
    """Names that a function uses, and that neither the module nor Python defines."""
    module = symtable.symtable(source, "copy", "exec")
    known = set(module.get_identifiers()) | set(dir(builtins))
    used, todo = set(), [module]
    while todo:
        table = todo.pop()
        todo += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return used - known


@every_lecture
def test_importing_only_defines(script, isolated, tmp_path):
    copy = copied(script.read_text(encoding="utf-8"), script.name, tmp_path)
    result = isolated("import", copy)
    assert result.returncode == 0, result.stderr


@every_lecture
def test_the_file_alone_runs_and_checks_itself(script, isolated, tmp_path, device):
    source = script.read_text(encoding="utf-8")
    assert any(LAST_WORD in cell.source for cell in cells(source) if cell.kind == "code")
    result = isolated("run", copied(source, script.name, tmp_path))
    if device == "cpu" and "triton.experimental.gluon" in source:
        assert "RuntimeError: Gluon has no interpreter" in result.stderr
        return
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip(), "check prints no table"


@pytest.mark.parametrize(("script", "program"), ANSWERS)
def test_answers_check_themselves(script, program, isolated, tmp_path):
    """A program in an answer is whole: it runs beside its lecture, and compares its result."""
    assert "assert" in program
    copied(script.read_text(encoding="utf-8"), script.name, tmp_path)
    result = isolated("run", copied(program, "answer.py", tmp_path))
    assert result.returncode == 0, result.stderr


@every_lecture
def test_demonstrations_use_what_stands_above(script):
    """The recorder runs the cells in order, and without a GPU some demonstrations do not run."""
    above = ""
    for cell in cells(script.read_text(encoding="utf-8")):
        if cell.kind == "code":
            above += cell.source + "\n"
            if "__main__" in cell.source:
                assert undefined_names(above) == set(), f"needed in line {cell.line}"


@every_lecture
def test_the_copied_cells_are_a_module(script, isolated, tmp_path):
    """It needs nothing else; without the interpreter a CPU tensor is an error, with the way out."""
    source, ops = copy_cells(script), [op.name for op in operations(script)]
    assert any(map(is_kernel, public_functions(source))), "no kernel in the cells tagged copy"
    assert ops, "no function with a reference in the cells tagged copy"
    assert undefined_names(source) == set()
    result = isolated("call", copied(source, script.name, tmp_path), *ops)
    assert result.returncode == 0, result.stderr
    for errors in json.loads(result.stdout).values():
        assert "returned" not in errors
        told = [e for e in errors if e.startswith("ValueError: ") and "TRITON_INTERPRET=1" in e]
        assert told and all("GPU" in error and "cpu" in error for error in told), errors


@every_lecture
def test_docstrings(script):
    functions = public_functions(script.read_text(encoding="utf-8"))
    assert {"check", "bench"} <= {function.name for function in functions}
    # a kernel on the way to the one to copy is explained by the prose around it
    copied_names = {function.name for function in public_functions(copy_cells(script))}
    explained = [f for f in functions if is_kernel(f) and f.name not in copied_names]
    assert [f.name for f in functions if f not in explained and not ast.get_docstring(f)] == []
    for op in operations(script):
        missing = {"Args:", "Returns:", "Raises:"} - set(ast.get_docstring(op).split())
        assert not missing, f"{op.name}: docstring without {missing}"


@every_lecture
def test_size(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines: split the lecture"
    wide = [i for i, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS]
    breakable = [i for i in wide if not re.search(r"^# *\||\]\(|\{[{%]|^# \w+: ", lines[i - 1])]
    assert not breakable, f"wider than {MAX_COLUMNS} columns: lines {breakable}"


@pytest.mark.gpu
@every_lecture
def test_benchmarks_are_well_formed(script, load):
    """The shape that figures and tables rely on; the clock here is a stand-in."""

    def measure(functions, **options):
        times = {"ms": 1.0, "ms_p20": 1.0, "ms_p80": 1.0}
        extra = {"hot": "ms_hot", "memory": "peak_bytes", "host": "host_us"}
        times |= {key: 1 for option, key in extra.items() if options.get(option)}
        return {provider: dict(times) for provider in functions}

    benchmarks = list(load(script).bench(measure))
    names = [benchmark["name"] for benchmark in benchmarks]
    assert len(names) == len(set(names))
    for benchmark in benchmarks:
        assert benchmark.keys() >= {"name", "title", "x", "dtype", "mode", "ceiling", "rows"}
        assert benchmark["ceiling"] in ("copy", "matmul", None)
        assert benchmark["rows"]
        for row in benchmark["rows"]:
            assert isinstance(row["provider"], str) and benchmark["x"] in row
            numbers = {key: value for key, value in row.items() if key != "provider"}
            assert numbers.keys() >= {"bytes", "flops"}
            assert all(isinstance(value, int | float | str | bool) for value in numbers.values())
            assert benchmark["ceiling"] != "copy" or row["bytes"] > 0
            assert benchmark["ceiling"] != "matmul" or row["flops"] > 0
