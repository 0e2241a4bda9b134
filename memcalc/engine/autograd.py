"""Nodes and the backward engine: PyTorch's autograd, as far as memory goes.

The order of events is that of torch/csrc/autograd/engine.cpp: ready nodes run by descending creation
number, leaf accumulation at once; inside a node the incoming gradient, the saved tensors and all
outputs live together; then the incoming gradient goes, then the saved tensors, and only then is a
result added to its consumer's buffer. A further gradient for the same buffer is added to the first in
place where nothing else holds that one; else, and always under a dispatch mode, a sum is allocated
with both old ones alive (torch/csrc/autograd/input_buffer.cpp).

Checked by: oracle/test_torch_events.py, event for event against PyTorch under a mode;
oracle/test_unwatched.py, against its memory profiler without one.
"""

from __future__ import annotations

import functools
import heapq
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcalc.engine.injectors import begin_op
from memcalc.engine.parallel.tensor.placed import WHOLE
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import APART, Shape, Tape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.tensors import Packing

Grads = list["Tensor | None"]
#: (node, incoming gradients, unpacked saved tensors) -> a gradient for each input
BackwardRule = Callable[["Node", Grads, list[Any]], Grads]
_LEAF_PRIORITY = 1 << 62


class Node:
    """One step of the graph: what it saved, whom it feeds, and its backward rule."""

    __slots__ = (
        "block", "edges", "inputs", "meta", "needs", "number", "op", "outputs", "phase", "placed",
        "rule", "saved",
    )  # fmt: skip

    def __init__(self, tape: Tape, rule: BackwardRule, inputs: tuple[Tensor, ...]) -> None:
        self.rule = rule
        self.number = tape.sequence
        tape.sequence += 1
        self.block = tape.block
        self.op = tape.op
        self.needs = tuple(t.requires_grad for t in inputs)
        self.edges = [_edge(t) for t in inputs]
        self.inputs = [(t.shape, t.dtype) for t in inputs]
        self.outputs: list[tuple[Shape, str]] = []
        self.saved: list[tuple[Packing | None, Any]] | None = []
        self.meta: Any = None
        self.placed = next((WHOLE for t in inputs if t.placed), None)

    def save(self, tensor: Tensor | None, needed_by: str) -> None:
        """Keep a tensor for backward; needed_by is `dgrad`, `wgrad` or `both`, for the ledger."""
        assert self.saved is not None
        if tensor is None:
            self.saved.append((None, None))
            return
        tape = tensor.tape
        kept = tensor.detach()
        kept.name = tensor.name
        if tape.packing:
            hook = tape.packing[-1]
            self.saved.append((hook, hook.pack(kept)))
        else:
            self.saved.append((None, kept))
        if not tape.recomputing:
            record = tape.records.get((tape.block, tape.op))
            if record is not None:
                record.note_saved(tensor, needed_by)

    def output(self, tensor: Tensor) -> Tensor:
        """Attach a forward output to this node and return it."""
        tensor.node = self
        tensor.output_nr = len(self.outputs)
        tensor.requires_grad = True
        tensor.placed = self.placed
        self.outputs.append((tensor.shape, tensor.dtype))
        return tensor

    def unpack(self) -> list[Any]:
        """The saved tensors, recomputed first where a checkpoint frame holds them."""
        assert self.saved is not None
        return [kept if hook is None else hook.unpack(kept) for hook, kept in self.saved]  # type: ignore[attr-defined]


class LeafNode:
    """Gradient accumulation into one parameter (AccumulateGrad)."""

    __slots__ = ("__weakref__", "leaf", "number", "outputs", "placed")

    def __init__(self, leaf: Tensor) -> None:
        self.leaf = leaf
        self.number = _LEAF_PRIORITY
        self.outputs = [(leaf.shape, leaf.dtype)]
        self.placed = leaf.placed

    def accumulate(self, gradient: Tensor) -> None:
        """Steal the first gradient, add later ones in place; a strided one is copied."""
        gradient.tape.gradient_made(gradient, self.leaf.grad)
        if self.leaf.grad is not None:
            return
        if not gradient.is_contiguous():
            gradient = gradient.tape.empty("clone", gradient.shape, gradient.dtype)
        self.leaf.grad = gradient.detach()


AnyNode = Node | LeafNode


def _edge(tensor: Tensor) -> tuple[AnyNode, int] | None:
    if not tensor.requires_grad:
        return None
    if tensor.node is None:  # a leaf: its node is made once and kept by nobody but the graph
        return (leaf_node(tensor), 0)
    return (tensor.node, tensor.output_nr)


def leaf_node(leaf: Tensor) -> LeafNode:
    """The node that accumulates a leaf's gradient; the graph keeps it."""
    known = leaf.leaf_node() if leaf.leaf_node else None
    if known is None:
        known = LeafNode(leaf)
        leaf.leaf_node = weakref.ref(known)
    return known


def node_for(rule: BackwardRule, *inputs: Tensor) -> Node | None:
    """A new node if any input needs a gradient and gradients are on, else None."""
    tape = inputs[0].tape
    tape.reads(inputs)
    if tape.record is not None and not tape.record.input_shape:
        tape.record.input_shape = inputs[0].shape
    if not tape.grad_enabled:
        return None
    for tensor in inputs:
        if tensor.requires_grad:
            return Node(tape, rule, inputs)
    return None


