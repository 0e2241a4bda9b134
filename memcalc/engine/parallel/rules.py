"""Which layouts a model allows: what must divide what, on which stack.

Every refusal is one line: what was got, the rule, what is valid for this model.
Checked by: cli/test_layouts.py, unit/test_tensor_rules.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.parallel.pipeline.stage_rules import check_stages
from memcalc.errors import ConfigError
from memcalc.inputs.clusters import Cluster
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def check_layout(layout: ParallelPlan, plan: Plan, stack: Stack) -> tuple[str, ...]:
    """Raise ConfigError unless the model and the setup allow this layout; returns notes."""
    if layout.tp_layout != "1d":
        raise ConfigError(
            f"tp-layout: got {layout.tp_layout}; rule: estimated in 1d, the others are closed forms "
            "without a timeline; valid: 1d, or memcalc explain"
        )
    notes: list[str] = []
    _check_tensor(layout, plan.config)
    _check_sequence(layout, plan)
    _check_experts(layout, plan.config)
    notes += check_stages(layout, plan, stack)
    if layout.copies > 1 and not layout.sharded and layout.offload == "none":
        notes.append(
            f"dp {layout.copies} without sharding: every rank holds all states; memory per GPU "
            "does not fall"
        )
    return tuple(notes)


def _check_tensor(layout: ParallelPlan, config: ModelConfig) -> None:
    heads = config.num_attention_heads
    if heads % layout.tp:
        valid = ", ".join(map(str, divisors(heads)))
        raise ConfigError(f"tp={layout.tp} does not divide {heads} heads; valid: {valid}")


def _check_sequence(layout: ParallelPlan, plan: Plan) -> None:
    """Sequence and context parallelism cut the sequence evenly."""
    seq = plan.resolved.seq_len
    step = layout.cp * (2 if layout.cp > 1 and layout.cp_method == "ring" else 1)
    step *= layout.tp if layout.sp else 1
    if seq % step:
        near = max(1, round(seq / step)) * step
        what = "cp" if layout.cp > 1 else "sp"
        raise ConfigError(
            f"seq: got {seq} with {what}; rule: a multiple of {step}; nearest valid: {near}"
        )


def _check_experts(layout: ParallelPlan, config: ModelConfig) -> None:
    if layout.ep == 1:
        return
    if config.moe is None:
        raise ConfigError(f"ep: got {layout.ep}; rule: {config.name} has no experts; valid: 1")
    room = layout.copies * layout.cp * layout.tp
    experts = config.moe.num_experts
    valid = [d for d in divisors(experts) if room % d == 0]
    if layout.ep not in valid:
        raise ConfigError(
            f"ep: got {layout.ep}; rule: divides {experts} experts and the {room} ranks of "
            f"dp x cp x tp; valid: {', '.join(map(str, valid))}"
        )


def check_size(layout: ParallelPlan, cluster: Cluster | None) -> None:
    """Raise ConfigError when a named installation has fewer GPUs than the layout takes."""
    most = None if cluster is None else cluster.gpus
    if cluster is not None and most is not None and layout.size > most:
        raise ConfigError(
            f"gpus: got {layout.size}; rule: {cluster.slug} has {most:,} GPUs; nearest valid: {most}"
        )
