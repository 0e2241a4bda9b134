"""Ranks that split the batch: the engine beside PyTorch's own FSDP2 and DDP, phase by phase, event by event.

The engine's figures are those of the first rank, whose parts are never shorter than another's.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from memcalc.engine.events import step_events
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import CATEGORIES, StepMemory, step_memory
from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.plan import Plan
from memcalc.inputs.parallel import ParallelPlan, divisors
from tests.oracle.support.engine_events import engine_events
from tests.oracle.support.rank import RankTrace
from tests.oracle.support.rank_draw import RankSetup, draw_rank_setups

PHASES = ("forward", "loss", "backward", "optimizer")
_BEFORE_THE_BLOCKS = frozenset({"rope_tables", "causal_mask", "alibi", "relative_table"})
Row = tuple[int, str, str, tuple[int, ...]]  # bytes, phase, where, sorted bytes freed after it


def first_ranks(seed: int, n: int, kind: str) -> list[RankSetup]:
    """Drawn setups, each as its first rank sees it."""
    return [replace(one, rank=0) for one in draw_rank_setups(seed, n, kind)]


def drawn_fsdp2(seed: int, n: int) -> list[RankSetup]:
    """n first ranks under FSDP2: each world, reshard_after_forward, accumulation, recomputation and
    precision as often as the others of its kind; the rest is drawn."""
    rng = random.Random(seed)
    drawn = first_ranks(seed, n, "fsdp")
    worlds, resharded = _equally(rng, n, 2, 8, 64), _equally(rng, n, True, False, "fewer")
    accums, precisions = _equally(rng, n, 1, 3), _equally(rng, n, "bf16", "bf16-mixed", "fp32")
    recomputes = _equally(rng, n, "none", "full", "sac")
    setups = []
    for i, one in enumerate(drawn):
        fewer = rng.choice(divisors(worlds[i])[1:-1] or [2])
        reshard = fewer if resharded[i] == "fewer" else resharded[i]
        setup = replace(
            one.setup, grad_accum_steps=accums[i], precision=precisions[i],
            recompute=recomputes[i], recompute_layers=None,
        )  # fmt: skip
        layout = replace(one.layout, dp=worlds[i], reshard=reshard)
        setups.append(_small(replace(one, setup=setup, layout=layout)))
    return setups


def drawn_small(seed: int, n: int, kind: str) -> list[RankSetup]:
    """n first ranks of a kind, of few layers where there are many micro-batches: quick to run."""
    return [_small(one) for one in first_ranks(seed, n, kind)]


def _small(one: RankSetup) -> RankSetup:
    accum = one.setup.grad_accum_steps or 1
    layers = min(one.config.num_hidden_layers, 4 - accum)
    setup = one.setup
    if setup.recompute_layers is not None:
        setup = replace(setup, recompute_layers=min(setup.recompute_layers, layers))
    return replace(one, config=replace(one.config, num_hidden_layers=layers), setup=setup)


def _equally(rng: random.Random, n: int, *values: Any) -> list[Any]:
    """n of the values, each as often as the others, in any order."""
    many = [values[i % len(values)] for i in range(n)]
    rng.shuffle(many)
    return many


def engine_plan(setup: RankSetup, **changes: Any) -> Plan:
    """The engine's plan of a rank of this setup."""
    layout = setup.layout
    stated: dict[str, Any] = {
        "dp": layout.dp, "tp": layout.tp, "fsdp": layout.fsdp, "reshard": layout.reshard,
        "shard": layout.shard, "sp": layout.sp if layout.tp > 1 else None,
        "cp": layout.cp, "cp_method": layout.cp_method, "ep": layout.ep,
    }  # fmt: skip
    kernels = {"watched": True, **setup.kernels}
    plan = plan_of(setup.config, setup.setup, kernels, ParallelPlan(**stated | changes))
    if isinstance(plan.strategy, Ddp):
        plan = plan._replace(strategy=replace(plan.strategy, views=setup.bucket_views))
    return plan


