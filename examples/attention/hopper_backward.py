# %% [markdown]
# ---
# title: Attention's backward on Hopper
# description: The gradient of attention in Gluon with five products instead of seven, a sum made in memory, and an order of work that keeps the tensor cores busy.
# tags: [attention, tensor cores, Gluon, wgmma, TMA, autograd, determinism]
# prerequisites: [attention/flash_attention_backward, attention/hopper_attention]
# outcome: Say what a sum in memory costs and saves, and order asynchronous products so that each wait is for one of them alone.
# search: {boost: 0.9}  # who looks for the gradient is served first by the page before
# ---
#
# # Attention's backward on Hopper: five products in order
#
# {% set tl, cudnn = rec("attention/flash_attention_backward").row("flash_backward_d128_full", provider="triton", seq_len=4096), rec("attention/flash_attention_backward").row("flash_backward_d128_full", provider="sdpa_cudnn", seq_len=4096) %}The [backward pass in `tl`](flash_attention_backward.py) ended at {{ tl.tflops | n(0) }} TFLOP/s for 4,096 tokens and $D = 128$, and cuDNN reached {{ cudnn.tflops | n(0) }}. Its two kernels give every sum an owner, and do seven products for it where five would do; that page counted that no kernel of seven can pass cuDNN on long sequences. **What does it take to do five, and what does it cost?**
#
# It takes a sum that many programs make together in memory, and an order of products that `tl` cannot state. So this page is written in [Gluon](../glossary.md#gluon), as [the forward](hopper_attention.py) is, for the same chip (H100 and H200). Read that page first: rings, barriers and layouts are explained there. Without such a GPU you can read on, but not run.
#
# ## What a step costs
#
# A [program](../glossary.md#program) owns 128 keys and walks over the queries, 64 a step. In cycles of an [SM](../glossary.md#sm), whose [tensor cores](../glossary.md#tensor-core) do 4,096 operations in one, and whose special units 16 exponentials:
#
# | a step: 128 keys, 64 queries | $D = 128$ | $D = 64$ |
# |---|--:|--:|
# | one product, $2 \cdot 128 \cdot 64 \cdot D$ operations | 512 | 256 |
# | five products | 2,560 | 1,280 |
# | seven products | 3,584 | 1,792 |
# | 8,192 exponentials | 512 | 512 |
# | other arithmetic on scores, about five instructions for each | 320 | 320 |
# | part of $dQ$ to add up in memory, float32 | 32 KiB | 16 KiB |
#
# Exponentials and arithmetic are few beside the products, if they run *at the same time*. At $D = 64$ that matters more: in turn they would add two thirds to the time of five products, at $D = 128$ one third. The last row is the price: for a head of 4,096 tokens and $D = 128$ {{ (4 * 4096**2 * 128 // 128) | bytes }} go to [L2](../glossary.md#l2), where the additions are done. And their order is that in which programs happen to arrive: **gradients of queries differ in the last digits from run to run**.

# %% tags=["copy"]
import functools
import math
from itertools import product

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# %% [markdown]
# ## The reference
#
# The forward's, and autograd makes the gradient. Where several query heads share a head of keys ([GQA](../glossary.md#gqa)), each adds to the gradient of that head; a query that sees no key has the gradient 0.

