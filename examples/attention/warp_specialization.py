# %% [markdown]
# ---
# title: Roles for warps
# description: What one word on a loop, warp_specialize, makes of flash attention's warps and what it gains; why it was wrong beside other processes, and the line that cures it.
# tags: [attention, tensor cores, TMA, warp specialisation, compiler, debugging]
# prerequisites: [attention/flash_attention]
# outcome: Count the cycles of a loop on each unit of the chip, read roles in the compiled code, test a kernel beside a neighbour, and find a compiler's mistake by editing what it made.
# ---
#
# # Roles for warps: one word, its gain, and a bug behind it
#
# In [flash attention](flash_attention.py) all [warps](../glossary.md#warp) of a [program](../glossary.md#program) do the same: load keys, multiply,
# exponentiate, multiply. While they exponentiate, the [tensor cores](../glossary.md#tensor-core) wait, unless another
# program on the same [multiprocessor](../glossary.md#sm) has a product for them, and nobody sees to it that it does.
# **What if warps had [roles](../glossary.md#warp-specialisation)?** One group of four warps
# only loads. Two groups of four compute, each for half the queries of the tile and at its own pace:
# while one exponentiates, the other may multiply.
#
# {{ diagram("warp_roles") }}
#
# [Flash attention 3](https://arxiv.org/abs/2407.08608) is built so, by hand. In Triton it is one word.
#
# ## What it may gain
#
# Count cycles of a multiprocessor. In each, its tensor cores do 4,096 operations: half of the H200's [1,979 TFLOP/s](https://www.nvidia.com/en-us/data-center/h200/), which are for sparse matrices, over 132 multiprocessors at 1.83 GHz. Its other units do [16 exponentials](https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions), 128 multiply-adds or 64 maxima. One step of the loop, 128 queries and 128 keys:
#
# | cycles of one multiprocessor | $D = 128$ | $D = 64$ |
# |---|--:|--:|
# | both products, $4 \cdot 128 \cdot 128 \cdot D$ operations | 2,048 | 1,024 |
# | 128 × 128 exponentials | 1,024 | 1,024 |
# | scale, maximum, sum, rounding: about the time of five multiply-adds a score | 640 | 640 |
# | products and softmax one after the other: the sum | 3,712 | 2,688 |
# | at the same time: the products, or the two rows of the softmax, whichever takes longer | 2,048 | 1,664 |
# | **roles may gain** | **1.8×** | **1.6×** |
#
# {% set before = rec("attention/flash_attention").row("attention_d128_full", provider="triton", seq_len=4096) %}
# One after the other, products run 55 % of the time at $D = 128$ and 38 % at 64. The kernel of the last page has two programs to a multiprocessor, whose products and softmaxes overlap by chance. At $D = 128$ it reaches {{ (before.tflops / matmul_tflops("bfloat16", 8192) * 100) | pct }} of a large product's rate.

# %% tags=["copy"]
import functools
import math
import re
from collections import Counter

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
# nothing. Without an `if` a mask would cost every block, so this kernel has none: its attention is
# full, and its lengths are whole blocks. And it makes its [descriptors](../glossary.md#descriptor) itself: with the host's it does not compile. A descriptor made in
# a kernel lies in memory, for which `set_allocator` below names a source.
#
# The three groups fill a multiprocessor. So each multiprocessor has one program, which takes tile
# after tile (it is [persistent](../glossary.md#persistent-kernel)): while the computing warps finish one tile, the loading ones have begun
# with the next. `ROLES` keeps the word or takes it away. `INVALIDATE` and the assembly before the
# kernel are for later: they are the end of a search that begins when the kernel seems done.

