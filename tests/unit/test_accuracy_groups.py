"""Groups of rows: sizes, counts, what is fitted, what the promise covers, what is an outlier."""

from __future__ import annotations

import pytest

from memcalc.accuracy import groups
from memcalc.accuracy.groups import count_class, gpu_type, is_promised, outliers, size_class
from memcalc.accuracy.pricing import Pair
from memcalc.accuracy.rows import published_rows, read_rows
from tests.unit.accuracy_rows import row


def _pair(predicted: float = 110.0, parameters: int | None = None, **cells: object) -> Pair:
    kind = "step_s" if "step_s" in cells else "tokens_per_s_per_gpu"
    return Pair(row(**cells), "throughput", kind, predicted, 100.0, True, (), parameters)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (None, "not stated"), (999_999_999, "below 1 B"), (10**9, "1 to 10 B"),
        (10**10, "10 to 100 B"), (10**11, "100 B and more"),
    ],
)  # fmt: skip
def test_sizes_are_classed_by_parameters(parameters: int | None, named: str) -> None:
    assert size_class(_pair(parameters=parameters)) == named


@pytest.mark.parametrize(
    ("gpus", "named"),
    [
        (None, "not stated"), (1, "1"), (2, "2 to 8"), (8, "2 to 8"), (9, "9 to 64"),
        (512, "65 to 512"), (513, "more than 512"),
    ],
)  # fmt: skip
def test_runs_are_classed_by_their_gpus(gpus: int | None, named: str) -> None:
    assert count_class(row(n_gpus=gpus)) == named


def test_the_gpu_is_named_as_the_row_names_it() -> None:
    assert gpu_type(_pair(gpu="h100-96gb-500w")) == "h100-96gb-500w"
    assert gpu_type(_pair()) == "not stated"


_GOOD = {"gpu": "a100-80gb-sxm", "priceable": "yes", "confidence": "high", "run": "train"}


@pytest.mark.parametrize(
    ("changed", "promised"),
    [
        ({}, True), ({"run": None}, True), ({"run": "finetune"}, True), ({"gpu": "b200-180gb"}, True),
        ({"run": "decode"}, False), ({"gpu": "h100-96gb-500w"}, False), ({"gpu": "h200-141gb"}, False),
        ({"gpu": None}, False), ({"priceable": "partly"}, False), ({"confidence": "med"}, False),
    ],
)  # fmt: skip
def test_the_promise_covers_trusted_training_on_cards_as_sold(changed, promised) -> None:  # type: ignore[no-untyped-def]
    assert is_promised(_pair(**{**_GOOD, **changed})) is promised


def test_a_source_something_was_fitted_to_is_no_evidence(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(groups, "FITTED_SOURCES", ("mine",))
    assert not is_promised(_pair(**_GOOD))
    assert is_promised(_pair(**{**_GOOD, "source": "theirs"}))


def test_no_more_than_a_third_of_the_sources_is_fitted_and_each_exists() -> None:
    sources = {r.source for r in read_rows(published_rows()).rows}
    assert set(groups.FITTED_SOURCES) <= sources
    assert len(groups.FITTED_SOURCES) <= groups.MOST_FITTED * len(sources)


def test_outliers_are_named_furthest_first() -> None:
    pairs = [_pair(124, id="near"), _pair(160, id="fast"), _pair(20, id="slow")]
    assert [pair.row.id for pair in outliers(pairs)] == ["slow", "fast"]


def test_the_error_of_a_step_time_is_that_of_its_speed() -> None:
    assert _pair(80.0, step_s=1).error == pytest.approx(0.25)
    assert _pair(125.0).error == pytest.approx(0.25)
