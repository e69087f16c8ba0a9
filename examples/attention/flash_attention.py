# %% [markdown]
# ---
# title: Flash attention
# description: Exact attention without the N×N matrix, from the online softmax to a tuned tensor-core kernel, with time and memory measured.
# tags: [attention, tensor cores, online softmax]
# prerequisites: [foundations/programming_model, fusion/softmax]
# outcome: Write attention as one loop over tiles, know what it saves in bytes, and say which unit of the chip limits it.
# ---
#
# # Flash attention: the matrix that is never stored
#
# Attention lets every token look at every other. With queries $Q$, keys $K$ and values $V$, each a
# matrix of $N$ tokens by $D$ numbers for one head,
#
# $$
# S = \tau \, Q K^\top, \qquad P = \operatorname{softmax}(S), \qquad O = P V,
# \qquad \tau = 1/\sqrt{D} .
# $$
#
# $S$ and $P$ have $N^2$ entries each, $Q$, $K$, $V$ and $O$ have $N D$. At 4,096 tokens and
# $D = 128$ each of the two in the middle is 32 times as large as any of the others, and nobody
# wants to keep them in memory. **Must they ever be stored?**
#
# ## What it costs
#
# {{ diagram("flash_matrix") }}
#
# The work is two matrix products: $2 N^2 D$ operations for $QK^\top$ and as many for $PV$. Count
# one head at $N = 4096$, $D = 128$ in 16-bit numbers:
#
# | | amount | time on the {{ env.gpu }} of this page |
# |---|---|---|
# | both products, $4 N^2 D$ | 8.6 GFLOP | {{ (4 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) | ms }} at the library's best matrix rate |
# | $S$ written and read, $P$ written and read, $8 N^2$ bytes | {{ (8 * 4096**2) | bytes }} | {{ copy_ms(8 * 4096**2) | ms }} at the speed of a copy |
# | $Q$, $K$, $V$ read, $O$ written, $8 N D$ bytes | {{ (8 * 4096 * 128) | bytes }} | {{ copy_ms(8 * 4096 * 128) | ms }} |
#
# {{ claim(copy_ms(8 * 4096**2) > 2 * 4 * 4096**2 * 128 / matmul_tflops("bfloat16", 8192) * 1e-9) }}
# Moving the matrices in the middle takes longer than the arithmetic, and scaling and masking as
# kernels of their own add four more [trips](../glossary.md#trip). Without these matrices attention has an
# [arithmetic intensity](../glossary.md#arithmetic-intensity) of $N/2$ operations a byte, far on the
# compute-bound side of the [roofline](../foundations/memory_hierarchy.py): the yardstick here is the rate of a large product.

# %% tags=["copy"]
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

# %% [markdown]
# ## The reference
#
# The specification, with the N×N matrix in full view. *Causal* means that a token sees itself and
# the past: row $i$ of $S$ keeps columns $0 \dots i$, the rest counts as $-\infty$ and comes out of
# the softmax as 0. Queries and keys may differ in number: the queries may continue a text whose
# first keys are in a [cache](../glossary.md#kv-cache), or look at another text (*cross attention*).
# Causal then means that the last query stands at the last key. A query that sees no key gives 0.

