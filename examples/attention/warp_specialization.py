# %% [markdown]
# ---
# title: Roles for warps
# description: What one word on a loop, warp_specialize, makes of flash attention's warps, what it gains, and where it fails, with the experiment that shows it.
# tags: [attention, tensor cores, TMA, warp specialisation, compiler, debugging]
# prerequisites: [attention/flash_attention]
# outcome: Say what roles gain a kernel and read them in the compiled code, and test a kernel beside a neighbour before you trust it.
# ---
#
# # Roles for warps: one word, its gain, and its price
#
# In [flash attention](flash_attention.py) all [warps](../glossary.md#warp) of a [program](../glossary.md#program) do the same: load keys, multiply,
# exponentiate, multiply. While they exponentiate, the [tensor cores](../glossary.md#tensor-core) wait, unless another
# program on the same [multiprocessor](../glossary.md#sm) has a product for them, and nobody sees to it that it does.
# **What if warps had roles?** One group of four only loads. Two groups of four compute, each for
# half the queries of the tile and at its own pace: while one exponentiates, the other may multiply.
#
# {{ diagram("warp_roles") }}
#
# [Flash attention 3](https://arxiv.org/abs/2407.08608) is built so, by hand. In Triton it is one word.
#
# ## What it may gain
#
# {% set before = rec("attention/flash_attention").row("attention_d128_full", provider="triton", seq_len=4096) %}
# A step of the loop, 128 queries and 128 keys, at $D = 128$: both products are
# $4 \cdot 128^3 = 8.4$ million operations, 2,048 cycles of a multiprocessor at 4,096 a cycle;
# 128 × 128 exponentials at 16 a cycle are 1,024 ([where the rates come from](hopper_attention.py#count-cycles-not-bytes)). One after the other, products run
# at most $2048 / 3072 = 67\,\%$ of the time, before a single maximum is taken. With roles it may be
# all of it. The kernel of the last page, two programs to a multiprocessor, is at {{ (before.tflops / matmul_tflops("bfloat16", 8192) * 100) | pct }}
# of a large product's rate.

# %% tags=["copy"]
import math

import torch
import triton
import triton.language as tl


