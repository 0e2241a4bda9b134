"""memcalc diff A B: two runs, what was set differently and how every memory number moved.

A and B are run files (--save), estimates in JSON (--json), or a quoted `MODEL --option ...`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.app import parse_arguments
from memcalc.cli.deliver import deliver
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.errors import ConfigError
from memcalc.inputs.files import (
    check_numbers,
    check_shape,
    parse_json_object,
    read_limited,
    shown,
    user_path,
)
from memcalc.units import gib, si

if TYPE_CHECKING:
    from memcalc.output.console import Page

_MAX_BYTES = 100 * 10**6
#: What of an estimate is shown, beside numbers and texts that are compared as they are.
_ESTIMATE: Final = {
    "model": {"name": str, "parameters": int}, "memory": dict, "setup": dict, "verdict": str,
    "time": {"executed_flops": int},
}  # fmt: skip
_ASIDE = ("profile_hashes", "dims", "kernels", "traits")


def run(arguments: Arguments) -> int:
    """Write the differences; always 0."""
    check_positionals(arguments)
    first, second = (_load(text) for text in arguments.positionals)
    settings = [
        {"field": name, "a": old, "b": new}
        for name, old, new in _moved(_settings(first), _settings(second))
    ]
    numbers = [
        {"field": name, "a": old, "b": new, "delta": _delta(old, new)}
        for name, old, new in _moved(_numbers(first), _numbers(second))
    ]
    times = [
        {"field": name, "a": old, "b": new, "delta": _delta(old, new)}
        for name, old, new in _moved(_times(first), _times(second))
    ]
    plain = {"schema": 1, "a": arguments.positionals[0], "b": arguments.positionals[1],
             "setup": settings, "memory": numbers, "time": times}  # fmt: skip

    def page(sheet: Page) -> None:
        sheet.line(f"A: {plain['a']}")
        sheet.line(f"B: {plain['b']}")
        sheet.line()
        if not settings and not numbers and not times:
            sheet.line("nothing moved")
        if settings:
            sheet.table(("Setting", "A", "B"), [_word_row(one) for one in settings])
        if sized := [one for one in numbers if one["delta"] is not None]:
            sheet.table(("Number", ">A", ">B", ">change"), [_row(one) for one in sized])
        if words := [one for one in numbers if one["delta"] is None]:
            sheet.table(("Result", "A", "B"), [_word_row(one) for one in words])
        if times:
            sheet.table(("Time", ">A", ">B", ">change"), [_time_row(n) for n in times])

    used = _delta(*(_numbers(run).get("device_used_bytes") for run in (first, second)))
    line = f"{len(settings)} settings and {len(numbers)} numbers moved; driver-used {used:+}" if (
        isinstance(used, int)) else f"{len(settings)} settings and {len(numbers)} numbers moved"  # fmt: skip
    deliver(arguments, lambda: plain, page, line)
    return 0


def _load(text: str) -> dict[str, Any]:
    """The estimate in JSON form that a file or a quoted command stands for."""
    lowered = text.lower()
    if lowered.endswith(".json") and not text.startswith("-") and " --" not in text:
        found = _read(text)
        if found is not None:
            return found
    if lowered.endswith(".toml") and " --" not in text and _is_run_file(text):
        return _estimate(["--config", text])
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"diff: got {text!r}; rule: closed quotes ({error})") from None
    return _estimate(words)


def _read(path: str) -> dict[str, Any] | None:
    """An estimate from a JSON file; None for a config.json, which is a model."""
    found = parse_json_object(read_limited(user_path(path), _MAX_BYTES, "diff"), path, "diff")
    if "model_type" in found:
        return None
    if not all(isinstance(found.get(part), dict) for part in ("memory", "setup", "model")):
        raise ConfigError(f"diff: '{path}' is no estimate; rule: what `estimate --json` writes")
    if found.get("schema") != 1:
        raise ConfigError(f"diff: '{path}' has schema {shown(found.get('schema'))}; rule: 1")
    check_shape(found, _ESTIMATE, f"diff: '{path}'")
    check_numbers(found, f"diff: '{path}'")
    return found


def _is_run_file(path: str) -> bool:
    """Whether a TOML file has a run file's tables, rather than a model's."""
    from memcalc.inputs.profiles import read_toml

    return "config" not in read_toml(user_path(path))


def _estimate(words: list[str]) -> dict[str, Any]:
    from memcalc.cli.deliver import estimate_dict
    from memcalc.cli.estimate import estimated
    from memcalc.cli.request import request_of

    arguments = parse_arguments("estimate", words)
    request = request_of(arguments)
    device = request.device(arguments)
    result = estimated(request, device)
    return estimate_dict(request, result)


def _settings(run: Mapping[str, Any]) -> dict[str, Any]:
    setup = {k: v for k, v in run["setup"].items() if k not in _ASIDE}
    kernels = {"kernels": run["setup"].get("kernels", {})}
    return dict(_flat({"name": run["model"].get("name"), **setup, **kernels}))


def _numbers(run: Mapping[str, Any]) -> dict[str, Any]:
    memory = {k: v for k, v in run["memory"].items() if k != "stages"}
    return {
        **dict(_flat(memory)),
        "verdict": run.get("verdict"),
        "parameters": run["model"].get("parameters"),
        "executed_flops": (run.get("time") or {}).get("executed_flops"),
    }


def _times(run: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, rates and shares of a run's time; its ops and exchanges are left out."""
    time = run.get("time") or {}
    return {k: v for k, v in time.items() if not isinstance(v, list) and "flops" not in k}


def _time_row(moved: dict[str, Any]) -> tuple[str, str, str, str]:
    from memcalc.output.time_text import duration

    name, old, new, delta = (moved[key] for key in ("field", "a", "b", "delta"))
    if delta is None:
        return name, _word(old), _word(new), ""
    share = f"{delta / old:+.1%}" if old else ""
    if name.endswith(("_per_s", "_per_gpu")):
        return name, f"{old:,.4g}", f"{new:,.4g}", share
    if name.endswith("_s"):
        return name, duration(old), duration(new), share
    return name, f"{old:.1%}", f"{new:.1%}", f"{100 * delta:+.1f} points"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _moved(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _delta(old: Any, new: Any) -> Any:
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (old, new))
    return new - old if numeric else None


def _row(moved: dict[str, Any]) -> tuple[str, str, str, str]:
    """A number that moved, short enough that nothing of it is cut at 80 columns."""
    name, old, new, delta = (moved[key] for key in ("field", "a", "b", "delta"))
    sign = "+" if delta >= 0 else "-"
    said = si if name in ("parameters", "executed_flops") else gib
    return name, said(old), said(new), f"{sign}{said(abs(delta))}"


def _word_row(moved: dict[str, Any]) -> tuple[str, str, str]:
    return str(moved["field"]), _word(moved["a"]), _word(moved["b"])


def _word(value: Any) -> str:
    return "-" if value is None else str(value)
