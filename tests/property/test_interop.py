"""Round trips: what an export writes, with the options it says it lacks, imports as the same estimate.

Setups are drawn from each tool's options; those memcalc refuses are not counted. Equal means the whole of
memory and time, to the last bit: nothing is dropped silently.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from memcalc.cli.app import parse_arguments
from memcalc.cli.export import exported
from memcalc.cli.import_settings import imported
from memcalc.cli.request import request_of
from memcalc.engine.estimate import estimate
from memcalc.errors import ConfigError
from tests.draws import draws

GPU = "--gpu h100-80gb"
COMMON = {
    "seq": ("", "512", "1024"),
    "micro-batch": ("", "1", "2", "3"),
    "grad-accum": ("", "1", "4", "8"),
    "grad-clip": ("", True),
    "recompute": ("", "none", "full", "full:2", "selective", "sac", "sac-attention"),
    "dropout": ("", "", "", "0.2"),
    "layers": ("", "4"),
}
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "deepspeed": COMMON | {
        "gpus": ("1", "4", "8"), "zero": ("0", "1", "2", "3"),
        "precision": ("", "fp32", "bf16-mixed", "fp16-mixed", "bf16-master"),
        "optimizer": ("", "adamw", "sgd", "momentum", "lion", "none"),
        "optimizer-impl": ("", "", "foreach", "fused", "loop"),
        "offload": ("", "", "optimizer", "params", "all"), "offload-device": ("", "", "nvme"),
        "pin-memory": ("", True), "no-pin-memory": ("", "", True),
        "attention": ("", "eager"), "peft": ("", "", "", "lora", "freeze:2"),
        "set": ("", "", "stack.reduce_bucket_size=2e8", "stack.overlap_comm=true",
                "stack.stage3_max_live_parameters=3e8", "training.reentrant=true"),
    },
    "accelerate": COMMON | {
        "stack": ("", "", "torch", "fsdp1", "deepspeed", "megatron"), "gpus": ("1", "4", "8", "16"),
        "gpus-per-node": ("", "", "4"), "zero": ("", "", "", "1", "2", "3"), "fsdp": ("", True),
        "precision": ("", "fp32", "bf16", "fp16-mixed", "tf32"), "tp": ("", "", "", "2"),
        "cp": ("", "", "", "2"), "pp": ("", "", "", "2"), "shard": ("", "", "2", "4", "8"),
        "reshard": ("", "", "true", "false", "2"), "optimizer-impl": ("", "fused"),
        "offload": ("", "", "params", "optimizer", "activations"), "sp": ("", "", True),
    },
    "torchtitan": COMMON | {
        "gpus": ("1", "4", "8", "16"), "fsdp": ("", True, True), "tp": ("", "", "2"), "pp": ("", "", "2"),
        "cp": ("", "", "", "2"), "vpp": ("", "", "", "2"), "zero": ("", "", "", "1", "2"),
        "schedule": ("", "", "", "gpipe", "interleaved", "zb-v", "zb-h1", "dualpipe"),
        "shard": ("", "", "", "2", "4"), "reshard": ("", "", "true", "false", "2"),
        "precision": ("", "", "bf16", "fp32", "fp8-mixed", "fp16-mixed"),
        "optimizer": ("", "", "sgd"), "optimizer-impl": ("", "fused", "loop"),
        "optimizer-in-backward": ("", "", "", True), "compile": ("", "", True),
        "loss": ("", "", "plain", "chunked"), "stack": ("", "", "torch"), "sp": ("", "", True),
        "no-sp": ("", "", "", True), "offload": ("", "", "", "params"), "gpus-per-node": ("", "", "4"),
        "set": ("", "", "kernels.fp8_gather=true", "kernels.compile_loss=false",
                "training.loss_chunks=4", "kernels.norm=decomposed"),
    },
    "megatron": COMMON | {
        "gpus": ("1", "4", "8", "16"), "tp": ("", "2", "4"), "pp": ("", "", "2", "4"),
        "vpp": ("", "", "2"), "schedule": ("", "", "interleaved", "1f1b"), "cp": ("", "", "2"),
        "ep": ("", "2", "4"), "etp": ("", "", "1", "2"), "zero": ("", "0", "1", "1"),
        "shard": ("", "", "", "2"), "no-sp": ("", "", True), "cp-method": ("", "", "ulysses"),
        "precision": ("", "", "fp32", "fp16-mixed"), "optimizer": ("", "", "sgd", "none"),
        "optimizer-dtype": ("", "", "", "bf16"), "attention": ("", "", "cudnn", "eager"),
        "loss": ("", "fused"), "recompute": ("", "full", "full:2", "selective"),
        "recompute-modules": ("", "", "mlp", "core_attn,mlp", "moe_act"),
        "overlap-grad-reduce": ("", True), "overlap-param-gather": ("", "", True),
        "stage-layers": ("", "", "", "7,9", "3,5,5,3", "2,6,5,3"),
        "capacity-factor": ("", "", "1.25"), "pad-to-capacity": ("", "", True),
        "imbalance": ("", "", "1.5"), "peft": ("", "", "", "", "lora"),
        "set": ("", "", "stack.adds_in_place=false", "model.vocab_size=32000",
                "model.num_key_value_heads=8"),
    },
}  # fmt: skip
MODELS = {
    "deepspeed": ("llama-3.2-1b", "gpt2"),
    "accelerate": ("llama-3.2-1b", "gpt2", "qwen3-0.6b"),
    "torchtitan": ("llama-3.1-8b", "qwen3-0.6b", "llama-3.2-1b", "qwen3-30b-a3b"),
    "megatron": ("llama-3.2-1b", "gpt2", "qwen3-0.6b", "mixtral-8x7b", "deepseek-v2-lite"),
}  # fmt: skip
VERSIONS = [("deepspeed", ""), ("accelerate", ""), ("torchtitan", "0.2"), ("torchtitan", "0.3"),
            ("megatron", "")]  # fmt: skip
ENDINGS = {"deepspeed": "json", "accelerate": "yaml", "torchtitan": "toml", "megatron": "txt"}


@st.composite
def setups(draw: st.DrawFn, tool: str) -> list[str]:
    """A model and some of the tool's options; most draws leave most of them alone."""
    words = [draw(st.sampled_from(MODELS[tool]))]
    picked = draw(st.lists(st.sampled_from(sorted(OPTIONS[tool])), max_size=9, unique=True))
    for name in dict.fromkeys(["gpus", *picked]):
        value = draw(st.sampled_from(OPTIONS[tool][name]))
        if value is True:
            words.append(f"--{name}")
        elif value != "":
            words += [f"--{name}", value]
    return words


