"""Memory on the page: categories at the peak, phases, states, pipeline stages, the host.

Tables show sizes people read and carry the exact bytes. Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.charts.palette import CATEGORIES, name_of
from memcalc.output.report.markup import (
    Cell,
    Column,
    Sheet,
    counted,
    esc,
    heads,
    share,
    size,
    table,
    whole,
)

Found = Mapping[str, Any]
#: What lies between allocated and driver-used bytes: category -> field.
_BEYOND = {
    "overhead": "reserved_overhead_bytes", "communication": "communication_bytes",
    "context": "context_bytes",
}  # fmt: skip


def breakdown(found: Found) -> str:
    """Every category at the peak, up to the bytes the driver reports."""
    memory = found["estimate"]["memory"]
    parts = memory["breakdown"]
    allocated, used = memory["peak_allocated_bytes"], memory["device_used_bytes"]
    whole_bytes = allocated if used is None else used
    rows = [_category(name, parts[name], whole_bytes) for name in CATEGORIES if parts.get(name)]
    rows.append(_sum("allocated", allocated, whole_bytes))
    if used is not None:
        beyond = {name: memory[key] for name, key in _BEYOND.items() if memory[key]}
        rows += [_category(name, value, whole_bytes) for name, value in beyond.items()]
    foot = None if used is None else _cells("driver-used", used, whole_bytes)
    return table("At the peak", heads("category", ">size", ">bytes", ">share"), rows, foot)


def _category(name: str, value: int, of: int) -> list[Cell]:
    head = f'<span class="swatch c-{name}"></span>{esc(name_of(name))}'
    return [Cell(name, markup=head), *_cells("", value, of)[1:]]


def _sum(name: str, value: int, of: int) -> list[Cell]:
    return [Cell(name, mark="row-sum"), *_cells("", value, of)[1:]]


def _cells(name: str, value: int, of: int) -> list[Cell]:
    return [Cell(name), size(value), whole(value), share(value / of)]


def phases(found: Found) -> str:
    """The most bytes of tensors in each phase, and the op at which they are reached."""
    memory = found["estimate"]["memory"]
    rows = [
        [Cell(name), size(value), whole(value), Cell(memory["phase_peaks_at"].get(name, ""))]
        for name, value in memory["phases"].items()
    ]
    columns = heads("phase", ">size", ">bytes", "reached at")
    return table("Peak of each phase, bytes of tensors", columns, rows)


def states(found: Found) -> str:
    """What the model's states and the tensors kept for backward take, all through the step."""
    memory = found["estimate"]["memory"]
    held = {name: value for name, value in memory["states"].items() if value}
    rows = [[Cell(name), size(value), whole(value)] for name, value in held.items()]
    rows.append(
        [Cell("all states", mark="row-sum"), size(sum(held.values())), whole(sum(held.values()))]
    )
    for name in ("saved_for_backward", "saved_per_layer"):
        value = memory[f"{name}_bytes"]
        rows.append([Cell(name.replace("_", " ")), size(value), whole(value)])
    return table("Model states, and what forward saves", heads("what", ">size", ">bytes"), rows)


def largest(found: Found) -> str:
    """The largest groups of tensors alive at the peak."""
    rows = [[Cell(row["what"]), whole(row["tensors"]), size(row["bytes"]), whole(row["bytes"])]
            for row in found["largest"]]  # fmt: skip
    columns = heads("what", ">tensors", ">size", ">bytes")
    return table("Largest at the peak", columns, rows) if rows else ""


def stages(found: Found) -> str:
    """One rank of each pipeline stage; the one that needs most is marked."""
    memory = found["estimate"]["memory"]
    worst = memory["stage"]["stage"]
    columns = [
        Column("stage", said="from 0; marked: needs most"),
        Column("layers"),
        Column("parameters", number=True),
        Column("in flight", number=True, said="most micro-batches between forward and backward"),
        *heads(">requested", ">allocated", ">reserved", ">driver-used", ">headroom", "peak at"),
    ]
    rows = [_stage(one, one["stage"]["stage"] == worst) for one in memory["stages"]]
    return table(
        f"Stages, one rank of each; stage {worst} needs most", columns, rows,
        sheet=Sheet("stages", sortable=True),
    )  # fmt: skip


def _stage(one: Mapping[str, Any], is_worst: bool) -> list[Cell]:
    place = one["stage"]
    spans = ["-".join(map(str, dict.fromkeys(span))) for span in place["layers"] if span]
    batch = place["peak_micro_batch"]
    at = one["peak_at"] + ("" if batch is None else f", micro-batch {batch}")
    sizes = ("peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes",
             "device_used_bytes", "headroom_bytes")  # fmt: skip
    return [
        Cell(f"{place['stage']}{' *' if is_worst else ''}", place["stage"],
             mark="row-best" if is_worst else ""),
        Cell(", ".join(spans) or "none"),
        counted(place["parameters"]),
        whole(sum(place["in_flight"])),
        *(size(one[name]) for name in sizes),
        Cell(at, mark="said"),
    ]  # fmt: skip


def host(found: Found) -> str:
    """What a rank keeps in its host's memory; nothing where everything is on the GPU."""
    memory = found["estimate"]["memory"]
    held = memory["host"]
    if not (memory["host_bytes"] or held["nvme_bytes"]):
        return ""
    named = {
        name.removesuffix("_bytes"): value
        for name, value in held.items()
        if name != "ranks_per_node"
    }
    rows = [[Cell(name), size(value), whole(value)] for name, value in named.items() if value]
    return table(
        "Host memory of a rank; node: of all its ranks", heads("what", ">size", ">bytes"), rows
    )
