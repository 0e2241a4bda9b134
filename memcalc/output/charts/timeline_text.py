"""Memory over one step as text: columns by category, phases below, the peak of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from memcalc.output.charts.text import area, ending, heading, put_key
from memcalc.output.console import Page
from memcalc.units import GIB, MIB, gib

Found = Mapping[str, Any]
_HEIGHT = 14
_AXIS = 13  # columns that the axis at the left takes at most


def timeline_page(page: Page, found: Found) -> None:
    """The step's columns, phases under them, legend, peaks."""
    heading(page, found)
    scale, unit = unit_of(found)
    width = page.width - _AXIS
    columns = _columns(found, width)
    left = area(page, [row["parts"] for row in columns], _HEIGHT, unit, scale)
    page.console.print(_phase_line(columns, left))
    put_key(page, found["categories"])
    page.line()
    page.table(("Phase", ">peak requested", *_measured_head(found)), _peaks(found))
    page.line(peak_text(found), "bold")
    if found["usable_bytes"] is not None and found["device_used_bytes"] is not None:
        used, usable = gib(found["device_used_bytes"]), gib(found["usable_bytes"])
        page.line(f"driver-used at most {used} of {usable} usable")
    ending(page, found)


def unit_of(found: Found) -> tuple[int, str]:
    """Bytes of the axis's unit, and its name: GiB, for small models MiB."""
    return (GIB, "GiB") if found["peak"]["live_bytes"] >= GIB else (MIB, "MiB")


def measured_of(found: Found) -> Mapping[str, Any]:
    """What a run measured; empty where none is given."""
    return found["measured"] or {}


def peak_text(found: Found) -> str:
    """What is written at the peak: bytes and the operator that causes it."""
    peak = found["peak"]
    return f"peak {gib(peak['live_bytes'])}: {peak['where']} ({peak['primitive']})"


def _columns(found: Found, width: int) -> list[Mapping[str, Any]]:
    """A row for each column: the highest of those that fall into it, else the one before it."""
    found_rows: list[Mapping[str, Any]] = []
    rows, count = list(found["rows"]), max(found["allocations"], 1)
    last = rows[0]
    for column in range(width):
        begin, end = count * column / width, count * (column + 1) / width
        inside = [row for row in rows if begin <= row["at"] < end]
        found_rows.append(max(inside, key=lambda row: row["live_bytes"]) if inside else last)
        last = inside[-1] if inside else last
    return found_rows


def _phase_line(columns: list[Mapping[str, Any]], left: int) -> Text:
    """Names of the phases under their columns, where they have room; | where one begins."""
    line = ""
    phases = [row["phase"] for row in columns]
    begin = 0
    for at in range(1, len(phases) + 1):
        if at < len(phases) and phases[at] == phases[begin]:
            continue
        room = at - begin - 1
        name = phases[begin] if len(phases[begin]) <= room else phases[begin][: max(0, room)]
        line += "|" + (name if room >= 3 else "").ljust(room)
        begin = at
    return Text(" " * left + line, style="dim")


def _measured_head(found: Found) -> tuple[str, ...]:
    return (">measured", ">difference") if measured_of(found) else ()


def _peaks(found: Found) -> list[list[str]]:
    """Each phase's most bytes, and what was measured of it."""
    most: dict[str, int] = {}
    for row in found["rows"]:
        if row["phase"] in ("forward", "loss", "backward", "optimizer"):
            most[row["phase"]] = max(most.get(row["phase"], 0), row["live_bytes"])
    seen = measured_of(found).get("phase_peaks", {})
    table = []
    for phase, size in most.items():
        line = [phase, gib(size)]
        if measured_of(found):
            known = seen.get(phase)
            line += ["-", "-"] if known is None else [gib(known), f"{known - size:,} B"]
        table.append(line)
    return table
