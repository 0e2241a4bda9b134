"""A step's bytes as a series: the stretches of its phases, and few points that keep every phase's peak.

Both what an estimate says and what a run recorded are thinned by the same rule, so that two series that
are equal stay equal. Checked by: unit/test_series.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of one phase: points begin to end, the end not included."""

    phase: str
    begin: int
    end: int


def spans_of(phases: Sequence[str]) -> list[Span]:
    """The stretches of equal phases, in order."""
    found: list[Span] = []
    for at, phase in enumerate(phases):
        if found and found[-1].phase == phase:
            found[-1] = Span(phase, found[-1].begin, at + 1)
        else:
            found.append(Span(phase, at, at + 1))
    return found


def thinned(
    levels: Sequence[int], phases: Sequence[str], layers: Sequence[int], most: int
) -> list[int]:
    """The points to keep, in order: about `most`, more only where there are many spans.

    Every span keeps its first, its last and its highest point, the earliest of equal ones. Between them a
    layer is cut into as many equal pieces as its length is worth, or several layers are one piece, so that
    layers that are alike look alike; each piece keeps its highest and its lowest.
    """
    if len(levels) <= most:
        return list(range(len(levels)))
    kept: set[int] = set()
    spans = spans_of(phases)
    groups = [_groups(layers, span) for span in spans]
    merged = -(-2 * sum(map(len, groups)) // most)
    for span, parts in zip(spans, groups, strict=True):
        places = range(span.begin, span.end)
        kept |= {span.begin, span.end - 1, _highest(levels, places)}
        for first in range(0, len(parts), merged):
            part = range(parts[first].start, parts[min(first + merged, len(parts)) - 1].stop)
            pieces = max(1, round(most * len(part) / (2 * len(levels))))
            for number in range(pieces):
                begin, end = (len(part) * n // pieces for n in (number, number + 1))
                if begin < end:
                    piece = part[begin:end]
                    kept |= {_highest(levels, piece), min(piece, key=lambda at: (levels[at], at))}
    return sorted(kept)


def _highest(levels: Sequence[int], places: range) -> int:
    return max(places, key=lambda at: (levels[at], -at))


def _groups(layers: Sequence[int], span: Span) -> list[range]:
    """The stretches of a span that are of one layer; what is of none goes with the one before it."""
    begins = [span.begin]
    now = layers[span.begin]
    for at in range(span.begin + 1, span.end):
        if layers[at] not in (-1, now):
            begins.append(at)
            now = layers[at]
    return [range(*ends) for ends in zip(begins, [*begins[1:], span.end], strict=True)]
