"""flash_attention, differentiable: gradients against float64, what compiles, what is refused.

Without a GPU the kernels run in the interpreter; every variant is compiled for sm_90 as well, by
this file run as a script, and its machine code is looked at.
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
from hypothesis import given, settings

from tests.kernels.changed import changed_lecture
from tests.kernels.sm_90 import SHARED_LIMIT, facts, launched, pretend, run_as_script

HEAD_DIMS = [32, 64, 128, 256]
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
both_kinds = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])

# head_dim, causal, queries, keys
VARIANTS = [
    (head_dim, causal, *rows)
    for head_dim, causal, rows in itertools.product(
        HEAD_DIMS, (False, True), ((1024, 1024), (300, 1111))
    )
]
# exercise 3: the kernel for keys adds its share of dQ as well
FUSED = {
    "    q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_ptr, delta_ptr, n_heads,\n"
    "    n_queries, n_keys, padded, scale, scale_log2, FLOAT": (
        "    q_desc, k_desc, v_desc, do_desc, dq_desc, dk_desc, dv_desc, lse_ptr, delta_ptr,\n"
        "    n_heads, n_queries, n_keys, padded, scale, scale_log2, FLOAT"
    ),
    "        dk = tl.dot(ds.to(q.dtype), q, dk, out_dtype=FLOAT)\n": (
        "        dk = tl.dot(ds.to(q.dtype), q, dk, out_dtype=FLOAT)\n"
        "        dq = tl.dot(ds.to(q.dtype).T, k, out_dtype=FLOAT) * scale\n"
        "        at, dq = [b, h, start_m, 0], dq.reshape(1, 1, BLOCK_M, HEAD_DIM)\n"
        "        dq_desc.atomic_add(at, dq)\n"
    ),
}
# for the interpreter, which lacks that, and runs one program after the other
IN_TURN = {"dq_desc.atomic_add(at, dq)": "dq_desc.store(at, dq_desc.load(at) + dq)"}


def launch_fused(lecture, q, k, v, do, stats, dq, dk, dv, causal, scale):
    common = stats, (scale, scale * math.log2(math.e)), causal, (64, 128, 8, 2)
    tensors = q, k, v, do, dq, dk, dv
    lecture._launch(lecture.flash_attention_dkdv_kernel, "mnnmmnn", tensors, *common)


def compile_all(variants=VARIANTS) -> list:
    """Compiles each variant's three kernels for sm_90 without a GPU."""
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import flash_attention_backward as lecture

    names = ["flash_attention_kernel", "flash_attention_dq_kernel", "flash_attention_dkdv_kernel"]
    found = launched(lecture, *names)
    for head_dim, causal, queries, keys in variants:
        q = torch.empty(2, 4, queries, head_dim, dtype=torch.bfloat16)
        k, lse = q.new_empty(2, 4, keys, head_dim), torch.empty(2, 4, -(-queries // 128) * 128)
        lecture.flash_attention_forward(q, k, k, q, lse, causal, 0.1)
        lecture.flash_attention_backward(q, q, k, k, q, lse, q, k, k, causal, 0.1)
    found = [facts(kernel) for kernel in found]
    q, dq, lse = q.new_empty(2, 4, 1024, 128), torch.empty(2, 4, 1024, 128), torch.empty(2, 4, 1024)
    with tempfile.TemporaryDirectory() as folder:
        fused = changed_lecture(lecture, FUSED, folder)
        twice = launched(fused, "flash_attention_dkdv_kernel")
        for causal in (False, True):
            launch_fused(fused, q, q, q, q, (lse, lse), dq, q, q, causal, 0.1)
    triples = zip(*(found[i::3] for i in range(3)), strict=True)
    return [*triples, [facts(kernel) for kernel in twice]]


@pytest.fixture(scope="module")
def compiled() -> dict:
    return dict(zip([*VARIANTS, "fused"], run_as_script(__file__), strict=True))


@pytest.mark.interpreter  # a GPU's tests compile and run them
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_machine_code(compiled, variant):
    for kernel in compiled[variant]:
        assert kernel["shared"] <= SHARED_LIMIT
        # a bound on registers, faster all the same; and two products at once where head_dim is 256
        allowed = {(64, True): 512, (256, True): 64}.get(variant[:2], 0)
        assert kernel["spills"] <= allowed and not kernel["serialized"]
        assert kernel["atomics"] == 0
        assert kernel["wgmma"] > 0 and kernel["loads"] > 0


def test_what_is_read_past_the_end_was_written(lecture):
    """Rows of lse and delta behind the last query are there for the tiles of dk and dv."""
    for forward, dq, dkdv in lecture.TILES.values():
        assert forward[0] % dkdv[0] == 0 and dq[0] % dkdv[0] == 0
        assert all(lecture.PAD % tile[0] == 0 for tile in (forward, dq, dkdv))


def inputs(shape, n_keys=None, device="cpu", dtype=torch.float16, seed=0):
    """Queries, keys, values and the gradient of the output."""
    torch.manual_seed(seed)
    batch, heads, n_queries, head_dim = shape
    rows = (n_queries, n_keys or n_queries, n_keys or n_queries, n_queries)
    return [torch.randn(batch, heads, n, head_dim, device=device).to(dtype) for n in rows]


def gradients(attend, q, k, v, do, **options):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, do)]


