"""The part of an estimate's page on phases outside the step, and on the size of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.units import gib

if TYPE_CHECKING:
    from memcalc.output.console import Page


def phases_table(page: Page, program: list[dict[str, Any]], disk: dict[str, int] | None) -> None:
    """A row a phase; the checkpoint's tensors below it."""
    rows = [
        (one["phase"], gib(one["peak_requested_bytes"]), f"{one['peak_requested_bytes']:,}",
         one["peak_at"])
        for one in program
    ]  # fmt: skip
    page.table(("Outside the step", ">peak requested", ">bytes", "peaks at"), rows)
    if disk is not None:
        page.line(
            f"checkpoint on disk: {gib(disk['total_bytes'])} ({disk['total_bytes']:,} bytes), of it "
            f"the model {gib(disk['model_bytes'])}; files add up to 2 KB a tensor"
        )
