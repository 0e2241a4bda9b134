"""What a layout means on a stack: the resolved degrees, the split kernels, the strategy for states.

Everything that depends on whose code runs is decided here, from the stack's `[parallel]` table.
Checked by: unit/test_parallel_choices.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from memcalc.engine.kernels import Kernels
from memcalc.engine.parallel.rules import check_layout
from memcalc.engine.parallel.strategy import Strategy, Whole
from memcalc.errors import NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def resolve_layout(
    parallel: ParallelPlan, plan: Plan, stack: Stack
) -> tuple[ParallelPlan, tuple[str, ...]]:
    """The layout with what the stack decides filled in, and what a reader must know of it.

    Raises ConfigError when a degree does not go with the model or the setup.
    """
    sp = parallel.sp
    if sp is None:
        sp = parallel.tp > 1 and bool(stack.parallel.get("sp", False))
    layout = replace(parallel, sp=sp)
    notes = check_layout(layout, plan, stack)
    return layout, notes


def split_kernels(kernels: Kernels, layout: ParallelPlan, stack: Stack) -> Kernels:
    """The kernels of a layer that several ranks share."""
    if layout.tp > 1:
        raise NotInThisVersionError("tp: not in this version")
    return kernels


def strategy_for(plan: Plan, stack: Stack) -> Strategy:
    """How this stack's ranks hold the states under the plan's layout."""
    layout = plan.parallel
    if layout.copies * layout.cp == 1 or layout.is_single:
        return Whole()
    raise NotInThisVersionError(f"dp: not in this version for stack {stack.name}")
