# %% [markdown]
# ---
# title: Autotuning
# description: Block sizes, warps and stages by measurement, what that costs, and its traps.
# tags: [autotuning, matrix product, memory-bound]
# prerequisites: [foundations/programming_model, foundations/benchmarking]
# outcome: Choose a kernel's configuration by arithmetic and measurement, and ship it without a stall.
# ---
#
# # Autotuning: let the GPU choose, once
#
# A [tile](../glossary.md#tile) of 64 × 64 or of 128 × 256, 4 [warps](../glossary.md#warp) or 8, 2 stages or 5? **How much
# does a wrong choice cost, how much does finding the right one, and when is it worth it?** Two
# kernels answer: a matrix product, where the choice decides everything, and a bias with ReLU, where
# any sane block will do. Then the traps: a first call that takes seconds, and corrupts a tensor.
#
# ## What a block costs, before you measure
#
# **What it moves.** A [program](../glossary.md#program) that owns a tile of `BLOCK_M` × `BLOCK_N`
# results reads `BLOCK_M` rows of one matrix and `BLOCK_N` columns of the other. All together read
# `M * N * K * (1 / BLOCK_M + 1 / BLOCK_N)` elements, most of them from [L2](../glossary.md#l2). At 4096³
# in bfloat16 that is {{ (2 * 4096**3 * (1 / 64 + 1 / 64)) | bytes }} with tiles of 64 × 64, and
# {{ (2 * 4096**3 * (1 / 128 + 1 / 256)) | bytes }} with 128 × 256. (A bias with ReLU reads each element once,
# whatever the block.) Larger is better, so why not 256 × 256?
#
# **What it occupies.** An [SM](../glossary.md#sm) of this GPU has 65,536
# [registers](../glossary.md#register) of four bytes and lends its programs up to 227 KiB of
# [shared memory](../glossary.md#shared-memory).
#
# - The sums wait in registers, `BLOCK_M * BLOCK_N / (32 * num_warps)` in each thread, which can
#   have 255 at most. What does not fit [spills](../glossary.md#spill).
# - The operands wait in shared memory, `num_stages * (BLOCK_M + BLOCK_N) * BLOCK_K * 2` bytes: one
#   pair of blocks in use, the rest on their way ([pipelining](../glossary.md#pipelining)).
#
# {{ diagram("autotuning_budget") }}
#
# | setting | more of it | too much of it |
# |---|---|---|
# | `BLOCK_M`, `BLOCK_N` | each number loaded is used more often | sums spill; too few programs for the SMs |
# | `BLOCK_K` | fewer turns of the loop | shared memory |
# | `num_warps` | a program's sums spread over more threads | little work for each |
# | `num_stages` | more of a loop's loads under way, [latency](../glossary.md#latency) hidden | shared memory |
#
# So arithmetic rules out much of what you could try. It does not find the best of what is left.

# %% tags=["copy"]
import torch
import triton
import triton.language as tl

# %% [markdown]
# ## The kernel to tune
#
# Each program walks along K and adds up products of blocks. `pid_m` and `pid_n` go through the
# tiles in bands `GROUP_M` high, so that programs which run together share rows and columns in L2 ([a picture](../patterns.md#tiles); [where it gains nothing](../faq.md#why-does-grouped-ordering-group_size_m-show-no-gain)).
# Rows and columns past the edge wrap round (`%`): they read what exists, and are not stored.
# `EVEN_K` says that whole blocks cover K, so that the loop needs no [mask](../glossary.md#mask).


# %%
def matmul_reference(a, b):
    """The specification: products and sums in float32, rounded once."""
    return (a.float() @ b.float()).to(a.dtype)


