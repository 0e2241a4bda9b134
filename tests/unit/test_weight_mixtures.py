"""Mixtures of packings: which layer and operator gets which, and what happens where none fits."""

from __future__ import annotations

from collections import Counter

import pytest

from memcalc.engine.quantised import operator_of, role_of
from memcalc.engine.quantised_mixtures import Facts, more_bits, packing_of
from memcalc.inputs.weights import load_weights
from tests.unit.test_weight_files import weights

LLAMA = Facts("llama", 32, groups=1)


def chosen(fmt: str, op: str, facts: Facts = LLAMA) -> Counter[str]:
    """How many layers get which packing."""
    found = load_weights(fmt)
    names = (
        packing_of(found, "linear", op, facts._replace(layer=layer))
        for layer in range(facts.layers)
    )
    return Counter(name for name in names if name)


def test_more_bits_go_to_both_ends_and_every_third_between():
    chosen = [layer for layer in range(32) if more_bits(layer, 32)]
    assert chosen == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize(
    ("fmt", "op", "counts"),
    [
        ("gguf:Q4_K_M", "down_proj", {"Q6_K": 16, "Q4_K": 16}),
        ("gguf:Q4_K_M", "q_proj", {"Q4_K": 32}),
        ("gguf:Q4_K_S", "v_proj", {"Q5_K": 4, "Q4_K": 28}),
        ("gguf:Q3_K_M", "v_proj", {"Q5_K": 2, "Q4_K": 30}),
        ("gguf:Q3_K_M", "down_proj", {"Q5_K": 2, "Q4_K": 30}),
        ("gguf:Q3_K_L", "o_proj", {"Q5_K": 32}),
        ("gguf:Q2_K", "v_proj", {"Q3_K": 32}),
        ("gguf:Q8_0", "v_proj", {"Q8_0": 32}),
    ],
)
def test_layers_of_a_mixture(fmt, op, counts):
    assert chosen(fmt, op) == counts


def test_grouped_queries_and_seventy_billion_parameters_change_the_values():
    assert chosen("gguf:Q2_K", "v_proj", LLAMA._replace(groups=4)) == {"Q4_K": 32}
    seventy = Facts("llama", 80, groups=8)
    assert chosen("gguf:Q4_K_M", "v_proj", seventy) == {"Q6_K": 40, "Q5_K": 40}
    assert chosen("gguf:Q4_K_M", "down_proj", seventy) == {"Q6_K": 40, "Q4_K": 40}


def test_eight_experts_keep_keys_and_values_in_eight_bits():
    mixtral = Facts("mixtral", 32, groups=4, experts=8)
    assert chosen("gguf:Q4_K_M", "k_proj", mixtral) == {"Q8_0": 32}
    assert chosen("gguf:Q4_K_M", "o_proj", mixtral) == {"Q5_K": 32}
    assert chosen("gguf:Q3_K_L", "o_proj", mixtral) == {"Q3_K": 32}


def test_a_width_without_multiples_of_256_falls_back_to_blocks_of_32():
    packings = Counter(
        held.packing for held in weights("qwen2.5-0.5b", "gguf:Q4_K_M").leaves
        if held.role == "linear"
    )  # fmt: skip
    assert packings["Q5_0"] > 0 and packings["Q8_0"] > 0, "of Q4_K and Q6_K"
    head = next(h for h in weights("qwen2.5-0.5b", "gguf:Q4_K_M").leaves if h.role == "embedding")
    assert head.packing == "Q8_0", "tied: stored as the head"


@pytest.mark.parametrize(
    ("name", "rank", "role", "op"),
    [
        ("layers.0.q_proj.weight", 2, "linear", "q_proj"),
        ("layers.3.q_proj.bias", 1, "vector", "q_proj"),
        ("layers.3.sinks", 1, "vector", "3"),
        ("layers.3.expert_down.weight", 3, "experts", "expert_down"),
        ("layers.3.expert_down.bias", 2, "expert-vectors", "expert_down"),
        ("layers.3.router.weight", 2, "router", "router"),
        ("embedding.weight", 2, "embedding", "embedding"),
        ("position_embedding.weight", 2, "position", "position_embedding"),
        ("lm_head.weight", 2, "head", "lm_head"),
        ("final_norm.weight", 1, "vector", "final_norm"),
    ],
)
def test_roles_follow_from_names_and_shapes(name, rank, role, op):
    assert role_of(name, rank) == role
    assert operator_of(name) == op
