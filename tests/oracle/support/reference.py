"""Small models in few words, and the harness's decoder built for them on tensors without data.

The decoder under test is the product's own (memcalc/harness), built from the product's own plan. On
"meta" tensors it takes CUDA's paths; CUDA's fused RMSNorm kernel exists nowhere else and has a
stand-in that allocates and saves what the kernel does.

Letters: b sequences, s positions, V vocabulary, h hidden, L blocks, a query heads, k key/value
heads, d head width, f MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memcalc.engine.make_plan import make_plan
from memcalc.engine.plan import Plan
from memcalc.harness.model import decoder, norms
from memcalc.harness.model.decoder import Decoder
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve

_PRECISIONS = {"bf16": "bf16", "mixed": "bf16-mixed", "fp32": "fp32"}


@dataclass(frozen=True)
class RefConfig:
    """One reference model and how it runs; the defaults are a small bf16 Llama."""

    family: str = "llama"  # llama | gpt2
    b: int = 2
    s: int = 64
    V: int = 512
    h: int = 64
    L: int = 2
    a: int = 4
    k: int = 2  # equals a in gpt2
    d: int = 16
    f: int = 176
    precision: str = "bf16"  # bf16 | mixed (fp32 parameters under CUDA autocast) | fp32
    norm: str = "hand"  # hand | decomposed | fused | layer; gpt2 always layer
    attention: str = "flash"  # flash | efficient | cudnn | eager
    loss: str = "plain"  # plain | fp32 | chunked
    loss_chunks: int = 4
    recompute: str = "none"  # none | full | full:N | sac | sac-attention | selective | reentrant
    attention_bias: bool = False  # llama: q, k, v and o; gpt2 always
    qkv_bias: bool = False  # llama: q, k, v only, as Qwen2
    mlp_bias: bool = False
    qk_norm: bool = False  # a norm over each head of q and k before rope, as Qwen3
    dropout: float = 0.0  # after o_proj and down_proj (gpt2: and the embeddings)
    attention_dropout: float = 0.0
    tied: bool = False
    max_positions: int = 1024  # gpt2's learned positions

    @property
    def is_gpt2(self) -> bool:
        return self.family == "gpt2"


@dataclass(frozen=True)
class How:
    """How a step runs beside the model itself: the options of `run_step`, fewer than it has."""

    optimizer: str = "adamw"
    impl: str = "foreach"
    accum: int = 1
    set_to_none: bool = True
    grad_clip: bool = False
    master: bool = False  # precision bf16-master; the model's is bf16
    in_backward: bool = False  # each parameter stepped as its gradient is there


DEFAULT = How()


def model_of(cfg: RefConfig) -> ModelConfig:
    """The reference decoder in the words of a config."""
    gpt2 = cfg.is_gpt2
    return ModelConfig(
        name="reference",
        model_type="gpt2" if gpt2 else "llama",
        vocab_size=cfg.V,
        hidden_size=cfg.h,
        intermediate_size=cfg.f,
        num_hidden_layers=cfg.L,
        num_attention_heads=cfg.a,
        num_key_value_heads=cfg.a if gpt2 else cfg.k,
        head_dim=cfg.h // cfg.a if gpt2 else cfg.d,
        max_position_embeddings=max(cfg.s, cfg.max_positions),
        tie_word_embeddings=cfg.tied,
        hidden_act="gelu_new" if gpt2 else "silu",
        gated_mlp=not gpt2,
        norm_type="layernorm" if gpt2 or cfg.norm == "layer" else "rmsnorm",
        qk_norm="head" if cfg.qk_norm else "none",
        position_embedding="learned" if gpt2 else "rope",
        num_position_rows=cfg.max_positions if gpt2 else 0,
        fused_qkv=gpt2,
        attention_bias=gpt2 or cfg.attention_bias or cfg.qkv_bias,
        attention_output_bias=gpt2 or cfg.attention_bias,
        mlp_bias=gpt2 or cfg.mlp_bias,
        attention_dropout=cfg.attention_dropout,
        residual_dropout=cfg.dropout,
        embedding_dropout=cfg.dropout if gpt2 else 0.0,
    )


def setup_of(cfg: RefConfig, how: How = DEFAULT) -> TrainingSetup:
    """The setup a user would state for it."""
    recompute, _, layers = cfg.recompute.partition(":")
    reentrant = recompute == "reentrant"
    return TrainingSetup(
        seq_len=cfg.s,
        micro_batch_size=cfg.b,
        grad_accum_steps=how.accum,
        precision="bf16-master" if how.master else _PRECISIONS[cfg.precision],
        optimizer=how.optimizer,
        optimizer_impl=how.impl,
        set_to_none=how.set_to_none,
        grad_clip=how.grad_clip,
        optimizer_in_backward=how.in_backward,
        recompute="full" if reentrant else recompute,
        recompute_layers=int(layers) if layers else None,
        reentrant=reentrant,
        attention=cfg.attention,
        loss=cfg.loss,
        loss_chunks=cfg.loss_chunks,
    )


def plan_of(cfg: RefConfig, how: How = DEFAULT) -> Plan:
    """The engine's plan for a reference model."""
    kernels: dict[str, Any] = {"watched": True}
    if cfg.norm != "layer" and not cfg.is_gpt2:
        kernels["norm"] = cfg.norm
    return make_plan(resolve(setup_of(cfg, how), model_of(cfg)), load_stack("torch"), kernels)


class _FusedRMSNorm(torch.autograd.Function):
    """What CUDA's kernel allocates and saves (aten._fused_rms_norm is decomposed off CUDA)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        rstd = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _rstd = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), None


norms.fused_rms_norm = _FusedRMSNorm.apply


def build(cfg: RefConfig, device: str, how: How = DEFAULT, casts: bool = True) -> Decoder:
    """The decoder; inside FakeTensorMode "cpu" gives fake tensors. casts: its own autocast."""
    plan = plan_of(cfg, how)
    if not casts:
        plan = plan._replace(kernels=plan.kernels._replace(autocast=False))
    return decoder.build(plan, device, seed=None)
