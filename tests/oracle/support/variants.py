"""A decoder in plain PyTorch with every option of ModelConfig that the reference decoders lack.

Norm placements, parallel blocks, partial rotary, norms over all heads, soft caps, sinks, ALiBi, narrow
embeddings. Locals live as the engine's blocks say; bf16, meta tensors.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memcalc.inputs.model import ModelConfig
from tests.oracle.support.attention import repeat_heads
from tests.oracle.support.norms import NORMS
from tests.oracle.support.tracker import Alloc, StorageTracker

_aten = torch.ops.aten


def _norm(width: int) -> nn.Module:
    return NORMS["hand"](width, "norm")


def _linear(n_in: int, n_out: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias)


def _call(block: nn.Module, *args: Tensor) -> Tensor:
    return block(*args)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class _Attention(nn.Module):
    def __init__(self, m: ModelConfig, kernel: str) -> None:
        super().__init__()
        self.m, self.kernel = m, kernel
        width, kv_width = m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim
        self.q, self.k = _linear(m.hidden_size, width), _linear(m.hidden_size, kv_width)
        self.v, self.o = _linear(m.hidden_size, kv_width), _linear(width, m.hidden_size)
        if m.qk_norm == "full":
            self.q_norm, self.k_norm = _norm(width), _norm(kv_width)
        if m.attention_sinks:
            self.sinks = nn.Parameter(torch.zeros(m.num_attention_heads))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        b, s, _ = x.shape
        m, full = self.m, self.m.qk_norm == "full"
        q = self.q(x)
        if full:
            q = self.q_norm(q)
        q = q.view(b, s, m.num_attention_heads, m.head_dim)
        k = self.k(x)
        if full:
            k = self.k_norm(k)
        k = k.view(b, s, m.num_key_value_heads, m.head_dim)
        v = self.v(x).view(b, s, m.num_key_value_heads, m.head_dim).transpose(1, 2)
        if m.position_embedding == "rope":
            q = self._rotated(q.transpose(1, 2), *context[:2])
            k = self._rotated(k.transpose(1, 2), *context[:2])
        else:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        out = self._core(q, k, v, context)
        return self.o(out.transpose(1, 2).reshape(b, s, -1))

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        r = cos.shape[-1]
        if r == x.shape[-1]:
            return x * cos + _rotate_half(x) * sin
        rotated, rest = x[..., :r], x[..., r:]
        rotated = rotated * cos + _rotate_half(rotated) * sin
        return torch.cat((rotated, rest), -1)

    def _core(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if self.kernel == "flash":
            return _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
        if self.kernel == "eager":
            return self._eager(q, repeat_heads(k, groups), repeat_heads(v, groups), context[-1])
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        alibi = self.m.position_embedding == "alibi"
        bias = context[-1].expand(q.shape[0], -1, -1, -1) if alibi else None
        kernel = _aten._scaled_dot_product_efficient_attention
        return kernel(q, k, v, bias, True, 0.0, not alibi)[0]

    def _eager(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        weights = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
        if self.m.attn_logit_softcapping:
            weights = weights / self.m.attn_logit_softcapping
            weights = torch.tanh(weights)
            weights = weights * self.m.attn_logit_softcapping
        weights = weights + mask
        if self.m.attention_sinks:
            weights = self._with_sinks(weights)
        else:
            weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(weights, v)

    def _with_sinks(self, weights: Tensor) -> Tensor:
        column = self.sinks.reshape(1, -1, 1, 1).expand(*weights.shape[:3], 1)
        logits = torch.cat((weights, column), -1)
        probs = F.softmax(logits, dim=-1, dtype=torch.float32).to(weights.dtype)
        return probs[..., : weights.shape[-1]]


class _Mlp(nn.Module):
    def __init__(self, m: ModelConfig) -> None:
        super().__init__()
        h, f = m.hidden_size, m.intermediate_size
        self.gate, self.up, self.down = _linear(h, f), _linear(h, f), _linear(f, h)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class _Block(nn.Module):
    def __init__(self, m: ModelConfig, kernel: str) -> None:
        super().__init__()
        self.m, self.placement = m, m.norm_placement
        self.attention, self.mlp = _Attention(m, kernel), _Mlp(m)
        norms = {"pre": 2, "post": 2, "post-residual": 2, "sandwich": 4}[self.placement]
        norms = m.parallel_norms if m.parallel_block else norms
        self.norms = nn.ModuleList(_norm(m.hidden_size) for _ in range(norms))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        if self.m.parallel_block:
            return self._parallel(x, *context)
        x = x + self._branch(x, self.attention, 0, *context)
        if self.placement == "post-residual":
            x = self.norms[0](x)
        x = x + self._branch(x, self.mlp, 1)
        return self.norms[1](x) if self.placement == "post-residual" else x

    def _branch(self, x: Tensor, module: nn.Module, index: int, *context: Tensor) -> Tensor:
        normed = self.norms[index](x) if self.placement in ("pre", "sandwich") else x
        out = module(normed, *context)
        after = {"post": index, "sandwich": index + 2}.get(self.placement)
        return out if after is None else self.norms[after](out)

    def _parallel(self, x: Tensor, *context: Tensor) -> Tensor:
        normed = self.norms[0](x)
        attended = self.attention(normed, *context)
        if self.m.parallel_norms == 2:
            normed = self.norms[1](x)
        fed = self.mlp(normed)
        return x + attended + fed


class Variant(nn.Module):
    """Token ids, context (cos, sin, mask) in, mean loss out."""

    def __init__(self, m: ModelConfig, kernel: str) -> None:
        super().__init__()
        self.m = m
        h, w = m.hidden_size, m.word_embed_proj_dim or m.hidden_size
        self.embedding = nn.Embedding(m.vocab_size, w)
        self.project = w != h
        if self.project:
            self.project_in, self.project_out = _linear(w, h), _linear(h, w)
        if m.embedding_norm:
            self.embedding_norm = _norm(h)
        self.blocks = nn.ModuleList(_Block(m, kernel) for _ in range(m.num_hidden_layers))
        if m.final_norm:
            self.final_norm = _norm(h)
        self.lm_head = _linear(w, m.vocab_size, m.lm_head_bias)

    def forward(self, ids: Tensor, context: tuple[Tensor, ...], recompute: bool) -> Tensor:
        x = self._embed(ids)
        run = partial(checkpoint, use_reentrant=False) if recompute else _call
        for block in self.blocks:
            x = run(block, x, *context)
        logits = self._logits(self._final(x))
        return F.cross_entropy(logits.view(-1, self.m.vocab_size), ids.view(-1))

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.project:
            x = self.project_in(x)
        return self.embedding_norm(x) if self.m.embedding_norm else x

    def _final(self, x: Tensor) -> Tensor:
        x = self.final_norm(x) if self.m.final_norm else x
        return self.project_out(x) if self.project else x

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.lm_head(x)
        cap = self.m.final_logit_softcapping
        if not cap:
            return logits
        logits = logits / cap
        logits = torch.tanh(logits)
        return logits * cap


def run_variant(m: ModelConfig, kernel: str, recompute: bool, batch: int, seq: int) -> list[int]:
    """Bytes allocated and (negative) freed by forward and backward, tables and masks left out."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model, ids = Variant(m, kernel), torch.zeros(batch, seq, dtype=torch.long)
            context = _context(m, kernel, seq)
    finally:
        torch.set_default_dtype(before)
    tracker = StorageTracker("meta")
    tracker.track(model, ids, context)
    existing = {alloc.storage for alloc in tracker.live_storages()}
    with tracker:
        loss = model(ids, context, recompute)
        loss.backward()
        del loss
    return [
        event.nbytes if isinstance(event, Alloc) else -event.nbytes
        for event in tracker.events
        if event.storage not in existing
    ]


def _context(m: ModelConfig, kernel: str, seq: int) -> tuple[Tensor, ...]:
    tables: tuple[Tensor, ...] = ()
    if m.position_embedding == "rope":
        r = m.rotary_dim or m.head_dim
        tables = torch.zeros(seq, r), torch.zeros(seq, r)
    alibi = m.position_embedding == "alibi"
    if kernel != "eager" and not alibi:
        return tables
    return (*tables, torch.zeros(1, m.num_attention_heads if alibi else 1, seq, seq))
