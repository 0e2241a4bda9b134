"""SVG made smaller: no prologue, coordinates to a tenth of a point, no points that change nothing.

A point is 1/72 inch, so a tenth is a quarter of a pixel on a screen of twice the density. Outlines of
letters keep their own units. Checked by: cli/test_report.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

Spot = tuple[float, float]
_PATH = re.compile(r' d="([^"]*)"')
_ATTRIBUTES = re.compile(r'( (?:x|y|x1|x2|y1|y2)=")(-?\d+\.\d+)"')
_STROKES = re.compile(r"[MLz]|-?[\d.]+")
_AROUND_LETTERS = re.compile(r"\s*([A-Za-z])\s*")
#: Names that matplotlib makes from unrounded floats: of clip rectangles, markers and hatches.
_NAME = re.compile(r'(?<=[#"])[phm][0-9a-f]{10}(?=[")])')
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def smaller(svg: str) -> str:
    """The same picture in fewer bytes."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r">\s+<", "><", _METADATA.sub("", svg))
    names: dict[str, str] = {}
    svg = _NAME.sub(lambda found: names.setdefault(found[0], f"n{len(names)}"), svg)
    svg = _ATTRIBUTES.sub(lambda found: f'{found[1]}{_short(float(found[2]))}"', svg)
    return _PATH.sub(lambda found: f' d="{_path(found[1])}"', svg)


def _path(strokes: str) -> str:
    """Straight lines in page units are rewritten; curves, which letters are made of, are only packed."""
    if "." not in strokes or set(re.findall("[A-Za-z]", strokes)) - set("MLz"):
        return _AROUND_LETTERS.sub(r"\1", strokes).strip()
    return "".join(_line(spots) + "z" * closed for spots, closed in _lines(strokes))


def _lines(strokes: str) -> Iterator[tuple[list[Spot], bool]]:
    """The polylines of a path, rounded, each with whether it is closed."""
    words = _STROKES.findall(strokes)
    spots: list[Spot] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "z":
            yield spots, True
            spots, at = [], at + 1
            continue
        if word == "M" and spots:
            yield spots, False
            spots = []
        spots.append((round(float(words[at + 1]), 1), round(float(words[at + 2]), 1)))
        at += 3
    if spots:
        yield spots, False


def _line(spots: list[Spot]) -> str:
    """M, then H and V for level and upright strokes; repeats and stops along a straight one left out."""
    kept = spots[:1]
    for spot in spots[1:]:
        if spot == kept[-1]:
            continue
        if len(kept) > 1 and _goes_on(kept[-2], kept[-1], spot):
            kept[-1] = spot
        else:
            kept.append(spot)
    told = [f"M{_short(kept[0][0])} {_short(kept[0][1])}"]
    for (x0, y0), (x, y) in pairwise(kept):
        if y == y0:
            told.append(f"H{_short(x)}")
        elif x == x0:
            told.append(f"V{_short(y)}")
        else:
            told.append(f"L{_short(x)} {_short(y)}")
    return "".join(told) if len(told) > 1 else f"{told[0]}L{told[0][1:]}"


def _goes_on(first: Spot, middle: Spot, last: Spot) -> bool:
    """Whether the middle lies on the way along an axis."""
    level = first[1] == middle[1] == last[1]
    upright = first[0] == middle[0] == last[0]
    axis = 0 if level else 1
    return (level or upright) and (middle[axis] - first[axis]) * (last[axis] - middle[axis]) > 0


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
