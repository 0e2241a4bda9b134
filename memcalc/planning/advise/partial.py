"""Recomputing some blocks only: the fewest whose activations have to go (`--recompute full:N`).

Every block that is not recomputed saves its forward's time, so between none that does not fit and full
that does the fastest is the smallest N that fits: found by bisection, confirmed by an exact estimate.
Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.planning.advise.change import Change
from memcalc.planning.advise.price import Priced, Prices

#: Exact estimates made where pieces of freed memory make quick ones too hopeful.
_TRIES: Final = 3


def fewer_blocks(prices: Prices, *others: Change) -> list[Priced]:
    """`--recompute full:N` with the smallest N that fits, beside other changes; nothing where none does."""
    whole = prices.at.case.config.num_hidden_layers
    stages = int(prices.at.setup["pp"] or 1)
    most = -(-whole // stages)
    setup = prices.at.setup
    if (setup["recompute"], setup["recompute_layers"]) == ("full", 1):
        return []
    if prices.at.fits and setup["recompute"] == "none":
        return []
    highest = prices.quick(*others, _blocks(most))
    if most < 2 or highest is None or not highest.fits:
        return []
    low, high = 0, most  # low does not fit, or is none
    while high - low > 1:
        middle = (low + high) // 2
        priced = prices.quick(*others, _blocks(middle))
        low, high = (low, middle) if priced is not None and priced.fits else (middle, high)
    for _ in range(_TRIES):
        if high >= most:
            return []
        exact = prices.exact(*others, _blocks(high))
        if exact is not None and exact.fits:
            return [exact]
        high += max(1, most // 16)
    return []


def _blocks(count: int) -> Change:
    options = {"recompute": f"full:{count}", "recompute-modules": None}
    return Change("recompute", "same", options, f"{count} blocks are recomputed")
