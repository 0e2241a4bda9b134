"""Which values of an option of a training setup are tried, and the solution over them.

micro-batch: 1, 2, 3, ...; with a stated global batch its divisors a rank can have. seq: multiples of
the step, and of what context and sequence parallelism cut a sequence into. gpus: whole copies of the
model (tp x pp x cp), within a node any number of them, beyond it whole nodes; with a stated global
batch those that split it. layers: up to the model's own; models whose blocks are all alike go on.
Checked by: unit/test_solve.py, cli/test_solve.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import lcm
from typing import Final, NamedTuple, Protocol

from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.inputs.model import MAX_LAYERS
from memcalc.inputs.parallel import MOST_GPUS, divisors, with_degrees
from memcalc.planning.cases import Case, Refused, Tell, point_of
from memcalc.planning.solve.answer import Solution, Trial
from memcalc.planning.solve.boundary import boundary

MOST_SAMPLES: Final = 1 << 24
MOST_POSITIONS: Final = 1 << 27
#: Beyond this many GPUs states divided over them hardly fall.
_MOST_RANKS: Final = 1 << 16
_NODE: Final = 8

#: The case of one value.
Make = Callable[[int], Case | Refused]


class Trials:
    """Estimates of one question by value, each made once."""

    def __init__(self, make: Make, tell: Tell | None = None) -> None:
        self._make, self._tell = make, tell
        self._quick: dict[int, Trial] = {}
        self._exact: dict[int, Trial] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """Estimates without the allocator's replay, and with it."""
        return len(self._quick), len(self._exact)

    def quick(self, value: int) -> bool | None:
        """Whether what tensors take fits; None where the estimate refuses the value."""
        if value not in self._quick:
            self._quick[value] = self._trial(value, False)
        return self._quick[value].fits

    def exact(self, value: int) -> bool | None:
        """The verdict `estimate` gives."""
        return self.at(value).fits

    def at(self, value: int) -> Trial:
        """The trial of a value."""
        if value not in self._exact:
            self._exact[value] = self._trial(value, True)
        return self._exact[value]

    def _trial(self, value: int, allocator: bool) -> Trial:
        point = point_of(self._make(value), allocator)
        if self._tell is not None:
            done = sum(self.counts) + 1
            self._tell(f"estimates, now at {value:,}", done, max(20, done))
        result = point.result
        fits = None if result is None else result.fits
        return Trial(value, point.case.command, fits, result, point.reason)


class Question(NamedTuple):
    """What is asked: the option's name, its candidates, whether more of it needs more memory."""

    what: str
    candidates: Sequence[int]
    rising: bool = True
    step: int | None = None


class Tried(Protocol):
    """Estimates of one question by value: of training (Trials) or of serving."""

    @property
    def counts(self) -> tuple[int, int]:
        """Quick and exact estimates made."""

    def quick(self, value: int) -> bool | None:
        """The quick verdict."""

    def exact(self, value: int) -> bool | None:
        """The exact verdict."""

    def at(self, value: int) -> Trial:
        """The exact trial."""


def solve(question: Question, trials: Tried) -> Solution:
    """The extreme value that fits. Raises ConfigError where no candidate can be priced at all."""
    candidates = question.candidates
    found, failing, also = boundary(candidates, trials.quick, trials.exact, question.rising)
    if found is None and failing is None:
        raise ConfigError(trials.at(candidates[0]).reason or f"{question.what}: no valid value")
    value = None if found is None else trials.at(candidates[found])
    reason = None
    if failing is None:
        assert found is not None
        reason = _no_failing(question, trials, found)
    first = None if failing is None else trials.at(candidates[failing])
    others = tuple(candidates[at] for at in also)
    return Solution(
        what=question.what, value=value, failing=first, step=question.step, reason=reason,
        also=others, estimates=trials.counts, notes=tuple(_notes(question, value, first, others)),
    )  # fmt: skip


def _no_failing(question: Question, trials: Tried, found: int) -> str:
    """Why no candidate beyond the answer fails."""
    if not question.rising:
        return "the smallest valid number fits"
    if found + 1 < len(question.candidates):
        refused = trials.at(question.candidates[found + 1]).reason
        return refused or "no larger value was tried"
    return "no larger value is valid"


def _notes(
    question: Question, value: Trial | None, failing: Trial | None, also: Iterable[int]
) -> Iterable[str]:
    listed = ", ".join(f"{one:,}" for one in also)
    if listed and failing is not None:
        yield (
            f"not monotone: {failing.value:,} does not fit, but {listed} would; the answer is the "
            "value whose next one fails first"
        )
    if value is not None and value.result is not None and value.result.verdict == "tight":
        yield f"tight at {question.what} {value.value:,}: the upper end of its band does not fit"
    last = failing.result if failing is not None else None
    if question.what == "gpus" and value is None and isinstance(last, Estimate):
        layout = last.setup
        if not layout["fsdp"] and not layout["zero"]:
            yield (
                "without sharding every rank holds all states, however many GPUs there are: try "
                "--fsdp, or --zero with stack deepspeed or megatron"
            )


def micro_batches(case: Case) -> Question:
    """Micro-batches to try. Raises ConfigError where the setup leaves no choice."""
    setup = case.setup
    if setup.global_batch is None:
        return Question("micro-batch", range(1, MOST_SAMPLES + 1), step=1)
    if setup.grad_accum_steps is not None:
        raise ConfigError(
            "solve micro-batch: got --global-batch and --grad-accum, which give it; rule: one of them"
        )
    copies = with_degrees(case.parallel).copies
    if setup.global_batch % copies:
        raise ConfigError(
            f"global-batch: got {setup.global_batch}; rule: a multiple of {copies} copies; nearest "
            f"valid: {max(1, round(setup.global_batch / copies)) * copies}"
        )
    return Question("micro-batch", divisors(setup.global_batch // copies))


def sequences(case: Case, step: int, trials: Trials) -> Question:
    """Sequence lengths to try: multiples of the step and of what the layout cuts a sequence into."""
    pieces = 16 * case.parallel.tp * case.parallel.cp
    grain = next((g for g in divisors(pieces) if trials.quick(3 * g) is not None), 1)
    every = lcm(step, grain)
    return Question("seq", range(every, MOST_POSITIONS + 1, every), step=every)


def gpu_counts(case: Case) -> Question:
    """Numbers of GPUs to try, fewest first."""
    layout, cluster = case.parallel, case.device.cluster
    inner = layout.inner
    node = layout.gpus_per_node or (_NODE if cluster is None else cluster.gpus_per_node)
    most = min(_MOST_RANKS, MOST_GPUS)
    if cluster is not None and cluster.gpus is not None:
        most = min(most, cluster.gpus)
    whole = lcm(inner, node)
    found = [*range(inner, node + 1, inner), *range(whole, max(most, whole) + 1, whole)]
    batch = case.setup.global_batch
    if batch is not None:
        found = [gpus for gpus in found if batch % (gpus // inner) == 0]
    if not found:
        raise ConfigError(f"gpus: got global-batch {batch}; rule: a multiple of the copies")
    return Question("gpus", sorted(set(found)), rising=False)


def depths(case: Case) -> Question:
    """Numbers of blocks to try."""
    config = case.config
    own, alike = config.num_hidden_layers, not config.layer_types and config.moe is None
    if config.num_encoder_layers or not alike:
        return Question("layers", range(1, own + 1), step=1)
    return Question("layers", range(1, max(own, MAX_LAYERS) + 1), step=1)
