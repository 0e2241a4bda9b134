"""Primitives of a step one by one, where arithmetic and not memory may bound them: activations, norms,
softmax, dropout's random numbers, sums, casts.

Bytes are those the ledger's kernels have (engine/kernel_log.py): operands and results once, for each
kernel of a primitive. Only on a CPU: a GPU runs all of these as fast as its memory allows.
Checked by: harness/test_calibrate.py, which compares the bytes with the ledger's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Task, point
from memcalc.harness.calibration.timing import Bench

_aten = torch.ops.aten
Call = Callable[[], object]


class Primitive(NamedTuple):
    """One primitive by the ledger's name. passes: tensors of the operand's size read and written.

    make: from an operand and a gradient (T, width) to the call that is timed.
    """

    name: str
    passes: float
    make: Callable[[Tensor, Tensor], Call]


def primitives(scale: Scale) -> list[Task]:
    """Every primitive in every dtype, at the largest size of the element-wise kernels."""
    if not scale.alone:
        return []
    rows, width = scale.pointwise[0]
    return [
        _task(one, rows, width, dtype)
        for dtype in scale.dtypes
        for one in (*PRIMITIVES, CASTS[dtype])
    ]


def _task(one: Primitive, rows: int, width: int, dtype: str) -> Task:
    kind = DTYPES[dtype]
    moved = one.passes * rows * width * kind.itemsize

    def run(bench: Bench) -> Point:
        sets = bench.sets(
            lambda: one.make(
                bench.randn(rows, width, dtype=kind), bench.randn(rows, width, dtype=kind)
            ),
            moved,
        )
        timed = bench.time(lambda call: sets[call % len(sets)]())
        what = {"what": one.name, "dtype": dtype, "rows": rows, "width": width}
        return point("kernel", what, timed, moved=moved)

    return Task(f"primitive {one.name} {dtype} {rows}x{width}", run)


def _log_softmax_backward(x: Tensor, gradient: Tensor) -> Call:
    out = F.log_softmax(x, -1)
    return lambda: _aten._log_softmax_backward_data(gradient, out, -1, x.dtype)


def _layer_norm(x: Tensor, gradient: Tensor) -> Call:
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    return lambda: _aten.native_layer_norm(x, x.shape[1:], weight, bias, 1e-5)


def _layer_norm_backward(x: Tensor, gradient: Tensor) -> Call:
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    _, mean, rstd = _aten.native_layer_norm(x, x.shape[1:], weight, bias, 1e-5)
    kernel, shape = _aten.native_layer_norm_backward, x.shape[1:]
    return lambda: kernel(gradient, x, shape, mean, rstd, weight, bias, [True, True, True])


def _cast(x: Tensor, gradient: Tensor) -> Call:
    """To this dtype from the other; what is read lies there in advance."""
    other = x.to(torch.float32 if x.dtype == torch.bfloat16 else torch.bfloat16)
    return lambda: other.to(x.dtype)


PRIMITIVES = (
    Primitive("gelu", 2, lambda x, g: lambda: F.gelu(x, approximate="tanh")),
    Primitive(
        "gelu_backward", 3, lambda x, g: lambda: _aten.gelu_backward(g, x, approximate="tanh")
    ),
    Primitive("silu", 2, lambda x, g: lambda: F.silu(x)),
    Primitive("silu_backward", 3, lambda x, g: lambda: _aten.silu_backward(g, x)),
    Primitive("bernoulli", 2, lambda x, g: lambda: torch.empty_like(x).bernoulli_(0.9)),
    Primitive("_log_softmax", 2, lambda x, g: lambda: F.log_softmax(x, -1)),
    Primitive("_log_softmax_backward_data", 3, _log_softmax_backward),
    Primitive("native_layer_norm", 2, _layer_norm),
    Primitive("native_layer_norm_backward", 5, _layer_norm_backward),
    Primitive("sum", 1, lambda x, g: lambda: x.sum(0, keepdim=True)),
    Primitive("pow.Tensor_Scalar", 2, lambda x, g: lambda: x.pow(2)),
    Primitive("mul.Tensor", 3, lambda x, g: lambda: x * g),
    Primitive("add.Tensor", 3, lambda x, g: lambda: x + g),
    Primitive("cat", 2, lambda x, g: lambda: torch.cat(x.chunk(2, -1), -1)),
    Primitive("neg", 2, lambda x, g: lambda: -x),
)
#: A cast to bf16 reads twice what it writes, one to fp32 half of it.
CASTS = {"bf16": Primitive("_to_copy", 3, _cast), "fp32": Primitive("_to_copy", 1.5, _cast)}
