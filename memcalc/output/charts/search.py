"""The picture of a search: the front of memory and speed, the best setups on it, what the GPU has.

Drawn from the search's object alone (`planning/search/search.py`). Checked by: unit/test_chart_search.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts.house import legend_above, series, theme_of
from memcalc.units import GIB

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
#: Points of the front whose setup is written beside them, least memory first, and what is written.
_NAMED: Final = 4
#: Share of the width from which on a name stands left of its point.
_RIGHT: Final = 0.65
_WORDS: Final = {
    "tp": "tp",
    "pp": "pp",
    "vpp": "vpp",
    "cp": "cp",
    "ep": "ep",
    "recompute": "recompute",
}


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
    low, high = axes.get_xlim()
    for point in _named(front):
        x, y = point["allocated_bytes"] / GIB, point["tokens_per_s"]
        side, where = (
            ("right", (-2, -20)) if x > low + _RIGHT * (high - low) else ("left", (8, -18))
        )
        axes.annotate(
            _words(point["options"]), (x, y), xytext=where, textcoords="offset points", ha=side,
            fontsize="small", color=theme.muted,
        )  # fmt: skip
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("allocated, GiB a GPU that needs most")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    if handles:
        legend_above(axes, handles, labels)


def _named(front: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Points of the front that stand apart: the first, and each that is a share of the whole faster."""
    if not front:
        return []
    whole = front[-1]["tokens_per_s"] - front[0]["tokens_per_s"]
    found = [front[0]]
    for point in front[1:-1]:
        gained = point["tokens_per_s"] - found[-1]["tokens_per_s"]
        if gained >= whole / (_NAMED - 1) and len(found) < _NAMED - 1:
            found.append(point)
    return [*found, front[-1]] if len(front) > 1 else found


def _words(options: Mapping[str, Any]) -> str:
    """A setup beside its point."""
    return " ".join(f"{said} {options[name]}" for name, said in _WORDS.items() if name in options)
