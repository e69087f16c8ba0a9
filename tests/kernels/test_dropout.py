"""Dropout: coins against Philox in Python's integers, values, gradients, seeds, quality, errors."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.kernels.bounds import traffic

DTYPES = [
    torch.float32,
    torch.float16,
    # the interpreter rounds bfloat16 otherwise
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]
SIZES = [0, 1, 7, 8, 9, 2047, 2048, 2049, 4096, 5003]
LOW = 0xFFFFFFFF


def philox(counter, key, rounds=10):
    """Philox4x32 of four and two words, as Salmon et al. print it."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & LOW, a >> 32 ^ c[3] ^ k[1], a & LOW]
        k = [(k[0] + 0x9E3779B9) & LOW, (k[1] + 0xBB67AE85) & LOW]
    return c


def coins(n, threshold, seed, offset=0):
    """What is kept of n elements, one Python integer at a time."""
    kept = []
    for i in range(offset, offset + n):
        words = philox((i // 8 & LOW, i // 8 >> 32, 0, 0), (seed & LOW, seed >> 32))
        kept.append(words[i % 8 // 2] >> 16 * (i % 2) & 0xFFFF >= threshold)
    return torch.tensor(kept, dtype=torch.bool)


# github.com/DEShawResearch/random123, tests/kat_vectors: rounds, counter, key, words
VECTORS = [
    (10, [0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, [LOW] * 4, [LOW] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        10,
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
    (7, [0] * 4, [0] * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), VECTORS)
def test_published_vectors(rounds, counter, key, words):
    assert [f"{word:08x}" for word in philox(counter, key, rounds)] == words.split()


def test_the_number_that_the_cpp_standard_demands():
    """The 10,000th of a default-constructed std::philox4x32 (C++26, [rand.predef])."""
    assert philox((2499, 0, 0, 0), (20111115, 0))[3] == 1955073260


@pytest.mark.parametrize("rounds", [1, 7, 10])
def test_the_specification_is_philox(lecture, device, rounds):
    counters = [0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 17, 2**59 + 5]
    for seed in (0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 12345, 2**63 - 1):
        got = lecture.philox_reference(torch.tensor(counters, device=device), seed, rounds)
        for counter, words in zip(counters, got.tolist(), strict=True):
            key = seed & LOW, seed >> 32
            assert words == philox((counter & LOW, counter >> 32, 0, 0), key, rounds)


@pytest.mark.parametrize("offset", [0, 3, 8, 2**35 + 6, 2**61])
@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**63 - 1])
def test_every_coin(lecture, device, seed, offset):
    x = torch.ones(300, device=device)
    for p in (0.1, 0.5, 1 / 65536, 65535 / 65536):
        kept = lecture.dropout(x, p, seed=seed, offset=offset).cpu() != 0
        assert torch.equal(kept, coins(300, round(p * 65536), seed, offset))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(lecture, device, dtype, n):
    x, residual = (torch.randn(n, device=device).to(dtype) for _ in range(2))
    scale = torch.tensor(65536 / (65536 - 19661), dtype=torch.float32, device=device)
    for offset in (0, 5, 16):
        keep = lecture.keep_reference(n, 0.3, 9, offset, device)
        frame = torch.full((n + 4096,), torch.nan, device=device, dtype=dtype)
        lecture.dropout_forward(x, None, 19661, 9, offset, frame[:n])
        # one product in float32, one rounding: exact
        assert torch.equal(frame[:n], torch.where(keep, (x.float() * scale).to(dtype), 0.0))
        assert frame[n:].isnan().all()
        out = lecture.dropout(x, 0.3, seed=9, offset=offset)
        assert torch.equal(out, frame[:n]) and out.dtype == dtype
        lecture.dropout_forward(x, residual, 19661, 9, offset, frame[:n].fill_(torch.nan))
        want = residual.double() + torch.where(keep, x.double() * scale.double(), 0.0)
        rtol = torch.finfo(dtype).eps
        torch.testing.assert_close(frame[:n].double(), want, rtol=rtol, atol=8 * rtol)
        assert frame[n:].isnan().all()
        assert torch.equal(lecture.dropout_add(x, residual, 0.3, seed=9, offset=offset), frame[:n])


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 4500),
    offset=st.integers(0, 2**62 - 1),
    seed=st.integers(0, 2**63 - 1),
    p=st.floats(0, 1),
)
def test_any_mask(lecture, device, n, offset, seed, p):
    x = torch.ones(n, device=device)
    out = lecture.dropout(x, p, seed=seed, offset=offset)
    keep = lecture.keep_reference(n, p, seed, offset, device)
    threshold = round(p * 65536)
    scale = 0.0 if threshold == 65536 else 65536 / (65536 - threshold)
    torch.testing.assert_close(out, keep * scale)


VIEWS = {
    "slice": lambda x: x[:, 1:200],
    "every third row": lambda x: x[::3],
    "transposed": lambda x: x.t(),
    "every other column": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(5, -1),
    "four dimensions": lambda x: x.view(4, 2, 8, 36).transpose(0, 2),
    "unaligned": lambda x: x.flatten()[1:],
    "a scalar": lambda x: x[0, 0],
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views(lecture, device, view):
    """A coin belongs to a place in the tensor, however the tensor lies in memory."""
    x, residual, dy = (view(torch.randn(8, 288, device=device)) for _ in range(3))
    x, residual = x.detach().requires_grad_(), residual.detach().requires_grad_()
    for a, r in ((x, residual), (x, residual.detach().clone())):
        y = lecture.dropout_add(a, r, 0.5, seed=3)
        torch.testing.assert_close(y, lecture.dropout_add_reference(a, r, 0.5, 3))
        for options in ({"p": 0.0}, {"training": False}):
            y = lecture.dropout_add(a, r, **options)
            assert y.is_contiguous() and torch.equal(y, a + r)
    assert y.is_contiguous() and y.shape == x.shape
    y = lecture.dropout(x, 0.5, seed=3)
    assert torch.equal(y, lecture.dropout_reference(x.detach().clone(), 0.5, 3))
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx, lecture.dropout_reference(dy, 0.5, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_toss_the_same_coins(lecture, device, dtype):
    x = torch.ones(5003, device=device, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        y = lecture.dropout(x, p)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(x))
        assert dx.dtype == dtype and torch.equal(dx, y)
        residual = torch.zeros_like(x, requires_grad=True)
        dx, dr = torch.autograd.grad(
            lecture.dropout_add(x, residual, p, seed=4), (x, residual), torch.ones_like(x)
        )
        assert torch.equal(dx, lecture.dropout(x, p, seed=4)) and (dr == 1).all()


def test_only_the_gradients_wanted(lecture, device):
    x, residual = torch.randn(2, 100, device=device)
    y = lecture.dropout_add(x, residual.requires_grad_(), seed=1)
    (dr,) = torch.autograd.grad(y.sum(), residual)
    assert (dr == 1).all()
    assert not lecture.dropout(x).requires_grad
    with torch.no_grad():
        assert not lecture.dropout(x.requires_grad_()).requires_grad


def test_second_derivative(lecture, device):
    x = torch.randn(100, device=device, requires_grad=True)
    y = lecture.dropout(x.square(), 0.25, seed=2).square().sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    factor = lecture.dropout_reference(torch.ones_like(x), 0.25, 2).square()
    torch.testing.assert_close(ddx, 12 * x.detach().square() * factor)


def test_nothing_is_stored(lecture, device):
    x, kept = torch.randn(4096, device=device, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        lecture.dropout(x, 0.5)
        lecture.dropout_add(x, x, 0.5)
    assert kept == []


def test_block_and_warps_change_nothing(lecture, device):
    x, first = torch.randn(20_001, device=device), None
    for BLOCK in (128, 512, 1024, 2048, 8192):
        out = torch.full_like(x, torch.nan)
        lecture.dropout_kernel[(math.ceil((len(x) + 3) / BLOCK),)](
            x, None, out, None, 2**40, 77, 30000, 2.0, 3, len(x), BLOCK=BLOCK, ROUNDS=10
        )
        assert not out.isnan().any()
        first = out if first is None else first
        assert torch.equal(out, first)


def test_chunks_are_the_whole(lecture, device):
    x = torch.randn(6000, device=device)
    whole = lecture.dropout(x, 0.4, seed=8, offset=2**33)
    for size in (1000, 1001, 2048, 4000):
        chunks = [
            lecture.dropout(chunk, 0.4, seed=8, offset=2**33 + size * i)
            for i, chunk in enumerate(x.split(size))
        ]
        assert torch.equal(torch.cat(chunks), whole)


def test_seeds_come_from_torch(lecture, device):
    x = torch.ones(1000, device=device)
    torch.manual_seed(1)
    a, b = lecture.dropout(x), lecture.dropout(x)
    torch.manual_seed(1)
    assert torch.equal(a, lecture.dropout(x)) and torch.equal(b, lecture.dropout(x))
    assert not torch.equal(a, b)
    state = torch.get_rng_state()
    lecture.dropout(x, seed=3)
    lecture.dropout(x, 0.0)
    lecture.dropout(x, training=False)
    assert torch.equal(state, torch.get_rng_state()), "a seed was drawn that nobody needed"
    seeds = [lecture.draw_seed(torch.device("cpu")) for _ in range(100)]
    assert len(set(seeds)) == 100 and max(seeds) > 2**62 and min(seeds) >= 0


def test_seed_in_a_tensor(lecture, device):
    x = torch.randn(3000, device=device, requires_grad=True)
    seed = torch.tensor([2**62 + 3], device=device)
    y = lecture.dropout(x, seed=seed)
    assert torch.equal(y, lecture.dropout(x, seed=2**62 + 3))
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(x), retain_graph=True)
    assert torch.equal(dx != 0, y != 0)
    seed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x, torch.ones_like(x))


def test_checkpointing_tosses_the_same_coins(lecture, device):
    x = torch.randn(3000, device=device, requires_grad=True)
    outputs = []

    def layer(x):
        outputs.append(lecture.dropout(x, 0.5))
        return outputs[-1].sin()

    y = checkpoint(layer, x, use_reentrant=False)
    torch.autograd.grad(y.sum(), x)
    assert len(outputs) == 2 and torch.equal(*outputs)


def test_p(lecture, device):
    x = torch.tensor([1.0, torch.inf, torch.nan, -torch.inf] * 500, device=device)
    assert lecture.dropout(x, 0.0) is x and lecture.dropout(x, 1e-6) is x
    assert lecture.dropout(x, 0.5, training=False) is x
    for p in (1.0, 1 - 1e-6):
        for seed in range(5):
            assert (lecture.dropout(x, p, seed=seed) == 0).all()
    residual = torch.randn(2000, device=device)
    assert torch.equal(lecture.dropout_add(x, residual, 1.0), residual)
    assert torch.equal(lecture.dropout_add(residual, residual, 0.0), residual + residual)
    a = torch.randn(10, device=device, requires_grad=True)
    (da,) = torch.autograd.grad(lecture.dropout(a, 1.0).sum(), a)
    assert (da == 0).all()
    kept = lecture.dropout(x, 0.5, seed=1)
    keep = lecture.keep_reference(2000, 0.5, 1, device=device)
    assert (kept[~keep] == 0).all() and torch.equal(kept[keep].isnan(), x[keep].isnan())


def test_the_mean_is_that_of_the_rounded_p(lecture, device):
    """Over all 65,536 values of a half-word the mean is exactly 1."""
    for p in (0.1, 0.001, 1 / 3, 0.97):
        threshold = round(p * 65536)
        kept = (torch.arange(65536) >= threshold).sum().item()
        assert kept * (65536 / (65536 - threshold)) == pytest.approx(65536, rel=1e-12)
        y = lecture.dropout(torch.ones(300, device=device), p, seed=6)
        assert y.max().item() == pytest.approx(65536 / (65536 - threshold), rel=1e-6)


# quality


@pytest.mark.parametrize("p", [0.5, 0.1, 0.75])
def test_randomness(lecture, device, p):
    n = 2**24 if device == "cuda" else 2**15
    ones = torch.ones(n, device=device)
    found = lecture.randomness(lambda seed, n: lecture.dropout(ones, p, seed=seed) != 0, n, p)
    assert max(map(abs, found.values())) < 6, found


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_randomness_of_a_larger_sample(lecture, p):
    """The specification, which the kernel equals bit for bit, on more than the interpreter can."""
    found = lecture.randomness(lambda seed, n: lecture.keep_reference(n, p, seed), 2**20, p)
    assert max(map(abs, found.values())) < 6, found


def test_words_are_uniform(lecture):
    words = lecture.philox_reference(torch.arange(2**18), 2**50 + 1)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift & 255).flatten(), minlength=256).double()
        chi_square = ((counts - 4096) ** 2 / 4096).sum().item()
        assert abs(chi_square - 255) / math.sqrt(510) < 5
    # each bit of a word against each of the next call's
    bits = (words[:, :, None] >> torch.arange(32) & 1).flatten(1).double() - 0.5
    correlation = bits[:-1].T @ bits[1:] * 4 / math.sqrt(len(bits) - 1)
    assert correlation.abs().max() < 6


BAD = {
    "a linear congruence": (
        lambda lecture, seed, n: (1664525 * (torch.arange(n) + seed) + 1013904223 & LOW) >= 2**31,
        {"lags", "clumps", "patterns", "seeds"},
    ),
    "a multiplicative hash": (
        lambda lecture, seed, n: ((torch.arange(n) + seed) * 0x9E3779B1 & LOW) >= 2**31,
        {"lags", "clumps", "patterns", "seeds"},
    ),
    "two rounds": (
        lambda lecture, seed, n: lecture.keep_reference(n, 0.5, seed, rounds=2),
        {"lags", "seeds", "clumps", "patterns"},
    ),
    "four rounds": (
        lambda lecture, seed, n: lecture.keep_reference(n, 0.5, seed, rounds=4),
        {"lags", "seeds"},
    ),
    "each coin used twice": (
        lambda lecture, seed, n: lecture.keep_reference(n // 2, 0.5, seed).repeat_interleave(2),
        {"lags", "clumps", "patterns"},
    ),
    "a counter that starts again in each program": (
        lambda lecture, seed, n: lecture.keep_reference(2048, 0.5, seed).repeat(n // 2048),
        {"lags", "seeds", "clumps", "patterns"},
    ),
    "a seed that is added to the counter": (
        lambda lecture, seed, n: lecture.keep_reference(n, 0.5, 7, 8 * (seed % 2**30)),
        {"seeds"},
    ),
    "a seed that is ignored": (
        lambda lecture, seed, n: lecture.keep_reference(n, 0.5, 7),
        {"seeds"},
    ),
    "a seed of 32 bits": (
        lambda lecture, seed, n: lecture.keep_reference(n, 0.5, seed % 2**32),
        {"seeds"},
    ),
    "a coin that is bent": (
        lambda lecture, seed, n: lecture.keep_reference(n, 0.51, seed),
        {"rate"},
    ),
}


@pytest.mark.parametrize(("keep", "caught"), BAD.values(), ids=BAD.keys())
def test_bad_generators_are_found(lecture, keep, caught):
    found = lecture.randomness(lambda seed, n: keep(lecture, seed, n), 2**17)
    red = {name for name, deviation in found.items() if abs(deviation) > 6}
    assert red >= caught, found
    if caught != {"rate"}:
        assert "rate" not in red, "the page says that the rate finds none"


def test_the_page_shows_them(lecture, device, capsys):
    lecture.show_randomness(device)
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split()[-5:] == ["rate", "lags", "seeds", "clumps", "patterns"]
    worst = {row[:22].strip(): max(abs(float(z)) for z in row[22:].split()) for row in rows}
    assert worst.pop("dropout") < 6 and len(worst) == 5 and min(worst.values()) > 6
    assert all(abs(float(row[22:].split()[0])) < 4 for row in rows)
    assert max(map(len, (title, *rows))) <= 90


# errors


@triton.jit
def depth_kernel(x_ptr, y_ptr, seed, limit: tl.uint32, scale, n_cols, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    mask = cols < n_cols
    keep = tl.randint4x(seed, row)[0] >= limit
    x = tl.load(x_ptr + row * n_cols + cols, mask=keep & mask, other=0.0)
    tl.store(y_ptr + row * n_cols + cols, x * scale, mask=mask)


@pytest.mark.interpreter
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_exercise_3_dropped_rows_are_not_read(p):
    x = torch.randn(300, 20)
    y, limit = torch.empty_like(x), round(p * 2**32)
    keep = torch.tensor([philox((row, 0, 0, 0), (7, 0))[0] >= limit for row in range(300)])
    x[~keep] = torch.nan
    met = traffic(lambda: depth_kernel[(300,)](x, y, 7, limit, 1 / (1 - p), 20, BLOCK=32))
    torch.testing.assert_close(y, x.nan_to_num() / (1 - p))
    dropped = 1 - keep.float().mean().item()
    assert met / x.numel() == pytest.approx(2 - dropped)
    assert abs(dropped - p) < 4 * math.sqrt(p * (1 - p) / 300)


@pytest.mark.parametrize("op", ["dropout", "dropout_add"])
@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "float64", {"x": torch.double}),
        (TypeError, "int32", {"x": torch.int32}),
        (ValueError, "0 <= p <= 1", {"p": -0.1}),
        (ValueError, "0 <= p <= 1", {"p": 1.1}),
        (ValueError, "0 <= p <= 1", {"p": math.nan}),
        (ValueError, "offset", {"offset": -1}),
        (ValueError, "offset", {"offset": 2**62}),
        (ValueError, "seed", {"seed": -1}),
        (ValueError, "seed", {"seed": 2**63}),
        (ValueError, "one int64", {"seed": torch.tensor([1, 2])}),
        (ValueError, "one int64", {"seed": torch.tensor([1.0])}),
    ],
)
def test_refuses(lecture, device, op, error, words, change):
    options = {k: v.to(device) if torch.is_tensor(v) else v for k, v in change.items() if k != "x"}
    x = torch.ones(3, 4, device=device, dtype=change.get("x", torch.float32))
    inputs = (x, x) if op == "dropout_add" else (x,)
    with pytest.raises(error, match=words):
        getattr(lecture, op)(*inputs, **options)


def test_refuses_a_residual(lecture, device):
    x = torch.ones(3, 4, device=device)
    for residual in (x[:1], x[:, :1], x.t(), x.half(), x.to("meta")):
        with pytest.raises(ValueError, match="residual like x"):
            lecture.dropout_add(x, residual)


# what only a GPU has


@pytest.mark.gpu
@pytest.mark.parametrize("extra", [0, 1])
def test_beyond_int32(lecture, extra):
    n = 2**31 + 4096 + extra
    x = torch.ones(n, dtype=torch.float16, device="cuda")
    y = lecture.dropout(x, 0.5, seed=5)
    for start in (0, 2**31 - 1024, n - 4096):
        keep = lecture.keep_reference(4096, 0.5, 5, start, "cuda")
        assert torch.equal(y[start : start + 4096] != 0, keep)


@pytest.mark.gpu
def test_cuda_graph(lecture):
    x = torch.ones(2**20, device="cuda", requires_grad=True)
    seed = torch.ones(1, dtype=torch.int64, device="cuda")
    torch.autograd.grad(lecture.dropout(x, seed=seed).sum(), x)
    for options, share in (({}, 0.5), ({"seed": 7}, 0.0)):
        lecture.dropout(x, **options)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = lecture.dropout(x, **options)
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(x))
        runs = []
        for _ in range(3):
            graph.replay()
            assert torch.equal(y, dx)
            runs.append(y.detach().clone())
        for a, b in ((0, 1), (1, 2), (0, 2)):
            assert (runs[a] != runs[b]).float().mean().item() == pytest.approx(share, abs=0.01)
    torch.cuda.manual_seed(3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = lecture.dropout(x)
    runs = []
    for _ in range(2):
        torch.cuda.manual_seed(3)
        graph.replay()
        runs.append(y.detach().clone())
    assert torch.equal(*runs), "manual_seed does not reach the graph"


@pytest.mark.gpu
def test_the_host_never_waits(lecture):
    x = torch.ones(4096, device="cuda", requires_grad=True)
    lecture.dropout(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        lecture.dropout(x).sum().backward()
        lecture.dropout_add(x, x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_all_seeds_share_one_version(lecture):
    x = torch.ones(2048, device="cuda")
    versions = {
        lecture.dropout_kernel[(1,)](
            x, None, x, None, seed, seed // 3, threshold, 2.0, 0, 2048, BLOCK=2048, ROUNDS=10
        ).hash
        for seed in (0, 1, 7, 16, 2**31, 2**40 + 1, 2**62)
        for threshold in (1, 16, 6554, 65535)
    }
    assert len(versions) == 1
