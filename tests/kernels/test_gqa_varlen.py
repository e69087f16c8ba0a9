"""flash_attention_varlen: packed sequences, groups, bands and soft-caps, against float64.

Without a GPU the kernels run in the interpreter; two variants are compiled for sm_90 as well, by
this file run as a script, and their machine code is looked at.
"""

import itertools
import json
import math
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings

from tests.kernels.changed import changed_lecture
from tests.kernels.sm_90 import SHARED_LIMIT, facts, launched, pretend, run_as_script

VARIANTS = [(128, 0.0), (128, 30.0)]  # head_dim, softcap
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)


def compiled(lecture, variants) -> list[dict]:
    """Each variant's three kernels, causal, compiled for sm_90 without a GPU."""
    kernels = ("kernel", "dq_kernel", "dkdv_kernel")
    found = launched(lecture, *(f"flash_attention_varlen_{name}" for name in kernels))
    for head_dim, softcap in variants:
        q = torch.empty(2048, 8, head_dim, dtype=torch.bfloat16)
        k, ends = q.new_empty(2048, 2, head_dim), torch.zeros(4, dtype=torch.int32)
        options = (ends, ends), (2**30, 0), 0.1, softcap
        lse = lecture.varlen_forward(q, k, k, q, *options)
        lecture.varlen_backward(q, q, k, k, q, lse, q, k, k, *options)
    return [facts(kernel) for kernel in found]


