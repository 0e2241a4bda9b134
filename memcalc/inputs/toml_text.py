"""TOML text from plain values: the standard library reads TOML but does not write it.

A list of tables becomes one array with a table a line, so that long lists of measured points stay
readable and two files can be compared line by line. Keys whose value is None are left out, for TOML
has no null. What `tomllib` reads back equals what was written, numbers to the last bit.
Checked by: unit/test_toml_text.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(table: Mapping[str, Any]) -> str:
    """A whole document: values first, then one `[table]` for each nested mapping, at any depth."""
    lines: list[str] = []
    _add_table(lines, table, ())
    return "\n".join(lines) + "\n"


def _add_table(lines: list[str], table: Mapping[str, Any], path: tuple[str, ...]) -> None:
    values = {k: v for k, v in table.items() if v is not None and not isinstance(v, Mapping)}
    nested = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    if path and (values or not nested):
        lines += [*([""] if lines else []), f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_entry(value)}" for key, value in values.items()]
    for key, value in nested.items():
        _add_table(lines, value, (*path, key))


def _entry(value: Any) -> str:
    """A value behind its key: a list of tables goes over several lines."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        return "\n".join(["[", *(f"  {toml_value(item)}," for item in value), "]"])
    return toml_value(value)


def toml_value(value: Any) -> str:
    """One value on one line: string, boolean, integer, finite float, list or inline table.

    Raises ValueError for anything else; a float that is not finite is an error of ours.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        items = (f"{_key(k)} = {toml_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + ", ".join(items) + " }"
    raise ValueError(f"no TOML for {value!r}")


def quoted(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else quoted(key)
