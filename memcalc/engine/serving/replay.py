"""What PyTorch's caching allocator reserves for a generation whose cache grows token by token.

Loading, the prompt's pass, the step after it, then the last step; all growth between the two steps is
played as one change of every tensor of the cache, so fragmentation by hundreds of steps is not seen.
Checked by: unit/test_serving_memory.py.
"""

from __future__ import annotations

from memcalc.engine.allocator.replay import simulate
from memcalc.engine.program import Stream, expanded
from memcalc.engine.quantised import Weights
from memcalc.engine.serving.forward import Forward
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.timeline import size_values

_TOKEN_BYTES = 8


def reserved_bytes(plan: ServingPlan, weights: Weights, workspaces: tuple[int, ...]) -> int:
    """Peak of what the allocator holds from the device, in bytes."""
    resolved, stream = plan.resolved, Stream()
    for held in weights.leaves:
        for _, size in held.tensors:
            stream.allocate(size)
    for size in workspaces:
        stream.allocate(size)
    if resolved.cache == "static":
        for size in _standing(plan):
            stream.allocate(size)
    cached: list[int] = []
    play_pass(stream, plan.prefill(resolved.batch, resolved.prompt), cached)
    steps = [plan.decode(resolved.prompt, held=resolved.prompt)]
    if resolved.context - 1 > resolved.prompt:
        steps.append(plan.decode(resolved.context - 1))
    for step in steps:
        play_pass(stream, step, cached)
    return simulate(stream.events, stream.sizes).peak_reserved_bytes


def _standing(plan: ServingPlan) -> list[int]:
    """The tensors of a cache that is made before: keys and values of every layer."""
    from memcalc.engine.serving.cache_use import held_cache_bytes

    layers = plan.config.num_hidden_layers
    return [held_cache_bytes(plan) // (2 * layers)] * (2 * layers)


def play_pass(stream: Stream, forward: Forward, cached: list[int]) -> None:
    """Play one pass; cached: blocks of the cache before it, replaced by those after it."""
    structure = forward.structure
    events = expanded(structure, forward.runs)
    sizes = events.sizes(size_values(structure, forward.values))
    ids = stream.allocate(_TOKEN_BYTES * forward.values["b"] * forward.values["s"])
    taken: dict[int, int] = {}
    waiting = list(cached)
    for number in events.earlier:
        block = waiting.pop(0)
        if stream.sizes[block] != sizes[number]:  # it has grown since
            stream.events.append(~block)
            block = stream.allocate(sizes[number])
        taken[number] = block
    base = len(stream.sizes)
    alive = stream.splice(events.events, sizes, taken)
    stream.events += [~block for block in waiting]  # a tuple's, now that the pass is over
    cached[:] = []
    for block in alive:
        op = structure.labels[structure.labels_of[events.traced[block - base]]].op
        if op == "kv_cache":
            cached.append(block)
        else:
            stream.events.append(~block)
    stream.events.append(~ids)
