"""Executed FLOPs of a micro-batch, against torch's FlopCounterMode on the same attention path."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memcalc.engine.flops import step_flops
from tests.oracle.support.compare import RECOMPUTES, plan_of, random_config, random_extras, said
from tests.oracle.support.reference import RefConfig, build


def counted_flops(cfg: RefConfig) -> int:
    """What torch counts in one forward and backward on tensors without data."""
    model = build(cfg, "meta")
    ids = torch.zeros(cfg.b, cfg.s, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("attention", ["flash", "efficient", "eager"])
@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_executed_flops_are_those_torch_counts(recompute, attention):
    """6 configurations an item, 126 in all; grouped heads where torch's formula takes them."""
    rng = random.Random(f"flops {recompute} {attention}")
    for number in range(6):
        family = ("llama", "gpt2")[number % 2]
        cfg = random_config(rng, family=family, recompute=recompute, attention=attention)
        cfg = RefConfig(**vars(cfg) | random_extras(rng, cfg))
        assert step_flops(plan_of(cfg)).executed == counted_flops(cfg), said(cfg)


def _block_forward(cfg: RefConfig) -> int:
    """2 T (h d (2a + 2k) + 3 h f) in the matrices and 4 b a s^2 d in the attention core."""
    tokens = cfg.b * cfg.s
    matrices = cfg.h * cfg.d * (2 * cfg.a + 2 * cfg.k) + 3 * cfg.h * cfg.f
    return 2 * tokens * matrices + 4 * cfg.b * cfg.a * cfg.s**2 * cfg.d


@pytest.mark.parametrize("layers", [1, 2, 5, 40])
def test_full_recompute_adds_one_forward_of_the_blocks(layers):
    """Early stop spares each block its last matrix, down_proj (2 T f h); reentrant runs it too."""
    plain = RefConfig(L=layers, b=3, s=33)
    last = 2 * plain.b * plain.s * plain.f * plain.h
    flops = {
        kind: step_flops(plan_of(RefConfig(**vars(plain) | {"recompute": kind})))
        for kind in ("none", "full", "reentrant")
    }
    forward = layers * _block_forward(plain)
    assert flops["none"].recompute == 0
    assert flops["full"].executed == flops["none"].executed + forward - layers * last
    assert flops["reentrant"].executed == flops["none"].executed + forward


def test_backward_of_matrices_costs_twice_their_forward_and_of_flash_five_halves():
    cfg = RefConfig(L=3)
    flops = step_flops(plan_of(cfg))
    core = 3 * 4 * cfg.b * cfg.a * cfg.s**2 * cfg.d
    linear = flops.forward - core
    assert flops.wgrad == linear
    assert flops.dgrad == linear + core * 5 // 2


def test_model_flops_follow_the_two_conventions():
    """6 per matmul parameter and token, plus 12 a d s (6 causal) a layer and token."""
    cfg = RefConfig(L=3)
    flops = step_flops(plan_of(cfg))
    matrices = 3 * (cfg.h * cfg.d * (2 * cfg.a + 2 * cfg.k) + 3 * cfg.h * cfg.f) + cfg.V * cfg.h
    attention = 3 * 12 * cfg.a * cfg.d * cfg.s
    assert flops.model_per_token == 6 * matrices + attention
    assert flops.model_causal_per_token == 6 * matrices + attention / 2
