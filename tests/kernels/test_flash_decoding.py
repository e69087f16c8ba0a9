"""flash_decoding: every length, page and part against float64, what is never read, what is refused.

Without a GPU the kernels run in the interpreter; some variants are compiled for sm_90 as well, by
this file run as a script, and their machine code is looked at.
"""

import json
import math
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings

from tests.kernels.sm_90 import facts, launched, pretend, run_as_script

every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
# head_dim, heads for each head of keys, page size
VARIANTS = [(128, 4, 0), (128, 4, 16), (64, 1, 0), (64, 4, 16), (256, 4, 0), (256, 4, 16)]
VARIANTS += [(256, 64, 16), (128, 64, 0), (64, 64, 16)]


def compile_all(variants=VARIANTS) -> list:
    """Compiles each variant's two kernels for sm_90 without a GPU."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import flash_decoding as lecture

    found = launched(lecture, "flash_decoding_kernel", "merge_kernel")
    lecture._facts = lambda device: (132, True)
    for head_dim, group, page_size in variants:
        q = torch.empty(2, 8 * group, head_dim, dtype=torch.bfloat16)
        k = q.new_empty(2, 1024, 8, head_dim)
        table = torch.empty(2, 2048 // page_size, dtype=torch.int32) if page_size else None
        k = k.view(-1, page_size, 8, head_dim) if page_size else k
        lecture._decode(q, k, k, torch.empty(2, dtype=torch.int32), table, 0.1, q)
    found = [facts(kernel) for kernel in found]
    return list(zip(found[::2], found[1::2], strict=True))


@pytest.fixture(scope="module")
def compiled() -> dict:
    return dict(zip(VARIANTS, run_as_script(__file__), strict=True))


@pytest.mark.interpreter  # a GPU's tests compile and run them
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_machine_code(compiled, lecture, variant):
    decode, merge = compiled[variant]
    assert decode["spills"] == merge["spills"] == 0
    assert decode["mma"] + decode["wgmma"] > 0 and decode["early"] and merge["early"]
    # keys and values come 16 bytes at once; a table's entries, for which two stages are too few, 4
    _, num_warps, num_stages = lecture.TILES[variant[0]][variant[2] > 0]
    ahead = variant[2] and num_stages > 2
    assert set(decode["copies"]) == ({"0x10", "0x4"} if ahead else {"0x10"})
    if variant[1] <= 16:  # as many programs on an SM as the number of shares reckons with
        assert lecture.PER_SM * (decode["shared"] + 1024) <= 228 << 10
        assert lecture.PER_SM * num_warps * 32 * -(-decode["registers"] // 8) * 8 <= 65536


def agrees(lecture, lens, n_heads, n_kv_heads, head_dim, page_size, device, dtype=torch.float16,
           n_shares=None, scale=None):  # fmt: skip
    """Checks the output against float64; NaN lies wherever nothing may be read."""
    shape = lens, n_heads, n_kv_heads, head_dim, page_size
    q, k, v, seq_lens, table = lecture._poisoned(*shape, dtype, device)
    if n_shares is None:
        got = lecture.flash_decoding(q, k, v, seq_lens, block_table=table, scale=scale)
    else:
        got = torch.full_like(q, math.nan)
        lecture._decode(q, k, v, seq_lens, table, scale or head_dim**-0.5, got, n_shares)
    wide = [x.double() for x in (q, k, v)]
    want = lecture.flash_decoding_reference(*wide, seq_lens, block_table=table, scale=scale)
    allowed = torch.finfo(dtype).eps * v.nan_to_num().abs().max().item()
    torch.testing.assert_close(got.double(), want, atol=allowed, rtol=0)
    return got


@every_dtype
@pytest.mark.parametrize("page_size", [0, 16, 64])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_lengths(lecture, device, head_dim, page_size, dtype):
    """One token, a page and a block more or less one, a prime, none."""
    block = lecture.TILES[head_dim][page_size > 0][0]
    lens = [1, 15, 16, 17, block - 1, block, block + 1, 149, 0]
    agrees(lecture, lens, 2, 1, head_dim, page_size, device, dtype)


@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("n_shares", [1, 2, 3, 5, 7, 64])
def test_any_number_of_shares(lecture, device, n_shares, page_size):
    """Shares that begin or end at a sequence's start, within it, or are empty; empty sequences."""
    lens = [0, 200, 0, 0, 130, 64, 1, 0]
    out = agrees(lecture, lens, 2, 1, 64, page_size, device, n_shares=n_shares)
    assert not out[[0, 2, 3, 7]].any()


