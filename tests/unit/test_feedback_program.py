"""The phases of feedback training: sums, residency, the allocator's replay, layouts, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.feedback.feedback import feedback
from memcalc.engine.feedback.results import FeedbackEstimate
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.feedback import FeedbackSetup
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

MODEL = "llama-3.2-1b"


def run(
    method: str,
    training: dict[str, Any] | None = None,
    parallel: ParallelPlan | None = None,
    gpu: Any = "h100-80gb",
    **options: Any,
) -> FeedbackEstimate:
    stated = {
        "stack": "hf", "seq_len": 512, "micro_batch_size": 2, "precision": "bf16", **(training or {}),
    }  # fmt: skip
    setup = FeedbackSetup(method=method, **options)
    return feedback(MODEL, setup, TrainingSetup(**stated), parallel=parallel, gpu=gpu)


def peaks(result: FeedbackEstimate) -> dict[str, int]:
    return {row.memory.name: row.memory.peak_bytes for row in result.phases}


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ppo", {}, {}),
    ("ppo", {}, {"joint_update": True, "keeps_logits": True, "rollout_batch": 8}),
    ("ppo", {"precision": "bf16-mixed"}, {"critic": "shared"}),
    ("ppo", {"grad_accum_steps": 2}, {"offload_frozen": True}),
    ("ppo", {"stack": "torch"}, {"critic": "llama-3.2-3b", "reward_model": "llama-3.2-3b"}),
    ("dpo", {}, {}),
    ("dpo", {"precision": "bf16-mixed", "recompute": "full"}, {"reference": "none"}),
    ("dpo", {"peft": PeftSetup(method="lora")}, {}),
    ("dpo", {"stack": "torch"}, {}),
    ("rm", {"grad_accum_steps": 3}, {}),
    ("grpo", {}, {}),
    ("grpo", {"peft": PeftSetup(method="qlora")}, {"engine": "vllm"}),
    ("grpo", {}, {"engine": "vllm", "sleep": 0, "reward_model": MODEL, "epochs": 2}),
]


@pytest.mark.parametrize(("method", "training", "options"), CASES)
def test_parts_make_the_whole(
    method: str, training: dict[str, Any], options: dict[str, Any]
) -> None:
    result = run(method, training, **options)
    memory = result.estimate.memory
    assert memory.breakdown.total_bytes == memory.peak_allocated_bytes
    assert all(size >= 0 for size in memory.breakdown)
    assert memory.peak_requested_bytes == max(peaks(result).values()) == peaks(result)[result.worst]
    for row in result.phases:
        assert sum(row.memory.working.parts.values()) == row.memory.working.bytes
        assert row.memory.working.bytes >= 0
    assert sum(row.share or 0 for row in result.phases) == pytest.approx(1)
    assert sum(row.seconds or 0 for row in result.phases) == pytest.approx(
        result.estimate.time.step_s
    )


@pytest.mark.parametrize(
    ("method", "training", "options"), [case for case in CASES if "engine" not in case[2]]
)
def test_the_allocator_s_replay_agrees_with_the_sum(
    method: str, training: dict[str, Any], options: dict[str, Any]
) -> None:
    """Two ways to one number: events of all models in their order, and standing bytes plus the worst."""
    memory = run(method, training, **options).estimate.memory
    over = memory.peak_allocated_bytes - memory.peak_requested_bytes - memory.breakdown.workspace
    assert 0 <= over < 0.01 * memory.peak_requested_bytes
    assert (memory.peak_reserved_bytes or 0) >= memory.peak_allocated_bytes


def test_a_sleeping_engine_takes_nothing_from_the_update() -> None:
    awake, asleep = (run("grpo", engine="vllm", sleep=level) for level in (0, 2))
    share = int(0.3 * (device_of("h100-80gb").usable_bytes or 0))
    taken = share - device_of("h100-80gb").context_bytes
    assert peaks(awake)["update policy"] - peaks(asleep)["update policy"] == taken
    assert peaks(awake)["rollout"] == peaks(asleep)["rollout"]
    on_host = run("grpo", engine="vllm", sleep=1).estimate.memory.host_bytes
    assert on_host == next(r.weights_bytes for r in asleep.models if r.name == "engine")
    assert asleep.estimate.memory.host_bytes == 0


def test_an_engine_without_room_for_a_sequence_does_not_fit() -> None:
    result = run("grpo", engine="vllm", gpu_share=0.02)
    assert result.fits is False and result.at_once == 0
    assert any("--gpu-share" in note for note in result.estimate.notes)


def test_sequences_wait_where_the_cache_is_small() -> None:
    long = {"seq_len": 8192, "micro_batch_size": 1}
    few = run("grpo", long, engine="vllm", gpu_share=0.07, rollout_batch=64)
    all_at_once = run("grpo", long, engine="vllm", gpu_share=0.9, rollout_batch=64)
    assert 1 <= (few.at_once or 0) < 64 == all_at_once.at_once
    rollout = {r.memory.name: r.seconds or 0 for r in few.phases}["rollout"]
    assert rollout > {r.memory.name: r.seconds or 0 for r in all_at_once.phases}["rollout"]


def test_the_verdict_follows_the_worst_phase() -> None:
    need = run("ppo").estimate.memory.device_used_bytes or 0
    fits = device_of(None, gpu_memory_bytes=need + (64 << 20))
    too_small = device_of(None, gpu_memory_bytes=int(0.97 * need))
    assert run("ppo", gpu=fits).fits is True
    assert run("ppo", gpu=too_small).fits is False
    assert run("ppo", gpu=None).fits is None


def test_kept_logits_spare_a_pass_and_cost_their_bytes() -> None:
    kept, made = run("ppo", keeps_logits=True, rollout_batch=16), run("ppo", rollout_batch=16)
    assert "score policy" in peaks(made) and "score policy" not in peaks(kept)
    logits = 16 * 256 * 128256 * 4
    assert peaks(kept)["rollout"] - peaks(made)["rollout"] > logits
    assert peaks(kept)["score critic"] - peaks(made)["score critic"] == logits


def test_frozen_models_in_16_bit_beside_fp32_training() -> None:
    mixed = {"precision": "bf16-mixed"}
    wide, narrow = (run("ppo", mixed, frozen_dtype=dtype) for dtype in (None, "bf16"))
    frozen = {row.name: row.weights_bytes for row in wide.models if row.role == "frozen"}
    halves = {row.name: row.weights_bytes for row in narrow.models if row.role == "frozen"}
    assert halves == {name: size // 2 for name, size in frozen.items()}


def test_data_parallel_ranks_add_buckets_and_keep_frozen_models_whole() -> None:
    one, several = run("dpo"), run("dpo", parallel=ParallelPlan(gpus=4))
    reference = {row.name: row.weights_bytes for row in one.models}["reference"]
    assert {row.name: row.weights_bytes for row in several.models}["reference"] == reference
    assert several.estimate.memory.peak_requested_bytes > one.estimate.memory.peak_requested_bytes
    assert several.estimate.time.samples_per_s > 3 * one.estimate.time.samples_per_s


@pytest.mark.parametrize("training", [{}, {"set_to_none": False}])
@pytest.mark.parametrize("parallel", [None, ParallelPlan(gpus=4)])
def test_one_backward_for_both_needs_as_much_as_both_steps(
    training: dict[str, Any], parallel: ParallelPlan | None
) -> None:
    """At the optimizer: what stands, gradients and AdamW's copies of both, counted once."""
    both = run("ppo", training, parallel, joint_update=True)
    states = {row.name: row for row in both.models}
    trained = [states["policy"], states["critic"]]
    stands = sum(row.states_bytes for row in both.models)
    buckets = sum(row.gradient_bytes for row in trained) if parallel else 0
    held = 2 * 512 * 128256 * 2 + 17 * 2 * 512 * 2048 * 2  # logits, every block's hidden states
    inside = next(r.memory for r in both.phases if r.memory.name == "update both")
    found = sum(inside.standing.values()) + inside.working.inside["optimizer"]
    copies = sum(row.optimizer_bytes for row in trained) // 2
    assert found == pytest.approx(stands + buckets + copies + held, rel=1e-3)


