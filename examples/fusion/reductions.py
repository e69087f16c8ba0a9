# %% [markdown]
# ---
# title: Reductions and scans
# description: Sums, maxima, argmax and scans at the speed of a read, with the same bits every time.
# tags: [reduction, scan, memory-bound, determinism]
# prerequisites: [foundations/programming_model]
# outcome: Reduce rows, columns or everything, and say why the result is the same every time.
# ---
#
# # Reductions: many numbers become one
#
# A loss adds up a batch, a bias gradient adds up rows, a token is the largest of 128,256 logits. Here one output depends on up to half a billion inputs, and [programs](../glossary.md#program) neither wait for each other nor run in a fixed order. **Who adds what to what, how fast, and will the result be the same tomorrow?**
#
# ## What a reduction must cost
#
# {% set read = row("row_sum", provider="triton_read", n_cols=16384) -%}The sums of 32,768 rows of 16,384 bfloat16 numbers read {{ read.bytes | bytes }} and write 64 KiB. A copy, this site's usual [ceiling](../glossary.md#ceiling), is the wrong yardstick: half its bytes are writes, and those of a small copy stay in [L2](../glossary.md#l2). The right one is a **read**: the fastest kernel found that loads as many bytes, and stores one word for each 4,096. It reads {{ read.tbps | n(2) }} TB/s; a copy moves {{ copy_tbps(read.bytes) | n(2) }}.{{ claim(read.tbps > copy_tbps(read.bytes)) }}

# %% tags=["copy"]
import torch
import triton
import triton.language as tl


# %%
@triton.jit
def read_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
    # unused loads would be dropped by the compiler
    tl.store(out_ptr + tl.program_id(0), tl.xor_sum(x, axis=0))

# %% [markdown]
# ## Rows: a tile, a loop, one tree
#
# What each function must return, in PyTorch, stands [further down](#the-functions-around-them). `tl.sum(x, axis)` adds up a [block](../glossary.md#block): each thread adds what it holds, then threads exchange partial sums. Each exchange halves their number, and there are 5 within a [warp](../glossary.md#warp), then more through [shared memory](../glossary.md#shared-memory) between warps. This is a tree, the same every time. So the plain kernel gives each row a [program](../glossary.md#program):
#
# ```python
# @triton.jit
# def plain_row_sum_kernel(x_ptr, out_ptr, stride_xm, n_cols, BLOCK: tl.constexpr):
#     row = tl.program_id(0).to(tl.int64)
#     cols = tl.arange(0, BLOCK)
#     x = tl.load(x_ptr + row * stride_xm + cols, mask=cols < n_cols, other=0.0)
#     tl.store(out_ptr + row, tl.sum(x.to(tl.float32), axis=0))
# ```
#
# Three things more make row sums fast at any width (what each is worth alone is not recorded):
#
# - **A loop** along the row adds *element by element* to a [tile](../glossary.md#tile) of accumulators. No thread waits for another; the tree comes once, at the end. Where rows are short, a program takes several.
# - **Within the thread first.** A thread loads 16 bytes at once, 8 bfloat16 numbers. As an axis of their own these are added first, so that accumulators take an eighth of the [registers](../glossary.md#register).
# - **Whole vectors.** A row of 1,823 numbers begins anywhere, and a [mask](../glossary.md#mask) that cuts a vector makes the compiler load element by element. So the loop takes whole vectors of the row, and a small block takes the few numbers at its ends. ([Softmax](softmax.py), the next lecture, does so too.)
#
# {{ diagram("reductions_tile") }}
#
# Masked [lanes](../glossary.md#lane) hold the operation's [neutral element](../glossary.md#neutral-element): 0 for a sum, $-\infty$ for a maximum.

