"""transformers' quantised caches: fp8 event for event, grouped integers against quanto's and HQQ's tensors.

quanto and HQQ are not needed to install memcalc's tests: where they are missing their layers' bytes are
held against the published layout alone (8, 4 or 2 bits, a scale and a zero point of 16 bits for 64).
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from memcalc.engine.families import traits_for
from memcalc.engine.kernels import Kernels
from memcalc.engine.serving.cache_use import held_cache_bytes
from memcalc.engine.serving.forward import Forward, Positions, forward_of
from memcalc.engine.serving.serving_plan import serving_plan
from memcalc.engine.timeline import measure
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.serving import ServingSetup, resolve_serving
from tests.oracle.support.engine import steps
from tests.oracle.support.hf_serving import amounts, held, serve_hf
from tests.oracle.support.tiny import TINY, attention_of
from tests.oracle.test_serving import events_of

FAMILIES = ("llama", "qwen2", "mixtral", "gpt2", "deepseek_v3")


def forwards(family: str, batch: int, lengths: tuple[int, ...]) -> list[Forward]:
    model = model_from_config(TINY[family], family)
    kernels = Kernels(
        hf=True, attention=attention_of(family), traits=traits_for(model.model_type), watched=True
    )
    found, past = [], 0
    for length in lengths:
        found.append(forward_of(model, kernels, Positions(batch, length, past), "fp8", samples=""))
        past += length
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_event_of_fp8(family: str) -> None:
    lengths = (24, 1, 1)
    theirs = serve_hf(TINY[family], 2, lengths, attention_of(family), quantised="fp8")
    for number, (mine, one) in enumerate(zip(forwards(family, 2, lengths), theirs, strict=True)):
        assert steps(events_of(mine)) == steps(amounts(one)), f"pass {number}"
        peak = measure(mine.structure, mine.runs, mine.values).peak.live_bytes
        assert peak == one.peak_over_before, f"pass {number}"


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_bytes_of_fp8(family: str) -> None:
    """After the prompt and a step: one byte an element, two scales of four bytes a layer."""
    (_, last) = serve_hf(TINY[family], 2, (24, 1), attention_of(family), quantised="fp8")
    setup = ServingSetup(batch=2, context=25, prompt=24, kv_cache="fp8")
    plan = serving_plan(resolve_serving(setup, model_from_config(TINY[family], family)))
    assert held_cache_bytes(plan) == last.cache_bytes


@pytest.mark.parametrize(
    ("backend", "bits", "dtype"),
    [("quanto", 4, "int4"), ("quanto", 2, "int2"), ("hqq", 8, "int8"), ("hqq", 4, "int4")],
)
@pytest.mark.parametrize("steps_done", [1, 40, 127, 128, 150])
def test_bytes_of_grouped_integers(backend: str, bits: int, dtype: str, steps_done: int) -> None:
    """A layer of 2 x 4 heads x 64 positions x 32 columns, then steps: packed and residual positions."""
    module = {"quanto": "optimum.quanto", "hqq": "hqq"}[backend]
    try:
        missing = importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        missing = True
    model = model_from_config(
        {
            "model_type": "llama", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 512,
        },
        "llama",
    )  # fmt: skip
    setup = ServingSetup(batch=2, context=64 + steps_done, prompt=64, kv_cache=dtype)
    mine = held_cache_bytes(serving_plan(resolve_serving(setup, model)))
    if missing:
        kept = steps_done % 128
        packed = (64 + steps_done - kept) * (bits / 8 + 4 / 64) + kept * 2
        assert mine == 2 * 2 * 4 * 32 * packed
        return
    from transformers import cache_utils

    layer = {"quanto": cache_utils.QuantoQuantizedLayer, "hqq": cache_utils.HQQQuantizedLayer}[
        backend
    ](nbits=bits)
    shape = (2, 4, 64, 32)
    layer.update(torch.randn(shape, dtype=torch.bfloat16), torch.randn(shape, dtype=torch.bfloat16))
    for _ in range(steps_done):
        new = torch.randn(2, 4, 1, 32, dtype=torch.bfloat16)
        layer.update(new, new)
    theirs = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held(layer)}
    assert mine == sum(theirs.values())
