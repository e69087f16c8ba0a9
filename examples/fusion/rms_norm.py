# %% [markdown]
# ---
# title: RMSNorm
# description: RMSNorm and the residual add in one kernel, its gradient in one pass over the rows.
# tags: [reduction, memory-bound, autograd]
# prerequisites: [fusion/softmax]
# outcome: Fuse a norm with the add before it, and write a gradient that sums both ways at once.
# ---
#
# # RMSNorm: two reductions that cross
#
# Before each attention and each MLP, a transformer brings its activations back to one scale. Models such as [Llama](https://arxiv.org/abs/2302.13971) use RMSNorm ([Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467)): divide a row by its root mean square, multiply each column by a learned weight,
#
# $$
# y_i = x_i \, r \, w_i, \qquad r = \frac{1}{\sqrt{\frac{1}{n} \sum_{j} x_j^2 + \varepsilon}} .
# $$
#
# Forward, that is one reduction along each row, as in [softmax](softmax.py). The gradient is where libraries lose: it needs a sum along each **row** for $dx$ and, at the same time, a sum down each **column** for $dw$. **Can one kernel do both, and read everything once?**
#
# ## What it costs
#
# Nearly always an addition stands before the norm: a layer's output $x$ joins the [residual](../glossary.md#residual) stream, whose norm feeds the next layer. Count [trips](../glossary.md#trip) of a matrix to or from [HBM](../glossary.md#hbm):
#
# | | separate kernels | fused |
# |---|---|---|
# | `y = norm(x)` | | 2: x in, y out |
# | its gradient | | 3: dy, x in, dx out |
# | `h = x + residual; y = norm(h)` | 3 + 2 | 4: x, residual in, h, y out |
# | its gradient | 3 + 3 | 4: dy, h, dh in, dx out |
#
# {{ diagram("rms_norm_residual") }}
#
# At 8192 × 8192 in bfloat16 a copy of two trips takes {{ copy_ms(2 * 134217728) | ms }} on this {{ env.gpu }}, of five, forward and backward, {{ copy_ms(5 * 134217728) | ms }}: the [floors](../glossary.md#floor). {% set one, five = row("forward", provider="triton", shape="8192 × 8192"), row("gradient", provider="triton", shape="8192 × 8192") %}Arithmetic hides behind them: {{ (one.flops / one.bytes) | n(1) }} operations a byte forward, {{ (five.flops / five.bytes) | n(1) }} with the gradient, where the float32 units keep up with {{ (rec("foundations/memory_hierarchy").row("multiply_add", warps_per_sm=16).tflops / copy_tbps(2**33)) | n(0) }}. Memory binds.

# %% tags=["copy"]
import functools

import torch
import triton
import triton.language as tl


