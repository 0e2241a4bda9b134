"""What a Megatron layer keeps for backward, against the formulas of its papers, to the byte.

Korthikanti et al. 2022 (arXiv:2205.05198), table 2, count 16-bit activations and one-byte masks and
leave out the statistics of the two norms: 4 fp32 numbers a position.
"""

from __future__ import annotations

import pytest

from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import gpt, llama, megatron

S, B, H, A, T = 2048, 4, 6144, 64, 8
STATISTICS = 16 * S * B


def saved(how: str, **layout: object) -> int:
    _, memory = megatron(
        gpt(), ParallelPlan(**layout), micro_batch_size=B, recompute=how, attention="eager"
    )
    return memory.saved_per_layer_bytes


def test_one_rank_keeps_34_sbh_and_the_attention_core():
    assert saved("none") == S * B * H * 34 + 5 * A * S * S * B + STATISTICS


def test_tensor_parallel_ranks_keep_10_sbh_and_a_part_of_24():
    """sbh (10 + 24/t + 5as/ht): the stream, norms and masks outside the linears are whole."""
    expected = S * B * H * 10 + (S * B * H * 24 + 5 * A * S * S * B) // T + STATISTICS
    assert saved("none", tp=T, sp=False) == expected


def test_sequence_parallel_ranks_keep_a_part_of_everything():
    """sbh (34/t + 5as/ht)."""
    assert saved("none", tp=T, sp=True) == ((S * B * H * 34 + 5 * A * S * S * B + STATISTICS) // T)


def test_selective_recomputation_leaves_the_core_out():
    """sbh 34/t."""
    assert saved("selective", tp=T, sp=True) == (S * B * H * 34 + STATISTICS) // T


@pytest.mark.parametrize(("sp", "share"), [(False, 1), (True, T)])
def test_full_recomputation_keeps_the_input(sp, share):
    """2 sbh; Megatron's checkpoint keeps its rank's rows of it under sequence parallelism."""
    assert saved("full", tp=T, sp=sp) == 2 * S * B * H // share


def per_position(config, **layout: object) -> float:
    """Bytes a layer keeps for each position of a rank."""
    plan, memory = megatron(config, ParallelPlan(**layout), seq_len=4096)
    return memory.saved_per_layer_bytes / plan.values["s"]


def test_llama_keeps_8h_6f_and_the_kernels_tensors():
    """Two inputs, two normed (8h), q and out 2ad each, k and v 2kd, up 4f, product 2f; fp32: lse, rstd."""
    expected = 8 * 8192 + 2 * 128 * (2 * 64 + 2 * 8) + 6 * 28672 + 4 * 64 + 2 * 4
    assert per_position(llama()) == expected + 16 / 4096  # and the generator's state


def test_ulysses_keeps_the_output_twice():
    """By heads for the kernel's backward, by positions for the output projection: 2ad more."""
    whole, divided = per_position(llama()), per_position(llama(), cp=8, cp_method="ulysses")
    assert divided - 16 / 512 == whole - 16 / 4096 + 2 * 64 * 128


def test_a_ring_keeps_the_last_keys_and_values():
    """q, k v of the last step, the merged output and log-sum-exp: as one rank, and a state a step."""
    whole, divided = per_position(llama()), per_position(llama(), cp=8)
    assert divided - 8 * 16 / 512 == whole - 16 / 4096


def test_queries_and_keys_normed_by_head_keep_their_inputs():
    plain, normed = per_position(llama()), per_position(llama(qk_norm="head"))
    assert normed - plain == (2 * 128 + 4) * (64 + 8)