# %% tags=["copy"]
@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """Multiplies [M, K] by [K, N]; one program for each tile of the result."""
    pid = tl.program_id(0)
    num_pid_m, num_pid_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    band = pid // (GROUP_M * num_pid_n)
    height = tl.minimum(num_pid_m - band * GROUP_M, GROUP_M)
    pid_m = band * GROUP_M + pid % (GROUP_M * num_pid_n) % height
    pid_n = pid % (GROUP_M * num_pid_n) // height
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    offs_k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    # int64: offsets pass 2**31 in a matrix of more than 2**31 elements
    a_ptrs = a_ptr + (offs_m % M).to(tl.int64)[:, None] * stride_am + offs_k[None, :] * stride_ak
    b_ptrs = b_ptr + offs_k[:, None] * stride_bk + (offs_n % N).to(tl.int64)[None, :] * stride_bn
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptrs)  # [BLOCK_M, BLOCK_K]
            b = tl.load(b_ptrs)  # [BLOCK_K, BLOCK_N]
        else:
            a = tl.load(a_ptrs, mask=offs_k[None, :] < K - start, other=0.0)
            b = tl.load(b_ptrs, mask=offs_k[:, None] < K - start, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K * stride_ak
        b_ptrs += BLOCK_K * stride_bk
    c_ptrs = c_ptr + offs_m.to(tl.int64)[:, None] * stride_cm + offs_n[None, :] * stride_cn
    tl.store(c_ptrs, acc, mask=(offs_m[:, None] < M) & (offs_n[None, :] < N))


def _tiles(meta):
    # each triton.cdiv would cost 2 µs of host time
    M, N, BLOCK_M, BLOCK_N = (meta[name] for name in ("M", "N", "BLOCK_M", "BLOCK_N"))
    return ((M + BLOCK_M - 1) // BLOCK_M * ((N + BLOCK_N - 1) // BLOCK_N),)


def _launch(kernel, a, b, c, **config):
    strides = *a.stride(), *b.stride(), *c.stride()
    with torch.cuda.device_of(a):
        return kernel[_tiles](a, b, c, *c.shape, a.shape[1], *strides, **config)

# %% [markdown]
# ## Prune before you run
#
# `EVEN_K` follows from the arguments, so nothing need be tried: `@triton.heuristics` computes such
# a setting at each call, from all arguments and from what a tuner above it chose.
#
# The rest are alternatives. A `triton.Config` holds constexpr arguments, `num_warps` and
# `num_stages`; nine tiles, two numbers of warps and four of stages make 72. `fits` drops what
# arithmetic rules out, before it is even compiled. `estimate` sorts the others by a time: the number of [waves](../glossary.md#wave)
# (how often the programs fill all SMs) times the longer of a program's loads and its products,
# and a little less for each stage; the first `top_k` run.


# %%
even_k = triton.heuristics({"EVEN_K": lambda args: args["K"] % args["BLOCK_K"] == 0})
matmul_heuristic = even_k(matmul_kernel)


def configurations():
    """72 configurations of matmul_kernel."""
    tiles = [(64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (256, 64)]
    tiles += [(128, 256), (256, 128), (256, 256)]
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 64, "GROUP_M": 8}, warps, stages)
        for m, n in tiles
        for warps in (4, 8)
        for stages in (2, 3, 4, 5)
    ]


def needs(BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages, **rest):
    """Registers a thread holds sums in, and bytes of shared memory for 2-byte operands."""
    sums = BLOCK_M * BLOCK_N // (32 * num_warps)
    return sums, 2 * num_stages * (BLOCK_M + BLOCK_N) * BLOCK_K


def fits(configs, named_args, **kwargs):
    """For `early_config_prune`: the configurations that neither spill nor fail on Hopper."""
    demands = [(config, *needs(**config.all_kwargs())) for config in configs]
    return [config for config, sums, shared in demands if sums < 255 and shared <= 232_448]


def estimate(M, N, K, BLOCK_M, BLOCK_N, num_stages, **rest):
    """For `perf_model`: a time, in no unit; smaller is better."""
    waves = triton.cdiv(triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N), 132)
    # to load an element takes an SM about as long as 100 multiplications
    work = max(BLOCK_M * BLOCK_N, 100 * (BLOCK_M + BLOCK_N))
    return waves * work * (1 + 1 / num_stages)

# %% [markdown]
# `@triton.autotune` runs what is left and keeps the fastest for each **key**: the values of the
# arguments named in `key`, and the dtypes of all tensors. On the first call with a new key it runs
# each configuration on *your* tensors, 25 ms to warm up and 100 ms to measure.
#
# {{ diagram("autotuning_call") }}
#
# The interpreter has no clock: a tuner of two configurations or more ends in *0 active drivers*.
# Give it one configuration, or a clock of your own, as `tuned` does.


# %%
def _clock(run, quantiles):
    """A stand-in for the tuner's clock: runs a configuration, and finds all alike."""
    for _ in range(3):
        run()
    return [1.0 for _ in quantiles]


def tuned(kernel, configs, key, **options):
    """The kernel, with a tuner around it that works in the interpreter too."""
    if triton.knobs.runtime.interpret:
        options.setdefault("do_bench", _clock)
    return triton.autotune(configs, key, **options)(kernel)


def _tile(config):
    return f"{config.kwargs['BLOCK_M']} × {config.kwargs['BLOCK_N']}"


def show_tuning(n, device):
    """Tunes with pruning, and prints what the tuner measured."""
    a, b, c = (torch.randn(n, n, device=device).half() for _ in "abc")
    prune = {"early_config_prune": fits, "perf_model": estimate, "top_k": 8}
    kernel = tuned(matmul_heuristic, configurations(), ["M", "N", "K"], prune_configs_by=prune)
    _launch(kernel, a, b, c)
    timings, fitting = kernel.configs_timings, len(fits(kernel.configs, {}))
    print(f"{len(kernel.configs)} configurations, {fitting} fit, {len(timings)} were run")
    for config in sorted(timings, key=timings.get):
        shown = f"{config.num_warps} warps  {config.num_stages} stages"
        print(f"{timings[config][0]:8.3f} ms  {_tile(config):>9}  {shown}")


if __name__ == "__main__":
    show_tuning(4096, "cuda") if torch.cuda.is_available() else show_tuning(64, "cpu")

