"""Topology: which wires a group of ranks talks over, and the seconds of a collective on them.

Ranks are numbered from the innermost axis: tp, cp, dp, pp (Megatron-Core 0.14, parallel_state.py, order
"tp-cp-ep-dp-pp"; torchtitan, distributed/parallel_dims.py; nanotron, parallel/context.py). A group is
so many ranks, so many numbers apart; it lies in one fast domain (NVLink's, or a node's PCIe) or spans
several, which the network joins. A ring over several domains passes each byte once into and once out of
each: its rate is the slower of a GPU's fast link and of the network cards of the group's own ranks in a
domain. Groups that run at the same time so share a node's cards evenly. All-reduces also run as trees.
Latencies of further hops: NCCL, src/graph/tuning.cc (hwLat, LL128). Rates are those of `inputs/rates.py`.
Checked by: unit/test_topology.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.timing.arith import Num, maximum, minimum
from memcalc.engine.timing.collective_time import collective_s, curve_of, wire_bytes
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import LinkRate, LinkRates, Rates, rescaled

#: GPUs of a node where no cluster is named.
NODE_GPUS: Final = 8
#: Seconds of one more hop of a ring inside a domain and between two, and of a tree between domains.
LINK_HOP_S: Final = 1.9e-6
NETWORK_HOP_S: Final = 4.0e-6
TREE_HOP_S: Final = 8.5e-6
#: Share of a ring's rate that a tree reaches.
TREE_SHARE: Final = 0.9
#: Of the six links of a GPU in a hybrid cube mesh two lead to its nearest peer, so that a ring of three
#: neighbours and more has all: NVIDIA, DGX-1 with Tesla V100 system architecture (white paper).
MESH_NEIGHBOURS: Final = 3
#: What a node sends to others where neither its cluster nor its GPU says: 100 Gb/s, assumed.
UNKNOWN_NODE_BYTES_PER_S: Final = 12.5e9
_UNKNOWN_ALPHA_S: Final = 30e-6
_PCIE_BYTES_PER_S: Final = 12.5e9


class Wires(NamedTuple):
    """What joins the GPUs of a run.

    domain: GPUs that reach each other over `inner`, whose tier is link or pcie; outer: one GPU's share
    of the network. mesh: inner's rate is shared by links to several peers. assumptions: what was not
    known.
    """

    domain: int
    tier: str
    inner: LinkRate
    outer: LinkRate
    mesh: bool = False
    assumptions: tuple[str, ...] = ()


class Group(NamedTuple):
    """Ranks that exchange: so many, of which `local` share a domain, in so many domains."""

    ranks: int
    local: int
    domains: int


def wires_of(device: Device, parallel: ParallelPlan, rates: Rates) -> Wires:
    """The wires of a cluster, or of nodes of eight of a GPU. Checked by: unit/test_topology.py."""
    said: list[str] = []
    gpu, cluster = device.gpu, device.cluster
    tier, inner = _inner(device, rates.links, said)
    node = cluster.gpus_per_node if cluster else NODE_GPUS
    domain = cluster.domain_gpus if cluster else node
    if parallel.gpus_per_node not in (None, node):
        domain = node = parallel.gpus_per_node or node
    elif cluster is None and parallel.gpus_per_node is None and parallel.size > 1:
        said.append(f"no cluster named: nodes of {node} GPUs assumed")
    known = cluster.gpu_network_bytes_per_s if cluster else None
    stated = gpu.nic_bytes_per_s if gpu else None
    outer = rates.links.network
    if outer is not None and known is not None and stated:
        outer = rescaled(outer, known / stated)
    elif known is not None:
        outer = LinkRate(_UNKNOWN_ALPHA_S, _share(rates.links, gpu) * known)
    elif outer is None:
        outer = LinkRate(_UNKNOWN_ALPHA_S, UNKNOWN_NODE_BYTES_PER_S / node)
        if parallel.size > domain:
            said.append("network unknown: 100 Gb/s a node assumed")
    is_mesh = cluster is not None and cluster.topology == "mesh"
    return Wires(domain, tier, inner, outer, is_mesh, tuple(said))


def _share(links: LinkRates, gpu: Gpu | None) -> float:
    """What of a network card's rate is reached, where rates know none for this GPU."""
    if links.network is None or gpu is None or not gpu.nic_bytes_per_s:
        return 0.9
    return links.network.bus_bytes_per_s / gpu.nic_bytes_per_s


