"""transformers' quantised caches as an attention layer meets them: fp8 as it is traced, grouped integers.

fp8: one scale a tensor, made of the prompt; new positions are divided by it and joined, and a step reads
all of them widened to fp32, times the scale, in the activations' dtype. Old and new, and what was made of
the new positions, live until the update returns.
grouped (quanto, HQQ: 8, 4 or 2 bits in groups of 64 with a scale and a zero point): a step widens all that
is packed and joins it with the residual, the last positions, kept as they are until there are 128 of them;
then all is packed anew. The packed tensors stand outside the trace, and all of the past is taken to be
packed; scratch of packing is not seen.
Source: transformers 5.23, cache_utils.py (Fp8QuantizedLayer, QuantizedLayer).
Checked by: oracle/test_kv_cache_quantised.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.blocks.cache import KeyCache
    from memcalc.engine.build import Build


def fp8_update(cache: KeyCache, build: Build, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Fp8QuantizedLayer.update: keys and values that attention reads."""
    if not cache.kind.filled:
        for new in (key, value):
            scale = _scale(new)
            cache.held.append((_divided(new), scale))
        return key, value
    tape = build.tape
    old = [
        tape.earlier_made("cat", (*new.shape[:2], build["s_p"], new.shape[3]), "fp8")
        for new in (key, value)
    ]
    fresh = [_divided(new) for new in (key, value)]
    joined = []
    for before, new in zip(old, fresh, strict=True):
        tape.loads(before, new)
        shape = (*new.shape[:2], build["s_kv"], new.shape[3])
        joined.append(tape.empty("cat", shape, "fp8"))
    whole_key, whole_value = (_widened(one, key.dtype) for one in joined)
    cache.held.append((joined[0], joined[1]))
    return whole_key, whole_value


def _scale(x: Tensor) -> Tensor:
    """Largest magnitude over fp8's largest, a scalar in fp32."""
    tape = x.tape
    tape.loads(x)
    magnitudes = out_like("abs", x)
    tape.loads(magnitudes)
    largest = tape.empty("amax", (ONE,), x.dtype)
    del magnitudes
    wide = tape.empty("_to_copy", (ONE,), "fp32")
    del largest
    share = tape.empty("div.Tensor", (ONE,), "fp32")
    del wide
    return tape.empty("clamp", share.shape, "fp32")


def _divided(x: Tensor) -> Tensor:
    """x over its scale, in fp8: by way of fp32."""
    tape = x.tape
    tape.loads(x)
    wide = out_like("_to_copy", x, "fp32")
    tape.loads(wide)
    quotient = out_like("div.Tensor", wide)
    del wide
    tape.loads(quotient)
    return out_like("_to_copy", quotient, "fp8")


def _widened(x: Tensor, dtype: str) -> Tensor:
    """x times its scale, in the activations' dtype: by way of fp32."""
    tape = x.tape
    tape.loads(x)
    wide = out_like("_to_copy", x, "fp32")
    tape.loads(wide)
    scaled = out_like("mul.Tensor", wide)
    del wide
    tape.loads(scaled)
    return out_like("_to_copy", scaled, dtype)


def grouped_update(
    cache: KeyCache, build: Build, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """QuantizedLayer.update: keys and values that attention reads."""
    if not cache.kind.filled:
        return key, value
    tape, wide = build.tape, []
    for new in (key, value):
        shape = (*new.shape[:2], build["s_p"], new.shape[3])
        packed = tape.external(shape, "fp8")
        tape.loads(packed)
        wide.append(tape.empty("dequantize", shape, new.dtype))
    whole = []
    for packed, new in zip(wide, (key, value), strict=True):
        tape.loads(packed, new)
        whole.append(tape.empty("cat", (*new.shape[:2], build["s_kv"], new.shape[3]), new.dtype))
    return whole[0], whole[1]
