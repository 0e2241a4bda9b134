"""The pipeline chart: the schedule of the estimate, its bubble, and what each stage holds."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from matplotlib.figure import Figure

from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.pipeline import found as found_of
from memcalc.errors import ConfigError
from memcalc.output.charts.house import drawn
from memcalc.output.charts.pipeline import draw, page
from memcalc.output.charts.pipeline_text import letters
from memcalc.output.console import render
from memcalc.units import GIB
from tests.unit.charts_support import assert_nothing_is_cut_off, legend_names

_TWO = ("--gpu", "h100", "--gpus", "2", "--pp", "2", "--micro-batch", "1", "--grad-accum", "4")
_SCHEDULES = {
    "1f1b": ("--schedule", "1f1b"),
    "gpipe": ("--schedule", "gpipe"),
    "interleaved": ("--schedule", "interleaved", "--vpp", "2"),
    "zb-h1": ("--schedule", "zb-h1"),
    "zb-v": ("--schedule", "zb-v"),
    "megatron": ("--stack", "megatron"),
}


def _found(*words: str) -> dict[str, Any]:
    command = parse_arguments("chart", ["pipeline", "llama-3.1-8b", "--layers", "4", *words])
    found: dict[str, Any] = json.loads(json.dumps(found_of(command)))
    return found


@pytest.fixture(scope="module", params=_SCHEDULES)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _found("--seq", "256", *_TWO, *_SCHEDULES[request.param])


@pytest.fixture(scope="module")
def figure(found: dict[str, Any]) -> Figure:
    return drawn(found, draw, "dark" if found["vpp"] > 1 else "light")


def test_the_bubble_is_the_estimates() -> None:
    found = _found("--seq", "256", *_TWO)
    setup = TrainingSetup(seq_len=256, micro_batch_size=1, grad_accum_steps=4, num_layers=4)
    time = estimate(
        "llama-3.1-8b", setup, parallel=ParallelPlan(gpus=2, pp=2), gpu="h100-80gb"
    ).time
    assert found["bubble_s"] == time.bubble_s and found["step_s"] == time.step_s
    assert time.bubble_s and time.step_s
    assert found["bubble_share"] == time.bubble_s / time.step_s


def test_the_bubble_is_what_the_busiest_stage_leaves_of_the_schedule(found: dict[str, Any]) -> None:
    busy = defaultdict(float)
    for row in found["rows"]:
        busy[row["stage"]] += row["end_s"] - row["start_s"]
    for stage in found["stages"]:
        assert stage["busy_s"] == pytest.approx(busy[stage["stage"]], rel=1e-9)
        assert stage["waits_s"] == pytest.approx(found["span_s"] - stage["busy_s"], abs=1e-12)
    assert found["busiest"] == max(busy, key=lambda stage: busy[stage])
    waits = found["span_s"] - busy[found["busiest"]] - found["sends_s"]
    assert found["bubble_s"] == pytest.approx(waits, abs=1e-9)
    assert found["span_s"] + sum(found["after_s"].values()) == pytest.approx(found["step_s"])


def test_every_stage_works_through_every_micro_batch_one_after_the_other(
    found: dict[str, Any],
) -> None:
    for stage in range(found["pp"]):
        rows = [row for row in found["rows"] if row["stage"] == stage]
        forward = [(row["chunk"], row["micro_batch"]) for row in rows if row["kind"] == "forward"]
        assert len(set(forward)) == len(forward) == found["vpp"] * found["micro_batches"]
        ordered = sorted(rows, key=lambda row: row["start_s"])
        for one, following in zip(ordered[:-1], ordered[1:], strict=True):
            assert one["end_s"] <= following["start_s"] + 1e-12


def test_the_picture_holds_every_action_at_its_time(found: dict[str, Any], figure: Figure) -> None:
    schedule = figure.axes[0]
    scale = 1e3 if found["step_s"] < 1 else 1.0
    plotted = []
    for bars in schedule.collections:
        words = str(bars.get_gid()).split(" ")
        if len(words) < 3:
            continue
        for path in bars.get_paths():
            box = path.get_extents()
            stage = round((box.y0 + box.y1) / 2)
            assert stage == int(words[0])
            plotted.append((stage, " ".join(words[1:-1]), int(words[-1]), box.x0, box.x1))
    stated = [
        (r["stage"], r["kind"], r["chunk"], r["start_s"] * scale, r["end_s"] * scale)
        for r in found["rows"]
    ]
    for drawn_one, row in zip(sorted(plotted), sorted(stated), strict=True):
        assert drawn_one == pytest.approx(row)
    written = [text.get_text() for text in schedule.texts]
    if written:  # of a kind all or none
        assert set(written) == {str(batch) for batch in range(found["micro_batches"])}


def test_the_picture_says_the_bubble_and_what_stages_hold(
    found: dict[str, Any], figure: Figure
) -> None:
    memory = figure.axes[1]
    widths: dict[int, float] = defaultdict(float)
    for bar in memory.patches:
        widths[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    for stage in found["stages"]:
        assert widths[stage["stage"]] * GIB == pytest.approx(stage["device_used_bytes"])
    (usable,) = (line for line in memory.lines if line.get_gid() == "usable")
    assert usable.get_xdata()[0] * GIB == pytest.approx(found["usable_bytes"])
    waits = f"waits: bubble {100 * found['bubble_share']:.1f} % of the step"
    assert waits in legend_names(figure)
    assert_nothing_is_cut_off(figure)
    flight = ["+".join(map(str, stage["in_flight"])) for stage in found["stages"]]
    shown = [label.get_text() for child in memory.child_axes for label in child.get_yticklabels()]
    assert shown == flight


def test_the_memory_is_the_estimates_stage_by_stage() -> None:
    found = _found("--seq", "256", *_TWO)
    setup = TrainingSetup(seq_len=256, micro_batch_size=1, grad_accum_steps=4, num_layers=4)
    result = estimate("llama-3.1-8b", setup, parallel=ParallelPlan(gpus=2, pp=2), gpu="h100-80gb")
    for stage, memory in zip(found["stages"], result.stages, strict=True):
        assert stage["device_used_bytes"] == memory.device_used_bytes
        assert stage["activations_bytes"] == memory.breakdown.activations
        parts = ("states_bytes", "activations_bytes", "rest_bytes")
        assert sum(stage[key] for key in parts) == memory.device_used_bytes
        assert memory.stage is not None and stage["in_flight"] == list(memory.stage.in_flight)


def test_many_micro_batches_have_no_numbers_and_all_their_bars() -> None:
    words = (
        "--gpu",
        "h100",
        "--gpus",
        "4",
        "--pp",
        "4",
        "--micro-batch",
        "1",
        "--grad-accum",
        "96",
    )
    found = _found("--seq", "128", *words)
    schedule = drawn(found, draw).axes[0]
    assert not schedule.texts
    bars = [bar for bar in schedule.collections if len(str(bar.get_gid()).split(" ")) == 3]
    assert sum(len(bar.get_paths()) for bar in bars) == 4 * 96 * 2


def test_letters_of_a_stage_say_what_takes_most_of_a_slice() -> None:
    rows = [
        {"stage": 0, "kind": "forward", "start_s": 0.0, "end_s": 2.0},
        {"stage": 0, "kind": "backward", "start_s": 5.0, "end_s": 8.0},
        {"stage": 1, "kind": "forward", "start_s": 2.0, "end_s": 5.0},
    ]
    found = {"rows": rows, "span_s": 8.0, "step_s": 10.0,
             "after_s": {"exchanges": 1.2, "optimizer": 0.8}}  # fmt: skip
    assert letters(found, 0, 10) == "FF...BBBXO"
    assert letters(found, 1, 5) == ".FF.X"
    assert letters({**found, "rows": [
        {"stage": 0, "kind": kind, "start_s": at / 4, "end_s": (at + 1) / 4}
        for at, kind in enumerate(["forward", "backward"] * 16)
    ]}, 0, 10) == "========XO"  # fmt: skip


def test_the_text_fits_eighty_columns(found: dict[str, Any]) -> None:
    text = render(lambda sheet: page(sheet, found), to_file=True)
    assert max(map(len, text.split("\n"))) <= 80 and text.isascii()
    assert f"bubble {100 * found['bubble_share']:.1f} %" in " ".join(text.split())


def test_one_stage_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="got one stage; rule: .*nearest valid: --gpus 4 --pp 4"):
        _found("--gpu", "h100")
    nearest = ("--gpus", "4", "--pp", "4", "--micro-batch", "1", "--grad-accum", "16")
    assert _found("--gpu", "h100", *nearest)["pp"] == 4


def test_without_a_gpu_there_are_no_seconds() -> None:
    with pytest.raises(ConfigError, match="chart pipeline: got no GPU; rule: .*--gpu h100-80gb"):
        _found(*_TWO[2:])
