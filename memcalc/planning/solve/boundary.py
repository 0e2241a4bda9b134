"""The place in a row of candidates where a verdict changes, found by bisection and then verified.

Candidates are in the order in which they get larger. `rising` candidates need more memory as they grow
(a micro-batch): the answer is the largest that fits. The others need less (GPUs that share the states):
the answer is the smallest that fits. Each candidate has a quick verdict, which only errs by calling
fitting what does not (no rounding, no fragmentation), and an exact one. The quick one is bisected; from
there the exact one decides, and the two candidates on either side of the answer are always exact.

A candidate that the estimate refuses (None) is passed over. Verdicts need not be monotone: a kernel
changes with the size, freed blocks happen to fit or not. What is promised is that the answer fits and
the next candidate does not; a few candidates beyond are tried, and those that fit too are named.
Checked by: unit/test_solve.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from memcalc.engine.bisection import last_holding

#: A verdict on one candidate: fits, does not fit, or (None) the estimate refuses it.
Verdict = Callable[[int], bool | None]
#: Refused candidates passed over in a row before the search ends there.
_PATIENCE: Final = 16
#: Candidates beyond the boundary that are looked at: so many further on, and in proportion.
_BEYOND: Final = (1, 3)
_SHARES: Final = (1.25, 1.5, 2.0)


class Boundary(NamedTuple):
    """Where the verdict changes; indices into the candidates, None where there is none.

    also: candidates beyond the first failing one that fit too, of those that were tried.
    """

    found: int | None
    failing: int | None
    also: tuple[int, ...]


def boundary(candidates: Sequence[int], quick: Verdict, exact: Verdict, rising: bool) -> Boundary:
    """The last candidate that fits of a rising row, the first that fits of a falling one."""
    if not rising:
        return _first_fitting(candidates, quick, exact)
    start = _first_valid(candidates, quick)
    if start is None:
        return Boundary(None, None, ())
    last = last_holding(lambda at: bool(quick(candidates[at])), start, len(candidates))
    if last is None:
        return _none_fits(candidates, quick, exact, start)
    found = _back_to_exact(candidates, exact, start, last)
    if found is None:
        return _none_fits(candidates, quick, exact, start)
    found, failing = _onward(candidates, exact, found)
    also = () if failing is None else _beyond(candidates, quick, exact, failing)
    return Boundary(found, failing, also)


def _first_valid(candidates: Sequence[int], quick: Verdict) -> int | None:
    for at in range(min(len(candidates), 4 * _PATIENCE)):
        if quick(candidates[at]) is not None:
            return at
    return None


def _back_to_exact(candidates: Sequence[int], exact: Verdict, start: int, last: int) -> int | None:
    """The last index up to `last` whose exact verdict holds, galloping back from there."""
    if exact(candidates[last]):
        return last
    failing, step = last, 1
    while failing > start:
        at = max(start, failing - step)
        if exact(candidates[at]):
            return last_holding(lambda i: bool(exact(candidates[i])), at, failing)
        failing, step = at, step * 2
    return None


def _onward(candidates: Sequence[int], exact: Verdict, found: int) -> tuple[int, int | None]:
    """Step on while the next candidate fits too; (last that fits, next valid one, None at the end)."""
    at, passed = found + 1, 0
    while at < len(candidates) and passed < _PATIENCE:
        verdict = exact(candidates[at])
        if verdict is False:
            return found, at
        found, passed = (at, 0) if verdict else (found, passed + 1)
        at += 1
    return found, None


def _beyond(
    candidates: Sequence[int], quick: Verdict, exact: Verdict, failing: int
) -> tuple[int, ...]:
    """Candidates further on that fit although `failing` does not."""
    steps = {failing + step for step in _BEYOND}
    steps |= {int((failing + 1) * share) for share in _SHARES}
    return tuple(
        at
        for at in sorted(steps)
        if failing < at < len(candidates) and quick(candidates[at]) and exact(candidates[at])
    )


def _none_fits(candidates: Sequence[int], quick: Verdict, exact: Verdict, start: int) -> Boundary:
    """Not even the first: it is the failing one, made exact for what it lacks."""
    exact(candidates[start])
    also = _beyond(candidates, quick, exact, start)
    if not also:
        return Boundary(None, start, ())
    found, failing = _onward(candidates, exact, also[0])
    return Boundary(found, failing, tuple(at for at in also if failing is None or at > failing))


def _first_fitting(candidates: Sequence[int], quick: Verdict, exact: Verdict) -> Boundary:
    """The smallest candidate that fits and the largest below it that does not."""
    start = _first_valid(candidates, quick)
    if start is None:
        return Boundary(None, None, ())
    end = len(candidates)
    last = last_holding(lambda at: not quick(candidates[at]), start, end)
    at = start if last is None else last + 1
    if at < end and not exact(candidates[at]):
        last = last_holding(lambda at: not exact(candidates[at]), at, end)
        at = end if last is None else last + 1
    if at >= end:
        return Boundary(None, _largest_valid(candidates, exact), ())
    below, passed = at - 1, 0
    while below >= 0 and passed < _PATIENCE:
        verdict = exact(candidates[below])
        if verdict is False:
            return Boundary(at, below, ())
        at, passed = (below, 0) if verdict else (at, passed + 1)
        below -= 1
    return Boundary(at, None, ())


def _largest_valid(candidates: Sequence[int], exact: Verdict) -> int | None:
    """The largest candidate that is not refused: where GPUs do not help, what is lacking in the end."""
    for at in reversed(range(max(0, len(candidates) - 4 * _PATIENCE), len(candidates))):
        if exact(candidates[at]) is not None:
            return at
    return None
