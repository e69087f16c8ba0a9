# %% [markdown]
# ---
# title: LayerNorm
# description: LayerNorm, forward near a copy's speed at most widths, with a deterministic gradient.
# tags: [reduction, memory-bound, numerics, autograd]
# prerequisites: [fusion/softmax]
# outcome: Write a normalisation whose gradient sums over rows and columns in one pass over memory.
# ---
#
# # LayerNorm: forward along rows, backward across them
#
# LayerNorm ([Ba et al., 2016](https://arxiv.org/abs/1607.06450)) moves every row to mean 0 and variance 1, then scales and shifts each column by learnt numbers $\gamma$ and $\beta$:
#
# $$
# \mu = \frac1n \sum_j x_j, \quad \sigma^2 = \frac1n \sum_j (x_j - \mu)^2, \quad
# \hat x_j = \frac{x_j - \mu}{\sqrt{\sigma^2 + \varepsilon}},\; y_j = \gamma_j \hat x_j + \beta_j
# $$
#
# Forward that is a [softmax](softmax.py) with other sums, and with a variance, which can be computed in a way that loses all digits. But the gradient of $\gamma$ sums down the *columns*, while each [program](../glossary.md#program) owns rows. **How do all programs add to one sum for each column, fast, and with the same bits every time?**
#
# ## What it costs: 24 LayerNorms in one BERT forward
#
# BERT-base has twelve blocks with two LayerNorms each ([Devlin et al., 2018](https://arxiv.org/abs/1810.04805)); the one behind its embeddings we leave out. 32 sequences of 512 tokens are a matrix of 16,384 rows and 768 columns, {{ (16384 * 768 * 2) | bytes }} in bfloat16. Count in `layer_norm_reference`, below, how often its operations read such a matrix, and how often they write one: seven times and five (numbers one a row are few). A fused kernel reads once and writes once.
#
# {% set matrix, bert, unfused = 16384 * 768 * 2, row("layer_norm_forward", provider="triton", n_cols=768), row("layer_norm_forward", provider="torch_unfused", n_cols=768) %}Twelve [trips](../glossary.md#trip) become two ([fusion](../glossary.md#fusion)). For 24 LayerNorms that is {{ (24 * 12 * matrix) | bytes }} against {{ (24 * 2 * matrix) | bytes }}; measured, {{ (24 * unfused.ms) | ms }} against {{ (24 * bert.ms) | ms }}{{ claim(unfused.ms > 4 * bert.ms) }}. 24 copies of as many bytes, the [floor](../glossary.md#floor), take {{ (24 * bert.floor_ms) | ms }}. The gradient needs three trips more: read $x$ and $dy$, write $dx$. On this {{ env.gpu }}, all five take {{ copy_ms(5 * 2**27) | ms }} at least for 8,192² numbers in bfloat16; torch takes {{ row("layer_norm_gradient", provider="torch", n_cols=8192).ms | ms }}. {% set arithmetic = rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16) %}Memory binds, not arithmetic: that is {{ (row("layer_norm_forward", provider="triton", n_cols=8192).flops / row("layer_norm_forward", provider="triton", n_cols=8192).bytes) | n(1) }} operations a byte forward and {{ (row("layer_norm_gradient", provider="triton", n_cols=8192).flops / row("layer_norm_gradient", provider="triton", n_cols=8192).bytes) | n(1) }} with the gradient, where the float32 units keep up with {{ (arithmetic.tflops / copy_tbps(2**33)) | n(0) }}.

# %% tags=["copy"]
import functools

import torch
import triton
import triton.language as tl


# %%
def layer_norm_reference(x, weight, bias, eps=1e-5):
    """The specification, in plain PyTorch and in the precision of `x`."""
    d = x - x.mean(dim=-1, keepdim=True)
    var = (d * d).mean(dim=-1, keepdim=True)
    return d * (var + eps).rsqrt() * weight + bias

# %% [markdown]
# ## Three ways to a variance, one of them wrong
#
# - **Mean of squares minus square of the mean**, $\frac1n\sum x_j^2 - \mu^2$, in one pass.
# - **Two passes**: first $\mu$, then the mean of $(x_j - \mu)^2$.
# - **Welford** ([1962](https://doi.org/10.1080/00401706.1962.10490022)): one pass that keeps, of what it has seen, the count so far $n$, the mean $\mu$, and $M = \sum (x_j - \mu)^2$. Two such triples merge ([Chan, Golub and LeVeque, 1982](https://doi.org/10.1007/978-3-642-51461-6_3)): with $n = n_a + n_b$ and $\delta = \mu_b - \mu_a$,
#
# $$
# \mu = \mu_a + \delta \, \frac{n_b}{n}, \qquad M = M_a + M_b + \delta^2 \, \frac{n_a n_b}{n} .
# $$
#
# `tl.reduce` takes any merge that may be done in any order. In exact arithmetic all three agree. Add 10,000 to every number, which changes no [variance](../glossary.md#welford), and predict which of them notices.

# %%
@triton.jit
def _merge(mean_a, m2_a, n_a, mean_b, m2_b, n_b):
    share = n_b / tl.maximum(n_a + n_b, 1.0)
    delta = mean_b - mean_a
    return mean_a + delta * share, m2_a + m2_b + delta * delta * n_a * share, n_a + n_b

@triton.jit
def variance_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    mask = cols < n
    x = tl.load(x_ptr + cols, mask=mask, other=0.0)
    mean = tl.sum(x, axis=0) / n
    tl.store(out_ptr, tl.sum(x * x, axis=0) / n - mean * mean)
    d = tl.where(mask, x - mean, 0.0)
    tl.store(out_ptr + 1, tl.sum(d * d, axis=0) / n)
    _, m2, _ = tl.reduce((x, tl.zeros_like(x), mask.to(tl.float32)), axis=0, combine_fn=_merge)
    tl.store(out_ptr + 2, m2 / n)

