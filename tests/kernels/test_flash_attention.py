"""flash_attention against float64: shapes, layouts, scales, extremes, and what it refuses.

Without a GPU the kernel runs in the interpreter. It and what it was before each of its changes are
compiled for sm_90 as well, by this file run as a script, and their machine code is looked at.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.kernels.sm_90 import facts, launched, pretend, run_as_script

HEAD_DIMS = [32, 64, 128, 256]
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
both_kinds = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def compile_all() -> list:
    """Compiles step 1, the kernel of each tile, full and causal, and the rungs of one."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import flash_attention as lecture

    changes, found = list(lecture.CHANGES), []
    for head_dim, causal in itertools.product(lecture.TILES, (False, True)):
        rungs = len(changes) if (head_dim, causal) == (128, True) else 0
        for undone in range(rungs + 1):
            q = torch.empty(1, 2, 1000, head_dim, dtype=torch.bfloat16)
            lecture.rung = lecture.without(*changes[len(changes) - undone :])
            one = launched(lecture, "rung")
            lecture._launch(lecture.rung, q, q, q, q, None, causal, 0.1)
            found.append(facts(one[0]) | {"rung": [head_dim, causal, undone]})
    q, first = torch.empty(1, 2, 1000, 128).bfloat16(), launched(lecture, "first_attention_kernel")
    for causal in (False, True):
        lecture.first_attention(q, q, q, causal)
    return found + [facts(one) | {"rung": "step 1"} for one in first]


@pytest.mark.interpreter  # a GPU's tests compile and run them
def test_machine_code():
    for kernel in run_as_script(__file__):
        assert kernel["wgmma"] and not kernel["serialized"], kernel
        if kernel["rung"] == "step 1":
            assert kernel["spills"] and not kernel["loads"], "the page says that step 1 spills"
        else:
            assert not kernel["spills"] and kernel["loads"] and kernel["stores"], kernel


def inputs(shape, device, dtype=torch.float16, seed=0, n_keys=None):
    torch.manual_seed(seed)
    batch, heads, n_queries, head_dim = shape
    q = torch.randn(batch, heads, n_queries, head_dim, device=device)
    k, v = torch.randn(2, batch, heads, n_keys or n_queries, head_dim, device=device)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def agrees(lecture, q, k, v, **options):
    """Checks output and log-sum-exp, the output within a frame of NaN; returns the output."""
    batch, heads, seq_len, head_dim = q.shape
    frame = torch.full((batch, heads, seq_len + 3, head_dim), float("nan")).to(q)
    out, lse = lecture.flash_attention(
        q, k, v, out=frame[:, :, :seq_len], return_lse=True, **options
    )
    want, want_lse = lecture.flash_attention_reference(
        q.double(), k.double(), v.double(), **options
    )
    assert out.data_ptr() == frame.data_ptr()
    atol = torch.finfo(q.dtype).eps * v.abs().max().item()
    torch.testing.assert_close(out.double(), want, atol=atol, rtol=0)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=1e-6)
    assert frame[:, :, seq_len:].isnan().all()
    return out


@every_dtype
@both_kinds
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("seq_len", [1, 63, 64, 65, 127, 128, 129, 257])
def test_lengths(lecture, device, seq_len, head_dim, causal, dtype):
    agrees(lecture, *inputs((1, 2, seq_len, head_dim), device, dtype), causal=causal)


@every_dtype
@both_kinds
@pytest.mark.parametrize("n_keys", [1, 63, 64, 65, 128, 250])
@pytest.mark.parametrize("n_queries", [1, 63, 128, 129])
def test_other_keys(lecture, device, n_queries, n_keys, causal, dtype):
    agrees(lecture, *inputs((1, 2, n_queries, 64), device, dtype, n_keys=n_keys), causal=causal)


@every_dtype
@both_kinds
@pytest.mark.parametrize("head_dim", [8, 40, 72, 96, 136, 248])
def test_head_dims_between_tiles(lecture, device, head_dim, causal, dtype):
    agrees(lecture, *inputs((2, 2, 70, head_dim), device, dtype, n_keys=90), causal=causal)


def test_the_small_example(lecture, capsys):
    blocks = [((3, 2), (4, 2)), ((1, 1), (8, 4)), ((5, 4), (3, 2))]
    assert lecture.online_softmax(blocks) == 3
    assert capsys.readouterr().out.count("acc") == 3


