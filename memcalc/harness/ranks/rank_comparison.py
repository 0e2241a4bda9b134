"""Each rank's record held against the estimate of its place in the layout.

An estimate prices the rank of a stage that holds most: where shards are uneven, later ranks hold less,
which is listed as a cause. Everything else is compared as for one process (harness/comparison.py).
Nothing here needs torch. Checked by: harness/test_rank_comparison.py, cli/test_distributed.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.engine.device_side import Device
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import StepMemory
from memcalc.engine.rank_memory import rank_memory
from memcalc.engine.timing.answer import time_estimate
from memcalc.harness.comparison import Difference, compare
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

_BYTES = (
    "parameters", "gradients", "optimizer", "master", "saved for backward", "peak in forward",
    "peak in loss", "peak in backward", "peak in optimizer", "peak requested",
)  # fmt: skip


def parallel_of(world: Mapping[str, Any]) -> ParallelPlan:
    """The layout of a record's ranks, as an estimate takes it."""
    names = ("tp", "pp", "dp", "sp", "fsdp", "schedule", "reshard", "shard", "cp", "cp_method",
             "ep")  # fmt: skip
    fields = {name: world[name] for name in names if world.get(name) is not None}
    if world["tp"] == 1:
        fields.pop("sp", None)
    return ParallelPlan(**fields)


def compared(
    config: ModelConfig,
    setup: TrainingSetup,
    kernels: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    device: Device,
) -> list[dict[str, Any]]:
    """The comparison of every rank's record, in their order. kernels: as the ranks ran them.

    Steps are all ranks' own, so their time is the layout's; without a GPU none is predicted.

    Raises ConfigError when the layout has no estimate.
    """
    parallel = parallel_of(records[0]["world"])
    plain = plan_of(config, setup, {**kernels, "watched": False}, parallel)
    watched = plan_of(config, setup, {**kernels, "watched": True}, parallel)
    stages = [
        (
            rank_memory(plain, stage, device, device.gpu is not None).memory,
            rank_memory(watched, stage, device, allocator=False).step,
        )
        for stage in range(parallel.pp)
    ]
    time = {**time_estimate(plain, device)[0].to_dict(), "executed_flops": None}
    found = []
    for record in records:
        memory, seen = stages[record["world"]["pp_rank"]]
        estimate = {"memory": memory.to_dict(), "time": time}
        peaks = {"phases": dict(seen.phases), "peak_requested_bytes": seen.peak_bytes}
        listed = [
            *_differences(record["world"]),
            *_late(record, memory.saved_for_backward_bytes, seen),
        ]
        found.append(compare(estimate, record, listed, peaks).plain())
    return found


def _late(record: Mapping[str, Any], saved_bytes: int, seen: StepMemory) -> list[Difference]:
    """Figures above the estimate on gloo, whose threads hold a collective's tensors for a while."""
    if record["world"].get("backend") != "gloo":
        return []
    memory = record["memory"]
    phases = memory.get("phases") or {}
    pairs = {
        "saved for backward": (saved_bytes, memory.get("saved_for_backward_bytes")),
        "peak requested": (seen.peak_bytes, memory.get("peak_requested_bytes")),
        **{f"peak in {name}": (size, phases.get(name)) for name, size in seen.phases.items()},
    }
    above = tuple(name for name, (ours, measured) in pairs.items() if (measured or 0) > ours)
    cause = "gloo lets go of what it sent or received late, when its own thread is done with it"
    return [Difference(above, cause)] if above else []


def _differences(world: Mapping[str, Any]) -> list[Difference]:
    """What is known to differ on this rank, with its cause."""
    found = []
    if world["fsdp"] and world["dp_rank"]:
        found.append(Difference(
            _BYTES, "rows that do not divide leave this rank a shorter shard than the first's"
        ))  # fmt: skip
    return found
