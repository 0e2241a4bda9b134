"""How many bytes of cache an engine holds for sequences of a length: by token, by block, or up front.

grow, tuple: what the tensors of a decode step hold. static: the whole context, of a window at most the
window. paged: blocks of so many positions; a prefix that all sequences share is there once, in whole
blocks; a layer with a window keeps the blocks that the window and a piece of a prompt can touch, and one
more.
whole: every position of every sequence, windows or not.
Source: vLLM, v1/kv_cache_interface.py (SlidingWindowSpec). Checked by: unit/test_serving_memory.py,
oracle/test_kv_cache.py.
"""

from __future__ import annotations

from memcalc.engine.serving.cache_size import cache_bytes, layer_caches, position_bytes
from memcalc.engine.serving.serving_plan import ServingPlan


def bytes_a_token(plan: ServingPlan) -> int:
    """Bytes that one more position of one sequence adds to a rank's cache, windows not yet full."""
    return position_bytes(plan.decode(1), plan.resolved.item_bytes)


def held_cache_bytes(plan: ServingPlan) -> int:
    """Bytes of a rank's cache with all sequences at the end of their context."""
    resolved = plan.resolved
    last = plan.decode(resolved.context - 1)
    if resolved.cache in ("grow", "tuple", "static"):
        return cache_bytes(last, resolved.item_bytes)
    positions = {
        "full": _positions(plan, None),
        "sliding": _positions(plan, plan.config.sliding_window),
    }
    return round(
        sum(
            one.layers * one.position_bytes * positions[one.kind]
            for one in layer_caches(last, resolved.item_bytes)
        )
    )


def _positions(plan: ServingPlan, window: int | None) -> int:
    """Positions that a layer's part of the cache has room for, all sequences together."""
    resolved = plan.resolved
    if resolved.cache == "whole":
        return resolved.batch * resolved.context
    block = block_size(plan)
    shared = resolved.setup.shared_prefix // block
    blocks = -(-resolved.context // block)
    if window is not None:
        reach = min(window - 1 + resolved.prefill_tokens, resolved.context)
        blocks, shared = min(blocks, -(-reach // block) + 1), 0
    return block * (shared + resolved.batch * (blocks - shared))


def block_size(plan: ServingPlan) -> int:
    """Positions of one block of a paged cache."""
    return int(plan.resolved.engine.values.get("block_size", 1))
