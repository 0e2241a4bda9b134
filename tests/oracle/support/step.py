"""Whole training steps of the harness's decoder under the tracker, on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcalc.harness.optimizers import MasterWeights
from memcalc.harness.step import OnPhase, TrainingStep
from memcalc.harness.watch.tracker import Alloc, Event, Peak, StorageTracker
from tests.oracle.support.reference import DEFAULT, How, RefConfig, build, plan_of


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
    how: How = DEFAULT,
    *,
    steps: int = 2,
    device: str = "meta",
    separate_labels: bool = False,
    quick: bool = False,
) -> StepRecord:
    """Run `steps` optimizer steps and record the last.

    quick: earlier steps update on empty gradients, without a forward and backward; the states they
    leave are the same.

    device: "meta", where LayerNorm keeps fp32 statistics and Adam's `step` scalars of foreach and
    loop stay on the host, both as on CUDA; or "fake", fake tensors on cpu (needed for fused SGD).
    """
    with ExitStack() as stack:
        if device == "fake":
            stack.enter_context(FakeTensorMode())
        where = "cpu" if device == "fake" else device
        step = _Step(plan_of(cfg, how), where)
        if separate_labels:
            step.labels = step.ids.clone()
        tracker = StorageTracker(where)
        tracker.track(step.model, step.ids, step.labels, _copies(step))
        stack.enter_context(_without_data(where))
        stack.enter_context(tracker)
        first_initial = tracker.live_storages()
        tracker.reset()
        step.record(tracker, quick and steps > 1)
        first_events = tracker.events
        for remaining in reversed(range(steps - 1)):
            tracker.reset()
            initial, live_before = tracker.live_storages(), tracker.live
            step.record(tracker, quick and remaining > 0)
    if steps == 1:
        initial, live_before = first_initial, sum(alloc.nbytes for alloc in first_initial)
    return StepRecord(
        params=sum(p.numel() for p in step.model.parameters()),
        param_bytes=sum(p.nbytes for p in step.model.parameters()),
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


def _copies(step: TrainingStep) -> list[torch.Tensor]:
    """fp32 master copies, where the optimizer keeps them."""
    masters = [o for o in step.optimizers if isinstance(o, MasterWeights)]
    return [copy for master in masters for copy in master.copies.values()]


class _Step(TrainingStep):
    """The product's step, told to the tracker; on empty gradients where only states matter."""

    saved = 0
    on_empty_gradients = False

    def record(self, tracker: StorageTracker, on_empty_gradients: bool) -> None:
        before = 0

        def on_phase(name: str) -> None:
            nonlocal before
            if name == "forward":
                before = tracker.live
            elif name == "backward":
                self.saved = tracker.live - before
            if tracker.phase != name:
                tracker.set_phase(name)

        self.on_empty_gradients = on_empty_gradients
        self.run(on_phase)

    def micro_batch(self, on_phase: OnPhase, keep_loss: bool) -> None:
        if not self.on_empty_gradients:
            super().micro_batch(on_phase, keep_loss)
            return
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)


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
