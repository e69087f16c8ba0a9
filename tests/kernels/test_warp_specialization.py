"""role_attention against float64, what its compiled roles contain, and what it refuses.

Without a GPU the kernel runs in the interpreter, where roles change nothing; it is compiled for
sm_90 as well, by this file run as a script.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.sm_90 import facts, pretend, run_as_script

every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
both_kinds = pytest.mark.parametrize("roles", [False, True], ids=["alike", "roles"])


def compile_all() -> list:
    pretend()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples/attention"))
    import warp_specialization as lecture

    found = []
    for head_dim in (64, 128):
        for roles in (False, True):
            q = torch.empty(1, 2, 256, head_dim, dtype=torch.bfloat16)
            kernel = lecture.role_attention_kernel.warmup(
                q, q, q, q, 2, 256, 0.1, D=head_dim, BLOCK_M=128, BLOCK_N=128, ROLES=roles,
                num_warps=4 if roles else 8, num_stages=2, grid=(4,))  # fmt: skip
            table = lecture.roles_of(kernel.asm["ttgir"]) if roles else None
            found.append(facts(kernel) | {"roles": table})
    return found


@pytest.mark.interpreter  # a GPU's tests compile and run them
def test_machine_code():
    for kernel in run_as_script(__file__):
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
    """Small: with roles it fails where a GPU is shared."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, device=device).to(dtype)
    out = lecture.role_attention(q, k, v, roles)
    want = lecture.role_attention_reference(q.double(), k.double(), v.double())
    atol = torch.finfo(dtype).eps * v.abs().max().item()
    torch.testing.assert_close(out.double(), want, atol=atol, rtol=0)


@both_kinds
def test_large_scores_do_not_overflow(lecture, device, roles):
    q, k, v = torch.randn(3, 1, 2, 128, 64, device=device).half()
    q *= 100
    out = lecture.role_attention(q, k, v, roles)
    want = lecture.role_attention_reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), want, atol=5e-3, rtol=0)


@pytest.mark.parametrize("shape", [(0, 2, 128, 64), (2, 0, 128, 64), (2, 2, 0, 64)])
def test_nothing_gives_nothing(lecture, device, shape):
    q = torch.empty(shape, dtype=torch.float16, device=device)
    assert lecture.role_attention(q, q, q).shape == shape


def refusals():
    yield "float32", TypeError, lambda q: (q.float(),) * 3
    yield "mixed", TypeError, lambda q: (q, q.bfloat16(), q)
    yield "heads", ValueError, lambda q: (q, q[:, 1:], q)
    yield "three dimensions", ValueError, lambda q: (q[0],) * 3
    yield "not contiguous", ValueError, lambda q: (q.transpose(0, 1),) * 3
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
