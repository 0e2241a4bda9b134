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
from typing import Any, Final

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.megatron.megatron_rules import expert_split
from memcalc.engine.rank_memory import WORKSPACES
from memcalc.engine.search.cells import Family, Table
from memcalc.engine.search.chunk_sums import ChunkTimes, Sums
from memcalc.engine.search.drivers import Drivers
from memcalc.engine.search.grid_parts import (
    Block,
    Job,
    Placed,
    rows_inside,
    together,
    weights_of,
)
from memcalc.engine.search.lane_wires import LaneWires, Layouts
from memcalc.engine.search.option_grid import Group, beside_of, joined, most_bytes, step_seconds
from memcalc.engine.search.rank_grid import Code, alive_bytes
from memcalc.engine.search.schedule_grid import span_s
from memcalc.engine.search.splits import Cut, breaks_of
from memcalc.engine.search.states_grid import Once, StatesGrid, StatesOption
from memcalc.engine.timing.kernel_times import moved_s
from memcalc.inputs.stacks import load_stack

#: Numbers of one array: more leave the processor's cache.
_AT_ONCE: Final = 1 << 15


class MegatronGrid:
    """Families of cells under one job; cuts: every way to cut the model that will be asked for."""

    def __init__(self, families: Sequence[Family], job: Job, cuts: Sequence[Cut]) -> None:
        import numpy as np

        self.families, self.job = families, job
        plan = families[0].plan
        self.stack = load_stack(plan.resolved.setup.code)
        kernels = plan.kernels
        self.code = Code(self.stack.name, ITEMSIZE[kernels.compute_dtype])
        self.launch_s = 0.0 if kernels.cuda_graphs else job.rates.launch_s
        layouts = [family.plan.parallel for family in families]
        keys = [(one.tp, one.cp, one.ep, one.etp) for one in layouts]  # sp divides no state
        unique = list(dict.fromkeys(keys))
        self.layout_of = np.array([unique.index(key) for key in keys])
        self.first = [keys.index(key) for key in unique]
        self.plans = [families[number].plan for number in self.first]
        self.weights = weights_of(self.plans)
        self.classes: dict[int, dict[Any, int]] = {}
        for cut in cuts:
            known = self.classes.setdefault(cut.split.pp, {})
            for chunk in cut.classes:
                known.setdefault(chunk, len(known))
        self.states: dict[int, StatesGrid] = {}
        self.fixed: dict[tuple[bool, ...], Any] = {}
        self.groups: tuple[Any, list[Group]] = (None, [])
        self.drivers = Drivers(job.device, self.plans, job.gpus)

    def blocks(
        self, table: Table, again: Any, cuts: tuple[Cut, ...], options: Sequence[StatesOption]
    ) -> Iterator[Block]:
        """Every setup of these cells under cuts that are alike. again: numbers of blocks computed again."""
        import numpy as np

        rows = self._rows(table, cuts[0])
        which = np.repeat(np.arange(len(cuts)), len(rows))
        rows = np.tile(rows, len(cuts))
        turn = max(1, _AT_ONCE // len(again))
        for start in range(0, len(rows), turn):
            own = slice(start, start + turn)
            yield from self._blocks(table, (rows[own], which[own], again), cuts, options)

    def _blocks(
        self,
        table: Table,
        of: tuple[Any, Any, Any],
        cuts: tuple[Cut, ...],
        options: Sequence[StatesOption],
    ) -> Iterator[Block]:
        """Every setup of some rows: options without exchanges beside compute, and those with them."""
        rows, which, again = of
        cut = together(cuts, which)
        own = table.take(rows)
        layout = self.layout_of[own.family]
        states = self._states(cut.split.pp)
        placed = Placed(
            own, layout, states.wires.layouts.take(layout), self._batches(own, cut), which
        )
        sums = Sums(own, again)
        alive = alive_bytes(sums, placed.batches, cut, self.code)
        times = self._times(sums, placed, (states, cuts))
        every = (chunk for one in cuts for chunk in one.classes)
        ends = breaks_of(every, int(again.max())) if len(again) > 1 else [0]
        span = self._span(times, placed, (cut, ends if len(again) == ends[-1] + 1 else []))
        alive, times, span = rows_inside(alive, times, span)
        few, compute = max(1, _AT_ONCE // span.size), beside_of(times)
        layout = layout + which * len(self.plans)
        for group in self._groups(cuts, options):
            for start in range(0, len(group.options), few):
                some = group.some(start, start + few)
                possible = some.possible[:, layout]
                if possible.any():
                    allocated, lacking = most_bytes(alive, some, layout)
                    slower = self.job.rates.overlap_slowdown
                    step = step_seconds(span, some, compute, (layout, cut, slower))
                    yield Block(
                        cuts, some.options, rows, which, again, possible, allocated, lacking, step
                    )

    def _groups(self, cuts: tuple[Cut, ...], options: Sequence[StatesOption]) -> list[Group]:
        """Options without exchanges beside compute, and those with them; those asked for last are kept.

        Layouts are those of the first cut, then those of the next.
        """
        cut = cuts[0]
        if self.groups[0] != (cuts, options):
            found = []
            for beside in (False, True):
                every = self._states(cut.split.pp).stacked(tuple(options)).possible.any(axis=1)
                chosen = tuple(
                    one
                    for one, any_layout in zip(options, every.tolist(), strict=True)
                    if one.overlap_grad_reduce == beside and any_layout
                )
                if chosen:
                    found.append(joined([self._group(one, chosen) for one in cuts]))
            self.groups = ((cuts, options), found)
        return self.groups[1]

    def _group(self, cut: Cut, options: tuple[StatesOption, ...]) -> Group:
        """Options of states over all layouts, for a split."""
        import numpy as np

        states = self._states(cut.split.pp)
        places = [self.classes[cut.split.pp][chunk] for chunk in cut.classes]
        kinds = [[places[of] for of in kind] for _, kind in cut.ranks]
        held = states.stacked(options)
        never = np.where(held.possible, 0.0, np.inf)
        chunks = np.zeros((len(kinds), held.bytes.shape[2]))
        for number, kind in enumerate(kinds):
            np.add.at(chunks[number], kind, 1)
        bytes_of = np.einsum("olc,kc->okl", held.bytes, chunks)
        bytes_of += self._fixed(cut)[None] + never[:, None]
        left = {one.zero: self.drivers.left(cut, one) for one in options}
        lacking = None
        if self.job.device.usable_bytes is not None:
            lacking = bytes_of - np.array([left[one.zero] for one in options])
        stepping = np.array([states.stepping_s(option, kinds) for option in options])
        once = Once(*(np.moveaxis(one[:, :, places], 2, 0).copy() for one in held.once))
        return Group(options, held.possible, bytes_of, lacking, stepping + never, once)

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
        found = []
        for _, kind in cut.ranks:
            times = (cut.classes[of].times for of in set(kind))
            there = tuple(map(any, zip(*times, strict=True)))
            if there not in self.fixed:
                chunks = [cut.classes[of] for of in set(kind)]
                own = [one.fixed_bytes(chunks) for one in self.weights]
                self.fixed[there] = np.array(own, float) + workspaces
            found.append(self.fixed[there])
        return np.array(found)

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

    def _times(
        self, sums: Sums, placed: Placed, of: tuple[StatesGrid, tuple[Cut, ...]]
    ) -> list[ChunkTimes]:
        """Seconds of each class of chunk."""
        import numpy as np

        states, cuts = of
        known, cut = self.classes[cuts[0].split.pp], together(cuts, placed.which)
        copies = placed.layouts.of("dp") * placed.layouts.of("cp")
        passes = 1 + 2 * (copies > 1)
        found = []
        for at, chunk in enumerate(cut.classes):
            numbers = np.array([known[one.classes[at]] for one in cuts])[placed.which]
            elements = states.counts.sum(axis=2)[placed.layout, numbers]
            moved = passes * states.width * elements / placed.batches
            copied = moved_s(self.job.rates, moved, 2)[:, None]
            found.append(sums.times(chunk, self.launch_s, (copied, 2)))
        return found

    def _span(self, times: Sequence[ChunkTimes], placed: Placed, of: tuple[Cut, list[int]]) -> Any:
        """Seconds of the schedule, (rows, K). of: the cut, and where seconds change their slope."""
        cut, ends = of
        d = placed.layouts.degrees
        if cut.split.pp == 1:
            return placed.batches[:, None] * (times[0].forward_s + times[0].backward_s)
        wires = LaneWires(self.job.wires, placed.layouts)
        stride = d["tp"] * d["cp"] * d["dp"]
        two = d["pp"] // d["pp"] * 2
        send = wires.group_s("send", placed.table.columns["stream"], two, stride)
        in_turn = int(self.stack.parallel.get("sends_in_turn", 0))
        return span_s(
            times, send * max(1, in_turn), placed.batches, cut, ends or placed.every(times)
        )
