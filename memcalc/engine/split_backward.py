"""Backward in two halves, as PyTorch's zero-bubble pipelines run it: gradients of inputs, then of weights.

The first half runs the nodes that lead to a stage's input, computes nothing for weights, frees nothing
they saved, and notes what arrives at every node a parameter feeds. The graph on the output's side is
then let go; each noted node still holds what lies before it. The second half starts at the noted nodes,
a parameter after the other in the order of registration, and frees what those nodes saved; what the
others saved goes with the graph, at the end.
Variables have the names and lifetimes of torch/distributed/pipelining/_backward.py (PyTorch 2.13).
Checked by: oracle/test_pipeline.py.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from memcalc.engine.autograd import AnyNode, Grads, LeafNode, Node, leaf_node, run_node, send
from memcalc.engine.tensors import Tape, Tensor

Reverse = dict[AnyNode, list[AnyNode]]
#: A node, which of its outputs, and the gradient that arrives there.
Start = tuple[Node, int, Tensor]


class Group:
    """Parameters and the nodes they feed, with what arrived there."""

    __slots__ = ("grads", "nodes", "params")

    def __init__(self, param: LeafNode, nodes: list[Node]) -> None:
        self.params: list[LeafNode] = [param]
        self.nodes = nodes
        self.grads: list[tuple[Tensor | None, ...]] = [()] * len(nodes)

    def join(self, other: Group) -> None:
        """Take up another group that shares a node."""
        self.params += [param for param in other.params if param not in self.params]
        self.nodes += [node for node in other.nodes if node not in self.nodes]
        self.grads = [()] * len(self.nodes)


def backward_input(root: Tensor, seed: Tensor, given: Tensor) -> list[Group]:
    """The gradient of a stage's input, in `given.grad`; root loses its graph."""
    assert root.node is not None
    reverse = _reverse_graph([root.node])
    own = leaf_node(given)
    groups = _groups(root.tape.leaves.values(), own, reverse)
    noted: dict[AnyNode, list[tuple[Group, int]]] = {}
    for group in groups:
        for number, node in enumerate(group.nodes):
            noted.setdefault(node, []).append((group, number))

    def arrived(node: Node, grads: Grads) -> None:
        for group, number in noted.get(node, ()):
            group.grads[number] = tuple(grads)

    starts: list[Start] = [(root.node, root.output_nr, seed)]
    given.grad = _execute(starts, [own], True, arrived)[own]
    root.node = None
    return groups


def backward_weights(groups: list[Group]) -> None:
    """The gradients of all parameters: kept where there are none yet, else added in place."""
    for group in groups:
        starts: list[Start] = []
        for grads, node in zip(group.grads, group.nodes, strict=True):
            for number, grad in enumerate(grads):
                if grad is not None:
                    starts.append((node, number, grad))
        fixed: dict[AnyNode, tuple[Tensor | None, ...]] = {}
        if len(group.nodes) > 1:
            fixed = dict(zip(group.nodes, group.grads, strict=True))
        group.nodes = []

        def clamped(
            node: Node,
            grads: Grads,
            fixed: Mapping[AnyNode, tuple[Tensor | None, ...]] = fixed,
        ) -> None:
            if node in fixed:
                grads[:] = fixed[node]

        made = _execute(starts, group.params, False, clamped)
        del fixed, clamped
        group.grads = []
        for param in group.params:
            made[param].tape.gradient_made(made[param], param.leaf.grad)
            if param.leaf.grad is None:
                param.leaf.grad = made[param].detach()


def _reverse_graph(roots: list[Node]) -> Reverse:
    """Which nodes feed gradients into each node, over all that can be reached."""
    reverse: Reverse = {}
    queue: deque[AnyNode] = deque(roots)
    while queue:
        node = queue.popleft()
        for edge in () if isinstance(node, LeafNode) else node.edges:
            if edge is not None:
                if edge[0] not in reverse:
                    reverse[edge[0]] = []
                    queue.append(edge[0])
                reverse[edge[0]].append(node)
    return reverse


def _closure(
    starts: Iterable[AnyNode], reverse: Reverse, targets: frozenset[AnyNode] = frozenset()
) -> tuple[set[AnyNode], list[AnyNode]]:
    """All nodes that lead to the starts, up to the targets; and the targets met."""
    closure, met = set(starts), dict[AnyNode, None]()
    queue = deque(closure)
    while queue:
        for node in reverse.get(queue.popleft(), ()):
            if node in targets:
                met[node] = None
            elif node not in closure:
                closure.add(node)
                queue.append(node)
    return closure, list(met)


def _groups(leaves: Iterable[Tensor], own: LeafNode, reverse: Reverse) -> list[Group]:
    """Parameters by the nodes that their gradients come from, in the order of registration."""
    leading = frozenset(_closure([own], reverse)[0])
    groups: dict[Node, Group] = {}
    for leaf in leaves:
        param = leaf_node(leaf)
        met = [node for node in _closure([param], reverse, leading)[1] if isinstance(node, Node)]
        group = Group(param, met)
        for node in met:
            known = groups.get(node)
            if known is None:
                groups[node] = group
            elif known is not group:
                known.join(group)
                group = known
    return list(dict.fromkeys(groups.values()))


def _execute(
    starts: list[Start],
    targets: list[LeafNode],
    keeps_saved: bool,
    before: Callable[[Node, Grads], None],
) -> dict[LeafNode, Tensor]:
    """Run the nodes between the starts and the targets; the targets' gradients.

    before: called with a node and what arrived there. keeps_saved: saved tensors stay.
    """
    reverse = _reverse_graph([node for node, _, _ in starts])
    needed, _ = _closure(targets, reverse)
    waiting = {node: sum(1 for _ in reverse.get(node, ())) for node in needed}
    made: dict[LeafNode, Tensor] = {}
    buffers: dict[AnyNode, Grads] = {}
    ready: list[tuple[int, int, AnyNode]] = []
    for number, (node, slot, gradient) in enumerate(starts):
        send((node, slot), gradient, buffers)
        if not waiting.get(node) and all(known is not node for _, _, known in ready):
            heapq.heappush(ready, (-node.number, number, node))
    node, pushes = starts[0][0], len(starts)
    tape = starts[0][2].tape
    del gradient
    del reverse
    while ready:
        node = heapq.heappop(ready)[2]  # type: ignore[assignment]
        grads = buffers.pop(node)
        if isinstance(node, LeafNode):
            made[node] = grads.pop()
            continue
        before(node, grads)
        results = _needed_only(tape, node, grads, needed)
        del grads
        if not keeps_saved:
            node.saved = None
        for i, edge in enumerate(node.edges):
            gradient, results[i] = results[i], None  # type: ignore[assignment]
            if edge is None or edge[0] not in needed:
                continue
            if gradient is not None:
                send(edge, gradient, buffers)
            del gradient
            waiting[edge[0]] -= 1
            if not waiting[edge[0]]:
                heapq.heappush(ready, (-edge[0].number, pushes, edge[0]))
                pushes += 1
    return made


def _needed_only(tape: Tape, node: Node, grads: Grads, needed: set[AnyNode]) -> Grads:
    """What a node's rule gives, asked only for what leads to a target."""
    if node.block >= -1:
        tape.at(node.op, node.block)
    whole = node.needs
    node.needs = tuple(edge is not None and edge[0] in needed for edge in node.edges)
    results = run_node(node, grads)
    node.needs = whole
    return results
