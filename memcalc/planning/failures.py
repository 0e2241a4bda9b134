"""Failures of a long run: the best interval between checkpoints, and the share of time that trains.

Symbols: M mean time between failures of the whole job (one unit's over the number of units: any failure
stops it), delta the time training stands still for a checkpoint, R the time from a failure to training
again, tau the training between two checkpoints. Failures are independent, at a constant rate; they
also strike during checkpoints and restarts. Not counted: spare nodes running out, checkpoints that are
written beside training.
Sources: Young 1974 (Comm. ACM 17(9)); Daly 2006 (Future Generation Computer Systems 22(3)).
Checked by: unit/test_failures.py (Daly's printed intervals; a simulation of failures).
"""

from __future__ import annotations

from math import exp, sqrt
from typing import NamedTuple

from memcalc.errors import ConfigError

#: Below this share the job spends its life restarting; exp() would overflow soon after.
_LEAST = 1e-3


class Availability(NamedTuple):
    """Share of wall-clock time that trains, and what it rests on; seconds, None where unknown."""

    factor: float
    basis: str  # none | stated | failures
    mtbf_s: float | None = None  # of the whole job
    checkpoint_s: float | None = None
    restart_s: float | None = None
    interval_s: float | None = None  # training between checkpoints
    units: int | None = None  # GPUs or nodes, any of which stops the job


ALWAYS = Availability(1.0, "none")


def checkpoint_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Training between two checkpoints that makes a run shortest, seconds.

    tau = sqrt(2 delta M) (1 + sqrt(delta / 2M) / 3 + (delta / 2M) / 9) - delta for delta < 2M, else M.
    The first factor alone is Young's. Source: Daly 2006, eq. 37.
    Example: delta 5 min, M 24 h -> 117 min.
    """
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    part = checkpoint_s / (2 * mtbf_s)
    young = sqrt(2 * checkpoint_s * mtbf_s)
    return young * (1 + sqrt(part) / 3 + part / 9) - checkpoint_s


def trained_share(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Expected share of wall-clock time that trains: tau / (M e^(R/M) (e^((tau + delta)/M) - 1)).

    Source: Daly 2006, eq. 20. Raises ConfigError where next to nothing would be trained.
    """
    exponent = (interval_s + checkpoint_s + restart_s) / mtbf_s
    if exponent < 50:
        whole = mtbf_s * exp(restart_s / mtbf_s) * (exp((interval_s + checkpoint_s) / mtbf_s) - 1)
        if interval_s / whole >= _LEAST:
            return interval_s / whole
    raise ConfigError(
        f"failures: one every {mtbf_s / 60:.3g} min with {checkpoint_s / 60:.3g} min a checkpoint and "
        f"{restart_s / 60:.3g} min a restart; rule: no run gets through; shorter checkpoints or fewer "
        "GPUs"
    )


def availability(
    unit_mtbf_s: float, units: int, checkpoint_s: float, restart_s: float
) -> Availability:
    """The share that trains at the best interval, for a job that any one of its units stops."""
    mtbf = unit_mtbf_s / units
    interval = checkpoint_interval_s(checkpoint_s, mtbf)
    factor = trained_share(interval, checkpoint_s, restart_s, mtbf)
    return Availability(factor, "failures", mtbf, checkpoint_s, restart_s, interval, units)
