"""What the guides say runs, does, and what they quote of Triton is what it says."""

import os
import re
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from scripts.lectures import ROOT, find_lecture

SCALE = 5


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def programs(page: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```", text(page))


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
    code = max(programs("start.md"), key=len)
    shown = re.search(r"(?ms)^``` \{ \.text \.no-copy \}\n(.*?)^```", text("start.md"))
    result = run(code, tmp_path)
    assert (result.returncode, result.stdout) == (0, shown[1]), result.stderr


def test_operator(tmp_path, device):
    """The operator of the questions: under torch.compile, with its gradient."""
    (code,) = (code for code in programs("faq.md") if "custom_op" in code)
    code += f"""
x = torch.randn(5000, device="{device}", requires_grad=True)
compiled = torch.compile(lambda x: double(x) + 1, backend="aot_eager", fullgraph=True)
y = compiled(x)
y.sum().backward()
torch.testing.assert_close(y, 2 * x + 1)
assert (x.grad == 2).all()
class Module(torch.nn.Module):
    def forward(self, x):
        return double(x) + 1

assert torch.equal(torch.export.export(Module(), (x.detach(),)).module()(x.detach()), y)
torch.library.opcheck(double, (x.detach()[:100].requires_grad_(),))
torch.library.opcheck(double, (torch.randn(8, 9, device="{device}").t(),))
"""
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_operator_to_ship(tmp_path, device):
    """The operator of the page on production, with its gradient, as the page tests it."""
    (code,) = (code for code in programs("production.md") if "triton_op(" in code)
    code += f"""
x = torch.randn(5000, device="{device}", requires_grad=True)
for backend in ("eager", "aot_eager"):
    y = torch.compile(lambda x: relu_squared(x) + 1, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(y, torch.relu(x) ** 2 + 1)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, 2 * torch.relu(x))
torch.library.opcheck(relu_squared, (x,))
assert relu_squared(torch.full((3,), torch.nan, device="{device}")).isnan().all()
"""
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def compile_kernel(load):
    return load(find_lecture("compiler")).compile_kernel


@triton.jit
def _fill(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), 1.0)


@triton.jit
def _fill_any(x_ptr, BLOCK):
    tl.store(x_ptr + tl.arange(0, BLOCK), 1.0)


@triton.jit
def _full_any(x_ptr, BLOCK):
    tl.store(x_ptr + tl.arange(0, 16), tl.full([BLOCK], 1.0, tl.float32))


@triton.jit
def _dot(a_ptr, b_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    c = tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs))
    tl.store(a_ptr + offs, c)


@triton.jit
def _two_lengths(x_ptr):
    tl.store(x_ptr + tl.arange(0, 64), tl.arange(0, 64) + tl.arange(0, 32))


@triton.jit
def _index(x_ptr):
    x = tl.load(x_ptr + tl.arange(0, 64))
    tl.store(x_ptr, x[0])


@triton.jit
def _break(x_ptr, n):
    for i in range(n):
        if i == 3:
            break
        tl.store(x_ptr + i, 1.0)


@triton.jit
def _if(x_ptr):
    x = tl.load(x_ptr + tl.arange(0, 64))
    if x > 0:
        tl.store(x_ptr, 1.0)


@triton.jit
def _acc(x_ptr, n):
    acc = 0
    for i in range(n):
        acc += tl.load(x_ptr + i)
    tl.store(x_ptr, acc)


@triton.jit
def _global(x_ptr):
    tl.store(x_ptr, SCALE)


@triton.jit
def _exp(x_ptr):
    tl.store(x_ptr, tl.exp(tl.load(x_ptr)))


@triton.jit
def _tanh(x_ptr):
    tl.store(x_ptr, tl.tanh(tl.load(x_ptr)))


@triton.jit
def _number(x):
    tl.store(x, 1.0)


@triton.jit
def _block_to_scalar(x_ptr):
    tl.store(x_ptr, tl.arange(0, 64))


@triton.jit
def _branch(x_ptr, n):
    if n > 3:
        y = 1.0
    tl.store(x_ptr, y)


@triton.jit
def _torch(x_ptr):
    tl.store(x_ptr, torch.exp(tl.load(x_ptr)))


@triton.jit
def _fp8(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load(x_ptr).to(tl.float8e4nv))


@triton.jit
def _f_string(x_ptr):
    x = tl.load(x_ptr)
    print(f"x is {x}")


@pytest.mark.parametrize(
    ("page", "message", "kernel", "arguments"),
    [
        ("faq", "arange's range must be a power of 2", _fill, {"BLOCK": 48}),
        ("faq", "arange's arguments must be of type tl.constexpr", _fill_any, {"BLOCK": "i32"}),
        (
            "faq",
            "Shape element 0 must have type `constexpr[int]`",
            _full_any,
            {"BLOCK": "i32"},
        ),
        (
            "faq",
            "numel (2097152) exceeds triton maximum tensor numel (1048576)",
            _fill,
            {"BLOCK": 2**21},
        ),
        (
            "faq",
            "Input shapes should have M >= 1, N >= 1 and K >= 16",
            _dot,
            {"a_ptr": "*fp32", "b_ptr": "*fp32", "BLOCK": 8},
        ),
        (
            "faq",
            "Both operands must be same dtype. Got fp32 and fp16",
            _dot,
            {"a_ptr": "*fp32", "b_ptr": "*fp16", "BLOCK": 32},
        ),
        (
            "faq",
            "Cannot make_shape_compatible: incompatible dimensions at index 0: 64 and 32",
            _two_lengths,
            {},
        ),
        ("faq", "unsupported tensor index", _index, {}),
        ("faq", "unsupported AST node type: Break", _break, {"n": "i32"}),
        ("faq", "Boolean value of Tensor with more than one value is ambiguous", _if, {}),
        (
            "faq",
            "Loop-carried variable acc has initial type int32 but is re-assigned to fp32 in loop",
            _acc,
            {"n": "i32"},
        ),
        ("faq", "from within @jit'ed function", _global, {}),
        ("faq", "Expected dtype ['fp32', 'fp64'] but got fp16", _exp, {"x_ptr": "*fp16"}),
        ("faq", "module 'triton.language' has no attribute 'tanh'", _tanh, {}),
        ("faq", "Unsupported ptr type triton.language.int32 in", _number, {"x": "i32"}),
        (
            "faq",
            "Value argument cannot be block type if pointer argument is not a block",
            _block_to_scalar,
            {},
        ),
        ("faq", "y is not defined", _branch, {"n": "i32"}),
        ("faq", "Unsupported function referenced", _torch, {}),
        (
            "faq",
            "Cannot evaluate f-string containing non-constexpr conversion values",
            _f_string,
            {},
        ),
        (
            "install",
            "type fp8e4nv not supported in this architecture",
            _fp8,
            {"out_ptr": "*fp8e4nv", "target": "sm_80"},
        ),
    ],
)
def test_quoted_message(compile_kernel, page, message, kernel, arguments):
    assert message in text(f"{page}.md")
    names = kernel.fn.__code__.co_varnames
    pointer = {"x_ptr": "*fp32"} if "x_ptr" in names else {}
    with pytest.raises(Exception) as raised:  # several kinds of them
        compile_kernel(kernel, **{"target": "sm_90"} | pointer | arguments)
    said, error = "", raised.value
    while error:
        said, error = said + str(error), error.__cause__
    assert message in said


LAUNCHES = """
import numpy, torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget

class Driver:  # of a GPU that is not there: all that fails here fails before the launch
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

triton.runtime.driver.set_active(Driver())

@triton.jit
def fill_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), 1.0)

tuned_kernel = triton.autotune([triton.Config({"BLOCK": n}) for n in (16, 32)], key=[])(fill_kernel)
x = torch.zeros(64)
for call in (
    lambda: fill_kernel[(1,)](x),
    lambda: fill_kernel[(1,)](x, BLOCK=64, num_warp=8),
    lambda: fill_kernel[(1,)](x.numpy(), BLOCK=64),
    lambda: tuned_kernel[(1,)](x, BLOCK=64),
    lambda: fill_kernel(x, BLOCK=64),
    lambda: tl.arange(0, 64),
):
    try:
        call()
        print("nothing")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_quoted_message_of_a_launch(tmp_path):
    result = run(LAUNCHES, tmp_path, TRITON_INTERPRET="0")
    said = result.stdout.splitlines()
    quoted = [
        ("faq", "dynamic_func() missing 1 required positional argument: 'BLOCK'"),
        ("faq", "was specified but unrecognised"),
        ("faq", "failed to specialize argument of type: numpy.ndarray"),
        ("faq", "Conflicting meta-parameters: BLOCK. Make sure that you don't re-define"),
        ("install", "RuntimeError: Cannot call @triton.jit'd outside of the scope of a kernel"),
        ("install", "Did you forget to add @triton.jit ?"),
    ]
    assert len(said) == len(quoted), result.stderr
    for (page, message), line in zip(quoted, said, strict=True):
        assert message in text(f"{page}.md") and message in line


TARGETS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"]
TARGETS += ["gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1151", "gfx1201"]


@pytest.mark.parametrize("target", TARGETS)
def test_target_in_the_table_of_hardware(compile_kernel, target):
    compile_kernel(_dot, target, a_ptr="*bf16", b_ptr="*bf16", BLOCK=32)
