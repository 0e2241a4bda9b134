"""Where attention's operands change ranks: Ulysses takes them from positions to heads and back.

Without it everything here passes its tensors through.
Checked by: oracle/test_context_parallel.py.
"""

from __future__ import annotations

from memcalc.engine.build import Build
from memcalc.engine.parallel.context.context_ulysses import heads_for_positions, positions_for_heads
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor


def core_heads(build: Build) -> Size:
    """Query heads of the attention core on this rank."""
    return build["a_c"] if _by_heads(build) else build["a"]


def to_heads(
    build: Build, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q (b, a, s, d), k and v (b, k, s, d) as the core reads them: (b, a / c, c s, d) and so on."""
    context = build.kernels.context
    if context is None or not _by_heads(build):
        return query, key, value
    build.at("attention", "attention")
    positions = build["s"] * context.ranks
    own = build["a_c"], build["k_c"] if key.shape[1] is build["k"] else build["a_c"]
    return (
        heads_for_positions(query, context.ranks, own[0], positions),
        heads_for_positions(key, context.ranks, own[1], positions),
        heads_for_positions(value, context.ranks, own[1], positions),
    )


def from_heads(build: Build, out: Tensor) -> Tensor:
    """The core's result (b, a / c, c s, d) as the output projection reads it: (b, a, s, d)."""
    context = build.kernels.context
    if context is None or not _by_heads(build):
        return out
    build.at("attention", "attention")
    return positions_for_heads(out, context.ranks, build["a"], build["s"])


def _by_heads(build: Build) -> bool:
    context = build.kernels.context
    return context is not None and context.method == "ulysses"
