"""Megatron's setups by the million: every cell of every layout under every split and way to hold states.

A step's bytes and seconds are put together as `pipeline_memory` and `step_time` do, over arrays:

    bytes   = states of a rank + what is fixed + the most of its rows (stage_rows.py)
    seconds = span of the schedule + exchanges of a step + the optimizer, of the slowest rank

Cells (cells.py) are priced once; a split adds what its chunks sum up to, for every number k of blocks
computed again; an option of states (states_grid.py) adds bytes and seconds to all of that. Exact: requested
bytes are whole numbers below 2^53 in float64, seconds differ from the scalar path's by the order of sums.
Checked by: property/test_search_grid.py, against `estimate`; speed: benchmarks/engine_speed.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.megatron.megatron_rules import expert_split
from memcalc.engine.plan import Plan
from memcalc.engine.rank_memory import WORKSPACES
from memcalc.engine.search.cells import BEGINS, Family, Table, kinds_of
from memcalc.engine.search.chunk_sums import ChunkBytes, ChunkTimes, Sums
from memcalc.engine.search.drivers import Drivers
from memcalc.engine.search.lane_wires import LaneWires, Layouts
from memcalc.engine.search.schedule_grid import span_s
from memcalc.engine.search.splits import Cut
from memcalc.engine.search.stage_rows import StageRows, enough, stage_rows
from memcalc.engine.search.states_grid import Held, StatesGrid, StatesOption
from memcalc.engine.search.weights import Weights
from memcalc.engine.timing.kernel_times import moved_s
from memcalc.engine.timing.topology import Wires
from memcalc.inputs.rates import Rates
from memcalc.inputs.stacks import load_stack


class Job(NamedTuple):
    """What is searched for: GPUs in all, sequences of a step, and what a device has and costs.

    wires: of the cluster; batch: sequences of a step over all ranks.
    """

    gpus: int
    batch: int
    device: Device
    rates: Rates
    wires: Wires


class Block(NamedTuple):
    """Setups of one split under one option of states: arrays of shape (rows, K).

    rows: of the table; again: blocks computed again of each column; possible: (rows,), which rows the option
    is for. allocated: bytes of the rank that needs most, workspaces included, cached blocks not. lacking:
    bytes over the device, of the rank that lacks most (at most 0: it may fit; None: no device).
    """

    cut: Cut
    option: StatesOption
    rows: Any
    again: Any
    possible: Any
    allocated: Any
    lacking: Any
    step_s: Any


class MegatronGrid:
    """Families of cells under one job; cuts: every way to cut the model that will be asked for."""

    def __init__(self, families: Sequence[Family], job: Job, cuts: Sequence[Cut]) -> None:
        import numpy as np

        self.families, self.job = families, job
        plan = families[0].plan
        self.stack = load_stack(plan.resolved.setup.code)
        kernels = plan.kernels
        self.launch_s = 0.0 if kernels.cuda_graphs else job.rates.launch_s
        layouts = [family.plan.parallel for family in families]
        keys = [(one.tp, one.sp, one.cp, one.ep, one.etp) for one in layouts]
        unique = list(dict.fromkeys(keys))
        self.layout_of = np.array([unique.index(key) for key in keys])
        self.first = [keys.index(key) for key in unique]
        self.plans = [families[number].plan for number in self.first]
        self.weights = _weights_of(self.plans)
        self.classes: dict[int, dict[Any, int]] = {}
        for cut in cuts:
            known = self.classes.setdefault(cut.split.pp, {})
            for chunk in cut.classes:
                known.setdefault(chunk, len(known))
        self.states: dict[int, StatesGrid] = {}
        self.drivers = Drivers(job.device, self.plans, job.gpus)

    def blocks(
        self, table: Table, again: Any, cut: Cut, options: Sequence[StatesOption]
    ) -> Iterator[Block]:
        """Every setup of these cells under a split. again: numbers of blocks computed again."""
        rows = self._rows(table, cut)
        if not len(rows):
            return
        own = table.take(rows)
        layout = self.layout_of[own.family]
        states = self._states(cut.split.pp)
        placed = _Placed(own, layout, states.wires.layouts.take(layout), self._batches(own, cut))
        sums = Sums(own, again)
        alive = self._alive(sums, placed, cut)
        times = self._times(sums, placed, (states, cut))
        span = self._span(times, placed, cut)
        places = [self.classes[cut.split.pp][chunk] for chunk in cut.classes]
        kinds = [[places[of] for of in kind] for _, kind in cut.ranks]
        fixed = self._fixed(cut)
        for option in options:
            held = states.held(option)
            possible = held.possible[layout]
            if not possible.any():
                continue
            limits = self.drivers.left(cut, option)
            bytes_of = [
                (held.bytes[:, kind].sum(axis=1) + fixed[number])[layout]
                for number, kind in enumerate(kinds)
            ]
            left = None if limits is None else limits[:, layout]
            allocated, lacking = _most(alive, bytes_of, left)
            stepping = states.stepping_s(option, kinds)[layout][:, None]
            step = span + (self._once(held, times, placed, (cut, places)) + stepping)
            yield Block(cut, option, rows, again, possible, allocated, lacking, step)

    def _states(self, pp: int) -> StatesGrid:
        if pp not in self.states:
            wires = LaneWires(self.job.wires, self._layouts(pp))
            classes = tuple(self.classes[pp])
            self.states[pp] = StatesGrid(self.weights, classes, wires, self.job.rates)
        return self.states[pp]

    def _fixed(self, cut: Cut) -> Any:
        """Workspaces and dummy gradients of each kind of rank, (kinds, layouts)."""
        import numpy as np

        workspaces = self.job.device.workspace_bytes * WORKSPACES
        return np.array(
            [
                [one.fixed_bytes([cut.classes[of] for of in set(kind)]) for one in self.weights]
                for _, kind in cut.ranks
            ],
            float,
        ) + workspaces  # fmt: skip

    def _batches(self, table: Table, cut: Cut) -> Any:
        """Micro-batches of a step of each row."""
        dp = self._layouts(cut.split.pp).of("dp")[self.layout_of[table.family]]
        return self.job.batch // (table.micro_batch * dp)

    def _rows(self, table: Table, cut: Cut) -> Any:
        """Rows whose layout the GPUs, the batch, the experts and the schedule allow."""
        import numpy as np

        d = self._layouts(cut.split.pp).degrees
        inner = d["tp"] * d["cp"] * d["pp"]
        room = d["tp"] * d["cp"] * d["dp"]
        good = (self.job.gpus % inner == 0) & (room % (d["ep"] * d["etp"]) == 0)
        layout = self.layout_of[table.family]
        a_turn = d["dp"][layout] * table.micro_batch
        batches = self.job.batch // a_turn
        fits = good[layout] & (self.job.batch % a_turn == 0)
        if cut.split.schedule == "interleaved":
            fits &= batches % cut.split.pp == 0
        return np.flatnonzero(fits)

    def _layouts(self, pp: int) -> Layouts:
        """Degrees of every layout with so many stages; dp 1 where the GPUs are no multiple of them."""
        import numpy as np

        plans = [plan.parallel for plan in self.plans]
        found = {
            name: np.array([getattr(one, name) for one in plans]) for name in ("tp", "cp", "ep")
        }
        is_moe = self.plans[0].config.moe is not None
        found["etp"] = np.array([expert_split(one) if is_moe else 1 for one in plans])
        found["pp"] = np.full(len(plans), pp)
        found["dp"] = np.maximum(1, self.job.gpus // (found["tp"] * found["cp"] * pp))
        return Layouts(found)

    def _alive(self, sums: Sums, placed: _Placed, cut: Cut) -> list[Any]:
        """Most bytes of each kind of rank beside its states, (rows, K)."""
        import numpy as np

        chunks = [sums.bytes(chunk) for chunk in cut.classes]
        found = [np.zeros(chunks[0].kept.shape) for _ in cut.ranks]
        every = np.unique(placed.batches).tolist()
        for number, (rank, kind) in enumerate(cut.ranks):
            capped: dict[Any, list[int]] = {}
            for batches in every:
                pipe = enough(cut.split.schedule, cut.pipe(batches), rank)
                capped.setdefault(pipe, []).append(batches)
            for pipe, batches in capped.items():
                own = np.flatnonzero(np.isin(placed.batches, batches))
                rows = stage_rows(self.stack.name, cut.split.schedule, pipe, rank, cut.of)
                found[number][own] = self._of_rank(sums, chunks, (cut, kind), rows, own)
        return found

    def _of_rank(
        self,
        sums: Sums,
        chunks: Sequence[ChunkBytes],
        of: tuple[Cut, tuple[int, ...]],
        rows: StageRows,
        own: Any,
    ) -> Any:
        """Most bytes of a rank, for some of the rows."""
        import numpy as np

        cut, kind = of
        stream = sums.column("stream")[own]
        stub = ITEMSIZE[self.families[0].plan.kernels.compute_dtype]
        most: Any = None
        for row in rows.rows:
            chunk = chunks[row.chunk]
            level = (chunk.forward_peak if row.kind == "F" else chunk.backward_peak)[own]
            for number, times in enumerate(row.in_flight):
                if times:
                    level = level + times * chunks[number].kept[own]
            level = level + (row.streams * stream + (row.stubs * stub + row.losses * 4))
            most = level if most is None else np.maximum(most, level)
        finishes = any(cut.classes[one].finishes for one in kind)
        first, last = (rows.most_first, rows.most_last) if len(cut.of) > 1 else (1, 0)
        ids = sums.column("ids")[own] * (
            first * any(cut.classes[one].begins for one in kind) + last * finishes
        )
        tables = sums.column("tables")[own] * len(kind)
        buffer = self._buffer(sums, of)[own]
        dispatchers = sum(chunks[one].dispatchers for one in kind)
        most = most + (ids + tables + buffer + sums.column("angles")[own])
        return most + np.broadcast_to(dispatchers, chunks[0].kept.shape)[own]

    def _buffer(self, sums: Sums, of: tuple[Cut, tuple[int, ...]]) -> Any:
        """The largest global buffer of a rank's chunks."""
        import numpy as np

        cut, kind = of
        most: Any = np.zeros((len(sums.table.family), 1))
        for one in set(kind):
            end = sums.end(cut.classes[one])
            place = BEGINS if end is None else end
            most = np.maximum(most, sums.column("end", place, "buffer"))
        return most

    def _times(
        self, sums: Sums, placed: _Placed, of: tuple[StatesGrid, Cut]
    ) -> list[ChunkTimes]:
        """Seconds of each class of chunk."""
        states, cut = of
        copies = placed.layouts.of("dp") * placed.layouts.of("cp")
        passes = 1 + 2 * (copies > 1)
        found = []
        for chunk in cut.classes:
            number = self.classes[cut.split.pp][chunk]
            elements = states.counts[:, number].sum(axis=1)[placed.layout]
            moved = passes * states.width * elements / placed.batches
            copied = moved_s(self.job.rates, moved, 2)[:, None]
            found.append(sums.times(chunk, self.launch_s, (copied, 2)))
        return found

    def _span(self, times: Sequence[ChunkTimes], placed: _Placed, cut: Cut) -> Any:
        """Seconds of the schedule, (rows, K)."""
        d = placed.layouts.degrees
        if cut.split.pp == 1:
            return placed.batches[:, None] * (times[0].forward_s + times[0].backward_s)
        wires = LaneWires(self.job.wires, placed.layouts)
        stride = d["tp"] * d["cp"] * d["dp"]
        two = d["pp"] // d["pp"] * 2
        send = wires.group_s("send", placed.table.columns["stream"], two, stride)
        in_turn = int(self.stack.parallel.get("sends_in_turn", 0))
        return span_s(times, send * max(1, in_turn), placed.batches, cut, placed.again_of(times))

    def _once(
        self, held: Held, times: Sequence[ChunkTimes], placed: _Placed, of: tuple[Cut, list[int]]
    ) -> Any:
        """Seconds of exchanges outside the schedule, of the slowest rank."""
        import numpy as np

        cut, places = of
        slower = self.job.rates.overlap_slowdown
        of_class = []
        for place, chunk in zip(places, times, strict=True):
            alone, beside, last, ahead = (
                one[:, place][placed.layout][:, None] for one in held.once
            )
            total: Any = alone + last
            for seconds, compute in (
                (beside, chunk.blocks_backward_s), (ahead, chunk.blocks_forward_s)
            ):  # fmt: skip
                if seconds.any():
                    shown = np.maximum(seconds - compute, 0.0)
                    total = total + (shown + slower * (seconds - shown))
            of_class.append(total)
        most: Any = None
        for _, kind in cut.ranks:
            total = 0.0
            for one in set(kind):
                total = total + kind.count(one) * of_class[one]
            most = total if most is None else np.maximum(most, total)
        return most


