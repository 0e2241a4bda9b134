"""A Megatron model with latent attention in real torch, kernels left out; see megatron_model.

Source: Megatron-Core 0.14, transformer/multi_latent_attention.py, fusions/fused_mla_yarn_rope_apply.py.
Used by: oracle/test_megatron_latent.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from tests.oracle.support import megatron_functions as te
from tests.oracle.support.megatron_expert_functions import Freed
from tests.oracle.support.megatron_functions import Parallel, like
from tests.oracle.support.megatron_model import FinalNorm, Model, Shape


@dataclass
class Latent:
    """Widths of the latents and of a head's parts."""

    q_r: int = 24
    c: int = 20
    d_n: int = 16
    d_r: int = 8
    d_v: int = 12
    recompute: tuple[str, ...] = ()


class TurnQueries(Function):
    """ApplyMLARotaryEmbQ: in place, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        return q.view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class TurnKeys(Function):
    """ApplyMLARotaryEmbKV: new keys and values, and gradients."""

    @staticmethod
    def forward(ctx: Any, kv: Tensor, emb: Tensor, d: int, d_v: int) -> tuple[Tensor, Tensor]:
        ctx.shapes = kv.shape, emb.shape
        return like(kv, *kv.shape[:3], d), like(kv, *kv.shape[:3], d_v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*(like(grads[0], *shape) for shape in ctx.shapes), None, None)


class GatherRows(Function):
    """gather_from_sequence_parallel_region."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        output = te.gather(x, ranks)
        x.contiguous()
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return te.scatter(grads[0], ctx.ranks), None


class LatentModel(Model):
    """Dense MLPs after latent attention."""

    def __init__(self, shape: Shape, latent: Latent) -> None:
        super().__init__(shape)
        self.latent = latent

    def attention(self, i: int, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        norms = self.norms(f"{i}.n1")

        def norm(x: Tensor) -> Tensor:
            out: Tensor = FinalNorm.apply(x, *norms)
            return out

        freed = Freed(norm, hidden_states) if "layernorm" in self.latent.recompute else None
        normed = freed.outputs[0] if freed else norm(hidden_states)
        out = self.attended(i, normed)
        if freed:
            freed.discard(out)
        return out, []

    def mlp(self, i: int, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        if "mlp" not in self.latent.recompute:
            return super().mlp(i, hidden_states)

        def inner(x: Tensor) -> Tensor:
            return super(LatentModel, self).mlp(i, x)[0]

        return checkpoint(inner, hidden_states, use_reentrant=True), []

    def attended(self, i: int, x: Tensor) -> Tensor:
        """MultiLatentAttention.forward."""
        c, chosen = self.shape, self.latent.recompute
        freed = None
        q_compressed, kv_compressed, k_pos_emb = self.compressed(i, x)

        def up(*latents: Tensor) -> tuple[Tensor, ...]:
            return self.expanded(i, *latents)

        if "mla_up_proj" in chosen:
            freed = Freed(up, q_compressed, kv_compressed, k_pos_emb)
            query, key, value = freed.outputs
        else:
            query, key, value = up(q_compressed, kv_compressed, k_pos_emb)
        del q_compressed, kv_compressed, k_pos_emb
        out = self.core(query, key, value)
        if freed:
            freed.discard(out)
        out = out.reshape(*out.shape[:2], c.a * self.latent.d_v)
        made: Tensor = te.Linear.apply(c.how, out, self.p(f"{i}.proj", c.h, c.a * self.latent.d_v))
        return made

    def compressed(self, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both down projections, whole on every rank."""
        c, m = self.shape, self.latent
        q_compressed = te.Linear.apply(Parallel(), x, self.p(f"{i}.qa", m.q_r, c.h))
        combined = te.Linear.apply(Parallel(), x, self.p(f"{i}.kva", m.c + m.d_r, c.h))
        kv_compressed, k_pos_emb = torch.split(combined, [m.c, m.d_r], dim=-1)
        if c.how.sp:
            k_pos_emb = GatherRows.apply(k_pos_emb, c.how.tp)
        return q_compressed, kv_compressed, k_pos_emb

    def expanded(self, i: int, q: Tensor, kv: Tensor, k_pos_emb: Tensor) -> tuple[Tensor, ...]:
        """qkv_up_proj_and_rope_apply."""
        c, m = self.shape, self.latent
        norm = [self.p(f"{i}.nq", m.q_r, norm=True)]
        weight = self.p(f"{i}.qb", c.a * (m.d_n + m.d_r), m.q_r)
        q = te.NormLinear.apply(c.how, q, weight, *norm)
        q = q.view(*q.shape[:2], c.a, m.d_n + m.d_r)
        norm = [self.p(f"{i}.nkv", m.c, norm=True)]
        weight = self.p(f"{i}.kvb", c.a * (m.d_n + m.d_v), m.c)
        kv = te.NormLinear.apply(c.how, kv.contiguous(), weight, *norm)
        kv = kv.view(*kv.shape[:2], c.a, m.d_n + m.d_v)
        query = TurnQueries.apply(q)
        key, value = TurnKeys.apply(kv, k_pos_emb, m.d_n + m.d_r, m.d_v)
        return query, key, value
