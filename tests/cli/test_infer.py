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
        (("--kv-cache", "int8", "--engine", "vllm"), "kv_cache: got int8"),
        (("--gpu-layers", "some", "--engine", "llama.cpp"), "--gpu-layers: got 'some'"),
        (("--device", "cuda:1"), "--device: got 'cuda:1'"),
        (("--device", "cpu", "--gpu", "h100"), "device: got cpu with gpu h100-80gb"),
        (("--host-bandwidth", "0", "--device", "cpu"), "host_bandwidth: got 0"),
        (("--draft", "lama-3.2-1b"), "nearest: "),
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


def test_other_charts_take_no_options_of_serving(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("chart", "breakdown", "gpt2", "--engine", "vllm")
    assert outcome.status == 2
    assert "--engine: got with chart breakdown; valid: chart serving" in outcome.error


def test_several_devices_and_the_host_are_shown(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3-70b", "--gpu", "h100", "--engine", "vllm", "--pp", "4", "--tp", "2")
    outcome = memcalc("infer", *words)
    assert outcome.status == 0 and "stage 3" in outcome.out
    assert "8 x h100-80gb" in outcome.out and "tp 2, pp 4" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    words = ("llama-2-70b", "--gpu", "4090", "--engine", "llama.cpp", "--weights", "gguf:Q4_K_M")
    outcome = memcalc("infer", *words, "--gpu-layers", "auto")
    assert outcome.status == 0 and "on the host: " in outcome.out
    assert memcalc("infer", *words).status == 3


def test_i2_from_the_command_line(memcalc) -> None:  # type: ignore[no-untyped-def]
    """A 7B in 4 bits: about 10 tokens/s on a CPU, about 10 times that on an A6000: a factor of 2."""
    words = ("llama-7b", "--weights", "ggml-2023:Q4_0", "--engine", "llama.cpp", "--context", "512")
    card = memcalc("infer", *words, "--gpu", "rtx-a6000", "--json").json
    for bandwidth in ("50", "90"):
        host = ("--device", "cpu", "--host-bandwidth", bandwidth, "--host-memory", "16GiB")
        cpu = memcalc("infer", *words, *host, "--json").json
        rate = cpu["time"]["decode_tokens_per_s"]
        assert cpu["verdict"] == "fits" and 5 <= rate <= 20
        assert 5 <= card["time"]["decode_tokens_per_s"] / rate <= 20


def test_a_draft_shows_its_step(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3-8b", "--gpu", "h100", "--engine", "vllm", "--draft", "llama-3.2-1b")
    outcome = memcalc("infer", *words, "--draft-tokens", "4", "--acceptance", "0.8")
    assert "a step of 3.36 tokens" in outcome.out and "draft llama-3.2-1b of 4" in outcome.out


def test_estimate_has_no_such_options(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "gpt2", "--batch", "4")
    assert outcome.status == 2 and "--batch: not an option of estimate" in outcome.error