# %%
def rms_norm_reference(x, weight, eps=1e-6):
    """The specification: float32 inside, one rounding at the end."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rstd = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * rstd * weight).to(x.dtype)


def add_rms_norm_reference(x, residual, weight, eps=1e-6):
    """The norm of a sum, and the sum."""
    h = x + residual
    return rms_norm_reference(h, weight, eps), h

# %% [markdown]
# ## Forward: a row in registers
#
# A [program](../glossary.md#program) holds a row, a [block](../glossary.md#block), in [registers](../glossary.md#register), sums its squares, and writes: read once, written once. That is all of it:
#
# ```python
# @triton.jit
# def rms_norm_row_kernel(x_ptr, weight_ptr, y_ptr, stride_xm, n_cols, eps, BLOCK: tl.constexpr):
#     row = tl.program_id(0).to(tl.int64)
#     cols = tl.arange(0, BLOCK)
#     mask = cols < n_cols
#     x = tl.load(x_ptr + row * stride_xm + cols, mask=mask, other=0.0).to(tl.float32)
#     rstd = tl.rsqrt(tl.sum(x * x) / n_cols + eps)
#     weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
#     tl.store(y_ptr + row * n_cols + cols, x * rstd * weight, mask=mask)
# ```
#
# What must [lanes](../glossary.md#lane) hold that the [mask](../glossary.md#mask) switches off? Zero: its square adds nothing. And the mean divides by `n_cols`, never by the block. The kernel below does the same, for any width (with gradients, rows of up to 16 KiB for each [SM](../glossary.md#sm)) and with the addition. The sum with the residual is rounded before it is normed: the backward pass reads $h$ as written, and both passes must norm the same number. That a pointer is `None` is known when the kernel is compiled: its `if` costs nothing later.
#
# What else counts at a copy's speed (tried together: what each is worth alone is not recorded):
#
# - **Several short rows a program**, for [starting one](../foundations/programming_model.py#the-size-of-a-block-powers-of-two-and-num_warps) takes time whatever it moves.
# - **Whole vectors.** A thread [moves 16 bytes at once](../glossary.md#vector-load) only where they begin at a multiple of 16 bytes and are masked alike. Of an integer argument the compiler knows [at most](../glossary.md#specialisation) that 16 divides it. For 16-bit numbers `_align` divides by 8 and multiplies by 8: the same number, but now the compiler *knows* the factor. So width 1,000, a multiple of 8 and not of 16, is fast.
# - **Odd widths.** With 12,289 columns, most rows begin off a boundary of 16 bytes. The kernel takes whole [vectors](../glossary.md#vector-load) from a row's first boundary on; the *head* before them and the rest after them make the *edge*, a small block. Rows of one program lie a multiple of 8 apart (`PEEL`): equal heads. The weight, from its number `head` on, is off a boundary in turn and comes number by number; where rows are short, the two rows of a program share one load of it.
# - **Packed rows.** Between sum and store a bfloat16 row should wait in two bytes an element, so that more programs fit an [SM](../glossary.md#sm). The compiler would rather keep it in float32; a line of assembly (`_hold`) hides from it that the row summed and the row stored are the same.
# - **Rows walked `TWICE`.** A long row need not wait in registers: the program may walk along it twice, block by block, to sum and to write. The second time it comes from a cache, the SM's own ([L1](../glossary.md#l1)) or [L2](../glossary.md#l2). Hints say what to keep there: `evict_last` what will be read again, `evict_first` what will not. So 8,192, 16,384 and 32,768 columns in 16 bits, and odd widths past 8,200, need few registers; of the round ones the compiler knows the `WIDTH` and unrolls both loops. Past 64 KiB no row fits a program otherwise: two programs fill an SM, and at 65,536 columns the rows under way are {{ (2 * env.sms * 2 * 65536) | bytes }}, where the L2 holds {{ env.l2_bytes | bytes }}{{ claim(2 * env.sms * 2 * 65536 < 0.75 * env.l2_bytes) }}.

# %% tags=["copy"]
@triton.jit
def _align(offset, VECTOR: tl.constexpr):
    # the same number: the caller knows that it is a multiple, now the compiler does
    return offset // VECTOR * VECTOR

@triton.jit
def _head(row, n_cols, VECTOR: tl.constexpr, PEEL: tl.constexpr):
    # elements before the row's first 16-byte boundary
    head = 0
    if PEEL:
        head = ((VECTOR - row.to(tl.int64) * n_cols % VECTOR) % VECTOR).to(tl.int32)
    return head

@triton.jit
def _edge(head, body, n_cols, VECTOR: tl.constexpr):
    # columns, counted from the head's end, before and after whole vectors
    lane = tl.arange(0, 2 * VECTOR)[None, :]  # [1, 2 * VECTOR]
    edge = tl.where(lane < VECTOR, lane - head, lane - VECTOR + body)
    return edge, tl.where(lane < VECTOR, lane < head, head + edge < n_cols)

@triton.jit
def _hold(x, HOLD: tl.constexpr):
    # the same bits, but the compiler cannot know: what follows from them is computed again
    if HOLD and x.dtype.primitive_bitwidth == 16:  # two numbers a register
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    return x

@triton.jit
def _add(x_ptrs, residual_ptrs, h_ptrs, cols, mask, AGAIN: tl.constexpr):
    # x, or its sum with the residual, which is rounded and written; AGAIN: x is read once more
    LAST: tl.constexpr = "evict_last" if AGAIN and residual_ptrs is None else ""
    h = tl.load(x_ptrs + cols, mask=mask, other=0.0, eviction_policy=LAST)
    if residual_ptrs is not None:
        residual = tl.load(residual_ptrs + cols, mask=mask, other=0.0)
        h = (h.to(tl.float32) + residual.to(tl.float32)).to(h.dtype)
        tl.store(h_ptrs + cols, h, mask=mask)
    return h

@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr, rstd_ptr, stride_xm, stride_rm,
    n_rows, n_cols, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr, TWICE: tl.constexpr,
    WIDTH: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, PEEL: tl.constexpr,
    HOLD: tl.constexpr,
):  # fmt: skip
    """RMSNorm of `ROWS` rows, each one block or walked TWICE, of sums with a residual, or None.

    `VECTOR` divides n_cols and all strides; with PEEL: stride - n_cols and the number of programs.
    `WIDTH` is n_cols where the compiler is to know it, else 0; FULL: no lane is idle.
    """
    pid, lanes = tl.program_id(0), tl.arange(0, ROWS)[:, None]
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    rows = pid.to(tl.int64) * ROWS + lanes  # [ROWS, 1]
    if PEEL:
        rows = pid + lanes.to(tl.int64) * tl.num_programs(0)
    head = _head(pid, n_cols, VECTOR, PEEL)
    body = WIDTH if WIDTH > 0 else _align(n_cols - head, VECTOR)
    x_ptrs = x_ptr + _align(rows * stride_xm + head, VECTOR)
    y_ptrs = y_ptr + _align(rows * n_cols + head, VECTOR)
    residual_ptrs, h_ptrs, weight_ptr = residual_ptr, x_ptrs, weight_ptr + head
    if residual_ptr is not None:
        residual_ptrs += _align(rows * stride_rm + head, VECTOR)
        h_ptrs = h_ptr + _align(rows * n_cols + head, VECTOR)
    cols = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    there, in_row = rows < n_rows, cols < body
    if FULL:  # the compiler drops a mask that is always true
        there, in_row = rows == rows, cols == cols
    if TWICE:
        squares = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, body, BLOCK):
            mask = there & (in_row if FULL else start + cols < body)
            h = _add(x_ptrs, residual_ptrs, h_ptrs, start + cols, mask, TWICE).to(tl.float32)
            squares += h * h
    else:
        weight = tl.load(weight_ptr + cols, mask=in_row, other=0.0)
        h = _add(x_ptrs, residual_ptrs, h_ptrs, cols, there & in_row, TWICE)
        squares = h.to(tl.float32) * h.to(tl.float32)
    squares = tl.sum(squares, axis=1)[:, None]
    if PEEL:
        edge, in_edge = _edge(head, body, n_cols, VECTOR)
        weight_edge = tl.load(weight_ptr + edge, mask=in_edge, other=0.0).to(tl.float32)
        in_edge &= there
        h_edge = _add(x_ptrs, residual_ptrs, h_ptrs, edge, in_edge, False).to(tl.float32)
        squares += tl.sum(h_edge * h_edge, axis=1)[:, None]
    rstd = tl.rsqrt(squares / n_cols + eps)  # [ROWS, 1]
    if TWICE:
        for start in range(0, body, BLOCK):
            at, mask = start + cols, in_row if FULL else start + cols < body
            weight = tl.load(weight_ptr + at, mask=mask, other=0.0, eviction_policy="evict_last")
            h = tl.load(h_ptrs + at, mask=there & mask, other=0.0, eviction_policy="evict_first")
            y = h.to(tl.float32) * rstd * weight.to(tl.float32)
            tl.store(y_ptrs + at, y, mask=there & mask, eviction_policy="evict_first")
    else:
        y = _hold(h, HOLD).to(tl.float32) * rstd * weight.to(tl.float32)
        tl.store(y_ptrs + cols, y, mask=there & in_row)
    if PEEL:
        tl.store(y_ptrs + edge, h_edge * rstd * weight_edge, mask=in_edge)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + rows, rstd, mask=there)

# %% [markdown]
# ## Backward
#
# With $\hat x_i = x_i r$ and the gradient $dy$ that arrives,
#
# $$
# dw_i = \sum_{\text{rows}} dy_i \, \hat x_i, \qquad
# dx_i = r \Bigl( w_i \, dy_i - \hat x_i \, \frac{1}{n} \sum_{j} w_j \, dy_j \, \hat x_j \Bigr).
# $$
#
# The bracket takes from $w \, dy$ its part along $\hat x$: a stretched row has the same $y$. And $h$, a sum, hands its gradient to both terms: one tensor, $dx$ plus the $dh$ from the [residual](../glossary.md#residual) stream, serves both. $dx$ wants a program that sees a row, $dw$ one that sees a column. For $dw$:
#
# 1. **[Atomic additions](../glossary.md#atomic-operation)** to one `dw` in memory: many, to few addresses. Float sums depend on their order, so the gradient would differ from run to run.
# 2. **Each row's own terms**, written out and added up later: 4 bytes an element, written and read again, where the whole job moves 6, two for each [trip](../glossary.md#trip).
# 3. **A partial sum for each program, and few programs.** Each walks down many rows and keeps its sums in [registers](../glossary.md#register). A second, small kernel adds up what they leave, always in the same order.
#
# {{ diagram("rms_norm_backward") }}
#
# The third adds {{ (2 * env.sms * 8192 * 4 / (3 * 2 * 8192**2) * 100) | n }} % of traffic at 8192 × 8192. Its price is parallelism: a program alone on its SM waits for its row, computes, waits again. So `num_stages` copies the next rows ahead into [shared memory](../glossary.md#shared-memory) ([pipelining](../glossary.md#pipelining)). And 8,192 columns mean 8,192 float32 sums in registers, beside which `x`, `dy` and the weight wait packed. In bfloat16 the weight finds no room past 8,192 and is loaded for each row (`KEEP`); past 16,384 nor do the sums, and `PARTS` programs share a row, as in [softmax](softmax.py#step-4-keep-the-row-on-the-chip): they leave their sums in slots and wait for those of the others. A program's part is the ticket it draws when it starts, so those that it waits for run already or start next (with one such launch at a time: two on two streams, both with rows longer than half of what fits, could hold each other up). While they wait, their next rows arrive.

# %% tags=["copy"]
@triton.jit
def _place(slots_ptr, PARTS: tl.constexpr, WAIT: tl.constexpr):
    # a program's group, its part of that group's rows, and the number of groups
    place = tl.program_id(0)
    if PARTS > 1 and WAIT:
        place = tl.atomic_add(slots_ptr, 1).to(tl.int32)
    return place // PARTS, place % PARTS, tl.num_programs(0) // PARTS

@triton.jit
def _meet(slot_ptr, part, total, PARTS: tl.constexpr, WAIT: tl.constexpr):
    # an empty slot holds 0: in place of 0, a part leaves the smallest float above it
    word = total.to(tl.int32, bitcast=True)
    tl.atomic_xchg(slot_ptr + part, tl.where(word == 0, 1, word), sem="relaxed")
    parts = tl.arange(0, triton.next_power_of_2(PARTS))
    ptrs = slot_ptr + tl.minimum(parts, PARTS - 1)
    if WAIT:
        words = tl.inline_asm_elementwise(
            "{ .reg .pred %p; again: ld.relaxed.gpu.global.b32 $0, [$1];"
            " setp.eq.s32 %p, $0, 0; @%p bra again; }",
            "=r,l", [ptrs.to(tl.int64)], tl.int32, False, 1,
        )  # fmt: skip
    else:
        words = tl.load(ptrs)
    return tl.sum(tl.where(parts < PARTS, words, 0).to(tl.float32, bitcast=True))

@triton.jit
def _weight(held, weight_ptrs, mask, KEEP: tl.constexpr, HOLD: tl.constexpr):
    if not KEEP:
        held = tl.load(weight_ptrs, mask=mask, other=0.0)
    return _hold(held, HOLD).to(tl.float32)

@triton.jit
def _dx(x, weight, dy, rstd, dot, n_cols):
    # rstd cubed would leave float32's range where x is very small or large
    return rstd * (weight * dy - (x * rstd) * (rstd * dot / n_cols))

@triton.jit
def rms_norm_bwd_kernel(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr, slots_ptr,
    stride_dym, stride_dhm, stride_hm, n_rows, n_cols, n_steps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, VECTOR: tl.constexpr,
    PEEL: tl.constexpr, HOLD: tl.constexpr, KEEP: tl.constexpr, STAGES: tl.constexpr,
    WAIT: tl.constexpr,
):  # fmt: skip
    """Gradient of a group's `n_steps * ROWS` rows and its share of dw; `PARTS` meet in slots."""
    group, part, groups = _place(slots_ptr, PARTS, WAIT)
    head = _head(group, n_cols, VECTOR, PEEL)
    body = _align(n_cols - head, VECTOR)
    cols = part * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    in_row = cols < body
    held = tl.load(weight_ptr + head + cols, mask=in_row, other=0.0)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    lanes = tl.arange(0, ROWS)[:, None].to(tl.int64)
    if PEEL:
        edge, in_edge = _edge(head, body, n_cols, VECTOR)
        in_edge &= part == 0
        weight_edge = tl.load(weight_ptr + head + edge, mask=in_edge, other=0.0).to(tl.float32)
        acc_edge = tl.zeros([ROWS, 2 * VECTOR], tl.float32)
    for step in tl.range(0, n_steps, num_stages=STAGES):
        rows = group + (step * ROWS + lanes) * groups  # [ROWS, 1]
        mask = (rows < n_rows) & in_row
        x_ptrs = h_ptr + _align(rows * stride_hm + head, VECTOR) + cols  # [ROWS, BLOCK]
        dy_ptrs = dy_ptr + _align(rows * stride_dym + head, VECTOR) + cols
        x = tl.load(x_ptrs, mask=mask, other=0.0)
        dy = tl.load(dy_ptrs, mask=mask, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        if dh_ptr is not None:
            dh_ptrs = dh_ptr + _align(rows * stride_dhm + head, VECTOR) + cols
            dh = tl.load(dh_ptrs, mask=mask, other=0.0)
        weight = _weight(held, weight_ptr + head + cols, in_row, KEEP, HOLD)
        dot = tl.sum(x.to(tl.float32) * (weight * dy.to(tl.float32)), axis=1)[:, None]
        if PEEL:
            there = (rows < n_rows) & in_edge
            x_edge = tl.load(h_ptr + rows * stride_hm + head + edge, mask=there, other=0.0)
            dy_edge = tl.load(dy_ptr + rows * stride_dym + head + edge, mask=there, other=0.0)
            x_edge, dy_edge = x_edge.to(tl.float32), dy_edge.to(tl.float32)
            dot += tl.sum(x_edge * (weight_edge * dy_edge), axis=1)[:, None]
        if PARTS > 1:
            slot_ptr = slots_ptr + 1 + (group + tl.cast(step, tl.int64) * groups) * PARTS
            dot = _meet(slot_ptr, part, tl.sum(dot), PARTS, WAIT)
        x, dy = _hold(x, HOLD).to(tl.float32), _hold(dy, HOLD).to(tl.float32)
        weight = _weight(held, weight_ptr + head + cols, in_row, KEEP, HOLD)
        dx = _dx(x, weight, dy, rstd, dot, n_cols)
        if dh_ptr is not None:
            dx += dh.to(tl.float32)
        dx_ptrs = dx_ptr + _align(rows * n_cols + head, VECTOR)
        tl.store(dx_ptrs + cols, dx, mask=mask)
        acc += dy * (x * rstd)
        if PEEL:
            dx = _dx(x_edge, weight_edge, dy_edge, rstd, dot, n_cols)
            if dh_ptr is not None:
                dh_edge_ptrs = dh_ptr + rows * stride_dhm + head + edge
                dx += tl.load(dh_edge_ptrs, mask=there, other=0.0).to(tl.float32)
            tl.store(dx_ptrs + edge, dx, mask=there)
            acc_edge += dy_edge * (x_edge * rstd)
    partial_ptr += group.to(tl.int64) * n_cols + head
    tl.store(partial_ptr + cols, tl.sum(acc, axis=0)[None, :], mask=in_row)
    if PEEL:
        tl.store(partial_ptr + edge, tl.sum(acc_edge, axis=0)[None, :], mask=in_edge)

@triton.jit
def column_sum_kernel(
    partial_ptr, out_ptr, n_partials, n_cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Sums `BLOCK_N` columns of a contiguous float32 matrix, in an order that never changes."""
    offs_m = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, n_partials, BLOCK_M):
        rows = (start + offs_m).to(tl.int64)
        mask = (rows < n_partials) & (offs_n < n_cols)
        acc += tl.load(partial_ptr + rows * n_cols + offs_n, mask=mask, other=0.0)
    tl.store(out_ptr + offs_n, tl.sum(acc, axis=0)[None, :], mask=offs_n < n_cols)

# %% [markdown]
# ## Launch
#
# How many rows a tile, programs an SM and [warps](../glossary.md#warp) are best was found by trying, on this page's GPU. `maxnreg` caps a thread's registers, so that the programs planned for an SM fit. Where nothing used $h$, its gradient arrives as None, and a trip is saved.

# %% tags=["copy"]
def _vectors(size: int, n_cols: int, *strides: int) -> tuple[int, bool]:
    # elements that move at once, 16 bytes or one; and whether rows begin off a boundary, all alike
    vector, alike = 16 // size, not any((stride - n_cols) % (16 // size) for stride in strides)
    peel = alike and n_cols % vector > 0 and n_cols >= 256
    return vector if peel or (alike and n_cols % vector == 0) else 1, peel

def _sms(x: torch.Tensor) -> int:
    # the interpreter has no SMs; with 2, its programs walk
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2

@functools.lru_cache(maxsize=1024)
def _plan(stride_xm, stride_rm, n_rows: int, n_cols: int, size: int, alone: bool) -> tuple:
    # of the forward: number of programs, the numbers behind eps, and options
    vector, peel = _vectors(size, n_cols, stride_xm, stride_rm)
    body = n_cols // vector * vector
    # 16 at least, since `_hold` packs two numbers
    block = max(16, 1 << (body - 1).bit_length())
    row_bytes, options, width = block * size, {}, 0
    rows = max(1, 2048 // block)
    num_warps = 4 if rows > 1 else max(1, row_bytes // 4096)
    full = vector > 1 and n_cols % block == 0 and n_rows % rows == 0 and alone
    plain = size == 2 and alone
    hold = plain and not full and block == 8192
    if row_bytes > 65536:
        full = vector > 1 and n_cols * size % 32768 == 0
    twice = row_bytes > 65536 or (plain and full and row_bytes >= 16384)
    if peel and size == 2:
        hold, twice = alone and block in (2048, 4096), block > 8192
        rows = 2 if hold else max(1, (1024 if alone else 512) // block)
        num_warps, options = max(1, rows * block // 2048), {"maxnreg": 128} if hold else {}
        if twice:
            block = 4096 if row_bytes <= (65536 if alone else 32768) else 8192
            num_warps, options = block // 512, {"maxnreg": 64}
    elif twice and full:
        block = min(n_cols // 2, 32768 // size)
        num_warps, options = 16 if alone else 32, {"maxnreg": 64}
        width = n_cols if n_cols <= 8 * block else 0
    elif twice:
        block, num_warps, options = 16384 // size if vector > 1 else 4096, 32, {"maxnreg": 32}
    elif hold:
        options = {"maxnreg": 96}
    elif (plain and full and block == 4096) or (not alone and row_bytes == 32768):
        num_warps = 8 if plain else 16
    multiple = vector if peel else 1  # rows of a program lie a multiple apart
    hold &= not triton.knobs.runtime.interpret
    constants = rows, block, twice, width, full, vector, peel, hold
    programs = -(-n_rows // (rows * multiple)) * multiple
    return programs, constants, {"num_warps": num_warps, **options}

def rms_norm_forward(x, residual, weight, eps, y, h=None, rstd=None) -> None:
    """Norms `[n_rows, n_cols]`, columns adjacent, into contiguous outputs; rstd is float32."""
    sizes = x.stride(0), (x if residual is None else residual).stride(0), *x.shape
    programs, constants, options = _plan(*sizes, x.element_size(), residual is None)
    tensors = x, residual, weight, y, h, rstd
    rms_norm_kernel[(programs,)](*tensors, *sizes, eps, *constants, **options)

def rms_norm_backward(dy, dh, h, weight, rstd, dx, dweight) -> None:
    """Writes dx and dweight from the gradients of y and of h, which was normed; dh may be None."""
    (n_rows, n_cols), size = h.shape, h.element_size()
    strides = dy.stride(0), h.stride(0) if dh is None else dh.stride(0), h.stride(0)
    interpreted, (vector, peel) = triton.knobs.runtime.interpret, _vectors(size, n_cols, *strides)
    body = n_cols // vector * vector
    block, parts = max(16, 1 << (body - 1).bit_length()), 1
    part_bytes = 8192 if peel else 16384
    if block * size > (32768 if vector > 1 and not peel else part_bytes):
        block, parts = part_bytes // size, -(-body * size // part_bytes)
    row_bytes = block * size
    per_sm = 2 if row_bytes <= 4096 or peel else 1
    rows = max(1, 16384 // per_sm // row_bytes) if parts == 1 else 1
    groups = max(1, min(per_sm * _sms(h) // parts, -(-n_rows // rows)))
    groups = -(-groups // vector) * vector if peel else groups  # a group's rows have equal heads
    steps, stages = -(-n_rows // (rows * groups)), 3 if row_bytes < 32768 else 2
    if dh is None and row_bytes == 16384 and (parts > 1 or n_cols * size <= 12288):
        stages = 4  # a row far shorter than its block leaves less under way
    partial = torch.empty(groups, n_cols, dtype=torch.float32, device=h.device)
    slots = h.new_zeros(1 + groups * steps * parts, dtype=torch.int32) if parts > 1 else None
    # the interpreter runs programs in turn and cannot wait: the second time every part is there
    for _ in range(2 if interpreted and parts > 1 else 1):
        rms_norm_bwd_kernel[(groups * parts,)](
            dy, dh, h, weight, rstd, dx, partial, slots, *strides, n_rows, n_cols, steps,
            ROWS=rows, BLOCK=block, PARTS=parts, VECTOR=vector, PEEL=peel, KEEP=row_bytes < 32768,
            HOLD=size == 2 and not interpreted, STAGES=stages, WAIT=not interpreted,
            num_warps=8 // per_sm,
        )  # fmt: skip
    block = 16 if n_cols <= 2048 else 64
    column_sum_kernel[(-(-n_cols // block),)](
        partial, dweight, groups, n_cols, BLOCK_M=128, BLOCK_N=block, num_warps=8
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[n_rows, n_cols]` with adjacent columns: a view where there is one, else a copy."""
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _forward(x, residual, weight, eps, keep):
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    h = None if residual is None else torch.empty_like(y)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if keep else None
    if x.numel():
        residual = None if residual is None else _rows(residual)
        with torch.cuda.device_of(x):
            rms_norm_forward(_rows(x), residual, weight.contiguous(), eps, y, h, rstd)
    return y, h, rstd


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        y, h, rstd = _forward(x, residual, weight, eps, keep=True)
        ctx.save_for_backward(x if h is None else h, weight, rstd)
        ctx.set_materialize_grads(False)
        return y if h is None else (y, h)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dh=None):
        h, weight, rstd = ctx.saved_tensors
        if dy is None:
            return dh, dh, None, None
        dx = torch.empty(h.shape, dtype=h.dtype, device=h.device)
        dweight = (torch.empty_like if h.numel() else torch.zeros_like)(weight.contiguous())
        if h.numel():
            dh = None if dh is None else _rows(dh)
            with torch.cuda.device_of(h):
                rms_norm_backward(_rows(dy), dh, _rows(h), weight.contiguous(), rstd, dx, dweight)
        return dx, dx if ctx.needs_input_grad[1] else None, dweight, None


def _rms_norm(name, x, residual, weight, eps):
    tensors = (x, weight) if residual is None else (x, weight, residual)

    def refuse(error, why):
        given = ", ".join(f"{tuple(t.shape)} {t.dtype} {t.device}" for t in tensors)
        raise error(f"{name} {why}, got {given}")

    floats, n_cols = (torch.float32, torch.float16, torch.bfloat16), x.shape[-1] if x.dim() else 0
    if x.dtype not in floats or weight.dtype not in floats:
        refuse(TypeError, "takes float32, float16 or bfloat16")
    if x.dim() == 0 or weight.dim() != 1 or weight.shape[0] != n_cols:
        refuse(ValueError, "needs a weight as long as x's rows")
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        refuse(ValueError, "needs a residual of x's shape and dtype")
    if any(t.device != x.device for t in tensors):
        refuse(ValueError, "needs all tensors on one device")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        refuse(ValueError, "needs a GPU (on the CPU, TRITON_INTERPRET=1)")
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    # the backward's programs, which all run at once, hold a row between them
    most = _sms(x) * 16384 // x.element_size() if wanted and n_cols > 2**15 else 2**30
    if n_cols > most:
        refuse(ValueError, f"takes rows up to {most}{', with gradients' * wanted}")
    if wanted:
        return _RMSNorm.apply(x, residual, weight, eps)
    y, h, _ = _forward(x, residual, weight, eps, keep=False)
    return y if h is None else (y, h)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """RMSNorm over the last dimension, in float32, rounded once; differentiable once.

    Args:
        x: `(..., n_cols)`, float32, float16 or bfloat16, on a GPU, any strides.
        weight: `(n_cols,)`, any of the three dtypes.
        eps: Added to the mean square.

    Returns:
        A contiguous tensor like `x`. Its gradients are the same bits in every run.

    Raises:
        TypeError: A dtype is none of the three.
        ValueError: Shapes or devices do not fit, tensors are not on a GPU, or rows have more than
            2**30 columns, or with gradients more than 16 KiB for each multiprocessor.
    """
    return _rms_norm("rms_norm", x, None, weight, eps)

def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds `x` to the residual and norms the sum, in one kernel; otherwise as `rms_norm`.

    Args:
        x: As for `rms_norm`, like weight and eps.
        residual: Shape and dtype of `x`.

    Returns:
        The norm of the sum, and the sum in the dtype of `x`, which is the new residual.

    Raises:
        ValueError: As `rms_norm`, TypeError too; or the residual does not fit.
    """
    return _rms_norm("add_rms_norm", x, residual, weight, eps)

# %% [markdown]
# ## Is it right?
#
# `check` compares with float64 and its autograd, on slices of wider matrices, in outputs filled with NaN before a [guard](../glossary.md#poison-and-guard). Two rows are so small that `eps` counts. It prints the largest error in percent of the allowed: an [ulp](../glossary.md#ulp), or 10⁻⁵ in float32; for $dx$, of the row's largest number, for $dw$ of the sum of its terms' sizes. Behind $h$ stand $y$, $dx$ and $dw$ again, with the residual.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares both functions and their gradients with float64; raises AssertionError."""
    torch.manual_seed(0)
    rtols = {torch.float32: 1e-5, torch.float16: 1e-3}
    # rows, columns, gap between rows: whole vectors, odd widths, odd strides, long rows
    shapes = [(1, 1, 0), (300, 136, 8), (300, 129, 8), (20, 515, 3), (5, 8192, 0), (5, 17001, 0)]
    if device == "cuda":
        rtols[torch.bfloat16] = 8e-3  # the interpreter rounds it otherwise
        shapes += [(999, 1000, 0), (9000, 1024, 0), (999, 5120, 0), (999, 12289, 0)]
        shapes += [(999, 16384, 0), (9, 65536, 0)]

    def poisoned(*shape, dtype):
        n = torch.Size(shape).numel()
        return torch.full((n + 4096,), float("nan"), device=device, dtype=dtype)[:n].view(shape)

    def off(out, want, scale, rtol):
        # above 1 where it is off, NaN where a number is missing or stands outside
        stray = not out._base[out.numel() :].isnan().all()
        error = ((out.double() - want).abs() / (rtol * scale + 1e-7)).max().item()
        return float("nan") if stray else error

    print(f"{'error / allowed':>24}     y    dx    dw | with residual    h")
    for dtype, rtol in rtols.items():
        for n_rows, n_cols, gap in shapes:
            wide = torch.randn(4, n_rows, n_cols + gap, device=device).to(dtype)
            wide[:2, -2:] *= 0.01
            x, residual, dy, dh = wide[..., :n_cols]
            weight, errors = (torch.rand(n_cols, device=device) + 0.5).to(dtype), []
            for r, g in ((None, None), (residual, dh)):
                y, h, dx = (poisoned(n_rows, n_cols, dtype=dtype) for _ in range(3))
                rstd, dw = poisoned(n_rows, dtype=torch.float32), poisoned(n_cols, dtype=dtype)
                rms_norm_forward(x, r, weight, 1e-4, y, h, rstd)
                h = x if r is None else h
                rms_norm_backward(dy, g, h, weight, rstd, dx, dw)
                h64, w64 = h.double().requires_grad_(), weight.double().requires_grad_()
                y64 = rms_norm_reference(h64, w64, 1e-4)
                dx64, dw64 = torch.autograd.grad(y64, (h64, w64), dy.double())
                terms = (y64 / w64 * dy).detach().abs().sum(0)
                dx64 = dx64 if g is None else dx64 + g.double()
                errors += [off(y, y64.detach(), y64.detach().abs(), rtol)]
                most = (dx64.abs() + dy.abs()).amax(1, True)
                errors += [off(dx, dx64, most, rtol), off(dw, dw64, terms, rtol)]
            h64 = x.double() + residual.double()
            errors += [off(h, h64, h64.abs(), rtol)]
            line = f"{str(dtype)[6:]:>9}{n_rows:>6} x {n_cols:<6}"
            line += "".join(f"{error:>6.0%}" for error in errors)
            assert all(error <= 1 for error in errors), f"off:\n{line}"
            print(line)

    # through autograd, three dimensions, the last not adjacent; one gradient may never arrive
    x, residual = (torch.randn(2, 50, 3, device=device).mT.requires_grad_() for _ in range(2))
    w = torch.rand(50, device=device, requires_grad=True)
    inputs = x, residual, w
    (y, h), (y_ref, h_ref) = add_rms_norm(*inputs), add_rms_norm_reference(*inputs)
    alone, alone_ref = rms_norm(x, w) + residual, rms_norm_reference(x, w) + residual
    for pair in ((y, y_ref), (h * w, h_ref * w), (y * h, y_ref * h_ref), (alone, alone_ref)):
        grads = (torch.autograd.grad(o.square().sum(), inputs, retain_graph=True) for o in pair)
        for got, want in zip(*grads, strict=True):
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-4), "autograd is off"


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Predict: what does the fused addition gain, in trips and in time? Shapes are rows × columns.

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    from functools import partial

    def torch_norm(x, weight):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6)

    def after_add(norm):
        return lambda x, residual, weight: (norm(h := x + residual, weight), h)

    def run(fn, inputs, gradients):
        outputs = fn(*inputs)
        if gradients:
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.grad(outputs, inputs, gradients[: len(outputs)])

    def benchmark(name, mode, op, rival, shapes, trips, host=False, **more):
        rows, gradient = [], mode != "forward"
        for n_rows, n_cols in shapes:
            torch._dynamo.reset()  # after eight shapes of a function torch no longer compiles it
            fused = torch.compile(rival, mode="max-autotune-no-cudagraphs", dynamic=False)
            x, residual, dy, dh = torch.randn(4, n_rows, n_cols, device="cuda").bfloat16()
            weight = torch.rand(n_cols, device="cuda").bfloat16()
            inputs = (x, residual, weight) if op is add_rms_norm else (x, weight)
            inputs = [t.requires_grad_(gradient) for t in inputs]
            fns = {"triton": op, "torch": rival, "torch_compile": fused} | more
            grads = (dy, dh) if gradient else None
            fns = {p: partial(run, fn, inputs, grads) for p, fn in fns.items()}
            size = {"shape": f"{n_rows} × {n_cols}", "bytes": trips * 2 * x.numel()}
            kind = "even" if n_cols & (n_cols - 1) == 0 and n_cols < 65536 else "odd or long"
            size |= {"flops": (13 if gradient else 4) * x.numel(), "width": kind}
            rows += [{"provider": p} | size | t for p, t in measure(fns, host=host).items()]
        title = f"{'Add + ' * (op is add_rms_norm)}RMSNorm, {mode}, rows × columns, bfloat16"
        about = {"name": name, "title": title, "x": "shape", "dtype": "bfloat16", "mode": mode}
        return about | {"ceiling": "copy", "rows": rows}

    plain, added = (rms_norm, torch_norm), (add_rms_norm, after_add(torch_norm))
    apart, forth, both = after_add(rms_norm), "forward", "forward and backward"
    shapes = [(16384, 1024), (8192, 4096), (8192, 8192), (4096, 16384), (16384, 16384)]
    odd = [(65536, 1000), (8192, 5120), (5461, 12289), (2048, 65536)]
    yield benchmark("forward", forth, *plain, [*shapes, (4096, 32768), *odd], 2)
    yield benchmark("add_forward", forth, *added, shapes + odd[:3], 4, triton_two_kernels=apart)
    yield benchmark("gradient", both, *plain, shapes + odd[2:], 5)
    yield benchmark("add_gradient", both, *added, shapes[2:5:2], 8, triton_two_kernels=apart)
    yield benchmark("small", forth, *plain, [(16, 4096)], 2, host=True)