def figures(command: list[str]) -> dict[str, Any]:
    """Memory and time of `memcalc estimate` with these words."""
    arguments = parse_arguments("estimate", command)
    request = request_of(arguments)
    result = estimate(
        request.config, request.setup, parallel=request.parallel, gpu=request.device(arguments),
        kernels=request.kernels,
    ).to_dict()  # fmt: skip
    return {"memory": result["memory"], "time": result["time"]}


def back(found: Any, path: Path, words: list[str]) -> list[str]:
    """The words of the estimate that an import of a file, with options beside it, is."""
    path.write_text(found.text, "utf-8")
    beside = [str(path), "--format", found.form.tool.name, *words, *GPU.split()]
    read = imported(parse_arguments("import", beside))
    return shlex.split(read.command.removeprefix("memcalc estimate "))


@pytest.mark.parametrize(("tool", "version"), VERSIONS, ids=lambda value: value or "-")
@settings(max_examples=draws(90), deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow,
                                 HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_an_export_with_what_it_lacks_imports_as_the_same_estimate(tool, version, data, tmp_path):
    if tool == "accelerate":
        pytest.importorskip("yaml", reason="YAML is read by PyYAML; pip install 'memcalc[interop]'")
    words = data.draw(setups(tool))
    beside = ["--format", tool, *(["--tool-version", version] if version else [])]
    arguments = parse_arguments("export", [*words, *beside])
    try:
        found = exported(arguments)
    except ConfigError:
        assume(False)
    stack = ["--stack", str(found.facts["stack"])] if "--stack" not in words else []
    ending = "txt" if version == "0.3" else ENDINGS[tool]
    lacking = [word for option, _ in found.lacking for word in shlex.split(option)]
    again = back(found, tmp_path / f"settings.{ending}", lacking)
    assert figures(again) == figures([*words, *stack, *GPU.split()]), (found.lacking, again)
