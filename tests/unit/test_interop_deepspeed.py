"""DeepSpeed's JSON, read: batch sizes, dtypes, ZeRO, offload, "auto" values, keys that are not modelled.

The samples are in the form of the Hugging Face documentation's ZeRO-3 example (transformers,
docs/source/en/deepspeed.md) and of DeepSpeed's own (docs/_pages/config-json.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from tests.unit.interop_support import export_of, import_of, kinds, read_text

DATA = Path(__file__).parents[1] / "data" / "interop"
LLAMA = load_model("llama-3.1-8b")


def fields(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    reading = read_text(json.dumps(settings), "ds.json", config=LLAMA, **more)
    return reading.fields


def test_the_zero3_offload_sample_of_the_documentation():
    found = import_of(
        DATA / "deepspeed_zero3_offload.json", "--model", "llama-3.1-8b", "--gpus", "8"
    )
    sizes = [
        f"stack.reduce_bucket_size={4096**2}",
        f"stack.stage3_prefetch_bucket_size={int(0.9 * 4096**2)}",
        f"stack.stage3_param_persistence_threshold={10 * 4096}",
    ]
    assert found.options == {
        "zero": "3", "grad-clip": True, "stack": "deepspeed", "offload": "params", "pin-memory": True,
        "set": sizes, "gpus": "8",
    }  # fmt: skip
    said = {remark.key: remark.kind for remark in found.remarks}
    assert said["zero_optimization.reduce_bucket_size"] == "auto"
    assert said["steps_per_print"] == said["optimizer.params.lr"] == "no effect"


def test_every_key_of_a_document_is_accounted_for_once():
    text = (DATA / "deepspeed_zero2.json").read_text()
    reading = read_text(text, "ds.json", config=LLAMA)
    said = kinds(reading)
    assert len(said) == len(reading.remarks)
    assert said["zero_optimisation.stage"] == "not known"
    assert said["zero_optimization.allgather_bucket_size"] == "not modelled"
    assert said["activation_checkpointing.cpu_checkpointing"] == "no effect"  # it is off
    assert said["zero_optimization.stage"] == "read"
    assert reading.fields["optimizer_impl"] == "foreach"  # torch_adam
    assert reading.fields["precision"] == "fp16-mixed"


@pytest.mark.parametrize(
    ("settings", "stated", "micro", "accum", "gpus"),
    [
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2,
          "gradient_accumulation_steps": 4}, {}, 2, 4, 8),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}, {"gpus": 8}, 2, 4, None),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, {"gpus": 8}, 2, 4, None),
        ({"train_batch_size": 64}, {"gpus": 8}, 8, None, None),
        ({"train_micro_batch_size_per_gpu": 3}, {}, 3, None, None),
    ],
)  # fmt: skip
def test_any_two_batch_sizes_give_the_third(settings, stated, micro, accum, gpus):
    found = fields(settings, stated=stated)
    assert found.get("micro_batch_size") == micro
    assert found.get("grad_accum_steps") == accum
    assert found.get("gpus") == gpus


def test_a_total_that_contradicts_the_gpus_is_refused_by_the_estimate(memcalc_error):
    settings = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2,
                "gradient_accumulation_steps": 4}  # fmt: skip
    found = memcalc_error(settings, "--gpus", "4")
    assert "global-batch: got 64" in found


@pytest.fixture
def memcalc_error(tmp_path):
    from memcalc.cli.parse import Arguments
    from memcalc.cli.request import request_of
    from memcalc.engine.estimate import estimate

    def run(settings: dict[str, Any], *words: str) -> str:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(settings))
        found = import_of(path, "--model", "llama-3.1-8b", *words)
        request = request_of(Arguments("estimate", [found.model], dict(found.options)))
        with pytest.raises(ConfigError) as caught:
            estimate(request.config, request.setup, parallel=request.parallel)
        return str(caught.value)

    return run


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({"bf16": {"enabled": True}}, "bf16-mixed"),
        ({"fp16": {"enabled": "true"}}, "fp16-mixed"),
        ({"train_batch_size": 8}, "fp32"),
        ({"fp16": {"enabled": "auto"}}, "fp16-mixed"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, "bf16-mixed"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": False}}, "fp16-mixed"),
    ],
)
def test_the_dtype(settings, precision):
    assert fields(settings)["precision"] == precision


@pytest.mark.parametrize(
    ("optimizer", "name", "impl"),
    [
        ({"type": "AdamW"}, "adamw", None),
        ({"type": "Adam", "params": {"torch_adam": True}}, "adamw", "foreach"),
        ({"type": "AdamW", "params": {"torch_adam": True, "fused": True}}, "adamw", "fused"),
        ({"type": "AdamW", "params": {"torch_adam": True, "foreach": False}}, "adamw", "loop"),
        ({"type": "SGD", "params": {"momentum": 0.9}}, "momentum", None),
        ({"type": "SGD"}, "sgd", None),
        ({"type": "Lion"}, "lion", None),
    ],
)
def test_the_optimizer(optimizer, name, impl):
    found = fields({"optimizer": optimizer})
    assert (found["optimizer"], found.get("optimizer_impl")) == (name, impl)


def test_an_optimizer_of_another_kind_is_said():
    reading = read_text('{"optimizer": {"type": "OneBitAdam"}}', "ds.json", config=LLAMA)
    assert kinds(reading)["optimizer.type"] == "not modelled"


@pytest.mark.parametrize(
    ("blocks", "offload", "device"),
    [
        ({"offload_optimizer": {"device": "cpu"}}, "optimizer", None),
        ({"offload_param": {"device": "nvme"}}, "params", "nvme"),
        ({"offload_optimizer": {"device": "none"}}, None, None),
        (
            {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "nvme"}},
            "params",
            None,
        ),
    ],
)
def test_offload(blocks, offload, device):
    found = fields({"zero_optimization": {"stage": 3, **blocks}})
    assert (found.get("offload"), found.get("offload_device")) == (offload, device)


def test_what_releases_differ_in_is_said_and_written():
    reading = read_text('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
                        "ds.json", config=LLAMA)  # fmt: skip
    said = kinds(reading)
    assert (
        said["gradient_clipping"]
        == said["zero_optimization.offload_optimizer.pin_memory"]
        == "nearest"
    )
    written = export_of("deepspeed", "gpt2 --gpus 2 --zero 2 --offload optimizer").document
    assert written["gradient_clipping"] == 0.0
    assert written["zero_optimization.offload_optimizer.pin_memory"] is False


def test_overlap_of_stage_3_is_what_is_estimated():
    off = read_text(
        '{"zero_optimization": {"stage": 3, "overlap_comm": false}}', "d.json", config=LLAMA
    )
    assert kinds(off)["zero_optimization.overlap_comm"] == "not modelled"
    two = fields({"zero_optimization": {"stage": 2, "overlap_comm": True}})
    assert two["stack.overlap_comm"] is True


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage: got 'two'"),
        ({"zero_optimization": {"stage": 1.5}}, "rule: a whole number"),
        ({"zero_optimization": {"stage": [3]}}, "rule: a number"),
        ({"bf16": {"enabled": 7}}, "bf16.enabled: got 7; rule: true or false"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "got fp16.enabled too"),
        ({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4}, "a multiple of"),
        ({"train_batch_size": 0, "train_micro_batch_size_per_gpu": 4}, "a multiple of"),
        ({"zero_optimization": {"offload_param": {"device": "tape"}}}, "valid: none, cpu, nvme"),
        ({"nothing": 1}, "none of its settings"),
        ({}, "none of its settings"),
    ],
)
def test_bad_values_are_one_line(settings, said):
    with pytest.raises(ConfigError, match=".") as caught:
        fields(settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_export_lacks_only_what_deepspeed_has_elsewhere():
    found = export_of(
        "deepspeed", "llama-3.1-8b --gpus 8 --zero 3 --offload params --seq 4k --micro-batch 2"
    )
    assert [option for option, _ in found.lacking] == ["--model llama-3.1-8b", "--seq 4096"]
