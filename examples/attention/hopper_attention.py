# %% [markdown]
# ---
# title: Attention on Hopper
# description: The flash-attention forward in Gluon, from one consumer to softmax under product and tiles dealt out by hand, each rung measured and explained.
# tags: [attention, tensor cores, Gluon, wgmma, TMA, warp specialisation]
# prerequisites: [attention/flash_attention, attention/warp_specialization]
# outcome: Say what another order of the same work may gain, and write a kernel in Gluon that keeps two units of the chip at work at once.
# ---
#
# # Attention on Hopper: softmax under the product
#
# {% set before = rec("attention/flash_attention") %}{% set tl, cudnn = before.row("attention_d128_full", provider="triton", seq_len=4096), before.row("attention_d128_full", provider="sdpa_cudnn", seq_len=4096) %}
# [Flash attention](flash_attention.py) ended at {{ tl.tflops | n(0) }} TFLOP/s for 4,096 tokens and $D = 128$; [cuDNN](../glossary.md#cudnn) reached {{ cudnn.tflops | n(0) }} in the same recording; in this page's, a large matrix product reaches {{ matmul_tflops("bfloat16", 8192) | n(0) }}. Memory does not explain the gap: attention moves few bytes for its operations. **What do the [tensor cores](../glossary.md#tensor-core) wait for, and what must a kernel say that `tl` has no word for?**
#
# On the [page before](warp_specialization.py) the compiler gave out roles. Here you do: this page writes that forward again in [Gluon](../glossary.md#gluon), for one chip, Hopper ([compute capability](../glossary.md#compute-capability) 9.0, H100 and H200). Gluon has no [interpreter](../glossary.md#interpreter): without such a GPU you can read on, but not run.
#
# ## What another order may gain
#
# The page before [counted a step of the loop](warp_specialization.py#what-it-may-gain), 128 queries and 128 keys, in cycles of an [SM](../glossary.md#sm) (a multiprocessor): 2,048 for both products at $D = 128$, 1,024 at 64, and 1,664 for the softmax at either. What share of the cycles can the [tensor cores](../glossary.md#tensor-core) work?
#
# | | $D = 128$ | $D = 64$ |
# |---|--:|--:|
# | products and softmax in turn | 55&nbsp;% | 38&nbsp;% |
# | at the same time | 100&nbsp;% | 62&nbsp;% |
#
# In turn, their cycles add up: 2,048 of 3,712 are products at $D = 128$. At the same time, the longer of the two sets the pace, at $D = 64$ the [softmax](../fusion/softmax.py): products run for 1,024 of its 1,664. How does a kernel get from the first row to the second? By the first three *rungs* of this page, kernels of which each changes one thing in the one before:{{ diagram("hopper_timeline") }}
#
# So the goal is **another order**, not a faster softmax, and `tl` cannot state an order: you write `s = tl.dot(q, k.T)`, and the [compiler](../foundations/compiler.py) decides where it waits and what runs meanwhile.
#
# ## Gluon: the same compiler, one floor down
#
# Programs, blocks and masks are those you know. What Triton decides in `tl`, you write in Gluon:
#
# | | `tl` | Gluon |
# |---|---|---|
# | which thread holds which element | the compiler | a [layout](../glossary.md#layout) on each block |
# | [shared memory](../glossary.md#shared-memory) | the compiler | `allocate_shared_memory` |
# | a block arrives | `load`; `num_stages` | [TMA](../glossary.md#tma) copies it to a buffer; a *barrier* tells when it is there |
# | a product | `tl.dot` | `warpgroup_mma` starts it ([wgmma](../glossary.md#wgmma)); `warpgroup_mma_wait(n)` returns when at most `n` are still running |
# | who does what | all warps alike | `warp_specialize`: groups of [warps](../glossary.md#warp), each with its function and [registers](../glossary.md#register) |

# %% tags=["copy"]
import functools
import heapq
import itertools
import math

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# %% [markdown]
# ## The reference
#
# One thing is new: a head of keys may serve several heads of queries ([GQA](../glossary.md#gqa)). As before, there may be more or fewer keys than queries: the last query has the place of the last key, and a query that sees no key gives 0.

