"""save_on_cpu around the forward pass: bytes left on the GPU and on the host, against PyTorch's hooks.

The hooks stand in for torch.autograd.graph.save_on_cpu, which cannot copy tensors without data: pack
lets go of the tensor (by way of a dense copy where it is strided), unpack makes a new one.
"""

from __future__ import annotations

import random

import pytest
import torch

from memcalc.engine.host_memory import host_of
from memcalc.engine.make_plan import divided
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.step import OnPhase, TrainingStep
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.stacks import load_stack
from tests.oracle.support.compare import How, plan_of, random_config
from tests.oracle.support.reference import RefConfig
from tests.oracle.support.step import StepRecord, run_step

CASES = [
    (recompute, precision)
    for recompute in ("none", "full", "reentrant", "selective")
    for precision in ("bf16", "mixed", "fp32")
]


def engine(cfg: RefConfig) -> Plan:
    layout = with_degrees(ParallelPlan(offload="activations"))
    return divided(plan_of(cfg, How()), layout, load_stack("torch"))


def torch_step(cfg: RefConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[StepRecord, int]:
    """PyTorch's step, and the bytes that one micro-batch's forward has packed."""
    packed = [0]

    def pack(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
        if not tensor.is_contiguous():
            tensor.detach().contiguous()
        packed[0] += tensor.numel() * tensor.element_size()
        return tensor.shape, tensor.dtype, tensor.device

    def unpack(kept: tuple[torch.Size, torch.dtype, torch.device]) -> torch.Tensor:
        return torch.empty(kept[0], dtype=kept[1], device=kept[2])

    def micro_batch(self: TrainingStep, on_phase: OnPhase, keep_loss: bool) -> None:
        packed[0] = 0
        on_phase("forward")
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss = self.model(self.ids, self.labels)
        on_phase("backward")
        loss.backward()

    monkeypatch.setattr(TrainingStep, "micro_batch", micro_batch)
    return run_step(cfg, quick=True), packed[0]


@pytest.mark.parametrize(("recompute", "precision"), CASES)
def test_bytes_on_both_sides_are_pytorchs(recompute, precision, monkeypatch):
    rng = random.Random(f"saved on cpu {recompute} {precision}")
    for family in ("llama", "gpt2"):
        cfg = random_config(rng, family=family, recompute=recompute, precision=precision)
        plan = engine(cfg)
        ours = step_memory(plan)
        theirs, packed = torch_step(cfg, monkeypatch)
        assert host_of(plan, 8).activations == packed
        assert ours.saved_bytes == theirs.saved
        for phase in ("forward", "loss", "backward"):
            assert ours.phases[phase] == theirs.phase_peaks[phase].nbytes, (phase, cfg)
