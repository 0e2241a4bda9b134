"""Matrix products: linear layers, batched products, and their gradients.

A product is noted where it runs, 2 m n k FLOPs each, as `forward`, `dgrad` or `wgrad`.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.shape import flatten_tokens, reshape
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import Ran, gemm, gemm_shape, read_bytes
from memcalc.engine.sizes import ONE, Size, product
from memcalc.engine.tensors import Shape, Tape, Tensor


def dispatched(
    tape: Tape, ran: Ran, outputs: list[tuple[Shape, str]], divided: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Outputs of an operator selective checkpointing may keep: made, or taken from its cache.

    The kernel is noted where they are made. divided: an operand of which each of several ranks adds a
    part, made for this operator.
    """

    def compute() -> tuple[Tensor, ...]:
        part = None
        if divided is not None:
            tape.loads(divided)
            part = tape.empty("div", divided.shape, divided.dtype)
        tape.ran(ran)
        made = tuple(tape.empty(ran.name, shape, dtype) for shape, dtype in outputs)
        del part
        return made

    return tape.dispatch[-1].outputs(ran.name, compute) if tape.dispatch else compute()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, divided: bool = False) -> Tensor:
    """x (..., i) times weight (o, i) transposed, plus bias (o): (..., o).

    Keeps x for the weight's gradient and the weight for x's. Without a bias the weight's gradient is
    computed before the input's (mm), with one after it (addmm): 2 T i o FLOPs each. Without a bias
    the weight is transposed before x is viewed as rows, so that its gradient arrives after x's; with
    one after it, so that its gradient arrives before x's and after the bias's.
    divided: the product is a term of a sum over ranks, each of which adds a part of the bias.
    Without gradients, of rows that are not contiguous, the bias is added afterwards (at::linear).
    Rows that cannot be viewed as a matrix are copied, but where the weight is frozen: then sequences are
    multiplied one by one (LinearAlgebra.cpp, should_fold).
    """
    if bias is None and not weight.requires_grad and _cannot_fold(x):
        return _by_sequence(x, weight)
    if bias is not None and len(x.shape) > 2 and not x.is_contiguous() and not x.tape.grad_enabled:
        return _bias_added(linear(x, weight, None, divided), bias)
    if bias is None and len(x.shape) > 2 and weight.node is None:
        weight = _transposed(weight)
    rows = flatten_tokens(x)
    if bias is not None:
        weight = _transposed(weight)
    out_features = weight.shape[0]
    inputs = (rows, weight) if bias is None else (rows, weight, bias)
    node = node_for(_linear_backward if bias is None else _linear_bias_backward, *inputs)
    if node:
        keeps = weight.requires_grad or x.tape.keeps_inputs
        node.save(rows if keeps else None, "wgrad")
        node.save(_seen_transposed(weight) if x.requires_grad else None, "dgrad")
    name = "mm" if bias is None else "addmm"
    made: list[tuple[Shape, str]] = [((rows.shape[0], out_features), _out_dtype(x, weight))]
    ran = gemm(name, "forward", gemm_shape(rows.shape[0], out_features, rows.shape[1]), x.dtype)
    if bias is not None:
        ran = ran._replace(moved=ran.moved + read_bytes(bias))
    (out,) = dispatched(x.tape, ran, made, bias if divided else None)
    if x.tape.record is not None:
        x.tape.record.input_shape = x.shape
        x.tape.record.output_shape = (*x.shape[:-1], out_features)
        x.tape.record.gemms.append((rows.shape[0], out_features, rows.shape[1]))
    if node:
        out = node.output(out)
    return reshape(out, (*x.shape[:-1], out_features))


def _cannot_fold(x: Tensor) -> bool:
    """Whether (b, n, i) has no view as rows of a matrix."""
    if len(x.shape) < 3 or x.is_contiguous() or x.shape[0] is ONE:
        return False
    steps = x.strides
    return any(steps[d] is not steps[d + 1] * x.shape[d + 1] for d in range(len(steps) - 2))


