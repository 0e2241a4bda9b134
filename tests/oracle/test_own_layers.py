"""Stacks torchtune and torchtitan against their layers written out in PyTorch, event for event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.make_plan import make_plan
from memcalc.engine.program import expanded
from memcalc.engine.timeline import size_values
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve
from tests.oracle.support.engine import steps
from tests.oracle.support.own_layers import steps_of
from tests.oracle.support.reference import RefConfig, model_of

SHAPE = (2, 48)


def _engine_steps(
    config: ModelConfig, stack: str, setup: dict[str, Any], **kernels: Any
) -> list[tuple[int, list[int]]]:
    stated = TrainingSetup(
        micro_batch_size=SHAPE[0], seq_len=SHAPE[1], precision="bf16", stack=stack, **setup
    )
    overrides = {"watched": True, **kernels}
    plan = make_plan(resolve(stated, config), load_stack(stack), overrides)
    structure, runs = plan.structure(False)
    stream = expanded(structure, runs)
    sizes = stream.sizes(size_values(structure, plan.values))
    return steps([sizes[e] if e >= 0 else -sizes[~e] for e in stream.events])


def _config(**changes: Any) -> ModelConfig:
    return model_of(RefConfig(V=700, h=96, L=5, a=6, k=2, d=16, f=208, **changes))


def _same(ours: list[tuple[int, list[int]]], theirs: list[tuple[int, list[int]]]) -> None:
    for number, (mine, torchs) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
        assert mine == torchs, f"allocation {number} of {len(ours)}, {len(theirs)}"
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    ("changes", "packed", "chunks"),
    [
        ({}, True, 0),
        ({"k": 6, "tied": True}, False, 0),
        ({"tied": True}, True, 4),
        ({"k": 1}, True, 3),
    ],
)
def test_torchtune(recompute: str, changes: dict[str, Any], packed: bool, chunks: int) -> None:
    config = replace(_config(), **_named(changes))
    setup = {"recompute": recompute}
    setup |= {"loss": "chunked", "loss_chunks": chunks} if chunks else {}
    how = {"recompute": recompute, "chunks": chunks}
    theirs = steps_of(config, "torchtune", SHAPE, how, packed)
    _same(_engine_steps(config, "torchtune", setup, packed=packed), theirs)


def _named(changes: dict[str, Any]) -> dict[str, Any]:
    names = {"k": "num_key_value_heads", "tied": "tie_word_embeddings"}
    return {names[key]: value for key, value in changes.items()}


@pytest.mark.parametrize("recompute", ["none", "sac", "full"])
@pytest.mark.parametrize("changes", [{}, {"k": 6}, {"k": 1}])
def test_torchtitan(recompute: str, changes: dict[str, Any]) -> None:
    """sac is torchtitan's: the attention kernel and every second product are kept."""
    config = replace(_config(), **_named(changes))
    theirs = steps_of(config, "torchtitan", SHAPE, {"recompute": recompute})
    _same(_engine_steps(config, "torchtitan", {"recompute": recompute}), theirs)
