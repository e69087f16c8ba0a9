# %% [markdown]
# ---
# title: The memory hierarchy
# description: Registers, L1, L2 and HBM of a GPU, measured by Triton kernels; why fusion wins.
# tags: [memory-bound, latency, bandwidth, roofline]
# outcome: Tell from a count of bytes how fast a kernel can be, and what fusing two kernels saves.
# ---
#
# {% set peak = row("multiply_add", warps_per_sm=16) %}
# {% set eager = row("softmax_traffic", provider="torch_unfused", n_rows=4096) %}
#
# # The memory hierarchy: where the time goes
#
# An {{ env.gpu }} does {{ peak.tflops | n }} trillion float32 operations a second, and a softmax
# needs about five for each element. Written in PyTorch as the formula reads, it uses
# {{ (eager.tflops / peak.tflops * 100) | n(1) }} % of them.
# **What does the GPU do the rest of the time?**
#
# It waits for memory. So do most kernels of a neural network, and so this course begins with
# memory: four kinds of it, how large, how fast and how far away each one is, measured on this page
# by kernels of a few lines. (What their parts do, the [next lecture](programming_model.py) explains: here read the loops.) At
# the end you can count the bytes of a computation and say how long it must take.
#
# ## The machine
#
# - A **[kernel](../glossary.md#kernel)** is a function that runs on the GPU; starting it from Python
#   is a **launch**. A PyTorch operation that computes on the GPU is one launch or several.
# - A launch starts many copies of the kernel. Triton calls one copy a
#   **[program](../glossary.md#program)** and all of them the **[grid](../glossary.md#grid)**; a
#   program asks for its number with `tl.program_id(0)`.
# - A GPU is a set of processors, **[SMs](../glossary.md#sm)** (streaming multiprocessors;
#   {{ env.sms }} on this one). A program runs on one SM from start to end; an SM holds several.
# - A program runs on **threads**; 32 of them, a **[warp](../glossary.md#warp)**, execute each
#   instruction together. In Triton you do not write threads but operations on
#   **[blocks](../glossary.md#block)** of numbers; the compiler deals the numbers out to them.
#
# And the four memories, from near to far:
#
# - **[Registers](../glossary.md#register)** hold the numbers that a thread is working on: the
#   variables of your kernel. Arithmetic reads and writes nothing else, except that [tensor cores](../glossary.md#tensor-core) also read shared memory.
# - **L1 and [shared memory](../glossary.md#shared-memory)** are one store in each SM. L1 is a cache:
#   it keeps what was loaded lately. Shared memory is used on purpose, by the compiler, to pass
#   numbers between the threads of a program.
# - **[L2](../glossary.md#l2)** is a cache that all SMs share.
# - **[HBM](../glossary.md#hbm)** (high-bandwidth memory) is what PyTorch calls CUDA memory: your
#   tensors live there. From one launch to the next nothing else lasts but what is left in L2.
#
# **Bandwidth** is how many bytes arrive in a second once the flow is under way (1 TB/s is 10¹²
# bytes a second); **[latency](../glossary.md#latency)** is how long you wait for the first one: the
# width and the length of a pipe. Here are both, measured below, beside what is published:
#
# {{ diagram("memory_pyramid") }}
#
# Sizes: NVIDIA's [Hopper tuning guide](https://docs.nvidia.com/cuda/hopper-tuning-guide/index.html)
# for the H100 (of the 256 KB up to 228 can be shared memory), and what the driver reports. HBM: the
# [H200 data sheet](https://www.nvidia.com/en-us/data-center/h200/). L1: 128 bytes a clock for each
# of {{ env.sms }} SMs at 1.98 GHz. NVIDIA publishes no bandwidth for this L2 (the 5,120 bytes a
# clock of the A100 would make 10.1 TB/s), and no latencies. All registers together, 33 MiB, are
# more than half an L2: a GPU lacks *large* memory near its arithmetic, not memory near it.
#
# ## Bandwidth: read the same bytes again and again
#
# To see a cache, read a buffer repeatedly and vary its size, the **[working set](../glossary.md#working-set)**. While it fits,
# every read but the first comes from there; then the bandwidth falls to that of the next level.
#
# Program `p` of `P` owns the blocks `p`, `p + P`, `p + 2P`, … of the buffer and goes round them
# until it has made `n_loads` loads. This [persistent kernel](../glossary.md#persistent-kernel)
# moves gigabytes in one launch, so that the launch's own microseconds do not count. Three details:
#
# - **The result is used**: the program stores the sum of what it read. Loads whose results nobody
#   needs are removed by the compiler, and the empty loop would look wonderfully fast.
# - **The address changes with the loop**: else one load before the loop would do.
# - **`cache_modifier=".cg"`** sends a load past L1, so that L2 is measured. With `".ca"` the
#   same kernel measures L1, because each program comes back to its own blocks on its own SM.

# %% tags=["copy"]
import torch
import triton
import triton.language as tl


