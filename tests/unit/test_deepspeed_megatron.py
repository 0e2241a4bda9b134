"""Megatron under DeepSpeed: bytes of states, what the step adds, and BLOOM's first probes."""

from __future__ import annotations

import pytest

from memcalc.engine.estimate import estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.unit.megatron_support import gpt

BUCKET = 500_000_000


def small() -> ModelConfig:
    """Two layers of h 2048 and a vocabulary of 51200: 206M parameters, half of them the embedding."""
    return gpt(
        name="small", num_hidden_layers=2, hidden_size=2048, intermediate_size=8192, head_dim=128,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=128,
        num_position_rows=128,
    )  # fmt: skip


def ran(precision: str = "bf16-mixed", dp: int = 4, **more: object) -> tuple[Plan, StepMemory]:
    layout = {name: more.pop(name) for name in ("zero", "tp", "sp", "cp") if name in more}
    fields: dict[str, object] = {
        "stack": "megatron-deepspeed", "precision": precision, "recompute": "full", "seq_len": 128,
        "attention": "eager",
    }  # fmt: skip
    setup = TrainingSetup(**fields | more)  # type: ignore[arg-type]
    plan = plan_of(small(), setup, None, ParallelPlan(dp=dp, **layout))  # type: ignore[arg-type]
    return plan, step_memory(plan)


def near(found: float, expected: float) -> bool:
    return expected <= found < expected * 1.001


@pytest.mark.parametrize("zero", [0, 1])
def test_bf16_keeps_18_bytes_a_parameter_of_which_12_are_divided(zero):
    """2 + 4 + 12/N, with ZeRO or without, and 2 of the last micro-batch's own gradients."""
    plan, memory = ran(zero=zero, grad_accum_steps=4)
    held, total = memory.states, memory.states.parameters
    assert held.parameter_bytes == 2 * total and held.gradient_bytes == 4 * total
    assert near(held.optimizer_bytes + held.master_bytes, 12 * total / 4)
    assert plan.strategy.unreduced_bytes(plan) == 2 * total
    assert memory.phases["forward"] > (2 + 4 + 2 + 12 / 4) * total


def test_one_rank_holds_the_18_bytes_of_the_530b_models_table():
    """MT-NLG on 280 GPUs (arXiv:2201.11990): 530e9 / 280 parameters of 18 bytes are 34.1 GB."""
    _, memory = ran(dp=1)
    held = memory.states
    states = held.parameter_bytes + held.gradient_bytes + held.optimizer_bytes + held.master_bytes
    assert states == 18 * held.parameters
    assert pytest.approx(34.1, abs=0.05) == 530e9 / 280 * 18 / 1e9


def test_a_backward_ends_with_one_gradient_after_the_other_in_fp32():
    """The embedding's is the largest: 51200 x 2048 x 4 bytes over all that stands."""
    _, memory = ran()
    held = memory.states
    standing = held.parameter_bytes + held.gradient_bytes + held.optimizer_bytes + held.master_bytes
    standing += 2 * held.parameters + memory.input_bytes
    assert near(memory.phases["backward"], standing + 51200 * 2048 * 4)
    assert memory.instants["backward"].op == "add_gradients"


def test_the_bf16_step_adds_the_gather_alone():
    """One shard of all ranks, as NCCL's flat copy: the 206M parameters fit one bucket of 5e8."""
    _, memory = ran()
    held = memory.states
    states = held.parameter_bytes + held.gradient_bytes + held.optimizer_bytes + held.master_bytes
    assert near(memory.phases["optimizer"] - memory.input_bytes, states + 2 * held.parameters)


def test_fp16_with_zero_1_by_hand():
    """2 of parameters, 2 of gradients until the end, then 12/N, averaged gradients 2/N and the norm in
    fp64 of the embedding's, which is more than the flat copies' 2/N + 4/N."""
    _, memory = ran("fp16-mixed", dp=1, zero=1)
    held = memory.states
    assert held.parameter_bytes == held.gradient_bytes == 2 * held.parameters
    total, piece = held.parameters, 51200 * 2048
    flat = (2 + 4) * total
    norm = max(8 * piece, 11 * piece)  # fp16 looks for overflow: fp32, three masks, fp32
    assert near(memory.phases["optimizer"], 16 * total + max(flat, norm) + memory.input_bytes)


