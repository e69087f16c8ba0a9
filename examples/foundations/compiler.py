# %% [markdown]
# ---
# title: The compiler
# description: A kernel followed from Python to machine code, for GPUs present and absent.
# tags: [compiler, layouts, PTX, tensor cores]
# prerequisites: [foundations/programming_model]
# outcome: Read what your kernel became, and compile it for a GPU that you do not have.
# ---
#
# # The compiler: what became of your kernel
#
# You write one program that works on whole blocks; no thread occurs in it. The GPU runs threads, a
# few bytes each. In between it was decided which thread takes which element, how wide a load is,
# whether `tl.dot` uses [tensor cores](../glossary.md#tensor-core). That decides the speed, and it is
# written down: a kernel passes through five texts, which you can read, without any GPU.
#
# {{ diagram("compiler_stages") }}
#
# ## What arithmetic predicts
#
# - **`scale`**, `out = x * factor`: 1,024 bfloat16 for 128 threads are 8 each, 16 bytes, the most a
#   load can fetch. So **one load and one store in a thread**, if the compiler can prove that the 8
#   lie together, at a multiple of 16 bytes.
# - **`product`**, a tile of 128 × 128 in steps of 64 along K: one Hopper [wgmma](../glossary.md#wgmma)
#   multiplies 64 × 16 by 16 × 128 in four [warps](../glossary.md#warp). Eight warps are two such groups,
#   with 64 rows each: **4 instructions a step**. Its operands in [shared memory](../glossary.md#shared-memory) take
#   (128 + 128) × 64 × 2 bytes, **32 KiB a stage**; the sum takes 128 × 128 / 256 = **64
#   [registers](../glossary.md#register) of a thread**.
#
# ## A tool to copy
#
# `triton.compile` needs no GPU, only the name of one. `compile_kernel` calls it with arguments as
# at a launch, but types for tensors; `owners` reads a [layout](../glossary.md#layout).

# %% tags=["copy"]
import inspect
import re
import subprocess
import tempfile
from functools import cached_property

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend


class Compiled:
    """A kernel's `metadata` and `stages`: the texts "ttir", "ttgir", "llir", "ptx" or "amdgcn"."""

    def __init__(self, compiled):
        self.metadata, self._cubin = compiled.metadata, compiled.asm.get("cubin")
        texts = {stage: text for stage, text in compiled.asm.items() if isinstance(text, str)}
        self.stages = {stage: text for stage, text in texts.items() if stage != "source"}

    @cached_property
    def sass(self) -> str:
        """The machine code as text, for NVIDIA; AMD's is the stage "amdgcn"."""
        return self._read_cubin(triton.knobs.nvidia.nvdisasm, "-c")

    @cached_property
    def resources(self) -> dict[str, int]:
        """Of a program `threads`, `shared` bytes; of a thread `registers`, `spills` of 32 bits."""
        if self._cubin:
            used = self._read_cubin(triton.knobs.nvidia.cuobjdump, "-res-usage")
            registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", used).groups())
            spills = stack // 4
        else:
            used = dict(re.findall(r"\.(vgpr\w+):\s+(\d+)", self.stages["amdgcn"]))
            registers, spills = int(used["vgpr_count"]), int(used["vgpr_spill_count"])
        threads = self.metadata.num_warps * self.metadata.warp_size
        sizes = {"threads": threads, "shared": self.metadata.shared}
        return sizes | {"registers": registers, "spills": spills}

    def _read_cubin(self, tool, option):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self._cubin)
            file.flush()
            command = [tool.path, option, file.name]
            return subprocess.check_output(command, text=True, stderr=subprocess.PIPE)

# %% tags=["copy"]
def compile_kernel(kernel, target: str | None = None, **arguments) -> Compiled:
    """Compiles a kernel for a GPU, present or not, without running it.

    Args:
        kernel: A function under `@triton.jit`, also one under `@triton.autotune` and the like.
        target: "sm_90", "sm_80" and so on, or AMD's "gfx942"; None: this machine's GPU.
        **arguments: As at a launch, by name. For a tensor or number its type, "*bf16" (a pointer),
            "i32", "fp32"; with ":16" behind it where address or number is a multiple of 16. The
            value itself for a constexpr, None and 1. And options such as num_warps, num_stages.

    Raises:
        TypeError: It is no kernel.
        ValueError: A target, argument or type is missing or unknown.
    """
    function = kernel
    # under a tuner, or in the interpreter, the function lies deeper
    while hasattr(function, "fn") and not isinstance(function, triton.JITFunction):
        function = function.fn
    if inspect.isfunction(function) and function is not kernel:
        function = triton.JITFunction(function)
    if not isinstance(function, triton.JITFunction):
        raise TypeError(f"compile_kernel needs a function under @triton.jit, got {kernel!r}")
    gpu = _gpu(target)
    signature, constants, hints = {}, {}, {}
    for i, parameter in enumerate(function.params):
        name = parameter.name
        if name not in arguments and not parameter.has_default:
            raise ValueError(f"compile_kernel needs {name}, an argument of the kernel")
        value = arguments.pop(name, parameter.default)
        if parameter.is_constexpr or value is None or value == 1:
            signature[name], constants[i,] = "constexpr", value
            continue
        kind = re.fullmatch(r"(\*?[a-z]+\d+\w*|tensordesc<.+>)(:16)?", str(value))
        if not kind:
            raise ValueError(f'compile_kernel needs a type for {name}, as "i32"; got {value!r}')
        signature[name] = kind[1]
        if kind[2]:
            hints[i,] = [["tt.divisibility", 16]]
    unknown = arguments.keys() - vars(make_backend(gpu).parse_options({})).keys()
    if unknown:
        raise ValueError(f"neither argument nor option: {', '.join(sorted(unknown))}")
    source = ASTSource(function, signature, constants, hints)
    return Compiled(triton.compile(source, target=gpu, options=arguments))


