"""One layer of nanotron's LlamaDecoderLayer: flash-attn's norm, rotary embedding and attention.

Shapes: x (s_t, b, h); heads are laid out (b, s, a, d) for the kernels. q, k and v are one copy of the
projection, of which q stays a view (rotated in place): its memory is kept with it. k and v are copied
together once more. Locals live as long as in the methods of the same name: what attention returned
until the layer is done (its result is a dict), the projection until attention is done.
Source: huggingface/nanotron 0.5, models/llama.py (CausalSelfAttention, MLP, LlamaDecoderLayer),
nn/layer_norm.py; flash-attention 2.7, layers/rotary.py (RotaryEmbedding.forward, inplace=True).
Checked by: unit/test_nanotron_saved.py.
"""

from __future__ import annotations

from memcalc.engine.aten import matmul
from memcalc.engine.aten.collective import summed
from memcalc.engine.aten.nanotron_ops import (
    Divided,
    flash_varlen,
    linear,
    rotated_in_place,
    unbind,
)
from memcalc.engine.aten.pointwise import add, mul
from memcalc.engine.aten.shape import cat, contiguous, permute, reshape, split, unsqueeze
from memcalc.engine.aten.te_linear import norm
from memcalc.engine.blocks.megatron_parts import all_rows, norm_parameters, options, own_rows
from memcalc.engine.blocks.mlp import activate
from memcalc.engine.build import Build
from memcalc.engine.ledger import note_for_backward
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Tensor, bytes_of

SEQUENCE_FIRST = (1, 0, 2)
_QKV_OUTSIDE = (2, 1, 0, 3, 4)  # (s, b, 3, a, d) to (3, b, s, a, d)
_KV_INSIDE = (1, 2, 0, 3, 4)  # (2, b, s, k, d) to (b, s, 2, k, d)


def nanotron_block(build: Build, x: Tensor) -> Tensor:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    build.at("attn_norm", "norm")
    normed = norm(x, norm_parameters(build, "attn_norm", build["h"]))
    attended = attention(build, normed)
    build.at("attn_residual", "residual")
    x = add(attended, x)
    build.at("mlp_norm", "norm")
    normed = norm(x, norm_parameters(build, "mlp_norm", build["h"]))
    normed = mlp(build, normed)
    build.at("mlp_residual", "residual")
    return add(normed, x)


def column(build: Build, x: Tensor, name: str, features: tuple[Size, Size]) -> Tensor:
    """A linear (in, out) divided by output columns.

    All-reduce mode is a plain F.linear; the other an autograd function that gathers the sequence.
    """
    i, o = features
    weight = build.param(f"{name}.weight", (o, i))
    chosen = options(build)
    if chosen.split and not chosen.sequence:
        note_for_backward(build.tape, "all_reduce", bytes_of(x.shape, x.dtype), "tp")
        return matmul.linear(x, weight)
    return linear(x, weight, Divided(gathers=chosen.sequence, rows=all_rows(build)))


def row(build: Build, x: Tensor, name: str, features: tuple[Size, Size]) -> Tensor:
    """A linear (in, out) divided by input rows; the ranks' sum is scattered along the sequence."""
    i, o = features
    weight = build.param(f"{name}.weight", (o, i))
    chosen = options(build)
    if chosen.split and not chosen.sequence:
        out = matmul.linear(x, weight)
        summed(out)
        return out
    return linear(x, weight, Divided(scatters=chosen.sequence, rows=own_rows(build)))


def attention(build: Build, x: Tensor) -> Tensor:
    """CausalSelfAttention.forward in training."""
    b, s, a, k, d = (build[letter] for letter in "bsakd")
    build.at("qkv_proj", "attention")
    mixed = column(build, x, "qkv_proj", (build["h"], (a + k * 2) * d))
    query, key, value = _separated(build, mixed)
    build.at("rope", "attention")
    pair = cat((unsqueeze(key, 0), unsqueeze(value, 0)), 0, number(2))
    pair = contiguous(permute(pair, _KV_INSIDE))
    query, pair = rotated_in_place(query), rotated_in_place(pair)
    key, value = split(pair, (ONE, ONE), 2)
    build.at("attention", "attention")
    query = reshape(query, (b * s, a, d))
    key, value = reshape(key, (b * s, k, d)), reshape(value, (b * s, k, d))
    out = flash_varlen(query, key, value, (b, s))
    build.at("o_proj", "attention")
    out = permute(reshape(out, (b, s, a * d)), SEQUENCE_FIRST)
    out = row(build, out, "o_proj", (a * d, build["h"]))
    del mixed
    return out


def _separated(build: Build, mixed: Tensor) -> tuple[Tensor, ...]:
    """q (b, s, a, d), k and v (b, s, k, d): one copy of all three, or of each where k < a."""
    b, s, a, k, d = (build[letter] for letter in "bsakd")
    if a is k:
        apart = reshape(mixed, (s, b, number(3), a, d))
        return unbind(contiguous(permute(apart, _QKV_OUTSIDE)))
    parts = split(mixed, (a * d, k * d, k * d))
    rows = (contiguous(permute(part, SEQUENCE_FIRST)) for part in parts)
    heads = (a, k, k)
    return tuple(reshape(one, (b, s, n, d)) for one, n in zip(rows, heads, strict=True))


def mlp(build: Build, x: Tensor) -> Tensor:
    """down(act(gate) * up), gate and up one linear."""
    h, f = build["h"], build["f"]
    build.at("gate_up_proj", "mlp")
    merged = column(build, x, "gate_up_proj", (h, f * 2))
    product = gated(build, merged)
    build.at("down_proj", "mlp")
    out = row(build, product, "down_proj", (f, h))
    del merged
    return out


def gated(build: Build, merged: Tensor) -> Tensor:
    """GLUActivation: two operators on halves of one tensor."""
    f = build["f"]
    gate, up = split(merged, (f, f))
    build.at("activation", "mlp")
    return mul(activate(gate, build.config.hidden_act), up)
