"""The models of a method, each with a plan of its own.

A member trains (parameters, gradients, optimizer states, an update) or is frozen (weights, passes without
gradients), or is another's trunk seen again (adapters off, a value head) with no bytes of its own. Every
one is built as a training plan of its own model and ends in what the method asks of it (ends.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.feedback.ends import scoring, scoring_structure, updating
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.engine.states import States, bytes_of_held, multiplicity, states
from memcalc.engine.states import block_of as traced_block
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.feedback import SHARED, ResolvedFeedback
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

#: Stacks whose model code the losses were put on.
STACKS: Final = ("torch", "hf", "fsdp1")
#: Methods of fine-tuning whose adapters the passes know how to run and to switch off.
ADAPTERS: Final = ("lora", "qlora", "dora", "bitfit", "freeze")
_UPDATES: Final = {"dpo": "dpo", "rm": "reward", "grpo": "grpo", "ppo": "policy"}
_REFERENCES: Final = {"same": "model", "peft": "adapter", "none": "none"}


class Member(NamedTuple):
    """One model of a method. Bytes are of one rank.

    role: trained | frozen | shared (no bytes of its own). update: the plan of its training step; score: of
    its passes without gradients. base: its plan as ordinary training has it. optimizer_bytes: states and
    master copies. elements: parameters; trains: those that get a gradient.
    """

    name: str
    role: str
    config: ModelConfig
    base: Plan
    update: Plan | None = None
    score: Plan | None = None
    elements: int = 0
    trains: int = 0
    weights_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    fixed_bytes: int = 0
    stays: bool = True  # on the GPU in every phase

    @property
    def standing_bytes(self) -> int:
        """What is on the GPU while other models work."""
        held = self.optimizer_bytes + self.fixed_bytes + self.standing_gradient_bytes
        return held + (self.weights_bytes if self.stays else 0)

    @property
    def standing_gradient_bytes(self) -> int:
        """Gradients that stay between steps."""
        kept = self.base.strategy.persistent_gradients or not self.base.resolved.setup.set_to_none
        return self.gradient_bytes if kept and self.trains else 0


class Asked(NamedTuple):
    """What a program is made of: the model, both setups, kernels stated by hand, the layout."""

    config: ModelConfig
    setup: TrainingSetup
    feedback: ResolvedFeedback
    kernels: Mapping[str, Any]
    parallel: ParallelPlan


def members_of(asked: Asked) -> tuple[Member, ...]:
    """Policy, critic, reference and reward model, as far as the method has them."""
    method = asked.feedback.method
    found = [_policy(asked)]
    check_plan(found[0].base, asked.feedback)
    if method == "ppo":
        found.append(_critic(asked, found[0]))
    if asked.feedback.reference != "none":
        found.append(_reference(asked, found[0]))
    if asked.feedback.reward_model is not None:
        found.append(_frozen(asked, "reward", _other(asked, asked.feedback.reward_model), "score"))
    return tuple(found)


def check_plan(plan: Plan, feedback: ResolvedFeedback) -> None:
    """Refuse in one line what the losses or the passes are not described for."""
    setup, layout, kernels = plan.resolved.setup, plan.parallel, plan.kernels
    if plan.config.is_encoder or plan.config.position_embedding in ("relative", "bucketed"):
        raise NotInThisVersionError(f"rlhf: {plan.config.name} is no decoder; valid: decoders")
    plain = kernels.megatron is None and kernels.traits.code == "plain"
    if setup.base not in STACKS or not plain or kernels.compiled or kernels.fp8_linear:
        raise NotInThisVersionError(
            f"rlhf: with stack {setup.code}, {setup.precision} it is not in this version; valid: stack "
            f"{', '.join(STACKS)}, not compiled, no fp8"
        )
    if kernels.offloads or plan.optimizer.in_backward or layout.offload != "none":
        raise NotInThisVersionError("rlhf: offload, optimizer-in-backward: not in this version")
    if setup.peft is not None and setup.peft.method not in ADAPTERS:
        raise NotInThisVersionError(
            f"rlhf: --peft {setup.peft.method} is not in this version; valid: {', '.join(ADAPTERS)}"
        )
    _check_layout(plan, feedback)


def _check_layout(plan: Plan, feedback: ResolvedFeedback) -> None:
    layout = plan.parallel
    if layout.size != layout.copies:
        raise NotInThisVersionError(
            "rlhf: tp, pp, cp, ep are not in this version; valid: --gpus N alone, with --fsdp or --zero"
        )
    sharded = layout.fsdp or layout.zero == 3 or plan.resolved.setup.base == "fsdp1"
    if sharded and feedback.method in ("ppo", "grpo"):
        raise NotInThisVersionError(
            f"rlhf: {feedback.method} with sharded parameters is not in this version; valid: --gpus N "
            "(DDP), --zero 1"
        )
    if sharded and feedback.method == "dpo" and feedback.reference != "none":
        raise NotInThisVersionError(
            "rlhf: dpo with sharded parameters and a reference beside the policy is not in this version; "
            "valid: --reference-model none (log-probabilities made beforehand)"
        )


def _policy(asked: Asked) -> Member:
    feedback = asked.feedback
    base = _without_dropout(
        plan_of(asked.config, asked.setup, asked.kernels, asked.parallel), feedback.method
    )
    kind = "shared" if feedback.critic == SHARED else _UPDATES[feedback.method]
    if feedback.setup.joint_update:
        kind = "joint"
    update = updating(
        base, kind, feedback.generate, reference=_REFERENCES[feedback.reference],
        beta=feedback.reference != "none",
    )  # fmt: skip
    score = None
    if feedback.method in ("ppo", "grpo"):
        score = _scoring(asked, asked.config, asked.setup, "logps")
    return trained("policy", base, update, score)


def _critic(asked: Asked, policy: Member) -> Member:
    """The critic: a model with all its weights trained, or a head on the policy's trunk."""
    stated = asked.feedback.critic
    assert stated is not None
    if stated == SHARED:
        score = _scoring(asked, asked.config, asked.setup, "values")
        return Member("critic", "shared", policy.config, policy.base, None, score)
    config, setup = _other(asked, stated), replace(asked.setup, peft=None)
    base = _without_dropout(plan_of(config, setup, asked.kernels, asked.parallel), "ppo")
    update = updating(base, "value", asked.feedback.generate)
    found = trained("critic", base, update, _scoring(asked, config, setup, "values"))
    if asked.feedback.setup.joint_update:  # buffers of both are the joint update's
        return found._replace(update=None, fixed_bytes=0)
    return found


