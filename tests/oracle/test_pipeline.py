"""Memory of pipeline ranks against PyTorch's own schedules running the harness's stages.

The schedules, their runtime and autograd are torch's, on the fake process group and tensors without
data (support/pipeline.py). GPipe, 1F1B and interleaved 1F1B: every phase, the peak, its instant, saved
bytes and states, 0 bytes apart. The schedules that split backward: the same but for a number, the loss
that is summed here so that it can be detached. A residual: a stage without blocks has only rotary tables,
whose scratch of a few bytes a position is not modelled.
"""

from __future__ import annotations

import pytest

from memcalc.engine.memory import StepMemory
from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.parallel.pipeline.pipeline_memory import stage_memory
from memcalc.engine.parallel.pipeline.schedules import SPLIT_BACKWARD
from memcalc.harness.watch.tensors import TensorBytes
from tests.oracle.support.pipeline import run_stage
from tests.oracle.support.pipeline_draw import PipelineSetup, draw_pipelines

WHOLE = {"gpipe": 3, "1f1b": 4, "interleaved": 3}
HALVES = {"zb-h1": 2, "zb-v": 2, "dualpipe": 2}
CASES = [(name, i) for name, n in {**WHOLE, **HALVES}.items() for i in range(n)]
NUMBER = 4  # bytes of a loss
#: The most that a residual may be of a phase.
RESIDUAL = 0.001


def drawn(schedule: str, number: int) -> tuple[PipelineSetup, int, StepMemory, TensorBytes]:
    """A setup, the rank looked at (first, last, others in turn), the engine's and torch's step."""
    one = draw_pipelines(11, {**WHOLE, **HALVES}[schedule], schedule)[number]
    rank = (0, one.layout.pp - 1, one.layout.pp // 2)[number % 3]
    plan = one.plan()
    return one, rank, stage_memory(stage_of(plan, rank)), run_stage(plan, rank)[0]


def phases(step: TensorBytes) -> dict[str, int]:
    """What the engine has phases of."""
    return {name: size for name, size in step.phases.items() if name != "zero_grad"}


@pytest.mark.parametrize(("schedule", "number"), CASES, ids=str)
def test_a_rank_needs_what_torchs_schedule_takes(schedule: str, number: int) -> None:
    one, rank, mine, theirs = drawn(schedule, number)
    _states_and_buffers_are_torchs(mine, theirs)
    expected = phases(theirs)
    assert mine.phases.keys() == expected.keys()
    where = f"{one.name} rank {rank}"
    if schedule in SPLIT_BACKWARD:
        of_blocks = {name for name in expected if name != "forward"}
        for name in of_blocks:
            assert abs(mine.phases[name] - expected[name]) <= NUMBER, where
        assert mine.phases["forward"] == pytest.approx(expected["forward"], rel=RESIDUAL), where
        return
    if not all(chunk.layers for chunk in stage_of(one.plan(), rank).chunks):
        forward = expected.pop("forward")
        assert mine.phases["forward"] == pytest.approx(forward, rel=RESIDUAL), where
        assert {name: mine.phases[name] for name in expected} == expected, where
    else:
        assert mine.phases == expected, where
        assert {n: i.name for n, i in mine.instants.items()} == {
            n: theirs.phases_at[n] for n in mine.phases
        }, where
    assert mine.peak_bytes == theirs.peak, where
    if (
        schedule != "interleaved"
    ):  # there more is saved later than the forwards in the warm-up leave
        assert mine.saved_bytes == theirs.saved, where


def _states_and_buffers_are_torchs(mine: StepMemory, theirs: TensorBytes) -> None:
    held = mine.states
    assert held.parameter_bytes == theirs.states["parameters"]
    assert held.gradient_bytes == theirs.states["gradients"]
    assert held.optimizer_bytes == theirs.states["optimizer"]
    assert sum(mine.breakdown.values()) == mine.peak_bytes
    for name in ("parameters", "optimizer", "buffers"):
        assert mine.breakdown[name] == theirs.breakdown[name], name
