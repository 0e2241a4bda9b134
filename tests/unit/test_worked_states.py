"""Worked cases W: rules of thumb on weights and states, sizes of files, what fits a card.

GB is 10^9 bytes, GiB 2^30. Tables of spring 2023 hold for the formats of that time: today's are smaller and
not errors.
"""

from __future__ import annotations

import math

import pytest

from benchmarks.worked.case import Case
from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.kernel_choice import PRECISIONS
from memcalc.engine.results import Estimate
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.weights import load_weights
from memcalc.units import GIB
from tests.unit.test_weight_files import weights
from tests.unit.worked_support import cases, hold

GB = 10**9
MODELS = ("llama-7b", "llama-13b", "llama-33b", "llama-65b")
ALL_STATES = ("parameters", "gradients", "optimizer", "master")


def run(model: str, **setup: object) -> Estimate:
    return estimate(model, TrainingSetup(seq_len=128, **setup), allocator=False)  # type: ignore[arg-type]


@cases("W")
def test_case(case: Case) -> None:
    hold(case)


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed", "bf16-master"])
def test_parts_of_sixteen_bytes_a_parameter(precision):
    """2 + 2 + 8 and a master copy of 4 (arXiv:1910.02054, sec. 3.1); autocast has 4 + 4 + 8."""
    result = run("llama-7b", precision=precision)
    parts = [result.memory.states[name] / result.model.parameters for name in ALL_STATES]
    assert parts == ([2, 2, 8, 4] if precision == "bf16-master" else [4, 4, 8, 0])


def test_int8_matrices_hold_one_byte_and_take_no_gradient():
    """W4 has one byte for every element of every state, gradients and moments among them."""
    part = load_weights("int8").packing("int8").parts[0]
    assert part.bytes_of(1000, 1000) == pytest.approx(10**6, rel=0.01)
    tuned = TrainingSetup(stack="hf", precision="bf16", seq_len=128, peft=PeftSetup(weights="int8"))
    result = estimate("llama-7b", tuned, allocator=False)
    assert result.model.trainable_parameters < 0.001 * result.model.parameters
    assert result.memory.states["gradients"] == 4 * result.model.trainable_parameters


def test_models_on_either_side_of_an_eighty_gigabyte_card():
    """W7: 32.5 billion parameters load in fp16, 41.8 billion do not."""
    assert run("llama-33b", precision="bf16").memory.states["parameters"] < 80 * GB
    assert run("falcon-40b", precision="bf16").memory.states["parameters"] > 80 * GB


@pytest.mark.parametrize(
    ("fmt", "sizes"),
    [
        ("nf4", (3.60, 6.71, 16.22, 32.09)),  # embedding and head in fp16
        ("int8", (6.53, 12.44, 30.71, 61.32)),
        ("gguf:Q4_0", (3.56, 6.86, 17.09, 34.27)),  # the head in Q6_K
    ],
)
def test_w9_todays_formats_are_smaller(fmt, sizes):
    found = [round(weights(model, fmt).resident_bytes / GIB, 2) for model in MODELS]
    assert found == list(sizes)


def test_w11_cards_of_32_gigabytes_for_65_billion_parameters():
    """130.6 GB: five cards in decimal; four of 31.75 to 32.0 GiB hold it with 1 GiB a card or less."""
    size = weights("llama-65b", "fp16").file_bytes
    assert size / GB == pytest.approx(130.6, abs=0.05)
    assert math.ceil(size / (32 * GB)) == 5
    assert size < 4 * 31.75 * GIB, "four cards load it"
    fullest = 20 * (size - 2 * 32_000 * 8192 * 2) / 80 + 32_000 * 8192 * 2
    assert fullest / GIB == pytest.approx(30.6, abs=0.1)
    assert 31.75 - fullest / GIB < 1.5, "too little to serve"


def test_w11_five_stages_leave_each_card_room():
    setup = TrainingSetup(precision="bf16", seq_len=16, grad_accum_steps=8)
    layout = ParallelPlan(pp=5)
    result = estimate("llama-65b", setup, parallel=layout, gpu="v100-32gb", allocator=False)
    held = [stage.states["parameters"] for stage in result.stages]
    assert sum(held) == 2 * result.model.parameters
    assert (result.memory.usable_bytes or 0) - max(held) > 6 * GIB


def test_w12_the_base_of_65_billion_parameters_in_four_bits():
    """34.5 GB with double quantisation, embedding and head in fp16."""
    assert weights("llama-65b", "nf4").resident_bytes / GB == pytest.approx(34.5, abs=0.1)


def test_w15_a_gpu_of_32_with_the_optimizer_on_the_host():
    """ZeRO-3: parameters of 2 bytes stay, 10.9 GB; 12 of AdamW's, 4 of gradients and 2 are there."""
    setup = TrainingSetup(seq_len=2048, recompute="full", stack="deepspeed")
    layout = ParallelPlan(gpus=32, zero=3, offload="optimizer")
    result = estimate("gpt-3-175b", setup, parallel=layout, gpu="a100-80gb", allocator=False)
    memory = result.memory
    assert memory.peak_allocated_bytes < 30 * GB
    assert memory.states["parameters"] / GB == pytest.approx(175 * 2 / 32, rel=0.01)
    assert memory.host_bytes / GB == pytest.approx(175 * 18 / 32, rel=0.01)


@pytest.mark.parametrize("pp", [8, 4])
def test_w15_states_as_megatron_divides_them(pp):
    """18 bytes a parameter over 64 GPUs are 49 GB each; over 32 98 GB, above 80 GiB alone."""
    setup = TrainingSetup(stack="megatron", seq_len=2048, grad_accum_steps=8, recompute="full")
    layout = ParallelPlan(tp=8, pp=pp)
    result = estimate("gpt-3-175b", setup, parallel=layout, allocator=False)
    held = sum(sum(stage.states.values()) for stage in result.memory.stages) / pp
    assert held / GB == pytest.approx(18 * 174.6 / (8 * pp), rel=0.01)


def test_tf32_is_fp32_in_memory():
    """W16: 1 sign + 8 exponent + 10 mantissa = 19 significant bits, kept in 32."""
    precision = PRECISIONS["tf32"]
    assert ITEMSIZE[precision.param_dtype] == ITEMSIZE[precision.compute_dtype] == 4
    tf32, fp32 = (run("llama-3.2-1b", precision=name) for name in ("tf32", "fp32"))
    assert tf32.memory.to_dict() == fp32.memory.to_dict()
    assert any("19 significant bits" in said for said in tf32.assumptions)
