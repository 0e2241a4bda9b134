"""memcalc mfu: ratios of stated figures, every convention of a model's run, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memcalc.cli.options import BY_NAME
from memcalc.cli.run_options import MFU_KINDS

_RUN = ("llama-3.1-8b", "--seq", "8k", "--gpu", "h100-80gb")


def test_u1_a_hundred_teraflops_on_an_a100(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("mfu", "--tflops", "100", "--gpu", "a100-80gb", "--json").json
    assert found["flops_ratio"]["ratio"] == 100 / 312
    assert found["peak"]["flops_per_s"] == 312e12 and "dense" in found["peak"]["source"]
    text = memcalc("mfu", "--tflops", "100", "--peak", "312").out
    assert "32.05%" in text


def test_u2_three_examples_a_second_on_four_gpus_against_a_published_run(memcalc) -> None:  # type: ignore[no-untyped-def]
    """1536 tokens/s a GPU over 3300: 46.545... %, which some print cut to 46.54."""
    words = ("--samples-per-s", "3", "--gpus", "4", "--seq", "2048", "--reference-per-gpu", "3300")
    found = memcalc("mfu", *words, "--json").json
    assert found["throughput"]["tokens_per_s_per_gpu"] == 1536
    assert found["throughput"]["ratio"] == 1536 / 3300
    assert found["peak"] is None and found["by_model"] is None
    text = memcalc("mfu", *words).out
    assert "46.55%" in text and "rounded, not cut" in text


def test_u3_the_third_method_is_pointed_to(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("mfu", "--tflops", "100", "--gpu", "a100-80gb")
    assert "memcalc measure MODEL --profile" in " ".join(outcome.out.split())
    assert "measure" in BY_NAME["profile"].commands


def test_a_published_run_by_both_conventions_and_others(memcalc) -> None:  # type: ignore[no-untyped-def]
    """Megatron on H100s, 10,153 tokens/s a GPU: published as 52.8 % causal, 59.4 % full square."""
    found = memcalc("mfu", *_RUN, "--tokens-per-s-per-gpu", "10153", "--json").json
    model = found["by_model"]
    assert round(model["mfu"], 3) == 0.594 and round(model["mfu_causal"], 3) == 0.528
    assert model["hfu"] > model["mfu"]
    shares = {row["name"]: row["share"] for row in model["conventions"]}
    assert len(shares) == 7 and set(MFU_KINDS) <= set(shares)
    assert len(set(shares.values())) >= 6 and max(shares.values()) < 1
    for row in model["conventions"]:
        assert row["flops_per_s"] == pytest.approx(row["share"] * 989.4e12)


@pytest.mark.parametrize(
    "words",
    [
        ("--tokens-per-s-per-gpu", "1000"),
        ("--tokens-per-s", "8000"),
        ("--samples-per-s", "15.625"),
        ("--step-time", "2.048"),
        ("--tokens", "28.8M", "--hours", "1"),
        ("--samples", "56250", "--hours", "1"),
        ("--samples", "5625", "--epochs", "10", "--sample-tokens", "100", "--hours", "1"),
    ],
)
def test_one_throughput_stated_in_any_way_gives_one_utilisation(memcalc, words) -> None:  # type: ignore[no-untyped-def]
    setup = ("gpt2", "--seq", "512", "--gpus", "8", "--global-batch", "32", "--gpu", "a100-80gb")
    found = memcalc("mfu", *setup, *words, "--json").json
    assert found["throughput"]["tokens_per_s_per_gpu"] == pytest.approx(1000)
    assert found["throughput"]["tokens_per_s"] == pytest.approx(8000)
    expected = found["by_model"]["conventions"][0]["flops_per_token"] * 1000 / 312e12
    assert found["by_model"]["mfu"] == pytest.approx(expected, rel=1e-12)


def test_d8_three_hours_mean_twelve_per_cent_at_512_tokens(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("--samples", "52k", "--epochs", "3", "--hours", "3", "--gpus", "8", "--seq", "512")
    text = memcalc("mfu", "llama-7b", "--gpu", "a100-80gb", *words, "--json").json
    assert round(text["by_model"]["mfu"], 2) == 0.12


def test_recomputation_is_in_executed_flops_only(memcalc) -> None:  # type: ignore[no-untyped-def]
    rate = ("--tokens-per-s-per-gpu", "8000", "--json")
    plain = memcalc("mfu", *_RUN, *rate).json["by_model"]
    again = memcalc("mfu", *_RUN, "--recompute", "full", *rate).json["by_model"]
    assert again["mfu"] == plain["mfu"] and again["mfu_causal"] == plain["mfu_causal"]
    assert again["hfu"] > 1.2 * plain["hfu"]
    assert "recomputed" in {row["name"] for row in again["conventions"]}


def test_without_a_throughput_the_estimates_own_is_used(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("mfu", "gpt2", "--seq", "512", "--gpu", "a100-80gb", "--json").json
    time = memcalc("estimate", "gpt2", "--seq", "512", "--gpu", "a100-80gb", "--json").json["time"]
    assert found["throughput"]["basis"].startswith("predicted")
    assert found["throughput"]["tokens_per_s"] == pytest.approx(time["tokens_per_s"])
    for name in ("mfu", "mfu_causal", "hfu"):
        assert found["by_model"][name] == pytest.approx(time[name])


def test_impossible_figures_are_doubted(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("mfu", *_RUN, "--tokens-per-s-per-gpu", "80000")
    assert outcome.status == 0 and "more than a GPU can do" in outcome.err
    sparse = memcalc("mfu", "--tflops", "400", "--peak", "1979")
    assert "2:4 sparsity" in sparse.err and "989.5" in sparse.err
    assert memcalc("mfu", "--tflops", "400", "--peak", "989.4").err == ""


def test_without_a_gpu_shares_are_unknown_and_said_to_be(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("mfu", "gpt2", "--seq", "64", "--tokens-per-s", "1000")
    assert outcome.status == 0 and "unknown" in outcome.out and "--peak" in outcome.err
    found = memcalc("mfu", "gpt2", "--seq", "64", "--tokens-per-s", "1000", "--json").json
    assert found["by_model"]["mfu"] is None and found["by_model"]["conventions"][0]["flops_per_s"]


def test_the_page_is_plain_and_fits_80_columns(memcalc) -> None:  # type: ignore[no-untyped-def]
    text = memcalc("mfu", *_RUN, "--recompute", "full", "--tokens-per-s-per-gpu", "9000").out
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
    line = memcalc("mfu", *_RUN, "--tokens-per-s-per-gpu", "9000", "--quiet").out
    assert line.count("\n") == 1 and "mfu_causal 0.468" in line


def test_a_run_file_may_name_the_model(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    words = ("--tokens-per-s-per-gpu", "9000", "--json")
    first = memcalc("mfu", *_RUN, *words, "--save", path).json
    again = memcalc("mfu", "--config", path, "--json").json
    assert again["by_model"] == first["by_model"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "mfu: got nothing to compare"),
        (("gpt2", "--seq", "64"), "mfu: got no throughput"),
        (("--tflops", "100"), "--tflops: got no peak"),
        (("--tflops", "0", "--peak", "312"), "--tflops: got 0; rule: above 0"),
        (("--tflops", "100", "--peak", "-1"), "--peak: got -1; rule: above 0"),
        (
            ("--tflops", "100", "--gpu", "a100-80gb", "--precision", "fp8-mixed"),
            "no datasheet rate",
        ),
        (("--reference-per-gpu", "3300"), "--reference-per-gpu: got no throughput"),
        (("--samples-per-s", "3", "--reference-per-gpu", "3300"), "--samples-per-s: got no --seq"),
        (("--step-time", "3", "--reference-per-gpu", "3300"), "--step-time: got no MODEL"),
        (("--tp", "2", "--tflops", "100"), "--tp: got no MODEL"),
        (("gpt2", "--hours", "3"), "--hours: got no --tokens or --samples"),
        (("gpt2", "--tokens", "1B"), "--tokens: got no --hours"),
        (("gpt2", "--samples", "1k"), "--samples: got no --hours"),
        (
            ("gpt2", "--tokens-per-s", "1", "--step-time", "1"),
            "--step-time: got --tokens-per-s too",
        ),
        (("gpt2", "--mfu", "40"), "--mfu: not an option of mfu"),
        (("gpt2", "llama-7b"), "too many"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("mfu", *words)
    assert outcome.status == 2 and said in outcome.error


def test_ratios_of_stated_figures_import_no_heavy_package() -> None:
    code = (
        "import sys; from memcalc.__main__ import main\n"
        "main(['mfu', '--tflops', '100', '--gpu', 'a100-80gb', '--json'])\n"
        "print([m for m in ('torch', 'pandas', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
