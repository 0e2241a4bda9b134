"""DDP (DistributedDataParallel) and optimizer states split over its ranks (ZeroRedundancyOptimizer).

Every rank has all parameters and gradients; gradients lie in buckets, flat buffers that are summed over
the ranks and live as long as the run: the first holds up to 1 MiB, the others up to 25 MiB and what
crosses the limit. With gradient_as_bucket_view a parameter's gradient is copied into its bucket as soon
as it is made and is a view of it from then on; else gradients and buckets both exist. Micro-batches
before the last do not sum (no_sync): where gradients were dropped, theirs are tensors of their own until
the last one's copy. Memory per rank does not fall with their number but for the split states.
Not here: 4 bytes a parameter that the reducer marks used parameters with.
Source: PyTorch 2.13, torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp,
torch/distributed/optim/zero_redundancy_optimizer.py.
Checked by: oracle/test_ddp.py, unit/test_states_divided.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.optimizer import OptimizerPlan, run_step
from memcalc.engine.parallel.strategy import Batch, Strategy, as_packed
from memcalc.engine.states import all_leaves, block_of, bytes_of_held
from memcalc.engine.tensors import Tape, Tensor
from memcalc.inputs.stacks import Stack
from memcalc.units import MIB

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan

#: torch.nn.parallel.DistributedDataParallel's bucket_cap_mb, and torch.distributed's
#: _DEFAULT_FIRST_BUCKET_BYTES.
BUCKET_BYTES: Final = 25 * MIB
FIRST_BUCKET_BYTES: Final = MIB


@dataclass(frozen=True)
class Ddp(Strategy):
    """views: gradients are views of the buckets. drops: zero_grad drops them (set_to_none).

    batches: micro-batches of a step, 3 standing for more. split_over: ranks that split the optimizer's
    states, whole parameters each; dims: the dims' values, which decide who steps what. packed: (leaf,
    bytes) of a base whose linears are packed.
    """

    views: bool
    drops: bool
    batches: int
    split_over: int = 1
    dims: tuple[tuple[str, int], ...] = ()
    packed: tuple[tuple[str, int], ...] = ()

    def parameter(self, leaf: Tensor) -> Tensor:
        """The whole parameter, packed where a frozen base is."""
        return as_packed(leaf, self.packed)

    @property
    def persistent_gradients(self) -> bool:
        return self.views

    @property
    def _copies(self) -> bool:
        """Whether gradients that are dropped are copied into buckets as they are made."""
        return self.views and self.drops

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """What copies gradients into their buckets."""
        return (BucketViews(self.batches > 1),) if self._copies else ()

    def micro_batches(self, plan: Plan) -> tuple[Batch, ...]:
        """The last one sums; before it gradients that were dropped are tensors of their own."""
        if not self._copies or self.batches == 1:
            return super().micro_batches(plan)
        middle = (Batch(True, False),) if self.batches > 2 else ()
        return (Batch(False, False), *middle, Batch(True, True))

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """Every parameter that trains, or those of the rank that has most."""
        leaves = super().optimized(leaves)
        if self.split_over == 1:
            return leaves
        values = dict(self.dims)
        return max(
            partition(leaves, self.split_over, values),
            key=lambda part: sum(leaf.numel.value(values) for leaf in part),
        )

    def step(
        self, tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False
    ) -> None:
        """Every rank clips all gradients, then steps its own parameters."""
        if self.split_over > 1 and plan.grad_clip:
            trained = super().optimized(leaves)
            run_step(tape, trained, plan._replace(name="none", master=False))
            plan = plan._replace(grad_clip=False)
        super().step(tape, leaves, plan, partial)

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """Buckets beside the gradients; as views the gradients are the buckets."""
        return {} if self.views else {"buffers": sum(self.buckets(plan))}

    def unreduced_bytes(self, plan: Plan) -> int:
        """Gradients of earlier micro-batches, which are not in the buckets yet."""
        return sum(self.buckets(plan)) if self._copies and self.batches > 1 else 0

    def buckets(self, plan: Plan) -> list[int]:
        """Bytes of each bucket, in the order they are filled; a frozen parameter is in none."""
        structure, runs = plan.structure(True)
        trained = [leaf for leaf in all_leaves(structure, runs) if leaf.requires_grad]
        return bucket_bytes([bytes_of_held(leaf, plan.values) for leaf in trained][::-1])


class BucketViews(NamedTuple):
    """The injector: gradients go into buckets that exist. accumulates: earlier micro-batches' exist."""

    accumulates: bool

    def start(self, build: Build) -> Hooks:
        """Hooks of one micro-batch."""
        tape = build.tape

        def phase(name: str) -> None:
            if name != "backward" or not (build.has_gradients and self.accumulates):
                return
            before = (tape.op, tape.block)
            for leaf in filter(lambda leaf: leaf.requires_grad, tape.leaves.values()):
                tape.at("no_sync", block_of(leaf))
                leaf.grad = (
                    tape.earlier_made("gradient", leaf.shape, leaf.dtype)
                    if build.reduces
                    else tape.external(leaf.shape, leaf.dtype)
                )
            tape.at(*before)

        def into_bucket(leaf: Tensor) -> None:
            if build.reduces:
                leaf.grad = tape.external(leaf.shape, leaf.dtype)

        return Hooks(gradient_ready=into_bucket, phase=phase, takes_gradients=True)


def bucket_bytes(sizes: list[int]) -> list[int]:
    """Bytes of each bucket for gradients of these sizes, in the order they become ready.

    A bucket is closed by the gradient that reaches its limit.
    Source: compute_bucket_assignment_by_size in reducer.cpp.
    """
    buckets, filled, limit = [], 0, FIRST_BUCKET_BYTES
    for size in sizes:
        filled += size
        if filled >= limit:
            buckets.append(filled)
            filled, limit = 0, BUCKET_BYTES
    return [*buckets, filled] if filled else buckets


def partition(leaves: list[Tensor], ranks: int, values: Mapping[str, int]) -> list[list[Tensor]]:
    """Each rank's parameters: the largest first, always to the rank that has least so far."""
    numel = {id(leaf): leaf.numel.value(values) for leaf in leaves}
    parts: list[list[Tensor]] = [[] for _ in range(ranks)]
    sizes = [0] * ranks
    for leaf in sorted(leaves, key=lambda leaf: numel[id(leaf)], reverse=True):
        rank = sizes.index(min(sizes))
        parts[rank].append(leaf)
        sizes[rank] += numel[id(leaf)]
    return parts


def ddp_of(plan: Plan, stack: Stack) -> Ddp:
    """DDP as a plan's layout states it; stage 1 splits the optimizer's states."""
    layout, resolved = plan.parallel, plan.resolved
    split = layout.shard_ranks if layout.zero == 1 else 1
    return Ddp(
        views=bool(stack.parallel.get("gradient_as_bucket_view", False)),
        drops=resolved.setup.set_to_none,
        batches=min(resolved.grad_accum_steps, 3),
        split_over=split,
        dims=tuple(sorted(plan.values.items())) if split > 1 else (),
    )