# %% tags=["copy"]
@triton.jit
def _invalidate_dead_barriers():
    """Two barriers at the front of shared memory, at which no role waits, are barriers no more."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .b32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first mbarrier.inval.shared::cta.b64 [global_smem];
        @first mbarrier.inval.shared::cta.b64 [global_smem+8];
        @first fence.proxy.async.shared::cta;
        mov.u32 $0, 0;
        }""",
        "=r", [], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def role_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, n_heads, seq_len, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ROLES: tl.constexpr, INVALIDATE: tl.constexpr,
):  # fmt: skip
    """Full attention of heads `[seq_len, D]`, contiguous; both blocks divide `seq_len`."""
    if INVALIDATE:
        _invalidate_dead_barriers()
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
        row_max = tl.full([BLOCK_M], -1e30, tl.float32)  # finite: -inf - -inf is NaN
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
# With roles `num_warps` is the size of each group. Without, all eight warps work alike. Two
# functions below look at where in shared memory the compiled kernel puts things. They too belong to
# the search.

# %% tags=["copy"]
def _launch(q, k, v, out, roles: bool, invalidate: bool, **options):
    batch, heads, seq_len, head_dim = q.shape
    programs = batch * heads * seq_len // 128
    if q.is_cuda:
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    # for descriptors made in a kernel; outlives the call, so it holds no tensor
    triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device="cuda"))
    with torch.cuda.device_of(q):
        return role_attention_kernel[(programs,)](
            q, k, v, out, batch * heads, seq_len, head_dim**-0.5 * math.log2(math.e),
            D=head_dim, BLOCK_M=128, BLOCK_N=128, ROLES=roles, INVALIDATE=invalidate,
            num_warps=4 if roles else 8, num_stages=2, **options)  # fmt: skip


def places_of(ptx: str) -> tuple[Counter, list[int], list[int]]:
    """Bytes of shared memory at which a kernel's PTX puts barriers and loads.

    Returns:
        How often the barrier at each place is initialised; the places that are invalidated by
        name; the first byte that each of the copy engine's loads, in their order, writes to.
    """
    made = dict(re.findall(r"(?:mov\.b32|add\.s32)\s+(%r\d+), ([^;]+);", ptx))

    def place(word: str) -> int:
        # of a sum the known part: what varies is 0 for the first buffer
        if word in made:
            return sum(place(part) for part in made[word].split(", "))
        return int(word) if word.isdigit() else 0

    initialised = Counter(map(place, re.findall(r"mbarrier\.init\S+ \[(%r\d+)\]", ptx)))
    named = re.findall(r"mbarrier\.inval\S+ \[global_smem\+?(\d*)\]", ptx)
    loads = re.findall(r"cp\.async\.bulk\.tensor\S+ \[(%r\d+)\], \[%rd", ptx)
    return initialised, [int(number or 0) for number in named], [*map(place, loads)]


@functools.cache
def _trust(kernel) -> None:
    """Raises unless the barriers that a compiled kernel invalidates are those nobody waits at."""
    initialised, invalidated, _ = places_of(kernel.asm["ptx"])
    dead = [place for place, times in sorted(initialised.items()) if times > 1]
    if not initialised or dead != invalidated:
        raise RuntimeError(
            f"role_attention: Triton {triton.__version__} puts unused barriers at {dead}, the "
            f"kernel invalidates {invalidated}: its results may be wrong; use roles=False"
        )