@triton.jit
def read_kernel(x_ptr, out_ptr, n_blocks, n_loads, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """Adds up `n_loads` blocks of `x`, going round those of this program."""
    pid = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)  # [BLOCK]
    acc = tl.zeros((BLOCK,), tl.float32)
    block = pid
    for _ in range(n_loads):
        acc += tl.load(x_ptr + block * BLOCK + offs, cache_modifier=CACHE)
        # on to the program's next block; past the end, back to its first
        block += tl.num_programs(0)
        block = tl.where(block < n_blocks, block, pid)
    tl.store(out_ptr + pid, tl.sum(acc))


@triton.jit
def copy_kernel(x_ptr, y_ptr, n_blocks, n_loads, BLOCK: tl.constexpr):
    """Copies `n_loads` blocks of `x` to `y`, going round those of this program."""
    pid = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)  # [BLOCK]
    block = pid
    for _ in range(n_loads):
        x = tl.load(x_ptr + block * BLOCK + offs, cache_modifier=".cg")
        tl.store(y_ptr + block * BLOCK + offs, x)
        block += tl.num_programs(0)
        block = tl.where(block < n_blocks, block, pid)


@triton.jit
def fill_kernel(y_ptr, value, BLOCK: tl.constexpr):
    """Writes `value` to one block of `y`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    tl.store(y_ptr + offs, tl.full((BLOCK,), value, tl.float32))


# %% [markdown]
# These functions launch them, and refuse what the kernels cannot do. A thread loads at most 16
# bytes at a time; two such loads are 8 numbers a thread, 256 a warp: `BLOCK / 256` warps a block.

# %% tags=["copy", "fold"]
def _refuse(name: str, x: torch.Tensor, dtype: torch.dtype, multiple: int = 1) -> None:
    """Raises unless `x` is what the operation called `name` can take."""
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"{name} needs a tensor on a GPU, got {x.device}; TRITON_INTERPRET=1 runs it on the CPU"
        )
    if x.dtype != dtype:
        raise TypeError(f"{name} needs {dtype}, got {x.dtype}")
    if not x.is_contiguous():
        raise ValueError(f"{name} needs a contiguous tensor, got strides {x.stride()}")
    if x.numel() == 0 or x.numel() % multiple:
        raise ValueError(f"{name} needs a multiple of {multiple} elements, got {x.numel()}")


def _blocks(name: str, x: torch.Tensor, n_programs: int | None, block: int) -> tuple[int, int, int]:
    """Blocks in `x`, programs to launch (one a block where no number is given), warps in each."""
    _refuse(name, x, torch.float32, multiple=block)
    n_blocks = x.numel() // block
    if n_programs is not None and not 0 < n_programs <= n_blocks:
        raise ValueError(f"{name} needs 1 to {n_blocks} programs, got {n_programs}")
    return n_blocks, n_programs or n_blocks, max(1, block // 256)


def read(x: torch.Tensor, n_programs=None, n_loads=1, cache=".cg", block=1024, out=None):
    """Reads a tensor, and adds up what each program has read.

    Args:
        x: Contiguous float32 on a GPU, a multiple of `block` elements.
        n_programs: At most one a block, which is the default.
        n_loads: How many blocks each program reads.
        cache: `".cg"` to read past L1, `".ca"` through it.
        block: Elements of a block, a power of two.
        out: Where to put the sums.

    Returns:
        The sums, float32, `[n_programs]`.

    Raises:
        TypeError: `x` is not float32.
        ValueError: `x` is not as wanted, or there are more programs than blocks.
    """
    n_blocks, n_programs, warps = _blocks("read", x, n_programs, block)
    out = x.new_empty(n_programs) if out is None else out
    read_kernel[(n_programs,)](x, out, n_blocks, n_loads, CACHE=cache, BLOCK=block, num_warps=warps)
    return out


def copy(x, out, n_programs=None, n_loads=1, block=1024) -> torch.Tensor:
    """Copies `x` to `out`: all of it, if `n_programs * n_loads` blocks are all; compare `read`."""
    n_blocks, n_programs, warps = _blocks("copy", x, n_programs, block)
    copy_kernel[(n_programs,)](x, out, n_blocks, n_loads, BLOCK=block, num_warps=warps)
    return out


def read_reference(x: torch.Tensor, n_programs: int, n_loads: int, block: int) -> torch.Tensor:
    """What `read` must return, in float64."""
    sums = x.double().view(-1, block).sum(1)
    own = [sums[p::n_programs] for p in range(n_programs)]
    return torch.stack([s[torch.arange(n_loads) % len(s)].sum() for s in own])


# %% [markdown]
# {% set l1 = row("memory_bandwidth", provider="triton_through_L1", working_set=2**24) %}
# {% set l2 = row("memory_bandwidth", provider="triton", working_set=2**24) %}
# {% set far = row("memory_bandwidth", provider="triton", working_set=2**30) %}
# {% set once = row("memory_bandwidth", provider="torch", working_set=2**24) %}
#
# **Predict**: at which sizes are the cliffs? What does one launch of `torch.Tensor.copy_` show?
#
# {{ figure("memory_bandwidth", y="tbps", caption="Each cache gives its own bandwidth up to its "
#    ~ "size: L1 " ~ (l1.tbps | tbps) ~ ", L2 " ~ (l2.tbps | tbps) ~ ", HBM " ~ (far.tbps | tbps)
#    ~ ". A single launch of a copy shows neither cache.") }}
# {{ claim(l1.tbps > 3 * l2.tbps > 4.5 * far.tbps) }}
#
# - **Through L1**: {{ l1.tbps | tbps }} at 16 MiB, 124 KiB on each SM,
#   {{ (l1.tbps / 33.45 * 100) | pct }} of what 128 bytes a clock would give. Past 256 KB an SM, 33
#   MiB in all, the curve bends: what no longer fits comes from L2, the rest still from L1.
# - **From L2** ("Triton"): {{ l2.tbps | tbps }}, {{ (l2.tbps / far.tbps) | times }} the bandwidth
#   of HBM, with a cliff shortly before the {{ env.l2_bytes | bytes }} that the driver reports.
# - **From HBM**: {{ far.tbps | tbps }}; copying ("Triton, copy") is slower, as we shall see.
# - **One launch of a copy** ("torch") never shows L2, though at 16 MiB its data is there. It takes
#   {{ once.us | n(1) }} µs, of which L2's bandwidth explains {{ (once.bytes / l2.tbps * 1e-6) | n(1) }};
#   most of the rest is the price of a launch. {{ claim(once.tbps < 0.6 * l2.tbps) }}
#
# ## Latency: follow a trail
#
# For the latency you need loads that cannot overlap. Fill a table in which each entry is the
# position of the next, in random order, and follow it: the address of a load is the result of the
# one before. One program, one warp, all its threads at the same place; the rest of the GPU sleeps.

# %% tags=["copy"]
@triton.jit
def chase_kernel(table_ptr, position_ptr, n_hops):
    """Follows the table from the position stored, and stores where it ends."""
    position = tl.load(position_ptr)
    for _ in range(n_hops):
        position = tl.load(table_ptr + position)
    tl.store(position_ptr, position)


def random_cycle(n_lines: int, device: str | torch.device = "cuda") -> torch.Tensor:
    """A table for `chase`, int32: one entry in every 32, a cache line, and all in one cycle."""
    order = torch.randperm(n_lines, device=device)
    table = torch.zeros(n_lines, 32, dtype=torch.int32, device=device)
    table[order, 0] = (order.roll(-1) * 32).int()
    return table.view(-1)


def chase(table: torch.Tensor, position: torch.Tensor, n_hops: int) -> torch.Tensor:
    """Follows `table` for `n_hops` loads from `position` (int32, one element), and moves it on."""
    _refuse("chase", table, torch.int32)
    _refuse("chase", position, torch.int32)
    chase_kernel[(1,)](table, position, n_hops, num_warps=1)
    return position


# %% [markdown]
# {% set l1_ns = row("memory_latency", working_set=2**14).ns %}
# {% set l2_ns = row("memory_latency", working_set=2**23).ns %}
# {% set far_ns = row("memory_latency", working_set=2**30).ns %}
# {% set far = row("memory_bandwidth", provider="triton", working_set=2**30).tbps %}
#
# To leave the launch out, we time a short and a long chase and divide the difference in time by
# that in hops. Each launch goes on where the last one stopped; else it would find in the cache what
# that one loaded. **Predict**: at 1.98 GHz a clock takes half a nanosecond. How many is HBM away?
#
# {{ figure("memory_latency", y="ns", caption="A thread waits " ~ (l1_ns | n) ~ " ns for a load "
#    ~ "from L1, " ~ (l2_ns | n) ~ " ns from L2 and " ~ (far_ns | n) ~ " ns from HBM.") }}
# {{ claim(l1_ns * 5 < l2_ns < far_ns / 2) }}
#
# HBM is some {{ (far_ns * 1.98) | round(-1) | n }} clocks away. (Some 2 ns of each hop are the
# instruction that computes the address.) L2 ends early, near 30 MiB and not 60. NVIDIA says of the
# [A100](https://developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth/) that its L2 is two
# halves, each caching for the SMs next to it. That fits: this lone SM fills one half; the programs
# of the figure before, on all SMs and each reading other bytes, filled both. On a logarithmic
# scale, with what the rest of this page measures:
#
# {{ diagram("memory_ladder") }}
#
# **How does a GPU live with that?** The trail through HBM reads 4 bytes every {{ far_ns | n }} ns,
# {{ (4e3 / far_ns) | n }} *mega*bytes a second; the same memory gave {{ far | tbps }} above. The
# difference is how many loads are under way at one time ([Little's law](../glossary.md#littles-law)):
#
# $$ \text{bytes under way} = \text{bandwidth} \times \text{latency} $$
#
# Here that is {{ (far * far_ns * 1e-3) | n(1) }} MB at any moment,
# {{ (far * far_ns / env.sms) | n }} KB on each SM. An SM holds up to 2,048 threads; with 16 bytes
# from each, 32 KB. That is why a GPU runs so many: while one warp waits, the SM executes another.
# **Latency can be hidden by parallelism. Bandwidth cannot be hidden.**
#
# ## Registers: a chain of multiply-adds
#
# Triton gives registers no address, so their speed shows only in arithmetic. A multiply-add
# `x * a + b` reads three registers and writes one; in a chain it needs the result of the one
# before. A program is one warp, each of its threads has four chains, and we vary how many warps
# share an SM. (`tl.static_range` unrolls the inner loop: counting would cost as much as computing.)

# %% tags=["copy"]
@triton.jit
def multiply_add_kernel(out_ptr, a, b, n_rounds, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    """Goes from x to `x * a + b`, beginning with 0, `n_rounds * ROUND` times."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    x = tl.zeros((BLOCK,), tl.float32)
    for _ in range(n_rounds):
        for _ in tl.static_range(ROUND):
            x = x * a + b
    tl.store(out_ptr + offs, x)


