"""Error tables: how far predictions lie from what was measured, over rows and over sources.

error = predicted / measured - 1, in percent; of a step time that of its speed, so that + is always too
large or too fast. Rows of one table that state the same setup but for the number of micro-batches, or
for who reports it, are one measurement: they share a weight of 1. mae is the weighted mean of |error|,
bias that of the signed error; median, p90 and worst are of |error|, so that a bound on them is one
comparison. `measurements` is the sum of weights, n the rows; `each` the same with every row as one.
Checked by: unit/test_accuracy_scores.py (against figures worked out by hand).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from memcalc.accuracy.groups import ORDER, count_class, gpu_type, is_fitted, is_promised, size_class
from memcalc.accuracy.pricing import Pair
from memcalc.accuracy.rows import Row

if TYPE_CHECKING:
    import pandas as pd

#: Columns in which two rows of one measurement may differ.
ASIDE: Final = frozenset({
    "id", "source", "ref", "confidence", "priceable", "why_not", "global_batch", "grad_accum",
    "framework_text", "interconnect_text", "precision_text", "optimizer_text", "mem_gb", "mem_unit",
    "mem_kind", "mem_rank_note", "step_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "flops_kind",
    "mfu_pct", "hfu_pct",
})  # fmt: skip
_FIELDS: Final = ("id", "source", "confidence", "priceable", "what", "kind", "predicted", "measured",
                  "error_pct", "scored", "setup", "model_size", "gpu", "gpus", "fitted",
                  "promised")  # fmt: skip
_ERRORS: Final = ("mae_pct", "bias_pct", "median_pct", "p90_pct")


def setup_key(row: Row) -> str:
    """What makes two rows the same setup: every stated cell but those of ASIDE."""
    return repr(sorted((k, v) for k, v in row.cells.items() if k not in ASIDE))


def frame_of(pairs: Iterable[Pair]) -> pd.DataFrame:
    """A row for every pair: who, what, predicted, measured, error_pct, and the setup's key."""
    import pandas as pd

    rows = [
        (p.row.id, p.row.source, p.row.text("confidence"), p.row.text("priceable"), p.what, p.kind,
         p.predicted, p.measured, 100 * p.error, p.scored, setup_key(p.row), size_class(p),
         gpu_type(p), count_class(p.row), is_fitted(p.row), is_promised(p))
        for p in pairs
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(_FIELDS)).astype(
        {"scored": bool, "fitted": bool, "promised": bool}
    )


def weights(frame: pd.DataFrame) -> pd.Series[float]:
    """1 for a setup that stands alone, 1/k for each of k rows with one setup, kind and figure."""
    same = frame.groupby(["setup", "what", "kind"], dropna=False)["id"]
    return 1.0 / same.transform("size").astype(float)


def score(frame: pd.DataFrame) -> dict[str, Any]:
    """n, mae_pct, bias_pct, median_pct, p90_pct, worst_pct of the scored rows; `each`: unweighted."""
    scored = frame[frame["scored"]]
    if scored.empty:
        nothing = dict.fromkeys(_ERRORS)
        worst = {"worst_pct": None, "worst_id": None}
        return {"n": 0, "measurements": 0.0, **nothing, **worst, "each": nothing}
    weight, error = list(weights(scored)), list(scored["error_pct"])
    size = [abs(one) for one in error]
    return {
        "n": len(scored),
        "measurements": round(float(sum(weight)), 6),
        **_errors(error, weight),
        "worst_pct": max(size),
        "worst_id": list(scored["id"])[size.index(max(size))],
        "each": _errors(error, [1.0] * len(error)),
    }


def _errors(error: Sequence[float], weight: Sequence[float]) -> dict[str, float]:
    """Mean, bias, median and p90 of weighted errors."""
    total, size = sum(weight), [abs(one) for one in error]
    return {
        "mae_pct": sum(w * one for w, one in zip(weight, size, strict=True)) / total,
        "bias_pct": sum(w * one for w, one in zip(weight, error, strict=True)) / total,
        "median_pct": quantile(size, weight, 0.5),
        "p90_pct": quantile(size, weight, 0.9),
    }


def quantile(values: Sequence[float], weight: Sequence[float], share: float) -> float:
    """The least value with `share` of the weight at or below it; midway where that splits exactly."""
    ordered = sorted(zip(values, weight, strict=True))
    goal, reached = share * sum(weight), 0.0
    for (value, own), following in zip(ordered, [*ordered[1:], ordered[-1]], strict=True):
        reached += own
        if reached > goal * (1 + 1e-12):
            return float(value)
        if reached >= goal * (1 - 1e-12):
            return float(value + following[0]) / 2
    return float(ordered[-1][0])


def by(frame: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """Scores for each value of a column and each kind in it: {value: {kind: score, "all": score}}."""
    found: dict[str, dict[str, Any]] = {}
    for value, part in frame.groupby(column, dropna=False, sort=True):
        found["not stated" if value is None or value != value else str(value)] = kinds(part)
    place = {name: number for number, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], -1)))


def kinds(frame: pd.DataFrame) -> dict[str, Any]:
    """Scores of each kind that is scored, and of all of them together."""
    scored = frame[frame["scored"]]
    if scored.empty:
        return {}
    found = {str(kind): score(part) for kind, part in scored.groupby("kind", sort=True)}
    return {**found, "all": score(scored)}


def over_sources(frame: pd.DataFrame) -> dict[str, Any]:
    """Each source's mean error as one: the mean of their mae, of their bias, and the worst mae."""
    each = [score(part) for _, part in frame[frame["scored"]].groupby("source", sort=True)]
    if not each:
        return {"sources": 0, "mae_pct": None, "bias_pct": None, "worst_pct": None}
    return {
        "sources": len(each),
        "mae_pct": sum(s["mae_pct"] for s in each) / len(each),
        "bias_pct": sum(s["bias_pct"] for s in each) / len(each),
        "worst_pct": max(s["mae_pct"] for s in each),
    }
