"""Communicators: which NCCL communicators a rank makes, and the driver memory their buffers take.

These bytes are the driver's, not PyTorch's allocator's. NCCL gives every channel of every connected
pair a receive buffer for each of its three protocols, 4 MiB + 4.69 MiB + 0.5 MiB, and a send buffer, in
blocks of 2 MiB: 12 MiB in all (NCCL src/init.cc, computeBuffSizes; transport/p2p.cc; issue 1685 logs
allocations of 10,485,760 and 2,097,152 bytes). A ring connects two neighbours, send/recv every peer it
reaches. What a communicator takes beyond its buffers is known from observations only: each sum has a
low and a high figure, and none was measured here.
Checked by: unit/test_communication.py, which holds the band against published observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from memcalc.engine.parallel.network.process_groups import (
    SAME_GROUPS,
    STACK_GROUPS,
    GroupRule,
    StackGroups,
)
from memcalc.inputs.clusters import Cluster
from memcalc.inputs.parallel import ParallelPlan
from memcalc.units import MIB

#: One channel between two GPUs that read each other's memory: 10 MiB received, 2 MiB sent.
CONNECTION_BYTES: Final = 12 * MIB
#: Channels of a ring by a node's wiring. NVSwitch: "24 coll channels" in logs of Hopper nodes; mesh:
#: assumed, not verified; host: 2 in a log of 8 RTX 4090 (tinygrad/open-gpu-kernel-modules, issue 17).
RING_CHANNELS: Final = {"switch": 24, "mesh": 12, "host": 2}
#: Channels of send/recv between two GPUs of a node; the least over a group's pairs, so that a group
#: that leaves the node has the network's everywhere (NCCL src/graph/paths.cc, ncclTopoGetNchannels).
PEER_CHANNELS: Final = {"switch": 32, "mesh": 2, "host": 2}
NETWORK_CHANNELS: Final = 2
#: A communicator of 2 GPUs and of more on an H100 node: 342 and 392 MiB, a correction "based on
#: observations" in ai-dynamo/aiconfigurator, systems/h100_sxm.yaml, nccl_mem.
OBSERVED_BYTES: Final = (358_612_992, 411_041_792)
#: Beyond the buffers of ring and trees, four A100: 544 MiB for 2 GPUs (NCCL issue 964).
_HIGH_REST_BYTES: Final = 256 * MIB
#: A first all-to-all on 8 H100s took 4.34 - 1.06 GB (NCCL issue 1685): by peer, more than its buffers.
_MOST_PEERS_OBSERVED: Final = 7
_ALL_TO_ALL_REST_BYTES: Final = 3_280_000_000 // _MOST_PEERS_OBSERVED - 32 * CONNECTION_BYTES
#: Sends to other nodes share one buffer a direction: 32 channels x 16 steps x 128 KiB (NCCL issue
#: 1450); 512 MiB seen with NCCL 2.28.9 on B300 (issue 2363).
_NETWORK_BUFFER_BYTES: Final = 64 * MIB
_NETWORK_BUFFER_HIGH_BYTES: Final = 512 * MIB


class Fabric(NamedTuple):
    """How a rank's GPU reaches the others: topology switch | mesh | host, of so many GPUs."""

    topology: str = "switch"
    gpus: int = 8


def fabric_of(cluster: Cluster | None, gpus_per_node: int | None = None) -> Fabric:
    """The fabric of a cluster's profile, of nodes with so many GPUs; without one NVSwitch, 8 GPUs."""
    if cluster is None:
        return Fabric(gpus=gpus_per_node or Fabric().gpus)
    if gpus_per_node in (None, cluster.gpus_per_node):
        return Fabric(cluster.topology, cluster.domain_gpus)
    return Fabric(cluster.topology, gpus_per_node)


class Communicator(NamedTuple):
    """One communicator of a rank.

    local, remote: peers it sends to inside and outside the fast fabric; a collective has none. spans:
    some rank is outside. uses: of `process_groups.GroupRule`. certain: every run of the stack makes it.
    """

    group: str
    ranks: int
    uses: frozenset[str]
    local: int
    remote: int
    spans: bool
    certain: bool


class CommunicationBytes(NamedTuple):
    """Driver memory of a rank's communicators, and what each figure rests on."""

    expected: int
    low: int
    high: int
    reasons: tuple[str, ...] = ()


