"""The product against float64; the tuner's habits that the page tells of; arithmetic of an SM."""

import ctypes

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [
    torch.float16,
    # the interpreter multiplies bfloat16 wrongly
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]
SHAPES = [(1, 1, 1), (1, 70, 3), (63, 64, 65), (64, 127, 64), (129, 67, 131), (66, 1, 257)]


def randn(*shape, device, dtype=torch.float16):
    return torch.randn(*shape, device=device).to(dtype)


def assert_product(got, a, b):
    want = a.detach().double() @ b.detach().double()
    assert got.dtype == a.dtype and got.shape == want.shape
    tolerance = torch.finfo(a.dtype).eps * want.abs() + 1e-5 * max(1, a.shape[1]) ** 0.5
    assert ((got.double() - want).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(lecture, device, shape, dtype):
    M, N, K = shape
    a, b = randn(M, K, device=device, dtype=dtype), randn(K, N, device=device, dtype=dtype)
    assert_product(lecture.matmul(a, b), a, b)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.booleans(), st.booleans())
def test_any_shape_and_order(lecture, device, M, N, K, a_by_columns, b_by_columns):
    a = randn(K, M, device=device).t() if a_by_columns else randn(M, K, device=device)
    b = randn(N, K, device=device).t() if b_by_columns else randn(K, N, device=device)
    assert_product(lecture.matmul(a, b), a, b)


def test_strides(lecture, device):
    a, b = randn(70, 130, device=device)[::2, ::2], randn(65, 80, device=device)[:, 3:60]
    assert_product(lecture.matmul(a, b), a, b)
    column = randn(35, 1, device=device).expand(35, 65)
    assert_product(lecture.matmul(column, b), column, b)
    wide = torch.full((57, 70), torch.nan, device=device, dtype=torch.float16)
    lecture._launcher(lecture.configurations()[0])(a, b, wide[:, ::2].t())
    assert_product(wide[:, ::2].t(), a, b)
    assert wide[:, 1::2].isnan().all()


@pytest.mark.parametrize("shape", [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0)], ids=str)
def test_nothing(lecture, device, shape):
    M, N, K = shape
    got = lecture.matmul(randn(M, K, device=device), randn(K, N, device=device))
    assert got.shape == (M, N) and (got == 0).all()


def test_infinities_and_nan(lecture, device):
    a, b = torch.eye(3, device=device).half(), torch.ones(3, 65, device=device).half()
    b[0, 0], b[1, 1], b[2, 64] = torch.inf, -torch.inf, torch.nan
    want = a.float() @ b.float()
    assert torch.equal(lecture.matmul(a, b).float().nan_to_num(7), want.nan_to_num(7))


def test_every_configuration_gives_the_same(lecture, device):
    a, b = randn(131, 200, device=device), randn(200, 259, device=device)
    configs = lecture.fits(lecture.configurations(), {})
    # stages and warps are nothing to the interpreter
    for config in configs if device == "cuda" else configs[::8]:
        out = torch.full((131, 259), torch.nan, device=device, dtype=torch.float16)
        lecture._launcher(config)(a, b, out)
        assert_product(out, a, b)


@pytest.mark.parametrize("sizes", [(1, 1), (4096, 4096), (64, 8192), (1024, 1024), (100_000, 64)])
def test_a_table_row_for_every_size(lecture, sizes):
    row = lecture._choose(*sizes)
    sums, shared = lecture.needs(**lecture._settings(row, 64))
    assert sums < 255 and shared <= 232_448
    tiles = triton.cdiv(sizes[0], row[0]) * triton.cdiv(sizes[1], row[1])
    assert tiles >= 120 or row == lecture._TABLE[-1]


def test_gradients(lecture, device):
    a = randn(70, 33, device=device).requires_grad_()
    b = randn(90, 33, device=device).t().requires_grad_()
    dc = randn(90, 70, device=device).t()
    da, db = torch.autograd.grad(lecture.matmul(a, b), (a, b), dc)
    assert_product(da, dc, b.t())
    assert_product(db, a.t(), dc)
    (db,) = torch.autograd.grad(lecture.matmul(a.detach(), b), b, dc)
    assert_product(db, a.t(), dc)


