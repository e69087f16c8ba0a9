# %% [markdown]
# ---
# title: Element-wise fusion
# description: Launches and trips through memory, counted before a line is written; then one kernel.
# tags: [element-wise, memory-bound, autograd]
# prerequisites: [foundations/programming_model]
# outcome: Say what fusing an operation will gain before you write it, and when to leave it to torch.compile.
# ---
#
# # Element-wise fusion: count the trips
#
# `x * y + z`, `relu(x + y)`, `gelu(x + bias)`: PyTorch runs each as two kernels, and what the first makes goes to [memory](../glossary.md#hbm) and back. **What would one kernel gain, and can you know before you write it?** And does `torch.compile` not do this for you? Nearly always; this page shows where it ends.
#
# ## Count before you write
#
# A *trip* is a tensor read from [HBM](../glossary.md#hbm), or written to it. An element-wise kernel computes so little that its time is that of its trips. Run one by one, each operation pays for its inputs and its output; [fused](../glossary.md#fusion), **only the first inputs and the last output are paid for**:
#
# | | one by one | launches | trips | fused: 1 launch | trips | gain |
# |---|---|---|---|---|---|---|
# | `x * y + z` | `t = x * y`; `t + z` | 2 | 3 + 3 | x, y, z in, one out | 4 | 6 / 4 = 1.5 |
# | `relu(x + y)` | `t = x + y`; `relu(t)` | 2 | 3 + 2 | x, y in, one out | 3 | 5 / 3 = 1.7 |
# | `gelu(x + bias)` | `t = x + bias`; `gelu(t)` | 2 | 2 + 2 | x in, one out | 2 | 4 / 2 = 2 |
#
# {{ diagram("elementwise_trips") }}
#
# The bias, one row that serves thousands of rows, stays in caches and does not count. Now in bytes. {% set trip = 2 * 2**27 %}A tensor of 2²⁷ bfloat16 numbers is {{ trip | bytes }}. Six trips at the speed of a copy take {{ copy_ms(6 * trip) | ms }} on this {{ env.gpu }}, four take {{ copy_ms(4 * trip) | ms }}, the [floor](../glossary.md#floor) of the fused kernel. **Trips before over trips after is the gain**, before a line is written.

# %% tags=["copy"]
import math

import torch
import triton
import triton.language as tl

# %% [markdown]
# The activation of BERT and GPT is $\text{gelu}(u) = u \, \Phi(u)$, with $\Phi(u)$ the share of a normal distribution below $u$ ([Hendrycks and Gimpel, 2016](https://arxiv.org/abs/1606.08415)); GPT-2's formula comes close.

# %%
def multiply_add_reference(x, y, z):
    """The specification: two kernels in eager mode."""
    return x * y + z


def add_relu_reference(x, y):
    """Two kernels."""
    return torch.relu(x + y)


def bias_gelu_reference(x, bias, approximate="none"):
    """Two kernels; the bias runs along the last dimension."""
    return torch.nn.functional.gelu(x + bias, approximate=approximate)


def gelu_by_formula(x, bias):
    """As in GPT-2's code: how many kernels, how many trips?"""
    u = x + bias
    return 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))

# %% [markdown]
# ## First, ask the compiler
#
# [`torch.compile`](../glossary.md#torchcompile) finds element-wise chains and writes a Triton kernel for each. So begin with a count of what runs. Predict each line: how many launches, eager and compiled?

