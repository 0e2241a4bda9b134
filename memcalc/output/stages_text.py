"""The stages of a pipeline as a table: what each holds, its four numbers, where each peaks.

Checked by: cli/test_stages.py.
"""

from __future__ import annotations

from memcalc.engine.results import Estimate, MemoryEstimate, StagePlace
from memcalc.output.console import Page
from memcalc.units import GIB, count_text


def stages_table(page: Page, result: Estimate) -> None:
    """One row a stage, the one that needs most marked; nothing without stages."""
    worst = result.memory.stage
    if worst is None:
        return
    rows = [
        _row(one, one.stage, one.stage.stage == worst.stage)
        for one in result.stages
        if one.stage is not None
    ]
    sizes = (">requested", ">allocated", ">reserved", ">used")
    page.table((">#", ">layers", ">params", ">mb", *sizes, "at"), rows)
    where = result.memory.peak_at
    if worst.peak_micro_batch is not None:
        where += f", micro-batch {worst.peak_micro_batch}"
    page.line(f"* stage {worst.stage} needs most: {where}")
    page.line(
        "stages in GiB; mb: most micro-batches in flight; used: driver-used; at: Forward, Loss, "
        "Backward or Optimizer, and the micro-batch"
    )
    page.line()


def _row(memory: MemoryEstimate, place: StagePlace, is_worst: bool) -> tuple[str, ...]:
    batch = "" if place.peak_micro_batch is None else str(place.peak_micro_batch)
    sizes = (
        memory.peak_requested_bytes,
        memory.peak_allocated_bytes,
        memory.peak_reserved_bytes,
        memory.device_used_bytes,
    )
    return (
        f"{'*' if is_worst else ''}{place.stage}",
        _layers(place),
        count_text(place.parameters),
        str(sum(place.in_flight)),
        *("-" if size is None else f"{size / GIB:,.2f}" for size in sizes),
        memory.peak_at[:1].upper() + batch,
    )


def _layers(place: StagePlace) -> str:
    """`0-9`; `10 in 5` where a rank holds several chunks of the model."""
    if len(place.layers) == 1:
        return "-".join(map(str, dict.fromkeys(place.layers[0]))) or "none"
    number = sum(span[1] - span[0] + 1 for span in place.layers if span)
    return f"{number} in {len(place.layers)}"
