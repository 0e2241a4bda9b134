"""The engine's estimate of a fine-tuning run held against PEFT: what differs, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.states import states
from memcalc.engine.timeline import measure
from memcalc.harness.watch.tracker import Alloc
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.engine import steps
from tests.oracle.support.engine_events import engine_events
from tests.oracle.support.peft_models import PeftRecord, PeftRun, run_peft


def plan_for(config: dict[str, Any], run: PeftRun, setup: PeftSetup) -> Plan:
    """The plan of the same run, seen as a dispatch mode sees it."""
    model = model_from_config(config, config["model_type"])
    precision = "bf16" if run.base == "bf16" else "fp32"
    if run.autocast:
        precision = "bf16-mixed"
    training = TrainingSetup(
        stack="hf",
        seq_len=run.seq,
        target_seq_len=run.target or None,
        micro_batch_size=run.batch,
        precision=precision,
        attention=run.attention,
        recompute="none" if run.checkpoint == "none" else "full",
        reentrant=run.checkpoint == "reentrant",
        optimizer_impl=run.impl,
        peft=replace(setup, weights="bf16") if run.autocast and run.base == "bf16" else setup,
    )
    return plan_of(model, training, {"watched": True})


def differences(config: dict[str, Any], run: PeftRun, setup: PeftSetup) -> list[str]:
    """Parameters, saved bytes and every event of a micro-batch; empty where all agree."""
    theirs = run_peft(config, run)
    plan = plan_for(config, run, setup)
    traced = plan.structure(False)
    held = states(*traced, plan.optimizer, plan.values, plan.strategy)
    found = []
    if held.parameters != theirs.params and not run.packed:  # whose codes PyTorch counts
        found.append(f"parameters {held.parameters}, PEFT {theirs.params}")
    if held.parameter_bytes != theirs.param_bytes:
        found.append(f"bytes of parameters {held.parameter_bytes}, PEFT {theirs.param_bytes}")
    if held.trainable_parameters != theirs.trainable:
        found.append(f"trainable {held.trainable_parameters}, PEFT {theirs.trainable}")
    if run.autocast:
        return [*found, *_peaks(plan, theirs)]
    ours = engine_events(plan, traced)
    amounts = [event if isinstance(event, int) else event[0] for event in _signed(ours)]
    flags = 1 if run.packed == "int8" else 0  # bytes of a flag, of which LLM.int8 has its own
    mine = steps([size for size in amounts if abs(size) > flags])
    reference = steps([size for size in _amounts(theirs) if abs(size) > flags])
    for number, (one, other) in enumerate(zip(mine, reference, strict=False)):
        if one != other:
            found.append(
                f"allocation {number}: {one} {_where(ours, number)}, PEFT {other} "
                f"{_label(theirs, number)}"
            )
            break
    if len(mine) != len(reference):
        found.append(f"{len(mine)} allocations, PEFT {len(reference)}")
    return found


def step_differences(config: dict[str, Any], run: PeftRun, setup: PeftSetup) -> list[str]:
    """Of a second optimizer step: states, peaks of every phase over what exists before it."""
    theirs = run_peft(config, run)
    plan = plan_for(config, run, setup)
    ours = step_memory(plan)
    held = ours.states
    base = held.parameter_bytes + held.optimizer_bytes + held.master_bytes + ours.input_bytes
    found = []
    if held.optimizer_bytes != theirs.optimizer_bytes:
        found.append(f"optimizer {held.optimizer_bytes}, PEFT {theirs.optimizer_bytes}")
    if ours.saved_bytes != theirs.saved:
        found.append(f"saved {ours.saved_bytes}, PEFT {theirs.saved}")
    for phase, size in ours.phases.items():
        if phase not in theirs.phase_peaks:  # nothing was allocated in it
            continue
        mine, other = size - base, theirs.phase_peaks[phase].nbytes - theirs.base
        if mine != other:
            found.append(f"{phase} {mine} at {ours.instants[phase].name}, PEFT {other}")
    return found


def _peaks(plan: Plan, theirs: PeftRecord) -> list[str]:
    """Saved bytes and the peak of each phase: a CPU's autocast casts the same in another order."""
    measured = measure(*plan.structure(False), plan.values)
    found = []
    if measured.saved_bytes != theirs.saved:
        found.append(f"saved {measured.saved_bytes}, PEFT {theirs.saved}")
    for phase in ("forward", "loss", "backward"):
        mine, other = (
            measured.phases[phase].live_bytes,
            theirs.phase_peaks[phase].nbytes - theirs.base,
        )
        if mine != other:
            found.append(f"{phase} {mine} at {measured.phases[phase].name}, PEFT {other}")
    return found


def _signed(events: list[tuple[int, str, str] | int]) -> list[tuple[int, str, str] | int]:
    return [-event if isinstance(event, int) else event for event in events]


def _where(events: list[tuple[int, str, str] | int], number: int) -> str:
    made = [event for event in events if not isinstance(event, int)]
    return "/".join(made[number][1:])


def _amounts(record: PeftRecord) -> list[int]:
    before = {alloc.storage for alloc in record.initial}
    return [
        event.nbytes if isinstance(event, Alloc) else -event.nbytes
        for event in record.events
        if event.storage not in before
    ]


def _label(record: PeftRecord, number: int) -> str:
    before = {alloc.storage for alloc in record.initial}
    made = [e for e in record.events if isinstance(e, Alloc) and e.storage not in before]
    return str(made[number])
