"""Expert parallelism of stack torch: which layouts it has, and what it makes of a layer and its states.

Experts are spread over ep of the ranks of dp x cp, as torchtitan spreads them; each expert is whole (etp
1). A rank's experts get as many token rows as it sends, times the imbalance: balanced unless stated.
Source: torchtitan, torchtitan/distributed/parallel_dims.py, expert_parallel.py.
Checked by: oracle/test_expert_parallel.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.experts.experts_fsdp2 import with_experts
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def check_spread(layout: ParallelPlan, plan: Plan, stack: Stack) -> tuple[str, ...]:
    """Raise ConfigError unless experts can be spread so on this stack; returns notes."""
    if layout.etp not in (None, 1):
        raise NotInThisVersionError(
            f"etp: got {layout.etp} on stack {stack.name}; rule: an expert is whole; valid: 1"
        )
    if layout.ep == 1:
        return ()
    ep = layout.ep
    if plan.kernels.compiled or stack.parallel.get("experts") is None:
        raise NotInThisVersionError(
            f"ep: got {ep} on stack {stack.name}; rule: not in this version; "
            "valid: --stack torch or megatron"
        )
    check_divided(ep, layout.copies * layout.cp, plan.config)
    if layout.zero < 2:
        raise ConfigError(f"ep: got {ep} without fsdp; rule: experts need --fsdp")
    _check_beside(layout)
    return _notes(layout, plan)


def check_divided(ep: int, ranks: int, config: ModelConfig) -> None:
    """Raise ConfigError unless ep of so many ranks of dp x cp can share the experts of a model."""
    moe = config.moe
    assert moe is not None
    valid = [n for n in divisors(moe.num_experts) if ranks % n == 0]
    if ep not in valid:
        raise ConfigError(
            f"ep: got {ep}; rule: divides {moe.num_experts} experts and the {ranks} ranks of "
            f"dp x cp; valid: {', '.join(map(str, valid))}"
        )
    if moe.expert_bias:
        raise NotInThisVersionError(
            f"ep: got {ep} for {config.name}; rule: experts without biases; valid: 1"
        )
    same, rows = ranks // ep, (2 * moe.moe_intermediate_size, config.hidden_size)
    if ranks > moe.num_experts and not cut_by_rows(ranks, same, config):
        raise ConfigError(
            f"ep: got {ep} over {ranks} ranks; rule: the {same} ranks with the same experts divide "
            f"their rows, {rows[0]} and {rows[1]}"
        )


def _check_beside(layout: ParallelPlan) -> None:
    """What spread experts are not combined with."""
    ep, ranks = layout.ep, layout.copies * layout.cp
    if layout.shard is not None and layout.shard != ranks:
        raise ConfigError(
            f"shard: got {layout.shard} with ep {ep}; rule: all ranks; valid: {ranks}"
        )
    if layout.offload != "none":
        raise NotInThisVersionError(f"offload: got {layout.offload} with ep {ep}; valid: none")
    if not isinstance(layout.reshard, bool | None):
        raise ConfigError(f"reshard: got {layout.reshard} with ep {ep}; valid: true, false")


def _notes(layout: ParallelPlan, plan: Plan) -> tuple[str, ...]:
    imbalance, share = plan.resolved.setup.imbalance, "as many token rows as it sends"
    if imbalance != 1:
        share = f"{imbalance:g} times the token rows it sends"
    said = [f"ep {layout.ep}: a rank's experts receive {share} (--imbalance)"]
    if layout.cp > 1:
        said.append("ep beside cp: not compared with PyTorch")
    if plan.resolved.setup.grad_clip:
        said.append("grad-clip beside ep: not compared with PyTorch")
    return tuple(said)


def spread(strategy: Fsdp2, plan: Plan, stack: Stack) -> Fsdp2:
    """How ranks hold the states of a model with experts, whether or not they share these."""
    moe, layout = plan.config.moe, plan.parallel
    if moe is None:
        return strategy
    ranks = strategy.ranks
    plain = layout.offload == "none" and stack.parallel.get("experts") == "by_rows"
    by_rows = plain and isinstance(layout.reshard, bool | None) and cut_by_rows(
        ranks, ranks // layout.ep, plan.config
    )  # fmt: skip
    if layout.ep == 1 and not by_rows:
        return strategy
    return with_experts(strategy, layout.ep, by_rows)


def cut_by_rows(ranks: int, same: int, config: ModelConfig) -> bool:
    """Whether FSDP cuts experts along their rows: more ranks than experts, and rows that divide.

    ranks: of a sharding group; same: of these, how many have the same experts.
    """
    moe = config.moe
    if moe is None or ranks <= moe.num_experts or moe.expert_bias:
        return False
    return not any(n % same for n in (2 * moe.moe_intermediate_size, config.hidden_size))
