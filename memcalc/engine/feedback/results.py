"""The typed answer of feedback training, and its JSON form: an estimate with a `feedback` object.

Names are a contract: add, never rename. Bytes are of one rank; None where a number is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from memcalc.engine.feedback.program import PhaseMemory
from memcalc.engine.results import Estimate


class ModelRow(NamedTuple):
    """One model of a method. role: trained | frozen | shared | engine.

    parameters of a shared model are another's. host_bytes: what waits on the host.
    """

    name: str
    model: str
    role: str
    parameters: int
    trainable_parameters: int
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    host_bytes: int = 0

    @property
    def states_bytes(self) -> int:
        """Weights, gradients and optimizer states."""
        return self.weights_bytes + self.gradient_bytes + self.optimizer_bytes


class PhaseRow(NamedTuple):
    """One phase of an iteration. seconds: of all its passes or steps, `times` of them."""

    memory: PhaseMemory
    seconds: float | None = None
    times: int = 1
    tokens: int = 0
    share: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        memory = self.memory
        return {
            "phase": memory.name, "model": memory.model, "peak_requested_bytes": memory.peak_bytes,
            "peak_at": memory.working.at, "standing": dict(memory.standing),
            "engine_bytes": memory.engine_bytes, "working_bytes": memory.working.bytes,
            "inside": dict(memory.working.inside),
            "saved_for_backward_bytes": memory.working.saved_bytes,
            "seconds": self.seconds, "times": self.times, "tokens": self.tokens,
            "share": self.share,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FeedbackEstimate:
    """What a method needs. estimate: memory at the worst phase, time of an iteration, the verdict.

    sequence: positions of a prompt and of a response. at_once: sequences that a colocated engine's cache
    has room for; None without one.
    """

    estimate: Estimate
    method: str
    models: tuple[ModelRow, ...]
    phases: tuple[PhaseRow, ...]
    worst: str
    settings: dict[str, Any]
    generated_tokens_per_s: float | None = None
    at_once: int | None = None

    @property
    def fits(self) -> bool | None:
        return self.estimate.fits

    @property
    def states_bytes(self) -> int:
        """Weights, gradients and optimizer states of all models."""
        return sum(row.states_bytes for row in self.models)

    def to_dict(self) -> dict[str, Any]:
        """The estimate's JSON with a `feedback` object."""
        models = [{**row._asdict(), "states_bytes": row.states_bytes} for row in self.models]
        return {
            **self.estimate.to_dict(),
            "feedback": {
                "method": self.method,
                "settings": dict(self.settings),
                "models": models,
                "states_bytes": self.states_bytes,
                "phases": [row.plain() for row in self.phases],
                "worst_phase": self.worst,
                "generated_tokens_per_s": self.generated_tokens_per_s,
                "sequences_at_once": self.at_once,
            },
        }
