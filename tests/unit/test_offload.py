"""Offload: what leaves the GPU is on the host, byte for byte, and what cannot leave is refused."""

from __future__ import annotations

import pytest

from memcalc.engine.estimate import estimate
from memcalc.engine.host_memory import host_memory, pinned_block_bytes
from memcalc.engine.parallel.strategy import HostBlock
from memcalc.engine.results import MemoryEstimate
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

MODEL = "llama-3.2-1b"
P = 1_235_814_400
EMBEDDING = 128256 * 2048


def memory(stack: str, setup: dict[str, object] | None = None, **layout: object) -> MemoryEstimate:
    fields: dict[str, object] = {"stack": stack, "seq_len": 256, "recompute": "full"}
    plan = ParallelPlan(**{"dp": 4} | layout)  # type: ignore[arg-type]
    training = TrainingSetup(**fields | (setup or {}))  # type: ignore[arg-type]
    return estimate(MODEL, training, parallel=plan, gpu="h100-80gb").memory


def parts(found: MemoryEstimate) -> dict[str, int]:
    """Bytes of each state, on the GPU and on the host (or its disks)."""
    return {
        "parameters": found.states["parameters"] + found.host.parameters,
        "gradients": found.states["gradients"] + found.host.gradients,
        "optimizer": found.states["optimizer"] + found.states["master"] + found.host.optimizer,
    }


def test_fsdp2s_policy_moves_every_state_and_no_byte_is_lost():
    """CPUOffloadPolicy: the GPU keeps no state; parameters, gradients and moments are on the host."""
    here, there = memory("torch", fsdp=True), memory("torch", fsdp=True, offload="params")
    assert parts(here) == parts(there)
    assert not any(there.states.values())
    assert there.host.parameters == there.host.gradients == here.states["parameters"]
    assert there.peak_allocated_bytes < here.peak_allocated_bytes - 2 * here.states["parameters"]


@pytest.mark.parametrize(
    ("zero", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "params")]
)
def test_deepspeed_conserves_parameters_and_optimizer_states(zero, offload):
    """Master copies and moments move; gradients on the host are fp32, 4 bytes for 2."""
    here, there = memory("deepspeed", zero=zero), memory("deepspeed", zero=zero, offload=offload)
    assert parts(here)["parameters"] == parts(there)["parameters"]
    assert parts(here)["optimizer"] == pytest.approx(parts(there)["optimizer"], rel=1e-6)
    assert there.states["optimizer"] == there.states["master"] == there.states["gradients"] == 0
    assert there.peak_allocated_bytes < here.peak_allocated_bytes


