"""Fine-tuning against PEFT and transformers: parameters, every event of a micro-batch, whole steps.

Under autocast the CPU's rules cast in another order, so saved bytes and each phase's peak are held
instead of events. bf16 weights under autocast are held for families with RMSNorm: a CPU's autocast
leaves layer norms in 16 bit, CUDA's does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest

from memcalc.inputs.peft import PeftSetup
from tests.oracle.support.encoders import BERT, T5
from tests.oracle.support.peft_compare import differences, step_differences
from tests.oracle.support.peft_models import PeftRun
from tests.oracle.support.tiny import TINY, attention_of

LLAMA = {**TINY["llama"], "num_hidden_layers": 4}
V11 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ALL = ("all-linear",)
#: Families PEFT has default targets for, and two it has none for.
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gptj", "gpt_neox", "opt",
    "bloom", "falcon", "phi3", "olmo2",
)  # fmt: skip
_NO_DEFAULT = ("phi3", "olmo2")
_LAYER_NORM = ("gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon")
#: Their layers hand attention weights on, which reentrant checkpointing gives a gradient of zeros.
_HAND_WEIGHTS_ON = ("gptj", "bloom", "falcon")


def lora(setup: PeftSetup, **options: Any) -> peft.LoraConfig:
    """The same in PEFT's words."""
    targets: Any = list(setup.targets) or None
    return peft.LoraConfig(
        **{"task_type": "CAUSAL_LM", **options},
        r=setup.low_rank,
        target_modules="all-linear" if setup.targets == ALL else targets,
        lora_dropout=setup.dropout,
    )


def lora_run(setup: PeftSetup, **options: Any) -> PeftRun:
    return PeftRun(method=lora(setup), widens=setup.dtype is None, **options)


def last_layers(layers: int, part: str = "") -> Callable[[Any], None]:
    """Freeze all but the last layers, or but a part of them."""

    def freeze(model: Any) -> None:
        model.requires_grad_(False)
        for layer in model.model.layers[-layers:]:
            (getattr(layer, part) if part else layer).requires_grad_(True)

    return freeze


