"""LoRA on T5 and BERT against PEFT: parameters, saved bytes, peak of a micro-batch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

peft = pytest.importorskip("peft")

from memcalc.engine.make_plan import plan_of  # noqa: E402
from memcalc.harness.watch.tracker import StorageTracker  # noqa: E402
from memcalc.inputs.hf import model_from_config  # noqa: E402
from memcalc.inputs.peft import PeftSetup  # noqa: E402
from memcalc.inputs.training import TrainingSetup  # noqa: E402
from tests.oracle.support.encoders import BERT, T5, traced  # noqa: E402
from tests.oracle.support.hf import _one_byte_dropout_masks  # noqa: E402
from tests.oracle.support.hf_encoders import DTYPES, build, inputs_of  # noqa: E402

V11 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SHAPE = (2, 50, 33)


def _run_peft(
    config: dict[str, Any], setup: TrainingSetup, method: PeftSetup
) -> tuple[int, int, int]:
    """(parameters, saved bytes, peak over what existed before) of a micro-batch under PEFT."""
    with ExitStack() as stack:
        stack.enter_context(_one_byte_dropout_masks())
        with torch.device("meta"):
            model = build(config, setup.attention, DTYPES[setup.precision])
            inputs = inputs_of(config, SHAPE)
            targets = list(method.targets)
            lora = peft.LoraConfig(
                r=method.rank,
                target_modules=targets[0] if targets == ["all-linear"] else targets or None,
                lora_dropout=method.dropout,
            )
            tuned = peft.get_peft_model(model, lora).train()
        if setup.recompute == "full":
            model.activation_checkpointing_enable({"use_reentrant": False})
        tracker = StorageTracker("meta")
        tracker.track(tuned, *{id(t): t for t in inputs.values()}.values())
        base = tracker.live
        with tracker:
            loss = tuned(**inputs).loss
            saved = tracker.live - base
            tracker.set_phase("backward")
            loss.backward()
            del loss
    return sum(p.numel() for p in tuned.parameters()), saved, tracker.peak - base


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (T5, ()),
        (V11, ("q", "k", "v", "o", "wi_0", "wi_1", "wo")),
        (V11, ("all-linear",)),
        (BERT, ()),
        (BERT, ("query", "dense")),
        (BERT, ("all-linear",)),
    ],
    ids=["t5", "t5-v1.1-named", "t5-v1.1-all", "bert", "bert-named", "bert-all"],
)
def test_lora(
    config: dict[str, Any], targets: tuple[str, ...], dropout: float, recompute: str
) -> None:
    for attention, precision in (("eager", "fp32"), ("efficient", "bf16")):
        method = PeftSetup(method="lora", rank=4, dropout=dropout, targets=targets)
        setup = TrainingSetup(
            seq_len=SHAPE[1],
            target_seq_len=SHAPE[2] if config["model_type"] == "t5" else None,
            micro_batch_size=SHAPE[0],
            precision=precision,
            recompute=recompute,
            attention=attention,
            stack="hf",
            peft=method,
        )
        mine = traced(plan_of(model_from_config(config, "m"), setup, {"watched": True}))
        theirs = _run_peft(config, setup, method)
        assert (mine.params, mine.saved, mine.peak_over_params) == theirs
