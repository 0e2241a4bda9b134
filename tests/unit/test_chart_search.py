"""The picture of a search shows what its object says."""

from __future__ import annotations

import pytest

from memcalc.output.charts.house import drawn, picture
from memcalc.output.charts.search import draw
from memcalc.units import GIB


def _point(gibs: float, speed: float, place: int = 1) -> dict[str, object]:
    return {"allocated_bytes": int(gibs * GIB), "peak_allocated_bytes": int(gibs * GIB),
            "tokens_per_s": speed, "place": place, "options": {"tp": place, "recompute": "none"}}  # fmt: skip


def _found(**more: object) -> dict[str, object]:
    return {
        "title": "m on 8 x h100: memory and speed", "subtitle": "seq 2,048", "source": "memcalc",
        "usable_bytes": 79 * GIB, "pareto": [_point(10, 100), _point(20, 150), _point(40, 180)],
        "best": [_point(40, 180), _point(30, 170, 2)], "near_misses": [_point(90, 200)], **more,
    }  # fmt: skip


def test_points_are_those_of_the_object():
    (axes,) = drawn(_found(), draw).axes
    front = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(front.get_xdata()) == [10, 20, 40]
    assert list(front.get_ydata()) == [100, 150, 180]
    best, misses = axes.collections
    assert best.get_offsets().tolist() == [[40, 180], [30, 170]]
    assert misses.get_offsets().tolist() == [[90, 200]]
    assert any(list(line.get_xdata()) == [79, 79] for line in axes.lines)
    assert [text.get_text() for text in axes.texts] == ["tp 1 recompute none"] * 3


@pytest.mark.parametrize("left_out", ["pareto", "best", "near_misses"])
def test_what_is_empty_is_left_out(left_out):
    assert picture(_found(**{left_out: []}), draw, "svg")


def test_the_same_object_gives_the_same_bytes():
    assert picture(_found(), draw, "png") == picture(_found(), draw, "png")
