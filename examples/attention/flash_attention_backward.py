# %% [markdown]
# ---
# title: Flash attention, backward
# description: The gradient of exact attention without the N×N matrix, derived line by line, in two deterministic kernels.
# tags: [attention, tensor cores, autograd, determinism]
# prerequisites: [attention/flash_attention]
# outcome: Derive the gradient of attention, decide what to store and what to compute again, and order products so that the tensor cores take them as they are.
# ---
#
# # Flash attention, backward: computed twice, stored never
#
# [Flash attention](flash_attention.py) gives the output without ever storing the scores. Training needs more: from $dO$, the gradient of a loss with respect to the output, it computes the gradients with respect to $Q$, $K$ and $V$. Every formula for them contains the matrix of weights $P$, $N^2$ numbers a head, which the forward pass threw away. **Should it have kept them?**
#
# ## What it costs
#
# One head of 4,096 tokens, $D = 128$, 16-bit numbers:
#
# | | amount | time on the {{ env.gpu }} of this page |
# |---|---|---|
# | $P$ written by the forward, read by the backward, $4 N^2$ bytes | {{ (4 * 4096**2) | bytes }} | {{ copy_ms(4 * 4096**2) | ms }} at the speed of a copy |
# | $P$ computed again, $2 N^2 D$ | 4.3 GFLOP | {{ (2 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }} at the library's best matrix rate |
# | all five products of the backward pass, this one included, $10 N^2 D$ | 21.5 GFLOP | {{ (10 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }} |
# | $Q, K, V, O, dO$ read, $dQ, dK, dV$ written, $16 N D$ bytes | {{ (16 * 4096 * 128) | bytes }} | {{ copy_ms(16 * 4096 * 128) | ms }} |
#
# {{ claim(0.2 < 2 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9 / copy_ms(4 * 4096**2) < 0.3) }}
# No: the product that computes $P$ again takes a quarter of the time of moving it, its exponentials at worst as long again, and no memory. For 16 heads of 16,384 tokens $P$ is 8 GiB. So the forward pass keeps one number for each row, and the backward pass [recomputes](../glossary.md#recomputation) $P$ from it and $QK^\top$, the first of its five products. The forward pass has two.

# %% tags=["copy"]
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

# %% [markdown]
# ## The reference
#
# Attention as before, and again there may be fewer or more keys than queries, as in *cross attention* or with a [cache](../glossary.md#kv-cache). The last query has the place of the last key: of $N_q$ queries and $N_k$ keys, a causal query $i$ sees keys up to $i + N_k - N_q$, which may be none. The gradient to compare with is what autograd makes of this function.

# %%
def flash_attention_reference(q, k, v, *, causal=False, scale=None):
    """Attention in plain PyTorch, differentiable; a query that sees no key gives 0."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(-2, -1) * scale  # [..., n_queries, n_keys]
    if causal:
        seen = torch.ones_like(scores, dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
        return scores.masked_fill(~seen, -1e30).softmax(dim=-1).masked_fill(~seen, 0.0) @ v
    return scores.softmax(dim=-1) @ v

# %% [markdown]
# ## The gradient, line by line
#
# The forward is $S = \tau Q K^\top$, $P = \operatorname{softmax}(S)$, $O = P V$. Write $dX$ for the
# gradient of the loss with respect to $X$. The gradient of a factor is the gradient of the product
# times the other factor, transposed:
#
# $$
# dV = P^\top dO, \qquad dP = dO \, V^\top .
# $$
#
# **Through the softmax.** Take one row: $p_j = e^{s_j} / \sum_k e^{s_k}$. With $[j = k]$ for 1
# where $j = k$, else 0, its derivative is $\partial p_j / \partial s_k = p_j ([j = k] - p_k)$. A
# score acts on the loss through all weights of its row:
#
# $$
# ds_k = \sum_j dp_j \, p_j \bigl([j = k] - p_k\bigr) = p_k \, (dp_k - \delta),
# \qquad \delta = \sum_j p_j \, dp_j .
# $$
#
# **A sum over the row, without the row.** $\delta$ runs over all keys, and a tile has few of them.
# But insert $dp_j = dO \cdot v_j$, where $dO$ is this row's, and the sum over keys moves inside:
#
# $$
# \delta = \sum_j p_j \, (dO \cdot v_j) = dO \cdot \sum_j p_j v_j = dO \cdot O .
# $$
#
# The forward pass has computed $O$. A sum over $N$ keys became one over $D$ numbers, known before
# the first tile. With the row's [log-sum-exp](../glossary.md#log-sum-exp) $L$ there is no running maximum either: a tile has its
# weights $P = e^{S - L}$ at once, and $dS = P \circ (dP - \delta)$, element by element.
#
# **Through the scores**, a product again: $dQ = \tau \, dS \, K$ and $dK = \tau \, dS^\top Q$.
#
# Pen and paper: one query, three keys of weights ½, ¼, ¼, values 4, 2, 6 of a single number, and
# $dO = 1$. What are the three $ds$, and what is their sum?

# %%
if __name__ == "__main__":
    scores = torch.tensor([0.5, 0.25, 0.25]).log().requires_grad_()
    values, p = torch.tensor([4.0, 2.0, 6.0]), scores.softmax(dim=0)
    out = p @ values
    out.backward()
    dp, delta = values, out
    for name, ds in {"p * (dp - delta)": p * (dp - delta), "autograd": scores.grad}.items():
        print(f"{name:>16}:", "  ".join(f"{x:6.3f}" for x in ds.tolist()))

# %% [markdown]
# $\delta$ is 4, the output. More weight on a value of 4 would change nothing, on 6 raise the
# output, on 2 lower it. The sum is 0: raising all scores of a row alike changes no weight.
#
# {{ diagram("flash_backward_products") }}
#
# ## What the forward must leave
#
# Flash attention's kernel, shorter (one sum a row, no groups of heads), with three changes. The log-sum-exp $L$ stays in powers of 2, as the kernel has it. `s` holds $QK^\top$ without $\tau$, and `scale_log2` is $\tau \, \log_2 e$: then $P$ is `exp2(s * scale_log2 - lse)`, one multiply-add and one power an element. Each head's `lse` has room for whole tiles (`padded` rows), so that loading it takes no [mask](../glossary.md#mask). And in the [interpreter](../glossary.md#interpreter) the kernel also takes float64, and sums in it (`FLOAT`): `gradcheck` needs that.
#
# Every query of a tile sees all keys before `full`, and none sees a key from `stop` on. The blocks
# between compare positions, in `_seen`. If causal, the longest tiles of a head start first.

# %% tags=["copy"]
@triton.jit
def _tile(seq_len, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Head and first row of this program; if LAST_FIRST the last tiles of a head start first."""
    pid, tiles = tl.program_id(0), tl.cdiv(seq_len, BLOCK)
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
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr,
    FLOAT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one head, and its log-sum-exp to base 2.

    Descriptors: `[batch, n_heads, rows, HEAD_DIM]` in blocks of `BLOCK_M` or, for keys and values,
    `BLOCK_N` rows; a head has `padded` rows of `lse_ptr`. `scale_log2`: scale times log2(e).
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
    # a query that sees no key: 0 / 1, and its log-sum-exp is never used, since masked
    row_sum = tl.where(row_sum > 0, row_sum, 1.0)
    tl.store(lse_ptr + head.to(tl.int64) * padded + offs_m, row_max + tl.log2(row_sum))
    out = (acc / row_sum[:, None]).to(q.dtype)
    out_desc.store([b, h, start_m, 0], out.reshape(1, 1, BLOCK_M, HEAD_DIM))

