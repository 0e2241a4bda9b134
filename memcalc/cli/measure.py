"""memcalc measure MODEL: run real training steps here; memory, tokens/s, utilisation.

Exit status: 0 measured; 1 the run broke; 2 bad input, or refused for it cannot fit in host memory;
3 out of memory; 4 the loss did not fall, so the run does not train; 130 interrupted. A record is kept
of all but bad input.
"""

from __future__ import annotations

from typing import Any

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
from memcalc.errors import MemcalcError


def run(arguments: Arguments) -> int:
    """Measure, keep the record, write the result; returns the exit status."""
    need_torch()
    from memcalc.cli import decode, measure_ranks
    from memcalc.output.measure_text import measure_page, quiet_line

    if measure_ranks.wanted(arguments):
        return measure_ranks.run(arguments)
    request = request_of(arguments)
    measure_ranks.refuse_alone(arguments)
    if decode.wanted(arguments):
        return decode.run(arguments, request)
    record, said = measured(arguments, request)
    if record["status"] == "refused":
        raise MemcalcError(record["error"]["message"])
    deliver_record(arguments, request, record, said, measure_page, quiet_line(record))
    put_trouble(record)
    if record["status"] == "ok" and record["loss_fell"] is False:
        return OUTSIDE
    return EXIT[record["status"]]


def measured(arguments: Arguments, request: Request) -> tuple[dict[str, Any], str | None]:
    """The record of one run on this device, and where it was kept. Raises ConfigError."""
    from memcalc.harness.device import pick_device
    from memcalc.harness.local import local_plan
    from memcalc.harness.measure import measure
    from memcalc.output.progress import progress

    options = measure_options(arguments)
    device = pick_device(options.device)
    plan = local_plan(request.config, request.setup, request.kernels, device.type)
    path = records_file(arguments)
    with progress(f"measure {request.config.name}", arguments.has("quiet")) as tell:
        record = measure(plan, options, tell)
    record["setup"]["stated_model"] = request.config.name
    return record, keep(record, path)