def test_zero_offload_of_stage_2_by_hand():
    """S = P/4 elements: 4 master, 8 moments, 4 gradients, 2 on the way back, and the largest gradient."""
    host = memory("deepspeed", zero=2, offload="optimizer").host
    part = -(-P // 8) * 2
    assert host.optimizer == 12 * part
    assert host.gradients == 4 * part
    assert host.buffers == 2 * part + 2 * EMBEDDING
    assert host.pinned_bytes == pinned_block_bytes(4 * part)  # the master copy alone
    assert host.pageable_bytes == 8 * part + 4 * part + 2 * part + 2 * EMBEDDING


def test_pinned_memory_of_stage_2():
    """With pin_memory all but the moments is page-locked, block by block."""
    host = memory("deepspeed", zero=2, offload="optimizer", pin_memory=True).host
    part = -(-P // 8) * 2
    blocks = [4 * part, 4 * part, 2 * part, 2 * EMBEDDING]
    assert host.pinned_bytes == sum(map(pinned_block_bytes, blocks))
    assert host.rounding_bytes == host.pinned_bytes - sum(blocks)
    assert host.pageable_bytes == 8 * part


def test_micro_batches_are_summed_on_the_host():
    """16-bit gradients of what the part touches: more than a part, less than all."""
    once = memory("deepspeed", zero=2, offload="optimizer").host
    often = memory("deepspeed", {"grad_accum_steps": 4}, zero=2, offload="optimizer").host
    assert 2 * P / 4 < often.gradients - once.gradients < 2 * P


def test_zero_infinity_in_memory_by_hand():
    """Stage 3 on one GPU: 2 of parameters, 2 + 4 of gradients, 12 of states; all on the host."""
    found = memory("deepspeed", dp=1, zero=3, offload="params")
    assert found.host_bytes == 20 * P + found.host.rounding_bytes
    assert found.host.parameters == 2 * P
    assert not any(found.states.values())


def test_zero_infinity_on_disks_by_hand():
    """12 + 4 bytes on disk, four buffers of the largest sub-group and the 16-bit gradients in memory."""
    found = memory("deepspeed", zero=3, offload="optimizer", offload_device="nvme")
    part = sum(-(-size // 4) for size in _sizes())
    assert found.host.nvme_bytes == 16 * part
    assert found.host.buffers == 4 * 4 * part
    assert found.host.gradients == 2 * part
    assert found.host.pinned_bytes == 4 * pinned_block_bytes(4 * part)


def test_parameters_on_disk_leave_max_in_cpu_elements_in_memory():
    """1.24e9 elements on one GPU: the first sub-group exceeds 1e9, so that the flat buffer is empty."""
    found = memory("deepspeed", dp=1, zero=3, offload="params", offload_device="nvme")
    assert found.host.nvme_bytes == 16 * P + 2 * P
    assert found.host.parameters == 0
    pool, flat = 5 * 100_000_000 * 2, 2 * 1_000_000_000
    assert found.host.buffers > pool + flat


def _sizes() -> list[int]:
    block = [2048, 2048 * 2048, 512 * 2048, 512 * 2048, 2048 * 2048, 2048, *[8192 * 2048] * 3]
    return [EMBEDDING, *block * 16, 2048]


# DeepSpeed's estimators as documented (docs/code-docs/source/memory.rst; runtime/zero/stage3.py,
# estimate_zero3_model_states_mem_needs), without their factor of 1.5 for buffers.


@pytest.mark.parametrize(("offload", "each"), [("params", 18), ("optimizer", 16)])
def test_host_bytes_agree_with_deepspeeds_estimator_of_a_node(offload, each):
    """18 bytes a parameter for a node: 2 + 4 + 12; the 16-bit gradients, 2 more, it leaves out."""
    found = memory("deepspeed", dp=8, zero=3, offload=offload)
    known = found.host.node_bytes - 8 * (found.host.rounding_bytes + 2 * P // 8)
    assert known == pytest.approx(each * P, rel=1e-4)


@pytest.mark.parametrize(
    ("largest", "parameters", "gpus", "printed"),
    [(65e6, 2783e6, 1, 70.00), (32e6, 2851e6, 8, 71.71)],
)
def test_the_estimators_documented_examples(largest, parameters, gpus, printed):
    """T0_3B and T5-3B with parameters and optimizer on the host: GB (2^30) of CPU memory a node."""
    assert 18 * parameters * 1.5 / 2**30 == pytest.approx(printed, abs=0.05)


def test_saved_activations_are_on_the_host_not_on_the_gpu():
    """Without recomputation: the GPU keeps the loss alone between forward and backward."""
    here = memory("torch", {"recompute": "none", "seq_len": 2048}, dp=1)
    there = memory("torch", {"recompute": "none", "seq_len": 2048}, dp=1, offload="activations")
    assert there.saved_for_backward_bytes == 4
    assert there.host.activations > here.saved_for_backward_bytes
    assert there.phases["backward"] < here.phases["backward"] - 0.3 * here.saved_for_backward_bytes


def test_all_moves_states_and_activations():
    found = memory("torch", fsdp=True, offload="all")
    assert not any(found.states.values())
    assert found.host.activations and found.host.parameters


def test_a_node_is_its_ranks():
    found = memory("deepspeed", dp=16, zero=2, offload="optimizer", gpus_per_node=4)
    assert found.host.ranks_per_node == 4
    assert found.host.node_bytes == 4 * found.host_bytes


def test_nothing_is_on_the_host_unless_asked():
    for stack, layout in (("torch", {"fsdp": True}), ("deepspeed", {"zero": 3})):
        found = memory(stack, **layout)
        assert found.host_bytes == found.host.node_bytes == 0


def test_pinned_blocks_are_powers_of_two():
    assert [pinned_block_bytes(n) for n in (0, 1, 3, 4, 5)] == [0, 1, 4, 4, 8]
    blocks = [HostBlock("buffers", 5, True, times=2), HostBlock("parameters", 7)]
    found = host_memory([*blocks, HostBlock("optimizer", 9, nvme=True)], 2)
    assert (found.pinned_bytes, found.pageable_bytes, found.nvme_bytes) == (16, 7, 9)
    assert (found.rounding_bytes, found.buffers, found.node_bytes) == (6, 10, 46)


def test_parts_of_the_host_sum_to_its_bytes():
    for layout in ({"zero": 2, "offload": "optimizer"}, {"zero": 3, "offload": "params"}):
        host = memory("deepspeed", **layout).host
        held = sum(
            (host.parameters, host.gradients, host.optimizer, host.activations, host.buffers)
        )
        assert held + host.rounding_bytes == host.total_bytes


REFUSED = [
    ("torch", {"offload": "optimizer"}, "params"),
    ("torch", {"offload": "params"}, "--fsdp"),
    ("torch", {"offload": "activations", "offload_device": "nvme"}, "cpu"),
    ("torch-compile", {"offload": "activations"}, "stack torch"),
    ("torch", {"offload_device": "nvme"}, "--offload"),
    ("torch", {"pin_memory": True}, "offload"),
    ("deepspeed", {"offload": "optimizer"}, "--zero 1, 2, 3"),
    ("deepspeed", {"offload": "params", "zero": 2}, "--zero 3"),
    ("deepspeed", {"offload": "activations", "zero": 3}, "optimizer, params"),
    ("deepspeed", {"offload": "optimizer", "zero": 2, "offload_device": "nvme"}, "--zero 3"),
]


@pytest.mark.parametrize(("stack", "layout", "valid"), REFUSED)
def test_what_does_not_exist_is_refused_with_what_does(stack, layout, valid):
    with pytest.raises(ConfigError) as caught:
        memory(stack, **layout)
    assert valid in str(caught.value)
    assert "\n" not in str(caught.value)
