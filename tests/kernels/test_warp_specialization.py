"""role_attention against float64, what its compiled roles contain, and what it refuses.

Without a GPU the kernel runs in the interpreter, where roles change nothing; it is compiled for
sm_90 as well, by this file run as a script.
"""

import gc
import itertools
import json
import re
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.sm_90 import facts, pretend, run_as_script

OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)  # leaves dead barriers
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
both_kinds = pytest.mark.parametrize("roles", [False, True], ids=["alike", "roles"])


def compile_all() -> list:
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import warp_specialization as lecture

    found = []

    def compiled(q, roles, invalidate, **options):
        return lecture.role_attention_kernel.warmup(
            q, q, q, q, 2, 256, 0.1, D=q.shape[3], BLOCK_M=128, BLOCK_N=128, ROLES=roles,
            INVALIDATE=invalidate, num_warps=4 if roles else 8, num_stages=2, grid=(4,),
            **options)  # fmt: skip

    for dtype, head_dim in itertools.product((torch.float16, torch.bfloat16), (64, 128)):
        q = torch.empty(1, 2, 256, head_dim, dtype=dtype)
        for roles, invalidate in ((False, False), (True, False), (True, True)):
            kernel = compiled(q, roles, invalidate)
            table = lecture.roles_of(kernel.asm["ttgir"]) if roles else None
            about = {"invalidates": invalidate, "roles": table, "ptx": kernel.asm["ptx"]}
            found.append(facts(kernel) | about)
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            as_is = compiled(q, True, False).asm["ptx"]
            file.write(lecture.without_dead_barriers(as_is))
            file.flush()
            found[-2]["edited"] = compiled(q, True, False, ir_override=file.name).asm["ptx"]
    return found


@pytest.fixture(scope="module")
def kernels() -> list:
    return run_as_script(__file__)


@pytest.mark.interpreter  # a GPU's tests compile and run them
def test_machine_code(kernels):
    for kernel in kernels:
        assert kernel["wgmma"] and kernel["loads"] and kernel["stores"], kernel
        assert kernel["spills"] == 0 and not kernel["serialized"], kernel
        assert (kernel["setmaxnreg"] > 0) == (kernel["roles"] is not None), kernel
        if kernel["roles"]:  # as the page says: who loads does not multiply
            header, *rows = kernel["roles"]
            default, *partitions = (dict(zip(header, row, strict=True)) for row in rows)
            assert default["loads"] == 4 and default["products"] == 0
            assert len(partitions) == 2
            for role in partitions:
                assert role["products"] == 2 and role["loads"] == 0 and role["arrivals"] == 3
                assert (role["registers"], role["stores"]) == ("232", 1)


@pytest.mark.interpreter
@pytest.mark.skipif(not OLD, reason="later versions of Triton have no such barriers")
def test_dead_barriers_are_invalidated(lecture, kernels):
    """After their initialisation and before the roles, one of which loads keys to their place."""
    for kernel in (kernel for kernel in kernels if kernel["roles"]):
        ptx = kernel["ptx"]
        initialised, invalidated, loads = lecture.places_of(ptx)
        assert sorted(initialised.values()) == [1] * 20 + [6] * 2
        assert initialised[0] == initialised[8] == 6
        assert len(loads) == 4 and loads[2] == 0  # queries, queries, keys, values
        if kernel["invalidates"]:
            assert invalidated == [0, 8] and ptx.count("mbarrier.inval") == 2
            last = ptx.rindex("mbarrier.init")
            roles = re.compile(r"\n\s*barrier\.sync\s+1;").search(ptx, last)  # they wait here
            assert last < ptx.index("mbarrier.inval")
            assert ptx.rindex("mbarrier.inval") < roles.start() < ptx.index("cp.async.bulk", last)
        else:
            assert "mbarrier.inval" not in ptx
            edited, _, _ = lecture.places_of(kernel["edited"])
            assert len(edited) == 20 and set(edited.values()) == {1}