# %% tags=["copy"]
@triton.jit
def _rows(
    stride_xm, n_rows, n_cols,
    ROWS: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    n_cols = tl.where(rows < n_rows, n_cols, 0)
    # head elements lie before the first 16-byte boundary, body elements make whole vectors
    if ALIGNED:
        # changes no value, but now the compiler knows that VECTOR divides it
        first, head = rows * (stride_xm // VECTOR * VECTOR), tl.zeros((ROWS, 1), tl.int32)
    else:
        first = (rows * stride_xm + VECTOR - 1) // VECTOR * VECTOR
        head = tl.minimum((first - rows * stride_xm).to(tl.int32), n_cols)
    return rows, first, n_cols, head, (n_cols - head) // VECTOR * VECTOR

@triton.jit
def _ends(x_ptrs, end, head, body, OTHER: tl.constexpr, VECTOR: tl.constexpr):
    # of each row what lies before and behind its whole vectors
    lane = tl.arange(0, 2 * VECTOR)[None, :]
    cols = tl.where(lane < VECTOR, lane, lane - VECTOR + head + body)
    mask = tl.where(lane < VECTOR, cols < head, cols < end)
    return tl.load(x_ptrs + cols, mask=mask, other=OTHER).to(tl.float32)

@triton.jit
def row_sum_kernel(
    x_ptr, out_ptr, stride_xm, n_rows, n_cols, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VECTOR: tl.constexpr, ALIGNED: tl.constexpr, LOOP: tl.constexpr):  # fmt: skip
    """Sums of `ROWS` rows a program; `VECTOR` elements fill 16 bytes."""
    rows, first, end, head, body = _rows(stride_xm, n_rows, n_cols, ROWS, VECTOR, ALIGNED)
    acc = tl.zeros((ROWS, BLOCK // VECTOR), tl.float32)
    for start in range(0, n_cols if LOOP else BLOCK, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + first + cols, mask=cols < body, other=0.0).to(tl.float32)
        acc += tl.sum(tl.reshape(x, (ROWS, BLOCK // VECTOR, VECTOR)), axis=2)
    out = tl.sum(acc, axis=1)[:, None]
    if not ALIGNED:
        out += tl.sum(_ends(x_ptr + rows * stride_xm, end, head, body, 0.0, VECTOR), 1)[:, None]
    tl.store(out_ptr + rows, out, mask=rows < n_rows)

# %% [markdown]
# ## Maximum and argmax: NaN, ties, and `tl.reduce`
#
# **NaN.** [IEEE 754](https://doi.org/10.1109/IEEESTD.2019.8766229) knows two maxima: one returns NaN where an operand is NaN; the other drops it, and `tl.max` is of that kind. A loss that went NaN would look healthy. `torch.amax` propagates NaN, and so does `_larger`: `propagate_nan` is one bit of the instruction.
#
# **Ties.** Where is the largest element? A rule must settle ties, or the layout of threads does,
# and the answer changes with `num_warps`. Ours: the lowest column, as torch documents for its own.
#
# **`tl.reduce(x, axis, combine)`** is the general form, of which `tl.sum` and `tl.max` are cases. `combine`, a `@triton.jit` function, makes one element out of two. It must be associative, since the tree decides how elements are grouped, and commutative, since the layout decides their order. `x` may be a tuple: pairs of value and column would do (exercise 2). But such a `combine` is ten instructions, and at {{ row("row_sum", provider="triton_read", n_cols=16384).tbps | n(1) }} TB/s the lanes of all [SMs](../glossary.md#sm) {% set lanes = rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16).tflops / 2 %}([{{ lanes | n }} × 10¹² instructions a second](../foundations/memory_hierarchy.py#registers-a-chain-of-multiply-adds)) have time for {{ (lanes / (row("row_sum", provider="triton_read", n_cols=16384).tbps / 2)) | n(0) }} a number, loads and all. So compare less, and cheaper:
#
# - **Vectors first.** The loop takes the maximum of each vector, `tl.reduce` with `_larger` within
#   the thread, and keeps the place of the best. A thread meets its vectors in rising order, so a
#   later one must be strictly better. At the end the best vector is loaded once more.
# - **Integers.** Read as integers, positive floats keep their order and negative ones reverse it;
#   `_key` turns those round and puts NaN on top. The tree finds a maximum of integers, then, among
#   equals, a minimum of columns. Across a warp each is one instruction, `redux`, which this GPU has
#   for integers only. Pairs would take ten exchanges and fifty instructions.

# %% tags=["copy"]
@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)

@triton.jit
def _key(x):
    # integers in the order of the numbers: NaN above all, both zeros equal
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, 2**31 - 1, tl.where(bits < 0, -(2**31) - bits, bits))

@triton.jit
def row_max_kernel(
    x_ptr, out_ptr, col_ptr, stride_xm, n_rows, n_cols, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VECTOR: tl.constexpr, ALIGNED: tl.constexpr, LOOP: tl.constexpr):  # fmt: skip
    """Maxima of `ROWS` rows a program and their columns, the first among equals; NaN is largest."""
    rows, first, end, head, body = _rows(stride_xm, n_rows, n_cols, ROWS, VECTOR, ALIGNED)
    lowest = -float("inf")
    best = tl.full((ROWS, BLOCK // VECTOR), -(2**31), tl.int32)
    best_start = tl.zeros((ROWS, BLOCK // VECTOR), tl.int32)
    for start in range(0, n_cols if LOOP else BLOCK, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + first + cols, mask=cols < body, other=lowest).to(tl.float32)
        key = _key(tl.reduce(tl.reshape(x, (ROWS, BLOCK // VECTOR, VECTOR)), 2, _larger))
        best_start = tl.where(key > best, start, best_start)
        best = tl.maximum(key, best)
    top = tl.max(best, axis=1)[:, None]
    vector = best_start + VECTOR * tl.arange(0, BLOCK // VECTOR)[None, :]
    vector = tl.min(tl.where(best == top, vector, 2**31 - 1), axis=1)[:, None]
    # the best vector once more, and the ends of the row
    lane = tl.arange(0, VECTOR if ALIGNED else 4 * VECTOR)[None, :]
    cols = head + vector + lane % VECTOR
    if not ALIGNED:
        tail = head + body - VECTOR
        cols = tl.where(lane < VECTOR, lane, tl.where(lane < 2 * VECTOR, tail + lane, cols))
    x = tl.load(x_ptr + rows * stride_xm + cols, mask=cols < end, other=lowest).to(tl.float32)
    top = tl.max(_key(x), axis=1)[:, None]
    col = tl.min(tl.where((cols < end) & (_key(x) == top), cols, n_cols), axis=1)[:, None]
    out = tl.where(top < 0, -(2**31) - top, top).to(tl.float32, bitcast=True)
    tl.store(out_ptr + rows, out, mask=rows < n_rows)
    tl.store(col_ptr + rows, col.to(tl.int64), mask=rows < n_rows)

# %% [markdown]
# ## Online maximum: a sum that needs it, in one read
#
# $\log \sum_j e^{x_j}$, the log-sum-exp of a cross entropy, needs the maximum before the sum: two reads. With the maximum *so far* one will do: when it rises from $m$ to $m'$, the sum so far, $s$, is too large by one factor, $s' = s \, e^{m - m'} + \sum_j e^{x_j - m'}$ with $j$ over the new elements, as in [online softmax](../glossary.md#online-softmax). `exp2` is one instruction where `exp` is several. And the maximum is held between `-MOST` and `MOST`, the largest finite number, for $\infty - \infty$ is NaN. The reference is `torch.logsumexp`. This kernel has no gradient; it would be the [softmax](softmax.py) of the next lecture.
#
# Whose maximum? The row's would take a [tree](#rows-a-tile-a-loop-one-tree) in every turn of the loop, and all threads would wait for it before their first exponential. But the rule holds for *any* part of a row: let each place of the tile keep a maximum and a sum of its own, of the vectors that it meets. The loop then needs no tree. At its end one tree finds the row's maximum; every sum is corrected to that, and a second tree adds them up.

# %%
LOG2E, MOST = tl.constexpr(1.4426950408889634), tl.constexpr(3.4028234663852886e38)

@triton.jit
def row_logsumexp_kernel(
    x_ptr, out_ptr, stride_xm, n_rows, n_cols, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VECTOR: tl.constexpr, ALIGNED: tl.constexpr, LOOP: tl.constexpr):  # fmt: skip
    rows, first, end, head, body = _rows(stride_xm, n_rows, n_cols, ROWS, VECTOR, ALIGNED)
    lowest = -float("inf")
    top = tl.full((ROWS, BLOCK // VECTOR), -MOST, tl.float32)
    acc = tl.zeros((ROWS, BLOCK // VECTOR), tl.float32)
    for start in range(0, n_cols if LOOP else BLOCK, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + first + cols, mask=cols < body, other=lowest).to(tl.float32)
        x = tl.reshape(x, (ROWS, BLOCK // VECTOR, VECTOR))
        new_top = tl.minimum(tl.maximum(top, tl.max(x, axis=2)), MOST)
        # not x * LOG2E - new_top * LOG2E: where both are huge, the products' rounding is, too
        e = tl.exp2((x - new_top[:, :, None]) * LOG2E)
        acc = acc * tl.exp2((top - new_top) * LOG2E) + tl.sum(e, axis=2)
        top = new_top
    row_max = tl.max(top, axis=1)[:, None]
    if not ALIGNED:
        x = _ends(x_ptr + rows * stride_xm, end, head, body, lowest, VECTOR)
        row_max = tl.minimum(tl.maximum(row_max, tl.max(x, axis=1)[:, None]), MOST)
    # + 0.0: fused into the tree's first addition, one product would be rounded and one not, and
    # the two lanes of an exchange would come to different bits
    out = tl.sum(acc * tl.exp2((top - row_max) * LOG2E) + 0.0, axis=1)[:, None]
    if not ALIGNED:
        out += tl.sum(tl.exp2((x - row_max) * LOG2E), axis=1)[:, None]
    lse = row_max + tl.log2(out) * 0.6931471805599453
    tl.store(out_ptr + rows, lse, mask=rows < n_rows)

def row_logsumexp(x):
    """Over the last dimension, float32; forward only: the gradient would be the softmax."""
    if _check("row_logsumexp", x, x) or not x.dim() or not x.shape[-1]:
        raise ValueError(f"row_logsumexp is without gradient, of rows; got shape {tuple(x.shape)}")
    out = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    # one warp takes rows of up to 64 KiB; of long ones, which are few, 16 share the work
    return _launch_rows(row_logsumexp_kernel, x, out, long=65536, warps=16)[0]

# %% [markdown]
# ## Columns: two stages
#
# The gradient of a bias adds up the *columns* of a `(tokens, features)` matrix. A program per column would fetch 2 bytes of every row: no [coalescing](../glossary.md#coalescing). A program per *strip* of 512 columns reads well, but 8,192 columns are 16 strips, for {{ env.sms }} [SMs](../glossary.md#sm). So divide the rows into *chunks*, too: a program adds up one chunk of a strip, and a second launch adds up the chunks. That is a column sum again, by the same kernel. It begins when the first launch has ended, so that all its programs are known to be done.
#
# {{ diagram("reductions_stages") }}

# %% tags=["copy"]
@triton.jit
def column_sum_kernel(
    x_ptr, out_ptr, stride_xm, n_rows, n_cols, chunk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Sums of `chunk` rows and `BLOCK_N` columns a program; `VECTOR` divides stride and width."""
    start_m = tl.program_id(1).to(tl.int64) * chunk
    n_rows = tl.minimum(n_rows - start_m, chunk).to(tl.int32)
    # changes no value, but now the compiler knows that VECTOR neighbours are masked alike
    stride_xm = stride_xm // VECTOR * VECTOR
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask_n = offs_n < n_cols // VECTOR * VECTOR
    offs_m = tl.arange(0, BLOCK_M)[:, None]
    x_ptr += start_m * stride_xm
    # int64: in 32 bits the step of BLOCK_M rows of 2**26 numbers would be negative
    offs, step = offs_m.to(tl.int64) * stride_xm + offs_n, tl.cast(stride_xm, tl.int64) * BLOCK_M
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for m in range(0, chunk, BLOCK_M):
        acc += tl.load(x_ptr + offs, mask=(offs_m + m < n_rows) & mask_n, other=0.0).to(tl.float32)
        # one pointer: a block of them made the compiler's eight loads wait for each other
        x_ptr += step
    out_ptrs = out_ptr + tl.program_id(1).to(tl.int64) * n_cols + offs_n
    tl.store(out_ptrs, tl.sum(acc, axis=0)[None, :], mask=mask_n)

# %% [markdown]
# ## Everything: two stages in one launch, or atomics?
#
# A sum of all elements is the extreme case. Two stages again: each program adds up a chunk, then the chunks are added up. A second launch would cost the host as much as the first. But *the last program to arrive* can do it: each stores its sum and adds 1 to a count, an [atomic](../glossary.md#atomic-operation), which returns how many came before. Which program is last changes from run to run; what it adds up, and in what order, does not. Two things make that sound. The addition *releases* and *acquires*: whoever reads the full count sees all sums stored before. And each call has a count of its own: one that is kept would serve two streams at once. To zero it is a launch too, but of PyTorch's, in C++; the host still needs less time than for column sums, two launches of Triton's.{{ claim(row("full_sum", provider="triton", n=2**29).host_us < row("column_sum", provider="triton", n_cols=8192).host_us) }}
#
# The other way is shorter: each program adds its sum to the same word, in order of arrival.
# Which is faster? And which gives the same bits twice? In float32 `(1e8 + 1) - 1e8` is 0.

# %% tags=["copy"]
@triton.jit
def full_sum_kernel(
    x_ptr, parts_ptr, out_ptr, n, chunk,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, PARTS: tl.constexpr = 512):  # fmt: skip
    """`PARTS` programs at most sum `chunk` elements each, into `parts_ptr`, `PARTS + 1` zeros."""
    start = tl.program_id(0).to(tl.int64) * chunk
    whole = tl.minimum(n // VECTOR * VECTOR - start, chunk).to(tl.int32) // VECTOR * VECTOR
    acc = tl.zeros((BLOCK // VECTOR,), tl.float32)
    for i in range(0, chunk, BLOCK):
        cols = i + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + start + cols, mask=cols < whole, other=0.0).to(tl.float32)
        acc += tl.sum(tl.reshape(x, (BLOCK // VECTOR, VECTOR)), axis=1)
    tl.store(parts_ptr + tl.program_id(0), tl.sum(acc, axis=0))
    # how many are done, counted behind the sums
    done = tl.atomic_add(parts_ptr + PARTS, 1.0, sem="acq_rel") + 1
    if done == tl.num_programs(0):
        # ".cg": from L2, where all programs' stores meet
        out = tl.sum(tl.load(parts_ptr + tl.arange(0, PARTS), cache_modifier=".cg"), axis=0)
        # and the elements behind the last whole vector
        offs = n // VECTOR * VECTOR + tl.arange(0, VECTOR)
        out += tl.sum(tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32), axis=0)
        tl.store(out_ptr, out)

# %%
@triton.jit
def atomic_sum_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.atomic_add(out_ptr, tl.sum(x.to(tl.float32), axis=0), sem="relaxed")

def atomic_sum(x):
    """The sum of all elements, float32, not the same from run to run."""
    x, BLOCK = x.contiguous(), 16384 // x.element_size()
    out = torch.zeros((), dtype=torch.float32, device=x.device)
    atomic_sum_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK=BLOCK, num_warps=8)
    return out

# %% [markdown]
# ## Scans: every partial result
#
# A cumulative sum keeps the sums on the way, $y_t = y_{t-1} + x_t$. The **gated scan** $y_t = g_t \, y_{t-1} + x_t$ is the recurrence of linear RNNs and [state-space models](../production.md#who-uses-triton-and-for-what); with a gate of 0 where a segment begins it is a *segmented* sum. Both look sequential, and are not.
#
# A step is a map $y \mapsto g y + x$. Two in a row are such a map again, with the gate $g_1 g_2$ and the addend $g_2 x_1 + x_2$: `_then` makes this pair. It is [associative](../glossary.md#reduction), **not** commutative; a scan needs no more. So neighbours can be merged before anybody knows the $y$ that will come in, all pairs of a round at once, in a tree such as this: $n$ steps take $\log_2 n$ rounds.
#
# {{ diagram("reductions_scan") }}
#
# `tl.associative_scan(x, axis, combine)` takes any associative rule, here of pairs of gate and addend, and `tl.cumsum` is the case of a plain sum; which tree they make is the compiler's choice. From [block](../glossary.md#block) to block the kernel carries the last $y$. The gradient is the same recurrence from the right, gates shifted by one, since $x_t$ reaches $y_t$ and through $g_{t+1}$ all that follows: $dx_t = dy_t + g_{t+1} dx_{t+1}$. And $dg_t = dx_t y_{t-1}$.

# %% tags=["copy"]
@triton.jit
def _then(gate, y, next_gate, next_y):
    return gate * next_gate, next_gate * y + next_y

@triton.jit
def scan_kernel(x_ptr, gate_ptr, y_ptr, n_cols, BLOCK: tl.constexpr, GATED: tl.constexpr):
    """Scans one row a program, `BLOCK` columns at a time."""
    row = tl.program_id(0).to(tl.int64) * n_cols
    lane = tl.arange(0, BLOCK)
    carry = 0.0
    for start in range(0, n_cols, BLOCK):
        cols = start + lane
        mask = cols < n_cols
        x = tl.load(x_ptr + row + cols, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            gate = tl.load(gate_ptr + row + cols, mask=mask, other=1.0).to(tl.float32)
            gate, y = tl.associative_scan((gate, x), 0, _then)
            y += gate * carry
        else:
            y = tl.cumsum(x, axis=0) + carry
        tl.store(y_ptr + row + cols, y, mask=mask)
        carry = tl.sum(tl.where(lane == BLOCK - 1, y, 0.0), axis=0)

# %% [markdown]
# ## The functions around them
#
# How work is divided depends on shape, dtype, [strides](../glossary.md#stride) and alignment, not on the number of SMs: the same tensor gives the same bits. (A slice may round otherwise than its copy.) **Gradients:** an element enters a sum with the factor 1, so the gradient that arrives is *broadcast*: `expand`, a view, no kernel. That of a maximum is not unique at a tie, where `torch.amax` spreads it; here the column returned gets it, through torch's `gather`.

# %%
def reduce_sum_reference(x, dim=None):
    """Over the last dimension (-1), the first of two (0), or everything."""
    return x.sum() if dim is None else x.sum(dim)

def row_max_reference(x):
    """Maxima and their first columns; NaN counts as the largest."""
    values = x.amax(dim=-1)
    return values, ((x == values[..., None]) | x.isnan()).int().argmax(dim=-1)

def scan_reference(x, gates=None):
    """One step after the other."""
    ys = [x[..., 0]]
    for t in range(1, x.shape[-1]):
        ys.append((ys[-1] if gates is None else gates[..., t] * ys[-1]) + x[..., t])
    return torch.stack(ys, dim=-1)

# %% tags=["copy"]
# triton.cdiv and triton.next_power_of_2 take the host two microseconds each
def _cdiv(a, b):
    return -(-a // b)

def _pow2(n):
    return 1 << (n - 1).bit_length()

def _vector(x):
    # elements in 16 bytes, if the first one begins at a multiple of 16
    return 16 // x.element_size() if x.data_ptr() % 16 == 0 else 1

def _launch_rows(kernel, x, *outs, long=8192, warps=8):
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    x = x if x.stride(1) == 1 else x.contiguous()
    (n_rows, n_cols), stride, size, vector = x.shape, x.stride(0), x.element_size(), _vector(x)
    # by measurement: several warps to a long row; to others a single one, which waits for none
    tile, warps = (16384, warps) if n_cols * size >= long else (4096, 1)
    block = max(min(_pow2(n_cols), tile // size), vector)
    rows = min(tile // size // block, _pow2(n_rows))
    with torch.cuda.device_of(x):
        kernel[(_cdiv(n_rows, rows),)](
            x, *outs, stride, n_rows, n_cols, ROWS=rows, BLOCK=block, LOOP=n_cols > block,
            VECTOR=vector, ALIGNED=(n_cols | stride) % vector == 0, num_warps=warps)  # fmt: skip
    return outs

def _sum_rows(x):
    return _launch_rows(row_sum_kernel, x, x.new_empty(x.shape[:-1]))[0]

def _sum_columns(x):
    if x.stride(0) == 1 != x.stride(1) and len(x) <= 2**30:
        return _sum_rows(x.t())
    x = x if x.stride(1) == 1 else x.contiguous()
    (n_rows, n_cols), size = x.shape, x.element_size()
    vector = 16 // size if (n_cols | x.stride(0)) % (16 // size) == 0 else 1
    block_n = min(_pow2(n_cols), 512)
    block_m, strips = 32768 // size // block_n, _cdiv(n_cols, block_n)
    programs, warps = (528, 8) if size == 2 else (264, 16)
    chunk = _cdiv(_cdiv(n_rows, max(1, programs // strips)), block_m) * block_m
    chunks, out = _cdiv(n_rows, chunk), x.new_empty(n_cols)
    partial = x.new_empty((chunks, n_cols), dtype=torch.float32) if chunks > 1 else out
    with torch.cuda.device_of(x):
        column_sum_kernel[(strips, chunks)](
            x, partial, x.stride(0), n_rows, n_cols, chunk,
            BLOCK_M=block_m, BLOCK_N=block_n, VECTOR=vector, num_warps=warps)  # fmt: skip
        if chunks > 1:
            column_sum_kernel[(_cdiv(n_cols, 16), 1)](
                partial, out, n_cols, chunks, n_cols, chunks,
                BLOCK_M=128, BLOCK_N=16, VECTOR=min(vector, 4), num_warps=4)  # fmt: skip
    return out

def _sum_all(x):
    x, n, size = x.contiguous(), x.numel(), x.element_size()
    parts, out = x.new_zeros(513, dtype=torch.float32), x.new_empty(())
    # large ones in one wave of long programs
    block, warps = (32768 // size, 16) if n * size > 2**24 else (8192 // size, 8)
    chunk = _cdiv(_cdiv(n, 512), block) * block
    with torch.cuda.device_of(x):
        full_sum_kernel[(_cdiv(n, chunk),)](
            x, parts, out, n, chunk, BLOCK=block, VECTOR=_vector(x), num_warps=warps)  # fmt: skip
    return out

def _scan(x, gates=None):
    x, n_cols = x.contiguous(), x.shape[-1]
    y, gated = torch.empty_like(x), gates is not None
    if x.numel():
        # 16 elements a thread
        block = max(512, min(_pow2(n_cols), 1024 * x.element_size()))
        with torch.cuda.device_of(x):
            scan_kernel[(x.numel() // n_cols,)](
                x, gates.contiguous() if gated else x, y, n_cols,
                BLOCK=block, GATED=gated, num_warps=block // 512)  # fmt: skip
    return y

class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, reduce):
        ctx.shape, ctx.by_row = x.shape, reduce is _sum_rows
        return reduce(x)

    @staticmethod
    def backward(ctx, dout):
        return (dout.unsqueeze(-1) if ctx.by_row else dout).expand(ctx.shape), None

class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gates):
        y = _scan(x, gates)
        ctx.save_for_backward(*(() if gates is None else (gates, y)))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        if not ctx.saved_tensors:
            return _scan(dy.flip(-1)).flip(-1), None
        gates, y = ctx.saved_tensors
        if not dy.numel():  # perhaps no column to pad
            return dy, dy
        pad = torch.nn.functional.pad
        dx = _scan(dy.flip(-1), pad(gates, (-1, 1)).flip(-1)).flip(-1)
        return dx, dx * pad(y, (1, -1))

def _check(name, x, other):
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name} takes float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() and x.shape[-1] > 2**30:
        raise ValueError(f"{name} takes rows of up to 2**30 columns, got {x.shape[-1]}")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"{name} needs a GPU, got {x.device}; TRITON_INTERPRET=1 runs on a CPU")
    return torch.is_grad_enabled() and (x.requires_grad or other.requires_grad)

def reduce_sum(x: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sums in float32, with the same bits in every run; differentiable.

    Args:
        x: float32, float16 or bfloat16, on a GPU, any strides; copied where it has to be.
        dim: -1 for the last dimension, 0 for the first of a matrix, None for everything.

    Returns:
        The sums, in the dtype of `x`.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: `x` is not on a GPU, has no such dimension, or more than 2**30 columns.
    """
    needs_grad = _check("reduce_sum", x, x)
    if dim not in (None, -1, 0) or (dim == -1 and not x.dim()) or (dim == 0 and x.dim() != 2):
        raise ValueError(f"reduce_sum takes dim -1, None, 0 of a matrix; got {dim}, {x.dim()}-D")
    if not x.numel():
        return x.sum() if dim is None else x.sum(dim)
    reduce = _sum_all if dim is None else _sum_columns if dim == 0 else _sum_rows
    return _Sum.apply(x, reduce) if needs_grad else reduce(x)

def row_max(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima over the last dimension and their columns; differentiable.

    Args:
        x: `(..., n_cols)` with a column at least, otherwise as for `reduce_sum`.

    Returns:
        Values, NaN where a row holds one, and int64 columns: the first of several maxima or NaN.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: `x` is not on a GPU, has no column, or more than 2**30.
    """
    needs_grad = _check("row_max", x, x)
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"row_max needs a column at least, got shape {tuple(x.shape)}")
    shape = x.shape[:-1]
    values, columns = x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)
    if x.numel():
        _launch_rows(row_max_kernel, x, values, columns)
    return x.gather(-1, columns[..., None])[..., 0] if needs_grad else values, columns

def scan(x: torch.Tensor, gates: torch.Tensor | None = None) -> torch.Tensor:
    """`y[t] = gates[t] * y[t - 1] + x[t]` along the last dimension; differentiable once.

    Args:
        x: `(..., n_cols)`, float32, float16 or bfloat16, on a GPU; copied if not contiguous.
        gates: The shape, dtype and device of `x`; None for ones, a cumulative sum. A row's first
            is multiplied by 0: any finite number. Products of up to 4096 neighbours, which a scan
            forms, must not pass float32's largest number: they and what follows are inf or NaN.

    Returns:
        Shape and dtype of `x`, contiguous; float32 inside.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: `x` is not on a GPU, has no dimension, or `gates` is not like it.
    """
    needs_grad = _check("scan", x, x if gates is None else gates)
    if not x.dim():
        raise ValueError("scan needs a dimension at least, got a scalar")
    kind = x.shape, x.dtype, x.device
    if gates is not None and (gates.shape, gates.dtype, gates.device) != kind:
        raise ValueError(f"scan needs gates like x, {tuple(x.shape)}, {x.dtype}, {x.device}")
    return _Scan.apply(x, gates) if needs_grad else _scan(x, gates)

# %%
def show_sums():
    """Sums 2**24 numbers between 0 and 1 twenty times: different results, and the largest error."""
    torch.manual_seed(0)
    x = torch.rand(2**24, device="cuda")
    fns = {"one accumulator": lambda x: x.cpu().numpy().cumsum()[-1], "two stages": reduce_sum}
    fns |= {"atomics": atomic_sum, "torch": torch.sum}
    for name, fn in fns.items():
        results = [fn(x).item() for _ in range(20)]
        error = max(abs(result / x.double().sum().item() - 1) for result in results)
        print(f"{name:16}{len(set(results)):3} different results, relative error {error:.0e}")

if __name__ == "__main__" and torch.cuda.is_available():
    show_sums()

# %% [markdown]
# A float32 has 24 bits: an addition rounds by up to $u = 6 \cdot 10^{-8}$ of its result, half an [ulp](../glossary.md#ulp). One accumulator adds $n$ times, so it errs by up to $n u$. With $L$ accumulators and a tree no number is rounded more than $n / L + \log_2 L$ times: parallel sums are the *more* exact ones. Atomics add up 4,096 programs' sums in one accumulator again.
#
# ## Check
#
# A sum may err by the rounding of its dtype and 10⁻⁶ of the sum of magnitudes.

# %% tags=["fold"]
def check(device="cuda"):
    """Compares every function with its reference; raises AssertionError where they differ."""
    torch.manual_seed(0)
    rounding, worst = {torch.float32: 0.0, torch.float16: 6e-4, torch.bfloat16: 8e-3}, {}

    def near(name, got, want, size):
        error = (got.double() - want).abs() / (1e-6 * size + rounding[got.dtype] * want.abs())
        error[got == want.to(got.dtype)] = 0  # a float16 sum may be infinite, and should be
        worst[name] = max(worst.get(name, 0), error.nan_to_num(99).max().item())
        assert worst[name] <= 1, f"{name} differs, {got.dtype}, {tuple(shape)}: {worst[name]:.2g}"

    # rows so far apart that BLOCK_M of them pass 2**31; what lies between is never touched
    x = torch.empty(shape := (40, 2**26), dtype=torch.bfloat16, device=device)[:, :140_000]
    want = x.copy_(torch.rand(x.shape)).double().sum(0)
    near("sum, dim 0", reduce_sum(x, 0), want, want)
    cases = [(reduce_sum, reduce_sum_reference, dim) for dim in (-1, 0, None)]
    cases += [(scan, scan_reference, gated) for gated in (False, True)]
    for shape, (fn, reference, option) in ((s, c) for s in ((3, 129), (1, 4100)) for c in cases):
        x, gates = torch.rand(2, *shape, device=device)
        inputs = [t.requires_grad_() for t in ((x, gates) if option is True else (x,))]
        more = [option] if fn is reduce_sum else []
        got, want = fn(*inputs, *more), reference(*(t.double() for t in inputs), *more)
        dout = torch.randn_like(got)
        gots = got, *torch.autograd.grad(got, inputs, dout)
        wants = want, *torch.autograd.grad(want, inputs, dout.double())
        for got, want in zip(gots, wants, strict=True):
            near(f"{fn.__name__}, gradient", got, want, shape[1] + 3 * want.abs().max())
    shapes = [(1, 1), (70, 129), (5, 250), (3, 1823), (2, 8219), (33, 64), (2, 8224)]
    if device == "cuda":
        shapes += [(4096, 4096), (70_001, 40), (300, 131_072), (17, 50_257), (20_000, 1000)]
    for shape, dtype in ((shape, dtype) for shape in shapes for dtype in rounding):
        n_rows, n_cols = shape
        around = torch.full((n_rows + 1, n_cols + (3 if n_cols % 16 else 16)), 1e4, device=device)
        x = around.to(dtype)[:n_rows, :n_cols].copy_(torch.randn(shape) + 1)
        for dim in (-1, 0, None):
            want, size = (reduce_sum_reference(y, dim) for y in (x.double(), x.double().abs()))
            for view in (x, x.t().contiguous().t()):
                torch.full_like(want, torch.nan, dtype=dtype)  # for the output to fall on
                near(f"sum, dim {dim}", reduce_sum(view, dim), want, size)
        for y in (x, x.contiguous(), x * (5e3 if dtype == torch.float16 else 1e30)):
            want = y.double().logsumexp(-1)
            near("logsumexp", row_logsumexp(y), want, 2 + want.abs())
        x[:, n_cols // 2 :] = x[:, : n_cols - n_cols // 2].flip(1)  # ties
        x[0], x[2::3, 0], x[4::3, -1] = -float("inf"), 9, 9
        x[1:, n_cols // 3 :: 50][:1] = torch.nan
        for got, want in zip(row_max(x), row_max_reference(x), strict=True):
            same = (got == want) | (got.isnan() & want.isnan())
            assert same.all(), f"row_max differs, {dtype}, {shape}"
    for name, error in worst.items():
        print(f"{name:20}{error:5.0%} of the allowed error")
    print(f"row_max: exact; all {len(shapes)} shapes, {len(rounding)} dtypes")

if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Measure
#
# Predict: at which width are row sums slowest, and what does the column of a maximum cost?
# {{ figure("row_sum", y="tbps", caption="Row sums run at the speed of a read, at odd widths too.") }}
# {{ figure("row_max", y="tbps", caption="Maxima and their columns cost hardly more than sums.") }}
# {{ figure("logsumexp", y="tbps", caption="From rows of 1,024 on log-sum-exp runs near the speed of a read.") }}{% for r in rows("logsumexp", provider="triton") %}{{ claim(row("logsumexp", provider="triton_read", n_cols=r.n_cols).ms / r.ms >= (0.94 if r.n_cols > 256 else 0.78) and row("logsumexp", provider="torch_compile", n_cols=r.n_cols).ms > 1.3 * r.ms) }}{% endfor %}
#
# {% for name in ("row_sum", "row_max") %}{% for r in rows(name, provider="triton") -%}{{ claim(row(name, provider="triton_read", n_cols=r.n_cols).ms / r.ms >= (0.93 if name == "row_sum" or r.n_cols > 256 else 0.85)) }}{{- claim(r.ms < row(name, provider="torch", n_cols=r.n_cols).ms and r.ms <= row(name, provider="triton", n_cols=256).ms) }}{{ claim(r.ms < 1.06 * row("row_sum", provider="triton", n_cols=r.n_cols).ms) }}{%- endfor %}{% endfor %} {% set sums, best = row("row_sum", provider="triton", n_cols=16384), row("row_max", provider="triton", n_cols=16384) -%}{% set theirs, lse = row("row_max", provider="torch", n_cols=16384), row("logsumexp", provider="triton", n_cols=16384) -%}Row sums are slowest where rows are shortest: at 256 columns they reach {{ (100 * row("row_sum", provider="triton_read", n_cols=256).ms / row("row_sum", provider="triton", n_cols=256).ms) | pct }} of a read's speed. A maximum with its column costs {{ (100 * row("row_max", provider="triton", n_cols=256).ms / row("row_sum", provider="triton", n_cols=256).ms - 100) | pct }} more time than a sum there. At 16,384 columns: sums in {{ sums.ms | ms }}; maxima with their columns in {{ best.ms | ms }}, where `torch.max` takes {{ (theirs.ms / best.ms) | times }} as long. Log-sum-exp takes {{ lse.ms | ms }}; torch, in several passes, {{ row("logsumexp", provider="torch", n_cols=16384).ms | ms }}.
#
# {{ figure("column_sum", y="tbps", caption="Column sums, in two launches: nine tenths of a read's speed or more.") }}
# {{ figure("full_sum", y="us", logy=True, caption="The sum of everything, in a fixed order and with atomics.") }}
#
# {% set ours, atomic = row("full_sum", provider="triton", n=2**29), row("full_sum", provider="triton_atomic", n=2**29) -%}Of 2²⁹ numbers the sum takes {{ ours.ms | ms }} in two stages, {{ atomic.ms | ms }} with atomics. The same bits every time cost nothing here; of 2¹⁶ numbers they cost {{ ((row("full_sum", provider="triton", n=2**16).ms - row("full_sum", provider="triton_atomic", n=2**16).ms) * 1000) | n(1) }} µs, of 2²⁶ {{ ((row("full_sum", provider="triton", n=2**26).ms - row("full_sum", provider="triton_atomic", n=2**26).ms) * 1000) | n(1) }}.{{ claim(row("full_sum", provider="triton_atomic", n=2**16).ms < row("full_sum", provider="triton", n=2**16).ms) }}{{ claim(ours.ms < 1.03 * atomic.ms) }}{{- claim(row("full_sum", provider="triton_read", n=2**29).ms / ours.ms >= 0.9) }}{% for r in rows("column_sum", provider="triton") %}{{- claim(row("column_sum", provider="triton_read", n_cols=r.n_cols).ms / r.ms >= 0.9) }}{% endfor %}
#
# {{ figure("cumsum", caption="A cumulative sum stays within a tenth of a copy.") }}
#
# {% for r in rows("cumsum", provider="triton") + rows("gated_scan") %}{{ claim(r.percent >= 93) }}{% endfor %}The gated scan, for which eager torch has no operation, reaches {{ row("gated_scan", provider="triton", n_cols=4096).percent | pct }} of a copy: of three [trips](../glossary.md#trip) two are reads, and a read is faster.
#
# ## Where it loses, and why
#
# {% set ours, read = rows("full_sum", provider="triton"), rows("full_sum", provider="triton_read") -%}
# - **Sums of up to 2²⁶ numbers.** A sum takes {{ ((ours[0].ms - read[0].ms) * 1000) | n(1) }} µs longer than a read of 2¹⁶ numbers, {{ ((ours[4].ms - read[4].ms) * 1000) | n(1) }} longer than one of 2²⁶, {{ (read[4].ms / ours[4].ms * 100) | pct }} of that read's speed: the launch that zeroes the count comes first, counting and fetching the sums come last.{{ claim(read[4].ms / ours[4].ms >= 0.82) }} {% set compiled = row("full_sum", provider="torch_compile", n=2**24) -%} torch.compile takes {{ (100 - compiled.ms / ours[3].ms * 100) | pct }} less time for 2²⁴ numbers, {{ (100 - row("full_sum", provider="torch_compile", n=2**16).ms / ours[0].ms * 100) | pct }} for 2¹⁶, and 2 to 9 % less for 2²⁰, 2²² and 2²⁶.{% for i in (1, 2, 4) %}{{ claim(0.905 < row("full_sum", provider="torch_compile", n=ours[i].n).ms / ours[i].ms < 0.985) }}{% endfor %}{{ claim(compiled.ms < 0.97 * ours[3].ms) }}{% for r in ours[:5] %}{{ claim(row("full_sum", provider="torch_compile", n=r.n).ms < r.ms) }}{% endfor %} The host needs {{ ours[3].host_us | n(0) }} µs a call, torch's, which is C++, {{ row("full_sum", provider="torch", n=2**24).host_us | n(0) }}; column sums, two launches, {{ row("column_sum", provider="triton", n_cols=8192).host_us | n(0) }}.
# - **Maxima of short rows**: {{ (row("row_max", provider="triton_read", n_cols=256).ms / row("row_max", provider="triton", n_cols=256).ms * 100) | pct }} of a read's speed at 256 columns. Each row writes 10 bytes for the 512 that it reads, 8 of them for the column (int64, as torch's), and after the loop come two trees, one more load, of the best vector, and two small reductions over that. {% set seen, readers = profile("row_max", provider="triton", n_cols=256), profile("row_max", provider="triton_read", n_cols=256) %}NVIDIA's profiler sees memory busy for {{ seen.dram | pct }} of the time, {{ readers.dram | pct }} in a read; a thread takes {{ seen.registers | n(0) }} registers, so that an SM has {{ seen.occupancy | pct }} of the warps that it has room for.{{ claim(seen.occupancy < 60 and seen.dram < readers.dram - 4) }}
# - **Log-sum-exp of short rows**: {{ (row("logsumexp", provider="triton_read", n_cols=256).ms / row("logsumexp", provider="triton", n_cols=256).ms * 100) | pct }} of a read's speed at 256 columns, where a thread has eight numbers of a row, and two trees, of maxima and of sums, weigh as much as these. {% set seen = profile("logsumexp", provider="triton", n_cols=256) %}Instructions set the time: the profiler sees one issued in {{ seen.issue | pct }} of the slots for it, while memory is busy for {{ seen.dram | pct }} of the time.{{ claim(seen.issue > 80 and seen.dram < 80) }} torch.compile takes {{ (row("logsumexp", provider="torch_compile", n_cols=256).ms / row("logsumexp", provider="triton", n_cols=256).ms) | times }} as long{{ claim(row("logsumexp", provider="torch_compile", n_cols=256).ms > 1.3 * row("logsumexp", provider="triton", n_cols=256).ms) }}.
# - **Columns, where 8 does not divide the width**, in bfloat16: each element is loaded by itself. **Wide column sums**: at 131,072 columns torch.compile takes {{ (100 - 100 * row("column_sum", provider="torch_compile", n_cols=131072).ms / row("column_sum", provider="triton", n_cols=131072).ms) | n(1) }} % less time{{ claim(0.97 < row("column_sum", provider="torch_compile", n_cols=131072).ms / row("column_sum", provider="triton", n_cols=131072).ms < 1) }}, torch about as much as ours{{ claim((row("column_sum", provider="torch", n_cols=131072).ms / row("column_sum", provider="triton", n_cols=131072).ms - 1) | abs < 0.02) }}.
# - **Few long rows**, in `scan`, row sums and maxima: a row is one program's, so fewer rows than SMs leave some idle. A lone row is better summed with `dim=None`; to [split](../patterns.md#split) rows in general takes a second step.
# - **Growing gates.** A scan [multiplies the gates](#scans-every-partial-result) of up to 4,096 neighbours. Where such a product passes 3.4 · 10³⁸, what follows is infinite or NaN, though step by step it might have stayed finite (after a run of zeros, say).
#
# {{ profile_source() }}
#
# ## What to remember
#
# 1. A reduction costs a read. Combine in registers, element by element; build one tree, at the end.
# 2. A scan takes any associative rule; a reduction's must commute too, as sums and maxima do.
# 3. Two stages add in an order that positions decide: the same bits every time, at next to no cost.
#
# ## Exercises
#
# ??? question "1 (easy): what if `other` were 0 in `row_max_kernel`, and which test would miss it?"
#     ??? success "Answer"
#         Negative rows with masked lanes would have the maximum 0. Long random rows miss it.
#
# ??? question "2 (medium): write the `combine` that finds maximum and column as a pair."
#     ??? success "Answer"
#         `other` wins if `(other > value) | ((other == value) & (other_col < col))`, or if it is
#         NaN and `value` is not; of two NaN the lower column wins. `tl.where` then picks both.
#
# ??? question "3 (hard): the gradient of `scan` flips its inputs, a copy each. Avoid the copies."
#     ??? success "Answer"
#         `tl.associative_scan(…, reverse=True)`, blocks from last to first, gates loaded at
#         `cols + 1` where that is below `n_cols`, the carry taken from lane 0.
#
# ## Use it in your project
#
# From "Copy this kernel": `dbias = reduce_sum(dout, 0)`, `values, columns = row_max(logits)`,
# `y = scan(x, gates)`. API: [reduce_sum][examples.fusion.reductions.reduce_sum],
# [row_max][examples.fusion.reductions.row_max], [scan][examples.fusion.reductions.scan].

# %% tags=["fold"]
def bench(measure):
    """Yields the page's benchmarks."""
    def read(x, BLOCK=4096):
        words = x.view(-1).view(torch.int32)
        grid, out = (words.numel() // BLOCK,), torch.empty_like(words[::BLOCK])
        return lambda: read_kernel[grid](words, out, BLOCK=BLOCK, num_warps=8)

    def result(name, what, rows, x="n_cols", dtype="bfloat16", ceiling=None):
        about = {"name": name, "title": f"{what}, {dtype}", "x": x, "dtype": dtype}
        return about | {"mode": "forward", "ceiling": ceiling, "rows": rows}

    def rows(shape, ours, peer, scans=0, dtype="bfloat16", host=False, **more):
        x = torch.randn(shape, device="cuda").to(getattr(torch, dtype))
        torch._dynamo.reset()  # it compiles no more than eight shapes of a function
        fused = torch.compile(peer, mode="max-autotune-no-cudagraphs", dynamic=False)
        fns = {"triton": ours, "torch": peer, "torch_compile": fused} | more
        calls = {name: lambda fn=fn: fn(x) for name, fn in fns.items()}
        calls |= {} if scans else {"triton_read": read(x)}
        size = dict(zip(("n_cols", "n_rows") if x.dim() > 1 else ("n",), shape[::-1], strict=True))
        size |= {"bytes": x.numel() * x.element_size() * (scans or 1), "flops": x.numel()}
        return [{"provider": p, **size, **t} for p, t in measure(calls, host=host).items()]

    def sweep(shapes, *fns, **options):
        return [row for shape in shapes for row in rows(shape, *fns, **options)]

    wide = [(2**29 // n, n) for n in (256, 1024, 1823, 4096, 16384, 131072)]
    found = sweep(wide, lambda x: reduce_sum(x, -1), lambda x: x.sum(-1))
    yield result("row_sum", "Row sums of 2²⁹ numbers", found)
    found = sweep(wide, row_max, lambda x: x.max(-1), torch_amax=lambda x: x.amax(-1))
    yield result("row_max", "Row maxima of 2²⁹ numbers", found)
    found = sweep(wide, row_logsumexp, lambda x: x.logsumexp(-1))
    yield result("logsumexp", "Log-sum-exp of 2²⁹ numbers", found)
    tall = [(2**29 // n, n) for n in (64, 512, 5000, 8192, 131072)]
    found = sweep(tall, lambda x: reduce_sum(x, 0), lambda x: x.sum(0), host=True)
    yield result("column_sum", "Column sums of 2²⁹ numbers", found)
    sizes = [(2**k,) for k in (16, 20, 22, 24, 26, 29)]
    found = sweep(sizes, reduce_sum, torch.sum, host=True, triton_atomic=atomic_sum)
    yield result("full_sum", "Sum of n numbers", found, "n")
    scans = [(2**28 // n, n) for n in (1024, 4096, 16384)]
    found = sweep(scans, scan, lambda x: x.cumsum(-1), scans=2, dtype="float32")
    yield result("cumsum", "Cumulative sums of 2²⁸ numbers", found, "n_cols", "float32", "copy")
    gates, x = torch.rand(2, 2**28, device="cuda").to(torch.bfloat16)
    fns = {n: lambda n=n: scan(x.view(-1, n), gates.view(-1, n)) for _, n in scans}
    about = {"provider": "triton", "bytes": 6 * 2**28, "flops": 2 * 2**28}
    found = [about | {"n_cols": n} | timing for n, timing in measure(fns).items()]
    yield result("gated_scan", "Gated scans of 2²⁸ numbers", found, ceiling="copy")
