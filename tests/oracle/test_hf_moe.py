"""Mixture and latent-attention families against transformers' own code: bytes, not estimates."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from memcalc.harness.watch.tracker import Alloc
from tests.oracle.support.engine import EngineRecord, trace_hf
from tests.oracle.support.hf import HfRecord, run_hf
from tests.oracle.support.tiny import TINY, attention_of

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
#: Changes that take another path: family, changed keys, sequences, attention.
VARIANTS: tuple[tuple[str, dict[str, Any], int, str], ...] = (
    ("mixtral", {"num_experts_per_tok": 1}, 1, "flash"),
    ("mixtral", {"num_key_value_heads": 1}, 2, "eager"),
    ("qwen2_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}, 2, "flash"),
    ("qwen3_moe", {"attention_bias": True, "decoder_sparse_step": 2}, 3, "flash"),
    ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "mlp_bias": True}, 2, "flash"),
    ("deepseek_v3", {"n_group": 1, "norm_topk_prob": False, "v_head_dim": 48}, 2, "flash"),
    ("deepseek_v3", {"attention_bias": True, "n_shared_experts": 2}, 1, "eager"),
    ("gpt_oss", {"num_experts_per_tok": 4, "num_key_value_heads": 4}, 1, "eager"),
)


@functools.cache
def _both(family: str, seq: int, checkpoint: bool) -> tuple[EngineRecord, HfRecord]:
    attention = attention_of(family)
    return (
        trace_hf(TINY[family], 2, seq, checkpoint, attention),
        run_hf(TINY[family], 2, seq, checkpoint=checkpoint, attention=attention),
    )


def _off_by(mine: int, theirs: int) -> str:
    return f"{mine} against {theirs} bytes: {100 * (mine - theirs) / theirs:+.4f} %"


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("seq", [64, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models(family: str, seq: int, checkpoint: bool) -> None:
    mine, theirs = _both(family, seq, checkpoint)
    peak = theirs.peak_over_base
    assert mine.params == theirs.params
    assert abs(mine.saved - theirs.saved) <= 0.005 * theirs.saved, _off_by(mine.saved, theirs.saved)
    assert abs(mine.peak_over_params - peak) <= 0.01 * peak, _off_by(mine.peak_over_params, peak)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_event(family: str) -> None:
    """Each allocation's bytes, and what is freed before the next one, in transformers' order."""
    mine, theirs = _both(family, 64, True)
    before = {alloc.storage for alloc in theirs.initial}
    events = [
        event.nbytes if isinstance(event, Alloc) else -event.nbytes
        for event in theirs.events
        if event.storage not in before
    ]
    ours = _steps([amount for amount, *_ in mine.events])
    reference = _steps(events)
    for number, (one, other) in enumerate(zip(ours, reference, strict=False)):
        assert one == other, f"allocation {number}: {one}, transformers {other}"
    assert len(ours) == len(reference)


def _steps(amounts: list[int]) -> list[tuple[int, list[int]]]:
    steps: list[tuple[int, list[int]]] = []
    for amount in amounts:
        if amount > 0:
            steps.append((amount, []))
        elif steps:
            steps[-1][1].append(-amount)
    return [(allocated, sorted(freed)) for allocated, freed in steps]


@pytest.mark.parametrize(("family", "changes", "batch", "attention"), VARIANTS)
def test_variants_are_exact(
    family: str, changes: dict[str, Any], batch: int, attention: str
) -> None:
    config = {**TINY[family], **changes}
    mine = trace_hf(config, batch, 48, True, attention)
    theirs = run_hf(config, batch, 48, checkpoint=True, attention=attention)
    assert (mine.params, mine.saved, mine.peak_over_params) == (
        theirs.params,
        theirs.saved,
        theirs.peak_over_base,
    )
