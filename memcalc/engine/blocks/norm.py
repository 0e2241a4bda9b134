"""Norms: layer norm, and RMSNorm in the three ways it is computed.

Symbols: T = b s tokens, h width. RMSNorm(x) = x / sqrt(mean(x^2) + eps) * weight.
Source: Zhang and Sennrich 2019 (arXiv:1910.07467). Checked by: oracle/test_torch_events.py.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import fused_rms_norm, layer_norm
from memcalc.engine.aten.pointwise import mean_last, mul, rsqrt, shift, square, to
from memcalc.engine.build import Build
from memcalc.engine.parallel.tensor.dtensor import from_local
from memcalc.engine.parallel.tensor.tensor_layers import norm_placed, normed_part
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor


def norm(build: Build, x: Tensor, op: str, width: Size | None = None) -> Tensor:
    """The model's norm over the last dim, as the op `op`."""
    build.at(op, "norm")
    size = build["h"] if width is None else width
    placed = norm_placed(build, op)
    if placed:
        x = from_local(x)
    weight = build.param(f"{op}.weight", (size,), placed=placed)
    if build.config.norm_type == "layernorm":
        has_bias = build.config.norm_bias
        bias = build.param(f"{op}.bias", (size,), placed=placed) if has_bias else None
        bias = None if bias is None else _as_cast(build, bias)
        weight = _as_cast(build, weight)
        return normed_part(build, layer_norm(_as_cast(build, x), weight, bias))
    return normed_part(build, _rms_norm(build, x, weight))


def _rms_norm(build: Build, x: Tensor, weight: Tensor) -> Tensor:
    if build.config.norm_unit_offset:
        return _unit_offset(x, weight)
    kind = build.kernels.norm
    if kind == "fused":
        weight = _as_cast(build, weight)
        return fused_rms_norm(_as_cast(build, x), weight)
    if kind == "decomposed":
        weight = _as_cast(build, weight)
        return _decomposed(_as_cast(build, x), weight)
    if build.kernels.traits.code == "litgpt":
        return _with_wide_weight(x, weight)
    if build.kernels.traits.code != "plain":
        return _in_one_expression(x, weight)
    if build.kernels.traits.norm_casts_last:
        return _casting_last(x, weight)
    return _by_hand(x, weight)


def _as_cast(build: Build, x: Tensor) -> Tensor:
    """Autocast runs layer_norm and rms_norm, as operators of torch, on fp32 and returns fp32."""
    return to(x, "fp32") if build.kernels.autocast else x


def _unit_offset(x: Tensor, weight: Tensor) -> Tensor:
    """Gemma: 1 + weight in fp32 times the fp32 result, then the cast."""
    out = _normalized(to(x, "fp32"))
    out = mul(out, shift(to(weight, "fp32")))
    return to(out, x.dtype)


def _normalized(wide: Tensor) -> Tensor:
    return mul(wide, rsqrt(_variance(wide)))


def _by_hand(x: Tensor, weight: Tensor) -> Tensor:
    """As model code writes it: statistics and product in fp32, then weight times the cast result."""
    wide = to(x, "fp32")
    variance = mean_last(square(wide))
    wide = mul(wide, rsqrt(shift(variance)))
    return mul(weight, to(wide, x.dtype))


def _in_one_expression(x: Tensor, weight: Tensor) -> Tensor:
    """torchtune and torchtitan: the cast result, of which no step has a name, times the weight."""
    wide = to(x, "fp32")
    normed = to(mul(wide, rsqrt(_variance(wide))), x.dtype)
    return mul(normed, weight)


def _with_wide_weight(x: Tensor, weight: Tensor) -> Tensor:
    """litgpt: x times x, the weight in fp32 too, one cast at the end."""
    wide = to(x, "fp32")
    mean = mean_last(mul(wide, wide))
    normed = mul(wide, rsqrt(shift(mean)))
    return to(mul(normed, to(weight, "fp32")), x.dtype)


def _casting_last(x: Tensor, weight: Tensor) -> Tensor:
    """OLMo-2: weight times the fp32 result, then the cast."""
    wide = to(x, "fp32")
    variance = mean_last(square(wide))
    wide = mul(wide, rsqrt(shift(variance)))
    return to(mul(weight, wide), x.dtype)


def _variance(wide: Tensor) -> Tensor:
    return shift(mean_last(square(wide)))


def _decomposed(x: Tensor, weight: Tensor) -> Tensor:
    """F.rms_norm where no fused kernel exists: everything in fp32, one cast at the end.

    The square and its mean are temporaries of one C++ expression and live until its end; the
    inverse is handed back with the result and outlives the cast.
    """
    wide = to(x, "fp32")
    squared = square(wide)
    mean = mean_last(squared)
    x.tape.in_place("add_.Scalar", mean)
    inverse = rsqrt(mean)
    del squared, mean
    normed = mul(mul(wide, inverse), weight)
    del wide
    return to(normed, x.dtype)
