"""A pipeline's rank beside FSDP2 (with tensor parallelism too), HSDP and DDP, 0 bytes apart.

torch's stages keep what FSDP2 gathered, and whole gradients, until the last backward is over
(engine/parallel/data/fsdp2_stages.py). Not here: DDP with several chunks on a rank. Named residual: with
interleaving and FSDP2 a chunk is gathered before its first forward, not block by block (forward only).
"""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.parallel.pipeline.pipeline_memory import stage_memory
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.pipeline import run_stage
from tests.oracle.support.pipeline_draw import PipelineSetup
from tests.oracle.support.reference import RefConfig, model_of

MODEL = model_of(
    RefConfig(
        family="llama", V=256, h=64, L=4, a=4, k=2, d=16, f=96, norm="fused", max_positions=64,
        tied=False,
    )
)  # fmt: skip


def case(batches: int, schedule: str = "1f1b", **stated: Any) -> PipelineSetup:
    """A small Llama on two stages; stated: fields of the setup, and of the layout."""
    setup = {"precision": "bf16-mixed", "recompute": "none", "set_to_none": True}
    own = {name: stated.pop(name, value) for name, value in setup.items()}
    return PipelineSetup(
        MODEL,
        TrainingSetup(seq_len=16, micro_batch_size=2, grad_accum_steps=batches, **own),
        ParallelPlan(pp=2, schedule=schedule, **stated),
    )


CASES = {
    "fsdp": (case(3, dp=2, fsdp=True), 0),
    "fsdp-last-two-batches": (case(2, dp=2, fsdp=True), 1),
    "fsdp-fp32": (case(3, dp=2, fsdp=True, precision="fp32"), 1),
    "fsdp-8-gpipe-full": (case(3, "gpipe", dp=8, fsdp=True, recompute="full"), 0),
    "fsdp-one-batch": (case(1, "gpipe", dp=4, fsdp=True, precision="bf16"), 1),
    "hsdp": (case(4, dp=4, fsdp=True, shard=2), 0),
    "zero-2-gradients-stay": (case(3, dp=2, zero=2, set_to_none=False), 1),
    "fsdp-interleaved": (case(4, "interleaved", dp=2, fsdp=True, vpp=2), 1),
    "fsdp-x-tp": (case(3, dp=2, fsdp=True, tp=2), 0),
    "fsdp-x-tp-sp": (case(2, dp=2, fsdp=True, tp=2, sp=True), 1),
    "ddp": (case(3, dp=2), 1),
    "ddp-gpipe-fp32": (case(2, "gpipe", dp=2, precision="fp32"), 0),
}


@pytest.mark.parametrize(("one", "rank"), CASES.values(), ids=CASES.keys())
def test_a_rank_needs_what_pytorch_takes(one: PipelineSetup, rank: int) -> None:
    plan = one.plan()
    mine, (theirs, _) = stage_memory(stage_of(plan, rank)), run_stage(plan, rank)
    expected = {name: size for name, size in theirs.phases.items() if name in mine.phases}
    assert mine.phases == expected
    assert mine.peak_bytes == theirs.peak
    assert mine.states.gradient_bytes == theirs.states["gradients"]
    assert mine.breakdown["gathered"] == theirs.breakdown["gathered"]
    assert sum(mine.breakdown.values()) == mine.peak_bytes


def test_interleaving_gathers_a_chunk_at_once() -> None:
    one = case(2, "interleaved", dp=2, fsdp=True, vpp=2)
    plan = one.plan()
    mine, (theirs, _) = stage_memory(stage_of(plan, 0)), run_stage(plan, 0)
    assert mine.peak_bytes == theirs.peak
    assert mine.phases["forward"] == pytest.approx(theirs.phases["forward"], rel=0.01)


def test_what_does_not_run_beside_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid: false, PyTorch's way beside stages"):
        case(2, dp=2, fsdp=True, reshard=True).plan()
    with pytest.raises(ConfigError, match="valid: 1, or --schedule gpipe, 1f1b, interleaved"):
        case(2, "zb-h1", dp=2, fsdp=True).plan()
