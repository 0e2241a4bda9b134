"""Methods in the engine: what is refused in one line, what virtual tokens and bottlenecks add."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.expand import expand
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.timeline import measure, size_values
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.peft import PeftSetup

HF = TrainingSetup(stack="hf", precision="bf16", seq_len=512)


def plan(model: str, peft: PeftSetup, **fields: Any) -> Plan:
    return plan_of(load_model(model), replace(HF, peft=peft, **fields))


@pytest.mark.parametrize(
    ("model", "peft", "fields", "said"),
    [
        ("llama-3.2-1b", {"method": "prefix"}, {"recompute": "full"}, "PEFT refuses"),
        ("gemma-2-2b", {"method": "prefix"}, {}, "valid: prompt, p-tuning"),
        ("deepseek-v2-lite", {"method": "prefix"}, {}, "valid: prompt, p-tuning"),
        ("falcon-7b", {"method": "prefix"}, {}, "nearest valid: --attention eager"),
        ("falcon-7b", {"method": "prefix"}, {"attention": "eager"}, "other heads"),
        ("gpt2", {"method": "prompt"}, {"seq_len": 1010}, "nearest valid: 1004"),
        ("opt-350m", {"method": "prompt"}, {}, "nearest valid: lora"),
        ("gpt2", {"method": "adapter"}, {}, "bottleneck adapters in gpt2"),
        ("mixtral-8x7b", {"method": "adapter"}, {}, "bottleneck adapters in mixtral"),
        ("opt-1.3b", {"method": "adapter", "kind": "parallel"}, {}, "valid: houlsby, pfeiffer"),
        ("llama-3.2-1b", {"method": "adapter", "reduction": 1e9}, {}, "at most the hidden size"),
        ("llama-3.2-1b", {"method": "adalora", "weights": "nf4"}, {}, "adalora beside"),
        ("t0-3b", {"method": "prompt"}, {}, "a fine-tuning method other than LoRA"),
    ],
)
def test_what_does_not_run_is_refused(
    model: str, peft: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        step_memory(plan(model, PeftSetup(**peft), **fields))
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "trained", "saved"),
    [
        ({"method": "prompt"}, 20 * 2048, 20 * 2048),
        ({"method": "p-tuning"}, 20 * 2048 + 3 * (2048 * 2048 + 2048), 20 * 2048),
        ({"method": "prefix"}, 20 * 16 * 2 * 512, 20 * 16 * 2 * 512),
        (
            {"method": "prefix", "projection": True},
            20 * 512 + 512 * 513 + 513 * 16 * 2 * 512,
            20 * 16 * 2 * 512,
        ),
        ({"method": "adapter"}, 32 * (2 * 2048 * 128 + 2048 + 128), None),
        ({"method": "adapter", "kind": "parallel", "width": 64}, 16 * (2 * 2048 * 64 + 2112), None),
        ({"method": "adalora"}, 16 * 12 * (2048 + 2048 + 1 + 2048 + 512 + 1), None),
    ],
)
def test_what_trains_and_what_is_saved(
    fields: dict[str, Any], trained: int, saved: int | None
) -> None:
    """Llama-3.2 1B: 16 layers, h 2048, 8 heads of keys 64 wide. PEFT saves what an encoder makes."""
    found = estimate("llama-3.2-1b", replace(HF, peft=PeftSetup(**fields)), allocator=False).model
    width = 2 if fields["method"] == "adapter" else 4
    assert found.trainable_parameters == trained
    assert found.adapter_file_bytes == width * (trained if saved is None else saved)


def test_virtual_tokens_cost_what_tokens_cost() -> None:
    """A model with N virtual tokens keeps what the same model keeps of a sequence N longer."""
    few, more = (
        step_memory(plan("llama-3.2-1b", PeftSetup(method="prompt", virtual_tokens=n))).saved_bytes
        for n in (8, 72)
    )
    longer = step_memory(
        plan("llama-3.2-1b", PeftSetup(method="prompt", virtual_tokens=8), seq_len=576)
    ).saved_bytes
    assert more - few == pytest.approx(longer - few, rel=0.01)


def test_a_prefix_keeps_a_mask_in_every_layer() -> None:
    """No flash kernel takes a mask: 16 layers keep a bias of s rows of s + 20 keys, padded to s + 32."""
    short, long = (
        step_memory(plan("llama-3.2-1b", PeftSetup(method="prefix"), seq_len=seq)).saved_bytes
        for seq in (1024, 4096)
    )
    square = 16 * 2 * (4096 * (4096 + 32) - 4 * 1024 * (1024 + 32))
    assert long - 4 * short == pytest.approx(square, rel=0.03)
    notes = estimate(
        "llama-3.2-1b", replace(HF, peft=PeftSetup(method="prefix")), allocator=False
    ).notes
    assert any("builds a mask" in note for note in notes)


def test_importance_is_counted_beside_the_optimizer() -> None:
    states = step_memory(plan("llama-3.2-1b", PeftSetup(method="adalora"))).states
    assert states.optimizer_bytes == (2 + 3) * 4 * states.trainable_parameters


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "prefix"},
        {"method": "p-tuning"},
        {"method": "adalora"},
        {"method": "adapter"},
        {"targets": ("v_proj",)},
    ],
)
@pytest.mark.parametrize("model", ["llama-3.2-1b", "qwen2.5-0.5b"])
def test_layers_written_out_agree_with_those_summed(model: str, fields: dict[str, Any]) -> None:
    """Every layer's events from three traced ones: nothing is freed twice, peak and rest are the same."""
    one = plan(model, PeftSetup(**fields))
    structure, runs = one.structure(False)
    written, summed = expand(structure, runs), measure(structure, runs, one.values)
    sizes = written.sizes(size_values(structure, one.values))
    alive: set[int] = set()
    live = peak = 0
    for event in written.events:
        if event >= 0:
            alive.add(event)
        else:
            alive.remove(~event)
        live += sizes[event] if event >= 0 else -sizes[~event]
        peak = max(peak, live)
    assert peak == summed.peak.live_bytes
    assert live == summed.kept_bytes == sum(sizes[storage] for storage in alive)
