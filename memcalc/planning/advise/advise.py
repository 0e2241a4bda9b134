"""advise: from a setup to the ranked changes that make it fit, or faster.

Every change open to the setup is priced quickly; those that help are confirmed by exact estimates.
Ranked by what they cost the user (change.py: KINDS), then by speed: what costs nothing comes before
what costs time. Where no change of a kind is enough alone, two or three are combined.
Checked by: unit/test_advise.py, unit/test_worked_advice.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from memcalc.engine.results import SCHEMA
from memcalc.planning.advise.change import KINDS, Change, Situation
from memcalc.planning.advise.combine import by_speed, confirmed, to_fit, to_speed
from memcalc.planning.advise.layouts import LAYOUT, layouts, schedules, way_of
from memcalc.planning.advise.money import cheapest, more_gpus, other_gpus
from memcalc.planning.advise.partial import fewer_blocks
from memcalc.planning.advise.price import Make, Priced, Prices
from memcalc.planning.advise.rows import considered_row, row_of, setup_row
from memcalc.planning.advise.single import singles
from memcalc.planning.cases import Tell

#: Entries of one kind, and of one axis of changes.
_OF_KIND: Final = 6
_OF_AXIS: Final = 2
_GAIN: Final = 1.01
#: An entry below this share of the pace the setup would have costs time.
_PACE: Final = 0.95
#: Other GPUs tried with other changes, the cheapest a token first.
_OTHER_GPUS: Final = 4
#: A phase's peak below this share of what it was is lower.
_LOWER: Final = 0.99


class Advice(NamedTuple):
    """Ranked entries, everything else that was priced, and what was found of the setup itself."""

    at: Situation
    entries: list[Priced]
    considered: list[Priced]
    estimates: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract's object."""
        from memcalc import __version__

        at = self.at
        best = self.entries[0] if self.entries else None
        return {
            "schema": SCHEMA,
            "memcalc": __version__,
            "setup": setup_row(at),
            "fits": at.result.fits,
            "verdict": at.result.verdict,
            "recommended": None if best is None and not at.fits else
            "as stated" if best is None else best.words,
            "advice": [row_of(at, entry) for entry in self.entries],
            "considered": [considered_row(one) for one in self.considered],
            "estimates": self.estimates,
            "notes": list(_notes(self)),
        }  # fmt: skip


def advise(at: Situation, make: Make, tell: Tell | None = None, top: int | None = None) -> Advice:
    """Changes to a setup, ranked. top: at most so many entries."""
    prices = Prices(at, make, tell)
    found = _faster(prices) if at.fits else _fitting(prices)
    entries = _ranked(found)
    return Advice(at, entries[:top], by_speed(prices.considered()), prices.count)


def _fitting(prices: Prices) -> list[Priced]:
    """What makes a setup fit that does not."""
    at = prices.at
    alone = prices.quick_all([*singles(at), *schedules(at)])
    ways = layouts(prices)
    same = [*_of(alone, "same"), *ways]
    found = _best(prices, same)
    found += fewer_blocks(prices)
    if not _keeps_pace(at, found):
        helpers = _helping(prices, same)
        found += to_fit(prices, helpers, helpers)
    best = max((one.tokens_per_s for one in found), default=0.0)
    money = _money(prices, same if not _keeps_pace(at, found) else [], best)
    for kind in ("numerics", "method"):
        own = _of(alone, kind)
        fitting = _best(prices, own)
        if not fitting and not _keeps_pace(at, found):
            fitting = to_fit(prices, own, _helping(prices, [*same, *_of(alone, "numerics")]))
        found += fitting
    return found + money


def _keeps_pace(at: Situation, found: Iterable[Priced]) -> bool:
    """Whether something that fits is about as fast as the setup would be if it did."""
    pace = at.result.time.tokens_per_s or 0.0
    return any(one.tokens_per_s >= _PACE * pace for one in found)


def _money(prices: Prices, helpers: list[Priced], pace: float) -> list[Priced]:
    """The fewest GPUs, and of other GPUs the cheapest a token, that make it fit.

    With one or two of the helpers where neither is enough alone; faster than pace, tokens/s, which is
    to be had for nothing.
    """
    at = prices.at
    found = []
    for ways in (more_gpus, other_gpus):
        changes = list(ways(at))
        if ways is other_gpus:
            changes = [one.changes[0] for one in cheapest(prices, prices.quick_all(changes))]
        one = _first_that_fits(prices, changes)
        if one is None and helpers:
            most = len(changes) if ways is more_gpus else _OTHER_GPUS
            kept = [helper for helper in helpers if helper.changes[0].axis != "offload"]
            one = _first_with_help(prices, changes[:most], _helping(prices, kept), pace)
        found += [] if one is None else [one]
    return found