def role_attention(q, k, v, roles: bool = True) -> torch.Tensor:
    """Full attention, `softmax(q @ k.T / sqrt(D)) @ v` for every head, forward only.

    With roles it depends on where Triton puts its barriers, which it looks up in the compiled
    kernel: up to Triton 3.7 a line of the kernel keeps two of them from spoiling keys; 3.8 needs no
    such line. Tested with 3.6 on an H200, alone and beside other processes; with 3.7 compiled.

    Args:
        q: Queries `(B, H, S, D)`, float16 or bfloat16, contiguous and aligned to 16 bytes, on a
            Hopper GPU (compute capability 9.0) or, with TRITON_INTERPRET=1, anywhere; S is a
            multiple of 128, D is 64 or 128.
        k: Keys, likewise, of the shape, dtype and device of `q`.
        v: Values, likewise.
        roles: Whether four warps load and two groups of four compute; else eight do both.

    Returns:
        The output, like `q`.

    Raises:
        TypeError: The dtype is neither of the two, or differs between the inputs.
        ValueError: A shape, layout or device is not as above, or an input wants a gradient.
        RuntimeError: Triton has put barriers where the kernel does not expect them.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype not in (torch.float16, torch.bfloat16) or x.dtype != q.dtype:
            raise TypeError(f"role_attention takes float16 or bfloat16 alone; {name} is {x.dtype}")
        if x.dim() != 4 or x.shape != q.shape or not x.is_contiguous() or x.data_ptr() % 16:
            raise ValueError(
                "role_attention takes contiguous tensors of one shape, (B, H, S, D), that begin at "
                f"multiples of 16 bytes; {name}: {[*x.shape]}, strides {x.stride()}"
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
        compiled = roles and not triton.knobs.runtime.interpret
        old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
        kernel = _launch(q, k, v, out, roles, invalidate=compiled and old)
        if compiled:
            _trust(kernel)
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
    as_is = _launch(q, q, q, torch.empty_like(q), roles=True, invalidate=False)
    for line in roles_of(as_is.asm["ttgir"]):
        print("".join(f"{cell:>11}" for cell in line))

# %% [markdown]
# The default role has all loads, two of queries, one of keys, one of values, and no product. Before
# each it waits until the groups that read the buffer have done so: one wait for either half of the
# queries, two for keys, two for values. Then it asks the [copy engine](../glossary.md#tma), which itself reports the
# arrival. A partition waits for its queries, for keys, for values, and *arrives* after its last use
# of each, to say that the buffer is free. It asks for 232 registers a thread; the loading warps,
# which need few, give up theirs. Queries and stores are in the roles too, so the loading warps may
# begin with the next tile while this one is finished. And neither partition waits for the other:
# that is the gain.
#
# Had the compiler dropped the word, there would be no such region. Look before you measure.
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
    print(f"{'error / allowed':>18}" + "".join(f"{str(d)[6:]:>16}" for d in dtypes))
    print(" " * 18 + "   alike   roles" * len(dtypes))
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
                line += f"{error:8.0%}"
                assert error <= 1, f"role_attention is off, {dtype}, roles {roles}:\n{line}"
        print(line)

# %%
if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Is it fast?
#
# Sixteen heads, as many sequences as make 16,384 tokens. Before you look: the count says up to 1.8
# and 1.6 times. At which $D$ does the word gain more? Is it enough to pass the last page's kernel?

# %% tags=["fold"]
def bench(measure):
    """Benchmarks of this page; see scripts/measure.py for how each time is taken."""
    import subprocess
    import sys
    import tempfile
    from functools import partial

    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(backend, q, k, v):
        with sdpa_kernel(getattr(SDPBackend, f"{backend}_ATTENTION")):
            return F.scaled_dot_product_attention(q, k, v)

    def calls(inputs):
        q, k, v = inputs
        kinds = {"triton": True, "triton_alike": False}
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
            inputs = torch.randn(3, *shape, device="cuda", dtype=torch.bfloat16)
            found += rows(shape, measure(calls(inputs), hot=True))
        title = f"full, 16,384 tokens × 16 heads × {head_dim}"
        yield benchmark(f"roles_d{head_dim}", title, "matmul", found)

    def as_is(q, k, v, **options):
        out = torch.empty_like(q)
        return out, _launch(q, k, v, out, roles=True, invalidate=False, **options)

    busy = "import torch; a = torch.randn(8192, 8192, device='cuda'); print(flush=True)\n"
    busy += "while True: a @ a; torch.cuda.synchronize()"
    shape, found = (2, 5, 4096, 128), []
    inputs = torch.randn(3, *shape, device="cuda", dtype=torch.bfloat16)
    steps = calls(inputs) | {"triton_as_is": lambda: as_is(*inputs)[0]}
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(without_dead_barriers(as_is(*inputs)[1].asm["ptx"]))
        file.flush()
        edited = {"ir_override": file.name}
        steps["triton_removed"] = lambda: as_is(*inputs, **edited)[0]
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
# {% set flash = rec("attention/flash_attention") %}
# {{ figure("roles_d128", caption="D = 128: the word takes the kernel most of the way to cuDNN’s. “Triton, alike” is the kernel without it.") }}
#
# {{ figure("roles_d64", caption="D = 64: nearer still to cuDNN’s with the word, from a lower start.") }}
#
# What roles gain in single launches, over the same lines without them / over `flash_attention`, the
# kernel of the last page:
#
# | tokens | $D = 128$ | $D = 64$ |
# |--:|--:|--:|
# {% for n in rows("roles_d128", provider="triton_alike") | map(attribute="seq_len") %}
# | {{ "{:,}".format(n) }} {% for d in [128, 64] %}{% set new = row("roles_d%d" % d, provider="triton", seq_len=n) %}{% for old in [row("roles_d%d" % d, provider="triton_alike", seq_len=n), flash.row("attention_d%d_full" % d, provider="triton", seq_len=n)] %}{{ "|" if loop.first else "/" }} {{ "%+.0f" | format(100 * old.ms / new.ms - 100) | replace("-", "−") }}&nbsp;% {% endfor %}{% endfor %}|
# {% endfor %}
#
# {% for r in rows("roles_d128", provider="triton") %}{% set n = r.seq_len %}{% set same, cudnn, last = row("roles_d128", provider="triton_alike", seq_len=n), row("roles_d128", provider="sdpa_cudnn", seq_len=n), flash.row("attention_d128_full", provider="triton", seq_len=n) %}{% set r64, same64, cudnn64, last64 = row("roles_d64", provider="triton", seq_len=n), row("roles_d64", provider="triton_alike", seq_len=n), row("roles_d64", provider="sdpa_cudnn", seq_len=n), flash.row("attention_d64_full", provider="triton", seq_len=n) %}{{ claim(r.ms < 0.96 * last.ms and cudnn.ms < r.ms and (r.ms - cudnn.ms) < 0.5 * (same.ms - cudnn.ms) and last.ms < 0.9 * same.ms) }}{{ claim((same64.ms / r64.ms > 1.03 * same.ms / r.ms and cudnn.ms / r.ms < 0.98 * cudnn64.ms / r64.ms)) }}{% if n >= 2048 %}{{ claim(r64.ms > 1.01 * last64.ms) }}{% endif %}{% if n == 512 %}{{ claim(r64.ms < 0.97 * last64.ms and same64.ms / r64.ms > 1.15 * row("roles_d64", provider="triton_alike", seq_len=16384).ms / row("roles_d64", provider="triton", seq_len=16384).ms and same.ms / r.ms > 1.15 * row("roles_d128", provider="triton_alike", seq_len=16384).ms / row("roles_d128", provider="triton", seq_len=16384).ms) }}{% endif %}{% endfor %}
# {% set alike, roles, cudnn = row("roles_d128", provider="triton_alike", seq_len=4096), row("roles_d128", provider="triton", seq_len=4096), row("roles_d128", provider="sdpa_cudnn", seq_len=4096) %}{% set alike64, roles64 = row("roles_d64", provider="triton_alike", seq_len=4096), row("roles_d64", provider="triton", seq_len=4096) %}
# **At which $D$?** At $D = 64$, against the count: with 4,096 tokens {{ (alike64.ms / roles64.ms) | times }}, and {{ (alike.ms / roles.ms) | times }} at $D = 128$. A likely reason is power: tensor cores that work more of the time draw more of it, and the chip lowers its clock. [Back to back](../glossary.md#cool-and-hot) the kernel with roles is slower by {{ (100 * roles.ms_hot / roles.ms - 100) | pct }} at $D = 128$, and without roles as fast as in single launches; at 64 both lose at most {{ ([100 * roles64.ms_hot / roles64.ms - 100, 100 * alike64.ms_hot / alike64.ms - 100] | max) | n(0) }} %. So power may well hold back the gain at 128, but not that at 64.{{ claim(roles.ms_hot / roles.ms > 1.04 * roles64.ms_hot / roles64.ms and 0.97 < alike.ms_hot / alike.ms < 1.03 and 0.97 < alike64.ms_hot / alike64.ms < 1.03) }}
#
# {% set last = flash.row("attention_d128_full", provider="triton", seq_len=4096) %}
# **Is it enough?** At $D = 128$, yes: {{ roles.tflops | n(0) }} TFLOP/s, {{ last.tflops | n(0) }} on the last page, {{ cudnn.tflops | n(0) }} for cuDNN. At 64, only where sequences are short. Part of what roles gain over the same lines makes up for a handicap: without roles this kernel has one program of eight warps to a multiprocessor, and no second one multiplies during its softmax. `flash_attention` has two programs and is ahead of it. So compare a word with the best kernel that you have, not with the same lines without it. Back to back, where power is the limit, the gain is smaller: {{ roles.tflops_hot | n(0) }} TFLOP/s against {{ last.tflops_hot | n(0) }}.{{ claim(1.02 < last.ms_hot / roles.ms_hot < last.ms / roles.ms - 0.02) }}
#
# **Short sequences** gain most, at $D = 64$ more than counted. The count leaves out a tile's start
# and end: without roles a lone program waits there, likely, for first keys and for its stores.
#
# ## Wrong beside a neighbour
#
# These times are of a kernel with `INVALIDATE`. Leave the line out, as we first did, and alone on a
# GPU the kernel is right. But under [compute-sanitizer](../glossary.md#compute-sanitizer), while
# something else ran on the GPU, it gave NaN. Was it the tool? Processes that share a GPU take
# turns, and a kernel is [stopped half-way and resumed](https://docs.nvidia.com/cuda/pascal-tuning-guide/index.html#preemption). So here is an experiment without the tool. Each kernel runs once, alone, for the
# result to compare with; then 1,500 times alone, and 1,500 times while two other processes multiply
# matrices. Every launch should give the same bits. Wrong are those that do not:
#
# {% macro wrong(provider) %}{{ row("roles_shared", provider=provider, neighbours=0).wrong }} | {{ row("roles_shared", provider=provider, neighbours=2).wrong }} of {{ "{:,}".format(row("roles_shared", provider=provider, neighbours=2).launches) }}{% endmacro %}
# | kernel | wrong, alone | wrong, beside two others |
# |---|--:|--:|
# | with roles, without `INVALIDATE` | {{ wrong("triton_as_is") }} |
# | the same lines without roles | {{ wrong("triton_alike") }} |
# | cuDNN, by torch | {{ wrong("sdpa_cudnn") }} |
# | FlashAttention 2, by torch | {{ wrong("sdpa_flash") }} |
#
# {% for r in rows("roles_shared") %}{{ claim((r.wrong > 0) == (r.provider == "triton_as_is" and r.neighbours > 0)) }}{% endfor %}{% set bad = row("roles_shared", provider="triton_as_is", neighbours=2) %}
# With roles, beside neighbours, one launch in {{ (bad.launches / bad.wrong) | n(0) }} is wrong, and nothing says so. The tool was not to blame. Nor are descriptors made in the kernel, or the persistent loop: without the word the same lines come through. What the compiler made of the word is to blame. But where in it?
#
# The way to find out is to edit what the compiler made, one suspect at a time, and to repeat the
# experiment. Triton hands [PTX](../glossary.md#ptx), a text, to NVIDIA's assembler. We made every
# thread wait until the descriptors were there; waited for the last stores; put a fence after the
# barriers' initialisation; took out the exchange of registers; wrote another branch into the loops
# that wait. It stayed wrong about as often.
#
# ## Two dead barriers
#
# Then we looked at the barriers. For each load, and for each role that uses what it brings, the
# compiler makes [two arrays of them](https://github.com/triton-lang/triton/blob/main/third_party/nvidia/hopper/lib/Transforms/WarpSpecialization/WSLowerToken.cpp), one barrier for each buffer: "full" and "free". But when data are
# there the copy engine reports it, at barriers of its own. At the arrays "full" nobody arrives and
# nobody waits: they are initialised, and then they are dead.
#
# A compiler reuses memory. Where will it put an array that is dead once it is initialised, and what
# comes to lie there next? `places_of` reads it from the PTX, in bytes of shared memory.

# %%
def without_dead_barriers(ptx: str) -> str:
    """PTX in which no barrier is initialised twice: those that were are taken out."""
    init = r"@%p\d+ mbarrier\.init\S+ \[(%r\d+)\], 1;"
    places = re.findall(init, ptx)
    return re.sub(init, lambda line: line[0] if places.count(line[1]) == 1 else "", ptx)


if __name__ == "__main__" and torch.cuda.is_available():
    initialised, _, loads = places_of(as_is.asm["ptx"])
    once = sorted(place for place, times in initialised.items() if times == 1)
    print(f"initialised once: {len(once)} barriers, at bytes {once[0]:,} to {once[-1] + 7:,}")
    for place, times in sorted(initialised.items()):
        if times > 1:
            print(f"initialised {times} times: a barrier at bytes {place:,} to {place + 7:,}")
    names = "queries, a half", "queries, the other half", "keys", "values"
    for place, name in zip(loads, names, strict=True):
        print(f"loaded to bytes from {place:>7,}: {name}")

# %% [markdown]
# {% macro wrong(provider) %}{{ row("roles_shared", provider=provider, neighbours=0).wrong }} | {{ row("roles_shared", provider=provider, neighbours=2).wrong }} of {{ "{:,}".format(row("roles_shared", provider=provider, neighbours=2).launches) }}{% endmacro %}
# Six dead arrays: one for each half of the queries, which one role reads; two for keys and two for
# values, which both computing roles read. All six are put at byte 0, one after the other. Then the
# first buffer of keys comes to lie there, and eight numbers of a key are two barriers as well.
#
# {{ diagram("dead_barriers") }}
#
# That is forbidden. Where a barrier is, [says NVIDIA's manual](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-init), neither another one nor anything else may come before `mbarrier.inval` has *invalidated* it; what happens otherwise is undefined. This PTX has no such instruction.
#
# Is it the cause? `without_dead_barriers` takes the twelve initialisations out of the PTX, and the
# launch gets that text by the option `ir_override`. Nothing else changes:
#
# | kernel with roles | wrong, alone | wrong, beside two others |
# |---|--:|--:|
# | as the compiler made it | {{ wrong("triton_as_is") }} |
# | the same PTX without the dead barriers | {{ wrong("triton_removed") }} |
#
# It is the cause. One step we have not seen: what makes a wrong number of a broken rule. Likely a
# barrier that counts as valid is not saved and restored like other memory when a program is stopped
# half-way, and eight numbers of a key come back as others. It fits that alone nothing happens, and
# that the result is NaN.
#
# ## The line
#
# In a project nobody edits PTX. But a kernel may contain some: `_invalidate_dead_barriers` at its
# top has the program's first thread, which initialised the two barriers, invalidate them, and its
# fence puts that before what the copy engine writes. The compiler initialises ahead of all that the
# kernel says, and lets roles begin after its first lines, so that this one runs in between. The
# page's tests read that from the PTX.
#
# | kernel with roles | wrong, alone | wrong, beside two others |
# |---|--:|--:|
# | as the compiler made it | {{ wrong("triton_as_is") }} |
# | with `INVALIDATE` | {{ wrong("triton") }} |
#
# The line names bytes 0 and 8, and the compiler has promised nobody to put dead barriers there. So
# `role_attention` does not rely on it: `_trust` looks at each compiled kernel once, and raises an
# error unless the barriers initialised more than once are those that are invalidated.
#
# Triton 3.8 gives every barrier a place of its own and invalidates it after use, likely since
# [this change](https://github.com/triton-lang/triton/pull/9592); the line is left out there. Meta's version of Triton had [the same mistake](https://github.com/facebookexperimental/triton/pull/462), and its authors quote the same rule.
#
# ## Where it loses, and why
#
# **Most of attention.** It is forward only, for Hopper only, full, and of whole blocks: a mask
# needs an `if`, with which the compiler drops the word, or costs every block.
#
# **$D = 64$.** From 2,048 tokens on `flash_attention` is faster.
#
# {% set gluon = rec("attention/hopper_attention") %}{% set ours, best = row("roles_d128", provider="triton", seq_len=4096), row("roles_d128", provider="sdpa_cudnn", seq_len=4096) %}
# **cuDNN** takes {{ (best.ms / ours.ms * 100) | pct }} of its time at $D = 128$ and 4,096 tokens. A group here waits for each of its products before it goes on, so that during its softmax the tensor cores have work only if the other group has a product for them. The [next page](hopper_attention.py) gives out the roles by hand, lets a group exponentiate while its own next product runs, and passes cuDNN.{{ claim(best.ms < 0.97 * ours.ms and gluon.row("hopper_d128_full", provider="triton", seq_len=4096).ms < 0.97 * gluon.row("hopper_d128_full", provider="sdpa_cudnn", seq_len=4096).ms) }}
#
# **It leans on the inside of a compiler.** Another version may put things elsewhere, and then the
# function stops with an error until somebody looks. And each call sets Triton's allocator, in place
# of one that your program may have set.
#
# **A tool complains.** Compute-sanitizer's racecheck reports [hazards](../results.md#are-the-kernels-right), all of one kind: the first warps write into shared memory which role the others shall take, and those read it. But in the machine code a barrier for all threads stands between such a write and the read, and another before the next write. So this is likely a false alarm.
#
# ## What to remember
#
# 1. Roles let one unit of the chip work while another does: who loads need not compute, and two
#    groups that compute need not keep step. Measure what that gains over your best kernel.
# 2. Where warps wait for each other, a green check on an idle GPU is not enough. Repeat beside a
#    neighbour, and compare bits.
# 3. A compiler's output is a text: read what became of your word, and where it puts things. To find
#    a cause, change one thing in it at a time, until what was wrong is right.
#
# ## Exercises
#
# ??? question "1. Three groups (ten minutes)"
#     A multiprocessor has 65,536 registers. Could a third group of four warps compute, at 232 each?
#
#     ??? success "Answer"
#         No: $3 \cdot 128 \cdot 232 = 89{,}088$. With 160 a thread three would fit and leave 32
#         to the group that loads. But 64 queries at $D = 128$ take 64 registers of each thread for
#         `acc` and as many for scores of 128 keys, before anything else. At $D = 64$ `acc` takes
#         half as many, and the next page has a kernel with three groups.
#
# ??? question "2. One of two (five minutes)"
#     What happens at the first launch if the line invalidates the barrier at byte 0 and not that at
#     byte 8? And in the interpreter?
#
#     ??? success "Answer"
#         `_trust` finds 0 and 8 initialised six times and 0 alone invalidated, and raises a
#         RuntimeError. In the interpreter nothing is compiled: there are no barriers, and the
#         line is left out.
#
# ??? question "3. Suspect your own (twenty minutes)"
#     Repeat the experiment with a kernel of yours that must give the same bits each time. What
#     must you leave out of the comparison?
#
#     ??? success "Answer"
#         Whatever adds with atomics: its order changes, and with it the rounding.
#
# ## Use it in your project
#
# For full attention at $D = 128$ without a gradient, in lengths that are multiples of 128, on
# Hopper: copy it whole, `_trust` included, and repeat this page's experiment with your versions of
# Triton and the driver. We ran it with Triton {{ env.triton }} and driver {{ env.driver }}. For all else there is
# [`flash_attention`](flash_attention.py#use-it-in-your-project). Types, shapes and errors:
# [`role_attention`][examples.attention.warp_specialization.role_attention].
