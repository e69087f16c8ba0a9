# %% [markdown]
# ---
# title: Benchmarking
# description: One kernel timed wrongly in seven ways and rightly in three, each error measured.
# tags: [benchmarking, launch overhead, tolerances]
# prerequisites: [foundations/programming_model]
# outcome: Time a kernel so that the number survives a second look, and tell right from lucky.
# ---
#
# {% set truth, blind = row("ways", provider="measure", n_rows=32768), row("ways", provider="no sync", n_rows=32768) %}
#
# # Benchmarking: how long does a kernel take?
#
# You read the clock, call `row_softmax(x)` on a matrix of {{ (truth.bytes / 2) | bytes }}, read the
# clock again: {{ blind.us | n }} µs on an {{ env.gpu }}. To read and write the matrix in that time,
# memory would have to move {{ blind.tbps | n }} TB/s; it can do
# {{ copy_tbps(truth.bytes) | n(1) }}.{{ claim(blind.tbps > 5 * copy_tbps(truth.bytes)) }} **How
# long does the kernel take, and how would you know?**
#
# The first answer to a time is arithmetic, not a better clock. A softmax must read each element and
# write each result: 8 bytes for a float32. A copy of as many takes {{ truth.floor_ms | ms }}, the
# [floor](../glossary.md#floor); a time below it is a mistake, in the timing or in the kernel. Seven
# ways to err follow, each made on purpose and measured; then 30 lines that avoid them, and three
# tools that exist already.

# %% tags=["copy"]
import time

import torch
import triton
import triton.language as tl

# %% [markdown]
# ## What we time
#
# Softmax by rows, one [program](../glossary.md#program) a row, as [its own
# page](../fusion/softmax.py) explains. Here it stands for every kernel that memory limits; a matrix
# product of torch stands for those that arithmetic limits.

