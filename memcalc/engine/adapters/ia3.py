"""IA3: a trained vector times a linear's result, or times its input where it ends an MLP.

Symbols: x (b, s, i), result (b, s, o), the vector (o, 1) or (1, i). The product with the vector is in
the adapter's dtype and cast back; both factors are kept for each other's gradient.
Source: PEFT 0.21.2, tuners/ia3/layer.py (Linear.forward). Checked by: oracle/test_peft.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.engine.adapters.leaf import added
from memcalc.engine.aten.pointwise import mul, scale, to
from memcalc.engine.aten.shape import reshape
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

#: The linear that ends an MLP: its input is scaled, not its result.
_FEEDS = "down_proj"


def rescaled(
    build: Build,
    x: Tensor,
    name: str,
    features: tuple[Size, Size],
    base: Callable[[Tensor], Tensor],
) -> Tensor:
    """A linear with its vector; base: the linear alone."""
    adapter = build.kernels.adapter
    assert adapter is not None
    op, part = build.tape.op, build.tape.records[build.tape.block, build.tape.op].part
    dtype = x.dtype
    build.at(f"{name}.ia3", part)
    factor = _vector(build, name, features)
    if name == _FEEDS:
        x = to(x, adapter.dtype)
        between = to(mul(x, factor), dtype)
        build.at(op, part)
        return base(between)
    build.at(op, part)
    result = base(x)
    dtype = result.dtype
    build.at(f"{name}.ia3", part)
    result = to(mul(result, factor), dtype)
    build.at(op, part)
    return result


def _vector(build: Build, name: str, features: tuple[Size, Size]) -> Tensor:
    """The vector, flattened and multiplied by the number 1."""
    shape = (ONE, features[0]) if name == _FEEDS else (features[1], ONE)
    width = shape[1] if name == _FEEDS else shape[0]
    return scale(reshape(added(build, f"{name}.ia3_l", shape), (width,)))
