"""DoRA: a low-rank adapter whose sum with the weight keeps a trained magnitude for every output.

Symbols: x (b, s, i) the input as the adapter's dtype, W (o, i) the frozen weight, m (o) the magnitudes,
n (o) the norms of W + BA, which take no gradient. Added to the linear's result:
(m/n - 1) W x + m/n B(A x). The product BA is written out in every forward by running A and B on the
identity (i, i), W + BA beside it; with dropout W x is computed again, of the dropped input.
Source: PEFT 0.21.2, tuners/lora/dora.py (DoraLinearLayer.forward), tuners/lora/variants.py.
Checked by: oracle/test_peft.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcalc.engine.adapters.leaf import added
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import add, mul, out_like, scale, shift, to
from memcalc.engine.aten.shape import permute, reshape
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.dtypes import promote
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

#: B(A(x)) of this linear, of any x.
LowRank = Callable[[Tensor], Tensor]


def with_magnitude(
    build: Build, x: Tensor, base: Tensor | None, name: str, low_rank: LowRank
) -> Tensor:
    """What DoRA adds to a linear's result. base: that result where it stands for W x, else None."""
    tape = build.tape
    weight = tape.leaves[f"layers.{tape.block}.{name}.weight"]
    o, i = weight.shape
    product = to(_written_out(build, i, low_rank), x.dtype)
    magnitude = added(build, f"{name}.lora_magnitude_vector", (o,))
    weight = to(weight, x.dtype)
    norms = _norms(weight, product.detach())
    share = reshape(over(magnitude, norms), (ONE, o))
    result = low_rank(x)
    if base is None:
        base = _again(build, x, weight)
    else:
        bias = tape.leaves.get(f"layers.{tape.block}.{name}.bias")
        base = base if bias is None else _without_bias(base, bias)
    return add(mul(shift(share), base), scale(mul(share, result)))


def _written_out(build: Build, i: Size, low_rank: LowRank) -> Tensor:
    """BA (o, i): A and B run on the identity. Its graph dies with it, unused."""
    adapter = build.kernels.adapter
    assert adapter is not None
    identity = build.tape.empty("eye", (i, i), adapter.dtype)
    return permute(low_rank(identity), (1, 0))


def _norms(weight: Tensor, product: Tensor) -> Tensor:
    """The norm of every row of W + BA, without a graph."""
    total = add(weight, scale(product))
    return total.tape.empty("linalg_vector_norm", (total.shape[0],), total.dtype)


def over(x: Tensor, y: Tensor) -> Tensor:
    """x / y, where y takes no gradient and is kept for x's."""
    node = node_for(_over_backward, x)
    if node:
        node.save(y, "wgrad")
    out = out_like("div.Tensor", x, promote(x.dtype, y.dtype))
    return node.output(out) if node else out


def _over_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("div.Tensor", gradient)]


def _without_bias(base: Tensor, bias: Tensor) -> Tensor:
    return add(base, bias)


def _again(build: Build, x: Tensor, weight: Tensor) -> Tensor:
    """W x of the dropped input."""
    if not build.kernels.autocast:
        return linear(x, weight)
    weight = to(weight, build.kernels.compute_dtype)
    return linear(to(x, build.kernels.compute_dtype), weight)
