"""Time of offload: bytes over the host's link and in its memory by hand, what of it shows, case D9."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc import TrainingSetup
from memcalc.engine.device_side import Device, device_of
from memcalc.engine.host_memory import host_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.engine.timing.exchanges import exchanges_of
from memcalc.engine.timing.offload_copies import HostCopy, host_traffic
from memcalc.engine.timing.offload_time import (
    HOST_MEMORY_BYTES_PER_S,
    LOOP,
    PAGEABLE,
    OffloadTime,
    offload_time,
)
from memcalc.engine.timing.overlap import Phases
from memcalc.inputs.clusters import load_cluster
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import rates_of

DEVICE = device_of(None, cluster="dgx-a100-40gb")
P = 1_235_814_400
BLOCK = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048
#: No time for anything to hide in, and all the time there could be.
BUSY, IDLE = Phases(0.0, 0.0, 16), Phases(9.0, 9.0, 16)


def made(stack: str, model: str = "llama-3.2-1b", **stated: Any) -> Plan:
    fields = {"stack": stack, "seq_len": 256, "recompute": "full"}
    names = ("recompute", "seq_len", "grad_accum_steps", "optimizer", "optimizer_impl", "grad_clip")
    fields |= {name: stated.pop(name) for name in names if name in stated}
    layout = ParallelPlan(**{"dp": 4} | stated)  # type: ignore[arg-type]
    return plan_of(load_model(model), TrainingSetup(**fields), None, layout)  # type: ignore[arg-type]


def priced(plan: Plan, phases: Phases = BUSY, device: Device = DEVICE) -> OffloadTime:
    assert device.gpu is not None
    phases = phases._replace(micro_batches=plan.resolved.grad_accum_steps)
    return offload_time(plan, device, rates_of(device.gpu), phases)


def moved(plan: Plan) -> dict[tuple[str, str, str], int]:
    """Bytes of a step by (what, to, when)."""
    sums: dict[tuple[str, str, str], int] = {}
    for what, to, when, size, *_ in host_traffic(plan)[0]:
        sums[what, to, when] = sums.get((what, to, when), 0) + size
    return sums


def test_nothing_offloaded_takes_no_time() -> None:
    for plan in (made("torch", fsdp=True), made("deepspeed", zero=3), made("hf", dp=1)):
        assert priced(plan) == OffloadTime()


@pytest.mark.parametrize("batches", [1, 3])
def test_zero_3_by_hand(batches: int) -> None:
    """S = P / 4: gradients 2 S there and back in every micro-batch and 4 S at the end; parameters 2 S
    before forward and before backward, but for norms, which stay whole."""
    plan = made("deepspeed", zero=3, offload="params", grad_accum_steps=batches)
    part, norms = P // 4, 33 * 2048 // 4
    assert moved(plan) == {
        ("gradients", "host", "backward"): (4 + 2 * batches) * part,
        ("gradients", "gpu", "backward"): 2 * batches * part,
        ("parameters", "gpu", "forward"): 2 * batches * (part - norms),
        ("parameters", "gpu", "backward"): 2 * batches * (part - norms),
    }


def test_optimizer_offload_sends_parameters_back_once() -> None:
    part = P // 4
    for zero in (1, 2, 3):
        found = moved(made("deepspeed", zero=zero, offload="optimizer"))
        assert found["parameters", "gpu", "step"] == pytest.approx(2 * part, rel=1e-6)
        gradients = found["gradients", "host", "backward"]
        assert gradients == pytest.approx((4 + 2 * (zero == 3)) * part, rel=1e-6)
    several = moved(made("deepspeed", zero=2, offload="optimizer", grad_accum_steps=3))
    up, down = several["gradients", "gpu", "backward"], several["gradients", "host", "backward"]
    assert 2 * 2 * part < up < 2 * 2 * P  # whole parameters, where a part holds a piece
    assert down - up == pytest.approx(4 * part, rel=1e-6)


def test_host_bytes_of_deepspeeds_step() -> None:
    """42 S: 8 gradients scaled; 28 Adam, three fp32 tensors twice and gradients; 6 narrowed to bf16."""
    part = P // 4
    adam = priced(made("deepspeed", zero=3, offload="optimizer", pin_memory=True), IDLE)
    assert adam.host_moved_bytes == 42 * part
    link = 0.82 * 31.5e9
    sent = 2 * part / link / PAGEABLE  # 16-bit parameters of stage 3, from a pageable copy
    assert adam.step_s == pytest.approx(42 * part / HOST_MEMORY_BYTES_PER_S + sent, rel=0.02)
    sgd = priced(made("deepspeed", zero=3, offload="params", optimizer="sgd"), IDLE)
    looped = 14 * part + LOOP * 12 * part  # torch's SGD: master copies twice, gradients once
    assert sgd.step_s == pytest.approx(looped / HOST_MEMORY_BYTES_PER_S, rel=1e-6)


@pytest.mark.parametrize("batches", [1, 4])
def test_fsdp2s_policy_by_hand(batches: int) -> None:
    """fp32 parts 4 S before every gather of a block and gradients 4 S in every micro-batch."""
    plan = made("torch", fsdp=True, offload="params", grad_accum_steps=batches, grad_clip=0.0)
    part = P // 4
    assert moved(plan) == {
        ("parameters", "gpu", "forward"): 4 * batches * part,
        ("parameters", "gpu", "backward"): 4 * batches * 16 * BLOCK // 4,
        ("gradients", "host", "backward"): 4 * batches * part,
    }
    _, work = host_traffic(plan)
    assert work.looped_bytes == 28 * part and not work.kernel_bytes
    assert work.backward_bytes == (batches - 1) * 12 * part
    whole = made("torch", zero=2, fsdp=False, offload="params", grad_accum_steps=batches)
    assert ("parameters", "gpu", "backward") not in moved(whole)  # gathered ones stay


def test_one_kernel_or_a_loop_on_the_host() -> None:
    stated = {"fsdp": True, "offload": "params", "grad_clip": 0.0}
    loop = priced(made("torch", **stated), IDLE)
    fused = priced(made("torch", optimizer_impl="fused", **stated), IDLE)
    assert loop.step_s == pytest.approx(LOOP * fused.step_s)
    assert fused.step_s == pytest.approx(28 * P / 4 / HOST_MEMORY_BYTES_PER_S)
    clipped = priced(made("torch", optimizer_impl="fused", **stated | {"grad_clip": 1.0}), IDLE)
    assert clipped.step_s == pytest.approx((28 + 12) / 28 * fused.step_s)


def test_saved_activations_go_and_come_on_the_stream_that_computes() -> None:
    plan = made("torch", dp=1, offload="activations", recompute="none", grad_accum_steps=2)
    time, size = priced(plan, IDLE), host_of(plan, 8).activations
    assert (time.to_host_bytes, time.to_gpu_bytes) == (2 * size, 2 * size)
    assert time.forward_s == time.backward_s > size / 31.5e9
    assert time.step_s == time.hidden_s == 0
    assert time.of_step(2) == 4 * time.forward_s


def test_torchtunes_streams_cost_no_time_and_say_so() -> None:
    plan = made("torchtune", dp=1, offload="activations")
    assert priced(plan) == OffloadTime(
        assumptions=("activations go to the host and back beside compute: no time counted",)
    )


@pytest.mark.parametrize(
    "plan",
    [
        made("deepspeed", zero=3, offload="params", pin_memory=True, grad_accum_steps=2),
        made("deepspeed", zero=3, offload="params"),
        made("torch", fsdp=True, offload="all", recompute="none"),
    ],
    ids=["pinned", "pageable", "fsdp2"],
)
def test_what_shows_and_what_is_hidden_is_all_there_is(plan: Plan) -> None:
    """The more compute, the less shows, down to the first block's copies and what never overlaps."""
    batches = plan.resolved.grad_accum_steps
    alone = priced(plan, BUSY)
    last = alone.of_step(batches)
    for block_s in (0.0005, 0.002, 0.01, 1.0):
        time = priced(plan, Phases(block_s, 2 * block_s, 16))
        assert time.of_step(batches) + time.hidden_s == pytest.approx(alone.of_step(batches))
        assert time.of_step(batches) <= last
        last = time.of_step(batches)
    assert alone.hidden_s == 0 < time.hidden_s
    beside = [one for one in host_traffic(plan)[0] if one.beside]
    assert {one.what for one in beside if not one.pinned} == set()


