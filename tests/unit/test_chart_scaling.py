"""The scaling chart: lines are the rows', weak and strong are what they say, the ideal is the base's."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise

import pytest

from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.scaling import found as found_of
from memcalc.cli.charts.scaling import modes_of
from memcalc.errors import ConfigError
from memcalc.output.charts.house import drawn
from memcalc.output.charts.scaling import draw, page
from memcalc.output.console import render
from memcalc.planning.charts.scaling import PARTS

_GPT2 = "gpt2 --layers 2 --gpu h100 --attention eager --seq 256"
_FSDP = f"{_GPT2} --gpus 1..16*2 --fsdp"
_SETUPS = f'{_GPT2} --gpus 2,4,6,8 --strong --weak --setup "a: --fsdp" --setup "b: --zero 1"'


def made(words: str):
    return found_of(parse_arguments("chart", ["scaling", *shlex.split(words)]))


def panel(figure, key: str):
    return next(axes for axes in figure.axes if axes.get_gid() == key)


def line(axes, name: str):
    (found,) = [one for one in axes.lines if one.get_gid() == name]
    return found


@pytest.fixture(scope="module")
def weak():
    return made(_FSDP)


@pytest.fixture(scope="module")
def figure(weak):
    return drawn(weak, draw)


@pytest.fixture(scope="module")
def several():
    return made(_SETUPS)


def test_rows_are_the_estimates_of_their_gpus(weak):
    for row in weak["rows"]:
        alone = estimate(
            "gpt2", TrainingSetup(num_layers=2, attention="eager", seq_len=256), gpu="h100",
            parallel=ParallelPlan(gpus=row["gpus"], fsdp=True),
        )  # fmt: skip
        assert row["tokens_per_s"] == alone.time.tokens_per_s
        assert row["device_used_bytes"] == alone.memory.device_used_bytes
    assert [row["gpus"] for row in weak["rows"]] == [1, 2, 4, 8, 16] == weak["gpus"]


@pytest.mark.parametrize(("key", "scale"), [("tokens_per_s", 1), ("mfu", 100)])
def test_the_lines_are_the_rows(weak, figure, key, scale):
    drawn_line = line(panel(figure, key), "weak")
    assert list(drawn_line.get_xdata()) == weak["gpus"]
    assert list(drawn_line.get_ydata()) == pytest.approx([r[key] * scale for r in weak["rows"]])


def test_the_ideal_is_the_smallest_count_that_fits_times_the_gpus(weak, figure):
    base = weak["rows"][0]
    ideal = line(panel(figure, "tokens_per_s"), "ideal weak")
    wanted = [base["tokens_per_s_per_gpu"] * count for count in weak["gpus"]]
    assert list(ideal.get_ydata()) == pytest.approx(wanted)
    assert base["efficiency"] == 1.0
    for row in weak["rows"]:
        assert row["efficiency"] == pytest.approx(row["tokens_per_s"] / row["ideal_tokens_per_s"])


def test_weak_keeps_the_batch_of_a_gpu_and_strong_the_global_one(several):
    rows = {mode: [r for r in several["rows"] if r["mode"] == mode] for mode in ("weak", "strong")}
    assert {r["sequences_per_replica"] for r in rows["weak"]} == {1}
    assert {r["global_batch"] for r in rows["weak"]} == {2, 4, 6, 8}
    priced = [r for r in rows["strong"] if r["reason"] is None]
    assert {r["global_batch"] for r in priced} == {8}  # that of the most GPUs
    assert all(r["sequences_per_replica"] * r["gpus"] == 8 for r in priced)
    assert "strong: global batch 8" in several["subtitle"]


def test_weak_and_strong_meet_at_the_most_gpus(several):
    at_last = [r for r in several["rows"] if r["gpus"] == 8 and r["series"] == "a"]
    assert at_last[0]["tokens_per_s"] == at_last[1]["tokens_per_s"]


def test_a_batch_that_does_not_divide_is_refused_and_crossed(several):
    refused = [r for r in several["rows"] if r["reason"] is not None]
    assert {(r["mode"], r["gpus"]) for r in refused} == {("strong", 6)}
    axes = panel(drawn(several, draw), "mfu")
    for name in ("refused: strong a", "refused: strong b"):
        assert list(line(axes, name).get_xdata()) == [6]
    assert all(note.startswith("refused: ") for note in several["notes"]) and several["notes"]


def test_setups_are_told_apart_by_colour_and_modes_by_dashes(several):
    axes = panel(drawn(several, draw), "tokens_per_s")
    colours = {name: line(axes, name).get_color() for name in ("weak a", "weak b", "strong a")}
    assert colours["weak a"] == colours["strong a"] != colours["weak b"]
    assert line(axes, "weak a").get_linestyle() == "-" != line(axes, "strong a").get_linestyle()


def test_above_the_ideal_the_part_that_fell_most_is_named(weak):
    above = [row for row in weak["rows"] if row["efficiency"] > 1.005]
    assert above, "sharded optimizer states make a step of gpt2 shorter"
    base = weak["rows"][0]
    fell = {
        part: base[part] / base["global_batch"] * base["gpus"]
        - above[-1][part] / above[-1]["global_batch"] * above[-1]["gpus"]
        for part in PARTS
    }
    assert max(fell, key=fell.get) == "optimizer_s"
    assert all(row["why"] == f"above the ideal: {PARTS['optimizer_s']}" for row in above)
    assert "above the ideal" in weak["says"]


def test_parts_of_a_step_sum_to_it(weak):
    for row in weak["rows"]:
        assert sum(row[part] for part in PARTS) == pytest.approx(row["step_s"])


def test_without_shared_state_no_count_is_above_the_ideal():
    found = made(f"{_GPT2} --gpus 1..32*2")
    assert all(row["efficiency"] <= 1.0 for row in found["rows"])
    assert found["rows"][-1]["efficiency"] < 0.999


def test_counts_that_do_not_fit_are_hollow_with_by_how_much():
    words = "gpt2 --layers 2 --gpu h100 --seq 1k --micro-batch 4 --gpus 1..8*2 --strong"
    found = made(f"{words} --global-batch 16 --fsdp --gpu-memory 4.1GiB")
    missed = [row for row in found["rows"] if row["fits"] is False]
    assert 0 < len(missed) < found["count"]
    base = next(row for row in found["rows"] if row["fits"])
    assert found["lines"][0]["base_gpus"] == base["gpus"] and base["efficiency"] == 1.0
    axes = panel(drawn(found, draw), "tokens_per_s")
    hollow = line(axes, "misses: strong")
    assert list(hollow.get_xdata()) == [row["gpus"] for row in missed]
    assert hollow.get_markerfacecolor() == "#ffffff"
    notes = [text.get_text() for text in axes.texts if text.get_gid() == "note"]
    assert notes == [row["why"] for row in missed] and all("GiB over" in note for note in notes)


def test_where_nothing_fits_the_chart_says_so():
    found = made(f"{_FSDP} --gpu-memory 1GiB")
    assert found["fits_count"] == 0
    assert found["says"].startswith("nothing fits: the nearest, 16 GPUs, needs")
    words = [text.get_text() for axes in drawn(found, draw).axes for text in axes.texts]
    assert any("nothing fits" in word for word in words)
    assert "nothing fits" in render(lambda sheet: page(sheet, found), True)


def test_one_count_is_a_chart():
    found = made(f"{_GPT2} --gpus 8 --fsdp")
    assert found["gpus"] == [8] and "tokens/s at 8 GPUs" in found["says"]
    assert "at 8 GPUs" in found["title"]
    assert list(line(panel(drawn(found, draw), "mfu"), "weak").get_xdata()) == [8]


def test_a_global_batch_alone_means_strong_scaling():
    def modes(words: str) -> list[str]:
        return modes_of(parse_arguments("chart", ["scaling", "gpt2", *words.split()]))

    assert modes("") == ["weak"] and modes("--global-batch 8") == ["strong"]
    assert modes("--weak --strong --global-batch 8") == ["weak", "strong"]


def test_the_lower_panel_can_show_other_shares():
    found = made(f"{_FSDP} --value hfu")
    shown = line(panel(drawn(found, draw), "hfu"), "weak").get_ydata()
    assert list(shown) == pytest.approx([100 * row["hfu"] for row in found["rows"]])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            f"{_GPT2} --fsdp",
            "chart scaling: got no --gpus; rule: several counts, as --gpus 8..1024*2",
        ),
        ("gpt2 --gpus 1,2", "chart scaling: got no --gpu; rule"),
        (f"{_FSDP} --value memory", "--value: got 'memory'; valid for chart scaling: mfu"),
        (f"{_FSDP} --weak --global-batch 64", "--weak: got --global-batch too"),
        (f"{_FSDP} --micro-batch 1..9", "got 9 setups beside --gpus; rule: at most 8 lines"),
        (f"{_GPT2} --gpus ,", "--gpus: got ','"),
        (f"{_GPT2} --gpus 2,4 --tp 5", "tp"),
    ],
)
def test_bad_input_is_one_line(words, said):
    with pytest.raises(ConfigError) as raised:
        made(words)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_written_leaves_the_picture_or_meets_its_neighbour(several, theme):
    made_figure = drawn(several, draw, theme)
    width, height = made_figure.bbox.width, made_figure.bbox.height
    for axes in made_figure.axes:
        legend = axes.get_legend()
        ticks = [t for t in axes.get_xticklabels() if t.get_text() and axes.axison]
        for text in [*ticks, *axes.texts, *(legend.get_texts() if legend else [])]:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1
        boxes = [text.get_window_extent() for text in ticks]
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_the_object_is_json_and_the_text_keeps_to_80_columns(weak, several):
    for found in (weak, several):
        assert json.loads(json.dumps(found)) == found
        text = render(lambda sheet, found=found: page(sheet, found), True)
        assert max(map(len, text.splitlines())) <= 80 and text.isascii()
    assert "weak scaling, a" in text and "strong scaling, b" in text and "refused" in text
