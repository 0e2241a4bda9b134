"""Verdicts: equal, inside a band, outside it, explained, and what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.harness.comparison import Comparison, Difference, Row, compare, phase_seconds
from tests.harness.models import LLAMA

ESTIMATE = estimate(LLAMA, TrainingSetup(seq_len=48), gpu="h100-80gb").to_dict()


def _as_predicted() -> dict[str, Any]:
    """The time of a record of just what was predicted."""
    time = ESTIMATE["time"]
    parts = phase_seconds(time)
    phases = {
        "forward_s": 0.75 * parts["forward and loss"], "loss_s": 0.25 * parts["forward and loss"],
        "backward_s": parts["backward"], "optimizer_s": parts["optimizer"], "zero_grad_s": 0.0,
    }  # fmt: skip
    rate = time["tokens_per_s"]
    return {"median_s": time["step_s"], "tokens_per_s": rate, "phases": phases}


_TIME = _as_predicted()
_TIMES = {"step time", "tokens/s", "forward and loss", "backward", "optimizer"}


def _record(**memory: Any) -> dict[str, Any]:
    """A measurement on a GPU that is exactly the estimate, but for what is changed."""
    predicted = ESTIMATE["memory"]
    names = (
        "states", "phases", "saved_for_backward_bytes", "peak_requested_bytes",
        "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes",
    )  # fmt: skip
    asked = predicted["peak_requested_bytes"] + predicted["breakdown"]["workspace"]
    exact = {"allocator": {}, "peak_allocator_requested_bytes": asked}
    measured = {name: predicted[name] for name in names} | exact | memory
    flops = ESTIMATE["time"]["executed_flops"]
    return {"memory": measured, "time": dict(_TIME), "counted_flops": flops}


def _row(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


def test_what_is_equal_is_verified() -> None:
    found = compare(ESTIMATE, _record())
    assert found.verified
    verdicts = {row.name: row.verdict for row in found.rows}
    assert {verdicts.pop(name) for name in _TIMES} == {"inside"}
    assert set(verdicts.values()) == {"equal"}
    assert {"parameters", "saved for backward", "peak in loss", "driver-used"} <= set(verdicts)


@pytest.mark.parametrize("off", [-1, 1])
def test_tensors_have_no_band(off: int) -> None:
    peak = ESTIMATE["memory"]["peak_requested_bytes"]
    found = compare(ESTIMATE, _record(peak_requested_bytes=peak - off))
    row = _row(found, "peak requested")
    assert not found.verified
    assert (row.verdict, row.difference) == ("outside", off)
    assert row.error_pct == pytest.approx(100 * off / (peak - off))


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("low_bytes", "inside"), ("high_bytes", "inside"), ("below", "outside"), ("above", "outside")],
)
def test_the_driver_has_the_printed_band(name: str, verdict: str) -> None:
    memory = ESTIMATE["memory"]
    beyond = {"below": memory["low_bytes"] - 1, "above": memory["high_bytes"] + 1}
    used = beyond[name] if name in beyond else memory[name]
    found = compare(ESTIMATE, _record(device_used_bytes=used))
    assert _row(found, "driver-used").verdict == verdict
    assert found.verified == (verdict == "inside")


def test_a_listed_difference_explains_and_only_what_it_names() -> None:
    record = _record(saved_for_backward_bytes=1, peak_requested_bytes=2)
    named = Difference(("saved for backward",), "another kernel")
    found = compare(ESTIMATE, record, [named])
    assert _row(found, "saved for backward").verdict == "explained"
    assert _row(found, "saved for backward").cause == "another kernel"
    assert _row(found, "peak requested").verdict == "outside"
    assert not found.verified


def test_on_a_cpu_there_is_no_allocator_to_compare() -> None:
    found = compare(ESTIMATE, _record(allocator=None))
    assert found.verified
    assert {row.group for row in found.rows} == {"states", "tensors", "work", "time"}


def test_nothing_measured_is_not_verified() -> None:
    record = _record(
        states=None, phases=None, saved_for_backward_bytes=None, peak_requested_bytes=None,
        peak_allocated_bytes=None, peak_reserved_bytes=None, device_used_bytes=None,
        peak_allocator_requested_bytes=None,
    )  # fmt: skip
    record["counted_flops"], record["time"] = None, {}
    found = compare(ESTIMATE, record)
    assert not found.verified
    assert {row.verdict for row in found.rows} == {"not measured"}


def _timed(factor: float, **phases: float) -> Comparison:
    """A step that took `factor` times what was predicted, within 0.8 to 1.25; phases by factors."""
    step, rate = ESTIMATE["time"]["step_s"], ESTIMATE["time"]["tokens_per_s"]
    band = {"low_s": 0.8 * step, "high_s": 1.25 * step}
    record = _record()
    record["time"] |= {"median_s": factor * step, "tokens_per_s": rate / factor}
    seen = record["time"]["phases"]
    record["time"]["phases"] = {n: s * phases.get(n, 1.0) for n, s in seen.items()}
    return compare({**ESTIMATE, "time": {**ESTIMATE["time"], **band}}, record)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(0.79, "outside"), (0.81, "inside"), (1.24, "inside"), (1.26, "outside")],
)
def test_a_predicted_time_is_held_against_its_band(factor: float, verdict: str) -> None:
    found = _timed(factor)
    assert _row(found, "step time").verdict == _row(found, "tokens/s").verdict == verdict
    assert found.verified == (verdict == "inside")


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.63, "outside"), (0.65, "inside"), (1.5, "inside"), (1.6, "outside")]
)
def test_a_phase_has_the_square_of_the_band(factor: float, verdict: str) -> None:
    found = _timed(1.0, backward_s=factor)
    assert _row(found, "backward").verdict == verdict
    assert _row(found, "forward and loss").verdict == "inside"


def test_phases_share_out_what_is_neither_kernels_nor_optimizer() -> None:
    time = {"step_s": 10.0, "forward_s": 2.0, "backward_s": 3.0, "recompute_s": 1.0,
            "optimizer_s": 1.0}  # fmt: skip
    assert phase_seconds(time) == {
        "forward and loss": pytest.approx(3.0), "backward": pytest.approx(6.0), "optimizer": 1.0,
    }  # fmt: skip


def test_a_time_that_is_not_predicted_is_not_judged() -> None:
    untimed = {**ESTIMATE, "time": {**ESTIMATE["time"], "step_s": None}}
    found = compare(untimed, _record())
    assert found.verified and _row(found, "step time").verdict == "not predicted"
    assert "tokens/s" not in {row.name for row in found.rows}


def test_the_json_form_has_differences_and_errors() -> None:
    plain = compare(ESTIMATE, _record(), [Difference(("x",), "why")]).plain()
    assert plain["verified"] is True
    assert plain["differences"] == [{"rows": ("x",), "cause": "why"}]
    assert all({"difference", "error_pct", "band"} - {"band"} <= set(row) for row in plain["rows"])


def test_tensors_are_held_against_what_a_watched_step_takes() -> None:
    watched = {"peak_requested_bytes": ESTIMATE["memory"]["peak_requested_bytes"] + 512}
    record = _record(**watched)
    assert not compare(ESTIMATE, record).verified
    assert compare(ESTIMATE, record, watched=watched).verified
