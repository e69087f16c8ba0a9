"""hopper_attention: what compiles, how tiles are dealt out, and on a Hopper GPU the results.

Gluon has no interpreter. Without a GPU every variant is compiled for sm_90, by this file run as a
script, and its machine code is looked at.
"""

import gc
import itertools
import json
import random
import sys
import weakref
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings

from tests.kernels.sm_90 import SHARED_LIMIT, facts, pretend, run_as_script

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
DTYPES = [torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
both_kinds = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])

# rung, head_dim, dtype, causal, queries, keys
VARIANTS = [
    (rung, head_dim, "bfloat16", causal, queries, keys)
    for rung, head_dim, causal in itertools.product(
        ("one", "two", "persistent", "three"), (64, 128), (False, True)
    )
    for queries, keys in ((1024, 1024), (300, 1111))
    if (rung, head_dim) != ("three", 128)
] + [("persistent", head_dim, "float16", True, 1000, 1000) for head_dim in (64, 128)]
# exercise 1, a ring of three: head_dim, consumers
DEEPER = [(128, 2), (64, 2), (64, 3)]


def compile_all() -> list[dict]:
    """Compiles every variant for sm_90 on a machine without a GPU."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import hopper_attention as lecture

    lecture._sms = lambda device: 132
    found = []
    for rung, head_dim, dtype, causal, queries, keys in VARIANTS:
        q = torch.empty(2, 4, queries, head_dim, dtype=getattr(torch, dtype))
        k, lse = q.new_empty(2, 2, keys, head_dim), torch.empty(2, 4, queries)
        choice = lecture.RUNGS[rung]
        grid, arguments, options = lecture._plan(q, k, k, q, lse, causal, 0.1, **choice)
        compiled = lecture.hopper_attention_kernel.warmup(*arguments, grid=grid, **options)
        found.append(facts(compiled))
    lecture.STAGES = 3
    for head_dim, groups in DEEPER:
        q, lse = torch.empty(2, 4, 1024, head_dim, dtype=torch.bfloat16), torch.empty(2, 4, 1024)
        grid, arguments, options = lecture._plan(q, q, q, q, lse, False, 0.1, groups=groups)
        compiled = lecture.hopper_attention_kernel.warmup(*arguments, grid=grid, **options)
        found.append(facts(compiled))
    return found


@pytest.fixture(scope="module")
def compiled() -> dict:
    return dict(zip(VARIANTS + DEEPER, run_as_script(__file__), strict=True))


@pytest.mark.interpreter  # a GPU's tests compile and run them
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_machine_code(compiled, variant):
    rung, head_dim, *_ = variant
    kernel = compiled[variant]
    consumers = {"one": 1, "two": 2, "persistent": 2, "three": 3}[rung]
    # softmax under product has a first and a last step of its own
    products = (head_dim // 16 + 128 // 16) * (1 if rung in ("one", "two") else 2)
    assert kernel["wgmma"] == consumers * products
    # TMA moves 64 columns at a time: queries of each consumer, keys, values
    assert kernel["loads"] >= head_dim // 64 * (consumers + 2)
    assert kernel["stores"] >= consumers
    assert kernel["shared"] <= SHARED_LIMIT
    assert kernel["spills"] == 0 and not kernel["serialized"]
    assert kernel["setmaxnreg"] >= 2
    assert kernel["registers"] * 128 * (1 + max(consumers, 2)) <= 65536


@pytest.mark.interpreter
def test_exercise_1_a_third_stage(compiled):
    slot, queries_and_output = 2 * 128 * 128 * 2, (2 * 2 + 2) * 64 * 128 * 2
    assert (slot, queries_and_output) == (64 << 10, 96 << 10)
    wanted = {(128, 2): 288, (64, 2): 144, (64, 3): 168}
    for variant, kib in wanted.items():
        # beside the rings a few barriers, and what tells warps their role
        assert 0 <= compiled[variant]["shared"] - (kib << 10) <= 2048
        assert (compiled[variant]["shared"] <= SHARED_LIMIT) == (variant[0] == 64)


@pytest.mark.parametrize(("n", "percent"), [(512, 71), (1024, 82), (4096, 94)])
def test_exercise_2_causal_by_count(lecture, n, percent):
    rates = []
    for causal in (True, False):
        shape = (16384 // n, 16, 1, n, n, 128)
        _, tiles = lecture._schedule(shape, causal, 128, 132, torch.device("cpu"))
        blocks = tiles.view(-1, 6)[:, 4]
        counted = len(blocks) * n / 128 / (2 if causal else 1)
        rates.append(counted / (1 + blocks).sum().item())
    share = rates[0] / rates[1]
    assert share == pytest.approx((n // 128 + 1) / (n // 128 + 3)) and round(100 * share) == percent


@triton.jit
def drawing_kernel(counter_ptr, done_ptr, n_tiles):
    tile = tl.atomic_add(counter_ptr, 1)
    while tile < n_tiles:
        tl.atomic_add(done_ptr + tile, 1)
        tile = tl.atomic_add(counter_ptr, 1)
    # each program draws past the end once
    if tile == n_tiles + tl.num_programs(0) - 1:
        tl.atomic_xchg(counter_ptr, 0)


@pytest.mark.parametrize(("n_tiles", "programs"), [(40, 7), (3, 7), (1, 1), (0, 4)])
def test_exercise_3_tiles_from_a_counter(device, n_tiles, programs):
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    done = torch.zeros(50, dtype=torch.int32, device=device)
    for launch in range(1, 4):
        drawing_kernel[(programs,)](counter, done, n_tiles)
        assert counter.item() == 0
        assert done.tolist() == [launch] * n_tiles + [0] * (50 - n_tiles)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n_tiles=st.integers(0, 20), programs=st.integers(1, 6))
def test_exercise_3_in_any_order(seed, n_tiles, programs):
    """Draws of programs that take turns at random: the last to stop is known by its number."""
    order, counter, drawn, alive = random.Random(seed), 0, [], [*range(programs)]
    while alive:
        program = order.choice(alive)
        tile, counter = counter, counter + 1
        if tile < n_tiles:
            drawn.append(tile)
        else:
            alive.remove(program)
            assert (tile == n_tiles + programs - 1) == (not alive)
    assert drawn == [*range(n_tiles)]


sizes = st.tuples(
    st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (6, 2), (5, 5)]), st.integers(1, 1500),
    st.integers(1, 1500), st.sampled_from([(64, 192), (64, 128), (128, 128)]), st.booleans(),
    st.sampled_from([None, 1, 7, 132]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_every_tile_is_dealt_out_once(lecture, size):
    batch, (heads, kv_heads), n_queries, n_keys, (head_dim, block_m), causal, programs = size
    shape = (batch, heads, heads // kv_heads, n_queries, n_keys, head_dim)
    starts, tiles = lecture._schedule(shape, causal, block_m, programs, torch.device("cpu"))
    starts, tiles = starts.tolist(), tiles.view(-1, 6).tolist()
    assert starts[0] == 0 and starts[-1] == len(tiles) and starts == sorted(starts)
    assert len(starts) == 1 + (programs or len(tiles))
    every = {place: 0 for place in itertools.product(range(batch), range(heads))}
    for b, head, start_m, end_m, blocks, kv_head in sorted(tiles):
        assert every[b, head] == start_m < end_m <= start_m + block_m
        every[b, head] = end_m
        assert end_m == n_queries or (end_m - start_m) % 64 == 0
        assert end_m in (n_queries, start_m + block_m) or (programs and block_m == 192)
        assert kv_head == head * kv_heads // heads
        last_key = end_m - 1 + n_keys - n_queries if causal else n_keys - 1
        assert blocks == max(0, last_key) // 128 + 1
    assert set(every.values()) == {n_queries}
    if programs:
        steps = [1 + t[4] * share(t, block_m) for t in tiles]
        loads = [sum(steps[a:b]) for a, b in itertools.pairwise(starts)]
        assert max(loads) <= sum(loads) / programs + max(steps)


def share(tile, block_m):
    """Time of a step of a tile, in parts of that with all its rows, as the lecture takes it."""
    rows = tile[3] - tile[2]
    return 1 if block_m != 192 or rows > 128 else 0.85 if rows > 64 else 0.6


@pytest.mark.parametrize(("heads", "n", "rounds"), [(64, 4096, 11), (16, 16384, 11)])
def test_the_last_round_is_shared(lecture, heads, n, rounds):
    shape = (1, heads, 1, n, n, 64)
    starts, tiles = lecture._schedule(shape, False, 192, 132, torch.device("cpu"))
    tiles = tiles.view(-1, 6).tolist()
    steps = [1 + t[4] * share(t, 192) for t in tiles]
    loads = [sum(steps[a:b]) for a, b in itertools.pairwise(starts.tolist())]
    # no program has `rounds` whole tiles, as whoever takes one more in an uncut round would
    assert max(loads) <= (rounds - 0.1) * (1 + n // 128)


def test_a_new_schedule_is_made_once(lecture):
    arguments = ((1, 2, 1, 700, 700, 64), True, 192, 5, torch.device("cpu"))
    assert lecture._schedule(*arguments)[1] is lecture._schedule(*arguments)[1]


def test_a_schedule_is_kept(lecture):
    """A captured graph keeps its address; other shapes, and there are many, must not free it."""
    kept = weakref.ref(lecture._schedule((1, 2, 1, 700, 700, 64), True, 192, 5, "cpu")[1])
    for n in range(1, 300):
        lecture._schedule((1, 1, 1, n, n, 64), True, 192, 5, "cpu")
    gc.collect()
    assert kept() is not None


@pytest.mark.parametrize(("heads", "n"), [(64, 4096), (16, 16384), (64, 4097), (256, 1024)])
def test_programs_of_a_causal_launch_end_together(lecture, heads, n):
    shape = (1, heads, 1, n, n, 128)
    starts, tiles = lecture._schedule(shape, True, 128, 132, torch.device("cpu"))
    blocks = (tiles.view(-1, 6)[:, 4] + 1).tolist()
    loads = [sum(blocks[a:b]) for a, b in itertools.pairwise(starts.tolist())]
    assert max(loads) <= 1.06 * sum(loads) / len(loads)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1, 2, 3]), st.booleans())
def test_blocks_without_a_mask_need_none(lecture, n_queries, n_keys, groups, causal):
    q, k = torch.empty(1, 1, n_queries, 64).half(), torch.empty(1, 1, n_keys, 64).half()
    sms, lecture._sms = lecture._sms, lambda device: 2
    try:
        lse = torch.empty(1, 1, n_queries)
        _, arguments, _ = lecture._plan(q, k, k, q, lse, causal, 1.0, groups=groups)
    finally:
        lecture._sms = sms
    tiles, masked = arguments[6].view(-1, 6).tolist(), arguments[-3]
    assert masked <= 3
    for _, _, start_m, _, blocks, _ in tiles:
        for j in range(masked, blocks):
            last_key = (blocks - j) * 128 - 1
            first_row = start_m
            seen = first_row + n_keys - n_queries if causal else n_keys - 1
            assert last_key <= seen, (start_m, blocks, j)


@pytest.mark.parametrize(
    ("head_dim", "heads", "n", "causal", "groups"),
    [
        *((64, 64, 4096, False, 3), (64, 16, 4096, False, 2), (64, 256, 1000, False, 3)),
        *((64, 512, 512, False, 2), (64, 256, 1024, True, 2), (64, 64, 4096, True, 3)),
        (128, 64, 4096, False, 2),
    ],
)
def test_three_consumers_where_keys_and_queries_are_many(
    lecture, monkeypatch, head_dim, heads, n, causal, groups
):
    monkeypatch.setattr(lecture, "_sms", lambda device: 132)
    q, lse = torch.empty(1, heads, n, head_dim).half(), torch.empty(1, heads, n)
    _, arguments, _ = lecture._plan(q, q, q, q, lse, causal, 1.0)
    names = lecture.hopper_attention_kernel.arg_names
    assert arguments[names.index("GROUPS")] == groups


def test_the_check_needs_a_gpu(lecture):
    with pytest.raises(RuntimeError, match="no interpreter"):
        lecture.check("cpu")


def off_16_bytes(x):
    """`x`, contiguous, at an address of which 16 is no divisor."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def expanded(x, dim):
    return x.narrow(dim, 0, 1).clone().expand_as(x)


