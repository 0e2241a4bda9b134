"""--stack FILE.toml: a shipped stack with entries of the user's own (inputs/own_stack.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.profiles import profile_names
from memcalc.inputs.stacks import base_of, check_stack, load_stack

SIZE = {"seq_len": 512, "micro_batch_size": 8, "optimizer_impl": "fused"}


@pytest.fixture
def made(tmp_path: Path):
    """A file of this text, its path as `--stack` takes it."""

    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def peak(stack: str, *, layout: ParallelPlan | None = None, **kernels: object) -> int:
    setup = TrainingSetup(**(SIZE if layout is None else {"seq_len": 128}), stack=stack)
    found = estimate("gpt2", setup, gpu="h100-80gb", kernels=kernels, parallel=layout)
    return found.memory.peak_requested_bytes


def test_an_entry_stated_means_what_set_means(made) -> None:
    own = made('base = "torch"\n[kernels]\nloss = "plain"\n')
    setup = TrainingSetup(**SIZE, stack=own)
    found = estimate("gpt2", setup, gpu="h100-80gb")
    same = estimate("gpt2", TrainingSetup(**SIZE, loss="plain"), gpu="h100-80gb")
    assert found.setup["loss"] == "plain"
    assert found.memory.peak_requested_bytes == same.memory.peak_requested_bytes != peak("torch")


def test_entries_of_the_layout_are_taken(made) -> None:
    layout = ParallelPlan(gpus=4, zero=2)
    text = 'base = "deepspeed"\n[parallel]\nreduce_bucket_size = {value = 1000000, source = "ds.json"}\n'
    stated = peak("deepspeed", layout=layout, **{"stack.reduce_bucket_size": 1000000})
    assert peak(made(text), layout=layout) == stated < peak("deepspeed", layout=layout)


@pytest.mark.parametrize("name", profile_names("stacks"))
def test_a_file_that_states_nothing_is_its_base(made, name: str) -> None:
    own, shipped = load_stack(made(f'base = "{name}"\n')), load_stack(name)
    assert (own.name, own.choices, own.parallel) == (name, shipped.choices, shipped.parallel)
    assert "nothing was held against" in own.verified_against


def test_a_changed_file_is_read_again(made) -> None:
    path = made('[kernels]\nnorm = "hand"\n')
    assert load_stack(path).choices["norm"] == "hand"
    stamp = os.stat(path)
    made('[kernels]\nnorm = "fused"\n')
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    assert load_stack(path).choices["norm"] == "fused"


def test_the_rules_of_the_base_hold(made) -> None:
    own = made('base = "megatron"\n')
    assert base_of(own) == "megatron" and base_of("hf") == "hf"
    TrainingSetup(stack=own, capacity_factor=1.5)
    with pytest.raises(ConfigError, match=r"compile: with stack .*mine\.toml"):
        TrainingSetup(stack=own, compile=True)
    with pytest.raises(ConfigError, match='base = "torch-compile"'):
        TrainingSetup(stack=made('base = "torch"'), compile=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('base = "torchtitn"', "nearest: torchtitan"),
        ("base = 3", "rule: a text"),
        ("[kernel]\n", "got 'kernel', not known; nearest: kernels"),
        ('[kernels]\nnorm = "fusd"', "got 'fusd'; valid: hand, decomposed, fused"),
        ("[kernels]\npacked = 1", "rule: true or false"),
        ("[kernels]\nnorm = {values = 1}", "rule: { value = ..., source = ... }"),
        ("[parallel]\nreduce_bucket_size = 5", "got 'reduce_bucket_size', not known"),
        ('[kernels]\nattention = "eager"', "rule: --attention states it"),
        ('[parallel]\nstates = "fsdp1"', "rule: 'fsdp2', the base's"),
        ('base = "deepspeed"\n[parallel]\nreduce_bucket_size = 0', "rule: 1 to 10^15"),
        ('base = "deepspeed"\n[parallel]\nreduce_bucket_size = true', "rule: a whole number"),
        ('base = "megatron"\n[parallel]\nschedules = ["gpipe"]', "the base's"),
        ('base = "megatron"\n[parallel]\ncudnn_attention_on = ["tpu"]', "got 'tpu'; valid:"),
        ("[[kernels]]\n", "rule: a table"),
        ("base = ", "rule: valid TOML"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_said_in_one_line(made, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_stack(made(text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    check_stack("anything.toml")  # its content is judged when it is read
    with pytest.raises(ConfigError, match="No such file"):
        load_stack(str(tmp_path / "no.toml"))
