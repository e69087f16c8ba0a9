# %% [markdown]
# ---
# title: Softmax
# description: A softmax at the speed of a copy, for rows of any width, with its gradient.
# tags: [reduction, memory-bound, autograd]
# prerequisites: [foundations/programming_model]
# outcome: Write a fused row-wise kernel and keep it at the memory's speed at every width.
# ---
#
# # Softmax: one read, one write
#
# A softmax turns a row of numbers into weights that sum to one. Attention does it to every row of
# scores, a classifier to every row of logits:
#
# $$
# y_i = \frac{e^{x_i - m}}{\sum_{j=1}^{n} e^{x_j - m}}, \qquad m = \max_j x_j .
# $$
#
# Subtracting the maximum changes nothing on paper, since $e^{-m}$ cancels. On a machine it is what
# keeps $e^{x}$ finite: `exp(89)` is infinity in float32 already, `exp(12)` in float16.
#
# Every output depends on every input of its row, twice over: once through the maximum, once
# through the sum. So each number is needed three times. **How close can such an operation come to
# a plain copy, which needs each number once?**
#
# ## What it costs
#
# Written with PyTorch's operations, a softmax of $M$ rows and $N$ columns is five kernels. Each
# reads its inputs from main memory ([HBM](../glossary.md#hbm)) and writes its result back:
#
# | operation | elements read | elements written |
# |---|---|---|
# | `m = x.amax(-1)` | $MN$ | $M$ |
# | `d = x - m` | $MN + M$ | $MN$ |
# | `e = d.exp()` | $MN$ | $MN$ |
# | `s = e.sum(-1)` | $MN$ | $M$ |
# | `y = e / s` | $MN + M$ | $MN$ |
# | **together** | $5MN + 2M$ | $3MN + 2M$ |
# | **one fused kernel** | $MN$ | $MN$ |
#
# Eight trips through memory become two. That is [fusion](../glossary.md#fusion): one kernel reads
# a row, does all five steps while it is on the chip, and writes the result.
#
# {{ diagram("softmax_traffic") }}
#
# The arithmetic is small: about five operations an element, against 4 bytes moved in bfloat16. In
# the time of a copy the chip could issue some {{ (rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16).tflops * 1e9 / 2 * copy_ms(2**31) / 2**29) | n(0) }} instructions for each. Its [arithmetic
# intensity](../glossary.md#arithmetic-intensity) puts a softmax deep in the memory-bound region of
# the [roofline](../foundations/memory_hierarchy.py), and one number says how good a kernel is: its
# time beside that of a **copy of the same bytes**. On the {{ env.gpu }} of this page, copying a
# 4096 × 4096 matrix of float32 ({{ 134217728 | bytes }} moved) takes
# {{ copy_ms(134217728) | ms }}. That is the [floor](../glossary.md#floor).

# %% tags=["copy"]
import torch
import triton
import triton.language as tl

# %% [markdown]
# The specification is those five operations; it is also the slowest rival in the benchmark below.

