# %% [markdown]
# ---
# title: Programs, blocks and masks
# description: Your first Triton kernels, from a tensor copied wrongly to an add at memory speed.
# tags: [element-wise, memory-bound, first kernels]
# prerequisites: [foundations/memory_hierarchy]
# outcome: Write, launch, check and measure an element-wise kernel in one and two dimensions.
# ---
#
# # Programs, blocks and masks: your first kernels
#
# You write `z = x + y`, and PyTorch adds 268 million numbers in under a millisecond. Which code
# runs on the GPU, how often, and how does each run know which numbers are its own? Three kernels
# answer that: one copies a tensor, one adds two vectors, one turns an image grey. They run on an
# NVIDIA GPU, and without one in the [interpreter](../glossary.md#interpreter) ([how](../start.md)).
#
# ## What an add must cost
#
# To add `n` float32 numbers the GPU reads two and writes one for each result: 12 bytes. For 2²⁸
# that is {{ (12 * 2**28) | bytes }}, and a copy that moves as many takes
# {{ copy_ms(12 * 2**28) | ms }} on this {{ env.gpu }} ([memory hierarchy](memory_hierarchy.py)).
# The additions alone would take a hundredth. Memory sets the time: the copy is the [floor](../glossary.md#floor), and this page's goal.
#
# ## One kernel, many programs
#
# A *kernel* is a function that runs on the GPU. You write it once; one launch runs it many times:
# each run is a [program](../glossary.md#program). All execute the same code, side by side, in no
# order you may rely on; each asks for its own number with `tl.program_id(0)`. Together they form
# the [grid](../glossary.md#grid). A program works on a [block](../glossary.md#block) of elements.
# In the picture program 1 owns elements 4 to 7. Ten elements do not fill three blocks of four: two
# [lanes](../glossary.md#lane) (places of a block) of program 2 have none, and a [mask](../glossary.md#mask) switches them off.
#
# {{ diagram("programming_program") }}
#
# - **A tensor arrives as a pointer**, the address of its first element, and nothing else: no shape,
#   no strides, no end. Its name ends in `_ptr` by habit.
# - **Pointer plus offset**, `x_ptr + 3`, is the address of element 3. So **pointer plus a block of
#   offsets** is a block of pointers: with `offs` = 4, 5, 6, 7 `tl.load(x_ptr + offs)` fetches four.

# %% tags=["copy"]
import torch
import triton
import triton.language as tl

# %% [markdown]
# ## First kernel: copy a tensor, and two ways to get it wrong
#
# Everyone writes these two bugs once, so meet them where nothing breaks: ten elements in blocks of
# four, between buffers of sixteen. The last six of the output are a guard that must stay untouched.
# `@triton.jit` makes a function a kernel.
#
# ### Mistake 1: the block is forgotten
#
# Predict: which elements do programs 0, 1 and 2 write?


# %%
@triton.jit
def copy_overlapping_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid + tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, x, mask=mask)