# %%
def hopper_attention_reference(q, k, v, causal=False, scale=None):
    """Attention in plain PyTorch: the output and the log-sum-exp of every row of scores."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * scale  # [B, H, n_queries, n_keys]
    if causal:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])
        scores = scores.masked_fill(future, -float("inf"))
    # a softmax over nothing is NaN, and here 0
    return scores.softmax(dim=-1).nan_to_num(nan=0.0) @ v, scores.logsumexp(dim=-1)

# %% [markdown]
# ## A warp that only loads
#
# One warp, the *producer*, asks for blocks; the others, the *consumers*, compute. Between them lies a **ring** of buffers, or *slots*: filled in the order 0, 1, 0, 1, …, and read in the same order. Each slot has [barriers](../glossary.md#mbarrier) of two kinds. `full`, one for its keys and one for its values, completes when as many bytes have arrived as the producer announced with `expect`; consumers wait for it before they read. `free` completes when each consumer has called `arrive`; the producer waits for it before it fills the slot again.{{ diagram("hopper_ring") }}
#
# A [barrier](../glossary.md#mbarrier) that completes begins its next *phase*, and you wait for a phase by its parity: 0 for an even one. Phases count from 0, and so do the turns of a slot: in a ring of two, step 5 is slot 1, turn 2, parity 0. The producer waits for the phase *before* its turn, so with the other parity; before turn 0 that counts as complete: an unused slot is free. Queries have a ring of their own, two tiles deep: the next tile's arrive while this one is computed. `LAG`, the steps by which values travel behind their keys, is 0 until rung 3. At 1 a tile's first slot lacks values, its last keys; there the producer itself arrives, so that phases go on counting turns.

# %% tags=["copy"]
@gluon.jit
def _ring(desc, n: gl.constexpr):
    """Shared memory for `n` blocks of a descriptor."""
    shape: gl.constexpr = [n] + desc.block_type.shape  # noqa: RUF005
    return gl.allocate_shared_memory(desc.dtype, shape, desc.layout)


@gluon.jit
def _barriers(n: gl.constexpr, arrivals: gl.constexpr):
    """`n` barriers that complete after so many arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [n, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(n):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit
def _tile(tiles_ptr, i):
    """Batch, head, first query, end of the queries and number of key blocks of a tile."""
    at = tiles_ptr + 6 * i
    return gl.load(at), gl.load(at + 1), gl.load(at + 2), gl.load(at + 3), gl.load(at + 4)


@gluon.jit
def _load_tiles(task, rings, full, free, LAG: gl.constexpr):
    """The loading warp: the queries of each tile, then its blocks of keys and values."""
    q_desc, k_desc, v_desc, starts_ptr, tiles_ptr = task
    q_ring, k_ring, v_ring, out_ring = rings
    q_full, k_full, v_full = full
    q_free, kv_free = free
    GROUPS: gl.constexpr = out_ring.shape[0]
    STAGES: gl.constexpr = k_ring.shape[0]
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    first = gl.load(starts_ptr + gl.program_id(0))
    step = 0
    for i in range(first, gl.load(starts_ptr + gl.program_id(0) + 1)):
        batch, head, start_m, _, blocks = _tile(tiles_ptr, i)
        kv_head = gl.load(tiles_ptr + 6 * i + 5)
        slot, turn = (i - first) % 2, (i - first) // 2 & 1
        mbarrier.wait(q_free.index(slot), turn ^ 1)
        mbarrier.expect(q_full.index(slot), GROUPS * q_desc.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            at = [batch, head, start_m + group * q_ring.shape[3], 0]
            block = q_ring.index(slot * GROUPS + group)
            tma.async_copy_global_to_shared(q_desc, at, q_full.index(slot), block)
        for j in range(blocks + LAG):
            slot, turn = step % STAGES, step // STAGES & 1
            mbarrier.wait(kv_free.index(slot), turn ^ 1)
            # backwards, so that blocks that need a mask come first
            start_n = (blocks - 1 - j) * BLOCK_N
            if j < blocks:
                at = [batch, kv_head, start_n, 0]
                mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(k_desc, at, k_full.index(slot), k_ring.index(slot))
            else:
                mbarrier.arrive(k_full.index(slot), count=1)
            if j >= LAG:
                at = [batch, kv_head, start_n + LAG * BLOCK_N, 0]
                mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(v_desc, at, v_full.index(slot), v_ring.index(slot))
            else:
                mbarrier.arrive(v_full.index(slot), count=1)
            step += 1

# %% [markdown]
# The [descriptors](../glossary.md#descriptor) are four-dimensional and come from the host. Rows past a head's end arrive as zeros, and rows past the output's end are not written: only scores and [log-sum-exp](../glossary.md#log-sum-exp) need a mask. TMA and wgmma reach shared memory [by a path of their own](https://docs.nvidia.com/cuda/parallel-thread-execution/#async-proxy): neither is sure to see what threads have stored there, as `_store` does the output, before a `fence_async_shared`. In `tl` the compiler puts such fences in.
#
# ## Rungs 1 and 2: one consumer, two consumers
#
# Rung 1 is flash attention's loop with its waits in view (`LAG = 0` in the code below): start $S = QK^\top$, wait, softmax, start $PV$, wait. One consumer of eight warps computes a tile of 128 queries, and no product runs during its softmax: about 55 %, by the count. Rung 2 splits the tile between two consumers, each with four warps (a *warpgroup*, which a [wgmma](../glossary.md#wgmma) needs), 64 queries and an accumulator. While one waits for a product the other can compute exponentials. Nothing makes them alternate, but they tend to: the tensor cores serve one first, and the other stays behind it.
#
# ## Rung 3: the softmax begins under its own product
#
# Now and then both consumers are still in their [softmax](../glossary.md#online-softmax) at once. But each has a product that need not wait for it: the softmax of step $j$ needs $S_j$, and $P_{j-1}V_{j-1}$ only what step $j - 1$ left. So start both products, then compute (`LAG = 1`: values travel one step after their keys):
#
# 1. start $S_j$; correct `acc` by the last `alpha`, and start adding $P_{j-1} V_{j-1}$ to it;
# 2. wait for $S_j$ alone, and find its row maxima while the second product runs;
# 3. wait for `acc`, free the slot of $K_j$ and $V_{j-1}$, and compute [exponentials](../fusion/softmax.py#step-4-keep-the-row-on-the-chip), sums and $P_j$ while the products of the other consumer run.
#
# **Layouts.** `SCORES` and `ACC` say how wgmma leaves its result. Their arguments: version 3 of NVIDIA's matrix instructions, which is wgmma; warps, one below the other; and a warp's share of an instruction, 16 rows, all columns, 16 numbers deep. A thread has parts of two of a warpgroup's 64 rows, and of every eight columns the pair at its *place* among four threads. `WEIGHTS`, how wgmma wants its left operand, has the same numbers in the same threads, so scores become weights without moving. A vector of one number a row has the layout `SliceLayout(1, SCORES)`: that of the scores, without columns. `_row_sums` adds up what each thread holds; only at the end of a tile do threads add up theirs. `_masked` takes a column's number apart: eight times `i`, twice the place, and a `bit`. A thread differs from its neighbours in its place alone, so all else is constants in the code. Column numbers in registers made $D = 64$ [spill](../glossary.md#spill).

# %% tags=["copy"]
@gluon.jit
def _masked(s, start_m, start_n, n_queries, n_keys, IS_CAUSAL: gl.constexpr):
    """Scores with -inf for keys past the end or, if causal, in a query's future."""
    parts = s.reshape([s.shape[0], s.shape[1] // 8, 4, 2])  # [rows, i, place, bit]
    ROW: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, parts.type.layout))
    COL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, parts.type.layout))
    rows = start_m + gl.arange(0, s.shape[0], gl.SliceLayout(1, ROW))
    place = gl.arange(0, 4, gl.SliceLayout(0, ROW))
    i = gl.arange(0, s.shape[1] // 8, gl.SliceLayout(1, COL))
    bit = gl.arange(0, 2, gl.SliceLayout(0, COL))
    last = (rows - n_queries if IS_CAUSAL else rows * 0 - 1) + n_keys
    last = (last - start_n)[:, None] - 2 * place[None, :]  # [rows, place]
    cols = 8 * i[:, None] + bit[None, :]  # [i, bit]
    seen = cols.expand_dims(0).expand_dims(2) <= last.expand_dims(1).expand_dims(3)
    parts = gl.where(seen, parts, -float("inf"))
    return gl.convert_layout(parts.reshape(s.shape), s.type.layout)


@gluon.jit
def _row_sums(p):
    """Sums over those columns of a row that one thread holds: `[rows, 4]`."""
    return gl.sum(gl.sum(p.reshape([p.shape[0], p.shape[1] // 8, 4, 2]), axis=3), axis=1)


@gluon.jit
def _store(out_desc, at, buffer, acc, lse_ptr, row_max, row_sum, n_queries):
    """Divides by the sums; stores log-sum-exp and, through shared memory, the output."""
    rows = at[2] + gl.arange(0, acc.shape[0], row_max.type.layout)
    # back from powers of 2; a row that sees no key has the sum 0, so -inf, and the output 0
    lse = (row_max + gl.log2(row_sum)) * 0.6931471805599453
    gl.store(lse_ptr + rows, lse, mask=rows < n_queries)
    row_sum = gl.where(row_sum == 0.0, 1.0, row_sum)
    acc *= gl.convert_layout(1.0 / row_sum, gl.SliceLayout(1, acc.type.layout))[:, None]
    # the output of the tile before must have left the buffer
    tma.store_wait(pendings=0)
    buffer.reshape(acc.shape).store(acc.to(out_desc.dtype))
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, at, buffer)


@gluon.jit
def _start(a, ring, full, slot, turn, acc, IS_SCORES: gl.constexpr):
    """Waits for keys or values; starts scores (queries by keys) or output (weights by values)."""
    mbarrier.wait(full.index(slot), turn)
    b = ring.index(slot).reshape([ring.shape[3], ring.shape[4]])
    b = b.permute([1, 0]) if IS_SCORES else b
    return hopper.warpgroup_mma(a, b, acc, use_acc=not IS_SCORES, is_async=True)


@gluon.jit
def _scaled(x, factors):
    """`x`, each row times its factor."""
    return x * gl.convert_layout(factors, gl.SliceLayout(1, x.type.layout))[:, None]


@gluon.jit
def _attend(
    task, rings, full, free,
    LAG: gl.constexpr, GROUP: gl.constexpr, IS_CAUSAL: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Consumer `GROUP`: attention of its rows of each tile."""
    out_desc, lse_ptr, starts_ptr, tiles_ptr, n_heads, n_queries, n_keys, scale_log2 = task
    q_ring, k_ring, v_ring, out_ring = rings
    q_full, k_full, v_full = full
    q_free, kv_free = free
    GROUPS: gl.constexpr = out_ring.shape[0]
    STAGES: gl.constexpr = k_ring.shape[0]
    ROWS: gl.constexpr = q_ring.shape[3]
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    HEAD_DIM: gl.constexpr = k_ring.shape[4]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_N, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, SCORES)
    first = gl.load(starts_ptr + gl.program_id(0))
    step = 0
    for i in range(first, gl.load(starts_ptr + gl.program_id(0) + 1)):
        batch, head, start_m, end_m, blocks = _tile(tiles_ptr, i)
        start_m += GROUP * ROWS
        # with two consumers the condition costs more than it gains
        if start_m >= end_m if GROUPS == 3 else False:
            for _ in range(blocks + LAG):  # no rows: only says that it has read
                slot, turn = step % STAGES, step // STAGES & 1
                mbarrier.wait(k_full.index(slot), turn)
                mbarrier.wait(v_full.index(slot), turn)
                mbarrier.arrive(kv_free.index(slot), count=1)
                step += 1
            mbarrier.arrive(q_free.index((i - first) % 2), count=1)
        else:
            q_slot, q_turn = (i - first) % 2, (i - first) // 2 & 1
            q = q_ring.index(q_slot * GROUPS + GROUP).reshape([ROWS, HEAD_DIM])
            acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, ACC)
            # finite: a row may see nothing of its first block, and -inf - -inf is NaN
            row_max = gl.full([ROWS], -1e30, gl.float32, gl.SliceLayout(1, SCORES))
            alpha = gl.full([ROWS], 1.0, gl.float32, gl.SliceLayout(1, SCORES))
            row_sums = _row_sums(zeros)
            mbarrier.wait(q_full.index(q_slot), q_turn)
            if LAG == 1:
                # the first block's softmax has no product to run under
                slot, turn = step % STAGES, step // STAGES & 1
                s = _start(q, k_ring, k_full, slot, turn, zeros, True)
                s = hopper.warpgroup_mma_wait(0, deps=(s,))
                mbarrier.arrive(kv_free.index(slot), count=1)
                if MASKED > 0:
                    start_n = (blocks - 1) * BLOCK_N
                    s = _masked(s, start_m, start_n, n_queries, n_keys, IS_CAUSAL)
                row_max = gl.maximum(row_max, gl.max(s, axis=1))
                p = gl.exp2(s * scale_log2 - (row_max * scale_log2)[:, None])
                row_sums = _row_sums(p)
                weights = gl.convert_layout(p.to(q.dtype), WEIGHTS)
                step += 1
            for j in range(LAG, blocks):
                slot, turn = step % STAGES, step // STAGES & 1
                s = _start(q, k_ring, k_full, slot, turn, zeros, True)
                if LAG == 1:
                    # waits for nothing, but holds the correction behind the start of the product
                    acc, alpha = hopper.warpgroup_mma_wait(1, deps=(acc, alpha))
                    acc = _scaled(acc, alpha)
                    acc = _start(weights, v_ring, v_full, slot, turn, acc, False)
                s = hopper.warpgroup_mma_wait(LAG, deps=(s,))
                if MASKED > LAG:
                    if j < MASKED:
                        start_n = (blocks - 1 - j) * BLOCK_N
                        s = _masked(s, start_m, start_n, n_queries, n_keys, IS_CAUSAL)
                new_max = gl.maximum(row_max, gl.max(s, axis=1))
                alpha = gl.exp2((row_max - new_max) * scale_log2)
                row_max = new_max
                if LAG == 1:
                    acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
                    mbarrier.arrive(kv_free.index(slot), count=1)
                p = gl.exp2(s * scale_log2 - (row_max * scale_log2)[:, None])
                row_sums = _scaled(row_sums, alpha) + _row_sums(p)
                weights = gl.convert_layout(p.to(q.dtype), WEIGHTS)
                if LAG == 0:
                    acc = _scaled(acc, alpha)
                    acc = _start(weights, v_ring, v_full, slot, turn, acc, False)
                    acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
                    mbarrier.arrive(kv_free.index(slot), count=1)
                step += 1
            mbarrier.arrive(q_free.index(q_slot), count=1)
            if LAG == 1:
                slot, turn = step % STAGES, step // STAGES & 1
                acc = _scaled(acc, alpha)
                acc = _start(weights, v_ring, v_full, slot, turn, acc, False)
                acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
                mbarrier.arrive(kv_free.index(slot), count=1)
                step += 1
            row_sum = gl.convert_layout(gl.sum(row_sums, axis=1), row_max.type.layout)
            at = [batch, head, start_m, 0]
            lse_at = (batch * n_heads + head).to(gl.int64) * n_queries
            out_buffer, row_max = out_ring.index(GROUP), row_max * scale_log2
            _store(out_desc, at, out_buffer, acc, lse_ptr + lse_at, row_max, row_sum, n_queries)
    tma.store_wait(pendings=0)


@gluon.jit(do_not_specialize=["n_heads", "n_queries", "n_keys"])
def hopper_attention_kernel(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, starts_ptr, tiles_ptr,
    n_heads, n_queries, n_keys, scale_log2,
    LAG: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, IS_CAUSAL: gl.constexpr,
    MASKED: gl.constexpr, REGISTERS: gl.constexpr, LOAD_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attention of this program's tiles; `MASKED` is the number of blocks that may need a mask."""
    load = (q_desc, k_desc, v_desc, starts_ptr, tiles_ptr)
    task = (out_desc, lse_ptr, starts_ptr, tiles_ptr, n_heads, n_queries, n_keys, scale_log2)
    q_ring, out_ring = _ring(q_desc, 2 * GROUPS), _ring(out_desc, GROUPS)
    rings = (q_ring, _ring(k_desc, STAGES), _ring(v_desc, STAGES), out_ring)
    full = (_barriers(2, 1), _barriers(STAGES, 1), _barriers(STAGES, 1))
    free = (_barriers(2, GROUPS), _barriers(STAGES, GROUPS))
    if GROUPS == 1:
        gl.warp_specialize([
            (_attend, (task, rings, full, free, LAG, 0, IS_CAUSAL, MASKED)),
            (_load_tiles, (load, rings, full, free, LAG)),
        ], [1], [LOAD_REGISTERS])  # fmt: skip
    elif GROUPS == 2:
        gl.warp_specialize([
            (_attend, (task, rings, full, free, LAG, 0, IS_CAUSAL, MASKED)),
            (_attend, (task, rings, full, free, LAG, 1, IS_CAUSAL, MASKED)),
            (_load_tiles, (load, rings, full, free, LAG)),
        ], [4, 1], [REGISTERS, LOAD_REGISTERS])  # fmt: skip
    else:
        gl.warp_specialize([
            (_attend, (task, rings, full, free, LAG, 0, IS_CAUSAL, MASKED)),
            (_attend, (task, rings, full, free, LAG, 1, IS_CAUSAL, MASKED)),
            (_attend, (task, rings, full, free, LAG, 2, IS_CAUSAL, MASKED)),
            (_load_tiles, (load, rings, full, free, LAG)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, LOAD_REGISTERS])  # fmt: skip

# %% [markdown]
# What a wait names in `deps` is used after it; other arithmetic the [compiler](../foundations/compiler.py) may move past it. One wait here waits for nothing (one product may run, and one does): its `deps` keep the correction of `acc` behind the start of $S_j$. **[Registers](../glossary.md#register)** limit the tile. An SM has 65,536. Two consumers of 128 threads take 240 a thread; the loading warp counts as 128 threads too, with 24 each: 64,512 registers in all. At $D = 64$ `acc` is half as large, and three consumers fit at 160: one more softmax to run beside products, where keys and queries are many enough to make up for tiles of 192 rows. In a tile with fewer rows than that, a consumer without rows only says that it has read what it need not, and leaves the SM to the others.
#
# ## Rung 4: who takes which tile
#
# With one program for each tile, every tile begins with an empty ring and ends with idle tensor cores. A [persistent kernel](../glossary.md#persistent-kernel) has as many programs as SMs, each with a list of tiles: while one is stored the next is loading. Who takes which, in what order?{{ diagram("hopper_schedule") }}
#
# *Longest first, each to whoever is free earliest*, in groups of heads whose keys and values fit a part of [L2](../glossary.md#l2). Tiles of equal length come in rounds, a tile for each program, and the last round is seldom full: with three consumers, 64 heads of 4,096 queries are 1,344 whole tiles and 64 short ones, ten rounds for 132 programs and a part of an eleventh. There `_schedule` cuts tiles into parts of 64 or 128 queries, so that all programs share that round. Lengths are known before the launch, so the host plans: it makes a table for each shape, once, and the kernel follows it. Rung 3 is the same kernel with one tile a program.

# %% tags=["copy"]
BLOCK_N, STAGES = 128, 2
# consumers: registers of a thread that computes, of one that loads, of all at launch
REGISTERS = {1: (240, 24, 168), 2: (240, 24, 168), 3: (160, 32, 128)}
GROUP_BYTES = 16 << 20  # keys and values of heads that run together, causal
THIRDS = {1: 0.6, 2: 0.85, 3: 1}  # of a step's time, with so many of three consumers
# how TMA writes a block and wgmma reads it, swizzled so that no bank is met twice
_layout = functools.lru_cache(gl.NVMMASharedLayout.get_default_for)


@functools.cache  # for good: a captured graph or another stream may yet read a table
def _schedule(sizes, causal, block_m, programs, device):
    """Int32 tensors: where each program's part of the list of tiles starts, and the list."""
    batch, heads, shared_by, n_queries, n_keys, head_dim = sizes
    tiles, together = [], 1
    def steps(tile):  # to load the queries and store the output takes about as long as one more
        thirds = triton.cdiv(tile[3] - tile[2], 64)
        return 1 + tile[4] * (THIRDS[thirds] if block_m == 192 else 1)

    for start_m in range(0, n_queries, block_m):
        end_m = min(start_m + block_m, n_queries)
        seen = end_m + n_keys - n_queries if causal else n_keys
        tiles.append((start_m, end_m, max(1, triton.cdiv(seen, BLOCK_N))))  # 1 if all is masked
    if causal and programs:
        tiles.reverse()
        together = max(1, GROUP_BYTES // (4 * n_keys * head_dim)) * shared_by
    work = [
        (head // heads, head % heads, *tile, head % heads // shared_by)
        for first in range(0, batch * heads, together)
        for tile in tiles
        for head in range(first, min(first + together, batch * heads))
    ]
    if causal and programs:
        # the last by length alone, so that programs end together
        last = max(0, len(work) - 3 * programs)
        work[last:] = sorted(work[last:], key=steps, reverse=True)
    elif programs and block_m == 192:
        # whole tiles in whole rounds, then the rest in parts, of as few rows as one round takes
        work.sort(key=steps, reverse=True)
        last = sum(end - start == block_m for _, _, start, end, *_ in work) // programs * programs
        thirds = sum(triton.cdiv(end - start, 64) for _, _, start, end, *_ in work[last:])
        part = 64 * min(3, triton.cdiv(thirds, programs))
        work[last:] = sorted((
            (*tile[:2], start, min(start + part, tile[3]), *tile[4:])
            for tile in work[last:] for start in range(*tile[2:4], part)
        ), key=steps, reverse=True)  # fmt: skip
    lists = [[] for _ in range(programs or len(work))]
    free_at = [(0, program) for program in range(len(lists))]
    for tile in work:
        time, program = heapq.heappop(free_at)
        lists[program].append(tile)
        heapq.heappush(free_at, (time + steps(tile), program))
    tables = [0, *itertools.accumulate(map(len, lists))], [*itertools.chain(*lists)]
    return [torch.tensor(table, dtype=torch.int32).to(device) for table in tables]


@functools.lru_cache
def _sms(device: torch.device) -> int:
    """The number of SMs of a Hopper GPU; refuses others."""
    gpu = torch.cuda.get_device_properties(device)
    if (gpu.major, gpu.minor) != (9, 0):
        raise ValueError(f"hopper_attention needs an H100 or H200 (sm_90), this is {gpu.name}")
    return gpu.multi_processor_count


def _plan(q, k, v, out, lse, causal, scale, groups=None, lag=1, persistent=True):
    """Grid, arguments and options of the launch; the last three choose a rung."""
    (batch, heads, n_queries, head_dim), n_keys = q.shape, k.shape[2]
    many = n_keys > (4000 if causal else 900) and batch * heads * n_queries > 768 * _sms(q.device)
    groups = groups or (3 if head_dim == 64 and many else 2)
    rows = 128 if groups == 1 else 64
    n_tiles = batch * heads * triton.cdiv(n_queries, rows * groups)
    programs = min(n_tiles, _sms(q.device)) if persistent else None
    sizes = (batch, heads, heads // k.shape[1], n_queries, n_keys, head_dim)
    starts, tiles = _schedule(sizes, causal, rows * groups, programs, q.device)
    # how many blocks need a mask: the last if it is not full, or those that the diagonal can touch
    masked = int(n_keys % BLOCK_N != 0)
    if causal:
        masked = groups // 3 + (1 if (n_keys - n_queries) % BLOCK_N == 0 else 2)
    dtype = gl.float16 if q.dtype == torch.float16 else gl.bfloat16
    blocks = [(1, 1, n, head_dim) for n in (rows, BLOCK_N, BLOCK_N, rows)]
    described = zip((q, k, v, out), blocks, strict=True)
    arguments = (
        *(TensorDescriptor.from_tensor(x, block, _layout(block, dtype)) for x, block in described),
        lse, starts, tiles, heads, n_queries, n_keys, scale * math.log2(math.e),
        lag, groups, STAGES, causal, masked, *REGISTERS[groups][:2],
    )  # fmt: skip
    options = {"num_warps": 8 if groups == 1 else 4, "maxnreg": REGISTERS[groups][2]}
    return (programs or n_tiles,), arguments, options


def _fits(x: torch.Tensor) -> bool:
    """Whether a descriptor can describe `x`."""
    rows = x.stride(3) == 1 and x.stride(2) >= x.shape[3]
    return rows and x.data_ptr() % 16 == 0 and all(n % 8 == 0 for n in x.stride()[:3])


def hopper_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False,
    scale: float | None = None, return_lse: bool = False, out: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention, `softmax(scale * q @ k.T) @ v` of every head, on a Hopper GPU. Forward only.

    Args:
        q: Queries `(B, H, n_queries, D)`, float16 or bfloat16, D 64 or 128. Copied unless rows are
            adjacent numbers and begin at multiples of 16 bytes.
        k: Keys `(B, H_kv, n_keys, D)`; query head h reads key head `h // (H // H_kv)`.
        v: Values, like `k`.
        causal: Whether a query sees only keys up to its place; the last query has the last key's.
        scale: Factor of the scores, between 1e-30 and 1e20; `D ** -0.5` if None.
        return_lse: Whether to return the log-sum-exp of the scaled scores as well.
        out: Where to write the result, in such rows, each in a place of its own, and not over `k`
            or `v`; a new contiguous tensor if None.

    Returns:
        The output, like `q`, and with `return_lse` float32 `(B, H, n_queries)`; no key: 0, -inf.

    Raises:
        TypeError: The dtype is neither of the two, or differs between the inputs.
        ValueError: Shape, device, scale or `out` is not as above, or an input wants a gradient.
        RuntimeError: A CUDA graph is captured at the first call of a shape, which makes its table.
    """
    tensors = {"q": q, "k": k, "v": v} | ({} if out is None else {"out": out})
    for name, x in tensors.items():
        if x.dtype not in (torch.float16, torch.bfloat16) or x.dtype != q.dtype:
            raise TypeError(f"hopper_attention takes float16 or bfloat16; {name} is {x.dtype}")
        if x.dim() != 4 or x.shape[3] not in (64, 128) or x.device != q.device:
            told = f"one device and (B, H, S, 64 or 128); {name} is {[*x.shape]} on {x.device}"
            raise ValueError(f"hopper_attention takes {told}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"hopper_attention has no backward, and {name} requires a gradient")
    fits = k.shape == v.shape and q.shape[::3] == k.shape[::3]
    fits &= q.shape[1] % k.shape[1] == 0 if k.shape[1] else q.shape[1] == 0
    if not fits or (out is not None and out.shape != q.shape):
        told = ", ".join(f"{name} {[*x.shape]}" for name, x in tensors.items())
        raise ValueError(f"hopper_attention takes k and v alike that fit q, out like q; got {told}")
    if out is not None:
        expanded = any(n > 1 and not step for n, step in zip(out.shape, out.stride(), strict=True))
        over = out.numel() and out.data_ptr() in (k.data_ptr(), v.data_ptr())
        if expanded or over or not _fits(out):
            told = f"rows at multiples of 16 bytes, not expanded, not over k or v; {out.stride()}"
            raise ValueError(f"hopper_attention takes an out with {told}")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not 1e-30 < scale < 1e20:
        raise ValueError(f"hopper_attention takes a scale between 1e-30 and 1e20, got {scale}")
    if not q.is_cuda:
        remedy = "Gluon has no interpreter, so TRITON_INTERPRET=1 does not help"
        raise ValueError(f"hopper_attention needs a Hopper GPU, got {q.device}; {remedy}")
    q, k, v = (x if _fits(x) else x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if q.numel() and k.numel():
        grid, arguments, options = _plan(q, k, v, out, lse, causal, scale)
        with torch.cuda.device_of(q):
            hopper_attention_kernel[grid](*arguments, **options)
    else:
        out.zero_()
        lse.fill_(-float("inf"))
    if "out" in tensors:
        torch.autograd.graph.increment_version(out)
    return (out, lse) if return_lse else out

# %% [markdown]
# ## Is it right?
#
# Every rung in bfloat16, the last in float16 too, against float64: blocks and tiles that are not full, fewer keys than queries and more, shared heads, queries that see no key, huge scores, maxima that rise whichever way the loop goes. Outputs lie in [frames of NaN](../glossary.md#poison-and-guard). Errors are in percent of the rounding of weights and output.

# %% tags=["fold"]
RUNGS = {
    "one": {"groups": 1, "lag": 0, "persistent": False},
    "two": {"groups": 2, "lag": 0, "persistent": False},
    "overlap": {"persistent": False},
    "persistent": {},
    "three": {"groups": 3},  # for D = 64
}


def run_rung(rung, q, k, v, out, lse, causal, scale):
    """A function that launches one rung of the ladder."""
    grid, arguments, options = _plan(q, k, v, out, lse, causal, scale, **RUNGS[rung])
    return lambda: hopper_attention_kernel[grid](*arguments, **options)


def check(device: str = "cuda") -> None:
    """Compares every rung with float64; raises AssertionError where they differ."""
    if device != "cuda":
        raise RuntimeError("Gluon has no interpreter: this check needs a Hopper GPU")
    # batch, heads of queries and of keys, queries, keys
    cases = [(2, 6, 2, 1000, 1000), (1, 5, 5, 300, 1111), (1, 4, 1, 1111, 300), (1, 1, 1, 1, 1)]
    cases += [(2, 3, 3, 127, 127), (1, 4, 2, 256, 256), (1, 2, 2, 512, 384), (1, 2, 2, 99, 999)]
    cases += [(1, 2, 1, 4097, 4097), (2, 40, 8, 640, 1024), (1, 45, 9, 577, 130)]
    for head_dim, dtype in itertools.product((64, 128), (torch.bfloat16, torch.float16)):
        worst = worst_lse = 0.0
        rungs = list(RUNGS)[0 if dtype == torch.bfloat16 else 3 : 5 - head_dim // 128]
        for rung, causal, case in itertools.product(rungs, (False, True), cases):
            batch, heads, kv_heads, n_queries, n_keys = case
            torch.manual_seed(n_queries)
            q = torch.randn(batch, n_queries, heads, head_dim, device=device) + 0.3
            k, v = torch.randn(2, batch, n_keys, kv_heads, head_dim, device=device)
            q *= 60 if n_queries == 99 else 1  # huge scores
            k *= torch.linspace(-2, 2, n_keys, device=device).abs()[:, None, None] + 0.3
            q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
            frame = q.new_full((batch, heads, n_queries + 200, head_dim), float("nan"))
            out, lse = frame[:, :, :n_queries], q.new_zeros(q.shape[:3], dtype=torch.float32)
            if rung == "persistent":
                options = {"causal": causal, "scale": 0.11, "return_lse": True}
                _, lse = hopper_attention(q, k, v, out=out, **options)
            else:
                run_rung(rung, q, k, v, out, lse, causal, 0.11)()
            inputs = (x.double() for x in (q, k, v))
            want, want_lse = hopper_attention_reference(*inputs, causal=causal, scale=0.11)
            none = want_lse.isneginf()
            error = (out - want).abs().max().item() / torch.finfo(dtype).eps / v.abs().max().item()
            lse_error = (lse - want_lse).where(~none, 0.0).abs().max().item()
            about = f"{rung}, D = {head_dim}, {dtype}, causal {causal}, {case}"
            empty = not out[none].any() and lse[none].isneginf().all()
            assert empty and frame[:, :, n_queries:].isnan().all(), f"keyless rows, end: {about}"
            assert error <= 1 and lse_error <= 1e-3, f"off by {error}, {lse_error}: {about}"
            worst, worst_lse = max(worst, error), max(worst_lse, lse_error)
        print(f"D = {head_dim:3} {str(dtype)[6:]:8} {worst:3.0%}, log-sum-exp {worst_lse:.0e}")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Sixteen heads, and as many whole sequences as fit 16,384 tokens; single launches, [cool](../glossary.md#cool-and-hot). Before you look: which rung gains most, and which is mainly for causal attention?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(backend, *inputs, **options):
        with sdpa_kernel(getattr(SDPBackend, f"{backend.upper()}_ATTENTION")):
            return torch.nn.functional.scaled_dot_product_attention(*inputs, **options)

    def rows(n, n_keys, head_dim=128, causal=False):
        shapes = ((16384 // n, 16, m, head_dim) for m in (n, n_keys, n_keys))
        q, k, v = (torch.randn(shape, device="cuda").bfloat16() for shape in shapes)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
        calls = {"triton": functools.partial(hopper_attention, q, k, v, causal=causal)}
        for peer in ("cudnn", "flash"):
            calls[f"sdpa_{peer}"] = functools.partial(sdpa, peer, q, k, v, is_causal=causal)
        for rung in ("one", "two", "overlap") if n == n_keys in (4096, 16384) else ():
            calls[f"triton_{rung}"] = run_rung(rung, q, k, v, out, lse, causal, head_dim**-0.5)
        size = {"seq_len": n, "n_keys": n_keys, "batch": len(q), "head_dim": head_dim}
        size |= {"causal": causal, "bytes": 4 * (q.numel() + k.numel())}
        size["flops"] = 4 * q.numel() * n_keys // (2 if causal else 1)
        timings = measure(calls, hot=n in (1024, 4096, 16384), host=n == 512)
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    def benchmark(name, title, sizes):
        title = f"Attention forward, {title}, about 16,384 queries, bfloat16"
        about = {"name": f"hopper_{name}", "title": title, "x": "seq_len", "ceiling": "matmul"}
        about |= {"dtype": "bfloat16", "mode": "forward"}
        return about | {"rows": [row for size in sizes for row in rows(*size)]}

    for head_dim, kind in itertools.product((128, 64), ("full", "causal")):
        sizes = [(n, n, head_dim, kind == "causal") for n in (512, 1000, 1024, 4096, 4097, 16384)]
        yield benchmark(f"d{head_dim}_{kind}", f"{kind}, 16 heads × {head_dim}", sizes)
    sizes = (1000, 4097), (1024, 4096), (4096, 1024), (4097, 1000)
    yield benchmark("cross", "full, keys of another length, 16 heads × 128", sizes)

# %% [markdown]
# {{ figure("hopper_d128_full", providers=["triton", "triton_one", "triton_two", "triton_overlap", "sdpa_cudnn", "sdpa_flash"], caption="D = 128, full: ahead of cuDNN at every length; SDPA's flash backend, flash attention 2, has half the rate. The dips are 1,000 and 4,097 tokens.") }}
#
# {{ figure("hopper_d128_causal", providers=["triton", "triton_one", "triton_two", "triton_overlap", "sdpa_cudnn"], caption="D = 128, causal: tiles of unequal length, so the step from overlap to rung 4 is larger than in full attention.") }}{% for n in (4096, 16384) %}{{ claim(row("hopper_d128_causal", provider="triton_overlap", seq_len=n).ms / row("hopper_d128_causal", provider="triton", seq_len=n).ms > 1.03 * row("hopper_d128_full", provider="triton_overlap", seq_len=n).ms / row("hopper_d128_full", provider="triton", seq_len=n).ms) }}{% endfor %}
#
# TFLOP/s at 4,096 tokens, rung by rung, under the names that the figures have for them; *hot* is back to back, at the clock that the power allows. At $D = 64$ rungs 3 and 4 have three consumers, so that rung 3 changes two things there, the order and the third; what each gains alone is not recorded:{% for kind in ["d128_full", "d128_causal", "d64_full", "d64_causal"] %}{% for r in rows("hopper_" ~ kind, provider="triton") %}{{ claim(r.ms * (1.1 if "causal" in kind and r.seq_len >= 1000 else 1.05) < row("hopper_" ~ kind, provider="sdpa_cudnn", seq_len=r.seq_len).ms) }}{% endfor %}{% endfor %}
#
# | | 1: one | 2: two | 3: overlap | 4: Triton | cuDNN | 4, hot | cuDNN, hot |
# |---|--:|--:|--:|--:|--:|--:|--:|
# {% for kind in ["d128_full", "d128_causal", "d64_full", "d64_causal"] %}
# | {{ kind.replace("d", "$D = ").replace("_", "$, ") }} {% for p in ["triton_one", "triton_two", "triton_overlap", "triton", "sdpa_cudnn"] %}| {{ row("hopper_" ~ kind, provider=p, seq_len=4096).tflops | n(0) }} {% endfor %}{% for p in ["triton", "sdpa_cudnn"] %}| {{ row("hopper_" ~ kind, provider=p, seq_len=4096).tflops_hot | n(0) }} {% endfor %}|
# {% endfor %}
#
# {% set one, two, lap = row("hopper_d128_full", provider="triton_one", seq_len=4096), row("hopper_d128_full", provider="triton_two", seq_len=4096), row("hopper_d128_full", provider="triton_overlap", seq_len=4096) %}{% set all, cudnn, causal, theirs = row("hopper_d128_full", provider="triton", seq_len=4096), row("hopper_d128_full", provider="sdpa_cudnn", seq_len=4096), row("hopper_d128_causal", provider="triton", seq_len=4096), row("hopper_d128_causal", provider="sdpa_cudnn", seq_len=4096) %}At $D = 128$, full, rung 4 has {{ (all.tflops / rec("attention/flash_attention").row("attention_d128_full", provider="triton", seq_len=4096).tflops) | times }} the rate of the kernel in `tl`, {{ (100 * cudnn.ms / all.ms - 100) | pct }} more than cuDNN's, and {{ all.percent | pct }} of the library's matrix rate; causal, {{ (100 * theirs.ms / causal.ms - 100) | pct }} more than cuDNN's. [Back to back](../glossary.md#cool-and-hot) it is ahead at both $D$, with a mask and without, {% set lead = [] %}{% for kind in ["d128_full", "d128_causal", "d64_full", "d64_causal"] %}{% for n in [4096, 16384] %}{% set _ = lead.append(100 * row("hopper_" ~ kind, provider="sdpa_cudnn", seq_len=n).ms_hot / row("hopper_" ~ kind, provider="triton", seq_len=n).ms_hot - 100) %}{% endfor %}{% endfor %}by {{ lead | min | n(0) }} to {{ lead | max | n(0) }} % at 4,096 and 16,384 tokens.{{ claim(lead | min > 3) }} At $D = 128$ rung 2 gains most, {{ (100 * one.ms / two.ms - 100) | pct }}; rung 4 is mainly for causal attention, {{ (100 * row("hopper_d128_causal", provider="triton_overlap", seq_len=4096).ms / causal.ms - 100) | pct }} there, {{ (100 * lap.ms / all.ms - 100) | pct }} in full.{{ claim(one.ms / two.ms > 1.05 * two.ms / lap.ms and one.ms / two.ms > 1.05 * lap.ms / all.ms) }}
#
# ## What the profiler says
#
# Share of a launch's cycles in which a unit was busy, by NVIDIA's [ncu](https://docs.nvidia.com/nsight-compute/), and the clock, 4,096 tokens again:
#
# {% set seen = {"d128_full": [], "d128_causal": [], "d64_full": []} %}{% for kind, found in seen.items() %}{% for p in ["triton_one", "triton_two", "triton_overlap", "triton"] %}{% set _ = found.append(profile("hopper_" ~ kind, provider=p, seq_len=4096)) %}{% endfor %}{% endfor %}{% set full, cut, narrow = seen["d128_full"], seen["d128_causal"], seen["d64_full"] %}
# | | rung 1 | rung 2 | rung 3 | rung 4 |
# |---|--:|--:|--:|--:|
# {% for name, found, unit in [["$D = 128$, full: tensor cores", full, "tensor"], ["$D = 128$, full: exponentials", full, "xu"], ["$D = 128$, causal: tensor cores", cut, "tensor"], ["$D = 64$, full: tensor cores", narrow, "tensor"], ["$D = 64$, full: exponentials", narrow, "xu"], ["$D = 128$, full: clock, GHz", full, "clock_ghz"], ["$D = 64$, full: clock, GHz", narrow, "clock_ghz"]] %}
# | {{ name }} {% for rung in found %}| {{ rung[unit] | n(2) if unit == "clock_ghz" else rung[unit] | pct }} {% endfor %}|
# {% endfor %}
#
# {{ profile_source() }}
#
# **Rung 1** is close to what we counted: in turn, that was 55 % for the tensor cores at $D = 128$, and 38 % for either unit at $D = 64$, where exponentials take as many cycles as products.{{ claim((full[0].tensor - 55) | abs < 4 and (narrow[0].tensor - 38) | abs < 4 and (narrow[0].xu - 38) | abs < 4) }} **Rung 2** lets one consumer multiply during the other's softmax, **rung 3** during its own as well.{% for found in (full, cut, narrow) %}{{ claim(found[0].tensor + 3 < found[1].tensor and found[1].tensor + 2 < found[2].tensor < found[3].tensor) }}{% endfor %} **Rung 4** hides where tiles begin and end; causal tiles are half as long on average, so causal attention gains most from it.{{ claim(cut[3].tensor / cut[2].tensor > 1.05 * full[3].tensor / full[2].tensor) }}{{ claim(row("hopper_d64_causal", provider="triton_overlap", seq_len=4096).ms / row("hopper_d64_causal", provider="triton", seq_len=4096).ms > 1.05 * row("hopper_d64_full", provider="triton_overlap", seq_len=4096).ms / row("hopper_d64_full", provider="triton", seq_len=4096).ms) }} There an SM has no tile for {{ (100 - cut[2].busy) | pct }} of the cycles in rung 3, and for {{ (100 - cut[3].busy) | pct }} in rung 4.{{ claim(100 - cut[2].busy > 1.5 * (100 - cut[3].busy)) }}
#
# **Why not faster still?** At $D = 128$, power: the busier the tensor cores, the lower the clock. From rung 1 to 4 their share of the cycles grows by {{ (100 * full[3].tensor / full[0].tensor - 100) | pct }}, but a second has {{ (100 - 100 * full[3].clock_ghz / full[0].clock_ghz) | pct }} fewer cycles, and the recorded rate grows by {{ (100 * one.ms / all.ms - 100) | pct }}.{{ claim(full[3].clock_ghz < 0.96 * full[0].clock_ghz and full[3].tensor / full[0].tensor > 1.03 * one.ms / all.ms) }} At $D = 64$ the clock hardly falls,{{ claim(narrow[3].clock_ghz > 0.97 * narrow[0].clock_ghz) }} and the softmax is the limit: the count allows 62 % if exponentials and the rest take turns, and rung 4 has {{ narrow[3].xu | n(0) }}.{{ claim(50 < narrow[3].xu < 62) }}
#
# ## Where it loses, and what survives
#
# - {% set odd, even = row("hopper_d128_full", provider="triton", seq_len=4097), row("hopper_d128_full", provider="triton", seq_len=4096) %}{% for kind in ["d128_full", "d128_causal", "d64_full", "d64_causal"] %}{% for n, round in [(1000, 1024), (4097, 4096)] %}{{ claim(row("hopper_" ~ kind, provider="triton", seq_len=n).tflops > 0.9 * row("hopper_" ~ kind, provider="triton", seq_len=round).tflops) }}{% endfor %}{% endfor %}**Odd lengths**, 1,000 and 4,097 tokens, cost less than a tenth of the rate: {{ even.tflops | n(0) }} TFLOP/s at 4,096, {{ odd.tflops | n(0) }} at 4,097 (three sequences, as four would be more than 16,384 tokens).
# - {% set many, few = row("hopper_cross", provider="triton", seq_len=1024), row("hopper_cross", provider="triton", seq_len=4096) %}**Keys of another length** cost nothing beyond what short loops do: {{ few.tflops | n(0) }} TFLOP/s for 4,096 queries and 1,024 keys, {{ many.tflops | n(0) }} for 1,024 queries and 4,096 keys; where neither is round, 4,097 by 1,000 and 1,000 by 4,097, {{ row("hopper_cross", provider="triton", seq_len=4097).tflops | n(0) }} and {{ row("hopper_cross", provider="triton", seq_len=1000).tflops | n(0) }}.{{ claim(row("hopper_cross", provider="triton", seq_len=4097).tflops > 0.93 * few.tflops and row("hopper_cross", provider="triton", seq_len=1000).tflops > 0.93 * many.tflops) }}{% for r in rows("hopper_cross", provider="triton") %}{{ claim(1.05 * r.ms < row("hopper_cross", provider="sdpa_cudnn", seq_len=r.seq_len).ms) }}{% endfor %}
# - **Short sequences** ({{ row("hopper_d128_full", provider="triton", seq_len=512).tflops | n(0) }} at 512 tokens){{ claim(row("hopper_d128_full", provider="triton", seq_len=512).tflops < 0.9 * even.tflops) }} pay more for what nothing hides, a tile's first softmax and last product. {% set small, its = row("hopper_d64_causal", provider="triton", seq_len=512), row("hopper_d64_causal", provider="sdpa_cudnn", seq_len=512) %}**Small work** waits for the host, {{ small.host_us | n(0) }} µs a call where cuDNN's takes {{ its.host_us | n(0) }} (512 tokens, causal, $D = 64$; at $D = 128$ it was {{ row("hopper_d128_causal", provider="triton", seq_len=512).host_us | n(0) }} and {{ row("hopper_d128_causal", provider="sdpa_cudnn", seq_len=512).host_us | n(0) }}: a host is not always equally fast), and more for a new shape, which needs its table. That is longer than the kernel, {{ small.ms | time }}. The figures show the GPU's time alone; of calls with nothing between them cuDNN's are done sooner there, in {{ its.ms | time }} each.{{ claim(small.host_us > 1.1e3 * its.ms and its.host_us < 900 * its.ms) }} A table is never freed, 24 bytes a tile, since a [CUDA graph](../glossary.md#cuda-graph) may hold its address; and the call that makes it must come before the capture.
# - {% set flash = rec("attention/flash_attention") %}**Other peers**: in [its recording](flash_attention.py#is-it-fast) the kernel of `tl` reaches {{ flash.row("attention_d128_full", provider="triton", seq_len=4096).tflops | n(0) }} TFLOP/s at 4,096 tokens, $D = 128$; this page's {{ row("hopper_d128_full", provider="triton", seq_len=4096).tflops | n(0) }}.{{ claim(row("hopper_d128_full", provider="triton", seq_len=4096).tflops > 1.2 * flash.row("attention_d128_full", provider="triton", seq_len=4096).tflops) }} Not measured here: [flash attention 4](https://pypi.org/project/flash-attn-4), written in CuTe for Hopper and Blackwell; the figures compare with what PyTorch brings along. Measured apart (2026-11-21, same card and versions) flash attention 4 is ahead without a mask: at $D = 128$ by {{ (100 * 736 / row("hopper_d128_full", provider="triton", seq_len=4096).tflops - 100) | n(0) }} % at 4,096 tokens and {{ (100 * 767 / row("hopper_d128_full", provider="triton", seq_len=16384).tflops - 100) | n(0) }} % at 16,384, at $D = 64$ and 4,096 by {{ (100 * 547 / row("hopper_d64_full", provider="triton", seq_len=4096).tflops - 100) | n(0) }} %; with a mask, at $D = 64$ and 16,384 tokens, by {{ (100 * 577 / row("hopper_d64_causal", provider="triton", seq_len=16384).tflops - 100) | n(0) }} %. At the other sizes compared it is behind or level (within 2 %; with a mask, at $D = 64$ and 4,096 tokens, it has {{ (100 * 462 / row("hopper_d64_causal", provider="triton", seq_len=4096).tflops - 100) | n(0) }} % more).{{ claim(552 < 1.01 * row("hopper_d64_full", provider="triton", seq_len=16384).tflops) }}{{ claim(653 < row("hopper_d128_causal", provider="triton", seq_len=4096).tflops and 740 < 1.02 * row("hopper_d128_causal", provider="triton", seq_len=16384).tflops and 571 < row("hopper_d128_full", provider="triton", seq_len=1024).tflops and 404 < row("hopper_d128_causal", provider="triton", seq_len=1024).tflops) }} The chip that day was a little faster: cuDNN, measured beside it, had {{ (100 * 693 / row("hopper_d128_full", provider="sdpa_cudnn", seq_len=4096).tflops - 100) | n(0) }} % more than here ($D = 128$, 4,096 tokens, full); leads of up to that much may be the chip's.
# - **Other chips**: Ampere has neither wgmma nor TMA: there the ring is filled by [`cp.async`](../glossary.md#cpasync), and each warp keeps its operands in registers. Blackwell has another matrix instruction, whose sums lie in a memory of their own, so that another budget binds; [the compiler's page](../foundations/compiler.py#a-product-for-gpus-that-you-do-not-have) shows both. Counting, ring and longest-first survive; this code does not.
# - **A tool complains**: racecheck reports [hazards](../results.md#are-the-kernels-right) here as in [roles for warps](warp_specialization.py#where-it-loses-and-why), all where warps read which role they shall take. **A scale above 10⁸** can make rows NaN (*not yet right*).
#
# ## What to remember
#
# 1. Count each unit's cycles. Their sum is the time in turn, their maximum the best of any order.
# 2. Start what depends on nothing new, then wait only for what you need: start, start, wait, wait.
# 3. Give warps roles, and let barriers say when. Then a table can say who does what.
#
# ## Exercises
#
# ??? question "1. A third stage (five minutes)"
#     Give the ring three slots, `STAGES = 3`. Do they fit? Would you expect a gain?
#
#     ??? success "Answer"
#         At $D = 128$ a slot is 64 KiB, queries and output are 96: 288 KiB, and there are 227. At 64 three fit, but two suffice as long as a block arrives while one [is used](../glossary.md#pipelining).
#
# ??? question "2. Causal by count (twenty minutes)"
#     `_schedule` counts $1 + b$ steps for a tile of $b$ blocks; the rates on this page count half the operations if causal. By these counts, what share of the rate of full attention does [causal](../glossary.md#causal) attention reach at $D = 128$, for 512, 1,024 and 4,096 tokens?
#
#     ??? success "Answer"
#         With $n = N / 128$ blocks of keys a full tile takes $n + 1$ steps for $n$ blocks that count, a causal one on average $1 + (n + 1) / 2$ for $n / 2$. That is $n / (n + 1)$ and $n / (n + 3)$ blocks a step; their ratio is $(n + 1) / (n + 3)$: 71, 82 and 94 %. Recorded: {% set shares = [] %}{% for n, near in [(512, 0.12), (1024, 0.07), (4096, 0.02)] %}{% set _ = shares.append(row("hopper_d128_causal", provider="triton", seq_len=n).tflops / row("hopper_d128_full", provider="triton", seq_len=n).tflops) %}{{ claim((shares[-1] - (n + 128) / (n + 384)) | abs < near) }}{% endfor %}{{ (100 * shares[0]) | n(0) }}, {{ (100 * shares[1]) | n(0) }} and {{ (100 * shares[2]) | n(0) }} %. The count leaves out masks, one block of each causal tile.
#
# ??? question "3. No table (two hours)"
#     Let programs draw their next tile from a counter in memory.
#
#     ??? success "Answer"
#         The producer draws with `gl.atomic_add`, and passes the [number](../glossary.md#atomic-operation) on through a small ring. Whoever draws past the end stops; the last to do so sets the counter back.
#
# ## Use it in your project
#
# ```python
# from hopper_attention import hopper_attention
# out, lse = hopper_attention(q, k, v, causal=True, return_lse=True)  # (B, H, S, D), D 64 or 128
# ```
#
# See [`hopper_attention`][examples.attention.hopper_attention.hopper_attention]. [Its gradient](hopper_backward.py) is a page of its own. On other GPUs use [`flash_attention`](flash_attention.py).
