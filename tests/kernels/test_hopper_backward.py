"""hopper_attention with a gradient: what compiles, and on a Hopper GPU the results.

Gluon has no interpreter. Without a GPU every variant is compiled for sm_90, by this file run as a
script, and its machine code is looked at; and the kernels before and after run in the interpreter,
with the large one's arithmetic in PyTorch between them.
"""

import itertools
import json
import math
import random
import re
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import triton
from hypothesis import given, settings

from tests.kernels.changed import changed_lecture
from tests.kernels.sm_90 import SHARED_LIMIT, facts, pretend, run_as_script, told_by

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
both_kinds = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
both_sizes = pytest.mark.parametrize("head_dim", [64, 128])

# rung, head_dim, dtype, causal, queries, keys, heads of keys
VARIANTS = [
    ("triton", head_dim, "bfloat16", causal, *sizes)
    for head_dim, causal in itertools.product((64, 128), (False, True))
    for sizes in ((1024, 1024, 4), (300, 1111, 4), (1024, 1024, 1))
] + [("triton", head_dim, "float16", True, 1000, 1000, 2) for head_dim in (64, 128)]
VARIANTS += [
    (rung, head_dim, "bfloat16", causal, 300, 1111, 4)
    for rung in ("turn", "overlap", "unsummed")
    for head_dim, causal in itertools.product((64, 128), (False, True))
]
WIDE = [128, 64]  # exercise 2, 256 keys: head_dim
# exercise 1: dS from the weights as they were rounded
FROM_WEIGHTS = {
    # the one of two such lines that rungs 1 and 2 take
    "ds = (p * (dp - _rows(delta_ring, slot, dp))).to(dtype)\n            ds_tile": (
        "p = gl.convert_layout(weights, dp.type.layout).to(gl.float32)\n"
        "            ds = (p * (dp - _rows(delta_ring, slot, dp))).to(dtype)\n            ds_tile"
    )
}


def overwritten(kernel) -> int:
    """Instructions that may write to a register while a product that is still running has it.

    Follows every branch of the SASS: HGMMA starts a product, with the sum and perhaps its left
    factor in registers, and WARPGROUP.DEPBAR waits until at most so many groups are running.
    """
    listing = told_by(triton.knobs.nvidia.nvdisasm, ["-c"], kernel.asm["cubin"])
    lines = [re.sub(r"/\*.*?\*/", "", line).strip(" \t;") for line in listing.splitlines()]
    lines = [x for x in lines if re.match(r"\.L_x_\d+:|@?!?U?P?[\dT]* ?[A-Z][\w.]+( |$)", x)]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    found, seen, todo = set(), set(), [(0, (), ())]
    while todo:
        i, running, group = todo.pop()
        while i < len(lines) and (i, running, group) not in seen:
            seen.add((i, running, group))
            predicate, line = re.match(r"(@!?U?P[\dT]+ )?(.*)", lines[i]).groups()
            name, _, rest = line.partition(" ")
            registers = [int(r) for r in re.findall(r"\bR(\d+)\b", rest)]
            if name.startswith("HGMMA"):
                size = int(re.search(r"64x(\d+)x16", name)[1]) // 2
                held = set(range(registers[0], registers[0] + size))
                if re.match(r"R\d+, R\d+", rest):
                    held |= set(range(registers[1], registers[1] + 4))
                group += (frozenset(held),)
                if "gsb0" in rest:
                    running, group = (*running, frozenset().union(*group)), ()
            elif name.startswith("WARPGROUP.DEPBAR"):
                left = int(rest.split(",")[1], 16)
                running = running[-left:] if left else ()
            elif name == "BRA" and (target := re.search(r"\.L_x_\d+", rest)):
                if predicate:
                    todo.append((labels[target[0]], running, group))
                else:
                    i = labels[target[0]]
                    continue
            elif name == "EXIT" and not predicate:
                break
            elif registers and re.match(r"R\d", rest) and not name.startswith(("ST", "RED", "R2")):
                wide = 4 if ".128" in name else 2 if ".64" in name or "WIDE" in name else 1
                written = set(range(registers[0], registers[0] + wide))
                if any(written & held for held in (*running, *group)):
                    found.add(i)
            i += 1
    return len(found)


def plan(lecture, rung, q, k, causal):
    """The launches of a rung."""
    options = {"summed": False} if rung == "unsummed" else lecture.RUNGS[rung]
    lse = torch.empty(q.shape[:3])
    return lecture._plan(q, q, k, k, q, lse, q, k, k, causal, 0.1, **options)


