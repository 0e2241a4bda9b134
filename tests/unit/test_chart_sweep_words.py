"""The sweep chart in words: axes, numbers, the text version, values of --value, and bad input."""

from __future__ import annotations

import json

import pytest

from memcalc.errors import ConfigError
from memcalc.output.charts.bar_labels import readable_on
from memcalc.output.charts.house import drawn
from memcalc.output.charts.sweep import draw, page
from memcalc.output.charts.sweep_cells import runs
from memcalc.output.charts.sweep_numbers import number, short
from memcalc.output.console import render
from memcalc.planning.charts.sweep import sweep
from memcalc.planning.charts.sweep_axes import axis_of, choose_axes
from memcalc.planning.charts.sweep_values import VALUES
from memcalc.units import GIB
from tests.unit.chart_sweep_support import GPT2, LINE, MAP, gid, made, panel


@pytest.fixture(scope="module")
def both():
    return made(MAP)


@pytest.fixture(scope="module")
def one():
    return made(LINE)


@pytest.mark.parametrize("grey", [0.0, 0.15, 0.18, 0.2, 0.45, 0.5, 0.8, 1.0])
def test_ink_has_contrast_on_any_cell(grey):
    """WCAG 2.1 asks for 4.5 to 1."""

    def light(shade):
        return shade / 12.92 if shade <= 0.04045 else ((shade + 0.055) / 1.055) ** 2.4

    ink = light(float(int(readable_on((grey,) * 3)[1:3], 16)) / 255)
    low, high = sorted((ink + 0.05, light(grey) + 0.05))
    assert high / low >= 4.5


@pytest.mark.parametrize(
    ("amount", "long", "brief"),
    [(7286.4, "7,286", "7.3k"), (73.34, "73.3", "73"), (2.5, "2.50", "2.5"), (559.1, "559", "559"),
     (123456, "123k", "123k"), (9.996, "10.0", "10"), (99.96, "100", "100")],
)  # fmt: skip
def test_numbers_are_as_short_as_the_cell_needs(amount, long, brief):
    assert (number(amount), short(amount)) == (long, brief)


@pytest.mark.parametrize("word", ["memory", "headroom", "host", "mfu", "step-time", "cost"])
def test_a_value_can_be_shown_alone(one, word):
    value = VALUES[word]
    rows = [{**row, "usd_per_million_tokens": 1.5} for row in one["rows"]]
    axis = axis_of("micro-batch", [row["labels"]["micro-batch"] for row in rows], "count")
    found = sweep({k: one[k] for k in ("title", "subtitle", "source")}, [axis], rows, value)
    axes = panel(drawn(found, draw), value.key)
    (line,) = gid(axes, "all")
    assert list(line.get_ydata()) == pytest.approx([row[value.key] * value.scale for row in rows])
    assert axes.get_title(loc="left") == f"{value.label}, {value.unit}"


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_point_is_a_chart(both, count):
    row = both["rows"][0]
    names = list(row["labels"])[:count]
    axes = [axis_of(name, [row["labels"][name]], "count") for name in names]
    head = {k: both[k] for k in ("title", "subtitle", "source")}
    found = sweep(head, axes, [{**row, "labels": {n: row["labels"][n] for n in names}}])
    figure = drawn(found, draw)
    assert len(figure.axes) >= 3
    assert "1 of 1 fit" in render(lambda sheet: page(sheet, found), True)


def test_the_object_is_json_and_the_text_keeps_to_80_columns(both, one):
    for found in (both, one):
        assert json.loads(json.dumps(found)) == found
        text = render(lambda sheet, found=found: page(sheet, found), True)
        assert max(map(len, text.splitlines())) <= 80
        assert text.isascii()
    assert "*" in text or "best" in text


def test_a_map_of_numbers_for_the_terminal_marks_each_cell(both):
    text = render(lambda sheet: page(sheet, both), True)
    for row in both["rows"]:
        shown = number(row["device_used_bytes"] / GIB)
        mark = "*" if row == both["best"] else "" if row["fits"] else "!"
        assert shown + mark in text


def test_log_axes_are_even_by_cell_and_sizes_are_said_in_k():
    axis = axis_of("seq", ["1k", "4096", "2k"], "count")
    assert axis.values == (1024, 2048, 4096) and axis.texts == ("1k", "2k", "4k")
    assert axis_of("seq", ["1k", "1536"], "count").texts == ("1,024", "1,536")
    assert axis_of("recompute", ["none", "full"], "recompute").numeric is False


def test_cells_beside_each_other_are_one_bar():
    assert runs([(0, 0), (1, 0), (3, 0), (0, 1)]) == [
        (-0.5, -0.5, 2),
        (2.5, -0.5, 1),
        (-0.5, 0.5, 1),
    ]


@pytest.mark.parametrize(
    ("names", "x", "y", "chosen"),
    [
        (["seq"], None, None, ["seq"]),
        (["seq", "tp"], None, None, ["seq", "tp"]),
        (["seq", "tp"], "tp", None, ["tp", "seq"]),
        (["seq", "tp"], None, "seq", ["tp", "seq"]),
    ],
)
def test_x_and_y_choose_the_axes(names, x, y, chosen):
    assert choose_axes(names, x, y) == chosen


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (GPT2, "chart sweep: got no list; rule: one or two options with several values, as"),
        (f"{GPT2} --micro-batch 1,2 --seq 64,128 --tp 1,2 --x seq", "got 3 lists"),
        (f"{GPT2} --micro-batch 1,2 --x seq", "--x: got 'seq'; valid: micro-batch"),
        (f"{GPT2} --micro-batch 1,2 --seq 64,128 --x seq --y seq", "two different options"),
        (f"{GPT2} --micro-batch , --seq 64,128", "--micro-batch: got ','"),
        (f"{GPT2} --micro-batch 1,2 --value speed", "--value: got 'speed'"),
        (f"{GPT2} --micro-batch 1,2 --tp 5,7", "tp"),
    ],
)
def test_bad_input_is_one_line(words, said):
    with pytest.raises(ConfigError) as raised:
        made(words)
    assert said in str(raised.value) and "\n" not in str(raised.value)
