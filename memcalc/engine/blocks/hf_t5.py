"""T5's blocks as transformers writes them: RMSNorm in fp32, attention with a bias, a plain or gated MLP.

Shapes: x (b, n, h) with n positions of the block's own stack; query (b, a, n, d), key and value
(b, a, m, d), m the encoder's positions in cross attention. Dropout stands at the end of every branch.
Source: transformers 5.23, models/t5/modeling_t5.py (models/mt5 is a copy).
Checked by: oracle/test_hf_encoders.py, event for event.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import efficient_attention
from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import (
    add,
    dropout,
    mean_last,
    mul,
    rsqrt,
    scale,
    shift,
    softmax_last,
    square,
    to,
)
from memcalc.engine.aten.shape import contiguous, permute, reshape
from memcalc.engine.blocks.attention import HEADS_FIRST
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.mlp import activated, down, gate, up
from memcalc.engine.blocks.residual import drop
from memcalc.engine.blocks.t5_bias import bias_mask, no_bias, relative_bias, spread
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

#: Result, the position bias it used, and the attention weights of eager code.
Attended = tuple[Tensor, Tensor, Tensor | None]


def t5_norm(build: Build, x: Tensor, op: str) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in fp32, cast back where weights have 16 bits, times the weight."""
    build.at(op, "norm")
    weight = build.param(f"{op}.weight", (build["h"],))
    variance = mean_last(square(to(x, "fp32")))
    x = mul(x, rsqrt(shift(variance)))
    if weight.dtype != "fp32":
        x = to(x, weight.dtype)
    return mul(weight, x)


def t5_block(build: Build, x: Tensor, context: Context) -> Tensor:
    """Self-attention, in the decoder attention to the encoder's output, MLP; biases go to the caller.

    context: of the decoder the encoder's output and, for eager code, the causal mask; then, but for the
    first block of a stack, the position biases.
    """
    memory, mask, biases = _unpacked(build, context)
    hidden, bias, _weights = _self_attention(build, x, mask, biases[0] if biases else None)
    made: tuple[Tensor, ...] = (bias,)
    if memory is not None:
        known = biases[1] if biases else None
        hidden, cross_bias, _weights = _cross_attention(build, hidden, memory, known)
        made = (bias, cross_bias)
    hidden = _feed_forward(build, hidden)
    if not build.tape.recomputing:
        build.biases = made
    return hidden


def _unpacked(build: Build, context: Context) -> tuple[Tensor | None, Tensor | None, Context]:
    """(encoder's output, causal mask, biases)."""
    if build.kind.stack == "encoder":
        return None, None, context
    if build.kernels.attention == "eager":
        return context[0], context[1], context[2:]
    return context[0], None, context[1:]


def _self_attention(build: Build, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> Attended:
    normed = t5_norm(build, x, "attn_norm")
    attended, bias, weights = _attention(build, normed, None, mask, bias)
    attended = _sum(build, x, attended, "attn")
    return attended, bias, weights


def _cross_attention(build: Build, x: Tensor, memory: Tensor, bias: Tensor | None) -> Attended:
    normed = t5_norm(build, x, "cross_attn_norm")
    attended, bias, weights = _attention(build, normed, memory, None, bias)
    attended = _sum(build, x, attended, "cross_attn")
    return attended, bias, weights


def _sum(build: Build, x: Tensor, branch: Tensor, part: str) -> Tensor:
    """x + dropout(branch); the branch before dropout lives until the sum is made."""
    dropped = drop(build, branch, f"{part}_dropout")
    build.at(f"{part}_residual", "residual")
    return add(x, dropped)


def _attention(
    build: Build, x: Tensor, memory: Tensor | None, mask: Tensor | None, bias: Tensor | None
) -> Attended:
    """T5Attention.forward: projections, a bias where none is given, scores, output projection."""
    part = "" if memory is None else "cross_"
    read = x if memory is None else memory
    query = _heads(build, x, f"{part}q_proj")
    key = _heads(build, read, f"{part}k_proj")
    value = _heads(build, read, f"{part}v_proj")
    if bias is None and memory is None:
        bias = relative_bias(build, x.shape[1])
    build.at(f"{part}attention", "attention")
    if bias is None:
        bias = no_bias(build, query, key.shape[2])
    if build.kernels.attention == "eager":
        out, weights = _eager(build, (query, key, value), bias, mask)
    else:
        out, weights = _fused(build, (query, key, value), bias, memory is not None), None
    width = build["a"] * build["d"]
    out = contiguous(reshape(out, (*x.shape[:2], width)))
    build.at(f"{part}o_proj", "attention")
    out = build.linear(out, f"{part}o_proj", (width, build["h"]), False)
    return out, bias, weights


def _heads(build: Build, x: Tensor, name: str) -> Tensor:
    build.at(name, "attention")
    out = build.linear(x, name, (build["h"], build["a"] * build["d"]), False)
    return permute(reshape(out, (*x.shape[:2], build["a"], build["d"])), HEADS_FIRST)


def _eager(
    build: Build, qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """eager_attention_forward: scores (b, a, n, m) times 1.0, bias and mask added, softmax as they come."""
    query, key, value = qkv
    weights = scale(matmul_heads(query, permute(key, (0, 1, 3, 2))))
    weights = add(weights, bias)
    if mask is not None:
        weights = add(weights, mask)
    weights = softmax_last(to(weights, "fp32") if build.kernels.autocast else weights)
    if build.kernels.use_dropout:
        weights = dropout(weights, build.config.attention_dropout)
    out = matmul_heads(build.narrow(weights), value)
    return contiguous(permute(out, HEADS_FIRST)), weights


def _fused(build: Build, qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor, crosses: bool) -> Tensor:
    """sdpa_attention_forward as it ends on CUDA: the efficient kernel, dropout inside."""
    query, key, value = qkv
    decodes = build.kind.stack == "cross"
    causal = decodes and not crosses and query.shape[2] is not ONE
    mask = bias_mask(build, bias, causal)
    out = efficient_attention(
        query, key, value, spread(build, mask, query, key, decodes and not crosses)
    )
    return contiguous(permute(out, HEADS_FIRST))


def _feed_forward(build: Build, x: Tensor) -> Tensor:
    forwarded = t5_norm(build, x, "mlp_norm")
    forwarded = _gated(build, forwarded) if build.config.gated_mlp else _plain(build, forwarded)
    return _sum(build, x, forwarded, "mlp")


def _plain(build: Build, x: Tensor) -> Tensor:
    """wi, activation, dropout, wo; its input is brought to wo's dtype first (under autocast, twice)."""
    x = up(build, x)
    x = activated(build, x)
    x = drop(build, x, "mlp_inner_dropout")
    x = to(x, build.kernels.param_dtype)
    return down(build, x)


def _gated(build: Build, x: Tensor) -> Tensor:
    gated = activated(build, gate(build, x))
    linear = up(build, x)
    build.at("gate_mul", "mlp")
    x = mul(gated, linear)
    x = drop(build, x, "mlp_inner_dropout")
    x = to(x, build.kernels.param_dtype)
    return down(build, x)
