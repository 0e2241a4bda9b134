"""Self-attention of the decoder: projections, rotary positions, the core, the output projection.

Shapes: x (b, s, h); q (b, a, s, d), k and v (b, k, s, d). Locals live as in ordinary model code, for
they are part of the timeline: q, k, v and the core's output live until the module returns.
Checked by: oracle/test_torch_saved.py, oracle/test_step_peak.py, harness/test_decoder_hf.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memcalc.engine.kernels import Kernels
from memcalc.harness.model.attention_core import Core, eager, fused, repeat_heads, weighted_sum
from memcalc.harness.model.cache import Growing, Standing
from memcalc.harness.model.casting import DTYPES, Linear
from memcalc.harness.model.norms import Norm
from memcalc.harness.model.positions import relative_shift, rotate
from memcalc.harness.watch.scopes import layer, op
from memcalc.inputs.model import ModelConfig

HEADS_FIRST = (0, 2, 1, 3)


class AttentionCore(nn.Module):
    """The chosen kernel on q, k, v; in a checkpoint of its own under selective recomputation."""

    def __init__(self, config: ModelConfig, kernels: Kernels, index: int) -> None:
        super().__init__()
        self.config, self.kernels, self.index = config, kernels, index
        self.core = Core(
            kernels.attention,
            kernels.device,
            config.attention_dropout if kernels.use_dropout else 0.0,
            config.attn_logit_softcapping,
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, ...], extra: Tensor | None
    ) -> Tensor:
        """extra: the sinks (a), or the scores of relative positions' caller; else None."""
        if self.kernels.selective:
            out: Tensor = checkpoint(self._attend, q, k, v, context, extra, use_reentrant=False)
            return out
        return self._attend(q, k, v, context, extra)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, ...], extra: Tensor | None
    ) -> Tensor:
        dtype = DTYPES[self.kernels.compute_dtype]
        with layer(self.index), op("attention"):
            # Autocast gives every kernel 16 bit; a cast happens only after a norm of q and k.
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            if self.kernels.attention == "eager":
                return eager(self.core, q, k, v, context[-1], extra)
            alibi = self.config.position_embedding == "alibi"
            return fused(self.core, q, k, v, context[-1] if alibi else None)


class Attention(nn.Module):
    """Attention of x with one linear for each of q, k, v, or one for all three (GPT-2)."""

    def __init__(self, config: ModelConfig, kernels: Kernels, index: int) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        h, d = config.hidden_size, config.head_dim
        width, kv_width = config.num_attention_heads * d, config.num_key_value_heads * d
        bias = config.attention_bias
        if config.fused_qkv:
            self.qkv_proj = Linear((h, width + 2 * kv_width), bias, kernels)
        else:
            self.q_proj = Linear((h, width), bias, kernels)
            self.k_proj = Linear((h, kv_width), bias, kernels)
            self.v_proj = Linear((h, kv_width), bias, kernels)
        if config.position_embedding == "relative":
            self.relative = RelativeScores(config, kernels)
        if config.attention_sinks:
            self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.o_proj = Linear((width, h), config.attention_output_bias, kernels)
        if config.qk_norm != "none" and not config.fused_qkv:
            wide = config.qk_norm == "full"
            self.q_norm = Norm(width if wide else d, "q_norm", config, kernels)
            self.k_norm = Norm(kv_width if wide else d, "k_norm", config, kernels)
        self.core = AttentionCore(config, kernels, index)
        self.cache: Growing | Standing | None = None  # while tokens are generated

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """context: cos and sin, or the distance table; then the mask where one is used."""
        project = self._fused_projection if self.config.fused_qkv else self._projections
        q, k, v = project(x)
        if self.config.position_embedding == "rope":
            with op("rope"):
                q = rotate(q.permute(HEADS_FIRST), context[0], context[1])
                k = rotate(k.permute(HEADS_FIRST), context[0], context[1])
        else:
            q, k = q.permute(HEADS_FIRST), k.permute(HEADS_FIRST)
        if self.cache is not None:
            k, v = self.cache.update(k, v)
        if self.config.position_embedding == "relative":
            out = self.relative(self.core.core, (q, k, v), context)
        else:
            sinks = self.sinks if self.config.attention_sinks else None
            out = self.core(q, k, v, context, sinks)
        with op("o_proj"):
            return self.o_proj(out.permute(HEADS_FIRST).reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = self._projected("q", x, heads)
        k = self._projected("k", x, heads)
        with op("v_proj"):
            v = self.v_proj(x).view(heads).permute(HEADS_FIRST)
        if self.config.qk_norm == "head":
            q = self.q_norm(q)
            k = self.k_norm(k)
        return q, k, v

    def _projected(self, name: str, x: Tensor, heads: tuple[int, ...]) -> Tensor:
        """q or k, token-major with heads (b, s, heads, d); normed over all heads where the model does."""
        with op(f"{name}_proj"):
            out: Tensor = self._modules[f"{name}_proj"](x)  # type: ignore[misc]
            if self.config.qk_norm != "full":
                return out.view(heads)
        out = self._modules[f"{name}_norm"](out)  # type: ignore[misc]
        with op(f"{name}_norm"):
            return out.view(heads)

    def _fused_projection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, d = (*x.shape[:2], -1, self.config.head_dim), self.config.head_dim
        width, kv_width = self.config.num_attention_heads * d, self.config.num_key_value_heads * d
        with op("qkv_proj"):
            q, k, v = self.qkv_proj(x).split((width, kv_width, kv_width), -1)
            q, k = q.view(heads), k.view(heads)
            return q, k, v.view(heads).permute(HEADS_FIRST)


class RelativeScores(nn.Module):
    """Eager attention with relative positions: scores (q + u) k^T + shift((q + v) r^T)."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        width = config.num_attention_heads * config.head_dim
        self.relative_proj = Linear((config.hidden_size, width), False, kernels)
        self.content_bias = nn.Parameter(torch.zeros(config.num_attention_heads, config.head_dim))
        self.position_bias = nn.Parameter(torch.zeros(config.num_attention_heads, config.head_dim))

    def forward(
        self, core: Core, qkv: tuple[Tensor, Tensor, Tensor], context: tuple[Tensor, ...]
    ) -> Tensor:
        """Attention's output (b, a, s, d); context: distance table and mask."""
        q, k, v = (x.to(DTYPES[self.kernels.compute_dtype]) for x in qkv)
        groups = q.shape[1] // k.shape[1]
        keys, values = repeat_heads(k, groups), repeat_heads(v, groups)
        with op("attention"):
            return weighted_sum(
                core, lambda: self._scores(q, keys, context[0]), values, context[-1]
            )

    def _scores(self, q: Tensor, keys: Tensor, table: Tensor) -> Tensor:
        return self._unscaled(q, keys, table) * float(q.shape[-1] ** -0.5)

    def _unscaled(self, q: Tensor, keys: Tensor, table: Tensor) -> Tensor:
        b, a, s, d = q.shape
        with op("relative_proj"):
            distances = self.relative_proj(table).view(1, s, a, d).permute(0, 2, 3, 1)
        content = torch.matmul(self._biased(q, self.content_bias), keys.transpose(2, 3))
        distances = distances.expand(b, a, d, s)
        position = torch.matmul(self._biased(q, self.position_bias), distances)
        return content + relative_shift(position)

    def _biased(self, q: Tensor, bias: Tensor) -> Tensor:
        shaped = bias.reshape(1, bias.shape[0], 1, bias.shape[1])
        return (q + shaped).to(DTYPES[self.kernels.compute_dtype])