# %%
def row_softmax_reference(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, by the formula, in the precision of `x`."""
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)

# %% tags=["copy"]
@triton.jit
def row_softmax_kernel(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    """Softmax of one row a program; `BLOCK` is at least `n_cols`."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)  # [BLOCK]
    mask = cols < n_cols
    # -inf, so that masked lanes lose the maximum and add exp(-inf) = 0 to the sum
    x = tl.load(x_ptr + row * n_cols + cols, mask=mask, other=-float("inf")).to(tl.float32)
    e = tl.exp2((x - tl.max(x)) * 1.4426950408889634)  # log2(e)
    tl.store(out_ptr + row * n_cols + cols, e / tl.sum(e), mask=mask)

# %% tags=["copy", "fold"]
def row_softmax(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax over the rows of a matrix.

    Args:
        x: Contiguous float32, float16 or bfloat16 (n_rows, n_cols) on a GPU, n_cols <= 16,384.
        out: Contiguous tensor like `x` to write to; may be `x`.

    Returns:
        The softmax, of the shape and dtype of `x`, computed in float32.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: `x` is not on a GPU, no matrix, not contiguous or too wide, or `out` differs.
    """
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        wanted = "a tensor on a GPU; TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"row_softmax needs {wanted}; got one on {x.device}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"row_softmax needs float32, float16 or bfloat16, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] > 16384 or not x.is_contiguous():
        wanted = "a contiguous matrix of at most 16,384 columns"
        raise ValueError(f"row_softmax needs {wanted}, got {tuple(x.shape)}, strides {x.stride()}")
    out = torch.empty_like(x) if out is None else out
    alike = (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
    if not alike or not out.is_contiguous():
        given = f"{out.dtype} {tuple(out.shape)} on {out.device}, strides {out.stride()}"
        raise ValueError(f"row_softmax needs a contiguous out like x, got {given}")
    n_rows, n_cols = x.shape
    if x.numel():  # an empty block is an error
        BLOCK = triton.next_power_of_2(n_cols)
        num_warps = min(16, max(1, BLOCK // 512))
        with torch.cuda.device_of(x):
            row_softmax_kernel[(n_rows,)](x, out, n_cols, BLOCK=BLOCK, num_warps=num_warps)
    return out

# %% [markdown]
# ## Seven ways to be wrong
#
# Each takes `fn`, a function without arguments that launches the work. Rows have 4,096 columns.
#
# ### 1. The clock stops before the work is done
#
# A launch queues the kernel and returns: it is *asynchronous*. How will this time change from one
# row to 32,768?

# %% tags=["copy"]
def host_timer(fn, rest_ms: float = 0) -> float:
    """Times one call of `fn`, in milliseconds: of its work on a CPU, of its launch on a GPU."""
    start = time.perf_counter()
    fn()
    return (time.perf_counter() - start) * 1e3

# %% [markdown]
# {% set one, all = row("ways", provider="no sync", n_rows=1), row("ways", provider="no sync", n_rows=32768) %}
# From {{ one.us | n(1) }} µs to {{ all.us | n(1) }}.{{ claim(all.us < 4 * one.us) }} That is
# Python, the [launch overhead](../glossary.md#launch-overhead). A time that does not grow with the
# work is not the time of the work. (On a CPU the function is right, and we shall need it there.)
#
# ### 2. The first call counts
#
# `torch.cuda.synchronize()` waits until the queue is empty. Is this right?

# %%
def ms_of_one_call(fn):
    """Wrong: the time of a launch, its kernel, and the host's waking up after it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    fn()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def ms_of_first_calls(fn, count=10):
    """Wrong: the times of the first calls, the compiler's included."""
    with triton.knobs.compilation.scope():
        # as on a machine that has never seen the kernel: what was compiled lies on disk
        triton.knobs.compilation.always_compile = True
        return [ms_of_one_call(fn) for _ in range(count)]

# %% [markdown]
# {% set first, tenth = row("first_calls", call=1), row("first_calls", call=10) %}
# {% set mean = rows("first_calls") | sum(attribute="ms") / 10 %}
# {{ figure("first_calls", y="ms", logy=True, caption="The first call compiles; the mean of ten is "
#    ~ (mean / tenth.ms) | n ~ " times the tenth.") }}
#
# The first call takes {{ first.ms | ms }}, the tenth {{ tenth.us | n }}
# µs.{{ claim(mean > 20 * tenth.ms) }} Triton compiles, libraries load, autotuners try. So some
# calls before the clock starts, a **warm-up**, are part of every method below. (Tomorrow the same
# script finds the compiled kernel on disk, and its mean is another one.)
#
# ### 3. A host timer around one call, and the mean of it
#
# Even the tenth call, of 1,024 rows, is too long: at most {{ row("ways", provider="measure", n_rows=1024).us | n(1) }} of
# its {{ tenth.us | n }} µs are the kernel's; the rest is Python before it and waking up after it.
# And the host has other things to do. 2,000 calls with 8 rows, in µs (99 of 100 are below p99):
#
# {{ table("spread", columns=["timer", "lowest", "median", "mean", "p99", "highest"]) }}
#
# {% set host = row("spread", timer="one call") %}
# The host's mean lies {{ ((host.mean / host.median - 1) * 100) | pct }} above its
# median{{ claim(host.mean > host.median) }}, since some calls take up to
# {{ (host.highest / host.median) | n }} times as long{{ claim(host.highest > 1.5 * host.median) }}:
# an interrupt, a garbage collection. Such noise only adds. So report the **median**, which a few
# outliers cannot move (the minimum would pick the luckiest cache and clock), **and the spread**,
# here the 20th and 80th percentile. Where the bands of two kernels overlap, name no winner.
#
# ### 4. The kernel is tiny, and the GPU waits
#
# Ask the GPU, then. An *[event](../glossary.md#event)* is a mark in its queue; when the GPU passes it, it notes the time.
# This is the timer that we keep; two of its arguments are there to be misused:

# %% tags=["copy"]
def flush_l2() -> None:
    """Overwrites the L2 cache of the current GPU: 256 MiB are several times its size."""
    torch.empty(256 << 20, dtype=torch.int8, device="cuda").zero_()


def gpu_timer(fn, rest_ms: float, flush: bool = True) -> float:
    """Times one call of `fn`, in milliseconds, by events around it on the current GPU.

    Before it the GPU flushes its L2 cache and idles for about `rest_ms`, while the host queues.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if flush:
        flush_l2()
    if rest_ms:
        torch.cuda._sleep(int(rest_ms * 1.9e6))  # clocks, at about 1.9 GHz
    start.record()
    fn()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)

# %% [markdown]
# `gpu_timer(fn, rest_ms=0, flush=False)` is the textbook's pair of events, and the second timeline
# below: the idle GPU passes the first event at once, and then waits for Python.
#
# {{ diagram("benchmarking_timelines") }}
#
# {% set gap, queued = row("ways", provider="events", n_rows=8), row("ways", provider="warm cache", n_rows=8) %}
# For 8 rows it gives {{ gap.us | n(1) }} µs. Let the GPU sleep until events and launch are queued,
# and {{ queued.us | n(1) }} are left.{{ claim(gap.ms > 2 * queued.ms) }} Will a loop do as well?

# %%
def ms_in_a_loop(fn, count=100):
    """Wrong for small kernels: launches go no faster than the host makes them."""
    return gpu_timer(lambda: [fn() for _ in range(count)], rest_ms=0, flush=False) / count

# %% [markdown]
# {% set loop, eight = row("ways", provider="loop", n_rows=8), row("ways", provider="measure", n_rows=8) %}
# No: {{ loop.us | n(1) }} µs.{{ claim(loop.us > 1.5 * eight.us) }} The GPU empties the queue faster
# than Python fills it, and the loop measures Python.
#
# ### 5. The cache is warm
#
# In a loop over one matrix each call finds in [L2](../glossary.md#l2) what the last one left. A row
# is 32 KiB, read and written, L2 has {{ env.l2_bytes | bytes }}. Predict: up to how many rows does
# that matter, and how much? (`measure` in the figure is the timing done right, as built below.)
#
# {{ figure("ways", providers=["measure", "warm cache", "events", "loop", "no sync"], y="us",
#    logy=True, caption="Below 2,000 rows a loop times Python or the cache, not the kernel.") }}
#
# {% set warm, cold = row("ways", provider="warm cache", n_rows=1024), row("ways", provider="measure", n_rows=1024) %}
# At 1,024 rows, {{ cold.bytes | bytes }}, a warm cache turns {{ cold.us | n(1) }} µs into
# {{ warm.us | n(1) }}: {{ warm.percent | pct }} of a copy through
# memory.{{ claim(warm.percent > 115 > cold.percent) }} Both are true: what was
# written a moment ago is in the cache, if it is small. This site flushes; count on memory, not
# on luck.
#
# ### 6. The data are zeros
#
# A softmax does not care. A matrix product does: a wire that changes its state [costs power](https://www.thonking.ai/p/strangely-matrix-multiplications),
# and between zeros none does. At its power limit a GPU lowers its clock. Predict how much faster
# zeros multiply, 8192 by 8192 in bfloat16.
#
# {{ table("product", columns=["data", "tflops", "tflops_hot"]) }}
#
# {% set normal, zeros = row("product", data="normal"), row("product", data="zeros") %}
# {{ claim(normal.ms > 1.05 * zeros.ms and normal.ms_hot > 1.1 * zeros.ms_hot) }}
# Zeros run at {{ (normal.ms / zeros.ms) | times }} the speed of normal numbers, back to back at
# {{ (normal.ms_hot / zeros.ms_hot) | times }}, with the same instructions. Ones, among which nothing
# changes either, do as well{{ claim(row("product", data="ones").ms < 1.02 * zeros.ms) }}. (Hot, even zeros lose speed{{ claim(zeros.ms_hot > 1.1 * zeros.ms) }}: numbers are not all that costs power.) So measure with data like those you will have.
#
# ### 7. One is cool, the other hot
#
# The two columns differ for the same reason: back to back the chip runs into its limit. How soon?
#
# {{ figure("warming", y="tflops", caption="The same product over and over, after a second's rest: "
#    ~ "full speed lasts a few hundredths of a second.") }}
#
# {% set run = rows("warming", provider="normal") %}
# {{ claim(run[0].tflops > 1.08 * run[-1].tflops and run[12].tflops < 0.97 * run[0].tflops) }}
# {% set a, b = row("itself", provider="cublas_first"), row("itself", provider="cublas_second") %}
# Now compare A and B as people do, first all of A, then all of B; here both are one `torch.mm`.
# A, from rest, does {{ a.tflops | n }} TFLOP/s; B, hot by then, {{ b.tflops | n }}, and is
# {{ ((b.ms / a.ms - 1) * 100) | pct }} slower than itself.{{ claim(b.ms > 1.05 * a.ms) }} So
# **interleave**, A, B, A, B; and rest before each call, or heat them all, and say which.
#
# ## Rightly: `measure_ms`
#
# Each mistake has a line that mends it. The timer above took three: **events** (mistakes 1, 3),
# after a **flush** (5), after a **rest** in which the host queues ahead (4). Around it go a
# **warm-up** of four calls (2), **turns**, one sample of each function a round, with a rest five
# times as long as the work, which keeps the chip cool (7), and **median and quantiles** (3). Data
# that are not zeros (6) you bring yourself. Without a GPU the host's clock steps in, so that
# programs run; what it says of the [interpreter](../glossary.md#interpreter) is no speed.

# %% tags=["copy"]
def quantile(samples: list[float], q: float) -> float:
    """The value below which a share `q` of the samples lies, linear between two of them."""
    ordered = sorted(samples)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def measure_ms(fns: dict, *, samples: int = 30, timer=None) -> dict[str, dict[str, float]]:
    """Times functions against each other: warmed up, interleaved, cold cache, cool chip.

    Args:
        fns: Functions without arguments by name; each launches work on the current GPU.
        samples: How often each is timed.
        timer: Called with `fn` and the milliseconds to rest before it; calls `fn` once and returns
            its milliseconds. By default `gpu_timer`, or `host_timer` where there is no GPU.

    Returns:
        By name, `ms`, `ms_p20` and `ms_p80`: the median and two quantiles, in milliseconds.

    Raises:
        TypeError: `fns` is no dictionary of functions.
        ValueError: There is nothing to time, or fewer than three samples of it.
    """
    if not isinstance(fns, dict) or not all(map(callable, fns.values())):
        raise TypeError(f"measure_ms needs a dictionary of functions, got {fns!r}")
    if not fns or samples < 3:
        raise ValueError(f"measure_ms needs a function and 3 samples, got {len(fns)} and {samples}")
    if timer is None:
        on_gpu = torch.cuda.is_available() and not triton.knobs.runtime.interpret
        timer = gpu_timer if on_gpu else host_timer
    rests = {}
    for name, fn in fns.items():
        for _ in range(4):  # compiles, tunes, warms up
            estimate = timer(fn, 0.2)
        rests[name] = max(0.2, 5 * estimate)
    times = {name: [] for name in fns}
    for _ in range(samples):
        for name, fn in fns.items():
            times[name].append(timer(fn, rests[name]))
    wanted = {"ms": 0.5, "ms_p20": 0.2, "ms_p80": 0.8}
    return {name: {key: quantile(t, q) for key, q in wanted.items()} for name, t in times.items()}


if __name__ == "__main__":
    x = torch.randn(64, 4096, device="cuda") if torch.cuda.is_available() else torch.randn(2, 64)
    fns = {"row_softmax": lambda: row_softmax(x), "torch": lambda: torch.softmax(x, dim=1)}
    for name, timing in measure_ms(fns).items():
        low, mid, high = (timing[key] * 1e3 for key in ("ms_p20", "ms", "ms_p80"))
        print(f"{name:12} {mid:5.1f} µs   ({low:.1f} to {high:.1f})")

# %% [markdown]
# The site's figures come from a longer sister,
# [`measure`](https://github.com/triton-lectures/triton-lectures/blob/main/scripts/measure.py), with
# more samples, and on demand host time, peak memory and the time when hot.
#
# ## Three tools that exist, and what each answers
#
# **`triton.testing.do_bench(fn)`**, of Triton's tutorials and autotuner: warm-up, events, a flush
# before each call. It returns the mean unless asked for the median, and does not queue ahead: that
# the flush keeps the GPU busy while Python launches is a matter of luck.
#
# **A [CUDA graph](../glossary.md#cuda-graph)** records launches once and replays them without Python:
# `triton.testing.do_bench_cudagraph(fn)` replays a graph of many calls, and divides. No flush.
#
# **The [profiler](../glossary.md#profiler)** asks the GPU's tracing unit when each kernel began and ended. Nothing around a
# kernel counts, not even what its launch costs the GPU.

# %%
def ms_by_profiler(fn, kernel, samples=30):
    """Times of the kernels whose name contains `kernel`, each call behind a flush."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        for _ in range(samples):
            flush_l2()
            fn()
        torch.cuda.synchronize()
    on_gpu = (event for event in trace.events() if event.device_type == DeviceType.CUDA)
    return [event.time_range.elapsed_us() * 1e-3 for event in on_gpu if kernel in event.name]

# %% [markdown]
# Predict: which of them gives the lowest time at 1,024 rows, and which at 8?
#
# {{ figure("ways", providers=["measure", "do bench", "graph", "profiler"], y="us", logy=True,
#    caption="At 1 GiB all agree; below 100 MB they answer different questions.") }}
#
# {% set ways = rows("ways", n_rows=32768) | selectattr("provider", "in", ["measure", "do bench", "graph", "profiler"]) | list %}
# {% set cold, graph = row("ways", provider="measure", n_rows=1024), row("ways", provider="graph", n_rows=1024) %}
# {% set many, late = row("chain", provider="measure", launches=8), row("chain", provider="do bench", launches=8) %}
# {{ claim((ways | map(attribute="ms") | max) < 1.03 * (ways | map(attribute="ms") | min)) }}
# - **A graph overstates the speed**: caches are warm, gaps gone. At 1,024 rows it gives
#   {{ graph.us | n(1) }} µs, {{ (cold.ms / graph.ms) | times }} the speed of the cold
#   kernel.{{ claim(graph.ms < 0.8 * cold.ms) }} If you will replay a graph, the missing gaps are real; the warm cache may not be.
# - **Events add** {{ (row("ways", provider="measure", n_rows=8).us - row("ways", provider="profiler", n_rows=8).us) | n(1) }} µs
#   to 8 rows: the way from mark to kernel and back. The profiler leaves out what a launch costs.
# - **`do_bench` understates the speed** once Python is about as slow as the flush, here
#   {{ row("chain", provider="flush", launches=1).us | n }} µs. One launch hides behind that, a function
#   of many does not. (One of 8 rows still gets {{ (row("ways", provider="do bench", n_rows=8).us - row("ways", provider="measure", n_rows=8).us) | n(1) }} µs more than from `measure`, where the GPU rests between flush and kernel.)
#
# {{ figure("chain", y="us", providers=["measure", "do bench", "graph", "profiler"],
#    caption="Many softmaxes in a row: when Python outlasts the flush, do_bench times it.") }}
#
# At eight launches `do_bench` gives {{ late.us | n }} µs; the GPU works {{ many.us | n }} of
# them.{{ claim(late.ms > 1.5 * many.ms) }} Triton's developers found [these errors of graph and
# `do_bench`](https://github.com/triton-lang/triton/pull/10149) too, and added
# `do_bench_proton`, which asks a profiler; Triton 3.7 does not have it yet. So which do you take?
#
# | Your question | Take |
# |---|---|
# | Which of two kernels is better, how far from the floor? | `measure_ms`; for tiny ones the profiler |
# | What does my model gain? | the step of the model, with and without, synchronised once at each end |
# | What will it cost in a captured graph? | `do_bench_cudagraph` |
# | Where does my model spend its time? | the profiler, over a step |
#
# ### Where `measure_ms` falls short
#
# It rests for 0.2 ms, or five times as long as the kernel runs. If the function's Python takes longer, the GPU waits for it after the first [event](../glossary.md#event), and the host is in the time again. (`scripts/measure.py`, which makes this site's recordings, times the host first and rests four times as long as that takes.) It always flushes: in a model, a kernel may find in the cache what the one before it wrote, and be faster. It times one stream, a queue of the GPU, and takes the clock for about 1.9 GHz. Below a few microseconds the events count; there ask the [profiler](../glossary.md#profiler).
#
# ### Every error, in one table: the time over that of `measure`
#
# | | 8 rows | 1,024 rows | 32,768 rows | matrix product |
# |---|--:|--:|--:|--:|
# {% for way in ("no sync", "one call", "events", "loop", "warm cache", "do bench", "graph", "profiler", "measure_ms") %}| {{ way }} | {% for n in (8, 1024, 32768) %}{{ (row("ways", provider=way, n_rows=n).ms / row("ways", provider="measure", n_rows=n).ms) | n(2) }} |{% endfor %} |
# {% endfor %}| mean of the first ten calls | | {{ (rows("first_calls") | sum(attribute="ms") / 10 / cold.ms) | n }} | | |
# | zeros for data, back to back | | | | {{ (row("product", data="zeros").ms_hot / row("product", data="normal").ms_hot) | n(2) }} |
# | timed second, not first | | | | {{ (row("itself", provider="cublas_second").ms / row("itself", provider="cublas_first").ms) | n(2) }} |
#
# ## Why small sizes look bad
#
# {% set one, eight = row("ways", provider="measure", n_rows=1), row("ways", provider="measure", n_rows=8) %}
# {% set big, product = row("ways", provider="measure", n_rows=32768), row("product", data="normal") %}
# {% set host_us = (rows("ways", provider="measure") | map(attribute="host_us") | sort)[3] %}
# From 8 rows to one the work falls to an eighth, the time from {{ eight.us | n(1) }} µs to {{ one.us | n(1) }}.{{ claim(one.ms > 0.6 * eight.ms) }} Two costs do not shrink. **On the GPU** a kernel must start, wait for memory once and end: a few microseconds, which a copy pays too. Hence percent of a copy *of the same bytes* means something where TB/s does not. **On the host** a call costs {{ host_us | n(1) }} µs (the median of the seven sizes): checks, and Triton's launch. While kernels take longer, Python runs ahead and its cost is hidden; below, the GPU idles, for this kernel under some {{ ((host_us - one.us) * big.tbps) | round(-1) | n }} MB. No better kernel helps there. Fewer launches do, by [fusion](../glossary.md#fusion), or a graph, where a launch with its one row costs {{ row("ways", provider="graph", n_rows=1).us | n(1) }} µs.
#
# ## The unit: TB/s, TFLOP/s, percent
#
# | | TB/s | TFLOP/s | floor | percent of it |
# |---|--:|--:|--:|--:|
# | softmax, 32,768 rows | {{ big.tbps | n(2) }} | {{ big.tflops | n(2) }} | {{ big.floor_ms | ms }}, a copy | {{ big.percent | pct }} |
# | product, 8192³, bfloat16 | {{ product.tbps | n(2) }} | {{ product.tflops | n }} | {{ product.floor_ms | ms }}, cuBLAS at its best | {{ product.percent | pct }} |
#
# The softmax does {{ big.tflops | n(1) }} TFLOP/s on a chip for hundreds, and is excellent; the
# product moves {{ product.tbps | n(2) }} TB/s of {{ copy_tbps(2**32) | n(1) }}, and is too.
# {{ claim(big.percent > 90 < product.percent) }} Count what limits, bytes or operations ([arithmetic
# intensity](../glossary.md#arithmetic-intensity)). Count the *least* that the operation must move,
# not what your kernel moves: else reading the input twice would be credited as bandwidth.
# **Percent of the [ceiling](../glossary.md#ceiling)**, measured in the same run, travels between
# sizes and GPUs. A speed-up does not: it says how slow the other one was.
#
# ## Is it right? Choosing a tolerance
#
# A wrong kernel can be very fast, so correctness comes before the clock. But float results never
# agree exactly; how far may they be apart? Three to judge: ours; one in which masked [lanes](../glossary.md#lane) hold 0,
# not $-\infty$, so that each adds $e^{0 - \max}$ to the sum; and zeros.

# %%
@triton.jit
def leaky_softmax_kernel(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < n_cols
    x = tl.load(x_ptr + row * n_cols + cols, mask=inside, other=0.0).to(tl.float32)
    e = tl.exp2((x - tl.max(x)) * 1.4426950408889634)
    tl.store(out_ptr + row * n_cols + cols, e / tl.sum(e), mask=inside)


def leaky_softmax(x):
    """A softmax with a bug: every masked lane leaks into the sum."""
    out, n_cols = torch.empty_like(x), x.shape[1]
    leaky_softmax_kernel[(len(x),)](x, out, n_cols, BLOCK=triton.next_power_of_2(n_cols))
    return out


def largest_error(y, x):
    """The largest error of a softmax of `x`, relative to each element's exact value."""
    exact = row_softmax_reference(x.double())
    return ((y.double() - exact).abs() / exact).max().item()


def errs_like_torch(y, x, factor=4):
    """Whether `y` is at most `factor` times as wrong as torch's own softmax of `x`."""
    # torch may be lucky and exact, where one rounding is no crime
    own = max(largest_error(torch.softmax(x, dim=1), x), torch.finfo(x.dtype).eps)
    return largest_error(y, x) <= factor * own


def show_tolerances(device):
    """Prints which of three softmaxes pass which of three tests."""

    def passes(test, *tensors):
        try:
            test(*tensors)
            return "passes"
        except AssertionError:
            return "-"

    print("columns  softmax  atol=1e-2  torch's default  like torch  error    torch's error")
    for n_cols in (1000, 16383):
        x = torch.randn(16, n_cols, generator=torch.Generator().manual_seed(0)).to(device)
        wanted = torch.softmax(x, dim=1)
        for name, y in {"ours": row_softmax(x), "leaky": leaky_softmax(x), "zeros": x * 0}.items():
            loose = passes(triton.testing.assert_close, y, wanted)
            default = passes(torch.testing.assert_close, y, wanted)
            like = "passes" if errs_like_torch(y, x) else "-"
            errors = f"{largest_error(y, x):.1e}  {largest_error(wanted, x):.1e}"
            print(f"{n_cols:7}  {name:7}  {loose:9}  {default:15}  {like:10}  {errors}")


if __name__ == "__main__":
    show_tolerances("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# An absolute [tolerance](../glossary.md#tolerance) of 0.01, the default of `triton.testing.assert_close`, passes **zeros** at
# 16,383 columns, because probabilities are so small; the leak it passes everywhere. The defaults of
# `torch.testing.assert_close` for float32, 10⁻⁵ plus 1.3 · 10⁻⁶ of the value, pass the leak at
# 16,383 columns. A tolerance of 0 would fail ours, which adds in another order and is hardly worse.
#
# So ask how wrong a *good* implementation is. Compute the reference in **float64**, where its own
# error does not matter; take the error of yours and **beside it that of torch's kernel**, on the
# same data in the same dtype; allow a small factor. No constant to guess, for any dtype or width.
# Here errors are relative to each element, since small ones matter; in a matrix product, whose
# terms cancel, relative to the largest. And choose sizes at which a bug shows: at 4,096 columns
# nothing is masked, and the leaky kernel is right.
#
# ## Check
#
# The kernel by that rule, quantiles on known samples, `measure_ms` with a timer that invents times.

# %% tags=["fold"]
def check(device="cuda"):
    """Verifies the kernel, the statistics and the way of measuring; raises AssertionError."""
    torch.manual_seed(0)
    dtypes = [torch.float32, torch.float16] + ([torch.bfloat16] if device == "cuda" else [])
    shapes = [(0, 5), (3, 0), (1, 1), (5, 2), (3, 127), (2, 1000), (3, 4095), (2, 4096), (2, 16383)]
    for dtype, shape, shift in ((d, s, by) for d in dtypes for s in shapes for by in (-100, 100)):
        # exp(100) overflows, unless the maximum is taken off; beside exp(-100) any leak is large
        x = (torch.randn(shape, device=device) + shift).to(dtype)
        frame = torch.full((x.numel() + 4096,), torch.nan, dtype=dtype, device=device)
        out, guard = frame[: x.numel()].view_as(x), frame[x.numel() :]
        y = row_softmax(x, out=out)
        assert y is out and guard.isnan().all(), f"past the end: {dtype}, {shape}"
        assert x.numel() == 0 or errs_like_torch(y, x), f"wrong: {dtype}, {shape}"
    x = torch.randn(4, 1000, device=device)
    assert not errs_like_torch(leaky_softmax(x), x), "the leaky softmax passes"
    y = row_softmax(x)
    y[0, 0] *= 1.001
    assert not errs_like_torch(y, x), "one wrong element passes"
    print(f"row_softmax: {len(dtypes)} dtypes, {len(shapes)} shapes, errs like torch")

    for samples in ([3.0], [2.0, 1.0], [5.0, 1.0, 2.0, 4.0, 3.0], [0.5, 4.0, 3.5, 1.0, 0.0, 2.0]):
        for q in (0.0, 0.2, 0.5, 0.8, 1.0):
            wanted = torch.tensor(samples, dtype=torch.float64).quantile(q).item()
            assert abs(quantile(samples, q) - wanted) < 1e-12, f"quantile {q} of {samples}"

    # both compile first; of the samples of "a" every fourth is an outlier
    invented = {"a": [1e3, 3.0, 2.0, 2.0] + [1.0, 2.0, 3.0, 500.0] * 5}
    invented["b"] = [700.0, 1.0, 1.0, 0.01] + [4.0] * 20
    queues, calls, rests = {name: iter(t) for name, t in invented.items()}, [], []

    def timer(fn, rest_ms):
        calls.append(fn())
        rests.append(rest_ms)
        return next(queues[calls[-1]])

    found = measure_ms({"a": lambda: "a", "b": lambda: "b"}, samples=20, timer=timer)
    assert "".join(calls) == "aaaabbbb" + "ab" * 20, "warm-up or turns are amiss"
    assert rests[8:] == [10.0, 0.2] * 20, "a rest is not five times the work"
    assert found["a"] == {"ms": 2.5, "ms_p20": 1.0, "ms_p80": 500.0}, found["a"]
    assert found["b"] == {"ms": 4.0, "ms_p20": 4.0, "ms_p80": 4.0}, found["b"]
    print("measure_ms: warm-up, turns, rests, median and quantiles are as specified")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## What to remember
#
# 1. **Arithmetic before the clock.** A time below the floor is a bug, in the clock or the kernel.
# 2. **Warm up, flush, queue ahead, interleave, rest; median and spread.** And no zeros.
# 3. **There is no such thing as *the* time**: cold or warm cache, launch or none, cool or hot. Say
#    which. And no time at all before the error stands beside torch's own.
#
# ## Exercises
#
# ??? question "1 (easy): a kernel moves 1 GiB in 0.15 ms, says its author. Can it?"
#
#     ??? success "Answer"
#
#         No: 1.07 · 10⁹ bytes in 0.15 ms are 7.2 TB/s, and on paper an H200 has 4.8. Ask whether
#         the clock waited for the GPU.
#
# ??? question "2 (medium): what is wrong with timing `lambda: row_softmax(x, out=x)`?"
#
#     ??? success "Answer"
#
#         Each call takes the last one's result, and soon every row is uniform. Memory does not
#         care; a matrix product or a kernel with branches would. Write to a second tensor.
#
# ??? question "3 (hard): at 1,000 and 16,383 columns of float16, is the leak seen?"
#
#     ??? success "Answer"
#
#         At 1,000 yes, where it is 1.5 %; at 16,383 no: there it is 4 · 10⁻⁵ of each element, and
#         float16 rounds by more. Hence float32 among the dtypes, whatever you train in.
#
# ## Use it in your project
#
# ```python
# from benchmarking import measure_ms
#
# times = measure_ms({"mine": lambda: my_softmax(x), "torch": lambda: torch.softmax(x, 1)})
# print(2 * x.nbytes / times["mine"]["ms"] * 1e-9, "TB/s")
# ```
#
# API: [measure_ms][examples.foundations.benchmarking.measure_ms],
# [gpu_timer][examples.foundations.benchmarking.gpu_timer],
# [row_softmax][examples.foundations.benchmarking.row_softmax], which has no gradient and
# does not say so: for training take [softmax](../fusion/softmax.py). Next: [autotuning](autotuning.py).

# %% tags=["fold"]
def bench(measure):
    """Yields the kernel timed in every way, rightly and wrongly, and what explains the errors."""
    from triton.testing import do_bench, do_bench_cudagraph

    def benchmark(name, title, x, rows, dtype="float32", ceiling=None):
        about = {"name": name, "title": title, "x": x, "dtype": dtype, "mode": "forward"}
        return about | {"ceiling": ceiling, "rows": rows}

    def matrix(n_rows):
        x = torch.randn(n_rows, 4096, device="cuda")
        size = {"n_rows": n_rows, "bytes": 2 * x.nbytes, "flops": 5 * x.numel()}
        return x, torch.empty_like(x), size

    def rightly(fn):
        timings = measure({"measure": fn}, host=True)
        timings["do bench"] = {"ms": do_bench(fn, return_mode="median")}
        timings["graph"] = {"ms": do_bench_cudagraph(fn, return_mode="median")}
        return timings

    rows = []
    for n_rows in (1, 8, 64, 256, 1024, 4096, 32768):
        x, out, work = matrix(n_rows)

        def softmax(x=x, out=out):
            return row_softmax(x, out=out)

        timings = rightly(softmax) | measure_ms({"measure_ms": softmax})
        timings["warm cache"] = measure({"warm": softmax}, flush=False)["warm"]
        wrongly = {"no sync": host_timer, "one call": ms_of_one_call}
        wrongly["events"] = lambda fn: gpu_timer(fn, 0, flush=False)
        times = {way: [timer(softmax) for _ in range(50)] for way, timer in wrongly.items()}
        times["loop"] = [ms_in_a_loop(softmax)]
        times["profiler"] = ms_by_profiler(softmax, "row_softmax")
        timings |= {way: {"ms": quantile(samples, 0.5)} for way, samples in times.items()}
        rows += [{"provider": way, **work, **timing} for way, timing in timings.items()]
    title = "Softmax of rows of 4,096 float32, timed in many ways"
    yield benchmark("ways", title, "n_rows", rows, ceiling="copy")

    x, out, work = matrix(1024)
    # five stages, which nothing has asked for yet, are a version to be compiled
    options = {"BLOCK": 4096, "num_warps": 8, "num_stages": 5}
    times = ms_of_first_calls(lambda: row_softmax_kernel[(1024,)](x, out, 4096, **options))
    rows = [{"provider": "one call", "call": i, "ms": ms, **work} for i, ms in enumerate(times, 1)]
    yield benchmark("first_calls", "The first ten calls of a new kernel", "call", rows)

    rows, (x, out, work) = [], matrix(8)
    timers = {"one call": ms_of_one_call, "measure_ms": lambda fn: gpu_timer(fn, 0.2)}
    for name, timer in timers.items():
        us = sorted(timer(lambda: row_softmax(x, out=out)) * 1e3 for _ in range(2000))
        row = {"lowest": us[0], "highest": us[-1], "mean": sum(us) / len(us)}
        row |= {"median": quantile(us, 0.5), "p99": quantile(us, 0.99)}
        rows.append({"provider": name, "timer": name, "ms": row["median"] * 1e-3, **row, **work})
    yield benchmark("spread", "Two thousand times of one call", "timer", rows)

    x, out, work = matrix(64)
    flush = measure({"flush": flush_l2})["flush"]
    rows = [{"provider": "flush", "launches": 1, "bytes": 256 << 20, "flops": 0, **flush}]
    for launches in (1, 2, 4, 8, 16):

        def chain(launches=launches):
            for _ in range(launches):
                row_softmax(x, out=out)

        times = ms_by_profiler(chain, "row_softmax")
        timings = rightly(chain) | {"profiler": {"ms": sum(times) / len(times) * launches}}
        size = {"launches": launches, "bytes": launches * work["bytes"], "flops": 0}
        rows += [{"provider": way, **size, **timing} for way, timing in timings.items()]
    yield benchmark("chain", "Softmaxes of 64 rows, one after the other", "launches", rows)

    n = 8192
    size = {"n": n, "bytes": 3 * 2 * n * n, "flops": 2 * n**3}
    data = {"normal": torch.randn(n, n, device="cuda").bfloat16()}
    data["whole, -3 to 3"] = torch.randint(-3, 4, (n, n), device="cuda").bfloat16()
    data |= {"ones": torch.ones_like(data["normal"]), "zeros": torch.zeros_like(data["normal"])}
    product = torch.empty_like(data["normal"])
    fns = {name: lambda a=a: torch.mm(a, a, out=product) for name, a in data.items()}
    timings = measure(fns, hot=True).items()
    rows = [{"provider": "cublas", "data": name, **size, **timing} for name, timing in timings]
    title = "Product of two matrices, 8192 by 8192, by what they hold"
    yield benchmark("product", title, "data", rows, "bfloat16", "matmul")

    def stretch(fn, count, rest=0.0):
        """When each of `count` calls back to back ended, in milliseconds, after a rest."""
        torch.cuda.synchronize()
        time.sleep(rest)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            fn()
            event.record()
        torch.cuda.synchronize()
        return [events[0].elapsed_time(event) for event in events]

    rows = []
    for name in ("normal", "zeros"):
        ends = stretch(fns[name], 200, rest=1.0)
        for begin, end in zip(ends[:-5:5], ends[5::5], strict=True):
            about = {"provider": name, "ms_since_rest": round(end)}
            rows.append({**about, **size, "ms": (end - begin) / 5})
    yield benchmark("warming", "One product, back to back", "ms_since_rest", rows, "bfloat16")

    rows = []
    for name, count, rest in (("first", 12, 1.0), ("between", 250, 0.0), ("second", 12, 0.0)):
        ms = stretch(fns["normal"], count, rest)[-1] / count
        rows.append({"provider": f"cublas_{name}", **size, "ms": ms})
    yield benchmark("itself", "One product against itself", "n", rows, "bfloat16", "matmul")
