"""Advice as text: the setup as stated, then changes by what they cost, each with its command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from memcalc.output.console import Page
from memcalc.output.time_text import duration
from memcalc.units import gib

_TITLES: Final = {
    "same": "Same training, same GPUs",
    "money": "More or other GPUs",
    "numerics": "Same training, other arithmetic",
    "method": "Other training",
}
_SIDES: Final = (">need", ">step", ">tokens/s", ">speed")


def advise_page(page: Page, found: Mapping[str, Any]) -> None:
    """The whole page, from the JSON form of the advice."""
    _stated(page, found)
    rows = found["advice"]
    for kind, title in _TITLES.items():
        own = [(number, row) for number, row in enumerate(rows, 1) if row["kind"] == kind]
        if own:
            _table(page, title, own)
    if not rows:
        page.line("advice: keep it as stated" if found["fits"] else "advice: none found", "bold")
        page.line()
    for number, row in enumerate(rows, 1):
        said = f"{row['words']}; {row['why']}" if row["words"] else row["why"]
        page.line(f"{number}. {said}")
        page.console.print(f"   {row['command']}", soft_wrap=True)  # to be copied whole
    if rows:
        page.line()
    page.line(f"{found['estimates']} estimates; need: allocated, context, communicators")


def quiet_line(found: Mapping[str, Any]) -> str:
    """The first entry's command, or that there is none."""
    rows = found["advice"]
    if rows:
        return str(rows[0]["command"])
    return "keep it as stated" if found["fits"] else "nothing fits"


def _stated(page: Page, found: Mapping[str, Any]) -> None:
    setup = found["setup"]
    memory = setup["memory"]
    need, usable = memory["need_bytes"], memory["usable_bytes"]
    word = {"fits": "fits", "tight": "tight", "does-not-fit": "does not fit"}[found["verdict"]]
    page.line(f"{setup['model']}, as stated: {word}", "bold")
    page.line(
        f"needs {gib(need)} of {gib(usable)} usable; at its peak ({memory['peak_at']}): {setup['holds']}"
    )
    if setup["step_s"] is not None:
        waits = f", {setup['waits_for']}" if setup["waits_for"] else ""
        as_if = "" if found["fits"] else " if it did fit"
        page.line(
            f"step {duration(setup['step_s'])}, {setup['tokens_per_s']:,.0f} tokens/s, batch "
            f"{setup['global_batch']:,}{waits}{as_if}"
        )
    page.line()


def _table(page: Page, title: str, rows: list[tuple[int, Mapping[str, Any]]]) -> None:
    cells = []
    for number, row in rows:
        memory = row["memory"]
        change = row["speed_change"]
        cells.append(
            (
                f"{number}", row["change"], gib(memory["need_bytes"]),
                "" if row["step_s"] is None else duration(row["step_s"]),
                "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
                "" if change is None else f"{change:+.0%}",
            )
        )  # fmt: skip
    page.table(("", "change", *_SIDES), cells, title)
