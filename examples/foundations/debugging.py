# %% [markdown]
# ---
# title: Debugging
# description: Eleven planted bugs, the tool that finds each, and its fix, every one of them executed.
# tags: [debugging, interpreter, compute-sanitizer]
# prerequisites: [foundations/programming_model]
# outcome: Find out which element of a result is wrong, which program made it, and why.
# ---
#
# # Debugging: a museum of bugs, and what finds each
#
# The kernel runs, nothing complains, and the numbers are wrong. Or they are right today, at this
# size, with this memory behind the last element. A GPU does what you wrote, thousands of times at
# once, and says nothing. How do you find the line? By four questions, each with its tools:
#
# {{ diagram("debugging_method") }}
#
# This page builds them, shows where Triton's [interpreter](../glossary.md#interpreter) and a GPU disagree, and opens a museum of eleven bugs: executed, found, mended, and all safe to run.
#
# ## A small file to copy
#
# The cells of this section are a module of their own: "Copy this kernel" gives you the file.


# %% tags=["copy"]
import torch
import triton
import triton.language as tl


def check_tensors_gpu_ready(**tensors: torch.Tensor) -> None:
    """Raises a ValueError for a tensor, given as `x=x`, that a kernel would misread.

    It must be on a GPU (the interpreter takes any), contiguous, and where the first tensor is.
    """
    first = next(iter(tensors.values()), None)
    for name, tensor in tensors.items():
        if not tensor.is_cuda and not triton.knobs.runtime.interpret:
            wanted = "a kernel needs it on a GPU; TRITON_INTERPRET=1 runs it on the CPU"
            raise ValueError(f"{name} is on {tensor.device}: {wanted}")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, the first tensor on {first.device}")
        if not tensor.is_contiguous():
            layout = f"shape {tuple(tensor.shape)}, strides {tensor.stride()}"
            remedy = "pass its strides to the kernel, or call .contiguous()"
            raise ValueError(f"{name} is not contiguous, {layout}: {remedy}")


