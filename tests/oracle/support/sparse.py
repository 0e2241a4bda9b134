"""A plain mixture MLP and plain latent attention, as the plain decoder writes them.

Weights come as dicts of tensors. Shapes: x (b, s, h), experts' gate_up (E, 2m, h) and down (E, h, m).
Each is one function, so that its names live until it returns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def meta_weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
    return {
        name: torch.zeros(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for name, shape in shapes.items()
    }


def mixture(x: Tensor, w: Weights, top_k: int, normalize: bool) -> Tensor:
    """Softmax router, grouped products, rows added to their tokens; a shared expert where given."""
    tokens = x.reshape(-1, x.shape[-1])
    _logits, weights, chosen = _route(tokens, w["router"], top_k, normalize)
    out = _experts(tokens, w, chosen, weights).reshape(x.shape)
    if "shared_gate" not in w:
        return out
    return out + _gated_mlp(x, w["shared_gate"], w["shared_up"], w["shared_down"])


def _route(
    tokens: Tensor, weight: Tensor, top_k: int, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (T, E), kept by the caller as a router loss would need them; weights and indices."""
    logits = F.linear(tokens, weight)
    probs = torch.softmax(logits.float(), -1)
    values, chosen = torch.topk(probs, top_k)
    if normalize:
        values /= values.sum(-1, keepdim=True)
    return logits, values.to(logits.dtype), chosen


def _experts(tokens: Tensor, w: Weights, chosen: Tensor, weights: Tensor) -> Tensor:
    experts = w["gate_up"].shape[0]
    ids, perm = torch.sort(chosen.reshape(-1))
    token_of = perm // chosen.shape[1]
    selected = tokens[token_of]
    row_weights = weights.reshape(-1)[perm]
    as_int = ids.int()
    counts = torch.histc(as_int, bins=experts, min=0, max=experts - 1)
    offsets = torch.cumsum(counts, 0, dtype=torch.int32)
    out = F.grouped_mm(selected, w["gate_up"].transpose(-2, -1), offs=offsets)
    out = _gated(out)
    out = F.grouped_mm(out, w["down"].transpose(-2, -1), offs=offsets)
    weighted = out * row_weights.unsqueeze(-1)
    return torch.zeros_like(tokens).index_add_(0, token_of, weighted)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def latent_attention(x: Tensor, w: Weights, dims: dict[str, int], tables: Any) -> Tensor:
    """Low-rank q and kv, one rotated key part for all heads; values padded for the flash kernel."""
    b, s, _ = x.shape
    d_n, d_r, d_v, a, c = (dims[name] for name in ("d_n", "d_r", "d_v", "a", "c"))
    query = F.linear(_norm(F.linear(x, w["q_a"]), w["q_norm"]), w["q_b"])
    query = query.view(b, s, a, d_n + d_r).transpose(1, 2)
    q_pass, q_rot = query.split((d_n, d_r), -1)
    compressed = F.linear(x, w["kv_a"])
    latent, k_rot = compressed.split((c, d_r), -1)
    latent = _norm(latent, w["kv_norm"])
    latent = latent.view(b, 1, s, c)
    k_rot = k_rot.view(b, 1, s, d_r)
    q_rot, k_rot = _rotate(q_rot, *tables), _rotate(k_rot, *tables)
    query = torch.cat((q_pass, q_rot), -1)
    key, value = _expanded(latent, k_rot, w["kv_b"], dims)
    out = _kernel(query, key, value)
    out = out.reshape(b, s, a * d_v)
    return F.linear(out, w["o"])


def _expanded(
    latent: Tensor, k_rot: Tensor, weight: Tensor, dims: dict[str, int]
) -> tuple[Tensor, Tensor]:
    b, _, s, _ = latent.shape
    d_n, d_v, a = dims["d_n"], dims["d_v"], dims["a"]
    latent = F.linear(latent, weight).view(b, s, a, d_n + d_v).transpose(1, 2)
    k_nope, value = latent.split((d_n, d_v), -1)
    k_rot = k_rot.expand(b, a, s, k_rot.shape[-1])
    return torch.cat((k_nope, k_rot), -1), value


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    width = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - width))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    out = kernel(query, key, value, 0.0, True)[0][..., :width]
    return out.transpose(1, 2).contiguous()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + _rotate_half(x) * sin


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    variance = wide.pow(2).mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(variance + 1e-6)
    return weight * wide.to(x.dtype)
