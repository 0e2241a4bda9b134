"""Operators of the losses of feedback training: rows apart, log-sums, bounds, writing through a view.

Symbols: x (b, n, V) logits of n positions. A loop over the sequences of a batch makes views of its rows;
backward stacks their gradients. What is written in place into a view of a tensor with a history gives two
nodes (torch/csrc/autograd/functions/tensor.cpp, CopySlices; FunctionsManual.cpp, as_strided_backward):
their backward makes zeros of the whole base, a base of its own, and a copy of the view's part.
Source: torch 2.13.0, ReduceOps.cpp (logsumexp), FunctionsManual.cpp, derivatives.yaml.
Checked by: oracle/test_feedback.py, event for event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memcalc.engine.aten.pointwise import broadcast, out_like
from memcalc.engine.aten.shape import filled
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.dtypes import promote
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor, bytes_of


def rows_of(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """The `count` entries along the first dim, as views; backward stacks their gradients."""
    node = Node(x.tape, _rows_backward, (x,)) if x.tape.grad_enabled and x.requires_grad else None
    strides = None if x.is_contiguous() else x.strides[1:]
    parts = tuple(x.view_as(x.shape[1:], None, strides) for _ in range(count))
    return tuple(node.output(part) for part in parts) if node else parts


def _rows_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    some = next(one for one in grads if one is not None)
    return [some.tape.empty("stack", *node.inputs[0])]


def stack(parts: Sequence[Tensor], count: Size) -> Tensor:
    """Tensors of one shape along a new first dim, which is `count`; backward hands out views."""
    node = node_for(_stack_backward, *parts)
    first = parts[0]
    out = first.tape.empty("stack", (count, *first.shape), first.dtype)
    return node.output(out) if node else out


def _stack_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    strides = None if gradient.is_contiguous() else gradient.strides[1:]
    return [gradient.view_as(shape, None, strides) for shape, _ in node.inputs]


def subtract(x: Tensor, y: Tensor) -> Tensor:
    """x - y, in the wider dtype of both: keeps nothing; y's gradient is a negated copy."""
    node = node_for(_subtract_backward, x, y)
    shape, order = broadcast(x, y)
    x.tape.operands("sub.Tensor", x, y)
    out = x.tape.empty("sub.Tensor", shape, promote(x.dtype, y.dtype), order)
    return node.output(out) if node else out


def _subtract_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient, out_like("neg", gradient) if node.needs[1] else None]


def exp(x: Tensor) -> Tensor:
    """exp(x): keeps its result."""
    node = node_for(_exp_backward, x)
    out = out_like("exp", x)
    if node:
        node.save(out, "dgrad")
        return node.output(out)
    return out


def _exp_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("mul.Tensor", saved[0].shape, saved[0].dtype)]


def logsumexp(x: Tensor) -> Tensor:
    """log of the sum of exp over the last dim, dropped: keeps x and its result.

    Inside it the maximum of each row is taken off a copy; backward makes the difference anew.
    """
    node = node_for(_logsumexp_backward, x)
    tape, rows = x.tape, x.shape[:-1]
    most = tape.empty("amax", (*rows, ONE), x.dtype)
    beyond = [out_like("abs", most)]
    beyond.append(out_like("eq.Scalar", most, "bool"))
    del beyond
    tape.loads(x, most)
    inside = tape.empty("sub.Tensor", x.shape, x.dtype)
    tape.in_place("exp_", inside)
    tape.loads(inside)
    out = tape.empty("logsumexp", rows, x.dtype)
    del inside, most
    if node is None:
        return out
    node.save(x, "dgrad")
    node.save(out, "dgrad")
    return node.output(out)


def _logsumexp_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    x, result = saved
    tape = x.tape
    tape.loads(x, result)
    difference = tape.empty("sub.Tensor", x.shape, x.dtype)
    tape.loads(difference)
    share = tape.empty("exp", x.shape, x.dtype)
    tape.loads(share)
    out = tape.empty("mul.Tensor", x.shape, x.dtype)
    del share, difference
    return [out]


def log_sigmoid(x: Tensor) -> Tensor:
    """log of the sigmoid: keeps x (CUDA's kernel has no buffer)."""
    node = node_for(_log_sigmoid_backward, x)
    if node:
        node.save(x, "dgrad")
    out = out_like("log_sigmoid_forward", x)
    return node.output(out) if node else out


