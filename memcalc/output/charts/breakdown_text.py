"""Breakdown as text: a bar a row on one scale, `|` where the GPU's memory ends, and every size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from memcalc.output.charts.palette import name_of
from memcalc.output.charts.text import ending, heading, mark, put_key, shortened, stacked
from memcalc.output.console import Page
from memcalc.units import gib

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_LABEL = 24


def breakdown_page(page: Page, found: Found) -> None:
    """Bars, legend, sizes. A single bar has the table of its parts, several one of their totals."""
    heading(page, found)
    rows = [row for row in found["rows"] if row["reason"] is None]
    scale = max(max(row["total_bytes"], row["usable_bytes"] or 0) for row in rows)
    single = len(found["rows"]) == 1
    left = 0 if single else min(_LABEL, max(len(row["label"]) for row in found["rows"]))
    for row in found["rows"]:
        label = shortened(row["label"], left).ljust(left) + " " if left else ""
        line = Text(label)
        if row["reason"] is None:
            line.append_text(_bar(page, row, scale, page.width - len(label)))
        else:
            line.append("refused")
        page.console.print(line)
    if not single:
        put_key(page, found["categories"])
    page.line()
    if single:
        _parts(page, found, rows[0])
    else:
        _totals(page, found)
    for row in found["rows"]:
        if row["reason"] is not None:
            page.line(f"{row['label']}: refused: {row['reason']}")
    ending(page, found)


def verdict(row: Row) -> str:
    """What a row's total means for its GPU."""
    if row["fits"] is None:
        return "no GPU named" if row["reason"] is None else "refused"
    if row["fits"]:
        return "fits" if row["headroom_bytes"] >= 0 else "fits, cached blocks released"
    return f"{gib(row['over_bytes'])} too much" if row["over_bytes"] else "host too small"


def _bar(page: Page, row: Row, scale: int, width: int) -> Text:
    """A stacked bar with the end of the GPU's memory marked."""
    bar = stacked(page, row["parts"], scale, width - 1)
    bar.append(" " * (width - len(bar)))
    if row["usable_bytes"] is None:
        return bar
    at = min(width - 1, round(row["usable_bytes"] / scale * (width - 1)))
    return bar[:at] + Text("|", style="bold") + bar[at + 1 :]


def _parts(page: Page, found: Found, row: Row) -> None:
    total = row["total_bytes"]
    table: list[tuple[Text, str, str, str]] = [
        (
            mark(page, name) + Text(f" {name_of(name)}"), gib(row["parts"][name]),
            f"{row['parts'][name]:,}", f"{row['parts'][name] / total:.1%}",
        )
        for name in found["categories"]
    ]  # fmt: skip
    table.append((Text("total", style="bold"), gib(total), f"{total:,}", "100.0%"))
    page.table(("At the peak", ">size", ">bytes", ">share"), table)
    usable = "" if row["usable_bytes"] is None else f" of {gib(row['usable_bytes'])} usable (|)"
    page.line(f"{verdict(row)}: {gib(total)}{usable}; peak at {row['peak_at']}")


def _totals(page: Page, found: Found) -> None:
    table = []
    for row in found["rows"]:
        known = row["reason"] is None
        usable = row["usable_bytes"]
        style = "bold red" if row["fits"] is False else ""
        table.append((
            Text(shortened(row["label"], 34)), gib(row["total_bytes"]) if known else "-",
            "-" if usable is None else gib(usable), Text(verdict(row), style=style),
        ))  # fmt: skip
    page.table((found["per"], ">at the peak", ">usable (|)", "verdict"), table)
