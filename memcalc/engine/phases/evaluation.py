"""Evaluation: forward passes without gradients on the training model, and logits kept between batches.

Symbols: b sequences of a batch, s positions, V vocabulary, n batches. The same blocks as in training,
traced with gradients off and without dropout. A loop that keeps every batch's logits on the GPU and
concatenates them (transformers' Trainer without eval_accumulation_steps) holds the old ones, the new
ones and their concatenation at once: 2 n b s V numbers at the last.
Source: transformers 5.23, trainer_pt_utils.py (nested_concat). Checked by: oracle/test_phases.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.build import Build, Handed
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.structure import Run, Structure, find_runs, freeze
from memcalc.engine.tensors import Tape
from memcalc.engine.timeline import Instant, measure
from memcalc.engine.trace import forward_only


class Evaluation(NamedTuple):
    """Requested bytes of an evaluation. standing: parameters, optimizer states, inputs.

    forward_bytes: the most one batch takes over them; logits_bytes: of one batch, as they are kept;
    batches: how many are kept, 0 for none.
    """

    standing_bytes: int
    forward_bytes: int
    instant: Instant
    logits_bytes: int
    batches: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most of it all: a last pass over what is kept, or the last concatenation."""
        kept = max(0, self.batches - 1) * self.logits_bytes
        together = 2 * self.batches * self.logits_bytes if self.batches > 1 else self.logits_bytes
        return self.standing_bytes + max(kept + self.forward_bytes, together if self.batches else 0)

    @property
    def peak_at(self) -> str:
        """Where that is."""
        kept = max(0, self.batches - 1) * self.logits_bytes
        concatenates = self.batches > 1 and kept + self.forward_bytes < 2 * (
            self.batches * self.logits_bytes
        )
        return "eval/kept_logits" if concatenates else f"eval/{self.instant.op}"


def evaluation(plan: Plan, batches: int = 0, logits_dtype: str = "fp32") -> Evaluation:
    """An evaluation between steps, gradients dropped, at the micro-batch of training.

    batches: how many batches of logits are kept. logits_dtype: theirs, fp32 under autocast (accelerate
    hands outputs out so).
    """
    structure, runs = evaluation_structure(plan)
    found = measure(structure, runs, plan.values)
    held = step_memory(plan)
    states = held.states
    standing = states.parameter_bytes + states.optimizer_bytes + states.master_bytes
    values = plan.values
    logits = values["b"] * values["s"] * values["V"] * ITEMSIZE[logits_dtype]
    return Evaluation(
        standing + held.input_bytes, found.peak.live_bytes, found.peak, logits, batches
    )


def evaluation_structure(plan: Plan) -> tuple[Structure, tuple[Run, ...]]:
    """The traced forward pass and loss of a plan without gradients, and its runs."""
    kinds = tuple(kind._replace(recompute="none") for kind in plan.kinds)
    runs = find_runs(kinds)
    kernels = plan.kernels._replace(use_dropout=False)
    training, _ = plan.structure(False)
    key = ("evaluation", tuple(run.pattern for run in runs), tuple(run.traced for run in runs))
    known = training.cache.get(key)
    if not isinstance(known, Structure):
        tape = Tape(device=kernels.device, watched=kernels.watched)
        few = tuple(run._replace(count=run.traced, depth=run.traced) for run in runs)
        layers = [kind for run in few for _ in range(run.count) for kind in run.pattern]
        forward_only(Build(tape, plan.config, kernels, dict(plan.dims)), layers, "")
        known = training.cache[key] = freeze(tape, few, Handed())
    return known, runs
