"""TimeEstimate: the typed answer about time, with the parts it is the sum of, and its JSON form.

Names are a contract: add, never rename. None where a number is unknown: no GPU was named, or the
device has no rates.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class OpTime(NamedTuple):
    """One op of the ledger in one direction, over a micro-batch: all layers it is in.

    part: block, or once (embedding, head, loss). bound: what most of its time goes to, compute |
    bandwidth | latency. flops: executed, the full square of attention; bytes: read and written.
    kernel_flops: what the kernels run, without the masked half of a fused attention's square. dtype: of
    the products that hold most of these; "" without any.
    """

    op: str
    part: str
    direction: str  # forward | backward | recompute
    seconds: Any
    bound: str
    kernels: int
    flops: Any
    bytes: Any
    kernel_flops: Any = 0
    dtype: str = ""


class ExchangeTime(NamedTuple):
    """One kind of exchange of a rank over a step: seconds if nothing ran beside it.

    tier: link (within a node's fast domain) | network | pcie.
    """

    axis: str
    kind: str
    tier: str
    ranks: int
    calls: int
    bytes: int
    seconds: float


class TimeEstimate(NamedTuple):
    """Time of a step and FLOPs. FLOPs are exact; times are those of the stated calibration.

    step_s = compute_s + exposed_communication_s + bubble_s + optimizer_s + offload_s, where compute_s
    (of the busiest rank) holds forward_s, backward_s, recompute_s and launch_s. low_s, high_s: the band of
    verified runs. lower_bound_s: no step can be faster; upper_bound_s: nothing overlaps. bound: what the
    step waits for most. mfu: the full square of attention; mfu_causal: half of it; hfu: what is executed.
    """

    model_flops_per_token: float
    model_flops_causal_per_token: float
    executed_flops_per_token: float
    executed_flops: int
    step_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    mfu: float | None = None
    mfu_causal: float | None = None
    hfu: float | None = None
    compute_s: float | None = None
    exposed_communication_s: float | None = None
    bubble_s: float | None = None
    optimizer_s: float | None = None
    launch_s: float | None = None
    calibration: str | None = None
    samples_per_s: float | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    recompute_s: float | None = None
    offload_s: float | None = None
    hidden_communication_s: float | None = None
    lower_bound_s: float | None = None
    upper_bound_s: float | None = None
    bound: str | None = None
    peak_flops_per_s: float | None = None
    band: str | None = None
    ops: tuple[OpTime, ...] = ()
    exchanges: tuple[ExchangeTime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The contract's `time` object."""
        plain = self._asdict()
        plain["ops"] = [op._asdict() for op in self.ops]
        plain["exchanges"] = [one._asdict() for one in self.exchanges]
        return plain