def trained(name: str, base: Plan, update: Plan, score: Plan | None) -> Member:
    """A member that trains: its states are those of its own leaves in the traced update."""
    held = _own_states(update)
    return Member(
        name, "trained", base.config, base, update, score,
        elements=held.parameters, trains=held.trainable_parameters,
        weights_bytes=held.parameter_bytes, gradient_bytes=held.gradient_bytes,
        optimizer_bytes=held.optimizer_bytes + held.master_bytes,
        fixed_bytes=sum(update.strategy.fixed_bytes(update).values()),
    )  # fmt: skip


def _own_states(update: Plan) -> States:
    """States of the plan's own model, without those of a second one that its loss runs."""
    end = update.kernels.loss_end
    if end is not None and end.kind == "joint":
        kinds = tuple(kind for kind in update.kinds if kind.stack != "critic")
        kernels = update.kernels._replace(loss_end=end._replace(kind="policy"))
        update = update._replace(kinds=kinds, kernels=kernels)
    structure, runs = update.structure(update.keeps_gradients)
    held = states(structure, runs, update.optimizer, update.values, update.strategy)
    other = beside_bytes(update)
    return held._replace(
        parameters=held.parameters - other[0], parameter_bytes=held.parameter_bytes - other[1]
    )


def beside_bytes(update: Plan) -> tuple[int, int]:
    """Parameters and bytes of a frozen model inside the traced update of another."""
    structure, runs = update.structure(update.keeps_gradients)
    times = multiplicity(runs)
    first = sum(run.traced * len(run.pattern) for run in runs if _is_own(run.pattern[0].stack))
    elements = size = 0
    for leaf in structure.leaves:
        block = traced_block(leaf)
        if block >= first or leaf.name.startswith("reference."):
            elements += times[block] * leaf.numel.value(update.values)
            size += times[block] * bytes_of_held(update.strategy.parameter(leaf), update.values)
    return elements, size


