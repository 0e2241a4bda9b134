"""The figures of a device's rates, by kind of kernel and of link, in FLOPs/s, bytes/s and s.

`inputs/rates.py` makes them of a calibration and a datasheet; the formulas of engine/timing use them.
Checked by: unit/test_rates.py, unit/test_kernel_times.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class GemmRate(NamedTuple):
    """Matrix products of one dtype; see engine/timing/gemm_time.py for what each figure does.

    flops_per_s: ceiling of short products, all multiprocessors busy. bytes_per_s: of operands and
    result. prologue_k, split_k: lengths of k. spread, padding, droop: shares. small_tile: relative
    cost of a small tile. exponent: of the norm that joins compute and memory. cached_bytes: operands
    below it come from cache; 0, none do. dgrad, wgrad: seconds relative to a forward product.
    """

    flops_per_s: float
    bytes_per_s: float
    t0_s: float
    prologue_k: float
    split_k: float
    spread: float
    padding: float
    small_tile: float
    droop: float
    droop_s: float
    exponent: float
    cached_bytes: float
    dgrad: float
    wgrad: float
    multiprocessors: float
    operand_bytes: int
    result_bytes: int


class AttentionRate(NamedTuple):
    """Fused attention by one kernel; see engine/timing/attention_time.py.

    forward_flops_per_s: ceiling at head width 128. narrow, wide: ceiling at 64 and 256 relative to it.
    ramp: keys after which half of it is reached. row: cost of a row of tiles that nothing hides.
    backward: ceiling of the backward relative to the forward's.
    """

    forward_flops_per_s: float
    bytes_per_s: float
    t0_s: float
    narrow: float
    wide: float
    ramp: float
    row: float
    backward: float
    multiprocessors: float


class DecodeRate(NamedTuple):
    """Attention of one new token a sequence over a cache; see timing/attention_time.py.

    exponent: how well the fixed seconds hide behind the reading. chain_s: of one key for one query head of
    a key head, 128 wide, where nothing is spread; spread: share of a key head's work that another of
    the call takes over. alone: how much longer reading takes for a key head with one query head.
    """

    bytes_per_s: float
    flops_per_s: float
    t0_s: float
    exponent: float
    chain_s: float
    spread: float
    alone: float


class FewRows(NamedTuple):
    """Products of so many rows with a weight: t0_s, and bytes_per_s of the weight."""

    rows: int
    t0_s: float
    bytes_per_s: float


class MemoryRate(NamedTuple):
    """Kernels that only move bytes: t0_s each, and bytes_per_s for large tensors."""

    bytes_per_s: float
    t0_s: float


class StepRate(NamedTuple):
    """An optimizer's step: seconds an element, and seconds a tensor."""

    s_per_element: float
    s_per_tensor: float


class Curve(NamedTuple):
    """A collective among so many ranks: the lesser of two lines over the bytes a rank sends.

    The first line is of small messages (low latency), the second of large ones (full rate).
    """

    ranks: int
    small_s: float
    small_bytes_per_s: float
    large_s: float
    large_bytes_per_s: float


class LinkRate(NamedTuple):
    """One tier of links: seconds a call, and bytes/s that one GPU sends (nccl-tests' bus bandwidth).

    Collectives with curves, by rising number of ranks, follow those; others alpha and bus bandwidth.
    """

    alpha_s: float
    bus_bytes_per_s: float
    all_gather: tuple[Curve, ...] = ()
    reduce_scatter: tuple[Curve, ...] = ()
    all_reduce: tuple[Curve, ...] = ()
    all_to_all: tuple[Curve, ...] = ()


class LinkRates(NamedTuple):
    """Tiers a device sends over; None where it has none. link: NVLink and its like.

    pcie: peers over the host's PCIe. host: copies between a GPU and the memory of its host.
    """

    link: LinkRate | None
    network: LinkRate | None
    pcie: LinkRate | None
    host: LinkRate | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one device reaches, in FLOPs/s, bytes/s and s. Checked by: unit/test_rates.py.

    basis: one sentence on where the figures come from. verified: fitted on measured kernels of this
    device. launch_s: one kernel launched from Python. overlap_slowdown: compute beside a collective
    takes this share longer. optimizer: by "adamw fused fp32" (name, implementation, dtype of what is
    stepped), where it was measured; others move bytes. kernels: bytes/s of kernels that do more than
    move, by "gelu bf16" (primitive and dtype), where measured. sum_residual: measured over predicted of
    whole blocks, 1.0 unless known. generating: the rates of passes without gradients, where those were
    measured apart; few_rows and decode_by, theirs: by "linear bf16" or "bmm bf16", and by dtype;
    pass_residuals: measured over predicted of whole passes over prompts, and of steps.
    """

    name: str
    architecture: str
    basis: str
    verified: bool
    gemm: Mapping[str, GemmRate] = field(hash=False)
    attention: Mapping[str, AttentionRate] = field(hash=False)
    decode: DecodeRate
    memory: MemoryRate
    launch_s: float
    links: LinkRates
    overlap_slowdown: float
    sum_residual: float = 1.0
    optimizer: Mapping[str, StepRate] = field(default_factory=dict, hash=False)
    kernels: Mapping[str, float] = field(default_factory=dict, hash=False)
    few_rows: Mapping[str, tuple[FewRows, ...]] = field(default_factory=dict, hash=False)
    decode_by: Mapping[str, DecodeRate] = field(default_factory=dict, hash=False)
    pass_residuals: tuple[float, float] = (1.0, 1.0)
    generating: Rates | None = None