def show_copy(kernel, n=10, BLOCK=4):
    """Copies 1 … n between buffers of 16; a dot stands for an untouched element."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(1.0, 17.0, device=device)
    out = torch.full_like(x, torch.nan)
    kernel[(triton.cdiv(n, BLOCK),)](x, out, n, BLOCK=BLOCK)
    shown = [" ." if value != value else f"{value:2.0f}" for value in out.tolist()]
    print("out", *shown[:n], "  guard", *shown[n:])


if __name__ == "__main__":
    show_copy(copy_overlapping_kernel)

# %% [markdown]
# **`kernel[grid](arguments)`** is the launch. The grid, a tuple of one to three numbers, says how
# many programs run: here `triton.cdiv(10, 4)` = 3 (divide, round up). Where a [tuner](autotuning.py) chooses `BLOCK`, the grid is a function that returns the tuple:
# `lambda meta: (triton.cdiv(n, meta["BLOCK"]),)`. `tl.arange(0, BLOCK)` is `[0, 1, 2, 3]`; adding
# the program's number moves it by one element, not by one block. So programs own 0–3, 1–4 and 2–5,
# and four elements are never written. No error, no warning; and a test with `n <= BLOCK` passes,
# for program 0 is right.
#
# ### Mistake 2: no mask
#
# Now the start is right, but nothing stops the last block at `n`. What will the guard hold?


# %%
@triton.jit
def copy_unmasked_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, x)


if __name__ == "__main__":
    show_copy(copy_unmasked_kernel)

# %% [markdown]
# All ten elements are right, which makes this bug the worse one: the kernel also wrote elements 10
# and 11. A pointer knows no end. Here the guard took the blow; elsewhere it is the next tensor in
# memory, and you notice much later. **Test with a guard, not with expected values alone.**
#
# ### Mended
#
# A lane that is off reads nothing in `tl.load` (its value is undefined unless you pass `other=`)
# and writes nothing in `tl.store`. `BLOCK`, a [constexpr](../glossary.md#constexpr), is fixed when the kernel is compiled, since it decides which machine code comes out.


# %%
@triton.jit
def copy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, x, mask=mask)


if __name__ == "__main__":
    show_copy(copy_kernel)

# %% [markdown]
# {{ picture("masks") }}
#
# ## A block is not a thread
#
# === "Triton"
#
#     ```python
#     @triton.jit
#     def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
#         offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # a block of elements
#         mask = offs < n
#         x, y = tl.load(x_ptr + offs, mask), tl.load(y_ptr + offs, mask)
#         tl.store(out_ptr + offs, x + y, mask)
#     add_kernel[(triton.cdiv(n, 1024),)](x, y, out, n, BLOCK=1024)
#     ```
#
# === "CUDA C++"
#
#     ```cpp
#     __global__ void add_kernel(const float* x, const float* y, float* out, int n) {
#         int i = blockIdx.x * blockDim.x + threadIdx.x;  // one element
#         if (i < n) out[i] = x[i] + y[i];
#     }
#     add_kernel<<<(n + 255) / 256, 256>>>(x, y, out, n);
#     ```
#
# In CUDA you write what **one thread** does with one element; a *block* is a group of threads. In
# Triton you write what **one program** does with a block of data; the compiler deals it out.
#
# {{ diagram("programming_threads") }}
#
# | | in CUDA you | in Triton |
# |---|---|---|
# | threads | number them, give each its elements | a block is dealt out to `32 * num_warps` threads ([128](#the-size-of-a-block-powers-of-two-and-num_warps), if you say nothing) |
# | [coalescing](../glossary.md#coalescing) | let neighbouring threads read neighbouring addresses | follows where offsets are consecutive and a mask does not split them |
# | vector width | cast to `float4`, treat the rest apart | up to 16 bytes a load, [where alignment is known](#one-kernel-several-compiled-versions) |
# | [shared memory](../glossary.md#shared-memory) | declare, fill, avoid bank conflicts | allotted where elements change threads: reductions, products |
# | synchronisation | `__syncthreads()` in the right places | placed by the compiler |
# | **stays yours** | grid, masks, order of work | the same, block shape, `num_warps` |
#
# ## Second kernel: add two vectors
#
# The copy kernel with one more load, and `.to(tl.int64)`. Offsets are 32-bit numbers unless you say
# otherwise. Past 2³¹ − 1 those wrap to negative values, and the kernel reads and writes far
# outside. One 64-bit factor makes the whole expression 64 bits wide.


# %%
def add_reference(x, y):
    """The specification."""
    return x + y


@triton.jit
def add_masked_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask)
    y = tl.load(y_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, x + y, mask=mask)


# %% [markdown]
# ### One kernel, several compiled versions
#
# At a launch, Triton reduces each argument to what machine code can depend on: a tensor to its
# dtype and whether its address is a multiple of 16, an integer to its width and whether it is 1 or
# a multiple of 16, a constexpr to its value. A new combination is compiled anew. The kernel's
# [PTX](../glossary.md#ptx), an assembly text, shows what a load fetches. Which calls share a version?


# %%
def show_versions():
    """Prints the version of add_masked_kernel that each call gets, and what a thread loads."""
    import re

    data, versions = torch.randn(4097, device="cuda"), {}
    for label, start, n, dtype, BLOCK in (
        ("n = 4096", 0, 4096, torch.float32, 1024),
        ("n = 1024", 0, 1024, torch.float32, 1024),
        ("n = 1000", 0, 1000, torch.float32, 1024),
        ("n = 999", 0, 999, torch.float32, 1024),
        ("n = 1", 0, 1, torch.float32, 1024),
        ("x[1:]", 1, 4096, torch.float32, 1024),
        ("odd, bf16", 0, 999, torch.bfloat16, 1024),
        ("BLOCK 512", 0, 4096, torch.float32, 512),
        ("BLOCK 128", 0, 4096, torch.float32, 128),
    ):
        x = data.to(dtype)[start:]
        compiled = add_masked_kernel[(triton.cdiv(n, BLOCK),)](x, x, x, n, BLOCK=BLOCK)
        version = versions.setdefault(compiled.hash, len(versions) + 1)
        loads = re.findall(r"ld\.global\.(?:v(\d)\.)?b(\d+)", compiled.asm["ptx"])
        size = int(loads[0][0] or 1) * int(loads[0][1]) // 8
        print(f"{label:9}  version {version}: {len(loads):2} loads of {size:2} bytes a thread")


if __name__ == "__main__" and not triton.knobs.runtime.interpret:
    show_versions()

# %% [markdown]
# - 4,096 and 1,024 are multiples of 16 and share version 1: two loads from `x`, two from `y`, each
#   of 16 bytes, the most there is. 1,000 and 999 share version 2: four neighbours are not known to
#   be masked alike, so each is loaded singly. One kernel, a few versions, not one for every `n`.
# - `n = 1` becomes a constant: of no use here, of great use for a stride, as the image will show.
# - `x[1:]` starts 4 bytes past a multiple of 16: narrow loads again. In bfloat16 (`odd, bf16`) they
#   fetch 2 bytes. What do they cost? Add 2²⁸ bfloat16, then one fewer, then starting one later:
#
# {{ figure("awkward", caption="One element fewer, and the masked kernel drops to a third.") }}
#
# {% set odd = row("awkward", provider="triton_masked", case="2²⁸ − 1") %}
# {% set even = row("awkward", provider="triton_masked", case="2²⁸") %}
# {% set whole = row("awkward", provider="triton", case="2²⁸ − 1") %}
# The masked kernel takes {{ (odd.ms / even.ms) | times }} as long for one element
# less{{ claim(odd.ms > 2 * even.ms) }}. The compiler dealt eight neighbours to each thread for one
# 16-byte load; the mask forbids it, so a thread fetches them one by one, and what 32 threads fetch
# together lies 16 bytes apart: [coalescing](../glossary.md#coalescing) is lost. From `x[1]`, without
# hope of wide loads, it deals out single elements, to neighbouring threads: that costs less{{ claim(row("awkward", provider="triton_masked", case="from x[1]").ms < 0.6 * odd.ms) }} (torch least{{ claim(row("awkward", provider="torch", case="from x[1]").ms < row("awkward", provider="triton", case="from x[1]").ms) }}).
#
# ### One change: whole blocks need no mask
#
# Only the last program needs a mask. Say so, and all others load 16 bytes whatever `n` is:
# {{ whole.percent | pct }} of the copy{{ claim(whole.percent > 95) }}. `add` launches this kernel.


# %% tags=["copy"]
@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Adds n elements of x and y; launch ceil(n / BLOCK) programs."""
    # int32 offsets would wrap at 2**31 elements
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    if (pid + 1) * BLOCK <= n:
        # no mask, so that loads are wide even where n is odd
        x = tl.load(x_ptr + offs)
        y = tl.load(y_ptr + offs)
        tl.store(out_ptr + offs, x + y)
    else:
        mask = offs < n
        x = tl.load(x_ptr + offs, mask=mask)
        y = tl.load(y_ptr + offs, mask=mask)
        tl.store(out_ptr + offs, x + y, mask=mask)