# %%
def softmax_reference(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, in plain PyTorch and in the precision of `x`."""
    row_max = x.amax(dim=-1, keepdim=True)
    e = (x - row_max).exp()
    return e / e.sum(dim=-1, keepdim=True)

# %% [markdown]
# ## Step 1: one row a program
#
# A [program](../glossary.md#program) of the [grid](../glossary.md#grid) takes one row. It loads the
# row as one [block](../glossary.md#block), and from there on everything is a value in
# [registers](../glossary.md#register): the maximum, the exponentials, their sum. Only the answer is
# written.
#
# A block's length is a power of two, a row's seldom is. The [mask](../glossary.md#mask) keeps the
# lanes past the end from touching memory, and `other` says what they hold instead. It has to be a
# number that changes neither the maximum nor the sum: $-\infty$ does, because $e^{-\infty} = 0$.

# %%
@triton.jit
def softmax_row_kernel(x_ptr, y_ptr, stride_xm, stride_ym, n_cols, BLOCK: tl.constexpr):
    """Softmax of one row a program, in registers; `BLOCK` is at least `n_cols`."""
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < n_cols
    x = tl.load(x_ptr + row * stride_xm + cols, mask=mask, other=-float("inf"))
    # float32 from here on, whatever the tensor holds
    x = x.to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(y_ptr + row * stride_ym + cols, e / tl.sum(e, axis=0), mask=mask)

# %% [markdown]
# The strides say how far apart rows lie, so a slice such as `x[:, :5]` needs no copy. The sums
# show that no lane past the end took part.

# %%
if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(32.0, device=device).view(4, 8)[:, :5]
    y = torch.empty(4, 5, device=device)
    softmax_row_kernel[(4,)](x, y, x.stride(0), y.stride(0), 5, BLOCK=8)
    print(y.cpu())
    print("sums", y.sum(dim=1).tolist())

# %% [markdown]
# Two things are wrong with its speed. Every row gets four [warps](../glossary.md#warp), 128 threads. In a row of 1,024 bfloat16 numbers each has 16 bytes to ask for, too little in flight to keep the memory busy: such a row needs fewer threads, and still shorter rows should share a program, as a tile `[ROWS, BLOCK]`. A row of 32,768 is 256 numbers a thread, more than its 255 registers, so they [spill](../glossary.md#spill) to memory: it needs more threads. The last kernel here sees to both.
#
# ## Step 2: load the next row while this one is reduced?
#
# With 16 warps a row of 32,768 takes so many registers of a [streaming multiprocessor](../glossary.md#sm) that only one program fits. While it reduces and writes, it loads nothing. The cure in the books is a *persistent* kernel: one program a multiprocessor, walking down the rows in strides of the grid, which asks for its next row before it works on this one. `num_stages` makes the compiler do that, through [shared memory](../glossary.md#shared-memory). How much will it gain?

# %%
@triton.jit
def softmax_persistent_kernel(
    x_ptr, y_ptr, stride_xm, stride_ym, n_rows, n_cols, BLOCK: tl.constexpr
):
    """Softmax of every `num_programs`-th row, with the next two on their way."""
    cols = tl.arange(0, BLOCK)
    mask = cols < n_cols
    for row in tl.range(tl.program_id(0), n_rows, tl.num_programs(0), num_stages=3):
        row = tl.cast(row, tl.int64)
        x = tl.load(x_ptr + row * stride_xm + cols, mask=mask, other=-float("inf"))
        e = tl.exp(x.to(tl.float32) - tl.max(x.to(tl.float32), axis=0))
        tl.store(y_ptr + row * stride_ym + cols, e / tl.sum(e, axis=0), mask=mask)

# %% [markdown]
# ## Step 3: rows longer than a block
#
# Take a long row block by block, and the maximum is unknown until the last block, though every
# exponential needs it. The way out is to sum with the maximum *so far*, and to mend the sum
# whenever a larger one turns up. After a block $B$ that raises the maximum from $m$ to $m'$,
#
# $$
# s' = s \, e^{m - m'} + \sum_{j \in B} e^{x_j - m'},
# $$
#
# for every term of $s$ was $e^{x_j - m}$ and should be $e^{x_j - m'}$. This is [online softmax](../glossary.md#online-softmax) ([Milakov and Gimelshein, 2018](https://arxiv.org/abs/1805.02867)); [flash attention](../attention/flash_attention.py) rests on it.
#
# {{ diagram("softmax_online") }}
#
# {{ picture("online_softmax") }}
#
# With $m$ and $s$ known a second pass writes the outputs, and has to read the row again. Is that a third trip through memory? Not where the row is still near: the first pass left it in the [L2](../glossary.md#l2) cache, and its end in the L1 cache of this very multiprocessor. So the second pass **begins with the last block**. The [eviction policies](../glossary.md#eviction-policy) tell the caches the same: keep what the first pass reads, drop what the second is done with.
#
# The running maximum starts at a very low *finite* number. From $-\infty$, a first block of
# nothing but $-\infty$, as masks in attention produce, gives $-\infty - (-\infty)$, which is NaN
# and ruins a row that later blocks would have saved. A row of nothing but $-\infty$ still comes
# out as NaN, as in PyTorch.

# %% tags=["copy"]
LOG2E = tl.constexpr(1.4426950408889634)
# no maximum is below the lowest finite number
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def softmax_online_kernel(x_ptr, y_ptr, stride_xm, stride_ym, n_cols, BLOCK: tl.constexpr):
    """Softmax of one long row a program, `BLOCK` columns at a time, in two passes."""
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    x_ptr += tl.program_id(0).to(tl.int64) * stride_xm
    y_ptr += tl.program_id(0).to(tl.int64) * stride_ym
    row_max = LOWEST
    row_sum = 0.0
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        x = tl.load(x_ptr + cols, mask=mask, other=-float("inf"), eviction_policy="evict_last")
        x = x.to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x, axis=0))
        row_sum *= tl.exp2((row_max - new_max) * LOG2E)
        row_sum += tl.sum(tl.exp2((x - new_max) * LOG2E), axis=0)
        row_max = new_max
    scale = 1.0 / row_sum
    # the last block first: it is the likeliest to be in a cache still
    last = (n_cols - 1) // BLOCK * BLOCK
    for start in range(0, n_cols, BLOCK):
        cols = last - start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        x = tl.load(x_ptr + cols, mask=mask, eviction_policy="evict_first").to(tl.float32)
        tl.store(y_ptr + cols, tl.exp2((x - row_max) * LOG2E) * scale, mask=mask)

# %% [markdown]
# ## Step 4: keep the row on the chip
#
# Where the [caches](../glossary.md#l2) no longer hold the rows in work, the second pass goes to memory. Four changes do away with that pass, and with what else stands between this kernel and a copy.
#
# **Count instructions.** bfloat16 halves the bytes, not the arithmetic, and at the speed of a copy there is time for some {{ (rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16).tflops * 1e9 / 2 * copy_ms(2**31) / 2**29) | n(0) }} instructions an element. `tl.exp` takes five, because it keeps tiny results. `tl.exp2` is one and flushes results below 10⁻³⁸ to zero; with $e^{x - m} = 2^{(x - m) \log_2 e}$ it serves, as in the online kernel. And divide once a row.
#
# **Hold the row as it came.** As float32 a row takes twice the [registers](../glossary.md#register) of bfloat16. Held as it came, it leaves room for more programs on the multiprocessor, and some load while others compute. The price is to convert, and to take the exponential, twice. The compiler would rather keep the results, so `_hold` passes the row through a line of assembly that hides that it is the same.
#
# **Whole vectors at any width.** A thread [moves up to 16 bytes at once](../glossary.md#vector-load), if they begin at a multiple of 16. In a matrix of 1,823 columns most rows do not, and the compiler falls back to single elements for all. So the kernel splits a row: whole vectors from the first boundary on, the *body*, and the few elements before and after them, the *edge*, as a small block of their own.
#
# **Share a long row.** The mending rule does not care whether two partial sums come from one program in turn or from two at a time. So several programs take a part of a row each, hold it, publish its maximum and sum, wait for the others' and write. Waiting is safe if programs start in the order of their numbers, and all parts of a row fit on the GPU at once. NVIDIA's GPUs start them so (the scans of its library CUB rely on it), though CUDA does not promise it. Then every program before the one that waits runs or is done, and the rest of its row starts next. ([LayerNorm](layer_norm.py#backward-what-it-has-to-compute) does without that promise: there programs are numbered as they start.)

# %% tags=["copy"]
@triton.jit
def _hold(x, HOLD: tl.constexpr):
    # the same bits, but the compiler cannot know: what follows from them is computed again
    if HOLD:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    return x


@triton.jit
def _meet(pairs_ptr, part, row_max, row_sum, PARTS: tl.constexpr, WAIT: tl.constexpr):
    # both in one 64-bit word, so that no one sees one without the other; 0 says: not yet there
    low = row_sum.to(tl.uint32, bitcast=True).to(tl.uint64)
    pair = (row_max.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low
    tl.atomic_xchg(pairs_ptr + part, pair.to(tl.int64, bitcast=True), sem="relaxed")
    parts = tl.arange(0, triton.next_power_of_2(PARTS))[None, :]  # [1, PARTS]
    pairs = tl.load(pairs_ptr + parts, mask=parts < PARTS, other=1, volatile=True)
    while WAIT and tl.min((pairs != 0).to(tl.int32)) == 0:
        pairs = tl.load(pairs_ptr + parts, mask=parts < PARTS, other=1, volatile=True)
    pairs = pairs.to(tl.uint64, bitcast=True)
    maxima = (pairs >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    sums = (pairs & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    row_max = tl.max(tl.where(parts < PARTS, maxima, LOWEST), axis=1)  # [1]
    sums *= tl.exp2((maxima - row_max[:, None]) * LOG2E)
    return row_max, tl.sum(tl.where(parts < PARTS, sums, 0.0), axis=1)


@triton.jit
def softmax_kernel(
    x_ptr, y_ptr, pairs_ptr, stride_xm, stride_ym, n_rows, n_cols,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    VECTOR: tl.constexpr, HOLD: tl.constexpr, WAIT: tl.constexpr):  # fmt: skip
    """Softmax of `ROWS` rows a program, or of one row by `PARTS` programs; nothing is read twice.

    `PARTS * BLOCK` is at least `n_cols`. `pairs_ptr` has a zero for every part of every row, where
    programs meet. `VECTOR` elements fill 16 bytes; it is 1 where rows of x and y lie differently.
    """
    part = tl.program_id(0) % PARTS
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    rows = (tl.program_id(0) // PARTS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    x_begin, y_begin = rows * stride_xm, rows * stride_ym  # [ROWS, 1]
    # head elements lie before the first 16-byte boundary, body elements make whole vectors
    x_first = (x_begin + VECTOR - 1) // VECTOR * VECTOR
    head = (x_first - x_begin).to(tl.int32)
    y_first = (y_begin + head) // VECTOR * VECTOR
    body = (n_cols - head) // VECTOR * VECTOR
    cols = part * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    mask = (rows < n_rows) & (cols < body)
    lane = tl.arange(0, 2 * VECTOR)[None, :]
    edge = tl.where(lane < VECTOR, lane, lane - VECTOR + head + body)  # [ROWS, 2 * VECTOR]
    in_edge = tl.where(lane < VECTOR, lane < head, edge < n_cols) & (rows < n_rows) & (part == 0)
    # -inf, so that masked lanes add exp(-inf) = 0 to the sum
    x = tl.load(x_ptr + x_first + cols, mask=mask, other=-float("inf"))
    x_edge = tl.load(x_ptr + x_begin + edge, mask=in_edge, other=-float("inf")).to(tl.float32)
    row_max = tl.maximum(tl.max(x.to(tl.float32), axis=1), tl.max(x_edge, axis=1))
    row_max = tl.maximum(row_max, LOWEST)[:, None]
    x = _hold(x, HOLD)
    e = tl.exp2((x.to(tl.float32) - row_max) * LOG2E)
    e_edge = tl.exp2((x_edge - row_max) * LOG2E)
    row_sum = (tl.sum(e, axis=1) + tl.sum(e_edge, axis=1))[:, None]
    if PARTS > 1:
        row_max, row_sum = _meet(pairs_ptr + rows * PARTS, part, row_max, row_sum, PARTS, WAIT)
        row_max, row_sum = row_max[:, None], row_sum[:, None]
    # one division a row, not one an element
    scale = 1.0 / row_sum
    x = _hold(x, HOLD)
    y = tl.exp2((x.to(tl.float32) - row_max) * LOG2E) * scale
    tl.store(y_ptr + y_first + cols, y, mask=mask)
    y_edge = tl.exp2((x_edge - row_max) * LOG2E) * scale
    tl.store(y_ptr + y_begin + edge, y_edge, mask=in_edge)

# %% [markdown]
# ## Launch
#
# A program holds up to 32 KiB of a row in the [registers](../glossary.md#register) of 128 threads: 64 a thread, and as many to work with (`maxnreg`), so that four programs fit a multiprocessor. Several share a longer row, a short one gets fewer threads. These limits were found by trying other values on this page's GPU.
#
# Triton's [interpreter](../glossary.md#interpreter) runs programs one after the other; waiting for a later one would last forever. There the kernel runs twice without waiting: the second time every pair is in its place.

# %% tags=["copy"]
def softmax_forward(x: torch.Tensor, y: torch.Tensor) -> None:
    """Writes the softmax of every row to `y`.

    Args:
        x: `[n_rows, n_cols]`, columns adjacent.
        y: Likewise.
    """
    n_rows, n_cols = x.shape
    strides, size = (x.stride(0), y.stride(0)), x.element_size()
    cached = size == 2 and n_cols in (16384, 32768)  # the second pass finds a row in the L1 cache
    if cached or n_cols > 2**18:
        warps = 8 if cached else 16
        softmax_online_kernel[(n_rows,)](x, y, *strides, n_cols, BLOCK=16384, num_warps=warps)
        return
    block = min(triton.next_power_of_2(n_cols), 32768 // size)
    parts = triton.cdiv(n_cols, block)
    if parts > 1 and parts * block > 1.125 * n_cols:  # the last part would be mostly empty
        block //= 2
        parts = triton.cdiv(n_cols, block)
    pairs = torch.zeros(n_rows, parts, dtype=torch.int64, device=x.device) if parts > 1 else None
    rows = 1 if block >= 1024 else max(4, 1024 // block)
    # vectors of x and of y have to begin at the same columns, and pay at some length only
    alike = (strides[0] - strides[1]) * size % 16 == 0
    wide, interpreted = n_cols * size > 16384, triton.knobs.runtime.interpret
    # 8,192 float32 numbers do better spread over 512 threads than packed into 128
    spread = wide and parts == 1 and size == 4
    num_warps = 16 if spread else 2 if block <= 2048 else 4
    for _ in range(2 if interpreted and parts > 1 else 1):
        softmax_kernel[(triton.cdiv(n_rows, rows) * parts,)](
            x, y, pairs, *strides, n_rows, n_cols, ROWS=rows, BLOCK=block, PARTS=parts,
            VECTOR=16 // size if alike and block > 64 else 1, WAIT=not interpreted,
            HOLD=wide and size == 2 and not interpreted, num_warps=num_warps,
            maxnreg=block * size // 256 if wide and not spread else None)  # fmt: skip

# %% [markdown]
# ## Backward: the gradient of a softmax { #backward }
#
# Training needs the gradient. From $y_i = e^{x_i} / \sum_j e^{x_j}$ follows
# $\partial y_i / \partial x_j = y_i (\delta_{ij} - y_j)$, and with the gradient $dy$ that arrives
# from above
#
# $$
# dx_i = y_i \Bigl( dy_i - \sum_j y_j \, dy_j \Bigr).
# $$
#
# The input is gone from the formula: keeping $y$ is enough. Two reads and one write an element, so the floor is a copy of 1.5 times the bytes. The kernel is built as the [forward's](#step-4-keep-the-row-on-the-chip): whole vectors and an edge, numbers held as they came, programs that share a long row. **What must these exchange?**
#
# One number, their part of $\sum_j y_j \, dy_j$. It may be 0, which says "not yet there". So `_meet` gets it as the sum, beside a maximum of 1: maxima are alike, sums add up as they are, and no pair is 0. A program's part is 16 KiB of $y$ and as much of $dy$. All parts of a row must run at once, so there are 32 at most; in a row of more than 2¹⁸ 16-bit numbers a part is several blocks (`LONG`), and the program walks along them twice, but keeps the last in [registers](../glossary.md#register).

# %% tags=["copy"]
@triton.jit
def softmax_bwd_kernel(
    y_ptr, dy_ptr, dx_ptr, pairs_ptr, stride_ym, stride_dym, stride_dxm, n_rows, n_cols, span,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, LONG: tl.constexpr,
    VECTOR: tl.constexpr, HOLD: tl.constexpr, WAIT: tl.constexpr):  # fmt: skip
    """Gradient of `ROWS` rows a program, or of one row by `PARTS` programs of `span` columns each.

    `LONG` says that a span is more than one block. What else it takes, `softmax_kernel` takes too.
    """
    part = tl.program_id(0) % PARTS
    rows = (tl.program_id(0) // PARTS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    # as in softmax_kernel, but the edge is counted from the boundary
    y_begin = rows * stride_ym
    head = ((y_begin + VECTOR - 1) // VECTOR * VECTOR - y_begin).to(tl.int32)  # [ROWS, 1]
    body = (n_cols - head) // VECTOR * VECTOR
    lane = tl.arange(0, 2 * VECTOR)[None, :]
    edge = tl.where(lane < VECTOR, lane - head, lane - VECTOR + body)  # [ROWS, 2 * VECTOR]
    in_edge = tl.where(lane < VECTOR, lane < head, head + edge < n_cols)
    y_ptrs = y_ptr + (y_begin + head) // VECTOR * VECTOR
    dy_ptrs = dy_ptr + (rows * stride_dym + head) // VECTOR * VECTOR
    dx_ptrs = dx_ptr + (rows * stride_dxm + head) // VECTOR * VECTOR
    first = part * (span if LONG else BLOCK)
    last = first
    if LONG:
        last += tl.maximum(tl.minimum(span, tl.max(body) - first) - 1, 0) // BLOCK * BLOCK
    cols = last + tl.arange(0, BLOCK)[None, :]
    mask = (rows < n_rows) & (cols < body)
    in_edge &= (rows < n_rows) & (part == 0)
    # 0, so that masked lanes add nothing to the dot product
    y = tl.load(y_ptrs + cols, mask=mask, other=0.0)
    dy = tl.load(dy_ptrs + cols, mask=mask, other=0.0)
    y_edge = tl.load(y_ptrs + edge, mask=in_edge, other=0.0).to(tl.float32)
    dy_edge = tl.load(dy_ptrs + edge, mask=in_edge, other=0.0).to(tl.float32)
    dot = tl.sum(y.to(tl.float32) * dy.to(tl.float32), axis=1) + tl.sum(y_edge * dy_edge, axis=1)
    dot = dot[:, None]
    if LONG:
        for start in range(first, last, BLOCK):
            before = start + tl.arange(0, BLOCK)[None, :]
            y_before = tl.load(y_ptrs + before, eviction_policy="evict_last").to(tl.float32)
            dy_before = tl.load(dy_ptrs + before, eviction_policy="evict_last").to(tl.float32)
            dot += tl.sum(y_before * dy_before, axis=1)[:, None]
    if PARTS > 1:
        # equal maxima, not 0: the sums add up as they are, and no pair says "not yet there"
        one = tl.full([ROWS, 1], 1.0, tl.float32)
        dot = _meet(pairs_ptr + rows * PARTS, part, one, dot, PARTS, WAIT)[1][:, None]
    y, dy = _hold(y, HOLD).to(tl.float32), _hold(dy, HOLD).to(tl.float32)
    tl.store(dx_ptrs + cols, y * (dy - dot), mask=mask)
    tl.store(dx_ptrs + edge, y_edge * (dy_edge - dot), mask=in_edge)
    if LONG:
        for start in range(BLOCK, last - first + BLOCK, BLOCK):
            before = last - start + tl.arange(0, BLOCK)[None, :]
            y_before = tl.load(y_ptrs + before, eviction_policy="evict_first").to(tl.float32)
            dy_before = tl.load(dy_ptrs + before, eviction_policy="evict_first").to(tl.float32)
            tl.store(dx_ptrs + before, y_before * (dy_before - dot))


def softmax_backward(y: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> None:
    """Writes the gradient of the input to `dx`.

    Args:
        y: What `softmax_forward` wrote, `[n_rows, n_cols]`, columns adjacent.
        dy: Gradient of the output, likewise.
        dx: Likewise.
    """
    (n_rows, n_cols), size = y.shape, y.element_size()
    strides = y.stride(0), dy.stride(0), dx.stride(0)
    row_bytes = n_cols * size
    block = triton.next_power_of_2(n_cols) if row_bytes <= 32768 else 16384 // size
    if triton.cdiv(n_cols, block) * block > max(block, 1.125 * n_cols):
        block //= 2
    # programs that wait for each other must all be running; a longer row has longer parts
    span = triton.cdiv(n_cols, 32 * block) * block
    parts, rows = triton.cdiv(n_cols, span), max(1, 2048 // block)
    pairs = torch.zeros(n_rows, parts, dtype=torch.int64, device=y.device) if parts > 1 else None
    alike = all((stride - strides[0]) * size % 16 == 0 for stride in strides)
    wide, interpreted = row_bytes > 8192, triton.knobs.runtime.interpret
    least = 2 if parts > 1 or block <= 2048 else 4
    for _ in range(2 if interpreted and parts > 1 else 1):
        softmax_bwd_kernel[(triton.cdiv(n_rows, rows) * parts,)](
            y, dy, dx, pairs, *strides, n_rows, n_cols, span, ROWS=rows, BLOCK=block, PARTS=parts,
            LONG=span > block, VECTOR=16 // size if alike and block > 64 else 1,
            HOLD=wide and size == 2 and not interpreted, WAIT=not interpreted,
            num_warps=max(least, block * size // 4096), maxnreg=128 if wide else None)  # fmt: skip

# %% [markdown]
# `torch.autograd.Function` ties the two together. Leading dimensions are folded into rows; a
# tensor whose last dimension is not adjacent in memory, such as a transposed one, is copied first.

# %% tags=["copy"]
def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[n_rows, n_cols]` with adjacent columns: a view where there is one, else a copy."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.numel():
            softmax_forward(_rows(x), _rows(y))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        dx = torch.empty_like(y)
        if y.numel():
            softmax_backward(_rows(y), _rows(dy), _rows(dx))
        return dx


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, differentiable once.

    Computes in float32 whatever the dtype. A row of nothing but -inf gives NaN, as in PyTorch.

    Args:
        x: `(..., n_cols)`, float32, float16 or bfloat16, on a GPU, with up to 2**30 columns.
            Rows may lie any distance apart; columns that are not adjacent are copied first.

    Returns:
        A contiguous tensor of the same shape and dtype; its rows sum to one.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: `x` is not on a GPU, has no dimension, or too many columns.
    """
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"softmax takes float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError("softmax needs at least one dimension, got a scalar")
    if x.shape[-1] > 2**30:
        raise ValueError(f"softmax takes rows of up to 2**30 columns, got {x.shape[-1]}")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        hint = "TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"softmax needs a tensor on a GPU, got {x.device}; {hint}")
    with torch.cuda.device_of(x):  # Triton launches on the current GPU; autograd sees to backward
        return _Softmax.apply(x)

# %% [markdown]
# ## Is it right?
#
# `check` compares outputs and gradients with float64 at awkward widths. The first row lies at +100, where a softmax without its maximum overflows; half of the last one is $-\infty$. Inputs are slices of wider matrices, outputs lie in a [frame of NaN](../glossary.md#poison-and-guard): a wrong stride, an element left out and a write past the edge all show. Printed is the largest error in percent of the allowed one, which is the rounding of the output's type, or 10⁻⁵ for float32.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares softmax and its gradient with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    # through autograd, three dimensions, the last not adjacent
    x = torch.randn(50, 32, device=device).t()[None].requires_grad_()
    dy = torch.randn(1, 32, 50, device=device)
    (got,) = torch.autograd.grad(softmax(x), x, dy)
    (want,) = torch.autograd.grad(softmax_reference(x), x, dy)
    torch.testing.assert_close(got, want)
    assert softmax(torch.full((32, 40), -float("inf"), device=device)).isnan().all()

    def worst(launch, inputs, want, scale, rtol):
        # above 1 where the result is off, NaN where one is missing or stands outside
        size = n_rows + 4 + 2048 // n_cols, n_cols + 11
        frame = torch.full(size, float("nan"), device=device).to(x.dtype)
        launch(*inputs, frame[:n_rows, :n_cols])
        got = frame[:n_rows, :n_cols]
        error = (got.double() - want).abs() / (rtol * scale + 1e-7)  # float16 ends at 1e-7
        strays = frame.numel() - got.numel() - frame.isnan().sum().item()
        return got, float("nan") if strays else error.max().item()

    rtols = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    shapes = [(1, 1), (67, 129), (5, 512), (3, 1823), (2, 32768), (3, 50257), (2, 2**18 + 1)]
    if device == "cuda":
        shapes += [(4096, 4096), (1000, 16384), (300, 131072)]
    print("error / allowed     " + "".join(f"{str(dtype)[6:]:>20}" for dtype in rtols))
    print(f"{'rows x columns':>20}" + f"{'forward':>11}{'gradient':>9}" * len(rtols))
    for n_rows, n_cols in shapes:
        line = f"{n_rows:>9} x {n_cols:<8}"
        for dtype, rtol in rtols.items():
            x, dy = torch.randn(2, n_rows, n_cols + 3, device=device).to(dtype)[..., :n_cols]
            x[0] += 100
            x[-1, : n_cols // 2] = -float("inf")
            want = softmax_reference(x.double())
            y, forward = worst(softmax_forward, (x,), want, want, rtol)
            y64, dy64 = y.double(), dy.double()
            want = y64 * (dy64 - (y64 * dy64).sum(dim=-1, keepdim=True))
            _, backward = worst(softmax_backward, (y, dy), want, want.abs() + y64, rtol)
            line += f"{forward:>11.0%}{backward:>9.0%}"
            assert forward <= 1 and backward <= 1, f"{dtype} is off:\n{line}"
        print(line)

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Before you look: a copy reads and writes each element once, and so does this kernel. Where will
# it come closest to the copy, where fall behind first: at narrow rows, at rows that barely fit, at
# the longest, or at odd widths? Every width has 2²⁹ elements, so all move the same 2 GiB.

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from functools import partial

    bf16, fp32 = torch.bfloat16, torch.float32

    def torch_softmax(x):
        return torch.softmax(x, dim=-1)

    def grad(fn, x, dy):
        return torch.autograd.grad(fn(x), x, dy)

    def run(kernel, x, programs, *sizes, **options):
        y = torch.empty_like(x)
        kernel[(programs,)](x, y, x.stride(0), y.stride(0), *sizes, x.shape[1], **options)
        return y

    def one_row(x):
        return run(softmax_row_kernel, x, len(x), BLOCK=triton.next_power_of_2(x.shape[1]))

    def persistent(x):
        options = {"BLOCK": triton.next_power_of_2(x.shape[1]), "num_warps": 16}
        sms = torch.cuda.get_device_properties(x.device).multi_processor_count
        return run(softmax_persistent_kernel, x, sms, len(x), **options)

    def two_passes(x):
        return run(softmax_online_kernel, x, len(x), BLOCK=16384, num_warps=8)

    def rungs(n_cols):
        steps = {"torch_unfused": softmax_reference}
        steps |= {"triton_one_row": one_row} if n_cols <= 32768 else {}
        steps |= {"triton_persistent": persistent} if 4096 <= n_cols <= 32768 else {}
        return steps | ({"triton_two_passes": two_passes} if n_cols >= 8192 else {})

    def benchmark(name, title, dtype, shapes, gradient=False, more=lambda n_cols: {}):
        # x in, y out; for the gradient y and dy in, dx out
        trips, work = (5, 9) if gradient else (2, 5)
        rows = []
        for n_rows, n_cols in shapes:
            torch._dynamo.reset()  # after eight shapes of a function torch no longer compiles it
            compiler = {"mode": "max-autotune-no-cudagraphs", "dynamic": False}
            compiled = torch.compile(torch_softmax, **compiler)
            fns = {"triton": softmax, "torch": torch_softmax, "torch_compile": compiled}
            x, dy = torch.randn(2, n_rows, n_cols, device="cuda").to(dtype)
            x.requires_grad_(gradient)
            fns |= more(n_cols)
            both = partial(grad, x=x, dy=dy) if gradient else lambda fn, x=x: fn(x)
            calls = {p: partial(both, fn) for p, fn in fns.items()}
            size = {"n_rows": n_rows, "n_cols": n_cols}
            size |= {"bytes": trips * x.numel() * x.element_size(), "flops": work * x.numel()}
            rows += [{"provider": p, **size, **timing} for p, timing in measure(calls).items()]
        mode = "forward and backward" if gradient else "forward"
        about = {"x": "n_cols", "dtype": str(dtype)[6:], "mode": mode, "ceiling": "copy"}
        return {"name": name, "title": f"Softmax {mode}, {title}", **about, "rows": rows}

    widths = (1024, 1823, 2048, 4096, 8192, 16384, 32768, 50257, 65536, 131072)
    shapes, title = [(2**29 // n, n) for n in widths], "2²⁹ bfloat16 elements"
    yield benchmark("softmax_forward", title, bf16, shapes, more=rungs)
    some = [shapes[i] for i in (0, 1, 3, 6, 7, 9)]
    yield benchmark("softmax_gradient", title, bf16, some, gradient=True)
    shapes = [(2**28 // n, n) for n in widths]
    yield benchmark("softmax_forward_fp32", "2²⁸ float32 elements", fp32, shapes)
    for n, dtype, suffix in ((4096, fp32, ""), (8192, bf16, "_bf16")):
        square = f"{n} × {n} {str(dtype)[6:]}", dtype, [(n, n)]
        yield benchmark(f"softmax_square{suffix}", *square, more=rungs)
        yield benchmark(f"softmax_gradient_square{suffix}", *square, gradient=True)

# %% [markdown]
# {{ figure("softmax_forward", providers=["triton", "torch", "torch_compile"],
#    caption="From 1,024 to 131,072 columns the fused kernel stays within a tenth of a copy.") }}
# {% set fp32 = rows("softmax_forward_fp32", provider="triton") -%}
# {% for r in rows("softmax_forward", provider="triton") + fp32 -%}
# {{ claim(r.percent >= 90) }}
# {%- for p, ratio in r.benchmark.peers(r) if p[:5] == "torch" %}{{ claim(ratio >= 0.98) }}{% endfor %}
# {%- endfor %}
#
# {% for name, n in [("square", 4096), ("square_bf16", 8192), ("forward", 32768)] -%}
# {% set name = "softmax_" ~ name -%}
# {% set ours = row(name, provider="triton", n_cols=n) -%}
# - {{ ours.n_rows }} × {{ n }} {{ ours.benchmark.dtype }}: {{ ours.ms | ms }},
#   {{ ours.percent | pct }} of a copy's speed; torch
#   {{ row(name, provider="torch", n_cols=n).ms | ms }}, torch.compile
#   {{ row(name, provider="torch_compile", n_cols=n).ms | ms }} {{- claim(ours.percent >= 97) }}
# {% endfor %}
#
# {% set five, one = row("softmax_square", provider="torch_unfused", n_cols=4096), row("softmax_square", provider="triton", n_cols=4096) %}{% set wide, wide_one = row("softmax_square_bf16", provider="torch_unfused", n_cols=8192), row("softmax_square_bf16", provider="triton", n_cols=8192) %}**Eight trips to two** promised a factor of four. The five operations take {{ five.ms | ms }} for 4096 × 4096 float32, {{ (five.ms / one.ms) | times }} the time of one kernel, and {{ (wide.ms / wide_one.ms) | times }} at 8192 × 8192 bfloat16. A [copy](../glossary.md#ceiling) of as many bytes takes {{ copy_ms(8 * 4 * 4096**2) | ms }} of the {{ five.ms | ms }}; the five kernels do not reach its speed. (More than 100 %, as in the list, says that the yardstick, PyTorch's copy, is [not the fastest possible](../foundations/memory_hierarchy.py#the-ceiling-hbm-by-reading-writing-copying).){{ claim(five.ms > 1.2 * copy_ms(8 * 4 * 4096**2)) }}{{ claim(five.ms > 4.4 * one.ms and wide.ms > 4.4 * wide_one.ms) }}
#
# {{ figure("softmax_gradient", caption="With the gradient, five trips at the least: near a copy at every width.") }}
# {% for name in ("softmax_gradient_square", "softmax_gradient_square_bf16") %}{{ claim(row(name, provider="triton").percent >= 93) }}{% endfor %}
#
# ## Where it loses, and why
#
# {{ figure("softmax_forward", providers=["triton", "triton_one_row", "triton_persistent", "triton_two_passes"], caption="The steps of this page: each change wins where the one before it falls. The table beneath is of 32,768 columns, where softmax launches the two passes of step 3.") }}
#
# {{ ladder("softmax_forward", x=32768) }}
#
# - **One row, four warps** falls off as a thread holds more: {{ row("softmax_forward", provider="triton_one_row", n_cols=16384).percent | pct }} at 16,384 columns, 128 numbers a thread, where few programs fit a multiprocessor; {{ row("softmax_forward", provider="triton_one_row", n_cols=32768).percent | pct }} at 32,768, where registers spill. From 2,048 to 8,192 columns it is level with the last kernel, at 8,192 {{ (100 - 100 * row("softmax_forward", provider="triton_one_row", n_cols=8192).ms / row("softmax_forward", provider="triton", n_cols=8192).ms) | n(1) }} % ahead.{% for n in (2048, 4096, 8192) %}{{ claim(0.98 < row("softmax_forward", provider="triton_one_row", n_cols=n).ms / row("softmax_forward", provider="triton", n_cols=n).ms < 1) }}{% endfor %}{{ claim(row("softmax_forward", provider="triton_one_row", n_cols=8192).percent > 95 and row("softmax_forward", provider="triton_one_row", n_cols=16384).percent < 90 and row("softmax_forward", provider="triton_one_row", n_cols=32768).percent < 70) }}
# - **Persistent** gains at 32,768 columns only (with 16 warps, where step 1 has 4, so part of the gain is that nothing spills), {{ row("softmax_forward", provider="triton_persistent", n_cols=32768).percent | pct }}: one program works step after step, and of short rows too little is under way.{% for n in (4096, 8192, 16384) %}{{ claim(row("softmax_forward", provider="triton_persistent", n_cols=n).ms > 0.98 * row("softmax_forward", provider="triton_one_row", n_cols=n).ms) }}{% endfor %}{{ claim(row("softmax_forward", provider="triton_persistent", n_cols=32768).ms < 0.8 * row("softmax_forward", provider="triton_one_row", n_cols=32768).ms) }}
# - **float32, powers of two up to 8,192**: torch.compile makes much the same kernel, within 5 % at 2²⁸ elements (at 4096 × 4096, in the list above, it took {{ (row("softmax_square", provider="torch_compile", n_cols=4096).ms / row("softmax_square", provider="triton", n_cols=4096).ms) | times }} as long; which kernel its search chose there is not recorded),{% for n in (1024, 2048, 4096, 8192) %}{{ claim(0.95 < row("softmax_forward_fp32", provider="torch_compile", n_cols=n).ms / row("softmax_forward_fp32", provider="triton", n_cols=n).ms < 1.05) }}{% endfor %} and at 8,192 it is {{ (100 - 100 * row("softmax_forward_fp32", provider="torch_compile", n_cols=8192).ms / row("softmax_forward_fp32", provider="triton", n_cols=8192).ms) | n }} % ahead.{{ claim(row("softmax_forward_fp32", provider="torch_compile", n_cols=8192).ms < 0.99 * row("softmax_forward_fp32", provider="triton", n_cols=8192).ms) }}
# - **Two passes** win while the second finds the row in the L1 cache: at 32,768 columns they take
# {%- set two = row("softmax_forward", provider="triton_two_passes", n_cols=32768) %}
#   {{ two.ms | ms }}, {{ two.percent | pct }} of a copy's speed, and `softmax` uses them for
#   16,384 and 32,768 numbers of 2 bytes; past 2¹⁸, too, where L2 or memory answers, slowly.
#   {{- claim(two.percent > 97) }}
#   {{- claim(row("softmax_forward", provider="triton_two_passes", n_cols=131072).percent < 80) }}
# - **Rows that programs share** come to {{ row("softmax_forward", provider="triton", n_cols=50257).percent | pct }} at 50,257 columns, the vocabulary of [GPT-2](https://huggingface.co/openai-community/gpt2/blob/main/config.json), {{ row("softmax_forward", provider="triton", n_cols=65536).percent | pct }} at 65,536 and {{ row("softmax_forward", provider="triton", n_cols=131072).percent | pct }} at 131,072.{% for r in rows("softmax_forward", provider="triton") %}{{ claim((r.percent > 95) == (r.n_cols != 50257)) }}{% endfor %} Seven parts of 8,192 have 57,344 lanes for 50,257 numbers: one in eight is idle.
# - **The gradient** at odd widths: {{ row("softmax_gradient", provider="triton", n_cols=1823).percent | pct }} of a copy at 1,823 columns, {{ row("softmax_gradient", provider="triton", n_cols=50257).percent | pct }} at 50,257.{% for r in rows("softmax_gradient", provider="triton") %}{{ claim((r.percent > 95) == (r.n_cols not in (1823, 50257)) and r.percent > 91) }}{% endfor %} Long rows are shared here as well: at 131,072 columns it is {{ row("softmax_gradient", provider="triton", n_cols=131072).percent | pct }}.
#
# ## What to remember
#
# 1. A row-wise operation costs its trips through memory. Count them first: eight become two.
# 2. A sum that depends on a maximum can be mended when it moves: across blocks, across programs.
# 3. Near the memory's speed instructions and registers decide: use `exp2`, move whole vectors.
#
# ## Exercises
#
# ??? question "1. What does `other` have to be? (two minutes)"
#     Put `other=0.0` into `softmax_row_kernel`. Which rows come out wrong, and what hides it?
#
#     ??? success "Answer"
#         A masked lane adds $e^{0 - m}$ to the sum, so every output of the row is too small:
#         hardly where $m$ is large, most where all entries are negative (0 becomes the maximum,
#         too). Widths that are powers of two have no masked lane: tests need widths such as 129.
#
# ??? question "2. Temperature and a causal mask (twenty minutes)"
#     Sampling from a language model takes `softmax(x / t)`; in attention row $i$ sees columns
#     $0 \dots i$ only. Put both into `softmax_row_kernel`. Which bytes does the mask save?
#
#     ??? success "Answer"
#         The division becomes a multiplication in registers, hidden behind the loads. The masked
#         half is never read: a quarter of all bytes. Its zeros still have to be written.
#
#         ```python
#         import torch
#         import triton
#         import triton.language as tl
#         from softmax import softmax_reference
#
#
#         @triton.jit
#         def causal_kernel(x_ptr, y_ptr, inverse_t, n_cols, BLOCK: tl.constexpr):
#             row = tl.program_id(0).to(tl.int64)
#             cols = tl.arange(0, BLOCK)
#             x = tl.load(x_ptr + row * n_cols + cols, mask=cols <= row, other=-float("inf"))
#             x = x.to(tl.float32) * inverse_t
#             e = tl.exp(x - tl.max(x, axis=0))
#             tl.store(y_ptr + row * n_cols + cols, e / tl.sum(e, axis=0), mask=cols < n_cols)
#
#
#         x = torch.randn(100, 100, device="cuda" if torch.cuda.is_available() else "cpu")
#         y = torch.empty_like(x)
#         causal_kernel[(100,)](x, y, 1 / 0.7, 100, BLOCK=128)
#         above = torch.ones(100, 100, dtype=torch.bool, device=x.device).triu(1)
#         want = softmax_reference((x / 0.7).masked_fill(above, -float("inf")))
#         torch.testing.assert_close(y, want)
#         ```
#
# ??? question "3. Who waits for whom? (ten minutes)"
#     A GPU holds eight of these programs at once; rows have four parts. Programs 0 to 7 start, and
#     6 is slow. Who waits? What if the GPU held three?
#
#     ??? success "Answer"
#         4, 5 and 7; 0 to 3 finish and make room for 8 to 11. With room for three, 0 to 2 wait
#         for 3, which waits for their places: forever. Hence at most 32 parts.
#
# ## Use it in your project
#
# Copy the file, or the block "Copy this kernel": it needs torch and triton, nothing else. Then
# `softmax(scores)` is [differentiable][examples.fusion.softmax.softmax] and takes float32, float16
# or bfloat16 of any shape. Inside attention do not call it: there the scores should never be
# written to memory, and [flash attention](../attention/flash_attention.py) shows how.
