"""Falcon's own attention: fused projection in three layouts, eager scores without upcast, ALiBi (RW).

Shapes: x (b, s, h); query, key, value (b, heads, s, d). Multi-query: one key/value head, read by a
broadcast product; grouped: key and value are copied to every head before rotary.
Source: transformers 5.23, models/falcon/modeling_falcon.py. Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from functools import partial

from memcalc.engine.adapters.ia3 import rescaled
from memcalc.engine.adapters.leaf import is_rescaled
from memcalc.engine.adapters.linear import adapted
from memcalc.engine.aten.matmul import linear, matmul_heads
from memcalc.engine.aten.pointwise import add, dropout, scale_in_place, softmax_last, to
from memcalc.engine.aten.shape import (
    expand,
    index_one,
    merge_groups,
    narrow,
    permute,
    reshape,
    select,
)
from memcalc.engine.blocks.attention import HEADS_FIRST, fused_core
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_attention import Attended, rotate_pair
from memcalc.engine.blocks.mlp import activated
from memcalc.engine.blocks.residual import drop
from memcalc.engine.blocks.residual import residual as sum_residual
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Tensor


def falcon_linear(
    build: Build, x: Tensor, name: str, features: tuple[Size, Size], bias: bool
) -> Tensor:
    """x @ weight.T, then + bias as an operator of its own, then what fine-tuning adds."""
    if is_rescaled(build, name):
        base = partial(_with_bias, build, name=name, features=features, bias=bias)
        return rescaled(build, x, name, features, base)
    return adapted(build, x, _with_bias(build, x, name, features, bias), name, features)


def _with_bias(
    build: Build, x: Tensor, name: str, features: tuple[Size, Size], bias: bool
) -> Tensor:
    """Autocast's weight cache takes parameters only, not the transposed view this multiplies by."""
    if build.kernels.autocast:
        weight = to(build.param(f"{name}.weight", features[::-1]), build.kernels.compute_dtype)
        out = linear(build.narrow(x), weight)
    else:
        out = build.bare_linear(x, name, features, False)
    return add(out, build.param(f"{name}.bias", (features[1],))) if bias else out


def dropout_add(build: Build, x: Tensor, residual: Tensor, p: float, part: str) -> Tensor:
    """residual + dropout(x)."""
    out = drop(build, x, f"{part}_dropout", p)
    return sum_residual(build, residual, out, f"{part}_residual")


def falcon_mlp(build: Build, x: Tensor) -> Tensor:
    """down(act(up(x)))."""
    h, f, bias = build["h"], build["f"], build.config.mlp_bias
    build.at("up_proj", "mlp")
    x = activated(build, falcon_linear(build, x, "up_proj", (h, f), bias))
    build.at("down_proj", "mlp")
    return falcon_linear(build, x, "down_proj", (f, h), bias)


def falcon_attention(build: Build, x: Tensor, context: Context) -> Attended:
    """Projection, rotary or ALiBi, scores, output projection."""
    b, s, h, a, d = (build[letter] for letter in "bshad")
    config = build.config
    build.at("qkv_proj", "attention")
    fused = falcon_linear(
        build, x, "qkv_proj", (h, (a + build["k"] * 2) * d), config.attention_bias
    )
    query, key, value = _three(build, fused)
    query = _heads_first(query)
    key = _heads_first(key)
    value = _heads_first(value)
    if config.position_embedding == "alibi":
        key, value = cached(build, key, value)
        out, weights, _alive = _with_alibi(build, query, key, value, context)
    else:
        build.at("rope", "attention")
        query, key = rotate_pair(build, query, key, context)
        key, value = cached(build, key, value)
        build.at("attention", "attention")
        mask = context[-1] if build.kernels.attention in ("eager", "efficient") else None
        out, weights = _with_rope(build, query, key, value, mask)
    out = reshape(permute(out, HEADS_FIRST), (b, s, a * d))
    build.at("o_proj", "attention")
    return falcon_linear(build, out, "o_proj", (a * d, h), config.attention_output_bias), weights


def _heads_first(x: Tensor) -> Tensor:
    """(b, s, n, d) to (b, n, s, d); the reshape to that same shape is no copy."""
    return permute(x, HEADS_FIRST)


def _three(build: Build, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of shape (b, s, heads, d) by the layout of this generation."""
    b, s, a, k, d = (build[letter] for letter in "bsakd")
    if k is ONE:
        fused = reshape(fused, (b, s, a + 2, d))
        return narrow(fused, a, 2), index_one(fused, 2), index_one(fused, 2)
    if a is k:
        fused = reshape(fused, (b, s, a, number(3), d))
        return select(fused, 3), select(fused, 3), select(fused, 3)
    groups = build["g"]
    fused = reshape(fused, (b, s, k, groups + 2, d))
    query = narrow(fused, groups, 3)
    key, value = index_one(fused, 3), index_one(fused, 3)
    key = expand(key, (b, s, k, groups, d))
    value = expand(value, (b, s, k, groups, d))
    return merge_groups(query, a, 2), merge_groups(key, a, 2), merge_groups(value, a, 2)


def _broadcast(build: Build, x: Tensor) -> Tensor:
    """torch.matmul's expansion of a single head to all."""
    return x if x.shape[1] is build["a"] else expand(x, (x.shape[0], build["a"], *x.shape[2:]))


def _with_rope(
    build: Build, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Attended:
    """Scores scaled in place, softmax in the 16-bit dtype, no dropout; sdpa reads the mask too."""
    if build.kernels.attention != "eager":
        return fused_core(build, query, key, value, mask), None
    assert mask is not None
    scores = _product(build, query, permute(key, (0, 1, 3, 2)))
    scores = scale_in_place(scores)
    scores = softmax_last(add(scores, mask))
    return _product(build, scores, value), scores


def _product(build: Build, x: Tensor, y: Tensor) -> Tensor:
    """x @ y, y broadcast over the heads."""
    y = build.narrow(y)
    return matmul_heads(build.narrow(x), _broadcast(build, y))


def _with_alibi(
    build: Build, query: Tensor, key: Tensor, value: Tensor, context: Context
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Falcon-RW: bias added in fp32, back to 16 bit for the softmax, dropout."""
    build.at("attention", "attention")
    if build.kernels.attention != "eager":
        return fused_core(build, query, key, value, context[-1]), None, ()
    product = _product(build, query, permute(key, (0, 1, 3, 2)))
    scores = to(product, "fp32")
    logits = add(scores, context[-2])
    logits = scale_in_place(logits)
    masked = add(logits, context[-1])
    weights = softmax_last(to(masked, query.dtype))
    del masked
    if build.kernels.use_dropout:
        weights = dropout(weights, build.config.attention_dropout)
    out = _product(build, weights, value)
    return out, weights, (product, scores, logits)