# %%
def role_attention_reference(q, k, v):
    """Attention in plain PyTorch, `(B, H, S, D)`."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v

# %% [markdown]
# ## A word on the loop
#
# `warp_specialize=True`, and the compiler gives out the roles. In Triton 3.6 and 3.7 it has
# conditions. With an `if` in the loop, or with eight warps to a group, it drops the word and says
# nothing. A mask would have to be for every block, so this kernel has none, causal or at an edge.
# And it makes its [descriptors](../glossary.md#descriptor) itself: with the host's it does not compile.
#
# The three groups fill a multiprocessor. So there is one program for each, which takes tile after
# tile (it is [persistent](../glossary.md#persistent-kernel)): while the computing warps finish one, the loading ones have begun with the
# next. `ROLES` keeps the word or takes it away.

# %% tags=["copy"]
@triton.jit
def role_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, n_heads, seq_len, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROLES: tl.constexpr,
):  # fmt: skip
    """Full attention of heads `[seq_len, D]`, contiguous; both blocks divide `seq_len`."""
    rows = n_heads * seq_len
    q_desc = tl.make_tensor_descriptor(q_ptr, [rows, D], [D, 1], [BLOCK_M, D])
    k_desc = tl.make_tensor_descriptor(k_ptr, [rows, D], [D, 1], [BLOCK_N, D])
    v_desc = tl.make_tensor_descriptor(v_ptr, [rows, D], [D, 1], [BLOCK_N, D])
    out_desc = tl.make_tensor_descriptor(out_ptr, [rows, D], [D, 1], [BLOCK_M, D])
    for tile in tl.range(tl.program_id(0), rows // BLOCK_M, tl.num_programs(0)):
        start_m = tile * BLOCK_M  # counted over all heads, and so is the head's first key
        first_key = start_m // seq_len * seq_len
        q = q_desc.load([start_m, 0])
        acc = tl.zeros([BLOCK_M, D], tl.float32)
        row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        for start_n in tl.range(0, seq_len, BLOCK_N, warp_specialize=ROLES):
            s = tl.dot(q, k_desc.load([first_key + start_n, 0]).T)
            new_max = tl.maximum(row_max, tl.max(s, axis=1) * scale_log2)
            p = tl.exp2(s * scale_log2 - new_max[:, None])
            alpha = tl.exp2(row_max - new_max)
            row_sum = row_sum * alpha + tl.sum(p, axis=1)
            acc = acc * alpha[:, None]
            v = v_desc.load([first_key + start_n, 0])
            acc = tl.dot(p.to(v.dtype), v, acc)
            row_max = new_max
        out_desc.store([start_m, 0], (acc / row_sum[:, None]).to(q.dtype))

# %% [markdown]
# With roles `num_warps` is the size of each group. Without, all eight warps work alike.

# %% tags=["copy"]
def _launch(q, k, v, out, roles: bool):
    batch, heads, seq_len, head_dim = q.shape
    programs = batch * heads * seq_len // 128
    if q.is_cuda:
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    # for descriptors made in a kernel
    triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=q.device))
    with torch.cuda.device_of(q):
        return role_attention_kernel[(programs,)](
            q, k, v, out, batch * heads, seq_len, head_dim**-0.5 * math.log2(math.e),
            D=head_dim, BLOCK_M=128, BLOCK_N=128, ROLES=roles, num_warps=4 if roles else 8,
            num_stages=2)  # fmt: skip


def role_attention(q, k, v, roles: bool = False) -> torch.Tensor:
    """Full attention, `softmax(q @ k.T / sqrt(D)) @ v` for every head, forward only.

    With roles it is an exhibit: on a GPU that other processes use it gives wrong results. What to
    use is `flash_attention`.

    Args:
        q: Queries `(B, H, S, D)`, float16 or bfloat16, contiguous, on a Hopper GPU (compute
            capability 9.0) or, with TRITON_INTERPRET=1, anywhere; S is a multiple of 128, D is 64
            or 128.
        k: Keys, of the shape, dtype and device of `q`.
        v: Values, likewise.
        roles: Whether four warps load and two groups of four compute; else eight do both.

    Returns:
        The output, like `q`.

    Raises:
        TypeError: The dtype is neither of the two, or differs between the inputs.
        ValueError: A shape, layout or device is not as above, or an input wants a gradient.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype not in (torch.float16, torch.bfloat16) or x.dtype != q.dtype:
            raise TypeError(f"role_attention takes float16 or bfloat16 alone; {name} is {x.dtype}")
        if x.dim() != 4 or x.shape != q.shape or not x.is_contiguous():
            raise ValueError(
                "role_attention takes contiguous tensors of one shape, (B, H, S, D); "
                f"{name}: {[*x.shape]}, strides {x.stride()}"
            )
        if x.device != q.device:
            raise ValueError(f"role_attention takes one device; q: {q.device}, {name}: {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"role_attention has no backward, and {name} requires a gradient")
    if not q.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"role_attention needs a GPU, got {q.device}; or set TRITON_INTERPRET=1")
    if q.shape[2] % 128 or q.shape[3] not in (64, 128):
        raise ValueError(f"role_attention takes S % 128 == 0 and D 64 or 128, got {[*q.shape]}")
    if q.is_cuda and torch.cuda.get_device_capability(q.device)[0] != 9:
        raise ValueError("role_attention needs a GPU of compute capability 9.0 (Hopper)")
    out = torch.empty_like(q)
    if q.numel():
        _launch(q, k, v, out, roles)
    return out

# %% [markdown]
# ## What became of the word
#
# Triton's [intermediate representation](../foundations/compiler.py) keeps a region for each role.
# Which role do you expect to ask for the most [registers](../glossary.md#register)? Which waits for
# which? A [barrier](../glossary.md#mbarrier) here is a counter in
# [shared memory](../glossary.md#shared-memory): warps arrive, others wait until enough have.

# %%
def roles_of(ttgir: str) -> list[list]:
    """Of each role of a compiled kernel: name, warps, registers a thread, and what it contains."""
    marks = {"loads": "async_tma_copy_global", "products": "warp_group_dot "}
    marks |= {"waits": "wait_barrier", "arrivals": "arrive_barrier"}
    marks["stores"] = "async_tma_copy_local"
    region = ttgir[ttgir.index("ttg.warp_specialize") :]
    asked = region.split("array<i32: ", 1)[1].split(">", 1)[0].split(", ")
    table = [["role", "warps", "registers", *marks]]
    parts = region.split("default {", 1)[1].split("partition")[: len(asked) + 1]
    for number, part in enumerate(parts):
        name = f"partition {number - 1}" if number else "default"
        warps = part.split("num_warps(", 1)[1].split(")", 1)[0] if number else "4"
        counts = [part.count(mark) for mark in marks.values()]
        table.append([name, warps, asked[number - 1] if number else "the rest", *counts])
    return table


