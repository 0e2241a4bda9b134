"""The result of `memcalc accuracy` as plain dicts: the contract's JSON, and a CSV row for every row.

Names are a contract: `memory` and `throughput` by kind, `rows`, `unexpressed`; the rest is beside it:
splits (`by_...`), `promised` (the rows the accuracy promised of throughput covers), `fitted_sources`,
`outliers`. Runs that serve are scored apart, under `serving`, by engine; so are those that train adapters,
under `adapters`, by stack.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from memcalc.accuracy import scores
from memcalc.accuracy.adapters import with_adapters
from memcalc.accuracy.groups import FITTED_SOURCES, is_fitted, outliers
from memcalc.accuracy.pricing import BOTH, MEMORY, THROUGHPUT, Left, Pair, Priced
from memcalc.accuracy.readings import READINGS, held_against
from memcalc.accuracy.rows import Row
from memcalc.accuracy.serving import by_engine, is_serving
from memcalc.engine.results import SCHEMA
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.csv_text import safe_cell

CSV_COLUMNS: Final = ("id", "source", "confidence", "priceable", "status", "what", "kind", "predicted",
                      "measured", "error_pct", "reason", "assumed")  # fmt: skip
_UNITS: Final = {
    "memory": "bytes", "tokens_per_s_per_gpu": "tokens/s", "step_s": "s", "tflops_per_gpu": "FLOP/s",
    "mfu_pct": "%", "hfu_pct": "%",
}  # fmt: skip
#: Name of a split -> the column of the frame it is by. Those after the first three are of throughput.
SPLITS: Final = {
    "by_source": "source", "by_confidence": "confidence", "by_priceable": "priceable",
    "by_model_size": "model_size", "by_gpu": "gpu", "by_gpus": "gpus",
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
                sources = {row.source for row in before}
                raise unknown("--source", wanted, sources, "memcalc accuracy")
        else:
            kept = [row for row in kept if row.text(name) == wanted]
            if not kept:
                found = sorted({row.text(name) or "not stated" for row in before})
                raise ConfigError(f"--{name}: got {wanted}; rule: a value of a row; valid: "
                                  + ", ".join(found))  # fmt: skip
    return kept


def report(
    priced: Priced, file: str, filters: Mapping[str, str | None], what: Iterable[str] = BOTH
) -> dict[str, Any]:
    """The JSON object; what: the figures asked for. Checked by: cli/test_accuracy.py."""
    from memcalc import __version__

    pairs = [pair for pair in priced.pairs if _class(pair.row) == "training"]
    frame = scores.frame_of(pairs)
    memory, rate = (frame[frame["what"] == one] for one in BOTH)
    promised = rate[rate["promised"]]
    return {
        "schema": SCHEMA,
        "memcalc": __version__,
        "file": file,
        "filters": dict(filters),
        "what": list(what),
        "counts": _counts(priced),
        "memory": scores.kinds(memory),
        "throughput": scores.kinds(rate),
        "over_sources": {
            "memory": scores.over_sources(memory), "throughput": scores.over_sources(rate),
        },
        **{name: _split(memory, rate, column) for name, column in SPLITS.items()},
        "fitted_sources": list(FITTED_SOURCES),
        "fitted": scores.kinds(rate[rate["fitted"]]),
        "evaluation": scores.kinds(rate[~rate["fitted"]]),
        "promised": {
            "rows": scores.score(promised),
            "over_sources": scores.over_sources(promised),
            "by_source": scores.by(promised, "source"),
            "with_contradicted": scores.score(promised.assign(scored=True)),
        },
        "outliers": [
            {"id": pair.row.id, "source": pair.row.source, "what": pair.what, "kind": pair.kind,
             "error_pct": 100 * pair.error}
            for pair in outliers(priced.pairs)
        ],
        "serving": _apart(by_engine(_of_class(priced.pairs, "serving"))),
        "adapters": _adapters(_of_class(priced.pairs, "adapters")),
        "rows": [_pair(pair) for pair in priced.pairs],
        "unexpressed": [_left(left) for left in priced.unexpressed],
        "unscored": [_left(left) for left in priced.unscored],
        "notes": _notes(priced.pairs),
    }  # fmt: skip


def _class(row: Row) -> str:
    """serving, adapters, or training: of every weight."""
    if is_serving(row):
        return "serving"
    return "adapters" if with_adapters(row) else "training"


def _of_class(pairs: Iterable[Pair], name: str) -> list[Pair]:
    return [pair for pair in pairs if _class(pair.row) == name]


def _adapters(pairs: list[Pair]) -> dict[str, Any]:
    """Scores of runs that train adapters: of each stack, and of all of them where there are several."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.row.text("stack") or "torch", []).append(pair)
    return _apart({**groups, "all": pairs} if len(groups) > 1 else groups)


