"""DeepSpeed's ZeRO: what a rank keeps of parameters, gradients and optimizer states, by stage.

Symbols: P parameters, N ranks. 16-bit training keeps 2P of parameters, 2P of gradients and 12P of fp32
master copy and moments; stage 1 divides the 12P, stage 2 the gradients too, stage 3 the parameters too:
16P, 4P + 12P/N, 2P + 14P/N, 16P/N, beside buckets and gathered parameters (zero_buckets.py,
zero_gather.py) and the step's fp32 gradients (zero_step.py). fp32 training keeps 4P and 4P, and a copy
of the parameters that stage 3 and no ZeRO do without.
Frozen parameters have no gradient, no bucket and no state: stages 0 to 2 keep them whole on every rank,
stage 3 cuts and gathers them like the others.
Figures are those of one parameter group; the Hugging Face Trainer makes two (with and without weight
decay), which moves the parts' boundaries.
Source: DeepSpeed 0.18.2, runtime/engine.py (_configure_optimizer), runtime/zero/*.py; Rajbhandari et al.
2019 (arXiv:1910.02054). Checked by: unit/test_deepspeed.py, unit/test_deepspeed_timeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Injector
from memcalc.engine.kernels import Kernels
from memcalc.engine.optimizer import OptimizerPlan
from memcalc.engine.parallel.deepspeed.deepspeed_host import host_blocks
from memcalc.engine.parallel.deepspeed.zero_buckets import Buckets, Parameters, part_elements
from memcalc.engine.parallel.deepspeed.zero_gather import Gathers
from memcalc.engine.parallel.deepspeed.zero_modules import (
    EVERY_BLOCK,
    Module,
    Visit,
    modules_of,
    parameters_of,
    recorded_order,
)
from memcalc.engine.parallel.deepspeed.zero_step import flat_part, part_step, sub_groups, whole_step
from memcalc.engine.parallel.offload import moves_parameters, moves_states
from memcalc.engine.parallel.strategy import Batch, HostBlock, Strategy, as_packed, held, nowhere
from memcalc.engine.structure import Beside, structure_of
from memcalc.engine.tensors import Tape, Tensor
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


class Limits(NamedTuple):
    """DeepSpeed's sizes, in elements, as the stack's profile gives them."""

    reduce_bucket_size: int = 500_000_000
    sub_group_size: int = 1_000_000_000
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_max_live_parameters: int = 1_000_000_000
    stage3_max_reuse_distance: int = 1_000_000_000
    overlap_comm: bool = False
    offload_optimizer_buffer_count: int = 4
    offload_param_buffer_count: int = 5
    offload_param_buffer_size: int = 100_000_000
    offload_param_max_in_cpu: int = 1_000_000_000


class Offload(NamedTuple):
    """Where optimizer states (with their gradients) and parameters are: gpu, cpu or nvme."""

    optimizer: str = "gpu"
    parameters: str = "gpu"
    pinned: bool = False

    @property
    def steps_on_host(self) -> bool:
        """Whether the optimizer runs there."""
        return self.optimizer != "gpu"

    @property
    def holds_parameters(self) -> bool:
        """Whether parameters wait there."""
        return self.parameters != "gpu"


@dataclass(frozen=True)
class DeepSpeed(Strategy):
    """ranks: those that share states; dtype: of parameters and gradients; batches: of a step.

    modules: of the whole model with true sizes, in the order of the forward pass. frozen: parameters
    that do not train. recorded: the order of a step's modules, where it is no chain. copies: one rank
    gathers as several do. keeps_inputs: linears are zero.Init's, which keep their input for backward.
    packed: (leaf, bytes) of a base whose linears are packed, which stages 0 to 2 have whole.
    """

    stage: int
    ranks: int
    dtype: str
    batches: int
    limits: Limits
    modules: tuple[Module, ...]
    offload: Offload = Offload()  # noqa: RUF009  # immutable
    frozen: frozenset[str] = frozenset()
    recorded: tuple[Visit, ...] = ()
    copies: bool = False
    keeps_inputs: bool = False
    packed: tuple[tuple[str, int], ...] = ()

    def kernels(self, kernels: Kernels) -> Kernels:
        """Frozen linears keep their input where zero.Init has replaced them."""
        return kernels._replace(keeps_inputs=self.keeps_inputs)

    @property
    def persistent_gradients(self) -> bool:
        return self.stage == 3

    @property
    def depth(self) -> int:
        """Every block is traced: buckets fill and parameters stay by true sizes, not by blocks."""
        return EVERY_BLOCK

    @property
    def parameters(self) -> Parameters:
        """Name and elements of every parameter that trains, in flat order."""
        everything = parameters_of(self.modules)
        return tuple(pair for pair in everything if pair[0] not in self.frozen)

    @property
    def _width(self) -> int:
        return ITEMSIZE[self.dtype]

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """Gathers of stage 3, and the buckets of gradients."""
        buckets = Buckets(
            stage=self.stage,
            limit=self.limits.reduce_bucket_size,
            double=self.limits.overlap_comm and self.stage == 2,
            ranks=self.ranks,
            dtype=self.dtype,
            parameters=self.parameters,
            on_host=self.offload.steps_on_host,
        )
        if not self._gathers_parameters:
            return (buckets,)
        return (self._gathers(plan), buckets)

    @property
    def _gathers_parameters(self) -> bool:
        """Whether modules run on copies: of several ranks' parts, or of what is on the host."""
        moves = self.ranks > 1 or self.offload.holds_parameters or self.copies
        return self.stage == 3 and moves

    def _gathers(self, plan: Plan) -> Gathers:
        return Gathers(
            modules=self.modules,
            recomputed=frozenset(i for i, k in enumerate(plan.kinds) if k.recompute != "none"),
            ranks=self.ranks,
            dtype=self.dtype,
            prefetch=self.limits.stage3_prefetch_bucket_size,
            most_live=self.limits.stage3_max_live_parameters,
            reuse=self.limits.stage3_max_reuse_distance,
            persistent=self.limits.stage3_param_persistence_threshold,
            on_host=self.offload.holds_parameters,
            recorded=self.recorded,
            copies=self.copies,
        )

    def parameter(self, leaf: Tensor) -> Tensor:
        """The leaf, or in stage 3 this rank's part of it."""
        if self.offload.holds_parameters:
            return nowhere(leaf)
        return self._cut(leaf) if self.stage == 3 else as_packed(leaf, self.packed)

    def gradient(self, leaf: Tensor) -> Tensor:
        """What is left of a gradient when the optimizer steps."""
        if self.offload.steps_on_host or not leaf.requires_grad:
            return nowhere(leaf)
        return self._cut(leaf) if self.stage else leaf

    def _cut(self, leaf: Tensor) -> Tensor:
        return held(leaf, (leaf.numel.over(self.ranks),))

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """Flat fp32 tensors; without ZeRO in fp32 the parameters themselves."""
        return [] if self.offload.steps_on_host else self.flat_parts(leaves)

    def flat_parts(self, leaves: list[Tensor]) -> list[Tensor]:
        """What the optimizer steps over, on the GPU or on the host."""
        leaves = super().optimized(leaves)
        if self.stage == 0 and self.dtype == "fp32":
            return leaves
        if self.stage < 3:
            return flat_part(leaves, self.ranks if self.stage else 1)
        sizes = dict(self.parameters)
        return sub_groups(leaves, sizes, self.ranks, self.limits.sub_group_size)

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """The step with what comes before it; on the host it takes nothing of the GPU."""
        if self.offload.steps_on_host:
            return
        leaves = super().optimized(leaves)
        flats = self.optimized(leaves)
        if self.stage == 0 and self.dtype == "fp32":
            super().step(tape, leaves, plan, partial)
        elif self.stage == 0:
            whole_step(tape, leaves, flats, plan)
        else:
            part_step(tape, flats, self.dtype, self._piece(), plan)

    def _piece(self) -> int:
        """Elements of the largest piece of a gradient on a rank."""
        sizes = [size for _, size in self.parameters]
        if self.stage == 3:
            return -(-max(sizes) // self.ranks)
        return min(max(sizes), part_elements(sum(sizes), self.ranks))

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """Stage 3: the bucket of gradients, and small parameters, which are whole beside their parts.

        Stages 1 and 2 with the optimizer on the host: a buffer as large as the largest gradient.
        """
        if self.stage < 3:
            largest = max(size for _, size in self.parameters)
            return {"buffers": largest * self._width} if self.offload.steps_on_host else {}
        threshold = self.limits.stage3_param_persistence_threshold
        small = sum(size for _, size in parameters_of(self.modules) if size <= threshold)
        return {
            "buffers": self.limits.reduce_bucket_size * self._width,
            "gathered": small * self._width if self._gathers_parameters else 0,
        }

    def host(self, plan: Plan) -> tuple[HostBlock, ...]:
        """What ZeRO-Offload and ZeRO-Infinity keep outside the GPU."""
        return host_blocks(self, plan) if self.offload.steps_on_host else ()

    def micro_batches(self, plan: Plan) -> tuple[Batch, ...]:
        """Stage 1 sums over the ranks in the last one only."""
        if self.stage == 1 and self.batches > 1:
            return (Batch(False, False), Batch(True, True))
        return super().micro_batches(plan)

    def unreduced_bytes(self, plan: Plan) -> int:
        """Stage 1: whole gradients and the bucket wait for the last micro-batch."""
        if self.stage != 1 or self.batches == 1:
            return 0
        sizes = [size for _, size in self.parameters]
        parts = sum(-(-size // self.ranks) for size in sizes)
        parts = 0 if self.offload.steps_on_host else parts
        return (sum(sizes) - parts + self.limits.reduce_bucket_size) * self._width


def deepspeed_of(plan: Plan, stack: Stack) -> DeepSpeed:
    """ZeRO as a plan's layout states it, with the sizes of the stack's profile."""
    layout = plan.parallel
    given = {name: stack.parallel[name] for name in Limits._fields if name in stack.parallel}
    modules = modules_of(plan)
    gathers = layout.zero == 3 and (plan.kernels.adapter or plan.config.is_encoder)
    return DeepSpeed(
        stage=layout.zero,
        ranks=layout.shard_ranks,
        dtype=plan.kernels.param_dtype,
        batches=plan.resolved.grad_accum_steps,
        limits=Limits(**given),
        modules=modules,
        offload=Offload(
            optimizer=layout.offload_device if moves_states(layout) else "gpu",
            parameters=layout.offload_device if moves_parameters(layout) else "gpu",
            pinned=layout.pin_memory is True,
        ),
        frozen=_frozen(plan) if plan.kernels.adapter else frozenset(),
        recorded=recorded_order(plan, modules) if gathers else (),
        copies=bool(stack.parallel.get("one_rank_copies", False)),
        keeps_inputs=_keeps_inputs(plan),
    )


def _keeps_inputs(plan: Plan) -> bool:
    """Stage 3 replaces F.linear by one that keeps its input whatever trains (zero/linear.py).

    GPT-2's transposed products are no F.linear.
    """
    tuned = plan.parallel.zero == 3 and plan.kernels.adapter is not None
    return tuned and plan.config.model_type not in ("gpt2", "openai-gpt")


def _frozen(plan: Plan) -> frozenset[str]:
    """Names of the parameters that do not train, of every block."""
    beside = Beside((), plan.ends, EVERY_BLOCK)
    structure, _ = structure_of(plan.config, plan.kernels, plan.kinds, plan.dims, False, beside)
    return frozenset(leaf.name for leaf in structure.leaves if not leaf.requires_grad)
