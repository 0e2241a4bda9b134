"""memcalc train-time: the JSON, the page, paces stated and modelled, terms, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memcalc.cli.run_options import MFU_KINDS

_SMALL = ("gpt2", "--seq", "512", "--global-batch", "32", "--gpus", "8")
_PACED = (*_SMALL, "--tokens-per-s", "8000")
_D6 = (
    "llama-65b", "--gpu", "a100-80gb", "--gpus", "2048", "--tp", "8", "--zero", "1", "--stack",
    "megatron", "--seq", "2k", "--global-batch", "2048",
)  # fmt: skip


def test_the_json_holds_every_part(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("train-time", *_PACED, "--gpu", "a100-80gb", "--tokens", "1B", "--json")
    assert outcome.status == 0 and outcome.err == ""
    found = outcome.json
    parts = {"schema", "memcalc", "model", "setup", "run", "pace", "time", "availability", "energy",
             "cost", "compute_optimal", "fits", "verdict", "assumptions", "notes"}  # fmt: skip
    assert parts <= set(found)
    assert found["run"]["steps"] == -(-(10**9) // (512 * 32))
    seconds = found["run"]["steps"] * 512 * 32 / 8000
    assert found["time"]["wall_s"]["expected"] == pytest.approx(seconds)
    assert found["time"]["gpu_hours"]["expected"] == pytest.approx(8 * seconds / 3600)
    kwh = 8 * seconds / 3600 * 0.4 * 1.1
    assert found["energy"]["kwh"]["expected"] == pytest.approx(kwh)
    cost = found["cost"]
    assert cost["price_usd_per_gpu_hour"]["source"] == "rental, 2025, unverified"
    assert cost["usd"]["low"] == pytest.approx(1.3 * 8 * seconds / 3600)
    assert cost["usd"]["high"] == pytest.approx(5.0 * 8 * seconds / 3600)
    assert any("unverified" in said for said in found["assumptions"])


def test_d6_twenty_one_days_from_380_tokens_a_second(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_D6, "--tokens", "1.4T", "--tokens-per-s-per-gpu", "380")
    found = memcalc("train-time", *words, "--json").json
    assert found["time"]["days"]["expected"] == pytest.approx(20.8, abs=0.05)
    assert found["pace"]["mfu"] == pytest.approx(0.497, rel=0.01)
    assert found["pace"]["mfu_causal"] < found["pace"]["mfu"]
    text = memcalc("train-time", *words).out
    assert "20.8 days" in text and "1.4 T tokens" in text


@pytest.mark.parametrize(("model", "published"), [("llama-7b", 82_432), ("llama-13b", 135_168)])
def test_d7_gpu_hours_at_a_given_utilisation(memcalc, model, published) -> None:  # type: ignore[no-untyped-def]
    words = ("--gpu", "a100-80gb", "--gpus", "64", "--fsdp", "--tokens", "1T", "--mfu", "51")
    found = memcalc("train-time", model, *words, "--json").json
    assert found["time"]["gpu_hours"]["expected"] == pytest.approx(published, rel=0.10)
    assert found["pace"]["mfu"] == pytest.approx(0.51) and "full-square" in found["pace"]["basis"]


@pytest.mark.parametrize(("percent", "hours"), [("12.2", 3.0), ("50", 0.73)])
def test_d8_hours_of_a_fine_tuning_at_a_given_utilisation(memcalc, percent, hours) -> None:  # type: ignore[no-untyped-def]
    words = ("--samples", "52k", "--epochs", "3", "--seq", "512", "--gpus", "8", "--mfu", percent)
    found = memcalc("train-time", "llama-7b", "--gpu", "a100-80gb", *words, "--json").json
    assert found["time"]["hours"]["expected"] == pytest.approx(hours, rel=0.03)


def test_d8_the_time_model_answers_between_a_half_and_one_and_a_half_hours(memcalc) -> None:  # type: ignore[no-untyped-def]
    """Its published recipe: Hugging Face's code under bf16 autocast, FSDP, 4 x 4 sequences a GPU."""
    words = ("--samples", "52k", "--epochs", "3", "--seq", "512", "--gpus", "8", "--fsdp")
    batch = ("--micro-batch", "4", "--grad-accum", "4", "--stack", "hf")
    found = memcalc("train-time", "llama-7b", "--gpu", "a100-80gb", *words, *batch, "--json").json
    assert found["pace"]["basis"] == "time model"
    assert 0.6 <= found["time"]["hours"]["expected"] <= 1.6


