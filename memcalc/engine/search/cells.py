"""Cells: one micro-batch of each way to divide a layer, priced once; stages and states act outside it.

A cell is (tp, sequence parallelism, cp, ep, etp, micro-batch, what is computed again by name). Its blocks
and ends are figures (block_figures.py) in columns of one table, a row a cell. Rows whose structure is the
same are traced once and priced as one array. Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from memcalc.engine.dims import dim_values
from memcalc.engine.kernels import BlockKind
from memcalc.engine.make_plan import block_kinds
from memcalc.engine.parallel.megatron.megatron import angle_bytes, global_buffer_bytes
from memcalc.engine.parallel.megatron.megatron_buffers import dispatcher_bytes
from memcalc.engine.parallel.megatron.megatron_layout import megatron_values
from memcalc.engine.parallel.megatron.megatron_rules import expert_split
from memcalc.engine.plan import Plan
from memcalc.engine.search.block_figures import Parts, Pricer, Seconds, live_parts
from memcalc.engine.search.lane_wires import LaneWires, Layouts
from memcalc.engine.timing.topology import Wires
from memcalc.inputs.rates import Rates

#: Kinds of block, bottom to top of a chunk: computed again first, dense before sparse.
DENSE, SPARSE, DENSE_AGAIN, SPARSE_AGAIN = range(4)
#: Ends of a chunk: with the embedding, with the head, both.
BEGINS, FINISHES, WHOLE = range(3)
_ENDS: Final = ((True, False), (False, True), (True, True))
#: Figures that a chunk's lowest and its topmost block may have more of.
_AT_EDGES: Final = ("backward_s", "backward_launches")
_BYTES: Final = ("kept", "forward_peak", "backward_peak")


class Family(NamedTuple):
    """Cells that differ in micro-batch only: their plan with one of them, and its micro-batches."""

    plan: Plan
    micro_batches: tuple[int, ...]


class Table(NamedTuple):
    """Columns of cells, float64 arrays of shape (rows,); family: of each row.

    columns: (part, figure) to array, part a kind of block, or ("end", BEGINS ...).
    """

    columns: dict[Any, Any]
    family: Any
    micro_batch: Any

    def take(self, rows: Any) -> Table:
        """Some rows."""
        columns = {name: one[rows] for name, one in self.columns.items()}
        return Table(columns, self.family[rows], self.micro_batch[rows])


class Pricing(NamedTuple):
    """What cells are priced with."""

    rates: Rates
    wires: Wires
    beside_products: bool


class _Lane(NamedTuple):
    """One cell on its way: its family's number, its micro-batch, its dims."""

    family: int
    micro_batch: int
    values: dict[str, int]


def table_of(families: Sequence[Family], ends: Sequence[int], pricing: Pricing) -> Table:
    """Every cell of every family. ends: which are needed, of BEGINS, FINISHES, WHOLE."""
    import numpy as np

    groups: dict[Any, tuple[Plan, list[_Lane]]] = {}
    for number, family in enumerate(families):
        plans = {True: family.plan}
        for micro_batch in family.micro_batches:
            values = values_of(family.plan, micro_batch)
            key = micro_batch == 1
            if key not in plans or (key and plans[True].values["b"] != 1):
                plans[key] = _with_batch(family.plan, micro_batch, values)
            plan = plans[key]
            same = (plan.kernels, tuple(plan.dims.items()))
            lanes = groups.setdefault(same, (plan, []))[1]
            lanes.append(_Lane(number, micro_batch, values))
    parts = []
    for plan, lanes in groups.values():
        parts.append(
            _columns(plan, lanes, [families[one.family].plan for one in lanes], ends, pricing)
        )
    names = dict.fromkeys(name for part in parts for name in part)
    counts = [len(lanes) for _, lanes in groups.values()]
    columns = {
        name: np.concatenate(
            [
                np.broadcast_to(part.get(name, np.zeros(1)), count).astype(float)
                for part, count in zip(parts, counts, strict=True)
            ]
        )
        for name in names
    }
    lanes = [one for _, own in groups.values() for one in own]
    family_of = np.array([one.family for one in lanes])
    return Table(columns, family_of, np.array([one.micro_batch for one in lanes]))


def values_of(plan: Plan, micro_batch: int) -> dict[str, int]:
    """The dims of a Megatron rank with another micro-batch than its plan's."""
    resolved = plan.resolved
    whole = dim_values(
        resolved.config,
        micro_batch,
        resolved.seq_len,
        resolved.setup.imbalance,
        resolved.target_len,
    )
    return megatron_values(whole, resolved.config, plan.parallel, resolved.setup)


def _with_batch(plan: Plan, micro_batch: int, values: dict[str, int]) -> Plan:
    """The plan with another micro-batch: its structure asks which dims are 1."""
    from memcalc.engine.parallel.megatron.megatron_layout import megatron_sizes

    resolved = plan.resolved._replace(micro_batch_size=micro_batch)
    dims = megatron_sizes(values, plan.parallel)
    return plan._replace(resolved=resolved, values=values, dims=dims)


def kinds_of(plan: Plan) -> dict[int, BlockKind]:
    """The kinds of block of a plan by number; computed again only where that is a choice."""
    found: dict[int, BlockKind] = {}
    layers = block_kinds(plan.resolved, plan.kernels)
    for kind in layers:
        plain = kind._replace(recompute="none")
        found.setdefault(SPARSE if kind.sparse else DENSE, plain)
    if plan.kernels.megatron is not None and not plan.kernels.megatron.recomputes:
        for number in tuple(found):
            found[number + DENSE_AGAIN] = found[number]._replace(recompute="reentrant")
    return found


