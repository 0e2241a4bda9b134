"""A search as text: the best setups with their commands, the front, near misses, why the winner won.

Checked by: cli/test_search.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from memcalc.output.console import Page
from memcalc.output.tables import csv_text, markdown_text
from memcalc.output.time_text import duration
from memcalc.units import gib

Found = Mapping[str, Any]
Row = Mapping[str, Any]
#: Options of a setup in a table, in order: name and heading.
_SHOWN: Final = ("stack", "tp", "pp", "vpp", "cp", "ep", "micro-batch", "recompute")
_BESIDE: Final = ("overlap-grad-reduce", "overlap-param-gather")
#: Columns given up, in order, where a table of the best is wider than the page.
_SPARE: Final = (">MFU", ">dp", ">tokens/s")
#: Points of the front shown.
_FRONT: Final = 10
_PARTS: Final = {
    "forward_s": "forward", "backward_s": "backward", "recompute_s": "recomputation",
    "launch_s": "launches", "exposed_communication_s": "exchanges", "bubble_s": "bubble",
    "optimizer_s": "optimizer", "offload_s": "offload",
}  # fmt: skip


def search_page(page: Page, found: Found) -> None:
    """Counts, the best, the command of each, why the first won, how sure that is, near misses, the front."""
    page.line(str(found["title"]).partition(":")[0], "bold")
    page.line(str(found["subtitle"]))
    page.line(_counts(found))
    page.line()
    if not found["best"]:
        page.line(found["empty"] or "nothing fits", "bold red")
        page.line()
    else:
        _best(page, found["best"])
    _why(page, found)
    _misses(page, found)
    _front(page, found["pareto"])
    for row in found["best"]:
        page.line(f"{row['place']}. {_states(row)}")
        page.console.print(f"   {row['command']}", soft_wrap=True)  # to be copied whole
    page.line()
    scaled = [row["place"] for row in found["best"] if row["reserved"] != "simulated"]
    page.line("memory: what the driver reports, on the GPU that needs most, caches replayed")
    if scaled:
        page.line(f"from {scaled[0]} on caches hold as much more as in the setups before")


def _counts(found: Found) -> str:
    rate = found["valid"] / found["priced_s"] if found["priced_s"] else 0.0
    said = (
        f"{found['valid']:,} valid setups of {found['count']:,}, {found['may_fit']:,} may fit; "
        f"{found['elapsed_s']:.1f} s, {rate:,.0f} a second"
    )
    return said + ("; interrupted: of those priced so far" if found["interrupted"] else "")


def _best(page: Page, rows: Sequence[Row]) -> None:
    shown = [name for name in _SHOWN if len({row["options"].get(name) for row in rows}) > 1]
    shown = shown or ["tp"]
    columns: dict[str, list[str]] = {"": [str(row["place"]) for row in rows]}
    for name in shown:
        plain = "1" if name in ("tp", "pp", "vpp", "cp", "ep") else ""
        heading = ">mb" if name == "micro-batch" else f">{name}"
        columns[heading] = [str(row["options"].get(name, plain)) for row in rows]
    columns[">dp"] = [str(row["dp"]) for row in rows]
    columns[">step"] = [duration(row["step_s"]) for row in rows]
    columns[">tokens/s"] = [f"{row['tokens_per_s']:,.0f}" for row in rows]
    columns[">MFU"] = ["" if row["mfu"] is None else f"{row['mfu']:.1%}" for row in rows]
    columns[">memory"] = [
        gib(row["device_used_bytes"] or row["peak_allocated_bytes"]) for row in rows
    ]
    columns[">fits"] = [row["verdict"] or "" for row in rows]
    for spare in _SPARE:
        if _width(columns) > page.width:
            del columns[spare]
    page.table(list(columns), list(zip(*columns.values(), strict=True)))


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Characters a table takes, three between columns."""
    widest = (max(len(head.lstrip(">")), *map(len, cells)) for head, cells in columns.items())
    return sum(widest) + 3 * (len(columns) - 1)


