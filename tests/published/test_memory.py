"""Predicted memory against the published rows that hold all that decides it.

Rows: priceable yes, confidence high, memory kind known. Bounds are on rows and on sources; they were
set before the rows were priced, and nothing in memcalc is fitted to a row. A source some of whose rows
ask for a capability of a later version is skipped with the reason; once its rows are priced its bound
holds by itself. `CAUSES` names why a single row may lie further out than 20 %.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

from memcalc.accuracy.pricing import MEMORY, Priced, price
from memcalc.accuracy.rows import Row, published_rows, read_rows
from memcalc.accuracy.scores import frame_of, over_sources, score

#: Mean absolute error over rows and over sources, bias, and any one row, in percent.
MOST_MEAN, MOST_BIAS, MOST_ONE = 6.0, 2.0, 20.0
#: Mean absolute error of a source, by any part of its name, in percent.
SOURCES = {"SimuMax B200": 2.0, "BigScience": 10.0, "nanotron": 8.0, "torchtitan": 8.0}
#: Row -> why it may lie further out than MOST_ONE.
CAUSES: dict[str, str] = {
    "Ra33c7eac": "nanotron, 8.86 B on 64 GPUs. Likely: the first step's gather (18 GiB in flat copies) "
    "found less room than its 75 GiB, the allocator gave its cache back, and the peaks were reset "
    "before the figure was read; the replay with 73 GiB of room ends at 59.09 GiB, as measured",
}
_LATER = "not in this version"


def _must_be_met() -> list[Row]:
    return [
        row
        for row in read_rows(published_rows()).rows
        if row.text("priceable") == "yes"
        and row.text("confidence") == "high"
        and row.text("mem_kind") not in (None, "unknown")
    ]


@lru_cache(maxsize=1)
def _priced() -> Priced:
    return price(_must_be_met(), what=(MEMORY,))


def _of(source: str, priced: Priced) -> Priced:
    """The part of a pricing that one source's rows make up."""

    def kept(row: Row) -> bool:
        return source in row.source

    return Priced(
        [pair for pair in priced.pairs if kept(pair.row)],
        [left for left in priced.unexpressed if kept(left.row)],
        [left for left in priced.unscored if kept(left.row)],
    )


def _skip_what_comes_later(priced: Priced) -> None:
    later = sorted({left.reason for left in priced.unexpressed if _LATER in left.reason})
    if later:
        pytest.skip("; ".join(later))


def test_these_are_the_rows_that_must_be_met() -> None:
    rows = _must_be_met()
    assert len(rows) == 68 and len({row.source for row in rows}) == 6
    assert all(any(name in row.source for row in rows) for name in SOURCES)


def test_every_row_is_priced() -> None:
    priced = _priced()
    wrong = [f"{left.row.id}: {left.reason}" for left in priced.unexpressed
             if _LATER not in left.reason]  # fmt: skip
    assert not wrong and not priced.unscored
    _skip_what_comes_later(priced)
    assert len(priced.pairs) == 68


@pytest.mark.parametrize("source", SOURCES)
def test_a_sources_mean_error_is_within_its_bound(source: str) -> None:
    part = _of(source, _priced())
    _skip_what_comes_later(part)
    found = score(frame_of(part.pairs))
    assert found["mae_pct"] <= SOURCES[source], found


def test_the_mean_error_over_rows_and_over_sources_is_within_bounds() -> None:
    priced = _priced()
    _skip_what_comes_later(priced)
    frame = frame_of(priced.pairs)
    rows, sources = score(frame), over_sources(frame)
    assert rows["mae_pct"] <= MOST_MEAN and abs(rows["bias_pct"]) < MOST_BIAS, rows
    assert sources["mae_pct"] <= MOST_MEAN and abs(sources["bias_pct"]) < MOST_BIAS, sources


def test_no_row_lies_far_out_without_a_named_cause() -> None:
    priced = _priced()
    _skip_what_comes_later(priced)
    far = {
        p.row.id: f"{100 * p.error:+.1f} %" for p in priced.pairs if abs(p.error) > MOST_ONE / 100
    }
    assert not {name: size for name, size in far.items() if name not in CAUSES}
    assert set(CAUSES) <= set(far), "a cause without its row"


def test_the_page_on_accuracy_prints_these_figures() -> None:
    """docs/accuracy.md shows a run of the command; its table of sources must be today's."""
    page = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text()
    priced = _priced()
    for source in sorted({row.source for row in _must_be_met()}):
        found = score(frame_of(_of(source, priced).pairs))
        [line] = re.findall(rf"^{re.escape(source)} +\S+ +\d+ +(\S+) +(\S+) ", page, re.MULTILINE)
        assert line == (f"{found['mae_pct']:.1f}", f"{found['bias_pct']:+.1f}"), source
