"""vLLM's layer as described: its kernels and its allocations, written out by hand from vLLM's code."""

from __future__ import annotations

from collections import Counter

import pytest

from memcalc.engine.blocks.sampling import PROBABILITIES, SORTED
from memcalc.engine.kernels import Kernels, Traits
from memcalc.engine.serving.forward import Forward, Positions, forward_of
from memcalc.engine.states import all_leaves
from memcalc.engine.timeline import measure
from memcalc.engine.works import works_in
from memcalc.inputs.models import load_model

#: RMSNorm, qkv, rotary, two copies into the pool, attention, o, RMSNorm, gate and up, activation, down.
LAYER = {
    "fused_add_rms_norm": 2, "mm": 4, "rotary_embedding": 1, "index_copy_": 2,
    "_scaled_dot_product_flash_attention": 1, "silu_and_mul": 1,
}  # fmt: skip


def forward(model: str, at: Positions, samples: str = "") -> Forward:
    kernels = Kernels(norm="fused", traits=Traits(code="vllm", fused_gate_up=True))
    return forward_of(load_model(model), kernels, at, "paged", samples=samples)


@pytest.mark.parametrize(("new", "past"), [(1, 99), (64, 0)])
def test_kernels_of_a_layer(new: int, past: int) -> None:
    one = forward("llama-3-8b", Positions(2, new, past, past + new))
    found: Counter[str] = Counter()
    for work, times in works_in(one.structure, one.runs):
        found[work.name] += times * work.launches
    expected = {name: 32 * count for name, count in LAYER.items()}
    expected["mm"] += 1  # the head
    expected["fused_add_rms_norm"] += 1 - 1  # the final one; the first is not fused
    expected |= {"rms_norm": 1, "embedding": 1, "index_select": 1}
    assert found == expected


@pytest.mark.parametrize(
    "model", ["llama-3-8b", "qwen2.5-0.5b", "qwen3-0.6b", "mixtral-8x7b", "phi-4"]
)
def test_parameters_are_the_models(model: str) -> None:
    config = load_model(model)
    one = forward(model, Positions(1, 2, 0, 2))
    ours = sum(leaf.numel.value(one.values) for leaf in all_leaves(one.structure, one.runs))
    hf = forward_of(config, Kernels(hf=True), Positions(1, 2))
    theirs = sum(leaf.numel.value(hf.values) for leaf in all_leaves(hf.structure, hf.runs))
    assert ours == theirs


def test_the_peak_of_a_long_prompt_is_in_the_mlp() -> None:
    """Alive while act(gate) * up is made: what the model's loop gave the layer, the residual, the norm's
    result, gate and up, their product."""
    tokens, h, f = 8192, 4096, 14336
    one = forward("llama-3-8b", Positions(1, tokens, 0, tokens))
    peak = measure(one.structure, one.runs, one.values).peak
    assert peak.op == "activation"
    assert peak.live_bytes == 2 * tokens * (3 * h + 2 * f + f)


def test_sampling_in_a_profile_run_sorts_all_logits() -> None:
    """Per logit: 2 bytes, an fp32 copy, values and order of the sort, two masks, three more in fp32."""
    rows, vocabulary = 256, 128256
    one = forward("llama-3-8b", Positions(rows, 1, 0, 1), SORTED)
    peak = measure(one.structure, one.runs, one.values).peak
    assert peak.op == "sample"
    assert peak.live_bytes == rows * vocabulary * (2 + 4 + 4 + 8 + 1 + 4 + 4 + 1 + 4)


def test_sampling_a_step_makes_probabilities_and_logarithms() -> None:
    one = forward("llama-3-8b", Positions(4, 1, 9, 10), PROBABILITIES)
    made = [work.name for work, _ in works_in(one.structure, one.runs) if work.op == "sample"]
    assert made == ["_to_copy", "_softmax", "_log_softmax", "argmax"]
