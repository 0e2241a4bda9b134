"""The answer of `solve` as text: the value that fits beside the next one, and why that one fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from memcalc.output.console import Page
from memcalc.output.time_text import duration
from memcalc.units import gib

#: What is solved for -> how a sentence names so many of it.
_UNITS: Final = {
    "micro-batch": "micro-batch", "seq": "seq", "gpus": "GPUs", "layers": "layers",
    "batch": "batch", "context": "context",
}  # fmt: skip


def solve_page(page: Page, found: Mapping[str, Any]) -> None:
    """The whole page, from the JSON form of a Solution."""
    page.line(headline(found), "bold" if found["value"] is not None else "bold red")
    page.line()
    _table(page, found)
    _why(page, found)
    page.line()
    for side in ("at_value", "at_first_failing"):
        if found[side] is not None:
            page.console.print(found[side]["command"], soft_wrap=True)  # to be copied whole
    count, exact = found["estimates"], found["estimates_with_allocator"]
    page.line()
    page.line(f"{count} estimates, {exact} of them with the allocator's replay")


def headline(found: Mapping[str, Any]) -> str:
    """`micro-batch 5 is the largest that fits` and what it leaves."""
    what, unit = found["what"], _UNITS[found["what"]]
    extreme = "smallest" if what == "gpus" else "largest"
    value = found["value"]
    if value is None:
        return f"nothing fits: not even {_named(unit, found['first_failing'])}"
    step = found["step"]
    of = f" multiple of {step}" if step and step > 1 else ""
    text = f"{_named(unit, value)}: the {extreme}{of} that fits"
    if found["headroom_bytes"] is not None:
        spare = found["headroom_bytes"]
        text += f", with {gib(spare)} to spare" if spare >= 0 else ", giving cached blocks back"
    return text


def quiet_line(found: Mapping[str, Any]) -> str:
    """Value and first failing value, in one line."""
    limit = found["limited_by"] or {}
    part = limit.get("part") or "none"
    value, failing = (
        "none" if found[name] is None else found[name] for name in ("value", "first_failing")
    )
    return f"{found['what']} {value} first-failing {failing} limited-by {part}"


def _named(unit: str, value: int) -> str:
    return f"{value:,} {unit}" if unit in ("GPUs", "layers") else f"{unit} {value:,}"


def _table(page: Page, found: Mapping[str, Any]) -> None:
    """Memory and pace of the value and of its neighbour."""
    rows = []
    for side in ("at_value", "at_first_failing"):
        one = found[side]
        if one is None:
            continue
        used = one["device_used_bytes"] or one["peak_allocated_bytes"]
        verdict = {"does-not-fit": "does not fit"}.get(one["verdict"], one["verdict"])
        rows.append(
            (f"{one['value']:,}", verdict, gib(used), gib(one["usable_bytes"]), *_pace(one))
        )
    page.table(
        (_UNITS[found["what"]], "verdict", ">driver-used", ">usable", ">step", ">tokens/s"), rows
    )


def _pace(one: Mapping[str, Any]) -> tuple[str, str]:
    step = one.get("step_s", one.get("time_per_output_token_s"))
    if step is None:
        return "unknown", "unknown"
    return duration(step), f"{one['tokens_per_s']:,.0f}"


def _why(page: Page, found: Mapping[str, Any]) -> None:
    limit = found["limited_by"]
    if limit is None:
        return
    if limit["part"] is None:
        page.line(
            f"no larger value: {limit['reason']}" if found["what"] != "gpus" else limit["reason"]
        )
        return
    stage = "" if limit["stage"] is None else f" of stage {limit['stage']}"
    text = _named(_UNITS[found["what"]], found["first_failing"])
    text += f" lacks {gib(limit['lacking_bytes'])}" if limit["lacking_bytes"] else " fails"
    if limit["reason"] is not None:
        text += f" ({limit['reason']})"
    text += (
        f"; at its peak ({limit['peak_at']}{stage}) most is {limit['part']}: {gib(limit['bytes'])}"
    )
    if limit["grows"] is not None:
        than = _named(_UNITS[found["what"]], found["value"])
        text += f"; {limit['grows']} takes {gib(limit['grows_bytes'])} more than at {than}"
    page.line(text)
    if found["also_fits"]:
        listed = ", ".join(f"{one:,}" for one in found["also_fits"])
        page.line(f"not monotone: {listed} would fit again")