def _gpu(target):
    if target is None and torch.cuda.is_available():
        return triton.runtime.driver.active.get_current_target()
    if nvidia := re.fullmatch(r"sm_(\d+)", str(target)):
        return GPUTarget("cuda", int(nvidia[1]), 32)
    if re.fullmatch(r"gfx\w+", str(target)):
        # a warp of AMD's CDNA has 64 threads, one of RDNA 32
        return GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32)
    raise ValueError(f'compile_kernel needs a target, "sm_90" or "gfx942", got {target!r}')


def owners(ttgir: str, operation: str) -> torch.Tensor:
    """Finds which thread of a program holds which element of a block.

    The block is that of the first line with `operation` in it, such as "tt.load". Returns int32 of
    its shape: the thread's number, the lowest where several hold the same element. Raises a
    ValueError where there is no such line, or its layout is not a blocked one.
    """
    line = next((line for line in ttgir.splitlines() if operation in line), "")
    block = re.search(r"tensor<(\d+(?:x\d+)*)x[^#]*(#\w+)>", line)
    layout = block and re.search(rf"^{block[2]} = #ttg\.blocked<(.*)>", ttgir, re.M)
    if not layout:
        raise ValueError(f"no {operation} of a block with a blocked layout in {line!r}")
    lists = re.findall(r"(\w+) = \[([\d, ]+)\]", layout[1])
    parts = {key: [int(number) for number in numbers.split(",")] for key, numbers in lists}
    shape = [int(length) for length in block[1].split("x")]
    thread, threads = torch.zeros(shape, dtype=torch.int32), 1
    length = parts["sizePerThread"]
    for level in ("threadsPerWarp", "warpsPerCTA"):
        for dim in parts["order"]:
            count = parts[level][dim]
            index = torch.arange(shape[dim], dtype=torch.int32) // length[dim] % count
            thread += threads * index.view([-1 if d == dim else 1 for d in range(len(shape))])
            length[dim] *= count
            threads *= count
    return thread

