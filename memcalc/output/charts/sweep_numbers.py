"""The numbers in the cells of a map: as large as there is room for, in ink that can be read on the cell.

Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.bar_labels import readable_on
from memcalc.output.charts.sweep_cells import MISSES, state, table
from memcalc.output.charts.sweep_ink import shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

#: How ticks write numbers: 8,500 and 0.5.
TICKS: Final = "{x:,g}"
_LARGEST, _SMALLEST = 8.5, 6.0
#: Width of a digit and height of a line over the size of the letters (DejaVu Sans).
_ADVANCE, _LINE = 0.64, 1.25


def put_numbers(
    axes: Axes, found: Mapping[str, Any], mesh: QuadMesh, cell: tuple[float, float]
) -> None:
    """Write the value of every cell that shows one; nothing where the cells are too small.

    cell: its inches, across and down. What fits goes by the cell's colour, what does not by its ground.
    """
    from matplotlib.patheffects import withStroke

    over = shades(house.ink(axes.figure)).over
    shown: Any = mesh.get_array()
    known = {(x, y): float(shown[y, x]) for y, x in zip(*(~shown.mask).nonzero(), strict=True)}
    written = _texts(known, cell)
    if written is None:
        return
    texts, size = written
    rows = table(found)
    faces: Any = mesh.cmap(mesh.norm(shown))
    for at, text in texts.items():
        what = state(rows[at])
        ground = over if what == MISSES and found["fits_count"] else faces[at[1], at[0]]
        # the stroke keeps a number clear of the hatch behind it
        stroke = [withStroke(linewidth=2.2, foreground=ground)] if what == MISSES else []
        axes.text(
            *at, text, ha="center", va="center_baseline", fontsize=size, color=readable_on(ground),
            path_effects=stroke, zorder=4,
        )  # fmt: skip


def _texts(
    known: Mapping[tuple[int, int], float], cell: tuple[float, float]
) -> tuple[dict[tuple[int, int], str], float] | None:
    """The numbers as texts, whole or with a k, and their size in points; None where none is readable."""
    tallest = cell[1] * 72 / _LINE
    for write in (number, short):
        texts = {at: write(amount) for at, amount in known.items()}
        longest = max(map(len, texts.values()), default=1)
        size = min(_LARGEST, tallest, cell[0] * 72 * 0.92 / (longest * _ADVANCE))
        if size >= _SMALLEST:
            return texts, size
    return None


def number(amount: float) -> str:
    """At most four digits: 7,286 stays, 73.34 is 73.3."""
    if abs(amount) >= 99_950:
        return f"{amount / 1000:,.0f}k"
    if abs(amount) >= 99.95:
        return f"{amount:,.0f}"
    return f"{amount:.1f}" if abs(amount) >= 9.995 else f"{amount:.2f}"


def short(amount: float) -> str:
    """At most three digits: 7.3k, 73."""
    if abs(amount) >= 999.5:
        return f"{amount / 1000:.1f}k" if abs(amount) < 9950 else f"{amount / 1000:,.0f}k"
    return f"{amount:.0f}" if abs(amount) >= 9.95 else f"{amount:.1f}"
