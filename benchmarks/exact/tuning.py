"""Cases of fine-tuning beside PEFT, of its ranks, and of updates of feedback training beside TRL's losses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.exact.case import Answer, Case, Written, counted, drawn_by, ways_of
from memcalc.accuracy import textbook
from memcalc.engine.feedback.ends import SCORING, scoring_structure
from memcalc.engine.memory import step_memory
from memcalc.engine.phases.saving import saving
from memcalc.engine.states import states
from memcalc.engine.timeline import measure
from tests.oracle import test_feedback, test_peft, test_peft_ranks, test_qlora, test_saving
from tests.oracle.support import feedback_compare
from tests.oracle.support.feedback import FeedbackRun, run_feedback
from tests.oracle.support.peft_compare import plan_for
from tests.oracle.support.peft_models import run_peft
from tests.oracle.support.rank_peft import TunedRank
from tests.oracle.support.tiny import TINY

SAVED, PEAK = "saved for backward", "peak over states"
ADAPTERS, PACKED = "fine-tuning", "fine-tuning, packed base"
RANKS, MERGING = "fine-tuning", "merging adapters: peak over what stands"
UPDATES, PASS = "feedback training", "feedback training: peak of a pass without gradients"
_PHASES = ("forward", "loss", "backward")
#: A test of whole steps, which has another comparison.
_STEPS = "test_whole_steps"


def _tests(module: Any, *without: str) -> list[str]:
    return [n for n in vars(module) if n.startswith("test_") and not n.startswith(without)]


def adapters() -> Iterator[Case]:
    """What tests/oracle/test_peft.py holds against PEFT: micro-batches of every method but packed ones.

    And PEFT's merging of adapters, of test_saving.py.
    """
    yield from _tuned_cases(ADAPTERS, test_peft)
    for dtype in ("fp32", "bf16"):
        run, setup = test_saving.to_merge(dtype)
        plan = plan_for(TINY["llama"], run, setup)
        yield Case(
            f"merging {dtype}", f"llama lora rank {setup.rank} {dtype}",
            lambda plan=plan: {MERGING: saving(plan, "merged").gathered_bytes},
            lambda run=run: {MERGING: test_saving.merged(run)},
        )  # fmt: skip


def packed() -> Iterator[Case]:
    """What tests/oracle/test_qlora.py holds against PEFT over bitsandbytes' linears."""
    return _tuned_cases(PACKED, test_qlora)


def _tuned_cases(kind: str, module: Any) -> Iterator[Case]:
    drawn = drawn_by(module, "differences", *_tests(module, _STEPS))
    for number, (config, run, setup) in enumerate(drawn):
        how = (kind, config, run, setup)
        said = (
            f"{config['model_type']} {setup.method} rank {setup.rank} {run.packed or run.base}"
            f"{' autocast' if run.autocast else ''} {run.checkpoint} {run.attention}"
        )
        if run.packed:
            said += f", {' '.join(setup.targets) or 'default targets'}, {setup.dtype or 'fp32'}"
        yield Case(
            f"{number}", said, partial(_tuned, *how), partial(_tuned_by_peft, *how),
            partial(_tuned_by_hand, *how),
        )  # fmt: skip


def _both(kind: str, kept: float, peak: float) -> Answer:
    return {f"{kind}: {SAVED}": kept, f"{kind}: {PEAK}": peak}


def _tuned(kind: str, config: dict[str, Any], run: Any, setup: Any) -> Answer:
    plan = plan_for(config, run, setup)
    told = measure(*plan.structure(False), plan.values)
    peak = max(told.phases[phase].live_bytes for phase in _PHASES if phase in told.phases)
    return _both(kind, told.saved_bytes, peak)


def _tuned_by_peft(kind: str, config: dict[str, Any], run: Any, setup: Any) -> Answer:
    seen = run_peft(config, run)
    peak = max(seen.phase_peaks[phase].nbytes for phase in _PHASES if phase in seen.phase_peaks)
    return _both(kind, seen.saved, peak - seen.base)


def _tuned_by_hand(kind: str, config: dict[str, Any], run: Any, setup: Any) -> Answer:
    plan = plan_for(config, run, setup)
    kept = textbook.saved_bytes(plan.config, plan.resolved.setup)
    held = states(*plan.structure(False), plan.optimizer, plan.values, plan.strategy)
    wide = 2 if plan.kernels.param_dtype == "bf16" and setup.dtype else 4
    return _both(kind, kept, kept + wide * held.trainable_parameters)


def tuned_ranks() -> Iterator[Case]:
    """Whole steps of one rank of several, as tests/oracle/test_peft_ranks.py holds them."""
    for name, run in test_peft_ranks.RUNS.items():
        yield Case(
            f"{RANKS}: {name}",
            f"{run.config['model_type']}, {run.base}, dp{run.layout.dp}: {name}",
            lambda run=run: {RANKS: step_memory(run.plan()).peak_bytes},
            partial(_rank_by_torch, run), partial(_rank_by_hand, run),
        )  # fmt: skip


def _rank_by_torch(run: TunedRank) -> Answer:
    trace, buffers = run.run()
    return {RANKS: trace.peak - buffers}


def _rank_by_hand(run: TunedRank) -> Answer:
    plan = run.plan()
    trained = step_memory(plan).states.trainable_parameters
    setup, count = plan.resolved.setup, counted(plan.config)
    peak = textbook.peak_bytes(plan.config, setup, count, ways_of(run.layout), trained)
    return {RANKS: peak}


def feedback() -> Iterator[Case]:
    """Updates and passes without gradients of tests/oracle/test_feedback.py."""
    tests = _tests(test_feedback, "test_a_reference_inside")
    for number, (config, run) in enumerate(drawn_by(test_feedback, "differences", *tests)):
        words = [
            f"{config['model_type']} {run.kind} {run.rows} x {run.seq}, of them {run.response}",
            "autocast" if run.autocast else "fp32" if run.fp32 else "bf16",
            *([f"LoRA {run.lora}"] if run.lora else []),
            *(["recomputed"] if run.checkpoint else []),
            *([f"reference: {run.reference}"] if run.kind == "dpo" else []),
        ]
        yield Case(
            f"{number}", ", ".join(words), partial(_update, config, run),
            partial(_update_by_torch, config, run), partial(_update_by_hand, config, run),
        )  # fmt: skip


def _update(config: dict[str, Any], run: FeedbackRun) -> Answer:
    plan, scores = feedback_compare.plan_for(config, run), run.kind in SCORING
    told = measure(*(scoring_structure(plan) if scores else plan.structure(False)), plan.values)
    peak = told.peak.live_bytes
    return {PASS: peak} if scores else _both(UPDATES, told.saved_bytes, peak)


def _update_by_torch(config: dict[str, Any], run: FeedbackRun) -> Answer:
    seen = run_feedback(config, run)
    if run.kind in SCORING:
        return {PASS: seen.peak_over_base}
    return _both(UPDATES, seen.saved, seen.peak_over_base)


def _update_by_hand(config: dict[str, Any], run: FeedbackRun) -> Written:
    """Activations of the models that train and their gradients; of a pass that keeps nothing no form says."""
    if run.kind in SCORING:
        return {}
    plan = feedback_compare.plan_for(config, run)
    kept = textbook.saved_bytes(plan.config, plan.resolved.setup)
    kept *= 2 if run.kind == "joint" else 1  # policy and value model
    held = states(*plan.structure(False), plan.optimizer, plan.values, plan.strategy)
    return _both(UPDATES, kept, kept + held.gradient_bytes)
