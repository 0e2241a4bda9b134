"""Lines and marks of the scaling chart: measured by the engine, ideal, what does not fit, what is refused.

Checked by: unit/test_chart_scaling.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.sweep_cells import (
    FITS,
    MISSES,
    REFUSED,
    SAID,
    TIGHT,
    UNJUDGED,
    state,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_STYLES: Final[Mapping[str, Any]] = {"weak": "-", "strong": (0, (5, 2))}
#: Most points that do not fit with a note of by how much; longest reason in the legend.
_NOTED, _REASON = 4, 72
_SIZE = 5.5


def rows_of(found: Found, line: Mapping[str, Any]) -> list[Row]:
    """The rows of a line, by rising GPUs."""
    key = (line["mode"], line["series"])
    rows = [row for row in found["rows"] if (row["mode"], row["series"]) == key]
    return sorted(rows, key=lambda row: int(row["gpus"]))


def colour_of(figure: Any, found: Found, line: Mapping[str, Any]) -> str:
    """A setup's colour, the same in both modes; a single setup's modes have one each."""
    names = list(dict.fromkeys(other["series"] for other in found["lines"]))
    if len(names) == 1:
        names, wanted = [other["mode"] for other in found["lines"]], line["mode"]
    else:
        wanted = line["series"]
    return house.series(figure)[names.index(wanted)]


def _style(found: Found, mode: str) -> Any:
    """Solid, or dashed for strong scaling beside weak."""
    return _STYLES[mode] if len({line["mode"] for line in found["lines"]}) > 1 else "-"


def points(axes: Axes, found: Found, panel: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """One line of a panel with its markers; where it is of tokens/s, the ideal behind it."""
    ink, colour = house.ink(axes.figure), colour_of(axes.figure, found, line)
    rows = [row for row in rows_of(found, line) if row[panel["key"]] is not None]
    gpus = [row["gpus"] for row in rows]
    name = f"{line['mode']} {line['series']}".strip()
    ideal = [row["ideal_tokens_per_s"] for row in rows]
    if panel["key"] == "tokens_per_s" and rows:
        axes.plot(gpus, ideal, color=ink.muted, linewidth=1.0, linestyle=":", gid=f"ideal {name}")
    axes.plot(gpus, [row[panel["key"]] * panel["scale"] for row in rows], color=colour, gid=name,
              linestyle=_style(found, line["mode"]))  # fmt: skip
    for what, style, face in (
        (FITS, "full", colour), (UNJUDGED, "full", colour), (TIGHT, "bottom", colour),
        (MISSES, "full", ink.background),
    ):  # fmt: skip
        of = [row for row in rows if state(row) == what]
        if of:
            axes.plot([row["gpus"] for row in of], [row[panel["key"]] * panel["scale"] for row in of],
                      "o", color=colour, markersize=_SIZE, fillstyle=style, markerfacecolor=face,
                      markerfacecoloralt=ink.background, markeredgewidth=1.3, zorder=3,
                      gid=f"{what}: {name}")  # fmt: skip


def missed_notes(axes: Axes, found: Found) -> None:
    """By how much each point does not fit, where there are few of them on one line."""
    from matplotlib.patheffects import withStroke

    missed = [row for row in found["rows"] if state(row) == MISSES and row["tokens_per_s"]]
    if len(found["lines"]) > 1 or len(missed) > _NOTED:
        return
    ink = house.ink(axes.figure)
    for row in missed:
        right = row["gpus"] > 0.5 * found["gpus"][-1] and len(found["gpus"]) > 1
        axes.annotate(
            row["why"], (row["gpus"], row["tokens_per_s"]), xytext=(-9 if right else 9, -2),
            textcoords="offset points", ha="right" if right else "left",
            va="bottom" if right else "top", color=ink.alarm, fontsize=8.5, gid="note",
            path_effects=[withStroke(linewidth=2.5, foreground=ink.background)], zorder=5,
        )  # fmt: skip


def foot(axes: Axes, found: Found) -> None:
    """Crosses at the counts that were refused, in their line's colour where there are several."""
    for line in found["lines"]:
        refused = [row["gpus"] for row in rows_of(found, line) if state(row) == REFUSED]
        colour = house.ink(axes.figure).muted
        if len(found["lines"]) > 1:
            colour = colour_of(axes.figure, found, line)
        if refused:
            axes.plot(refused, [0.0] * len(refused), "x", color=colour, markersize=7, zorder=4,
                      markeredgewidth=1.6, clip_on=False, transform=axes.get_xaxis_transform(),
                      gid=f"{REFUSED}: {line['mode']} {line['series']}".strip())  # fmt: skip


def handles(figure: Figure, found: Found) -> list[Any]:
    """What lines and markers mean; only of what is there."""
    from matplotlib.lines import Line2D

    ink, lines = house.ink(figure), found["lines"]
    modes = list(dict.fromkeys(line["mode"] for line in lines))
    names = list(dict.fromkeys(line["series"] for line in lines))
    marks: list[Any] = []
    if len(names) == 1:
        for line in lines:
            colour = colour_of(figure, found, line)
            marks.append(_stroke(colour, _style(found, line["mode"]), line["mode"]))
    else:
        first = [next(line for line in lines if line["series"] == name) for name in names]
        marks += [_stroke(colour_of(figure, found, line), "-", line["series"]) for line in first]
        marks += [_stroke(ink.text, _style(found, m), m) for m in modes if len(modes) > 1]
    marks.append(Line2D([], [], color=ink.muted, linewidth=1.0, linestyle=":", label="ideal"))
    there = {state(row) for row in found["rows"]}
    for what, face in ((TIGHT, ink.muted), (MISSES, ink.background)):
        if what in there:
            marks.append(Line2D([], [], marker="o", linestyle="", color=ink.muted, markersize=_SIZE,
                                fillstyle="bottom" if what == TIGHT else "full", markerfacecolor=face,
                                markerfacecoloralt=ink.background, label=SAID[what]))  # fmt: skip
    if REFUSED in there:
        reasons = list(dict.fromkeys(row["reason"] for row in found["rows"] if row["reason"]))
        marks.append(Line2D([], [], marker="x", linestyle="", color=ink.muted, markersize=7,
                            markeredgewidth=1.6, label=_refused(reasons)))  # fmt: skip
    return marks


def _stroke(colour: str, style: Any, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, label=label)


def _refused(reasons: list[str]) -> str:
    """The legend's word for what was refused, with the reason where all have one and it is short."""
    if len(reasons) != 1 or len(reasons[0]) > _REASON:
        return SAID[REFUSED]
    return f"{SAID[REFUSED]}: {reasons[0]}"
