"""Which values of a compiled block's graph are stored, which are kept for backward, and when each lives.

Stored: what a matrix product or attention kernel makes or reads, sums, statistics and masks, what the
block hands out, and a result of more than four others that several kernels read. All else is computed
anew in each kernel that reads it. Kept: what forward stores and backward reads, no more.
Kernels run in the order of the block's description; pointwise results of one size that share an
operand are made together. A result takes the memory of an operand nobody reads again, also of a kept
one, where element i depends on element i alone.
Source: torch/_functorch/partitioners.py and torch/_inductor of PyTorch 2.13 (scheduler.py, `mark_reuse`
in ir.py, `decide_inplace_update`, memory.py). Checked by: oracle/test_compiled.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.blocks.compiled_graph import Operands, Value, large_operands
from memcalc.engine.blocks.compiled_kernels import fused_kernels
from memcalc.engine.blocks.compiled_recompute import beside_their_partners
from memcalc.engine.kernel_log import Ran

#: A pointwise result read by several kernels is stored if it reads more stored values than this.
_READS_TO_STORE: Final = 4
Group = list[Value]  # stored values that one kernel makes


class Step(NamedTuple):
    """One stored value comes into being. over: the value whose memory it takes, or -1.

    reads: stored values its kernel reads. ends: values nobody needs after it. ran: the element-wise
    kernel that makes it, where it is the first that this kernel makes.
    """

    value: int
    over: int
    reads: tuple[int, ...]
    ends: tuple[int, ...]
    ran: tuple[Ran, ...] = ()


class Program(NamedTuple):
    """The two programs of a compiled block, and the values that live from one to the other."""

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    kept: tuple[int, ...]


def program_of(
    graph: list[Value],
    result: int,
    gradients: tuple[int, ...],
    order: list[Value] | None = None,
) -> Program:
    """The programs of a graph whose forward makes `result` and whose backward makes `gradients`.

    order: the values as they are made, where that is not the graph's own order.
    """
    listed = order or graph
    reads = _operands(listed, {result, *gradients})
    stored = [v for v in listed if v.kind != "input" and v.index in reads]
    forward = [v for v in stored if not v.backward]
    backward = _ordered(graph, [v for v in stored if v.backward])
    if order is not None:
        backward = beside_their_partners(graph, reads, backward)
    needed = set(gradients).union(*(reads[v.index] for v in backward))
    kept = tuple(sorted(i for i in needed if not graph[i].backward))
    return Program(
        _schedule(graph, reads, [[v] for v in forward], {*kept, result}),
        _schedule(graph, reads, _fused(graph, reads, backward), set(gradients)),
        kept,
    )


def _operands(graph: list[Value], wanted: set[int]) -> dict[int, Operands]:
    """What the kernel of each stored value reads of the stored ones; `wanted` are stored anyhow."""
    needed = wanted.union(*(v.reads for v in graph if v.kind == "kernel"))
    stored: dict[int, Operands] = {}
    seen: dict[int, Operands] = {}  # what a reader of each value reads in its stead
    for value in graph:
        operands: Operands = {}
        for read, in_place in value.reads.items():
            for operand, aligned in seen[read].items():
                operands[operand] = operands.get(operand, True) and aligned and in_place
        several = value.users > 1 and len(operands) > _READS_TO_STORE
        if value.kind != "pointwise" or value.index in needed or several:
            stored[value.index] = operands
            operands = {value.index: True}
        seen[value.index] = operands
    return stored


def _ordered(graph: list[Value], stored: list[Value]) -> list[Value]:
    """Backward's values in order; a weight's gradient moves before its input's where that ends more.

    The compiler turns the two round when the gradient they read was made in the block, by a cast or a
    dropout, for then its own estimate of the peak falls.
    """
    order: list[Value] = []
    for value in stored:
        order.append(value)
        if len(order) < 2 or (_product(order[-2]), _product(value)) != ("dgrad", "wgrad"):
            continue
        gradient = next(iter(value.reads))
        if order[-2].op == value.op and graph[gradient].kind == "pointwise":
            order[-2:] = [value, order[-2]]
    return order


def _product(value: Value) -> str:
    """`dgrad` or `wgrad` for a linear layer's gradients."""
    return value.ran[0].part if len(value.ran) == 1 else ""


def _fused(graph: list[Value], reads: dict[int, Operands], stored: list[Value]) -> list[Group]:
    """Stored values in order, those that one kernel makes together."""
    groups: list[Group] = []
    done = {value.index for value in graph if value.kind == "input"}
    for position, value in enumerate(stored):
        if value.index in done:
            continue
        group = [value]
        if value.kind == "pointwise":
            shared = large_operands(graph, reads, value)
            for other in stored[position + 1 :]:
                if other.kind != "pointwise" or other.index in done:
                    continue
                ready = all(i in done or not graph[i].backward for i in reads[other.index])
                if ready and shared & large_operands(graph, reads, other):
                    group.append(other)
        done.update(v.index for v in group)
        groups.append(group)
    return groups


def _schedule(
    graph: list[Value], reads: dict[int, Operands], groups: list[Group], outlive: set[int]
) -> tuple[Step, ...]:
    """The steps of one program; values in `outlive` are never given up."""
    last: dict[int, int] = {}
    for number, group in enumerate(groups):
        for value in group:
            last.update(dict.fromkeys((value.index, *reads[value.index]), number))
    steps: list[Step] = []
    launched = fused_kernels(graph, reads, [value for group in groups for value in group])
    for number, group in enumerate(groups):
        ending = {
            i
            for value in group
            for i in (value.index, *reads[value.index])
            if last[i] == number and i not in outlive
        }
        for value in group:
            over = _taken(graph, reads, group, ending, value)
            ending.discard(over)
            ran = launched.get(value.index)
            steps.append(
                Step(value.index, over, tuple(reads[value.index]), (), (ran,) if ran else ())
            )
        steps[-1] = steps[-1]._replace(ends=tuple(sorted(ending)))
    return tuple(steps)


def _taken(
    graph: list[Value], reads: dict[int, Operands], group: Group, ending: set[int], value: Value
) -> int:
    """The operand whose memory a pointwise result takes; -1 for none."""
    if value.kind != "pointwise":
        return -1
    for operand, aligned in reads[value.index].items():
        other = graph[operand]
        alone = all(operand not in reads[v.index] for v in group if v is not value)
        same = other.size is value.size and other.dtype == value.dtype
        if aligned and alone and same and operand in ending and other.kind != "input":
            return operand
    return -1
