"""Attention under a boolean mask, as sdpa runs it: no flash kernel, a bias made anew in every layer.

Shapes: query (b, a, s, d), key and value (b, k, keys, d), mask (s, keys) of all sequences.
Source: transformers 5.23, integrations/sdpa_attention.py; PyTorch 2.13,
aten/src/ATen/native/transformers/attention.cpp (convert_boolean_attn_mask, preprocess_mask).
Checked by: oracle/test_peft_virtual.py, event for event.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import efficient_attention
from memcalc.engine.aten.pointwise import to
from memcalc.engine.aten.shape import contiguous, permute
from memcalc.engine.blocks.attention import HEADS_FIRST, repeat_kv
from memcalc.engine.blocks.t5_bias import spread
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def masked_attention(
    build: Build, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """sdpa with a mask: keys repeated to every head, the efficient kernel, (b, s, a, d)."""
    dtype = build.kernels.compute_dtype
    key, value = repeat_kv(build, key), repeat_kv(build, value)
    query, key, value = to(query, dtype), to(key, dtype), to(value, dtype)
    bias = spread(build, _additive(mask, query), query, key, False)
    out = efficient_attention(query, key, value, bias)
    return contiguous(permute(out, HEADS_FIRST))


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """where(mask, 0, lowest) in the query's dtype, (b, 1, s, keys)."""
    tape = query.tape
    lowest = tape.empty("scalar_tensor", (ONE,), query.dtype)
    zero = tape.empty("scalar_tensor", (ONE,), query.dtype)
    tape.loads(mask)
    out = tape.empty("where.self", (query.shape[0], ONE, *mask.shape), query.dtype)
    del lowest, zero
    return out
