"""Works: the kernels of one micro-batch, each with its shape, as the time model reads them.

A row of `works_of` stands for kernels that cost the same: one op of the ledger, one direction, one
shape, and how many of the layers' kernels are like it. FLOPs over all rows are what `flops.py` counts as
executed, exactly. Not here: what ranks exchange, the optimizer, copies to and from the host, and what
sharding (FSDP, ZeRO) launches around its collectives.
Symbols: m, n, k of a product (m, k) x (k, n); b, a, s, d of attention.
Checked by: unit/test_works.py, oracle/test_works.py, oracle/test_works_compiled.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.kernel_log import Kernel
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import Size
from memcalc.engine.states import multiplicity
from memcalc.engine.structure import Run, Structure


class Work(NamedTuple):
    """Kernels that cost the same.

    block: 0 for a decoder block's, -1 outside. op: of the ledger. direction: forward | backward |
    recompute. kind: gemm | grouped | attention | moved. name: the primitive's. dtype: of a product's
    operands, else of what is written. part of a product: forward | dgrad | wgrad. shape of a gemm:
    (batch, m, n, k); of grouped ones: (groups, rows of all groups, n, k), where a weight's gradient sums
    over the rows; of attention: (b, a, kv heads, s_q, s_kv, d_qk, d_v). flops: executed, attention's
    over the full square. moved: bytes read and written, the least possible. launches: kernels.
    """

    block: int
    op: str
    direction: str
    kind: str
    name: str
    dtype: str
    part: str
    shape: tuple[Size, ...]
    flops: Size
    moved: Size
    launches: int


class Counted(NamedTuple):
    """A row, and how many times its kernels run in a micro-batch, over all layers."""

    work: Work
    times: int


def works_of(plan: Plan) -> tuple[Counted, ...]:
    """The kernels of one micro-batch of a plan, or of one chunk of a pipeline; made once a structure."""
    structure, runs = plan.structure(plan.keeps_gradients)
    return works_in(structure, runs, plan.resolved.setup.precision == "tf32")


def works_in(
    structure: Structure, runs: tuple[Run, ...], tf32: bool = False
) -> tuple[Counted, ...]:
    """The kernels of a structure whose runs have these counts. tf32: fp32 products round operands."""
    key = ("works", tuple(run.count for run in runs), tf32)
    found = structure.cache.get(key)
    if found is None:
        found = structure.cache[key] = _counted(structure.kernels, multiplicity(runs), tf32)
    return found  # type: ignore[return-value]


def works_by_block(structure: Structure, tf32: bool = False) -> dict[int, tuple[Counted, ...]]:
    """The kernels of each traced block apart, -1: outside the blocks; made once a structure."""
    key = ("works by block", tf32)
    found = structure.cache.get(key)
    if found is None:
        kernels: dict[int, list[Kernel]] = {}
        for kernel in structure.kernels:
            kernels.setdefault(kernel.block, []).append(kernel)
        found = structure.cache[key] = {
            block: _counted(tuple(own), {block: 1}, tf32) for block, own in kernels.items()
        }
    return found  # type: ignore[return-value]


def _counted(
    kernels: tuple[Kernel, ...], layers: dict[int, int], tf32: bool
) -> tuple[Counted, ...]:
    """Equal kernels together, in the order they first run."""
    times: dict[Work, int] = {}
    for kernel in kernels:
        work = _work(kernel, tf32)
        times[work] = times.get(work, 0) + layers[kernel.block]
    return tuple(Counted(work, count) for work, count in times.items())


def _work(kernel: Kernel, tf32: bool) -> Work:
    ran = kernel.ran
    product = ran.kind in ("gemm", "grouped")
    return Work(
        block=min(kernel.block, 0),
        op=kernel.op,
        direction=kernel.direction,
        kind=ran.kind,
        name=ran.name,
        dtype="tf32" if tf32 and product and ran.dtype == "fp32" else ran.dtype,
        part=ran.part if product else "",
        shape=ran.shape,
        flops=ran.flops,
        moved=ran.moved,
        launches=ran.launches,
    )