def test_refusals(lecture, device):
    a, b = randn(4, 5, device=device), randn(5, 6, device=device)
    for wrong in ((a, a), (a[0], b), (a[None], b)):
        with pytest.raises(ValueError, match=r"needs \[M, K\] and \[K, N\]"):
            lecture.matmul(*wrong)
    with pytest.raises(TypeError, match="needs float16 or bfloat16, got torch.float32"):
        lecture.matmul(a.float(), b.float())
    with pytest.raises(ValueError, match="needs b torch.float16"):
        lecture.matmul(a, b.float())
    far = torch.empty(2**25 + 1, device=device, dtype=torch.float16).as_strided((1, 2), (1, 2**25))
    with pytest.raises(ValueError, match=r"strides below 2\*\*24"):
        lecture.matmul(far, b[:2])


# the arithmetic of a configuration


def test_pruning_keeps_what_fits(lecture):
    configs = lecture.configurations()
    assert len(configs) == len(set(configs)) == 72
    kept = {(lecture._tile(c), c.num_warps, c.num_stages) for c in lecture.fits(configs, {})}
    assert ("128 × 256", 8, 4) in kept and ("128 × 128", 4, 5) in kept
    assert ("128 × 256", 8, 5) not in kept  # 240 KiB of shared memory
    assert ("128 × 256", 4, 3) not in kept  # 256 sums a thread
    assert not any(tile == "256 × 256" for tile, *_ in kept)


@pytest.mark.parametrize(
    ("taken", "limit", "programs"),
    [
        ((72, 49_152, 4), "shared memory", 4),
        ((213, 98_304, 4), "registers", 2),
        ((255, 0, 8), "registers", 1),
        ((32, 0, 1), "programs", 32),
        ((16, 0, 8), "warps", 8),
        ((33, 0, 4), "registers", 12),  # registers are dealt out by 8 a thread
    ],
)
def test_occupancy(lecture, taken, limit, programs):
    limits = lecture.occupancy(*taken)
    assert limits[limit] == min(limits.values()) == programs


@pytest.mark.gpu
def test_occupancy_is_what_the_driver_says(lecture):
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the arithmetic is Hopper's")
    driver = ctypes.CDLL("libcuda.so.1")
    a, b, c = (torch.ones(256, 256, device="cuda").half() for _ in "abc")
    for config in lecture.fits(lecture.configurations(), {}):
        compiled = lecture._launcher(config)(a, b, c)
        taken, programs = lecture.resources(compiled), ctypes.c_int()
        function, shared = ctypes.c_void_p(compiled.function), ctypes.c_size_t(taken["shared"])
        threads = 32 * config.num_warps
        where = ctypes.byref(programs), function, threads, shared
        assert driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(*where) == 0
        assert programs.value == taken["programs"], config
        assert lecture.needs(**config.all_kwargs())[1] == taken["shared"], config


# what the page says of the tuner, by a clock that counts


def counting(runs=1, times=None):
    seen = []

    def do_bench(run, quantiles):
        for _ in range(runs):
            run()
        seen.append(run)
        return [next(times) if times else 1.0] * 3

    return do_bench, seen


def in_place(kernel, lecture, device, M=3, dtype=torch.float32):
    """10 + 1, by a kernel that reads and writes one tensor."""
    x = torch.full((M, 70), 10.0, device=device, dtype=dtype)
    return lecture.bias_relu(kernel, x, torch.ones_like(x[0]), x)


def tuner(lecture, key="M", **options):
    return lecture.tuned(lecture.bias_relu_kernel, lecture.BLOCKS, [key], **options)


@pytest.mark.parametrize(("key", "tuned"), [("M", 3), ("M_bucket", 2), ("no_such_name", 1)])
def test_what_tunes_again(lecture, device, key, tuned):
    clock, seen = counting()
    kernel = tuner(lecture, key, do_bench=clock)
    for M in (10, 11, 30, 10):  # 10 and 11 round up to 16
        in_place(kernel, lecture, device, M)
    assert len(seen) == tuned * len(lecture.BLOCKS)


def test_another_dtype_tunes_again(lecture, device):
    clock, seen = counting()
    kernel = tuner(lecture, do_bench=clock)
    for dtype in (torch.float32, torch.float16, torch.float32):
        in_place(kernel, lecture, device, dtype=dtype)
    assert len(seen) == 2 * len(lecture.BLOCKS)


def test_the_fastest_is_kept(lecture, device):
    clock, _ = counting(times=iter((2.0, 1.0)))
    kernel = tuner(lecture, do_bench=clock)
    in_place(kernel, lecture, device)
    assert kernel.best_config is lecture.BLOCKS[1]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, 10 + 2 * 5 + 1),
        ({"reset_to_zero": ["out_ptr"]}, 1),
        ({"restore_value": ["out_ptr"]}, 11),
    ],
)
def test_in_place(lecture, device, options, first):
    clock, _ = counting(runs=5)
    kernel = tuner(lecture, do_bench=clock, **options)
    for want in (first, 11, 11):
        assert (in_place(kernel, lecture, device) == want).all()


