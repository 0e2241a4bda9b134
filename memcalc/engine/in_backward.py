"""The optimizer stepping inside backward: each parameter as soon as its gradient is there.

A hook after a parameter's gradient has been stored steps an optimizer of that parameter alone and drops
the gradient, so that never more than a few gradients live at once. In the first step the optimizer's
states come into being there.
Source: torch.Tensor.register_post_accumulate_grad_hook; pytorch/torchtune torchtune/training/memory.py,
register_optim_in_bwd_hooks. Checked by: oracle/test_optimizer_in_backward.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.optimizer import OptimizerPlan, state_tensors, update
from memcalc.engine.parallel.strategy import Strategy, held
from memcalc.engine.sizes import ZERO
from memcalc.engine.tensors import Tape, Tensor
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan

#: Optimizers that look at one parameter at a time whose step needs no shapes' values.
_ALONE = ("adamw", "adamw-8bit", "sgd", "momentum", "adafactor", "lion", "none")


class StepsInBackward(NamedTuple):
    """The injector. first: the step in which states come into being."""

    optimizer: OptimizerPlan
    first: bool

    def start(self, build: Build) -> Hooks:
        """Hooks that step and drop each gradient as it comes."""
        tape = build.tape
        states: list[Tensor] = []

        def ready(leaf: Tensor) -> None:
            before = (tape.op, tape.block)
            tape.at("optimizer", -1)
            if self.first:
                for shape, dtype in state_tensors(leaf, self.optimizer):
                    states.append(tape.empty("state", shape, dtype))
            update(tape, [leaf], self.optimizer)
            leaf.grad = None
            tape.at(*before)

        build.standing.append(states)
        return Hooks(gradient_ready=ready, takes_gradients=True)


@dataclass(frozen=True)
class InBackward(Strategy):
    """One GPU that keeps no gradient: what `StepsInBackward` leaves of a step."""

    optimizer: OptimizerPlan
    first: bool = False
    offloads: bool = False

    @property
    def depth(self) -> int:
        """What waits for its copy to the host is freed two blocks on."""
        return 4 if self.offloads else 0

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The hook on every parameter."""
        return (StepsInBackward(self.optimizer, self.first),)

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """Nothing is left to do after backward."""

    def gradient(self, leaf: Tensor) -> Tensor:
        """Nothing: it is gone before the next one."""
        return held(leaf, (ZERO,))


def stepping_in_backward(plan: Plan, layout: ParallelPlan) -> Plan:
    """The plan with its optimizer inside backward. Raises ConfigError where that cannot be."""
    optimizer = plan.optimizer
    if layout.size > 1 or layout.sharded:
        raise NotInThisVersionError(
            "optimizer_in_backward: with several GPUs it is not in this version; valid: one GPU"
        )
    if plan.resolved.grad_accum_steps > 1:
        raise ConfigError(
            f"optimizer_in_backward: got {plan.resolved.grad_accum_steps} micro-batches a step; rule: "
            "a parameter is stepped as soon as its gradient is there; nearest valid: 1"
        )
    if optimizer.name not in _ALONE or optimizer.master:
        got = "fp32 master copies" if optimizer.master else optimizer.name
        raise ConfigError(
            f"optimizer_in_backward: got {got}; rule: an optimizer of each parameter alone; "
            f"valid: {', '.join(_ALONE)}, without master copies"
        )
    optimizer = optimizer._replace(in_backward=True)
    return plan._replace(
        optimizer=optimizer, strategy=InBackward(optimizer, False, plan.kernels.offloads)
    )


@dataclass(frozen=True)
class Offloading(Strategy):
    """One GPU whose blocks' saved tensors wait on the host (activation_offload.py)."""

    @property
    def depth(self) -> int:
        """What waits for its copy to the host is freed two blocks on."""
        return 4


def offloading(plan: Plan, layout: ParallelPlan) -> Plan:
    """The plan with activations on the host. Raises NotInThisVersionError where that was not built."""
    if layout.size > 1 or layout.sharded or plan.resolved.setup.recompute != "full":
        raise NotInThisVersionError(
            "offload: activations is in this version for one GPU and recompute full"
        )
    kernels = plan.kernels._replace(offloads=True)
    note = "offload activations: a closed form after torchtune's hook; host memory is not counted"
    return plan._replace(
        kernels=kernels, parallel=layout, strategy=Offloading(), notes=(*plan.notes, note)
    )


def first_step(plan: Plan) -> Plan:
    """The same plan in its first step."""
    strategy = plan.strategy
    assert isinstance(strategy, InBackward)
    return plan._replace(strategy=replace(strategy, first=True))
