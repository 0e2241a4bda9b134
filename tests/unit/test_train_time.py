"""A whole run from a step: arithmetic on steps, padding, energy, cost, and the published runs it gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc import ConfigError, ParallelPlan, TrainingSetup, estimate, load_gpu
from memcalc.engine.results import Estimate
from memcalc.output.train_time_text import duration
from memcalc.planning.failures import Availability
from memcalc.planning.train_time import (
    Pace,
    Price,
    Spread,
    Terms,
    TrainTime,
    compute_optimal_tokens,
    corpus_of_samples,
    corpus_of_tokens,
    pace_of,
    price_of,
    stated_pace,
    tokens_per_step,
    train_time,
)
from memcalc.planning.utilisation import peak_of, tokens_per_s_at

A100 = load_gpu("a100-80gb")[0]
HOUR, DAY = 3600.0, 86400.0


def run(model: str, gpus: int, batch: int, seq_len: int = 2048) -> Estimate:
    """A data-parallel run: only its tokens a step and FLOPs a token are used here."""
    setup = TrainingSetup(seq_len=seq_len, global_batch=batch)
    plan = ParallelPlan(gpus=gpus, fsdp=gpus > 1)
    return estimate(model, setup, parallel=plan, allocator=False)


@pytest.fixture(scope="module")
def small() -> Estimate:
    return run("gpt2", 1, 4, 128)


def trained(result: Estimate, tokens: int, rate: float, **terms: object) -> TrainTime:
    pace = stated_pace("stated", rate)
    return train_time(result, corpus_of_tokens(tokens), pace, Terms(**terms), A100)


@pytest.mark.parametrize(("parameters", "tokens"), [(70e9, 1.4e12), (10e9, 200e9)])
def test_d10_twenty_tokens_a_parameter(parameters, tokens):
    """Hoffmann et al. 2022 (arXiv:2203.15556): 70 B parameters suit 1.4 T tokens, 10 B 200 B."""
    assert compute_optimal_tokens(int(parameters)) == int(tokens)


def test_d6_days_from_a_published_throughput():
    """LLaMA-65B (arXiv:2302.13971): 380 tokens/s a GPU on 2048, 1.4 T tokens, "approximately 21 days"."""
    result = run("llama-65b", 2048, 2048)
    assert tokens_per_step(result) == 4_194_304
    found = trained(result, 1_400_000_000_000, 380 * 2048)
    assert found.wall_s.expected / DAY == pytest.approx(20.8, abs=0.05)
    assert found.wall_s.expected / DAY == pytest.approx(21, rel=0.03)
    assert found.steps == 333_787


@pytest.mark.parametrize(("model", "hours"), [("llama-7b", 82_432), ("llama-13b", 135_168)])
def test_d7_gpu_hours_from_a_given_utilisation(model, hours):
    """LLaMA 7B and 13B, 1 T tokens (arXiv:2302.13971, table 15); 51 % for both, within 10 %."""
    result = run(model, 1024, 2048)
    rate = tokens_per_s_at(result, 0.51, "full-square", peak_of(A100, "bf16", None))
    found = trained(result, 10**12, rate * 1024)
    assert found.gpu_hours.expected == pytest.approx(hours, rel=0.10)


@pytest.mark.parametrize(("percent", "hours"), [(12.2, 3.0), (50, 0.73)])
def test_d8_three_hours_of_fine_tuning_mean_twelve_per_cent(percent, hours):
    """Alpaca: a 7B model, 52 K samples of 512 tokens padded, 3 epochs, 8 A100; "3 hours"."""
    result = run("llama-7b", 8, 128, 512)
    rate = tokens_per_s_at(result, percent / 100, "full-square", peak_of(A100, "bf16", None))
    work = corpus_of_samples(52_000, 3, 512, None, packed=False)
    assert work.tokens == 52_000 * 3 * 512
    found = train_time(result, work, stated_pace("stated", rate * 8), Terms(), A100)
    assert found.wall_s.expected / HOUR == pytest.approx(hours, rel=0.03)


@pytest.mark.parametrize(
    ("model", "hours", "mwh"),
    [("7b", 82_432, 36), ("13b", 135_168, 59), ("33b", 530_432, 233), ("65b", 1_022_362, 449)],
)
def test_energy_is_counted_as_in_a_published_account(small, model, hours, mwh):
    """LLaMA's account (arXiv:2302.13971, table 15): 400 W a GPU and a PUE of 1.1, MWh cut."""
    found = trained(small, 512 * 1000, 512 * 1000 / (hours * HOUR))
    assert found.gpu_hours.expected == pytest.approx(hours)
    assert int(found.energy_kwh.expected / 1000) == mwh
    half = trained(small, 512 * 1000, 512 * 1000 / (hours * HOUR), power_fraction=0.5, pue=1.0)
    assert half.energy_kwh.expected == pytest.approx(hours * 0.2)


def test_steps_are_whole(small):
    assert trained(small, 512, 512.0).steps == 1
    assert trained(small, 513, 512.0).steps == 2
    assert trained(small, 513, 512.0).training_s == (2.0, 2.0, 2.0)


