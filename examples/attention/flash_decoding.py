# %% [markdown]
# ---
# title: Flash decoding
# description: One new token against a long KV cache, read once at the speed of memory, split over the keys, paged and ragged.
# tags: [attention, memory-bound, determinism, tensor cores]
# prerequisites: [attention/flash_attention]
# outcome: Split attention over its keys, merge the parts exactly, share a cache among heads, find it page by page, and give each program an equal share of a ragged batch.
# ---
#
# # Flash decoding: one token, a long cache
#
# A language model writes one token after the other. Keys and values of all tokens so far are kept, in the [KV cache](../glossary.md#kv-cache); the new token has one row of queries for each head. The [flash kernel](flash_attention.py) computes tiles of 128 rows: 127 of them would be empty, and each head would be one [program](../glossary.md#program). 32 heads are 32 programs, on {{ env.sms }} [multiprocessors](../glossary.md#sm). **How fast can one token be?**
#
# ## What it costs
#
# One sequence of 8,192 tokens; 32 heads of queries share 8 of keys and values, as in many models ([GQA](../glossary.md#gqa)); $D = 128$, 16-bit numbers:{% set read = row("decoding_b1", provider="triton_read", seq_len=8192) %}
#
# | | amount | time on the {{ env.gpu }} of this page |
# |---|---|---|
# | cache, $2 \cdot 8192 \cdot 8 \cdot 128$ numbers, read | {{ (4 * 8192 * 8 * 128) | bytes }} | {{ read.ms | ms }} at the speed of a read |
# | two products, $4 \cdot 32 \cdot 8192 \cdot 128$ | 134 MFLOP | {{ (4 * 32 * 8192 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }} at the library's best matrix rate |
#
# {{ claim(read.ms > 20 * 4 * 32 * 8192 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) }}A number of the cache is 2 bytes, and takes part in one multiply-add for each of the $G = 4$ heads that share it. The [arithmetic intensity](../glossary.md#arithmetic-intensity) is $G$ operations a byte at any length; the [roofline](../foundations/memory_hierarchy.py) bends near {{ (matmul_tflops("bfloat16", 8192) / row("decoding_b64", provider="triton_read", seq_len=32768).tbps) | n(0) }}: FLOPs do not matter. **The floor is the bytes of the cache, read once.** The yardstick is a *read*, not this site's usual copy: half the bytes of a copy are writes, and those of a small copy stay in [L2](../glossary.md#l2). As in [Reductions](../fusion/reductions.py), a kernel that loads as many bytes, and stores one word for each 4,096 that it loads, is timed beside each row.

# %% tags=["copy"]
import functools
import math

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# %% [markdown]
# ## The reference
#
# Each sequence of a batch has its own length (`seq_lens`). The cache has room for more, and what lies past the length must not matter. A sequence without tokens gives 0. `block_table`: [step 4](#step-4-follow-the-table).