def test_exercise_1_without_the_correction(lecture, changed):
    forgot = changed({"alpha = 2 ** (row_max - new_max)": "alpha = 1"}).online_softmax
    blocks = [((3, 2), (4, 2)), ((1, 1), (8, 4)), ((5, 4), (3, 2))]
    assert forgot(blocks) == 12 / 3.5
    for order in itertools.permutations(blocks):
        assert (forgot(order) == 3) == (order[0] is blocks[2])
    assert lecture.online_softmax(order) == 3


WINDOW = {
    "range(0, stop, ": "range(tl.maximum(stop - BLOCK_M - 255, 0) // BLOCK_N * BLOCK_N, stop, ",
    "if start_n + EDGE > stop:": "if (start_n + EDGE > stop) | (start_n < stop - 256):",
    "seen = keys - offs_m[:, None] <= stop - BLOCK_M\n": """\
ahead = keys - offs_m[:, None] - (stop - BLOCK_M)
                    seen = (ahead <= 0) & (ahead > -256)
""",
}


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (300, 300), (768, 768), (140, 601)])
def test_exercise_2_a_sliding_window(changed, device, n_queries, n_keys):
    q, k, v = inputs((1, 1, n_queries, 128), device, n_keys=n_keys)
    out = changed(WINDOW).flash_attention(q, k, v, causal=True)
    ahead = torch.arange(n_keys, device=device)
    ahead = ahead - torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    scores = q.double() @ k.double().mT * 128**-0.5
    hidden = (ahead > 0) | (ahead < -255)
    want = scores.masked_fill(hidden, -math.inf).softmax(dim=-1) @ v.double()
    torch.testing.assert_close(out.double(), want, atol=1e-3 * v.abs().max().item(), rtol=0)