def compile_all() -> dict:
    """Compiles the lecture's kernels, and those that exercise 3 makes of them."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import gqa_varlen as lecture

    found, slopes = {}, torch.empty(8)
    with tempfile.TemporaryDirectory() as folder:
        for name, more in {"by key": {}, "by distance": BY_DISTANCE, "fewer queries": {}}.items():
            other = changed_lecture(lecture, SLOPES | more, folder)
            other.SLOPES, (forward, dq, keys, capped) = slopes, other.TILES[128]
            other.TILES[128] = forward, dq, capped if name == "fewer queries" else keys, capped
            found[name] = compiled(other, [(128, 0.0)])
    return found | {"lecture": compiled(lecture, VARIANTS)}


@pytest.mark.interpreter  # a GPU's tests compile and run them
def test_machine_code():
    for kernel in run_as_script(__file__)["lecture"]:
        assert kernel["shared"] <= SHARED_LIMIT and kernel["atomics"] == 0
        assert kernel["wgmma"] > 0 and kernel["loads"] > 0 and kernel["stores"] > 0
        # a scalar that is not proved uniform spills hundreds
        assert kernel["spills"] <= 64 and not kernel["serialized"]


def test_what_is_read_past_the_end_was_written(lecture):
    """Rows of lse and delta behind the last query are there for the tiles of dk and dv."""
    for forward, dq, *both in lecture.TILES.values():
        assert all(tile[0] % dkdv[0] == 0 for tile in (forward, dq) for dkdv in both)
        assert all(lecture.PAD.value % tile[0] == 0 for tile in (forward, dq, *both))


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(0, 300), min_size=1), block=st.sampled_from([32, 64, 128]))
def test_there_are_slots_for_all_tiles_and_few_more(lengths, block):
    starts = [0, *itertools.accumulate(lengths)]
    slots = [start // block + i for i, start in enumerate(starts)]
    for n, (first, after) in zip(lengths, itertools.pairwise(slots), strict=True):
        assert 0 <= after - first - -(-n // block) <= 1


def test_lengths_of_the_examples(lecture):
    for n in (1, 4, 16, 64):
        lengths = lecture.ragged_lengths(n)
        assert len(lengths) == n and sum(lengths) == 16384 and min(lengths) > 0


def offsets(lengths, device="cpu"):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def inputs(n_q, n_k, heads=1, group=1, head_dim=32, device="cpu", dtype=torch.float16, seed=0):
    """Queries, keys, values and the gradient of the output, then both cu_seqlens."""
    torch.manual_seed(seed)
    kv = sum(n_k), heads // group
    shapes = (sum(n_q), heads), kv, kv, (sum(n_q), heads)
    tensors = [torch.randn(*shape, head_dim, device=device).to(dtype) for shape in shapes]
    return *tensors, offsets(n_q, device), offsets(n_k, device)


def gradients(attend, q, k, v, do, *ends, **options):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, *ends, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, do)]


def agrees(lecture, q, k, v, do, *ends, within=1.5, **options):
    """Checks output and gradients against float64; returns them."""
    got = gradients(lecture.flash_attention_varlen, q, k, v, do, *ends, **options)
    wide = [x.double() for x in (q, k, v, do)]
    want = gradients(lecture.flash_attention_varlen_reference, *wide, *ends, **options)
    rounding = torch.finfo(q.dtype).eps if q.dtype != torch.float64 else 1e-5
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        largest = y.abs().max().item() if y.numel() else 0.0
        torch.testing.assert_close(
            x.double(), y, atol=within * rounding * (largest + 0.01), rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip
    return got


@every_dtype
@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=["full", "causal"])
def test_lengths(lecture, device, options, dtype):
    lengths = [1, 64, 0, 65, 129]
    agrees(lecture, *inputs(lengths, lengths, device=device, dtype=dtype), **options)


@pytest.mark.parametrize(("head_dim", "n"), [(64, 130), (128, 65), (256, 33)])
def test_head_dims(lecture, device, head_dim, n):
    x = inputs([3, n], [7, n], head_dim=head_dim, device=device)
    agrees(lecture, *x, causal=True, softcap=3.0)


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 4), (4, 2)]), causal=st.booleans(),
    left=st.sampled_from([-1, 0, 1, 20, 63, 64, 65]), right=st.sampled_from([-1, 0, 1, 30, 64]),
    softcap=st.sampled_from([0.0, 2.0]), scale=st.floats(0.05, 0.5), seed=st.integers(0, 99),
)  # fmt: skip
def test_anything(lecture, device, lengths, heads, causal, left, right, softcap, scale, seed):
    # one key: gradients are 0 but for rounding
    x, options = inputs(*zip(*lengths, strict=True), *heads, device=device, seed=seed), {}
    options |= {"window_size": (left, right), "softcap": softcap, "scale": scale}
    agrees(lecture, *x, causal=causal, within=2.0, **options)


@triton.jit
def band_kernel(out_ptr, start, n, BAND: tl.constexpr):
    first, _, _, stop = BAND(start, 128, n, 0, n, 64, 64)
    tl.store(out_ptr, first)
    tl.store(out_ptr + 1, stop)


def test_exercise_1_both_sides(lecture, device):
    n = 300
    q, k, v, _, *ends = inputs([n], [n], device=device)
    v[:] = torch.arange(n, device=device)[:, None, None]
    # equal weights: a row is the mean of the places it sees
    out = lecture.flash_attention_varlen(q * 0, k, v, *ends, window_size=(64, 64))[:, 0, 0]
    want = [(max(i - 64, 0) + min(i + 64, n - 1)) / 2 for i in range(n)]
    assert out.tolist() == pytest.approx(want, rel=2e-3, abs=0.1)
    visited = torch.empty(2, dtype=torch.int32, device=device)
    for start in range(128, 4096, 128):
        band_kernel[(1,)](visited, start, 8192, lecture._band)
        assert visited.tolist() == [start - 64, start + 192]
        assert len(range(*visited.tolist(), lecture.TILES[128][0][1])) == 4


NO_MAXIMUM = {
    "        new_max = tl.maximum(row_max, tl.max(s, axis=1) * scale_out)\n": "",
    "s * scale_out - new_max[:, None]": "s * scale_out",
    "        alpha = tl.exp2(row_max - new_max)\n": "",
    "row_sum * alpha": "row_sum",
    "acc * alpha[:, None]": "acc",
    "        row_max = new_max\n": "",
    "row_max + tl.log2(row_sum)": "tl.log2(row_sum)",
}


@pytest.mark.interpreter
def test_exercise_2_no_maximum(lecture, changed):
    assert math.exp(-20) > 1e-9 and math.exp(20) < 1e9
    assert torch.finfo(torch.float32).max > 1e9 * 2**29
    extremes = torch.tensor([-20.0, 20.0]).exp()
    assert extremes.bfloat16().isfinite().all() and (extremes.bfloat16() > 0).all()
    assert extremes.half()[1].isinf() and torch.finfo(torch.float16).max < 65505
    plain = changed(NO_MAXIMUM)
    # float64 in place of bfloat16, whose products are wrong in the interpreter
    for dtype, fails in ((torch.float64, False), (torch.float16, True)):
        q, k, v, do, *ends = inputs([70, 3], [90, 5], 2, 2, dtype=dtype)
        x, options = (q * 30, k, v, do, *ends), {"softcap": 20.0, "window_size": (50, -1)}
        if fails:
            assert not plain.flash_attention_varlen(*x[:3], *ends, **options).isfinite().all()
            agrees(lecture, *x, within=4.0, **options)
        else:
            agrees(plain, *x, **options)


# exercise 3; in place of the launch's argument, a global of the module
SLOPES = {
    "left, right, scale_in, scale_out,": "slopes_ptr, left, right, scale_in, scale_out,",
    "*band, *scales, HEAD_DIM": "SLOPES, *band, *scales, HEAD_DIM",
    "\n    q = _load(q_desc, first_q, n_q, start_m, head)\n": (
        "\n    q = _load(q_desc, first_q, n_q, start_m, head)\n"
        "    slope = tl.load(slopes_ptr + head)\n"
    ),
    # the forward
    "(s * scale_in)\n        if (start_n": (
        "(s * scale_in)\n"
        "        keys = start_n + tl.arange(0, BLOCK_N)[None, :]\n"
        "        s = s * scale_out + slope * keys\n"
        "        if (start_n"
    ),
    "tl.max(s, axis=1) * scale_out": "tl.max(s, axis=1)",
    "s * scale_out - new_max[:, None]": "s - new_max[:, None]",
    # the kernel for queries, and that for keys
    "        p = tl.exp2(s * scale_out - lse)\n        if (start_n": (
        "        keys = start_n + tl.arange(0, BLOCK_N)[None, :]\n"
        "        p = tl.exp2(s * scale_out + slope * keys - lse)\n"
        "        if (start_n"
    ),
    "        p = tl.exp2(s * scale_out - lse)\n        if BANDED": (
        "        slope = tl.load(slopes_ptr + head)\n"
        "        p = tl.exp2(s * scale_out + slope * keys - lse)\n"
        "        if BANDED"
    ),
}
ONE_FOR_A_GROUP = {"        slope = tl.load(slopes_ptr + head)": (
    "        slope = tl.load(slopes_ptr + kv_head * group)"
)}  # fmt: skip
BY_DISTANCE = {
    "s * scale_out + slope * keys\n": (
        "s * scale_out + slope * (keys - offs_m[:, None] - (n_k - n_q))\n"
    ),
    "slope * keys - lse)\n        if (start_n": (
        "slope * (keys - offs_m[:, None] - (n_k - n_q)) - lse)\n        if (start_n"
    ),
    "slope * keys - lse)\n        if BANDED": (
        "slope * (keys - start_m - offs_m[None, :] - (n_k - n_q)) - lse)\n        if BANDED"
    ),
}


def sloped(q, k, v, ends_q, ends_k, slopes, softcap=0.0):
    """Causal attention with slopes in plain PyTorch."""
    outs = []
    pairs = (itertools.pairwise(ends.tolist()) for ends in (ends_q, ends_k))
    for (a, b), (c, d) in zip(*pairs, strict=True):
        keys, values = (x[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        s = torch.einsum("mhd,nhd->hmn", q[a:b], keys) * q.shape[2] ** -0.5
        s = softcap * torch.tanh(s / softcap) if softcap else s
        ahead = torch.arange(d - c) - (torch.arange(b - a)[:, None] + (d - c) - (b - a))
        s = (s + slopes[:, None, None] * ahead).masked_fill(ahead > 0, -math.inf)
        outs.append(torch.einsum("hmn,nhd->mhd", s.softmax(dim=-1), values))
    return torch.cat(outs)


@pytest.mark.interpreter
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(
    ("more", "right"),
    [({}, True), (BY_DISTANCE, True), (ONE_FOR_A_GROUP, False)],
    ids=["by key", "by distance", "one slope for a group"],
)
def test_exercise_3_slopes(changed, softcap, more, right):
    kernels = changed(SLOPES | more)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    kernels.SLOPES = slopes * math.log2(math.e)
    x = inputs([70, 0, 66], [90, 3, 66], 4, 2, dtype=torch.float64)
    options = {"causal": True, "softcap": softcap}
    got = gradients(kernels.flash_attention_varlen, *x, **options)
    want = gradients(lambda *x, causal, **more: sloped(*x, slopes, **more), *x, **options)
    close = [torch.allclose(a, b, atol=1e-4, rtol=0) for a, b in zip(got, want, strict=True)]
    assert close == [True, True, right, right]


@pytest.mark.interpreter
def test_exercise_3_registers():
    """Bytes that spill of the forward, the kernel for queries and that for keys."""
    found = run_as_script(__file__)
    spills = {name: [kernel["spills"] for kernel in found[name]] for name in found}
    assert spills["by key"][0] <= 8 and spills["by distance"][0] > 400
    assert spills["by key"][1] == spills["by distance"][1] == 0
    assert spills["by key"][2] > 100 and spills["fewer queries"][2] == 0


def test_exercise_3_steps_at_a_million_keys():
    place = torch.tensor(1e6 * 0.5 * math.log2(math.e))
    assert torch.nextafter(place, place * 2) - place == 1 / 16


@pytest.mark.interpreter
def test_float64_shows_no_error_of_method(lecture):
    x = inputs([70, 5], [90, 3], 4, 2, dtype=torch.float64)
    agrees(lecture, *x, causal=True, window_size=(40, -1), softcap=2.0)


@pytest.mark.parametrize("softcap", [1e-4, 1e4])
def test_extreme_softcaps(lecture, device, softcap):
    agrees(lecture, *inputs([40], [40], device=device), causal=True, softcap=softcap, within=3.0)


@pytest.mark.parametrize("mean", [-6.0, 6.0])
def test_extreme_scores(lecture, device, mean):
    """Log-sum-exps far from 0 on both sides; keys past the end of a sequence have the score 0."""
    q, k, v, do, *ends = inputs([70, 33], [100, 33], 2, 2, device=device)
    q, k = 0.3 * q + abs(mean), 0.3 * k + mean
    agrees(lecture, q, k, v, do, *ends, causal=True, within=16.0)


def test_a_sequence_does_not_know_its_neighbours(lecture, device):
    """The same bits alone and in a batch, beside NaN."""
    options = {"causal": True, "window_size": (30, -1)}
    *x, _, _ = inputs([66], [75], 2, 2, device=device)
    alone = gradients(
        lecture.flash_attention_varlen, *x, offsets([66], device), offsets([75], device), **options
    )
    bad = [torch.full((9, *y.shape[1:]), math.nan).to(y) for y in x]
    packed = [torch.cat([b, y, b]) for b, y in zip(bad, x, strict=True)]
    ends = offsets([9, 66, 9], device), offsets([9, 75, 9], device)
    beside = gradients(lecture.flash_attention_varlen, *packed, *ends, **options)
    assert all(torch.equal(y, z[9:-9]) for y, z in zip(alone, beside, strict=True))


def test_an_even_batch_is_attention(lecture, device):
    """torch's own, causal, with grouped heads and a window that is no limit."""
    q, k, v, _, *ends = inputs([40, 40], [40, 40], 4, 2, device=device)
    out = lecture.flash_attention_varlen(q, k, v, *ends, causal=True, window_size=(39, 0))
    rows = (x.unflatten(0, (2, 40)).transpose(1, 2).float() for x in (q, k, v))
    want = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out.float(), want.transpose(1, 2).flatten(0, 1), atol=2e-3, rtol=0)


