"""Names beside points, none over another: placed where there is room, with a line to what they name.

Room is known only once the figure is laid out, so `settled` does that first, as it will be in the end.
Checked by: unit/test_chart_roofline.py (no label covers another).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import cos, hypot, pi, sin
from typing import TYPE_CHECKING, NamedTuple

from memcalc.output.charts import house

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Distances from a point at which a label is tried, in points; directions, the best first.
_REACH = (3.0, 8.0, 15.0, 24.0, 34.0)
_TURNS = (0.0, 0.25, -0.25, 1.0, 0.75, -0.75, 0.5, -0.5, 0.125, -0.125, 0.875, -0.875)
_POINT = 1 / 72
#: Points between a marker and its label from which a line ties them.
_NEAR = 6.0
_AIR = 1.5  # points around a label
_STRIDE = 4.0  # points between two boxes on a line


class Named(NamedTuple):
    """A point, in the axes' data, its radius in points, and its name."""

    x: float
    y: float
    radius: float
    text: str


class _Room(NamedTuple):
    """Where labels go: inside a frame, over nothing that is taken, no line through what is written."""

    frame: _Box
    taken: list[_Box]
    written: list[_Box]


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        """Whether the two share any area."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def within(self, other: _Box) -> bool:
        """Whether this one lies wholly inside."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top


def settled(figure: Figure, found: house.Found) -> None:
    """Lay the figure out as it will be once the house has put its title and source on it."""
    before = list(figure.texts)
    width, height = figure.get_size_inches()
    house.finish(figure, found)
    figure.draw_without_rendering()
    for text in [text for text in figure.texts if text not in before]:
        text.remove()
    figure.set_size_inches(width, height)  # which `finish` may have let grow


def put_labels(
    axes: Axes, named: Sequence[Named], points: Sequence[Named], size: float = 8.0
) -> list[str]:
    """Write the names of `named`, first come first served; returns those there was no room for.

    points: markers, which no label may cover; lines and texts that are in the axes already count too.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixel = figure.dpi * _POINT
    ink = house.ink(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = _Box(*axes.get_window_extent(renderer).extents)
    taken = [_disc(axes, point, pixel) for point in points]
    taken += [_Box(*text.get_window_extent(renderer).extents) for text in axes.texts]
    taken += [box for line in axes.lines for box in _along(line, pixel)]
    room = _Room(frame, taken, [])
    left_out = []
    for one in named:
        text = axes.text(0, 0, one.text, fontsize=size, color=ink.text, va="center", ha="center")
        box = text.get_window_extent(renderer)
        text.remove()
        spot = next(_free(axes, one, (box.width, box.height), pixel, room), None)
        if spot is None:
            left_out.append(one.text)
            continue
        room.written.append(spot)
        room.taken.extend([spot, *_leader(axes, one, spot, pixel)])
        _write(axes, one, spot, size, pixel)
    return left_out


def _disc(axes: Axes, point: Named, pixel: float) -> _Box:
    x, y = axes.transData.transform((point.x, point.y))
    reach = max(1.0, point.radius) * pixel
    return _Box(x - reach, y - reach, x + reach, y + reach)


def _along(line: Line2D, pixel: float) -> Iterator[_Box]:
    """Small boxes on a line, close enough that no label fits between two."""
    ends = [(float(x), float(y)) for x, y in line.get_transform().transform(line.get_xydata())]
    half = line.get_linewidth() * pixel / 2
    for start, end in pairwise(ends):
        yield from _beads(start, end, half, _STRIDE * pixel)


def _beads(
    start: tuple[float, float], end: tuple[float, float], half: float, stride: float
) -> Iterator[_Box]:
    (x, y), (to_x, to_y) = start, end
    count = max(1, int(max(abs(to_x - x), abs(to_y - y)) / stride))
    for step in range(count + 1):
        at_x, at_y = x + (to_x - x) * step / count, y + (to_y - y) * step / count
        yield _Box(at_x - half, at_y - half, at_x + half, at_y + half)


def _leader(axes: Axes, one: Named, spot: _Box, pixel: float) -> list[_Box]:
    """What the line from a label to its point covers; nothing where the label is next to it."""
    x, y = map(float, axes.transData.transform((one.x, one.y)))
    if _gap((x, y), spot) / pixel <= one.radius + _NEAR:
        return []
    # it ends at the label's edge
    to_x = min(max(x, spot.left), spot.right)
    to_y = min(max(y, spot.bottom), spot.top)
    return list(_beads((x, y), (to_x, to_y), 0.5 * pixel, _STRIDE * pixel))


def _gap(point: Sequence[float], spot: _Box) -> float:
    """Pixels between a point's middle and a label."""
    across = max(spot.left - point[0], point[0] - spot.right, 0.0)
    up = max(spot.bottom - point[1], point[1] - spot.top, 0.0)
    return hypot(across, up)


def _free(
    axes: Axes,
    one: Named,
    size: tuple[float, float],
    pixel: float,
    room: _Room,
) -> Iterator[_Box]:
    """Boxes for a label that lie in the frame and on nothing else, the nearest first."""
    x, y = axes.transData.transform((one.x, one.y))
    half, tall = size[0] / 2 + _AIR * pixel, size[1] / 2 + _AIR * pixel
    for reach in _REACH:
        away = (one.radius + reach) * pixel
        for turn in _TURNS:
            across, up = cos(turn * pi), sin(turn * pi)
            middle = x + across * (away + half), y + up * (away + tall)
            box = _Box(middle[0] - half, middle[1] - tall, middle[0] + half, middle[1] + tall)
            if not box.within(room.frame) or any(box.meets(other) for other in room.taken):
                continue
            line = _leader(axes, one, box, pixel)
            if not any(bead.meets(other) for bead in line for other in room.written):
                yield box


def _write(axes: Axes, one: Named, spot: _Box, size: float, pixel: float) -> None:
    """The label at its place, tied to its point where it is not next to it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    ink = house.ink(figure)
    x, y = axes.transData.transform((one.x, one.y))
    middle = (spot.left + spot.right) / 2, (spot.bottom + spot.top) / 2
    # rounded: the last digits of a layout are not the same from run to run
    shift = round((middle[0] - x) / pixel, 2), round((middle[1] - y) / pixel, 2)
    far = _gap((x, y), spot) / pixel > one.radius + _NEAR
    arrow = {"arrowstyle": "-", "color": ink.muted, "linewidth": 0.6, "shrinkA": 0.0,
             "shrinkB": one.radius / 2} if far else None  # fmt: skip
    axes.annotate(
        one.text, (one.x, one.y), xytext=shift, textcoords="offset points", ha="center",
        va="center", fontsize=size, color=ink.text, arrowprops=arrow, zorder=5,
    ).set_in_layout(False)  # fmt: skip
