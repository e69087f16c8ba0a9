"""The compiler's tools: what they compile, count and refuse; the layouts against Triton's own."""

import json
import re

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = [0, 1, 2, 31, 1023, 1024, 1025, 7919]
FLOATS = [
    torch.float16,
    torch.float32,
    # the interpreter computes with the bits of bfloat16 as integers
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scale(lecture, device, dtype, n):
    x = torch.randn(n, device=device).to(dtype)
    assert torch.equal(lecture.scale(x, 0.3), lecture.scale_reference(x, 0.3))
    assert torch.equal(lecture.scale(x, -2.0), -2 * x)


def test_scale_extremes(lecture, device):
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e38, 1e-45], device=device)
    torch.testing.assert_close(lecture.scale(x, 10.0), x * 10, rtol=0, atol=0, equal_nan=True)
    assert lecture.scale(x[None, :3].expand(4, 3).contiguous(), 1.0).shape == (4, 3)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 3000), factor=st.floats(-1e4, 1e4, width=32))
def test_scale_any_length(lecture, device, n, factor):
    x = torch.randn(n, device=device)
    assert torch.equal(lecture.scale(x, factor), factor * x)


@pytest.mark.gpu
def test_scale_beyond_int32(lecture):
    x = torch.ones(2**31 + 1025, dtype=torch.float16, device="cuda")
    x[2**31 :] = 3
    y = lecture.scale(x, 2.0)
    assert (y[: 2**31] == 2).all() and (y[2**31 :] == 6).all()


def test_scale_refuses(lecture, device):
    x = torch.randn(4, 6, device=device)
    for wrong in (x.t(), x[:, :3], x.clone().requires_grad_()):
        with pytest.raises(ValueError, match="contiguous|gradient"):
            lecture.scale(wrong, 2.0)
    for dtype in (torch.float64, torch.int32, torch.complex64):
        with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
            lecture.scale(x.to(dtype), 2.0)


@pytest.fixture(scope="module")
def scaled(lecture):
    return lecture.compile_kernel(lecture.scale_kernel, "sm_90", **lecture.SCALE)


def test_stages(lecture, scaled):
    assert list(scaled.stages) == ["ttir", "ttgir", "llir", "ptx"]
    assert "tt.load" in scaled.stages["ttir"] and "#blocked" not in scaled.stages["ttir"]
    assert ".target sm_90" in scaled.stages["ptx"] and "EXIT" in scaled.sass
    amd = lecture.compile_kernel(lecture.scale_kernel, "gfx942", **lecture.SCALE)
    assert list(amd.stages) == ["ttir", "ttgir", "llir", "amdgcn"]
    assert "s_endpgm" in amd.stages["amdgcn"] and amd.resources["spills"] == 0


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_targets(lecture, target):
    compiled = lecture.compile_kernel(lecture.scale_kernel, target, **lecture.SCALE)
    assert f".target {target}" in compiled.stages["ptx"]
    assert compiled.metadata.target.arch == int(target[3:])


def test_warps_of_rdna_have_32_threads(lecture):
    for target, threads in (("gfx942", 256), ("gfx90a", 256), ("gfx1100", 128), ("gfx1201", 128)):
        compiled = lecture.compile_kernel(lecture.scale_kernel, target, **lecture.SCALE)
        assert compiled.resources["threads"] == threads, target


@pytest.mark.parametrize(
    ("num_warps", "block", "loads"),
    [
        (1, 256, "1 of 16 bytes"),
        (4, 512, "1 of 8 bytes"),
        (8, 1024, "1 of 8 bytes"),  # exercise 1
        (4, 4096, "4 of 16 bytes"),  # exercise 1
        (32, 1024, "1 of 2 bytes"),
    ],
)
def test_width_follows_from_threads(lecture, num_warps, block, loads):
    sizes = lecture.SCALE | {"BLOCK": block, "num_warps": num_warps}
    compiled = lecture.compile_kernel(lecture.scale_kernel, "sm_90", **sizes)
    assert lecture.accesses(compiled.stages["ptx"]) == loads
    assert compiled.resources["threads"] == 32 * num_warps


def test_exercise_2(lecture):
    amd = lecture.compile_kernel(lecture.scale_kernel, "gfx942", **lecture.SCALE)
    held = lecture.owners(amd.stages["ttgir"], "tt.load") == 64
    assert held.nonzero().flatten().tolist() == [256, 257, 258, 259]
    assert "global_load_dwordx2" in amd.stages["amdgcn"]


