# %% [markdown]
# ---
# title: Flash attention, backward
# description: The gradient of exact attention without the N×N matrix, derived line by line, in two deterministic kernels.
# tags: [attention, tensor-core, autograd, recomputation]
# prerequisites: [attention/flash_attention]
# outcome: Derive the gradient of attention, decide what to store and what to compute again, and order products so that the tensor cores take them as they are.
# ---
#
# # Flash attention, backward: computed twice, stored never
#
# [Flash attention](flash_attention.py) gives the output without ever storing the scores. Training
# wants more: from $dO$, the gradient of a loss with respect to the output, those with respect to
# $Q$, $K$ and $V$. Every formula for them contains the matrix of weights $P$, $N^2$ numbers a head,
# and the forward pass threw it away. **Is it cheaper to have kept it?**
#
# ## What it costs
#
# One head of 4,096 tokens, $D = 128$, 16-bit numbers. Five products of $2 N^2 D$ operations follow
# from the derivation below; one of them is the forward's $QK^\top$ again:
#
# | | amount | time on the {{ env.gpu }} of this page |
# |---|---|---|
# | $P$ written by the forward, read by the backward, $4 N^2$ bytes | {{ (4 * 4096**2) | bytes }} | {{ copy_ms(4 * 4096**2) | ms }} at the speed of a copy |
# | $P$ computed again, $2 N^2 D$ | 4.3 GFLOP | {{ (2 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }} at the library's best matrix rate |
# | all five products, $10 N^2 D$ | 21.5 GFLOP | {{ (10 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }} |
# | $Q, K, V, O, dO$ read, $dQ, dK, dV$ written, $16 N D$ bytes | {{ (16 * 4096 * 128) | bytes }} | {{ copy_ms(16 * 4096 * 128) | ms }} |
#
# {{ claim(copy_ms(4 * 4096**2) > 2 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) }}
# To compute $P$ again takes less time than to carry it, and less memory: at 16,384 tokens and 16
# heads, $P$ of one layer would be 8 GiB. So the backward pass stores one number a row and
# *recomputes*. That makes 2.5 times the forward's operations, compute-bound like the forward; the
# yardstick is again the rate of a large product.

# %% tags=["copy"]
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

# %% [markdown]
# ## The reference
#
# Attention as before, with one freedom more: keys may be fewer or more than queries (*cross
# attention*; a cache). Causal then aligns the ends: the last query sees the last key, and query $i$
# the keys up to $i + N_k - N_q$. A query that sees no key gives 0. The gradient of the
# specification is autograd's.


# %%
def flash_attention_reference(q, k, v, *, causal=False, scale=None):
    """Attention in plain PyTorch, differentiable; a query that sees no key gives 0."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(-2, -1) * scale  # [..., n_queries, n_keys]
    if causal:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1 + k.shape[-2] - q.shape[-2])
        scores = scores.masked_fill(future, -1e300 if q.dtype == torch.float64 else -1e30)
        return scores.softmax(dim=-1).masked_fill(future, 0.0) @ v
    return scores.softmax(dim=-1) @ v


# %% [markdown]
# ## The gradient, line by line
#
# The forward is $S = \tau Q K^\top$, $P = \operatorname{softmax}(S)$, $O = P V$. Write $dX$ for the
# gradient of the loss with respect to $X$. For a product $O = PV$ it is the product with the other
# factor, transposed to fit:
#
# $$
# dV = P^\top dO, \qquad dP = dO \, V^\top .
# $$
#
# **Through the softmax.** Take one row: $p_j = e^{s_j} / \sum_k e^{s_k}$. If $s_k$ grows, $p_k$
# grows and every weight shrinks by its share: $\partial p_j / \partial s_k = p_j ([j = k] - p_k)$.
# Each score collects from all weights of its row:
#
# $$
# ds_k = \sum_j dp_j \, p_j \bigl([j = k] - p_k\bigr) = p_k \, (dp_k - \delta),
# \qquad \delta = \sum_j p_j \, dp_j .
# $$
#
# **A sum over the row, without the row.** $\delta$ adds up all keys, and a tile has only some of
# them. But put $dp_j = dO \cdot v_j$ in, and the sum over keys moves inside:
#
# $$
# \delta = \sum_j p_j \, (dO \cdot v_j) = dO \cdot \sum_j p_j v_j = dO \cdot O .
# $$
#
# $O$ is there, from the forward pass. A sum over $N$ keys became one over $D$ numbers, known before
# the first tile. So the backward pass needs no online anything: with the log-sum-exp $L$ that the
# forward kept, a tile's weights are $P = e^{S - L}$ at once, and $dS = P \circ (dP - \delta)$.
#
# **Through the scores.** $S = \tau Q K^\top$ is a product again:
#
# $$
# dQ = \tau \, dS \, K, \qquad dK = \tau \, dS^\top Q .
# $$
#
# Pen and paper: one query, three keys with weights ½, ¼, ¼ and values 4, 2, 6, and $dO = 1$. What
# do the three $ds$ sum to, and why?


# %%
def softmax_gradient(p, values, dout=1.0) -> float:
    """Sum of the gradients of a row's scores; prints each beside the slope of the output."""
    out = sum(weight * value for weight, value in zip(p, values, strict=True))
    total = 0.0
    for k, value in enumerate(values):
        ds = p[k] * (dout * value - dout * out)
        # score k grows by 0.0001: so does its weight, and all of them still sum to 1
        grown = p[k] * math.expm1(1e-4)
        slope = dout * ((out + grown * value) / (1 + grown) - out) / 1e-4
        print(f"key {k}: ds = {p[k]} * ({dout * value} - {dout * out}) = {ds:4}; slope {slope:6.3f}")
        total += ds
    return total


