"""FSDP2 with CPUOffloadPolicy: parts, their gradients and the optimizer on the host.

Parts wait in pinned memory and are copied to the GPU one by one before they are gathered, then cast;
reduced gradients go to the host at once, and the optimizer steps there. The GPU keeps nothing between
steps but what every rank has. Moments are pageable. What the optimizer makes on the host for the step
(a temporary or two of one part, as PyTorch loops over tensors on a CPU) is not counted.
Source: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_param.py (all_gather_inputs),
_fsdp_collectives.py (_get_param_all_gather_inputs, foreach_reduce). Checked by: unit/test_offload.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Injector
from memcalc.engine.optimizer import OptimizerPlan, state_tensors
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.data.fsdp2_timeline import Fsdp2Timeline
from memcalc.engine.parallel.offload import moves_parameters
from memcalc.engine.parallel.strategy import HostBlock, nowhere
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.engine.tensors import Tape, Tensor
from memcalc.inputs.parallel import ParallelPlan

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


@dataclass(frozen=True)
class OffloadedFsdp2(Fsdp2):
    """The same strategy with its parts elsewhere. pinned: the policy's pin_memory."""

    pinned: bool = True

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The gathers, each after copies from the host."""
        (timeline,) = super().injectors(plan)
        assert isinstance(timeline, Fsdp2Timeline)
        return (timeline._replace(on_host=True),)

    def parameter(self, leaf: Tensor) -> Tensor:
        """Nothing on the GPU."""
        return nowhere(leaf)

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """Nothing on the GPU."""
        return []

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """On the host."""

    def host(self, plan: Plan) -> tuple[HostBlock, ...]:
        """Every part, with the gradient and states of one that trains."""
        structure, runs = plan.structure(plan.keeps_gradients)
        blocks: list[HostBlock] = []
        for leaf in all_leaves(structure, runs):
            part = super().parameter(leaf)
            size = bytes_of_held(part, plan.values)
            blocks.append(HostBlock("parameters", size, self.pinned))
            if not leaf.requires_grad:
                continue
            blocks.append(HostBlock("gradients", size, self.pinned))
            for shape, dtype in state_tensors(part, plan.optimizer):
                state = product(shape).value(plan.values) * ITEMSIZE[dtype]
                blocks.append(HostBlock("optimizer", state))
        return tuple(blocks)


def offloaded(strategy: Fsdp2, layout: ParallelPlan) -> Fsdp2:
    """The strategy, with its parts on the host where the layout says so."""
    if not moves_parameters(layout):
        return strategy
    stated = {field.name: getattr(strategy, field.name) for field in fields(Fsdp2)}
    return OffloadedFsdp2(**stated, pinned=layout.pin_memory is not False)
