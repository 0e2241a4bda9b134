"""Layers of stack megatron: parameters of a rank and bytes kept, by hand, kernel by kernel."""

from __future__ import annotations

import pytest

from memcalc.engine.structure import Structure
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import deepseek, gpt, llama, megatron

H, A, K, D, F, V = 8192, 64, 8, 128, 28672, 128256
S = 2048
#: What a Llama layer keeps beside its attention core: two inputs, two normed, their statistics; MLP.
AROUND = S * (8 * H + 8 + 6 * F)


def kept(config=None, layout: dict[str, object] | None = None, **setup: object) -> int:
    config = llama() if config is None else config
    return megatron(config, ParallelPlan(**layout or {}), **setup)[1].saved_per_layer_bytes


def core(sequences: int = 1) -> int:
    """q and output 2ad each, k and v 2kd, log-sum-exp 4a a position; a generator's state."""
    return sequences * S * (2 * D * (2 * A + 2 * K) + 4 * A) + 16


@pytest.mark.parametrize("attention", ["flash", "cudnn"])
def test_kernels_keep_the_same_of_one_sequence(attention):
    assert kept(attention=attention) == AROUND + core()


def test_flash_attention_copies_several_sequences():
    """Its batch is outermost: q, k, v are copied in, the output out, where the next linear keeps it."""
    assert kept(attention="cudnn", micro_batch_size=2) == 2 * AROUND + core(2)
    assert kept(micro_batch_size=2) == 2 * AROUND + core(2) + 2 * S * 2 * A * D


def test_megatrons_own_core_keeps_scores_and_every_heads_keys():
    """Softmax 2as^2; q, repeated k and v, the output for the next linear: 8ad a position."""
    assert kept(attention="eager") == AROUND + 2 * A * S * S + 8 * S * A * D


def test_dropout_in_attention_and_layer_keeps_masks_and_probabilities():
    """Eager: 2 + 1 bytes a score more (5as^2 in all); a byte an element of each branch's output."""
    plain = gpt(attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0)
    scores, h = 64 * S * S, 6144
    assert kept(gpt(), attention="eager") - kept(plain, attention="eager") == 3 * scores + 2 * S * h
    assert kept(gpt()) - kept(plain) == 2 * S * h  # the kernel draws its own from a seed


def test_latent_attention_with_tensor_parallelism():
    """Latents are a rank's positions, whole; heads a rank's, of all positions."""
    t, h, d, d_v, a, q_r, c = 2, 7168, 192, 128, 128, 1536, 512
    config = deepseek(moe=None)
    own = S // t
    latents = own * (2 * (2 * q_r + 2 * c) + 3 * 4)
    heads = S * (2 * a * (2 * d + 2 * d_v) + 4 * a) // t + 16
    mlp = own * (4 * h + 4) + S * 6 * 18432 // t
    assert kept(config, {"tp": t, "sp": True}) == own * 4 * h + latents + heads + mlp


def test_parameters_of_a_tensor_parallel_rank():
    """Linears and vocabulary (padded to 128 t rows) are divided, norms are not."""
    t = 8
    layer = (2 * H * A * D + 2 * H * K * D + 3 * H * F) // t + 2 * H
    rows = -(-V // (128 * t)) * 128
    _, memory = megatron(llama(), ParallelPlan(tp=t))
    assert memory.states.parameters == 12 * layer + 2 * rows * H + H


def test_parameters_of_a_gpt_with_biases():
    """Biases of row-parallel linears, norms and positions are whole on every rank."""
    t, h = 8, 6144
    layer = 12 * h * h // t + (3 * h + 4 * h) // t + 2 * h + 4 * h
    _, memory = megatron(gpt(), ParallelPlan(tp=t))
    assert memory.states.parameters == 6 * layer + (51200 // t + 2048) * h + 2 * h


def test_whole_models_have_their_published_parameters():
    """Vocabularies that are multiples of 128: what Megatron stores is the model."""
    for name, count in {"llama-3.1-8b": 8_030_261_248, "mixtral-8x7b": 46_702_792_704}.items():
        config = load_model(name)
        _, memory = megatron(config)
        assert config.vocab_size % 128 == 0
        assert memory.states.parameters == count


def test_tensor_parallelism_divides_key_value_heads():
    """TransformerConfig: num_query_groups must be a multiple of the degree."""
    with pytest.raises(
        ConfigError, match=r"divides the 8 key/value heads of llama; valid: 1, 2, 4, 8"
    ):
        megatron(llama(), ParallelPlan(tp=16))


def test_all_to_all_attention_divides_key_value_heads_of_a_rank():
    with pytest.raises(ConfigError, match="valid: 1, 2, 4, or --cp-method ring"):
        megatron(llama(), ParallelPlan(tp=2, cp=8, cp_method="ulysses"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_placement": "post"}, "norms post"),
        ({"position_embedding": "alibi"}, "alibi positions"),
        ({"qk_norm": "full"}, "a norm over all heads"),
        ({"attn_logit_softcapping": 50.0}, "capped scores"),
    ],
)
def test_models_of_another_form_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        megatron(llama(**changes))


def ops(structure: Structure, block: int) -> list[str]:
    return [op for number, op in structure.records if number == block]


def test_a_layers_operators_are_few_as_its_norms_and_linears_are_one():
    plan, _ = megatron(llama())
    structure, _ = plan.structure(True)
    assert ops(structure, 0) == [
        "qkv_proj", "rope", "attention", "o_proj", "attn_residual",
        "up_proj", "activation", "down_proj", "mlp_residual",
    ]  # fmt: skip
