"""Several changes together, where one alone is not enough or where gains add up.

Peaks do not add: what two changes save together is estimated, never summed. Of the changes that lower
the need, the best few of each axis are crossed in pairs; where no pair fits, the pairs that need least
are crossed with a third. What is not needed is left out again. Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from memcalc.planning.advise.change import Change
from memcalc.planning.advise.price import Priced, Prices

#: Changes of one axis that are crossed with those of others; pairs that a third is added to.
_OF_AXIS: Final = 2
_CROSSED: Final = 12
_BEAM: Final = 6
#: First changes whose best combination is kept.
_CONFIRMED: Final = 3
#: A gain in speed smaller than this is none.
_GAIN: Final = 1.01


def by_speed(priced: Iterable[Priced]) -> list[Priced]:
    """Fastest first; within a per cent the fewest changes, then the least memory."""
    return sorted(
        priced,
        key=lambda one: (-round(one.tokens_per_s, -_digits(one)), len(one.changes), one.need),
    )


def _digits(one: Priced) -> int:
    """Decimal places that leave three figures of a speed."""
    return max(0, len(str(int(one.tokens_per_s))) - 3)


def to_fit(prices: Prices, first: Sequence[Priced], helpers: Sequence[Priced]) -> list[Priced]:
    """Fitting combinations of one of `first` with one or two of `helpers`, confirmed; fastest first."""
    heads = _least_of_each_axis(first)[:_CROSSED]
    tails = _least_of_each_axis(helpers)[:_CROSSED]
    pairs = _crossed(prices, heads, tails)
    fitting = [pair for pair in pairs if pair.fits]
    if not fitting:
        beam = sorted(pairs, key=lambda pair: pair.need)[:_BEAM]
        fitting = [three for three in _crossed(prices, beam, tails) if three.fits]
    heads_of: dict[str, list[Priced]] = {}
    for one in by_speed(fitting):
        heads_of.setdefault(repr(sorted(one.changes[0].options.items())), []).append(one)
    found: list[Priced] = []
    for members in list(heads_of.values())[:_CONFIRMED]:
        found += confirmed(prices, members, 1)
    return found


def confirmed(prices: Prices, fitting: Iterable[Priced], most: int) -> list[Priced]:
    """Those whose exact estimate fits too, at most so many, fastest first; one for the same changes."""
    found: list[Priced] = []
    tried = 0
    for quick in by_speed(fitting):
        if len(found) == most or tried == 5 * most:
            break
        tried += 1
        exact = prices.exact(*quick.changes)
        if exact is None or not exact.fits:
            continue
        lean = without_needless(prices, exact)
        if all(lean.words != other.words for other in found):
            found.append(lean)
    return found


def without_needless(prices: Prices, priced: Priced) -> Priced:
    """The same without changes that it fits, and is no slower, without."""
    for change in priced.changes:
        fewer = tuple(kept for kept in priced.changes if kept is not change)
        if not fewer:
            break
        quick = prices.quick(*fewer)
        if quick is None or not quick.fits or quick.tokens_per_s < priced.tokens_per_s:
            continue
        exact = prices.exact(*fewer)
        if exact is not None and exact.fits:
            return without_needless(prices, exact)
    return priced


def _least_of_each_axis(priced: Iterable[Priced]) -> list[Priced]:
    """Of each axis the two that need least and the fastest one that helps, least need first."""
    axes: dict[str, list[Priced]] = {}
    for one in priced:
        axes.setdefault(one.changes[0].axis, []).append(one)
    found: list[Priced] = []
    for members in axes.values():
        ordered = sorted(
            members, key=lambda one: (one.need, sum(one.result.memory.phases.values()))
        )
        kept = ordered[:_OF_AXIS]
        fastest = max(members, key=lambda one: one.tokens_per_s)
        found += kept if fastest in kept else [*kept, fastest]
    return sorted(found, key=lambda one: one.need)


def _crossed(prices: Prices, heads: Iterable[Priced], tails: Sequence[Priced]) -> list[Priced]:
    found: dict[str, Priced] = {}
    for head in heads:
        for tail in tails:
            changes = _joined(head.changes, tail.changes)
            priced = prices.quick(*changes) if changes else None
            if priced is not None:
                found.setdefault(priced.words, priced)
    return list(found.values())


def _joined(head: tuple[Change, ...], tail: tuple[Change, ...]) -> tuple[Change, ...]:
    """Both, where their axes differ; nothing where they do not."""
    axes = {change.axis for change in head}
    if any(change.axis in axes for change in tail):
        return ()
    return (*head, *tail)


def to_speed(prices: Prices, gains: Sequence[Priced], most: int = 3) -> Priced | None:
    """Gains taken together, the largest first, as long as each adds one and the whole still fits."""
    best: Priced | None = None
    for one in by_speed(gains):
        changes = one.changes if best is None else _joined(best.changes, one.changes)
        if not changes or len(changes) > most:
            continue
        quick = prices.quick(*changes)
        if quick is None or not quick.fits:
            continue
        if best is not None and quick.tokens_per_s < best.tokens_per_s * _GAIN:
            continue
        exact = prices.exact(*changes)
        if exact is not None and exact.fits:
            best = exact
    return best if best is not None and len(best.changes) > 1 else None
