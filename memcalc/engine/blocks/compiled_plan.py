"""Which values of a compiled block's graph are stored, which are kept for backward, and when each lives.

Stored: what a matrix product or attention kernel makes or reads, sums, statistics and masks, what the
block hands out, and a result of more than four others that several kernels read. All else is computed
anew in each kernel that reads it. Kept: what forward stores and backward reads, no more.
Kernels run in the order of the block's description; pointwise results of one size that share an
operand are made together. A result takes the memory of an operand nobody reads again, also of a kept
one, where element i depends on element i alone.
Source: torch/_functorch/partitioners.py and torch/_inductor of PyTorch 2.13 (scheduler.py,
mark_reuse in ir.py, decide_inplace_update). Checked by: oracle/test_compiled.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.blocks.compiled_graph import Value
from memcalc.engine.sizes import product

#: A pointwise result read by several kernels is stored if it reads more stored values than this.
_READS_TO_STORE: Final = 4
Roots = dict[int, bool]  # stored values something is computed from -> whether element by element


class Step(NamedTuple):
    """One stored value comes into being. over: the value whose memory it takes, or -1.

    reads: stored values its kernel reads. ends: values nobody needs after it.
    """

    value: int
    over: int
    reads: tuple[int, ...]
    ends: tuple[int, ...]


class Program(NamedTuple):
    """The two programs of a compiled block, and the values that live from one to the other."""

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    kept: tuple[int, ...]


def program_of(graph: list[Value], result: int, gradients: tuple[int, ...]) -> Program:
    """The programs of a graph whose forward makes `result` and whose backward makes `gradients`."""
    roots = _roots(graph, {result, *gradients})
    stored = [v for v in graph if v.kind != "input" and v.index in roots[v.index]]
    forward = [v for v in stored if not v.backward]
    backward = [v for v in stored if v.backward]
    needed = {r for v in backward for r in _operands(graph, roots, v)} | set(gradients)
    kept = tuple(sorted(i for i in needed if not graph[i].backward))
    return Program(
        _schedule(graph, roots, [[v] for v in forward], {*kept, result}),
        _schedule(graph, roots, _fused(graph, roots, backward), set(gradients)),
        kept,
    )


def _roots(graph: list[Value], wanted: set[int]) -> list[Roots]:
    """The stored values each value is computed from: itself where it is stored."""
    stored = set(wanted)
    for value in graph:
        if value.kind == "kernel":
            stored.update(value.reads)
    roots: list[Roots] = []
    for value in graph:
        if value.kind == "pointwise" and value.index not in stored:
            found = _merged(roots, value)
            if len(found) <= _READS_TO_STORE or value.users < 2:
                roots.append(found)
                continue
        roots.append({value.index: True})
    return roots


def _merged(roots: list[Roots], value: Value) -> Roots:
    found: Roots = {}
    for read, in_place in value.reads.items():
        for root, aligned in roots[read].items():
            found[root] = found.get(root, True) and aligned and in_place
    return found


def _operands(graph: list[Value], roots: list[Roots], value: Value) -> Roots:
    """The stored values the kernel of a stored value reads."""
    return _merged(roots, value)


def _fused(graph: list[Value], roots: list[Roots], stored: list[Value]) -> list[list[Value]]:
    """Stored values in order, those that one kernel makes together."""
    groups: list[list[Value]] = []
    done = {value.index for value in graph if value.kind == "input"}
    for position, value in enumerate(stored):
        if value.index in done:
            continue
        group = [value]
        done.add(value.index)
        if value.kind == "pointwise":
            shared = _large_operands(graph, roots, value)
            for other in stored[position + 1 :]:
                if other.index in done or other.kind != "pointwise":
                    continue
                operands = _operands(graph, roots, other)
                ready = all(i in done or not graph[i].backward for i in operands)
                if ready and shared & _large_operands(graph, roots, other):
                    group.append(other)
            done.update(v.index for v in group)
        groups.append(group)
    return groups


def _large_operands(graph: list[Value], roots: list[Roots], value: Value) -> set[int]:
    """Operands of the value's own number of elements, inputs of the block left out."""
    numel = product(value.shape)
    return {
        i
        for i in _operands(graph, roots, value)
        if graph[i].kind != "input" and product(graph[i].shape) is numel
    }


def _schedule(
    graph: list[Value], roots: list[Roots], groups: list[list[Value]], outlive: set[int]
) -> tuple[Step, ...]:
    """The steps of one program; values in `outlive` are never given up."""
    reads = {v.index: _operands(graph, roots, v) for group in groups for v in group}
    last: dict[int, int] = {}
    for number, group in enumerate(groups):
        for value in group:
            last[value.index] = number
            last.update(dict.fromkeys(reads[value.index], number))
    steps: list[Step] = []
    for number, group in enumerate(groups):
        ending = {
            i
            for value in group
            for i in (*reads[value.index], value.index)
            if last[i] == number and i not in outlive
        }
        for value in group:
            over = _taken(graph, group, reads, ending, value)
            ending.discard(over)
            steps.append(Step(value.index, over, tuple(reads[value.index]), ()))
        steps[-1] = steps[-1]._replace(ends=tuple(sorted(ending)))
    return tuple(steps)


def _taken(
    graph: list[Value],
    group: list[Value],
    reads: dict[int, Roots],
    ending: set[int],
    value: Value,
) -> int:
    """The operand whose memory a pointwise result takes; -1 for none."""
    if value.kind != "pointwise":
        return -1
    for operand, aligned in reads[value.index].items():
        alone = all(operand not in reads[v.index] for v in group if v is not value)
        same = graph[operand].size is value.size and graph[operand].dtype == value.dtype
        if aligned and alone and same and operand in ending and graph[operand].kind != "input":
            return operand
    return -1
