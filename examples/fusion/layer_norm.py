# %% [markdown]
# ---
# title: LayerNorm
# description: LayerNorm with its gradient, close to a copy's speed, deterministic, for any width.
# tags: [reduction, memory-bound, numerics, autograd]
# prerequisites: [fusion/softmax]
# outcome: Write a normalisation whose gradient sums over rows and columns in one pass over memory.
# ---
#
# # LayerNorm: sums along rows, sums down columns
#
# LayerNorm ([Ba et al., 2016](https://arxiv.org/abs/1607.06450)) moves every row to mean 0 and
# variance 1, then scales and shifts each column by learnt numbers $\gamma$ and $\beta$:
#
# $$
# \mu = \frac1n \sum_j x_j, \quad \sigma^2 = \frac1n \sum_j (x_j - \mu)^2, \quad
# \hat x_j = \frac{x_j - \mu}{\sqrt{\sigma^2 + \varepsilon}},\; y_j = \gamma_j \hat x_j + \beta_j
# $$
#
# Forward that is a [softmax](softmax.py) with other sums, and a variance that can be computed in a
# way that destroys it. But the gradient of $\gamma$ sums down the *columns*, while each
# [program](../glossary.md#program) owns rows. **How do all of them add to the same 8,192 numbers,
# fast, and with the same bits every time?**
#
# ## What it costs: 24 LayerNorms in one BERT forward
#
# BERT-base has twelve blocks with two LayerNorms each ([Devlin et al.,
# 2018](https://arxiv.org/abs/1810.04805)), and one more after the embedding. A batch of 32
# sequences of 512 tokens is a matrix of 16,384 rows and 768 columns, {{ (16384 * 768 * 2) | bytes }}
# in bfloat16. Written as in the formula, in PyTorch's operations, one LayerNorm is
#
# | operation | matrices read | written |
# |---|---|---|
# | `mean = x.mean(-1)`, and later `var = s.mean(-1)` | 1 + 1 | |
# | `d = x - mean`, and later `s = d * d` | 1 + 1 | 1 + 1 |
# | `d * rsqrt(var + eps)`, then `* weight`, then `+ bias` | 1 + 1 + 1 | 1 + 1 + 1 |
# | **together; one fused kernel** | **7; 1** | **5; 1** |
#
# {% set matrix = 16384 * 768 * 2 %}
# {% set bert = row("layer_norm_forward", provider="triton", n_cols=768) %}
# {% set unfused = row("layer_norm_forward", provider="torch_unfused", n_cols=768) %}
# Twelve trips become two ([fusion](../glossary.md#fusion)). For 24 LayerNorms that is
# {{ (24 * 12 * matrix) | bytes }} against {{ (24 * 2 * matrix) | bytes }};
# measured, {{ (24 * unfused.ms) | ms }} against {{ (24 * bert.ms) | ms }}{{ claim(unfused.ms > 4 * bert.ms) }}.
# 24 copies of as many bytes, the [floor](../glossary.md#floor), take {{ (24 * bert.floor_ms) | ms }}.
# For one sentence of 16 tokens the sum is another: 24 KiB cost no time, but every launch does
# ([launch overhead](../glossary.md#launch-overhead)), and seven or one is all that counts.
#
# The gradient needs three trips more: read $x$ and $dy$, write $dx$. On this {{ env.gpu }}, a
# bfloat16 matrix of 8,192² cannot take less than {{ copy_ms(5 * 2**27) | ms }} for all five; torch
# takes {{ row("layer_norm_gradient", provider="torch", n_cols=8192).ms | ms }}.

# %% tags=["copy"]
import torch
import triton
import triton.language as tl

# %% [markdown]
# The specification:

# %%
def layer_norm_reference(x, weight, bias, eps=1e-5):
    """LayerNorm over the last dimension, in plain PyTorch and in the precision of `x`."""
    d = x - x.mean(dim=-1, keepdim=True)
    var = (d * d).mean(dim=-1, keepdim=True)
    return d * (var + eps).rsqrt() * weight + bias

