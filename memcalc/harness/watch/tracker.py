"""Live bytes of every storage, event by event, while PyTorch code runs.

`StorageTracker` is a dispatch mode. It registers each storage when an operator first returns it and
hears of its end through a weak reference, so views cost nothing and frees come in their true order.
Three labels go with each allocation: the aten operator, the phase of the step (`set_phase`) and
`where`, the ledger operator at work, such as "3/gate_proj" or "final_norm" (harness/watch/scopes.py).
Scratch that a kernel takes and returns inside one operator is not seen. Of a tensor split over ranks
(DTensor) the part on this rank counts. FSDP gives and takes memory by resizing a storage: that is an
allocation of aten "resize_", or a release. Tensors of a fake mode that was not on when the tracker
came (DTensor's propagation of shapes) are none.
Checked by: oracle/test_support.py, harness/test_distributed.py (against torch's own MemTracker).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from memcalc.harness.watch.scopes import LARGEST_SEQUENCE_NR, OUTSIDE, scopes, unwatch, watch

#: The `aten` of an allocation that a storage's resize_ made.
RESIZED = "resize_"


class Alloc(NamedTuple):
    """A storage comes into being: its number, bytes, and the operator, phase and place it is of."""

    kind: str  # "alloc"
    storage: int
    nbytes: int
    aten: str
    phase: str
    where: str


class Free(NamedTuple):
    """A storage ends."""

    kind: str  # "free"
    storage: int
    nbytes: int


Event = Alloc | Free


class Peak(NamedTuple):
    """The most bytes alive in a phase, and where that was."""

    nbytes: int = 0
    aten: str = ""
    where: str = OUTSIDE


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages alive on one kind of device.

    device: count only tensors on this device type ("meta" leaves out the host); None: all.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.live = 0
        self.phase = "forward"
        self.events: list[Event] = []
        self.phase_peaks: dict[str, Peak] = {}
        self._known: dict[int, tuple[Alloc, weakref.ref[Any]]] = {}
        self._last_id = 0
        self._last_where = OUTSIDE

    def __enter__(self) -> StorageTracker:
        watch(self)
        self._fake_mode = active_fake_mode()
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._following_resizes()  # type: ignore[method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        unwatch(self)

    def _following_resizes(self) -> Any:
        resize = self._resize

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            self._resized(storage)
            return result

        return resize_

    def _resized(self, storage: torch.UntypedStorage) -> None:
        """A storage of another size than before: the old one ends, a new one comes into being."""
        known = self._known.pop(storage._cdata, None)  # drops the reference that waits for its end
        if known is not None:
            self._released(known[0])
        if self.device in (None, storage.device.type):
            where = self._where()
            self._add(storage, RESIZED, where)
            self._note_peak(RESIZED, where)

    @property
    def peak(self) -> int:
        """The most bytes alive in any phase."""
        return max((peak.nbytes for peak in self.phase_peaks.values()), default=0)

    @property
    def peak_at(self) -> tuple[str, str, str]:
        """(phase, aten operator, where) of the overall peak; the earliest phase on a tie."""
        phase, peak = max(self.phase_peaks.items(), key=lambda item: item[1].nbytes)
        return phase, peak.aten, peak.where

    def set_phase(self, name: str) -> None:
        """Enter a phase: what is allocated from now on counts to its peak."""
        self.phase = name

    def reset(self) -> None:
        """Forget events and peaks, keep the storages alive: the next step starts a new record."""
        self.events = []
        self.phase_peaks = {}

    def live_storages(self) -> list[Alloc]:
        """The allocation of every storage alive now, oldest first."""
        return sorted((alloc for alloc, _ in self._known.values()), key=lambda alloc: alloc.storage)

    def track(self, *items: Any) -> None:
        """Count storages made before: tensors, modules, optimizers' states, or lists of them."""
        for item in tree_leaves(items):
            if isinstance(item, nn.Module):
                self._add_all([*item.parameters(), *item.buffers()], "existing", "existing")
            elif isinstance(item, torch.optim.Optimizer):
                self._add_all(tree_leaves(list(item.state.values())), "existing", "existing")
            else:
                self._add_all([item], "existing", "existing")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return (
                NotImplemented  # the subclass runs first; its operators on plain tensors come here
            )
        result = func(*args, **(kwargs or {}))
        if active_fake_mode() is not self._fake_mode:
            return result
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if tensors:
            name, where = str(func), self._where()
            self._add_all(tensors, name, where)
            self._note_peak(name, where)
        return result

    def _note_peak(self, aten: str, where: str) -> None:
        best = self.phase_peaks.get(self.phase)
        if best is None or self.live > best.nbytes:
            self.phase_peaks[self.phase] = Peak(self.live, aten, where)

    def _where(self) -> str:
        if scopes.open:
            where = scopes.open[-1]
        elif (node := torch._C._current_autograd_node()) is None:
            where = "optimizer" if self.phase == "optimizer" else self._last_where
        elif (sequence_nr := node._sequence_nr()) < LARGEST_SEQUENCE_NR:
            where = scopes.of_node(sequence_nr)
        else:
            where = self._last_where
        self._last_where = where
        return where

    def _add_all(self, tensors: list[Any], aten: str, where: str) -> None:
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            if self.device is not None and tensor.device.type != self.device:
                continue
            for storage in storages_of(tensor):
                self._add(storage, aten, where)

    def _add(self, storage: torch.UntypedStorage, aten: str, where: str) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._known or nbytes == 0:
            return
        self._last_id += 1
        alloc = Alloc("alloc", self._last_id, nbytes, aten, self.phase, where)

        def freed(_: Any) -> None:
            del self._known[key]
            self._released(alloc)

        self._known[key] = (alloc, weakref.ref(storage, freed))
        self.live += nbytes
        self.events.append(alloc)

    def _released(self, alloc: Alloc) -> None:
        self.live -= alloc.nbytes
        self.events.append(Free("free", alloc.storage, alloc.nbytes))


def storages_of(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages a tensor holds on this rank: its own, or those of the tensors it wraps."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            inner = getattr(tensor, name)
            if isinstance(inner, Tensor):  # a DTensor also names its mesh
                yield from storages_of(inner)
    else:
        yield tensor.untyped_storage()
