"""Time of a step as text: its parts with their share, rates, utilisations, bounds and band."""

from __future__ import annotations

from memcalc.engine.results import Estimate
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.output.console import Page
from memcalc.units import gib, si

#: Field of a time -> what the table calls it; they add up to the step.
PARTS = {
    "forward_s": "forward", "backward_s": "backward", "recompute_s": "recompute",
    "launch_s": "launching kernels", "exposed_communication_s": "exposed communication",
    "bubble_s": "pipeline bubble", "optimizer_s": "optimizer", "offload_s": "offload",
}  # fmt: skip
_SMALLEST_SHARE = 0.0005


def time_tables(page: Page, result: Estimate) -> None:
    """Step time and its parts, then what follows from it; one line where it is unknown."""
    time = result.time
    if time.step_s is None:
        page.line("Step time: unknown; name a GPU with --gpu")
        page.line()
        return
    rows = [
        (said, duration(value), f"{value / time.step_s:.1%}")
        for name, said in PARTS.items()
        if (value := getattr(time, name)) and value / time.step_s >= _SMALLEST_SHARE
    ]
    rows.append(("step", duration(time.step_s), "100.0%"))
    page.table(("Time of a step", ">time", ">share"), rows)
    for line in _lines(time):
        page.line(line)
    page.line()


def _lines(time: TimeEstimate) -> list[str]:
    assert time.step_s is not None and time.tokens_per_s is not None
    lines = [
        f"{time.tokens_per_s:,.0f} tokens/s ({time.tokens_per_s_per_gpu:,.0f} a GPU), "
        f"{time.samples_per_s:.4g} samples/s; bound by {time.bound}"
    ]
    if time.mfu is not None and time.peak_flops_per_s is not None:
        lines.append(
            f"MFU {time.mfu:.1%} (full square), {time.mfu_causal:.1%} (causal), HFU {time.hfu:.1%} "
            f"of {si(time.peak_flops_per_s, 'FLOP/s')} dense peak"
        )
    if time.low_s is not None and time.high_s is not None:
        lines.append(
            f"step lies between {duration(time.low_s)} and {duration(time.high_s)}: {time.band}"
        )
    if time.lower_bound_s is not None and time.upper_bound_s is not None:
        lines.append(
            f"no step beats {duration(time.lower_bound_s)}; with nothing overlapped "
            f"{duration(time.upper_bound_s)}; rates: {time.calibration}"
        )
    return lines


def duration(seconds: float) -> str:
    """Seconds as text: us and ms below a second, else s."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.4g} ms" if seconds < 1 else f"{seconds:,.4g} s"


def exchanges_table(page: Page, time: TimeEstimate) -> None:
    """Every kind of exchange of a step, alone on its links."""
    if not time.exchanges:
        return
    rows = [
        (f"{one.axis} {one.kind.replace('_', '-')}", one.tier, str(one.ranks), f"{one.calls:,}",
         gib(one.bytes), duration(one.seconds))
        for one in time.exchanges
    ]  # fmt: skip
    page.table(("Exchanges of a step", "over", ">ranks", ">calls", ">size", ">alone"), rows)


def op_times_table(page: Page, time: TimeEstimate) -> None:
    """Seconds of every op of a micro-batch, longest first, and what bounds it."""
    if not time.ops:
        return
    whole = sum(op.seconds for op in time.ops)
    rows = [
        (op.op, op.direction, duration(op.seconds), f"{op.seconds / whole:.1%}", op.bound,
         f"{op.kernels:,}")
        for op in sorted(time.ops, key=lambda op: -op.seconds)
    ]  # fmt: skip
    columns = ("Op of a micro-batch", "direction", ">time", ">share", "bound", ">kernels")
    page.table(columns, rows)