def guarded_like(x: torch.Tensor, guard: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns an output like x full of NaN, and a view (2, guard) of the NaN before and behind it.

    After the kernel, a NaN in the output was never written; a number in the guard was, wrongly.
    """
    n = x.numel()
    buffer = torch.full((guard + n + guard,), torch.nan, dtype=x.dtype, device=x.device)
    return buffer[guard : guard + n].view(x.shape), buffer.as_strided((2, guard), (guard + n, 1))


def first_nan(x: torch.Tensor) -> int | None:
    """Finds the first NaN, and so the program that left it: `first_nan(out) // BLOCK`.

    Args:
        x: Contiguous tensor of floats on a GPU, any shape.

    Returns:
        Its index in the flattened tensor, or None where there is no NaN. Waits for the GPU.

    Raises:
        ValueError: The tensor is not on a GPU, or not contiguous.
    """
    check_tensors_gpu_ready(x=x)
    found = x.flatten().isnan().nonzero()
    return found[0].item() if len(found) else None


@triton.constexpr_function
def interpreted():
    """True in the interpreter; the compiler evaluates it and drops the branch not taken."""
    return triton.knobs.runtime.interpret


@triton.jit
def print_if(condition, label: tl.constexpr, value):
    """Prints a value where a scalar condition holds: `print_if(pid == 2, "x", x)`."""
    if condition:
        tl.device_print(label, value)


@triton.jit
def breakpoint_if(condition):
    """Stops in Python's debugger where a scalar condition holds; compiled, it is nothing."""
    if interpreted():
        if condition:
            breakpoint()


# %% [markdown]
# - **Check inputs**: a kernel sees addresses; so check what it takes for granted first.
# - **Poison and guard**: `torch.empty` hands out used memory, often that of the test's last run,
#   right answers included. So fill an output with NaN, and put NaN around it.
# - **By program id**: output from all programs helps nobody. `print_if` and `breakpoint_if` take a condition, most often on the [program](../glossary.md#program) that `first_nan` named.
#
# Folded: `_elsewhere` runs a script in a process of its own, since what a GPU prints does not pass
# through Python, and a crash must not end the page; `_show` runs a case on GPU and interpreter.


# %% tags=["fold"]
def _source(*functions):
    """The source of functions, with all that they use on this page: a script of its own."""
    import inspect

    found, todo = {}, list(functions)
    while todo:
        function = todo.pop()
        # a kernel wraps its Python function
        while hasattr(function, "fn"):
            function = function.fn
        if getattr(function, "__module__", "") == __name__ and function not in found:
            found[function] = inspect.getsource(function)
            todo += [function.__globals__.get(name) for name in function.__code__.co_names]
    imports = "import torch\nimport triton\nimport triton.language as tl\n"
    return "\n\n".join([imports, *found.values()]) + "\n\n"


def _elsewhere(script, *, under=(), stdin="", **env):
    """Runs a script in a process of its own; returns what Python, driver and GPU print there."""
    import os
    import re
    import subprocess
    import sys
    import tempfile

    # without what steers Triton or Python here, or makes a tool follow its child processes
    steering = ("TRITON_", "PYTHON", "NV")
    env |= {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/bug.py", "w") as file:
            file.write(script)
        command = [*under, sys.executable, "-W", "ignore", "bug.py"]
        pipes = {"input": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        env["TRITON_CACHE_DIR"] = folder
        run = subprocess.run(command, cwd=folder, env=env, text=True, timeout=300, **pipes)
    # folders of this machine tell a reader nothing
    return re.sub(r"[\w./-]*/(?=bug\.py|(torch|triton)/)", "", run.stdout)


def _first_match(pattern, text, count=1):
    import re

    # lines that are printed by many threads, once
    return "\n".join([*dict.fromkeys(m[0] for m in re.finditer(pattern, text, re.M))][:count])


def _outcome(case, *arguments):
    """What a case returns: a line of text, and whether it is right; or an error's last line."""
    try:
        return case(*arguments)
    except Exception as error:
        return str(error.__cause__ or error).strip().splitlines()[-1], False


def _show(*cases, versions=(("", ()),)):
    calls = [(case.__name__[1:] + label, case, more) for case in cases for label, more in versions]
    script = _source(_outcome, *cases)
    for _, case, more in calls:
        script += f"print(_outcome({case.__name__}, 'cpu', *{more})[0])\n"
    lines = _elsewhere(script, TRITON_INTERPRET="1").splitlines()
    for (label, case, more), line in zip(calls, lines, strict=True):
        if torch.cuda.is_available():
            print(f"{label:22}GPU          {_outcome(case, 'cuda', *more)[0]}")
            label = ""
        print(f"{label:22}interpreter  {line}")


def _exhibit(*cases):
    _show(*cases, versions=((", bug", (False,)), (", mended", (True,))))


# %% [markdown]
# ## The interpreter
#
# With `TRITON_INTERPRET=1` nothing is compiled: programs run as plain Python on the CPU, blocks are
# NumPy arrays, and `print` and a debugger work inside a kernel. No GPU is needed. Set it **before
# triton is imported**; here it comes one line too late:

# %%
_TOO_LATE = """
import os, torch, triton, triton.language as tl
os.environ["TRITON_INTERPRET"] = "1"
@triton.jit
def sum_kernel(x_ptr):
    tl.store(x_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, 4)), axis=0))
sum_kernel[(1,)](torch.ones(4))
"""

if __name__ == "__main__":
    print(_first_match(r"^\w*Error: .*", _elsewhere(_TOO_LATE)))

# %% [markdown]
# `tl.sum` was made for the GPU at the import; your own kernel, defined later, was not. In a
# notebook, set the variable in the first cell; if you forgot, restart.
#
# ### Where it differs from a GPU
#
# Predict: bfloat16, the order of programs, `break`: which does the interpreter get wrong, and which
# does only the GPU refuse?


# %%
@triton.jit
def double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr, MENDED: tl.constexpr = True):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n if MENDED else None
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, x + x, mask=mask)


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr, MENDED: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)  # [BLOCK]
    offs_m = tl.program_id(0) * BLOCK + offs[:, None]  # [BLOCK, 1]
    offs_n = tl.program_id(1) * BLOCK + offs[None, :]  # [1, BLOCK]
    acc = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for k in range(0, N, BLOCK):
        a = tl.load(a_ptr + offs_m * N + k + offs[None, :])
        b = tl.load(b_ptr + (k + offs[:, None]) * N + offs_n)
        acc = tl.dot(a, b, acc, input_precision="ieee" if MENDED else None)
    tl.store(c_ptr + offs_m * N + offs_n, acc)


