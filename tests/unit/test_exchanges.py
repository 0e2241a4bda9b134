"""Exchanges of ranks with the same weights, and of stages: bytes against traffic.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.parallel.network import traffic
from memcalc.engine.parallel.network.traffic import Copies
from memcalc.engine.parallel.ranks import chunk_plan
from memcalc.engine.timing.exchanges import between_stages_s
from memcalc.engine.timing.exchanges_shards import shards_of
from tests.unit.exchanges_support import (
    SPARSE,
    TINY,
    H,
    S,
    closed,
    elements,
    found,
    made,
    priced,
    sent,
)


@pytest.mark.parametrize(
    "stack", ["torch", "hf", "megatron", "nanotron", "deepspeed", "torchtitan"]
)
def test_one_gpu_exchanges_nothing(stack):
    assert found(made(stack=stack)) == ()


@pytest.mark.parametrize("stack", ["torch", "torchtitan", "hf", "torchtune"])
def test_fsdp_gathers_and_scatters_what_traffic_says(stack):
    """bf16 gathered twice but the root's group, fp32 scattered, every micro-batch."""
    plan = made(stack=stack, layout={"gpus": 8, "fsdp": True})
    root = next(one for one in shards_of(plan, plan.strategy) if one.root)  # type: ignore[arg-type]
    count, copies = elements(plan), Copies(8, 8, micro_batches=3)
    wanted = closed(traffic.fsdp(2 * count, 4 * count, copies, kept_bytes=root.gathered))
    if stack == "torchtitan":  # the last block stays gathered
        block = (2 * count - root.gathered) // 4
        wanted -= 3 * block * 7 // 8
    assert sent(found(plan), plan, "shard") == pytest.approx(wanted, abs=8)


def test_fsdp_blocks_are_listed_one_by_one():
    """Four blocks gathered forward and backward and scattered; the root's group once each way."""
    plan = made(layout={"gpus": 8, "fsdp": True})
    rows = [(one.kind, one.when, one.place, one.calls, one.overlaps) for one in found(plan)]
    assert rows == [
        ("all_gather", "forward", "root", 1, False),
        ("reduce_scatter", "backward", "root", 1, False),
        ("all_gather", "forward", "block", 4, True),
        ("all_gather", "backward", "block", 4, True),
        ("reduce_scatter", "backward", "block", 4, True),
    ]


def test_what_is_kept_gathered_is_not_gathered_again():
    once = made(layout={"gpus": 8, "fsdp": True, "reshard": False})
    fewer = made(layout={"gpus": 8, "fsdp": True, "reshard": 2})
    again = [o for o in found(fewer) if o.when == "backward" and o.kind == "all_gather"]
    assert [one.ranks for one in again] == [2]
    assert not [o for o in found(once) if o.when == "backward" and o.kind == "all_gather"]


def test_hsdp_sums_the_parts_over_its_replicas():
    plan = made(layout={"gpus": 16, "fsdp": True, "shard": 8})
    count, copies = elements(plan), Copies(16, 8, micro_batches=3)
    wanted = traffic.by_group(traffic.fsdp(2 * count, 4 * count, copies))
    assert sent(found(plan), plan, "replica") == pytest.approx(wanted["replica"], abs=20)
    assert {o.tier for o in found(plan) if o.axis == "replica"} == {"network"}
    assert {o.tier for o in found(plan) if o.axis == "shard"} == {"link"}


def test_fsdp1_moves_its_flat_parameters():
    """16 bit both ways: 3 P of 2 bytes a micro-batch but the root's second gather."""
    plan = made(stack="fsdp1", layout={"gpus": 8, "fsdp": True})
    root = next(one for one in shards_of(plan, plan.strategy) if one.root)  # type: ignore[arg-type]
    count, copies = elements(plan), Copies(8, 8, micro_batches=3)
    wanted = closed(traffic.fsdp(2 * count, 2 * count, copies, kept_bytes=root.gathered))
    assert sent(found(plan), plan, "shard") == pytest.approx(wanted, rel=1e-6)


def test_ddp_sums_its_buckets_once_a_step():
    plan = made(layout={"gpus": 8})
    wanted = closed(traffic.ddp(4 * elements(plan), Copies(8, 8, 3, reduce_every=False)))
    assert sent(found(plan), plan, "dp") == pytest.approx(wanted, abs=8)
    *rest, last = found(plan)
    assert last.place == "last" and last.call_bytes == plan.strategy.buckets(plan)[-1]
    assert sum(o.calls for o in rest) + 1 == len(plan.strategy.buckets(plan))


def test_stages_of_zero_move_what_the_paper_says():
    """arXiv:1910.02054 with its reduce-scatter; stage 3 keeps small parameters whole."""
    for stage in (1, 2, 3):
        plan = made(stack="deepspeed", layout={"gpus": 8, "zero": stage}, precision="bf16-mixed")
        count = elements(plan)
        copies = Copies(8, 8, 3, reduce_every=stage > 1)
        wanted = closed(traffic.zero(stage, 2 * count, 2 * count, copies))
        got = sent(found(plan, {"zero_reduction": "reduce-scatter"}), plan, "dp")
        small = (2 * 4 + 1) * H * 2 * 2 * 3 * 7 / 8 if stage == 3 else 0
        assert got == pytest.approx(wanted - small, abs=50), stage


