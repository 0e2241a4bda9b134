"""A checkpoint inside a compiled block: which values backward makes anew, in the block's joint graph.

torch.compile takes a checkpoint that it finds in the code it compiles into the graph: forward values are
marked as kept or as recomputed, and the partitioner writes the recomputed ones a second time into
backward, each before its first use there. So there is one graph, and no second run of forward.
Here a recomputed value that backward reads gets a copy among backward's values, and so has what the
copy reads, down to kept values and inputs.
Source: torch/_functorch/partitioners.py of PyTorch 2.13 (must_recompute, cleanup_recompute_tags,
reordering_to_mimic_autograd_engine). Checked by: oracle/test_own_layers_compiled.py.
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.engine.blocks.compiled_graph import Operands, Value, large_operands
from memcalc.engine.checkpoint import policy


def with_recomputation(graph: list[Value], keep: frozenset[str]) -> list[Value]:
    """The graph's values in order, recomputed ones before their first use in backward.

    Copies are appended to `graph`, so that an index stays what it was; keep: operators whose outputs
    are kept, as `checkpoint.policy` reads them.
    """
    kept = _kept(graph, policy(keep))
    copies: dict[int, Value] = {}
    order: list[Value] = []
    for value in tuple(graph):
        if value.backward and value.kind != "input":
            value.reads = {
                _again(graph, kept, copies, order, read): aligned
                for read, aligned in value.reads.items()
            }
        order.append(value)
    return order


def _kept(graph: list[Value], keeps: Callable[[str], bool]) -> set[int]:
    """Forward values that are not recomputed: inputs, and the outputs of operators that are kept."""
    kept = {value.index for value in graph if value.kind == "input"}
    operator = ""
    keeping = False
    for value in graph:
        if value.backward or value.kind != "kernel":
            operator = ""
            continue
        if value.name != operator or value.name in ("mm", "addmm", "bmm", "_scaled_mm"):
            operator, keeping = value.name, keeps(value.name)  # its first output
        if keeping:
            kept.add(value.index)
    return kept


def _again(
    graph: list[Value], kept: set[int], copies: dict[int, Value], order: list[Value], read: int
) -> int:
    """The value backward reads in place of a forward one: itself, or a copy made now."""
    value = graph[read]
    if value.backward or read in kept:
        return read
    known = copies.get(read)
    if known is None:
        reads = {
            _again(graph, kept, copies, order, other): aligned
            for other, aligned in value.reads.items()
        }
        known = copies[read] = _copied(graph, value, reads)
        order.append(known)
    known.users += 1
    return known.index


def _copied(graph: list[Value], value: Value, reads: dict[int, bool]) -> Value:
    copy = Value(len(graph), value.kind, value.name, value.shape, value.dtype)
    copy.order, copy.op, copy.backward = value.order, value.op, True
    copy.size, copy.reads, copy.recomputed = value.size, reads, True
    copy.ran = list(value.ran)
    graph.append(copy)
    return copy


def beside_their_partners(
    graph: list[Value], reads: dict[int, Operands], stored: list[Value]
) -> list[Value]:
    """Backward's stored values, recomputed pointwise ones moved to later ones that share operands.

    The compiler makes both in one kernel, where the later does not depend on the earlier; what reads
    the earlier one then waits.
    """
    order = list(stored)
    for value in stored:
        if value.kind != "pointwise" or not value.recomputed:
            continue
        start = order.index(value)
        own, waiting = large_operands(graph, reads, value), {value.index}
        moved: list[Value] = [value]
        between: list[Value] = []
        for position in range(start + 1, len(order)):
            other = order[position]
            if waiting & reads[other.index].keys():
                waiting.add(other.index)
                moved.append(other)
                continue
            if other.kind == "pointwise" and own & large_operands(graph, reads, other):
                order[start:position] = [*between, *moved]
                break
            between.append(other)
    return order