def _count_dependencies(root: AnyNode) -> dict[AnyNode, int]:
    counts: dict[AnyNode, int] = {}
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, LeafNode):
            continue
        for edge in node.edges:
            if edge is None:
                continue
            following = edge[0]
            counts[following] = counts.get(following, 0) + 1
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return counts


def _fit(results: Grads, i: int, shape: Shape, dtype: str) -> Tensor | None:
    """Take result i and reduce it to its input's shape, then dtype (validate_outputs)."""
    gradient, results[i] = results[i], None
    if gradient is None:
        return None
    tape = gradient.tape
    if gradient.shape != shape:
        tape.using((gradient,))
        gradient = tape.empty("sum", shape, gradient.dtype)
    if gradient.dtype != dtype:
        tape.using((gradient,))
        gradient = tape.empty("_to_copy", gradient.shape, dtype, gradient.order)
    return gradient


def run_node(node: Node, grads: Grads) -> Grads:
    """Apply a node's rule and fit the results; saved tensors unpacked by hooks die on return."""
    saved = node.unpack()
    tape = next(t for t in grads if t is not None).tape
    tape.reads((*grads, *saved))
    node_outputs = node.rule(node, grads, saved)
    del saved
    for i, (shape, dtype) in enumerate(node.inputs):
        if node.edges[i] is None:
            node_outputs[i] = None
        else:
            node_outputs[i] = _fit(node_outputs, i, shape, dtype)
    return node_outputs


def send(edge: tuple[AnyNode, int], gradient: Tensor, buffers: dict[AnyNode, Grads]) -> None:
    """Put a gradient into its consumer's buffer, summed with one that is there."""
    following, slot = edge
    buffer = buffers.get(following)
    if buffer is None:
        buffer = buffers[following] = [None] * len(following.outputs)
    if buffer[slot] is None:
        buffer[slot] = gradient
        return
    alone = not gradient.tape.watched and not following.placed and _is_sole(buffer, slot)
    waiting = buffer[slot]
    assert waiting is not None
    gradient.tape.using((waiting, gradient))
    if alone:
        gradient.tape.in_place("add_", waiting, gradient)
        return
    order = waiting.order if waiting.is_dense else None
    if following.placed and gradient.shape != waiting.shape:  # this rank's rows of all of them
        gradient = gradient.tape.empty("clone", waiting.shape, waiting.dtype)
    buffer[slot] = gradient.tape.empty("add.Tensor", waiting.shape, waiting.dtype, order)


def _pass_on(
    edge: tuple[AnyNode, int], results: Grads, i: int, buffers: dict[AnyNode, Grads], summed: Grads
) -> None:
    """Send result i; one that is added to another lives as long as the node's results do."""
    gradient, results[i] = results[i], None
    if gradient is not None:
        if (buffers.get(edge[0]) or [None] * (edge[1] + 1))[edge[1]] is not None:
            summed.append(gradient)
        send(edge, gradient, buffers)


def _is_sole(buffer: Grads, slot: int) -> bool:
    """Whether a waiting gradient is dense and nothing but its buffer holds it and its storage.

    A view never is: it holds the tensor it was taken from, as of a product's rows seen as (b, s, h).
    """
    waiting = buffer[slot]
    if waiting is None or waiting.is_view or not waiting.is_dense:
        return False
    del waiting
    return _holders(buffer, slot) == _sole_holders()


def _holders(buffer: Grads, slot: int) -> tuple[int, int]:
    """References to a buffer's tensor and to its storage, this function's own included."""
    waiting = buffer[slot]
    return sys.getrefcount(waiting), sys.getrefcount(waiting.storage if waiting else None)


@functools.cache
def _sole_holders() -> tuple[int, int]:
    """What `_holders` counts for a tensor that only its buffer holds, in this interpreter."""
    return _holders([Tape().empty("probe", (ONE,), "uint8")], 0)


def backward(root: Tensor, seed: Tensor) -> None:
    """Run backward from root; gradients end in `leaf.grad`. root's node must exist."""
    tape = root.tape
    assert root.node is not None
    first = root.node
    waiting = _count_dependencies(first)
    buffers: dict[AnyNode, Grads] = {}
    send((first, root.output_nr), seed, buffers)
    del root
    ready: list[tuple[int, int, AnyNode]] = [(-first.number, 0, first)]
    pushes = 1
    visiting = started = tape.block
    while ready:
        node = heapq.heappop(ready)[2]
        grads = buffers.pop(node)
        if isinstance(node, LeafNode):
            gradient = grads.pop()
            if gradient is not None:
                node.accumulate(gradient)
                for hook in tape.gradient_hooks if node.leaf.name else ():  # no stage's input
                    hook(node.leaf)
            del gradient, grads
            continue
        if node.block != visiting:
            tape.mark(f"backward {APART.get(node.op, 'block')}", node.block)
            for moved in tape.block_hooks:
                moved(visiting, node.block)
            visiting = node.block
        if tape.op_hooks:
            begin_op(tape, node.block, node.op)
        tape.at(node.op, node.block)
        results = run_node(node, grads)
        del grads
        node.saved = None
        summed: Grads = []  # the node's results hold to their end what was added to another
        for i, edge in enumerate(node.edges):
            if edge is None:
                continue
            _pass_on(edge, results, i, buffers, summed)
            waiting[edge[0]] -= 1
            if not waiting[edge[0]]:
                heapq.heappush(ready, (-edge[0].number, pushes, edge[0]))
                pushes += 1
        del summed
    if visiting != started:  # no node outside the blocks came last
        for moved in tape.block_hooks:
            moved(visiting, started)
