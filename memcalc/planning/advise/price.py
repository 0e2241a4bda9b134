"""Prices of changes: the estimate of the setup with them, each made once.

Quick estimates leave the allocator's replay out: what they call too large is too large, what they call
fitting is confirmed by an exact one before it is said. Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from memcalc.engine.results import Estimate
from memcalc.planning.advise.change import Change, Situation, kind_of, merged, words_of
from memcalc.planning.cases import Case, Refused, Tell, point_of

#: The case of a setup's options, the model's name among them.
Make = Callable[[dict[str, Any]], Case | Refused]


class Priced(NamedTuple):
    """Changes with the estimate of the setup that has them."""

    changes: tuple[Change, ...]
    words: str
    command: str
    result: Estimate

    @property
    def kind(self) -> str:
        """Of all changes together."""
        return kind_of(self.changes)

    @property
    def fits(self) -> bool:
        """The verdict; of a quick estimate, whether tensors fit."""
        return self.result.fits is True

    @property
    def need(self) -> int:
        """The least a process needs on the GPU: what is allocated, the context and communicators."""
        memory = self.result.memory
        return memory.peak_allocated_bytes + memory.context_bytes + memory.communication_bytes

    @property
    def tokens_per_s(self) -> float:
        """Of all GPUs; 0 where it is unknown."""
        return self.result.time.tokens_per_s or 0.0

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return int(self.result.setup["gpus"] or 1)

    @property
    def speed(self) -> float:
        """Tokens/s of one GPU; 0 where it is unknown."""
        return self.result.time.tokens_per_s_per_gpu or 0.0


class Prices:
    """Estimates of one situation's changes."""

    def __init__(self, at: Situation, make: Make, tell: Tell | None = None) -> None:
        self.at, self._make, self._tell = at, make, tell
        self._known: dict[tuple[bool, str], Priced | None] = {}

    @property
    def count(self) -> int:
        """Estimates made so far."""
        return len(self._known)

    def quick(self, *changes: Change) -> Priced | None:
        """Without the allocator's replay; None where the estimate refuses it."""
        return self._priced(changes, False)

    def exact(self, *changes: Change) -> Priced | None:
        """As `estimate` gives it."""
        return self._priced(changes, True)

    def _priced(self, changes: tuple[Change, ...], allocator: bool) -> Priced | None:
        options = merged(self.at.options, changes)
        key = allocator, _key(options)
        if key not in self._known:
            self._known[key] = self._estimate(changes, options, allocator)
            if self._tell is not None:
                self._tell("estimates", self.count, max(100, self.count))
        found = self._known[key]
        if found is None or found.changes == changes:
            return found
        return found._replace(changes=changes)

    def _estimate(
        self, changes: tuple[Change, ...], options: dict[str, Any], allocator: bool
    ) -> Priced | None:
        point = point_of(self._make(options), allocator)
        if point.result is None:
            return None
        words = words_of(self.at.options, changes)
        return Priced(changes, words, point.case.command, point.result)

    def quick_all(self, changes: Iterable[Change]) -> list[Priced]:
        """Every change that can be priced."""
        return [priced for change in changes if (priced := self.quick(change)) is not None]

    def considered(self) -> list[Priced]:
        """Everything priced, exact estimates in the place of quick ones."""
        found: dict[str, Priced] = {}
        for (_, key), priced in sorted(self._known.items(), key=lambda item: item[0][0]):
            if priced is not None:
                found[key] = priced
        return list(found.values())


def _key(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))
