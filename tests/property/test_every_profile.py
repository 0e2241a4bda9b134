"""Every shipped model profile estimates, on both stacks, with the parameters its source states."""

from __future__ import annotations

import pytest

from memcalc.engine.estimate import estimate
from memcalc.inputs.profiles import find_profile, profile_names, read_toml
from memcalc.inputs.training import TrainingSetup


@pytest.mark.parametrize("stack", ["torch", "hf"])
@pytest.mark.parametrize("name", profile_names("models"))
def test_a_profile_estimates(name, stack):
    result = estimate(name, TrainingSetup(seq_len=64, stack=stack), allocator=False)
    stated = read_toml(find_profile("models", name)).get("parameters")
    if stated is not None:
        assert result.model.parameters == stated
    assert result.memory.peak_requested_bytes > 16 * result.model.parameters
    assert result.memory.breakdown.total_bytes == result.memory.peak_allocated_bytes
    assert result.time.executed_flops > 0