def agrees(lecture, q, k, v, do, *, within=1.0, **options):
    """Checks output and gradients against float64; returns them."""
    got = gradients(lecture.flash_attention, q, k, v, do, **options)
    wide = [x.double() for x in (q, k, v, do)]
    want = gradients(lecture.flash_attention_reference, *wide, **options)
    rounding = torch.finfo(q.dtype).eps if q.dtype != torch.float64 else 1e-5
    # delta, a sum over do * out, carries the rounding of out; where few keys share the weights,
    # dp - delta is small, and that rounding is what is left of it
    delta = (wide[3] * want[0]).norm(dim=-1).max() * options.get("scale", q.shape[-1] ** -0.5) / 4
    cancelled = {"dq": delta * wide[1].abs().max(), "dk": delta * wide[0].abs().max()}
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        atol = within * rounding * (y.abs().max() + cancelled.get(name, 0.0) + 0.01).item()
        torch.testing.assert_close(
            x.double(), y, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    return got


@both_kinds
def test_exercise_1_a_sink(lecture, device, causal):
    q, k, v, do = inputs((1, 2, 70, 32), device=device, dtype=torch.float64)
    sink, scale = torch.randn(2, 1, 1, device=device).double().requires_grad_(), 0.2
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    scores = leaves[0] @ leaves[1].mT * scale
    seen = torch.ones_like(scores, dtype=torch.bool).tril()
    scores = scores.masked_fill(~seen, -1e30) if causal else scores
    p0, p = torch.cat([sink.expand(1, 2, 70, 1), scores], dim=-1).softmax(-1).split([1, 70], -1)
    want = torch.autograd.grad(p @ leaves[2], (*leaves, sink), do)
    # past the last query infinity, which makes a weight 0
    out, lse = (p @ v).detach(), lecture._room_for_lse(q).fill_(torch.inf)
    # to base 2, as the forward leaves it
    lse[..., :70] = (sink - p0.log()).detach()[..., 0] / math.log(2)
    grads = [torch.empty_like(x) for x in (q, k, v)]
    lecture.flash_attention_backward(do, q, k, v, out, lse, *grads, causal, scale)
    delta = (do * out).sum(-1, keepdim=True)
    grads.append(-(p0.detach() * delta).sum(dim=(0, 2), keepdim=True)[0])
    torch.testing.assert_close(grads, [*want], rtol=1e-6, atol=1e-6)


def test_exercise_2_dropout_on_the_weights():
    q, k, v, do = inputs((1, 2, 40, 32), 50, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    p = (q @ k.mT * 0.2).softmax(dim=-1)
    mask = (torch.rand_like(p) > 0.3) / 0.7
    out = (p * mask) @ v
    want = torch.autograd.grad(out, leaves, do)
    dp = do @ v.mT * mask
    delta = (do * out).sum(-1, keepdim=True)
    torch.testing.assert_close(delta, (p * dp).sum(-1, keepdim=True))
    ds = p * (dp - delta) * 0.2
    torch.testing.assert_close((ds @ k, ds.mT @ q, (p * mask).mT @ do), want)


@pytest.mark.interpreter
def test_exercise_3_fused_again(lecture, changed, compiled):
    for kernel in compiled["fused"]:
        assert kernel["registers"] == 255 and kernel["spills"] > 0
    assert 64 * 128 // 256 == 32  # registers of dq a thread
    q, k, v, do = inputs((1, 2, 140, 32))
    wide = (x.double() for x in (q, k, v, do))
    out, *want = gradients(lecture.flash_attention_reference, *wide, causal=True, scale=0.1)
    lse, delta = lecture._room_for_lse(q), lecture._room_for_lse(q).zero_()
    lecture.flash_attention_forward(q, k, v, torch.empty_like(q), lse, True, 0.1)
    delta[..., :140] = (do * out).sum(-1)
    dq, dk, dv = torch.zeros(1, 2, 140, 32), torch.empty_like(k), torch.empty_like(v)
    launch_fused(changed(FUSED | IN_TURN), q, k, v, do, (lse, delta), dq, dk, dv, True, 0.1)
    for x, y in zip((dq, dk, dv), want, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-3 * y.abs().max().item())


@every_dtype
@both_kinds
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 129])
def test_lengths(lecture, device, n, head_dim, causal, dtype):
    agrees(lecture, *inputs((1, 1, n, head_dim), device=device, dtype=dtype), causal=causal)


