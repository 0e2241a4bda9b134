"""Words of a command line or of a shell script as a document; nothing is run.

Megatron-LM's arguments are `--name value ...`; torchtitan's `--section.name value`, switches as
`--section.name` and `--section.no-name`, and from 0.3 one word for recomputation. A script's plain
assignments (N=8, ARGS=( ... ), ARGS="...") are put in where they are used; what a shell would have to
compute stays `$NAME`. Checked by: unit/test_interop_texts.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.planning.interop.rows import Document

_ASSIGNED: Final = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?:\[@\])?\}|(\w+))")
_PROGRAM: Final = (
    "torchrun",
    "python",
    "python3",
    "srun",
    "exec",
    "bash",
    "export",
    "-m",
    ")",
    "(",
)
#: torchtitan's keys whose value is a list, written with commas.
_LISTS: Final = ("compile.components", "model.converters")
_SUBCOMMAND: Final = "activation-checkpoint"


def script_words(text: str) -> list[str]:
    """The words that are arguments, assignments put in. Raises ConfigError for quotes left open."""
    joined = re.sub(r"\\\s*\n", " ", text)
    try:
        words = shlex.split(joined, comments=True)
    except ValueError as error:
        raise ConfigError(f"arguments: not words of a shell ({error})") from None
    known: dict[str, str] = {}
    found: list[str] = []
    for word in (word.rstrip(";") for word in words):
        assigned = None if word.startswith("-") else _ASSIGNED.fullmatch(word)
        if assigned is None:
            found.append(_filled(word, known))
            continue
        name, value = assigned.groups()
        known[name] = _filled(value, known)
        if value.lstrip().startswith("--"):
            found += _split(known[name])
    return [word for word in found if not _is_program(word)]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _filled(word: str, known: dict[str, str]) -> str:
    """A word with the script's own plain values for $NAME; a list's name alone is left as it stands."""
    if "$((" in word or "$(" in word:
        return "$(...)"

    def value(match: re.Match[str]) -> str:
        found = known.get(match[1] or match[2], "$")
        return match[0] if found.startswith(("$", "(", "--")) else found

    return _VARIABLE.sub(value, word)[:10_000]


def _is_program(word: str) -> bool:
    return word in _PROGRAM or word.endswith((".py", ".sh")) or "[@]" in word or not word


def _options(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each --name with the words up to the next; --name=value is one of each."""
    name: str = ""
    values: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            if name:
                yield name, values
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
        elif name and not (word.startswith("$") and "ARGS" in word):
            values.append(word)
    if name:
        yield name, values


def megatron_document(text: str) -> Document:
    """Megatron-LM's arguments: true for a switch, a list for several values."""
    found: Document = {}
    for name, values in _options(script_words(text)):
        found[name] = True if not values else values[0] if len(values) == 1 else values
    ranks = [str(found.get(name, "")) for name in ("nproc_per_node", "nnodes")]
    ranks = [found.get(f"{name.replace('_', '-')}", got) for name, got in
             zip(("nproc_per_node", "nnodes"), ranks, strict=True)]  # fmt: skip
    if all(str(rank).isdecimal() and len(str(rank)) < 8 for rank in ranks):
        found["world"] = int(ranks[0]) * int(ranks[1])
    return found


def titan_document(text: str) -> Document:
    """torchtitan's flags: keys with underscores, --a.no-b as false."""
    words = script_words(text)
    found: Document = {}
    policies = [word.partition(":")[2] for word in words if word.startswith(f"{_SUBCOMMAND}:")]
    words = [word for word in words if not word.startswith(f"{_SUBCOMMAND}:")]
    for name, values in _options(words):
        section, dot, key = name.rpartition(".")
        key = key.replace("-", "_")
        off = bool(dot) and key.startswith("no_") and not values
        value: Any = not off if not values else values[0] if len(values) == 1 else values
        full = f"{section.replace('-', '_')}{dot}{key.removeprefix('no_') if off else key}"
        if full in _LISTS and isinstance(value, str):
            value = value.split(",")
        found[full] = value
    if policies:
        found[_SUBCOMMAND] = policies[-1]
    return found


def megatron_text(document: Document) -> str:
    """Megatron-LM's arguments, one a line."""
    lines = []
    for name, value in document.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        lines.append(" ".join([f"--{name}", *(shlex.quote(_plain(one)) for one in values)]))
    return "\n".join(lines) + "\n"


def titan_text(document: Document) -> str:
    """torchtitan's flags, one a line; the word for recomputation comes last, as tyro wants it."""
    lines, last = [], []
    for name, value in document.items():
        section, dot, key = name.rpartition(".")
        if name == _SUBCOMMAND:
            last.append(f"{name}:{value}")
        elif isinstance(value, bool):
            lines.append(f"--{section}{dot}{key if value else f'no-{key}'}")
        else:
            text = ",".join(value) if isinstance(value, list) else _plain(value)
            lines.append(f"--{name} {shlex.quote(text)}")
    return "\n".join([*lines, *last]) + "\n"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
