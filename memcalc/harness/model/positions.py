"""Positions: rotary tables and rotation, distance tables and scores of relative positions, masks.

Shapes: tables (s, r) each; x (b, a, s, d); masks (1, 1, s, keys), with ALiBi (1, a, s, keys).
Sources: Su et al. 2021 (arXiv:2104.09864); Press et al. 2021, ALiBi (arXiv:2108.12409); Dai et al. 2019
(arXiv:1901.02860), sec. 3.3. Checked by: harness/test_decoder_hf.py, oracle/test_plain_variants.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memcalc.harness.model.cache import Read
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig


def rope_tables(
    s: int,
    r: int,
    theta: float,
    dtype: torch.dtype,
    device: torch.device,
    own: Tensor | int = 0,
) -> tuple[Tensor, Tensor]:
    """cos and sin in the compute dtype; the angles are fp32. own: positions int64 (s), or the first."""
    with op("rope_tables"):
        exponents = torch.arange(0, r, 2, dtype=torch.float32, device=device) / r
        if isinstance(own, Tensor):
            positions = own.float()
        else:
            positions = torch.arange(own, own + s, dtype=torch.float32, device=device)
        angles = torch.outer(positions, 1.0 / theta**exponents)
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin over the first r columns of each head."""
    r = cos.shape[-1]
    if r == x.shape[-1]:
        return x * cos + _rotate_half(x) * sin
    rotated, rest = x[..., :r], x[..., r:]
    rotated = rotated * cos + _rotate_half(rotated) * sin
    return torch.cat((rotated, rest), -1)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def distance_table(s: int, h: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sinusoids of every distance, the largest first: (s, h)."""
    with op("relative_table"):
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, h, 2, device=device).float() / h)
        distances = torch.arange(s - 1, -1, -1, device=device).float()
        angles = torch.outer(distances, frequencies)
        return torch.cat((angles.sin(), angles.cos()), -1).to(dtype)


def relative_shift(scores: Tensor) -> Tensor:
    """Rows moved so that column j holds the score of distance i - j: pad, reshape, cut."""
    b, a, s, _ = scores.shape
    column = torch.zeros(b, a, s, 1, dtype=scores.dtype, device=scores.device)
    padded = torch.cat((column, scores), -1).reshape(b, a, s + 1, s)
    return padded[:, :, 1:]


def causal_mask(
    config: ModelConfig,
    sliding: bool,
    s: int,
    dtype: torch.dtype,
    device: torch.device,
    read: Read | None = None,
) -> Tensor:
    """Zero where a position may look, the smallest number where it may not; ALiBi's slopes added.

    read: what a pass over a cache reads; None: the s positions alone.
    """
    keys, before = read or Read(s, 0)
    with op("causal_mask"):
        lowest = torch.finfo(dtype).min
        full = torch.full((s, keys), lowest, dtype=dtype, device=device)
        mask = full.triu(1 + before)
        if sliding and config.sliding_window is not None:
            mask += full.tril(before - config.sliding_window)
        del full
    if config.position_embedding != "alibi":
        return mask[None, None]
    with op("alibi"):
        heads = torch.arange(1, config.num_attention_heads + 1, dtype=dtype, device=device)
        slopes = torch.pow(2.0, heads * (-8.0 / config.num_attention_heads))
        positions = torch.arange(keys, dtype=dtype, device=device)
        bias = slopes[:, None, None] * positions
        return (bias + mask)[None]