@both_kinds
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 200), (200, 1), (65, 193), (140, 33)])
def test_other_keys(lecture, device, n_queries, n_keys, causal):
    agrees(lecture, *inputs((1, 2, n_queries, 32), n_keys, device), causal=causal)


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 2), heads=st.integers(1, 2), n_queries=st.integers(1, 200),
    n_keys=st.integers(1, 200), head_dim=st.sampled_from(HEAD_DIMS[:2]), causal=st.booleans(),
    scale=st.floats(0.01, 0.5), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(lecture, device, batch, heads, n_queries, n_keys, head_dim, causal, scale, seed):
    shape = (batch, heads, n_queries, head_dim)
    # one key: gradients are 0 but for rounding
    x = inputs(shape, n_keys, device, seed=seed)
    agrees(lecture, *x, causal=causal, scale=scale, within=2.0)


@pytest.mark.interpreter
@both_kinds
def test_gradcheck(lecture, causal):
    x = inputs((1, 1, 3, 32), 4, dtype=torch.float64)
    leaves = [y.requires_grad_() for y in x[:3]]
    attend = lambda *leaves: lecture.flash_attention(*leaves, causal=causal)  # noqa: E731
    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


@pytest.mark.interpreter
@both_kinds
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_float64_shows_no_error_of_method(lecture, head_dim, causal):
    agrees(lecture, *inputs((1, 2, 70, head_dim), 90, dtype=torch.float64), causal=causal)


def layouts():
    yield "transposed", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "head_dim not adjacent", lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)
    yield "every second token", lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2]
    yield "odd row stride", lambda x: torch.cat([x, x[..., :1]], dim=3)[..., :-1]
    yield "one head for all", lambda x: x[:, :1].expand_as(x)
    yield "one token for all", lambda x: x[:, :, :1].expand_as(x)
    yield "one number for all", lambda x: x[:1, :1, :1, :1].expand_as(x)

    def misaligned(x):
        buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
        return buffer[1:].view(x.shape).copy_(x)

    yield "misaligned", misaligned


@pytest.mark.parametrize("layout", [pytest.param(f, id=name) for name, f in layouts()])
def test_layouts(lecture, device, layout):
    x = inputs((2, 3, 70, 32), device=device)
    agrees(lecture, *map(layout, x), causal=True, within=2.0)


