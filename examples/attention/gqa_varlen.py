# %% [markdown]
# ---
# title: Grouped heads, ragged batches
# description: Attention as models use it, with grouped-query heads, packed sequences of any lengths, sliding windows and soft-caps, forward and backward.
# tags: [attention, tensor cores, autograd, determinism]
# prerequisites: [attention/flash_attention, attention/flash_attention_backward]
# outcome: Write attention for batches without padding and heads without copies, visit no block that a window hides, and know what each of these saves.
# ---
#
# # Grouped heads, ragged batches: nothing padded, nothing copied
#
# [Flash attention](flash_attention.py) and [its backward](flash_attention_backward.py) take a rectangle: sequences of one length, and a head of keys for each head of queries. Models have neither. Prompts are of variable length (*varlen*); several query heads share a head of keys ([GQA](../glossary.md#gqa)); in some layers a token sees only a [window](../glossary.md#sliding-window) of recent ones, in some a [soft-cap](../glossary.md#soft-cap) keeps scores within bounds. Pad the sequences, repeat the heads, mask the scores, and it all fits the rectangle. **What does the rectangle cost?**{{ diagram("gqa_varlen_waste") }}
#
# ## What it costs
#
# Sixteen sequences, 16,384 tokens, many short, few long, as prompts are; 32 heads of queries, 8 of keys, $D = 128$, 16 bits, [causal](../glossary.md#causal). Guess first: how much of the batch, padded, is padding?

# %% tags=["copy"]
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


# %%
def ragged_lengths(n_seqs: int, n_tokens: int = 16384) -> list[int]:
    """Lengths of sequences, `n_tokens` together, at even steps of a log-normal; in no order."""
    from statistics import NormalDist

    sizes = [math.exp(NormalDist(0, 1.2).inv_cdf((i + 0.5) / n_seqs)) for i in range(n_seqs)]
    lengths = [round(n_tokens * size / sum(sizes)) for size in sizes]
    lengths[-1] += n_tokens - sum(lengths)
    return [lengths[7 * i % n_seqs] for i in range(n_seqs)]


if __name__ == "__main__":
    lengths = ragged_lengths(16)
    print("lengths:", *lengths)
    for batch, rows in {"padded": [max(lengths)] * 16, "packed": lengths}.items():
        for heads, kv_heads in {"repeated": 32, "grouped": 8}.items():
            mib = sum(rows) * kv_heads * 128 * 2 * 2 / 2**20
            tflop = 4 * 32 * 128 * sum(n * n / 2 for n in rows) * 1e-12
            print(f"{batch}, {heads:8}: {sum(rows):6,} tokens, K and V {mib:5,.0f} MiB", end=", ")
            print(f"both products {tflop:4.2f} TFLOP")

# %% [markdown]
# Four tokens of five are padding, and as products grow with the square of a length, the rectangle does ten times the work. At the library's best [matrix rate](../glossary.md#ceiling) the packed products take {{ (row("gqa_varlen_ragged_forward", provider="triton", n_seqs=16).flops / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }}, and a copy of as many bytes as the tensors have {{ copy_ms(row("gqa_varlen_ragged_forward", provider="triton", n_seqs=16).bytes) | ms }}: products bind. Repeating heads costs memory, and kernels to copy and to add gradients.
#
# ## The reference
#
# A batch is [packed](../glossary.md#packed-batch): `q` is `(total_q, heads, D)`, sequence after sequence, and `cu_seqlens`, here `ends_q` and `ends_k`, says where each begins and where the last ends (the names are [flash-attn](https://github.com/Dao-AILab/flash-attention)'s). A sequence may have more keys than queries, such as a piece of a prompt whose first part is cached. Its last query then has the place of its last key.

# %%
def flash_attention_varlen_reference(
    q, k, v, ends_q, ends_k, *, causal=False, window_size=(-1, -1), softcap=0.0, scale=None
):
    """Attention of packed sequences in plain PyTorch, differentiable; no key seen gives 0."""
    left, right = (math.inf if size < 0 else size for size in window_size)
    outs, right = [], 0 if causal else right
    inner = (ends.tolist()[1:-1] for ends in (ends_q, ends_k, ends_k))
    sequences = map(torch.tensor_split, (q, k, v), inner)
    for queries, keys, values in zip(*sequences, strict=True):
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (keys, values))
        s = torch.einsum("mhd,nhd->hmn", queries, keys) * (scale or q.shape[2] ** -0.5)
        s = softcap * torch.tanh(s / softcap) if softcap else s
        place = torch.arange(len(queries), device=q.device)[:, None] + len(keys) - len(queries)
        distance = torch.arange(len(keys), device=q.device) - place
        hidden = (distance > right) | (distance < -left)
        p = s.masked_fill(hidden, -1e30).softmax(dim=-1).masked_fill(hidden, 0.0)
        outs.append(torch.einsum("hmn,nhd->mhd", p, values))
    return torch.cat(outs)

# %% [markdown]
# ## Step 1: a group reads one head
#
# In the forward, grouping is one division: the [program](../glossary.md#program) of query head `head` loads the keys of head `head // group`. The programs of a group have neighbouring numbers, run at the same time and find these keys in [L2](../glossary.md#l2). In the backward, $dK$ and $dV$ are sums over the queries of all heads of the group. Every sum has [one owner](flash_attention_backward.py#step-2-two-kernels-two-owners): the program of a tile of keys walks over the queries of the first head, then of the second, and so on. There are no atomics, and the order is fixed: runs give the same bits.
#
# ## Step 2: whose tile is this?
#
# A [tile](../glossary.md#tile) must not span two sequences: a sequence of $n$ rows has $\lceil n / B \rceil$ tiles of its own. How many programs are that in all? The lengths are on the GPU, and to read them the host would have to wait for it. But a bound is enough. Number the programs by *slots*, and let sequence $i$, which begins at row $c_i$, have those from $\lfloor c_i / B \rfloor + i$ on:{{ diagram("gqa_varlen_slots") }}
#
# A sequence has as many slots as tiles, or one more. In all, for $c$ rows: $\lfloor c / B \rfloor$ plus one a sequence, as the host knows from shapes. Programs of empty slots return at once. Which sequence is a slot's? A program searches `cu_seqlens` by halving, with one load a step: four loads for 16 sequences. Why not load all starts in one go, and count those that are not past the slot? That waits only once. But a sum over a block passes through [shared memory](../glossary.md#shared-memory), and then the compiler cannot tell that all threads hold the same number. What it knows to be the same, as a load from one address is, it keeps in *uniform* [registers](../glossary.md#register), one copy for each [warp](../glossary.md#warp). The rest takes registers of every thread: after such a sum all addresses and loop bounds do, and the forward [spills](../glossary.md#spill).

