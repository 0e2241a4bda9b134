"""A verification as text: predicted beside measured, what differs and why, how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.output.console import Page
from memcalc.output.measure_text import how, title
from memcalc.units import gib, si

_GROUPS = {
    "states": "Model states", "tensors": "Tensors of a step", "allocator": "Allocator",
    "driver": "Driver", "work": "Work of a micro-batch", "time": "Time",
}  # fmt: skip


def verify_page(page: Page, record: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """The whole page."""
    title(page, record, stated)
    comparison = record.get("comparison")
    if comparison is None:
        return
    for group, said in _GROUPS.items():
        table_of(page, said, [row for row in comparison["rows"] if row["group"] == group])
    _ops(page, record.get("ops") or ())
    for difference in comparison["differences"]:
        page.line(f"known to differ: {difference['cause']} ({', '.join(difference['rows'])})")
    for line in _judged_how(record):
        page.line(line)
    page.line()
    page.line(verdict_line(record), "bold green" if comparison["verified"] else "bold red")


def table_of(page: Page, said: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of a comparison's rows under a heading; none where there are no rows."""
    if rows:
        columns = (said, ">predicted", ">measured", ">difference", "verdict")
        page.table(columns, [_cells(row) for row in rows])


def verdict_line(record: Mapping[str, Any]) -> str:
    """The verdict in a sentence; names the rows outside their band."""
    comparison = record["comparison"]
    rows = comparison["rows"]
    outside = [row for row in rows if row["verdict"] == "outside"]
    judged = [row for row in rows if row["verdict"] in ("equal", "inside")]
    if not comparison["verified"]:
        worst = ", ".join(f"{row['name']} {_error(row)}" for row in outside)
        return f"not verified: {worst or 'nothing could be compared'}"
    equal = sum(row["verdict"] == "equal" for row in judged)
    rest = len(judged) - equal
    return f"verified: {equal} figures equal" + (f", {rest} inside their band" if rest else "")


def quiet_line(record: Mapping[str, Any]) -> str:
    """The verdict, the largest error in per cent, and the throughput, in one line."""
    comparison, time = record.get("comparison"), record.get("time") or {}
    if comparison is None:
        return f"status {record['status']}"
    errors = [abs(row["error_pct"]) for row in comparison["rows"] if row["error_pct"] is not None]
    rate = time.get("tokens_per_s")
    said = "verified" if comparison["verified"] else "outside"
    return (
        f"{said} worst_error_pct {max(errors, default=0.0):.4g} "
        f"tokens/s {'none' if rate is None else format(rate, '.6g')} status {record['status']}"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    predicted, measured = (_figure(row[name], row["unit"]) for name in ("predicted", "measured"))
    difference = row["difference"]
    apart = "" if difference is None else "0" if difference == 0 else _error(row)
    return row["name"], predicted, measured, apart, row["verdict"]


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        return f"{value * 1000:,.2f} ms"
    if unit == "tokens/s":
        return f"{value:,.1f}"
    return f"{value:,}" if unit == "bytes" else si(value, unit)


def _error(row: Mapping[str, Any]) -> str:
    """How far off, in per cent where there is one, else in bytes."""
    error, difference = row["error_pct"], row["difference"]
    if error is not None:
        return f"{error:+.2f}%" if abs(error) >= 0.005 else f"{difference:+,.0f}"
    return "" if difference is None else f"{difference:+,.0f}"


def _ops(page: Page, ops: Sequence[Mapping[str, Any]]) -> None:
    """Measured time of each operator of the ledger beside the predicted, largest first."""
    total = sum(op["seconds"] for op in ops)
    if not total:
        return
    names = dict.fromkeys(op["op"] for op in ops)
    table = {name: [_sums(ops, name, ways) for ways in _WAYS.values()] for name in names}
    rows = []
    for name, pairs in sorted(table.items(), key=lambda item: -sum(s for s, _ in item[1])):
        cells = [f"{1000 * s:,.3f}" if s else "" for pair in pairs for s in pair]
        rows.append((name, *cells, f"{sum(s for s, _ in pairs) / total:.1%}"))
    heads = [head for way in _WAYS for head in (f">{way}", ">told")]
    page.table(("Operator, ms", *heads, ">share"), rows)
    page.line("operators: ms of a step by the profiler; told: predicted, not judged")
    if any(op["direction"] == "recompute" for op in ops):
        page.line("what is recomputed is counted with backward")


#: Columns of the operators' table, and the directions they sum.
_WAYS = {"forward": ("forward",), "backward": ("backward", "recompute"), "step": ("step",)}


def _sums(
    ops: Sequence[Mapping[str, Any]], name: str, ways: tuple[str, ...]
) -> tuple[float, float]:
    """(measured, predicted) seconds of an operator in some directions."""
    mine = [op for op in ops if op["op"] == name and op["direction"] in ways]
    return sum(op["seconds"] for op in mine), sum(op.get("predicted_s") or 0.0 for op in mine)


def _judged_how(record: Mapping[str, Any]) -> list[str]:
    """What was measured how, and what the bands are."""
    lines = how(record)
    memory = record["memory"]
    lines.append("band of states, tensors and FLOPs: 0, they are compared exactly")
    if memory.get("allocator") is not None:
        lines.append(
            "band of allocated, reserved, driver-used: the estimate's own, printed with it"
        )
        estimate = record["estimate"]["memory"]
        low, high = estimate["low_bytes"], estimate["high_bytes"]
        if low is not None and high is not None:
            lines.append(f"driver-used was to lie between {gib(low)} and {gib(high)}")
    return [*lines, *_timed_how(record["estimate"]["time"])]


def _timed_how(time: Mapping[str, Any]) -> list[str]:
    """The band of the step's time, and what it rests on."""
    step, low, high = (time.get(name) for name in ("step_s", "low_s", "high_s"))
    if step is None:
        return ["step time: measured only; `memcalc calibrate` makes rates of this device"]
    lines = [f"calibration of the times: {time.get('calibration')}"]
    if low is not None and high is not None:
        lines.append(
            f"band of step and tokens/s: {low / step - 1:+.0%} to {high / step - 1:+.0%} of the "
            "predicted seconds; of a phase: both factors squared"
        )
    return lines
