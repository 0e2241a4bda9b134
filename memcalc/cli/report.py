"""memcalc report MODEL -o FILE.html: one self-contained page about a setup, and those beside it.

FILE ends in .html, or in .json for the object the page is made from; `-` is stdout. --json puts the
object on stdout, beside a page too. Lists and --setup make the comparison; the page is about the first
that can be priced. What is wrong with FILE is said before anything is computed. Exit status 0 whatever
fits; 2 for bad input or an unwritable file. Checked by: cli/test_report.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.app import parse_arguments
from memcalc.cli.options import BY_NAME
from memcalc.cli.pace import positive
from memcalc.cli.parse import Arguments
from memcalc.cli.variants import cases_of
from memcalc.errors import ConfigError
from memcalc.output.files import check_writable, put_notes, put_stdout, to_json, write_text

if TYPE_CHECKING:
    from memcalc.planning.cases import Point

#: More setups than one reads beside each other in a page.
MOST: Final = 200
_STDOUT: Final = "-"
#: Options that change nothing of the page.
_NOT_SHOWN: Final = {"out", "json", "quiet", "debug", "config", "save"}


def run(arguments: Arguments) -> int:
    """Compute the report's object once, and write what was asked for; always 0."""
    from memcalc.cli.charts.priced import telling
    from memcalc.planning.cases import points

    path, price = _target(arguments), positive(arguments, "price")
    cases = cases_of(arguments)
    if len(cases) > MOST:
        raise ConfigError(
            f"report: got {len(cases):,} setups; rule: at most {MOST} in one page; `memcalc compare` "
            "and `memcalc chart sweep` take more"
        )
    with telling(arguments) as tell:
        found = _found(arguments, points(cases, tell), price)
        page = ""
        if path is not None and not _is_json(path):
            from memcalc.output.report.page import html

            page = html(found, tell)
    if path is not None:
        _put(path, to_json(found) if _is_json(path) else page)
    if arguments.wants_json:
        put_stdout(to_json(found))
    if path not in (None, _STDOUT) and not arguments.has("quiet"):
        put_notes([f"{path}: {found['verdict']['headline']}"], "report")
    return 0


def _target(arguments: Arguments) -> str | None:
    """Where the page goes; None: JSON on stdout alone. Raises ConfigError."""
    path = arguments.text("out")
    if path == _STDOUT and arguments.wants_json:
        return None
    if path == _STDOUT or (path is None and arguments.wants_json):
        return path
    if path is None:
        raise ConfigError("report: got no --out; rule: -o FILE.html; nearest valid: -o report.html")
    if not (_is_json(path) or path.lower().endswith(".html")):
        near = PurePath(path).with_suffix(".html").name if PurePath(path).name else "report.html"
        raise ConfigError(
            f"--out: got {path!r}; rule: a file ending in .html or .json; nearest valid: {near}"
        )
    check_writable(path)
    return path


def _is_json(path: str) -> bool:
    return path.lower().endswith(".json")


def _put(path: str, text: str) -> None:
    if path == _STDOUT:
        put_stdout(text)
    else:
        write_text(path, text)


def _found(arguments: Arguments, points: Sequence[Point], price: float | None) -> dict[str, Any]:
    """The report's object. Raises the first refusal's ConfigError where no setup can be priced."""
    from memcalc.planning.report import Asked, report_of
    from memcalc.planning.rows import row_of

    first = next((point for point in points if point.result is not None), None)
    if first is None:
        raise ConfigError(str(points[0].reason))
    stated = parse_arguments("estimate", shlex.split(first.case.command)[2:])
    command = " ".join(_words(arguments))
    asked = Asked(command, stated.options, price)
    return report_of(first, asked, [row_of(point, price) for point in points], points)


def _words(arguments: Arguments) -> Iterator[str]:
    """The command that makes this page again: a run file written out, FILE without its folder."""
    stated = Arguments(arguments.command, [*arguments.positionals], dict(arguments.options))
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(stated, path)
    yield "memcalc report"
    yield from (shlex.quote(word) for word in stated.positionals)
    for name, value in stated.options.items():
        if name in _NOT_SHOWN:
            continue
        flag = BY_NAME[name].flag
        if isinstance(value, bool):
            yield flag
        else:
            each = value if isinstance(value, list) else [value]
            yield from (f"{flag} {shlex.quote(one)}" for one in each)
    out = arguments.text("out")
    name = "report.html" if out in (None, _STDOUT) else PurePath(str(out)).name
    yield f"-o {shlex.quote(name)}"