def refusals():
    yield "float32", TypeError, lambda q: ((q.float(),) * 3, {})
    yield "mixed", TypeError, lambda q: ((q, q.bfloat16(), q), {})
    yield "lengths of k and v", ValueError, lambda q: ((q, q, q[:, :, 1:]), {})
    yield "batches", ValueError, lambda q: ((q, q[:1], q[:1]), {})
    yield "heads", ValueError, lambda q: ((q, q[:, :4], q[:, :4]), {})
    yield "more heads of keys", ValueError, lambda q: ((q[:, :3], q, q), {})
    yield "no heads of keys", ValueError, lambda q: ((q, q[:, :0], q[:, :0]), {})
    yield "head_dim 32", ValueError, lambda q: ((q[..., :32],) * 3, {})
    yield "head_dims", ValueError, lambda q: ((q, q.repeat(1, 1, 1, 2), q.repeat(1, 1, 1, 2)), {})
    yield "three dimensions", ValueError, lambda q: ((q[0],) * 3, {})
    yield "scale 0", ValueError, lambda q: ((q, q, q), {"scale": 0.0})
    yield "scale NaN", ValueError, lambda q: ((q, q, q), {"scale": float("nan")})
    yield "scale 0 in float32", ValueError, lambda q: ((q, q, q), {"scale": 1e-46})
    yield "scale inf in float32", ValueError, lambda q: ((q, q, q), {"scale": 1e39})
    yield "scale whose scores overflow", ValueError, lambda q: ((q, q, q), {"scale": 1e30})
    yield "gradient", ValueError, lambda q: ((q.clone().requires_grad_(), q, q), {})
    yield "out of another shape", ValueError, lambda q: ((q, q, q), {"out": q[:, :, 1:]})
    yield "out in columns", ValueError, lambda q: ((q, q, q), {"out": q.mT.contiguous().mT})
    yield "out off 16 bytes", ValueError, lambda q: ((q, q, q), {"out": off_16_bytes(q)})
    yield "one token for all", ValueError, lambda q: ((q,) * 3, {"out": expanded(q, 2)})
    yield "one head for all", ValueError, lambda q: ((q,) * 3, {"out": expanded(q, 1)})
    yield "one batch for all", ValueError, lambda q: ((q,) * 3, {"out": expanded(q, 0)})
    yield "out is k", ValueError, lambda q: ((q.clone(), q, q.clone()), {"out": q})
    yield "out is v", ValueError, lambda q: ((q.clone(), q.clone(), q), {"out": q})
    yield "another device", ValueError, lambda q: ((q, q, q.to("meta")), {})


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    arguments, options = make(torch.ones(2, 6, 8, 64, dtype=torch.float16, device=device))
    with pytest.raises(error, match="hopper_attention (takes|has)"):
        lecture.hopper_attention(*arguments, **options)