# %% [markdown]
# `configs_timings` holds median and quantiles of each, `best_config` the last choice; with
# `TRITON_PRINT_AUTOTUNING=1` the tuner reports, and says how long your program waited for it.
# (These times, of float16 and without a rest, are not those of the sweep below: bfloat16, rested.)
#
# What asks for too much shared memory counts as infinitely slow, without a word. Launched by itself
# it is an error: *out of resource: shared memory, Required: 262144, Hardware limit: 232448*, as
# `needs` says beforehand, 4 × (256 + 256) × 64 × 2. Take one stage less, half of `BLOCK_K`, or a
# smaller tile. The limit is the chip's: 227 KiB on an H100 or H200, 163 on an A100, 99 on an RTX 40
# ([CUDA guide](https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities)).
#
# ## The whole sweep
#
# All 72 at 4096³, checked and timed. From the arithmetic: which tile wins, with how many warps? How
# much slower is the worst? Which cells stay empty?
#
# {{ heatmap("matmul_sweep", x="num_stages", y="tile", panels="num_warps", where={"n": 4096}, caption="4096³: the worst configuration needs many times the time of the best; a dash did not fit.") }}
#
# {% set sweep = rows("matmul_sweep", n=4096, provider="triton_config") | sort(attribute="ms") %}
# {% set best, worst = sweep[0], sweep[-1] %}
# {% set first = row("matmul_sweep", n=4096, tile="64 × 64", num_warps=4, num_stages=3) %}
# {% set pruned = sweep | selectattr("estimate", "defined") | sort(attribute="estimate") %}
# The best, {{ best.tile }} with {{ best.num_warps }} warps and {{ best.num_stages }} stages, takes
# {{ best.ms | ms }}; the worst takes {{ (worst.ms / best.ms) | times }} as
# long{{ claim(worst.ms > 5 * best.ms) }}, and a first guess (64 × 64, Triton's default of 4 warps and 3
# stages) {{ (first.ms / best.ms) | times }}{{ claim(1.6 < first.ms / best.ms < 2.5) }}. Of the eight
# that `estimate` puts first one is as good{{ claim((pruned[:8] | map(attribute="ms") | min) < 1.02 * best.ms) }}: arithmetic saves most of the search.
#
# ### Read it off the compiled kernel
#
# A launch returns the compiled kernel, which knows its registers and spilled words (of four bytes)
# a thread, and its shared memory. From these follows how many programs an SM holds, its
# [occupancy](../glossary.md#occupancy).


