"""Memory of many sizes of one structure at once: `rank_memory` as arrays, with the verdict.

Requested bytes are exact for every lane. Allocated and reserved bytes are replayed for every lane that may
fit. Of more than `ALL_REPLAYED` lanes those that surely do not (tensors, workspaces and what the driver
takes are beyond the device) are replayed in part, and scaled from these in the rest;
`GridMemory.simulated` says which. The verdict is the scalar path's in every lane.
Checked by: property/test_grid.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from memcalc.engine.allocator.replay import simulate
from memcalc.engine.allocator.streams import events_by_stream
from memcalc.engine.device_side import Device
from memcalc.engine.grid.allocator import (
    LIMIT_BYTES,
    GridPeaks,
    TooManyBlocks,
    simulate_grid,
)
from memcalc.engine.grid.grid import NotOnGrid, requested_bytes, together
from memcalc.engine.plan import Plan
from memcalc.engine.program import Stream, training_program
from memcalc.engine.rank_memory import MAX_BYTES, WORKSPACES, communication_of, used_bytes

#: So many lanes are all replayed, wherever they are.
ALL_REPLAYED: Final = 512
#: Of more lanes, so many of those that cannot fit.
SAMPLED: Final = 64
#: Lanes of one replay: more do not fit the processor's cache.
_AT_ONCE: Final = 1024


class GridMemory(NamedTuple):
    """Bytes of each lane, int64 arrays of shape (lanes,).

    used: what the driver reports for the process, between low and high. fits: None without a device.
    simulated: lanes whose allocated and reserved bytes were replayed, not scaled. spread: largest
    deviation of reserved bytes from what scaling gives, relative, among replayed lanes.
    """

    requested: Any
    allocated: Any
    reserved: Any
    used: Any
    low: Any
    high: Any
    fits: Any
    simulated: Any
    spread: float


class Part(NamedTuple):
    """Lanes of one structure: their plan with arrays (`grid.together`), and their allocations."""

    plan: Plan
    lanes: int
    stream: Stream

    @property
    def events(self) -> Hashable:
        """What parts have in common that can be replayed together: events and streams, not sizes."""
        return tuple(self.stream.events), tuple(self.stream.streams.items())


def part_of(plans: Sequence[Plan], device: Device) -> Part:
    """Plans of one shape as arrays; device: with the stack's modules."""
    plan = together(plans)
    return Part(plan, len(plans), training_program(plan, (device.workspace_bytes,) * WORKSPACES))


def grid_memory(parts: Sequence[Part], plan: Plan, device: Device) -> GridMemory:
    """Memory of parts with the same events, one after the other; plan: `together` of all their plans.

    Raises NotOnGrid where a lane is too large or in too many pieces for the array replay.
    """
    import numpy as np

    requested = np.concatenate([requested_bytes(part.plan, part.lanes) for part in parts])
    if int(requested.max()) > MAX_BYTES:
        raise NotOnGrid("a lane is refused for its size")
    between = communication_of(plan, 0, device)
    driver = device.context_bytes + between.expected
    least = requested + device.workspace_bytes * WORKSPACES
    usable = None if device.usable_bytes is None else device.usable_bytes - driver
    chosen = _chosen(least, usable)
    stream = _joined(parts)
    peaks = _replayed(stream, chosen, len(least))
    simulated = np.zeros(len(least), bool)
    simulated[chosen] = True
    allocated, reserved, spread = _all_lanes(least, chosen, peaks)
    fits = None
    if usable is not None:
        fits = simulated & (reserved <= usable)
        for lane in np.flatnonzero(simulated & ~fits & (allocated <= usable)).tolist():
            sizes = _sizes_of(stream, lane)
            fits[lane] = not simulate(stream.events, sizes, usable).out_of_memory
    used, low, high = used_bytes(plan, device, between, allocated, reserved)
    return GridMemory(requested, allocated, reserved, used, low, high, fits, simulated, spread)


def _joined(parts: Sequence[Part]) -> Stream:
    """One stream of all parts' lanes."""
    import numpy as np

    if len(parts) == 1:
        return parts[0].stream
    known: dict[tuple[int, ...], Any] = {}
    sizes = []
    for column in zip(*(part.stream.sizes for part in parts), strict=True):
        key = tuple(map(id, column))
        if key not in known:
            wide = [np.broadcast_to(c, part.lanes) for c, part in zip(column, parts, strict=True)]
            known[key] = np.concatenate(wide)
        sizes.append(known[key])
    return replace(parts[0].stream, sizes=sizes)


def _chosen(least: Any, usable: int | None) -> Any:
    """Lanes to replay: all that may fit, and of the others some, evenly by what they need at least.

    None of those beyond LIMIT_BYTES; NotOnGrid where these may fit, or none is left.
    """
    import numpy as np

    order = np.argsort(least, kind="stable")
    open_lanes = order if usable is None else order[least[order] <= usable]
    others = order[len(open_lanes) :]
    others = others[least[others] < LIMIT_BYTES]
    if not len(open_lanes) + len(others) or (least[open_lanes] >= LIMIT_BYTES).any():
        raise NotOnGrid("more bytes than the array replay has addresses for")
    if len(order) > ALL_REPLAYED and len(others) > SAMPLED:
        others = others[np.linspace(0, len(others) - 1, SAMPLED).astype(int)]
    return np.concatenate([open_lanes, others])  # neighbours often ask a pool for the same


def _replayed(stream: Stream, chosen: Any, lanes: int) -> GridPeaks:
    """Peaks of the chosen lanes; of several streams (allocator_streams.py) each reserves its own."""
    import numpy as np

    parts = []
    for start in range(0, len(chosen), _AT_ONCE):
        here = chosen[start : start + _AT_ONCE]
        cut: dict[int, Any] = {}
        for size in stream.sizes:
            if id(size) not in cut:
                cut[id(size)] = np.ascontiguousarray(np.broadcast_to(size, lanes)[here])
        sizes = [cut[id(size)] for size in stream.sizes]
        try:
            parts.append(_of_streams(stream, sizes, len(here)))
        except TooManyBlocks as error:
            raise NotOnGrid("a cache in too many pieces") from error
    return GridPeaks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _of_streams(stream: Stream, sizes: list[Any], lanes: int) -> GridPeaks:
    """`simulate_streams` of some lanes."""
    whole = simulate_grid(stream.events, sizes, lanes)
    if not stream.streams:
        return whole
    each = events_by_stream(stream.events, stream.streams)
    return whole._replace(reserved=sum(simulate_grid(own, sizes, lanes).reserved for own in each))


def _all_lanes(least: Any, chosen: Any, peaks: GridPeaks) -> tuple[Any, Any, float]:
    """(allocated, reserved, spread) of every lane; those not replayed by the ratio of those that were.

    least: requested bytes and workspaces. The ratio is the median of the replayed lanes that need most,
    as many as were sampled there.
    """
    import numpy as np

    own = least[chosen]
    large = np.argsort(own, kind="stable")[-SAMPLED:]
    rounding = np.median(peaks.allocated[large] / own[large])
    cached = np.median(peaks.reserved[large] / own[large])
    allocated, reserved = (np.rint(least * ratio).astype(np.int64) for ratio in (rounding, cached))
    spread = float(np.abs(reserved[chosen] / peaks.reserved - 1)[large].max())
    allocated[chosen], reserved[chosen] = peaks
    return allocated, reserved, spread


def _sizes_of(stream: Stream, lane: int) -> list[int]:
    """The bytes of every block in one lane."""
    return [size if isinstance(size, int) else int(size[lane]) for size in stream.sizes]
