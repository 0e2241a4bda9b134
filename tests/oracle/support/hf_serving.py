"""transformers without gradients: one prefill, then decode steps, with its own caches, on meta tensors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, StaticCache

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
        for tensor in (layer.keys, layer.values)
    }
    return sum(found.values())


def serve_hf(
    config: dict[str, Any],
    batch: int,
    lengths: tuple[int, ...],
    attention: str = "flash",
    static: int | None = None,
) -> list[Pass]:
    """Forward passes of so many new positions each, one after the other, through one cache.

    static: positions of a StaticCache; None: a DynamicCache.
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
        cache = (
            DynamicCache(config=config)
            if static is None
            else StaticCache(config=config, max_cache_len=static)
        )
        for length in lengths:
            ids = torch.zeros(batch, length, dtype=torch.long)
            tracker = StorageTracker("meta")
            tracker.track(model, ids)
            tracker.track([(layer.keys, layer.values) for layer in cache.layers])
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


def amounts(one: Pass) -> list[int]:
    """Bytes allocated, and freed as negative numbers, in order."""
    return [event.nbytes if isinstance(event, Alloc) else -event.nbytes for event in one.events]
