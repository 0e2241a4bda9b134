"""A plan's micro-batch as the rows that megatron_model.rows gives of real torch functions.

Used by: oracle/test_megatron_functions.py, oracle/test_megatron_experts.py.
"""

from __future__ import annotations

from memcalc.engine.plan import Plan
from memcalc.engine.program import expanded
from memcalc.engine.timeline import size_values
from tests.oracle.support.megatron_model import Row


def plan_rows(plan: Plan) -> tuple[list[Row], int]:
    """Every allocation of one micro-batch, blocks written out, and how many of them are forward's."""
    structure, runs = plan.structure(True)
    stream = expanded(structure, runs)
    sizes = stream.sizes(size_values(structure, plan.values))
    gathered: list[tuple[int, list[int]]] = []
    forward = 0
    for event in stream.events:
        if event < 0:
            gathered[-1][1].append(sizes[~event])
            continue
        phase = structure.labels[structure.labels_of[stream.traced[event]]].phase
        forward += phase != "backward"
        gathered.append((sizes[event], []))
    return [(size, tuple(sorted(freed))) for size, freed in gathered], forward
