"""memcalc chart KIND [MODEL] [-o FILE]: a picture, its numbers, or a small text version of it.

The ending of FILE says what is written: .png, .svg, .pdf the picture; .json, .csv, .md, .txt its data.
Without FILE the text version goes to stdout; --json and --csv put the data there, beside a picture
too. What is wrong with KIND, FILE or its ending is said before anything is computed. Exit status 0
whatever fits; 2 for bad input or an unwritable file. Checked by: cli/test_chart.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from memcalc.cli.chart_options import KINDS
from memcalc.cli.deliver import FORMS, form_flag
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import typed
from memcalc.errors import ConfigError, spelled, unknown
from memcalc.output.charts.house import PICTURES, picture_kind, save
from memcalc.output.files import check_writable, put_notes, put_stdout, to_json, write_text

DATA: Final = ("json", "csv", "md", "txt")
_STDOUT: Final = "-"


class Wanted(NamedTuple):
    """What to hand over: a picture's file, data's file, and the form of what goes to stdout."""

    picture: str | None
    file: str | None
    file_form: str
    stdout_form: str | None


def run(arguments: Arguments) -> int:
    """Compute a chart's object once, and write every form of it that was asked for."""
    kind = kind_of(arguments)
    wanted, theme = wanted_of(arguments), theme_of(arguments)
    found = found_of(kind, arguments)
    if not arguments.has("quiet"):
        put_notes(found.get("notes", ()))
    if wanted.picture is not None:
        save(wanted.picture, found, drawing(kind).draw, theme)
    if wanted.file is not None:
        write_text(wanted.file, text_of(kind, found, wanted.file_form, True))
    if wanted.stdout_form is not None:
        put_stdout(text_of(kind, found, wanted.stdout_form, False))
    return 0


def kind_of(arguments: Arguments) -> str:
    """The kind of chart asked for. Raises ConfigError."""
    if not arguments.positionals:
        raise ConfigError(f"chart: got no KIND; valid: {', '.join(KINDS)}")
    kind = spelled(arguments.positionals[0], KINDS)
    if kind not in KINDS:
        raise unknown("chart", kind, KINDS)
    return kind


def wanted_of(arguments: Arguments) -> Wanted:
    """The forms asked for, checked as far as can be before there is anything to write."""
    flag = form_flag(arguments)
    stated = None if flag is None else FORMS[flag]
    path = arguments.text("out")
    if path is None or path == _STDOUT:
        return Wanted(None, None, "txt", stated or "txt")
    check_writable(path)
    if picture_kind(path) is not None:
        return Wanted(path, None, "txt", stated)
    ending = PurePath(path).suffix.lower().removeprefix(".")
    form = ending if ending in DATA else stated
    if form is None:
        valid = ", ".join(f".{name}" for name in (*PICTURES, *DATA))
        raise ConfigError(f"--out: got {path!r}; rule: a file ending in {valid}")
    if stated not in (None, form):
        raise ConfigError(f"--out: got {path!r} with --{flag}; rule: one form of output")
    return Wanted(None, path, form, None)


def theme_of(arguments: Arguments) -> str:
    """light or dark. Raises ConfigError."""
    return str(typed(BY_NAME["theme"], arguments.text("theme") or "light"))


def found_of(kind: str, arguments: Arguments) -> dict[str, Any]:
    """The chart's object. Raises ConfigError for what only `chart serving` takes."""
    foreign = [name for name in arguments.options if BY_NAME[name].serving or name == "device"]
    if foreign and kind != "serving":
        raise ConfigError(f"--{foreign[0]}: got with chart {kind}; valid: chart serving")
    found: dict[str, Any] = import_module(f"memcalc.cli.charts.{kind}").found(arguments)
    return found


def drawing(kind: str) -> Any:
    """The module that draws a kind: `draw(figure, found)` and `page(sheet, found)`."""
    return import_module(f"memcalc.output.charts.{kind}")


def rows_of(kind: str, found: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The rows of a chart's data: one for each thing that is plotted."""
    made = getattr(drawing(kind), "rows", None)
    rows: Iterable[Mapping[str, Any]] = found["rows"] if made is None else made(found)
    return rows


def text_of(kind: str, found: Mapping[str, Any], form: str, to_file: bool) -> str:
    """The chart's object as json, csv, md or txt."""
    from memcalc.output.tables import csv_text, markdown_text

    if form == "json":
        return to_json(found)
    if form == "csv":
        return csv_text(rows_of(kind, found))
    if form == "md":
        return markdown_text(rows_of(kind, found))
    from memcalc.output.console import render

    return render(lambda sheet: drawing(kind).page(sheet, found), to_file)
