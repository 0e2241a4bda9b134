"""docs/worked_cases.md from the tables and the figures as they come out.

`page` needs nothing but the tables and ours, so that `page(ours_on(text)) == text` says whether a page is
of today's tables without computing a figure; the tests of the cases compare each figure with the page's.
Checked by: tests/unit/test_worked_page.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.worked.case import ROOT, Case, Figure, as_value, difference, written
from benchmarks.worked.cases import CASES, KINDS, name_of_test
from benchmarks.worked.sources import SOURCES

PAGE: Final[Path] = ROOT / "docs" / "worked_cases.md"
_HEAD: Final = """\
# Worked cases

Figures that papers, projects and teaching notes state, beside what memcalc gives. Each is what the command
beside it prints: the column *read* says which keys of its `--json`, as Python (`second`: of the second
command; GB = 10^9 bytes, GiB = 2^30). Files are in this repository. A figure in parentheses is not held to
the source's: the reason says why it cannot be. An interval is what the source states, or what a rough
figure is held to. This page is written by `python -m benchmarks.worked`, from the tables that the tests use
(`benchmarks/worked/`); a test computes every figure again.
"""
_ROW: Final = "| {} |"
_COLUMNS: Final = ("asked", "source", "memcalc", "difference", "held to", "command", "read")
_FAR: Final = 0.1


class Row(NamedTuple):
    """A figure on the page: its case, the figure, and ours as it is written there."""

    case: Case
    figure: Figure
    ours: str

    @property
    def difference(self) -> float | None:
        """Of the figures as they are written; None where they are words."""
        return difference(self.figure.theirs, as_value(self.ours))


def figures() -> Iterator[tuple[Case, Figure]]:
    """Every figure with its case, in the order of the page."""
    return ((case, figure) for case in CASES for figure in case.figures)


def page(ours: Sequence[str]) -> str:
    """The page, given ours as `written` has them, in the order of `figures`."""
    rows = [Row(case, figure, text) for (case, figure), text in zip(figures(), ours, strict=True)]
    parts = [_HEAD, *_summary(rows), *_far(rows)]
    for heading, cases, _ in KINDS.values():
        parts.append(f"## {heading}\n")
        for case in cases:
            parts += _section(case, [row for row in rows if row.case is case])
    parts += ["## Sources\n", *(f"- **{key}**: {text}" for key, text in SOURCES.items()), ""]
    return "\n".join(parts)


def ours_on(text: str) -> list[str]:
    """Ours of every figure as a page has them, in its order."""
    cells = [
        line.split(" | ") for line in text.splitlines() if line.count(" | ") == len(_COLUMNS) - 1
    ]
    column = _COLUMNS.index("memcalc")
    heads = (f"| {_COLUMNS[0]}", "| ---")
    return [row[column].strip("()") for row in cells if row[0] not in heads]


def section_of(text: str, case: Case) -> str:
    """The part of a page that is about a case."""
    begin = text.index(f"### {case.number} ")
    return text[begin : text.find("\n##", begin + 1)]


def _summary(rows: list[Row]) -> list[str]:
    """By letter: cases, figures, how far off they are."""
    lines = [
        "## How near\n",
        "Numbers that are held to their source's, by their difference; words are verdicts and advice, each\n"
        "the source's.\n",
        _table(
            "cases",
            "number",
            "figures",
            "words",
            "within 1 %",
            "within 5 %",
            "within 10 %",
            "further",
        ),
        _table(*["---"] + ["--:"] * 7),
    ]
    for letter, (heading, cases, _) in KINDS.items():
        own = [row for row in rows if row.case.number.startswith(letter)]
        lines.append(_counted(f"{letter}: {heading}", len(cases), own))
    lines.append(_counted("all", len(CASES), rows) + "\n")
    return lines


def _counted(name: str, cases: int, rows: list[Row]) -> str:
    words = [row for row in rows if row.difference is None]
    held = [
        abs(row.difference)
        for row in rows
        if row.difference is not None and row.figure.allowed is not None
    ]
    within = [sum(one <= most + 1e-12 for one in held) for most in (0.01, 0.05, _FAR)]
    return _table(name, cases, len(rows), len(words), *within, len(held) - within[-1])


def _far(rows: list[Row]) -> list[str]:
    """Those off by more than a tenth."""
    far = [row for row in rows if row.difference is not None and abs(row.difference) > _FAR]
    head = ("case", "asked", "source", "memcalc", "difference", "why")
    lines = ["## Off by more than a tenth\n", _table(*head), _table(*["---"] * len(head))]
    lines += [_table(row.case.number, row.figure.asked, _theirs(row), _ours(row), _off(row), row.figure.why)
              for row in far]  # fmt: skip
    return [*lines, ""]


def _section(case: Case, rows: list[Row]) -> list[str]:
    tests = ", ".join(f"`{_path(name)}`" for name in (name_of_test(case), *case.tests))
    whys = dict.fromkeys((row.figure.why, row.figure.asked) for row in rows if row.figure.why)
    reasons: dict[str, list[str]] = {}
    for why, asked in whys:
        reasons.setdefault(why, []).append(asked)
    return [
        f"### {case.number} {case.about}\n",
        f"Source: {case.source}. Test: {tests}.\n",
        _table(*_COLUMNS), _table(*["---"] * len(_COLUMNS)),
        *(_line(row) for row in rows), "",
        *(f"- {'; '.join(asked)}: {why}." for why, asked in reasons.items()),
        *([""] if reasons else []),
    ]  # fmt: skip


def _line(row: Row) -> str:
    figure = row.figure
    commands = "<br>".join(f"`memcalc {command}`" for command in figure.commands)
    return _table(
        figure.asked,
        _theirs(row),
        _ours(row),
        _off(row),
        _band(figure),
        commands,
        f"`{figure.read}`",
    )


def _theirs(row: Row) -> str:
    return f"{written(row.figure.theirs)} {row.figure.unit}".strip()


def _ours(row: Row) -> str:
    return f"({row.ours})" if row.figure.allowed is None else row.ours


def _off(row: Row) -> str:
    if row.difference is None:
        return "same" if row.ours == row.figure.theirs else "not the same"
    shown = f"{100 * row.difference:+.1f} %"
    return "0" if shown in ("+0.0 %", "-0.0 %") else shown


def _band(figure: Figure) -> str:
    band = figure.allowed
    if isinstance(figure.theirs, str):
        return "the word"
    if isinstance(band, tuple):
        return written(band)
    return "-" if band is None else "exact" if band == 0 else f"{100 * band:g} %"


def _path(test: str) -> str:
    return test if test.startswith("tests/") else f"tests/unit/{test}"


def _table(*cells: object) -> str:
    return _ROW.format(" | ".join(map(str, cells)))
