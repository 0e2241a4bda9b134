"""What stack litgpt does under Lightning Fabric with several GPUs, and what is refused in one line.

Fabric's FSDPStrategy shards over all of them; within a step's accumulation (no_backward_sync, FSDP's
no_sync) whole gradients wait on each rank, which is not described. Sequences are cut by one position,
so a sequence has at least two.
Source: Lightning-AI/litgpt litgpt/finetune/full.py; lightning/fabric/strategies/fsdp.py
(_FSDPBackwardSyncControl). Checked by: unit/test_stack_litgpt.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan

if TYPE_CHECKING:
    from memcalc.engine.kernels import Kernels
    from memcalc.engine.plan import Plan

CODE = "litgpt"


def check_fabric(layout: ParallelPlan, plan: Plan) -> None:
    """Raise ConfigError for ranks that Fabric's FSDP1 strategy does not have, or not described."""
    if layout.copies > 1 and layout.zero < 2:
        raise ConfigError(
            f"zero: got {layout.zero} with {layout.copies} GPUs on stack litgpt, which shards there; "
            "valid: --zero 3 or --fsdp"
        )
    if layout.copies > 1 and plan.resolved.grad_accum_steps > 1:
        raise NotInThisVersionError(
            f"grad-accum: got {plan.resolved.grad_accum_steps} with {layout.copies} GPUs on stack "
            "litgpt: FSDP's no_sync is not in this version; valid: 1"
        )


def fabric_kernels(kernels: Kernels, layout: ParallelPlan) -> Kernels:
    """FullyShardedDataParallel casts the model's buffers, its rotary tables, to 16 bit."""
    if kernels.traits.code != CODE or layout.copies == 1:
        return kernels
    return kernels._replace(traits=kernels.traits._replace(tables="full"))
