"""Named setups of ranks that split layers, alone and beside FSDP2: each shows one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import LLAMA
from tests.oracle.support.rank_cases import PAIRS
from tests.oracle.support.rank_draw import RankSetup

#: Eight key/value heads of four queries, so that tp 2, 4 and 8 divide them.
WIDE = replace(
    LLAMA, num_attention_heads=32, num_key_value_heads=8, head_dim=8, num_hidden_layers=1,
    vocab_size=504,
)  # fmt: skip
SHORT = replace(LLAMA, num_hidden_layers=1)
QWEN = replace(SHORT, qk_norm="head", attention_bias=True, tie_word_embeddings=True)
DEEP = replace(LLAMA, num_hidden_layers=6)


def _case(config: Any, layout: Layout, rank: int = 0, **setup: Any) -> RankSetup:
    stated: dict[str, Any] = {"seq_len": 16, "micro_batch_size": 2, "precision": "bf16-mixed"}
    return RankSetup(config, TrainingSetup(**stated | setup), layout, {}, rank)


#: Layers split over ranks, parameters not sharded. The last two run on real tensors too.
ALONE = {
    "llama-tp4-sp": _case(WIDE, Layout(tp=4, sp=True), rank=3),
    "llama-tp8-sp-one-sequence": _case(WIDE, Layout(tp=8, sp=True), micro_batch_size=1),
    "llama-tp8-bf16-fused": _case(WIDE, Layout(tp=8), precision="bf16", optimizer_impl="fused"),
    "llama-sac-accumulates": _case(
        SHORT, Layout(tp=2, sp=True), recompute="sac", grad_accum_steps=2, set_to_none=False
    ),
    "qwen-sp-chunked": _case(QWEN, Layout(tp=2, sp=True), loss="chunked", loss_chunks=3),
    "deep-full-of-4": _case(
        DEEP, Layout(tp=2, sp=True), recompute="full", recompute_layers=4, precision="fp32"
    ),
    "real-tp": PAIRS["tp"],
    "real-tp-sp-gpt2": PAIRS["tp-sp-gpt2"],
}

_BOTH = {"fsdp": True, "sp": True}
#: The same beside FSDP2.
SHARDED = {
    "dp2-tp2-full": _case(SHORT, Layout(dp=2, tp=2, **_BOTH), recompute="full"),
    "dp8-tp2-kept-sac": _case(LLAMA, Layout(dp=8, tp=2, reshard=False, **_BOTH), recompute="sac"),
    "dp2-tp4": _case(WIDE, Layout(dp=2, tp=4, fsdp=True, reshard=True), rank=3),
    "dp8-tp4-bf16-accumulates": _case(
        WIDE, Layout(dp=8, tp=4, **_BOTH), precision="bf16", grad_accum_steps=2
    ),
    "dp2-tp2-qwen-momentum": _case(
        QWEN, Layout(dp=2, tp=2, **_BOTH), optimizer="momentum", grad_clip=True
    ),
    "dp4-tp2-in-groups-of-2": _case(SHORT, Layout(dp=4, tp=2, shard=2, **_BOTH), recompute="sac"),
    "dp2-tp2-deep-sgd": _case(DEEP, Layout(dp=2, tp=2, **_BOTH), optimizer="sgd"),
}
