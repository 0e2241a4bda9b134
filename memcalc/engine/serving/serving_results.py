"""The typed answer of `infer`, and its JSON form (schema 1). Names are a contract: add, never rename.

Bytes are of one GPU: of a rank where several share each layer. None where a number is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from memcalc.engine.results import SCHEMA, ModelSummary


class ServingMemoryEstimate(NamedTuple):
    """Memory of one GPU, in bytes.

    peak_allocated: tensors and workspaces at the worst instant, pool included where an engine has one.
    peak_reserved: with PyTorch's cache (engine transformers). device_used: what the driver reports.
    pool: what an engine leaves for the cache. phases: peak_requested of each. place: which device; its
    weights and cache, a draft's included.
    """

    peak_requested_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int | None
    device_used_bytes: int | None
    usable_bytes: int | None
    headroom_bytes: int | None
    low_bytes: int | None
    high_bytes: int | None
    peak_at: str
    breakdown: Mapping[str, int]
    reserved_overhead_bytes: int | None
    context_bytes: int
    communication_bytes: int
    phases: Mapping[str, int]
    pool_bytes: int | None = None
    pool_tokens: int | None = None
    place: str = "gpu"
    weights_bytes: int = 0
    kv_cache_bytes: int = 0


class ServingTime(NamedTuple):
    """Seconds and rates of a batch of requests that start together; None without a GPU.

    tokens_per_s: new tokens over the whole request, prompts included; decode_tokens_per_s: over steps.
    bound: what a step waits for. lower_bound_s: weights and cache read once at the datasheet's rate.
    step_s: of a step, which makes tokens_per_step tokens of a sequence, draft_s of it by the draft.
    """

    prefill_s: float | None = None
    time_per_output_token_s: float | None = None
    request_s: float | None = None
    tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    step_kernels_s: float | None = None
    step_launch_s: float | None = None
    step_exchanges_s: float | None = None
    step_kernels: int | None = None
    bound: str | None = None
    lower_bound_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    band: str | None = None
    calibration: str | None = None
    step_s: float | None = None
    draft_s: float | None = None
    tokens_per_step: float | None = None


@dataclass(frozen=True, kw_only=True)
class ServingEstimate:
    """What serving one setup needs. fits is None when no GPU was named.

    memory: of the GPU with the least room; stages: of every GPU in the order their layers run.
    weights_bytes, kv_cache_bytes: of that GPU and of the host, which holds host_bytes.
    """

    model: ModelSummary
    setup: Mapping[str, Any]
    weights_bytes: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    memory: ServingMemoryEstimate
    time: ServingTime
    max_batch: int | None
    max_context: int | None
    fits: bool | None
    verdict: str | None
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    advice: tuple[str, ...]
    stages: tuple[ServingMemoryEstimate, ...] = ()
    host_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract as plain dicts, lists, numbers and None."""
        from memcalc import __version__

        memory = _plain(self.memory)
        memory["stages"] = [_plain(stage) for stage in self.stages]
        memory["host_bytes"] = self.host_bytes
        return {
            "schema": SCHEMA,
            "memcalc": __version__,
            "model": self.model._asdict(),
            "setup": dict(self.setup),
            "weights_bytes": self.weights_bytes,
            "kv_cache_bytes": self.kv_cache_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "max_batch": self.max_batch,
            "max_context": self.max_context,
            "prefill_s": self.time.prefill_s,
            "time_per_output_token_s": self.time.time_per_output_token_s,
            "tokens_per_s": self.time.tokens_per_s,
            "memory": memory,
            "time": self.time._asdict(),
            "fits": self.fits,
            "verdict": self.verdict,
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
            "advice": list(self.advice),
        }


def _plain(memory: ServingMemoryEstimate) -> dict[str, Any]:
    found = memory._asdict()
    return {**found, "breakdown": dict(memory.breakdown), "phases": dict(memory.phases)}