def multiply_add(out: torch.Tensor, a: float, b: float, n_rounds: int) -> torch.Tensor:
    """Fills `out`, float32, a multiple of 128 elements, with the end of `64 * n_rounds` steps."""
    _refuse("multiply_add", out, torch.float32, multiple=128)
    grid = (out.numel() // 128,)
    multiply_add_kernel[grid](out, a, b, n_rounds, ROUND=64, BLOCK=128, num_warps=1)
    return out


@triton.jit
def empty_kernel():
    """Does nothing."""


# %% [markdown]
# {% set chain = row("multiply_add", warps_per_sm=1) %}
# {% set peak = row("multiply_add", warps_per_sm=16) %}
# {% set read = row("hbm", provider="triton_read", bytes_moved=2**32) %}
# {% set copied = row("hbm", provider="triton", bytes_moved=2**32) %}
# {% set first = row("launch_overhead", provider="triton", n_launches=1) %}
# {% set queue = row("launch_overhead", provider="triton", n_launches=16) %}
# {% set zeros = row("launch_overhead", provider="torch", n_launches=16) %}
# {% set gpu_us, host_us = (queue.us - first.us) / 15, queue.host_us / 16 %}{% set add_us = rec("foundations/programming_model").row("vector_add", provider="triton", n=1024).host_us %}
#
# {{ figure("multiply_add", y="tflops", caption="One warp leaves the arithmetic of an SM idle most "
#    ~ "of the time; 16 reach " ~ (peak.tflops | tflops) ~ " on all SMs.") }}
# {{ claim(peak.tflops > 60 and peak.tflops > 3 * chain.tflops) }}
#
# With one warp a step takes {{ chain.ns | n(1) }} ns, four clocks, the latency of a multiply-add. Two or four take no
# longer: an SM has four sets of units, and a warp keeps to one.{{ claim(row("multiply_add", warps_per_sm=4).ns < 1.05 * chain.ns) }} More fill the last gaps, up to
# {{ peak.tflops | tflops }}, where the data sheet says 67. At 16 bytes for each multiply-add that
# is {{ (peak.tflops * 8) | tbps }}, {{ (peak.tflops * 8 / read.tbps) | n }} times HBM. What has
# come as far as a register is worth keeping there.
#
# ## The ceiling: HBM by reading, writing, copying
#
# Layers of a real model seldom find their inputs in a cache: what one wrote has been pushed out
# before the next one reads it. So HBM is the measure: every byte is touched once, none is in L2.
#
# {{ figure("hbm", y="tbps", caption="Reading alone reaches " ~ (read.tbps | tbps) ~ ", a copy "
#    ~ (copied.tbps | tbps) ~ "; small transfers come near neither.") }}
# {{ claim(copied.tbps > 3 * row("hbm", provider="triton", bytes_moved=2**22).tbps) }}
# {{ claim(copied.percent >= 98 and read.tbps > copied.tbps) }}
#
# Of the vendor's 4.8 TB/s writing reaches {{ (row("hbm", provider="triton_write", bytes_moved=2**32).tbps / 4.8 * 100) | pct }}, reading {{ (read.tbps / 4.8 * 100) | pct }}, copying
# {{ (copied.tbps / 4.8 * 100) | pct }}: memory loses time when it turns from reading to writing and
# when it refreshes itself. The copy is what this site calls the **[ceiling](../glossary.md#ceiling)**:
# a softmax reads and writes as much as a copy, so a copy *of the same number of bytes* is about
# the best it can do. "97 %" on any page means 97 % of that. A few percent above 100 happen: where more is read than written, or where PyTorch's copy is not the fastest [possible](../glossary.md#ceiling).
#
# ## The price of a launch
#
# {{ figure("launch_overhead", y="us", caption="Kernels that do nothing, queued: each costs the "
#    ~ "GPU another " ~ (gpu_us | n(1)) ~ " µs.") }} {{ claim(host_us > gpu_us) }}
#
# `empty_kernel` costs the GPU {{ gpu_us | n(1) }} µs, and Python {{ host_us | n(1) }} µs
# ({{ (zeros.host_us / 16) | n(1) }} µs for PyTorch's `zero_`). Python works ahead, unnoticed while
# kernels take longer; else the GPU waits ([launch overhead](../glossary.md#launch-overhead)). HBM
# delivers {{ (host_us * read.tbps) | n }} MB in the time that Python takes. Arguments and checks add to it: the [next lecture's add](programming_model.py#what-happens-at-the-launch) takes Python {{ add_us | n }} µs.{{ claim(add_us > 1.5 * host_us) }}
#
# {{ picture("memory") }}
#
# ## Why fusion wins, counted
#
# The softmax of a row is $y_i = e^{x_i - m} / s$ with $m = \max_j x_j$, $s = \sum_j e^{x_j - m}$.
# As four kernels, each loads from HBM what it needs and stores what it made: registers do not
# outlive a kernel. Let $N$ be the bytes of the matrix; `m` and `s`, one number a row, hardly count.
#
# ```text
# four launches       read  write        one launch                   read  write
# 1  m = max(x)        N      -          load x                        N      -
# 2  e = exp(x - m)    N      N          max, exp, sum, divide         -      -
# 3  s = sum(e)        N      -            (the row is in registers)
# 4  y = e / s         N      N          store y                       -      N
#                     4N  +  2N  = 6N                                  N  +   N  = 2N
# ```
#
# {{ diagram("memory_fusion") }}
#
# **[Fusion](../glossary.md#fusion)** is doing it in one kernel: a row is loaded into registers once,
# stays there for all four steps, and is stored once. It saves four of six trips, 67 % of the bytes,
# and not one operation. (PyTorch takes five launches and 8 N: `x - m` and `exp` are two.) Here are
# both; the fused kernel is the four steps without the loads and stores between them.

# %% tags=["copy"]
@triton.jit
def softmax_step_kernel(x_ptr, stat_ptr, y_ptr, n_cols, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """One of the four steps, for one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)  # [BLOCK]
    mask = cols < n_cols
    # -inf, so that masked lanes lose the maximum
    x = tl.load(x_ptr + row * n_cols + cols, mask=mask, other=-float("inf"))
    if STEP == "max":
        tl.store(stat_ptr + row, tl.max(x))
    elif STEP == "exp":
        tl.store(y_ptr + row * n_cols + cols, tl.exp(x - tl.load(stat_ptr + row)), mask=mask)
    elif STEP == "sum":
        tl.store(stat_ptr + row, tl.sum(tl.where(mask, x, 0.0)))
    else:
        tl.store(y_ptr + row * n_cols + cols, x / tl.load(stat_ptr + row), mask=mask)


@triton.jit
def row_softmax_kernel(x_ptr, y_ptr, n_cols, BLOCK: tl.constexpr):
    """All four steps, for one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)  # [BLOCK]
    mask = cols < n_cols
    # -inf, so that masked lanes lose the maximum and add exp(-inf) = 0 to the sum
    x = tl.load(x_ptr + row * n_cols + cols, mask=mask, other=-float("inf"))
    e = tl.exp(x - tl.max(x))
    tl.store(y_ptr + row * n_cols + cols, e / tl.sum(e), mask=mask)


def _softmax_sizes(name: str, x: torch.Tensor) -> dict:
    """The compile-time arguments of both softmaxes."""
    _refuse(name, x, torch.float32)
    if x.ndim != 2 or x.shape[1] > 16384:
        raise ValueError(f"{name} needs a matrix of at most 16384 columns, got {tuple(x.shape)}")
    block = triton.next_power_of_2(x.shape[1])
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 512))}


