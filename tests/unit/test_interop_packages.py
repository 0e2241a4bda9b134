"""Exports in the hands of the packages they are for: their own classes parse them, and say the same.

Each needs its package, of the extra `interop` (torchtitan is not in it), and is skipped without.
"""

from __future__ import annotations

from dataclasses import fields as fields_of
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.interop_support import SETUPS, export_of

EXTRA = "pip install 'memcalc[interop]'"
#: Arguments of Megatron-LM whose field of TransformerConfig has another name.
RENAMED = {
    "num-experts": "num_moe_experts", "swiglu": "gated_linear_unit",
    "decoder-first-pipeline-num-layers": "num_layers_in_first_pipeline_stage",
    "decoder-last-pipeline-num-layers": "num_layers_in_last_pipeline_stage",
}  # fmt: skip
#: Arguments that Megatron-LM reads itself; megatron-core has no field for them.
OF_THE_SCRIPT = {
    "max-position-embeddings", "position-embedding-type", "rotary-percent", "vocab-size",
    "make-vocab-size-divisible-by", "seq-length", "micro-batch-size", "global-batch-size",
    "group-query-attention", "untie-embeddings-and-output-weights", "num-virtual-stages-per-pipeline-rank",
    "cp-comm-type", "num-distributed-optimizer-instances", "disable-bias-linear", "apply-layernorm-1p",
    "hidden-dropout", "attention-dropout", "no-gradient-accumulation-fusion", "use-distributed-optimizer",
    "overlap-grad-reduce", "overlap-param-gather", "optimizer", "clip-grad", "exp-avg-dtype",
    "exp-avg-sq-dtype", "use-precision-aware-optimizer", "attention-backend", "recompute-modules",
    "moe-layer-freq", "pipeline-model-parallel-layout",
    "moe-permute-fusion",  # wants Transformer Engine, which wants a GPU's tools to build
}  # fmt: skip


@pytest.mark.parametrize("words", SETUPS["deepspeed"])
def test_deepspeeds_own_config_takes_the_json(words, tmp_path, monkeypatch):
    config = pytest.importorskip("deepspeed.runtime.config", reason=f"DeepSpeed: {EXTRA}")
    found = export_of("deepspeed", words)
    path = tmp_path / "ds.json"
    path.write_text(found.text)
    world = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda *group: found.facts["dp"])
    monkeypatch.setattr(config, "dist", world)
    parsed = config.DeepSpeedConfig(str(path))
    facts = found.facts
    assert parsed.train_batch_size == facts.steps
    assert parsed.train_micro_batch_size_per_gpu == facts["micro_batch_size"]
    assert parsed.gradient_accumulation_steps == facts["grad_accum_steps"]
    assert parsed.zero_optimization_stage == facts["zero"]
    assert bool(parsed.gradient_clipping) == facts["grad_clip"]
    assert parsed.bfloat16_config.enabled == facts["precision"].startswith("bf16")
    assert parsed.float16_config.enabled == facts["precision"].startswith("fp16")
    zero = parsed.zero_config
    device = "none" if facts["offload"] == "none" else facts["offload_device"]
    block = zero.offload_optimizer
    offload = "none" if block is None else str(getattr(block.device, "value", block.device))
    assert offload == device
    if facts["zero"]:
        assert zero.reduce_bucket_size == facts.stack.parallel["reduce_bucket_size"]
    if facts["zero"] == 3:
        assert zero.max_live_parameters == facts.stack.parallel["stage3_max_live_parameters"]


@pytest.mark.parametrize("words", SETUPS["accelerate"])
def test_accelerates_own_config_takes_the_yaml(words, tmp_path):
    pytest.importorskip("yaml", reason=f"PyYAML: {EXTRA}")
    config = pytest.importorskip(
        "accelerate.commands.config.config_args", reason=f"accelerate: {EXTRA}"
    )
    found = export_of("accelerate", words)
    path = tmp_path / "accelerate.yaml"
    path.write_text(found.text)
    parsed = config.load_config_from_file(str(path))
    facts = found.facts
    assert parsed.num_processes == facts["gpus"]
    assert parsed.mixed_precision == {"bf16-mixed": "bf16", "fp16-mixed": "fp16"}.get(
        facts["precision"], "no"
    )
    kind = parsed.distributed_type.value
    wanted = {"deepspeed": "DEEPSPEED", "megatron": "MEGATRON_LM"}.get(facts["stack"])
    assert kind == (wanted or ("FSDP" if facts["zero"] >= 2 else kind))
    written = {"FSDP": parsed.fsdp_config, "DEEPSPEED": parsed.deepspeed_config,
               "MEGATRON_LM": parsed.megatron_lm_config}.get(kind)  # fmt: skip
    assert written is None or written
    _launchable(parsed, str(path))


