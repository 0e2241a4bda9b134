"""The band of a time: the spread of measured over predicted among verified runs of the same class.

Classes and their figures are in profiles/bands/throughput.toml, which benchmarks/time_bands.py makes from
the published runs. A class is a stack on a generation of GPUs; the first that fits is taken.
Checked by: unit/test_time_bands.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from memcalc.engine.plan import Plan
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.profiles import profiles_dir, read_toml
from memcalc.inputs.stacks import base_of


class Band(NamedTuple):
    """Factors on a step's seconds between which nine of ten published runs lie, and what they are."""

    low: float
    high: float
    reason: str


def band_of(plan: Plan, gpu: Gpu) -> Band:
    """The band of an estimate: of its stack and GPU generation, or of all runs where none ran."""
    code = base_of(plan.resolved.setup.code)
    for row in _rows():
        stacks, generations = row.get("stacks"), row.get("architectures")
        if stacks is not None and code not in stacks:
            continue
        if generations is not None and gpu.architecture not in generations:
            continue
        return Band(row["low"], row["high"], row["reason"])
    raise AssertionError("profiles/bands/throughput.toml ends with a row for everything")


@lru_cache(maxsize=1)
def _rows() -> list[dict[str, Any]]:
    """The classes, most specific first."""
    raw = read_toml(profiles_dir() / "bands" / "throughput.toml")
    rows: list[dict[str, Any]] = raw["band"]
    return rows
