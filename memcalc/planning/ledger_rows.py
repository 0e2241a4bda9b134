"""The ledger with its seconds: one row an op, what `memcalc explain` and the time model say of it.

Sizes and FLOPs are totals over all layers of one micro-batch; seconds are of one micro-batch on the rank
that computes longest, which with pipeline stages holds its own blocks only. Ops that differ between kinds
of block (dense, sparse) share a row, with a formula for each kind where the formulas differ.
Checked by: cli/test_report.py (sums equal explain's totals and the estimate's seconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memcalc.engine.explanation import Amount, Explanation, Row
from memcalc.engine.timing.time_estimate import OpTime

DIRECTIONS = ("forward", "backward", "recompute")
_BACKWARD = ("dgrad", "wgrad")


def ledger_of(found: Explanation, ops: Sequence[OpTime]) -> dict[str, Any]:
    """{"rows", "totals", "dims", "notes"} as plain values; seconds are None without a GPU.

    A row: op, part, where (blocks | once), layers, kinds, params, saved_bytes, forward_flops,
    backward_flops, forward_s, backward_s, recompute_s, bound (of the longest direction), formulas.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found.rows:
        groups.setdefault((_where(row), row.op), []).append(row)
    times: dict[tuple[str, str], list[OpTime]] = {}
    for op in ops:
        times.setdefault((op.part, op.op), []).append(op)
    rows = [_row(alike, times.pop(key, []), bool(ops)) for key, alike in groups.items()]
    rows += [_timed_only(alike) for alike in times.values()]
    return {
        "rows": rows,
        "totals": {key: _sum(rows, key) for key in _SUMMED},
        "dims": dict(found.dims),
        "notes": list(found.notes),
    }


_SUMMED = (
    "params", "saved_bytes", "forward_flops", "backward_flops", "forward_s", "backward_s", "recompute_s",
)  # fmt: skip


def _where(row: Row) -> str:
    """As OpTime.part has it."""
    return "once" if row.kind == "once" else "block"


def _row(alike: list[Row], ops: list[OpTime], timed: bool) -> dict[str, Any]:
    first = alike[0]
    return {
        "op": first.op,
        "part": first.part,
        "where": _where(first),
        "layers": sum(row.layers for row in alike),
        "kinds": [f"{row.layers} x {row.kind}" for row in alike if row.kind != "once"],
        "params": sum(row.params.total for row in alike),
        "saved_bytes": sum(row.saved.total for row in alike),
        "forward_flops": sum(row.flops["forward"].total for row in alike),
        "backward_flops": sum(row.flops[kind].total for row in alike for kind in _BACKWARD),
        **_seconds(ops, timed),
        "formulas": {
            "parameters": _formula(alike, (row.params for row in alike)),
            "saved bytes": _formula(alike, (row.saved for row in alike)),
            "forward FLOPs": _formula(alike, (row.flops["forward"] for row in alike)),
        },
    }


def _timed_only(ops: list[OpTime]) -> dict[str, Any]:
    """An op that launches kernels and is no operator of the decoder, such as summing gradients."""
    zeros = dict.fromkeys(("params", "saved_bytes", "forward_flops", "backward_flops"), 0)
    return {
        "op": ops[0].op, "part": "beside the decoder", "where": ops[0].part, "layers": 0, "kinds": [],
        **zeros, **_seconds(ops, True), "formulas": {},
    }  # fmt: skip


def _seconds(ops: list[OpTime], timed: bool) -> dict[str, Any]:
    """Seconds of each direction (0 where an op does not run, None where no time is known), and bound."""
    found: dict[str, Any] = {f"{direction}_s": 0.0 if timed else None for direction in DIRECTIONS}
    for op in ops:
        found[f"{op.direction}_s"] += op.seconds
    longest = max(ops, key=lambda op: op.seconds, default=None)
    return {**found, "bound": None if longest is None else longest.bound}


def _formula(alike: list[Row], amounts: Iterable[Amount]) -> str:
    """The formula of one layer; by kind where kinds differ; empty where there is nothing."""
    said = {row.kind: amount.formula for row, amount in zip(alike, amounts, strict=True)}
    told = set(said.values())
    if told == {"0"}:
        return ""
    if len(told) == 1:
        return told.pop()
    return "; ".join(f"{kind}: {formula}" for kind, formula in said.items())


def _sum(rows: Iterable[dict[str, Any]], key: str) -> Any:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) if values else None
