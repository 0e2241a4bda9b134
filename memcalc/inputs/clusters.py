"""Cluster: GPUs in nodes, the links inside a node, the network between nodes, and the host beside them.

Decides which profile a name stands for and checks its figures. Rates are those of one direction, as
sold: what a collective reaches is the time model's. A node is what runs one operating system; the
scale-up domain is every GPU on the fast link, more than a node in rack systems.
Figures without a second source are listed in `Cluster.unverified`; each one's source is in its profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.inputs import profiles
from memcalc.inputs.files import names_toml, user_path
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.model import check_choice
from memcalc.inputs.profiles import read_text, read_texts

#: How a node's GPUs reach each other: switch, any peer at a GPU's full rate; mesh, the rate is shared
#: by the links to several peers; host, through the host's PCIe, no GPU reads another's memory.
TOPOLOGIES: Final = ("switch", "mesh", "host")
_COUNTS = ("gpus_per_node", "domain_gpus", "nics_per_node", "rails", "nodes")
_NEEDED = ("gpus_per_node", "link_bytes_per_s")
#: Every figure a profile may hold; each is an inline table with value, source and verified.
FIGURES: Final = (
    *_COUNTS, "link_bytes_per_s", "nic_bytes_per_s", "host_bytes_per_s", "host_memory_bytes",
    "nvme_bytes", "nvme_bytes_per_s",
)  # fmt: skip
_TEXTS = ("name", "aliases", "gpu", "link", "topology", "host_link", "network", "notes")
_BYTES = ("host_memory_bytes", "nvme_bytes")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One kind of node and its network, in bytes and bytes/s of one direction; None where unknown.

    gpu: slug of a device profile; gpu_file: its file where it is the user's own. domain_gpus: GPUs on
    the fast link. link_bytes_per_s: what one GPU sends to its peers in all. nic_bytes_per_s: one network
    card's rate. rails: separate planes of switches. host_bytes_per_s: one GPU to host memory. nvme: local
    disks of a node, reads. nodes: of the named installation. Checked by: unit/test_clusters.py.
    """

    name: str
    slug: str
    gpu: str
    gpus_per_node: int
    domain_gpus: int
    link: str
    topology: str
    link_bytes_per_s: float
    network: str | None = None
    nics_per_node: int | None = None
    nic_bytes_per_s: float | None = None
    rails: int | None = None
    host_link: str | None = None
    host_bytes_per_s: float | None = None
    host_memory_bytes: int | None = None
    nvme_bytes: int | None = None
    nvme_bytes_per_s: float | None = None
    nodes: int | None = None
    gpu_file: str | None = None
    notes: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()  # profile keys without a second source
    profile_hash: str = ""

    @property
    def gpus(self) -> int | None:
        """GPUs of the named installation; None where the profile is of a kind of node."""
        return None if self.nodes is None else self.nodes * self.gpus_per_node

    @property
    def node_network_bytes_per_s(self) -> float | None:
        """Bytes/s that a node sends to others, all cards together; None without a network."""
        if self.nics_per_node is None or self.nic_bytes_per_s is None:
            return None
        return self.nics_per_node * self.nic_bytes_per_s

    @property
    def gpu_network_bytes_per_s(self) -> float | None:
        """A GPU's share of its node's network, bytes/s; None without a network."""
        whole = self.node_network_bytes_per_s
        return None if whole is None else whole / self.gpus_per_node


def read_cluster(path: Path) -> Cluster:
    """The cluster of one profile file; in a user's file figures may be bare numbers.

    Raises ConfigError when a figure is missing, no positive number or does not go with another.
    Checked by: unit/test_clusters.py.
    """
    raw, where = profiles.read_toml(path), path.name
    profiles.check_keys(raw, (*FIGURES, *_TEXTS), where)
    values, unverified = profiles.read_figures(raw, FIGURES, where)
    for key in _NEEDED:
        if key not in values:
            raise ConfigError(f"{where}: {key}: got none; rule: every cluster profile states it")
    gpu = read_text(raw, "gpu", where)
    if gpu is None:
        raise ConfigError(f"{where}: gpu: got none; rule: a name of `memcalc list gpus`, or a file")
    own = str(path.parent / user_path(gpu)) if names_toml(gpu) else None
    topology = read_text(raw, "topology", where) or "switch"
    check_choice(f"{where}: topology", topology, TOPOLOGIES)
    counts = _counts(values, where)
    rest: dict[str, Any] = {
        key: int(value) if key in _BYTES else value
        for key, value in values.items()
        if key not in _COUNTS
    }
    return Cluster(
        name=read_text(raw, "name", where) or path.stem,
        slug=path.stem,
        gpu=load_gpu(own or gpu)[0].slug,
        gpu_file=own,
        link=read_text(raw, "link", where) or "unknown",
        topology=topology,
        network=read_text(raw, "network", where),
        host_link=read_text(raw, "host_link", where),
        notes=read_texts(raw, "notes", where),
        unverified=tuple(unverified),
        profile_hash=profiles.profile_hash(path),
        **counts,
        **rest,
    )


def _counts(values: Mapping[str, float], where: str) -> dict[str, Any]:
    """The whole numbers of a profile; the scale-up domain is the node unless it is stated."""
    counts: dict[str, Any] = {}
    for key in _COUNTS:
        if key in values:
            if values[key] != int(values[key]):
                raise ConfigError(f"{where}: {key}: got {values[key]}; rule: a whole number")
            counts[key] = int(values[key])
    node = counts["gpus_per_node"]
    domain = counts.setdefault("domain_gpus", node)
    if domain % node:
        raise ConfigError(
            f"{where}: domain_gpus: got {domain}; rule: whole nodes of {node}; "
            f"nearest valid: {max(1, round(domain / node)) * node}"
        )
    return counts


@lru_cache(maxsize=64)
def _shipped(path: Path) -> Cluster:
    """A shipped profile's cluster; those files do not change while a process runs."""
    return read_cluster(path)


def load_cluster(name: str) -> Cluster:
    """The cluster a name means: a profile (`dgx-h100`, `DGX H100`, `nvl72`) or a file `my.toml`.

    Raises ConfigError naming the nearest name when there is none. Checked by: unit/test_clusters.py.
    """
    if names_toml(name):
        return read_cluster(user_path(name))
    return _shipped(profiles.find_profile("clusters", name))