if __name__ == "__main__":
    print("sum of ds:", softmax_gradient([0.5, 0.25, 0.25], [4.0, 2.0, 6.0]))

# %% [markdown]
# They sum to 0: to raise all scores of a row alike changes no weight.
#
# {{ diagram("flash_backward_products") }}
#
# ## What the forward must leave
#
# The kernel of the lecture before, with what a backward pass asks for. The log-sum-exp stays in
# powers of 2, as the kernel has it: $P = 2^{S \tau \log_2 e - L}$ is one multiply-add and one `exp2`
# an element. It is $+\infty$ for a query that sees no key, whose weights are then $2^{-\infty} = 0$.
# And `lse` has room for full tiles (`padded`, a multiple of 128 rows) and is written for them, so
# that no later load needs a [mask](../glossary.md#mask). Sums are float64 where inputs are: tensor
# cores could not, the [interpreter](../glossary.md#interpreter) can, and there `gradcheck` wants it.
#
# Up to key `full` every query of a tile sees every key, from `stop` on none sees any; blocks
# between compare positions, in `_seen`. Causal, the longest tiles of a head start first.


# %% tags=["copy"]
@triton.jit
def _tile(seq_len, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Head and first row of this program; if LAST_FIRST the last tiles of a head start first."""
    tiles = tl.cdiv(seq_len, BLOCK)
    pid = tl.program_id(0)
    tile = tiles - 1 - pid % tiles if LAST_FIRST else pid % tiles
    return pid // tiles, tile * BLOCK


@triton.jit
def _seen(x, other, offs_m, offs_n, n_queries, n_keys, IS_CAUSAL: tl.constexpr):
    """`x` where the query sees the key, else `other`."""
    if IS_CAUSAL:
        seen = offs_n <= offs_m + (n_keys - n_queries)
    else:
        seen = offs_n < n_keys
    return tl.where(seen, x, other)


@triton.jit
def flash_attention_kernel(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, n_heads, n_queries, n_keys, padded, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, MASKED: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one head, and its log-sum-exp to base 2.

    The descriptors describe `[batch, n_heads, rows, HEAD_DIM]` in blocks of `BLOCK_M` or, for keys
    and values, `BLOCK_N` rows; a head has `padded` rows of `lse_ptr`. `scale_log2` is the factor of
    the scores times log2(e), `FLOAT` the dtype of sums; MASKED: the last keys may need a mask.
    """
    head, start_m = _tile(n_queries, BLOCK_M, IS_CAUSAL)
    b, h = head // n_heads, head % n_heads
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    full, stop = n_keys, n_keys
    if IS_CAUSAL:
        full = start_m + 1 + n_keys - n_queries
        stop = tl.minimum(full + BLOCK_M - 1, n_keys)
    q = q_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], FLOAT)
    # finite: a row may see nothing of its first block, and -inf - -inf is NaN
    row_max = tl.full([BLOCK_M], -1e30, FLOAT)
    row_sum = tl.zeros([BLOCK_M], FLOAT)
    for start_n in range(0, stop, BLOCK_N):
        k = k_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
        s = tl.dot(q, k.T)
        if MASKED:
            if start_n + BLOCK_N > full:
                keys = start_n + offs_n[None, :]
                s = _seen(s, -float("inf"), offs_m[:, None], keys, n_queries, n_keys, IS_CAUSAL)
        new_max = tl.maximum(row_max, tl.max(s, axis=1) * scale_log2)
        p = tl.exp2(s * scale_log2 - new_max[:, None])
        alpha = tl.exp2(row_max - new_max)
        row_sum = row_sum * alpha + tl.sum(p, axis=1)
        v = v_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], out_dtype=FLOAT)
        row_max = new_max
    some = row_sum > 0
    row_sum = tl.where(some, row_sum, 1.0)
    lse = tl.where(some, row_max + tl.log2(row_sum), float("inf"))
    tl.store(lse_ptr + head.to(tl.int64) * padded + offs_m, lse)
    out = (acc / row_sum[:, None]).to(q.dtype)
    out_desc.store([b, h, start_m, 0], out.reshape(1, 1, BLOCK_M, HEAD_DIM))