if __name__ == "__main__" and torch.cuda.is_available():
    q = torch.randn(1, 8, 1024, 128, device="cuda", dtype=torch.bfloat16)
    for line in roles_of(_launch(q, q, q, torch.empty_like(q), True).asm["ttgir"]):
        print("".join(f"{cell:>13}" for cell in line))

# %% [markdown]
# The default role has all loads and no product. It waits for room in a buffer before it asks the
# [copy engine](../glossary.md#tma) to fill it; the engine itself reports the arrival. A partition
# waits for keys, multiplies, *arrives* to say that the buffer is free, and so on with the values.
# It asks for 232 registers a thread; the loading warps, which need few, give up theirs. Neither
# partition waits for the other: that is the gain.
#
# ## Is it right?
#
# Against float64, with scores that grow along the row, on a GPU that nobody else uses.

# %% tags=["fold"]
def check(device: str = "cuda") -> None:
    """Compares role_attention with float64; raises AssertionError where they differ."""
    torch.manual_seed(0)
    cases = [(1, 1, 128, 64), (1, 2, 256, 128), (2, 3, 128, 128)]
    dtypes = [torch.float16]
    if device == "cuda":
        # the interpreter's bfloat16 product is wrong
        dtypes += [torch.bfloat16]
        cases += [(1, 5, 1024, 128), (2, 9, 640, 64)]
    for shape in cases:
        line = f"{' x '.join(map(str, shape)):>18}"
        for dtype in dtypes:
            q, k, v = torch.randn(3, *shape, device=device)
            q, k = q + 0.5, k * torch.linspace(0.3, 3, shape[2], device=device)[:, None]
            q, k, v = (x.to(dtype) for x in (q, k, v))
            want = role_attention_reference(*(x.double() for x in (q, k, v)))
            allowed = torch.finfo(dtype).eps * v.abs().max().item()
            for roles in (False, True):
                got = role_attention(q, k, v, roles)
                error = (got.double() - want).abs().max().item() / allowed
                line += f"  {'roles' if roles else 'alike'}, {str(dtype)[6:]} {error:4.0%}"
                assert error <= 1, f"role_attention is off, {dtype}, roles {roles}:\n{line}"
        print(line)

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Sixteen heads, as many sequences as make 16,384 tokens. Before you look: at $D = 64$ a step has
# half the products and the same exponentials. Do roles gain more there, or less?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    import subprocess
    import sys
    from functools import partial

    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(backend, q, k, v):
        with sdpa_kernel(getattr(SDPBackend, f"{backend}_ATTENTION")):
            return F.scaled_dot_product_attention(q, k, v)

    def calls(shape):
        q, k, v = torch.randn(3, *shape, device="cuda", dtype=torch.bfloat16)
        kinds = {"triton": False, "triton_roles": True}
        found = {p: partial(role_attention, q, k, v, roles) for p, roles in kinds.items()}
        return found | {f"sdpa_{b}": partial(sdpa, b.upper(), q, k, v) for b in ("cudnn", "flash")}

    def rows(shape, timings):
        size = dict(zip(("batch", "heads", "seq_len", "head_dim"), shape, strict=True))
        size |= {"bytes": 8 * math.prod(shape), "flops": 4 * math.prod(shape) * shape[2]}
        return [{"provider": p, **size, **timing} for p, timing in timings.items()]

    def benchmark(name, title, ceiling, rows):
        about = {"name": name, "title": f"Attention forward, {title}, bfloat16", "x": "seq_len"}
        about |= {"dtype": "bfloat16", "mode": "forward", "ceiling": ceiling}
        return about | {"rows": rows}

    for head_dim in (128, 64):
        found = []
        for n in (512, 1024, 2048, 4096, 8192, 16384):
            shape = 16384 // n, 16, n, head_dim
            found += rows(shape, measure(calls(shape), hot=True))
        title = f"full, 16,384 tokens × 16 heads × {head_dim}"
        yield benchmark(f"roles_d{head_dim}", title, "matmul", found)

    busy = "import torch; a = torch.randn(8192, 8192, device='cuda'); print(flush=True)\n"
    busy += "while True: a @ a; torch.cuda.synchronize()"
    shape, found = (2, 5, 4096, 128), []
    steps = calls(shape)
    alone = {provider: step() for provider, step in steps.items()}
    for neighbours in (0, 2):
        others = [
            subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
            for _ in range(neighbours)
        ]
        try:
            for other in others:
                other.stdout.readline()  # it has begun
            for provider, step in steps.items():
                wrong = sum((step() != alone[provider]).any() for _ in range(1500)).item()
                count = {"neighbours": neighbours, "launches": 1500, "wrong": wrong}
                found += rows(shape, {provider: count})
        finally:
            for other in others:
                other.kill()
                other.wait()  # what is measured next has the GPU to itself
    yield benchmark("roles_shared", "10 heads × 4,096 × 128, beside others", None, found)

