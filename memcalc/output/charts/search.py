"""The picture of a search: the front of memory and speed, the best setups on it, what the GPU has.

Drawn from the search's object alone (`planning/search/search.py`). Checked by: unit/test_chart_search.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memcalc.output.charts.house import legend_above, series, theme_of
from memcalc.units import GIB

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
_NAMED = 3


def draw(figure: Figure, found: Found) -> None:
    """Allocated memory along x, tokens/s along y; the front as a line, the best as points, misses hollow."""
    axes = figure.add_subplot()
    axes.set_gid("front")
    colours, theme = series(figure), theme_of(figure)
    handles: list[Any] = []
    labels: list[str] = []
    front = found["pareto"]
    if front:
        memory = [point["allocated_bytes"] / GIB for point in front]
        speed = [point["tokens_per_s"] for point in front]
        (line,) = axes.step(memory, speed, where="post", color=colours[0], marker="o", markersize=3)
        handles.append(line)
        labels.append("front: less memory is slower")
    for rows, face, edge, name in (
        (found["best"], colours[1], colours[1], "best"),
        (found["near_misses"], "none", colours[2], "does not fit"),
    ):
        if rows:
            x = [row["peak_allocated_bytes"] / GIB for row in rows]
            y = [row["tokens_per_s"] for row in rows]
            handles.append(axes.scatter(x, y, s=28, zorder=3, facecolors=face, edgecolors=edge))
            labels.append(name)
    if found["usable_bytes"]:
        handles.append(axes.axvline(found["usable_bytes"] / GIB, color=theme.muted, linewidth=1))
        labels.append("usable")
    for row in found["best"][:_NAMED]:
        place = (row["peak_allocated_bytes"] / GIB, row["tokens_per_s"])
        axes.annotate(f"{row['place']}", place, xytext=(5, 4), textcoords="offset points")
    axes.set_xlabel("allocated, GiB a GPU that needs most")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    if handles:
        legend_above(axes, handles, labels)
