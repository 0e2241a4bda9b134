"""What one rank holds of each part of the model: elements and bytes, so that a division can be followed.

Counts come off the leaves of the whole model's trace and of the rank's. Optimizer states are a total:
where they are flat over ranks they belong to no part.
Checked by: unit/test_explain_layouts.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.plan import Plan
from memcalc.engine.states import block_of, bytes_of_held, multiplicity, states

#: Words of a parameter's name that say its part, first match wins.
_PARTS = (
    ("expert_", "experts"), ("shared_", "shared experts"), ("router", "routers"), ("norm", "norms"),
    ("gate_proj", "MLP"), ("up_proj", "MLP"), ("down_proj", "MLP"), ("fc", "MLP"), ("mlp", "MLP"),
)  # fmt: skip


class Holding(NamedTuple):
    """One part: elements of the whole model and of this rank, and the rank's bytes."""

    part: str
    model_elements: int
    rank_elements: int  # before states are sharded over data-parallel ranks
    parameter_bytes: int
    gradient_bytes: int


def holdings(plan: Plan) -> tuple[Holding, ...]:
    """Each part of the model, in the order of its first use, and their sum.

    With pipeline stages the rank is one that would hold all of them.
    """
    whole = _elements(plan.whole)
    own, held = _elements(plan), _held(plan)
    rows = [
        Holding(part, whole.get(part, 0), own.get(part, 0), *held.get(part, (0, 0)))
        for part in {**whole, **own}
    ]
    total = Holding(
        "all parameters",
        sum(row.model_elements for row in rows),
        sum(row.rank_elements for row in rows),
        sum(row.parameter_bytes for row in rows),
        sum(row.gradient_bytes for row in rows),
    )
    return (*rows, total)


def state_bytes(plan: Plan) -> dict[str, int]:
    """Bytes of the rank's optimizer states and master copies."""
    structure, runs = plan.structure(*plan.peak_batch)
    found = states(structure, runs, plan.optimizer, plan.values, plan.strategy)
    return {"optimizer states": found.optimizer_bytes, "master copies": found.master_bytes}


def part_of(name: str) -> str:
    """The part of the model a parameter belongs to."""
    if not name.startswith("layers."):
        return name.rsplit(".", 1)[0]
    own = name.split(".", 2)[2]
    return next((part for word, part in _PARTS if word in own), "attention")


def _elements(plan: Plan) -> dict[str, int]:
    structure, runs = plan.structure(plan.keeps_gradients)
    times, found = multiplicity(runs), dict[str, int]()
    for leaf in structure.leaves:
        count = times[block_of(leaf)] * leaf.numel.value(plan.values)
        found[part_of(leaf.name)] = found.get(part_of(leaf.name), 0) + count
    return found


def _held(plan: Plan) -> dict[str, tuple[int, int]]:
    """Bytes of parameters and of gradients by part."""
    structure, runs = plan.structure(*plan.peak_batch)
    times, found = multiplicity(runs), dict[str, tuple[int, int]]()
    for leaf in structure.leaves:
        number, part = times[block_of(leaf)], part_of(leaf.name)
        parameters, gradients = found.get(part, (0, 0))
        parameters += number * bytes_of_held(plan.strategy.parameter(leaf), plan.values)
        gradients += number * bytes_of_held(plan.strategy.gradient(leaf), plan.values)
        found[part] = parameters, gradients
    return found
