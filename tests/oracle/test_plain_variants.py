"""The plain decoder's options against PyTorch code with the same options, event for event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import micro_batch
from memcalc.inputs.model import ModelConfig
from tests.oracle.support.engine import steps
from tests.oracle.support.variants import run_variant

BASE = ModelConfig(
    name="variant",
    model_type="llama",
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pre": ("flash", {}),
    "post": ("flash", {"norm_placement": "post"}),
    "sandwich": ("efficient", {"norm_placement": "sandwich"}),
    "post-residual": ("flash", {"norm_placement": "post-residual"}),
    "parallel": ("flash", {"parallel_block": True}),
    "parallel with two norms": ("efficient", {"parallel_block": True, "parallel_norms": 2}),
    "partial rotary, flash": ("flash", {"rotary_dim": 16}),
    "partial rotary, efficient": ("efficient", {"rotary_dim": 16}),
    "partial rotary, eager": ("eager", {"rotary_dim": 16}),
    "norm over all heads": ("flash", {"qk_norm": "full"}),
    "soft caps": ("eager", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "sinks": ("eager", {"attention_sinks": True}),
    "alibi, efficient": ("efficient", {"position_embedding": "alibi"}),
    "alibi, eager": ("eager", {"position_embedding": "alibi", "num_key_value_heads": 4}),
    "no positions": ("flash", {"position_embedding": "none"}),
    "narrow embedding": (
        "flash",
        {"word_embed_proj_dim": 64, "embedding_norm": True, "final_norm": False},
    ),
    "head bias": ("flash", {"lm_head_bias": True}),
}
_MADE_BEFORE = {"rope_tables", "causal_mask", "alibi"}


def _engine_events(model: ModelConfig, kernel: str, recompute: bool, batch: int) -> list[int]:
    values, tape = dim_values(model, batch, 64), Tape()
    kinds = [BlockKind(recompute="full" if recompute else "none")] * model.num_hidden_layers
    micro_batch(Build(tape, model, Kernels(attention=kernel), dim_sizes(values)), kinds, False)
    out = []
    for event in list(tape.events):
        index = event if event >= 0 else ~event
        if tape.labels[tape.labels_of[index]].op not in _MADE_BEFORE:
            size = tape.sizes[index].value(values)
            out.append(size if event >= 0 else -size)
    return out


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_event(case: str, recompute: bool) -> None:
    kernel, changes = CASES[case]
    model = replace(BASE, **changes)
    for batch in (1, 2):
        ours = steps(_engine_events(model, kernel, recompute, batch))
        theirs = steps(run_variant(model, kernel, recompute, batch, 64))
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            assert one == other, f"allocation {number}: {one}, PyTorch {other}"
        assert len(ours) == len(theirs)
