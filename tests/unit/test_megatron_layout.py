"""A Megatron rank's dims: what each degree divides, what stays whole, and that the parts make the whole."""

from __future__ import annotations

import pytest

from memcalc.engine.parallel.megatron.megatron_layout import padded_vocabulary
from memcalc.engine.parallel.megatron.megatron_rules import expert_copies
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import deepseek, llama, megatron


def dims(layout: dict[str, object], config=None, **setup: object) -> dict[str, int]:
    plan, _ = megatron(llama() if config is None else config, ParallelPlan(**layout), **setup)
    return plan.values


def test_tensor_parallelism_divides_heads_columns_and_padded_vocabulary():
    found = dims({"tp": 8, "sp": False})
    assert [found[name] for name in "akgdf"] == [8, 1, 8, 128, 28672 // 8]
    assert found["V"] == 129024 // 8  # the next multiple of 1024
    assert found["s"] == found["s_t"] == 2048


def test_sequence_parallelism_divides_the_stream_and_context_parallelism_all_positions():
    found = dims({"tp": 2, "cp": 4}, seq_len=32768)
    assert (found["s"], found["s_t"]) == (8192, 4096)


def test_sequence_parallelism_is_on_beside_tensor_parallelism_unless_said():
    assert megatron(llama(), ParallelPlan(tp=2))[0].parallel.sp is True
    assert megatron(llama())[0].parallel.sp is False


@pytest.mark.parametrize(
    ("rows", "tp", "stored"),
    [(32000, 1, 32000), (50257, 1, 50304), (128256, 8, 129024), (102400, 2, 102400), (1, 4, 512)],
)
def test_vocabularies_are_padded_to_128_rows_a_rank(rows, tp, stored):
    """GPT-2's 50,257 is stored as 50,304: the example of Megatron-LM's own logs."""
    assert padded_vocabulary(rows, tp) == stored


def test_experts_over_their_ranks():
    """256 experts of width 2048, 8 a token: 64 a rank at ep 4, half of each at etp 2."""
    found = dims({"tp": 2, "dp": 4, "ep": 4}, deepseek())
    assert [found[name] for name in "emn"] == [64, 1024, 1024]
    assert (found["R_s"], found["R_p"], found["R"]) == (1024 * 8, 1024 * 8, 2048 * 8)
    whole = dims({"tp": 2, "dp": 4, "ep": 4, "etp": 1}, deepseek())
    assert [whole[name] for name in ("e", "m", "n", "R")] == [64, 2048, 1024, 1024 * 8]


@pytest.mark.parametrize(
    ("layout", "copies"),
    [
        ({"dp": 8, "ep": 8}, 1),
        ({"dp": 8, "ep": 4}, 2),
        ({"tp": 2, "dp": 4, "ep": 4}, 1),
        ({"tp": 2, "dp": 4, "ep": 4, "etp": 1}, 2),
        ({"cp": 2, "dp": 4, "ep": 8}, 1),  # ep is folded into dp x cp
        ({"tp": 4, "pp": 8, "dp": 4, "ep": 2}, 2),
    ],
)
def test_copies_of_an_expert_are_what_its_ranks_leave(layout, copies):
    """Parallel folding: tp x cp x dp = etp x ep x copies."""
    assert expert_copies(ParallelPlan(**layout)) == copies


@pytest.mark.parametrize("ep", [1, 2, 4, 8, 16])
def test_parameters_of_all_ranks_make_the_model(ep):
    """ep ranks hold the rest once each and the experts together."""
    config = load_model("qwen3-30b-a3b")
    whole = megatron(config)[1].states.parameters
    experts = 48 * 128 * 3 * 2048 * 768
    held = megatron(config, ParallelPlan(dp=16, ep=ep))[1].states.parameters
    assert held == whole - experts + experts // ep


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_context_parallel_ranks_save_a_part_and_keep_all_parameters(method):
    _, alone = megatron(llama(), seq_len=8192)
    _, rank = megatron(llama(), ParallelPlan(cp=4, cp_method=method), seq_len=8192)
    assert rank.states.parameters == alone.states.parameters
    assert alone.saved_bytes / 4 <= rank.saved_bytes < alone.saved_bytes / 3