def test_runs_are_alike_to_the_bit(lecture, device):
    x = inputs([66, 9], [66, 9], 2, 2, device=device)
    first = gradients(lecture.flash_attention_varlen, *x, causal=True)
    again = gradients(lecture.flash_attention_varlen, *x, causal=True)
    assert all(map(torch.equal, first, again))


def layouts():
    yield "every second token", lambda x: x.repeat_interleave(2, dim=0)[::2]
    yield "head_dim not adjacent", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "heads first", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "one head for all", lambda x: x[:, :1].expand_as(x)
    yield "odd stride", lambda x: torch.cat([x, x[..., :1]], dim=2)[..., :-1]

    def misaligned(x):
        buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
        return buffer[1:].view(x.shape).copy_(x)

    yield "misaligned", misaligned


@pytest.mark.parametrize("layout", [pytest.param(f, id=name) for name, f in layouts()])
def test_layouts(lecture, device, layout):
    *x, ends_q, ends_k = inputs([20, 3], [20, 3], 2, 1, device=device)
    agrees(lecture, *map(layout, x), ends_q, ends_k, within=2.0)


@pytest.mark.parametrize("lengths", [([5], [0]), ([0], [5]), ([0, 0], [0, 0]), ([], [])], ids=str)
def test_nothing(lecture, device, lengths):
    x = inputs(*lengths, 2, 2, device=device)
    got = gradients(lecture.flash_attention_varlen, *x)
    assert [y.shape for y in got] == [y.shape for y in (x[0], *x[:3])]
    assert not any(y.any() for y in got)


