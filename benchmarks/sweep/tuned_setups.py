"""Fine-tuning steps of the memory sweep: LoRA, packed bases, frozen blocks and biases, of whole models.

What a full step of would not fit one card does here, so whole models of 1B to 8B are among them. No torch.
Checked by: tests/harness/test_sweep_parts.py.
"""

from __future__ import annotations

from typing import Any

_BASE: dict[str, Any] = {
    "grad_accum_steps": 1, "optimizer": "adamw", "optimizer_impl": "foreach", "recompute": "none",
    "attention": "flash", "loss": "fp32", "num_layers": None,
}  # fmt: skip
_QV = ["q_proj", "v_proj"]
_ALL = ["all-linear"]
#: Model, sequence and micro-batch, method, what else is stated.
_WANTED: tuple[tuple[str, tuple[int, int], dict[str, Any], dict[str, Any]], ...] = (
    ("llama-3.2-1b", (2048, 4), {"method": "lora", "targets": _QV}, {"precision": "bf16"}),
    ("llama-3.2-1b", (2048, 4), {"method": "lora", "targets": _ALL, "rank": 16, "dropout": 0.05},
     {"precision": "bf16-mixed"}),
    ("llama-3.1-8b", (4096, 2), {"method": "lora", "targets": _ALL, "rank": 64},
     {"precision": "bf16", "recompute": "full", "optimizer_impl": "fused"}),
    ("llama-3.1-8b", (2048, 1), {"method": "lora", "targets": _ALL, "dtype": "bf16"},
     {"precision": "bf16"}),
    ("llama-3.1-8b", (2048, 2), {"method": "qlora", "targets": _ALL, "rank": 64, "dropout": 0.1},
     {"precision": "bf16", "recompute": "full"}),
    ("qwen2.5-7b", (2048, 1), {"method": "qlora", "targets": _ALL, "weights": "nf4-plain"},
     {"precision": "bf16", "recompute": "sac", "grad_accum_steps": 2}),
    ("qwen2.5-1.5b", (1024, 4), {"method": "lora", "targets": _QV, "dropout": 0.1},
     {"precision": "bf16-mixed", "recompute": "full", "reentrant": True}),
    ("gpt2-large", (1024, 4), {"method": "lora", "targets": _ALL}, {"precision": "bf16-mixed"}),
    ("gpt2-xl", (1024, 2), {"method": "bitfit"}, {"precision": "bf16", "recompute": "full"}),
    ("llama-3.2-1b", (2048, 4), {"method": "freeze", "layers": 4}, {"precision": "bf16-mixed"}),
    ("llama-3.1-8b", (2048, 2), {"method": "freeze", "layers": 8}, {"precision": "bf16"}),
    ("mixtral-8x7b", (2048, 2), {"method": "lora", "targets": ["q_proj", "o_proj"]},
     {"precision": "bf16", "num_layers": 2}),
)  # fmt: skip


def tuned() -> list[tuple[str, dict[str, Any]]]:
    """(model, training) of every such step; `peft` are keywords of PeftSetup."""
    return [
        (model, {**_BASE, "seq_len": seq, "micro_batch_size": micro, "peft": peft, **stated})
        for model, (seq, micro), peft, stated in _WANTED
    ]
