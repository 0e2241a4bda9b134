"""The largest batch or context that can be served: the verdict of `infer`, bisected.

The quick verdict and infer's are one and the same rule (engine/serving/verdict.py); infer itself runs at
the answer and its neighbour, for what a reader wants to know of both.
Checked by: unit/test_solve.py, cli/test_solve.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.serving.infer import infer
from memcalc.engine.serving.serving_plan import serving_plan
from memcalc.engine.serving.verdict import MOST_POSITIONS, MOST_SEQUENCES, need_of
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import ServingSetup, resolve_serving
from memcalc.planning.cases import Tell
from memcalc.planning.solve.answer import Trial
from memcalc.planning.solve.training import Question


class Served(NamedTuple):
    """What `infer` takes, and the command of one value."""

    config: ModelConfig
    setup: ServingSetup
    parallel: ParallelPlan
    device: Device
    command: Callable[[int], str]


class ServingTrials:
    """Verdicts and estimates by value, each made once, as planning/solve/training.py: Trials."""

    def __init__(self, what: str, served: Served, tell: Tell | None = None) -> None:
        self._what, self._served, self._tell = what, served, tell
        self._quick: dict[int, bool | None] = {}
        self._exact: dict[int, Trial] = {}
        self._weights: int | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Verdicts alone, and whole estimates."""
        return len(self._quick), len(self._exact)

    def quick(self, value: int) -> bool | None:
        """Whether it fits; None where the setup is refused."""
        if value not in self._quick:
            self._quick[value] = self._verdict(value)
            if self._tell is not None:
                done = len(self._quick)
                self._tell(f"verdicts, now at {value:,}", done, max(40, done))
        return self._quick[value]

    def exact(self, value: int) -> bool | None:
        """The verdict `infer` gives."""
        return self.at(value).fits

    def at(self, value: int) -> Trial:
        """The trial of a value."""
        if value not in self._exact:
            self._exact[value] = self._trial(value)
        return self._exact[value]

    def _setup(self, value: int) -> ServingSetup:
        stated = self._served.setup
        if self._what == "batch":
            return replace(stated, batch=value)
        return replace(stated, context=value)

    def _verdict(self, value: int) -> bool | None:
        config, _, parallel, device, _ = self._served
        try:
            plan = serving_plan(resolve_serving(self._setup(value), config), parallel)
            if self._weights is None:
                self._weights = plan.weights().resident_bytes
            return need_of(plan, device, self._weights).fits
        except ConfigError:
            return None

    def _trial(self, value: int) -> Trial:
        config, _, parallel, device, command = self._served
        try:
            result = infer(config, self._setup(value), parallel=parallel, gpu=device)
        except ConfigError as error:
            return Trial(value, command(value), None, None, str(error))
        return Trial(value, command(value), result.fits, result)


def batches() -> Question:
    """Numbers of sequences to try."""
    return Question("batch", range(1, MOST_SEQUENCES + 1), step=1)


def contexts(setup: ServingSetup, step: int) -> Question:
    """Positions to try: beyond the prompt, multiples of the step."""
    least = max(2, (setup.prompt or 1) + 1, setup.shared_prefix + 1)
    first = -(-least // step) * step
    return Question("context", range(first, MOST_POSITIONS + 1, step), step=step)
