"""explain: the ledger as rows, one an op, with every total's formula in symbols and in numbers.

A row stands for all layers of one kind. Its sizes are those of an interior layer; totals are sums over
every traced block times the layers it stands for, so they equal the estimate's figures exactly.
Checked by: unit/test_explain.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memcalc.engine.encoders import check_encoder
from memcalc.engine.explanation import FLOP_KINDS, Amount, Explanation, KeptTensor, Row, Total
from memcalc.engine.holdings import holdings, state_bytes
from memcalc.engine.kernels import BlockKind
from memcalc.engine.make_plan import plan_of
from memcalc.engine.microprogram import micro_programs
from memcalc.engine.parallel.layouts.layout_table import layout_table
from memcalc.engine.parallel.strategy import Whole
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import ZERO, Size
from memcalc.engine.states import multiplicity
from memcalc.engine.structure import Run, Structure
from memcalc.engine.tensors import Shape
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup


@dataclass(slots=True)
class _Group:
    """The traced blocks of one kind, by how many layers each stands for."""

    name: str
    layers: int
    sample: int
    blocks: dict[int, int] = field(default_factory=dict)


def explain(
    model: ModelConfig | str,
    setup: TrainingSetup | None = None,
    kernels: Mapping[str, Any] | None = None,
    parallel: ParallelPlan | None = None,
) -> Explanation:
    """The ledger of a model in a setup, as `memcalc explain` prints it.

    parallel: how several GPUs divide it; the ledger is then one rank's. A layout of tensors other than
    1D has no timeline: its closed forms stand in `layouts`, and the ledger is the whole model's.
    """
    config = load_model(model) if isinstance(model, str) else model
    setup = setup or TrainingSetup()
    if parallel is not None and parallel.tp_layout != "1d":
        plan = plan_of(config, setup, kernels)
        check_encoder(plan.resolved, plan.kernels, parallel)
        return replace(explain_plan(plan), layouts=layout_table(plan, parallel))
    return explain_plan(plan_of(config, setup, kernels, parallel))


def explain_plan(plan: Plan) -> Explanation:
    """The ledger of a plan: rows in program order, the totals, and what the rank holds of each part."""
    held, kept = holdings(plan), state_bytes(plan)
    plan = plan._replace(strategy=Whole())  # gathers and reductions are no operators of the decoder
    structure, runs = plan.structure(plan.keeps_gradients)
    groups = _groups(structure, runs)
    owners = _owners(structure)
    rows: list[Row] = []
    done: set[tuple[str, str]] = set()
    for block, op in structure.records:
        group = next(g for g in groups if block in g.blocks)
        if (group.name, op) in done:
            continue
        done.add((group.name, op))
        rows.append(_row(structure, plan, group, op, owners))
    totals = _totals(rows, plan.values)
    notes = plan.notes
    if plan.parallel.pp > 1:
        notes += (f"blocks of all {plan.parallel.pp} stages; estimate says what each stage holds",)
    name, values = plan.config.name, dict(plan.values)
    return Explanation(name, tuple(rows), totals, values, notes, held, kept)


def _groups(structure: Structure, runs: tuple[Run, ...]) -> list[_Group]:
    weights = multiplicity(runs)
    by_kind: dict[BlockKind, _Group] = {}
    block = 0
    for run in runs:
        for repetition in range(run.traced):
            for kind in run.pattern:
                group = by_kind.setdefault(kind, _Group(_kind_name(kind), 0, block))
                group.blocks[block] = weights[block]
                group.layers += weights[block]
                if repetition == 1:
                    group.sample = block
                block += 1
    return [_Group("once", 1, -1, {-1: 1}), *by_kind.values()]


def _kind_name(kind: BlockKind) -> str:
    words = ["sparse" if kind.sparse else "dense"]
    if kind.stack != "decoder":
        words = ["encoder" if kind.stack == "encoder" else "decoder"]
    if kind.first:
        words.append("first")
    if kind.attention != "full":
        words.append(kind.attention)
    if kind.recompute != "none":
        words.append(f"recompute {kind.recompute}")
    return ", ".join(words)


def _owners(structure: Structure) -> dict[tuple[int, str], list[KeptSize]]:
    """Each kept storage under one op: the first that keeps it, else the one that made it."""
    owner: dict[int, tuple[tuple[int, str], str]] = {}
    for key, record in structure.records.items():
        for storage, kept in record.kept.items():
            if storage in owner:
                (place, need) = owner[storage]
                owner[storage] = (place, need if need == kept.needed_by else "both")
            else:
                owner[storage] = (key, kept.needed_by)
    result: dict[tuple[int, str], list[KeptSize]] = {}
    for storage in sorted(structure.kept):
        label = structure.labels[structure.labels_of[storage]]
        place, need = owner.get(storage, ((label.block, label.op), "run"))
        kept_size = KeptSize(structure.sizes[storage], structure.names[storage], need)
        result.setdefault(place, []).append(kept_size)
    return result


@dataclass(frozen=True, slots=True)
class KeptSize:
    """A kept storage before numbers are put in."""

    size: Size
    made_by: str
    needed_by: str


def _amount(sample: Size, everywhere: list[tuple[Size, int]], values: Mapping[str, int]) -> Amount:
    total = sum(size.value(values) * times for size, times in everywhere)
    return Amount(sample, sample.value(values), total)


def _row(
    structure: Structure,
    plan: Plan,
    group: _Group,
    op: str,
    owners: dict[tuple[int, str], list[KeptSize]],
) -> Row:
    values = plan.values
    records = {b: structure.records[b, op] for b in group.blocks if (b, op) in structure.records}
    sample_block = group.sample if group.sample in records else next(iter(records))
    sample = records[sample_block]

    def amount(pick: Mapping[int, Size]) -> Amount:
        everywhere = [(size, group.blocks[block]) for block, size in pick.items()]
        return _amount(pick[sample_block], everywhere, values)

    kept = owners.get((sample_block, op), [])
    saved = {b: _sum(k.size for k in owners.get((b, op), [])) for b in records}
    return Row(
        op=op,
        part=sample.part,
        kind=group.name,
        layers=group.layers,
        input_shape=_shape(sample.input_shape),
        output_shape=_shape(sample.output_shape),
        weights={name: str(size) for name, size in sample.params.items()},
        params=amount({b: r.num_params for b, r in records.items()}),
        saved=amount(saved),
        kept=tuple(
            KeptTensor(str(k.size), k.size.value(values), k.made_by, k.needed_by) for k in kept
        ),
        flops={
            k: amount({b: r.flops.get(k, ZERO) for b, r in records.items()}) for k in FLOP_KINDS
        },
        traffic={
            d: amount({b: r.traffic.get(d, ZERO) for b, r in records.items()})
            for d in ("forward", "backward")
        },
        gemms=tuple((str(m), str(n), str(k)) for m, n, k in sample.gemms),
        programs={
            d: micro_programs(structure).get((sample_block, op, d), ())
            for d in ("forward", "backward")
        },
    )


def _sum(sizes: Any) -> Size:
    total = ZERO
    for size in sizes:
        total = total + size
    return total


def _shape(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "-"


def _totals(rows: list[Row], values: Mapping[str, int]) -> tuple[Total, ...]:
    picks: list[tuple[str, str, Any]] = [
        ("parameters", "elements", lambda r: r.params),
        ("saved for backward", "bytes", lambda r: r.saved),
        *((f"{k} FLOPs", "FLOP", lambda r, k=k: r.flops[k]) for k in FLOP_KINDS),
        *((f"{d} traffic", "bytes", lambda r, d=d: r.traffic[d]) for d in ("forward", "backward")),
    ]
    return tuple(_total(name, unit, rows, pick) for name, unit, pick in picks)


def _total(name: str, unit: str, rows: list[Row], pick: Any) -> Total:
    """layers x (sum over a kind's ops) + what happens once."""
    symbols: dict[tuple[str, int], Size] = {}
    numbers: dict[tuple[str, int], int] = {}
    for row in rows:
        amount = pick(row)
        key = (row.kind, row.layers)
        symbols[key] = symbols.get(key, ZERO) + amount.size
        numbers[key] = numbers.get(key, 0) + amount.value
    formula = " + ".join(
        str(size) if kind == "once" else f"{layers} x ({size})"
        for (kind, layers), size in symbols.items()
        if size is not ZERO
    )
    told = " + ".join(
        f"{layers} x {value:,}" if kind != "once" else f"{value:,}"
        for (kind, layers), value in numbers.items()
        if value
    )
    total = sum(pick(row).total for row in rows)
    shown = sum(layers * value for (_, layers), value in numbers.items())
    if shown != total:
        told += f" {'+' if total > shown else '-'} {abs(total - shown):,} (first and last layer)"
    return Total(name, unit, formula or "0", told or "0", total)
