"""The result of `memcalc accuracy` as plain dicts: the contract's JSON, and a CSV row for every row.

Names are a contract: `memory` and `throughput` by kind, `rows`, `unexpressed`; the rest is beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from memcalc.accuracy import scores
from memcalc.accuracy.pricing import PREDICTS_TIME, Left, Pair, Priced
from memcalc.accuracy.rows import Row
from memcalc.engine.results import SCHEMA
from memcalc.errors import ConfigError, unknown

CSV_COLUMNS: Final = ("id", "source", "confidence", "priceable", "status", "what", "kind", "predicted",
                      "measured", "error_pct", "reason", "assumed")  # fmt: skip
_UNITS: Final = {
    "memory": "bytes", "tokens_per_s_per_gpu": "tokens/s", "step_s": "s", "tflops_per_gpu": "FLOP/s",
}  # fmt: skip


def choose(rows: Iterable[Row], filters: Mapping[str, str | None]) -> list[Row]:
    """The rows that agree with every filter given; a source by any part of its name.

    Raises ConfigError naming the sources there are, or the values left, when none agrees.
    """
    kept = list(rows)
    for name, wanted in filters.items():
        if wanted is None:
            continue
        before = kept
        if name == "source":
            kept = [row for row in kept if wanted.lower() in row.source.lower()]
            if not kept:
                raise unknown("--source", wanted, {row.source for row in before})
        else:
            kept = [row for row in kept if row.text(name) == wanted]
            if not kept:
                found = sorted({row.text(name) or "not stated" for row in before})
                raise ConfigError(f"--{name}: got {wanted}; rule: a value of a row; valid: "
                                  + ", ".join(found))  # fmt: skip
    return kept


def report(
    priced: Priced, file: str, filters: Mapping[str, str | None], notes: Iterable[str] = ()
) -> dict[str, Any]:
    """The JSON object. Checked by: cli/test_accuracy.py."""
    from memcalc import __version__

    frame = scores.frame_of(priced.pairs)
    memory, rate = (frame[frame["what"] == what] for what in ("memory", "throughput"))
    return {
        "schema": SCHEMA,
        "memcalc": __version__,
        "file": file,
        "filters": dict(filters),
        "counts": _counts(priced),
        "memory": scores.kinds(memory),
        "throughput": scores.kinds(rate),
        "over_sources": {
            "memory": scores.over_sources(memory), "throughput": scores.over_sources(rate),
        },
        "by_source": _split(memory, rate, "source"),
        "by_confidence": _split(memory, rate, "confidence"),
        "by_priceable": _split(memory, rate, "priceable"),
        "rows": [_pair(pair) for pair in priced.pairs],
        "unexpressed": [_left(left) for left in priced.unexpressed],
        "unscored": [_left(left) for left in priced.unscored],
        "notes": [*notes, *_standing_notes(priced.pairs)],
    }  # fmt: skip


def _split(memory: Any, rate: Any, column: str) -> dict[str, Any]:
    return {"memory": scores.by(memory, column), "throughput": scores.by(rate, column)}


def _counts(priced: Priced) -> dict[str, int]:
    lines = {pair.row.line for pair in priced.pairs}
    scored = {pair.row.line for pair in priced.pairs if pair.scored}
    return {
        "rows": len(lines) + len(priced.unexpressed) + len(priced.unscored),
        "scored": len(scored),
        "shown_only": len(lines - scored),
        "unexpressed": len(priced.unexpressed),
        "unscored": len(priced.unscored),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        **_who(pair.row),
        "setup": _setup(pair.row),
        "what": pair.what,
        "kind": pair.kind,
        "unit": _UNITS.get(pair.kind, _UNITS["memory"]),
        "predicted": pair.predicted,
        "measured": pair.measured,
        "error_pct": 100 * pair.error,
        "scored": pair.scored,
        "assumed": list(pair.assumed),
    }


def _setup(row: Row) -> str:
    """A row's setup in a few words: model, sequence x micro-batch, the degrees above 1."""
    degrees = [(name, row.whole(name) or 1) for name in ("tp", "pp", "cp", "dp", "ep")]
    words = [row.text("model") or row.text("family") or "model",
             f"{row.whole('seq')}x{row.whole('micro_batch')}",
             *(f"{name}{degree}" for name, degree in degrees if degree > 1)]  # fmt: skip
    return " ".join(words)


def _left(left: Left) -> dict[str, Any]:
    return {**_who(left.row), "reason": left.reason}


def _who(row: Row) -> dict[str, Any]:
    return {
        "id": row.id, "line": row.line, "source": row.source,
        "confidence": row.text("confidence"), "priceable": row.text("priceable"),
    }  # fmt: skip


def _standing_notes(pairs: Iterable[Pair]) -> list[str]:
    found = []
    if not PREDICTS_TIME:
        found.append("memory only: this version predicts no times, so no throughput is scored")
    listed = list(pairs)
    if any(pair.what == "memory" and not pair.scored for pair in listed):
        found.append("memory of unknown kind is shown beside predicted allocated and not scored")
    if any("unit not stated: GiB" in pair.assumed for pair in listed):
        found.append(
            "a figure whose unit the source does not say is read as GiB, as nvidia-smi and torch "
            "count; were it GB, it would be 6.9 % smaller"
        )
    return found


def to_csv(found: Mapping[str, Any]) -> str:
    """One line for every figure and every row without one, of a report."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in found["rows"]:
        status = "scored" if row["scored"] else "shown only"
        writer.writerow({**row, "status": status, "assumed": "; ".join(row["assumed"])})
    for status in ("unexpressed", "unscored"):
        writer.writerows({**row, "status": status} for row in found[status])
    return text.getvalue()
