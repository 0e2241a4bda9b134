"""Tensor and sequence parallelism by DTensor: the engine's rank of stack torch against PyTorch's own.

Difference 0 in every setup, named or drawn: peak of the step and of each phase, where it is, states, saved
bytes, categories at the peak, and every allocation of the last micro-batch and of the optimizer with
what is freed before the next. No setup is excepted.
"""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.memory import step_memory
from tests.draws import drawn
from tests.oracle.support.data_parallel import engine_plan, engine_rows
from tests.oracle.support.tensor_cases import ALONE
from tests.oracle.support.tensor_parallel import disagreements, draw, optimizer_rows

#: Rotary tables are made by the engine in fewer steps (support/data_parallel.py).
_TABLES = ("rope_tables", "causal_mask")


@pytest.mark.parametrize("name", ALONE)
def test_a_rank_is_pytorchs(name: str) -> None:
    assert disagreements(ALONE[name]) == {}


@pytest.mark.parametrize("number", drawn(17))
def test_a_drawn_rank_is_pytorchs(number: int) -> None:
    case = draw(f"tensor parallel {number}", sharded=False)
    assert disagreements(case) == {}, case.name


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", ["tp", "tp-sp-gpt2"])
def test_two_real_processes_allocate_what_the_engine_says(
    between_processes: list[dict[str, Any]], name: str, rank: int
) -> None:
    plan = engine_plan(ALONE[f"real-{name}"])
    seen = between_processes[rank][name]
    ours = [(nbytes, phase, where) for nbytes, phase, where, _ in _allocations(plan)]
    assert ours == [
        (nbytes, phase, where)
        for nbytes, _, phase, where in seen["allocations"]
        if where not in _TABLES
    ]
    assert step_memory(plan).peak_bytes == seen["peak"]


def _allocations(plan: Any) -> list[Any]:
    return [*engine_rows(plan), *optimizer_rows(plan)]
