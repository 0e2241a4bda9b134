"""Matrix products: linear layers, batched products, and their gradients.

FLOPs are counted where a product runs: 2 m n k each, under `forward`, `dgrad`, `wgrad` or, for a
product repeated by a checkpoint, `recompute`.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.shape import flatten_tokens, reshape
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import Size, product
from memcalc.engine.tensors import Shape, Tape, Tensor


def count_flops(tape: Tape, kind: str, flops: Size) -> None:
    """Add executed FLOPs to the tape and to the ledger's record of the op at work."""
    if tape.recomputing and kind == "forward":
        kind = "recompute"
    tape.add_flops(kind, flops)
    record = tape.records.get((tape.block, tape.op))
    if record is not None and kind != "recompute":
        record.add_flops(kind, flops)


def dispatched(
    tape: Tape,
    name: str,
    outputs: list[tuple[Shape, str]],
    flops: Size,
    divided: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Outputs of an operator selective checkpointing may keep: made, or taken from its cache.

    Forward FLOPs are counted where they are made. divided: an operand of which each of several ranks
    adds a part, made for this operator.
    """

    def compute() -> tuple[Tensor, ...]:
        count_flops(tape, "forward", flops)
        part = None if divided is None else tape.empty("div", divided.shape, divided.dtype)
        made = tuple(tape.empty(name, shape, dtype) for shape, dtype in outputs)
        del part
        return made

    return tape.dispatch[-1].outputs(name, compute) if tape.dispatch else compute()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, divided: bool = False) -> Tensor:
    """x (..., i) times weight (o, i) transposed, plus bias (o): (..., o).

    Keeps x for the weight's gradient and the weight for x's. Without a bias the weight's gradient is
    computed before the input's (mm), with one after it (addmm): 2 T i o FLOPs each. Without a bias
    the weight is transposed before x is viewed as rows, so that its gradient arrives after x's; with
    one after it, so that its gradient arrives before x's and after the bias's.
    divided: the product is a term of a sum over ranks, each of which adds a part of the bias.
    """
    if bias is None and len(x.shape) > 2 and weight.node is None:
        weight = _transposed(weight)
    rows = flatten_tokens(x)
    if bias is not None:
        weight = _transposed(weight)
    out_features = weight.shape[0]
    inputs = (rows, weight) if bias is None else (rows, weight, bias)
    node = node_for(_linear_backward if bias is None else _linear_bias_backward, *inputs)
    if node:
        node.save(rows if weight.requires_grad else None, "wgrad")
        node.save(_seen_transposed(weight) if x.requires_grad else None, "dgrad")
    flops = rows.numel * out_features * 2
    name = "mm" if bias is None else "addmm"
    made: list[tuple[Shape, str]] = [((rows.shape[0], out_features), _out_dtype(x, weight))]
    (out,) = dispatched(x.tape, name, made, flops, bias if divided else None)
    if x.tape.record is not None:
        x.tape.record.input_shape = x.shape
        x.tape.record.output_shape = (*x.shape[:-1], out_features)
        x.tape.record.gemms.append((rows.shape[0], out_features, rows.shape[1]))
    if node:
        node.meta = flops
        out = node.output(out)
    return reshape(out, (*x.shape[:-1], out_features))


def _transposed(weight: Tensor) -> Tensor:
    """A weight behind a node of its own, where a gradient will wait for older nodes."""
    if not weight.requires_grad or not weight.tape.grad_enabled:
        return weight
    return Node(weight.tape, _as_it_is, (weight,)).output(weight.detach())


def _seen_transposed(weight: Tensor) -> Tensor:
    """A weight as the product saves it: columns first, which only a copy of it takes notice of."""
    view = weight.view_as(weight.shape, (1, 0), None)
    view.name = weight.name
    return view


def _as_it_is(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def _out_dtype(x: Tensor, weight: Tensor) -> str:
    assert x.dtype == weight.dtype, f"linear of {x.dtype} with {weight.dtype} at {x.tape.op}"
    return x.dtype


def _linear_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    grad_weight = _weight_gradient(node, gradient, saved) if node.needs[1] else None
    grad_x = _input_gradient(node, gradient, saved) if node.needs[0] else None
    return [grad_x, grad_weight]


def _linear_bias_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    grad_x = _input_gradient(node, gradient, saved) if node.needs[0] else None
    grad_weight = _weight_gradient(node, gradient, saved) if node.needs[1] else None
    return [grad_x, grad_weight, gradient]


def _weight_gradient(node: Node, gradient: Tensor, saved: list[Any]) -> Tensor:
    count_flops(gradient.tape, "wgrad", node.meta)
    gradient.tape.using((gradient, saved[0]))
    return gradient.tape.empty("mm", node.inputs[1][0], gradient.dtype)


def _input_gradient(node: Node, gradient: Tensor, saved: list[Any]) -> Tensor:
    count_flops(gradient.tape, "dgrad", node.meta)
    gradient.tape.using((gradient, saved[1]))
    return gradient.tape.empty("mm", node.inputs[0][0], gradient.dtype)


def bmm(x: Tensor, y: Tensor) -> Tensor:
    """Batched product (n, i, j) x (n, j, k): keeps both factors, each for the other's gradient."""
    node = node_for(_bmm_backward, x, y)
    if node:
        node.save(y if x.requires_grad else None, "dgrad")
        node.save(x if y.requires_grad else None, "dgrad")
    flops = x.numel * y.shape[-1] * 2
    shape = (*x.shape[:-1], y.shape[-1])
    (out,) = dispatched(x.tape, "bmm", [(shape, x.dtype)], flops)
    if node:
        node.meta = flops
        return node.output(out)
    return out


def _bmm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape = gradient.tape
    results: Grads = [None, None]
    for i in (1, 0):
        if node.needs[i]:
            count_flops(tape, "dgrad", node.meta)
            tape.using((gradient, saved[i]))
            results[i] = tape.empty("bmm", node.inputs[i][0], gradient.dtype)
    return results


def baddbmm(x: Tensor, y: Tensor) -> Tensor:
    """bias + alpha x y for a bias without gradient: as `bmm`, each gradient scaled by alpha."""
    node = node_for(_baddbmm_backward, x, y)
    if node:
        node.save(x if y.requires_grad else None, "dgrad")
        node.save(y if x.requires_grad else None, "dgrad")
    flops = x.numel * y.shape[-1] * 2
    out = x.tape.empty("baddbmm", (*x.shape[:-1], y.shape[-1]), x.dtype)
    count_flops(x.tape, "forward", flops)
    if node:
        node.meta = flops
        return node.output(out)
    return out


def _baddbmm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape = gradient.tape
    results: Grads = [None, None]
    for i in (0, 1):
        if node.needs[i]:
            count_flops(tape, "dgrad", node.meta)
            product = tape.empty("bmm", node.inputs[i][0], gradient.dtype)
            results[i] = tape.empty("mul.Scalar", product.shape, gradient.dtype)
            del product
    return results


def matmul_heads(x: Tensor, y: Tensor) -> Tensor:
    """torch.matmul of (b, a, i, j) and (b, a, j, k): folded to three dims, copied where it must."""
    n = product(x.shape[:2])
    folded = bmm(
        reshape(x, (n, *x.shape[2:])),
        reshape(y, (n, *y.shape[2:])),
    )
    return reshape(folded, (*x.shape[:3], y.shape[-1]))
