"""Bytes a rank sends a step: papers' volumes by hand, and what must be equal between the ways."""

from __future__ import annotations

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.parallel.network import traffic
from memcalc.engine.parallel.network.traffic import Attention, Copies, Split, Traffic

P = 10**6  # bytes of parameters and of gradients, divisible by every group here
EIGHT = Copies(8, 8)


def volume(found: tuple[Traffic, ...]) -> int:
    return sum(one.volume_bytes for one in found)


def sent(found: tuple[Traffic, ...]) -> int:
    return sum(one.sent_bytes for one in found)


@pytest.mark.parametrize(
    ("bytes_each", "gigabytes", "seconds"),
    [(1, 195, 156), (2, 390, 312)],
    ids=["1 byte", "2 bytes"],
)
def test_d5_zero_3_moves_three_times_the_parameters(bytes_each, gigabytes, seconds):
    """D5: 65.0e9 parameters, (n-1)/n left out: 195 GB and 156 s on 10 Gb/s at one byte each.

    The source prints the figures of one byte; at two, which bf16 takes, they double.
    """
    moved = volume(traffic.zero(3, 65 * 10**9 * bytes_each, 65 * 10**9 * bytes_each, EIGHT))
    assert moved == gigabytes * 10**9
    assert traffic.transfer_s(moved, 10e9 / 8) == seconds


def test_zero_3_of_a_profile_takes_its_bytes_from_the_states():
    """LLaMA-65B has 65.3 B parameters; in bf16 a step of one micro-batch moves 391.7 GB."""
    result = estimate("llama-65b", TrainingSetup(precision="bf16", seq_len=128), allocator=False)
    states = result.memory.states
    found = traffic.zero(3, states["parameters"], states["gradients"], EIGHT)
    assert volume(found) == 3 * 2 * result.model.parameters
    assert volume(found) == pytest.approx(391.7e9, rel=1e-4)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_stages_move_what_the_paper_says(stage, times):
    """arXiv:1910.02054, sec. 7: 2 P for data parallelism, stages 1 and 2; 3 P for stage 3."""
    assert volume(traffic.zero(stage, P, P, EIGHT)) == times * P
    assert sent(traffic.zero(stage, P, P, EIGHT)) == times * P * 7 // 8


def test_accumulation_reduces_once_or_every_time():
    """Four micro-batches: DDP and stage 1 may reduce once; stage 2 must four times, stage 3 gather eight."""
    once = Copies(8, 8, micro_batches=4, reduce_every=False)
    every = Copies(8, 8, micro_batches=4)
    assert volume(traffic.ddp(P, once)) == 2 * P and volume(traffic.ddp(P, every)) == 8 * P
    assert volume(traffic.zero(1, P, P, once)) == 2 * P
    assert volume(traffic.zero(2, P, P, once)) == volume(traffic.zero(2, P, P, every)) == 5 * P
    assert volume(traffic.zero(3, P, P, once)) == 12 * P
    assert volume(traffic.fsdp(P, P, once)) == 9 * P  # 4 x 2 gathers, 1 reduction


def test_fsdp_resharded_is_stage_3_and_without_resharding_a_gather_less():
    assert sent(traffic.fsdp(P, P, EIGHT)) == sent(traffic.zero(3, P, P, EIGHT))
    kept = EIGHT._replace(reshard=False)
    assert sent(traffic.fsdp(P, P, kept)) == 2 * P * 7 // 8
    # split over 2 after forward: backward gathers within those 2 only
    assert sent(traffic.fsdp(P, P, EIGHT._replace(reshard=2))) == 2 * P * 7 // 8 + P // 2
    # the root's group is not gathered a second time
    assert volume(traffic.fsdp(P, P, EIGHT, kept_bytes=P // 10)) == 3 * P - P // 10


def test_gathered_in_16_bit_and_reduced_in_32():
    found = traffic.fsdp(2 * P, 4 * P, EIGHT)
    assert [one.call_bytes for one in found] == [2 * P, 2 * P, 4 * P]


def test_hsdp_reduces_the_shard_over_its_replicas():
    """Two groups of 4: within 3 x 3/4 P; between them an all-reduce of a quarter, 2 x 1/2 x P/4."""
    found = traffic.fsdp(P, P, Copies(8, 4))
    assert traffic.by_group(found) == {"shard": 9 * P // 4, "replica": P // 4}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_tensor_parallelism_moves_four_all_reduces_a_block(ranks):
    """Megatron: two all-reduces forward, two backward; (n-1)/n x 2 x 4 activations a block."""
    split = Split(activation_bytes=8 * P, regions=2, ranks=ranks)
    assert sent(traffic.tensor_parallel(split, sp=False)) == 8 * 8 * P * (ranks - 1) // ranks
    # sequence parallelism: the same, and the saved inputs gathered again
    alike = traffic.tensor_parallel(split, sp=True, gathers_again=False)
    assert sent(alike) == sent(traffic.tensor_parallel(split, sp=False))
    again = sent(traffic.tensor_parallel(split, sp=True)) - sent(alike)
    assert again == 2 * 8 * P * (ranks - 1) // ranks


def test_recomputation_runs_forward_twice():
    split = Split(P, regions=2, ranks=2, forwards=2)
    assert volume(traffic.tensor_parallel(split, sp=False)) == 2 * 2 * 3 * P


def test_ring_attention_sends_keys_and_values_round():
    """4 ranks: 3 hops forward, 3 backward, and the gradients 4."""
    ring = traffic.context_parallel(Attention(P, 3 * P, layers=2, ranks=4), "ring")
    assert sent(ring) == 2 * (3 + 3 + 4) * P


def test_ulysses_exchanges_q_k_v_and_the_output():
    """Four all-to-alls forward, four backward, of which 3/4 leaves a rank."""
    found = traffic.context_parallel(Attention(2 * P, 6 * P, layers=1, ranks=4), "ulysses")
    assert sent(found) == 2 * (2 * P + 6 * P) * 3 // 4


def test_experts_exchange_rows_twice_a_pass():
    found = traffic.expert_parallel(8 * P, calls=2, ranks=8)  # one layer, forward and backward
    assert sent(found) == 4 * 7 * P


def test_stages_pass_activations_on_and_gradients_back():
    middle = traffic.pipeline(P, onward=1, backward=1, micro_batches=8)
    first = traffic.pipeline(P, onward=1, backward=0, micro_batches=8)
    assert (sent(middle), sent(first)) == (16 * P, 8 * P)
    assert sent(traffic.tied_embedding(P)) == P


def test_one_rank_sends_nothing():
    alone = Copies(1, 1)
    found = (
        *traffic.ddp(P, alone), *traffic.zero(3, P, P, alone), *traffic.fsdp(P, P, alone),
        *traffic.tensor_parallel(Split(P, 2, 1), sp=True), *traffic.expert_parallel(P, 1, 1),
        *traffic.context_parallel(Attention(P, P, 1, 1), "ring"),
    )  # fmt: skip
    assert sent(found) == 0 and volume(found) == 0
    assert set(traffic.by_group(found).values()) == {0}
