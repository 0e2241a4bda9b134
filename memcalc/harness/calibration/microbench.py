"""What a calibration consists of: tasks, and the sizes they have on a GPU, a CPU and in the tests.

A task measures one point: it sets up random operands, times one operation (`timing.Bench`) and
returns a plain dict: `kind`, what was done, `median_s`, `p10_s`, `p90_s`, `batches`, `calls`, and
rates in base units. Bytes are the least an operation must read and write, FLOPs two for a
multiply-add.
Letters: T tokens, h hidden, V vocabulary; m, n, k of a product (m, k) x (k, n).
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from memcalc.harness.calibration import timing
from memcalc.harness.calibration.timing import Bench, Protocol, Timed

#: Names of dtypes in points. tf32 is fp32 whose products round their operands to 19 bits.
DTYPES = {
    "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}  # fmt: skip
Point = dict[str, Any]


class Task(NamedTuple):
    """One point to measure. cost_s: what it takes beyond the protocol's own time, about."""

    label: str
    run: Callable[[Bench], Point]
    cost_s: float = 0.0
    collective: bool = False  # all ranks must run it together


class Step(NamedTuple):
    """A training step timed at two depths: a model profile, or "tiny", and its setup."""

    model: str
    seq_len: int
    micro_batch_size: int
    precision: str
    attention: str
    optimizer_impl: str | None
    stack: str = "torch"
    optimizer: str = "adamw"


class Scale(NamedTuple):
    """The sizes of every task on one class of device."""

    protocol: Protocol
    dtypes: tuple[
        str, ...
    ]  # of the full set of products, of attention, losses, element-wise kernels
    few_dtypes: tuple[str, ...]  # of one shape's three products
    square: int  # m = n = k of the ceiling
    sustained_s: float
    tokens: tuple[int, ...]  # T of the products, the most valuable first
    linears: tuple[tuple[int, int], ...]  # (out, in) features
    small_linears: tuple[tuple[int, int], ...]  # of models with h = 2048, at the first T
    few_rows: tuple[int, ...]  # rows of the products of generating
    few_linears: tuple[tuple[int, int], ...]
    caches: tuple[
        tuple[int, int, int, int, int], ...
    ]  # sequences, query and key heads, keys, width of a head
    fp8: tuple[tuple[int, int, int], ...]  # (m, n, k)
    skinny: tuple[int, int, int]  # a product bound by memory
    attention_tokens: int
    sequences: tuple[int, ...]
    heads: tuple[int, int]  # query, key/value
    head_dims: tuple[int, ...]
    copies_bytes: tuple[int, ...]
    pointwise: tuple[tuple[int, int], ...]  # (T, width)
    alone: bool  # primitives one by one: those of a CPU compute for longer than they move
    vocabulary: tuple[int, int, int]  # (T, V, h)
    optimizer_params: tuple[int, ...]
    matrix: int  # optimizer states are matrices (matrix, matrix)
    small_matrices: tuple[int, int]  # (number, side) of a step that is all overhead
    steps: tuple[Step, ...]
    launches: tuple[Step, ...]  # of a decoder so small that its launches are what it takes
    messages_bytes: tuple[int, ...]


_LLAMA_8B = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096))
_H2048 = ((6144, 2048), (11264, 2048), (2048, 5632), (32000, 2048))
MIB, GIB = 1 << 20, 1 << 30