def _apart(groups: Mapping[str, list[Pair]]) -> dict[str, Any]:
    """Scores of a class that is scored apart: of memory and of throughput, of each group.

    Memory of unknown kind is held against allocated, or as readings.py says, and scored here.
    """
    found: dict[str, Any] = {"memory": {}, "throughput": {}}
    for name, of in groups.items():
        frame = scores.frame_of(of)
        for what in BOTH:
            part = frame[frame["what"] == what]
            if what == MEMORY:
                part = part.assign(scored=True)
            if part["scored"].any():
                found[what][name] = scores.score(part)
    return found


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
        "setup": setup_words(pair.row),
        "class": _class(pair.row),
        "what": pair.what,
        "kind": pair.kind,
        "held_against": held_against(pair.row) if pair.what == MEMORY else None,
        "unit": _UNITS.get(pair.kind, _UNITS["memory"]),
        "predicted": pair.predicted,
        "measured": pair.measured,
        "error_pct": 100 * pair.error,
        "scored": pair.scored,
        "assumed": list(pair.assumed),
        "gpu": pair.gpu,
        "gpus": pair.row.whole("n_gpus"),
        "fitted": is_fitted(pair.row),
        "tokens_per_s_per_gpu": pair.rate,
        "parts": dict(pair.parts),
    }


def setup_words(row: Row) -> str:
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


def _notes(pairs: Iterable[Pair]) -> list[str]:
    found = []
    every = list(pairs)
    listed = _of_class(every, "training")
    found += _serving_notes(_of_class(every, "serving"))
    if any(pair.what == MEMORY and pair.kind == "unknown" for pair in _of_class(every, "adapters")):
        found.append(
            "memory of runs that train adapters is of unknown kind: held against allocated, that of "
            f"{', '.join(READINGS)} in GB against reserved"
        )
    if any(pair.what == MEMORY and not pair.scored for pair in listed):
        found.append("memory of unknown kind is shown beside what it may be and not scored")
    wrong = [pair.row.id for pair in listed if pair.what == THROUGHPUT and not pair.scored]
    if wrong:
        found.append(
            "shown and not scored, contradicted by their own table (the same model three times as "
            f"fast on as many GPUs or more): {', '.join(wrong)}"
        )
    if any("unit not stated: GiB" in pair.assumed for pair in listed):
        found.append(
            "a figure whose unit the source does not say is read as GiB, as nvidia-smi and torch "
            "count; were it GB, it would be 6.9 % smaller"
        )
    if any(pair.what == THROUGHPUT for pair in listed):
        found.append(
            "errors of throughput are of speed, step times included: + is predicted too fast"
        )
        fitted = ", ".join(FITTED_SOURCES)
        found.append(
            f"fitted to rows of: {fitted}; scored apart" if fitted
            else "no constant is fitted to a row of this table"
        )  # fmt: skip
    return found


def _serving_notes(pairs: list[Pair]) -> list[str]:
    """What is said of runs that serve."""
    found = []
    if any(pair.what == MEMORY for pair in pairs):
        found.append("memory of runs that serve is of unknown kind: held against allocated")
    shown = sorted({
        said for pair in pairs if pair.what == THROUGHPUT and not pair.scored
        for said in pair.assumed if said.startswith("not scored")
    })  # fmt: skip
    return [*found, *(f"rates of runs that serve, {said}" for said in shown)]


def _safe(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: safe_cell(value) for name, value in row.items()}


def to_csv(found: Mapping[str, Any]) -> str:
    """One line for every figure and every row without one, of a report."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in found["rows"]:
        status = "scored" if row["scored"] else "shown only"
        writer.writerow(_safe({**row, "status": status, "assumed": "; ".join(row["assumed"])}))
    for status in ("unexpressed", "unscored"):
        writer.writerows(_safe({**row, "status": status}) for row in found[status])
    return text.getvalue()
