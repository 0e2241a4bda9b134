"""Fitted constants of the time formulas: least absolute relative error, non-negative coefficients.

Every formula here is linear in its unknowns once it is known which term of a maximum holds:
    t = t0 + max(flops / P, bytes / W)          products of matrices, see `roofline`
    t = t0 kernels + bytes / W                  element-wise kernels, collectives: see `linear`
    t = flops / P (1 + s_half / s)              attention over the sequence, see `saturating`
Errors of kernel times are proportional to the times and have outliers (a shape with a poor tile), so
the sum of |predicted / measured - 1| is minimised, by reweighted least squares; with few points, of
which none can be told to be an outlier, the sum of squares is. No torch.
Checked by: harness/test_calibration_fit.py, with constants put in and recovered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any, NamedTuple

_ROUNDS = 60
#: Fewer points than this for each unknown are fitted by least squares.
_FEW = 4
#: Relative errors below this count as none, so that weights stay finite.
_EXACT = 1e-6


class Fit(NamedTuple):
    """Coefficients, and how far off they are on the n points fitted: |predicted / measured - 1|.

    unknowns: how many constants were fitted; no fewer than n of them say nothing about the error.
    """

    coefficients: tuple[float, ...]
    n: int
    mean_relative_error: float
    median_relative_error: float
    worst_relative_error: float
    unknowns: int

    def errors(self) -> dict[str, float | int]:
        """The figures that go beside every fitted constant; only n where they would be 0 by force."""
        if self.n <= self.unknowns:
            return {"n": self.n}
        return {
            "n": self.n,
            "mean_relative_error": self.mean_relative_error,
            "median_relative_error": self.median_relative_error,
            "worst_relative_error": self.worst_relative_error,
        }


class Work(NamedTuple):
    """One measured point: what was done, and how long it took."""

    flops: float
    bytes: float
    seconds: float


def linear(
    terms: Sequence[Sequence[float]],
    seconds: Sequence[float],
    known_s: float | Sequence[float] = 0.0,
) -> Fit:
    """Coefficients c >= 0 with known_s + sum_j c_j terms[i][j] close to seconds[i], in relative error.

    known_s: of all points, or of each.

    A column of zeros gets the coefficient 0. Raises ValueError without points.
    """
    import numpy as np

    if not seconds:
        raise ValueError("no points to fit")
    times = np.asarray(seconds, float)
    rows = np.asarray(terms, float) / times[:, None]
    target = 1.0 - np.asarray(known_s, float) / times
    scales = np.abs(rows).max(axis=0)
    scales[scales == 0] = 1.0
    rows /= scales
    weights = np.ones(len(rows))
    best, best_loss = np.zeros(len(scales)), float("inf")
    few = len(rows) < _FEW * len(scales)
    for _ in range(1 if few else _ROUNDS):
        found = _non_negative(rows, target, np.sqrt(weights))
        misses = np.abs(rows @ found - target)
        if misses.sum() < best_loss:
            best, best_loss = found, float(misses.sum())
        weights = 1.0 / np.maximum(misses, _EXACT)
    ratios = 1.0 + rows @ best - target
    return _judged(
        tuple(map(float, best / scales)), [float(ratio) for ratio in ratios], len(scales)
    )


def roofline(points: Sequence[Work], bytes_per_s: float) -> Fit:
    """(t0, 1/P, 1/W) of t0 + max(flops/P, bytes/W); bytes_per_s: a first guess of W, kept where
    no point is bound by memory.

    Which term holds for a point follows from the constants and the other way round: both are
    repeated until nothing changes, the best round is kept.
    """
    guess = (0.0, min(p.seconds / p.flops for p in points), 1.0 / bytes_per_s)
    best, last = _judge_roofline(points, guess), guess
    for _ in range(_ROUNDS):
        bound = [p.flops * guess[1] >= p.bytes * guess[2] for p in points]
        terms = [
            (1.0, p.flops, 0.0) if by_flops else (1.0, 0.0, p.bytes)
            for p, by_flops in zip(points, bound, strict=True)
        ]
        t0, flop_s, byte_s = linear(terms, [p.seconds for p in points]).coefficients
        guess = (t0, flop_s or guess[1], byte_s or guess[2])
        found = _judge_roofline(points, guess)
        if found.mean_relative_error < best.mean_relative_error:
            best = found
        if guess == last:
            break
        last = guess
    return best


def _judge_roofline(points: Sequence[Work], constants: tuple[float, float, float]) -> Fit:
    t0, flop_s, byte_s = constants
    ratios = [(t0 + max(p.flops * flop_s, p.bytes * byte_s)) / p.seconds for p in points]
    return _judged(constants, ratios, len(constants))


def saturating(points: Sequence[tuple[float, float, float]]) -> Fit:
    """(1/P, s_half/P) of t = flops/P (1 + s_half/s), from (flops, s, seconds) points.

    At s = s_half a kernel runs at half of what it reaches on long sequences: the diagonal tiles of a
    causal mask are computed in full, and prologue and softmax weigh more.
    """
    terms = [(flops, flops / s) for flops, s, _ in points]
    return linear(terms, [seconds for _, _, seconds in points])


def _judged(coefficients: tuple[float, ...], ratios: list[float], unknowns: int) -> Fit:
    misses = [abs(ratio - 1.0) for ratio in ratios]
    return Fit(coefficients, len(misses), fmean(misses), median(misses), max(misses), unknowns)


def _non_negative(rows: Any, target: Any, roots: Any) -> Any:
    """Least squares of rows @ c = target, each row weighted by its root squared, with c >= 0.

    The best over every choice of unknowns that are not 0: exact, and cheap for three unknowns.
    """
    import numpy as np

    count = rows.shape[1]
    aim = target * roots
    best, best_loss = np.zeros(count), float((aim**2).sum())
    for size in range(1, count + 1):
        for free in combinations(range(count), size):
            part = rows[:, free] * roots[:, None]
            found, *_ = np.linalg.lstsq(part, aim, rcond=None)
            loss = float(((part @ found - aim) ** 2).sum())
            if (found >= 0).all() and loss < best_loss:
                best = np.zeros(count)
                best[list(free)] = found
                best_loss = loss
    return best
