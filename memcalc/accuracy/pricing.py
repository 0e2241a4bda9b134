"""Pricing rows: predicted beside measured, and for every row left out, why.

A row gives memory, throughput or both; each figure that is priced is a `Pair`. A row is never passed
over: it has a pair, or a reason among `unexpressed` (cannot be priced) or `unscored` (could, but gives
nothing this version predicts).
Checked by: unit/test_accuracy_pricing.py, published/test_rows.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.readings import held_against, unit_of
from memcalc.accuracy.rows import Row
from memcalc.accuracy.setups import Expressed, express
from memcalc.accuracy.throughput import KINDS, contradicted, kind_of, parts_of, predicted_rate
from memcalc.engine.device_side import device_from
from memcalc.engine.estimate import estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.rank_memory import communication_of, open_bytes
from memcalc.engine.results import Estimate, MemoryEstimate
from memcalc.errors import ConfigError
from memcalc.units import GIB, MIB

#: (row's id, rows done, rows in all)
Tell = Callable[[str, int, int], None]

MEMORY, THROUGHPUT = "memory", "throughput"
BOTH: Final = (MEMORY, THROUGHPUT)
#: Bytes of a row's unit. Unknown: nvidia-smi and torch's own counters divide by powers of two.
UNITS: Final[Mapping[str, int]] = {
    "GB": 10**9, "GiB": GIB, "MB": 10**6, "MiB": MIB, "unknown": GIB,
}  # fmt: skip
#: What a kind of memory figure is held against; unknown kinds beside allocated, or what readings.py says.
FIELDS: Final = {
    "allocated": "peak_allocated_bytes", "reserved": "peak_reserved_bytes",
    "nvidia-smi": "device_used_bytes", "unknown": "peak_allocated_bytes",
}  # fmt: skip


class Used(NamedTuple):
    """Predicted driver-used bytes of the rank a row speaks of; low, high: what open figures leave."""

    bytes: int
    low: int
    high: int


class Pair(NamedTuple):
    """One figure of a row, predicted and measured, in bytes, seconds, tokens/s, FLOP/s or percent.

    what: memory or throughput. kind: of memory its mem_kind, of throughput the column. scored: whether
    it counts; an unknown memory kind is shown only. gpu: the profile it was priced on. parts: seconds
    of the predicted step by what they go to. rate: predicted tokens/s of a GPU, whatever the kind.
    used: of memory. fits: whether the run is predicted to fit, None where no GPU is named. active: parameters
    that act on one token.
    """

    row: Row
    what: str
    kind: str
    predicted: float
    measured: float
    scored: bool
    assumed: tuple[str, ...]
    parameters: int | None = None
    gpu: str | None = None
    parts: Mapping[str, float] = {}  # noqa: RUF012  # never changed
    rate: float | None = None
    used: Used | None = None
    fits: bool | None = None
    active: int | None = None

    @property
    def error(self) -> float:
        """Predicted over measured - 1; of a step time that of its speed, so that + is too fast."""
        if self.kind == "step_s":
            return self.measured / self.predicted - 1
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


def joined(*parts: Priced) -> Priced:
    """Several priced files, or parts of one, as one."""
    return Priced(
        [pair for part in parts for pair in part.pairs],
        [left for part in parts for left in part.unexpressed],
        [left for part in parts for left in part.unscored],
    )


def price(
    rows: Iterable[Row],
    tell: Tell | None = None,
    what: Collection[str] = BOTH,
    table: Iterable[Row] | None = None,
) -> Priced:
    """Price every row. tell: called with (row's id, rows done, rows in all); what: figures wanted.

    table: the file the rows are of, where they are a choice of it: rates that it contradicts are shown
    and not scored.
    """
    found = Priced([], [], [])
    listed = list(rows)
    wrong = contradicted(listed if table is None else table)
    for done, row in enumerate(listed):
        if tell is not None:
            tell(row.id, done, len(listed))
        try:
            pairs = price_row(row, what)
        except NotExpressedError as error:
            found.unexpressed.append(Left(row, str(error)))
            continue
        found.pairs.extend(_judged(pair, wrong.get(row.id)) for pair in pairs)
        if not pairs:
            found.unscored.append(Left(row, _nothing_predicted(row, what)))
    return found


def _judged(pair: Pair, wrong: str | None) -> Pair:
    """The pair; a rate that its own table contradicts does not count."""
    if wrong is None or pair.what != THROUGHPUT:
        return pair
    return pair._replace(scored=False, assumed=(*pair.assumed, f"not scored: {wrong}"))


def price_row(row: Row, what: Collection[str] = BOTH) -> list[Pair]:
    """The pairs of one row, none where it measured nothing of what is wanted.

    The allocator is simulated only for a row with a memory figure. Raises NotExpressedError with the
    reason when the row cannot be priced.
    """
    stated = express(row)
    with_memory = MEMORY in what and row.number("mem_gb") is not None
    if not with_memory and (THROUGHPUT not in what or kind_of(row) is None):
        return []
    try:
        result = estimate(
            stated.config, stated.setup, parallel=stated.plan, gpu=stated.device,
            kernels=stated.kernels, allocator=with_memory,
        )  # fmt: skip
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None
    found = [_memory(row, stated, result)] if with_memory else []
    if THROUGHPUT in what:
        found.append(_throughput(row, stated, result))
    return [pair for pair in found if pair is not None]


def _memory(row: Row, stated: Expressed, result: Estimate) -> Pair | None:
    size = row.number("mem_gb")
    if size is None:
        return None
    kind = row.text("mem_kind") or "unknown"
    rank = row.text("mem_rank") or "worst"
    held = held_against(row)
    predicted = predicted_bytes(held, rank, result.stages)
    unit, about_unit = unit_of(row)
    assumed = [*stated.assumed, *([about_unit] if about_unit else [])]
    return Pair(
        row, MEMORY, kind, predicted, round(size * UNITS[unit]), kind != "unknown", tuple(assumed),
        result.model.parameters, stated.gpu, used=_used(stated, held, rank, result.stages),
        fits=result.fits, active=result.model.active_parameters,
    )  # fmt: skip


def predicted_bytes(kind: str, rank: str, stages: tuple[MemoryEstimate, ...]) -> int:
    """The bytes of one kind on the rank a row speaks of: a stage's, or the most of any stage."""
    return int(getattr(_spoken_of(kind, rank, stages)[1], FIELDS[kind]))


def _spoken_of(
    kind: str, rank: str, stages: tuple[MemoryEstimate, ...]
) -> tuple[int, MemoryEstimate]:
    """The stage a row speaks of, by its number, and its memory."""
    numbered = list(enumerate(stages))
    one = {"first": numbered[:1], "last": numbered[-1:]}.get(rank, numbered)
    return max(one, key=lambda pair: int(getattr(pair[1], FIELDS[kind])))


def _used(
    stated: Expressed, kind: str, rank: str, stages: tuple[MemoryEstimate, ...]
) -> Used | None:
    """Driver-used bytes of that stage with what open figures leave, before any band of published runs."""
    number, memory = _spoken_of(kind, rank, stages)
    used, reserved = memory.device_used_bytes, memory.peak_reserved_bytes
    if used is None or reserved is None:
        return None
    plan = plan_of(stated.config, stated.setup, stated.kernels, stated.plan)
    device = device_from(stated.device)
    between = communication_of(plan, number, device)
    low, high = open_bytes(plan, device, between, memory.peak_allocated_bytes, used)
    return Used(used, low, high)


def _throughput(row: Row, stated: Expressed, result: Estimate) -> Pair | None:
    kind = kind_of(row)
    measured = None if kind is None else row.number(kind)
    if kind is None or measured is None:
        return None
    predicted = predicted_rate(kind, row.text("flops_kind"), result.time)
    if predicted is None:
        return None
    return Pair(
        row, THROUGHPUT, kind, float(predicted), measured * KINDS[kind], True, tuple(stated.assumed),
        result.model.parameters, stated.gpu, parts_of(result.time), result.time.tokens_per_s_per_gpu,
        fits=result.fits, active=result.model.active_parameters,
    )  # fmt: skip


def _nothing_predicted(row: Row, what: Collection[str]) -> str:
    if kind_of(row) is None and (MEMORY in what or row.number("mem_gb") is None):
        return "gives neither memory nor a rate"
    if THROUGHPUT not in what:
        return "gives no memory"
    if kind_of(row) is None:
        return "gives no rate"
    unsaid = kind_of(row) in ("tflops_per_gpu", "mfu_pct") and row.text("flops_kind") in (
        None, "unknown",
    )  # fmt: skip
    if unsaid:
        return "its source does not say which FLOPs it counts"
    return "no time is predicted: no GPU is named, or its rates are unknown"
