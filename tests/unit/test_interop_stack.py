"""--set stack.NAME: sizes and switches of a stack's profile stated otherwise, and what they change."""

from __future__ import annotations

import pytest

from memcalc.cli.overrides import parse_overrides, plain
from memcalc.engine.estimate import estimate
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import SETTABLE, load_stack, with_choices
from memcalc.inputs.training import TrainingSetup

ZERO3 = ParallelPlan(gpus=8, zero=3)
SETUP = TrainingSetup(stack="deepspeed", seq_len=512)


def test_a_bucket_size_moves_the_buffer_it_is_the_size_of():
    whole = estimate("llama-3.2-1b", SETUP, parallel=ZERO3)
    half = estimate(
        "llama-3.2-1b", SETUP, parallel=ZERO3, kernels={"stack.reduce_bucket_size": 250_000_000}
    )
    saved = whole.memory.peak_requested_bytes - half.memory.peak_requested_bytes
    assert saved == 250_000_000 * 2  # elements of 16 bit


def test_a_stated_default_changes_nothing():
    own = load_stack("deepspeed").parallel
    stated = {f"stack.{name}": own[name] for name in SETTABLE if name in own}
    assert (
        estimate("gpt2", SETUP, parallel=ZERO3, kernels=stated).memory
        == estimate("gpt2", SETUP, parallel=ZERO3).memory
    )


def test_the_words_are_read_and_shown():
    overrides = parse_overrides(["stack.reduce_bucket_size=5e8", "stack.overlap_comm=true"])
    assert overrides.kernels == {
        "stack.reduce_bucket_size": 500_000_000,
        "stack.overlap_comm": True,
    }
    assert plain(overrides) == {"stack.reduce_bucket_size": 500_000_000, "stack.overlap_comm": True}


@pytest.mark.parametrize(
    ("stack", "name", "value", "said"),
    [
        ("deepspeed", "reduce_bucket_size", 0, "rule: 1 to"),
        ("deepspeed", "reduce_bucket_size", 10**18, "rule: 1 to"),
        ("deepspeed", "overlap_comm", 1, "true or false"),
        ("deepspeed", "adds_in_place", True, "got stack deepspeed"),
        ("torch", "reduce_bucket_size", 5, "none of stack torch"),
    ],
)
def test_what_a_stack_has_not_is_one_line(stack, name, value, said):
    with pytest.raises(ConfigError) as caught:
        with_choices(load_stack(stack), {f"stack.{name}": value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "word", ["stack.states=x", "stack.reduce_bucket_size=1.5", "stack.reduce_bucket_size=no"]
)
def test_other_entries_of_a_stack_are_refused(word):
    with pytest.raises(ConfigError):
        parse_overrides([word])


def test_fields_of_a_model_are_set_together():
    overrides = parse_overrides(["model.num_attention_heads=12", "model.num_key_value_heads=12"])
    from memcalc.inputs.models import load_model

    changed = overrides.apply_to_model(load_model("llama-2-7b"))
    assert (changed.num_attention_heads, changed.num_key_value_heads) == (12, 12)
