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
def softmax_gradient(p, values, dout=1.0) -> list[float]:
    """Gradient of the scores of one row, printed beside what two nudged forward passes say."""
    out = sum(weight * value for weight, value in zip(p, values, strict=True))
    dp = [dout * value for value in values]
    delta = dout * out
    ds = [weight * (gradient - delta) for weight, gradient in zip(p, dp, strict=True)]
    print(f"{out = }, {delta = }, {dp = }")
    for k in range(len(p)):
        nudged = []
        for step in (1e-4, -1e-4):
            grown = [weight * math.exp(step * (j == k)) for j, weight in enumerate(p)]
            total = sum(weight * value for weight, value in zip(grown, values, strict=True))
            nudged.append(dout * total / sum(grown))
        slope = (nudged[0] - nudged[1]) / 2e-4
        print(f"key {k}: ds = {p[k]} * ({dp[k]} - {delta}) = {ds[k]:5}, nudged {slope:8.5f}")
    return ds


if __name__ == "__main__":
    print("sum of ds:", sum(softmax_gradient([0.5, 0.25, 0.25], [4.0, 2.0, 6.0])))

# %% [markdown]
# They sum to 0: to raise all scores of a row alike changes no weight.
#
# {{ diagram("flash_backward_products") }}
#
# ## What the forward must leave
#
# The kernel of the lecture before, with what a backward pass asks for:
#
# - **The log-sum-exp in powers of 2.** $P = 2^{S \tau \log_2 e - L}$ is one multiply-add and one
#   `exp2` an element, so `lse` stays as the kernel has it, $L = m + \log_2 l$.
# - **For full tiles of queries.** `lse` and `delta` have room up to a multiple of 128 rows
#   (`padded`), and what lies behind the last query is written too. So no later load needs a
#   [mask](../glossary.md#mask).
# - **$+\infty$ for a query that sees no key.** Its weights come out as $2^{-\infty} = 0$.
# - **Sums in the inputs' precision** where that is float64: tensor cores cannot, the
#   [interpreter](../glossary.md#interpreter) can, and there `gradcheck` wants it.
#
# `_limits` knows two places in the row of keys of a tile of queries: up to `full` every query sees
# every key, from `stop` on none sees any. Only blocks between them need `_seen`.


