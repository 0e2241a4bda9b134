"""Operators of litgpt's step: a whole slice, a likelihood for each row, sums, a tensor made anew.

Shapes: log-probabilities (n, V), labels (n). Checked by: unit/test_stack_litgpt.py, event for event.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.pointwise import out_like, to
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import ONE, ZERO
from memcalc.engine.tensors import Tensor


def whole_slice(x: Tensor) -> Tensor:
    """x[..., :n] with n its width: an alias, a node of its own."""
    node = node_for(_whole_backward, x)
    out = x.detach()
    return node.output(out) if node else out


def _whole_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def nll_rows(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each row (n), and a scalar; keeps its inputs."""
    node = node_for(_nll_rows_backward, log_probs)
    tape = log_probs.tape
    if node:
        node.save(log_probs, "dgrad")
        node.save(labels, "dgrad")
    tape.loads(labels)
    out = tape.empty("nll_loss_forward", labels.shape, log_probs.dtype)
    weight = tape.empty("nll_loss_forward", (ONE,), log_probs.dtype)
    if node is None:
        return out
    node.save(weight, "dgrad")
    return node.output(out)


def _nll_rows_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    saved[0].tape.loads(saved[1], grads[0])
    return [out_like("nll_loss_backward", saved[0])]


def sum_all(x: Tensor) -> Tensor:
    """The sum of every element; backward sees one number everywhere."""
    node = node_for(_sum_backward, x)
    out = x.tape.empty("sum", (ONE,), x.dtype)
    return node.output(out) if node else out


def _sum_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    shape = node.inputs[0][0]
    return [gradient.view_as(shape, None, (ZERO,) * len(shape))]


def count_where(x: Tensor) -> Tensor:
    """(x != number).sum(): a mask, and its sum as int64."""
    x.tape.loads(x)
    mask = x.tape.empty("ne.Scalar", x.shape, "bool")
    x.tape.loads(mask)
    count = x.tape.empty("sum", (ONE,), "int64")
    del mask
    return count


def at_least_one(count: Tensor) -> Tensor:
    """max(1, count) of Python: a comparison, and the same tensor."""
    count.tape.loads(count)
    flag = count.tape.empty("gt.Scalar", (ONE,), "bool")
    del flag
    return count


def divided(x: Tensor, by: Tensor) -> Tensor:
    """x / by, by a tensor without a gradient, which is kept."""
    node = node_for(_divided_backward, x)
    if node:
        node.save(by, "dgrad")
    out = out_like("div.Tensor", x)
    return node.output(out) if node else out


def _divided_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("div.Tensor", gradient)]


def replacing(holder: list[Tensor], dtype: str) -> Tensor:
    """holder's tensor in another dtype, in place of what an earlier micro-batch's caller still holds.

    The old result is counted outside the timeline, where it stands for the new one from here on; on
    the timeline one of that size shows while both exist. holder is emptied.
    """
    node = node_for(_replacing_backward, holder[0])
    tape, shape = holder[0].tape, holder[0].shape
    both = tape.empty("_to_copy", shape, dtype)
    holder.clear()
    del both
    out = tape.external(shape, dtype)
    return node.output(out) if node else out


def _replacing_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [to(gradient.detach(), node.inputs[0][1])]
