"""Megatron-LM's arguments, read and written: the model's shape, ranks, batches, recomputation, stages.

The sample is in the form of Megatron-LM's examples/gpt3/train_gpt3_175b_distributed.sh.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.planning.interop.megatron_model import sparse_layers
from tests.unit.interop_support import export_of, import_of, kinds, read_text

DATA = Path(__file__).parents[1] / "data" / "interop"
LLAMA = load_model("llama-3.1-8b")


def fields(words: str, **more: Any) -> dict[str, Any]:
    more.setdefault("config", LLAMA)
    return read_text(f"--micro-batch-size 1 {words}", "arguments", "megatron", **more).fields


def test_the_175b_sample_of_its_repository():
    found = import_of(DATA / "megatron_gpt3_175b.sh", "--gpus", "1024")
    assert found.model == "gpt-3-175b"
    assert found.options == {
        "seq": "2048", "micro-batch": "1", "grad-clip": True, "precision": "fp16-mixed", "tp": "8",
        "pp": "16", "stack": "megatron", "no-sp": True, "grad-accum": "192", "gpus": "1024",
    }  # fmt: skip
    said = {remark.key: remark.kind for remark in found.remarks}
    assert said["rampup-batch-size"] == "not modelled"
    assert said["data-path"] == said["lr"] == "no effect"


def test_the_scripts_own_gpus_count_where_none_are_stated():
    assert import_of(DATA / "megatron_gpt3_175b.sh").options["gpus"] == "128"


def test_what_megatron_does_unless_told():
    found = fields("--tensor-model-parallel-size 2")
    assert found["sp"] is False and found["grad_clip"] is True and found["precision"] == "fp32"
    assert fields("--clip-grad 0.0")["grad_clip"] is False
    reading = read_text("--num-layers 32 --hidden-dropout 0", "arguments", "megatron", config=LLAMA)
    assert kinds(reading)["world size"] == "nearest"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
         ("full", None, ())),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 4", ("full", 4, ())),
        ("--recompute-activations", ("selective", None, ())),
        ("--recompute-granularity selective --recompute-modules mlp core_attn",
         ("selective", None, ("mlp", "core_attn"))),
        ("--bf16", ("none", None, ())),
    ],
)  # fmt: skip
def test_recomputation(words, expected):
    found = fields(words)
    got = (
        found.get("recompute", "none"),
        found.get("recompute_layers"),
        found.get("recompute_modules", ()),
    )
    assert got == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--num-layers-per-virtual-pipeline-stage 4", (2, None)),
        ("--num-virtual-stages-per-pipeline-rank 2", (2, None)),
        ("--decoder-first-pipeline-num-layers 7 --decoder-last-pipeline-num-layers 5",
         (None, (7, 10, 10, 5))),
        ("--decoder-last-pipeline-num-layers 2", (None, (10, 10, 10, 2))),
        ("--pipeline-model-parallel-layout Etttttttt|tttttttt|tttttttt|ttttttttL", (None, (8, 8, 8, 8))),
    ],
)  # fmt: skip
def test_stages(words, expected):
    shape = "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --pipeline-model-parallel-size 4"
    found = fields(f"{shape} {words}")
    assert (found.get("vpp"), found.get("stage_layers")) == expected
    assert found.get("schedule") == ("interleaved" if expected[0] else None)


@pytest.mark.parametrize("name", ["gpt-3-175b", "llama-3.1-8b", "llama-3.1-405b", "mixtral-8x7b",
                                  "deepseek-v3", "deepseek-v2-lite", "qwen3-30b-a3b", "gpt2-xl",
                                  "mistral-7b-v0.3", "qwen2.5-7b"])  # fmt: skip
def test_a_models_own_arguments_are_recognised(name):
    found = export_of(
        "megatron", f"{name} --gpus 1 --layers 4" if name == "gpt2-xl" else f"{name} --gpus 1"
    )
    reading = read_text(found.text, "arguments.txt", "megatron")
    model = load_model(str(reading.model))
    if name == "gpt2-xl":  # no profile has four layers
        assert reading.fields["model.num_hidden_layers"] == 4
        return
    own = load_model(name)
    for field in (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "vocab_size",
        "moe",
        "mla",
    ):
        assert getattr(model, field) == getattr(own, field), field


def test_a_shape_no_profile_has_is_a_family_with_its_fields_set():
    words = "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 " \
            "--max-position-embeddings 2048 --micro-batch-size 4 --bf16 --swiglu --normalization RMSNorm " \
            "--position-embedding-type rope --disable-bias-linear --vocab-size 32000 " \
            "--untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0"  # fmt: skip
    found = import_of(words, "--gpus", "8")
    assert found.model == "llama-2-7b"
    sets = dict(word.removeprefix("model.").split("=") for word in found.options["set"])
    assert sets["num_hidden_layers"] == "24" and sets["intermediate_size"] == "5440"
    assert sets["name"] == "megatron-24x2048"


def test_a_stated_model_wins_and_differences_are_said():
    shape = "--num-layers 16 --hidden-size 2048 --num-attention-heads 32 --micro-batch-size 1"
    reading = read_text(shape, "arguments", "megatron", config=LLAMA)
    assert reading.fields["num_layers"] == 16  # fewer: --layers
    assert kinds(reading)["model.hidden_size"] == "nearest"
    assert not any(name.startswith("model.") for name in reading.fields)


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        ("1", 4, (0, 1, 2, 3)), ("2", 4, (0, 2)), ("([0]*1+[1]*3)", 4, (1, 2, 3)),
        ("[0,1,0,1]", 4, (1, 3)), ("([1]*1+[0]*1)*2", 4, (0, 2)),
    ],
)  # fmt: skip
def test_layers_with_experts(text, layers, expected):
    assert sparse_layers(text, layers) == expected


@pytest.mark.parametrize(
    "text", ["0", "-1", "[1]*99", "__import__('os')", "[1]*(2)", "([1]*9999)*9999", ""]
)
def test_a_pattern_is_never_evaluated(text):
    with pytest.raises(ConfigError):
        sparse_layers(text, 4)


def test_what_an_export_lacks():
    words = "llama-3.1-8b --gpus 16 --tp 2 --pp 2 --zero 1 --grad-accum 4 --grad-clip --recompute full:8"
    assert [option for option, _ in export_of("megatron", words).lacking] == ["--gpus 16"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tensor-model-parallel-size two", "rule: a number"),
        ("--tensor-model-parallel-size 2 3", "rule: a number"),
        ("--seq-length nan", "rule: a finite number"),
        ("--seq-length 1e400", "rule: a finite number"),
        ("--global-batch-size 7 --tensor-model-parallel-size 1", "a multiple of"),
        ("--recompute-granularity most", "valid: full, selective"),
        ("--num-layers 30 --pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 4", "leave a"),
        ("--num-layers 30 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4",
         "divides 30 layers"),
    ],
)  # fmt: skip
def test_bad_values_are_one_line(words, said):
    with pytest.raises(ConfigError) as caught:
        fields(words, stated={"gpus": 8})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_without_a_shape_needs_a_model():
    with pytest.raises(ConfigError, match="or --model MODEL"):
        read_text("--micro-batch-size 1 --tensor-model-parallel-size 2", "arguments", "megatron")


def test_experts_that_run_otherwise_than_estimated_are_said():
    shape = "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --num-experts 8 "
    mixtral = load_model("mixtral-8x7b")
    said = kinds(read_text(f"{shape} --bf16", "arguments", "megatron", config=mixtral))
    assert said["moe-token-dispatcher-type"] == said["moe-grouped-gemm"] == "not modelled"
    words = "--moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion"
    said = kinds(read_text(f"{shape} {words}", "arguments", "megatron", config=mixtral))
    assert said["moe-token-dispatcher-type"] == said["moe-permute-fusion"] == "read"


@pytest.mark.parametrize(
    ("words", "method", "kind"),
    [("p2p", "ring", "read"), ("a2a a2a", "ulysses", "read"), ("a2a p2p", None, "not modelled")],
)
def test_how_ranks_of_a_sequence_exchange(words, method, kind):
    reading = read_text(
        f"--num-layers 32 --cp-comm-type {words}", "arguments", "megatron", config=LLAMA
    )
    assert reading.fields.get("cp_method") == method and kinds(reading)["cp-comm-type"] == kind