# %% tags=["copy"]
@triton.jit
def scale_kernel(x_ptr, out_ptr, factor, n, BLOCK: tl.constexpr):
    """Multiplies n elements by a number; launch ceil(n / BLOCK) programs."""
    # int32 offsets would wrap at 2**31 elements
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    tl.store(out_ptr + offs, x * factor, mask=mask)


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiplies a tensor by a number: the kernel that this page takes apart, ready to launch.

    Args:
        x: float16, bfloat16 or float32 on a GPU, contiguous, any shape; without a gradient.
        factor: A number.

    Returns:
        The product, computed in float32, in the type of `x`.

    Raises:
        TypeError: The dtype is not supported.
        ValueError: The tensor is not on a GPU, not contiguous, or wants a gradient.
    """
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        wanted = "a tensor on a GPU; TRITON_INTERPRET=1 runs it on the CPU"
        raise ValueError(f"scale needs {wanted}; got one on {x.device}")
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"scale needs float16, bfloat16 or float32, got {x.dtype}")
    if not x.is_contiguous() or (x.requires_grad and torch.is_grad_enabled()):
        raise ValueError("scale needs x.contiguous(), and without a gradient: x.detach()")
    out, n, BLOCK = torch.empty_like(x), x.numel(), 1024
    with torch.cuda.device_of(x):
        scale_kernel[(triton.cdiv(n, BLOCK),)](x, out, factor, n, BLOCK=BLOCK)
    return out

# %% [markdown]
# Why `:16`? A launch compiles one version for addresses and integers that are multiples of 16, and
# another for the rest ([why](programming_model.py#one-kernel-several-compiled-versions)); here you choose.
#
# ## Follow one line
#
# The line with `tl.load`, compiled for an H100 or H200 (`sm_90`, by their [compute
# capability](../glossary.md#compute-capability)); what it must compute stands in PyTorch [at the end](#check). In which stage does the block of 1,024 disappear?

# %%
SCALE = {"x_ptr": "*bf16:16", "out_ptr": "*bf16:16", "factor": "fp32", "n": "i32:16", "BLOCK": 1024}


def show(text, pattern):
    """Prints the lines that match, without source locations."""
    import textwrap

    noise = r' loc\("\w*"\(#loc\d*\)\)| loc\(\S+\)|^#loc.*|//.*|, !dbg.*|/\*.*?\*/'
    lines = [" ".join(re.sub(noise, "", line).split()) for line in text.splitlines()]
    for line in filter(re.compile(pattern).search, lines):
        print("\n".join(textwrap.wrap(line, 88, subsequent_indent="    ")))


if __name__ == "__main__":
    scaled = compile_kernel(scale_kernel, "sm_90", **SCALE)
    for name, text in [*scaled.stages.items(), ("sass", scaled.sass)]:
        print(f"--- {name}")
        show(text, r"tt.load|ld\.global|LDG")

# %% [markdown]
# In LLVM IR. From there on the text is what **one thread** does, and its load fetches four words of
# 32 bits: the 16 bytes.
#
# ### TTIR: your program, typed
#
# Your function, its types written out, its constants folded. It knows no GPU: for `scale` it is the
# same text for every target here. `tt.divisibility` is the `:16`. Look for types you never meant.

# %%
if __name__ == "__main__":
    show(scaled.stages["ttir"], "tt.func| = |tt.store")

# %% [markdown]
# ### TTGIR: who holds what
#
# Here the GPU comes in: every block gets a layout, which says which thread holds which element.
# Your code needs no threads: they are chosen here, from addresses, widths and the number of warps.

# %%
def show_owners(ttgir, operation, threads):
    """Prints the elements that some threads hold."""
    thread = owners(ttgir, operation)
    for number in threads:
        print(f"thread {number:3} holds", *(thread == number).nonzero().squeeze(1).tolist())


if __name__ == "__main__":
    show(scaled.stages["ttgir"], "blocked =|tt.load|tt.store")
    show_owners(scaled.stages["ttgir"], "tt.load", (0, 1, 31, 32, 127))

# %% [markdown]
# Read a blocked layout from the inside: `sizePerThread` neighbours belong to a thread,
# `threadsPerWarp` such pieces to a warp, `warpsPerCTA` of those to the program; a larger block goes
# on with thread 0. Thread numbers grow first along the dimension that `order` names first. 16 × 64:
#
# {{ diagram("compiler_layout") }}
#
# Do the threads agree? Ask them: a line of PTX gives, for each element, the thread at work.

# %%
@triton.jit
def tile_kernel(
    x_ptr, out_ptr, stride_m, stride_n, M: tl.constexpr, N: tl.constexpr, ASK: tl.constexpr = False
):
    offs_m = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)[:, None]  # [M, 1]
    offs_n = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)[None, :]  # [1, N]
    offs = offs_m * stride_m + offs_n * stride_n  # [M, N]
    x = tl.load(x_ptr + offs)
    if ASK:
        ask: tl.constexpr = "mov.u32 $0, %tid.x; // $1"
        x = tl.inline_asm_elementwise(ask, "=r,r", [x.to(tl.int32)], tl.int32, False, 1)
    tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty))


TILE = {"x_ptr": "*i16:16", "out_ptr": "*i16:16", "M": 16, "N": 64}


def ask_threads(stride_m, stride_n):
    """Which thread holds which element of a tile 16 x 64, by their own account."""
    x = torch.zeros(16 * 64, dtype=torch.int16, device="cuda")
    tile_kernel[(1, 1)](x, x, stride_m, stride_n, 16, 64, ASK=True)
    return x.as_strided((16, 64), (stride_m, stride_n)).int().cpu()


if __name__ == "__main__":
    tile = compile_kernel(tile_kernel, "sm_90", stride_m="i32:16", stride_n=1, **TILE)
    show_owners(tile.stages["ttgir"], "tt.load", (0, 1, 8, 127))
    if torch.cuda.is_available():
        print("asked:", torch.equal(owners(tile.stages["ttgir"], "tt.load"), ask_threads(64, 1)))

# %% [markdown]
# ### PTX and SASS: one thread
#
# LLVM IR drops the blocks, and becomes [PTX](../glossary.md#ptx), assembly for a machine with as
# many registers as you like. NVIDIA's assembler makes code of one chip from it, and allots the real
# ones. Where does a thread learn which elements are its own?

# %%
if __name__ == "__main__":
    show(scaled.stages["ptx"], r"id\.x|mul.wide|shl|and.b|or.b|setp|global\.v")
    print("---")
    show(scaled.sass, r"^S2R|ISETP|LDG|F2FP|STG|EXIT")
    print(scaled.resources)

# %% [markdown]
# The thread's number (`%tid.x`) times 8 (`shl` by 3) is the layout; the program's (`%ctaid.x`)
# times 1,024 (`mul.wide`) is its start. One comparison, `setp`, masks all eight elements: `@%p1`
# loads only where it holds. In [SASS](../glossary.md#sass) four `F2FP` round and pack two results each.
#
# A launch returns the same ([checked](#check)): after `compiled = kernel[grid](...)` look at `compiled.asm`, `compiled.metadata.shared`, `compiled.n_regs`, `compiled.n_spills`.
#
# ## Coalescing and vector width
#
# Memory is fast where neighbouring threads want neighbouring addresses
# ([coalescing](../glossary.md#coalescing)), 16 bytes each. For which of these can the compiler prove that they do? (`lanes` are `threadsPerWarp`.)

# %%
def accesses(ptx):
    """A thread's loads from memory, such as 8 of 2 bytes."""
    found = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return f"{len(found)} of {int(found[0][0] or 1) * int(found[0][1]) // 8} bytes"