@pytest.mark.parametrize(("model", "published"), [("llama-7b", 82_432), ("llama-13b", 135_168)])
def test_d7_gpu_hours_by_the_time_model(memcalc, model, published) -> None:  # type: ignore[no-untyped-def]
    """The published hours hold all that the runs did, so the step alone gives 0.6 to 1.15 of them.

    Their layout is not published: data parallel with optimizer states sharded.
    """
    words = ("--gpu", "a100-80gb", "--gpus", "1024", "--stack", "megatron", "--zero", "1")
    batch = ("--seq", "2k", "--global-batch", "2048", "--tokens", "1T", "--json")
    found = memcalc("train-time", model, *words, *batch).json
    assert 0.6 <= found["time"]["gpu_hours"]["expected"] / published <= 1.15


def test_the_pace_is_the_estimates_own_unless_one_is_stated(memcalc) -> None:  # type: ignore[no-untyped-def]
    setup = (*_SMALL, "--gpu", "h100-80gb")
    time = memcalc("estimate", *setup, "--json").json["time"]
    found = memcalc("train-time", *setup, "--tokens", "1B", "--json").json
    assert found["pace"]["basis"] == "time model"
    assert found["pace"]["calibration"] == time["calibration"]
    step = found["pace"]["step_s"]
    assert (step["low"], step["expected"], step["high"]) == pytest.approx(
        (time["low_s"], time["step_s"], time["high_s"])
    )
    for name in ("mfu", "mfu_causal", "hfu"):
        assert found["pace"][name] == pytest.approx(time[name])
    wall = found["time"]["wall_s"]
    assert wall["expected"] == pytest.approx(found["run"]["steps"] * time["step_s"])
    assert wall["low"] <= wall["expected"] <= wall["high"] and wall["low"] < wall["high"]
    text = memcalc("train-time", *setup, "--tokens", "1B").out
    assert "least" in text and "calibration" in text


@pytest.mark.parametrize("kind", MFU_KINDS)
def test_a_utilisation_counts_what_it_says(memcalc, kind) -> None:  # type: ignore[no-untyped-def]
    words = (*_SMALL, "--gpu", "a100-80gb", "--tokens", "1B", "--mfu", "40", "--mfu-kind", kind)
    pace = memcalc("train-time", *words, "--recompute", "full", "--json").json["pace"]
    name = {"full-square": "mfu", "causal": "mfu_causal", "executed": "hfu"}[kind]
    assert pace[name] == pytest.approx(0.40) and kind in pace["basis"]


@pytest.mark.parametrize(
    "words",
    [
        ("--tokens-per-s", "8000"),
        ("--tokens-per-s-per-gpu", "1000"),
        ("--samples-per-s", "15.625"),
        ("--step-time", "2.048"),
    ],
)
def test_a_pace_may_be_stated_in_any_way_and_needs_no_gpu(memcalc, words) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("train-time", *_SMALL, "--tokens", "1B", *words, "--json").json
    assert found["pace"]["tokens_per_s"]["expected"] == pytest.approx(8000)
    assert found["pace"]["mfu"] is None and found["energy"]["kwh"] is None
    assert found["cost"]["usd"] is None


