"""FSDP2 beside tensor parallelism: the engine's rank of stack torch against PyTorch's own, difference 0.

Held is what test_tensor_parallel.py holds. Parts of the dp ranks are cut from parts of the tp ranks.
"""

from __future__ import annotations

import pytest

from memcalc.engine.memory import step_memory
from tests.oracle.support.data_parallel import engine_plan
from tests.oracle.support.tensor_cases import SHARDED
from tests.oracle.support.tensor_parallel import disagreements, draw


@pytest.mark.parametrize("name", SHARDED)
def test_a_rank_is_pytorchs(name: str) -> None:
    assert disagreements(SHARDED[name]) == {}


@pytest.mark.parametrize("number", range(14))
def test_a_drawn_rank_is_pytorchs(number: int) -> None:
    case = draw(f"sharded tensor parallel {number}", sharded=True)
    assert disagreements(case) == {}, case.name


def test_the_embeddings_gradient_is_cut_before_it_is_reduced() -> None:
    """Alone its rows of all ranks stay to the end of the step; sharded, gradients are parts."""
    for case in SHARDED.values():
        held = step_memory(engine_plan(case)).states
        assert held.gradient_bytes == held.parameter_bytes
