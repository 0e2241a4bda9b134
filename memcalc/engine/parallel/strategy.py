"""Strategy: how the ranks that split the batch hold a model's states, and what that moves in memory.

A strategy says of each parameter what this rank keeps of it (the parameter itself, its gradient, what
the optimizer steps over), which buffers exist for the whole run, and which injectors put its gathers
and reductions on the timeline. Strategies are hashable: they are part of a structure's key.
`Whole` is every rank with everything; the others are one module each in this folder, chosen by
`choose.strategy_for`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from memcalc.engine.injectors import Injector
from memcalc.engine.kernels import Kernels
from memcalc.engine.optimizer import OptimizerPlan, run_step
from memcalc.engine.sizes import ZERO, number
from memcalc.engine.tensors import Shape, Tape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


class HostBlock(NamedTuple):
    """Equal blocks of one kind: what they hold (one of host_memory.PARTS), bytes of each, how many.

    nvme: on a disk instead; then nothing of it is host memory. unused_bytes: of each, that hold nothing
    (counted as buffers).
    """

    what: str
    size_bytes: int
    pinned: bool = False
    times: int = 1
    nvme: bool = False
    unused_bytes: int = 0


class Batch(NamedTuple):
    """A micro-batch. has_gradients: they exist before it; reduces: ranks sum them in it."""

    has_gradients: bool
    reduces: bool


class Strategy(Protocol):
    """What a way of data parallelism decides about one rank's memory; the defaults are one GPU's.

    A frozen dataclass that inherits from this states only what is different; it can be hashed.
    """

    @property
    def persistent_gradients(self) -> bool:
        """Whether gradients exist before the first micro-batch and are never released."""
        return False

    @property
    def flat_masters(self) -> bool:
        """Whether fp32 master copies are one buffer, made before the first step."""
        return False

    @property
    def depth(self) -> int:
        """Repetitions of a run of blocks to trace, where injectors reach beyond a block's neighbours."""
        return 0

    def kernels(self, kernels: Kernels) -> Kernels:
        """The kernels a block runs with; a sharding engine casts weights itself, not autocast."""
        return kernels

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """What its gathers and reductions put on the timeline."""
        return ()

    def parameter(self, leaf: Tensor) -> Tensor:
        """What this rank keeps of a leaf's weight."""
        return leaf

    def gradient(self, leaf: Tensor) -> Tensor:
        """What this rank keeps of a leaf's gradient until the optimizer has run; a frozen one has none."""
        return leaf if leaf.requires_grad else nowhere(leaf)

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """What the optimizer steps over, of all leaves in registration order: those that train."""
        return [leaf for leaf in leaves if leaf.requires_grad]

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """Allocations of the optimizer's step; partial: gradients are terms of a sum over ranks."""
        run_step(tape, self.optimized(leaves), plan, partial)

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """Buffers that live as long as the run, by category of the breakdown."""
        return {}

    def fixed_bytes_of_rank(self, plans: Sequence[Plan]) -> Mapping[str, int]:
        """The same of a rank with several chunks of the model, a plan each."""
        total: Counter[str] = Counter()
        for plan in plans:
            total.update(self.fixed_bytes(plan))
        return total

    def buckets(self, plan: Plan) -> list[int]:
        """Bytes of the flat buffers gradients lie in for the whole run; they are all of fixed_bytes,
        or the persistent gradients."""
        return []

    def micro_batches(self, plan: Plan) -> tuple[Batch, ...]:
        """The micro-batches of a step that differ, in order; the second repeats."""
        first = Batch(self.persistent_gradients or not plan.resolved.setup.set_to_none, True)
        return (first, Batch(True, True)) if plan.resolved.grad_accum_steps > 1 else (first,)

    def loading_bytes(self, plan: Plan) -> tuple[int, ...]:
        """Blocks that are made and freed before the first step; the caching allocator keeps them."""
        return ()

    def host(self, plan: Plan) -> tuple[HostBlock, ...]:
        """What this rank keeps on its host, as long as the run; none of it is counted elsewhere."""
        return ()

    def unreduced_bytes(self, plan: Plan) -> int:
        """Gradients of earlier micro-batches beside those it keeps, when the last one begins."""
        return 0


@dataclass(frozen=True)
class Whole(Strategy):
    """One GPU, or ranks that each hold everything: nothing is divided, nothing is injected."""


def nowhere(leaf: Tensor) -> Tensor:
    """Nothing of a leaf: what a rank has on its host takes no memory of the GPU."""
    return held(leaf, (ZERO,))


def as_packed(leaf: Tensor, packed: tuple[tuple[str, int], ...]) -> Tensor:
    """The bytes of a leaf that a format packs, (name, bytes) each, as one tensor; others as they are."""
    size = dict(packed).get(leaf.name)
    return leaf if size is None else held(leaf, (number(size),), "uint8")


def held(leaf: Tensor, shape: Shape | None = None, dtype: str | None = None) -> Tensor:
    """A tensor that exists beside the step, under the leaf's name: a shard, a copy, a flat buffer."""
    copy = leaf.tape.external(leaf.shape if shape is None else shape, dtype or leaf.dtype)
    copy.name = leaf.name
    return copy
