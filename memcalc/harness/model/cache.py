"""Caches of keys and values for decoding: one that grows by joining, and ones made beforehand.

Shapes: keys and values (b, heads, s, width); of latent attention the latent (b, 1, s, c) and the rotary
key (b, 1, s, d_r). Codes are those of engine/blocks/cache.py: grow joins old and new in a new tensor and
keeps of a window only what stays in reach; static and whole write into tensors of the whole context,
static reads all of them under a mask, whole the part that is filled.
Checked by: oracle/test_harness_decode.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.errors import ConfigError
from memcalc.harness.model.casting import DTYPES
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig

CODES = ("grow", "static", "whole")


class Read(NamedTuple):
    """What a pass of new positions reads in a layer: `keys` of them, `before` the first new one."""

    keys: int
    before: int


class Growing:
    """Keys and values of one layer, joined anew with every pass. window: of a sliding layer."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def held(self) -> list[Tensor]:
        """The tensors that live between passes."""
        return [x for x in (self.keys, self.values) if x is not None]

    def clear(self) -> None:
        """Begin anew."""
        self.keys = self.values = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take new keys and values in; what attention reads."""
        with op("kv_cache"):
            if self.window is None:
                self.keys = _joined(self.keys, keys)
                self.values = _joined(self.values, values)
                return self.keys, self.values
            keys, values = _joined(self.keys, keys), _joined(self.values, values)
            kept = self.window - 1
            self.keys, self.values = keys[:, :, -kept:], values[:, :, -kept:]
            return keys, values

    def read(self, new: int, past: int) -> Read:
        """What a pass of `new` positions over `past` reads."""
        before = past if self.window is None else min(past, self.window - 1)
        return Read(before + new, before)


def _joined(before: Tensor | None, new: Tensor) -> Tensor:
    return torch.cat((new,) if before is None else (before, new), 2)


class Standing:
    """Keys and values of one layer in tensors of a whole context, all of them read or the filled part."""

    def __init__(self, tensors: tuple[Tensor, Tensor], reads_all: bool) -> None:
        self.keys, self.values = tensors
        self.reads_all, self.filled = reads_all, 0

    @property
    def held(self) -> list[Tensor]:
        """The tensors that live between passes."""
        return [self.keys, self.values]

    def clear(self) -> None:
        """Begin anew; what is left in it is written over or masked."""
        self.filled = 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the others; what attention reads."""
        with op("kv_cache"):
            end = self.filled + keys.shape[2]
            self.keys[:, :, self.filled : end] = keys
            self.values[:, :, self.filled : end] = values
            self.filled = end
            if self.reads_all:
                return self.keys, self.values
            return self.keys[:, :, :end], self.values[:, :, :end]

    def read(self, new: int, past: int) -> Read:
        """What a pass of `new` positions over `past` reads."""
        return Read(self.keys.shape[2] if self.reads_all else past + new, past)


class Cache:
    """The caches of all layers. seen: positions taken in so far."""

    def __init__(self, layers: Sequence[Growing | Standing]) -> None:
        self.layers = layers
        self.seen = 0

    def reads(self, kinds: tuple[BlockKind, ...], new: int) -> dict[str, Read]:
        """What the next pass of `new` positions reads, by kind of attention."""
        pairs = zip(kinds, self.layers, strict=True)
        return {kind.attention: layer.read(new, self.seen) for kind, layer in pairs}

    def restart(self) -> None:
        """Forget what was taken in: a cache made beforehand begins at its first position."""
        self.seen = 0
        for layer in self.layers:
            layer.clear()

    def held(self) -> list[Tensor]:
        """Every tensor that lives between passes."""
        return [tensor for layer in self.layers for tensor in layer.held]


def check_cache(config: ModelConfig, kinds: tuple[BlockKind, ...], code: str, context: int) -> None:
    """Raise ConfigError for a code the decoder has not, and for windows in a cache made beforehand."""
    if code not in CODES:
        raise ConfigError(f"cache: got {code!r} for a run; valid: {', '.join(CODES)}")
    window = config.sliding_window
    if code == "grow" or window is None or window >= context:
        return
    if any(kind.attention == "sliding" for kind in kinds):
        raise ConfigError(
            f"cache: got {code} for {context} positions and windows of {window}; rule: a context within "
            "the window; nearest valid: --cache grow"
        )


def growing(config: ModelConfig, kinds: tuple[BlockKind, ...]) -> Cache:
    """An empty cache that grows with every pass."""
    window = config.sliding_window
    return Cache([Growing(window if kind.attention == "sliding" else None) for kind in kinds])


def standing(
    config: ModelConfig,
    kernels: Kernels,
    sizes: tuple[int, int],
    reads_all: bool,
    device: torch.device,
) -> Cache:
    """A cache of all layers for sizes = (sequences, positions), full of zeros.

    Autocast leaves keys and latents in fp32 where a norm made them; all else is in the products' dtype.
    """
    compute = DTYPES[kernels.compute_dtype]
    normed = kernels.autocast and (config.qk_norm != "none" or config.mla is not None)
    dtypes = (torch.float32 if normed else compute, compute)
    shapes = [(sizes[0], heads, sizes[1], width) for heads, width in cached_widths(config)]

    def made() -> tuple[Tensor, Tensor]:
        first, second = (
            torch.zeros(shape, dtype=dtype, device=device)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        )
        return first, second

    return Cache([Standing(made(), reads_all) for _ in range(config.num_hidden_layers)])


def cached_widths(config: ModelConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """(heads, width) of the two tensors a layer caches."""
    if config.mla is not None:
        return (1, config.mla.kv_lora_rank), (1, config.mla.qk_rope_head_dim)
    heads = config.num_key_value_heads
    return (heads, config.head_dim), (heads, config.head_dim)
