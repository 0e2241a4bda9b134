"""Megatron's checkpoint that frees its outputs: made again when a later tensor's gradient is there.

The function runs without a graph. What follows reads its outputs, keeps them, and then they are freed
although kept. Once the gradient of a tensor further on has come, the function runs again with a graph,
its results are copied into the kept tensors (both live until backward went through them), and
backward reaches the function's inputs by that graph.
Source: Megatron-Core 0.14, tensor_parallel/random.py (CheckpointWithoutOutput).
Checked by: oracle/test_megatron_functions.py, unit/test_megatron_recompute.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.engine.autograd import Grads, Node, backward, node_for
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Storage, Tensor

#: A function of tensors with several results.
Several = Callable[..., tuple[Tensor, ...]]


class Discarded:
    """One call whose outputs are freed in forward; `outputs` until then."""

    def __init__(self, function: Several, *inputs: Tensor) -> None:
        tape = inputs[0].tape
        self.function = function
        self.node = node_for(_discarded_backward, *inputs)
        if self.node:
            self.node.meta = self
            for one in inputs:
                self.node.save(one, "dgrad")
        was_enabled, tape.grad_enabled = tape.grad_enabled, False
        try:
            made = function(*inputs)
        finally:
            tape.grad_enabled = was_enabled
        self.outputs = tuple(self.node.output(one) for one in made) if self.node else made
        self.inputs: list[Tensor] = []
        self.again: tuple[Tensor, ...] = ()

    def discard(self, later: Tensor) -> None:
        """Free the outputs; they come back when the gradient of `later` is there."""
        for one in self.outputs:
            _release(one.storage)
        self.outputs = tuple(one.detach() for one in self.outputs)
        node = later.node
        if node is None:
            return
        rule = node.rule

        def after_recomputing(node: Node, grads: Grads, saved: list[Any]) -> Grads:
            self._recompute()
            return rule(node, grads, saved)

        node.rule = after_recomputing

    def _recompute(self) -> None:
        assert self.node is not None and self.node.saved is not None
        for (_, kept), needs in zip(self.node.saved, self.node.needs, strict=True):
            copy = kept.detach()
            copy.requires_grad = needs
            self.inputs.append(copy)
        tape = self.inputs[0].tape
        block, op, was_enabled = tape.block, tape.op, tape.grad_enabled
        tape.grad_enabled = True
        tape.recomputing += 1
        try:
            self.again = self.function(*self.inputs)
            for one in self.outputs:
                _restore(one)
        finally:
            tape.recomputing -= 1
            tape.grad_enabled = was_enabled
        self.outputs = ()
        tape.at(op, block)


def _discarded_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    frame: Discarded = node.meta
    made, inputs = frame.again, frame.inputs
    node.meta = None
    frame.again, frame.inputs = (), []
    _backward_of_several(made, grads)
    return [one.grad for one in inputs]


def _backward_of_several(outputs: tuple[Tensor, ...], grads: Grads) -> None:
    """torch.autograd.backward of several tensors: all begin at one node that hands out gradients."""
    tape = outputs[0].tape
    node = Node(tape, _hand_out, outputs)
    node.meta = grads
    root = node.output(tape.external((ONE,), "uint8"))
    backward(root, tape.external((ONE,), "uint8"))


def _hand_out(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    handed: Grads = list(node.meta)
    node.meta = None
    return handed


def _release(storage: Storage) -> None:
    """Resize a storage to nothing, whoever names it."""
    if storage.events is not None:
        storage.events.append(~storage.index)
        storage.events = None


def _restore(tensor: Tensor) -> None:
    """Memory again for a tensor whose storage was released, under all its names."""
    fresh = tensor.tape.empty("resize_", tensor.shape, tensor.dtype).storage
    tensor.storage.index, tensor.storage.events = fresh.index, fresh.events
    fresh.events = None
