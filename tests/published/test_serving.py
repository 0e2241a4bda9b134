"""Serving runs that others measured: memory and tokens/s, predicted beside measured.

The time of a launch from Python was taken from the two 16-bit rows of one source
(benchmarks/serving_host.py), whose rates therefore do not count; nothing else is fitted to a row.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from memcalc.accuracy.pricing import MEMORY, THROUGHPUT, Pair, Priced
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.accuracy.serving import FITTED, price_serving

#: Mean absolute errors, in percent: of all memory figures, and of rates by source.
MOST_MEMORY = 6.0
MOST_RATES = {"Qwen2.5 inference": 25.0, "Qwen2.5 vLLM decode": 15.0}
#: (source, model) -> why a row lies further out than 20 %.
CAUSES = {
    ("Qwen2.5 inference", "Qwen2.5-7B-Instruct"): "long contexts: see 14B",
    ("Qwen2.5 inference", "Qwen2.5-14B-Instruct"): "contexts of 14k and more in eager transformers 4.46: "
    "its copies of keys and values to all heads and its kernel for one query are slower than priced",
    ("Qwen2.5 inference", "Qwen2.5-32B-Instruct"): "as 14B",
    ("Qwen2.5 vLLM decode", "Qwen2.5-0.5B-Instruct"): "vLLM 0.6.3's Python between steps, not estimated, is "
    "as long as the step of a small model",
    ("Qwen2.5 vLLM decode", "Qwen2.5-3B-Instruct"): "as 0.5B",
}  # fmt: skip


@lru_cache(maxsize=1)
def priced() -> Priced:
    return price_serving(read_rows(published_rows()).rows)


def pairs(what: str, source: str = "") -> list[Pair]:
    return [p for p in priced().pairs if p.what == what and source in p.row.source]


def mean_error(found: list[Pair]) -> float:
    return 100 * sum(abs(pair.error) for pair in found) / len(found)


def test_every_serving_row_is_priced_or_has_a_reason() -> None:
    rows = [
        row for row in read_rows(published_rows()).rows if row.text("run") in ("decode", "load")
    ]
    with_pairs = {pair.row.id for pair in priced().pairs}
    without = {left.row.id for left in priced().unexpressed}
    assert with_pairs | without == {row.id for row in rows} and not with_pairs & without
    assert all(left.reason for left in priced().unexpressed)
    assert len(with_pairs) >= 38


def test_memory(record_property) -> None:  # type: ignore[no-untyped-def]
    found = pairs(MEMORY)
    record_property("n", len(found))
    record_property("mean_abs_pct", mean_error(found))
    assert len(found) >= 28 and mean_error(found) <= MOST_MEMORY
    assert max(abs(pair.error) for pair in found) < 0.15


def test_memory_of_qwen25_is_within_two_percent() -> None:
    """16-bit weights, 0.5B to 32B, contexts of 2k to 32k."""
    found = [p for p in pairs(MEMORY, "Qwen2.5 inference") if p.row.text("precision") == "bf16"]
    assert len(found) == 12 and mean_error(found) < 2


@pytest.mark.parametrize("source", MOST_RATES)
def test_tokens_per_second(source: str, record_property) -> None:  # type: ignore[no-untyped-def]
    found = pairs(THROUGHPUT, source)
    record_property("n", len(found))
    record_property("mean_abs_pct", mean_error(found))
    assert len(found) >= 10 and all(pair.scored for pair in found)
    assert mean_error(found) <= MOST_RATES[source]
    for pair in found:
        if abs(pair.error) > 0.2:
            assert (source, pair.row.text("model")) in CAUSES


def test_the_source_that_launches_were_taken_from_is_not_scored() -> None:
    assert pairs(THROUGHPUT, FITTED) and not any(p.scored for p in pairs(THROUGHPUT, FITTED))
