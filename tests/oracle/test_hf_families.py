"""Dense families against transformers' own code: parameters, saved bytes, peak, every event."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import micro_batch
from memcalc.inputs.hf import model_from_config
from tests.oracle.support.engine import EngineRecord, steps, steps_of_hf, trace_hf
from tests.oracle.support.hf import HfRecord, run_hf
from tests.oracle.support.tiny import TINY, attention_of

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "gptj",
    "gpt_neox", "opt", "bloom", "falcon", "olmo2",
)  # fmt: skip
_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
_OPT_350M = {"word_embed_proj_dim": 64, "do_layer_norm_before": False}
#: Changes that take another path: family, changed keys, attention.
VARIANTS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("llama", {"attention_bias": True, "mlp_bias": True}, "flash"),
    ("llama", {"num_key_value_heads": 1}, "eager"),
    ("llama", {"attention_dropout": 0.1}, "eager"),
    ("mistral", {"sliding_window": 32}, "eager"),
    ("qwen2", {}, "eager"),
    ("phi3", {"partial_rotary_factor": 0.5, "resid_pdrop": 0.1}, "flash"),
    ("gemma2", {}, "flash"),
    ("gpt2", {"activation_function": "gelu", "resid_pdrop": 0.0}, "eager"),
    ("gptj", {"rotary_dim": 32, "attn_pdrop": 0.1, "resid_pdrop": 0.1}, "eager"),
    ("gpt_neox", {"use_parallel_residual": False, "hidden_dropout": 0.1}, "flash"),
    ("gpt_neox", {"rotary_pct": 1.0, "attention_bias": False}, "eager"),
    ("opt", _OPT_350M, "flash"),
    ("opt", {"enable_bias": False, "dropout": 0.0}, "eager"),
    ("bloom", {"hidden_dropout": 0.1, "attention_dropout": 0.1}, "eager"),
    ("falcon", _40B, "eager"),
    ("falcon", {**_40B, "num_ln_in_parallel_attn": 1}, "eager"),
    ("falcon", _RW, "eager"),
    ("falcon", {"multi_query": False, "hidden_dropout": 0.1}, "eager"),
    ("olmo2", {}, "eager"),
)


@functools.cache
def _both(family: str, seq: int, checkpoint: bool) -> tuple[EngineRecord, HfRecord]:
    return _run(TINY[family], 2, seq, checkpoint, attention_of(family))


def _run(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str
) -> tuple[EngineRecord, HfRecord]:
    return (
        trace_hf(config, batch, seq, checkpoint, attention),
        run_hf(config, batch, seq, checkpoint=checkpoint, attention=attention),
    )


def _off_by(mine: int, theirs: int) -> str:
    return f"{mine} against {theirs} bytes: {100 * (mine - theirs) / theirs:+.4f} %"


def _check_events(mine: EngineRecord, theirs: HfRecord) -> None:
    ours, reference = steps([amount for amount, *_ in mine.events]), steps_of_hf(theirs)
    for number, (one, other) in enumerate(zip(ours, reference, strict=False)):
        assert one == other, f"allocation {number}: {one}, transformers {other}"
    assert len(ours) == len(reference)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("seq", [64, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_peak(family: str, seq: int, checkpoint: bool) -> None:
    mine, theirs = _both(family, seq, checkpoint)
    peak = theirs.peak_over_base
    assert mine.params == theirs.params
    assert abs(mine.saved - theirs.saved) <= 0.005 * theirs.saved, _off_by(mine.saved, theirs.saved)
    assert abs(mine.peak_over_params - peak) <= 0.01 * peak, _off_by(mine.peak_over_params, peak)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_event(family: str, checkpoint: bool) -> None:
    """Each allocation's bytes, and what is freed before the next one, in transformers' order."""
    _check_events(*_both(family, 64, checkpoint))


@pytest.mark.parametrize(("family", "changes", "attention"), VARIANTS)
def test_every_event_of_variants(family: str, changes: dict[str, Any], attention: str) -> None:
    for batch, checkpoint in ((2, True), (1, False)):
        mine, theirs = _run({**TINY[family], **changes}, batch, 32, checkpoint, attention)
        assert mine.params == theirs.params
        _check_events(mine, theirs)


_LLAMA3 = {
    "model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
_LLAMA3_8B = {
    **_LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32,
}  # fmt: skip
_LLAMA3_70B = {
    **_LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
_QWEN2_7B = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "seq", "params", "saved"),
    [
        (_LLAMA3_8B, 8192, 8_030_261_248, 57_124_422_416),
        (_LLAMA3_70B, 8192, 70_553_706_496, 265_299_265_424),
        (_QWEN2_7B, 4096, 7_615_616_512, 28_461_679_280),
    ],
    ids=["llama3-8b", "llama3-70b", "qwen2-7b"],
)
def test_published_models(config: dict[str, Any], seq: int, params: int, saved: int) -> None:
    """Bytes that transformers' code left alive after the forward of one sequence, flash attention."""
    record = trace_hf(config, 1, seq)
    assert (record.params, record.saved) == (params, saved)


@pytest.mark.parametrize("attention", ["flash", "efficient", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoder_runs_every_family(family: str, attention: str) -> None:
    """Stack torch: the same parameters, a gradient for each, and nothing left behind."""
    model = model_from_config(TINY[family], family)
    values, tape = dim_values(model, 2, 64), Tape(watched=True)
    layers = [BlockKind(attention=model.layer_type(i)) for i in range(model.num_hidden_layers)]
    build = Build(tape, model, Kernels(attention=attention), dim_sizes(values))
    micro_batch(build, layers, False)
    params = sum(leaf.numel.value(values) for leaf in tape.leaves.values())
    assert params == _both(family, 64, False)[1].params
    grads = {leaf.grad.storage.index for leaf in tape.leaves.values() if leaf.grad is not None}
    alive = {event for event in tape.events if event >= 0}
    alive -= {~event for event in tape.events if event < 0}
    assert len(grads) == len(tape.leaves) and alive == grads