@pytest.mark.parametrize("batch", [70, pytest.param(4096, marks=pytest.mark.gpu)])
def test_many_sequences(lecture, device, batch):
    agrees(lecture, [i % 7 * 20 for i in range(batch)], 2, 1, 64, 16, device)


@pytest.mark.parametrize("n_shares", [1, 3, 40])
def test_only_what_was_written_is_read(lecture, device, n_shares, monkeypatch):
    """Memory for parts is handed out full of NaN; not all of it is used."""

    def full_of_nan(of):
        def made(*args, **options):
            x = of(*args, **options)
            return x.fill_(math.nan) if x.is_floating_point() else x

        return made

    q, k, v, seq_lens, _ = lecture._poisoned([70, 0, 3, 150], 2, 1, 64, 0, torch.float16, device)
    want = lecture.flash_decoding_reference(*(x.double() for x in (q, k, v)), seq_lens)
    out = torch.empty_like(q)
    monkeypatch.setattr(torch, "empty", full_of_nan(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", full_of_nan(torch.Tensor.new_empty))
    lecture._decode(q, k, v, seq_lens, None, 64**-0.5, out, n_shares)
    torch.testing.assert_close(out.double(), want, atol=4e-3, rtol=0)


@settings(max_examples=8, deadline=None)
@given(
    lens=st.lists(st.integers(0, 200), min_size=1, max_size=3), group=st.integers(1, 33),
    n_kv_heads=st.integers(1, 2), page_size=st.sampled_from([0, 1, 7, 16, 100]),
    scale=st.floats(0.01, 0.3), n_shares=st.none() | st.integers(1, 9),
)  # fmt: skip
def test_any_batch(lecture, device, lens, group, n_kv_heads, page_size, scale, n_shares):
    options = {"scale": scale, "n_shares": n_shares}
    agrees(lecture, lens, group * n_kv_heads, n_kv_heads, 64, page_size, device, **options)


def simple(device, batch=2, capacity=80, heads=4, n_kv_heads=2, head_dim=64):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, head_dim, device=device).half()
    k, v = torch.randn(2, batch, capacity, n_kv_heads, head_dim, device=device).half()
    return q, k, v, torch.tensor([capacity, capacity - 9][:batch], dtype=torch.int32, device=device)


@pytest.mark.parametrize("layout", ["q sliced", "one buffer", "heads apart", "table sliced"])
def test_layouts(lecture, device, layout):
    q, k, v, lens = simple(device)
    want = lecture.flash_decoding(q, k, v, lens)
    table = None
    if layout == "q sliced":
        q = torch.cat([q, q], dim=2)[..., :64]
        lens = lens.repeat_interleave(2)[::2]
    elif layout == "one buffer":  # keys and values of a token side by side
        k, v = torch.stack([k, v], dim=2).unbind(2)
    elif layout == "heads apart":
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    else:
        k, v = (x.view(10, 16, 2, 64) for x in (k, v))
        table = torch.arange(10, device=device).view(2, 5).int().repeat_interleave(2, dim=1)[:, ::2]
    assert torch.equal(lecture.flash_decoding(q, k, v, lens, block_table=table), want)


def test_inputs_stay_as_they_are_and_runs_are_alike(lecture, device):
    inputs = simple(device)
    before = [x.clone() for x in inputs]
    first = lecture.flash_decoding(*inputs)
    assert torch.equal(first, lecture.flash_decoding(*inputs))
    assert all(map(torch.equal, inputs, before))


def test_lengths_past_the_capacity_and_below_0(lecture, device):
    q, k, v, lens = simple(device)
    lens.fill_(80)
    full = lecture.flash_decoding(q, k, v, lens)
    assert torch.equal(lecture.flash_decoding(q, k, v, lens + 1000), full)
    assert not lecture.flash_decoding(q, k, v, lens - 1000).any()


@pytest.mark.parametrize("level", [-200.0, 200.0])
def test_extreme_scores(lecture, device, level):
    q, k, v, lens = simple(device)
    k[..., 0], q[..., 0] = level, 20.0  # a common offset of all scores
    want = lecture.flash_decoding_reference(*(x.double() for x in (q, k, v)), lens)
    got = torch.empty_like(q)
    lecture._decode(q, k, v, lens, None, 64**-0.5, got, 3)
    torch.testing.assert_close(got.double(), want, atol=4e-3, rtol=0)


@pytest.mark.parametrize("hidden", [slice(0, 64), slice(64, 128), slice(10, 180)])
def test_scores_of_minus_infinity(lecture, device, hidden):
    """Whole blocks of them, and whole parts."""
    q, k, v, lens = simple(device, capacity=200)
    q[..., 0], k[..., 0] = 1, 0
    k[:, hidden] = 0
    k[:, hidden, :, 0] = -math.inf
    want = lecture.flash_decoding_reference(*(x.double() for x in (q, k, v)), lens)
    for n_shares in (1, 2, 3, 8):
        out = torch.empty_like(q)
        lecture._decode(q, k, v, lens, None, 64**-0.5, out, n_shares)
        for got in (out, lecture.first_decoding(q, k, v, lens, n_shares)):
            torch.testing.assert_close(got.double(), want, atol=4e-3, rtol=0)


def test_a_part_without_keys_leaves_minus_infinity(lecture, device, monkeypatch):
    """Of five shares of two blocks three are empty, and one of these lies within the sequence."""
    left = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda part, lse, *args, **options: left.extend((part, lse))

    q, k, v, lens = simple(device, batch=1)
    monkeypatch.setattr(lecture, "merge_kernel", Kernel())
    lecture._decode(q, k, v, lens, None, 0.125, torch.empty_like(q), 5)
    part, lse = left
    assert lse[3].isneginf().all() and not part[3].any() and lse[[2, 4]].isfinite().all()


def test_nan_is_handed_on(lecture, device):
    q, k, v, lens = simple(device)
    k[0, 3, 1, 5] = math.nan
    out = torch.empty_like(q)
    lecture._decode(q, k, v, lens, None, 0.125, out, 3)
    assert out[0, 2:].isnan().all() and not out[0, :2].isnan().any() and not out[1].isnan().any()


@pytest.mark.parametrize(("batch", "capacity"), [(0, 5), (2, 0)])
def test_nothing(lecture, device, batch, capacity):
    q, k, v, lens = simple(device, batch=batch, capacity=capacity)
    out = lecture.flash_decoding(q, k, v, lens.clamp(min=0))
    assert out.shape == q.shape and not out.any()


@pytest.mark.parametrize("n_splits", [1, 3])
def test_the_first_kernel(lecture, device, n_splits):
    q, k, v, lens = simple(device)
    got = lecture.first_decoding(q, k, v, lens, n_splits)
    want = lecture.flash_decoding_reference(*(x.double() for x in (q, k, v)), lens)
    torch.testing.assert_close(got.double(), want, atol=2e-3, rtol=0)
    full = lecture.first_decoding(q, k, v, torch.full_like(lens, 80), n_splits)
    assert torch.equal(lecture.first_decoding(q, k, v, lens + 1000, n_splits), full)
    assert not lecture.first_decoding(q, k, v, lens - 1000, n_splits).any()


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 40, 64, 66, 67, 128, 4096])
@pytest.mark.parametrize("n_kv_heads", [1, 8, 96])
@pytest.mark.parametrize("blocks", [0, 1, 16, 128, 100_000])
def test_the_number_of_shares(lecture, batch, n_kv_heads, blocks):
    n = lecture._shares(batch, n_kv_heads, blocks, 132)
    assert n % batch == 0 and batch <= n <= batch * lecture.MOST_PARTS
    at_once = lecture.PER_SM * 132
    if n > batch:  # all run at once, and as many as a multiple of the batch allows
        assert n * n_kv_heads <= at_once and n <= batch * blocks
        most = batch * min(blocks, lecture.MOST_PARTS)
        assert n == most or (n + batch) * n_kv_heads > at_once