# %%
def hopper_attention_reference(q, k, v, causal=False, scale=None):
    """Attention in plain PyTorch, differentiable: output and log-sum-exp of every row of scores."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * scale  # [B, H, n_queries, n_keys]
    seen = torch.ones_like(scores, dtype=torch.bool)
    seen = seen.tril(k.shape[2] - q.shape[2]) if causal else seen
    # finite: the gradient of a softmax over nothing would be NaN
    weights = scores.masked_fill(~seen, -1e30).softmax(dim=-1).masked_fill(~seen, 0.0)
    return weights @ v, scores.masked_fill(~seen, -float("inf")).logsumexp(dim=-1)

# %% [markdown]
# ## Before and after
#
# Two small kernels frame the large one. The first computes $\delta = dO \cdot O$ of every row, as [derived before](flash_attention_backward.py#the-gradient-line-by-line), turns the log-sum-exp into powers of 2, and clears the float32 buffer in which $dQ$ will be added up. Rows past the last query, and queries that see no key, get a log-sum-exp of $+\infty$: their weights are then $2^{-\infty} = 0$, without a mask in the large kernel. The last kernel scales the sum, rounds it, and puts it in order: the buffer has [another one](#a-sum-in-memory).

# %% tags=["copy"]
@triton.jit(do_not_specialize=["n_heads", "n_queries", "padded"])
def _before(
    out_ptr, do_ptr, stride_b, stride_h, stride_m, lse_ptr, lse2_ptr, delta_ptr, dq_ptr,
    n_heads, n_queries, padded, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of `ROWS` rows: log-sum-exp to base 2, sums of `do * out`, zeros for the gradient."""
    tiles = padded // ROWS
    head, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * ROWS
    rows, cols = start + tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)[None, :]
    mask = rows < n_queries
    b, h = (head // n_heads).to(tl.int64), (head % n_heads).to(tl.int64)
    do_ptrs = do_ptr + b * stride_b + h * stride_h + rows.to(tl.int64)[:, None] * stride_m + cols
    do = tl.load(do_ptrs, mask=mask[:, None], other=0.0).to(tl.float32)
    at = head.to(tl.int64) * n_queries + rows
    out = tl.load(out_ptr + at[:, None] * HEAD_DIM + cols, mask=mask[:, None], other=0.0)
    lse = tl.load(lse_ptr + at, mask=mask, other=float("inf"))
    lse = tl.where(lse == -float("inf"), float("inf"), lse)
    at = head.to(tl.int64) * padded + rows
    tl.store(lse2_ptr + at, lse * 1.4426950408889634)
    tl.store(delta_ptr + at, tl.sum(do * out.to(tl.float32), axis=1))
    tl.store(dq_ptr + at[:, None] * HEAD_DIM + cols, tl.zeros([ROWS, HEAD_DIM], tl.float32))


@triton.jit(do_not_specialize=["n_queries", "padded"])
def _after(
    sum_ptr, dq_ptr, n_queries, padded, scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient, from the order in which the large kernel adds it up."""
    tiles = padded // BLOCK_M
    head, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    start = (head * padded + tile * BLOCK_M) * HEAD_DIM
    x = tl.load(sum_ptr + start + tl.arange(0, BLOCK_M * HEAD_DIM))
    # [part, i, warp, row, place, half, bit] -> [warp, half, row, part, i, place, bit]
    x = x.reshape([2, HEAD_DIM // 16, 4, 8, 4, 2, 2]).permute([2, 5, 3, 0, 1, 4, 6])
    x = x.reshape([BLOCK_M, HEAD_DIM])
    rows, cols = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, HEAD_DIM)[None, :]
    dq_ptrs = dq_ptr + (head * n_queries + rows)[:, None] * HEAD_DIM + cols
    tl.store(dq_ptrs, (x * scale).to(dq_ptr.dtype.element_ty), mask=(rows < n_queries)[:, None])

# %% [markdown]
# ## Who does what
#
# One [warp](../glossary.md#warp) loads: keys and values once, and for each step a slot with 64 queries, their $dO$, log-sum-exp and $\delta$. Eight warps compute. All eight are *one* consumer, not two of four as in the forward: each four have 64 of the 128 keys, but $dQ$ sums over all of them, so both halves of $dS$ must meet in [shared memory](../glossary.md#shared-memory).{{ diagram("hopper_backward_tile") }}
#
# [Shared heads](../glossary.md#gqa) cost no further sum: the program that owns a tile of keys walks over the tiles of all their query heads, one head after the other (`_step`). If causal, it begins at the first tile that sees one of its keys. Programs of the first keys then have the longest way and start first, taken from up to four heads in turn (`together`).

# %% tags=["copy"]
@gluon.jit
def _ring(desc, n: gl.constexpr):
    shape: gl.constexpr = [n] + desc.block_type.shape  # noqa: RUF005
    return gl.allocate_shared_memory(desc.dtype, shape, desc.layout)


@gluon.jit
def _barriers(n: gl.constexpr):
    """`n` barriers that complete after one arrival."""
    barriers = gl.allocate_shared_memory(gl.int64, [n, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(n):
        mbarrier.init(barriers.index(i), count=1)
    return barriers


@gluon.jit
def _work(sizes, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, MASK: gl.constexpr):
    """Head of keys (of all batches), first key, first tile of queries, tiles of a head."""
    n_queries, n_keys, together = sizes
    pid, tiles = gl.program_id(0), gl.cdiv(n_keys, BLOCK_N)
    head = pid // (together * tiles) * together + pid % together
    start_n = pid // together % tiles * BLOCK_N
    first = gl.maximum(start_n + n_queries - n_keys, 0) // BLOCK_M if MASK == "causal" else 0
    return head, start_n, first, gl.cdiv(n_queries, BLOCK_M)


@gluon.jit
def _step(i, head, first, tiles, shared_by):
    """Head of queries and tile of step `i`."""
    if shared_by == 1:
        return head, first + i
    return head * shared_by + i // (tiles - first), first + i % (tiles - first)


@gluon.jit
def _load(descs, heads, sizes, rings, bars, MASK: gl.constexpr):
    """The loading warp."""
    k_desc, v_desc, q_desc, do_desc, lse_desc, delta_desc = descs
    k_ring, v_ring, q_ring, do_ring, lse_ring, delta_ring = rings
    kv_full, full, free = bars
    n_heads, shared_by = heads
    STAGES: gl.constexpr = q_ring.shape[0]
    BLOCK_M: gl.constexpr = q_ring.shape[3]
    BYTES: gl.constexpr = 2 * q_desc.block_type.nbytes + 2 * lse_desc.block_type.nbytes
    head, start_n, first, tiles = _work(sizes, BLOCK_M, k_ring.shape[3], MASK)
    kv_heads = n_heads // shared_by
    keys_at = [head // kv_heads, head % kv_heads, start_n, 0]
    mbarrier.expect(kv_full.index(0), 2 * k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(k_desc, keys_at, kv_full.index(0), k_ring.index(0))
    tma.async_copy_global_to_shared(v_desc, keys_at, kv_full.index(0), v_ring.index(0))
    for i in range((tiles - first) * shared_by):
        slot, turn = i % STAGES, i // STAGES & 1
        q_head, tile = _step(i, head, first, tiles, shared_by)
        at = [q_head // n_heads, q_head % n_heads, tile * BLOCK_M, 0]
        row_at = [q_head, tile * BLOCK_M]
        bar = full.index(slot)
        mbarrier.wait(free.index(slot), turn ^ 1)
        mbarrier.expect(bar, BYTES)
        tma.async_copy_global_to_shared(q_desc, at, bar, q_ring.index(slot))
        tma.async_copy_global_to_shared(lse_desc, row_at, bar, lse_ring.index(slot))
        tma.async_copy_global_to_shared(do_desc, at, bar, do_ring.index(slot))
        tma.async_copy_global_to_shared(delta_desc, row_at, bar, delta_ring.index(slot))

# %% [markdown]
# ## A sum in memory
#
# A wgmma leaves two adjacent numbers of a row in a thread, and two of the eighth row below. In a buffer with rows a thread could add two at once, 8 bytes. But who says that the buffer has rows? Any order will do that `_after` knows. So those four numbers come to lie side by side, and beside them those of the next thread: one instruction adds 16 bytes a thread, 512 in a row a warp (`red.global.add.v4.f32` in [PTX](../glossary.md#ptx)). No mask is needed: past the last query the parts are 0.
#
# ## Weights
#
# As on the page before, scores have a row for each key, so that $P$ and $dS$ come back in the [layout](../glossary.md#layout) in which $dV$ and $dK$ want their left factors. Only tiles on the diagonal, or with the last keys, are masked, and *before* the exponentials. To mask the weights after them is as right, but it takes [registers](../glossary.md#register) while $dP$ is running, and at $D = 128$ too few are left: NVIDIA's assembler then [makes every product wait](#what-the-assembler-wants) for the one before.

# %% tags=["copy"]
@gluon.jit
def _rows(ring, slot, like):
    """One number of a slot for each column of `like`."""
    column: gl.constexpr = gl.SliceLayout(0, like.type.layout)
    return ring.index(slot).reshape([like.shape[1]]).load(column)[None, :]


@gluon.jit
def _weights(s, lse_ring, slot, start_n, start_m, sizes, scale_log2, MASK: gl.constexpr):
    """Weights of a tile, transposed; 0 where the query does not see the key."""
    n_queries, n_keys, _ = sizes
    BLOCK_N: gl.constexpr = s.shape[0]
    keys = start_n + gl.arange(0, BLOCK_N, gl.SliceLayout(1, s.type.layout))[:, None]
    queries = gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))[None, :]
    if MASK == "causal":
        # the last key that the first query sees; keys past the end are seen by none
        last = start_m + n_keys - n_queries
        if start_n + BLOCK_N - 1 > last:
            s = gl.where(keys - last <= queries, s, -float("inf"))
    elif MASK == "end":
        if start_n + BLOCK_N > n_keys:
            s = gl.where(keys < n_keys, s, -float("inf"))
    return gl.exp2(s * scale_log2 - _rows(lse_ring, slot, s))


@gluon.jit
def _add(dq, dq_ptr, q_head, tile, tiles, SUM: gl.constexpr):
    """Adds a tile to the sum in memory; without SUM nothing, to see what that costs."""
    N: gl.constexpr = dq.shape[0] * dq.shape[1]
    # [warp, half, row, part, i, place, bit] -> [part, i, warp, row, place, half, bit]
    x = dq.reshape([4, 2, 8, 2, dq.shape[1] // 16, 4, 2]).permute([3, 4, 0, 2, 5, 1, 6])
    x = x.reshape([N])
    dq_ptrs = dq_ptr + (q_head.to(gl.int64) * tiles + tile) * N + gl.arange(0, N, x.type.layout)
    if SUM:
        gl.atomic_add(dq_ptrs, x, sem="relaxed")
    else:
        # never, but the compiler must not leave out the product
        gl.store(dq_ptrs, x, mask=x != x)

# %% [markdown]
# ## Rung 1: in turn
#
# Five products, and each [wait](hopper_attention.py#gluon-the-same-compiler-one-floor-down) is for all that run: start $S$ and $dP$, wait, exponentials; start $dV$, wait, $dS$; start $dQ$ and $dK$, wait, add. `tl` makes about that of such a loop.
#
# ## Rung 2: wait for one alone
#
# `warpgroup_mma_wait(1)` returns when at most one product is still running, and that can only be [the one started last](https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-wait-group): all before it have ended. So always start one more than you wait for (in the code the two rungs differ in a number, `RUNNING`: how many products a wait leaves):
#
# | start | wait for | and meanwhile |
# |---|---|---|
# | $S$, $dP$ | $S$ | exponentials, under $dP$ |
# | $dV$ | $dP$ | $dS$, and to shared memory, under $dV$ |
# | $dQ$, $dK$ | $dQ$ | adding $dQ$, and on to the next step, under $dK$ |
#
# {{ diagram("hopper_backward_orders") }}
#
# ## Rung 3: a step ahead
#
# At $D = 64$ the exponentials take 512 cycles, and $dP$ beside them 256. But `dk` and `dv` take half the [registers](../glossary.md#register), so that $S$ and $dP$ of the *next* step find room (`AHEAD`), and three products run beside the arithmetic, not one. After the last step $S$ and $dP$ are computed once more, of whatever the slot holds, and nobody looks:
#
# | start | wait for | and meanwhile |
# |---|---|---|
# | next $S$, $dP$ | | $dS$ to shared memory, adding the last $dQ$, under $S$ and $dP$ |
# | $dV$, $dQ$, $dK$ | next $S$, $dP$ | the next step's exponentials and $dS$, under the three |
# | | the three | |

# %% tags=["copy"]
@gluon.jit
def _tile(ring, slot):
    return ring.index(slot).reshape([ring.shape[3], ring.shape[4]])


@gluon.jit
def _new(a, b, like):
    """Starts a product, laid out like `like`."""
    return hopper.warpgroup_mma(a, b, like, use_acc=False, is_async=True)


@gluon.jit
def _multiply(
    task, heads, sizes, rings, ds_ring, bars,
    MASK: gl.constexpr, AHEAD: gl.constexpr, RUNNING: gl.constexpr, SUM: gl.constexpr,
):  # fmt: skip
    """The consumer, eight warps: gradients of one tile of keys and values, and parts of dQ."""
    dk_desc, dv_desc, dq_ptr, scale, scale_log2 = task
    k_ring, v_ring, q_ring, do_ring, lse_ring, delta_ring = rings
    kv_full, full, free = bars
    n_heads, shared_by = heads
    dtype: gl.constexpr = k_ring.dtype
    STAGES: gl.constexpr = q_ring.shape[0]
    BLOCK_M: gl.constexpr = q_ring.shape[3]
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    D: gl.constexpr = k_ring.shape[4]
    # warps side by side over the keys; for dQ four have the first half of D, four the second
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, BLOCK_M, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, D, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    HALVES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, D // 2, 16])
    head, start_n, first, tiles = _work(sizes, BLOCK_M, BLOCK_N, MASK)
    # the last query sees every key, so there is a step; the compiler must know it as well
    steps = gl.maximum((tiles - first) * shared_by, 1)
    scores = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, SCORES)
    part = gl.zeros([BLOCK_M, D], gl.float32, HALVES)
    dk = hopper.warpgroup_mma_init(gl.zeros([BLOCK_N, D], gl.float32, SUMS))
    dv = hopper.warpgroup_mma_init(gl.zeros([BLOCK_N, D], gl.float32, SUMS))
    mbarrier.wait(kv_full.index(0), 0)
    k, v = _tile(k_ring, 0), _tile(v_ring, 0)
    left = gl.zeros([BLOCK_N, BLOCK_M], dtype, LEFT)
    if AHEAD:
        weights = left
        mbarrier.wait(full.index(0), 0)
        s = _new(k, _tile(q_ring, 0).permute([1, 0]), scores)
        dp = _new(v, _tile(do_ring, 0).permute([1, 0]), scores)
        s, dp = hopper.warpgroup_mma_wait(0, deps=(s, dp))
        dq = hopper.warpgroup_mma_init(part)
    for i in range(steps):
        slot, turn, last_slot = i % STAGES, i // STAGES & 1, (i + STAGES - 1) % STAGES
        q_head, tile = _step(i, head, first, tiles, shared_by)
        q, do, ds_tile = _tile(q_ring, slot), _tile(do_ring, slot), ds_ring.index(i % 2)
        if not AHEAD:
            mbarrier.wait(full.index(slot), turn)
            s = _new(k, q.permute([1, 0]), scores)
            dp = _new(v, do.permute([1, 0]), scores)
            s, left = hopper.warpgroup_mma_wait(RUNNING, deps=(s, left))
            p = _weights(s, lse_ring, slot, start_n, tile * BLOCK_M, sizes, scale_log2, MASK)
            weights = gl.convert_layout(p.to(dtype), LEFT)
            dv = hopper.warpgroup_mma(weights, do, dv, is_async=True)
            # the slot of the step before: its last product, dK, ended before S
            mbarrier.arrive(free.index(last_slot), count=1, pred=i > 0)
            dp = hopper.warpgroup_mma_wait(RUNNING, deps=(dp,))
            ds = (p * (dp - _rows(delta_ring, slot, dp))).to(dtype)
            ds_tile.store(ds)
            hopper.fence_async_shared()
            dq = _new(ds_tile.permute([1, 0]), k, part)
            left = gl.convert_layout(ds, LEFT)
            dk = hopper.warpgroup_mma(left, q, dk, is_async=True)
            dq, weights = hopper.warpgroup_mma_wait(RUNNING, deps=(dq, weights))
            _add(dq, dq_ptr, q_head, tile, tiles, SUM)
        else:
            p = _weights(s, lse_ring, slot, start_n, tile * BLOCK_M, sizes, scale_log2, MASK)
            weights = hopper.warpgroup_mma_wait(2, deps=(weights,))
            weights = gl.convert_layout(p.to(dtype), LEFT)
            ds = (p * (dp - _rows(delta_ring, slot, dp))).to(dtype)
            dq, dk, dv, left = hopper.warpgroup_mma_wait(0, deps=(dq, dk, dv, left))
            left = gl.convert_layout(ds, LEFT)
            slot, turn = (i + 1) % STAGES, (i + 1) // STAGES & 1
            mbarrier.wait(full.index(slot), turn, pred=i + 1 < steps)
            s = _new(k, _tile(q_ring, slot).permute([1, 0]), scores)
            dp = _new(v, _tile(do_ring, slot).permute([1, 0]), scores)
            mbarrier.arrive(free.index(last_slot), count=1, pred=i > 0)
            ds_tile.store(ds)
            hopper.fence_async_shared()
            # of the step before; in the first, zeros
            q_head, tile = _step(gl.maximum(i - 1, 0), head, first, tiles, shared_by)
            _add(dq, dq_ptr, q_head, tile, tiles, SUM)
            dv = hopper.warpgroup_mma(weights, do, dv, is_async=True)
            dq = _new(ds_tile.permute([1, 0]), k, part)
            dk = hopper.warpgroup_mma(left, q, dk, is_async=True)
            s, dp = hopper.warpgroup_mma_wait(3, deps=(s, dp))
    dk, dv, left = hopper.warpgroup_mma_wait(0, deps=(dk, dv, left))
    if AHEAD:
        dq, weights = hopper.warpgroup_mma_wait(0, deps=(dq, weights))
        q_head, tile = _step(steps - 1, head, first, tiles, shared_by)
        _add(dq, dq_ptr, q_head, tile, tiles, SUM)
    # out through the room of values and keys; values first, whose rows only their own warps read
    kv_heads = n_heads // shared_by
    at = [head // kv_heads, head % kv_heads, start_n, 0]
    v.store(dv.to(dtype))
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(dv_desc, at, v_ring.index(0))
    k.store((dk * scale).to(dtype))
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(dk_desc, at, k_ring.index(0))
    tma.store_wait(pendings=0)


@gluon.jit(do_not_specialize=["n_heads", "n_queries", "n_keys", "together"])
def hopper_attention_backward_kernel(
    k_desc, v_desc, q_desc, do_desc, lse_desc, delta_desc, dk_desc, dv_desc, dq_ptr,
    n_heads, shared_by, n_queries, n_keys, together, scale, scale_log2, STAGES: gl.constexpr,
    MASK: gl.constexpr, AHEAD: gl.constexpr, RUNNING: gl.constexpr, SUM: gl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values of one head; parts of dQ are added in memory."""
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[2]
    BLOCK_N: gl.constexpr = k_desc.block_type.shape[2]
    DS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_M], k_desc.dtype)
    q_ring, do_ring = _ring(q_desc, STAGES), _ring(do_desc, STAGES)
    k_ring, v_ring = _ring(k_desc, 1), _ring(v_desc, 1)
    lse_ring, delta_ring = _ring(lse_desc, STAGES), _ring(delta_desc, STAGES)
    ds_ring = gl.allocate_shared_memory(k_desc.dtype, [2, BLOCK_N, BLOCK_M], DS)
    rings = (k_ring, v_ring, q_ring, do_ring, lse_ring, delta_ring)
    bars = (_barriers(1), _barriers(STAGES), _barriers(STAGES))
    descs = (k_desc, v_desc, q_desc, do_desc, lse_desc, delta_desc)
    heads, sizes = (n_heads, shared_by), (n_queries, n_keys, together)
    task = (dk_desc, dv_desc, dq_ptr, scale, scale_log2)
    gl.warp_specialize([
        (_multiply, (task, heads, sizes, rings, ds_ring, bars, MASK, AHEAD, RUNNING, SUM)),
        (_load, (descs, heads, sizes, rings, bars, MASK)),
    ], [1], [24])  # fmt: skip