# %%
def flash_decoding_reference(q, k_cache, v_cache, seq_lens, *, block_table=None, scale=None):
    """Attention of one token a sequence in plain PyTorch; shapes as in `flash_decoding`."""
    out, scale = torch.zeros_like(q), q.shape[-1] ** -0.5 if scale is None else scale
    for b, seq_len in enumerate(seq_lens.tolist()):
        if block_table is None:
            k, v = k_cache[b, :seq_len], v_cache[b, :seq_len]  # [seq_len, n_kv_heads, D]
        else:
            pages = block_table[b, : -(-seq_len // k_cache.shape[1])].long()
            k, v = (x[pages].flatten(0, 1)[:seq_len] for x in (k_cache, v_cache))
        if seq_len:
            grouped = q[b].unflatten(0, (k.shape[1], -1))  # [n_kv_heads, GROUP, D]
            scores = grouped @ k.permute(1, 2, 0) * scale  # [n_kv_heads, GROUP, seq_len]
            out[b] = (scores.softmax(dim=-1) @ v.transpose(0, 1)).flatten(0, 1)
    return out

# %% [markdown]
# ## Step 1: one program a head
#
# With one row of queries there is no matrix product left: a score is a row of $K$ times `q`, summed. The rest is the [online softmax](../glossary.md#online-softmax), in powers of 2. Caches are `(B, capacity, H_kv, D)`: room for `capacity` tokens a sequence, and of each token a row for each KV head. A program's keys go from `start` to `stop`, for now (`n_splits = 1`) all of its head's; the [log-sum-exp](../glossary.md#log-sum-exp) that it stores is for step 2.

# %%
@triton.jit
def first_decoding_kernel(
    q_ptr, k_ptr, v_ptr, part_ptr, lse_ptr, seq_lens_ptr, n_heads, n_kv_heads, capacity, n_splits,
    scale_log2, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    seq_len = tl.minimum(tl.maximum(tl.load(seq_lens_ptr + b), 0), capacity)
    blocks = tl.cdiv(seq_len, BLOCK_N)
    start = blocks * split // n_splits * BLOCK_N
    stop = tl.minimum(blocks * (split + 1) // n_splits * BLOCK_N, seq_len)
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, HEAD_DIM)
    row = b * n_heads + head
    q = tl.load(q_ptr + row * HEAD_DIM + offs_d).to(tl.float32) * scale_log2
    acc = tl.zeros([HEAD_DIM], tl.float32)
    row_max, row_sum = -1e30, 0.0  # finite, since -inf - -inf is NaN
    for start_n in range(start, stop, BLOCK_N):
        seen = start_n + offs_n < stop
        rows = (b * capacity + start_n + offs_n) * n_kv_heads + head * n_kv_heads // n_heads
        offs = rows[:, None] * HEAD_DIM + offs_d[None, :]  # [BLOCK_N, HEAD_DIM]
        k = tl.load(k_ptr + offs, mask=seen[:, None], other=0.0)
        s = tl.where(seen, tl.sum(k * q[None, :], axis=1), -float("inf"))
        new_max = tl.maximum(row_max, tl.max(s, axis=0))
        alpha = tl.exp2(row_max - new_max)
        p = tl.exp2(s - new_max)
        row_sum = row_sum * alpha + tl.sum(p, axis=0)
        v = tl.load(v_ptr + offs, mask=seen[:, None], other=0.0)
        acc = acc * alpha + tl.sum(p[:, None] * v, axis=0)
        row_max = new_max
    part = (b * n_splits + split) * n_heads + head
    tl.store(lse_ptr + part, row_max + tl.log2(row_sum))
    # no keys at all: 0 / 1, with weight 0
    out = (acc / tl.where(row_sum > 0, row_sum, 1.0)).to(part_ptr.dtype.element_ty)
    tl.store(part_ptr + part * HEAD_DIM + offs_d, out)

# %% [markdown]
# The result is right, with two faults: most of the chip has nothing to do, and the four heads that share keys [each read them](#step-3-heads-that-share-keys-share-a-tile). Mend one at a time.
#
# ## Step 2: split the keys, merge the parts
#
# Divide the keys of a head among several [programs](../glossary.md#program). Each computes attention over its own part; what is the whole? Part $i$ knows its maximum $m_i$, its sum $l_i = \sum_j 2^{s_j - m_i}$ and $\mathit{acc}_i = \sum_j 2^{s_j - m_i} v_j$. Corrected to the maximum $m$ of all, sums add up:
#
# $$
# O = \frac{\sum_i 2^{m_i - m} \, \mathit{acc}_i}{\sum_i 2^{m_i - m} \, l_i} .
# $$
#
# A part need not leave all three. Let it finish its own softmax, $O_i = \mathit{acc}_i / l_i$, and leave that and its [log-sum-exp](../glossary.md#log-sum-exp) $L_i = m_i + \log_2 l_i$. Since $2^{m_i} l_i = 2^{L_i}$ and $2^{m_i} \mathit{acc}_i = 2^{L_i} O_i$, the whole is
#
# $$
# O = \sum_i w_i O_i, \qquad w_i = \frac{2^{L_i - m}}{\sum_j 2^{L_j - m}} :
# $$
#
# **merging is a [softmax](../fusion/softmax.py) over parts**, now with $m = \max_i L_i$. It is exact, and parts may be of any size. A part without keys has $L_i = -\infty$ and the weight 0.
#
# Pen and paper, with the six keys of [Flash attention](flash_attention.py#a-softmax-that-never-sees-the-whole-row), whose answer was 3. Which of the three parts weighs most?

# %%
def merge_by_hand(parts) -> float:
    """Weighted mean of values, weights in powers of 2, part by part; prints each part."""
    found = []
    for scores, values in parts:
        p = [2 ** (score - max(scores)) for score in scores]
        out = sum(weight * value for weight, value in zip(p, values, strict=True)) / sum(p)
        found.append((out, max(scores) + math.log2(sum(p))))
    weights = [2 ** (lse - max(lse for _, lse in found)) for _, lse in found]
    for (out, lse), weight in zip(found, weights, strict=True):
        print(f"{out = :.4f}  {lse = :.4f}  weight = {weight / sum(weights):.4f}")
    return sum(out * weight for (out, _), weight in zip(found, weights, strict=True)) / sum(weights)

if __name__ == "__main__":
    print(round(merge_by_hand([((3, 2), (4, 2)), ((1, 1), (8, 4)), ((5, 4), (3, 2))]), 4))

# %% [markdown]
# The last: the weights are 12, 4 and 48 of 64, and these numbers are the $2^{L_i}$.{{ diagram("flash_decoding_split") }}
#
# A second kernel merges, with a program for each row of the output. `_merge` takes `PARTS` parts at a time, and where there are more corrects what it has to the new maximum: [online softmax](../glossary.md#online-softmax) again.

# %% tags=["copy"]
@triton.jit
def _merge(
    part_ptr, lse_ptr, head, n_heads, first, stop, HEAD_DIM: tl.constexpr, PARTS: tl.constexpr
):
    """A row of the output from its parts `first` to `stop - 1`, `PARTS` at a time."""
    offs_p, offs_d = tl.arange(0, PARTS), tl.arange(0, HEAD_DIM)
    acc = tl.zeros([HEAD_DIM], tl.float32)
    # finite, since -inf - -inf is NaN: all parts of an empty sequence
    top, total = -1e30, 0.0
    for start in range(first, stop, PARTS):
        mask = start + offs_p < stop
        rows = (start + offs_p) * n_heads + head
        lse = tl.load(lse_ptr + rows, mask=mask, other=-float("inf"))
        part_ptrs = part_ptr + rows[:, None] * HEAD_DIM + offs_d[None, :]
        part = tl.load(part_ptrs, mask=mask[:, None], other=0.0)  # [PARTS, HEAD_DIM]
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        alpha, weight = tl.exp2(top - new_top), tl.exp2(lse - new_top)
        total = total * alpha + tl.sum(weight, axis=0)
        acc = acc * alpha + tl.sum(part * weight[:, None], axis=0)
        top = new_top
    return acc / tl.where(total > 0, total, 1.0)

# %%
@triton.jit
def first_merge_kernel(
    part_ptr, lse_ptr, out_ptr, n_heads, n_splits, HEAD_DIM: tl.constexpr, PARTS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    b, head = row // n_heads, row % n_heads
    first, stop = b * n_splits, (b + 1) * n_splits
    out = _merge(part_ptr, lse_ptr, head, n_heads, first, stop, HEAD_DIM, PARTS)
    tl.store(out_ptr + row * HEAD_DIM + tl.arange(0, HEAD_DIM), out.to(out_ptr.dtype.element_ty))

def first_decoding(q, k_cache, v_cache, seq_lens, n_splits=1):
    """Launches `first_decoding_kernel`, and the merge; all contiguous, cache unpaged."""
    (batch, n_heads, head_dim), (capacity, n_kv_heads) = q.shape, k_cache.shape[1:3]
    out, lse = torch.empty_like(q), q.new_empty(batch, n_splits, n_heads, dtype=torch.float32)
    part = out if n_splits == 1 else lse.new_empty(*lse.shape, head_dim)
    first_decoding_kernel[(n_heads, n_splits, batch)](
        q, k_cache, v_cache, part, lse, seq_lens, n_heads, n_kv_heads, capacity, n_splits,
        head_dim**-0.5 * math.log2(math.e), HEAD_DIM=head_dim, BLOCK_N=4096 // head_dim,
    )  # fmt: skip
    if n_splits > 1:
        first_merge_kernel[(batch * n_heads,)](part, lse, out, n_heads, n_splits, head_dim, 64)
    return out

# %% [markdown]
# ## Step 3: heads that share keys share a tile
#
# Let one program serve the four heads of a group: their queries become the rows of one tile, and keys and values are loaded once for all. With rows there is a product again, for [tensor cores](../glossary.md#tensor-core). Their smallest product has 16 rows (`BLOCK_M`), so beside the `GROUP` of 4 there are 12 of zeros. That wastes arithmetic, of which there is plenty, and no bytes.{{ diagram("flash_decoding_group") }}
#
# ## Step 4: follow the table
#
# A server does not know how long its sequences will become. It cuts the cache into *pages* of 16 or 64 tokens, hands them out as sequences grow, and notes in a **block table** which page holds which tokens: entry `t // PAGE_SIZE` of a sequence's row, for its token `t` ([PagedAttention](https://arxiv.org/abs/2309.06180), 2023).{{ diagram("flash_decoding_pages") }}
#
# In the kernel that is one more load: from a block's `keys` to their `pages`, and so to their `places`. A cache without pages needs no [table](#step-4-follow-the-table): sequence `b` is page `b`.
#
# ## Step 5: equal shares
#
# How many parts should a sequence have? Step 2 gave each the same number. But a server's batch is [ragged](gqa_varlen.py): 256 to 4,096 tokens, say. The programs of short sequences end early, and those of the longest run on with the chip almost idle. Long sequences need more parts; but to hand them out the host must know `seq_lens`, which lie on the GPU, and would have to wait for it.
#
# So programs find out by themselves. Lay the blocks of keys of all sequences in a row, $S$ in all, and cut it into $J$ **shares**, equal but for one block: share $j$ has the blocks from $\lfloor jS/J \rfloor$ (`first`) up to, not including, $\lfloor (j+1)S/J \rfloor$ (`last`). It may begin within one sequence and end within another:{{ diagram("flash_decoding_shares") }}
#
# A [program](../glossary.md#program) serves one share and one KV head. It reads all lengths, 4 bytes each, and adds their blocks up: `tl.cumsum` gives [running sums](../fusion/reductions.py#scans-every-partial-result), here `ends`, where in the row each sequence ends. Those with `ends <= first` lie before the share: they are `b` in number, and have `before` blocks together. From there the program walks, one sequence a turn. Sequence `b` has the blocks of the row from `before` up to `after`, and of its keys, counted from its own first, the share has those from `start` up to `stop`. The loop over them is that of step 1, with the tile of step 3. Then `after` becomes `before`, until that reaches `last`. [Stream-K](https://arxiv.org/abs/2301.03598) cuts matrix products so, [LeanAttention](https://arxiv.org/abs/2405.10480) decoding; [FlashMLA](https://github.com/deepseek-ai/FlashMLA) plans in a kernel of its own, once for all layers.
#
# What share $j$ leaves of sequence $b$ is part $j + b$ of each head. Along the row each piece is of a later share or of a later sequence than the one before it, so the number grows with each: none is used twice, and $J$ plus the batch is room enough. The parts of a sequence follow each other, so the [merge](#step-6-who-waits) needs to know only the first and the last. With more shares than blocks some shares are empty; one within a sequence leaves a part without keys, of weight 0. A sequence that one share holds whole goes straight to `out`.
#
# **How many shares?** Two of these programs an [SM](../glossary.md#sm) are enough to keep the memory busy ([measured](#is-it-fast)), and five fit; `_shares` counts on four. For each KV head it makes as many shares as can then run at once, rounded down to a multiple of the batch, so that equal sequences are all cut alike. On average a sequence has at least one share, and at most 64 or, in a small cache, one for each block that there is room for. All this it takes from shapes, never from lengths. So the host does not wait, and the same input gives the same bits on the same GPU ([determinism](../glossary.md#determinism)).

# %% tags=["copy"]
@triton.jit
def _blocks(seq_lens_ptr, offs_b, batch, capacity, BLOCK_N: tl.constexpr):
    """How many blocks of keys the sequences `offs_b` have; 0 past the batch."""
    seq_lens = tl.load(seq_lens_ptr + offs_b, mask=offs_b < batch, other=0)
    return tl.cdiv(tl.minimum(tl.maximum(seq_lens, 0), capacity), BLOCK_N)

@triton.jit(do_not_specialize=["batch", "n_shares", "capacity", "stride_table"])
def flash_decoding_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, lse_ptr, seq_lens_ptr, table_ptr, batch, n_kv_heads,
    n_shares, capacity, scale_log2, stride_qb, stride_qh, stride_page, stride_token, stride_head,
    stride_table, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BATCH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of `GROUP` heads over one share of all keys; log-sum-exp to base 2.

    `PAGE_SIZE` is 0 for a cache without a table, where page `b` is sequence `b`; `scale_log2` is
    the factor of the scores times log2(e); `BATCH` is a power of 2 that holds `batch`.
    """
    if EARLY:
        gdc_launch_dependents()
    share = tl.program_id(0) // n_kv_heads
    # int64: a cache may have more than 2**31 elements
    head = (tl.program_id(0) % n_kv_heads).to(tl.int64)
    blocks = _blocks(seq_lens_ptr, tl.arange(0, BATCH), batch, capacity, BLOCK_N)
    ends, total = tl.cumsum(blocks, axis=0), tl.sum(blocks, axis=0)
    # total * share // n_shares, which might not fit 32 bits
    each, rest = total // n_shares, total % n_shares
    first = each * share + rest * share // n_shares
    last = each * (share + 1) + rest * (share + 1) // n_shares
    b = tl.sum((ends <= first).to(tl.int64), axis=0)
    before = tl.max(tl.where(ends <= first, ends, 0), axis=0)  # blocks of sequences before b
    offs_m, offs_n, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, HEAD_DIM)
    mask_m = (offs_m < GROUP)[:, None]
    rows = (head * GROUP + offs_m)[:, None]
    while before < last:
        seq_len = tl.minimum(tl.maximum(tl.load(seq_lens_ptr + b), 0), capacity)
        after = before + tl.cdiv(seq_len, BLOCK_N)
        start = tl.maximum(first - before, 0) * BLOCK_N
        stop = tl.minimum((tl.minimum(last, after) - before) * BLOCK_N, seq_len)
        q_ptrs = q_ptr + b * stride_qb + rows * stride_qh + offs_d[None, :]
        q = tl.load(q_ptrs, mask=mask_m, other=0.0)  # [BLOCK_M, HEAD_DIM]
        acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
        row_max = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, since -inf - -inf is NaN
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        for start_n in range(start, stop, BLOCK_N):
            keys = (start_n + offs_n).to(tl.int64)
            seen = keys < stop
            if PAGE_SIZE == 0:
                places = b * stride_page + keys * stride_token
            else:
                table_ptrs = table_ptr + b * stride_table + keys // PAGE_SIZE
                pages = tl.load(table_ptrs, mask=seen, other=0).to(tl.int64)
                places = pages * stride_page + keys % PAGE_SIZE * stride_token
            offs = head * stride_head + places[:, None] + offs_d[None, :]  # [BLOCK_N, HEAD_DIM]
            k = tl.load(k_ptr + offs, mask=seen[:, None], other=0.0)
            s = tl.dot(q, k.T) * scale_log2
            s = tl.where(seen[None, :], s, -float("inf"))
            new_max = tl.maximum(row_max, tl.max(s, axis=1))
            alpha = tl.exp2(row_max - new_max)
            p = tl.exp2(s - new_max[:, None])
            row_sum = row_sum * alpha + tl.sum(p, axis=1)
            # 0 beyond the end: whatever lies there, were it NaN, times a weight of 0
            v = tl.load(v_ptr + offs, mask=seen[:, None], other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
            row_max = new_max
        out = acc / tl.where(row_sum > 0, row_sum, 1.0)[:, None]  # no keys at all: 0 / 1
        if (first <= before) & (after <= last):
            places = (b * n_kv_heads * GROUP + rows) * HEAD_DIM + offs_d[None, :]
            tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=mask_m)
        else:
            parts = (share + b) * n_kv_heads * GROUP + rows  # [BLOCK_M, 1]
            tl.store(lse_ptr + parts, (row_max + tl.log2(row_sum))[:, None], mask=mask_m)
            tl.store(part_ptr + parts * HEAD_DIM + offs_d[None, :], out, mask=mask_m)
        before = after
        b += 1

# %% [markdown]
# While a block is used the next ones are loaded ([pipelining](../glossary.md#pipelining)). With a table two loads follow each other, the page's number and then its keys, and the compiler spreads its stages over both: at $D = 128$ three stages give a [buffer](../glossary.md#shared-memory) for one block of keys, without a table for two. So that as much is under way, blocks are twice as large there; at $D = 64$ there are five stages instead. `do_not_specialize` keeps Triton from [compiling anew](../foundations/programming_model.py#one-kernel-several-compiled-versions) for a batch, say, of 1 or of 16.
#
# ## Step 6: who waits
#
# A program of the merge makes one row of the output, and works out which shares its sequence lies in. Block $i$ of the row of blocks is in the last share that begins at or before it: the largest $j$ with $jS/J < i + 1$, which is $\lfloor ((i+1)J - 1)/S \rfloor$. For the sequence's first block that is `first`, for its last `stop - 1`; plus $b$, these are the numbers of its [parts](#step-5-equal-shares). If they are one share, the row is in `out` already. A sequence without tokens has no block and no part: `_merge` gives 0.
#
# The merge is launched behind the parts and starts once the last has ended, so the chip idles in between. On [Hopper](../glossary.md#hopper) and later a kernel may be launched *early*, if the one before allows it ([`gdc_launch_dependents`](https://triton-lang.org/main/python-api/generated/triton.language.extra.cuda.gdc_launch_dependents.html)). Once all programs of the first kernel have said so, here the first thing that each does, those of the merge may begin: they take nobody's place, add up the lengths while the first kernel runs, and wait in `gdc_wait` until that has ended and all that it wrote is visible.
#
# **One launch?** The last program to arrive could merge, in a fixed order, as in [Reductions](../fusion/reductions.py#everything-two-stages-in-one-launch-or-atomics). But the count that tells who is last must start at 0. To zero it in each call is a second launch again; to keep it between calls fails where two streams use it at once. Adding parts up with [atomics](../glossary.md#atomic-operation) would need the maximum beforehand, and has no fixed order.

# %% tags=["copy"]
@triton.jit(do_not_specialize=["batch", "n_shares", "capacity"])
def merge_kernel(
    part_ptr, lse_ptr, out_ptr, seq_lens_ptr, batch, n_heads, n_shares, capacity,
    HEAD_DIM: tl.constexpr, BATCH: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One row of the output, unless one share held its sequence whole."""
    row = tl.program_id(0).to(tl.int64)
    b, head = row // n_heads, row % n_heads
    offs_b = tl.arange(0, BATCH)
    blocks = _blocks(seq_lens_ptr, offs_b, batch, capacity, BLOCK_N).to(tl.int64)
    total = tl.maximum(tl.sum(blocks, axis=0), 1)
    before = tl.sum(tl.where(offs_b < b, blocks, 0), axis=0)
    after = tl.sum(tl.where(offs_b <= b, blocks, 0), axis=0)
    # block i is in share ((i + 1) * n_shares - 1) // total
    first = ((before + 1) * n_shares - 1) // total
    stop = tl.where(after > before, (after * n_shares - 1) // total + 1, first)
    if EARLY:
        gdc_wait()
    if stop != first + 1:
        out = _merge(part_ptr, lse_ptr, head, n_heads, first + b, stop + b, HEAD_DIM, PARTS)
        out_ptrs = out_ptr + row * HEAD_DIM + tl.arange(0, HEAD_DIM)
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty))

# BLOCK_N, num_warps, num_stages by head_dim: without a table, with one
TILES = {64: ((64, 2, 3), (64, 2, 5)), 128: ((32, 2, 3), (64, 2, 3)), 256: ((32, 2, 2),) * 2}
# programs that keep an SM busy; parts of a sequence, and sequences, at most
PER_SM, MOST_PARTS, MOST_SEQUENCES = 4, 64, 4096

@functools.lru_cache
def _facts(device: torch.device) -> tuple[int, bool]:
    """How many SMs a device has, and whether a kernel may start before the last one's end."""
    if device.type != "cuda":
        return 8, False
    facts = torch.cuda.get_device_properties(device)
    return facts.multi_processor_count, facts.major >= 9 and torch.version.hip is None

def _shares(batch: int, n_kv_heads: int, blocks: int, sms: int) -> int:
    """In how many shares all keys are cut: a multiple of the batch, whatever the lengths."""
    return batch * max(1, min(PER_SM * sms // (n_kv_heads * batch), blocks, MOST_PARTS))

def _decode(q, k_cache, v_cache, seq_lens, table, scale, out, n_shares=None, early=True) -> None:
    """Writes `out`, contiguous and of the shape of `q`; chooses the number of shares if None."""
    (batch, n_heads, head_dim), (_, page_size, n_kv_heads, _) = q.shape, k_cache.shape
    block_n, num_warps, num_stages = TILES[head_dim][table is not None]
    capacity = page_size if table is None else table.shape[1] * page_size
    group, (sms, early_too) = n_heads // n_kv_heads, _facts(q.device)
    block_m = max(16, 1 << (group - 1).bit_length())
    n_shares = n_shares or _shares(batch, n_kv_heads, -(-capacity // block_n), sms)
    size = {"HEAD_DIM": head_dim, "BATCH": 1 << (batch - 1).bit_length(), "BLOCK_N": block_n}
    size["EARLY"] = early = early and early_too
    lse = torch.empty(batch + n_shares, n_heads, dtype=torch.float32, device=q.device)
    part = lse.new_empty(*lse.shape, head_dim)
    flash_decoding_kernel[(n_shares * n_kv_heads,)](
        q, k_cache, v_cache, out, part, lse, seq_lens, table, batch, n_kv_heads, n_shares, capacity,
        scale * math.log2(math.e), *q.stride()[:2], *k_cache.stride()[:3],
        0 if table is None else table.stride(0), GROUP=group,
        PAGE_SIZE=0 if table is None else page_size, BLOCK_M=block_m, **size,
        # more rows, or wider, would spill in two warps
        num_warps=max(num_warps, block_m // 16, block_m * head_dim // 2048), num_stages=num_stages,
    )  # fmt: skip
    # tiles for twice as many parts as a sequence has on average
    parts = min(MOST_PARTS, max(16, 1 << (2 * n_shares // batch - 1).bit_length()))
    merge_kernel[(batch * n_heads,)](
        part, lse, out, seq_lens, batch, n_heads, n_shares, capacity, PARTS=parts, **size,
        num_warps=parts // 16, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip

def flash_decoding(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, seq_lens: torch.Tensor, *,
    block_table: torch.Tensor | None = None, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention of one token a sequence over its KV cache: `softmax(scale * q @ k.T) @ v`.

    Forward only. Sums and softmax are float32, weights are rounded to the dtype of the values. The
    same inputs give the same bits. Nothing waits for the GPU: the call may be captured in a CUDA
    graph, and `seq_lens`, table and cache may change between replays.

    Args:
        q: Queries `(B, H, D)`, float16 or bfloat16, on a GPU; D is 64, 128 or 256, B at most 4,096.
        k_cache: Keys, `(B, capacity, H_kv, D)`, or with a table `(n_pages, page_size, H_kv, D)`;
            H_kv divides H, at most 64 times. Any strides, but numbers of a row are adjacent.
        v_cache: Values, alike in shape, dtype and strides.
        seq_lens: How many tokens each sequence has, int32 `(B,)`. Trusted, as reading them would
            mean waiting; more than the capacity counts as the capacity, fewer than 1 as none.
        block_table: int32 `(B, n)`: sequence `b` has token `t` in page `block_table[b, t //
            page_size]`. Entries of pages in use are trusted to exist, others are never looked at.
        scale: Factor of the scores, between 1e-30 and 1e20; `D ** -0.5` if None.

    Returns:
        A contiguous tensor like `q`; 0 for a sequence without tokens.

    Raises:
        TypeError: A dtype is not as above.
        ValueError: A shape, stride, device or number is not as above, or a gradient is wanted.
    """
    if not q.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"flash_decoding needs a GPU, got {q.device}; or set TRITON_INTERPRET=1")
    half, whole = {torch.float16, torch.bfloat16} & {q.dtype}, {torch.int32}
    tensors = {"q": (q, 3, half), "k_cache": (k_cache, 4, half), "v_cache": (v_cache, 4, half)}
    tensors |= {"seq_lens": (seq_lens, 1, whole)}
    tensors |= {} if block_table is None else {"block_table": (block_table, 2, whole)}
    for name, (x, dims, dtypes) in tensors.items():
        if x.dim() != dims or x.device != q.device:
            told = f"{name} of {dims} dimensions on {q.device}; got {[*x.shape]} on {x.device}"
            raise ValueError(f"flash_decoding takes {told}")
        if x.dtype not in dtypes:
            raise TypeError(f"flash_decoding takes float16 or bfloat16, int32; {name}: {x.dtype}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"flash_decoding has no backward, and {name} requires a gradient")
    (batch, n_heads, head_dim), n_kv_heads = q.shape, k_cache.shape[2]
    caches = [(*x.shape, *x.stride()) for x in (k_cache, v_cache)]
    if caches[0] != caches[1]:
        raise ValueError(f"flash_decoding takes caches alike in shape and strides, got {caches}")
    if head_dim not in TILES or head_dim != k_cache.shape[3] or k_cache.stride(3) != 1:
        told = f"D of {[*TILES]}, adjacent in the cache; q {[*q.shape]}, cache {caches[0]}"
        raise ValueError(f"flash_decoding takes {told}")
    if not 1 <= n_kv_heads <= n_heads <= 64 * n_kv_heads or n_heads % n_kv_heads:
        raise ValueError(f"flash_decoding takes 1 to 64 heads a KV head; {n_heads}, {n_kv_heads}")
    rows = batch, len(seq_lens), len(k_cache if block_table is None else block_table)
    if len({*rows}) != 1 or batch > MOST_SEQUENCES:
        told = f"one batch, {MOST_SEQUENCES} at most; q, lengths, cache or table: {rows}"
        raise ValueError(f"flash_decoding takes {told}")
    scale = head_dim**-0.5 if scale is None else scale
    if not 1e-30 < scale < 1e20:  # it and its products are float32
        raise ValueError(f"flash_decoding takes a scale between 1e-30 and 1e20; got {scale}")
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if batch:
        # few numbers all, if they must be copied; the cache never is
        q, seq_lens = q if q.stride(2) == 1 else q.contiguous(), seq_lens.contiguous()
        table = None if block_table is None else block_table.contiguous()
        with torch.cuda.device_of(q):
            _decode(q, k_cache, v_cache, seq_lens, table, scale, out)
    return out

# %% [markdown]
# ## Is it right?
#
# `check` compares with float64: one token, a block or a page more or less one, primes, none; groups of 1 to 20 heads; pages of 16 to 128 tokens in random order; 1 to 24 shares, or as `_shares` says. What must not be read is [NaN](../glossary.md#poison-and-guard): keys and values past each length, and pages not in use. Table entries past a length point nowhere. Scores grow along the keys, so parts differ in weight. Errors are in percent of the rounding of 16-bit weights and output.

# %% tags=["fold"]
def _poisoned(lens, n_heads, n_kv_heads, head_dim, page_size, dtype, device):
    """Random queries and caches for `flash_decoding`, NaN where nothing may be read."""
    size = page_size or 1
    n_pages, q = max(lens) // size + 2, torch.randn(len(lens), n_heads, head_dim, device=device)
    k, v = torch.randn(2, len(lens), n_kv_heads, n_pages * size, head_dim, device=device)
    k *= torch.linspace(0.3, 3, n_pages * size, device=device)[:, None]
    for b, n in enumerate(lens):
        k[b, :, n:] = v[b, :, n:] = math.nan
    q, k, v = q.to(dtype), k.to(dtype).transpose(1, 2), v.to(dtype).transpose(1, 2)
    seq_lens = torch.tensor(lens, dtype=torch.int32, device=device)
    if not page_size:
        return q, k, v, seq_lens, None
    table = torch.randperm(len(lens) * n_pages + 2, device=device)[2:].view(-1, n_pages)
    pools = k.new_full((2, len(lens) * n_pages + 2, size, n_kv_heads, head_dim), math.nan)
    for pool, x in zip(pools, (k, v), strict=True):
        pool[table] = x.unflatten(1, (n_pages, size))
    for b, n in enumerate(lens):
        table[b, -(-n // size) :] = 10**6
    return q, *pools, seq_lens, table.to(torch.int32)

def check(device: str = "cuda") -> None:
    """Compares the kernels with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    dtypes = [torch.float16]
    # lengths, heads, KV heads, D, page size (0: no table), shares
    cases = [([1, 0, 129], 4, 2, 64, 0, 2), ([127, 200], 8, 2, 128, 16, 5)]
    cases += [([64, 15, 17], 3, 3, 64, 16, 1), ([48, 199], 2, 1, 128, 24, 9)]
    cases += [([97], 20, 1, 256, 0, 4), ([5, 1600, 0], 2, 1, 64, 0, 24)]
    if device == "cuda":
        # the interpreter's bfloat16 product is wrong
        dtypes += [torch.bfloat16]
        cases += [([8191, 0, 4097], 32, 8, 128, 16, None), ([20011], 32, 8, 128, 0, None)]
        cases += [([1023, 64, 65, 63] * 8, 16, 2, 64, 64, None), ([5000], 8, 8, 256, 128, None)]
    print(f"{'lengths':>22}  heads    D  page shares", *(f"{str(d)[6:]:>9}" for d in dtypes))
    for lens, n_heads, n_kv_heads, head_dim, page_size, n_shares in cases:
        line = f"{', '.join(map(str, lens[:4])):>22} {n_heads:>3}/{n_kv_heads:<2} {head_dim:>4}"
        line += f"  {page_size or '–':>4} {n_shares or 'auto':>6}"
        for dtype in dtypes:
            shape = (lens, n_heads, n_kv_heads, head_dim, page_size)
            q, k, v, seq_lens, table = _poisoned(*shape, dtype, device)
            wide = [x.double() for x in (q, k, v)]
            want = flash_decoding_reference(*wide, seq_lens, block_table=table, scale=0.2)
            frame = torch.full((len(lens) + 1, n_heads, head_dim), math.nan).to(q)
            _decode(q, k, v, seq_lens, table, 0.2, frame[:-1], n_shares)
            allowed = torch.finfo(dtype).eps * v.nan_to_num().abs().max().item()
            error = (frame[:-1].double() - want).abs().max().item() / allowed
            line += f"{error:>10.0%}"
            assert error <= 1, f"flash_decoding is off, {dtype}:\n{line}"
            assert frame[-1].isnan().all(), f"written past the end:\n{line}"
            if table is None:
                got = first_decoding(q, k.contiguous(), v.contiguous(), seq_lens, n_shares or 7)
                want = flash_decoding_reference(*wide, seq_lens)
                error = (got.double() - want).abs().max().item() / allowed
                assert error <= 1, f"first_decoding is off, {dtype}:\n{line}"
        print(line)

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# 32 heads on 8, $D = 128$, bfloat16; every provider reads the same cache, tokens outermost, as servers keep it. Before you look: the kernel of step 1, at batch 1, runs on 32 of {{ env.sms }} SMs and reads each key four times. What share of a read's speed will it reach?

# %%
@triton.jit
def read_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
    # unused loads would be dropped by the compiler
    tl.store(out_ptr + tl.program_id(0), tl.xor_sum(x, axis=0))

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    import contextlib
    from functools import partial

    from torch.nn.attention import SDPBackend, sdpa_kernel

    def inputs(batch, seq_len):
        new = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        lens = torch.full((batch,), seq_len, dtype=torch.int32, device="cuda")
        return new(batch, 32, 128), *new(2, batch, seq_len, 8, 128), lens

    def read(k, tokens):  # as many bytes as keys and values, which share a storage
        words = torch.empty(0, dtype=torch.int32, device="cuda").set_(k.untyped_storage())
        out = words.new_empty(tokens // 4)
        return {"triton_read": partial(read_kernel[out.shape], words, out, BLOCK=4096, num_warps=8)}

    def paged(k, v, page_size):  # the same cache in shuffled pages, and its table
        pages = torch.randperm(k[..., 0, 0].numel() // page_size, device="cuda")
        pools = [x.view(-1, page_size, 8, 128)[pages.argsort()] for x in (k, v)]
        return *pools, pages.view(len(k), -1).to(torch.int32)

    def peers(names, q, k, v, mask=None):  # those of SDPA's backends that take it
        scaled = torch.nn.functional.scaled_dot_product_attention
        tensors, taken = (q[:, :, None], k.transpose(1, 2), v.transpose(1, 2)), {}

        def attend(backend):
            with sdpa_kernel(backend):
                return scaled(*tensors, attn_mask=mask, enable_gqa=True)

        for name in names:
            backend = "MATH" if name == "math" else f"{name}_attention".upper()
            call = partial(attend, getattr(SDPBackend, backend))
            with contextlib.suppress(RuntimeError):
                call()
                taken[f"sdpa_{name}"] = call
        return taken

    def unfused(q, k, v):
        grouped = q.unflatten(1, (8, 4))  # [B, n_kv_heads, GROUP, D]
        return (grouped @ k.permute(0, 2, 3, 1) * 128**-0.5).softmax(-1) @ v.transpose(1, 2)

    def rows(k, timings, tokens=None, **more):
        size, tokens = {"batch": len(k), "seq_len": k.shape[1]} | more, tokens or k.numel() // 1024
        size |= {"bytes": tokens * 4096 + len(k) * 16384, "flops": tokens * 16384}
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    def benchmark(name, title, found, x="seq_len"):
        about = {"x": x, "dtype": "bfloat16", "mode": "forward", "ceiling": None, "rows": found}
        title = f"Decoding, 32 heads on 8 × 128, bfloat16, {title}"
        return about | {"name": f"decoding_{name}", "title": title}

    for batch, longest in ((1, 131072), (8, 131072), (64, 32768)):
        found = []
        for seq_len in (2**i for i in range(10, longest.bit_length())):
            q, k, v, lens = inputs(batch, seq_len)
            calls = {"triton": partial(flash_decoding, q, k, v, lens)} | read(k, batch * seq_len)
            # math copies keys and values for each head
            names = ["flash", "cudnn", "efficient"] + ["math"] * (batch * seq_len <= 2**17)
            calls |= peers(names, q, k, v) | {"torch_unfused": partial(unfused, q, k, v)}
            hot = seq_len in (8192, longest) and batch * seq_len >= 2**17  # less waits for the host
            found += rows(k, measure(calls, host=batch == 1, hot=hot))
        yield benchmark(f"b{batch}", f"batch {batch}", found)
    found = []
    for seq_len in (8192, 32768):
        q, k, v, lens = inputs(1, seq_len)
        calls = {"triton_first": partial(first_decoding, q, k, v, lens)}
        calls["triton_split"] = partial(first_decoding, q, k, v, lens, 32)
        late = partial(_decode, q, k, v, lens, None, 128**-0.5, torch.empty_like(q), early=False)
        calls |= {"triton_grouped": late, "triton": partial(flash_decoding, q, k, v, lens)}
        for size in (16, 64):
            *pools, table = paged(k, v, size)
            call = partial(flash_decoding, q, *pools, lens, block_table=table)
            calls[f"triton_pages_of_{size}"] = call
        found += rows(k, measure(calls | read(k, seq_len)))
    yield benchmark("steps", "batch 1, step by step", found)
    found = []
    for seq_len in (8192, 65536):
        q, k, v, lens = inputs(1, seq_len)
        for n in (1, 2, 4, 8, 16, 32, 48, 64, 96, 128):
            call = partial(_decode, q, k, v, lens, None, 128**-0.5, torch.empty_like(q), n)
            found += rows(k, measure({"triton": call}), n_shares=n)
    yield benchmark("shares", "batch 1, by the number of shares", found, "n_shares")
    found = []
    for longest, room in ((4096, 4096), (4096, 32768), (32768, 32768)):
        q, k, v, _ = inputs(32, room)
        lens = torch.linspace(math.log(256), math.log(longest), 32).exp().int()[torch.randperm(32)]
        tokens, lens = lens.sum().item(), lens.cuda()
        mask = (torch.arange(room, device="cuda") < lens[:, None])[:, None, None]
        *pools, table = paged(k, v, 16)
        calls = {"triton": partial(flash_decoding, q, k, v, lens)} | read(k, tokens)
        alike = torch.full_like(lens, tokens // 32)
        calls["triton_alike"] = partial(flash_decoding, q, k, v, alike)
        calls["triton_pages_of_16"] = partial(flash_decoding, q, *pools, lens, block_table=table)
        calls |= peers(("cudnn", "efficient"), q, k, v, mask)
        found += rows(k, measure(calls), tokens, longest=longest, room=room)
    yield benchmark("ragged", "32 lengths from 256 on", found, "longest")
    found = []
    for seq_len in (1024, 4096, 16384):
        layers, calls = [inputs(1, seq_len) for _ in range(32)], {}
        each = {"triton": [partial(flash_decoding, *layer) for layer in layers]}
        each["sdpa_flash"] = [peers(("flash",), *x[:3])["sdpa_flash"] for x in layers]
        each["triton_read"] = [read(k, seq_len)["triton_read"] for _, k, _, _ in layers]
        for provider, attends in each.items():
            calls[provider] = lambda attends=attends: [attend() for attend in attends]
            calls[provider]()  # compiles
            with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
                calls[provider]()
            calls[f"{provider}_graph"] = graph.replay
        found += rows(layers[0][1], measure(calls, host=True), 32 * seq_len)
    yield benchmark("layers", "batch 1, 32 layers in a row", found)

# %% [markdown]
# {{ figure("decoding_b1", y="tbps", providers=["triton", "triton_read", "sdpa_flash", "sdpa_cudnn", "sdpa_math", "torch_unfused"], caption="Batch 1: the longer the cache, the closer to a read of the same bytes; ahead of SDPA's backends up to 65,536 tokens, level with cuDNN at 131,072.") }}
#
# {% for r in rows("decoding_b1", provider="triton") %}{% for peer in ["sdpa_flash", "sdpa_cudnn", "sdpa_math", "torch_unfused"] %}{{ claim(r.ms < (1.02 if r.seq_len == 131072 else 0.99) * row("decoding_b1", provider=peer, seq_len=r.seq_len).ms) }}{% endfor %}{% if not loop.last %}{% set next = row("decoding_b1", provider="triton", seq_len=2 * r.seq_len) %}{{ claim(row("decoding_b1", provider="triton_read", seq_len=r.seq_len).ms / r.ms < row("decoding_b1", provider="triton_read", seq_len=next.seq_len).ms / next.ms) }}{% endif %}{% endfor %}Speed in percent of a read of the same bytes; in brackets that of [SDPA](../glossary.md#sdpa)'s best fused backend:
#
# | | 1,024 tokens | 8,192 tokens | 32,768 tokens |
# |---|---|---|---|
# {% for name, label in [("decoding_b1", "batch 1"), ("decoding_b8", "batch 8"), ("decoding_b64", "batch 64")] %}
# | {{ label }} {% for n in [1024, 8192, 32768] %}{% set read = row(name, provider="triton_read", seq_len=n) %}{% set best = (rows(name, seq_len=n) | selectattr("provider", "in", ["sdpa_flash", "sdpa_cudnn", "sdpa_efficient"]) | map(attribute="ms") | min) %}| {{ (read.ms / row(name, provider="triton", seq_len=n).ms * 100) | pct }} ({{ (read.ms / best * 100) | pct }}) {% endfor %}|
# {% endfor %}
#
# **Ragged batches**: 32 sequences of 256 to `longest` tokens, in a cache with `room` for so many each; *alike* has as many tokens in equal lengths. SDPA gets a [mask](../glossary.md#mask), and reads all of the room:
#
# {{ table("decoding_ragged", columns=["longest", "room", "provider", "ms", "tbps"]) }}
#
# {% set tight, alike, masked = row("decoding_ragged", provider="triton", longest=4096, room=4096), row("decoding_ragged", provider="triton_alike", longest=4096, room=4096), row("decoding_ragged", provider="sdpa_cudnn", longest=4096, room=4096) %}{% set loose, loose_masked = row("decoding_ragged", provider="triton", longest=4096, room=32768), row("decoding_ragged", provider="sdpa_cudnn", longest=4096, room=32768) %}With equal shares, {% for r in rows("decoding_ragged", provider="triton") %}{{ claim(r.ms < 1.05 * row("decoding_ragged", provider="triton_alike", longest=r.longest, room=r.room).ms) }}{% endfor %}unequal lengths of up to 4,096 tokens take {{ (tight.ms * 1000) | n(0) }} µs, {{ (100 * tight.ms / alike.ms - 100) | n(0) }} % more than equal ones, and it does not matter how much room there is{{ claim(0.96 < loose.ms / tight.ms < 1.04) }}. How long they would take if each sequence had as many parts as any other, as in step 2, was not measured. cuDNN's kernel, with a mask,{{ claim(masked.ms > 2 * tight.ms and loose_masked.ms > 10 * loose.ms) }} takes {{ (masked.ms / tight.ms) | times }} and, with room for 32,768, {{ (loose_masked.ms / loose.ms) | times }} as long.
#
# **Step by step**, batch 1: *first* is [step 1](#step-1-one-program-a-head), *split* step 2, *pages* step 4; *grouped* has steps 3 and 5, *Triton* the early merge of step 6, too.
#
# {{ table("decoding_steps", columns=["seq_len", "provider", "ms", "tbps"]) }}
#
# {% set first, split = row("decoding_steps", provider="triton_first", seq_len=8192), row("decoding_steps", provider="triton_split", seq_len=8192) %}{% set ours, waits = row("decoding_steps", provider="triton", seq_len=8192), row("decoding_steps", provider="triton_grouped", seq_len=8192) %}At 8,192 tokens the first kernel reaches {{ (100 * row("decoding_steps", provider="triton_read", seq_len=8192).ms / first.ms) | n(1) }} % of a read's speed; splitting gains {{ (first.ms / split.ms) | times }}, sharing keys {{ (split.ms / waits.ms) | times }}, the early start {{ ((waits.ms - ours.ms) * 1000) | n(1) }} µs.{{ claim(first.ms > 3 * split.ms and split.ms > 2 * waits.ms and waits.ms > 1.02 * ours.ms) }}
#
# {{ figure("decoding_shares", y="us", where={"seq_len": 8192}, logy=True, caption="By the number of shares, at 8,192 tokens: few leave SMs idle, and of 96 or 128 the last start late. `_shares` takes 64.") }}
#
# {% set least = rows("decoding_shares", seq_len=8192) | map(attribute="ms") | min %}{% set least_long = rows("decoding_shares", seq_len=65536) | map(attribute="ms") | min %}{% set took, took_long = row("decoding_shares", seq_len=8192, n_shares=64).ms, row("decoding_shares", seq_len=65536, n_shares=64).ms %}At 8,192 tokens 32 shares, two programs an SM, are the best number measured, and need {{ (100 - 100 * least / took) | n(0) }} % less time than 64{{ claim(0.95 * took < least < took and least_long > 0.99 * took_long) }}{{ claim(least == row("decoding_shares", seq_len=8192, n_shares=32).ms) }}; at 65,536 none is better than 64 by 1 %, and 32 take as long{% for n in [8192, 65536] %}{{ claim(0.95 < row("decoding_shares", seq_len=n, n_shares=32).ms / row("decoding_shares", seq_len=n, n_shares=64).ms < 1.02 and row("decoding_shares", seq_len=n, n_shares=16).ms > 1.05 * row("decoding_shares", seq_len=n, n_shares=64).ms) }}{% endfor %}; 16, one an SM, take longer. 96 shares of 8 heads are 768 programs, and by their [registers](../glossary.md#register) five fit an SM, {{ 5 * env.sms }} the chip: the others wait until some have ended.{{ claim(row("decoding_shares", seq_len=8192, n_shares=96).ms > 1.1 * took and row("decoding_shares", seq_len=65536, n_shares=96).ms > 1.06 * took_long) }}
#
# ## Where it loses, and why
#
# {% set short, long = row("decoding_b1", provider="triton", seq_len=8192), row("decoding_b1", provider="triton", seq_len=131072) %}{% set short_read, long_read = row("decoding_b1", provider="triton_read", seq_len=8192), row("decoding_b1", provider="triton_read", seq_len=131072) %}**The start and the end.** At batch 1 a call takes {{ ((short.ms - short_read.ms) * 1000) | n(0) }} µs more than a read of 8,192 tokens, and {{ ((long.ms - long_read.ms) * 1000) | n(0) }} more than one of 131,072. A read does without three things, not measured apart: lengths added up before the first key, the products of the last block, a second launch that merges. {% set seen, reads = profile("decoding_b1", provider="triton", seq_len=8192), profile("decoding_b1", provider="triton_read", seq_len=8192) %}Of 8,192 tokens, NVIDIA's profiler sees memory busy for {{ seen.dram | pct }} of the time while the first kernel runs, in a read for {{ reads.dram | pct }}.{{ claim(seen.dram < 0.9 * reads.dram) }} None of the three grows with the length; what more is lost at 131,072 tokens is not explained here.{{ claim(long.ms - long_read.ms < 2.5 * (short.ms - short_read.ms)) }} One sequence comes to {{ (100 * row("decoding_b1", provider="triton_read", seq_len=65536).ms / row("decoding_b1", provider="triton", seq_len=65536).ms) | pct }} of a read at 65,536 tokens, eight to {{ (100 * row("decoding_b8", provider="triton_read", seq_len=8192).ms / row("decoding_b8", provider="triton", seq_len=8192).ms) | pct }} at 8,192, 64 to {{ (100 * row("decoding_b64", provider="triton_read", seq_len=1024).ms / row("decoding_b64", provider="triton", seq_len=1024).ms) | pct }} at 1,024; for one and eight it is less with fewer tokens. It helps little that calls follow each other: {% set chain, chain_read = row("decoding_layers", provider="triton_graph", seq_len=16384), row("decoding_layers", provider="triton_read_graph", seq_len=16384) %}in a [graph](../glossary.md#cuda-graph) of 32 layers (below) a call of 16,384 tokens takes {{ ((chain.ms - chain_read.ms) / 32 * 1000) | n(1) }} µs more than a read (alone {{ ((row("decoding_b1", provider="triton", seq_len=16384).ms - row("decoding_b1", provider="triton_read", seq_len=16384).ms) * 1000) | n(1) }}), and has {{ (100 * chain_read.ms / chain.ms) | pct }} of its speed.{{ claim(3 < (chain.ms - chain_read.ms) / 32 * 1000 < 7) }}
#
# **Many sequences of one length.** {% for r in rows("decoding_b64", provider="triton") %}{{ claim(0.98 < row("decoding_b64", provider="sdpa_cudnn", seq_len=r.seq_len).ms / r.ms < 1.005) }}{% endfor %}{% for r in rows("decoding_b8", provider="triton") %}{{ claim((1 if r.seq_len <= 8192 else 0.985) < row("decoding_b8", provider="sdpa_cudnn", seq_len=r.seq_len).ms / r.ms < (1.1 if r.seq_len <= 8192 else 1.005)) }}{% endfor %}{% set many, cudnn = row("decoding_b64", provider="triton", seq_len=2048), row("decoding_b64", provider="sdpa_cudnn", seq_len=2048) %}For 64 this page's kernel is not ahead of cuDNN's: at 1,024 tokens that takes {{ (100 - 100 * row("decoding_b64", provider="sdpa_cudnn", seq_len=1024).ms / row("decoding_b64", provider="triton", seq_len=1024).ms) | n(1) }} % less time, at 2,048 {{ (100 - 100 * cudnn.ms / many.ms) | n(1) }} %, and from 4,096 on the two are level{% for r in rows("decoding_b64", provider="triton") %}{% if r.seq_len >= 4096 %}{{ claim((row("decoding_b64", provider="sdpa_cudnn", seq_len=r.seq_len).ms / r.ms - 1) | abs < 0.005) }}{% endif %}{% endfor %}. For eight sequences the two are within 1 % of each other from 16,384 tokens on, at 131,072 with cuDNN's ahead, and SDPA's flash backend too{% for r in rows("decoding_b8", provider="triton") %}{% if r.seq_len != 65536 %}{{ claim((row("decoding_b8", provider="sdpa_flash", seq_len=r.seq_len).ms < r.ms) == (r.seq_len > 65536)) }}{% endif %}{% if r.seq_len > 8192 %}{{ claim(row("decoding_b8", provider="sdpa_cudnn", seq_len=r.seq_len).ms > 0.99 * r.ms) }}{% endif %}{% endfor %}; below 16,384 this page's kernel is ahead. Each of 64 equal sequences is whole in a share, but the merge is launched all the same, as the host cannot know. {% set most, theirs, flash = row("decoding_b64", provider="triton", seq_len=32768), row("decoding_b64", provider="sdpa_cudnn", seq_len=32768), row("decoding_b64", provider="sdpa_flash", seq_len=32768) %}[Back to back](../glossary.md#cool-and-hot) calls of 64 × 32,768 tokens take as long as cool ones, {{ most.ms_hot | ms }}; so do cuDNN's ({{ theirs.ms_hot | ms }}), while SDPA's flash backend takes {{ (100 * flash.ms_hot / flash.ms - 100) | pct }} longer.{{ claim(0.97 < most.ms_hot / most.ms < 1.02 and 0.97 < theirs.ms_hot / theirs.ms < 1.02 and flash.ms_hot > 1.1 * flash.ms) }}
#
# {% set one, one_paged = row("decoding_steps", provider="triton", seq_len=8192), row("decoding_steps", provider="triton_pages_of_16", seq_len=8192) %}{% set whole, paged = row("decoding_ragged", provider="triton", longest=32768), row("decoding_ragged", provider="triton_pages_of_16", longest=32768) %}**Pages** of 16 take {{ (100 * one_paged.ms / one.ms - 100) | pct }} more time than a cache without pages for one sequence of 8,192 tokens, and {{ (100 * paged.ms / whole.ms - 100) | pct }} more for 32 of up to 32,768: {{ claim(one_paged.ms > 1.07 * one.ms and 1.005 * whole.ms < paged.ms < 1.05 * whole.ms) }}a block's keys can be loaded only when its pages' numbers have come. From a program's second block on [pipelining](../glossary.md#pipelining) asks for these early; of the first block the wait remains. Both calls have 512 programs, with two blocks each for the one sequence, and some {{ (whole.bytes / 4096 / 64 / 64) | n(0) }} for the 32. **One cache for thousands of sequences** (a stride of 0, or shared pages): where their blocks are 2³¹ or more in all, the output is not written (*not yet right*).
#
# {% set ours, read = row("decoding_b1", provider="triton", seq_len=1024), row("decoding_b1", provider="triton_read", seq_len=1024) %}**Short contexts.** 1,024 tokens are {{ ours.bytes | bytes }}, a read of {{ read.ms | time }}; two launches take {{ ours.ms | time }} (cuDNN's call {{ row("decoding_b1", provider="sdpa_cudnn", seq_len=1024).ms | time }}), and Python {{ ours.host_us | n(0) }} µs to make them ({{ row("decoding_b1", provider="sdpa_flash", seq_len=1024).host_us | n(0) }} for SDPA's flash backend).{{ claim(ours.host_us * 1e-3 > ours.ms) }} A token passes all layers, one attention after the other, and pays this in each. So servers record a step as a [CUDA graph](../glossary.md#cuda-graph), and replay it. They can, as nothing that the host chooses depends on `seq_lens`. 32 layers, timed with their launches queued beforehand:
#
# {{ table("decoding_layers", columns=["seq_len", "provider", "ms", "host_us"]) }}
#
# {% set calls, replay = row("decoding_layers", provider="triton", seq_len=1024), row("decoding_layers", provider="triton_graph", seq_len=1024) %}The GPU needs {{ (calls.ms * 1000) | n(0) }} µs for 1,024 tokens, the host {{ calls.host_us | n(0) }} µs to launch it all: without a graph the GPU waits for the host. A replay takes the host {{ replay.host_us | n(0) }} µs.{{ claim(calls.host_us > 5000 * calls.ms and replay.host_us < 1000 * replay.ms) }}
#
# {{ profile_source() }}
#
# ## What to remember
#
# 1. Count bytes first. One token reads its cache once: that is the floor, and FLOPs do not matter.
# 2. A softmax over parts merges softmaxes: output and log-sum-exp are all that a part must leave.
# 3. What depends on data, here lengths, let the programs work out: the host need not wait.
#
# ## Exercises
#
# ??? question "1. A merge of merges (five minutes)"
#     Merge the first two parts of [step 2](#step-2-split-the-keys-merge-the-parts) into one, with a log-sum-exp of its own; then that with the third. Is the result the same? May parts be merged in pairs, as a tree?
#
#     ??? success "Answer"
#         $O = (12 \cdot 10/3 + 4 \cdot 6) / 16 = 4$, $L = \log_2 (12 + 4) = 4$. With the third: $(16 \cdot 4 + 48 \cdot 8/3) / 64 = 3$. Any tree will do; each [rounds](../glossary.md#ulp) in its own way.
#
# ??? question "2. The same bits, whoever else is served (twenty minutes)"
#     A sequence may differ in its last bit between a batch of 1 and one of 64. Why? Mend it.
#
#     ??? success "Answer"
#         Where [shares](#step-5-equal-shares) are cut depends on the batch and on all lengths, and a sum rounds by where it is cut. Cut each sequence every `PART` keys instead, whatever the batch: a program for each of `cdiv(capacity, PART)` parts; those past the end stop at once.
#
# ??? question "3. Eight bits a number (an hour)"
#     Keep keys and values as int8, with a float32 factor for each row of $D = 128$. What becomes of [the floor](#what-it-costs)? And where do the factors go, if none of the numbers of a row is to be multiplied?
#
#     ??? success "Answer"
#         A row is 128 + 4 bytes, not 256: the floor is 52 % of what it was. A factor can leave its row: a key's multiplies its score, `s *= k_scale[None, :]` before the [mask](../glossary.md#mask); a value's to its weight, `(p * v_scale[None, :]).to(q.dtype)`, in the product with `v` alone, not in `row_sum`. `k.to(q.dtype)` rounds nothing: both 16-bit types have all whole numbers up to 256. In a contiguous cache, paged or not, a factor's place is `(head * stride_head + places) // HEAD_DIM`.
#
# ## Use it in your project
#
# ```python
# from flash_decoding import flash_decoding
#
# # q (B, H, D); cache (n_pages, page_size, H_kv, D); seq_lens (B,) and block_table (B, n), int32
# out = flash_decoding(q, k_cache, v_cache, seq_lens, block_table=block_table)
# ```
#
# [`flash_decoding`][examples.attention.flash_decoding.flash_decoding] needs torch and triton alone. Servers have such kernels of their own; [Production](../production.md) lists some.
