"""The pipeline chart as text: a line of letters for each stage, then a table of what it holds.

A column is a slice of the step; its letter is what the stage does for most of it: F forward, B backward,
I and W its halves, = both in turn, O optimizer, X exchanges, a point where it waits.
Checked by: unit/test_chart_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from memcalc.output.charts.text import ending, heading
from memcalc.output.console import Page
from memcalc.units import GIB

Found = Mapping[str, Any]
LETTERS: Final = {
    "forward": "F", "backward": "B", "gradients of inputs": "I", "gradients of weights": "W",
    "optimizer": "O", "exchanges": "X", "waits": ".",
}  # fmt: skip
#: Forward and backward in turn, faster than a column shows.
TURNS: Final = "="
_IN_TURN = 0.2
_STYLES: Final = {"=": "cyan", "F": "blue", "B": "yellow", "I": "yellow", "W": "magenta", "O": "green",
                  "X": "bright_black", ".": "bright_black"}  # fmt: skip
_MOST_STAGES = 32


def page(sheet: Page, found: Found) -> None:
    """The schedule in letters, and what each stage needs."""
    heading(sheet, found)
    label = len(str(found["pp"] - 1))
    width = sheet.width - label - 1
    shown = found["stages"][:_MOST_STAGES]
    drawn = {stage["stage"]: letters(found, stage["stage"], width) for stage in shown}
    for stage in shown:
        line = Text(f"{stage['stage']:>{label}} ")
        for letter in drawn[stage["stage"]]:
            line.append(letter, style=_STYLES[letter])
        sheet.console.print(line)
    used = set("".join(drawn.values()))
    said = [f"{letter} {name}" for name, letter in LETTERS.items() if letter in used]
    said += [f"{TURNS} forward and backward in turn"] if TURNS in used else []
    sheet.line(", ".join(said))
    sheet.line()
    columns = (">#", "layers", ">busy", ">waits", ">in flight", ">needs", ">headroom", "at")
    sheet.table(columns, [_cells(stage, found) for stage in shown])
    if len(found["stages"]) > len(shown):
        sheet.line(f"{len(found['stages']) - len(shown)} more stages: --json has all")
    sheet.line(found["says"])
    ending(sheet, found)


def letters(found: Found, stage: int, width: int) -> str:
    """What a stage does over the step, a letter for each of `width` equal slices."""
    slices = [dict.fromkeys(LETTERS.values(), 0.0) for _ in range(width)]
    span, after = found["span_s"], found["after_s"]
    spans = [
        (row["start_s"], row["end_s"], LETTERS[row["kind"]])
        for row in found["rows"]
        if row["stage"] == stage
    ]
    at = span
    for name in ("exchanges", "optimizer"):
        spans.append((at, at + after[name], LETTERS[name]))
        at += after[name]
    for start, end, letter in spans:
        _fill(slices, (start, end), letter, found["step_s"] / width)
    each = found["step_s"] / width
    for one in slices:
        one["."] = each - sum(one.values())
    return "".join(_letter(one, each) for one in slices)


def _letter(slice_s: Mapping[str, float], each: float) -> str:
    """The letter of what takes most of a slice; one of its own where work goes on in turn."""
    back = slice_s["B"] + slice_s["I"] + slice_s["W"]
    if min(slice_s["F"], back) > _IN_TURN * each:
        return TURNS
    return max(slice_s, key=lambda name: slice_s[name])


def _fill(
    slices: Sequence[dict[str, float]], span: tuple[float, float], letter: str, each: float
) -> None:
    """Add the seconds of one action to the slices it lies in."""
    start, end = span
    first, last = int(start / each), min(len(slices) - 1, int(end / each))
    for number in range(first, last + 1):
        inside = min(end, (number + 1) * each) - max(start, number * each)
        slices[number][letter] += max(0.0, inside)


def _cells(stage: Mapping[str, Any], found: Found) -> list[str]:
    needed = stage["device_used_bytes"] or stage["peak_allocated_bytes"]
    room = stage["headroom_bytes"]
    return [
        str(stage["stage"]),
        " ".join(f"{chunk[0]}-{chunk[-1]}" if chunk else "-" for chunk in stage["layers"]),
        f"{100 * stage['busy_s'] / found['step_s']:.1f} %",
        f"{100 * stage['waits_s'] / found['step_s']:.1f} %",
        "+".join(map(str, stage["in_flight"])),
        f"{needed / GIB:.2f}",
        "-" if room is None else f"{room / GIB:.2f}",
        stage["peak_at"].partition("/")[0],
    ]
