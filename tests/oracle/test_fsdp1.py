"""FSDP1: one rank's step beside PyTorch's own FullyShardedDataParallel on the fake process group.

`differences` holds peaks, categories, states and saved bytes, `first_difference` every allocation of the
step and what is freed before the next, by size and phase (what autograd joins has no operator's name).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support import data_parallel
from tests.oracle.support.rank_fsdp1 import Wrapped, run_fsdp1

MIXED = TrainingSetup(seq_len=24, micro_batch_size=2, precision="bf16-mixed")
BF16 = replace(MIXED, precision="bf16")
DEEP = replace(LLAMA, num_hidden_layers=7)
SETUPS = {
    "pure": Wrapped(LLAMA, MIXED, 8),
    "reduced in fp32": Wrapped(LLAMA, MIXED, 8, reduce="fp32"),
    "fp32": Wrapped(LLAMA, replace(MIXED, precision="fp32"), 2),
    "deeper than what is traced": Wrapped(DEEP, MIXED, 8),
    "kept to backward": Wrapped(DEEP, MIXED, 8, zero=2),
    "three batches": Wrapped(DEEP, replace(BF16, grad_accum_steps=3), 8),
    "groups": Wrapped(LLAMA, MIXED, 64, shard=8),
    "gathered after backward": Wrapped(DEEP, MIXED, 8, prefetch="post"),
    "gathered ahead of forward": Wrapped(DEEP, MIXED, 8, ahead=True),
    "gathered when needed": Wrapped(DEEP, MIXED, 8, prefetch="none"),
    "GPT-2": Wrapped(replace(GPT2, num_hidden_layers=6), MIXED, 64),
    "tied, clipped": Wrapped(
        replace(LLAMA, tie_word_embeddings=True), replace(MIXED, grad_clip=True), 8
    ),
    "gathered as stored, cast inside": Wrapped(LLAMA, MIXED, 8, gathers="stored"),
}


@pytest.fixture(autouse=True)
def _by_size_and_phase():
    """Rows without the place where they are made."""

    def placeless(parts: Any) -> Any:
        return lambda given: [
            [(nbytes, phase, "", freed) for nbytes, phase, _, freed in rows]
            for rows in parts(given)
        ]

    with (
        mock.patch.object(data_parallel, "engine_parts", placeless(data_parallel.engine_parts)),
        mock.patch.object(data_parallel, "torch_parts", placeless(data_parallel.torch_parts)),
    ):
        yield


@pytest.mark.parametrize("name", SETUPS)
def test_a_step_is_pytorchs_own(name: str) -> None:
    wrapped = SETUPS[name]
    plan, trace = wrapped.plan(), run_fsdp1(wrapped)
    assert data_parallel.differences(plan, trace) == {}
    if not wrapped.setup.grad_clip:  # norms of the pieces of a shard, one for each parameter in it
        assert _through_backward(data_parallel.first_difference(plan, trace)) == ""


def _through_backward(found: str) -> str:
    """The optimizer steps what of each parameter a shard has; the engine the shard at once."""
    number, _, rest = found.removeprefix("part ").partition(" of ")
    return "" if rest and int(number) == int(rest.split(",")[0].split(":")[0]) - 1 else found


def test_a_shard_has_alignment_and_padding_for_the_ranks():
    """Parameters begin at multiples of 8 elements of 16 bit; the whole is a multiple of the ranks."""
    odd = replace(LLAMA, vocab_size=501)
    wrapped = Wrapped(odd, MIXED, 12)
    ours, theirs = step_memory(wrapped.plan()), run_fsdp1(wrapped)
    assert ours.states.parameter_bytes >= theirs.bytes.states["parameters"]
    assert abs(ours.peak_bytes / theirs.peak - 1) < 0.005


def test_what_fsdp1_has_not_is_refused():
    setup = replace(MIXED, stack="fsdp1")
    for layout, said in (
        (ParallelPlan(tp=2, dp=2, fsdp=True, zero=3), "data parallelism alone"),
        (ParallelPlan(dp=4, zero=1), "valid: 0 \\(DDP\\), 2, 3"),
        (ParallelPlan(dp=4, fsdp=True, zero=3, reshard=2), "valid: true, false"),
    ):
        with pytest.raises(ConfigError, match=said):
            estimate(LLAMA, setup, parallel=layout)


def test_without_sharding_it_is_ddp_with_gradients_beside_the_buckets():
    setup = replace(MIXED, stack="fsdp1")
    copies = estimate(LLAMA, setup, parallel=ParallelPlan(dp=4)).memory
    alone = estimate(LLAMA, setup).memory
    held = copies.breakdown.buffers - alone.breakdown.buffers
    assert held == alone.states["gradients"]