def test_fp16_reduces_after_the_last_micro_batch_only():
    """Whole gradients wait beside the activations; the bucket exists only in the reduction."""
    plan, memory = ran("fp16-mixed", zero=1, grad_accum_steps=8)
    assert [tuple(batch) for batch in plan.strategy.micro_batches(plan)] == [
        (False, False), (True, False), (True, True),
    ]  # fmt: skip
    total = memory.states.parameters
    assert plan.strategy.unreduced_bytes(plan) == pytest.approx(2 * total * 3 / 4, rel=1e-4)
    structure, _ = plan.structure(True, True)
    assert "ipg_buffer" in structure.names
    middle, _ = plan.structure(True, False)
    assert "ipg_buffer" not in middle.names


def test_fp16_without_zero_widens_all_gradients():
    _, memory = ran("fp16-mixed", zero=0)
    total = memory.states.parameters
    assert near(memory.phases["optimizer"], (2 + 2 + 12 + 4 + 4) * total + memory.input_bytes)


def probe(layers: int, heads: int) -> ModelConfig:
    """BLOOM's team's probes: h 14400, V 250880, GELU of 4h, 2048 positions."""
    return gpt(
        name="probe", vocab_size=250880, hidden_size=14400, intermediate_size=57600,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=14400 // heads, attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "heads", "pp", "dp", "measured"),
    [(8, 32, 1, 1, 68), (80, 96, 10, 1, 75), (80, 96, 10, 2, 53)],
)
def test_bf16_probes_of_the_bloom_team(layers, heads, pp, dp, measured):
    """bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md, "Best TFLOPs": GB by
    nvidia-smi on the busiest stage. Within 15 %, read as 1e9 or as 2^30 bytes."""
    setup = TrainingSetup(
        stack="megatron-deepspeed", attention="eager", recompute="full", seq_len=2048,
        grad_accum_steps=64,
    )  # fmt: skip
    layout = ParallelPlan(tp=8, pp=pp, dp=dp, zero=1)
    used = estimate(probe(layers, heads), setup, parallel=layout, gpu="a100-80gb-sxm").memory
    assert used.device_used_bytes is not None
    for unit in (1e9, 2**30):
        assert used.device_used_bytes / unit == pytest.approx(measured, rel=0.15)


def test_blooms_own_run_fits_its_gpus():
    """384 A100 80GB: tp 4, pp 12, dp 8, micro-batches of 2, global batch 2048 (BLOOM's model card and
    arXiv:2211.05100). Every rank's parameters sum to the model and the head's copy of the embedding."""
    setup = TrainingSetup(
        stack="megatron-deepspeed", attention="eager", recompute="full", seq_len=2048,
        micro_batch_size=2, global_batch=2048,
    )  # fmt: skip
    layout = ParallelPlan(tp=4, pp=12, dp=8)
    found = estimate("bloom-176b", setup, parallel=layout, gpu="a100-80gb-sxm")
    assert found.fits
    held = sum(one.stage.parameters for one in found.memory.stages if one.stage)
    norms_and_biases = 70 * (4 + 5 + 1) * 14336  # whole on every rank, at most
    expected = 176_247_271_424 / 4 + 250880 * 14336 / 4
    assert expected <= held < expected + norms_and_biases


REFUSED = {
    "zero": {"zero": 3}, "sp": {"tp": 2, "sp": True}, "cp": {"cp": 2, "seq_len": 128},
    "precision": {"precision": "bf16"},
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_stack_does_not_run_is_refused_in_one_line(what):
    with pytest.raises(ConfigError, match=what) as caught:
        ran(**REFUSED[what])
    assert "valid" in str(caught.value) and "\n" not in str(caught.value)
