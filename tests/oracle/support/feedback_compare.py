"""The engine's updates of feedback training held against PyTorch's: what differs, in words."""

from __future__ import annotations

from typing import Any

from memcalc.engine.feedback.ends import HOLDING, SCORING, scoring, scoring_structure, updating
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.engine.states import states
from memcalc.engine.timeline import measure
from memcalc.harness.watch.tracker import Alloc
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.engine import steps, steps_of_hf
from tests.oracle.support.engine_events import engine_events
from tests.oracle.support.feedback import FeedbackRun, run_feedback
from tests.oracle.support.hf import HfRecord


def plan_for(config: dict[str, Any], run: FeedbackRun) -> Plan:
    """The plan of the same run, seen as a dispatch mode sees it."""
    model = model_from_config(config, config["model_type"])
    precision = "bf16-mixed" if run.autocast else "fp32" if run.fp32 else "bf16"
    setup = TrainingSetup(
        stack="hf",
        seq_len=run.seq,
        micro_batch_size=run.rows,
        precision=precision,
        attention=run.attention,
        recompute="full" if run.checkpoint else "none",
        peft=PeftSetup(method="lora", rank=run.lora) if run.lora else None,
    )
    plan = plan_of(model, setup, {"watched": True})
    if run.kind in SCORING:
        return scoring(plan, run.kind, run.response, run.keeps_hidden)
    return updating(plan, run.kind, run.response, reference=run.reference, beta=run.beta)


def differences(config: dict[str, Any], run: FeedbackRun, events: bool = True) -> list[str]:
    """Parameters, saved bytes, peaks of phases, and every event; empty where all agree."""
    theirs, plan = run_feedback(config, run), plan_for(config, run)
    scores = run.kind in SCORING
    traced = scoring_structure(plan) if scores else plan.structure(False)
    held = states(*traced, plan.optimizer, plan.values, plan.strategy)
    found = []
    if held.parameters != theirs.params:
        found.append(f"parameters {held.parameters}, PyTorch {theirs.params}")
    if not scores and held.gradient_bytes != theirs.param_bytes:
        found.append(f"trains {held.gradient_bytes} bytes, PyTorch {theirs.param_bytes}")
    measured = measure(*traced, plan.values)
    if not scores and measured.saved_bytes != theirs.saved:
        found.append(f"saved {measured.saved_bytes}, PyTorch {theirs.saved}")
    if measured.peak.live_bytes != theirs.peak_over_base:
        found.append(f"peak {measured.peak.live_bytes}, PyTorch {theirs.peak_over_base}")
    return found + (_events(plan, traced, theirs) if events else [])


def _events(plan: Plan, traced: Any, theirs: HfRecord) -> list[str]:
    ours = engine_events(plan, traced)
    mine = steps([-one if isinstance(one, int) else one[0] for one in ours])
    reference = steps_of_hf(theirs)
    end = plan.kernels.loss_end
    if end is not None and end.kind in (*HOLDING, *SCORING):
        mine, reference = mine[:-1], reference[:-1]  # what is still held goes after the last one
    for number, (one, other) in enumerate(zip(mine, reference, strict=False)):
        if one != other:
            made = [event for event in ours if not isinstance(event, int)]
            before = {alloc.storage for alloc in theirs.initial}
            there = [e for e in theirs.events if isinstance(e, Alloc) and e.storage not in before]
            return [
                f"allocation {number}: {one} {'/'.join(made[number][1:])}, PyTorch {other} "
                f"{there[number]}"
            ]
    if len(mine) != len(reference):
        return [f"{len(mine)} allocations, PyTorch {len(reference)}"]
    return []
