"""What is said of DeepSpeed's keys without a row: "auto" values, keys without effect, keys not estimated.

Source: transformers 5.23.0, integrations/deepspeed.py (HfTrainerDeepSpeedConfig): what the Trainer fills in;
DeepSpeed 0.18.2, runtime/constants.py, runtime/zero/config.py: the keys.
Checked by: unit/test_interop_deepspeed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from memcalc.planning.interop.rows import AUTO, Reading

_ZERO: Final = "zero_optimization"
_SCRIPT: Final = "the training script's"


def _auto_size(name: str, factor: float, power: int, said: str) -> Callable[[Reading], str]:
    def rule(reading: Reading) -> str:
        if reading.config is None:
            return "memcalc's default taken"
        value = int(factor * reading.config.hidden_size**power)
        reading.fields[f"stack.{name}"] = value
        return f"{said} = {value:,}"

    return rule


def _auto_argument(said: str, **fields: Any) -> Callable[[Reading], str]:
    def rule(reading: Reading) -> str:
        for name, value in fields.items():
            reading.fields.setdefault(name, value)
        return said

    return rule


def _auto_dtype(dtype: str, said: str) -> Callable[[Reading], str]:
    def rule(reading: Reading) -> str:
        reading.seen[AUTO] = (*reading.seen.get(AUTO, ()), dtype)
        return said

    return rule


AUTOMATIC: Final[Mapping[str, Callable[[Reading], str]]] = {
    "train_batch_size": _auto_argument("the product of the others and the GPUs"),
    "train_micro_batch_size_per_gpu": _auto_argument(
        "the Trainer's per_device_train_batch_size: --micro-batch, 1 unless stated"
    ),
    "gradient_accumulation_steps": _auto_argument(
        "the Trainer's argument: --grad-accum, 1 unless stated"
    ),
    "gradient_clipping": _auto_argument("the Trainer's max_grad_norm, 1.0", grad_clip=True),
    "bf16.enabled": _auto_dtype("bf16", "the Trainer's bf16: --precision, bf16-mixed unless stated"),
    "fp16.enabled": _auto_dtype(
        "fp16", "the Trainer's fp16: --precision; fp16-mixed unless bf16 is there or it is stated"
    ),
    "optimizer.type": _auto_argument("the Trainer's optim: --optimizer, adamw unless stated"),
    f"{_ZERO}.reduce_bucket_size": _auto_size("reduce_bucket_size", 1, 2, "hidden_size^2"),
    f"{_ZERO}.stage3_prefetch_bucket_size": _auto_size(
        "stage3_prefetch_bucket_size", 0.9, 2, "0.9 hidden_size^2"
    ),
    f"{_ZERO}.stage3_param_persistence_threshold": _auto_size(
        "stage3_param_persistence_threshold", 10, 1, "10 hidden_size"
    ),
}  # fmt: skip

NO_EFFECT: Final = (
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "tensorboard.",
    "wandb.", "csv_monitor.", "comet.", "monitor_config.", "flops_profiler.", "scheduler.",
    "optimizer.params.", "checkpoint.", "seed", "comms_logger.", "aio.", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "fp16.", "bf16.", "dataloader_drop_last", "prescale_gradients",
    "gradient_predivide_factor", "elasticity.", "autotuning.", "disable_python_gc",
    f"{_ZERO}.contiguous_gradients", f"{_ZERO}.allgather_partitions",
    f"{_ZERO}.stage3_gather_16bit_weights_on_model_save",
    f"{_ZERO}.stage3_gather_fp16_weights_on_model_save", f"{_ZERO}.load_from_fp32_weights",
    f"{_ZERO}.ignore_unused_parameters", f"{_ZERO}.round_robin_gradients",
    f"{_ZERO}.elastic_checkpoint", f"{_ZERO}.offload_optimizer.fast_init",
)  # fmt: skip
UNPRICED: Final = {
    "activation_checkpointing.partition_activations":
        "settings of DeepSpeed's own checkpoint function; what recomputes is --recompute",
    "activation_checkpointing.cpu_checkpointing":
        "of DeepSpeed's own checkpoint function, which Hugging Face code does not call",
    "activation_checkpointing.contiguous_memory_optimization":
        "of DeepSpeed's own checkpoint function, which Hugging Face code does not call",
    "activation_checkpointing.number_checkpoints":
        "of DeepSpeed's own checkpoint function; what recomputes is --recompute",
    "activation_checkpointing.synchronize_checkpoint_boundary":
        "of DeepSpeed's own checkpoint function",
    "activation_checkpointing.profile": "of DeepSpeed's own checkpoint function",
    f"{_ZERO}.allgather_bucket_size": "parameters of stages 1 and 2 are gathered at once here",
    f"{_ZERO}.reduce_scatter": "stages 1 and 2 sum whole buckets here, DeepSpeed's default",
    f"{_ZERO}.use_multi_rank_bucket_allreduce": "estimated as on, DeepSpeed's default",
    f"{_ZERO}.zero_hpz_partition_size": "ZeRO++ is not estimated",
    f"{_ZERO}.zero_quantized_weights": "ZeRO++ is not estimated",
    f"{_ZERO}.zero_quantized_gradients": "ZeRO++ is not estimated",
    f"{_ZERO}.offload_optimizer.ratio": "all optimizer states are offloaded here",
    f"{_ZERO}.offload_optimizer.pipeline_read": "reads and writes of disks follow one another here",
    f"{_ZERO}.offload_optimizer.pipeline_write": "reads and writes of disks follow one another here",
    "communication_data_type": "gradients are summed in their own dtype here",
    "data_types.grad_accum_dtype": "gradients are kept in the parameters' dtype here",
    "torch_autocast.enabled": "parameters are of 16 bit here",
    "sparse_gradients": "gradients are dense here",
    "tensor_parallel.autotp_size": "this stack has data parallelism alone",
    "pipeline.": "this stack has data parallelism alone",
}  # fmt: skip
REASONS: Final = {
    "seq_len": "of the data: the tokenizer's or the script's maximum length",
    "recompute": "of the model's code: model.gradient_checkpointing_enable(), or the Trainer's "
                 "gradient_checkpointing",
    "recompute_layers": "of the model's code",
    "reentrant": "of the model's code: use_reentrant of gradient_checkpointing_kwargs",
    "attention": "of the model's code: attn_implementation of from_pretrained",
    "dropout": "of the model's config.json",
    "optimizer": f"{_SCRIPT} own optimizer",
    "optimizer_impl": f"{_SCRIPT} own optimizer",
    "gpus": "of the launcher",
    "gpus_per_node": "of the hostfile",
    "peft": f"{_SCRIPT} (PEFT)",
    "offload": "DeepSpeed has no such block",
    "precision": "one of fp32, bf16-mixed, fp16-mixed",
    "imbalance": "what the router and the data make of it",
    "loss": "of the model's code",
}  # fmt: skip