@triton.jit
def ticket_kernel(counter_ptr, out_ptr):
    tl.store(out_ptr + tl.atomic_add(counter_ptr, 1), tl.program_id(0))


@triton.jit
def break_kernel(out_ptr, n: tl.constexpr):
    for i in range(n):
        if i == 3:
            break
        tl.store(out_ptr + i, 1.0)


def _bfloat16(device):
    x = torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16, device=device)
    ones, out = torch.ones(16, 16).to(x), torch.zeros(16, 16, device=device)
    double_kernel[(1,)](x, x, 4, BLOCK=4)
    dot_kernel[(1, 1)](ones, ones, out, 16, False, BLOCK=16)
    doubled = ", ".join(f"{value:.2g}" for value in x.tolist())
    return (f"1, 2, 3, 4 doubled: {doubled}; sixteen ones: {out[0, 0].item():.2g}",)


def _order(device):
    counter, out = (torch.zeros(size, dtype=torch.int32, device=device) for size in (1, 512))
    ticket_kernel[(512,)](counter, out)
    return (f"programs came in the order {str(out[:8].tolist())[1:-1]}, ...",)


def _break(device):
    out = torch.zeros(8, device=device)
    break_kernel[(1,)](out, 8)
    return (f"accepted: {int(out.sum())} ones written",)


if __name__ == "__main__":
    _show(_bfloat16, _order, _break)

# %% [markdown]
# - **bfloat16 is wrong there**, silently: NumPy has no such type, and its bits are computed with as
#   if they were integers. On the CPU test float16 or float32, bfloat16 on a GPU only.
# - **Programs run one by one, in order**; on a GPU together, in any order. So a [race](#room-4-where-only-the-gpu-fails) looks right.
# - **It takes more Python** (`break`, methods of lists, NumPy), any tile fits, and float32 products
#   are float32 throughout. But it ignores `tl.device_assert`.
#
# ## Print, stop, assert
#
# A kernel that prints, stops and asserts, on six numbers in blocks of four. How often do both print
# `offs is`, GPU and interpreter? (`PYTHONBREAKPOINT=0` switches breakpoints off for now.)


# %%
@triton.jit
def sqrt_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK <= 1024, "sqrt_kernel takes blocks of at most 1,024")
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    tl.static_print("offs is", offs)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    print_if(pid == 1, "x", x)
    breakpoint_if(pid == 1)
    tl.device_assert(x >= 0, "root of a negative number")
    tl.store(out_ptr + offs, tl.sqrt(x), mask=offs < n)


def _roots(device, BLOCK=4, stdin="", **env):
    script = f"""
x = torch.tensor([1.0, 4.0, 9.0, 16.0, 25.0, -36.0], device="{device}")
sqrt_kernel[(2,)](x, x, 6, BLOCK={BLOCK})
print(x.tolist())
"""
    env["TRITON_INTERPRET"] = "1" if device == "cpu" else "0"
    return _elsewhere(_source(sqrt_kernel) + script, stdin=stdin, **env)


if __name__ == "__main__":
    if torch.cuda.is_available():
        lines = _roots("cuda").splitlines()
        print(f"GPU, {len(lines)} lines, without repetitions:", *dict.fromkeys(lines), sep="\n")
    print("\ninterpreter:", _roots("cpu", PYTHONBREAKPOINT="0"), sep="\n")

