"""Generation by the harness's decoder through a real cache: no byte of difference from the engine.

Families, attention, kind of cache, dtype, batch, prompt and steps are drawn; each on real CPU tensors and
on tensors without data under CUDA's kernels. Compared: weights, cache after the prompts and at the end,
the peak of the prompts' pass and of every single step. What is generated is held against passes without
any cache.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch

from memcalc.engine.make_plan import plan_of
from memcalc.engine.serving.generation import Generation, generation_memory
from memcalc.engine.timeline import measure
from memcalc.harness.decode import Decoding
from memcalc.harness.decode_run import held_bytes, tracked_generation
from memcalc.harness.local import local_plan
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from tests.draws import draws
from tests.oracle.support.tiny import TINY, attention_of

FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "gemma2", "phi3", "bloom", "opt", "mixtral", "deepseek_v2",
            "deepseek_v3", "gpt_oss")  # fmt: skip
_SPARSE = ("mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss")


class Drawn(NamedTuple):
    """One generation. device: cpu, or meta with CUDA's kernels."""

    family: str
    changes: dict[str, Any]
    device: str
    precision: str
    attention: str
    batch: int
    prompt: int
    steps: int
    code: str


def drawn(rng: random.Random, family: str, device: str) -> Drawn:
    code, attention = rng.choice(
        [("grow", "flash"), ("grow", "eager"), ("whole", "flash"), ("whole", "eager"),
         ("static", "eager")]
    )  # fmt: skip
    if attention_of(family) == "eager":
        attention = "eager"
    steps = rng.choice([1, 2, 3, 7])
    prompts = [1, 2, 17, 24, 31, 40] if code == "grow" else [1, 2, 17, 24]  # windows are of 32
    batch, prompt = rng.randint(1, 3), rng.choice(prompts)
    if rng.random() < 0.4:
        batch = 1
    sparse_on_meta = family in _SPARSE and device == "meta"  # whose experts' product wants bf16
    precision = "bf16" if sparse_on_meta else rng.choice(["bf16", "fp32", "bf16-mixed"])
    changes = {"num_hidden_layers": rng.choice([1, 2, 5])} if family == "llama" else {}
    return Drawn(family, changes, device, precision, attention, batch, prompt, steps, code)


def asked_for(one: Drawn) -> Generation:
    config = model_from_config({**TINY[one.family], **one.changes}, one.family)
    setup = TrainingSetup(
        precision=one.precision, attention=one.attention, optimizer="none", seq_len=one.prompt + one.steps
    )  # fmt: skip
    if one.device == "cpu":
        plan = local_plan(config, setup, {}, "cpu")
    else:
        plan = plan_of(config, setup, {"watched": True, "norm": "hand"})
    return Generation(config, plan.kernels, one.batch, one.prompt, one.steps, one.code)


