"""What an estimate of feedback training rests on, and what a reader must know, in sentences."""

from __future__ import annotations

from memcalc.engine.device_side import Device
from memcalc.engine.feedback.program import Program, scores_policy
from memcalc.inputs.feedback import GENERATING, SHARED

_LOSSES = {
    "dpo": "sigmoid loss, reference inside the loss, TRL's metrics of the logits",
    "rm": "a score head of width 1, scores at the last token, pairs",
    "ppo": "clipped policy and value losses",
    "grpo": "token-level clipped loss, logits of the response alone, entropies without gradients",
}


def assumptions_of(program: Program, device: Device) -> list[str]:
    """What the figures rest on."""
    feedback = program.feedback
    said = [
        f"{feedback.method}: {_LOSSES[feedback.method]}, as TRL 1.0.0 writes them (later releases "
        "fuse the head into the log-probabilities of dpo and grpo and need less)",
        f"every sequence is {feedback.prompt} + {feedback.generate} tokens long, none is padded",
    ]
    if feedback.method in GENERATING:
        said += _of_generation(program)
    said += _of_frozen(program)
    if feedback.critic is not None and feedback.critic != SHARED:
        said.append(
            "policy and critic in one backward and one optimizer step, as TRL has it"
            if feedback.setup.joint_update
            else "policy and critic are updated one after the other, as OpenRLHF, verl and DeepSpeed-Chat "
            "have it; --joint-update: in one backward, as TRL"
        )
    if device.gpu is not None:
        said.append("no published run tells these phases apart: their times have no band")
    return said


def _of_generation(program: Program) -> list[str]:
    feedback, engine = program.feedback, program.engine
    said = []
    if engine is None:
        said.append(
            f"rollout: all {feedback.rollout_batch} responses at once, by transformers, with a cache "
            "that grows"
        )
        adapter = program.member("policy").base.kernels.adapter
        if adapter is not None:
            said.append("rollout: what adapters add to a pass without gradients is left out")
        if adapter is not None and adapter.quantised is not None:
            said.append("rollout: packed matrices are taken to be written out in every step")
    else:
        said += [
            f"engine: takes {feedback.gpu_share:g} of the GPU when it wakes; what a sleeping one still "
            "holds (CUDA graphs, communicators) is not estimated",
            "rollout: the trainer's cached blocks are given back before the engine wakes",
            "weights in 16 bit on the engine, of one GPU; adapters are merged into them",
        ]
        if engine.at_once < feedback.rollout_batch:
            said.append(
                f"rollout: the cache has room for {engine.at_once} of {feedback.rollout_batch} "
                "sequences; the others wait"
            )
    if feedback.method == "grpo" and feedback.reward_model is None:
        said.append("rewards are functions, not a model")
    return said


def _of_frozen(program: Program) -> list[str]:
    feedback, said = program.feedback, []
    if any(one.role == "frozen" for one in program.members):
        if feedback.setup.frozen_dtype is None:
            said.append("frozen models in the policy's own dtypes, as TRL loads them")
        if feedback.setup.offload_frozen:
            said.append("frozen models come from pinned host memory for their phase and go again")
    beside = any(one.name == "critic" and one.role == "trained" for one in program.members)
    if beside and program.member("policy").base.resolved.setup.peft is not None:
        said.append("critic: every weight trains; --critic shared puts a head on the policy")
    return said


def notes_of(program: Program) -> list[str]:
    """What a reader must know of this setup."""
    feedback, notes = program.feedback, []
    if feedback.method == "grpo" and not scores_policy(feedback):
        notes.append("grpo: log-probabilities of the first update stand for the old policy's")
    if feedback.method == "dpo" and feedback.reference == "none":
        notes.append("dpo: the reference's log-probabilities are known beforehand")
    if program.engine is not None and program.engine.at_once < 1:
        notes.append(
            f"engine: its {feedback.gpu_share:g} of the GPU leave no room for one sequence's cache; "
            "--gpu-share more"
        )
    return notes
