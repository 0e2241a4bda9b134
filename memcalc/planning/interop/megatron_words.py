"""What is said of Megatron-LM's arguments without a row, and of what they cannot state.

Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py. Checked by: unit/test_interop_megatron.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NO_EFFECT: Final = (
    "adam-*", "sgd-*", "lr", "lr-*", "min-lr", "weight-decay*", "start-weight-decay",
    "end-weight-decay", "init-method-std", "train-iters", "train-samples", "exit-*", "save*",
    "load*", "log-*", "no-load-*", "no-save-*", "eval-*", "tensorboard-*", "wandb-*", "data-*",
    "train-data-path", "valid-data-path", "test-data-path", "split", "vocab-file", "merge-file",
    "tokenizer-*", "mock-data", "num-workers", "seed", "distributed-*", "timing-*",
    "use-mcore-models", "no-check-for-nan-in-loss-and-grad", "attention-softmax-in-fp32",
    "accumulate-allreduce-grads-in-fp32", "rotary-base", "rope-*", "use-rope-scaling",
    "rotary-interleaved", "rotary-seq-len-interpolation-factor", "norm-epsilon",
    "no-masked-softmax-fusion", "no-bias-*-fusion", "no-rope-fusion", "ckpt-format", "auto-detect-*",
    "async-save", "dist-ckpt-*", "loss-scale*", "initial-loss-scale", "min-loss-scale",
    "hysteresis", "reset-*", "eod-mask-loss", "no-create-attention-mask-in-dataloader",
    "manual-gc*", "node_rank", "master_addr", "master_port", 
    "node-rank", "master-*", "rdzv-*", "rdzv_*", "use-flash-attn", "moe-aux-loss-coeff",
    "moe-z-loss-coeff", "moe-router-load-balancing-type", "moe-router-topk-scaling-factor",
    "moe-router-bias-update-rate", "moe-router-enable-expert-bias", "moe-router-num-groups",
    "moe-router-group-topk", "moe-router-pre-softmax", "moe-per-layer-logging", "position-embedding-*",
    "bf16-*", "no-async-*", "local-rank", "enable-experimental", "disable-straggler*",
    "squared-relu", "override-opt_param-scheduler", "use-checkpoint-*", "finetune", "dataloader-type",
    "mscale*", "beta-fast", "beta-slow", "rotary-scaling-factor", "log_interval",
)  # fmt: skip
UNPRICED: Final[Mapping[str, str]] = {
    "rampup-batch-size": "the estimate is of the full global batch",
    "tp-comm-overlap": "exchanges of tp beside products as Transformer Engine's user buffers",
    "tp-comm-*": "exchanges of tp beside products as Transformer Engine's user buffers",
    "fp8-*": "fp8 on this stack is not in this version",
    "fp8": "fp8 on this stack is not in this version",
    "grad-reduce-in-bf16": "gradients are kept and summed in fp32 here",
    "main-grads-dtype": "gradients are kept in fp32 here",
    "main-params-dtype": "master copies are fp32 here",
    "optimizer-cpu-offload": "optimizer states stay on the GPU here",
    "optimizer-offload-fraction": "optimizer states stay on the GPU here",
    "cpu-offloading*": "activations stay on the GPU here",
    "use-torch-fsdp2": "Megatron with FSDP is not estimated",
    "use-megatron-fsdp": "Megatron with FSDP is not estimated",
    "use-custom-fsdp": "Megatron with FSDP is not estimated",
    "data-parallel-sharding-strategy": "Megatron with FSDP is not estimated",
    "mtp-num-layers": "heads that predict further tokens are not estimated",
    "moe-router-dtype": "the router's dtype is the model's own here",
    "moe-shared-expert-overlap": "the shared expert runs before or after the others here",
    "moe-enable-deepep": "the dispatcher alltoall is estimated",
    "moe-flex-*": "the dispatcher alltoall is estimated",
    "account-for-embedding-in-pipeline-split": "stages are cut by blocks alone here",
    "account-for-loss-in-pipeline-split": "stages are cut by blocks alone here",
    "enable-cuda-graph": "CUDA graphs' pools are not estimated",
    "cuda-graph-*": "CUDA graphs' pools are not estimated",
    "external-cuda-graph": "CUDA graphs' pools are not estimated",
    "microbatch-group-size-per-virtual-pipeline-stage": "as many as stages here",
    "overlap-p2p-communication-warmup-flush": "sends of warm-up wait here",
    "no-overlap-p2p-communication": "sends of the interleaved schedule run beside compute here",
    "deallocate-pipeline-outputs": "sent outputs are freed here",
    "no-deallocate-pipeline-outputs": "sent outputs are freed here",
    "distribute-saved-activations": "inputs of recomputed blocks stay whole here",
    "ddp-bucket-size": "Megatron's own rule of buckets is taken",
    "ddp-average-in-collective": "",
    "window-size": "attention over windows: --model with a config.json",
    "hybrid-*": "layers of other kinds are not estimated",
    "spec": "layers of another specification are not estimated",
    "use-legacy-models": "Megatron-Core's layers are estimated",
    "apply-query-key-layer-scaling": "scores are scaled in 16 bit here",
    "fp32-residual-connection": "the stream between layers is of 16 bit here",
    "no-persist-layer-norm": "norms inside Transformer Engine's linears are estimated",
}  # fmt: skip
HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "main-grads-dtype": ("fp32",), "main-params-dtype": ("fp32",),
    "microbatch-group-size-per-virtual-pipeline-stage": (), "ddp-average-in-collective": (True,),
}  # fmt: skip
_LAUNCHER: Final = "of the launcher: torchrun --nproc-per-node and --nnodes"
REASONS: Final[Mapping[str, str]] = {
    "gpus": _LAUNCHER,
    "gpus_per_node": _LAUNCHER,
    "model": "its shape has no arguments of its own, or more than one model has it",
    "num_layers": "of the model's shape",
    "imbalance": "what the router and the data make of it",
    "optimizer": "adam or sgd",
    "optimizer_impl": "one fused kernel",
    "optimizer_dtype": "bf16 moments need --use-distributed-optimizer: --zero 1",
    "shard": "whole instances of the distributed optimizer",
    "stage_layers": "",
    "schedule": "1f1b, or interleaved with chunks",
    "loss": "fp32, or fused (te)",
    "set_to_none": "gradients lie in buffers that stay",
    "peft": "of the training script",
    "dropout": "rates of its own for hidden states and attention",
}  # fmt: skip
