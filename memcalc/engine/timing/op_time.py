"""Seconds of the ledger's kernels: every op of a micro-batch, forward, backward and recomputed.

Each row of `works` is priced by its shape (engine/timing/kernel_times.py) and summed by op. Kernels run
one after the other on one stream, and Python launches them one after the other: a phase takes the
longer of the two sums. Sizes may be arrays; nothing here branches on a value.
Checked by: unit/test_op_time.py, unit/test_time_grid.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.plan import Plan
from memcalc.engine.timing.alignment import CUBLAS, aligned
from memcalc.engine.timing.arith import maximum
from memcalc.engine.timing.attention_time import run_dtype, seen_share
from memcalc.engine.timing.copies import Copied, copies_of
from memcalc.engine.timing.kernel_times import attention_s, gemm_bound, gemm_s, grouped_s, moved_s
from memcalc.engine.timing.time_estimate import OpTime
from memcalc.engine.works import Counted, Work, works_of
from memcalc.inputs.rates import Rates
from memcalc.inputs.stacks import load_stack

DIRECTIONS = ("forward", "backward", "recompute")


class PhaseTime(NamedTuple):
    """One direction of a micro-batch: kernels' seconds in blocks and outside, and seconds to launch."""

    block_s: Any = 0.0
    once_s: Any = 0.0
    launch_s: float = 0.0

    @property
    def gpu_s(self) -> Any:
        """Seconds of all kernels, one after the other."""
        return self.block_s + self.once_s

    @property
    def seconds(self) -> Any:
        """Seconds of the phase: its kernels, or launching them."""
        return maximum(self.gpu_s, self.launch_s)


class ComputeTime(NamedTuple):
    """A micro-batch of a plan (or of one chunk of it) without any other rank.

    backward does not include recompute; dgrad and wgrad are the parts of backward's products.
    """

    forward: PhaseTime
    backward: PhaseTime
    recompute: PhaseTime
    wgrad_s: Any
    ops: tuple[OpTime, ...]

    @property
    def forward_s(self) -> Any:
        return self.forward.seconds

    @property
    def backward_s(self) -> Any:
        """Backward with what it recomputes."""
        gpu = self.backward.gpu_s + self.recompute.gpu_s
        return maximum(gpu, self.backward.launch_s + self.recompute.launch_s)

    @property
    def launch_s(self) -> Any:
        """What launching adds to the kernels' own seconds."""
        gpu = self.forward.gpu_s + self.backward.gpu_s + self.recompute.gpu_s
        return self.forward_s + self.backward_s - gpu


def compute_time(plan: Plan, rates: Rates) -> ComputeTime:
    """Seconds of a micro-batch of a plan, whose dims may have arrays as values (`plan._replace`)."""
    dims = plan.values
    scalar = isinstance(dims["b"] * dims["s"], int)
    priced = priced_for(plan, rates)
    found: dict[tuple[str, str, str], _Sums] = {}
    for counted in works_of(plan):
        work = counted.work
        key = (work.op, "once" if work.block < 0 else "block", work.direction)
        found.setdefault(key, _Sums()).add(counted, priced, dims, scalar)
    ops = tuple(sums.result(key) for key, sums in found.items())
    ops += tuple(_copied(one, rates) for one in copies_of(plan))
    wgrad = sum((sums.wgrad_s for sums in found.values()), 0.0)
    forward, backward, recompute = (_phase(ops, direction, plan, rates) for direction in DIRECTIONS)
    return ComputeTime(forward, backward, recompute, wgrad, ops)


class Priced(NamedTuple):
    """Rates, and the implementation of fused attention that runs ("": the kernel's own).

    views: the dtype at whose rate batched products of views run whose heads are no multiples of 16
    bytes ("": their own). causal: fused attention leaves out masked scores; T5's, whose mask is part of a
    bias, and BERT's, which masks none, do not.
    """

    rates: Rates
    attention: str = ""
    views: str = ""
    causal: bool = True


def priced_for(plan: Plan, rates: Rates) -> Priced:
    """How a plan's kernels are priced."""
    code, views = attention_code(plan, rates), odd_views(plan, rates)
    return Priced(rates, code, views, not plan.config.is_encoder)


def attention_code(plan: Plan, rates: Rates) -> str:
    """The implementation of fused attention, where it is not the one that the kernel's name says.

    A setup may state it; Transformer Engine takes cuDNN's where a device runs that faster.
    """
    stated = plan.kernels.attention_code
    if stated or plan.kernels.attention != "flash":
        return stated
    on = load_stack(plan.resolved.setup.code).parallel.get("cudnn_attention_on", ())
    return "cudnn" if rates.architecture in on else ""


def odd_views(plan: Plan, rates: Rates) -> str:
    """`Priced.views`: heads that are views of one projection may miss tensor cores (stack's profile)."""
    if rates.architecture not in CUBLAS:
        return ""
    return str(load_stack(plan.resolved.setup.code).parallel.get("odd_views_run_in", ""))


