"""Cases beside transformers' and PEFT's own code: families, fine-tuning, encoders, caches, generation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.exact.case import Answer, Case, counted, drawn_by
from memcalc.accuracy import textbook
from memcalc.engine.serving.forward import Positions
from memcalc.engine.serving.generation import generation_memory
from memcalc.engine.states import states
from memcalc.engine.timeline import measure
from memcalc.harness.decode import Decoding
from memcalc.harness.decode_run import tracked_generation
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from tests.oracle import (
    test_harness_decode,
    test_hf_encoders,
    test_hf_families,
    test_hf_moe,
    test_kv_cache,
    test_peft,
)
from tests.oracle.support.encoders import encoder_plan, traced
from tests.oracle.support.engine import trace_hf
from tests.oracle.support.hf import run_hf
from tests.oracle.support.hf_encoders import run_encoder
from tests.oracle.support.hf_serving import serve_hf
from tests.oracle.support.peft_compare import plan_for
from tests.oracle.support.peft_models import run_peft
from tests.oracle.support.tiny import TINY, attention_of

HF_SAVED, HF_PEAK = "saved for backward, transformers", "peak over parameters, transformers"
ADAPTERS, ADAPTERS_PEAK = "fine-tuning: saved for backward", "fine-tuning: peak over states"
ENCODERS = "encoders: saved for backward"
CACHE, GENERATION = "cache of keys and values", "generation: peak"
_PHASES = ("forward", "loss", "backward")


def families() -> Iterator[Case]:
    """Twenty families in bf16, kept and recomputed."""
    for family in (*test_hf_families.FAMILIES, *test_hf_moe.FAMILIES):
        for seq in (64, 128):
            for checkpoint in (False, True):
                how = (TINY[family], 2, seq, checkpoint, attention_of(family))
                yield Case(
                    f"{family} {seq} {checkpoint}",
                    f"{family}, 2 x {seq} tokens, bf16, {how[4]}"
                    + (", recomputed" if checkpoint else ""),
                    partial(_family, *how), partial(_family_by_hf, *how),
                    partial(_family_by_hand, *how),
                )  # fmt: skip


def _family(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str
) -> Answer:
    told = trace_hf(config, batch, seq, checkpoint, attention)
    return {HF_SAVED: told.saved, HF_PEAK: told.peak_over_params}


def _family_by_hf(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str
) -> Answer:
    seen = run_hf(config, batch, seq, checkpoint=checkpoint, attention=attention)
    return {HF_SAVED: seen.saved, HF_PEAK: seen.peak_over_base}


def _family_by_hand(
    config: dict[str, Any], batch: int, seq: int, checkpoint: bool, attention: str
) -> Answer:
    model = model_from_config(config, config["model_type"])
    setup = TrainingSetup(
        seq_len=seq, micro_batch_size=batch, precision="bf16", attention=attention,
        recompute="full" if checkpoint else "none",
    )  # fmt: skip
    kept = textbook.saved_bytes(model, setup)
    return {HF_SAVED: kept, HF_PEAK: kept + 2 * counted(model)}  # gradients are over parameters


def adapters() -> Iterator[Case]:
    """What tests/oracle/test_peft.py holds against PEFT: micro-batches of every method but packed ones."""
    skipped = "test_whole_steps"
    tests = [n for n in vars(test_peft) if n.startswith("test_") and not n.startswith(skipped)]
    for number, (config, run, setup) in enumerate(drawn_by(test_peft, "differences", *tests)):
        how = (config, run, setup)
        said = (
            f"{config['model_type']} {setup.method} rank {setup.rank} {run.base}"
            f"{' autocast' if run.autocast else ''} {run.checkpoint} {run.attention}"
        )
        yield Case(
            f"{number}", said, partial(_tuned, *how), partial(_tuned_by_peft, *how),
            partial(_tuned_by_hand, *how),
        )  # fmt: skip


def _tuned(config: dict[str, Any], run: Any, setup: Any) -> Answer:
    plan = plan_for(config, run, setup)
    told = measure(*plan.structure(False), plan.values)
    peak = max(told.phases[phase].live_bytes for phase in _PHASES if phase in told.phases)
    return {ADAPTERS: told.saved_bytes, ADAPTERS_PEAK: peak}


def _tuned_by_peft(config: dict[str, Any], run: Any, setup: Any) -> Answer:
    seen = run_peft(config, run)
    peak = max(seen.phase_peaks[phase].nbytes for phase in _PHASES if phase in seen.phase_peaks)
    return {ADAPTERS: seen.saved, ADAPTERS_PEAK: peak - seen.base}


def _tuned_by_hand(config: dict[str, Any], run: Any, setup: Any) -> Answer:
    plan = plan_for(config, run, setup)
    kept = textbook.saved_bytes(plan.config, plan.resolved.setup)
    held = states(*plan.structure(False), plan.optimizer, plan.values, plan.strategy)
    wide = 2 if plan.kernels.param_dtype == "bf16" and setup.dtype else 4
    return {ADAPTERS: kept, ADAPTERS_PEAK: kept + wide * held.trainable_parameters}


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
