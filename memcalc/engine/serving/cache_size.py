"""Bytes of a cache of keys and values: read off what the layers of a traced forward put into it.

Checked by: oracle/test_kv_cache.py, exact against transformers' DynamicCache and StaticCache.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.serving.forward import Forward
from memcalc.engine.sizes import product
from memcalc.engine.states import multiplicity


class LayerCache(NamedTuple):
    """Layers that cache alike: kind (full | sliding), how many, bytes of one position of a sequence."""

    kind: str
    layers: int
    position_bytes: float


def layer_caches(forward: Forward, item_bytes: float | None = None) -> list[LayerCache]:
    """What layers cache of one position of one sequence, by traced block.

    item_bytes: of one element, where the cache has a dtype of its own.
    """
    times = multiplicity(forward.runs)
    kinds = [kind for run in forward.runs for _ in range(run.traced) for kind in run.pattern]
    found = []
    for block, tensors in forward.cached.items():
        each = 0.0
        for (_, heads, _, width), dtype in tensors:
            elements = product((heads, width)).value(forward.values)
            each += elements * (ITEMSIZE[dtype] if item_bytes is None else item_bytes)
        found.append(LayerCache(kinds[block].attention, times[block], each))
    return found


def position_bytes(forward: Forward, item_bytes: float | None = None) -> int:
    """Bytes that one more position of one sequence adds, over all layers, windows not yet full."""
    return round(sum(one.layers * one.position_bytes for one in layer_caches(forward, item_bytes)))


def held_positions(forward: Forward, kind: str) -> int:
    """Positions of a sequence that the tensors of a layer of this kind hold after the pass."""
    letter = "w_kv" if kind == "sliding" else "s_kv"
    return forward.values.get(letter, forward.values["s"])


def cache_bytes(forward: Forward, item_bytes: float | None = None) -> int:
    """Bytes of the tensors that hold the cache after the pass, views' whole storages included."""
    batch = forward.values["b"]
    return round(
        sum(
            one.layers * one.position_bytes * held_positions(forward, one.kind) * batch
            for one in layer_caches(forward, item_bytes)
        )
    )