def test_exchanges_beside_a_block_leave_less_time() -> None:
    plan = made("deepspeed", zero=3, offload="params", pin_memory=True)
    assert DEVICE.gpu is not None
    rates, phases = rates_of(DEVICE.gpu), Phases(0.0016, 0.02, 16)
    found = exchanges_of(plan, DEVICE, rates)
    shared = offload_time(plan, DEVICE, rates, phases, found)
    assert shared.forward_s > offload_time(plan, DEVICE, rates, phases).forward_s


def test_a_faster_link_and_pinned_memory_are_never_slower() -> None:
    usual = load_cluster("dgx-a100-40gb")
    times = []
    for rate in (8e9, 31.5e9, 225e9):
        device = device_of(None, cluster=replace(usual, host_bytes_per_s=rate))
        times.append(priced(made("deepspeed", zero=2, offload="optimizer"), device=device))
    assert times[0].of_step(1) > times[1].of_step(1) > times[2].of_step(1)
    for zero in (2, 3):
        pinned, pageable = (
            priced(made("deepspeed", zero=zero, offload="optimizer", pin_memory=pin), IDLE)
            for pin in (True, False)
        )
        assert pinned.of_step(1) < pageable.of_step(1)


def test_disks_give_and_take_states_in_every_step() -> None:
    """16 bytes of states and gradients both ways; a cluster's disks are shared by its GPUs."""
    plan = made("deepspeed", zero=3, offload="optimizer", offload_device="nvme")
    time, part = priced(plan), P // 4
    assert time.disk_bytes == 2 * 16 * part
    rate = load_cluster("dgx-a100-40gb").nvme_bytes_per_s
    assert rate is not None
    assert time.step_s > time.disk_bytes / (rate / 8)
    unknown = priced(plan, device=device_of("a100-40gb"))
    assert "local disks: 3 GB/s a GPU, assumed" in unknown.assumptions