# %% [markdown]
# ## Three ways to a variance, one of them wrong
#
# - **Mean of squares minus square of the mean.** $\frac1n\sum x_j^2 - \mu^2$ is the same on paper,
#   and needs both sums at once: one pass.
# - **Two passes**: first $\mu$, then the mean of $(x_j - \mu)^2$.
# - **Welford** ([1962](https://doi.org/10.1080/00401706.1962.10490022)): one pass that keeps, of
#   what it has seen, the count $n$, the mean $\mu$, and $M = \sum (x_j - \mu)^2$. Two such triples
#   merge ([Chan, Golub and LeVeque, 1979](http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf)):
#   with $n = n_a + n_b$ and $\delta = \mu_b - \mu_a$,
#
# $$
# \mu = \mu_a + \delta \, \frac{n_b}{n}, \qquad M = M_a + M_b + \delta^2 \, \frac{n_a n_b}{n} .
# $$
#
# `tl.reduce` takes any merge that may be done in any order. In exact arithmetic all three agree.
# Add 10,000 to every number, which changes no variance, and predict which of them notices.

# %% tags=["copy"]
@triton.jit
def _merge(mean_a, m2_a, n_a, mean_b, m2_b, n_b):
    # both parts may be empty
    share = n_b / tl.maximum(n_a + n_b, 1.0)
    delta = mean_b - mean_a
    return mean_a + delta * share, m2_a + m2_b + delta * delta * n_a * share, n_a + n_b

# %%
@triton.jit
def variance_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    mask = cols < n
    x = tl.load(x_ptr + cols, mask=mask, other=0.0)
    mean = tl.sum(x, axis=0) / n
    tl.store(out_ptr, tl.sum(x * x, axis=0) / n - mean * mean)
    d = tl.where(mask, x - mean, 0.0)
    tl.store(out_ptr + 1, tl.sum(d * d, axis=0) / n)
    one = mask.to(tl.float32)
    _, m2, _ = tl.reduce((x, tl.zeros_like(x), one), axis=0, combine_fn=_merge)
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
# At 10,000 the naive way is off by several times the variance itself. Where it comes out negative,
# the square root makes the row NaN. This is *catastrophic cancellation*:
#
# {{ diagram("layer_norm_cancellation") }}
#
# Subtract first, square afterwards, and the digits survive. A row in
# [registers](../glossary.md#register) costs nothing to look at twice. So: **two passes where the row
# fits on the chip, Welford's merge, a block at a time, where it does not.**
#
# ## Forward: rows in registers
#
# As in [softmax](softmax.py), a program holds its rows in registers and does everything there.
#
# - **Whole vectors.** A thread moves 16 bytes at once, eight bfloat16, where the compiler can prove
#   that eight neighbours share their mask. It knows whether an argument is a multiple of 16, no
#   more. So the launch passes a width of 1,000 as 125 vectors, and the kernel multiplies:
#   `n_vectors * VECTOR` is a multiple of 8 for all to see.
# - **Several rows** of a narrow matrix make a tile `[ROWS, BLOCK]`, else a program has too little
#   to ask for. `weight` and `bias` are loaded once a tile.
# - **Held as they came**: as float32 a row of bfloat16 takes twice the registers. `_hold` makes the
#   compiler convert again instead of keeping both.
#
# `other=0.0` keeps [masked](../glossary.md#mask) lanes out of the sum of $x$, but in $x - \mu$ they
# hold $-\mu$: hence the `tl.where`. Forgetting it is the classic bug of this kernel, and no test
# whose width is a power of two can see it. For the gradient the kernel keeps two numbers a row,
# $\mu$ and $1/\sqrt{\sigma^2 + \varepsilon}$.

# %% tags=["copy"]
@triton.jit
def _hold(x, HOLD: tl.constexpr):
    # the same bits, but the compiler cannot know: what follows from them is computed again
    if HOLD:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    return x


