"""Recorded rows, and what a page derives from them: rates, floors, percent of the ceiling.

Nothing derived is ever stored, so every page, figure and table that shows a percentage computes it
here. Standard library only: no MkDocs, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

# what a row measured or was given to do; its other whole numbers, flags and names say its size
MEASURED = {"provider", "ms", "ms_p20", "ms_p80", "ms_hot", "bytes", "flops"}
MEASURED |= {"peak_bytes", "host_us", "ns"}


class RowError(Exception):
    """A number was asked for that the recording does not hold; the message says what it holds."""


class Ceilings:
    """What the card can do: time to copy so many bytes, best rate of the library's products."""

    def __init__(self, recorded: dict):
        self.copy = sorted((point["bytes"], point["ms"]) for point in recorded["copy"])
        self.matmul = recorded["matmul"]

    def copy_ms(self, nbytes: float) -> float:
        """Time to copy, `nbytes` counting read and write, linear between measured points.

        Past the largest point the line through the last two goes on; below the smallest point the
        time is that point's, since what is left is the cost of a launch.
        """
        if len(self.copy) < 2:
            raise RowError("the recording holds no copy ceiling")
        if nbytes <= self.copy[0][0]:
            return self.copy[0][1]
        pairs = list(pairwise(self.copy))
        inside = (pair for pair in pairs if nbytes <= pair[1][0])
        (low, low_ms), (high, high_ms) = next(inside, pairs[-1])
        return low_ms + (nbytes - low) / (high - low) * (high_ms - low_ms)

    def copy_tbps(self, nbytes: float) -> float:
        """TB/s of a copy that moves so many bytes."""
        return nbytes / self.copy_ms(nbytes) * 1e-9

    def matmul_tflops(self, dtype: str, n: int | None = None, hot: bool = False) -> float:
        """TFLOP/s of the library's product, `n` cubed; without `n` the best of all sizes."""
        key = "tflops_hot" if hot else "tflops"
        rates = [
            point[key]
            for point in self.matmul
            if point["dtype"] == dtype and n in (None, point["n"]) and key in point
        ]
        if not rates:
            known = ", ".join(f"{point['dtype']} {point['n']}" for point in self.matmul)
            raise RowError(f"no matmul ceiling for {dtype} {n or ''}; there are: {known or 'none'}")
        return max(rates)


class Row:
    """One recorded row: every stored key is an attribute, and so is what follows from them."""

    def __init__(self, stored: dict, benchmark: Benchmark):
        self.stored, self.benchmark = stored, benchmark

    def __getattr__(self, name: str):
        try:
            return self.__dict__["stored"][name]
        except KeyError:
            held = ", ".join(self.stored)
            raise AttributeError(f"the row has no {name!r}; it has: {held}") from None

    def matches(self, where: dict) -> bool:
        return all(self.stored.get(key) == value for key, value in where.items())

    def at(self, **measured) -> Row:
        """This row had it measured so: its lower quantile, or the time of its ceiling."""
        return Row(self.stored | measured, self.benchmark)

    @property
    def us(self) -> float:
        return self.ms * 1e3

    @property
    def gbps(self) -> float:
        return self.bytes / self.ms * 1e-6

    @property
    def tbps(self) -> float:
        return self.bytes / self.ms * 1e-9

    @property
    def tflops(self) -> float:
        return self.flops / self.ms * 1e-9

    @property
    def tflops_hot(self) -> float:
        return self.flops / self.ms_hot * 1e-9

    @property
    def floor_ms(self) -> float:
        """The ceiling's time for this row's work: copying its bytes, or a product of its flops."""
        return self._floor(hot=False)

    @property
    def floor_ms_hot(self) -> float:
        """The same, for launches back to back, where the power limit lowers the matmul ceiling."""
        return self._floor(hot=True)

    @property
    def percent(self) -> float:
        return self.floor_ms / self.ms * 100

    @property
    def percent_hot(self) -> float:
        return self.floor_ms_hot / self.ms_hot * 100

    def _floor(self, hot: bool) -> float:
        ceilings = self.benchmark.ceilings
        if self.benchmark.ceiling == "copy":
            return ceilings.copy_ms(self.bytes)
        if self.benchmark.ceiling == "matmul":
            return self.flops / ceilings.matmul_tflops(self.benchmark.dtype, hot=hot) * 1e-9
        raise RowError(f"benchmark {self.benchmark.name} has no ceiling")

    def size(self) -> dict:
        """What tells this row from the benchmark's others: the swept key, then the rest."""
        keys = [self.benchmark.x]
        keys += [
            key
            for key, value in self.stored.items()
            if key not in MEASURED and key not in keys and not isinstance(value, float)
        ]
        return {key: self.stored[key] for key in keys}