@pytest.mark.gpu
def test_another_gpu_is_refused(lecture, monkeypatch):
    class Ampere:
        major, minor, name, multi_processor_count = 8, 0, "NVIDIA A100", 108

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Ampere)
    lecture._sms.cache_clear()
    q = torch.ones(1, 1, 8, 64, dtype=torch.float16, device="cuda")
    with pytest.raises(ValueError, match=r"H100 or H200.*A100"):
        lecture.hopper_attention(q, q, q)


def inputs(shape, kv_shape=None, dtype=torch.float16, seed=0):
    torch.manual_seed(seed)
    q = torch.randn(shape, device="cuda").to(dtype)
    return q, *torch.randn(2, *(kv_shape or shape), device="cuda").to(dtype)


def agrees(lecture, q, k, v, **options):
    """Checks output and log-sum-exp, the output within a frame of NaN; returns the output."""
    batch, heads, n_queries, head_dim = q.shape
    frame = torch.full((batch, heads, n_queries + 70, head_dim), float("nan")).to(q)
    out = frame[:, :, :n_queries]
    _, lse = lecture.hopper_attention(q, k, v, out=out, return_lse=True, **options)
    want, want_lse = lecture.hopper_attention_reference(
        q.double(), k.double(), v.double(), **options
    )
    atol = torch.finfo(q.dtype).eps * v.abs().max().item()
    torch.testing.assert_close(out.double(), want, atol=atol, rtol=0)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=1e-6)
    assert frame[:, :, n_queries:].isnan().all()
    return out


