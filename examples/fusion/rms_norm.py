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
# Before each attention and each MLP, a transformer brings its activations back to one scale. Most
# recent models use RMSNorm ([Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467)): divide a
# row by its root mean square, multiply each column by a learned weight,
#
# $$
# y_i = x_i \, r \, w_i, \qquad r = \Bigl( \frac{1}{n} \sum_{j} x_j^2 + \varepsilon \Bigr)^{-1/2} .
# $$
#
# Forward, that is one reduction along each row, as in [softmax](softmax.py). The gradient is where
# libraries lose: it needs a sum along each **row** for $dx$ and, at the same time, a sum down each
# **column** for $dw$. **Can one kernel do both, and read everything once?**
#
# ## What it costs
#
# Nearly always an addition stands before the norm: a layer's output joins the *residual stream*
# $h$, whose norm feeds the next layer. Count trips of a matrix through [HBM](../glossary.md#hbm):
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
# At 8192 × 8192 in bfloat16 a copy of two trips takes {{ copy_ms(2 * 134217728) | ms }} on this {{ env.gpu }}, of five, forward and
# backward, {{ copy_ms(5 * 134217728) | ms }}: the [floors](../glossary.md#floor). Arithmetic hides behind them.

# %% tags=["copy"]
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
# ## Step 1: block by block, at any width
#
# A [program](../glossary.md#program) takes one row, a [block](../glossary.md#block) at a time: once
# for the sum of squares, once more to write, the last block first, since it is the likeliest to be
# in a cache still. What must lanes hold that the [mask](../glossary.md#mask) switches off? Zero:
# its square adds nothing. And the mean divides by `n_cols`, never by the block. The sum with the
# residual is rounded before it is normed: the backward pass will read $h$ as written, and both must
# mean the same number. A `None` is known when the kernel is compiled: its `if` costs nothing later.

# %% tags=["copy"]
@triton.jit
def rms_norm_long_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr, rstd_ptr, stride_xm, stride_rm, n_cols, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """RMSNorm of a row a program, after adding the residual; what is not needed is None."""
    # int64: the offset of a row passes 2**31 in a tensor of more than 2**31 elements
    row = tl.program_id(0).to(tl.int64)
    x_ptr, y_ptr = x_ptr + row * stride_xm, y_ptr + row * n_cols
    again_ptr = x_ptr
    if residual_ptr is not None:
        residual_ptr, h_ptr = residual_ptr + row * stride_rm, h_ptr + row * n_cols
        again_ptr = h_ptr
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)  # [BLOCK]
        mask = cols < n_cols
        h = tl.load(x_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last")
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + cols, mask=mask, other=0.0)
            h = (h.to(tl.float32) + residual.to(tl.float32)).to(h.dtype)
            tl.store(h_ptr + cols, h, mask=mask)
        squares += h.to(tl.float32) * h.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / n_cols + eps)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd)
    # other threads may have written what a thread reads again
    tl.debug_barrier()
    last = (n_cols - 1) // BLOCK * BLOCK
    for start in range(0, n_cols, BLOCK):
        cols = last - start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        h = tl.load(again_ptr + cols, mask=mask, eviction_policy="evict_first").to(tl.float32)
        weight = tl.load(weight_ptr + cols, mask=mask).to(tl.float32)
        tl.store(y_ptr + cols, h * rstd * weight, mask=mask)

# %% [markdown]
# ## Step 2: the row stays in registers
#
# Up to 32,768 bfloat16 columns, a program keeps its row in [registers](../glossary.md#register) and
# reads it once, cache or no cache. Beyond that, this kernel does what pays at such speed:
#
# - **Several short rows a program**, for starting one costs as much as moving some 2 KiB.
# - **Whole vectors.** A thread moves 16 bytes at once only where they begin at a multiple of 16 and
#   are masked alike. `_align` divides by 8 and multiplies by 8: the same number, but now the
#   compiler *knows* the factor. So width 1,000, which is no multiple of 16, is fast.
# - **Odd widths.** Of 12,289 columns, most rows begin off the boundary. The kernel takes whole
#   vectors from a row's first boundary on; the *head* before them and what is left behind are an
#   *edge*, a small block of its own. Rows of one program lie a multiple of 8 apart (`PEEL`), so
#   that their heads are equally long.
# - **Packed rows.** Between sum and store a bfloat16 row should wait in two bytes an element, so
#   that more programs fit an [SM](../glossary.md#sm). The compiler would rather keep its float32
#   numbers; `_hold` passes the row through a line of assembly that hides the sameness.

