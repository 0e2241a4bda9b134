"""Time of each operator of the ledger, forward and backward, from one profiled step.

Operators forward are ranges in the profile. A backward function is known by its sequence number, which
its forward operator had; recomputation opens the forward's ranges again, inside backward. On CUDA the
time of an operator is that of its kernels, on a CPU the self time of the operators of torch in it.
Kernels of two streams may overlap, so operators can sum to more than the step.
Checked by: harness/test_verify.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.scopes import LARGEST_SEQUENCE_NR, OUTSIDE, RANGE, scopes

_NODE = "autograd::engine::evaluate_function: "
_LEAF = "torch::autograd::AccumulateGrad"


class OpTime(NamedTuple):
    """Seconds of one operator in one step over all its layers. direction: forward, backward, step."""

    op: str
    direction: str
    calls: int
    seconds: float


def op_times(step: TrainingStep) -> list[OpTime]:
    """Profile two steps and keep the second; operators in the order of their first appearance."""
    on_gpu = step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    found: list[OpTime] = []
    try:
        for _ in range(2):
            with profile(activities=activities) as recorded:
                step.run(_follow)
                if on_gpu:
                    torch.cuda.synchronize(step.device)
            found = _gathered(recorded.events() or (), on_gpu)
    finally:
        scopes.ranges = False
    return found


def _follow(phase: str) -> None:
    """Told of every phase: from the first on, operators are ranges of the profile."""
    scopes.ranges = True


def _gathered(events: Any, on_gpu: bool) -> list[OpTime]:
    totals: dict[tuple[str, str], list[float]] = {}
    named: dict[int, tuple[str, str] | None] = {}
    for event in events:
        if str(event.device_type).endswith("CUDA"):
            continue  # kernels are counted with the operator that launched them
        name = _named(event, named)
        own = _seconds(event, on_gpu)
        if name is None or (own == 0.0 and not _opens(event)):
            continue
        total = totals.setdefault(name, [0, 0.0])
        total[0] += _opens(event)
        total[1] += own
    return [OpTime(op, way, int(n), s) for (op, way), (n, s) in totals.items() if s > 0]


def _opens(event: Any) -> bool:
    return bool(event.name.startswith((RANGE, _NODE)))


def _seconds(event: Any, on_gpu: bool) -> float:
    """Kernels launched by this very operator, or its time on the CPU without its children's."""
    if on_gpu:
        return float(sum(kernel.duration for kernel in event.kernels)) / 1e6
    if _opens(event) or event.name.startswith("Optimizer"):
        return 0.0  # Python's own time is no operator's
    return float(event.self_cpu_time_total) / 1e6


def _named(event: Any, named: dict[int, tuple[str, str] | None]) -> tuple[str, str] | None:
    """The ledger's operator and direction of the nearest range or backward function around."""
    path = []
    found: tuple[str, str] | None = None
    while event is not None:
        if event.id in named:
            found = named[event.id]
            break
        path.append(event.id)
        if event.name.startswith(RANGE):
            found = _of_range(event)
            break
        if event.name.startswith(_NODE):
            found = (_of_node(event), "backward")
            break
        event = event.cpu_parent
    for number in path:
        named[number] = found
    return found


def _of_range(event: Any) -> tuple[str, str]:
    op = event.name.removeprefix(RANGE).rpartition("/")[2]
    if op in ("optimizer", "grad_clip", "zero_grad"):
        return op, "step"
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(_NODE):
            return op, "recompute"
        parent = parent.cpu_parent
    return op, "forward"


def _of_node(event: Any) -> str:
    if event.name.endswith(_LEAF) or not 0 <= event.sequence_nr < LARGEST_SEQUENCE_NR:
        return "gradients"
    where = scopes.of_node(event.sequence_nr)
    return "between" if where == OUTSIDE else where.rpartition("/")[2]
