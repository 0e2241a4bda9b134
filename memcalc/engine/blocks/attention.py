"""Self-attention: projections, rotary positions, the attention core, output projection.

Shapes: x (b, s, h); query (b, a, s, d), key and value (b, k, s, d). a query heads, k key/value heads
on this rank, d head width. A core reads its context length from the key, so s_q and s_kv may differ.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import cudnn_attention, efficient_attention, flash_attention
from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import add, dropout, mul, neg, scale, softmax_last, tanh, to
from memcalc.engine.aten.shape import (
    cat,
    expand,
    merge_groups,
    narrow,
    permute,
    repeat_interleave,
    reshape,
    split,
    unsqueeze,
)
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.context_attention import core_heads, from_heads, to_heads
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.norm import norm
from memcalc.engine.blocks.relative import relative_scores
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import checkpoint
from memcalc.engine.parallel.context.context_ring import ring_attention
from memcalc.engine.parallel.context.torchtitan_ring import compiled_ring
from memcalc.engine.parallel.tensor.tensor_layers import whole_stream
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

HEADS_FIRST = (0, 2, 1, 3)


def attention(build: Build, x: Tensor, context: Context) -> Tensor:
    """The attention module of the plain decoder: fused projection for GPT-2 style, else three."""
    x = whole_stream(build, x, "attn_gather", "attention")
    project = _fused_projection if build.config.fused_qkv else _projections
    query, key, value = project(build, x)
    if build.config.position_embedding == "rope":
        build.at("rope", "attention")
        query = rotate(build, permute(query, HEADS_FIRST), context)
        key = rotate(build, permute(key, HEADS_FIRST), context)
    else:
        query = permute(query, HEADS_FIRST)
        key = permute(key, HEADS_FIRST)
    key, value = cached(build, key, value)
    out = core(build, query, key, value, context)
    build.at("o_proj", "attention")
    merged = reshape(permute(out, HEADS_FIRST), (build["b"], build["s"], build["a"] * build["d"]))
    return build.linear(
        merged, "o_proj", (build["a"] * build["d"], build["h"]), build.config.attention_output_bias
    )


def _projections(build: Build, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, s, h, d = build["b"], build["s"], build["h"], build["d"]
    bias = build.config.attention_bias
    build.at("q_proj", "attention")
    query = build.linear(x, "q_proj", (h, build["a"] * d), bias)
    if build.config.qk_norm == "full":
        query = norm(build, query, "q_norm", build["a"] * d)
    query = reshape(query, (b, s, build["a"], d))
    build.at("k_proj", "attention")
    key = build.linear(x, "k_proj", (h, build["k"] * d), bias)
    if build.config.qk_norm == "full":
        key = norm(build, key, "k_norm", build["k"] * d)
    key = reshape(key, (b, s, build["k"], d))
    build.at("v_proj", "attention")
    value = reshape(build.linear(x, "v_proj", (h, build["k"] * d), bias), (b, s, build["k"], d))
    value = permute(value, HEADS_FIRST)
    if build.config.qk_norm == "head":
        query = norm(build, query, "q_norm", d)
        key = norm(build, key, "k_norm", d)
    return query, key, value


def _fused_projection(build: Build, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One linear for q, k and v, cut into three views (GPT-2)."""
    b, s, h = build["b"], build["s"], build["h"]
    widths = (build["a"] * build["d"], build["k"] * build["d"], build["k"] * build["d"])
    build.at("qkv_proj", "attention")
    total = widths[0] + widths[1] + widths[2]
    out = build.linear(x, "qkv_proj", (h, total), build.config.attention_bias)
    query, key, value = split(out, widths)
    del out
    query = reshape(query, (b, s, build["a"], build["d"]))
    key = reshape(key, (b, s, build["k"], build["d"]))
    value = permute(reshape(value, (b, s, build["k"], build["d"])), HEADS_FIRST)
    return query, key, value


def rotate(build: Build, x: Tensor, context: Context) -> Tensor:
    """Rotary embedding x cos + rotate_half(x) sin over the first r of d columns of each head."""
    cos, sin = context[0], context[1]
    if build["r"] is build["d"]:
        return add(mul(x, cos), mul(_rotate_half(build, x), sin))
    rotated, rest = narrow(x, build["r"]), narrow(x, build["d-r"])
    rotated = add(mul(rotated, cos), mul(_rotate_half(build, rotated), sin))
    return cat((rotated, rest), -1, build["d"])


