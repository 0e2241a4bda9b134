"""list, show, doctor and explain."""

from __future__ import annotations

import pytest

from memcalc.inputs.profiles import profile_names
from memcalc.inputs.weights import weight_names

_KINDS = ("models", "gpus", "stacks", "clusters", "weights", "engines", "calibrations")


@pytest.mark.parametrize("kind", _KINDS)
def test_list_names_every_profile(memcalc, kind: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("list", kind, "--json")
    names = [entry["name"] for entry in outcome.json["entries"]]
    if kind == "weights":  # a file has several
        assert names == weight_names()
    elif kind != "calibrations":  # cli/test_calibrate.py
        assert set(names) >= set(profile_names(kind))
    text = memcalc("list", kind).out
    assert all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= 80


def test_list_alone_counts_each_kind(memcalc) -> None:  # type: ignore[no-untyped-def]
    counts = {entry["name"]: entry["count"] for entry in memcalc("list", "--json").json["entries"]}
    assert tuple(counts) == _KINDS and counts["models"] == len(profile_names("models"))


@pytest.mark.parametrize(
    ("words", "kind", "key"),
    [
        (("llama-3.1-8b",), "models", "config"),
        (("models", "gpt2"), "models", "parameters"),
        (("h100",), "gpus", "usable_bytes"),
        (("gpu", "4090"), "gpus", "memory_bandwidth_bytes_per_s"),
        (("hf",), "stacks", "choices"),
        (("dgx-h100",), "clusters", "link_bytes_per_s"),
        (("cluster", "NVL72"), "clusters", "gpu_network_bytes_per_s"),
        (("nf4",), "weights", "packings"),
        (("weights", "gguf:Q4_K_M"), "weights", "rules"),
        (("weights", "bf16"), "weights", "dtype"),
        (("vllm",), "engines", "values"),
        (("engine", "llama.cpp"), "engines", "cached_in"),
    ],
)
def test_show_finds_a_name_of_any_kind(memcalc, words, kind: str, key: str) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("show", *words, "--json").json
    assert found["kind"] == kind and key in found
    text = memcalc("show", *words).out
    assert max(map(len, text.splitlines())) <= 80


def test_show_marks_figures_without_a_second_source(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("show", "h100", "--json").json
    assert found["tdp_w"]["source"] and found["nic_bytes_per_s"]["verified"] is False
    assert "not verified" in memcalc("show", "h100").out


def test_show_tells_constants_what_is_assumed_and_errors(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("show", "default-hopper", "--json").json
    lines = memcalc("show", "default-hopper").out.splitlines()
    text = "\n".join(lines)
    share = found["gemm"]["bf16"]["share"]
    assert any(line.split() == ["gemm.bf16.share", f"{share:g}"] for line in lines)
    assert "attention.cudnn.backward" in text and "SimuMax" in text
    error = next(row for row in found["errors"] if row["sizes"] == "all")
    assert any(
        error["system"] in line and f"{100 * error['mean_abs']:.1f} %" in line for line in lines
    )
    assert max(len(line) for line in lines if not line.startswith("file: ")) <= 80
    volta = memcalc("show", "default-volta").out
    assert "no kernel table" in volta and "error" not in volta


def test_doctor_tells_packages_device_and_profiles(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("doctor", "--json").json
    assert found["packages"]["rich"] and found["profiles"]["gpus"] == len(profile_names("gpus"))
    text = memcalc("doctor").out
    assert "typer" in text and "calibration" in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("model", ["gpt2", "mixtral-8x7b"])
def test_explain_agrees_with_the_estimate(memcalc, model: str) -> None:  # type: ignore[no-untyped-def]
    words = (model, "--seq", "64", "--json")
    totals = {t["name"]: t["value"] for t in memcalc("explain", *words).json["totals"]}
    found = memcalc("estimate", *words).json
    assert totals["parameters"] == found["model"]["parameters"]
    assert totals["saved for backward"] == found["memory"]["saved_for_backward_bytes"]
    text = memcalc("explain", *words[:-1]).out
    assert max(map(len, text.splitlines())) <= 80
    assert f"{totals['parameters']:,}" in text