# %% [markdown]
# {{ figure("forward", where={"width": "even"}, caption="Forward is a copy's work; at powers of two torch.compile is as fast, or nearly.") }}
# {% for r in rows("forward", provider="triton", width="even")[2:] %}{{ claim(0.95 < row("forward", provider="torch_compile", shape=r.shape).ms / r.ms < 1.05) }}{% endfor %}{% set square, wide, odd = "8192 × 8192", "4096 × 16384", "5461 × 12289" %}{%- for r in rows("forward", provider="triton")[:5] %}{{ claim(r.percent >= 93) }}{% endfor %}{% set ours = row("forward", provider="triton", shape=square) %}{%- set ours_odd = row("forward", provider="triton", shape=odd) %}{%- set compiled_odd = row("forward", provider="torch_compile", shape=odd) %}{%- set ours_4k, compiled_4k = row("forward", provider="triton", shape="8192 × 4096"), row("forward", provider="torch_compile", shape="8192 × 4096") %}{%- set ours_short, compiled_short = row("forward", provider="triton", shape="16384 × 1024"), row("forward", provider="torch_compile", shape="16384 × 1024") %}
#
# At {{ square }}: {{ ours.ms | ms }}, {{ ours.percent | pct }} of the copy (more than 100, as at 1,024 columns, says that the yardstick, PyTorch's copy, is [not the fastest possible](../foundations/memory_hierarchy.py#the-ceiling-hbm-by-reading-writing-copying): a norm reads as much as it writes). torch.compile is level here and at 4,096 columns{{ claim(0.97 < compiled_4k.ms / ours_4k.ms < 1.03) }} (its search chooses anew each time, and has chosen slower kernels in other recordings); at 12,289 columns it takes {{ (compiled_odd.ms / ours_odd.ms) | times }} as long{{ claim(compiled_odd.ms > 1.1 * ours_odd.ms) }}, at 1,024 {{ (compiled_short.ms / ours_short.ms) | times }}{{ claim(1 < compiled_short.ms / ours_short.ms < 1.1) }}.
#
# {{ table("forward", where={"width": "odd or long"}) }}
#
# {{ figure("gradient", where={"width": "even"}, caption="With the gradient, one kernel for both sums is ahead of both rivals.") }}
#
# {% for r in rows("gradient", provider="triton")[:5] %}{%- for _, ratio in r.benchmark.peers(r) %}{{ claim(ratio >= 1.05) }}{% endfor %}{% endfor %}{% set ours = row("gradient", provider="triton", shape=square) %}{%- set compiled = row("gradient", provider="torch_compile", shape=square) %}Forward and backward at {{ square }}: {{ ours.ms | ms }}, {{ ours.percent | pct }} of the copy{{ claim(ours.percent >= 84) }}; torch.compile takes {{ (compiled.ms / ours.ms) | times }} as long.
#
# {{ table("gradient", where={"width": "odd or long"}) }}
#
# {{ figure("add_forward", where={"width": "even"}, caption="The addition rides along: four trips in place of five.") }}
# {% set fused = row("add_forward", provider="triton", shape=square) %}{%- set apart = row("add_forward", provider="triton_two_kernels", shape=square) %}
# {% set both = row("add_gradient", provider="triton", shape=square) %}{%- set both_apart = row("add_gradient", provider="triton_two_kernels", shape=square) %}
#
# An addition and then our norm take {{ (apart.ms / fused.ms) | times }} as long as the fused kernel (5 trips to 4{{ claim(1.1 < apart.ms / fused.ms < 1.5) }}), with gradients {{ (both_apart.ms / both.ms) | n(2) }}× (11 to 8{{ claim(both_apart.ms / both.ms > 1.1) }}). {% set both_eager, both_compiled = row("add_gradient", provider="torch", shape=square), row("add_gradient", provider="torch_compile", shape=square) %}With gradients PyTorch takes {{ (both_eager.ms / both.ms) | times }} as long as the fused kernel, torch.compile {{ (both_compiled.ms / both.ms) | n(2) }}×, which is less than our two kernels apart need.{{ claim(1.15 * both.ms < both_compiled.ms < both_apart.ms) }} Forward, torch.compile is level at 1,024 columns and 2 to 5 % behind at powers of two from 4,096 on.{% for r in rows("add_forward", provider="triton", width="even") %}{{ claim(0.995 * r.ms < row("add_forward", provider="torch_compile", shape=r.shape).ms) }}{% endfor %}{% for shape in ("8192 × 4096", square, wide, "16384 × 16384") %}{{ claim(1.01 < row("add_forward", provider="torch_compile", shape=shape).ms / row("add_forward", provider="triton", shape=shape).ms < 1.055) }}{% endfor %} At other widths:
#
# {{ table("add_forward", where={"width": "odd or long"}) }}
#
# ## Where it loses, and why
#
# - **Few, wide rows** with the gradient: {{ row("gradient", provider="triton", shape=wide).percent | pct }} at {{ wide }}, but {{ row("gradient", provider="triton", shape="16384 × 16384").percent | pct }} with four times the rows. What a call pays once, the starts of three kernels, the filling of the pipelines, {{ env.sms }} partial sums of 64 KiB, weighs more where a program has only 32 rows.{{ claim(row("gradient", provider="triton", shape=wide).percent < row("gradient", provider="triton", shape="16384 × 16384").percent - 4) }}
# - **Short rows** with the gradient: {{ row("gradient", provider="triton", shape="16384 × 1024").percent | pct }} at 16384 × 1024, where starting three kernels shows.
# - **Odd widths**: 12,289 columns come to {{ ours_odd.percent | pct }} of a copy forward, where the weight, from its number `head` on, lies off a boundary and is loaded number by number. (Eight copies of it, each begun one number later, would make its vectors whole, for one launch more: in trials that are not recorded here that gained a few percent with the addition, and nothing without.) With the gradient they come to {{ row("gradient", provider="triton", shape=odd).percent | pct }}: three programs share a row and wait for each other.{{ claim(row("gradient", provider="triton", shape=odd).percent < 60) }}
# - **With the addition**, 12,289 columns come to {{ row("add_forward", provider="triton", shape=odd).percent | pct }} forward; two kernels take {{ (row("add_forward", provider="triton_two_kernels", shape=odd).ms / row("add_forward", provider="triton", shape=odd).ms) | times }} as long. Without it torch.compile is ahead by {{ (100 - 100 * row("forward", provider="torch_compile", shape="8192 × 5120").ms / row("forward", provider="triton", shape="8192 × 5120").ms) | n(1) }} % at 5,120 columns. At 1,000 columns with the addition torch.compile takes {{ (100 - 100 * row("add_forward", provider="torch_compile", shape="65536 × 1000").ms / row("add_forward", provider="triton", shape="65536 × 1000").ms) | n(1) }} % less time.{{ claim(0.97 < row("add_forward", provider="torch_compile", shape="65536 × 1000").ms / row("add_forward", provider="triton", shape="65536 × 1000").ms < 1 and row("add_forward", provider="triton_two_kernels", shape=odd).ms > 1.2 * row("add_forward", provider="triton", shape=odd).ms) }}
# - {% set long, long_compiled = row("forward", provider="triton", shape="2048 × 65536"), row("forward", provider="torch_compile", shape="2048 × 65536") %}**Long rows**: {{ long.percent | pct }} of a copy at 65,536 columns, whose second reading comes from L2 or, where the row is gone, from memory; torch.compile takes {{ (long_compiled.ms / long.ms) | times }} as long.{{ claim(long_compiled.ms > 1.02 * long.ms and long.percent < 95) }} {% set long, long_compiled = row("gradient", provider="triton", shape="2048 × 65536"), row("gradient", provider="torch_compile", shape="2048 × 65536") %}With the gradient it is {{ long.percent | pct }}, since our programs, which share a row there, wait for each other; torch.compile takes {{ (long_compiled.ms / long.ms) | times }} as long.{{ claim(long_compiled.ms > 1.02 * long.ms and long.percent < 70) }}
# - **Small batches**: {%- set small = row("small", provider="triton") %} a call at {{ small.shape }} takes {{ small.host_us | n(0) }} µs of the host, PyTorch's {{ row("small", provider="torch").host_us | n(0) }}{{ claim(row("small", provider="torch").host_us < 0.5 * small.host_us) }}; the kernel takes {{ small.us | n(1) }} µs. Triton looks at each of 19 arguments, [checks and the output](../foundations/programming_model.py#what-happens-at-the-launch) come on top: more than the 20 µs that we aimed at{{ claim(small.host_us > 20) }}. (The host was slower in this recording than in others: [LayerNorm](layer_norm.py#where-it-loses-and-why), whose host code is alike, took {{ rec("fusion/layer_norm").row("layer_norm_forward_small", provider="triton").host_us | n(0) }} µs in its own.) Use a [CUDA graph](../glossary.md#cuda-graph); torch.compile without one takes {{ row("small", provider="torch_compile").host_us | n(0) }} µs.{{ claim(row("small", provider="torch_compile").host_us > small.host_us) }}
#
# ## What to remember
#
# 1. Count trips: an addition that rides along costs two, alone three.
# 2. Sums across rows: few programs, a partial sum each, a second small kernel; no atomics.
# 3. Few programs: then the next rows must be under way, and the registers must hold all sums.
#
# ## Exercises
#
# ??? question "1 (easy): let the mean divide by `BLOCK`. Which widths hide the mistake?"
#     ??? success "Answer"
#         For `rms_norm` in bfloat16 the powers of two from 16 to 4,096: there a row is one [block](../glossary.md#block). Elsewhere all outputs are off by a factor $\sqrt{\text{BLOCK} / n}$.
#
# ??? question "2 (medium): with 8,192 rows and 132 programs, what does uneven sharing cost?"
#     ??? success "Answer"
#         The busiest takes 63 rows for 62.06: 1.5 %. Of 4,096 rows, 32 for 31.03: 3 %.
#
# ??? question "3 (hard): Gemma multiplies by $1 + w$. Change forward and backward; check."
#     ??? success "Answer"
#         Add 1 wherever `weight` becomes float32. $1 + w$ changes as $w$ does: $dw$ stays.
#         In float32 all gradients must equal those of `rms_norm(x, 1 + weight)`.
#
# ## Use it in your project
#
# ```python
# from rms_norm import add_rms_norm, rms_norm
# y, residual = add_rms_norm(attention_output, residual, weight)
# ```
#
# API: [rms_norm][examples.fusion.rms_norm.rms_norm], [add_rms_norm][examples.fusion.rms_norm.add_rms_norm]. Next: [dropout](dropout.py).