def test_merging_by_hand(lecture, capsys):
    parts = [((3, 2), (4, 2)), ((1, 1), (8, 4)), ((5, 4), (3, 2))]
    assert lecture.merge_by_hand(parts) == pytest.approx(3)
    weights = [line[-6:] for line in capsys.readouterr().out.splitlines()]
    assert weights == ["0.1875", "0.0625", "0.7500"]


def merged(*parts):
    """Output and log-sum-exp, to base 2, of parts whose own are known."""
    total = sum(2**lse for _, lse in parts)
    return sum(out * 2**lse for out, lse in parts) / total, math.log2(total)


def test_exercise_1_a_merge_of_merges():
    a, b, c = (10 / 3, math.log2(12)), (6, 2), (8 / 3, math.log2(48))
    scores = [((3, 2), (4, 2)), ((1, 1), (8, 4)), ((5, 4), (3, 2))]
    for part, (s, values) in zip((a, b, c), scores, strict=True):
        assert merged(*zip(values, s, strict=True)) == pytest.approx(part)
    assert merged(a, b) == pytest.approx((4, 4))
    for tree in (merged(merged(a, b), c), merged(a, merged(b, c)), merged(merged(a, c), b)):
        assert tree == pytest.approx(merged(a, b, c)) and tree == pytest.approx((3, 6))


