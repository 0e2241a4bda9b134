"""Which stored values of a compiled block one kernel makes, and the bytes that kernel moves.

Kernels that run over the same elements and share an operand, or of which one reads what the other
makes, become one, unless a third kernel lies between them: it would have to run before and after.
A fused kernel reads each operand once and writes each stored result. What sums along rows (a norm, a
softmax) and what sums over them (gradients of a norm's weight and of biases) go through the elements in
another order and stay apart; what does neither joins both. A sum over rows is made in parts, and a small
kernel, which also casts the result, adds the parts up. (With many more rows than columns the compiler
of 2.10 and later has one kernel for both orders, which saves reading operands again: not followed.)
Source: torch/_inductor/scheduler.py (can_fuse, score_fusion_memory, MixOrderReduction) of PyTorch 2.13.
Checked by: oracle/test_works_compiled.py, against the compiler's CUDA programs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.blocks.compiled_graph import Operands, Value
from memcalc.engine.kernel_log import NO_KERNEL, Ran
from memcalc.engine.sizes import ONE, ZERO, Size, product

#: Element-wise results whose kernels sum along rows on their way.
_ALONG_ROWS: Final = frozenset(
    {"_fused_rms_norm_backward", "native_layer_norm_backward", "_softmax_backward_data"}
)


class Space(NamedTuple):
    """The elements a kernel runs over, and in which order: rows, columns, or either ("")."""

    elements: Size
    order: str = ""

    def meets(self, other: Space) -> bool:
        """Whether one kernel can do both."""
        alike = self.order == other.order or not (self.order and other.order)
        return self.elements is other.elements and alike


class _Node:
    """A kernel in the making: its stored values, what they read, and what it runs over."""

    def __init__(self, value: Value, space: Space | None, reads: Operands) -> None:
        self.values, self.space, self.reads = [value], space, set(reads)
        self.touched = {value.index, *reads}

    def join(self, value: Value, space: Space | None, reads: Operands) -> None:
        self.values.append(value)
        self.reads.update(reads)
        self.touched.update(reads, (value.index,))
        if self.space and space and not self.space.order and self.space.elements is space.elements:
            self.space = space


def fused_kernels(
    graph: list[Value], reads: dict[int, Operands], order: list[Value]
) -> dict[int, Ran]:
    """The element-wise kernels of one program, by the first stored value each makes."""
    nodes: list[_Node] = []
    maker: dict[int, _Node] = {}
    for value in order:
        operands = reads[value.index]
        space = None if value.kind == "kernel" else _space(graph, reads, value)
        node = _sum_before(maker, value, operands) or _partner(nodes, maker, space, operands)
        if node is None:
            node = _Node(value, space, operands)
            nodes.append(node)
        else:
            node.join(value, space, operands)
        maker[value.index] = node
    return {n.values[0].index: _ran(graph, n, n.space) for n in nodes if n.space is not None}


def _space(graph: list[Value], reads: dict[int, Operands], value: Value) -> Space:
    """What a kernel runs over: its result's elements, of a sum those of its widest operand."""
    own = product(_before_ranks(graph, value).shape)
    if value.kind != "reduction":
        return Space(own, "rows" if _sums_along_rows(graph, reads, value) else "")
    widest = max([own, *(product(graph[i].shape) for i in value.reads)], key=_magnitude)
    if widest is own:  # a dropout's mask
        return Space(own)
    return Space(widest, "rows" if value.shape[-1] is ONE else "columns")


def _before_ranks(graph: list[Value], value: Value) -> Value:
    """What the kernel makes of a value that ranks exchange: this rank's part."""
    return graph[next(iter(value.reads))] if value.name in NO_KERNEL and value.reads else value


def _sums_along_rows(graph: list[Value], reads: dict[int, Operands], value: Value) -> bool:
    """Whether a value, or one that is computed inside its kernel, takes sums of rows."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one.name in _ALONG_ROWS and one.kind == "pointwise":
            return True
        inside = (graph[i] for i in one.reads if i not in reads)
        waiting += [other for other in inside if other.kind == "pointwise"]
    return False


def _magnitude(size: Size) -> tuple[int, int]:
    return max(((len(dims), factor) for dims, factor in size.terms), default=(0, 0))


def _sum_before(maker: dict[int, _Node], value: Value, reads: Operands) -> _Node | None:
    """The sum over rows whose result a value casts or scales: the sum's last kernel does it."""
    if value.kind != "pointwise" or len(reads) != 1:
        return None
    (one,) = (maker.get(i) for i in reads)
    if one is None or one.space is None or one.space.order != "columns":
        return None
    return one if product(value.shape) is not one.space.elements else None


def _partner(
    nodes: list[_Node], maker: dict[int, _Node], space: Space | None, reads: Operands
) -> _Node | None:
    """The kernel that a value joins: the one it shares most with."""
    if space is None:
        return None
    best, most = None, 1
    for node in nodes:
        if node.space is None or node.space.elements is not space.elements:
            continue
        shared = len(reads.keys() & node.touched)
        if shared >= most and node.space.meets(space):
            others = {id(m): m for i in reads if (m := maker.get(i)) not in (None, node)}
            if not any(_follows(other, node, maker) for other in others.values()):
                best, most = node, shared
    return best


def _follows(node: _Node | None, earlier: _Node, maker: dict[int, _Node]) -> bool:
    """Whether a kernel reads, directly or not, what the earlier one makes."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one is earlier:
            return True
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [maker.get(i) for i in one.reads if maker.get(i) is not one]
    return False


def _ran(graph: list[Value], node: _Node, space: Space) -> Ran:
    made, moved = {value.index for value in node.values}, ZERO
    for index in sorted(node.touched):
        value = graph[index]
        moved = moved + (_before_ranks(graph, value) if index in made else value).size
    first, launches = node.values[0], 1
    if space.order == "columns":
        launches += sum(value.kind == "reduction" for value in node.values)
    return Ran("moved", first.name, first.dtype, "", (), ZERO, moved, launches)
