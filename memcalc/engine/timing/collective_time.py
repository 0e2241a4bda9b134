"""Seconds of a collective over one tier of links, alone on it.

A call is the lesser of two lines over the bytes one rank sends in a ring, one of NCCL's protocols for
small messages and one for large: min(small_s + wire / small, large_s + wire / large). Both lines are
the calibration's for 2, 4 and 8 ranks; between, seconds go linearly and rates by 1 / ranks; beyond 8
seconds go on rising linearly (a ring has a hop more a rank) and rates stay. A tier without such curves
has one line. Bus bandwidth is nccl-tests' (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
Constants and errors: docs/kernels.md. Checked by: unit/test_kernel_times.py.
"""

from __future__ import annotations

from functools import lru_cache

from memcalc.engine.timing.arith import Num, minimum
from memcalc.errors import unknown
from memcalc.inputs.rates import Curve, LinkRate

#: Kinds, and how often (n - 1) / n of the whole passes a rank.
PASSES = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "all_to_all": 1, "send": 1}


def wire_bytes(kind: str, call_bytes: Num, ranks: Num) -> Num:
    """Bytes one rank sends; call_bytes: the whole gathered, scattered, summed, or sent."""
    if kind not in PASSES:
        raise unknown("collective", kind, PASSES)
    if kind == "send":
        return call_bytes
    return PASSES[kind] * (ranks - 1) / ranks * call_bytes


def collective_s(link: LinkRate, kind: str, call_bytes: Num, ranks: int) -> Num:
    """Seconds of one call among `ranks`; 0 for one rank. Sizes may be arrays, ranks may not."""
    wire = wire_bytes(kind, call_bytes, ranks)
    if ranks == 1:
        return 0.0 * wire
    curves: tuple[Curve, ...] = () if kind == "send" else getattr(link, kind)
    if not curves:
        return link.alpha_s + wire / link.bus_bytes_per_s
    return on_curve_s(curve_of(curves, ranks), wire)


def on_curve_s(curve: Curve, wire: Num) -> Num:
    """Seconds to send so many bytes: the better of the two lines."""
    _, small_s, small, large_s, large = curve
    return minimum(small_s + wire / small, large_s + wire / large)


@lru_cache(maxsize=512)
def curve_of(curves: tuple[Curve, ...], ranks: int) -> Curve:
    """The lines for any number of ranks, from those of some; curves by rising ranks."""
    low = curves[0]
    for curve in curves:
        if curve.ranks <= ranks:
            low = curve
    above = [curve for curve in curves if curve.ranks > low.ranks]
    if not above and len(curves) > 1:  # beyond the last: seconds go on as between the last two
        before = curves[-2]
        more = (ranks - low.ranks) / (low.ranks - before.ranks)
        return low._replace(
            ranks=ranks,
            small_s=low.small_s + max(0.0, low.small_s - before.small_s) * more,
            large_s=low.large_s + max(0.0, low.large_s - before.large_s) * more,
        )
    if not above or ranks <= low.ranks:
        return low._replace(ranks=ranks)
    high = above[0]
    share = (ranks - low.ranks) / (high.ranks - low.ranks)
    by_rate = (1 / low.ranks - 1 / ranks) / (1 / low.ranks - 1 / high.ranks)
    return Curve(
        ranks,
        _between(low.small_s, high.small_s, share),
        _between(low.small_bytes_per_s, high.small_bytes_per_s, by_rate),
        _between(low.large_s, high.large_s, share),
        _between(low.large_bytes_per_s, high.large_bytes_per_s, by_rate),
    )


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
