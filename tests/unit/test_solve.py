"""solve: the place where a verdict changes, on made-up verdicts; which values are tried."""

from __future__ import annotations

import random

import pytest

from memcalc import TrainingSetup, load_model
from memcalc.engine.device_side import device_of
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.planning.cases import Case, Refused
from memcalc.planning.solve.boundary import boundary
from memcalc.planning.solve.training import (
    Question,
    Trials,
    gpu_counts,
    micro_batches,
    sequences,
    solve,
)


class _Verdicts:
    """Verdicts up to a limit, counted; the quick ones hold a little longer."""

    def __init__(self, limit: int, slack: int = 0, valid: int = 1 << 40) -> None:
        self.limit, self.slack, self.valid, self.count = limit, slack, valid, 0

    def quick(self, value: int) -> bool | None:
        return None if value > self.valid else value <= self.limit + self.slack

    def exact(self, value: int) -> bool | None:
        self.count += 1
        return None if value > self.valid else value <= self.limit


def _case(setup: TrainingSetup | None = None, layout: ParallelPlan | None = None) -> Case:
    config = load_model("gpt2")
    device = device_of("h100-80gb")
    plan = layout or ParallelPlan()
    return Case({}, "", "gpt2", config, setup or TrainingSetup(), plan, {}, device)


@pytest.mark.parametrize("number", range(60))
def test_the_boundary_of_rising_values_is_found(number: int) -> None:
    draw = random.Random(number)
    limit, slack = draw.randint(1, 5000), draw.choice((0, 0, 1, 7, 300))
    verdicts = _Verdicts(limit, slack)
    found = boundary(range(1, 1 << 20), verdicts.quick, verdicts.exact, True)
    assert (found.found, found.failing, found.also) == (limit - 1, limit, ())
    assert verdicts.count <= 8 + 4 * slack.bit_length()


@pytest.mark.parametrize("number", range(60))
def test_the_boundary_of_falling_values_is_found(number: int) -> None:
    draw = random.Random(number)
    least, slack = draw.randint(1, 5000), draw.choice((0, 0, 1, 7, 300))
    found = boundary(
        range(1, 8192), lambda v: v >= least - slack, lambda v: v >= least, rising=False
    )
    assert found.found == least - 1
    assert found.failing == (None if least == 1 else least - 2)


def test_nothing_that_fits_names_the_first_as_failing() -> None:
    verdicts = _Verdicts(0)
    assert boundary(range(1, 100), verdicts.quick, verdicts.exact, True) == (None, 0, ())
    assert boundary(range(1, 100), lambda v: False, lambda v: False, False) == (None, 98, ())


def test_refused_values_end_the_row_and_are_no_failing_ones() -> None:
    verdicts = _Verdicts(5000, valid=1024)
    assert boundary(range(1, 1 << 20), verdicts.quick, verdicts.exact, True) == (1023, None, ())
    assert boundary(range(1, 9), lambda v: None, lambda v: None, True) == (None, None, ())


def test_values_that_fit_again_are_named() -> None:
    found = boundary(range(1, 1000), lambda v: v <= 40, lambda v: v <= 30 or v == 34, True)
    assert (found.found, found.failing) == (29, 30)
    assert found.also == (33,)


def test_a_refused_value_between_is_passed_over() -> None:
    def verdict(value: int) -> bool | None:
        return None if value % 3 else value <= 30

    found = boundary(range(1, 1000), lambda v: v <= 31, verdict, True)
    assert found.found == 29 and found.failing == 32


def test_a_stated_batch_is_cut_by_its_divisors() -> None:
    case = _case(TrainingSetup(global_batch=48), ParallelPlan(gpus=4))
    assert list(micro_batches(case).candidates) == [1, 2, 3, 4, 6, 12]
    with pytest.raises(ConfigError, match="which give it"):
        micro_batches(_case(TrainingSetup(global_batch=48, grad_accum_steps=2)))


def test_gpus_are_whole_copies_and_beyond_a_node_whole_nodes() -> None:
    counts = gpu_counts(_case(layout=ParallelPlan(tp=2, fsdp=True))).candidates
    assert list(counts[:6]) == [2, 4, 6, 8, 16, 24]
    three = gpu_counts(_case(layout=ParallelPlan(pp=3))).candidates
    assert list(three[:4]) == [3, 6, 24, 48]
    batched = gpu_counts(_case(TrainingSetup(global_batch=12), ParallelPlan(fsdp=True))).candidates
    assert list(batched) == [1, 2, 3, 4, 6]


def test_sequences_are_multiples_of_what_a_layout_cuts_them_into() -> None:
    layout = ParallelPlan(tp=2, sp=True, gpus=2)

    def make(seq: int) -> Case | Refused:
        return _case(TrainingSetup(seq_len=seq, stack="megatron"), layout)

    question = sequences(_case(layout=layout), 3, Trials(make))
    assert question.step == 6 and question.candidates[0] == 6


def test_a_question_without_a_valid_value_is_an_error() -> None:
    trials = Trials(lambda value: Refused({}, "", "gpus: got 3; rule: none"))
    with pytest.raises(ConfigError, match="gpus: got 3"):
        solve(Question("gpus", range(1, 5), rising=False), trials)
