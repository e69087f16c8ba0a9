"""How the site measures: interleaved, flushed, launch gaps hidden; and the ceilings of the card.

`measure` is handed to every lecture's `bench`. It takes functions by provider, runs them in turn
(so that clocks and temperature treat all alike) and returns their times.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

FLUSH_BYTES = 256 << 20  # four times the L2 of an H200
CYCLES_PER_MS = 1_900_000  # of the GPU's clock, roughly
# before each sample the GPU rests, so that the host queues the launch ahead of it: at least so
# long, and so many times as long as the host takes for a call
QUEUE_MS = 0.2
QUEUE = 4
REST = 5  # and so many times as long as the launch takes, which keeps it cool at full clock
BUDGET_MS = 120.0  # GPU time spent on each provider's samples
MIN_SAMPLES, MAX_SAMPLES = 15, 100
HOT_MS = 400.0  # back-to-back time after which the clock has settled under the power limit
AHEAD = 5  # launches that must still be queued when the last of them was queued

_flush: torch.Tensor | None = None


def _flush_l2() -> None:
    global _flush
    if _flush is None:
        _flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    _flush.zero_()


def _timed(
    fn: Callable[[], object], flush: bool, rest: float
) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if flush:
        _flush_l2()
    # the GPU idles while the host queues both events and the launch between them
    torch.cuda._sleep(int(max(QUEUE_MS, rest) * CYCLES_PER_MS))
    start.record()
    fn()
    end.record()
    return start, end


def _estimate_ms(fn: Callable[[], object], flush: bool, rest: float) -> float:
    start, end = _timed(fn, flush, rest)
    end.synchronize()
    return start.elapsed_time(end)


def _hot_ms(fn: Callable[[], object], estimate: float) -> float | None:
    """Mean time of launches back to back, once the clock has settled; None if the GPU had to wait.

    Where the host takes longer for a launch than the GPU, its last launch ends soon after it was
    queued, and the time would be the host's.
    """
    count = max(2 * AHEAD, int(HOT_MS / estimate))
    for _ in range(count):
        fn()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        fn()
    end.record()
    queued = time.perf_counter()
    end.synchronize()
    behind_ms = (time.perf_counter() - queued) * 1000
    mean_ms = start.elapsed_time(end) / count
    return mean_ms if behind_ms > AHEAD * mean_ms else None


def _host_us(fn: Callable[[], object], calls: int = 200) -> float:
    """Median host time of one call, the GPU kept idle enough that the queue never fills."""
    samples = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        fn()
        samples.append((time.perf_counter() - start) * 1e6)
    return sorted(samples)[calls // 2]


def _peak_bytes(fn: Callable[[], object]) -> int:
    """Memory that a call needs above what was allocated before it, its result included."""
    gc.collect()  # else what was allocated before it may be freed meanwhile
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = fn()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _quantile(sorted_values: list[float], q: float) -> float:
    return sorted_values[round(q * (len(sorted_values) - 1))]


def measure(
    fns: dict[str, Callable[[], object]],
    *,
    hot: bool = False,
    memory: bool = False,
    host: bool = False,
    flush: bool = True,
) -> dict[str, dict[str, float]]:
    """Times functions against each other.

    Args:
        fns: Zero-argument functions by provider; each launches work on the current GPU.
        hot: Also time back-to-back launches, where the power limit binds (`ms_hot`); left out for
            a provider whose launches take the host longer than the GPU.
        memory: Also the peak memory of a call (`peak_bytes`); a provider that runs out of memory
            is left out of the result.
        host: Also the host time of a call (`host_us`, microseconds).
        flush: Overwrite the L2 cache before each sample.

    Returns:
        By provider, `ms`, `ms_p20`, `ms_p80` (median and quantiles of single launches, cool) and
        what was asked for beside them.
    """
    results: dict[str, dict[str, float]] = {}
    estimates: dict[str, float] = {}
    rests: dict[str, float] = {}
    for provider, fn in fns.items():
        try:
            for _ in range(3):  # compiles, tunes, warms up
                fn()
            torch.cuda.synchronize()
            results[provider] = {"peak_bytes": _peak_bytes(fn)} if memory else {}
            queue = QUEUE * _host_us(fn, calls=10) / 1000
            estimates[provider] = _estimate_ms(fn, flush, queue)
            rests[provider] = max(queue, REST * estimates[provider])
        except torch.cuda.OutOfMemoryError:
            if not memory:
                raise
            results.pop(provider, None)
            torch.cuda.empty_cache()

    samples: dict[str, list] = {provider: [] for provider in results}
    wanted = {
        provider: min(MAX_SAMPLES, max(MIN_SAMPLES, int(BUDGET_MS / estimates[provider])))
        for provider in results
    }
    for i in range(max(wanted.values(), default=0)):
        for provider in results:
            if i < wanted[provider]:
                samples[provider].append(_timed(fns[provider], flush, rests[provider]))
        torch.cuda.synchronize()
    for provider, result in results.items():
        times = sorted(start.elapsed_time(end) for start, end in samples[provider])
        result["ms"] = _quantile(times, 0.5)
        result["ms_p20"] = _quantile(times, 0.2)
        result["ms_p80"] = _quantile(times, 0.8)
        if host:
            result["host_us"] = _host_us(fns[provider])
    if hot:
        for provider, result in results.items():
            if (ms_hot := _hot_ms(fns[provider], result["ms"])) is not None:
                result["ms_hot"] = ms_hot
    return results


def copy_ceiling() -> list[dict[str, float]]:
    """Time to copy, by bytes moved (read + written), from 256 KiB to 8 GiB."""
    points = []
    for log2 in range(18, 34):
        moved = 1 << log2
        source = torch.randint(0, 255, (moved // 2,), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        ms = measure({"copy": lambda t=target, s=source: t.copy_(s)})["copy"]["ms"]
        points.append({"bytes": moved, "ms": ms})
    return points


def _matmul(dtype: str, n: int) -> Callable[[], object]:
    a = torch.randn(n, n, device="cuda")
    b = torch.randn(n, n, device="cuda")
    if dtype == "int8":
        a8, b8 = (torch.randint(-128, 128, (n, n), dtype=torch.int8, device="cuda") for _ in "ab")
        return lambda: torch._int_mm(a8, b8.t())
    if dtype == "float8_e4m3fn":
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(a8, b8.t(), one, one, out_dtype=torch.bfloat16)
    a, b = a.to(getattr(torch, dtype)), b.to(getattr(torch, dtype))
    return lambda: a @ b


def matmul_ceiling() -> list[dict[str, float | str]]:
    """Rates of the vendor library's products: cool (single launches) and hot (back to back)."""
    sizes = {"bfloat16": (2048, 4096, 8192), "float16": (8192,), "int8": (8192,)}
    if torch.cuda.get_device_capability() >= (8, 9):  # no fp8 before Ada
        sizes["float8_e4m3fn"] = (8192,)
    points = []
    for dtype, ns in sizes.items():
        for n in ns:
            timing = measure({"matmul": _matmul(dtype, n)}, hot=True)["matmul"]
            tflop = 2 * n**3 * 1e-12
            rates = {"ms": "tflops", "ms_hot": "tflops_hot"}
            rates = {
                rate: tflop / (timing[ms] * 1e-3) for ms, rate in rates.items() if ms in timing
            }
            points.append({"dtype": dtype, "n": n, **rates})
    return points


def ceilings() -> dict[str, list]:
    """What this card can do, measured now: copy curve and matrix rates."""
    return {"copy": copy_ceiling(), "matmul": matmul_ceiling()}
