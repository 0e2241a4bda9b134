"""FSDP1 (torch.distributed.fsdp.FullyShardedDataParallel): one flat parameter a block, one for the rest.

A flat parameter has every parameter of its group, each begun at a multiple of 16 bytes, and is padded to
the N ranks of a sharding group: U elements, of which a rank has Z = U / N. Its gradient and its optimizer
states are a rank's. FULL_SHARD frees a gathered block after its forward (zero 3), SHARD_GRAD_OP keeps it
until its backward (zero 2); HYBRID_SHARD shards within groups (shard), which sum their gradients in place.
Figures are the first rank's. Not here: alignment's zeros in backward (up to 14 bytes a parameter).
Source: PyTorch 2.13, torch/distributed/fsdp/_flat_param.py, _runtime_utils.py, api.py.
Checked by: oracle/test_fsdp1.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Injector
from memcalc.engine.kernels import Kernels
from memcalc.engine.parallel.data.fsdp1_timeline import FlatGroup, Fsdp1Timeline
from memcalc.engine.parallel.data.fsdp2 import groups_of
from memcalc.engine.parallel.data.fsdp2_timeline import Group
from memcalc.engine.parallel.strategy import Strategy, held
from memcalc.engine.sizes import ZERO, Size, product
from memcalc.engine.structure import Beside, structure_of
from memcalc.engine.tensors import Tensor
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

#: Bytes a parameter's start is a multiple of, of the gathered dtype (use_orig_params).
ALIGNED_BYTES: Final = 16
_DEPTH: Final = 5
_PREFETCH: Final = ("pre", "post", "none")


@dataclass(frozen=True)
class Fsdp1(Strategy):
    """Parameters, gradients and states in flat shards; fields as in the timeline.

    flat: of each group the name of its first parameter and Z.
    """

    timeline: Fsdp1Timeline
    flat: tuple[tuple[str, Size], ...]
    autocast: bool = False  # gathered as they are stored, cast inside (Lightning Fabric)

    @property
    def depth(self) -> int:
        """From its gather to its reduction a block sees two others, gathered ahead three."""
        return _DEPTH + 2 * self.timeline.ahead

    def kernels(self, kernels: Kernels) -> Kernels:
        """Blocks run on gathered parameters of the compute dtype; nothing is cast inside.

        Under autocast they are cast at each use: it keeps casts of parameters, not of views.
        """
        return kernels._replace(
            param_dtype=self.timeline.compute, autocast=self.autocast, caches_casts=False
        )

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The gathers and reductions."""
        return (self.timeline,)

    def parameter(self, leaf: Tensor) -> Tensor:
        """This rank's shard of the group, told under its first parameter."""
        shard = dict(self.flat).get(leaf.name, ZERO)
        return held(leaf, (shard,), self.timeline.stored)

    def gradient(self, leaf: Tensor) -> Tensor:
        """As large as the shard."""
        return self.parameter(leaf)

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """The shards: a rank steps what of every parameter lies in its own."""
        first = dict(self.flat)
        parts = {id(leaf): self.parameter(leaf) for leaf in leaves if leaf.name in first}
        return [parts[id(leaf)] for leaf in leaves if id(leaf) in parts]

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """None: the flat buffers are freed between uses."""
        return {}


def check_fsdp1(layout: ParallelPlan, stack: Stack) -> None:
    """Raise ConfigError for what FSDP1 has not."""
    if layout.tp > 1 or layout.pp > 1 or layout.cp > 1 or layout.ep > 1:
        raise ConfigError(
            f"tp, pp, cp, ep: stack {stack.name} has data parallelism alone; valid: 1"
        )
    if layout.zero == 1:
        raise ConfigError(f"zero: got 1 on stack {stack.name}; valid: 0 (DDP), 2, 3")
    if layout.reshard is not None and not isinstance(layout.reshard, bool):
        raise ConfigError(
            f"reshard: got {layout.reshard}; rule: FSDP1 frees or keeps; valid: true, false"
        )


def fsdp1_of(plan: Plan, stack: Stack) -> Fsdp1:
    """FSDP1 as a plan's layout and the stack's choices state it."""
    layout, kernels = plan.parallel, plan.kernels
    prefetch = str(stack.parallel.get("backward_prefetch", "pre"))
    assert prefetch in _PREFETCH
    reduces = str(stack.parallel.get("reduce", "compute"))
    frees = layout.zero == 3 if layout.reshard is None else layout.reshard is True
    whole = stack.parallel.get("gathers") == "stored"
    gathered = kernels.param_dtype if whole else kernels.compute_dtype
    autocast = whole and kernels.autocast
    inside = kernels._replace(param_dtype=gathered, autocast=autocast, caches_casts=False)
    ahead = bool(stack.parallel.get("forward_prefetch", False))
    beside = Beside((), plan.ends, _DEPTH + 2 * ahead)
    structure, _ = structure_of(plan.config, inside, plan.kinds, plan.dims, False, beside)
    root, blocks = groups_of(structure)
    timeline = Fsdp1Timeline(
        root=flattened(root, layout.shard_ranks, gathered),
        blocks=tuple(flattened(b, layout.shard_ranks, gathered) for b in blocks),
        ranks=layout.shard_ranks,
        stored=kernels.param_dtype,
        compute=gathered,
        reduce=kernels.compute_dtype if reduces == "compute" else reduces,
        frees=frees,
        prefetch=prefetch,
        ahead=ahead,
    )
    flat = ((group.names[0], group.shard) for group in (timeline.root, *timeline.blocks))
    return Fsdp1(timeline, tuple(flat), autocast)


def flattened(group: Group, ranks: int, dtype: str) -> FlatGroup:
    """A group's parameters as one flat parameter over the ranks."""
    step, total = ALIGNED_BYTES // ITEMSIZE[dtype], ZERO
    for _, shape in group.parameters:
        total = total.over(step) * step + product(shape)
    return FlatGroup(group.block, tuple(name for name, _ in group.parameters), total.over(ranks))
