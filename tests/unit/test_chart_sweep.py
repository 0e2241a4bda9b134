"""The sweep chart: what is drawn is what its rows say, what does not fit is plain, bad input is one line."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from memcalc.output.charts.house import drawn, picture
from memcalc.output.charts.sweep import draw, page
from memcalc.output.charts.sweep_cells import boundary, state
from memcalc.output.charts.sweep_numbers import number
from memcalc.output.console import render
from memcalc.units import GIB
from tests.unit.chart_sweep_support import GPT2, LINE, MAP, at, gid, made, panel


@pytest.fixture(scope="module")
def both():
    return made(MAP)


@pytest.fixture(scope="module")
def one():
    return made(LINE)


@pytest.fixture(scope="module")
def map_figure(both):
    return drawn(both, draw)


@pytest.fixture(scope="module")
def line_figure(one):
    return drawn(one, draw)


def test_part_of_the_sweep_fits_and_part_does_not(both, one):
    assert (
        0 < both["fits_count"] < both["count"] == 16 and 0 < one["fits_count"] < one["count"] == 5
    )


@pytest.mark.parametrize("key", ["device_used_bytes", "tokens_per_s_per_gpu"])
def test_the_cells_of_a_map_are_the_numbers_of_the_rows(both, map_figure, key):
    (mesh,) = [m for m in panel(map_figure, key).collections if m.get_gid() == key]
    values = mesh.get_array()
    assert values.shape == (4, 4)
    for x, micro in enumerate(("1", "2", "4", "8")):
        for y, seq in enumerate(both["axes"][1]["labels"]):
            row = at(both, **{"micro-batch": micro, "seq": seq})
            if key == "device_used_bytes":
                assert values[y, x] * GIB == row[key]
            elif row["fits"]:
                assert values[y, x] == row[key]
            else:
                assert values.mask[y, x]


def test_exactly_what_does_not_fit_is_hatched_in_both_panels(both, map_figure):
    misses = {
        (both["axes"][0]["labels"].index(r["labels"]["micro-batch"]),
         both["axes"][1]["labels"].index(r["labels"]["seq"]))
        for r in both["rows"] if not r["fits"]
    }  # fmt: skip
    for key in ("device_used_bytes", "tokens_per_s_per_gpu"):
        (patch,) = gid(panel(map_figure, key), "misses")
        assert patch.get_hatch()
        inside = {
            (x, y) for x in range(4) for y in range(4) if patch.get_path().contains_point((x, y))
        }
        assert inside == misses


def test_the_edge_runs_between_what_fits_and_what_does_not(both):
    fits = {(r["labels"]["micro-batch"], r["labels"]["seq"]): r["fits"] for r in both["rows"]}
    columns, rows = (axis["labels"] for axis in both["axes"])
    beside = sum(fits[a, s] != fits[b, s] for a, b in pairwise(columns) for s in rows)
    above = sum(fits[c, a] != fits[c, b] for a, b in pairwise(rows) for c in columns)
    assert len(boundary(both)) == beside + above > 0


def test_the_best_cell_is_the_fastest_that_fits_and_is_framed(both, map_figure):
    best = max((r for r in both["rows"] if r["fits"]), key=lambda r: r["tokens_per_s_per_gpu"])
    assert both["best"] == best
    for key in ("device_used_bytes", "tokens_per_s_per_gpu"):
        (frame,) = gid(panel(map_figure, key), "best")
        x, y = frame.get_xy()
        assert both["axes"][0]["labels"][round(x + 0.5)] == best["labels"]["micro-batch"]
        assert both["axes"][1]["labels"][round(y + 0.5)] == best["labels"]["seq"]
    assert f"micro-batch {best['labels']['micro-batch']}" in both["says"]


def test_the_numbers_in_the_cells_are_those_of_the_rows_and_can_be_read(both, map_figure):
    axes = panel(map_figure, "device_used_bytes")
    (mesh,) = [m for m in axes.collections if m.get_gid() == "device_used_bytes"]
    assert len(axes.texts) == 16
    for text in axes.texts:
        x, y = map(round, text.get_position())
        assert text.get_text() == number(float(mesh.get_array()[y, x]))
        assert text.get_fontsize() >= 6
    rate = panel(map_figure, "tokens_per_s_per_gpu")
    assert len(rate.texts) == both["fits_count"]


def test_a_line_is_the_rows_over_the_numbers_of_its_axis(one, line_figure):
    memory, rate = (
        panel(line_figure, "device_used_bytes"),
        panel(line_figure, "tokens_per_s_per_gpu"),
    )
    for axes, key, scale in ((memory, "device_used_bytes", GIB), (rate, "tokens_per_s_per_gpu", 1)):
        (line,) = gid(axes, "all")
        assert list(line.get_xdata()) == [1, 2, 4, 8, 16]
        assert [y * scale for y in line.get_ydata()] == pytest.approx([r[key] for r in one["rows"]])
    assert memory.get_xscale() == "log"
    (capacity,) = gid(memory, "usable")
    assert capacity.get_ydata()[0] * GIB == pytest.approx(one["usable_bytes"])


def test_the_band_is_that_of_the_rows(one, line_figure):
    (band,) = gid(panel(line_figure, "device_used_bytes"), "band")
    corners = band.get_paths()[0].vertices
    for row, x in zip(one["rows"], (1, 2, 4, 8, 16), strict=True):
        ends = sorted(y * GIB for px, y in corners if px == x)
        assert (ends[0], ends[-1]) == pytest.approx((row["low_bytes"], row["high_bytes"]))


def test_points_that_do_not_fit_are_hollow_and_their_ground_hatched(one, line_figure):
    axes = panel(line_figure, "device_used_bytes")
    missed = [int(row["labels"]["micro-batch"]) for row in one["rows"] if not row["fits"]]
    (hollow,) = gid(axes, "misses")
    assert list(hollow.get_xdata()) == missed
    assert hollow.get_markerfacecolor() == "#ffffff"
    (span,) = gid(axes, "span")
    assert span.get_hatch() and span.get_x() < missed[0] < span.get_x() + span.get_width()


def test_categories_are_bars_with_their_numbers():
    found = made(f"{GPT2} --seq 256 --recompute none,full")
    axes = panel(drawn(found, draw), "device_used_bytes")
    heights = [bar.get_height() for box in axes.containers for bar in box][: found["count"]]
    assert [h * GIB for h in heights] == pytest.approx(
        [r["device_used_bytes"] for r in found["rows"]]
    )
    below = panel(drawn(found, draw), "tokens_per_s_per_gpu")
    assert [t.get_text() for t in below.get_xticklabels()] == ["none", "full"]
    numbers = [t.get_text() for t in gid(axes, "number")]
    assert numbers == [number(r["device_used_bytes"] / GIB) for r in found["rows"]]


def test_where_nothing_fits_the_chart_says_so_and_by_how_much():
    found = made(f"{GPT2} --gpu-memory 1GiB --micro-batch 4,8 --seq 256,512")
    least = min(row["device_used_bytes"] for row in found["rows"])
    assert found["fits_count"] == 0 and found["best"] is None
    assert found["misses_by_bytes"] == least - found["usable_bytes"]
    assert found["says"].startswith("nothing fits: the nearest, micro-batch 4, seq 256, needs")
    assert [p["key"] for p in found["panels"]] == ["device_used_bytes"]
    figure = drawn(found, draw)
    words = " ".join(t.get_text() for axes in figure.axes for t in axes.texts).replace("\n", " ")
    assert "nothing fits" in words
    text = render(lambda sheet: page(sheet, found), True)
    assert "nothing fits" in text and text.count("!") >= 4


def test_what_is_refused_is_grey_and_told_apart_from_what_does_not_fit():
    found = made(f"{GPT2} --gpus 5 --seq 128 --tp 1,5 --micro-batch 1,2")
    assert found["refused_count"] == 2 and "2 refused" in found["says"]
    assert any("refused: " in note for note in found["notes"])
    figure = drawn(found, draw)
    (grey,) = gid(panel(figure, "device_used_bytes"), "refused")
    column = found["axes"][0]["labels"].index("5")
    assert [grey.get_path().contains_point((column, y)) for y in (0, 1)] == [True, True]
    assert not grey.get_hatch()
    labels = [
        t.get_text()
        for axes in figure.axes
        if axes.get_legend()
        for t in axes.get_legend().get_texts()
    ]
    assert any(label.startswith("refused") for label in labels)
    assert not any("does not fit" in label for label in labels)


def test_a_refused_value_of_a_line_is_a_cross_at_the_foot():
    found = made(f"{GPT2} --gpus 5 --seq 128 --tp 1,5")
    (cross,) = gid(panel(drawn(found, draw), "device_used_bytes"), "refused")
    assert list(cross.get_xdata()) == [5] and cross.get_marker() == "x"


def test_without_a_gpu_there_is_memory_and_no_verdict():
    found = made("gpt2 --layers 2 --micro-batch 1,2,4")
    assert found["fits_count"] is None and found["best"] is None
    assert [p["kind"] for p in found["panels"]] == ["memory"]
    assert {state(row) for row in found["rows"]} == {"unjudged"}
    drawn(found, draw)


def test_a_tight_cell_has_a_corner_and_keeps_its_number(both):
    rows = [{**r, "verdict": "tight"} if r == both["rows"][5] else r for r in both["rows"]]
    axes = panel(drawn({**both, "rows": rows}, draw), "device_used_bytes")
    (corner,) = gid(axes, "tight")
    x, y = (axis["labels"].index(rows[5]["labels"][axis["name"]]) for axis in both["axes"])
    assert corner.get_path().contains_point((x + 0.45, y + 0.45))
    assert not corner.get_path().contains_point((x, y))
    assert len(axes.texts) == 16


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["both", "one"])
def test_nothing_written_leaves_the_picture_or_meets_its_neighbour(request, which, theme):
    figure = drawn(request.getfixturevalue(which), draw, theme)
    width, height = figure.bbox.width, figure.bbox.height
    for axes in figure.axes:
        ticks = [t for t in axes.get_xticklabels() if t.get_text() and t.get_visible()]
        legend = axes.get_legend()
        others = [*axes.texts, *(legend.get_texts() if legend else [])]
        for text in [*ticks, axes.xaxis.label, axes.yaxis.label, *others]:
            if text.get_text() and axes.axison | (text in others):
                box = text.get_window_extent()
                assert box.x0 >= -1 and box.x1 <= width + 1, text.get_text()
                assert box.y0 >= -1 and box.y1 <= height + 1, text.get_text()
        boxes = sorted((t.get_window_extent().x0, t.get_window_extent().x1) for t in ticks)
        assert all(left[1] <= right[0] for left, right in pairwise(boxes)) or not axes.axison


def test_two_thousand_points_are_found_and_drawn_in_seconds():
    """Generous; the strict limit of the rows is benchmarks/sweep_speed.py's."""
    begin = time.process_time()
    found = made("gpt2 --layers 2 --gpu h100 --micro-batch 1..40 --seq 16..800:16")
    middle = time.process_time()
    assert found["count"] == 2000
    assert middle - begin < 15
    picture(found, draw, "png")
    assert time.process_time() - middle < 10
