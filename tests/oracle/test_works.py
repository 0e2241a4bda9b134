"""Kernels of a block and the bytes they move, against what PyTorch's dispatcher shows of it.

A model of three blocks less one of two is one block, so that what surrounds the blocks drops out; of
transformers' models two blocks are compared, for some families have two kinds.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from memcalc.engine.dims import dim_values
from memcalc.engine.make_plan import make_plan
from memcalc.engine.plan import Plan
from memcalc.engine.tensors import Tape
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve
from tests.oracle.support import engine, hf, own_layers
from tests.oracle.support.compare import RECOMPUTES, random_config, random_extras, said
from tests.oracle.support.kernels import KernelCounter, engine_kernels
from tests.oracle.support.reference import RefConfig, build, model_of, plan_of
from tests.oracle.support.tiny import TINY, attention_of

#: One operator of two kernels: the gradient of x, and that of weight and bias, which reads both again.
_TWICE = "native_layer_norm_backward"
#: CUDA's own kernels; what stands for them on tensors without data makes memory only.
_STAND_INS = ("_fused_rms_norm", "_fused_rms_norm_backward")
#: Its statistics are padded to 32 queries, which is memory and no traffic.
_PADDED = "_scaled_dot_product_efficient_attention"


def dispatched(cfg: RefConfig) -> tuple[Counter[str], Counter[str]]:
    """Operators and bytes moved by each in one forward and backward."""
    model = build(cfg, "meta")
    ids = torch.zeros(cfg.b, cfg.s, dtype=torch.long, device="meta")
    with KernelCounter() as counter:
        model(ids, ids).backward()
    return counter.launches, counter.moved


def of_a_block(three: Counter[str], two: Counter[str]) -> dict[str, int]:
    """What the third block adds, stand-ins left out."""
    names = [name for name in three if name not in _STAND_INS]
    return {name: three[name] - two[name] for name in names if three[name] != two[name]}


@pytest.mark.parametrize("attention", ["flash", "efficient", "cudnn", "eager"])
@pytest.mark.parametrize("recompute", [kind for kind in RECOMPUTES if kind != "full:N"])
def test_a_block_launches_and_moves_what_the_dispatcher_shows(
    recompute: str, attention: str
) -> None:
    """Three models an item, 72 in all: every operator as often, with the same bytes."""
    rng = random.Random(f"works {recompute} {attention}")
    for _ in range(3):
        cfg = random_config(rng, recompute=recompute, attention=attention)
        cfg = replace(cfg, **random_extras(rng, cfg))
        shown = [dispatched(replace(cfg, L=layers)) for layers in (3, 2)]
        counted = [engine_kernels(plan_of(replace(cfg, L=layers))) for layers in (3, 2)]
        theirs, ours = (of_a_block(x[0][0], x[1][0]) for x in (shown, counted))
        assert ours == theirs, said(cfg)
        theirs, ours = (of_a_block(x[0][1], x[1][1]) for x in (shown, counted))
        for name in (_PADDED, f"{_PADDED}_backward"):
            if name in theirs:
                padded = theirs.pop(name)
                assert 0.9 * padded < ours.pop(name) <= padded, said(cfg)
        if _TWICE in theirs:  # x and the result's gradient, of each of two norms
            width = {"bf16": 2, "mixed": 4, "fp32": 4}[cfg.precision]
            again = 2 * 2 * cfg.b * cfg.s * cfg.h * width
            assert ours.pop(_TWICE) == theirs.pop(_TWICE) + again, said(cfg)
        assert ours == theirs, said(cfg)


class _Tracker(hf.StorageTracker):
    """The tracker of a run of transformers' code, with a counter of kernels inside."""

    counters: list[KernelCounter]

    def __enter__(self) -> Any:
        self.counters.append(KernelCounter())
        self.counters[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.counters[-1].__exit__(*error)


def of_transformers(config: dict[str, Any], checkpoint: bool) -> tuple[int, int]:
    """Kernels and bytes moved in one forward and backward of a model of transformers."""
    _Tracker.counters = []
    with mock.patch.object(hf, "StorageTracker", _Tracker):
        hf.run_hf(config, 2, 64, checkpoint, attention_of(config["model_type"]))
    counters = _Tracker.counters
    return sum(c.launches.total() for c in counters), sum(c.moved.total() for c in counters)


def of_the_engine(config: dict[str, Any], checkpoint: bool) -> tuple[int, int]:
    """The same of the engine's own trace."""
    tapes: list[Tape] = []

    def noted(*args: Any, **options: Any) -> Tape:
        tapes.append(Tape(*args, **options))
        return tapes[-1]

    with mock.patch.object(engine, "Tape", noted):
        engine.trace_hf(config, 2, 64, checkpoint, attention_of(config["model_type"]))
    values = dim_values(model_from_config(config, config["model_type"]), 2, 64)
    moved = sum(kernel.ran.moved.value(values) for kernel in tapes[-1].kernels)
    return len(tapes[-1].kernels), moved


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    "family",
    ["llama", "phi3", "gemma2", "gpt2", "gpt_neox", "bloom", "falcon", "mixtral", "deepseek_v3"],
)
def test_two_blocks_of_transformers_launch_and_move_as_much(family: str, checkpoint: bool) -> None:
    """Operators within 1 %; bytes within 4 %: norms read twice, zeros that take no template."""
    key = next(k for k in ("num_hidden_layers", "n_layer") if k in TINY[family])
    both = []
    for run in (of_transformers, of_the_engine):
        deep, shallow = (run({**TINY[family], key: layers}, checkpoint) for layers in (4, 2))
        both.append((deep[0] - shallow[0], deep[1] - shallow[1]))
    (launches, moved), ours = both
    assert ours[0] == pytest.approx(launches, rel=0.01)
    assert ours[1] == pytest.approx(moved, rel=0.04)


