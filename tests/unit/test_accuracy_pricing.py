"""Pairs of predicted and measured: which byte of an estimate, on which rank, in which unit."""

from __future__ import annotations

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.accuracy import pricing
from memcalc.accuracy.pricing import FIELDS, predicted_bytes, price, price_row
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
            row(4, id="three", mem_gb=None, tflops_per_gpu=90),
            row(5, id="four", tp=5, n_gpus=7)]  # fmt: skip
    found = price(rows, lambda *what: told.append(what))
    assert [pair.row.id for pair in found.pairs] == ["one"]
    assert {left.row.id: left.reason for left in found.unscored} == {
        "three": "its source does not say which FLOPs it counts"
    }
    reasons = {left.row.id: left.reason for left in found.unexpressed}
    assert set(reasons) == {"two", "four"} and reasons["four"].startswith("tp: got 5")
    assert told == [("one", 0, 4), ("two", 1, 4), ("three", 2, 4), ("four", 3, 4)]


def test_a_row_with_both_is_two_pairs_and_one_of_them_when_one_is_wanted() -> None:
    both = row(gpu="h100", step_s=0.5)
    assert [pair.what for pair in price_row(both)] == ["memory", "throughput"]
    (memory,) = price_row(both, ("memory",))
    (speed,) = price_row(both, ("throughput",))
    assert memory.predicted == price_row(row(gpu="h100"))[0].predicted
    assert (speed.kind, speed.measured) == ("step_s", 0.5)
    assert speed.parts["step_s"] == speed.predicted and speed.gpu == "h100-80gb"
    assert speed.parameters == memory.parameters == 53_561_088


def test_speed_needs_no_allocator(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    asked = []
    real = pricing.estimate
    monkeypatch.setattr(
        pricing, "estimate", lambda *a, **k: (asked.append(k["allocator"]), real(*a, **k))[1]
    )
    price_row(row(gpu="h100", step_s=0.5))
    price_row(row(gpu="h100", step_s=0.5), ("throughput",))
    price_row(row(gpu="h100", step_s=0.5, mem_gb=None))
    assert asked == [True, False, False]


@pytest.mark.parametrize(
    ("cells", "what", "reason"),
    [
        ({"mem_gb": None, "step_s": 1}, ("memory",), "gives no memory"),
        ({}, ("throughput",), "gives no rate"),
        ({"mem_gb": None}, ("memory", "throughput"), "gives neither memory nor a rate"),
        ({"mem_gb": None, "step_s": 1}, ("memory", "throughput"), "no time is predicted"),
    ],
)
def test_a_row_without_what_is_wanted_says_so(cells, what, reason) -> None:  # type: ignore[no-untyped-def]
    (left,) = price([row(**cells)], what=what).unscored
    assert left.reason.startswith(reason)
