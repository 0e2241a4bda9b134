"""A pipeline rank's step as instructions: what it computes, and when it takes and drops what it passes on.

A stage's micro-batch makes a stream for the stage after and a gradient for the stage before. How long
each lives is decided by the variables of the code that runs the schedule, so they are followed here by
name: `Program.bind` is an assignment, and a tensor that no name holds any more is dropped. Whose code
it is decides the rest: pipeline_torch.py, pipeline_megatron.py; pipeline_rules.py chooses.
Checked by: oracle/test_pipeline.py, unit/test_stages.py.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Action, Pipe


class Item(NamedTuple):
    """A tensor of a chunk and a micro-batch; batch -1: one that the step before left.

    kind: "stream" (sent on; of the last chunk its loss), "gradient" (sent back), "input" and "seed"
    (received), "stub" (what is left of a stream whose memory was given back).
    """

    kind: str
    chunk: int
    batch: int


class Take(NamedTuple):
    """Allocate a tensor."""

    item: Item


class Drop(NamedTuple):
    """Free a tensor."""

    item: Item


Instruction = Action | Take | Drop


class Step(NamedTuple):
    """A rank's instructions from the start of a step to the optimizer, from the second step on.

    schedule_end: where the schedule returns; what follows only lets go. standing: tensors that are
    there when the step begins. renewed: (one of those, what takes its place for the next step).
    left: tensors that end only as the next step begins.
    """

    instructions: tuple[Instruction, ...]
    schedule_end: int
    standing: tuple[Item, ...] = ()
    renewed: tuple[tuple[Item, Item], ...] = ()
    left: tuple[Item, ...] = ()


class Program:
    """Instructions in the making, and which names hold which tensors.

    A name that is an Item outlives the schedule. A name ("of", item) goes with that item: what the
    tensor itself holds, as its gradient.
    """

    def __init__(self, pipe: Pipe) -> None:
        self.chunks = pipe.pp * pipe.vpp
        self.instructions: list[Instruction] = []
        self.standing: list[Item] = []
        self._held: dict[Item, int] = {}
        self._names: dict[Hashable, Item] = {}

    def do(self, action: Action) -> None:
        """Compute."""
        self.instructions.append(action)

    def take(self, name: Hashable, item: Item) -> None:
        """Allocate a tensor and bind it; what the name held before goes after that."""
        if self.exists(item):
            self.instructions.append(Take(item))
        self.bind(name, item)

    def bind(self, name: Hashable, item: Item | None) -> None:
        """name = item; what the name held before goes if nothing else holds it."""
        held, names = self._held, self._names
        before = names.pop(name, None)
        if item is not None and self.exists(item):
            held[item] = held.get(item, 0) + 1
            names[name] = item
        if before is not None:
            left = held[before] - 1
            held[before] = left
            if not left:
                self.instructions.append(Drop(before))
                if ("of", before) in names:
                    self.bind(("of", before), None)

    def stands(self, item: Item) -> None:
        """A tensor that is there before the step and after it."""
        if self.exists(item):
            self.standing.append(item)

    def holds(self, item: Item, name: Hashable | None = None) -> None:
        """A tensor that is there before the step, under its own name or another, until that changes."""
        self.stands(item)
        self.bind(name or item, item)

    def held_by(self, name: Hashable) -> Item | None:
        """What a name holds."""
        return self._names.get(name)

    def exists(self, item: Item) -> bool:
        """The first chunk receives and sends back nothing, the last is sent no gradient."""
        if item.chunk == 0 and item.kind in ("gradient", "input"):
            return False
        return item.chunk < self.chunks - 1 or item.kind not in ("seed", "stub")

    def end(self) -> Step:
        """The schedule returns: all names go but those that are an Item, or of a tensor that stays."""
        returned = len(self.instructions)
        kept = {name: item for name, item in self._names.items() if isinstance(name, Item)}
        for name in [name for name in self._names if name not in kept]:
            if not (isinstance(name, tuple) and name[0] == "of"):
                self.bind(name, None)
        renewed = {name: item for name, item in kept.items() if name in self.standing}
        left = set(kept.values()) - set(renewed.values())
        return Step(
            instructions=tuple(self.instructions),
            schedule_end=returned,
            standing=tuple(self.standing),
            renewed=tuple(renewed.items()),
            left=tuple(sorted(left)),
        )