def test_sharded_reward_models_need_less() -> None:
    fsdp = ParallelPlan(gpus=4, fsdp=True)
    whole, parted = (run("rm", {"stack": "torch"}, parallel) for parallel in (None, fsdp))
    states = [result.states_bytes for result in (whole, parted)]
    assert states[1] == pytest.approx(states[0] / 4, rel=0.001)


@pytest.mark.parametrize(
    ("method", "training", "parallel", "options", "said"),
    [
        ("grpo", {}, ParallelPlan(gpus=4, fsdp=True), {}, "sharded parameters"),
        ("dpo", {}, ParallelPlan(gpus=4, fsdp=True), {}, "--reference-model none"),
        ("dpo", {"stack": "torch"}, ParallelPlan(tp=2), {}, "tp, pp, cp, ep"),
        ("dpo", {"stack": "megatron", "precision": "bf16-mixed"}, None, {}, "stack megatron"),
        ("rm", {"stack": "torch", "precision": "fp8-mixed"}, None, {}, "fp8"),
        ("dpo", {"peft": PeftSetup(method="prefix")}, None, {}, "--peft prefix"),
        ("dpo", {"optimizer_in_backward": True}, None, {}, "optimizer-in-backward"),
    ],
)
def test_what_is_not_described_is_refused_in_one_line(
    method: str,
    training: dict[str, Any],
    parallel: ParallelPlan | None,
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(NotInThisVersionError, match=said) as raised:
        run(method, training, parallel, **options)
    assert "\n" not in str(raised.value)


def test_models_of_one_method_read_the_same_ids() -> None:
    with pytest.raises(ConfigError, match="vocabulary"):
        run("ppo", reward_model="gpt2")