# %% [markdown]
# ### The function around it
#
# A kernel would add ten elements to a thousand; the function around it turns mistakes into
# messages. The kernel takes elements that lie one after the other; `contiguous()` copies a
# tensor whose [strides](../glossary.md#stride) say otherwise. Triton launches on the *current* GPU, which need not be
# the one that holds `x`. And PyTorch cannot see into a kernel: without `_Add` a gradient would be
# lost silently. (For a sum, both inputs receive the gradient that arrives.)


# %% tags=["copy"]
def add(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Adds two tensors element by element; differentiable.

    Args:
        x: float16, bfloat16, float32 or float64 on a GPU, any shape; copied if not contiguous.
        y: The same shape, dtype and device; there is no broadcasting.
        out: Contiguous tensor like `x` to write to; may be `x` or `y`.

    Returns:
        The sum, contiguous.

    Raises:
        TypeError: The dtype is not supported.
        ValueError: Shapes, dtypes or devices differ, a tensor is not on a GPU, `out` is not
            contiguous, or given where a gradient is wanted.
    """
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        wanted = "a tensor on a GPU; TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"add needs {wanted}; got one on {x.device}")
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"add needs float16, bfloat16, float32 or float64, got {x.dtype}")
    for name, other in (("y", y), ("out", x if out is None else out)):
        for what in ("shape", "dtype", "device"):
            given, wanted = getattr(other, what), getattr(x, what)
            if given != wanted:
                raise ValueError(f"add needs {name} with the {what} of x, {wanted}; got {given}")
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if out is None:
        return _Add.apply(x, y) if needs_grad else _launch_add(x, y)
    if needs_grad or not out.is_contiguous():
        raise ValueError("add needs a contiguous out, and none where a gradient is wanted")
    return _launch_add(x, y, out)


def _launch_add(x, y, out=None):
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x) if out is None else out
    n, BLOCK = x.numel(), 1024
    with torch.cuda.device_of(x):
        add_kernel[(triton.cdiv(n, BLOCK),)](x, y, out, n, BLOCK=BLOCK)
    return out


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return _launch_add(x, y)

    @staticmethod
    def backward(ctx, dout):
        return dout, dout


# %% [markdown]
# ### What happens at the launch
#
# 1. Python reduces the arguments as above and looks up the compiled version.
# 2. If there is none, it compiles ({{ row("vector_add", provider="triton", n=1024).compile_ms | ms }} here) and keeps the result, on disk too.
# 3. The driver appends the launch to the GPU's queue, and the call returns *before* the kernel has
#    run. The host waits where it needs the numbers (`print`, `.item()`), or if told to.
# 4. The GPU deals programs out to its {{ env.sms }} [SMs](../glossary.md#sm), several to each, the next to whichever has room.{% set empty_us, add_us = rec("foundations/memory_hierarchy").row("launch_overhead", provider="triton", n_launches=16).host_us / 16, row("vector_add", provider="triton", n=1024).host_us %}
#
# Steps 1 and 3 cost host time on every call, the [launch overhead](../glossary.md#launch-overhead): {{ empty_us | n }} µs for [a kernel without
# arguments](memory_hierarchy.py#the-price-of-a-launch). Arguments to look at, the checks of `add` and an output to allocate make up its other {{ (add_us - empty_us) | n }}.{{ claim(add_us > 1.5 * empty_us) }} PyTorch's path is C++ and shorter; torch.compile first checks whether what it compiled still fits:{{ claim(add_us < row("vector_add", provider="torch_compile", n=1024).host_us) }}
#
# {{ table("vector_add", where={"n": 1024}, columns=["provider", "host_us"]) }}
#
# ### The size of a block: powers of two, and `num_warps`
#
# The length of a block must be a power of two; `tl.arange(0, 1000)` is an error. A
# [warp](../glossary.md#warp) is 32 threads, a load 4, 8 or 16 bytes, a reduction halves a block
# again and again: powers of two divide evenly, and any other length is a matter of the mask.
#
# A program runs on `num_warps` warps, 4 by default: 128 threads, with `BLOCK / 128` elements each.
# One element a thread (`BLOCK = 128` above) is a load of 4 bytes from `x` and one from `y`; four
# (512) fill 16 bytes; eight (1,024) make two such loads, both in flight. Below 128, threads repeat
# what others do. Larger blocks take more [registers](../glossary.md#register), so fewer programs
# fit on an SM ([occupancy](../glossary.md#occupancy)). (`num_stages`, the other setting of a launch, concerns [loops](compiler.py#what-num_stages-changes).) Which is the smallest good block in bfloat16?
#
# {{ figure("vector_add_block", caption="Below 512 elements, starting a program costs more than its work.") }}
#
# {% set small = row("vector_add_block", provider="triton_4_warps", block=128) %}
# {% set double = row("vector_add_block", provider="triton_4_warps", block=256) %}
# From 256 to 128 the time doubles{{ claim(1.8 < small.ms / double.ms < 2.2) }}, with 2 warps as with
# 4: the GPU starts no more than {{ (small.n / small.block / small.ms * 1e-6) | n(1) }} programs a
# nanosecond. From 512 on memory is the limit (with 8 warps from 1,024).{{ claim(row("vector_add_block", provider="triton_4_warps", block=512).percent > 95 and row("vector_add_block", provider="triton_8_warps", block=1024).percent > 95 > row("vector_add_block", provider="triton_8_warps", block=512).percent) }} `add` takes 1,024, and 4 warps.
#
# ## Third kernel: an image turns grey, on a 2-D grid
#
# A colour image is `(3, H, W)` bytes: a plane each of red, green and blue. Grey is their sum with
# the weights 0.299, 0.587, 0.114 of [ITU-R BT.601](https://www.itu.int/rec/R-REC-BT.601) (2.5.1). A
# pixel costs 3 bytes read and 1 written: {{ (4 * 8192**2) | bytes }} for a side of 8,192, hence
# {{ copy_ms(4 * 8192**2) | ms }} at the speed of a copy. Weights of three decimals make the sum
# exact in integers: weigh by thousandths, add 500 to round, divide.


# %%
def rgb_to_grey_reference(image):
    """The specification, exact to the last bit."""
    weights = torch.tensor([299, 587, 114], dtype=torch.int32, device=image.device)
    weighted = image.to(torch.int32) * weights[:, None, None]
    return ((weighted.sum(0) + 500) // 1000).to(torch.uint8)


# %% [markdown]
# The grid has two axes now, and a block is a *tile* of `BLOCK_H` rows by `BLOCK_W` columns:
#
# {{ diagram("programming_grid") }}
#
# - **A column plus a row is a tile.** `[:, None]` stands the row numbers up, shape `(BLOCK_H, 1)`;
#   `[None, :]` lays the column numbers down, `(1, BLOCK_W)`. Sum and `&` of both have the shape
#   `(BLOCK_H, BLOCK_W)`, as in PyTorch.
# - **Strides** count the elements between neighbours along a dimension: pixel `(c, h, w)` lies
#   `c * stride_c + h * stride_h + w * stride_w` after the first. So one kernel reads any view
#   without a copy: a crop, or the `(H, W, 3)` of cameras as `image.permute(2, 0, 1)`.


# %% tags=["copy"]
@triton.jit
def rgb_to_grey_kernel(
    x_ptr, out_ptr, H, W, stride_c, stride_h, stride_w, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Weighs three bytes into one; the grid is (ceil(W / BLOCK_W), ceil(H / BLOCK_H))."""
    pid_w = tl.program_id(0).to(tl.int64)
    pid_h = tl.program_id(1).to(tl.int64)
    offs_h = pid_h * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # [BLOCK_H, 1]
    offs_w = pid_w * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]  # [1, BLOCK_W]
    mask = (offs_h < H) & (offs_w < W)  # [BLOCK_H, BLOCK_W]

    # a pointer has 64 bits: stepping it twice is safe where 2 * stride_c would wrap
    red_ptrs = x_ptr + offs_h * stride_h + offs_w * stride_w
    green_ptrs = red_ptrs + stride_c
    blue_ptrs = green_ptrs + stride_c
    # as bytes, sums would wrap at 256
    red = tl.load(red_ptrs, mask=mask).to(tl.uint32)
    green = tl.load(green_ptrs, mask=mask).to(tl.uint32)
    blue = tl.load(blue_ptrs, mask=mask).to(tl.uint32)
    grey = (299 * red + 587 * green + 114 * blue + 500) // 1000
    tl.store(out_ptr + offs_h * W + offs_w, grey.to(tl.uint8), mask=mask)


