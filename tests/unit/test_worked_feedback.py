"""Worked cases of training from feedback: R1 (PPO), R2 (DPO), R3 (a reward model), by hand.

R1: four models, policy and critic trained, reference and reward frozen. R2: two, the reference frozen.
R3: one model, pairs. By hand: parameters from a Llama's shapes, states of AdamW in bf16 (2 weights, 2
gradients, 4 moments), keys and values, logits. Nothing here is read from the engine's ledger but what is
compared. Symbols: n layers, h hidden, f MLP width, V vocabulary, b sequences, s positions, r generated.
"""

from __future__ import annotations

import pytest

from benchmarks.worked.case import Case
from memcalc.engine.estimate import estimate
from memcalc.engine.feedback.feedback import feedback
from memcalc.engine.feedback.results import FeedbackEstimate
from memcalc.inputs.feedback import FeedbackSetup
from memcalc.inputs.training import TrainingSetup
from tests.unit.worked_support import cases, hold

GIB = 1 << 30
N_LAYERS, H, F, V = 32, 4096, 11008, 32000
B, S, R = 2, 1024, 512
#: Llama-2-7B: four h x h projections, three h x f, two norms a layer; embedding, head, last norm.
TRUNK = N_LAYERS * (4 * H * H + 3 * H * F + 2 * H) + V * H + H
MODEL = TRUNK + V * H
SCORER = TRUNK + H  # a head of width 1 in place of the vocabulary's
TRAINED, FROZEN = 2 + 2 + 4, 2
LOGITS = V * 2  # of a position, in bf16


@cases("R")
def test_case(case: Case) -> None:
    hold(case)


def run(method: str, micro: int = B, **options: object) -> FeedbackEstimate:
    setup = TrainingSetup(stack="hf", precision="bf16", seq_len=S, micro_batch_size=micro)
    stated = FeedbackSetup(method=method, generate=R, **options)  # type: ignore[arg-type]
    return feedback("llama-2-7b", stated, setup, gpu="h200-141gb")


def model_states(result: FeedbackEstimate) -> dict[str, int]:
    return {row.name: row.states_bytes for row in result.models}


def peaks(result: FeedbackEstimate) -> dict[str, int]:
    return {row.memory.name: row.memory.peak_bytes for row in result.phases}


def inside(result: FeedbackEstimate, name: str) -> dict[str, int]:
    """Peaks of an update's own phases, everything that stands included."""
    memory = next(row.memory for row in result.phases if row.memory.name == name)
    standing = memory.peak_bytes - memory.working.bytes
    return {phase: standing + size for phase, size in memory.working.inside.items()}


def test_llama_2_7b_by_hand() -> None:
    assert MODEL == 6_738_415_616


def test_r1_ppo_keeps_four_models() -> None:
    result = run("ppo")
    assert model_states(result) == {
        "policy": TRAINED * MODEL, "critic": TRAINED * SCORER,
        "reference": FROZEN * MODEL, "reward": FROZEN * SCORER,
    }  # fmt: skip
    assert result.states_bytes == 10 * (MODEL + SCORER)
    assert result.states_bytes / 1e9 == pytest.approx(133.5, abs=0.1)  # no 80 GB card holds them


def test_r1_generation_stands_on_weights_and_moments_and_has_a_cache() -> None:
    """6 + 6 + 2 + 2 bytes a parameter, keys and values of every position, less than 1 % of passes."""
    standing = 6 * MODEL + 6 * SCORER + 2 * MODEL + 2 * SCORER
    cache = 2 * N_LAYERS * B * (S - 1) * H * 2
    over = peaks(run("ppo"))["rollout"] - standing - cache
    assert 0 < over < 0.01 * standing


def test_r1_updates_stand_on_what_generation_does() -> None:
    """The policy's optimizer: gradients, AdamW's copy of one moment, logits and hidden states."""
    result = run("ppo")
    standing = 8 * (MODEL + SCORER)
    held = B * S * LOGITS + (N_LAYERS + 1) * B * S * H * 2
    found = inside(result, "update policy")["optimizer"]
    assert found == pytest.approx(standing + 4 * MODEL + held, rel=1e-4)
    found = inside(result, "update critic")["optimizer"]
    assert found == pytest.approx(standing + 4 * SCORER, rel=1e-4)
    assert peaks(result)["update policy"] > peaks(result)["rollout"]
    assert result.worst == "update policy"