def _is_own(stack: str) -> bool:
    return stack != "reference"


def _reference(asked: Asked, policy: Member) -> Member:
    """What the policy's divergence is measured from."""
    dpo = asked.feedback.method == "dpo"
    if asked.feedback.reference == "peft":
        bare = partial(_scoring, asked, asked.config, asked.setup, "logps", adapters=False)
        score = None if dpo else bare()
        return Member("reference", "shared", policy.config, policy.base, None, score)
    if dpo:  # runs inside the loss, in the policy's own dtypes
        assert policy.update is not None
        elements, size = beside_bytes(policy.update)
        return Member(
            "reference", "frozen", policy.config, policy.base, elements=elements, weights_bytes=size
        )
    return _frozen(asked, "reference", asked.config, "logps")


def _frozen(asked: Asked, name: str, config: ModelConfig, kind: str) -> Member:
    """A model that only scores, in its own dtype."""
    setup = asked.setup
    stated = asked.feedback.setup.frozen_dtype
    precision = {None: setup.precision, "fp16": "bf16"}.get(stated, stated or "")
    setup = replace(
        setup, precision="bf16" if precision == "bf16-master" else precision, peft=None,
        optimizer="none", optimizer_impl=None, optimizer_dtype=None,
    )  # fmt: skip
    score = _scoring(asked, config, setup, kind)
    if stated == "fp16":
        kernels = score.kernels._replace(param_dtype="fp16", compute_dtype="fp16")
        score = score._replace(kernels=kernels)
    elements, size = weights_of_pass(score)
    return Member(
        name, "frozen", config, score, None, score, elements=elements, weights_bytes=size,
        stays=not asked.feedback.setup.offload_frozen,
    )  # fmt: skip


def weights_of_pass(score: Plan) -> tuple[int, int]:
    """Parameters and bytes of the weights that a pass without gradients runs over."""
    structure, runs = scoring_structure(score)
    times = multiplicity(runs)
    elements = size = 0
    for leaf in structure.leaves:
        number = times[traced_block(leaf)] * leaf.numel.value(score.values)
        elements += number
        size += number * ITEMSIZE[leaf.dtype]
    return elements, size


def _scoring(
    asked: Asked, config: ModelConfig, setup: TrainingSetup, kind: str, adapters: bool = True
) -> Plan:
    """The plan of a model's passes without gradients, on one rank."""
    feedback = asked.feedback
    one = replace(
        setup, micro_batch_size=feedback.score_batch, grad_accum_steps=1, global_batch=None,
        recompute="none", recompute_layers=None, reentrant=False,
    )  # fmt: skip
    plan = _without_dropout(plan_of(config, one, asked.kernels), "ppo")
    if not adapters and plan.kernels.adapter is not None:
        bare = plan.kernels.adapter._replace(targets=frozenset(), input_gradients=False)
        plan = plan._replace(kernels=plan.kernels._replace(adapter=bare))
    return scoring(plan, kind, feedback.generate, feedback.method == "ppo")


def _without_dropout(plan: Plan, method: str) -> Plan:
    """Dropout off, as TRL has it for all methods but grpo (disable_dropout)."""
    if method == "grpo":
        return plan
    kernels = plan.kernels._replace(use_dropout=False)
    if kernels.adapter is not None:
        kernels = kernels._replace(adapter=kernels.adapter._replace(dropout=False))
    whole = None if plan.undivided is None else _without_dropout(plan.undivided, method)
    return plan._replace(kernels=kernels, undivided=whole)


def _other(asked: Asked, name: str) -> ModelConfig:
    """Another model of the method; one name for the policy's own architecture."""
    if name == asked.config.name:
        return asked.config
    config = load_model(name)
    if config.vocab_size != asked.config.vocab_size:
        raise ConfigError(
            f"{name}: its vocabulary has {config.vocab_size} entries, {asked.config.name}'s "
            f"{asked.config.vocab_size}; rule: the same, since all read the same ids"
        )
    return config