def test_assumptions_are_said() -> None:
    time = priced(made("torch", fsdp=True, offload="params"))
    said = " ".join(time.assumptions)
    assert "25.8 GB/s, pageable 12.9 GB/s (not measured)" in said
    assert "optimizer on the host: 25 GB/s of its memory a GPU, assumed" in said
    assert "6 times one kernel" in said


def test_copies_of_nothing_are_not_listed() -> None:
    copies, _ = host_traffic(made("deepspeed", zero=2, offload="optimizer"))
    assert all(isinstance(one, HostCopy) and one.size_bytes for one in copies)


@pytest.mark.parametrize(("tokens", "by_hand", "lora_h"), [(250, 26.8, 5.6), (300, 28.3, 6.7)])
def test_d9_full_fine_tuning_with_offload_against_lora(
    tokens: int, by_hand: float, lora_h: float
) -> None:
    """LLaMA-7B, 8 A100-40G, ZeRO-3 with all on the host, 62,500 steps of 32; LoRA 15,625 of 128.

    Both at 40 % utilisation with recomputation (8 N and 6 N FLOPs a token). By hand: 28 bytes a parameter
    of Adam at 25 GB/s, and two copies of 2 at 20 GB/s that show. Here copies hide in backward, and the
    step scales gradients and narrows parameters too: 42 bytes. The source has 31 h and 7 h.
    """
    plan = made(
        "deepspeed", "llama-7b", dp=8, zero=3, offload="params", pin_memory=True, seq_len=tokens
    )
    n, reached = 6_738_415_616, 0.4 * 8 * 312e12
    forward_s = 2 * n * 32 * tokens / reached
    adam_s, copies_s = 28 * n / 8 / HOST_MEMORY_BYTES_PER_S, 2 * 2 * n / 8 / 20e9
    assert 62_500 * (4 * forward_s + adam_s + copies_s) / 3600 == pytest.approx(by_hand, rel=0.01)
    assert 15_625 * 3 * 4 * forward_s / 3600 == pytest.approx(lora_h, rel=0.01)

    phases = Phases(forward_s / 32, 3 * forward_s / 32, 32)
    time = priced(plan, phases)
    full_h = 62_500 * (4 * forward_s + time.of_step(1)) / 3600
    assert by_hand < full_h < 1.25 * by_hand
    assert full_h == pytest.approx(31, rel=0.1)
    assert 3 < full_h / lora_h < 6
    assert 4 * forward_s / (3 * forward_s) == pytest.approx(1.33, abs=0.01)  # without offload
    assert time.step_s > 0.9 * time.of_step(1)  # the rest is the optimizer's step on the host
