"""Reference decoders in plain PyTorch: what the engine's ledgers claim to describe.

Locals live as in ordinary model code, for they are part of the timeline: the attention module
holds q, k, v and its output until it returns, the MLP is one expression, a block rebinds x twice.
Each step of the ledger runs inside an `op` context of the same name.

Letters: b sequences, s positions, V vocabulary, h hidden, L blocks, a query heads, k key/value
heads, d head width, f MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from tests.oracle.support.attention import CORES, causal_mask
from tests.oracle.support.autocast import Linear, autocast_scope, linear
from tests.oracle.support.norms import NORMS
from tests.oracle.support.tracker import enter_loss, layer, op

_aten = torch.ops.aten


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
    chunk_upcast: bool = True  # chunked: logits.float() inside each chunk
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
    def mixed(self) -> bool:
        return self.precision == "mixed"

    @property
    def param_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    @property
    def is_gpt2(self) -> bool:
        return self.family == "gpt2"

    def norm_module(self, width: int, name: str) -> nn.Module:
        return NORMS["layer" if self.is_gpt2 else self.norm](width, name)


# Small steps of a block ------------------------------------------------------------------------


def _dropout(x: Tensor, p: float, name: str) -> Tensor:
    """Dropout with CUDA's one-byte mask; the plain function keeps a wider one elsewhere."""
    if not p:
        return x
    with op(name):
        return _aten.native_dropout(x, p, True)[0]


def _add(x: Tensor, branch: Tensor, name: str) -> Tensor:
    with op(name):
        return x + branch


def _multiply(gate: Tensor, up: Tensor) -> Tensor:
    with op("gate_mul"):
        return gate * up


def _silu(x: Tensor) -> Tensor:
    with op("activation"):
        return F.silu(x)


def _gelu(x: Tensor) -> Tensor:
    with op("activation"):
        return F.gelu(x, approximate="tanh")


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + _rotate_half(x) * sin


