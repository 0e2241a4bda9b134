"""memcalc estimate: the JSON contract, the text, exit status, and the files it writes."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest

import memcalc as library

_SHORT = ("--seq", "64")
_MEMORY = {
    "peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes",
    "usable_bytes", "headroom_bytes", "low_bytes", "high_bytes", "peak_at", "breakdown",
    "reserved_overhead_bytes", "context_bytes", "communication_bytes", "phases", "states",
    "saved_for_backward_bytes", "saved_per_layer_bytes", "host_bytes", "stages",
}  # fmt: skip
_BREAKDOWN = {
    "parameters", "gradients", "optimizer", "activations", "loss", "temporary", "buffers",
    "workspace",
}  # fmt: skip
_TIME = {
    "step_s", "low_s", "high_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "mfu_causal", "hfu",
    "model_flops_per_token", "executed_flops_per_token", "compute_s", "exposed_communication_s",
    "bubble_s", "optimizer_s", "launch_s", "calibration",
}  # fmt: skip


def test_json_holds_every_key_of_the_contract(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "gpt2", *_SHORT, "--gpu", "h100", "--json")
    found = outcome.json
    assert outcome.status == 0 and outcome.err == ""
    assert found["schema"] == 1 and found["memcalc"] == library.__version__
    top = {"model", "setup", "memory", "time", "fits", "verdict", "assumptions", "notes", "advice"}
    assert top <= set(found)
    assert set(found["memory"]) >= _MEMORY and set(found["time"]) >= _TIME
    assert set(found["memory"]["breakdown"]) >= _BREAKDOWN
    assert {"name", "parameters", "active_parameters"} <= set(found["model"])
    assert {"parameters", "gradients", "optimizer", "master"} == set(found["memory"]["states"])


def test_json_figures_add_up_and_are_the_librarys(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("estimate", "gpt2", *_SHORT, "--gpu", "h100", "--json").json
    memory = found["memory"]
    assert sum(memory["breakdown"].values()) == memory["peak_allocated_bytes"]
    parts = ("peak_allocated_bytes", "reserved_overhead_bytes", "context_bytes")
    used = sum(memory[part] for part in parts) + memory["communication_bytes"]
    assert used == memory["device_used_bytes"]
    direct = library.estimate("gpt2", library.TrainingSetup(seq_len=64), gpu="h100")
    assert memory["peak_reserved_bytes"] == direct.memory.peak_reserved_bytes


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("gpt2", "--gpu", "h100"), 0),
        (("gpt2",), 0),
        (("llama-3.1-8b", "--gpu", "l4"), 3),
        (("gpt2", "--gpu-memory", "1GiB"), 3),
        (("gpt2", "--gpu", "nosuch"), 2),
    ],
)
def test_exit_status_says_whether_it_fits(memcalc, words, status) -> None:  # type: ignore[no-untyped-def]
    assert memcalc("estimate", *words, *_SHORT, "--quiet").status == status


def test_no_gpu_means_no_verdict(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("estimate", "gpt2", *_SHORT, "--json").json
    assert found["fits"] is None and found["verdict"] is None


def test_what_does_not_fit_gets_advice(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "llama-3.1-8b", "--gpu", "h100", "--json")
    found = outcome.json
    assert outcome.status == 3 and found["verdict"] == "does-not-fit"
    assert found["advice"]


def test_reserve_lowers_the_usable_memory(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("estimate", "gpt2", *_SHORT, "--gpu-memory", "80GiB", "--json")
    whole, kept = (memcalc(*words, *more).json for more in ((), ("--reserve", "1GiB")))
    assert whole["memory"]["usable_bytes"] - kept["memory"]["usable_bytes"] == 1 << 30


def test_text_is_plain_and_at_most_80_columns(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "llama-3.1-8b", "--gpu", "h100", "--ops")
    assert "\x1b" not in outcome.out + outcome.err
    assert max(map(len, outcome.out.splitlines())) <= 80
    for word in ("requested", "allocated", "reserved", "driver-used", "does not fit", "advice:"):
        assert word in outcome.out
    assert "assumed:" in outcome.err and "assumed:" not in outcome.out


def test_the_bar_is_as_wide_as_the_page_and_in_proportion(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "gpt2", "--optimizer", "adamw")
    bar = next(line for line in outcome.out.splitlines() if re.fullmatch(r"[PGOALTBWR]{80}", line))
    found = memcalc("estimate", "gpt2", "--optimizer", "adamw", "--json").json["memory"]
    share = found["breakdown"]["parameters"] / found["peak_allocated_bytes"]
    assert abs(bar.count("P") - 80 * share) <= 1


def test_csv_is_one_row_that_agrees_with_the_json(memcalc) -> None:  # type: ignore[no-untyped-def]
    text = memcalc("estimate", "gpt2", *_SHORT, "--csv").out
    rows = list(csv.DictReader(io.StringIO(text)))
    found = memcalc("estimate", "gpt2", *_SHORT, "--json").json
    assert len(rows) == 1
    assert int(rows[0]["memory.peak_requested_bytes"]) == found["memory"]["peak_requested_bytes"]


def test_quiet_is_one_line(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "gpt2", *_SHORT, "-q")
    assert outcome.err == "" and len(outcome.out.splitlines()) == 1


def test_out_writes_json_or_text_by_the_ending(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    as_json, as_text = tmp_path / "a.json", tmp_path / "a.txt"
    first = memcalc("estimate", "gpt2", *_SHORT, "-o", as_json)
    second = memcalc("estimate", "gpt2", *_SHORT, "--out", as_text)
    assert first.out == second.out == ""
    assert json.loads(as_json.read_text())["schema"] == 1
    assert as_text.read_text().startswith("gpt2: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.txt"]


def test_ops_adds_the_ledger_to_the_json(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("estimate", "gpt2", *_SHORT, "--ops", "--json").json
    assert sum(row["params"]["total"] for row in found["ops"]) == found["model"]["parameters"]


@pytest.mark.parametrize(
    "words",
    [
        ("--micro-batch", "2", "--grad-accum", "3"),
        ("--no-set-to-none",),
        ("--grad-clip",),
        ("--recompute", "full:3"),
        ("--optimizer-impl", "fused"),
        ("--dropout", "0.1"),
        ("--set", "training.loss_chunks=4", "--loss", "chunked"),
        ("--set", "kernels.norm=decomposed"),
        ("--set", "kernels.expandable_segments=true"),
        ("--set", "model.vocab_size=1k"),
        ("--layers", "3"),
    ],
)
def test_every_kind_of_setting_reaches_the_estimate(memcalc, words) -> None:  # type: ignore[no-untyped-def]
    base = memcalc("estimate", "gpt2", *_SHORT, "--json").json
    changed = memcalc("estimate", "gpt2", *_SHORT, "--json", *words).json
    assert base["setup"] != changed["setup"]


def test_set_beats_the_option(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("--precision", "fp32", "--set", "training.precision=bf16", "--json")
    found = memcalc("estimate", "gpt2", *_SHORT, *words).json
    assert found["setup"]["precision"] == "bf16"


def test_set_reaches_inside_the_experts(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("estimate", "mixtral-8x7b", "--layers", "2", *_SHORT, "--json")
    half = memcalc(*words, "--set", "model.moe.num_experts=4").json
    assert half["model"]["parameters"] < memcalc(*words).json["model"]["parameters"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("--optimizer AdamW --precision BF16", "--optimizer adamw --precision bf16"),
        ("--recompute Full:3 --stack HF", "--recompute full:3 --stack hf"),
        ("--peft LoRA --optimizer adamw8bit", "--peft lora --optimizer adamw-8bit"),
        ("--gpus 2 --fsdp --reshard False", "--gpus 2 --fsdp --reshard false"),
        ("--gpu 'A100 80 GB'", "--gpu a100-80gb"),
    ],
)
def test_words_may_be_spelt_as_people_write_them(memcalc, said: str, meant: str) -> None:  # type: ignore[no-untyped-def]
    words = ("estimate", "gpt2", *_SHORT, "--json")
    other, own = (memcalc(*words, *shlex.split(text)).json for text in (said, meant))
    assert other["setup"] == own["setup"] and other["memory"] == own["memory"]
