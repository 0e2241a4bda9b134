"""The phases of one iteration of a method, what stands on a rank in each, and the most it requests.

ppo: rollout, scoring by policy, reference, critic and reward model, update of policy and of critic, one
after the other. grpo: rollout, scoring, update; with a colocated engine its weights are woken and synced
before. dpo and rm: the update alone, the reference's pass inside it. A model that trains stands with its
weights and states in every phase; a frozen one too, unless it waits on the host; an engine that does not
sleep as well. The worst phase decides.
Checked by: unit/test_feedback_program.py, unit/test_worked_feedback.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from memcalc.engine.feedback.engine import Colocated
from memcalc.engine.feedback.members import Member
from memcalc.engine.feedback.work import (
    Working,
    experience_bytes,
    generation_work,
    kept_logits_bytes,
    largest_weight_bytes,
    score_work,
    update_work,
)
from memcalc.engine.memory import CATEGORIES
from memcalc.inputs.feedback import GENERATING, ResolvedFeedback


class PhaseMemory(NamedTuple):
    """One phase of an iteration, requested bytes of one rank.

    model: that works. standing: bytes by model of what it finds (experience among them); engine: of a
    colocated engine; working: what the phase itself takes over that.
    """

    name: str
    model: str
    standing: dict[str, int]
    engine_bytes: int
    working: Working

    @property
    def trainer_bytes(self) -> int:
        """All but the engine's."""
        return sum(self.standing.values()) + self.working.bytes

    @property
    def peak_bytes(self) -> int:
        return self.trainer_bytes + self.engine_bytes


class Program(NamedTuple):
    """A method's models and the phases of one iteration, in their order."""

    feedback: ResolvedFeedback
    members: tuple[Member, ...]
    phases: tuple[PhaseMemory, ...]
    engine: Colocated | None = None

    @property
    def worst(self) -> PhaseMemory:
        return max(self.phases, key=lambda phase: phase.peak_bytes)

    def member(self, name: str) -> Member:
        """The model of this name."""
        return next(one for one in self.members if one.name == name)

    def breakdown(self, phase: PhaseMemory) -> dict[str, int]:
        """Categories alive at a phase's peak; they sum to its requested bytes."""
        found = dict(phase.working.parts)
        for member in self.members:
            here = phase.standing.get(member.name, 0)
            weights = min(member.weights_bytes, here)
            found["parameters"] += weights
            rest = here - weights
            states = min(member.optimizer_bytes, rest)
            found["optimizer"] += states
            found["gradients"] += rest - states
        found["buffers"] += phase.standing.get("experience", 0) + phase.engine_bytes
        return {name: found[name] for name in CATEGORIES}


def program_of(
    feedback: ResolvedFeedback, members: tuple[Member, ...], engine: Colocated | None
) -> Program:
    """The phases of one iteration of these models."""
    draft = Program(feedback, members, (), engine)
    return draft._replace(phases=tuple(_phases(draft)))


def _phases(program: Program) -> Iterator[PhaseMemory]:
    feedback, policy = program.feedback, program.member("policy")
    if feedback.method in GENERATING:
        yield from _generating(program, policy)
        yield from _scoring(program)
    for member in program.members:
        if member.update is not None:
            joint = program.feedback.setup.joint_update
            name = "update both" if joint else f"update {member.name}"
            yield _phase(program, name, member.name, update_work(member))


def _generating(program: Program, policy: Member) -> Iterator[PhaseMemory]:
    feedback, engine = program.feedback, program.engine
    if engine is None:
        yield _phase(program, "rollout", "policy", generation_work(policy, feedback), fresh=True)
        return
    parts = dict.fromkeys(CATEGORIES, 0)
    passing = largest_weight_bytes(policy.base)
    one = Working(passing, "sync/one parameter", {**parts, "temporary": passing})
    synced = _phase(program, "sync weights", "engine", one, fresh=True)
    yield synced._replace(engine_bytes=engine.syncing_bytes)
    nothing = Working(0, "rollout/engine", parts)
    rollout = _phase(program, "rollout", "engine", nothing, fresh=True)
    yield rollout._replace(engine_bytes=engine.awake_bytes)


def _scoring(program: Program) -> Iterator[PhaseMemory]:
    feedback = program.feedback
    for member in program.members:
        if member.score is None or (member.name == "policy" and not scores_policy(feedback)):
            continue
        work = score_work(member.score)
        if feedback.setup.keeps_logits:
            logits = kept_logits_bytes(program.member("policy"), feedback)
            work = work._replace(
                bytes=work.bytes + logits,
                parts={**work.parts, "loss": work.parts["loss"] + logits},
            )
        yield _phase(program, f"score {member.name}", member.name, work)


def scores_policy(feedback: ResolvedFeedback) -> bool:
    """Whether a pass makes the old policy's log-probabilities.

    Kept logits have them; grpo without a colocated engine takes them from its first update, unless it
    passes over its responses several times.
    """
    if feedback.method == "ppo":
        return not feedback.setup.keeps_logits
    return feedback.setup.engine == "vllm" or feedback.epochs > 1


def _phase(
    program: Program, name: str, model: str, work: Working, fresh: bool = False
) -> PhaseMemory:
    """A phase with what stands in it. fresh: before there is anything to learn from."""
    standing = {}
    for member in program.members:
        size = member.standing_bytes
        if member.name == model and not member.stays:
            size += member.weights_bytes
        standing[member.name] = size
    if not fresh:
        resolved = program.member("policy").base.resolved
        standing["experience"] = experience_bytes(
            program.feedback, resolved.micro_batch_size, resolved.seq_len
        )
    engine = 0 if program.engine is None else program.engine.asleep_bytes
    work = _over_standing(program, model, work)
    return PhaseMemory(name, model, standing, engine, work)


def _over_standing(program: Program, model: str, work: Working) -> Working:
    """An update's own persistent gradients already stand."""
    member = next((one for one in program.members if one.name == model), None)
    if member is None or member.update is None or not work.inside:
        return work
    together = [member]
    if program.feedback.setup.joint_update:
        together = [one for one in program.members if one.role == "trained"]
    already = sum(one.standing_gradient_bytes for one in together)
    if not already:
        return work
    parts = {**work.parts, "gradients": work.parts["gradients"] - already}
    inside = {name: size - already for name, size in work.inside.items()}
    return work._replace(bytes=work.bytes - already, parts=parts, inside=inside)
