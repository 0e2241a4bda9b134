"""Megatron-Core's router: which experts each token goes to, and with what probability.

Probabilities are a table (T, E) with zeros where a token does not go, beside it a map of one byte an
entry. With a capacity, an expert keeps its C most probable rows; the others are dropped from the map
(drop), or each expert takes C rows whatever comes (pad).
Letters: T positions of this rank's stream, E experts, t a token.
Source: Megatron-Core 0.14, transformer/moe/{router,moe_utils}.py (topk_routing_with_score_function,
apply_router_token_dropping). Not modelled: auxiliary losses, which are scalars, and choice by groups,
whose tables live within the router. Checked by: unit/test_megatron_moe.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import add, constant, scale, softmax_last, to
from memcalc.engine.aten.routing import gather_last, sigmoid, sum_dim, top_k
from memcalc.engine.aten.te_tokens import beyond_capacity, divided, gate, scatter_probs
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
    values, places = _chosen(build, logits)
    if config.expert_groups:
        values = scale(values)
    probs, chosen = scatter_probs(values, places, logits.shape)
    if options(build).capacity == "none":
        return probs, chosen
    return beyond_capacity(probs, chosen, build["C"], options(build).capacity == "pad")


def _chosen(build: Build, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (T, t) of each token's experts, and which they are."""
    config = build.config.moe
    assert config is not None
    if config.scoring == "sigmoid":
        scores = to(sigmoid(to(logits, "fp32")), logits.dtype)
        for_choice = add(scores, constant(build.tape, "expert_bias", (build["E"],), "fp32"))
        places = top_k(for_choice, build["t"])[1]
        values = gather_last(scores, places)
        return divided(values, sum_dim(values, -1, True)), places
    if config.normalize_top_k or config.scoring == "softmax-of-chosen":
        values, places = top_k(logits, build["t"])
        return to(softmax_last(to(values, "fp32")), logits.dtype), places
    scores = to(softmax_last(to(logits, "fp32")), logits.dtype)
    return top_k(scores, build["t"])
