"""Megatron-DeepSpeed's states: DeepSpeed's BF16_Optimizer, or its fp16 optimizers, under PipelineEngine.

P parameters of a rank's stage, N ranks that split the batch. bf16: 2P of parameters, 4P of gradients
summed in fp32 in one buffer, 2P of each micro-batch's own gradients, which stay until the next backward
makes new ones in their place, and 12P/N of master copies and moments, with ZeRO or without. A backward
ends with each gradient's copy in fp32, one after the other. fp16: 2P and 2P, and 12P/N with ZeRO-1,
whose reduction begins after the last micro-batch (zero_buckets.py); without ZeRO 12P. Loading makes
copies of a part that the caching allocator keeps. The step gathers parameters through NCCL's flat
copies of at most twice allgather_bucket_size elements.
Source: DeepSpeed of 2022 (runtime/bf16_optimizer.py, runtime/pipe/engine.py, runtime/utils.py
all_gather_dp_groups, runtime/zero/stage_1_and_2.py); bigscience-workshop/Megatron-DeepSpeed,
train scripts of tr11-176B; PyTorch, ProcessGroupNCCL.cpp (allgather: newLikeFlat).
Checked by: unit/test_deepspeed_megatron.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.optimizer import OptimizerPlan, run_step
from memcalc.engine.parallel.deepspeed.zero_buckets import Buckets
from memcalc.engine.parallel.deepspeed.zero_modules import EVERY_BLOCK, modules_of, parameters_of
from memcalc.engine.parallel.deepspeed.zero_step import flat_part, part_step, whole_step
from memcalc.engine.parallel.megatron.megatron_rules import check_states
from memcalc.engine.parallel.strategy import Batch, Strategy, held
from memcalc.engine.sizes import number
from memcalc.engine.states import all_leaves, block_of
from memcalc.engine.tensors import Tape, Tensor
from memcalc.errors import ConfigError
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.kernels import Kernels
    from memcalc.engine.plan import Plan

CODE = "megatron-deepspeed"


def runs_megatron_deepspeed(kernels: Kernels) -> bool:
    """Whether these are Megatron's layers under DeepSpeed."""
    return kernels.megatron is not None and kernels.megatron.code == CODE


def _elements(plan: Plan) -> int:
    """Parameters of this rank."""
    structure, runs = plan.structure(True)
    return sum(leaf.numel.value(plan.values) for leaf in all_leaves(structure, runs))


