"""What PEFT adds to a linear of a block, and which of a model's own parameters train beside it.

Symbols: x (b, s, i) the linear's input, result (b, s, o) its output, r the rank. LoRA adds
B(A(dropout(x))) times a number; A (r, i), B (o, r). What frozen weights spare (inputs of products
that only a weight's gradient would read, gradients, states) is not stated anywhere: it follows from
leaves that need no gradient.
Source: PEFT 0.21.2, tuners/lora/layer.py (Linear.forward), tuners/lora/bnb.py.
Checked by: oracle/test_peft.py, oracle/test_qlora.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from memcalc.engine.adapters.dora import with_magnitude
from memcalc.engine.adapters.leaf import added
from memcalc.engine.adapters.svd import RANK, with_svd
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import add, dropout, out_like, scale, to
from memcalc.engine.aten.quantised import quantised_linear
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build


def adapted(
    build: Build, x: Tensor, result: Tensor, name: str, features: tuple[Size, Size]
) -> Tensor:
    """The result of a linear of x, and its adapter's if it has one: an operator of its own.

    PEFT's forward has no other name for the result, so the caller must not keep one either.
    """
    adapter = build.kernels.adapter
    if adapter is None or name not in adapter.targets:
        return result
    record = build.tape.records[build.tape.block, build.tape.op]
    op, part = build.tape.op, record.part
    build.at(f"{name}.{adapter.method}", part)
    dtype = result.dtype
    if adapter.method == "adalora":
        result = with_svd(build, x, result, name, features)
        build.at(op, part)
        return result
    if adapter.quantised is None:
        x = to(x, adapter.dtype)
        if adapter.method == "dora":
            result = _dora(build, x, result, name, features)
        else:
            result = add(result, scale(_low_rank(build, x, name, features)))
        result = to(result, dtype)
        build.at(op, part)
        return result
    if adapter.quantised.bits == 4:
        result = _cloned(result)
    if not build.kernels.autocast:
        x = to(x, adapter.dtype)
    output = scale(_low_rank(build, x, name, features))
    if not build.kernels.autocast:
        output = to(output, dtype)
    result = add(result, output)
    build.at(op, part)
    return result


def _dora(
    build: Build, x: Tensor, result: Tensor, name: str, features: tuple[Size, Size]
) -> Tensor:
    base: Tensor | None = result
    adapter = build.kernels.adapter
    if adapter is not None and adapter.dropout:
        x = dropout(x, 0.5)
        base = None
    low_rank = partial(_factors, build, name=name, features=features)
    return add(result, with_magnitude(build, x, base, name, low_rank))


def packed_linear(build: Build, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear whose frozen matrix bitsandbytes packs: of 4 bits computed in one dtype, given back in x's.

    Source: bitsandbytes 0.50.2, nn/modules.py (Linear4bit, Linear8bitLt).
    """
    adapter, compute = build.kernels.adapter, build.kernels.compute_dtype
    assert adapter is not None and adapter.quantised is not None
    if adapter.quantised.bits == 8:
        return quantised_linear(x, weight, bias, adapter.quantised)
    dtype = x.dtype
    x = to(x, compute)
    bias = None if bias is None else to(bias, compute)
    return to(quantised_linear(x, weight, bias, adapter.quantised), dtype)


def _cloned(x: Tensor) -> Tensor:
    """x.clone(), which PEFT makes of a 4-bit linear's result."""
    node = node_for(_pass_backward, x)
    out = out_like("clone", x)
    return node.output(out) if node else out


def _pass_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def _low_rank(build: Build, x: Tensor, name: str, features: tuple[Size, Size]) -> Tensor:
    """B(A(dropout(x))): nothing has a name for what is dropped once A has run."""
    i, o = features
    rank = build[RANK]
    return _factor(
        build, _factor(build, _dropped(build, x), f"{name}.lora_A", (rank, i)),
        f"{name}.lora_B", (o, rank),
    )  # fmt: skip


def _factors(build: Build, x: Tensor, name: str, features: tuple[Size, Size]) -> Tensor:
    """B(A(x)) of an x that has a name."""
    i, o = features
    rank = build[RANK]
    return _factor(
        build, _factor(build, x, f"{name}.lora_A", (rank, i)), f"{name}.lora_B", (o, rank)
    )


def _dropped(build: Build, x: Tensor) -> Tensor:
    adapter = build.kernels.adapter
    return dropout(x, 0.5) if adapter is not None and adapter.dropout else x


def _factor(build: Build, x: Tensor, name: str, shape: Shape) -> Tensor:
    """A linear without bias whose weight is the adapter's own."""
    weight = added(build, f"{name}.weight", shape)
    if not build.kernels.autocast:
        return linear(x, weight)
    weight = build.cast_param(weight)
    narrow = to(x, build.kernels.compute_dtype)
    return linear(narrow, weight)
