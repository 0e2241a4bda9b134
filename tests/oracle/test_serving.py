"""Forward passes through a cache against transformers' own: every allocation and free, on meta tensors."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.expand import expand
from memcalc.engine.families import traits_for
from memcalc.engine.kernels import Kernels
from memcalc.engine.serving.forward import Forward, Positions, forward_of
from memcalc.engine.timeline import measure, size_values
from memcalc.inputs.hf import model_from_config
from tests.oracle.support.engine import steps
from tests.oracle.support.hf_serving import amounts, serve_hf
from tests.oracle.support.tiny import TINY, attention_of

#: Prefill, then two decode steps.
GENERATE = (24, 1, 1)
_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
#: Family, changed keys, attention, batch, new positions of each pass.
VARIANTS: tuple[tuple[str, dict[str, Any], str, int, tuple[int, ...]], ...] = (
    ("gemma2", {}, "eager", 2, (40, 1, 1)),  # beyond the window of 32
    ("gemma2", {}, "eager", 1, (31, 1, 1, 1)),  # into it
    ("gemma3_text", {}, "eager", 2, (40, 1, 1)),
    ("gpt_oss", {}, "eager", 2, (40, 1, 1)),
    ("mistral", {"sliding_window": 32}, "eager", 2, (40, 1, 1)),
    ("llama", {}, "eager", 2, (24, 16, 1)),  # a prompt in two pieces
    ("llama", {"num_key_value_heads": 1}, "flash", 1, (24, 1)),
    ("qwen2", {}, "flash", 2, (24, 16, 1)),
    ("falcon", _40B, "eager", 2, (24, 1)),
    ("falcon", _RW, "eager", 2, (24, 1)),
    ("deepseek_v3", {}, "eager", 2, (24, 1)),
    ("gpt2", {}, "eager", 2, (24, 1)),
    ("bloom", {}, "eager", 1, (24, 1)),
)


def forwards(
    config: dict[str, Any], batch: int, lengths: tuple[int, ...], attention: str
) -> list[Forward]:
    """The engine's passes of the same lengths, one after the other."""
    model = model_from_config(config, config["model_type"])
    kernels = Kernels(
        hf=True, attention=attention, traits=traits_for(model.model_type), watched=True
    )
    found, past, held = [], 0, None
    for length in lengths:
        at = Positions(batch, length, past, window_held=held)
        found.append(forward_of(model, kernels, at, samples=""))
        past += length
        held = found[-1].values.get("w_kv", past)
    return found


def events_of(forward: Forward) -> list[int]:
    every = expand(forward.structure, forward.runs)
    sizes = every.sizes(size_values(forward.structure, forward.values))
    return [sizes[event] if event >= 0 else -sizes[~event] for event in every.events]


def check(config: dict[str, Any], batch: int, lengths: tuple[int, ...], attention: str) -> None:
    mine = forwards(config, batch, lengths, attention)
    theirs = serve_hf(config, batch, lengths, attention)
    for number, (forward, one) in enumerate(zip(mine, theirs, strict=True)):
        assert steps(events_of(forward)) == steps(amounts(one)), f"pass {number}"
        peak = measure(forward.structure, forward.runs, forward.values).peak.live_bytes
        assert peak == one.peak_over_before, f"pass {number}"


@pytest.mark.parametrize("family", TINY)
def test_every_event_of_a_prefill_and_two_decode_steps(family: str) -> None:
    check(TINY[family], 2, GENERATE, attention_of(family))


@pytest.mark.parametrize(("family", "changes", "attention", "batch", "lengths"), VARIANTS)
def test_every_event_of_variants(
    family: str, changes: dict[str, Any], attention: str, batch: int, lengths: tuple[int, ...]
) -> None:
    check({**TINY[family], **changes}, batch, lengths, attention)


def test_layers_that_are_not_traced_are_counted() -> None:
    """Nine layers, three of them traced: events and peak of all nine."""
    check({**TINY["qwen2"], "num_hidden_layers": 9}, 2, GENERATE, "flash")
    changes = {"num_hidden_layers": 12, "sliding_window_pattern": 3}
    check({**TINY["gemma3_text"], **changes}, 2, (40, 1, 1), "eager")
