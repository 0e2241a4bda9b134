"""DeepSpeed's ZeRO: bytes of states by stage against its documents and own estimators, and its rules."""

from __future__ import annotations

import pytest

from memcalc.engine.estimate import estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

MODEL = "llama-3.2-1b"
P = 1_235_814_400
LARGEST = 128256 * 2048  # the embedding, elements
BUCKET = 500_000_000


def ran(zero: int, dp: int = 8, **setup: object) -> tuple[Plan, StepMemory]:
    """A micro-batch of 512 tokens with full recomputation: states and buffers decide."""
    fields: dict[str, object] = {"stack": "deepspeed", "seq_len": 512, "recompute": "full"}
    plan = plan_of(
        load_model(MODEL), TrainingSetup(**fields | setup), None, ParallelPlan(dp=dp, zero=zero)
    )
    return plan, step_memory(plan)


def states(memory: StepMemory) -> dict[str, int]:
    held = memory.states
    return {
        "parameters": held.parameter_bytes, "gradients": held.gradient_bytes,
        "optimizer": held.optimizer_bytes + held.master_bytes,
    }  # fmt: skip


def near(found: int, expected: float) -> bool:
    """Equal but for padding of parts: less than a byte in ten thousand."""
    return expected <= found < expected * 1.0001 + 64


#: Bytes a parameter of parameters, gradients, optimizer: ZeRO's paper (arXiv:1910.02054), section 3.
PAPER = {0: (2, 2, 12), 1: (2, 2 / 8, 12 / 8), 2: (2, 2 / 8, 12 / 8), 3: (2 / 8, 2 / 8, 12 / 8)}


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed", "bf16-master"])
@pytest.mark.parametrize("zero", PAPER)
def test_states_of_each_stage_as_the_paper_has_them(zero, precision):
    """Gradients of stage 1 are counted as the optimizer finds them, after their reduction."""
    _, memory = ran(zero, precision=precision)
    for found, each in zip(states(memory).values(), PAPER[zero], strict=True):
        assert near(found, each * P)


@pytest.mark.parametrize(("zero", "each"), [(0, 16), (1, 4 + 12), (3, 16)])
def test_fp32_has_no_master_copies_but_where_parts_are_cloned(zero, each):
    """Stage 1 steps over a copy of its part: 4 of parameters, then (4 + 4 + 8) / 8 and gradients."""
    _, memory = ran(zero, precision="fp32")
    held = states(memory)
    if zero == 1:
        assert near(held["optimizer"], 12 * P / 8)
        assert near(held["parameters"], 4 * P)
    else:
        assert near(sum(held.values()), each * P / (8 if zero else 1))


def test_stage_1_has_whole_gradients_when_backward_ends():
    """2P of parameters and of gradients, 12P/8, a bucket of 5e8: and the same with stage 2 less 2P."""
    first, second = (ran(zero, dp=64)[1].phases["backward"] for zero in (1, 2))
    assert first > 4 * P + 12 * P / 64 + 2 * BUCKET
    assert second < first - P


@pytest.mark.parametrize("zero", [1, 2])
def test_the_step_of_stages_1_and_2_by_hand(zero):
    """2P, 12P/N, averaged gradients 2P/N, flat ones 2P/N, fp32 ones 4P/N: DeepSpeed's own 2 + 18/N
    and the flat copy, which goes as soon as it is widened."""
    _, memory = ran(zero, dp=2)
    expected = 2 * P + (12 + 2 + 2 + 4) * P / 2 + memory.input_bytes
    assert near(memory.phases["optimizer"], expected)


def test_many_ranks_leave_the_norm_in_fp64_as_the_steps_most():
    """With 256 ranks a part is 4.8M elements, its largest piece too: 8 bytes each of norm."""
    _, memory = ran(2, dp=256)
    part = P // 256
    expected = 2 * P + 14 * part + 8 * part + memory.input_bytes
    assert memory.phases["optimizer"] == pytest.approx(expected, rel=1e-4)


def test_the_step_without_zero_by_hand():
    """16P, a list of fp32 gradients and one flat tensor of them: 8P more."""
    _, memory = ran(0)
    assert near(memory.phases["optimizer"], 24 * P + memory.input_bytes)


def test_stage_3_steps_over_sub_groups():
    """A part of 618M elements is one group: flat 2 + 4 bytes each; of 1e9 elements more are two."""
    _, memory = ran(3, dp=2)
    small = sum(leaf.numel.value({"h": 2048}) for leaf in _norms())
    fixed = 2 * BUCKET + 2 * small + memory.input_bytes
    assert near(memory.phases["optimizer"], fixed + (2 + 2 + 12 + 2 + 4) * P / 2)
    _, alone = ran(3, dp=1)
    groups = alone.phases["optimizer"] - 16 * P - 2 * BUCKET - alone.input_bytes
    assert groups < 6 * P


def _norms() -> list:
    plan = plan_of(load_model(MODEL), TrainingSetup(stack="deepspeed"), None, ParallelPlan(dp=2))
    structure, _ = plan.structure(False)
    return [leaf for leaf in structure.leaves if "norm" in leaf.name]


