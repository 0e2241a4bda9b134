"""Verdicts: equal, inside a band, outside it, explained, and what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.harness.comparison import Comparison, Difference, Row, compare
from tests.harness.models import LLAMA

ESTIMATE = estimate(LLAMA, TrainingSetup(seq_len=48), gpu="h100-80gb").to_dict()


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
    return {"memory": measured, "time": {"median_s": 0.25}, "counted_flops": flops}


def _row(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


def test_what_is_equal_is_verified() -> None:
    found = compare(ESTIMATE, _record())
    assert found.verified
    verdicts = {row.name: row.verdict for row in found.rows}
    assert verdicts.pop("step time") == "not predicted"
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
    record["counted_flops"] = None
    found = compare(ESTIMATE, record)
    assert not found.verified
    assert {row.verdict for row in found.rows} == {"not measured", "not predicted"}


def test_a_predicted_time_is_held_against_its_band() -> None:
    timed = {**ESTIMATE, "time": {**ESTIMATE["time"], "step_s": 0.2, "low_s": 0.1, "high_s": 0.3}}
    assert _row(compare(timed, _record()), "step time").verdict == "inside"
    narrow = {**timed, "time": {**timed["time"], "high_s": 0.24}}
    assert _row(compare(narrow, _record()), "step time").verdict == "outside"


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
