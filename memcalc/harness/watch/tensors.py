"""The bytes of a step's tensors, on any device: a whole training step under the storage tracker.

Counted are the storages tensors own on the device: parameters, gradients, states, activations; of a
tensor split over ranks this rank's part. "gathered" are parameters that FSDP holds whole for a while.
Not counted is what one kernel takes and gives back inside, and the host scalars of an optimizer (Adam's
`step`, unless fused), which on a GPU lie in host memory; on a CPU they are left out as well, so that
both devices are counted alike. Categories are those of memcalc/engine/memory.py.
Checked by: harness/test_tensors.py, against the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memcalc.engine.memory import CATEGORIES, GATHERED_OPS, operator_category
from memcalc.harness.optimizers import MasterWeights
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.scopes import scopes
from memcalc.harness.watch.tracker import RESIZED, Alloc, Event, StorageTracker, storages_of


class TensorBytes(NamedTuple):
    """Bytes of tensors over one step. phases: highest of each; phases_at: the operator there.

    saved: what the last micro-batch's forward left for its backward, the loss included; in a pipeline
    what the forwards before the first backward left. gathered: parameters gathered from other ranks
    (FSDP) alive then, not among the saved. breakdown: categories at the peak, which sum to it.
    live_before: at the start of the step. events and initial: every allocation and release, and the
    storages alive before them.
    """

    peak: int
    peak_at: str
    peak_aten: str
    phases: dict[str, int]
    phases_at: dict[str, str]
    saved: int
    gathered: int
    live_before: int
    states: dict[str, int]
    breakdown: dict[str, int]
    initial: list[Alloc]
    events: list[Event]

    def plain(self) -> dict[str, Any]:
        """What a record keeps: all but the events, in the names of an estimate's JSON."""
        return {
            "peak_requested_bytes": self.peak,
            "peak_at": self.peak_at,
            "peak_primitive": self.peak_aten,
            "phases": self.phases,
            "phase_peaks_at": self.phases_at,
            "saved_for_backward_bytes": self.saved,
            "gathered_bytes": self.gathered,
            "live_before_bytes": self.live_before,
            "states": self.states,
            "breakdown": self.breakdown,
            "events": len(self.events),
        }


def tracked_step(step: TrainingStep, on_phase: Callable[[str], None] | None = None) -> TensorBytes:
    """Run one step, from the second on, under the tracker. on_phase hears of each phase as well."""
    follower = _Follower(step)
    initial, before = follower.tracker.live_storages(), follower.tracker.live

    def enter(name: str) -> None:
        follower.enter(name)
        if on_phase is not None:
            on_phase(name)

    with follower.tracker:
        step.run(enter)
    follower.tracker.set_phase("over")
    return follower.result(initial, before)


class _Tracker(StorageTracker):  # type: ignore[no-untyped-call]
    """A storage tracker that notes what recomputation makes and passes over host scalars."""

    def __init__(self, device: str, ignored: Iterable[Tensor]) -> None:
        super().__init__(device)
        self.recomputed: set[int] = set()
        self._ignored = {s._cdata for tensor in ignored for s in storages_of(tensor)}

    def bytes_of(self, tensors: Iterable[Tensor]) -> dict[int, int]:
        """Bytes by storage number of those tensors that are counted; of a split one, this rank's."""
        storages = (storage for tensor in tensors for storage in storages_of(tensor))
        known = (self._known.get(storage._cdata) for storage in storages)
        return {entry[0].storage: entry[0].nbytes for entry in known if entry is not None}

    @property
    def gathered_bytes(self) -> int:
        """Bytes of parameters gathered from other ranks that are alive now."""
        return sum(alloc.nbytes for alloc, _ in self._known.values() if _is_gathered(alloc))

    def _add(self, storage: torch.UntypedStorage, aten: str, where: str) -> None:
        if storage._cdata in self._ignored:
            return
        last = self._last_id
        super()._add(storage, aten, where)
        if self._last_id != last and scopes.open and self.phase == "backward":
            self.recomputed.add(self._last_id)


