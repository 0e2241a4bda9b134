"""Cases: the setups that one command prices, and the exact estimate of each.

A case is everything one `memcalc estimate` takes, resolved, with what tells it from the others of the
same command. Options that do not go together make a refusal, which keeps its place among the rest.
Checked by: unit/test_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.estimate import estimate
from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

#: Told as work goes on: (stage, cases done, cases in all), as output/progress.py takes it.
Tell = Callable[[str, int, int], None]


class Case(NamedTuple):
    """One setup to price.

    labels: option name -> its text, only of the options in which the cases of a command differ; empty
    for a single case. command: the `memcalc estimate ...` that prices this case alone. model: as stated.
    """

    labels: Mapping[str, str]
    command: str
    model: str
    config: ModelConfig
    setup: TrainingSetup
    parallel: ParallelPlan
    kernels: Mapping[str, Any]
    device: Device


class Refused(NamedTuple):
    """A case whose options do not go together; reason: the ConfigError's text."""

    labels: Mapping[str, str]
    command: str
    reason: str


class Point(NamedTuple):
    """A case with its estimate, or with why it has none; exactly one of the two is None."""

    case: Case | Refused
    result: Estimate | None
    reason: str | None


def point_of(case: Case | Refused, allocator: bool = True) -> Point:
    """The exact estimate of one case; what the estimate refuses becomes the reason."""
    if isinstance(case, Refused):
        return Point(case, None, case.reason)
    try:
        result = estimate(
            case.config, case.setup, parallel=case.parallel, gpu=case.device, kernels=case.kernels,
            allocator=allocator,
        )  # fmt: skip
    except ConfigError as error:
        return Point(case, None, str(error))
    return Point(case, result, None)


def points(
    cases: Sequence[Case | Refused], tell: Tell | None = None, allocator: bool = True
) -> list[Point]:
    """The exact estimate of every case, in their order; tell hears of each.

    allocator: simulate the caching allocator; without it reserved and used bytes are None.
    """
    found = []
    for done, case in enumerate(cases, 1):
        found.append(point_of(case, allocator))
        if tell is not None:
            tell("estimates", done, len(cases))
    return found
