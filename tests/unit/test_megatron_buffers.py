"""Megatron's buffers: padding of parameters and gradients, dummy gradients, workspaces, by hand."""

from __future__ import annotations

import pytest

from memcalc.engine.parallel.megatron.megatron_buffers import bucket_elements, buffer_elements
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import deepseek, gpt, llama, megatron

WORKSPACE = 32 * 1024 * 1024 + 1024
S, H, A, K, D, F, V, LAYERS = 2048, 8192, 64, 8, 128, 28672, 128256, 12


@pytest.mark.parametrize(
    ("elements", "ranks", "bucket", "expected"),
    [
        ([100, 200], 4, None, 384),  # 200, from 256 on 100, up to a multiple of 128
        ([100, 200], 96, None, 384),  # of lcm(96, 128)
        ([100, 200], 5, None, 640),
        ([100, 200], 4, 150, 384),  # the bucket of 200 ends at 256
        ([100, 200], 5, 150, 1280),  # each of two buckets ends at a multiple of 640
        ([64, 64, 64], 1, 128, 256),
        ([], 4, None, 0),
    ],
)
def test_padding_of_a_sharded_buffer(elements, ranks, bucket, expected):
    """Parameters begin at multiples of 64 elements, last first; buckets end at lcm(ranks, 128)."""
    assert buffer_elements(elements, ranks, True, bucket) == expected


def test_a_buffer_of_whole_states_has_no_padding():
    assert buffer_elements([100, 200], 4, False) == 300


def test_buckets_hold_forty_million_elements_or_a_million_a_rank():
    """Published defaults of Megatron-Core's DistributedDataParallel."""
    assert (bucket_elements(8), bucket_elements(64)) == (40_000_000, 64_000_000)


def buffers(config, layout: dict[str, object] | None = None, **setup: object) -> int:
    plan, _ = megatron(config, ParallelPlan(**layout or {}), **setup)
    return plan.strategy.fixed_bytes(plan)["buffers"]


def test_one_dummy_gradient_for_each_shape_of_a_linear():
    """qkv, output, gate and up, down, head; 12 layers share them; 4 bytes an angle."""
    shapes = H * (A + 2 * K) * D + H * A * D + 2 * H * F + H * F + V * H
    assert buffers(llama()) == WORKSPACE + 2 * shapes + 4 * S * D


def test_shapes_are_a_tensor_parallel_ranks_and_rows_are_gathered_for_the_head():
    t = 8
    rows = -(-V // (128 * t)) * 128
    linears = H * (A + 2 * K) * D + H * A * D + 2 * H * F + H * F
    gathered = 2 * S * H
    expected = WORKSPACE + 2 * (linears // t + rows * H) + gathered + 4 * S * D
    assert buffers(llama(), {"tp": t}) == expected


def test_a_sharded_run_pads_parameters_and_fp32_gradients():
    """15 ranks of an optimizer: the buffer ends at a multiple of 1920; 2 + 4 bytes an element."""
    _, memory = megatron(llama())
    padding = -memory.states.parameters % 1920
    assert padding
    more = buffers(llama(), {"dp": 15, "zero": 1}) - buffers(llama(), {"dp": 15})
    assert more == 6 * padding


def test_learned_positions_have_no_angles_and_eager_attention_a_buffer_of_scores():
    """GlobalMemoryBuffer: 2 bytes a score of every head."""
    assert buffers(gpt(), attention="eager") - buffers(gpt()) == 2 * 64 * S * S


def test_experts_are_matrices_of_one_shape_with_four_workspaces_more():
    """DeepSeek: an expert's and the shared expert's matrices are equal; the router makes its own."""
    h, heads, experts = 7168, 128, 256
    latent = h * 1536 + 1536 * heads * 192 + h * 576 + 512 * heads * 256 + heads * 128 * h
    shapes = latent + 3 * h * 18432 + 3 * h * 2048 + 129280 * h
    tables = 3 * S * experts * (2 + 1)
    assert buffers(deepseek()) == 5 * WORKSPACE + 2 * shapes + tables + 4 * S * 64


def test_chunks_of_one_rank_share_all_but_padding_and_dispatchers():
    """A rank with two chunks: dummies, workspaces and angles once."""
    plan, _ = megatron(llama())
    one = plan.strategy.fixed_bytes_of_rank([plan])
    two = plan.strategy.fixed_bytes_of_rank([plan, plan])
    assert one == two
    plan, _ = megatron(deepseek())
    tables = 3 * S * 256 * 3
    two = plan.strategy.fixed_bytes_of_rank([plan, plan])["buffers"]
    assert two - plan.strategy.fixed_bytes(plan)["buffers"] == tables
