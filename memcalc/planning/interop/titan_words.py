"""torchtitan's models and recipes, and what is said of its keys without a row.

Source: torchtitan 0.2.0 and 0.3.0, torchtitan/models/*/__init__.py (flavors), torchtitan 0.3.0,
models/*/config_registry.py (recipes and their values). Checked by: unit/test_interop_torchtitan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

#: (model.name, model.flavor) of the TOML: memcalc's profile.
FLAVORS: Final[Mapping[tuple[str, str], str]] = {
    ("llama3", "8B"): "llama-3.1-8b", ("llama3", "70B"): "llama-3.1-70b",
    ("llama3", "405B"): "llama-3.1-405b", ("qwen3", "0.6B"): "qwen3-0.6b",
    ("qwen3", "1.7B"): "qwen3-1.7b", ("qwen3", "4B"): "qwen3-4b", ("qwen3", "8B"): "qwen3-8b",
    ("qwen3", "14B"): "qwen3-14b", ("qwen3", "32B"): "qwen3-32b",
    ("qwen3", "30B-A3B"): "qwen3-30b-a3b", ("qwen3", "235B-A22B"): "qwen3-235b-a22b",
    ("deepseek_v3", "16B"): "deepseek-v2-lite", ("deepseek_v3", "236B"): "deepseek-v2",
    ("deepseek_v3", "671B"): "deepseek-v3",
}  # fmt: skip


class Recipe(NamedTuple):
    """A config function of 0.3: its module, memcalc's profile, its values that decide an estimate."""

    module: str
    model: str
    values: Mapping[str, Any] = {}  # noqa: RUF012  # never changed
    fp8: bool = False


_LONG: Final = {"training.seq_len": 8192}
RECIPES: Final[Mapping[str, Recipe]] = {
    "llama3_8b": Recipe("llama3", "llama-3.1-8b", {**_LONG, "training.local_batch_size": 1}),
    "llama3_70b": Recipe("llama3", "llama-3.1-70b", {
        **_LONG, "parallelism.tensor_parallel_degree": 8, "activation-checkpoint": "full"}),
    "llama3_405b": Recipe("llama3", "llama-3.1-405b", {
        **_LONG, "training.local_batch_size": 2, "parallelism.tensor_parallel_degree": 8,
        "activation-checkpoint": "full", "compile.enable": True}, fp8=True),
}  # fmt: skip
NO_EFFECT: Final = (
    "job.", "profiling.", "profiler.", "metrics.", "lr_scheduler.", "checkpoint.", "comm.", "debug.",
    "validation.", "validator.", "experimental.", "fault_tolerance.", "memory_estimation.",
    "model.tokenizer_path", "model.hf_assets_path", "model.print_after_conversion", "tokenizer.",
    "dataloader.", "hf_assets_path", "dump_folder", "optimizer.lr", "optimizer.beta1",
    "optimizer.beta2", "optimizer.eps", "optimizer.weight_decay", "training.steps",
    "training.dataset", "training.dataset_path", "training.gc_freq", "training.gc_debug",
    "training.seed", "training.deterministic", "training.warmup_steps",
    "training.mixed_precision_reduce", "training.debug_moe_force_load_balance",
    "activation_checkpoint.visualize_memory_budget_pareto", "compile.backend",
    "parallelism.spmd_backend",
)  # fmt: skip
UNPRICED: Final[Mapping[str, str]] = {
    "parallelism.enable_async_tensor_parallel": "exchanges of tp run beside products",
    "compile.enable_async_tensor_parallel": "exchanges of tp run beside products",
    "parallelism.disable_loss_parallel": "logits stay cut over tp here",
    "parallelism.enable_compiled_autograd": "backward is PyTorch's own engine here",
    "parallelism.context_parallel_rotate_method": "keys and values are gathered at once here",
    "parallelism.context_parallel_load_balancer": "positions are dealt out head and tail here",
    "parallelism.pipeline_parallel_schedule_csv": "a schedule of one's own",
    "parallelism.enable_fsdp_symm_mem": "buffers of symmetric memory",
    "activation_checkpoint.memory_budget": "the compiler's memory budget",
    "activation_checkpoint.early_stop": "recomputation stops early here as PyTorch does by default",
    "quantize.": "formats other than float8 linears",
    "override.": "modules of one's own",
}  # fmt: skip
HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "parallelism.context_parallel_rotate_method": ("allgather",),
    "parallelism.context_parallel_load_balancer": ("headtail",),
    "activation_checkpoint.memory_budget": (0.5,),
    "activation_checkpoint.early_stop": (True,),
    "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp": (True,),
    "quantize.linear.float8.filter_fqns": (["output"],),
    "quantize.linear.mx.filter_fqns": (["output"],),
    "quantize.linear.mx.recipe_name": ("mxfp8_cublas",),
}  # fmt: skip
_RECIPE: Final = "of the recipe's own code"
REASONS: Final[Mapping[str, str]] = {
    "grad_clip": "torchtitan clips always",
    "grad_accum_steps": "torchtitan takes a whole number of local batches",
    "loss": f"{_RECIPE}: 0.2 has whole logits in fp32, 0.3 chunks",
    "loss_chunks": f"{_RECIPE}",
    "stack": "torchtitan runs its own layer",
    "precision": "one of fp32, bf16, bf16-mixed (under FSDP or without tp and pp), fp8-mixed",
    "optimizer": "AdamW alone",
    "optimizer_impl": f"{_RECIPE}",
    "optimizer_dtype": f"{_RECIPE}",
    "optimizer_in_backward": "a key of 0.2 alone",
    "set_to_none": "torchtitan drops gradients after every step",
    "dropout": "its models have none",
    "recompute": "none, full, selective by operator (sac)",
    "recompute_layers": "every block, none, or every Nth",
    "reentrant": "its checkpoints are not reentrant",
    "attention": "of the model's code",
    "num_layers": "of the model's flavor",
    "peft": f"{_RECIPE} (LoRAConverter)",
    "sp": "0.2 has sequence parallelism wherever there is tp",
    "fsdp": "a shard degree of 1 is no FSDP",
    "zero": "FSDP, or DDP",
    "shard": "whole ranks of dp",
    "reshard": "default, always, never",
    "schedule": f"one of {', '.join(('1F1B', 'GPipe', 'Interleaved1F1B', 'ZBVZeroBubble', 'DualPipeV'))}",
    "vpp": "stages of equal length or named blocks",
    "stage_layers": "a key of 0.2 alone: module_fqns_per_model_part",
    "cp_method": "its context parallelism is a ring",
    "etp": "a key of 0.2 alone",
    "offload": "parameters, gradients and optimizer states together",
    "pin_memory": "pinned always",
    "gpus": "of the launcher: torchrun",
    "gpus_per_node": "of the launcher: torchrun --nproc-per-node",
    "imbalance": "what the router and the data make of it",
    "model": "not among torchtitan's own models: name one, or register it",
}  # fmt: skip