class _Follower:
    """Follows a step through its phases: floors of their peaks, what is saved, which are gradients."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        on_host = [t for o in step.optimizers for t, ignored in _states(o) if ignored]
        self.tracker = _Tracker(step.device.type, on_host)
        self.held = _held(step)
        gradients = _gradients(step)
        others = [step.ids, step.labels, *step.other_tensors()]
        self.tracker.track(step.model, others, gradients, *self.held.values())
        self.tracker.reset()
        self.floors: dict[str, int] = {}
        self.saved = self.gathered = self._in_flight = 0
        self._first_backward = True
        self._alive: set[int] = set()
        self._unsummed: dict[int, int] = {}
        step.before_sums = self._note_gradients
        self.kept: set[int] = set()
        self.gradients: dict[int, int] = {}

    def enter(self, name: str) -> None:
        """A phase begins."""
        tracker = self.tracker
        tracker.set_phase(name)
        self.floors[name] = max(self.floors.get(name, 0), tracker.live)
        if name == "forward":
            self._note_gradients()
            if not self._in_flight:
                self._alive = {alloc.storage for alloc in tracker.live_storages()}
                self._first_backward = True
            self._in_flight += 1
        elif name == "backward":
            new = [a for a in tracker.live_storages() if a.storage not in self._alive]
            if self._first_backward:
                self.gathered = tracker.gathered_bytes
                self.saved = sum(alloc.nbytes for alloc in new if not _is_gathered(alloc))
                self._first_backward = False
            self._in_flight -= 1
            self.kept |= {alloc.storage for alloc in new}
        elif name == "optimizer":
            self.gradients = tracker.bytes_of(_gradients(self.step))

    def _note_gradients(self) -> None:
        """What DDP's buckets or sums over ranks replace later are gradients too."""
        self._unsummed |= self.tracker.bytes_of(_gradients(self.step))

    def result(self, initial: list[Alloc], before: int) -> TensorBytes:
        """Everything read off the events."""
        tracker = self.tracker
        known = tracker.phase_peaks
        phases = {
            name: max(floor, known[name].nbytes if name in known else 0)
            for name, floor in self.floors.items()
        }
        at = {name: place(known[name].where) if name in known else name for name in phases}
        peak = max(phases.values())
        phase = next(name for name, nbytes in phases.items() if nbytes == peak)
        held = {name: tracker.bytes_of(tensors) for name, tensors in self.held.items()}
        states = {name: sum(numbers.values()) for name, numbers in held.items()}
        return TensorBytes(
            peak=peak,
            peak_at=f"{phase}/{at[phase]}",
            peak_aten=known[phase].aten if phase in known else "",
            phases=phases,
            phases_at={name: f"{name}/{where}" for name, where in at.items()},
            saved=self.saved,
            gathered=self.gathered,
            live_before=before,
            states={**states, "gradients": sum(self.gradients.values())},
            breakdown=self._breakdown(initial, held),
            initial=initial,
            events=list(tracker.events),  # a copy: what ends later is none of this step's
        )

    def _breakdown(self, initial: list[Alloc], held: dict[str, dict[int, int]]) -> dict[str, int]:
        """Categories alive when most is; they sum to the peak."""
        totals = dict.fromkeys(CATEGORIES, 0)
        for alloc in _alive_at_peak(initial, self.tracker.events).values():
            category = self._category(alloc, held)
            totals[category] = totals.get(category, 0) + alloc.nbytes
        return totals

    def _category(self, alloc: Alloc, held: dict[str, dict[int, int]]) -> str:
        number, where = alloc.storage, alloc.where.rpartition("/")[2]
        if number in self.gradients or number in self._unsummed:
            return "gradients"
        if _is_gathered(alloc):
            return "gathered"
        if alloc.aten == "existing":
            stated = {"parameters": "parameters", "optimizer": "optimizer", "master": "optimizer"}
            return next((stated[n] for n, numbers in held.items() if number in numbers), "buffers")
        if alloc.phase == "optimizer":
            return "temporary"
        kept = number in self.kept or number in self.tracker.recomputed
        return operator_category(where, alloc.phase, kept)


def _is_gathered(alloc: Alloc) -> bool:
    """Whether it is a parameter FSDP holds whole, or in a larger part than between steps."""
    return alloc.aten == RESIZED or alloc.where.rpartition("/")[2] in GATHERED_OPS


def state_bytes(step: TrainingStep) -> dict[str, int]:
    """Bytes of parameters, gradients as they are now, optimizer states on the device, master copies."""
    parts = {**_held(step), "gradients": _gradients(step)}
    return {name: sum(t.untyped_storage().nbytes() for t in parts[name]) for name in parts}


def place(where: str) -> str:
    """The tracker's `2/down_proj` in an estimate's words, `layers.2/down_proj`."""
    return f"layers.{where}" if where[:1].isdigit() else where


def _alive_at_peak(initial: list[Alloc], events: list[Event]) -> dict[int, Alloc]:
    """The storages alive at the first instant of the most bytes."""
    alive = {alloc.storage: alloc for alloc in initial}
    live = best = sum(alloc.nbytes for alloc in initial)
    best_at = -1
    for position, event in enumerate(events):
        live += event.nbytes if isinstance(event, Alloc) else -event.nbytes
        if live > best:
            best, best_at = live, position
    for event in events[: best_at + 1]:
        if isinstance(event, Alloc):
            alive[event.storage] = event
        else:
            del alive[event.storage]
    return alive


def _held(step: TrainingStep) -> dict[str, list[Tensor]]:
    """Parameters, optimizer states on the device and master copies, which stay between steps."""
    return {
        "parameters": [*step.model.parameters(), *step.model.buffers()],  # packed ones
        "optimizer": [t for o in step.optimizers for t, on_host in _states(o) if not on_host],
        "master": [copy for o in step.optimizers for copy in _copies(o)],
    }


def _gradients(step: TrainingStep) -> list[Tensor]:
    return [p.grad for p in step.model.parameters() if p.grad is not None]


def _inner(optimizer: Any) -> list[torch.optim.Optimizer]:
    return list(optimizer.inner) if isinstance(optimizer, MasterWeights) else [optimizer]


def _copies(optimizer: Any) -> list[Tensor]:
    return list(optimizer.copies.values()) if isinstance(optimizer, MasterWeights) else []


def _states(optimizer: Any) -> Iterator[tuple[Tensor, bool]]:
    """Every state tensor of an optimizer, and whether it is a scalar kept on the host."""
    for each in _inner(optimizer):
        on_device = bool(each.defaults.get("fused") or each.defaults.get("capturable"))
        for states in each.state.values():
            for name, value in states.items():
                if isinstance(value, Tensor):
                    yield value, name == "step" and not on_device
