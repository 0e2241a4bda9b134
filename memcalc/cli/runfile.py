"""Run files: the options of a command as TOML tables, written by --save and read by --config.

Tables are the help's panels; keys are option names. What the command line says wins over the file.
"""

from __future__ import annotations

from typing import Any

from memcalc.cli.option import SEVERAL
from memcalc.cli.options import BY_NAME, OPTIONS, PANELS, Option
from memcalc.cli.overrides import number
from memcalc.cli.parse import Arguments, Value, put
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import MAX_TOML_BYTES, check_shape, parse_toml, read_limited, user_path
from memcalc.inputs.toml_text import to_toml
from memcalc.units import parse_count, parse_decimal_count

_TABLES = {panel.lower(): panel for panel in PANELS if panel != "Output"}


def merge_run_file(arguments: Arguments, path: str) -> None:
    """Add a run file's options to those of the command line, which win. Raises ConfigError."""
    model, options = read_run_file(path, arguments.command)
    if model is not None and not arguments.positionals:
        arguments.positionals.append(model)
    stated = arguments.options
    first, last = options.get("set"), stated.get("set")
    merged = {**options, **stated}
    if isinstance(first, list) and isinstance(last, list):
        merged["set"] = [*first, *last]
    arguments.options = merged


def read_run_file(path: str, command: str = "estimate") -> tuple[str | None, dict[str, Value]]:
    """The model and the options a run file states. Raises ConfigError in one line."""
    data = read_limited(user_path(path), MAX_TOML_BYTES, "run file")
    raw = parse_toml(data, f"run file: '{path}' is not")
    model: str | None = None
    options: dict[str, Value] = {}
    for table, content in raw.items():
        if table == "memcalc":
            continue
        if table not in _TABLES:
            raise unknown(f"run file '{path}', table", table, _TABLES)
        check_shape(content, dict, f"run file '{path}', {table}")
        for key, value in content.items():
            if table == "model" and key == "name":
                model = _name(value)
                continue
            option = _option(path, _TABLES[table], key)
            if command in option.commands:
                _enter(options, option, value)
    return model, options


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"run file, model.name: got {value!r}; rule: a string")
    return value


def _option(path: str, panel: str, key: str) -> Option:
    option = BY_NAME.get(key)
    if option is None or option.panel != panel:
        valid = [o.name for o in OPTIONS if o.panel == panel]
        raise unknown(f"run file '{path}', {panel.lower()}", key, valid)
    return option


def _enter(options: dict[str, Value], option: Option, value: Any) -> None:
    where = f"run file, {option.name}"
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: got {value!r}; rule: true or false")
        if value:
            put(options, option, True)
    elif option.kind == "many":
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{where}: got {value!r}; rule: a list of strings")
        for entry in value:
            put(options, option, entry)
    elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{where}: got {value!r}; rule: a number or a string")
    else:
        put(options, option, str(value))


def save_run_file(arguments: Arguments, path: str) -> None:
    """Write the model and the options given, counts as plain numbers, lists as they were written.

    Raises ConfigError.
    """
    from memcalc import __version__
    from memcalc.output.files import write_text

    listed = arguments.command in SEVERAL
    tables: dict[str, Any] = {"memcalc": __version__}
    for table, panel in _TABLES.items():
        named = table == "model" and arguments.positionals
        entries: dict[str, Any] = {"name": arguments.positionals[0]} if named else {}
        entries |= {
            name: value if listed and _is_list(value) else _plain(BY_NAME[name], value)
            for name, value in arguments.options.items()
            if BY_NAME[name].panel == panel
        }
        if entries:
            tables[table] = entries
    write_text(path, to_toml(tables))


def _is_list(value: Value) -> bool:
    return isinstance(value, str) and ("," in value or ".." in value)


def _plain(option: Option, value: Value) -> Any:
    if not isinstance(value, str):
        return value
    if option.kind == "count":
        return parse_count(value, option.flag)
    if option.kind == "decimal":
        return parse_decimal_count(value, option.flag)
    return number(value, option.flag) if option.kind == "number" else value
