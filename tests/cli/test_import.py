"""memcalc import: the estimate, its command, every key accounted for, exit statuses, bad files."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data" / "interop"
ZERO3 = DATA / "deepspeed_zero3_offload.json"
GPT3 = DATA / "megatron_gpt3_175b.sh"


def test_the_command_that_is_printed_gives_the_same_estimate(memcalc):
    found = memcalc("import", ZERO3, "--model", "llama-3.1-8b", "--gpus", "8", "--gpu", "h100-80gb",
                    "--json").json  # fmt: skip
    command = shlex.split(found["import"]["command"])
    assert command[:2] == ["memcalc", "estimate"]
    again = memcalc(*command[1:], "--json").json
    for part in ("memory", "time", "setup", "model", "verdict"):
        assert found[part] == again[part], part


def test_every_key_is_in_the_json(memcalc):
    found = memcalc("import", ZERO3, "--model", "gpt2", "--json").json["import"]
    said = {one["key"]: one["kind"] for one in found["keys"]}
    text = json.loads(ZERO3.read_text())
    assert {"fp16.loss_scale", "zero_optimization.stage", "steps_per_print"} <= set(said)
    assert set(text["zero_optimization"]) - {"offload_optimizer", "offload_param"} <= {
        key.removeprefix("zero_optimization.") for key in said
    }
    assert set(said.values()) <= set(found["meanings"])


def test_the_page_begins_with_the_command_and_notes_go_to_stderr(memcalc):
    outcome = memcalc("import", GPT3, "--gpus", "1024", "--gpu", "a100-80gb")
    assert outcome.out.splitlines()[1].startswith("memcalc estimate gpt-3-175b --seq 2048")
    assert "note: rampup-batch-size: not modelled" in outcome.err
    assert "note: no effect on memory or time: " in outcome.err


def test_exit_statuses_are_those_of_estimate(memcalc):
    assert memcalc("import", GPT3, "--gpus", "1024", "--gpu", "a100-80gb", "-q").status == 0
    small = ("--model", "llama-3.2-1b", "--gpus", "2", "--gpu", "a100-80gb", "--gpu-memory", "2GiB")
    assert memcalc("import", ZERO3, *small, "-q").status == 3


def test_a_saved_run_file_is_the_same_setup(memcalc, tmp_path):
    path = tmp_path / "run.toml"
    words = ("import", ZERO3, "--model", "llama-3.2-1b", "--gpus", "4", "-q")
    found = memcalc(*words, "--save", path)
    assert memcalc("estimate", "--config", path, "-q").out == found.out


def test_arguments_in_quotes(memcalc):
    words = "--num-layers 32 --hidden-size 4096 --micro-batch-size 2 --bf16 --hidden-dropout 0 " \
            "--attention-dropout 0"  # fmt: skip
    outcome = memcalc(
        "import", words, "--model", "llama-3.1-8b", "--gpus", "8", "--seq", "1k", "-q"
    )
    assert outcome.status == 0 and outcome.out.startswith("requested ")
    flags = "--module llama3 --config llama3_8b --parallelism.data_parallel_shard_degree 8"
    assert memcalc("import", flags, "-q").status == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--zero", "1"), {"zero": 1, "offload": "optimizer"}),
        (("--offload", "none"), {"offload": "none", "zero": 3}),
        (("--stack", "torch", "--fsdp", "--offload", "none"), {"stack": "torch", "fsdp": True}),
        (("--set", "stack.reduce_bucket_size=1e8"), {"zero": 3}),
        (
            ("--micro-batch", "4", "--grad-accum", "2"),
            {"micro_batch_size": 4, "grad_accum_steps": 2},
        ),
        (("--precision", "fp16-mixed"), {"precision": "fp16-mixed"}),
    ],
)
def test_what_is_stated_beside_a_file_wins(memcalc, words, expected):
    if "--zero" in words:
        words = (*words, "--offload", "optimizer")
    outcome = memcalc("import", ZERO3, "--model", "llama-3.2-1b", "--gpus", "4", "--json", *words)
    setup = outcome.json["setup"]
    assert {name: setup[name] for name in expected} == expected


def test_a_file_that_names_its_model_can_be_told_another(memcalc):
    path = DATA / "torchtitan_llama3_8b.toml"
    assert memcalc("import", path, "--json").json["model"]["name"] == "llama-3.1-8b"
    outcome = memcalc("import", path, "--model", "llama-3.2-1b", "--gpus", "8", "--json")
    assert outcome.json["model"]["name"] == "llama-3.2-1b"
    assert "llama-3.2-1b was stated and taken" in outcome.err


def test_without_pyyaml_a_yaml_is_one_line_that_names_the_extra(monkeypatch, memcalc):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = memcalc("import", DATA / "accelerate_fsdp2.yaml", "--model", "gpt2")
    assert outcome.status == 2 and "pip install pyyaml" in outcome.error


@pytest.mark.parametrize(
    ("text", "name", "words", "said"),
    [
        ("{}", "x.json", ("--model", "gpt2"), "none of its settings"),
        ('{"train_batch_size": 8}', "x.json", (), "got no model"),
        ('{"train_batch_size": "many"}', "x.json", ("--model", "gpt2"), "rule: a number"),
        (
            '{"zero_optimization": {"stage": 9}}',
            "x.json",
            ("--model", "gpt2", "--gpus", "0"),
            "--gpus",
        ),
        ("", "x.toml", (), "is empty"),
        ("hello", "x.txt", (), "--format"),
        ("a: 1", "x.yaml", ("--model", "gpt2", "--format", "torchtitan"), "none of its settings"),
        ('{"train_batch_size": 8}', "x.json", ("--model", "no-such-model"), "no-such-model"),
        (
            '{"train_batch_size": 8}',
            "x.json",
            ("--model", "gpt2", "--json", "-q"),
            "got --json too",
        ),
    ],
)
def test_bad_input_is_one_line(memcalc, tmp_path, text, name, words, said):
    path = tmp_path / name
    path.write_text(text)
    outcome = memcalc("import", path, *words)
    assert outcome.status == 2 and said in outcome.error


def test_files_that_cannot_be_read_are_one_line(memcalc, tmp_path):
    assert "No such file" in memcalc("import", tmp_path / "none.json", "--model", "gpt2").error
    assert "directory" in memcalc("import", tmp_path, "--model", "gpt2").error
    big = tmp_path / "big.json"
    big.write_bytes(b" " * (1 << 20) + b"{}")
    assert "rule: at most" in memcalc("import", big, "--model", "gpt2").error
    assert "rule: at most" in memcalc("import", "--a " * 300_000).error
    assert "import" in memcalc("import").error
    assert sys.getrecursionlimit() >= 1000


def test_a_shape_made_of_arguments_is_an_estimate_of_that_shape(memcalc):
    words = "--num-layers 24 --hidden-size 1024 --num-attention-heads 16 --seq-length 1024 " \
            "--max-position-embeddings 1024 --micro-batch-size 2 --fp16 --ffn-hidden-size 2048"  # fmt: skip
    found = memcalc("import", words, "--gpus", "1", "--json").json
    h, f, layers, rows = 1024, 2048, 24, 50304  # 50257 of gpt-3, padded to 128
    block = 4 * h * h + 4 * h + 2 * h * f + f + h + 4 * h
    assert found["model"]["parameters"] == layers * block + 2 * h + (50257 + 1024) * h
    assert found["setup"]["dims"]["V"] == rows
