"""Prompt tuning, P-tuning and prefix tuning against PEFT and transformers, as oracle/test_peft.py."""

from __future__ import annotations

from typing import Any

import peft
import pytest

from memcalc.inputs.peft import PeftSetup
from tests.oracle.support.peft_compare import differences, step_differences
from tests.oracle.support.peft_models import PeftRun
from tests.oracle.support.tiny import TINY, attention_of

LLAMA = {**TINY["llama"], "num_hidden_layers": 5}
FAMILIES = (
    "llama", "mistral", "qwen3", "gemma2", "gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "phi3",
    "olmo2",
)  # fmt: skip
#: PEFT gives prefix tuning of Gemma caches of windows, and the tiny Falcon, of one head, keys of four.
_PREFIX = tuple(name for name in FAMILIES if name not in ("gemma2", "falcon"))


def config_of(setup: PeftSetup) -> peft.PeftConfig:
    """The same in PEFT's words."""
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": setup.tokens}
    if setup.method == "prompt":
        return peft.PromptTuningConfig(**common)
    common |= {"encoder_hidden_size": setup.encoder_width}
    if setup.method == "p-tuning":
        return peft.PromptEncoderConfig(**common)
    return peft.PrefixTuningConfig(**common, prefix_projection=setup.projection)


def virtual_run(setup: PeftSetup, **options: Any) -> PeftRun:
    return PeftRun(method=config_of(setup), **options)


@pytest.mark.parametrize("checkpoint", ["none", "full", "reentrant"])
@pytest.mark.parametrize("width", [None, 96])
def test_prompts_and_their_encoder(width: int | None, checkpoint: str) -> None:
    method = "prompt" if width is None else "p-tuning"
    setup = PeftSetup(method=method, virtual_tokens=7, encoder_width=width)
    assert not differences(LLAMA, virtual_run(setup, checkpoint=checkpoint), setup)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_every_family(family: str) -> None:
    setup = PeftSetup(method="p-tuning")
    for checkpoint in ("none", "full"):
        run = virtual_run(setup, attention=attention_of(family), checkpoint=checkpoint)
        assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("attention", ["efficient", "eager"])
def test_prefixes(attention: str, projection: bool, batch: int) -> None:
    for tokens in (12, 16):  # rows of 76 keys are padded, rows of 80 are not
        setup = PeftSetup(method="prefix", virtual_tokens=tokens, projection=projection)
        run = virtual_run(setup, attention=attention, batch=batch)
        assert not differences(TINY["llama"], run, setup)


@pytest.mark.parametrize("family", _PREFIX)
def test_prefixes_of_every_family(family: str) -> None:
    setup = PeftSetup(method="prefix", virtual_tokens=5, projection=True, encoder_width=48)
    run = virtual_run(setup, attention="eager")
    assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gpt2", "opt", "gpt_neox", "phi3"])
def test_prefixes_under_a_mask(family: str) -> None:
    setup = PeftSetup(method="prefix")
    assert not differences(TINY[family], virtual_run(setup, attention="efficient"), setup)


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "prefix"])
def test_under_autocast(method: str) -> None:
    setup = PeftSetup(method=method)
    attention = "efficient" if method == "prefix" else "flash"
    for family in ("llama", "gpt2"):
        run = virtual_run(setup, base="fp32", autocast=True, attention=attention)
        assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "prefix"])
def test_whole_steps(method: str) -> None:
    setup = PeftSetup(method=method)
    attention = "efficient" if method == "prefix" else "flash"
    assert not step_differences(LLAMA, virtual_run(setup, steps=2, attention=attention), setup)
