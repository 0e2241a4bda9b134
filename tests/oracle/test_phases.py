"""The first step and an evaluation of drawn decoders, against PyTorch on tensors without data."""

from __future__ import annotations

import random
from dataclasses import replace
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from memcalc.engine.make_plan import plan_of as engine_plan
from memcalc.engine.phases.evaluation import evaluation
from memcalc.engine.phases.first_step import first_step
from memcalc.engine.plan import Plan
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support import hf
from tests.oracle.support.compare import random_config, random_extras, random_how, said
from tests.oracle.support.reference import How, RefConfig, build, plan_of
from tests.oracle.support.step import run_step
from tests.oracle.support.tiny import TINY, attention_of

SMALL = RefConfig(b=1, s=16, V=64, L=3, precision="mixed")
#: Optimizers whose first step differs in how states come into being.
HOWS = [
    How(optimizer="momentum"), How(optimizer="momentum", grad_clip=True), How(optimizer="sgd"),
    How(optimizer="adafactor"), How(optimizer="adafactor", impl="loop"), How(optimizer="muon"),
    How(grad_clip=True), How(impl="loop", grad_clip=True), How(set_to_none=False),
    How(set_to_none=False, accum=2), How(optimizer="momentum", impl="loop"),
]  # fmt: skip


def drawn(seed: int) -> tuple[RefConfig, How]:
    rng = random.Random(seed)
    cfg = random_config(rng)
    return replace(cfg, **random_extras(rng, cfg)), random_how(rng)


def check_first(cfg: RefConfig, how: How) -> None:
    seen = run_step(cfg, how, steps=1).phase_peaks
    ours = first_step(plan_of(cfg, how))
    silent = {"optimizer"} - seen.keys()  # SGD makes nothing
    found = {name: size for name, size in ours.items() if name not in silent}
    assert found == {name: seen[name].nbytes for name in found}, said(cfg)


@pytest.mark.parametrize("seed", range(12))
def test_each_phase_of_the_first_step_of_a_drawn_decoder(seed):
    check_first(*drawn(seed))


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_each_phase_of_an_optimizers_first_step(how):
    check_first(SMALL, how)


def test_master_copies_exist_before_the_first_step():
    check_first(replace(SMALL, precision="bf16"), How(master=True))


def without_dropout(seed: int) -> tuple[RefConfig, How]:
    """What is drawn, as far as the harness can evaluate it: it has no mode for that."""
    cfg, how = drawn(seed)
    return replace(cfg, dropout=0.0, attention_dropout=0.0), how


def evaluated(cfg: RefConfig, how: How) -> int:
    """The peak of PyTorch's forward pass without gradients, over what stands."""
    model = build(cfg, "meta", how).eval()
    ids = torch.zeros(cfg.b, cfg.s, dtype=torch.long, device="meta")
    tracker = StorageTracker("meta")
    tracker.track(model, ids)
    before = tracker.live
    tracker.reset()
    with torch.no_grad(), tracker:
        model(ids, ids)
    return tracker.peak - before


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_the_peak_of_a_forward_pass_without_gradients(seed):
    cfg, how = without_dropout(seed)
    assert evaluation(plan_of(cfg, how)).forward_bytes == evaluated(cfg, how), said(cfg)


def hf_plan(family: str, vocab: int) -> Plan:
    """The engine's plan of a tiny model of transformers with so many words."""
    config = {**TINY[family], "vocab_size": vocab}
    setup = TrainingSetup(
        seq_len=64, micro_batch_size=2, stack="hf", precision="bf16",
        attention=attention_of(family),
    )  # fmt: skip
    return engine_plan(model_from_config(config, "m"), setup, {"watched": True})


def evaluated_by_hf(family: str, vocab: int) -> int:
    """The peak of its forward pass without gradients, over what stands."""
    config, kernel = {**TINY[family], "vocab_size": vocab}, attention_of(family)
    own = hf.as_config(config)
    own.use_cache = False
    with mock.patch(hf._PACKED_SEQUENCES, lambda position_ids: None), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            own, dtype=torch.bfloat16,
            attn_implementation=hf._KERNEL_NAME if kernel == "flash" else kernel,
        ).eval()  # fmt: skip
        ids = torch.zeros(2, 64, dtype=torch.long)
        tracker = StorageTracker("meta")
        tracker.track(model, ids)
        before = tracker.live
        tracker.reset()
        with torch.no_grad(), tracker:
            model(input_ids=ids, labels=ids, use_cache=False)
    return tracker.peak - before


@pytest.mark.parametrize("vocab", [40, 1000])
@pytest.mark.parametrize("family", TINY)
def test_an_evaluation_of_transformers_own_code(family, vocab):
    """A small vocabulary, so that blocks decide, and one where the loss does."""
    assert evaluation(hf_plan(family, vocab)).forward_bytes == evaluated_by_hf(family, vocab)


def test_kept_logits_are_held_three_ways_as_they_are_concatenated():
    """Old ones, new ones, and both together, as transformers' Trainer joins them."""
    from transformers.trainer_pt_utils import nested_concat

    found = evaluation(plan_of(SMALL), batches=5)
    shape = (SMALL.b, SMALL.s, SMALL.V)
    tracker = StorageTracker("meta")
    with tracker:
        kept = torch.empty(shape, dtype=torch.float32, device="meta")
        for _ in range(4):
            new = torch.empty(shape, dtype=torch.float32, device="meta")
            kept = nested_concat(kept, new)
            del new
    assert tracker.peak == 2 * 5 * found.logits_bytes
    assert found.peak_bytes == found.standing_bytes + max(
        tracker.peak, 4 * found.logits_bytes + found.forward_bytes
    )
    assert evaluation(plan_of(SMALL)).peak_bytes == found.standing_bytes + found.forward_bytes
    assert evaluation(plan_of(SMALL), batches=4000).peak_at == "eval/kept_logits"
