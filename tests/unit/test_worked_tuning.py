"""Worked cases P: fine-tuning by few parameters, and what the published figures leave open.

ChatGLM-6B on a V100 of 32 GB as nvidia-smi showed it (https://github.com/hiyouga/ChatGLM-Efficient-Tuning):
padded lengths are not named. T0_3B, mt0-xxl and bloomz-7b1 on an A100 of 80 GB (PEFT's README of early
2023): fp32, AdamW, batch 8, tweets of about 64 tokens, LoRA r 8 with dropout 0.1 on query and value; the rows
with everything on the host are one rank of ZeRO-3 under DeepSpeed 0.8 with its default sizes (1e9 live
elements, 5e7 ahead, one bucket of 5e8), where one rank gathers through buffers as several do. GB is 10^9.
"""

from __future__ import annotations

import pytest

from benchmarks.worked.case import Case, Node, answer
from benchmarks.worked.cases import CASES
from memcalc.engine.estimate import estimate
from memcalc.inputs.training import TrainingSetup
from tests.unit.test_weight_files import weights
from tests.unit.worked_support import cases, hold

GB = 10**9
BY_NUMBER = {case.number: case for case in CASES}


@cases("P")
def test_case(case: Case) -> None:
    hold(case)


def said(number: str, asked: str) -> Node:
    """The JSON of the first command of a figure."""
    figure = next(one for one in BY_NUMBER[number].figures if one.asked.startswith(asked))
    return answer(figure.commands[0])


def test_p2_no_padded_length_gives_all_three() -> None:
    """The source grows by 4 GB for 4 and for 8 added samples; whatever the length, ours twice as fast."""
    for seq in (384, 512):
        used = [
            said("P2", f"batch {batch}, padded to {seq}").memory.device_used_bytes
            for batch in (4, 8, 16)
        ]
        steps = used[1] - used[0], used[2] - used[1]
        assert steps[1] == pytest.approx(2 * steps[0], rel=0.15)


@pytest.mark.parametrize(("fmt", "gigabytes"), [("int8", 6.7), ("nf4", 4.0)])
def test_the_packed_base_of_chatglm_6b(fmt: str, gigabytes: float) -> None:
    """P3: matrices of the layers quantised (5.64e9 elements), the embedding (0.53e9) in fp16."""
    found = weights("chatglm-6b", fmt)
    assert found.resident_bytes / GB == pytest.approx(gigabytes, abs=0.05)
    assert found.quantised_parameters == 28 * (4 * 4096 * 4096 + 2 * 4096 * 16384)


def test_p4_counts_of_p_tuning_v2() -> None:
    for figure in BY_NUMBER["P4"].figures:
        assert answer(figure.commands[0]).model.trainable_parameters == 16 * 28 * 2 * 4096


def test_p5_freezing_all_but_three_mlps() -> None:
    found = said("P5", "fp16")
    assert found.model.trainable_parameters == 402_714_624
    states = found.memory.states
    assert states.gradients + states.optimizer == 12 * 402_714_624


def test_p5_int8_leaves_no_room_for_what_trains() -> None:
    """The published 12 GB hold an int8 base alone."""
    with_states, without = (
        said("P5", asked).memory.device_used_bytes / GB
        for asked in ("int8, padded", "int8, without")
    )
    assert with_states - 16 * 0.402714624 > 12 and with_states - without > 6
    assert without < 16


@pytest.mark.parametrize(
    ("number", "parameters"),
    [("P7", 2_849_757_184), ("P8", 12_921_057_280), ("P9", 7_069_016_064)],
)
def test_states_of_full_fine_tuning(number: str, parameters: int) -> None:
    """16 bytes a parameter in fp32: of the three T0_3B alone fits."""
    found = said(number, "full")
    assert found.model.parameters == parameters
    assert sum(found.memory.states.values()) == 16 * parameters
    assert found.verdict == ("fits" if number == "P7" else "does-not-fit")


@pytest.mark.parametrize("number", ["P7", "P8", "P9"])
def test_lora_fits(number: str) -> None:
    assert said(number, "LoRA").verdict == "fits"


def test_foreach_takes_a_copy_of_the_gradients_more() -> None:
    """P7 in the default foreach AdamW: another case, 59 GB by hand."""
    setup = TrainingSetup(
        seq_len=64, target_seq_len=3, micro_batch_size=8, precision="fp32", stack="hf"
    )
    found = estimate("t0-3b", setup, gpu="a100-80gb").memory.peak_allocated_bytes
    assert found == pytest.approx(59e9, rel=0.05)


@pytest.mark.parametrize("number", ["P8", "P9"])
def test_todays_deepspeed_moves_one_ranks_parts_without_buffers(number: str) -> None:
    """Since 0.9 a vocabulary of 250,000 is on the GPU once less: four bytes of it are 4.1 GB."""
    command = next(f for f in BY_NUMBER[number].figures if "ZeRO-3" in f.asked).commands[0]
    before, now = answer(command), answer(command.replace("deepspeed-0.8", "deepspeed"))
    less = before.memory.peak_allocated_bytes - now.memory.peak_allocated_bytes
    assert 3.9e9 < less < 5.5e9
    assert now.memory.host_bytes == before.memory.host_bytes


def test_w12_is_base_and_adapters_for_the_most_part() -> None:
    """34.5 GB of base and 12.8 GB of adapters: 799,539,200 parameters of 16 bytes."""
    found = said("W12", "512 tokens")
    states, trained = found.memory.states, found.model.trainable_parameters
    assert trained == 64 * 80 * (4 * (8192 + 8192) + 3 * (8192 + 22016))
    adapters = 4 * trained + states.gradients + states.optimizer
    assert adapters == 16 * trained == pytest.approx(12.8e9, rel=0.01)
    assert states.parameters - 4 * trained == pytest.approx(34.5e9, rel=0.01)
    assert found.verdict == "fits"
