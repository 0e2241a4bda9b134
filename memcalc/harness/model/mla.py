"""Multi-head latent attention: keys and values out of one narrow latent a token.

Symbols: a heads of width d = d_n + d_r for q and k, d_v for v; c the latent's rank. The d_r rotated
columns of the key are one for all heads. The flash kernel wants one width, so v is padded to d for it
and the output cut. Source: DeepSeek-V2 (arXiv:2405.04434), sec. 2.1.
Checked by: oracle/test_sparse_blocks.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.harness.model.attention import HEADS_FIRST, AttentionCore
from memcalc.harness.model.cache import Growing, Standing
from memcalc.harness.model.casting import Linear
from memcalc.harness.model.norms import Norm
from memcalc.harness.model.positions import rotate
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig


class LatentAttention(nn.Module):
    """Attention of x (b, s, h): (b, s, h)."""

    def __init__(self, config: ModelConfig, kernels: Kernels, index: int) -> None:
        super().__init__()
        mla = config.mla
        assert mla is not None
        self.config, self.kernels, self.mla = config, kernels, mla
        h, a, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        width = a * config.head_dim
        if mla.q_lora_rank is None:
            self.q_proj = Linear((h, width), False, kernels)
        else:
            self.q_a_proj = Linear((h, mla.q_lora_rank), bias, kernels)
            self.q_a_norm = Norm(mla.q_lora_rank, "q_a_norm", config, kernels)
            self.q_b_proj = Linear((mla.q_lora_rank, width), False, kernels)
        self.kv_a_proj = Linear((h, mla.kv_lora_rank + mla.qk_rope_head_dim), bias, kernels)
        self.kv_a_norm = Norm(mla.kv_lora_rank, "kv_a_norm", config, kernels)
        expanded = a * (mla.qk_nope_head_dim + mla.v_head_dim)
        self.kv_b_proj = Linear((mla.kv_lora_rank, expanded), False, kernels)
        self.o_proj = Linear((a * mla.v_head_dim, h), config.attention_output_bias, kernels)
        self.core = AttentionCore(config, kernels, index)
        self.cache: Growing | Standing | None = None  # while tokens are generated

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """context: cos and sin of d_r columns, then the mask where one is used."""
        mla, (b, s, _) = self.mla, x.shape
        heads = (b, s, self.config.num_attention_heads, -1)
        query = self._queries(x).view(heads).permute(HEADS_FIRST)
        q_pass, q_rot = torch.split(query, [mla.qk_nope_head_dim, mla.qk_rope_head_dim], -1)
        with op("kv_a_proj"):
            compressed = self.kv_a_proj(x)
        latent, k_rot = torch.split(compressed, [mla.kv_lora_rank, mla.qk_rope_head_dim], -1)
        latent = self.kv_a_norm(latent)
        latent = latent.view(b, 1, s, mla.kv_lora_rank)
        k_rot = k_rot.view(b, 1, s, mla.qk_rope_head_dim)
        with op("rope"):
            q_rot, k_rot = rotate(q_rot, *context[:2]), rotate(k_rot, *context[:2])
        if self.cache is not None:
            latent, k_rot = self.cache.update(latent, k_rot)
        with op("rope"):
            query = torch.cat((q_pass, q_rot), -1)
        key, value = self._expanded(latent, k_rot)
        out = self._attend(query, key, value, context)
        with op("o_proj"):
            out = out.reshape(b, s, -1).contiguous()
            return self.o_proj(out)  # type: ignore[no-any-return]

    def _queries(self, x: Tensor) -> Tensor:
        """(b, s, a d): by way of a latent, or in one projection (V2-Lite)."""
        if self.mla.q_lora_rank is None:
            with op("q_proj"):
                return self.q_proj(x)  # type: ignore[no-any-return]
        return self._from_latent(self.q_a_norm(self._query_latent(x)))

    def _query_latent(self, x: Tensor) -> Tensor:
        with op("q_a_proj"):
            return self.q_a_proj(x)  # type: ignore[no-any-return]

    def _from_latent(self, latent: Tensor) -> Tensor:
        with op("q_b_proj"):
            return self.q_b_proj(latent)  # type: ignore[no-any-return]

    def _expanded(self, latent: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (b, a, s, d) and values (b, a, s, d_v) out of the latent (b, 1, s, c)."""
        with op("kv_b_proj"):
            b, _, s, _ = latent.shape
            heads = (b, s, self.config.num_attention_heads, -1)
            latent = self.kv_b_proj(latent).view(heads).permute(HEADS_FIRST)
            k_nope, value = torch.split(
                latent, [self.mla.qk_nope_head_dim, self.mla.v_head_dim], -1
            )
            k_rot = k_rot.expand(*k_nope.shape[:3], k_rot.shape[-1])
            return torch.cat((k_nope, k_rot), -1), value

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """The kernel's output, token-major (b, s, a, d_v)."""
        width = v.shape[-1]
        with op("attention"):
            if self.kernels.attention == "flash" and width != q.shape[-1]:
                v = F.pad(v, (0, q.shape[-1] - width))
                out = self.core(q, k, v, context, None)[..., :width]
                return out.transpose(1, 2).contiguous()  # type: ignore[no-any-return]
            out = self.core(q, k, v, context, None)
            return out.permute(HEADS_FIRST)  # type: ignore[no-any-return]
