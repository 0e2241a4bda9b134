"""Evaluation: forward passes without gradients on the training model, and logits kept between batches.

Symbols: b sequences of a batch, s positions, V vocabulary, n batches. The same blocks as in training,
traced with gradients off and without dropout; what a rank gathers of others is gathered for a forward
pass alone. FSDP2's root (and, where blocks are kept, they) stays gathered from the first batch on. A loop
that keeps every batch's logits on the GPU and concatenates them (transformers' Trainer without
eval_accumulation_steps) holds the old ones, the new ones and their concatenation at once: 2 n b s V
numbers at the last. Ranks that split the batch also gather each batch's logits from all of them.
Source: transformers 5.23, trainer_pt_utils.py (nested_concat), trainer.py (evaluation_loop: gather_function);
PyTorch 2.13, torch/distributed/fsdp/_fully_shard. Checked by: oracle/test_phases.py,
oracle/test_phases_ranks.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.build import Build, Handed
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Injector
from memcalc.engine.kernels import Kernels
from memcalc.engine.memory import GATHERED_OPS
from memcalc.engine.parallel.data.ddp import BucketViews
from memcalc.engine.parallel.deepspeed.zero_buckets import Buckets
from memcalc.engine.parallel.deepspeed.zero_gather import Gathers
from memcalc.engine.phases.standing import standing
from memcalc.engine.plan import Plan
from memcalc.engine.states import multiplicity
from memcalc.engine.structure import Run, Structure, find_runs, freeze
from memcalc.engine.tensors import Tape
from memcalc.engine.timeline import Instant, measure
from memcalc.engine.trace import forward_only


class Evaluation(NamedTuple):
    """Requested bytes of an evaluation. standing_bytes: what is there between steps.

    forward_bytes: the most one batch takes over them; logits_bytes: of one batch, as they are kept;
    batches: how many are kept, 0 for none. gathered_bytes: parameters of other ranks that stay between
    batches. ranks: whose logits are joined.
    """

    standing_bytes: int
    forward_bytes: int
    instant: Instant
    logits_bytes: int
    batches: int = 0
    gathered_bytes: int = 0
    ranks: int = 1

    @property
    def _kept(self) -> int:
        """Logits of the batches before the last, of all ranks."""
        return max(0, self.batches - 1) * self.logits_bytes * self.ranks

    @property
    def _together(self) -> int:
        """The last join: all ranks' logits of it, those before, and everything in one."""
        if not self.batches:
            return 0
        every = self.logits_bytes * self.ranks
        total = 2 * self.batches * every if self.batches > 1 else every
        return total + self.gathered_bytes

    @property
    def peak_bytes(self) -> int:
        """The most of it all: a last pass over what is kept, or the last concatenation."""
        return self.standing_bytes + max(self._kept + self.forward_bytes, self._together)

    @property
    def peak_at(self) -> str:
        """Where that is."""
        joins = self.batches > 1 and self._kept + self.forward_bytes < self._together
        return "eval/kept_logits" if joins else f"eval/{self.instant.op}"


def evaluation(plan: Plan, batches: int = 0, logits_dtype: str = "fp32") -> Evaluation:
    """An evaluation between steps, gradients dropped, at the micro-batch of training.

    batches: how many batches of logits are kept. logits_dtype: theirs, fp32 under autocast (accelerate
    hands outputs out so).
    """
    structure, runs = evaluation_structure(plan)
    found = measure(structure, runs, plan.values)
    layout = plan.parallel
    ranks = layout.copies if batches else 1
    return Evaluation(
        sum(standing(plan).values()),
        found.peak.live_bytes,
        found.peak,
        logits_elements(plan) * ITEMSIZE[logits_dtype],
        batches,
        _stays_gathered(structure, runs, plan),
        ranks,
    )


def logits_elements(plan: Plan) -> int:
    """Numbers of a batch's logits on a rank: (b, s, V), of an encoder-decoder (b, u, V)."""
    values = plan.values
    positions = values["u" if plan.config.is_encoder_decoder else "s"]
    return values["b"] * positions * values["V"]


def evaluation_structure(plan: Plan) -> tuple[Structure, tuple[Run, ...]]:
    """The traced forward pass and loss of a plan without gradients, and its runs."""
    kinds = tuple(kind._replace(recompute="none") for kind in plan.kinds)
    injectors = injectors_of(plan)
    depth = {"depth": plan.strategy.depth} if plan.strategy.depth else {}
    runs = find_runs(kinds, **depth)
    kernels = _evaluating(plan.kernels)
    training, _ = plan.structure(False)
    patterns = tuple((run.pattern, run.traced) for run in runs)
    key = ("evaluation", patterns, injectors)
    known = training.cache.get(key)
    if not isinstance(known, Structure):
        tape = Tape(device=kernels.device, watched=kernels.watched)
        few = tuple(run._replace(count=run.traced, depth=run.traced) for run in runs)
        layers = [kind for run in few for _ in range(run.count) for kind in run.pattern]
        build = Build(tape, plan.config, kernels, dict(plan.dims), injectors=injectors)
        forward_only(build, layers, "")
        known = training.cache[key] = freeze(tape, few, Handed())
    return known, runs


def _evaluating(kernels: Kernels) -> Kernels:
    """The kernels of a model in evaluation mode."""
    adapter = kernels.adapter
    if adapter is not None:
        adapter = adapter._replace(dropout=False)
    return kernels._replace(use_dropout=False, adapter=adapter)


def injectors_of(plan: Plan) -> tuple[Injector, ...]:
    """What a strategy puts on the timeline of a forward pass: its gathers."""
    found: list[Injector] = []
    for one in plan.strategy.injectors(plan):
        if isinstance(one, Gathers):
            found.append(one.without_backward())
        elif not isinstance(one, Buckets | BucketViews):
            found.append(one)
    return tuple(found)


def _stays_gathered(structure: Structure, runs: tuple[Run, ...], plan: Plan) -> int:
    """Parameters of other ranks that are whole when the forward pass is over."""
    times = multiplicity(runs)
    labels = (
        (storage, structure.labels[structure.labels_of[storage]]) for storage in structure.kept
    )
    return sum(
        structure.sizes[storage].value(plan.values) * times[label.block]
        for storage, label in labels
        if label.op in GATHERED_OPS
    )
