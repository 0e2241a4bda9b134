"""memcalc chart timeline MODEL: memory over one step, or `--record FILE`: a measured step beside it.

A record states its whole setup, so with --record no option of a setup goes; MODEL picks the last record
of that model from the file, without it the last one that has a measured step. Checked by:
cli/test_chart.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.cli.charts.priced import telling
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.variant_lists import SETUP_PANELS
from memcalc.cli.variants import case_of
from memcalc.errors import ConfigError
from memcalc.planning.cases import points


def found(arguments: Arguments) -> dict[str, Any]:
    """The timeline of the one setup, or of a record. Raises ConfigError."""
    from memcalc.planning.charts.timeline import timeline

    path = arguments.text("record")
    if path is not None:
        return _of_record(arguments, path)
    case = case_of(arguments)
    with telling(arguments) as tell:
        return timeline(points([case], tell)[0])


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The step of a record's setup with what its run measured. Raises ConfigError."""
    from memcalc.harness.record_head import planned
    from memcalc.planning.charts.timeline import timeline_beside

    return timeline_beside(planned(record["setup"]), record)


def _of_record(arguments: Arguments, path: str) -> dict[str, Any]:
    stated = [name for name in arguments.options if _of_setup(name)]
    if stated:
        raise ConfigError(
            f"--{stated[0]}: got --record too; rule: the record says the setup; MODEL picks one"
        )
    return of_record(_picked(path, arguments.positionals[1:]))


def _of_setup(name: str) -> bool:
    option = BY_NAME[name]
    return option.panel in SETUP_PANELS or name in ("setup", "model", "config")


def _picked(path: str, models: list[str]) -> Mapping[str, Any]:
    """The last record of a file that has a measured step, of this model where one is named."""
    from memcalc.harness.record_head import HEAD, check_record
    from memcalc.harness.records import read

    usable = [record for record in read(path) if _has_step(record)]
    for number, record in enumerate(usable, 1):
        check_record(record, f"--record: '{path}', run {number}", *HEAD, "device.torch")
    if models:
        usable = [r for r in usable if models[0] in _names(r)]
    if not usable:
        which = f" of {models[0]}" if models else ""
        raise ConfigError(
            f"--record: got '{path}' without a measured step{which}; rule: records of `memcalc "
            "measure` or `memcalc verify` in one process"
        )
    return usable[-1]


def _has_step(record: Mapping[str, Any]) -> bool:
    memory, setup = record.get("memory"), record.get("setup")
    if not isinstance(memory, Mapping) or not isinstance(setup, Mapping):
        return False
    return bool(memory.get("phases")) and "training" in setup and "world" not in record


def _names(record: Mapping[str, Any]) -> tuple[str, ...]:
    setup = record["setup"]
    return (str(setup.get("stated_model")), str(setup["model"]["name"]))