def trusted(lecture, ptx: str) -> None:
    lecture._trust(mock.Mock(asm={"ptx": ptx}))


@pytest.mark.interpreter
def test_only_a_kernel_without_dead_barriers_is_trusted(lecture, kernels):
    for kernel in (kernel for kernel in kernels if kernel["roles"]):
        ptx = kernel["ptx"]
        if kernel["invalidates"] == OLD:
            trusted(lecture, ptx)
        else:
            with pytest.raises(RuntimeError, match="unused barriers"):
                trusted(lecture, ptx)
        with pytest.raises(RuntimeError, match="unused barriers"):
            trusted(lecture, ptx.replace("mbarrier.init", "mbarrier.start"))
        if kernel["invalidates"]:
            for wrong in ("global_smem+16]", "global_smem]"):
                with pytest.raises(RuntimeError, match="unused barriers"):
                    trusted(lecture, ptx.replace("global_smem+8]", wrong))


@pytest.mark.interpreter
def test_exercise_1_three_groups(lecture, load, kernels):
    asked = {row[2] for kernel in kernels if kernel["roles"] for row in kernel["roles"][2:]}
    assert asked == {"232"} and 3 * 128 * 232 == 89_088 > 65_536
    hopper = load(Path(lecture.__file__).with_name("hopper_attention.py"))
    compute, loading, _ = hopper.REGISTERS[3]
    assert (compute, loading) == (160, 32) and 128 * (3 * compute + loading) == 65_536
    # acc and scores of 64 queries in the registers of 128 threads
    assert (64 * 128 // 128, 64 * 128 // 128, 64 * 64 // 128) == (64, 64, 32)
    groups = []
    hopper._schedule = lambda sizes, causal, block_m, *_: groups.append(block_m // 64) or (0, 0)
    hopper._sms = lambda device: 132
    for head_dim in (64, 128):
        q = torch.empty(1, 16, 16384, head_dim, dtype=torch.float16)
        hopper._plan(q, q, q, q, q, False, 0.1)
    assert groups == [3, 2]


@pytest.mark.interpreter
@pytest.mark.skipif(not OLD, reason="later versions of Triton have no such barriers")
def test_exercise_2_one_of_two(lecture, kernels):
    for kernel in (kernel for kernel in kernels if kernel["invalidates"]):
        one = re.sub(r"[^\n]*mbarrier\.inval[^\n]*global_smem\+8\][^\n]*\n", "", kernel["ptx"])
        initialised, invalidated, _ = lecture.places_of(one)
        assert initialised[0] == initialised[8] == 6 and invalidated == [0]
        with pytest.raises(RuntimeError, match=r"at \[0, 8\], the kernel invalidates \[0\]"):
            trusted(lecture, one)


@triton.jit
def sum_kernel(x_ptr, out_ptr, BACKWARDS: tl.constexpr):
    pid = tl.program_id(0)
    if BACKWARDS:
        pid = tl.num_programs(0) - 1 - pid
    x = tl.load(x_ptr + pid * 4 + tl.arange(0, 4))
    tl.atomic_add(out_ptr, tl.sum(x, axis=0))
    tl.store(out_ptr + 1 + pid, tl.sum(x, axis=0))


@pytest.mark.interpreter
def test_exercise_3_atomics_depend_on_the_order():
    x, sums = torch.rand(400), torch.zeros(2, 101)
    for backwards, out in enumerate(sums):
        sum_kernel[(100,)](x, out, bool(backwards))
    assert sums[0, 0] != sums[1, 0] and torch.equal(sums[0, 1:], sums[1, 1:])


@pytest.fixture(autouse=True)
def hopper(device):
    if device == "cuda" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the kernel is for compute capability 9")


@every_dtype
@both_kinds
@pytest.mark.parametrize(
    "shape", [(1, 1, 128, 128), (1, 3, 256, 64), (2, 5, 128, 64), (1, 1, 640, 128)]
)
def test_shapes(lecture, device, shape, roles, dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, device=device).to(dtype)
    out = lecture.role_attention(q, k, v, roles)
    want = lecture.role_attention_reference(q.double(), k.double(), v.double())
    atol = torch.finfo(dtype).eps * v.abs().max().item()
    torch.testing.assert_close(out.double(), want, atol=atol, rtol=0)


@pytest.mark.gpu
def test_beside_a_neighbour(lecture):
    """Two other processes multiply matrices meanwhile; every launch gives the same bits."""
    busy = "import torch; a = torch.randn(4096, 4096, device='cuda'); print(flush=True)\n"
    busy += "while True: a @ a; torch.cuda.synchronize()"
    q, k, v = torch.randn(3, 2, 5, 4096, 128, device="cuda").bfloat16()
    want = lecture.role_attention(q, k, v)
    command = [sys.executable, "-c", busy]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for other in others:
            other.stdout.readline()  # it has begun
        wrong = sum((lecture.role_attention(q, k, v) != want).any() for _ in range(500))
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert wrong == 0


@both_kinds
def test_large_scores_do_not_overflow(lecture, device, roles):
    q, k, v = torch.randn(3, 1, 2, 128, 64, device=device).half()
    q *= 100
    out = lecture.role_attention(q, k, v, roles)
    want = lecture.role_attention_reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), want, atol=5e-3, rtol=0)


