"""The sweep's timed steps: which setups, what a record holds, what the report makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.sweep import report
from benchmarks.sweep.children import ChildFailed
from benchmarks.sweep.timing_stage import STEPS, timing, timing_setups
from tests.harness.sweep_support import FACTS, sweep_of


def _answer(number: int, job: dict[str, Any]) -> dict[str, Any]:
    record = {"schema": 1, "kind": "timing", "status": "ok", "device": FACTS, "time": {"median_s": 0.5},
              "sweep": {"held_after": {"allocated_bytes": 0}}, "notes": []}  # fmt: skip
    return {"status": "ok", "record": record}


def test_over_thirty_setups_of_many_kinds_are_timed() -> None:
    specs = timing_setups(False)
    assert len(specs) >= 30 and len({spec.key for spec in specs}) == len(specs)
    assert not any(spec.expects_oom for spec in specs) and any(spec.compiled for spec in specs)
    assert len({spec.model for spec in specs}) >= 6
    assert {"bf16-mixed", "bf16"} <= {spec.training["precision"] for spec in specs}


def test_every_setup_is_timed_once_in_its_groups_process(tmp_path: Any, monkeypatch: Any) -> None:
    sweep, script = sweep_of(tmp_path, monkeypatch, _answer)
    timing(sweep)
    keys = [spec.key for spec in timing_setups(False)]
    kept = sweep.kept.of("timing", FACTS["name"])
    fitting = {record["sweep"]["key"] for record in kept}
    assert fitting <= set(keys) and len(kept) == len(fitting) >= 25
    assert {job["steps"] for _, job in script.asked} == {STEPS}
    for record in kept:
        assert record["sweep"]["spec"]["training"]["seq_len"] > 0
        assert record["estimate"]["time"]["step_s"] > 0
    again, script = sweep_of(tmp_path, monkeypatch, _answer)
    timing(again)
    assert script.asked == [] and again.counts["timing"]["had before"] == len(fitting)
    found = report.times(again.kept.of("timing", FACTS["name"]))
    assert found is not None and found["n"] == len(fitting)


def test_a_process_that_dies_is_replaced_and_the_setup_tried_in_a_later_call(
    tmp_path: Any, monkeypatch: Any
) -> None:
    first = timing_setups(False)[0]

    def answer(number: int, job: dict[str, Any]) -> Any:
        return ChildFailed("died", "gone") if number == 0 else _answer(number, job)

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    timing(sweep)
    assert len(script.children) > len({spec.group for spec in timing_setups(False)})
    assert first.key not in sweep.kept.timed(FACTS["name"])
    assert sweep.counts["timing"]["failed"] == 1


def test_the_report_scores_step_times() -> None:
    def record(label: str, told: float | None, seen: float, status: str = "ok") -> dict[str, Any]:
        return {"status": status, "estimate": {"time": {"step_s": told}},
                "time": {"median_s": seen}, "sweep": {"key": label, "label": label}}  # fmt: skip

    rows = [record("a", 1.1, 1.0), record("b", 0.8, 1.0), record("c", 1.0, 1.0),
            record("d", None, 1.0), record("e", 9.0, 1.0, "failed")]  # fmt: skip
    found = report.times(rows)
    assert found is not None and found["n"] == 3
    assert found["median"] == pytest.approx(0.1) and found["bias"] == pytest.approx(-0.1 / 3)
    assert [row["label"] for row in found["rows"]] == ["a", "b", "c"]
    assert report.times(rows[3:]) is None


def test_a_real_record_has_steps_phases_and_operators() -> None:
    import torch

    from benchmarks.sweep.jobs import time_setup

    spec = timing_setups(True)[0]
    job = {"model": spec.model, "training": spec.training, "kernels": spec.kernels, "steps": 2,
           "warmup": 1}  # fmt: skip
    record = time_setup(job, torch.device("cpu"))["record"]
    assert record["kind"] == "timing" and record["status"] == "ok" and record["notes"] == []
    assert len(record["time"]["step_s"]) == 2 and record["time"]["phases"]["backward_s"] > 0
    assert {"op", "direction", "calls", "seconds"} == set(record["ops"][0])
