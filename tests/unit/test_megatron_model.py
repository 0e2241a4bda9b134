"""Around Megatron's layers: embedding, norm, head, losses, ends of a pipeline, by hand."""

from __future__ import annotations

import pytest

from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.ranks import chunk_plan
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import gpt, llama, megatron

S, H, V = 2048, 8192, 128256


def around(config, layout: dict[str, object] | None = None, **setup: object) -> int:
    """Bytes kept for backward outside the layers."""
    _, memory = megatron(config, ParallelPlan(**layout or {}), **setup)
    return memory.saved_bytes - config.num_hidden_layers * memory.saved_per_layer_bytes


def test_a_fused_loss_keeps_the_logits():
    """Final norm's input, its result for the head, a statistic: 4h + 4 a position; 2V logits; the mean."""
    assert around(llama(), loss="fused") == S * (4 * H + 4) + 2 * S * V + 4


def test_megatrons_own_loss_keeps_an_fp32_softmax():
    """4V, the mask of other ranks' targets (1 byte) and the targets' places (8)."""
    assert around(llama()) == S * (4 * H + 4) + S * (4 * V + 1 + 8) + 4


def test_ranks_of_tensor_parallelism_keep_a_part_of_the_logits():
    """tp 8: the stream a rank's positions, logits of a rank's rows; which ids are others' (1 byte)."""
    own = S // 8
    expected = own * (4 * H + 4) + 2 * S * (129024 // 8) + 4 + S * (1 + 8)
    assert around(llama(), {"tp": 8}, loss="fused") == expected


def test_learned_positions_keep_their_ids_and_dropout_its_mask():
    plain = gpt(embedding_dropout=0.0)
    assert around(gpt(), loss="fused") - around(plain, loss="fused") == S * 6144


def test_the_loss_peaks_with_logits_and_their_fp32_copy():
    """6 bytes a logit where the copy is made; fused, the gradient is written over the logits."""
    _, plain = megatron(llama(), num_layers=1)
    _, fused = megatron(llama(), num_layers=1, loss="fused")
    assert plain.phases["loss"] - fused.phases["loss"] == pytest.approx(4 * S * V, rel=1e-3)
    assert plain.breakdown["gradients"] == fused.breakdown["gradients"]


def test_a_tied_head_is_the_embedding_and_a_copy_on_the_last_stage():
    """One stage: one table. Two: each has one, with gradient and states."""
    tied = gpt(num_hidden_layers=4)
    _, alone = megatron(tied)
    plan, _ = megatron(tied, ParallelPlan(pp=2), grad_accum_steps=2)
    stages = [step_memory(chunk_plan(plan, stage)).states.parameters for stage in range(2)]
    assert sum(stages) == alone.states.parameters + 51200 * 6144
    first = 2 * (12 * 6144 * 6144 + 13 * 6144) + (51200 + 2048) * 6144
    assert stages[0] == first


@pytest.mark.parametrize("sp", [True, False])
def test_stages_are_given_and_give_a_ranks_rows_of_the_stream(sp):
    """(s/t, b, h) with sequence parallelism: what goes between stages is divided too."""
    plan, _ = megatron(llama(), ParallelPlan(pp=2, tp=4, sp=sp), grad_accum_steps=2)
    structure, _ = chunk_plan(plan, 1).structure(True)
    assert structure.handed.received.value(plan.values) == 2 * S * H // (4 if sp else 1)
