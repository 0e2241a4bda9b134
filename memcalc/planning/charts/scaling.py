"""The scaling chart's object: throughput and utilisation over GPUs, weak and strong, against the ideal.

Weak: every data-parallel rank keeps its batch. Strong: the global batch is the same at every count.
Efficiency is a line's tokens/s a GPU over that of its smallest count that fits (where none fits: of its
smallest); the ideal is that count's rate times the GPUs. Above 1 says which part of a GPU's time per
token fell most, as sharded optimizer states do. Checked by: unit/test_chart_scaling.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.planning.cases import Point
from memcalc.planning.charts.sweep import missing, need_of, refusals
from memcalc.planning.charts.sweep_axes import number_text, shared
from memcalc.planning.charts.sweep_values import VALUES, Value, amount_text
from memcalc.planning.rows import row_of
from memcalc.units import GIB, gib

WEAK, STRONG = "weak", "strong"
#: Parts of a step that efficiency is explained with, and what each means when it falls.
PARTS: Final = {
    "optimizer_s": "each GPU updates fewer parameters",
    "bubble_s": "the pipeline's bubble is a smaller share",
    "exposed_communication_s": "less communication is waited for",
    "computing_s": "kernels are better filled",
}
#: What is above this is said to be above the ideal; most lines whose efficiency is told.
_ABOVE: Final = 1.005
_AHEAD: Final = "above the ideal"
_TOLD: Final = 2
Row = dict[str, Any]


class Line(NamedTuple):
    """One line of the chart. series: what tells it from others of its mode; points by rising GPUs."""

    mode: str
    series: str
    gpus: tuple[int, ...]
    points: tuple[Point, ...]


def scaling(
    head: Mapping[str, Any], lines: Sequence[Line], value: Value | None = None,
    price: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The JSON object of a scaling chart.

    head: `planning/charts/head.py: head`. value: what the lower panel shows (mfu, mfu_causal or hfu).
    price: USD an hour of a GPU. Rows are those of `planning/rows.py` and what `_row` adds.
    """
    made = [_line(line, price) for line in lines]
    rows = [row for _, of in made for row in of]
    judged = any(row["fits"] is not None for row in rows)
    lower = VALUES["mfu"] if value is None else value
    return {
        **head,
        "panels": [VALUES["tokens-per-s"]._asdict(), lower._asdict()],
        "lines": [line for line, _ in made],
        "gpus": sorted({gpus for line in lines for gpus in line.gpus}),
        "count": len(rows),
        "fits_count": sum(bool(row["fits"]) for row in rows) if judged else None,
        "refused_count": sum(row["reason"] is not None for row in rows),
        "usable_bytes": shared(rows, "usable_bytes"),
        "says": _says([line for line, _ in made], rows),
        "notes": refusals(rows),
        "rows": rows,
    }


def _line(line: Line, price: float | None) -> tuple[dict[str, Any], list[Row]]:
    """A line's summary and its rows."""
    rows = [_row(line, i, price) for i in range(len(line.points))]
    timed = [row for row in rows if row["tokens_per_s"]]
    fitting = [row for row in timed if row["fits"] is not False]
    base = next(iter(fitting or timed), None)
    if base is not None:
        for row in timed:
            row["efficiency"] = row["tokens_per_s_per_gpu"] / base["tokens_per_s_per_gpu"]
            row["ideal_tokens_per_s"] = base["tokens_per_s_per_gpu"] * row["gpus"]
            row["why"] = row["why"] or _above(row, base)
    last = next(reversed(fitting), None)
    found = {
        "mode": line.mode,
        "series": line.series,
        "base_gpus": None if base is None else base["gpus"],
        "base_fits": None if base is None else base["fits"],
        "last_gpus": None if last is None else last["gpus"],
        "efficiency": None if last is None else last["efficiency"],
        "global_batch": shared(rows, "global_batch") if line.mode == STRONG else None,
        "sequences_per_replica": shared(rows, "sequences_per_replica"),
    }
    return found, rows


