"""Verify: kept setups priced once more the scalar way, with the allocator's replay and the verdict.

Of a pipeline's stages those are replayed that need most: the first of each kind of rank. What is printed is
what `memcalc estimate` says of the same command. Checked by: unit/test_search.py, cli/test_search.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memcalc.engine.device_side import with_modules
from memcalc.engine.parallel.rules import check_size
from memcalc.engine.plan import Plan, plan_of
from memcalc.engine.rank_memory import RankMemory, rank_memory
from memcalc.engine.timing.answer import time_estimate
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.errors import ConfigError
from memcalc.inputs.stacks import load_stack
from memcalc.planning.cases import Case, Refused
from memcalc.planning.train_time import price_of

#: Parts that a step's seconds are the sum of.
PARTS = (
    "forward_s", "backward_s", "recompute_s", "launch_s", "exposed_communication_s", "bubble_s",
    "optimizer_s", "offload_s",
)  # fmt: skip
#: From the options of a setup to what `estimate` takes.
CaseOf = Callable[[Mapping[str, str | bool]], Case | Refused]


class Verified(NamedTuple):
    """A setup with its exact memory and time."""

    row: dict[str, Any]
    plan: Plan
    time: TimeEstimate


def verified(case: Case | Refused, stages: Sequence[int], price: float | None) -> Verified:
    """The row of a setup. stages: of its pipeline, those that may need most.

    Raises ConfigError where the setup cannot be estimated: then the space has what `estimate` refuses.
    """
    if isinstance(case, Refused):
        raise ConfigError(f"search: {case.command}: {case.reason}")
    device = with_modules(case.device, load_stack(case.setup.code))
    plan = plan_of(case.config, case.setup, case.kernels, case.parallel)
    check_size(plan.parallel, device.cluster)
    ranks = [rank_memory(plan, stage, device, True) for stage in stages]
    worst = max(ranks, key=lambda rank: rank.memory.device_used_bytes or 0)
    time, _ = time_estimate(plan, device)
    return Verified(_row(case, plan, (worst, ranks), time, price), plan, time)


def _row(
    case: Case,
    plan: Plan,
    of: tuple[RankMemory, Sequence[RankMemory]],
    time: TimeEstimate,
    price: float | None,
) -> dict[str, Any]:
    worst, ranks = of
    memory = worst.memory
    fits = None if worst.fits is None else all(rank.fits for rank in ranks)
    tight = memory.high_bytes is not None and memory.high_bytes > (memory.usable_bytes or 0)
    verdict = None if fits is None else "does-not-fit" if not fits else "tight" if tight else "fits"
    layout = plan.parallel
    rate = time.tokens_per_s or 0.0
    cost = price_of(case.device.gpu, price)
    return {
        "command": case.command,
        "dp": layout.copies,
        "grad_accum_steps": plan.resolved.grad_accum_steps,
        "step_s": time.step_s,
        "tokens_per_s": time.tokens_per_s,
        "tokens_per_s_per_gpu": time.tokens_per_s_per_gpu,
        "mfu": time.mfu,
        "peak_requested_bytes": memory.peak_requested_bytes,
        "peak_allocated_bytes": memory.peak_allocated_bytes,
        "peak_reserved_bytes": memory.peak_reserved_bytes,
        "device_used_bytes": memory.device_used_bytes,
        "usable_bytes": memory.usable_bytes,
        "headroom_bytes": memory.headroom_bytes,
        "low_bytes": memory.low_bytes,
        "high_bytes": memory.high_bytes,
        "peak_at": memory.peak_at,
        "fits": fits,
        "verdict": verdict,
        "usd_per_million_tokens": None
        if cost is None or not rate
        else (cost.low + cost.high) / 2 * layout.size / 3600 / rate * 1e6,
        "parts": {name: getattr(time, name) for name in PARTS},
        "low_s": time.low_s,
        "high_s": time.high_s,
        "bound": time.bound,
    }
