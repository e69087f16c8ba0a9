"""The helpers for debugging, and the museum: each bug shows its symptom, each fix is right."""

import sys

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EXHIBITS = ["no_mask", "short_grid", "wrong_other", "masked_lanes", "int32_offsets", "lost_stride"]
EXHIBITS += ["race", "tf32", "large_tile", "autotuned", "odd_block"]
UNSEEN = {"race", "tf32", "large_tile"}


@pytest.mark.parametrize("name", EXHIBITS)
def test_exhibit(lecture, device, name):
    exhibit = getattr(lecture, f"_{name}")
    assert lecture._outcome(exhibit, device, False)[1] == (device == "cpu" and name in UNSEEN)
    assert lecture._outcome(exhibit, device, True)[1]


def test_every_exhibit_is_checked(lecture):
    assert {exhibit.__name__[1:] for exhibit in lecture._MUSEUM} == set(EXHIBITS)
    assert len(EXHIBITS) >= 10


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_first_nan(lecture, device, dtype):
    for shape in ((), (0,), (1,), (3, 5), (2, 0, 3), (7919,)):
        x = torch.randn(shape, device=device).to(dtype)
        assert lecture.first_nan(x) is None
    x[:3] = torch.tensor([torch.inf, -torch.inf, 0.0])
    assert lecture.first_nan(x) is None
    x[[7918, 4096]] = torch.nan
    assert lecture.first_nan(x) == lecture.first_nan_reference(x) == 4096


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 300), data=st.data())
def test_first_nan_anywhere(lecture, device, n, data):
    spots = data.draw(st.lists(st.integers(0, n - 1), max_size=4)) if n else []
    x = torch.zeros(n, device=device)
    x[spots] = torch.nan
    assert lecture.first_nan(x) == (min(spots) if spots else None)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(0,), (), (3, 5), (1000,)], ids=str)
def test_guarded_like(lecture, device, dtype, shape):
    like = torch.zeros(shape, dtype=dtype, device=device)
    out, guards = lecture.guarded_like(like, guard=16)
    assert (out.shape, out.dtype, out.device) == (like.shape, dtype, like.device)
    assert out.is_contiguous() and out.isnan().all() and guards.shape == (2, 16)
    out.fill_(1)
    assert guards.isnan().all()
    # the elements before and behind the output are the guard's
    around = out.as_strided((out.numel() + 2,), (1,), out.storage_offset() - 1)
    around.fill_(2)
    assert guards[0, -1] == 2 and guards[1, 0] == 2 and guards.isnan().sum() == 30


def test_check_tensors_gpu_ready(lecture, device):
    x = torch.zeros(4, 6, device=device)
    lecture.check_tensors_gpu_ready()
    lecture.check_tensors_gpu_ready(x=x, part=x[1:], column=x[:, :1].contiguous())
    for name, wrong, words in (
        ("t", x.t(), r"t is not contiguous, shape \(6, 4\), strides \(1, 6\)"),
        ("half", x[:, :3], "half is not contiguous"),
        ("meta", x.to("meta"), "meta is on meta"),
    ):
        with pytest.raises(ValueError, match=words):
            lecture.check_tensors_gpu_ready(x=x, **{name: wrong})
    with pytest.raises(ValueError, match="x is not contiguous"):
        lecture.first_nan(x.t())


@triton.jit
def helper_kernel(n: tl.constexpr, print_if: tl.constexpr, breakpoint_if: tl.constexpr):
    pid = tl.program_id(0)
    print_if(pid == n, "pid", pid)
    breakpoint_if(pid >= n)


@pytest.mark.interpreter
def test_conditions_on_the_program(lecture, capsys, monkeypatch):
    stops = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: stops.append(1))
    helper_kernel[(5,)](3, lecture.print_if, lecture.breakpoint_if)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and "pid" in printed[0] and "3" in printed[0]
    assert len(stops) == 2


def test_sources_are_scripts(lecture):
    for exhibit in lecture._MUSEUM:
        script = lecture._source(exhibit)
        compile(script, "bug.py", "exec")
        assert f"def {exhibit.__name__}(" in script and script.count("@triton.jit") >= 1


def test_elsewhere(lecture):
    said = lecture._elsewhere("import sys\nprint(__file__, input())\nsys.exit('end')", stdin="in\n")
    assert said.split() == ["bug.py", "in", "end"]


def test_first_match(lecture):
    text = "a 1\nb 2\na 1\na 3\n"
    assert lecture._first_match("a .", text) == "a 1"
    assert lecture._first_match("a .", text, 9) == "a 1\na 3"
    assert lecture._first_match("c", text) == ""


def test_tools_degrade_clearly(lecture, device, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert "needs a GPU, and compute-sanitizer" in lecture._sanitized()
    if device == "cpu":
        assert "needs a GPU" in lecture._overflow()


@pytest.mark.gpu
def test_tools_speak(lecture):
    assert "overflow detected" in lecture._overflow()
    assert "root of a negative number" in lecture._roots("cuda", TRITON_DEBUG="1")
    assert "(Pdb)" not in lecture._roots("cuda")
    said = lecture._sanitized()
    assert ("double_kernel" in said and "bug.py" in said) or said.startswith("needs")


def test_the_interpreter_set_too_late_fails(lecture):
    assert "Cannot call @triton.jit" in lecture._elsewhere(lecture._TOO_LATE)


@pytest.mark.gpu
def test_a_breakpoint_may_stay_in_the_source(lecture):
    said = lecture._roots("cuda", PYTHONBREAKPOINT="bug.no_such_function")
    assert "1.0, 2.0, 3.0, 4.0, 5.0" in said and "Error" not in said


@triton.jit
def one_too_far_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n)
    tl.store(out_ptr + offs + 1, x + x, mask=offs < n)


def test_answer_1(lecture, device):
    out, guards = lecture.guarded_like(torch.ones(10, device=device))
    one_too_far_kernel[(3,)](torch.ones_like(out), out, 10, BLOCK=4)
    assert lecture.first_nan(out) == 0
    assert guards[1, 0] == 2 and (~guards.isnan()).sum() == 1


@triton.jit
def shift_kernel(x_ptr, REVERSED: tl.constexpr):
    pid = tl.program_id(0)
    if REVERSED:
        pid = tl.num_programs(0) - 1 - pid
    offs = pid * 4 + tl.arange(0, 4)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs + 1))


@pytest.mark.interpreter
def test_answer_2():
    for backwards, wanted in ((False, [*range(1, 9), 8]), (True, [1, 2, 3, 5, 5, 6, 7, 8, 8])):
        x = torch.arange(9.0)
        shift_kernel[(2,)](x, backwards)
        assert x.tolist() == wanted


@triton.jit
def softmax_kernel(x_ptr, out_ptr, MENDED: tl.constexpr, n: tl.constexpr):
    offs = tl.program_id(0) * n + tl.arange(0, n)
    x = tl.load(x_ptr + offs)
    row_max = tl.max(x)
    if MENDED:
        row_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    e = tl.exp(x - row_max)
    total = tl.sum(e)
    if MENDED:
        total = tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + offs, e / total)


def test_answer_3(lecture, device):
    x = torch.randn(4, 8, device=device)
    x[2], x[3, 1:] = -torch.inf, -torch.inf
    out = torch.empty_like(x)
    softmax_kernel[(4,)](x, out, False, 8)
    assert lecture.first_nan(out) // 8 == 2
    softmax_kernel[(4,)](x, out, True, 8)
    torch.testing.assert_close(out, torch.softmax(x, dim=1).nan_to_num())