# %% tags=["copy"]
def rgb_to_grey(image: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Turns a colour image grey, by the luma weights of ITU-R BT.601, rounded to the nearest byte.

    Args:
        image: uint8 (3, H, W) on a GPU, any strides; for (H, W, 3) pass `image.permute(2, 0, 1)`.
        out: Contiguous uint8 tensor (H, W) on the same device to write to.

    Returns:
        The grey image, uint8 (H, W).

    Raises:
        TypeError: The dtype is not uint8.
        ValueError: The shape is not (3, H, W), there are more than 65,535 rows (of narrow images
            more), the image is not on a GPU, or `out` has another shape or is not contiguous.
    """
    if not image.is_cuda and not triton.knobs.runtime.interpret:
        wanted = "a tensor on a GPU; TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"rgb_to_grey needs {wanted}; got one on {image.device}")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"rgb_to_grey needs an image (3, H, W), got {tuple(image.shape)}")
    H, W = image.shape[1:]
    out = image.new_empty(H, W) if out is None else out
    if image.dtype != torch.uint8 or out.dtype != torch.uint8:
        raise TypeError(f"rgb_to_grey needs uint8, got {image.dtype} and for out {out.dtype}")
    if out.shape != (H, W) or out.device != image.device or not out.is_contiguous():
        raise ValueError(f"rgb_to_grey needs a contiguous out ({H}, {W}) on {image.device}")
    # 1,024 pixels: part of one row, or several rows of a narrow image
    BLOCK_W = min(1024, triton.next_power_of_2(max(W, 1)))
    BLOCK_H = 1024 // BLOCK_W
    grid = (triton.cdiv(W, BLOCK_W), triton.cdiv(H, BLOCK_H))
    # CUDA allows 2**31 - 1 programs along the first axis of a grid, 65,535 along the others
    if grid[1] > 65535:
        raise ValueError(f"rgb_to_grey needs at most {65535 * BLOCK_H:,} rows, got {H:,}")
    with torch.cuda.device_of(image):
        rgb_to_grey_kernel[grid](image, out, H, W, *image.stride(), BLOCK_H, BLOCK_W)
    return out


# %% [markdown]
# Columns are on the grid's first axis, along which programs roughly start, so that neighbours read
# neighbouring memory. And specialisation on 1 earns its keep. For planes `stride_w` is 1: Triton
# compiles a version with that constant, sees that a row's offsets are consecutive, and loads
# several pixels at once. In an `(H, W, 3)` image it is 3, and the same source loads byte by byte.
#
# ## Check
#
# Sizes around the block, a guard behind each output, each output [poisoned](../glossary.md#poison-and-guard): an element left out
# shows as well as one too many. A sum of two floats has one correct rounding, so the comparison is
# exact. The last images have rows, columns or planes 2³⁰ bytes apart, beyond 32-bit offsets.


# %% tags=["fold"]
def _guarded(n, dtype, device):
    """Memory for n elements, and the guard of sevens behind it."""
    buffer = torch.full((n + 4096,), 7, dtype=dtype, device=device)
    return buffer[:n], buffer[n:]


def check(device="cuda"):
    """Compares every kernel with its reference; raises AssertionError where they differ."""
    sizes = [0, 1, 1023, 1024, 1025, 4099] + ([98_432, 1_000_003] if device == "cuda" else [])
    # the interpreter adds bfloat16 wrongly: it takes their bits for integers
    dtypes = [torch.float16, torch.float32, torch.float64]
    dtypes += [torch.bfloat16] if device == "cuda" else []
    for dtype, n in ((dtype, n) for dtype in dtypes for n in sizes):
        x, y = (torch.randn(n, device=device).to(dtype) for _ in range(2))
        out, guard = _guarded(n, dtype, device)
        copy_kernel[(triton.cdiv(n, 1024),)](x, out.fill_(torch.nan), n, BLOCK=1024)
        assert torch.equal(out, x) and (guard == 7).all(), f"copy differs: {dtype}, n = {n}"
        wanted = add_reference(x.double(), y.double()).to(dtype)
        add(x, y, out=out.fill_(torch.nan))
        assert torch.equal(out, wanted) and (guard == 7).all(), f"add differs: {dtype}, n = {n}"
    x = torch.randn(65, 33, device=device).t().requires_grad_()
    y = torch.randn(33, 65, device=device, requires_grad=True)
    assert torch.equal(add(x, y), add_reference(x, y)), "add differs where x is transposed"
    gradients = torch.autograd.grad(add(x, y), (x, y), y.detach())
    assert all(torch.equal(g, y) for g in gradients), "the gradient of add differs"
    print(f"copy, add: {len(dtypes)} dtypes, up to {sizes[-1]:,} elements, gradients: exact")

    shapes = [(0, 5), (1, 1), (17, 129), (67, 1100), (70, 5)]
    for H, W in shapes:
        large = torch.randint(256, (3, H + 2, W + 3), dtype=torch.uint8, device=device)
        planes = large[:, :H, :W].contiguous()
        for layout, image in {
            "planes": planes,
            "crop": large[:, 2:, 3:],
            "camera": planes.permute(1, 2, 0).contiguous().permute(2, 0, 1),
            "transposed": planes.transpose(1, 2).contiguous().transpose(1, 2),
        }.items():
            wanted = rgb_to_grey_reference(image)
            out, guard = _guarded(H * W, torch.uint8, device)
            rgb_to_grey(image, out=out.view(H, W).copy_(wanted + 1))
            exact = torch.equal(out.view(H, W), wanted) and (guard == 7).all()
            assert exact, f"rgb_to_grey differs: {layout}, ({H}, {W})"
    # a CPU lends memory by the page: what is not written costs nothing
    far = torch.empty(2**31 + 64, dtype=torch.uint8, device=device)
    for strides in ((2**30, 8, 1), (1, 2**30, 8), (8, 1, 2**30)):
        image = far.as_strided((3, 3, 3), strides)
        image.copy_(torch.randint(256, (3, 3, 3), dtype=torch.uint8))
        exact = torch.equal(rgb_to_grey(image), rgb_to_grey_reference(image))
        assert exact, f"rgb_to_grey differs: strides {strides}"
    print(f"rgb_to_grey: {len(shapes)} shapes in 4 layouts, strides of 2**30: exact")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Measure
#
# Predict: how many percent of a copy does `add` reach at 2²⁸, how many microseconds at 2¹²?
#
# {{ figure("vector_add", caption="Add, torch and torch.compile all run at the speed of memory.") }}
#
# {% set large = row("vector_add", provider="triton", n=2**28) %}
# {% set small = row("vector_add", provider="triton", n=2**12) %}
# At 2²⁸ `add` takes {{ large.ms | ms }}, {{ large.percent | pct }} of the copy of as many
# bytes{{ claim(large.percent >= 99) }}; torch takes {{ row("vector_add", provider="torch", n=2**28).ms | ms }}. (More than 100 % is no error: changing between
# reading and writing costs time, and an add, which mostly reads, changes less. At the left end the
# add moves less than its copy, for the smallest copy measured is one of 256 KiB.) **A lone
# element-wise kernel is not where Triton pays**; one in place of several is, as in [softmax](../fusion/softmax.py).
#
# ### Why small sizes look bad
#
# {{ figure("vector_add", y="tbps", caption="The same rows in TB/s: below 16 million elements they sink, and a copy with them.") }}
#
# At 2¹² the add takes {{ small.us | n(1) }} µs for {{ small.bytes | bytes }}, which would pass in
# {{ (small.bytes / large.tbps * 1e-6) | n(2) }} µs at full speed: to begin and end *any* kernel
# costs the GPU a few microseconds, a copy too. And before it the host spends
# {{ small.host_us | n(1) }} µs on the call, so with one small kernel after the other the GPU waits
# for the host. What helps: fewer and larger kernels, or a [CUDA graph](../glossary.md#cuda-graph), which replays many at once.
#
# ### Grey
#
# {{ figure("grey", caption="One pass over the bytes; eager torch makes five, most over float32.") }}
#
# {% set grey = row("grey", provider="triton", side=8192) %}
# {% set eager = row("grey", provider="torch", side=8192) %}
# {% set fused = row("grey", provider="torch_compile", side=8192) %}
# At a side of 8,192: {{ grey.ms | ms }}, {{ grey.percent | pct }} of the copy. Eager torch, as most would write it (`eager` in `bench`), stores each step's
# result in four bytes, moves 36 bytes a pixel in place of 4, nine times as many, at less than a copy's speed, and takes {{ (eager.ms / grey.ms) | times }} as
# long{{ claim(eager.ms > 5 * grey.ms) }}: fusion's first gain. torch.compile fuses the specification
# into one kernel too, level with ours{{ claim((fused.ms / grey.ms - 1) | abs < 0.05) }}, on small
# images within a tenth{% for r in rows("grey", provider="triton") %}{{ claim(0.9 < row("grey", provider="torch_compile", side=r.side).ms / r.ms < 1.1) }}{% endfor %}. Element-wise work you may leave to it.
#
# ## Where it loses
#
# {{ table("grey_camera") }}
#
# {% set camera = row("grey_camera", provider="triton", side=8192) %}
# An image in `(H, W, 3)` order takes {{ (camera.ms / grey.ms) | times }} as
# long{{ claim(camera.ms > 1.2 * grey.ms) }}. Caches serve a byte's neighbours, so memory should see little
# more traffic; but each byte is a load of its own. torch.compile fares a little better{{ claim(row("grey_camera", provider="torch_compile", side=8192).ms < camera.ms) }}. Exercise 3.
#
# ## What to remember
#
# 1. **`pid * BLOCK + tl.arange(0, BLOCK)`, and a mask.** You write one block, the grid repeats it,
#    the mask trims it. A pointer has no end, so test with a guard.
# 2. **Count bytes first.** The bytes an operation must move, at the speed of a copy, are its floor.
# 3. **You choose blocks, the compiler chooses threads**, from what it knows: constants, ones,
#    multiples of 16. Where it knows too little, loads are narrow.
#
# ## Exercises
#
# ??? question "1 (easy): with `n // BLOCK` programs, what does `show_copy(copy_kernel)` print?"
#
#     ??? success "Answer"
#
#         Two programs run: `1 2 3 4 5 6 7 8 . .`. The guard is untouched; only the poison shows it.
#
# ??? question "2 (medium): make tiles 32 by 32. Predict, then measure planes and `(H, W, 3)`."
#
#     ??? success "Answer"
#
#         Planes lose something, `(H, W, 3)` most of its speed: no two offsets are known to be
#         consecutive, and Triton 3.6 runs its threads down the columns (3.7 keeps them in rows).
#         Hence tiles of one row, in a wide image.
#
# ??? question "3 (hard): make `(H, W, 3)` fast."
#
#     ??? success "Answer"
#
#         Four pixels are three words. View a contiguous image as int32 (`H * W` a multiple of 4);
#         lane `i` loads words `3 * i` to `3 * i + 2`, takes the bytes apart with shifts (pixel 1 is
#         byte 3 of the first word, bytes 0 and 1 of the second), and stores four results as one
#         word: four accesses, not sixteen.
#
# ## Use it in your project
#
# ```python
# from programming_model import add, rgb_to_grey
#
# z = add(x, y)  # as x + y, with gradients
# grey = rgb_to_grey(photo.permute(2, 0, 1))  # (H, W, 3) uint8, nothing is copied
# ```
#
# API: [add][examples.foundations.programming_model.add],
# [rgb_to_grey][examples.foundations.programming_model.rgb_to_grey]. Next:
# [debugging](debugging.py), for the day when a kernel of yours is wrong.


# %% tags=["fold"]
def bench(measure):
    """Yields the page's benchmarks."""
    import time

    def result(name, title, x, rows, dtype):
        about = {"name": name, "title": title, "x": x, "dtype": dtype, "mode": "forward"}
        return about | {"ceiling": "copy", "rows": rows}

    def timed(fns, host=False, **work):
        timings = measure(fns, host=host).items()
        return [{"provider": provider, **work, **timing} for provider, timing in timings]

    def peers(triton_op, torch_op, reference, *inputs, **work):
        # dynamo counts what it compiles, and each size is compiled for itself
        torch._dynamo.reset()
        fused = torch.compile(reference, mode="max-autotune-no-cudagraphs", dynamic=False)
        fns = {"triton": triton_op, "torch": torch_op, "torch_compile": fused}
        return timed({k: lambda fn=fn: fn(*inputs) for k, fn in fns.items()}, **work)

    def vectors(n, dtype=torch.float32):
        return [torch.randn(n, device="cuda").to(dtype) for _ in range(3)]

    def adds(n):
        x, y, _ = vectors(n)
        work = {"n": n, "bytes": 12 * n, "flops": n, "host": True}
        return peers(add, torch.add, add_reference, x, y, **work)

    rows = [row for k in range(10, 29, 2) for row in adds(2**k)]
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile = True
        start = time.perf_counter()
        # a block that no launch has compiled yet
        add_kernel.warmup(*vectors(1024), 1024, grid=(1,), BLOCK=32)
        rows[0]["compile_ms"] = (time.perf_counter() - start) * 1e3
    yield result("vector_add", "Add two vectors, float32", "n", rows, "float32")

    def launch(kernel, x, y, out, BLOCK=1024, num_warps=4):
        n, grid = x.numel(), (triton.cdiv(x.numel(), BLOCK),)
        return lambda: kernel[grid](x, y, out, n, BLOCK=BLOCK, num_warps=num_warps)

    n, rows = 2**28, []
    tensors = vectors(n, torch.bfloat16)
    for block in [2**k for k in range(7, 14)]:
        fns = {f"triton_{w}_warps": launch(add_kernel, *tensors, block, w) for w in (2, 4, 8)}
        rows += timed(fns, block=block, n=n, bytes=6 * n, flops=n)
    yield result("vector_add_block", "Add 2²⁸ bfloat16, by block", "block", rows, "bfloat16")

    rows = []
    cases = {"2²⁸": slice(0, n), "2²⁸ − 1": slice(0, n - 1), "from x[1]": slice(1, n)}
    for case, part in cases.items():
        x, y, out = (tensor[part] for tensor in tensors)
        fns = {"triton": launch(add_kernel, x, y, out)}
        fns["triton_masked"] = launch(add_masked_kernel, x, y, out)
        fns["torch"] = lambda: torch.add(x, y, out=out)
        rows += timed(fns, case=case, n=x.numel(), bytes=6 * x.numel(), flops=x.numel())
    yield result("awkward", "Add two vectors of about 2²⁸ bfloat16", "case", rows, "bfloat16")

    def eager(image):
        red, green, blue = image
        grey = red.mul(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
        return grey.round_().to(torch.uint8)

    def greys(side, camera=False):
        image = torch.randint(256, (3, side, side), dtype=torch.uint8, device="cuda")
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if camera else image
        work = {"side": side, "bytes": 4 * side**2, "flops": 5 * side**2}
        return peers(rgb_to_grey, eager, rgb_to_grey_reference, image, **work)

    rows = [row for k in range(9, 15) for row in greys(2**k)]
    yield result("grey", "RGB to grey, (3, H, W), square images", "side", rows, "uint8")
    rows = greys(8192, camera=True)
    yield result("grey_camera", "RGB to grey, (H, W, 3), square image", "side", rows, "uint8")
