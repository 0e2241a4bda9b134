"""Small models for the harness's tests, and their plans on a CPU."""

from __future__ import annotations

from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.inputs.model import ModelConfig, MoeConfig
from memcalc.inputs.training import TrainingSetup

LLAMA = ModelConfig(
    name="small-llama", model_type="llama", vocab_size=500, hidden_size=64, intermediate_size=160,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=256,
)  # fmt: skip
GPT2 = ModelConfig(
    name="small-gpt2", model_type="gpt2", vocab_size=500, hidden_size=64, intermediate_size=256,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
    max_position_embeddings=256, tie_word_embeddings=True, hidden_act="gelu_new", gated_mlp=False,
    norm_type="layernorm", position_embedding="learned", num_position_rows=256, fused_qkv=True,
    attention_bias=True, attention_output_bias=True, mlp_bias=True,
)  # fmt: skip
MIXTRAL = ModelConfig(
    name="small-mixtral", model_type="mixtral", vocab_size=500, hidden_size=64,
    intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=256,
    moe=MoeConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96,
                  sparse_layers=(0, 1), normalize_top_k=True),
)  # fmt: skip


def cpu_plan(
    config: ModelConfig = LLAMA, kernels: dict[str, Any] | None = None, **setup: Any
) -> Plan:
    """A plan whose kernels are a CPU's, watched: 2 sequences of 48 tokens in fp32 unless said."""
    options: dict[str, Any] = {"seq_len": 48, "micro_batch_size": 2, "precision": "fp32"}
    chosen = {"device": "cpu", "norm": "decomposed", "watched": True, **(kernels or {})}
    return plan_of(config, TrainingSetup(**options | setup), chosen)
