"""Records of ranks held against estimates of their places: equal, above on gloo, below on a later rank."""

from __future__ import annotations

from typing import Any

from memcalc.engine.device_side import device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.rank_comparison import compared, parallel_of
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import LLAMA

SETUP = TrainingSetup(seq_len=32, micro_batch_size=2, precision="fp32")
KERNELS = {"device": "cpu", "norm": "decomposed"}
LAYOUT = Layout(dp=2, fsdp=True)


def record(rank: int, more: int = 0, backend: str = "gloo") -> dict[str, Any]:
    """What a rank would leave whose peak of backward is `more` bytes above the estimate."""
    world = {**LAYOUT.plain(), "pp_rank": 0, "dp_rank": rank, "tp_rank": 0, "backend": backend}
    plan = plan_of(LLAMA, SETUP, {**KERNELS, "watched": True}, parallel_of(world))
    step = step_memory(plan)
    held = step.states
    return {
        "world": world,
        "time": {},
        "memory": {
            "peak_requested_bytes": step.peak_bytes,
            "saved_for_backward_bytes": step.saved_bytes,
            "phases": {**step.phases, "backward": step.phases["backward"] + more},
            "states": {
                "parameters": held.parameter_bytes, "gradients": held.gradient_bytes,
                "optimizer": held.optimizer_bytes, "master": held.master_bytes,
            },
        },
    }  # fmt: skip


def verdicts(*records: dict[str, Any]) -> list[tuple[bool, dict[str, str]]]:
    found = compared(LLAMA, SETUP, KERNELS, records, device_of(None))
    return [(one["verified"], {r["name"]: r["verdict"] for r in one["rows"]}) for one in found]


def test_what_the_estimate_says_is_verified() -> None:
    for verified, rows in verdicts(record(0), record(1)):
        assert verified and rows["peak requested"] == rows["parameters"] == "equal"


def test_more_is_explained_on_gloo_and_outside_on_nccl() -> None:
    [(verified, rows)] = verdicts(record(0, 64))
    assert verified and rows["peak in backward"] == "explained"
    [(verified, rows)] = verdicts(record(0, 64, "nccl"))
    assert not verified and rows["peak in backward"] == "outside"


def test_less_is_explained_on_a_later_rank_alone() -> None:
    (first, rows), (second, later) = verdicts(record(0, -64), record(1, -64))
    assert not first and rows["peak in backward"] == "outside"
    assert second and later["peak in backward"] == "explained"


def test_the_step_of_all_ranks_is_held_against_the_layouts_time() -> None:
    device = device_of("h100-80gb")._replace(calibration="default")
    [row] = [
        row
        for row in compared(LLAMA, SETUP, KERNELS, [record(0)], device)[0]["rows"]
        if row["name"] == "step time"
    ]
    assert row["predicted"] > 0 and row["low"] < row["predicted"] < row["high"]
    seen = record(0)
    seen["time"] = {"median_s": row["predicted"], "tokens_per_s": 1.0}
    rows = compared(LLAMA, SETUP, KERNELS, [seen], device)[0]["rows"]
    found = {row["name"]: row["verdict"] for row in rows if row["group"] == "time"}
    assert found == {"step time": "inside", "tokens/s": "outside"}