def _log_sigmoid_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("log_sigmoid_backward", saved[0].shape, saved[0].dtype)]


def mean_all(x: Tensor) -> Tensor:
    """The mean of every element of x; backward divides one number and spreads it."""
    node = node_for(_mean_all_backward, x)
    out = x.tape.empty("mean", (ONE,), x.dtype)
    return node.output(out) if node else out


def _mean_all_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("div.Scalar", *node.inputs[0])]


def within(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x held between two tensors without gradients: keeps all three."""
    node = node_for(_within_backward, x)
    if node:
        for kept in (x, low, high):
            node.save(kept, "dgrad")
    shape, order = broadcast(low, x)
    out = x.tape.empty("clamp.Tensor", shape, low.dtype, order)
    return node.output(out) if node else out


def _within_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    zero = filled(gradient.tape, "scalar_tensor", (ONE,), gradient.dtype)
    masks = [out_like(name, saved[1], "bool") for name in ("ge.Tensor", "le.Tensor")]
    masks.append(out_like("logical_and", masks[0]))
    out = out_like("where.self", gradient)
    masks.reverse()
    del zero
    while masks:
        masks.pop(0)
    return [out]


def extreme(x: Tensor, y: Tensor, name: str) -> Tensor:
    """The larger (name maximum) or smaller (minimum) of both: keeps both; ties share the gradient."""
    node = node_for(_extreme_backward, x, y)
    if node:
        node.save(x, "dgrad")
        node.save(y, "dgrad")
    out = out_like(name, x)
    return node.output(out) if node else out


def _extreme_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    of_y = _share(gradient, saved[0]) if node.needs[1] else None
    of_x = _share(gradient, saved[0]) if node.needs[0] else None
    return [of_x, of_y]


def _share(gradient: Tensor, like: Tensor) -> Tensor:
    """where(x == y, g / 2, g) with zeros where the other won."""
    half = gradient.tape.empty("div.Scalar", like.shape, gradient.dtype)
    ties = out_like("eq.Tensor", like, "bool")
    out = gradient.tape.empty("where.self", like.shape, gradient.dtype)
    lost = out_like("lt.Tensor", like, "bool")
    gradient.tape.in_place("masked_fill_", out, lost)
    del lost, ties, half
    return out


def divide_view(base: Tensor, view: Tensor) -> Tensor:
    """view /= number, where view is a part of base, which has a history."""
    view.tape.in_place("div_", view)
    return _written(base, view, lambda part: out_like("div.Tensor", part))


def zero_where(base: Tensor, view: Tensor, mask: Tensor) -> Tensor:
    """view[mask] = 0.0, where view is a part of base: the mask is kept."""
    zero = filled(view.tape, "scalar_tensor", (ONE,), view.dtype)
    view.tape.in_place("index_put_", view, mask)
    del zero

    def inside(part: Tensor) -> Tensor:
        zeros = filled(part.tape, "zeros", (ONE,), part.dtype)
        out = out_like("index_put", part)
        del zeros
        return out

    return _written(base, view, inside, mask)


def _written(
    base: Tensor, view: Tensor, inside: Callable[[Tensor], Tensor], kept: Tensor | None = None
) -> Tensor:
    """The view after a change in place; inside: the change's own backward, of the view's part."""
    node = node_for(_copy_slices_backward, base)
    if node is None:
        return view
    node.meta = (view.shape, inside)
    if kept is not None:
        node.save(kept, "dgrad")
    changed = node.output(base.detach())
    seen = Node(base.tape, _as_strided_backward, (changed,))
    return seen.output(view.detach())


def _as_strided_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(gradient, gradient)  # read, and written into zeros
    return [gradient.tape.empty("new_zeros", *node.inputs[0])]


def _copy_slices_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    shape, inside = node.meta
    tape = gradient.tape
    whole = tape.empty("new_empty_strided", *node.inputs[0])
    tape.loads_bytes(bytes_of(shape, gradient.dtype))
    part = tape.empty("clone", shape, gradient.dtype)
    changed = inside(part)
    del part
    tape.in_place("copy_", changed, changed)
    del changed
    return [whole]
