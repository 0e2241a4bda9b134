"""Exchanges: every collective of one rank of a plan (or of a chunk of it), with its seconds alone.

Exchanges inside layers (tp, cp, ep) are read off the ledger, where the operators' descriptions enter
them; those of ranks that hold the same weights follow from the strategy (exchanges_data.py,
exchanges_shards.py); stages send the stream and its gradient. What may run beside compute is said of
each here, what of it shows is decided in overlap.py.
Checked by: unit/test_exchanges.py, which holds the bytes against the closed forms of traffic.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.ledger import Collective
from memcalc.engine.parallel.megatron.megatron_rules import expert_copies, expert_split
from memcalc.engine.parallel.network.communication import ends_stride
from memcalc.engine.plan import Plan
from memcalc.engine.states import multiplicity
from memcalc.engine.structure import Structure
from memcalc.engine.timing.arith import maximum
from memcalc.engine.timing.collective_time import wire_bytes
from memcalc.engine.timing.exchanges_data import data_exchanges
from memcalc.engine.timing.exchanges_shards import Asked
from memcalc.engine.timing.kernel_times import moved_s
from memcalc.engine.timing.op_time import Priced, attention_code, work_s
from memcalc.engine.timing.topology import (
    Group,
    Wires,
    exchange_s,
    group_of,
    stride_of,
    tier_of,
    wires_of,
)
from memcalc.engine.works import Counted, works_of
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import Rates
from memcalc.inputs.stacks import as_stated, load_stack

#: Bytes of the squared norm of gradients that clipping sums over the ranks.
_NORM_BYTES: Final = 4


class Exchange(NamedTuple):
    """Equal collectives of one rank, over a micro-batch or a step.

    axis: tp | cp | ep | etp | edp | dp | shard | replica | pp | embedding | norm. kind: all_reduce |
    all_gather | reduce_scatter | all_to_all | send. call_bytes: the whole tensor of one call (of a send
    and an all-to-all this rank's own). when: forward | backward | recompute | step (after backward). per:
    micro-batch | step. overlaps: compute runs beside it. seconds: of all calls, nothing beside them.
    tier: link | pcie | network. place: block (once a block), root (outside the blocks), last (what is
    ready when backward ends); "" where it does not matter. beside_s: seconds of compute beside one call,
    of a layer's own exchanges. copy_s: of all calls, what lays their tensors out on the compute stream.
    """

    axis: str
    kind: str
    call_bytes: Any
    calls: int
    ranks: int
    when: str
    per: str
    overlaps: bool
    seconds: Any
    tier: str
    place: str = ""
    beside_s: Any = 0.0
    copy_s: Any = 0.0

    @property
    def sent_bytes(self) -> Any:
        """Bytes this rank sends, all calls together."""
        return self.calls * wire_bytes(self.kind, self.call_bytes, self.ranks)


def exchanges_of(
    plan: Plan, device: Device, rates: Rates, flags: Mapping[str, Any] | None = None
) -> tuple[Exchange, ...]:
    """Every exchange of one rank of a plan, or of a chunk plan. () where nothing is divided.

    flags: entries of the stack's `[parallel]` table stated otherwise, beside those of the layout.
    Checked by: unit/test_exchanges.py.
    """
    layout = plan.parallel
    if layout.size == 1:
        return ()
    wires = wires_of(device, layout, rates)
    stack = {**as_stated(load_stack(plan.resolved.setup.code), layout).parallel, **(flags or {})}
    asked = [
        *_of_layers(plan, rates, bool(stack.get("tp_beside_products", False))),
        *data_exchanges(plan, stack),
        *_of_stages(plan, stack),
        *_of_norm(plan),
    ]
    return tuple(_priced(one, plan, wires, rates) for one in asked if one.ranks > 1 and one.calls)


def between_stages_s(found: Iterable[Exchange]) -> Any:
    """Seconds of one send between neighbouring stages; 0.0 where there is none."""
    for one in found:
        if one.axis == "pp":
            return one.seconds / one.calls
    return 0.0


def sends_in_turn(plan: Plan) -> int:
    """Transfers a rank waits for, one after the other, for each it sends; 0: compute goes on beside.

    1: it sends and receives at once; 2: one after the other. Stated by a stack, of 1F1B.
    """
    if plan.parallel.schedule != "1f1b":
        return 0
    return int(load_stack(plan.resolved.setup.code).parallel.get("sends_in_turn", 0))


def _priced(one: Asked, plan: Plan, wires: Wires, rates: Rates) -> Exchange:
    group = _group(one, plan, wires)
    seconds = one.calls * exchange_s(one.kind, one.call_bytes, group, wires)
    tier = tier_of(group, wires)
    return Exchange(
        one.axis, one.kind, one.call_bytes, one.calls, one.ranks, one.when, one.per, one.overlaps,
        seconds, tier, one.place, one.beside_s, _copy_s(one, rates),
    )  # fmt: skip


def _copy_s(one: Asked, rates: Rates) -> Any:
    """Seconds of the copies around all calls: what they move, or launching them one by one."""
    if not one.copies:
        return 0.0
    moved = moved_s(rates, one.copied, one.copies)
    return one.calls * maximum(moved, one.copies * rates.launch_s)


def _group(one: Asked, plan: Plan, wires: Wires) -> Group:
    """Where the ranks of an exchange are."""
    layout = plan.parallel
    if one.axis == "norm":
        return group_of(one.ranks, 1, wires)
    if one.axis == "embedding":
        stride = ends_stride(stride_of("pp", layout), layout.pp, wires.domain)
        return group_of(2, stride, wires)
    return group_of(one.ranks, stride_of(one.axis, layout, _expert_stride(plan)), wires)


def _expert_stride(plan: Plan) -> int:
    """How far apart ranks with other experts are: an expert's own ranks lie between (or tp's)."""
    return expert_split(plan.parallel) if plan.kernels.megatron else plan.parallel.tp


def ranks_of(axis: str, plan: Plan) -> int:
    """How many ranks an axis of the ledger has."""
    layout = plan.parallel
    if axis == "etp":
        return expert_split(layout)
    if axis == "edp":
        return expert_copies(layout)
    return int(getattr(layout, axis))


def _of_layers(plan: Plan, rates: Rates, beside_products: bool) -> list[Asked]:
    """The exchanges of the ledger over a micro-batch; equal ones together."""
    structure, runs = plan.structure(plan.keeps_gradients)
    weights = multiplicity(runs)
    calls: dict[tuple[str, Collective], list[int]] = {}
    for block, op, collective, times in collectives_of(structure):
        counts = calls.setdefault((op, collective), [0, 0])
        counts[0] += times * weights[block]
        counts[1] += weights[block]
    compute, found = _Compute(plan, rates), []
    for (op, one), (count, layers) in calls.items():
        ranks = ranks_of(one.axis, plan)
        asked = Asked(
            one.axis, one.kind, one.size.value(plan.values), count, ranks, one.direction
        )  # fmt: skip
        if one.beside and (one.axis == "cp" or beside_products):
            seconds = compute.seconds(op, one) / (layers * _parts(one.beside, ranks))
            asked = asked._replace(overlaps=True, beside_s=seconds)
        found.append(asked)
    return found


def collectives_of(structure: Structure) -> list[tuple[int, str, Collective, int]]:
    """(block, op, exchange, how often) of a structure, found once."""
    known = structure.cache.get("collectives")
    if known is None:
        known = [
            (block, op, one, times)
            for (block, op), record in structure.records.items()
            for one, times in Counter(record.collectives).items()
        ]
        structure.cache["collectives"] = known
    return known  # type: ignore[return-value]


def _parts(beside: str, ranks: int) -> int:
    """Into how many parts the work is cut of which an exchange has one beside it."""
    share = beside.partition("/")[2]
    return {"": 1, "n": ranks, "2n": 2 * ranks}[share]


class _Compute:
    """Seconds of the products and the attention of a plan's ops, of a micro-batch."""

    def __init__(self, plan: Plan, rates: Rates) -> None:
        self.plan, self.priced = plan, Priced(rates, attention_code(plan, rates))
        self.rows: dict[str, list[Counted]] | None = None
        self.known: dict[tuple[str, str, str], Any] = {}

    def seconds(self, op: str, one: Collective) -> Any:
        """What an op's exchange runs beside, over all layers: its direction's work, or one part."""
        what = one.beside.partition("/")[0]
        key = (op, one.direction, what if what in ("dgrad", "wgrad") else "")
        if key not in self.known:
            self.known[key] = self._priced(*key)
        return self.known[key]

    def _priced(self, op: str, direction: str, part: str) -> Any:
        total = 0.0
        for work, times in self._of(op):
            if work.direction == direction and part in ("", work.part):
                total = total + times * work_s(work, self.priced, self.plan.values)[0]
        return total

    def _of(self, op: str) -> list[Counted]:
        if self.rows is None:
            self.rows = {}
            for counted in works_of(self.plan):
                if counted.work.kind != "moved":
                    self.rows.setdefault(counted.work.op, []).append(counted)
        return self.rows.get(op, [])


