"""Constants that bring a formula nearest to measured seconds: least mean size of the relative error.

Constants are searched on a scale where any value is allowed (logarithm, or logit for shares), by
Levenberg-Marquardt steps on log(predicted / measured), each row weighted by the inverse of its present
error (iteratively reweighted least squares, so that single wild rows do not pull). A weak prior at the
start keeps constants that the rows say nothing of where they began. Checked by:
unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

#: Below this error, rows count by the square of it.
_SMALL_ERROR: Final = 0.03
#: Steps, and the gain below which they end.
_STEPS, _LEAST_GAIN = 120, 1e-6
#: Prior's width on the search scale: a factor of e^2 costs as much as one row that is wholly wrong.
_PRIOR_WIDTH: Final = 2.0
_EDGE: Final = 1e-4


class Constant(NamedTuple):
    """A constant of a calibration: where the search begins, and whether it lies between 0 and 1."""

    start: float
    is_share: bool = False

    def inward(self, value: float) -> float:
        """The value on the search scale."""
        if self.is_share:
            inside = min(max(value, _EDGE), 1 - _EDGE)
            return math.log(inside / (1 - inside))
        return math.log(max(value, 1e-30))

    def outward(self, place: float) -> float:
        """The constant at a place of the search scale."""
        if self.is_share:
            return 1 / (1 + math.exp(-max(-30.0, min(30.0, place))))
        return math.exp(max(-60.0, min(60.0, place)))


Residuals = Callable[[Mapping[str, float]], np.ndarray]


def solve(constants: Mapping[str, Constant], residuals: Residuals) -> dict[str, float]:
    """The constants, from their starts; residuals: log(predicted / measured) of every row."""
    start = np.array([c.inward(c.start) for c in constants.values()])

    def named(place: np.ndarray) -> dict[str, float]:
        pairs = zip(constants.items(), place, strict=True)
        return {name: constant.outward(float(at)) for (name, constant), at in pairs}

    def off(place: np.ndarray) -> np.ndarray:
        return residuals(named(place))

    place, damping = start.copy(), 1e-2
    now = off(place)
    cost = _cost(now, place - start)
    for _ in range(_STEPS):
        slope = _jacobian(off, place, now)
        weight = 1 / np.sqrt(now**2 + _SMALL_ERROR**2)
        curve = slope.T @ (slope * weight[:, None]) + np.eye(len(place)) / _PRIOR_WIDTH**2
        down = slope.T @ (weight * now) + (place - start) / _PRIOR_WIDTH**2
        gain = 0.0
        for _ in range(8):
            step = np.linalg.solve(curve + damping * np.diag(np.diag(curve)), -down)
            step = np.clip(step, -2.0, 2.0)
            there = off(place + step)
            cost_there = _cost(there, place + step - start)
            if cost_there < cost:
                gain, cost, now, place = cost - cost_there, cost_there, there, place + step
                damping = max(damping / 5, 1e-9)
                break
            damping *= 4
        if gain < _LEAST_GAIN * cost:
            break
    return named(place)


def _cost(off: np.ndarray, moved: np.ndarray) -> float:
    prior = float(np.sum(moved**2)) / (2 * _PRIOR_WIDTH**2)
    total = float(np.sum(np.sqrt(off**2 + _SMALL_ERROR**2))) + prior
    return total if math.isfinite(total) else math.inf


def _jacobian(
    off: Callable[[np.ndarray], np.ndarray], place: np.ndarray, now: np.ndarray
) -> np.ndarray:
    slope = np.empty((len(now), len(place)))
    for column in range(len(place)):
        there = place.copy()
        there[column] += 1e-4
        slope[:, column] = (off(there) - now) / 1e-4
    return slope