# %% tags=["copy"]
@triton.jit
def _align(offset, VECTOR: tl.constexpr):
    # the same number: the caller knows that it is a multiple, now the compiler does
    return offset // VECTOR * VECTOR


@triton.jit
def _head(pid, n_cols, VECTOR: tl.constexpr, PEEL: tl.constexpr):
    # elements of row `pid` before its first 16-byte boundary
    head = 0
    if PEEL:
        head = ((VECTOR - pid.to(tl.int64) * n_cols % VECTOR) % VECTOR).to(tl.int32)
    return head


@triton.jit
def _edge(head, body, n_cols, VECTOR: tl.constexpr):
    # columns, counted from the head's end, that lie before and after the body's whole vectors
    lane = tl.arange(0, 2 * VECTOR)[None, :]  # [1, 2 * VECTOR]
    edge = tl.where(lane < VECTOR, lane - head, lane - VECTOR + body)
    return edge, tl.where(lane < VECTOR, lane < head, head + edge < n_cols)


@triton.jit
def _hold(x, HOLD: tl.constexpr):
    # the same bits, but the compiler cannot know: what follows from them is computed again
    if HOLD:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    return x


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr, rstd_ptr, stride_xm, stride_rm,
    n_rows, n_cols, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    PEEL: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """As rms_norm_long_kernel, `ROWS` rows a program; `BLOCK` is at least `n_cols`.

    `VECTOR` divides n_cols and all strides; with PEEL: stride - n_cols and the number of programs.
    """
    pid = tl.program_id(0).to(tl.int64)
    if PEEL:
        rows = pid + tl.arange(0, ROWS)[:, None] * tl.num_programs(0)  # [ROWS, 1]
    else:
        rows = pid * ROWS + tl.arange(0, ROWS)[:, None]
    head = _head(pid, n_cols, VECTOR, PEEL)
    body = _align(n_cols - head, VECTOR)
    x_first = _align(rows * stride_xm + head, VECTOR)
    y_first = _align(rows * n_cols + head, VECTOR)
    cols = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    mask = (rows < n_rows) & (cols < body)
    h = tl.load(x_ptr + x_first + cols, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + head + cols, mask=cols < body, other=0.0)
    if residual_ptr is not None:
        r_first = _align(rows * stride_rm + head, VECTOR)
        residual = tl.load(residual_ptr + r_first + cols, mask=mask, other=0.0)
        h = (h.to(tl.float32) + residual.to(tl.float32)).to(h.dtype)
        tl.store(h_ptr + y_first + cols, h, mask=mask)
    squares = tl.sum(h.to(tl.float32) * h.to(tl.float32), axis=1)[:, None]
    if PEEL:
        edge, edge_mask = _edge(head, body, n_cols, VECTOR)
        weight_edge = tl.load(weight_ptr + head + edge, mask=edge_mask, other=0.0).to(tl.float32)
        edge_mask &= rows < n_rows
        h_edge = tl.load(x_ptr + x_first + edge, mask=edge_mask, other=0.0)
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + r_first + edge, mask=edge_mask, other=0.0)
            h_edge = (h_edge.to(tl.float32) + residual.to(tl.float32)).to(h_edge.dtype)
            tl.store(h_ptr + y_first + edge, h_edge, mask=edge_mask)
        h_edge = h_edge.to(tl.float32)
        squares += tl.sum(h_edge * h_edge, axis=1)[:, None]
    rstd = tl.rsqrt(squares / n_cols + eps)  # [ROWS, 1]
    h = _hold(h, HOLD)
    y = h.to(tl.float32) * rstd * weight.to(tl.float32)
    tl.store(y_ptr + y_first + cols, y, mask=mask)
    if PEEL:
        tl.store(y_ptr + y_first + edge, h_edge * rstd * weight_edge, mask=edge_mask)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)

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
# The bracket takes from $w \, dy$ what points along $\hat x$: a longer row has the same norm. And
# $h$, a sum, hands its gradient to both terms: one tensor, $dx$ plus the $dh$ from the residual
# stream, serves both. $dx$ wants a program that sees a row, $dw$ one that sees a column. For $dw$:
#
# 1. **Atomic additions** to one `dw` in memory, one an element, to few addresses. Float sums depend
#    on their order, so the gradient would differ from run to run.
# 2. **A partial sum for each row**, added up later: float32, four bytes an element written and read
#    again, where the whole job moves six.
# 3. **A partial sum for each program, and few programs.** Each walks down many rows and keeps its
#    sums in registers. A second, small kernel adds up what they leave, always in the same order.
#
# {{ diagram("rms_norm_backward") }}
#
# The third adds 1 % of traffic at 8192 × 8192. Its price is parallelism: a program alone on its SM
# waits for its row, computes, waits again. So the next rows must be on their way meanwhile:
# `num_stages` copies them ahead into [shared memory](../glossary.md#shared-memory)
# ([pipelining](../glossary.md#pipelining)). And 8,192 columns mean 8,192 float32 sums in registers,
# beside which `x`, `dy` and the weight wait packed. Past 8,192 the weight finds no room and is
# loaded for each row (`KEEP`); past 16,384 the sums neither, and a program takes each row in two
# passes, as in step 1, and adds to its own row of `partial` in memory.