# %% [markdown]
# ## Step 1: one kernel, and a sum without an owner
#
# $dK$ and $dV$ of a key collect from all queries, $dQ$ of a query from all keys. The forward's
# plan, turned round: a [program](../glossary.md#program) owns a tile of keys, walks over the
# queries, and keeps `dk` and `dv` in [registers](../glossary.md#register). It has $dS$ in hand, so
# it may as well compute its share of $dQ$. But that sum belongs to nobody: each program *adds* to
# it in memory, by [atomic operations](../glossary.md#atomic-operation).


# %%
@triton.jit
def first_backward_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, seq_len, padded, scale,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, IS_CAUSAL: tl.constexpr, ADD_DQ: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys, its share of dq; `[heads, seq_len, HEAD_DIM]`, whole blocks."""
    head = tl.program_id(1).to(tl.int64)
    keys = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offs_d = tl.arange(0, HEAD_DIM)[None, :]
    kv_offs = (head * seq_len + keys)[:, None] * HEAD_DIM + offs_d
    k = tl.load(k_ptr + kv_offs)
    v = tl.load(v_ptr + kv_offs)
    dk = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    for start_m in range(0, seq_len, BLOCK):
        offs_m = start_m + tl.arange(0, BLOCK)
        q_offs = (head * seq_len + offs_m)[:, None] * HEAD_DIM + offs_d
        q = tl.load(q_ptr + q_offs)
        do = tl.load(do_ptr + q_offs)
        lse = tl.load(lse_ptr + head * padded + offs_m)[:, None]
        delta = tl.load(delta_ptr + head * padded + offs_m)[:, None]
        p = tl.exp2(tl.dot(q, k.T) * (scale * 1.4426950408889634) - lse)  # queries by keys
        if IS_CAUSAL:
            p = tl.where(keys[None, :] <= offs_m[:, None], p, 0.0)
        dv = tl.dot(p.to(do.dtype).T, do, dv)
        ds = (p * (tl.dot(do, v.T) - delta)).to(q.dtype)
        dk = tl.dot(ds.T, q, dk)
        if ADD_DQ:
            tl.atomic_add(dq_ptr + q_offs, tl.dot(ds, k) * scale, sem="relaxed")
    tl.store(dk_ptr + kv_offs, (dk * scale).to(k.dtype))
    tl.store(dv_ptr + kv_offs, dv.to(v.dtype))


def first_backward(do, q, k, v, out, lse, causal, add_dq=True):
    """Launches `first_backward_kernel`; `(B, H, S, D)`, contiguous, 64 divides S, D up to 128."""
    batch, heads, seq_len, head_dim = q.shape
    delta = torch.zeros_like(lse)
    delta[:, :, :seq_len] = (do.float() * out.float()).sum(dim=-1)
    dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    first_backward_kernel[(seq_len // 64, batch * heads)](
        q, k, v, do, lse, delta, dq, dk, dv, seq_len, lse.shape[2], head_dim**-0.5,
        HEAD_DIM=head_dim, BLOCK=64, IS_CAUSAL=causal, ADD_DQ=add_dq, num_warps=4, num_stages=2,
    )  # fmt: skip
    return dq.to(q.dtype), dk, dv


# %% [markdown]
# It is right, and it has two faults. Each program sends a float32 tile of $dQ$ through the caches
# for every tile it visits: $4 N^2 D / \mathtt{BLOCK\_N}$ bytes, at 4,096 tokens, $D = 128$ and 64
# keys {{ (4 * 4096**2 * 128 // 64) | bytes }} a head. And floating-point addition depends on its
# order, which is that in which programs arrive: **two runs of one training step differ**. `bench`
# repeats one gradient and counts the runs that differ in any bit from the first:
#
# {{ table("flash_backward_repeat", columns=["provider", "launches", "differ"]) }}
#
# {% for r in rows("flash_backward_repeat") %}{{ claim((r.differ > 0) == (r.provider == "triton_first")) }}{% endfor %}
#
# ## Step 2: two kernels, two owners
#
# So give each sum an owner. One kernel's programs own keys and compute $dK$ and $dV$; the other's
# own queries and compute $dQ$. Nothing is added in memory, every sum has one order.
#
# {{ diagram("flash_backward_owners") }}
#
# The price: both need $S$ and $dP$. Seven products in place of five, so at best 5/7 of the rate of
# one kernel that had no other faults. The page counts five for everybody.
#
# The kernel for $dQ$ runs first. It has $dO$ in hand and loads $O$ once, so **$\delta$ costs it one
# more tile**; it leaves it in memory for the other.


# %% tags=["copy"]
@triton.jit
def flash_attention_dq_kernel(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, delta_ptr, n_heads,
    n_queries, n_keys, padded, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, MASKED: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, and `delta`, its sums of `do * out`; as the forward."""
    head, start_m = _tile(n_queries, BLOCK_M, IS_CAUSAL)
    b, h = head // n_heads, head % n_heads
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    full, stop = n_keys, n_keys
    if IS_CAUSAL:
        full = start_m + 1 + n_keys - n_queries
        stop = tl.minimum(full + BLOCK_M - 1, n_keys)
    q = q_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
    do = do_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
    out = out_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
    stats = head.to(tl.int64) * padded + offs_m
    lse = tl.load(lse_ptr + stats)
    delta = tl.sum(do.to(FLOAT) * out.to(FLOAT), axis=1)
    tl.store(delta_ptr + stats, delta)
    dq = tl.zeros([BLOCK_M, HEAD_DIM], FLOAT)
    for start_n in range(0, stop, BLOCK_N):
        k = k_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
        v = v_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
        p = tl.exp2(tl.dot(q, k.T) * scale_log2 - lse[:, None])
        if MASKED:
            if start_n + BLOCK_N > full:
                keys = start_n + offs_n[None, :]
                p = _seen(p, 0.0, offs_m[:, None], keys, n_queries, n_keys, IS_CAUSAL)
        dp = tl.dot(do, v.T)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, out_dtype=FLOAT)
    dq = (dq * scale).to(q.dtype)
    dq_desc.store([b, h, start_m, 0], dq.reshape(1, 1, BLOCK_M, HEAD_DIM))


