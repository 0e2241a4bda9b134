"""ModelConfig: ranges and contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig

GOOD: dict[str, Any] = {
    "name": "m", "model_type": "llama", "vocab_size": 100, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
MOE: dict[str, Any] = {
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sparse_layers": (1,),
}  # fmt: skip
MLA: dict[str, Any] = {
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"hidden_size": 0}, "hidden_size: got 0; rule: >= 1"),
        ({"hidden_size": True}, "hidden_size: got True"),
        ({"vocab_size": "100"}, "vocab_size: got '100'"),
        ({"vocab_size": (1 << 31) + 1}, "beyond any real model"),
        ({"num_key_value_heads": 3}, "valid: 1, 2, 4, 8"),
        ({"rotary_dim": 9}, "at most head_dim = 8"),
        ({"norm_type": "rms"}, "norm_type: got 'rms', not known; nearest: rmsnorm"),
        ({"position_embedding": "learned"}, "num_position_rows"),
        ({"layer_types": ("full",)}, "one for each of the 4 layers"),
        ({"layer_types": ("sliding",) * 4}, "sliding_window: got none"),
        ({"sliding_window": 0}, "sliding_window: got 0"),
        ({"attention_dropout": 1}, "attention_dropout: got 1"),
        ({"residual_dropout": -0.1}, "residual_dropout: got -0.1"),
        ({"moe": MoeConfig(**MOE | {"sparse_layers": (4,)})}, "sparse_layers: got index 4"),
    ],
)
def test_bad_values_say_what_got_and_rule(bad: dict[str, Any], says: str):
    with pytest.raises(ConfigError) as error:
        ModelConfig(**GOOD | bad)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"num_experts_per_tok": 9}, "at most num_experts = 8"),
        ({"num_experts": 0}, "num_experts: got 0"),
        ({"scoring": "max"}, "scoring: got 'max'"),
        ({"expert_groups": 3}, "divides num_experts = 8"),
    ],
)
def test_bad_experts_are_refused(bad: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        MoeConfig(**MOE | bad)


@pytest.mark.parametrize("name", MLA)
def test_latent_ranks_are_at_least_one(name):
    with pytest.raises(ConfigError, match=name):
        MlaConfig(**MLA | {name: 0})


def test_layers_are_asked_by_index():
    config = ModelConfig(
        **GOOD,
        moe=MoeConfig(**MOE),
        sliding_window=16,
        layer_types=("full", "sliding", "full", "full"),
    )
    assert [config.is_sparse(i) for i in range(4)] == [False, True, False, False]
    assert config.layer_type(1) == "sliding"
    assert ModelConfig(**GOOD).layer_type(3) == "full"
