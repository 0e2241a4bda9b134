"""The band of driver-used bytes: what is open in the estimate, and how far published runs lay from theirs.

Open figures (context, workspaces, scratch, communicators) give a least and a most. Published runs of six
sources lay further out than these: profiles/bands/memory.toml holds the factors on predicted driver-used
bytes between which nine of ten of them lie, and the band is the wider of both at either end.
benchmarks/time_bands.py makes the file. Checked by: unit/test_report_accuracy_bands.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from memcalc.inputs.profiles import profiles_dir, read_toml


class MemoryBand(NamedTuple):
    """Thousandths of predicted driver-used bytes, and of what runs they are."""

    low: int
    high: int
    reason: str


@lru_cache(maxsize=1)
def memory_band() -> MemoryBand:
    """The factors of the file, in thousandths, so that arrays of bytes stay whole numbers."""
    raw = read_toml(profiles_dir() / "bands" / "memory.toml")
    return MemoryBand(round(1000 * raw["low"]), round(1000 * raw["high"]), raw["reason"])


def widened(used: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """The band of driver-used bytes; low, high: what is open. Sizes may be arrays."""
    band = memory_band()
    return _least(low, used * band.low // 1000), -_least(-high, -(used * band.high // 1000))


def _least(one: Any, other: Any) -> Any:
    """The lesser of two whole numbers, element by element of arrays."""
    return (one + other - abs(one - other)) // 2
