"""Bytes saved for backward, against PyTorch: no difference on any configuration.

Each item holds one way of recomputing and one precision, and goes through norms, attention kernels
and losses on models drawn from a seed of its own: 36 configurations an item, 756 in all.
"""

from __future__ import annotations

import random
from itertools import product

import pytest

from tests.draws import drawn
from tests.oracle.support.compare import (
    RECOMPUTES,
    memory_of,
    random_config,
    random_extras,
    said,
)
from tests.oracle.support.reference import RefConfig
from tests.oracle.support.step import saved_bytes

NORMS = (("llama", "hand"), ("llama", "decomposed"), ("llama", "fused"), ("gpt2", "layer"))
ATTENTIONS = ("flash", "efficient", "cudnn", "eager")
LOSSES = ("plain", "fp32", "chunked")


def _drawn(recompute: str, precision: str) -> list[RefConfig]:
    """Every norm x attention x loss on a random model; a third of them with biases and the like."""
    rng = random.Random(f"saved {recompute} {precision}")
    configs = []
    for (family, norm), attention, loss in product(NORMS, ATTENTIONS, LOSSES):
        cfg = random_config(
            rng, family=family, norm=norm, attention=attention, loss=loss,
            recompute=recompute, precision=precision,
        )  # fmt: skip
        if rng.random() < 1 / 3:
            cfg = RefConfig(**vars(cfg) | random_extras(rng, cfg))
        configs.append(cfg)
    return configs


@pytest.mark.parametrize("precision", ["bf16", "mixed", "fp32"])
@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_saved_bytes_are_those_of_torch(recompute, precision):
    wrong = []
    configs = _drawn(recompute, precision)
    for cfg in (configs[number] for number in drawn(len(configs))):
        ours, theirs = memory_of(cfg).saved_bytes, saved_bytes(cfg)
        if ours != theirs:
            wrong.append(f"{said(cfg)}: engine {ours}, torch {theirs}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("changed", ["b", "s", "V", "h", "a", "k", "d", "f"])
def test_dims_of_one_change_nothing(changed):
    """A dim of 1 changes which copies a transpose needs; d of 2 is the least rotary width."""
    rng = random.Random(f"one {changed}")
    one = {"d": 2, "a": 1, "k": 1} if changed == "d" else {changed: 1}
    one |= {"k": 1} if changed == "a" else {}
    for recompute in ("none", "sac", "full"):
        cfg = random_config(rng, family="llama", recompute=recompute, **one)
        assert memory_of(cfg).saved_bytes == saved_bytes(cfg), said(cfg)


def test_the_draws_cover_every_head_grouping():
    configs = [c for r in RECOMPUTES for c in _drawn(r, "bf16") if c.family == "llama"]
    grouped = sum(1 < c.k < c.a for c in configs)
    single = sum(c.k == 1 < c.a for c in configs)
    equal = sum(c.k == c.a > 1 for c in configs)
    assert min(grouped, single, equal) >= 20
    assert any(c.s % 2 for c in configs)