# %% tags=["copy"]
@triton.jit
def _tile(n_heads, seq_len, GROUP, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Head and first row of this program: heads in groups, the longest tiles of a group first."""
    tiles = tl.cdiv(seq_len, BLOCK)
    pid = tl.program_id(0)
    first_head = pid // (tiles * GROUP) * GROUP
    # the last group may have fewer heads
    size = tl.minimum(n_heads - first_head, GROUP)
    place = pid % (tiles * GROUP)
    tile = place // size
    if LAST_FIRST:
        tile = tiles - 1 - tile
    return first_head + place % size, tile * BLOCK


@triton.jit
def _limits(start_m, n_queries, n_keys, BLOCK_M: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """Number of keys that all queries of a tile see, and that any of them sees."""
    full, stop = n_keys, n_keys
    if IS_CAUSAL:
        full = start_m + 1 + n_keys - n_queries
        stop = tl.minimum(start_m + BLOCK_M + n_keys - n_queries, n_keys)
    return full, stop


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
    q_desc, k_desc, v_desc, out_desc, lse_ptr, n_batch, n_heads, n_queries, n_keys, padded,
    scale_log2, GROUP, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, MASKED: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one head, and its log-sum-exp to base 2.

    The descriptors describe `[n_batch, n_heads, rows, HEAD_DIM]` in blocks of `BLOCK_M` or, for keys
    and values, `BLOCK_N` rows; a head has `padded` rows of `lse_ptr`. `scale_log2`: the factor of
    the scores times log2(e); `GROUP`: heads that run together; `FLOAT`: the dtype of sums.
    """
    head, start_m = _tile(n_batch * n_heads, n_queries, GROUP, BLOCK_M, IS_CAUSAL)
    b, h = head // n_heads, head % n_heads
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    full, stop = _limits(start_m, n_queries, n_keys, BLOCK_M, IS_CAUSAL)
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
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr,
    ADD_DQ: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys, and its share of float32 dq; `[heads, seq_len, HEAD_DIM]`."""
    head = tl.program_id(1).to(tl.int64)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, HEAD_DIM)
    kv_offs = (head * seq_len + offs_n)[:, None] * HEAD_DIM + offs_d[None, :]
    mask_n = (offs_n < seq_len)[:, None]
    k = tl.load(k_ptr + kv_offs, mask=mask_n, other=0.0)
    v = tl.load(v_ptr + kv_offs, mask=mask_n, other=0.0)
    dk = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    for start_m in range(0, seq_len, BLOCK_M):
        offs_m = start_m + tl.arange(0, BLOCK_M)
        q_offs = (head * seq_len + offs_m)[:, None] * HEAD_DIM + offs_d[None, :]
        mask_m = (offs_m < seq_len)[:, None]
        q = tl.load(q_ptr + q_offs, mask=mask_m, other=0.0)
        do = tl.load(do_ptr + q_offs, mask=mask_m, other=0.0)
        lse = tl.load(lse_ptr + head * padded + offs_m)
        delta = tl.load(delta_ptr + head * padded + offs_m)
        s = tl.dot(q, k.T) * (scale * 1.4426950408889634)  # [BLOCK_M, BLOCK_N]
        p = tl.exp2(s - lse[:, None])
        keep = mask_m & (offs_n < seq_len)[None, :]
        if IS_CAUSAL:
            keep = keep & (offs_n[None, :] <= offs_m[:, None])
        p = tl.where(keep, p, 0.0)
        dv = tl.dot(p.to(do.dtype).T, do, dv)
        dp = tl.dot(do, v.T)
        ds = (p * (dp - delta[:, None])).to(q.dtype)
        dk = tl.dot(ds.T, q, dk)
        if ADD_DQ:
            tl.atomic_add(dq_ptr + q_offs, tl.dot(ds, k) * scale, mask=mask_m, sem="relaxed")
    tl.store(dk_ptr + kv_offs, (dk * scale).to(k.dtype), mask=mask_n)
    tl.store(dv_ptr + kv_offs, dv.to(v.dtype), mask=mask_n)


def first_backward(do, q, k, v, out, lse, causal, add_dq=True):
    """Launches `first_backward_kernel`; `(B, H, S, D)`, contiguous, the default scale."""
    batch, heads, seq_len, head_dim = q.shape
    delta = torch.zeros_like(lse)
    delta[:, :, :seq_len] = (do.float() * out.float()).sum(dim=-1)
    dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    block = 64 if head_dim <= 128 else 32
    first_backward_kernel[(triton.cdiv(seq_len, block), batch * heads)](
        q, k, v, do, lse, delta, dq, dk, dv, seq_len, lse.shape[2], head_dim**-0.5,
        HEAD_DIM=head_dim, BLOCK_M=block, BLOCK_N=block, IS_CAUSAL=causal, ADD_DQ=add_dq,
        num_warps=4, num_stages=2 if head_dim <= 128 else 1,
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
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, delta_ptr, n_batch, n_heads,
    n_queries, n_keys, padded, scale, scale_log2, GROUP,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, MASKED: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, and `delta`, its sums of `do * out`; as the forward."""
    head, start_m = _tile(n_batch * n_heads, n_queries, GROUP, BLOCK_M, IS_CAUSAL)
    b, h = head // n_heads, head % n_heads
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    full, stop = _limits(start_m, n_queries, n_keys, BLOCK_M, IS_CAUSAL)
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
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, n_batch, n_heads,
    n_queries, n_keys, padded, scale, scale_log2, GROUP,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values; tiles of scores are keys by queries."""
    head, start_n = _tile(n_batch * n_heads, n_keys, GROUP, BLOCK_N, False)
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
# what the heads that run together read, within L2; causal tiles, unequal, want more
GROUP_BYTES = {False: 8 << 20, True: 32 << 20}


def _for_descriptor(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if a descriptor can describe it, else a contiguous copy."""
    fits = x.stride(3) == 1 and x.stride(2) >= x.shape[3]
    fits &= all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _launch(kernel, blocks, tensors, statistics, scales, causal, tile, **options) -> None:
    """Launches a kernel; `blocks` says "m" or "n" for each tensor, q and k first, owned one last."""
    q, k = tensors[:2]
    (batch, heads, n_queries, head_dim), n_keys = q.shape, k.shape[2]
    block_m, block_n, num_warps, num_stages = tile
    rows = {"m": block_m, "n": block_n}
    owned, read = (n_queries, n_keys) if blocks[-1] == "m" else (n_keys, n_queries)
    group = GROUP_BYTES[causal] // (2 * read * head_dim * q.element_size())
    kernel[(triton.cdiv(owned, rows[blocks[-1]]) * batch * heads,)](
        *(
            TensorDescriptor.from_tensor(x, [1, 1, rows[block], head_dim])
            for x, block in zip(tensors, blocks, strict=True)
        ),
        *statistics, batch, heads, n_queries, n_keys, statistics[0].shape[2], *scales,
        max(1, min(batch * heads, group)), HEAD_DIM=head_dim, BLOCK_M=block_m, BLOCK_N=block_n,
        IS_CAUSAL=causal, FLOAT=tl.float64 if q.dtype == torch.float64 else tl.float32,
        num_warps=num_warps, num_stages=num_stages, **options,
    )  # fmt: skip


def flash_attention_forward(q, k, v, out, lse, causal: bool, scale: float) -> None:
    """Writes out and the log-sum-exp, `(B, H, n_queries)` padded to PAD, to base 2."""
    tile = TILES[q.shape[3]][0]
    masked, scales = causal or k.shape[2] % tile[1] != 0, (scale * math.log2(math.e),)
    tensors = (q, k, v, out)
    _launch(flash_attention_kernel, "mnnm", tensors, (lse,), scales, causal, tile, MASKED=masked)


def flash_attention_backward(
    do, q, k, v, out, lse, dq, dk, dv, causal: bool, scale: float, tiles=None
) -> None:
    """Writes dq, dk and dv for the gradient `do` of out; tensors as `_for_descriptor` leaves them."""
    _, dq_tile, dkdv_tile = tiles or TILES[q.shape[3]]
    masked, scales = causal or k.shape[2] % dq_tile[1] != 0, (scale, scale * math.log2(math.e))
    statistics, tensors = (lse, torch.empty_like(lse)), (q, k, v, out, do, dq)
    _launch(
        flash_attention_dq_kernel, "mnnmmm", tensors, statistics, scales, causal, dq_tile,
        MASKED=masked,
    )  # fmt: skip
    tensors = (q, k, v, do, dk, dv)
    _launch(
        flash_attention_dkdv_kernel, "mnnmnn", tensors, statistics, scales, causal, dkdv_tile
    )


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale):
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        rows = triton.cdiv(q.shape[2], PAD) * PAD
        sums = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = torch.empty(*q.shape[:2], rows, dtype=sums, device=q.device)
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
