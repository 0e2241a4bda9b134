"""Matrix products: the square ceiling, the products of linear layers, fp8.

A linear y = x W^T of x (T, k), W (n, k) is three products in training. In the column-major terms of
BLAS they are TN (forward), NN (gradient of the input, "dgrad") and NT (gradient of the weight,
"wgrad"), and each has ceilings of its own. Points name the product's own m, n, k: forward (T, n, k),
dgrad (T, k, n), wgrad (n, k, T). FLOPs 2 m n k; bytes e (m k + k n + m n), e bytes an element.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Task, point
from memcalc.harness.calibration.timing import Bench, Call, quantile, summary
from memcalc.harness.nvml import Sampler

PARTS = ("forward", "dgrad", "wgrad")
_LAYOUTS = {"forward": "TN", "dgrad": "NN", "wgrad": "NT"}
_EDGE = 10  # batches at either end of a sustained run that are summed up apart


class Product(NamedTuple):
    """One product of a linear layer: T tokens, out and in features."""

    tokens: int
    features_out: int
    features_in: int
    dtype: str
    part: str = "forward"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, n, k)."""
        t, o, i = self.tokens, self.features_out, self.features_in
        return {"forward": (t, o, i), "dgrad": (t, i, o), "wgrad": (o, i, t)}[self.part]

    @property
    def flops(self) -> int:
        m, n, k = self.shape
        return 2 * m * n * k

    @property
    def bytes(self) -> int:
        m, n, k = self.shape
        return DTYPES[self.dtype].itemsize * (m * k + k * n + m * n)

    @property
    def label(self) -> str:
        m, n, k = self.shape
        return f"gemm {self.dtype} {m}x{n}x{k} {self.part}"

    def what(self) -> Point:
        """What a point says of it."""
        m, n, k = self.shape
        said = {"dtype": self.dtype, "part": self.part, "layout": _LAYOUTS[self.part]}
        return {"m": m, "n": n, "k": k, **said}

    def operands(self, bench: Bench) -> tuple[Tensor, Tensor]:
        """Random operands as they lie in memory: (x, W), (dy, W) or (dy, x)."""
        t, o, i = self.tokens, self.features_out, self.features_in
        shapes = {"forward": ((t, i), (o, i)), "dgrad": ((t, o), (o, i)), "wgrad": ((t, o), (t, i))}
        first, second = shapes[self.part]
        dtype = DTYPES[self.dtype]
        return bench.randn(*first, dtype=dtype), bench.randn(*second, dtype=dtype)

    def run(self, first: Tensor, second: Tensor) -> Tensor:
        """The product itself, as autograd calls it."""
        if self.part == "forward":
            return F.linear(first, second)
        return first @ second if self.part == "dgrad" else first.t() @ second


def products(scale: Scale, tokens: int, linears: tuple[tuple[int, int], ...]) -> list[Task]:
    """Forward, dgrad and wgrad of some linears, in every dtype of the scale."""
    return [
        _task(Product(tokens, o, i, dtype, part))
        for o, i in linears
        for dtype in scale.dtypes
        for part in PARTS
    ]


def other_dtypes(scale: Scale) -> list[Task]:
    """The three products of the second linear in the dtypes that get no full set."""
    o, i = scale.linears[1]
    return [
        _task(Product(scale.tokens[0], o, i, dtype, part))
        for dtype in scale.few_dtypes
        for part in PARTS
    ]


def _task(product: Product) -> Task:
    def run(bench: Bench) -> Point:
        with tf32(product.dtype == "tf32"):
            timed = bench.time(_rotating(bench, product))
        return point("gemm", product.what(), timed, product.flops, product.bytes)

    return Task(product.label, run)


def _rotating(bench: Bench, product: Product) -> Call:
    sets = bench.sets(lambda: product.operands(bench), product.bytes)
    return lambda call: product.run(*sets[call % len(sets)])


def square(scale: Scale) -> list[Task]:
    """The ceiling: m = n = k, in short bursts, in each dtype of the full set."""
    found = []
    for dtype in scale.dtypes:
        product = Product(scale.square, scale.square, scale.square, dtype)
        task = _task(product)

        def run(bench: Bench, task: Task = task) -> Point:
            return {**task.run(bench), "kind": "gemm_square"}

        found.append(Task(f"{product.label} burst", run))
    return found


def sustained(scale: Scale) -> list[Task]:
    """The same for seconds on end: what power cap and heat leave. Clocks, power where NVML is."""
    product = Product(scale.square, scale.square, scale.square, scale.dtypes[0])

    def run(bench: Bench) -> Point:
        with Sampler(bench.device) as board:
            samples, calls = bench.samples(_rotating(bench, product), least_s=scale.sustained_s)
        timed = summary(samples, len(samples) * calls)
        found = point("gemm_sustained", product.what(), timed, product.flops, product.bytes)
        found["first_s"] = quantile(sorted(samples[:_EDGE]), 0.5)
        found["last_s"] = quantile(sorted(samples[-_EDGE:]), 0.5)
        return {**found, "board": board.summary()}

    return [Task(f"{product.label} for {scale.sustained_s:g} s", run, scale.sustained_s)]


def fp8_products(scale: Scale) -> list[Task]:
    """torch._scaled_mm of e4m3 operands with one scale each, into bf16, fast accumulation."""
    return [_fp8_task(shape) for shape in scale.fp8]


def _fp8_task(shape: tuple[int, int, int]) -> Task:
    m, n, k = shape
    moved = m * k + k * n + 2 * m * n

    def run(bench: Bench) -> Point:
        sets = bench.sets(lambda: _fp8_call(bench, shape), moved)
        timed = bench.time(lambda call: sets[call % len(sets)]())
        what = {"m": m, "n": n, "k": k, "dtype": "fp8", "part": "forward", "layout": "TN"}
        return point("gemm", what, timed, 2 * m * n * k, moved)

    return Task(f"gemm fp8 {m}x{n}x{k} forward", run)


def _fp8_call(bench: Bench, shape: tuple[int, int, int]) -> Callable[[], Tensor]:
    m, n, k = shape
    dtype = torch.float8_e4m3fn
    left, right = bench.randn(m, k).to(dtype), bench.randn(n, k).to(dtype).t()
    one = torch.ones((), device=bench.device)

    def call() -> Tensor:
        return torch._scaled_mm(
            left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return call


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """fp32 products in tf32 where `enabled`; the process's own choice afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
