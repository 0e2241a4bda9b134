"""memcalc infer: the JSON contract, the text, exit status, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

_CONTRACT = {
    "weights_bytes", "kv_cache_bytes", "kv_bytes_per_token", "max_batch", "max_context", "prefill_s",
    "time_per_output_token_s", "tokens_per_s",
}  # fmt: skip
_LLAMA = ("llama-3-8b", "--gpu", "a100-80gb", "--batch", "32", "--context", "8192")


def test_json_holds_every_key_of_the_contract(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("infer", *_LLAMA, "--json")
    found = outcome.json
    assert outcome.status == 0 and outcome.err == ""
    assert set(found) >= _CONTRACT | {
        "schema",
        "memcalc",
        "model",
        "setup",
        "memory",
        "time",
        "fits",
    }
    assert all(found[key] is not None for key in _CONTRACT)
    assert found["kv_cache_bytes"] == 32 * 2**30
    assert found["kv_bytes_per_token"] == 131_072
    assert found["weights_bytes"] == 2 * 8_030_261_248
    assert found["setup"]["model"] == "llama-3-8b" and found["setup"]["prompt"] == 4096
    assert found["verdict"] == "fits" and found["max_batch"] >= 32


def test_without_a_gpu_what_is_unknown_is_null(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("infer", "gpt2", "--json").json
    unknown = (
        "max_batch",
        "max_context",
        "prefill_s",
        "time_per_output_token_s",
        "fits",
        "verdict",
    )
    assert all(found[key] is None for key in unknown)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("gpt2", "--gpu", "h100"), 0),
        (("gpt2",), 0),
        (("llama-3.1-70b", "--gpu", "h100"), 3),
        (("llama-3-8b", "--gpu", "a100-80gb", "--batch", "64", "--context", "8k"), 3),
        (("qwen2.5-72b", "--gpu", "h100", "--engine", "vllm", "--tp", "4"), 0),
        (("llama-3.1-8b", "--gpu", "4090", "--weights", "gguf:Q4_K_M", "--engine", "llama.cpp"), 0),
    ],
)  # fmt: skip
def test_the_status_says_whether_it_fits(memcalc, words, status) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("infer", *words)
    assert outcome.status == status
    assert max(map(len, outcome.out.splitlines())) <= 80 and "\x1b" not in outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch", "0"), "--batch: got 0"),
        (("--context", "1"), "context: got 1"),
        (("--context", "64", "--prompt", "64"), "prompt: got 64"),
        (("--engine", "tgi"), "--engine: got 'tgi'"),
        (("--weights", "q5"), "weights: got 'q5'"),
        (("--kv-cache", "fp8"), "kv_cache: got fp8"),
        (("--tp", "3"), "tp: got 3"),
        (("--pp", "2"), "pp: got 2"),
        (("--seq", "64"), "--seq: not an option of infer"),
        (("--json", "--quiet"), "--quiet: got --json too"),
    ],
)
def test_bad_input_is_one_line(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("infer", "llama-3-8b", *words)
    assert outcome.status == 2 and said in outcome.error


def test_quiet_is_one_line(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("infer", *_LLAMA, "--quiet")
    assert outcome.out.count("\n") == 1 and outcome.err == ""
    assert outcome.out.startswith("weights 16060522496 kv-cache 34359738368 ")


def test_the_advice_of_what_does_not_fit_fits(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3-8b", "--gpu", "a100-80gb", "--context", "8k")
    refused = memcalc("infer", *words, "--batch", "500", "--json")
    assert refused.status == 3
    found = next(line for line in refused.json["advice"] if line.startswith("--batch"))
    batch = found.split(":")[0].split()[1]
    assert memcalc("infer", *words, "--batch", batch, "--json").status == 0


def test_a_run_file_gives_the_same_result(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    first = memcalc("infer", *_LLAMA, "--engine", "vllm", "--save", path, "--json")
    again = memcalc("infer", "--config", path, "--json")
    assert first.json == again.json


def test_out_writes_the_result(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "result.json"
    assert memcalc("infer", "gpt2", "--gpu", "h100", "-o", path).status == 0
    assert json.loads(path.read_text())["weights_bytes"] == 2 * 124_439_808


def test_estimate_has_no_such_options(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "gpt2", "--batch", "4")
    assert outcome.status == 2 and "--batch: not an option of estimate" in outcome.error
