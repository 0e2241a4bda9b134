"""The part of an estimate's page on phases outside the step, and on a checkpoint's files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.units import gib

if TYPE_CHECKING:
    from memcalc.output.console import Page


def phases_table(page: Page, outside: dict[str, Any]) -> None:
    """A row a phase, what each is made of, what the host holds; the checkpoint's files below them.

    outside: the keys `program`, `program_notes` and `checkpoint` of an estimate's JSON.
    """
    program = outside["program"]
    rows = [
        (one["phase"], gib(one["peak_requested_bytes"]), f"{one['peak_requested_bytes']:,}",
         one["peak_at"] + ("" if one["exact"] else " *"))
        for one in program
    ]  # fmt: skip
    page.line()
    page.table(("Outside the step", ">peak requested", ">bytes", "peaks at"), rows)
    for one in program:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in one["parts"].items())
        host = f"; on the host {gib(one['host_bytes'])}" if one["host_bytes"] else ""
        page.line(f"{one['phase']}: {parts}{host}")
    if not all(one["exact"] for one in program):
        page.line("*: a bound, or by reading; the others are held against the code that runs")
    for one in program:
        if one["fits"] is False:
            page.line(f"{one['phase']} does not fit: its tensors alone need more than the GPU has")
    for note in outside.get("program_notes", ()):
        page.line(note)
    if (disk := outside.get("checkpoint")) is not None:
        _files(page, disk)


def quiet_phases(outside: dict[str, Any]) -> str:
    """The peak of each phase as words of the one line of --quiet: `load 4943257600 eval ...`."""
    return " ".join(
        f"{one['phase'].replace(' ', '-')} {one['peak_requested_bytes']}"
        for one in outside["program"]
    )


def _files(page: Page, disk: dict[str, Any]) -> None:
    rows = [
        (
            one["name"],
            f"{one['count']:,}",
            gib(one["each_bytes"]),
            gib(one["count"] * one["each_bytes"]),
        )
        for one in disk["files"]
    ]
    page.line()
    page.table(("Checkpoint", ">files", ">each", ">together"), rows)
    page.line(
        f"checkpoint on disk, {disk['form']}: {gib(disk['total_bytes'])} ({disk['total_bytes']:,} bytes "
        f"of tensors), of it the model {gib(disk['model_bytes'])}; files add up to 2 KB a tensor"
    )
