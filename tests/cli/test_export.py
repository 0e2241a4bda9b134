"""memcalc export: text, JSON, files, what is said of what a format cannot state, bad input."""

from __future__ import annotations

import json
import tomllib

import pytest

MODEL = ("export", "llama-3.1-8b", "--gpus", "8")


def test_the_text_goes_to_stdout_and_what_lacks_to_stderr(memcalc):
    outcome = memcalc(*MODEL, "--zero", "3", "--format", "deepspeed", "--recompute", "full")
    assert outcome.status == 0
    assert json.loads(outcome.out)["zero_optimization"]["stage"] == 3
    assert "not expressed: --recompute full: of the model's code" in outcome.err
    assert "not expressed: --model llama-3.1-8b" in outcome.err


def test_quiet_is_the_text_alone(memcalc):
    outcome = memcalc(*MODEL, "--zero", "1", "--format", "deepspeed", "-q")
    assert json.loads(outcome.out)["train_batch_size"] == 8 and outcome.err == ""


def test_the_json_has_the_text_the_keys_and_what_lacks(memcalc):
    found = memcalc(
        *MODEL, "--fsdp", "--format", "torchtitan", "--tool-version", "0.2", "--json"
    ).json
    assert (
        found["schema"] == 1 and found["format"] == "torchtitan" and found["stack"] == "torchtitan"
    )
    assert tomllib.loads(found["text"])["parallelism"]["data_parallel_shard_degree"] == 8
    assert found["settings"]["model.flavor"] == "8B"
    assert {"option", "why"} == set(found["unexpressed"][0])


def test_a_file_takes_the_text(memcalc, tmp_path):
    path = tmp_path / "args.txt"
    outcome = memcalc(*MODEL, "--tp", "2", "--format", "megatron", "-o", path)
    assert outcome.out == "" and "--tensor-model-parallel-size 2\n" in path.read_text()


def test_a_run_file_states_the_setup(memcalc, tmp_path):
    path = tmp_path / "run.toml"
    memcalc("estimate", "llama-3.2-1b", "--gpus", "4", "--zero", "2", "--stack", "deepspeed",
            "--save", path, "-q")  # fmt: skip
    outcome = memcalc("export", "--config", path, "--format", "deepspeed", "-q")
    assert json.loads(outcome.out)["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("words", "stack"),
    [
        (("--format", "deepspeed"), "deepspeed"), (("--format", "accelerate"), "hf"),
        (("--format", "accelerate", "--zero", "2"), "deepspeed"),
        (("--format", "accelerate", "--tp", "2", "--fsdp"), "torch"),
        (("--format", "torchtitan"), "torchtitan"), (("--format", "megatron"), "megatron"),
    ],
)  # fmt: skip
def test_the_stack_is_the_tools_own_unless_stated(memcalc, words, stack):
    assert memcalc(*MODEL, *words, "--json").json["stack"] == stack


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "got no --format; valid: deepspeed, accelerate, torchtitan, megatron"),
        (("--format", "nemo"), "--format: got 'nemo'"),
        (("--format", "deepspeed", "--stack", "torch"), "stack: got torch with --format deepspeed"),
        (("--format", "megatron", "--tool-version", "0.2"), "megatron has one form"),
        (("--format", "torchtitan", "--tool-version", "7"), "--tool-version"),
        (("--format", "megatron", "--tp", "3"), "tp: got 3"),
        (("--format", "deepspeed", "--tp", "2"), "tp: got 2 on stack deepspeed"),
        (("--format", "deepspeed", "--json", "-q"), "got --json too"),
        (("--format", "deepspeed", "-o", "/nowhere/at/all.json"), "cannot write"),
    ],
)
def test_bad_input_is_one_line(memcalc, words, said):
    outcome = memcalc(*MODEL, *words)
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.status == 2 and len(lines) == 1 and said in lines[0], outcome.err
    assert outcome.out == ""
