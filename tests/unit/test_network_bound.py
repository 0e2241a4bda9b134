"""Worked cases of a network that decides, and arrays against numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc import TrainingSetup
from memcalc.engine.device_side import device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.network import traffic
from memcalc.engine.timing.exchanges import exchanges_of
from memcalc.engine.timing.op_time import compute_time
from memcalc.engine.timing.overlap import exposed, phases_of
from memcalc.inputs.clusters import load_cluster
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.exchanges_support import (
    found,
    made,
    priced,
)


def test_arrays_of_dims_equal_numbers():
    """Bytes with the micro-batch and the sequence as arrays: the scalar ones, element by element."""
    numpy = pytest.importorskip("numpy")
    plan = made(stack="megatron", layout={"gpus": 8, "tp": 4, "zero": 1})
    rows = numpy.array([1, 2, 8])
    many = plan._replace(values={**plan.values, "b": rows})
    for index, b in enumerate((1, 2, 8)):
        single = found(plan._replace(values={**plan.values, "b": b}))
        for one, array in zip(single, found(many), strict=True):
            at = [numpy.broadcast_to(x, 3)[index] for x in (array.seconds, array.call_bytes)]
            assert at == [one.seconds, one.call_bytes]


def zero_3_of_65b(bytes_per_s: float, per_node: int = 8) -> tuple[float, float, float]:
    """(seconds of exchanges, of compute, of those together) of a step of LLaMA-65B over 64 A100s.

    bytes_per_s: of a node's network. One micro-batch of 4 x 2048 tokens a GPU.
    """
    usual = load_cluster("dgx-a100-80gb")
    cluster = replace(usual, nics_per_node=1, nic_bytes_per_s=bytes_per_s)
    device = device_of(None, cluster=cluster)
    setup = TrainingSetup(stack="deepspeed", seq_len=2048, micro_batch_size=4, recompute="full")
    layout = ParallelPlan(gpus=64, zero=3, gpus_per_node=per_node)
    plan, rates = plan_of(load_model("llama-65b"), setup, None, layout), priced(device)
    exchanges, compute = exchanges_of(plan, device, rates), compute_time(plan, rates)
    shown = exposed(exchanges, phases_of(plan, compute), rates)
    alone = sum(one.seconds for one in exchanges)
    work = compute.forward_s + compute.backward_s
    return alone, work, work + sum(shown[:4])


def test_d5_u4_zero_3_over_a_slow_network_waits_for_it():
    """65B, one GPU a node on 10 Gb/s: 3 x 2 bytes x 65.3e9 x 63/64 = 386 GB, 309 s at the full rate.

    At 90 % of it, as rates have it, 343 s; compute is some tens of seconds.
    """
    alone, compute, step = zero_3_of_65b(8 * 10e9 / 8, per_node=1)
    bound = traffic.transfer_s(3 * 2 * 65.3e9 * 63 / 64, 10e9 / 8)
    assert bound == pytest.approx(308.6, rel=0.01)
    assert bound < alone < 1.25 * bound
    assert 10 < compute < 80 and step == pytest.approx(alone, rel=0.25) and step > 4 * compute


def test_u5_where_a_network_ceases_to_limit():
    """A node's 64 Gb/s: the network decides; 800 Gb/s: compute does. Between them step times only fall."""
    rates = [gigabits * 1e9 / 8 for gigabits in (64, 100, 200, 400, 800)]
    alone, compute, steps = zip(*map(zero_3_of_65b, rates), strict=True)
    assert alone[0] > 1.5 * compute[0] and steps[0] > 1.5 * compute[0]
    assert alone[-1] < 0.5 * compute[-1] and steps[-1] < 1.1 * compute[-1]
    assert list(steps) == sorted(steps, reverse=True)


#: Layouts that use every kind of exchange, and their stacks.
LAYOUTS = [
    ("torch", {"gpus": 16, "fsdp": True}),
    ("torch", {"gpus": 16, "fsdp": True, "shard": 8}),
    ("torch", {"gpus": 16, "tp": 4, "sp": True, "fsdp": True}),
    ("torch", {"gpus": 16, "cp": 4, "fsdp": True}),
    ("hf", {"gpus": 16}),
    ("deepspeed", {"gpus": 16, "zero": 2}),
    ("megatron", {"gpus": 16, "tp": 2, "cp": 2, "zero": 1}),
    ("nanotron", {"gpus": 32, "tp": 4, "zero": 1}),
]


@pytest.mark.parametrize(("stack", "layout"), LAYOUTS, ids=str)
def test_more_bandwidth_is_never_slower(stack, layout):
    """Network and link at 1, 2 and 10 times their rate: what exchanges add to a step only falls."""
    usual = load_cluster("dgx-h100")
    plan = made(stack=stack, layout=layout)
    rates = priced(device_of(None, cluster=usual))
    phases = phases_of(plan, compute_time(plan, rates))

    def added(link: float, network: float) -> float:
        cluster = replace(
            usual,
            link_bytes_per_s=link * usual.link_bytes_per_s,
            nic_bytes_per_s=network * (usual.nic_bytes_per_s or 0),
        )
        rows = exchanges_of(plan, device_of(None, cluster=cluster), rates)
        shown = exposed(rows, phases, rates)
        batches = plan.resolved.grad_accum_steps
        return batches * (shown.forward_s + shown.backward_s) + shown.last_s + shown.step_s

    for sweep in ([(n, 1) for n in (1, 2, 10)], [(1, n) for n in (1, 2, 10)]):
        seconds = [added(*rates_of_both) for rates_of_both in sweep]
        assert seconds == sorted(seconds, reverse=True) and seconds[0] > 0
