"""Which operator of the ledger is at work while PyTorch code runs, forward and backward.

The decoder opens `layer(index)` and `op(name)` around its steps. While nobody watches, and inside
code that torch.compile traces, both are null contexts. In the backward pass an operator is known by
the autograd node that runs: nodes carry the sequence number of their forward operator, and the
contexts note which numbers are theirs. A context that is open wins, which labels recomputed operators.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

#: Nodes that accumulate into leaves carry the largest number, not that of a forward operator.
LARGEST_SEQUENCE_NR = 1 << 62
OUTSIDE = ""
#: Before an operator's name in a profile, where `scopes.ranges` asks for ranges.
RANGE = "ledger::"


class Watcher(Protocol):
    """Whoever wants operators named: a tracker of storages, a profile of operators."""

    phase: str

    def set_phase(self, name: str) -> None:
        """Enter a phase of the step."""


class _Scopes:
    """Which operator is at work, and which autograd sequence numbers belong to which operator."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.open: list[str] = []
        self.layer: str | None = None
        self.ranges = False
        self._starts: list[int] = []
        self._names: list[str] = []

    def mark(self) -> None:
        """From the next sequence number on, nodes belong to the innermost open operator."""
        number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self._starts.append(number)
        self._names.append(self.open[-1] if self.open else OUTSIDE)

    def of_node(self, sequence_nr: int) -> str:
        """The operator whose forward made the node with this sequence number."""
        position = bisect_right(self._starts, sequence_nr) - 1
        return self._names[position] if position >= 0 else OUTSIDE


scopes = _Scopes()
_watching: list[Watcher] = []
_NOTHING = nullcontext()


def watch(watcher: Watcher) -> None:
    """Name operators from now on, until the last watcher leaves."""
    if not _watching:
        scopes.reset()
    _watching.append(watcher)


def unwatch(watcher: Watcher) -> None:
    """Stop naming operators for this watcher."""
    _watching.remove(watcher)


class _Op:
    __slots__ = ("name", "range")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        layer = scopes.layer
        name = self.name if layer is None else f"{layer}/{self.name}"
        scopes.open.append(name)
        self.range = torch.profiler.record_function(RANGE + name) if scopes.ranges else None
        if self.range is not None:
            self.range.__enter__()  # type: ignore[no-untyped-call]
        scopes.mark()

    def __exit__(self, *exc: object) -> None:
        if self.range is not None:
            self.range.__exit__(None, None, None)
        scopes.open.pop()
        scopes.mark()


class _Layer:
    __slots__ = ("index", "outer")

    def __init__(self, index: int | str) -> None:
        self.index = str(index)

    def __enter__(self) -> None:
        self.outer = scopes.layer
        scopes.layer = self.index

    def __exit__(self, *exc: object) -> None:
        scopes.layer = self.outer


def op(name: str) -> AbstractContextManager[Any]:
    """Context: the ledger operator `name` runs, inside the current layer if one is open."""
    return _NOTHING if torch.compiler.is_compiling() or not _watching else _Op(name)


def layer(index: int | str) -> AbstractContextManager[Any]:
    """Context: operators opened inside belong to block `index`."""
    return _NOTHING if torch.compiler.is_compiling() or not _watching else _Layer(index)


def enter_loss() -> None:
    """Move watchers from phase "forward" to "loss"; in backward (recomputation) do nothing."""
    for watcher in _watching:
        if watcher.phase == "forward":
            watcher.set_phase("loss")
