"""The phases of a training program outside a later step: load, the first step, evaluation, saving.

Each is the peak of requested bytes on the rank that needs most, beside the training step's own. What is
not modelled for a layout or a stack is refused by name where it is asked for alone; with `all` the other
phases are given, and a note says why it is not among them.
Checked by: oracle/test_phases.py, oracle/test_phases_ranks.py, oracle/test_loading.py,
oracle/test_saving.py, cli/test_phases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.parallel.data.fsdp1 import Fsdp1
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.phases.evaluation import evaluation
from memcalc.engine.phases.files import default_form, on_disk
from memcalc.engine.phases.first_step import first_step
from memcalc.engine.phases.loading_ranks import loading_of
from memcalc.engine.phases.saving import saving
from memcalc.engine.phases.standing import standing
from memcalc.engine.plan import Plan
from memcalc.errors import NotInThisVersionError

#: Values of --phase; train is the step itself.
PHASES: Final = ("train", "load", "eval", "save", "all")


class Wanted(NamedTuple):
    """How the phases run. prequantised: the checkpoint holds packed weights packed; load_by: of
    `loading.WAYS`; batches: of an evaluation, whose logits are kept; save_as: of `saving.FORMS`, "" for
    the usual one.
    """

    prequantised: bool = False
    load_by: str = "direct"
    batches: int = 0
    save_as: str = ""


class PhasePeak(NamedTuple):
    """One phase: its peak, where that is, and what it is made of. host_bytes: on its host.

    exact: held against the code that runs; else a bound, or by reading.
    """

    name: str
    peak_bytes: int
    at: str
    parts: dict[str, int]
    host_bytes: int = 0
    exact: bool = True

    def plain(self, room: int | None = None) -> dict[str, Any]:
        """As JSON shows it. room: bytes of a GPU beside its context, None where none was named."""
        fits = None if room is None else self.peak_bytes <= room
        return {
            "phase": self.name, "peak_requested_bytes": self.peak_bytes, "peak_at": self.at,
            "parts": self.parts, "host_bytes": self.host_bytes, "exact": self.exact, "fits": fits,
        }  # fmt: skip


class Program(NamedTuple):
    """The phases, and why others are not among them."""

    phases: list[PhasePeak]
    notes: tuple[str, ...] = ()


def program(plan: Plan, wanted: str, how: Wanted = Wanted()) -> Program:  # noqa: B008  # immutable
    """The phases that a value of --phase names, train aside.

    Raises NotInThisVersionError for one that is not modelled of this layout or stack, ConfigError for
    options that do not go with it.
    """
    makers: dict[str, Callable[[Plan, Wanted], PhasePeak]] = {
        "load": _loads, "first step": _begins, "eval": _evaluates, "save": _saves,
    }  # fmt: skip
    if wanted in makers:
        return Program([makers[wanted](plan, how)])
    phases, notes = [], []
    for name, maker in makers.items() if wanted == "all" else ():
        try:
            phases.append(maker(plan, how))
        except NotInThisVersionError as error:
            notes.append(f"{name}: {error}")
    return Program(phases, tuple(notes))


def _nowhere(phase: str, plan: Plan, near: str) -> NotInThisVersionError:
    return NotInThisVersionError(
        f"phase: got {phase} with this layout or stack {plan.resolved.setup.code}, not in this version; "
        f"nearest valid: {near}"
    )


def _loads(plan: Plan, how: Wanted) -> PhasePeak:
    if isinstance(plan.strategy, Fsdp1):
        raise _nowhere("load", plan, "stack torch or hf")
    found = loading_of(plan, how.load_by, how.prequantised)
    parts = {"parameters": found.weights_bytes, "passing": found.passing_bytes}
    at = "weights, each moved to the device once" if not found.passing_bytes else found.passing
    return PhasePeak(
        "load", found.peak_bytes, at, {k: v for k, v in parts.items() if v}, exact=found.exact
    )


def _begins(plan: Plan, how: Wanted) -> PhasePeak:
    if isinstance(plan.strategy, DeepSpeed):  # which makes all states before it
        peaks, exact = dict(step_memory(plan).phases), False
    elif _is_plain(plan) and not plan.optimizer.in_backward:
        peaks, exact = first_step(plan), True
    else:
        raise _nowhere(
            "first step", plan, "stack torch or hf with --fsdp or --gpus N, stack deepspeed"
        )
    phase = max(peaks, key=lambda name: peaks[name])
    states = step_memory(plan).states
    parts = {"parameters": states.parameter_bytes, "master": states.master_bytes}
    parts["all else"] = peaks[phase] - sum(parts.values())
    return PhasePeak(
        "first step", peaks[phase], phase, {k: v for k, v in parts.items() if v}, exact=exact
    )


def _is_plain(plan: Plan) -> bool:
    """Decoders and encoders of PyTorch's own code, one GPU or ranks that were held against PyTorch."""
    kernels, layout = plan.kernels, plan.parallel
    code = kernels.megatron is None and kernels.traits.code == "plain" and not kernels.compiled
    held = isinstance(plan.strategy, Ddp | Fsdp2) or layout.copies * layout.cp == 1
    return code and held and layout.pp * layout.cp * layout.ep == 1


def _evaluates(plan: Plan, how: Wanted) -> PhasePeak:
    is_deepspeed = isinstance(plan.strategy, DeepSpeed)
    if not _is_plain(plan) and not is_deepspeed:
        raise _nowhere(
            "eval", plan, "stack torch, hf or deepspeed without stages, cp, ep, --compile"
        )
    found = evaluation(plan, how.batches)
    parts = standing(plan)
    parts["eval"] = found.peak_bytes - found.standing_bytes
    exact = not is_deepspeed and (not how.batches or found.ranks == 1)  # joins of ranks by reading
    return PhasePeak("eval", found.peak_bytes, found.peak_at, parts, exact=exact)


def _saves(plan: Plan, how: Wanted) -> PhasePeak:
    form = how.save_as or default_form(plan)
    if isinstance(plan.strategy, Fsdp1) and form != "sharded":
        raise _nowhere("save", plan, "--save-as sharded")
    found = saving(plan, form)
    gathers = "a parameter gathered" if form != "full-gpu" else "full state dict gathered"
    at = (
        (gathers if form != "merged" else "a change merged")
        if found.gathered_bytes
        else "state dict"
    )
    parts = standing(plan)
    parts |= {"gathered": found.gathered_bytes} if found.gathered_bytes else {}
    where = f"{form}: {at}"
    return PhasePeak("save", found.peak_bytes, where, parts, found.host_bytes, exact=found.exact)


def checkpoint(plan: Plan, how: Wanted = Wanted()) -> dict[str, Any]:  # noqa: B008  # immutable
    """What is written to disk, as JSON shows it."""
    form = how.save_as or default_form(plan)
    return {"form": form, **on_disk(plan, form).plain()}
