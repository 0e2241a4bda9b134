"""The report's baseline: figures of the papers that the closed forms are from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc import TrainingSetup
from memcalc.accuracy import textbook
from memcalc.accuracy.pricing import price_row
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.accuracy.textbook import Ways
from memcalc.accuracy.textbook_rows import textbook_error, textbook_fits
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model

MIXED = TrainingSetup(seq_len=2048, precision="bf16-mixed")


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """7.5 B parameters on 64 GPUs: figure 1 of arXiv:1910.02054."""
    held = textbook.state_bytes(7.5e9, MIXED, Ways(stage=stage, shard=64))
    assert held / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_activations_are_those_of_korthikanti() -> None:
    """GPT-3: 34 + 5as/h = 34 + 80 a layer; with selective recomputation 34, full 2 (arXiv:2205.05198)."""
    config = load_model("gpt-3-175b")
    sbh = 2048 * config.hidden_size
    eager = replace(MIXED, attention="eager")
    head = 4 * sbh * (1 + config.vocab_size / config.hidden_size)
    layers = config.num_hidden_layers
    for recompute, factor in (("none", 114), ("selective", 34), ("full", 2)):
        found = textbook.saved_bytes(config, replace(eager, recompute=recompute))
        assert found == pytest.approx(layers * factor * sbh + head), recompute
    split = textbook.saved_bytes(config, eager, Ways(tp=8, sp=True))
    assert split == pytest.approx((layers * 114 * sbh + head) / 8)
    apart = textbook.saved_bytes(config, eager, Ways(tp=8))
    assert apart == pytest.approx(layers * (10 + 24 / 8 + 80 / 8) * sbh + head / 8)


def test_pure_bf16_takes_half_and_plain_sgd_no_moments() -> None:
    bf16 = replace(MIXED, precision="bf16")
    assert textbook.state_bytes(1.0, bf16) == 8
    assert (
        textbook.state_bytes(1.0, MIXED)
        == textbook.state_bytes(1.0, replace(MIXED, precision="fp32"))
        == 16
    )
    assert textbook.state_bytes(1.0, replace(MIXED, optimizer="sgd")) == 8


def test_time_and_serving_by_hand() -> None:
    gpu = load_gpu("a100-80gb")[0]
    assert textbook.step_seconds(1e9, 1000, 312e12) == pytest.approx(6e12 / (0.4 * 312e12))
    config = load_model("llama-3.1-8b")
    assert textbook.cache_bytes(config, 1, 1) == 131072
    rate = textbook.decode_tokens_per_s(config, 16e9, 0, 4, gpu)
    assert rate == pytest.approx(4 * gpu.memory_bandwidth_bytes_per_s / 16e9)


def test_a_published_row_is_asked_too() -> None:
    row = next(r for r in read_rows(published_rows()).rows if r.source == "torchtune flags")
    for pair in price_row(row):
        error = textbook_error(pair)
        assert error is not None and -90 < error < 200
        assert textbook_fits(pair) in (True, False)
