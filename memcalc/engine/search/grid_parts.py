"""Pieces of megatron_grid.py: what is asked for, what is handed out, rows on their way.

Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.plan import Plan
from memcalc.engine.search.cells import Table, kinds_of
from memcalc.engine.search.chunk_sums import ChunkTimes
from memcalc.engine.search.lane_wires import Layouts
from memcalc.engine.search.splits import Cut
from memcalc.engine.search.states_grid import StatesOption
from memcalc.engine.search.weights import Weights
from memcalc.engine.timing.topology import Wires
from memcalc.inputs.rates import Rates


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
    """Setups of splits that are alike under some options of states: arrays of shape (options, K, rows).

    rows: of the table; which: of the cuts, of each row; again: blocks computed again of each column;
    possible: (options, rows), which there are: others take and lack infinitely much. allocated: bytes of
    the rank that needs most, workspaces included, cached blocks not. lacking: bytes over the device, of
    the rank that lacks most (at most 0: it may fit; None: no device).
    """

    cuts: tuple[Cut, ...]
    options: tuple[StatesOption, ...]
    rows: Any
    which: Any
    again: Any
    possible: Any
    allocated: Any
    lacking: Any
    step_s: Any


def rows_inside(
    alive: list[Any], times: Sequence[ChunkTimes], span: Any
) -> tuple[list[Any], list[ChunkTimes], Any]:
    """The same arrays as (K, rows)."""
    import numpy as np

    shape = span.shape

    def turned(one: Any) -> Any:
        return np.ascontiguousarray(np.broadcast_to(one, shape).T)

    chunks = [ChunkTimes(*map(turned, one)) for one in times]
    return [turned(one) for one in alive], chunks, turned(span)


class Placed(NamedTuple):
    """Rows of one split: their figures, their layouts by place and by degrees, and micro-batches."""

    table: Table
    layout: Any
    layouts: Layouts
    batches: Any
    which: Any

    def every(self, times: Sequence[ChunkTimes]) -> list[int]:
        """All columns: seconds of chosen numbers grow unevenly between them."""
        return list(range(times[0].forward_s.shape[1]))


def together(cuts: tuple[Cut, ...], which: Any) -> Cut:
    """Cuts that are alike as one, whose classes have as many blocks as each row's: arrays (rows, 1)."""
    import numpy as np

    if len(cuts) == 1:
        return cuts[0]
    classes = []
    for own in zip(*(cut.classes for cut in cuts), strict=True):
        dense, sparse = (
            np.array([getattr(one, name) for one in own])[which][:, None]
            for name in ("dense", "sparse")
        )
        classes.append(own[0]._replace(dense=dense, sparse=sparse))
    return cuts[0]._replace(classes=tuple(classes))


def weights_of(plans: Sequence[Plan]) -> list[Weights]:
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
