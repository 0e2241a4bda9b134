"""What is said of accelerate's keys without a row, and of what its YAML cannot state.

Source: accelerate 1.15.0, commands/config/config_args.py, utils/dataclasses.py.
Checked by: unit/test_interop_accelerate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_FSDP: Final = "fsdp_config.fsdp_"
_SCRIPT: Final = "the training script's"
_MODEL: Final = "of the model's code and its config.json"
NO_EFFECT: Final = (
    "debug", "gpu_ids", "main_process_ip", "main_process_port", "enable_cpu_affinity",
    "downcast_bf16", "tpu_env", "tpu_name", "tpu_use_cluster", "tpu_use_sudo", "tpu_zone", "tpu_vm",
    "command_file", "commands", "mpirun_config.", "mpirun_config", "deepspeed_config",
    "fsdp_config", "megatron_lm_config", "dynamo_config", "fp8_config", "parallelism_config",
    f"{_FSDP}transformer_layer_cls_to_wrap", f"{_FSDP}sync_module_states",
    f"{_FSDP}use_orig_params", "deepspeed_config.zero3_save_16bit_model",
    "deepspeed_config.deepspeed_multinode_launcher", "deepspeed_config.deepspeed_hostfile",
    "deepspeed_config.offload_optimizer_nvme_path", "deepspeed_config.offload_param_nvme_path",
    "deepspeed_config.deepspeed_moe_layer_cls_names", "use_parallelism_config",
)  # fmt: skip
UNPRICED: Final[Mapping[str, str]] = {
    "deepspeed_config.deepspeed_config_file":
        "another file, which is not opened: memcalc import that one",
    "dynamo_config.dynamo_backend": "the estimate is of eager blocks: --compile on stack torch",
    "dynamo_config.dynamo_mode": "the estimate is of eager blocks",
    "fp8_config.": "scaling recipes of fp8",
    f"{_FSDP}activation_checkpointing_offload": "what checkpoints keep stays on the GPU here",
    f"{_FSDP}forward_prefetch": "forward's gathers are not made earlier here",
    f"{_FSDP}backward_prefetch": "BACKWARD_PRE is estimated",
    f"{_FSDP}backward_prefetch_policy": "BACKWARD_PRE is estimated",
    f"{_FSDP}ignored_modules": "every parameter is sharded here",
    f"{_FSDP}min_num_params": "every block is a group here",
    "parallelism_config.parallelism_config_sp_size": "DeepSpeed's ALST is not estimated",
    "parallelism_config.parallelism_config_cp_comm_strategy":
        "keys and values are gathered at once here (allgather)",
    "megatron_lm_config.megatron_lm_optimizer_cpu_offload": "optimizer states stay on the GPU here",
    "megatron_lm_config.megatron_lm_use_custom_fsdp": "Megatron's FSDP is not estimated",
    "megatron_lm_config.megatron_lm_use_precision_aware_optimizer": "moments are fp32 here",
    "megatron_lm_config.megatron_lm_decoder_last_pipeline_num_layers": "stages are even: --stage-layers",
    "megatron_lm_config.megatron_lm_attention_backend": "--attention",
    "megatron_lm_config.megatron_lm_attention_dropout": "--dropout",
    "megatron_lm_config.megatron_lm_hidden_dropout": "--dropout",
}  # fmt: skip
HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    f"{_FSDP}backward_prefetch": ("BACKWARD_PRE",),
    f"{_FSDP}backward_prefetch_policy": ("BACKWARD_PRE",),
    "parallelism_config.parallelism_config_sp_size": (1,),
    "parallelism_config.parallelism_config_cp_comm_strategy": ("allgather",),
    "megatron_lm_config.megatron_lm_attention_backend": (True,),
}  # fmt: skip
REASONS: Final[Mapping[str, str]] = {
    "seq_len": "of the data: the tokenizer's or the script's maximum length",
    "micro_batch_size": f"{_SCRIPT} DataLoader",
    "grad_accum_steps": f"{_SCRIPT}: Accelerator(gradient_accumulation_steps=N)",
    "precision": f"{_SCRIPT}: the dtype the model is loaded in",
    "optimizer": f"{_SCRIPT} own optimizer",
    "optimizer_impl": f"{_SCRIPT} own optimizer",
    "optimizer_dtype": f"{_SCRIPT} own optimizer",
    "optimizer_in_backward": f"{_SCRIPT}: hooks on parameters",
    "set_to_none": f"{_SCRIPT}: optimizer.zero_grad(set_to_none=False)",
    "grad_clip": f"{_SCRIPT}: accelerator.clip_grad_norm_",
    "dropout": _MODEL,
    "recompute": "of the model's code: model.gradient_checkpointing_enable()",
    "recompute_layers": "accelerate recomputes every block or none",
    "attention": f"{_MODEL}: attn_implementation",
    "loss": "of the model's code",
    "compile": "dynamo_config compiles whole models; the estimate is of compiled blocks",
    "peft": f"{_SCRIPT} (PEFT)",
    "stack": "accelerate runs the model's own code",
    "sp": "accelerate's tensor parallelism keeps whole sequences between layers",
    "pp": "accelerate has stages with Megatron-LM alone",
    "vpp": "accelerate hands on no virtual stages",
    "schedule": "accelerate hands on no schedule",
    "stage_layers": "accelerate cuts stages evenly",
    "cp_method": "accelerate's context parallelism is a ring",
    "zero": "accelerate has stage 1 with DeepSpeed or Megatron-LM alone",
    "reshard": "true or false",
    "shard": "FSDP version 1 groups a node's GPUs",
    "ep": "accelerate spreads experts with Megatron-LM alone",
    "offload": "accelerate offloads parameters with FSDP, or DeepSpeed's way",
    "pin_memory": "accelerate states no pinned memory",
    "overlap_grad_reduce": "accelerate hands on no such switch",
    "overlap_param_gather": "accelerate hands on no such switch",
    "imbalance": "what the router and the data make of it",
}  # fmt: skip