def work_s(work: Work, priced: Priced, dims: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(seconds, FLOPs, bytes) of one row, once."""
    rates = priced.rates
    flops = work.flops.value(dims) if work.flops.terms else 0
    moved = work.moved.value(dims)
    shape = [size.value(dims) for size in work.shape]
    if work.kind == "gemm":
        seconds = _product_s(work, priced, shape)
    elif work.kind == "grouped":
        # gradients of many small weights, added in fp32: all of them are read and written
        seconds = grouped_s(rates, work.dtype, *shape)
        seconds = maximum(seconds, moved / rates.gemm[work.dtype].bytes_per_s)
    elif work.kind == "attention":
        kernel = _kernel(work, priced, dims)
        causal = priced.causal
        seconds = attention_s(rates, kernel, _pass(work), tuple(shape), causal, work.dtype)
    else:
        seconds = moved_s(rates, moved, work.launches, f"{work.name} {work.dtype}")
    return seconds, flops, moved


def _product_s(work: Work, priced: Priced, shape: list[Any]) -> Any:
    """Seconds of a product, or of one that misses tensor cores."""
    rates = priced.rates
    seconds = gemm_s(rates, work.dtype, *shape, part=work.part)
    if not priced.views or work.name != "bmm":
        return seconds
    even = aligned(ITEMSIZE[work.dtype], *shape)
    return even * seconds + (1 - even) * gemm_s(rates, priced.views, *shape)


def _kernel(work: Work, priced: Priced, dims: Mapping[str, Any]) -> str:
    """flash | efficient | cudnn, as stated or from the name of the primitive; with dtype, pass and width
    of a head where a calibration measured that."""
    rates = priced.rates
    named = next((k for k in ("efficient", "cudnn") if k in work.name), "flash")
    kernel = priced.attention or named
    own = f"{kernel} {work.dtype} {_pass(work)}"
    if any(known.startswith(f"{own} ") for known in rates.attention):
        width = work.shape[5].value(dims)
        wide = (
            f"{own} {int(getattr(width, 'flat', [width])[0])}"  # one width in all lanes of an array
        )
        if wide in rates.attention:
            return wide
    return own if own in rates.attention else kernel


def _pass(work: Work) -> str:
    return "backward" if work.direction == "backward" else "forward"


class _Sums:
    """One op in the making."""

    __slots__ = ("bounds", "dtypes", "flops", "kernels", "moved", "run", "seconds", "wgrad_s")

    def __init__(self) -> None:
        self.seconds = self.flops = self.run = self.moved = self.wgrad_s = 0.0
        self.kernels = 0
        self.bounds: dict[str, float] = {}
        self.dtypes: dict[str, float] = {}

    def add(self, counted: Counted, priced: Priced, dims: Mapping[str, Any], scalar: bool) -> None:
        """Add a row of works, as often as it is there."""
        work, times = counted
        seconds, flops, moved = work_s(work, priced, dims)
        seconds = times * seconds * priced.rates.sum_residual
        self.seconds = self.seconds + seconds
        self.kernels += times * work.launches
        self.flops = self.flops + times * flops
        run = times * flops * (_run_share(work, dims) if priced.causal else 1)
        self.run = self.run + run
        self.moved = self.moved + times * moved
        if work.part == "wgrad":
            self.wgrad_s = self.wgrad_s + seconds
        if scalar:
            bound = _bound(work, priced.rates, dims, moved)
            self.bounds[bound] = self.bounds.get(bound, 0.0) + seconds
            if flops:
                dtype = work.dtype
                if work.kind == "attention":
                    dtype = run_dtype(priced.rates, dtype)
                self.dtypes[dtype] = self.dtypes.get(dtype, 0.0) + run

    def result(self, key: tuple[str, str, str]) -> OpTime:
        """The op's row; its bound is where most of its seconds go."""
        bound, dtype = (
            max(sums, key=lambda name: sums[name]) if sums else ""
            for sums in (self.bounds, self.dtypes)
        )
        op = OpTime(*key, self.seconds, bound, self.kernels, self.flops, self.moved)
        return op._replace(kernel_flops=self.run, dtype=dtype)


def _run_share(work: Work, dims: Mapping[str, Any]) -> Any:
    """Share of a row's FLOPs that its kernels run: fused attention leaves out what is masked."""
    if work.kind != "attention":
        return 1
    return seen_share(*(size.value(dims) for size in work.shape[3:5]))


def _copied(one: Copied, rates: Rates) -> OpTime:
    """The row of what a strategy's own code copies."""
    seconds = moved_s(rates, one.moved, one.kernels)
    return OpTime(one.op, "block", one.direction, seconds, "bandwidth", one.kernels, 0, one.moved)


def _bound(work: Work, rates: Rates, dims: Mapping[str, Any], moved: float) -> str:
    if work.kind == "gemm":
        return gemm_bound(rates, work.dtype, *(size.value(dims) for size in work.shape))
    if work.kind != "moved":
        return "compute"
    memory = rates.memory
    short = moved / memory.bytes_per_s < work.launches * memory.t0_s
    return "latency" if short else "bandwidth"


def _phase(ops: tuple[OpTime, ...], direction: str, plan: Plan, rates: Rates) -> PhaseTime:
    mine = [op for op in ops if op.direction == direction]
    blocks = sum((op.seconds for op in mine if op.part == "block"), 0.0)
    once = sum((op.seconds for op in mine if op.part == "once"), 0.0)
    launched = 0 if plan.kernels.cuda_graphs else sum(op.kernels for op in mine)
    return PhaseTime(blocks, once, launched * rates.launch_s)
