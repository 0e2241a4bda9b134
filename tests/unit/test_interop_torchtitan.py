"""torchtitan's TOML and flags, read and written: ranks, batches, stages, dtypes, recipes.

The sample has the structure of torchtitan's models/llama3/train_configs/llama3_8b.toml (0.2.0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from tests.unit.interop_support import export_of, import_of, kinds, read_text

DATA = Path(__file__).parents[1] / "data" / "interop"
FLAGS = "--module llama3 --config llama3_8b "


def toml(text: str, **more: Any) -> dict[str, Any]:
    return read_text(text, "t.toml", config=load_model("llama-3.1-8b"), **more).fields


def flags(text: str, **more: Any) -> dict[str, Any]:
    return read_text(FLAGS + text, "arguments", "torchtitan", **more).fields


def test_the_sample_of_its_repository():
    found = import_of(DATA / "torchtitan_llama3_8b.toml", "--gpus", "64")
    assert found.model == "llama-3.1-8b"
    assert found.options == {
        "seq": "8192", "optimizer-impl": "fused", "stack": "torchtitan", "fsdp": True,
        "micro-batch": "1", "grad-accum": "1", "grad-clip": True, "recompute": "sac", "gpus": "64",
    }  # fmt: skip


def test_without_gpus_the_shard_degree_is_of_eight():
    reading = read_text((DATA / "torchtitan_llama3_8b.toml").read_text(), "t.toml")
    assert reading.fields["gpus"] == 8
    assert kinds(reading)["parallelism.data_parallel_shard_degree"] == "nearest"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("data_parallel_shard_degree = 4", {"gpus": 4, "fsdp": True}),
        ("data_parallel_shard_degree = 4\ndata_parallel_replicate_degree = 2",
         {"gpus": 8, "fsdp": True, "shard": 4}),
        ("data_parallel_shard_degree = 1\ndata_parallel_replicate_degree = 4", {"gpus": 4}),
        ("data_parallel_shard_degree = 1\ncontext_parallel_degree = 2",
         {"gpus": 2, "fsdp": True, "cp": 2}),
        ("data_parallel_shard_degree = 2\ncontext_parallel_degree = 2\n"
         "data_parallel_replicate_degree = 3", {"gpus": 12, "fsdp": True, "cp": 2, "shard": 4}),
    ],
)  # fmt: skip
def test_degrees(keys, expected):
    found = toml(f"[parallelism]\n{keys}\n")
    assert {
        name: found.get(name) for name in ("gpus", "fsdp", "shard", "cp") if name in found
    } == expected


def test_batches_with_stages_are_cut_into_micro_batches():
    text = (
        "[training]\nlocal_batch_size = 16\n[parallelism]\npipeline_parallel_degree = 4\n"
        "data_parallel_shard_degree = 2\npipeline_parallel_microbatch_size = 2\n"
    )
    found = toml(text)
    assert (found["micro_batch_size"], found["grad_accum_steps"]) == (2, 8)
    found = toml(
        "[training]\nlocal_batch_size = 2\nglobal_batch_size = 32\n[parallelism]\n"
        "data_parallel_shard_degree = 4\n"
    )
    assert (found["micro_batch_size"], found["grad_accum_steps"]) == (2, 4)


@pytest.mark.parametrize(
    ("keys", "vpp", "layers"),
    [
        ("", None, (8, 9, 8, 7)),
        ("pipeline_parallel_first_stage_less_layers = 0\n"
         "pipeline_parallel_last_stage_less_layers = 0", None, None),
        ('pipeline_parallel_schedule = "Interleaved1F1B"', 2, (4, 5, 4, 4, 4, 4, 4, 3)),
        ("pipeline_parallel_layers_per_stage = 4\npipeline_parallel_first_stage_less_layers = 0\n"
         'pipeline_parallel_last_stage_less_layers = 0\npipeline_parallel_schedule = "Interleaved1F1B"',
         2, None),
    ],
)  # fmt: skip
def test_stages_are_cut_by_torchtitans_rule(keys, vpp, layers):
    text = f"[parallelism]\npipeline_parallel_degree = 4\ndata_parallel_shard_degree = 1\n{keys}\n"
    found = toml(text)
    assert (found.get("vpp"), found.get("stage_layers")) == (vpp, layers)


def test_named_modules_are_the_blocks_of_stages():
    words = "llama-3.1-8b --gpus 2 --pp 2 --stage-layers 15,17 --grad-accum 2"
    document = export_of("torchtitan", words, "0.2").document
    parts = document["parallelism.module_fqns_per_model_part"]
    assert parts[0][:2] == ["tok_embeddings", "layers.0"] and parts[1][-3:] == [
        "layers.31",
        "norm",
        "output",
    ]
    assert [len(part) for part in parts] == [16, 19]


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ("", "bf16-mixed"), ('dtype = "bfloat16"', "bf16"),
        ('mixed_precision_param = "float32"', "fp32"),
    ],
)  # fmt: skip
def test_precision(keys, precision):
    shard = "[parallelism]\ndata_parallel_shard_degree = 8\n"
    assert toml(f"[training]\n{keys}\n{shard}")["precision"] == precision
    alone = "[parallelism]\ndata_parallel_shard_degree = 1\ntensor_parallel_degree = 2\n"
    mixed = toml(f"[training]\n{keys}\n{alone}")["precision"]
    assert mixed == ("fp32" if precision == "bf16-mixed" else precision)


def test_float8_is_fp8_mixed():
    text = (
        '[model]\nconverters = ["float8"]\n[parallelism]\ndata_parallel_shard_degree = 8\n'
        "[quantize.linear.float8]\nenable_fsdp_float8_all_gather = true\n"
    )
    found = toml(text)
    assert found["precision"] == "fp8-mixed" and found["kernels.fp8_gather"] is True


@pytest.mark.parametrize(
    ("mode", "option", "recompute", "blocks"),
    [
        ("none", "op", "none", None), ("full", "op", "full", None), ("selective", "op", "sac", None),
        ("selective", "2", "full", 16), ("selective", "1", "full", None),
    ],
)  # fmt: skip
def test_recomputation(mode, option, recompute, blocks):
    text = f'[activation_checkpoint]\nmode = "{mode}"\nselective_ac_option = "{option}"\n'
    found = toml(text)
    assert (found["recompute"], found.get("recompute_layers")) == (recompute, blocks)


def test_a_recipe_has_values_of_its_own_which_flags_change():
    own = flags("--parallelism.data_parallel_shard_degree 8")
    assert (own["seq_len"], own["micro_batch_size"], own["recompute"]) == (8192, 1, "sac")
    assert (own["loss"], own["optimizer_impl"]) == ("chunked", "fused")
    changed = flags("--training.seq-len 4096 --compile.enable --parallelism.tensor_parallel_degree=2 "
                    "activation-checkpoint:full")  # fmt: skip
    assert changed["seq_len"] == 4096 and changed["compile"] and changed["tp"] == 2
    assert changed["recompute"] == "full" and changed["sp"] is True
    assert flags("--parallelism.no-enable-sequence-parallel "
                 "--parallelism.tensor_parallel_degree 2")["sp"] is False  # fmt: skip


def test_the_405b_recipe_is_compiled_fp8():
    reading = read_text("--module llama3 --config llama3_405b --parallelism.data_parallel_shard_degree 8",
                        "arguments", "torchtitan")  # fmt: skip
    assert reading.model == "llama-3.1-405b"
    assert reading.fields["precision"] == "fp8-mixed" and reading.fields["compile"]


def test_an_unknown_recipe_is_said():
    reading = read_text("--module qwen3 --config qwen3_x --training.seq_len 4096", "arguments",
                        config=load_model("qwen3-8b"))  # fmt: skip
    assert kinds(reading)["config"] == "nearest" and reading.fields["stack"] == "torch"


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_what_an_export_lacks(version):
    words = "llama-3.1-8b --gpus 16 --fsdp --tp 2 --grad-clip --seq 8k --recompute sac"
    lacking = {option for option, _ in export_of("torchtitan", words, version).lacking}
    assert lacking == (set() if version == "0.2" else {"--loss fp32"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nlocal_batch_size = 0\n", "at least 1"),
        ("[training]\nlocal_batch_size = 2\nglobal_batch_size = 9\n", "a multiple of"),
        ('[training]\nseq_len = "long"\n', "rule: a number"),
        ("[parallelism]\ndata_parallel_shard_degree = 0\n", "1 and more"),
        (
            "[parallelism]\npipeline_parallel_degree = 4\npipeline_parallel_layers_per_stage = 0\n",
            ">= 1",
        ),
        (
            "[parallelism]\npipeline_parallel_degree = 4\npipeline_parallel_layers_per_stage = 5\n",
            "multiple",
        ),
        (
            "[parallelism]\npipeline_parallel_degree = 2\nmodule_fqns_per_model_part = [1]\n",
            "list of lists",
        ),
        ("[job]\ndescription = 'x'\n", "none of its settings"),
    ],
)
def test_bad_values_are_one_line(text, said):
    with pytest.raises(ConfigError) as caught:
        toml(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)