@on_hopper
@every_dtype
@both_kinds
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 1000, 4097])
def test_lengths(lecture, n, head_dim, causal, dtype):
    agrees(lecture, *inputs((1, 2, n, head_dim), dtype=dtype), causal=causal)


@on_hopper
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    n_queries=st.integers(1, 900), n_keys=st.integers(1, 900), head_dim=st.sampled_from([64, 128]),
    causal=st.booleans(), scale=st.floats(0.01, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(lecture, batch, heads, n_queries, n_keys, head_dim, causal, scale, seed):
    shapes = (batch, heads[0], n_queries, head_dim), (batch, heads[1], n_keys, head_dim)
    agrees(lecture, *inputs(*shapes, seed=seed), causal=causal, scale=scale)


@on_hopper
@both_kinds
@pytest.mark.parametrize(("heads", "kv_heads"), [(30, 10), (22, 11)])
def test_many_tiles_a_program(lecture, heads, kv_heads, causal):
    """Rings go round often, groups of heads are not all alike, last rounds are cut or not."""
    q, k, v = inputs((3, heads, 2100, 64), (3, kv_heads, 2100, 64))
    if not causal:
        sizes = (3, heads, heads // kv_heads, 2100, 2100, 64)
        _, tiles = lecture._schedule(sizes, False, 192, 132, torch.device("cpu"))
        heights = {end - start for _, _, start, end, *_ in tiles.view(-1, 6).tolist()}
        assert heights == ({192, 180} if heads == 30 else {192, 180, 128, 64, 52})
    agrees(lecture, q, k, v, causal=causal)


def layouts():
    yield "transposed", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "every second token", lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2]
    yield "part of wider rows", lambda x: torch.cat([x, x], dim=3)[..., : x.shape[3]]
    yield "one head for all", lambda x: x[:, :1].expand_as(x)
    yield "columns", lambda x: x.mT.contiguous().mT
    yield "off 16 bytes", off_16_bytes
    yield "odd row stride", lambda x: torch.cat([x, x[..., :1]], dim=3)[..., : x.shape[3]]
    yield "one token for all", lambda x: x[:, :, :1].expand_as(x)
    yield "one token, odd strides", lambda x: x[:, :, :1].mT.contiguous().mT


@on_hopper
@pytest.mark.parametrize("layout", [pytest.param(f, id=name) for name, f in layouts()])
def test_layouts(lecture, layout):
    q, k, v = inputs((2, 3, 170, 64))
    agrees(lecture, layout(q), layout(k), layout(v), causal=True)


class Elsewhere(torch.Tensor):
    """A tensor of the host that says that it lies on a GPU."""

    is_cuda = True


@pytest.fixture
def reached(lecture, monkeypatch):
    """A list to which launches, which do nothing, add the tensors of their descriptors."""

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **_: found.extend(x.base for x in arguments[:4])

    found = []
    monkeypatch.setattr(lecture, "hopper_attention_kernel", Kernel())
    monkeypatch.setattr(lecture, "_sms", lambda device: 132)
    return found


@pytest.mark.interpreter
@pytest.mark.parametrize("layout", [pytest.param(f, id=name) for name, f in layouts()])
def test_only_what_a_descriptor_refuses_is_copied(lecture, reached, layout):
    given = [layout(x).as_subclass(Elsewhere) for x in torch.randn(3, 2, 3, 70, 64).half()]
    lecture.hopper_attention(*given)
    # odd strides count where there is one token, too: `contiguous` would not change them
    fits = given[0].data_ptr() % 16 == 0 and given[0].stride(3) == 1 and given[0].stride(2) >= 64
    fits &= all(step % 8 == 0 for step in given[0].stride()[:3])
    for x, y in zip(given, reached[:3], strict=True):
        assert (x.data_ptr() == y.data_ptr()) == fits and torch.equal(x, y)
        assert fits or y.stride() == torch.empty(y.shape).stride()


@pytest.mark.interpreter
@pytest.mark.parametrize("n", [70, 0])
def test_autograd_knows_that_out_is_written(lecture, reached, n):
    q, k, v, out = (x.as_subclass(Elsewhere) for x in torch.empty(4, 2, 3, n, 64).half())
    product = torch.ones(q.shape, dtype=q.dtype, requires_grad=True) * out
    assert lecture.hopper_attention(q, k, v, out=out) is out and len(reached) == (4 if n else 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@on_hopper
@both_kinds
@pytest.mark.parametrize(("heads", "n"), [(4, 300), (30, 2100)])
def test_out_may_be_q(lecture, causal, heads, n):
    q, k, v = inputs((3, heads, n, 64))
    want = lecture.hopper_attention(q, k, v, causal=causal)
    assert torch.equal(lecture.hopper_attention(q, k, v, causal=causal, out=q), want)


@on_hopper
def test_a_captured_launch_outlives_other_shapes(lecture):
    q, k, v = inputs((2, 3, 500, 64))
    want, out = lecture.hopper_attention(q, k, v), torch.empty_like(q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lecture.hopper_attention(q, k, v, out=out)
    for n in range(1, 300):
        lecture.hopper_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n])
    garbage = [torch.full((n,), 2**30, dtype=torch.int32, device="cuda") for n in range(1, 2000)]
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, want) and garbage


