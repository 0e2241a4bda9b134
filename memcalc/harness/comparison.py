"""An estimate held against a measurement of the same setup, row by row, with a verdict.

Bytes of tensors are compared to the byte: PyTorch's own storages are the judge on any device, so their
band is nothing beyond the listed differences. What the driver reports is held against the band the
estimate prints; allocated and reserved bytes against what that band leaves them. FLOPs are compared
exactly. The step's time and tokens/s must lie in the estimate's printed band, the phases in one twice
as wide. Nothing here needs torch.
Checked by: harness/test_comparison.py, harness/test_verify.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

EQUAL, INSIDE, OUTSIDE, EXPLAINED = "equal", "inside", "outside", "explained"
NOT_MEASURED, NOT_PREDICTED = "not measured", "not predicted"
#: A figure shown beside a prediction that has no band.
NOT_JUDGED = "not judged"
_PHASES = ("forward", "loss", "backward", "optimizer")


class Difference(NamedTuple):
    """A known way in which the run differs from what was estimated; rows: names it may move."""

    rows: tuple[str, ...]
    cause: str


class Row(NamedTuple):
    """One figure. low, high: the band the measurement must lie in; None where there is none."""

    name: str
    group: str  # states | tensors | allocator | driver | work | time
    unit: str  # bytes | FLOP | s | tokens/s
    predicted: float | None
    measured: float | None
    low: float | None
    high: float | None
    verdict: str
    cause: str | None = None

    @property
    def difference(self) -> float | None:
        """Predicted minus measured."""
        if self.predicted is None or self.measured is None:
            return None
        return self.predicted - self.measured

    @property
    def error_pct(self) -> float | None:
        """The difference in per cent of the measurement."""
        if not self.measured or self.difference is None:
            return None
        return 100 * self.difference / self.measured


class Comparison(NamedTuple):
    """All rows, the differences that were listed beforehand, and whether everything is inside."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]

    @property
    def verified(self) -> bool:
        """Whether something was measured and no row lies outside its band."""
        judged = [row for row in self.rows if row.verdict in (EQUAL, INSIDE)]
        return bool(judged) and all(row.verdict != OUTSIDE for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """The `comparison` of a record."""
        rows = [
            {**row._asdict(), "difference": row.difference, "error_pct": row.error_pct}
            for row in self.rows
        ]
        listed = [d._asdict() for d in self.differences]
        return {"verified": self.verified, "rows": rows, "differences": listed}


def compare(
    estimate: Mapping[str, Any],
    record: Mapping[str, Any],
    differences: Iterable[Difference] = (),
    watched: Mapping[str, Any] | None = None,
) -> Comparison:
    """Hold an estimate's JSON against a record of the same setup.

    watched: peaks of the estimate as under the tracker, which is a dispatch mode and makes PyTorch sum
    gradients out of place; the tensors' rows are held against it.
    """
    listed = tuple(differences)
    predicted, measured = estimate["memory"], record["memory"]
    tensors = {**predicted, **(watched or {})}
    rows = [*_tensor_rows(tensors, measured), *_work_rows(estimate, record)]
    if measured.get("allocator") is not None:
        rows += _device_rows(predicted, measured)
    rows += _time_rows(estimate, record)
    return Comparison(tuple(_explained(row, listed) for row in rows), listed)


def _explained(row: Row, listed: tuple[Difference, ...]) -> Row:
    """A row outside its band whose cause was listed beforehand is explained by it."""
    if row.verdict not in (OUTSIDE, NOT_MEASURED):
        return row
    causes = [difference.cause for difference in listed if row.name in difference.rows]
    if not causes:
        return row
    verdict = EXPLAINED if row.verdict == OUTSIDE else row.verdict
    return row._replace(verdict=verdict, cause="; ".join(causes))


def exact(name: str, group: str, unit: str, predicted: Any, measured: Any) -> Row:
    """A figure whose band is the prediction itself."""
    verdict = EQUAL if predicted == measured else OUTSIDE
    if predicted is None or measured is None:
        verdict = NOT_PREDICTED if predicted is None else NOT_MEASURED
    return Row(name, group, unit, predicted, measured, predicted, predicted, verdict)


def _within(
    name: str, group: str, predicted: Any, measured: Any, band: tuple[int | None, int | None]
) -> Row:
    low, high = band
    if predicted is None or measured is None:
        verdict = NOT_PREDICTED if predicted is None else NOT_MEASURED
    elif predicted == measured:
        verdict = EQUAL
    else:
        verdict = INSIDE if (low or 0) <= measured <= (high or measured) else OUTSIDE
    return Row(name, group, "bytes", predicted, measured, low, high, verdict)


def _tensor_rows(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Row]:
    states, held = predicted["states"], measured.get("states") or {}
    phases, seen = predicted["phases"], measured.get("phases") or {}
    rows = [
        exact(name, "states", "bytes", states[name], held.get(name))
        for name in ("parameters", "gradients", "optimizer", "master")
        if states[name] or held.get(name)
    ]
    saved = "saved_for_backward_bytes"
    rows.append(exact("saved for backward", "tensors", "bytes", predicted[saved], measured[saved]))
    rows += [
        exact(f"peak in {name}", "tensors", "bytes", phases.get(name), seen.get(name))
        for name in _PHASES
        if name in phases
    ]
    peak = "peak_requested_bytes"
    rows.append(exact("peak requested", "tensors", "bytes", predicted[peak], measured[peak]))
    return rows


def _device_rows(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Row]:
    """Allocated, reserved and driver-used bytes; open figures widen each as they widen the last."""
    allocated, reserved = predicted["peak_allocated_bytes"], predicted["peak_reserved_bytes"]
    used, low, high = (predicted[n] for n in ("device_used_bytes", "low_bytes", "high_bytes"))
    above = 0 if high is None or used is None else high - used
    workspace = predicted["breakdown"]["workspace"]
    requested = predicted["peak_requested_bytes"]
    asked = requested + workspace
    bands: dict[str, tuple[Any, str, tuple[int | None, int | None]]] = {
        "asked for": (
            asked, "peak_allocator_requested_bytes", (requested, asked + above)
        ),
        "peak allocated": (
            allocated, "peak_allocated_bytes", (allocated - workspace, allocated + above)
        ),
        "peak reserved": (
            reserved,
            "peak_reserved_bytes",
            (allocated - workspace, None if reserved is None else reserved + above),
        ),
        "driver-used": (used, "device_used_bytes", (low, high)),
    }  # fmt: skip
    return [
        _within(name, "driver" if name == "driver-used" else "allocator", value,
                measured.get(key), band)
        for name, (value, key, band) in bands.items()
    ]  # fmt: skip


def _work_rows(estimate: Mapping[str, Any], record: Mapping[str, Any]) -> list[Row]:
    executed, counted = estimate["time"]["executed_flops"], record.get("counted_flops")
    return [exact("executed FLOPs", "work", "FLOP", executed, counted)]


def _time_rows(estimate: Mapping[str, Any], record: Mapping[str, Any]) -> list[Row]:
    """The step and tokens/s within the printed band; its phases within twice as wide a one."""
    told, seen = estimate["time"], record["time"]
    step, measured = told.get("step_s"), seen.get("median_s")
    if step is None:
        return [Row("step time", "time", "s", None, measured, None, None, NOT_PREDICTED)]
    low, high = told.get("low_s"), told.get("high_s")
    rows = [timed("step time", "s", step, measured, (low, high))]
    rows.append(timed("tokens/s", "tokens/s", told.get("tokens_per_s"), seen.get("tokens_per_s"),
                       _inverse(told.get("tokens_per_s"), step, (low, high))))  # fmt: skip
    phases, parts = seen.get("phases") or {}, phase_seconds(told)
    for name, names in PHASE_SUMS.items() if phases else ():
        taken = sum(phases[one] for one in names)
        if parts[name] or taken:
            wide = _widened(parts[name], step, (low, high))
            rows.append(timed(name, "s", parts[name], taken, wide))
    return rows


#: Row -> measured phases it is the sum of: the estimate counts the loss with the forward pass.
PHASE_SUMS: Mapping[str, tuple[str, ...]] = {
    "forward and loss": ("forward_s", "loss_s"),
    "backward": ("backward_s",),
    "optimizer": ("optimizer_s", "zero_grad_s"),
}


def phase_seconds(time: Mapping[str, Any]) -> dict[str, float]:
    """Predicted seconds of a step's phases. Launching and exchanges are shared out by the kernels."""
    forward = time.get("forward_s") or 0.0
    backward = (time.get("backward_s") or 0.0) + (time.get("recompute_s") or 0.0)
    stepping = time.get("optimizer_s") or 0.0
    kernels = forward + backward
    stretch = (time["step_s"] - stepping) / kernels if kernels else 1.0
    return {
        "forward and loss": forward * stretch, "backward": backward * stretch, "optimizer": stepping,
    }  # fmt: skip


_Band = tuple[float | None, float | None]


def timed(name: str, unit: str, predicted: Any, measured: Any, band: _Band) -> Row:
    """A figure of time within its band; without a band it is shown and not judged."""
    low, high = band
    if predicted is None or measured is None:
        verdict = NOT_PREDICTED if predicted is None else NOT_MEASURED
    elif low is None and high is None:
        verdict = NOT_JUDGED
    else:
        within = (low is None or low <= measured) and (high is None or measured <= high)
        verdict = INSIDE if within else OUTSIDE
    return Row(name, "time", unit, predicted, measured, low, high, verdict)


def _inverse(rate: Any, step: float, band: _Band) -> _Band:
    """The band of a rate from that of the step's seconds."""
    if rate is None:
        return None, None
    low, high = band
    return None if high is None else rate * step / high, None if not low else rate * step / low


def _widened(part: float, step: float, band: _Band) -> _Band:
    """The band of a part of the step: the squares of the step's factors, for errors of parts cancel
    in the sum."""
    low, high = ((None if edge is None else (edge / step) ** 2) for edge in band)
    return None if low is None else part * low, None if high is None else part * high
