"""The typed answer of `solve`, and its JSON form. Names are a contract: add, never rename.

A trial is one value with its estimate. limited_by says why the first failing value fails: the largest
part of what is held at its peak and the instant of that peak, what it lacks, and the part that differs
most from the value that fits. Checked by: unit/test_solve.py, cli/test_solve.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from memcalc.engine.results import SCHEMA, Estimate

if TYPE_CHECKING:
    from memcalc.engine.serving.serving_results import ServingEstimate

#: Why a value fails, beside the parts of a breakdown: the host's memory, freed blocks in pieces,
#: what an engine leaves for the cache.
HOST, FRAGMENTS, POOL = "host memory", "fragmentation", "the cache's pool"


class Trial(NamedTuple):
    """One value: the command that prices it, its verdict (None: refused, for `reason`), its estimate."""

    value: int
    command: str
    fits: bool | None
    result: Estimate | ServingEstimate | None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a reader compares of two values; None where unknown."""
        found: dict[str, Any] = {"value": self.value, "command": self.command, "fits": self.fits}
        if self.result is None:
            return {**found, "reason": self.reason}
        memory = self.result.memory
        names = ("peak_allocated_bytes", "device_used_bytes", "usable_bytes", "headroom_bytes")
        found |= {name: getattr(memory, name) for name in names}
        return {**found, "verdict": self.result.verdict, "peak_at": memory.peak_at, **_pace(self)}


def _pace(trial: Trial) -> dict[str, Any]:
    result = trial.result
    if isinstance(result, Estimate):
        time = result.time
        return {"step_s": time.step_s, "tokens_per_s": time.tokens_per_s, "mfu": time.mfu}
    assert result is not None
    time_s = result.time.time_per_output_token_s
    return {"time_per_output_token_s": time_s, "tokens_per_s": result.time.tokens_per_s}


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The extreme value that fits and the next one, which does not; None where there is none.

    step: distance of neighbouring candidates, where they have one. reason: why there is no failing
    value, or no value. also: values beyond the first failing one that fit too. estimates: how many
    were made, with and without the allocator's replay.
    """

    what: str
    value: Trial | None
    failing: Trial | None
    step: int | None
    reason: str | None
    also: tuple[int, ...]
    estimates: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def limited_by(self) -> dict[str, Any] | None:
        """Why the first failing value fails; None where none does."""
        if self.failing is None or self.failing.result is None:
            return None if self.reason is None else {"part": None, "reason": self.reason}
        return limit_of(self.failing, self.value)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract's object."""
        from memcalc import __version__

        value, failing = self.value, self.failing
        return {
            "schema": SCHEMA,
            "memcalc": __version__,
            "what": self.what,
            "value": None if value is None else value.value,
            "first_failing": None if failing is None else failing.value,
            "limited_by": self.limited_by,
            "headroom_bytes": None if value is None else value.to_dict().get("headroom_bytes"),
            "step": self.step,
            "monotone": not self.also,
            "also_fits": list(self.also),
            "at_value": None if value is None else value.to_dict(),
            "at_first_failing": None if failing is None else failing.to_dict(),
            "estimates": sum(self.estimates),
            "estimates_with_allocator": self.estimates[1],
            "notes": list(self.notes),
        }


def limit_of(failing: Trial, value: Trial | None) -> dict[str, Any]:
    """What keeps a failing value from fitting, bytes exact.

    part, bytes: the largest at the peak; peak_at: the instant; lacking_bytes: what is allocated, the
    context and communicators beyond what the GPU gives, 0 where pieces of freed memory or the host are
    the reason. grows, grows_bytes: the part that grew most since the value that fits.
    """
    result = failing.result
    assert result is not None
    memory = result.memory
    parts = _parts(failing)
    part = max(parts, key=lambda name: parts[name])
    lacking, reason = _lacking(failing)
    place = getattr(memory, "stage", None)
    found = {
        "part": part, "bytes": parts[part], "peak_at": memory.peak_at, "lacking_bytes": lacking,
        "reason": reason, "stage": None if place is None else place.stage,
        "grows": None, "grows_bytes": None,
    }  # fmt: skip
    if value is not None and value.result is not None:
        before = _parts(value)
        more = {name: size - before.get(name, 0) for name, size in parts.items()}
        most = max(more, key=lambda name: more[name])
        if more[most] > 0:
            found |= {"grows": most, "grows_bytes": more[most]}
    return found


def _lacking(failing: Trial) -> tuple[int, str | None]:
    """Bytes that are missing on the GPU, and the reason where it is not their sum."""
    result = failing.result
    assert result is not None
    memory = result.memory
    pool = getattr(memory, "pool_bytes", None)
    if pool is not None and not isinstance(result, Estimate):
        return max(0, result.kv_cache_bytes - pool), POOL
    driver = memory.context_bytes + memory.communication_bytes
    lacking = memory.peak_allocated_bytes + driver - (memory.usable_bytes or 0)
    if lacking > 0:
        return lacking, None
    return 0, HOST if _is_host(failing) else FRAGMENTS


def _parts(trial: Trial) -> Mapping[str, int]:
    result = trial.result
    assert result is not None
    if isinstance(result, Estimate):
        return result.memory.breakdown._asdict()
    return result.memory.breakdown


def _is_host(trial: Trial) -> bool:
    """Whether the host lacks memory: the GPU's own need is within what it gives."""
    if not isinstance(trial.result, Estimate):
        return False
    memory = trial.result.memory
    used, usable = memory.device_used_bytes, memory.usable_bytes
    return memory.host_bytes > 0 and used is not None and usable is not None and used <= usable
