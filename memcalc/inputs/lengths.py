"""Lengths of sequences that a setup and its model decide together.

Checked by: unit/test_training_setup.py, unit/test_encoders.py.
"""

from __future__ import annotations

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig


def sequence_notes(config: ModelConfig, seq: int) -> list[str]:
    """A note where a sequence is longer than the model was made for; ConfigError where it cannot be."""
    limit = config.max_position_embeddings
    if seq <= limit or config.position_embedding == "bucketed":
        return []
    if config.position_embedding == "learned":
        raise ConfigError(
            f"seq: got {seq}; rule: at most {limit}, the learned positions of {config.name}"
        )
    return [f"seq {seq} is beyond the {limit} positions {config.name} was made for"]


def target_length(stated: int | None, config: ModelConfig, seq: int) -> tuple[int, list[str]]:
    """Positions of an encoder-decoder's decoder, the source's unless stated, and what is counted.

    0 for other models; ConfigError where one was stated for them.
    """
    if not config.is_encoder_decoder:
        if stated is not None:
            raise ConfigError(
                f"target-seq: got {stated}; rule: of an encoder-decoder, and {config.name} is none; "
                "nearest valid: --seq"
            )
        return 0, []
    target = stated or seq
    return target, [
        f"{config.num_encoder_layers} encoder and {config.num_hidden_layers} decoder layers, {seq} source "
        f"and {target} target tokens a sequence; rates and FLOPs are by source tokens"
    ]