ACCESS = (
    ("multiples of 16", scale_kernel, SCALE),
    ("n is none", scale_kernel, SCALE | {"n": "i32"}),
    ("addresses are none", scale_kernel, SCALE | dict.fromkeys(("x_ptr", "out_ptr"), "*bf16")),
    ("rows are consecutive", tile_kernel, TILE | {"stride_m": "i32:16", "stride_n": 1}),
    ("columns are consecutive", tile_kernel, TILE | {"stride_m": 1, "stride_n": "i32:16"}),
    ("neither, for all I know", tile_kernel, TILE | {"stride_m": "i32", "stride_n": "i32"}),
)

if __name__ == "__main__":
    for known, kernel, arguments in ACCESS:
        stages = compile_kernel(kernel, "sm_90", **arguments).stages
        size, lanes, *_ = re.findall(r"\[[\d, ]+\]", stages["ttgir"])
        print(f"{known:25}{accesses(stages['ptx']):13} sizePerThread {size:7} lanes {lanes}")

# %% [markdown]
# - **`n` no multiple of 16**: threads hold eight neighbours as before, but the mask may cut between
#   any two. Each is loaded singly, and what a warp fetches at once lies 16 bytes apart.
# - **Addresses none**: without hope of wide loads, elements are dealt out singly, and coalesced.
# - **Rows, columns**: the layout follows the memory, since the stride of 1 is a constant.
#   **Neither**: any order of threads is wrong for one of the two, here rows, in Triton 3.7 columns.
#
# Predict what the second and the third case cost, beside the first:
#
# {{ figure("vector_width", caption="Loads of 2 bytes take a fifth more time while they are coalesced, four times as much where they are not.") }}
#
# {% set apart = row("vector_width", case="2 bytes, apart") %}{% set narrow = row("vector_width", case="2 bytes") %}{% set wide = row("vector_width", case="16 bytes") %}{{ claim(1.15 < narrow.ms / wide.ms < 1.27 and 3.6 < apart.ms / wide.ms < 4.4) }}
# {% set tile = row("coalescing", provider="triton", case="rows") %}{% set wrong = row("coalescing", provider="triton_strides_hidden", case="rows") %}
# Coalesced loads of 2 bytes: {{ narrow.percent | pct }} of a copy{{ claim(70 < narrow.percent < 95) }}. Where
# they lie apart, {{ apart.percent | pct }}{{ claim(apart.percent < 50) }}, for one element less ([the remedy](programming_model.py#one-change-whole-blocks-need-no-mask)).
# And tiles: with strides hidden from the compiler, rows take {{ (wrong.ms / tile.ms) | times }} as long{{ claim(wrong.ms > 5 * tile.ms) }}. With strides known, columns still beat rows{{ claim(row("coalescing", provider="triton", case="columns").ms < tile.ms) }}, perhaps because programs that start together, along `program_id(0)`, are then neighbours in memory.
#
# {{ table("coalescing", columns=["provider", "case", "ms", "percent"]) }}
#
# ## A product, for GPUs that you do not have
#
# A plain tile product. What does `tl.dot` become on a T4 (`sm_75`), an A100 (`sm_80`), Hopper,
# Blackwell (`sm_100`; `sm_120` in a desktop), AMD's MI300 (`gfx942`)?

# %%
@triton.jit
def product_kernel(
    a_ptr, b_ptr, c_ptr, N, K, stride_bk, stride_bn, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr = None, TMA: tl.constexpr = False,
):
    start_m, start_n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    offs_m = start_m + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    offs_n = start_n + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.float32)
    for k in range(0, K, BLOCK_K):
        if TMA:
            a, b = a_ptr.load([start_m, k]), b_ptr.load([k, start_n])
        else:
            a = tl.load(a_ptr + offs_m * K + k + offs_k[None, :])
            b = tl.load(b_ptr + (k + offs_k[:, None]) * stride_bk + offs_n * stride_bn)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(c_ptr + offs_m * N + offs_n, acc.to(c_ptr.dtype.element_ty))


TILES = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8}
POINTERS = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*bf16:16")
PRODUCT = POINTERS | {"N": "i32:16", "K": "i32:16", "stride_bk": "i32:16", "stride_bn": 1} | TILES
TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "gfx942")