# %% [markdown]
# ## Registers decide
#
# What a thread holds at its fullest, in registers of 32 bits; 240 is the limit:
#
# | | `dk`, `dv` | $S$ or $P$ | $dP$ | $P$, $dS$ in 16 bits | `dq` | together |
# |---|--:|--:|--:|--:|--:|--:|
# | rung 2, $D = 128$, before $dV$ | 128 | 32 | 32 | 16 | | 208 |
# | rung 3, $D = 64$, while the next $S$ runs | 64 | 32 | 32 | 32 | 16 | 176 |
# | rung 3, $D = 128$ | 128 | 32 | 32 | 32 | 32 | 256 |
#
# Addresses, counters and $\delta$ come on top. So at $D = 128$ rung 3 [spills](../glossary.md#spill), and rung 2 is the last. The limit: an [SM](../glossary.md#sm) has 65,536 [registers](../glossary.md#register). Eight warps with 240 a thread, and four, of which one loads, with 24 take 64,512, which is 168 for each of 384 threads at launch (`maxnreg`). Three kernels make one `autograd.Function`; the forward is [that of its page](hopper_attention.py), or any other that returns the log-sum-exp as well.

# %% tags=["copy"]
# causal, as many heads' programs take turns, the longest of all of them first
BLOCK_M, BLOCK_N, TOGETHER = 64, 128, 4
STAGES = {64: 4, 128: 2}
_layout = functools.lru_cache(gl.NVMMASharedLayout.get_default_for)


