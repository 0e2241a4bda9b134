"""Bytes a parameter on nanotron's ranks, the gather after the step, and what is refused."""

from __future__ import annotations

import pytest

from memcalc.engine.memory import optimizer_trace
from memcalc.engine.program import state_blocks
from memcalc.engine.states import all_leaves
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.test_nanotron_saved import D, S, nanotron, small


@pytest.mark.parametrize(("dp", "zero", "shard"), [(1, 0, 1), (8, 0, 1), (8, 1, 8), (64, 1, 64)])
def test_states_are_2_and_4_and_12_over_the_ranks(dp, zero, shard):
    _, memory = nanotron(small(), ParallelPlan(dp=dp, zero=zero), optimizer_impl="foreach")
    held, n = memory.states, memory.states.parameters
    assert held.parameter_bytes == 2 * n and held.gradient_bytes == 4 * n
    assert held.master_bytes == 4 * n // shard and held.optimizer_bytes == 8 * n // shard


def test_adamw_is_fused_and_keeps_a_step_a_parameter():
    _, memory = nanotron(small())
    n, tensors = memory.states.parameters, memory.states.tensors
    assert memory.states.optimizer_bytes == 8 * n + 4 * tensors


def test_only_ranks_without_zero_are_wrapped_in_ddp():
    """Its buckets hold the 16-bit gradients once more."""
    alone, _ = nanotron(small(), ParallelPlan(dp=1))
    wrapped, memory = nanotron(small(), ParallelPlan(dp=8, zero=0))
    split, _ = nanotron(small(), ParallelPlan(dp=8, zero=1))
    fixed = [sum(plan.strategy.fixed_bytes(plan).values()) for plan in (alone, wrapped, split)]
    assert fixed[1] - fixed[0] == 2 * memory.states.parameters and fixed[2] == fixed[0]
    assert fixed[0] == 4 * S * D * (4 + 2)  # rotary tables of four layers


def test_zero_gathers_parameters_through_flat_copies_of_all_of_them():
    plan, memory = nanotron(small(), ParallelPlan(dp=8, zero=1))
    structure, runs = plan.structure(True)
    trace, size = optimizer_trace(structure, runs, plan), 2 * memory.states.parameters
    made = [one for one in trace.sizes(plan.values) if one]
    assert sorted(made) == sorted([size // 8] * 9 + [size])
    assert memory.phases["optimizer"] < memory.phases["loss"] + 2 * size


def test_masters_are_one_buffer_made_before_the_first_step():
    plan, memory = nanotron(small(), ParallelPlan(dp=8, zero=1))
    structure, runs = plan.structure(True)
    stepped = plan.strategy.optimized(all_leaves(structure, runs))
    before, made = state_blocks(plan, stepped)
    assert before == [memory.states.master_bytes]
    assert sum(made) == memory.states.optimizer_bytes


def test_gathered_sequences_have_two_buffers():
    plan, _ = nanotron(small(), ParallelPlan(tp=4))
    tables = 4 * S * D * (4 + 2)
    assert plan.strategy.fixed_bytes(plan) == {"buffers": tables + 2 * S * 2048 * 2}


@pytest.mark.parametrize("layout", [{"fsdp": True, "zero": 3}, {"zero": 2}])
def test_other_stages_are_refused(layout):
    with pytest.raises(ConfigError, match="zero: got .* valid: 0, 1"):
        nanotron(small(), ParallelPlan(dp=8, **layout))
