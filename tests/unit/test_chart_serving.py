"""The serving chart: rows are what `infer` says, marks are its limits, lists are read, the rest refused."""

from __future__ import annotations

import json
import shlex

import pytest

from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.serving import found as found_of
from memcalc.engine.serving.infer import infer
from memcalc.errors import ConfigError
from memcalc.inputs.serving import ServingSetup
from memcalc.output.charts.house import drawn
from memcalc.output.charts.serving import draw, page, rows_of
from memcalc.output.console import render
from memcalc.planning.charts.serving import size_text, sizes

_WORDS = "qwen2.5-1.5b --gpu rtx-4090 --engine vllm --context 4k"


def made(words: str):
    return found_of(parse_arguments("chart", ["serving", *shlex.split(words)]))


@pytest.fixture(scope="module")
def chart():
    return made(_WORDS)


def panel(figure, key: str):
    return next(axes for axes in figure.axes if axes.get_gid() == key)


def line(axes, name: str):
    return next(one for one in axes.lines if one.get_gid() == name)


def test_rows_are_those_of_infer(chart) -> None:
    for row in (rows_of(chart, "batch")[3], rows_of(chart, "context")[4]):
        setup = ServingSetup(engine="vllm", batch=row["batch"], context=row["context"])
        alone = infer("qwen2.5-1.5b", setup, gpu="rtx-4090")
        assert row["decode_tokens_per_s"] == alone.time.decode_tokens_per_s
        assert row["time_per_output_token_s"] == alone.time.time_per_output_token_s
        assert row["kv_cache_bytes"] == alone.kv_cache_bytes
        memory = alone.memory
        free = memory.breakdown.get("free_pool", 0)
        assert row["need_bytes"] == memory.device_used_bytes - free
        assert row["fits"] is alone.fits
    own = infer("qwen2.5-1.5b", ServingSetup(engine="vllm", context=4096), gpu="rtx-4090")
    assert (chart["max_batch"], chart["max_context"]) == (own.max_batch, own.max_context)


def test_sweeps_go_one_beyond_what_fits(chart) -> None:
    for sweep, most in (("batch", chart["max_batch"]), ("context", chart["max_context"])):
        rows = rows_of(chart, sweep)
        assert [row["fits"] for row in rows] == [row[sweep] <= most for row in rows]
        assert rows[-2][sweep] <= most < rows[-1][sweep]


@pytest.mark.parametrize(
    ("key", "sweep", "scale"),
    [("decode_tokens_per_s", "batch", 1), ("time_per_output_token_s", "batch", 1e3),
     ("need_bytes", "context", 2**-30)],
)  # fmt: skip
def test_the_picture_is_of_the_rows(chart, key, sweep, scale) -> None:
    axes = panel(drawn(chart, draw), key)
    rows = rows_of(chart, sweep)
    assert list(line(axes, "all").get_xdata()) == [row[sweep] for row in rows]
    assert list(line(axes, "all").get_ydata()) == pytest.approx([row[key] * scale for row in rows])
    most = chart["max_batch" if sweep == "batch" else "max_context"]
    assert set(line(axes, "most").get_xdata()) == {most}
    hollow = line(axes, "fits False")
    assert list(hollow.get_xdata()) == [row[sweep] for row in rows if not row["fits"]]
    if key == "need_bytes":
        assert line(axes, "limit").get_ydata()[0] == pytest.approx(chart["limit_bytes"] / 2**30)


def test_lists_and_ranges_are_the_sizes() -> None:
    found = made("gpt2 --gpu h100 --batch 1,3,5..7 --context 128,256")
    assert [row["batch"] for row in rows_of(found, "batch")] == [1, 3, 5, 6, 7]
    assert [row["context"] for row in rows_of(found, "context")] == [128, 256]
    assert (found["batch"], found["context"]) == (1, 128)


def test_learned_positions_end_the_contexts() -> None:
    assert rows_of(made("gpt2 --gpu h100"), "context")[-1]["context"] == 1024


def test_without_a_gpu_there_is_memory_alone() -> None:
    found = made("gpt2 --batch 1,2 --context 64,128")
    assert found["max_batch"] is None and "no GPU" in found["says"]
    assert all(row["fits"] is None and row["tokens_per_s"] is None for row in found["rows"])
    drawn(found, draw)
    assert "no GPU" in render(lambda sheet: page(sheet, found), True)


def test_where_nothing_fits_the_chart_says_so() -> None:
    found = made("llama-3-70b --gpu rtx-4090")
    assert found["says"].startswith("nothing fits")
    drawn(found, draw)


def test_the_object_is_json_and_the_text_keeps_to_80_columns(chart) -> None:
    assert json.loads(json.dumps(chart)) == chart
    text = render(lambda sheet: page(sheet, chart), True)
    assert max(map(len, text.splitlines())) <= 80 and text.isascii()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_written_leaves_the_picture(chart, theme) -> None:
    figure = drawn(chart, draw, theme)
    width, height = figure.bbox.width, figure.bbox.height
    for axes in figure.axes:
        ticks = [t for t in axes.get_xticklabels() if t.get_text() and axes.axison]
        for text in [*ticks, *axes.texts]:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "chart serving: got no MODEL"),
        ("gpt2 --seq 64", "--seq: got with chart serving; rule: options of `memcalc infer`"),
        ("gpt2 --batch 1..100", "--batch: got 100 values; rule: at most 64"),
        ("gpt2 --batch x", "--batch: got 'x'"),
        ("gpt2 --engine tgi", "--engine: got 'tgi'"),
    ],
)
def test_bad_input_is_one_line(words, said) -> None:
    with pytest.raises(ConfigError) as error:
        made(words)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_sizes_are_powers_of_two() -> None:
    assert sizes(None, "batch")[-1] == 64 and sizes(5000, "context")[-1] == 8192
    assert sizes(70, "batch")[-1] == 128
    assert [size_text(n) for n in (300, 1024, 1500, 131072)] == ["300", "1k", "1,500", "128k"]
