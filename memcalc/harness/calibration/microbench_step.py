"""The two-depth residual: a real decoder's training step with 2 and with 4 blocks.

The difference of the two times is two blocks (forward, backward and their share of the optimizer);
what is left of the shorter one is embedding, head, loss and the rest. A time model predicts both from
the other points of a calibration; measured over predicted is what isolated kernels leave out (gaps
between kernels, a chip that is warmer than in a short test).
Each step has everything: forward, loss, backward, AdamW, clearing of gradients. The phases are timed
in steps of their own, because naming them costs Python time.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from memcalc.engine.plan import Plan
from memcalc.harness.calibration import timing
from memcalc.harness.calibration.microbench import Point, Scale, Step, Task, point
from memcalc.harness.calibration.timing import Bench, cpu_clock
from memcalc.harness.device import synchronize
from memcalc.harness.local import local_plan
from memcalc.harness.step import PHASES, TrainingStep
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup

DEPTHS = (2, 4)
#: A step is timed this many times longer than a single operation: it is the figure that counts. A CPU's
#: points are shorter, and others use it too.
_LONGER = {timing.CUDA: 5}
_LONGER_ELSEWHERE = 20
_PHASE_STEPS = 5
#: What compiling a block may take.
_COMPILE_S = 60.0
#: The decoder of CPU calibrations: Llama's blocks, 1.4 M parameters with two of them.
_TINY = ModelConfig(
    name="tiny", model_type="llama", vocab_size=2048, hidden_size=256, intermediate_size=704,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    max_position_embeddings=2048,
)  # fmt: skip
#: A decoder whose kernels have next to nothing to do: its step is the launching of them.
_MINUTE = replace(
    _TINY, name="minute", vocab_size=256, hidden_size=64, intermediate_size=128,
    num_attention_heads=1, num_key_value_heads=1,
)  # fmt: skip
_OWN = {"tiny": _TINY, "minute": _MINUTE}


def steps(scale: Scale, setups: tuple[Step, ...]) -> list[Task]:
    """Two tasks for each setup: the shallow decoder and the deep one."""
    cost_s = (_longer(scale.protocol) + 2) * scale.protocol.least_s
    return [
        Task(_label(setup, depth), _runner(setup, depth), cost_s + _COMPILE_S * _compiles(setup))
        for setup in setups
        for depth in DEPTHS
    ]


def _longer(protocol: timing.Protocol) -> int:
    return _LONGER.get(protocol, _LONGER_ELSEWHERE)


def _compiles(setup: Step) -> bool:
    return setup.stack == "torch-compile"


def _label(setup: Step, depth: int) -> str:
    return (
        f"step of {setup.model}, {depth} layers, seq {setup.seq_len}, "
        f"micro-batch {setup.micro_batch_size}, {setup.precision}, {setup.attention}, "
        f"{setup.optimizer_impl}, stack {setup.stack}"
    )


def plan_for(setup: Step, depth: int, device: torch.device) -> Plan:
    """The plan of a setup at a depth, with the device's own kernels."""
    config = _OWN.get(setup.model) or load_model(setup.model)
    stated = TrainingSetup(
        seq_len=setup.seq_len,
        micro_batch_size=setup.micro_batch_size,
        precision=setup.precision,
        attention=setup.attention,
        optimizer=setup.optimizer,
        optimizer_impl=setup.optimizer_impl,
        stack=setup.stack,
        num_layers=depth,
    )
    return local_plan(config, stated, {}, device.type)


def _runner(setup: Step, depth: int) -> Callable[[Bench], Point]:
    def run(bench: Bench) -> Point:
        step = TrainingStep(plan_for(setup, depth, bench.device), bench.device)
        least_s = _longer(bench.protocol) * bench.protocol.least_s
        timed = bench.time(lambda call: step.run(), calls=1, least_s=least_s)
        what = {**setup._asdict(), "layers": depth, "tokens": step.ids.numel()}
        what["parameters"] = sum(p.numel() for p in step.model.parameters())
        return {**point("step", what, timed), "phases": phase_times(step)}

    return run


def launches(scale: Scale) -> list[Task]:
    """Two tasks: steps without optimizer of a decoder so small that its launches are what it takes."""
    return [
        Task(f"launches of {depth} minute layers, {setup.precision}", _launches(setup, depth))
        for setup in scale.launches
        for depth in DEPTHS
    ]


def _launches(setup: Step, depth: int) -> Callable[[Bench], Point]:
    def run(bench: Bench) -> Point:
        from memcalc.engine.works import works_of

        plan = plan_for(setup, depth, bench.device)
        step = TrainingStep(plan, bench.device)
        timed = bench.time(lambda call: step.run())
        kernels = sum(times * work.launches for work, times in works_of(plan))
        what = {"precision": setup.precision, "layers": depth, "kernels": kernels}
        return point("launch", what, timed)

    return run


def phase_times(step: TrainingStep) -> dict[str, float]:
    """Median seconds of each phase over a few steps, by name with `_s`."""
    rounds = [_one_round(step) for _ in range(_PHASE_STEPS)]
    return {f"{name}_s": median(found[name] for found in rounds) for name in PHASES}


def _one_round(step: TrainingStep) -> dict[str, float]:
    """Seconds from each phase's begin to the next one's, by CUDA events or the clock."""
    marks: list[tuple[str, Any]] = []
    on_cuda = step.device.type == "cuda"
    now = cpu_clock()

    def mark(name: str) -> None:
        marks.append((name, _event() if on_cuda else now()))

    step.run(mark)
    mark("end")
    synchronize(step.device)
    found = dict.fromkeys(PHASES, 0.0)
    for (name, start), (_, end) in zip(marks, marks[1:], strict=False):
        found[name] += start.elapsed_time(end) / 1000 if on_cuda else end - start
    return found


def _event() -> Any:
    make: Any = torch.cuda.Event
    event = make(enable_timing=True)
    event.record()
    return event