def _described(x: torch.Tensor, block: tuple[int, ...]) -> TensorDescriptor:
    dtype = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}.get(x.dtype, gl.float32)
    return TensorDescriptor.from_tensor(x, block, _layout(block, dtype))


def _for_descriptor(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if a descriptor can describe it, else a contiguous copy."""
    fits = x.stride(3) == 1 and x.stride(2) >= x.shape[3] and x.data_ptr() % 16 == 0
    fits &= all(n % 8 == 0 for n in x.stride()[:3])
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _plan(do, q, k, v, out, lse, dq, dk, dv, causal, scale, ahead=None, running=1, summed=True):
    """Three launches: kernel, grid, arguments, options. The last three choose the rung."""
    (batch, heads, n_queries, head_dim), (_, kv_heads, n_keys, _) = q.shape, k.shape
    tiles, padded = triton.cdiv(n_keys, BLOCK_N), triton.cdiv(n_queries, BLOCK_M) * BLOCK_M
    lse2, delta = q.new_empty((2, batch * heads, padded), dtype=torch.float32)
    total = q.new_empty((batch * heads, padded, head_dim), dtype=torch.float32)
    by_key, by_query, row = (1, 1, BLOCK_N, head_dim), (1, 1, BLOCK_M, head_dim), (1, BLOCK_M)
    blocks = (by_key, by_key, by_query, by_query, row, row, by_key, by_key)
    tensors = zip((k, v, q, do, lse2, delta, dk, dv), blocks, strict=True)
    together = math.gcd(batch * kv_heads, TOGETHER) if causal else 1
    mask = "causal" if causal else "end" if n_keys % BLOCK_N else "none"
    before = (out, do, *do.stride()[:3], lse, lse2, delta, total, heads, n_queries, padded)
    main = (
        *(_described(x, block) for x, block in tensors), total, heads, heads // kv_heads,
        n_queries, n_keys, together, scale, scale * math.log2(math.e), STAGES[head_dim],
        mask, head_dim == 64 if ahead is None else ahead, running, summed,
    )  # fmt: skip
    after = (total, dq, n_queries, padded, scale, head_dim, BLOCK_M)
    kernel, options = hopper_attention_backward_kernel, {"num_warps": 8, "maxnreg": 168}
    return (
        (_before, (batch * heads * padded // 32,), (*before, head_dim, 32), {}),
        (kernel, (tiles * batch * kv_heads,), main, options),
        (_after, (batch * heads * padded // BLOCK_M,), after, {"num_warps": head_dim // 16}),
    )


def _launch(launches) -> None:
    for kernel, grid, arguments, options in launches:
        kernel[grid](*arguments, **options)


def hopper_attention_backward(do, q, k, v, out, lse, causal: bool, scale: float):
    """Gradients dq, dk, dv for `do`, the gradient of `out`; `lse` as the forward returns it."""
    new = torch.empty if q.numel() and k.numel() else torch.zeros
    grads = [new(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    if new is torch.empty:
        do, out, lse = _for_descriptor(do), out.contiguous(), lse.contiguous()
        with torch.cuda.device_of(q):
            _launch(_plan(do, q, k, v, out, lse, *grads, causal, scale))
    return grads


class _HopperAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale, forward):
        out, lse = forward(q, k, v, causal=causal, scale=scale, return_lse=True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = causal, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        grads = hopper_attention_backward(do, *ctx.saved_tensors, *ctx.options)
        return *grads, None, None, None


def hopper_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False,
    scale: float | None = None, forward=None,
) -> torch.Tensor:  # fmt: skip
    """Attention, `softmax(scale * q @ k.T) @ v` of every head, on a Hopper GPU; differentiable.

    Differentiable once. Gradients of keys and values have the same bits in every run. That of the
    queries has not: it is added up in memory, in float32, in the order in which programs arrive.
    That sum, five products and their overlap as in https://arxiv.org/abs/2407.08608.

    Args:
        q: Queries `(B, H, n_queries, D)`, float16 or bfloat16, D 64 or 128. Copied unless rows are
            adjacent numbers and begin at multiples of 16 bytes.
        k: Keys `(B, H_kv, n_keys, D)`; query head h reads key head `h // (H // H_kv)`.
        v: Values, like `k`.
        causal: Whether a query sees only keys up to its place; the last query has the last key's.
        scale: Factor of the scores, between 1e-30 and 1e20; `D ** -0.5` if None.
        forward: Called as `forward(q, k, v, causal=causal, scale=scale, return_lse=True)`; returns
            the output and the log-sum-exp of its scaled scores, float32 `(B, H, n_queries)`, -inf
            for no key. If None, that of `hopper_attention.py`, a file beside this one.

    Returns:
        The output, like `q`; 0 for a query that sees no key.

    Raises:
        TypeError: The dtype is neither of the two, or differs between the inputs.
        ValueError: Shape, device or scale is not as above.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype not in (torch.float16, torch.bfloat16) or x.dtype != q.dtype:
            raise TypeError(f"hopper_attention takes float16 or bfloat16; {name} is {x.dtype}")
        if x.dim() != 4 or x.shape[3] not in STAGES or x.device != q.device:
            told = f"one device and (B, H, S, 64 or 128); {name} is {[*x.shape]} on {x.device}"
            raise ValueError(f"hopper_attention takes {told}")
    uneven = q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]
    if k.shape != v.shape or q.shape[::3] != k.shape[::3] or uneven:
        told = f"{[*q.shape]}, {[*k.shape]}, {[*v.shape]}"
        raise ValueError(f"hopper_attention takes k and v alike that fit q; got {told}")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not 1e-30 < scale < 1e20:
        raise ValueError(f"hopper_attention takes a scale between 1e-30 and 1e20, got {scale}")
    if not q.is_cuda or torch.cuda.get_device_capability(q.device) != (9, 0):
        remedy = "Gluon has no interpreter, so TRITON_INTERPRET=1 does not help"
        raise ValueError(f"hopper_attention needs a Hopper GPU, got {q.device}; {remedy}")
    if forward is None:
        from hopper_attention import hopper_attention as forward
    return _HopperAttention.apply(*map(_for_descriptor, (q, k, v)), causal, scale, forward)

