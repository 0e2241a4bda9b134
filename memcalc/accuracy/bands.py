"""Bands printed with estimates, made from the errors of published runs, and how often they hold.

A band of nine in ten leaves a twentieth at either end: of n setups in order it takes the ones with floor of
(n + 1) / 20 - 1 beyond them, which covers a further one with at least 90 % (a tolerance interval without
a distribution: Wilks 1941). That needs 19 setups. Where a class has fewer, the next one answers: a stack on
an architecture, an architecture, and beyond these from the lowest to the highest end of all classes.
Runs are taken in the order of what they are worth: evaluated ones that state everything, evaluated ones, then
those of sources a constant was fitted to; no more kinds than are needed for 19 setups.
A band is tested on rows that did not make it: without their source, and in ten parts of the setups.
Checked by: unit/test_report_accuracy_bands.py, published/test_bands.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.accuracy.groups import is_fitted
from memcalc.accuracy.pricing import MEMORY, THROUGHPUT, Pair
from memcalc.accuracy.scores import setup_key
from memcalc.accuracy.serving import is_serving
from memcalc.accuracy.setups import SAME_CHIP
from memcalc.inputs.hardware import load_gpu

#: Share of runs left out at either end, and the setups of which that is one.
TAIL: Final = 0.05
SETUPS: Final = 19
#: Parts the setups are dealt into for the second test.
PARTS: Final = 10
Key = tuple[str, str]


class Run(NamedTuple):
    """One evaluated figure. factor: measured over predicted seconds, or driver-used bytes.

    open: the least and most that open figures leave, over predicted; (1, 1) of times. tier: 0 the best.
    """

    id: str
    source: str
    stack: str
    architecture: str
    setup: str
    factor: float
    tier: int
    open: tuple[float, float] = (1.0, 1.0)

    @property
    def fitted(self) -> bool:
        return self.tier >= 2


class Band(NamedTuple):
    """Factors on a prediction; setups: how many made it; fitted: whether most were fitted to."""

    low: float
    high: float
    setups: int
    fitted: bool = False

    def holds(self, run: Run) -> bool:
        """Whether a run lies inside, what is open included."""
        low, high = self.ends(run)
        return low <= run.factor <= high

    def ends(self, run: Run) -> tuple[float, float]:
        """The printed band over the prediction."""
        return min(self.low, run.open[0]), max(self.high, run.open[1])


Classes = Mapping[Key, Band]
Make = Callable[[Sequence[Run]], Callable[[Run], Band]]


def time_runs(pairs: Iterable[Pair]) -> list[Run]:
    """Runs whose step time is judged: trusted or nearly, on cards as sold, not against their own table."""
    found = []
    for pair in pairs:
        row = pair.row
        judged = pair.what == THROUGHPUT and pair.scored and pair.gpu is not None
        judged = judged and not is_serving(row)
        if not judged or row.text("confidence") == "low" or row.text("gpu") in SAME_CHIP:
            continue
        found.append(
            Run(
                row.id, row.source, (row.text("stack") or "torch").removeprefix("other:"),
                load_gpu(pair.gpu or "")[0].architecture, setup_key(row), 1 + pair.error,
                2 * is_fitted(row) + (row.text("priceable") != "yes"),
            )
        )  # fmt: skip
    return found


def memory_runs(pairs: Iterable[Pair]) -> list[Run]:
    """Runs whose memory is judged: everything stated, trusted, its kind known.

    A figure of allocated or reserved bytes stands for driver-used ones with the predicted rest added.
    """
    found = []
    for pair in pairs:
        row, used = pair.row, pair.used
        judged = pair.what == MEMORY and pair.scored and not is_serving(row) and used is not None
        if not judged or row.text("confidence") != "high" or row.text("priceable") != "yes":
            continue
        assert used is not None
        measured = pair.measured + used.bytes - pair.predicted
        found.append(
            Run(
                row.id, row.source, "", "", setup_key(row), measured / used.bytes, 0,
                (used.low / used.bytes, used.high / used.bytes),
            )
        )  # fmt: skip
    return found


def ends(factors: Sequence[float]) -> tuple[float, float]:
    """The two that leave floor of (n + 1) TAIL - 1 beyond them, the prediction between them."""
    ordered = sorted(factors)
    place = max(1, math.floor((len(ordered) + 1) * TAIL + 1e-9))
    return min(1.0, ordered[place - 1]), max(1.0, ordered[-place])


def classes(runs: Sequence[Run]) -> dict[Key, Band]:
    """Every class with enough setups; ("", "") stands for all else."""
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        for key in ((run.stack, run.architecture), ("", run.architecture)):
            groups.setdefault(key, []).append(run)
    found = {}
    for key, members in groups.items():
        chosen = _worth_most(members)
        factors = _by_setup(chosen)
        if len(factors) >= SETUPS:
            found[key] = Band(
                *ends(factors), len(factors), sum(r.fitted for r in chosen) * 2 > len(chosen)
            )
    if not found:
        factors = _by_setup(runs)
        found["", ""] = Band(min([1.0, *factors]), max([1.0, *factors]), len(factors))
    else:
        low, high = min(b.low for b in found.values()), max(b.high for b in found.values())
        found["", ""] = Band(low, high, len(_by_setup(runs)))
    return found


def _worth_most(runs: Sequence[Run]) -> list[Run]:
    """Runs of the best kinds, as few kinds as give SETUPS setups, or all."""
    for tier in range(4):
        chosen = [run for run in runs if run.tier <= tier]
        if len({run.setup for run in chosen}) >= SETUPS:
            return chosen
    return list(runs)


def _by_setup(runs: Iterable[Run]) -> list[float]:
    """One factor a setup: the median of runs that differ in micro-batches, or in who reports them."""
    of: dict[str, list[float]] = {}
    for run in runs:
        of.setdefault(run.setup, []).append(run.factor)
    return [statistics.median(found) for found in of.values()]


def by_class(runs: Sequence[Run]) -> Callable[[Run], Band]:
    """The band that each run would be printed, of classes these runs make."""
    made = classes(runs)

    def band(run: Run) -> Band:
        keys = ((run.stack, run.architecture), ("", run.architecture), ("", ""))
        return next(made[key] for key in keys if key in made)

    return band


def over_sources(runs: Sequence[Run]) -> Band:
    """One band of all runs, every source with the same weight, however many rows it has."""
    of: dict[str, int] = {}
    for run in runs:
        of[run.source] = of.get(run.source, 0) + 1
    weighted = sorted((run.factor, 1 / of[run.source]) for run in runs)
    low = _at(weighted, TAIL * len(of))
    high = -_at([(-factor, weight) for factor, weight in reversed(weighted)], TAIL * len(of))
    return Band(min(1.0, low), max(1.0, high), len(runs))


def _at(weighted: Sequence[tuple[float, float]], goal: float) -> float:
    """The first value with so much weight at or below it."""
    reached = 0.0
    for value, weight in weighted:
        reached += weight
        if reached >= goal - 1e-9:
            return value
    raise AssertionError("the goal is a part of the weight")


def one_for_all(runs: Sequence[Run]) -> Callable[[Run], Band]:
    """The same band for every run, of these runs."""
    band = over_sources(runs)
    return lambda run: band


def coverage(runs: Sequence[Run], make: Make) -> dict[str, Any]:
    """How often bands hold of the runs nothing was fitted to: as made, without a source, in ten parts.

    {"all" | "sources" | "parts": {"n", "inside", "share", "width": median high - low}}, "by_source".
    """
    evaluated = _evaluated(runs)
    names = sorted({run.setup for run in runs})
    part = {name: place % PARTS for place, name in enumerate(names)}
    whole = make(runs)
    without = without_sources(runs, make)
    split = _tested(runs, evaluated, make, lambda run: part[run.setup])
    sources: dict[str, list[bool]] = {}
    for run, band in without:
        sources.setdefault(run.source, []).append(band.holds(run))
    return {
        "all": _held([(run, whole(run)) for run in evaluated]),
        "sources": _held(without),
        "parts": _held(split),
        "by_source": {name: [sum(held), len(held)] for name, held in sorted(sources.items())},
    }


def without_sources(runs: Sequence[Run], make: Make) -> list[tuple[Run, Band]]:
    """Each evaluated run with the band made without its source."""
    return _tested(runs, _evaluated(runs), make, lambda run: run.source)


def _evaluated(runs: Sequence[Run]) -> list[Run]:
    """Runs that nothing was fitted to; all where there are none."""
    return [run for run in runs if not run.fitted] or list(runs)


def _tested(
    runs: Sequence[Run], evaluated: Sequence[Run], make: Make, group: Callable[[Run], Any]
) -> list[tuple[Run, Band]]:
    """Each evaluated run with the band made without its group."""
    found: list[tuple[Run, Band]] = []
    for name in dict.fromkeys(group(run) for run in evaluated):
        band = make([run for run in runs if group(run) != name])
        found += [(run, band(run)) for run in evaluated if group(run) == name]
    return found


def _held(tested: Sequence[tuple[Run, Band]]) -> dict[str, Any]:
    if not tested:
        return {"n": 0, "inside": 0, "share": None, "width": None}
    inside = sum(band.holds(run) for run, band in tested)
    widths = [high - low for low, high in (band.ends(run) for run, band in tested)]
    return {
        "n": len(tested), "inside": inside, "share": inside / len(tested),
        "width": statistics.median(widths),
    }  # fmt: skip
