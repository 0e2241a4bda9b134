"""DTensor as the timeline sees it: crossings into it and out of it, and what changing ranks' parts takes.

A layer's tensors are wrapped where a module begins and unwrapped where it ends (from_local, to_local:
views), and are changed from one placement to another (redistribute) by a collective. A functional
collective returns a new tensor. PyTorch gathers along the first dimension and scatters along it, so a
sequence, the second dimension, takes a copy after a gather (none for one sequence) and before a
scatter. Symbols: b sequences, s positions, s_t = s / tp of this rank, h hidden.
Source: PyTorch 2.13, torch/distributed/tensor (_api.py, _redistribute.py, placement_types.py) and
torch/distributed/_functional_collectives.py. Checked by: oracle/test_tensor_parallel.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.ledger import note_collective
from memcalc.engine.parallel.tensor.placed import WHOLE
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Shape, Tensor, bytes_of

#: What changes a tensor's placement: the tensor, and the shape of the result.
Move = Callable[[Tensor, Shape], Tensor]
AXIS: Final = "tp"


def from_local(x: Tensor) -> Tensor:
    """This rank's x wrapped; the gradient comes back as it is."""
    node = node_for(_unwrapped, x)
    out = x.detach()
    if node is None:
        out.placed = WHOLE
        return out
    node.placed = WHOLE
    return node.output(out)


def _unwrapped(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def to_local(x: Tensor) -> Tensor:
    """What this rank has of x, unwrapped; the gradient is wrapped as a view."""
    node = node_for(_wrapped, x)
    out = x.detach()
    if node is None:
        return out
    node.placed = None
    return node.output(out)


def _wrapped(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.detach()]


def redistribute(x: Tensor, shape: Shape, forward: Move, backward: Move) -> Tensor:
    """x in another placement, of this shape on this rank; backward changes the gradient's."""
    node = node_for(_redistributed, x)
    out = forward(x, shape)
    out.placed = WHOLE
    if node is None:
        return out
    node.meta = backward
    return node.output(out)


def _redistributed(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    move: Move = node.meta
    return [move(gradient, node.inputs[0][0])]


def as_it_is(x: Tensor, shape: Shape) -> Tensor:
    """The placement there is already: nothing moves."""
    return x.detach() if x.requires_grad else x


def all_reduce(x: Tensor, shape: Shape) -> Tensor:
    """The ranks' sum: a new tensor."""
    note_collective(x.tape, "all_reduce", bytes_of(shape, x.dtype), AXIS)
    return x.tape.empty("all_reduce", shape, x.dtype)


def all_gather_rows(x: Tensor, shape: Shape) -> Tensor:
    """The ranks' rows (s_t, h) one after the other: (s, h)."""
    x = _dense(x)
    note_collective(x.tape, "all_gather", bytes_of(shape, x.dtype), AXIS)
    return x.tape.empty("all_gather_into_tensor", shape, x.dtype)


def all_gather_sequence(x: Tensor, shape: Shape) -> Tensor:
    """The whole stream (b, s, h) of the ranks' parts (b, s_t, h)."""
    flat = all_gather_rows(x, shape)
    if shape[0] is ONE:
        return flat
    x.tape.loads(flat)
    return x.tape.empty("cat", shape, x.dtype)


def reduce_scatter_sequence(x: Tensor, shape: Shape) -> Tensor:
    """This rank's part (b, s_t, h) of the ranks' sum of (b, s, h)."""
    x = _dense(x)
    x.tape.loads(x)
    rows = x.tape.empty("cat", x.shape, x.dtype)
    note_collective(x.tape, "reduce_scatter", bytes_of(x.shape, x.dtype), AXIS)
    out = x.tape.empty("reduce_scatter_tensor", shape, x.dtype)
    del rows
    return out


def own_rows(x: Tensor, shape: Shape) -> Tensor:
    """A copy of this rank's rows of what it has whole."""
    x.tape.loads_bytes(bytes_of(shape, x.dtype))
    return x.tape.empty("clone", shape, x.dtype)


def _dense(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    x.tape.loads(x)
    return x.tape.empty("clone", x.shape, x.dtype)
