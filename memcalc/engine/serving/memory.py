"""Memory of one GPU that serves: weights, cache, and what the passes allocate over them.

transformers: the prompt of all sequences in one pass, then a decode step with the cache at its longest;
the step joins old and new keys of one layer at a time. vLLM: a profile run of as many tokens as a pass
may have, then the cache takes what is left of its share of the device. llama.cpp: the cache of the whole
context and one buffer, as large as a pass over a physical batch of the longest context needs.
Checked by: oracle/test_serving.py (passes), unit/test_serving_memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.memory import BUFFER_OPS, alive_copies
from memcalc.engine.serving.cache_size import cache_bytes
from memcalc.engine.serving.cache_use import bytes_a_token, held_cache_bytes
from memcalc.engine.serving.forward import Forward
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.timeline import Instant, measure, size_values

_TOKEN_BYTES = 8
#: Ledger operators whose tensors are no activations.
_CATEGORIES = {
    **dict.fromkeys(BUFFER_OPS, "buffers"), "kv_cache": "kv_cache",
    "lm_head": "logits", "logit_softcap": "logits", "sample": "logits",
}  # fmt: skip


class Peak(NamedTuple):
    """The most that is requested in one phase: what stands, cache_bytes of it, and the instant over it."""

    phase: str
    forward: Forward
    standing_bytes: int
    cache_bytes: int
    instant: Instant

    @property
    def bytes(self) -> int:
        return self.standing_bytes + self.instant.live_bytes

    def breakdown(self, weights: int) -> dict[str, int]:
        """What is alive at the instant: parameters, kv_cache, logits, activations, buffers."""
        structure, runs, values, _ = self.forward
        found = {"parameters": weights, "kv_cache": self.cache_bytes, "logits": 0, "activations": 0}
        found["buffers"] = self.standing_bytes - weights - self.cache_bytes
        sizes = size_values(structure, values)
        at = (self.instant.event, self.instant.copies)
        for storage, copies in alive_copies(structure, runs, at).items():
            op = structure.labels[structure.labels_of[storage]].op
            found[_CATEGORIES.get(op, "activations")] += sizes[storage] * copies
        return found


class ServingMemory(NamedTuple):
    """Requested bytes of one rank. passes: by phase; cache_bytes: all sequences at their end."""

    weights_bytes: int
    cache_bytes: int
    token_bytes: int
    passes: Mapping[str, Peak]

    @property
    def peak(self) -> Peak:
        return max(self.passes.values(), key=lambda one: one.bytes)


def serving_memory(plan: ServingPlan, weights: int | None = None) -> ServingMemory:
    """Weights, cache and peaks of the phases. weights: their bytes, where they are known already."""
    weights = plan.weights().resident_bytes if weights is None else weights
    cache = held_cache_bytes(plan)
    if plan.resolved.cache in ("grow", "tuple", "static"):
        passes = _generation(plan, weights, cache)
    else:
        passes = {"profile": _largest_pass(plan, weights, cache)}
    return ServingMemory(weights, cache, bytes_a_token(plan), passes)


def _generation(plan: ServingPlan, weights: int, cache: int) -> dict[str, Peak]:
    """Prefill, the step after it (a window's tensors are still whole), and the last step."""
    resolved = plan.resolved
    batch, prompt = resolved.batch, resolved.prompt
    standing = weights + (cache if resolved.cache == "static" else 0)
    grows = resolved.cache != "static"
    found = {
        "prefill": _peak("prefill", plan.prefill(batch, prompt), standing, 0 if grows else cache)
    }
    for past, held in ((prompt, prompt), (resolved.context - 1, None)):
        if past == prompt and held is None:
            continue
        step = plan.decode(past, held=held)
        before = _before(plan, past, held) if grows else 0
        one = _peak("decode", step, standing + before, before if grows else cache)
        known = found.get("decode")
        if known is None or one.bytes > known.bytes:
            found["decode"] = one
    return found


def _before(plan: ServingPlan, past: int, held: int | None) -> int:
    """Bytes of a growing cache before a step over so many positions."""
    if held is not None:
        return cache_bytes(plan.prefill(plan.resolved.batch, past), plan.resolved.item_bytes)
    if past == 1:
        return cache_bytes(plan.prefill(plan.resolved.batch, 1), plan.resolved.item_bytes)
    return cache_bytes(plan.decode(past - 1), plan.resolved.item_bytes)


def _largest_pass(plan: ServingPlan, weights: int, cache: int) -> Peak:
    """A pass of as many tokens as there may be, over the cache."""
    resolved = plan.resolved
    rows = min(int(resolved.engine.values["logit_rows"]), resolved.prefill_tokens)
    sequences = resolved.cache == "paged"
    batch, new = (rows, resolved.prefill_tokens // rows) if sequences else (1, rows)
    past = 0 if sequences else max(0, resolved.context - new)
    return _peak("profile", plan.profile(batch, new, past), weights + cache, cache)


def _peak(phase: str, forward: Forward, standing: int, cache: int) -> Peak:
    values = forward.values
    ids = _TOKEN_BYTES * values["b"] * values["s"]
    found = measure(forward.structure, forward.runs, values).peak
    return Peak(phase, forward, standing + ids, cache, found._replace(phase=phase))