@on_hopper
def test_a_first_call_inside_a_capture_stops(lecture):
    q, k, v = inputs((1, 1, 77, 64))
    lecture.hopper_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:])  # compiles
    with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        lecture.hopper_attention(q, k, v)
    agrees(lecture, q, k, v)


@on_hopper
@both_kinds
def test_runs_are_alike_to_the_bit(lecture, causal):
    q, k, v = inputs((2, 16, 1500, 128), dtype=torch.bfloat16)
    first = lecture.hopper_attention(q, k, v, causal=causal)
    for _ in range(20):
        assert torch.equal(lecture.hopper_attention(q, k, v, causal=causal), first)


@on_hopper
@both_kinds
@every_dtype
def test_no_less_exact_than_torch(lecture, causal, dtype):
    q, k, v = inputs((1, 4, 2048, 128), dtype=dtype)
    want, _ = lecture.hopper_attention_reference(q.double(), k.double(), v.double(), causal)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        peer = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    ours = lecture.hopper_attention(q, k, v, causal=causal)
    error, allowed = ((x.double() - want).square().mean().sqrt() for x in (ours, peer))
    assert error <= 1.1 * allowed


@on_hopper
@both_kinds
@pytest.mark.parametrize("size", [100, 1000])
def test_large_scores_do_not_overflow(lecture, causal, size):
    q, k, v = inputs((1, 1, 330, 64))
    out = lecture.hopper_attention(q * size, k, v, causal=causal)
    inputs64 = ((q * size).double(), k.double(), v.double())
    want, _ = lecture.hopper_attention_reference(*inputs64, causal)
    # one weight near 1, and the others' share as exact as a float32 score of this size allows
    torch.testing.assert_close(out.double(), want, atol=0.02 * size / 100, rtol=0)