def _rope_tables(s: int, d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, (s, d) each in the compute dtype; the angles are fp32."""
    exponents = torch.arange(0, d, 2, dtype=torch.float32, device=device) / d
    positions = torch.arange(s, dtype=torch.float32, device=device)
    angles = torch.outer(positions, 1.0 / 10000.0**exponents)
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


class _NamedLinear(Linear):
    """A linear whose whole call is one operator."""

    def __init__(self, cfg: RefConfig, n_in: int, n_out: int, bias: bool, name: str) -> None:
        super().__init__(n_in, n_out, bias, cfg.mixed)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        with op(self.name):
            return super().forward(x)


# Attention and MLP -----------------------------------------------------------------------------


class _Core(nn.Module):
    """The attention core, in a checkpoint of its own under selective recomputation."""

    def __init__(self, cfg: RefConfig) -> None:
        super().__init__()
        self.core, self.dropout = CORES[cfg.attention], cfg.attention_dropout
        self.dtype = cfg.compute_dtype
        self.recomputed = cfg.recompute == "selective"
        self.index = 0  # set by the block: recomputation runs outside the block's scope

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.recomputed:
            return checkpoint(self._attend, q, k, v, mask, use_reentrant=False)
        return self._attend(q, k, v, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # Autocast gives every attention kernel bf16; a cast happens only after a norm of q and k.
        with layer(self.index), op("attention"):
            q, k, v = q.to(self.dtype), k.to(self.dtype), v.to(self.dtype)
            return self.core(q, k, v, mask, self.dropout)


class LlamaAttention(nn.Module):
    def __init__(self, cfg: RefConfig) -> None:
        super().__init__()
        self.cfg = cfg
        bias, input_bias = cfg.attention_bias, cfg.attention_bias or cfg.qkv_bias
        width, kv_width = cfg.a * cfg.d, cfg.k * cfg.d
        self.q_proj = Linear(cfg.h, width, input_bias, cfg.mixed)
        self.k_proj = Linear(cfg.h, kv_width, input_bias, cfg.mixed)
        self.v_proj = Linear(cfg.h, kv_width, input_bias, cfg.mixed)
        self.o_proj = Linear(width, cfg.h, bias, cfg.mixed)
        if cfg.qk_norm:
            self.q_norm = cfg.norm_module(cfg.d, "q_norm")
            self.k_norm = cfg.norm_module(cfg.d, "k_norm")
        self.core = _Core(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        b, s, _ = x.shape
        cfg = self.cfg
        with op("q_proj"):
            q = self.q_proj(x).view(b, s, cfg.a, cfg.d)
        with op("k_proj"):
            k = self.k_proj(x).view(b, s, cfg.k, cfg.d)
        with op("v_proj"):
            v = self.v_proj(x).view(b, s, cfg.k, cfg.d).transpose(1, 2)
        if cfg.qk_norm:
            q = self.q_norm(q)
            k = self.k_norm(k)
        with op("rope"):
            q = _apply_rope(q.transpose(1, 2), cos, sin)
            k = _apply_rope(k.transpose(1, 2), cos, sin)
        out = self.core(q, k, v, mask)
        with op("o_proj"):
            return self.o_proj(out.transpose(1, 2).reshape(b, s, -1))


class GPT2Attention(nn.Module):
    def __init__(self, cfg: RefConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.qkv_proj = Linear(cfg.h, 3 * cfg.h, True, cfg.mixed)
        self.o_proj = Linear(cfg.h, cfg.h, True, cfg.mixed)
        self.core = _Core(cfg)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, s, h = x.shape
        heads = (b, s, self.cfg.a, h // self.cfg.a)
        with op("qkv_proj"):
            q, k, v = self.qkv_proj(x).split(h, -1)
            q = q.view(heads).transpose(1, 2)
            k = k.view(heads).transpose(1, 2)
            v = v.view(heads).transpose(1, 2)
        out = self.core(q, k, v, mask)
        with op("o_proj"):
            return self.o_proj(out.transpose(1, 2).reshape(b, s, h))


class LlamaMLP(nn.Module):
    def __init__(self, cfg: RefConfig) -> None:
        super().__init__()
        self.gate_proj = _NamedLinear(cfg, cfg.h, cfg.f, cfg.mlp_bias, "gate_proj")
        self.up_proj = _NamedLinear(cfg, cfg.h, cfg.f, cfg.mlp_bias, "up_proj")
        self.down_proj = _NamedLinear(cfg, cfg.f, cfg.h, cfg.mlp_bias, "down_proj")

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(_multiply(_silu(self.gate_proj(x)), self.up_proj(x)))


class GPT2MLP(nn.Module):
    def __init__(self, cfg: RefConfig) -> None:
        super().__init__()
        self.up_proj = _NamedLinear(cfg, cfg.h, cfg.f, True, "up_proj")
        self.down_proj = _NamedLinear(cfg, cfg.f, cfg.h, True, "down_proj")

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(_gelu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, cfg: RefConfig, index: int) -> None:
        super().__init__()
        self.index, self.p, self.mixed = index, cfg.dropout, cfg.mixed
        self.attn_norm = cfg.norm_module(cfg.h, "attn_norm")
        self.attn = GPT2Attention(cfg) if cfg.is_gpt2 else LlamaAttention(cfg)
        self.attn.core.index = index
        self.mlp_norm = cfg.norm_module(cfg.h, "mlp_norm")
        self.mlp = GPT2MLP(cfg) if cfg.is_gpt2 else LlamaMLP(cfg)

    def forward(self, x: Tensor, *context: Tensor | None) -> Tensor:
        """context: what attention reads beside x, that is cos, sin (llama) and the mask."""
        with layer(self.index), autocast_scope(self.mixed):
            x = _add(
                x,
                _dropout(self.attn(self.attn_norm(x), *context), self.p, "attn_dropout"),
                "attn_residual",
            )
            return _add(
                x, _dropout(self.mlp(self.mlp_norm(x)), self.p, "mlp_dropout"), "mlp_residual"
            )


# Recomputation ---------------------------------------------------------------------------------

_ATTENTION_KERNELS = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
_MATMULS = frozenset({_aten.mm.default, _aten.addmm.default, _aten.bmm.default})
_KEPT = {"sac": _ATTENTION_KERNELS | _MATMULS, "sac-attention": _ATTENTION_KERNELS}


def _keep(kept: frozenset[Any], ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if func in kept else CheckpointPolicy.PREFER_RECOMPUTE


def _run_block(block: Block, index: int, recompute: str, *args: Tensor | None) -> Tensor:
    if recompute in _KEPT:
        contexts = partial(create_selective_checkpoint_contexts, partial(_keep, _KEPT[recompute]))
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
    if recompute == "reentrant":
        return checkpoint(block, *args, use_reentrant=True)
    first = int(recompute.partition(":")[2] or index + 1) if recompute.startswith("full") else 0
    if index < first:
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)


# Loss and model --------------------------------------------------------------------------------


def _cross_entropy(
    logits: Tensor, labels: Tensor, upcast: bool, mixed: bool, reduction: str
) -> Tensor:
    """Cross entropy of (tokens, V) logits.

    Under CUDA autocast F.cross_entropy asks log_softmax for its input's dtype, so the log
    probabilities stay bf16, and the likelihood is then an fp32 operator on a cast of them.
    """
    with op("loss"):
        if upcast:
            return F.cross_entropy(logits.float(), labels, reduction=reduction)
        if mixed:
            log_probs = F.log_softmax(logits, -1, dtype=logits.dtype)
            return F.nll_loss(log_probs.float(), labels, reduction=reduction)
        return F.cross_entropy(logits, labels, reduction=reduction)


class Decoder(nn.Module):
    """Token ids and labels in, mean loss out."""

    def __init__(self, cfg: RefConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(cfg.V, cfg.h)
        if cfg.is_gpt2:
            self.positions = nn.Embedding(cfg.max_positions, cfg.h)
        self.layers = nn.ModuleList(Block(cfg, i) for i in range(cfg.L))
        self.final_norm = cfg.norm_module(cfg.h, "final_norm")
        if not cfg.tied:
            self.lm_head = Linear(cfg.h, cfg.V, False, cfg.mixed)  # registered last, as usual

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.cfg.tied else self.lm_head.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        with autocast_scope(self.cfg.mixed):
            return self._loss(ids, labels)

    def _loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self._embed(ids)
        context = self._context(ids)
        for index, block in enumerate(self.layers):
            x = _run_block(block, index, self.cfg.recompute, x, *context)
        if self.cfg.loss == "chunked":
            return self._chunked_loss(self.final_norm(x), labels)
        logits = self._logits(self.final_norm(x))
        enter_loss()
        return _cross_entropy(
            logits.view(-1, self.cfg.V),
            labels.view(-1),
            self.cfg.loss == "fp32",
            self.cfg.mixed,
            "mean",
        )

    def _embed(self, ids: Tensor) -> Tensor:
        with op("embedding"):
            x = self.embedding(ids)
        if self.cfg.is_gpt2:
            with op("position_embedding"):
                x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
            x = _dropout(x, self.cfg.dropout, "embedding_dropout")
        return x

    def _context(self, ids: Tensor) -> tuple[Tensor | None, ...]:
        cfg, mask = self.cfg, None
        tables: tuple[Tensor, ...] = ()
        if not cfg.is_gpt2:
            with op("rope_tables"):
                tables = _rope_tables(ids.shape[1], cfg.d, cfg.compute_dtype, ids.device)
        if cfg.attention == "eager":
            with op("causal_mask"):
                mask = causal_mask(ids.shape[1], cfg.compute_dtype, ids.device)
        return (*tables, mask)

    def _logits(self, hidden: Tensor) -> Tensor:
        with op("lm_head"):
            return linear(hidden, self.head_weight, None, self.cfg.mixed)

    def _chunked_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Head and loss of one chunk of tokens at a time, recomputed in backward."""
        enter_loss()
        cfg = self.cfg
        labels = labels.view(-1)
        total = None
        with op("loss"):
            pieces = hidden.view(-1, cfg.h).chunk(cfg.loss_chunks)
        parts = zip(pieces, labels.chunk(cfg.loss_chunks), strict=True)
        for hidden_part, labels_part in parts:
            part = checkpoint(self._part_loss, hidden_part, labels_part, use_reentrant=False)
            with op("loss"):
                total = part if total is None else total + part
        with op("loss"):
            return total / labels.numel()

    def _part_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        with autocast_scope(self.cfg.mixed):
            logits = self._logits(hidden)
            return _cross_entropy(logits, labels, self.cfg.chunk_upcast, self.cfg.mixed, "sum")


def build(cfg: RefConfig, device: str) -> Decoder:
    """The decoder in its parameters' dtype; inside FakeTensorMode, "cpu" gives fake tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(cfg.param_dtype)
    try:
        with torch.device(device):
            return Decoder(cfg)
    finally:
        torch.set_default_dtype(before)
