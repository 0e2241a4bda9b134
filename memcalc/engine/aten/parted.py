"""Copies of a tensor side by side, and its parts along its first dim.

Source: PyTorch 2.13, derivatives.yaml (repeat, unbind). Checked by: oracle/test_peft_virtual.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.tensors import Shape, Tensor


def repeat(x: Tensor, shape: Shape) -> Tensor:
    """x.repeat along the first dim, of size 1, to shape: a copy; backward sums."""
    node = node_for(_repeat_backward, x)
    out = x.tape.empty("repeat", shape, x.dtype)
    return node.output(out) if node else out


def _repeat_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("sum.dim_IntList", node.inputs[0][0], gradient.dtype)]


def unbind(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of x along its first dim: views; backward stacks their gradients."""
    node = Node(x.tape, _unbind_backward, (x,)) if x.requires_grad else None
    first, second = (x.view_as(x.shape[1:], None, x.strides[1:]) for _ in range(2))
    return (node.output(first), node.output(second)) if node else (first, second)


def _unbind_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    some = next(g for g in grads if g is not None)
    some.tape.loads(*grads)
    return [some.tape.empty("stack", shape, dtype)]
