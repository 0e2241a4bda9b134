"""Worked cases I: caches and speed of inference, as taught; the bands say why a figure may differ."""

from __future__ import annotations

import pytest

from benchmarks.worked.case import Case
from memcalc.engine.serving.infer import infer
from memcalc.inputs.models import load_model
from memcalc.inputs.serving import ServingSetup
from memcalc.units import GIB
from tests.unit.worked_support import cases, hold


@cases("I")
def test_case(case: Case) -> None:
    hold(case)


@pytest.mark.parametrize("model", ["llama-3-8b", "llama-2-7b", "llama-2-70b", "qwen2.5-32b"])
def test_i1_bytes_of_one_position(model):
    """2 x layers x KV heads x head width x 2 bytes, exactly."""
    config = load_model(model)
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    assert infer(config, ServingSetup(batch=1, context=2048)).kv_bytes_per_token == each


def test_i2_is_of_four_bit_weights_that_take_3_9_gib():
    setup = ServingSetup(context=512, weights="ggml-2023:Q4_0", engine="llama.cpp")
    assert infer("llama-7b", setup).weights_bytes / GIB == pytest.approx(3.9, rel=0.01)
