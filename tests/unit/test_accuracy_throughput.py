"""Figures of speed: which one a row gives, and its like in an estimate."""

from __future__ import annotations

import pytest

from memcalc.accuracy.pricing import price
from memcalc.accuracy.rows import Row
from memcalc.accuracy.throughput import contradicted, kind_of, parts_of, predicted_rate
from memcalc.engine.timing.time_estimate import TimeEstimate
from tests.unit.accuracy_rows import row

_TIME = TimeEstimate(
    model_flops_per_token=6.0, model_flops_causal_per_token=5.0, executed_flops_per_token=8.0,
    executed_flops=64, step_s=0.5, tokens_per_s_per_gpu=100.0, mfu=0.5, mfu_causal=0.4, hfu=0.6,
    compute_s=0.4, bubble_s=0.1, optimizer_s=0.0,
)  # fmt: skip
_UNKNOWN = TimeEstimate(6.0, 5.0, 8.0, 64)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ({"tokens_per_s_per_gpu": 9, "step_s": 1, "mfu_pct": 50}, "tokens_per_s_per_gpu"),
        ({"step_s": 1, "tflops_per_gpu": 200}, "step_s"),
        ({"tflops_per_gpu": 200, "mfu_pct": 50}, "tflops_per_gpu"),
        ({"mfu_pct": 50, "hfu_pct": 60}, "mfu_pct"),
        ({"hfu_pct": 60}, "hfu_pct"),
        ({}, None),
    ],
)
def test_a_rows_own_figure_is_the_least_derived_one(cells, kind) -> None:  # type: ignore[no-untyped-def]
    assert kind_of(row(**cells)) == kind


@pytest.mark.parametrize(
    ("kind", "flops_kind", "expected"),
    [
        ("step_s", None, 0.5),
        ("tokens_per_s_per_gpu", None, 100.0),
        ("tflops_per_gpu", "model-full-square", 600.0),
        ("tflops_per_gpu", "model-causal", 500.0),
        ("tflops_per_gpu", "hardware", 800.0),
        ("tflops_per_gpu", "unknown", None),
        ("tflops_per_gpu", None, None),
        ("mfu_pct", "model-full-square", 50.0),
        ("mfu_pct", "model-causal", 40.0),
        ("mfu_pct", None, None),
        ("hfu_pct", None, 60.0),
    ],
)
def test_figures_are_counted_as_their_source_counts_them(kind, flops_kind, expected) -> None:  # type: ignore[no-untyped-def]
    assert predicted_rate(kind, flops_kind, _TIME) == expected
    assert predicted_rate(kind, flops_kind, _UNKNOWN) is None


def test_parts_are_the_seconds_of_what_takes_any() -> None:
    assert parts_of(_TIME) == {"step_s": 0.5, "compute_s": 0.4, "bubble_s": 0.1}
    assert parts_of(_UNKNOWN) == {}


def _rate(name: str, rate: float, gpus: int = 8, **cells: object) -> Row:
    return row(id=name, tokens_per_s_per_gpu=rate, n_gpus=gpus, **cells)


def test_a_rate_three_times_below_its_own_tables_contradicts_it() -> None:
    table = [_rate("good", 900), _rate("stalled", 299), _rate("slow", 301, tp=8)]
    assert set(contradicted(table)) == {"stalled"}
    assert contradicted(table)["stalled"].startswith("its source has 900 tokens/s")


@pytest.mark.parametrize(
    "changed",
    [{"source": "other"}, {"model": "opt-125m"}, {"seq": 512}, {"gpu": "a100"}, {"recompute": "full"},
     {"precision": "fp32"}, {"gpus": 4}],
)  # fmt: skip
def test_only_the_same_model_on_as_many_gpus_speaks_against_a_rate(changed) -> None:  # type: ignore[no-untyped-def]
    assert contradicted([_rate("slow", 100), _rate("fast", 900, **changed)]) == {}


def test_a_contradicted_rate_is_shown_and_not_scored() -> None:
    rows = [_rate("good", 900, gpu="h100"), _rate("stalled", 100, gpu="h100")]
    found = {pair.row.id: pair for pair in price(rows, what=("throughput",)).pairs}
    assert found["good"].scored and not found["stalled"].scored
    assert found["stalled"].assumed[-1].startswith("not scored: its source has 900 tokens/s")
    (alone,) = price(rows[1:], what=("throughput",), table=rows).pairs
    assert not alone.scored
    assert price([row(mem_gb=1)], table=rows).pairs[0].scored
