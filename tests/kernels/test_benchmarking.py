"""The softmax against float64; timers and statistics with clocks and events that are invented."""

import time

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
SHAPES = [(0, 0), (0, 7), (7, 0), (1, 1), (3, 2), (2, 31), (2, 32), (2, 33), (5, 1000), (2, 4097)]
GUARD = 4096


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(lecture, device, dtype, shape):
    x = torch.randn(shape, device=device).to(dtype)
    frame = torch.full((x.numel() + GUARD,), torch.nan, dtype=dtype, device=device)
    out = frame[: x.numel()].view(shape)
    assert lecture.row_softmax(x, out=out) is out
    assert frame[x.numel() :].isnan().all()
    assert torch.equal(lecture.row_softmax(x), out)
    assert not x.numel() or lecture.errs_like_torch(out, x)


def test_softmax_in_place(lecture, device):
    x = torch.randn(3, 100, device=device)
    wanted = lecture.row_softmax(x)
    assert torch.equal(lecture.row_softmax(x, out=x), wanted)


def test_softmax_of_a_slice_of_rows(lecture, device):
    x = torch.randn(9, 77, device=device)
    assert torch.equal(lecture.row_softmax(x[4:]), lecture.row_softmax(x)[4:])


def test_softmax_of_extreme_values(lecture, device):
    inf, nan = torch.inf, torch.nan
    rows = [[1e4, 0, -1e4, 1e4], [-inf, 0, 0, -inf], [-inf] * 4, [inf, 0, 0, 0], [nan, 0, 1, 2]]
    x = torch.tensor(rows, device=device)
    got, wanted = lecture.row_softmax(x), torch.softmax(x.double(), 1).float()
    torch.testing.assert_close(got, wanted, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(n_rows=st.integers(1, 5), n_cols=st.integers(1, 3000), shift=st.floats(-50, 50))
def test_softmax_properties(lecture, device, n_rows, n_cols, shift):
    x = torch.randn(n_rows, n_cols, device=device)
    y = lecture.row_softmax(x)
    ones = torch.ones(n_rows, dtype=torch.float64, device=device)
    torch.testing.assert_close(y.double().sum(1), ones, rtol=1e-5, atol=0)
    torch.testing.assert_close(lecture.row_softmax(x + shift), y, rtol=1e-4, atol=0)


@pytest.mark.gpu
def test_softmax_beyond_int32(lecture):
    x = torch.zeros(131_200, 16384, dtype=torch.float16, device="cuda")  # 2.15e9 elements
    y = lecture.row_softmax(x, out=torch.full_like(x, torch.nan))
    assert (y[:8] == 1 / 16384).all() and (y[-200:] == 1 / 16384).all()


@pytest.mark.parametrize(
    ("error", "words", "argument"),
    [
        (TypeError, "float64", lambda x: x.double()),
        (TypeError, "int32", lambda x: x.int()),
        (ValueError, r"\(6,\)", lambda x: x[0]),
        (ValueError, r"\(1, 4, 6\)", lambda x: x[None]),
        (ValueError, r"strides \(1, 6\)", lambda x: x.t()),
        (ValueError, "16,384 columns", lambda x: x.new_empty(1, 16385)),
    ],
)
def test_softmax_refuses(lecture, device, error, words, argument):
    with pytest.raises(error, match=words):
        lecture.row_softmax(argument(torch.randn(4, 6, device=device)))


def test_softmax_refuses_out(lecture, device):
    x = torch.randn(4, 6, device=device)
    for out in (x.new_empty(6, 4), x.new_empty(6, 4).t(), x.half(), x.to("meta")):
        with pytest.raises(ValueError, match="contiguous out like x"):
            lecture.row_softmax(x, out=out)


def test_leak_is_what_the_page_tells(lecture, device):
    for n_cols, default_sees_it in ((1000, True), (16383, False)):
        x = torch.randn(16, n_cols, device=device)
        y, wanted = lecture.leaky_softmax(x), torch.softmax(x, dim=1)
        assert not lecture.errs_like_torch(y, x)
        assert lecture.errs_like_torch(lecture.row_softmax(x), x)
        triton.testing.assert_close(y, wanted)
        if default_sees_it:
            with pytest.raises(AssertionError):
                torch.testing.assert_close(y, wanted)
        else:
            torch.testing.assert_close(y, wanted)
            triton.testing.assert_close(wanted * 0, wanted)
    x = torch.randn(16, 4096, device=device)
    assert lecture.errs_like_torch(lecture.leaky_softmax(x), x)
    # exercise 3
    for n_cols, seen in ((1000, True), (16383, False)):
        x = torch.randn(16, n_cols, device=device).half()
        assert lecture.errs_like_torch(lecture.leaky_softmax(x), x) != seen


def test_repeated_in_place_becomes_uniform(lecture, device):
    """Exercise 2."""
    x = torch.randn(2, 64, device=device)
    for _ in range(5):
        lecture.row_softmax(x, out=x)
    torch.testing.assert_close(x, torch.full_like(x, 1 / 64))


def test_tolerances_are_printed(lecture, device, capsys):
    lecture.show_tolerances(device)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("columns  softmax") and len(lines) == 6
    verdicts = [line.split()[2:5] for line in lines]
    assert verdicts[0] == verdicts[3] == ["passes"] * 3
    assert verdicts[1] == ["passes", "-", "-"] and verdicts[4] == ["passes", "passes", "-"]
    assert verdicts[5] == ["passes", "-", "-"]


# statistics


@settings(max_examples=200, deadline=None)
@given(
    samples=st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    q=st.floats(0, 1),
)
def test_quantile(lecture, samples, q):
    wanted = torch.tensor(samples, dtype=torch.float64).quantile(q).item()
    assert lecture.quantile(samples, q) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_quantile_leaves_the_samples_alone(lecture):
    samples = [3.0, 1.0, 2.0]
    assert lecture.quantile(samples, 0.5) == 2 and samples == [3.0, 1.0, 2.0]


# measure_ms


class Invented:
    """A timer that calls the function, writes down what was asked, and returns invented times."""

    def __init__(self, **times):
        self.times = {name: iter(values) for name, values in times.items()}
        self.calls = []

    def __call__(self, fn, rest_ms):
        name = fn()
        self.calls.append((name, rest_ms))
        return next(self.times[name])


def test_measure_ms(lecture):
    timer = Invented(a=[900.0, 1.0, 1.0, 2.0, *range(1, 12)], b=[1e-3] * 4 + [7.0] * 11)
    found = lecture.measure_ms({"a": lambda: "a", "b": lambda: "b"}, samples=11, timer=timer)
    assert list(found) == ["a", "b"]
    assert found["a"] == {"ms": 6.0, "ms_p20": 3.0, "ms_p80": 9.0}
    assert found["b"] == {"ms": 7.0, "ms_p20": 7.0, "ms_p80": 7.0}
    assert [name for name, _ in timer.calls] == ["a"] * 4 + ["b"] * 4 + ["a", "b"] * 11
    assert timer.calls[8:10] == [("a", 10.0), ("b", 0.2)]


def test_outliers_do_not_move_the_median(lecture):
    timer = Invented(a=[5e4] + [1.0] * 3 + ([2.0] * 7 + [1e3] * 3) * 2)
    assert lecture.measure_ms({"a": lambda: "a"}, samples=20, timer=timer)["a"]["ms"] == 2


def test_measure_ms_without_a_gpu(lecture, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fns = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.004)}
    found = lecture.measure_ms(fns, samples=3)
    assert 1 <= found["short"]["ms"] < found["long"]["ms"] < 1000
    for timing in found.values():
        assert timing["ms_p20"] <= timing["ms"] <= timing["ms_p80"]


