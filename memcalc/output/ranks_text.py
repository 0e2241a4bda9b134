"""A measurement on several ranks as text: a row a rank, then the times and the loss of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.console import Page
from memcalc.output.measure_text import how, times, title, utilisation
from memcalc.units import gib

#: On a GPU what its allocator and driver say, else what the tensors are.
_ON_GPU = {
    "requested": "peak_requested_bytes", "allocated": "peak_allocated_bytes",
    "reserved": "peak_reserved_bytes", "driver-used": "device_used_bytes",
}  # fmt: skip
_ON_CPU = {"peak": "peak_requested_bytes", "saved": "saved_for_backward_bytes"}
_JUDGED = ("equal", "inside", "outside", "explained")
_STATES = ("parameters", "gradients", "optimizer")


def ranks_page(page: Page, result: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """The whole page. result: as rank_records.merged gives it."""
    title(page, result, stated)
    page.line(divided(result["world"]))
    page.line()
    on_gpu = result["device"]["type"] == "cuda"
    shown = _ON_GPU if on_gpu else _ON_CPU
    names = [*shown, *(() if on_gpu else _STATES)]
    rows = [_row(record, shown, on_gpu) for record in result["ranks"]]
    page.table(("Rank", ">place", *(f">{name}" for name in names), "status"), rows)
    peak = result["memory"].get("peak_requested_bytes")
    if peak is not None:
        rank, at = result["memory"]["rank"], result["memory"]["peak_at"]
        page.line(f"highest peak of tensors: rank {rank}, {peak:,} bytes, at {at}")
        page.line()
    _compared(page, result)
    times(page, result)
    utilisation(page, result)
    for line in how(result):
        page.line(line)
    *first, last = _degrees(result["world"])
    place = f"place: {', '.join(first)} and {last} rank"
    page.line(f"{place}; step times: the slowest rank's of each; loss: the mean")


def _compared(page: Page, result: Mapping[str, Any]) -> None:
    """Predicted beside measured, a row a rank; what differs on a rank is listed under the table."""
    found = [record["comparison"] for record in result["ranks"] if "comparison" in record]
    if not found:
        return
    rows = []
    for rank, comparison in enumerate(found):
        peak = next(row for row in comparison["rows"] if row["name"] == "peak requested")
        equal = sum(row["verdict"] == "equal" for row in comparison["rows"])
        judged = sum(row["verdict"] in _JUDGED for row in comparison["rows"])
        said = "verified" if comparison["verified"] else "outside"
        figures = [f"{peak[name]:,}" for name in ("predicted", "measured")]
        rows.append((str(rank), *figures, f"{equal} of {judged} equal", said))
    page.table(("Rank", ">peak predicted", ">peak measured", "figures", "verdict"), rows)
    for rank, comparison in enumerate(found):
        for row in comparison["rows"]:
            if row["verdict"] in ("outside", "explained"):
                cause = f": {row['cause']}" if row["cause"] else ""
                page.line(
                    f"rank {rank}, {row['name']}: predicted {row['predicted']:,}, "
                    f"measured {row['measured']:,}{cause}"
                )


def divided(world: Mapping[str, Any]) -> str:
    """How the ranks divide the model, in a line."""
    copies = world["dp"] * world.get("cp", 1)
    parts = [f"dp {world['dp']} ({'fsdp2' if world['fsdp'] else 'ddp'})"] if copies > 1 else []
    if world["tp"] > 1:
        parts.append(f"tp {world['tp']}{' with sp' if world['sp'] else ''}")
    if world.get("cp", 1) > 1:
        parts.append(f"cp {world['cp']} by {world['cp_method']}")
    if world.get("ep", 1) > 1:
        parts.append(f"ep {world['ep']}")
    if world["pp"] > 1:
        parts.append(f"pp {world['pp']} ({world['schedule']})")
    if not parts:
        parts = ["fsdp2"] if world["fsdp"] else ["whole"]
    hosts = f", {world['hosts']} hosts" if world["hosts"] > 1 else ""
    casts = f"; {world['mixed_precision']}" if world.get("mixed_precision") else ""
    count = "1 rank" if world["size"] == 1 else f"{world['size']} ranks"
    return f"{count} ({world['backend']}{hosts}): {', '.join(parts)}{casts}"


def _degrees(world: Mapping[str, Any]) -> tuple[str, ...]:
    """What a place is made of."""
    return ("pp", "dp", "tp", "cp") if world.get("cp", 1) > 1 else ("pp", "dp", "tp")


def _row(record: Mapping[str, Any], shown: Mapping[str, str], on_gpu: bool) -> tuple[str, ...]:
    memory, world = record.get("memory") or {}, record["world"]
    place = " ".join(
        "?" if world.get(f"{name}_rank") is None else str(world[f"{name}_rank"])
        for name in _degrees(world)
    )
    cells = [_size(memory.get(key)) for key in shown.values()]
    if not on_gpu:
        states = memory.get("states") or {}
        cells += [_size(states.get(name)) for name in _STATES]
    error = record.get("error") or {}
    status = record["status"] if record["status"] == "ok" else error.get("type", record["status"])
    return (str(record["rank"]), place, *cells, status)


def _size(value: int | None) -> str:
    return "none" if value is None else gib(value)
