"""gpt-oss: eager attention with a sink logit for each head, and its way of rotating.

Shapes: query (b, a, s, d), key and value (b, k, s, d), scores (b, a, s, s + 1): the last column is
the head's sink, dropped after the softmax. cos and sin have d/2 columns.
Source: transformers 5.23, models/gpt_oss/modeling_gpt_oss.py. Checked by: oracle/test_hf_moe.py.
"""

from __future__ import annotations

from memcalc.engine.aten.latent import subtract
from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import add, dropout, mul, scale, softmax_last, to
from memcalc.engine.aten.routing import max_last
from memcalc.engine.aten.shape import cat, contiguous, expand, narrow, permute, reshape, split
from memcalc.engine.blocks.attention import HEADS_FIRST, repeat_kv
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def sink_attention(
    build: Build, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (b, s, a, d) and attention weights; softmax in the compute dtype, maxima taken off."""
    dtype = build.kernels.compute_dtype
    query, key, value = to(query, dtype), to(key, dtype), to(value, dtype)
    keys, values = repeat_kv(build, key), repeat_kv(build, value)
    weights = scale(matmul_heads(query, permute(keys, (0, 1, 3, 2))))
    weights = add(weights, mask)
    sinks = _sinks(build)
    logits = cat((weights, sinks), -1)
    logits = subtract(logits, max_last(logits, True)[0])
    probs = softmax_last(logits)
    scores = narrow(probs, keys.shape[2])
    weights = scores
    if build.kernels.use_dropout:
        weights = dropout(scores, build.config.attention_dropout)
    out = matmul_heads(to(weights, dtype), values)
    return contiguous(permute(out, HEADS_FIRST)), weights


def _sinks(build: Build) -> Tensor:
    """The sinks (a), one a head, as a column of the scores (b, a, s, 1): a view."""
    column = reshape(build.param("sinks", (build["a"],)), (ONE, build["a"], ONE, ONE))
    return expand(column, (build["b"], build["a"], build["s"], ONE))


def rotate_halves(build: Build, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(x1 cos - x2 sin, x2 cos + x1 sin): each half of a head with tables of d/2 columns."""
    half = build["r/2"]
    first, second = split(x, (half, half))
    low = subtract(mul(first, cos), mul(second, sin))
    high = add(mul(second, cos), mul(first, sin))
    return cat((low, high), -1, build["r"])
