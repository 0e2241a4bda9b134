"""Exchanges inside layers: what the ledger enters, against the closed forms of traffic.py."""

from __future__ import annotations

import pytest

from memcalc.engine.parallel.network import traffic
from memcalc.engine.parallel.network.traffic import Attention, Split
from memcalc.engine.plan import Plan
from tests.unit.exchanges_support import (
    SPARSE,
    TINY,
    H,
    S,
    closed,
    found,
    made,
    sent,
)


def block_regions(plan: Plan, ranks: int, forwards: int = 1) -> Split:
    """Two regions a block over the bf16 stream of one micro-batch."""
    return Split(2 * S * H * 2, 2 * 4, ranks, plan.resolved.grad_accum_steps, forwards)


def test_megatron_with_sequence_parallelism_gathers_saved_inputs_again():
    """arXiv:2205.05198: of each region a gather and a scatter each way, and a gather in backward.

    The head is half a region (a gather forward and again, a scatter back), the embedding the other.
    """
    plan = made(stack="megatron", layout={"gpus": 4, "tp": 4})
    split = block_regions(plan, 4)
    wanted = closed(traffic.tensor_parallel(split._replace(regions=split.regions + 1), sp=True))
    small = 3 * (3 * 2 * S * 4 * 2 * 3 / 4)  # three sums of fp32 a position for the loss
    assert sent(found(plan), plan, "tp") == pytest.approx(wanted + small)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("stack", ["megatron", "nanotron"])
def test_without_sequence_parallelism_four_all_reduces_a_block(stack, recompute):
    """arXiv:1909.08053; the embedding's forward and the head's backward are one region more."""
    plan = made(stack=stack, layout={"gpus": 4, "tp": 4, "sp": False}, recompute=recompute)
    split = block_regions(plan, 4, 2 if recompute == "full" else 1)
    wanted = closed(traffic.tensor_parallel(split, sp=False))
    ends = 2 * (2 * S * H * 2) * 2 * 3 // 4 * 3
    small = 3 * (3 * 2 * S * 4 * 2 * 3 / 4)
    assert sent(found(plan), plan, "tp") == pytest.approx(wanted + ends + small)


def test_nanotrons_layers_move_what_megatrons_do():
    of = [made(stack=stack, layout={"gpus": 4, "tp": 4}) for stack in ("nanotron", "megatron")]
    assert sent(found(of[0]), of[0], "tp") == sent(found(of[1]), of[1], "tp")


def test_dtensor_keeps_what_it_gathered():
    """torch's plans: no second gather in backward."""
    plan = made(layout={"gpus": 8, "tp": 4, "sp": True, "fsdp": True})  # fsdp: the stream in bf16
    split = block_regions(plan, 4)
    more = split._replace(regions=split.regions + 1)
    wanted = closed(traffic.tensor_parallel(more, sp=True, gathers_again=False))
    rows = [o for o in found(plan) if o.axis == "tp" and o.kind != "all_reduce"]
    assert sent(tuple(rows), plan, "tp") == pytest.approx(wanted, rel=1e-9)
    assert not any(one.overlaps for one in rows)


def test_products_of_a_linears_backward_run_beside_its_exchanges():
    """Transformer Engine: of a block's six in backward the two row-parallel gathers show."""
    plan = made(stack="megatron", layout={"gpus": 4, "tp": 4})
    rows = [o for o in found(plan) if o.when == "backward" and o.calls == 4]
    assert sum(one.overlaps for one in rows) == 4 and sum(not one.overlaps for one in rows) == 2
    assert all(one.beside_s > 0 for one in rows if one.overlaps)
    alone = [o for o in found(plan, {"tp_beside_products": False}) if o.when == "backward"]
    assert not any(one.overlaps for one in alone)


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_context_parallelism_of_megatron(method):
    """Ring: 3 hops forward, 3 and 4 backward of a rank's keys and values; Ulysses: 8 all-to-alls."""
    plan = made(stack="megatron", layout={"gpus": 4, "cp": 4, "cp_method": method})
    own, width = 2 * S // 4, TINY.head_dim * 2
    kv = 2 * own * TINY.num_key_value_heads * width
    qo = 2 * own * TINY.num_attention_heads * width
    wanted = closed(traffic.context_parallel(Attention(kv, qo, 4, 4, 3), method))
    assert sent(found(plan), plan, "cp") == pytest.approx(wanted)


def test_the_ring_of_torch_gathers_once_and_sends_fp32_gradients():
    """Keys and values once each way, (n-1)/n of all; n hops of their gradients in fp32."""
    plan = made(layout={"gpus": 4, "cp": 4, "fsdp": True})
    kv = 2 * (2 * S // 4) * TINY.num_key_value_heads * TINY.head_dim * 2
    wanted = 3 * 4 * (2 * 3 * kv + 4 * 2 * kv)
    assert sent(found(plan), plan, "cp") == pytest.approx(wanted)
    assert all(o.beside_s > 0 for o in found(plan) if o.axis == "cp")


@pytest.mark.parametrize("stack", ["torch", "megatron"])
def test_experts_rows_go_there_and_back_each_pass(stack):
    """Four all-to-alls a layer of the routed rows; beside them counts and probabilities."""
    layout = {"gpus": 8, "ep": 8, "fsdp": stack == "torch"}
    plan = made(SPARSE, stack=stack, num_layers=2, layout=layout)
    rows = 2 * S * 2 * SPARSE.hidden_size * 2
    wanted = closed(traffic.expert_parallel(rows, calls=2 * 2 * 3, ranks=8))
    assert sent(found(plan), plan, "ep") == pytest.approx(wanted, rel=1e-3)
