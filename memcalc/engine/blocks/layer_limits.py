"""Which models the layers of torchtune, torchtitan and litgpt describe; the rest is refused in a line.

The first two write one Llama layer: norm before each branch, rotary positions over the whole head, a
gated MLP, no experts, no soft caps. Their classes for other families are not described here. litgpt's
one Block also has layer norms, branches side by side, partial rotation and an MLP without a gate.
Checked by: unit/test_stack_torchtune.py, unit/test_stack_torchtitan.py, unit/test_stack_litgpt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from memcalc.engine.blocks.litgpt_loss import standing_bytes
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import Stack
from memcalc.inputs.training import ResolvedSetup

if TYPE_CHECKING:
    from memcalc.engine.kernels import Traits

_LITGPT_PRECISIONS = ("bf16", "bf16-mixed", "fp16-mixed")
#: What litgpt's Block has beside a Llama layer.
_LITGPT_HAS = (
    "rotary positions on a part of the head", "layer norms", "branches side by side",
    "an MLP without a gate", "one weight for q, k and v",
)  # fmt: skip


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
    rule = "a Llama layer"
    if code == "litgpt":
        rule = "a Llama or GPT-NeoX layer"
        other = {what: present for what, present in other.items() if what not in _LITGPT_HAS}
        other |= {
            "norms that add one to their weight": config.norm_unit_offset,
            "norms on the embedding": config.embedding_norm,
            "an embedding narrower than the model": bool(config.word_embed_proj_dim),
        }
    for what, present in other.items():
        if present:
            raise ConfigError(
                f"stack: got {code} with {config.name}, a model with {what}; rule: {rule}; "
                "nearest valid: stack torch"
            )


def check_litgpt(resolved: ResolvedSetup, loss: str) -> None:
    """Raise ConfigError for settings that litgpt's finetuning has not, or that are not described."""
    setup = resolved.setup
    if setup.precision not in _LITGPT_PRECISIONS:
        raise ConfigError(
            f"precision: got {setup.precision} on stack litgpt; valid: {', '.join(_LITGPT_PRECISIONS)}"
        )
    if setup.recompute not in ("none", "full") or setup.reentrant:
        raise ConfigError(
            f"recompute: got {setup.recompute}{', reentrant' if setup.reentrant else ''} on stack "
            "litgpt, which recomputes every Block or none; valid: none, full"
        )
    if setup.optimizer_in_backward:
        raise ConfigError("optimizer_in_backward: got true on stack litgpt; valid: without it")
    if loss != "chunked":
        raise ConfigError(
            f"loss: got {loss} on stack litgpt, whose own is described; valid: chunked"
        )
    if setup.attention not in ("flash", "efficient"):
        raise ConfigError(
            f"attention: got {setup.attention} on stack litgpt; valid: flash, efficient"
        )
    if resolved.seq_len < 2:
        raise ConfigError("seq: got 1 on stack litgpt, whose loss cuts one position; rule: >= 2")


def untied(resolved: ResolvedSetup, stack: Stack) -> ResolvedSetup:
    """The setup with a head of its own, where a stack's code ties none to the embedding."""
    config = resolved.config
    if not (stack.choices.get("unties", False) and config.tie_word_embeddings):
        return resolved
    note = f"stack {stack.name} ties no head to the embedding: {config.name} has one of its own"
    return resolved._replace(
        config=replace(config, tie_word_embeddings=False), notes=(*resolved.notes, note)
    )


def standing_tables(
    config: ModelConfig, seq_len: int, values: Mapping[str, int], traits: Traits
) -> int:
    """Bytes of what a model's code keeps for the run beside parameters, states and token ids.

    litgpt: fp32 logits, labels and rotary tables (litgpt_loss.py). Else the rotary table, two fp32
    numbers a pair and position.

    torchtune makes it for the model's longest sequence (modules/position_embeddings.py), torchtitan
    for the run's own (models/llama/model.py, freqs_cis). The plain decoder's is made at each step.
    """
    if traits.code == "litgpt":
        return standing_bytes(values, "fp32" if traits.tables == "fp32" else "bf16")
    positions = {"torchtune": config.max_position_embeddings, "torchtitan": seq_len}
    return positions.get(traits.code, 0) * config.head_dim * 4
