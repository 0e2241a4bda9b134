"""What a worked case is, and how its figures are computed: by memcalc's own command line, in this process.

A figure is read from the JSON of the command (or commands) that it names, by an expression over it, so that
what the page calls "the command that gives ours" is what gave it. In an expression the keys of the first
command's JSON are names, dots reach inside; `second` is the JSON of the second command; GB, GiB, MB and TB
are bytes.
Checked by: tests/unit/test_worked_page.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
#: A measured or computed figure, an interval, or a word as "fits".
Value = float | tuple[float, float] | str
_UNITS = {"GB": 10**9, "GiB": 1 << 30, "MB": 10**6, "TB": 10**12}
_TOOLS = {one.__name__: one for one in (sum, max, min, len, any, all, abs, enumerate, sorted, set)}
_TOOLS["ceil"] = math.ceil
_DIGITS = 4


class Figure(NamedTuple):
    """One figure of a case.

    asked: what is computed. theirs: the source's figure in `unit`; an interval where the source states
    one. commands: one or two command lines without "memcalc" and "--json". read: the expression for ours.
    allowed: ours may differ by this share of theirs; or the interval ours must lie in; None: shown beside
    theirs and not held to it. why: where a difference comes from; shown: an expression that proves it.
    """

    asked: str
    theirs: Value
    unit: str
    commands: tuple[str, ...]
    read: str
    allowed: float | tuple[float, float] | None = 0.0
    why: str = ""
    shown: str = ""


class Case(NamedTuple):
    """A worked case: its number, what it is about, keys of its sources, figures, other tests."""

    number: str
    about: str
    source: str
    figures: tuple[Figure, ...]
    tests: tuple[str, ...] = ()


class Found(NamedTuple):
    """A figure as it comes out: ours, and whether what is said to explain the difference is so."""

    figure: Figure
    ours: float | str
    proven: bool

    @property
    def difference(self) -> float | None:
        """Ours over theirs less one; of an interval the distance to its nearer end; None: not a number."""
        return difference(self.figure.theirs, self.ours)

    @property
    def allowed(self) -> bool:
        """Whether ours is as near as the case wants it."""
        theirs, ours, band = self.figure.theirs, self.ours, self.figure.allowed
        if isinstance(ours, str) or isinstance(theirs, str):
            return ours == theirs
        if band is None:
            return True
        if isinstance(band, tuple):
            return band[0] <= ours <= band[1]
        return abs(difference(theirs, ours) or 0.0) <= band + 1e-9


class Node(dict[str, Any]):
    """A JSON object whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def difference(theirs: Value, ours: float | str) -> float | None:
    """Ours over theirs less one; 0 inside an interval, else from its nearer end; None where one is a word."""
    if isinstance(theirs, str) or isinstance(ours, str):
        return None
    low, high = theirs if isinstance(theirs, tuple) else (theirs, theirs)
    nearest = min(max(ours, low), high)
    return 0.0 if ours == nearest else math.inf if nearest == 0 else ours / nearest - 1


@cache
def answer(command: str) -> Node:
    """The JSON of a command line, run once a process. Files are named from the root of the repository."""
    from memcalc.__main__ import main

    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in shlex.split(command)]
    said, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
        status = main([*words, "--json"])
    if status not in (0, 3):  # 3: it does not fit, which is a result
        raise RuntimeError(f"memcalc {command}: status {status}: {complaints.getvalue().strip()}")
    found: Node = json.loads(said.getvalue(), object_hook=Node)
    return found


def evaluate(expression: str, commands: tuple[str, ...]) -> Any:
    """An expression over what commands answer."""
    first, *more = (answer(command) for command in commands)
    names = {**_TOOLS, **_UNITS, **first}
    names |= {"second": more[0]} if more else {}
    return eval(expression, {"__builtins__": {}} | names)  # expressions of these tables only


def compute(figure: Figure) -> Found:
    """A figure, by its commands."""
    try:
        ours = evaluate(figure.read, figure.commands)
    except (AttributeError, TypeError, ArithmeticError) as error:
        raise RuntimeError(f"{figure.asked}: {figure.read}: {error!r}") from error
    if isinstance(ours, bool):
        ours = "yes" if ours else "no"
    proven = not figure.shown or evaluate(figure.shown, figure.commands) is True
    return Found(figure, ours if isinstance(ours, str) else float(ours), proven)


def written(value: Value) -> str:
    """A figure as the page has it: up to four digits, thousands with commas, words as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return " to ".join(map(written, value))
    if value == int(value) and abs(value) < 10**16:
        return f"{int(value):,}"
    places = max(0, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def as_value(text: str) -> float | str:
    """The reverse of `written`, of one value."""
    return float(text.replace(",", "")) if re.fullmatch(r"-?[\d,]+(\.\d+)?", text) else text
