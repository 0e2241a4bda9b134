"""The object that `memcalc accuracy --report` writes out: classes, bands, verdicts, what was fitted, reasons.

Its figures depend on the rows, the records and memcalc alone: no date, no machine, no order of a dict.
Checked by: unit/test_report_accuracy_proof.py, cli/test_report_accuracy.py (twice the same bytes).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from memcalc.accuracy import bands
from memcalc.accuracy.groups import FITTED_SOURCES
from memcalc.accuracy.pricing import MEMORY, Pair, Priced
from memcalc.accuracy.proof import records
from memcalc.accuracy.proof.items import Class, Item, ours, scored, stats, theirs
from memcalc.accuracy.proof.published import by_device, by_kind, is_whole, published, verdicts
from memcalc.accuracy.serving import FITTED as FITTED_SERVING
from memcalc.engine.results import SCHEMA

GPU_GROUP: Final = "A GPU of our own"
#: Quantities of a GPU's run, in the report's order.
GPU_CLASSES: Final = ("allocated", "reserved", "driver-used", "step time")
#: Of how many published rows the short form prices one.
SHORT_OF: Final = 24


def shortened(rows: Sequence[Any]) -> list[Any]:
    """The rows of the short form: every twenty-fourth."""
    return list(rows)[::SHORT_OF]


def proof(priced: Priced, measured: Sequence[Class], short: bool) -> dict[str, Any]:
    """The whole object. measured: classes of runs on a GPU of our own; short: some of the rows."""
    from memcalc import __version__

    folder = records.folder()
    reasons = _toml(folder / "report" / "reasons.toml").get("reason", {})
    gpu = {one.name: one for one in measured}
    classes = [
        *records.exact(folder),
        *(gpu.get(name, Class(GPU_GROUP, name, "not measured yet", ())) for name in GPU_CLASSES),
        *records.clocks(folder),
        *published(priced.pairs),
    ]
    return {
        "schema": SCHEMA,
        "memcalc": __version__,
        "short": short,
        "counts": {"rows": _rows(priced), "pairs": len(priced.pairs),
                   "left": len(priced.unexpressed) + len(priced.unscored)},
        "classes": [scored(one, reasons) for one in classes],
        "kinds": _tables(by_kind(priced.pairs)),
        "devices": _tables(by_device(priced.pairs)),
        "kernels": records.kernels(),
        "verdicts": verdicts(priced.pairs),
        "bands": _bands(priced.pairs, short),
        "fitted": {"sources": list(FITTED_SOURCES), "serving": FITTED_SERVING},
        "held": _toml(folder / "report" / "held.toml").get("row", []),
        "points": [_points(one) for one in classes if one.items],
    }  # fmt: skip


def _rows(priced: Priced) -> int:
    lines = {pair.row.line for pair in priced.pairs}
    return len(lines) + len(priced.unexpressed) + len(priced.unscored)


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}


def _tables(groups: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    return {
        name: {"memcalc": stats(each, ours), "textbook": stats(each, theirs)}
        for name, each in groups.items()
    }


def _points(one: Class) -> dict[str, Any]:
    """A class's errors as the charts draw them, rounded so that they are the same everywhere."""
    return {
        "group": one.group,
        "name": one.name,
        "error_pct": [round(item.error, 6) for item in one.items],
        "textbook_pct": [None if item.textbook is None else round(item.textbook, 6) for item in one.items],
        "measured": [item.measured for item in one.items],
    }  # fmt: skip


def _bands(pairs: Sequence[Pair], short: bool) -> dict[str, Any]:
    """How often the printed bands hold; nothing of the short form, whose runs are too few."""
    if short:
        return {}
    times = bands.time_runs(pairs)
    memory = bands.memory_runs([p for p in pairs if p.what == MEMORY and is_whole(p)])
    return {
        "step time": bands.coverage(times, bands.by_class),
        "driver-used memory": bands.coverage(memory, bands.one_for_all),
        "classes": [
            {"stack": key[0], "architecture": key[1], **band._asdict()}
            for key, band in sorted(
                bands.classes(times).items(), key=lambda kv: (not kv[0][1], kv[0])
            )
        ],
        "memory": bands.over_sources(memory)._asdict(),
        "runs": _band_runs(times),
    }


def _band_runs(runs: Sequence[bands.Run]) -> list[dict[str, Any]]:
    """Each evaluated run with the band made without its source, for the chart."""
    tested = sorted(bands.without_sources(runs, bands.by_class), key=lambda pair: pair[0].source)
    return [
        {"id": run.id, "source": run.source, "factor": round(run.factor, 6),
         "low": round(band.low, 6), "high": round(band.high, 6)}
        for run, band in tested
    ]  # fmt: skip
