"""Two iterations of a method through the simulator of PyTorch's caching allocator.

Loading, then rollout, scoring and updates as they come; optimizer states come into being in the first
iteration. A colocated engine's memory is not PyTorch's and is left out. Of several passes over one shape
one is played; all growth of a cache between the first step and the last is one change.
Checked by: unit/test_feedback_program.py.
"""

from __future__ import annotations

from memcalc.engine.allocator.replay import AllocatorResult, simulate
from memcalc.engine.feedback.ends import scoring_structure
from memcalc.engine.feedback.members import Member
from memcalc.engine.feedback.program import Program, scores_policy
from memcalc.engine.feedback.work import experience_bytes, generation_of, kept_logits_bytes
from memcalc.engine.plan import Plan
from memcalc.engine.program import Phase, Stream, expanded, training_phases
from memcalc.engine.serving.replay import play_pass
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.engine.timeline import size_values
from memcalc.inputs.feedback import GENERATING

_ID_BYTES = 8


def replayed(
    program: Program, workspaces: tuple[int, ...], capacity: int | None = None
) -> AllocatorResult:
    """What the trainer's allocator does over two iterations."""
    stream = stream_of(program, workspaces)
    return simulate(stream.events, stream.sizes, capacity, program.member("policy").base.expandable)


def stream_of(program: Program, workspaces: tuple[int, ...]) -> Stream:
    """The allocations of two iterations, from an empty cache."""
    stream = Stream()
    trained = [one for one in program.members if one.update is not None]
    steps: dict[str, list[list[Phase]]] = {}
    for number, member in enumerate(trained):
        assert member.update is not None
        phases = training_phases(member.update, workspaces if number == 0 else (), 2)
        phases[0].play(stream)
        later = len(phases) - 1
        first = (later + 1) // 2  # it also makes the optimizer's states
        steps[member.name] = [phases[1 : 1 + first], phases[1 + first :]]
    for member in program.members:
        if member.role == "frozen" and member.score is not None and member.stays:
            _weights(stream, member.score)
    for iteration in range(2):
        _iteration(stream, program, [(one, steps[one.name][iteration]) for one in trained])
    return stream


def _iteration(stream: Stream, program: Program, updates: list[tuple[Member, list[Phase]]]) -> None:
    feedback, policy = program.feedback, program.member("policy")
    resolved = policy.base.resolved
    held: list[int] = []
    if feedback.method in GENERATING and program.engine is None:
        asked = generation_of(policy, feedback)
        cached: list[int] = []
        for past in (0, asked.prompt, asked.context - 1):
            one = asked.prefill() if not past else asked.step(past)
            play_pass(stream, one, cached)
        stream.events += [~block for block in cached]
        if feedback.setup.keeps_logits:
            each = stream.allocate(kept_logits_bytes(policy, feedback))  # of every step, in a list
            held.append(stream.allocate(kept_logits_bytes(policy, feedback)))
            stream.events.append(~each)
    experience = stream.allocate(
        experience_bytes(feedback, resolved.micro_batch_size, resolved.seq_len)
    )
    if feedback.method in GENERATING:
        for member in program.members:
            asks = member.name != "policy" or scores_policy(feedback)
            if member.score is not None and asks:
                _score(stream, member)
    stream.events += [~block for block in held]
    for _, phases in updates:
        for phase in phases:
            phase.play(stream)
    stream.events.append(~experience)


def _weights(stream: Stream, plan: Plan) -> list[int]:
    leaves = all_leaves(*scoring_structure(plan))
    return [stream.allocate(bytes_of_held(leaf, plan.values)) for leaf in leaves]


def _score(stream: Stream, member: Member) -> None:
    """One pass without gradients, of weights that come from the host where they wait there."""
    plan = member.score
    assert plan is not None
    waiting = member.role == "frozen" and not member.stays
    brought = _weights(stream, plan) if waiting else []
    structure, runs = scoring_structure(plan)
    events = expanded(structure, runs)
    ids = stream.allocate(_ID_BYTES * plan.values["b"] * plan.values["s"])
    alive = stream.splice(events.events, events.sizes(size_values(structure, plan.values)))
    stream.events += [~block for block in (*alive, ids, *brought)]
