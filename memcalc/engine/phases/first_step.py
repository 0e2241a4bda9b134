"""The first training step: the optimizer's states come into being at its end.

Forward and backward run without them, and without gradients of an earlier step. The optimizer makes all
states before it updates anything, so its own peak is that of every later step, with two exceptions:
momentum begins as a copy of the gradients and updates nothing, and Muon's step is over before the AdamW
beside it makes its states (with clipped gradients that is left out: the later steps' peak is given).
Checked by: oracle/test_phases.py, against PyTorch's first step.
"""

from __future__ import annotations

from dataclasses import replace

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.memory import StepMemory, optimizer_peak, step_memory, trace_of_optimizer
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves, block_of


def first_step(plan: Plan) -> dict[str, int]:
    """Peak of requested bytes of each phase of the first step, on one GPU.

    With one micro-batch none has gradients before it; with several the second one's are there.
    """
    setup = replace(plan.resolved.setup, set_to_none=True)
    fresh = plan._replace(resolved=plan.resolved._replace(setup=setup))
    later = step_memory(fresh)
    found = {name: size - later.states.optimizer_bytes for name, size in later.phases.items()}
    found["optimizer"] = _stepping(fresh, later)
    return found


def _stepping(plan: Plan, later: StepMemory) -> int:
    """The optimizer's own peak, over everything else that is there."""
    name, clips = plan.optimizer.name, plan.optimizer.grad_clip
    before = later.phases["optimizer"] - later.instants["optimizer"].live_bytes
    if name == "momentum":
        return before
    if name != "muon" or clips:
        return later.phases["optimizer"]
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    matrices = [leaf for leaf in leaves if block_of(leaf) >= 0 and len(leaf.shape) == 2]
    rest = [leaf for leaf in leaves if block_of(leaf) < 0 or len(leaf.shape) != 2]
    later_states = sum(
        product(shape).value(plan.values) * ITEMSIZE[dtype]
        for leaf in rest
        for shape, dtype in state_tensors(leaf, plan.optimizer)
    )
    first, second = (
        optimizer_peak(trace_of_optimizer(part, plan), plan).live_bytes for part in (matrices, rest)
    )
    return before + max(first - later_states, second)
