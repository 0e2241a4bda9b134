"""accelerate's YAML, read and written: DDP, FSDP 1 and 2, tensor parallelism, DeepSpeed, Megatron-LM.

The samples are in the form that `accelerate config` writes (accelerate 1.15.0, docs/source/usage_guides).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from tests.unit.interop_support import export_of, import_of, kinds, read_text

pytest.importorskip("yaml", reason="YAML is read by PyYAML; pip install 'memcalc[interop]'")
DATA = Path(__file__).parents[1] / "data" / "interop"
LLAMA = load_model("llama-3.1-8b")
HEAD = "distributed_type: FSDP\nnum_processes: 8\nmixed_precision: bf16\nfsdp_config:\n  "


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("accelerate_fsdp2.yaml",
         {"stack": "hf", "gpus": "16", "fsdp": True, "recompute": "full"}),
        ("accelerate_fsdp1.yaml",
         {"stack": "fsdp1", "gpus": "8", "fsdp": True, "reshard": "false"}),
        ("accelerate_deepspeed.yaml",
         {"stack": "deepspeed", "gpus": "4", "zero": "2", "precision": "fp16-mixed", "grad-clip": True,
          "offload": "optimizer", "grad-accum": "4"}),
    ],
)  # fmt: skip
def test_samples_of_the_documentation(file, options):
    assert import_of(DATA / file, "--model", "llama-3.1-8b").options == options


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("FULL_SHARD", {"fsdp": True}), ("1", {"fsdp": True}),
        ("SHARD_GRAD_OP", {"fsdp": True, "reshard": False}), ("NO_SHARD", {}),
        ("HYBRID_SHARD", {"fsdp": True, "shard": 8}),
    ],
)  # fmt: skip
def test_fsdp1s_sharding_strategies(strategy, expected):
    found = read_text(f"{HEAD}fsdp_sharding_strategy: {strategy}\n", "a.yaml", config=LLAMA).fields
    assert found == {"precision": "bf16-mixed", "stack": "fsdp1", "gpus": 8, **expected}


def test_degrees_of_parallelism_config():
    text = (
        "distributed_type: FSDP\nnum_processes: 32\nmixed_precision: bf16\n"
        "fsdp_config:\n  fsdp_version: 2\nparallelism_config:\n"
        "  parallelism_config_tp_size: 2\n  parallelism_config_dp_replicate_size: 2\n"
        "  parallelism_config_dp_shard_size: 8\n"
    )
    found = read_text(text, "a.yaml", config=LLAMA).fields
    assert found["stack"] == "torch" and found["tp"] == 2
    assert found["gpus"] == 32 and found["shard"] == 8 and found["fsdp"]


def test_nodes_of_another_size_are_said():
    text = "distributed_type: MULTI_GPU\nnum_processes: 8\nnum_machines: 2\n"
    assert read_text(text, "a.yaml", config=LLAMA).fields["gpus_per_node"] == 4
    text = "distributed_type: MULTI_GPU\nnum_processes: 16\nnum_machines: 2\n"
    assert "gpus_per_node" not in read_text(text, "a.yaml", config=LLAMA).fields


def test_what_accelerates_plugins_fill_in():
    deep = read_text("distributed_type: DEEPSPEED\nnum_processes: 4\n", "a.yaml", config=LLAMA)
    assert deep.fields["zero"] == 2
    megatron = read_text(
        "distributed_type: MEGATRON_LM\nnum_processes: 4\n", "a.yaml", config=LLAMA
    )
    assert megatron.fields["recompute"] == "full" and megatron.fields["grad_clip"]
    said = kinds(megatron)
    assert said["megatron_lm_config.megatron_lm_recompute_granularity"] == "nearest"
    assert said["megatron_lm_config.megatron_lm_context_parallel_size"] == "nearest"


def test_another_file_is_not_opened():
    text = (
        "distributed_type: DEEPSPEED\nnum_processes: 4\n"
        "deepspeed_config:\n  deepspeed_config_file: /etc/passwd\n"
    )
    reading = read_text(text, "a.yaml", config=LLAMA)
    assert kinds(reading)["deepspeed_config.deepspeed_config_file"] == "not modelled"
    assert "zero" not in reading.fields


def test_keys_that_change_the_estimate_and_are_not_in_it_are_said():
    text = f"{HEAD}fsdp_forward_prefetch: true\n  fsdp_backward_prefetch: NO_PREFETCH\n  fsdp_version: 2\n"
    said = kinds(read_text(text, "a.yaml", config=LLAMA))
    assert said["fsdp_config.fsdp_forward_prefetch"] == "not modelled"
    assert said["fsdp_config.fsdp_backward_prefetch"] == "not modelled"


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        ("llama-3.1-8b --gpus 16 --fsdp --recompute full", ["--seq 2048", "--micro-batch 1"]),
        ("llama-3.1-8b --gpus 8 --precision bf16",
         ["--seq 2048", "--micro-batch 1", "--precision bf16"]),
        ("llama-3.1-8b --gpus 8 --fsdp --recompute full:4",
         ["--seq 2048", "--micro-batch 1", "--recompute full:4"]),
    ],
)  # fmt: skip
def test_what_an_export_lacks(words, lacking):
    found = {option for option, _ in export_of("accelerate", words).lacking}
    assert found == {"--model llama-3.1-8b", *lacking}


def test_tensor_parallelism_without_fsdp_is_refused():
    with pytest.raises(ConfigError, match="without fsdp"):
        export_of("accelerate", "llama-3.1-8b --gpus 2 --tp 2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("distributed_type: TPU\n", "got 'TPU'"),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 8\nnum_machines: 3\n",
            "divides num_processes",
        ),
        ("distributed_type: MULTI_GPU\nnum_processes: -1\nnum_machines: 1\n", "num_machines"),
        (f"{HEAD}fsdp_sharding_strategy: SOME\n", "valid: FULL_SHARD"),
        ("distributed_type: [1]\n", "rule: a word"),
    ],
)
def test_bad_values_are_one_line(text, said):
    with pytest.raises(ConfigError) as caught:
        read_text(text, "a.yaml", config=LLAMA)
    assert said in str(caught.value) and "\n" not in str(caught.value)