def test_optimal_tokens_are_twenty_a_parameter(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("train-time", *_PACED, "--tokens", "optimal", "--json").json
    parameters = found["model"]["parameters"]
    assert found["run"]["tokens"] == 20 * parameters == found["compute_optimal"]["tokens"]
    assert found["compute_optimal"]["ratio"] == 1


def test_padding_and_packing(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_PACED, "--samples", "10k", "--epochs", "2", "--sample-tokens", "128")
    padded = memcalc("train-time", *words, "--json").json
    packed = memcalc("train-time", *words, "--packed", "--json").json
    assert padded["run"]["tokens"] == 10_000 * 2 * 512
    assert packed["run"]["tokens"] == 10_000 * 2 * 128 == packed["run"]["real_tokens"]
    assert padded["run"]["padding_share"] == 0.75
    assert any("75%" in note for note in padded["notes"])
    assert not any("padding" in note for note in packed["notes"])
    assert "75.0% of them padding" in memcalc("train-time", *words).out


def test_price_power_and_availability_are_the_users(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_PACED, "--gpu", "a100-80gb", "--tokens", "1B", "--price", "2.5", "--json")
    terms = ("--power-fraction", "0.8", "--pue", "1.2", "--availability", "0.5")
    plain, found = (memcalc("train-time", *words, *more).json for more in ((), terms))
    hours = found["time"]["gpu_hours"]["expected"]
    assert hours == pytest.approx(2 * plain["time"]["gpu_hours"]["expected"])
    assert found["cost"]["usd"]["expected"] == pytest.approx(2.5 * hours)
    assert found["energy"]["kwh"]["expected"] == pytest.approx(hours * 0.4 * 0.8 * 1.2)
    assert found["time"]["training_s"] == plain["time"]["training_s"]


def test_failures_make_an_availability_and_an_interval(memcalc) -> None:  # type: ignore[no-untyped-def]
    pauses = ("--checkpoint-minutes", "5", "--restart-minutes", "10", "--tokens", "1T")
    by_gpu = memcalc("train-time", *_PACED, "--mtbf-hours", "48", *pauses, "--json").json
    by_node = memcalc("train-time", *_PACED, "--node-mtbf-hours", "6", *pauses, "--json").json
    found = by_gpu["availability"]
    assert {**found, "units": 1} == by_node["availability"] and found["units"] == 8
    assert found["mtbf_s"] == 6 * 3600 and round(found["interval_s"] / 60) == 57
    assert 0.7 < found["factor"] < 0.9
    assert found["failures"] == pytest.approx(by_gpu["time"]["wall_s"]["expected"] / (6 * 3600))
    text = memcalc("train-time", *_PACED, "--mtbf-hours", "48", *pauses).out
    assert "a failure every 6.00 h" in text


def test_what_does_not_fit_is_said_and_still_answered(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-7b", "--seq", "512", "--gpu", "l4", "--tokens", "1B", "--mfu", "30")
    outcome = memcalc("train-time", *words)
    assert outcome.status == 0 and "does not fit" in outcome.err
    assert memcalc("train-time", *words, "--json").json["fits"] is False


def test_the_page_is_plain_and_fits_80_columns(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_D6, "--samples", "900M", "--epochs", "2", "--sample-tokens", "700", "--mfu", "47",
             "--mtbf-hours", "50000", "--checkpoint-minutes", "1", "--restart-minutes", "9")  # fmt: skip
    outcome = memcalc("train-time", *words)
    assert "\x1b" not in outcome.out and max(map(len, outcome.out.splitlines())) <= 80
    for word in ("step time", "GPU-hours", "energy, kWh", "cost, USD", "availability", "causal"):
        assert word in outcome.out
    line = memcalc("train-time", *words, "--quiet").out
    assert re.fullmatch(r"steps \d+ wall_s \S+ gpu_hours \S+ kwh \S+ usd \S+\n", line)


def test_a_run_file_keeps_the_run_and_its_terms(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    words = ("--samples", "52k", "--epochs", "3", "--price", "2", "--availability", "0.9")
    first = memcalc("train-time", *_PACED, *words, "--json", "--save", path).json
    assert "samples = 52000" in path.read_text()
    assert memcalc("train-time", "--config", path, "--json").json == first
    assert memcalc("estimate", "--config", path, "--quiet").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "train-time: got no --tokens"),
        (("--tokens", "1T", "--samples", "1k"), "--samples: got --tokens too"),
        (("--tokens", "0"), "--tokens: got 0; rule: at least 1"),
        (("--tokens", "many"), "--tokens: got 'many'"),
        (("--tokens", "1X"), "--tokens: got unit 'x'"),
        (("--tokens", "1T", "--epochs", "2"), "--epochs: got no --samples"),
        (("--tokens", "1T", "--packed"), "--packed: got no --samples"),
        (("--samples", "1k", "--sample-tokens", "9999"), "nearest valid: 512"),
        (("--samples", "1k", "--epochs", "0"), "--epochs: got 0; rule: above 0"),
        (("--tokens", "1T", "--mfu", "0.5"), "nearest valid: 50"),
        (("--tokens", "1T", "--mfu", "101"), "at most 100"),
        (("--tokens", "1T", "--mfu", "50"), "--mfu: got no peak"),
        (("--tokens", "1T", "--mfu-kind", "causal"), "--mfu-kind: got no --mfu"),
        (("--tokens", "1T", "--mfu", "50", "--mfu-kind", "half"), "--mfu-kind: got 'half'"),
        (("--tokens", "1T", "--mfu", "50", "--step-time", "1"), "--step-time: got --mfu too"),
        (("--tokens", "1T"), "train-time: no GPU is named"),
        (("--tokens", "1T", "--step-time", "1", "--pue", "0.9"), "nearest valid: 1"),
        (("--tokens", "1T", "--step-time", "1", "--power-fraction", "80"), "at most 2"),
        (("--tokens", "1T", "--step-time", "1", "--price", "-2"), "--price: got -2"),
        (("--tokens", "1T", "--step-time", "1", "--availability", "95"), "at most 1"),
        (("--tokens", "1T", "--step-time", "1", "--mtbf-hours", "9"), "got no --checkpoint-minutes"),
        (("--tokens", "1T", "--step-time", "1", "--restart-minutes", "9"), "got no --mtbf-hours"),
        (
            ("--tokens", "1T", "--step-time", "1", "--mtbf-hours", "0.01", "--checkpoint-minutes",
             "9", "--restart-minutes", "9"),
            "no run gets through",
        ),
        (("--tokens", "1T", "--tflops", "100"), "--tflops: not an option of train-time"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_in_one_line(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("train-time", *_SMALL, *words)
    assert outcome.status == 2 and said in outcome.error


@pytest.mark.parametrize("command", ["train-time", "mfu"])
def test_help_and_completion_know_the_command(command: str) -> None:
    def run(*words: str, **more: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "memcalc", *words], capture_output=True, text=True, timeout=60,
            check=False, env={**os.environ, **more},
        ).stdout  # fmt: skip

    shown = run(command, "--help", COLUMNS="80", FORCE_COLOR="1")
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80
    assert "Examples" in shown and "--tokens-per-s" in shown
    ask = {"_MEMCALC_COMPLETE": "complete_bash"}
    assert command in run(COMP_WORDS=f"memcalc {command[:3]}", COMP_CWORD="1", **ask).split()
    flags = run(COMP_WORDS=f"memcalc {command} gpt2 --gpu h100-8", COMP_CWORD="4", **ask)
    assert "h100-80gb" in flags.split()


def test_a_calibration_may_be_named(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_SMALL, "--gpu", "h100-80gb", "--tokens", "1B", "--json")
    own, other = (
        memcalc("train-time", *words, "--calibration", name).json["pace"]
        for name in ("default", "default-ampere")
    )
    assert (own["calibration"], other["calibration"]) == ("default-hopper", "default-ampere")
    assert own["step_s"] != other["step_s"]
    assert memcalc("train-time", *words, "--calibration", "nosuch").status == 2
