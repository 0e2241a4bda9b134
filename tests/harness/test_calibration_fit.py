"""Constants put into synthetic points are recovered, with noise and outliers too."""

from __future__ import annotations

import random

import pytest

from memcalc.harness.calibration.calibration_fit import Work, linear, roofline, saturating

_T0, _P, _W = 4e-6, 780e12, 4.3e12
_SHAPES = [
    (m, n, k)
    for m in (64, 512, 8192, 16384)
    for n, k in ((64, 64), (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336))
]


def _gemms(noise: float = 0.0, outliers: int = 0) -> list[Work]:
    draw = random.Random(1)
    points = []
    for number, (m, n, k) in enumerate(_SHAPES):
        flops, moved = 2.0 * m * n * k, 2.0 * (m * k + k * n + m * n)
        factor = 1 + draw.uniform(-noise, noise) + (1.0 if number % 7 == 3 and outliers else 0.0)
        points.append(Work(flops, moved, (_T0 + max(flops / _P, moved / _W)) * factor))
    return points


@pytest.mark.parametrize("guess", [1e11, 2e12, 4.3e12, 9e12])
def test_the_roofline_constants_come_back(guess: float) -> None:
    t0, flop_s, byte_s = roofline(_gemms(), guess).coefficients
    assert t0 == pytest.approx(_T0, rel=1e-6)
    assert 1 / flop_s == pytest.approx(_P, rel=1e-6)
    assert 1 / byte_s == pytest.approx(_W, rel=1e-6)


def test_noise_and_outliers_move_them_little_and_show_in_the_error() -> None:
    fit = roofline(_gemms(noise=0.05, outliers=3), 3e12)
    t0, flop_s, byte_s = fit.coefficients
    assert t0 == pytest.approx(_T0, rel=0.1)
    assert 1 / flop_s == pytest.approx(_P, rel=0.05)
    assert 1 / byte_s == pytest.approx(_W, rel=0.1)
    assert 0.01 < fit.median_relative_error < 0.05 and fit.worst_relative_error > 0.4
    assert fit.n == len(_SHAPES)


def test_points_bound_by_arithmetic_alone_leave_the_guess_of_the_bandwidth() -> None:
    points = [Work(f, 1.0, 1e-6 + f / _P) for f in (1e10, 1e11, 1e12)]
    t0, flop_s, byte_s = roofline(points, 2e12).coefficients
    assert (t0, 1 / flop_s) == (pytest.approx(1e-6), pytest.approx(_P))
    assert 1 / byte_s == pytest.approx(2e12)


def test_no_constant_is_negative() -> None:
    fit = linear([(1.0, 1.0), (1.0, 2.0), (1.0, 4.0)], [0.5, 2.0, 5.0])
    assert min(fit.coefficients) >= 0
    assert fit.coefficients[0] == 0 and fit.coefficients[1] > 0


def test_one_point_and_a_column_of_zeros() -> None:
    fit = linear([(2.0, 0.0)], [3.0])
    assert fit.coefficients == (pytest.approx(1.5), 0.0)
    assert fit.median_relative_error == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="no points"):
        linear([], [])


def test_attention_over_the_sequence() -> None:
    limit, half = 700e12, 900.0
    points = []
    for s in (1024, 2048, 8192, 16384):
        flops = 2.0 * 32 * 16384 * s * 128
        points.append((flops, float(s), flops / limit * (1 + half / s)))
    inverse, slope = saturating(points).coefficients
    assert 1 / inverse == pytest.approx(limit) and slope / inverse == pytest.approx(half)