def _rotate_half(build: Build, x: Tensor) -> Tensor:
    half = build["r/2"]
    first, second = split(x, (half, half))
    return cat((neg(second), first), -1, x.shape[3])


def core(build: Build, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by the chosen kernel; recomputed alone under `selective`."""
    alibi = build.config.position_embedding == "alibi"
    mask = context[-1] if build.kernels.attention == "eager" or alibi else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        build.at("attention", "attention")
        if mask is None or build.kernels.attention != "eager":
            return fused_core(build, q, k, v, mask)
        dtype = build.kernels.compute_dtype
        with build.autocast():
            return _eager(build, to(q, dtype), to(k, dtype), to(v, dtype), context)

    query, key, value = to_heads(build, query, key, value)
    if build.kernels.selective:
        return from_heads(build, checkpoint(attend, query, key, value))
    return from_heads(build, attend(query, key, value))


def fused_core(build: Build, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The attention kernels that keep no scores: (b, a, s, d). Only `efficient` takes a bias."""
    dtype = build.kernels.compute_dtype
    q, k, v = to(q, dtype), to(k, dtype), to(v, dtype)
    if build.kernels.context is not None and build.kernels.context.method == "ring":
        if build.kernels.attention == "efficient":
            k, v = repeat_heads(build, k), repeat_heads(build, v)
        if build.kernels.compiled:
            return compiled_ring(q, k, v, build.kernels.context.ranks)
        return ring_attention(q, k, v, build.kernels.attention, build.kernels.context)
    if build.kernels.attention == "flash":
        return flash_attention(q, k, v)
    if build.kernels.attention == "cudnn":
        return cudnn_attention(q, k, v)
    return efficient_attention(q, repeat_heads(build, k), repeat_heads(build, v), bias)


def _eager(build: Build, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
    """Scores in full (b, a, s_q, s_kv), softmax in fp32, every step a tensor of its own."""
    keys, values = repeat_kv(build, key), repeat_kv(build, value)
    if build.config.position_embedding == "relative":
        weights = scale(relative_scores(build, query, keys, context[0]))
    else:
        weights = scale(matmul_heads(query, permute(keys, (0, 1, 3, 2))))
    if build.config.attn_logit_softcapping is not None:
        weights = scale(weights, "div.Tensor")
        weights = tanh(weights)
        weights = scale(weights)
    weights = add(weights, context[-1])
    if build.config.attention_sinks:
        weights = _softmax_with_sinks(build, weights)
    else:
        weights = to(softmax_last(to(weights, "fp32")), query.dtype)
    if build.kernels.use_dropout:
        weights = dropout(weights, build.config.attention_dropout)
    return matmul_heads(weights, values)


def _softmax_with_sinks(build: Build, weights: Tensor) -> Tensor:
    """A logit of its own for each head joins the softmax as one more column, then is cut off."""
    shape = (build["b"], build["a"], build["s"], ONE)
    column = reshape(build.param("sinks", (build["a"],)), (ONE, build["a"], ONE, ONE))
    logits = cat((weights, expand(column, shape)), -1)
    probs = to(softmax_last(to(logits, "fp32")), weights.dtype)
    return narrow(probs, weights.shape[3])


def repeat_kv(build: Build, x: Tensor) -> Tensor:
    """(b, k, s, d) to (b, a, s, d) by expand and reshape: one copy, none when k = a."""
    b, k, s, d = x.shape
    groups = build["g"]
    if build["a"] is k:
        return x
    wide = expand(unsqueeze(x, 2), (b, k, groups, s, d))
    if k is ONE:
        return reshape(wide, (b, build["a"], s, d))
    return merge_groups(wide, build["a"])


def repeat_heads(build: Build, x: Tensor) -> Tensor:
    """repeat_interleave over heads: one copy laid out head-major, none when k = a."""
    heads = core_heads(build)
    return x if x.shape[1] is heads else repeat_interleave(x, heads, 1)
