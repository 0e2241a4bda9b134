"""Why a change helps, and what it costs: the parts of memory and time that it moves, in words.

All from two estimates: categories at the peak, the host's bytes, and the parts a step's time is the sum
of, each for a token so that other batches compare. Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.results import Estimate
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.units import GIB, MIB

#: Parts of a step's time -> their names; they add up to it.
TIME_PARTS: Final = {
    "forward_s": "forward", "backward_s": "backward", "recompute_s": "recomputation",
    "launch_s": "launching", "exposed_communication_s": "communication", "bubble_s": "pipeline bubble",
    "optimizer_s": "optimizer", "offload_s": "offload",
}  # fmt: skip
_LEAST_BYTES: Final = 64 * MIB
#: Shares of a step below which a part is not named.
_MOVED, _LARGE = 0.03, 0.1
_WAITING: Final = ("exposed_communication_s", "bubble_s", "offload_s")


def why(base: Estimate, new: Estimate) -> str:
    """`activations -20.1 GiB; recomputation +24% of a step` of a change, largest first."""
    said = [*_memory(base, new), *_time(base.time, new.time)]
    return "; ".join(said) or "nothing moves"


def held_by(result: Estimate) -> str:
    """`parameters 29.9 GiB, optimizer 59.8 GiB` : what is most at the peak."""
    parts = result.memory.breakdown._asdict()
    most = sorted(parts, key=lambda name: -parts[name])[:3]
    return ", ".join(f"{name} {parts[name] / GIB:,.1f} GiB" for name in most if parts[name])


def waits_for(time: TimeEstimate) -> str:
    """The part other than computing that takes most of a step, where it is large; else nothing."""
    if not time.step_s:
        return ""
    parts = {name: (getattr(time, name) or 0.0) / time.step_s for name in _WAITING}
    name = max(parts, key=lambda part: parts[part])
    return f"{TIME_PARTS[name]} {parts[name]:.0%} of its step" if parts[name] >= _LARGE else ""


def _memory(base: Estimate, new: Estimate) -> list[str]:
    before, after = base.memory, new.memory
    old, now = before.breakdown._asdict(), after.breakdown._asdict()
    moved = {name: now[name] - old[name] for name in now}
    falls = sorted((size, name) for name, size in moved.items() if size <= -_LEAST_BYTES)[:2]
    said = [f"{name} {_signed(size)}" for size, name in falls]
    if not falls and after.peak_allocated_bytes - before.peak_allocated_bytes >= _LEAST_BYTES:
        grown = max(moved, key=lambda name: moved[name])
        said.append(f"{grown} {_signed(moved[grown])}")
    if before.peak_at != after.peak_at:
        said.append(f"the peak moves to {after.peak_at}")
    host = after.host_bytes - before.host_bytes
    if abs(host) >= _LEAST_BYTES:
        said.append(f"host memory {_signed(host)}")
    return said


def _signed(size: int) -> str:
    return f"{size / GIB:+,.1f} GiB"


def _time(base: TimeEstimate, new: TimeEstimate) -> list[str]:
    """Parts whose share of the base's time for a token moved, and what the new step waits for."""
    if not base.step_s or not new.step_s or not base.tokens_per_s or not new.tokens_per_s:
        return []
    scale = (base.step_s * base.tokens_per_s) / (new.step_s * new.tokens_per_s)
    moved = {
        name: ((getattr(new, name) or 0.0) * scale - (getattr(base, name) or 0.0)) / base.step_s
        for name in TIME_PARTS
    }
    ordered = sorted(moved, key=lambda name: -abs(moved[name]))[:2]
    said = [
        f"{TIME_PARTS[name]} {moved[name]:+.0%}" for name in ordered if abs(moved[name]) >= _MOVED
    ]
    waits = waits_for(new)
    return (
        [", ".join(said) + " of the step", *([waits] if waits else [])]
        if said
        else ([waits] if waits else [])
    )
