"""The accuracy chart's object: predicted against measured, a row a figure, with errors and their spread.

It is made from a report of `memcalc accuracy` as plain values. Every figure of speed is shown as the
tokens/s of a GPU that it means: errors of speed are the same in each unit, so measured = predicted /
(1 + error). Figures of sources that a constant was fitted to are in rows and histogram, but scored apart.
Checked by: unit/test_chart_accuracy.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from memcalc.planning.charts.head import head

#: Panel -> (what it shows, unit of its rows).
PANELS: Final = {
    "memory": ("peak memory", "bytes"),
    "throughput": ("throughput a GPU", "tokens/s"),
}
#: Edges of the histogram's bins, in per cent; errors beyond the last are counted beside it.
EDGES: Final = tuple(range(-50, 55, 5))
#: Per cent of the guides beside the 1:1 line.
GUIDES: Final = (5, 10)
_WORST = 5
Row = dict[str, Any]


def accuracy(report: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The JSON object of a report; origin: whose figures, in words for the title.

    A report without any figure gives panels without rows; `says` then tells why.
    """
    rows = [row for row in map(_row, report["rows"]) if row is not None]
    panels = [_panel(what, rows, report) for what in PANELS if any(r["what"] == what for r in rows)]
    counts = report["counts"]
    found = {
        **head("accuracy", f"predicted against measured: {origin}", _subtitle(report), ()),
        "file": report["file"],
        "filters": dict(report["filters"]),
        "guides_pct": list(GUIDES),
        "edges_pct": list(EDGES),
        "panels": panels,
        "fitted_sources": sorted({row["source"] for row in rows if row["fitted"]}),
        "counts": dict(counts),
        "rows": rows,
        "notes": list(report["notes"]),
    }
    return {**found, "says": _says(found, report)}


def _row(pair: Mapping[str, Any]) -> Row | None:
    """One figure in its panel's unit; None for one of speed whose tokens/s are not known."""
    error = pair["error_pct"]
    predicted, measured = pair["predicted"], pair["measured"]
    if pair["what"] == "throughput":
        predicted = pair["tokens_per_s_per_gpu"]
        if predicted is None:
            return None
        measured = predicted / (1 + error / 100)
    return {
        "what": pair["what"],
        "id": pair["id"],
        "source": pair["source"],
        "setup": pair["setup"],
        "gpu": pair["gpu"],
        "gpus": pair["gpus"],
        "kind": pair["kind"],
        "unit": PANELS[pair["what"]][1],
        "predicted": predicted,
        "measured": measured,
        "error_pct": error,
        "scored": pair["scored"],
        "fitted": pair["what"] == "throughput" and pair["fitted"],
    }


def _panel(what: str, rows: Sequence[Row], report: Mapping[str, Any]) -> dict[str, Any]:
    """Scores and histogram of one quantity; scores are the report's own, of what was not fitted."""
    label, unit = PANELS[what]
    mine = [row for row in rows if row["what"] == what]
    scored = [row for row in mine if row["scored"]]
    evaluated = [row for row in scored if not row["fitted"]]
    score = report["evaluation" if what == "throughput" else "memory"].get("all")
    fitted = report["fitted"].get("all") if what == "throughput" else None
    worst = sorted(evaluated, key=lambda row: -abs(row["error_pct"]))[:_WORST]
    return {
        "what": what,
        "label": label,
        "unit": unit,
        "n": len(evaluated),
        "score": score,
        "fitted_n": len(scored) - len(evaluated),
        "fitted_score": fitted,
        "shown_only": len(mine) - len(scored),
        "within_pct": {str(edge): _within(evaluated, edge) for edge in GUIDES},
        "histogram": histogram(evaluated),
        "fitted_histogram": histogram([row for row in scored if row["fitted"]]),
        "worst": [{key: row[key] for key in ("id", "source", "setup", "gpu", "error_pct")}
                  for row in worst],
    }  # fmt: skip


def _within(rows: Sequence[Row], edge: float) -> float | None:
    """Share of figures whose error is at most `edge` per cent."""
    if not rows:
        return None
    return sum(1 for row in rows if abs(row["error_pct"]) <= edge) / len(rows)


def histogram(rows: Sequence[Row]) -> dict[str, Any]:
    """{"counts" of the bins of EDGES, "below", "above"}; a bin holds its lower edge."""
    errors = [row["error_pct"] for row in rows]
    counts = [0] * (len(EDGES) - 1)
    for error in errors:
        if EDGES[0] <= error < EDGES[-1]:
            counts[int((error - EDGES[0]) // (EDGES[1] - EDGES[0]))] += 1
    return {
        "counts": counts,
        "below": sum(error < EDGES[0] for error in errors),
        "above": sum(error >= EDGES[-1] for error in errors),
    }


def _subtitle(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    chosen = ", ".join(f"{name} {value}" for name, value in report["filters"].items() if value)
    said = f"{counts['rows']} runs: {counts['scored']} scored"
    if counts["shown_only"]:
        said += f", {counts['shown_only']} shown only"
    left = counts["unexpressed"] + counts["unscored"]
    if left:
        said += f", {left} without a figure that can be priced"
    return f"{said}; only {chosen}" if chosen else said


def _says(found: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    if not found["panels"]:
        why = [left["reason"] for left in (*report["unexpressed"], *report["unscored"])]
        return "nothing to compare" + (f": {why[0]}" if why else "")
    return "; ".join(_told(panel) for panel in found["panels"])


def _told(panel: Mapping[str, Any]) -> str:
    score = panel["score"]
    if not panel["n"] or score is None:
        return f"{panel['label']}: nothing scored"
    return (
        f"{panel['label']}: median error {score['median_pct']:.1f} %, bias {score['bias_pct']:+.1f} %, "
        f"n {panel['n']}"
    )
