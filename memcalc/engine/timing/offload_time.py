"""Time that offload adds to a step: copies that compute does not hide, and the optimizer on the host.

What is copied and when is in offload_copies.py. A copy takes its bytes over the rate that copies of
pinned memory reach (`LinkRates.host`, of the cluster's own link where it states one), a pageable one
`PAGEABLE` of that; the link takes one copy at a time. What may run beside compute does so block by block:
the first block's shows, and of every other what is longer than the block, less the exchanges between
ranks that share its time. The optimizer's step on the host is bound by memory: its bytes over
`HOST_MEMORY_BYTES_PER_S`, an assumption that every result states, for no profile knows it. Not counted:
threads fewer than that rate needs, memory of the other processor, zeroing of new pages.
Checked by: unit/test_offload_time.py. Never compared with a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.plan import Plan
from memcalc.engine.timing.arith import Num, maximum
from memcalc.engine.timing.exchanges import Exchange
from memcalc.engine.timing.offload_copies import HostCopy, HostWork, host_traffic
from memcalc.engine.timing.overlap import Phases
from memcalc.inputs.rates import LinkRate, Rates, rescaled

#: Bytes/s of host memory that one rank's optimizer step reaches: assumed. Eight ranks share a server's
#: two processors (about 400 GB/s of DDR4, 600 of DDR5); one core alone reaches 15 to 30.
HOST_MEMORY_BYTES_PER_S: Final = 25e9
#: Pageable copies go through a pinned buffer of the driver: their rate of a pinned copy's, assumed.
PAGEABLE: Final = 0.5
#: How much longer PyTorch's loop over operators takes than one kernel: 5 to 7 times, as DeepSpeed's
#: tutorial of ZeRO-Offload has it of DeepSpeedCPUAdam (deepspeed.ai/tutorials/zero-offload).
LOOP: Final = 6.0
#: Bytes/s of one rank's share of local disks where the cluster states none: assumed.
DISK_BYTES_PER_S: Final = 3e9
#: A GPU's link to its host where none is known: PCIe 3.0 x16, assumed.
_UNKNOWN_LINK: Final = LinkRate(10e-6, 12.5e9)
_BESIDE: Final = ("activations go to the host and back beside compute: no time counted",)


class OffloadTime(NamedTuple):
    """Seconds that offload adds to a step of one rank, and what it moves in a step.

    forward_s, backward_s: to every micro-batch, on average; step_s: once, the optimizer's step on the
    host with it; hidden_s: copies of a step that run beside compute. host_moved_bytes: read and written
    by the host's processors; disk_bytes: on local disks.
    """

    forward_s: Num = 0.0
    backward_s: Num = 0.0
    step_s: Num = 0.0
    hidden_s: Num = 0.0
    to_host_bytes: int = 0
    to_gpu_bytes: int = 0
    host_moved_bytes: float = 0.0
    disk_bytes: int = 0
    assumptions: tuple[str, ...] = ()

    def of_step(self, batches: int) -> Num:
        """Seconds added to a step of so many micro-batches."""
        return batches * (self.forward_s + self.backward_s) + self.step_s


def offload_time(
    plan: Plan, device: Device, rates: Rates, phases: Phases, exchanges: Iterable[Exchange] = ()
) -> OffloadTime:
    """What offload adds to a step of a plan's rank; all zero where nothing is offloaded.

    phases: seconds of compute that copies may run beside. exchanges: those of the rank, whose gathers
    and reductions of blocks take part of that time.
    """
    copies, work = host_traffic(plan)
    if not copies:
        return OffloadTime(assumptions=_BESIDE if plan.kernels.offloads else ())
    link, said = _link(device, rates)
    network = {"forward": 0.0, "backward": 0.0}
    for one in exchanges:
        if one.place == "block" and one.per == "micro-batch" and one.overlaps:
            network[one.when] = network.get(one.when, 0.0) + one.seconds / phases.layers
    batches, free = phases.micro_batches, {}
    free["forward"] = maximum(phases.block_forward_s - network["forward"], 0.0)
    free["backward"] = maximum(phases.block_backward_s - network["backward"], 0.0)
    shown, hidden = {}, 0.0
    for when, room in free.items():
        beside = _seconds(copies, when, link, True) / batches
        first = beside / phases.layers
        seen = first + (phases.layers - 1) * maximum(first - room, 0.0)
        shown[when] = _seconds(copies, when, link, False) / batches + seen
        hidden = hidden + batches * (beside - seen)
    disk_s, more = _disk(device, work)
    host_s = (work.kernel_bytes + LOOP * work.looped_bytes) / HOST_MEMORY_BYTES_PER_S
    added_s = work.backward_bytes / HOST_MEMORY_BYTES_PER_S / batches
    return OffloadTime(
        forward_s=shown["forward"],
        backward_s=shown["backward"] + added_s,
        step_s=_seconds(copies, "step", link, False) + host_s + disk_s,
        hidden_s=hidden,
        to_host_bytes=sum(one.size_bytes for one in copies if one.to == "host"),
        to_gpu_bytes=sum(one.size_bytes for one in copies if one.to == "gpu"),
        host_moved_bytes=work.kernel_bytes + work.looped_bytes + work.backward_bytes,
        disk_bytes=work.disk_bytes,
        assumptions=(*said, *_host_said(work), *more),
    )


def _seconds(copies: Iterable[HostCopy], when: str, link: LinkRate, beside: bool) -> float:
    """Seconds over a step of the copies of a phase that do, or do not, run beside compute."""
    total = 0.0
    for one in copies:
        if one.when == when and one.beside == beside:
            rate = link.bus_bytes_per_s * (1.0 if one.pinned else PAGEABLE)
            total += one.calls * link.alpha_s + one.size_bytes / rate
    return total


def _link(device: Device, rates: Rates) -> tuple[LinkRate, tuple[str, ...]]:
    """The link between a GPU and its host, and what had to be assumed of it."""
    link, cluster = rates.links.host, device.cluster
    stated = device.gpu.pcie_bytes_per_s if device.gpu else None
    if link is not None and stated and cluster is not None and cluster.host_bytes_per_s:
        link = rescaled(link, cluster.host_bytes_per_s / stated)
    if link is None:
        return _UNKNOWN_LINK, ("link to the host unknown: 12.5 GB/s assumed",)
    return link, (
        f"copies to and from pinned host memory: {link.bus_bytes_per_s / 1e9:.1f} GB/s, pageable "
        f"{PAGEABLE * link.bus_bytes_per_s / 1e9:.1f} GB/s (not measured)",
    )


def _host_said(work: HostWork) -> tuple[str, ...]:
    if not work.kernel_bytes + work.looped_bytes:
        return ()
    looped = (
        f"; PyTorch's loop over operators {LOOP:g} times one kernel" if work.looped_bytes else ""
    )
    return (
        f"optimizer on the host: {HOST_MEMORY_BYTES_PER_S / 1e9:g} GB/s of its memory a GPU, "
        f"assumed{looped}",
    )


def _disk(device: Device, work: HostWork) -> tuple[float, tuple[str, ...]]:
    """Seconds of a step's disk traffic, and what its rate rests on."""
    if not work.disk_bytes:
        return 0.0, ()
    cluster = device.cluster
    if cluster is not None and cluster.nvme_bytes_per_s:
        rate = cluster.nvme_bytes_per_s / cluster.gpus_per_node
        return work.disk_bytes / rate, (f"local disks: {rate / 1e9:.1f} GB/s a GPU",)
    return work.disk_bytes / DISK_BYTES_PER_S, (
        f"local disks: {DISK_BYTES_PER_S / 1e9:g} GB/s a GPU, assumed",
    )
