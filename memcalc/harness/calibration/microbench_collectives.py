"""Collectives between the ranks of a torchrun: NCCL on GPUs, gloo on CPUs, one process group.

message_bytes is the total gathered or scattered size (the size of the tensor for all-reduce and
all-to-all). Ring algorithms move (n-1)/n of it over each link, all-reduce twice that: bus_bytes.
All ranks make the same number of calls, which they agree on before each point.
Checked by: harness/test_calibrate.py (gloo, two processes; never run with NCCL).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from memcalc.harness.calibration.microbench import Point, Scale, Task, point
from memcalc.harness.calibration.timing import Bench
from memcalc.harness.ranks.layout import world

_DTYPE = torch.bfloat16
#: Name -> how often (n-1)/n of the message crosses a link.
COLLECTIVES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}


def local_device(device: torch.device) -> torch.device:
    """The GPU of this rank on its host, where several ranks share one; else the device itself."""
    here = world()
    if device.type == "cuda" and here.size > 1:
        return torch.device("cuda", here.local_rank)
    return device


def join(device: torch.device) -> bool:
    """Make the process group unless there is one; whether this call made it."""
    if dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def leave() -> None:
    """End the process group."""
    dist.destroy_process_group()


def agreed(value: float, device: torch.device) -> float:
    """The largest value of any rank."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return float(shared.item())


def collectives(scale: Scale) -> list[Task]:
    """Every collective at every message size; none in a run of one rank."""
    if world().size == 1:
        return []
    return [_task(name, size) for name in COLLECTIVES for size in scale.messages_bytes]


def _task(name: str, size: int) -> Task:
    ranks = world().size
    part = -(-size // _DTYPE.itemsize // ranks)  # elements of one rank
    message = part * ranks * _DTYPE.itemsize

    def run(bench: Bench) -> Point:
        call = _prepared(name, part, bench)
        timed = bench.time(lambda _: call(), agree=lambda seconds: agreed(seconds, bench.device))
        what = {
            "what": name, "ranks": ranks, "backend": dist.get_backend(), "message_bytes": message,
            "dtype": "bf16", "bus_bytes": COLLECTIVES[name] * message * (ranks - 1) / ranks,
            "hosts": world().hosts,
        }  # fmt: skip
        return point("collective", what, timed, moved=message)

    return Task(f"{name} of {message} bytes over {ranks} ranks", run, collective=True)


def _prepared(name: str, elements: int, bench: Bench) -> Callable[[], object]:
    """The call on `elements` of each rank. Reductions keep values in range: the mean with NCCL,
    the maximum with gloo, which has no mean; sums of sums would soon be infinite."""
    whole = bench.randn(elements * world().size, dtype=_DTYPE)
    part = bench.randn(elements, dtype=_DTYPE)
    received = torch.empty_like(whole)
    op = dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.MAX
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole, op=op),
        "all_gather": lambda: gather(whole, part),
        "reduce_scatter": lambda: scatter(part, whole, op=op),
        "all_to_all": lambda: dist.all_to_all_single(received, whole),
    }
    return calls[name]