def _columns(
    plan: Plan, lanes: list[_Lane], plans: list[Plan], ends: Sequence[int], pricing: Pricing
) -> dict[Any, Any]:
    """The columns of cells of one structure."""
    import numpy as np

    ints, floats = (_arrays(lanes, kind) for kind in ("int64", "float64"))
    layouts = Layouts(
        {
            "tp": np.array([one.parallel.tp for one in plans]),
            "cp": np.array([one.parallel.cp for one in plans]),
            "ep": np.array([one.parallel.ep for one in plans]),
            "etp": np.array([expert_split(one.parallel) for one in plans]),
        }
    )
    wires = LaneWires(pricing.wires, layouts, pricing.beside_products)
    pricer = Pricer(plan, pricing.rates, floats, wires)
    kinds = kinds_of(plan)
    order = sorted(kinds, key=lambda number: (number % 2, -number))  # dense first, again first
    order = order * 2 if len(order) == 1 else order
    found: dict[Any, Any] = {}
    for end in ends:
        own = plan._replace(kinds=tuple(kinds[number] for number in order), ends=_ENDS[end])
        structure, _ = own.structure(True)
        parts, seconds = live_parts(structure, ints, len(lanes)), pricer.parts(structure)
        _put_parts(found, end, order, parts)
        _put_seconds(found, end, order, seconds)
        found["end", end, "buffer"] = global_buffer_bytes(own._replace(values=ints))
    _settle_edges(found)
    if BEGINS in ends:
        found[order[-1], "top_peak"] = found.pop("top peak")
        for number in set(order[:-1]) - {order[-1]}:
            one = plan._replace(kinds=(kinds[number],), ends=(False, False))
            top = live_parts(one.structure(True)[0], ints, len(lanes)).blocks[0]
            found[number, "top_peak"] = top.backward_peak
        if not plan.config.tie_word_embeddings:
            _join_ends(found)
    wide = plan._replace(values=ints)
    found["angles"] = angle_bytes(wide)
    found["tables"] = wide.table_bytes
    found["ids"] = _id_bytes(wide)
    for number, kind in kinds.items():
        found[number, "dispatcher"] = dispatcher_bytes(wide._replace(kinds=(kind,)))
    return found


def _arrays(lanes: list[_Lane], kind: str) -> dict[str, Any]:
    """The dims of cells, an array each."""
    import numpy as np

    return {name: np.array([one.values[name] for one in lanes], kind) for name in lanes[0].values}


def _id_bytes(plan: Plan) -> Any:
    from memcalc.engine.memory import input_bytes

    return input_bytes(plan)


def _put_parts(found: dict[Any, Any], end: int, order: Sequence[int], parts: Parts) -> None:
    """Columns of bytes of one structure's parts."""
    for number, block in zip(order, parts.blocks, strict=True):
        for name in _BYTES:
            found[number, name] = getattr(block, name)
    for place, part in (("first", parts.first), ("last", parts.last)):
        for name in _BYTES:
            found["end", end, place, name] = getattr(part, name)
    everything = (parts.first, *parts.blocks, parts.last)
    found["end", end, "more"] = sum(one.more for one in everything)
    found["end", end, "last more"] = parts.last.more
    if end == BEGINS:
        found["stream"], found["top peak"] = parts.stream, parts.blocks[-1].backward_peak


def _put_seconds(
    found: dict[Any, Any], end: int, order: Sequence[int], seconds: dict[int, Seconds]
) -> None:
    """Columns of seconds of one structure's parts.

    A chunk's lowest block does more where it sends a gradient on, and its topmost one sums elsewhere where
    no head follows: what they do more are columns of their own.
    """
    for name, value in zip(Seconds._fields, seconds.get(-1, Seconds()), strict=True):
        found["end", end, name] = value
    last = len(order) - 1
    plain = {BEGINS: range(last), FINISHES: range(1, last + 1), WHOLE: range(last + 1)}[end]
    for block, number in enumerate(order):
        if block in plain:
            for name, value in zip(Seconds._fields, seconds[block], strict=True):
                found[number, name] = value
    odd, where = {BEGINS: (last, "top"), FINISHES: (0, "bottom"), WHOLE: (0, "")}[end]
    if where:
        for name in _AT_EDGES:
            found[where, name] = (order[odd], getattr(seconds[odd], name))


def _join_ends(found: dict[Any, Any]) -> None:
    """Both ends of a model on one chunk: where they share no weight, each as it is alone."""
    for name in [name for name in found if isinstance(name, tuple) and name[:2] == ("end", BEGINS)]:
        from_last = name[2] in ("last", "last more", "buffer")
        source = ("end", FINISHES, *name[2:])
        if name[2] in Seconds._fields:
            found["end", WHOLE, *name[2:]] = found[name] + found[source]
        else:
            found["end", WHOLE, *name[2:]] = found[source if from_last else name]


def _settle_edges(found: dict[Any, Any]) -> None:
    """What blocks at the edges do more, once the same kind is known from elsewhere."""
    for where in ("top", "bottom"):
        for name in _AT_EDGES:
            if (where, name) in found:
                number, value = found[where, name]
                found[where, name] = value - found[number, name]


def with_layout(plan: Plan, **degrees: Any) -> Plan:
    """The plan under other degrees of what lies outside a layer."""
    return plan._replace(parallel=replace(plan.parallel, **degrees))
