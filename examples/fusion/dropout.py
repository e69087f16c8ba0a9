# %% [markdown]
# ---
# title: Dropout
# description: Dropout at the speed of a copy, whose mask is computed twice and never stored.
# tags: [element-wise, random numbers, autograd]
# prerequisites: [fusion/softmax]
# outcome: Draw random numbers in a kernel, the same ones forward and backward, and test them.
# ---
#
# # Dropout: a mask that nobody stores
#
# In training, dropout ([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html))
# sets each element to zero with probability $p$ and scales up the others, so that the mean stays:
#
# $$
# y_i = \frac{k_i \, x_i}{1 - p}, \qquad dx_i = \frac{k_i \, dy_i}{1 - p}, \qquad
# k_i = 1 \text{ with probability } 1 - p, \text{ else } 0.
# $$
#
# Forward and backward must toss the same coins. PyTorch tosses them once and keeps the result, the
# mask: a byte an element, which waits in memory until the backward pass. **Must anyone store it?**
#
# ## What it costs
#
# With its mask stored, a bfloat16 element moves five bytes forward and five backward. With the mask
# computed again, four and four; and all that waits in between is a seed.
#
# {{ diagram("dropout_traffic") }}
#
# For 2²⁷ elements that saves {{ (2**27) | bytes }} of memory, and the [floor](../glossary.md#floor)
# of either pass becomes a copy of {{ (4 * 2**27) | bytes }}: {{ copy_ms(4 * 2**27) | ms }} on this
# {{ env.gpu }}. But numbers that are not read must be computed, and there is a second budget. Each
# of the {{ env.sms }} [SMs](../glossary.md#sm) has 128 *slots* a clock, and an instruction of a thread
# takes one; a product of integers takes two, for it runs at
# [half the rate](https://docs.nvidia.com/cuda/cuda-c-programming-guide/#throughput-of-native-arithmetic-instructions).
# {% set a_second = rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16).tflops / 2 %}{% set slots = copy_ms(4 * 2**27) * 1e-3 * a_second * 1e12 / 2**27 %}
# Together they do {{ a_second | n }} × 10¹² instructions a second ([measured](../foundations/memory_hierarchy.py#registers-a-chain-of-multiply-adds)). That makes {{ slots | n(0) }} slots an element in the time of that copy, for loads,
# stores and all. **Can a good random number be that cheap?**
#
# ## Numbers with an address
#
# Most generators have a state: to get number 1,000 you draw the 999 before it. That is of no use to
# a million threads. A *counter-based* generator is a function of a key and a counter, as a cipher
# is: here the key is the seed, and the counter says where the element lies. Whoever knows both gets
# the same number, in whatever order, block or pass.
#
# Philox4x32 ([Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405)) turns a 128-bit counter
# and a 64-bit key into four 32-bit words, in ten rounds. A round takes two products of 32 by 32
# bits, whose halves change places. PyTorch on a GPU and
# [`tl.rand`](https://triton-lang.org/main/python-api/triton.language.html#random-number-generation)
# use it, cuRAND offers it. In plain PyTorch:

# %% tags=["copy"]
import torch
import triton
import triton.language as tl


# %%
def philox_reference(counter, seed, rounds=10):
    """The four words that belong to each counter, int64 `[n] -> [n, 4]`, exact on any device."""
    low = 0xFFFFFFFF

    def multiply(factor, word):  # the high and the low word of a product too long for an int64
        lower = word * (factor & 0xFFFF)
        upper = word * (factor >> 16) + (lower >> 16)
        return upper >> 16, (upper << 16 | lower & 0xFFFF) & low

    c0, c1, c2, c3 = counter & low, counter >> 32, counter * 0, counter * 0
    k0, k1 = seed & low, seed >> 32
    for _ in range(rounds):
        high_a, low_a = multiply(0xD2511F53, c0)
        high_b, low_b = multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return torch.stack([c0, c1, c2, c3], dim=-1)

# %% [markdown]
# How many rounds? The authors report that seven pass BigCrush, a battery of tests that many
# generators fail; ten, their default, have something in reserve. PyTorch takes ten, and so does
# this page, unless it can afford only seven.
#
# ## Step 1: a call for each element
#
# Triton's tutorial on [low-memory dropout](https://triton-lang.org/main/getting-started/tutorials/04-low-memory-dropout.html) writes it so (what a kernel must keep is written in PyTorch [below](#is-it-right)). `tl.rand(seed, offs)` calls [Philox](../glossary.md#philox) with the element's offset as
# counter and makes a float of the first word. What becomes of the other three?

# %%
@triton.jit
def dropout_rand_kernel(x_ptr, out_ptr, seed, p, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask)
    keep = tl.rand(seed, offs) >= p
    tl.store(out_ptr + offs, tl.where(keep, x / (1 - p), 0.0), mask=mask)

