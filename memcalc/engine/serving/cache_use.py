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
from memcalc.inputs.serving import RESIDUAL

#: Bytes of the scales of one layer of transformers' fp8 cache: one in fp32 for keys, one for values.
_FP8_SCALES = 8


def bytes_a_token(plan: ServingPlan) -> int:
    """Bytes that one more position of one sequence adds to the cache of what this plan's device runs.

    Windows are not yet full; a draft's are included.
    """
    own = position_bytes(plan.decode(1), plan.resolved.item_bytes)
    return own + (bytes_a_token(plan.draft) if plan.draft else 0)


def held_cache_bytes(plan: ServingPlan, past: int | None = None, most: bool = False) -> int:
    """Bytes of the cache of this plan's layers before a step over `past` positions and after it.

    past None: all sequences at the end of their context. most: of grouped integers the most up to there.
    """
    resolved = plan.resolved
    past = resolved.context - 1 if past is None else past
    last = plan.decode(past)
    if resolved.cache == "grouped":
        return _grouped_bytes(plan, past + 1, most)
    if plan.grows or resolved.cache == "static":
        layers = sum(one.layers for one in layer_caches(last))
        scales = _FP8_SCALES * layers if resolved.cache == "fp8" else 0
        return cache_bytes(last, resolved.item_bytes) + scales
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


def _grouped_bytes(plan: ServingPlan, positions: int, most: bool) -> int:
    """Packed positions of all sequences in groups of 64 elements, and the residual in 16 bits.

    most: the most that there is up to so many positions, which a full residual makes.
    """
    resolved = plan.resolved
    generated = max(0, positions - resolved.prompt)
    kept = min(generated, RESIDUAL - 1) if most else generated % RESIDUAL
    forward = plan.decode(max(1, positions - 1))
    packed = position_bytes(forward, resolved.item_bytes) * (positions - kept)
    return plan.sequences * (packed + position_bytes(forward) * kept)


def _positions(plan: ServingPlan, window: int | None) -> int:
    """Positions that a layer's part of the cache has room for, all sequences together."""
    resolved = plan.resolved
    if resolved.cache == "whole":
        return plan.sequences * resolved.context
    block = block_size(plan)
    shared = resolved.setup.shared_prefix // block
    whole = resolved.context + resolved.drafted
    blocks = -(-whole // block)
    if window is not None:
        reach = min(window - 1 + resolved.prefill_tokens, whole)
        blocks, shared = min(blocks, -(-reach // block) + 1), 0
    return block * (shared + plan.sequences * (blocks - shared))


def block_size(plan: ServingPlan) -> int:
    """Positions of one block of a paged cache."""
    return int(plan.resolved.engine.values.get("block_size", 1))
