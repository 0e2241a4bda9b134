"""Cases beside transformers' own code: families, encoders, caches, generation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.exact.case import Answer, Case, counted, drawn_by
from memcalc.accuracy import textbook
from memcalc.engine.serving.forward import Positions
from memcalc.engine.serving.generation import generation_memory
from memcalc.harness.decode import Decoding
from memcalc.harness.decode_run import tracked_generation
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from tests.oracle import (
    test_harness_decode,
    test_hf_autocast,
    test_hf_encoders,
    test_hf_families,
    test_hf_moe,
    test_kv_cache,
)
from tests.oracle.support.encoders import encoder_plan, traced
from tests.oracle.support.engine import trace_hf
from tests.oracle.support.hf import run_hf
from tests.oracle.support.hf_encoders import run_encoder
from tests.oracle.support.hf_serving import serve_hf
from tests.oracle.support.tiny import TINY, attention_of

HF_SAVED, HF_PEAK = "saved for backward, transformers", "peak over parameters, transformers"
AUTOCAST, AUTOCAST_PEAK = f"{HF_SAVED}, autocast", f"{HF_PEAK}, autocast"
ENCODERS = "encoders: saved for backward"
CACHE, GENERATION = "cache of keys and values", "generation: peak"


def families() -> Iterator[Case]:
    """Twenty families in bf16, kept and recomputed."""
    for family in (*test_hf_families.FAMILIES, *test_hf_moe.FAMILIES):
        for seq in (64, 128):
            for checkpoint in (False, True):
                yield _case(f"{family} {seq} {checkpoint}", family, seq, checkpoint, False)


def autocast() -> Iterator[Case]:
    """The dense ones with fp32 weights under bf16 autocast."""
    for family in sorted(set(TINY) - test_hf_autocast.SPARSE):
        for checkpoint in (False, True):
            yield _case(f"{family} {checkpoint}", family, 96, checkpoint, True)


def _case(key: str, family: str, seq: int, checkpoint: bool, cast: bool) -> Case:
    attention = attention_of(family)
    said = f"{family}, 2 x {seq} tokens, bf16{' autocast' if cast else ''}, {attention}"
    how = (TINY[family], 2, seq, checkpoint, attention, cast)
    return Case(
        key, said + (", recomputed" if checkpoint else ""),
        partial(_family, *how), partial(_family_by_hf, *how), partial(_family_by_hand, *how),
    )  # fmt: skip


def _classes(cast: bool) -> tuple[str, str]:
    return (AUTOCAST, AUTOCAST_PEAK) if cast else (HF_SAVED, HF_PEAK)


def _family(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str,
    cast: bool,
) -> Answer:  # fmt: skip
    told = trace_hf(config, batch, seq, checkpoint, attention, cast)
    return dict(zip(_classes(cast), (told.saved, told.peak_over_params), strict=True))


def _family_by_hf(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str,
    cast: bool,
) -> Answer:  # fmt: skip
    seen = run_hf(config, batch, seq, checkpoint=checkpoint, attention=attention, autocast=cast)
    return dict(zip(_classes(cast), (seen.saved, seen.peak_over_base), strict=True))


def _family_by_hand(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str,
    cast: bool,
) -> Answer:  # fmt: skip
    model = model_from_config(config, config["model_type"])
    setup = TrainingSetup(
        seq_len=seq, micro_batch_size=batch, precision="bf16-mixed" if cast else "bf16",
        attention=attention, recompute="full" if checkpoint else "none",
    )  # fmt: skip
    kept = textbook.saved_bytes(model, setup)
    gradients = (4 if cast else 2) * counted(model)  # over parameters
    return dict(zip(_classes(cast), (kept, kept + gradients), strict=True))


def encoders() -> Iterator[Case]:
    """T5, mT5 and BERT."""
    tests = ("test_every_event", "test_drawn_configurations", "test_short_targets")
    for number, (config, shape, *how) in enumerate(drawn_by(test_hf_encoders, "_check", *tests)):
        yield Case(
            f"{number}", f"{config['model_type']} {shape} {how}",
            lambda config=config, shape=shape, how=tuple(how): {
                ENCODERS: traced(encoder_plan(config, shape, *how)).saved
            },
            lambda config=config, shape=shape, how=tuple(how): {
                ENCODERS: run_encoder(config, shape, *how).saved
            },
            partial(_encoder_by_hand, config, shape, *how),
        )  # fmt: skip


def _encoder_by_hand(config: dict[str, Any], shape: Any, *how: Any) -> Answer:
    plan = encoder_plan(config, shape, *how)
    return {ENCODERS: textbook.saved_bytes(plan.config, plan.resolved.setup)}


def caches() -> Iterator[Case]:
    """The cache after a prompt, grown and static, at published widths."""
    for model, config in test_kv_cache.MODELS.items():
        read = model_from_config(config, config["model_type"])
        for batch, prompt in test_kv_cache.SIZES:
            yield _cache(f"{model} {batch}x{prompt}", config, read, (batch, prompt, None))
        for capacity in (256, 4096, 8192):
            yield _cache(f"{model} static {capacity}", config, read, (2, 128, capacity))


def _cache(name: str, config: Any, read: Any, how: tuple[int, int, int | None]) -> Case:
    batch, prompt, capacity = how
    at = Positions(batch, prompt, 0, capacity) if capacity else Positions(batch, prompt, 0)
    kind = "static" if capacity else "grow"
    more: dict[str, Any] = {"static": capacity} if capacity else {}
    return Case(
        name, name,
        lambda: {CACHE: test_kv_cache.mine(config, at, kind)},
        lambda: {CACHE: serve_hf(config, batch, (prompt,), **more)[0].cache_bytes},
        lambda: {CACHE: textbook.cache_bytes(read, capacity or prompt, batch)},
    )  # fmt: skip


def generations() -> Iterator[Case]:
    """Generations of the harness's decoder, on real CPU tensors and on tensors without data."""
    for family in test_harness_decode.FAMILIES:
        for device in ("cpu", "meta"):
            rng = random.Random(f"decode {family} {device}")
            for number in range(6):
                one = test_harness_decode.drawn(rng, family, device)
                yield Case(
                    f"{family} {device} {number}",
                    f"{family} {one.precision} {one.attention} {one.code}, "
                    f"{one.batch} x {one.prompt} + {one.steps}",
                    partial(_generated, one), partial(_generated_by_torch, one),
                    partial(_generated_by_hand, one),
                )  # fmt: skip


def _generated(one: Any) -> Answer:
    return {GENERATION: generation_memory(test_harness_decode.asked_for(one)).peak_bytes}


def _generated_by_torch(one: Any) -> Answer:
    asked = test_harness_decode.asked_for(one)
    return {GENERATION: tracked_generation(Decoding(asked, one.device))["peak_requested_bytes"]}


def _generated_by_hand(one: Any) -> Answer:
    asked = test_harness_decode.asked_for(one)
    wide = 2.0 if one.precision == "bf16" else 4.0
    count = counted(asked.config)
    weights = textbook.serving_bytes(asked.config, count, 0, 0, wide)
    cached = textbook.cache_bytes(asked.config, one.prompt + one.steps, one.batch)
    return {GENERATION: weights + cached}
