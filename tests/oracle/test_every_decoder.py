"""Every model profile as a decoder: the ledger's parameters by name and shape, and a step's tensors.

Four layers of each, on tensors without data; sizes are the published ones.
"""

from __future__ import annotations

import pytest
import torch

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.model.decoder import build, ledger_name
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import profile_names
from memcalc.inputs.training import TrainingSetup


def _plan(name: str) -> Plan:
    config = load_model(name)
    setup = TrainingSetup(
        seq_len=64,
        micro_batch_size=2,
        precision="bf16",
        num_layers=min(4, config.num_hidden_layers),
    )
    return plan_of(config, setup, {"watched": True, "norm": "hand"})


def saved_and_peak(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes that one forward of 2 x 64 tokens leaves, and the peak of its backward."""
    ids = torch.zeros(2, 64, dtype=torch.long, device="meta")
    tracker = StorageTracker("meta")
    tracker.track(model, ids)
    before = tracker.live
    with tracker:
        loss = model(ids, ids)
        saved = tracker.live - before
        tracker.set_phase("backward")
        loss.backward()
    return saved, tracker.phase_peaks["backward"].nbytes


DECODERS = [name for name in profile_names("models") if not load_model(name).is_encoder]


@pytest.mark.parametrize("name", DECODERS)
def test_a_profile_is_the_decoder_the_ledger_describes(name: str) -> None:
    plan = _plan(name)
    structure, _ = plan.structure(False)
    ledger = {
        leaf.name: tuple(d.value(plan.values) for d in leaf.shape) for leaf in structure.leaves
    }
    model = build(plan, "meta", seed=None)
    found = {ledger_name(n): tuple(p.shape) for n, p in model.named_parameters()}
    assert {n: shape for n, shape in found.items() if n in ledger} == ledger
    saved, peak = saved_and_peak(model)
    told = step_memory(plan)
    assert saved == told.saved_bytes
    moments = told.states.optimizer_bytes + told.states.master_bytes
    assert peak == told.phases["backward"] - moments
