"""The phases of a training program outside a later step: load, the first step, evaluation, saving.

Each is the peak of requested bytes on one GPU, beside the training step's own. What is not modelled for
a layout or a stack is refused by name.
Checked by: oracle/test_phases.py, oracle/test_loading.py, oracle/test_saving.py, cli/test_phases.py.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.phases.evaluation import evaluation
from memcalc.engine.phases.first_step import first_step
from memcalc.engine.phases.saving import on_disk, saving
from memcalc.engine.plan import Plan
from memcalc.errors import NotInThisVersionError

#: Values of --phase; train is the step itself.
PHASES: Final = ("train", "load", "eval", "save", "all")


class PhasePeak(NamedTuple):
    """One phase: its peak, where that is, and what it is made of."""

    name: str
    peak_bytes: int
    at: str
    parts: dict[str, int]

    def plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "phase": self.name, "peak_requested_bytes": self.peak_bytes, "peak_at": self.at,
            "parts": self.parts,
        }  # fmt: skip


def program(plan: Plan, wanted: str) -> list[PhasePeak]:
    """The phases that a value of --phase names, train aside.

    Raises NotInThisVersionError for layouts and stacks whose phases are not modelled.
    """
    makers = {"load": [_loads], "eval": [_evaluates], "save": [_saves], "train": []}
    chosen = makers.get(wanted, [_loads, _begins, _evaluates, _saves])
    if any(maker is not _saves for maker in chosen):
        _check(plan, wanted)
    return [maker(plan) for maker in chosen]


def _check(plan: Plan, wanted: str) -> None:
    """One GPU or DDP, the plain decoder: what PyTorch was held against."""
    kernels = plan.kernels
    plain = kernels.megatron is None and kernels.traits.code == "plain" and not kernels.compiled
    whole = plan.parallel.is_single or isinstance(plan.strategy, Ddp)
    is_decoder = plan.kernels.traits.start not in ("bert", "t5")
    if plain and whole and is_decoder and not plan.optimizer.in_backward:
        return
    raise NotInThisVersionError(
        f"phase: got {wanted} with this layout, stack or model; rule: decoders on one GPU or DDP, stack "
        "torch or hf, no --compile; nearest valid: --phase save, --phase train"
    )


def _loads(plan: Plan) -> PhasePeak:
    size = step_memory(plan).states.parameter_bytes
    return PhasePeak("load", size, "weights, each moved to the device once", {"parameters": size})


def _begins(plan: Plan) -> PhasePeak:
    peaks = first_step(plan)
    phase = max(peaks, key=lambda name: peaks[name])
    states = step_memory(plan).states
    parts = {"parameters": states.parameter_bytes, "master": states.master_bytes}
    parts["all else"] = peaks[phase] - sum(parts.values())
    return PhasePeak("first step", peaks[phase], phase, {k: v for k, v in parts.items() if v})


def _evaluates(plan: Plan) -> PhasePeak:
    found, states = evaluation(plan), step_memory(plan).states
    parts = {
        "parameters": states.parameter_bytes,
        "optimizer": states.optimizer_bytes + states.master_bytes,
        "inputs": found.standing_bytes
        - (states.parameter_bytes + states.optimizer_bytes + states.master_bytes),
        "forward": found.forward_bytes,
    }
    return PhasePeak("eval", found.peak_bytes, found.peak_at, parts)


def _saves(plan: Plan) -> PhasePeak:
    found = saving(plan)
    at = "full state dict gathered" if found.gathered_bytes else "state dict"
    parts = {"standing": found.standing_bytes, "gathered": found.gathered_bytes}
    return PhasePeak("save", found.peak_bytes, at, {k: v for k, v in parts.items() if v})


def checkpoint(plan: Plan) -> dict[str, int]:
    """Bytes of tensors of a full checkpoint, as JSON shows them."""
    found = on_disk(plan)
    return {
        "model_bytes": found.model_bytes, "optimizer_bytes": found.optimizer_bytes,
        "total_bytes": found.total_bytes, "tensors": found.tensors,
    }  # fmt: skip