def test_the_gradient_of_a_sum(lecture, device):
    """Arrives with strides of 0."""
    q, k, v, _ = inputs((1, 2, 66, 32), device=device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    lecture.flash_attention(*leaves).sum().backward()
    # the weights of a query sum to 1
    assert v.grad.double().sum().item() == pytest.approx(2 * 66 * 32, rel=1e-3)
    assert q.grad.shape == q.shape and k.grad.shape == k.shape


@both_kinds
def test_runs_are_alike_to_the_bit(lecture, device, causal):
    x = inputs((1, 2, 150, 64), device=device)
    first = gradients(lecture.flash_attention, *x, causal=causal)
    again = gradients(lecture.flash_attention, *x, causal=causal)
    assert all(map(torch.equal, first, again))


def test_inputs_stay_as_they_are(lecture, device):
    x = inputs((1, 1, 100, 32), device=device)
    before = [y.clone() for y in x]
    gradients(lecture.flash_attention, *x)
    assert all(map(torch.equal, x, before))


@both_kinds
@pytest.mark.parametrize("mean", [-6.0, 6.0])
def test_extreme_scores(lecture, device, causal, mean):
    """Log-sum-exps far from 0 on both sides; keys past the end have the score 0."""
    q, k, v, do = inputs((1, 1, 70, 64), 100, device)
    q, k = 0.3 * q + abs(mean), 0.3 * k + mean
    agrees(lecture, q, k, v, do, causal=causal, within=16.0)


@pytest.mark.parametrize(("n_queries", "n_keys"), [(100, 1), (130, 60), (70, 66)])
def test_rows_that_see_no_key(lecture, device, n_queries, n_keys):
    x = inputs((1, 2, n_queries, 32), n_keys, device)
    out, dq, dk, dv = agrees(lecture, *x, causal=True)
    none = n_queries - n_keys
    assert not out[:, :, :none].any() and not dq[:, :, :none].any()
    assert not any(y.isnan().any() for y in (dk, dv))


def test_the_future_does_not_matter(lecture, device):
    q, k, v, do = inputs((1, 2, 200, 32), device=device)
    before = gradients(lecture.flash_attention, q, k, v, do, causal=True)
    # tokens from 128 on change; gradients of earlier queries do not
    k[:, :, 128:], v[:, :, 128:] = 3.0, 5.0
    after = gradients(lecture.flash_attention, q, k, v, do, causal=True)
    assert torch.equal(before[1][:, :, :128], after[1][:, :, :128])


@pytest.mark.parametrize("add_dq", [False, True])
@both_kinds
def test_the_first_kernel(lecture, device, causal, add_dq):
    q, k, v, do = inputs((1, 2, 100, 64), 130, device)
    out, lse = torch.empty_like(q), lecture._room_for_lse(q)
    lecture.flash_attention_forward(q, k, v, out, lse, causal, 0.125)
    got = lecture.first_backward(do, q, k, v, out, lse, causal, 0.125, add_dq)
    wide = [x.double() for x in (q, k, v, do)]
    want = gradients(lecture.flash_attention_reference, *wide, causal=causal)[1:]
    if not add_dq:
        assert not got[0].any()
    for x, y in list(zip(got, want, strict=True))[0 if add_dq else 1 :]:
        torch.testing.assert_close(x.double(), y, atol=2e-3 * y.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("shape", "n_keys"),
    [((0, 2, 5, 64), 5), ((2, 0, 5, 64), 5), ((2, 2, 0, 64), 5), ((2, 2, 5, 64), 0)],
)
def test_nothing(lecture, device, shape, n_keys):
    q = torch.ones(shape, dtype=torch.float16, device=device)
    k = torch.ones(*shape[:2], n_keys, shape[3], dtype=torch.float16, device=device)
    out, dq, dk, dv = gradients(lecture.flash_attention, q, k, k, torch.ones_like(q))
    assert out.shape == dq.shape == q.shape and dk.shape == dv.shape == k.shape
    assert not any(x.any() for x in (out, dq, dk, dv))


def refusals():
    yield "float32", TypeError, lambda q: ((q.float(),) * 3, {})
    yield "mixed", TypeError, lambda q: ((q, q.bfloat16(), q), {})
    yield "lengths of k and v", ValueError, lambda q: ((q, q, q[:, :, 1:]), {})
    yield "heads", ValueError, lambda q: ((q, q[:, :1], q[:, :1]), {})
    yield "head_dims", ValueError, lambda q: ((q, q[..., :32], q[..., :32]), {})
    yield "three dimensions", ValueError, lambda q: ((q[0],) * 3, {})
    yield "head_dim", ValueError, lambda q: ((q[..., :48],) * 3, {})
    yield "scale 0", ValueError, lambda q: ((q, q, q), {"scale": 0.0})
    yield "scale NaN", ValueError, lambda q: ((q, q, q), {"scale": float("nan")})
    yield "another device", ValueError, lambda q: ((q, q, q.to("meta")), {})


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    arguments, options = make(torch.ones(1, 2, 8, 64, dtype=torch.float16, device=device))
    with pytest.raises(error, match="flash_attention takes"):
        lecture.flash_attention(*arguments, **options)


def test_no_second_derivative(lecture, device):
    q, k, v, do = inputs((1, 1, 8, 32), device=device)
    q.requires_grad_()
    (dq,) = torch.autograd.grad(lecture.flash_attention(q, k, v), q, do, create_graph=True)
    with pytest.raises(RuntimeError):
        dq.sum().backward()


@pytest.mark.gpu
def test_float64_is_refused_on_a_gpu(lecture):
    q = torch.ones(1, 1, 8, 64, dtype=torch.float64, device="cuda")
    with pytest.raises(TypeError, match="float16 or bfloat16"):
        lecture.flash_attention(q, q, q)


@pytest.mark.gpu
@every_dtype
@both_kinds
@pytest.mark.parametrize(
    ("shape", "n_keys"),
    [((2, 5, 4096, 128), 4096), ((1, 9, 1000, 64), 4097), ((1, 3, 4097, 256), 999),
     ((3, 30, 1777, 32), 1777)],
)  # fmt: skip
def test_large(lecture, device, shape, n_keys, causal, dtype):
    agrees(lecture, *inputs(shape, n_keys, device, dtype), causal=causal)


@pytest.mark.gpu
@every_dtype
@both_kinds
def test_no_less_exact_than_torch(lecture, device, causal, dtype):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(q, k, v):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    x = inputs((1, 4, 2048, 128), device=device, dtype=dtype)
    wide = [y.double() for y in x]
    want = gradients(lecture.flash_attention_reference, *wide, causal=causal)
    ours = gradients(lecture.flash_attention, *x, causal=causal)
    for y, other, mine in zip(want, gradients(sdpa, *x), ours, strict=True):
        allowed, error = ((z.double() - y).square().mean().sqrt() for z in (other, mine))
        assert error <= 1.1 * allowed


@pytest.mark.gpu
@both_kinds
def test_runs_are_alike_on_a_full_gpu(lecture, device, causal):
    x = inputs((2, 16, 1500, 128), device=device, dtype=torch.bfloat16)
    first = gradients(lecture.flash_attention, *x, causal=causal)
    for _ in range(20):
        again = gradients(lecture.flash_attention, *x, causal=causal)
        assert all(map(torch.equal, first, again))


@pytest.mark.gpu
def test_two_streams_at_once(lecture, device):
    x = inputs((2, 16, 1111, 128), device=device)
    want = gradients(lecture.flash_attention, *x, causal=True)
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    torch.cuda.synchronize()
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            results.append(gradients(lecture.flash_attention, *x, causal=True))
    torch.cuda.synchronize()
    assert all(all(map(torch.equal, result, want)) for result in results)


@pytest.mark.gpu
def test_more_than_2_31_elements(lecture, device):
    """The last of 33 heads of 2**20 tokens lies past 2**31 elements; its values have gradients."""
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of free memory")
    # keys alike: each of 2**20 values gets 1/2**20 of the gradients of 64 queries
    q = torch.zeros(1, 33, 64, 64, dtype=torch.bfloat16, device=device)
    k = torch.zeros(1, 33, 2**20, 64, dtype=torch.bfloat16, device=device)
    v = torch.zeros_like(k).requires_grad_()
    do = torch.zeros_like(q)
    do[0, -1] = 2.0**14
    (dv,) = torch.autograd.grad(lecture.flash_attention(q, k, v), v, do)
    assert (dv[0, -1] == 1).all() and not dv[0, :-1].any()


if __name__ == "__main__":
    print(json.dumps(compile_all()))