def compile_all() -> list[dict]:
    """Compiles the large kernel in every variant for sm_90 on a machine without a GPU."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import hopper_backward as lecture

    found = []
    for rung, head_dim, dtype, causal, queries, keys, kv_heads in VARIANTS:
        q = torch.empty(2, 4, queries, head_dim, dtype=getattr(torch, dtype))
        k = q.new_empty(2, kv_heads, keys, head_dim)
        _, (kernel, grid, arguments, options), _ = plan(lecture, rung, q, k, causal)
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        vectors = len(re.findall(r"(?:red|atom)[\w.]*\.v4\.f32", compiled.asm["ptx"]))
        found.append(facts(compiled) | {"v4": vectors, "overwritten": overwritten(compiled)})
    with tempfile.TemporaryDirectory() as folder:
        for one in (lecture, changed_lecture(lecture, FROM_WEIGHTS, folder)):
            q = torch.empty(2, 4, 1024, 128, dtype=torch.bfloat16)
            _, (kernel, grid, arguments, options), _ = plan(one, "overlap", q, q, False)
            compiled = kernel.warmup(*arguments, grid=grid, **options)
            tool = triton.knobs.nvidia.nvdisasm
            listing = told_by(tool, ["-c"], compiled.asm["cubin"])
            found.append([len(re.findall(rf"\b{code}\b", listing)) for code in ("F2FP", "F2F")])
    lecture.BLOCK_N = 256
    for head_dim in WIDE:
        q = torch.empty(2, 4, 1024, head_dim, dtype=torch.bfloat16)
        _, (kernel, grid, arguments, options), _ = plan(lecture, "overlap", q, q, False)
        found.append(facts(kernel.warmup(*arguments, grid=grid, **options)))
    return found


@pytest.fixture(scope="module")
def compiled() -> dict:
    names = [*VARIANTS, "from p", "from weights", *WIDE]
    return dict(zip(names, run_as_script(__file__), strict=True))


@pytest.mark.interpreter  # a GPU's tests compile and run them
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_machine_code(compiled, variant):
    rung, head_dim, *_ = variant
    kernel = compiled[variant]
    ahead = head_dim == 64 and rung in ("triton", "unsummed")
    # S, dP (again before the loop, if a step ahead), dV, dK: D or 64 / 16 each; dQ: 128 keys / 16
    products = 2 * head_dim // 16 * (1 + ahead) + 2 * 64 // 16 + 128 // 16
    assert kernel["wgmma"] == products
    # keys, values, queries, dO: 64 columns at a time; two vectors
    assert kernel["loads"] == 4 * head_dim // 64 + 2
    assert kernel["stores"] >= 2
    # a tile of dQ for 256 threads, 4 numbers at once; once more after the loop, if a step ahead
    assert kernel["v4"] == (0 if rung == "unsummed" else 64 * head_dim // 256 // 4 * (1 + ahead))
    assert kernel["atomics"] == kernel["v4"]
    assert kernel["shared"] <= SHARED_LIMIT
    assert kernel["spills"] <= 8 and not kernel["serialized"]
    assert kernel["overwritten"] == 0
    assert kernel["setmaxnreg"] >= 2
    assert kernel["registers"] * 384 <= 65536


@pytest.mark.interpreter
def test_exercise_1_rounded_one_by_one(compiled):
    (pairs, singles), (fewer, one_by_one) = compiled["from p"], compiled["from weights"]
    # 32 weights a thread: 16 pairs, or each on its own
    assert (singles, one_by_one, pairs - fewer) == (0, 32, 16)


def test_exercise_1_less_exact():
    p, dp = torch.rand(64, 64, dtype=torch.float64), torch.randn(64, 64, dtype=torch.float64)
    want = p * (dp - dp.mean())
    error = [(x * (dp - dp.mean())).bfloat16().sub(want).abs().mean() for x in (p, p.bfloat16())]
    assert error[1] > 1.2 * error[0]


@pytest.mark.interpreter
@pytest.mark.parametrize("head_dim", WIDE)
def test_exercise_2_half_the_sum(compiled, head_dim):
    # of 256 threads each: the sums, S or P, dP, and P or dS in 16 bits
    sums, scores = 2 * 256 * head_dim // 256, 256 * 64 // 256
    registers = sums + scores + scores + scores // 2
    assert sums == 256 if head_dim == 128 else registers == 288
    assert registers > 240 and registers * 256 > 65536 and 2 * 256 * 128 == 65536
    assert compiled[head_dim]["spills"] > 1000
    # keys and values, slots of queries and dO, two tiles of dS
    slots = {128: 2, 64: 4}[head_dim]
    parts = 2 * 256 * head_dim * 2, slots * 2 * 64 * head_dim * 2, 2 * 256 * 64 * 2
    assert [part >> 10 for part in parts] == [head_dim, 64, 64]
    # beside them log-sum-exp and delta, a few barriers, and what tells warps their role
    assert 0 <= compiled[head_dim]["shared"] - sum(parts) <= 4096
    assert (compiled[head_dim]["shared"] <= SHARED_LIMIT) == (head_dim == 64)


def added_in_turn(order, room, keys, tiles, seed):
    """Sums of tiles to which programs, started in `order`, add in the order of their keys.

    Returns:
        The sums, or None if all that run wait for one that cannot start.
    """
    pick, terms = random.Random(seed), torch.rand(keys, tiles, generator=torch.manual_seed(0))
    sums, turn, running, todo = torch.zeros(tiles), [0] * tiles, {}, [*order]
    while todo or running:
        while todo and len(running) < room:
            running[todo.pop(0)] = 0
        ready = [key for key, tile in running.items() if turn[tile] == key]
        if not ready:
            return None
        key = pick.choice(ready)
        tile = running[key]
        sums[tile] += terms[key, tile]
        turn[tile] += 1
        running[key] += 1
        if running[key] == tiles:
            del running[key]
    return sums


@pytest.mark.parametrize("room", [1, 3, 12])
def test_exercise_3_the_order_of_keys(room):
    first = added_in_turn(range(12), room, 12, 5, seed=0)
    for seed in range(1, 6):
        assert torch.equal(added_in_turn(range(12), room, 12, 5, seed), first)
        backwards = added_in_turn(range(11, -1, -1), room, 12, 5, seed)
        assert torch.equal(backwards, first) if room == 12 else backwards is None


def emulation(lecture):
    """Stands in for the large kernel: its tiles, masks and order of dQ, in PyTorch."""

    def launch(k, v, q, do, lse, delta, dk, dv, dq, *numbers, grid):
        k, v, q, do, lse, delta, dk, dv = (x.base for x in (k, v, q, do, lse, delta, dk, dv))
        heads, shared_by, n_queries, n_keys, together, scale, scale_log2, _, mask, *_ = numbers
        head_dim, tiles, key_tiles = q.shape[3], -(-n_queries // 64), -(-n_keys // 128)
        assert (mask == "none") == (n_keys % 128 == 0 and mask != "causal")
        done, total = set(), dq.view(-1, 64 * head_dim)
        for pid in range(grid):
            head = pid // (together * key_tiles) * together + pid % together
            start_n = pid // together % key_tiles * 128
            done.add((head, start_n))
            first = max(start_n + n_queries - n_keys, 0) // 64 if mask == "causal" else 0
            b, kv_head = divmod(head, heads // shared_by)
            keys = torch.arange(start_n, min(start_n + 128, n_keys))
            at = b, kv_head, keys
            sums = torch.zeros(2, len(keys), head_dim)
            for h, tile in itertools.product(range(shared_by), range(first, tiles)):
                q_head = head * shared_by + h
                rows = torch.arange(tile * 64, min(tile * 64 + 64, n_queries))
                x, dx = q[b, q_head % heads, rows].float(), do[b, q_head % heads, rows].float()
                s = k[at].float() @ x.T
                if mask == "causal":
                    seen = keys[:, None] <= rows[None, :] + n_keys - n_queries
                    s = s.masked_fill(~seen, -math.inf)
                p = torch.exp2(s * scale_log2 - lse[q_head, rows])
                ds = (p * (v[at].float() @ dx.T - delta[q_head, rows])).to(q.dtype)
                sums += torch.stack([ds.float() @ x, p.to(q.dtype).float() @ dx])
                part = torch.zeros(64, head_dim)
                part[: len(rows)] = ds.float().T @ k[at].float()
                # thread by thread: warps of 16 rows, two rows and two columns in each
                part = part.view(4, 2, 8, 2, head_dim // 16, 4, 2).permute(3, 4, 0, 2, 5, 1, 6)
                total[q_head * tiles + tile] += part.reshape(-1)
            dk[at], dv[at] = (sums[0] * scale).to(dk.dtype), sums[1].to(dv.dtype)
        assert len(done) == grid

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launch(*arguments, grid=grid[0])

    return Kernel()


@pytest.mark.interpreter
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2), heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    n_queries=st.integers(1, 200), n_keys=st.integers(1, 300), head_dim=st.sampled_from([64, 128]),
    causal=st.booleans(),
)  # fmt: skip
def test_before_and_after(lecture, batch, heads, n_queries, n_keys, head_dim, causal):
    """All but the large kernel itself, which an emulation replaces."""
    x = inputs((batch, heads[0], n_queries, head_dim), (batch, heads[1], n_keys, head_dim))
    kernel, lecture.hopper_attention_backward_kernel = (
        lecture.hopper_attention_backward_kernel, emulation(lecture),
    )  # fmt: skip
    try:
        agrees(lecture, *x, causal=causal, scale=0.1)
    finally:
        lecture.hopper_attention_backward_kernel = kernel


def test_the_check_needs_a_gpu(lecture):
    with pytest.raises(RuntimeError, match="no interpreter"):
        lecture.check("cpu")


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
    yield "another device", ValueError, lambda q: ((q, q, q.to("meta")), {})


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    arguments, options = make(torch.ones(2, 6, 8, 64, dtype=torch.float16, device=device))
    with pytest.raises(error, match="hopper_attention takes"):
        lecture.hopper_attention(*arguments, **options)


@pytest.mark.gpu
def test_another_gpu_is_refused(lecture, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    q = torch.ones(1, 1, 8, 64, dtype=torch.float16, device="cuda")
    with pytest.raises(ValueError, match="needs a Hopper GPU"):
        lecture.hopper_attention(q, q, q)


def inputs(shape, kv_shape=None, dtype=torch.float16, seed=0):
    """Queries, keys, values and the gradient of the output."""
    torch.manual_seed(seed)
    device = "cuda" if HOPPER else "cpu"
    q, do = torch.randn(2, *shape, device=device).to(dtype)
    return q, *torch.randn(2, *(kv_shape or shape), device=device).to(dtype), do


def exactly(lecture, q, k, v, do, **options):
    """Output, log-sum-exp and the three gradients, from float64."""
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, lse = lecture.hopper_attention_reference(*leaves, **options)
    return out.detach(), lse.detach().float(), torch.autograd.grad(out, leaves, do.double())


def agrees(lecture, q, k, v, do, causal=False, scale=None):
    """Checks the gradients for the exact output, and returns them."""
    n_queries, head_dim = q.shape[2:]
    scale = head_dim**-0.5 if scale is None else scale
    out, lse, want = exactly(lecture, q, k, v, do, causal=causal, scale=scale)
    got = lecture.hopper_attention_backward(
        do, q, k, v, out.to(q.dtype).contiguous(), lse, causal, scale
    )
    eps = torch.finfo(q.dtype).eps
    # delta is that of a rounded output, and where few keys count, dS is no larger than its error
    delta = eps * scale * head_dim**0.5 * out.abs().max().item()
    more = delta * k.abs().max().item(), delta * q.abs().max().item() * n_queries**0.5, 0.0
    for name, x, y, slack in zip(("dq", "dk", "dv"), got, want, more, strict=True):
        error = (x.double() - y).abs().max().item()
        assert error <= eps * (y.abs().max().item() + 0.01) + slack, f"{name}: {error}"
    return got


@on_hopper
@every_dtype
@both_kinds
@both_sizes
@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 1000, 4097])
def test_lengths(lecture, n, head_dim, causal, dtype):
    agrees(lecture, *inputs((1, 2, n, head_dim), dtype=dtype), causal=causal)


@on_hopper
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    n_queries=st.integers(1, 900), n_keys=st.integers(1, 900), head_dim=st.sampled_from([64, 128]),
    causal=st.booleans(), scale=st.floats(0.01, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(lecture, batch, heads, n_queries, n_keys, head_dim, causal, scale, seed):
    shapes = (batch, heads[0], n_queries, head_dim), (batch, heads[1], n_keys, head_dim)
    agrees(lecture, *inputs(*shapes, seed=seed), causal=causal, scale=scale)


@on_hopper
@both_kinds
@both_sizes
def test_with_its_forward(lecture, load, causal, head_dim):
    """The way of a project: both files side by side, and autograd."""
    load(Path(__file__).parents[2] / "examples/attention/hopper_attention.py")
    q, k, v, do = inputs((2, 6, 700, head_dim), (2, 2, 900, head_dim), torch.bfloat16)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = lecture.hopper_attention(*leaves, causal=causal)
    want_out, _, want = exactly(lecture, q, k, v, do, causal=causal)
    torch.testing.assert_close(out.double(), want_out, atol=2**-7 * 4, rtol=0)
    for x, y in zip(torch.autograd.grad(out, leaves, do), want, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2**-7 * y.abs().max().item(), rtol=0)


def off_16_bytes(x):
    """`x`, contiguous, at an address of which 16 is no divisor."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


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


