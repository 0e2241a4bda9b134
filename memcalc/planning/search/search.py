"""search: every setup of the spaces asked for, ranked, with the front, near misses and why the winner won.

Spaces: megatron_space.py, by arrays; scalar_space.py, one estimate after the other. What is shown is priced
once more by `verify.py`. Rows are in order of speed: with one number of GPUs, tokens/s, time and cost rank
alike. Checked by: unit/test_search.py, property/test_search_grid.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from memcalc.errors import ConfigError
from memcalc.planning.search.collect import Collector, Kept, front
from memcalc.planning.search.megatron_search import Megatron
from memcalc.planning.search.megatron_space import megatron_space
from memcalc.planning.search.scalar_search import SCALAR_STACKS, Scalar
from memcalc.planning.search.stability import stability
from memcalc.planning.search.verify import PARTS, CaseOf, verified
from memcalc.planning.search.wishes import Wishes

Tell = Callable[[str, int, int], None]
#: Setups kept of each kind while the space goes by, and looked at again for each row shown.
_KEPT: Final = 400
_TRIES: Final = 3
#: Near misses shown, and points of the front.
_MISSES: Final = 3
_FRONT: Final = 24


class Space(Protocol):
    """A stack's space: `run` prices it, `options` says what a kept setup is."""

    stack: str
    refused: dict[str, int]
    considered: int

    def run(self, into: Collector, tell: Tell | None) -> None:
        """Price every setup."""

    def options(self, kept: Kept) -> dict[str, str | bool]:
        """A kept setup's options of `memcalc estimate`."""

    def stages(self, kept: Kept) -> tuple[int, ...]:
        """Stages of a kept setup that may need most."""


def spaces_of(wishes: Wishes) -> list[Space]:
    """The spaces of the stacks asked for. Raises ConfigError where no stack can run the model."""
    found: list[Space] = []
    for stack in wishes.stacks:
        if stack == "megatron":
            found.append(Megatron(wishes, megatron_space(wishes)))
        elif stack in SCALAR_STACKS:
            found.append(Scalar(wishes, stack))
        else:
            valid = ", ".join(("megatron", *SCALAR_STACKS))
            raise ConfigError(f"stack: got {stack!r}; rule: a stack with a space; valid: {valid}")
    return found


def search(wishes: Wishes, case_of: CaseOf, tell: Tell | None = None) -> dict[str, Any]:
    """The result of a search: see docs/search.md for its keys. An interruption keeps what was found."""
    began, interrupted = time.perf_counter(), False
    usable = wishes.device.usable_bytes
    scale = float(usable) * 1.25 if usable else 2.0**42
    into = Collector(max(_KEPT, 2 * wishes.top), scale, -(usable or 0) * wishes.headroom)
    spaces = spaces_of(wishes)
    try:
        for space in spaces:
            space.run(into, tell)
    except KeyboardInterrupt:
        interrupted = True
    priced_s = time.perf_counter() - began
    best, refused = _best(wishes, into.fastest, case_of)
    misses = _misses(wishes, into, case_of, best)
    return {
        "count": sum(space.considered for space in spaces),
        "valid": into.valid,
        "may_fit": into.may_fit,
        "elapsed_s": time.perf_counter() - began,
        "priced_s": priced_s,
        "interrupted": interrupted,
        "gpus": wishes.gpus,
        "global_batch": wishes.batch,
        "stacks": list(wishes.stacks),
        "rank": wishes.rank,
        "min_headroom": wishes.headroom,
        "best": best,
        "refused_by_replay": refused,
        "pareto": _front(into, wishes),
        "near_misses": misses,
        "why": _why(best),
        "stability": stability(best),
        "refused": _refused(spaces),
    }


def _best(
    wishes: Wishes, fastest: Sequence[Kept], case_of: CaseOf
) -> tuple[list[dict[str, Any]], int]:
    """The fastest that fit once their caches are replayed, and how many of the faster ones did not."""
    found: list[dict[str, Any]] = []
    failed = 0
    for kept in fastest[: wishes.top * _TRIES]:
        row = _row(wishes, kept, case_of)
        if row["fits"] is False or not _has_headroom(row, wishes.headroom):
            failed += 1
            continue
        found.append({"place": len(found) + 1, **row})
        if len(found) == wishes.top:
            break
    return found, failed


def _row(wishes: Wishes, kept: Kept, case_of: CaseOf) -> dict[str, Any]:
    space: Space = kept.what[0][0]
    options = space.options(kept)
    return {
        "options": options,
        **verified(case_of(options), space.stages(kept), wishes.price).row,
    }


def _has_headroom(row: dict[str, Any], share: float) -> bool:
    if not share or row["headroom_bytes"] is None:
        return True
    return bool(row["headroom_bytes"] >= share * row["usable_bytes"])


def _front(into: Collector, wishes: Wishes) -> list[dict[str, Any]]:
    """The front of memory and speed, least memory first: what may fit, cached blocks not counted."""
    points = front(into.front)
    step = max(1, -(-len(points) // _FRONT))
    chosen = sorted({*range(0, len(points), step), *range(max(0, len(points) - 1), len(points))})
    tokens = wishes.batch * (wishes.setup.seq_len or 0)
    return [
        {
            "options": one.what[0][0].options(one),
            "step_s": one.step_s,
            "tokens_per_s": tokens / one.step_s,
            "allocated_bytes": int(one.allocated),
        }
        for one in (points[place] for place in chosen)
    ]


def _misses(
    wishes: Wishes, into: Collector, case_of: CaseOf, best: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What does not fit and would be faster, and what it lacks; where nothing fits, what lacks least."""
    chosen = into.misses if best else into.nearest
    found = []
    for kept in chosen[:_MISSES]:
        if best and kept.step_s >= best[0]["step_s"]:
            break
        row = _row(wishes, kept, case_of)
        lacks = max(int(kept.lacking), -(row["headroom_bytes"] or 0))
        faster = best[0]["step_s"] / row["step_s"] - 1 if best else None
        found.append({**row, "lacking_bytes": lacks, "faster": faster})
    return found


def _why(best: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The winner's parts beside those of the fastest that differs in more than how states are held."""
    if len(best) < 2:
        return None
    winner = best[0]
    other = next((row for row in best[1:] if _layout(row) != _layout(winner)), best[1])
    parts = {
        name: {
            "winner_s": winner["parts"][name],
            "other_s": other["parts"][name],
            "saved_s": (other["parts"][name] or 0.0) - (winner["parts"][name] or 0.0),
        }
        for name in PARTS
    }
    most = max(parts, key=lambda name: parts[name]["saved_s"])
    return {"place": other["place"], "parts": parts, "most": most,
            "differs": _differs(winner["options"], other["options"])}  # fmt: skip


_STATES: Final = frozenset({"zero", "shard", "overlap-grad-reduce", "overlap-param-gather"})


def _layout(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(item for item in row["options"].items() if item[0] not in _STATES)


def _differs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Options in which two setups differ: [the first's, the second's]."""
    names = dict.fromkeys((*one, *other))
    return {
        name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)
    }


def _refused(spaces: Sequence[Space]) -> list[dict[str, Any]]:
    """Why parts of the space were left out, most frequent first."""
    sums = {}
    for space in spaces:
        for reason, count in space.refused.items():
            sums[reason] = sums.get(reason, 0) + count
    return [
        {"reason": reason, "count": count}
        for reason, count in sorted(sums.items(), key=lambda item: -item[1])
    ]
