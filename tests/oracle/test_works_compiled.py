"""Element-wise kernels of a compiled block, against those of the compiler's own CUDA programs.

The programs run on tensors without data (support/inductor.py); each generated kernel says by the names
of its arguments what it reads and writes. Products and attention kernels are not among them.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from memcalc.engine.plan import Plan
from memcalc.engine.works import works_of
from tests.oracle.support import inductor
from tests.oracle.support.compiled import compiled_plan, meta_facts
from tests.oracle.support.reference import RefConfig
from tests.oracle.test_compiled import RELEASE

needs_the_release = pytest.mark.skipif(
    not torch.__version__.startswith(RELEASE),
    reason=f"the compiler's internals are torch {RELEASE}'s",
)

#: (models, kernels the engine may have more or fewer of, share of bytes it may be off by). Biased
#: blocks under autocast: the compiler fuses a dropout's seed into the kernel that first uses it; a sum
#: of a bias reads parts of what it sums once more. Eager attention: it copies what grouped heads repeat.
MODELS: dict[str, tuple[dict[str, Any], int, float]] = {
    "llama": ({"norm": "fused"}, 0, 0.005),
    "llama, autocast, recomputed": (
        {"norm": "fused", "precision": "mixed", "recompute": "full"}, 0, 0.005,
    ),
    "llama, autocast, biases, norms of heads": (
        {"norm": "fused", "precision": "mixed", "qkv_bias": True, "qk_norm": True}, 0, 0.05,
    ),
    "llama, eager attention": ({"norm": "fused", "attention": "eager"}, 2, 0.005),
    "gpt2": ({"family": "gpt2", "k": 4}, 0, 0.01),
    "gpt2, autocast, dropout": (
        {"family": "gpt2", "k": 4, "precision": "mixed", "dropout": 0.1}, 1, 0.05,
    ),
}  # fmt: skip


def of_the_compiler(plan: Plan) -> tuple[int, int]:
    """Kernels and the bytes they move in one step; the first of two runs is where it compiles."""
    with mock.patch.object(inductor, "launched", []) as launched:
        meta_facts(plan)
        kernels = launched[len(launched) // 2 :]
    return len(kernels), sum(kernels)


def of_the_engine(plan: Plan) -> tuple[int, int]:
    """Element-wise kernels of the blocks, and the bytes they move."""
    rows = [(w, n) for w, n in works_of(plan) if w.kind == "moved" and w.block == 0]
    moved = sum(times * work.moved.value(plan.values) for work, times in rows)
    return sum(times * work.launches for work, times in rows), moved


@needs_the_release
@pytest.mark.parametrize("name", MODELS)
def test_a_block_has_the_kernels_and_the_traffic_of_the_cuda_programs(name: str) -> None:
    changed, kernels, share = MODELS[name]
    plan = compiled_plan(RefConfig(**{"V": 128, "L": 1, "s": 128, **changed}))
    theirs, ours = of_the_compiler(plan), of_the_engine(plan)
    assert abs(ours[0] - theirs[0]) <= kernels, (ours, theirs)
    assert ours[1] == pytest.approx(theirs[1], rel=share)
