"""litgpt's Block: one projection for q, k and v, rotation by slices and joins, every head its own keys.

Shapes: x (b, s, h); heads first, (b, a, s, d). Query and key are joined anew after rotation even where
nothing stays unrotated, and keys and values are copied to all a query heads. The locals of a `forward`
are locals here, so they live as long: the projection until attention returns, attention's result and
both halves of the MLP until their module returns. Tables are fp32 where one GPU runs the model, since
setting max_seq_length makes them anew; FullyShardedDataParallel casts buffers to 16 bit.
Source: Lightning-AI/litgpt litgpt/model.py of 2025 (Block, CausalSelfAttention, LLaMAMLP, GptNeoxMLP,
apply_rope); lightning/fabric/plugins/precision/fsdp.py (buffer_dtype).
Checked by: unit/test_stack_litgpt.py, event for event.
"""

from __future__ import annotations

from memcalc.engine.aten.litgpt_ops import whole_slice
from memcalc.engine.aten.pointwise import add, mul, neg, to
from memcalc.engine.aten.shape import cat, narrow, permute, reshape, split
from memcalc.engine.blocks.attention import HEADS_FIRST, fused_core, repeat_heads
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.mlp import activated, down, gate, up
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.sizes import ZERO, Size
from memcalc.engine.tensors import Tensor


def litgpt_block(build: Build, x: Tensor, context: Context) -> Tensor:
    """mlp(norm(y)) + y with y = attention(norm(x)) + x; side by side where the model has it so."""
    normed = norm(build, x, "attn_norm")
    attended = _attention(build, normed, context)
    if build.config.parallel_block:
        if build.config.parallel_norms == 2:
            normed = norm(build, x, "mlp_norm")
        build.at("attn_residual", "residual")
        x = add(attended, x)
    else:
        build.at("attn_residual", "residual")
        x = add(attended, x)
        normed = norm(build, x, "mlp_norm")
    fed = _mlp(build, normed)
    build.at("mlp_residual", "residual")
    return add(fed, x)


def _attention(build: Build, x: Tensor, context: Context) -> Tensor:
    config, a, k, d = build.config, build["a"], build["k"], build["d"]
    build.at("qkv_proj", "attention")
    widths = (a * d, k * d, k * d)
    out = build.linear(
        x, "qkv_proj", (build["h"], widths[0] + widths[1] + widths[2]), config.attention_bias
    )
    query, key, value = split(out, widths)
    query, key, value = (
        _by_heads(build, query, a), _by_heads(build, key, k), _by_heads(build, value, k),
    )  # fmt: skip
    build.at("rope", "attention")
    turned_query = _rotate(build, _first(build, query), context)
    turned_key = _rotate(build, _first(build, key), context)
    query = cat((turned_query, _rest(build, query)), -1, d)
    key = cat((turned_key, _rest(build, key)), -1, d)
    build.at("attention", "attention")
    key = repeat_heads(build, key)
    value = repeat_heads(build, value)
    joined = fused_core(build, query, key, value)
    joined = reshape(permute(joined, HEADS_FIRST), (build["b"], build["s"], a * d))
    build.at("o_proj", "attention")
    return build.linear(joined, "o_proj", (a * d, build["h"]), config.attention_output_bias)


def _by_heads(build: Build, x: Tensor, heads: Size) -> Tensor:
    return permute(reshape(x, (build["b"], build["s"], heads, build["d"])), HEADS_FIRST)


def _first(build: Build, x: Tensor) -> Tensor:
    """The columns of a head that turn."""
    return whole_slice(x) if build["r"] is build["d"] else narrow(x, build["r"])


def _rest(build: Build, x: Tensor) -> Tensor:
    """The columns that do not turn: none is a slice too, and has a backward."""
    return narrow(x, ZERO if build["r"] is build["d"] else build["d-r"])


def _rotate(build: Build, x: Tensor, context: Context) -> Tensor:
    cos, sin = context[0], context[1]
    half = build["r/2"]
    first, second = narrow(x, half), narrow(x, half)
    turned = cat((neg(second), first), -1, x.shape[3])
    out = add(mul(x, cos), mul(turned, sin))
    return to(out, x.dtype)


def _mlp(build: Build, x: Tensor) -> Tensor:
    """Both projections live until the module returns; without a gate a name is given anew."""
    if not build.config.gated_mlp:
        x = up(build, x)
        x = activated(build, x)
        return down(build, x)
    gated, widened = gate(build, x), up(build, x)
    inner = activated(build, gated)
    build.at("gate_mul", "mlp")
    inner = mul(inner, widened)
    return down(build, inner)
