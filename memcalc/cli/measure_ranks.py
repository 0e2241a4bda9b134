"""memcalc measure and verify under torchrun: every process runs this, rank 0 writes the result.

Exit status of every process: as `measure`, by the rank that was the cause. What is wrong with the input
is said by rank 0 alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.on_device import (
    EXIT,
    OUTSIDE,
    deliver_record,
    measure_options,
    records_file,
    trouble,
)
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, request_of, typed
from memcalc.errors import ConfigError, MemcalcError

if TYPE_CHECKING:
    from memcalc.engine.device_side import Device

PARALLEL = ("tp", "pp", "cp", "dp", "ep", "schedule", "sp", "fsdp", "shard", "reshard", "cp-method")
BAD_INPUT = 2


def wanted(arguments: Arguments) -> bool:
    """Whether torchrun started this: several processes, or one and an option of this module."""
    from memcalc.harness.ranks.layout import world

    if "WORLD_SIZE" not in os.environ:
        return False
    return world().size > 1 or any(name in arguments.options for name in PARALLEL)


def refuse_alone(arguments: Arguments) -> None:
    """Raise ConfigError for an option that needs several processes, saying how to start them."""
    from memcalc.harness.ranks.layout import layout_of

    given = _stated(arguments)
    layout_of({name: given[name] for name in given if name in ("tp", "pp", "cp", "dp")}, 1)
    for name in ("schedule", "sp", "fsdp", "shard", "reshard", "cp-method", "ep"):
        if name.replace("-", "_") in given:
            raise ConfigError(
                f"--{name}: got one process; rule: run under torchrun --nproc-per-node N"
            )


def run(arguments: Arguments) -> int:
    """Measure together with the other processes, then end this one: see leave_process."""
    from memcalc.harness.ranks.rank_end import leave_process

    try:
        status = _run(arguments)
    except MemcalcError as error:
        from memcalc.cli.one_voice import named
        from memcalc.output.files import put_notes

        put_notes([named(" ".join(str(error).split()))], "error")
        status = BAD_INPUT
    leave_process(status)
    return status


def _run(arguments: Arguments) -> int:
    from memcalc.cli.decode import OPTION
    from memcalc.harness.local import local_device, local_plan
    from memcalc.harness.ranks.layout import layout_of, world
    from memcalc.harness.ranks.ranks import rank_device

    here = world()
    if here.rank:
        arguments.options.pop("save", None)
    request = request_of(arguments)
    if OPTION in arguments.options:
        raise ConfigError(f"--{OPTION}: got {here.size} processes; rule: of a run in one")
    if request.setup.peft is not None:
        raise ConfigError(f"--peft: got {here.size} processes; rule: of a run in one")
    layout = layout_of(_stated(arguments), here.size)
    options = measure_options(arguments)
    setup = _share(request, layout.dp)
    device = rank_device(options.device, here)
    plan = local_plan(request.config, setup, request.kernels, device.type)
    path = None if here.rank else records_file(arguments)
    finish = _Finish(arguments, request, path, local_device(device))

    from memcalc.harness.ranks.distributed import measure_ranks
    from memcalc.output.progress import progress

    quiet = arguments.has("quiet") or here.rank > 0
    with progress(f"{arguments.command} {request.config.name} on {here.size} ranks", quiet) as tell:
        return measure_ranks(plan, layout, options, here, finish, tell)


def _stated(arguments: Arguments) -> dict[str, Any]:
    """The parallel options given, typed."""
    options = arguments.options
    given = [name for name in PARALLEL if name in options]
    return {name.replace("-", "_"): typed(BY_NAME[name], options[name]) for name in given}


def _share(request: Request, dp: int) -> Any:
    """The setup of one rank: of a global batch its share."""
    total = request.setup.global_batch
    if total is None or dp == 1:
        return request.setup
    if total % dp:
        near = max(dp, round(total / dp) * dp)
        raise ConfigError(
            f"--global-batch: got {total}; rule: a multiple of the {dp} ranks that split it; "
            f"nearest valid: {near}"
        )
    return replace(request.setup, global_batch=total // dp)


class _Finish:
    """What rank 0 does with the records of all ranks: write them, print the result."""

    def __init__(
        self, arguments: Arguments, request: Request, path: Path | None, device: Device
    ) -> None:
        self.arguments, self.request, self.path = arguments, request, path
        self.device, self.setup = device, request.setup

    def __call__(
        self,
        posted: Sequence[dict[str, Any] | None],
        stages: Sequence[str | None],
        first: int | None,
    ) -> int:
        import uuid

        from memcalc.harness.ranks.rank_records import cause, completed, merged
        from memcalc.harness.records import append_all, finite
        from memcalc.output.files import put_notes
        from memcalc.output.measure_text import quiet_line
        from memcalc.output.ranks_text import ranks_page

        records = completed(posted, stages, uuid.uuid4().hex)
        why = cause(records, first)
        if why is not None and why["status"] == "refused":
            put_notes([why["error"]["message"]], "error")
            return BAD_INPUT
        for record in records:
            record["setup"]["stated_model"] = self.request.config.name
        more = {}
        if self.arguments.command == "verify" and why is None:
            more = self._judged(records)
        if self.path is not None:
            append_all(self.path, records)
        result = finite(merged(records, first) | more)
        said = f"{len(records)} records appended to {self.path}" if self.path else None
        line = quiet_line(result)
        deliver_record(self.arguments, self.request, result, said, ranks_page, line)
        put_notes(_errors(result), "error")
        if why is not None:
            return EXIT[why["status"]]
        outside = result["loss_fell"] is False or result.get("verified") is False
        return OUTSIDE if outside else 0

    def _judged(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Hold every rank's record against the estimate of its place; what has none is said."""
        from memcalc.harness.ranks.rank_comparison import compared

        request, kernels = self.request, records[0]["setup"]["resolved"]["kernels"]
        chosen = {name: kernels[name] for name in ("device", "norm", "attention")}
        rates = self.arguments.text("calibration") or "auto"
        device = self.device._replace(calibration=rates)
        try:
            found = compared(
                request.config, self.setup, {**request.kernels, **chosen}, records, device
            )
        except ConfigError as error:
            return {"kind": "verify", "verified": None,
                    "notes": [f"no estimate of this layout: {error}"]}  # fmt: skip
        for record, one in zip(records, found, strict=True):
            record |= {"kind": "verify", "comparison": one}
        return {"kind": "verify", "verified": all(one["verified"] for one in found)}


def _errors(result: dict[str, Any]) -> list[str]:
    """Why a run did not end well, in a line that names the rank."""
    if result["error"] is None:
        line = trouble(result)
        return [] if line is None else [line]
    rank = result["error"]["rank"]
    return [f"rank {rank}: {trouble(result['ranks'][rank])}"]