@triton.jit
def cut_kernel(
    q_ptr, k_ptr, v_ptr, part_ptr, lse_ptr, seq_lens_ptr, n_heads, capacity, scale_log2,
    HEAD_DIM: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Exercise 2: a part has `PART` keys of a sequence, whatever the batch."""
    head, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(seq_lens_ptr + b)
    at = (b * tl.num_programs(1) + part) * n_heads + head
    offs_d, keys = tl.arange(0, HEAD_DIM), part * PART + tl.arange(0, PART)
    if part * PART >= seq_len:
        tl.store(lse_ptr + at, -float("inf"))
        return
    q = tl.load(q_ptr + (b * n_heads + head) * HEAD_DIM + offs_d).to(tl.float32) * scale_log2
    offs = ((b * capacity + keys) * n_heads + head)[:, None] * HEAD_DIM + offs_d[None, :]
    k = tl.load(k_ptr + offs, mask=(keys < seq_len)[:, None], other=0.0)
    v = tl.load(v_ptr + offs, mask=(keys < seq_len)[:, None], other=0.0)
    s = tl.where(keys < seq_len, tl.sum(k * q[None, :], axis=1), -float("inf"))
    p = tl.exp2(s - tl.max(s, axis=0))
    tl.store(lse_ptr + at, tl.max(s, axis=0) + tl.log2(tl.sum(p, axis=0)))
    out = tl.sum(p[:, None] * v, axis=0) / tl.sum(p, axis=0)
    tl.store(part_ptr + at * HEAD_DIM + offs_d, out)


def cut(lecture, q, k, v, seq_lens, part_size=64):
    (batch, heads, head_dim), capacity = q.shape, k.shape[1]
    parts, out = triton.cdiv(capacity, part_size), torch.empty_like(q)
    lse = torch.empty(batch, parts, heads, dtype=torch.float32, device=q.device)
    part = lse.new_zeros(*lse.shape, head_dim)
    cut_kernel[(heads, parts, batch)](
        q, k, v, part, lse, seq_lens, heads, capacity, head_dim**-0.5 * math.log2(math.e),
        HEAD_DIM=head_dim, PART=part_size,
    )  # fmt: skip
    lecture.first_merge_kernel[(batch * heads,)](part, lse, out, heads, parts, head_dim, 16)
    return out


def test_exercise_2_the_same_bits_in_any_batch(lecture, device):
    lens = [400, 3, 130, 0, 65]
    q, k, v, seq_lens, _ = lecture._poisoned(lens, 4, 4, 64, 0, torch.float16, device)
    q, k, v = (x.contiguous() for x in (q, k, v))
    together, alone = {}, {}
    for name, attend in (("cut", lambda *x: cut(lecture, *x)), ("shares", lecture.flash_decoding)):
        together[name] = attend(q, k, v, seq_lens)
        rows = [attend(*(x[b : b + 1] for x in (q, k, v, seq_lens))) for b in range(len(lens))]
        alone[name] = torch.cat(rows)
    want = lecture.flash_decoding_reference(*(x.double() for x in (q, k, v)), seq_lens)
    torch.testing.assert_close(together["cut"].double(), want, atol=4e-3, rtol=0)
    assert torch.equal(together["cut"], alone["cut"])
    # for a GPU of another size shares may be cut alike
    assert device == "cuda" or not torch.equal(together["shares"], alone["shares"])


# exercise 3; in place of the launch's arguments, a global of the module
EIGHT_BITS = {
    "q_ptr, k_ptr, v_ptr, out_ptr,": "q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr,",
    "q, k_cache, v_cache, out, part,": "q, k_cache, v_cache, *FACTORS, out, part,",
    "            s = tl.dot(q, k.T) * scale_log2\n": (
        "            at = (head * stride_head + places) // HEAD_DIM\n"
        "            k_scale = tl.load(k_scale_ptr + at, mask=seen, other=0.0)\n"
        "            s = tl.dot(q, k.to(q.dtype).T) * scale_log2\n"
        "            s *= k_scale[None, :]\n"
    ),
    "            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])\n": (
        "            v_scale = tl.load(v_scale_ptr + at, mask=seen, other=0.0)\n"
        "            weights = (p * v_scale[None, :]).to(q.dtype)\n"
        "            acc = tl.dot(weights, v.to(q.dtype), acc * alpha[:, None])\n"
    ),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("lens", [[97], [5, 0, 200]], ids=str)
def test_exercise_3_a_cache_of_8_bits(lecture, changed, lens, page_size):
    kernels, head_dim = changed(EIGHT_BITS), 128
    q, *caches, seq_lens, table = lecture._poisoned(
        lens, 8, 2, head_dim, page_size, torch.float16, "cpu"
    )
    numbers, factors, wide = [], [], []
    for x in caches:
        x = x.float().contiguous()
        factor = x.nan_to_num().abs().amax(dim=-1, keepdim=True) / 127
        # where nothing may be read, 127 times NaN
        whole = (x / factor.clamp(min=1e-9)).round().nan_to_num(nan=127.0).to(torch.int8)
        factors.append(factor[..., 0].where(~x.isnan().any(dim=-1), math.nan).contiguous())
        numbers.append(whole)
        wide.append(whole.double() * factor)
    kernels.FACTORS = factors
    out = torch.full_like(q, math.nan)
    kernels._decode(q, *numbers, seq_lens, table, 0.2, out, 3)
    options = {"block_table": table, "scale": 0.2}
    want = lecture.flash_decoding_reference(q.double(), *wide, seq_lens, **options)
    allowed = torch.finfo(q.dtype).eps * wide[1].abs().max().item()
    assert (out.double() - want).abs().max().item() <= allowed
    # a row of keys or values: 128 numbers and a factor of four bytes, before 128 of two bytes
    assert round(100 * (head_dim + 4) / (2 * head_dim)) == 52


def test_exercise_3_nothing_is_rounded():
    whole = torch.arange(-256, 257)
    assert all((whole.to(dtype) == whole).all() for dtype in (torch.float16, torch.bfloat16))


def refusals():
    def table(q, *shape, dtype=torch.int32):
        return {"block_table": torch.zeros(shape, dtype=dtype, device=q.device)}

    yield "float32", TypeError, lambda q, k, v, n: ((q.float(), k.float(), v.float(), n), {})
    yield "mixed", TypeError, lambda q, k, v, n: ((q, k.bfloat16(), v.bfloat16(), n), {})
    yield "int64 lengths", TypeError, lambda q, k, v, n: ((q, k, v, n.long()), {})
    yield "int64 table", TypeError, lambda q, k, v, n: (
        (q, k, v, n), table(q, 2, 1, dtype=torch.int64))  # fmt: skip
    yield "four dimensions", ValueError, lambda q, k, v, n: ((q[:, None], k, v, n), {})
    yield "another device", ValueError, lambda q, k, v, n: ((q, k, v, n.to("meta")), {})
    yield "capacities", ValueError, lambda q, k, v, n: ((q, k, v[:, 1:], n), {})
    yield "strides", ValueError, lambda q, k, v, n: (
        (q, k, v.transpose(1, 2).contiguous().transpose(1, 2), n), {})  # fmt: skip
    yield "a column a number", ValueError, lambda q, k, v, n: (
        (q, *(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (k, v)), n), {})  # fmt: skip
    yield "head_dim", ValueError, lambda q, k, v, n: ((*(x[..., :48] for x in (q, k, v)), n), {})
    yield "head_dims", ValueError, lambda q, k, v, n: ((q.repeat(1, 1, 2), k, v, n), {})
    yield "heads", ValueError, lambda q, k, v, n: ((q[:, :3], k, v, n), {})
    yield "many heads", ValueError, lambda q, k, v, n: ((q.repeat(1, 33, 1), k, v, n), {})
    yield "no heads", ValueError, lambda q, k, v, n: ((q, k[:, :, :0], v[:, :, :0], n), {})
    yield "batch", ValueError, lambda q, k, v, n: ((q[:1], k, v, n), {})
    yield "lengths", ValueError, lambda q, k, v, n: ((q, k, v, n[:1]), {})
    yield "table's batch", ValueError, lambda q, k, v, n: ((q, k, v, n), table(q, 1, 1))
    yield "table's dimensions", ValueError, lambda q, k, v, n: ((q, k, v, n), table(q, 2))
    yield "scale 0", ValueError, lambda q, k, v, n: ((q, k, v, n), {"scale": 0.0})
    yield "scale NaN", ValueError, lambda q, k, v, n: ((q, k, v, n), {"scale": math.nan})
    yield "scale 0 in float32", ValueError, lambda q, k, v, n: ((q, k, v, n), {"scale": 1e-46})
    yield "large scale", ValueError, lambda q, k, v, n: ((q, k, v, n), {"scale": 1e39})
    yield (
        "too many",
        ValueError,
        lambda q, k, v, n: (
            (*(x[:1].expand(4097, *x.shape[1:]) for x in (q, k, v)), n[:1].repeat(4097)),
            {},
        ),
    )
    yield "gradient", ValueError, lambda q, k, v, n: ((q.requires_grad_(), k, v, n), {})


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    arguments, options = make(*simple(device))
    with pytest.raises(error, match="flash_decoding (takes|has)"):
        lecture.flash_decoding(*arguments, **options)


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize(
    ("lens", "heads", "page_size"),
    [([8192], (32, 8, 128), 0), ([131_071], (32, 8, 128), 16), ([20_000, 300], (71, 71, 64), 48),
     ([1000, 1, 0, 4097] * 16, (8, 8, 64), 0), ([5003] * 3, (64, 1, 256), 64)],
)  # fmt: skip
def test_large(lecture, device, lens, heads, page_size, dtype):
    agrees(lecture, lens, *heads, page_size, device, dtype)


@pytest.mark.gpu
@every_dtype
def test_no_less_exact_than_torch(lecture, device, dtype):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v, lens = simple(device, batch=1, capacity=4096, heads=32, n_kv_heads=8, head_dim=128)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    want = lecture.flash_decoding_reference(*(x.double() for x in (q, k, v)), lens)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), enable_gqa=True
        )[:, :, 0]
    errors = [
        (x.double() - want).square().mean().sqrt()
        for x in (lecture.flash_decoding(q, k, v, lens), theirs)
    ]
    assert errors[0] <= 1.1 * errors[1]


@pytest.mark.gpu
def test_runs_are_alike_on_a_full_gpu(lecture, device):
    """Also that the merge, which starts early, waits for the parts."""
    q, k, v, lens = simple(device, batch=2, capacity=20_000, heads=32, n_kv_heads=8, head_dim=128)
    first = lecture.flash_decoding(q, k, v, lens)
    wrong = torch.zeros((), device=device, dtype=torch.int64)
    for _ in range(500):
        wrong += (lecture.flash_decoding(q, k, v, lens) != first).any()
    assert not wrong


@pytest.mark.gpu
def test_two_streams_at_once(lecture, device):
    q, k, v, lens = simple(device, capacity=30_000)
    want = lecture.flash_decoding(q, k, v, lens)
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    torch.cuda.synchronize()
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            results.append(lecture.flash_decoding(q, k, v, lens))
    torch.cuda.synchronize()
    assert all(torch.equal(result, want) for result in results)


@pytest.mark.gpu
def test_in_a_cuda_graph_lengths_and_table_may_change(lecture, device):
    q, k, v, lens = simple(device, capacity=4096, heads=8)
    k, v = (x.view(-1, 16, *x.shape[2:]) for x in (k, v))
    table = torch.arange(512, dtype=torch.int32, device=device).view(2, 256)
    lecture.flash_decoding(q, k, v, lens, block_table=table)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = lecture.flash_decoding(q, k, v, lens, block_table=table)
    for length in (4096, 1, 0, 777):
        lens.fill_(length)
        table.copy_(table.flip(0))
        graph.replay()
        assert torch.equal(out, lecture.flash_decoding(q, k, v, lens, block_table=table))


@pytest.mark.gpu
@pytest.mark.parametrize("paged", [False, True])
def test_more_than_2_31_elements(lecture, device, paged):
    """The last tokens lie past 2**31 elements; their values are 1, all others 0."""
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free memory")
    k = torch.zeros(1, 2**21 + 64, 8, 128, dtype=torch.bfloat16, device=device)
    v = torch.zeros_like(k)
    k[:, -64:, :, 0], v[:, -64:] = 16.0, 1.0
    q = torch.full((1, 8, 128), 16.0, dtype=torch.bfloat16, device=device)
    lens = torch.tensor([k.shape[1]], dtype=torch.int32, device=device)
    table = None
    if paged:
        k, v = (x.view(-1, 64, 8, 128) for x in (k, v))
        table = torch.arange(k.shape[0], dtype=torch.int32, device=device)[None]
    # scores: 256 / sqrt(128) = 22.6 against 0, e**22.6 * 64 keys against 2**21
    out = lecture.flash_decoding(q, k, v, lens, block_table=table)
    assert (out > 0.99).all()


if __name__ == "__main__":
    print(json.dumps(compile_all()))