# %% [markdown]
# ## Is it right?
#
# Every rung against float64: tiles that are not full, more keys than queries and fewer, queries that see no key, [shared heads](../glossary.md#gqa), scores so low that a forgotten mask overflows, tensors in memory as `(B, S, H, D)`. Results start as NaN. Errors are in percent of the rounding of the largest number, of sixteen times that where scores are low. In the last column autograd runs the kernels again: which share of $dQ$, in 16 bits, is not the same as before? Of $dK$ and $dV$ every bit must be the same.

# %% tags=["fold"]
RUNGS = {"turn": {"ahead": False, "running": 0}, "overlap": {"ahead": False}, "triton": {}}


def check(device: str = "cuda") -> None:
    """Compares every rung, and autograd's way, with float64; raises AssertionError."""
    if device != "cuda":
        raise RuntimeError("Gluon has no interpreter: this check needs a Hopper GPU")
    # batch, heads of queries and of keys, queries, keys
    cases = [(2, 3, 3, 64, 128), (1, 2, 2, 65, 127), (1, 1, 1, 1, 1), (2, 6, 2, 1000, 1000)]
    cases += [(1, 4, 1, 300, 1111), (1, 2, 2, 1111, 300), (1, 1, 1, 129, 63), (3, 5, 5, 256, 384)]
    cases += [(2, 12, 4, 777, 777), (1, 2, 1, 2049, 4097)]
    for head_dim, dtype in product((64, 128), (torch.bfloat16, torch.float16)):
        worst, moved = [0.0] * 3, 0.0
        for (number, case), causal in product(enumerate(cases), (False, True)):
            batch, heads, kv_heads, n_queries, n_keys = case
            torch.manual_seed(number)
            q, do = torch.randn(2, batch, n_queries, heads, head_dim, device=device)
            k, v = torch.randn(2, batch, n_keys, kv_heads, head_dim, device=device)
            if low := number % 3 == 1:  # what keys share falls out of dq, its rounding does not
                q, k = 0.3 * q + 5, 0.3 * k - 5
            q, k, v, do = (x.to(dtype).transpose(1, 2) for x in (q, k, v, do))
            leaves = [x.double().requires_grad_() for x in (q, k, v)]
            exact, lse = hopper_attention_reference(*leaves, causal, 0.11)
            want = torch.autograd.grad(exact, leaves, do.double())
            out, lse = exact.detach().to(dtype).contiguous(), lse.detach().float()
            for rung, options in RUNGS.items():
                got = [torch.full_like(x, math.nan) for x in (out, k, v)]
                _launch(_plan(do, q, k, v, out, lse, *got, causal, 0.11, **options))
                about = f"{rung}, D = {head_dim}, {dtype}, causal {causal}, {case}"
                for i, (x, y) in enumerate(zip(got, want, strict=True)):
                    limit = torch.finfo(dtype).eps * (16 if low else 1) * (y.abs().max() + 0.01)
                    error = ((x.double() - y).abs().max() / limit).item()
                    assert error <= 1, f"d{'qkv'[i]} is off by {error:.0%} of its limit: {about}"
                    worst[i] = max(worst[i], error)
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            given = {"forward": lambda *_, results=(out, lse), **__: results}
            again = hopper_attention(*leaves, causal=causal, scale=0.11, **given)
            dq, dk, dv = torch.autograd.grad(again, leaves, do)
            assert torch.equal(dk, got[1]) and torch.equal(dv, got[2]), f"dk, dv moved: {about}"
            moved = max(moved, (dq != got[0]).float().mean().item())
        line = "".join(f"  d{x} {error:3.0%}" for x, error in zip("QKV", worst, strict=True))
        print(f"D = {head_dim:3} {str(dtype)[6:]:8}{line}  other bits in dQ {moved:.2%}")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# $dK$ and $dV$ have an owner each, so they have the same bits in every run, and `check` insists on it. $dQ$ has not: sums in float32 that differ in their last bits round to another 16-bit number now and then. Its error is no larger for that. Where runs must repeat to the bit, take the [kernels of seven products](flash_attention_backward.py#step-2-two-kernels-two-owners).
