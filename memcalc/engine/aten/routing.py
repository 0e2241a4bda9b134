"""Operators of mixtures of experts: top-k, sort, gathers of rows, grouped products.

Shapes: T = b s tokens, E experts, t experts a token, R routed token rows (each token once per expert
it goes to), i and o widths of a product. Scatters of backward rules are out of place: a tensor of
zeros and the result live together, as PyTorch does under any dispatch mode (see docs/decisions.md).
Source: tools/autograd/derivatives.yaml of PyTorch 2.13.
Checked by: oracle/test_hf_moe.py, oracle/test_sparse_blocks.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.matmul import dispatched
from memcalc.engine.aten.pointwise import activation_by_result, out_like
from memcalc.engine.aten.shape import filled
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import grouped
from memcalc.engine.sizes import ONE, ZERO, Size
from memcalc.engine.tensors import Shape, Tensor, bytes_of


def top_k(x: Tensor, k: Size, name: str = "topk") -> tuple[Tensor, Tensor]:
    """The k largest along the last dim (..., k): values, and their int64 indices, which are kept."""
    return _picked(x, (*x.shape[:-1], k), name)


def max_last(x: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
    """Maximum over the last dim, kept with size 1 or dropped; keeps the indices."""
    return _picked(x, (*x.shape[:-1], ONE) if keep else x.shape[:-1], "max.dim")


def _picked(x: Tensor, shape: Shape, name: str) -> tuple[Tensor, Tensor]:
    node = node_for(_picked_backward, x)
    values = x.tape.empty(name, shape, x.dtype)
    indices = x.tape.empty(name, shape, "int64")
    if node is None:
        return values, indices
    node.save(indices, "dgrad")
    return node.output(values), indices


def _picked_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [_scattered(node, grads, "scatter.src")]


def _scattered(node: Node, grads: Grads, name: str) -> Tensor:
    """Zeros of the input's shape with the gradient put in its places; a copy under a dispatch mode."""
    gradient = grads[0]
    assert gradient is not None
    tape = gradient.tape
    zeros = filled(tape, "new_zeros", node.inputs[0][0], gradient.dtype)
    if tape.watched:
        tape.loads(zeros, gradient)
        return out_like(name, zeros)
    tape.in_place(f"{name}_", gradient)
    return zeros


def gather_last(x: Tensor, index: Tensor) -> Tensor:
    """x.gather(-1, index): keeps x and the index."""
    node = node_for(_gather_backward, x)
    if node:
        node.save(index, "dgrad")
        node.save(x, "dgrad")
    x.tape.loads_bytes(bytes_of(index.shape, x.dtype) + bytes_of(index.shape, index.dtype))
    out = x.tape.empty("gather", index.shape, x.dtype)
    return node.output(out) if node else out


def _gather_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [_scattered(node, grads, "scatter_add")]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index] over the first dim: keeps the index, whose rows receive the gradient."""
    node = node_for(_take_backward, x)
    if node:
        node.save(index, "dgrad")
    shape = (*index.shape, *x.shape[1:])
    x.tape.loads_bytes(bytes_of(shape, x.dtype) + bytes_of(index.shape, index.dtype))
    out = x.tape.empty("index.Tensor", shape, x.dtype)
    return node.output(out) if node else out


def _take_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [_scattered(node, grads, "index_put")]


def index_add(target: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """target with rows of source added in place at index: keeps the index and the source."""
    node = node_for(_index_add_backward, source)
    if node:
        node.save(index, "dgrad")
        node.save(source, "dgrad")
    target.tape.in_place("index_add_", source, source, index)  # rows of the target, and the source
    out = target.detach()
    return node.output(out) if node else out


def _index_add_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("index_select", node.inputs[0][0], gradient.dtype)]


def sort_ids(ids: Tensor, rows: Size) -> tuple[Tensor, Tensor]:
    """Expert ids in ascending order, and where each came from: int64 (rows) both."""
    tape = ids.tape
    tape.loads(ids)
    return tape.empty("sort", (rows,), "int64"), tape.empty("sort", (rows,), "int64")


def sum_dim(x: Tensor, axis: int, keep: bool) -> Tensor:
    """Sum over one dim, kept with size 1 or dropped; backward is a broadcast view."""
    node = node_for(_sum_backward, x)
    at = axis % len(x.shape)
    middle = (ONE,) if keep else ()
    shape = (*x.shape[:at], *middle, *x.shape[at + 1 :])
    out = x.tape.empty("sum.dim_IntList", shape, x.dtype)
    if node:
        node.meta = (at, keep)
        return node.output(out)
    return out


def _sum_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    at, keep = node.meta
    shape = node.inputs[0][0]
    if shape[at] is ONE:
        return [gradient.view_as(shape, None, None)]
    strides = gradient.strides
    after = strides[at + 1 :] if keep else strides[at:]
    return [gradient.view_as(shape, None, (*strides[:at], ZERO, *after))]


def divide_in_place(x: Tensor, y: Tensor) -> Tensor:
    """x /= y: x is copied first, because y's gradient needs its old value; keeps the copy and y."""
    node = node_for(_divide_backward, x, y)
    if node:
        node.save(y, "dgrad")
        x.tape.loads(x)
        node.save(out_like("clone", x), "dgrad")
    x.tape.in_place("div_", x, y)
    out = x.detach()
    return node.output(out) if node else out


