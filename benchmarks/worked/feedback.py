"""Cases R: training from feedback, its models and phases. "By hand" is arithmetic on a Llama's shapes."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

_COMMAND: Final = (
    "estimate llama-2-7b --rlhf {} --stack hf --precision bf16 --seq 1024 --micro-batch 2 "
    "{}--gpu h200-141gb"
)
_PPO: Final = (_COMMAND.format("ppo", "--generate 512 "),)
_DPO: Final = (_COMMAND.format("dpo", "--generate 512 "),)
_RM: Final = (_COMMAND.format("rm", ""),)
#: Llama-2-7B: 32 layers, h 4096, f 11008, V 32000; a scorer's head has one row.
_TRUNK: Final = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 32000 * 4096 + 4096
_MODEL: Final = _TRUNK + 32000 * 4096
_SCORER: Final = _TRUNK + 4096
_CACHE: Final = 2 * 32 * 2 * 1023 * 4096 * 2
_LOGITS: Final = 2 * 1024 * 32000 * 2
_HIDDEN: Final = 33 * 2 * 1024 * 4096 * 2


def _states(name: str, by_hand: int) -> Figure:
    return Figure(
        f"states of the {name}", by_hand / 1e9, "GB", _PPO,
        f"[one.states_bytes for one in feedback.models if one.name == '{name}'][0] / GB",
    )  # fmt: skip


def _phase(
    name: str, by_hand: int, allowed: float, why: str, commands: tuple[str, ...] = _PPO
) -> Figure:
    return Figure(
        f"peak of {name}",
        by_hand / 1e9,
        "GB",
        commands,
        f"memory.phases['{name}'] / GB",
        allowed,
        why,
    )


FEEDBACK: Final = (
    Case("R1", "PPO: policy and critic train, reference and reward are frozen", "ppo", (
        Figure("models", 4.0, "models", _PPO, "len(feedback.models)"),
        _states("policy", 8 * _MODEL),
        _states("critic", 8 * _SCORER),
        _states("reference", 2 * _MODEL),
        _states("reward", 2 * _SCORER),
        Figure("all states", 10 * (_MODEL + _SCORER) / 1e9, "GB", _PPO, "feedback.states_bytes / GB"),
        _phase("rollout", 8 * (_MODEL + _SCORER) + _CACHE, 0.01,
               "weights, moments and the cache; passes of generation come on top"),
        _phase("update policy", 12 * _MODEL + 8 * _SCORER + _LOGITS + _HIDDEN, 0.001,
               "AdamW's copy of one moment, logits and hidden states"),
    ), ("test_worked_feedback.py::test_r1_updates_stand_on_what_generation_does",)),
    Case("R2", "DPO: the policy trains, the reference is frozen", "dpo", (
        Figure("models", 2.0, "models", _DPO, "len(feedback.models)"),
        Figure("all states", 10 * _MODEL / 1e9, "GB", _DPO, "feedback.states_bytes / GB"),
    ), ("test_worked_feedback.py::test_r2_the_reference_runs_while_the_policy_s_logits_are_alive",
        "test_worked_feedback.py::test_r2_saved_bytes_are_training_s_but_for_the_loss")),
    Case("R3", "a reward model: one model, pairs of sequences", "ppo", (
        Figure("models", 1.0, "models", _RM, "len(feedback.models)"),
        Figure("states", 8 * _SCORER / 1e9, "GB", _RM, "feedback.states_bytes / GB"),
        _phase("update policy", 10 * _SCORER, 0.0005, "", _RM),
    ), ("test_worked_feedback.py::test_r3_saves_no_logits",)),
)  # fmt: skip
