"""Injected buffers are on the timeline where they live, and repeat with the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from memcalc.engine.build import Build
from memcalc.engine.injectors import Hooks
from memcalc.engine.make_plan import make_plan
from memcalc.engine.sizes import number
from memcalc.engine.structure import Beside, structure_of
from memcalc.engine.tensors import Tensor
from memcalc.engine.timeline import measure
from memcalc.inputs.models import load_model
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve

MIB = 1 << 20


@dataclass(frozen=True)
class Gather:
    """A buffer of fixed size held while a block runs, forward and backward, like gathered weights."""

    size: int

    def start(self, build: Build) -> Hooks:
        held: list[Tensor] = []

        def before(block: int, direction: str) -> None:
            held.append(build.tape.empty("all_gather", (number(self.size),), "uint8"))

        def after(block: int, direction: str) -> None:
            held.pop()

        return Hooks(before_block=before, after_block=after)


@dataclass(frozen=True)
class KeepOneByteAGradient:
    """Something kept for every gradient that becomes ready."""

    def start(self, build: Build) -> Hooks:
        kept: list[Tensor] = []

        def ready(leaf: Tensor) -> None:
            kept.append(build.tape.empty("bucket", (number(1),), "uint8"))

        def phase(name: str) -> None:
            if name == "end":
                build.tape.gradient_hooks.clear()

        build.tape.values["kept"] = id(kept)  # the list lives as long as the hook
        return Hooks(gradient_ready=ready, phase=phase)


def measured(layers: int, *injectors: object):
    config = load_model("llama-3.2-1b")
    setup = TrainingSetup(num_layers=layers, precision="bf16", recompute="full", seq_len=256)
    plan = make_plan(resolve(setup, config), load_stack("torch"))
    structure, runs = structure_of(
        plan.config, plan.kernels, plan.kinds, plan.dims, False, Beside(tuple(injectors))
    )
    return measure(structure, runs, plan.values)


@pytest.mark.parametrize("layers", [1, 2, 3, 8])
def test_a_buffer_held_during_blocks_raises_the_forward_peak_of_the_blocks_only(
    layers: int,
) -> None:
    plain, gathered = measured(layers), measured(layers, Gather(MIB))
    assert gathered.saved_bytes == plain.saved_bytes
    assert gathered.phases["loss"].live_bytes == plain.phases["loss"].live_bytes
    huge = measured(layers, Gather(1 << 40))
    assert huge.phases["forward"].layer == layers - 1
    assert huge.phases["backward"].live_bytes > 1 << 40


def test_an_injected_trace_is_cached_under_its_own_key() -> None:
    assert measured(4, Gather(MIB)).peak.live_bytes == measured(4, Gather(MIB)).peak.live_bytes
    huge, plain = measured(4, Gather(1 << 40)), measured(4)
    assert huge.peak.live_bytes > plain.peak.live_bytes + (1 << 39)


def test_every_ready_gradient_is_reported_once() -> None:
    plain, kept = measured(5), measured(5, KeepOneByteAGradient())
    tensors = 5 * 9 + 2  # nine a block, embedding (tied with the head) and final norm
    assert kept.kept_bytes - plain.kept_bytes == tensors
