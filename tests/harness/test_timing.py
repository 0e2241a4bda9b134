"""Batches, spread and cold operands of a timed operation."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch

from memcalc.harness.calibration import timing
from memcalc.harness.calibration.timing import MOST_SETS, TINY, Bench, quantile, summary

CPU = torch.device("cpu")


class _Clock:
    """A clock that only `sleep` moves: what a call takes is what it says."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def event(self, enable_timing: bool) -> _Event:
        assert enable_timing
        return _Event(self)


class _Event:
    """Stands in for a CUDA event: milliseconds between two records, by the clock."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def record(self) -> None:
        self.at = self.clock.now

    def elapsed_time(self, other: _Event) -> float:
        return (other.at - self.at) * 1000


@pytest.fixture
def bench() -> Bench:
    return Bench(CPU, TINY)


@pytest.fixture
def one_thread() -> Iterator[None]:
    yield from _threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    yield from _threads(2)


def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def _busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.usefixtures("one_thread")
def test_one_thread_is_timed_by_what_it_computes_not_by_what_it_waits(bench: Bench) -> None:
    waiting = bench.time(lambda call: time.sleep(0.004))
    working = bench.time(lambda call: _busy(0.004))
    assert waiting.median_s < 0.002 and 0.004 <= working.median_s < 0.1


@pytest.mark.usefixtures("two_threads")
def test_a_known_time_is_measured(bench: Bench) -> None:
    timed = bench.time(lambda call: time.sleep(0.004))
    assert 0.004 <= timed.median_s < 0.1
    assert timed.p10_s <= timed.median_s <= timed.p90_s
    assert timed.batches >= 5 and timed.calls == timed.batches  # longer than a batch: one each


def test_short_calls_are_timed_in_batches(bench: Bench, clock: _Clock) -> None:
    timed = bench.time(lambda call: clock.sleep(2e-6))
    assert timed.calls == 500 * timed.batches and timed.median_s == pytest.approx(2e-6)
    fixed = bench.time(lambda call: clock.sleep(2e-6), calls=7)
    assert fixed.calls == 7 * fixed.batches


def test_the_stated_time_is_spent_at_the_least(bench: Bench, clock: _Clock) -> None:
    samples, calls = bench.samples(lambda call: clock.sleep(0.001), least_s=0.05)
    assert sum(samples) * calls == pytest.approx(0.05)


def test_calls_count_up_and_the_collector_is_off_while_the_clock_runs(bench: Bench) -> None:
    seen: list[tuple[int, bool]] = []
    bench.time(lambda call: seen.append((call, gc.isenabled())), calls=3)
    assert not any(on for _, on in seen) and gc.isenabled()
    last = [call for call, _ in seen][-15:]
    assert last == list(range(last[0], last[0] + 15))


def test_the_collector_comes_back_after_an_error(bench: Bench) -> None:
    def fail(call: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        bench.time(fail)
    assert gc.isenabled()


def test_ranks_make_the_same_number_of_calls_when_they_agree(bench: Bench) -> None:
    slow = bench.time(lambda call: None, agree=lambda seconds: 0.5)
    assert slow.batches == 5 and slow.calls == 5  # as if a call took half a second


def test_events_count_milliseconds_of_a_batch(
    bench: Bench, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def call(index: int) -> None:
        calls.append(index)
        clock.sleep(0.002)

    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    found = bench._cuda_batches(call, 4, 3)
    assert calls == list(range(12)) and found == pytest.approx([0.002] * 4)


@pytest.mark.parametrize("set_bytes", [1 << 20, 10 << 20, 50 << 20])
def test_operands_are_out_of_the_cache_when_they_come_again(bench: Bench, set_bytes: int) -> None:
    count = len(bench.sets(object, set_bytes))
    others = (count - 1) * set_bytes
    assert others >= 2 * bench.cache_bytes or count == MOST_SETS
    assert (count - 2) * set_bytes < 2 * bench.cache_bytes
    assert len(bench.sets(object, 3 * bench.cache_bytes)) == 1


def test_operands_are_random_and_repeatable() -> None:
    first, second = (Bench(CPU, TINY).randn(64, 64, dtype=torch.bfloat16) for _ in range(2))
    assert torch.equal(first, second) and 0.9 < float(first.float().std()) < 1.1
    ids = Bench(CPU, TINY).randint(10, 1000)
    assert set(ids.tolist()) == set(range(10))


def test_quantiles_lie_between_neighbours() -> None:
    assert quantile([1.0], 0.9) == 1.0
    assert quantile([1.0, 2.0, 3.0, 4.0, 5.0], 0.5) == 3.0
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    timed = summary([5.0, 1.0, 3.0], 9)
    assert (timed.median_s, timed.batches, timed.calls) == (3.0, 3, 9)
