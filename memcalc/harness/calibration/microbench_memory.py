"""Operations bound by memory: copy, triad, norms, and the element-wise kernels of an eager block.

Bytes are what the kernels of one call must read and write, each kernel on its own, for an eager
operation's result goes to memory before the next reads it. `kernels` says how many there are.
Symbols: N elements of e bytes; "passes" counts tensors of N elements read or written.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Task, point
from memcalc.harness.calibration.timing import Bench, Call
from memcalc.harness.model.positions import rope_tables, rotate

_BF16 = torch.bfloat16
_HEAD_DIM = 64


class Pointwise(NamedTuple):
    """An eager operation: how often it passes over N elements, in how many kernels.

    make: from fresh (T, width) tensors of `inputs` to the call that is timed.
    """

    name: str
    passes: float
    kernels: int
    inputs: int
    make: Callable[[list[Tensor]], Callable[[], object]]


def copies(scale: Scale) -> list[Task]:
    """b = a, and the triad c = a + 3 b, in fp32, on tensors far larger than the cache."""
    found = []
    for size in scale.copies_bytes:
        for name, tensors in (("copy", 2), ("triad", 3)):
            found.append(_stream_task(name, tensors, size))
    return found


def _stream_task(name: str, tensors: int, size: int) -> Task:
    def run(bench: Bench) -> Point:
        def make() -> list[Tensor]:
            return [bench.randn(size // 4) for _ in range(tensors)]

        sets = bench.sets(make, tensors * size)

        def call(index: int) -> object:
            out, *read = sets[index % len(sets)]
            if name == "copy":
                return out.copy_(read[0])
            return torch.add(read[0], read[1], alpha=3.0, out=out)

        what = {"what": name, "tensor_bytes": size, "dtype": "fp32"}
        return point("bandwidth", what, bench.time(call), moved=tensors * size)

    return Task(f"{name} of {size >> 20} MiB", run)


def norms(scale: Scale) -> list[Task]:
    """RMSNorm as F.rms_norm, forward (read x, write y) and backward (read x, dy, write dx)."""
    rows, width = scale.pointwise[0]
    return [
        _norm_task(rows, width, dtype, direction)
        for dtype in ("bf16", "fp32")
        for direction in ("forward", "backward")
    ]


def _norm_task(rows: int, width: int, dtype: str, direction: str) -> Task:
    kind = DTYPES[dtype]
    moved = (2 if direction == "forward" else 3) * rows * width * kind.itemsize

    def run(bench: Bench) -> Point:
        def make() -> Callable[[], object]:
            x = bench.randn(rows, width, dtype=kind)
            weight = bench.randn(width, dtype=kind)
            if direction == "forward":
                return lambda: F.rms_norm(x, (width,), weight, 1e-6)
            return _backward_of(lambda x, w: F.rms_norm(x, (width,), w, 1e-6), [x, weight])

        what = {"what": "rms_norm", "direction": direction, "dtype": dtype, "rows": rows,
                "width": width}  # fmt: skip
        return point("norm", what, bench.time(_rotating(bench, make, moved)), moved=moved)

    return Task(f"rms_norm {dtype} {direction} {rows}x{width}", run)


def pointwise(scale: Scale, shapes: tuple[tuple[int, int], ...]) -> list[Task]:
    """Residual sum, SwiGLU forward and backward, rotation, cast: as an eager block runs them."""
    return [
        _pointwise_task(op, rows, width, dtype)
        for rows, width in shapes
        for dtype in scale.dtypes
        for op in OPERATIONS
        if dtype == "bf16" or not op.name.startswith("cast")
    ]


def _pointwise_task(op: Pointwise, rows: int, width: int, dtype: str) -> Task:
    kind = DTYPES[dtype]
    moved = op.passes * rows * width * kind.itemsize

    def run(bench: Bench) -> Point:
        def make() -> Callable[[], object]:
            return op.make([bench.randn(rows, width, dtype=kind) for _ in range(op.inputs)])

        what = {"what": op.name, "dtype": dtype, "rows": rows, "width": width,
                "kernels": op.kernels}  # fmt: skip
        return point("elementwise", what, bench.time(_rotating(bench, make, moved)), moved=moved)

    return Task(f"{op.name} {dtype} {rows}x{width}", run)


def _rotating(bench: Bench, make: Callable[[], Callable[[], object]], moved: float) -> Call:
    sets = bench.sets(make, moved)
    return lambda call: sets[call % len(sets)]()


def _backward_of(
    forward: Callable[..., Tensor], inputs: list[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """Backward alone, behind a graph that is kept."""
    leaves = [x.requires_grad_() for x in inputs]
    out = forward(*leaves)
    gradient = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _rotation(tensors: list[Tensor]) -> Callable[[], object]:
    """The rows as one sequence of heads (1, T, a, d), rotated as the decoder does."""
    rows, width = tensors[0].shape
    x = tensors[0].view(1, rows, width // _HEAD_DIM, _HEAD_DIM).transpose(1, 2)
    cos, sin = rope_tables(rows, _HEAD_DIM, 10000.0, x.dtype, x.device)
    return lambda: rotate(x, cos, sin)


def _cast(tensors: list[Tensor]) -> Callable[[], object]:
    wide = tensors[0].float()
    return lambda: wide.to(_BF16)


#: silu 2 passes, product 3; its backward two products of 3 and silu's 3; rotation: neg 1, cat 2, two
#: products of 2 (the tables are small), sum 3; the cast reads twice the bytes it writes.
OPERATIONS = (
    Pointwise("add", 3, 1, 2, lambda t: lambda: t[0] + t[1]),
    Pointwise("swiglu", 5, 2, 2, lambda t: lambda: _swiglu(*t)),
    Pointwise("swiglu backward", 9, 3, 2, lambda t: _backward_of(_swiglu, t)),
    Pointwise("rope", 10, 5, 1, _rotation),
    Pointwise("cast fp32 to bf16", 3, 1, 1, _cast),
)
