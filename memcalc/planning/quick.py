"""Quick rows: thousands of cases at once, those of one structure together, as arrays.

Cases that differ only in micro-batch, sequence or accumulation, and whose plans have the same events, are
one grid (engine/grid/memory.py), made of a part for each structure (a micro-batch of 1 is one). Its rows
are those of the scalar path: verdict and requested bytes exactly, and all bytes of what may fit; times
within 1e-9. Allocated and reserved bytes of points far beyond the device may be scaled, which their key
`reserved` says. Three rows of each grid are computed both ways; a grid that differs in any of them is
dropped and goes the scalar path, as do groups too small to gain anything, pipelines, offload, expandable
segments, Muon and optimizers inside backward.
Checked by: property/test_grid.py; speed: benchmarks/sweep_speed.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.collector import paused
from memcalc.engine.device_side import Device, with_modules
from memcalc.engine.grid.grid import NotOnGrid, shape_of, together
from memcalc.engine.grid.memory import SAMPLED, GridMemory, Part, grid_memory, part_of
from memcalc.engine.grid.time import BOUNDS, grid_time
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.rules import check_size
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.stacks import load_stack
from memcalc.planning.cases import Case, Point, Refused, Tell, point_of
from memcalc.planning.rows import SIMULATED, TIME, blank_row, cost_of, row_of

#: A replay over arrays costs about as much as so many replays of one size.
FEWEST: Final = 32
#: The same of what is done for each structure of a grid beside the replay.
FEWEST_OF_PART: Final = 6
#: Fields of a setup that plans of one grid may differ in.
_SIZES: Final = frozenset(
    {"seq_len", "target_seq_len", "micro_batch_size", "grad_accum_steps", "global_batch"}
)
_RELATIVE: Final = 1e-9
#: Micro-batch x sequence^2 up to which no sum of bytes comes near 2^63.
_MOST_SQUARE: Final = 1 << 40
#: Columns that a check compares as real numbers.
_REAL: Final = frozenset(TIME) - {"bound"} | {"usd_per_million_tokens"}
Row = dict[str, Any]


class _Lane(NamedTuple):
    """One case of a grid: its place among all cases, and its plan."""

    place: int
    case: Case
    plan: Plan


def quick_rows(
    cases: Sequence[Case | Refused], tell: Tell | None = None, price: float | None = None
) -> list[Row]:
    """The rows (`rows.KEYS`) of all cases, in their order. price: USD per GPU-hour; tell: of progress."""
    rows: list[Row | None] = [None] * len(cases)
    with paused():  # rows hold no cycles, and looking costs a quarter
        for lanes, parts in _grids(cases):
            for lane, row in zip(lanes, _grid_rows(lanes, parts, price), strict=False):
                rows[lane.place] = row
            _say(tell, rows)
    for place, case in enumerate(cases):
        if rows[place] is None:
            rows[place] = row_of(point_of(case), price)
            _say(tell, rows)
    return [row for row in rows if row is not None]


def _grids(cases: Sequence[Case | Refused]) -> Iterator[tuple[list[_Lane], list[Part]]]:
    """Cases whose plans have the same events, with those of each structure as arrays."""
    shapes: dict[tuple[Hashable, Hashable], list[_Lane]] = {}
    for place, case in enumerate(cases):
        lane = _lane(place, case)
        if lane is not None:
            shapes.setdefault((_stated(lane.case), shape_of(lane.plan)), []).append(lane)
    same: dict[Hashable, tuple[list[_Lane], list[Part]]] = {}
    for (stated, _), own in shapes.items():
        if len(own) < FEWEST_OF_PART:
            continue
        try:
            part = part_of([lane.plan for lane in own], _device(own[0].case))
        except (TypeError, ValueError):  # what branches on a value refuses arrays
            continue
        lanes, parts = same.setdefault((stated, part.events), ([], []))
        lanes += own
        parts.append(part)
    for lanes, parts in same.values():
        if len(lanes) >= FEWEST:
            yield lanes, parts


def _device(case: Case) -> Device:
    return with_modules(case.device, load_stack(case.setup.code))


def _say(tell: Tell | None, rows: list[Row | None]) -> None:
    if tell is not None:
        tell("estimates", len(rows) - rows.count(None), len(rows))


def _lane(place: int, case: Case | Refused) -> _Lane | None:
    """The case with its plan; None where the scalar path has to answer (and say why it cannot)."""
    if isinstance(case, Refused):
        return None
    try:
        plan = plan_of(case.config, case.setup, case.kernels, case.parallel)
        check_size(plan.parallel, case.device.cluster)
        shape_of(plan)
    except (ConfigError, NotOnGrid):
        return None
    if plan.resolved.tokens * plan.resolved.seq_len > _MOST_SQUARE:
        return None
    return _Lane(place, case, plan)


def _stated(case: Case) -> Hashable:
    """What the cases of a grid state alike: everything but sizes. Same objects, or equal ones."""
    setup = tuple(value for name, value in vars(case.setup).items() if name not in _SIZES)
    kernels = tuple(sorted((name, str(value)) for name, value in case.kernels.items()))
    device = case.device
    side = (id(device.gpu), id(device.cluster), device.calibration, device.usable_bytes)
    return id(case.config), setup, case.parallel, kernels, side


def _grid_rows(lanes: list[_Lane], parts: list[Part], price: float | None) -> list[Row]:
    """The rows of a grid; none where arrays cannot do it, or do not agree with the scalar path."""
    device = _device(lanes[0].case)
    try:
        memory = grid_memory(parts, together([lane.plan for lane in lanes]), device)
        times = _times(lanes, parts, device)
    except (NotOnGrid, TypeError, ValueError):
        return []
    columns = _columns(memory, device)
    rows = [_row(lane, columns, times, place, price) for place, lane in enumerate(lanes)]
    _scaled(rows, memory)
    for place in {0, len(lanes) // 2, len(lanes) - 1}:
        if not agrees(rows[place], row_of(point_of(lanes[place].case), price)):
            return []
    return rows


def _columns(memory: GridMemory, device: Device) -> dict[str, list[Any]]:
    """The columns of rows that are about memory, one element a lane."""
    count = len(memory.requested)
    usable, fits = device.usable_bytes, memory.fits
    found: dict[str, list[Any]] = {
        "peak_requested_bytes": memory.requested.tolist(),
        "peak_allocated_bytes": memory.allocated.tolist(),
        "peak_reserved_bytes": memory.reserved.tolist(),
        "device_used_bytes": memory.used.tolist(),
        "usable_bytes": [usable] * count,
        "headroom_bytes": [None] * count,
        "host_bytes": [0] * count,
        "low_bytes": memory.low.tolist(),
        "high_bytes": memory.high.tolist(),
        "fits": [None] * count,
        "verdict": [None] * count,
    }
    if usable is not None:
        found["headroom_bytes"] = (usable - memory.used).tolist()
        found["fits"] = fits.tolist()
        found["verdict"] = [
            "does-not-fit" if not one else "tight" if high > usable else "fits"
            for one, high in zip(found["fits"], found["high_bytes"], strict=True)
        ]
    return found


def _times(lanes: list[_Lane], parts: list[Part], device: Device) -> dict[str, list[Any]]:
    """The columns of rows that are about time; lanes of a part that accumulate as often are an array."""
    import numpy as np

    names = (*TIME, "calibration", "band")
    found: dict[str, list[Any]] = {name: [None] * len(lanes) for name in names}
    if device.gpu is None:
        return found
    part_of_lane = [number for number, part in enumerate(parts) for _ in range(part.lanes)]
    by_steps: dict[tuple[int, int], list[int]] = {}
    for place, (lane, number) in enumerate(zip(lanes, part_of_lane, strict=True)):
        key = (number, lane.plan.resolved.grad_accum_steps)
        by_steps.setdefault(key, []).append(place)
    for places in by_steps.values():
        plan = together([lanes[place].plan for place in places], "float64")
        answer = grid_time(plan, device, len(places))
        for name in names:
            value = getattr(answer.time, name)
            if name == "bound":
                own: list[Any] = [BOUNDS[one] for one in answer.bound.tolist()]
            elif value is None or isinstance(value, str):
                own = [value] * len(places)
            else:
                own = np.broadcast_to(value, len(places)).tolist()
            for place, one in zip(places, own, strict=True):
                found[name][place] = one
    return found


def _row(
    lane: _Lane,
    memory: Mapping[str, list[Any]],
    times: Mapping[str, list[Any]],
    place: int,
    price: float | None,
) -> Row:
    """One lane's row."""
    point = Point(lane.case, None, None)
    row = blank_row(point)
    row.update((name, column[place]) for name, column in memory.items())
    row.update((name, column[place]) for name, column in times.items())
    row["gpus"], row["reserved"] = lane.plan.parallel.size, SIMULATED
    row["usd_per_million_tokens"] = cost_of(point, row["tokens_per_s"], row["gpus"], price)
    return row


def _scaled(rows: list[Row], memory: GridMemory) -> None:
    """Say of the rows whose bytes were not replayed what they were made with."""
    count = min(SAMPLED, int(memory.simulated.sum()))
    said = f"ratio of {count} simulated points, spread {100 * memory.spread:.1f} %"
    for row, simulated in zip(rows, memory.simulated.tolist(), strict=True):
        if not simulated:
            row["reserved"] = said
            row["note"] = "far beyond the device: allocated and reserved bytes are scaled"


def agrees(row: Mapping[str, Any], scalar: Mapping[str, Any]) -> bool:
    """Whether a grid's row says what the scalar path says; bytes that were scaled are left out."""
    scaled = row["reserved"] != SIMULATED
    for name, value in scalar.items():
        mine = row[name]
        if name in _REAL and value is not None:
            if mine is None or not math.isclose(mine, value, rel_tol=_RELATIVE):
                return False
        elif not (scaled and name in _SCALED) and mine != value:
            return False
    return True


#: Columns that follow from scaled bytes, or say so.
_SCALED: Final = frozenset(
    {
        "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes", "headroom_bytes",
        "low_bytes", "high_bytes", "reserved", "note",
    }
)  # fmt: skip
