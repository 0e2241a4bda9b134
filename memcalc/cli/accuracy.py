"""memcalc accuracy: measured runs priced, predicted beside measured, in error tables.

The rows are the published ones, or those of `--rows FILE.csv`. Exit status: 0 whatever the errors are,
2 for a file that cannot be read or filters that leave no row. `--report` is cli/accuracy_report.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.cli.request import typed
from memcalc.errors import ConfigError

if TYPE_CHECKING:
    from memcalc.output.console import Page

_FILTERS = ("source", "confidence", "priceable")


def run(arguments: Arguments) -> int:
    """Read, price, write the result; always 0."""
    check_positionals(arguments)
    if arguments.has("report"):
        from memcalc.cli.accuracy_report import run as write_report

        return write_report(arguments)
    if arguments.has("short"):
        raise ConfigError("--short: got no --report; rule: of a report, a few of its rows")
    _check_outputs(arguments)
    found = _found(arguments)
    if arguments.has("csv"):
        _put_csv(arguments, found)
        return 0

    def page(sheet: Page) -> None:
        from memcalc.output.accuracy_text import accuracy_page

        accuracy_page(sheet, found)

    line = None
    if arguments.has("quiet"):
        from memcalc.output.accuracy_text import quiet_line

        line = quiet_line(found)
    deliver(arguments, lambda: found, page, line)
    return 0


def _check_outputs(arguments: Arguments) -> None:
    given = [name for name in ("json", "csv", "quiet") if arguments.has(name)]
    if len(given) > 1 and given != ["json", "quiet"]:
        raise ConfigError(f"--{given[1]}: got --{given[0]} too; rule: one form of output")


def _found(arguments: Arguments) -> dict[str, Any]:
    """The report on the rows asked for; notes on columns that are not read go to stderr."""
    from memcalc.accuracy.pricing import BOTH, joined, price
    from memcalc.accuracy.report import choose, report
    from memcalc.accuracy.rows import published_rows, read_rows
    from memcalc.accuracy.serving import is_serving, price_serving
    from memcalc.output.files import put_notes
    from memcalc.output.progress import progress

    filters = {
        name: None if (value := arguments.text(name)) is None else str(typed(BY_NAME[name], value))
        for name in _FILTERS
    }
    what = tuple(name for name in BOTH if arguments.has(name)) or BOTH
    stated = arguments.text("rows")
    file = published_rows() if stated is None else Path(os.path.expanduser(stated))
    read = read_rows(file)
    rows = choose(read.rows, filters)
    if not arguments.has("quiet"):
        put_notes(read.notes)
    serves = [row for row in rows if is_serving(row)]
    trains = [row for row in rows if not is_serving(row)]
    with progress("accuracy", arguments.has("quiet")) as tell:
        priced = joined(price(trains, tell, what, read.rows), price_serving(serves, what))
    return report(priced, stated or "the published runs", filters, what)


def _put_csv(arguments: Arguments, found: dict[str, Any]) -> None:
    from memcalc.accuracy.report import to_csv
    from memcalc.output.files import put_stdout, write_text

    out, text = arguments.text("out"), to_csv(found)
    if out is None or out == "-":
        put_stdout(text)
    else:
        write_text(out, text)
