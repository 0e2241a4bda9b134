"""Stack torchtitan: what is kept, what stays gathered, which choices it has, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.checkpoint import KEEP_ATTENTION, KEEP_EVERY_SECOND, policy
from memcalc.engine.estimate import estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

MODEL = load_model("llama-3.1-8b")
T = 2048


def _plan(kernels: dict[str, Any] | None = None, **stated: Any) -> Plan:
    parallel = stated.pop("parallel", ParallelPlan(dp=8, fsdp=True))
    setup = TrainingSetup(seq_len=T, stack="torchtitan", **stated)
    return plan_of(MODEL, setup, kernels, parallel)


def _per_layer(**stated: Any) -> int:
    return step_memory(_plan(**stated)).saved_per_layer_bytes


def test_every_second_product_is_kept() -> None:
    keeps = policy(KEEP_EVERY_SECOND)
    names = ("mm", "mm", "_scaled_dot_product_flash_attention", "_scaled_mm", "addmm", "mm")
    assert [keeps(name) for name in names] == [True, False, True, True, False, False]
    assert not policy(KEEP_ATTENTION)("mm")


def test_selective_recomputation_keeps_what_the_formula_says() -> None:
    """Input, q, v, gate and down by every second product; the kernel's output and log-sum-exp.

    Compiled, down's product is not read again and goes. The kernel's random state is 24 bytes.
    """
    h, f, a = MODEL.hidden_size, MODEL.intermediate_size, MODEL.num_attention_heads
    k, d = MODEL.num_key_value_heads, MODEL.head_dim
    products = 2 * a * d + 2 * k * d + 2 * f + 2 * h
    eager = T * (2 * h + products + 2 * a * d + 4 * a) + 24
    assert _per_layer(recompute="sac") == eager
    assert _per_layer(recompute="sac", compile=True) == eager - 2 * T * h


@pytest.mark.parametrize("compiled", [False, True])
def test_full_recomputation_keeps_a_blocks_input(compiled: bool) -> None:
    assert _per_layer(recompute="full", compile=compiled) == 2 * T * MODEL.hidden_size


def test_fp8_products_count_as_products() -> None:
    kept = _per_layer(recompute="sac", compile=True, precision="fp8-mixed")
    assert kept == _per_layer(recompute="sac", compile=True)


def test_the_last_block_stays_gathered_for_backward() -> None:
    """Its parameters, gathered in 16 bit, are alive while the loss is computed."""
    other = plan_of(MODEL, TrainingSetup(seq_len=T), None, ParallelPlan(dp=8, fsdp=True))
    ours = _plan()
    assert isinstance(ours.strategy, Fsdp2) and ours.strategy.keeps_last
    assert isinstance(other.strategy, Fsdp2) and not other.strategy.keeps_last
    freed = _plan(parallel=ParallelPlan(dp=8, fsdp=True, reshard=True))
    whole = 2 * (freed.config.hidden_size * 2 + _matrices())
    assert step_memory(ours).phases["loss"] - step_memory(freed).phases["loss"] == whole


def _matrices() -> int:
    h, f, d = MODEL.hidden_size, MODEL.intermediate_size, MODEL.head_dim
    return h * d * (2 * MODEL.num_attention_heads + 2 * MODEL.num_key_value_heads) + 3 * h * f


def test_a_compiled_loss_stores_no_fp32_logits() -> None:
    logits = T * MODEL.vocab_size
    with_it = step_memory(_plan(compile=True, recompute="full")).phases["loss"]
    without = step_memory(_plan({"compile_loss": False}, compile=True, recompute="full"))
    assert without.phases["loss"] - with_it == pytest.approx(8 * logits, rel=0.01)
    assert not _plan().kernels.compiled_loss


def test_segments_that_grow_leave_little_reserved_and_unused() -> None:
    setup = TrainingSetup(seq_len=T, stack="torchtitan", recompute="full", precision="bf16")
    small = load_model("llama-3.2-1b")
    ours = estimate(small, setup).memory
    plain = estimate(small, TrainingSetup(seq_len=T, recompute="full", precision="bf16")).memory
    assert ours.reserved_overhead_bytes is not None and plain.reserved_overhead_bytes is not None
    assert ours.reserved_overhead_bytes < plain.reserved_overhead_bytes


def test_a_compiled_ring_keeps_what_the_ring_written_out_keeps() -> None:
    ring = ParallelPlan(cp=4, dp=2, fsdp=True)
    compiled = step_memory(_plan(parallel=ring, compile=True, recompute="full"))
    eager = step_memory(_plan(parallel=ring, recompute="full"))
    assert compiled.saved_per_layer_bytes == eager.saved_per_layer_bytes
    assert compiled.peak_bytes <= eager.peak_bytes


@pytest.mark.parametrize(
    ("model", "what"),
    [("gpt2", "not rotary"), ("mixtral-8x7b", "experts"), ("qwen3-0.6b", "norms of q and k")],
)
def test_other_layers_are_refused(model: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        plan_of(load_model(model), TrainingSetup(stack="torchtitan"))


def test_tensor_parallel_ranks_have_their_part_of_the_layer() -> None:
    split = _plan(parallel=ParallelPlan(tp=8, dp=1), precision="bf16")
    assert split.parallel.sp and split.kernels.dtensor is not None
    assert (
        step_memory(split).peak_bytes
        < step_memory(_plan(precision="bf16", parallel=None)).peak_bytes / 5
    )


def test_fp8_gathers_halve_what_a_block_gathers() -> None:
    """A block's matrices, not its norms and not the root's group: both the flat and the copied out."""
    plans = [
        _plan({"fp8_gather": narrow}, recompute="full", precision="fp8-mixed")
        for narrow in (False, True)
    ]
    wide, narrow = (_gathered(plan) for plan in plans)
    assert wide - narrow == _matrices()
    assert not _plan({"fp8_gather": True}).kernels.fp8_gather


def _gathered(plan: Plan) -> int:
    """Bytes of one interior block's unsharded parameters."""
    structure, _ = plan.structure(False)
    made = [
        structure.sizes[event].value(plan.values)
        for event in structure.events[: structure.forward_end]
        if event >= 0
        and structure.names[event] == "unsharded"
        and structure.labels[structure.labels_of[event]].block == 1
    ]
    return sum(made)
