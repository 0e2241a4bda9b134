"""Failures of a long run: Daly's own printed intervals, and a simulation of failures as the judge."""

from __future__ import annotations

import random

import pytest

from memcalc.errors import ConfigError
from memcalc.planning.failures import availability, checkpoint_interval_s, trained_share

MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(("mtbf_min", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_intervals_are_those_daly_prints_for_checkpoints_of_five_minutes(mtbf_min, minutes):
    """Daly 2006, captions of figures 3 to 5: restarts of 10 min, 117, 57 and 9.1 min."""
    found = checkpoint_interval_s(5 * MINUTE, mtbf_min * MINUTE) / MINUTE
    assert found == pytest.approx(minutes, abs=0.5 if minutes > 10 else 0.05)


def test_checkpoints_dearer_than_two_failures_leave_one_interval_a_failure():
    assert checkpoint_interval_s(30 * MINUTE, 15 * MINUTE) == 15 * MINUTE
    below = checkpoint_interval_s(29.999 * MINUTE, 15 * MINUTE)
    shares = [trained_share(tau, 30 * MINUTE, 0.0, 15 * MINUTE) for tau in (below, 15 * MINUTE)]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)


def simulated_share(interval: float, checkpoint: float, restart: float, mtbf: float) -> float:
    """Trained over elapsed time of 20,000 segments; failures also strike checkpoints and restarts."""
    draw = random.Random(7)
    clock, segments = 0.0, 20_000
    for _ in range(segments):
        pause = 0.0
        while (until := draw.expovariate(1 / mtbf)) < pause + interval + checkpoint:
            clock += until
            pause = restart
        clock += pause + interval + checkpoint
    return segments * interval / clock


@pytest.mark.parametrize(
    ("checkpoint_min", "restart_min", "mtbf_h"), [(5, 10, 24), (5, 10, 6), (1, 30, 3), (2, 0.5, 1)]
)
def test_the_share_is_what_simulated_failures_leave(checkpoint_min, restart_min, mtbf_h):
    checkpoint, restart, mtbf = checkpoint_min * MINUTE, restart_min * MINUTE, mtbf_h * HOUR
    interval = checkpoint_interval_s(checkpoint, mtbf)
    expected = trained_share(interval, checkpoint, restart, mtbf)
    assert expected == pytest.approx(simulated_share(interval, checkpoint, restart, mtbf), rel=0.01)


@pytest.mark.parametrize(("checkpoint_min", "mtbf_h"), [(5, 24), (5, 6), (1, 3), (10, 2)])
def test_no_other_interval_trains_a_larger_share(checkpoint_min, mtbf_h):
    checkpoint, mtbf = checkpoint_min * MINUTE, mtbf_h * HOUR
    best = checkpoint_interval_s(checkpoint, mtbf)
    share = trained_share(best, checkpoint, 0.0, mtbf)
    tried = [trained_share(best * k / 20, checkpoint, 0.0, mtbf) for k in range(4, 80)]
    assert share >= max(tried) * (1 - 1e-4)
    assert share > 1.01 * min(tried)


def test_a_jobs_failures_come_as_often_as_it_has_gpus():
    """Llama 3 (arXiv:2407.21783, sec. 3.3.4): 419 in 54 days on 16,384 GPUs, one in three hours."""
    one = 16_384 * 54 * 24 * HOUR / 419
    found = availability(one, 16_384, 30.0, 10 * MINUTE)
    assert found.mtbf_s == pytest.approx(3.09 * HOUR, rel=0.01)
    assert found.basis == "failures" and 0.85 < found.factor < 0.95
    fewer = availability(one, 8, 30.0, 10 * MINUTE)
    assert fewer.factor > 0.99 and fewer.interval_s > found.interval_s


@pytest.mark.parametrize("mtbf_s", [1.0, 20.0, 60.0])
def test_a_job_that_never_gets_through_is_refused_in_one_line(mtbf_s):
    with pytest.raises(ConfigError, match="no run gets through"):
        availability(mtbf_s, 1, 300.0, 600.0)
