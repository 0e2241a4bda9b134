"""transformers without gradients: one prefill, then decode steps, with its own caches, on meta tensors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, QuantizedCache, StaticCache

from memcalc.harness.watch.tracker import Alloc, Event, StorageTracker
from tests.oracle.support.hf import _KERNEL_NAME, _PACKED_SEQUENCES, as_config


@dataclass(frozen=True)
class Pass:
    """One forward pass: bytes alive before it, its peak over them, its events, the cache after it."""

    before: int
    peak_over_before: int
    events: list[Event]
    cache_bytes: int


def cache_bytes(cache: Cache) -> int:
    """Bytes of the storages that a cache's layers hold."""
    found = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in held(layer)
    }
    return sum(found.values())


def held(layer: Any) -> list[torch.Tensor]:
    """The tensors of one layer's cache; of a quantised one what is packed, scales, and the residual."""
    found: list[torch.Tensor] = []
    for one in (layer.keys, layer.values, *(getattr(layer, name, None) for name in _PACKED)):
        if isinstance(one, torch.Tensor) and not hasattr(one, "__tensor_flatten__"):
            found.append(one)
        elif isinstance(
            one, tuple
        ):  # (packed, scale), or HQQ's (packed, its scales and zero points)
            for part in one:
                found += [p for p in (part.values() if isinstance(part, dict) else (part,))
                          if isinstance(p, torch.Tensor)]  # fmt: skip
        elif one is not None:  # quanto's tensor of several
            found += [one._data._data, one._scale, one._shift]
    return found


_PACKED = ("_quantized_keys", "_quantized_values")


def serve_hf(
    config: dict[str, Any],
    batch: int,
    lengths: tuple[int, ...],
    attention: str = "flash",
    static: int | None = None,
    quantised: str | None = None,
) -> list[Pass]:
    """Forward passes of so many new positions each, one after the other, through one cache.

    static: positions of a StaticCache; None: a DynamicCache. quantised: backend of a QuantizedCache.
    """
    config = as_config(config)
    implementation = _KERNEL_NAME if attention == "flash" else attention
    found = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch(_PACKED_SEQUENCES, lambda position_ids: None))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("meta"))
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation, dtype=torch.bfloat16
        ).eval()
        cache = _cache(config, static, quantised)
        for length in lengths:
            ids = torch.zeros(batch, length, dtype=torch.long)
            tracker = StorageTracker("meta")
            tracker.track(model, ids)
            tracker.track([held(layer) for layer in cache.layers])
            before = tracker.live
            tracker.reset()
            with tracker:
                out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            found.append(
                Pass(
                    before,
                    tracker.peak - before,
                    list(tracker.events),
                    cache_bytes(cache),
                )
            )
            del out
    return found


def _cache(config: Any, static: int | None, quantised: str | None) -> Cache:
    if quantised is not None:
        return QuantizedCache(quantised, config)
    if static is not None:
        return StaticCache(config=config, max_cache_len=static)
    return DynamicCache(config=config)


def amounts(one: Pass) -> list[int]:
    """Bytes allocated, and freed as negative numbers, in order."""
    return [event.nbytes if isinstance(event, Alloc) else -event.nbytes for event in one.events]