CUDA = Scale(
    protocol=timing.CUDA,
    dtypes=("bf16",),
    few_dtypes=("fp16", "tf32", "fp32"),
    square=8192,
    sustained_s=5.0,
    tokens=(8192, 16384),
    linears=_LLAMA_8B,
    small_linears=_H2048,
    few_rows=(1, 4, 16),
    few_linears=((6144, 4096), (28672, 4096), (4096, 14336)),
    caches=((1, 32, 8, 2048, 128), (16, 32, 8, 1024, 128), (64, 32, 8, 2048, 128), (8, 32, 32, 1024, 128)),
    fp8=((8192, 28672, 4096), (8192, 4096, 14336)),
    skinny=(64, 4096, 4096),
    attention_tokens=16384,
    sequences=(8192, 2048, 1024, 16384, 4096),
    heads=(32, 8),
    head_dims=(128, 64),
    copies_bytes=(GIB, 128 * MIB),
    pointwise=((16384, 4096), (16384, 14336), (2048, 4096)),
    alone=False,
    vocabulary=(8192, 128256, 4096),
    optimizer_params=(10**9, 125_000_000),
    matrix=4096,
    small_matrices=(256, 64),
    steps=(
        Step("llama-3.1-8b", 8192, 1, "bf16-mixed", "flash", "fused"),
        Step("llama-3.1-8b", 8192, 1, "bf16", "cudnn", "fused"),
        Step("llama-3.2-1b", 2048, 8, "bf16-mixed", "flash", "foreach"),
        Step("llama-3.1-8b", 8192, 1, "bf16-mixed", "flash", "fused", "torch-compile"),
    ),
    launches=(Step("minute", 8, 1, "bf16-mixed", "flash", None, optimizer="none"),),
    messages_bytes=(256, MIB, 32 * MIB, 512 * MIB),
)  # fmt: skip

CPU = Scale(
    protocol=timing.CPU,
    dtypes=("bf16", "fp32"),
    few_dtypes=(),
    square=768,
    sustained_s=1.0,
    tokens=(512, 64),
    linears=((768, 512), (512, 512), (2816, 512), (512, 1408), (4096, 512)),
    small_linears=((384, 256), (256, 704), (128, 128), (2048, 128)),
    few_rows=(1, 2, 4, 8, 16, 32),
    few_linears=((256, 256), (512, 512), (2816, 512), (512, 1408), (1024, 1024)),
    caches=((1, 8, 8, 64, 64), (1, 8, 2, 256, 64), (4, 8, 8, 128, 64), (1, 8, 8, 256, 128),
            (8, 4, 2, 64, 64)),
    fp8=((256, 512, 512),),
    skinny=(8, 1024, 1024),
    attention_tokens=512,
    sequences=(512, 256, 128, 64),
    heads=(8, 2),
    head_dims=(128, 64),
    copies_bytes=(64 * MIB, 16 * MIB),
    pointwise=((2048, 1024), (512, 512), (16, 512)),
    alone=True,
    vocabulary=(256, 8192, 512),
    optimizer_params=(8_000_000, 2_000_000),
    matrix=1000,
    small_matrices=(64, 32),
    steps=(Step("tiny", 128, 2, "fp32", "flash", "fused"),
           Step("tiny", 128, 2, "bf16-mixed", "flash", "foreach")),
    launches=(Step("minute", 8, 1, "fp32", "flash", None, optimizer="none"),
              Step("minute", 8, 1, "bf16-mixed", "flash", None, optimizer="none")),
    messages_bytes=(256, MIB, 8 * MIB),
)  # fmt: skip

#: Every kind of point at sizes of a few milliseconds, for tests on any device.
SMALL = CPU._replace(
    protocol=timing.TINY, square=128, sustained_s=0.05, tokens=(64, 32),
    linears=((96, 64), (64, 64)), small_linears=((48, 32),), few_rows=(1, 4),
    few_linears=((96, 64), (64, 64)), caches=((1, 4, 2, 32, 16), (2, 4, 4, 64, 16)), fp8=((64, 64, 64),),
    skinny=(4, 128, 128), attention_tokens=128, sequences=(128, 64), heads=(4, 2), head_dims=(32,),
    copies_bytes=(MIB,), pointwise=((64, 64), (256, 64)), vocabulary=(64, 512, 64),
    optimizer_params=(40_000, 10_000), matrix=50, small_matrices=(8, 8),
    steps=(Step("tiny", 16, 1, "fp32", "flash", "fused"),), messages_bytes=(256, 64 << 10),
)  # fmt: skip


def point(
    kind: str, what: dict[str, Any], timed: Timed, flops: float = 0, moved: float = 0
) -> Point:
    """A point's dict; flops and bytes, with their rates, where an operation has any."""
    found: Point = {"kind": kind, **what, **timed._asdict()}
    if flops:
        found |= {"flops": flops, "flops_per_s": flops / timed.median_s}
    if moved:
        found |= {"bytes": moved, "bytes_per_s": moved / timed.median_s}
    return found