def row_softmax(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax of each row, in one launch.

    Args:
        x: Contiguous float32 on a GPU, `[n_rows, n_cols]`, `n_cols` up to 16384.
        out: Where to put the result.

    Returns:
        float32, `[n_rows, n_cols]`.

    Raises:
        TypeError: `x` is not float32.
        ValueError: `x` is not as wanted.
    """
    sizes = _softmax_sizes("row_softmax", x)
    out = torch.empty_like(x) if out is None else out
    row_softmax_kernel[(len(x),)](x, out, x.shape[1], **sizes)
    return out


def row_softmax_unfused(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The same as `row_softmax`, in four launches."""
    sizes = _softmax_sizes("row_softmax_unfused", x)
    out = torch.empty_like(x) if out is None else out
    stat = x.new_empty(len(x))
    for step, source in (("max", x), ("exp", x), ("sum", out), ("divide", out)):
        softmax_step_kernel[(len(x),)](source, stat, out, x.shape[1], STEP=step, **sizes)
    return out


def row_softmax_reference(x: torch.Tensor) -> torch.Tensor:
    """The formula as PyTorch spells it: five launches."""
    e = torch.exp(x - x.amax(1, keepdim=True))
    return e / e.sum(1, keepdim=True)


# %% [markdown]
# {% set one = row("softmax_traffic", provider="triton", n_rows=4096) %}
# {% set four = row("softmax_traffic", provider="triton_four_launches", n_rows=4096) %}
# {% set five = row("softmax_traffic", provider="torch_unfused", n_rows=4096) %}
# {% set small = row("softmax_traffic", provider="triton", n_rows=64) %}
# {% set small4 = row("softmax_traffic", provider="triton_four_launches", n_rows=64) %}{% set small5 = row("softmax_traffic", provider="torch_unfused", n_rows=64) %}
#
# **Predict** both times for 4096 × 4096 numbers, $N$ = 64 MiB. A copy of 2 N takes
# {{ copy_ms(2**27) | ms }}, one of 6 N {{ copy_ms(3 * 2**27) | ms }}.
#
# | 4096 × 4096 float32 | launches | bytes moved | saved of 8 N | time | bandwidth used |
# |---|---|---|---|---|---|
# | PyTorch | 5 | 8 N | | {{ five.ms | ms }} | {{ (five.tbps * 4) | tbps }} |
# | four kernels | 4 | 6 N | 25 % | {{ four.ms | ms }} | {{ (four.tbps * 3) | tbps }} |
# | fused | 1 | 2 N | 75 % | {{ one.ms | ms }} | {{ one.tbps | tbps }} |
#
# The fused kernel is {{ (four.ms / one.ms) | times }} as fast as the four because it **moves
# less**, not because it computes or even moves faster: both use about the same bandwidth.{{ claim(2.7 < four.ms / one.ms < 3.5 and one.percent > 93) }}
# PyTorch's five lose more than bytes explain: with 64 rows, hardly any bytes, they take {{ small5.us | n }} µs, our four {{ small4.us | n }}.{{ claim(small5.us > 2 * small4.us and five.tbps * 4 < 0.9 * four.tbps * 3) }}
#
# {{ figure("softmax_traffic", y="us", logy=True, caption="At 4,096 rows the times differ by the "
#    ~ "bytes, " ~ ((four.ms / one.ms) | times) ~ "; at 64 by the launches, "
#    ~ ((small4.ms / small.ms) | times) ~ ".") }}
#
# **Where it wins less.** With few rows, what one launch hands to the next stays in L2, and fusion
# saves launches, not trips to HBM. A very long row does not fit the registers (255 for each thread,
# 64 K in an SM) and [spills](../glossary.md#spill) to memory behind your back; the
# [softmax lecture](../fusion/softmax.py) deals with that. And where arithmetic takes the time,
# saving bytes saves nothing. Which case is yours?
#
# ## The roofline
#
# Divide the operations of a kernel by the bytes that it must move: its
# **[arithmetic intensity](../glossary.md#arithmetic-intensity)**. A softmax does about 5 operations
# for the 8 bytes of an element, 0.6. A kernel needs the time of its operations at the peak rate, or
# that of its bytes at full bandwidth, whichever is longer; as a rate, in operations a second:
#
# $$ \text{rate} \le \min(\text{peak rate},\ \text{intensity} \times \text{bandwidth}) $$
#
# On logarithmic axes that is a slope that meets a flat roof, the
# **[roofline](../glossary.md#roofline)** ([Williams et al., 2009](https://doi.org/10.1145/1498765.1498785)).
# Left of the corner memory is the limit, right of it arithmetic. For bfloat16 products it lies at
# {{ (matmul_tflops("bfloat16") / copy_tbps(2**33)) | n }} operations a byte. Almost everything in a
# neural network except its large matrix products is far to the left.
#
# {{ roofline() }}
#
# A point below the roof can rise. One on the slope can only move to the **right**, by moving fewer
# bytes for the same work. That is fusion.
#
# ## What Triton cannot show
#
# - **Shared memory by itself**: Triton gives you no address in it ([Gluon](../glossary.md#gluon)
#   does). It is the same store as L1, at the same 128 bytes a clock: the L1 curve stands in for it.
# - **The registers' bandwidth**, inferred from arithmetic, is a lower bound.
#
# [Luo et al.](https://arxiv.org/abs/2402.13499) and [Chips and
# Cheese](https://chipsandcheese.com/p/nvidias-h100-funny-l2-and-tons-of-bandwidth) measured this
# chip's sibling, the H100, in CUDA and OpenCL.
#
# ## Check and benchmarks
#
# Every kernel against float64 or a walk in Python, outputs filled with NaN before, awkward sizes.
# Then six sweeps; L2 is [flushed](../glossary.md#flush) before a launch unless the data should be there.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares every kernel with its reference; raises AssertionError where they differ."""
    torch.manual_seed(0)
    block = 4096 if device == "cuda" else 64

    def report(name: str, sizes: str, got, want, allowed: float = 0.0) -> None:
        got, want = (torch.as_tensor(value, dtype=torch.float64).cpu() for value in (got, want))
        error = ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()
        print(f"{name:20s} {sizes:24s} error {error:.1e}")
        # NaN, what nothing was written to, fails too
        assert error <= allowed, f"{name}, {sizes}: error {error}, allowed {allowed}"

    for n_blocks, n_programs, n_loads in ((11, 4, 7), (13, 13, 3), (5, 1, 12)):
        sizes = f"{n_blocks} blocks, {n_programs} programs"
        x = torch.randn(n_blocks, block, device=device)
        x += torch.arange(n_blocks, device=device)[:, None]  # each block has a sum of its own
        want = read_reference(x, n_programs, n_loads, block)
        sums = x.new_full((n_programs,), float("nan"))
        report("read", sizes, read(x, n_programs, n_loads, ".cg", block, sums), want, 1e-5)
        y = torch.full_like(x, float("nan"))
        copy(x, y, n_programs, triton.cdiv(n_blocks, n_programs), block)
        report("copy", sizes, y, x)
        y = torch.full_like(x, float("nan"))
        fill_kernel[(n_blocks,)](y, 1.5, BLOCK=block)
        report("fill", sizes, y, torch.full_like(x, 1.5))

    for n_lines, n_hops in ((1, 3), (2, 5), (101, 77), (500, 500)):
        table = random_cycle(n_lines, device)
        entries, trail = table.tolist(), [0]
        position = torch.zeros(1, dtype=torch.int32, device=device)
        for _ in range(2):  # the second call goes on where the first one stopped
            for _ in range(n_hops):
                trail.append(entries[trail[-1]])
            got = chase(table, position, n_hops)
            report("chase", f"{n_lines} lines, {n_hops} hops", got, trail[-1])
        report("random_cycle", f"{n_lines} lines", len(set(trail)), n_lines)

    out = torch.full((384,), float("nan"), device=device)
    want = torch.full((384,), 0.5 * (1 - 0.99**128) / (1 - 0.99))
    report("multiply_add", "384 lanes, 128 steps", multiply_add(out, 0.99, 0.5, 2), want, 1e-5)

    for n_rows, n_cols, mean in ((1, 1, 0), (3, 64, 200), (5, 123, -200), (2, 1000, 200)):
        # so large that exp overflows where the maximum is not subtracted
        x = torch.randn(n_rows, n_cols, device=device) * 4 + mean
        for softmax in (row_softmax, row_softmax_unfused):
            y = softmax(x, torch.full_like(x, float("nan")))
            want = torch.softmax(x.double(), 1)
            report(softmax.__name__, f"{n_rows} x {n_cols}", y, want, 1e-6)


# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% tags=["fold"]
def _sweep(name, title, x, mode, rows, ceiling=None):
    """A benchmark from `(provider, sizes, timing, bytes, flops)` for each row."""
    rows = [
        {"provider": provider, **sizes, **timing, "bytes": moved, "flops": flops}
        for provider, sizes, timing, moved, flops in rows
    ]
    keys = ("name", "title", "x", "dtype", "mode", "ceiling", "rows")
    return dict(zip(keys, (name, title, x, "float32", mode, ceiling, rows), strict=True))


def bench(measure):
    """Bandwidth, latency, arithmetic, HBM, launches, and the softmax both ways."""
    torch.manual_seed(0)
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    sums = torch.empty(2**20, device="cuda")

    rows, programs, block = [], 2 * sms, 4096
    loads = 2**33 // (programs * block * 4)
    moved = loads * programs * block * 4
    for mib in (16, 24, 32, 40, 48, 56, 64, 96, 128, 256, 1024):
        n = mib * 2**18
        x, half, y = source[:n], source[: n // 2], target[: n // 2]
        runs = {
            "triton": lambda x=x: read(x, programs, loads, ".cg", block, sums),
            "triton_through_L1": lambda x=x: read(x, programs, loads, ".ca", block, sums),
            "triton_copy": lambda x=half, y=y: copy(x, y, programs, loads // 2, block),
            "torch": lambda x=half, y=y: y.copy_(x),
        }
        for provider, timing in measure(runs, flush=False).items():
            size = mib * 2**20 if provider == "torch" else moved
            rows.append((provider, {"working_set": mib * 2**20}, timing, size, 0))
    yield _sweep("memory_bandwidth", "Bandwidth of a working set", "working_set", "read", rows)

    rows, short, long = [], 4096, 20480
    for log2 in (12, 14, 16, 17, 17.6, 17.8, 18, 18.5, 19, 21, 23, 24, 24.5, 25, 25.5, 26, 27, 30):
        n_lines = int(2**log2) // 128
        table = random_cycle(n_lines)
        position = torch.zeros(1, dtype=torch.int32, device="cuda")
        # a lap ahead brings into the caches what fits
        laps = (n_lines, short, long) if n_lines < 2**19 else (short, long)
        runs = {n: lambda n=n, t=table, p=position: chase(t, p, n) for n in laps}
        timing = measure(runs, flush=False)
        ns = (timing[long]["ms"] - timing[short]["ms"]) / (long - short) * 1e6
        rows.append(("triton", {"working_set": n_lines * 128, "ns": ns}, timing[long], 4 * long, 0))
    yield _sweep("memory_latency", "Time of a dependent load", "working_set", "read", rows)

    rows, rounds = [], 2**12
    for warps in (1, 2, 4, 8, 16):
        x = sums[: 128 * warps * sms]
        timing = measure({"triton": lambda x=x: multiply_add(x, 0.999, 0.5, rounds)})["triton"]
        sizes = {"warps_per_sm": warps, "ns": timing["ms"] / (64 * rounds) * 1e6}
        rows.append(("triton", sizes, timing, 0, 128 * rounds * x.numel()))
    yield _sweep("multiply_add", "Chains of multiply-adds", "warps_per_sm", "forward", rows)

    rows = []
    for moved in (2**22, 2**24, 2**26, 2**28, 2**30, 2**32):
        n = moved // 4
        x, half, y = source[:n], source[: n // 2], target[: n // 2]
        runs = {
            "triton": lambda x=half, y=y: copy(x, y),
            "triton_read": lambda x=x: read(x, out=sums),
            "triton_write": lambda n=n: fill_kernel[(n // 1024,)](target, 1.5, BLOCK=1024),
            "torch": lambda x=half, y=y: y.copy_(x),
        }
        rows += [(p, {"bytes_moved": moved}, t, moved, 0) for p, t in measure(runs).items()]
    yield _sweep("hbm", "HBM: copy, read, write", "bytes_moved", "copy", rows, "copy")

    rows, zero = [], sums[:1]
    for n in (1, 2, 4, 8, 16):
        runs = {
            "triton": lambda n=n: [empty_kernel[(1,)]() for _ in range(n)],
            "torch": lambda n=n: [zero.zero_() for _ in range(n)],
        }
        timings = measure(runs, host=True, flush=False)
        rows += [(p, {"n_launches": n}, t, 0, 0) for p, t in timings.items()]
    yield _sweep("launch_overhead", "Kernels that do nothing", "n_launches", "forward", rows)

    rows, n_cols = [], 4096
    for n_rows in (64, 256, 1024, 4096, 16384):
        x, y = (t[: n_rows * n_cols].view(n_rows, n_cols) for t in (source, target))
        runs = {
            "triton": lambda x=x, y=y: row_softmax(x, y),
            "triton_four_launches": lambda x=x, y=y: row_softmax_unfused(x, y),
            "torch_unfused": lambda x=x: row_softmax_reference(x),
        }
        sizes = {"n_rows": n_rows, "n_cols": n_cols}
        rows += [(p, sizes, t, 8 * x.numel(), 5 * x.numel()) for p, t in measure(runs).items()]
    yield _sweep("softmax_traffic", "Softmax of rows of 4,096", "n_rows", "forward", rows, "copy")


# %% [markdown]
# {% set read = row("hbm", provider="triton_read", bytes_moved=2**32) %}
# {% set l1 = row("memory_bandwidth", provider="triton_through_L1", working_set=2**24) %}
# {% set far_ns = row("memory_latency", working_set=2**30).ns %}
# {% set sectors = read.tbps * far_ns * 1e3 / 32 %}
#
# ## What to remember
#
# 1. **Count bytes first.** To read and write them takes HBM their number over
#    {{ copy_tbps(2**33) | tbps }}, whatever the kernel computes.
# 2. **Each level is nearer and wider than the next, but no larger.** From register to HBM the
#    latency grows {{ (far_ns / row("multiply_add", warps_per_sm=1).ns) | n }} times. Parallelism hides it.
# 3. **Fusion saves trips, not arithmetic**: four launches to one, 6 N to 2 N.
#
# ## Exercises
#
# ??? question "1 · Count: what does fusion gain for `relu(x + b)`, `x` of N bytes, `b` one row?"
#     ??? success "Answer"
#         Two launches move 2 N each, the fused one 2 N: half the time. For a small `x`, one launch.
#
# ??? question "2 · Predict: eight programs an SM read 16 KiB each. What does a second read cost?"
#     ??? success "Answer"
#         Eight times 16 KiB fit L1, which serves the second read at
#         {{ (l1.tbps / read.tbps) | times }} the bandwidth of HBM. Kept in registers it costs nothing.
#
# ??? question "3 · Build: let `chase_kernel` follow 32 trails at a time. How many warps fill HBM?"
#     ??? success "Answer"
#         Load `position` from `position_ptr + tl.arange(0, 32)` and store it there; the loop stays.
#         A hop now makes 32 loads of 32 bytes, the least that a cache asks for, and waits for the
#         slowest. By Little's law {{ sectors | round(-3) | n }} loads must be under way: from
#         {{ (sectors / 32) | round(-2) | n }} warps, {{ (sectors / 32 / env.sms) | round(0, "ceil") | n }} on each SM.
#
# ## Use it in your project
#
# Time [read][examples.foundations.memory_hierarchy.read], `copy` and `chase` on your GPU to find
# *its* levels. In your model, take the operation that a profiler shows as slow, write down the
# bytes that it must read and write, and divide by the bandwidth of a copy. If its time is near
# that, only moving less helps: fuse it with a neighbour that reads what it writes, as the [softmax lecture](../fusion/softmax.py) does. `row_softmax` of this page has no gradient and does not say so; for training take that lecture's.
