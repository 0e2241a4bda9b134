"""Megatron-Core's router: which experts each token goes to, and with what probability.

Probabilities are a table (T, E) with zeros where a token does not go, beside it a map of one byte an
entry. With a capacity, an expert keeps its C most probable rows; the others are dropped from the map
(drop), or each expert takes C rows whatever comes (pad).
Letters: T positions of this rank's stream, E experts, t a token.
Source: Megatron-Core 0.14, transformer/moe/{router,moe_utils}.py (topk_routing_with_score_function,
apply_router_token_dropping). Not modelled: auxiliary losses, which are scalars, and choice by groups,
whose tables live within the router.
Checked by: oracle/test_megatron_experts.py, unit/test_megatron_moe.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import add, scale, shift, softmax_last, to
from memcalc.engine.aten.routing import divide, gather_last, sigmoid, sum_dim, top_k
from memcalc.engine.aten.te_tokens import beyond_capacity, gate, marked, scattered
from memcalc.engine.blocks.megatron_parts import options
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def routed(build: Build, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (T, E), zero where a token does not go, and the map of one byte an entry."""
    config = build.config.moe
    assert config is not None
    build.at("router", "mlp")
    weight = build.param("router.weight", (build["E"], build["h"]))
    logits = gate(tokens, weight, "fp32" if config.fp32_router else tokens.dtype)
    probs, chosen = _spread(build, logits)
    if options(build).capacity == "none":
        return probs, chosen
    return beyond_capacity(probs, chosen, build["C"], options(build).capacity == "pad")


def _spread(build: Build, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Table and map of each token's choice; the scores chosen by live until both are there."""
    config = build.config.moe
    assert config is not None
    if config.scoring == "sigmoid":
        scores = to(sigmoid(to(logits, "fp32")), logits.dtype)
        by = add(scores, build.tape.external((build["E"],), "fp32"))
        best, places = top_k(by, build["t"])
        scores = gather_last(scores, places)
        several = config.num_experts_per_tok > 1
        values = divide(scores, shift(sum_dim(scores, -1, True))) if several else scores
    elif config.normalize_top_k or config.scoring == "softmax-of-chosen":
        scores, places = top_k(logits, build["t"])
        values = to(softmax_last(to(scores, "fp32")), logits.dtype)
    else:
        scores = to(softmax_last(to(logits, "fp32")), logits.dtype)
        values, places = top_k(scores, build["t"])
    if config.expert_groups:
        values = scale(values)
    probs = scattered(values, places, logits.shape)
    chosen = marked(build.tape, logits)
    return probs, chosen
