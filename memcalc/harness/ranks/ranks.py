"""The process group of a run and its grid of ranks: joined, divided as the layout says, left.

NCCL on GPUs, each process on the one of its LOCAL_RANK; gloo on CPUs. A collective that does not end
within ten minutes is an error. Checked by: harness/test_distributed.py (gloo; NCCL never run yet).
"""

from __future__ import annotations

import datetime
import warnings
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from memcalc.errors import ConfigError
from memcalc.harness.device import pick_device
from memcalc.harness.ranks.layout import Layout, Place, World

TIMEOUT_S = 600


class Ranks(NamedTuple):
    """This process's place in the layout, and the grid; a degree of 1 has no mesh of its own."""

    layout: Layout
    place: Place
    device: torch.device
    backend: str
    mesh: DeviceMesh

    def along(self, name: str) -> DeviceMesh:
        """The ranks that differ from this one in one degree only: "dp", "cp", "tp" or "pp".

        Of the dp ranks, "ep" have other experts, "edp" the same.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Slicing a flattened dim")
            return self.mesh[name]

    @property
    def replicas(self) -> DeviceMesh:
        """The ranks that have the same weights: those of dp, and of cp where sequences are split."""
        return self.along("dp" if self.layout.cp == 1 else "dp_cp")

    @property
    def sharding(self) -> DeviceMesh:
        """The replicas as fully_shard takes them: copies by parts, or parts alone."""
        return self.replicas if self.layout.shard is None else self.mesh["copies", "parts"]

    @property
    def share(self) -> int:
        """This rank's number among the replicas."""
        return self.place.dp * self.layout.cp + self.place.cp

    @property
    def is_first_stage(self) -> bool:
        return self.place.pp == 0

    @property
    def is_last_stage(self) -> bool:
        return self.place.pp == self.layout.pp - 1


def rank_device(text: str | None, world: World) -> torch.device:
    """The device of this process: "cpu", or the GPU of its LOCAL_RANK. Raises ConfigError."""
    if text is not None and ":" in text and world.size > 1:
        raise ConfigError(
            f"--device: got {text!r} for {world.size} processes; rule: each takes the GPU of its "
            "LOCAL_RANK; valid: cuda, cpu"
        )
    device = pick_device(text)
    if device.type == "cuda" and world.size > 1:
        device = pick_device(f"cuda:{world.local_rank}")
    return device


def join(layout: Layout, device: torch.device, world: World) -> Ranks:
    """Make the process group and the grid. Every rank calls it; it waits for all of them."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
        device_id=device if device.type == "cuda" else None,
    )
    return Ranks(layout, layout.place(world.rank), device, backend, init_grid(layout, device))


def init_grid(layout: Layout, device: torch.device) -> DeviceMesh:
    """The ranks as stages by copies by parts; a group of its own along each.

    Where the copies are sharding groups of fewer ranks, "dp" is made of "copies" and "parts"; where
    sequences are split, "dp_cp" is made of "dp" and "cp"; where experts are spread, "dp" of "edp", ranks
    with the same experts, and "ep".
    """
    if layout.ep > 1:
        shape = (layout.pp, layout.dp // layout.ep, layout.ep, layout.tp)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("pp", "edp", "ep", "tp"))
        mesh["edp", "ep"]._flatten("dp")
        return mesh
    if layout.cp > 1:
        shape = (layout.pp, layout.dp, layout.cp, layout.tp)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("pp", "dp", "cp", "tp"))
        mesh["dp", "cp"]._flatten("dp_cp")
        return mesh
    if layout.shard is None:
        degrees = (layout.pp, layout.dp, layout.tp)
        return init_device_mesh(device.type, degrees, mesh_dim_names=("pp", "dp", "tp"))
    grid = (layout.pp, layout.dp // layout.shard, layout.shard, layout.tp)
    mesh = init_device_mesh(device.type, grid, mesh_dim_names=("pp", "copies", "parts", "tp"))
    mesh["copies", "parts"]._flatten("dp")
    return mesh


def leave() -> None:
    """End the process group, after every rank has come to the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def most_of_all(values: list[float], device: torch.device) -> list[float]:
    """The largest of each over all ranks; every rank gives equally many."""
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [float(value) for value in shared.tolist()]


def sum_of_all(values: list[float], device: torch.device) -> list[float]:
    """The sum of each over all ranks; every rank gives equally many."""
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.SUM)
    return [float(value) for value in shared.tolist()]