@both_kinds
def test_a_block_of_scores_of_minus_infinity(lecture, device, roles):
    q, k, v = torch.randn(3, 1, 1, 256, 64, device=device).half()
    q[..., 0], k[..., 0] = 1, 0
    k[:, :, :128] = torch.tensor([-torch.inf] + [0.0] * 63)
    out = lecture.role_attention(q, k, v, roles)
    want = lecture.role_attention_reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), want, atol=5e-3, rtol=0)


@pytest.mark.parametrize("shape", [(0, 2, 128, 64), (2, 0, 128, 64), (2, 2, 0, 64)])
def test_nothing_gives_nothing(lecture, device, shape):
    q = torch.empty(shape, dtype=torch.float16, device=device)
    assert lecture.role_attention(q, q, q).shape == shape


@both_kinds
def test_a_call_keeps_no_tensor(lecture, device, roles):
    """Triton keeps the allocator."""
    x = [*torch.zeros(3, 1, 1, 128, 64, device=device).half().unbind()]
    kept = [*map(weakref.ref, x)]
    lecture.role_attention(*x, roles)
    x.clear()
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def off_16_bytes(x):
    """`x`, contiguous, at an address of which 16 is no divisor."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def refusals():
    yield "float32", TypeError, lambda q: (q.float(),) * 3
    yield "mixed", TypeError, lambda q: (q, q.bfloat16(), q)
    yield "heads", ValueError, lambda q: (q, q[:, 1:], q)
    yield "three dimensions", ValueError, lambda q: (q[0],) * 3
    yield "not contiguous", ValueError, lambda q: (q.transpose(0, 1),) * 3
    yield "q off 16 bytes", ValueError, lambda q: (off_16_bytes(q), q, q)
    yield "k off 16 bytes", ValueError, lambda q: (q, off_16_bytes(q), q)
    yield "v off 16 bytes", ValueError, lambda q: (q, q, off_16_bytes(q))
    yield "length", ValueError, lambda q: (q[:, :, :64].contiguous(),) * 3
    yield "head_dim", ValueError, lambda q: (q[..., :32].contiguous(),) * 3
    yield "gradient", ValueError, lambda q: (q.clone().requires_grad_(), q, q)
    yield "another device", ValueError, lambda q: (q, q, q.to("meta"))


@pytest.mark.parametrize(
    ("error", "make"), [pytest.param(error, make, id=name) for name, error, make in refusals()]
)
def test_refusals(lecture, device, error, make):
    q = torch.zeros(2, 3, 128, 64, dtype=torch.float16, device=device)
    with pytest.raises(error, match="role_attention (takes|has)"):
        lecture.role_attention(*make(q))


if __name__ == "__main__":
    print(json.dumps(compile_all()))
