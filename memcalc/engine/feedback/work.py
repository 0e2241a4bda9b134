"""What a phase takes over what stands: an update, a pass without gradients, a generation, a sync.

An update is the plan's own training step; where PPO's loop has names for outputs, they live through the
optimizer's step too. (What that loop makes of them after the step, a softmax and an entropy of the
response's logits, never reaches backward's peak, which holds as many tensors and what is saved besides.)
Checked by: oracle/test_feedback.py, unit/test_feedback_program.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from memcalc.engine.feedback.ends import HOLDING, scoring_structure
from memcalc.engine.feedback.members import Member
from memcalc.engine.memory import CATEGORIES, alive_by_category, alive_copies, step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.serving.generation import Generation, generation_memory
from memcalc.engine.states import all_leaves
from memcalc.engine.timeline import measure, size_values
from memcalc.inputs.feedback import ResolvedFeedback

_ID_BYTES: Final = 8
_FP32: Final = 4


class Working(NamedTuple):
    """The most that a phase requests over what stands. parts: categories, which sum to bytes.

    inside: of an update, the most over what stands in each of its own phases.
    """

    bytes: int
    at: str
    parts: Mapping[str, int]
    inside: Mapping[str, int] = {}
    saved_bytes: int = 0


def update_work(member: Member) -> Working:
    """The training step of a member, over its own weights and states."""
    plan = member.update
    assert plan is not None
    step = step_memory(plan)
    stands = step.states  # of a second model in the trace too
    own = stands.parameter_bytes + stands.optimizer_bytes + stands.master_bytes
    own += sum(plan.strategy.fixed_bytes(plan).values())
    held = held_bytes(plan)
    phases = {name: size - own for name, size in step.phases.items()}
    phases["optimizer"] += held
    if plan.resolved.grad_accum_steps > 1:
        phases["forward"] += held  # names still have the micro-batch before
    worst = max(phases, key=lambda name: phases[name])
    parts = dict(step.breakdown)
    if worst != step.peak.phase:
        parts = dict.fromkeys(CATEGORIES, 0)
        parts["gradients"] = step.states.gradient_bytes
        parts["temporary"] = phases[worst] - parts["gradients"] - held
    else:
        parts["parameters"] -= step.states.parameter_bytes
        parts["optimizer"] -= step.states.optimizer_bytes + step.states.master_bytes
        for name, size in plan.strategy.fixed_bytes(plan).items():
            parts[name] -= size
    parts["loss"] += phases[worst] - sum(parts.values())
    at = step.instants[worst].name
    return Working(phases[worst], _place(plan, at), parts, phases, step.saved_bytes)


def _place(plan: Plan, at: str) -> str:
    """An instant's name, with blocks of a second model numbered from 0."""
    phase, _, rest = at.partition("/")
    if rest.startswith("layers."):
        number, _, op = rest.removeprefix("layers.").partition("/")
        own = plan.config.num_hidden_layers
        if int(number) >= own:
            return f"{phase}/reference.layers.{int(number) - own}/{op}"
    return at


def held_bytes(plan: Plan) -> int:
    """Bytes of outputs that are alive when backward is over, which the optimizer's step finds."""
    end = plan.kernels.loss_end
    if end is None or end.kind not in HOLDING:
        return 0
    structure, runs = plan.structure(plan.keeps_gradients)
    copies = tuple(
        (segment, runs[segment.run].skipped)
        for segment in structure.segments
        if segment.run >= 0 and segment.repetition == 1 and runs[segment.run].skipped
    )
    alive = alive_copies(structure, runs, (len(structure.events) - 1, copies))
    sizes = size_values(structure, plan.values)
    return sum(
        sizes[storage] * number
        for storage, number in alive.items()
        if structure.labels[structure.labels_of[storage]].phase != "backward"
        and storage not in structure.gradients
        and storage not in structure.earlier
    )


def score_work(plan: Plan) -> Working:
    """One pass without gradients over the batch of a scoring plan."""
    structure, runs = scoring_structure(plan)
    peak = measure(structure, runs, plan.values).peak
    parts = alive_by_category(structure, runs, plan.values, (peak.event, peak.copies))
    ids = _ID_BYTES * plan.values["b"] * plan.values["s"]
    parts["buffers"] += ids
    return Working(peak.live_bytes + ids, peak._replace(phase="score").name, parts)


def generation_of(member: Member, feedback: ResolvedFeedback) -> Generation:
    """The policy's own code generating: prompts in one pass, then a token a step."""
    kernels = member.base.kernels._replace(loss_end=None, use_dropout=False, watched=False)
    if kernels.adapter is not None:
        kernels = kernels._replace(
            adapter=kernels.adapter._replace(targets=frozenset(), input_gradients=False)
        )
    steps = max(1, feedback.generate - 1)
    return Generation(member.config, kernels, feedback.rollout_batch, feedback.prompt, steps)


def generation_work(member: Member, feedback: ResolvedFeedback) -> Working:
    """Generation by the training model itself (transformers): cache, passes, kept logits."""
    asked = generation_of(member, feedback)
    memory = generation_memory(asked)
    worst = max(memory.phases.values(), key=lambda one: one.bytes)
    taken = worst.bytes - memory.weights_bytes
    parts = dict.fromkeys(CATEGORIES, 0)
    found = worst.breakdown(memory.weights_bytes)
    parts["buffers"] = found["kv_cache"] + found["buffers"]
    parts["loss"] = found["logits"]
    parts["activations"] = found["activations"]
    at = f"rollout/{worst.phase}/{worst.instant.op}"
    if (
        feedback.setup.keeps_logits
    ):  # a list of each step's, and the tensor that they are stacked into
        logits = kept_logits_bytes(member, feedback)
        if taken + logits < 2 * logits:
            return Working(
                2 * logits,
                "rollout/kept logits",
                {**dict.fromkeys(CATEGORIES, 0), "loss": 2 * logits},
            )
        parts["loss"] += logits
        taken += logits
    return Working(taken, at, parts)


def kept_logits_bytes(member: Member, feedback: ResolvedFeedback) -> int:
    """fp32 logits of every generated position."""
    vocabulary = member.config.vocab_size
    return feedback.rollout_batch * feedback.generate * vocabulary * _FP32


def experience_bytes(feedback: ResolvedFeedback, rows: int, seq: int) -> int:
    """Ids, masks and what is known of each generated position between the phases.

    ppo: ids, responses before and after their end is cut, six fp32 numbers and two flags a position; grpo:
    ids and masks, log-probabilities of old and reference policy; dpo, rm: the masks of a micro-batch.
    """
    r, batch = feedback.generate, feedback.rollout_batch
    if feedback.method == "ppo":
        return batch * (_ID_BYTES * (seq + 2 * r) + r * (6 * _FP32 + 2))
    if feedback.method == "grpo":
        known = 1 + (feedback.reference != "none")
        return batch * (_ID_BYTES * 2 * seq + r * _FP32 * known + _FP32)
    return rows * seq * _ID_BYTES * (2 if feedback.method == "dpo" else 1)


def largest_weight_bytes(plan: Plan) -> int:
    """The largest parameter of a plan in 16 bit, which a sync hands over in one piece."""
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    return max(leaf.numel.value(plan.values) for leaf in leaves) * 2