@triton.jit
def layer_norm_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, stats_ptr, stride_xv, n_rows, n_vectors, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """LayerNorm of `ROWS` rows a program; `BLOCK` is at least a row.

    Rows of x are `stride_xv * VECTOR` apart, those of y adjacent. `stats_ptr`: `[2, n_rows]`, the
    means, then the reciprocals of the standard deviations.
    """
    # a product that is known to be a multiple of VECTOR, so that loads are wide
    n_cols = n_vectors * VECTOR
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    cols = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    mask = (rows < n_rows) & (cols < n_cols)
    x = tl.load(x_ptr + rows * (stride_xv * VECTOR) + cols, mask=mask, other=0.0)
    mean = tl.sum(x.to(tl.float32), axis=1)[:, None] / n_cols
    x = _hold(x, HOLD)
    d = tl.where(cols < n_cols, x.to(tl.float32) - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(d * d, axis=1)[:, None] / n_cols + eps)
    tl.store(stats_ptr + rows, mean, mask=rows < n_rows)
    tl.store(stats_ptr + n_rows + rows, rstd, mask=rows < n_rows)
    shift = tl.program_id(1) if VECTOR == 1 else 0  # 0; unknown, so that threads stay side by side
    weight = tl.load(weight_ptr + shift + cols, mask=cols < n_cols).to(tl.float32)
    bias = tl.load(bias_ptr + shift + cols, mask=cols < n_cols).to(tl.float32)
    x = _hold(x, HOLD)
    y = (x.to(tl.float32) - mean) * rstd * weight + bias
    tl.store(y_ptr + rows * n_cols + cols, y, mask=mask)

# %% [markdown]
# ### Rows longer than a block
#
# A row that does not fit is merged block by block: two passes *inside* a block, Welford's merge
# *between* blocks. The second trip through the row starts with its last block, which is the
# likeliest to be in the [L2](../glossary.md#l2) cache still.

# %% tags=["copy"]
@triton.jit
def layer_norm_long_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, stats_ptr, stride_xv, n_rows, n_vectors, eps,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """LayerNorm of one long row a program, `BLOCK` columns at a time; as `layer_norm_kernel`."""
    n_cols = n_vectors * VECTOR
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * (stride_xv * VECTOR)
    y_ptr += row * n_cols
    mean, m2 = 0.0, 0.0
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        x = tl.load(x_ptr + cols, mask, 0.0, eviction_policy="evict_last").to(tl.float32)
        n_new = tl.minimum(n_cols - start, BLOCK).to(tl.float32)
        new_mean = tl.sum(x, axis=0) / n_new
        d = tl.where(mask, x - new_mean, 0.0)
        new_m2 = tl.sum(d * d, axis=0)
        mean, m2, _ = _merge(mean, m2, tl.cast(start, tl.float32), new_mean, new_m2, n_new)
    rstd = tl.rsqrt(m2 / n_cols + eps)
    tl.store(stats_ptr + row, mean)
    tl.store(stats_ptr + n_rows + row, rstd)
    last = (n_cols - 1) // BLOCK * BLOCK
    for start in range(0, n_cols, BLOCK):
        cols = last - start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        x = tl.load(x_ptr + cols, mask=mask, eviction_policy="evict_first").to(tl.float32)
        weight = tl.load(weight_ptr + cols, mask=mask).to(tl.float32)
        bias = tl.load(bias_ptr + cols, mask=mask).to(tl.float32)
        tl.store(y_ptr + cols, (x - mean) * rstd * weight + bias, mask=mask)

# %% [markdown]
# Rows and [warps](../glossary.md#warp) come from trials on this page's GPU.

# %% tags=["copy"]
def _vector(n_cols: int, *tensors: torch.Tensor) -> int:
    """Elements that fill 16 bytes, if every row of every tensor begins at a multiple; else 1."""
    vector = 16 // max(tensor.element_size() for tensor in tensors)
    return vector if all(n % vector == 0 for n in (n_cols, *(t.stride(0) for t in tensors))) else 1


