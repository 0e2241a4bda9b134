"""Attention cores, forward and backward, by kernel, width of a head and sequence length.

The number of tokens is constant, so b = tokens / s and work grows with s. Operands lie as the decoder
makes them: (b, s, heads, d) in memory, seen as (b, heads, s, d); grouped heads as in Llama 3.
FLOPs, a query heads, causal (half the square): forward two products, 2 b a s s d; backward five,
5 b a s s d, for the scores are made again. Bytes: operands and results once.
Source: Dao 2023 (arXiv:2307.08691). Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Task, point
from memcalc.harness.calibration.timing import Bench, Timed
from memcalc.harness.model.attention_core import Core, fused

DIRECTIONS = ("forward", "backward")


class Shape(NamedTuple):
    """One call: sequences, query and key/value heads, length, width of a head, dtype."""

    b: int
    a: int
    k: int
    s: int
    d: int
    dtype: str = "bf16"

    @property
    def forward_flops(self) -> int:
        """Two causal products."""
        return 2 * self.b * self.a * self.s * self.s * self.d

    def flops(self, direction: str) -> float:
        """Of one direction."""
        return self.forward_flops * (1 if direction == "forward" else 2.5)

    def bytes(self, direction: str) -> int:
        """q, k, v read and out written; backward reads these and out's gradient, writes three."""
        wide, narrow = self.a * self.d, self.k * self.d
        elements = 2 * wide + 2 * narrow if direction == "forward" else 4 * wide + 4 * narrow
        return self.b * self.s * elements * DTYPES[self.dtype].itemsize


def attention(scale: Scale, kernels: tuple[str, ...]) -> list[Task]:
    """Tasks by value: the widest use first, that is d = 128, then the other widths."""
    return [
        _task(kernel, shape, direction)
        for d in scale.head_dims
        for s in scale.sequences
        for kernel in kernels
        for dtype in scale.dtypes
        for direction in DIRECTIONS
        if (shape := Shape(scale.attention_tokens // s, *scale.heads, s, d, dtype))
    ]


def _task(kernel: str, shape: Shape, direction: str) -> Task:
    label = f"attention {kernel} {shape.dtype} {direction} s={shape.s} d={shape.d} b={shape.b}"

    def run(bench: Bench) -> Point:
        if bench.device.type == "cpu" and kernel != "flash":
            raise NotImplementedError(f"a CPU has no {kernel} attention")
        core = Core(kernel, bench.device.type)
        time = _forward if direction == "forward" else _backward
        what = {
            "kernel": kernel, "direction": direction, "seq_len": shape.s, "head_dim": shape.d,
            "heads": shape.a, "kv_heads": shape.k, "batch": shape.b, "causal": True,
            "dtype": shape.dtype,
        }  # fmt: skip
        timed = time(bench, core, shape)
        return point("attention", what, timed, shape.flops(direction), shape.bytes(direction))

    return Task(label, run)


def _operands(bench: Bench, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    def one(heads: int) -> Tensor:
        dtype = DTYPES[shape.dtype]
        return bench.randn(shape.b, shape.s, heads, shape.d, dtype=dtype).transpose(1, 2)

    return one(shape.a), one(shape.k), one(shape.k)


def _forward(bench: Bench, core: Core, shape: Shape) -> Timed:
    sets = bench.sets(lambda: _operands(bench, shape), shape.bytes("forward"))
    return bench.time(lambda call: fused(core, *sets[call % len(sets)], None))


def _backward(bench: Bench, core: Core, shape: Shape) -> Timed:
    """The kernel behind a graph that is kept: nothing of forward runs again."""

    def make() -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        leaves = tuple(x.requires_grad_() for x in _operands(bench, shape))
        out = fused(core, *leaves, None)  # type: ignore[call-arg]
        return out, leaves, torch.randn_like(out)

    sets = bench.sets(make, shape.bytes("backward"))

    def call(index: int) -> object:
        out, leaves, gradient = sets[index % len(sets)]
        return torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    return bench.time(call)
