"""Models and plans of the Megatron tests."""

from __future__ import annotations

from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup


def gpt(**changes: Any) -> ModelConfig:
    """A GPT as in Korthikanti et al. 2022: biases, LayerNorm, GELU of width 4h, dropout."""
    fields: dict[str, Any] = {
        "name": "gpt", "model_type": "gpt2", "vocab_size": 51200, "hidden_size": 6144,
        "intermediate_size": 4 * 6144, "num_hidden_layers": 6, "num_attention_heads": 64,
        "num_key_value_heads": 64, "head_dim": 96, "max_position_embeddings": 2048,
        "num_position_rows": 2048, "position_embedding": "learned", "norm_type": "layernorm",
        "gated_mlp": False, "hidden_act": "gelu", "attention_bias": True,
        "attention_output_bias": True, "mlp_bias": True, "attention_dropout": 0.1,
        "residual_dropout": 0.1, "embedding_dropout": 0.1, "tie_word_embeddings": True,
    }  # fmt: skip
    return ModelConfig(**fields | changes)


def llama(**changes: Any) -> ModelConfig:
    """Llama-3-70B with 12 layers."""
    fields: dict[str, Any] = {
        "name": "llama", "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192,
        "intermediate_size": 28672, "num_hidden_layers": 12, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
    }  # fmt: skip
    return ModelConfig(**fields | changes)


def deepseek(**changes: Any) -> ModelConfig:
    """DeepSeek-V3 with 4 layers, the first dense."""
    mla = MlaConfig(
        kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128,
    )  # fmt: skip
    moe = MoeConfig(
        num_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048,
        sparse_layers=(1, 2, 3), shared_intermediate_size=2048,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": "deepseek", "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
        "intermediate_size": 18432, "num_hidden_layers": 4, "num_attention_heads": 128,
        "num_key_value_heads": 128, "head_dim": 192, "max_position_embeddings": 4096,
        "rotary_dim": 64, "mla": mla, "moe": moe,
    }  # fmt: skip
    return ModelConfig(**fields | changes)


def megatron(
    config: ModelConfig, parallel: ParallelPlan | None = None, **setup: Any
) -> tuple[Plan, StepMemory]:
    """The plan of a rank on stack megatron, and the memory of its step."""
    stated = {"stack": "megatron", "seq_len": 2048, "micro_batch_size": 1} | setup
    plan = plan_of(config, TrainingSetup(**stated), None, parallel)
    return plan, step_memory(plan)
