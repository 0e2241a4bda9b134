"""How sure the winner is: how often it stays the fastest when estimates are as wrong as they were elsewhere.

An estimate's band holds nine of ten of the published runs of its class; a lognormal error with these two
quantiles is drawn for each setup. Independent draws: every setup's error is its own. Shared draws: setups
share the errors of what they do alike, one for each part of a step's seconds (forward, backward, exchanges,
bubble, ...), so that setups that spend their time alike move together. Errors of one model on one cluster
are more like the second; the first is the pessimistic bound. Draws are seeded: the same every time.
Checked by: unit/test_search_stability.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Standard normal quantile of 19 in 20: a band of nine of ten reaches from its negative to it.
_QUANTILE: Final = 1.6448536269514722
DRAWS: Final = 4000


def spread_of(low: float, high: float) -> float:
    """Sigma of the lognormal error whose band, as factors on seconds, is this."""
    return math.log(high / low) / (2 * _QUANTILE)


def stability(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How often the first row stays the fastest of all; None for one row, or without a band.

    rows: with step_s, low_s, high_s and parts; shares of draws, 0 to 1.
    """
    import numpy as np

    if len(rows) < 2 or any(not row["low_s"] or not row["high_s"] for row in rows):
        return None
    sigma = spread_of(rows[0]["low_s"], rows[0]["high_s"])
    random = np.random.default_rng(20260101)
    seconds = np.array([row["step_s"] for row in rows])
    own = np.exp(sigma * random.standard_normal((DRAWS, len(rows))))
    parts = np.array([[value or 0.0 for value in row["parts"].values()] for row in rows])
    shared = np.exp(sigma * random.standard_normal((DRAWS, parts.shape[1])))
    return {
        "of": len(rows),
        "draws": DRAWS,
        "sigma": sigma,
        "independent_share": _first(seconds[None, :] * own),
        "shared_share": _first(shared @ parts.T),
        "within_band": int(np.sum(seconds <= rows[0]["high_s"])),
    }


def _first(seconds: Any) -> float:
    """The share of draws in which the first column is the least, equals included."""
    return float((seconds[:, 0] <= seconds.min(axis=1) * (1 + 1e-12)).mean())