def show_variances():
    """Prints the variance of a thousand numbers at growing means, three ways."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    print("     mean  squares - mean²  two passes  Welford  float64")
    for mean in (0, 100, 1000, 10_000, 100_000):
        moved, out = (x + mean).to(device), torch.empty(3, device=device)
        variance_kernel[(1,)](moved, out, len(x), BLOCK=1024)
        exact = moved.double().var(correction=0).item()
        print("{:9,}  {:15.4f}  {:10.4f}  {:7.4f}  {:7.4f}".format(mean, *out.tolist(), exact))

if __name__ == "__main__":
    show_variances()

# %% [markdown]
# At 10,000 the naive way is off by nearly three times the variance itself. Where it comes out negative, the square root makes the row NaN. This is [*catastrophic cancellation*](https://en.wikipedia.org/wiki/Catastrophic_cancellation), drawn below. Subtract first, square afterwards, and the digits survive. If the row lies in [registers](../glossary.md#register), the second pass over it costs no trip through memory.
#
# {{ diagram("layer_norm_cancellation") }}
#
# ## Step 1: one row a program
#
# The whole row is one block. `other=0.0` keeps [masked](../glossary.md#mask) [lanes](../glossary.md#lane) out of the sum of $x$, but in $x - \mu$ they hold $-\mu$: hence the `tl.where`. Forgetting it is the classic bug of this kernel, and no test whose width is a power of two can see it. `/` may err in the last digit; `tl.div_rn` does not, so the mean of a single number is that number, and $d$ is 0 ([why](https://docs.nvidia.com/cuda/parallel-thread-execution/index.html#floating-point-instructions-div)).

# %%
@triton.jit
def layer_norm_row_kernel(x_ptr, weight_ptr, bias_ptr, y_ptr, n_cols, eps, BLOCK: tl.constexpr):
    """LayerNorm of one row a program; `BLOCK` is at least `n_cols`, rows lie close together."""
    start = tl.program_id(0).to(tl.int64) * n_cols
    cols = tl.arange(0, BLOCK)
    mask = cols < n_cols
    x = tl.load(x_ptr + start + cols, mask=mask, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(x, axis=0), tl.cast(n_cols, tl.float32))
    d = tl.where(mask, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(d * d, axis=0) / n_cols + eps)
    weight = tl.load(weight_ptr + cols, mask=mask).to(tl.float32)
    bias = tl.load(bias_ptr + cols, mask=mask).to(tl.float32)
    tl.store(y_ptr + start + cols, d * rstd * weight + bias, mask=mask)

def layer_norm_row(x, weight, bias, eps=1e-5):
    """LayerNorm of the rows of a contiguous matrix by step 1."""
    y, block = torch.empty_like(x), triton.next_power_of_2(x.shape[1])
    layer_norm_row_kernel[(len(x),)](x, weight, bias, y, x.shape[1], eps, BLOCK=block, num_warps=8)
    return y

# %% [markdown]
# In percent of a copy: {% for n in (1024, 5120, 8192, 12289, 32768) %}{{ row("layer_norm_forward", provider="triton_one_row", n_cols=n).percent | pct }} at {{ "{:,}".format(n) }} columns{{ "." if loop.last else ", " }}{% endfor %} **Why does the same code do well at one width and badly at the next?**
#
# ## Step 2: whole vectors, no idle lanes, rows of any length
#
# - **Enough for a thread.** 1,024 columns are 4 numbers for each thread of step 1's eight [warps](../glossary.md#warp). Now two such rows share a program of four warps: 16 numbers a thread.
# - **Whole vectors.** A thread [moves 16 bytes at once](../glossary.md#vector-load) only where they begin at a multiple of 16 bytes and are masked alike. Of an integer argument the compiler knows [at most](../glossary.md#specialisation) that 16 divides it. For 16-bit numbers `_align` divides by 8 and multiplies by 8: the same number, but now the compiler *knows* the factor. So a width of 1,000, a multiple of 8 and not of 16, is fast.
# - **No idle [lanes](../glossary.md#lane).** A block is a power of two. 768 columns would leave a quarter of 1,024 lanes idle, and idle lanes take time too. So it is a block of 512 and a `REST` of 256.
# - **Held as they came.** As float32 a row takes twice the [registers](../glossary.md#register) that it takes as bfloat16. `_hold` makes the compiler keep the bfloat16 numbers, and convert them at each use.
# - **Long rows**, from 32 KiB on, and shorter ones of a few whole blocks, unless a power of two, need not wait in registers: a second kernel walks along them twice, block by block, once for the sums and once for $y$. The second time the row comes from a cache, the [SM](../glossary.md#sm)'s own ([L1](../glossary.md#l1)) or [L2](../glossary.md#l2). (With a gradient a row may fill 16 KiB for each SM of the chip, a million bfloat16 numbers on this one; a longer one has no kernel, and is refused.) Hints tell them what to keep: `evict_last` what will be read again, `evict_first` what will not. Rows of two to eight whole blocks, such as 5,120 columns, five of 1,024, have a `WIDTH` that the compiler knows: it unrolls both loops and needs no mask. A thread keeps a triple of its own and merges each vector that it loads, by Welford's rule: no thread waits for another until the triples meet, at the end.
# - **Odd widths** (`PEEL`) go this way too, drawn below for 12,289 columns of bfloat16. Most rows begin off a [boundary](../glossary.md#vector-load) of 16 bytes. The blocks begin at the first one in the row, `head` numbers in; up to 7 numbers at either end, the *edge*, are left over. But weight and bias, from their number `head` on, lie off a boundary in turn. So a launch of its own, before, makes eight copies of both, one number less than a multiple of 16 apart, and a row takes the copies number `head`. (For tensors of up to 2²⁴ numbers the copies do not pay: there `shift` is 1, and all copies are the vector itself.)
#
# {{ diagram("layer_norm_odd") }}

# %% tags=["copy"]
@triton.jit
def _align(offset, VECTOR: tl.constexpr):
    # the same number: the caller knows that it is a multiple, now the compiler does
    return offset // VECTOR * VECTOR

@triton.jit
def _hold(x, HOLD: tl.constexpr):
    # the same bits, but the compiler cannot know: what follows from them is computed again
    if HOLD and x.dtype.primitive_bitwidth == 16:  # two numbers a register
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    return x

@triton.jit
def _peel(row, n_cols, VECTOR: tl.constexpr, PEEL: tl.constexpr):
    # elements before a row's first 16-byte boundary, in whole vectors from there on, and the rest
    head = 0
    if PEEL:
        head = ((VECTOR - row.to(tl.int64) * n_cols % VECTOR) % VECTOR).to(tl.int32)
    body = _align(n_cols - head, VECTOR)
    lane = tl.arange(0, 2 * VECTOR)[None, :]
    edge = tl.where(lane < VECTOR, lane - head, lane - VECTOR + body)
    in_edge = tl.where(lane < VECTOR, lane < head, head + edge < n_cols)
    return head, body, edge, in_edge

@triton.jit
def _scale(x, mean, rstd, weight_ptrs, bias_ptrs, mask, POLICY: tl.constexpr):
    weight = tl.load(weight_ptrs, mask=mask, eviction_policy=POLICY).to(tl.float32)
    bias = tl.load(bias_ptrs, mask=mask, eviction_policy=POLICY).to(tl.float32)
    return (x.to(tl.float32) - mean) * rstd * weight + bias

@triton.jit
def layer_norm_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, stats_ptr, stride_xm, n_rows, n_cols, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, VECTOR: tl.constexpr,
    HOLD: tl.constexpr):  # fmt: skip
    """LayerNorm of `ROWS` rows a program, each `BLOCK` columns and `REST`; stats `[2, n_rows]`."""
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    there = rows < n_rows
    x_ptrs = x_ptr + _align(rows * stride_xm, VECTOR)
    y_ptrs = y_ptr + _align(rows * n_cols, VECTOR)
    cols = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    x = tl.load(x_ptrs + cols, mask=there, other=0.0)
    total = tl.sum(x.to(tl.float32), axis=1)[:, None]
    if REST > 0:
        rest = BLOCK + tl.arange(0, REST)[None, :]  # [1, REST]
        in_row = rest < _align(n_cols, VECTOR)
        x_rest = tl.load(x_ptrs + rest, mask=there & in_row, other=0.0)
        total += tl.sum(x_rest.to(tl.float32), axis=1)[:, None]
    mean = tl.div_rn(total, tl.cast(n_cols, tl.float32))
    x = _hold(x, HOLD)
    d = x.to(tl.float32) - mean
    m2 = tl.sum(d * d, axis=1)[:, None]
    if REST > 0:
        x_rest = _hold(x_rest, HOLD)
        d = tl.where(in_row, x_rest.to(tl.float32) - mean, 0.0)
        m2 += tl.sum(d * d, axis=1)[:, None]
    rstd = tl.rsqrt(m2 / n_cols + eps)
    if stats_ptr is not None:
        tl.store(stats_ptr + rows, mean, mask=there)
        tl.store(stats_ptr + n_rows + rows, rstd, mask=there)
    y = _scale(_hold(x, HOLD), mean, rstd, weight_ptr + cols, bias_ptr + cols, None, "")
    tl.store(y_ptrs + cols, y, mask=there)
    if REST > 0:
        x_rest = _hold(x_rest, HOLD)
        y = _scale(x_rest, mean, rstd, weight_ptr + rest, bias_ptr + rest, in_row, "")
        tl.store(y_ptrs + rest, y, mask=there & in_row)

@triton.jit
def layer_norm_long_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, stats_ptr, stride_xm, n_rows, n_cols, eps, shift,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, PEEL: tl.constexpr):
    """One row a program, walked along twice; `WIDTH`, of whole blocks, is n_cols, or 0: any."""
    row = tl.program_id(0).to(tl.int64)
    head, body, edge, in_edge = _peel(row, n_cols, VECTOR, PEEL)
    body = WIDTH if WIDTH > 0 else body
    x_ptr += _align(row * stride_xm + head, VECTOR)
    y_ptr += _align(row * n_cols + head, VECTOR)
    weight_ptr, bias_ptr = weight_ptr + head * shift, bias_ptr + head * shift
    firsts = tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR  # [VECTORS, 1]
    lanes = firsts + tl.arange(0, VECTOR)[None, :]  # [VECTORS, VECTOR]
    means, m2s = tl.zeros_like(firsts).to(tl.float32), tl.zeros_like(firsts).to(tl.float32)
    for start in range(0, body, BLOCK):
        mask = firsts == firsts if WIDTH > 0 else start + firsts < body  # true: none is needed
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0.0, eviction_policy="evict_last")
        x = x.to(tl.float32)
        # Welford's merge with one vector more
        mean = tl.sum(x, axis=1)[:, None] / VECTOR
        share, delta = BLOCK / (start + BLOCK), tl.where(mask, mean - means, 0.0)
        m2 = tl.sum((x - mean) * (x - mean), axis=1)[:, None]
        means += delta * share
        m2s += m2 + delta * delta * ((1 - share) * VECTOR)
    counts = (tl.cdiv(body - firsts, BLOCK) * VECTOR).to(tl.float32)
    total = tl.sum(counts * means)
    if PEEL:
        x_edge = tl.load(x_ptr + edge, mask=in_edge, other=0.0).to(tl.float32)
        total += tl.sum(x_edge)
    mean = tl.div_rn(total, tl.cast(n_cols, tl.float32))
    m2 = tl.sum(m2s + counts * (means - mean) * (means - mean))
    if PEEL:
        d = tl.where(in_edge, x_edge - mean, 0.0)
        m2 += tl.sum(d * d)
    rstd = tl.rsqrt(m2 / n_cols + eps)
    if stats_ptr is not None:
        tl.store(stats_ptr + row, mean)
        tl.store(stats_ptr + n_rows + row, rstd)
    for start in range(0, body, BLOCK):
        cols, mask = start + lanes, firsts == firsts if WIDTH > 0 else start + firsts < body
        x = tl.load(x_ptr + cols, mask=mask, eviction_policy="evict_first")
        y = _scale(x, mean, rstd, weight_ptr + cols, bias_ptr + cols, mask, "evict_last")
        tl.store(y_ptr + cols, y, mask=mask, eviction_policy="evict_first")
    if PEEL:
        y = _scale(x_edge, mean, rstd, weight_ptr + edge, bias_ptr + edge, in_edge, "")
        tl.store(y_ptr + edge, y, mask=in_edge)

def _vectors(itemsize: int, n_cols: int, *strides: int) -> tuple[int, bool]:
    # elements of a vector, 16 bytes or one element, and whether rows must be peeled for it
    vector, peel = 16 // itemsize, n_cols % (16 // itemsize) > 0
    if any((stride - n_cols) % vector for stride in strides) or (peel and n_cols < 256):
        return 1, False
    return vector, peel

@triton.jit
def shift_kernel(weight_ptr, bias_ptr, out_ptr, n_cols, shift, BLOCK: tl.constexpr):
    """Eight copies of weight, of bias, `shift - 1` apart: number i of copy i is at i * shift."""
    cols, copy = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    mask = cols < n_cols
    out_ptr += copy * (shift - 1) + cols
    tl.store(out_ptr, tl.load(weight_ptr + cols, mask=mask), mask=mask)
    tl.store(out_ptr + 8 * shift, tl.load(bias_ptr + cols, mask=mask), mask=mask)

@functools.lru_cache(maxsize=1024)
def _plan(stride: int, n_rows: int, n_cols: int, size: int) -> tuple:
    # the kernel, its number of programs, the numbers behind eps, and options
    (vector, peel), row_bytes = _vectors(size, n_cols, stride), n_cols * size
    num_warps = 4 if row_bytes < 16384 else 16 if row_bytes <= 32768 else 32
    step = 512 * num_warps  # bytes, a vector a thread
    known = vector > 1 and row_bytes % step == 0 and 2 <= row_bytes // step <= 8
    known &= row_bytes >= 32768 or row_bytes & (row_bytes - 1) > 0
    if peel or known or row_bytes > 32768:
        if peel:
            level = (row_bytes // 8192).bit_length()
            num_warps = 1 << min(5, level + (level > 0))
            step = max(2048 << min(level, 2), 512 * num_warps)
            step = min(step, 1 << (row_bytes * 4 // 3).bit_length() - 1)
        # copies of weight and bias pay in large tensors; the interpreter tests them on small ones
        copy = peel and (n_rows * n_cols > 2**24 or triton.knobs.runtime.interpret)
        shift = n_cols // 16 * 16 + 16 if copy else 1
        constants = shift, step // size, known * n_cols, vector, peel
        return layer_norm_long_kernel, n_rows, constants, {"num_warps": num_warps}
    block = 1 << n_cols.bit_length() - 1
    rest = 1 << (n_cols - block - 1).bit_length() if n_cols > block else 0
    rows = max(1, 512 // block) if block <= 512 else 2 if block <= 4096 and not rest else 1
    options = {"num_warps": 1 if block <= 512 else min(16, max(4, rows * block // 1024))}
    hold = size == 2 and vector > 1 and block >= 4096 and not triton.knobs.runtime.interpret
    if hold:
        num_warps, rest = min(8, options["num_warps"]), max(rest, 1024) if rest else 0
        maxnreg = 64 if rows * block + rest <= 1280 * num_warps else 80
        options = {"num_warps": num_warps, "maxnreg": maxnreg}
    return layer_norm_kernel, -(-n_rows // rows), (rows, block, rest, vector, hold), options

def layer_norm_forward(x, weight, bias, eps, y, stats=None) -> None:
    """Writes y, and float32 stats if given; all contiguous, though rows of x may be apart."""
    sizes = x.stride(0), *x.shape
    kernel, programs, constants, options = _plan(*sizes, x.element_size())
    if kernel is layer_norm_long_kernel and (shift := constants[0]) > 1:
        copies, grid = weight.new_empty(16, shift), (triton.cdiv(x.shape[1], 1024), 8)
        shift_kernel[grid](weight, bias, copies, x.shape[1], shift, BLOCK=1024)
        weight, bias = copies[0], copies[8]
    kernel[(programs,)](x, weight, bias, y, stats, *sizes, eps, *constants, **options)

# %% [markdown]
# ## Backward: what it has to compute
#
# With $g_j = \gamma_j \, dy_j$, $r = 1/\sqrt{\sigma^2 + \varepsilon}$ the chain rule gives
#
# $$
# dx_j = r \Bigl( g_j - \overline{g} - \hat x_j \, \overline{g \hat x} \Bigr), \qquad
# \overline{g} = \frac1n \sum_j g_j, \quad \overline{g \hat x} = \frac1n \sum_j g_j \hat x_j ,
# $$
#
# and, over all rows $i$, $\; d\gamma_j = \sum_i dy_{ij} \, \hat x_{ij}$ and $\; d\beta_j = \sum_i dy_{ij}$. The first is row work, like the forward. The other two sum down the columns, across [programs](../glossary.md#program):
#
# - **[Atomics](../glossary.md#atomic-operation).** Each row is added with `tl.atomic_add`: at 8,192² 134 million additions to 64 KiB, in the order in which programs finish, which **changes the bits**.
# - **A lock.** [Triton's tutorial](https://triton-lang.org/main/getting-started/tutorials/05-layer-norm.html) adds row $i$ to buffer $i \bmod G$ under a lock: a program repeats `tl.atomic_cas(lock, 0, 1)` until it finds 0, adds its row to what lies there, lets all its threads meet (`tl.debug_barrier()`), and frees the lock by `tl.atomic_xchg(lock, 0)`. Programs of the same buffer wait meanwhile, and the bits follow the order of arrival. One thread frees the lock: without the barrier, [added later](https://github.com/triton-lang/triton/pull/6307), other warps may still be storing, and a copy of the older code [erred in 99 runs of 100](https://github.com/meta-pytorch/tritonbench/pull/1266).
# - **Two stages.** A few programs take many rows each, keep **sums of their own in registers**, and write them at the end; a second, small kernel adds these in a fixed order. Liger's kernel became [5 to 12 times faster](https://github.com/linkedin/Liger-Kernel/pull/945) on large inputs when it left atomics.
#
# {{ diagram("layer_norm_stages") }}
#
# The first stage is a [persistent kernel](../glossary.md#persistent-kernel): as many programs as run at once, each walking down the rows with its sums in registers. Three things keep the price down:
#
# - **Few programs, much work each.** Two float32 sums of 8,192 columns are 64 KiB, a quarter of an [SM](../glossary.md#sm)'s registers. Those of 16,384 take half, so the weight is not kept but loaded for each row (`KEEP`).
# - **Rows are fetched ahead.** `num_stages` in `tl.range` makes the compiler load the next ones into [shared memory](../glossary.md#shared-memory).
# - **Both row sums at once.** Reduced as a pair, they make the [warps](../glossary.md#warp) meet once, not twice.
#
# **A row too long for one program** is shared, since its sums must lie in registers: `PARTS` programs hold a part each, publish their two sums, and wait for those of the others, in a line of assembly, as a `while` would end the [pipelining](../glossary.md#pipelining). Can it hang, if a part finds no room to start? Programs draw their place as a *ticket*, when they start. So all parts of earlier groups have started, wait for nobody else, and finish: that makes room for the next. (With one such launch at a time: two on two streams, both with rows longer than half of what fits, could hold each other up.) If the width is odd, a program's rows are a multiple of 8 `apart` and begin at the same place of a vector; their edges are loaded without pipelining. 5,120 columns are a block of 4,096 and a `REST` of 1,024.

# %% tags=["copy"]
@triton.jit
def _place(slots_ptr, PARTS: tl.constexpr, WAIT: tl.constexpr):
    # a program's group, its part of that group's rows, and the number of groups
    place = tl.program_id(0)
    if PARTS > 1 and WAIT:
        place = tl.atomic_add(slots_ptr, 1).to(tl.int32)
    return place // PARTS, place % PARTS, tl.num_programs(0) // PARTS

@triton.jit
def _meet(slot_ptr, part, a, b, PARTS: tl.constexpr, WAIT: tl.constexpr):
    # both in one 64-bit word, so that no one sees one without the other; its last bit says: there
    word = (a.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | 1
    word |= b.to(tl.uint32, bitcast=True).to(tl.uint64)
    tl.atomic_xchg(slot_ptr + part, word.to(tl.int64, bitcast=True), sem="relaxed")
    parts = tl.arange(0, triton.next_power_of_2(PARTS))
    ptrs = slot_ptr + tl.minimum(parts, PARTS - 1)
    if WAIT:
        words = tl.inline_asm_elementwise(
            "{ .reg .pred %p; again: ld.relaxed.gpu.global.b64 $0, [$1];"
            " setp.eq.s64 %p, $0, 0; @%p bra again; }",
            "=l,l", [ptrs.to(tl.int64)], tl.int64, False, 1)  # fmt: skip
    else:
        words = tl.load(ptrs)
    words = tl.where(parts < PARTS, words, 0).to(tl.uint64, bitcast=True)
    a = (words >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return a, (words & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)

@triton.jit
def _terms(x, dy, mean, rstd, weight, HOLD: tl.constexpr):
    x, dy, weight = _hold(x, HOLD), _hold(dy, HOLD).to(tl.float32), _hold(weight, HOLD)
    return (x.to(tl.float32) - mean) * rstd, dy, dy * weight.to(tl.float32)

@triton.jit
def _begin(row, stride, lanes, apart, head, VECTOR: tl.constexpr):
    # where rows begin, from `row` on, `apart` from each other; past 2**31 in large tensors
    offset = _align(tl.cast(row, tl.int64) * stride + head, VECTOR)
    return offset + lanes * _align(tl.cast(apart, tl.int64) * stride, VECTOR)

@triton.jit
def layer_norm_bwd_kernel(
    x_ptr, dy_ptr, weight_ptr, stats_ptr, dx_ptr, sums_ptr, slots_ptr, stride_xm, stride_dym,
    n_rows, n_cols, ROWS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
    VECTOR: tl.constexpr, PEEL: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    HOLD: tl.constexpr, KEEP: tl.constexpr, WAIT: tl.constexpr):  # fmt: skip
    """Gradient of some rows, and `[programs // PARTS, 2, n_cols]`: their sums for both weights."""
    group, part, groups = _place(slots_ptr, PARTS, WAIT)
    first, apart = (group, groups) if PEEL else (group * ROWS, 1)
    lanes = tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    head, body, rest, in_rest = _peel(group, n_cols, VECTOR, PEEL)
    in_rest &= part == 0
    cols = part * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    in_row = cols < body
    weight = tl.load(weight_ptr + head + cols, mask=in_row, other=0.0)
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    if REST > 0:
        if not PEEL:
            rest = BLOCK + tl.arange(0, REST)[None, :]  # [1, REST]
            in_rest = rest < body
        w_rest = tl.load(weight_ptr + head + rest, mask=in_rest, other=0.0)
        dweight_rest = tl.zeros([ROWS, REST], tl.float32)
        dbias_rest = tl.zeros([ROWS, REST], tl.float32)
    for start in tl.range(first, n_rows, groups * ROWS, num_stages=STAGES):
        rows = start + lanes * apart
        there = rows < n_rows
        x_ptrs = x_ptr + _begin(start, stride_xm, lanes, apart, head, VECTOR)
        dy_ptrs = dy_ptr + _begin(start, stride_dym, lanes, apart, head, VECTOR)
        dx_ptrs = dx_ptr + _begin(start, n_cols, lanes, apart, head, VECTOR)
        if REST > 0:
            x_rest = tl.load(x_ptrs + rest, mask=there & in_rest, other=0.0)
            dy_rest = tl.load(dy_ptrs + rest, mask=there & in_rest, other=0.0)
        x = tl.load(x_ptrs + cols, mask=there & in_row, other=0.0)
        dy = tl.load(dy_ptrs + cols, mask=there & in_row, other=0.0)
        mean = tl.load(stats_ptr + rows, mask=there, other=0.0)
        rstd = tl.load(stats_ptr + n_rows + rows, mask=there, other=0.0)
        held = weight if KEEP else tl.load(weight_ptr + head + cols, mask=in_row, other=0.0)
        x_hat, _, g = _terms(x, dy, mean, rstd, held, HOLD)
        g_sum, gx_sum = tl.split(tl.sum(tl.join(g, g * x_hat), axis=1))  # [ROWS] each
        if REST > 0:
            x_rest, dy_rest, g_rest = _terms(x_rest, dy_rest, mean, rstd, w_rest, False)
            # + 0.0: products are rounded before they are added, so all lanes agree on the bits
            g_sum += tl.sum(g_rest + 0.0, axis=1)
            gx_sum += tl.sum(g_rest * x_rest + 0.0, axis=1)
        if PARTS > 1:
            slot_ptr = slots_ptr + 1 + tl.cast(start, tl.int64) * PARTS
            g_sum, gx_sum = _meet(slot_ptr, part, tl.sum(g_sum), tl.sum(gx_sum), PARTS, WAIT)
            g_mean, gx_mean = tl.sum(g_sum) / n_cols, tl.sum(gx_sum) / n_cols
        else:
            g_mean, gx_mean = g_sum[:, None] / n_cols, gx_sum[:, None] / n_cols
        held = weight if KEEP else tl.load(weight_ptr + head + cols, mask=in_row, other=0.0)
        x_hat, dy, g = _terms(x, dy, mean, rstd, held, HOLD)
        dx = (g - g_mean - x_hat * gx_mean) * rstd
        tl.store(dx_ptrs + cols, dx, mask=there & in_row)
        dweight += dy * x_hat
        dbias += dy
        if REST > 0:
            dx = (g_rest - g_mean - x_rest * gx_mean) * rstd
            tl.store(dx_ptrs + rest, dx, mask=there & in_rest)
            dweight_rest += dy_rest * x_rest
            dbias_rest += dy_rest
    sums_ptr += group.to(tl.int64) * 2 * n_cols + head
    tl.store(sums_ptr + cols, tl.sum(dweight, axis=0)[None, :], mask=in_row)
    tl.store(sums_ptr + n_cols + cols, tl.sum(dbias, axis=0)[None, :], mask=in_row)
    if REST > 0:
        tl.store(sums_ptr + rest, tl.sum(dweight_rest, axis=0)[None, :], mask=in_rest)
        tl.store(sums_ptr + n_cols + rest, tl.sum(dbias_rest, axis=0)[None, :], mask=in_rest)

@triton.jit
def layer_norm_bwd_columns_kernel(
    sums_ptr, dweight_ptr, dbias_ptr, n_sums, n_cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Adds `[n_sums, 2, n_cols]` down the first dimension; the grid is (columns, 2)."""
    which = tl.program_id(1)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]  # [1, COLS]
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, n_sums, ROWS):
        rows = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        mask = (rows < n_sums) & (cols < n_cols)
        acc += tl.load(sums_ptr + (2 * rows + which) * n_cols + cols, mask=mask, other=0.0)
    out_ptr = dweight_ptr if which == 0 else dbias_ptr
    tl.store(out_ptr + cols, tl.sum(acc, axis=0)[None, :], mask=cols < n_cols)