def divide(x: Tensor, y: Tensor) -> Tensor:
    """x / y of a smaller y: keeps both."""
    node = node_for(_divide_backward, x, y)
    out = out_like("div.Tensor", x)
    if node is None:
        return out
    node.save(y, "dgrad")
    node.save(x, "dgrad")
    return node.output(out)


def _divide_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    old = saved[1]
    quotient = out_like("div.Tensor", old)
    twice = out_like("div.Tensor", quotient)
    negative = out_like("neg", gradient)
    grad_y = out_like("mul.Tensor", negative)
    del negative, twice, quotient
    return [out_like("div.Tensor", old, gradient.dtype), grad_y]


def masked_fill(x: Tensor, mask: Tensor) -> Tensor:
    """x with a number where mask is set: keeps the mask."""
    node = node_for(_masked_fill_backward, x)
    if node:
        node.save(mask, "dgrad")
    out = out_like("masked_fill.Scalar", x)
    return node.output(out) if node else out


def _masked_fill_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("masked_fill.Scalar", gradient)]


def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows of x (R, i), sorted by expert, each times its expert's matrix of weight (E, o, i): (R, o).

    FLOPs: 2 R i o forward, as much for each gradient; only experts that a row goes to do any work.
    Keeps x for the weight's gradient, the weight for x's, and where each expert's rows end.
    """
    node = node_for(_grouped_mm_backward, x, weight)
    if node:
        node.save(x if weight.requires_grad else None, "wgrad")
        node.save(weight if x.requires_grad else None, "dgrad")
        node.save(offsets, "both")
    groups, out_features, inner = weight.shape
    rows = x.shape[0]
    ran = grouped("_grouped_mm", "forward", (groups, rows, out_features, inner), x.dtype)
    (out,) = dispatched(x.tape, ran, [((rows, out_features), x.dtype)])
    return node.output(out) if node else out


def _grouped_mm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape, rows, (groups, o, inner) = gradient.tape, gradient.shape[0], node.inputs[1][0]
    shapes = ((groups, rows, inner, o), (groups, rows, o, inner))
    results: Grads = [None, None]
    for i, part in ((1, "wgrad"), (0, "dgrad")):
        if node.needs[i]:
            tape.ran(grouped("_grouped_mm", part, shapes[i], gradient.dtype))
            results[i] = tape.empty("_grouped_mm", node.inputs[i][0], gradient.dtype)
    return results


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)): keeps its result."""
    return activation_by_result(x, "sigmoid", "sigmoid_backward")


def clamp(x: Tensor, both: bool) -> Tensor:
    """x limited from above, or from both sides: keeps x; backward makes a mask of one byte each."""
    node = node_for(_clamp_backward, x)
    if node:
        node.meta = both
        node.save(x, "dgrad")
    out = out_like("clamp", x)
    return node.output(out) if node else out


def _clamp_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    zero = filled(gradient.tape, "scalar_tensor", (ONE,), gradient.dtype)
    masks = [out_like("ge.Scalar", saved[0], "bool") for _ in range(2 if node.meta else 1)]
    gradient.tape.loads(gradient, masks[0])
    out = out_like("where.self", gradient)
    del zero, masks
    return [out]