def differences(one: Drawn) -> dict[str, tuple[Any, Any]]:
    """What engine and decoder say differently: {name: (engine, decoder)}."""
    asked = asked_for(one)
    decoding = Decoding(asked, one.device)
    told, seen = generation_memory(asked), tracked_generation(decoding)
    pairs: dict[str, tuple[Any, Any]] = {
        "weights": (told.weights_bytes, seen["weights_bytes"]),
        "cache after the prompts": (told.prompt_cache_bytes, seen["prompt_kv_cache_bytes"]),
        "cache": (told.cache_bytes, seen["kv_cache_bytes"]),
        "peak": (told.peak_bytes, seen["peak_requested_bytes"]),
    }
    for phase, peak in told.phases.items():
        pairs[phase] = (peak.bytes, seen["phases"][phase])
    for past, growth in enumerate(step_peaks(decoding), asked.prompt):
        forward = asked.step(past)
        ours = measure(forward.structure, forward.runs, forward.values).peak.live_bytes
        pairs[f"step over {past}"] = (ours, growth)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def step_peaks(decoding: Decoding) -> list[int]:
    """The most that each step allocates over what was alive as it began."""
    tracker = StorageTracker(decoding.device.type)
    tracker.track(decoding.model, decoding.held())
    tracker.reset()
    befores: list[int] = []

    def enter(name: str) -> None:
        befores.append(tracker.live)
        tracker.set_phase(f"{len(befores)}")

    with tracker:
        decoding.run(enter)
    peaks = [tracker.phase_peaks[f"{number}"].nbytes for number in range(2, len(befores) + 1)]
    return [peak - before for peak, before in zip(peaks, befores[1:], strict=True)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_drawn_generations(family: str, device: str) -> None:
    """6 an item, 144 in all."""
    rng = random.Random(f"decode {family} {device}")
    wrong = []
    for one in [drawn(rng, family, device) for _ in range(6)][: draws(6)]:
        if found := differences(one):
            wrong.append(f"{one}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("code", ["grow", "whole"])
def test_layers_that_are_not_traced_are_counted(code: str) -> None:
    one = Drawn(
        "qwen2", {"num_hidden_layers": 11}, "cpu", "bf16", "flash", 2, 24, 3, code
    )  # fmt: skip
    assert not differences(one)


@pytest.mark.parametrize(
    ("family", "code", "attention"),
    [("llama", "grow", "flash"), ("llama", "grow", "eager"), ("llama", "whole", "flash"),
     ("llama", "static", "eager"), ("gpt2", "grow", "flash"), ("gpt2", "static", "eager"),
     ("bloom", "grow", "eager"), ("deepseek_v3", "grow", "flash"), ("deepseek_v3", "whole", "eager"),
     ("gemma2", "grow", "eager"), ("qwen3", "whole", "flash"), ("gpt_oss", "grow", "eager")],
)  # fmt: skip
def test_a_cache_changes_no_token(family: str, code: str, attention: str) -> None:
    """fp32: what comes out of the cache are the tokens of passes over everything each time."""
    prompt = 24 if code != "grow" else 40  # with windows of 32: beyond them
    one = Drawn(family, {}, "cpu", "fp32", attention, 2, prompt, 5, code)
    asked = asked_for(one)
    decoding = Decoding(asked, "cpu")
    with torch.no_grad():  # larger weights, so that the likeliest token stands out
        for parameter in decoding.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    generated: list[torch.Tensor] = []
    decoding.run(on_tokens=lambda ids: generated.append(ids.clone()))
    ids = decoding.prompts
    for tokens in generated:
        with torch.no_grad():
            expected = decoding.model.logits(ids)[:, -1].argmax(-1, keepdim=True)
        assert torch.equal(expected, tokens)
        ids = torch.cat((ids, tokens), 1)
    assert torch.cat(generated).unique().numel() > 1


def test_a_second_generation_is_the_first_again() -> None:
    """A cache made beforehand is begun anew."""
    asked = asked_for(Drawn("llama", {}, "cpu", "fp32", "flash", 1, 9, 4, "whole"))
    decoding, found = Decoding(asked, "cpu"), []
    for _ in range(2):
        tokens: list[int] = []
        decoding.run(on_tokens=lambda ids, tokens=tokens: tokens.append(int(ids)))
        found.append(tokens)
    assert found[0] == found[1] and len(found[0]) == 5


def test_a_wrong_prediction_is_seen() -> None:
    """One position more of the prompt: prefill, cache and peak differ."""
    one = Drawn("llama", {}, "cpu", "bf16", "flash", 2, 24, 2, "grow")
    seen = tracked_generation(Decoding(asked_for(one), "cpu"))
    told = generation_memory(replace_prompt(asked_for(one), 25))
    assert told.phases["prefill"].bytes > seen["phases"]["prefill"]
    assert told.cache_bytes > seen["kv_cache_bytes"]


def replace_prompt(asked: Generation, prompt: int) -> Generation:
    return asked._replace(prompt=prompt)


def test_held_bytes_count_a_storage_once() -> None:
    whole = torch.zeros(10)
    assert held_bytes([whole, whole[2:]]) == 40