def layer_norm_backward(x, dy, weight, stats, dx, dweight, dbias) -> None:
    """Writes the three gradients; arguments as for `layer_norm_forward`, and dy is like x."""
    (n_rows, n_cols), size = x.shape, x.element_size()
    strides, interpreted = (x.stride(0), dy.stride(0)), triton.knobs.runtime.interpret
    vector, peel = _vectors(size, n_cols, *strides)
    body = n_cols // vector * vector
    # the registers of a multiprocessor hold the sums of so many columns
    most = 16384 // size
    hold = size == 2 and vector > 1 and n_cols > most and not (peel or interpreted)
    alone = hold and n_cols <= 2 * most  # such a row fills a multiprocessor
    block = min(max(16, triton.next_power_of_2(body)), most // 2 if peel else most << alone)
    parts, rest = triton.cdiv(body, block), 2 * vector if peel else 0
    if most // 2 < n_cols <= most * 5 // 8 and not peel:  # else three of eight lanes idle
        block, rest = most // 2, most // 8
    tile = max(block, most if block > most // 4 and not rest else most // 2)
    rows = min(tile // block, 4 if peel else tile)
    groups = max(1, min(_sms(x) * max(1, most // tile) // parts, triton.cdiv(n_rows, rows)))
    groups = max(vector, groups // vector * vector) if peel else groups
    stages, maxnreg = (2, 255) if alone else (3 if n_cols == block else 4, None)
    num_warps = 8 if tile >= most else 4
    sums = torch.empty(groups, 2, n_cols, dtype=torch.float32, device=x.device)
    slots = x.new_zeros(1 + n_rows * parts, dtype=torch.int64) if parts > 1 else None
    # the interpreter runs programs in turn and cannot wait: the second time every part is there
    for _ in range(2 if interpreted and parts > 1 else 1):
        layer_norm_bwd_kernel[(groups * parts,)](
            x, dy, weight, stats, dx, sums, slots, *strides, n_rows, n_cols, ROWS=rows, BLOCK=block,
            REST=rest, VECTOR=vector, PEEL=peel, PARTS=parts, STAGES=stages, HOLD=hold,
            KEEP=not alone, WAIT=not interpreted, num_warps=num_warps, maxnreg=maxnreg)  # fmt: skip
    cols = 32 if n_cols <= 4096 else 128
    layer_norm_bwd_columns_kernel[(triton.cdiv(n_cols, cols), 2)](
        sums, dweight, dbias, groups, n_cols, ROWS=4096 // cols, COLS=cols)  # fmt: skip

def _sms(x):  # multiprocessors; 4 in the interpreter
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4

def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[n_rows, n_cols]` with adjacent columns: a view where there is one, else a copy."""
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()

def _forward(x, weight, bias, eps, keep):
    y, x = torch.empty_like(x, memory_format=torch.contiguous_format), _rows(x)
    stats = torch.empty(2, len(x), dtype=torch.float32, device=x.device) if keep else None
    with torch.cuda.device_of(x):
        layer_norm_forward(x, weight, bias, eps, y, stats)
    return y, x, stats

class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, rows, stats = _forward(x, weight, bias, eps, keep=True)
        ctx.save_for_backward(rows, weight, stats)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, stats = ctx.saved_tensors
        dx = torch.empty(dy.shape, dtype=x.dtype, device=x.device)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        with torch.cuda.device_of(x):
            layer_norm_backward(x, _rows(dy), weight, stats, dx, dweight, dbias)
        return dx, dweight, dbias, None

def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """LayerNorm over the last dimension, in float32; differentiable once, deterministically.

    Args:
        x: `(..., n_cols)`, float32, float16 or bfloat16, on a GPU; copied if columns are apart.
        weight: `(n_cols,)`, one of the three dtypes; it may differ from that of `x`.
        bias: Like weight.
        eps: Added to the variance.

    Returns:
        A contiguous tensor with the shape and dtype of `x`.

    Raises:
        TypeError: A dtype is none of the three, or weight and bias have two.
        ValueError: Shapes or devices do not fit, or rows have more than 2**30 columns, or with
            gradients more than 16 KiB for each multiprocessor.
    """
    for given in (x.dtype, weight.dtype, bias.dtype):
        if given not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"layer_norm takes float32, float16 or bfloat16, got {given}")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"layer_norm needs a GPU, not {x.device}, or TRITON_INTERPRET=1")
    if x.dim() == 0:
        raise ValueError("layer_norm needs at least one dimension, got a scalar")
    n_cols = x.shape[-1]
    for name, t in (("weight", weight), ("bias", bias)):
        if t.shape != (n_cols,) or t.device != x.device:
            given = f"{tuple(t.shape)} on {t.device}"
            raise ValueError(f"{name} must be ({n_cols},) on {x.device}, got {given}")
    if weight.dtype != bias.dtype:
        raise TypeError(f"weight and bias must agree, got {weight.dtype} and {bias.dtype}")
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias))
    most = _sms(x) * 16384 // x.element_size() if wanted and n_cols > 2**15 else 2**30
    if n_cols > most:
        raise ValueError(f"layer_norm takes rows up to {most}{', with gradients' * wanted}")
    if not x.numel():
        return (x * weight + bias).to(x.dtype)  # empty too, and autograd knows its gradient
    weight, bias = weight.contiguous(), bias.contiguous()
    if wanted:
        return _LayerNorm.apply(x, weight, bias, eps)
    return _forward(x, weight, bias, eps, keep=False)[0]

# %% [markdown]
# ## Is it right?
#
# `check` compares with float64. One row lies at +100, one is constant. Inputs are slices of wider matrices, outputs [poisoned](../glossary.md#poison-and-guard) with NaN, and the backward runs twice: the same bits must come. It prints the largest errors, in percent of those allowed (`rtols`).

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares outputs and gradients with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    def poisoned(*shape, dtype):
        n = torch.Size(shape).numel()
        buffer = torch.full((n + 9999,), torch.nan, device=device).to(dtype)
        return buffer[:n].view(shape), buffer[n:]

    rtols = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    shapes = [(1, 1), (67, 129), (67, 259), (9, 1000), (9, 2400)]
    large = [(3, 16391), (4099, 1024), (1000, 8192), (1500, 12289), (1000, 16384), (300, 131072)]
    shapes += large if device == "cuda" else [(3, 8199), (3, 16384)]
    print("error / allowed " + "".join(f"{str(dtype)[6:]:>24}" for dtype in rtols))
    print(f"{'rows x columns':>16}" + f"{'y':>6}{'dx':>6}{'dw':>6}{'db':>6}" * len(rtols))
    for n_rows, n_cols in shapes:
        line = f"{n_rows:>6} x {n_cols:<7}"
        for dtype, rtol in rtols.items():
            x, dy = torch.randn(2, n_rows, n_cols + 8, device=device).to(dtype)[..., :n_cols]
            x[0], x[-1] = x[0] + 100, 3
            weight, bias = torch.randn(2, n_cols, device=device).to(dtype)
            inputs = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
            y64 = layer_norm_reference(*inputs)
            want = [y64.detach(), *torch.autograd.grad(y64, inputs, dy.double())]
            sizes = [x.shape, x.shape, weight.shape, bias.shape]
            outs, guards = zip(*(poisoned(*s, dtype=dtype) for s in sizes), strict=True)
            stats, stats_guard = poisoned(2, n_rows, dtype=torch.float32)
            layer_norm_forward(x, weight, bias, 1e-5, outs[0], stats)
            step_1 = layer_norm_row(x.contiguous(), weight, bias) if n_cols < 32768 else outs[0]
            layer_norm_backward(x, dy, weight, stats, *outs[1:])
            again = [poisoned(*s, dtype=dtype)[0] for s in sizes[1:]]
            layer_norm_backward(x, dy, weight, stats, *again)
            assert all(map(torch.equal, again, outs[1:])), "two runs differ in their bits"
            assert all(g.isnan().all() for g in (*guards, stats_guard)), "written past the end"
            # in dx terms cancel, with one column all: its error is relative to them
            rstd = (inputs[0].detach().var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
            compared = [want[0], want[0], rstd * (inputs[1].detach() * dy), *want[2:]]
            results = zip((step_1, *outs), want[:1] + want, compared, strict=True)
            for i, (got, exact, terms) in enumerate(results):
                scale = terms.abs().amax(dim=-1, keepdim=True) + 1e-3
                error = ((got.double() - exact).abs() / (rtol * scale)).max().item()
                line += f"{error:>6.0%}" if i else ""
                assert error <= 1, f"{dtype} is off by {error:.0%}:\n{line}"
        print(line)

if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Forward moves two matrices, with the gradient it is five. 768 columns are the width of BERT-base and of the smallest GPT-2, 1,024 of BERT-large, 4,096 and 12,288 of GPT-3 with 6.7 and 175 billion parameters ([Brown et al., 2020](https://arxiv.org/abs/2005.14165), table 2.1); 12,289 is the last and one, an odd width. Predict: which comes closer to a copy?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    grad = torch.autograd.grad
    def torch_layer_norm(x, weight, bias):
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)

    def benchmark(name, title, gradient, shapes, host=False):
        rows = []
        for n_rows, n_cols in shapes:
            torch._dynamo.reset()  # after eight shapes of a function torch no longer compiles it
            compiled = torch.compile(torch_layer_norm, mode="max-autotune-no-cudagraphs")
            fns = {"triton": layer_norm, "torch": torch_layer_norm, "torch_compile": compiled}
            if not gradient:
                fns["triton_one_row"] = layer_norm_row
                if n_cols == 768:
                    fns["torch_unfused"] = layer_norm_reference
            x, dy = torch.randn(2, n_rows, n_cols, device="cuda").to(torch.bfloat16)
            weight, bias = torch.randn(2, n_cols, device="cuda").to(torch.bfloat16)
            inputs = [tensor.requires_grad_(gradient) for tensor in (x, weight, bias)]
            calls = {p: lambda fn=fn: fn(*inputs) for p, fn in fns.items()}
            if gradient:
                calls = {p: lambda fn=fn: grad(fn(*inputs), inputs, dy) for p, fn in fns.items()}
            nbytes, flops = (n_rows * n_cols * each for each in ((10, 22) if gradient else (4, 8)))
            size = {"n_rows": n_rows, "n_cols": n_cols, "bytes": nbytes, "flops": flops}
            rows += [{"provider": p, **size, **t} for p, t in measure(calls, host=host).items()]
        mode = "forward and backward" if gradient else "forward"
        about = {"name": name, "title": f"LayerNorm {mode}, {title} rows, bfloat16", "x": "n_cols"}
        return about | {"dtype": "bfloat16", "mode": mode, "ceiling": "copy", "rows": rows}

    shapes = [(16384, 768), (16384, 1000), (16384, 1024), (8192, 4096), (16384, 5120)]
    shapes += [(8192, 8192), (8192, 12289), (16384, 16384), (8192, 32768)]
    for name, gradient in (("layer_norm_forward", False), ("layer_norm_gradient", True)):
        yield benchmark(name, "8,192 or 16,384", gradient, shapes)
        yield benchmark(f"{name}_few", "4,096", gradient, [(4096, 16384)])
    yield benchmark("layer_norm_forward_small", "16", False, [(16, 768)], host=True)

# %% [markdown]
# {{ figure("layer_norm_forward", providers=["triton", "torch", "torch_compile"], caption="Forward: near a copy, but for 12,289 columns, where rows begin within vectors. torch.compile is a little ahead from 768 to 1,024 columns, behind elsewhere.") }}
# {{ figure("layer_norm_gradient", caption="With the gradient: ahead of both libraries at every width. (The band at 1,000 columns: a fifth of the calls there took far longer than the median; in the recordings before, none did.)") }}
#
# {% set odd, ours = row("layer_norm_gradient", provider="triton", n_cols=12289), row("layer_norm_gradient", provider="triton", n_cols=8192) -%}At 8,192²: forward {{ row("layer_norm_forward", provider="triton", n_cols=8192).ms | ms }}, {{ row("layer_norm_forward", provider="triton", n_cols=8192).percent | pct }} of a copy's speed; with the gradient {{ ours.ms | ms }}, {{ ours.percent | pct }}. The forward comes closer.{{ claim(row("layer_norm_forward", provider="triton", n_cols=8192).percent > ours.percent + 3) }} {% set nearest = [] %}{% for r in rows("layer_norm_gradient", provider="triton") %}{% for provider, ratio in r.benchmark.peers(r) %}{% set _ = nearest.append(ratio) %}{% endfor %}{% endfor %}With the gradient torch.compile, which is the faster of the two libraries, takes {{ nearest | min | times }} as long or more{{ claim(nearest | min > 1.1) }}{% for r in rows("layer_norm_gradient", provider="torch_compile") %}{{ claim(r.ms < row("layer_norm_gradient", provider="torch", n_cols=r.n_cols).ms) }}{% endfor %}; which of its kernels it picks changes from recording to recording.{% for r in rows("layer_norm_forward", provider="triton") %}{{ claim((r.percent > 90) == (r.n_cols != 12289)) }}{{ claim((0.96 if r.n_cols <= 1024 else 1) < row("layer_norm_forward", provider="torch_compile", n_cols=r.n_cols).ms / r.ms) }}{% endfor %}
#
# ## Where it loses, and why
#
# - **Small inputs**, 16 rows of 768: the time is [the host's](../glossary.md#host-time), and torch's host code is C++. A launch without arguments takes the host {{ (rec("foundations/memory_hierarchy").row("launch_overhead", provider="triton", n_launches=16).host_us / 16) | n(0) }} µs; Triton looks at each of 14 arguments, and the rest is [checks and the output](../foundations/programming_model.py#what-happens-at-the-launch). (What a shape needs is planned once.) Together that is {{ row("layer_norm_forward_small", provider="triton").host_us | n(0) }} µs, more than the 20 that this site aims at; a [CUDA graph](../glossary.md#cuda-graph) hides it.{{ claim(row("layer_norm_forward_small", provider="triton").host_us > 20) }}{{ claim(row("layer_norm_forward_small", provider="torch").host_us < 0.7 * row("layer_norm_forward_small", provider="triton").host_us) }}
#
# {{ table("layer_norm_forward_small", columns=["provider", "ms", "host_us"]) }}
#
# - {% set short, long, wide = row("layer_norm_gradient", provider="triton", n_cols=768), row("layer_norm_gradient", provider="triton", n_cols=32768), row("layer_norm_gradient", provider="triton", n_cols=16384) %}**Short rows** with the gradient: {{ short.percent | pct }} of a copy at 768 columns, where starting three kernels shows.{{ claim(short.percent < 80) }}
# - **Long rows** with the gradient: {{ wide.percent | pct }} of a copy at 16,384 columns, whose sums fill half an SM's registers, and {{ long.percent | pct }} at 32,768, where programs share a row and wait for each other.{{ claim(long.percent < wide.percent - 2 and wide.percent < 88) }}
#
# {{ figure("layer_norm_forward", providers=["triton", "triton_one_row"], caption="Step 1 falls where rows are short or very long, lanes idle, or vectors break. Step 2 gains there; what each of its changes is worth alone is not recorded.") }}{% for n, gain in ((768, 1.5), (1024, 1.3), (5120, 1.05), (12289, 2), (32768, 1.2)) %}{{ claim(row("layer_norm_forward", provider="triton_one_row", n_cols=n).ms > gain * row("layer_norm_forward", provider="triton", n_cols=n).ms) }}{% endfor %}
#
# - **Odd widths**: 12,289 columns come to {{ row("layer_norm_forward", provider="triton", n_cols=12289).percent | pct }} of a copy forward, with the gradient to {{ odd.percent | pct }}. The copies of weight and bias take a launch of a few microseconds, and the edges of each row are loaded number by number, by a few lanes while the others wait. With the gradient three programs share a row and wait for each other. (Of some eighty other divisions none was faster in a trial that is not recorded here.) Pad the width, if the model is yours.{{ claim(odd.percent < 72) }} **Not yet right**: odd widths beyond 2²⁸ columns, where the copies' offsets pass 32 bits.
# - **1,000 columns** fill 97.7 % of their lanes; torch.compile takes {{ (100 - 100 * row("layer_norm_forward", provider="torch_compile", n_cols=1000).ms / row("layer_norm_forward", provider="triton", n_cols=1000).ms) | n(1) }} % less time, {{ (100 - 100 * row("layer_norm_forward", provider="torch_compile", n_cols=768).ms / row("layer_norm_forward", provider="triton", n_cols=768).ms) | n(1) }} % less at 768, {{ (100 - 100 * row("layer_norm_forward", provider="torch_compile", n_cols=1024).ms / row("layer_norm_forward", provider="triton", n_cols=1024).ms) | n(1) }} % at 1,024.{% for n in [768, 1000, 1024] %}{{ claim(row("layer_norm_forward", provider="torch_compile", n_cols=n).ms < row("layer_norm_forward", provider="triton", n_cols=n).ms) }}{% endfor %} At 1,000, of some forty other tiles, numbers of warps and of rows a program, torch.compile's own choice (two rows, two warps) among them, none was clearly faster in trials that are not recorded here. {% set mine, its, even = profile("layer_norm_forward", provider="triton", n_cols=1000), profile("layer_norm_forward", provider="torch_compile", n_cols=1000), profile("layer_norm_forward", provider="triton", n_cols=1024) %}NVIDIA's profiler sees few warps at once: our threads take {{ mine.registers | n(0) }} registers each, and an SM has {{ mine.occupancy | pct }} of the warps that it has room for; at 1,024 columns, where no lane is masked, they take {{ even.registers | n(0) }}, and it has {{ even.occupancy | pct }}.{{ claim(mine.occupancy < 0.7 * even.occupancy) }} But more warps alone are no cure: in the profiler's run torch.compile's search, which chooses anew each time, chose a kernel with {{ its.occupancy | pct }}, and that one took {{ (its.ms / mine.ms) | times }} as long as ours.{{ claim(its.occupancy > 2 * mine.occupancy and its.ms > 1.15 * mine.ms) }}
# - **Few rows**, 4,096 of 16,384 columns, with the gradient: {{ row("layer_norm_gradient_few", provider="triton").percent | pct }} of a copy, since start and end take a larger share.{{ claim(row("layer_norm_gradient_few", provider="triton").percent < wide.percent - 3) }}
#
# {{ profile_source() }}
#
# ## What to remember
#
# 1. Subtract the mean before you square; merge parts with Welford's rule.
# 2. Sums across programs: few programs, sums in registers, added at the end in a fixed order.
# 3. Count the trips: two forward, five with the gradient. What needs more can be made faster.
#
# ## Exercises
#
# ??? question "1 (easy): drop the `tl.where` in `layer_norm_row_kernel`. Which rows are wrong?"
#     ??? success "Answer"
#         Masked [lanes](../glossary.md#lane) add $\mu^2$ each: the variance grows by $\mu^2 (\text{BLOCK} - n)/n$. Rows of mean 0 hide it, and so do widths that are powers of two.
#
# ??? question "2 (medium): at a mean of a million even two passes err. Mend it with one more sum."
#     ??? success "Answer"
#         The rounding of $\mu$ is the same for all $d_j = x_j - \mu$, so their mean $\bar d$, zero on paper, shows it. The variance is $\frac1n\sum d_j^2 - \bar d^2$, with a tiny $\bar d$. Of 1,000 float32 numbers around a million, which lie [1/16 apart](../glossary.md#ulp), it errs by 0.0008 without and 1e-8 with.
#
# ??? question "3 (hard): BERT takes the LayerNorm of `x + r`. Fuse the sum: how many trips less?"
#     ??? success "Answer"
#         Apart five, fused three: load the row of `r` beside `x` and add. The gradient wants $\hat x$: write the sum (a fourth [trip](../glossary.md#trip)), or, if no $\gamma$ is near 0, keep $y$: then $\hat x = (y - \beta)/\gamma$.
#
# ## Use it in your project
#
# `layer_norm(x, norm.weight, norm.bias, norm.eps)`: [API][examples.fusion.layer_norm.layer_norm].
