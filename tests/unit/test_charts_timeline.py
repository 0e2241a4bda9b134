"""Timeline: its highest point is the estimate's peak, and the picture shows the object's numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from matplotlib.figure import Figure

from memcalc.engine.make_plan import plan_of
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.output.charts import house
from memcalc.output.charts.palette import name_of
from memcalc.output.charts.timeline import draw, page
from memcalc.output.charts.timeline_text import peak_text
from memcalc.output.console import render
from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.timeline import (
    MOST,
    events_of,
    every_instant,
    timeline,
    timeline_beside,
)
from memcalc.units import GIB, MIB, gib
from tests.unit.charts_support import assert_nothing_is_cut_off, legend_names, point, refused

SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"grad_accum_steps": 4},
    "full recomputation": {"recompute": "full"},
    "near the GPU's memory": {"model": "llama-3.1-8b", "seq_len": 256},
    "fsdp": {"parallel": ParallelPlan(gpus=8, fsdp=True)},
    "stages": {
        "model": "llama-3.1-8b", "parallel": ParallelPlan(gpus=4, pp=4), "num_layers": 8,
        "seq_len": 256, "global_batch": 8, "micro_batch_size": 1,
    },
}  # fmt: skip
#: A record as a run of `point()` would keep, with other numbers.
RECORD: dict[str, Any] = {
    "memcalc": "0.0", "date": "2026-01-02T00:00:00", "status": "ok",
    "device": {"name": "a device", "torch": "2.13.0", "total_bytes": 10**12},
    "setup": {
        "model": {"name": "gpt2", "num_hidden_layers": 12},
        "training": {"precision": "bf16-mixed", "optimizer": "adamw", "recompute": "none"},
        "resolved": {"seq_len": 64, "micro_batch_size": 1, "grad_accum_steps": 1},
    },
    "memory": {
        "phases": {"forward": 2_000_000_000, "backward": 2_100_000_000, "zero_grad": 7},
        "peak_requested_bytes": 2_100_000_000, "peak_at": "backward/loss",
        "peak_allocated_bytes": None,
    },
    "timeline": {
        "allocations": 5000, "at": [0, 7, 3000], "live_bytes": [1, 2_000_000_000, 2_100_000_000],
        "spans": [["forward", 0, 2000], ["backward", 2000, 5000]],
    },
}  # fmt: skip


@pytest.fixture(params=SETUPS, scope="module")
def priced(request: pytest.FixtureRequest) -> Point:
    return point(**SETUPS[request.param])


@pytest.fixture(scope="module")
def found(priced: Point) -> dict[str, Any]:
    return timeline(priced)


@pytest.fixture(scope="module")
def figure(found: dict[str, Any]) -> Figure:
    return house.drawn(found, draw)


def plan_of_point(priced: Point) -> Any:
    assert isinstance(priced.case, Case)
    case = priced.case
    return plan_of(case.config, case.setup, case.kernels, case.parallel)


def areas(figure: Figure) -> dict[str, Any]:
    (axes,) = figure.axes
    return {str(one.get_label()): one for one in axes.collections}


def scale_of(figure: Figure) -> int:
    return GIB if figure.axes[0].get_ylabel().endswith("GiB") else MIB


def test_the_peak_and_every_phases_peak_are_the_estimates(
    priced: Point, found: dict[str, Any]
) -> None:
    assert priced.result is not None
    memory = priced.result.memory
    most = max(found["rows"], key=lambda row: row["live_bytes"])
    assert most["live_bytes"] == memory.peak_requested_bytes == found["peak"]["live_bytes"]
    assert found["peak"]["where"] == memory.peak_at
    at = next(row for row in found["rows"] if row["at"] == found["peak"]["at"])
    place = at["op"] if at["layer"] < 0 else f"layers.{at['layer']}/{at['op']}"
    assert f"{at['phase']}/{place}" == memory.peak_at
    for phase, peak in memory.phases.items():
        levels = [row["live_bytes"] for row in found["rows"] if row["phase"] == phase]
        if levels:  # a fused optimizer allocates nothing
            assert max(levels) == peak, phase


def test_a_points_categories_are_all_that_is_alive(priced: Point, found: dict[str, Any]) -> None:
    assert priced.result is not None
    for row in found["rows"]:
        assert sum(row["parts"].values()) == row["live_bytes"] and min(row["parts"].values()) >= 0
    top = next(row for row in found["rows"] if row["at"] == found["peak"]["at"])
    held = priced.result.memory.breakdown._asdict()
    assert top["parts"] == {name: held[name] for name in found["categories"]}
    every = every_instant(events_of(plan_of_point(priced), priced.result))
    assert found["allocations"] == len(every)
    assert len(found["rows"]) <= min(len(every), 2 * MOST)
    for row in found["rows"]:
        assert row["live_bytes"] == every[row["at"]].event.live_bytes


def test_the_areas_are_the_rows(found: dict[str, Any], figure: Figure) -> None:
    drawn, scale = areas(figure), scale_of(figure)
    floor = dict.fromkeys([row["at"] for row in found["rows"]], 0)
    for name in found["categories"]:
        corners = {
            (round(float(x)), round(float(y) * scale))
            for x, y in drawn[name].get_paths()[0].vertices
        }
        for row in found["rows"]:
            assert (row["at"], floor[row["at"]]) in corners
            floor[row["at"]] += row["parts"][name]
            assert (row["at"], floor[row["at"]]) in corners
    assert list(floor.values()) == [row["live_bytes"] for row in found["rows"]]


def test_phases_lines_and_the_peak_are_the_objects(found: dict[str, Any], figure: Figure) -> None:
    (axes,), scale = figure.axes, scale_of(figure)
    bands = [(p.get_gid(), p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
    shaded = ("forward", "loss", "backward", "optimizer")
    assert bands == [
        (s["phase"], s["begin"], s["end"]) for s in found["phases"] if s["phase"] in shaded
    ]
    lines = {line.get_gid(): line for line in axes.lines}
    peak = found["peak"]
    assert [round(float(x)) for x in lines["peak"].get_xdata()] == [peak["at"]]
    assert round(float(lines["peak"].get_ydata()[0]) * scale) == peak["live_bytes"]
    for gid, key in (("usable", "usable_bytes"), ("used", "device_used_bytes")):
        if gid in lines:
            assert round(float(lines[gid].get_ydata()[0]) * scale) == found[key]
    assert ("usable" in lines) == (found["device_used_bytes"] >= 0.45 * found["usable_bytes"])
    written = [text.get_text() for text in axes.texts if text.get_gid() == "peak text"]
    assert written == [peak_text(found)] and gib(peak["live_bytes"]) in written[0]


def test_everything_is_named_and_nothing_is_cut_off(found: dict[str, Any], figure: Figure) -> None:
    names = legend_names(figure)
    assert names[: len(found["categories"])] == [name_of(n) for n in found["categories"]]
    written = {t.get_text() for t in figure.axes[0].texts if t.get_gid() == "phase"}
    for phase in {s["phase"] for s in found["phases"]} - {"start", "zero_grad"}:
        assert phase in written or f"{phase} phase" in names
    assert_nothing_is_cut_off(figure)


def test_the_text_says_the_same(found: dict[str, Any]) -> None:
    text = render(lambda sheet: page(sheet, found), True)
    assert text.isascii() and max(map(len, text.splitlines())) <= 80
    assert peak_text(found) in text.replace("\n", " ")


def test_the_subtitle_says_what_is_drawn() -> None:
    assert timeline(point(**SETUPS["accumulation"]))["subtitle"].endswith(
        "2 of 4 micro-batches, the others repeat"
    )
    staged = timeline(point(**SETUPS["stages"]))
    assert "of 4, which needs most" in staged["subtitle"]


def test_a_measured_run_is_drawn_beside_its_step() -> None:
    plan = plan_of_point(point())
    found = timeline_beside(plan, RECORD)
    figure = house.drawn(found, draw, "dark")
    (line,) = [one for one in figure.axes[0].lines if one.get_gid() == "measured"]
    assert list(line.get_xdata()) == [0, 7, 3000]
    assert [round(float(y) * GIB) for y in line.get_ydata()] == RECORD["timeline"]["live_bytes"]
    assert figure.axes[0].get_xlim()[1] == 5000 and "measured" in legend_names(figure)
    assert_nothing_is_cut_off(figure)
    text = render(lambda sheet: page(sheet, found), True)
    assert gib(2_000_000_000) in text and "measured 2026-01-02" in text


def test_a_record_without_a_timeline_shows_the_peaks_of_its_phases() -> None:
    record = copy.deepcopy(RECORD)
    del record["timeline"]
    found = timeline_beside(plan_of_point(point()), record)
    figure = house.drawn(found, draw)
    marks = [one for one in figure.axes[0].lines if one.get_gid() == "measured peak"]
    assert {round(float(one.get_ydata()[0]) * GIB) for one in marks} == {
        2_000_000_000,
        2_100_000_000,
    }
    assert legend_names(figure).count("measured peak of a phase") == 1


def test_a_refused_case_is_its_error() -> None:
    with pytest.raises(ConfigError, match="why"):
        timeline(refused({}, "why"))