def _first_with_help(
    prices: Prices, changes: Iterable[Change], helpers: list[Priced], pace: float
) -> Priced | None:
    """The first that fits with one or two of the helpers and is faster than pace."""
    for change in changes:
        head = prices.quick(change)
        for one in [] if head is None else to_fit(prices, [head], helpers):
            if one.tokens_per_s > pace:
                return one
    return None


def _first_that_fits(prices: Prices, changes: Iterable[Change]) -> Priced | None:
    for change in changes:
        quick = prices.quick(change)
        if quick is None or not quick.fits:
            continue
        exact = prices.exact(change)
        if exact is not None and exact.fits:
            return exact
    return None


def _faster(prices: Prices) -> list[Priced]:
    """What makes a fitting setup faster and still fit."""
    at = prices.at
    alone = prices.quick_all([*singles(at), *schedules(at)])
    ways = layouts(prices)
    least = (at.result.time.tokens_per_s or 0.0) * _GAIN
    gains = [one for one in [*alone, *ways] if one.fits and one.tokens_per_s > least]
    found: list[Priced] = []
    for kind in KINDS:
        found += _best(prices, _of(gains, kind))
    same = [one for one in found if one.kind == "same"] + fewer_blocks(prices)
    found += fewer_blocks(prices)
    together = to_speed(prices, same)
    return [one for one in [*found, *([together] if together else [])] if one.tokens_per_s > least]


def _of(priced: Iterable[Priced], kind: str) -> list[Priced]:
    return [one for one in priced if one.kind == kind]


def _best(prices: Prices, priced: Iterable[Priced]) -> list[Priced]:
    """Of each axis, and of each way to divide a model, the fastest that fit, confirmed."""
    ways: dict[tuple[str, ...], list[Priced]] = {}
    for one in by_speed(priced):
        if one.fits:
            ways.setdefault(way_of(one), []).append(one)
    found: list[Priced] = []
    for way, members in ways.items():
        layouts_of = sum(1 for one in found if way_of(one)[0] == LAYOUT)
        if way[0] != LAYOUT or layouts_of < _OF_KIND:
            found += confirmed(prices, members, 1 if way[0] == LAYOUT else _OF_AXIS)
    return found


def _helping(prices: Prices, priced: Iterable[Priced]) -> list[Priced]:
    """Changes that lower the peak of some phase, whether or not it is the highest now."""
    base = prices.quick()
    if base is None:
        return []
    phases = base.result.memory.phases
    return [one for one in priced if _lower(one.result.memory.phases, phases)]


def _lower(new: Mapping[str, int], old: Mapping[str, int]) -> bool:
    return any(size < _LOWER * old[name] for name, size in new.items() if name in old)


def _ranked(found: Iterable[Priced]) -> list[Priced]:
    """By kind, then speed; so many of a kind, none that another one adds speed to."""
    entries: list[Priced] = []
    for kind in KINDS:
        own: dict[str, Priced] = {}
        for one in by_speed(_of(found, kind)):
            if not any(_outdone(one, other) for other in own.values()):
                own.setdefault(one.words, one)
        entries += list(own.values())[:_OF_KIND]
    return entries


def _outdone(one: Priced, other: Priced) -> bool:
    """Whether another entry has all its changes and more, and is faster without needing more."""
    more = set(map(_told, one.changes)) < set(map(_told, other.changes))
    return more and other.tokens_per_s > one.tokens_per_s and other.need <= one.need


def _told(change: Change) -> str:
    return repr(sorted(change.options.items()))


def _notes(advice: Advice) -> Iterable[str]:
    at = advice.at
    if at.fits and not advice.entries:
        yield "as stated is the fastest of what was priced: nothing to change"
    if not at.fits and not advice.entries:
        yield "nothing that was priced makes it fit; memcalc solve gpus finds how many GPUs would"
    if any("stack" in change.options for entry in advice.entries for change in entry.changes):
        yield "a change of --stack is a change of training code: other kernels, other buffers"