# %% [markdown]
# ## Step 1: one kernel, and a sum without an owner
#
# $dK$ and $dV$ of a key are sums over all queries, $dQ$ of a query is one over all keys. Exchange the roles in the forward: a [program](../glossary.md#program) owns a tile of keys, walks over the queries and keeps `dk` and `dv` in [registers](../glossary.md#register). From each tile of $dS$ it can also compute a part of those queries' $dQ$. But no program owns that sum. Each *adds* its part in memory, [atomically](../glossary.md#atomic-operation).

# %%
@triton.jit
def first_backward_kernel(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, dq_ptr, n_heads,
    n_queries, n_keys, padded, scale, scale_log2, ADD_DQ: tl.constexpr, FLOAT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    head, start_n = _tile(n_keys, BLOCK_N, False)
    b, h = head // n_heads, head % n_heads
    keys = start_n + tl.arange(0, BLOCK_N)[None, :]
    k = k_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
    v = v_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
    dk = tl.zeros([BLOCK_N, HEAD_DIM], FLOAT)
    dv = tl.zeros([BLOCK_N, HEAD_DIM], FLOAT)
    for start_m in range(0, n_queries, BLOCK_M):
        q = q_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
        do = do_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
        rows = start_m + tl.arange(0, BLOCK_M)[:, None]
        lse = tl.load(lse_ptr + head.to(tl.int64) * padded + rows)
        delta = tl.load(delta_ptr + head.to(tl.int64) * padded + rows)
        p = tl.exp2(tl.dot(q, k.T) * scale_log2 - lse)  # [BLOCK_M, BLOCK_N]
        p = _seen(p, 0.0, rows, keys, n_queries, n_keys, IS_CAUSAL)
        dv = tl.dot(p.to(do.dtype).T, do, dv)
        ds = (p * (tl.dot(do, v.T) - delta)).to(q.dtype)
        dk = tl.dot(ds.T, q, dk)
        if ADD_DQ:
            dq_ptrs = dq_ptr + (head.to(tl.int64) * n_queries + rows) * HEAD_DIM
            dq_ptrs += tl.arange(0, HEAD_DIM)[None, :]
            tl.atomic_add(dq_ptrs, tl.dot(ds, k) * scale, mask=rows < n_queries, sem="relaxed")
    dv_desc.store([b, h, start_n, 0], dv.to(k.dtype).reshape(1, 1, BLOCK_N, HEAD_DIM))
    dk_desc.store([b, h, start_n, 0], (dk * scale).to(k.dtype).reshape(1, 1, BLOCK_N, HEAD_DIM))


def first_backward(do, q, k, v, out, lse, causal, scale, add_dq=True):
    """Launches `first_backward_kernel`; dq comes back in float32. D is 128 at most."""
    delta, dq = torch.zeros_like(lse), q.new_zeros(q.shape, dtype=torch.float32)
    delta[:, :, : q.shape[2]] = (do.float() * out.float()).sum(dim=-1)
    tensors, stats = (q, k, v, do, torch.empty_like(k), torch.empty_like(v)), (lse, delta, dq)
    common, tile = (stats, (scale, scale * math.log2(math.e)), causal), (64, 64, 4, 2)
    _launch(first_backward_kernel, "mnnmnn", tensors, *common, tile, ADD_DQ=add_dq)
    return dq, *tensors[4:]

# %% [markdown]
# The result is right, but at two prices. Every tile of scores sends a float32 tile of $dQ$ through the caches: $4 N^2 D / 64$ bytes, {{ (4 * 4096**2 * 128 // 64) | bytes }} for a head of 4,096 tokens. And the last digits of a sum depend on its order, here the order in which programs arrive: **repeat a training step, and its gradients may differ**.
#
# ## Step 2: two kernels, two owners
#
# So give each sum an owner. The programs of one kernel own keys and compute $dK$ and $dV$; those of
# another own queries and compute $dQ$. No sum is made in memory, and each has one order.
#
# {{ diagram("flash_backward_owners") }}
#
# The price: both kernels need $S$ and $dP$, so together they do seven products, not five. This page counts five for everybody, so that a kernel of [five](hopper_backward.py) can be 7/5 as fast as these. The kernel for $dQ$ runs first. It holds $dO$, loads $O$ once, and leaves **$\delta$** in memory for the other.

# %% tags=["copy"]
@triton.jit
def flash_attention_dq_kernel(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, delta_ptr, n_heads,
    n_queries, n_keys, padded, scale, scale_log2, MASKED: tl.constexpr, FLOAT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr,
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
        # both products before the exponentials, which need the first alone
        s = tl.dot(q, k.T)
        dp = tl.dot(do, v.T)
        p = tl.exp2(s * scale_log2 - lse[:, None])
        if MASKED:
            if start_n + BLOCK_N > full:
                keys = start_n + offs_n[None, :]
                p = _seen(p, 0.0, offs_m[:, None], keys, n_queries, n_keys, IS_CAUSAL)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, out_dtype=FLOAT)
    dq = (dq * scale).to(q.dtype)
    dq_desc.store([b, h, start_m, 0], dq.reshape(1, 1, BLOCK_M, HEAD_DIM))

# %% [markdown]
# ## Step 3: keys first
#
# In step 1 a tile of $S$ has a row for each query, and the sums over queries need $P$ and $dS$ transposed. That is not free. Tensor cores take a left factor from registers in the [layout](../glossary.md#layout) in which they return results, so `p` would do, but `p.T` must pass through [shared memory](../glossary.md#shared-memory). Compute $S^\top = K Q^\top$ and $dP^\top = V dO^\top$ instead, a row for each key: now `p`, `ds` *are* $P^\top$ and $dS^\top$, and stay in registers as the left factors of $P^\top dO$ and $dS^\top Q$, which are added to $dV$ and $dK$. The right factors lie in shared memory, where [tensor cores](../glossary.md#tensor-core) read a tile either way, `q` as well as `q.T`.
#
# **Where are the masks?** If causal, a tile of keys starts at the first query that sees one of them, and compares positions until one sees all. Full attention needs no mask: queries past the end come from the [descriptor](../glossary.md#descriptor) as zeros and add 0; keys past the end have rows of their own in `dk` and `dv`, which are not stored. The kernel for $dQ$ sums over keys, and does need it: a key past the end has the score 0 and the weight $2^{-L}$. Where $L$ is very low that overflows, and $\infty \cdot 0$ is NaN.
#
# **In which order?** $dV$ needs $P$ alone, and could be summed before $dP$ is computed. But [tensor cores](../glossary.md#tensor-core) work while the threads go on, and the compiler decides where threads wait: for $S$ before it starts $dP$, for $dP$ before the exponentials, each time for all that was started earlier too. It lets two products run on into the next turn: the sums, whose results are not needed before they are added to. So both stand at the end of the loop, where no wait follows.

# %% tags=["copy"]
@triton.jit
def flash_attention_dkdv_kernel(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, n_heads,
    n_queries, n_keys, padded, scale, scale_log2, FLOAT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr,
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
        s = tl.dot(k, q.T)  # [BLOCK_N, BLOCK_M]
        dp = tl.dot(v, do.T)
        p = tl.exp2(s * scale_log2 - lse)
        if IS_CAUSAL:
            if start_m < full:
                p = _seen(p, 0.0, (start_m + offs_m)[None, :], keys, n_queries, n_keys, True)
        dv = tl.dot(p.to(do.dtype), do, dv, out_dtype=FLOAT)
        ds = p * (dp - delta)
        dk = tl.dot(ds.to(q.dtype), q, dk, out_dtype=FLOAT)
    dv_desc.store([b, h, start_n, 0], dv.to(k.dtype).reshape(1, 1, BLOCK_N, HEAD_DIM))
    dk = (dk * scale).to(k.dtype)
    dk_desc.store([b, h, start_n, 0], dk.reshape(1, 1, BLOCK_N, HEAD_DIM))

# %% [markdown]
# ## Step 4: tiles that fit
#
# A program for keys holds two accumulators, `dk` and `dv`. At $D = 128$ with tiles of 64 × 64 and four [warps](../glossary.md#warp) these are 128 registers a thread, `p` and `dp` another 64, and 255 is the limit. With 97 KiB of shared memory two programs fit an [SM](../glossary.md#sm): one can multiply while the other computes exponentials. With 128 keys and eight warps a thread needs as many registers, and one program fills the SM; it reads the queries half as often. 128 × 128 [spills](../glossary.md#spill).
#
# A program for queries holds one accumulator. With 128 queries and eight warps `dq` takes 64 registers a thread, `p` and `dp` another 64, and shared memory holds three stages of keys and values beside `q` and `do`, 160 KiB in all. At $D = 64$ registers decide how many programs fit an SM, its [occupancy](../glossary.md#occupancy): three of 128 threads each share 65,536, so that a thread may have 168. The kernel for keys takes more. If causal it is bound to 168, and spills some values for the sake of a third program. Before you look at the [table](#is-it-fast) of four tiles at $D = 128$: which is best for keys, which for queries?
#
# ## Launch
#
# Three kernels, one `autograd.Function`. What a descriptor cannot describe is copied *before* the
# function, so autograd takes the gradient back through the copy. $dO$, too, may have any strides.

# %% tags=["copy"]
# head_dim: BLOCK_M, BLOCK_N, num_warps, num_stages of the forward, for dq, and for dk and dv, whose
# BLOCK_M divides the other two: they write lse and delta for it, past the last query as well. A
# fifth number bounds the registers of a thread if causal: at 168, three programs share an SM
TILES = {
    32: ((128, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 1)),
    64: ((64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 3, 168)),
    128: ((128, 64, 4, 2), (128, 64, 8, 3), (64, 64, 4, 2)),
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
    """Launches a kernel; `blocks` tells "m" or "n" of each tensor: q, k, ..., an owned one last."""
    (batch, heads, n_queries, head_dim), n_keys = tensors[0].shape, tensors[1].shape[2]
    block_m, block_n, num_warps, num_stages, *most = tile
    rows = [{"m": block_m, "n": block_n}[block] for block in blocks]
    described = zip(tensors, rows, strict=True)
    kernel[(triton.cdiv(tensors[-1].shape[2], rows[-1]) * batch * heads,)](
        *(TensorDescriptor.from_tensor(x, [1, 1, n, head_dim]) for x, n in described),
        *statistics, heads, n_queries, n_keys, statistics[0].shape[2], *scales,
        HEAD_DIM=head_dim, BLOCK_M=block_m, BLOCK_N=block_n, IS_CAUSAL=causal,
        FLOAT=tl.float64 if tensors[0].dtype == torch.float64 else tl.float32,
        num_warps=num_warps, num_stages=num_stages,
        maxnreg=most[0] if most and causal else None, **options,
    )  # fmt: skip


def _room_for_lse(q: torch.Tensor) -> torch.Tensor:
    shape = *q.shape[:2], triton.cdiv(q.shape[2], PAD) * PAD
    return q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32))


def flash_attention_forward(q, k, v, out, lse, causal: bool, scale: float) -> None:
    """Writes out and the log-sum-exp, `(B, H, n_queries)` padded to PAD, to base 2."""
    tile = TILES[q.shape[3]][0]
    masked, scales = causal or k.shape[2] % tile[1] != 0, (scale * math.log2(math.e),)
    tensors = (q, k, v, out)
    _launch(flash_attention_kernel, "mnnm", tensors, (lse,), scales, causal, tile, MASKED=masked)


def flash_attention_backward(do, q, k, v, out, lse, dq, dk, dv, causal: bool, scale: float) -> None:
    """Writes dq, dk and dv for `do`, the gradient of out; see `_for_descriptor` for layouts."""
    _, dq_tile, dkdv_tile = TILES[q.shape[3]]
    common = (lse, torch.empty_like(lse)), (scale, scale * math.log2(math.e)), causal
    tensors, masked = (q, k, v, out, do, dq), causal or k.shape[2] % dq_tile[1] != 0
    _launch(flash_attention_dq_kernel, "mnnmmm", tensors, *common, dq_tile, MASKED=masked)
    tensors = q, k, v, do, dk, dv
    _launch(flash_attention_dkdv_kernel, "mnnmnn", tensors, *common, dkdv_tile)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale):
        new = torch.empty if q.numel() and k.numel() else torch.zeros
        out, lse = new(q.shape, dtype=q.dtype, device=q.device), _room_for_lse(q)
        if new is torch.empty:
            with torch.cuda.device_of(q):
                flash_attention_forward(q, k, v, out, lse, causal, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = causal, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        q, k, v, out, lse = ctx.saved_tensors
        new = torch.empty if q.numel() and k.numel() else torch.zeros
        grads = [new(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        if new is torch.empty:
            with torch.cuda.device_of(q):
                do = _for_descriptor(do)
                flash_attention_backward(do, q, k, v, out, lse, *grads, *ctx.options)
        return *grads, None, None


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention, `softmax(scale * q @ k.T) @ v` for every head; differentiable once.

    Neither pass stores the scores. Sums and softmax are float32; weights, and gradients of scores,
    are rounded to the dtype of `q` before they are multiplied. Runs give the same bits.

    Args:
        q: Queries `(B, H, n_queries, D)`, float16 or bfloat16 (in the interpreter float64 too), on
            a GPU; D is 32, 64, 128 or 256. Rows are copied if not adjacent and 16-byte aligned.
        k: Keys `(B, H, n_keys, D)`, of the dtype and device of `q`.
        v: Values, like `k`.
        causal: Whether a query sees only keys up to its place; the last query has the last key's.
        scale: Factor of the scores, positive; `D ** -0.5` if None.

    Returns:
        A contiguous tensor like `q`; 0 for a query that sees no key.

    Raises:
        TypeError: The dtype is none of these, or differs between the inputs.
        ValueError: A shape, the device or the scale is not as above.
    """
    interpreted = triton.knobs.runtime.interpret
    dtypes = (torch.float16, torch.bfloat16) + ((torch.float64,) if interpreted else ())
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype not in dtypes or x.dtype != q.dtype:
            raise TypeError(f"flash_attention takes float16 or bfloat16 alone; {name} is {x.dtype}")
        if x.dim() != 4 or x.device != q.device:
            why = f"takes (B, H, S, D) on one device; {name} is {[*x.shape]} on {x.device}"
            raise ValueError(f"flash_attention {why}")
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
# `check` compares output and gradients with autograd in float64: one token, a block more or less one, fewer keys than queries and more, scores so low that a forgotten mask overflows, tensors in memory as `(B, S, H, D)`. Results start as NaN. Errors are in percent of the rounding of the largest number. In the interpreter `gradcheck` tests the same kernels in float64: `TRITON_INTERPRET=1 python flash_attention_backward.py` prints its verdict. If a bfloat16 gradient of yours is not `allclose` to torch's ([as someone asked](https://github.com/triton-lang/triton/issues/4469)), compare both with float64: [torch's is rounded as well](../faq.md#is-it-wrong-or-is-it-rounding).

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares the kernels and flash_attention with float64; raises AssertionError."""
    torch.manual_seed(0)
    cases = [(1, 1, 1, 1, 64), (2, 3, 65, 127, 32), (1, 2, 128, 128, 32), (1, 1, 129, 63, 64)]
    cases += [(1, 1, 40, 33, 256), (1, 1, 70, 130, 128)]
    # float64's error is that of a float32 scale
    allowed = {torch.float16: 2**-10, torch.float64: 1e-5}
    if device == "cuda":
        # the interpreter's bfloat16 product is wrong
        allowed = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
        cases += [(1, 9, 1000, 4097, 128), (2, 5, 4096, 4096, 128), (2, 12, 1777, 1777, 64)]
    print(" B x H x queries x keys x D" + "".join(f"{str(d)[6:]:>25}" for d in allowed))
    print(" " * 26 + f"{'O':>10}{'dQ':>5}{'dK':>5}{'dV':>5}" * len(allowed))
    for case, (batch, heads, n_queries, n_keys, head_dim) in enumerate(cases):
        line = f"{f'{batch} x {heads} x {n_queries} x {n_keys} x {head_dim}':>26}"
        for dtype, rounding in allowed.items():
            worst = [0.0] * 4
            for causal, scale in ((False, 0.2), (True, head_dim**-0.5)):
                rows = (n_queries, n_keys, n_keys, n_queries)
                q, k, v, do = (torch.randn(batch, n, heads, head_dim, device=device) for n in rows)
                if low := case % 3 == 1:  # what keys share falls out of dq, its rounding does not
                    q, k = 0.3 * q + 5, 0.3 * k - 5
                q, k, v, do = (x.to(dtype).transpose(1, 2) for x in (q, k, v, do))
                if case % 2 == 0:
                    q, k, v, do = (x.contiguous() for x in (q, k, v, do))
                got = [torch.full(x.shape, math.nan).to(x) for x in (q, q, k, v)]
                lse = _room_for_lse(q).fill_(math.nan)
                flash_attention_forward(q, k, v, got[0], lse, causal, scale)
                flash_attention_backward(do, q, k, v, got[0], lse, *got[1:], causal, scale)
                if head_dim <= 128 and dtype != torch.float64:
                    got += first_backward(do, q, k, v, got[0], lse, causal, scale)
                inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
                out = flash_attention_reference(*inputs, causal=causal, scale=scale)
                want = [out, *torch.autograd.grad(out, inputs, do.double())]
                for i, (x, y) in enumerate(zip(got, want + want[1:], strict=False)):
                    limit = rounding * (8 if low else 1) * (y.abs().max() + 0.01)
                    error, at = ((x.double() - y).abs().max() / limit).item(), i - i // 4 * 3
                    worst[at] = error if not error <= worst[at] else worst[at]
            line += " " * 5 + "".join(f"{error:>5.0%}" for error in worst)
            assert all(error <= 1 for error in worst), f"flash_attention is off, {dtype}:\n{line}"
        print(line)
    if device == "cpu":
        x = [torch.randn(1, 1, n, 32).double().requires_grad_() for n in (5, 7, 7)]
        print("gradcheck:", torch.autograd.gradcheck(flash_attention, x, fast_mode=True))

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Sixteen heads, and as many sequences as make 16,384 tokens; the backward pass alone, [cool](../glossary.md#cool-and-hot). Before you look: at 4,096 tokens and $D = 128$ the forward reached {{ rec("attention/flash_attention").row("attention_d128_full", provider="triton", seq_len=4096).tflops | n(0) }} TFLOP/s. What will kernels reach that do seven products, when five are counted?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from functools import partial

    import torch.nn.functional as F
    from torch._functorch import config
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    config.donated_buffer = False  # a graph is kept for many calls
    compiled = torch.compile(flex_attention, dynamic=False)

    def benchmark(name, title, rows, ceiling="matmul"):
        names = {"name": f"flash_backward_{name}", "title": f"Attention backward, {title}"}
        names |= {"x": "seq_len", "dtype": "bfloat16", "mode": "backward", "ceiling": ceiling}
        return names | {"rows": rows}

    def inputs(batch, heads, seq_len, head_dim, n_keys=None):
        sizes = (seq_len, n_keys or seq_len, n_keys or seq_len, seq_len)
        new = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        q, k, v, do = (new(batch, heads, n, head_dim) for n in sizes)
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do

    def gradient(provider, q, k, v, do, causal):
        if provider == "triton":
            out = flash_attention(q, k, v, causal=causal)
        elif provider == "flex":
            seen = lambda b, h, i, j: i >= j  # noqa: E731
            sizes = (None, None, q.shape[2], k.shape[2])
            out = compiled(q, k, v, block_mask=create_block_mask(seen, *sizes) if causal else None)
        else:
            backend = getattr(SDPBackend, f"{provider[5:]}_attention".upper())
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return lambda: torch.autograd.grad(out, (q, k, v), do, retain_graph=True)

    def rows(q, k, causal, timings, products=5):
        (batch, heads, seq_len, head_dim), n_keys = q.shape, k.shape[2]
        size = {"seq_len": seq_len, "n_keys": n_keys, "batch": batch, "heads": heads}
        size |= {"head_dim": head_dim, "causal": causal, "products": products}
        size["bytes"] = 8 * (q.numel() + k.numel())
        size["flops"] = 2 * products * q.numel() * n_keys // (2 if causal else 1)
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    for head_dim, causal in ((128, False), (128, True), (64, False), (64, True)):
        found = []
        for seq_len in (1024, 4096, 16384):
            q, k, v, do = inputs(16384 // seq_len, 16, seq_len, head_dim)
            # flex compiles anew for each shape
            peers = ("triton", "sdpa_cudnn", "sdpa_flash") + ("flex",) * (seq_len == 4096)
            calls = {provider: gradient(provider, q, k, v, do, causal) for provider in peers}
            found += rows(q, k, causal, measure(calls, hot=True))
        kind, heads = "causal" if causal else "full", f"16,384 tokens × 16 heads × {head_dim}"
        yield benchmark(f"d{head_dim}_{kind}", f"{kind}, {heads}, bfloat16", found)

    found = []
    lengths = [(n, n) for n in (1000, 1024, 4096, 4097)]
    for n_queries, n_keys in [*lengths, (4096, 1024), (4097, 1000), (1024, 4096), (1000, 4097)]:
        q, k, v, do = inputs(round(16384 / n_queries), 16, n_queries, 128, n_keys)
        for causal in (False, True)[: 1 + (n_keys == n_queries)]:
            calls = {p: gradient(p, q, k, v, do, causal) for p in ("triton", "sdpa_cudnn")}
            found += rows(q, k, causal, measure(calls))
    yield benchmark("odd", "16 heads × 128, bfloat16: whole tiles and others", found)

    q, k, v, do = (x.detach() for x in inputs(4, 16, 4096, 128))
    (out, dq, dk, dv), lse = (torch.empty_like(q) for _ in range(4)), _room_for_lse(q)
    flash_attention_forward(q, k, v, out, lse, False, 128**-0.5)
    first = partial(first_backward, do, q, k, v, out, lse, False, 128**-0.5)
    calls = {"triton_first": first, "triton_first_dkdv": partial(first, add_dq=False)}
    rest = (lse, torch.empty_like(lse)), (128**-0.5, 128**-0.5 * math.log2(math.e)), False
    by_keys = flash_attention_dkdv_kernel, "mnnmnn", (q, k, v, do, dk, dv), *rest
    by_queries = flash_attention_dq_kernel, "mnnmmm", (q, k, v, out, do, dq), *rest
    for tile in ((64, 64, 4, 1), (64, 64, 4, 2), (128, 64, 8, 3), (64, 128, 8, 2)):
        name = "{}x{}_{}_{}".format(*tile)
        calls[f"triton_dkdv_{name}"] = partial(_launch, *by_keys, tile)
        calls[f"triton_dq_{name}"] = partial(_launch, *by_queries, tile, MASKED=False)
    products = {name: 3 if "dq" in name else 4 for name in calls} | {"triton_first": 5}
    timings = measure(calls)
    found = [rows(q, k, False, {name: timings[name]}, products[name])[0] for name in calls]
    yield benchmark("steps", "kernel by kernel, 4 × 16 heads × 4,096 × 128, bfloat16", found)

    found = []
    for seq_len in (1024, 2048, 4096, 8192, 16384):
        *x, do = inputs(1, 8, seq_len, 128)
        found += rows(*x[:2], False, measure({
            "triton": lambda x=x, do=do: torch.autograd.grad(flash_attention(*x), x, do),
            "torch_unfused": lambda x=x, do=do: torch.autograd.grad(
                flash_attention_reference(*x), x, do),
        }, memory=True))  # fmt: skip
    yield benchmark("memory", "with its forward, 8 heads × 128, bfloat16", found, None)

# %% [markdown]
# {{ figure("flash_backward_d128_full", caption="D = 128, full: ahead of SDPA's flash backend, which is flash attention 2, by half or more at every length, and of FlexAttention; behind cuDNN. SDPA's efficient and math were not timed backward.") }}
#
# {{ figure("flash_backward_d128_causal", caption="D = 128, causal: level with cuDNN at 1,024 tokens, behind it from 4,096 on.") }}{% for kind in ["d128_full", "d128_causal", "d64_full", "d64_causal"] %}{% for r in rows("flash_backward_" ~ kind, provider="triton") %}{{ claim(1.5 * r.ms < row("flash_backward_" ~ kind, provider="sdpa_flash", seq_len=r.seq_len).ms) }}{% if "128" in kind %}{{ claim((row("flash_backward_" ~ kind, provider="sdpa_cudnn", seq_len=r.seq_len).ms < 0.95 * r.ms) == (r.seq_len > 1024 or kind == "d128_full")) }}{% endif %}{% endfor %}{% endfor %}
#
# {% set forward = rec("attention/flash_attention").row("attention_d128_full", provider="triton", seq_len=4096) %}{% set ours, best = row("flash_backward_d128_full", provider="triton", seq_len=4096), row("flash_backward_d128_full", provider="sdpa_cudnn", seq_len=4096) %}Five sevenths of the forward's rate would be {{ (forward.tflops * 5 / 7) | n(0) }} TFLOP/s. The kernels reach {{ ours.tflops | n(0) }} ({{ ours.tflops_hot | n(0) }} back to back, at the clock that the power then allows; [cuDNN](../glossary.md#cudnn) {{ best.tflops_hot | n(0) }}). With all seven products counted that is {{ (ours.tflops * 7 / 5) | n(0) }}: **they multiply faster than the forward.**{{ claim(ours.tflops * 7 / 5 > 1.1 * forward.tflops) }} The forward has an exponential for every two products, and a maximum, a sum and a correction besides. These have one for four products or for three, and nothing to correct. TFLOP/s, and in brackets the share of cuDNN's:
#
# | | 1,024 tokens | 4,096 tokens | 16,384 tokens |
# |---|---|---|---|
# {% for name, label in [("flash_backward_d128_full", "D = 128, full"), ("flash_backward_d128_causal", "D = 128, causal"), ("flash_backward_d64_full", "D = 64, full"), ("flash_backward_d64_causal", "D = 64, causal")] %}
# | {{ label }} {% for n in [1024, 4096, 16384] %}{% set ours = row(name, provider="triton", seq_len=n) %}{% set best = row(name, provider="sdpa_cudnn", seq_len=n) %}| {{ ours.tflops | n(0) }} ({{ (best.ms / ours.ms * 100) | pct }}) {% endfor %}|
# {% endfor %}
#
# {% set flex = [] %}{% set hot = [] %}{% for name in ["flash_backward_d128_full", "flash_backward_d128_causal", "flash_backward_d64_full", "flash_backward_d64_causal"] %}{% set _ = flex.append(100 * row(name, provider="flex").ms / row(name, provider="triton", seq_len=4096).ms - 100) %}{% set _ = hot.append(100 * row(name, provider="flex").ms_hot / row(name, provider="triton", seq_len=4096).ms_hot - 100) %}{% endfor %}*flex* is [FlexAttention](https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html), compiled with its default tiles, its mask made off the clock, and timed at 4,096 tokens only. It takes {{ flex[0] | n(0) }} % ($D = 128$, full) to {{ flex[3] | n(0) }} % ($D = 64$, causal) longer than these kernels, back to back {{ hot | min | n(0) }} to {{ hot | max | n(0) }} %.{{ claim(flex | min == flex[0] and flex | max == flex[3] and flex | min > 10 and hot | min > 8) }} Kernel by kernel, full, at 4,096 tokens and $D = 128$, each rated by the products that it does itself; in bold what the [launch](#launch) takes. Step 1's time includes torch's kernels that compute $\delta$ and clear $dQ$:
#
# | kernel | queries × keys | warps | stages | products | time | TFLOP/s |
# |---|---|---|---|---|---|---|
# {% for name, label in [("first", "step 1"), ("first_dkdv", "step 1 without $dQ$")] %}{% set it = row("flash_backward_steps", provider="triton_" ~ name) %}
# | {{ label }} | 64 × 64 | 4 | 2 | {{ it.products }} | {{ it.ms | ms }} | {{ it.tflops | n(0) }} |
# {% endfor %}{% for name, label, best in [("dkdv", "$dK$ and $dV$", "64x64_4_2"), ("dq", "$dQ$", "128x64_8_3")] %}{% for tile in ["64x64_4_1", "64x64_4_2", "128x64_8_3", "64x128_8_2"] %}{% set it = row("flash_backward_steps", provider="triton_" ~ name ~ "_" ~ tile) %}{% set mark = "**" if tile == best else "" %}
# | {{ label }} | {{ mark ~ tile.split("_")[0].replace("x", " × ") ~ mark }} | {{ tile.split("_")[1] }} | {{ tile.split("_")[2] }} | {{ it.products }} | {{ mark ~ (it.ms | ms) ~ mark }} | {{ it.tflops | n(0) }} |
# {% endfor %}{% endfor %}{% set first, alone = row("flash_backward_steps", provider="triton_first").ms, row("flash_backward_steps", provider="triton_first_dkdv").ms %}{% set keys, keys1, wide, shared = row("flash_backward_steps", provider="triton_dkdv_64x64_4_2").ms, row("flash_backward_steps", provider="triton_dkdv_64x64_4_1").ms, row("flash_backward_steps", provider="triton_dkdv_64x128_8_2").ms, row("flash_backward_steps", provider="triton_dkdv_128x64_8_3").ms %}{% set queries, halved = row("flash_backward_steps", provider="triton_dq_128x64_8_3").ms, row("flash_backward_steps", provider="triton_dq_64x128_8_2").ms %}
#
# - **Steps 1 and 2.** Half of step 1's time goes into one product of five, the one that is added up in memory.{{ claim(0.4 < 1 - alone / first < 0.6) }} Two kernels do all seven in {{ (keys + queries) | ms }}, {{ (first / (keys + queries)) | times }} as fast.{{ claim(first > 2 * (keys + queries)) }}
# - **Step 3.** The same sums in the same tile take {{ alone | ms }} with a row for each query, {{ keys | ms }} with a row for each key.{{ claim(alone > 1.6 * keys) }} `p` and `ds` no longer pass through shared memory; and of the slower kernel NVIDIA's assembler, which makes the [SASS](../glossary.md#sass), says that its products are "serialized": each waits for the one before.
# - **Step 4.** One stage for two costs {{ (100 * keys1 / keys - 100) | pct }}: no tile is on its way while another is multiplied. 128 keys and eight warps cost {{ (100 * wide / keys - 100) | pct }}, likely because that program has its SM to itself.{{ claim(keys1 > 1.2 * keys and wide > 1.1 * keys) }}
# - **Eight warps, 64 rows.** A tensor core product, a [wgmma](../glossary.md#wgmma), takes four warps and gives 64 rows. Where a tile of scores has 64 for eight warps (128 queries for $dK$, 128 keys for $dQ$), Triton lets both halves compute all of $S$ and $dP$, and the kernel for keys spills besides: {{ (shared / keys) | times }} and {{ (halved / queries) | times }} the time of the best.{{ claim(shared > 2 * keys and halved > 1.7 * queries) }} Give each four warps 64 rows of their own.
#
# {{ figure("flash_backward_memory", y="peak_bytes", logy=True, caption="Forward and backward, 8 heads: with the matrix memory grows fourfold for twice the tokens, without it twofold.") }}
#
# {% set kept, stored = row("flash_backward_memory", provider="triton", seq_len=16384), row("flash_backward_memory", provider="torch_unfused", seq_len=16384) %}{% for r in rows("flash_backward_memory", provider="triton")[1:] %}{{ claim(r.peak_bytes < 2.1 * row("flash_backward_memory", provider="triton", seq_len=r.seq_len // 2).peak_bytes and row("flash_backward_memory", provider="torch_unfused", seq_len=r.seq_len).peak_bytes > 3.8 * row("flash_backward_memory", provider="torch_unfused", seq_len=r.seq_len // 2).peak_bytes) }}{% endfor %}At 16,384 tokens {{ kept.peak_bytes | bytes }} are the output, three gradients and two numbers a row. {{ claim(stored.ms > 2 * kept.ms and kept.peak_bytes < 1.01 * (4 * 16384 * 8 * 256 + 2 * 4 * 16384 * 8)) }}PyTorch, with the matrix, takes {{ stored.peak_bytes | bytes }} and {{ (stored.ms / kept.ms) | times }} the time.
#
# ## Where it loses, and why
#
# {% set ours, best = row("flash_backward_d128_full", provider="triton", seq_len=16384), row("flash_backward_d128_full", provider="sdpa_cudnn", seq_len=16384) %}**cuDNN, at $D = 128$,** takes {{ (100 * row("flash_backward_d128_full", provider="sdpa_cudnn", seq_len=4096).ms / row("flash_backward_d128_full", provider="triton", seq_len=4096).ms) | pct }} of this page's time on full attention at 4,096 tokens, {{ (100 * best.ms / ours.ms) | pct }} at 16,384. No tile makes up for that. To be as fast there, seven products would have to run at {{ (best.tflops * 7 / 5) | n(0) }} TFLOP/s, and a large product of the library alone reaches {{ matmul_tflops("bfloat16", 8192) | n(0) }}.{{ claim(best.tflops * 7 / 5 > 1.03 * matmul_tflops("bfloat16", 8192)) }} Fewer products are the way: [flash attention 3](https://arxiv.org/abs/2407.08608) does five, with $dQ$ added up in memory, and starts a product while another runs, where Triton's compiler waits for $S$ before it starts $dP$. The price is the order of that sum: cuDNN's gradients [may differ from run to run](https://github.com/karpathy/llm.c/pull/652) unless it is asked for the same bits. Torch does not ask: told to use deterministic algorithms, its SDPA [leaves cuDNN out](https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). [Gluon](hopper_attention.py) can state such an order of products, and [attention's backward on Hopper](hopper_backward.py) does. **Large scores.** One float32 a row, the [log-sum-exp](../glossary.md#log-sum-exp) in base 2, has to bring back all weights of the row. At 4 · 10⁵ its neighbours lie 1/32 apart, so weights come back up to 1 % wrong, at 4 · 10⁷ up to four times too large or small, and nothing says so. *Not yet right*: a NaN among the scores of a row leaves numbers in rows of $dV$ that must be NaN.
#
# {% for n in [1024, 4096, 16384] %}{% for kind in ["full", "causal"] %}{{ claim(row("flash_backward_d64_" ~ kind, provider="sdpa_cudnn", seq_len=n).ms / row("flash_backward_d64_" ~ kind, provider="triton", seq_len=n).ms > 1.05 * row("flash_backward_d128_" ~ kind, provider="sdpa_cudnn", seq_len=n).ms / row("flash_backward_d128_" ~ kind, provider="triton", seq_len=n).ms) }}{% endfor %}{{ claim((row("flash_backward_d64_causal", provider="triton", seq_len=n).ms < row("flash_backward_d64_causal", provider="sdpa_cudnn", seq_len=n).ms) == (n < 16384)) }}{% endfor %}{% set short, even = row("flash_backward_odd", provider="triton", seq_len=1024, n_keys=1024, causal=False), row("flash_backward_odd", provider="triton", seq_len=4096, n_keys=4096, causal=False) %}{% set few, many = row("flash_backward_odd", provider="triton", seq_len=4096, n_keys=1024), row("flash_backward_odd", provider="triton", seq_len=1024, n_keys=4096) %}{% set lost = [] %}{% for (m, n), (a, b) in [((1000, 1000), (1024, 1024)), ((4097, 4097), (4096, 4096)), ((4097, 1000), (4096, 1024)), ((1000, 4097), (1024, 4096))] %}{% for causal in [false, true] if m == n or not causal %}{% set _ = lost.append(100 - 100 * row("flash_backward_odd", provider="triton", seq_len=m, n_keys=n, causal=causal).tflops / row("flash_backward_odd", provider="triton", seq_len=a, n_keys=b, causal=causal).tflops) %}{% endfor %}{% endfor %}At $D = 64$ the gap to cuDNN is smaller, and causal attention of up to 4,096 tokens is faster here in single launches; back to back cuDNN is ahead at 4,096.{{ claim(row("flash_backward_d64_causal", provider="sdpa_cudnn", seq_len=4096).ms_hot < row("flash_backward_d64_causal", provider="triton", seq_len=4096).ms_hot) }} **Odd lengths** cost {{ lost | min | n(0) }} to {{ lost | max | n(0) }} % of the rate of whole tiles beside them.{{ claim(0 < lost | min and lost | max < 8) }} **Few keys** cost more, {{ (100 - 100 * few.tflops / even.tflops) | pct }} of the rate of 4,096 × 4,096: a program for $dQ$ then loops a quarter as often between the same start and end. With few queries it is the loops for $dK$ and $dV$ that are short, and {{ (100 - 100 * many.tflops / even.tflops) | pct }}.{{ claim(few.tflops < 0.92 * even.tflops and few.tflops < many.tflops < even.tflops) }} At **1,024 tokens** the loops of both kernels are short, and the rate is {{ (100 - 100 * short.tflops / even.tflops) | pct }} lower than at 4,096; cuDNN's falls further.{{ claim(row("flash_backward_odd", provider="sdpa_cudnn", seq_len=1024, n_keys=1024, causal=False).tflops / row("flash_backward_odd", provider="sdpa_cudnn", seq_len=4096, n_keys=4096, causal=False).tflops < short.tflops / even.tflops) }} TFLOP/s, $D = 128$, and in brackets cuDNN's, measured apart from the figures above; for lengths that differ torch's `is_causal` [has another mask](flash_attention.py#where-it-loses-and-why):
#
# | queries × keys | full | causal |
# |---|---|---|
# {% for m, n in [(1024, 1024), (1000, 1000), (4096, 4096), (4097, 4097), (4096, 1024), (4097, 1000), (1024, 4096), (1000, 4097)] %}
# | {{ "{:,} × {:,}".format(m, n) }} {% for causal in [false, true] %}| {% if m == n or not causal %}{% set where = {"seq_len": m, "n_keys": n, "causal": causal} %}{{ row("flash_backward_odd", provider="triton", **where).tflops | n(0) }} ({{ row("flash_backward_odd", provider="sdpa_cudnn", **where).tflops | n(0) }}) {% else %}– {% endif %}{% endfor %}|
# {% endfor %}
#
# ## What to remember
#
# 1. A matrix that one product rebuilds need not be stored: computing it again is faster.
# 2. Look for another form of a sum that a tile cannot make: $\delta = dO \cdot O$.
# 3. Give every sum one owner, and every run gives the same bits. Here that costs two products.
#
# ## Exercises
#
# ??? question "1. A sink (ten minutes)"
#     Give the softmax of every row one more score $s_0$, a learned number that has no value to add.
#     What is the gradient of $s_0$? What else changes?
#
#     ??? success "Answer"
#         No value, so $dp_0 = 0$ and $ds_0 = -p_0 \delta$; sum it over the queries. $L$ now contains $s_0$, and all other [formulas](#the-gradient-line-by-line) stay.
#
# ??? question "2. Dropout on the weights (twenty minutes)"
#     Before $P$ meets $V$ it is multiplied by a mask $M$ of 0 and $1 / (1 - r)$, which a seed [makes again](../fusion/dropout.py) in the backward pass. Which formulas change? Does $\delta$?
#
#     ??? success "Answer"
#         With $P' = P \circ M$: $dV = P'^\top dO$ and $dP = (dO \, V^\top) \circ M$. $\delta$ does
#         not: $\sum_j p_j \, dp_j = \sum_j p'_j \, (dO \cdot v_j) = dO \cdot O$, as before.
#
# ??? question "3. Fused again (an hour)"
#     Let `flash_attention_dkdv_kernel` add its share of $dQ$ with `dq_desc.atomic_add`. Do the
#     registers suffice for 64 queries × 128 keys and eight warps? When is it faster?
#
#     ??? success "Answer"
#         `dq` needs 32 more, and `ds.T` goes through shared memory: all 255 are taken, and some
#         values spill. It is faster if that and the atomics cost less than two products.
#
# ## Use it in your project
#
# ```python
# from flash_attention_backward import flash_attention
#
# # (B, H, S, D), float16 or bfloat16, any S, D 32, 64, 128 or 256
# out = flash_attention(q, k, v, causal=True)
# out.sum().backward()
# ```
#
# The file, or the block "Copy this kernel", needs torch and triton alone: see [`flash_attention`][examples.attention.flash_attention_backward.flash_attention]. Where cuDNN is faster and gradients may differ from run to run, take `scaled_dot_product_attention` or, on Hopper, the kernel [in Gluon](hopper_backward.py#use-it-in-your-project). Heads that share keys, and sequences of mixed lengths, have [a page of their own](gqa_varlen.py).
