"""Seconds of one forward pass of a rank: its kernels, what ranks exchange, and launching the kernels.

Kernels run one after the other; without CUDA graphs each must also be reached from Python, so a pass
takes the longer of the two sums. Attention of few new positions over a cache is priced as such
(timing/attention_time.py). Rates are those of single kernels: neither the droop nor the residual that
whole training steps have (docs/decisions.md, 30) is put on them, for decoding leaves a device far below
its power limit.
A matrix stored in fewer bits moves its stored bytes where the kernel unpacks as it reads; where it is
written out first (bitsandbytes, more than one position) that costs a copy; LLM.int8 moves as 16 bit.
Of a mixture's experts those are read that tokens are expected to go to.
Times a single position such a matrix, and any on a CPU, needs no tiles (llama.cpp's mul_mat_vec, GPTQ's
and bitsandbytes' gemv): it is read, nothing is padded.
Checked by: unit/test_serving_time.py, published/test_serving.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.serving.forward import DECODE_ROWS, Forward, Part
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.timing.gemm_time import few_rows_s, packed_product_s, product_s
from memcalc.engine.timing.kernel_times import decode_attention_s, moved_s
from memcalc.engine.timing.op_time import Priced, work_s
from memcalc.engine.timing.topology import Wires, exchange_s, group_of
from memcalc.engine.works import Work, works_in
from memcalc.inputs.rates import Rates


class PassTime(NamedTuple):
    """One forward pass: seconds of kernels, of exchanges, of launching; kernels; bytes moved."""

    kernels_s: float
    exchanges_s: float
    launch_s: float
    kernels: int
    moved_bytes: float
    weights_s: float  # of the kernels: products with a weight
    attention_s: float  # of the kernels: attention over keys and values
    cache_s: float  # of the kernels: putting keys and values into the cache

    @property
    def seconds(self) -> float:
        """Kernels and exchanges in turn, or launching them."""
        return max(self.kernels_s + self.exchanges_s, self.launch_s)

    @property
    def bound(self) -> str:
        """What most of the pass waits for."""
        if self.launch_s > self.kernels_s + self.exchanges_s:
            return "launching"
        rest = self.kernels_s - self.weights_s - self.attention_s - self.cache_s
        parts = {
            "weights": self.weights_s, "attention": self.attention_s,
            "copying the cache": self.cache_s, "network": self.exchanges_s, "other kernels": rest,
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


class Pricing(NamedTuple):
    """What a plan's passes are priced with. packed: by operator, stored over 16-bit bytes of weights.

    fused: what one operator of the ledger does element by element is one kernel.
    """

    rates: Rates
    wires: Wires
    packed: Mapping[str, float]
    kernel: str  # of the weight format
    launch_s: float
    cuda_graphs: bool
    item_bytes: float
    tp: int
    fused: bool = False
    part: Part = Part()
    attends_alone: bool = False  # tp ranks compute all of attention, each for itself


def pricing(plan: ServingPlan, rates: Rates, wires: Wires) -> Pricing:
    """Rates, wires, and how much less than 16 bits each operator's weights take."""
    resolved = plan.resolved
    widened = resolved.cache in ("fp8", "grouped")  # attention reads what was widened before it
    whole = resolved.engine.name == "transformers" and plan.config.mla is not None
    return Pricing(
        rates, wires, _packed(plan), plan.format.kernel,
        float(resolved.engine.values["launch_s"]) or rates.launch_s,
        resolved.cuda_graphs or rates.architecture == "cpu",
        float(ITEMSIZE[resolved.compute_dtype]) if widened else resolved.item_bytes, plan.layout.tp,
        bool(resolved.engine.values.get("one_kernel_an_op", False)), plan.part, whole,
    )  # fmt: skip


def _packed(plan: ServingPlan) -> dict[str, float]:
    if plan.format.is_dense:
        return {}
    stored: dict[str, float] = {}
    dense: dict[str, float] = {}
    for held in plan.weights().leaves:
        op = held.name.rsplit(".", 2)[-2]
        stored[op] = stored.get(op, 0.0) + held.resident_bytes
        dense[op] = dense.get(op, 0.0) + 2.0 * held.elements
    return {op: stored[op] / dense[op] for op in stored}


