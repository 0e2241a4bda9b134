"""The part of an estimate's page on host memory: what a rank keeps outside its GPU, and its node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.host_memory import PARTS
from memcalc.units import gib

if TYPE_CHECKING:
    from memcalc.engine.results import MemoryEstimate
    from memcalc.output.console import Page


def host_table(page: Page, memory: MemoryEstimate) -> None:
    """Nothing where everything is on the GPU."""
    host = memory.host
    if not (memory.host_bytes or host.nvme_bytes):
        return
    rows = [(name, getattr(host, name), "") for name in PARTS if getattr(host, name)]
    rows.append(("rounding", host.rounding_bytes, "pinned blocks, to powers of two"))
    rows += [
        ("pinned", host.pinned_bytes, "page-locked, rounding included"),
        ("pageable", host.pageable_bytes, ""),
        ("a rank", memory.host_bytes, "without the process itself"),
        ("a node", host.node_bytes, f"{host.ranks_per_node} ranks"),
    ]
    if host.nvme_bytes:
        rows.append(("on disk", host.nvme_bytes, "NVMe, a rank"))
    cells = [(name, gib(size), f"{size:,}", said) for name, size, said in rows if size]
    page.table(("Host memory", ">size", ">bytes", "meaning"), cells)
