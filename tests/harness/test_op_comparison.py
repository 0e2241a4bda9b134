"""Operators' predicted seconds beside the measured ones."""

from __future__ import annotations

from typing import Any

from memcalc.harness.op_comparison import with_predictions


def _measured(op: str, direction: str, seconds: float) -> dict[str, Any]:
    return {"op": op, "direction": direction, "calls": 2, "seconds": seconds}


def _told(op: str, direction: str, seconds: float) -> dict[str, Any]:
    return {"op": op, "direction": direction, "part": "block", "seconds": seconds}


def test_predictions_of_a_micro_batch_are_those_of_a_step() -> None:
    time = {"ops": [_told("o_proj", "forward", 0.25), _told("o_proj", "backward", 0.5)]}
    rows = with_predictions(
        [_measured("o_proj", "forward", 0.7), _measured("o_proj", "backward", 1.4)], time, 3
    )
    assert [row["predicted_s"] for row in rows] == [0.75, 1.5]
    assert [row["seconds"] for row in rows] == [0.7, 1.4]


def test_an_operator_in_blocks_and_outside_is_one() -> None:
    time = {"ops": [_told("norm", "forward", 1.0), _told("norm", "forward", 2.0)]}
    [row] = with_predictions([_measured("norm", "forward", 3.0)], time, 1)
    assert row["predicted_s"] == 3.0


def test_what_only_one_side_knows_stays() -> None:
    time = {"ops": [_told("rope", "forward", 1.0), _told("x", "forward", 0.0)], "optimizer_s": 2.0}
    rows = with_predictions([_measured("between", "backward", 0.1)], time, 1)
    assert [(row["op"], row["direction"], row["seconds"], row["predicted_s"]) for row in rows] == [
        ("between", "backward", 0.1, None),
        ("rope", "forward", 0.0, 1.0),
        ("optimizer", "step", 0.0, 2.0),
    ]


def test_without_a_prediction_every_row_says_so() -> None:
    [row] = with_predictions([_measured("rope", "forward", 1.0)], {"ops": []}, 1)
    assert row["predicted_s"] is None
