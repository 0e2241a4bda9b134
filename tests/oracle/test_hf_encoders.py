"""T5, mT5 and BERT against transformers' own code: saved bytes, peaks, every event, a step, FLOPs."""

from __future__ import annotations

import random
from typing import Any

import pytest

from memcalc.engine.flops import step_flops
from memcalc.engine.memory import step_memory
from tests.oracle.support.encoders import (
    BERT,
    T5,
    Shape,
    drawn_bert,
    drawn_shape,
    drawn_t5,
    encoder_plan,
    phases_of,
    run_step,
    traced,
)
from tests.oracle.support.engine import steps, steps_of_hf
from tests.oracle.support.hf_encoders import counted_flops, run_encoder

V11 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _check(config: dict[str, Any], shape: Shape, *how: Any) -> None:
    """Parameters, saved bytes, peak and every allocation with what is freed before the next one.

    how: checkpoint, attention, precision.
    """
    plan = encoder_plan(config, shape, *how)
    mine, theirs = traced(plan), run_encoder(config, shape, *how)
    said = f"{config} {shape} {how}"
    assert mine.params == theirs.params, said
    ours, reference = steps([amount for amount, *_ in mine.events]), steps_of_hf(theirs)
    for number, (one, other) in enumerate(zip(ours, reference, strict=False)):
        assert one == other, f"{said}: allocation {number}: {one}, transformers {other}"
    assert len(ours) == len(reference), said
    assert (mine.saved, mine.peak_over_params) == (theirs.saved, theirs.peak_over_base), said
    assert step_memory(plan).saved_bytes == theirs.saved, said  # of few traced blocks, written out


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-mixed"])
@pytest.mark.parametrize("attention", ["eager", "efficient"])
@pytest.mark.parametrize("config", [T5, V11, BERT], ids=["t5", "t5-v1.1", "bert"])
def test_every_event(
    config: dict[str, Any], attention: str, precision: str, checkpoint: bool
) -> None:
    _check(config, (2, 64, 48), checkpoint, attention, precision)


@pytest.mark.parametrize("seed", range(8))
def test_drawn_configurations(seed: int) -> None:
    """4 an item, 32 in all: sizes, dropout or none, tied or not, both precisions, both kernels."""
    rng = random.Random(f"encoders {seed}")
    for number in range(4):
        bert = number == 3
        config = drawn_bert(rng) if bert else drawn_t5(rng)
        attention = rng.choice(["eager", "efficient", *(["flash"] * bert)])
        precision = rng.choice(["fp32", "bf16"])
        _check(config, drawn_shape(rng), rng.random() < 0.5, attention, precision)


@pytest.mark.parametrize("target", [1, 2, 17])
def test_short_targets(target: int) -> None:
    for batch, checkpoint in ((1, False), (2, True)):
        _check(V11, (batch, 50, target), checkpoint, "efficient", "bf16")


@pytest.mark.parametrize("seed", range(4))
def test_peaks_of_a_whole_step(seed: int) -> None:
    """Forward, backward and AdamW's step of 3 configurations an item, as `estimate` has them."""
    rng = random.Random(f"encoder steps {seed}")
    for number in range(3):
        config = drawn_bert(rng) if number == 2 else drawn_t5(rng)
        shape, impl = drawn_shape(rng), rng.choice(["foreach", "loop"])
        how = rng.random() < 0.5, rng.choice(["eager", "efficient"]), rng.choice(["fp32", "bf16"])
        plan = encoder_plan(config, shape, *how, impl)
        assert phases_of(plan) == run_step(plan, config, shape), (config, shape, how, impl)


@pytest.mark.parametrize("seed", range(4))
def test_executed_flops_are_those_torch_counts(seed: int) -> None:
    """3 configurations an item, fp32, of encoder and decoder together."""
    rng = random.Random(f"encoder flops {seed}")
    for number in range(3):
        config = drawn_bert(rng) if number == 2 else drawn_t5(rng)
        shape, checkpoint = drawn_shape(rng), rng.random() < 0.5
        attention = rng.choice(["eager", "efficient"])
        plan = encoder_plan(config, shape, checkpoint, attention, "fp32")
        counted = counted_flops(config, shape, checkpoint, attention)
        assert step_flops(plan).executed == counted, (config, shape, checkpoint, attention)


@pytest.mark.parametrize("config", [T5, BERT], ids=["t5", "bert"])
def test_the_model_of_a_profile_is_that_of_the_classes_at_any_depth(config: dict[str, Any]) -> None:
    """The traced repetitions stand for all blocks: nine layers, saved bytes and peaks of a step."""
    depth = {"num_layers": 9} if config is T5 else {"num_hidden_layers": 9}
    deep = {**config, **depth}
    plan = encoder_plan(deep, (2, 33, 20), False, "efficient", "bf16")
    assert phases_of(plan) == run_step(plan, deep, (2, 33, 20))
