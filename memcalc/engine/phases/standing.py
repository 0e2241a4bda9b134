"""What a rank holds between steps, whatever phase comes next: parameters, states, what is never freed.

Gradients are counted where a strategy keeps them for the whole run (DDP's buckets as views, ZeRO-3's
parts) or zero_grad keeps them; buffers are token ids, tables and those of the strategy. Of a pipeline's
ranks it is the one that holds most.
Checked by: oracle/test_phases_ranks.py, unit/test_phases_divided.py.
"""

from __future__ import annotations

from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.pipeline.pipeline import Stage, stage_of
from memcalc.engine.plan import Plan
from memcalc.engine.states import all_leaves, bytes_of_held


def standing(plan: Plan) -> dict[str, int]:
    """Bytes of a rank between two steps, by part; parts of nothing are left out."""
    if plan.parallel.pp > 1:
        worst = max(_stages(plan), key=lambda stage: sum(stage.static.values()))
        return {name: size for name, size in worst.static.items() if size}
    held = step_memory(plan)
    states, fixed = held.states, plan.strategy.fixed_bytes(plan)
    stays = plan.strategy.persistent_gradients or not plan.resolved.setup.set_to_none
    parts = {
        "parameters": states.parameter_bytes + fixed.get("gathered", 0),
        "optimizer": states.optimizer_bytes + states.master_bytes,
        "gradients": states.gradient_bytes if stays else 0,
        "buffers": held.input_bytes + sum(v for k, v in fixed.items() if k != "gathered"),
    }
    return {name: size for name, size in parts.items() if size}


def parameter_bytes(plan: Plan) -> int:
    """Bytes of the parameters of the rank that holds most of them."""
    if plan.parallel.pp > 1:
        return max(stage.states.parameter_bytes for stage in _stages(plan))
    return step_memory(plan).states.parameter_bytes


def largest_tensor(plan: Plan) -> int:
    """Bytes of the largest parameter, or part of one, on a rank."""
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    return max(bytes_of_held(plan.strategy.parameter(leaf), plan.values) for leaf in leaves)


def _stages(plan: Plan) -> list[Stage]:
    return [stage_of(plan, rank) for rank in range(plan.parallel.pp)]
