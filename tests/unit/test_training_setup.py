"""TrainingSetup: ranges, contradictions, and what `resolve` fills in."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import profile_names
from memcalc.inputs.training import TrainingSetup, resolve


@pytest.fixture(scope="module")
def llama() -> ModelConfig:
    return load_model("llama-3.2-1b")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"seq_len": 0}, "seq_len: got 0; rule: >= 1"),
        ({"seq_len": 2.5}, "seq_len: got 2.5"),
        ({"micro_batch_size": True}, "micro_batch_size: got True"),
        ({"num_layers": -1}, "num_layers: got -1"),
        ({"precision": "bf61"}, "precision: got 'bf61', not known; nearest: bf16"),
        ({"optimizer": "adam"}, "nearest: adamw"),
        ({"optimizer_impl": "for"}, "optimizer_impl: got 'for'"),
        ({"optimizer_dtype": "int8"}, "optimizer_dtype: got 'int8'"),
        ({"recompute": "all"}, "recompute: got 'all'"),
        ({"attention": "flush"}, "nearest: flash"),
        ({"loss": "fp8"}, "loss: got 'fp8'"),
        ({"dropout": 1.0}, "dropout: got 1.0; rule: 0 <= p < 1"),
        ({"imbalance": 0.5}, "imbalance: got 0.5"),
        ({"loss_chunks": 65}, "loss_chunks: got 65; rule: at most 64"),
        ({"recompute": "sac", "recompute_layers": 2}, "only full:N"),
        ({"recompute": "sac", "reentrant": True}, "rule: recompute=full"),
        ({"optimizer": "adafactor", "optimizer_impl": "fused"}, "valid: foreach, loop"),
        ({"stack": "torc"}, "stack: got 'torc', not known; nearest: torch"),
    ],
)
def test_bad_values_say_what_got_rule_and_nearest(bad: dict[str, Any], says: str):
    with pytest.raises(ConfigError) as error:
        TrainingSetup(**bad)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_every_stack_with_a_profile_is_accepted_and_no_other():
    assert {TrainingSetup(stack=name).stack for name in profile_names("stacks")} >= {"torch", "hf"}
    with pytest.raises(ConfigError, match="deepspeed"):
        TrainingSetup(stack="deepsped")


def test_a_setup_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainingSetup().seq_len = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "micro", "accum"),
    [
        ({}, 1, 1),
        ({"micro_batch_size": 3}, 3, 1),
        ({"micro_batch_size": 2, "grad_accum_steps": 4}, 2, 4),
        ({"global_batch": 12, "micro_batch_size": 3}, 3, 4),
        ({"global_batch": 12, "grad_accum_steps": 4}, 3, 4),
        ({"global_batch": 12}, 12, 1),
        ({"global_batch": 8, "micro_batch_size": 2, "grad_accum_steps": 4}, 2, 4),
    ],
)
def test_any_two_of_the_batch_sizes_give_the_third(llama, given, micro, accum):
    resolved = resolve(TrainingSetup(**given), llama)
    assert (resolved.micro_batch_size, resolved.grad_accum_steps) == (micro, accum)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"global_batch": 10, "micro_batch_size": 4}, "nearest valid: 8"),
        ({"global_batch": 7, "micro_batch_size": 2, "grad_accum_steps": 3}, "= 6"),
        ({"num_layers": 99}, "at most 16"),
        ({"recompute": "full", "recompute_layers": 17}, "at most the 16 layers"),
        ({"micro_batch_size": 1 << 30, "seq_len": 1 << 20}, "beyond any real run"),
    ],
)
def test_contradictions_with_the_model_are_refused(llama, given, says):
    with pytest.raises(ConfigError, match=says):
        resolve(TrainingSetup(**given), llama)


def test_the_sequence_defaults_to_the_models_maximum_up_to_2048(llama):
    assert resolve(TrainingSetup(), llama).seq_len == 2048
    assert resolve(TrainingSetup(), load_model("gpt2")).seq_len == 1024


def test_learned_positions_bound_the_sequence_and_rotary_ones_warn(llama):
    with pytest.raises(ConfigError, match="at most 1024"):
        resolve(TrainingSetup(seq_len=1025), load_model("gpt2"))
    short = replace(llama, max_position_embeddings=128)
    assert any("beyond the 128" in n for n in resolve(TrainingSetup(seq_len=256), short).notes)


def test_truncation_keeps_the_first_layers_and_says_so(llama):
    resolved = resolve(TrainingSetup(num_layers=2), llama)
    assert resolved.config.num_hidden_layers == 2
    assert "truncated to 2 of 16 layers" in resolved.notes


def test_what_has_no_effect_is_noted(llama):
    notes = resolve(TrainingSetup(optimizer="lion", optimizer_impl="fused"), llama).notes
    assert any("no effect" in note for note in notes)
    assert any("closed form" in note for note in notes)
    assert any("no experts" in n for n in resolve(TrainingSetup(imbalance=2.0), llama).notes)
