"""Pairs of predicted and measured: which byte of an estimate, on which rank, in which unit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.accuracy.pricing import FIELDS, predicted_bytes, predicted_rate, price, price_row
from memcalc.units import GIB, MIB
from tests.unit.accuracy_rows import row

_ESTIMATE = estimate(
    "gpt2", TrainingSetup(seq_len=128, micro_batch_size=2, num_layers=2, precision="bf16"),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "field"), FIELDS.items())
def test_each_kind_is_held_against_its_own_number(kind: str, field: str) -> None:
    (pair,) = price_row(row(mem_kind=kind))
    assert pair.predicted == getattr(_ESTIMATE.memory, field)
    assert pair.scored is (kind != "unknown")


def test_a_row_without_a_kind_is_shown_and_not_scored() -> None:
    (pair,) = price_row(row(mem_kind=None))
    assert (pair.kind, pair.scored) == ("unknown", False)


@pytest.mark.parametrize(
    ("unit", "size"), [("GB", 10**9), ("GiB", GIB), ("MB", 10**6), ("MiB", MIB), (None, GIB)]
)
def test_units_are_decimal_binary_or_assumed_aloud(unit: str | None, size: int) -> None:
    (pair,) = price_row(row(mem_gb=2.5, mem_unit=unit))
    assert pair.measured == 2.5 * size
    assert ("unit not stated: GiB" in pair.assumed) is (unit is None)


def test_the_error_is_signed_and_relative_to_the_measured() -> None:
    (pair,) = price_row(row(mem_gb=_ESTIMATE.memory.peak_allocated_bytes * 2, mem_unit="MB"))
    assert pair.error == pytest.approx(-1, abs=1e-5)
    half = _ESTIMATE.memory.peak_allocated_bytes / 2 / MIB
    (pair,) = price_row(row(mem_gb=half, mem_unit="MiB"))
    assert pair.error == pytest.approx(1.0, rel=1e-6)


def test_the_rank_a_row_speaks_of_is_the_one_compared() -> None:
    sizes = ((5, 9), (7, 2), (3, 4))
    stages = tuple(
        _ESTIMATE.memory._replace(peak_allocated_bytes=a, peak_reserved_bytes=r) for a, r in sizes
    )
    assert [predicted_bytes("allocated", rank, stages) for rank in ("worst", "first", "last")] == [
        7, 5, 3,
    ]  # fmt: skip
    assert predicted_bytes("reserved", "worst", stages) == 9


def test_every_row_is_a_pair_or_has_a_reason() -> None:
    told: list[tuple[str, int, int]] = []
    rows = [row(2), row(3, id="two", run="decode"),
            row(4, id="three", mem_gb=None, tokens_per_s_per_gpu=900),
            row(5, id="four", tp=5, n_gpus=7)]  # fmt: skip
    found = price(rows, lambda *what: told.append(what))
    assert [pair.row.id for pair in found.pairs] == ["one"]
    assert {left.row.id: left.reason for left in found.unscored} == {
        "three": "gives no memory; its throughput is not predicted in this version"
    }
    reasons = {left.row.id: left.reason for left in found.unexpressed}
    assert set(reasons) == {"two", "four"} and reasons["four"].startswith("tp: got 5")
    assert told == [("one", 0, 4), ("two", 1, 4), ("three", 2, 4), ("four", 3, 4)]


def test_rates_are_counted_as_their_source_counts_them() -> None:
    result = SimpleNamespace(
        time=_ESTIMATE.time._replace(
            step_s=0.5, tokens_per_s_per_gpu=100.0, model_flops_per_token=6.0,
            model_flops_causal_per_token=5.0, executed_flops_per_token=8.0,
        )
    )  # fmt: skip
    rate = lambda kind, flops=None: predicted_rate(kind, flops, result)  # type: ignore[arg-type]  # noqa: E731
    assert (rate("step_s"), rate("tokens_per_s_per_gpu")) == (0.5, 100.0)
    counted = ("model-full-square", "model-causal", "hardware", "unknown", None)
    assert [rate("tflops_per_gpu", kind) for kind in counted] == [600.0, 500.0, 800.0, None, None]
    without = replace(_ESTIMATE, time=_ESTIMATE.time._replace(tokens_per_s_per_gpu=None))
    assert predicted_rate("tflops_per_gpu", "hardware", without) is None
