"""Element-wise operators, reductions and casts.

Gradients of several inputs are computed in alphabetical order of PyTorch's argument names
(`other` before `self`), as its generated code does.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.dtypes import promote
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Shape, Tape, Tensor, dense_strides


def out_like(name: str, tensor: Tensor, dtype: str | None = None) -> Tensor:
    """A new dense tensor of the same shape and memory order."""
    tensor.tape.operands(name, tensor)
    order = tensor.order if tensor.is_dense else _order_of_view(tensor)
    return tensor.tape.empty(name, tensor.shape, dtype or tensor.dtype, order)


def _order_of_view(view: Tensor) -> tuple[int, ...] | None:
    """The memory order of a strided view that leaves no gap, which an element-wise result keeps."""
    for order in permutations(range(len(view.shape))):
        if dense_strides(view.shape, order) == view.strides:
            return order
    return view.order


def broadcast(x: Tensor, y: Tensor) -> tuple[Shape, tuple[int, ...] | None]:
    """Shape and memory order of an element-wise result: the larger operand's."""
    if x.shape == y.shape:
        leader = x
    elif len(x.shape) != len(y.shape):
        leader = x if len(x.shape) > len(y.shape) else y
    else:
        wide = sum(d is ONE for d in x.shape) <= sum(d is ONE for d in y.shape)
        leader = x if wide else y
    other = y if leader is x else x
    if len(other.shape) == len(leader.shape) and other.shape != leader.shape:
        shape = tuple(o if d is ONE else d for d, o in zip(leader.shape, other.shape, strict=True))
        return shape, leader.order if shape == leader.shape else None
    return leader.shape, leader.order


def _binary(name: str, x: Tensor, y: Tensor) -> Tensor:
    shape, order = broadcast(x, y)
    x.tape.operands(name, x, y)
    return x.tape.empty(name, shape, promote(x.dtype, y.dtype), order)


def to(x: Tensor, dtype: str) -> Tensor:
    """x in another dtype; x itself when it already has it."""
    if x.dtype == dtype:
        return x
    node = node_for(_to_backward, x)
    out = out_like("_to_copy", x, dtype)
    return node.output(out) if node else out


def _to_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("_to_copy", gradient, node.inputs[0][1])]


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y; its gradient is passed on to both without a copy."""
    node = node_for(_add_backward, x, y)
    out = _binary("add.Tensor", x, y)
    return node.output(out) if node else out


def _add_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0], grads[0]]


def mul(x: Tensor, y: Tensor) -> Tensor:
    """x * y; each factor is kept for the other's gradient."""
    node = node_for(_mul_backward, x, y)
    if node:
        node.save(y if x.requires_grad else None, _need(x))
        node.save(x if y.requires_grad else None, _need(y))
    out = _binary("mul.Tensor", x, y)
    return node.output(out) if node else out


def _need(x: Tensor) -> str:
    return "wgrad" if x.requires_grad and x.node is None else "dgrad"


def _mul_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    y, x = saved
    gradient = grads[0]
    assert gradient is not None
    grad_y = _product(gradient, x) if node.needs[1] else None
    grad_x = _product(gradient, y) if node.needs[0] else None
    return [grad_x, grad_y]


def _product(gradient: Tensor, factor: Tensor) -> Tensor:
    gradient.tape.using((gradient, factor))
    return _binary("mul.Tensor", gradient, factor)


def scale(x: Tensor, name: str = "mul.Tensor") -> Tensor:
    """x times (or over) a Python number: nothing is kept."""
    node = node_for(_scale_backward, x)
    if node:
        node.meta = name
    out = out_like(name, x)
    return node.output(out) if node else out


def _scale_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like(node.meta, gradient)]


def shift(x: Tensor) -> Tensor:
    """x plus a Python number: its gradient passes unchanged."""
    node = node_for(_shift_backward, x)
    out = out_like("add.Tensor", x)
    return node.output(out) if node else out


