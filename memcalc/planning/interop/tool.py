"""A tool: its table of keys, what cannot be said in it, and the two directions through the table.

Checked by: unit/test_interop_tables.py, unit/test_interop_deepspeed.py, property/test_interop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError, nearest
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import (
    AUTO,
    NO_EFFECT,
    READ,
    UNKNOWN,
    UNPRICED,
    Document,
    Reading,
    Row,
    typed,
)

#: Keys a document may have; the longest of these tools' own have some hundred.
MOST_KEYS: Final = 5000


def _nothing(reading: Reading) -> None:
    """For tools whose keys each mean something alone."""


def _anything(facts: Facts) -> None:
    """For tools that can launch every layout their stacks have."""


def _empty(document: Document) -> Mapping[str, Any]:
    """For tools whose absent keys mean what memcalc's absent options mean."""
    return {}


def _as_is(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values


class Tool(NamedTuple):
    """Another tool's settings.

    rows: the table. finish: what several keys mean together, after the rows were read. check: raises
    for setups the tool cannot launch. base: what
    absent keys are in the tool. canonical: one form for setups that are the same in it.
    no_effect: keys, or beginnings of keys that end in a dot, which change neither memory nor time;
    unpriced: keys that do and are not estimated, with what they do, unless switched off or harmless.
    auto: keys that the Hugging Face Trainer fills in, each with what it does and says. stacks: whose
    training code the tool can run, its own first. reasons: fields that its settings cannot state, and
    where they are set instead. elsewhere: fields of which this is always said. known: versions that
    were read.
    """

    name: str
    rows: tuple[Row, ...]
    stacks: tuple[str, ...]
    known: str
    finish: Callable[[Reading], None] = _nothing
    check: Callable[[Facts], None] = _anything
    base: Callable[[Document], Mapping[str, Any]] = _empty
    no_effect: tuple[str, ...] = ()
    unpriced: Mapping[str, str] = {}  # noqa: RUF012  # never changed
    harmless: Mapping[str, tuple[Any, ...]] = {}  # noqa: RUF012
    auto: Mapping[str, Callable[[Reading], str]] = {}  # noqa: RUF012
    reasons: Mapping[str, str] = {}  # noqa: RUF012
    elsewhere: tuple[str, ...] = ()
    canonical: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_is


def written(tool: Tool, facts: Facts) -> Document:
    """The tool's document for a setup: every row whose value is not None, in the table's order."""
    found = {row.key: row.write(facts) for row in tool.rows}
    return {key: value for key, value in found.items() if value is not None}


def read(tool: Tool, document: Document, reading: Reading) -> Reading:
    """What a document says. Raises ConfigError for values of the wrong type, or no known key at all."""
    if len(document) > MOST_KEYS:
        raise ConfigError(f"{tool.name}: got {len(document)} keys; rule: at most {MOST_KEYS}")
    rows = {row.key: row for row in tool.rows}
    if not any(key in rows for key in document):
        got = ", ".join(list(document)[:3]) or "nothing"
        raise ConfigError(
            f"{tool.name}: got {got[:80]}, none of its settings; rule: --format names the tool, one of "
            "deepspeed, accelerate, torchtitan, megatron"
        )
    for key, value in document.items():
        row = rows.get(key)
        if row is None:
            _unmapped(tool, key, value, reading)
        elif isinstance(value, str) and value.startswith("$"):
            reading.say(key, UNKNOWN, f"{value[:40]} has no value here")
        elif value == "auto" and key in tool.auto:
            reading.say(key, AUTO, tool.auto[key](reading))
        elif value == "auto" and tool.auto:
            reading.say(key, AUTO, "the Trainer's own argument; memcalc's default taken")
        else:
            reading.say(key, READ)
            row.read(typed(tool.name, key, row.kind, value), reading)
    for key, value in tool.base(document).items():
        if key not in document and key in rows:
            rows[key].read(value, reading)
    tool.finish(reading)
    return reading


def _unmapped(tool: Tool, key: str, value: Any, reading: Reading) -> None:
    """Say of a key without a row why nothing was read from it."""
    why = next((why for known, why in tool.unpriced.items() if _covers(known, key)), None)
    if why is not None:
        idle = not value or str(value).lower() in _OFF or value in tool.harmless.get(key, ())
        reading.say(key, NO_EFFECT if idle else UNPRICED, "" if idle else why)
    elif any(_covers(known, key) for known in tool.no_effect):
        reading.say(key, NO_EFFECT)
    else:
        close = nearest(key, [row.key for row in tool.rows], 1)
        reading.say(key, UNKNOWN, f"nearest: {close[0]}" if close else "")


#: Texts of a switch that is off.
_OFF: Final = ("false", "none", "no")


def _covers(known: str, key: str) -> bool:
    """Whether a key is the known one, or begins with one that ends in a dot or a star."""
    begins = known.endswith((".", "*")) and key.startswith(known.removesuffix("*"))
    return key == known or begins