# %%
def occupancy(registers, shared, num_warps):
    """By each limit of a Hopper SM, how many programs fit; registers a thread, shared in bytes."""
    # four schedulers have 16,384 registers each, a warp gets them by 256; CUDA keeps 1 KiB shared
    warps = 4 * (16_384 // (triton.cdiv(registers * 32, 256) * 256))
    limits = {"registers": warps // num_warps, "shared memory": 233_472 // (shared + 1024)}
    return limits | {"warps": 64 // num_warps, "programs": 32}


def resources(compiled):
    """What a compiled kernel takes, after its first launch."""
    shared, num_warps = compiled.metadata.shared, compiled.metadata.num_warps
    taken = {"registers": compiled.n_regs, "spills": compiled.n_spills, "shared": shared}
    return taken | {"programs": min(occupancy(compiled.n_regs, shared, num_warps).values())}

# %% [markdown]
# {{ table("matmul_sweep", where={"n": 4096, "num_stages": 3, "provider": "triton_config"}, columns=["tile", "num_warps", "registers", "spills", "shared", "programs", "tflops"]) }}
#
# <details class="example"><summary>The same with 2, 4 and 5 stages</summary>{% for stages in (2, 4, 5) %}{{ "\n\n" }}{{ stages }} stages:{{ "\n\n" }}{{ table("matmul_sweep", where={"n": 4096, "num_stages": stages, "provider": "triton_config"}, columns=["tile", "num_warps", "registers", "spills", "shared", "programs", "tflops"]) }}{% endfor %}{{ "\n\n" }}</details>
#
# {% set best = (rows("matmul_sweep", n=4096, provider="triton_config") | sort(attribute="ms"))[0] %}
# {% set first = row("matmul_sweep", n=4096, tile="64 × 64", num_warps=4, num_stages=3) %}
# {% set spilled = row("matmul_sweep", n=4096, tile="128 × 256", num_warps=4, num_stages=3) %}
# {% set whole = row("matmul_sweep", n=4096, tile="128 × 256", num_warps=8, num_stages=3) %}
# {% set turned = row("matmul_sweep", n=4096, tile="256 × 128", num_warps=8, num_stages=3) %}
# - **Spills decide.** 128 × 256 sums are 256 a thread with 4 warps, more than the 255 that it can
#   have: {{ spilled.spills | n }} words spill{{ claim(spilled.spills > 100 and whole.spills == 0) }},
#   and it takes {{ (spilled.ms / whole.ms) | times }} as long as with 8
#   warps{{ claim(spilled.ms > 3 * whole.ms) }}, which hold 128 each.
# - **High occupancy does not win.** The first guess has {{ first.programs }} programs on an SM, the
#   best {{ best.programs }}{{ claim(best.programs < first.programs) }}. A product hides latency by its
#   stages; what counts is how often it uses a number once loaded.
# - **The clock knows more.** 128 × 256 and 256 × 128 read as much and multiply as much, yet the one
#   reaches {{ whole.tflops | n }} TFLOP/s, the other {{ turned.tflops | n }}{{ claim(whole.ms < 0.93 * turned.ms) }}.
#
# ### Another size, another winner
#
# 1024³ makes 64 tiles of 128 × 128, for {{ env.sms }} SMs. Which tile wins here?
#
# {{ heatmap("matmul_sweep", x="num_stages", y="tile", panels="num_warps", where={"n": 1024}, caption="1024³: small tiles win, since large ones leave SMs without work.") }}
#
# {% set small_best = (rows("matmul_sweep", n=1024, provider="triton_config") | sort(attribute="ms"))[0] %}
# {% set carried = row("matmul_sweep", n=1024, tile=best.tile, num_warps=best.num_warps, num_stages=best.num_stages) %}
# {{ small_best.tile }}, with {{ small_best.num_stages }} stages: a tile for almost every SM, and the most stages
# tried{{ claim(small_best.tile in ("64 × 128", "128 × 64") and small_best.num_stages == 5) }}, since an SM's only program must hide its own latency. The winner of 4096³
# takes {{ (carried.ms / small_best.ms) | times }} as long{{ claim(carried.ms > 1.3 * small_best.ms) }}. That
# is what a key is for: **the best configuration is the best for a size**, a dtype, a layout, a GPU,
# a version of Triton.
#
# ### A kernel where it matters less
#
# Add a bias to each row of 8192 × 8192, cut off below zero. Predict the spread.


# %%
@triton.jit
def bias_relu_kernel(
    x_ptr, bias_ptr, out_ptr, M, M_bucket, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    pid, num_pid_n = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    # int64: offsets pass 2**31 in a matrix of more than 2**31 elements
    offs_m = (pid // num_pid_n * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    offs_n = (pid % num_pid_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    mask = (offs_m < M) & (offs_n < N)  # [BLOCK_M, BLOCK_N]
    x = tl.load(x_ptr + offs_m * N + offs_n, mask=mask).to(tl.float32)
    bias = tl.load(bias_ptr + offs_n, mask=offs_n < N).to(tl.float32)  # [1, BLOCK_N]
    tl.store(out_ptr + offs_m * N + offs_n, tl.maximum(x + bias, 0.0), mask=mask)


def bias_relu(kernel, x, bias, out, **config):
    """Writes relu(x + bias) to out, which may be x, and returns it; all contiguous."""
    M, N = x.shape
    # the kernel ignores the bucket; a later section does not
    kernel[_tiles](x, bias, out, M, triton.next_power_of_2(M), N, **config)
    return out

# %% [markdown]
# {{ heatmap("bias_relu_sweep", x="BLOCK_N", y="BLOCK_M", panels="num_warps", caption="Bias and ReLU: below a diagonal all blocks run at the speed of a copy.") }}
#
# {% set flat = rows("bias_relu_sweep") | selectattr("per_thread", "ge", 8) | map(attribute="percent") | list %}
# {% set thin = rows("bias_relu_sweep") | selectattr("per_thread", "lt", 8) | map(attribute="percent") | list %}
# From {{ thin | min | pct }} to {{ flat | max | pct }} of a copy: a bad block costs about as much as before. But the {{ flat | length }} of {{ (flat | length) + (thin | length) }} blocks that give each thread eight elements or more (16 bytes to load) all
# lie between {{ flat | min | pct }} and {{ flat | max | pct }} of a copy, whatever their
# shape{{ claim((flat | min) > 90) }}. With less, programs are too small to be started in time, or
# threads have too little to load{{ claim((thin | max) < 92) }}. Each byte is read once, so there is
# nothing to gain; a tuner would pick a winner all the same, out of noise. **A memory-bound kernel
# needs a sane block, not a search**: 8 to 32 elements a thread, rows of 128 bytes or more.
#
# ## What the search costs
#
# The first call with a new key, over {{ row("first_call", case="tuned").configurations }} configurations that fit and have 3 or 4 stages: with nothing on disk, with
# compiled kernels there, and with timings:
#
# {{ figure("first_call", logy=True, caption="The first call, in ms. Compiled kernels are kept on disk; timings only if you ask.") }}
#
# {% set best = rows("matmul_sweep", n=4096, provider="triton_config") | map(attribute="ms") | min %}
# {% set first = row("matmul_sweep", n=4096, tile="64 × 64", num_warps=4, num_stages=3) %}
# {% set cold, again = row("first_call", case="tuned"), row("first_call", case="tuned, compiled") %}
# {% set saved = row("first_call", case="tuned, timings kept") %}
# {% set threads = row("first_call", case="tuned, 16 threads") %}
# {% set fixed = row("first_call", case="fixed, compiled") %}
# - **Measuring** takes {{ (again.ms / 1e3) | n(1) }} s, {{ (again.ms / again.configurations) | n }} ms for each configuration, in *every*
#   process: timings die with it.
# - **Compiling** takes {{ ((cold.ms - again.ms) / 1e3) | n(1) }} s more, one after the other. Compiled
#   in 16 threads, all of it is done in {{ (threads.ms / 1e3) | n(1) }} s instead of
#   {{ (cold.ms / 1e3) | n(1) }}{{ claim(threads.ms < 0.8 * cold.ms) }}: the tuner's `warmup`, inside
#   `triton.AsyncCompileMode(ThreadPoolExecutor())`.
# - **Where neither is left to do**, the first call takes {{ saved.ms | n(1) }} ms with timings on disk, {{ fixed.ms | n(1) }} with one compiled configuration and no tuner (`fixed`): one call each, so not to be compared{{ claim(saved.ms < 100 and fixed.ms < 100) }}.
#
# The first guess loses {{ (first.ms - best) | ms }} a call, so measuring pays for itself after
# {{ (again.ms / (first.ms - best)) | n }} calls: nothing for a training run, too much for a script. On a server
# whose batch varies, each new key stalls some user's request.
#
# ### Keep the timings on disk
#
# `@triton.autotune(..., cache_results=True)`, or `TRITON_CACHE_AUTOTUNING=1` for all tuners, writes
# `<kernel>.autotune.json` beside the compiled kernels, in `TRITON_CACHE_DIR` or `~/.triton/cache`:
# off unless you ask, and never for a configuration whose `pre_hook` runs before each launch. It is
# found again for the same Triton, kernel source, key, configurations, and architecture. That is
# `sm_90`, not the model: **an H200 believes what an H100 measured**, where they share a directory.
#
# ## Traps: the first call, and the key
#
# **The first call corrupts a tensor.** The tuner runs each configuration hundreds of times, on the
# tensors you pass; a kernel that updates its output in place updates it as often. Below `out` is
# `x`: each call starts from 10 and adds a bias of 1. Predict the results of two calls, without a
# remedy and with either.
#
# **The key decides when to tune.** Six calls, of 10, 11, 15, 20, 30 and 40 rows: how often does
# each kernel tune?


# %%
BLOCKS = [triton.Config({"BLOCK_M": 4, "BLOCK_N": n}) for n in (256, 512)]


def show_traps(M, device):
    """Adds 1 to 10 in place, twice by each tuned kernel, then counts how often others tune."""
    print(f"{'':15}first call  second call  the tuner's ms")
    for options in ({}, {"reset_to_zero": ["out_ptr"]}, {"restore_value": ["out_ptr"]}):
        kernel, got = tuned(bias_relu_kernel, BLOCKS, ["M", "N"], **options), []
        for _ in range(2):
            x = torch.full((M, 8192), 10.0, device=device)
            got.append(bias_relu(kernel, x, torch.ones_like(x[0]), x)[0, 0].item())
        ms = min(kernel.configs_timings.values())[0]
        print(f"{next(iter(options), 'no remedy'):15}{got[0]:10,.0f}  {got[1]:11,.0f}  {ms:14.3f}")
    x = torch.ones(40, 64, device=device)
    for key in ("M", "M_bucket", "m"):
        kernel = tuned(bias_relu_kernel, BLOCKS, [key], do_bench=_clock)
        for M in (10, 11, 15, 20, 30, 40):
            bias_relu(kernel, x[:M], x[0], torch.empty_like(x[:M]))
        print(f"key = [{key!r}]: tunes {len(kernel.cache)} times")


if __name__ == "__main__":
    show_traps(8192, "cuda") if torch.cuda.is_available() else show_traps(2, "cpu")

# %% [markdown]
# - **No remedy**: 10, and 1 for each run. The second call is right, and hides it from a test.
# - **`restore_value=["out_ptr"]`** copies the tensor before each run and back after: right, for
#   what a kernel reads and writes. Both copies are inside the clock, as the last column shows.
# - **`reset_to_zero=["out_ptr"]`** fills it with zeros before each run *of the tuner*, and before
#   the call that tuned: the wrong tool here, as the 1 shows. It is for outputs that kernels add to
#   atomically. But **later calls do not reset**, nor does a first call that finds its timings on
#   disk: zero such a buffer yourself, always.
#
# Best, tune before anything counts, on tensors made for it. As to the key:
#
# - **`M`** tunes at each new value. A batch or sequence that varies tunes forever.
# - **`M_bucket`**, M rounded up to a power of two, is an argument made for the key.
# - **`m`** is no argument, and an unknown name is passed over in silence.
# - A key holds no strides, no alignment, no device: a transposed matrix or a second GPU gets what
#   the first one's search found. Where layouts vary, name the strides in `key`.
#
# ## Ship what you found
#
# The tuner belongs in development; what you ship is a table. `matmul` takes the largest tile of
# which there are enough for nearly every SM. It computes the same way in each process, and can be
# captured in a [CUDA graph](../glossary.md#cuda-graph); a search cannot, for it waits for the GPU. (A tuner of *one*
# configuration never measures.)


# %% tags=["copy"]
# tile, num_warps, num_stages: the fastest of a sweep on an H200, the largest tile first
_TABLE = (128, 256, 8, 3), (128, 128, 8, 3), (64, 128, 4, 5), (64, 64, 4, 5)


def _settings(row: tuple, K: int) -> dict:
    m, n, num_warps, num_stages = row
    tile = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 64, "GROUP_M": 8, "EVEN_K": K % 64 == 0}
    return tile | {"num_warps": num_warps, "num_stages": num_stages}


def _choose(M: int, N: int) -> tuple:
    # nine tenths of the 132 SMs at work, or more
    enough = (row for row in _TABLE if -(-M // row[0]) * -(-N // row[1]) >= 120)
    return next(enough, _TABLE[-1])


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiplies two matrices with a configuration from a table, made for Hopper; differentiable.

    Args:
        a: float16 or bfloat16 [M, K] on a GPU, any strides.
        b: The same dtype and device, [K, N], any strides.

    Returns:
        The product [M, N], contiguous; sums are float32, rounded once.

    Raises:
        TypeError: The dtype is neither float16 nor bfloat16.
        ValueError: Shapes, dtypes or devices do not go together, a tensor is not on a GPU, or a
            stride along K is 2**24 or more.
    """
    if not a.is_cuda and not triton.knobs.runtime.interpret:
        wanted = "tensors on a GPU; TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"matmul needs {wanted}; got one on {a.device}")
    if a.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"matmul needs float16 or bfloat16, got {a.dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul needs [M, K] and [K, N], got {[*a.shape]} and {[*b.shape]}")
    if (b.dtype, b.device) != (a.dtype, a.device):
        raise ValueError(f"matmul needs b {a.dtype} on {a.device}, got {b.dtype} on {b.device}")
    if a.stride(1) >= 2**24 or b.stride(0) >= 2**24:
        raise ValueError("matmul needs strides below 2**24 along K")
    needs_grad = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return _Matmul.apply(a, b) if needs_grad else _matmul(a, b)


def _matmul(a, b):
    c = a.new_empty(a.shape[0], b.shape[1])
    if c.numel():
        _launch(matmul_kernel, a, b, c, **_settings(_choose(*c.shape), a.shape[1]))
    return c


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return _matmul(a, b)

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        da, db = ctx.needs_input_grad
        return matmul(dc, b.t()) if da else None, matmul(a.t(), dc) if db else None

# %% [markdown]
# ## Check
#
# **Test every row of the table**, not the one that a test's size selects.


# %% tags=["fold"]
def _launcher(config):
    return lambda a, b, c: _launch(matmul_heuristic, a, b, c, **config.all_kwargs())


def _compare(what, run, a, b):
    """Runs a product into a poisoned view, and compares with float64."""
    (M, _), N = a.shape, b.shape[1]
    wide = torch.full((M, N + 16), torch.nan, device=a.device, dtype=a.dtype)
    run(a, b, wide[:, :N])
    want = a.double() @ b.double()
    error = (wide[:, :N].double() - want).abs()
    close = (error <= torch.finfo(a.dtype).eps * want.abs() + 1e-5 * a.shape[1] ** 0.5).all()
    assert close and wide[:, N:].isnan().all(), f"matmul differs: {what}, {tuple(want.shape)}"


def check(device="cuda"):
    """Compares kernels, tuner and arithmetic with what they should be; AssertionError if not."""
    shapes = [(1, 1, 1), (67, 70, 33), (130, 65, 128), (300, 129, 64)]
    cases = [(torch.float16, shape) for shape in shapes]
    cases += [(torch.bfloat16, s) for s in (shapes[3], (999, 1823, 777)) if device == "cuda"]
    for dtype, (M, N, K) in cases:
        a, b = (torch.randn(*s, device=device).to(dtype) for s in ((M, K), (K, N)))
        # the same values, columns adjacent where rows were
        for left, right in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
            _compare("matmul", lambda a, b, c: c.copy_(matmul(a, b)), left, right)
            _compare("heuristic", _launcher(configurations()[0]), left, right)
            for row in _TABLE:
                shipped = _settings(row, K)
                _compare(row, lambda *t, s=shipped: _launch(matmul_kernel, *t, **s), left, right)
    print(f"matmul: {len(cases)} shapes in 2 layouts, with each of {len(_TABLE)} configurations")
    a, b, dc = (torch.randn(70, 70, device=device).half().requires_grad_() for _ in range(3))
    da, db = torch.autograd.grad(matmul(a, b), (a, b), dc)
    _compare("gradient of a", lambda a, b, c: c.copy_(da), dc.detach(), b.detach().t())
    _compare("gradient of b", lambda a, b, c: c.copy_(db), a.detach().t(), dc.detach())

    x = torch.randn(37, 130, device=device)
    for m, n in ((1, 64), (4, 512), (16, 32)):
        out = torch.full((38, 130), torch.nan, device=device)
        bias_relu(bias_relu_kernel, x, x[0], out[:37], BLOCK_M=m, BLOCK_N=n)
        exact = torch.equal(out[:37], torch.relu(x + x[0])) and out[37:].isnan().all()
        assert exact, f"bias_relu differs: {m} × {n}"
    kernel, bias = tuned(bias_relu_kernel, BLOCKS, ["M"], restore_value=["out_ptr"]), x[0].abs()
    want, got = torch.relu(x + bias), bias_relu(kernel, x, bias, x)
    assert torch.equal(got, want), "tuning corrupts what it restores"
    assert len(fits(configurations(), {})) == 54, "the pruning keeps others"
    # registers, shared memory, warps, and the programs that the driver allows on an SM
    for *taken, programs in ((72, 49152, 4, 4), (213, 49152, 4, 2), (64, 116_000, 4, 1)):
        limits = occupancy(*taken)
        assert min(limits.values()) == programs, f"occupancy of {taken}: {limits}"
    print("bias_relu, pruning, occupancy, restore_value: as they should be")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Measure
#
# {{ figure("matmul", providers=["triton", "cublas", "triton_first_guess"], caption="A table of four configurations follows cuBLAS; a fixed first guess does not.") }}
#
# {% set ours = row("matmul", provider="triton", n=4096) %}
# {% set guess = row("matmul", provider="triton_first_guess", n=4096) %}
# {% set peer = row("matmul", provider="cublas", n=4096) %}
# At 4,096 the table gives {{ ours.tflops | tflops }}, the first guess
# {{ guess.tflops | n }}{{ claim(ours.tflops > 1.5 * guess.tflops) }}, cuBLAS
# {{ peer.tflops | n }}{{ claim(0.9 < peer.ms / ours.ms < 1) }}. **The library wins** here. At 512 the table is faster on the GPU, which nobody notices: its call takes the host longer than the kernel runs{{ claim(row("matmul", provider="triton", n=512).ms < row("matmul", provider="cublas", n=512).ms) }}. It is a table for one chip: an RTX 40 has no room for its first row. And it wants many rows: 16 fill a quarter of the smallest tile, and may make too few programs for the SMs ([split](../patterns.md#split)).
#
# Each decorator costs host time on each call (below, at 512): the first guess has one, the tuned kernel two{{ claim(row("matmul", provider="triton_autotuned", n=512).host_us > row("matmul", provider="triton_first_guess", n=512).host_us + 2) }}. `matmul` (Triton) has none; it checks its arguments and allocates the result, which costs more than a decorator.{{ claim(row("matmul", provider="triton", n=512).host_us > row("matmul", provider="triton_first_guess", n=512).host_us) }}
#
# {{ table("matmul", where={"n": 512}, columns=["provider", "host_us", "us"]) }}
#
# ## What to remember
#
# 1. **Arithmetic first**: sums in registers, stages in shared memory. It prunes, the clock chooses.
# 2. **Tune where the block decides how often data is read**: products, attention, convolutions.
# 3. **A search is a side effect.** It stalls a call, runs on your tensors, forgets on exit. Do it
#    in development, ship the table.
#
# ## Exercises
#
# ??? question "1 (easy): which of the 72 does `fits` drop, and why?"
#     ??? success "Answer"
#         Eighteen: all eight of 256 × 256; 128 × 256 and 256 × 128 with 4 warps, eight: 256 sums a
#         thread or more. And these two with 8 warps and 5 stages, 240 KiB of shared memory.
#
# ??? question "2 (medium): add `BLOCK_K` 32 and 128 for 128 × 256, 8 warps. What fits, what wins?"
#     ??? success "Answer"
#         128 only with 2 stages, 192 KiB, and it loses: one stage ahead hides little (64 with 2 takes {{ (row("matmul_sweep", n=4096, tile="128 × 256", num_warps=8, num_stages=2).ms / row("matmul_sweep", n=4096, tile="128 × 256", num_warps=8, num_stages=3).ms) | times }} as long as with 3).
#         32 fits with up to 9 stages; eight take the bytes of four of 64, in twice as many turns.
#         So expect 64 with 3 stages to stay ahead, and measure it.
#
# ??? question "3 (hard): `restore_value` blurs the clock. Tune in place without it, safely."
#     ??? success "Answer"
#         Call it once on a copy: `y = x.clone()`, `bias_relu(kernel, y, bias, y)`. The key is then
#         known, and the call that counts does not tune.
#
# ## Use it in your project
#
# ```python
# from autotuning import matmul, resources  # `resources`: in the whole lecture's file
#
# c = matmul(a, b)  # no search; differentiable
# print(resources(my_kernel[grid](...)))  # registers, spills, shared memory, programs on an SM
# ```
#
# API: [matmul][examples.foundations.autotuning.matmul], [resources][examples.foundations.autotuning.resources].


# %% tags=["fold"]
def bench(measure):
    """Yields the page's benchmarks."""
    import itertools
    import tempfile
    import time
    from concurrent.futures import ThreadPoolExecutor

    def result(name, title, x, ceiling, rows):
        about = {"name": name, "title": title, "x": x, "dtype": "bfloat16", "mode": "forward"}
        return about | {"ceiling": ceiling, "rows": rows}

    def matrices(n):
        return [torch.randn(n, n, device="cuda").to(torch.bfloat16) for _ in range(3)]

    def compile_all(tuner, a, b, c):
        strides = *a.stride(), *b.stride(), *c.stride()
        with triton.AsyncCompileMode(ThreadPoolExecutor(16)):
            tuner.warmup(a, b, c, *c.shape, a.shape[1], *strides, grid=(1,))

    def square(n):
        return {"n": n, "bytes": 6 * n**2, "flops": 2 * n**3}

    rows, configs = [], configurations()
    fitting = fits(configs, {})
    compile_all(tuned(matmul_heuristic, configs, []), *matrices(4096))
    for n in (4096, 1024):
        a, b, c = tensors = matrices(n)
        fns, compiled = {"cublas": lambda a=a, b=b, c=c: torch.mm(a, b, out=c)}, {}
        for config in configs:
            run = _launcher(config)
            try:
                compiled[config] = run(*tensors)
            except triton.OutOfResources:
                continue
            _compare(config, run, a[:512], b)
            fns[config] = lambda run=run, tensors=tensors: run(*tensors)
        for config, timing in measure(fns).items():
            row = {"provider": "cublas", **square(n), **timing}
            if config in compiled:
                row |= {"provider": "triton_config", "tile": _tile(config)}
                row |= {key: getattr(config, key) for key in ("num_warps", "num_stages")}
                row |= resources(compiled[config])
                if config in fitting:
                    row["estimate"] = estimate(n, n, n, **config.all_kwargs())
            rows.append(row)
    yield result(
        "matmul_sweep", "Matrix product, bfloat16, all configurations", "n", "matmul", rows
    )

    (x, out, _), rows, fns = matrices(8192), [], {}
    for m, n, w in itertools.product((1, 2, 4, 8, 16), (64, 128, 256, 512, 1024), (4, 8)):
        block = {"BLOCK_M": m, "BLOCK_N": n, "num_warps": w}
        fns[len(rows)] = lambda block=block: bias_relu(bias_relu_kernel, x, x[0], out, **block)
        work = {"bytes": 4 * x.numel(), "flops": 2 * x.numel(), "per_thread": m * n / (32 * w)}
        rows.append({"provider": "triton_config", **block, **work})
    rows = [rows[i] | timing for i, timing in measure(fns).items()]
    yield result("bias_relu_sweep", "relu(x + bias), 8192 × 8192", "BLOCK_N", "copy", rows)

    rows, a, b, c = [], *matrices(4096)
    some = [config for config in fitting if config.num_stages in (3, 4)]

    def first_call(case, **options):
        # the kernel as a new process meets it: nothing of it is in memory
        kernel = even_k(triton.jit(matmul_kernel.fn))
        if "fixed" not in case:
            kernel = tuned(kernel, some, ["M", "N", "K"], **options)
        torch.cuda.synchronize()
        start = time.perf_counter()
        if "threads" in case:
            compile_all(kernel, a, b, c)
        _launch(kernel, a, b, c, **(some[0].all_kwargs() if "fixed" in case else {}))
        torch.cuda.synchronize()
        ms = (time.perf_counter() - start) * 1e3
        row = {"provider": "triton_first_call", "case": case, "configurations": len(some)}
        rows.append(row | {"ms": ms, "ms_p20": ms, "ms_p80": ms, "bytes": 0, "flops": 0})

    with triton.knobs.cache.scope():
        for case in ("fixed", "tuned, 16 threads", "tuned"):
            triton.knobs.cache.dir = tempfile.mkdtemp()
            first_call(case)
            if "threads" not in case:
                first_call(f"{case}, compiled", cache_results=True)
        first_call("tuned, timings kept", cache_results=True)
    yield result("first_call", "First call of a matrix product, 4096³", "case", None, rows)

    rows = []
    guess = triton.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8})
    tuner = tuned(matmul_heuristic, [guess, *some[:2]], ["M", "N", "K"])
    for n in (512, 1024, 2048, 4096, 8192):
        a, b, c = matrices(n)
        fns = {"triton": lambda: matmul(a, b), "cublas": lambda: torch.mm(a, b)}
        fns["triton_first_guess"] = lambda: _launcher(guess)(a, b, c)
        fns["triton_autotuned"] = lambda: _launch(tuner, a, b, c)
        rows += [{"provider": p, **square(n), **t} for p, t in measure(fns, host=True).items()]
    yield result("matmul", "Matrix product, n × n × n, bfloat16", "n", "matmul", rows)
