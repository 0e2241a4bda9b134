"""Verify: kept setups priced once more the scalar way, with the allocator's replay and the verdict.

Of a pipeline's stages those are replayed that need most: the first of each kind of rank. What is printed is
what `memcalc estimate` says of the same command. Checked by: unit/test_search.py, cli/test_search.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.engine.device_side import Device, with_modules
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.rules import check_size
from memcalc.engine.plan import Plan
from memcalc.engine.rank_memory import RankMemory, rank_memory, used_bytes
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
#: Ranks that need less of the most than this are not replayed: caches never hold so much more.
_NEAR: Final = 0.8
#: From the options of a setup to what `estimate` takes.
CaseOf = Callable[[Mapping[str, str | bool]], Case | Refused]


#: What a row says of reserved bytes that come from a replay of its own.
REPLAYED: Final = "simulated"


class Asked(NamedTuple):
    """How a setup is looked at again.

    stages: of its pipeline, those that may need most. ratio: reserved over allocated bytes, in place of a
    replay; None: replay. only_fitting: a setup that does not fit needs no row.
    """

    stages: Sequence[int]
    price: float | None = None
    ratio: float | None = None
    only_fitting: bool = False


def verified(case: Case | Refused, asked: Asked) -> dict[str, Any] | None:
    """The row of a setup; None for one that does not fit, where only fitting ones are wanted.

    Raises ConfigError where the setup cannot be estimated: then the space has what `estimate` refuses.
    """
    if isinstance(case, Refused):
        raise ConfigError(f"search: {case.command}: {case.reason}")
    device = with_modules(case.device, load_stack(case.setup.code))
    plan = plan_of(case.config, case.setup, case.kernels, case.parallel)
    check_size(plan.parallel, device.cluster)
    ranks = _ranks(plan, asked, device)
    worst = max(ranks, key=lambda rank: rank.memory.device_used_bytes or 0)
    fits = None if worst.fits is None else all(rank.fits for rank in ranks)
    if fits is False and asked.only_fitting:
        return None
    time, _ = time_estimate(plan, device)
    row = _row(case, plan, (worst, fits), time, asked.price)
    row["reserved"] = REPLAYED if asked.ratio is None else f"{asked.ratio:.4f} of allocated bytes"
    return row


def _ranks(plan: Plan, asked: Asked, device: Device) -> list[RankMemory]:
    """One rank of each stage asked for, that which needs most first; no more once one does not fit.

    Replayed are those that need nearly as much as the most.
    """
    plain = [(stage, rank_memory(plan, stage, device, False)) for stage in asked.stages]
    plain.sort(key=lambda one: -_need(one[1]))
    found: list[RankMemory] = []
    for stage, rank in plain:
        if asked.ratio is not None:
            found.append(_scaled(rank, plan, device, asked.ratio))
        elif _need(rank) >= _NEAR * _need(plain[0][1]):
            found.append(rank_memory(plan, stage, device, True))
        else:
            found.append(rank)
        if asked.only_fitting and found[-1].fits is False:
            break
    return found


def _need(rank: RankMemory) -> int:
    return rank.memory.peak_allocated_bytes + rank.memory.communication_bytes


def _scaled(rank: RankMemory, plan: Plan, device: Device, ratio: float) -> RankMemory:
    """A rank that was not replayed, with reserved bytes by a ratio."""
    memory = rank.memory
    allocated = memory.peak_allocated_bytes
    reserved = round(allocated * ratio)
    used, low, high = used_bytes(plan, device, rank.communication, allocated, reserved)
    usable = memory.usable_bytes
    memory = memory._replace(
        peak_reserved_bytes=reserved, device_used_bytes=used, low_bytes=low, high_bytes=high,
        headroom_bytes=None if usable is None else usable - used,
    )  # fmt: skip
    return rank._replace(memory=memory, fits=None if usable is None else used <= usable)


def _row(
    case: Case,
    plan: Plan,
    of: tuple[RankMemory, bool | None],
    time: TimeEstimate,
    price: float | None,
) -> dict[str, Any]:
    worst, fits = of
    memory = worst.memory
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
