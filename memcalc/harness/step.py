"""A whole training step of a plan's decoder: micro-batches, clipping, optimizer, clearing gradients.

Checked by: harness/test_step.py, oracle/test_step_peak.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from memcalc.engine.plan import Plan
from memcalc.harness.model.decoder import Decoder, build
from memcalc.harness.optimizers import make_optimizers, step_in_backward
from memcalc.harness.watch.scopes import op, unwatch, watch

OnPhase = Callable[[str], None]
PHASES = ("forward", "loss", "backward", "optimizer", "zero_grad")


class TrainingStep:
    """A decoder with its optimizers and one fixed batch of random tokens, ready to step.

    ids and labels (b, s) int64 are one tensor unless the setup keeps labels apart. Every micro-batch
    is the same batch, so that the loss must fall. Raises ConfigError for what cannot be run.
    """

    #: Called when backward is over, before gradients are summed over ranks (harness/ranks).
    before_sums: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, plan: Plan, device: torch.device | str, seed: int = 0) -> None:
        self.plan, self.device = plan, torch.device(device)
        self.model: Decoder = build(plan, device, seed)
        if plan.kernels.compiled:
            mode = "reduce-overhead" if plan.kernels.cuda_graphs else None
            for block in self.model.layers:
                block.compile(mode=mode)
        self.optimizers = make_optimizers(plan.optimizer, self.model)
        if plan.optimizer.in_backward:  # their hooks step them
            self.optimizers = [*step_in_backward(plan.optimizer, self.model).values()]
        shape = (plan.resolved.micro_batch_size, plan.resolved.seq_len)
        generator = torch.Generator("cpu").manual_seed(seed + 1)
        ids = torch.randint(plan.config.vocab_size, shape, generator=generator)
        self.ids = ids.to(self.device)
        self.labels = self.ids.clone() if plan.resolved.setup.separate_labels else self.ids

    def run(self, on_phase: OnPhase | None = None, keep_loss: bool = False) -> Tensor | None:
        """One optimizer step; with keep_loss the last micro-batch's loss, detached.

        on_phase hears of each phase as it begins: forward, loss and backward of every micro-batch,
        then optimizer and zero_grad. The loss ends with its micro-batch unless it is asked for.
        """
        if on_phase is None:
            return self._run(_nothing, keep_loss)
        watcher = _PhaseWatcher(on_phase)
        watch(watcher)
        try:
            return self._run(watcher.set_phase, keep_loss)
        finally:
            unwatch(watcher)

    def _run(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        loss = self.micro_batches(on_phase, keep_loss)
        on_phase("optimizer")
        if self.plan.optimizer.grad_clip:
            with op("grad_clip"):
                self.clip_gradients()
        with op("optimizer"):
            for optimizer in () if self.plan.optimizer.in_backward else self.optimizers:
                optimizer.step()
        on_phase("zero_grad")
        with op("zero_grad"):
            self.clear_gradients()
        return loss

    def micro_batches(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """Every micro-batch of the step; the last one's loss where it is to be kept."""
        accum, loss = self.plan.resolved.grad_accum_steps, None
        for number in range(accum):
            loss = self.micro_batch(on_phase, keep_loss and number == accum - 1)
        return loss

    def micro_batch(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """Forward, loss and backward of the batch."""
        on_phase("forward")
        if self.plan.kernels.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss: Tensor = self.model(self.ids, self.labels)
        on_phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() if keep_loss else None

    def clip_gradients(self) -> None:
        """Scale all gradients down to a norm of 1 where it is larger."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def other_tensors(self) -> list[Tensor]:
        """What else lives on the device between steps, beside model, states, ids and labels."""
        return []

    def clear_gradients(self) -> None:
        """Drop the gradients, or keep their memory and fill them with zeros."""
        set_to_none = self.plan.resolved.setup.set_to_none
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)
        if not self.optimizers:
            self.model.zero_grad(set_to_none=set_to_none)


class _PhaseWatcher:
    """Passes phases on to a caller; the decoder tells it where the loss begins."""

    def __init__(self, on_phase: OnPhase) -> None:
        self.phase, self.on_phase = "", on_phase

    def set_phase(self, name: str) -> None:
        self.phase = name
        self.on_phase(name)


def _nothing(name: str) -> None:
    pass
