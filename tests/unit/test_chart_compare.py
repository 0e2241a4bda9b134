"""The picture of a comparison: its bars, lines and texts are the numbers of its object."""

from __future__ import annotations

import shlex

import pytest

from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.compare import found as found_of
from memcalc.output.charts.compare import draw
from memcalc.output.charts.house import drawn, picture
from memcalc.planning.charts.compare import DRAWN
from memcalc.units import GIB

_LINE = "compare gpt2 --layers 2 --seq 256 --attention eager --gpu 4090,h100"
_FULL = f"{_LINE} --micro-batch 1,8,1500 --tp 1,5 --price 2"


def made(line: str):
    return found_of(parse_arguments("chart", shlex.split(line)))


@pytest.fixture(scope="module")
def found():
    return made(_FULL)


@pytest.fixture(scope="module")
def figure(found):
    return drawn(found, draw)


def with_gid(axes, gid: str):
    """Artists of a name, the top row's first."""
    marked = [one for one in axes.get_children() if one.get_gid() == gid]
    return sorted(marked, key=lambda one: one.get_window_extent().y0, reverse=True)


def priced(found):
    return [row for row in found["rows"] if row["reason"] is None]


def test_memory_bars_are_the_bytes_of_the_rows(found, figure):
    memory = figure.axes[1]
    solid, beyond = with_gid(memory, "allocated"), with_gid(memory, "beyond")
    for row, first, second in zip(priced(found), solid, beyond, strict=True):
        assert first.get_width() * GIB == pytest.approx(row["peak_allocated_bytes"])
        end = first.get_width() + second.get_width()
        assert end * GIB == pytest.approx(row["device_used_bytes"])
        assert bool(first.get_hatch()) == (row["fits"] is False)
    assert [row["fits"] for row in priced(found)].count(False) == 2


def test_capacities_are_those_of_each_rows_gpu(found, figure):
    lines = with_gid(figure.axes[1], "usable")
    usable = [row["usable_bytes"] for row in priced(found)]
    assert [line.get_xdata()[0] * GIB for line in lines] == pytest.approx(usable)
    assert len(set(usable)) == 2


@pytest.mark.parametrize(
    ("at", "key"), [(2, "tokens_per_s_per_gpu"), (3, "usd_per_million_tokens")]
)
def test_bars_beside_the_memory_are_speed_and_cost(found, figure, at, key):
    bars = with_gid(figure.axes[at], key)
    assert [bar.get_width() for bar in bars] == pytest.approx([row[key] for row in priced(found)])


def test_the_band_of_a_speed_is_that_of_the_step_time(found, figure):
    fitting = [row for row in priced(found) if row["fits"]]
    for row, line in zip(fitting, with_gid(figure.axes[2], "band"), strict=True):
        tokens = row["tokens_per_s_per_gpu"] * row["step_s"]
        ends = sorted(tokens / row[key] for key in ("low_s", "high_s"))
        assert list(line.get_xdata()) == pytest.approx(ends)


def test_labels_verdicts_and_reasons_are_written(found, figure):
    labels = [one.get_text() for one in with_gid(figure.axes[0], "label")]
    stated = [text for row in found["rows"] for text in row["labels"].values()]
    assert sorted(labels) == sorted(stated)
    ends = [one.get_text() for one in with_gid(figure.axes[1], "end")]
    short = next(row for row in priced(found) if row["fits"] is False)
    lacking = (short["device_used_bytes"] - short["usable_bytes"]) / GIB
    assert any(text.startswith(f"short {lacking:,.1f} GiB") for text in ends)
    reasons = with_gid(figure.axes[-1], "reason")
    assert len(reasons) == found["refused_count"] == 6
    assert all("does not divide 12" in one.get_text().replace("\n", " ") for one in reasons)


def test_the_best_row_is_marked_in_every_panel(found, figure):
    assert [len(with_gid(axes, "best")) for axes in figure.axes] == [1, 1, 1, 1]
    bold = [one for one in with_gid(figure.axes[0], "label") if one.get_fontweight() == "bold"]
    assert [one.get_text() for one in bold] == list(found["best"]["labels"].values())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "line",
    [
        _FULL,
        "compare llama-3.1-8b --layers 2 --gpu 4090 --seq 1k --micro-batch 1,200 --setup '' --setup "
        "'A name of its own: --recompute full' --setup '--precision bf16 --optimizer adamw-8bit "
        "--recompute full --grad-accum 4 --attention efficient'",
        "compare gpt2 --layers 2 --seq 64",
    ],
    ids=["all", "setups", "no gpu"],
)
def test_nothing_overlaps_and_nothing_is_cut_off(line, theme):
    figure = drawn(made(line), draw, theme)
    whole = figure.bbox
    texts = [
        one
        for axes in figure.axes
        for gid in ("label", "end", "reason")
        for one in with_gid(axes, gid)
    ]
    texts += [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    texts += [axes.title for axes in figure.axes if axes.get_title().strip()]
    boxes = [one.get_window_extent() for one in texts if one.get_text().strip()]
    for box in boxes:
        assert (
            whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        )
    for at, box in enumerate(boxes):
        for other in boxes[at + 1 :]:
            assert not box.padded(-2).overlaps(other.padded(-2))


def test_forty_rows_are_drawn_and_the_rest_is_stated():
    found = made("compare gpt2 --layers 2 --seq 64 --gpu 4090 --micro-batch 1..45")
    figure = drawn(found, draw)
    assert len(found["rows"]) == 45 and found["drawn"] == DRAWN
    assert len(with_gid(figure.axes[1], "allocated")) == DRAWN
    assert "the first 40 drawn" in found["subtitle"]


def test_another_value_takes_the_place_of_the_speed():
    found = made(f"{_LINE} --micro-batch 1,8 --value mfu")
    figure = drawn(found, draw)
    shares = [bar.get_width() for bar in with_gid(figure.axes[2], "mfu")]
    assert shares == pytest.approx([100 * row["mfu"] for row in found["rows"]])


def test_where_nothing_fits_there_is_a_picture_that_says_so():
    found = made(
        "compare gpt2 --layers 2 --seq 256 --attention eager --gpu 4090 --micro-batch 2000,3000"
    )
    assert found["best"] is None and "nothing fits: the closest is" in found["subtitle"]
    assert picture(found, draw, "svg") == picture(found, draw, "svg")
