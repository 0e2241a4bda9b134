"""What a layout means on a stack: the resolved degrees, the split kernels, the strategy for states.

Everything that depends on whose code runs is decided here, from the stack's `[parallel]` table.
Checked by: cli/test_layouts.py, unit/test_states_divided.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from memcalc.engine.kernels import DTensors, Kernels
from memcalc.engine.parallel.context.context import check_context, context_split
from memcalc.engine.parallel.data.ddp import ddp_of
from memcalc.engine.parallel.data.fsdp1 import check_fsdp1, fsdp1_of
from memcalc.engine.parallel.data.fsdp2 import fsdp2_of
from memcalc.engine.parallel.data.fsdp2_stages import fsdp2_stages_of
from memcalc.engine.parallel.data.offload_fsdp2 import offloaded
from memcalc.engine.parallel.deepspeed.deepspeed import deepspeed_of
from memcalc.engine.parallel.deepspeed.deepspeed_megatron import (
    megatron_deepspeed_states,
    runs_megatron_deepspeed,
)
from memcalc.engine.parallel.deepspeed.deepspeed_setup import (
    check_deepspeed,
    deepspeed_notes,
    runs_deepspeed,
)
from memcalc.engine.parallel.experts.experts import check_spread, spread
from memcalc.engine.parallel.fabric import CODE as FABRIC
from memcalc.engine.parallel.fabric import check_fabric, fabric_kernels
from memcalc.engine.parallel.megatron.megatron import megatron_states
from memcalc.engine.parallel.megatron.megatron_layout import megatron_split
from memcalc.engine.parallel.megatron.megatron_rules import check_megatron
from memcalc.engine.parallel.megatron.nanotron import nanotron_states
from memcalc.engine.parallel.megatron.nanotron_layout import check_nanotron, runs_nanotron
from memcalc.engine.parallel.offload import moves_activations, resolve_offload
from memcalc.engine.parallel.rules import check_layout
from memcalc.engine.parallel.states_rules import check_states
from memcalc.engine.parallel.strategy import Strategy, Whole
from memcalc.engine.parallel.tensor.tensor_rules import (
    check_dtensor,
    check_kept,
    dtensor_notes,
    refuse_copies,
)
from memcalc.engine.parallel.tensor.tensor_states import TensorParts
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
    if plan.kernels.megatron is None:
        layout, said = resolve_offload(layout, plan, stack)
        notes += said
    if runs_nanotron(plan.kernels):
        check_nanotron(layout, plan.config)
    elif plan.kernels.megatron is not None:
        check_megatron(layout, plan.config)
    elif layout.tp > 1 and stack.parallel.get("tensor") == "dtensor":
        notes += _check_dtensor(layout, plan)
    if layout.cp > 1 and plan.kernels.megatron is None:
        notes += check_context(layout, plan, stack)
    if plan.kernels.megatron is None:
        notes += check_spread(layout, plan, stack)
    if stack.parallel.get("states") == "fsdp2":
        notes += check_states(layout, plan)
    elif stack.parallel.get("states") == "fsdp1":
        check_fsdp1(layout, stack)
        if plan.kernels.traits.code == FABRIC:
            check_fabric(layout, plan)
    elif runs_deepspeed(stack):
        check_deepspeed(layout, stack)
        notes += deepspeed_notes(layout, plan.config.hidden_size, stack)
    return layout, notes


def _check_dtensor(layout: ParallelPlan, plan: Plan) -> tuple[str, ...]:
    """Refuse what PyTorch's own tensor parallelism does of a model and beside it; returns notes."""
    check_dtensor(layout.tp, layout.sp is True, plan)
    if layout.copies * layout.cp > 1 and layout.zero < 2:
        raise refuse_copies(layout.tp, layout.copies, layout.cp, plan.config)
    check_kept(layout.reshard, layout.tp, layout.shard_ranks)
    return dtensor_notes(layout, plan.config)


def split_kernels(plan: Plan, layout: ParallelPlan, stack: Stack) -> Kernels:
    """The kernels of a layer that several ranks share."""
    kernels = plan.kernels
    if kernels.megatron is not None:
        return megatron_split(kernels, layout, plan.resolved)
    kernels = context_split(kernels, layout, plan.resolved.setup.recompute)
    kernels = fabric_kernels(kernels, layout)._replace(expert_ranks=layout.ep)
    if layout.tp == 1:
        return kernels._replace(offloads=kernels.offloads or moves_activations(layout))
    if stack.parallel.get("tensor") == "dtensor":
        return kernels._replace(dtensor=DTensors(layout.sp is True))
    raise NotInThisVersionError(f"tp: not in this version for stack {stack.name}; valid: torch")


def strategy_for(plan: Plan, stack: Stack) -> Strategy:
    """How this stack's ranks hold the states under the plan's layout."""
    layout = plan.parallel
    if runs_nanotron(plan.kernels):
        return nanotron_states(plan, stack)
    if runs_megatron_deepspeed(plan.kernels):
        return megatron_deepspeed_states(plan, stack)
    if plan.kernels.megatron is not None:
        return megatron_states(plan, stack)
    if runs_deepspeed(stack):
        return deepspeed_of(plan, stack)
    if layout.copies * layout.cp == 1 and layout.zero < 2:
        return TensorParts(not plan.resolved.setup.set_to_none) if layout.tp > 1 else Whole()
    if stack.parallel.get("states") == "fsdp1":
        return fsdp1_of(plan, stack) if layout.zero > 1 else ddp_of(plan, stack)
    if stack.parallel.get("states") == "fsdp2":
        if layout.zero < 2:
            return ddp_of(plan, stack)
        if layout.pp > 1 and layout.ep == 1 and layout.offload == "none":
            return fsdp2_stages_of(plan)
        last = bool(stack.parallel.get("keeps_last", False)) and layout.reshard is None
        sharded = replace(fsdp2_of(plan), keeps_last=last)
        return offloaded(spread(sharded, plan, stack), layout)
    raise NotInThisVersionError(f"dp: not in this version for stack {stack.name}")
