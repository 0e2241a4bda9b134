"""Throughput of a row: which figure it gives, and the same figure of an estimate.

Tables count FLOPs and utilisation in three ways (`flops_kind`); a figure is held against the one
counted as its source counts it, which an estimate's own ledger gives: no FLOP formula is here.
Checked by: unit/test_accuracy_throughput.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from memcalc.accuracy.rows import Row
from memcalc.engine.timing.time_estimate import TimeEstimate

#: Figures of speed, the first that a row has is its own; what one of a row's cell is worth.
KINDS: Final[Mapping[str, float]] = {
    "tokens_per_s_per_gpu": 1.0, "step_s": 1.0, "tflops_per_gpu": 1e12, "mfu_pct": 1.0, "hfu_pct": 1.0,
}  # fmt: skip
#: Parts of a step whose seconds are shown beside a row, in this order.
PARTS: Final = (
    "step_s", "compute_s", "launch_s", "exposed_communication_s", "bubble_s", "optimizer_s",
    "offload_s",
)  # fmt: skip
#: What rows of one source must share for their rates to be comparable.
_ALIKE: Final = ("source", "model", "gpu", "precision", "recompute")
#: A rate so many times below another's of the table contradicts it.
CONTRADICTION: Final = 3.0
_FLOPS: Final[Mapping[str, Callable[[TimeEstimate], float]]] = {
    "model-full-square": lambda time: time.model_flops_per_token,
    "model-causal": lambda time: time.model_flops_causal_per_token,
    "hardware": lambda time: time.executed_flops_per_token,
}
_MFU: Final[Mapping[str, Callable[[TimeEstimate], float | None]]] = {
    "model-full-square": lambda time: time.mfu,
    "model-causal": lambda time: time.mfu_causal,
    "hardware": lambda time: time.hfu,
}


def kind_of(row: Row) -> str | None:
    """The figure of speed a row gives, None where it gives none."""
    return next((name for name in KINDS if row.number(name) is not None), None)


def predicted_rate(kind: str, flops_kind: str | None, time: TimeEstimate) -> float | None:
    """A step time in s, tokens/s or FLOP/s of a GPU, or a utilisation in percent.

    None where the estimate has no time, or the source does not say what it counted.
    """
    if kind == "step_s":
        return time.step_s
    rate = time.tokens_per_s_per_gpu
    if kind == "tokens_per_s_per_gpu" or rate is None:
        return rate
    if kind == "tflops_per_gpu":
        counted = _FLOPS.get(flops_kind or "")
        return None if counted is None else rate * counted(time)
    used = _MFU.get("hardware" if kind == "hfu_pct" else flops_kind or "")
    share = None if used is None else used(time)
    return None if share is None else 100 * share


def parts_of(time: TimeEstimate) -> dict[str, float]:
    """Seconds of a predicted step by what they go to; parts that are 0 left out."""
    found = {name: getattr(time, name) for name in PARTS}
    return {name: float(value) for name, value in found.items() if value}


def contradicted(table: Iterable[Row]) -> dict[str, str]:
    """Rows whose own table says that they went wrong: id -> why.

    A row is one when its source ran the same model, sequence, precision and recomputation on the same
    GPUs, as many or more of them, at three times the tokens/s of a GPU: no layout costs that much, a
    stalled run does. What is predicted plays no part.
    """
    alike: dict[tuple[object, ...], list[tuple[int, float, Row]]] = defaultdict(list)
    for row in table:
        rate, gpus = row.number("tokens_per_s_per_gpu"), row.whole("n_gpus")
        if rate is not None and gpus is not None:
            key = (*(row.text(name) for name in _ALIKE), row.whole("seq"), row.text("run"))
            alike[key].append((gpus, rate, row))
    found = {}
    for rows in alike.values():
        for gpus, rate, row in rows:
            most = max(other for count, other, _ in rows if count >= gpus)
            if rate * CONTRADICTION < most:
                found[row.id] = (
                    f"its source has {most:,.0f} tokens/s of this model on {gpus} GPUs or more"
                )
    return found
