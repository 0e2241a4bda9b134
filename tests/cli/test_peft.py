"""--peft and --lora-*: what estimate says, the JSON keys, lists, and one line where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

HF = ("--stack", "hf", "--precision", "bf16", "--seq", "512")


def test_estimate_says_what_trains_and_the_file(memcalc: Any) -> None:
    outcome = memcalc("estimate", "llama-3.2-1b", *HF, "--peft", "lora", "--lora-rank", "16")
    assert outcome.status == 0
    assert "lora rank 16 on q_proj v_proj, in fp32" in outcome.out
    assert "1,703,936 parameters" in outcome.out and "6.82 MB" in outcome.out


def test_json_holds_what_trains(memcalc: Any) -> None:
    words = ("--peft", "lora", "--lora-targets", "all-linear", "--lora-dtype", "bf16", "--json")
    plain = memcalc("estimate", "llama-3.2-1b", *HF, *words).json
    assert plain["model"]["trainable_parameters"] == 5_636_096
    assert plain["model"]["adapter_file_bytes"] == 2 * 5_636_096
    assert plain["setup"]["peft"]["targets"] == ["all-linear"]
    assert plain["setup"]["kernels"]["adapter"]["targets"][:2] == ["down_proj", "gate_proj"]
    assert plain["setup"]["dims"]["r_A"] == 8


def test_everything_trains_without_it(memcalc: Any) -> None:
    plain = memcalc("estimate", "llama-3.2-1b", *HF, "--json").json
    assert plain["model"]["trainable_parameters"] == plain["model"]["parameters"]
    assert plain["model"]["adapter_file_bytes"] is None and plain["setup"]["peft"] is None


def test_compare_takes_a_list_of_methods(memcalc: Any) -> None:
    words = ("--peft", "lora,freeze:2,bitfit", "--json")
    plain = memcalc("compare", "qwen2.5-0.5b", *HF, *words).json
    assert len(plain["rows"]) == 3
    assert all("--peft" in row["command"] for row in plain["rows"])


def test_explain_has_a_row_for_an_adapter(memcalc: Any) -> None:
    outcome = memcalc("explain", "llama-3.2-1b", *HF, "--peft", "lora")
    assert outcome.status == 0 and "q_proj.lora" in outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lora-rank", "8"), "--lora-rank: got no --peft"),
        (("--weights", "bf16"), "--weights: got no --peft"),
        (("--peft", "lora:3"), "only freeze:N"),
        (("--peft", "lorra"), "nearest: lora"),
        (("--peft", "lora", "--virtual-tokens", "8"), "virtual_tokens: got one"),
        (("--peft", "prefix", "--recompute", "full"), "PEFT refuses"),
        (("--peft", "adapter", "--adapter-kind", "houlsbi"), "houlsby"),
        (("--peft", "lora", "--lora-targets", "c_attn"), "lora_targets: got 'c_attn'"),
        (("--peft", "lora", "--lora-dtype", "fp8"), "--lora-dtype"),
        (("--peft", "lora", "--set", "training.peft=lora"), "--lora-rank"),
        (("--peft", "prompt", "--gpus", "8"), "on several GPUs"),
    ],
)
def test_one_line_where_it_cannot_be(memcalc: Any, words: tuple[str, ...], said: str) -> None:
    outcome = memcalc("estimate", "llama-3.2-1b", *HF, *words)
    assert outcome.status == 2 and said in outcome.error
    assert outcome.error.strip().count("\n") == 0


def test_a_run_file_keeps_it(memcalc: Any, tmp_path: Any) -> None:
    path = tmp_path / "run.toml"
    words = ("--peft", "lora", "--lora-targets", "q_proj,v_proj", "--lora-dropout", "0.05")
    first = memcalc("estimate", "llama-3.2-1b", *HF, *words, "--save", str(path), "--quiet")
    again = memcalc("estimate", "llama-3.2-1b", "--config", str(path), "--quiet")
    assert first.out == again.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prompt",), "prompt, 20 virtual tokens"),
        (("p-tuning", "--prompt-width", "512"), "p-tuning, 20 virtual tokens, an MLP of width 512"),
        (("prefix", "--virtual-tokens", "8", "--prefix-projection"), "prefix, 8 virtual tokens"),
        (("adalora",), "adalora rank 12 on q_proj v_proj"),
        (("adapter", "--adapter-width", "64"), "houlsby adapters of width 64"),
    ],
)
def test_every_method_is_named(memcalc: Any, words: tuple[str, ...], said: str) -> None:
    outcome = memcalc("estimate", "llama-3.2-1b", *HF, "--peft", *words)
    assert outcome.status == 0 and said in outcome.out


def test_explain_has_rows_for_what_is_added(memcalc: Any) -> None:
    for words, row in (
        (("prefix",), "prefix"),
        (("adapter",), "o_proj.adapter"),
        (("prompt",), "prompt"),
    ):
        outcome = memcalc("explain", "llama-3.2-1b", *HF, "--peft", *words)
        assert outcome.status == 0 and row in outcome.out


def test_train_time_and_charts_take_them(memcalc: Any, tmp_path: Any) -> None:
    words = (*HF, "--peft", "prefix", "--gpu", "a100-80gb")
    assert memcalc("train-time", "llama-3.2-1b", *words, "--tokens", "1B").status == 0
    picture = str(tmp_path / "x.svg")
    assert memcalc("chart", "timeline", "llama-3.2-1b", *words, "--out", picture).status == 0