@on_hopper
@pytest.mark.parametrize(("n_queries", "n_keys"), [(300, 1), (513, 200), (1000, 872)])
def test_rows_that_see_no_key(lecture, n_queries, n_keys):
    q, k, v = inputs((1, 2, n_queries, 64), (1, 2, n_keys, 64))
    out, lse = lecture.hopper_attention(q, k, v, causal=True, return_lse=True)
    none = n_queries - n_keys
    assert not out[:, :, :none].any() and (lse[:, :, :none] == -float("inf")).all()
    assert not out.isnan().any() and lse[:, :, none:].isfinite().all()


@on_hopper
def test_the_future_does_not_matter(lecture):
    q, k, v = inputs((1, 2, 600, 128))
    before = lecture.hopper_attention(q, k, v, causal=True)
    # the blocks after those of the token, so that no 0 * inf arises
    k[:, :, 256:], v[:, :, 256:] = float("nan"), float("inf")
    after = lecture.hopper_attention(q, k, v, causal=True)
    assert torch.equal(before[:, :, :256], after[:, :, :256])


@on_hopper
def test_what_lies_behind_a_head_does_not_matter(lecture):
    q, k, v = inputs((1, 2, 200, 64))
    before = lecture.hopper_attention(q, k, v)
    k[:, 1], v[:, 1] = float("nan"), float("inf")
    assert torch.equal(lecture.hopper_attention(q, k, v)[:, 0], before[:, 0])


