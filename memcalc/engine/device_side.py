"""The GPU side of an estimate: which GPU, what of its memory a process can use, what the driver takes."""

from __future__ import annotations

from typing import NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.clusters import Cluster, load_cluster
from memcalc.inputs.hardware import Gpu, context_bytes, cublas_workspace_bytes, load_gpu
from memcalc.inputs.rates import DEFAULT
from memcalc.inputs.stacks import Stack
from memcalc.units import MIB

_DEFAULT_WORKSPACE_BYTES = 32 * MIB
_DEFAULT_CONTEXT_BYTES = 550 * MIB


class Device(NamedTuple):
    """The GPU side of an estimate, with what each figure rests on."""

    gpu: Gpu | None
    usable_bytes: int | None
    workspace_bytes: int
    context_bytes: int
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    cluster: Cluster | None = None
    calibration: str = DEFAULT  # which rates times are made from: inputs/choose_rates.py


def with_modules(device: Device, stack: Stack) -> Device:
    """The device under a stack whose releases load all of PyTorch's kernels with the library."""
    more = int(stack.parallel.get("eager_modules_bytes", 0))
    if not more:
        return device
    said = (
        f"kernels loaded with the library: {more // MIB} MiB beside the context (CUDA before 11.7)"
    )
    context = device.context_bytes + more
    return device._replace(context_bytes=context, assumptions=(*device.assumptions, said))


def device_from(gpu: Gpu | Cluster | str | Device | None) -> Device:
    """What an estimate is asked for as one of these: a device is itself, a cluster has its GPU."""
    if isinstance(gpu, Device):
        return gpu
    return device_of(None, cluster=gpu) if isinstance(gpu, Cluster) else device_of(gpu)


def device_of(
    gpu: Gpu | str | None,
    gpu_memory_bytes: int | None = None,
    reserve_bytes: int = 0,
    cluster: Cluster | str | None = None,
    calibration: str = DEFAULT,
) -> Device:
    """Resolve a GPU by name or by its cluster; its memory may be stated, and part of it set aside.

    calibration: default, auto, a name of `memcalc list calibrations`, or a file (choose_rates.py).

    Raises ConfigError when the GPU is not the cluster's.
    """
    if isinstance(cluster, str):
        cluster = load_cluster(cluster)
    if cluster is not None and gpu is None:
        gpu = cluster.gpu_file or cluster.gpu
    if gpu is None:
        usable = None if gpu_memory_bytes is None else gpu_memory_bytes - reserve_bytes
        said = "no GPU named: matmul workspace and CUDA context of a Hopper card assumed"
        return Device(
            None, usable, _DEFAULT_WORKSPACE_BYTES, _DEFAULT_CONTEXT_BYTES, (), (said,), None,
            calibration,
        )  # fmt: skip
    notes: list[str] = []
    if isinstance(gpu, str):
        gpu, notes = load_gpu(gpu)
    if cluster is not None and gpu.slug != cluster.gpu:
        raise ConfigError(
            f"gpu: got {gpu.slug} with cluster {cluster.slug}; rule: the cluster's; "
            f"valid: {cluster.gpu}"
        )
    context, source, verified = context_bytes(gpu)
    total = gpu.total_bytes if gpu_memory_bytes is None else gpu_memory_bytes
    basis = gpu.total_bytes_source if gpu_memory_bytes is None else "as stated"
    assumptions = (
        f"usable memory of {gpu.name}: {basis}",
        f"CUDA context: {context // MIB} MiB, {source}" + ("" if verified else " (not verified)"),
    )
    return Device(
        gpu, total - reserve_bytes, cublas_workspace_bytes(gpu), context, tuple(notes),
        assumptions, cluster, calibration,
    )  # fmt: skip