# %% [markdown]
# ## Step 3: keys first
#
# Step 1 computed $S$ as queries by keys and then transposed $P$ and $dS$ for the products that
# collect over queries. On the chip that is a trip: a tensor core takes its left factor from
# registers in the layout in which it hands out results, but not transposed; so `p.T` is written to
# [shared memory](../glossary.md#shared-memory) and read back, for every tile. Compute the
# transposed scores from the start, $S^\top = K Q^\top$, and the trip is gone: rows are now keys, what
# comes out of the first product goes straight into the second. That $q$ and $dO$ are read
# transposed costs nothing; the tensor core reads its right factor from shared memory either way.
#
# | product | shape | left factor | right factor |
# |---|---|---|---|
# | $S^\top = K Q^\top$ | keys × queries | `k`, shared memory | `q.T`, shared memory |
# | $dV \mathrel{+}= P^\top dO$ | keys × $D$ | `p`, **registers** | `do`, shared memory |
# | $dP^\top = V dO^\top$ | keys × queries | `v`, shared memory | `do.T`, shared memory |
# | $dK \mathrel{+}= dS^\top Q$ | keys × $D$ | `ds`, **registers** | `q`, shared memory |
#
# **Where are the masks?** Causal, a tile of keys starts at the first query that sees any of them
# and compares positions until one sees them all; after that, and in full attention at any length,
# it compares nothing. Queries past the end come from the [descriptor](../glossary.md#descriptor)
# as zeros with $dO = 0$ and $\delta = 0$, and add 0. Keys past the end have rows of their own, which
# the descriptor does not store. In the kernel for $dQ$ such a key shares its row with others: its
# weight is $2^{-L}$, with $L$ far below 0 it overflows, and $\infty \cdot 0$ is NaN. There the last
# block needs its mask.


