"""Every shipped model profile estimates, on both stacks, with the parameters its source states."""

from __future__ import annotations

import pytest

from memcalc.engine.estimate import estimate
from memcalc.errors import NotInThisVersionError
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import find_profile, profile_names, read_toml
from memcalc.inputs.training import TrainingSetup


@pytest.mark.parametrize("stack", ["torch", "hf"])
@pytest.mark.parametrize("name", profile_names("models"))
def test_a_profile_estimates(name, stack):
    if stack == "torch" and load_model(name).is_encoder:
        with pytest.raises(NotInThisVersionError, match="nearest valid: --stack hf"):
            estimate(name, TrainingSetup(seq_len=64, stack=stack), allocator=False)
        return
    result = estimate(name, TrainingSetup(seq_len=64, stack=stack), allocator=False)
    stated = read_toml(find_profile("models", name)).get("parameters")
    if stated is not None:
        assert result.model.parameters == stated
    assert result.memory.peak_requested_bytes > 16 * result.model.parameters
    assert result.memory.breakdown.total_bytes == result.memory.peak_allocated_bytes
    assert result.time.executed_flops > 0


def _published() -> list[tuple[str, str]]:
    profiles = {name: read_toml(find_profile("models", name)) for name in profile_names("models")}
    return [
        (n, p["published_parameters"]) for n, p in profiles.items() if "published_parameters" in p
    ]


@pytest.mark.parametrize(("name", "digits"), _published())
def test_where_only_digits_are_published_the_count_has_them(name, digits):
    """Rounded or cut: PaLM's 540.356 B is printed as 540.35 B."""
    number, unit = digits[:-1], {"M": 1e6, "B": 1e9, "T": 1e12}[digits[-1]]
    decimals = len(number.partition(".")[2])
    counted = estimate(name, TrainingSetup(seq_len=64), allocator=False).model.parameters
    assert abs(counted / unit - float(number)) < 10**-decimals


@pytest.mark.parametrize("recompute", ["none", "selective", "sac", "full"])
@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed", "fp32"])
def test_relative_positions_run_and_leave_only_gradients(precision, recompute):
    """No code to compare with: every mode runs, says it is eager, and forgets nothing."""
    setup = TrainingSetup(seq_len=96, precision=precision, recompute=recompute, num_layers=4)
    result = estimate("chinchilla-70b", setup)
    assert any("eager" in note for note in result.notes)
    assert result.memory.breakdown.total_bytes == result.memory.peak_allocated_bytes
    plain = estimate("chinchilla-70b", TrainingSetup(seq_len=96, precision=precision, num_layers=4))
    assert result.memory.saved_for_backward_bytes <= plain.memory.saved_for_backward_bytes
    assert result.time.executed_flops >= plain.time.executed_flops


@pytest.mark.parametrize("stack", ["torch", "hf"])
@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mixtral-8x7b", 12_879_925_248),  # arXiv:2401.04088 says 12.9 B
        ("qwen3-30b-a3b", 3_353_032_704),  # its card says 3.3 B
        ("deepseek-v3", 37_552_282_624),  # arXiv:2412.19437 says 37 B
        ("llama-3.1-8b", 8_030_261_248),  # dense: all
    ],
)
def test_active_parameters_leave_out_the_experts_not_chosen(name, active, stack):
    model = estimate(name, TrainingSetup(seq_len=64, stack=stack), allocator=False).model
    assert model.active_parameters == active
    assert (model.active_parameters < model.parameters) == (name != "llama-3.1-8b")