def biases(model: Any) -> None:
    """BitFit: nothing but biases trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))


@pytest.mark.parametrize("checkpoint", ["none", "full", "reentrant"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_frozen_layers_keep_nothing(layers: int, checkpoint: str) -> None:
    run = PeftRun(method=last_layers(layers), checkpoint=checkpoint)
    assert not differences(LLAMA, run, PeftSetup(method="freeze", layers=layers))


@pytest.mark.parametrize(("base", "autocast"), [("fp32", False), ("fp32", True)])
def test_frozen_layers_in_fp32_and_under_autocast(base: str, autocast: bool) -> None:
    run = PeftRun(method=last_layers(1), base=base, autocast=autocast)
    assert not differences(LLAMA, run, PeftSetup(method="freeze", layers=1))


def test_only_the_mlps_of_the_last_layers_train() -> None:
    setup = PeftSetup(method="freeze", layers=2, targets=("gate_proj", "up_proj", "down_proj"))
    assert not differences(LLAMA, PeftRun(method=last_layers(2, "mlp")), setup)


@pytest.mark.parametrize("checkpoint", ["none", "full"])
@pytest.mark.parametrize("family", [*_LAYER_NORM, "qwen2"])
def test_bitfit(family: str, checkpoint: str) -> None:
    run = PeftRun(method=biases, checkpoint=checkpoint, attention=attention_of(family))
    assert not differences(TINY[family], run, PeftSetup(method="bitfit"))


@pytest.mark.parametrize("checkpoint", ["none", "full", "reentrant"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [None, "bf16"])
@pytest.mark.parametrize("targets", [(), ALL, ("k_proj", "down_proj")], ids=["qv", "all", "kd"])
def test_lora_on_llama(
    targets: tuple[str, ...], dtype: str | None, dropout: float, checkpoint: str
) -> None:
    setup = PeftSetup(targets=targets, dtype=dtype, dropout=dropout, rank=4)
    assert not differences(LLAMA, lora_run(setup, checkpoint=checkpoint), setup)


@pytest.mark.parametrize("rank", [1, 16, 64])
def test_any_rank(rank: int) -> None:
    setup = PeftSetup(targets=ALL, rank=rank)
    assert not differences(LLAMA, lora_run(setup, batch=1, seq=32), setup)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_of_every_family(family: str) -> None:
    setup = PeftSetup(dropout=0.05, targets=ALL if family in _NO_DEFAULT else ())
    assert not differences(
        TINY[family], lora_run(setup, attention=attention_of(family), checkpoint="full"), setup
    )


@pytest.mark.parametrize("checkpoint", ["none", "reentrant"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_linears_of_every_family(family: str, checkpoint: str) -> None:
    if checkpoint == "reentrant" and family in _HAND_WEIGHTS_ON:
        checkpoint = "full"
    setup = PeftSetup(dtype="bf16", targets=ALL, rank=4)
    run = lora_run(setup, attention=attention_of(family), checkpoint=checkpoint)
    assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "falcon"])
def test_fp32_weights_under_autocast(family: str) -> None:
    """Falcon, whose Python lists become constants on the host, is left out."""
    setup = PeftSetup(dropout=0.1, targets=ALL, rank=4)
    run = lora_run(setup, base="fp32", autocast=True, attention=attention_of(family))
    assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("dtype", [None, "bf16"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in _LAYER_NORM])
def test_bf16_weights_under_autocast(family: str, dtype: str | None) -> None:
    setup = PeftSetup(dropout=0.1, targets=ALL, rank=4, dtype=dtype)
    run = lora_run(setup, autocast=True, attention=attention_of(family))
    assert not differences(TINY[family], run, setup)


_IA3_FAMILIES = (*(name for name in FAMILIES if name not in (*_NO_DEFAULT, "qwen3")),)


@pytest.mark.parametrize("family", _IA3_FAMILIES)
def test_ia3(family: str) -> None:
    attention = attention_of(family)
    method = peft.IA3Config(task_type="CAUSAL_LM")
    for dtype, checkpoint in ((None, "full"), ("bf16", "none")):
        setup = PeftSetup(method="ia3", dtype=dtype)
        run = PeftRun(
            method=method, widens=dtype is None, attention=attention, checkpoint=checkpoint
        )
        assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_ia3_under_autocast(family: str) -> None:
    method = peft.IA3Config(task_type="CAUSAL_LM")
    run = PeftRun(method=method, base="fp32", autocast=True, attention=attention_of(family))
    assert not differences(TINY[family], run, PeftSetup(method="ia3"))


def dora_run(setup: PeftSetup, **options: Any) -> PeftRun:
    return PeftRun(method=lora(setup, use_dora=True), widens=setup.dtype is None, **options)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gemma2", "gptj", "gpt_neox", "opt", "bloom", "gpt2", "falcon"]
)
def test_dora(family: str, dropout: float) -> None:
    if family == "gpt2":
        dropout = 0.0  # its transposed weights become parameters that train
    attention = attention_of(family)
    for dtype, checkpoint, targets in (
        (None, "none", ALL),
        (None, "full", ()),
        ("bf16", "none", ()),
    ):
        setup = PeftSetup(method="dora", rank=4, dropout=dropout, targets=targets, dtype=dtype)
        run = dora_run(setup, attention=attention, checkpoint=checkpoint)
        assert not differences(TINY[family], run, setup)


@pytest.mark.parametrize("base", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dora_under_autocast(dropout: float, base: str) -> None:
    setup = PeftSetup(method="dora", rank=4, dropout=dropout, targets=ALL)
    assert not differences(LLAMA, dora_run(setup, base=base, autocast=True), setup)


@pytest.mark.parametrize("attention", ["eager", "efficient"])
@pytest.mark.parametrize("checkpoint", ["none", "full"])
@pytest.mark.parametrize("config", [T5, V11, BERT], ids=["t5", "t5-v1.1", "bert"])
def test_lora_on_encoders(config: dict[str, Any], checkpoint: str, attention: str) -> None:
    bert = config["model_type"] == "bert"
    for targets, base in (((), "fp32"), (() if bert else ALL, "bf16")):
        setup = PeftSetup(rank=4, dropout=0.1, targets=targets)
        method = lora(setup, task_type=None if bert else "SEQ_2_SEQ_LM")
        run = PeftRun(
            method=method, base=base, checkpoint=checkpoint, attention=attention,
            target=0 if bert else 48,
        )  # fmt: skip
        assert not differences(config, run, setup)


@pytest.mark.parametrize("family", ["llama", "opt", "phi3", "olmo2"])
def test_all_linears_with_eager_attention(family: str) -> None:
    """OPT's gradient of k arrives transposed, and so do its products with a number."""
    setup = PeftSetup(rank=4, dropout=0.1, targets=ALL)
    assert not differences(TINY[family], lora_run(setup, attention="eager"), setup)


def test_all_linears_beside_experts_that_are_no_linears() -> None:
    setup = PeftSetup(rank=4, targets=ALL)
    run = lora_run(setup, attention="eager")
    assert not differences(TINY["gpt_oss"], run, setup)


def test_rslora_and_alpha_change_nothing() -> None:
    setup = PeftSetup(rank=4)
    run = PeftRun(method=lora(setup, use_rslora=True, lora_alpha=64))
    assert not differences(LLAMA, run, setup)


@pytest.mark.parametrize("impl", ["foreach", "loop", "fused"])
@pytest.mark.parametrize("checkpoint", ["none", "full"])
def test_whole_steps_of_lora(impl: str, checkpoint: str) -> None:
    """States of trained leaves alone, and the peak of every phase of the second step."""
    setup = PeftSetup(targets=ALL, rank=4, dropout=0.1)
    run = lora_run(setup, steps=2, impl=impl, checkpoint=checkpoint)
    assert not step_differences(LLAMA, run, setup)


@pytest.mark.parametrize("impl", ["foreach", "loop"])
def test_whole_steps_whose_peak_is_the_optimizer(impl: str) -> None:
    setup = PeftSetup(targets=ALL, rank=64)
    assert not step_differences(LLAMA, lora_run(setup, steps=2, impl=impl, batch=1, seq=8), setup)


def test_whole_steps_of_the_rest() -> None:
    setup = PeftSetup(targets=ALL, rank=4, dropout=0.1)
    assert not step_differences(TINY["gpt2"], lora_run(setup, steps=2), setup)
    mixed = lora_run(setup, steps=2, base="fp32", autocast=True)
    assert not step_differences(LLAMA, mixed, setup)
    frozen = PeftRun(method=last_layers(2), steps=2)
    assert not step_differences(LLAMA, frozen, PeftSetup(method="freeze", layers=2))
