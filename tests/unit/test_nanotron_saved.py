"""What nanotron's layer and loss keep for backward, against counts by hand, to the byte."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.unit.megatron_support import llama

S, H, F, A, D, V = 1024, 2048, 8192, 32, 64, 4096
RSTD, ROW_ENDS, STATE = 2 * 4, 2 * 4, 16  # fp32 a position; int32 a sequence and one more; bytes


def small(**changes: Any) -> Any:
    fields = {
        "hidden_size": H, "intermediate_size": F, "num_hidden_layers": 4, "vocab_size": V,
        "num_attention_heads": A, "num_key_value_heads": A, "head_dim": D,
    }  # fmt: skip
    return llama(**fields | changes)


def nanotron(
    config: Any, parallel: ParallelPlan | None = None, **setup: Any
) -> tuple[Plan, StepMemory]:
    stated = {"stack": "nanotron", "seq_len": S, "micro_batch_size": 1} | setup
    plan = plan_of(config, TrainingSetup(**stated), None, parallel)
    return plan, step_memory(plan)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_layer_keeps_20h_8f_and_the_kernels_tensors(batch):
    """x, norm out, x, norm out (8h); q, k, v of which q is a view (6h), k and v again (4h), out (2h);
    gate and up 4f, silu 2f, product 2f; log-sum-exp 4a, two statistics.
    """
    _, memory = nanotron(small(), micro_batch_size=batch)
    tokens = S * batch
    expected = tokens * (20 * H + 8 * F + 4 * A + RSTD) + ROW_ENDS * (batch + 1) + STATE
    assert memory.saved_per_layer_bytes == expected


def test_grouped_heads_keep_queries_of_their_own():
    """q 2ad, k and v together 4kd, out 2ad: the copies they came from are gone."""
    k = 8
    _, memory = nanotron(small(num_key_value_heads=k))
    heads = 2 * H + 4 * k * D + 2 * H
    expected = S * (8 * H + heads + 8 * F + 4 * A + RSTD) + ROW_ENDS * 2 + STATE
    assert memory.saved_per_layer_bytes == expected


def test_sequence_parallel_ranks_keep_a_part_of_everything():
    tp = 4
    _, memory = nanotron(small(), ParallelPlan(tp=tp))
    expected = S * (20 * H + 8 * F + 4 * A + RSTD) // tp + ROW_ENDS * 2 + STATE
    assert memory.saved_per_layer_bytes == expected


def test_all_reduce_ranks_keep_the_stream_and_normed_rows_whole():
    tp = 4
    _, memory = nanotron(small(), ParallelPlan(tp=tp, sp=False))
    expected = S * (8 * H + (12 * H + 8 * F + 4 * A) // tp + RSTD) + ROW_ENDS * 2 + STATE
    assert memory.saved_per_layer_bytes == expected


def test_full_recomputation_keeps_the_stream():
    _, memory = nanotron(small(), recompute="full")
    assert memory.saved_per_layer_bytes == 2 * S * H


def test_the_loss_keeps_a_softmax_of_its_own_and_peaks_at_two_fp32_copies_of_the_logits():
    _, memory = nanotron(small(vocab_size=131072))
    outside = memory.saved_bytes - 4 * memory.saved_per_layer_bytes
    final = 2 * S * H * 2 + 4 * S  # the stream and the normed rows, and the norm's statistic
    assert outside - final == 4 * S * 131072 + (1 + 8) * S + 4  # mask and target, the loss
    more = memory.phases["loss"] - memory.phases["forward"]  # fp32 twice; before, 16 bit and fp32
    assert 2 * S * 131072 <= more < 2 * S * 131072 + 64 * S


def test_gradients_of_a_micro_batch_are_gone_after_it():
    """Peak of backward: 16-bit gradients beside the fp32 buffer; none of them at the optimizer."""
    plan, memory = nanotron(small(), grad_accum_steps=4, optimizer="adamw")
    elements = memory.states.parameters
    held = 2 * elements + 4 * elements + 12 * elements
    assert held <= memory.phases["optimizer"] < held + 2 * elements
    assert plan.keeps_gradients and memory.states.gradient_bytes == 4 * elements