class Benchmark:
    """One benchmark of a recording."""

    def __init__(self, recorded: dict, ceilings: Ceilings):
        self.name, self.title, self.x = (recorded[key] for key in ("name", "title", "x"))
        self.dtype, self.mode = recorded.get("dtype"), recorded.get("mode")
        self.ceiling, self.ceilings = recorded["ceiling"], ceilings
        self.all = [Row(row, self) for row in recorded["rows"]]

    def rows(self, **where) -> list[Row]:
        """The rows in which every key given has the value given."""
        unknown = where.keys() - {key for row in self.all for key in row.stored}
        if unknown:
            raise RowError(f"no row of {self.name} has a key {', '.join(sorted(unknown))}")
        return [row for row in self.all if row.matches(where)]

    def row(self, **where) -> Row:
        """The one row that `rows` finds."""
        found = self.rows(**where)
        if len(found) == 1:
            return found[0]
        held = {key: sorted({row.stored.get(key) for row in self.all}, key=str) for key in where}
        raise RowError(f"{len(found)} rows of {self.name} match {where}; the rows hold {held}")

    def providers(self) -> list[str]:
        """In the order of their first row, Triton's own ahead."""
        seen = dict.fromkeys(row.provider for row in self.all)
        return sorted(seen, key=lambda provider: provider != "triton")

    def peers(self, row: Row) -> Iterator[tuple[str, float]]:
        """Every rival that did a row's work, with its time over the row's; a rung is no rival."""
        work = row.size(), row.bytes, row.flops
        for peer in self.all:
            same = (peer.size(), peer.bytes, peer.flops) == work
            if same and not peer.provider.startswith("triton"):
                yield peer.provider, peer.ms / row.ms


class Recording:
    """A lecture's recording, as its page sees it."""

    def __init__(self, recorded: dict):
        self.env = recorded["environment"]
        self.ceilings = Ceilings(recorded["ceilings"])
        self.benchmarks = {
            benchmark["name"]: Benchmark(benchmark, self.ceilings)
            for benchmark in recorded["benchmarks"]
        }

    def benchmark(self, name: str) -> Benchmark:
        if name not in self.benchmarks:
            known = ", ".join(self.benchmarks) or "none"
            raise RowError(f"no benchmark named {name!r}; there are: {known}")
        return self.benchmarks[name]

    def rows(self, name: str, **where) -> list[Row]:
        return self.benchmark(name).rows(**where)

    def row(self, name: str, **where) -> Row:
        return self.benchmark(name).row(**where)

    @cached_property
    def context(self) -> dict:
        """The names that a template of this recording's lecture may use."""
        return {
            "env": self.env,
            "row": self.row,
            "rows": self.rows,
            "copy_ms": self.ceilings.copy_ms,
            "copy_tbps": self.ceilings.copy_tbps,
            "matmul_tflops": self.ceilings.matmul_tflops,
        }


class Unknown:
    """Stands for a number that is not there, in a preview: it takes part in any expression."""

    def __call__(self, *args, **kwargs) -> Unknown:
        return self

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):  # `__html__`, `__float__`: not for us
            raise AttributeError(name)
        return self

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __call__
    __truediv__ = __rtruediv__ = __neg__ = __round__ = __abs__ = __pow__ = __call__

    def __eq__(self, other) -> bool:
        return True

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator:
        return iter((self,))

    def __str__(self) -> str:
        return "–"

    def __format__(self, spec: str) -> str:
        return "–"


UNKNOWN = Unknown()

# a no-break space keeps a number and its unit on one line
_SPACE = "\u00a0"


def significant(value: float, digits: int = 3) -> str:
    """To so many significant digits, never in exponent form: 0.0370, 1.24, 1,240."""
    if not value:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    decimals = max(0, digits - 1 - exponent)
    return f"{value:,.{decimals}f}"


def format_ms(ms: float) -> str:
    if 0 < ms < 1e-3:
        return f"{significant(ms * 1e3)}{_SPACE}µs"
    return f"{significant(ms)}{_SPACE}ms"


def format_time(ms: float) -> str:
    """In the unit that reads best: ns, µs or ms."""
    power = 2 if ms < 1e-3 else 1 if ms < 1 else 0
    return f"{significant(ms * 1e3**power)}{_SPACE}{('ms', 'µs', 'ns')[power]}"


def format_pct(percent: float) -> str:
    return f"{percent:.0f}{_SPACE}%"


def format_times(ratio: float) -> str:
    """`1.8×`; a second decimal near 1, where it tells the faster from the slower."""
    decimals = 2 if ratio < 1.095 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{decimals}f}×"


def format_tbps(tbps: float) -> str:
    return f"{significant(tbps)}{_SPACE}TB/s"


def format_tflops(tflops: float) -> str:
    return f"{significant(tflops)}{_SPACE}TFLOP/s"


def format_bytes(nbytes: float) -> str:
    """`64 MiB`: powers of 1,024, three digits."""
    power = min(4, int(math.log2(nbytes) // 10)) if nbytes >= 1 else 0
    value = nbytes / 1024**power
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text}{_SPACE}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def format_n(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


FILTERS = {
    "ms": format_ms,
    "time": format_time,
    "pct": format_pct,
    "times": format_times,
    "tbps": format_tbps,
    "tflops": format_tflops,
    "bytes": format_bytes,
    "n": format_n,
    "significant": significant,
    "log10": math.log10,  # where a drawing has a logarithmic axis
}
