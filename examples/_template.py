# %% [markdown]
# ---
# title: Square
# description: One sentence for search engines and the cards of the home page.
# tags: [element-wise, memory-bound]
# prerequisites: [foundations/programming_model]
# outcome: Say in one sentence what the reader can do after it.
# ---
#
# # Square: the question that the lecture answers
#
# Ask the question first. Then count: squaring $n$ float32 elements reads $4n$ bytes and writes
# $4n$, and does $n$ operations, so the ceiling is memory. Measured numbers never stand here as
# digits; see [Contributing](../contributing.md#numbers-and-claims).

# %% tags=["copy"]
import torch
import triton
import triton.language as tl

# %% [markdown]
# ## What it must compute
#
# The reference is the specification, in plain PyTorch.

# %%
def square_reference(x: torch.Tensor) -> torch.Tensor:
    """The square of every element."""
    return x * x

# %% [markdown]
# ## The kernel
#
# One change a step; the last step carries the tag `copy`, and so do the imports and the public
# function. Together these cells are what a project needs.

# %% tags=["copy"]
@triton.jit
def square_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Squares `BLOCK` elements a program."""
    # int32 offsets would wrap at 2**31 elements
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, x * x, mask=mask)

# %% [markdown]
# ## The launch
#
# What can go wrong is refused here, with what was given and what is wanted.

# %% tags=["copy"]
def square(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The square of every element.

    Args:
        x: A contiguous float32, float16 or bfloat16 tensor of any shape, on a GPU.
        out: Where the result goes; a new tensor if not given.

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        TypeError: The dtype is none of the three.
        ValueError: `x` is not on a GPU, or not contiguous.
    """
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"square needs a tensor on a GPU, got {x.device}; TRITON_INTERPRET=1 runs it on the CPU"
        )
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"square takes float32, float16 or bfloat16, got {x.dtype}")
    if not x.is_contiguous():
        raise ValueError(f"square takes contiguous tensors, got strides {x.stride()}")
    out = torch.empty_like(x) if out is None else out
    n = x.numel()
    if n:
        square_kernel[(triton.cdiv(n, 1024),)](x, out, n, BLOCK=1024)
    return out

# %% [markdown]
# ## Is it right?

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares with float64 around a block's edges; raises AssertionError where they differ."""
    sizes = [0, 1, 1023, 1024, 1025, 4099] + ([2**24 + 1] if device == "cuda" else [])
    for n in sizes:
        x = torch.randn(n, device=device)
        # what the kernel forgets stays NaN, what it writes past the end is no longer NaN
        frame = torch.full((n + 64,), float("nan"), device=device)
        out = square(x, frame[:n])
        torch.testing.assert_close(out.double(), square_reference(x.double()), rtol=1e-6, atol=0)
        assert frame[n:].isnan().all(), f"square of {n} elements writes past their end"
    print(f"square: {len(sizes)} sizes up to {sizes[-1]:,} elements are right")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Ask for a prediction before the figure shows the answer.

# %% tags=["fold"]
def bench(measure):
    """Square of 2^20 to 2^28 elements, against PyTorch."""
    rows = []
    for n in (2**20, 2**24, 2**28):
        x = torch.randn(n, device="cuda")
        out = torch.empty_like(x)
        times = measure(
            {"triton": lambda: square(x, out), "torch": lambda: torch.mul(x, x, out=out)}
        )
        work = {"n": n, "bytes": 2 * 4 * n, "flops": n}
        rows += [{"provider": provider, **time, **work} for provider, time in times.items()]
    yield {
        "name": "square",
        "title": "Square, float32",
        "x": "n",
        "dtype": "float32",
        "mode": "forward",
        "ceiling": "copy",
        "rows": rows,
    }

# %% [markdown]
# ## Where it loses, and why
#
# ## What to remember
#
# Three takeaways.
#
# ## Exercises
#
# ??? question "Cube (easy)"
#     What changes in bytes and in time, if the kernel cubes?
#
#     ??? success "Answer"
#         Nothing that can be measured: the same bytes move.
#
# ## Use it in your project
#
# Copy the file, or the cells tagged `copy`, and call `square`.
