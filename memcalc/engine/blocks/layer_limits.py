"""Which models the layers of torchtune and torchtitan describe; the rest is refused in one line.

Both write one Llama layer: norm before each branch, rotary positions over the whole head, a gated MLP,
no experts, no soft caps. Their classes for other families are not described here.
Checked by: unit/test_stack_torchtune.py, unit/test_stack_torchtitan.py.
"""

from __future__ import annotations

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig


def check_layer_code(config: ModelConfig, code: str, attention: str) -> None:
    """Raise ConfigError where a stack's own layer is asked for and the model is another."""
    if code == "plain":
        return
    other = {
        "experts": config.moe is not None,
        "latent attention": config.mla is not None,
        "positions that are not rotary": config.position_embedding != "rope",
        "rotary positions on a part of the head": config.rotary_dim not in (None, config.head_dim),
        "layer norms": config.norm_type != "rmsnorm",
        "norms elsewhere than before a branch": config.norm_placement != "pre",
        "norms of q and k": config.qk_norm != "none",
        "branches side by side": config.parallel_block,
        "an MLP without a gate": not config.gated_mlp,
        "one weight for q, k and v": config.fused_qkv,
        "an eager attention": attention == "eager",
        "dropout": bool(config.residual_dropout),
    }
    for what, present in other.items():
        if present:
            raise ConfigError(
                f"stack: got {code} with {config.name}, a model with {what}; rule: a Llama layer; "
                "nearest valid: stack torch"
            )


def standing_tables(config: ModelConfig, seq_len: int, code: str) -> int:
    """Bytes of the rotary table a model keeps for the run: two fp32 numbers a pair and position.

    torchtune makes it for the model's longest sequence (modules/position_embeddings.py), torchtitan
    for the run's own (models/llama/model.py, freqs_cis). The plain decoder's is made at each step.
    """
    positions = {"torchtune": config.max_position_embeddings, "torchtitan": seq_len}
    return positions.get(code, 0) * config.head_dim * 4
