"""Error tables against figures worked out by hand."""

from __future__ import annotations

import pytest

from memcalc.accuracy.pricing import Pair
from memcalc.accuracy.scores import by, frame_of, kinds, over_sources, quantile, score, setup_key
from tests.unit.accuracy_rows import row


def _pair(predicted: float, kind: str = "allocated", scored: bool = True, **cells: object) -> Pair:
    return Pair(row(**cells), "memory", kind, predicted, 100.0, scored, ())


def _hand() -> list[Pair]:
    """Errors +10, -20 and +40 %, the last measured twice with other micro-batches: +40, +60."""
    return [
        _pair(110, id="a", source="x", seq=128),
        _pair(80, id="b", source="x", seq=256, kind="reserved"),
        _pair(140, id="c", source="y", seq=512, grad_accum=4),
        _pair(160, id="d", source="y", seq=512, grad_accum=32, global_batch=64),
    ]


def test_scores_equal_the_hand_figures() -> None:
    # weights 1, 1, 1/2, 1/2: mae (10 + 20 + 20 + 30) / 3, bias (10 - 20 + 20 + 30) / 3;
    # by size 10 (1), 20 (1), 40 (.5), 60 (.5): half of 3 lies in 20, nine tenths in 60
    found = score(frame_of(_hand()))
    assert (found["n"], found["measurements"]) == (4, 3.0)
    assert found["mae_pct"] == pytest.approx(80 / 3)
    assert found["bias_pct"] == pytest.approx(40 / 3)
    assert found["median_pct"] == pytest.approx(20)
    assert found["p90_pct"] == found["worst_pct"] == pytest.approx(60)
    assert found["worst_id"] == "d"
    # each row as one: 10, 20, 40, 60
    assert found["each"] == {
        "mae_pct": pytest.approx(32.5), "bias_pct": pytest.approx(22.5),
        "median_pct": pytest.approx(30), "p90_pct": pytest.approx(60),
    }  # fmt: skip


def test_kinds_sources_and_the_mean_over_sources_equal_the_hand_figures() -> None:
    frame = frame_of(_hand())
    found = kinds(frame)
    assert list(found) == ["allocated", "reserved", "all"]
    assert found["allocated"]["bias_pct"] == pytest.approx((10 + 20 + 30) / 2)
    assert found["reserved"]["bias_pct"] == pytest.approx(-20)
    sources = by(frame, "source")
    assert sources["x"]["all"]["mae_pct"] == pytest.approx(15)
    assert sources["x"]["all"]["bias_pct"] == pytest.approx(-5)
    assert sources["y"]["all"]["mae_pct"] == pytest.approx(50)
    over = over_sources(frame)
    assert over == {
        "sources": 2, "mae_pct": pytest.approx(32.5), "bias_pct": pytest.approx(22.5),
        "worst_pct": pytest.approx(50),
    }  # fmt: skip


def test_rows_of_unknown_kind_count_nowhere() -> None:
    frame = frame_of([*_hand(), _pair(1000, kind="unknown", scored=False, id="e", source="z")])
    assert score(frame)["n"] == 4 and over_sources(frame)["sources"] == 2
    assert "unknown" not in kinds(frame) and by(frame, "source")["z"] == {}


def test_nothing_scored_is_null_and_not_zero() -> None:
    frame = frame_of([_pair(1, kind="unknown", scored=False)])
    assert kinds(frame) == {} and over_sources(frame)["mae_pct"] is None
    found = score(frame)
    assert found["n"] == 0 and found["mae_pct"] is None and found["worst_id"] is None


def test_no_pairs_at_all_score_nothing() -> None:
    frame = frame_of([])
    assert kinds(frame) == by(frame, "source") == {} and over_sources(frame)["sources"] == 0


def test_a_setup_is_the_same_whoever_reports_it_and_however_often_it_steps() -> None:
    base = row(tp=2)
    same = row(tp=2, id="other", source="elsewhere", confidence="low", grad_accum=8, mem_gb=3)
    assert setup_key(base) == setup_key(same)
    for changed in ({"tp": 4}, {"seq": 256}, {"micro_batch": 1}, {"precision": "fp32"},
                    {"recompute": "full"}, {"mem_rank": "first"}):  # fmt: skip
        assert setup_key(row(**{"tp": 2, **changed})) != setup_key(base)


def test_a_setup_measured_in_two_kinds_counts_in_each() -> None:
    pairs = [_pair(110, id="a"), _pair(120, id="b", kind="reserved")]
    assert score(frame_of(pairs))["measurements"] == 2


@pytest.mark.parametrize(
    ("values", "weight", "share", "expected"),
    [
        ([3, 1, 2], [1, 1, 1], 0.5, 2), ([4, 1, 3, 2], [1, 1, 1, 1], 0.5, 2.5),
        ([1, 2, 3], [1, 1, 8], 0.5, 3), ([1, 2], [3, 1], 0.5, 1), ([5], [0.25], 0.9, 5),
        (list(range(1, 11)), [1] * 10, 0.9, 9.5), (list(range(1, 12)), [1] * 11, 0.9, 10),
    ],
)  # fmt: skip
def test_quantiles_by_weight(values, weight, share, expected) -> None:  # type: ignore[no-untyped-def]
    assert quantile(values, weight, share) == expected
