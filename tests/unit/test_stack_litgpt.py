"""Stack litgpt: its layer and loss event for event, what stands between steps, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.make_plan import make_plan, plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.program import expanded
from memcalc.engine.timeline import size_values
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve
from tests.oracle.support.engine import steps
from tests.oracle.support.litgpt_model import steps_of
from tests.oracle.support.reference import RefConfig, model_of

MODEL = load_model("llama-3.2-1b")
T = 2048
LLAMA = model_of(RefConfig(V=700, h=96, L=5, a=6, k=2, d=16, f=208))
NEOX = replace(
    LLAMA, num_key_value_heads=6, rotary_dim=4, norm_type="layernorm", norm_bias=True,
    parallel_block=True, parallel_norms=2, gated_mlp=False, hidden_act="gelu", mlp_bias=True,
    attention_bias=True, attention_output_bias=True,
)  # fmt: skip


def _engine_steps(
    config: ModelConfig, shape: tuple[int, int], tables: str = "fp32", **stated: Any
) -> list[tuple[int, list[int]]]:
    setup = TrainingSetup(micro_batch_size=shape[0], seq_len=shape[1], stack="litgpt", **stated)
    plan = make_plan(resolve(setup, config), load_stack("litgpt"), {"watched": True})
    assert plan.kernels.traits.tables == "fp32"
    traits = plan.kernels.traits._replace(tables=tables)
    plan = plan._replace(kernels=plan.kernels._replace(traits=traits))
    structure, runs = plan.structure(False)
    stream = expanded(structure, runs)
    sizes = stream.sizes(size_values(structure, plan.values))
    return steps([sizes[e] if e >= 0 else -sizes[~e] for e in stream.events])


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (LLAMA, (2, 80)),
        (replace(LLAMA, num_key_value_heads=6), (1, 300)),
        (replace(LLAMA, num_key_value_heads=1, tie_word_embeddings=True), (1, 48)),
        (NEOX, (2, 160)),
        (replace(NEOX, parallel_norms=1, norm_bias=True), (1, 129)),
    ],
)
def test_a_micro_batch(
    config: ModelConfig, shape: tuple[int, int], recompute: str, precision: str
) -> None:
    ours = _engine_steps(config, shape, recompute=recompute, precision=precision)
    _same(ours, steps_of(config, shape, precision == "bf16-mixed", recompute == "full"))


def test_a_micro_batch_with_tables_in_16_bit() -> None:
    """As FullyShardedDataParallel casts them."""
    ours = _engine_steps(LLAMA, (2, 80), "full", precision="bf16")
    _same(ours, steps_of(LLAMA, (2, 80), False, False, wide=False))


def _same(ours: list[tuple[int, list[int]]], theirs: list[tuple[int, list[int]]]) -> None:
    for number, (mine, torchs) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
        assert mine == torchs, f"allocation {number} of {len(ours)}, {len(theirs)}"
    assert len(ours) == len(theirs)


def _plan(parallel: ParallelPlan | None = None, **stated: Any) -> Plan:
    setup = TrainingSetup(seq_len=T, stack="litgpt", **{"precision": "bf16", **stated})
    return plan_of(MODEL, setup, None, parallel)


def test_logits_labels_and_tables_stand_for_the_whole_run() -> None:
    """fp32 logits of the micro-batch before, int64 labels, fp32 cos and sin."""
    found = step_memory(_plan()).input_bytes
    kept = 4 * T * MODEL.vocab_size + 8 * T + 2 * 4 * T * MODEL.head_dim
    assert found == 8 * T + kept
    sharded = step_memory(_plan(ParallelPlan(dp=8, fsdp=True, zero=3))).input_bytes
    assert found - sharded == 2 * 2 * T * MODEL.head_dim  # tables in 16 bit


def test_the_head_is_a_parameter_of_its_own() -> None:
    plan = _plan()
    plain = plan_of(MODEL, TrainingSetup(seq_len=T, precision="bf16"))
    apart, tied = (step_memory(one).states.parameter_bytes for one in (plan, plain))
    assert MODEL.tie_word_embeddings
    assert apart - tied == 2 * MODEL.vocab_size * MODEL.hidden_size
    assert any("ties no head" in note for note in plan.resolved.notes)


def test_sharded_under_autocast_gathers_fp32_and_casts_inside() -> None:
    """Twice the bytes of bf16-true's gathered parameters, each rank an eighth of 4 P."""
    layout = ParallelPlan(dp=8, fsdp=True, zero=3)
    mixed, pure = _plan(layout, precision="bf16-mixed"), _plan(layout)
    assert mixed.kernels.param_dtype == "fp32"
    assert mixed.kernels.autocast
    assert not mixed.kernels.caches_casts
    assert (pure.kernels.param_dtype, pure.kernels.autocast) == ("bf16", False)
    parameters = [step_memory(plan).states.parameter_bytes for plan in (mixed, pure)]
    assert parameters[0] == pytest.approx(2 * parameters[1], rel=1e-6)


@pytest.mark.parametrize(
    ("stated", "parallel", "said"),
    [
        ({"precision": "fp32"}, None, "precision: got fp32"),
        ({"loss": "fp32"}, None, "valid: chunked"),
        ({"recompute": "selective"}, None, "valid: none, full"),
        ({"recompute": "full", "reentrant": True}, None, "valid: none, full"),
        ({"optimizer_in_backward": True}, None, "valid: without it"),
        ({"attention": "cudnn"}, None, "valid: flash, efficient"),
        ({"attention": "eager"}, None, "an eager attention"),
        ({}, ParallelPlan(dp=4), "valid: --zero 3 or --fsdp"),
        ({}, ParallelPlan(dp=2, tp=2, fsdp=True, zero=3), "data parallelism alone"),
        ({"grad_accum_steps": 2}, ParallelPlan(dp=2, zero=3), "no_sync is not in this version"),
    ],
)
def test_what_is_not_described_is_refused(
    stated: dict[str, Any], parallel: ParallelPlan | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _plan(parallel, **stated)


def test_one_position_leaves_no_loss() -> None:
    with pytest.raises(ConfigError, match="rule: >= 2"):
        plan_of(MODEL, TrainingSetup(seq_len=1, precision="bf16", stack="litgpt"))


@pytest.mark.parametrize("model", ["gpt2", "gemma-2-2b", "deepseek-v2-lite", "mixtral-8x7b"])
def test_other_layers_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="rule: "):
        plan_of(load_model(model), TrainingSetup(stack="litgpt"))
