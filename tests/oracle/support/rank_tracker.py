"""The storage tracker for a rank on tensors without data: it also says which collective was at work.

What fake tensors do otherwise than a GPU, and what is done about it:
- Their storages name the device "meta", so `StorageTracker` passes over FSDP's resize_; here it counts.
- LayerNorm on a fake cpu keeps its statistics in the input's dtype, CUDA in fp32: they are replaced.
- Adam's foreach adds a scalar made on the host (`lift_fresh`); a GPU has it in host memory: not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.tensor import _api, _dispatch, _redistribute

from memcalc.harness.step import TrainingStep
from memcalc.harness.watch import tensors
from memcalc.harness.watch.scopes import scopes
from memcalc.harness.watch.tracker import Alloc

#: What FSDP's groups do, by the ledger's name of it.
_STAGES = {
    "all_gather": "all_gather",
    "unshard": "copy_out",
    "reshard": "reshard",
    "reduce_scatter": "reduce_scatter",
}
_HOST_SCALAR = "aten.lift_fresh.default"
_STATISTICS = {torch.ops.aten.native_layer_norm.default}


class RankEvent(NamedTuple):
    """A storage taken (nbytes > 0) or given back (< 0).

    aten, where: of the operator that made the storage (where: the ledger's operator, `3/gate_proj`).
    phase and comm: of this event; comm is "", or what FSDP was doing for which group, such as
    "layers.3:all_gather", "root:copy_out", or between which placements DTensor was going, "S(1)->R".
    """

    nbytes: int
    storage: int
    aten: str
    phase: str
    where: str
    comm: str


class RankTracker(tensors._Tracker):  # type: ignore[no-untyped-call]
    """Follows one rank; `labels` has (phase, comm) of each of `events`.

    as_cuda: LayerNorm's statistics are a GPU's.
    """

    def __init__(self, device: str, ignored: Iterable[Tensor]) -> None:
        super().__init__(device, ignored)
        self.labels: list[tuple[str, str]] = []
        self.comm: list[str] = []
        self.as_cuda = False

    def reset(self) -> None:
        """Forget events and peaks."""
        super().reset()
        self.labels = []

    def named_events(self) -> list[RankEvent]:
        """Every event since the last reset, with what made its storage."""
        made = {alloc.storage: alloc for alloc in self.first}
        named = []
        for event, (phase, comm) in zip(self.events, self.labels, strict=True):
            if isinstance(event, Alloc):
                made[event.storage] = event
            origin = made[event.storage]
            nbytes = event.nbytes if isinstance(event, Alloc) else -event.nbytes
            named.append(RankEvent(nbytes, event.storage, origin.aten, phase, origin.where, comm))
        return named

    def __enter__(self) -> RankTracker:
        self.first = self.live_storages()
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _STATISTICS or not self.as_cuda:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return super().__torch_dispatch__(_in_fp32(func), types, args, kwargs)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._known.pop(storage._cdata, None)
        if known is not None:
            self._released(known[0])
        where = self._where()
        self._add(storage, tensors.RESIZED, where)
        self._note_peak(tensors.RESIZED, where)

    def _add(self, storage: torch.UntypedStorage, aten: str, where: str) -> None:
        if aten == _HOST_SCALAR:
            return
        before = len(self.events)
        super()._add(storage, aten, where)
        self._label(before)

    def _released(self, alloc: Alloc) -> None:
        before = len(self.events)
        super()._released(alloc)
        self._label(before)

    def _label(self, before: int) -> None:
        if len(self.events) > before:
            self.labels.append((self.phase, self.comm[-1] if self.comm else _stage()))


def _stage() -> str:
    """What FSDP is doing now, for which group."""
    group, _, name = (scopes.open[-1] if scopes.open else "").rpartition("/")
    stage = _STAGES.get(name)
    if stage is None:
        return ""
    return f"layers.{group}:{stage}" if group else f"root:{stage}"


class _in_fp32:
    """native_layer_norm with CUDA's statistics: mean and 1 / deviation in fp32."""

    def __init__(self, func: Any) -> None:
        self.func = func

    def __str__(self) -> str:
        return str(self.func)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, rstd = self.func(*args, **kwargs)
        return out, mean.float(), rstd.float()


def tracked(step: TrainingStep) -> tuple[tensors.TensorBytes, list[RankEvent]]:
    """One step under this tracker; what the harness says of it, and every event."""
    made: list[RankTracker] = []

    def make(device: str, ignored: Iterable[Tensor]) -> RankTracker:
        made.append(RankTracker(device, ignored))
        made[0].as_cuda = step.plan.kernels.device == "cuda"
        return made[0]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(tensors, "_Tracker", make))
        for module in (_api, _dispatch, _redistribute):
            redistribute = _placed(module.redistribute_local_tensor, made)
            stack.enter_context(
                mock.patch.object(module, "redistribute_local_tensor", redistribute)
            )
        found = tensors.tracked_step(step)
    return found, made[0].named_events()[: len(found.events)]


def _placed(own: Any, made: list[RankTracker]) -> Any:
    def redistribute(local: Tensor, current: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        names = ["".join(map(str, spec.placements)) for spec in (current, target)]
        made[0].comm.append("->".join(names))
        try:
            return own(local, current, target, *args, **kwargs)
        finally:
            made[0].comm.pop()

    return redistribute
