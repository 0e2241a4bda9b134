"""Documents as text: JSON, YAML, TOML and words of a command line, read safely and written plainly.

A document is flat: {"a.b": 1} is {"a": {"b": 1}} in a file. What is read may come from anywhere: sizes
and depth are limited, YAML is read by PyYAML's safe loader without aliases, shell text is never run.
Checked by: unit/test_interop_texts.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module, util
from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.inputs.files import parse_json_object, parse_toml
from memcalc.inputs.toml_text import to_toml
from memcalc.planning.interop.rows import Document

#: Bytes of a settings file.
MOST_BYTES: Final = 1 << 20
_DEEPEST: Final = 12
_PLAIN_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_YAML_WORDS: Final = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def flat(tables: Mapping[str, Any], what: str) -> Document:
    """A nested document with dotted keys; lists stay values. Raises ConfigError where it is too deep."""
    found: Document = {}
    _flatten(tables, "", found, what)
    return found


def _flatten(table: Mapping[Any, Any], above: str, found: Document, what: str) -> None:
    if above.count(".") > _DEEPEST:
        raise ConfigError(f"{what}: got tables {above.count('.')} deep; rule: at most {_DEEPEST}")
    for key, value in table.items():
        if not isinstance(key, str):
            raise ConfigError(f"{what}: got the key {key!r}; rule: keys are words")
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            _flatten(value, f"{name}.", found, what)
        else:
            found[name] = value


def nested(document: Document) -> dict[str, Any]:
    """The document with a table for every dot, in the order of its keys."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        *tables, name = key.split(".")
        inner = found
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[name] = value
    return found


def read_json(data: bytes, what: str) -> Document:
    """One JSON object of finite numbers."""
    try:
        return flat(parse_json_object(data, what), what)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("config: ")) from None


def write_json(document: Document) -> str:
    """The document as DeepSpeed takes it."""
    return json.dumps(nested(document), indent=2, allow_nan=False) + "\n"


def read_toml(data: bytes, what: str) -> Document:
    """One TOML document."""
    return flat(parse_toml(data, f"{what}: not"), what)


def write_toml(document: Document) -> str:
    """The document as torchtitan up to 0.2 takes it."""
    return to_toml(nested(document))


def read_yaml(data: bytes, what: str) -> Document:
    """One YAML mapping, by PyYAML's safe loader. Raises ConfigError where PyYAML is not installed."""
    if util.find_spec("yaml") is None:
        raise ConfigError("YAML: PyYAML is not installed; rule: pip install pyyaml")
    yaml = import_module("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]
        """The safe loader without aliases, which can make a small file a huge tree."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

    found = _parsed(lambda: yaml.load(data.decode("utf-8"), Loader), what, "YAML", yaml.YAMLError)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{what}: got no mapping; rule: key: value lines")
    return flat(found, what)


def write_yaml(document: Document) -> str:
    """The document as YAML of two levels, sorted as accelerate itself writes it."""
    lines: list[str] = []
    for key, value in sorted(nested(document).items()):
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
            lines += [f"  {name}: {_scalar(inner)}" for name, inner in sorted(value.items())]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN_WORD.fullmatch(value) and value.lower() not in _YAML_WORDS
        return value if plain else json.dumps(value)
    return json.dumps(value, allow_nan=False)


def _parsed(load: Callable[[], Any], what: str, language: str, *more: Any) -> Any:
    """What a parser returns; whatever it raises is one line."""
    try:
        return load()
    except (ValueError, RecursionError, OverflowError, *more) as error:
        detail = " ".join(str(error).split())[:120]
        raise ConfigError(f"{what}: not valid {language} ({detail})") from None