# %% [markdown]
# {{ figure("roles_d128", caption="D = 128: what the word gains, and what is left to the hand-written kernel of cuDNN.") }}
#
# {% set alike = row("roles_d128", provider="triton", seq_len=4096) %}{% set roles = row("roles_d128", provider="triton_roles", seq_len=4096) %}{% set alike64 = row("roles_d64", provider="triton", seq_len=4096) %}{% set roles64 = row("roles_d64", provider="triton_roles", seq_len=4096) %}{{ claim(roles.ms < alike.ms) }}
# At 4,096 tokens and $D = 128$ the word takes the kernel from {{ alike.tflops | n(0) }} to {{ roles.tflops | n(0) }} TFLOP/s. At $D = 64$ it takes it from {{ alike64.tflops | n(0) }} to {{ roles64.tflops | n(0) }}.
# There a step has 1,024 cycles of products and as many of exponentials, to which maxima and sums
# come: the softmax sets the pace, and roles make it no shorter.
#
# {{ table("roles_d64", providers=["triton", "triton_roles"], columns=["seq_len", "provider", "ms", "tflops"]) }}
#
# ## Where it loses, and why
#
# The check is green, and the kernel fast. But under
# [compute-sanitizer](../glossary.md#compute-sanitizer), while something else ran on the GPU, it gave
# NaN, and the tool was not to blame. Processes that share a GPU take turns, and a kernel is
# [stopped half-way and resumed](https://docs.nvidia.com/cuda/pascal-tuning-guide/index.html#preemption). So here is the experiment. Each kernel runs once, alone, for the
# result to compare with; then 1,500 times alone, and 1,500 times while two other processes multiply
# matrices. Every launch should give the same bits.
#
# {{ table("roles_shared", columns=["provider", "neighbours", "launches", "wrong"]) }}
#
# {% for r in rows("roles_shared") %}{{ claim((r.wrong > 0) == (r.provider == "triton_roles" and r.neighbours > 0)) }}{% endfor %}
# Descriptors made in the kernel are not to blame, nor is the persistent loop: without the word the
# same lines come through, and so do torch's two kernels. What the compiler made of the word is to
# blame. Where in it, we do not know.
#
# A kernel that fails beside a neighbour is not one to copy: on a server the neighbour is a second
# worker, on a desktop the screen. So `flash_attention` does without the word, and the
# [next page](hopper_attention.py) gives out the roles by hand.
#
# ## What to remember
#
# 1. Roles let one unit of the chip work while another does: who loads need not compute, and two
#    groups that compute need not keep step.
# 2. Where warps wait for each other, a green check on an idle GPU is not enough. Repeat beside a
#    neighbour, and compare bits.
# 3. Look at what a compiler made of your word: a region for each role, what each waits for, or
#    nothing at all.
#
# ## Exercises
#
# ??? question "1. Three groups (ten minutes)"
#     A multiprocessor has 65,536 registers. Could a third group of four warps compute, at 232 each?
#
#     ??? success "Answer"
#         No: $3 \cdot 128 \cdot 232 = 89{,}088$. With 160 a thread three would fit and leave 32
#         to the group that loads. But 64 queries at $D = 128$ take 64 registers of each thread for
#         `acc` and as many for scores of 128 keys, before anything else.
#
# ??? question "2. Suspect your own (twenty minutes)"
#     Repeat the experiment with a kernel of yours that must give the same bits each time. What
#     must you leave out of the comparison?
#
#     ??? success "Answer"
#         Whatever adds with atomics: its order changes, and with it the rounding.
#
# ## Use it in your project
#
# Don't, with roles. [`flash_attention`](flash_attention.py#use-it-in-your-project) is for use; the
# reference of this page's function is
# [`role_attention`][examples.attention.warp_specialization.role_attention].
