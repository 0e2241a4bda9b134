"""memcalc compare [MODEL]: a table of models, GPUs and setups: what fits, how fast, what cost.

Every option of a setup takes a list or a range, --setup takes options that go together; all are crossed
(cli/variants.py). The exit status is 0 whatever fits. Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.deliver import FORMS, form_flag
from memcalc.cli.parse import Arguments
from memcalc.errors import ConfigError
from memcalc.output.files import check_writable, put_notes, put_stdout, to_json, write_text

if TYPE_CHECKING:
    from memcalc.output.console import Page

#: Endings that ask for a form of the table.
_ENDINGS: Final = {".json": "json", ".csv": "csv", ".md": "md", ".txt": "txt"}
_STDOUT: Final = "-"


def run(arguments: Arguments) -> int:
    """Price every case and write the table; always 0."""
    from memcalc.cli.charts.compare import comparison

    form, path = wanted(arguments)
    found = comparison(arguments)
    if not arguments.has("quiet"):
        put_notes(found["notes"])
    text = text_of(arguments, found, form, path is not None)
    if path is None:
        put_stdout(text)
    else:
        write_text(path, text)
    return 0


def wanted(arguments: Arguments) -> tuple[str, str | None]:
    """The form asked for and the file, None for stdout. Raises ConfigError before anything is priced."""
    flag = form_flag(arguments)
    stated = None if flag is None else FORMS[flag]
    path = arguments.text("out")
    if path is None or path == _STDOUT:
        return stated or ("quiet" if arguments.has("quiet") else "txt"), None
    check_writable(path)
    form = _ENDINGS.get(PurePath(path).suffix.lower(), stated)
    if form is None or stated not in (None, form):
        got = "" if flag is None else f" with --{flag}"
        rule = f"a file ending in {', '.join(_ENDINGS)}"
        raise ConfigError(
            f"--out: got {path!r}{got}; rule: {rule}; pictures: memcalc chart compare"
        )
    return form, path


def text_of(arguments: Arguments, found: Mapping[str, Any], form: str, to_file: bool) -> str:
    """The comparison as json, csv, md, txt, or one line."""
    from memcalc.output import compare_text

    if form == "json":
        return to_json(found)
    if form == "csv":
        from memcalc.output.tables import csv_text

        return csv_text(compare_text.csv_rows(found, "columns" in arguments.options))
    if form == "md":
        return compare_text.markdown_text(found)
    if form == "quiet":
        return compare_text.quiet_line(found) + "\n"
    from memcalc.output.console import render

    def page(sheet: Page) -> None:
        compare_text.compare_page(sheet, found)

    return render(page, to_file)
