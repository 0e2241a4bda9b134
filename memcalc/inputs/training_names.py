"""The words a training setup is stated in: precisions, optimizers, kernels, what is recomputed."""

from __future__ import annotations

from typing import Final

PRECISIONS: Final = (
    "fp32", "tf32", "fp16-mixed", "bf16-mixed", "bf16", "bf16-master", "fp8-mixed",
)  # fmt: skip
OPTIMIZERS: Final = (
    "adamw", "adamw-8bit", "sgd", "momentum", "adafactor", "lion", "muon", "none",
)  # fmt: skip
OPTIMIZER_IMPLS: Final = ("foreach", "fused", "loop")
RECOMPUTE: Final = ("none", "selective", "sac", "sac-attention", "full")
#: Parts of a layer that Megatron's selective recomputation can name (recompute_modules).
RECOMPUTE_MODULES: Final = (
    "core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts",
)  # fmt: skip
ATTENTIONS: Final = ("eager", "flash", "efficient", "cudnn")
LOSSES: Final = ("plain", "fp32", "chunked", "fused")
NORMS: Final = ("hand", "decomposed", "fused")
#: Stacks whose blocks can be compiled.
COMPILED_STACKS: Final = ("torch", "torch-compile", "torchtitan", "torchtune")
#: Optimizers without a torch.optim implementation: their bytes are closed forms.
CLOSED_FORM_OPTIMIZERS: Final = ("adamw-8bit", "lion")
#: Optimizers whose implementation cannot be chosen, with the one they have.
FIXED_IMPL: Final = {"adamw-8bit": "fused", "lion": "loop", "none": "loop"}