every_layout = pytest.mark.parametrize("layout", [pytest.param(f, id=n) for n, f in layouts()])


@on_hopper
@every_layout
def test_layouts(lecture, layout):
    q, k, v, do = map(layout, inputs((2, 3, 170, 64)))
    agrees(lecture, *map(lecture._for_descriptor, (q, k, v)), do, causal=True)


@pytest.fixture
def planned(lecture, monkeypatch):
    """A list to which launches, which do nothing, add k, v, q and dO of their descriptors."""
    found = []
    monkeypatch.setattr(lecture, "_launch", lambda x: found.extend(y.base for y in x[1][2][:4]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return found


class Elsewhere(torch.Tensor):
    """A tensor of the host that says that it lies on a GPU."""

    is_cuda = True


@pytest.mark.interpreter
@every_layout
def test_only_what_a_descriptor_refuses_is_copied(lecture, planned, layout):
    given = [layout(x).as_subclass(Elsewhere) for x in torch.randn(4, 2, 3, 70, 64).half()]
    q, k, v, do = given
    leaves = [x.requires_grad_() for x in (q, k, v)]
    found = lecture.hopper_attention(
        *leaves, forward=lambda q, *_, **__: (torch.zeros(q.shape).half(), torch.zeros(q.shape[:3]))
    )
    torch.autograd.grad(found, leaves, do)
    fits = q.data_ptr() % 16 == 0 and q.stride(3) == 1 and q.stride(2) >= 64
    fits &= all(step % 8 == 0 for step in q.stride()[:3])
    for x, y in zip((k, v, q), planned[:3], strict=True):
        assert (x.data_ptr() == y.data_ptr()) == fits and torch.equal(x, y)
        assert fits or y.stride() == torch.empty(y.shape).stride()
    assert torch.equal(planned[3], do)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("n_queries", "use"),
    [
        (70, lambda out: torch.cat([torch.zeros(3).half(), out.flatten()])),
        (1, lambda out: torch.einsum("bhqd,bhkd->bhqk", out, torch.ones(2, 4, 9, 64).half())),
    ],
    ids=["behind a cat", "one query, einsum"],
)
def test_gradients_as_autograd_makes_them(lecture, planned, n_queries, use):
    x = torch.ones(3, 2, 4, n_queries, 64).half().requires_grad_()
    out = torch.zeros(2, 4, n_queries, 64).half(), torch.zeros(2, 4, n_queries)
    given = False, 0.1, lambda *_, **__: out
    used = use(lecture._HopperAttention.apply(*x, *given))
    (used * torch.randn_like(used)).sum().backward()
    assert len(planned) == 4


@on_hopper
def test_a_gradient_of_any_strides(lecture):
    """Such as that of `out.sum()`, one number for all."""
    q, k, v, do = inputs((2, 3, 170, 128))
    agrees(lecture, q, k, v, torch.ones((), device="cuda").half().expand_as(do))
    agrees(lecture, q, k, v, do.mT.contiguous().mT)


@on_hopper
@both_kinds
@both_sizes
def test_keys_and_values_alike_to_the_bit(lecture, causal, head_dim):
    q, k, v, do = inputs((2, 16, 1500, head_dim), dtype=torch.bfloat16)
    out, lse, _ = exactly(lecture, q, k, v, do, causal=causal)
    arguments = (do, q, k, v, out.bfloat16().contiguous(), lse, causal, head_dim**-0.5)
    dq, dk, dv = lecture.hopper_attention_backward(*arguments)
    for _ in range(20):
        again = lecture.hopper_attention_backward(*arguments)
        assert torch.equal(again[1], dk) and torch.equal(again[2], dv)
        # a sum in another order
        assert (again[0] - dq).abs().max() <= 2**-7 * dq.abs().max()


@on_hopper
@both_kinds
@every_dtype
@both_sizes
def test_no_less_exact_than_torch(lecture, causal, dtype, head_dim):
    """Each gradient's error beside that of the flash backend, which sums dQ in memory as well."""
    q, k, v, do = inputs((1, 4, 2048, head_dim), dtype=dtype)
    _, lse, want = exactly(lecture, q, k, v, do, causal=causal)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
    peer = torch.autograd.grad(out, leaves, do)
    out = out.detach().contiguous()
    ours = lecture.hopper_attention_backward(do, q, k, v, out, lse, causal, head_dim**-0.5)
    for x, y, exact in zip(ours, peer, want, strict=True):
        error, allowed = ((z.double() - exact).square().mean().sqrt() for z in (x, y))
        assert error <= 1.1 * allowed


@on_hopper
@both_kinds
@both_sizes
@pytest.mark.parametrize("size", [30, 1000])
def test_large_scores_do_not_overflow(lecture, causal, head_dim, size):
    q, k, v, do = inputs((1, 1, 330, head_dim), dtype=torch.bfloat16)
    out, lse, _ = exactly(lecture, q * size, k, v, do, causal=causal)
    arguments = (out.bfloat16().contiguous(), lse, causal, head_dim**-0.5)
    grads = lecture.hopper_attention_backward(do, q * size, k, v, *arguments)
    assert all(x.isfinite().all() for x in grads)


@on_hopper
@both_sizes
@pytest.mark.parametrize(("n_queries", "n_keys"), [(300, 1), (513, 200), (1000, 872)])
def test_rows_that_see_no_key(lecture, n_queries, n_keys, head_dim):
    x = inputs((1, 2, n_queries, head_dim), (1, 2, n_keys, head_dim))
    dq, *_ = agrees(lecture, *x, causal=True)
    assert not dq[:, :, : n_queries - n_keys].any()


@on_hopper
@both_sizes
def test_what_lies_behind_a_head_does_not_matter(lecture, head_dim):
    q, k, v, do = inputs((1, 2, 200, head_dim))
    before = agrees(lecture, q, k, v, do)
    out, lse, _ = exactly(lecture, q, k, v, do)
    k[:, 1], v[:, 1], q[:, 1] = float("nan"), float("inf"), float("nan")
    arguments = (out.half().contiguous(), lse, False, head_dim**-0.5)
    after = lecture.hopper_attention_backward(do, q, k, v, *arguments)
    for x, y in zip(before[1:], after[1:], strict=True):
        assert torch.equal(x[:, 0], y[:, 0])
    assert after[0][:, 0].isfinite().all()


@pytest.mark.parametrize(
    ("shape", "kv_shape"),
    [((0, 2, 5, 64), (0, 2, 5, 64)), ((2, 0, 5, 64), (2, 0, 5, 64)), ((2, 2, 0, 64), (2, 1, 9, 64)),
     ((2, 2, 5, 64), (2, 2, 0, 64))],
)  # fmt: skip
def test_nothing(lecture, shape, kv_shape):
    q, k, v, do = inputs(shape, kv_shape)
    lse = torch.empty(shape[:3], device=q.device)
    grads = lecture.hopper_attention_backward(do, q, k, v, torch.empty_like(q), lse, False, 0.1)
    for x, y in zip(grads, (q, k, v), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype and not x.any()


@on_hopper
def test_differentiable_once(lecture):
    q, k, v, do = inputs((1, 1, 64, 64))
    out, lse, _ = exactly(lecture, q, k, v, do)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    found = lecture.hopper_attention(*leaves, forward=lambda *_, **__: (out.half(), lse))
    grads = torch.autograd.grad(found, leaves, do, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        grads[0].sum().backward()


@on_hopper
def test_two_streams_at_once(lecture):
    q, k, v, do = inputs((2, 16, 1111, 64))
    out, lse, _ = exactly(lecture, q, k, v, do, causal=True)
    arguments = (do, q, k, v, out.half().contiguous(), lse, True, 0.125)
    want = lecture.hopper_attention_backward(*arguments)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            results.append(lecture.hopper_attention_backward(*arguments))
    torch.cuda.synchronize()
    for _, dk, dv in results:
        assert torch.equal(dk, want[1]) and torch.equal(dv, want[2])


if __name__ == "__main__":
    print(json.dumps(compile_all()))
