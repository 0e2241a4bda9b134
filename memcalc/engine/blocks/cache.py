"""Caches of keys and values as an attention layer meets them: what it adds, what it then reads.

A layer hands its new keys and values (b, heads, s, width) to `cached` and reads what it gets back.
Dims: s new positions; s_kv keys a full layer then reads, s_p of them from before; w_kv and w_p the same
of a layer with a sliding window, w_p being what the tensors that hold its past take, views apart.
Latent attention caches the latent and the one rotary key in place of keys and values.
Codes: grow, transformers' DynamicCache, which joins old and new in a new tensor; tuple, what it had
before (up to 4.35): the same, but the old tensors of all layers live until the pass is over; static, its
StaticCache; paged, a pool that exists before (vLLM), read through a table of blocks; whole, one for the
whole context (llama.cpp), of which what is filled is read; fp8, grouped: see cache_quantised.py.
Source: transformers 5.23, cache_utils.py. Checked by: oracle/test_kv_cache.py, oracle/test_serving.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.aten.shape import cat
from memcalc.engine.blocks.cache_quantised import fp8_update, grouped_update
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build


class CacheKind(NamedTuple):
    """What of a cache decides a forward pass.

    filled: it holds positions from before. few: so few new positions that latent attention may read the
    latents as they are (vLLM). every: logits of every new position are asked for, not of the last.
    """

    code: str = "grow"  # grow | tuple | static | paged | whole | fp8 | grouped
    filled: bool = False
    few: bool = False
    every: bool = False


@dataclass(eq=False)
class KeyCache:
    """The cache of one traced forward: what its layers leave in it, and the shapes they put there."""

    kind: CacheKind
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    old: list[Tensor] = field(default_factory=list)  # of a tuple's, which the caller still has
    #: block -> shape and dtype of the new keys and values, in that order
    shapes: dict[int, tuple[tuple[Shape, str], ...]] = field(default_factory=dict)

    def update(self, build: Build, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take new keys and values in; the keys and values that attention reads."""
        self.shapes[build.tape.block] = ((key.shape, key.dtype), (value.shape, value.dtype))
        build.at("kv_cache", "attention")
        return _UPDATES[self.kind.code](self, build, key, value)


def cached(build: Build, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values that attention reads: the new ones alone where nothing is cached."""
    held = build.cache or build.prefix
    return (key, value) if held is None else held.update(build, key, value)


def keys_read(build: Build, kind: str) -> Size:
    """Keys that a layer of this kind (full | sliding) reads: the new positions' without a cache."""
    return build.dims.get("w_kv" if kind == "sliding" else "s_kv", build["s"])


def _grown(cache: KeyCache, build: Build, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """DynamicCache: old and new joined, keys first; of a window's only the last stay in reach."""
    sliding = build.kind.attention == "sliding"
    past, total = ("w_p", "w_kv") if sliding else ("s_p", "s_kv")
    old = [_earlier(build, new, past) if cache.kind.filled else None for new in (key, value)]
    if cache.kind.code == "tuple":
        cache.old += [one for one in old if one is not None]
    whole_key = _joined(build, old[0], key, total)
    if not sliding:
        old[0] = None
    whole_value = _joined(build, old[1], value, total)
    old.clear()  # a window's old tensors go once both are joined
    cache.held.append((whole_key, whole_value))  # a window keeps a view of the last of them
    return whole_key, whole_value


def _earlier(build: Build, new: Tensor, length: str) -> Tensor:
    """What an earlier forward left of one tensor: here only its end is seen."""
    shape = (*new.shape[:2], build[length], new.shape[3])
    return build.tape.earlier_made("cat", shape, new.dtype)


def _joined(build: Build, before: Tensor | None, new: Tensor, total: str) -> Tensor:
    if before is None:
        return cat((new,), 2, new.shape[2])
    return cat((before, new), 2, build[total])


def _in_place(cache: KeyCache, build: Build, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """New rows written into tensors that were there; all of their positions are read."""
    found = []
    for new in (key, value):
        build.tape.in_place("index_copy_", new)
        shape = (*new.shape[:2], keys_read(build, build.kind.attention), new.shape[3])
        found.append(build.tape.external(shape, new.dtype))
    return found[0], found[1]


_UPDATES = {
    "grow": _grown, "tuple": _grown, "static": _in_place, "paged": _in_place, "whole": _in_place,
    "fp8": fp8_update, "grouped": grouped_update,
}  # fmt: skip