# %% tags=["copy"]
@triton.jit
def flash_attention_dkdv_kernel(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, n_heads,
    n_queries, n_keys, padded, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values; tiles of scores are keys by queries."""
    head, start_n = _tile(n_keys, BLOCK_N, False)
    b, h = head // n_heads, head % n_heads
    offs_m = tl.arange(0, BLOCK_M)
    keys = start_n + tl.arange(0, BLOCK_N)[:, None]
    stats = head.to(tl.int64) * padded + offs_m
    start, full = 0, 0
    if IS_CAUSAL:
        # the first query that sees a key of the tile, and the first that sees all
        first = start_n + n_queries - n_keys
        start = tl.maximum(first, 0) // BLOCK_M * BLOCK_M
        full = first + BLOCK_N - 1
    k = k_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
    v = v_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
    dk = tl.zeros([BLOCK_N, HEAD_DIM], FLOAT)
    dv = tl.zeros([BLOCK_N, HEAD_DIM], FLOAT)
    for start_m in range(start, n_queries, BLOCK_M):
        q = q_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
        lse = tl.load(lse_ptr + stats + start_m)[None, :]
        do = do_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
        delta = tl.load(delta_ptr + stats + start_m)[None, :]
        p = tl.exp2(tl.dot(k, q.T) * scale_log2 - lse)  # [BLOCK_N, BLOCK_M]
        if IS_CAUSAL:
            if start_m < full:
                p = _seen(p, 0.0, (start_m + offs_m)[None, :], keys, n_queries, n_keys, True)
        dv = tl.dot(p.to(do.dtype), do, dv, out_dtype=FLOAT)
        dp = tl.dot(v, do.T)
        ds = p * (dp - delta)
        dk = tl.dot(ds.to(q.dtype), q, dk, out_dtype=FLOAT)
    dv_desc.store([b, h, start_n, 0], dv.to(k.dtype).reshape(1, 1, BLOCK_N, HEAD_DIM))
    dk = (dk * scale).to(k.dtype)
    dk_desc.store([b, h, start_n, 0], dk.reshape(1, 1, BLOCK_N, HEAD_DIM))


# %% [markdown]
# ## Step 4: tiles that fit
#
# A program for keys holds `dk` and `dv`, twice what the forward holds, and two tiles of scores at a
# time. What fits into 255 registers a thread and 227 KiB of shared memory, at $D = 128$:
#
# | keys × queries | warps | registers for `dk`, `dv` | for `p`, `dp` | shared memory, two stages | programs on an SM |
# |---|---|---|---|---|---|
# | 64 × 64 | 4 | 128 | 64 | 97 KiB | 2 |
# | 128 × 64 | 8 | 128 | 64 | 129 KiB | 1 |
# | 128 × 128 | 8 | 128 | 128: [spills](../glossary.md#spill) | 193 KiB | 1 |
#
# The first two ask the same of a thread. With two programs on an [SM](../glossary.md#sm), one
# computes exponentials while the other multiplies. With one of twice the keys each tile of queries
# is read for twice the work, from [L2](../glossary.md#l2) and from shared memory.
#
# ## Launch
#
# Three kernels, one `autograd.Function`. Its forward keeps $Q$, $K$, $V$, $O$ and `lse`. Inputs that
# a descriptor cannot describe are copied *before* the function, so autograd takes their gradient
# back through the copy; a gradient $dO$ may be anything too, the one of a sum has all strides 0.


# %% tags=["copy"]
# head_dim: BLOCK_M, BLOCK_N, num_warps, num_stages of the forward, for dq, and for dk and dv
TILES = {
    32: ((128, 64, 4, 3), (128, 64, 4, 2), (64, 64, 4, 2)),
    64: ((64, 128, 4, 2), (128, 64, 4, 2), (64, 64, 4, 2)),
    128: ((128, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    256: ((128, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 1)),
}
# rows of lse and delta: a multiple of every BLOCK_M
PAD = 128


def _for_descriptor(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if a descriptor can describe it, else a contiguous copy."""
    fits = x.stride(3) == 1 and x.stride(2) >= x.shape[3]
    fits &= all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _launch(kernel, blocks, tensors, statistics, scales, causal, tile, **options) -> None:
    """Launches a kernel; `blocks` tells "m" or "n" of each tensor: q, k, ..., the owned one last."""
    (batch, heads, n_queries, head_dim), n_keys = tensors[0].shape, tensors[1].shape[2]
    block_m, block_n, num_warps, num_stages = tile
    rows = [{"m": block_m, "n": block_n}[block] for block in blocks]
    described = zip(tensors, rows, strict=True)
    kernel[(triton.cdiv(tensors[-1].shape[2], rows[-1]) * batch * heads,)](
        *(TensorDescriptor.from_tensor(x, [1, 1, n, head_dim]) for x, n in described),
        *statistics, heads, n_queries, n_keys, statistics[0].shape[2], *scales,
        HEAD_DIM=head_dim, BLOCK_M=block_m, BLOCK_N=block_n, IS_CAUSAL=causal,
        FLOAT=tl.float64 if tensors[0].dtype == torch.float64 else tl.float32,
        num_warps=num_warps, num_stages=num_stages, **options,
    )  # fmt: skip


def _room_for_lse(q: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = triton.cdiv(q.shape[2], PAD) * PAD
    return torch.empty(*q.shape[:2], rows, dtype=dtype, device=q.device)


def flash_attention_forward(q, k, v, out, lse, causal: bool, scale: float) -> None:
    """Writes out and the log-sum-exp, `(B, H, n_queries)` padded to PAD, to base 2."""
    tile = TILES[q.shape[3]][0]
    masked, scales = causal or k.shape[2] % tile[1] != 0, (scale * math.log2(math.e),)
    tensors = (q, k, v, out)
    _launch(flash_attention_kernel, "mnnm", tensors, (lse,), scales, causal, tile, MASKED=masked)


def flash_attention_backward(do, q, k, v, out, lse, dq, dk, dv, causal: bool, scale: float) -> None:
    """Writes dq, dk and dv for `do`, the gradient of out; see `_for_descriptor` for layouts."""
    _, dq_tile, dkdv_tile = TILES[q.shape[3]]
    scales, stats = (scale, scale * math.log2(math.e)), (lse, torch.empty_like(lse))
    tensors, masked = (q, k, v, out, do, dq), causal or k.shape[2] % dq_tile[1] != 0
    kernel = flash_attention_dq_kernel
    _launch(kernel, "mnnmmm", tensors, stats, scales, causal, dq_tile, MASKED=masked)
    tensors, kernel = (q, k, v, do, dk, dv), flash_attention_dkdv_kernel
    _launch(kernel, "mnnmnn", tensors, stats, scales, causal, dkdv_tile)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale):
        out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), _room_for_lse(q)
        if q.numel() and k.numel():
            with torch.cuda.device_of(q):
                flash_attention_forward(q, k, v, out, lse, causal, scale)
        else:
            out.zero_()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = causal, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        q, k, v, out, lse = ctx.saved_tensors
        some = q.numel() and k.numel()
        new = torch.empty if some else torch.zeros
        grads = [new(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        if some:
            with torch.cuda.device_of(q):
                do = _for_descriptor(do)
                flash_attention_backward(do, q, k, v, out, lse, *grads, *ctx.options)
        return *grads, None, None


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention, `softmax(scale * q @ k.T) @ v` for every head; differentiable once.

    Neither pass stores the scores. Sums and softmax are float32; the weights, and the gradients of
    the scores, are rounded to the dtype of `q` before they are multiplied. In Triton's interpreter
    float64 is taken too, with sums in float64.

    Args:
        q: Queries `(B, H, n_queries, D)`, float16 or bfloat16, on a GPU; D is 32, 64, 128 or 256.
            A tensor whose rows are not adjacent numbers at multiples of 16 bytes is copied first.
        k: Keys `(B, H, n_keys, D)`, of the dtype and device of `q`.
        v: Values, of the shape of `k`.
        causal: Whether a query sees only keys up to its place; the last query has the last key's.
        scale: Factor of the scores, positive; `D ** -0.5` if None.

    Returns:
        A contiguous tensor like `q`; 0 for a query that sees no key. Output and gradients are the
        same bits in every run.

    Raises:
        TypeError: The dtype is neither of the two, or differs between the inputs.
        ValueError: A shape, the device or the scale is not as above.
    """
    interpreted = triton.knobs.runtime.interpret
    dtypes = (torch.float16, torch.bfloat16) + ((torch.float64,) if interpreted else ())
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype not in dtypes or x.dtype != q.dtype:
            raise TypeError(f"flash_attention takes float16 or bfloat16 alone; {name} is {x.dtype}")
        if x.dim() != 4 or x.device != q.device:
            told = f"(B, H, S, D) on one device; {name} is {[*x.shape]} on {x.device}"
            raise ValueError(f"flash_attention takes {told}")
    if k.shape != v.shape or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        told = f"k and v alike that fit q; got {[*q.shape]}, {[*k.shape]}, {[*v.shape]}"
        raise ValueError(f"flash_attention takes {told}")
    if q.shape[3] not in TILES:
        raise ValueError(f"flash_attention takes a head_dim of {sorted(TILES)}, got {q.shape[3]}")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not 0 < scale < float("inf"):
        raise ValueError(f"flash_attention takes a positive, finite scale, got {scale}")
    if not q.is_cuda and not interpreted:
        raise ValueError(f"flash_attention needs a GPU, got {q.device}; or set TRITON_INTERPRET=1")
    return _FlashAttention.apply(*(_for_descriptor(x) for x in (q, k, v)), causal, scale)


# %% [markdown]
# ## Is it right?
#
# `check` compares output and gradients with float64 and its autograd: one token, a block more or
# less one, fewer keys than queries and more, scores so low that a forgotten mask overflows, tensors
# in memory as `(B, S, H, D)`. Results lie in frames of NaN; the public function must give the same
# bits. Printed are errors in percent of the rounding of the largest number. In the interpreter
# float64 goes through the same kernels, against autograd and by `gradcheck`.


# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares flash_attention and its gradients with float64; raises AssertionError."""
    torch.manual_seed(0)
    cases = [(1, 1, 1, 1, 64), (2, 3, 65, 127, 32), (1, 2, 128, 128, 32), (1, 1, 129, 63, 64)]
    cases += [(1, 1, 40, 33, 256), (1, 1, 70, 130, 128)]
    # float64's error is that of a float32 scale
    allowed = {torch.float16: 2**-10, torch.float64: 1e-5}
    if device == "cuda":
        # the interpreter's bfloat16 product is wrong
        allowed = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
        cases += [(1, 9, 1000, 4097, 128), (2, 5, 4096, 4096, 128), (2, 12, 1777, 1777, 64)]
    print(f"{'B x H x queries x keys x D':>26}" + "".join(f"{str(d)[6:]:>25}" for d in allowed))
    print(f"{'':26}" + f"{'O':>10}{'dQ':>5}{'dK':>5}{'dV':>5}" * len(allowed))
    for case, (batch, heads, n_queries, n_keys, head_dim) in enumerate(cases):
        line = f"{f'{batch} x {heads} x {n_queries} x {n_keys} x {head_dim}':>26}"
        for dtype, rounding in allowed.items():
            worst = [0.0] * 4
            for causal, scale in ((False, 0.2), (True, head_dim**-0.5)):
                rows = (n_queries, n_keys, n_keys, n_queries)
                q, k, v, do = (torch.randn(batch, n, heads, head_dim, device=device) for n in rows)
                if low := case % 3 == 1:
                    # what all keys share falls out of dq, the rounding of its factors does not
                    q, k = 0.3 * q + 5, 0.3 * k - 5
                q, k, v, do = (x.to(dtype).transpose(1, 2) for x in (q, k, v, do))
                if case % 2 == 0:
                    q, k, v, do = (x.contiguous() for x in (q, k, v, do))
                frames = [torch.full((batch, heads, x.shape[2] + 64, head_dim), math.nan).to(x)
                          for x in (q, q, k, v)]  # fmt: skip
                got, lse = [x[:, :, :-64] for x in frames], _room_for_lse(q).fill_(math.nan)
                flash_attention_forward(q, k, v, got[0], lse, causal, scale)
                flash_attention_backward(do, q, k, v, got[0], lse, *got[1:], causal, scale)
                inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
                out = flash_attention_reference(*inputs, causal=causal, scale=scale)
                want = [out, *torch.autograd.grad(out, inputs, do.double())]
                inputs = [x.detach().requires_grad_() for x in (q, k, v)]
                out = flash_attention(*inputs, causal=causal, scale=scale)
                same = map(torch.equal, got, [out, *torch.autograd.grad(out, inputs, do)])
                assert all(same), f"flash_attention is not its kernels, {dtype}:\n{line}"
                clean = all(x[:, :, -64:].isnan().all() for x in frames)
                assert clean, f"written past the end:\n{line}"
                if causal and n_queries == n_keys == 128 and dtype == torch.float16:
                    got += first_backward(do, q, k, v, got[0], lse, causal)
                for i, x in enumerate(got):
                    y = want[i] if i < 4 else want[i - 3]
                    error = (x.double() - y).abs().max() / (rounding * (y.abs().max() + 0.01))
                    error = error.item() / (8 if low else 1)
                    at = i if i < 4 else i - 3
                    worst[at] = error if not error <= worst[at] else worst[at]
            line += " " * 5 + "".join(f"{error:>5.0%}" for error in worst)
            assert all(error <= 1 for error in worst), f"flash_attention is off, {dtype}:\n{line}"
        print(line)
    if device == "cpu":
        inputs = [torch.randn(1, 1, n, 32).double().requires_grad_() for n in (5, 7, 7)]
        attend = lambda *inputs: flash_attention(*inputs, causal=True)  # noqa: E731
        assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
        print("gradcheck in float64: passed")


# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Sixteen heads, and as many sequences as make 16,384 tokens; the backward pass alone, single
# launches. Before you look: the forward reached {{ rec("attention/flash_attention").row("attention_d128_full", provider="triton", seq_len=4096).tflops | n(0) }} TFLOP/s at 4,096 tokens and $D = 128$. What will two
# kernels of seven products reach, when five are counted?


# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from functools import partial

    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def benchmark(name, title, rows, ceiling="matmul"):
        names = {"x": "seq_len", "dtype": "bfloat16", "mode": "backward", "ceiling": ceiling}
        return {"name": name, "title": title, **names, "rows": rows}

    def inputs(batch, heads, seq_len, head_dim, n_keys=None):
        sizes = (seq_len, n_keys or seq_len, n_keys or seq_len, seq_len)
        new = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        q, k, v, do = (new(batch, heads, n, head_dim) for n in sizes)
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do

    def sdpa(q, k, v, causal, backend):
        with sdpa_kernel(getattr(SDPBackend, f"{backend}_attention".upper())):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def gradient(attend, q, k, v, do, **options):
        out = attend(q, k, v, **options)
        return lambda: torch.autograd.grad(out, (q, k, v), do, retain_graph=True)

    def rows(q, k, causal, timings, products=5):
        (batch, heads, seq_len, head_dim), n_keys = q.shape, k.shape[2]
        size = {"seq_len": seq_len, "n_keys": n_keys, "batch": batch, "heads": heads}
        size |= {"head_dim": head_dim, "causal": causal, "products": products}
        size |= {"bytes": 8 * (q.numel() + k.numel())}
        size["flops"] = 2 * products * q.numel() * n_keys // (2 if causal else 1)
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    for head_dim in (128, 64):
        for causal in (False, True):
            found = []
            for seq_len in (1024, 2048, 4096, 16384):
                q, k, v, do = inputs(16384 // seq_len, 16, seq_len, head_dim)
                calls = {"triton": gradient(flash_attention, q, k, v, do, causal=causal)}
                for peer in ("cudnn", "flash", "efficient"):
                    call = gradient(sdpa, q, k, v, do, causal=causal, backend=peer)
                    calls[f"sdpa_{peer}"] = call
                found += rows(q, k, causal, measure(calls, hot=seq_len == 4096, host=True))
            kind = "causal" if causal else "full"
            title = f"Attention backward, {kind}, 16,384 tokens × 16 heads × {head_dim}, bfloat16"
            yield benchmark(f"flash_backward_d{head_dim}_{kind}", title, found)

    found = []
    for n_queries, n_keys in ((4000, 4000), (4096, 4096), (4097, 4097), (4096, 1024)):
        q, k, v, do = inputs(4, 16, n_queries, 128, n_keys)
        calls = {"triton": gradient(flash_attention, q, k, v, do)}
        calls["sdpa_cudnn"] = gradient(sdpa, q, k, v, do, causal=False, backend="cudnn")
        found += rows(q, k, False, measure(calls))
    title = "Attention backward, 4 × 16 heads × 128, bfloat16: whole tiles and others"
    yield benchmark("flash_backward_odd", title, found)

    q, k, v, do = (x.detach() for x in inputs(4, 16, 4096, 128))
    out, lse, (dq, dk, dv) = torch.empty_like(q), _room_for_lse(q), torch.empty_like(torch.stack([q, k, v]))
    flash_attention_forward(q, k, v, out, lse, False, 128**-0.5)
    stats, scales = (lse, torch.empty_like(lse)), (128**-0.5, 128**-0.5 * math.log2(math.e))
    launch = partial(_launch, statistics=stats, scales=scales, causal=False)
    by_queries = partial(launch, flash_attention_dq_kernel, "mnnmmm", (q, k, v, out, do, dq), MASKED=False)
    by_keys = partial(launch, flash_attention_dkdv_kernel, "mnnmnn", (q, k, v, do, dk, dv))
    first = partial(first_backward, do, q, k, v, out, lse, False)
    calls = {"triton_first": first, "triton_first_dkdv": partial(first, add_dq=False)}
    for tile in ((64, 64, 4, 2), (64, 64, 4, 1), (64, 128, 8, 2)):
        calls["triton_dkdv_{}x{}_{}_{}".format(*tile)] = partial(by_keys, tile=tile)
    for tile in ((64, 64, 4, 2), (64, 64, 4, 1), (128, 64, 8, 2), (128, 128, 8, 2)):
        calls["triton_dq_{}x{}_{}_{}".format(*tile)] = partial(by_queries, tile=tile)
    found = []
    for name, timing in measure(calls).items():
        products = 5 if name == "triton_first" else 3 if "dq" in name else 4
        found += rows(q, k, False, {name: timing}, products)
    title = "Attention backward, its kernels, full, 4 × 16 heads × 4,096 × 128, bfloat16"
    yield benchmark("flash_backward_steps", title, found)

    found = []
    tensors = do, q, k, v, out, lse, dq, dk, dv
    steps = {"triton_first": first}
    steps["triton"] = lambda: (flash_attention_backward(*tensors, False, 128**-0.5), (dq, dk, dv))[1]
    for provider, step in steps.items():
        want, differ = [x.clone() for x in step()], torch.zeros((), device="cuda", dtype=torch.int64)
        for _ in range(50):
            differ += torch.stack([(x != y).any() for x, y in zip(step(), want, strict=True)]).any()
        found += rows(q, k, False, {provider: {"launches": 50, "differ": differ.item()}})
    yield benchmark("flash_backward_repeat", "Gradients that differ from the first", found, None)

    found = []
    for seq_len in (1024, 2048, 4096, 8192, 16384, 32768):
        q, k, v, do = inputs(1, 8, seq_len, 128)
        calls = {"triton": flash_attention, "torch_unfused": flash_attention_reference}
        for provider, attend in calls.items():
            calls[provider] = lambda a=attend: torch.autograd.grad(a(q, k, v), (q, k, v), do)
        found += rows(q, k, False, measure(calls, memory=True))
    title = "Attention forward and backward, 8 heads × 128, bfloat16: memory beyond the inputs"
    yield benchmark("flash_backward_memory", title, found, None)


# %% [markdown]
# ## END