def _row(line: Line, index: int, price: float | None) -> Row:
    """A row of `planning/rows.py` with its line, its batch, and the parts of its step in seconds.

    why: what stands in a point's way, or why it is above the ideal; None otherwise.
    """
    point = line.points[index]
    row = {"mode": line.mode, "series": line.series, **row_of(point, price)}
    row["gpus"] = line.gpus[index]
    for name in (
        "global_batch",
        "sequences_per_replica",
        "efficiency",
        "ideal_tokens_per_s",
        *PARTS,
    ):
        row[name] = None
    row["why"] = row["reason"]
    result = point.result
    if result is None:
        return row
    setup, time = result.setup, result.time
    row["global_batch"] = setup["global_batch"]
    row["sequences_per_replica"] = setup["micro_batch_size"] * setup["grad_accum_steps"]
    if time.step_s is not None:
        parts = {name: getattr(time, name) or 0.0 for name in PARTS if name != "computing_s"}
        row.update(parts, computing_s=time.step_s - sum(parts.values()))
    if row["fits"] is False:
        over = missing(row)
        row["why"] = f"{amount_text(over / GIB)} GiB over" if over else _host(result.notes)
    return row


def _host(notes: Sequence[str]) -> str:
    return next((note for note in reversed(notes) if "host" in note), "host memory too small")


def _above(row: Row, base: Row) -> str | None:
    """Why a row is above the ideal: the part of a GPU's seconds per token that fell most from the base's."""
    if row["efficiency"] <= _ABOVE or row["gpus"] < base["gpus"]:
        return None

    def per_token(of: Row, part: str) -> float:
        return float(of[part] / (of["tokens_per_s_per_gpu"] * of["step_s"]))

    most = max(PARTS, key=lambda part: per_token(base, part) - per_token(row, part))
    return f"{_AHEAD}: {PARTS[most]}"


def _says(lines: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """The finding, in one line."""
    if not any(row["fits"] is not False and row["reason"] is None for row in rows):
        return _nothing(rows)
    told = []
    for line in lines:
        if line["efficiency"] is None:
            continue
        name = f"{line['series']}: " if line["series"] and line["mode"] == lines[0]["mode"] else ""
        told.append(name + _efficiency(line, rows))
    shown = told if len(told) <= _TOLD else _fastest(rows)
    missed = sum(row["fits"] is False for row in rows)
    refused = sum(row["reason"] is not None for row in rows)
    counts = [f"{missed} of {len(rows)} do not fit"] if missed else []
    counts += [f"{refused} refused"] if refused else []
    return "; ".join([*shown, *_whys(rows), *counts]) or f"{len(lines)} lines, all fit"


def _efficiency(line: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """How much of its base's rate a line keeps at its last count that fits."""
    last = number_text(line["last_gpus"])
    if line["last_gpus"] == line["base_gpus"]:
        key = (line["mode"], line["series"], line["last_gpus"])
        row = next(row for row in rows if (row["mode"], row["series"], row["gpus"]) == key)
        return f"{row['tokens_per_s']:,.0f} tokens/s at {last} GPUs ({line['mode']})"
    against = number_text(line["base_gpus"])
    return f"{line['efficiency']:.0%} {line['mode']} efficiency at {last} GPUs against {against}"


def _fastest(rows: Sequence[Row]) -> list[str]:
    """The fastest line at the most GPUs where one fits."""
    fitting = [row for row in rows if row["fits"] is not False and row["tokens_per_s"]]
    if not fitting:
        return []
    best = max(fitting, key=lambda row: (row["gpus"], row["tokens_per_s"]))
    return [
        f"fastest at {number_text(best['gpus'])} GPUs: {best['series']} ({best['mode']}), "
        f"{best['tokens_per_s']:,.0f} tokens/s"
    ]


def _whys(rows: Sequence[Row]) -> list[str]:
    """What is above the ideal and where, each reason once."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row["why"] and row["why"].startswith(_AHEAD):
            counts.setdefault(row["why"].removeprefix(_AHEAD), []).append(row["gpus"])
    told = []
    for why, gpus in counts.items():
        ends = dict.fromkeys(number_text(count) for count in (min(gpus), max(gpus)))
        told.append(f"above the ideal at {' to '.join(ends)} GPUs{why}")
    return told


def _nothing(rows: Sequence[Row]) -> str:
    priced = [row for row in rows if row["reason"] is None]
    if not priced:
        return f"all {len(rows)} refused: {rows[0]['reason']}"
    nearest = min(priced, key=lambda row: missing(row) or 0)
    need, usable = gib(need_of(nearest) or 0), gib(nearest["usable_bytes"])
    return (
        f"nothing fits: the nearest, {number_text(nearest['gpus'])} GPUs, needs {need} of {usable} "
        f"usable, {nearest['why']}"
    )