def refusals():
    yield "float32", TypeError, lambda q, c: ((q.float(),) * 3, (c, c), {})
    yield "mixed", TypeError, lambda q, c: ((q, q.bfloat16(), q), (c, c), {})
    yield "lengths of k and v", ValueError, lambda q, c: ((q, q, q[1:]), (c, c), {})
    yield "no group", ValueError, lambda q, c: ((q[:, :3], q[:, :2], q[:, :2]), (c, c), {})
    yield "more heads of keys", ValueError, lambda q, c: ((q[:, :2], q, q), (c, c), {})
    yield "no heads of queries", ValueError, lambda q, c: ((q[:, :0], q, q), (c, c), {})
    yield "no heads", ValueError, lambda q, c: ((q[:, :0],) * 3, (c, c), {})
    yield "four dimensions", ValueError, lambda q, c: ((q[None],) * 3, (c, c), {})
    yield "head_dim", ValueError, lambda q, c: ((q[..., :48],) * 3, (c, c), {})
    yield "another device", ValueError, lambda q, c: ((q, q, q.to("meta")), (c, c), {})
    yield "int64", TypeError, lambda q, c: ((q, q, q), (c.long(), c), {})
    yield "other sequences", ValueError, lambda q, c: ((q, q, q), (c, c[1:]), {})
    yield "no cu_seqlens", ValueError, lambda q, c: ((q, q, q), (c[:0], c[:0]), {})
    yield "no sequences", ValueError, lambda q, c: ((q, q, q), (c[:1], c[:1]), {})
    yield "no sequences of q", ValueError, lambda q, c: ((q, q[:0], q[:0]), (c[:1], c[:1]), {})
    yield "no sequences of k", ValueError, lambda q, c: ((q[:0], q, q), (c[:1], c[:1]), {})
    yield "strided", ValueError, lambda q, c: ((q, q, q), (c[::2], c[::2]), {})
    yield "elsewhere", ValueError, lambda q, c: ((q, q, q), (c, c.to("meta")), {})
    yield "scale 0", ValueError, lambda q, c: ((q, q, q), (c, c), {"scale": 0.0})
    yield "scale NaN", ValueError, lambda q, c: ((q, q, q), (c, c), {"scale": math.nan})
    yield "scale 0 in float32", ValueError, lambda q, c: ((q, q, q), (c, c), {"scale": 1e-46})
    yield "large scale", ValueError, lambda q, c: ((q, q, q), (c, c), {"scale": 1e39})
    yield "softcap", ValueError, lambda q, c: ((q, q, q), (c, c), {"softcap": -1.0})
    yield "softcap NaN", ValueError, lambda q, c: ((q, q, q), (c, c), {"softcap": math.nan})
    yield "large softcap", ValueError, lambda q, c: ((q, q, q), (c, c), {"softcap": 10001.0})
    yield "small softcap", ValueError, lambda q, c: ((q, q, q), (c, c), {"softcap": 1e-30})


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    q = torch.ones(8, 4, 64, dtype=torch.float16, device=device)
    tensors, ends, options = make(q, offsets([3, 3, 2], device))
    with pytest.raises(error, match="flash_attention_varlen takes"):
        lecture.flash_attention_varlen(*tensors, *ends, **options)