def _of_stages(plan: Plan, stack: Mapping[str, Any]) -> list[Asked]:
    """What a chunk sends a micro-batch: the stream onward, its gradient back; the tied embedding once.

    In parts, where a stack does that: tp ranks send one each, and gather what they receive, and their
    own output again for its backward.
    """
    layout = plan.parallel
    if layout.pp == 1:
        return []
    structure, _ = plan.structure(plan.keeps_gradients)
    handed, begins, ends = structure.handed, *plan.ends
    found, tp = [], layout.tp
    parts = tp if stack.get("sends_parts", False) else 1
    if not ends:
        size = structure.sizes[handed.stream].value(plan.values)
        found.append(Asked("pp", "send", size // parts, 1, 2, "forward"))
        if parts > 1:
            found.append(Asked("tp", "all_gather", size, 2, tp, "backward"))
    if not begins:
        size = handed.received.value(plan.values)
        found.append(Asked("pp", "send", size // parts, 1, 2, "backward"))
        if parts > 1:
            found.append(Asked("tp", "all_gather", size, 1, tp, "forward"))
    if plan.config.tie_word_embeddings and begins != ends:
        found.append(_tied(plan, structure))
    return found


def _tied(plan: Plan, structure: Structure) -> Asked:
    """First and last stage sum the gradient of the embedding that both hold (traffic.tied_embedding)."""
    names = ("embedding.weight", "lm_head.weight")
    leaf = next(one for one in structure.leaves if one.name in names)
    gradient = plan.strategy.gradient(leaf)
    width = {"fp32": 4}.get(gradient.dtype, 2)
    size = leaf.numel.value(plan.values) * width
    return Asked("embedding", "all_reduce", size, 1, 2, "step", per="step")


def _of_norm(plan: Plan) -> list[Asked]:
    """The norm of gradients, where clipping sums it over ranks that hold different parts."""
    layout: ParallelPlan = plan.parallel
    parts = layout.size if layout.sharded else layout.tp * layout.pp
    if not plan.resolved.setup.grad_clip or parts == 1:
        return []
    return [Asked("norm", "all_reduce", _NORM_BYTES, 1, parts, "step", per="step")]