def layer_norm_forward(x, weight, bias, eps, y, stats) -> None:
    """Writes `y`, and to `stats`, float32 `[2, n_rows]`, means and reciprocal deviations.

    All contiguous, save that rows of x, `[n_rows, n_cols]`, may lie any distance apart.
    """
    n_rows, n_cols = x.shape
    size, vector = x.element_size(), _vector(n_cols, x)
    arguments = x, weight, bias, y, stats, x.stride(0) // vector, n_rows, n_cols // vector, eps
    if n_cols * size > 32768:
        block = 16384 // size
        layer_norm_long_kernel[(n_rows,)](*arguments, BLOCK=block, VECTOR=vector, num_warps=8)
        return
    block = triton.next_power_of_2(n_cols)
    rows = max(1, (8192 if block >= 4096 else 2048) // block)
    hold = vector == 8 and block >= 4096 and not triton.knobs.runtime.interpret
    layer_norm_kernel[(triton.cdiv(n_rows, rows),)](
        *arguments, ROWS=rows, BLOCK=block, VECTOR=vector, HOLD=hold,
        num_warps=4 if block < 4096 else 8 if hold else 16,
        maxnreg=None if not hold else 64 if block <= 8192 else 80,
    )  # fmt: skip

# %% [markdown]
# ## Backward: what it has to compute
#
# With $g_j = \gamma_j \, dy_j$ and $r = 1/\sqrt{\sigma^2 + \varepsilon}$, the chain rule through
# mean and variance gives, for every row,
#
# $$
# dx_j = r \Bigl( g_j - \overline{g} - \hat x_j \, \overline{g \hat x} \Bigr), \qquad
# \overline{g} = \frac1n \sum_j g_j, \quad \overline{g \hat x} = \frac1n \sum_j g_j \hat x_j ,
# $$
#
# and, over all rows $i$, $\; d\gamma_j = \sum_i dy_{ij} \, \hat x_{ij}$ and
# $\; d\beta_j = \sum_i dy_{ij}$.
#
# The first is row work, like the forward. The other two sum down the columns, across programs:
#
# - **Atomics.** Each row is added to $d\gamma$ and $d\beta$ with `tl.atomic_add`: at 8,192² 134
#   million additions to 64 KiB, in the order in which programs finish, which **changes the bits**.
# - **A lock.** [Triton's tutorial](https://triton-lang.org/main/getting-started/tutorials/05-layer-norm.html)
#   adds row $i$ to buffer $i \bmod G$, guarded by a lock: taken with `tl.atomic_cas`, given back
#   with `tl.atomic_xchg`. Whoever comes second spins, its registers idle. The order is that of
#   arrival still, so the bits differ still. And locks are easy to get wrong: one thread gives it
#   back while other warps are storing, unless a barrier stands between; in a copy that had lost
#   that line [99 runs of 100 were wrong](https://github.com/meta-pytorch/tritonbench/pull/1266).
# - **Two stages.** A few programs, each with many rows and **sums of its own in registers**,
#   written at its end; a second, small kernel adds them in a fixed order. Liger's kernel [became 5
#   to 12 times faster](https://github.com/linkedin/Liger-Kernel/pull/945) when it left atomics.
#
# {{ diagram("layer_norm_stages") }}
#
# ## Two stages
#
# The first stage is a [persistent kernel](../glossary.md#persistent-kernel): as many programs as
# the chip runs at once, each walking down the rows in steps of their number. In softmax that was a
# loss. Here it pays, for the sums live as long as the program. Three things keep the price down:
#
# - **Few programs, much work each.** Two float32 sums of 8,192 columns are 64 KiB, a quarter of an
#   [SM](../glossary.md#sm)'s registers: one program to an SM, and 32 numbers to a thread.
# - **The next rows are on their way.** `num_stages` in `tl.range` makes the compiler fetch them
#   into [shared memory](../glossary.md#shared-memory) ([pipelining](../glossary.md#pipelining)),
#   else memory would idle while a row's sums are formed.
# - **Both row sums in one go.** To sum a row, warps must meet. Joined in pairs, $\overline{g}$ and
#   $\overline{g \hat x}$ need one meeting, not two.
#
# **A row too long for one program** is shared: `PARTS` programs take 8,192 columns each and publish
# their part of the two sums; each waits until all parts are there. The loads of the next rows are
# under way meanwhile, so the wait costs little. It is a line of assembly because a `while` in the
# loop would keep the compiler from pipelining it. Can it hang? A program takes its place from a
# *ticket*, in the order in which programs start. So whoever waits, waits for programs that have
# started or are the very next to start; those before them need nobody else, finish, and make room.
# Masked lanes load $dy = 0$, so they add nothing.

# %% tags=["copy"]
@triton.jit
def _share(slots_ptr, part, a, b, PARTS: tl.constexpr, WAIT: tl.constexpr):
    # both in one 64-bit word, so that no one sees one without the other; its last bit says: there
    word = (a.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | 1
    word |= b.to(tl.uint32, bitcast=True).to(tl.uint64)
    tl.atomic_xchg(slots_ptr + part, word.to(tl.int64, bitcast=True), sem="relaxed")
    parts = tl.arange(0, triton.next_power_of_2(PARTS))
    ptrs = slots_ptr + tl.minimum(parts, PARTS - 1)
    if WAIT:
        words = tl.inline_asm_elementwise(
            "{ .reg .pred %p; again: ld.relaxed.gpu.global.b64 $0, [$1];"
            " setp.eq.s64 %p, $0, 0; @%p bra again; }",
            "=l,l", [ptrs.to(tl.int64)], tl.int64, False, 1,
        )  # fmt: skip
    else:
        words = tl.load(ptrs)
    words = words.to(tl.uint64, bitcast=True)
    a = (words >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    b = (words & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    return tl.sum(tl.where(parts < PARTS, a, 0.0)), tl.sum(tl.where(parts < PARTS, b, 0.0))


@triton.jit
def layer_norm_bwd_kernel(
    x_ptr, dy_ptr, weight_ptr, stats_ptr, dx_ptr, sums_ptr, slots_ptr, stride_xv, stride_dyv,
    n_rows, n_vectors, ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Gradient of every so many tiles of `ROWS` rows, and what these add to the sums.

    Rows of x and dy are `stride_xv * VECTOR` and `stride_dyv * VECTOR` apart, those of dx adjacent.
    `PARTS * BLOCK` is at least a row; where `PARTS > 1`, `ROWS` is 1, and `slots_ptr` has a zero
    for the ticket and one for every part of every row. `sums_ptr`: float32
    `[num_programs // PARTS, 2, n_cols]`, of dy * x_hat and of dy.
    """
    n_cols = n_vectors * VECTOR
    place = tl.program_id(0)
    if PARTS > 1 and WAIT:
        place = tl.atomic_add(slots_ptr, 1).to(tl.int32)
    group, part = place // PARTS, place % PARTS
    cols = part * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    in_row = cols < n_cols
    weight = tl.load(weight_ptr + cols, mask=in_row, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    step = tl.num_programs(0) // PARTS * ROWS
    for start in tl.range(group * ROWS, n_rows, step, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)[:, None].to(tl.int64)  # [ROWS, 1]
        mask = (rows < n_rows) & in_row
        x = tl.load(x_ptr + rows * (stride_xv * VECTOR) + cols, mask=mask, other=0.0)
        dy = tl.load(dy_ptr + rows * (stride_dyv * VECTOR) + cols, mask=mask, other=0.0)
        mean = tl.load(stats_ptr + rows, mask=rows < n_rows, other=0.0)
        rstd = tl.load(stats_ptr + n_rows + rows, mask=rows < n_rows, other=0.0)
        x_hat, dy = (x.to(tl.float32) - mean) * rstd, dy.to(tl.float32)
        g = dy * weight
        g_sum, gx_sum = tl.split(tl.sum(tl.join(g, g * x_hat), axis=1))  # [ROWS] each
        if PARTS > 1:
            slot_ptr = slots_ptr + 1 + tl.cast(start, tl.int64) * PARTS
            g_sum, gx_sum = tl.sum(g_sum, axis=0), tl.sum(gx_sum, axis=0)
            g_sum, gx_sum = _share(slot_ptr, part, g_sum, gx_sum, PARTS, WAIT)
        else:
            g_sum, gx_sum = g_sum[:, None], gx_sum[:, None]
        dx = (g - g_sum / n_cols - x_hat * (gx_sum / n_cols)) * rstd
        tl.store(dx_ptr + rows * n_cols + cols, dx, mask=mask)
        dweight += dy * x_hat
        dbias += dy
    sums_ptrs = sums_ptr + group.to(tl.int64) * 2 * n_cols + cols
    tl.store(sums_ptrs, tl.sum(dweight, axis=0)[None, :], mask=in_row)
    tl.store(sums_ptrs + n_cols, tl.sum(dbias, axis=0)[None, :], mask=in_row)


@triton.jit
def layer_norm_bwd_columns_kernel(
    sums_ptr, dweight_ptr, dbias_ptr, n_sums, n_cols, ROWS: tl.constexpr, COLS: tl.constexpr
):
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

# %% [markdown]
# The [interpreter](../glossary.md#interpreter) runs programs one after the other, and waiting would
# last for ever: so the kernel runs twice, and the second time every part is in its place.

# %% tags=["copy"]
def layer_norm_backward(x, dy, weight, stats, dx, dweight, dbias) -> None:
    """Writes the three gradients, given what `layer_norm_forward` took and wrote.

    All contiguous, save that rows of x and dy, `[n_rows, n_cols]`, may lie any distance apart.
    """
    n_rows, n_cols = x.shape
    vector, interpreted = _vector(n_cols, x, dy), triton.knobs.runtime.interpret
    # the registers of a multiprocessor hold the sums of so many columns
    most = 16384 // x.element_size()
    block = min(max(16, triton.next_power_of_2(n_cols)), most)
    tile = most if block > most // 4 else most // 2
    rows, parts, warps = tile // block, triton.cdiv(n_cols, block), 8 * tile // most
    groups = max(1, min(_sms(x) * most // tile // parts, triton.cdiv(n_rows, rows)))
    sums = torch.empty(groups, 2, n_cols, dtype=torch.float32, device=x.device)
    slots = x.new_zeros(1 + n_rows * parts, dtype=torch.int64) if parts > 1 else None
    for _ in range(2 if interpreted and parts > 1 else 1):
        layer_norm_bwd_kernel[(groups * parts,)](
            x, dy, weight, stats, dx, sums, slots, x.stride(0) // vector, dy.stride(0) // vector,
            n_rows, n_cols // vector, ROWS=rows, BLOCK=block, VECTOR=vector, PARTS=parts,
            STAGES=3 if n_cols % block == 0 else 4, WAIT=not interpreted, num_warps=warps,
        )  # fmt: skip
    cols = 32 if n_cols <= 4096 else 128
    layer_norm_bwd_columns_kernel[(triton.cdiv(n_cols, cols), 2)](
        sums, dweight, dbias, groups, n_cols, ROWS=4096 // cols, COLS=cols
    )


def _sms(x: torch.Tensor) -> int:
    """Multiprocessors of the GPU that holds `x`; 4 on a CPU, in the interpreter."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4

# %% [markdown]
# ## The function around it
#
# Leading dimensions are folded into rows; a tensor whose columns lie apart is copied first.
# Where no gradient is wanted, autograd is left out: it costs the host microseconds.

# %% tags=["copy"]
def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[n_rows, n_cols]` with adjacent columns: a view where there is one, else a copy."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _forward(x, weight, bias, eps):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x = _rows(x) if x.numel() else x.new_empty(0, x.shape[-1])
    stats = torch.empty(2, len(x), dtype=torch.float32, device=x.device)
    if len(x):
        layer_norm_forward(x, weight, bias, eps, y, stats)
    return y, x, stats


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, rows, stats = _forward(x, weight, bias, eps)
        ctx.save_for_backward(rows, weight, stats)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, stats = ctx.saved_tensors
        dx = torch.empty(dy.shape, dtype=x.dtype, device=x.device)
        if not len(x):
            return dx, torch.zeros_like(weight), torch.zeros_like(weight), None
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        layer_norm_backward(x, _rows(dy), weight, stats, dx, dweight, dbias)
        return dx, dweight, dbias, None


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """LayerNorm over the last dimension, in float32; differentiable once, deterministically.

    Args:
        x: `(..., n_cols)`, float32, float16 or bfloat16, on a GPU; copied if columns are apart.
        weight: `(n_cols,)`, one of the three dtypes; it may differ from that of `x`.
        bias: Likewise, of the dtype of `weight`.
        eps: Added to the variance.

    Returns:
        A contiguous tensor with the shape and dtype of `x`.

    Raises:
        TypeError: A dtype is none of the three, or weight and bias have two.
        ValueError: `x` is not on a GPU or has no dimension; weight or bias lie elsewhere or have
            another shape; a row has more than 16 KiB for each multiprocessor (a million columns).
    """
    for given in (x.dtype, weight.dtype, bias.dtype):
        if given not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"layer_norm takes float32, float16 or bfloat16, got {given}")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"layer_norm needs a GPU, not {x.device}, or TRITON_INTERPRET=1")
    if x.dim() == 0:
        raise ValueError("layer_norm needs at least one dimension, got a scalar")
    n_cols = x.shape[-1]
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (n_cols,) or tensor.device != x.device:
            given = f"{tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be ({n_cols},) on {x.device}, got {given}")
    if weight.dtype != bias.dtype:
        raise TypeError(f"weight and bias must agree, got {weight.dtype} and {bias.dtype}")
    longest = _sms(x) * (16384 // x.element_size())
    if n_cols > max(longest, 2**16):
        raise ValueError(f"layer_norm takes rows of up to {longest:,} columns here, got {n_cols:,}")
    weight, bias = weight.contiguous(), bias.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _LayerNorm.apply(x, weight, bias, eps)
    return _forward(x, weight, bias, eps)[0]

# %% [markdown]
# ## Is it right?
#
# `check` compares outputs and gradients with float64. One row lies at +100, one is constant. Inputs
# are slices of wider matrices, outputs poisoned with NaN, and the backward runs twice: the same
# bits must come. Printed is the largest error in percent of the rounding of the type.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares outputs and gradients with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    # through autograd, three dimensions, the last not adjacent; weights of another dtype
    x = torch.randn(3, 50, 7, device=device).transpose(1, 2).requires_grad_()
    weight, bias = torch.randn(2, 100, device=device).unbind()
    inputs = x, weight[::2].requires_grad_(), bias[:50].requires_grad_()
    dy = torch.randn(3, 50, 7, device=device).transpose(1, 2)
    got = torch.autograd.grad(layer_norm(*inputs, 0.1), inputs, dy)
    want = torch.autograd.grad(layer_norm_reference(*inputs, 0.1), inputs, dy)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    def poisoned(*shape, dtype):
        # an output, and the NaN behind it that must stay
        n = torch.Size(shape).numel()
        buffer = torch.full((n + 9999,), torch.nan, device=device).to(dtype)
        return buffer[:n].view(shape), buffer[n:]

    rtols = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    shapes = [(1, 1), (67, 129), (9, 1000), (2, 16391)]
    if device == "cuda":
        shapes += [(4099, 1024), (1000, 8192), (777, 12289), (1000, 16384), (300, 131072)]
    print("error / allowed     " + "".join(f"{str(dtype)[6:]:>28}" for dtype in rtols))
    print(f"{'rows x columns':>20}" + f"{'y':>7}{'dx':>7}{'dgamma':>7}{'dbeta':>7}" * len(rtols))
    for n_rows, n_cols in shapes:
        line = f"{n_rows:>9} x {n_cols:<8}"
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
            layer_norm_backward(x, dy, weight, stats, *outs[1:])
            again = [poisoned(*s, dtype=dtype)[0] for s in sizes[1:]]
            layer_norm_backward(x, dy, weight, stats, *again)
            assert all(map(torch.equal, again, outs[1:])), "two runs differ in their bits"
            assert all(g.isnan().all() for g in (*guards, stats_guard)), "written past the end"
            for got, exact in zip(outs, want, strict=True):
                # rows differ in size by 1/sqrt(eps)
                scale = exact.abs().amax(dim=-1, keepdim=True) + 1e-3
                error = ((got.double() - exact).abs() / (rtol * scale)).max().item()
                line += f"{error:>7.0%}"
                assert error <= 1, f"{dtype} is off:\n{line}"
        print(line)

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Before you look: forward moves two matrices, with the gradient five. Which comes closer to a copy
# of its bytes, and where do you expect the libraries to have left something?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from torch.autograd import grad

    def torch_layer_norm(x, weight, bias):
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)

    def benchmark(name, title, gradient, shapes, host=False):
        rows = []
        for n_rows, n_cols in shapes:
            torch._dynamo.reset()  # after eight shapes of a function torch no longer compiles it
            compiler = {"mode": "max-autotune-no-cudagraphs", "dynamic": False}
            compiled = torch.compile(torch_layer_norm, **compiler)
            fns = {"triton": layer_norm, "torch": torch_layer_norm, "torch_compile": compiled}
            if not gradient and n_cols in (768, 8192):
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
        about = {"name": name, "title": f"LayerNorm {mode}, {title} rows of bfloat16"}
        about |= {"x": "n_cols", "dtype": "bfloat16", "mode": mode, "ceiling": "copy"}
        return about | {"rows": rows}

    shapes = [(16384, 768), (16384, 1000), (16384, 1024), (8192, 4096), (16384, 5120)]
    shapes += [(8192, 8192), (8192, 12289), (16384, 16384), (8192, 32768)]
    for gradient, what in ((False, "forward"), (True, "gradient")):
        yield benchmark(f"layer_norm_{what}", "8,192 or 16,384", gradient, shapes)
        yield benchmark(f"layer_norm_{what}_few", "4,096", gradient, [(4096, 16384)])
        yield benchmark(f"layer_norm_{what}_small", "16", gradient, [(16, 768)], host=True)

# %% [markdown]
# {{ figure("layer_norm_forward", providers=["triton", "torch", "torch_compile"],
#    caption="Forward: near a copy where a row fills its block; odd widths fall behind.") }}
# {{ figure("layer_norm_gradient",
#    caption="With the gradient: ahead of both libraries where rows begin at whole vectors.") }}
#
# {% for n in (1024, 4096, 8192, 16384) -%}
# {% set ours = row("layer_norm_gradient", provider="triton", n_cols=n) -%}
# - {{ ours.n_rows }} × {{ n }}: forward {{ row("layer_norm_forward", provider="triton", n_cols=n).ms | ms }};
#   with the gradient {{ ours.ms | ms }}, {{ ours.percent | pct }} of the copy's speed
#   {%- for name, ratio in ours.benchmark.peers(ours) %}; {{ name | replace("_", ".") }} takes {{ ratio | times }} as long
#   {{- claim(ratio > 1.1) }}{% endfor %} {{- claim(row("layer_norm_forward", provider="triton", n_cols=n).percent > 90) }}
# {% endfor %}
#
# ## Where it loses, and why
#
# - **Small inputs**, 16 rows of 768: the host is what counts, and torch's path is C++.
#
# {{ table("layer_norm_forward_small", columns=["provider", "ms", "host_us"]) }}
#
# - **A second kernel** adds the sums: it counts little at 8,192², more at 16,384 × 1,024.
# - **Forward** torch.compile is ahead at
#   {%- for r in rows("layer_norm_forward", provider="triton") -%}
#   {%- for name, ratio in r.benchmark.peers(r) if name == "torch_compile" and ratio < 0.99 %}
#   {{ r.n_cols }} columns ({{ (100 - 100 * ratio) | pct }} less time),
#   {%- endfor %}{% endfor %}
#   which is where a block is padded (5,120 of 8,192 lanes) or its registers are all taken.
# - **Odd widths**, 12,289: rows begin anywhere, so elements are loaded one by one, and the
#   gradient's loads cannot run ahead of the work. Pad such a model, if it is yours.
# - **Few rows.** 4,096 rows of 16,384 columns are 62 to each pair of programs; the start and the
#   end show: {{ row("layer_norm_gradient_few", provider="triton").percent | pct }} of a copy.
#
# ## What to remember
#
# 1. Subtract the mean before you square; merge parts with Welford's rule.
# 2. Sums across programs: few programs, sums in registers, added at the end in a fixed order.
# 3. Count the trips: two forward, five with the gradient. Whoever needs more leaves an opening.
#
# ## Exercises
#
# ??? question "1 (easy): drop the `tl.where` in `layer_norm_kernel`. Which rows are wrong?"
#
#     ??? success "Answer"
#         Masked lanes add $\mu^2$ each: the variance grows by $\mu^2 (\text{BLOCK} - n)/n$. Rows of
#         mean 0 hide it, and so do widths that are powers of two.
#
# ??? question "2 (medium): at a mean of a million even two passes err. Mend it with one more sum."
#
#     ??? success "Answer"
#         The rounding of $\mu$ is the same for all $d_j = x_j - \mu$, so their mean $\bar d$, zero
#         on paper, shows it. The variance is $\frac1n\sum d_j^2 - \bar d^2$ (the *corrected*
#         algorithm); no digits cancel, since $\bar d$ is tiny.
#
#         ```python
#         import torch
#
#         x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 1e6
#         d = x - x.mean()
#         two, exact = (d * d).mean(), x.double().var(correction=0)
#         corrected = two - d.mean() ** 2
#         print(two.item(), corrected.item(), exact.item())
#         assert abs(corrected - exact) < 1e-6 < abs(two - exact)
#         ```
#
# ??? question "3 (hard): BERT takes the LayerNorm of `x + r`. Fuse the sum: how many trips less?"
#
#     ??? success "Answer"
#         Apart five: two reads and a write, a read and a write. Fused three: in `layer_norm_kernel`
#         load the row of `r` beside that of `x` and add, as float32. The gradient needs $\hat x$:
#         write the sum (a fourth trip), or compute $\hat x = (y - \beta)/\gamma$ from the output.
#
# ## Use it in your project
#
# Copy the file, or the block "Copy this kernel"; it needs torch and triton, nothing else. For a
# `torch.nn.LayerNorm` called `norm`: `y = layer_norm(x, norm.weight, norm.bias, norm.eps)`
# ([API][examples.fusion.layer_norm.layer_norm]).
