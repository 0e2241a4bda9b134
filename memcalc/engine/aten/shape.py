"""Views, transposes, slices, concatenation: no bytes unless the layout forces a copy."""

from __future__ import annotations

from typing import Any

from memcalc.engine.autograd import BackwardRule, Grads, Node, node_for
from memcalc.engine.sizes import ONE, ZERO, Size, product
from memcalc.engine.tensors import Shape, Tape, Tensor, bytes_of


def _view_node(rule: BackwardRule, x: Tensor) -> Node | None:
    """As `node_for`, of a view, which reads nothing."""
    tape = x.tape
    if tape.record is not None and not tape.record.input_shape:
        tape.record.input_shape = x.shape
    return Node(tape, rule, (x,)) if tape.grad_enabled and x.requires_grad else None


def _view_strides(x: Tensor, shape: Shape) -> Shape | None:
    """Strides of x seen in another shape, or None when that needs a copy (at::computeStride)."""
    sizes, steps = x.shape, x.strides
    strides: list[Size] = []
    remaining = list(shape)
    base, chunk = steps[-1], ONE
    for d in range(len(sizes) - 1, -1, -1):
        chunk = chunk * sizes[d]
        if d and (sizes[d - 1] is ONE or steps[d - 1] is chunk * base):
            continue
        taken = ONE
        while remaining and (taken is not chunk or remaining[-1] is ONE):
            strides.append(taken * base)
            taken = taken * remaining.pop()
        if taken is not chunk:
            return None
        if d:
            base, chunk = steps[d - 1], ONE
    return None if remaining else tuple(reversed(strides))


def raw_reshape(x: Tensor, shape: Shape) -> Tensor:
    """x in another shape, as a view where the layout allows it, else as a contiguous copy."""
    if x.shape == shape:
        return x
    if x.is_contiguous():
        return x.view_as(shape, None, None)
    strides = _view_strides(x, shape)
    if strides is None:
        x.tape.using((x,))
        return x.tape.empty("clone", shape, x.dtype)
    order = None if len(shape) != len(x.shape) else x.order
    return x.view_as(shape, order, strides)


def reshape(x: Tensor, shape: Shape) -> Tensor:
    """x.reshape(shape), or x.view(shape) where that is legal."""
    if x.shape == shape:
        return x
    node = _view_node(_reshape_backward, x)
    out = raw_reshape(x, shape)
    return node.output(out) if node else out


def _reshape_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [raw_reshape(gradient, node.inputs[0][0])]