def _launchable(parsed: Any, path: str) -> None:
    """Every key of the sections is an option of `accelerate launch`, which is how it is handed on."""
    launch = pytest.importorskip("accelerate.commands.launch")
    known = vars(launch.launch_command_parser().parse_args(["--config_file", path, "train.py"]))
    sections = {
        "": parsed.deepspeed_config, "fsdp": parsed.fsdp_config,
        "megatron": parsed.megatron_lm_config, "parallelism": parsed.parallelism_config,
    }  # fmt: skip
    for section in sections.values():
        assert set(section) <= set(known), set(section) - set(known)


@pytest.mark.parametrize("words", SETUPS["megatron"])
def test_megatron_cores_own_config_takes_the_arguments(words):
    core = pytest.importorskip(
        "megatron.core.transformer.transformer_config", reason=f"megatron-core: {EXTRA}"
    )
    found = export_of("megatron", words)
    facts, document = found.facts, found.document
    latent = document.get("multi-latent-attention")
    cls = core.MLATransformerConfig if latent else core.TransformerConfig
    known = {field.name for field in fields_of(cls)}
    given: dict[str, Any] = {}
    for key, value in document.items():
        name = RENAMED.get(key, key.replace("-", "_"))
        assert name in known or key in OF_THE_SCRIPT, key
        if name in known and key not in OF_THE_SCRIPT:
            given[name] = value
    given |= {"pipeline_dtype": "bf16", "add_bias_linear": "disable-bias-linear" not in document}
    if facts["vpp"] > 1:
        given["virtual_pipeline_model_parallel_size"] = facts["vpp"]
    parsed = cls(**{name: _plain(name, value) for name, value in given.items()})
    assert parsed.num_layers == facts.config.num_hidden_layers
    assert parsed.ffn_hidden_size == facts.config.intermediate_size
    assert parsed.tensor_model_parallel_size == facts["tp"]
    assert parsed.sequence_parallel == facts["sp"]
    assert (parsed.recompute_granularity or "none") == facts["recompute"]
    if facts.config.moe:
        assert parsed.moe_ffn_hidden_size == facts.config.moe.moe_intermediate_size


def _plain(name: str, value: Any) -> Any:
    """A dtype for a dtype's name."""
    if not name.endswith("dtype") or name == "moe_router_dtype":
        return value
    import torch

    return torch.bfloat16


@pytest.mark.parametrize("words", SETUPS["torchtitan"])
def test_torchtitans_own_manager_takes_the_flags(words, capsys):
    manager = pytest.importorskip("torchtitan.config.manager", reason="torchtitan is not installed")
    pytest.importorskip("torchtitan.models.llama3.config_registry", reason="torchtitan's models")
    found = export_of("torchtitan", words, "0.3")
    parsed = manager.ConfigManager().parse_args(found.text.split())
    facts = found.facts
    assert parsed.training.seq_len == facts["seq_len"]
    assert parsed.training.global_batch_size == facts.steps
    assert parsed.parallelism.tensor_parallel_degree == facts["tp"]
    assert parsed.parallelism.pipeline_parallel_degree == facts["pp"]
    assert parsed.compile.enable == facts["compile"]
    assert parsed.training.enable_cpu_offload == (facts["offload"] == "params")
    policy = type(parsed.activation_checkpoint).__qualname__.partition(".")[0]
    assert policy == {"full": "FullAC", "sac": "SelectiveAC"}.get(facts["recompute"], "NoneType")


@pytest.mark.parametrize("words", SETUPS["torchtitan"])
def test_torchtitans_own_sections_have_every_key_of_the_toml(words):
    job = pytest.importorskip(
        "torchtitan.config.job_config", reason="torchtitan 0.2 is not installed"
    )
    found = export_of("torchtitan", words, "0.2")
    config = job.JobConfig()
    for key, value in found.document.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = getattr(section, part)
        assert name in {field.name for field in fields_of(section)}, key
        setattr(section, name, value)
    assert config.parallelism.data_parallel_shard_degree >= 1