def communicators(
    parallel: ParallelPlan,
    stack: str,
    fabric: Fabric,
    stage: int = 0,
    tied: bool = False,
    experts: bool = False,
) -> tuple[Communicator, ...]:
    """The communicators of the first rank of a stage. A stack without a table has PyTorch's groups.

    parallel: resolved. tied: embedding and head share a weight; experts: the model has experts.
    Checked by: unit/test_communication.py.
    """
    groups = STACK_GROUPS[SAME_GROUPS.get(stack, stack if stack in STACK_GROUPS else "torch")]
    axes, true = _axes(parallel), facts(parallel, stage, tied, experts)
    found: dict[object, Communicator] = {}
    for rule in groups.rules:
        ranks = math.prod(axes[name][0] for name in rule.axes)
        if ranks == 1 or not true.issuperset(rule.when):
            continue
        made = _communicator(rule, parallel, fabric, stage)
        key = _identity(rule, groups, axes, parallel.size)
        found[key] = _merged(found[key], made) if key in found else made
    return tuple(found.values())


def facts(parallel: ParallelPlan, stage: int, tied: bool, experts: bool) -> frozenset[str]:
    """What holds of a plan, in the words of `GroupRule.when`."""
    said = {
        "sharded": parallel.sharded,
        "whole": not parallel.sharded,
        "hybrid": parallel.sharded and parallel.shard_ranks < parallel.copies * parallel.cp,
        "experts": experts,
        "ep": parallel.ep > 1,
        "tied": tied,
        "end stage": stage in (0, parallel.pp - 1),
    }
    return frozenset(name for name, holds in said.items() if holds)


def communication_bytes(found: Iterable[Communicator], fabric: Fabric) -> CommunicationBytes:
    """Driver memory of these communicators together; those not certain count in the high figure only.

    Checked by: unit/test_communication.py.
    """
    expected = low = high = 0
    reasons = []
    for one in found:
        figure = communicator_bytes(one, fabric)
        high += figure.high
        where = ", between nodes: not observed" if one.spans else ""
        if one.local > _MOST_PEERS_OBSERVED:
            where = f", to {one.local} peers: not observed"
        if one.certain:
            expected += figure.expected
            low += figure.low
            size = f"{round(figure.expected / MIB)} MiB"
            reasons.append(f"{one.group} of {one.ranks}: {size}{where}")
        else:
            size = f"up to {round(figure.high / MIB)} MiB"
            reasons.append(f"{one.group} of {one.ranks}: {size}, in the high figure only")
    return CommunicationBytes(expected, low, high, tuple(reasons))


def communicator_bytes(one: Communicator, fabric: Fabric) -> CommunicationBytes:
    """Driver memory of one communicator: its ring, and the peers of send/recv.

    A host that carries all traffic holds the buffers itself. Between nodes a ring is taken to cost
    what it does inside one. The high figure has the trees too, and ring and trees where only send/recv
    runs: NCCL before 2.22 connects them when it makes the communicator.
    """
    channels = RING_CHANNELS[fabric.topology]
    ring = 0 if fabric.topology == "host" else channels * CONNECTION_BYTES
    rest = OBSERVED_BYTES[one.ranks > 2] - RING_CHANNELS["switch"] * CONNECTION_BYTES
    trees = channels * CONNECTION_BYTES if one.ranks > 2 else 0
    high = channels * CONNECTION_BYTES + trees + _HIGH_REST_BYTES
    peers = _peer_bytes(one, fabric)
    if "collective" not in one.uses:
        if "all-to-all" in one.uses and fabric.topology == "switch" and not one.spans:
            rest = min(one.local, _MOST_PEERS_OBSERVED) * _ALL_TO_ALL_REST_BYTES
        return CommunicationBytes(rest + peers.expected, peers.low, high + peers.high)
    low = min(ring, NETWORK_CHANNELS * CONNECTION_BYTES) if one.spans else ring
    return CommunicationBytes(ring + rest + peers.expected, low + peers.low, high + peers.high)


