"""How nanotron's ranks hold a model: 16-bit parameters, all gradients in one fp32 buffer, fp32 states.

2 bytes of parameter, 4 of gradient for the whole run, 12 of master copy and two moments, which zero 1
cuts over the dp ranks, each parameter into equal parts. Backward makes 16-bit gradients of the whole
micro-batch; only then are they added to the buffer and dropped. Without zero and with several ranks the
model is a DistributedDataParallel, whose buckets hold the 16-bit gradients once more; with zero 1 it is
not, the buffer itself is summed. After the step zero 1 gathers parameters through flat copies: one of
all of them, and NCCL's own.
Source: huggingface/nanotron 0.5, optim/gradient_accumulator.py (FP32GradientAccumulator), optim/zero.py
(ZeroDistributedOptimizer), helpers.py (init_optimizer_and_grad_accumulator), trainer.py (make_ddp),
distributed.py (all_gather_coalesced); PyTorch, ProcessGroupNCCL.cpp (allgather: newLikeFlat).
Checked by: unit/test_nanotron_states.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.optimizer import OptimizerPlan, run_step
from memcalc.engine.parallel.data.ddp import bucket_bytes
from memcalc.engine.parallel.strategy import Strategy, held
from memcalc.engine.sizes import ZERO
from memcalc.engine.states import all_leaves
from memcalc.engine.tensors import Tape, Tensor
from memcalc.errors import ConfigError
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan


@dataclass(frozen=True)
class NanotronStates(Strategy):
    """ranks: dp ranks that cut the optimizer's states (1: each has all). wraps: DDP's buckets exist."""

    ranks: int = 1
    wraps: bool = False

    @property
    def persistent_gradients(self) -> bool:
        return True

    @property
    def flat_masters(self) -> bool:
        return True

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """What drops the 16-bit gradients once they are in the buffer."""
        return (Accumulator(),)

    def gradient(self, leaf: Tensor) -> Tensor:
        """Its part of the fp32 buffer."""
        return held(leaf, dtype="fp32")

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """This rank's part of every parameter, in fp32; equal layers share theirs."""
        parts: dict[int, Tensor] = {}
        for leaf in leaves:
            if id(leaf) not in parts:
                shape = leaf.shape if self.ranks == 1 else (leaf.numel.over(self.ranks),)
                parts[id(leaf)] = held(leaf, shape, "fp32")
        return [parts[id(leaf)] for leaf in leaves]

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """The step, then the gather: this rank's and all parts in flat copies, and NCCL's copy."""
        stepped = self.optimized(leaves)
        run_step(tape, stepped, plan, partial)
        if self.ranks == 1 or not leaves:
            return
        dtype, own = leaves[0].dtype, sum((part.numel for part in stepped), ZERO)
        tape.at("gather_parameters")
        part = tape.empty("flatten", (own,), dtype)
        parts = [tape.empty("flatten", (own,), dtype) for _ in range(self.ranks)]
        received = tape.empty("all_gather", (own * self.ranks,), dtype)
        del received, parts, part

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """Rotary tables of every layer, buffers of gathered sequences, DDP's buckets."""
        total = rotary_bytes(plan) + gathered_bytes(plan)
        if self.wraps:
            total += sum(bucket_bytes(self._sizes(plan)[::-1]))
        return {"buffers": total}

    def buckets(self, plan: Plan) -> list[int]:
        """The gradient buffer, and what else stands for the whole run."""
        elements = [size // ITEMSIZE[plan.kernels.param_dtype] for size in self._sizes(plan)]
        return [sum(elements) * ITEMSIZE["fp32"], *self.fixed_bytes(plan).values()]

    def _sizes(self, plan: Plan) -> list[int]:
        """Bytes of every parameter, in registration order."""
        structure, runs = plan.structure(True)
        width = ITEMSIZE[plan.kernels.param_dtype]
        return [leaf.numel.value(plan.values) * width for leaf in all_leaves(structure, runs)]


class Accumulator(NamedTuple):
    """The injector: gradients live as tensors of their own until the micro-batch's backward is over."""

    def start(self, build: Build) -> Hooks:
        """Hooks of one micro-batch."""
        tape = build.tape

        def phase(name: str) -> None:
            if name != "end":
                return
            tape.mark("backward block", -1)  # what follows is outside the blocks
            for leaf in tape.leaves.values():
                if leaf.grad is not None:
                    tape.passing.add(leaf.grad.storage.index)
                leaf.grad = None

        return Hooks(phase=phase, takes_gradients=True)


def rotary_bytes(plan: Plan) -> int:
    """fp32 pairs (s, d/2, 2) and 16-bit cos and sin (s, d/2), for each layer of its own."""
    values, width = plan.values, ITEMSIZE[plan.kernels.compute_dtype]
    return len(plan.kinds) * values["s"] * values["d"] * (ITEMSIZE["fp32"] + width)


def gathered_bytes(plan: Plan) -> int:
    """MemoryBuffer: one gathered input of a linear, one gathered gradient ("allgather", "allgather2")."""
    chosen = plan.kernels.megatron
    if chosen is None or not chosen.sequence:
        return 0
    values = plan.values
    return 2 * values["b"] * values["s"] * values["h"] * ITEMSIZE[plan.kernels.compute_dtype]


def nanotron_states(plan: Plan, stack: Stack) -> NanotronStates:
    """How ranks hold the states in this layout. Raises ConfigError for stages nanotron has not."""
    layout = plan.parallel
    if layout.fsdp or layout.zero > 1:
        got = "fsdp" if layout.fsdp else f"zero {layout.zero}"
        raise ConfigError(f"zero: got {got} on stack {stack.name}; valid: 0, 1")
    split = layout.zero == 1
    return NanotronStates(
        ranks=layout.shard_ranks if split else 1, wraps=layout.copies > 1 and not split
    )
