"""Collectives as autograd sees them: what each allocates on a rank, forward and backward.

An all-reduce works in place. An all-gather makes the whole, a reduce-scatter a rank's part; each is
the other's gradient. An all-to-all of token rows makes as many rows as a rank receives.
Source: Megatron-LM, megatron/core/tensor_parallel/mappings.py. Checked by: unit/test_megatron_ops.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.tensors import Shape, Tensor


def gathered(x: Tensor, shape: Shape, name: str = "all_gather") -> Tensor:
    """A new tensor of the ranks' parts side by side, outside the autograd graph."""
    return x.tape.empty(name, shape, x.dtype)


def scattered(x: Tensor, shape: Shape) -> Tensor:
    """This rank's part of the ranks' sum, outside the autograd graph."""
    return x.tape.empty("reduce_scatter", shape, x.dtype)


def all_gather(x: Tensor, shape: Shape) -> Tensor:
    """The ranks' parts side by side; the gradient is reduced and scattered."""
    return _moved(x, shape, "all_gather", "reduce_scatter")


def reduce_scatter(x: Tensor, shape: Shape) -> Tensor:
    """This rank's part of the sum; the gradient is gathered."""
    return _moved(x, shape, "reduce_scatter", "all_gather")


def all_to_all(x: Tensor, shape: Shape) -> Tensor:
    """Rows sent to the ranks they belong to; the gradient goes the same way back."""
    return _moved(x, shape, "all_to_all", "all_to_all")


def _moved(x: Tensor, shape: Shape, name: str, back: str) -> Tensor:
    node = node_for(_moved_backward, x)
    out = x.tape.empty(name, shape, x.dtype)
    if not x.is_contiguous():
        x.tape.empty("clone", x.shape, x.dtype)  # what is sent, for as long as it takes
    if node:
        node.meta = back
        return node.output(out)
    return out


def _moved_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty(node.meta, node.inputs[0][0], gradient.dtype)]
