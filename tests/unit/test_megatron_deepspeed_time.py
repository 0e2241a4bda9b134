"""Megatron under DeepSpeed, what its micro-batches take: sums of gradients, odd heads, stages."""

from __future__ import annotations

import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.ranks import chunk_plan
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import Size
from memcalc.engine.states import all_leaves
from memcalc.engine.timing.copies import copies_of
from memcalc.engine.timing.exchanges import exchanges_of, sends_in_turn
from memcalc.engine.timing.op_time import compute_time
from memcalc.engine.timing.step_time import step_time
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import TrainingSetup
from tests.unit.megatron_support import gpt


def plan_with(width: int = 128, heads: int = 16, stack: str = "megatron-deepspeed", **more) -> Plan:
    """Two layers of these heads, eager attention over 2048 tokens."""
    hidden = width * heads
    config = gpt(
        name="small", num_hidden_layers=2, hidden_size=hidden, intermediate_size=4 * hidden,
        head_dim=width, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=2048, num_position_rows=2048,
    )  # fmt: skip
    fields = {"precision": "bf16-mixed", "attention": "eager", "seq_len": 2048, **more}
    return plan_of(config, TrainingSetup(stack=stack, **fields), None, ParallelPlan(dp=2))


def attention(gpu: str, width: int, heads: int, **more) -> float:
    time = compute_time(plan_with(width, heads, **more), rates_of(load_gpu(gpu)[0]))
    return sum(op.seconds for op in time.ops if op.op == "attention")


def test_every_micro_batch_adds_its_gradients_in_fp32():
    """update_hp_grads: to fp32 reads 2 and writes 4 bytes a parameter, add_ moves 12."""
    plan = plan_with(grad_accum_steps=4)
    (row,) = copies_of(plan)
    parameters = sum(size.value(plan.values) for size in _sizes(plan))
    assert (row.op, row.direction) == ("add_gradients", "backward")
    assert row.moved == 18 * parameters
    assert row.kernels == 2 * len(_sizes(plan))
    time = compute_time(plan, rates_of(load_gpu("a100-80gb")[0]))
    (op,) = (op for op in time.ops if op.op == "add_gradients")
    assert op.seconds >= row.moved / 2.039e12


def _sizes(plan: Plan) -> list[Size]:
    structure, runs = plan.structure(True)
    return [leaf.numel for leaf in all_leaves(structure, runs)]


def test_fp16_adds_in_16_bit_where_gradients_are():
    assert copies_of(plan_with(precision="fp16-mixed", grad_accum_steps=4)) == ()


@pytest.mark.parametrize("width", [108, 150])
def test_heads_of_odd_widths_miss_tensor_cores(width):
    """Views of one projection that begin at no multiple of 16 bytes: products at an fp32 rate."""
    flops = 12 * 2 * 16 * 2048**2 * width  # two layers of six products
    products = flops / 19.5e12
    even = attention("a100-80gb", width - width % 8 + 8, 16)
    odd = attention("a100-80gb", width, 16)
    assert products < odd - even * 0.9 < 2.5 * products  # a tile is 64 or 128 wide


def test_heads_of_16_bytes_and_other_stacks_run_on_tensor_cores():
    assert attention("a100-80gb", 112, 16) < 1.1 * attention("a100-80gb", 128, 16)
    other = attention("a100-80gb", 150, 16, stack="megatron")
    assert attention("a100-80gb", 150, 16) > 2 * other


def staged(stack: str, pp: int = 4, **layout) -> Plan:
    """Eight layers on four stages, 32 micro-batches of 2048 tokens."""
    config = gpt(
        name="small", num_hidden_layers=8, hidden_size=2048, intermediate_size=8192, head_dim=128,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=2048,
        num_position_rows=2048, tie_word_embeddings=False,
    )  # fmt: skip
    setup = TrainingSetup(stack=stack, seq_len=2048, grad_accum_steps=32, grad_clip=0)
    return plan_of(config, setup, None, ParallelPlan(pp=pp, **layout))


def exchanged(plan: Plan, chunk: int) -> set[tuple[str, str, str, int, int]]:
    """(axis, kind, when, bytes, calls) of what a stage does for its neighbours."""
    device = device_of(load_gpu("a100-80gb")[0])
    rates = rates_of(load_gpu("a100-80gb")[0])
    return {
        (one.axis, one.kind, one.when, one.call_bytes, one.calls)
        for one in exchanges_of(chunk_plan(plan, chunk), device, rates)
        if one.axis == "pp" or one.kind == "all_gather"
    }


def test_stages_send_parts_that_the_next_gathers():
    """PipelineEngine: forward gathers its input; backward its own output and its gradient."""
    stream = 2048 * 2048 * 2
    sends = {("pp", "send", when, stream // 4, 1) for when in ("forward", "backward")}
    gathers = {
        ("tp", "all_gather", "forward", stream, 1),
        ("tp", "all_gather", "backward", stream, 2),
    }
    assert exchanged(staged("megatron-deepspeed", tp=4), 1) == sends | gathers
    whole = {("pp", "send", when, stream, 1) for when in ("forward", "backward")}
    assert exchanged(staged("megatron-deepspeed"), 1) == whole
    assert exchanged(staged("megatron", tp=4, sp=False), 1) == whole


@pytest.mark.parametrize(("stack", "turns"), [("megatron-deepspeed", 2), ("megatron", 1)])
def test_stages_of_1f1b_wait_for_what_they_send(stack, turns, monkeypatch):
    """The last stage, with the head, takes longest: it sends a gradient a micro-batch, and receives.

    Megatron does both at once, DeepSpeed one after the other.
    """
    device = device_of(load_gpu("a100-80gb")[0])
    rates = rates_of(load_gpu("a100-80gb")[0])
    plan = staged(stack)
    time = step_time(plan, device, rates)
    sending = next(one for one in time.exchanges if one.axis == "pp")
    once = sending.seconds / sending.calls
    monkeypatch.setattr("memcalc.engine.timing.step_time.sends_in_turn", lambda plan: 0)
    beside = step_time(plan, device, rates)
    assert time.step_s - beside.step_s == pytest.approx(turns * once * 32, rel=0.1)


def test_interleaved_stages_and_other_stacks_do_not_wait():
    assert sends_in_turn(staged("megatron", vpp=2, schedule="interleaved")) == 0
    assert sends_in_turn(staged("torch")) == 0
    assert sends_in_turn(staged("megatron")) == 1
