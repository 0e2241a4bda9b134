"""Whole training steps of a reference decoder under the tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.oracle.support.optimizers import MasterWeights, make_optimizers
from tests.oracle.support.reference import RefConfig, build
from tests.oracle.support.tracker import Alloc, Event, Peak, StorageTracker, op


@dataclass(frozen=True)
class StepRecord:
    """The last of several steps; live bytes count parameters, optimizer state and token ids.

    phase_peaks: "forward" (up to the loss call), "loss", "backward", "optimizer", "zero_grad"; with
    several micro-batches each is the highest of them. saved: bytes the last micro-batch's forward
    left. live_before: at the start of the step; initial: the storages alive then. first_events
    and first_initial: the first step, when the optimizer's states come into being.
    """

    params: int
    param_bytes: int
    peak: int
    peak_at: tuple[str, str, str]
    phase_peaks: dict[str, Peak]
    live_before: int
    saved: int
    initial: list[Alloc]
    events: list[Event]
    first_initial: list[Alloc]
    first_events: list[Event]


def run_step(
    cfg: RefConfig,
    optimizer: str = "adamw",
    impl: str = "foreach",
    accum: int = 1,
    set_to_none: bool = True,
    steps: int = 2,
    device: str = "meta",
    grad_clip: float | None = None,
    separate_labels: bool = False,
    quick: bool = False,
    master: bool = False,
) -> StepRecord:
    """Run `steps` optimizer steps and record the last.

    quick: earlier steps update on empty gradients, without a forward and backward; the states they
    leave are the same. master: fp32 copies of the parameters are what the optimizer updates.

    device: "meta", where LayerNorm keeps fp32 statistics and Adam's `step` scalars of foreach and
    loop stay on the host, both as on CUDA; or "fake", fake tensors on cpu (needed for fused SGD).
    """
    with ExitStack() as stack:
        if device == "fake":
            stack.enter_context(FakeTensorMode())
        where = "cpu" if device == "fake" else device
        model = build(cfg, where)
        ids = torch.zeros(cfg.b, cfg.s, dtype=torch.long, device=where)
        labels = torch.zeros_like(ids) if separate_labels else ids
        tracker = StorageTracker(where)
        tracker.track(model, ids, labels)
        optimizers: list[Any]
        if master:
            optimizers = [MasterWeights(model, optimizer, impl)]
            tracker.track(list(optimizers[0].copies.values()))
        else:
            optimizers = list(make_optimizers(dict(model.named_parameters()), optimizer, impl))
        step = _Step(model, optimizers, ids, labels, tracker, accum, set_to_none, grad_clip)
        stack.enter_context(_without_data(where))
        stack.enter_context(tracker)
        first_initial = tracker.live_storages()
        tracker.reset()
        step.run(quick and steps > 1)
        first_events = tracker.events
        for remaining in reversed(range(steps - 1)):
            tracker.reset()
            initial, live_before = tracker.live_storages(), tracker.live
            step.run(quick and remaining > 0)
    if steps == 1:
        initial, live_before = first_initial, sum(alloc.nbytes for alloc in first_initial)
    return StepRecord(
        params=sum(p.numel() for p in model.parameters()),
        param_bytes=sum(p.nbytes for p in model.parameters()),
        peak=tracker.peak,
        peak_at=tracker.peak_at,
        phase_peaks=tracker.phase_peaks,
        live_before=live_before,
        saved=step.saved,
        initial=initial,
        events=list(tracker.events),
        first_initial=first_initial,
        first_events=first_events,
    )


def saved_bytes(cfg: RefConfig) -> int:
    """What one forward leaves for its backward, on "meta"; the step itself is not run."""
    model = build(cfg, "meta")
    ids = torch.zeros(cfg.b, cfg.s, dtype=torch.long, device="meta")
    tracker = StorageTracker("meta")
    tracker.track(model, ids)
    before = tracker.live
    with tracker:
        loss = model(ids, ids)
        saved = tracker.live - before
    del loss
    return saved


@dataclass
class _Step:
    model: nn.Module
    optimizers: list[Any]
    ids: torch.Tensor
    labels: torch.Tensor
    tracker: StorageTracker
    accum: int
    set_to_none: bool
    grad_clip: float | None
    saved: int = 0

    def run(self, on_empty_gradients: bool = False) -> None:
        if on_empty_gradients:
            for parameter in self.model.parameters():
                parameter.grad = torch.empty_like(parameter)
        else:
            for _ in range(self.accum):
                self._micro_batch()
        self.tracker.set_phase("optimizer")
        if self.grad_clip is not None:
            with op("grad_clip"):
                nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        with op("optimizer"):
            for optimizer in self.optimizers:
                optimizer.step()
        self.tracker.set_phase("zero_grad")
        with op("zero_grad"):
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=self.set_to_none)

    def _micro_batch(self) -> None:
        self.tracker.set_phase("forward")
        before = self.tracker.live
        loss = self.model(self.ids, self.labels)
        self.saved = self.tracker.live - before
        self.tracker.set_phase("backward")
        loss.backward()


@contextmanager
def _without_data(device: str) -> Iterator[None]:
    """Let optimizers run on tensors without data.

    Scalars read back are 1.0 (Adafactor reads norms), and fused kernels accept the device: "meta"
    tensors have them, though torch's own check refuses.
    """
    supported = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with (
        mock.patch.object(torch.Tensor, "item", lambda self: 1.0),
        mock.patch(supported, lambda: [device]),
    ):
        yield