def _part(elements: int, ranks: int) -> int:
    """Elements of one rank's part, padded to pairs."""
    return -(-elements // (2 * ranks)) * 2


@dataclass(frozen=True)
class Bf16Optimizer(Strategy):
    """BF16_Optimizer; ranks: those that share master copies and moments."""

    ranks: int
    gather_elements: int

    @property
    def persistent_gradients(self) -> bool:
        return True

    @property
    def depth(self) -> int:
        """Every block is traced: their gradients go outside the blocks, all at once."""
        return EVERY_BLOCK

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The fp32 copies that are added to the buffer."""
        return (AddsInFp32(),)

    def gradient(self, leaf: Tensor) -> Tensor:
        """Its part of the fp32 buffer."""
        return held(leaf, dtype="fp32")

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """This rank's part, flat."""
        return flat_part(leaves, self.ranks)

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """In place on the buffer's part; then parameters are gathered, a shard after the other."""
        flats = self.optimized(leaves)
        run_step(tape, flats, plan._replace(master=False, grad_clip=False))
        _gather(tape, leaves, self.ranks, self.gather_elements)

    def micro_batches(self, plan: Plan) -> tuple[Batch, ...]:
        """From the second on the one before has left its own gradients."""
        several = plan.resolved.grad_accum_steps > 1
        return (Batch(False, True), Batch(True, True)) if several else (Batch(False, True),)

    def unreduced_bytes(self, plan: Plan) -> int:
        """The last micro-batch's own gradients, until the next backward begins."""
        return _elements(plan) * ITEMSIZE[plan.kernels.param_dtype]

    def buckets(self, plan: Plan) -> list[int]:
        """The fp32 buffer is one block."""
        return [_elements(plan) * ITEMSIZE["fp32"]]

    def loading_bytes(self, plan: Plan) -> tuple[int, ...]:
        """The clone of a part that its master copy is made from."""
        return (_part(_elements(plan), self.ranks) * ITEMSIZE[plan.kernels.param_dtype],)


class AddsInFp32(NamedTuple):
    """The injector: the last micro-batch's gradients go as backward begins; its own are widened one by
    one at its end, to be added to the buffer, and stay."""

    def start(self, build: Build) -> Hooks:
        """Hooks of one micro-batch."""
        tape = build.tape

        def phase(name: str) -> None:
            if name == "backward" and build.has_gradients:
                before = (tape.op, tape.block)
                for leaf in tape.leaves.values():
                    tape.at("clear_gradients", block_of(leaf))
                    tape.earlier_made("gradient", leaf.shape, leaf.dtype)
                tape.at(*before)
            if name != "end":
                return
            tape.mark("backward block", -1)  # what follows is outside the blocks
            for leaf in tape.leaves.values():
                tape.at("add_gradients", block_of(leaf))
                tape.empty("to", leaf.shape, "fp32")
            tape.at("add_gradients", -1)

        return Hooks(phase=phase, takes_gradients=True)


@dataclass(frozen=True)
class Fp16Optimizer(Strategy):
    """zero 1: DeepSpeedZeroOptimizer, its reduction after the last micro-batch; 0: FP16_Optimizer."""

    zero: int
    ranks: int
    batches: int
    limit: int
    gather_elements: int

    @property
    def depth(self) -> int:
        """Every block is traced where buckets fill."""
        return EVERY_BLOCK if self.zero else 0

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The reduction of stage 1."""
        if not self.zero:
            return ()
        parameters = parameters_of(modules_of(plan))
        dtype = plan.kernels.param_dtype
        return (Buckets(1, self.limit, False, self.ranks, dtype, parameters, pipeline=True),)

    def gradient(self, leaf: Tensor) -> Tensor:
        """What the optimizer finds of it."""
        return held(leaf, (leaf.numel.over(self.ranks),)) if self.zero else leaf

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """This rank's part, flat, or everything."""
        return flat_part(leaves, self.ranks if self.zero else 1)

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """The fp32 copies of gradients, the step, the gather."""
        flats = self.optimized(leaves)
        if not self.zero:
            whole_step(tape, leaves, flats, plan)
            return
        sizes = [leaf.numel.value(tape.values) for leaf in leaves]
        piece = min(max(sizes), _part(sum(sizes), self.ranks))
        part_step(tape, flats, leaves[0].dtype, piece, plan)
        _gather(tape, leaves, self.ranks, self.gather_elements)

    def micro_batches(self, plan: Plan) -> tuple[Batch, ...]:
        """ZeRO-1 reduces in the last one only."""
        if not self.zero or self.batches == 1:
            return super().micro_batches(plan)
        middle = (Batch(True, False),) if self.batches > 2 else ()
        return (Batch(False, False), *middle, Batch(True, True))

    def unreduced_bytes(self, plan: Plan) -> int:
        """Whole gradients wait for the last micro-batch."""
        if not self.zero:
            return 0
        structure, runs = plan.structure(True)
        sizes = [leaf.numel.value(plan.values) for leaf in all_leaves(structure, runs)]
        width = ITEMSIZE[plan.kernels.param_dtype]
        return sum(size - -(-size // self.ranks) for size in sizes) * width

    def loading_bytes(self, plan: Plan) -> tuple[int, ...]:
        """The clone of a part, and the zeros its optimizer states are made with."""
        part = _part(_elements(plan), self.ranks if self.zero else 1)
        return (part * ITEMSIZE[plan.kernels.param_dtype], part * ITEMSIZE["fp32"])


def _gather(tape: Tape, leaves: list[Tensor], ranks: int, limit: int) -> None:
    """All-gather into the parameters' buffer: NCCL's own flat copy of one shard of all ranks."""
    elements = sum(leaf.numel.value(tape.values) for leaf in leaves)
    if ranks == 1 or not elements:
        return
    part = _part(elements, ranks)
    shards = max(1, part * ranks // limit)
    tape.at("gather_parameters", -1, "optimizer")
    received = tape.empty("all_gather", (number(part // shards * ranks),), leaves[0].dtype)
    del received


def megatron_deepspeed_states(plan: Plan, stack: Stack) -> Strategy:
    """How ranks hold the states. Raises ConfigError for stages that pipelines do not run with."""
    layout = plan.parallel
    check_states(layout, stack.name)
    for name in ("cp", "ep"):
        if getattr(layout, name) > 1:
            raise ConfigError(
                f"{name}: got {getattr(layout, name)} on stack {stack.name}; valid: 1"
            )
    if layout.sp:
        raise ConfigError(f"sp: got yes on stack {stack.name}; rule: it has none; valid: --no-sp")
    limit = int(stack.parallel["reduce_bucket_size"])
    gather = int(stack.parallel["allgather_bucket_size"])
    if plan.kernels.param_dtype == "bf16":
        return Bf16Optimizer(layout.shard_ranks, gather)
    return Fp16Optimizer(
        layout.zero, layout.shard_ranks, plan.resolved.grad_accum_steps, limit, gather
    )
