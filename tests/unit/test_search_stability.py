"""How often a winner stays first: cases whose answer is known."""

from __future__ import annotations

import math

import pytest

from memcalc.planning.search.stability import spread_of, stability


def _row(parts: dict[str, float], band: tuple[float, float] = (0.9, 1.1)) -> dict[str, object]:
    step = sum(parts.values())
    return {"step_s": step, "low_s": band[0] * step, "high_s": band[1] * step, "parts": parts}


def test_setups_that_spend_time_alike_move_together():
    rows = [_row({"forward_s": 1.0, "bubble_s": 0.5}), _row({"forward_s": 1.01, "bubble_s": 0.5})]
    found = stability(rows)
    assert found["shared_share"] == 1.0
    assert 0.4 < found["independent_share"] < 0.6


def test_equal_setups_share_the_first_place_by_chance():
    rows = [_row({"forward_s": 1.0}) for _ in range(4)]
    found = stability(rows)
    assert found["shared_share"] == 1.0
    assert found["independent_share"] == pytest.approx(0.25, abs=0.03)


def test_what_is_far_behind_never_wins():
    found = stability([_row({"forward_s": 1.0}), _row({"forward_s": 3.0})])
    assert found["shared_share"] == found["independent_share"] == 1.0
    assert found["within_band"] == 1


def test_different_parts_trade_places_as_often_as_their_errors_say():
    """Two steps of one part each, r apart: the first wins where its error is below r times the other's."""
    ratio = 1.08
    rows = [_row({"forward_s": 1.0, "bubble_s": 0.0}), _row({"forward_s": 0.0, "bubble_s": ratio})]
    sigma = spread_of(0.9, 1.1)
    expected = 0.5 * (1 + math.erf(math.log(ratio) / (sigma * math.sqrt(2)) / math.sqrt(2)))
    assert stability(rows)["shared_share"] == pytest.approx(expected, abs=0.025)


def test_the_band_is_nine_of_ten():
    sigma = spread_of(0.8, 1.25)
    assert math.exp(1.6448536269514722 * sigma) == pytest.approx(1.25)


def test_one_setup_or_no_band_says_nothing():
    row = _row({"forward_s": 1.0})
    assert stability([row]) is None
    assert stability([row, {**row, "low_s": None}]) is None
