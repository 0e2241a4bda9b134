"""Predicted over measured, from the sweep's records: n, median, worst, bias of each quantity.

An error is predicted / measured - 1, signed: positive predicts too much. bias is the mean. No torch.
Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: What is compared, and the measured field it is held against.
QUANTITIES = {
    "requested": "peak_requested_bytes",
    "allocated": "peak_allocated_bytes",
    "reserved": "peak_reserved_bytes",
    "used": "device_used_bytes",
}
#: A row further off than this is listed, to be explained.
LARGE = 0.02


def errors(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each record and quantity both sides know: label, role, bytes, error."""
    rows = []
    for record in records:
        said = (record.get("estimate") or {}).get("memory")
        if record.get("kind") != "measure" or record.get("status") != "ok" or not said:
            continue
        sweep = record["sweep"]
        for name, field in QUANTITIES.items():
            predicted, measured = said.get(field), record["memory"].get(field)
            if predicted and measured:
                rows.append({
                    "quantity": name, "key": sweep["key"], "label": sweep["label"],
                    "role": sweep["role"], "predicted_bytes": predicted,
                    "measured_bytes": measured, "error": predicted / measured - 1,
                })  # fmt: skip
    return rows


def times(records: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Steps of the timing stage against the estimate: n, median and mean |error|, bias, each row.

    An error is that of the seconds by default rates; None where nothing has both figures.
    """
    rows = []
    for record in records:
        told = ((record.get("estimate") or {}).get("time") or {}).get("step_s")
        seen = (record.get("time") or {}).get("median_s")
        if record.get("status") == "ok" and told and seen:
            sweep = record["sweep"]
            rows.append({
                "key": sweep["key"], "label": sweep["label"], "predicted_s": told,
                "measured_s": seen, "error": told / seen - 1,
            })  # fmt: skip
    if not rows:
        return None
    sizes = [abs(row["error"]) for row in rows]
    return {
        "n": len(rows), "median": statistics.median(sizes), "mean": statistics.fmean(sizes),
        "bias": statistics.fmean(row["error"] for row in rows), "rows": rows,
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By quantity: n, median and bias of the signed errors, the worst one, those within 2 %."""
    found = {}
    for name in QUANTITIES:
        mine = [row for row in rows if row["quantity"] == name and row["role"] == "main"]
        if not mine:
            continue
        signed = [row["error"] for row in mine]
        worst = max(mine, key=lambda row: abs(row["error"]))
        found[name] = {
            "n": len(mine),
            "median": statistics.median(signed),
            "bias": statistics.fmean(signed),
            "worst": worst["error"],
            "worst_label": worst["label"],
            "within_2_pct": sum(abs(error) <= LARGE for error in signed) / len(signed),
        }
    return found


def large(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows over 2 % off, worst first."""
    picked = [dict(row) for row in rows if abs(row["error"]) > LARGE]
    return sorted(picked, key=lambda row: -abs(row["error"]))


def controls(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A setup measured again in a fresh process, over its measurement in the shared one, less 1."""
    first = {(r["key"], r["quantity"]): r for r in rows if r["role"] == "main"}
    return [
        {"label": row["label"], "quantity": row["quantity"],
         "difference": row["measured_bytes"] / main["measured_bytes"] - 1}
        for row in rows
        if row["role"] == "control" and (main := first.get((row["key"], row["quantity"])))
    ]  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """The summary as a rich table."""
    from rich.table import Table

    shown = Table(title="Predicted over measured, less 1 (positive: predicted too much)")
    for column in ("quantity", "n", "median", "bias", "worst", "within 2 %", "worst setup"):
        left = column in ("quantity", "worst setup")
        shown.add_column(column, justify="left" if left else "right", overflow="fold")
    for name, row in found.items():
        shown.add_row(
            name, str(row["n"]), f"{row['median']:+.2%}", f"{row['bias']:+.2%}",
            f"{row['worst']:+.2%}", f"{row['within_2_pct']:.0%}", row["worst_label"],
        )  # fmt: skip
    return shown
