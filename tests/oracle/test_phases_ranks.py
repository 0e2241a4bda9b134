"""Phases in divided layouts beside PyTorch's own: evaluation and the first step of a rank.

On the fake process group, tensors without data: FSDP2 with what it frees or keeps after forward, DDP,
tensor and sequence parallelism, and both. A small vocabulary lets blocks decide, a larger one the loss.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor.parallel import loss_parallel
from transformers import AutoModelForCausalLM

from memcalc.engine.make_plan import plan_of
from memcalc.engine.phases.evaluation import evaluation
from memcalc.engine.phases.first_step import first_step
from memcalc.engine.plan import Plan
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support import hf
from tests.oracle.support.data_parallel import engine_plan
from tests.oracle.support.encoders import BERT, T5
from tests.oracle.support.hf_encoders import DTYPES, build, inputs_of
from tests.oracle.support.rank import fake_ranks, without_data
from tests.oracle.support.rank_draw import RankSetup
from tests.oracle.support.rank_tracker import RankTracker, tracked
from tests.oracle.support.tiny import TINY
from tests.oracle.test_peft import lora

BF16 = TrainingSetup(seq_len=24, micro_batch_size=2, precision="bf16")
MIXED = replace(BF16, precision="bf16-mixed")
NARROW = replace(LLAMA, vocab_size=40)
DEEP = replace(NARROW, num_hidden_layers=7)
FSDP = Layout(dp=4, fsdp=True)
CASES = {
    "fsdp": RankSetup(LLAMA, BF16, FSDP),
    "fsdp, blocks decide, cast": RankSetup(NARROW, MIXED, Layout(dp=8, fsdp=True)),
    "fsdp kept": RankSetup(DEEP, BF16, replace(FSDP, reshard=False)),
    "fsdp, on 4 of 8 between": RankSetup(NARROW, BF16, Layout(dp=8, fsdp=True, reshard=4)),
    "hsdp": RankSetup(GPT2, MIXED, Layout(dp=8, fsdp=True, shard=4)),
    "ddp": RankSetup(NARROW, MIXED, Layout(dp=4)),
    "tp": RankSetup(LLAMA, replace(BF16, precision="fp32", loss="plain"), Layout(tp=2)),
    "tp, sp": RankSetup(NARROW, BF16, Layout(tp=2, sp=True)),
    "fsdp x tp": RankSetup(LLAMA, BF16, Layout(dp=4, tp=2, fsdp=True)),
}


def evaluated(case: RankSetup) -> tuple[int, int]:
    """An evaluation by PyTorch: the peak of its first batch over what stood, and what stays gathered."""
    with fake_ranks(case.layout) as ranks, without_data(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = RankStep(case.plan(), ranks)
        parallel = loss_parallel if case.layout.tp > 1 else contextlib.nullcontext
        step.run()
        with torch.no_grad(), parallel():
            step.called(step.ids, step.labels)  # DTensor has met every operator now
        step.run()
        tracker = RankTracker("cpu", [])
        tracker.as_cuda = True
        tracker.track(step.model, step.ids)
        before = tracker.live
        tracker.reset()
        with torch.no_grad(), parallel(), tracker:
            step.called(step.ids, step.labels)
            after = tracker.live
    return tracker.peak - before, after - before


@pytest.mark.parametrize("name", CASES)
def test_an_evaluation_of_a_rank(name: str) -> None:
    found = evaluation(engine_plan(CASES[name]))
    assert (found.forward_bytes, found.gathered_bytes) == evaluated(CASES[name])


def stepped_first(case: RankSetup) -> Mapping[str, int]:
    """Peaks of the first step's phases by PyTorch. Steps before it, of another model, know DTensor."""
    with fake_ranks(case.layout) as ranks, without_data(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            RankStep(case.plan(), ranks).run()
        step = RankStep(case.plan(), ranks)
        seen, _ = tracked(step)
    return seen.phases


@pytest.mark.parametrize("name", ["fsdp", "fsdp kept", "ddp"])
def test_the_first_step_of_a_rank(name: str) -> None:
    """Optimizer states come into being at its end.

    DDP's first buckets are seen once gradients are in them: from backward on.
    """
    ours, seen = first_step(engine_plan(CASES[name])), stepped_first(CASES[name])
    held = ("backward", "optimizer") if name == "ddp" else tuple(ours)
    assert {phase: ours[phase] for phase in held} == {phase: seen[phase] for phase in held}


def test_kept_logits_are_those_of_every_rank() -> None:
    """transformers gathers each batch over the ranks, then joins it to what there is."""
    plan = engine_plan(CASES["ddp"])
    alone, kept = evaluation(plan), evaluation(plan, 3)
    each = 2 * 24 * 40 * 4
    assert kept.logits_bytes == each
    together = 2 * 3 * 4 * each
    over = max(together, 2 * 4 * each + alone.forward_bytes)
    assert kept.peak_bytes == alone.standing_bytes + over


ENCODERS = {"t5": T5, "bert": BERT}
_SHAPE = (2, 50, 33)


def encoder_plan(config: dict[str, Any]) -> Plan:
    """The engine's plan of an encoder's evaluation."""
    setup = TrainingSetup(
        seq_len=_SHAPE[1], target_seq_len=_SHAPE[2] if config is T5 else None, attention="eager",
        micro_batch_size=_SHAPE[0], precision="bf16", stack="hf",
    )  # fmt: skip
    return plan_of(model_from_config(config, "m"), setup, {"watched": True})


def encoder_evaluated(config: dict[str, Any]) -> int:
    """Its peak by transformers, over what stands."""
    with torch.device("meta"):
        model = build(config, "eager", DTYPES["bf16"]).eval()
        inputs = inputs_of(config, _SHAPE)
        tracker = StorageTracker("meta")
        tracker.track(model, *inputs.values())
        before = tracker.live
        tracker.reset()
        with torch.no_grad(), tracker:
            model(**inputs)
    return tracker.peak - before


@pytest.mark.parametrize("name", ENCODERS)
def test_an_evaluation_of_encoders(name: str) -> None:
    config = ENCODERS[name]
    assert evaluation(encoder_plan(config)).forward_bytes == encoder_evaluated(config)


_TUNED = {**TINY["llama"], "vocab_size": 40}
_ADAPTERS = PeftSetup(rank=4, targets=("all-linear",))


def adapter_plan(dropout: float) -> Plan:
    """The engine's plan of an evaluation beside adapters."""
    training = TrainingSetup(
        seq_len=64, micro_batch_size=2, stack="hf", precision="bf16",
        peft=replace(_ADAPTERS, dropout=dropout, dtype="bf16"),
    )  # fmt: skip
    return plan_of(model_from_config(_TUNED, "m"), training, {"watched": True})


def adapter_evaluated(dropout: float) -> int:
    """Its peak by PEFT, over what stands."""
    import peft

    setup = replace(_ADAPTERS, dropout=dropout)
    own = hf.as_config(_TUNED)
    own.use_cache = False
    with mock.patch(hf._PACKED_SEQUENCES, lambda position_ids: None), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            own, dtype=torch.bfloat16, attn_implementation=hf._KERNEL_NAME
        )
        tuned = peft.get_peft_model(model, lora(setup), autocast_adapter_dtype=False).eval()
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        ids = torch.zeros(2, 64, dtype=torch.long)
        tracker = StorageTracker("meta")
        tracker.track(tuned, ids)
        before = tracker.live
        tracker.reset()
        with torch.no_grad(), tracker:
            tuned(input_ids=ids, labels=ids, use_cache=False)
    return tracker.peak - before


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_evaluation_beside_adapters(dropout: float) -> None:
    """Adapters without their dropout."""
    assert evaluation(adapter_plan(dropout)).forward_bytes == adapter_evaluated(dropout)
