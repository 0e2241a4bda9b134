"""What the commands that run on a device share: torch is there, how to measure, where records go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, typed
from memcalc.errors import ConfigError
from memcalc.inputs.files import user_path

if TYPE_CHECKING:
    from memcalc.harness.measure import MeasureOptions
    from memcalc.output.console import Page


EXIT = {"ok": 0, "failed": 1, "oom": 3, "interrupted": 130}
#: A measurement outside what it must be: an estimate's band, or a loss that does not fall.
OUTSIDE = 4


def measure_options(arguments: Arguments) -> MeasureOptions:
    """--device, --steps, --warmup, --threads, --reference and --profile as the harness takes them."""
    from memcalc.harness.measure import MeasureOptions

    given: dict[str, Any] = {
        name: typed(BY_NAME[name], arguments.options[name])
        for name in ("device", "steps", "warmup", "threads")
        if name in arguments.options
    }
    if "reference" in arguments.options:
        given["reference_tokens_per_s"] = typed(
            BY_NAME["reference"], arguments.options["reference"]
        )
    return MeasureOptions(**given, profile=arguments.has("profile"), debug=arguments.has("debug"))


def records_file(arguments: Arguments) -> Path | None:
    """Where records go, proven writable; None with --no-record. Raises ConfigError."""
    from memcalc.harness.records import prepare, user_records

    stated = arguments.text("records")
    if arguments.has("no-record"):
        if stated is not None:
            raise ConfigError(f"--no-record: got --records {stated} too; rule: one of them")
        return None
    path = user_records() if stated is None else user_path(stated)
    prepare(path)
    return path


def keep(record: Mapping[str, Any], path: Path | None) -> str | None:
    """Append a record where records go; says so in a line."""
    if path is None:
        return None
    from memcalc.harness.records import append

    append(path, record)
    return f"record appended to {path}"


def deliver_record(
    arguments: Arguments,
    request: Request,
    record: Mapping[str, Any],
    said: str | None,
    write: Callable[[Page, Mapping[str, Any], Mapping[str, Any]], None],
    line: str,
) -> None:
    """Write a record where it was asked for; below a page its notes, and `said`: where it was kept.

    write: puts the record on a page, and what --set changed. line: what --quiet shows.
    """
    from memcalc.output.files import put_notes

    def page(sheet: Page) -> None:
        write(sheet, record, dict(request.stated))

    def plain() -> dict[str, Any]:
        from memcalc.harness.records import finite

        found: dict[str, Any] = finite(record)
        return found

    deliver(arguments, plain, page, line)
    out = arguments.text("out") or ""
    if not (arguments.has("quiet") or arguments.wants_json or out.lower().endswith(".json")):
        put_notes([*record["setup"]["notes"], *record["notes"]])
        put_notes([said] if said else [])


def put_trouble(record: dict[str, Any]) -> None:
    """Say on stderr what is wrong with a run, if anything is."""
    from memcalc.output.files import put_notes

    line = trouble(record)
    put_notes([] if line is None else [line], "error")


def trouble(record: dict[str, Any]) -> str | None:
    """What is wrong with a run, in a line; None when nothing is."""
    error, status = record.get("error") or {}, record["status"]
    if status == "interrupted":
        steps = len(record["time"].get("step_s", []))
        return f"interrupted in {error['stage']}, {steps} timed steps kept"
    if status == "oom":
        from memcalc.units import gib

        asked = error.get("asked_bytes")
        wanted = "" if asked is None else f" asking for {gib(asked)}"
        phase = "" if error["phase"] is None else f", phase {error['phase']}"
        return f"out of memory{wanted} (stage {error['stage']}{phase}); try --recompute full"
    if status == "failed":
        where = "" if error["where"] is None else f", {error['where']}"
        return f"{error['type']}: {error['message']} (stage {error['stage']}{where})"
    if record["loss_fell"] is False:
        loss = record["loss"]
        return (
            f"loss: got {loss['first']:.6g} first and {loss['last']:.6g} last on one fixed batch; "
            "rule: it falls; this run does not train, so its figures mean nothing"
        )
    return None
