"""What generating runs and training does not: products of few rows, attention over a cache, passes
without gradients.

A product of m rows with a weight (n, k) reads the weight and little else; each number of rows has a kernel
of its own. Attention takes one new position of each sequence over its cache, as the flash kernel and, by
batched products, as eager code does it. A decoder with next to nothing to compute shows what an operator
costs to launch where autograd does not look on.
Bytes: the weight, or keys and values, once. Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memcalc.engine.serving.generation import Generation
from memcalc.engine.works import works_in
from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Step, Task, point
from memcalc.harness.calibration.microbench_step import DEPTHS, plan_for
from memcalc.harness.calibration.timing import Bench, cpu_clock, quantile, summary
from memcalc.harness.decode import Decoding
from memcalc.harness.model.attention_core import Core, fused
from memcalc.harness.step_clock import StepClock

#: Of the generation whose launches are counted: positions of the prompt, steps.
_PROMPT, _STEPS = 4, 4
#: The generations a calibration checks itself by: sequences, positions of the prompt, steps.
_WHOLE = (2, 64, 8)
#: Such points stand for all the rest: they are timed this many times longer than a single operation.
_LONGER = 10
_MOST_ROUNDS = 40


class Cached(NamedTuple):
    """Attention of one new position: sequences, query and key heads, keys, width of a head."""

    b: int
    a: int
    k: int
    keys: int
    d: int


def few_rows(scale: Scale) -> list[Task]:
    """Products of few rows with the weights of linears."""
    return [
        _product(rows, shape, dtype)
        for dtype in scale.dtypes
        for rows in scale.few_rows
        for shape in scale.few_linears
    ]


def _product(rows: int, shape: tuple[int, int], dtype: str) -> Task:
    n, k = shape

    def run(bench: Bench) -> Point:
        kind = DTYPES[dtype]

        def make() -> tuple[Tensor, Tensor]:
            return bench.randn(rows, k, dtype=kind), bench.randn(n, k, dtype=kind)

        size = n * k * kind.itemsize
        sets = bench.sets(make, size)
        timed = bench.time(lambda call: F.linear(*sets[call % len(sets)]))
        what = {"name": "linear", "dtype": dtype, "rows": rows, "n": n, "k": k}
        return point("few_rows", what, timed, 2 * rows * n * k, size)

    return Task(f"product {dtype} of {rows} rows, {n}x{k}", run)


def cached_attention(scale: Scale) -> list[Task]:
    """The flash kernel and the two batched products of eager code, over caches."""
    makers = (_flash, _scores, _sums)
    return [make(Cached(*shape), dtype) for dtype in scale.dtypes for shape in scale.caches
            for make in makers]  # fmt: skip


def _flash(shape: Cached, dtype: str) -> Task:
    b, a, k, keys, d = shape

    def run(bench: Bench) -> Point:
        kind, core = DTYPES[dtype], Core("flash", bench.device.type)

        def make() -> tuple[Tensor, Tensor, Tensor]:
            cache = (bench.randn(b, k, keys, d, dtype=kind) for _ in range(2))
            query = bench.randn(b, 1, a, d, dtype=kind).transpose(1, 2)
            return (query, *cache)  # type: ignore[return-value]

        size = 2 * b * k * keys * d * kind.itemsize
        sets = bench.sets(make, size)
        timed = bench.time(lambda call: fused(core, *sets[call % len(sets)], None))
        what = {"dtype": dtype, **shape._asdict()}
        return point("decode_attention", what, timed, 4 * b * a * keys * d, size)

    return Task(f"cached attention {dtype}, {_said(shape)}", run)


def _scores(shape: Cached, dtype: str) -> Task:
    """q k^T of every head: (b a, 1, d) times (b a, d, keys), the keys as they lie in a cache."""
    return _batched(shape, dtype, "scores", (shape.keys, shape.d), lambda x, y: x @ y.mT)


def _sums(shape: Cached, dtype: str) -> Task:
    """Weights times values of every head: (b a, 1, keys) times (b a, keys, d)."""
    return _batched(shape, dtype, "sums", (shape.d, shape.keys), lambda x, y: x @ y)


def _batched(
    shape: Cached,
    dtype: str,
    said: str,
    sizes: tuple[int, int],
    call: Callable[[Tensor, Tensor], Tensor],
) -> Task:
    batch, (n, k) = shape.b * shape.a, sizes

    def run(bench: Bench) -> Point:
        kind = DTYPES[dtype]

        def make() -> tuple[Tensor, Tensor]:
            cache = bench.randn(batch, shape.keys, shape.d, dtype=kind)
            return bench.randn(batch, 1, k, dtype=kind), cache

        size = batch * n * k * kind.itemsize
        sets = bench.sets(make, size)
        timed = bench.time(lambda number: call(*sets[number % len(sets)]))
        what = {"name": "bmm", "dtype": dtype, "rows": 1, "batch": batch, "n": n, "k": k}
        return point("few_rows", what, timed, 2 * batch * n * k, size)

    return Task(f"batched product {dtype} ({said}), {_said(shape)}", run)


def _said(shape: Cached) -> str:
    return " ".join(f"{name}={value}" for name, value in shape._asdict().items())


def launches(scale: Scale) -> list[Task]:
    """Generations of a decoder so small that launching its operators is what they take."""
    return [
        Task(
            f"generation by {depth} minute layers, {precision}",
            _launches(setup, depth, precision),
            _LONGER * scale.protocol.least_s,
        )
        for setup in scale.launches[:1]
        for precision in ("fp32", "bf16")
        for depth in DEPTHS
    ]


def _launches(setup: Step, depth: int, precision: str) -> Callable[[Bench], Point]:
    def run(bench: Bench) -> Point:
        plan = plan_for(setup._replace(precision=precision), depth, bench.device)
        asked = Generation(plan.config, plan.kernels, 1, _PROMPT, _STEPS)
        decoding = Decoding(asked, bench.device)
        least_s = _LONGER * bench.protocol.least_s
        timed = bench.time(lambda call: decoding.run(), calls=1, least_s=least_s)
        what = {"precision": precision, "layers": depth, "kernels": launched(asked)}
        return point("launch_decode", what, timed)

    return run


def launched(asked: Generation) -> int:
    """Kernels that a generation launches."""
    passes = [asked.prefill(), *(asked.step(asked.prompt + n) for n in range(asked.steps))]
    return sum(
        times * work.launches for one in passes for work, times in works_in(one.structure, one.runs)
    )


def whole(scale: Scale) -> list[Task]:
    """Generations of the small decoder that the two-depth steps run, with both kinds of attention."""
    setup = scale.launches[0]._replace(model="tiny")
    return [
        Task(
            f"generation by tiny, {precision}, {attention}",
            _whole(setup, precision, attention),
            _LONGER * scale.protocol.least_s,
        )
        for precision in ("fp32", "bf16")
        for attention in ("flash", "eager")
    ]


def _whole(setup: Step, precision: str, attention: str) -> Callable[[Bench], Point]:
    def run(bench: Bench) -> Point:
        asked = generation_of(setup.model, precision, attention, bench.device)
        decoding = Decoding(asked, bench.device)
        count = min(_MOST_ROUNDS, 1 + round(400 * bench.protocol.least_s))
        rounds = [passes_s(decoding) for _ in range(count + 1)][1:]
        first = sorted(one[0] for one in rounds)
        steps = [seconds for one in rounds for seconds in one[1:]]
        what: Point = {"model": setup.model, "precision": precision, "attention": attention}
        what |= {"prompt_s": quantile(first, 0.1), "tokens": asked.batch * asked.prompt}
        return point("generation", what, summary(steps, len(steps)))

    return run


def generation_of(model: str, precision: str, attention: str, device: torch.device) -> Generation:
    """The generation of such a point."""
    setup = Step(model, 8, 1, precision, attention, None, optimizer="none")
    plan = plan_for(setup, max(DEPTHS), device)
    batch, prompt, steps = _WHOLE
    return Generation(plan.config, plan.kernels, batch, prompt, steps)


def passes_s(decoding: Decoding) -> list[float]:
    """Seconds of the prompts' pass and of every step of one generation."""
    clock = StepClock(decoding.device)
    if decoding.device.type == "cuda":
        decoding.run(lambda name: clock.mark())
        clock.mark()
        return clock.seconds()
    now, marks = cpu_clock(), []
    decoding.run(lambda name: marks.append(now()))
    marks.append(now())
    return [end - begin for begin, end in zip(marks, marks[1:], strict=False)]