#
# ## Is it fast?
#
# Sixteen heads, and as many sequences as make 16,384 tokens; the backward pass alone, its three kernels together, [cool](../glossary.md#cool-and-hot). Before you look: how much will rung 2 gain over rung 1, and what will the sum in memory cost when it runs under a product?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    import sys
    from functools import partial
    from pathlib import Path

    from torch.nn.attention import SDPBackend, sdpa_kernel

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from flash_attention_backward import flash_attention
    from hopper_attention import hopper_attention as forward

    def cudnn(*x, causal):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*x, is_causal=causal)

    peers = {"triton": hopper_attention, "sdpa_cudnn": cudnn, "triton_tl": flash_attention}
    about = {"x": "seq_len", "dtype": "bfloat16", "mode": "backward", "ceiling": "matmul"}
    alike = [(n, n) for n in (512, 1000, 1024, 4096, 4097, 16384)]
    unlike = [(1000, 4097), (1024, 4096), (4096, 1024), (4097, 1000)]
    kinds = [(d, kind, alike) for d, kind in product((128, 64), ("full", "causal"))]
    for head_dim, kind, sizes in [*kinds, (128, "cross", unlike)]:
        found, causal = [], kind == "causal"
        for n, n_keys in sizes:
            shapes = ((16384 // n, 16, m, head_dim) for m in (n, n_keys, n_keys, n))
            *x, do = (torch.randn(shape, device="cuda").bfloat16() for shape in shapes)
            x = [t.requires_grad_() for t in x]
            grad = partial(torch.autograd.grad, inputs=x, grad_outputs=do, retain_graph=True)
            calls = {p: partial(grad, f(*x, causal=causal)) for p, f in peers.items()}
            if n == n_keys in (4096, 16384):
                like = [t.detach() for t in x]
                out, lse = forward(*like, causal=causal, return_lse=True)
                tensors = do, *like, out, lse, *(torch.empty_like(t) for t in x)
                for rung, options in {**RUNGS, "unsummed": {"summed": False}}.items():
                    if rung != "triton" and (rung, head_dim) != ("overlap", 128):
                        plan = _plan(*tensors, causal, head_dim**-0.5, **options)
                        calls[f"triton_{rung}"] = partial(_launch, plan)
            size = {"seq_len": n, "n_keys": n_keys, "batch": len(do), "head_dim": head_dim}
            size |= {"causal": causal, "bytes": 8 * (do.numel() + x[1].numel())}
            size["flops"] = 10 * do.numel() * n_keys // (2 if causal else 1)
            timings = measure(calls, hot=n in (1024, 4096, 16384), host=n == 512)
            found += [{"provider": p, **size, **timing} for p, timing in timings.items()]
        title = f"Attention backward, {kind}, 16 heads × {head_dim}, about 16,384 queries, bfloat16"
        names = {"name": f"hopper_backward_d{head_dim}_{kind}", "title": title, "rows": found}
        yield about | names

# %% [markdown]
# {{ figure("hopper_backward_d128_full", providers=["triton", "triton_tl", "triton_turn", "triton_unsummed", "sdpa_cudnn"], caption="D = 128, full: five products in order are ahead of cuDNN at every length, seven are not.") }}
#
# {{ figure("hopper_backward_d64_full", providers=["triton", "triton_tl", "triton_turn", "triton_overlap", "sdpa_cudnn"], caption="D = 64, full: rung 3 is ahead of cuDNN at every length; rung 2 was timed at 4,096 and 16,384 tokens, and is behind.") }}
#
# TFLOP/s at 4,096 tokens, five products counted for all; [*hot*](../glossary.md#cool-and-hot) is back to back, at the clock that the power allows:
#
# | | seven, `tl` | 1: in turn | 2: for one alone | 3: a step ahead | best, no sum | cuDNN | best, hot | cuDNN, hot |
# |---|--:|--:|--:|--:|--:|--:|--:|--:|
# {% for kind in ["d128_full", "d128_causal", "d64_full", "d64_causal"] %}{% set name, small = "hopper_backward_" ~ kind, "d64" in kind %}{% set best, cudnn = row(name, provider="triton", seq_len=4096), row(name, provider="sdpa_cudnn", seq_len=4096) %}| {{ kind.replace("d", "$D = ").replace("_", "$, ") }} | {{ row(name, provider="triton_tl", seq_len=4096).tflops | n(0) }} | {{ row(name, provider="triton_turn", seq_len=4096).tflops | n(0) }} | {{ (row(name, provider="triton_overlap", seq_len=4096) if small else best).tflops | n(0) }} | {{ (best.tflops | n(0)) if small else "–" }} | {{ row(name, provider="triton_unsummed", seq_len=4096).tflops | n(0) }} | {{ cudnn.tflops | n(0) }} | {{ best.tflops_hot | n(0) }} | {{ cudnn.tflops_hot | n(0) }} |
# {% endfor %}
#
# {% set full, causal = "hopper_backward_d128_full", "hopper_backward_d128_causal" %}{% set best, turn, free, cudnn, seven = row(full, provider="triton", seq_len=4096), row(full, provider="triton_turn", seq_len=4096), row(full, provider="triton_unsummed", seq_len=4096), row(full, provider="sdpa_cudnn", seq_len=4096), row(full, provider="triton_tl", seq_len=4096) %}{% for name in [full, causal] %}{% for r in rows(name, provider="triton") %}{{ claim(r.ms < 0.995 * row(name, provider="sdpa_cudnn", seq_len=r.seq_len).ms and r.ms < row(name, provider="triton_tl", seq_len=r.seq_len).ms) }}{% endfor %}{% endfor %}{% set full64, causal64 = "hopper_backward_d64_full", "hopper_backward_d64_causal" %}{% set best64, two64, free64, cudnn64 = row(full64, provider="triton", seq_len=4096), row(full64, provider="triton_overlap", seq_len=4096), row(full64, provider="triton_unsummed", seq_len=4096), row(full64, provider="sdpa_cudnn", seq_len=4096) %}{% for name in [full64, causal64] %}{% for r in rows(name, provider="triton") %}{{ claim(r.ms < 0.97 * row(name, provider="sdpa_cudnn", seq_len=r.seq_len).ms) }}{% endfor %}{% endfor %}{% for r in rows(full, provider="triton_tl") %}{{ claim(r.ms > 1.02 * row(full, provider="sdpa_cudnn", seq_len=r.seq_len).ms) }}{% endfor %}{% for r in rows(full64, provider="triton_overlap") %}{{ claim(r.ms > 1.02 * row(full64, provider="sdpa_cudnn", seq_len=r.seq_len).ms) }}{% endfor %}**Order.** At $D = 128$, full, waiting for one product alone is {{ (100 * turn.ms / best.ms - 100) | pct }} faster than waiting for all that run (back to back {{ (100 * turn.ms_hot / best.ms_hot - 100) | pct }}), with the same products and the same arithmetic. At $D = 64$ a step ahead gains {{ (100 * two64.ms / best64.ms - 100) | pct }} over rung 2 in full attention, in causal {{ (100 * row(causal64, provider="triton_overlap", seq_len=4096).ms / row(causal64, provider="triton", seq_len=4096).ms - 100) | pct }}.{{ claim(turn.ms > 1.08 * best.ms and two64.ms > 1.08 * best64.ms) }} The order of buffers in shared memory counts as well: in a trial that is not recorded here, a step at $D = 128$ took longer with the tiles of $dS$ in front of all others than behind them, though the machine code differs in addresses alone. We do not know why.
#
# **The sum**, {{ (4 * 4096**2 * 128 // 128 * 64) | bytes }} at $D = 128$, takes {{ (100 - 100 * free.ms / best.ms) | pct }} of the time where it runs under one product, back to back {{ (100 - 100 * free.ms_hot / best.ms_hot) | pct }}; the kernels in `tl`, which do without it but with two products more, take {{ (100 * seven.ms / best.ms - 100) | pct }} longer. At $D = 64$ it runs under two: in full attention it takes nothing that could be measured (back to back {{ (100 - 100 * free64.ms_hot / best64.ms_hot) | pct }}), in causal {{ (100 - 100 * row(causal64, provider="triton_unsummed", seq_len=4096).ms / row(causal64, provider="triton", seq_len=4096).ms) | pct }} (back to back {{ (100 - 100 * row(causal64, provider="triton_unsummed", seq_len=4096).ms_hot / row(causal64, provider="triton", seq_len=4096).ms_hot) | pct }}).{{ claim(row(causal64, provider="triton_unsummed", seq_len=4096).ms < 0.99 * row(causal64, provider="triton", seq_len=4096).ms) }}{{ claim(0.9 < free.ms / best.ms < 0.98 and seven.ms > 1.1 * best.ms and 0.985 < free64.ms / best64.ms < 1.015) }} **The small kernels** move 14 bytes for each number of $Q$; at $D = 128$ a copy of as many takes {{ copy_ms(14 * 16384 * 16 * 128) | ms }} of {{ best.ms | ms }}.
#
# **cuDNN** takes longer at every length; in percent, for 1,024, 4,096 and 16,384 tokens: {% for name, label in [(full, "$D = 128$, full,"), (causal, "causal"), (full64, "$D = 64$, full,"), (causal64, "causal")] %}{{ label }} {% for n in [1024, 4096, 16384] %}{{ (100 * row(name, provider="sdpa_cudnn", seq_len=n).ms / row(name, provider="triton", seq_len=n).ms - 100) | n(0) }}{{ ", " if not loop.last else "" }}{% endfor %}{{ "; " if not loop.last else "." }}{% endfor %} Back to back, where the power limits the clock, it takes longer as well from 4,096 on, by {% set lead = [] %}{% for name in [full, causal, full64, causal64] %}{% for n in [4096, 16384] %}{% set _ = lead.append(100 * row(name, provider="sdpa_cudnn", seq_len=n).ms_hot / row(name, provider="triton", seq_len=n).ms_hot - 100) %}{% endfor %}{% endfor %}{{ lead | min | n(0) }} to {{ lead | max | n(0) }} %{{ claim(lead | min > 2) }}; with few tokens the host cannot keep up: for 1,024, causal, $D = 64$, the kernels need {{ row(causal64, provider="triton", seq_len=1024).ms | ms }}, the host longer than that to launch the next call, and cuDNN, whose calls cost the host less, is ahead.{% set host = row(causal64, provider="triton", seq_len=512).host_us %}{{ claim(host > 1100 * row(causal64, provider="triton", seq_len=1024).ms and host > 1050 * row(causal64, provider="sdpa_cudnn", seq_len=1024).ms_hot > row(causal64, provider="sdpa_cudnn", seq_len=512).host_us) }}
#
# ## What the assembler wants
#
# NVIDIA's assembler, [ptxas](../glossary.md#ptx), must know in which registers a product writes while it runs. Where it does not, it lets every product end before the next, and says "serialized" in a message that you see only with `TRITON_DUMP_PTXAS_LOG=1`, and only when the kernel is compiled, not when it comes [from the disk](../glossary.md#cubin) (`TRITON_ALWAYS_COMPILE=1`). Trial showed what it wants: `steps` of at least 1, since a loop without a step is a way round products that run on past it; one consumer of eight warps as the first role, since the others' code lies in the loop that hands out roles; and masks before the exponentials.
#
# **And where it is silent.** In a first version of rung 3 the waits named the sums alone. $dK$ ran on into the next step, but its left factor had, for the compiler, been used: its registers went to that step's exponentials. $dK$ was wrong, $dV$ and $dQ$ right, and no tool said a word. A wait keeps what its `deps` name: name left factors, too, and [test the machine code](https://github.com/triton-lectures/triton-lectures/blob/main/tests/kernels/test_hopper_backward.py) for writes to what a running product holds.
#
# ## Where it loses
#
# - {% set small, its = "hopper_backward_d64_causal", row("hopper_backward_d64_causal", provider="triton", seq_len=1024) %}**$D = 64$, few tokens**: {{ its.tflops | n(0) }} TFLOP/s for 1,024, causal, where the kernels of `tl` reach {{ row(small, provider="triton_tl", seq_len=1024).tflops | n(0) }}.{{ claim(its.tflops < row(small, provider="triton_tl", seq_len=1024).tflops and row(small, provider="triton", seq_len=4096).tflops > row(small, provider="triton_tl", seq_len=4096).tflops) }} They put three programs on an [SM](../glossary.md#sm), so that one begins or ends while another multiplies; here there is one.
# - **Keys of another length**: {% set unlike = "hopper_backward_d128_cross" %}{{ row(unlike, provider="triton", seq_len=4096).tflops | n(0) }} TFLOP/s for 4,096 queries and 1,024 keys, {{ row(unlike, provider="triton", seq_len=1024).tflops | n(0) }} for 1,024 queries and 4,096 keys; where neither is round, 4,097 by 1,000 and 1,000 by 4,097, {{ row(unlike, provider="triton", seq_len=4097).tflops | n(0) }} and {{ row(unlike, provider="triton", seq_len=1000).tflops | n(0) }}. As many queries and keys reach {{ best.tflops | n(0) }} at 4,096, {{ row(full, provider="triton", seq_len=4097).tflops | n(0) }} at 4,097.{% for n, round in [(4097, 4096), (1000, 1024)] %}{{ claim(row(unlike, provider="triton", seq_len=n).tflops > 0.92 * row(unlike, provider="triton", seq_len=round).tflops) }}{% for name in [full, causal, full64, causal64] %}{{ claim(row(name, provider="triton", seq_len=n).tflops > 0.9 * row(name, provider="triton", seq_len=round).tflops) }}{% endfor %}{% endfor %}{% for r in rows(unlike, provider="triton") %}{{ claim(1.02 * r.ms < row(unlike, provider="sdpa_cudnn", seq_len=r.seq_len).ms) }}{% endfor %}
# - **Memory**: the float32 sum, {{ (4 * 16384 * 16 * 128) | bytes }} for 16 heads of 16,384 tokens at $D = 128$.
# - **A tool complains**: racecheck reports [hazards](../results.md#are-the-kernels-right) as in [roles for warps](warp_specialization.py#where-it-loses-and-why); all those that it shows lie where warps read which role they shall take. **Large scores** cost the gradients' digits, as in [the backward in `tl`](flash_attention_backward.py#where-it-loses-and-why), and somewhat earlier; a scale above 10⁸ can make rows NaN (*not yet right*).
# - {% set small, its = row(causal64, provider="triton", seq_len=512), row(causal64, provider="sdpa_cudnn", seq_len=512) %}{% set hosts = [row(full, provider="triton", seq_len=512).host_us, row(causal, provider="triton", seq_len=512).host_us, row(full64, provider="triton", seq_len=512).host_us, small.host_us] %}**Small work** waits for the host, {{ hosts | min | n(0) }} to {{ hosts | max | n(0) }} µs a call at 512 tokens, where cuDNN takes {{ its.host_us | n(0) }} (causal, $D = 64$): eight [descriptors](../glossary.md#descriptor) and three launches. There that is longer than the kernels, {{ small.us | n(0) }} µs; at $D = 128$, full, the kernels take longer than the host. The figures show the GPU's time alone; of calls with nothing between them cuDNN's are done sooner there, in {{ its.us | n(0) }} µs each.{{ claim(small.host_us > 1.1e3 * its.ms and its.host_us < 900 * its.ms) }}
# - **Runs differ**, as in [flash attention 3](https://arxiv.org/abs/2407.08608), whose five products and sum these are, and in [cuDNN](https://github.com/karpathy/llm.c/pull/652) unless it is asked for the same bits; told to be deterministic, torch's SDPA [leaves it out](https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp) instead.
#
# ## What to remember
#
# 1. A sum in memory may cost less than the work that avoids it. Count both; then runs differ.
# 2. Start one product more than you wait for, and give each wait a work that it hides.
# 3. What a running product reads or writes is not yours until a wait has named it.
#
# ## Exercises
#
# ??? question "1. Fewer registers (twenty minutes)"
#     Compute $dS$ from `weights`, 16 registers, not from `p`, 32. Count the [SASS](../glossary.md#sass): faster?
#
#     ??? success "Answer"
#         Slower, and less exact. `p` is rounded in pairs, one `F2FP` for two numbers. If each is needed again, the [compiler](../foundations/compiler.py) rounds one by one: 32 `F2F`, on the unit of the exponentials.
#
# ??? question "2. Half the sum (thirty minutes)"
#     Let a program own 256 keys: then half as many parts of $dQ$ are added. Count for rung 2, with 64 queries a step: do [registers](../glossary.md#register) and shared memory suffice at $D = 128$, and at 64? Would 16 warps help?
#
#     ??? success "Answer"
#         No. With eight warps a thread holds twice [what it held](#registers-decide): at $D = 128$ `dk` and `dv` alone are 256 registers, at 64 the sum is $128 + 64 + 64 + 32 = 288$, and 240 is the limit. More warps share the same 65,536 registers of an SM, and $256 \cdot 256$ are all of them, $288 \cdot 256$ more. Shared memory suffices at 64 alone: keys with values, slots, and two tiles of $dS$ are 64 KiB each; at 128 they are 128 + 64 + 64 KiB, of 227. And all that for half of a sum that takes {{ (100 - 100 * free.ms / best.ms) | pct }} of the time at $D = 128$, full.
#
# ??? question "3. The same bits (an hour)"
#     Let programs add to a tile of $dQ$ in the order of their keys. What must hold of their start?
#
#     ??? success "Answer"
#         A counter for each tile says whose turn it is; a [program](../glossary.md#program) waits for its own, adds, and counts on. Those before it must be running or done, or it waits without end.
#
# ## Use it in your project
#
# ```python
# from hopper_backward import hopper_attention  # with hopper_attention.py, its forward, beside it
# hopper_attention(q, k, v, causal=True).sum().backward()  # (B, H, S, D), D 64 or 128
# ```
#
# See [`hopper_attention`][examples.attention.hopper_backward.hopper_attention]; on other GPUs use [`flash_attention`](flash_attention_backward.py).
