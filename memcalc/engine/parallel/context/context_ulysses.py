"""Ulysses: attention on whole sequences and a rank's own heads, an all-to-all before it and one after.

q, k, v (b, a, s, d) of a rank's s positions become (b, a / c, c s, d) of its heads; the result goes back.
Each exchange lays its tensor out by receiver (a copy), receives into a new one, and joins what came from
the ranks (a copy, where the joined dims are not neighbours in memory). Backward is the other way round.
Source: Jacobs et al. 2023 (arXiv:2309.14509), sec. 3; DeepSpeed, deepspeed/sequence/layer.py.
Checked by: oracle/test_context_parallel.py, against memcalc/harness/ranks/context.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.aten.shape import raw_permute
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.ledger import note_collective
from memcalc.engine.parallel.context.context_pieces import contiguous
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Shape, Tensor, bytes_of

AXIS = "cp"
_HEADS_FIRST = (0, 2, 1, 3)


class _Move(NamedTuple):
    """An exchange: heads and positions of the result on this rank."""

    to_heads: bool
    ranks: int
    heads: Size
    positions: Size


def heads_for_positions(x: Tensor, ranks: int, heads: Size, positions: Size) -> Tensor:
    """(b, a, s, d) to (b, heads, positions, d): this rank's heads at every position."""
    return _moved(x, _Move(True, ranks, heads, positions))


def positions_for_heads(x: Tensor, ranks: int, heads: Size, positions: Size) -> Tensor:
    """(b, a / c, c s, d) to (b, heads, positions, d): every head at this rank's positions."""
    return _moved(x, _Move(False, ranks, heads, positions))


def _moved(x: Tensor, move: _Move) -> Tensor:
    node = node_for(_moved_backward, x)
    out = _exchanged(x, move)
    if node is None:
        return out
    node.meta = move
    return node.output(out)


def _moved_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    move: _Move = node.meta
    _, heads, positions, _ = node.inputs[0][0]
    return [_exchanged(gradient, _Move(not move.to_heads, move.ranks, heads, positions))]


def _exchanged(x: Tensor, move: _Move) -> Tensor:
    b, a, s, d = x.shape
    c = number(move.ranks)
    x = raw_permute(x, _HEADS_FIRST)  # token-major
    if move.to_heads:
        received = _received(x, (b, s, c, move.heads, d), (2, 0, 1, 3, 4))
        return raw_permute(_joined(received, (1, 0, 2, 3, 4), 1, move.positions), _HEADS_FIRST)
    received = _received(x, (b, c, move.positions, a, d), (1, 0, 2, 3, 4))
    return raw_permute(_joined(received, (1, 2, 0, 3, 4), 2, move.heads), _HEADS_FIRST)


def _received(x: Tensor, cut: Shape, outermost: tuple[int, ...]) -> Tensor:
    """What comes from all ranks for x, cut into a part for each and laid out by receiver."""
    sent = contiguous(raw_permute(_unflattened(x, cut), outermost))
    note_collective(sent.tape, "all_to_all", bytes_of(sent.shape, sent.dtype), AXIS)
    return sent.tape.empty("alltoall_base_", sent.shape, sent.dtype)


def _unflattened(x: Tensor, shape: Shape) -> Tensor:
    """A view with one dim cut in two."""
    dim = next(
        i for i, (old, new) in enumerate(zip(x.shape, shape, strict=False)) if old is not new
    )
    inner = x.strides[dim]
    strides = (*x.strides[:dim], inner * shape[dim + 1], inner, *x.strides[dim + 1 :])
    return x.view_as(shape, None, strides)


def _joined(x: Tensor, dims: tuple[int, ...], dim: int, total: Size) -> Tensor:
    """x.permute(dims).flatten(dim, dim + 1), the two together being `total`: a view where it can be."""
    x = raw_permute(x, dims)
    shape, steps = (*x.shape[:dim], total, *x.shape[dim + 2 :]), x.strides
    inner = x.shape[dim + 1]
    if inner is not ONE and steps[dim] is not steps[dim + 1] * inner:
        x.tape.loads(x)
        return x.tape.empty("clone", shape, x.dtype)
    step = steps[dim] if inner is ONE else steps[dim + 1]
    strides = (*steps[:dim], step, *steps[dim + 2 :])
    return x.view_as(shape, None, None if x.is_contiguous() else strides)