def _states(row: Row) -> str:
    """How a setup holds its states, in words."""
    options = row["options"]
    said = [f"zero {options['zero']}"] if "zero" in options else ["states whole on every rank"]
    said = ["fsdp"] if "fsdp" in options else said
    said += [f"over {options['shard']} ranks"] if "shard" in options else []
    said += ["gradients beside backward"] if "overlap-grad-reduce" in options else []
    said += ["parameters beside forward"] if "overlap-param-gather" in options else []
    if row["usd_per_million_tokens"] is not None:
        said.append(f"{row['usd_per_million_tokens']:.3g} USD a million tokens")
    return ", ".join(said)


def _why(page: Page, found: Found) -> None:
    why, sure = found["why"], found["stability"]
    if why is not None:
        parts = [(name, part) for name, part in why["parts"].items() if part["saved_s"]]
        rows = [
            [_PARTS[name], *(duration(part[key] or 0.0) for key in ("winner_s", "other_s")),
             f"{part['saved_s']:+.3g} s"]
            for name, part in sorted(parts, key=lambda item: -abs(item[1]["saved_s"]))
        ]  # fmt: skip
        differs = ", ".join(
            f"{name} {_said(one)} for {_said(other)}"
            for name, (one, other) in why["differs"].items()
        )
        page.line(f"Why 1 is before {why['place']}: most is saved in {_PARTS[why['most']]}", "bold")
        page.line(differs)
        page.table(["part of a step", ">1", f">{why['place']}", ">saved"], rows)
    if sure is not None:
        page.line(
            f"1 stays first of {sure['of']} in {sure['shared_share']:.0%} of draws of errors that setups "
            f"share by part of a step, in {sure['independent_share']:.0%} where each has its own "
            f"({sure['draws']:,} draws, sigma {sure['sigma']:.1%})"
        )
        page.line()


def _said(value: Any) -> str:
    return "none" if value is None else "on" if value is True else str(value)


def _misses(page: Page, found: Found) -> None:
    rows = found["near_misses"]
    if not rows:
        return
    page.line("Faster, but it does not fit" if found["best"] else "Nearest misses", "bold")
    for row in rows:
        faster = "" if row["faster"] is None else f", {row['faster']:.1%} faster"
        page.line(
            f"short of {gib(row['lacking_bytes'])} at {row['peak_at']}: step "
            f"{duration(row['step_s'])}{faster}"
        )
        page.console.print(f"   {row['command']}", soft_wrap=True)
    page.line()


def _front(page: Page, rows: Sequence[Row]) -> None:
    if len(rows) < 2:
        return
    step = -(-len(rows) // _FRONT)
    cells = [
        [gib(row["allocated_bytes"]), duration(row["step_s"]), f"{row['tokens_per_s']:,.0f}",
         _words(row["options"])]
        for row in reversed(rows[::-1][::step])
    ]  # fmt: skip
    page.table([">allocated", ">step", ">tokens/s", "setup"], cells, "Front of memory and speed")


def _words(options: Mapping[str, Any]) -> str:
    """A setup in a line, without what most of them share."""
    skipped = {"gpus", "schedule", "stage-layers", "zero", "shard", *_BESIDE}
    skipped |= {"stack"} if options["stack"] == "megatron" else set()
    said = []
    for name, value in options.items():
        if name not in skipped:
            said.append(name if value is True else f"{name} {value}")
    return " ".join(said)


def notes(found: Found) -> Iterator[str]:
    """What was left out, and why."""
    yield from found["not_in_space"]
    for one in found["refused"][:3]:
        yield f"left out ({one['count']:,} families): {one['reason']}"
    if found["refused_by_replay"]:
        yield f"{found['refused_by_replay']} faster setups fit by tensors but not with cached blocks"


def rows_text(found: Found, form: str) -> str:
    """The best setups as CSV or Markdown, an option a column."""
    rows = []
    for row in found["best"]:
        plain = {k: v for k, v in row.items() if k not in ("options", "parts", "command")}
        rows.append({**row["options"], **plain, "command": row["command"]})
    return csv_text(rows) if form == "csv" else markdown_text(rows)


def quiet_line(found: Found) -> str:
    """Counts and the best setup in one line."""
    best = found["best"][0] if found["best"] else None
    if best is None:
        said = "" if found["empty"] is None else f" ({found['empty']})"
        return f"valid {found['valid']} fit 0 best none{said}"
    return (
        f"valid {found['valid']} fit {found['may_fit']} tokens_per_s {best['tokens_per_s']:.6g} "
        f"best {best['command']}"
    )