# DeepSpeed's estimators, formulas as documented (docs/code-docs/source/memory.rst;
# runtime/zero/stage_1_and_2.py estimate_zero2_model_states_mem_needs, stage3.py
# estimate_zero3_model_states_mem_needs).


def estimated_zero2(parameters: int, gpus: int) -> int:
    """2 of parameters, and over the GPUs 2 + 4 of gradients, 4 + 8 of copies and moments."""
    return 2 * parameters + int(18 * parameters / gpus)


def estimated_zero3(parameters: int, largest: int, gpus: int) -> int:
    """18 bytes over the GPUs, and the largest layer with its gradient in 16 bit."""
    return 4 * largest + int(18 * parameters / gpus)


def test_the_documented_examples_of_the_estimators():
    """T5-3B, printed as 2851M parameters and 32M of the largest layer, on 8 GPUs: 6.10 GB (2^30)."""
    assert estimated_zero3(2_851_000_000, 32_000_000, 8) / 2**30 == pytest.approx(6.10, abs=0.01)


@pytest.mark.parametrize("gpus", [1, 4, 8, 64])
def test_states_agree_with_deepspeeds_estimator_of_stage_2(gpus):
    _, memory = ran(2, dp=gpus)
    found = sum(states(memory).values()) + 4 * P // gpus  # the step's fp32 gradients
    assert found == pytest.approx(estimated_zero2(P, gpus), rel=1e-4)


@pytest.mark.parametrize("gpus", [4, 8, 64])
def test_states_agree_with_deepspeeds_estimator_of_stage_3(gpus):
    """The estimator leaves the 16-bit gradients' parts out: 2 + 12 + 4 bytes."""
    _, memory = ran(3, dp=gpus)
    held = states(memory)
    found = held["parameters"] + held["optimizer"] + 4 * P // gpus
    assert found == pytest.approx(estimated_zero3(P, 0, gpus), rel=1e-3)


def test_every_stage_needs_no_more_than_the_one_before():
    """On a model well above the buckets' 1 GB, at the same batch."""
    setup = TrainingSetup(stack="deepspeed", recompute="full", seq_len=2048)
    peaks = [
        step_memory(
            plan_of(load_model("llama-3.1-8b"), setup, None, ParallelPlan(dp=8, zero=zero))
        ).peak_bytes
        for zero in range(4)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 3 * peaks[3]


def test_accumulation_keeps_whole_gradients_in_stage_1_and_parts_in_stage_2():
    """Stage 1: 2P and the bucket from the first micro-batch on; stage 2: 2P/8 more."""
    for zero, more in ((1, 2 * P + 2 * BUCKET), (2, 2 * P / 8)):
        once, often = (ran(zero, grad_accum_steps=n)[1].phases["forward"] for n in (1, 4))
        assert near(often - once, more)


def test_one_rank_gathers_nothing():
    plan, memory = ran(3, dp=1)
    assert memory.breakdown["gathered"] == 0
    assert len(plan.strategy.injectors(plan)) == 1


def test_a_tied_head_is_gathered_twice_but_counted_once():
    _, memory = ran(3)
    assert near(memory.states.parameter_bytes, 2 * P / 8)


def test_the_allocator_replays_all_stages():
    """Allocated is what is requested, rounded: nothing is lost between the two readings."""
    for zero in range(4):
        for accumulation in (1, 3):
            setup = TrainingSetup(
                stack="deepspeed", seq_len=512, recompute="full", grad_accum_steps=accumulation
            )
            memory = estimate(MODEL, setup, parallel=ParallelPlan(dp=8, zero=zero), gpu="h100-80gb")
            over = memory.memory.breakdown.rounding
            assert 0 <= over < 0.01 * memory.memory.peak_allocated_bytes, (zero, accumulation)


REFUSED = {
    "tp": ({}, {"tp": 2}, "valid: 1"),
    "pp": ({}, {"pp": 2}, "valid: 1"),
    "fsdp": ({}, {"dp": 2, "fsdp": True}, "--zero 3"),
    "shard": ({}, {"dp": 4, "zero": 3, "shard": 2}, "fsdp"),
    "precision": ({"precision": "bf16"}, {}, "bf16-mixed"),
    "optimizer": ({"optimizer": "muon"}, {}, "adamw"),
    "optimizer_dtype": ({"optimizer_dtype": "bf16"}, {}, "fp32"),
    "set_to_none": ({"set_to_none": False}, {}, "DeepSpeed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_stack_does_not_run_is_refused_in_one_line(what):
    setup, parallel, valid = REFUSED[what]
    with pytest.raises(ConfigError, match=what) as caught:
        plan_of(
            load_model(MODEL), TrainingSetup(stack="deepspeed", **setup), None,
            ParallelPlan(**parallel),
        )  # fmt: skip
    assert valid in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torch_optimizer_has_its_own_temporaries():
    """FusedAdam works in place; torch's foreach AdamW makes a square root of the part's size."""
    fused, foreach = (ran(1, dp=2, optimizer_impl=impl)[1] for impl in (None, "foreach"))
    assert near(foreach.phases["optimizer"] - fused.phases["optimizer"], (4 - 2) * P / 2)
