"""FSDP2 (torch.distributed.fsdp.fully_shard): what a rank keeps of each parameter, and its groups.

Every block is a group, what is left is the root's group; a group is gathered and reduced at once. Each
parameter is cut along its first dimension into N parts of ceil(rows / N) rows, padded: the part, its
gradient and its optimizer states are a rank's. Figures are those of the first ranks, whose parts are
full; the last ranks' optimizer states may be smaller. Symbols: N ranks of a sharding group.
Source: PyTorch 2.13, torch/distributed/fsdp/_fully_shard (_fsdp_param.py, _fsdp_init.py).
Checked by: oracle/test_fsdp2.py, unit/test_states_divided.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memcalc.engine.injectors import Injector
from memcalc.engine.kernels import Kernels
from memcalc.engine.parallel.data.fsdp2_timeline import Fsdp2Timeline, Group
from memcalc.engine.parallel.strategy import Strategy, held, nowhere
from memcalc.engine.parallel.tensor.placed import cut_again
from memcalc.engine.states import block_of, registered
from memcalc.engine.structure import Beside, Structure, structure_of
from memcalc.engine.tensors import Shape, Tensor
from memcalc.inputs.peft import ADDS

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


@dataclass(frozen=True)
class Fsdp2(Strategy):
    """Parameters, gradients and optimizer states cut over `ranks`; blocks are gathered as they run.

    kept_on: ranks a block's parameters are cut over between forward and backward; None: gathered ones
    are freed (reshard_after_forward true), 1: they stay whole (false). replicas: sharding groups that
    hold the same parts and sum their gradients (HSDP). stored: dtype of the parts and of their
    gradients; compute: of gathered parameters.
    """

    ranks: int
    kept_on: int | None
    replicas: int
    stored: str
    compute: str
    gathers_fp8: bool = False  # blocks' matrices, by torchao's extension of fully_shard
    keeps_last: bool = False  # the last block stays gathered: backward reads it next
    added: str = ""  # dtype of the parts that fine-tuning adds

    @property
    def depth(self) -> int:
        """A reduction's input, made as a block is left, is freed two blocks on."""
        return 4

    def kernels(self, kernels: Kernels) -> Kernels:
        """Blocks run on gathered parameters of the compute dtype; nothing is cast inside.

        A policy of mixed precision gathers what fine-tuning adds in that dtype too.
        """
        adapter = kernels.adapter
        if adapter is not None and kernels.autocast:
            adapter = adapter._replace(dtype=self.compute)
        return kernels._replace(param_dtype=self.compute, autocast=False, adapter=adapter)

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The gathers and reductions of the plan's blocks and of its root group."""
        beside = Beside((), plan.ends, self.depth)
        structure, _ = structure_of(plan.config, plan.kernels, plan.kinds, plan.dims, False, beside)
        tuned = plan.kernels.adapter is not None
        root, blocks = groups_of(structure, self.stored_dtype if tuned else None)
        timeline = Fsdp2Timeline(
            root, blocks, self.ranks, self.kept_on, self.replicas, self.stored, self.compute,
            gathers_fp8=self.gathers_fp8, keeps_last=self.keeps_last, reduces=self.added,
        )  # fmt: skip
        return (timeline,)

    def stored_dtype(self, leaf: Tensor) -> str:
        """What a leaf's part is kept in: all that trains is added where fine-tuning adds parameters."""
        return self.added if self.added and leaf.requires_grad else self.stored

    def parameter(self, leaf: Tensor) -> Tensor:
        """This rank's part, padded."""
        part = held(leaf, part_shape(leaf.shape, self.ranks), self.stored_dtype(leaf))
        part.placed = cut_again(leaf.placed, self.ranks)
        return part

    def gradient(self, leaf: Tensor) -> Tensor:
        """As large as the part: reduced in fp32 where parts are fp32, else in their own dtype."""
        return self.parameter(leaf) if leaf.requires_grad else nowhere(leaf)

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """The parts of what trains."""
        own = {id(leaf): leaf for leaf in leaves if leaf.requires_grad}  # equal layers share theirs
        parts = {name: self.parameter(leaf) for name, leaf in own.items()}
        return [parts[id(leaf)] for leaf in leaves if leaf.requires_grad]


def fsdp2_of(plan: Plan) -> Fsdp2:
    """FSDP2 as a plan's layout states it; stage 2 keeps blocks gathered until their backward.

    With pipeline stages they stay gathered too unless stated, as every micro-batch reads them again.
    """
    layout, kernels = plan.parallel, plan.kernels
    ranks = layout.shard_ranks
    frees = layout.reshard
    if frees is None:
        frees = layout.zero == 3 and layout.pp == 1
    kept_on = None if frees is True or frees == ranks else int(frees) or 1
    return Fsdp2(
        ranks=ranks,
        kept_on=kept_on,
        replicas=layout.copies * layout.cp // ranks,
        stored=kernels.param_dtype,
        compute=kernels.compute_dtype,
        gathers_fp8=kernels.fp8_gather,
        added=added_dtype(kernels),
    )


def added_dtype(kernels: Kernels) -> str:
    """The dtype of what fine-tuning adds; "" where it adds nothing."""
    adapter = kernels.adapter
    return adapter.dtype if adapter is not None and adapter.method in ADDS else ""


def part_shape(shape: Shape, ranks: int) -> Shape:
    """A rank's part of a parameter: ceil(rows / ranks) of its rows."""
    return (shape[0].over(ranks), *shape[1:])


def groups_of(
    structure: Structure, stored: Callable[[Tensor], str] | None = None
) -> tuple[Group, tuple[Group, ...]]:
    """The root's group and one for each traced block; parameters in registration order.

    stored: the dtype a leaf's part is kept in, where leaves differ.
    """
    leaves: dict[int, list[Tensor]] = {-1: []}
    for leaf in structure.leaves:
        leaves.setdefault(block_of(leaf), []).append(leaf)
    groups = {
        block: Group(
            block,
            tuple((leaf.name, leaf.shape) for leaf in registered(found)),
            tuple((stored(leaf), leaf.dtype) for leaf in registered(found)) if stored else (),
        )
        for block, found in leaves.items()
    }
    return groups.pop(-1), tuple(groups[block] for block in sorted(groups))
