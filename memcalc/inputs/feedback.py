"""FeedbackSetup: what a user states about training from feedback (RLHF), validated.

Beside it stands a TrainingSetup: precision, optimizer, micro-batch, recomputation, adapters of the models
that train. Nothing here knows a byte. `resolve_feedback` fills what was left open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.model import check_choice, check_dim
from memcalc.inputs.training import ResolvedSetup

METHODS: Final = ("ppo", "dpo", "rm", "grpo")
#: Methods whose policy writes the responses it learns from.
GENERATING: Final = ("ppo", "grpo")
#: Methods over pairs of a chosen and a rejected sequence.
PAIRED: Final = ("dpo", "rm")
REFERENCES: Final = ("same", "peft", "none")
ENGINES: Final = ("transformers", "vllm")
FROZEN_DTYPES: Final = ("fp32", "bf16", "fp16")
#: vLLM's levels: 0 stays awake; 1 weights wait on the host; 2 weights are dropped. 1 and 2 free the cache.
SLEEPS: Final = (0, 1, 2)
#: TRL's defaults: PPOConfig.num_ppo_epochs, GRPOConfig.num_generations, vllm_gpu_memory_utilization.
PPO_EPOCHS, GROUP, GPU_SHARE = 4, 8, 0.3
SHARED: Final = "shared"


@dataclass(frozen=True, kw_only=True)
class FeedbackSetup:
    """One method and its models. Raises ConfigError with what, got, rule, nearest valid.

    method: ppo | dpo | rm | grpo. prompt, generate: positions of a sequence before and in the response
    (None: half of it, or the rest). rollout_batch: sequences a rank generates before it updates (None: one
    optimizer step's). group: responses to one prompt (grpo). epochs: passes over them (None: 4 for ppo, 1
    for grpo). reference: same (a frozen copy of the policy's base), peft (the policy with its adapters
    off), none (no divergence; dpo: log-probabilities known beforehand); None: peft beside adapters, else
    same. critic: a model, or `shared`: a value head on the policy's trunk (None: the policy's
    architecture). reward_model: a model (None: ppo the policy's architecture, grpo functions, no model).
    frozen_dtype: of reference and reward model (None: the policy's). offload_frozen: they wait on the
    host outside the phase they work in. engine: what generates. gpu_share: of the GPU that a
    colocated vLLM takes; sleep: its level while others work. score_batch: sequences of a pass without
    gradients (None: the micro-batch). keeps_logits: the generation hands out its logits (ppo), instead of
    a pass that makes them again. joint_update: policy and critic in one backward and one step, as TRL has
    it (ppo); else one after the other, as OpenRLHF, verl and DeepSpeed-Chat have it.
    Checked by: unit/test_feedback_setup.py.
    """

    method: str
    prompt: int | None = None
    generate: int | None = None
    rollout_batch: int | None = None
    group: int | None = None
    epochs: int | None = None
    reference: str | None = None
    critic: str | None = None
    reward_model: str | None = None
    frozen_dtype: str | None = None
    offload_frozen: bool = False
    engine: str = "transformers"
    gpu_share: float | None = None
    sleep: int | None = None
    score_batch: int | None = None
    keeps_logits: bool = False
    joint_update: bool = False

    def __post_init__(self) -> None:
        check_choice("rlhf", self.method, METHODS)
        for name in ("prompt", "generate", "rollout_batch", "group", "epochs", "score_batch"):
            if getattr(self, name) is not None:
                check_dim(name, getattr(self, name))
        if self.reference is not None:
            check_choice("reference", self.reference, REFERENCES)
        if self.frozen_dtype is not None:
            check_choice("frozen_dtype", self.frozen_dtype, FROZEN_DTYPES)
        check_choice("engine", self.engine, ENGINES)
        if self.sleep is not None and self.sleep not in SLEEPS:
            raise ConfigError(f"sleep: got {self.sleep}; valid: 0, 1, 2")
        if self.gpu_share is not None and not 0 < self.gpu_share <= 1:
            raise ConfigError(f"gpu-share: got {self.gpu_share}; rule: 0 < share <= 1")
        self._check_method()

    def _check_method(self) -> None:
        """What is stated belongs to the method."""
        ppo, grpo = self.method == "ppo", self.method == "grpo"
        generates = self.method in GENERATING
        known = {
            "critic": (self.critic is not None, ppo, "ppo"),
            "keep-logits": (self.keeps_logits, ppo, "ppo"),
            "joint-update": (self.joint_update, ppo, "ppo"),
            "group": (self.group is not None, grpo, "grpo"),
            "reward-model": (self.reward_model is not None, generates, "ppo, grpo"),
            "rollout-batch": (self.rollout_batch is not None, generates, "ppo, grpo"),
            "passes": (self.epochs is not None, generates, "ppo, grpo"),
            "score-batch": (self.score_batch is not None, generates, "ppo, grpo"),
            "engine": (self.engine != "transformers", generates, "ppo, grpo"),
            "reference-model": (self.reference is not None, self.method != "rm", "ppo, dpo, grpo"),
        }
        for name, (stated, fits, valid) in known.items():
            if stated and not fits:
                raise ConfigError(
                    f"{name}: got it with --rlhf {self.method}; rule: only with {valid}"
                )
        serves = self.engine == "vllm"
        for name, value in (("gpu-share", self.gpu_share), ("sleep", self.sleep)):
            if value is not None and not serves:
                raise ConfigError(f"{name}: got {value} without --engine vllm; rule: beside it")
        if self.keeps_logits and serves:
            raise ConfigError("keep-logits: got it with --engine vllm; rule: --engine transformers")
        if self.joint_update and self.critic is not None:
            raise ConfigError(
                f"joint-update: got it with --critic {self.critic}; rule: a critic of the policy's "
                "architecture, beside it"
            )
        if self.offload_frozen and self.method == "dpo":
            raise ConfigError(
                "offload-frozen: got it with --rlhf dpo, whose reference works inside every step; "
                "nearest valid: --reference-model none"
            )
        if self.offload_frozen and self.method == "rm":
            raise ConfigError("offload-frozen: got it with --rlhf rm, which has no frozen model")


class ResolvedFeedback(NamedTuple):
    """A FeedbackSetup with nothing left open. prompt + generate is the sequence's length."""

    setup: FeedbackSetup
    method: str
    prompt: int
    generate: int
    rollout_batch: int
    group: int
    epochs: int
    reference: str
    critic: str | None
    reward_model: str | None
    score_batch: int
    gpu_share: float
    sleep: int

    @property
    def updates(self) -> int:
        """Sequences that one iteration trains on, on a rank."""
        return self.rollout_batch * self.epochs


def resolve_feedback(
    setup: FeedbackSetup, training: ResolvedSetup, policy: str
) -> ResolvedFeedback:
    """Fill what was left open from the training setup. policy: name of the model that is trained."""
    prompt, generate = _lengths(setup, training.seq_len)
    step = training.micro_batch_size * training.grad_accum_steps
    group = setup.group or GROUP
    batch = setup.rollout_batch
    if batch is None:
        batch = -(-step // group) * group if setup.method == "grpo" else step
    _check_batches(setup, training, batch, group)
    adapters = training.setup.peft is not None and training.setup.peft.method not in _TRAIN_BASE
    reference = setup.reference or ("peft" if adapters else "same")
    if setup.method == "rm":
        reference = "none"
    if reference == "peft" and not adapters:
        stated = training.setup.peft.method if training.setup.peft else "none"
        raise ConfigError(
            f"reference-model: got peft with --peft {stated}; rule: adapters that can be switched off"
        )
    ppo = setup.method == "ppo"
    return ResolvedFeedback(
        setup=setup,
        method=setup.method,
        prompt=prompt,
        generate=generate,
        rollout_batch=batch,
        group=group if setup.method == "grpo" else 1,
        epochs=setup.epochs or (PPO_EPOCHS if ppo else 1),
        reference=reference,
        critic=(setup.critic or policy) if ppo else None,
        reward_model=setup.reward_model or (policy if ppo else None),
        score_batch=min(batch, setup.score_batch or training.micro_batch_size),
        gpu_share=setup.gpu_share or GPU_SHARE,
        sleep=2 if setup.sleep is None else setup.sleep,
    )


#: Methods of fine-tuning that change weights of the model itself.
_TRAIN_BASE: Final = ("bitfit", "freeze")


def _lengths(setup: FeedbackSetup, seq: int) -> tuple[int, int]:
    """Positions of the prompt and of the response; together the sequence."""
    prompt, generate = setup.prompt, setup.generate
    if prompt is None:
        prompt = seq // 2 if generate is None else seq - generate
    generate = seq - prompt if generate is None else generate
    if prompt < 1 or generate < 1 or prompt + generate != seq:
        raise ConfigError(
            f"prompt, generate: got {prompt} and {generate}; rule: at least 1 each, together --seq {seq}"
        )
    if seq < 3:
        raise ConfigError(f"seq: got {seq}; rule: at least 3 with --rlhf")
    return prompt, generate


def _check_batches(setup: FeedbackSetup, training: ResolvedSetup, batch: int, group: int) -> None:
    micro = training.micro_batch_size
    step = micro * training.grad_accum_steps
    if setup.method in PAIRED and micro % 2:
        raise ConfigError(
            f"micro-batch: got {micro}; rule: even with --rlhf {setup.method}, whose sequences come in "
            f"pairs of chosen and rejected; nearest valid: {micro + 1}"
        )
    if setup.method in GENERATING and batch % step:
        raise ConfigError(
            f"rollout-batch: got {batch}; rule: a multiple of micro-batch x grad-accum = {step}; "
            f"nearest valid: {max(1, round(batch / step)) * step}"
        )
    if setup.method == "grpo" and batch % group:
        raise ConfigError(
            f"rollout-batch: got {batch}; rule: a multiple of --group {group}; nearest valid: "
            f"{max(1, round(batch / group)) * group}"
        )
