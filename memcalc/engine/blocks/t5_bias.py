"""T5's position bias: a learned number a head and bucket of relative distance, added to the scores.

The first block of a stack makes it, (1, a, n, n) over n positions, and all blocks of the stack read it;
of cross attention it is zeros (1, a, n, m). What sdpa's efficient kernel gets of it is made anew in
every block: contiguous, causal in the decoder, rows padded to 16 elements.
Source: transformers 5.23, models/t5/modeling_t5.py (compute_bias) and
integrations/sdpa_attention.py (create_position_bias_mask); PyTorch 2.13,
aten/src/ATen/native/transformers/attention.cpp (preprocess_mask).
Checked by: oracle/test_hf_encoders.py, event for event.
"""

from __future__ import annotations

from memcalc.engine.aten.biased import pad_rows, where_allowed
from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.pointwise import to
from memcalc.engine.aten.shape import contiguous, expand, permute, reshape
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor


def relative_bias(build: Build, n: Size) -> Tensor:
    """(1, a, n, n) of the table (B, a), laid out as the lookup made it: heads innermost."""
    build.at("position_bias", "attention")
    tape = build.tape
    start = tape.empty("arange", (n,), "int64")
    queries = tape.empty("add.Tensor", (n,), "int64")
    del start
    keys = tape.empty("arange", (n,), "int64")
    distance = tape.empty("sub.Tensor", (n, n), "int64")
    bucket = _bucket(build, (n, n))
    table = build.param("relative_attention_bias.weight", (build["B"], build["a"]))
    values = embedding(table, bucket)
    del queries, keys, distance
    return permute(reshape(values, (ONE, n, n, build["a"])), (0, 3, 1, 2))


def _bucket(build: Build, square: tuple[Size, Size]) -> Tensor:
    """_relative_position_bucket: int64 (n, n), and its temporaries."""
    tape, both_ways = build.tape, build.kind.stack == "encoder"
    buckets = None
    if both_ways:
        ahead = tape.empty("gt.Scalar", square, "bool")
        whole = tape.empty("_to_copy", square, "int64")
        del ahead
        offset = tape.empty("mul.Tensor", square, "int64")
        del whole
        buckets = tape.empty("add.Tensor", square, "int64")
        del offset
        distance = tape.empty("abs", square, "int64")
    else:
        zeros = tape.empty("zeros_like", square, "int64")
        least = tape.empty("minimum", square, "int64")
        del zeros
        distance = tape.empty("neg", square, "int64")
        del least
    small = tape.empty("lt.Scalar", square, "bool")
    large = _large(build, square)
    chosen = tape.empty("where.self", square, "int64")
    if buckets is None:
        buckets = tape.empty("add.Tensor", square, "int64")
    else:
        tape.in_place("add_.Tensor", buckets, chosen)
    del distance, small, large, chosen
    return buckets


def _large(build: Build, square: tuple[Size, Size]) -> Tensor:
    """Buckets of distances that are binned by their logarithm, int64."""
    tape = build.tape
    wide = tape.empty("_to_copy", square, "fp32")
    for name in ("div.Tensor", "log", "div.Tensor", "mul.Tensor"):
        following = tape.empty(name, square, "fp32")
        wide = following
        del following
    bins = tape.empty("_to_copy", square, "int64")
    del wide
    shifted = tape.empty("add.Tensor", square, "int64")
    del bins
    last = tape.empty("full_like", square, "int64")
    out = tape.empty("minimum", square, "int64")
    del last, shifted
    return out


def no_bias(build: Build, query: Tensor, keys: Size) -> Tensor:
    """Zeros (1, a, n, m) in the query's dtype; with checkpointing they are made to need a gradient."""
    zeros = build.tape.empty("zeros", (ONE, build["a"], query.shape[2], keys), query.dtype)
    zeros.requires_grad = build.kind.recompute != "none"
    return zeros


def bias_mask(build: Build, bias: Tensor, causal: bool) -> Tensor:
    """create_position_bias_mask: the additive mask sdpa is given, (1, a, n, m)."""
    return _causal(build, bias, bias.shape[2]) if causal else contiguous(bias)


def spread(build: Build, mask: Tensor, query: Tensor, key: Tensor, over_target: bool) -> Tensor:
    """The mask as the kernel reads it: its rows padded, the same for every sequence."""
    if build.kernels.autocast:
        mask = to(mask, build.kernels.compute_dtype)
    if build.kernels.pads_bias[over_target]:
        mask = pad_rows(mask, key.shape[2].over(16) * 16)
    return expand(mask, (*query.shape[:3], key.shape[2]))


def _causal(build: Build, bias: Tensor, n: Size) -> Tensor:
    """where(key <= query, bias, lowest): (1, a, n, n); the condition lives until the copy is made."""
    tape = build.tape
    rows, columns = (tape.empty("arange", (n,), "int64") for _ in range(2))
    allowed = tape.empty("ge.Tensor", (n, n), "bool").view_as((ONE, ONE, n, n), None, None)
    del rows, columns
    mask = where_allowed(allowed, bias)
    return contiguous(mask)
