"""AdaLoRA against PEFT and transformers: every event of a micro-batch, whole steps, scores of importance."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from memcalc.inputs.peft import PeftSetup
from tests.oracle.support.hf import as_config
from tests.oracle.support.peft_compare import differences, step_differences
from tests.oracle.support.peft_models import PeftRun
from tests.oracle.support.tiny import TINY, attention_of

LLAMA = {**TINY["llama"], "num_hidden_layers": 5}
ALL = ("all-linear",)


def svd_run(setup: PeftSetup, **options: Any) -> PeftRun:
    method = peft.AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=setup.low_rank,
        target_modules="all-linear" if setup.targets == ALL else list(setup.targets) or None,
        lora_dropout=setup.dropout,
        total_step=1000,
    )
    return PeftRun(method=method, widens=setup.dtype is None, **options)


@pytest.mark.parametrize("checkpoint", ["none", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [None, "bf16"])
@pytest.mark.parametrize("targets", [(), ALL], ids=["qv", "all"])
def test_on_llama(
    targets: tuple[str, ...], dtype: str | None, dropout: float, checkpoint: str
) -> None:
    setup = PeftSetup(method="adalora", targets=targets, dtype=dtype, dropout=dropout)
    assert not differences(LLAMA, svd_run(setup, checkpoint=checkpoint), setup)


@pytest.mark.parametrize("family", ["gemma2", "gptj", "gpt_neox", "opt", "bloom", "qwen2", "gpt2"])
def test_defaults_of_every_family(family: str) -> None:
    setup = PeftSetup(method="adalora", rank=3)
    run = svd_run(setup, attention=attention_of(family))
    assert not differences(TINY[family], run, setup)


def test_under_autocast() -> None:
    setup = PeftSetup(method="adalora", targets=ALL)
    assert not differences(LLAMA, svd_run(setup, base="fp32", autocast=True), setup)


def test_whole_steps() -> None:
    """PEFT keeps importance beside AdamW's two states, three tensors a parameter, once it is asked to."""
    setup = PeftSetup(method="adalora", targets=ALL)
    run = svd_run(setup, steps=2)
    found = step_differences(LLAMA, run, setup)
    mine, theirs = (int(found[0].split()[i].strip(",")) for i in (1, 3))
    assert found[1:] == [] and mine == theirs + scores(run)


def scores(run: PeftRun) -> int:
    """Bytes of the tensors of RankAllocator after its first update, on a host."""
    model = AutoModelForCausalLM.from_config(as_config(LLAMA))
    made: Any = peft.get_peft_model(model, run.method)
    ids = torch.zeros(1, 8, dtype=torch.long)
    made(input_ids=ids, labels=ids).loss.backward()
    made.base_model.update_and_allocate(1)
    kept = made.base_model.rankallocator
    groups = (kept.ipt, kept.exp_avg_ipt, kept.exp_avg_unc)
    return sum(one.nbytes for group in groups for one in group.values())
