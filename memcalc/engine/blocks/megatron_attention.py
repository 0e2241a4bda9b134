"""Self-attention as Megatron-Core runs it with Transformer Engine.

One column-parallel linear with the norm inside gives q, k and v of each key/value group side by side
(s, b, k, (g + 2) d). Queries of grouped heads are copied out; the kernel's layout copies values, and
what is not rotated. Locals live as long as in `Attention.forward`: the mixed tensor until o_proj ran.
Source: Megatron-Core 0.14, transformer/attention.py, dot_product_attention.py; TransformerEngine 2.11,
attention/dot_product_attention/utils.py (get_qkv_layout), backends.py.
Checked by: oracle/test_megatron_functions.py, unit/test_megatron_layers.py.
"""

from __future__ import annotations

from memcalc.engine.aten.matmul import bmm
from memcalc.engine.aten.megatron_ops import scaled_softmax
from memcalc.engine.aten.pointwise import dropout
from memcalc.engine.aten.shape import contiguous, permute, repeat_interleave, reshape
from memcalc.engine.aten.te_attention import attention as kernel
from memcalc.engine.aten.te_attention import copied, fused_rope, split_along
from memcalc.engine.aten.te_linear import Weights, linear, norm, norm_linear
from memcalc.engine.blocks.megatron_parts import (
    column,
    norm_parameters,
    options,
    parameters,
    recomputes,
    row,
)
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import checkpoint_reentrant
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

#: Output of a linear and the bias its caller adds.
WithBias = tuple[Tensor, Tensor | None]


def attention(build: Build, x: Tensor) -> WithBias:
    """Attention of the stream x: the output projection's result and its bias."""
    query, key, value = _queries_keys_values(build, x)
    if build.config.position_embedding == "rope":
        build.at("rope", "attention")
        query = fused_rope(query)
        key = fused_rope(key)
    out = core(build, query, key, value)
    return output(build, out)


def output(build: Build, out: Tensor) -> WithBias:
    """The row-parallel projection of heads (s, b, a, d) back to the stream."""
    build.at("o_proj", "attention")
    width = out.shape[2] * out.shape[3]
    merged = reshape(out, (*out.shape[:2], width))
    weight = parameters(build, "o_proj", (build["h"], width), False)
    has_bias = build.config.attention_output_bias
    bias = build.param("o_proj.bias", (build["h"],)) if has_bias else None
    return linear(merged, weight, row(build)), bias


def _queries_keys_values(build: Build, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (s, b, a, d), k and v (s, b, k, d): views of the mixed projection, or copies of it."""
    build.at("qkv_proj", "attention")
    d, k, g = build["d"], build["k"], build["g"]
    width = build["a"] * d + k * d * 2
    params = parameters(build, "qkv_proj", (width, build["h"]), build.config.attention_bias)
    normed = norm_parameters(build, "attn_norm", build["h"])
    mixed = norm_linear(x, Weights(params, normed), column(build))
    rows = mixed.shape[:2]
    mixed = reshape(mixed, (*rows, k, (g + 2) * d))
    query, key, value = split_along(mixed, (g * d, d, d))
    query = reshape(query, (*rows, build["a"], d))
    if build.config.qk_norm != "none":
        query = _head_norm(build, query, "q_norm")
        key = _head_norm(build, key, "k_norm")
    return query, key, value


def _head_norm(build: Build, x: Tensor, op: str) -> Tensor:
    """A norm over each head's columns, on a contiguous copy."""
    build.at(op, "norm")
    return norm(contiguous(x), norm_parameters(build, op, build["d"]))


def core(build: Build, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention core (s, b, a, d), as a checkpoint of its own where it is computed again."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        build.at("attention", "attention")
        if build.kernels.attention == "eager":
            return _unfused(build, q, k, v)
        return _fused(build, q, k, v)

    if recomputes(build, "core_attn"):
        build.at("attention", "attention")
        return checkpoint_reentrant(attend, query, key, value)
    return attend(query, key, value)


def _fused(build: Build, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernel, on copies where the tensors lie in no layout it knows.

    FlashAttention wants the batch outermost: with several sequences q, k, v and the output are copied.
    """
    chosen = options(build)
    interleaved = query.storage is key.storage and key.storage is value.storage
    if not interleaved or chosen.context != "none":
        query, key, value = contiguous(query), contiguous(key), contiguous(value)
    context = (chosen.context, chosen.ring)
    swaps = build.kernels.attention == "flash" and build["b"] is not ONE
    if not swaps or chosen.context != "none":
        return kernel(query, key, value, context)
    return copied(kernel(copied(query), copied(key), copied(value), context))


def _unfused(build: Build, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Megatron's own core: scores (b a, s, s) into a result of their own, one softmax kernel.

    The product's operand of zeros lives for the whole run (GlobalMemoryBuffer "mpu"); under DeepSpeed
    it is made each time, and with ALiBi its rows are the operand (b a s values, left out).
    """
    s, b, a, d = query.shape
    if key.shape[2] is not a:
        key, value = repeat_interleave(key, a, 2), repeat_interleave(value, a, 2)
    flat = (s, b * a, d)
    left = permute(reshape(query, flat), (1, 0, 2))
    right = permute(reshape(key, flat), (1, 2, 0))
    operand = None
    if options(build).code == "megatron-deepspeed" and build.config.position_embedding != "alibi":
        operand = query.tape.empty("empty", (b * a, s, right.shape[2]), query.dtype)
    scores = bmm(left, right)
    del operand
    probs = scaled_softmax(scores)
    if build.kernels.use_dropout:
        probs = dropout(probs, build.config.attention_dropout)
    values = permute(reshape(value, (value.shape[0], b * a, value.shape[3])), (1, 0, 2))
    out = bmm(probs, values)
    out = reshape(out, (b, a, s, value.shape[3]))
    return contiguous(permute(out, (2, 0, 1, 3)))