def _by_sequence(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, n, i) times a frozen weight (o, i) transposed, which every sequence sees."""
    (b, n, i), o = x.shape, weight.shape[0]
    node = node_for(_by_sequence_backward, x, weight)
    if node:
        node.save(None, "wgrad")
        node.save(weight, "dgrad")
    ran = gemm("bmm", "forward", (b, n, o, i), x.dtype)
    (out,) = dispatched(x.tape, ran, [((b, n, o), _out_dtype(x, weight))])
    if x.tape.record is not None:
        x.tape.record.gemms.append((n, o, i))
    return node.output(out) if node else out


def _by_sequence_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    (b, n, i), o = node.inputs[0][0], node.inputs[1][0][0]
    gradient.tape.using((gradient, saved[1]))
    gradient.tape.ran(gemm("bmm", "dgrad", (b, n, i, o), gradient.dtype))
    return [gradient.tape.empty("bmm", (b, n, i), gradient.dtype), None]


def _bias_added(out: Tensor, bias: Tensor) -> Tensor:
    """out + bias: in place, but under a dispatch mode."""
    if not out.tape.watched:
        out.tape.in_place("add_", out, bias)
        return out
    out.tape.loads(out, bias)
    return out.tape.empty("add.Tensor", out.shape, out.dtype)


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
    (tokens, i), (o, _) = node.inputs[0][0], node.inputs[1][0]
    gradient.tape.using((gradient, saved[0]))
    gradient.tape.ran(gemm("mm", "wgrad", gemm_shape(o, i, tokens), gradient.dtype))
    return gradient.tape.empty("mm", node.inputs[1][0], gradient.dtype)


def _input_gradient(node: Node, gradient: Tensor, saved: list[Any]) -> Tensor:
    (tokens, i), (o, _) = node.inputs[0][0], node.inputs[1][0]
    gradient.tape.using((gradient, saved[1]))
    gradient.tape.ran(gemm("mm", "dgrad", gemm_shape(tokens, i, o), gradient.dtype))
    return gradient.tape.empty("mm", node.inputs[0][0], gradient.dtype)


def bmm(x: Tensor, y: Tensor) -> Tensor:
    """Batched product (n, i, j) x (n, j, k): keeps both factors, each for the other's gradient."""
    node = node_for(_bmm_backward, x, y)
    if node:
        node.save(y if x.requires_grad else None, "dgrad")
        node.save(x if y.requires_grad else None, "dgrad")
    shape = (*x.shape[:-1], y.shape[-1])
    (out,) = dispatched(x.tape, gemm("bmm", "forward", _batched(x, y), x.dtype), [(shape, x.dtype)])
    return node.output(out) if node else out


def _batched(x: Tensor, y: Tensor) -> tuple[Size, ...]:
    """(batch, m, n, k) of the product of (batch, m, k) and (batch, k, n)."""
    return (x.shape[0], x.shape[1], y.shape[-1], x.shape[-1])


def _bmm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape = gradient.tape
    results: Grads = [None, None]
    for i in (1, 0):
        if node.needs[i]:
            tape.using((gradient, saved[i]))
            tape.ran(_factor_gradient(node, i, gradient.dtype))
            results[i] = tape.empty("bmm", node.inputs[i][0], gradient.dtype)
    return results


def _factor_gradient(node: Node, factor: int, dtype: str) -> Ran:
    """The product of a factor's gradient: (n, i, k) (n, k, j), or (n, j, i) (n, i, k)."""
    (n, i, j), (_, _, k) = node.inputs[0][0], node.inputs[1][0]
    return gemm("bmm", "dgrad", (n, j, k, i) if factor else (n, i, j, k), dtype)


def baddbmm(x: Tensor, y: Tensor) -> Tensor:
    """bias + alpha x y for a bias without gradient: as `bmm`, each gradient scaled by alpha."""
    node = node_for(_baddbmm_backward, x, y)
    if node:
        node.save(x if y.requires_grad else None, "dgrad")
        node.save(y if x.requires_grad else None, "dgrad")
    x.tape.ran(gemm("baddbmm", "forward", _batched(x, y), x.dtype))
    out = x.tape.empty("baddbmm", (*x.shape[:-1], y.shape[-1]), x.dtype)
    return node.output(out) if node else out


def _baddbmm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape = gradient.tape
    results: Grads = [None, None]
    for i in (0, 1):
        if node.needs[i]:
            tape.ran(_factor_gradient(node, i, gradient.dtype))
            product = tape.empty("bmm", node.inputs[i][0], gradient.dtype)
            tape.loads(product)
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
