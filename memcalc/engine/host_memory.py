"""Host memory of a rank that keeps part of its step outside the GPU, and of its node.

Host memory is pinned (page-locked, so that the GPU copies by itself) or pageable; PyTorch rounds each
pinned block up to a power of two. Counted are the blocks that live through the step; not the process
itself (3 to 4 GB with its libraries), the data loader, or the file cache behind an NVMe disk.
Source: PyTorch 2.13, ATen/core/CachingHostAllocator.h (allocate; pinned_max_round_threshold has no
limit by default). Checked by: unit/test_offload.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from memcalc.engine.parallel.strategy import HostBlock
from memcalc.engine.states import multiplicity
from memcalc.units import gib

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan
    from memcalc.inputs.clusters import Cluster

PARTS: Final = ("parameters", "gradients", "optimizer", "activations", "buffers")


class HostMemory(NamedTuple):
    """Bytes of one rank on its host, and of all ranks of a node; zero where everything is on the GPU.

    The parts sum to pinned_bytes + pageable_bytes - rounding_bytes (what pinned blocks are rounded up
    by). optimizer: moments and master copies. nvme_bytes: of a rank, on disk.
    """

    pinned_bytes: int = 0
    pageable_bytes: int = 0
    rounding_bytes: int = 0
    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    buffers: int = 0
    nvme_bytes: int = 0
    ranks_per_node: int = 1
    node_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of a rank's host memory."""
        return self.pinned_bytes + self.pageable_bytes

    def lacking(self, cluster: Cluster | None) -> str | None:
        """What a node of the cluster lacks for this, in words; None where it is enough or unknown."""
        if cluster is None:
            return None
        disk = self.nvme_bytes * self.ranks_per_node
        for what, need, there in (
            ("host memory", self.node_bytes, cluster.host_memory_bytes),
            ("NVMe", disk, cluster.nvme_bytes),
        ):
            if there is not None and need > there:
                return f"{what}: a node needs {gib(need)}, {cluster.slug} has {gib(there)}"
        return None


def host_of(plan: Plan, gpus_per_node: int) -> HostMemory:
    """Host memory of a plan's rank: its states, and what forward saved there for backward."""
    layout = plan.parallel
    if layout.offload == "none":
        return HostMemory()

    structure, runs = plan.structure(*plan.peak_batch)
    times = multiplicity(runs)
    saved = [
        HostBlock(
            "activations", size.value(plan.values), layout.pin_memory is not False, times[block]
        )
        for block, size in structure.hosted
    ]
    return host_memory([*plan.strategy.host(plan), *saved], min(layout.size, gpus_per_node))


def pinned_block_bytes(size_bytes: int) -> int:
    """What PyTorch takes for a pinned block: the next power of two."""
    return 1 << (size_bytes - 1).bit_length() if size_bytes > 0 else 0


def host_memory(blocks: Iterable[HostBlock], ranks_per_node: int) -> HostMemory:
    """Sum the blocks of a rank."""
    parts = dict.fromkeys(PARTS, 0)
    pinned = pageable = rounding = nvme = 0
    for block in blocks:
        size = block.size_bytes * block.times
        if block.nvme:
            nvme += size
            continue
        unused = block.unused_bytes * block.times
        parts[block.what] += size - unused
        parts["buffers"] += unused
        if block.pinned:
            taken = pinned_block_bytes(block.size_bytes) * block.times
            pinned, rounding = pinned + taken, rounding + taken - size
        else:
            pageable += size
    return HostMemory(
        pinned_bytes=pinned,
        pageable_bytes=pageable,
        rounding_bytes=rounding,
        nvme_bytes=nvme,
        ranks_per_node=ranks_per_node,
        node_bytes=(pinned + pageable) * ranks_per_node,
        **parts,
    )
