"""memcalc chart accuracy: predicted against measured, of published runs, a file of runs, or records.

Without --rows and --record the published runs; each of the two alone means its file only, both together
mean both. The filters are those of `memcalc accuracy`. Checked by: unit/test_chart_accuracy.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import typed
from memcalc.errors import ConfigError

_FILTERS = ("source", "confidence", "priceable")
_OUTPUT = ("theme", "out", "json", "csv", "markdown", "quiet", "debug")


def found(arguments: Arguments) -> dict[str, Any]:
    """The chart's object from the command line; prices with a progress bar. Raises ConfigError."""
    from memcalc.accuracy.pricing import BOTH, Priced, price
    from memcalc.accuracy.report import choose, report
    from memcalc.accuracy.rows import published_rows, read_rows
    from memcalc.cli.charts.accuracy_records import priced_records
    from memcalc.output.progress import progress
    from memcalc.planning.charts.accuracy import accuracy

    _check(arguments)
    stated, record = arguments.text("rows"), arguments.text("record")
    filters = _filters(arguments)
    what = tuple(name for name in BOTH if arguments.has(name)) or BOTH
    parts: list[Priced] = []
    notes: list[str] = []
    if stated is not None or record is None:
        file = published_rows() if stated is None else Path(os.path.expanduser(stated))
        read = read_rows(file)
        notes += read.notes
        with progress("accuracy", arguments.has("quiet")) as tell:
            parts.append(price(choose(read.rows, filters), tell, what, read.rows))
    if record is not None:
        parts.append(priced_records(record, what))
    joined = Priced(
        [pair for part in parts for pair in part.pairs],
        [left for part in parts for left in part.unexpressed],
        [left for part in parts for left in part.unscored],
    )
    names = [name for name in (stated, record) if name is not None]
    origin = " and ".join(Path(name).name for name in names) or "published runs"
    made = accuracy(
        report(joined, " and ".join(names) or "the published runs", filters, what), origin
    )
    return {**made, "notes": [*notes, *made["notes"]]}


def _check(arguments: Arguments) -> None:
    """Raise ConfigError for a MODEL or an option of a setup: runs state their own."""
    if len(arguments.positionals) > 1:
        raise ConfigError(
            f"argument: got {arguments.positionals[1]!r} too many; rule: memcalc chart accuracy"
        )
    valid = ("rows", "record", *_FILTERS, "memory", "throughput")
    foreign = [name for name in arguments.options if name not in (*valid, *_OUTPUT)]
    if foreign:
        flags = ", ".join(f"--{name}" for name in valid)
        raise ConfigError(f"--{foreign[0]}: got with chart accuracy; rule: one of {flags}")
    filters = [name for name in _FILTERS if name in arguments.options]
    if filters and "record" in arguments.options and "rows" not in arguments.options:
        raise ConfigError(f"--{filters[0]}: got with --record alone; rule: it chooses rows")


def _filters(arguments: Arguments) -> dict[str, str | None]:
    """What --source, --confidence and --priceable say."""
    return {
        name: None if (value := arguments.text(name)) is None else str(typed(BY_NAME[name], value))
        for name in _FILTERS
    }
