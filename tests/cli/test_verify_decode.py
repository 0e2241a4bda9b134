"""memcalc verify and measure --decode on a CPU: verdict, exit status, record, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcalc.harness.record_head import planned
from memcalc.inputs import calibrations
from tests.calibrated import small_calibration

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
    "max_position_embeddings": 256, "sliding_window": None,
}  # fmt: skip
GEMMA = {
    **SMALL, "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
FAST = ("--decode", "4", "--device", "cpu", "--steps", "1", "--warmup", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No calibrations of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def small(tmp_path: Path) -> Any:
    def write(config: dict[str, Any] = SMALL) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return str(path)

    return write


@pytest.mark.parametrize(
    "words",
    [(), ("--cache", "whole", "--batch", "3", "--prompt", "7"),
     ("--cache", "static", "--attention", "eager", "--precision", "fp32")],
)  # fmt: skip
def test_generations_verify(memcalc: Any, small: Any, tmp_path: Path, words: Any) -> None:
    records = tmp_path / "records.jsonl"
    outcome = memcalc("verify", small(), *FAST, *words, "--records", str(records))
    assert outcome.status == 0, outcome.err
    assert "verified: 6 figures equal" in outcome.out and "peak in decode" in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    record = json.loads(records.read_text())
    assert record["kind"] == "verify-decode" and record["comparison"]["verified"]
    assert record["decode"]["new_tokens"] == 4
    passes = record["time"]["passes_s"]
    assert len(passes) == 1 and len(passes[0]) == 5  # the prompts, then a pass a token
    told, seen = record["estimate"]["memory"], record["memory"]
    assert told["phases"] == seen["phases"] and told["kv_cache_bytes"] == seen["kv_cache_bytes"]
    assert record["setup"]["training"]["precision"] == ("fp32" if "fp32" in words else "bf16")


def test_a_measurement_alone(memcalc: Any, small: Any) -> None:
    outcome = memcalc("measure", small(), *FAST, "--no-record", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["kind"] == "measure-decode" and "comparison" not in found
    assert found["memory"]["weights_bytes"] > 0 and found["time"]["prefill_s"] > 0
    page = memcalc("measure", small(), *FAST, "--no-record").out
    assert "tokens/s while decoding" in page and "cache at the end" in page


def test_quiet_is_one_line(memcalc: Any, small: Any) -> None:
    said = memcalc("verify", small(), *FAST, "--no-record", "--quiet").out
    assert said.startswith("verified requested ") and said.count("\n") == 1


def test_a_calibration_gives_times_that_are_not_judged(
    memcalc: Any, small: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "cpu.toml"
    path.write_text(calibrations.to_text(small_calibration(tmp_path_factory)))
    outcome = memcalc("verify", small(), *FAST, "--calibration", str(path), "--no-record", "--json")
    rows = {row["name"]: row for row in json.loads(outcome.out)["comparison"]["rows"]}
    assert outcome.status == 0
    for name in ("prefill", "one token", "tokens/s"):
        assert rows[name]["verdict"] == "not judged" and rows[name]["predicted"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--decode", "4", "--seq", "8"), "--seq: got --decode too; rule: of training"),
        (("--decode", "4", "--peft", "lora"), "--peft: got --decode too"),
        (("--prompt", "8"), "--prompt: got no --decode; rule: of generations, --decode N"),
        (("--decode", "0"), "--decode: got 0; rule: at least 1"),
        (("--decode", "4", "--cache", "paged"), "cache: got 'paged' for a run"),
        (("--decode", "4", "--cache", "static"), "nearest valid: --cache whole"),
        (("--decode", "4", "--stack", "torch-compile"), "rule: plain ones"),
        (("--decode", "4", "--stack", "hf"), "valid to run: torch"),
    ],
)
def test_bad_input_is_one_line(memcalc: Any, small: Any, words: Any, said: str) -> None:
    outcome = memcalc("verify", small(), *words, "--device", "cpu", "--no-record")
    assert outcome.status == 2 and outcome.err.startswith("error: ")
    assert said in outcome.err and outcome.err.count("\n") == 1


def test_windows_want_a_cache_that_grows(memcalc: Any, small: Any) -> None:
    words = ("--decode", "8", "--prompt", "40", "--device", "cpu", "--no-record", "--steps", "1")
    outcome = memcalc("verify", small(GEMMA), *words, "--cache", "whole")
    assert outcome.status == 2 and "nearest valid: --cache grow" in outcome.err
    grows = memcalc("verify", small(GEMMA), *words, "--attention", "eager")
    assert grows.status == 0, grows.err


@pytest.mark.parametrize("method", ["lora", "qlora", "freeze:1"])
def test_fine_tuning_steps_verify(memcalc: Any, small: Any, tmp_path: Path, method: str) -> None:
    records = tmp_path / "records.jsonl"
    words = ("--seq", "48", "--device", "cpu", "--steps", "2", "--warmup", "1", "--threads", "1")
    outcome = memcalc(
        "verify", small(), *words, "--peft", method, "--records", str(records)
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "verified: 10 figures equal" in outcome.out and f"peft {method}" in outcome.out
    record = json.loads(records.read_text())
    assert planned(record["setup"]).resolved.setup.peft.method == method.partition(":")[0]
