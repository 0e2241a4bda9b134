"""Bands printed with estimates: how they are made, worked by hand, and that an estimate prints them."""

from __future__ import annotations

import numpy as np
import pytest

import memcalc
from memcalc import TrainingSetup
from memcalc.accuracy import bands
from memcalc.accuracy.bands import Band, Run
from memcalc.engine.memory_band import memory_band, widened


def _run(factor: float, number: int, source: str = "one", tier: int = 0, stack: str = "s") -> Run:
    return Run(f"R{number}", source, stack, "ampere", f"setup {number}", factor, tier)


def test_nineteen_setups_leave_none_beyond_and_thirty_nine_one() -> None:
    factors = [0.5 + number / 18 for number in range(19)]
    assert bands.ends(factors) == (0.5, 1.5)
    more = [0.5 + number / 38 for number in range(39)]
    assert bands.ends(more) == (more[1], more[-2])
    assert bands.ends([1.1] * 20) == (1.0, 1.1), "the prediction lies inside"


def test_a_class_of_few_setups_takes_the_next() -> None:
    many = [_run(0.9 + number / 100, number) for number in range(19)]
    few = [_run(2.0, 100 + number, stack="rare") for number in range(18)]
    made = bands.classes([*many, *few])
    assert ("s", "ampere") in made and ("rare", "ampere") not in made
    assert made["", "ampere"].setups == 37 and made["", "ampere"].high == 2.0
    band = bands.by_class([*many, *few])
    assert band(few[0]) == made["", "ampere"]
    other = few[0]._replace(architecture="volta")
    assert band(other) == made["", ""] and made["", ""].low == 0.9


def test_rows_of_fitted_sources_count_only_where_others_do_not_suffice() -> None:
    good = [_run(1.0 + number / 100, number) for number in range(19)]
    fitted = [_run(3.0, 50 + number, tier=2) for number in range(19)]
    assert bands.classes([*good, *fitted])["s", "ampere"].high == pytest.approx(1.18)
    short = bands.classes([*good[:5], *fitted])["s", "ampere"]
    assert short.high == 3.0 and short.fitted


def test_runs_that_differ_in_micro_batches_are_one_setup() -> None:
    same = [_run(2.0, 1)._replace(id=f"R1.{number}") for number in range(30)]
    assert ("s", "ampere") not in bands.classes(same)


def test_every_source_has_the_same_weight() -> None:
    long = [_run(1.0, number) for number in range(100)]
    band = bands.over_sources([*long, _run(1.3, 200, "two"), _run(0.8, 201, "three")])
    assert (band.low, band.high) == (0.8, 1.3)


def test_coverage_is_of_runs_that_did_not_make_the_band() -> None:
    inside = [_run(1.0 + number / 1000, number) for number in range(40)]
    far = [_run(1.5, 100 + number, "far") for number in range(2)]
    found = bands.coverage([*inside, *far], bands.by_class)
    assert found["by_source"]["far"] == [0, 2]
    assert found["sources"]["n"] == 42
    assert Band(0.9, 1.1, 20).holds(_run(1.2, 1)._replace(open=(0.8, 1.3)))


def test_the_band_of_memory_is_the_wider_of_both_and_the_same_for_arrays() -> None:
    band, used = memory_band(), 100_000_000
    low, high = widened(used, 99_000_000, 101_000_000)
    assert (low, high) == (used * band.low // 1000, used * band.high // 1000)
    assert widened(used, 10, 10 * used) == (10, 10 * used)
    sizes = np.array([used, 3 * used, 12_345_678_901])
    lows, highs = widened(sizes, sizes - 5, sizes + 5)
    each = [widened(int(one), int(one) - 5, int(one) + 5) for one in sizes]
    assert [tuple(pair) for pair in zip(lows.tolist(), highs.tolist(), strict=True)] == each


def test_an_estimate_prints_a_band_at_least_as_wide_as_published_errors() -> None:
    found = memcalc.estimate("llama-3.2-1b", TrainingSetup(seq_len=2048), gpu="h100-80gb")
    memory, band = found.memory, memory_band()
    assert memory.low_bytes is not None and memory.high_bytes is not None
    assert memory.low_bytes <= memory.device_used_bytes * band.low // 1000
    assert memory.high_bytes >= memory.device_used_bytes * band.high // 1000
    assert any(band.reason in said for said in found.assumptions)