def _peer_bytes(one: Communicator, fabric: Fabric) -> CommunicationBytes:
    """Buffers of send/recv; the low figure has the network's channels to more peers than observed."""
    connection = 0 if fabric.topology == "host" else CONNECTION_BYTES
    most = PEER_CHANNELS[fabric.topology]
    expected = NETWORK_CHANNELS if one.spans else most
    low = NETWORK_CHANNELS if one.local > _MOST_PEERS_OBSERVED else expected
    shared = bool(one.remote)
    return CommunicationBytes(
        one.local * expected * connection + shared * 2 * _NETWORK_BUFFER_BYTES,
        one.local * low * connection + shared * _NETWORK_BUFFER_BYTES,
        one.local * most * CONNECTION_BYTES + shared * 2 * _NETWORK_BUFFER_HIGH_BYTES,
    )


def ends_stride(stage: int, pp: int, domain: int) -> int:
    """How far apart first and last of pp stages of so many ranks are: next to each other in one domain.

    Checked by: unit/test_exchanges.py, property/test_search_grid.py.
    """
    return 1 if stage * pp <= domain else stage * max(1, pp - 1)


def _axes(parallel: ParallelPlan) -> dict[str, tuple[int, int]]:
    """(ranks, distance between neighbours) of every axis; tp varies fastest, then cp, dp, pp."""
    tp, cp, dp, pp = parallel.tp, parallel.cp, parallel.copies, parallel.pp
    shard = parallel.shard_ranks
    stage = tp * cp * dp
    ep, etp = parallel.ep, parallel.etp or 1
    return {
        "tp": (tp, 1),
        "cp": (cp, tp),
        "dp": (dp, tp * cp),
        "pp": (pp, stage),
        "shard": (shard, tp),
        "replica": (dp * cp // shard, tp * shard),
        "etp": (etp, 1),
        "ep": (ep, etp),
        "edp": (stage // (ep * etp), ep * etp),
        "embedding": (min(pp, 2), stage * (pp - 1)),
    }


def _communicator(
    rule: GroupRule, parallel: ParallelPlan, fabric: Fabric, stage: int
) -> Communicator:
    """A rule's communicator on a rank of this stage; degrees are taken to fill the fabric evenly."""
    spread = [_axes(parallel)[name] for name in rule.axes]
    ranks = math.prod(count for count, _ in spread)
    if rule.axes == ("embedding",):
        stage_ranks = parallel.size // parallel.pp
        spread = [(ranks, ends_stride(stage_ranks, parallel.pp, fabric.gpus))]
    inside = math.prod(min(count, max(1, fabric.gpus // step)) for count, step in spread)
    use = rule.use
    if rule.name == "cp" and parallel.cp_method == "ulysses":
        use = "all-to-all"
    local = remote = 0
    if use == "all-to-all":
        local, remote = inside - 1, ranks - inside
    elif use == "ring":
        peers = min(2, ranks - 1)
        local = min(peers, inside - 1)
        remote = peers - local
    elif use == "stages":
        near = _near_stages(parallel, fabric, stage)
        local, remote = sum(near), len(near) - sum(near)
    return Communicator(
        rule.name, ranks, frozenset({use}), local, remote, inside < ranks, rule.certain
    )


def _near_stages(parallel: ParallelPlan, fabric: Fabric, stage: int) -> list[bool]:
    """Of every stage this one exchanges activations with: whether its rank is in the same fabric."""
    pp, step = parallel.pp, parallel.size // parallel.pp
    around = {(stage - 1) % pp, (stage + 1) % pp}
    if parallel.schedule != "interleaved":  # only there the last stage sends on to the first
        around = {other for other in around if abs(other - stage) == 1}
    home = stage * step // fabric.gpus
    return [other * step // fabric.gpus == home for other in sorted(around)]


def _identity(
    rule: GroupRule, groups: StackGroups, axes: dict[str, tuple[int, int]], size: int
) -> object:
    """What two rules must share to be one communicator."""
    active = frozenset(axes[name] for name in rule.axes if axes[name][0] > 1)
    if groups.reuses == "world" and math.prod(count for count, _ in active) == size:
        return "world"
    if groups.reuses == "ranks" and rule.name != "world":
        return active
    return rule.name


def _merged(one: Communicator, other: Communicator) -> Communicator:
    """Two uses of one communicator."""
    return one._replace(
        uses=one.uses | other.uses,
        local=max(one.local, other.local),
        remote=max(one.remote, other.remote),
        certain=one.certain or other.certain,
    )