def of_own_layers(
    config: ModelConfig, stack: str, recompute: str
) -> tuple[Counter[str], Counter[str]]:
    """The layers of torchtune or torchtitan written out in PyTorch."""
    how: dict[str, Any] = {"recompute": recompute}
    how |= {"chunks": 0} if stack == "torchtune" else {}
    _Tracker.counters = []
    with mock.patch.object(own_layers, "StorageTracker", _Tracker):
        own_layers.steps_of(config, stack, (2, 48), how)
    return _Tracker.counters[0].launches, _Tracker.counters[0].moved


def plan_of_own(config: ModelConfig, stack: str, recompute: str) -> Plan:
    """The engine's plan of the same, as a tracker sees it."""
    stated = TrainingSetup(
        micro_batch_size=2, seq_len=48, precision="bf16", stack=stack, recompute=recompute
    )
    kernels = {"watched": True} | ({"packed": True} if stack == "torchtune" else {})
    return make_plan(resolve(stated, config), load_stack(stack), kernels)


@pytest.mark.parametrize(
    ("stack", "recompute"),
    [("torchtune", "none"), ("torchtune", "full"), ("torchtitan", "none"), ("torchtitan", "sac")],
)
def test_layers_of_other_codes_launch_what_theirs_do(stack: str, recompute: str) -> None:
    """Every operator as often; bytes within 2 %: slices are written into zeros, tables read in part."""
    both = []
    for layers in (5, 4):
        config = model_of(RefConfig(V=700, h=96, L=layers, a=6, k=2, d=16, f=208))
        theirs = of_own_layers(config, stack, recompute)
        both.append((theirs, engine_kernels(plan_of_own(config, stack, recompute))))
    theirs, ours = (of_a_block(both[0][i][0], both[1][i][0]) for i in (0, 1))
    assert ours == theirs
    moved = [sum(of_a_block(both[0][i][1], both[1][i][1]).values()) for i in (0, 1)]
    assert moved[1] == pytest.approx(moved[0], rel=0.02)