def test_no_second_derivative(lecture, device):
    q, k, v, do, *ends = inputs([8], [8], device=device)
    q.requires_grad_()
    out = lecture.flash_attention_varlen(q, k, v, *ends)
    (dq,) = torch.autograd.grad(out, q, do, create_graph=True)
    with pytest.raises(RuntimeError):
        dq.sum().backward()


@pytest.mark.gpu
def test_float64_is_refused_on_a_gpu(lecture):
    q, k, v, _, *ends = inputs([8], [8], device="cuda", dtype=torch.float64)
    with pytest.raises(TypeError, match="float16 or bfloat16"):
        lecture.flash_attention_varlen(q, k, v, *ends)


LARGE = [
    ([1000, 77, 4097, 0, 2048], [1000, 77, 4097, 5, 2048]),
    ([3, 2048, 130, 1], [4000, 2048, 97, 1]),
    ([1] * 300 + [777], [13] * 300 + [777]),
]


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
@pytest.mark.parametrize("lengths", LARGE, ids=["prompts", "chunks", "tokens"])
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"causal": True, "window_size": (1023, -1), "softcap": 20.0},
     {"window_size": (100, 300)}],
    ids=str,
)  # fmt: skip
def test_large(lecture, device, lengths, head_dim, options, dtype):
    agrees(lecture, *inputs(*lengths, 8, 4, head_dim, device, dtype), **options)