class _Placed(NamedTuple):
    """Rows of one split: their figures, their layouts by place and by degrees, and micro-batches."""

    table: Table
    layout: Any
    layouts: Layouts
    batches: Any

    def again_of(self, times: Sequence[ChunkTimes]) -> int:
        """Columns."""
        return int(times[0].forward_s.shape[1])


def _weights_of(plans: Sequence[Plan]) -> list[Weights]:
    """The weights of every layout; those whose weights are divided alike share them."""
    known: dict[Any, Weights] = {}
    found = []
    for plan in plans:
        layout = plan.parallel
        key = (layout.tp, layout.ep, layout.etp)
        if key not in known:
            kinds = {n: kind for n, kind in kinds_of(plan).items() if n < 2}
            order = sorted(kinds)
            whole = plan._replace(kinds=tuple(kinds[n] for n in order), ends=(True, True))
            known[key] = Weights(whole, dict(enumerate(order)))
        found.append(known[key])
    return found


def _most(alive: Sequence[Any], held: Any, limits: Any) -> tuple[Any, Any]:
    """Bytes of the rank that needs most, and what the one that lacks most lacks."""
    import numpy as np

    allocated = lacking = None
    for number, own in enumerate(alive):
        total = own + held[number][:, None]
        allocated = total if allocated is None else np.maximum(allocated, total)
        if limits is not None:
            less = total - limits[number][:, None]
            lacking = less if lacking is None else np.maximum(lacking, less)
    return allocated, lacking