def test_tuned_on_a_copy(lecture, device):
    clock, _ = counting(runs=5)
    kernel = tuner(lecture, do_bench=clock)
    in_place(kernel, lecture, device)
    assert (in_place(kernel, lecture, device) == 11).all()


def test_one_configuration_needs_no_clock(lecture, device):
    kernel = triton.autotune(lecture.BLOCKS[:1], key=["M"])(lecture.bias_relu_kernel)
    assert (in_place(kernel, lecture, device) == 11).all()


@pytest.mark.interpreter
def test_the_interpreter_has_no_clock(lecture):
    kernel = triton.autotune(lecture.BLOCKS, key=["M"])(lecture.bias_relu_kernel)
    with pytest.raises(RuntimeError, match="0 active drivers"):
        in_place(kernel, lecture, "cpu")


def test_top_k(lecture, device):
    clock, seen = counting()
    prune = {"early_config_prune": lecture.fits, "perf_model": lecture.estimate, "top_k": 3}
    options = {"prune_configs_by": prune, "do_bench": clock}
    configs = lecture.configurations()
    kernel = lecture.tuned(lecture.matmul_heuristic, configs, ["M"], **options)
    a, b = randn(64, 64, device=device), randn(64, 64, device=device)
    out = torch.empty_like(a)
    lecture._launch(kernel, a, b, out)
    assert len(seen) == 3
    assert_product(out, a, b)


@pytest.mark.gpu
def test_timings_on_disk(lecture, tmp_path):
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        for tuned in (True, False):
            clock, seen = counting()
            options = {"cache_results": True, "reset_to_zero": ["out_ptr"]}
            got = in_place(tuner(lecture, do_bench=clock, **options), lecture, "cuda")
            assert bool(seen) == tuned
            # found on disk: nothing was run, so nothing was reset
            assert (got == (1 if tuned else 11)).all()
    assert list(tmp_path.rglob("*.autotune.json"))


@pytest.mark.gpu
def test_what_does_not_fit_is_passed_over(lecture):
    a, b, c = (torch.ones(256, 256, device="cuda").half() for _ in "abc")
    large = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 8}
    configs = [triton.Config(large, num_warps=8, num_stages=4), lecture.configurations()[0]]
    kernel = lecture.tuned(lecture.matmul_heuristic, configs, ["M"])
    lecture._launch(kernel, a, b, c)
    assert kernel.configs_timings[configs[0]][0] == float("inf")
    assert kernel.best_config is configs[1]
    with pytest.raises(triton.OutOfResources, match="shared memory, Required: 262144"):
        lecture._launcher(configs[0])(a, b, c)


@pytest.mark.parametrize("shape", [(1, 1), (37, 130), (5, 1000)], ids=str)
@pytest.mark.parametrize("block", [(1, 64), (4, 512), (16, 32)], ids=str)
def test_bias_relu(lecture, device, shape, block):
    x, bias = randn(*shape, device=device), randn(shape[1], device=device)
    out = torch.full((shape[0] + 1, shape[1]), torch.nan, device=device, dtype=x.dtype)
    config = dict(zip(("BLOCK_M", "BLOCK_N"), block, strict=True))
    lecture.bias_relu(lecture.bias_relu_kernel, x, bias, out[:-1], **config)
    want = torch.relu(x.float() + bias.float()).half()
    assert torch.equal(out[:-1], want) and out[-1].isnan().all()


@pytest.mark.gpu
def test_beyond_int32(lecture):
    long, short = 2**17 + 128, 2**14  # row 2**17 begins at element 2**31
    for M, N, K in ((long, short, 16), (long, 16, short)):
        a, b = (torch.ones(size, device="cuda").half() for size in ((M, K), (K, N)))
        a[2**17 :] = 2
        c = lecture.matmul(a, b)
        assert (c[: 2**17] == K).all() and (c[2**17 :] == 2 * K).all()
    x = torch.ones(long, short, dtype=torch.float16, device="cuda")
    x[2**17 :] = -1
    bias = torch.ones_like(x[0])
    lecture.bias_relu(lecture.bias_relu_kernel, x, bias, x, BLOCK_M=4, BLOCK_N=512)
    assert (x[: 2**17] == 2).all() and (x[2**17 :] == 0).all()