# %% [markdown]
# - `tl.static_print` prints while *compiling*, once, type and shape; interpreted, in each program,
#   values. (What comes from the cache is not compiled: `TRITON_ALWAYS_COMPILE=1`.)
# - `tl.device_print` prints while *running*, in each thread: the 128 threads of a program (4 [warps](../glossary.md#warp) of 32) hold each element 32
#   times. It writes past Python, to standard output; in a notebook often the server's terminal.
# - The root of -36 is NaN, and nobody complained.
#
# **Stop.** Interpreted, `breakpoint_if(pid == 1)` opens Python's debugger in program 1; two steps
# up is your kernel, with every name in it. Typed here: `up`, `up`, `p offs`, `p x`, `c`.
#
# **Assert.** `tl.static_assert` fails the compilation: state there what a kernel assumes about its
# [constexprs](../glossary.md#constexpr). `tl.device_assert` checks values, and only under
# `TRITON_DEBUG=1` (or `debug=True` at the launch): else it is not even compiled.

# %%
if __name__ == "__main__":
    print(_roots("cpu", stdin="up\nup\np offs\np x\nc\n"))
    print(_first_match(r".*1,024$", _roots("cpu", BLOCK=2048)))
    if torch.cuda.is_available():
        print(_first_match(r".*1,024$", _roots("cuda", BLOCK=2048)))
        said = _roots("cuda", TRITON_DEBUG="1")
        print(_first_match(r"bug\.py:.*failed\.", said))
        print(_first_match(r".*Error: CUDA.*", said))

# %% [markdown]
# A failed assert names file, line, program (which CUDA calls a block) and thread, and ends the process's use of the GPU: every later [CUDA](../glossary.md#cuda) call fails. Run it in a script, not in the notebook that holds your data. An access to memory that nobody allocated ends it too: `an illegal memory access was encountered`. A launch [returns before its kernel has run](programming_model.py#what-happens-at-the-launch), so Python may report either at a later, innocent call. With `CUDA_LAUNCH_BLOCKING=1` before the
# command every launch waits, and the traceback ends at the guilty one.
#
# **[triton-viz](https://github.com/Deep-Learning-Profiling-Tools/triton-viz)**, installed apart (`pip install triton-viz`; no GPU needed), draws in the browser which elements each load and store
# of each program touches: write `@triton_viz.trace("tracer")` above `@triton.jit`, launch as usual,
# then call `triton_viz.launch()`. With `trace("sanitizer")` it reports accesses outside a tensor.
#
# ## The bug museum
#
# Each exhibit runs with `mended` false, then true. After an output, say what you would change.
#
# ### Room 1: edges
#
# - **No mask.** *Symptom:* none. All results are right; another tensor, much later, is not.
# - **Too few programs.** *Symptom:* the end is wrong, unless `n` is a multiple of the block.


# %%
def _no_mask(device, mended):
    x = torch.ones(16, device=device)[:10]
    out, guards = guarded_like(x)
    double_kernel[(3,)](x, out, 10, BLOCK=4, MENDED=mended)
    hit = (~guards.isnan()).sum().item()
    return f"results right: {(out == 2).all()}; guard overwritten: {hit} elements", hit == 0


def _short_grid(device, mended):
    x = torch.ones(1000, device=device)
    out, _ = guarded_like(x)
    programs = triton.cdiv(1000, 256) if mended else 1000 // 256
    double_kernel[(programs,)](x, out, 1000, BLOCK=256)
    first = first_nan(out)
    if first is None:
        return "no NaN is left", bool((out == 2).all())
    return f"first NaN at {first}: program {first // 256} never ran", False


if __name__ == "__main__":
    _exhibit(_no_mask, _short_grid)

# %% [markdown]
# - `no_mask`: *found by* the guard. *Fix:* `mask=offs < n` wherever a block may pass the end.
# - `short_grid`: *found by* [poison](../glossary.md#poison-and-guard): the NaN that stays names the program. *Fix:* `triton.cdiv`.
#
# Without a guard, **[compute-sanitizer](../glossary.md#compute-sanitizer)** finds `no_mask`. It comes with CUDA's toolkit, in the
# folder `bin`, and checks each access against the allocations. PyTorch cuts many tensors from one;
# switch that off: `PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python bug.py`.


