"""Records of measured runs as pairs of predicted and measured figures, for the accuracy chart.

A record of `verify` holds the comparison that was made then; one of `measure` is estimated now, from
the setup it states. Of the ranks of one run the one that needed most speaks for it. Runs that did not
end well, and runs of several ranks without a comparison, are listed with the reason.
Checked by: unit/test_chart_accuracy.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memcalc.errors import ConfigError

if TYPE_CHECKING:
    from memcalc.accuracy.pricing import Pair, Priced
    from memcalc.accuracy.rows import Row

Record = Mapping[str, Any]
#: Row of a comparison -> (kind of memory figure, key of the record's and of the estimate's memory).
MEMORY: Final = {
    "peak allocated": ("allocated", "peak_allocated_bytes"),
    "peak reserved": ("reserved", "peak_reserved_bytes"),
    "driver-used": ("nvidia-smi", "device_used_bytes"),
}
#: On a device without an allocator of its own: bytes of tensors.
TENSORS: Final = {"peak requested": ("requested", "peak_requested_bytes")}
_KINDS = ("measure", "verify")


def priced_records(path: str, what: Collection[str]) -> Priced:
    """Every run of a file of records. Raises ConfigError where it cannot be read or holds no run."""
    from memcalc.accuracy.pricing import Left, Priced
    from memcalc.harness.record_head import check_record
    from memcalc.harness.records import read

    records = [record for record in read(path) if record.get("kind") in _KINDS]
    if not records:
        raise ConfigError(
            f"--record: got '{path}' without a run; rule: records of memcalc measure or verify"
        )
    for number, record in enumerate(records, 1):
        check_record(record, f"--record: '{path}', run {number}")
    found = Priced([], [], [])
    for number, record in enumerate(_speaking(records), 1):
        row = row_of(record, number, path)
        try:
            pairs = list(_pairs(record, row))
        except ConfigError as error:
            found.unexpressed.append(Left(row, str(error)))
            continue
        kept = [pair for pair in pairs if pair.what in what]
        found.pairs.extend(kept)
        if not kept:
            found.unscored.append(Left(row, "gives no figure that is asked for"))
    return found


def _speaking(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records in order, of each run of several ranks only that which needed most."""
    most: dict[str, dict[str, Any]] = {}
    for record in records:
        batch = record.get("batch")
        if batch is not None:
            known = most.setdefault(batch["id"], record)
            most[batch["id"]] = max(known, record, key=_need)
    return [r for r in records if "batch" not in r or most[r["batch"]["id"]] is r]


def _need(record: Record) -> int:
    memory = record.get("memory") or {}
    return memory.get("peak_allocated_bytes") or memory.get("peak_requested_bytes") or 0


def row_of(record: Record, number: int, path: str) -> Row:
    """A record as a row of measured runs: who ran what, on which device."""
    from memcalc.accuracy.rows import Row

    setup, world = record.get("setup") or {}, record.get("world") or {}
    resolved = setup.get("resolved") or {}
    cells = {
        "id": f"{Path(path).stem} {number}",
        "source": Path(path).name,
        "model": setup.get("stated_model") or (setup.get("model") or {}).get("name"),
        "gpu": (record.get("device") or {}).get("name"),
        "n_gpus": _ranks(record),
        "seq": resolved.get("seq_len"),
        "micro_batch": resolved.get("micro_batch_size"),
        **{name: world.get(name) for name in ("tp", "pp", "cp", "dp")},
    }
    return Row(number, {name: value for name, value in cells.items() if value is not None})


def _ranks(record: Record) -> int:
    return int((record.get("batch") or {}).get("ranks", 1))


def _pairs(record: Record, row: Row) -> Iterator[Pair]:
    """The figures of one run. Raises ConfigError with the reason where there are none."""
    if record.get("status") != "ok":
        raise ConfigError(f"the run ended as {record.get('status')}")
    comparison = record.get("comparison")
    if comparison is None and "batch" in record:
        raise ConfigError("a run of several ranks without its comparison; rule: memcalc verify")
    if comparison is not None:
        rows = {
            one["name"]: (one.get("predicted"), one.get("measured")) for one in comparison["rows"]
        }
    else:
        rows = _estimated(record)
    known = MEMORY if (record["memory"] or {}).get("allocator") is not None else TENSORS
    for name, (kind, _) in known.items():
        yield from _pair(record, row, kind, rows.get(name))
    yield from _pair(record, row, "tokens_per_s_per_gpu", rows.get("tokens/s"))


def _pair(record: Record, row: Row, kind: str, figures: tuple[Any, Any] | None) -> Iterator[Pair]:
    from memcalc.accuracy.pricing import MEMORY as BYTES
    from memcalc.accuracy.pricing import THROUGHPUT, Pair

    if figures is None or not figures[0] or not figures[1]:
        return
    gpu = row.text("gpu")
    if kind != "tokens_per_s_per_gpu":
        yield Pair(row, BYTES, kind, int(figures[0]), int(figures[1]), True, (), None, gpu)
        return
    predicted, measured = (float(rate) / _ranks(record) for rate in figures)
    yield Pair(row, THROUGHPUT, kind, predicted, measured, True, (), None, gpu, {}, predicted)


def _estimated(record: Record) -> dict[str, tuple[Any, Any]]:
    """Name of a comparison's row -> (predicted now, measured then), of one process."""
    from memcalc.engine.device_side import device_of
    from memcalc.engine.estimate import estimate
    from memcalc.harness.local import profile_of
    from memcalc.harness.record_head import planned

    plan, device = planned(record["setup"]), record["device"]
    on_gpu = device["type"] == "cuda"
    gpu = profile_of(device["name"], device["total_bytes"]) if on_gpu else None
    chosen = {**record["setup"]["kernels"], "watched": not on_gpu}
    result = estimate(
        plan.config,
        plan.resolved.setup,
        gpu=device_of(gpu, device["total_bytes"] if on_gpu else None, calibration="auto"),
        kernels=chosen,
        allocator=on_gpu,
    )
    known = MEMORY if on_gpu else TENSORS
    rows = {
        name: (getattr(result.memory, key), record["memory"].get(key))
        for name, (_, key) in known.items()
    }
    return {**rows, "tokens/s": (result.time.tokens_per_s, record["time"].get("tokens_per_s"))}


def textbooks(path: str) -> dict[str, dict[str, float]]:
    """What closed forms say of each run of one process on a GPU: row's id -> class -> bytes, or tokens/s."""
    from memcalc.accuracy import textbook
    from memcalc.engine.estimate import estimate
    from memcalc.harness.local import profile_of
    from memcalc.harness.record_head import planned
    from memcalc.harness.records import read

    records = [record for record in read(path) if record.get("kind") in _KINDS]
    found: dict[str, dict[str, float]] = {}
    for number, record in enumerate(_speaking(records), 1):
        device = record.get("device") or {}
        if record.get("status") != "ok" or "batch" in record or device.get("type") != "cuda":
            continue
        plan = planned(record["setup"])
        setup = plan.resolved.setup
        count = estimate(plan.config, setup, allocator=False).model.parameters
        held = textbook.peak_bytes(plan.config, setup, count)
        said = {"allocated": held, "reserved": held, "driver-used": held}
        gpu = profile_of(device["name"], device["total_bytes"])
        peak = None if gpu is None else gpu.peak_flops_per_s.get("bf16")
        if peak:
            said["step time"] = 1 / textbook.step_seconds(count, 1, peak)
        found[f"{Path(path).stem} {number}"] = said
    return found
