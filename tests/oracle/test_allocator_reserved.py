"""Reserved bytes: the engine's own stream and PyTorch's events through the same allocator.

Both are two optimizer steps from an empty cache, without matmul workspaces, on tensors without data.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.allocator.replay import AllocatorResult, simulate
from memcalc.engine.program import training_program
from memcalc.harness.watch.tracker import Alloc
from tests.oracle.support.compare import How, plan_of, random_config, random_extras, random_how
from tests.oracle.support.reference import RefConfig
from tests.oracle.support.step import run_step

GB = 10**9


def torch_stream(cfg: RefConfig, how: How) -> tuple[list[int], list[int]]:
    """The tracker's events of two whole steps in the simulator's form."""
    record = run_step(cfg, how)
    events: list[int] = []
    sizes: list[int] = []
    block_of: dict[int, int] = {}
    for event in [*record.first_initial, *record.first_events, *record.events]:
        if isinstance(event, Alloc):
            block_of[event.storage] = len(sizes)
            events.append(len(sizes))
            sizes.append(event.nbytes)
        else:
            events.append(~block_of.pop(event.storage))
    return events, sizes


def _both(cfg: RefConfig, how: How, check: bool = False) -> tuple[AllocatorResult, AllocatorResult]:
    stream = training_program(plan_of(cfg, how), ())
    ours = simulate(stream.events, stream.sizes, check=check)
    return ours, simulate(*torch_stream(cfg, how), check=check)


_LARGE = {"b": 4, "s": 1024, "V": 32000, "h": 1024, "L": 6, "a": 16, "k": 4, "d": 64, "f": 2816}
LARGE = {
    "llama bf16": (RefConfig(**_LARGE), How()),
    "mixed, loss in fp32": (RefConfig(**_LARGE | {"precision": "mixed", "loss": "fp32"}), How()),
    "fully recomputed": (RefConfig(**_LARGE | {"recompute": "full", "b": 8}), How(accum=2)),
    "matmuls kept": (RefConfig(**_LARGE | {"recompute": "sac"}), How(impl="fused")),
    "chunked loss": (
        RefConfig(**_LARGE | {"loss": "chunked", "norm": "fused"}),
        How(set_to_none=False),
    ),
    "odd sizes": (
        RefConfig(**_LARGE | {"s": 777, "V": 50257, "b": 3, "precision": "mixed"}),
        How(impl="loop"),
    ),
    "eager attention": (
        RefConfig(**_LARGE | {"attention": "eager", "b": 1, "recompute": "full:3"}),
        How(),
    ),
    "gpt2 with dropout": (
        RefConfig(
            family="gpt2", b=4, s=1024, V=50257, h=768, L=6, a=12, k=12, d=64, f=3072,
            precision="mixed", dropout=0.1, tied=True,
        ),
        How(accum=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_reserved_bytes_agree_above_one_gigabyte(name):
    ours, theirs = _both(*LARGE[name])
    assert GB < theirs.peak_reserved_bytes < 6 * GB
    assert abs(ours.peak_reserved_bytes / theirs.peak_reserved_bytes - 1) <= 0.005
    assert abs(ours.peak_allocated_bytes / theirs.peak_allocated_bytes - 1) <= 0.0005


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.integers(0, 10**6))
def test_the_allocators_books_agree_on_small_traces(seed):
    """Blocks tile their segments after every event of either stream (check=True raises if not)."""
    rng = random.Random(seed)
    cfg = random_config(rng, L=1, s=rng.choice([16, 17, 64]))
    cfg = RefConfig(**vars(cfg) | random_extras(rng, cfg))
    ours, theirs = _both(cfg, random_how(rng), check=True)
    for result in (ours, theirs):
        assert 0 < result.peak_allocated_bytes <= result.peak_reserved_bytes
    assert abs(ours.peak_allocated_bytes - theirs.peak_allocated_bytes) <= 8192
