"""Rows of advice: an entry as a record of its command, its memory, its speed, and why.

Bytes and seconds, None where unknown. Names are a contract: add, never rename.
Checked by: unit/test_advise.py, cli/test_advise.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.results import Estimate
from memcalc.planning.advise.change import Situation
from memcalc.planning.advise.money import cost_of
from memcalc.planning.advise.price import Priced
from memcalc.planning.advise.reasons import TIME_PARTS, held_by, waits_for, why


def setup_row(at: Situation) -> dict[str, Any]:
    """The setup as stated: command, memory, speed, what holds most of its memory."""
    result = at.result
    return {
        "model": at.case.model, "command": at.case.command, "gpus": at.gpus,
        "global_batch": at.batch, "memory": _memory(result), **_speed(result),
        "holds": held_by(result), "waits_for": waits_for(result.time),
    }  # fmt: skip


def row_of(at: Situation, entry: Priced) -> dict[str, Any]:
    """One entry of the advice."""
    result, base = entry.result, at.result
    speed, before = result.time.tokens_per_s, base.time.tokens_per_s
    memory = _memory(result)
    memory["change_bytes"] = _need(result) - _need(base)
    return {
        "change": entry.words,
        "kind": entry.kind,
        "words": "; ".join(change.words for change in entry.changes if change.words),
        "command": entry.command,
        "fits": result.fits,
        "verdict": result.verdict,
        "memory": memory,
        **_speed(result),
        "speed_change": None if not speed or not before else speed / before - 1,
        "gpus": entry.gpus,
        "global_batch": result.setup["global_batch"],
        "usd_per_million_tokens": cost_of(at, entry),
        "why": why(base, result),
    }


def considered_row(one: Priced) -> dict[str, Any]:
    """What was priced, advised or not; fits of a quick estimate leaves the allocator out."""
    return {
        "change": one.words, "kind": one.kind, "fits": one.fits, "need_bytes": one.need,
        "exact": one.result.memory.peak_reserved_bytes is not None, **_speed(one.result),
    }  # fmt: skip


def _need(result: Estimate) -> int:
    memory = result.memory
    return memory.peak_allocated_bytes + memory.context_bytes + memory.communication_bytes


def _memory(result: Estimate) -> dict[str, Any]:
    memory = result.memory
    return {
        "need_bytes": _need(result),
        "device_used_bytes": memory.device_used_bytes,
        "usable_bytes": memory.usable_bytes,
        "headroom_bytes": memory.headroom_bytes,
        "host_bytes": memory.host_bytes,
        "peak_at": memory.peak_at,
        "breakdown": memory.breakdown._asdict(),
    }


def _speed(result: Estimate) -> dict[str, Any]:
    time = result.time
    names = ("step_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu")
    parts = {name: getattr(time, name) for name in TIME_PARTS}
    return {**{name: getattr(time, name) for name in names}, "time": parts}