# %%
def count_launches(fn, *inputs):
    """How many kernels a call launches, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    fn(*inputs)  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        fn(*inputs)
        torch.cuda.synchronize()
    on_gpu = (event for event in trace.events() if event.device_type.name == "CUDA")
    return sum(not event.name.startswith(("Mem", "Activity")) for event in on_gpu)


if __name__ == "__main__" and not triton.knobs.runtime.interpret:
    x, y, z = torch.randn(3, 1024, 1024, device="cuda")
    for name, fn, *inputs in (
        ("x * y + z", multiply_add_reference, x, y, z),
        ("relu(x + y)", add_relu_reference, x, y),
        ("gelu(x + bias)", bias_gelu_reference, x, y[0]),
        ("the same by formula", gelu_by_formula, x, y[0]),
        ("a look in between", lambda x, y: torch.relu(u) if (u := x + y)[0, 0].item() else u, x, y),
        ("gelu((x + bias) @ y)", lambda x, y: torch.nn.functional.gelu((x + y[0]) @ y), x, y),
    ):
        eager, compiled = (count_launches(f, *inputs) for f in (fn, torch.compile(fn)))
        print(f"{name:21} {eager} launches, compiled {compiled}")

# %% [markdown]
# - Plain chains become **one** kernel, even the nine of the formula: no trip is left to save.
# - **A look from Python** (`.item()`, `print`, an `if` on a tensor) breaks the graph: what stands
#   before it and after it is compiled apart, and `u` goes through memory.
# - **A library call** is a wall: the addition before the product and the GELU after it stay apart. (With `mode="max-autotune"` the compiler also tries [products of its own](https://docs.pytorch.org/docs/stable/generated/torch.compile.html), and can fuse what follows.)
# - **New shapes** compile anew, until PyTorch marks their sizes as dynamic, or gives up.
#
# **So compile first, count launches, and write a kernel where the count is higher than your table
# says.** Here all three chains get one, to learn on; the third will beat the compiler's.
#
# ## Step 1: two operations, one kernel
#
# [`add`](../foundations/programming_model.py#second-kernel-add-two-vectors) with another formula. As there, [whole blocks take no mask](../foundations/programming_model.py#one-change-whole-blocks-need-no-mask), so that an odd length costs nothing. `_elementwise` serves blocks with a [mask](../glossary.md#mask) and without: a mask that is `None` the compiler leaves out. It also decides the `if`, since `OP` is a [constexpr](../glossary.md#constexpr): only one branch is compiled.
#
# - **Cast first.** Triton, like PyTorch, multiplies two bfloat16 numbers to a bfloat16, rounded to
#   8 bits each time. After `.to(tl.float32)` one rounding is left, at the store.
# - **Keep NaN.** `tl.maximum` answers NaN with the other number unless told not to, and a NaN that
#   a ReLU swallows is a bug you look for elsewhere.

# %% tags=["copy"]
@triton.jit
def _elementwise(x_ptr, y_ptr, z_ptr, out_ptr, offs, mask, OP: tl.constexpr):
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    y = tl.load(y_ptr + offs, mask=mask).to(tl.float32)
    if OP == "multiply_add":
        z = tl.load(z_ptr + offs, mask=mask).to(tl.float32)
        tl.store(out_ptr + offs, x * y + z, mask=mask)
    else:
        out = tl.maximum(x + y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out_ptr + offs, out, mask=mask)


@triton.jit
def elementwise_kernel(x_ptr, y_ptr, z_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    """x * y + z or relu(x + y) for n elements, `BLOCK` a program; z_ptr may be None."""
    # int32 offsets would wrap at 2**31 elements
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    if (pid + 1) * BLOCK <= n:
        # no mask, so that loads are wide even where n is odd
        _elementwise(x_ptr, y_ptr, z_ptr, out_ptr, offs, None, OP)
    else:
        _elementwise(x_ptr, y_ptr, z_ptr, out_ptr, offs, offs < n, OP)

# %% [markdown]
# ## Step 2: the functions around it
#
# An element-wise kernel may walk memory in any order that all tensors share: where [strides](../glossary.md#stride) are equal and leave no gaps, nothing is copied. Shapes and dtypes that differ are refused, not guessed at. PyTorch cannot see into a kernel, so an `autograd.Function` says what its gradient is. PyTorch's own kernels compute that (exercise 2 fuses two of them). The ReLU's needs only the output, which is positive where `x + y` passed.

# %% tags=["copy"]
def _launch(op, out, *tensors):
    # empty_like keeps strides that leave no gaps, and only those
    new = torch.empty_like(tensors[0]) if out is None else out
    if [t.stride() for t in tensors] != [new.stride()] * len(tensors):
        tensors = [t.contiguous() for t in tensors]
        new = torch.empty_like(tensors[0]) if out is None else out
    x, y, z, n, BLOCK = *tensors, *[None] * (3 - len(tensors)), new.numel(), 1024
    if n:
        with torch.cuda.device_of(x):
            # rounded up; triton.cdiv would take two microseconds
            elementwise_kernel[(-(-n // BLOCK),)](x, y, z, new, n, op, BLOCK)
    if out is not None:  # autograd sees no kernel write
        torch.autograd.graph.increment_version(out)
    return new


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, *tensors):
        out, (_, dx, dy, *_) = _launch(op, None, *tensors), ctx.needs_input_grad
        factors = tensors[0] if dy else None, tensors[1] if dx else None
        ctx.save_for_backward(*factors if op == "multiply_add" else [out])
        return out

    @staticmethod
    def backward(ctx, dout):
        if len(ctx.saved_tensors) == 1:
            dx = torch.ops.aten.threshold_backward(dout, *ctx.saved_tensors, 0)
            return None, dx, dx
        x, y = ctx.saved_tensors
        _, dx, dy, _ = ctx.needs_input_grad
        return None, dout * y if dx else None, dout * x if dy else None, dout


def _wants_grad(op, out, x, **others):
    """Whether a gradient is wanted; refuses what the kernels cannot do."""
    dtype, device, shape = x.dtype, x.device, x.shape
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{op} takes float32, float16 or bfloat16, got {dtype}")
    others = others if out is None else others | {"out": out}
    for name, other in others.items():
        wanted = shape[-1:] if name == "bias" else shape
        if other.shape != wanted or other.dtype != dtype or other.device != device:
            got = f"{tuple(other.shape)} {other.dtype} {other.device}"
            raise ValueError(f"{op} needs {name} {tuple(wanted)} {dtype} {device}, got {got}")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"{op} needs a GPU, got {device}; TRITON_INTERPRET=1 runs it on the CPU")
    wants = torch.is_grad_enabled() and any([t.requires_grad for t in (x, *others.values())])
    if out is not None and (wants or not out.is_contiguous()):
        raise ValueError(f"{op} needs a contiguous out, and none where a gradient is wanted")
    return wants


def multiply_add(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x * y + z, element by element, in float32, rounded once; differentiable.

    Args:
        x: float32, float16 or bfloat16 on a GPU, any shape and strides.
        y: Shape, dtype and device of `x`, like z; there is no broadcasting and no promotion.
        out: Contiguous tensor like `x` to write to; may be an input, not overlap one in part.

    Returns:
        A tensor like `x`.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: Shapes, dtypes, devices or `out` do not fit, or `out` and a gradient are wanted.
    """
    if _wants_grad("multiply_add", out, x, y=y, z=z):
        return _Elementwise.apply("multiply_add", x, y, z)
    return _launch("multiply_add", out, x, y, z)


