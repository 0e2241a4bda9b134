"""search: every setup of the spaces asked for, ranked, with the front, near misses and why the winner won.

Spaces: megatron_space.py, by arrays; scalar_space.py, one estimate after the other. What is shown is priced
once more by `verify.py`. Rows are in order of speed: with one number of GPUs, tokens/s, time and cost rank
alike. Checked by: unit/test_search.py, property/test_search_grid.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from memcalc.collector import paused
from memcalc.errors import ConfigError
from memcalc.planning.search.collect import Collector, Kept
from memcalc.planning.search.empty import check_there, not_there, why_empty
from memcalc.planning.search.megatron_search import Megatron
from memcalc.planning.search.megatron_space import megatron_space
from memcalc.planning.search.scalar_search import SCALAR_STACKS, Scalar
from memcalc.planning.search.stability import stability
from memcalc.planning.search.verify import PARTS, REPLAYED, Asked, CaseOf, verified
from memcalc.planning.search.wishes import Wishes

Tell = Callable[[str, int, int], None]
#: Setups kept while the space goes by.
_KEPT: Final = 400
#: Layers of ranks that are replayed: of 126 layers and three kinds of rank two setups, of 16 all ten.
_MOST_REPLAYED: Final = 480
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
    with paused():
        return _searched(wishes, case_of, tell)


def _searched(wishes: Wishes, case_of: CaseOf, tell: Tell | None) -> dict[str, Any]:
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
    if not into.valid and not interrupted:
        check_there(wishes)
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
        "empty": None if into.valid or interrupted else why_empty(wishes),
        "not_in_space": list(not_there(wishes)),
        "why": _why(best),
        "stability": stability(best),
        "refused": _refused(spaces),
    }


def _best(
    wishes: Wishes, fastest: Sequence[Kept], case_of: CaseOf
) -> tuple[list[dict[str, Any]], int]:
    """The fastest that fit once their caches are replayed, and how many faster layouts did not.

    Of setups that differ only in how states are held the fastest alone; none that needs more bytes than
    one of them that did not fit. The first is always replayed, others while that is soon done; the rest
    reserve by the largest ratio that a replay of these setups found.
    """
    found: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    failed: dict[tuple[Any, ...], float] = {}  # layout -> fewest bytes that did not fit
    layers, replayed = wishes.config.num_hidden_layers, 0
    for kept in fastest:
        layout = _layout(_options(kept))
        if layout in seen or kept.allocated >= failed.get(layout, float("inf")):
            continue
        ratio = _ratio(found) if found and replayed >= _MOST_REPLAYED else None
        row = _row(wishes, kept, case_of, (ratio, True))
        ranks = len(_space(kept).stages(kept)) if row else 1
        replayed += layers * ranks if ratio is None else 0
        if row is None or not _has_headroom(row, wishes.headroom):
            failed[layout] = kept.allocated
            continue
        seen.add(layout)
        found.append({"place": len(found) + 1, **row})
        if len(found) == wishes.top:
            break
    return found, len(failed)


def _ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Reserved over allocated bytes, the most of the rows that were replayed; 1 of none."""
    known = [row for row in rows if row["reserved"] == REPLAYED and row["peak_reserved_bytes"]]
    ratios = [row["peak_reserved_bytes"] / row["peak_allocated_bytes"] for row in known]
    return max(ratios, default=1.0)


def _space(kept: Kept) -> Space:
    found: Space = kept.what[0][0]
    return found


def _options(kept: Kept) -> dict[str, str | bool]:
    return _space(kept).options(kept)


def _row(
    wishes: Wishes, kept: Kept, case_of: CaseOf, how: tuple[float | None, bool]
) -> dict[str, Any] | None:
    """A kept setup's row. how: the ratio of reserved bytes (None: replayed), whether it must fit."""
    options = _options(kept)
    asked = Asked(_space(kept).stages(kept), wishes.price, *how)
    found = verified(case_of(options), asked)
    return None if found is None else {"options": options, **found}


def _has_headroom(row: dict[str, Any], share: float) -> bool:
    if not share or row["headroom_bytes"] is None:
        return True
    return bool(row["headroom_bytes"] >= share * row["usable_bytes"])


def _front(into: Collector, wishes: Wishes) -> list[dict[str, Any]]:
    """The front of memory and speed, least memory first: what may fit, cached blocks not counted."""
    points = into.front.points()
    step = max(1, -(-len(points) // _FRONT))
    chosen = sorted({*range(0, len(points), step), *range(max(0, len(points) - 1), len(points))})
    tokens = wishes.batch * (wishes.setup.seq_len or 0)
    return [
        {
            "options": _options(one),
            "step_s": one.step_s,
            "tokens_per_s": tokens / one.step_s,
            "allocated_bytes": int(one.allocated),
        }
        for one in (points[place] for place in chosen)
    ]


def _misses(
    wishes: Wishes, into: Collector, case_of: CaseOf, best: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What lacks least of all that would be faster; where nothing fits, of everything."""
    least = best[0]["step_s"] if best else float("inf")
    chosen: dict[tuple[Any, ...], Kept] = {}
    for kept in into.misses.points():
        if kept.step_s < least and len(chosen) < _MISSES:
            chosen.setdefault(_layout(_options(kept)), kept)
    found = []
    for kept in chosen.values():
        row = _row(wishes, kept, case_of, (_ratio(best), False))
        if row is not None:
            lacks = max(int(kept.lacking), -(row["headroom_bytes"] or 0))
            faster = best[0]["step_s"] / row["step_s"] - 1 if best else None
            found.append({**row, "lacking_bytes": lacks, "faster": faster})
    return sorted(found, key=lambda row: row["lacking_bytes"])


def _why(best: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The winner's parts beside the runner-up's."""
    if len(best) < 2:
        return None
    winner = best[0]
    other = best[1]
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


def _layout(options: dict[str, str | bool]) -> tuple[Any, ...]:
    """A setup without how its states are held."""
    return tuple(item for item in options.items() if item[0] not in _STATES)


def _differs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Options in which two setups differ: [the first's, the second's]."""
    names = dict.fromkeys((*one, *other))
    return {
        name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)
    }


def _refused(spaces: Sequence[Space]) -> list[dict[str, Any]]:
    """Why parts of the space were left out, most frequent first."""
    sums: dict[str, int] = {}
    for space in spaces:
        for reason, count in space.refused.items():
            sums[reason] = sums.get(reason, 0) + count
    return [
        {"reason": reason, "count": count}
        for reason, count in sorted(sums.items(), key=lambda item: -item[1])
    ]