def raw_permute(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x with its dims in another order; never a copy."""
    shape = tuple(x.shape[d] for d in dims)
    order = tuple(dims.index(d) for d in (x.order or range(len(dims))))
    strides = None if x.is_dense else tuple(x.strides[d] for d in dims)
    in_order = all(order[i] == i for i in range(len(order)))
    return x.view_as(shape, None if in_order else order, strides)


def permute(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x.permute(dims) (transpose and t among them)."""
    node = _view_node(_permute_backward, x)
    out = raw_permute(x, dims)
    if node:
        node.meta = tuple(dims.index(i) for i in range(len(dims)))
        return node.output(out)
    return out


def _permute_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [raw_permute(gradient, node.meta)]


def contiguous(x: Tensor) -> Tensor:
    """x.contiguous(): a copy unless x already is."""
    if x.is_contiguous():
        return x
    node = node_for(_pass_backward, x)
    out = x.tape.empty("clone", x.shape, x.dtype)
    return node.output(out) if node else out


def _pass_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def _sliced(x: Tensor, dim: int, size: Size) -> Tensor:
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return x.view_as(shape, x.order, x.strides)


def split(x: Tensor, sizes: tuple[Size, ...], dim: int = -1) -> tuple[Tensor, ...]:
    """x.split / x.chunk along one dim: views; backward concatenates into one new tensor."""
    axis = dim % len(x.shape)
    node = _view_node(_split_backward, x)
    parts = tuple(_sliced(x, axis, size) for size in sizes)
    if not node:
        return parts
    return tuple(node.output(part) for part in parts)


def _split_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    some = next(g for g in grads if g is not None)
    tape = some.tape
    missing = [
        filled(tape, "zeros", part, dtype)
        for g, (part, _) in zip(grads, node.outputs, strict=True)
        if g is None
    ]
    tape.loads(*grads, *missing)
    out = tape.empty("cat", shape, dtype)
    del missing
    return [out]


def filled(tape: Tape, name: str, shape: Shape, dtype: str) -> Tensor:
    """A tensor that is written without reading anything."""
    tape.loads()
    return tape.empty(name, shape, dtype)


def narrow(x: Tensor, size: Size, dim: int = -1) -> Tensor:
    """x[..., a:b]: a view; backward fills a new tensor of x's shape with zeros and copies into it."""
    axis = dim % len(x.shape)
    node = _view_node(_narrow_backward, x)
    out = _sliced(x, axis, size)
    return node.output(out) if node else out


def _narrow_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(gradient, gradient)  # read, and written into zeros
    return [gradient.tape.empty("slice_backward", node.inputs[0][0], gradient.dtype)]


def every_second(x: Tensor, half: Size) -> Tensor:
    """x[..., ::2] (or 1::2): a view with doubled steps; backward as `narrow`."""
    node = _view_node(_narrow_backward, x)
    strides = (*x.strides[:-1], x.strides[-1] * 2)
    out = x.view_as((*x.shape[:-1], half), x.order, strides)
    return node.output(out) if node else out


def select(x: Tensor, dim: int) -> Tensor:
    """x[..., i, ...] along dim: a view; backward fills a new tensor with zeros and copies into it."""
    node = _view_node(_select_backward, x)
    shape = (*x.shape[:dim], *x.shape[dim + 1 :])
    out = x.view_as(shape, None, (*x.strides[:dim], *x.strides[dim + 1 :]))
    return node.output(out) if node else out


def _select_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(gradient, gradient)
    return [gradient.tape.empty("select_backward", node.inputs[0][0], gradient.dtype)]


def cat(parts: tuple[Tensor, ...], dim: int = -1, total: Size | None = None) -> Tensor:
    """Concatenation: a new tensor; backward hands out slices of the gradient.

    total: the joined width where it has a name of its own (two halves of d are d).
    """
    first = parts[0]
    axis = dim % len(first.shape)
    node = node_for(_cat_backward, *parts)
    if total is None:
        total = ZERO
        for part in parts:
            total = total + part.shape[axis]
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    out = first.tape.empty("cat", shape, first.dtype)
    if node:
        node.meta = axis
        return node.output(out)
    return out


def _cat_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [_sliced(gradient, node.meta, shape[node.meta]) for shape, _ in node.inputs]


def expand(x: Tensor, shape: Shape) -> Tensor:
    """x broadcast to shape: a view with zero strides; backward sums."""
    node = _view_node(_expand_backward, x)
    padded = (ONE,) * (len(shape) - len(x.shape)) + x.shape
    strides = (ZERO,) * (len(shape) - len(x.shape)) + x.strides
    widened = tuple(
        ZERO if old is ONE and new is not ONE else st
        for old, new, st in zip(padded, shape, strides, strict=True)
    )
    out = x.view_as(shape, None, widened)
    return node.output(out) if node else out


def _expand_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    shape = node.inputs[0][0]
    if gradient.shape == shape:
        return [gradient]
    return [gradient.tape.empty("sum.dim_IntList", shape, gradient.dtype)]


def merge_groups(x: Tensor, total: Size, dim: int = 1) -> Tensor:
    """(.., k, g, ..) copied to (.., a, ..), a = k g at dim; backward is a view."""
    node = node_for(_merge_backward, x)
    shape = (*x.shape[:dim], total, *x.shape[dim + 2 :])
    out = x.tape.empty("clone", shape, x.dtype)
    if node:
        node.meta = dim
        return node.output(out)
    return out


def _merge_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    shape, steps = node.inputs[0][0], gradient.strides
    dim = node.meta
    strides = (*steps[:dim], steps[dim] * shape[dim + 1], *steps[dim:])
    return [gradient.view_as(shape, None, strides)]


def index_one(x: Tensor, dim: int) -> Tensor:
    """x[..., [i], ...] along dim: a copy; backward puts it into zeros, under a mode into a copy."""
    node = node_for(_index_backward, x)
    shape = (*x.shape[:dim], ONE, *x.shape[dim + 1 :])
    x.tape.loads_bytes(bytes_of(shape, x.dtype))
    out = x.tape.empty("index.Tensor", shape, x.dtype)
    return node.output(out) if node else out


def _index_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    zeros = filled(gradient.tape, "new_zeros", node.inputs[0][0], gradient.dtype)
    if not zeros.tape.watched:
        gradient.tape.in_place("index_put_", gradient)
        return [zeros]
    gradient.tape.loads(zeros, gradient)
    out = gradient.tape.empty("index_put", zeros.shape, zeros.dtype)
    del zeros
    return [out]


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """x with a dim of size 1 inserted."""
    return reshape(x, (*x.shape[:dim], ONE, *x.shape[dim:]))


def flatten_tokens(x: Tensor) -> Tensor:
    """(b, s, n) as (b s, n), the shape matmul kernels see."""
    return reshape(x, (product(x.shape[:-1]), x.shape[-1]))


def repeat_interleave(x: Tensor, total: Size, dim: int) -> Tensor:
    """Each entry along dim repeated in place to `total`: a new row-major tensor; backward sums."""
    node = node_for(_repeat_backward, x)
    shape = (*x.shape[:dim], total, *x.shape[dim + 1 :])
    out = x.tape.empty("clone", shape, x.dtype)
    return node.output(out) if node else out


def _repeat_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("sum.dim_IntList", node.inputs[0][0], gradient.dtype)]
