"""Fine-tuning in the engine: published counts and bytes, states of what trains, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup

ALL = ("all-linear",)
SIX = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
HF = TrainingSetup(stack="hf", precision="bf16", seq_len=2048)


def plan(model: str, peft: PeftSetup | None, *, kernels: Any = None, **fields: Any) -> Plan:
    return plan_of(load_model(model), replace(HF, peft=peft, **fields), kernels)


@pytest.mark.parametrize(
    ("model", "targets", "trained"),
    [
        ("llama-7b", SIX, 17_891_328),  # published: 17.9 M
        ("llama-13b", SIX, 28_016_640),  # published: 28 M
        ("llama-7b", ALL, 19_988_480),
        ("llama-13b", ALL, 31_293_440),
        ("chatglm-6b", ("query_key_value",), 3_670_016),  # published: a file of about 15 MB
    ],
)
def test_published_counts_of_lora_parameters(
    model: str, targets: tuple[str, ...], trained: int
) -> None:
    setup = replace(HF, peft=PeftSetup(targets=targets))
    result = estimate(model, setup, allocator=False)
    assert result.model.trainable_parameters == trained
    assert result.model.adapter_file_bytes == 4 * trained
    assert result.memory.states["gradients"] == 4 * trained
    assert result.memory.states["optimizer"] == 8 * trained


@pytest.mark.parametrize(
    ("peft", "widths"),
    [
        (None, 45.5),
        (PeftSetup(rank=32, targets=ALL, dtype="bf16"), 41.6),
        (PeftSetup(rank=32, dtype="bf16"), 34.2),
        (PeftSetup(rank=32, targets=ALL, dropout=0.05), 101.9),
        (PeftSetup(rank=32, dropout=0.05), 48.2),
    ],
)
def test_bytes_a_token_layer_keeps_in_units_of_the_hidden_size(
    peft: PeftSetup | None, widths: float
) -> None:
    """Llama-2 7B, rank 32, by PEFT on tensors without data: dropout masks as wide as activations, which
    no CUDA kernel makes, and no autocast, which such tensors ignore."""
    saved = step_memory(plan("llama-2-7b", peft, kernels={"device": "cpu"})).saved_per_layer_bytes
    assert round(saved / 2048 / 4096, 1) == widths


@pytest.mark.parametrize(
    ("peft", "precision", "widths"),
    [
        (PeftSetup(targets=ALL, dropout=0.05), "bf16", 75.7),
        (PeftSetup(dropout=0.05), "bf16", 42.2),
        (PeftSetup(targets=ALL, dropout=0.05, weights="bf16"), "bf16-mixed", 58.3),
        (PeftSetup(dropout=0.05, weights="bf16"), "bf16-mixed", 38.2),
    ],
)
def test_the_same_with_the_masks_and_autocast_of_cuda(
    peft: PeftSetup, precision: str, widths: float
) -> None:
    """Masks of one byte; under autocast an adapter keeps 16 bits of its dropped input, not 32."""
    one = plan("llama-2-7b", peft, precision=precision, seq_len=4096)
    saved = step_memory(one).saved_per_layer_bytes
    assert round(saved / 4096 / 4096, 1) == widths


def test_layers_below_the_first_that_trains_keep_nothing() -> None:
    three, one = (
        step_memory(plan("llama-2-7b", PeftSetup(method="freeze", layers=n))) for n in (3, 1)
    )
    whole = step_memory(plan("llama-2-7b", None))
    per_layer = (three.saved_bytes - one.saved_bytes) / 2
    assert per_layer == pytest.approx(whole.saved_per_layer_bytes, rel=0.03)
    assert three.saved_bytes < whole.saved_bytes / 8
    assert three.states.trainable_parameters == 3 * 202_383_360


def test_more_adapters_and_dropout_never_need_less() -> None:
    setups = [
        PeftSetup(dtype="bf16"), PeftSetup(), PeftSetup(dropout=0.1),
        PeftSetup(targets=ALL, dropout=0.1), PeftSetup(targets=ALL, dropout=0.1, rank=64),
    ]  # fmt: skip
    peaks = [step_memory(plan("llama-3.2-1b", setup)).peak_bytes for setup in setups]
    assert peaks == sorted(peaks) and len(set(peaks)) == len(peaks)


def test_no_gradient_of_a_frozen_weight_is_computed() -> None:
    full = estimate("llama-3.2-1b", HF, allocator=False)
    lora = estimate("llama-3.2-1b", replace(HF, peft=PeftSetup()), allocator=False)
    ratio = lora.time.executed_flops / full.time.executed_flops
    assert 0.66 < ratio < 0.72
    assert lora.time.model_flops_per_token < 0.7 * full.time.model_flops_per_token


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stack": "litgpt"}, "peft: on stack litgpt"),
        ({"stack": "torchtune"}, "peft: on stack torchtune"),
        ({"precision": "bf16-master"}, "peft: with bf16-master"),
        ({"optimizer_in_backward": True}, "peft: with optimizer_in_backward"),
        (
            {"stack": "torch", "peft": PeftSetup(method="qlora", weights="int8")},
            "weights: int8 on stack",
        ),
    ],
)
def test_what_was_not_built_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(NotInThisVersionError, match=said):
        plan("llama-3.2-1b", **{"peft": PeftSetup(), **fields})


def test_layers_divided_over_gpus_are_refused() -> None:
    setup = replace(HF, peft=PeftSetup())
    with pytest.raises(NotInThisVersionError, match="peft: got lora with tp 2"):
        plan_of(load_model("llama-3.2-1b"), setup, None, ParallelPlan(gpus=2, tp=2))


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        (PeftSetup(method="bitfit"), "a model with biases"),
        (PeftSetup(method="freeze", layers=17), "at most the 16 layers"),
        (PeftSetup(weights="fp32"), "weights: got fp32"),
        (PeftSetup(weights="awq"), "weights: awq under adapters is not in this version"),
        (PeftSetup(weights="nf5"), "weights: got 'nf5'"),
    ],
)
def test_what_the_model_cannot_take_is_refused(peft: PeftSetup, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan("llama-3.2-1b", peft)


def test_a_packed_base_takes_what_its_format_says() -> None:
    """QLoRA: NF4 linears with double quantisation, embedding, head and norms in 16 bits."""
    packed = step_memory(plan("llama-2-7b", PeftSetup(method="qlora"))).states
    dense = step_memory(plan("llama-2-7b", PeftSetup())).states
    linears = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    saved = dense.parameter_bytes - packed.parameter_bytes
    assert saved / linears == pytest.approx(2 - 4.127 / 8, rel=1e-4)
    assert packed.trainable_parameters == dense.trainable_parameters == 4_194_304
    assert packed.parameters == dense.parameters
