"""What a rank holds between steps, whatever phase comes next: parameters, states, what is never freed.

Gradients are counted where a strategy keeps them for the whole run (DDP's buckets as views, ZeRO-3's
parts) or zero_grad keeps them; buffers are token ids, tables and those of the strategy.
Checked by: oracle/test_phases_ranks.py.
"""

from __future__ import annotations

from memcalc.engine.memory import StepMemory
from memcalc.engine.plan import Plan


def standing(plan: Plan, held: StepMemory) -> dict[str, int]:
    """Bytes of a rank between two steps, by part; parts of nothing are left out."""
    states, fixed = held.states, plan.strategy.fixed_bytes(plan)
    stays = plan.strategy.persistent_gradients or not plan.resolved.setup.set_to_none
    parts = {
        "parameters": states.parameter_bytes + fixed.get("gathered", 0),
        "optimizer": states.optimizer_bytes + states.master_bytes,
        "gradients": states.gradient_bytes if stays else 0,
        "buffers": held.input_bytes + sum(v for k, v in fixed.items() if k != "gathered"),
    }
    return {name: size for name, size in parts.items() if size}