def _inner(device: Device, links: LinkRates, said: list[str]) -> tuple[str, LinkRate]:
    """Tier and rate inside a domain: the fast link, or the host's PCIe where there is none."""
    gpu, cluster = device.gpu, device.cluster
    name = ((gpu.link if gpu else None) or "none").lower()
    over_host = cluster.topology == "host" if cluster else name.startswith(("pcie", "none"))
    bridged = cluster is None and "bridge" in name
    if not over_host and not bridged and links.link is not None:
        stated = gpu.link_unidirectional_bytes_per_s if gpu else None
        if cluster is None or not stated:
            return "link", links.link
        return "link", rescaled(links.link, cluster.link_bytes_per_s / stated)
    if bridged:
        said.append("NVLink bridges join pairs only: PCIe assumed between the GPUs of a node")
    known = gpu.pcie_bytes_per_s if gpu else None
    if links.pcie is None:
        said.append("host link unknown: 12.5 GB/s assumed")
        return "pcie", LinkRate(_UNKNOWN_ALPHA_S, _PCIE_BYTES_PER_S)
    if cluster is None or cluster.host_bytes_per_s is None or not known:
        return "pcie", links.pcie
    return "pcie", rescaled(links.pcie, cluster.host_bytes_per_s / known)


def group_of(ranks: int, stride: int, wires: Wires) -> Group:
    """The group of this many ranks, so many numbers apart."""
    local = max(1, min(ranks, wires.domain // stride))
    return Group(ranks, local, -(-ranks // local))


def stride_of(axis: str, parallel: ParallelPlan, expert_split: int = 1) -> int:
    """How far apart in number the ranks of an axis are.

    axis: tp | cp | dp | shard | replica | ep | etp | edp | pp | embedding. Ranks that hold the same
    weights are dp x cp, next to each other; ep and etp (expert_split ranks) divide them and tp.
    """
    tp, cp = parallel.tp, parallel.cp
    return {
        "tp": 1, "etp": 1, "cp": tp, "dp": tp, "shard": tp, "replica": tp * parallel.shard_ranks,
        "ep": expert_split, "edp": expert_split * parallel.ep,
        "pp": tp * cp * parallel.copies, "embedding": tp * cp * parallel.copies,
    }[axis]  # fmt: skip


def tier_of(group: Group, wires: Wires) -> str:
    """link | pcie | network: the slowest wires a group uses."""
    return wires.tier if group.domains == 1 else "network"


def exchange_s(kind: str, call_bytes: Num, group: Group, wires: Wires) -> Num:
    """Seconds of one call, alone on its wires; 0 for one rank. Sizes and rates may be arrays.

    kind, call_bytes: as `collective_time.collective_s` has them.
    """
    if group.ranks == 1:
        return 0.0
    inner = _in_domain(group, wires)
    if group.domains == 1:
        return collective_s(inner, kind, call_bytes, group.ranks)
    outer = wires.outer
    if kind == "send":
        return outer.alpha_s + call_bytes / outer.bus_bytes_per_s
    inside = _bus(inner, kind, group.local)
    if kind == "all_to_all":
        return _scattered_s(call_bytes, group, inside, outer)
    bus = minimum(inside, group.local * outer.bus_bytes_per_s)
    ring = _ring_alpha_s(kind, group, outer) + wire_bytes(kind, call_bytes, group.ranks) / bus
    if kind != "all_reduce":
        return ring
    tree = outer.alpha_s + 2 * TREE_HOP_S * (group.domains - 1).bit_length()
    wire = wire_bytes(kind, call_bytes, group.ranks)
    return minimum(ring, tree + wire / (TREE_SHARE * bus))


def _in_domain(group: Group, wires: Wires) -> LinkRate:
    """The fast link as this group has it: of a mesh the links among its own ranks."""
    if not wires.mesh:
        return wires.inner
    return rescaled(wires.inner, min(1.0, max(1, group.local - 1) / MESH_NEIGHBOURS))


def _ring_alpha_s(kind: str, group: Group, outer: LinkRate) -> Num:
    """Seconds before the last byte moves: the figure of two domains, and the hops beyond."""
    hops = group.domains - 2
    passes = 2 if kind == "all_reduce" else 1
    return outer.alpha_s + passes * hops * (NETWORK_HOP_S + (group.local - 1) * LINK_HOP_S)


def _bus(inner: LinkRate, kind: str, local: int) -> Num:
    """Bus bytes/s of large messages on the fast link, among the ranks of one domain."""
    curves = getattr(inner, kind)
    return curve_of(curves, max(2, local)).large_bytes_per_s if curves else inner.bus_bytes_per_s


def _scattered_s(call_bytes: Num, group: Group, inside: Num, outer: LinkRate) -> Num:
    """An all-to-all: each GPU's own card carries what leaves the domain, the fast link the rest."""
    leaving = call_bytes * (group.ranks - group.local) / group.ranks
    staying = call_bytes * (group.local - 1) / group.ranks
    return outer.alpha_s + maximum(leaving / outer.bus_bytes_per_s, staying / inside)