# %% tags=["copy"]
@triton.jit
def _weight(held, weight_ptrs, mask, KEEP: tl.constexpr, HOLD: tl.constexpr):
    if not KEEP:
        held = tl.load(weight_ptrs, mask=mask, other=0.0)
    return _hold(held, HOLD).to(tl.float32)


@triton.jit
def _dx(x, weight, dy, rstd, dot, n_cols):
    return rstd * (weight * dy) - x * (rstd * rstd * rstd * dot / n_cols)


@triton.jit
def rms_norm_bwd_kernel(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr,
    stride_dym, stride_dhm, stride_hm, n_rows, n_cols, n_steps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, HOLD: tl.constexpr,
    KEEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of every `num_programs`-th row, `n_steps * ROWS` in all, and their share of dw."""
    pid, num_programs = tl.program_id(0), tl.num_programs(0)
    cols = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    in_row = cols < _align(n_cols, VECTOR)
    held = tl.load(weight_ptr + cols, mask=in_row, other=0.0)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in tl.range(0, n_steps, num_stages=STAGES):
        lanes = (step * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        rows = pid + lanes * num_programs  # [ROWS, 1]
        mask = (rows < n_rows) & in_row
        x_ptrs = h_ptr + rows * _align(stride_hm, VECTOR) + cols  # [ROWS, BLOCK]
        dy_ptrs = dy_ptr + rows * _align(stride_dym, VECTOR) + cols
        x = tl.load(x_ptrs, mask=mask, other=0.0)
        dy = tl.load(dy_ptrs, mask=mask, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        if dh_ptr is not None:
            dh_ptrs = dh_ptr + rows * _align(stride_dhm, VECTOR) + cols
            dh = tl.load(dh_ptrs, mask=mask, other=0.0)
        weight = _weight(held, weight_ptr + cols, in_row, KEEP, HOLD)
        dot = tl.sum(x.to(tl.float32) * (weight * dy.to(tl.float32)), axis=1)[:, None]
        x, dy = _hold(x, HOLD).to(tl.float32), _hold(dy, HOLD).to(tl.float32)
        weight = _weight(held, weight_ptr + cols, in_row, KEEP, HOLD)
        dx = _dx(x, weight, dy, rstd, dot, n_cols)
        if dh_ptr is not None:
            dx += dh.to(tl.float32)
        tl.store(dx_ptr + rows * _align(n_cols, VECTOR) + cols, dx, mask=mask)
        acc += dy * (x * rstd)
    partial_ptr += pid.to(tl.int64) * n_cols
    tl.store(partial_ptr + cols, tl.sum(acc, axis=0)[None, :], mask=in_row)


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


@triton.jit
def rms_norm_bwd_long_kernel(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr,
    stride_dym, stride_dhm, stride_hm, n_rows, n_cols, BLOCK: tl.constexpr,
):  # fmt: skip
    """As rms_norm_bwd_kernel, `BLOCK` columns at a time; `partial_ptr` points to zeros."""
    partial_ptr += tl.program_id(0).to(tl.int64) * n_cols
    for row in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        h_row, dy_row = h_ptr + row * stride_hm, dy_ptr + row * stride_dym
        rstd = tl.load(rstd_ptr + row)
        dots = tl.zeros([BLOCK], tl.float32)
        for start in range(0, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = cols < n_cols
            x = tl.load(h_row + cols, mask=mask, other=0.0, eviction_policy="evict_last")
            dy = tl.load(dy_row + cols, mask=mask, other=0.0, eviction_policy="evict_last")
            weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
            dots += x.to(tl.float32) * (weight * dy.to(tl.float32))
        dot = tl.sum(dots, axis=0)
        last = (n_cols - 1) // BLOCK * BLOCK
        for start in range(0, n_cols, BLOCK):
            cols = last - start + tl.arange(0, BLOCK)
            mask = cols < n_cols
            x = tl.load(h_row + cols, mask=mask, eviction_policy="evict_first").to(tl.float32)
            dy = tl.load(dy_row + cols, mask=mask, eviction_policy="evict_first").to(tl.float32)
            weight = tl.load(weight_ptr + cols, mask=mask).to(tl.float32)
            dx = _dx(x, weight, dy, rstd, dot, n_cols)
            if dh_ptr is not None:
                dx += tl.load(dh_ptr + row * stride_dhm + cols, mask=mask).to(tl.float32)
            tl.store(dx_ptr + row * n_cols + cols, dx, mask=mask)
            sums = tl.load(partial_ptr + cols, mask=mask)
            tl.store(partial_ptr + cols, sums + dy * (x * rstd), mask=mask)
        # the next row adds to what other threads may have written
        tl.debug_barrier()

# %% [markdown]
# ## Launch
#
# Rows a tile, programs an SM and [warps](../glossary.md#warp) come from trying others on this
# page's GPU. `maxnreg` caps a thread's registers, so that as many programs as planned fit an SM.
# Where nothing used $h$, its gradient arrives as None, and a trip is saved.

# %% tags=["copy"]
def _vector(itemsize: int, *sizes: int) -> int:
    # elements of a 16-byte vector where they divide all sizes, else 1
    return 1 if any(size % (16 // itemsize) for size in sizes) else 16 // itemsize


def rms_norm_forward(x, residual, weight, eps, y, h=None, rstd=None) -> None:
    """Norms `[n_rows, n_cols]`, columns adjacent, into contiguous outputs; rstd is float32."""
    (n_rows, n_cols), size = x.shape, x.element_size()
    strides = x.stride(0), x.stride(0) if residual is None else residual.stride(0)
    tensors = x, residual, weight, y, h, rstd
    block, vector = triton.next_power_of_2(n_cols), _vector(size, n_cols, *strides)
    if block * size > 65536:
        rms_norm_long_kernel[(n_rows,)](*tensors, *strides, n_cols, eps, BLOCK=8192, num_warps=16)
        return
    rows, hold, maxnreg = max(1, 2048 // block), False, None
    num_warps = 4 if rows > 1 else max(1, block * size // 4096)
    # whole vectors all the same where a row of x begins as its row of y does
    peel = vector == 1 < _vector(size, *(stride - n_cols for stride in strides)) and block >= 256
    vector = 16 // size if peel else vector
    if size == 2 and residual is None and (block == 8192 or (block > 8192 and peel)):
        hold, maxnreg = not triton.knobs.runtime.interpret, 96 if block == 8192 else 128
    elif residual is not None and block * size == 32768:
        num_warps *= 2
    multiple = vector if peel else 1  # rows of a program lie a multiple apart
    rms_norm_kernel[(triton.cdiv(n_rows, rows * multiple) * multiple,)](
        *tensors, *strides, n_rows, n_cols, eps, ROWS=rows, BLOCK=block, VECTOR=vector, PEEL=peel,
        HOLD=hold, num_warps=num_warps, maxnreg=maxnreg,
    )  # fmt: skip


def rms_norm_backward(dy, dh, h, weight, rstd, dx, dweight) -> None:
    """Writes dx and dweight from the gradients of y and of h, which was normed; dh may be None."""
    (n_rows, n_cols), size = h.shape, h.element_size()
    strides = dy.stride(0), h.stride(0) if dh is None else dh.stride(0), h.stride(0)
    block, vector = triton.next_power_of_2(n_cols), _vector(size, n_cols, *strides)
    # the interpreter has no SMs; with 2, its programs walk
    sms = torch.cuda.get_device_properties(h.device).multi_processor_count if h.is_cuda else 2
    row_bytes = block * size
    long, per_sm = row_bytes > (16384 if vector == 1 else 32768), 2 if row_bytes <= 4096 else 1
    tile_bytes = max(16384 // per_sm, row_bytes)
    rows = 1 if long else tile_bytes // row_bytes
    programs = min(per_sm * sms, triton.cdiv(n_rows, rows))
    new = h.new_zeros if long else h.new_empty
    partial = new(programs, n_cols, dtype=torch.float32)
    inputs = dy, dh, h, weight, rstd, dx, partial, *strides, n_rows, n_cols
    if long:
        rms_norm_bwd_long_kernel[(programs,)](*inputs, BLOCK=8192, num_warps=16)
    else:
        steps, stages = triton.cdiv(n_rows, rows * programs), 3 if row_bytes < 32768 else 2
        if dh is None and row_bytes == 16384 and n_cols * size <= 12288:
            stages = 4  # a row far shorter than its block leaves less under way
        rms_norm_bwd_kernel[(programs,)](
            *inputs, steps, ROWS=rows, BLOCK=block, VECTOR=vector, KEEP=row_bytes < 32768,
            STAGES=stages, HOLD=size == 2 and not triton.knobs.runtime.interpret,
            num_warps=8 // per_sm,
        )  # fmt: skip
    block = 16 if n_cols <= 2048 else 64
    inputs, grid = (partial, dweight, programs, n_cols), (triton.cdiv(n_cols, block),)
    column_sum_kernel[grid](*inputs, BLOCK_M=128, BLOCK_N=block, num_warps=8)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[n_rows, n_cols]` with adjacent columns: a view where there is one, else a copy."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _forward(x, residual, weight, eps, keep):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
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
    floats, tensors = (torch.float32, torch.float16, torch.bfloat16), (x, weight, residual)
    given = ", ".join(f"{tuple(t.shape)} {t.dtype} {t.device}" for t in tensors if t is not None)
    if x.dtype not in floats or weight.dtype not in floats:
        raise TypeError(f"{name} takes float32, float16 or bfloat16, got {given}")
    if x.dim() == 0 or weight.shape != x.shape[-1:] or x.shape[-1] > 2**30:
        raise ValueError(f"{name} needs a weight as long as x's rows, up to 2**30, got {given}")
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(f"{name} needs a residual of x's shape and dtype, got {given}")
    if any(t is not None and t.device != x.device for t in tensors):
        raise ValueError(f"{name} needs all tensors on one device, got {given}")
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"{name} needs a GPU, got {given}; TRITON_INTERPRET=1 runs it on the CPU")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
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
        ValueError: Shapes or devices do not fit, or tensors are not on a GPU.
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
# `check` compares with float64 and its autograd, on slices of wider matrices, in outputs poisoned
# with NaN before a guard. Two rows are so small that `eps` counts. Printed is the largest error in
# percent of the allowed: the dtype's rounding, or 10⁻⁵ in float32; for $dx$ of its row's largest.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares both functions and their gradients with float64; raises AssertionError."""
    torch.manual_seed(0)
    rtols = {torch.float32: 1e-5, torch.float16: 1e-3}
    # rows, columns, gap between rows: whole vectors, odd widths, odd strides, long rows
    shapes = [(1, 1, 0), (300, 136, 8), (300, 129, 8), (50, 1000, 0), (20, 515, 3), (5, 17001, 0)]
    if device == "cuda":
        rtols[torch.bfloat16] = 8e-3  # the interpreter rounds it otherwise
        shapes += [(9000, 1024, 0), (3000, 5120, 0), (2000, 12289, 0), (1000, 16384, 0)]

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

    def torch_add_norm(x, residual, weight):
        h = x + residual
        return torch_norm(h, weight), h

    def two_kernels(x, residual, weight):
        h = x + residual
        return rms_norm(h, weight), h

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

    plain, added = (rms_norm, torch_norm), (add_rms_norm, torch_add_norm)
    apart, forth, both = two_kernels, "forward", "forward and backward"
    shapes = [(16384, 1024), (8192, 4096), (8192, 8192), (4096, 16384), (16384, 16384)]
    odd = [(65536, 1000), (8192, 5120), (5461, 12289), (2048, 65536)]
    yield benchmark("forward", forth, *plain, shapes + odd, 2)
    yield benchmark("add_forward", forth, *added, shapes + odd, 4, triton_two_kernels=apart)
    yield benchmark("gradient", both, *plain, shapes + odd, 5)
    yield benchmark("add_gradient", both, *added, shapes[2:5:2], 8, triton_two_kernels=apart)
    yield benchmark("small", forth, *plain, [(16, 4096)], 2, host=True)

# %% [markdown]
# {{ figure("forward", where={"width": "even"},
#    caption="Forward is a copy's work; the compiler finds that, too, at even widths.") }}
# {%- set square, wide, odd = "8192 × 8192", "4096 × 16384", "5461 × 12289" %}{%- for r in rows("forward", provider="triton")[:5] %}{{ claim(r.percent >= 93) }}{% endfor %}
# {%- set ours = row("forward", provider="triton", shape=square) %}{%- set ours_odd = row("forward", provider="triton", shape=odd) %}
# {%- set compiled_odd = row("forward", provider="torch_compile", shape=odd) %}
#
# At {{ square }}: {{ ours.ms | ms }}, {{ ours.percent | pct }} of the copy. torch.compile is level on
# even widths; at 12,289 it takes {{ (compiled_odd.ms / ours_odd.ms) | times }} as
# long{{ claim(compiled_odd.ms > 1.1 * ours_odd.ms) }}.
#
# {{ table("forward", where={"width": "odd or long"}) }}
#
# {{ figure("gradient", where={"width": "even"}, caption="With the gradient, one kernel for both sums is ahead of both rivals.") }}
# {%- for r in rows("gradient", provider="triton")[:5] %}
# {%- for _, ratio in r.benchmark.peers(r) %}{{ claim(ratio >= 1.05) }}{% endfor %}{% endfor %}
# {%- set ours = row("gradient", provider="triton", shape=square) %}{%- set compiled = row("gradient", provider="torch_compile", shape=square) %}
#
# Forward and backward at {{ square }}: {{ ours.ms | ms }}, {{ ours.percent | pct }} of the
# copy{{ claim(ours.percent >= 84) }}; torch.compile takes {{ (compiled.ms / ours.ms) | times }} as long.
#
# {{ table("gradient", where={"width": "odd or long"}) }}
#
# {{ figure("add_forward", where={"width": "even"}, caption="The addition rides along: four trips in place of five.") }}
# {%- set fused = row("add_forward", provider="triton", shape=square) %}{%- set apart = row("add_forward", provider="triton_two_kernels", shape=square) %}
# {%- set both = row("add_gradient", provider="triton", shape=square) %}{%- set both_apart = row("add_gradient", provider="triton_two_kernels", shape=square) %}
#
# An addition and then our norm take {{ (apart.ms / fused.ms) | times }} as long as the fused kernel
# (5 trips to 4{{ claim(1.1 < apart.ms / fused.ms < 1.5) }}), with gradients
# {{ (both_apart.ms / both.ms) | times }} (11 to 8{{ claim(both_apart.ms / both.ms > 1.1) }}).
#
# ## Where it loses, and why
#
# - **Wide gradients**: {{ row("gradient", provider="triton", shape=wide).percent | pct }} at {{ wide }}; 16,384 sums and two rows hardly fit an SM.
# - **Short runs**: {{ row("gradient", provider="triton", shape="16384 × 1024").percent | pct }} at 16384 × 1024, where starting two kernels shows.
# - **Odd widths**: {{ ours_odd.percent | pct }} forward at 12,289 columns, where the weight begins
#   elsewhere than the row and comes in single elements. The gradient takes two passes.
# - **Small batches**: {%- set small = row("small", provider="triton") %} a call at {{ small.shape }} takes {{ small.host_us | n(0) }} µs of the host, the
#   kernel {{ small.us | n(1) }} µs. Use a CUDA graph, or let torch.compile fuse more.
#
# ## What to remember
#
# 1. Count trips: an addition that rides along costs two, alone three.
# 2. Sums across rows: few programs, a partial sum each, a second small kernel; no atomics.
# 3. Few programs need their next rows under way, and registers enough.
#
# ## Exercises
#
# ??? question "1 (easy): let the mean divide by `BLOCK`. Which widths hide the mistake?"
#     ??? success "Answer"
#         Powers of two. Elsewhere all outputs are too large, by $\sqrt{\text{BLOCK} / n}$.
#
# ??? question "2 (medium): with 8,192 rows and 132 programs, what does uneven sharing cost?"
#     ??? success "Answer"
#         The busiest takes 63 rows for 62.06: 1.5 %. Of 4,096 rows, 32 for 31.03: 3 %.
#
# ??? question "3 (hard): Gemma multiplies by $1 + w$. Change forward and backward; check."
#     ??? success "Answer"
#         Add 1 wherever `weight` becomes float32. $\partial (1 + w) / \partial w = 1$: $dw$ stays,
#         and all gradients must equal those of `rms_norm(x, 1 + weight)`.
#
# ## Use it in your project
#
# ```python
# from rms_norm import add_rms_norm, rms_norm
#
# y, residual = add_rms_norm(attention_output, residual, weight)
# ```
#
# API: [rms_norm][examples.fusion.rms_norm.rms_norm], [add_rms_norm][examples.fusion.rms_norm.add_rms_norm]. Next:
# [layer norm](layer_norm.py).