@on_hopper
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_query_spoils_its_own_row_only(lecture, value):
    q, k, v = inputs((1, 1, 140, 64))
    before = lecture.hopper_attention(q, k, v)
    q[0, 0, 5, 3] = value
    after = lecture.hopper_attention(q, k, v)
    assert after[0, 0, 5].isnan().all()
    others = torch.arange(140, device="cuda") != 5
    assert torch.equal(before[:, :, others], after[:, :, others])


@on_hopper
@pytest.mark.parametrize(
    ("shape", "kv_shape"),
    [((0, 2, 5, 64), (0, 2, 5, 64)), ((2, 0, 5, 64), (2, 0, 5, 64)), ((2, 2, 0, 64), (2, 1, 9, 64)),
     ((2, 2, 5, 64), (2, 2, 0, 64))],
)  # fmt: skip
def test_nothing(lecture, shape, kv_shape):
    q, k, v = inputs(shape, kv_shape)
    out, lse = lecture.hopper_attention(q, k, v, return_lse=True)
    assert out.shape == shape and lse.shape == shape[:3]
    assert not out.any() and (lse == -float("inf")).all()


@on_hopper
def test_two_streams_at_once(lecture):
    q, k, v = inputs((2, 16, 1111, 128))
    want = lecture.hopper_attention(q, k, v, causal=True)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            results.append(lecture.hopper_attention(q, k, v, causal=True))
    torch.cuda.synchronize()
    assert all(torch.equal(result, want) for result in results)


@on_hopper
@both_kinds
def test_more_than_2_31_elements(lecture, causal):
    """The last of 33 heads of 2**20 tokens lies past 2**31 elements."""
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free memory")
    # two keys of the last head score 8 and have the value 1, all the others 0 and 0
    x = torch.zeros(1, 33, 2**20, 64, dtype=torch.bfloat16, device="cuda")
    x[0, -1, :2] = 1
    q = x[:, :, :300]
    out = lecture.hopper_attention(q, x, x, causal=causal)
    both = 2 * 2.718281828**8
    assert out[0, -1, 0].float().mean().item() == pytest.approx(both / (both + 2**20 - 2), rel=2e-2)
    assert not out[0, :-1].any()


if __name__ == "__main__":
    print(json.dumps(compile_all()))