def pass_time(forward: Forward, how: Pricing) -> PassTime:
    """Seconds of one traced pass."""
    priced = Priced(how.rates)
    dims = forward.values
    total = weights = attention = cache = moved = 0.0
    kernels = 0
    begun: set[tuple[int, str]] = set()
    for work, times in works_in(forward.structure, forward.runs):
        seconds = times * _work_s(work, priced, how, dims)
        launches = times * work.launches
        if how.fused and work.kind == "moved":
            if (work.block, work.op) in begun:  # part of the operator's one kernel
                seconds -= launches * how.rates.memory.t0_s
                launches = 0
            begun.add((work.block, work.op))
        total += seconds
        kernels += launches
        moved += times * work.moved.value(dims)
        if work.kind in ("gemm", "grouped") and work.name != "bmm":
            weights += seconds
        elif work.kind == "attention" or work.op == "attention":
            attention += seconds
        elif work.op == "kv_cache":
            cache += seconds
    launch = 0.0 if how.cuda_graphs else kernels * how.launch_s
    between = _exchanges_s(forward, how)
    return PassTime(total, between, launch, kernels, moved, weights, attention, cache)


def _work_s(work: Work, priced: Priced, how: Pricing, dims: Mapping[str, Any]) -> float:
    shape = tuple(size.value(dims) for size in work.shape)
    if work.kind == "attention" and shape[3] < DECODE_ROWS:
        item = how.item_bytes
        if shape[2] == 1 < shape[1] and shape[6] < shape[5]:  # latents: a value is part of its key
            item *= shape[5] / (shape[5] + shape[6])
        return float(decode_attention_s(how.rates, shape, item, work.dtype))
    share = how.packed.get(work.op, 1.0)
    if work.kind == "grouped":
        return _experts_s(work, shape, share, how)
    packed = share < 1 and how.kernel in ("fused", "dequantise")
    if work.kind == "gemm" and not packed:
        few = few_rows_s(how.rates, work.name, work.dtype, shape)
        if few is not None:
            return few
    if work.kind == "gemm" and shape[1] == 1 and (packed or how.rates.architecture == "cpu"):
        return _vector_s(work, shape, share, how)
    if work.kind == "gemm" and packed:
        return _packed_s(work, shape, share, how)
    return float(work_s(work, priced, dims)[0])


def _experts_s(work: Work, shape: tuple[int, ...], share: float, how: Pricing) -> float:
    """The products of the experts that rows go to: of e experts and R rows e (1 - (1 - 1/e)^R) of them.

    Rows are taken to choose experts evenly and one by one; only chosen experts' weights are read.
    """
    e, rows, n, k = shape
    used = max(1, round(e * (1 - (1 - 1 / e) ** rows)))
    rate = how.rates.gemm[work.dtype]
    spared = 0.0 if how.kernel == "int8" else used * n * k * ITEMSIZE[work.dtype] * (1 - share)
    return float(packed_product_s(rate, (used, rows / used, n, k), max(0.0, spared)))


def _vector_s(work: Work, shape: tuple[int, ...], share: float, how: Pricing) -> float:
    """A matrix times a vector by a kernel without tiles: the longer of arithmetic and of reading it."""
    batch, _, n, k = shape
    rate = how.rates.gemm[work.dtype]
    read = share * batch * n * k * ITEMSIZE[work.dtype]
    return float(rate.t0_s + max(2.0 * batch * n * k / rate.flops_per_s, read / rate.bytes_per_s))


def _packed_s(work: Work, shape: tuple[int, ...], share: float, how: Pricing) -> float:
    """A product with a matrix stored in `share` of its 16-bit bytes."""
    batch, m, n, k = shape
    rate = how.rates.gemm[work.dtype]
    whole = batch * n * k * ITEMSIZE[work.dtype]
    if how.kernel == "fused":
        return float(packed_product_s(rate, shape, whole * (1 - share)))
    written = moved_s(how.rates, whole * (1 + share))
    return float(product_s(rate, batch, m, n, k) + written)


def _exchanges_s(forward: Forward, how: Pricing) -> float:
    """Seconds of what ranks exchange in a pass; nothing runs beside it.

    tp: the sums of attention and of the MLP in every layer and of the embedding, and gathered logits. dp
    ranks that share experts: their tokens gathered, results scattered, in every layer with experts.
    """
    values, total = forward.values, 0.0
    tokens = values["b"] * values["s"]
    stream = tokens * values["h"] * 2
    layers = sum(run.count * len(run.pattern) for run in forward.runs)
    if how.tp > 1:
        group = group_of(how.tp, 1, how.wires)
        begins, ends = how.part.ends
        sums = layers * (1 if how.attends_alone else 2) + begins
        total += sums * exchange_s("all_reduce", stream, group, how.wires)
        logits = tokens if how.part.every else values["b"]
        if ends:
            size = logits * values["V"] * how.tp * 2
            total += exchange_s("all_gather", size, group, how.wires)
    if "T_e" in values:
        sparse = sum(run.count * sum(kind.sparse for kind in run.pattern) for run in forward.runs)
        group = group_of(values["T_e"] // tokens, how.tp, how.wires)
        size = values["T_e"] * values["h"] * 2
        for kind in ("all_gather", "reduce_scatter"):
            total += sparse * exchange_s(kind, size, group, how.wires)
    return float(total)
