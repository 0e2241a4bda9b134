"""Results: the typed answer of an estimate, and its JSON form (schema 1).

Bytes and counts are exact integers; None where a number is unknown. Names are a contract: add, never
rename.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from memcalc.engine.host_memory import HostMemory
from memcalc.engine.timing.time_estimate import TimeEstimate

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


class ModelSummary(NamedTuple):
    """The model an estimate is for; active_parameters act on one token (experts not chosen left out).

    trainable_parameters: those that get a gradient. adapter_file_bytes: tensors of the file that
    fine-tuning saves beside the model, in the dtype they train in; None where it adds none.
    """

    name: str
    model_type: str
    parameters: int
    active_parameters: int
    num_hidden_layers: int
    parameter_tensors: int
    trainable_parameters: int
    adapter_file_bytes: int | None = None


class Breakdown(NamedTuple):
    """Categories alive at the peak; they sum to peak_allocated_bytes.

    optimizer includes master copies. gathered: parameters of other ranks, whole or in larger parts
    than this rank's own. rounding: what the allocator adds to the tensors' own bytes.
    """

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    temporary: int
    buffers: int
    workspace: int
    rounding: int

    @property
    def total_bytes(self) -> int:
        """The sum of all categories."""
        return sum(self)


class StagePlace(NamedTuple):
    """One rank of a pipeline.

    layers: first and last block of each chunk of the model it holds, in the order of the forward pass
    (empty where a chunk has none). parameters: elements on this rank. in_flight: the most micro-batches
    of each chunk between forward and backward. peak_micro_batch: at work at the peak, from 0; None in
    the optimizer.
    """

    stage: int
    layers: tuple[tuple[int, ...], ...]
    parameters: int
    in_flight: tuple[int, ...]
    peak_micro_batch: int | None


class MemoryEstimate(NamedTuple):
    """Memory of one GPU over a training step, in bytes.

    peak_requested: sum of tensor bytes. peak_allocated: torch.cuda.max_memory_allocated.
    peak_reserved: torch.cuda.max_memory_reserved. device_used: what the driver reports for the
    process. low, high: the band of device_used. phases: peak_requested of each phase. states: on the
    GPU. host_bytes: of this rank, in all; host: what it is made of.
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
    peak_primitive: str
    breakdown: Breakdown
    reserved_overhead_bytes: int | None
    context_bytes: int
    communication_bytes: int
    phases: Mapping[str, int]
    phase_peaks_at: Mapping[str, str]
    states: Mapping[str, int]
    saved_for_backward_bytes: int
    saved_per_layer_bytes: int
    host_bytes: int
    host: HostMemory = HostMemory()
    stage: StagePlace | None = None  # None without stages
    stages: tuple[MemoryEstimate, ...] = ()  # one rank of each pipeline stage; none for one stage

    def to_dict(self) -> dict[str, Any]:
        """The contract's `memory` object; `stages` holds at least the one stage there is."""
        return {**self._plain(), "stages": [one._plain() for one in self.stages or (self,)]}

    def _plain(self) -> dict[str, Any]:
        plain = {**self._asdict(), "breakdown": self.breakdown._asdict()}
        plain["host"] = self.host._asdict()
        plain["stage"] = None if self.stage is None else self.stage._asdict()
        del plain["stages"]
        return plain


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one setup needs. fits is None when no GPU was named."""

    model: ModelSummary
    setup: Mapping[str, Any]
    memory: MemoryEstimate
    time: TimeEstimate
    fits: bool | None
    verdict: str | None
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def stages(self) -> tuple[MemoryEstimate, ...]:
        """Memory of one rank of each pipeline stage, first to last."""
        return self.memory.stages or (self.memory,)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract as plain dicts, lists, numbers and None."""
        from memcalc import __version__

        return {
            "schema": SCHEMA,
            "memcalc": __version__,
            "model": self.model._asdict(),
            "setup": dict(self.setup),
            "memory": self.memory.to_dict(),
            "time": self.time.to_dict(),
            "fits": self.fits,
            "verdict": self.verdict,
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
            "advice": list(self.advice),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row, a column for every number and setting, dotted names (`memory.breakdown.loss`).

        The rows of ops and exchanges are left out: `to_dict` has them.
        """
        import pandas as pd

        plain = self.to_dict()
        for name in ("ops", "exchanges"):
            del plain["time"][name]
        return pd.json_normalize(plain)
