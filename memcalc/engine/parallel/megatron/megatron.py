"""How Megatron's ranks hold a model: 16-bit parameters, fp32 gradients in one buffer, fp32 states.

bf16: 2 bytes of parameter, 4 of gradient, 12 of master copy and two moments: 18, or 6 + 12/d with the
distributed optimizer (zero 1) over d ranks that hold the same weights (dp x cp; experts: what their own
ranks leave). fp16: gradients of 2 bytes, copied to fp32 for the step. fp32: 4 + 4 + 8. Gradients exist
for the whole run. The step allocates nothing else: gradients are read in the buffer, moments and
masters updated in place, parameters copied into their buffer.
Source: Megatron-LM docs, distributed optimizer; Megatron-Core 0.14, distributed/, optimizer/
{distrib_optimizer,optimizer}.py. Checked by: unit/test_megatron_states.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.megatron.megatron_buffers import (
    GROUPED_STREAMS,
    TE_WORKSPACE_BYTES,
    bucket_elements,
    buffer_elements,
    dispatcher_bytes,
    dummy_gradient_bytes,
)
from memcalc.engine.parallel.megatron.megatron_rules import check_states, expert_copies
from memcalc.engine.parallel.strategy import Strategy, held
from memcalc.engine.states import all_leaves, is_expert
from memcalc.engine.tensors import Tensor
from memcalc.engine.timing.arith import maximum
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


@dataclass(frozen=True)
class MegatronStates(Strategy):
    """ranks: those that share one set of optimizer states (1: each has all); expert_ranks: experts'.

    Nothing is injected: gathers and reductions work in the buffers.
    """

    gradient_dtype: str = "fp32"
    distributed: bool = False
    ranks: int = 1
    expert_ranks: int = 1
    overlaps: bool = False

    @property
    def persistent_gradients(self) -> bool:
        return True

    def gradient(self, leaf: Tensor) -> Tensor:
        """As large as the leaf, in the buffer's dtype."""
        return held(leaf, dtype=self.gradient_dtype)

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """This rank's part of every parameter, in fp32; equal layers share theirs."""
        parts: dict[int, Tensor] = {}
        for leaf in leaves:
            if id(leaf) not in parts:
                parts[id(leaf)] = self._part(leaf)
        return [parts[id(leaf)] for leaf in leaves]

    def _part(self, leaf: Tensor) -> Tensor:
        ranks = self._ranks(leaf)
        if ranks == 1:
            return held(leaf, dtype="fp32")
        return held(leaf, (leaf.numel.over(ranks),), "fp32")

    def _ranks(self, leaf: Tensor) -> int:
        if not self.distributed:
            return 1
        return self.expert_ranks if is_expert(leaf) else self.ranks

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """Padding of the buffers, dummy gradients, workspaces, buffers by name, rotary angles."""
        return self.fixed_bytes_of_rank([plan])

    def fixed_bytes_of_rank(self, plans: Sequence[Plan]) -> Mapping[str, int]:
        """The same of a rank with several chunks: shared but for padding and what dispatchers hold."""
        total = TE_WORKSPACE_BYTES
        total += max(global_buffer_bytes(plan) for plan in plans) + angle_bytes(plans[0])
        if any(kind.sparse for plan in plans for kind in plan.kinds):
            total += TE_WORKSPACE_BYTES * GROUPED_STREAMS
        leaves: list[Tensor] = []
        for plan in plans:
            structure, runs = plan.structure(True)
            leaves += structure.leaves
            total += self._padding(plan, all_leaves(structure, runs)) + dispatcher_bytes(plan)
        if plans[0].kernels.megatron and plans[0].kernels.megatron.adds_in_place:
            total += dummy_gradient_bytes(leaves, plans[0].values, plans[0].kernels)
        return {"buffers": total}

    def _padding(self, plan: Plan, leaves: list[Tensor]) -> int:
        """Bytes of parameter and gradient buffers that hold no element."""
        width = ITEMSIZE[plan.kernels.param_dtype] + ITEMSIZE[self.gradient_dtype]
        total = 0
        for experts in (False, True):
            counts = [
                leaf.numel.value(plan.values) for leaf in leaves if is_expert(leaf) == experts
            ]
            ranks = self.expert_ranks if experts else self.ranks
            buckets = self.overlaps and plan.ends[0]
            bucket = bucket_elements(plan.parallel.copies) if buckets else None
            elements = buffer_elements(counts, ranks, self.distributed, bucket)
            total += (elements - sum(counts)) * width
        return total


def global_buffer_bytes(plan: Plan) -> int:
    """The buffer of gathered rows before the head, and of core attention's scores."""
    values, width = plan.values, ITEMSIZE[plan.kernels.compute_dtype]
    options = plan.kernels.megatron
    rows = values["b"] * values["s"]
    gathered = rows * values["h"] if options and options.sequence and plan.ends[1] else 0
    scores = rows * values["s"] * values["a"] if plan.kernels.attention == "eager" else 0
    return maximum(gathered, scores) * width  # type: ignore[no-any-return]


def angle_bytes(plan: Plan) -> int:
    """The cached rotary angles in fp32."""
    if plan.config.position_embedding != "rope":
        return 0
    return plan.values["s"] * plan.values.get("d_r", plan.values["r"]) * 4


def megatron_states(plan: Plan, stack: Stack) -> MegatronStates:
    """How ranks hold the states in this layout. Raises ConfigError for stages Megatron has not."""
    layout = plan.parallel
    check_states(layout, stack.name)
    narrow = plan.kernels.param_dtype == "fp16"
    distributed = layout.zero == 1
    instances = layout.copies * layout.cp // layout.shard_ranks
    return MegatronStates(
        gradient_dtype="fp16" if narrow else "fp32",
        distributed=distributed,
        ranks=layout.shard_ranks if distributed else 1,
        expert_ranks=expert_copies(layout) // instances if distributed else 1,
        overlaps=bool(stack.parallel.get("overlap_grad_reduce", False)),
    )