# %% tags=["copy"]
@triton.jit
def _owner(own_ptr, other_ptr, n_seqs, heads, BLOCK: tl.constexpr):
    """Head, sequence, first row (negative: none); of both sides the sequence's start, length."""
    head, slot = tl.program_id(0) % heads, tl.program_id(0) // heads
    seq, after = 0, n_seqs
    while after - seq > 1:
        middle = (seq + after) // 2
        begun = tl.load(own_ptr + middle) // BLOCK + middle <= slot
        seq = tl.where(begun, middle, seq)
        after = tl.where(begun, after, middle)
    start, other = tl.load(own_ptr + seq), tl.load(other_ptr + seq)
    length = tl.load(own_ptr + seq + 1) - start
    # causal, the last tiles are the longest: they start first
    tile = tl.cdiv(length, BLOCK) - 1 - (slot - start // BLOCK - seq)
    return head, seq, tile * BLOCK, start, length, other, tl.load(other_ptr + seq + 1) - other

# %% [markdown]
# ## Step 3: a descriptor for every end
#
# A [descriptor](../glossary.md#descriptor) brings zeros past the end of its tensor, and writes nothing there. Here each sequence has an end, and past it lies the next, which must not be written; nor read, since NaN times a weight of 0 is NaN. Must each sequence have a descriptor? A [trick of Triton's](https://github.com/triton-lang/triton/pull/7783) makes one do for all. It describes the rows by *three* dimensions, each of which moves the address by whole rows. The first two are so long that no coordinate in use is out of bounds; the third ends at $2^{30}$:
#
# | dimension | coordinate | moves the address by, in rows of stride $r$ |
# |---|---|---|
# | stride $2^{34} - r$ | $2^{30}$ | $-2^{30}$, since $2^{30} \cdot 2^{34} = 2^{64}$ wraps to 0 |
# | stride $r$ | start + length | start + length |
# | stride $r$, ends at $2^{30}$ | $2^{30}$ − length + row | $2^{30}$ − length + row |
#
# The moves add up to start + row. And row = length has the third coordinate $2^{30}$, out of bounds: each load or store says where its sequence ends, and the copy engine ([TMA](../glossary.md#tma)) heeds it.

# %% tags=["copy"]
EDGE: tl.constexpr = tl.constexpr(2**30)


@triton.jit
def _load(desc, start, length, row, head):
    """A block of rows of a head, from `row` of a sequence on; zeros past the sequence's end."""
    x = desc.load([EDGE, start + length, head, EDGE - length + row, 0])
    return x.reshape(x.shape[3], x.shape[4])


@triton.jit
def _store(desc, start, length, row, head, x):
    """Writes a block of rows of a head, from `row` of a sequence on; none past its end."""
    x = x.to(desc.dtype).reshape(1, 1, 1, x.shape[0], x.shape[1])
    desc.store([EDGE, start + length, head, EDGE - length + row, 0], x)


def _ragged(x: torch.Tensor, block: int) -> TensorDescriptor:
    """Describes `(rows, heads, D)` in blocks of rows whose sequence ends where a load says."""
    # an empty tensor has no address, and is never read
    x = x if len(x) else x.new_empty(1, *x.shape[1:])
    (_, heads, head_dim), (row, head, _) = x.shape, x.stride()
    shape = [2**31 - 2**16, 2**31 - 2**16, heads, EDGE.value, head_dim]
    return TensorDescriptor(x, shape, [2**34 - row, row, head, row, 1], [1, 1, 1, block, head_dim])

# %% [markdown]
# ## Step 4: a band
#
# Causal attention and windows are one thing: a row sees keys from `left` before its place to `right` after it, and causal means `right = 0`. So a tile of rows visits the blocks from where its first row starts to where its last row stops. Between the start of its *last* row and the stop of its *first*, all its rows see all keys: blocks in there need no [mask](../glossary.md#mask).{{ diagram("gqa_varlen_band") }}
#
# For a tile of keys exchange `left` and `right`. How many blocks does a window leave to visit?

# %% tags=["copy"]
@triton.jit
def _band(start, rows, length, shift, n_others, left, right):
    """Of what a tile's rows see: where it starts, where all see, up to where all see, its stop."""
    first, last = start + shift, tl.minimum(start + rows, length) - 1 + shift
    all_to, stop = first + right + 1, last + right + 1
    stops = tl.minimum(all_to, n_others), tl.minimum(stop, n_others)
    return tl.maximum(first - left, 0), tl.maximum(last - left, 0), stops[0], stops[1]


@triton.jit
def _seen(x, hidden, rows, others, shift, n_others, left, right):
    """`x` where a row sees the other, else `hidden`."""
    ahead = others - rows - shift
    return tl.where((ahead >= -left) & (ahead <= right) & (others < n_others), x, hidden)

# %%
if __name__ == "__main__":
    for left in (255, 1023, 4095, 16383):
        tiles = [(max(start - left, 0), start + 127) for start in range(0, 16384, 128)]
        blocks = [(b, last) for first, last in tiles for b in range(first, last + 1, 64)]
        masks = sum(b < last - left or b + 64 > last - 126 for b, last in blocks)
        print(f"{left:6,} before: {len(blocks):6,} of 32,768 blocks visited, {masks} with a mask")

# %% [markdown]
# ## Step 5: scores within bounds
#
# A *soft-cap* $c$ keeps scores within $\pm c$ ([Gemma 2](https://arxiv.org/abs/2408.00118)): $s' = c \, \tanh(s / c)$. `tl` has no tanh, but $\tanh(x) = 1 - 2 / (1 + e^{2x})$, also where $e^{2x}$ is 0 or infinite. With $t = \tanh(s/c)$ the slope is $ds'/ds = 1 - t^2$: one factor more in $dS$. What does it cost? At $D = 128$ the two products do $4D = 512$ operations for a score. An SM of an H200 does [4,096 a cycle](warp_specialization.py#what-it-may-gain), so they take 1/8 of a cycle; a power or a reciprocal takes [1/16](https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions). The softmax needs one a score, which the products can hide. The soft-cap needs two more, and three take longer than the products.
#
# ## The forward
#
# The loop is [the one you know](flash_attention_backward.py#what-the-forward-must-leave). With a soft-cap `s` holds $t$ after `_tanh`, `scale_in` is $2 \tau \, \log_2 e / c$ and `scale_out` $c \, \log_2 e$. `lse` has slots too, of `PAD` rows each: whole tiles fit, without a mask.

# %% tags=["copy"]
@triton.jit
def _tanh(x2):
    """tanh(x) of x2 = 2 * log2(e) * x."""
    return 1 - 2 / (1 + tl.exp2(x2))


@triton.jit
def flash_attention_varlen_kernel(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, cu_q_ptr, cu_k_ptr, n_seqs, n_heads, group, padded,
    left, right, scale_in, scale_out, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries of one head and sequence, and its log-sum-exp to base 2."""
    owner = _owner(cu_q_ptr, cu_k_ptr, n_seqs, n_heads, BLOCK_M)
    head, seq, start_m, first_q, n_q, first_k, n_k = owner
    if start_m < 0:
        return
    offs_m = start_m + tl.arange(0, BLOCK_M)
    first, all_from, all_to, stop = _band(start_m, BLOCK_M, n_q, n_k - n_q, n_k, left, right)
    q = _load(q_desc, first_q, n_q, start_m, head)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], FLOAT)
    # finite: a row may see nothing of its first block, and -inf - -inf is NaN
    row_max = tl.full([BLOCK_M], -1e30, FLOAT)
    row_sum = tl.zeros([BLOCK_M], FLOAT)
    for start_n in range(first, stop, BLOCK_N):
        k = _load(k_desc, first_k, n_k, start_n, head // group)
        s = tl.dot(q, k.T)
        if SOFTCAP:
            s = _tanh(s * scale_in)
        if (start_n < all_from) | (start_n + BLOCK_N > all_to):
            keys = start_n + tl.arange(0, BLOCK_N)[None, :]
            s = _seen(s, -float("inf"), offs_m[:, None], keys, n_k - n_q, n_k, left, right)
        new_max = tl.maximum(row_max, tl.max(s, axis=1) * scale_out)
        p = tl.exp2(s * scale_out - new_max[:, None])
        alpha = tl.exp2(row_max - new_max)
        row_sum = row_sum * alpha + tl.sum(p, axis=1)
        v = _load(v_desc, first_k, n_k, start_n, head // group)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], out_dtype=FLOAT)
        row_max = new_max
    # a query that sees no key: 0 / 1, and its log-sum-exp is never used, since masked
    row_sum = tl.where(row_sum > 0, row_sum, 1.0)
    _store(out_desc, first_q, n_q, start_m, head, acc / row_sum[:, None])
    stats = head.to(tl.int64) * padded + (first_q // PAD + seq) * PAD
    tl.store(lse_ptr + stats + offs_m, row_max + tl.log2(row_sum))

# %% [markdown]
# ## The backward
#
# Two kernels, two owners. The one for $dQ$ runs first and leaves $\delta$. The one for keys has a single loop over heads and tiles, so that the first tile of the next head is loaded while the last of this one is multiplied. Without a window it needs no mask: queries past the end add 0. Each turn starts with [both products](flash_attention_backward.py#step-3-keys-first) for the scores. The slope goes into `dp`: then `s` ends with the exponentials.

# %% tags=["copy"]
@triton.jit
def flash_attention_varlen_dq_kernel(
    q_desc, k_desc, v_desc, out_desc, do_desc, dq_desc, lse_ptr, delta_ptr, cu_q_ptr, cu_k_ptr,
    n_seqs, n_heads, group, padded, left, right, scale_in, scale_out, ds_scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr,
    FLOAT: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, and `delta`, its sums of `do * out`."""
    owner = _owner(cu_q_ptr, cu_k_ptr, n_seqs, n_heads, BLOCK_M)
    head, seq, start_m, first_q, n_q, first_k, n_k = owner
    if start_m < 0:
        return
    offs_m = start_m + tl.arange(0, BLOCK_M)
    first, all_from, all_to, stop = _band(start_m, BLOCK_M, n_q, n_k - n_q, n_k, left, right)
    q = _load(q_desc, first_q, n_q, start_m, head)
    do = _load(do_desc, first_q, n_q, start_m, head)
    out = _load(out_desc, first_q, n_q, start_m, head)
    stats = head.to(tl.int64) * padded + (first_q // PAD + seq) * PAD + offs_m
    lse = tl.load(lse_ptr + stats)[:, None]
    delta = tl.sum(do.to(FLOAT) * out.to(FLOAT), axis=1)
    tl.store(delta_ptr + stats, delta)
    dq = tl.zeros([BLOCK_M, HEAD_DIM], FLOAT)
    for start_n in range(first, stop, BLOCK_N):
        k = _load(k_desc, first_k, n_k, start_n, head // group)
        v = _load(v_desc, first_k, n_k, start_n, head // group)
        s = tl.dot(q, k.T)
        dp = tl.dot(do, v.T) - delta[:, None]
        if SOFTCAP:
            s = _tanh(s * scale_in)
            dp *= 1 - s * s
        p = tl.exp2(s * scale_out - lse)
        if (start_n < all_from) | (start_n + BLOCK_N > all_to):
            keys = start_n + tl.arange(0, BLOCK_N)[None, :]
            p = _seen(p, 0.0, offs_m[:, None], keys, n_k - n_q, n_k, left, right)
        dq = tl.dot((p * dp).to(k.dtype), k, dq, out_dtype=FLOAT)
    _store(dq_desc, first_q, n_q, start_m, head, dq * ds_scale)


@triton.jit
def flash_attention_varlen_dkdv_kernel(
    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, cu_q_ptr, cu_k_ptr,
    n_seqs, n_heads, group, padded, left, right, scale_in, scale_out, ds_scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr,
    FLOAT: tl.constexpr, BANDED: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, summed over the queries of the group's heads."""
    owner = _owner(cu_k_ptr, cu_q_ptr, n_seqs, n_heads // group, BLOCK_N)
    kv_head, seq, start_n, first_k, n_k, first_q, n_q = owner
    if start_n < 0:
        return
    offs_m = tl.arange(0, BLOCK_M)
    keys = start_n + tl.arange(0, BLOCK_N)[:, None]
    first, all_from, all_to, stop = _band(start_n, BLOCK_N, n_k, n_q - n_k, n_q, right, left)
    # lse and delta exist for whole tiles
    first = first // BLOCK_M * BLOCK_M
    tiles = tl.cdiv(tl.maximum(stop - first, 0), BLOCK_M)
    k = _load(k_desc, first_k, n_k, start_n, kv_head)
    v = _load(v_desc, first_k, n_k, start_n, kv_head)
    dk = tl.zeros([BLOCK_N, HEAD_DIM], FLOAT)
    dv = tl.zeros([BLOCK_N, HEAD_DIM], FLOAT)
    for i in range(0, group * tiles):
        head = kv_head * group + i // tiles
        start_m = first + i % tiles * BLOCK_M
        stats = head.to(tl.int64) * padded + (first_q // PAD + seq) * PAD + start_m + offs_m
        q = _load(q_desc, first_q, n_q, start_m, head)
        lse = tl.load(lse_ptr + stats)[None, :]
        do = _load(do_desc, first_q, n_q, start_m, head)
        delta = tl.load(delta_ptr + stats)[None, :]
        s = tl.dot(k, q.T)  # [BLOCK_N, BLOCK_M]
        dp = tl.dot(v, do.T) - delta
        if SOFTCAP:
            s = _tanh(s * scale_in)
            dp *= 1 - s * s
        p = tl.exp2(s * scale_out - lse)
        if BANDED:
            if (start_m < all_from) | (start_m + BLOCK_M > all_to):
                rows = start_m + offs_m[None, :]
                p = _seen(p, 0.0, keys, rows, n_q - n_k, n_q, right, left)
        dv = tl.dot(p.to(do.dtype), do, dv, out_dtype=FLOAT)
        dk = tl.dot((p * dp).to(q.dtype), q, dk, out_dtype=FLOAT)
    _store(dv_desc, first_k, n_k, start_n, kv_head, dv)
    _store(dk_desc, first_k, n_k, start_n, kv_head, dk * ds_scale)

# %% [markdown]
# ## Launch: one kernel forward, two backward, and nothing waits
#
# The host reads no length. At $D = 128$ a soft-cap leaves registers for 32 queries a turn, not 64.

# %% tags=["copy"]
# head_dim: BLOCK_M, BLOCK_N, num_warps, num_stages of the forward, for dq, for dk and dv without,
# with a soft-cap, whose BLOCK_M divides the others: they read whole tiles of lse and delta
TILES = {
    32: ((128, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 4, 1)),
    64: ((128, 64, 4, 3), (64, 64, 4, 3), (32, 64, 4, 3), (32, 64, 4, 3)),
    128: ((128, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2), (32, 64, 4, 3)),
    256: ((128, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 1), (32, 64, 8, 1)),
}
# rows of lse and delta come in slots of so many: a multiple of every BLOCK_M
PAD: tl.constexpr = tl.constexpr(128)


def _for_descriptor(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if a descriptor can describe it, else a contiguous copy."""
    fits = x.stride(2) == 1 and min(x.stride()[:2]) >= x.shape[2]
    fits &= all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:2])
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _launch(kernel, blocks, tensors, stats, lengths, band, scale, softcap, tile, **more) -> None:
    """Launches a kernel; `blocks` tells "m" or "n" of each tensor: q, k, ..., an owned one last."""
    (q, k, *_), own, n_seqs = tensors, tensors[-1], len(lengths[0]) - 1
    block_m, block_n, num_warps, num_stages = tile
    rows, log2e = [{"m": block_m, "n": block_n}[block] for block in blocks], math.log2(math.e)
    scales = (2 * log2e * scale / softcap, log2e * softcap) if softcap else (0.0, log2e * scale)
    kernel[((own.shape[0] // rows[-1] + n_seqs) * own.shape[1],)](
        *map(_ragged, tensors, rows), *stats, *lengths, n_seqs, q.shape[1],
        q.shape[1] // k.shape[1], stats[0].shape[1], *band, *scales, HEAD_DIM=q.shape[2],
        BLOCK_M=block_m, BLOCK_N=block_n, SOFTCAP=softcap > 0, num_warps=num_warps,
        num_stages=num_stages, FLOAT=tl.float64 if q.dtype == torch.float64 else tl.float32, **more,
    )  # fmt: skip


def varlen_forward(q, k, v, out, *options) -> torch.Tensor:
    """Writes out, returns lse; options: both cu_seqlens, how far left and right, scale, softcap."""
    slots, dtype = q.shape[0] // PAD.value + len(options[0][0]) - 1, torch.float32
    lse = q.new_empty(q.shape[1], slots * PAD.value, dtype=torch.promote_types(q.dtype, dtype))
    args = "mnnm", (q, k, v, out), (lse,), *options, TILES[q.shape[2]][0]
    _launch(flash_attention_varlen_kernel, *args)
    return lse


def varlen_backward(do, q, k, v, out, lse, dq, dk, dv, *options) -> None:
    """Writes dq, dk and dv for `do`, the gradient of out; options as of the forward."""
    (_, dq_tile, *dkdv_tiles), (_, band, scale, softcap) = TILES[q.shape[2]], options
    stats, banded = (lse, torch.empty_like(lse)), min(band) < EDGE.value
    args = "mnnmmm", (q, k, v, out, do, dq), stats, *options, dq_tile
    _launch(flash_attention_varlen_dq_kernel, *args, ds_scale=scale)
    args = "mnnmnn", (q, k, v, do, dk, dv), stats, *options, dkdv_tiles[softcap > 0]
    _launch(flash_attention_varlen_dkdv_kernel, *args, ds_scale=scale, BANDED=banded)


class _FlashAttentionVarlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens_q, cu_seqlens_k, *options):
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        with torch.cuda.device_of(q):
            lse = varlen_forward(q, k, v, out, (cu_seqlens_q, cu_seqlens_k), *options)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k)
        ctx.options = options
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        q, k, v, out, lse, *lengths = ctx.saved_tensors
        grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        with torch.cuda.device_of(q):
            tensors = _for_descriptor(do), q, k, v, out, lse, *grads
            varlen_backward(*tensors, lengths, *ctx.options)
        return *grads, *[None] * 5


def flash_attention_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor, *, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention of packed sequences with grouped heads; differentiable once.

    Named as flash-attn's `flash_attn_varlen_func` names things; `scale` is its `softmax_scale`, and
    the greatest lengths are not needed. Sums are float32. Runs give the same bits.

    Args:
        q: Queries `(total_q, H, D)`, float16 or bfloat16 (in the interpreter float64), on a GPU; D
            is 32, 64, 128 or 256. Rows that are not adjacent and 16-byte aligned are copied.
        k: Keys `(total_k, H_kv, D)`, like `q`; H_kv divides H, and head h reads `h // (H // H_kv)`.
        v: Values, like `k`.
        cu_seqlens_q: Where sequences begin in `q`, then `total_q`: int32, ascending from 0. The
            values are trusted: the host would have to wait for the GPU to read them.
        cu_seqlens_k: The same of `k`, for as many sequences.
        causal: Whether a query sees only keys up to its place; the last query has the last key's.
        window_size: How many keys before and after its place a query sees; -1 for all.
        softcap: From 1e-4 to 1e4: scores become `softcap * tanh(score / softcap)`. 0: they do not.
        scale: Factor of the products, between 1e-30 and 1e20; `D ** -0.5` if None.

    Returns:
        A contiguous tensor like `q`; 0 for a query that sees no key.

    Raises:
        TypeError: A dtype is none of these, or differs between the inputs.
        ValueError: A shape, the device or an option is not as above.
    """
    interpreted, says = triton.knobs.runtime.interpret, "flash_attention_varlen takes"
    if not q.is_cuda and not interpreted:
        raise ValueError(f"{says} tensors on a GPU, got {q.device}; or set TRITON_INTERPRET=1")
    dtypes = (torch.float16, torch.bfloat16) + ((torch.float64,) if interpreted else ())
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype not in dtypes or x.dtype != q.dtype:
            raise TypeError(f"{says} float16 or bfloat16 alone; {name} is {x.dtype}")
        if x.dim() != 3 or x.device != q.device or len(x) >= 2**29:
            raise ValueError(f"{says} (tokens, heads, D); {name} is {[*x.shape]} on {x.device}")
    (_, heads, head_dim), kv_heads = q.shape, k.shape[1]
    if k.shape != v.shape or k.shape[2] != head_dim or not heads * kv_heads or heads % kv_heads:
        raise ValueError(f"{says} k, v alike that fit q: {q.shape}, {k.shape}, {v.shape}")
    if head_dim not in TILES:
        raise ValueError(f"{says} a head_dim of {sorted(TILES)}, got {head_dim}")
    for ends in (cu_seqlens_q, cu_seqlens_k):
        if ends.dtype != torch.int32:
            raise TypeError(f"{says} int32 cu_seqlens, got {ends.dtype}")
        fits = ends.dim() == 1 and ends.is_contiguous() and ends.device == q.device
        least = 2 if len(q) or len(k) else 1
        if not fits or ends.shape != cu_seqlens_q.shape or len(ends) < least:
            told = f"cu_seqlens of one length, {least} or more; {ends.shape} on {ends.device}"
            raise ValueError(f"{says} {told}")
    scale = head_dim**-0.5 if scale is None else scale
    if not 1e-30 < scale < 1e20:  # it and its products are float32
        raise ValueError(f"{says} a scale between 1e-30 and 1e20, got {scale}")
    if softcap and not 1e-4 <= softcap <= 1e4:
        raise ValueError(f"{says} a softcap from 1e-4 to 1e4, or 0 for off; got {softcap}")
    left, right = (EDGE.value if size < 0 else min(size, EDGE.value) for size in window_size)
    band, tensors = (left, 0 if causal else right), [_for_descriptor(x) for x in (q, k, v)]
    return _FlashAttentionVarlen.apply(*tensors, cu_seqlens_q, cu_seqlens_k, band, scale, softcap)

# %% [markdown]
# ## Is it right?
#
# `check` compares output and gradients with float64: sequences that are empty, of one token, with more or fewer keys; groups of 1 to 8; windows below and above a block; soft-caps. One sequence is all NaN, its neighbours must not be. It prints float16 at the left, bfloat16 at the right. Errors are in percent of the [tolerance](../glossary.md#tolerance), 1½ roundings of the largest number.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares the kernels and flash_attention_varlen with float64; raises AssertionError."""
    torch.manual_seed(0)
    # queries, keys of each sequence (the second is NaN); heads, group, D, causal, left, right, cap
    cases = [
        ((1, 9, 67, 0, 5), (1, 9, 70, 4, 0), 2, 1, 32, False, -1, -1, 0.0),
        ((3, 9, 20), (3, 9, 80), 8, 4, 32, True, -1, -1, 0.0),
        ((70, 1, 5), (33, 1, 70), 8, 8, 32, False, 10, 5, 2.0),
        ((129, 9), (129, 9), 1, 1, 64, True, 70, -1, 0.0),
        ((5, 9, 40), (7, 9, 66), 1, 1, 128, False, -1, 3, 1.5),
    ]
    allowed = {torch.float16: 1.5 * 2**-10}
    if device == "cuda":  # the interpreter's product of bfloat16 is wrong
        allowed[torch.bfloat16] = 1.5 * 2**-7
        a, b = (1000, 77, 4097, 128, 2048), (2048, 128, 4097, 77, 1000)
        cases += [(a, a, 8, 4, 128, True, 1023, 0, 0.0), (a, a, 8, 8, 64, True, -1, -1, 20.0)]
        cases += [(a, b, 4, 2, 256, True, -1, -1, 0.0), (b, b, 4, 1, 128, False, -1, -1, 0.0)]
    print(f"{'queries, heads, D':>25}" + f"{'O':>9}{'dQ':>5}{'dK':>5}{'dV':>5}" * len(allowed))
    for case, (n_q, n_k, heads, group, head_dim, causal, left, right, cap) in enumerate(cases):
        line = f"{f'{sum(n_q)}, {heads} / {heads // group}, {head_dim}':>25}"
        scale, low = (0.3, 5.0) if case == 0 else (head_dim**-0.5, 0.0)
        band = [EDGE.value if reach < 0 else reach for reach in (left, 0 if causal else right)]
        for dtype, rounding in allowed.items():
            ends = [torch.tensor([0, *n]).cumsum(0).int().to(device) for n in (n_q, n_k)]
            q, do = torch.randn(2, sum(n_q), heads, head_dim, device=device).to(dtype)
            kv = torch.randn(sum(n_k), heads // group, 2, head_dim, device=device).to(dtype)
            k, v = kv.unbind(2)  # side by side, as one projection may make them
            if low:  # then the weight of a forgotten mask's key overflows
                q, k = 0.3 * q + low, 0.3 * k - low
            for x, end in zip((q, k, v, do), (*ends, ends[1], ends[0]), strict=True):
                x[end[1] : end[2]] = math.nan
            frames = [torch.full((len(x) + 9, *x.shape[1:]), math.nan).to(x) for x in (q, q, k, v)]
            got = [frame[:-9] for frame in frames]
            lse = varlen_forward(q, k, v, got[0], ends, band, scale, cap)
            varlen_backward(do, q, k, v, got[0], lse, *got[1:], ends, band, scale, cap)
            inputs = [x.double().requires_grad_() for x in (q, k, v)]
            options = {"window_size": (left, right), "softcap": cap, "scale": scale}
            out = flash_attention_varlen_reference(*inputs, *ends, causal=causal, **options)
            want, line = [out, *torch.autograd.grad(out, inputs, do.double())], line + " " * 4
            for x, y in zip(got, want, strict=True):
                clean = ~y.isnan()
                # what keys share falls out of dq, its rounding does not
                limit = rounding * (8 if low else 1) * (y[clean].abs().max() + 0.01)
                error = (x.double() - y)[clean].abs().max() / limit
                line += f"{error.item():>5.0%}"
                assert error <= 1, f"flash_attention_varlen is off, {dtype}:\n{line}"
            assert all(frame[-9:].isnan().all() for frame in frames), f"past the end:\n{line}"
        print(line)
    if device == "cpu":
        ends = [torch.tensor(n, dtype=torch.int32) for n in ([0, 2, 5], [0, 4, 6])]
        x = [torch.randn(n, h, 32).double().requires_grad_() for n, h in ((5, 2), (6, 1), (6, 1))]
        op = lambda *x: flash_attention_varlen(*x, *ends, causal=True, softcap=2.0)  # noqa: E731
        print("gradcheck:", torch.autograd.gradcheck(op, x, fast_mode=True))

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Single launches, [cool](../glossary.md#cool-and-hot). First sequences of one length, 16,384 tokens together, 32 heads of queries and 8 of keys, causal, $D = 128$. *mha* has 32 heads of keys, *repeated* copies 8 to 32; [SDPA](../glossary.md#sdpa)'s backends get 8, and `enable_gqa=True`. Do fewer keys save time?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    import inspect
    from functools import partial

    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.attention.varlen import varlen_attn

    torch._dynamo.config.recompile_limit = 64
    # the tiles that its own search, mode="max-autotune", chose for the 16 ragged sequences
    tiles = dict(num_stages=3, fwd_BLOCK_M=64, fwd_BLOCK_N=64, fwd_num_warps=4, bwd_num_warps=8)
    tiles |= dict(bwd_BLOCK_M1=64, bwd_BLOCK_N1=128, bwd_BLOCK_M2=128, bwd_BLOCK_N2=64)
    compiled = partial(torch.compile(flex_attention, dynamic=False), kernel_options=tiles)
    new = partial(torch.randn, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def packed(lengths, kv_heads=8):
        ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
        return ends, [new(sum(lengths), heads, 128) for heads in (32, kv_heads, kv_heads)]

    def ours(lengths, window=-1, softcap=0.0, kv_heads=8, repeat=1):
        ends, x = packed(lengths, kv_heads)
        options = {"causal": True, "window_size": (window, -1), "softcap": softcap}

        def attend(q, *kv):
            kv = (x.repeat_interleave(repeat, dim=1) for x in kv) if repeat > 1 else kv
            return flash_attention_varlen(q, *kv, ends, ends, **options)

        return attend, x

    def sdpa(lengths, of):  # padded
        def attend(*x):
            with sdpa_kernel(getattr(SDPBackend, f"{of.upper()}_ATTENTION")):
                return F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True)

        return attend, [new(len(lengths), heads, max(lengths), 128) for heads in (32, 8, 8)]

    def torch_varlen(lengths, window=-1):
        grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
        options = {"window_size": (window, 0)} | ({"enable_gqa": True} if grouped else {})
        ends, x = packed(lengths, 8 if grouped else 32)
        return partial(varlen_attn, **options), [*x, ends, ends, max(lengths), max(lengths)]

    def block_mask(lengths, window=-1):
        of = torch.repeat_interleave(torch.tensor(lengths, device="cuda"))
        reach, n = window if window >= 0 else sum(lengths), sum(lengths)
        seen = lambda b, h, i, j: (of[i] == of[j]) & (i >= j) & (i - j <= reach)  # noqa: E731
        return create_block_mask(seen, None, None, n, n)

    def flex(lengths, window=-1, softcap=0.0):
        mask = block_mask(lengths, window)
        cap = (lambda s, *at: softcap * torch.tanh(s / softcap)) if softcap else None
        attend = partial(compiled, score_mod=cap, block_mask=mask, enable_gqa=True)
        heads_first = lambda *x: attend(*(y.transpose(0, 1)[None] for y in x))  # noqa: E731
        return heads_first, packed(lengths)[1]

    gradient = lambda attend, x, do: torch.autograd.grad(attend(*x), x[:3], do)  # noqa: E731

    def rows(lengths, window, both, hot, cases):
        calls, pairs = {}, 0
        for provider, (attend, x) in cases.items():
            calls[provider] = partial(attend, *(y.detach() for y in x[:3]), *x[3:])
            if both:
                do = torch.randn_like(calls[provider]())
                calls[provider] = partial(gradient, attend, x, do)
        for n in lengths:
            seen = min(n, window + 1) if window >= 0 else n
            pairs += seen * n - seen * (seen - 1) // 2
        size = {"n_seqs": len(lengths), "seq_len": max(lengths), "window": window + 1}
        size["flops"] = (14 if both else 4) * 32 * 128 * pairs
        size["bytes"] = sum(lengths) * (32 + 8) * 128 * 2 * (6 if both else 2)
        timings = measure(calls, memory=True, hot=hot)
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    even = [([n] * (16384 // n), -1) for n in (1024, 4096, 16384)]
    ragged = [(ragged_lengths(n), -1) for n in (4, 16, 64)]
    bands = [([16384], window - 1) for window in (256, 1024, 4096, 16384)]
    plans = [("dense", "seq_len", even), ("ragged", "n_seqs", ragged), ("window", "window", bands)]
    for name, x, sizes, mode in [(*p, mode) for p in plans for mode in ("forward", "both")]:
        found, both = [], mode == "both"
        for lengths, window in sizes[1:2] if both else sizes:
            cases = {"triton": ours(lengths, window)}
            if name == "dense":
                cases |= {"triton_repeated": ours(lengths, repeat=4)}
                cases |= {"triton_mha": ours(lengths, kv_heads=32)}
                cases |= {"sdpa_flash": sdpa(lengths, "flash")}
            else:
                cases |= {"torch_varlen": torch_varlen(lengths, window)}
                cases |= {"flex": flex(lengths, window)}
            if name == "ragged":
                cases |= {"triton_sorted": ours(sorted(lengths)[::-1])}
                cases |= {"triton_padded": ours([max(lengths)] * len(lengths))}
                if len(lengths) == 16 and not both:
                    cases |= {"flex_mask": (partial(block_mask, lengths), [])}
            if name == "window":
                cases |= {"triton_softcap": ours(lengths, window, 30.0)}
                # each of flex's kernels takes seconds to compile
                cases |= {"flex_softcap": flex(lengths, window, 30.0)} if window == 16383 else {}
            else:
                cases |= {"sdpa_cudnn": sdpa(lengths, "cudnn")}
            found += rows(lengths, window, both, (lengths, window) == sizes[1], cases)
        about = {"name": f"gqa_varlen_{name}_{mode}", "x": x, "dtype": "bfloat16", "mode": mode}
        about["title"] = f"{name.title()}, 16,384 tokens × 32 / 8 heads × 128, {mode}, bfloat16"
        yield about | {"ceiling": "matmul", "rows": found}

# %% [markdown]
# | tokens each | *this page* | *mha* | *repeated* | SDPA, flash | cuDNN |
# |---|---|---|---|---|---|
# {% for n in [1024, 4096, 16384] %}| {{ "{:,}".format(n) }} {% for p in ["triton", "triton_mha", "triton_repeated", "sdpa_flash", "sdpa_cudnn"] %}| {{ row("gqa_varlen_dense_forward", provider=p, seq_len=n).ms | ms }} {% endfor %}|
# {% endfor %}
#
# {% set ours, mha, copied = row("gqa_varlen_dense_forward", provider="triton", seq_len=4096), row("gqa_varlen_dense_forward", provider="triton_mha", seq_len=4096), row("gqa_varlen_dense_forward", provider="triton_repeated", seq_len=4096) %}{% set both, both_mha, both_copied = row("gqa_varlen_dense_both", provider="triton"), row("gqa_varlen_dense_both", provider="triton_mha"), row("gqa_varlen_dense_both", provider="triton_repeated") %}Hardly: fewer keys are fewer bytes, but no fewer operations, and these set the pace. At 4,096 tokens 8 heads of keys take {{ (100 - 100 * ours.ms / mha.ms) | pct }} less time than 32.{% for n in [1024, 4096, 16384] %}{{ claim(0.9 < row("gqa_varlen_dense_forward", provider="triton", seq_len=n).ms / row("gqa_varlen_dense_forward", provider="triton_mha", seq_len=n).ms < 1) }}{% endfor %} What costs is to copy them: {{ (100 * copied.ms / ours.ms - 100) | pct }} more time forward, {{ (100 * both_copied.ms / both.ms - 100) | pct }} with the backward, and memory: forward and backward take {{ both.peak_bytes | bytes }} grouped, {{ both_mha.peak_bytes | bytes }} with 32 heads, {{ both_copied.peak_bytes | bytes }} repeated.{{ claim(copied.ms > 1.15 * ours.ms and both_copied.peak_bytes > 2 * both.peak_bytes) }} And what do slots, bands and ends cost?{% set dense = rec("attention/flash_attention").row("attention_d128_causal", provider="triton", seq_len=4096) %}{{ claim(ours.tflops > 0.95 * dense.tflops) }} Nothing to be seen here: the kernel for rectangles reaches {{ dense.tflops | n(0) }} TFLOP/s, with 16 heads, this one {{ ours.tflops | n(0) }}. **Now ragged batches: how much slower are they when each sequence is padded to the longest?**
#
# {{ figure("gqa_varlen_ragged_forward", providers=["triton", "triton_padded", "sdpa_cudnn", "torch_varlen", "flex"], caption="Ragged batches: ahead of torch's varlen attention and of FlexAttention by a third or more. The rate counts only work that is not padding, so what pads falls behind.") }}{% for r in rows("gqa_varlen_ragged_forward", provider="triton") + rows("gqa_varlen_ragged_both", provider="triton") %}{% for peer in ["flex", "torch_varlen"] %}{{ claim(1.33 * r.ms < row("gqa_varlen_ragged_" ~ r.benchmark.mode, provider=peer, n_seqs=r.n_seqs).ms) }}{% endfor %}{% endfor %}{% for p in ["triton", "triton_padded", "sdpa_cudnn", "torch_varlen", "flex"] %}{{ claim(row("gqa_varlen_ragged_forward", provider=p, n_seqs=64).tflops < 0.8 * row("gqa_varlen_ragged_forward", provider=p, n_seqs=16).tflops) }}{% endfor %}
#
# {% set ours, padded = row("gqa_varlen_ragged_forward", provider="triton", n_seqs=16), row("gqa_varlen_ragged_forward", provider="triton_padded", n_seqs=16) %}{% set many, many_padded = row("gqa_varlen_ragged_forward", provider="triton", n_seqs=64), row("gqa_varlen_ragged_forward", provider="triton_padded", n_seqs=64) %}{{ claim(7 * ours.ms < padded.ms < 10 * ours.ms and many_padded.ms > 14 * many.ms) }}Padded, 16 sequences take {{ (padded.ms / ours.ms) | times }} the time and 64 take {{ (many_padded.ms / many.ms) | times }}. For 16 that is ten times the products in less than ten times the time: where all sequences are long, so are the loops, and products run at {{ (2 * 32 * 128 * 16 * 5113**2 / padded.ms * 1e-9) | n(0) }} TFLOP/s, those of padding counted. Ragged, these 16 run at {{ ours.tflops | n(0) }}, {{ (100 * ours.tflops / row("gqa_varlen_dense_forward", provider="triton", seq_len=4096).tflops) | pct }} of the rate of four equal ones. With 64 sequences, of 256 tokens on average, every rate falls. Programs have little to do between their start and their end, and waste more of it: with 4 sequences 97 % of the scores in the blocks that this kernel visits count, with 64 only 75 %.
#
# *torch, varlen* is torch's own attention for packed batches, flash attention 2; it knows groups [from torch 2.12 on](https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html), and gets the heads repeated here, off the clock. *flex* is PyTorch's [FlexAttention](https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html), compiled with the tiles that its own search (`max-autotune`), run apart, chose for the 16 ragged sequences: it takes a mask written in Python into its kernel, and skips blocks that a table marks as hidden. {% set mask = row("gqa_varlen_ragged_forward", provider="flex_mask", n_seqs=16) %}Making the table takes {{ mask.ms | ms }} and {{ mask.peak_bytes | bytes }} a batch, off the clock too, as one table serves all layers. [Back to back](../glossary.md#cool-and-hot), where the power limits the clock, this page's kernels stay ahead: forward {% for p in ["triton", "flex", "torch_varlen"] %}{{ row("gqa_varlen_ragged_forward", provider=p, n_seqs=16).ms_hot | ms }} {{ ["here", "with flex", "with *torch, varlen*"][loop.index0] }}{{ "; " if loop.last else ", " }}{% endfor %}with the backward {% for p in ["triton", "flex", "torch_varlen"] %}{{ row("gqa_varlen_ragged_both", provider=p).ms_hot | ms }} {{ ["here", "with flex", "with *torch, varlen*"][loop.index0] }}{{ "." if loop.last else ", " }}{% endfor %}{% for mode in ["forward", "both"] %}{% for p in ["flex", "torch_varlen"] %}{{ claim(1.35 * row("gqa_varlen_ragged_" ~ mode, provider="triton", n_seqs=16).ms_hot < row("gqa_varlen_ragged_" ~ mode, provider=p, n_seqs=16).ms_hot) }}{% endfor %}{% endfor %} Forward and backward of the 16 sequences, cool:
#
# {{ table("gqa_varlen_ragged_both", columns=["provider", "ms", "tflops", "peak_bytes"]) }}
#
# And a window: of 16,512 blocks it left 762 to visit, 2,232 or 7,392. Does the time follow?
#
# {{ figure("gqa_varlen_window_forward", y="ms", logy=True, providers=["triton", "triton_softcap", "torch_varlen", "flex"], caption="One sequence of 16,384 tokens: the narrower the window, the less time, in every kernel; without a soft-cap this page's needs the least.") }}{% for r in rows("gqa_varlen_window_forward", provider="triton") %}{% for peer in ["flex", "torch_varlen"] %}{{ claim(1.2 * r.ms < row("gqa_varlen_window_forward", provider=peer, window=r.window).ms) }}{% endfor %}{% if not loop.last %}{% for p in ["triton", "triton_softcap", "torch_varlen", "flex"] %}{{ claim(1.3 * row("gqa_varlen_window_forward", provider=p, window=r.window).ms < row("gqa_varlen_window_forward", provider=p, window=4 * r.window).ms) }}{% endfor %}{% endif %}{% endfor %}
#
# {% set w256, w1k, w4k, all = row("gqa_varlen_window_forward", provider="triton", window=256).ms, row("gqa_varlen_window_forward", provider="triton", window=1024).ms, row("gqa_varlen_window_forward", provider="triton", window=4096).ms, row("gqa_varlen_window_forward", provider="triton", window=16384).ms %}{{ claim(2 < all / w4k < 2.4 and 5.5 < all / w1k < 7 and 11 < all / w256 < 16) }}The time follows as long as loops are long. For 2.2 times fewer blocks the time falls {{ (all / w4k) | n(1) }}-fold, for 7.4 times fewer {{ (all / w1k) | n(1) }}-fold, for 21.7 times fewer {{ (all / w256) | n(1) }}-fold: two blocks of three then need a mask, and a program's start and end weigh more. With the gradient a window of 1,024 takes this page's kernels {{ row("gqa_varlen_window_both", provider="triton").ms | ms }} ({{ row("gqa_varlen_window_both", provider="triton_softcap").ms | ms }} with a soft-cap), torch's {{ row("gqa_varlen_window_both", provider="torch_varlen").ms | ms }}, flex {{ row("gqa_varlen_window_both", provider="flex").ms | ms }}.{% for peer in ["torch_varlen", "flex"] %}{{ claim(1.4 * row("gqa_varlen_window_both", provider="triton").ms < row("gqa_varlen_window_both", provider=peer).ms) }}{% endfor %}
#
# ## Where it loses, and why
#
# {% set best, best_both = row("gqa_varlen_dense_forward", provider="sdpa_cudnn", seq_len=4096), row("gqa_varlen_dense_both", provider="sdpa_cudnn") %}**cuDNN, where nothing is ragged,** needs {{ (best.ms / row("gqa_varlen_dense_forward", provider="triton", seq_len=4096).ms * 100) | pct }} of the time of the forward at 4,096 tokens, {{ (best_both.ms / both.ms * 100) | pct }} with the backward (back to back {{ (best.ms_hot / row("gqa_varlen_dense_forward", provider="triton", seq_len=4096).ms_hot * 100) | pct }} and {{ (best_both.ms_hot / both.ms_hot * 100) | pct }}): the fastest kernels put products [under the softmax](hopper_attention.py), and do [five products, not seven](flash_attention_backward.py#where-it-loses-and-why).{% for r in rows("gqa_varlen_dense_forward", provider="triton") %}{{ claim(row("gqa_varlen_dense_forward", provider="sdpa_cudnn", seq_len=r.seq_len).ms < 0.95 * r.ms) }}{% endfor %}{{ claim(best_both.ms < 0.95 * both.ms) }} Take it where lengths are equal and runs need not give the same bits.
#
# {% set capped, flex, flex_capped = row("gqa_varlen_window_forward", provider="triton_softcap", window=16384).ms, row("gqa_varlen_window_forward", provider="flex", window=16384).ms, row("gqa_varlen_window_forward", provider="flex_softcap").ms %}{{ claim(1.4 < capped / all < 1.6 and flex_capped / flex > 1.8) }}**The soft-cap** takes {{ (capped / all) | n(1) }} times as long at 16,384 tokens, {{ capped | ms }} for {{ all | ms }}. Step 5 counted 3/16 of a cycle for powers and reciprocals of a score, 1/8 for its products: that is 1.5 times, if the slower unit sets the pace. flex, with `torch.tanh`, goes from {{ flex | ms }} to {{ flex_capped | ms }}. A soft-cap far above the scores would lose digits, $1 - 2/(1 + e^{2x})$ being near 0: more than 10⁴ is refused. **Large scores** cost the gradients' digits, and a NaN leaves numbers in rows of $dV$, as in [flash attention's backward](flash_attention_backward.py#where-it-loses-and-why); with more than 2²⁴ sequences the kernels write out of bounds (*not yet right*).
#
# {% set both, order = row("gqa_varlen_ragged_both", provider="triton"), row("gqa_varlen_ragged_both", provider="triton_sorted") %}{{ claim(0.92 < order.ms / both.ms < 0.98) }}**Order.** If a long sequence comes last, its last tiles run on a chip that is otherwise idle. With the longest first, *sorted*, forward and backward take {{ (100 - 100 * order.ms / both.ms) | pct }} less, back to back {{ (100 - 100 * order.ms_hot / both.ms_hot) | pct }}. **Few heads of keys.** A program for $dK$ serves a whole group. One sequence of 2,048 tokens with four heads of keys has 128 such programs of 64 keys; the chip, with two on each SM, has room for 264, so half of it is idle.
#
# ## What to remember
#
# 1. Padding costs the square of a length. Pack, and let each program find its sequence.
# 2. Heads, sequences, windows decide *which* blocks are visited. The loop stays as it was.
# 3. A number that the compiler cannot prove to be the same in all threads takes a register of each.
#
# ## Exercises
#
# ??? question "1. Both sides (five minutes)"
#     Which arguments give each token 64 neighbours on either side? What does a tile of 128 visit?
#
#     ??? success "Answer"
#         `window_size=(64, 64)`. Keys `start - 64` to `start + 191`: four blocks of 64.
#
# ??? question "2. No maximum (thirty minutes)"
#     With a soft-cap of 20 and bfloat16, what does the loop no longer need? Why not float16?
#
#     ??? success "Answer"
#         `row_max` and `alpha`: $e^{s'}$ lies within $10^{\pm 9}$, and no sum of such numbers
#         overflows. But weights are rounded to 16 bits, and float16 ends at 65,504.
#
# ??? question "3. A slope for each head (an hour)"
#     [ALiBi](https://arxiv.org/abs/2108.12409) adds $m_h$ times (key − place) to a score; each query head has its own $m_h$. What is the least that each of the three kernels must add, and where? What becomes of the gradients?
#
#     ??? success "Answer"
#         Nothing but `slope * keys`, with $m_h \log_2 e$ in `slope`: what all scores of a row share falls out of the [softmax](../glossary.md#online-softmax), and `lse` has it too. The forward adds it to `s * scale_out` before the mask, and its maximum and `p` take the sum as it is; the other two add it under `exp2`, and all else stays, as $ds'/ds = 1$. The kernel for keys walks over the heads of a group: it loads `slope` in every turn, and, since it would [spill](../glossary.md#spill), takes 32 queries at a time, as with a soft-cap. A distance for each score, in place of a number for each key, would make the forward spill, too. The limit: near key 1,000,000, with $m_h = 1/2$, float32 has this number in steps of 1/16.
#
# ## Use it in your project
#
# ```python
# from gqa_varlen import flash_attention_varlen
#
# ends = torch.tensor([0, 301, 1325], dtype=torch.int32, device="cuda")  # two sequences
# # q (1325, 32, 128), k and v (1325, 8, 128)
# out = flash_attention_varlen(q, k, v, ends, ends, causal=True, window_size=(1023, 0))
# ```
#
# The file needs torch and triton: [API][examples.attention.gqa_varlen.flash_attention_varlen].