def test_padding_is_computed_and_not_learned_from():
    padded = corpus_of_samples(1000, 2, 512, 128.0, packed=False)
    packed = corpus_of_samples(1000, 2, 512, 128.0, packed=True)
    assert padded.tokens == 4 * packed.tokens == 2 * 512 * 1000
    assert padded.real_tokens == packed.real_tokens == packed.tokens
    assert corpus_of_samples(1000, 0.5, 512, None, packed=False).tokens == 512 * 500
    with pytest.raises(ConfigError, match="nearest valid: 512"):
        corpus_of_samples(10, 1, 512, 513.0, packed=False)


def test_a_padded_run_shows_its_share_of_padding(small):
    work = corpus_of_samples(400, 1, 128, 32.0, packed=False)
    found = train_time(small, work, stated_pace("stated", 512.0), Terms(), A100)
    assert found.padding_share == 0.75 and found.steps == 100
    plain = found.to_dict()
    assert plain["run"]["real_tokens"] == 12_800
    assert plain["compute_optimal"]["ratio"] == 12_800 / (20 * small.model.parameters)


def test_lost_time_stretches_the_wall_clock_energy_and_cost(small):
    terms = {"price": Price(2.0, 2.0, "stated")}
    always = trained(small, 512_000, 512.0, **terms)
    half = trained(small, 512_000, 512.0, availability=Availability(0.5, "stated"), **terms)
    assert half.training_s == always.training_s
    for name in ("wall_s", "gpu_hours", "energy_kwh", "cost_usd"):
        assert getattr(half, name).expected == 2 * getattr(always, name).expected
    assert always.failures is None
    often = Availability(0.8, "failures", mtbf_s=125.0)
    assert trained(small, 512_000, 512.0, availability=often).failures == pytest.approx(10)


def test_a_band_reaches_every_figure(small):
    pace = Pace("time model", Spread(400.0, 500.0, 800.0))
    price = Price(1.0, 3.0, "rental")
    found = train_time(small, corpus_of_tokens(512_000), pace, Terms(price=price), A100)
    assert found.step_s == pytest.approx((512 / 800, 512 / 500, 512 / 400))
    for spread in (found.training_s, found.wall_s, found.gpu_hours, found.energy_kwh):
        assert spread.low < spread.expected < spread.high
        assert spread.high / spread.low == pytest.approx(2)
    assert found.cost_usd.high / found.cost_usd.low == pytest.approx(6)
    assert found.cost_usd.expected == pytest.approx(2 * found.gpu_hours.expected)


def test_the_pace_of_an_estimate_is_its_own_step_with_its_band(small):
    from dataclasses import replace

    timed = replace(small, time=small.time._replace(step_s=2.0, low_s=1.6, high_s=2.5))
    assert pace_of(timed).tokens_per_s == pytest.approx((512 / 2.5, 256, 320))
    without = replace(small, time=small.time._replace(step_s=2.0, low_s=None, high_s=None))
    assert pace_of(without).tokens_per_s == (256, 256, 256)
    assert pace_of(replace(small, time=small.time._replace(step_s=None))) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.74, "740 ms"),
        (1.5, "1.50 s"),
        (90, "90.0 s"),
        (600, "10.0 min"),
        (3 * HOUR, "3.00 h"),
        (20.82 * DAY, "20.8 days"),
        (1234 * DAY, "1,234 days"),
    ],
)
def test_durations_are_said_in_a_unit_that_shows_three_figures(seconds, text):
    assert duration(seconds) == text


def test_a_row_keeps_the_unit_of_what_is_expected():
    assert duration(1.3, like=0.9) == "1,300 ms" and duration(0.9, like=1.3) == "0.900 s"


@given(
    rates=st.lists(st.floats(1.0, 1e9), min_size=3, max_size=3),
    tokens=st.integers(1, 10**15),
    factor=st.floats(0.01, 1.0),
    prices=st.lists(st.floats(0.01, 100.0), min_size=2, max_size=2),
)
def test_every_figure_lies_in_its_range_and_the_wall_clock_holds_the_training(
    small, rates, tokens, factor, prices
):
    low, high = sorted(prices)
    terms = Terms(Price(low, high, "rental"), availability=Availability(factor, "stated"))
    pace = Pace("time model", Spread(*sorted(rates)))
    found = train_time(small, corpus_of_tokens(tokens), pace, terms, A100)
    assert found.steps * found.tokens_per_step >= tokens > (found.steps - 1) * found.tokens_per_step
    spreads = (found.step_s, found.training_s, found.wall_s, found.gpu_hours, found.energy_kwh)
    for one in (*spreads, found.cost_usd):
        assert 0 < one.low <= one.expected * (1 + 1e-12) <= one.high * (1 + 1e-9)
    for trained_s, wall_s in zip(found.training_s, found.wall_s, strict=True):
        assert wall_s >= trained_s


def test_prices_are_dated_and_marked():
    found = price_of(A100, None)
    assert found == Price(1.3, 5.0, "rental, 2025, unverified")
    assert price_of(A100, 2.5) == Price(2.5, 2.5, "stated")
    assert price_of(None, None) is None


def test_without_a_gpu_energy_and_cost_are_unknown(small):
    found = train_time(small, corpus_of_tokens(512), stated_pace("stated", 512.0), Terms())
    plain = found.to_dict()
    assert plain["energy"]["kwh"] is None and plain["cost"]["usd"] is None
    assert plain["time"]["wall_s"]["expected"] == 1.0
