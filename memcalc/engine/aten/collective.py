"""Collectives as autograd sees them: what each allocates on a rank, forward and backward.

An all-reduce works in place. An all-gather makes the whole, a reduce-scatter a rank's part; each is
the other's gradient. An all-to-all of token rows makes as many rows as a rank receives.
Source: Megatron-LM, megatron/core/tensor_parallel/mappings.py. Checked by: unit/test_megatron_ops.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.ledger import note_collective
from memcalc.engine.tensors import Shape, Tensor, bytes_of


def note_gather(x: Tensor, shape: Shape, beside: str = "") -> None:
    """Tp ranks' parts of x side by side in a buffer that lives for the whole run."""
    note_collective(x.tape, "all_gather", bytes_of(shape, x.dtype), "tp", beside)


def gathered(x: Tensor, shape: Shape, beside: str = "") -> Tensor:
    """A new tensor of tp ranks' parts side by side, outside the autograd graph."""
    note_gather(x, shape, beside)
    return x.tape.empty("all_gather", shape, x.dtype)


def scattered(x: Tensor, shape: Shape, beside: str = "") -> Tensor:
    """This rank's part of the sum over tp ranks, outside the autograd graph."""
    note_collective(x.tape, "reduce_scatter", bytes_of(x.shape, x.dtype), "tp", beside)
    return x.tape.empty("reduce_scatter", shape, x.dtype)


def summed(x: Tensor, beside: str = "") -> None:
    """The sum over tp ranks, in place."""
    note_collective(x.tape, "all_reduce", bytes_of(x.shape, x.dtype), "tp", beside)


def all_gather(x: Tensor, shape: Shape, axis: str = "tp") -> Tensor:
    """The ranks' parts side by side; the gradient is reduced and scattered."""
    return _moved(x, shape, ("all_gather", "reduce_scatter", axis))


def reduce_scatter(x: Tensor, shape: Shape, axis: str = "tp") -> Tensor:
    """This rank's part of the sum; the gradient is gathered."""
    return _moved(x, shape, ("reduce_scatter", "all_gather", axis))


def all_to_all(x: Tensor, shape: Shape, axis: str = "ep") -> Tensor:
    """Rows sent to the ranks they belong to; the gradient goes the same way back."""
    return _moved(x, shape, ("all_to_all", "all_to_all", axis))


def _moved(x: Tensor, shape: Shape, kinds: tuple[str, str, str]) -> Tensor:
    """kinds: forward, backward, and the ranks' axis."""
    name, back, axis = kinds
    node = node_for(_moved_backward, x)
    _note(x, shape, name, axis)
    out = x.tape.empty(name, shape, x.dtype)
    if not x.is_contiguous():
        x.tape.loads(x)
        x.tape.empty("clone", x.shape, x.dtype)  # what is sent, for as long as it takes
    if node:
        node.meta = (back, axis)
        return node.output(out)
    return out


def _moved_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    back, axis = node.meta
    _note(gradient, node.inputs[0][0], back, axis)
    return [gradient.tape.empty(back, node.inputs[0][0], gradient.dtype)]


def _note(x: Tensor, shape: Shape, kind: str, axis: str) -> None:
    """Enter the exchange: the whole of a gather is what it makes, else what is there before."""
    whole = shape if kind == "all_gather" else x.shape
    note_collective(x.tape, kind, bytes_of(whole, x.dtype), axis)
