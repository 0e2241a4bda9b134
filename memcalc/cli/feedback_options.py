"""Options of training from feedback: rows of the one table (`cli/options.py`).

Their fields are those of FeedbackSetup; --engine and --prompt are shared with serving.
"""

from __future__ import annotations

from typing import Final

from memcalc.cli.option import ESTIMATE, Option
from memcalc.inputs.feedback import FROZEN_DTYPES, METHODS, REFERENCES


def _row(
    name: str, kind: str, said: str, default: str = "", choices: tuple[str, ...] = ()
) -> Option:
    return Option(name, kind, "Feedback", said, default, commands=ESTIMATE, choices=choices)


FEEDBACK_OPTIONS: Final = (
    _row("rlhf", "text", "Train from feedback: ppo, dpo, rm (a reward model), grpo", "plain training",
         METHODS),
    _row("reference-model", "text",
         "Frozen reference: same (a copy of the policy's base), peft (adapters off), none",
         "peft beside adapters, else same", REFERENCES),
    _row("critic", "name", "ppo's critic: a model, or shared (a head on the policy's trunk)",
         "the policy's architecture"),
    _row("reward-model", "name", "Model that scores responses", "ppo: the policy's architecture, grpo: none"),
    _row("generate", "count", "Tokens of a response", "what --seq leaves beside --prompt"),
    _row("rollout-batch", "count", "Responses a GPU generates before it updates",
         "micro-batch x grad-accum; grpo: whole groups"),
    _row("group", "count", "grpo's responses to one prompt", "8"),
    _row("passes", "count", "Passes over the responses of a rollout", "ppo 4, grpo 1"),
    _row("score-batch", "count", "Sequences of a pass without gradients", "micro-batch"),
    _row("frozen-dtype", "text", "Dtype of reference and reward model", "the policy's", FROZEN_DTYPES),
    _row("offload-frozen", "flag", "Frozen models wait on the host outside their phase"),
    _row("keep-logits", "flag", "ppo's generation hands out its logits, as TRL's does"),
    _row("joint-update", "flag", "ppo's policy and critic in one backward, as TRL's", "one after the other"),
    _row("gpu-share", "number", "Of the GPU that a colocated engine takes (--engine vllm)", "0.3"),
    _row("sleep", "stage", "The engine while others work: 0 awake, 1 weights on the host, 2 dropped", "2",
         ("0", "1", "2")),
)  # fmt: skip

#: Option -> field of FeedbackSetup.
FIELDS: Final = {
    "rlhf": "method", "keep-logits": "keeps_logits", "reference-model": "reference", "passes": "epochs",
    **{name: name.replace("-", "_") for name in (
        "critic", "reward-model", "generate", "rollout-batch", "group",
        "score-batch", "frozen-dtype", "offload-frozen", "joint-update", "gpu-share", "sleep", "engine",
        "prompt",
    )},
}  # fmt: skip
