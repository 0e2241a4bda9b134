"""Cases of one GPU, stack torch: parameters, bytes saved for backward, the peak of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
import transformers

from benchmarks.exact.case import Answer, Case, counted, drawn_by
from memcalc.accuracy import textbook
from memcalc.engine.memory import step_memory
from memcalc.harness.model.decoder import build
from memcalc.inputs.models import load_model
from tests.oracle import (
    test_every_decoder,
    test_profile_parameters,
    test_step_peak,
    test_torch_saved,
)
from tests.oracle.support.compare import RECOMPUTES, memory_of, record_of, said
from tests.oracle.support.reference import How, RefConfig, model_of, setup_of
from tests.oracle.support.step import saved_bytes

PARAMETERS, SAVED, PEAK = "parameters", "saved for backward", "peak of a step"
PROFILE_SAVED = "saved for backward, published widths"
PROFILE_PEAK = "peak of backward, published widths"


def profiles() -> Iterator[Case]:
    """Parameters of every model profile that transformers has a class for."""
    for name in test_profile_parameters.with_class():
        yield Case(
            name, f"{name}, every layer",
            lambda name=name: {PARAMETERS: counted(load_model(name))},
            partial(_counted_by_transformers, name),
            lambda name=name: {PARAMETERS: textbook.parameters(load_model(name))},
        )  # fmt: skip


def _counted_by_transformers(name: str) -> Answer:
    found = test_profile_parameters.config_of(name)
    assert found is not None
    kind, keys = found
    config = transformers.CONFIG_MAPPING[kind](**keys)
    config.dtype = None
    auto = test_profile_parameters.AUTO.get(kind, transformers.AutoModelForCausalLM)
    with torch.device("meta"):
        model = auto.from_config(config)
        if keys.get("tie_word_embeddings") is False and kind in test_profile_parameters.T5S:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return {PARAMETERS: sum(p.numel() for p in model.parameters())}


def widths() -> Iterator[Case]:
    """Four layers of every profile's decoder, at its own width."""
    for name in test_every_decoder.DECODERS:
        yield Case(
            name, f"{name}, at most 4 layers, 2 x 64 tokens, bf16",
            partial(_width, name), partial(_width_by_torch, name), partial(_width_by_hand, name),
        )  # fmt: skip


def _plan(name: str) -> Any:
    return test_every_decoder._plan(name)


def _width(name: str) -> Answer:
    told = step_memory(_plan(name))
    moments = told.states.optimizer_bytes + told.states.master_bytes
    return {PROFILE_SAVED: told.saved_bytes, PROFILE_PEAK: told.phases["backward"] - moments}


def _width_by_torch(name: str) -> Answer:
    model = build(_plan(name), "meta", seed=None)
    saved, peak = test_every_decoder.saved_and_peak(model)
    return {PROFILE_SAVED: saved, PROFILE_PEAK: peak}


def _width_by_hand(name: str) -> Answer:
    plan = _plan(name)
    setup = replace(plan.resolved.setup, optimizer="none")  # the oracle's step has no optimizer
    return {
        PROFILE_SAVED: textbook.saved_bytes(plan.config, setup),
        PROFILE_PEAK: textbook.peak_bytes(plan.config, setup, counted(plan.config)),
    }


def saved() -> Iterator[Case]:
    """Every norm, kernel of attention, loss, precision and way to recompute, on random small models."""
    ways = product(RECOMPUTES, ("bf16", "mixed", "fp32"))
    drawn = [
        (f"{recompute} {precision} {number}", cfg)
        for recompute, precision in ways
        for number, cfg in enumerate(test_torch_saved._drawn(recompute, precision))
    ]
    for name, cfg in drawn:
        yield Case(
            name, said(cfg),
            lambda cfg=cfg: {SAVED: memory_of(cfg).saved_bytes},
            lambda cfg=cfg: {SAVED: saved_bytes(cfg)},
            lambda cfg=cfg: {SAVED: textbook.saved_bytes(model_of(cfg), setup_of(cfg))},
        )  # fmt: skip


def peaks() -> Iterator[Case]:
    """Second steps of random small models, with every optimizer."""
    tests = [name for name in vars(test_step_peak) if name.startswith("test_peaks_")]
    runs = [
        run for (listed,) in drawn_by(test_step_peak, "_assert_equal", *tests) for run in listed
    ]
    for number, (cfg, how) in enumerate(runs):
        yield Case(
            f"{number}", f"{said(cfg)}; {how.optimizer} {how.impl} x{how.accum}",
            lambda cfg=cfg, how=how: {PEAK: memory_of(cfg, how).peak_bytes},
            partial(_peak_by_torch, cfg, how), partial(_peak_by_hand, cfg, how),
        )  # fmt: skip


def _peak_by_torch(cfg: RefConfig, how: How) -> Answer:
    seen = record_of(cfg, how)
    gradients = seen.param_bytes if how.set_to_none and not how.in_backward else 0
    return {PEAK: max(seen.peak, seen.live_before + gradients)}


def _peak_by_hand(cfg: RefConfig, how: How) -> Answer:
    config = model_of(cfg)
    return {PEAK: textbook.peak_bytes(config, setup_of(cfg, how), counted(config))}
