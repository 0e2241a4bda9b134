"""Files that anyone may have written: sizes, nesting and numbers are limited before anything is used.

Everything that is read from a path a user names comes through here. Devices, pipes and directories are
refused before they are opened, large files before they are read, deep nesting before anything walks it.
Raises ConfigError in one line. Checked by: unit/test_malicious.py, unit/test_bad_configs.py.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from memcalc.errors import ConfigError

#: Bytes of a profile or a run file.
MAX_TOML_BYTES: Final = 1 << 20
#: Levels of tables and lists inside each other; no known file has more than 8.
MAX_DEPTH: Final = 32
#: No figure is near it; NaN and infinities are not below it, and larger integers do not fit a float.
LARGEST: Final = 1e30


def user_path(text: str) -> Path:
    """The path that a user writes, `~` as in a shell; an unknown `~name` stays, and is not found later."""
    return Path(os.path.expanduser(text))


def names_toml(text: object) -> bool:
    """Whether a name given for a profile is a path to a file of the user's own."""
    return isinstance(text, str) and text.lower().endswith(".toml")


def stamp(path: Path) -> tuple[int, int]:
    """(time of the last change, size) of a file; of none that is not there, as reading will say."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return found.st_mtime_ns, found.st_size


def read_limited(path: Path, limit: int, what: str = "config") -> bytes:
    """The bytes of a regular file that has any, refused by its size before reading."""
    data = read_bounded(path, limit, what)
    if not data.strip():
        raise ConfigError(f"{what}: '{path}' is empty; rule: one JSON object or TOML document")
    return data


def read_bounded(path: Path, limit: int, what: str, kind: str = "file") -> bytes:
    """The bytes of a regular file, refused by its size before reading; kind: what it should be."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{what}: '{path}' is not a regular file; rule: a {kind}")
        size = path.stat().st_size
        if size > limit:
            raise ConfigError(f"{what}: '{path}' has {size} bytes; rule: at most {limit}")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{what}: cannot read '{path}': {error.strerror or error}") from None
    except ValueError:  # a NUL inside the name
        raise ConfigError(f"{what}: got {str(path)!r}; rule: a file name") from None
    if len(data) > limit:  # the file grew, or its size is not stated (/proc)
        raise ConfigError(f"{what}: '{path}' has more than {limit} bytes; rule: at most {limit}")
    return data


def parse_json_object(data: bytes, what: str, head: str = "config") -> dict[str, Any]:
    """One JSON object of finite numbers, nested no deeper than MAX_DEPTH; `head` begins an error."""

    def refuse(text: str) -> NoReturn:
        raise ConfigError(f"{head}: '{what}' holds {text[:40]}; rule: finite numbers only")

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            refuse(text)
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ConfigError(f"{head}: '{what}' has the key {shown(twice)} twice; rule: once")
        return found

    try:
        value = json.loads(
            data.decode("utf-8-sig"), parse_constant=refuse, parse_float=finite,
            object_pairs_hook=once,
        )  # fmt: skip
    except ConfigError:
        raise
    except UnicodeDecodeError:
        raise ConfigError(f"{head}: '{what}' is not UTF-8 text; rule: JSON in UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{head}: '{what}' is nested too deeply; rule: a flat object") from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        reason = str(error).split("\n")[0].split(";")[0]
        raise ConfigError(f"{head}: '{what}' is not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
        got = kind.get(type(value), "a number")
        raise ConfigError(f"{head}: '{what}' holds {got}; rule: a JSON object")
    if is_deeper(value):
        raise ConfigError(f"{head}: '{what}' is nested too deeply; rule: a flat object")
    return value


def parse_toml(data: bytes, head: str) -> dict[str, Any]:
    """One TOML document; `head` begins the error, as "run file: 'a.toml' is not"."""
    try:
        found = tomllib.loads(data.decode("utf-8-sig"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        detail = " ".join(str(error).split())[:120]
        raise ConfigError(f"{head} valid TOML ({detail})") from None
    if is_deeper(found):
        raise ConfigError(f"{head} valid TOML (nested more than {MAX_DEPTH} deep)")
    return found


def is_deeper(tree: Any, most: int = MAX_DEPTH) -> bool:
    """Whether tables and lists lie inside each other at more than `most` levels; without recursion."""
    level = [tree]
    for _ in range(most + 1):
        level = [i for one in level for i in _entries(one) if isinstance(i, (Mapping, list)) and i]
        if not level:
            return False
    return True


Shape = type | tuple[type, ...] | Mapping[str, Any] | list[Any]
_WORDS: Final = {dict: "a table", list: "a list", str: "a text", int: "a whole number",
                 float: "a number", bool: "true or false"}  # fmt: skip
#: What a number may be where a file states one.
NUMBER: Final = (int, float)


def check_shape(value: Any, shape: Shape, where: str) -> None:
    """Raise ConfigError unless a tree is of this shape, as far as the shape says.

    shape: a type or several, [shape of each entry], or {key: shape}. Other keys are free; a key may be
    missing or None unless it is written with a "!". Numbers are finite and below 1e30. `where` names the
    file and the place.
    """
    if value is None:
        return
    kinds = _kinds(shape)
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if wrong or (isinstance(value, NUMBER) and not abs(value) < LARGEST):
        raise ConfigError(f"{where}: got {shown(value)}; rule: {_rule(kinds)}")
    if isinstance(shape, Mapping):
        for said, inner in shape.items():
            key = said.removesuffix("!")
            if key != said and value.get(key) is None:
                raise ConfigError(f"{where}.{key}: got nothing; rule: {_rule(_kinds(inner))}")
            check_shape(value.get(key), inner, f"{where}.{key}")
    elif isinstance(shape, list):
        for number, entry in enumerate(value):
            if entry is None:
                raise ConfigError(f"{where}[{number}]: got nothing; rule: a value")
            check_shape(entry, shape[0], f"{where}[{number}]")


def _rule(kinds: tuple[type, ...]) -> str:
    if kinds == NUMBER:
        return "a finite number"
    return " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)


def _kinds(shape: Shape) -> tuple[type, ...]:
    if isinstance(shape, Mapping):
        return (dict,)
    if isinstance(shape, list):
        return (list,)
    return shape if isinstance(shape, tuple) else (shape,)


def check_numbers(tree: Any, where: str) -> None:
    """Raise ConfigError where a number anywhere in a tree is not finite or above what a float is exact to."""
    level = [tree]
    while level:
        level = [item for one in level for item in _entries(one)]
        for item in level:
            if isinstance(item, NUMBER) and not abs(item) < LARGEST:
                raise ConfigError(f"{where}: got {shown(item)}; rule: finite numbers below 1e30")


def _entries(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return list(tree.values())
    return list(tree) if isinstance(tree, (list, tuple)) else []


def shown(value: object) -> str:
    """The repr of a value, shortened so that an error stays one readable line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of about 2^{value.bit_length()}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