def test_measure_ms_takes_the_gpu_where_there_is_one(lecture, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(lecture, "gpu_timer", lambda fn, rest_ms: 3.0)
    assert lecture.measure_ms({"a": print}, samples=3)["a"]["ms"] == 3
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert lecture.measure_ms({"a": lambda: None}, samples=3)["a"]["ms"] < 3


def test_what_a_function_raises_comes_through(lecture):
    with pytest.raises(ZeroDivisionError):
        lecture.measure_ms({"a": lambda: 1 / 0}, timer=lambda fn, rest_ms: fn())


@pytest.mark.parametrize("fns", [None, print, [print], {"a": 1}, {"a": print, "b": None}], ids=str)
def test_measure_ms_refuses_what_is_no_function(lecture, fns):
    with pytest.raises(TypeError, match="dictionary of functions"):
        lecture.measure_ms(fns)


@pytest.mark.parametrize(("fns", "samples"), [({}, 30), ({"a": print}, 2), ({"a": print}, 0)])
def test_measure_ms_refuses_too_little(lecture, fns, samples):
    with pytest.raises(ValueError, match="a function and 3 samples"):
        lecture.measure_ms(fns, samples=samples)


# timers, on a GPU that writes down what it is told


@pytest.fixture
def queue(lecture, monkeypatch):
    """What a make-believe GPU is asked to do; its events pass where they were recorded."""
    asked = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            asked.append("event")
            self.place = len(asked)

        def synchronize(self):
            asked.append("wait")

        def elapsed_time(self, end):
            assert asked[-1] == "wait", "read before the GPU was there"
            return float(end.place - self.place)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: asked.append(f"sleep {cycles}"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("synchronize"))
    monkeypatch.setattr(lecture, "flush_l2", lambda: asked.append("flush"))
    return asked


def test_gpu_timer(lecture, queue):
    assert lecture.gpu_timer(lambda: queue.append("work"), 2.0) == 2
    assert queue == ["flush", "sleep 3800000", "event", "work", "event", "wait"]


def test_gpu_timer_misused(lecture, queue):
    lecture.gpu_timer(lambda: queue.append("work"), 0, flush=False)
    assert queue == ["event", "work", "event", "wait"]


def test_loop(lecture, queue):
    assert lecture.ms_in_a_loop(lambda: queue.append("work"), count=10) == 1.1
    assert queue == ["event", *["work"] * 10, "event", "wait"]


def test_one_call_is_synchronised_on_both_sides(lecture, queue):
    assert lecture.ms_of_one_call(lambda: queue.append("work")) >= 0
    assert queue == ["synchronize", "work", "synchronize"]


def test_first_calls_compile(lecture, queue):
    seen = []
    before = triton.knobs.compilation.always_compile
    times = lecture.ms_of_first_calls(
        lambda: seen.append(triton.knobs.compilation.always_compile), count=3
    )
    assert seen == [True] * 3 and len(times) == 3
    assert triton.knobs.compilation.always_compile == before


def test_host_timer(lecture):
    assert 2 <= lecture.host_timer(lambda: time.sleep(0.002)) < 1000


@pytest.mark.gpu
def test_right_ways_agree_on_large_work(lecture):
    x = torch.randn(16384, 4096, device="cuda")
    out = torch.empty_like(x)

    def work():
        lecture.row_softmax(x, out=out)

    ours = lecture.measure_ms({"softmax": work})["softmax"]["ms"]
    profiled = lecture.ms_by_profiler(work, "row_softmax")
    assert len(profiled) == 30
    others = [triton.testing.do_bench(work, return_mode="median"), lecture.quantile(profiled, 0.5)]
    # generous: another process may hold the GPU
    assert all(0.5 < other / ours < 2 for other in others), (ours, others)


@pytest.mark.gpu
def test_flush_leaves_no_memory_behind(lecture):
    lecture.flush_l2()
    before = torch.cuda.memory_allocated()
    lecture.flush_l2()
    assert torch.cuda.memory_allocated() == before
