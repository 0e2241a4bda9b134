"""Memory of one GPU that serves: weights, cache, and what the passes allocate over them.

transformers: the prompt of all sequences in one pass, then a decode step with the cache at its longest;
the step joins old and new keys of one layer at a time. vLLM: a profile run of as many tokens as a pass
may have, then the cache takes what is left of its share of the device; a stage that is not the first has
buffers for the stream it receives, one of latent attention a workspace for latents it expands. llama.cpp:
the cache of the whole context and one buffer, as large as a pass over a physical batch of the longest
context needs. A draft's weights and cache stand beside the model's.
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
#: vllm/v1/attention/backends/mla/common.py: rows of the workspace of chunked context; max_num_seqs.
_WORKSPACE_ROWS = 64 * 1024
_MOST_SEQUENCES = 256
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
    """Weights, cache and peaks of the phases of one device. weights: their bytes, where known already."""
    weights = plan.weights().resident_bytes if weights is None else weights
    cache = held_cache_bytes(plan, most=True)
    aside = drafted_bytes(plan)
    if plan.grows or plan.resolved.cache in ("static", "grouped"):
        passes = _generation(plan, weights, cache, aside)
    else:
        standing = weights + cache + sum(aside)
        passes = {"profile": _largest_pass(plan, standing, cache + aside[1])}
    return ServingMemory(weights + aside[0], cache + aside[1], bytes_a_token(plan), passes)


def drafted_bytes(plan: ServingPlan) -> tuple[int, int]:
    """(weights, cache) of the draft beside this device's layers; a model's own layers have no weights."""
    if plan.draft is None:
        return 0, 0
    own = 0 if plan.shared else plan.draft.weights().resident_bytes
    return own, held_cache_bytes(plan.draft)


def _generation(
    plan: ServingPlan, weights: int, cache: int, aside: tuple[int, int]
) -> dict[str, Peak]:
    """Prefill, the step after it (a window's tensors are still whole), and the last step."""
    resolved, prompt = plan.resolved, plan.resolved.prompt
    own = 0 if plan.grows else cache  # what stands from the start
    standing = weights + sum(aside) + own
    prefill = plan.prefill(plan.sequences, prompt)
    found = {"prefill": peak_of("prefill", prefill, standing, own + aside[1])}
    for past, held in ((prompt, prompt), (resolved.context - 1, None)):
        if past == prompt and held is None:
            continue
        step = plan.verify(past) if resolved.drafted else plan.decode(past, held=held)
        before = _before(plan, past, held) if plan.grows else 0
        one = peak_of("decode", step, standing + before, own + before + aside[1])
        known = found.get("decode")
        if known is None or one.bytes > known.bytes:
            found["decode"] = one
    return found


def _before(plan: ServingPlan, past: int, held: int | None) -> int:
    """Bytes of a growing cache before a step over so many positions."""
    if held is not None or past == 1:
        return cache_bytes(plan.prefill(plan.sequences, past), plan.resolved.item_bytes)
    return held_cache_bytes(plan, past - 1)


def _largest_pass(plan: ServingPlan, standing: int, cache: int) -> Peak:
    """A pass of as many tokens as there may be, over the cache."""
    resolved = plan.resolved
    rows = min(int(resolved.engine.values["logit_rows"]), resolved.prefill_tokens)
    sequences = resolved.cache == "paged"
    batch, new = (rows, resolved.prefill_tokens // rows) if sequences else (1, rows)
    past = 0 if sequences else max(0, resolved.context - new)
    buffers = _buffers(plan, batch * new) if sequences else 0
    return peak_of("profile", plan.profile(batch, new, past), standing + buffers, cache)


def _buffers(plan: ServingPlan, tokens: int) -> int:
    """What vLLM makes beside weights and cache: received streams, latents of chunks to expand, and what
    latent attention multiplies by in decode steps where its weight is packed."""
    config, found = plan.config, 0
    if not plan.part.ends[0]:
        found += 2 * tokens * config.hidden_size * 2
    if config.mla is not None:
        blocks = 4 * _MOST_SEQUENCES * int(plan.resolved.engine.values["block_size"])
        rows = min(max(8 * plan.resolved.context, blocks), _WORKSPACE_ROWS)
        found += rows * (config.mla.kv_lora_rank + config.mla.qk_rope_head_dim) * 2
        if not plan.format.is_dense:  # both halves of kv_b_proj, unpacked for decode steps
            first, stop = plan.part.layers or (0, config.num_hidden_layers)
            width = config.mla.qk_nope_head_dim + config.mla.v_head_dim
            heads = -(-config.num_attention_heads // plan.layout.tp)
            found += (stop - first) * heads * width * config.mla.kv_lora_rank * 2
    return found


def peak_of(phase: str, forward: Forward, standing: int, cache: int) -> Peak:
    """The most that a pass requests over what stands already; cache: bytes of it that are cache."""
    values = forward.values
    ids = _TOKEN_BYTES * values["b"] * values["s"]
    found = measure(forward.structure, forward.runs, values).peak
    return Peak(phase, forward, standing + ids, cache, found._replace(phase=phase))
