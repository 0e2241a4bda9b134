"""Cases of stack torch-compile beside the compiler's CUDA programs, run on tensors without data.

Every dense family's block twice, drawn steps in which blocks decide, chosen ones, and layers of torchtune and
torchtitan by themselves. Only the torch that support/inductor.py knows answers; the compiler takes some
seconds each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.exact.case import Answer, Case, Written, counted, drawn_by, parameters_of
from memcalc.accuracy import textbook
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from tests.oracle import test_compiled, test_own_layers_compiled
from tests.oracle.support import compiled as support
from tests.oracle.support.compare import said
from tests.oracle.support.compiled import Facts, compiled_plan, meta_facts
from tests.oracle.support.compiled_families import compiled as plan_of_family
from tests.oracle.support.compiled_families import dense_shapes
from tests.oracle.support.reference import How, RefConfig, model_of

SAVED = "torch-compile: saved for backward"
FAMILIES = "torch-compile: peak of a step, families"
DRAWN = "torch-compile: peak of a step, blocks decide"
CHOSEN = "torch-compile: peak of a step, chosen"
LAYERS = "compiled layers of torchtune, torchtitan: peak"
#: Steps that are drawn, as `python -m tests.oracle.support.compiled 100` draws them.
_COUNT = 100


def compiled() -> Iterator[Case]:
    """Every configuration."""
    for name, config in dense_shapes().items():
        for precision in ("bf16", "bf16-mixed"):
            try:
                plan = plan_of_family(config, precision=precision)
            except ConfigError:  # refused: the compiler was not asked about such blocks
                break
            words = f"{name}, 2 small layers, 2 x 128 tokens, {precision}"
            yield _step(FAMILIES, f"{name} {precision}", words, plan)
    for number, (cfg, how) in enumerate(_drawn()):
        words = f"{said(cfg)}; x{how.accum}"
        yield _step(DRAWN, f"drawn {number}", words, compiled_plan(cfg, how))
    for number, (plan,) in enumerate(_chosen()):
        setup = plan.resolved.setup
        words = (
            f"{plan.config.model_type} {setup.precision} {setup.attention} {setup.recompute}, "
            f"{setup.micro_batch_size} x {setup.seq_len} tokens"
        )
        yield _step(CHOSEN, f"chosen {number}", words, plan)
    for stated in parameters_of(test_own_layers_compiled.test_a_layer):
        yield _layer(stated["code"], stated["kept"], stated["shape"])


def _drawn() -> list[tuple[RefConfig, How]]:
    """What `deviations` draws, its comparison left out."""
    seen: list[tuple[RefConfig, How]] = []
    nothing = Facts(0, 0, {})
    with (
        mock.patch.object(support, "compiled_plan", lambda cfg, how: seen.append((cfg, how))),
        mock.patch.object(support, "meta_facts", lambda plan: nothing),
        mock.patch.object(support, "differences", lambda plan, facts: {}),
    ):
        list(support.deviations(_COUNT, "compiled"))
    return seen


def _chosen() -> Iterator[tuple[Any, ...]]:
    tests = (
        "test_saved_bytes_and_peaks_are_those_of_the_cuda_programs",
        "test_long_rows_of_eager_scores_are_stored_once_more_in_backward",
    )
    return drawn_by(test_compiled, "meta_facts", *tests, once=True)


def _step(kind: str, name: str, words: str, plan: Plan) -> Case:
    return Case(
        name, words, partial(_memory, kind, plan), partial(_by_the_compiler, kind, plan),
        partial(_by_hand, kind, plan),
    )  # fmt: skip


def _memory(kind: str, plan: Plan) -> Answer:
    told = step_memory(plan)
    return {SAVED: told.saved_bytes, kind: told.peak_bytes}


def _by_the_compiler(kind: str, plan: Plan) -> Answer:
    seen = meta_facts(plan)
    return {SAVED: seen.saved, kind: seen.peak}


def _by_hand(kind: str, plan: Plan) -> Written:
    setup = plan.resolved.setup
    return {
        SAVED: textbook.saved_bytes(plan.config, setup),
        kind: textbook.peak_bytes(plan.config, setup, counted(plan.config)),
    }


def _layer(code: str, kept: str, shape: dict[str, int]) -> Case:
    """One layer's forward and backward: the most over its parameters and input."""
    config = model_of(RefConfig(V=64, L=1, **shape))
    context, keep = test_own_layers_compiled._KEPT[kept]

    def ours() -> Answer:
        told = test_own_layers_compiled._layer_by_the_engine(config, code, keep)
        return {LAYERS: max(told.forward, told.backward)}

    def theirs() -> Answer:
        seen = test_own_layers_compiled._layer_by_the_compiler(config, code, context)
        return {LAYERS: max(seen.forward, seen.backward)}

    words = (
        f"{code} h{config.hidden_size} f{config.intermediate_size}, 2 x 128 tokens, kept: {kept}"
    )
    return Case(f"{code} {kept}", words, ours, theirs)
