"""Reading rows of measured runs: a CSV file, whole or refused in one line that says where.

A file is refused for what no reading can mend: bytes that are no text, a header without a model or a
measurement, a ragged line, a cell that is no value of its column. What a row says that cannot be
priced is no error of the file: pricing.py lists it with the reason.
Checked by: unit/test_accuracy_rows.py.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from memcalc.accuracy.columns import BY_NAME, MEASURED, Cell, read_cell
from memcalc.errors import ConfigError
from memcalc.inputs.files import read_bounded

#: Larger files are no table of runs.
MAX_BYTES = 50 * 10**6
MAX_ROWS = 100_000
_MODEL = ("model", "hidden_size")
#: A column this alike to a known one is probably misspelt.
_CLOSE = 0.75


@dataclass(frozen=True, slots=True)
class Row:
    """One measured run: its line in the file, and the cells that state something."""

    line: int
    cells: Mapping[str, Cell]

    @property
    def id(self) -> str:
        """The row's name: its id column, else its line."""
        return self.text("id") or f"line {self.line}"

    @property
    def source(self) -> str:
        return self.text("source") or "(no source)"

    def text(self, name: str) -> str | None:
        """A text cell; None where the row states nothing."""
        return cast("str | None", self.cells.get(name))

    def whole(self, name: str) -> int | None:
        """A count; None where the row states nothing."""
        return cast("int | None", self.cells.get(name))

    def number(self, name: str) -> float | None:
        """A measured figure; None where the row states nothing."""
        return cast("float | None", self.cells.get(name))

    def flag(self, name: str) -> bool | None:
        """Whether; None where the row states nothing."""
        return cast("bool | None", self.cells.get(name))

    def wholes(self, name: str) -> tuple[int, ...] | None:
        """Several counts; None where the row states nothing."""
        return cast("tuple[int, ...] | None", self.cells.get(name))

    def pairs(self, name: str) -> Mapping[str, int]:
        """Named counts, empty where the row states nothing."""
        return cast("Mapping[str, int]", self.cells.get(name) or {})


class RowFile(NamedTuple):
    """The rows of a file, and notes on what of it was not read."""

    path: Path
    rows: list[Row]
    notes: list[str]


def published_rows() -> Path:
    """The published rows: inside the installed package, else the repository's.

    Checked by: unit/test_accuracy_rows.py.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "_published"
    folder = installed if installed.is_dir() else package.parent / "benchmarks" / "published"
    return folder / "runs.csv"


def read_rows(path: Path) -> RowFile:
    """Every row of a CSV file of measured runs.

    Raises ConfigError naming the file, the line and the row's id.
    """
    reader = csv.reader(io.StringIO(_content(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        notes = _check_header(path, header)
        rows = list(_rows(path, header, reader))
    except csv.Error as error:
        raise ConfigError(f"rows: '{path}' line {reader.line_num}: no CSV ({error})") from None
    if not rows:
        raise ConfigError(f"rows: '{path}' has a header and no row; rule: a run a line")
    return RowFile(path, rows, notes)


def _content(path: Path) -> str:
    try:
        text = read_bounded(path, MAX_BYTES, "rows", "CSV file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"rows: '{path}' is no UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise ConfigError(f"rows: '{path}' has NUL characters; rule: a CSV file")
    return text


def _check_header(path: Path, header: list[str]) -> list[str]:
    """Notes on columns that mean nothing here; ConfigError for a header that states no runs."""
    if len(header) < 2:
        raise ConfigError(f"rows: '{path}' line 1: rule: a header of column names, comma-separated")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"rows: '{path}' line 1: column {twice[:60]!r} twice")
    for names, what in ((_MODEL, "which model ran"), (MEASURED, "what was measured")):
        if not set(names) & set(header):
            raise ConfigError(
                f"rows: '{path}' line 1: no column says {what}; valid: {', '.join(names)}"
            )
    return [_unread(name) for name in header if name not in BY_NAME]


def _unread(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), BY_NAME, 1, _CLOSE)
    return f"column {name[:60]!r} is not read" + (f"; nearest: {close[0]}" if close else "")


def _rows(path: Path, header: list[str], reader: Iterator[list[str]]) -> Iterator[Row]:
    seen: dict[str, int] = {}
    line = 1
    for count, values in enumerate(reader):
        first, line = line + 1, reader.line_num  # type: ignore[attr-defined]
        if not any(value.strip() for value in values):
            continue
        row = _row(path, first, header, values)
        if row.text("id") is not None and (earlier := seen.setdefault(row.id, first)) != first:
            raise ConfigError(
                f"rows: '{path}' line {first}: id {row.id!r} is that of line {earlier}"
            )
        if count >= MAX_ROWS:
            raise ConfigError(f"rows: '{path}' has more than {MAX_ROWS} rows")
        yield row


def _row(path: Path, line: int, header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        raise ConfigError(
            f"rows: '{path}' line {line}: got {len(values)} cells; rule: {len(header)}, as the header"
        )
    stated = dict(zip(header, values, strict=True))
    name = stated.get("id", "").strip()
    try:
        cells = {
            key: value
            for key, text in stated.items()
            if key in BY_NAME and (value := read_cell(BY_NAME[key], text)) is not None
        }
    except ConfigError as error:
        where = f"line {line}" + (f" (id {name[:40]})" if name else "")
        raise ConfigError(f"rows: '{path}' {where}: {error}") from None
    return Row(line, cells)