def arithmetic(compiled):
    """The multiplying instructions of a thread, such as 4 wgmma.mma_async."""
    names = r"wgmma\.mma_async|mma\.sync|tcgen05\.mma|fma\.rn\.f32|v_mfma"
    found = re.findall(names, [*compiled.stages.values()][-1])
    return ", ".join(f"{found.count(name)} {name}" for name in dict.fromkeys(found))


if __name__ == "__main__":
    for target in TARGETS:
        compiled = compile_kernel(product_kernel, target, **PRODUCT)
        print(f"{target:8}{arithmetic(compiled):19}", end="")
        print(*(f"{count:7,} {name}" for name, count in compiled.resources.items()))

# %% [markdown]
# - **The same**: the source, and on NVIDIA GPUs the TTIR, to the letter. **Different**: the rest.
# - **`sm_90`**: the 4 predicted. `wgmma` reads shared memory itself; warps go on while it runs.
# - **`sm_80`, `sm_120`**: 64 of `mma.sync`: a warp multiplies 16 × 16 by 16 × 8, from registers.
# - **`sm_100`**: one thread starts `tcgen05.mma`, 4 a step, and the text [holds a step twice](#where-reading-falls-short), once before the loop. The sum lies in *tensor memory*.
#   **`gfx942`**: `v_mfma`, 16 a step, three times, in warps of 64; its last text is AMD's assembly.
# - **`sm_75`**: a T4 has tensor cores, Triton no longer uses them: 4,096 multiply-adds in a thread,
#   and a [spill](../glossary.md#spill): what finds no register goes to memory. It compiles silently.
#
# ## What num_stages changes
#
# While the tensor cores multiply one pair of tiles, the next can be on its way
# ([pipelining](../glossary.md#pipelining)). `num_stages` says how far ahead the loop loads.
#
# {{ diagram("compiler_pipeline") }}
#
# With `TMA=True` the kernel gets [descriptors](../glossary.md#descriptor) in place of two pointers, and
# [TMA](../glossary.md#tma) loads whole tiles. How many buffers, instructions, KiB do you expect?

# %%
TMA = {"a_ptr": "tensordesc<bf16[128, 64]>", "b_ptr": "tensordesc<bf16[64, 128]>", "TMA": True}
PIPELINES = {"pointers, sm_80": (product_kernel, "sm_80", PRODUCT)}
PIPELINES |= {"pointers, sm_90": (product_kernel, "sm_90", PRODUCT)}
PIPELINES |= {"TMA, sm_90": (product_kernel, "sm_90", PRODUCT | TMA)}


def pipeline(kernel, target, arguments, num_stages):
    """Buffers for a's tile; instructions that fill them; KiB of shared memory."""
    compiled = compile_kernel(kernel, target, num_stages=num_stages, **arguments)
    buffers = re.search(r"memdesc<(?:(\d)x)?128x64x", compiled.stages["ttgir"])[1] or 1
    copies = len(re.findall(r"cp\.async\.(?:cg|bulk\.tensor)", compiled.stages["ptx"]))
    return int(buffers), copies, compiled.resources["shared"] // 1024


if __name__ == "__main__":
    print("num_stages", *(f"{title:>24}" for title in PIPELINES))
    for n in range(1, 6):
        found = [pipeline(*case, n) for case in PIPELINES.values()]
        print(f"{n:10}", *("{:3} x {:3} copies, {:3} KiB".format(*each) for each in found))

# %% [markdown]
# - **`cp.async`** copies 16 bytes to shared memory, past the registers, and returns at once. A step
#   takes 8 a thread (32 KiB / 256 / 16), written once for each step loaded ahead and once in the
#   loop. One stage has none: plain loads, then waiting.
# - **Buffers**: on Hopper as many as stages, 32 KiB each: `wgmma` still reads one while the next is
#   filled. On `sm_80` one fewer: `mma.sync` has its operands in registers by then.
# - **TMA**: two instructions a step, one a tile, and one thread to issue them.
#
# An [SM](../glossary.md#sm) of an H200 has 227 KiB for its programs. Which number is best? Predict.
#
# {{ figure("num_stages", y="tflops", caption="Three stages are best: with four, a second program no longer fits on the SM.") }}
#
# {% set one = row("num_stages", provider="triton_TMA", num_stages=1) %}{% set three = row("num_stages", provider="triton_TMA", num_stages=3) %}{% set four = row("num_stages", provider="triton_TMA", num_stages=4) %}
# With three stages two programs of 96 KiB fit, and one multiplies while the other waits; of 128 KiB
# only one ([occupancy](../glossary.md#occupancy)). TMA: {{ three.tflops | tflops }}{{ claim(three.tflops > four.tflops > 1.5 * one.tflops) }};
# cuBLAS: {{ row("num_stages", provider="cublas", num_stages=3).tflops | tflops }}.
#
# ## Why is a float32 product inexact?
#
# Tensor cores take no float32: without `input_precision=` `tl.dot` silently takes its inputs for [TF32](../glossary.md#tf32), ten bits of fraction. (PyTorch does so [only where you allow it](https://docs.pytorch.org/docs/stable/notes/cuda.html).) The PTX says so.