# %%
def flash_attention_reference(q, k, v, causal=False, scale=None):
    """Attention in plain PyTorch: the output and the log-sum-exp of every row of scores."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(-2, -1) * scale  # [..., queries, keys]
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        future = future.triu(1 + k.shape[-2] - q.shape[-2])
        scores = scores.masked_fill(future, -float("inf"))
    lse = scores.logsumexp(dim=-1)
    return (scores.softmax(dim=-1) @ v).masked_fill(lse.isneginf()[..., None], 0.0), lse

# %% [markdown]
# ## A softmax that never sees the whole row
#
# A tile of $S$ can live on the chip; whole rows of 128 queries cannot. Yet a softmax wants the row:
# its maximum $m$, then the sum $l = \sum_j e^{s_j - m}$, then the weights $e^{s_j - m} / l$.
#
# Two facts save us. The division by $l$ is the same for the whole row, so it can wait until the
# end. And a wrong maximum can be mended: everything summed with $m$ becomes right for $m'$ when
# multiplied by $e^{m - m'}$. So walk over the keys in blocks and keep three things for each query:
# maximum, sum, and weighted sum of values so far, `acc`. A block $B$ updates them:
#
# $$
# \begin{aligned}
# m' &= \max\bigl(m, \max_{j \in B} s_j\bigr), \qquad \alpha = e^{m - m'}, \\
# l' &= \alpha \, l + \sum_{j \in B} e^{s_j - m'}, \qquad
# \mathit{acc}' = \alpha \, \mathit{acc} + \sum_{j \in B} e^{s_j - m'} v_j .
# \end{aligned}
# $$
#
# After the last block the output is $\mathit{acc} / l$: exact, not an approximation. This is [online softmax](../glossary.md#online-softmax) ([Milakov and Gimelshein, 2018](https://arxiv.org/abs/1805.02867)), and attention built on it is flash attention ([Dao et al., 2022](https://arxiv.org/abs/2205.14135)).
#
# Check it with pen and paper. One query, six keys in three blocks, values of a single number, and
# powers of 2 in place of $e$ (the kernel will do the same), so that every step is a plain fraction:
#
# {{ diagram("flash_online") }}

# %%
def online_softmax(blocks) -> float:
    """Weighted mean of values, weights in powers of 2; prints the state after each block."""
    row_max, row_sum, acc = -math.inf, 0.0, 0.0
    for scores, values in blocks:
        new_max = max(row_max, *scores)
        alpha = 2 ** (row_max - new_max)
        p = [2 ** (score - new_max) for score in scores]
        row_sum = row_sum * alpha + sum(p)
        acc = acc * alpha + sum(weight * value for weight, value in zip(p, values, strict=True))
        row_max = new_max
        print(f"scores {scores}: {alpha = :4}  {row_max = :2}  {row_sum = :4}  {acc = :4}")
    return acc / row_sum


if __name__ == "__main__":
    print(online_softmax([((3, 2), (4, 2)), ((1, 1), (8, 4)), ((5, 4), (3, 2))]))

# %% [markdown]
# ## Step 1: the tile loop
#
# Now 128 queries at once. A [program](../glossary.md#program) owns a tile of `BLOCK_M` queries of
# one head. It loads them once, walks over keys and values by `BLOCK_N`, and writes its output last.
#
# {{ diagram("flash_tiles") }}
#
# (Step 1 still visits every tile and masks each; the two stages come with [step 2](#step-2-five-changes).)
#
# `tl.dot` multiplies two blocks on the [tensor cores](../glossary.md#tensor-core): 16-bit numbers
# in, 32-bit sums out. (Of float32 inputs it would make [TF32](../glossary.md#tf32), so `flash_attention`
# refuses them.) The softmax is in float32 throughout. Its weights go into the second product,
# so they are rounded to 16 bits.

# %%
@triton.jit
def first_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, seq_len, scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries; inputs `[heads, seq_len, HEAD_DIM]`, contiguous."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, HEAD_DIM)
    # int64: more than 2**31 elements are a few heads of a long context
    head = tl.program_id(1).to(tl.int64) * seq_len * HEAD_DIM
    q_offs = head + offs_m[:, None] * HEAD_DIM + offs_d[None, :]  # [BLOCK_M, HEAD_DIM]
    mask_m = (offs_m < seq_len)[:, None]
    q = tl.load(q_ptr + q_offs, mask=mask_m, other=0.0)

    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for start_n in range(0, seq_len, BLOCK_N):
        kv_offs = head + (start_n + offs_n)[:, None] * HEAD_DIM + offs_d[None, :]
        mask_n = start_n + offs_n < seq_len
        k = tl.load(k_ptr + kv_offs, mask=mask_n[:, None], other=0.0)
        s = tl.dot(q, k.T) * scale  # [BLOCK_M, BLOCK_N]
        keep = mask_n[None, :]
        if IS_CAUSAL:
            keep = keep & (start_n + offs_n[None, :] <= offs_m[:, None])
        s = tl.where(keep, s, -float("inf"))
        new_max = tl.maximum(row_max, tl.max(s, axis=1))
        alpha = tl.exp(row_max - new_max)
        p = tl.exp(s - new_max[:, None])
        row_sum = row_sum * alpha + tl.sum(p, axis=1)
        v = tl.load(v_ptr + kv_offs, mask=mask_n[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
        row_max = new_max
    out = acc / row_sum[:, None]
    tl.store(out_ptr + q_offs, out.to(out_ptr.dtype.element_ty), mask=mask_m)


def first_attention(q, k, v, causal: bool) -> torch.Tensor:
    """Launches `first_attention_kernel`; inputs `(B, H, S, D)`, contiguous."""
    out = torch.empty_like(q)
    batch, heads, seq_len, head_dim = q.shape
    first_attention_kernel[(triton.cdiv(seq_len, 128), batch * heads)](
        q, k, v, out, seq_len, head_dim**-0.5, head_dim, 128, 64, IS_CAUSAL=causal,
        num_warps=8 if head_dim > 128 else 4, num_stages=2,
    )  # fmt: skip
    return out

# %% [markdown]
# Nothing of size $N^2$ is left. Every tile of queries reads all of $K$ and $V$, but programs that run together read the same blocks, so most comes from [L2](../glossary.md#l2). A block of each is `4 * BLOCK_N * D` bytes and feeds `4 * BLOCK_M * BLOCK_N * D` operations: **`BLOCK_M` operations a byte**. For one head of 4,096 tokens 32 tiles of 128 queries read 2 MiB of keys and values each: 64 MiB out of L2, where the stored matrices move {{ (8 * 4096**2) | bytes }} through memory. At 600 TFLOP/s that is 4.7 TB/s out of L2 for 128 rows, and for 64 rows 9.4, more than the {{ rec("foundations/memory_hierarchy").row("memory_bandwidth", provider="triton", working_set=2**25).tbps | tbps }} [that L2 gave](../foundations/memory_hierarchy.py#bandwidth-read-the-same-bytes-again-and-again).{{ claim(rec("foundations/memory_hierarchy").row("memory_bandwidth", provider="triton", working_set=2**25).tbps < 9.2) }}
#
# ## Step 2: five changes
#
# 1. **[Tensor descriptors](../glossary.md#descriptor) in place of pointers.** A descriptor states base,
#    shape and strides once. One instruction of one thread then loads a block: the
#    [copy engine](../glossary.md#tma) computes addresses, brings the block to
#    [shared memory](../glossary.md#shared-memory), and puts zeros beyond the edges.
# 2. **The exponential is a power of 2.** The chip has an instruction for $2^x$ and none for $e^x$,
#    which is $2^{x \log_2 e}$. Fold $\log_2 e$ into the scale once, on the host. Then
#    `s * scale - row_max` is one fused multiply-add a score; before, Triton made it two
#    multiplications and a subtraction.
# 3. **Causal in two stages.** A tile of queries needs no block of keys to the right of it, half the
#    work on average. Left of the diagonal every key counts, and no mask is needed. Only the blocks
#    on the diagonal, two of 64 keys for 128 queries, compare positions. The same test serves a last
#    block that is not full.
# 4. **Eight sums a row.** The columns of a row are spread over four threads. With one sum a row
#    these exchange their shares in every block. With eight, each sum is of columns that one thread
#    holds, and the threads exchange only once, at the end.
# 5. **The longest tiles first.** The last tile of a causal head has the most blocks; started last,
#    it would run while the rest of the chip is idle. And programs of a head run together, in groups
#    of heads whose keys and values fit into L2.

# %% tags=["copy"]
@triton.jit
def _tile(n_heads, n_queries, GROUP, BLOCK_M: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """Head and first query of this program: heads in groups, the longest tiles of a group first."""
    tiles = tl.cdiv(n_queries, BLOCK_M)
    pid = tl.program_id(0)
    first_head = pid // (tiles * GROUP) * GROUP
    # the last group may have fewer heads
    size = tl.minimum(n_heads - first_head, GROUP)
    place = pid % (tiles * GROUP)
    head = first_head + place % size
    tile = place // size
    if IS_CAUSAL:
        tile = tiles - 1 - tile
    return head, tile * BLOCK_M


@triton.jit
def flash_attention_kernel(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, n_batch, n_heads, n_queries, n_keys, scale_log2,
    GROUP, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of `BLOCK_M` queries of one head.

    The descriptors describe `[n_batch, n_heads, n_queries, D]` in blocks of `BLOCK_M` rows or, for
    keys and values, `[n_batch, n_heads, n_keys, D]` in blocks of `BLOCK_N`, `HEAD_DIM` wide, which
    is D or more. `lse_ptr` receives the log-sum-exp of every row in float32, unless it is None.
    `scale_log2` is the factor of the scores times log2(e), `GROUP` the heads that run together;
    `MASKED` tells whether the last keys need a mask (always, if causal).
    """
    head, start_m = _tile(n_batch * n_heads, n_queries, GROUP, BLOCK_M, IS_CAUSAL)
    b, h = head // n_heads, head % n_heads
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    stop = n_keys
    if IS_CAUSAL:
        # of a last tile that is not full past the keys: only rows that are not stored see those
        stop = start_m + BLOCK_M + n_keys - n_queries
    # a block that starts nearer to stop than this holds keys that some query does not see
    EDGE: tl.constexpr = BLOCK_N + BLOCK_M - 1 if IS_CAUSAL else BLOCK_N
    q = q_desc.load([b, h, start_m, 0]).reshape(BLOCK_M, HEAD_DIM)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    # finite: a row may see nothing of its first block, and -inf - -inf is NaN
    row_max = tl.full([BLOCK_M], -1e30, tl.float32)
    row_sums = tl.zeros([BLOCK_M, 8], tl.float32)
    for start_n in range(0, stop, BLOCK_N):
        k = k_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
        s = tl.dot(q, k.T)
        if MASKED:
            if start_n + EDGE > stop:
                keys = start_n + offs_n[None, :]
                if IS_CAUSAL:
                    seen = keys - offs_m[:, None] <= stop - BLOCK_M
                else:
                    seen = keys < n_keys
                s = tl.where(seen, s, -float("inf"))
        new_max = tl.maximum(row_max, tl.max(s, axis=1) * scale_log2)
        p = tl.exp2(s * scale_log2 - new_max[:, None])
        alpha = tl.exp2(row_max - new_max)
        parts = tl.reshape(p, [BLOCK_M, BLOCK_N // 8, 8])
        row_sums = row_sums * alpha[:, None] + tl.sum(parts, axis=1)
        v = v_desc.load([b, h, start_n, 0]).reshape(BLOCK_N, HEAD_DIM)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
        row_max = new_max
    row_sum = tl.sum(row_sums, axis=1)
    # a query that saw no key: 0 / 1
    out = (acc / tl.where(row_sum == 0, 1.0, row_sum)[:, None]).to(q.dtype)
    out_desc.store([b, h, start_m, 0], out.reshape(1, 1, BLOCK_M, HEAD_DIM))
    if lse_ptr is not None:
        # back from powers of 2 to powers of e
        lse = (row_max + tl.log2(row_sum)) * 0.6931471805599453
        lse_ptr += head.to(tl.int64) * n_queries
        tl.store(lse_ptr + start_m + offs_m, lse, mask=start_m + offs_m < n_queries)

# %% [markdown]
# The `if` in the loop is where the two stages part: all threads of a program take the same side,
# and most blocks pay one comparison. The running maximum is kept in units of the exponent, already
# scaled. The [log-sum-exp](../glossary.md#log-sum-exp) $m + \ln\, l$ of a row is all that a backward pass needs to rebuild its row
# of $P$.
#
# ## Step 3: what each change is worth
#
# `without` undoes changes: it puts the former lines back into the kernel's source. Undo the last
# one, the last two, and so on. Before you look: which gains most, full and causal?

# %%
# of changes 2 to 5, in order: what stands in the kernel, and what stood there before
CHANGES = {
    "exp2": {
        "s = tl.dot(q, k.T)": "s = tl.dot(q, k.T) * (scale_log2 * 0.6931471805599453)",
        "tl.max(s, axis=1) * scale_log2": "tl.max(s, axis=1)",
        "s * scale_log2 - new_max": "s - new_max",
        "tl.exp2(": "tl.exp(",
    },
    "stages": {"0, stop": "0, n_keys", "if MASKED": "if True", "start_n + EDGE > stop": "True"},
    "sums": {
        "[BLOCK_M, 8]": "[BLOCK_M]",
        "alpha[:, None] + tl.sum(parts, axis=1)": "alpha + tl.sum(p, axis=1)",
        "tl.sum(row_sums, axis=1)": "row_sums",
    },
    "order": {"GROUP, BLOCK_M, IS_CAUSAL)": "1, BLOCK_M, False)"},
}


def without(*changes: str):
    """`flash_attention_kernel` as it was before these changes."""
    source = flash_attention_kernel.src
    for change in changes:
        for now, before in CHANGES[change].items():
            assert now in source, now
            source = source.replace(now, before)
    kernel = triton.JITFunction(flash_attention_kernel.fn)
    kernel._unsafe_update_src(source)
    return kernel

# %% [markdown]
# Each row adds a change to those above it, for 64 heads of 4,096 tokens, $D = 128$. The last five are all of step 2 with one thing changed: another tile than 128 queries × 64 keys, or another `num_stages` than 2, the number of blocks of keys and of values that shared memory holds ([pipelining](../glossary.md#pipelining)). All have four [warps](../glossary.md#warp), except where it says eight.
#
# | TFLOP/s, and the gain | full | causal |
# |---|--:|--:|
# {% for label, rung, base in [("Step 1", "first", ""), ("1. Tensor descriptors", "descriptors", "first"), ("2. Powers of 2", "exp2", "descriptors"), ("3. Causal in two stages", "stages", "exp2"), ("4. Eight sums a row", "sums", "stages"), ("5. Longest first: all of step 2", "order", "sums"), ("all, tile 64 × 64", "64_64_4_2", "order"), ("all, tile 64 × 128", "64_128_4_2", "order"), ("all, tile 128 × 128, 8 warps", "128_128_8_2", "order"), ("all, `num_stages=1`", "128_64_4_1", "order"), ("all, `num_stages=3`", "128_64_4_3", "order")] %}
# | {{ label }} {% for causal in [false, true] %}{% set now = row("attention_ladder", provider="triton_" ~ rung, causal=causal).ms %}| {{ row("attention_ladder", provider="triton_" ~ rung, causal=causal).tflops | n(0) }}{% if base %}, {{ "%+.0f" | format(100 * row("attention_ladder", provider="triton_" ~ base, causal=causal).ms / now - 100) | replace("-", "−") }}&nbsp;%{% endif %} {% endfor %}|
# {% endfor %}
#
# {% for causal, best in [(false, "descriptors"), (true, "stages")] %}{% for rung, base in [("descriptors", "first"), ("exp2", "descriptors"), ("stages", "exp2"), ("sums", "stages"), ("order", "sums")] %}{% set gain = row("attention_ladder", provider="triton_" ~ base, causal=causal).ms / row("attention_ladder", provider="triton_" ~ rung, causal=causal).ms %}{{ claim(gain > 0.985 and (rung == best) == (gain > (1.6 if causal else 1.3))) }}{% endfor %}{% for other in ["64_64_4_2", "64_128_4_2", "128_128_8_2", "128_64_4_1", "128_64_4_3"] %}{{ claim(row("attention_ladder", provider="triton_" ~ other, causal=causal).ms > 1.08 * row("attention_ladder", provider="triton_order", causal=causal).ms) }}{% endfor %}{% endfor %}
# **Full: descriptors gain most.** Step 1 keeps the addresses of its loads in [registers](../glossary.md#register), of which a thread has at most 255; together with its share of `acc` and of the scores they are too many, and some [spill](../glossary.md#spill). With descriptors nothing spills. **Causal: the two stages**, since half of the blocks are never visited. In full attention the same change does away with the mask alone, {{ (100 * row("attention_ladder", provider="triton_exp2", causal=false).ms / row("attention_ladder", provider="triton_stages", causal=false).ms - 100) | pct }}. Longest first matters where tiles are unequal.{{ claim(row("attention_ladder", provider="triton_sums", causal=true).ms / row("attention_ladder", provider="triton_order", causal=true).ms > 1.03 * row("attention_ladder", provider="triton_sums", causal=false).ms / row("attention_ladder", provider="triton_order", causal=false).ms) }}
#
# **Why this tile?** While a program computes exponentials, the tensor cores are idle unless a second one on the same [multiprocessor](../glossary.md#sm) uses them. Two fit: four warps with 255 registers a thread are half of all there are, and 32 KiB of queries and two stages of keys and values, 16 KiB each, are 96 of 227 KiB of shared memory. With three stages it is 128, with 64 × 128 144, with 128 × 128 160: one program, and no second to multiply during its softmax. With one stage no block is on its way while another is used. And tiles of 64 rows, at their rate, read {{ (row("attention_ladder", provider="triton_64_64_4_2", causal=false).tflops / 64) | tbps }} out of L2, not far from what it gives.{{ claim(row("attention_ladder", provider="triton_64_64_4_2", causal=false).tflops / 64 > 0.8 * rec("foundations/memory_hierarchy").row("memory_bandwidth", provider="triton", working_set=2**25).tbps) }}
#
# ## Launch
#
# The host makes the descriptors. A head dimension between two of `TILES` takes the wider: the copy engine loads zeros for the columns that are missing, and stores none of them. The tiles come from trying others on this page's GPU: at $D = 64$ 64 queries and 128 keys, which read more out of L2, but not more than it gives. For an A100 or an RTX 40, without a copy engine, Triton turns descriptors into ordinary loads, and all tiles fit the [smaller shared memory](../faq.md#out-of-resource-shared-memory-required-hardware-limit): we compiled that and did not run it.

# %% tags=["copy"]
# HEAD_DIM: BLOCK_M, BLOCK_N, num_warps, num_stages
TILES = {32: (128, 64, 4, 3), 64: (64, 128, 4, 2), 128: (128, 64, 4, 2), 256: (128, 64, 8, 2)}
# keys and values of the heads that run together, within L2; causal tiles, unequal, want more
GROUP_BYTES = {False: 8 << 20, True: 32 << 20}


def _for_descriptor(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if a descriptor can describe it, else a contiguous copy."""
    fits = x.stride(3) == 1 and x.stride(2) >= x.shape[3]
    fits &= all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _launch(kernel, q, k, v, out, lse, causal, scale, tile=None):
    """Launches the kernel, with the tile from `TILES` unless another is given."""
    batch, heads, n_queries, head_dim = q.shape
    width, n_keys = max(32, triton.next_power_of_2(head_dim)), k.shape[2]
    block_m, block_n, num_warps, num_stages = tile or TILES[width]
    written = _for_descriptor(out)
    tensors = [_for_descriptor(x) for x in (q, k, v)] + [written]
    rows = zip(tensors, (block_m, block_n, block_n, block_m), strict=True)
    # groups as large as L2 allows, and alike: a small one at the end leaves much of the chip idle
    groups = triton.cdiv(batch * heads * 2 * n_keys * width * q.element_size(), GROUP_BYTES[causal])
    with torch.cuda.device_of(q):
        kernel[(triton.cdiv(n_queries, block_m) * batch * heads,)](
            *(TensorDescriptor.from_tensor(x, [1, 1, n, width]) for x, n in rows),
            lse, batch, heads, n_queries, n_keys, scale * math.log2(math.e),
            triton.cdiv(batch * heads, groups), HEAD_DIM=width, BLOCK_M=block_m, BLOCK_N=block_n,
            IS_CAUSAL=causal, MASKED=causal or n_keys % block_n != 0,
            num_warps=num_warps, num_stages=num_stages)  # fmt: skip
    return out if written is out else out.copy_(written)


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False,
    scale: float | None = None, return_lse: bool = False, out: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention, `softmax(scale * q @ k.T) @ v` for every head, without storing the scores.

    Forward only. Sums and softmax are float32; the weights are rounded to the dtype of `v` before
    the second product.

    Args:
        q: Queries `(B, H, M, D)`, float16 or bfloat16, on a GPU; D is a multiple of 8 up to 256.
            A tensor whose rows are not adjacent numbers at multiples of 16 bytes is copied first.
        k: Keys `(B, H, N, D)`, of the dtype and device of `q`.
        v: Values, like the keys.
        causal: Whether query m sees only keys up to m + N - M: the last query sees them all.
        scale: Factor of the scores, positive; `D ** -0.5` if None.
        return_lse: Whether to return the log-sum-exp of the scaled scores as well.
        out: Where to write the result, like `q`; a new contiguous tensor if None.

    Returns:
        The output, like `q`; with `return_lse` the pair of it and a float32 tensor `(B, H, M)`.
        A query that sees no key gives 0, and a log-sum-exp of minus infinity.

    Raises:
        TypeError: The dtype is neither of the two, or differs between the inputs.
        ValueError: A shape, the device or the scale is not as above, or an input wants a gradient.
    """
    tensors = {"q": q, "k": k, "v": v} | ({} if out is None else {"out": out})
    for name, x in tensors.items():
        if x.dtype not in (torch.float16, torch.bfloat16) or x.dtype != q.dtype:
            raise TypeError(f"flash_attention takes float16 or bfloat16 alone; {name} is {x.dtype}")
        rows = k if name in ("k", "v") else q
        if x.dim() != 4 or [*x.shape] != [*q.shape[:2], *rows.shape[2:3], *q.shape[3:]]:
            raise ValueError(f"flash_attention takes (B, H, tokens, D); {name}: {[*x.shape]}")
        if x.device != q.device:
            raise ValueError(f"flash_attention takes one device; q: {q.device}, {name}: {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"flash_attention has no backward, and {name} requires a gradient")
    head_dim = q.shape[3]
    if head_dim % 8 or not 8 <= head_dim <= 256:
        raise ValueError(f"flash_attention takes a head_dim of 8, 16, ... 256, got {head_dim}")
    scale = head_dim**-0.5 if scale is None else scale
    if not 0 < scale < float("inf"):
        raise ValueError(f"flash_attention takes a positive, finite scale, got {scale}")
    if not q.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"flash_attention needs a GPU, got {q.device}; or set TRITON_INTERPRET=1")
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if return_lse else None
    if k.numel() and q.numel():
        _launch(flash_attention_kernel, q, k, v, out, lse, causal, scale)
    else:
        out.zero_()
        if return_lse:
            lse.fill_(-math.inf)
    return (out, lse) if return_lse else out

# %% [markdown]
# ## Is it right?
#
# `check` compares output and log-sum-exp with float64 on awkward lengths: one token, a block more
# or less one, primes, more and fewer keys, head dimensions between two tiles, tensors in memory as
# `(B, S, H, D)`. The output lies in a frame of NaN, so rows left out or too many show. Scores grow
# along the row: a forgotten correction shows. Errors are in percent of the rounding of weights and
# output to 16 bits.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares flash_attention with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    dtypes = [torch.float16]
    # batch, heads, queries, keys, head_dim
    cases = [(1, 1, 1, 1, 64), (2, 3, 127, 127, 64), (1, 2, 128, 128, 32), (1, 2, 129, 129, 128)]
    cases += [(1, 1, 130, 301, 64), (1, 1, 130, 64, 256), (2, 3, 256, 256, 128)]
    cases += [(1, 2, 128, 128, 128), (1, 3, 70, 5, 40)]
    if device == "cuda":
        # the interpreter's bfloat16 product is wrong
        dtypes += [torch.bfloat16]
        cases += [(2, 5, 4096, 4096, 128), (2, 5, 1000, 1777, 128), (2, 12, 1777, 1777, 64)]
        cases += [(1, 9, 8191, 8191, 128), (2, 3, 1000, 100, 96), (3, 2, 100, 1000, 200)]
    print(f"{'batch, heads, queries, keys, D':>30}" + "".join(f"{str(d)[6:]:>19}" for d in dtypes))
    print(" " * 30 + f"{'full':>11}{'causal':>8}" * len(dtypes))
    for case, (batch, heads, n_queries, n_keys, head_dim) in enumerate(cases):
        line = f"{', '.join(map(str, cases[case])):>30}"
        for dtype in dtypes:
            q = torch.randn(batch, heads, n_queries, head_dim, device=device) + 0.5
            k, v = torch.randn(2, batch, heads, n_keys, head_dim, device=device)
            k *= torch.linspace(0.3, 3, n_keys, device=device)[:, None]
            q, k, v = (x.to(dtype) for x in (q, k, v))
            if case % 2:
                q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
            frame = q.new_empty(batch, heads, n_queries + 64, head_dim)
            allowed = torch.finfo(dtype).eps * v.abs().max().item()
            for causal, scale in ((False, None), (True, 0.2)):
                frame.fill_(float("nan"))
                out = frame[:, :, :n_queries]
                options = {"causal": causal, "scale": scale}
                _, lse = flash_attention(q, k, v, return_lse=True, out=out, **options)
                inputs = (x.double() for x in (q, k, v))
                want, want_lse = flash_attention_reference(*inputs, **options)
                error = (out.double() - want).abs().max().item() / allowed
                line += f"{error:>{8 if causal else 11}.0%}"
                assert error <= 1, f"flash_attention is off, {dtype}, {options}:\n{line}"
                torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=0)
                assert frame[:, :, n_queries:].isnan().all(), f"written past the end:\n{line}"
            if n_queries == n_keys:
                got = first_attention(*(x.contiguous() for x in (q, k, v)), True)
                want, _ = flash_attention_reference(*(x.double() for x in (q, k, v)), True)
                error = (got.double() - want).abs().max().item() / allowed
                assert error <= 1, f"first_attention is off, {dtype}:\n{line}"
        print(line)

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## How much memory?
#
# One sequence, eight heads of $D = 128$, bfloat16. Before you look: from which length on does the
# matrix not fit into {{ env.memory_bytes | bytes }}? How many times as many tokens would the kernel take?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    import itertools
    from functools import partial

    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(backend, q, k, v, causal):
        backend = backend if backend == "math" else f"{backend}_attention"
        with sdpa_kernel(getattr(SDPBackend, backend.upper())):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def benchmark(name, title, rows, ceiling="matmul"):
        names = {"x": "seq_len", "dtype": "bfloat16", "mode": "forward", "ceiling": ceiling}
        return {"name": name, "title": title, **names, "rows": rows}

    def inputs(batch, heads, seq_len, head_dim):
        return torch.randn(3, batch, heads, seq_len, head_dim, device="cuda", dtype=torch.bfloat16)

    def rows(q, causal, timings, n_keys=None):
        batch, heads, seq_len, head_dim = q.shape
        n_keys = n_keys or seq_len
        size = {"seq_len": seq_len, "batch": batch, "heads": heads, "head_dim": head_dim}
        size |= {"n_keys": n_keys, "causal": causal}
        size["bytes"] = 4 * batch * heads * (seq_len + n_keys) * head_dim
        pairs = seq_len * (2 * n_keys - causal * seq_len) // 2
        size["flops"] = 4 * batch * heads * pairs * head_dim
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    for head_dim, causal in itertools.product((128, 64), (False, True)):
        found = []
        for seq_len in (512, 1024, 2048, 4096, 8192, 16384):
            q, k, v = inputs(16384 // seq_len, 16, seq_len, head_dim)
            calls = {"triton": partial(flash_attention, q, k, v, causal=causal)}
            for peer in ("cudnn", "flash", "efficient"):
                calls[f"sdpa_{peer}"] = partial(sdpa, peer, q, k, v, causal)
            calls["triton_first"] = partial(first_attention, q, k, v, causal)
            found += rows(q, causal, measure(calls, hot=True, host=True))
        kind = "causal" if causal else "full"
        title = f"Attention forward, {kind}, 16,384 tokens × 16 heads × {head_dim}, bfloat16"
        yield benchmark(f"attention_d{head_dim}_{kind}", title, found)

    q, k, v = inputs(4, 16, 4096, 128)
    found, out = [], torch.empty_like(q)
    tiles = (64, 64, 4, 2), (64, 128, 4, 2), (128, 128, 8, 2), (128, 64, 4, 1), (128, 64, 4, 3)
    for causal in (False, True):
        launch = partial(_launch, q=q, k=k, v=v, out=out, lse=None, causal=causal, scale=128**-0.5)
        calls = {"triton_first": partial(first_attention, q, k, v, causal)}
        for n, change in enumerate(["descriptors", *CHANGES]):
            calls[f"triton_{change}"] = partial(launch, without(*list(CHANGES)[n:]))
        for tile in tiles:
            calls["triton_" + "_".join(map(str, tile))] = partial(
                launch, flash_attention_kernel, tile=tile
            )
        want = first_attention(q, k, v, causal)
        for call in calls.values():
            out.fill_(float("nan"))
            # each rounds weights and output in its own way
            torch.testing.assert_close(call(), want, atol=2e-3, rtol=2e-2)
        found += rows(q, causal, measure(calls))
    title = "Attention forward, 4 × 16 heads × 4,096 × 128, bfloat16: step by step"
    yield benchmark("attention_ladder", title, found)

    found = []
    lengths = [(n, n) for n in (1024, 1000, 4096, 4097)]
    for seq_len, n_keys in [*lengths, (1024, 4096), (1000, 4097), (4096, 1024), (4097, 1000)]:
        q, _, _ = inputs(round(16384 / seq_len), 16, seq_len, 128)
        _, k, v = inputs(len(q), 16, n_keys, 128)
        for causal in (False, True)[: 1 + (n_keys == seq_len)]:
            found += rows(q, causal, measure({
                "triton": partial(flash_attention, q, k, v, causal=causal),
                "sdpa_cudnn": partial(sdpa, "cudnn", q, k, v, causal),
            }), n_keys)  # fmt: skip
    title = "Attention forward, 16 heads × 128, bfloat16: whole tiles and others"
    yield benchmark("attention_odd", title, found)

    found = []
    for seq_len in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072):
        q, k, v = inputs(1, 8, seq_len, 128)
        found += rows(q, False, measure({
            "triton": partial(flash_attention, q, k, v),
            "torch_unfused": lambda q=q, k=k, v=v: flash_attention_reference(q, k, v)[0],
            "sdpa_math": partial(sdpa, "math", q, k, v, False),
        }, memory=True))  # fmt: skip
    title = "Attention forward, 8 heads × 128, bfloat16: memory beyond the inputs"
    yield benchmark("attention_memory", title, found, ceiling=None)

# %% [markdown]
# {{ figure("attention_memory", providers=["triton", "torch_unfused"], y="peak_bytes", logy=True, caption="Twice the tokens: about four times the memory with the matrix; from 2,048 tokens on, twice without.") }}
#
# {% set ours = row("attention_memory", provider="triton", seq_len=16384) %}
# {% set stored = row("attention_memory", provider="torch_unfused", seq_len=16384) %}
# {% set longest = rows("attention_memory", provider="torch_unfused") | map(attribute="seq_len") | max %}
# {% set far = row("attention_memory", provider="triton", seq_len=131072) %}
# {{ claim(longest < 131072 and ours.peak_bytes < 1.2 * ours.bytes / 4 and stored.ms > 8 * ours.ms) }}{% for r in rows("attention_memory", provider="triton") %}{% if 2048 <= r.seq_len < 131072 %}{{ claim(row("attention_memory", provider="triton", seq_len=2 * r.seq_len).peak_bytes < 2.05 * r.peak_bytes) }}{% endif %}{% endfor %}{% for r in rows("attention_memory", provider="torch_unfused") %}{% if r.seq_len < longest %}{{ claim(row("attention_memory", provider="torch_unfused", seq_len=2 * r.seq_len).peak_bytes > 3.6 * r.peak_bytes) }}{% endif %}{% endfor %}
# At 16,384 tokens the reference needs {{ stored.peak_bytes | bytes }} beyond its inputs and {{ stored.ms | ms }}; the kernel needs {{ ours.peak_bytes | bytes }}, its output, and {{ ours.ms | ms }}. The reference manages {{ "{:,}".format(longest) }} tokens: at twice as many one matrix is {{ (8 * 2 * 131072**2) | bytes }}. ([SDPA](../glossary.md#sdpa)'s *math* backend, PyTorch's own way with the matrix, manages {{ "{:,}".format(rows("attention_memory", provider="sdpa_math") | map(attribute="seq_len") | max) }}.) The kernel needs 8 KiB a token, inputs and output: the card would hold {{ (env.memory_bytes / 8192 / 1e6) | n(0) }} million, {{ (env.memory_bytes / 8192 / longest) | n(0) }} times as many. At the rate of its last point that is {{ (far.ms * (env.memory_bytes / 8192 / far.seq_len) ** 2 / 6e4) | n(0) }} minutes a call: from here on time is the limit.
#
# ## Is it fast?
#
# Sixteen heads, and as many sequences as make 16,384 tokens. Causal attention counts half the operations. Peers are SDPA's backends: [cuDNN](../glossary.md#cudnn), which torch [takes by itself](../why_triton.md#4-a-library-or-cuda-for-what-remains) on this GPU, and *flash*, the library of flash attention 2. The figures show single launches, [cool](../glossary.md#cool-and-hot); dashed lines are a large product of the library, [cuBLAS](../glossary.md#cublas), cool and back to back. The table adds the rate of launches back to back, at the lower clock of long work. Before you look: why will short sequences be slower, and causal ones?
#
# {{ figure("attention_d128_full", providers=["triton", "triton_first", "sdpa_cudnn", "sdpa_flash"], caption="D = 128, full: at every length ahead of flash attention 2, behind cuDNN.") }}
#
# {{ figure("attention_d128_causal", providers=["triton", "triton_first", "sdpa_cudnn", "sdpa_flash"], caption="D = 128, causal: slower than full where sequences are short, as fast at 16,384 tokens; behind cuDNN by less.") }}
#
# {{ figure("attention_d64_full", providers=["triton", "triton_first", "sdpa_cudnn", "sdpa_flash"], caption="D = 64, full: as many exponentials for half the products, so lower rates; level with cuDNN from 4,096 tokens on.") }}{% for n in (4096, 8192, 16384) %}{{ claim(0.985 < row("attention_d64_full", provider="sdpa_cudnn", seq_len=n).ms / row("attention_d64_full", provider="triton", seq_len=n).ms < 1.015) }}{% endfor %}
#
# {{ figure("attention_d64_causal", providers=["triton", "triton_first", "sdpa_cudnn", "sdpa_flash"], caption="D = 64, causal: half the products for the same exponentials; from 4,096 tokens on ahead of cuDNN.") }}
#
# {% for name in ["attention_d128_full", "attention_d128_causal", "attention_d64_full", "attention_d64_causal"] %}
# {% for r in rows(name, provider="triton") %}{% set best = row(name, provider="sdpa_cudnn", seq_len=r.seq_len) %}{% set old = row(name, provider="sdpa_flash", seq_len=r.seq_len) %}{{ claim(1.2 * r.ms < old.ms < 0.75 * row(name, provider="sdpa_efficient", seq_len=r.seq_len).ms and best.ms_hot < 1.03 * r.ms_hot) }}{% if "128" in name %}{{ claim(best.ms < 0.95 * r.ms) }}{% endif %}{% if name == "attention_d64_causal" and r.seq_len >= 4096 %}{{ claim(r.ms < best.ms) }}{% endif %}{% if name == "attention_d64_full" and r.seq_len >= 4096 %}{{ claim(0.96 < r.ms / best.ms < 1.04) }}{% endif %}{% if name == "attention_d128_causal" %}{% set full = row("attention_d128_full", provider="triton", seq_len=r.seq_len) %}{{ claim(0.97 < r.tflops / full.tflops < 1.03 if r.seq_len == 16384 else r.tflops < full.tflops) }}{{ claim(best.ms / r.ms > row("attention_d128_full", provider="sdpa_cudnn", seq_len=r.seq_len).ms / full.ms) }}{% endif %}{% endfor %}
# {% endfor %}{% set short, long = row("attention_d128_full", provider="triton", seq_len=512), row("attention_d128_full", provider="triton", seq_len=16384) %}
# **Short**: a program with few blocks spends more of its time on its start, loading $Q$ and the first keys, and on its end, writing $O$: {{ short.tflops | n(0) }} TFLOP/s at 512 tokens, {{ long.tflops | n(0) }} at 16,384.{{ claim(short.tflops < 0.8 * long.tflops) }} **Causal**: programs are half as long on average, so starts and ends weigh twice as much. And the blocks on the diagonal are computed whole though half is masked: 128 queries visit $N/2 + 64$ keys each on average and see $N/2$. That is a quarter more work than counted at 512 tokens, 3 % at 4,096.
#
# TFLOP/s, cool / back to back, and the share of cuDNN's cool rate:
#
# | | 1,024 tokens | 4,096 tokens | 16,384 tokens |
# |---|---|---|---|
# {% for name, label in [("attention_d128_full", "D = 128, full"), ("attention_d128_causal", "D = 128, causal"), ("attention_d64_full", "D = 64, full"), ("attention_d64_causal", "D = 64, causal")] %}
# | {{ label }} {% for n in [1024, 4096, 16384] %}{% set ours = row(name, provider="triton", seq_len=n) %}{% set best = row(name, provider="sdpa_cudnn", seq_len=n) %}| {{ ours.tflops | n(0) }}&nbsp;/&nbsp;{{ ours.tflops_hot | n(0) }} ({{ (best.ms / ours.ms * 100) | pct }}) {% endfor %}|
# {% endfor %}
#
# Back to back cuDNN is ahead or level everywhere, at $D = 64$ too: {{ row("attention_d64_full", provider="sdpa_cudnn", seq_len=4096).ms_hot | ms }} for full attention of 4,096 tokens, where our kernel takes {{ row("attention_d64_full", provider="triton", seq_len=4096).ms_hot | ms }}. SDPA's third kernel, *efficient*, is slower than *flash* at each of these sizes: {{ row("attention_d128_full", provider="sdpa_efficient", seq_len=4096).tflops | n(0) }} TFLOP/s at 4,096 tokens and $D = 128$, where *flash* has {{ row("attention_d128_full", provider="sdpa_flash", seq_len=4096).tflops | n(0) }}. *math*, which stores the matrix, has {{ row("attention_memory", provider="sdpa_math", seq_len=4096).tflops | n(0) }} there, with eight heads. These figures are of bfloat16; float16 is checked above, and not timed.{{ claim(row("attention_memory", provider="sdpa_math", seq_len=4096).tflops < 0.2 * row("attention_d128_full", provider="sdpa_efficient", seq_len=4096).tflops) }}
#
# ## Where it loses, and why
#
# {% set ours, best = row("attention_d128_full", provider="triton", seq_len=4096), row("attention_d128_full", provider="sdpa_cudnn", seq_len=4096) %}{% set ours64, best64 = row("attention_d64_full", provider="triton", seq_len=4096), row("attention_d64_full", provider="sdpa_cudnn", seq_len=4096) %}
# **cuDNN, at $D = 128$.** It takes {{ (best.ms / ours.ms * 100) | pct }} of this page's time on full attention at 4,096 tokens. A program issues $QK^\top$, waits for it, computes 128 × 64 exponentials, issues $PV$. While it computes them, the tensor cores have work only from the other program on the multiprocessor, and nobody sees to it that the two take turns. {% set seen, theirs = profile("attention_d128_full", provider="triton", seq_len=4096), profile("attention_d128_full", provider="sdpa_cudnn", seq_len=4096) %}NVIDIA's profiler sees the tensor cores busy for {{ seen.tensor | pct }} of the cycles, in cuDNN's kernel for {{ theirs.tensor | pct }}.{{ claim(seen.tensor < 0.85 * theirs.tensor) }} [Flash attention 3](https://arxiv.org/abs/2407.08608) sees to that: one group of warps multiplies while another exponentiates, and each issues its next $QK^\top$ before the softmax of the last. Groups with roles are to be had in `tl`: [the next page](warp_specialization.py) tries them, gains {{ (100 * ours.ms / rec("attention/warp_specialization").row("roles_d128", provider="triton", seq_len=4096).ms - 100) | pct }} on full attention, and says why a kernel that masks does without them. To put a product under a softmax you need a language that says when to wait for it, such as [Gluon](hopper_attention.py), in which it passes cuDNN.{% set gluon = rec("attention/hopper_attention") %}{{ claim(gluon.row("hopper_d128_full", provider="triton", seq_len=4096).ms < 0.97 * gluon.row("hopper_d128_full", provider="sdpa_cudnn", seq_len=4096).ms) }}
#
# {{ profile_source() }}
#
# **[Triton's own tutorial](https://triton-lang.org/main/getting-started/tutorials/06-fused-attention.html)**, measured apart from this recording (2026-11-21, same card and versions), reached 586 TFLOP/s on full attention at $D = 128$ and 4,096 tokens, 633 at 16,384: {{ (100 * 586 / ours.tflops - 100) | n(0) }} % and {{ (100 * 633 / row("attention_d128_full", provider="triton", seq_len=16384).tflops - 100) | n(0) }} % more than this page's kernel{{ claim(586 > ours.tflops and 633 > row("attention_d128_full", provider="triton", seq_len=16384).tflops) }}. Among the launches that it tries are such whose warps have [roles](warp_specialization.py).
#
# **The exponential, at $D = 64$.** A score costs half the products and the same exponential, of which a multiprocessor does [16 a cycle](https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions). So the rate falls, from {{ ours.tflops | n(0) }} to {{ ours64.tflops | n(0) }} TFLOP/s at 4,096 tokens, and cuDNN's falls further, from {{ best.tflops | n(0) }} to {{ best64.tflops | n(0) }}.{{ claim(ours64.tflops < 0.9 * ours.tflops and best64.tflops / best.tflops < 0.95 * ours64.tflops / ours.tflops) }}
#
# **Lengths that are not whole tiles.** A last block that is not full needs the mask, and a last
# tile of one row takes the time of a full one. TFLOP/s, ours and cuDNN's. Causal attention is compared where there are as many queries as keys: elsewhere torch's `is_causal` has another mask, which [puts the first query at the first key](https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.bias.causal_upper_left.html).
#
# | queries × keys | full: ours / cuDNN | causal: ours / cuDNN |
# |---|--:|--:|
# {% for odd in [(1024, 1024), (1000, 1000), (4096, 4096), (4097, 4097), (1024, 4096), (1000, 4097), (4096, 1024), (4097, 1000)] %}
# | {{ "{:,} × {:,}".format(*odd) }} {% for causal in [false, true][:1 if odd[0] != odd[1] else 2] %}| {% for p in ["triton", "sdpa_cudnn"] %}{{ row("attention_odd", provider=p, seq_len=odd[0], n_keys=odd[1], causal=causal).tflops | n(0) }}{{ " / " if loop.first }}{% endfor %} {% endfor %}{{ "| – " if odd[0] != odd[1] }}|
# {% endfor %}
#
# {% for r in rows("attention_odd", provider="triton") %}{% if r.seq_len not in (1024, 4096) %}{% set even = row("attention_odd", provider="triton", seq_len=4096 if r.seq_len > 4000 else 1024, n_keys=4096 if r.n_keys > 4000 else 1024, causal=r.causal) %}{{ claim(0.9 * even.tflops < r.tflops < 0.98 * even.tflops) }}{% if not r.causal %}{{ claim(row("attention_odd", provider="sdpa_cudnn", seq_len=r.seq_len, n_keys=r.n_keys, causal=false).tflops / row("attention_odd", provider="sdpa_cudnn", seq_len=even.seq_len, n_keys=even.n_keys, causal=false).tflops < 0.98 * r.tflops / even.tflops) }}{% endif %}{% endif %}{% endfor %}
# An odd length costs less than a tenth of the rate; cuDNN loses more in full attention.
#
# **Small work waits for the host.** The host spends {{ short.host_us | n(0) }} µs on a call and {{ row("attention_d128_full", provider="triton_first", seq_len=512).host_us | n(0) }} on step 1's: making four descriptors takes time. A kernel of {{ short.ms | ms }} hides it; one sequence of 512 tokens with eight heads is done in {{ row("attention_memory", provider="triton", seq_len=512).ms | time }}. A [CUDA graph](../glossary.md#cuda-graph) helps there. **A single query**, as when a model writes token by token, fills one row of a tile of 128 and makes one program a head: [decoding](flash_decoding.py) splits the keys instead.{{ claim(short.host_us < 1e3 * short.ms and short.host_us > 2 * row("attention_d128_full", provider="triton_first", seq_len=512).host_us and short.host_us > 2e3 * row("attention_memory", provider="triton", seq_len=512).ms) }} **Not yet right**: an `out` that is `k`, `v` or expanded gives wrong numbers, and so does a `scale` beyond 10²⁸ or below 10⁻⁴⁵. Within 128 tokens of 2³¹ rows are lost, and with scores beyond 10⁹ a row can come out as 0 or infinite (*not yet right*).
#
# ## What to remember
#
# 1. What is needed once, right away, need not be stored: memory falls from $O(N^2)$ to $O(N)$, and
#    the kernel turns from memory-bound to compute-bound.
# 2. Sums that depend on a maximum can be mended when it grows. Divide at the end.
# 3. Once the tensor cores set the pace, count what the other units do meanwhile: exponentials,
#    masks and address arithmetic are only free if something else runs beside them.
#
# ## Exercises
#
# ??? question "1. Forget the correction (two minutes)"
#     What comes out of `online_softmax` without `alpha`? Which order of blocks would hide it?
#
#     ??? success "Answer"
#         $12 / 3.5 = 3.43$, not 3. The largest score first: then every later `alpha` is 1.
#
# ??? question "2. A sliding window (thirty minutes)"
#     Let a token see itself and the 255 before it. Which blocks of keys does a tile need, which of
#     them a mask, and how does the time grow with $N$?
#
#     ??? success "Answer"
#         Those from the block of key `stop - BLOCK_M - 255` on: with as many keys as queries at
#         most six of 64 keys for 128 queries, so the time grows with $N$, no longer with $N^2$.
#         The last two and, where `start_n < stop - 256`, the first two need the mask. With
#         `ahead = keys - offs_m[:, None] - (stop - BLOCK_M)` it is `(ahead <= 0) & (ahead > -256)`.
#         Some rows see nothing of their first block, and are right because `row_max` is finite.
#
# ??? question "3. Merge two halves (an hour)"
#     Run full attention on each half of the keys, with `return_lse=True`, and combine the outputs.
#
#     ??? success "Answer"
#         A half counts by its share of the sum of exponentials: with
#         `w = torch.sigmoid(lse1 - lse2)[..., None]` the whole is `w * out1 + (1 - w) * out2`.
#         [Decoding with a long cache](flash_decoding.py) splits its keys so.
#
# ??? question "4. More queries than keys (five minutes)"
#     Three queries, one key, causal: what comes out, and what is the log-sum-exp?
#
#     ??? success "Answer"
#         0, 0 and the key's value, since the last query stands at the last key, the others before
#         it; $-\infty$ twice, then the score.
#
# ## Use it in your project
#
# The file, or the block "Copy this kernel", needs torch and triton alone:
#
# ```python
# from flash_attention import flash_attention
#
# # (B, H, S, D), float16 or bfloat16, any S, D a multiple of 8 up to 256
# out = flash_attention(q, k, v, causal=True)
# ```
#
# See [`flash_attention`][examples.attention.flash_attention.flash_attention]. It is forward only;
# a [later page](flash_attention_backward.py) adds the gradient. Where cuDNN is faster, on this GPU always at $D = 128$, take `scaled_dot_product_attention` or, without a gradient, the kernel [in Gluon](hopper_attention.py#use-it-in-your-project); take this kernel to change it, as [another page](gqa_varlen.py) does.
