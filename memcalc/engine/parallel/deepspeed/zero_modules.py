"""The parameters of a whole model in the order its modules use them, with their sizes in elements.

DeepSpeed's ZeRO cuts flat lists of parameters and fetches module by module, so what happens when
depends on true sizes: its injectors are given these numbers and every block is traced.
Checked by: unit/test_deepspeed.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.structure import Beside, Run, Structure, structure_of

if TYPE_CHECKING:
    from memcalc.engine.ledger import OpRecord
    from memcalc.engine.plan import Plan

#: Repetitions of a run to trace so that none stands for others.
EVERY_BLOCK = 1 << 20


class Module(NamedTuple):
    """One operator with parameters: its block (-1 outside), and name and elements of each."""

    block: int
    op: str
    parameters: tuple[tuple[str, int], ...]


def modules_of(plan: Plan) -> tuple[Module, ...]:
    """Every module with parameters in the order of the forward pass; a tied head names its embedding."""
    beside = Beside((), plan.ends)
    structure, runs = structure_of(
        plan.config, plan.kernels, plan.kinds, plan.dims, plan.keeps_gradients, beside
    )
    key = ("modules", tuple(run.count for run in runs), tuple(sorted(plan.values.items())))
    known = structure.cache.get(key)
    if not isinstance(known, tuple):
        known = structure.cache[key] = tuple(_in_order(structure, runs, plan.values))
    return known


def _in_order(structure: Structure, runs: tuple[Run, ...], values: dict[str, int]) -> list[Module]:
    before: list[Module] = []
    after: list[Module] = []
    blocks: dict[int, list[Module]] = {}
    for (block, op), record in structure.records.items():
        if not record.params:
            continue
        if block >= 0:
            blocks.setdefault(block, []).append(_module(block, op, record, values))
        else:
            (after if blocks else before).append(_module(-1, op, record, values))
    layers: list[Module] = []
    first = number = 0
    for run in runs:
        for _ in range(run.count):
            for position in range(len(run.pattern)):
                layers += [_placed(one, number) for one in blocks.get(first + position, [])]
                number += 1
        first += run.traced * len(run.pattern)
    return [*before, *layers, *after]


def _module(block: int, op: str, record: OpRecord, values: dict[str, int]) -> Module:
    parameters = tuple((name, size.value(values)) for name, size in record.params.items())
    return Module(block, op, parameters)


def _placed(module: Module, block: int) -> Module:
    """The same module of another block, its parameters under their full names."""
    names = tuple((f"layers.{block}.{name}", size) for name, size in module.parameters)
    return Module(block, module.op, names)


def parameters_of(modules: tuple[Module, ...]) -> tuple[tuple[str, int], ...]:
    """Every parameter once, in the order of first use: DeepSpeed's flat order."""
    return tuple(dict(pair for module in modules for pair in module.parameters).items())