def add_relu(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """relu(x + y), element by element; otherwise as `multiply_add`.

    Args:
        x: As for `multiply_add`, like y and out.

    Returns:
        A tensor like `x`; NaN stays NaN.

    Raises:
        ValueError: As `multiply_add`, TypeError too.
    """
    if _wants_grad("add_relu", out, x, y=y):
        return _Elementwise.apply("add_relu", x, y)
    return _launch("add_relu", out, x, y)

# %% [markdown]
# ## Step 3: which column is this?
#
# Element `i` needs entry `i % n_cols` of the bias. Written so, each [lane](../glossary.md#lane) divides, a dozen instructions an element (forty in 64 bits), and fetches for itself. Better: a *tile*, `ROWS` by `BLOCK`, loads its stretch of the bias once. How many rows of 1,024, for 128 threads? {% set t1, t2 = row("tiles", rows=1), row("tiles", rows=2, n_cols=8192) %}With one row a thread has 8 elements, a single load of 16 bytes under way: {{ t1.percent | pct }} of the copy's speed. Two are enough: {{ t2.percent | pct }}{{ claim(t2.percent > t1.percent + 3) }}; in 16 bits the launch takes twice as wide tiles for twice the threads. ([More on blocks](../foundations/programming_model.py#the-size-of-a-block-powers-of-two-and-num_warps).)
#
# {{ diagram("elementwise_bias") }}
#
# Loads are wide where the compiler knows that rows begin at a multiple of 16 bytes; of `n_cols` it knows only [whether 16 divides it](../foundations/programming_model.py#one-kernel-several-compiled-versions). What of 1,000 columns, 12,289, or 3? **Repeat the bias.** A matrix of 12,289 columns is also one of 16 × 12,289, under a bias repeated 16 times: the same sums, and rows whose length 16 divides. So short rows become long. The last of the long rows may be cut short: there the mask is `offs < n`, too. (Tensors of fewer than 2²⁰ elements would not pay back the launch that repeats the bias: there it stays as it is.)
#
# ## Step 4: a GELU in a dozen instructions
#
# Is there time to compute? In bfloat16 this memory brings and takes {% set rate = copy_tbps(2**29) * 1e12 / 4 %}{{ (rate * 1e-12) | n(2) }} × 10¹² elements a second. The lanes of the {{ env.sms }} [SMs](../glossary.md#sm) {% set lanes = rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16).tflops / 2 %}do {{ lanes | n }} × 10¹² multiply-adds a second ([measured](../foundations/memory_hierarchy.py#registers-a-chain-of-multiply-adds)). That makes {{ (lanes * 1e12 / rate) | n }} **instructions an element**, its load, store and conversions included. With `tl.erf`, the error function, in $\Phi(u) = \frac{1}{2}(1 + \text{erf}(u / \sqrt{2}))$, it takes {{ row("forms", form="tl.erf").instructions | n }}{{ claim(row("forms", form="tl.erf").instructions > lanes * 1e12 / rate > 1.5 * row("forms", form="none").instructions) }}: arithmetic would set the time, not memory.
#
# So do without erf. From $\Phi(u) = 1 - \Phi(-u)$ follows
# $\text{gelu}(u) = \max(u, 0) - |u| \, \Phi(-|u|)$, and the logarithm of $\Phi(-a)$ is nearly a
# parabola: a polynomial of degree 7, seven multiply-adds, gives $\log_2 \Phi(-a)$, and `exp2`, one
# instruction, the rest. This also keeps the digits that `1 + erf(…)` cancels for negative $u$.
# In GPT-2's form hides a sigmoid: $\frac{1}{2}(1 + \tanh v) = 1 / (1 + e^{-2v})$. For the
# gradient: $\text{gelu}'(u) = \Phi(u) + u \, \Phi'(u)$. Predict which form is slower than a copy.

# %% tags=["copy"]
LOG2E = tl.constexpr(1.4426950408889634)
# with tanh, gelu(u) is u / (1 + exp(-u * (u * u * C + K)))
K = tl.constexpr(2 * math.sqrt(2 / math.pi))
C = tl.constexpr(0.044715 * 2 * math.sqrt(2 / math.pi))


@triton.jit
def _below(a):
    # share of a normal distribution below -a, for a from 0 to 16; its log2 is a polynomial
    p = -1.2677125e-06 * a + 5.0041124e-05
    p = p * a - 0.00084474225
    p = p * a + 0.0082209383
    p = p * a - 0.053507219
    p = p * a - 0.45878094
    p = p * a - 1.1511732
    return tl.exp2(p * a - 0.99999823)


@triton.jit
def _gelu(u, FORM: tl.constexpr):
    if FORM == "tanh":
        # below -16 the result is 0, but infinity over infinity would be NaN
        u = tl.maximum(u, -16.0, propagate_nan=tl.PropagateNan.ALL)
        return u / (1.0 + tl.exp2(u * (u * u * C + K) * -LOG2E))
    else:
        a = tl.minimum(tl.abs(u), 16.0, propagate_nan=tl.PropagateNan.ALL)
        return tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * _below(a)


@triton.jit
def _gelu_slope(u, FORM: tl.constexpr):
    # beyond 16 it is 0 or 1, and squares could overflow
    u = tl.clamp(u, -16.0, 16.0, propagate_nan=tl.PropagateNan.ALL)
    if FORM == "tanh":
        e = tl.exp2(tl.abs(u) * (u * u * C + K) * -LOG2E)
        r = 1.0 / (1.0 + e)
        return tl.where(u > 0, r, e * r) + u * (e * r * r) * (u * u * (3 * C) + K)
    else:
        below = _below(tl.abs(u))
        # with the factor 1 / sqrt(2 pi) in the exponent
        density = tl.exp2(u * u * (-0.5 * LOG2E) - 1.3257480647361595)
        return tl.where(u > 0, 1.0 - below, below) + u * density

# %% tags=["fold"]
@triton.jit
def gelu_forms_kernel(x_ptr, out_ptr, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """One of several forms of the GELU, between a load and a store of whole blocks."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x_ptr + offs).to(tl.float32)
    if FORM == "tl.erf":
        y = 0.5 * u * (1 + tl.erf(u * 0.7071067811865476))
    elif FORM == "tanh.approx":
        v = 0.5 * u * (u * u * C + K)
        v = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1)
        y = 0.5 * u * (1 + v)
    else:
        y = _gelu(u, FORM)
    tl.store(out_ptr + offs, y)

# %% [markdown]
# {{ table("forms", columns=["form", "instructions", "millionths", "ms", "percent"]) }}
# {% set erf, own, coarse = row("forms", form="tl.erf"), row("forms", form="none"), row("forms", form="tanh.approx") %}
#
# Instructions are an element's share of the machine code, `millionths` the largest error up to |u| = 8, before rounding, in units of 10⁻⁶. `none` (the definition) and `tanh` (GPT-2's form) are ours; the names are PyTorch's. `tl.erf` takes {{ (erf.ms / own.ms) | times }} as long{{ claim(erf.ms > 1.1 * own.ms) }}. NVIDIA's tanh in one instruction saves {{ (row("forms", form="tanh").instructions - coarse.instructions) | n(0) }} that memory hides, and errs {{ (coarse.millionths / row("forms", form="tanh").millionths) | times }} as much{{ claim(coarse.millionths > 3 * row("forms", form="tanh").millionths) }}.

# %% tags=["copy"]
@triton.jit
def bias_gelu_kernel(
    x_ptr, bias_ptr, out_ptr, n, n_cols, FORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """gelu(x + bias), n elements in rows of n_cols, the last perhaps cut short, in tiles."""
    num_n = tl.cdiv(n_cols, BLOCK)
    pid_m, pid_n = (tl.program_id(0) // num_n).to(tl.int64), tl.program_id(0) % num_n
    rows = pid_m * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    cols = pid_n * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    offs = rows * n_cols + cols
    in_row = cols < n_cols
    bias = tl.load(bias_ptr + cols, mask=in_row).to(tl.float32)
    if (pid_m + 1) * ROWS * n_cols <= n:
        # 16 neighbours are masked alike, so that loads are wide
        x = tl.load(x_ptr + offs, mask=in_row).to(tl.float32)
        tl.store(out_ptr + offs, _gelu(x + bias, FORM), mask=in_row)
    else:
        mask = in_row & (offs < n)
        x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
        tl.store(out_ptr + offs, _gelu(x + bias, FORM), mask=mask)

# %% [markdown]
# ### Backward: the bias has a gradient too
#
# With the gradient $dy$ that arrives (`dout`), $dx = dy \cdot \text{gelu}'(x + b)$ is element-wise: three trips. $db$ is the sum of each column of $dx$, for which PyTorch reads $dx$ again; here $dx$ is in [registers](../glossary.md#register) already. So a program walks down a strip of rows, adds up in float32, and leaves a row of partial sums; `torch.sum` adds up those. No [atomics](../glossary.md#atomic-operation): the order of additions, and so every bit, is the same in each run. Only x and bias are kept from the forward pass: adding them again is cheaper than a trip.

# %% tags=["copy"]
@triton.jit
def _bias_gelu_bwd(dout_ptr, x_ptr, bias, dx_ptr, offs, mask, FORM: tl.constexpr):
    # zeros, so that masked lanes add nothing to the sum
    dout = tl.load(dout_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    dx = dout * _gelu_slope(x + bias, FORM)
    tl.store(dx_ptr + offs, dx, mask=mask)
    return dx


@triton.jit
def bias_gelu_bwd_kernel(
    dout_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, n, n_cols, n_steps,
    FORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx, and its column sums over each n_steps * ROWS rows to a row of `partial_ptr`."""
    num_n = tl.cdiv(n_cols, BLOCK)
    pid_m, pid_n = (tl.program_id(0) // num_n).to(tl.int64), tl.program_id(0) % num_n
    cols = pid_n * BLOCK + tl.arange(0, BLOCK)[None, :]
    in_row = cols < n_cols
    bias = tl.load(bias_ptr + cols, mask=in_row, other=0.0).to(tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in range(n_steps):
        first = (pid_m * n_steps + step) * ROWS
        offs = (first + tl.arange(0, ROWS)[:, None]) * n_cols + cols
        if (first + ROWS) * n_cols <= n:
            acc += _bias_gelu_bwd(dout_ptr, x_ptr, bias, dx_ptr, offs, in_row, FORM)
        else:
            mask = in_row & (offs < n)
            acc += _bias_gelu_bwd(dout_ptr, x_ptr, bias, dx_ptr, offs, mask, FORM)
    tl.store(partial_ptr + pid_m * n_cols + cols, tl.sum(acc, axis=0)[None, :], mask=in_row)


def _repeated(bias, n):
    """The bias, so often that 16 divides its length, and that short ones fill tiles."""
    # a launch of its own, which small tensors do not pay back; the interpreter tests it on them
    if n < 2**20 and not triton.knobs.runtime.interpret:
        return bias.contiguous()
    n_cols = bias.numel()
    times = 16 // math.gcd(16, n_cols)
    times *= -(-16384 // (times * n_cols)) if times > 1 or n_cols < 1024 else 1
    return bias.repeat(times) if 1 < times <= min(n // 4, 2**30) // n_cols else bias.contiguous()


def bias_gelu_forward(x, bias, approximate="none", out=None):
    """gelu(x + bias), written to a contiguous out, new if None."""
    x, n, ROWS, BLOCK = x.contiguous(), x.numel(), 2, 4096 // x.element_size()
    new = torch.empty_like(x) if out is None else out
    if n:
        with torch.cuda.device_of(x):
            bias = _repeated(bias, n)
            n_cols = bias.numel()
            grid = (-(-n // (ROWS * n_cols)) * -(-n_cols // BLOCK),)
            # in 16 bits with as few registers as let an SM take all the warps that it has room for
            options = {"num_warps": 8, "maxnreg": 32} if BLOCK == 2048 else {}
            bias_gelu_kernel[grid](x, bias, new, n, n_cols, approximate, ROWS, BLOCK, **options)
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return new


def bias_gelu_backward(dout, x, bias, dx, dbias, approximate="none") -> None:
    """Writes the gradients to dx and dbias; all are contiguous."""
    n, width, ROWS, BLOCK = x.numel(), bias.numel(), 2, 1024
    if not n:
        dbias.zero_()
        return
    with torch.cuda.device_of(x):
        bias = _repeated(bias, n)
        n_cols = bias.numel()
        num_n, tiles = triton.cdiv(n_cols, BLOCK), triton.cdiv(n, n_cols * ROWS)
        # strips of 64 rows, shorter where there would be few of them
        steps = min(tiles, 32, max(8, tiles * num_n // 2048))
        num_m = triton.cdiv(tiles, steps)
        partial = torch.empty(num_m, n_cols, dtype=torch.float32, device=x.device)
        tensors, grid = (dout, x, bias, dx, partial), (num_m * num_n,)
        bias_gelu_bwd_kernel[grid](*tensors, n, n_cols, steps, approximate, ROWS, BLOCK)
        # a repeated row holds a sum for each repetition; torch.sum has a fixed order
        dbias.copy_(partial.sum(0).view(-1, width).sum(0))


class _BiasGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, approximate):
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        return bias_gelu_forward(x, bias, approximate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        x, bias = (t.contiguous() for t in ctx.saved_tensors)
        dx, dbias = torch.empty_like(x), torch.empty_like(bias)
        bias_gelu_backward(dout.contiguous(), x, bias, dx, dbias, ctx.approximate)
        return dx, dbias, None


def bias_gelu(
    x: torch.Tensor, bias: torch.Tensor, approximate="none", *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """gelu(x + bias), in float32, rounded once; differentiable once, deterministic.

    Args:
        x: `(..., n_cols)`, float32, float16 or bfloat16, on a GPU; copied if not contiguous.
        bias: `(n_cols,)`, dtype and device of `x`.
        approximate: "none" for the definition, "tanh" for the formula of GPT-2, as in PyTorch.
        out: Contiguous tensor like `x` to write to; may be `x`, not overlap an input in part.

    Returns:
        A contiguous tensor like `x`, before rounding within 6e-7 of the form chosen.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: As `multiply_add`; `approximate` is neither; or rows pass 2**30 columns.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'bias_gelu knows approximate="none" and "tanh", got {approximate!r}')
    if bias.numel() > 2**30:  # counts of columns are int32
        raise ValueError(f"bias_gelu takes rows of up to 2**30 columns, got {bias.numel()}")
    if _wants_grad("bias_gelu", out, x, bias=bias):
        return _BiasGELU.apply(x, bias, approximate)
    return bias_gelu_forward(x, bias, approximate, out)

# %% [markdown]
# ## Is it right?
#
# `check` compares with float64, in outputs filled with NaN, before a [guard](../glossary.md#poison-and-guard). It prints the largest error, ours and torch's, in percent of the allowed: half an [ulp](../glossary.md#ulp) and a little. Where will two roundings show?

# %% tags=["fold"]
OPS = (  # reference, inputs, trips forward, trips with gradient
    (multiply_add, multiply_add_reference, 3, 4, 9),
    (add_relu, add_relu_reference, 2, 3, 6),
    (bias_gelu, bias_gelu_reference, 2, 2, 5),
)


def check(device: str = "cuda") -> None:
    """Compares results and gradients with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    half_units = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}
    sizes, shapes = [1, 1023, 1025, 5000], [(1, 1), (70, 7), (6, 1000), (129, 1023), (9, 2064)]
    if device == "cuda":
        half_units[torch.bfloat16] = 2.0**-8  # the interpreter rounds it otherwise
        sizes, shapes = [*sizes, 10**6 + 1], [*shapes, (3000, 5120), (1500, 12289), (10**6, 3)]

    def poisoned(like):
        frame = torch.full((like.numel() + 4096,), float("nan"), dtype=like.dtype, device=device)
        return frame[: like.numel()].view(like.shape)

    def compare(name, out, peer, want, terms=1):
        # NaN where a number is missing or one stands outside
        stray = not out._base[out.numel() :].isnan().all()
        allowed = half_units[out.dtype] * want.abs() + 5e-6 * terms
        pair = [((t.double() - want).abs() / allowed).amax().item() for t in (out, peer)]
        assert pair[0] <= 1 and not stray, f"{name} is off: {tuple(out.shape)} {out.dtype} {pair}"
        errors[name] = [max(both) for both in zip(pair, errors.get(name, (0, 0)), strict=True)]

    print("error / allowed       triton      torch")
    for dtype in half_units:
        errors = {}
        for n in sizes:
            # all but the first begin off a multiple of 16 bytes
            tensors = (2 * torch.randn(3, n + 1, device=device)[:, :n]).to(dtype)
            for op, reference, count, *_ in OPS[:2]:
                inputs = tensors[:count]
                out, peer = op(*inputs, out=poisoned(inputs[0])), reference(*inputs)
                compare(op.__name__, out, peer, reference(*inputs.double()))
        for shape, form in ((s, f) for s in shapes for f in ("none", "tanh")):
            x, dout = (2 * torch.randn(2, *shape, device=device)).to(dtype)
            bias, results = torch.randn(shape[1], device=device).to(dtype), []
            for wide in (dtype, torch.float64):
                own = [t.to(wide, copy=True).requires_grad_() for t in (x, bias)]
                y = bias_gelu_reference(*own, form)
                results.append((y.detach(), *torch.autograd.grad(y, own, dout.to(wide))))
            ours = bias_gelu(x, bias, form, out=poisoned(x)), poisoned(x), poisoned(bias)
            bias_gelu_backward(dout, x, bias, *ours[1:], form)
            names = "bias_gelu", "  dx", "  dbias"
            for case in zip(names, ours, *results, (1, 2, shape[0]), strict=True):
                compare(*case)
        for name, pair in errors.items():
            print(f"{str(dtype)[6:]:9}{name:13}{pair[0]:>6.0%}{pair[1]:>11.0%}")

    # through autograd, where the orders of the elements differ
    x, y, z = (torch.randn(30, 40, device=device).requires_grad_() for _ in range(3))
    layouts = (x.t(), y.t().contiguous(), z.t()), (x.t(), y.t()), (x.t(), z[:, 0])
    for (op, reference, *_), inputs in zip(OPS, layouts, strict=True):
        outs = op(*inputs), reference(*inputs)
        grads = (torch.autograd.grad((out + 1).square().sum(), inputs) for out in outs)
        for got, want in (outs, *zip(*grads, strict=True)):
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-4), f"{op.__name__} is off"


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# In 16 bits torch rounds `t` on its way, and where a sum cancels, that error is all that is left.
# **Fused is also more exact**, and so not the same bits.
#
# ## Is it fast?
#
# Predict each gain over torch from the trips. Will bfloat16 and float32 differ?

# %% tags=["fold"]
def bench(measure):
    """The page's benchmarks; see scripts/measure.py for how each time is taken."""
    from functools import partial

    whole, odd = (16384, 8192), (10922, 12289)

    def peers(op, reference):
        torch._dynamo.reset()  # after eight shapes of a function torch no longer compiles it
        fused = torch.compile(reference, mode="max-autotune-no-cudagraphs", dynamic=False)
        return {"triton": op, "torch": reference, "torch_compile": fused}

    def tensors(op, *shape, dtype=torch.bfloat16):
        x, y, z = (torch.randn(shape, device="cuda").to(dtype) for _ in range(3))
        return {multiply_add: (x, y, z), add_relu: (x, y), bias_gelu: (x, y[0])}[op]

    def result(name, title, x, cases, dtype="bfloat16", mode="forward", **options):
        rows = []
        for size, trips, fns, inputs in cases:
            n, calls = inputs[0].numel(), {p: partial(fn, *inputs) for p, fn in fns.items()}
            work = size | {"bytes": trips * n * inputs[0].element_size(), "flops": 3 * n}
            rows += [{"provider": p} | work | t for p, t in measure(calls, **options).items()]
        about = {"name": name, "title": title, "x": x, "dtype": dtype, "mode": mode}
        return about | {"ceiling": "copy", "rows": rows}

    def forward(dtype):
        for op, reference, _, trips, _ in OPS:
            fns = peers(op, reference)
            if op is multiply_add:
                fns["torch_in_place"] = lambda x, y, z: torch.mul(x, y).add_(z)
                fns["torch_addcmul"] = lambda x, y, z: torch.addcmul(z, x, y)
            if op is bias_gelu:
                fns["torch_unfused"] = gelu_by_formula
            for length, shape in ("even", whole), ("odd", odd if op is bias_gelu else (2**27 - 1,)):
                inputs = tensors(op, *shape, dtype=dtype)
                yield {"op": op.__name__, "length": length}, trips, fns, inputs

    def gradient():
        for op, reference, _, _, trips in OPS:
            inputs = [t.detach().requires_grad_() for t in tensors(op, *whole)]
            dout, fns = torch.randn_like(inputs[0].detach()), peers(op, reference).items()
            fns = {p: lambda *t, fn=fn: torch.autograd.grad(fn(*t), t, dout) for p, fn in fns}
            yield {"op": op.__name__}, trips, fns, inputs

    def forms():
        few = torch.linspace(-8, 8, 2**20, device="cuda")
        x, y = few.repeat(128).bfloat16(), torch.empty_like(few)
        for form in ("tl.erf", "none", "tanh.approx", "tanh"):
            def launch(x, out, form=form):
                return gelu_forms_kernel[(x.numel() // 2048,)](x, out, form, 2048)

            launch(few, y)
            want = bias_gelu_reference(few.double(), 0, "tanh" if "tanh" in form else "none")
            sass, error = launch(x, x.clone()).asm["sass"], (y.double() - want).abs().max().item()
            count = (sass.count(";") - sass.count("NOP;")) / 16  # elements a thread
            size = {"form": form, "instructions": count, "millionths": error * 1e6}
            yield size, 2, {"triton": launch}, (x, torch.empty_like(x))

    def tiles():
        cases = [(whole, rows, 1024, 4, None) for rows in (1, 2, 4, 8)]
        for shape, rows, block, warps, limit in cases + [(odd, 2, 2048, 8, n) for n in (None, 32)]:
            x, bias = tensors(bias_gelu, *shape)
            n, bias = x.numel(), _repeated(bias, x.numel())
            grid = (triton.cdiv(n, rows * bias.numel()) * triton.cdiv(bias.numel(), block),)
            args = x, bias, torch.empty_like(x), n, bias.numel(), "none", rows, block
            launch = partial(bias_gelu_kernel[grid], *args, num_warps=warps, maxnreg=limit)
            size = {"rows": rows, "n_cols": shape[1], "limit": limit or 255}
            yield size, 2, {"triton": lambda x, launch=launch: launch()}, (x,)

    for name in ("bfloat16", "float32"):
        cases = forward(getattr(torch, name))
        yield result(f"forward_{name}", f"Fused, 2²⁷ {name}", "op", cases, name, memory=True)
    both = "forward and backward"
    yield result("gradient", f"{both.capitalize()}, 2²⁷ bfloat16", "op", gradient(), mode=both)
    yield result("tiles", "bias_gelu by ROWS, 2²⁷ bfloat16", "rows", tiles())
    yield result("forms", "Forms of the GELU, 2²⁷ bfloat16", "form", forms())
    rows = (({"n": 2**k}, 3, peers(*OPS[1][:2]), tensors(add_relu, 2**k)) for k in range(10, 27, 4))
    yield result("small", "relu(x + y), bfloat16", "n", rows, host=True)

# %% [markdown]
# {{ figure("forward_bfloat16", where={"length": "even"}, providers=["triton", "torch", "torch_compile"], caption="Fused, all three run at the speed of a copy; of the compiler's kernels two do.") }}
# {% for op in ("multiply_add", "add_relu") %}{{ claim(row("forward_bfloat16", op=op, provider="torch_compile", length="even").percent >= 97) }}{% endfor %}
#
# | 2²⁷ bfloat16 | predicted gain | measured | of a copy | at an odd length |
# |---|---|---|---|---|
# | `x * y + z` | 1.5× | {{ (row("forward_bfloat16", op="multiply_add", provider="torch", length="even").ms / row("forward_bfloat16", op="multiply_add", provider="triton", length="even").ms) | times }} | {{ row("forward_bfloat16", op="multiply_add", provider="triton", length="even").percent | pct }} | {{ row("forward_bfloat16", op="multiply_add", provider="triton", length="odd").percent | pct }} |
# | `relu(x + y)` | 1.7× | {{ (row("forward_bfloat16", op="add_relu", provider="torch", length="even").ms / row("forward_bfloat16", op="add_relu", provider="triton", length="even").ms) | times }} | {{ row("forward_bfloat16", op="add_relu", provider="triton", length="even").percent | pct }} | {{ row("forward_bfloat16", op="add_relu", provider="triton", length="odd").percent | pct }} |
# | `gelu(x + bias)` | 2× | {{ (row("forward_bfloat16", op="bias_gelu", provider="torch", length="even").ms / row("forward_bfloat16", op="bias_gelu", provider="triton", length="even").ms) | times }} | {{ row("forward_bfloat16", op="bias_gelu", provider="triton", length="even").percent | pct }} | {{ row("forward_bfloat16", op="bias_gelu", provider="triton", length="odd").percent | pct }} |
#
# {% set gelu = row("forward_bfloat16", provider="triton", op="bias_gelu", length="even") %}{% set compiled = row("forward_bfloat16", provider="torch_compile", op="bias_gelu", length="even") %}{% set eager = row("forward_bfloat16", provider="torch", op="bias_gelu", length="even") %}{% for r in rows("forward_bfloat16", provider="triton") + rows("forward_float32", provider="triton") %}{{ claim(r.percent >= (98 if r.op != "bias_gelu" else 97 if r.length == "even" else 88)) }}{% endfor %}The first two pass 100 % because they read more than they write, and [reading is the faster direction](../foundations/memory_hierarchy.py#the-ceiling-hbm-by-reading-writing-copying). The third gains more than its trips{{ claim(eager.ms > 2.5 * gelu.ms) }}: eager GELU waits for its arithmetic, not for memory; with twice the bytes, in float32, it takes {{ (row("forward_float32", provider="torch", op="bias_gelu", length="even").ms / eager.ms) | times }} as long{{ claim(row("forward_float32", provider="torch", op="bias_gelu", length="even").ms < 1.5 * eager.ms) }}. The compiler's kernel saves the same trips, but waits for erf, too, and takes {{ (compiled.ms / gelu.ms) | times }} as long as ours{{ claim(compiled.ms > 1.2 * gelu.ms) }}. In float32, with twice the bytes to hide behind, it is level with ours{% set c32 = row("forward_float32", provider="torch_compile", op="bias_gelu", length="even") %} ({{ c32.percent | pct }} of the copy{{ claim(c32.percent > 97) }}).
#
# {{ figure("gradient", caption="With gradients: one kernel for dx and the sums of dbias.") }}
#
# {% set g = row("gradient", provider="triton", op="bias_gelu") %}{% set gc = row("gradient", provider="torch_compile", op="bias_gelu") %}{% set ge = row("gradient", provider="torch", op="bias_gelu") %}Forward and backward, `bias_gelu` takes {{ g.ms | ms }}; torch.compile {{ (gc.ms / g.ms) | times }} as long{{ claim(gc.ms > 1.15 * g.ms) }}, eager {{ (ge.ms / g.ms) | times }}{{ claim(ge.ms > 1.5 * g.ms) }}.
#
# **From nine [launches](../foundations/programming_model.py#what-happens-at-the-launch) to one** (ours two, with the one that repeats the bias), from 20 trips to 2, at a width that 16 does not divide, 10,922 × 12,289:
#
# {{ table("forward_bfloat16", where={"op": "bias_gelu", "length": "odd"}, columns=["provider", "ms", "percent", "peak_bytes"]) }}
#
# {% set odd = {"op": "bias_gelu", "length": "odd"} %}{% set nine, one, best = row("forward_bfloat16", provider="torch_unfused", **odd), row("forward_bfloat16", provider="torch_compile", **odd), row("forward_bfloat16", provider="triton", **odd) %}The nine take {{ (nine.ms / best.ms) | times }} as long{{ claim(nine.ms > 7 * best.ms) }}. In the compiler's one kernel each lane divides to find its column, the bias comes number by number, and `x` in pairs, since its mask may end after any of them: {{ (one.ms / best.ms) | times }}{{ claim(one.ms > 1.4 * best.ms) }}.
#
# {{ figure("small", y="us", logy=True, caption="Up to 2¹⁸ elements most of a kernel's time is its start.") }}
#
# {{ claim(row("small", provider="triton", n=2**18).us < 1.35 * row("small", provider="triton", n=2**10).us < row("small", provider="torch", n=2**10).us) }}{% set few, two = row("small", provider="triton", n=2**14), row("small", provider="torch", n=2**14) %}{% set host, torch_host, compiled_host = (rows("small", provider="triton") | map(attribute="host_us") | sort)[2], (rows("small", provider="torch") | map(attribute="host_us") | sort)[2], (rows("small", provider="torch_compile") | map(attribute="host_us") | sort)[2] %}At a copy's full speed 2¹⁴ elements would pass in {{ (few.bytes / gelu.tbps * 1e-6) | n(2) }} µs. Our kernel takes {{ few.us | n(1) }} µs, torch's two {{ two.us | n(1) }}{{ claim(few.us < two.us) }}. The host needs (the median of five sizes; this machine's host was uneven) {{ host | n }} µs to call ours, {{ torch_host | n }} for torch's two{{ claim(torch_host < host) }}, and {{ compiled_host | n }} for torch.compile's one, which checks what it was compiled for{{ claim(host < 40 and host < 0.8 * compiled_host) }}. Launches count here, not trips: fewer kernels help a little, a [CUDA graph](../glossary.md#cuda-graph) more ([launch overhead](../glossary.md#launch-overhead)).
#
# ## Questions before you fuse
#
# - **Does it pay?** A step of your model gets faster by at most the bytes of the trips saved over {{ copy_tbps(2**30) | tbps }}, and some {{ (two.us - few.us) | n }} µs of the GPU a launch. Divide that by the step's time: beside a large product it is next to nothing, in a chain of small operations most of the step.
# - **In place?** {% set inplace, plain, fused = row("forward_bfloat16", provider="torch_in_place", length="even"), row("forward_bfloat16", provider="torch", op="multiply_add", length="even"), row("forward_bfloat16", provider="torch_addcmul", length="even") %}`mul(x, y).add_(z)` needs {{ inplace.peak_bytes | bytes }} where `x * y + z` needs {{ plain.peak_bytes | bytes }}, but takes as long: {{ inplace.ms | ms }} and {{ plain.ms | ms }}{{ claim((inplace.ms / plain.ms - 1) | abs < 0.05 and inplace.peak_bytes < plain.peak_bytes) }}. It saves memory, not trips. `addcmul(z, x, y)` is fused, {{ fused.ms | ms }}{{ claim(fused.ms < 0.75 * plain.ms) }}: look for such a function before you write one. `out=x` is safe, for each element is read before it is written, and by the same program. But `out` may not overlap an input in part. (Autograd counts PyTorch's writes to a tensor, to refuse a gradient that needs what is gone. A kernel's it cannot see: `increment_version` tells it.)
# - **Other dtypes?** bfloat16 + float32 is float32 in PyTorch, twice the bytes from there on. Here
#   it is refused; a cast inside the kernel costs no trip.
# - **Broadcasting?** `y.expand_as(x)` works, but is copied: a trip to write, one to read. Index it,
#   as the bias.
#
# ## Where it loses, and why
#
# - **`addcmul`** is level{% for length in ("even", "odd") %}{{ claim((row("forward_bfloat16", op="multiply_add", provider="torch_addcmul", length=length).ms / row("forward_bfloat16", op="multiply_add", provider="triton", length=length).ms - 1) | abs < 0.02) }}{% endfor %}, torch.compile too but for 16-bit GELU and odd lengths. torch.compile is ahead with the gradient of `multiply_add`, which it fuses{% set m, mc = row("gradient", provider="triton", op="multiply_add"), row("gradient", provider="torch_compile", op="multiply_add") %}: ours takes {{ (m.ms / mc.ms) | times }} its time{{ claim(1.03 < m.ms / mc.ms < 1.2) }}, 10 trips to 9.
# - **Backward in bfloat16**: {{ g.percent | pct }} of the copy with the forward pass{{ claim(g.percent < 95) }}. A program asks for its next rows only when it has stored the last.
# - **Odd widths**: {{ best.percent | pct }} in bfloat16{{ claim(best.percent < 97) }}: repeating the bias is one more launch, and the repeated bias, {{ (16 * 12289 * 2) | bytes }}, is too long for [L1](../glossary.md#l1) and comes out of [L2](../glossary.md#l2). {% set free, tight = row("tiles", n_cols=12289, limit=255), row("tiles", n_cols=12289, limit=32) %}{% set seen = profile("forward_bfloat16", provider="triton", op="bias_gelu", length="odd") %}The kernel alone reaches {{ tight.percent | pct }}, and {{ free.percent | pct }} without `maxnreg=32`, the launch's limit of registers a thread{{ claim(tight.ms < 0.95 * free.ms) }}: left to itself the compiler takes more [registers](../glossary.md#register) for this kernel, so that fewer [warps](../glossary.md#warp) fit an SM and fewer loads are under way. With {{ seen.registers | n(0) }} NVIDIA's profiler sees {{ seen.occupancy | pct }} of the warps that an SM has room for.{{ claim(seen.registers == 32 and seen.occupancy > 75) }} Columns wrapped inside the kernel were no faster in a trial that is not recorded here. In float32, without the limit, torch.compile is level there{{ claim((row("forward_float32", provider="torch_compile", op="bias_gelu", length="odd").ms / row("forward_float32", provider="triton", op="bias_gelu", length="odd").ms - 1) | abs < 0.04) }}.
#
# {{ profile_source() }}
#
# ## What to remember
#
# 1. Fused, you pay for the first inputs and the last output. Count trips and divide: the gain.
# 2. Compile first, count launches, and write what the compiler could not.
# 3. In 16 bits a function such as erf can cost more time than its bytes: count instructions, too.
#
# ## Exercises
#
# ??? question "1 (easy): `silu(x) * z + r`: launches, trips, gain?"
#     ??? success "Answer"
#         Three launches, 2 + 3 + 3 = 8 trips. Fused 4, so 2×. With `x * sigmoid(x)` instead of
#         `silu` four launches, 2 + 3 + 3 + 3 = 11 trips, and 2.75×.
#
# ??? question "2 (medium): fuse the gradient of `multiply_add`. Predict its gain first."
#     ??? success "Answer"
#         3 + 3 trips for `dout * y` and `dout * x`, 5 in one: 1.2×. With the forward pass, 10 to 9.
#
# ??? question "3 (hard): find a polynomial of degree 5 for `_below`. How large is the error?"
#     ??? success "Answer"
#         Least squares on `log_ndtr(-a) / log(2)`, `a` from 0 to 10, weighted by `a * ndtr(-a) / 0.17`, but by 1 below `a` = 0.75 and nowhere by less than 0.001: 2 · 10⁻⁵. (By `a * ndtr(-a)` alone 6 · 10⁻⁷, but $\Phi(-8)$ comes out at about a fifth of its value.) The [test of this page](https://github.com/triton-lectures/triton-lectures/blob/main/tests/kernels/test_elementwise.py) has the code. In degree 6 the highest coefficient comes out positive: far out the polynomial would grow, where it must fall.
#
# ## Use it in your project
#
# ```python
# from elementwise import bias_gelu
#
# h = bias_gelu(x @ w, bias)  # nn.Linear without its bias, then bias and GELU
# ```
#
# API: [multiply_add][examples.fusion.elementwise.multiply_add], [add_relu][examples.fusion.elementwise.add_relu], [bias_gelu][examples.fusion.elementwise.bias_gelu].
