"""Where a sweep's rows lie on its axes: the arrays and outlines that the pictures are drawn from.

Everything is read from the chart's JSON object. Cells are unit squares around whole numbers, x first.
Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]
Found = Mapping[str, Any]
Cell = tuple[int, int]
Segment = tuple[tuple[float, float], tuple[float, float]]
#: What a row is: it fits, it fits with little to spare (or once cached blocks are given back), it does
#: not fit, nobody judged it (no GPU), or its options do not go together.
FITS, TIGHT, MISSES, UNJUDGED, REFUSED = "fits", "tight", "misses", "unjudged", "refused"
#: How the states are called in legends and tables.
SAID = {
    FITS: "fits", TIGHT: "tight", MISSES: "does not fit", UNJUDGED: "", REFUSED: "refused",
}  # fmt: skip


def state(row: Row) -> str:
    """What a row is."""
    if row["reason"] is not None:
        return REFUSED
    if row["fits"] is None:
        return UNJUDGED
    if not row["fits"]:
        return MISSES
    return TIGHT if row["verdict"] == "tight" else FITS


def places(found: Found) -> list[tuple[tuple[int, ...], Row]]:
    """Every row with its place along each axis."""
    at = [
        (axis["name"], {label: i for i, label in enumerate(axis["labels"])})
        for axis in found["axes"]
    ]
    return [(tuple(index[row["labels"][name]] for name, index in at), row) for row in found["rows"]]


def along(found: Found) -> list[Row]:
    """The rows of a sweep of one axis, in the axis' order."""
    return [row for _, row in sorted(places(found), key=lambda placed: placed[0])]


def table(found: Found) -> dict[Cell, Row]:
    """Cell -> its row, of a sweep of two axes."""
    return {(place[0], place[1]): row for place, row in places(found)}


def values(
    found: Found, panel: Mapping[str, Any], leave_out: Iterable[str] = ()
) -> np.ma.MaskedArray[Any, Any]:
    """A panel's values in its unit, y down the rows and x along them; masked where unknown.

    leave_out: states whose values mean nothing here.
    """
    import numpy as np

    shape = (len(found["axes"][1]["labels"]), len(found["axes"][0]["labels"]))
    numbers = np.full(shape, np.nan)
    hidden = set(leave_out)
    for (x, y), row in table(found).items():
        if row[panel["key"]] is not None and state(row) not in hidden:
            numbers[y, x] = row[panel["key"]] * panel["scale"]
    return np.ma.masked_invalid(numbers)


def cells(found: Found, *wanted: str) -> list[Cell]:
    """The cells in which a row of one of these states is."""
    return sorted(cell for cell, row in table(found).items() if state(row) in wanted)


def boundary(found: Found) -> list[Segment]:
    """The edges between a cell that fits and a neighbour that does not."""
    misses = set(cells(found, MISSES))
    edges: list[Segment] = []
    for x, y in cells(found, FITS, TIGHT):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            if (x + dx, y + dy) in misses:
                # the edge's middle, and half its length across the way to the neighbour
                mx, my, ax, ay = x + dx / 2, y + dy / 2, abs(dy) / 2, abs(dx) / 2
                edges.append(((mx - ax, my - ay), (mx + ax, my + ay)))
    return edges


def runs(taken: Iterable[Cell]) -> list[tuple[float, float, float]]:
    """Cells as bars along x: (left, bottom, width), so that a hatch goes on from cell to cell."""
    bars: list[tuple[float, float, float]] = []
    for x, y in sorted(taken, key=lambda cell: (cell[1], cell[0])):
        left, bottom = x - 0.5, y - 0.5
        if bars and bars[-1][1] == bottom and bars[-1][0] + bars[-1][2] == left:
            bars[-1] = (bars[-1][0], bottom, bars[-1][2] + 1)
        else:
            bars.append((left, bottom, 1.0))
    return bars


def thinned(count: int, most: int) -> list[int]:
    """Places of at most `most` of `count` labels, evenly apart, the first among them."""
    step = max(1, -(-count // max(1, most)))
    return list(range(0, count, step))