def test_exercise_3(lecture):
    tile = lecture.PRODUCT | {"BLOCK_N": 256, "num_stages": 3}
    for num_warps, instructions, spills in ((4, 8, True), (8, 4, False)):
        tile["num_warps"] = num_warps
        compiled = lecture.compile_kernel(lecture.product_kernel, "sm_90", **tile)
        assert lecture.arithmetic(compiled) == f"{instructions} wgmma.mma_async"
        assert compiled.resources["shared"] == 3 * 48 * 1024
        assert (compiled.resources["spills"] > 0) == spills


def test_questions_an_odd_size_costs_a_product_its_pipeline(lecture):
    unknown = lecture.PRODUCT | dict.fromkeys(("N", "K", "stride_bk"), "i32")
    for arguments, copies in ((lecture.PRODUCT, True), (unknown, False)):
        kernel = lecture.compile_kernel(lecture.product_kernel, "sm_90", num_stages=3, **arguments)
        assert ("cp.async" in kernel.stages["ptx"]) == copies
        assert kernel.resources["shared"] == (128 + 128) * 64 * 2 * (3 if copies else 1)


@pytest.mark.parametrize(
    ("target", "buffers"), [("sm_75", 1), ("sm_80", 2), ("sm_90", 3), ("sm_100", 3), ("sm_120", 2)]
)
def test_questions_shared_memory_by_stages(lecture, target, buffers):
    kernel = lecture.compile_kernel(lecture.product_kernel, target, num_stages=3, **lecture.PRODUCT)
    # beside the tiles a few barriers
    assert 0 <= kernel.resources["shared"] - buffers * (128 + 128) * 64 * 2 <= 64


@pytest.mark.parametrize("rows", [16, 32, 64])
def test_questions_few_rows_of_a_product(lecture, rows):
    few = lecture.PRODUCT | {"BLOCK_M": rows}
    ptx = lecture.compile_kernel(lecture.product_kernel, "sm_90", **few).stages["ptx"]
    assert ("wgmma.mma_async" in ptx, "mma.sync" in ptx) == (rows == 64, rows < 64)


@triton.jit
def convert_kernel(x_ptr, M: tl.constexpr, N: tl.constexpr):
    offs = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(x_ptr + offs, tl.load(x_ptr + offs) + 1)


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 16), (2, 8), (16, 16), (16, 64), (64, 16), (128, 4), (1, 4096)], ids=str
)
@pytest.mark.parametrize("dtype", ["*i8:16", "*bf16:16", "*fp32:16", "*i64"])
def test_owners_are_those_of_triton(lecture, shape, dtype, num_warps):
    """Against the linear layout that the compiler itself derives."""
    from triton._C.libtriton import gluon_ir, ir
    from triton.experimental.gluon import language as gl

    M, N = shape
    compiled = lecture.compile_kernel(
        convert_kernel, "sm_90", x_ptr=dtype, M=M, N=N, num_warps=num_warps
    )
    ttgir = compiled.stages["ttgir"]
    name = re.search(r"tt\.load .*, (#\w+)>", ttgir)[1]
    text = re.search(rf"^{name} = #ttg\.blocked<(.*)>", ttgir, re.M)[1]
    lists = {k: json.loads(v) for k, v in re.findall(r"(\w+) = (\[.*?\])", text)}
    context = ir.context()
    ir.load_dialects(context)
    builder = gluon_ir.GluonOpBuilder(context)
    blocked = gl.BlockedLayout(
        lists["sizePerThread"], lists["threadsPerWarp"], lists["warpsPerCTA"], lists["order"]
    )
    linear = builder.to_linear_layout(blocked._to_ir(builder), list(shape))

    wanted = torch.full(shape, 10**6, dtype=torch.int32)
    bases = [*linear.lane_bases, *linear.warp_bases]
    for thread in range(32 * num_warps):
        for register in range(2 ** len(linear.reg_bases)):
            at = [0, 0]
            picked = [b for i, b in enumerate(bases) if thread >> i & 1]
            picked += [b for i, b in enumerate(linear.reg_bases) if register >> i & 1]
            for row, column in picked:
                at[0] ^= row
                at[1] ^= column
            wanted[tuple(at)] = min(wanted[tuple(at)].item(), thread)
    assert torch.equal(lecture.owners(ttgir, "tt.load"), wanted)


