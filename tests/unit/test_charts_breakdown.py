"""Breakdown: its parts are the estimate's, and the picture shows the object's numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.output.charts import house
from memcalc.output.charts.breakdown import draw, page, total_text
from memcalc.output.charts.palette import name_of
from memcalc.output.console import render
from memcalc.planning.cases import Point
from memcalc.planning.charts.breakdown import breakdown
from memcalc.units import GIB, MIB, gib
from tests.unit.charts_support import (
    assert_nothing_is_cut_off,
    legend_names,
    point,
    refused,
)

BIG = 10**12
POINTS = {
    "one": lambda: [point()],
    "no GPU": lambda: [point(gpu=None)],
    "one that does not fit": lambda: [point(model="llama-3.1-8b", seq_len=512)],
    "several": lambda: [
        point({"micro-batch": "1"}),
        point({"micro-batch": "64"}, micro_batch_size=64, recompute="full"),
        refused({"micro-batch": "7"}, "tp=7 does not divide 12 heads; valid: 1, 2, 3, 4, 6, 12"),
    ],
    "GPUs that differ": lambda: [
        point({"gpu": name}, gpu=name, model="llama-3.1-8b", seq_len=256)
        for name in ("rtx-4090", "h200")
    ],
    "stages": lambda: [
        point(
            model="llama-3.1-8b",
            parallel=ParallelPlan(gpus=4, pp=4),
            num_layers=8,
            seq_len=256,
            global_batch=8,
            micro_batch_size=1,
        )  # fmt: skip
    ],
}


@pytest.fixture(params=POINTS, scope="module")
def points(request: pytest.FixtureRequest) -> list[Point]:
    found: list[Point] = POINTS[request.param]()
    return found


@pytest.fixture(scope="module")
def found(points: list[Point]) -> dict[str, Any]:
    return breakdown(points)


@pytest.fixture(scope="module")
def figure(found: dict[str, Any]) -> Figure:
    return house.drawn(found, draw)


def scale_of(figure: Figure) -> int:
    return GIB if figure.axes[0].get_xlabel().endswith("GiB") else MIB


def test_a_rows_parts_are_the_estimates_and_sum_to_driver_used(
    points: list[Point], found: dict[str, Any]
) -> None:
    results = [p.result for p in points]
    staged = len(results) == 1 and results[0] is not None and results[0].memory.stages
    memories = staged or [None if r is None else r.memory for r in results]
    assert len(found["rows"]) == len(memories)
    for row, memory in zip(found["rows"], memories, strict=True):
        if memory is None:
            assert row["total_bytes"] is None and row["reason"]
            continue
        parts = dict(row["parts"])
        assert sum(parts.values()) == row["total_bytes"] == memory.device_used_bytes
        beside = [parts.pop(name) for name in ("overhead", "communication", "context")]
        assert parts == memory.breakdown._asdict()
        assert sum(beside) == memory.device_used_bytes - memory.peak_allocated_bytes
        assert row["usable_bytes"] == memory.usable_bytes


def test_the_bars_are_the_rows(found: dict[str, Any], figure: Figure) -> None:
    (axes,), scale = figure.axes, scale_of(figure)
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    assert [bar.get_label() for bar in bars] == found["categories"]
    ends = [0.0] * len(found["rows"])
    for name, bar in zip(found["categories"], bars, strict=True):
        for at, (row, patch) in enumerate(zip(found["rows"], bar.patches, strict=True)):
            assert round(patch.get_width() * scale) == row["parts"].get(name, 0)
            assert patch.get_x() == pytest.approx(ends[at])
            assert patch.get_y() + patch.get_height() / 2 == pytest.approx(at)
            ends[at] += patch.get_width()
    for end, row in zip(ends, found["rows"], strict=True):
        assert round(end * scale) == (row["total_bytes"] or 0)


def test_capacity_bands_and_totals_are_the_rows(found: dict[str, Any], figure: Figure) -> None:
    (axes,), scale, rows = figure.axes, scale_of(figure), found["rows"]
    drawn = {line.get_gid(): [] for line in axes.lines}  # type: ignore[var-annotated]
    for line in axes.lines:
        drawn[line.get_gid()].append([round(float(x) * scale) for x in line.get_xdata()])
    usable = list(dict.fromkeys(row["usable_bytes"] for row in rows if row["usable_bytes"]))
    assert [xs[0] for xs in drawn.get("usable", [])] == usable
    bands = [[row["low_bytes"], row["high_bytes"]] for row in rows if row["low_bytes"]]
    assert drawn.get("band", []) == bands
    totals = [text.get_text() for text in axes.texts if text.get_gid() == "total"]
    for text, row in zip(totals, rows, strict=True):
        assert text == total_text(row) or (row["reason"] and text.startswith("refused: "))
        if row["fits"] is False:
            assert gib(row["total_bytes"] - row["usable_bytes"]) + " too much" in text


def test_the_legend_names_every_category_and_nothing_is_cut_off(
    found: dict[str, Any], figure: Figure
) -> None:
    names = legend_names(figure)
    for category in found["categories"]:
        assert any(name.startswith(name_of(category)) for name in names)
    assert_nothing_is_cut_off(figure)


def test_the_text_says_the_same(found: dict[str, Any]) -> None:
    text = render(lambda sheet: page(sheet, found), True)
    assert text.isascii() and max(map(len, text.splitlines())) <= 80
    assert found["title"] in text
    for row in found["rows"]:
        assert gib(row["total_bytes"]) in text if row["reason"] is None else "refused" in text


def test_stages_are_in_order_and_named() -> None:
    found = breakdown(POINTS["stages"]())
    assert found["per"] == "stage"
    assert [row["label"] for row in found["rows"]] == [f"stage {n}" for n in range(4)]
    assert [row["layers"] for row in found["rows"]] == [[[2 * n, 2 * n + 1]] for n in range(4)]


def test_a_host_that_is_too_small_and_a_cache_that_is_freed_are_said() -> None:
    one = point()
    assert one.result is not None
    memory = one.result.memory._replace(usable_bytes=1000, headroom_bytes=-5)
    freed = Point(one.case, replace(one.result, memory=memory, verdict="tight"), None)
    assert "cache freed" in total_text(breakdown([freed])["rows"][0])
    host = Point(one.case, replace(one.result, fits=False, verdict="does-not-fit"), None)
    row = breakdown([host])["rows"][0]
    assert row["over_bytes"] == 0 and "host memory too small" in total_text(row)


def test_forty_bars_with_long_names_can_be_drawn() -> None:
    one = point()
    many = [
        Point(
            one.case._replace(labels={"setup": f"--fsdp --recompute full --tp {n} " * 3}),
            one.result,
            None,
        )
        for n in range(40)
    ]
    assert_nothing_is_cut_off(house.drawn(breakdown(many), draw, "dark"))


def test_only_refusals_are_the_first_ones_error() -> None:
    with pytest.raises(ConfigError, match="first"):
        breakdown([refused({"tp": "7"}, "first"), refused({"tp": "8"}, "second")])
