"""The largest batch and context agree with the verdict: they fit, and one more does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.device_side import device_of
from memcalc.engine.serving.serving_plan import serving_plan
from memcalc.engine.serving.verdict import (
    MOST_SEQUENCES,
    largest,
    max_batch,
    max_context,
    need_of,
)
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.serving import ServingSetup, resolve_serving

MODELS = ("llama-3-8b", "qwen2.5-0.5b", "gemma-2-2b", "gpt2", "deepseek-v2-lite", "mixtral-8x7b")
#: Engines with their ways of caching, drafting and dividing.
KINDS = (
    {"engine": "transformers"}, {"cache": "static"}, {"kv_cache": "fp8"}, {"kv_cache": "int4"},
    {"engine": "vllm"}, {"engine": "vllm", "kv_cache": "fp8"},
    {"engine": "vllm", "draft": "self:1"}, {"engine": "llama.cpp"},
    {"engine": "llama.cpp", "kv_cache": "int8", "gpu_layers": 8, "host_memory_bytes": 1 << 36},
)  # fmt: skip
GPUS = ("a100-80gb", "rtx-4090", "v100-16gb", "h200-141gb")


@given(
    model=st.sampled_from(MODELS),
    gpu=st.sampled_from(GPUS),
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 64),
    context=st.integers(2, 1024),
    weights=st.sampled_from(("bf16", "fp16", "int8")),
    prompt=st.one_of(st.none(), st.integers(1, 64)),
)
@settings(max_examples=40, deadline=None)
def test_limits_are_the_verdicts_own(model, gpu, kind, batch, context, weights, prompt) -> None:
    prompt = prompt if prompt is not None and prompt < context else None
    try:
        setup = ServingSetup(batch=batch, context=context, weights=weights, prompt=prompt, **kind)
        plan = serving_plan(resolve_serving(setup, load_model(model)))
    except ConfigError:  # windows have no quantised cache
        return
    device = device_of(gpu)
    weights_bytes = tuple(plan.on(place).weights().resident_bytes for place in plan.places)

    def fits(batch: int, context: int) -> bool:
        return bool(need_of(plan.sized(batch, context), device, weights_bytes).fits)

    most = max_batch(plan, device, weights_bytes)
    assert most is not None and fits(batch, context) == (batch <= most)
    if most:
        assert fits(most, context)
    assert most == MOST_SEQUENCES or not fits(most + 1, context)
    longest = max_context(plan, device, weights_bytes)
    assert longest is not None
    if longest:
        assert fits(batch, longest)
    if plan.config.position_embedding != "learned" or longest < plan.config.max_position_embeddings:
        assert not fits(batch, max(2, longest + 1))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 1000, 4096])
def test_bisection_finds_the_last_that_fits(limit: int) -> None:
    assert largest(lambda n: n <= limit, 4096) == limit
    assert largest(lambda n: n <= limit, 5000, 2) == (limit if limit >= 2 else 0)


def test_nothing_fits() -> None:
    assert largest(lambda n: False, 4096) == 0


def test_everything_fits() -> None:
    assert largest(lambda n: True, 4096) == 4096
    assert largest(lambda n: True, 4097) == 4097