def test_deepspeed_sums_whole_buckets():
    """Stages 1 and 2 of its code: an all-reduce where the paper has a reduce-scatter."""
    plan = made(stack="deepspeed", layout={"gpus": 8, "zero": 1})
    count = elements(plan)
    assert sent(found(plan), plan, "dp") == pytest.approx(3 * 2 * count * 7 / 8, abs=50)


@pytest.mark.parametrize(("stack", "axis"), [("megatron", "dp"), ("nanotron", "dp")])
def test_a_distributed_optimizer_is_zero_1_with_fp32_gradients(stack, axis):
    plan = made(stack=stack, layout={"gpus": 8, "tp": 2, "zero": 1})
    count = elements(plan)
    wanted = closed(traffic.zero(1, 2 * count, 4 * count, Copies(4, 4, 3, reduce_every=False)))
    assert sent(found(plan), plan, axis) == pytest.approx(wanted, abs=8)
    assert {o.when for o in found(plan) if o.axis == axis} == {"step"}


def test_megatron_without_zero_sums_fp32_gradients():
    plan = made(stack="megatron", layout={"gpus": 8})
    wanted = closed(traffic.ddp(4 * elements(plan), Copies(8, 8, 3, reduce_every=False)))
    assert sent(found(plan), plan, "dp") == wanted


def test_stated_overlaps_put_megatrons_gradients_beside_backward():
    layout = {"gpus": 8, "zero": 1}
    plan = made(stack="megatron", layout=layout)
    flags = {"overlap_grad_reduce": True, "overlap_param_gather": True}
    stated = made(stack="megatron", layout={**layout, **flags})
    rows = {(o.kind, o.when, o.overlaps) for o in found(stated) if o.axis == "dp"}
    assert rows == {("reduce_scatter", "backward", True), ("all_gather", "forward", True)}
    assert found(plan, flags) == found(stated)
    assert sent(found(stated), plan, "dp") == pytest.approx(sent(found(plan), plan, "dp"))


def test_experts_are_summed_over_the_ranks_that_share_them():
    """16 GPUs, 8 experts over ep 4: experts' gradients over 4 ranks, the others' over 16."""
    plan = made(SPARSE, stack="megatron", num_layers=2, layout={"gpus": 16, "ep": 4, "zero": 1})
    rows = {o.axis: o.ranks for o in found(plan) if o.when == "step"}
    assert rows == {"dp": 16, "edp": 4}


@pytest.mark.parametrize("stack", ["torch", "megatron", "nanotron"])
def test_stages_send_the_stream_and_its_gradient(stack):
    whole = made(stack=stack, layout={"gpus": 4, "pp": 4}, grad_accum_steps=8)
    rows = [found(chunk_plan(whole, chunk)) for chunk in range(4)]
    size = {one.call_bytes for chunk in rows for one in chunk if one.axis == "pp"}
    assert size == {2 * S * H * (4 if stack == "torch" else 2)}
    for chunk, ends in enumerate([(1, 0), (1, 1), (1, 1), (0, 1)]):
        wanted = closed(traffic.pipeline(size.copy().pop(), *ends, 8))
        assert sent(rows[chunk], whole, "pp") == wanted
    assert between_stages_s(rows[1]) > 0 and between_stages_s(()) == 0


def test_the_tied_embedding_is_summed_by_first_and_last_stage():
    tied = replace(TINY, tie_word_embeddings=True)
    whole = made(tied, stack="megatron", layout={"gpus": 4, "pp": 4}, grad_accum_steps=8)
    of = [[o for o in found(chunk_plan(whole, c)) if o.axis == "embedding"] for c in range(4)]
    assert [len(rows) for rows in of] == [1, 0, 0, 1]
    table = of[0][0].call_bytes
    assert table == 4 * whole.values["V"] * H
    assert of[0][0].sent_bytes == traffic.tied_embedding(table)[0].sent_bytes


@pytest.mark.parametrize(("node", "tier"), [(8, "link"), (4, "link"), (2, "network")])
def test_ends_of_a_pipeline_in_one_node_use_its_links(node, tier):
    tied = replace(TINY, tie_word_embeddings=True)
    layout = {"gpus": 4, "pp": 4, "gpus_per_node": node}
    whole = made(tied, stack="megatron", layout=layout, grad_accum_steps=8)
    assert {o.tier for o in found(chunk_plan(whole, 0)) if o.axis == "embedding"} == {tier}


def test_clipping_sums_one_number_over_the_parts():
    plan = made(layout={"gpus": 8, "fsdp": True}, grad_clip=True)
    (norm,) = [o for o in found(plan) if o.axis == "norm"]
    assert (norm.kind, norm.call_bytes, norm.ranks, norm.when) == ("all_reduce", 4, 8, "step")
    assert norm.seconds < 1e-3


def test_nanotron_copies_gathered_parts_one_by_one():
    """zero 1: a copy for every parameter of every rank, launched from Python; twice the ranks, twice that."""
    of = {n: made(stack="nanotron", layout={"gpus": n, "zero": 1}) for n in (8, 16)}
    rows = {n: next(o for o in found(plan) if o.kind == "all_gather") for n, plan in of.items()}
    parameters = 6 * 4 + 3  # of each block, and embedding, final norm, head
    launch_s = priced(device_of("h100-80gb")).launch_s
    assert rows[8].copy_s >= (parameters + 2) * 8 * launch_s
    more = rows[16].copy_s - rows[8].copy_s
    assert more == pytest.approx((parameters + 2) * 8 * launch_s, rel=0.35)
