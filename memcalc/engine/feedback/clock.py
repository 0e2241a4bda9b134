"""Seconds of the phases of an iteration, of one rank.

Rollout: the prompts' pass and a step in the middle of the generation, priced as serving is. Scoring: the
kernels of a forward pass, as often as it takes. Update: the training step's own estimate, as often as
there are optimizer steps. A sync writes the engine's weights once through memory; what waits on the host
comes and goes over PCIe. No published run tells these phases apart, so there is no band.
Checked by: unit/test_feedback_clock.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.feedback.ends import scoring_structure
from memcalc.engine.feedback.members import Member
from memcalc.engine.feedback.program import Program
from memcalc.engine.feedback.work import generation_of
from memcalc.engine.plan import Plan
from memcalc.engine.serving.forward import Forward
from memcalc.engine.serving.generation import generation_time
from memcalc.engine.serving.pass_time import Pricing, pass_time
from memcalc.engine.timing.answer import time_estimate
from memcalc.engine.timing.kernel_times import moved_s
from memcalc.engine.timing.topology import Wires, wires_of
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.feedback import GENERATING
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import Rates

#: Bytes/s between host and GPU where the device's rates say nothing: PCIe 3.0 x16, assumed.
_COPY_BYTES_PER_S: Final = 12.5e9


class PhaseTime(NamedTuple):
    """One phase: seconds, how often what is priced runs, and the tokens it goes through on a rank."""

    name: str
    seconds: float
    times: int
    tokens: int


class IterationTime(NamedTuple):
    """An iteration of one rank; rates are of all ranks. tokens: prompt and response of each sequence."""

    phases: tuple[PhaseTime, ...]
    iteration_s: float
    samples_per_s: float
    tokens_per_s: float
    generated_tokens_per_s: float | None
    calibration: str
    said: tuple[str, ...]


def iteration_time(program: Program, device: Device) -> IterationTime | None:
    """Seconds of every phase; None without a GPU."""
    if device.gpu is None:
        return None
    rates, note = choose_rates(device.gpu, device.calibration)
    wires = wires_of(device, ParallelPlan(), rates)
    clock = _Clock(program, device, rates, wires)
    phases, said = [], []
    for phase in program.phases:
        found, more = clock.of(phase.name, phase.model)
        phases.append(found)
        said += [one for one in more if one not in said]
    total = sum(one.seconds for one in phases)
    feedback, resolved = program.feedback, program.member("policy").base.resolved
    copies = program.member("policy").base.parallel.copies
    generates = feedback.method in GENERATING
    step = resolved.micro_batch_size * resolved.grad_accum_steps
    sequences = (feedback.rollout_batch if generates else step) * copies
    return IterationTime(
        phases=tuple(phases),
        iteration_s=total,
        samples_per_s=sequences / total,
        tokens_per_s=sequences * resolved.seq_len / total,
        generated_tokens_per_s=sequences * feedback.generate / total if generates else None,
        calibration=rates.name,
        said=(*said, *([note] if note else [])),
    )


class _Clock(NamedTuple):
    program: Program
    device: Device
    rates: Rates
    wires: Wires

    def of(self, name: str, model: str) -> tuple[PhaseTime, list[str]]:
        """Seconds of one phase, and what they rest on."""
        if name == "rollout":
            return self._rollout(), []
        if name == "sync weights":
            return self._sync(), []
        member = self.program.member(model)
        if name.startswith("score"):
            return self._score(name, member), []
        return self._update(name, member)

    def _rollout(self) -> PhaseTime:
        feedback, engine = self.program.feedback, self.program.engine
        tokens = feedback.rollout_batch * feedback.generate
        if engine is None:
            asked = generation_of(self.program.member("policy"), feedback)
            found = generation_time(asked, self.rates, self.wires)
            seconds = found.prefill.seconds + asked.steps * found.step.seconds
            return PhaseTime("rollout", seconds, 1, tokens)
        waves = -(-feedback.rollout_batch // max(1, engine.at_once))
        one = engine.serving.time.request_s or 0.0
        return PhaseTime("rollout", waves * one, waves, tokens)

    def _sync(self) -> PhaseTime:
        engine = self.program.engine
        assert engine is not None
        seconds = float(moved_s(self.rates, 2 * engine.weights_bytes))
        if engine.sleep == 1:
            seconds += 2 * engine.weights_bytes / self._copies()
        return PhaseTime("sync weights", seconds, 1, 0)

    def _score(self, name: str, member: Member) -> PhaseTime:
        plan, feedback = member.score, self.program.feedback
        assert plan is not None
        times = -(-feedback.rollout_batch // feedback.score_batch)
        seconds = times * pass_seconds(plan, self.rates, self.wires)
        if not member.stays:
            seconds += member.weights_bytes / self._copies()
        tokens = feedback.rollout_batch * plan.resolved.seq_len
        return PhaseTime(name, seconds, times, tokens)

    def _update(self, name: str, member: Member) -> tuple[PhaseTime, list[str]]:
        plan, feedback = member.update, self.program.feedback
        assert plan is not None
        found, said = time_estimate(plan, self.device)
        resolved = plan.resolved
        step = resolved.micro_batch_size * resolved.grad_accum_steps
        times = 1
        if feedback.method in GENERATING:
            times = feedback.updates // step
        seconds = times * (found.step_s or 0.0)
        return PhaseTime(name, seconds, times, times * step * resolved.seq_len), said

    def _copies(self) -> float:
        link = self.rates.links.host or self.rates.links.pcie
        return link.bus_bytes_per_s if link else _COPY_BYTES_PER_S


def pass_seconds(plan: Plan, rates: Rates, wires: Wires) -> float:
    """One pass without gradients of a scoring plan."""
    structure, runs = scoring_structure(plan)
    how = Pricing(rates, wires, {}, "dense", rates.launch_s, False, 2.0, 1)
    return pass_time(Forward(structure, runs, plan.values, {}), how).seconds
