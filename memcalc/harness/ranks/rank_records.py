"""The records of a run's ranks: completed, stamped as one batch, and read as one result.

A rank that ended without a word (killed, machine lost) gets a record that says so and where it last was.
Every record of a run has "rank", "world" (degrees, backend, hosts) and "batch" (an id and how many).
Nothing here needs torch. Checked by: harness/test_rank_records.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.errors import MemcalcError
from memcalc.harness.ranks.layout import Layout

#: An error of a rank that another rank's end stopped, and of one that ended without a word.
STOPPED: Final = "Stopped"
LOST: Final = "Lost"
_HEAD: Final = (
    "schema", "kind", "memcalc", "git", "date", "setup", "options", "device", "world",
)  # fmt: skip


#: Of a record's world, what is this rank's alone.
_PLACE: Final = ("pp_rank", "dp_rank", "tp_rank", "cp_rank", "blocks")


class RankBytes(NamedTuple):
    """Bytes of one rank's tensors over one step, as the storage tracker saw them; None: not tracked.

    peak: the most at once. saved: what forward left for backward (in a pipeline: the forwards before
    the first backward), parameters gathered from other ranks left out, which are `gathered`.
    parameters, gradients, optimizer: this rank's part of each; master copies count to the optimizer.
    """

    rank: int
    peak: int | None
    phases: dict[str, int]
    saved: int | None
    gathered: int | None
    parameters: int | None
    gradients: int | None
    optimizer: int | None


def rank_bytes(records: Iterable[Mapping[str, Any]]) -> list[RankBytes]:
    """What an estimate of each rank is held against, in the order of the ranks.

    records: those of one run (`runs_of` finds them in a file). The states are those held between
    steps and at the optimizer; DDP's buckets are its gradients.
    """
    found = []
    for record in sorted(records, key=lambda r: int(r["rank"])):
        memory = record.get("memory") or {}
        states = memory.get("states") or {}
        held = [states.get(name) for name in ("optimizer", "master")]
        found.append(
            RankBytes(
                rank=record["rank"],
                peak=memory.get("peak_requested_bytes"),
                phases=dict(memory.get("phases") or {}),
                saved=memory.get("saved_for_backward_bytes"),
                gathered=memory.get("gathered_bytes"),
                parameters=states.get("parameters"),
                gradients=states.get("gradients"),
                optimizer=sum(held) if None not in held else None,  # type: ignore[arg-type]
            )
        )
    return found


def runs_of(records: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The records of several ranks in a file, run by run; runs in one process are left out."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if "batch" in record:
            runs.setdefault(record["batch"]["id"], []).append(record)
    return list(runs.values())


def completed(
    posted: Sequence[dict[str, Any] | None], stages: Sequence[str | None], batch: str
) -> list[dict[str, Any]]:
    """A record of every rank, stamped as one batch.

    posted: None of ranks that sent none; stages: where each rank last was. Raises MemcalcError when
    no rank had begun.
    """
    begun = [record if record and "world" in record else None for record in posted]
    known = next((record for record in begun if record is not None), None)
    if known is None:
        raise MemcalcError("ranks: got the end of one before any had begun to measure")
    records = []
    for rank, record in enumerate(begun):
        whole = _lost(known, rank, stages[rank]) if record is None else record
        stamp = {"rank": rank, "batch": {"id": batch, "ranks": len(posted)}}
        records.append({**whole, **stamp})
    return records


def _lost(known: Mapping[str, Any], rank: int, stage: str | None) -> dict[str, Any]:
    """What can be said of a rank that ended without a word."""
    head = {name: known.get(name) for name in _HEAD}
    world = dict(known["world"])
    degrees = {name: world[name] for name in ("dp", "tp", "pp", "cp", "fsdp") if name in world}
    place = Layout(**degrees).place(rank)
    world |= {f"{name}_rank": number for name, number in place._asdict().items()}
    world["blocks"] = None
    head["world"] = world
    return {
        **head,
        "status": "failed",
        "error": {
            "type": LOST,
            "message": "ended without a record, as a killed process does",
            "stage": stage or "start",
            "phase": None,
            "where": None,
        },
        "time": {}, "memory": {}, "loss": None, "loss_fell": None, "notes": [],
    }  # fmt: skip


def cause(records: Sequence[Mapping[str, Any]], first: int | None) -> Mapping[str, Any] | None:
    """The record that says why a run did not end well; None when all ranks are ok.

    A lost rank comes before those that felt its loss; of the others the first to say it failed, and
    one that another rank's end stopped only where there is nothing else.
    """
    bad = [record for record in records if record["status"] != "ok"]
    if not bad:
        return None
    kinds = [(record.get("error") or {}).get("type") for record in bad]
    if LOST in kinds:
        return bad[kinds.index(LOST)]
    own = [r for r, kind in zip(bad, kinds, strict=True) if kind != STOPPED] or bad
    named = [record for record in own if record["rank"] == first]
    return (named or own)[0]


def merged(records: Sequence[Mapping[str, Any]], first: int | None) -> dict[str, Any]:
    """One result of all ranks, as JSON: rank 0's head and times, every rank's record under "ranks".

    "memory" is that of the rank with the highest peak, its number beside it.
    """
    why, head = cause(records, first), records[0]
    peaks = [(record.get("memory") or {}).get("peak_requested_bytes") or 0 for record in records]
    worst = max(range(len(peaks)), key=peaks.__getitem__)
    whole = ("schema", "kind", "memcalc", "git", "date", "setup", "options", "device", "world",
             "time", "loss", "loss_fell", "utilisation", "notes")  # fmt: skip
    world = {name: value for name, value in head["world"].items() if name not in _PLACE}
    return {
        **{name: head.get(name) for name in whole},
        "world": world,
        "status": "ok" if why is None else why["status"],
        "error": None if why is None else {**(why.get("error") or {}), "rank": why["rank"]},
        "memory": {**(records[worst].get("memory") or {}), "rank": worst},
        "ranks": list(records),
    }