def differences(plan: Plan, trace: RankTrace) -> dict[str, tuple[Any, Any]]:
    """What engine and PyTorch say differently: {name: (engine, PyTorch)}.

    Peaks and the phase of the highest, bytes saved, states, and categories at the peak.
    """
    ours, theirs = step_memory(plan), trace.bytes
    phase = theirs.peak_at.partition("/")[0]
    pairs: dict[str, tuple[Any, Any]] = {
        "peak": (ours.peak_bytes, theirs.peak),
        "peak in": (ours.peak.phase, phase),
        "saved": (ours.saved_bytes, theirs.saved),
        **{name: (ours.phases[name], theirs.phases[name]) for name in PHASES},
        **_states(ours, trace),
    }
    if ours.peak.phase == phase:
        for name in CATEGORIES:
            pairs[f"{name} at the peak"] = (ours.breakdown[name], theirs.breakdown.get(name, 0))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _states(ours: StepMemory, trace: RankTrace) -> dict[str, tuple[int, int]]:
    held, theirs = ours.states, trace.bytes.states
    return {
        "parameters": (held.parameter_bytes, theirs["parameters"]),
        "gradients": (held.gradient_bytes, theirs["gradients"]),
        "optimizer": (held.optimizer_bytes, theirs["optimizer"]),
        "master": (held.master_bytes, theirs["master"]),
    }


def engine_rows(plan: Plan) -> list[Row]:
    """Every allocation of the last micro-batch, blocks written out."""
    last = plan.strategy.micro_batches(plan)[-1]
    return event_rows(engine_events(plan, plan.structure(*last)))


def torch_rows(trace: RankTrace) -> list[Row]:
    """The same of PyTorch."""
    batches = [part for part in torch_parts(trace) if part and part[0][1] == "forward"]
    return batches[-1]


def engine_parts(plan: Plan) -> list[list[Row]]:
    """The whole step: allocations of each micro-batch that differs, and of the optimizer."""
    places = [(e, e.op if e.layer < 0 else f"{e.layer}/{e.op}") for e in step_events(plan)]
    return _parts(
        [(e.allocated_bytes, e.phase, where) for e, where in places if e.phase != "start"]
    )


def torch_parts(trace: RankTrace) -> list[list[Row]]:
    """The same of PyTorch, every micro-batch."""
    return _parts([(e.nbytes, e.phase, e.where) for e in trace.events])


def _parts(events: list[tuple[int, str, str]]) -> list[list[Row]]:
    """Rows of each micro-batch, of the optimizer and of what ends the step."""
    parts: list[list[tuple[int, str, str] | int]] = []
    before = ""
    for nbytes, phase, where in events:
        if phase != before and phase in ("forward", "optimizer", "zero_grad"):
            parts.append([])
        before = phase
        parts[-1].append((nbytes, phase, where) if nbytes > 0 else -nbytes)
    return [rows for part in parts if (rows := event_rows(part))]


def event_rows(events: list[tuple[int, str, str] | int]) -> list[Row]:
    """Allocations as (bytes, phase, where), frees as bytes, gathered by allocation."""
    rows: list[tuple[int, str, str, list[int]]] = []
    for event in events:
        if isinstance(event, tuple):
            rows.append((*event, []))
        elif rows:
            rows[-1][3].append(event)
    return [(*row[:3], tuple(sorted(row[3]))) for row in rows if row[2] not in _BEFORE_THE_BLOCKS]


def first_difference(plan: Plan, trace: RankTrace) -> str:
    """Where the events of the step differ first, from its first allocation on; "" if nowhere.

    The engine has each kind of micro-batch once: of many the second repeats. Frees after a
    micro-batch's last allocation are left out: there the reference lets go of the loss itself.
    """
    ours, theirs = engine_parts(plan), torch_parts(trace)
    accum = plan.resolved.grad_accum_steps
    kinds = len(plan.strategy.micro_batches(plan))
    repeated = theirs[2 : 2 + accum - kinds]
    if any(part != theirs[1] for part in repeated):
        return "PyTorch's micro-batches after the second are not like it"
    del theirs[2 : 2 + accum - kinds]
    for number, (mine, torchs) in enumerate(zip_longest(ours, theirs, fillvalue=[])):
        where = f"part {number} of {len(ours)}"
        for place, (one, other) in enumerate(zip(mine[:-1], torchs[:-1], strict=False)):
            if one != other:
                return f"{where}, allocation {place}: {one} {other}"
        if (len(mine), [row[:3] for row in mine[-1:]]) != (
            len(torchs),
            [row[:3] for row in torchs[-1:]],
        ):
            return f"{where}: {len(mine)} allocations, {len(torchs)}"
    return ""
