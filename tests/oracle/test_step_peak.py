"""Peaks of the second training step, against PyTorch: the step's, each phase's, and where they are.

Every test holds `step_differences` to nothing: bytes of forward, loss, backward and optimizer, of the
whole step, saved bytes, and the named instant (operator and layer) at which each peaks.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from tests.draws import draws
from tests.oracle.support.compare import (
    IMPLS,
    How,
    random_config,
    random_extras,
    random_how,
    said,
    step_differences,
)
from tests.oracle.support.reference import RefConfig
from tests.oracle.support.step import run_step


def _assert_equal(runs: list[tuple[RefConfig, How]]) -> None:
    wrong = []
    for cfg, how in runs:
        if differences := step_differences(cfg, how):
            wrong.append(f"{said(cfg)}; {how}: {differences}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "recompute", ["none", "selective", "sac", "sac-attention", "full", "full:N", "reentrant"]
)
@pytest.mark.parametrize("norm", ["hand", "decomposed", "fused"])
def test_peaks_of_llama_in_bf16(norm, recompute):
    """10 configurations an item, 210 in all."""
    rng = random.Random(f"peak {norm} {recompute}")
    fixed: dict[str, Any] = {"family": "llama", "precision": "bf16"}
    fixed |= {"norm": norm, "recompute": recompute}
    ways = list(product(IMPLS, (1, 2), (True, False)))
    chosen = [*ways[: 10 - len(ways)], *rng.sample(ways, 10)][: draws(10)]
    runs = [
        (random_config(rng, **fixed), How(impl=impl, accum=accum, set_to_none=none))
        for impl, accum, none in chosen
    ]
    _assert_equal(runs)


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("precision", ["bf16", "mixed", "fp32"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peaks_with_everything_else_drawn(family, precision, number):
    """Biases, dropout, norms of q and k, tied embeddings: 7 an item, 84 in all."""
    rng = random.Random(f"other {family} {precision} {number}")
    runs = []
    for _ in range(draws(7)):
        cfg = random_config(rng, family=family, precision=precision)
        runs.append((RefConfig(**vars(cfg) | random_extras(rng, cfg)), random_how(rng)))
    _assert_equal(runs)


OPTIMIZERS = [
    *product(["sgd", "momentum", "muon"], IMPLS),
    *product(["adafactor"], ["foreach", "loop"]),
]


@pytest.mark.parametrize(("optimizer", "impl"), OPTIMIZERS)
def test_peaks_of_other_optimizers(optimizer, impl):
    rng = random.Random(f"{optimizer} {impl}")
    # Fused SGD runs on tensors that claim a cpu, where LayerNorm's statistics are not CUDA's.
    fixed = {"family": "llama"} if (optimizer, impl) == ("sgd", "fused") else {}
    fixed = {"family": "llama"} if (optimizer, impl) == ("momentum", "fused") else fixed
    runs = []
    for _ in range(draws(4)):
        cfg = random_config(rng, **fixed)
        cfg = RefConfig(**vars(cfg) | random_extras(rng, cfg))
        runs.append((cfg, random_how(rng, optimizer=optimizer, impl=impl)))
    _assert_equal(runs)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "adafactor"])
def test_peaks_with_clipped_gradients(optimizer):
    rng = random.Random(f"clip {optimizer}")
    fixed: dict[str, Any] = {"optimizer": optimizer, "grad_clip": True}
    fixed |= {"impl": "loop"} if optimizer == "adafactor" else {}
    fixed |= {"impl": "foreach"} if optimizer == "momentum" else {}
    _assert_equal([(random_config(rng), random_how(rng, **fixed)) for _ in range(draws(6))])


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "adafactor", "muon"])
def test_peaks_with_fp32_master_copies(optimizer):
    """bf16-master: copies stepped, gradients cast all at once (memcalc/harness/optimizers.py)."""
    rng = random.Random(f"master {optimizer}")
    fixed: dict[str, Any] = {"optimizer": optimizer, "master": True}
    impls = ("foreach", "loop") if optimizer in ("adafactor", "momentum") else IMPLS
    runs = [
        (random_config(rng, precision="bf16"), random_how(rng, impl=impl, **fixed))
        for impl in (*impls, *impls)
    ]
    _assert_equal(runs)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_loop_follows_the_order_of_registration(impl):
    """Wide attention beside a narrow vocabulary, so that a block's own matrices make the peak."""
    cfg = RefConfig(V=10, h=64, a=4, k=2, d=64, f=32, qk_norm=True, attention_bias=True, s=1)
    _assert_equal(
        [
            (cfg, How(impl=impl)),
            (cfg, How(impl=impl, optimizer="adafactor" if impl != "fused" else "adamw")),
        ]
    )


@pytest.mark.parametrize("precision", ["bf16", "mixed", "fp32"])
def test_peaks_of_llama_with_layer_norms(precision):
    """Layer norms of q and k take bf16 under autocast and make fp32 of it."""
    rng = random.Random(f"layer norm {precision}")
    runs = []
    for qk_norm in (True, True, False):
        cfg = random_config(rng, family="llama", precision=precision, norm="layer")
        runs.append((RefConfig(**vars(cfg) | {"qk_norm": qk_norm}), random_how(rng)))
    _assert_equal(runs)


@pytest.mark.parametrize("layers", [3, 4, 12, 40])
def test_deep_models_repeat_their_interior(layers):
    rng = random.Random(f"deep {layers}")
    cfg = random_config(rng, L=layers, recompute="full:N", family="llama", s=17)
    _assert_equal([(cfg, How(set_to_none=False))])


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_step_after_empty_gradients_is_the_second_step(optimizer):
    """The shortcut the other tests take (`quick`) changes nothing the second step shows."""
    cfg = RefConfig(recompute="sac", precision="mixed")
    short, whole = (run_step(cfg, How(optimizer=optimizer), quick=quick) for quick in (True, False))
    assert (short.phase_peaks, short.live_before, short.saved) == (
        whole.phase_peaks,
        whole.live_before,
        whole.saved,
    )
