"""transformers' attention modules that call its attention interface: llama and most others.

Shapes: x (b, s, h); query (b, a, s, d), key and value (b, k, s, d). The locals of a modeling file's
`forward` are locals here, so they live as long: q, k, v and the output until o_proj has run, the
attention weights of eager attention in the block.
Source: transformers 5.23, models/llama/modeling_llama.py and those that copy it.
Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import add, dropout, mul, neg, scale, softmax_last, tanh, to
from memcalc.engine.aten.shape import cat, contiguous, narrow, permute, reshape, split
from memcalc.engine.blocks.attention import HEADS_FIRST, fused_core, repeat_kv
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.masked import masked_attention
from memcalc.engine.blocks.norm import norm
from memcalc.engine.blocks.residual import drop
from memcalc.engine.blocks.sinks import rotate_halves, sink_attention
from memcalc.engine.build import Build
from memcalc.engine.sizes import ZERO, Size
from memcalc.engine.tensors import Tensor

Three = tuple[Tensor, Tensor, Tensor]
#: The same, and the tensor they are views of where the code has a name for it.
Projected = tuple[Tensor, ...]
#: Output and, from eager code, the attention weights.
Attended = tuple[Tensor, Tensor | None]


def interface_attention(build: Build, x: Tensor, context: Context) -> Attended:
    """Projections, rotary, kernel, output projection."""
    query, key, value, *_fused_qkv = _PROJECTIONS[build.kernels.traits.qkv](build, x)
    if build.config.position_embedding == "rope":
        build.at("rope", "attention")
        query, key = rotate_pair(build, query, key, context)
    key, value = cached(build, key, value)
    out, weights = kernel(build, query, key, value, context)
    build.at("o_proj", "attention")
    width = build["a"] * build["d"]
    out = contiguous(reshape(out, (build["b"], build["s"], width)))
    out = build.linear(out, "o_proj", (width, build["h"]), build.config.attention_output_bias)
    if build.kernels.traits.drop_inside:
        out = drop(build, out, "attn_dropout")
    return out, weights


def _heads(build: Build, x: Tensor, heads: Size) -> Tensor:
    return reshape(x, (build["b"], build["s"], heads, build["d"]))


def _project(build: Build, x: Tensor, letter: str, heads: Size) -> Tensor:
    """One projection and the norm some families put on q and k."""
    build.at(f"{letter}_proj", "attention")
    config, width = build.config, heads * build["d"]
    features = (build["h"], width)
    if letter == "v" or config.qk_norm == "none":
        out = build.linear(x, f"{letter}_proj", features, config.attention_bias)
        if letter == "q" and build.kernels.traits.scale_query:
            out = scale(out)
        return permute(_heads(build, out, heads), HEADS_FIRST)
    out = _heads(build, build.linear(x, f"{letter}_proj", features, config.attention_bias), heads)
    if build.kernels.traits.qk_norm_at == "transposed":
        return permute(out, HEADS_FIRST)
    return permute(norm(build, out, f"{letter}_norm", build["d"]), HEADS_FIRST)


def _flat(build: Build, x: Tensor, letter: str, heads: Size) -> Tensor:
    """OLMo-2: one norm over all heads of q or k at once."""
    build.at(f"{letter}_proj", "attention")
    width = heads * build["d"]
    bias = build.config.attention_bias
    if letter == "v":
        return build.linear(x, "v_proj", (build["h"], width), bias)
    projected = build.linear(x, f"{letter}_proj", (build["h"], width), bias)
    return norm(build, projected, f"{letter}_norm", width)


def _three(build: Build, x: Tensor) -> Three:
    if build.config.qk_norm == "full":
        query = _flat(build, x, "q", build["a"])
        key = _flat(build, x, "k", build["k"])
        value = _flat(build, x, "v", build["k"])
        query = permute(_heads(build, query, build["a"]), HEADS_FIRST)
        key = permute(_heads(build, key, build["k"]), HEADS_FIRST)
        return query, key, permute(_heads(build, value, build["k"]), HEADS_FIRST)
    query = _project(build, x, "q", build["a"])
    key = _project(build, x, "k", build["k"])
    value = _project(build, x, "v", build["k"])
    if build.config.qk_norm == "head" and build.kernels.traits.qk_norm_at == "transposed":
        query = norm(build, query, "q_norm", build["d"])
        key = norm(build, key, "k_norm", build["d"])
    return query, key, value


def _fused(build: Build, x: Tensor) -> tuple[Tensor, tuple[Size, Size, Size]]:
    build.at("qkv_proj", "attention")
    d = build["d"]
    widths = (build["a"] * d, build["k"] * d, build["k"] * d)
    total = widths[0] + widths[1] + widths[2]
    out = build.linear(x, "qkv_proj", (build["h"], total), build.config.attention_bias)
    return out, widths


def _split(build: Build, x: Tensor) -> Three:
    """GPT-2: one split, one gradient tensor for the three."""
    out, widths = _fused(build, x)
    query, key, value = split(out, widths)
    key = permute(_heads(build, key, build["k"]), HEADS_FIRST)
    value = permute(_heads(build, value, build["k"]), HEADS_FIRST)
    return permute(_heads(build, query, build["a"]), HEADS_FIRST), key, value


def _slices(build: Build, x: Tensor) -> Projected:
    """Phi-3: three slices, a gradient tensor of full width for each."""
    out, widths = _fused(build, x)
    query, key, value = (narrow(out, width) for width in widths)
    query = permute(_heads(build, query, build["a"]), HEADS_FIRST)
    key = permute(_heads(build, key, build["k"]), HEADS_FIRST)
    return query, key, permute(_heads(build, value, build["k"]), HEADS_FIRST), out


def _per_head(build: Build, x: Tensor) -> Projected:
    """GPT-NeoX: q, k and v of each head lie together."""
    out, _ = _fused(build, x)
    d = build["d"]
    out = permute(reshape(out, (build["b"], build["s"], build["a"], d * 3)), HEADS_FIRST)
    query, key, value = split(out, (d, d, d))
    return query, key, value, out


_PROJECTIONS = {"three": _three, "split": _split, "slices": _slices, "per_head": _per_head}


def rotate_half(build: Build, x: Tensor) -> Tensor:
    """(-x2, x1), each half a slice of its own."""
    first, second = narrow(x, build["r/2"]), narrow(x, build["r/2"])
    return cat((neg(second), first), -1, build["r"])


def rotate_pair(
    build: Build, query: Tensor, key: Tensor, context: Context
) -> tuple[Tensor, Tensor]:
    """apply_rotary_pos_emb: x cos + rotate_half(x) sin for q, then k, over the first r columns."""
    cos, sin = context[0], context[1]
    if build.kernels.traits.rope == "halves":
        return rotate_halves(build, query, cos, sin), rotate_halves(build, key, cos, sin)
    if build.kernels.traits.rope == "whole" and build["r"] is build["d"]:
        q = add(mul(query, cos), mul(rotate_half(build, query), sin))
        k = add(mul(key, cos), mul(rotate_half(build, key), sin))
        if build.kernels.traits.tables == "fp32":
            return to(q, query.dtype), to(k, key.dtype)
        return q, k
    q_rotated, q_pass = cut_rotated(build, query)
    k_rotated, k_pass = cut_rotated(build, key)
    if build.kernels.traits.rope == "cat_both":
        q = cat((_rotate(build, q_rotated, cos, sin), q_pass), -1, build["d"])
        k = cat((_rotate(build, k_rotated, cos, sin), k_pass), -1, build["d"])
        return q, k
    q = _rotate(build, q_rotated, cos, sin)
    k = _rotate(build, k_rotated, cos, sin)
    q = cat((q, q_pass), -1, build["d"])
    k = cat((k, k_pass), -1, build["d"])
    return q, k


def cut_rotated(build: Build, x: Tensor) -> tuple[Tensor, Tensor]:
    """x[..., :r] (x itself when r is the whole width) and x[..., r:], each a slice of its own."""
    if build["r"] is build["d"]:
        return x, narrow(x, ZERO)
    return narrow(x, build["r"]), narrow(x, build["d-r"])


def _rotate(build: Build, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return add(mul(x, cos), mul(rotate_half(build, x), sin))


def kernel(build: Build, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Attended:
    """The attention interface: a fused kernel, or the family's eager products."""
    build.at("attention", "attention")
    if build.kernels.attention == "eager" and build.config.attention_sinks:
        return sink_attention(build, query, key, value, context[-1])
    if build.kernels.attention == "eager":
        return _eager(build, query, key, value, context[-1])
    if build.prefix is not None:
        return masked_attention(build, query, key, value, context[-1]), None
    if build.kernels.traits.repeats_kv:
        key, value = repeat_kv(build, key), repeat_kv(build, value)
    bias = context[-1] if build.config.position_embedding == "alibi" else None
    out = fused_core(build, query, key, value, bias)
    return contiguous(permute(out, HEADS_FIRST)), None


def _eager(build: Build, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Attended:
    """eager_attention_forward: every step a tensor (b, a, s, s); soft cap where the model has it."""
    config, traits, dtype = build.config, build.kernels.traits, build.kernels.compute_dtype
    query, key, value = to(query, dtype), to(key, dtype), to(value, dtype)
    keys, values = repeat_kv(build, key), repeat_kv(build, value)
    weights = scale(matmul_heads(query, permute(keys, (0, 1, 3, 2))))
    if config.attn_logit_softcapping is not None:
        weights = scale(weights, "div.Tensor")
        weights = tanh(weights)
        weights = scale(weights)
    weights = add(weights, mask)
    upcast = traits.upcast_softmax
    weights = to(softmax_last(to(weights, "fp32")), dtype) if upcast else softmax_last(weights)
    if build.kernels.use_dropout:
        weights = dropout(weights, config.attention_dropout)
    out = matmul_heads(weights, values)
    out = permute(out, HEADS_FIRST)
    return contiguous(out), weights
