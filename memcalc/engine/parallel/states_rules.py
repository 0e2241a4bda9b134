"""Which ways to split a model's states PyTorch's own data parallelism has, and what it does not run.

Every refusal is one line: what was got, the rule, what is valid.
Checked by: unit/test_states_divided.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.parallel.tensor.tensor_rules import check_parts
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan, divisors

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def check_states(layout: ParallelPlan, plan: Plan) -> tuple[str, ...]:
    """Raise ConfigError unless fully_shard or DDP can hold the states so; returns notes."""
    _check_groups(layout)
    _check_reshard(layout)
    if layout.zero > 1:
        check_parts(plan, "fsdp" if layout.fsdp else f"zero {layout.zero}")
    return tuple(_notes(layout, plan))


def _check_groups(layout: ParallelPlan) -> None:
    if layout.shard is None:
        return
    ranks = layout.copies * layout.cp
    if layout.zero < 2:
        raise ConfigError(
            f"shard: got {layout.shard} without fsdp; rule: of sharded parameters; valid: --fsdp"
        )
    if ranks % layout.shard:
        raise ConfigError(
            f"shard: got {layout.shard}; rule: divides the {ranks} ranks of dp x cp; "
            f"valid: {', '.join(map(str, divisors(ranks)))}"
        )


def _check_reshard(layout: ParallelPlan) -> None:
    """Of fsdp only; over fewer ranks only whole groups of them; stage 2 keeps parameters whole."""
    reshard = layout.reshard
    if reshard is None:
        return
    if layout.zero < 3:
        what = f"zero {layout.zero}" if layout.zero else "no fsdp"
        raise ConfigError(
            f"reshard: got {reshard} with {what}; rule: of sharded parameters; valid: --fsdp"
        )
    if not isinstance(reshard, bool) and layout.shard_ranks % reshard:
        raise ConfigError(
            f"reshard: got {reshard}; rule: divides the {layout.shard_ranks} ranks that share "
            f"parameters; valid: {', '.join(map(str, divisors(layout.shard_ranks)))}"
        )


def _notes(layout: ParallelPlan, plan: Plan) -> list[str]:
    """What was not held against PyTorch, and what a reader may not expect of it."""
    notes = []
    ranks = layout.copies * layout.cp
    if ranks > 1 and plan.kernels.hf:
        notes.append("several ranks on stack hf: not compared with a running library")
    if ranks > 1 and plan.kernels.compiled:
        notes.append("compiled blocks on several ranks: not compared with PyTorch")
    if layout.zero == 1 and ranks > 1:
        notes.append(
            "zero 1: DDP with ZeroRedundancyOptimizer, which gives whole parameters to a rank; "
            "figures of the rank that has most"
        )
    if layout.zero == 2:
        notes.append(
            "zero 2: fully_shard that keeps gathered parameters from forward to backward; between "
            "steps they are sharded too"
        )
    return notes