# %%
FP32 = PRODUCT | dict.fromkeys(POINTERS, "*fp32:16") | {"BLOCK_K": 32}

if __name__ == "__main__":
    for precision in ("tf32", "tf32x3", "ieee"):
        compiled = compile_kernel(product_kernel, "sm_90", **FP32, PRECISION=precision)
        tf32 = "tf32.tf32" in compiled.stages["ptx"]
        print(f"{precision:7}{arithmetic(compiled):>19}, TF32: {tf32}")

# %% [markdown]
# {% set tf32 = row("precision", provider="triton", precision="tf32") %}{% set by_rows = row("precision", provider="triton_b_by_rows", precision="tf32") %}
# `ieee` uses no tensor core, and rounds each sum 4,096 times. `tf32x3` splits each number in two and multiplies three times, and errs even less{{ claim(row("precision", provider="triton", precision="tf32x3").error_ppm < row("precision", provider="triton", precision="ieee").error_ppm) }}. For
# TF32 `wgmma` wants K consecutive: if `b` lies by rows, threads must turn it, and TF32 takes {{ (by_rows.ms / tf32.ms) | times }}
# as long{{ claim(by_rows.ms > 2 * tf32.ms) }}; `ieee` is faster by rows{{ claim(row("precision", provider="triton_b_by_rows", precision="ieee").ms < 0.7 * row("precision", provider="triton", precision="ieee").ms) }}. Errors are in millionths of the largest result{{ claim(tf32.error_ppm > 50 * row("precision", provider="triton", precision="ieee").error_ppm) }}; Triton hands float32 over unrounded, so that the other digits are cut off, and errs more than twice as much as cuBLAS{{ claim(tf32.error_ppm > 2 * row("precision", provider="cublas", precision="tf32").error_ppm) }}:
#
# {{ table("precision", columns=["provider", "precision", "tflops", "error_ppm"]) }}
#
# ## Check
#
# The kernels against their references, then what this page says of the compiler's output.

# %% tags=["fold"]
def scale_reference(x, factor):
    """The specification: a product in float32, in the type of x."""
    return (x.float() * factor).to(x.dtype)


