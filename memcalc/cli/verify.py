"""memcalc verify MODEL: run real steps here and hold the estimate of the same setup against them.

Exit status: 0 verified; 4 a figure lies outside its band, or the loss did not fall; 1 the run broke;
2 bad input, or refused for it cannot fit in host memory; 3 out of memory; 130 interrupted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memcalc.cli.on_device import (
    EXIT,
    OUTSIDE,
    deliver_record,
    keep,
    measure_options,
    put_trouble,
    records_file,
)
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, need_torch, request_of
from memcalc.errors import ConfigError, MemcalcError
from memcalc.output.charts.house import PICTURES, picture_kind, save

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def run(arguments: Arguments) -> int:
    """Verify, keep the record, write the result; returns the exit status."""
    need_torch()
    from memcalc.cli import decode
    from memcalc.cli.measure_ranks import refuse_alone, wanted
    from memcalc.cli.measure_ranks import run as run_ranks
    from memcalc.harness.ranks.layout import world
    from memcalc.output.verify_text import quiet_line, verify_page

    picture = arguments.text("chart")
    if picture is not None and picture_kind(picture) is None:
        endings = ", ".join(f".{kind}" for kind in PICTURES)
        raise ConfigError(f"--chart: got {picture!r}; rule: a file ending in {endings}")
    if wanted(arguments):
        if picture is not None or arguments.has("ops"):
            what = "--chart" if picture is not None else "--ops"
            raise ConfigError(f"{what}: got {world().size} processes; rule: of a run in one")
        return run_ranks(arguments)
    request = request_of(arguments)
    refuse_alone(arguments)
    if decode.wanted(arguments):
        return decode.run(arguments, request)
    record, said = _verified(arguments, request)
    if record["status"] == "refused":
        raise MemcalcError(record["error"]["message"])
    if picture is not None and record.get("timeline"):
        _draw(record, picture)
    deliver_record(arguments, request, record, said, verify_page, quiet_line(record))
    put_trouble(record)
    if record["status"] != "ok":
        return EXIT[record["status"]]
    fell = record["loss_fell"] is not False
    return 0 if fell and record["comparison"]["verified"] else OUTSIDE


def _verified(arguments: Arguments, request: Request) -> tuple[dict[str, Any], str | None]:
    """The record of one verified run on this device, and where it was kept."""
    from memcalc.harness.device import pick_device
    from memcalc.harness.local import local_plan
    from memcalc.harness.verify import verify
    from memcalc.output.progress import progress

    options = measure_options(arguments)
    device = pick_device(options.device)
    plan = local_plan(request.config, request.setup, request.kernels, device.type)
    predicted = _estimate(request, plan, device, arguments)
    path = records_file(arguments)
    with progress(f"verify {request.config.name}", arguments.has("quiet")) as tell:
        record = verify(plan, predicted, options, arguments.has("ops"), tell)
    record["setup"]["stated_model"] = request.config.name
    return record, keep(record, path)


def _estimate(request: Request, plan: Plan, device: Any, arguments: Arguments) -> dict[str, Any]:
    """The estimate of the same plan, for this device's own memory, profile and calibration."""
    from memcalc.engine.estimate import estimate
    from memcalc.harness.local import local_device, timed_on_cpu

    calibration = arguments.text("calibration") or "auto"
    chosen = {"device": plan.kernels.device, "norm": plan.kernels.norm}
    if plan.kernels.attention != request.setup.attention:
        chosen["attention"] = plan.kernels.attention
    kernels = {**request.kernels, **chosen}
    found = estimate(
        request.config,
        request.setup,
        gpu=local_device(device)._replace(
            calibration=calibration if device.type == "cuda" else "default"
        ),
        kernels=kernels,
    )
    if device.type == "cuda":
        return found.to_dict()
    threads = measure_options(arguments).threads
    time, notes = timed_on_cpu(plan, calibration, threads)
    return replace(found, time=time, notes=(*found.notes, *notes)).to_dict()


def _draw(record: dict[str, Any], path: str) -> None:
    """The step predicted and measured: `memcalc chart timeline --record` of this record."""
    from memcalc.cli.charts.timeline import of_record
    from memcalc.output.charts.timeline import draw

    save(path, of_record(record), draw)
