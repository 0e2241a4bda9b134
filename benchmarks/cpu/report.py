"""Predicted over measured of the CPU benchmark: scores, the record's line, tables. No torch.

An error is predicted / measured - 1: positive is predicted too slow.
Checked by: tests/harness/test_cpu_time.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("forward", "backward", "optimizer")


def scores(rows: Sequence[Mapping[str, Any]], name: str = "error") -> dict[str, float | int]:
    """n, median |error|, mean |error|, bias (the mean error), the worst, and the share within 15 %."""
    errors = [row[name] for row in rows]
    sizes = [abs(error) for error in errors]
    return {
        "n": len(errors),
        "median_abs_error": statistics.median(sizes),
        "mean_abs_error": statistics.fmean(sizes),
        "bias": statistics.fmean(errors),
        "worst_abs_error": max(sizes),
        "within_15_pct": sum(size <= 0.15 for size in sizes) / len(sizes),
    }


def by_group(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Scores of all rows and of each family and precision."""
    found = {"all": scores(rows), "all, of medians": scores(rows, "error_of_median")}
    for key in ("family", "precision"):
        for value in sorted({row["decoder"][key] for row in rows}):
            found[value] = scores([row for row in rows if row["decoder"][key] == value])
    return found


def tables(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Rich tables: the decoders, then the scores."""
    from rich.table import Table

    each = Table(title="Seconds of a step on this CPU; error: predicted / measured - 1")
    for column in ("decoder", "predicted ms", "measured ms", "error", *PARTS):
        each.add_column(column, justify="left" if column == "decoder" else "right")
    for row in rows:
        parts = (row["part_errors"][part] for part in PARTS)
        each.add_row(
            row["label"], f"{row['predicted_s'] * 1e3:,.1f}", f"{row['measured_s'] * 1e3:,.1f}",
            f"{row['error']:+.1%}", *(f"{part:+.0%}" for part in parts),
        )  # fmt: skip
    return [each, scores_table(groups, "Scores; the aim is a median of at most 15 %")]


def scores_table(groups: Mapping[str, Mapping[str, Any]], title: str) -> Any:
    """A rich table of scores by group."""
    from rich.table import Table

    whole = Table(title=title)
    for column in ("rows", "n", "median |error|", "mean", "bias", "worst", "within 15 %"):
        whole.add_column(column, justify="left" if column == "rows" else "right")
    for name, one in groups.items():
        whole.add_row(
            name, str(one["n"]), f"{one['median_abs_error']:.1%}", f"{one['mean_abs_error']:.1%}",
            f"{one['bias']:+.1%}", f"{one['worst_abs_error']:.1%}", f"{one['within_15_pct']:.0%}",
        )  # fmt: skip
    return whole
