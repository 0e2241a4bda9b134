"""What must hold of any model and setup, whatever the numbers: drawn by hypothesis, engine only."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine import structure as structures
from memcalc.engine.estimate import estimate
from memcalc.engine.expand import expand
from memcalc.engine.flops import step_flops
from memcalc.engine.make_plan import make_plan
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.timeline import live_bytes, measure, size_values
from memcalc.inputs.model import ModelConfig, MoeConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import RECOMPUTE, TrainingSetup, resolve

STACK = load_stack("torch")


@st.composite
def models(draw: st.DrawFn, layers: tuple[int, int] = (1, 6)) -> ModelConfig:
    """Dense and sparse decoders, with windows in alternate layers or a few dense layers first."""
    n_layers = draw(st.integers(*layers))
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    kind = draw(st.sampled_from(["dense", "dense", "windows", "sparse", "dense first"]))
    moe = None
    if kind.startswith(("sparse", "dense first")):
        first = min(2, n_layers - 1) if kind == "dense first" else 0
        moe = MoeConfig(
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            sparse_layers=tuple(range(first, n_layers)),
        )
    types = tuple("full" if i % 2 else "sliding" for i in range(n_layers))
    return ModelConfig(
        name="drawn",
        model_type="llama",
        vocab_size=draw(st.sampled_from([11, 500, 3000])),
        hidden_size=draw(st.sampled_from([32, 96])),
        intermediate_size=draw(st.sampled_from([40, 200])),
        num_hidden_layers=n_layers,
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([k for k in (1, 2, 3, heads) if heads % k == 0])),
        head_dim=draw(st.sampled_from([8, 32])),
        max_position_embeddings=4096,
        tie_word_embeddings=draw(st.booleans()),
        norm_type=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        gated_mlp=True,
        attention_bias=draw(st.booleans()),
        residual_dropout=draw(st.sampled_from([0.0, 0.1])),
        sliding_window=16 if kind == "windows" else None,
        layer_types=types if kind == "windows" else (),
        moe=moe,
    )


def setups(**fixed: object) -> st.SearchStrategy[TrainingSetup]:
    """Setups with everything that changes a trace, sizes small."""
    choices: dict[str, st.SearchStrategy[object]] = {
        "seq_len": st.sampled_from([7, 16, 33, 128]),
        "micro_batch_size": st.integers(1, 3),
        "grad_accum_steps": st.integers(1, 2),
        "precision": st.sampled_from(["bf16", "bf16-mixed", "fp32", "bf16-master"]),
        "optimizer": st.sampled_from(["adamw", "sgd", "adafactor", "muon"]),
        "set_to_none": st.booleans(),
        "recompute": st.sampled_from(RECOMPUTE),
        "attention": st.sampled_from(["flash", "eager", "efficient"]),
        "loss": st.sampled_from(["plain", "fp32", "chunked"]),
    }
    return st.builds(TrainingSetup, **choices | {k: st.just(v) for k, v in fixed.items()})


def plan_for(model: ModelConfig, setup: TrainingSetup, **changed: object) -> Plan:
    return make_plan(resolve(replace(setup, **changed), model), STACK)


def memory(model: ModelConfig, setup: TrainingSetup, **changed: object) -> StepMemory:
    return step_memory(plan_for(model, setup, **changed))


drawn = settings(deadline=None, derandomize=True, max_examples=60)


@drawn
@given(models(), setups())
def test_the_breakdown_sums_to_the_peak(model, setup):
    step = memory(model, setup)
    assert sum(step.breakdown.values()) == step.peak_bytes == max(step.phases.values())
    assert all(size >= 0 for size in step.breakdown.values())
    result = estimate(model, setup)
    assert result.memory.breakdown.total_bytes == result.memory.peak_allocated_bytes
    assert result.memory.peak_requested_bytes == step.peak_bytes


@drawn
@given(models(layers=(2, 6)), setups())
def test_peaks_grow_with_batch_sequence_and_layers(model, setup):
    """Layers: of a run of equal blocks, so only for models without a pattern."""
    peak = memory(model, setup).peak_bytes
    batch, seq = setup.micro_batch_size or 1, setup.seq_len or 1
    assert memory(model, setup, micro_batch_size=batch + 1).peak_bytes >= peak
    assert memory(model, setup, seq_len=seq + 1).peak_bytes >= peak
    assert memory(model, setup, num_layers=model.num_hidden_layers - 1).peak_bytes <= peak


@drawn
@given(models(), setups(recompute="none"))
def test_saved_bytes_fall_and_flops_rise_with_recomputation(model, setup):
    ways = ("none", "selective", "sac", "sac-attention", "full")
    saved = {way: memory(model, setup, recompute=way).saved_bytes for way in ways}
    flops = {way: step_flops(plan_for(model, setup, recompute=way)).executed for way in ways}
    assert saved["none"] >= saved["selective"] >= saved["full"]
    assert saved["none"] >= saved["sac"] >= saved["full"]
    assert saved["none"] >= saved["sac-attention"] >= saved["full"]
    assert flops["none"] <= flops["selective"] <= flops["full"]
    assert flops["none"] <= flops["sac"] <= flops["sac-attention"] <= flops["full"]
    reentrant = replace(setup, recompute="full", reentrant=True)
    assert step_flops(plan_for(model, reentrant)).executed >= flops["full"]


@drawn
@given(models(), setups(recompute="full"), st.data())
def test_full_n_lies_between_none_and_full(model, setup, data):
    n = data.draw(st.integers(1, model.num_hidden_layers))
    part = memory(model, setup, recompute_layers=n).saved_bytes
    assert memory(model, setup, recompute="none").saved_bytes >= part
    assert part >= memory(model, setup).saved_bytes


def _peaks_of_stream(plan: Plan, gradients: bool) -> tuple[dict[str, int], int]:
    """Phase peaks and live bytes at the end, from every event of every block."""
    structure, runs = plan.structure(gradients)
    stream = expand(structure, runs)
    sizes = stream.sizes(size_values(structure, plan.values))
    live, peaks = 0, {}
    for event in stream.events:
        live += sizes[event] if event >= 0 else -sizes[~event]
        if event >= 0:
            phase = structure.labels[structure.labels_of[stream.traced[event]]].phase
            peaks[phase] = max(peaks.get(phase, 0), live)
    return peaks, live


@drawn
@given(models(layers=(3, 11)), setups(), st.data(), st.booleans())
def test_three_traced_blocks_stand_for_all_of_them(model, setup, data, gradients):
    """measure == expand == a trace of every block: peaks, places, bytes saved and kept."""
    if setup.recompute == "full":
        n = data.draw(st.integers(1, model.num_hidden_layers))
        setup = replace(setup, recompute_layers=n)
    plan = plan_for(model, setup)
    short = measure(*plan.structure(gradients), plan.values)
    peaks, live = _peaks_of_stream(plan, gradients)
    assert {name: i.live_bytes for name, i in short.phases.items()} == peaks
    assert short.kept_bytes == live
    with mock.patch.object(structures, "TRACED", 64):
        structure, runs = plan.structure(gradients)
        assert all(run.skipped == 0 for run in runs)
        whole = measure(structure, runs, plan.values)
        assert live_bytes(structure, runs, size_values(structure, plan.values))[-1] == live
    assert (short.saved_bytes, short.kept_bytes) == (whole.saved_bytes, whole.kept_bytes)
    assert {n: (i.live_bytes, i.name) for n, i in short.phases.items()} == {
        n: (i.live_bytes, i.name) for n, i in whole.phases.items()
    }


@drawn
@given(models(layers=(3, 11)), setups())
def test_a_full_trace_gives_the_same_flops_and_states(model, setup):
    plan = plan_for(model, setup)
    flops, states = step_flops(plan), step_memory(plan).states
    with mock.patch.object(structures, "TRACED", 64):
        assert step_flops(plan) == flops
        assert step_memory(plan).states == states


@drawn
@given(models(), setups(optimizer="adamw"))
def test_states_are_bytes_per_parameter(model, setup):
    """Parameter, gradient, two states: 8 bytes in bf16, 16 with fp32 copies or under autocast."""
    states = memory(model, setup).states
    total = (
        states.parameter_bytes
        + states.gradient_bytes
        + states.optimizer_bytes
        + states.master_bytes
    )
    per_parameter = {"bf16": 8, "bf16-mixed": 16, "fp32": 16, "bf16-master": 16}[setup.precision]
    assert total == per_parameter * states.parameters


@pytest.mark.parametrize("seq", [16, 64])
@given(models(), setups())
@settings(deadline=None, derandomize=True, max_examples=20)
def test_memory_is_linear_in_the_batch_within_a_phase(seq, model, setup):
    """Saved bytes are a polynomial of degree one in b from two sequences on."""
    if setup.loss == "chunked":
        setup = replace(setup, loss_chunks=1)
    saved = [memory(model, setup, seq_len=seq, micro_batch_size=b).saved_bytes for b in (2, 3, 4)]
    assert saved[2] - saved[1] == saved[1] - saved[0]
