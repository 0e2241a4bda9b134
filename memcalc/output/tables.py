"""Rows as data: CSV and Markdown of flat or nested records.

A mapping inside a row becomes a column for each of its entries: those of `labels` under their own names,
others dotted (`breakdown.loss`). Lists are JSON text, what is unknown an empty cell.
Checked by: unit/test_tables.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memcalc.inputs.csv_text import safe_cell

Row = Mapping[str, Any]


def flat(row: Row) -> dict[str, Any]:
    """A row without mappings inside. A label named as one of the row's own columns yields to it."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(value, Mapping):
            found[name] = value
        elif name == "labels":
            found |= {label: text for label, text in value.items() if label not in row}
        else:
            found |= {f"{name}.{inner}": entry for inner, entry in flat(value).items()}
    return found


def csv_text(rows: Iterable[Row]) -> str:
    """CSV with a header; the columns of all rows in the order they first come."""
    import csv
    import io

    out = io.StringIO()
    columns, table = _table(rows)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(safe_cell, columns))
    writer.writerows([_csv_cell(row.get(column)) for column in columns] for row in table)
    return out.getvalue()


def markdown_text(rows: Iterable[Row]) -> str:
    """A Markdown table; numbers are right-aligned, bars and line breaks inside a cell made harmless."""
    columns, table = _table(rows)
    cells = [[_plain(_cell(row.get(column))) for column in columns] for row in table]
    aligned = ["---:" if _numbers(table, column) else "---" for column in columns]
    lines = [[_plain(column) for column in columns], aligned, *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(rows: Iterable[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    table = [flat(row) for row in rows]
    return list(dict.fromkeys(name for row in table for name in row)), table


def _csv_cell(value: Any) -> str:
    return str(safe_cell(value)) if isinstance(value, str) else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return json.dumps(value)
    return str(value)


def _numbers(table: Sequence[Row], column: str) -> bool:
    known = [row[column] for row in table if row.get(column) is not None]
    return bool(known) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in known
    )


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
