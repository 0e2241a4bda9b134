"""vLLM's layers of other families: kernels and buffers written out by hand from vLLM's code."""

from __future__ import annotations

from collections import Counter

import pytest

from memcalc.engine.families import traits_for
from memcalc.engine.kernels import Kernels, Traits
from memcalc.engine.serving.cache_size import position_bytes
from memcalc.engine.serving.forward import Forward, Part, Positions, forward_of
from memcalc.engine.states import all_leaves
from memcalc.engine.timeline import measure
from memcalc.engine.works import works_in
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan

MODELS = (
    "gpt2", "opt-125m", "opt-350m", "bloom-560m", "gpt-j-6b", "gpt-neox-20b", "falcon-7b", "falcon-40b",
    "gemma-2-2b", "gemma-3-1b", "olmo-2-1b", "phi-3-mini", "qwen1.5-moe-a2.7b", "qwen3-30b-a3b",
    "deepseek-v2-lite", "deepseek-v3", "chatglm2-6b", "baichuan-13b",
)  # fmt: skip


def forward(model: str, at: Positions, layout: ParallelPlan | None = None) -> Forward:
    kernels = Kernels(norm="fused", traits=Traits(code="vllm", fused_gate_up=True))
    part = Part(layout or ParallelPlan())
    return forward_of(load_model(model), kernels, at, "paged", part, "")


def parameters(one: Forward) -> int:
    return sum(leaf.numel.value(one.values) for leaf in all_leaves(one.structure, one.runs))


def kernels_of(one: Forward, layer_op: str = "") -> Counter[str]:
    found: Counter[str] = Counter()
    for work, times in works_in(one.structure, one.runs):
        if work.block >= 0 and (not layer_op or work.op == layer_op):
            found[work.name] += times * work.launches
    return found


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_the_models(model: str) -> None:
    config = load_model(model)
    hf = Kernels(hf=True, traits=traits_for(config.model_type))
    theirs = parameters(forward_of(config, hf, Positions(1, 8)))
    assert parameters(forward(model, Positions(1, 8, 0, 8))) == theirs
    assert (
        parameters(forward(model, Positions(2, 1, 7, 8))) == theirs
    )  # prompts and steps have the same


def test_layer_norms_add_by_operators_of_their_own() -> None:
    """GPT-2: 12 layers of two norms, four products, activation, two sums, two copies into the pool."""
    found = kernels_of(forward("gpt2", Positions(2, 1, 9, 10)))
    expected = {
        "layer_norm": 2, "addmm": 4, "activation": 1, "add.Tensor": 2, "index_copy_": 2,
        "_scaled_dot_product_flash_attention": 1,
    }  # fmt: skip
    assert found == {name: 12 * count for name, count in expected.items()}


def test_branches_side_by_side_share_a_norm() -> None:
    """GPT-J: one norm a layer; GPT-NeoX: two."""
    for model, norms, layers in (("gpt-j-6b", 1, 28), ("gpt-neox-20b", 2, 44)):
        found = kernels_of(forward(model, Positions(1, 1, 9, 10)))
        assert (found["layer_norm"], found["add.Tensor"]) == (norms * layers, 2 * layers)


def test_gemma_has_four_norms_a_layer_and_rescales_its_embedding() -> None:
    one = forward("gemma-2-2b", Positions(1, 1, 9, 10))
    found = kernels_of(one)
    assert found["fused_add_rms_norm"] == 2 * 26 - 1  # the first norm has no residual yet
    assert found["rms_norm"] == 2 * 26 + 1
    outside = [work.name for work, _ in works_in(one.structure, one.runs) if work.block < 0]
    assert "mul_" in outside and "tanh" in outside  # soft cap of the logits


def test_the_experts_kernel_has_two_buffers_for_all_rows() -> None:
    """Mixtral, 4096 tokens, tp 2: rows 2 x 4096; the first buffer max(2 x 7168, 4096) wide, the other 7168.

    Alive with them: x, the residual and what the model's loop gave the layer (4096 wide each), logits in
    16 bits of 8 experts, three tables of 2 a token at 4 bytes each, and the order of padded rows.
    """
    tokens, h, m = 4096, 4096, 14336 // 2
    one = forward("mixtral-8x7b", Positions(1, tokens, 0, tokens), ParallelPlan(tp=2))
    peak = measure(one.structure, one.runs, one.values).peak
    rows = 2 * tokens
    buffers = 2 * rows * (max(2 * m, h) + m)
    small = tokens * (8 * 2 + 2 * 4 * 3) + 4 * (rows + 8 * 63)
    assert peak.op == "dispatch"
    assert peak.live_bytes == buffers + 2 * tokens * 3 * h + small


def test_a_step_of_latent_attention_reads_latents_and_no_expanded_keys() -> None:
    """DeepSeek-V3, tp 8: 16 heads here; queries times W_UK (128 x 512 a head), W_UV (512 x 128)."""
    one = forward("deepseek-v3", Positions(4, 1, 999, 1000), ParallelPlan(tp=8))
    products = {
        tuple(size.value(one.values) for size in work.shape)
        for work, _ in works_in(one.structure, one.runs)
        if work.name == "mm_by_head"
    }
    assert products == {(16, 4, 512, 128), (16, 4, 128, 512)}
    (core,) = {
        tuple(size.value(one.values) for size in work.shape)
        for work, _ in works_in(one.structure, one.runs)
        if work.kind == "attention"
    }
    assert core == (4, 16, 1, 1, 1000, 576, 512)
    prompt = forward("deepseek-v3", Positions(1, 1000, 0, 1000), ParallelPlan(tp=8))
    (core,) = {
        tuple(size.value(prompt.values) for size in work.shape)
        for work, _ in works_in(prompt.structure, prompt.runs)
        if work.kind == "attention"
    }
    assert core == (1, 16, 16, 1000, 1000, 192, 192)  # values padded to the width of keys


def test_latents_are_cached() -> None:
    assert position_bytes(forward("deepseek-v3", Positions(1, 1, 9, 10))) == 61 * 576 * 2


def test_gathered_tokens_fill_the_buffers_of_replicas() -> None:
    """dp 4: each rank's kernel has rows of all four replicas' tokens."""
    alone = forward("mixtral-8x7b", Positions(1, 512, 0, 512), ParallelPlan(dp=1))
    four = forward("mixtral-8x7b", Positions(1, 512, 0, 512), ParallelPlan(dp=4, ep=4))
    rows = [one.values["R_c"] for one in (alone, four)]
    assert rows == [1024, 4096]
    peaks = [measure(one.structure, one.runs, one.values).peak.live_bytes for one in (alone, four)]
    assert peaks[1] > 3.5 * peaks[0]