def _shift_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def neg(x: Tensor) -> Tensor:
    """-x."""
    return scale(x, "neg")


def square(x: Tensor) -> Tensor:
    """x.pow(2), or any other power: keeps x; backward holds x^(n-1), its n-fold and the product."""
    node = node_for(_square_backward, x)
    if node:
        node.save(x, "dgrad")
    out = out_like("pow.Tensor_Scalar", x)
    return node.output(out) if node else out


def _square_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(saved[0])
    power = out_like("pow.Tensor_Scalar", saved[0])
    doubled = out_like("mul.Tensor", power)
    return [_binary("mul.Tensor", gradient, doubled)]


def mean_last(x: Tensor) -> Tensor:
    """Mean over the last dim, kept with size 1."""
    node = node_for(_mean_backward, x)
    out = x.tape.empty("mean.dim", (*x.shape[:-1], ONE), x.dtype)
    return node.output(out) if node else out


def _mean_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("div.Scalar", node.inputs[0][0], gradient.dtype)]


def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x): keeps its result."""
    node = node_for(_rsqrt_backward, x)
    out = out_like("rsqrt", x)
    if node:
        node.save(out, "dgrad")
        return node.output(out)
    return out


def _rsqrt_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(gradient)
    halved = out_like("mul.Scalar", gradient)
    cubed = out_like("pow.Tensor_Scalar", saved[0])
    gradient.tape.loads(halved, cubed)
    out = out_like("mul.Tensor", halved)
    del cubed
    return [out]


def activation(x: Tensor, name: str) -> Tensor:
    """A fused activation kernel (silu, gelu): keeps its input, backward is one kernel."""
    node = node_for(_activation_backward, x)
    if node:
        node.meta = name
        node.save(x, "dgrad")
    out = out_like(name, x)
    return node.output(out) if node else out


def _activation_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like(f"{node.meta}_backward", gradient)]


def activation_by_result(x: Tensor, name: str, backward_name: str) -> Tensor:
    """An activation that keeps its result instead of its input (relu, tanh, sigmoid)."""
    node = node_for(_result_backward, x)
    out = out_like(name, x)
    if node:
        node.meta = backward_name
        node.save(out, "dgrad")
        return node.output(out)
    return out


def _result_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like(node.meta, gradient)]


def tanh(x: Tensor) -> Tensor:
    """tanh(x): keeps its result."""
    return activation_by_result(x, "tanh", "tanh_backward")


def scale_in_place(x: Tensor) -> Tensor:
    """x /= number: no new tensor forward, one backward."""
    node = node_for(_scale_backward, x)
    x.tape.in_place("div_", x)
    out = x.detach()
    if node:
        node.meta = "div.Tensor"
        return node.output(out)
    return out


def add_in_place(x: Tensor, y: Tensor) -> Tensor:
    """x += y: no new tensor, the gradient passes on to both."""
    node = node_for(_add_backward, x, y)
    x.tape.in_place("add_", x, y)
    out = x.detach()
    return node.output(out) if node else out


def softmax_last(x: Tensor) -> Tensor:
    """Softmax over the last dim: keeps its result."""
    return activation_by_result(x, "_softmax", "_softmax_backward_data")


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout: CUDA's kernel keeps a mask of one byte an element, a CPU a mask in x's dtype."""
    if p == 0:
        return x
    if x.tape.device == "cpu":
        return mul(x, out_like("bernoulli", x))
    node = node_for(_dropout_backward, x)
    out = out_like("native_dropout", x)
    mask = x.tape.empty("native_dropout", x.shape, "bool", x.order)
    if node:
        node.save(mask, "dgrad")
        return node.output(out)
    return out


def _dropout_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("native_dropout_backward", gradient)]


def constant(tape: Tape, name: str, shape: Shape, dtype: str, *reads: Tensor) -> Tensor:
    """A tensor without gradient made during the step (tables, masks)."""
    tape.loads(*reads)
    return tape.empty(name, shape, dtype)
