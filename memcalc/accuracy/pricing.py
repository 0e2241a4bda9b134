"""Pricing rows: predicted beside measured, and for every row left out, why.

A row gives memory, throughput or both; each figure that is priced is a `Pair`. A row is never passed
over: it has a pair, or a reason among `unexpressed` (cannot be priced) or `unscored` (could, but gives
nothing this version predicts).
Checked by: unit/test_accuracy_pricing.py, published/test_rows.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.rows import Row
from memcalc.accuracy.setups import Expressed, express
from memcalc.engine.estimate import estimate
from memcalc.engine.results import Estimate, MemoryEstimate
from memcalc.errors import ConfigError
from memcalc.units import GIB, MIB

#: (rows done, rows in all)
Tell = Callable[[str, int, int], None]

#: Whether estimates carry times; without a time model only memory is scored.
PREDICTS_TIME: Final = False
#: Bytes of a row's unit. Unknown: nvidia-smi and torch's own counters divide by powers of two.
UNITS: Final[Mapping[str, int]] = {
    "GB": 10**9, "GiB": GIB, "MB": 10**6, "MiB": MIB, "unknown": GIB,
}  # fmt: skip
#: What a kind of memory figure is held against; unknown kinds are shown beside allocated.
FIELDS: Final = {
    "allocated": "peak_allocated_bytes", "reserved": "peak_reserved_bytes",
    "nvidia-smi": "device_used_bytes", "unknown": "peak_allocated_bytes",
}  # fmt: skip
#: Throughput figures, the first a row has is its own.
RATES: Final = ("tokens_per_s_per_gpu", "step_s", "tflops_per_gpu")


class Pair(NamedTuple):
    """One figure of a row, predicted and measured, in bytes, seconds, tokens/s or FLOP/s.

    what: memory or throughput. kind: of memory its mem_kind, of throughput the column. scored: whether
    it counts; an unknown memory kind is shown only.
    """

    row: Row
    what: str
    kind: str
    predicted: float
    measured: float
    scored: bool
    assumed: tuple[str, ...]

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted / self.measured - 1


class Left(NamedTuple):
    """A row without a pair, and why."""

    row: Row
    reason: str


class Priced(NamedTuple):
    """Every row of a file, once: as pairs, or with the reason it has none."""

    pairs: list[Pair]
    unexpressed: list[Left]
    unscored: list[Left]


def price(rows: Iterable[Row], tell: Tell | None = None) -> Priced:
    """Price every row. tell: called with (row's id, rows done, rows in all)."""
    found = Priced([], [], [])
    listed = list(rows)
    for done, row in enumerate(listed):
        if tell is not None:
            tell(row.id, done, len(listed))
        try:
            pairs = price_row(row)
        except NotExpressedError as error:
            found.unexpressed.append(Left(row, str(error)))
            continue
        found.pairs.extend(pairs)
        if not pairs:
            found.unscored.append(Left(row, _nothing_predicted(row)))
    return found


def price_row(row: Row) -> list[Pair]:
    """The pairs of one row, none where it measured nothing this version predicts.

    Raises NotExpressedError with the reason when the row cannot be priced.
    """
    stated = express(row)
    if row.number("mem_gb") is None and not PREDICTS_TIME:
        return []
    try:
        result = estimate(
            stated.config, stated.setup,
            parallel=stated.plan, gpu=stated.gpu, kernels=stated.kernels,
        )  # fmt: skip
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None
    found = (_memory(row, stated, result), _throughput(row, stated, result))
    return [pair for pair in found if pair is not None]


def _memory(row: Row, stated: Expressed, result: Estimate) -> Pair | None:
    size = row.number("mem_gb")
    if size is None:
        return None
    kind = row.text("mem_kind") or "unknown"
    predicted = predicted_bytes(kind, row.text("mem_rank") or "worst", result.stages)
    unit = row.text("mem_unit") or "unknown"
    assumed = [*stated.assumed, *(["unit not stated: GiB"] if unit == "unknown" else [])]
    return Pair(
        row, "memory", kind, predicted, round(size * UNITS[unit]), kind != "unknown", tuple(assumed)
    )


def predicted_bytes(kind: str, rank: str, stages: tuple[MemoryEstimate, ...]) -> int:
    """The bytes of one kind on the rank a row speaks of: a stage's, or the most of any stage."""
    one = {"first": stages[:1], "last": stages[-1:]}.get(rank, stages)
    return max(int(getattr(stage, FIELDS[kind])) for stage in one)


def _throughput(row: Row, stated: Expressed, result: Estimate) -> Pair | None:
    kind = next((name for name in RATES if row.number(name) is not None), None)
    if kind is None:
        return None
    predicted = predicted_rate(kind, row.text("flops_kind"), result)
    measured = row.number(kind)
    if predicted is None or measured is None:
        return None
    scale = 1e12 if kind == "tflops_per_gpu" else 1.0
    return Pair(row, "throughput", kind, predicted, measured * scale, True, tuple(stated.assumed))


def predicted_rate(kind: str, flops_kind: str | None, result: Estimate) -> float | None:
    """Step time, tokens/s or FLOP/s of a GPU; None while estimates carry no times.

    FLOP/s are counted as the row's source counts them: the full square of attention, its causal half,
    or what the hardware executes.
    """
    time = result.time
    if kind == "step_s":
        return time.step_s
    rate = time.tokens_per_s_per_gpu
    if kind == "tokens_per_s_per_gpu" or rate is None:
        return rate
    each = {
        "model-full-square": time.model_flops_per_token,
        "model-causal": time.model_flops_causal_per_token,
        "hardware": time.executed_flops_per_token,
    }.get(flops_kind or "")
    return None if each is None else rate * each


def _nothing_predicted(row: Row) -> str:
    if any(row.number(name) is not None for name in RATES):
        return "gives no memory; its throughput is not predicted in this version"
    return "gives neither memory nor a rate"
