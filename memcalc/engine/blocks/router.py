"""Routers: which experts a token goes to, and with what weight.

Symbols: T = b s tokens, E experts in G groups, t chosen a token. Each router returns its logits
(T, E), which transformers keeps until the MLP returns, weights (T, t) and indices (T, t).
Source: the families' modeling files of transformers 5.23. Checked by: oracle/test_hf_moe.py.
"""

from __future__ import annotations

from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import (
    constant,
    scale,
    shift,
    softmax_last,
    to,
)
from memcalc.engine.aten.routing import (
    divide_in_place,
    gather_last,
    masked_fill,
    max_last,
    sigmoid,
    sum_dim,
    top_k,
)
from memcalc.engine.aten.shape import expand, reshape, unsqueeze
from memcalc.engine.build import Build
from memcalc.engine.sizes import number
from memcalc.engine.tensors import Tensor
from memcalc.inputs.model import MoeConfig

Routing = tuple[Tensor, Tensor, Tensor]


def route(build: Build, tokens: Tensor) -> Routing:
    """Logits, weights and indices of the chosen experts, by the model's scoring."""
    build.at("router", "mlp")
    moe = build.config.moe
    assert moe is not None
    if moe.scoring == "sigmoid":
        return _by_sigmoid(build, moe, _logits(build, moe, tokens))
    if moe.scoring == "softmax-of-chosen":
        logits = _logits(build, moe, tokens)
        values, chosen = top_k(logits, build["t"])
        return logits, softmax_last(values), chosen
    if moe.fp32_router:
        return _by_groups(build, moe, _logits(build, moe, tokens))
    return _by_softmax(build, moe, _logits(build, moe, tokens))


def _logits(build: Build, moe: MoeConfig, tokens: Tensor) -> Tensor:
    features = (build["h"], build["E"])
    if not moe.fp32_router or build.kernels.autocast:
        return build.linear(tokens, "router", features, moe.router_bias)
    weight = build.param("router.weight", (build["E"], build["h"]))
    return linear(to(tokens, "fp32"), to(weight, "fp32"))


def _by_softmax(build: Build, moe: MoeConfig, logits: Tensor) -> Routing:
    """Mixtral and Qwen: softmax over all experts in fp32, then the t largest."""
    probs = softmax_last(to(logits, "fp32"))
    values, chosen = top_k(probs, build["t"])
    if moe.normalize_top_k:
        values = divide_in_place(values, sum_dim(values, -1, True))
    if build.config.model_type != "mixtral" or not build.kernels.hf:
        values = to(values, logits.dtype)
    return logits, values, chosen


def _by_groups(build: Build, moe: MoeConfig, logits: Tensor) -> Routing:
    """DeepSeek-V2: softmax, then the t largest among the groups with the largest maxima."""
    scores = softmax_last(to(logits, "fp32"))
    if moe.expert_groups:
        best = max_last(_grouped(build, scores))[0]
        group_mask, _groups = _best_groups(build, best)
        score_mask = _expert_mask(build, group_mask)
        scores = masked_fill(scores, _inverted(score_mask))
    values, chosen = top_k(scores, build["t"])
    values = scale(values)
    return logits, values, chosen


def _by_sigmoid(build: Build, moe: MoeConfig, logits: Tensor) -> Routing:
    """DeepSeek-V3: sigmoid scores, plus a bias only for choosing, inside the best groups."""
    scores = sigmoid(logits)
    for_choice = shift(scores)
    best = sum_dim(top_k(_grouped(build, for_choice), number(2))[0], -1, False)
    group_mask, _groups = _best_groups(build, best)
    score_mask = _expert_mask(build, group_mask)
    for_choice = masked_fill(for_choice, _inverted(score_mask))
    chosen = top_k(for_choice, build["t"])[1]
    values = gather_last(scores, chosen)
    if moe.normalize_top_k:
        total = shift(sum_dim(values, -1, True))
        values = divide_in_place(values, total)
    values = scale(values)
    return logits, values, chosen


def _grouped(build: Build, scores: Tensor) -> Tensor:
    """(T, E) as (T, G, E / G)."""
    return reshape(scores, (scores.shape[0], build["G"], build["E/G"]))


def _best_groups(build: Build, best: Tensor) -> tuple[Tensor, Tensor]:
    """A mask (T, G), 1 for the groups chosen, and their indices; both live on in the caller."""
    groups = top_k(best, build["t_G"])[1]
    return constant(build.tape, "zeros_like", best.shape, best.dtype), groups


def _expert_mask(build: Build, group_mask: Tensor) -> Tensor:
    """The group mask spread over the experts: (T, E)."""
    rows = group_mask.shape[0]
    wide = expand(unsqueeze(group_mask, 2), (rows, build["G"], build["E/G"]))
    return reshape(wide, (rows, build["E"]))


def _inverted(mask: Tensor) -> Tensor:
    as_bool = to(mask, "bool")
    return constant(mask.tape, "bitwise_not", as_bool.shape, "bool")