def test_r1_frozen_models_on_the_host_spare_their_weights() -> None:
    both, spared = run("ppo"), run("ppo", offload_frozen=True)
    for name in ("rollout", "update policy", "update critic", "score critic"):
        assert peaks(both)[name] - peaks(spared)[name] == 2 * (MODEL + SCORER)
    assert peaks(both)["score reference"] - peaks(spared)["score reference"] == 2 * SCORER
    assert spared.estimate.memory.host_bytes == 2 * (MODEL + SCORER)


def test_r2_dpo_keeps_two_models() -> None:
    result = run("dpo")
    assert model_states(result) == {"policy": TRAINED * MODEL, "reference": FROZEN * MODEL}
    assert peaks(result) == {"update policy": result.estimate.memory.peak_requested_bytes}


def test_r2_saved_bytes_are_training_s_but_for_the_loss() -> None:
    """Plain training keeps fp32 log-probabilities and shifted labels; DPO two bytes a probability."""
    plain = estimate(
        "llama-2-7b",
        TrainingSetup(stack="hf", precision="bf16", seq_len=S, micro_batch_size=B),
    ).memory.saved_for_backward_bytes
    saved = run("dpo").estimate.memory.saved_for_backward_bytes
    theirs = B * S * (4 * V + 8)
    mine = (
        B * (S - 1) * (LOGITS + 8 + 1)
    )  # labels to gather by, and the mask that zeroes the prompt
    assert saved - plain == pytest.approx(mine - theirs, abs=64)


def test_r2_the_reference_runs_while_the_policy_s_logits_are_alive() -> None:
    """Its pass finds logits, their shifted copy and log-probabilities, and adds two of its own."""
    result = run("dpo")
    standing = 6 * MODEL + 2 * MODEL
    saved = result.estimate.memory.saved_for_backward_bytes
    row = (S - 1) * LOGITS
    alive = B * S * LOGITS + B * row  # beside what is saved: the logits and their shifted copy
    own = B * S * LOGITS + B * row + 2 * row  # the pass's, and two sequences' log-probabilities
    found = inside(result, "update policy")["reference"]
    assert found == pytest.approx(standing + saved + alive + own, rel=1e-3)


def test_r2_adapters_off_need_no_second_model() -> None:
    from memcalc.inputs.peft import PeftSetup

    setup = TrainingSetup(
        stack="hf", precision="bf16", seq_len=S, micro_batch_size=B, peft=PeftSetup(method="lora")
    )
    result = feedback("llama-2-7b", FeedbackSetup(method="dpo", generate=R), setup)
    adapters = N_LAYERS * 2 * 2 * 8 * H  # rank 8, q and v, two matrices each, fp32
    assert model_states(result) == {"policy": 2 * MODEL + (4 + 4 + 8) * adapters, "reference": 0}


def test_r3_a_reward_model_and_pairs() -> None:
    result = run("rm")
    assert model_states(result) == {"policy": TRAINED * SCORER}
    assert result.estimate.model.parameters == MODEL  # as it was read; its head is replaced
    optimizer = inside(result, "update policy")["optimizer"]
    assert optimizer == pytest.approx(6 * SCORER + 4 * SCORER, rel=1e-4)


def test_r3_saves_no_logits() -> None:
    """Plain training's saved bytes without the loss's; the head keeps the last norm's result."""
    plain = estimate(
        "llama-2-7b",
        TrainingSetup(stack="hf", precision="bf16", seq_len=S, micro_batch_size=B),
    ).memory.saved_for_backward_bytes
    saved = run("rm").estimate.memory.saved_for_backward_bytes
    assert saved - plain == pytest.approx(-B * S * (4 * V + 8), abs=256)


def test_grpo_logits_of_a_published_account() -> None:
    """Llama 3.1 8B, 8 responses of 20,480 tokens: 78.3 GiB of fp32 logits, 2.5 GiB of keys and values a
    sequence, as Unsloth's account of its GRPO (2025-02) has them by the same arithmetic."""
    from memcalc.engine.feedback.ends import updating
    from memcalc.engine.make_plan import plan_of
    from memcalc.engine.timeline import size_values
    from memcalc.inputs.models import load_model

    tokens = 20 * 1024
    config = load_model("llama-3.1-8b")
    setup = TrainingSetup(
        stack="hf", precision="bf16-mixed", seq_len=tokens, micro_batch_size=8, recompute="full"
    )
    plan = updating(plan_of(config, setup), "grpo", tokens - 1)
    structure, _ = plan.structure(False)
    sizes = size_values(structure, plan.values)
    logits = [
        size
        for storage, size in enumerate(sizes)
        if structure.names[storage] == "_to_copy"
        and structure.labels[structure.labels_of[storage]][:3] == ("forward", -1, "lm_head")
    ]
    assert max(logits) / GIB == pytest.approx(78.3, abs=0.05)