@pytest.mark.gpu
@every_dtype
def test_no_less_exact_than_torch(lecture, device, dtype):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(q, k, v, *ends):
        rows = (x.unflatten(0, (2, 2048)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(
                *rows, is_causal=True, enable_gqa=True
            )
        return out.transpose(1, 2).flatten(0, 1)

    x = inputs([2048] * 2, [2048] * 2, 8, 4, 128, device, dtype)
    wide = [y.double() for y in x[:4]]
    want = gradients(lecture.flash_attention_varlen_reference, *wide, *x[4:], causal=True)
    ours = gradients(lecture.flash_attention_varlen, *x, causal=True)
    for y, other, mine in zip(want, gradients(sdpa, *x), ours, strict=True):
        allowed, error = ((z.double() - y).square().mean().sqrt() for z in (other, mine))
        assert error <= 1.1 * allowed


@pytest.mark.gpu
def test_runs_are_alike_on_a_full_gpu(lecture, device):
    x = inputs(*LARGE[0], 16, 4, 128, device, torch.bfloat16)
    first = gradients(lecture.flash_attention_varlen, *x, causal=True, softcap=20.0)
    for _ in range(20):
        again = gradients(lecture.flash_attention_varlen, *x, causal=True, softcap=20.0)
        assert all(map(torch.equal, first, again))


@pytest.mark.gpu
def test_the_host_never_waits(lecture, device):
    x = inputs(*LARGE[0], 8, 4, 128, device, torch.bfloat16)
    gradients(lecture.flash_attention_varlen, *x, causal=True)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(lecture.flash_attention_varlen, *x, causal=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_more_than_2_31_elements(lecture, device):
    """The last tokens of 2**21 of 16 heads lie past 2**31 elements."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free memory")
    lengths = [2**21 - 128, 128]
    q = torch.zeros(2**21, 16, 128, dtype=torch.bfloat16, device=device).requires_grad_()
    k = torch.zeros(2**21, 4, 128, dtype=torch.bfloat16, device=device)
    v = torch.zeros_like(k)
    v[-128:] = 1
    ends = offsets(lengths, device)
    out = lecture.flash_attention_varlen(q, k, v, ends, ends, causal=True, window_size=(127, -1))
    assert (out[-128:] == 1).all() and not out[:-128].any()


if __name__ == "__main__":
    print(json.dumps(compile_all()))