# %%
def _sanitized():
    import shutil

    names = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
    tool = next(filter(None, map(shutil.which, names)), None)
    if not torch.cuda.is_available() or not tool:
        return "needs a GPU, and compute-sanitizer, which CUDA's toolkit has in its folder bin"
    script = _source(double_kernel) + "x, out = (torch.ones(10, device='cuda') for _ in range(2))\n"
    script += "double_kernel[(3,)](x, out, 10, BLOCK=4, MENDED=False)\ntorch.cuda.synchronize()\n"
    said = _elsewhere(script, under=(tool,), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return _first_match("=.*(Invalid| at double|by thread|Access|bytes after).*", said, 5)


if __name__ == "__main__":
    print(_sanitized())

# %% [markdown]
# ### Room 2: masked lanes that join in
#
# - **The wrong `other`.** *Symptom:* a row without positive numbers has the maximum 0.
# - **A reduction over masked [lanes](../glossary.md#lane).** *Symptom:* the result depends on the size of the block.


# %%
@triton.jit
def max_kernel(x_ptr, out_ptr, n, stride_m, stride_n, OTHER: tl.constexpr, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0), tl.arange(0, BLOCK)  # [BLOCK]
    x_ptrs = x_ptr + row * stride_m + offs * stride_n
    x = tl.load(x_ptrs, mask=offs < n, other=OTHER)
    tl.store(out_ptr + row, tl.max(x, axis=0))


@triton.jit
def variance_kernel(x_ptr, out_ptr, n, MENDED: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    diff = x - tl.sum(x, axis=0) / n
    if MENDED:
        diff = tl.where(mask, diff, 0.0)
    tl.store(out_ptr, tl.sum(diff * diff, axis=0) / n)


def _wrong_other(device, mended):
    x = torch.tensor([[5.0, 1.0, 2.0], [-5.0, -1.0, -2.0]], device=device)
    out, other = x.new_full((2,), torch.nan), float("-inf") if mended else 0.0
    max_kernel[(2,)](x, out, 3, 3, 1, OTHER=other, BLOCK=4)
    return f"maxima {out.tolist()}", out.tolist() == [5, -1]


def _masked_lanes(device, mended):
    x = torch.tensor([3.0, 5.0, 7.0, 5.0], device=device)
    out = x.new_full((3,), torch.nan)
    for i in range(3):
        variance_kernel[(1,)](x, out[i:], 4, mended, BLOCK=4 << i)
    return f"variance by blocks of 4, 8, 16: {out.tolist()}", out.tolist() == [2, 2, 2]


if __name__ == "__main__":
    _exhibit(_wrong_other, _masked_lanes)

# %% [markdown]
# - `wrong_other`: *found by* `print_if(row == 1, "x", x)`: the masked lane shows as 0. *Fix:* the [neutral element](../glossary.md#neutral-element) of the reduction: 0 for a sum, -inf for a maximum.
# - `masked_lanes`: *found by* a second block size: no result may depend on it. *Fix:* mask again
#   after a step such as `x - mean`, which turns the neutral element into another number.
#
# ### Room 3: addresses
#
# - **Offsets of 32 bits.** *Symptom:* a crash or wrong numbers, past 2³¹ elements only. (Here the
#   kernel stores its offsets and follows none, so that no memory is needed.)
# - **A lost stride.** *Symptom:* right for every tensor but transposed ones and slices.


# %%
@triton.jit
def row_start_kernel(out_ptr, stride, MENDED: tl.constexpr):
    row = tl.program_id(0)
    tl.store(out_ptr + row, (row.to(tl.int64) if MENDED else row) * stride)


def _int32_offsets(device, mended):
    out = torch.zeros(3, dtype=torch.int64, device=device)
    row_start_kernel[(3,)](out, 2**30, mended)
    return f"rows begin at {out.tolist()}", out.tolist() == [0, 2**30, 2**31]


def _overflow():
    if not torch.cuda.is_available():
        return "TRITON_DEBUG=1 needs a GPU: the interpreter ignores it"
    script = _source(_int32_offsets) + "_int32_offsets('cuda', False)\n"
    return _first_match(r"bug\.py:.*failed\.", _elsewhere(script, TRITON_DEBUG="1"))


def _lost_stride(device, mended):
    x, maxima = torch.arange(6.0, device=device).view(2, 3), []
    for view in (x, x.t()):
        rows, columns = view.shape
        out, strides = x.new_full((rows,), torch.nan), view.stride() if mended else (columns, 1)
        max_kernel[(rows,)](view, out, columns, *strides, OTHER=float("-inf"), BLOCK=4)
        maxima.append(out.tolist())
    return f"row maxima of x {maxima[0]}, of x.t() {maxima[1]}", maxima == [[2, 5], [3, 4, 5]]


if __name__ == "__main__":
    _exhibit(_int32_offsets, _lost_stride)
    print(_overflow())
    turned = torch.ones(2, 3, device="cuda" if torch.cuda.is_available() else "cpu").t()
    print(_outcome(lambda: check_tensors_gpu_ready(x=turned))[0])

# %% [markdown]
# - `int32_offsets`: *found by* `TRITON_DEBUG=1`, which checks every int32 sum and product. *Fix:*
#   `.to(tl.int64)` before the first product; `(row * stride).to(tl.int64)` comes too late.
# - `lost_stride`: *found by* `x.t()` among a test's inputs; *refused by* `check_tensors_gpu_ready` as not contiguous. *Fix:* pass the tensor's own [strides](../glossary.md#stride).
#
# ### Room 4: where only the GPU fails
#
# - **A race**: programs change one number at once. *Symptom:* a wrong result, which may vary.
# - **TF32.** *Symptom:* a float32 product is right to three digits, and your tolerance has grown.
# - **Too much shared memory.** *Symptom:* an error at the launch, on some GPUs.


# %%
@triton.jit
def count_kernel(total_ptr, MENDED: tl.constexpr):
    if MENDED:
        tl.atomic_add(total_ptr, 1)
    else:
        tl.store(total_ptr, tl.load(total_ptr) + 1)


def _race(device, mended):
    total = torch.zeros(1, dtype=torch.int32, device=device)
    count_kernel[(2000,)](total, mended)
    return f"2000 programs counted to {total.item()}", total.item() == 2000


def _tf32(device, mended):
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 64).to(device)
    out, wanted = torch.full_like(a, torch.nan), a.double() @ b.double()
    dot_kernel[(2, 2)](a, b, out, 64, mended, BLOCK=32)
    ours, theirs = ((c - wanted).abs().max() / wanted.abs().max() for c in (out, a @ b))
    return f"error {ours:.0e}, torch's {theirs:.0e}", bool(ours < 4 * theirs)


def _large_tile(device, mended):
    a, b = torch.randn(2, 256, 256, device=device)
    out, BLOCK = torch.full_like(a, torch.nan), 64 if mended else 128
    grid = (256 // BLOCK, 256 // BLOCK)
    dot_kernel[grid](a, b, out, 256, False, BLOCK=BLOCK, num_stages=4)
    return f"a product in tiles of {BLOCK}", bool(torch.allclose(out, a @ b, atol=0.1))


if __name__ == "__main__":
    _exhibit(_race, _tf32, _large_tile)

# %% [markdown]
# - `race`: *found by* a reference, or by two runs that differ. Not by the interpreter, nor by the
#   sanitizer's [`racecheck`](https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer/index.html#racecheck-tool): it watches [shared memory](../glossary.md#shared-memory), and this [race](../glossary.md#race) is in global memory. *Fix:* an [atomic
#   operation](../glossary.md#atomic-operation), or a place for each program and a sum after.
# - `tf32`: *found by* a float64 reference, with torch's error beside yours: equal formats err
#   alike. `tl.dot` cuts float32 down to [TF32](../glossary.md#tf32) unless told otherwise. *Fix:*
#   `input_precision="ieee"` or `"tf32x3"`, both [far slower](compiler.py#why-is-a-float32-product-inexact); or mean TF32, and say so.{% set product = rec("foundations/compiler") %}{{ claim(3 * product.row("precision", provider="triton", precision="tf32").ms < product.row("precision", provider="triton", precision="tf32x3").ms < product.row("precision", provider="triton", precision="ieee").ms) }}
# - `large_tile`: *found by* the launch, or by counting: a tile of 128 by 128 float32 is 64 KiB, a
#   stage (one turn's loads) two, four stages 512 KiB. *Fix:* smaller tiles or fewer `num_stages`.
#
# ### Room 5: Triton's own ways
#
# - **Autotuning in place.** *Symptom:* the first call is wrong, every later one right.
#   [Autotuning](../glossary.md#autotuning) times the kernel on your data; here a stand-in for the
#   clock calls two configurations three times each.
# - **A block of 48.** *Symptom:* an error, for once.


# %%
def _autotuned(device, mended):
    def three_runs(run, quantiles):
        return [run() or 0.0 for _ in range(3)]

    configs = [triton.Config({"BLOCK": block}) for block in (64, 128)]
    restore = ["out_ptr"] if mended else None
    tuned = triton.autotune(configs, key=["n"], restore_value=restore, do_bench=three_runs)
    kernel, values = tuned(double_kernel), []
    for _ in range(2):
        x = torch.ones(100, device=device)
        kernel[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, x, 100)
        values.append(x[0].item())
    return f"1 doubled: {values[0]:g}, in a second call {values[1]:g}", values == [2, 2]


def _odd_block(device, mended):
    out, guards = guarded_like(torch.ones(48, device=device))
    x, BLOCK = torch.ones_like(out), triton.next_power_of_2(48) if mended else 48
    double_kernel[(1,)](x, out, 48, BLOCK=BLOCK)
    return "48 elements doubled", bool((out == 2).all() and guards.isnan().all())


if __name__ == "__main__":
    _exhibit(_autotuned, _odd_block)

# %% [markdown]
# - `autotuned`: *found by* calling twice; `TRITON_PRINT_AUTOTUNING=1` tells when it tunes. *Fix:*
#   `restore_value=["out_ptr"]` for what is updated, `reset_to_zero` for what is added to.
# - `odd_block`: *found by* the compiler, which names the line. *Fix:* a power of two, and a mask.
#
# ## Check
#
# An exhibit that no longer fails is an error too. Interpreted, those of room 4 must look right.


# %% tags=["fold"]
def first_nan_reference(x):
    """The specification, number by number."""
    return next((i for i, value in enumerate(x.flatten().tolist()) if value != value), None)


_MUSEUM = [_no_mask, _short_grid, _wrong_other, _masked_lanes, _int32_offsets, _lost_stride]
_MUSEUM += [_race, _tf32, _large_tile, _autotuned, _odd_block]


def check(device="cuda"):
    """Checks the helpers, and that every exhibit shows its bug and its fix."""
    for n in (0, 1, 1000):
        x, guards = guarded_like(torch.ones(n, device=device))
        assert x.shape == (n,) and x.isnan().all() and guards.isnan().all(), "not all is NaN"
        # the NaN behind the end must not be found
        for at in (n, n - 1, n // 2, 0):
            x[:at], x[at:] = 1, torch.nan
            assert first_nan(x) == first_nan_reference(x), f"first_nan: {at} of {n}"
        assert guards.isnan().all(), "the output overlaps the guard"
        assert guards[0].fill_(7).any() and guards[1].isnan().all(), "the guards are one"
        assert guards[1].fill_(7).any() and x.isnan().all(), "the guard overlaps the output"
    x = torch.ones(2, 3, device=device)
    refusal = _outcome(lambda: check_tensors_gpu_ready(x=x, y=x.t()))
    assert refusal and "y is not contiguous" in refusal[0], refusal
    said = _roots(device, stdin="c\n")
    printed_by = _first_match(r"\(\d, 0, 0\)(?=.*\bx: )", said, 99)
    assert printed_by == "(1, 0, 0)", f"print_if: {said}"
    assert said.count("(Pdb)") == (device == "cpu"), f"breakpoint_if: {said}"
    for case in _MUSEUM:
        (_, bug_right), (_, right) = (_outcome(case, device, mended) for mended in (False, True))
        unseen = device == "cpu" and case in (_race, _tf32, _large_tile)
        assert bug_right == unseen, f"{case.__name__}: the bug {'shows' if unseen else 'hides'}"
        assert right, f"{case.__name__}: the fix is wrong"
        print(f"{case.__name__[1:]:14}bug {'not seen here' if unseen else 'shown':15}fix right")
    if device == "cuda":
        assert "overflow" in _overflow() and "root of" in _roots("cuda", TRITON_DEBUG="1")
        assert _sanitized().startswith(("needs", "========= Invalid __global__"))


def bench(measure):
    """Times nothing: what this page records is what the tools say."""
    yield from ()


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")


# %% [markdown]
# ## Where the tools fall short
#
# The interpreter is blind to room 4, and slow. compute-sanitizer sees allocations, not tensors, and
# no race in global memory. A guard around an output shows stores, not loads. So lay inputs between
# NaN too, `guarded_like(x)[0].copy_(x)`: what a kernel reads past the end and uses makes a NaN; in
# other memory it may make [one result right and the next wrong](https://github.com/triton-lang/triton/issues/187).
# Integers, which have no NaN, need as poison a number that cannot occur. And a wrong formula shows
# beside a float64 reference only. What they cost: poison and guard one more write of the output,
# `TRITON_DEBUG=1` another compilation; compute-sanitizer and the interpreter are for small sizes.
#
# ## What to remember
#
# 1. **Ask in order**: which element, which program, what did it see, does the interpreter see it?
# 2. **NaN in every output and around it, two block sizes, two runs, a transposed input**: these few
#    lines of a test find six of the eleven exhibits, the race if its runs differ.
# 3. **The interpreter for logic, the GPU for races, memory, precision, limits.**
#
# ## Exercises
#
# ??? question "1 (easy): `double_kernel` stores to `out_ptr + offs + 1`. Which helpers see it?"
#
#     ??? success "Answer"
#
#         Two: element 0 stays NaN, so `first_nan(out)` is 0; and the guard holds a 2.
#
# ??? question "2 (medium): let the interpreter show a race."
#
#     Each program shifts its block of four in place, `x[i] = x[i + 1]`; interpreted, all is right.
#
#     ??? success "Answer"
#
#         Reverse the order: `pid = tl.num_programs(0) - 1 - tl.program_id(0)`. Program 1 has then
#         overwritten what program 0 reads: 0, 1, ..., 8 becomes 1, 2, 3, 5, 5, 6, 7, 8, 8.
#
# ??? question "3 (hard): a softmax gives NaN for rows that are all `-inf`. Find one; mend it."
#
#     ??? success "Answer"
#
#         `first_nan(out) // n_cols` is the row: its maximum is `-inf`, and `-inf - -inf` is NaN.
#         Take 0 for a maximum of `-inf`, and 1 for a sum of 0, by `tl.where`: the row is all 0.
#
# ## Use it in your project
#
# ```python
# from debugging import breakpoint_if, check_tensors_gpu_ready, first_nan, guarded_like, print_if
# out, guards = guarded_like(x)
# check_tensors_gpu_ready(x=x, out=out)
# my_kernel[grid](x, out, ...)
# assert first_nan(out) is None and guards.isnan().all()
# ```
#
# API: [check_tensors_gpu_ready][examples.foundations.debugging.check_tensors_gpu_ready],
# [first_nan][examples.foundations.debugging.first_nan],
# [print_if][examples.foundations.debugging.print_if]. Next: [benchmarking](benchmarking.py), where
# the clock is what can be wrong.
