"""A table of another tool's keys: each row says what a key is in memcalc, in both directions.

One table a tool is read to write its settings, to read them, and to print the documentation, so that the
three cannot drift apart. A document is flat here: {"zero_optimization.stage": 3}. A row's `write` gives
the value for a setup, or None where the key is left out; its `read` puts what a value means into a
Reading. Checked by: unit/test_interop_tables.py, property/test_interop.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.planning.interop.facts import Facts

Document = dict[str, Any]

#: What was made of a key, in the order in which it is said.
READ: Final = "read"
AUTO: Final = "auto"
NEAREST: Final = "nearest"
UNPRICED: Final = "not modelled"
NO_EFFECT: Final = "no effect"
UNKNOWN: Final = "not known"
MEANINGS: Final = {
    READ: "stated in the estimate's setup",
    AUTO: "left to the Hugging Face Trainer: the rule that was taken",
    NEAREST: "memcalc has not this but something close, which was taken",
    UNPRICED: "changes memory or time, and is not in the estimate",
    NO_EFFECT: "changes neither memory nor time",
    UNKNOWN: "no key that memcalc knows of this tool",
}


class Remark(NamedTuple):
    """What was made of one key, and why."""

    key: str
    kind: str
    why: str = ""


@dataclass(slots=True)
class Reading:
    """What a document says, as memcalc's fields, with what was made of every key.

    config: the model, where it is known before reading. stated: fields the user states beside the
    document, which win. seen: values that other keys are needed to understand.
    """

    config: ModelConfig | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def say(self, key: str, kind: str, why: str = "") -> None:
        """Remark on a key; the last remark on it counts."""
        self.remarks = [one for one in self.remarks if one.key != key]
        self.remarks.append(Remark(key, kind, why))

    def any(self, name: str, default: Any) -> Any:
        """A field as the user or the document states it."""
        return self.stated.get(name, self.fields.get(name, default))


Write = Callable[[Facts], Any]
Read = Callable[[Any, Reading], None]


class Row(NamedTuple):
    """One key of a tool.

    kind: count, number, switch, text, or any. options: memcalc's options it stands for; says: how
    values correspond, for the documentation.
    """

    key: str
    kind: str
    options: str
    write: Write
    read: Read
    says: str = ""


def same(key: str, kind: str, name: str, when: Write | None = None, says: str = "") -> Row:
    """A key that holds a field's own value; written where `when` is true."""

    def write(facts: Facts) -> Any:
        return facts[name] if when is None or when(facts) else None

    def read(value: Any, reading: Reading) -> None:
        reading.fields[name] = value

    return Row(key, kind, f"--{option_word(name)}", write, read, says)


def words(key: str, name: str, meaning: Mapping[Any, Any], kind: str = "text") -> Row:
    """A key whose values are names for a field's values: {memcalc's: the tool's}; others are refused."""
    back = {value: ours for ours, value in meaning.items()}

    def write(facts: Facts) -> Any:
        return meaning.get(facts[name])

    def read(value: Any, reading: Reading) -> None:
        if value in back:
            reading.fields[name] = back[value]
        else:
            valid = ", ".join(map(str, back))
            reading.say(key, UNPRICED, f"got {value!r}; of its values {valid} are known")

    said = ", ".join(f"`{theirs}` is {ours}" for ours, theirs in meaning.items())
    return Row(key, kind, f"--{option_word(name)}", write, read, said)


def size(key: str, name: str, when: Write, kind: str = "count") -> Row:
    """A key that holds an entry of the stack's `[parallel]` table (`--set stack.NAME=`)."""

    def write(facts: Facts) -> Any:
        return facts.stack.parallel.get(name) if when(facts) else None

    def read(value: Any, reading: Reading) -> None:
        reading.fields[f"stack.{name}"] = value

    return Row(key, kind, f"--set stack.{name}", write, read)


def fixed(key: str, value: Any, when: Write, says: str) -> Row:
    """A key the tool wants to have, whose value decides nothing of an estimate."""

    def write(facts: Facts) -> Any:
        return value if when(facts) else None

    def read(got: Any, reading: Reading) -> None:
        reading.say(key, NO_EFFECT)

    return Row(key, "any", "", write, read, says)


def seen(key: str, kind: str, options: str, write: Write, says: str = "") -> Row:
    """A key that is understood together with others: `finish` of the tool looks at it."""

    def read(value: Any, reading: Reading) -> None:
        reading.seen[key] = value

    return Row(key, kind, options, write, read, says)


def always(facts: Facts) -> bool:
    """For rows that are written for every setup."""
    return True


def option_word(name: str) -> str:
    """A field's option as it is typed, but for those whose name differs."""
    return _OPTIONS.get(name, name.replace("_", "-"))


#: Fields whose option has another name than the field.
_OPTIONS: Final = {
    "seq_len": "seq", "micro_batch_size": "micro-batch", "grad_accum_steps": "grad-accum",
    "num_layers": "layers", "set_to_none": "no-set-to-none", "recompute_layers": "recompute",
}  # fmt: skip


def typed(tool: str, key: str, kind: str, value: Any) -> Any:
    """A document's value as a row's kind. Raises ConfigError in one line.

    Counts may be written as floats (5e8) and as text, switches as text, as DeepSpeed and YAML users do.
    """
    where = f"{tool}, {key}"
    if kind == "any":
        return value
    if kind == "switch":
        return _switch(where, value)
    if kind == "text":
        if isinstance(value, (dict, list)) or value is None:
            raise ConfigError(f"{where}: got {_short(value)}; rule: a word")
        return str(value)
    number = _number(where, value)
    if kind == "number":
        return number
    if number != int(number) or abs(number) > 1e15:
        raise ConfigError(f"{where}: got {_short(value)}; rule: a whole number")
    return int(number)


def _switch(where: str, value: Any) -> bool:
    text = str(value).lower()
    if isinstance(value, (dict, list)) or text not in ("true", "false"):
        raise ConfigError(f"{where}: got {_short(value)}; rule: true or false")
    return text == "true"


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{where}: got {_short(value)}; rule: a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: got {_short(value)}; rule: a number") from None
    if not math.isfinite(number):
        raise ConfigError(f"{where}: got {_short(value)}; rule: a finite number")
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