# %% [markdown]
# They are thrown away. (torch.compile's kernel also calls `tl.rand` for each element.)
#
# ## Step 2: four elements a call
#
# `tl.randint4x` hands over all four words. Joined and reshaped they are a block in the order of
# their elements: element $i$ gets word $i \bmod 4$ of call $\lfloor i / 4 \rfloor$. A float is not
# needed either: keep what lies at or above $2^{32} p$.

# %%
@triton.jit
def dropout_words_kernel(x_ptr, out_ptr, seed, limit: tl.uint32, scale, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    a, b, c, d = tl.randint4x(seed, pid * (BLOCK // 4) + tl.arange(0, BLOCK // 4))
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(BLOCK)
    tl.store(out_ptr + offs, tl.where(words >= limit, x * scale, 0.0), mask=mask)

# %% [markdown]
# ## Step 3: eight elements a call
#
# A coin does not need 32 bits. With 16, one call serves eight elements, which in bfloat16 are the
# 16 bytes that a thread loads at once. The price has to be said: **$p$ becomes a multiple of
# 1/65,536**. $p = 0.1$ drops 6,554 in 65,536, or 0.100006. The scale is computed from that number,
# not from $p$, so that the mean of $y$ is exactly $x$. A $p$ below 1/131,072 becomes 0.
#
# {{ diagram("dropout_philox") }}
#
# - **A row of eight is a thread's.** The block has shape `[VECTORS, 8]`; Philox runs on a column of
#   it, `[VECTORS, 1]`. The compiler gives each thread whole rows, since that makes loads of 16
#   bytes; so it knows the `lane` of each register, and the `where` that picks a word costs nothing.
# - **The upper half needs no shift.** A word is at least `threshold << 16` exactly when its upper
#   half is at least `threshold`. The lower half is shifted up.
# - **Whole blocks need no [mask](../glossary.md#mask)**, so odd lengths are fast
#   ([why](../foundations/programming_model.py#one-change-whole-blocks-need-no-mask)).
#
# Pieces of a tensor should get the coins that the whole would. So a piece may begin anywhere in the
# mask: in the middle of a call, too, `lead` elements after a multiple of eight.

# %% tags=["copy"]
@triton.jit
def _dropped(x, seed, counter, lane, threshold, scale, ROUNDS: tl.constexpr):
    a, b, c, d = tl.randint4x(seed, counter, ROUNDS)  # [VECTORS, 1] each
    word = tl.where(lane < 4, tl.where(lane < 2, a, b), tl.where(lane < 6, c, d))  # [VECTORS, 8]
    word = tl.where(lane % 2 == 0, word << 16, word)
    # a choice, not a product: 0 * inf would be NaN
    return tl.where(word >= (threshold.to(tl.uint32) << 16), x.to(tl.float32) * scale, 0.0)


@triton.jit(do_not_specialize=["seed", "first", "threshold"])
def dropout_kernel(
    x_ptr, residual_ptr, out_ptr, seed_ptr, seed: tl.int64, first: tl.int64, threshold: tl.int32,
    scale, lead, n, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Drops out of n elements, the first of which is element `8 * first + lead` of its mask.

    Launch ceil((n + lead) / BLOCK) programs. `seed_ptr` and `residual_ptr` may be None.
    """
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    # int32 offsets would wrap at 2**31 elements
    start = tl.program_id(0).to(tl.int64) * BLOCK - lead
    vector = tl.arange(0, BLOCK // 8)[:, None]  # [VECTORS, 1]
    lane = tl.arange(0, 8)[None, :]  # [1, 8]
    offs = start + (vector * 8 + lane)  # [VECTORS, 8]
    counter = first + tl.program_id(0).to(tl.int64) * (BLOCK // 8) + vector
    if (start >= 0) & (start + BLOCK <= n):
        # no mask, so that loads are wide even where n is odd
        x = tl.load(x_ptr + offs)
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offs).to(tl.float32)
        y = _dropped(x, seed, counter, lane, threshold, scale, ROUNDS)
        if residual_ptr is not None:
            y += residual
        tl.store(out_ptr + offs, y)
    else:
        mask = (offs >= 0) & (offs < n)
        x = tl.load(x_ptr + offs, mask=mask)
        y = _dropped(x, seed, counter, lane, threshold, scale, ROUNDS)
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offs, mask=mask).to(tl.float32)
        tl.store(out_ptr + offs, y, mask=mask)

# %% [markdown]
# Count what the compiler made of each step, in slots. Which fit the budget?

# %%
def show_instructions():
    """Prints machine instructions an element; those that multiply integers take two slots."""
    import re

    x, n = torch.empty(2048, dtype=torch.bfloat16, device="cuda"), 2048
    whole = x, None, x, None, 7, 0, 9, 1.1, 0, n, n
    for name, compiled in {
        "one element a call": dropout_rand_kernel[(1,)](x, x, 7, 0.1, n, n),
        "four elements a call": dropout_words_kernel[(1,)](x, x, 7, 9, 1.1, n, n),
        "eight elements a call": dropout_kernel[(1,)](*whole, ROUNDS=10),
        "eight, of seven rounds": dropout_kernel[(1,)](*whole, ROUNDS=7),
    }.items():
        # the path of a whole block ends at the first unconditional exit
        body = re.split(r"(?m)^(?!.*@).*\bEXIT\b", compiled.asm["sass"])[0]
        codes = re.findall(r"(?m)\t(?:@!?U?P\w+ )?([A-Z][A-Z0-9.]+)\b", body)
        # other IMADs multiply by 1: they are moves
        products = sum(re.match(r"IMAD(\.WIDE|\.HI|$)", code) is not None for code in codes)
        each, slots = 32 * compiled.metadata.num_warps / n, len(codes) + products
        counts = f"{len(codes) * each:5.1f} instructions, {products * each:4.1f} of them products"
        print(f"{name:23}{counts}: {slots * each:4.1f} slots")


if __name__ == "__main__" and not triton.knobs.runtime.interpret:
    show_instructions()

# %% [markdown]
# Step 1 costs nearly three times the budget, step 2 a little more than it; step 3 fits with ten
# rounds, so seven would save what nobody needs. (The benchmark will say whether the steps obey.)
#
# ## The seed
#
# Each call needs a new one, and `torch.manual_seed` should make it reproducible. Three traps:
#
# - **Drawn on the GPU and read back** it makes the host wait for the GPU, at every dropout of every
#   layer. PyTorch's CPU generator makes nobody wait, and `manual_seed` seeds it, too.
# - **Integer arguments are specialised**: a version for multiples of 16, one for the rest, others
#   for 1 and past 32 bits. Random seeds would meet each some day, and training would stop to
#   compile. Hence `do_not_specialize`, and the types.
# - **A [CUDA graph](../glossary.md#cuda-graph) replays its arguments.** A seed from the host would toss the same coins in every
#   replay: no error, only a worse model. While a graph is captured the seed is drawn on the GPU
#   instead, by a generator that PyTorch moves on at every replay; the kernel reads it from memory.
#
# ## The function around it
#
# The backward pass does to `dy` what the forward pass did to `x`: so it calls `_Dropout` again, and
# even a second derivative works. `dropout_add` adds a residual in the same kernel; its gradient is
# `dy` itself. Elements are numbered row by row: what is not contiguous is copied first.

# %% tags=["copy"]
def dropout_forward(x, residual, threshold, seed, offset, out=None) -> torch.Tensor:
    """The dropout of x, in out if given (contiguous), with `threshold` in 65,536 dropped."""
    x = x.contiguous()
    out = torch.empty_like(x) if out is None else out
    residual = None if residual is None else residual.contiguous()
    n, lead, BLOCK = x.numel(), offset % 8, 4096 // x.element_size()
    if threshold == 65536:  # 16 bits cannot be at or above it
        return out.zero_() if residual is None else out.copy_(residual)
    seed_ptr, seed = (seed, 0) if isinstance(seed, torch.Tensor) else (None, seed)
    if n:
        with torch.cuda.device_of(x):
            # triton.cdiv would cost the host a microsecond or two
            dropout_kernel[((n + lead + BLOCK - 1) // BLOCK,)](
                x, residual, out, seed_ptr, seed, offset // 8, threshold,
                65536 / (65536 - threshold), lead, n, BLOCK=BLOCK, ROUNDS=10,
            )  # fmt: skip
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, threshold, seed, offset):
        if isinstance(seed, torch.Tensor):
            ctx.save_for_backward(seed)
        ctx.mask = threshold, seed, offset
        return dropout_forward(x, residual, *ctx.mask)

    @staticmethod
    def backward(ctx, dy):
        threshold, seed, offset = ctx.mask
        # a seed that was changed since is an error here
        seed = ctx.saved_tensors[0] if isinstance(seed, torch.Tensor) else seed
        needed = ctx.needs_input_grad
        dx = _Dropout.apply(dy, None, threshold, seed, offset) if needed[0] else None
        return dx, dy if needed[1] else None, None, None, None


def draw_seed(device: torch.device) -> int | torch.Tensor:
    """A seed from torch's CPU generator, or the GPU's while a CUDA graph is captured."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.randint(2**63 - 1, (1,), device=device)
    return torch.randint(2**63 - 1, (), device="cpu").item()


def _dropout(name, x, residual, p, training, seed, offset):
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        hint = "TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"{name} needs a tensor on a GPU, got {x.device}; {hint}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name} takes float32, float16 or bfloat16, got {x.dtype}")
    if residual is not None:
        given, wanted = ((t.shape, t.dtype, t.device) for t in (residual, x))
        if given != wanted:
            raise ValueError(f"{name} needs a residual like x, {wanted}, got {given}")
    if not (0 <= p <= 1 and 0 <= offset < 2**62):
        raise ValueError(f"{name} needs 0 <= p <= 1, 0 <= offset < 2**62, got {p} and {offset}")
    threshold = round(p * 65536) if training else 0
    if threshold == 0:
        return x if residual is None else (x + residual).contiguous()
    if seed is None:
        seed = draw_seed(x.device)
    elif isinstance(seed, torch.Tensor):
        if (seed.dtype, seed.numel(), seed.device) != (torch.int64, 1, x.device):
            raise ValueError(f"{name} needs one int64 on {x.device} as seed, got {seed}")
    elif not 0 <= seed < 2**63:
        raise ValueError(f"{name} needs a seed from 0 to 2**63 - 1, got {seed}")
    wanted = x.requires_grad or (residual is not None and residual.requires_grad)
    run = _Dropout.apply if wanted and torch.is_grad_enabled() else dropout_forward
    return run(x, residual, threshold, seed, offset)


def dropout(
    x: torch.Tensor, p: float = 0.5, training: bool = True, *,
    seed: int | torch.Tensor | None = None, offset: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Zeroes elements at random and scales up the rest; differentiable, and no mask is stored.

    Element i, counted row by row, is dropped if half-word `(offset + i) % 8` of the Philox4x32-10
    call with key `seed` and counter `(offset + i) // 8` lies below `round(p * 65536)`. A dropped
    element is 0 even where x is infinite or NaN.

    Args:
        x: float32, float16 or bfloat16 on a GPU, any shape; copied if not contiguous.
        p: Probability to be dropped, from 0 to 1.
        training: If false, x is returned as it is.
        seed: From 0 to 2**63 - 1, or one int64 on x's device; if None, from torch's generator.
        offset: Of x in a longer tensor, in elements: chunks get what the whole would.

    Returns:
        A contiguous tensor like x; x itself where nothing can be dropped.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: p, seed or offset is out of range, or x is not on a GPU.
    """
    return _dropout("dropout", x, None, p, training, seed, offset)


def dropout_add(
    x: torch.Tensor, residual: torch.Tensor, p: float = 0.5, training: bool = True, *,
    seed: int | torch.Tensor | None = None, offset: int = 0,
) -> torch.Tensor:  # fmt: skip
    """`residual + dropout(x)` in one kernel, rounded once; otherwise as `dropout`.

    Args:
        x: As for `dropout`, like p, training, seed and offset.
        residual: Shape, dtype and device of x; copied if not contiguous.

    Returns:
        The sum, contiguous.

    Raises:
        ValueError: As `dropout`, TypeError too; or the residual does not fit.
    """
    return _dropout("dropout_add", x, residual, p, training, seed, offset)

# %% [markdown]
# ## Is it right?
#
# The specification tosses the coins with `philox_reference`, in PyTorch's integers. `check`, [further down](#is-it-random), compares with it bit for bit.

# %%
def keep_reference(n, p, seed, offset=0, device="cpu", rounds=10):
    """What is kept of n elements, a bool each."""
    calls = torch.arange(offset // 8, (offset + n + 7) // 8, device=device)
    words = philox_reference(calls, seed, rounds)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten()
    return halves[offset % 8 :][:n] >= round(p * 65536)


def dropout_reference(x, p, seed, offset=0):
    """The specification."""
    keep = keep_reference(x.numel(), p, seed, offset, x.device).view(x.shape)
    scale = 65536 / (65536 - round(p * 65536)) if p < 1 else 0.0
    return torch.where(keep, x * scale, 0.0)


def dropout_add_reference(x, residual, p, seed, offset=0):
    """The specification."""
    return residual + dropout_reference(x, p, seed, offset)

# %% [markdown]
# ## Is it random?
#
# Bits can be right and the generator wrong, or its *use*: even a good generator gives bad numbers
# where its counters or keys collide. So test what comes out of `dropout`:
#
# - **rate**: is the share of kept elements $1 - p$?
# - **lags**: is an element correlated with those 1 to 64 places away, or 128, 256, … 8,192? They
#   belong to other lanes, calls and programs.
# - **seeds**: are masks of neighbouring seeds correlated, at any shift up to 16?
# - **clumps**: do counts in 256 elements vary as much as chance has it, not more and not less?
# - **patterns**: does each of the 16 patterns of four come as often as it should?
#
# Each prints how many standard deviations it is off what chance expects, the worst of its kind. Of
# 239 in all one may well pass 3 by chance; none reaches 6. A test that cannot fail tests nothing,
# so five bad generators stand beside ours (an LCG, linear congruential generator, multiplies and
# adds). Which test finds which? And of what use is the first, which everybody makes?

# %%
def randomness(keep, n, p=0.5):
    """Deviations of `keep(seed, n)`, n bools, from independent coins that keep 1 - p of them."""
    p = round(p * 65536) / 65536
    probability = torch.tensor([p, 1 - p], dtype=torch.float64)

    def correlation(a, b):
        return (a * b).sum().item() / (p * (1 - p) * a.numel() ** 0.5)

    def chi_square(counts, expected, variance, freedom):
        terms = (counts.double().cpu() - expected) ** 2 / variance
        return (terms.sum().item() - freedom) / (2 * freedom) ** 0.5

    kept = keep(1, n)
    a = kept.float() - (1 - p)
    lags = [*range(1, 65), *(2**k for k in range(7, 14))]
    seeds = []
    for other in (2, 3, 1 + 2**16, 1 + 2**31, 1 + 2**32):
        b = keep(other, n).float() - (1 - p)
        seeds += [correlation(a[k:], b[: n - k]) for k in range(17)]
        seeds += [correlation(b[k:], a[: n - k]) for k in range(1, 17)]
    fours = (kept.view(-1, 4) * torch.tensor([8, 4, 2, 1], device=kept.device)).sum(1)
    chances = torch.cartesian_prod(*[probability] * 4).prod(1) * (n // 4)
    clumps = kept.view(-1, 256).sum(1)
    return {
        "rate": a.sum().item() / (n * p * (1 - p)) ** 0.5,
        "lags": max((correlation(a[k:], a[:-k]) for k in lags), key=abs),
        "seeds": max(seeds, key=abs),
        "clumps": chi_square(clumps, 256 * (1 - p), 256 * p * (1 - p), n // 256),
        "patterns": chi_square(torch.bincount(fours, minlength=16), chances, chances, 15),
    }


def show_randomness(device):
    """Prints the deviations of dropout's mask, and those of generators that are worse."""
    n, BLOCK = 2**17, 2048
    ones, index = torch.ones(n, device=device), torch.arange(n, device=device)

    def philox(seed, n, **options):
        return keep_reference(n, 0.5, seed, device=device, **options)

    generators = {
        "dropout": lambda seed, n: dropout(ones, seed=seed) != 0,
        "Philox, 4 rounds": lambda seed, n: philox(seed, n, rounds=4),
        "LCG": lambda seed, n: (1664525 * (index + seed) + 1013904223 & 0xFFFFFFFF) >= 2**31,
        "each coin used twice": lambda seed, n: philox(seed, n // 2).repeat_interleave(2),
        "program id forgotten": lambda seed, n: philox(seed, BLOCK).repeat(n // BLOCK),
        "seed added to counter": lambda seed, n: philox(7, n, offset=8 * (seed % 2**30)),
    }
    print(f"{n:,} coins" + " " * 13 + "rate     lags    seeds   clumps  patterns")
    for name, keep in generators.items():
        print(f"{name:22}" + "".join(f"{z:9.1f}" for z in randomness(keep, n).values()))


if __name__ == "__main__":
    show_randomness("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# The rate finds none of them. A fault shows where it repeats, so **test across whatever your
# counter and your key are made of**: lanes, calls, programs, seeds. And a pass proves little:
# `rounds=5` passes with as many coins, and fails with 2²² (seeds: 7.7). That ten suffice is known
# from the authors' harder tests; these watch how the generator is used. `check` puts all together.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares masks bit for bit, values with float64; raises AssertionError where they differ."""
    from itertools import product

    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # of the authors' library Random123
    got = philox_reference(torch.tensor([0], device=device), 0)[0]
    assert got.tolist() == words, "the specification is off"
    # the interpreter rounds bfloat16 otherwise
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * (device == "cuda")
    sizes = [0, 1, 2048, 2049, 5001] + [1_000_003] * (device == "cuda")
    on_device = torch.tensor([2**40 + 3], device=device)
    # the second offset needs a counter of more than 32 bits
    masks = [(0.1, 0, 0), (0.999, 2**63 - 1, 2**36 + 5), (0.5, 7, 8), (0.25, on_device, 4093)]
    for dtype, n, (p, seed, offset) in product(dtypes, sizes, masks):
        x, other = torch.randn(2, n, device=device).to(dtype)
        where = f"{dtype}, n = {n}, p = {p}, offset = {offset}"
        for residual in (None, other):
            frame = torch.full((n + 4096,), float("nan"), device=device, dtype=dtype)
            dropout_forward(x, residual, round(p * 65536), seed, offset, frame[:n])
            assert frame[n:].isnan().all(), f"writes past the end: {where}"
            added = torch.zeros_like(x) if residual is None else residual
            want = dropout_reference(x.double(), p, int(seed), offset)
            error, bound = (frame[:n] - (want + added)).abs(), want.abs() + added.abs()
            assert (error <= 2 * torch.finfo(dtype).eps * bound + 1e-7).all(), where
    print(f"{len(dtypes)} dtypes, {len(sizes)} lengths, {len(masks)} masks: as specified")

    # through autograd, elements not adjacent; dropout is linear, so is its gradient
    x, residual, dy = (torch.randn(3, 9, 70, device=device).mT.requires_grad_() for _ in range(3))
    y = dropout_add(x, residual, 0.3, seed=11)
    assert torch.allclose(y, dropout_add_reference(x, residual, 0.3, 11), atol=1e-5)
    dx, dresidual = torch.autograd.grad(y, (x, residual), dy, create_graph=True)
    assert torch.equal(dx, dropout_reference(dy, 0.3, 11)), "the gradient tosses other coins"
    assert torch.equal(dresidual, dy), "the residual's gradient is off"
    (ddy,) = torch.autograd.grad(dx, dy, x)
    assert torch.equal(ddy, dropout_reference(x, 0.3, 11)), "the second derivative is off"

    flat, runs = x.detach().flatten(), []
    chunks = [dropout(c, seed=5, offset=777 * i) for i, c in enumerate(flat.split(777))]
    assert torch.equal(torch.cat(chunks), dropout(flat, seed=5)), "chunks toss other coins"
    for _ in range(2):
        torch.manual_seed(3)
        runs += [dropout(flat), dropout(flat)]
    assert torch.equal(runs[0], runs[2]) and torch.equal(runs[1], runs[3]), "manual_seed is ignored"
    assert not torch.equal(runs[0], runs[1]), "two calls toss the same coins"
    strange = torch.tensor([torch.inf, -torch.inf, torch.nan] * 700, device=device)
    keep = keep_reference(2100, 0.5, 1, device=device)
    assert torch.equal(dropout(strange, seed=1) == 0, ~keep), "a dropped infinity is not 0"
    assert dropout(x, 0.0) is x and dropout(x, training=False) is x, "p = 0"
    # this seed has a half-word of 65,535
    assert (dropout(strange, 1.0, seed=1) == 0).all(), "p = 1"
    assert torch.equal(dropout_add(x, x, 1.0), x), "p = 1"
    print("gradients, chunks, manual_seed, infinities, p = 0, p = 1: right")
    if device == "cuda":
        dropout(flat, seed=on_device)  # compiles it
        with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
            captured = dropout(flat)
        runs = [graph.replay() or captured.clone() for _ in range(2)]
        assert not torch.equal(*runs), "a graph tosses the same coins at each replay"
        print("CUDA graph: new coins at each replay")

    ones, worst = torch.ones(2**24 if device == "cuda" else 2**15, device=device), []
    for p in (0.5, 0.1):
        found = randomness(lambda seed, n, p=p: dropout(ones, p, seed=seed) != 0, len(ones), p)
        worst += map(abs, found.values())
    assert max(worst) < 6, f"not random: {max(worst):.1f} standard deviations"
    print(f"{len(ones):,} coins, twice: largest deviation {max(worst):.1f}")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Before you look: which of the three steps reach a copy's speed? Which pass gains more?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from functools import partial

    p, both = 0.1, "forward and backward"

    def torch_dropout(x):
        return torch.nn.functional.dropout(x, p)

    def torch_dropout_add(x, residual):
        return residual + torch.nn.functional.dropout(x, p)

    def step(kernel, *arguments):
        def run(x):
            out, n = torch.empty_like(x), x.numel()
            kernel[(triton.cdiv(n, 2048),)](x, out, *arguments, n, BLOCK=2048)
            return out

        return run

    def call(fn, inputs, dy):
        y = fn(*inputs)
        return y if dy is None else torch.autograd.grad(y, inputs, dy)

    def benchmark(name, mode, op, rival, trips, sizes, more=None, **options):
        rows = []
        for n in sizes:
            torch._dynamo.reset()  # after eight sizes of a function torch no longer compiles it
            fused = torch.compile(rival, mode="max-autotune-no-cudagraphs", dynamic=False)
            x, residual, dy = torch.randn(3, n, device="cuda", dtype=torch.bfloat16)
            inputs = [x, residual] if op is dropout_add else [x]
            inputs = [t.requires_grad_(mode == both) for t in inputs]
            fns = {"triton": partial(op, p=p), "torch": rival, "torch_compile": fused}
            dy = dy if mode == both else None
            fns = {k: partial(call, fn, inputs, dy) for k, fn in (fns | (more or {})).items()}
            size = {"n": n, "bytes": 2 * trips * n, "flops": trips // 2 * n}
            rows += [{"provider": k} | size | t for k, t in measure(fns, **options).items()]
        title = f"Dropout{' + residual' * (op is dropout_add)}, {mode}, bfloat16"
        about = {"name": name, "title": title, "x": "n", "dtype": "bfloat16", "mode": mode}
        return about | {"ceiling": "copy", "rows": rows}

    steps = {
        "triton_one_a_call": step(dropout_rand_kernel, 7, p),
        "triton_four_a_call": step(dropout_words_kernel, 7, round(p * 2**32), 1 / (1 - p)),
    }
    plain, added = (dropout, torch_dropout), (dropout_add, torch_dropout_add)
    sizes = [2**20, 2**22, 2**24, 2**27, 2**29]
    yield benchmark("forward", "forward", *plain, 2, sizes, steps, memory=True)
    yield benchmark("gradient", both, *plain, 4, sizes[2:])
    yield benchmark("add_forward", "forward", *added, 3, [2**27])
    yield benchmark("add_gradient", both, *added, 5, [2**27])
    yield benchmark("small", "forward", *plain, 2, [4096], host=True)
    yield benchmark("small_gradient", both, *plain, 4, [4096], host=True)

    whole, rows = torch.randn(2**27, device="cuda", dtype=torch.bfloat16), []
    cases = ("2²⁷ − 1", whole[:-1], 0), ("offset 3", whole, 3), ("float32", whole.float(), 0)
    for case, x, offset in cases:
        fns = {"triton": partial(dropout, x, p, offset=offset), "torch": partial(torch_dropout, x)}
        size = {"case": case, "bytes": 2 * x.numel() * x.element_size(), "flops": x.numel()}
        rows += [{"provider": k} | size | t for k, t in measure(fns).items()]
    about = {"name": "awkward", "title": "Dropout, forward, awkward cases", "x": "case"}
    yield about | {"dtype": "bfloat16", "mode": "forward", "ceiling": "copy", "rows": rows}

# %% [markdown]
# {{ figure("forward", providers=["triton", "triton_four_a_call", "triton_one_a_call", "torch", "torch_compile"],
#    caption="Eight coins a call reach a copy's speed; one is bound by arithmetic.") }}
# {% set n = 2**27 %}{% set ours = row("forward", provider="triton", n=n) %}
# {% set one = row("forward", provider="triton_one_a_call", n=n) %}{% set four = row("forward", provider="triton_four_a_call", n=n) %}
# {% set eager = row("forward", provider="torch", n=n) %}{% set compiled = row("forward", provider="torch_compile", n=n) %}
#
# At 2²⁷ elements: {{ ours.ms | ms }}, {{ ours.percent | pct }} of a copy's
# speed{{ claim(ours.percent >= 92 and ours.ms <= 0.145) }}. PyTorch takes {{ (eager.ms / ours.ms) | times }} as
# long{{ claim(eager.ms >= 1.5 * ours.ms) }}, torch.compile
# {{ (compiled.ms / ours.ms) | times }}{{ claim(compiled.ms > 2.5 * ours.ms) }}, one call an element
# {{ (one.ms / ours.ms) | times }}{{ claim(one.ms > 2.5 * ours.ms) }}, four elements a call
# {{ (four.ms / ours.ms) | times }}{{ claim(four.ms > ours.ms) }}: much as the slots foretold, three times the copy and a little over it.{{ claim(29 < one.percent < 37 and 84 < four.percent < 98) }}
#
# {{ table("forward", where={"n": 2**27}, columns=["provider", "ms", "percent", "peak_bytes"]) }}
#
# The last column is what a call adds to the memory in use: the output, and in PyTorch the mask,
# {{ (eager.peak_bytes - ours.peak_bytes) | bytes }}{{ claim(eager.peak_bytes - ours.peak_bytes == n) }}, which with a gradient stays until the backward pass.
#
# {{ figure("gradient", caption="Forward and backward: two copies' work, and no mask between them.") }}
# {% set ours = row("gradient", provider="triton", n=n) %}{% set eager = row("gradient", provider="torch", n=n) %}
# {% set compiled = row("gradient", provider="torch_compile", n=n) %}
#
# Together {{ ours.ms | ms }}{{ claim(ours.ms <= 0.30) }}, PyTorch {{ (eager.ms / ours.ms) | times }}
# as long{{ claim(eager.ms > 1.2 * ours.ms) }}, torch.compile {{ (compiled.ms / ours.ms) | times }}{{ claim(compiled.ms > 1.5 * ours.ms) }}.
# Forward gains more: PyTorch's backward pass, the difference, takes {{ ((eager.ms - row("forward", provider="torch", n=n).ms) / (ours.ms - row("forward", provider="triton", n=n).ms)) | times }} as long as ours.{{ claim(1.1 < (eager.ms - row("forward", provider="torch", n=n).ms) / (ours.ms - row("forward", provider="triton", n=n).ms) < 1.4) }}
#
# {% set fused = row("add_forward", provider="triton") %}{% set eager = row("add_forward", provider="torch") %}
# {% set both = row("add_gradient", provider="triton") %}{% set both_eager = row("add_gradient", provider="torch") %}
#
# **With the residual**, three trips in place of five and the mask: {{ fused.ms | ms }}, {{ fused.percent | pct }} of the
# copy{{ claim(fused.percent >= 92) }}, PyTorch {{ (eager.ms / fused.ms) | times }} as long{{ claim(eager.ms > 1.5 * fused.ms) }}, torch.compile {{ (row("add_forward", provider="torch_compile").ms / fused.ms) | times }};
# forward and backward {{ both.ms | ms }}, PyTorch {{ (both_eager.ms / both.ms) | times }}{{ claim(both_eager.ms > 1.3 * both.ms) }}, torch.compile {{ (row("add_gradient", provider="torch_compile").ms / both.ms) | times }}.{{ claim(row("add_forward", provider="torch_compile").ms > 1.5 * fused.ms and row("add_gradient", provider="torch_compile").ms > 1.5 * both.ms) }}
#
# ## Where it loses, and why
#
# {{ table("awkward") }}
#
# {% set odd = row("awkward", provider="triton", case="2²⁷ − 1") %}{% set shifted = row("awkward", provider="triton", case="offset 3") %}
# {% set small = row("small", provider="triton") %}{% set small_torch = row("small", provider="torch") %}
# - **An offset that is no multiple of eight** puts a row of eight across two vectors: loads of single elements, so cut chunks at multiples of eight: {{ (shifted.ms / odd.ms) | times }} the time{{ claim(shifted.ms > 1.3 * odd.ms) }}, more than PyTorch's plain call takes{{ claim(shifted.ms > row("awkward", provider="torch", case="offset 3").ms) }}. An odd length costs {{ (odd.ms / row("forward", provider="triton", n=2**27).ms * 100 - 100) | n }} %{{ claim(odd.ms < 1.03 * row("forward", provider="triton", n=2**27).ms) }}.
# - **Small tensors**: at 4,096 elements a call takes {{ small.host_us | n(0) }} µs of the host (PyTorch
#   {{ small_torch.host_us | n(0) }}{{ claim(20 < small.host_us and small_torch.host_us < small.host_us) }}; we aimed at 20), with the gradient
#   {{ row("small_gradient", provider="triton").host_us | n(0) }} (PyTorch {{ row("small_gradient", provider="torch").host_us | n(0) }}{{ claim(row("small_gradient", provider="torch").host_us < row("small_gradient", provider="triton").host_us) }}), and the kernel {{ small.us | n(1) }} µs of the GPU. (The host was slow in this recording: PyTorch's calls took longer, too.) Capture a graph.
# - **Rare drops**: $p = 0.001$ becomes 66 / 65,536, 0.7 % more. Where that matters: exercise 1.
#
# ## What to remember
#
# 1. **What can be computed again need not be stored**: a seed stands for a mask of any size.
# 2. **Random numbers cost instructions.** Count them, and use every bit of a call.
# 3. **A mask with the right share of zeros proves nothing.** Most faults leave that share alone.
#
# ## Exercises
#
# ??? question "1 (easy): 32 bits for each coin, as in step 2: what do they cost, what do they buy?"
#     ??? success "Answer"
#         Twice the calls: {{ (four.ms / row("forward", provider="triton", n=n).ms) | times }} the time above. $p$ is off by at most $2^{-33}$; with 16 bits by $2^{-17}$, 0.008 % of $p = 0.1$.
#
# ??? question "2 (medium): a seed a row, so that no sample's mask depends on the batch; any stride"
#     ??? success "Answer"
#         A program a row; counters count columns. The backward pass needs the seeds again.
#
#         ```python
#         import torch
#         import triton
#         import triton.language as tl
#         from dropout import _dropped, dropout_reference
#
#         @triton.jit
#         def rows_kernel(x_ptr, y_ptr, seeds_ptr, stride_xm, limit, n_cols, BLOCK: tl.constexpr):
#             row = tl.program_id(0).to(tl.int64)
#             seed = tl.load(seeds_ptr + row)
#             lane = tl.arange(0, 8)[None, :]
#             for start in range(0, n_cols, BLOCK):
#                 vector = start // 8 + tl.arange(0, BLOCK // 8)[:, None]
#                 cols = vector * 8 + lane
#                 x = tl.load(x_ptr + row * stride_xm + cols, mask=cols < n_cols)
#                 y = _dropped(x, seed, vector, lane, limit, 2.0, 10)
#                 tl.store(y_ptr + row * n_cols + cols, y, mask=cols < n_cols)
#
#         x = torch.randn(5, 3000, device="cuda" if torch.cuda.is_available() else "cpu")[:, :2500]
#         y, seeds = torch.empty_like(x), torch.tensor([3, 1, 4, 1, 5], device=x.device)
#         rows_kernel[(5,)](x, y, seeds, x.stride(0), 32768, 2500, BLOCK=2048)  # p = 1/2
#         want = [dropout_reference(row, 0.5, int(seed)) for row, seed in zip(x, seeds)]
#         torch.testing.assert_close(y, torch.stack(want))
#         ```
#
# ??? question "3 (hard): drop whole rows (stochastic depth). What is the floor now?"
#     ??? success "Answer"
#         The coin, with `row` as counter, is known before `x` is loaded, and a dropped row need not
#         be loaded: `tl.load(x_ptrs, mask=keep & mask, other=0.0)`. Two trips become $2 - p$.
#
# ## Use it in your project
#
# ```python
# from dropout import dropout_add
#
# h = dropout_add(attention, h, p=0.1, training=self.training)  # h + dropout(attention)
# ```
#
# It suits activation checkpointing: PyTorch restores its generators before it computes again. API:
# [dropout][examples.fusion.dropout.dropout], [dropout_add][examples.fusion.dropout.dropout_add].