def test_owners_refuses(lecture, scaled):
    with pytest.raises(ValueError, match=r"no tt\.atomic"):
        lecture.owners(scaled.stages["ttgir"], "tt.atomic")
    product = lecture.compile_kernel(lecture.product_kernel, "sm_90", **lecture.PRODUCT)
    with pytest.raises(ValueError, match="blocked layout"):
        lecture.owners(product.stages["ttgir"], "warp_group_dot ")
    copied = lecture.owners(product.stages["ttgir"], "async_copy_global_to_local")
    assert copied.shape == (128, 64) and copied.max() == 255


def helper(x):
    return x


@triton.autotune([triton.Config({"BLOCK": 128})], key=["n"])
@triton.jit
def tuned_kernel(x_ptr, n, value, BLOCK: tl.constexpr, NOTHING: tl.constexpr = None):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if value is not None:
        tl.store(x_ptr + offs, offs + value, mask=offs < n)


def test_any_kernel(lecture):
    compiled = lecture.compile_kernel(
        tuned_kernel, "sm_80", x_ptr="*i32:16", n="i32", value=1, BLOCK=256, maxnreg=32
    )
    assert "st.global" in compiled.stages["ptx"] and ".maxnreg 32" in compiled.stages["ptx"]
    assert compiled.resources["registers"] <= 32
    empty = lecture.compile_kernel(
        tuned_kernel, "sm_80", x_ptr="*i32:16", n="i32", value=None, BLOCK=256
    )
    assert "st.global" not in empty.stages["ptx"]


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, "needs n, an argument", {"n": KeyError}),
        (ValueError, "type for n", {"n": 7}),
        (ValueError, "type for n", {"n": "int"}),
        (ValueError, "type for x_ptr", {"x_ptr": "*bf16:8"}),
        (ValueError, "neither argument nor option: num_wraps", {"num_wraps": 8}),
        (ValueError, "needs a target", {"target": "hopper"}),
        (TypeError, "under @triton.jit", {"kernel": helper}),
        (TypeError, "under @triton.jit", {"kernel": 3}),
    ],
)
def test_compile_kernel_refuses(lecture, error, words, change):
    arguments = {"kernel": lecture.scale_kernel, "target": "sm_90"} | lecture.SCALE | change
    arguments = {key: value for key, value in arguments.items() if value is not KeyError}
    with pytest.raises(error, match=words):
        lecture.compile_kernel(**arguments)


@pytest.mark.interpreter
def test_without_a_gpu_the_target_is_asked_for(lecture):
    with pytest.raises(ValueError, match="needs a target"):
        lecture.compile_kernel(lecture.scale_kernel, **lecture.SCALE)


def test_what_is_given_stays_as_it_was(lecture):
    arguments = dict(lecture.SCALE)
    lecture.compile_kernel(lecture.scale_kernel, "sm_90", **arguments)
    assert arguments == lecture.SCALE


def test_show(lecture, scaled, capsys):
    for stage, pattern, lines in (("ttir", "tt.func| = |tt.store", 25), ("ptx", "global", 9)):
        lecture.show(scaled.stages[stage], pattern)
        shown = capsys.readouterr().out
        assert shown and "loc(" not in shown and "#loc" not in shown
        assert len(shown.splitlines()) <= lines
        assert max(map(len, shown.splitlines())) <= 90


@pytest.mark.gpu
@pytest.mark.parametrize("strides", [(64, 1), (1, 16)])
def test_the_threads_agree(lecture, strides):
    names = {"stride_m": strides[0], "stride_n": strides[1]}
    names = {key: value if value == 1 else "i32:16" for key, value in names.items()}
    compiled = lecture.compile_kernel(lecture.tile_kernel, **lecture.TILE, **names)
    held = lecture.owners(compiled.stages["ttgir"], "tt.load")
    assert torch.equal(held, lecture.ask_threads(*strides))


@pytest.mark.gpu
@pytest.mark.parametrize("n", [4096, 4097])
def test_a_launch_compiles_the_same(lecture, n):
    x = torch.ones(n, dtype=torch.bfloat16, device="cuda")
    launched = lecture.scale_kernel[(5,)](x, x, 2.0, n, BLOCK=1024)
    kinds = lecture.SCALE | ({} if n % 16 == 0 else {"n": "i32"})
    compiled = lecture.compile_kernel(lecture.scale_kernel, **kinds)
    assert launched.asm["ptx"] == compiled.stages["ptx"]
    assert launched.n_regs == compiled.resources["registers"]
    assert launched.n_spills == compiled.resources["spills"]
