"""The runners the MFU benchmark alternates: this project's decoder and transformers' Llama.

Both do the same work a step: the same sizes, micro-batches, dtype, fp32 loss, fused AdamW, random
tokens. Ours is compiled block by block, transformers' as a whole, as their users do.
Checked by: tests/harness/test_harness_mfu.py.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from memcalc.engine.plan import Plan
from memcalc.harness.device import synchronize
from memcalc.harness.local import local_plan
from memcalc.harness.step import TrainingStep
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup


class Case(NamedTuple):
    """Sizes of one comparison. attention, loss, fused_*: of our decoder; the rival has its own."""

    config: ModelConfig
    seq_len: int
    micro_batch_size: int
    grad_accum_steps: int
    attention: str = "flash"
    loss: str = "fp32"
    fused_qkv: bool = False  # one product for q, k and v
    fused_gate_up: bool = False  # one product for gate and up

    @property
    def settings(self) -> dict[str, Any]:
        """What can be chosen of our decoder."""
        names = ("attention", "loss", "fused_qkv", "fused_gate_up")
        return {name: getattr(self, name) for name in names}

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.seq_len * self.micro_batch_size * self.grad_accum_steps

    def plan(self, device: torch.device, precision: str = "bf16") -> Plan:
        """The engine's plan of our decoder."""
        setup = TrainingSetup(
            seq_len=self.seq_len, micro_batch_size=self.micro_batch_size,
            grad_accum_steps=self.grad_accum_steps, precision=precision, attention=self.attention,
            loss=self.loss, optimizer="adamw",
            optimizer_impl="fused" if device.type == "cuda" else "foreach",
        )  # fmt: skip
        config = dataclasses.replace(self.config, fused_qkv=self.fused_qkv)
        kernels = {"fused_gate_up": self.fused_gate_up}
        return local_plan(config, setup, kernels, device.type)


class Runner(Protocol):
    """A training step that can be run again and again."""

    name: str

    def run(self) -> Tensor | None:
        """One optimizer step; the last micro-batch's loss, detached."""


class Ours:
    """This project's decoder, its blocks compiled or not."""

    def __init__(self, case: Case, device: torch.device, compiled: bool) -> None:
        self.name = f"memcalc {'compiled' if compiled else 'eager'}"
        self.step = TrainingStep(case.plan(device), device)
        if compiled:
            for block in self.step.model.layers:
                block.compile()

    def run(self) -> Tensor | None:
        """One optimizer step."""
        return self.step.run(keep_loss=True)


class Transformers:
    """transformers' LlamaForCausalLM with torch's attention, compiled as a whole or not.

    Raises ImportError without transformers, ValueError for a model that is not plain Llama.
    """

    def __init__(self, case: Case, device: torch.device, compiled: bool) -> None:
        self.name = f"transformers {'compiled' if compiled else 'eager'}"
        self.accum = case.grad_accum_steps
        self.model = llama(case.config, device)
        shape = (case.micro_batch_size, case.seq_len)
        generator = torch.Generator("cpu").manual_seed(1)
        self.ids = torch.randint(case.config.vocab_size, shape, generator=generator).to(device)
        self.forward: Callable[..., Any] = self.model
        if compiled:
            self.forward = torch.compile(self.model, dynamic=False)
        kind = {"fused": True} if device.type == "cuda" else {"foreach": True}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, **kind)

    def run(self) -> Tensor | None:
        """One optimizer step."""
        loss: Tensor | None = None
        for _ in range(self.accum):
            out = self.forward(input_ids=self.ids, labels=self.ids, use_cache=False)
            loss = out.loss
            assert loss is not None
            loss.backward()
            loss = loss.detach()
            del out
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def llama(config: ModelConfig, device: torch.device) -> nn.Module:
    """transformers' Llama of a model's sizes in bf16, weights drawn on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if config.model_type != "llama" or config.moe is not None:
        raise ValueError(f"transformers' Llama cannot be {config.name}")
    sizes = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads, head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model: nn.Module = LlamaForCausalLM(sizes)
    finally:
        torch.set_default_dtype(before)
    return model.to(device).train()


#: Makers of the runners by kind: ours, theirs.
MAKERS: dict[str, Callable[[Case, torch.device, bool], Runner]] = {
    "ours": Ours,
    "theirs": Transformers,
}


def release(device: torch.device) -> None:
    """After runners were dropped: collect them, forget compiled code, empty the cache."""
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