def claims(device):
    """Yields what this page says of the compiler's output: a name, what is found, what is said."""

    def ttir(target, kernel, arguments):
        text = compile_kernel(kernel, target, **arguments).stages["ttir"]
        return re.sub(r"(?m) loc\(.*?\)+$|^#loc.*", "", text)

    for *call, said in (scale_kernel, SCALE, TARGETS), (product_kernel, PRODUCT, TARGETS[:-1]):
        same = tuple(target for target in TARGETS if ttir(target, *call) == ttir("sm_90", *call))
        yield "TTIR as on sm_90", same, said
    element = torch.arange(1024, dtype=torch.int32)
    tiles = [(element // 8).view(16, 64), (element // 8).view(64, 16).t()]
    layouts = element // 8, element // 8, element % 128, *tiles
    for (known, kernel, arguments), layout in zip(ACCESS, layouts, strict=False):
        stages = compile_kernel(kernel, "sm_90", **arguments).stages
        as_said = torch.equal(owners(stages["ttgir"], "tt.load"), layout)
        loads = "8 of 2 bytes" if " none" in known else "1 of 16 bytes"
        yield known, (accesses(stages["ptx"]), as_said), (loads, True)
    scaled, amd = (compile_kernel(scale_kernel, each, **SCALE) for each in ("sm_90", "gfx942"))
    found = scaled.resources["threads"], amd.resources["threads"], "LDG.E.128" in scaled.sass
    yield "threads, on gfx942, SASS", found, (128, 256, True)
    dots = ("4096 fma.rn.f32", "64 mma.sync", "4 wgmma.mma_async", "8 tcgen05.mma", "64 mma.sync")
    for target, said in zip(TARGETS, (*dots, "48 v_mfma"), strict=True):
        yield target, arithmetic(compile_kernel(product_kernel, target, **PRODUCT)), said
    for n in (1, 2, 4):
        fewer, copies = max(1, n - 1), 8 * n * (n > 1)
        said = [(fewer, copies, 32 * fewer), (n, copies, 32 * n), (n, 2 * n, 32 * n)]
        yield f"num_stages {n}", [pipeline(*case, n) for case in PIPELINES.values()], said
    dots = {"tf32": "4 wgmma.mma_async", "tf32x3": "12 wgmma.mma_async", "ieee": "2048 fma.rn.f32"}
    for precision, said in dots.items():
        compiled = compile_kernel(product_kernel, "sm_90", **FP32, PRECISION=precision)
        found = arithmetic(compiled), "tf32.tf32" in compiled.stages["ptx"]
        yield precision, found, (said, precision != "ieee")
    large = TILES | {"BLOCK_N": 256, "num_warps": 4}
    fits = compile_kernel(product_kernel, "sm_90", **PRODUCT).resources
    spilt = compile_kernel(product_kernel, "sm_90", **PRODUCT | large).resources
    yield "128 x 128", (fits["registers"] in range(65, 129), fits["spills"]), (True, 0)
    yield "128 x 256", (spilt["registers"], spilt["spills"] > 0), (255, True)
    if device == "cuda":
        asked = ask_threads(64, 1), ask_threads(1, 16)
        yield "the threads agree", [*map(torch.equal, asked, tiles)], [True, True]
        x = torch.ones(256, 256, dtype=torch.bfloat16, device="cuda")
        launched = scale_kernel[(64,)](x, x, 2.0, 2**16, BLOCK=1024)
        same = launched.asm["ptx"] == compile_kernel(scale_kernel, **SCALE).stages["ptx"]
        yield "a launch compiles the same", same, True
        launched = product_kernel[(2, 1)](x, x, x, 256, 256, 256, 1, **large)
        counts = (launched.n_regs, launched.n_spills, launched.metadata.shared)
        here = compile_kernel(product_kernel, **PRODUCT | large).resources
        yield "the driver counts", counts, tuple(here[k] for k in ("registers", "spills", "shared"))


def check(device="cuda"):
    """Compares the kernels with their references, and the compiler's output with the claims."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    dtypes = [torch.float16, torch.float32] + ([torch.bfloat16] if device == "cuda" else [])
    for dtype, n in ((dtype, n) for dtype in dtypes for n in (0, 1, 1023, 1024, 1025, 4099)):
        x, memory = torch.randn(2, n + 2048, device=device)
        x, memory = x[:n].to(dtype), memory.fill_(torch.nan)
        scale_kernel[(triton.cdiv(n, 1024),)](x, memory, 0.1, n, BLOCK=1024)
        exact = torch.equal(memory[:n], x.float() * 0.1) and memory[n:].isnan().all()
        exact = exact and torch.equal(scale(x, 0.1), scale_reference(x, 0.1))
        assert exact, f"scale differs: {dtype}, n = {n}"
    a, b, out = torch.randn(3, 128, 128, device=device)
    tiles = TensorDescriptor.from_tensor(a, [32, 32]), TensorDescriptor.from_tensor(b, [32, 64])
    for inputs, strides, right in (((a, b), (1, 128), b.t()), (tiles, (128, 1), b)):
        more = 128, 128, *strides, 32, 64, 32, "ieee", inputs is tiles
        product_kernel[(4, 2)](*inputs, out.fill_(torch.nan), *more)
        assert torch.allclose(out.double(), a.double() @ right.double(), atol=1e-4), "product"
    for name, found, said in claims(device):
        assert found == said, f"{name}: {found}, not {said}"
        print(f"{name:28}{found}"[:88])


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## Where reading falls short
#
# - **Counts are of the text**: a load in a loop stands there once, and once more for each step that
#   it loads ahead. PTX is not the end: the assembler merges, reorders and unrolls.
# - **No limit is checked**: too much shared memory is an error at the launch only (227 KiB on
#   `sm_90` and `sm_100`, 163 on `sm_80`, 99 on `sm_120`, 64 on `gfx942`).
# - **Each Triton compiles differently**: this page was recorded with {{ env.triton }}. And it takes time,
#   {{ rows("compile_time") | sum("ms") | ms }} for `product`, most of it in LLVM and the assembler{{ claim(row("compile_time", stage="llir").ms + row("compile_time", stage="ptx").ms + row("compile_time", stage="cubin").ms > rows("compile_time") | sum("ms") / 2) }}.
#
# ## What to remember
#
# 1. **Blocks up to TTGIR, one thread after it.** Who gets what follows from what can be proven:
#    multiples of 16, strides of 1.
# 2. **Predict, then look**: bytes a load, `wgmma` or not, KiB a stage, registers for the sum.
# 3. **No GPU is needed**: a test can demand `wgmma` and no spills of a chip that you never saw.
#
# ## Exercises
#
# ??? question "1 (easy): what does a thread of `scale` load with `num_warps=8`? With `BLOCK=4096`?"
#
#     ??? success "Answer"
#
#         1,024 / 256 threads = 4 elements: `1 of 8 bytes`. 4,096 / 128 = 32: `4 of 16 bytes`.
#
# ??? question "2 (medium): which elements does thread 64 hold on `gfx942`? How wide is its load?"
#
#     ??? success "Answer"
#
#         256 to 259: four warps are 256 threads there. `global_load_dwordx2` fetches 8 bytes.
#
# ??? question "3 (hard): a tile of 128 × 256 on 4 warps. Predict `wgmma`, KiB and registers."
#
#     ??? success "Answer"
#
#         8 of them, (128 + 256) × 64 × 2 bytes = 48 KiB a stage, and 256 registers for the sum
#         alone, where a thread has 255: it spills. On 8 warps it does not.
#
# ## Use it in your project
#
# ```python
# from compiler import compile_kernel
# compiled = compile_kernel(my_kernel, "sm_90", x_ptr="*bf16:16", n="i32:16", BLOCK=1024)
# assert compiled.resources["spills"] == 0 and ".v4.b32" in compiled.stages["ptx"]
# ```
#
# API: [compile_kernel][examples.foundations.compiler.compile_kernel],
# [owners][examples.foundations.compiler.owners], [scale][examples.foundations.compiler.scale]. Next: [element-wise fusion](../fusion/elementwise.py).

# %% tags=["fold"]
def bench(measure):
    """Yields the page's benchmarks."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    def result(name, title, x, ceiling, rows, dtype="bfloat16"):
        about = {"name": name, "title": title, "x": x, "dtype": dtype, "mode": "forward"}
        return about | {"ceiling": ceiling, "rows": rows}

    def timed(fns, **work):
        return [{"provider": key, **work, **timing} for key, timing in measure(fns).items()]

    n, rows = 2**28, []
    x = torch.randn(n + 8, device="cuda").to(torch.bfloat16)
    out, work = torch.empty_like(x), {"bytes": 4 * n, "flops": n}
    for case, start, length in ("16 bytes", 0, n), ("2 bytes", 1, n), ("2 bytes, apart", 0, n - 1):
        args = x[start:], out[start:], 2.0, length, 1024
        fns = {"triton": lambda: scale_kernel[(n // 1024,)](*args)}
        rows += timed(fns, case=case, **work)
    yield result("vector_width", "Scale 2²⁸ bfloat16, by a thread's loads", "case", "copy", rows)

    hidden = triton.jit(tile_kernel.fn, do_not_specialize=["stride_m", "stride_n"])
    kernels, rows = {"triton": tile_kernel, "triton_strides_hidden": hidden}, []
    for case, strides in {"rows": (2**14, 1), "columns": (1, 2**14)}.items():
        args = x, out, *strides, 64, 64
        fns = {key: lambda k=k: k[(256, 256)](*args) for key, k in kernels.items()}
        rows += timed(fns, case=case, **work)
    yield result("coalescing", "Copy 2^14 x 2^14 bfloat16 in tiles", "case", "copy", rows)

    size, grid, rows = 4096, (32, 32), []
    work = {"n": size, "bytes": 6 * size**2, "flops": 2 * size**3}
    a, b = torch.randn(2, size, size, device="cuda").to(torch.bfloat16)
    c, sizes = torch.empty_like(a), (size, size, size, 1)
    tiles = TensorDescriptor.from_tensor(a, [128, 64]), TensorDescriptor.from_tensor(b, [64, 128])
    for stages in range(1, 6):
        options = TILES | {"num_stages": stages}
        fns = {"triton": lambda: product_kernel[grid](a, b, c, *sizes, **options)}
        fns["triton_TMA"] = lambda: product_kernel[grid](*tiles, c, *sizes, TMA=True, **options)
        fns["cublas"] = lambda: torch.mm(a, b, out=c)
        rows += timed(fns, num_stages=stages, **work)
    yield result("num_stages", "4096 x 4096 x 4096, bfloat16", "num_stages", None, rows)

    a, b = torch.randn(2, size, size, device="cuda")
    c, wanted, rows = torch.empty_like(a), a.double() @ b.double(), []
    b_columns, work = b.t().contiguous().t(), work | {"bytes": 12 * size**2}

    for precision in ("tf32", "tf32x3", "ieee"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        options = TILES | {"BLOCK_K": 32, "PRECISION": precision}
        turned = size, size, 1, size
        fns = {"triton": lambda: product_kernel[grid](a, b_columns, c, *turned, **options)}
        fns["triton_b_by_rows"] = lambda: product_kernel[grid](a, b, c, *sizes, **options)
        fns |= {"cublas": lambda: torch.mm(a, b, out=c)} if precision != "tf32x3" else {}
        for row in timed(fns, precision=precision, **work):
            fns[row["provider"]]()
            error = ((c - wanted).abs().max() / wanted.abs().max()).item()
            rows.append(row | {"error_ppm": error * 1e6})
    torch.backends.cuda.matmul.allow_tf32 = False
    yield result("precision", "4096 x 4096 x 4096, float32", "precision", None, rows, "float32")

    rows, seen = [], []
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile = True
        triton.knobs.compilation.listener = lambda times, **_: seen.append(times)
        for _ in range(5):
            compile_kernel(product_kernel, **PRODUCT)
    times = sorted(seen, key=lambda times: times.total)[2]
    for stage, us in (("python", times.ir_initialization), *times.lowering_stages):
        timing = dict.fromkeys(("ms", "ms_p20", "ms_p80"), us * 1e-3)
        rows.append({"provider": "triton", "stage": stage, "bytes": 0, "flops": 0} | timing)
    yield result("compile_time", "Compile product, by stage", "stage", None, rows)