@pytest.mark.parametrize("stop", [128, 256, 384, 512, 4096])
def test_exercise_2_blocks_of_a_window(stop):
    """Of 128 queries, the last at key stop - 1: which blocks of 64 keys they see, and how much."""
    places = torch.arange(stop - 128, stop)[:, None]
    ahead = torch.arange(stop) - places
    seen = ((ahead <= 0) & (ahead > -256)).view(128, -1, 64).transpose(0, 1).flatten(1)
    visited = range(max(stop - 128 - 255, 0) // 64 * 64, stop, 64)
    assert [64 * i for i in range(stop // 64) if seen[i].any()] == [*visited]
    masked = [start for start in visited if not seen[start // 64].all()]
    assert masked == [x for x in visited if x < stop - 256 or x >= stop - 128]
    if stop >= 384:
        assert len(visited) == 6 and masked == [*visited[:2], *visited[-2:]]


@pytest.mark.parametrize("half", [1, 64, 100])
def test_exercise_3_halves_merge(lecture, device, half):
    q, k, v = inputs((1, 2, 70, 64), device, n_keys=150)
    k[:, :, :half] *= 2
    (out1, lse1), (out2, lse2) = (
        lecture.flash_attention(q, k[:, :, part], v[:, :, part], return_lse=True)
        for part in (slice(0, half), slice(half, None))
    )
    w = torch.sigmoid(lse1 - lse2)[..., None]
    want, _ = lecture.flash_attention_reference(q.double(), k.double(), v.double())
    atol = 2e-3 * v.abs().max().item()
    torch.testing.assert_close((w * out1 + (1 - w) * out2).double(), want, atol=atol, rtol=0)


def test_exercise_4_more_queries_than_keys(lecture, device):
    q, k, v = inputs((1, 1, 3, 64), device, n_keys=1)
    out, lse = lecture.flash_attention(q, k, v, causal=True, return_lse=True)
    assert not out[0, 0, :2].any() and torch.equal(out[0, 0, 2], v[0, 0, 0])
    score = (q[0, 0, 2].float() @ k[0, 0, 0].float()).item() / 8
    assert lse[0, 0].tolist() == pytest.approx([-math.inf, -math.inf, score], rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2), heads=st.integers(1, 3), n_queries=st.integers(1, 300),
    n_keys=st.integers(1, 300), eighth=st.integers(1, 16), causal=st.booleans(),
    scale=st.floats(0.01, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(lecture, device, batch, heads, n_queries, n_keys, eighth, causal, scale, seed):
    q, k, v = inputs((batch, heads, n_queries, 8 * eighth), device, seed=seed, n_keys=n_keys)
    agrees(lecture, q, k, v, causal=causal, scale=scale)


@both_kinds
def test_groups_of_heads(lecture, device, causal, monkeypatch):
    """Seven heads in groups of three: the last group is smaller."""
    monkeypatch.setattr(lecture, "GROUP_BYTES", dict.fromkeys((False, True), 3 * 2 * 2 * 300 * 64))
    agrees(lecture, *inputs((1, 7, 300, 64), device), causal=causal)


def test_groups_are_alike(lecture, device, monkeypatch):
    """Of 64 heads of which 15 fit, no group of four is left."""
    groups = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: groups.append(args[10])

    monkeypatch.setattr(lecture, "flash_attention_kernel", Kernel())
    monkeypatch.setattr(lecture, "GROUP_BYTES", {True: 15 * 2 * 2 * 100 * 64})
    lecture.flash_attention(*inputs((4, 16, 100, 64), device), causal=True)
    assert groups == [13]


def layouts():
    yield "transposed", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "head_dim not adjacent", lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)
    yield "every second token", lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2]
    yield "odd row stride", lambda x: torch.cat([x, x[..., :1]], dim=3)[..., :-1]
    yield "one head for all", lambda x: x[:, :1].expand_as(x)
    yield "one token for all", lambda x: x[:, :, :1].expand_as(x)

    def misaligned(x):
        buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
        return buffer[1:].view(x.shape).copy_(x)

    yield "misaligned", misaligned


@pytest.mark.parametrize("layout", [pytest.param(f, id=name) for name, f in layouts()])
def test_layouts(lecture, device, layout):
    q, k, v = inputs((2, 3, 70, 64), device)
    agrees(lecture, layout(q), layout(k), layout(v), causal=True)


def test_an_output_of_any_layout_is_written_in_place(lecture, device):
    q, k, v = inputs((1, 2, 70, 64), device)
    out = torch.full((1, 2, 70, 65), float("nan"), dtype=q.dtype, device=device)
    assert lecture.flash_attention(q, k, v, out=out[..., 1:]).data_ptr() == out[..., 1:].data_ptr()
    assert torch.equal(out[..., 1:], lecture.flash_attention(q, k, v))
    assert out[..., 0].isnan().all()


def test_inputs_stay_as_they_are(lecture, device):
    q, k, v = inputs((1, 1, 100, 64), device)
    before = torch.stack([q, k, v]).clone()
    lecture.flash_attention(q, k, v)
    assert torch.equal(torch.stack([q, k, v]), before)


@both_kinds
def test_large_scores_do_not_overflow(lecture, device, causal):
    q, k, v = inputs((1, 1, 130, 64), device)
    agrees(lecture, q * 100, k, v, causal=causal)


@both_kinds
def test_runs_are_alike_to_the_bit(lecture, device, causal):
    shape = (2, 16, 1500, 128) if device == "cuda" else (1, 2, 150, 64)
    q, k, v = inputs(shape, device)
    first = lecture.flash_attention(q, k, v, causal=causal)
    for _ in range(20 if device == "cuda" else 1):
        assert torch.equal(lecture.flash_attention(q, k, v, causal=causal), first)


@pytest.mark.parametrize(("n_queries", "n_keys"), [(300, 1), (130, 60), (70, 66)])
def test_rows_that_see_no_key(lecture, device, n_queries, n_keys):
    q, k, v = inputs((1, 2, n_queries, 64), device, n_keys=n_keys)
    out, lse = lecture.flash_attention(q, k, v, causal=True, return_lse=True)
    none = n_queries - n_keys
    assert not out[:, :, :none].any() and lse[:, :, :none].isneginf().all()
    assert not out.isnan().any() and lse[:, :, none:].isfinite().all()


@pytest.mark.gpu
@every_dtype
@both_kinds
@pytest.mark.parametrize("head_dim", HEAD_DIMS[1:])
def test_no_less_exact_than_torch(lecture, device, head_dim, causal, dtype):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = inputs((1, 4, 2048, head_dim), device, dtype)
    want, _ = lecture.flash_attention_reference(q.double(), k.double(), v.double(), causal)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        peer = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    ours = lecture.flash_attention(q, k, v, causal=causal)
    error, allowed = ((x.double() - want).square().mean().sqrt() for x in (ours, peer))
    assert error <= 1.1 * allowed


def test_the_future_does_not_matter(lecture, device):
    q, k, v = inputs((1, 2, 300, 64), device)
    before = lecture.flash_attention(q, k, v, causal=True)
    # the blocks after those of the token, so that no 0 * inf arises
    k[:, :, 256:], v[:, :, 256:] = float("nan"), float("inf")
    after = lecture.flash_attention(q, k, v, causal=True)
    assert torch.equal(before[:, :, :128], after[:, :, :128])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_query_spoils_its_own_row_only(lecture, device, value):
    q, k, v = inputs((1, 1, 140, 64), device)
    before = lecture.flash_attention(q, k, v)
    q[0, 0, 5, 3] = value
    after = lecture.flash_attention(q, k, v)
    assert after[0, 0, 5].isnan().all()
    others = torch.arange(140, device=device) != 5
    assert torch.equal(before[:, :, others], after[:, :, others])


@pytest.mark.parametrize("shape", [(0, 2, 5, 64), (2, 0, 5, 64), (2, 2, 0, 64)])
def test_nothing_gives_nothing(lecture, device, shape):
    q = torch.empty(shape, dtype=torch.float16, device=device)
    out, lse = lecture.flash_attention(q, q, q, return_lse=True)
    assert out.shape == shape and lse.shape == shape[:3]


@both_kinds
def test_no_keys_give_0(lecture, device, causal):
    q, k, _ = inputs((2, 2, 5, 64), device)
    frame = torch.full_like(q, float("nan"))
    none = k[:, :, :0]
    _, lse = lecture.flash_attention(q, none, none, causal=causal, return_lse=True, out=frame)
    assert not frame.any() and lse.isneginf().all()


def refusals():
    yield "float32", TypeError, lambda q: ((q.float(),) * 3, {})
    yield "mixed", TypeError, lambda q: ((q, q.bfloat16(), q), {})
    yield "lengths", ValueError, lambda q: ((q, q[:, :, 1:], q), {})
    yield "heads", ValueError, lambda q: ((q, q[:, 1:], q[:, 1:]), {})
    yield "three dimensions", ValueError, lambda q: ((q[0],) * 3, {})
    yield "head_dim", ValueError, lambda q: ((q[..., :36],) * 3, {})
    yield "wide head_dim", ValueError, lambda q: ((q.repeat(1, 1, 1, 5),) * 3, {})
    yield "scale 0", ValueError, lambda q: ((q, q, q), {"scale": 0.0})
    yield "scale NaN", ValueError, lambda q: ((q, q, q), {"scale": float("nan")})
    yield "gradient", ValueError, lambda q: ((q.clone().requires_grad_(), q, q), {})
    yield "out of another shape", ValueError, lambda q: ((q, q, q), {"out": q[:, :, 1:]})
    yield "another device", ValueError, lambda q: ((q, q, q.to("meta")), {})


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    arguments, options = make(inputs((1, 2, 8, 64), device)[0])
    with pytest.raises(error, match="flash_attention (takes|has)"):
        lecture.flash_attention(*arguments, **options)


def test_without_a_gradient_parameters_are_fine(lecture, device):
    q, k, v = inputs((1, 1, 8, 64), device)
    with torch.no_grad():
        lecture.flash_attention(q.requires_grad_(), k, v)


@pytest.mark.gpu
@both_kinds
def test_more_than_2_31_elements(lecture, device, causal):
    """The last of 33 heads of 2**20 tokens lies past 2**31 elements."""
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free memory")
    # two keys of the last head score 8 and have the value 1, all the others 0 and 0
    x = torch.zeros(1, 33, 2**20, 64, dtype=torch.bfloat16, device=device)
    x[0, -1, :2] = 1
    out = lecture.flash_attention(x, x, x, causal=causal)
    both = 2 * math.exp(8)
    want = 1.0 if causal else both / (both + 2**20 - 2)
    assert out[0, -1, 0].float().mean().item() == pytest.approx(want, rel=1e-2)
    assert not out[0, :-1].any()


if __name__ == "__main__":
    print(json.dumps(compile_all()))
