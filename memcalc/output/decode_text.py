"""Measured generations as text: bytes and seconds of prefill and decode, alone or beside the estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.console import Page
from memcalc.output.verify_text import table_of, verdict_line
from memcalc.units import gib

_GROUPS = {
    "states": "What stands", "tensors": "Tensors of a pass", "allocator": "Allocator", "time": "Time",
}  # fmt: skip
_BYTES = {
    "weights": "weights_bytes", "cache after the prompts": "prompt_kv_cache_bytes",
    "cache at the end": "kv_cache_bytes", "peak requested": "peak_requested_bytes",
    "peak allocated": "peak_allocated_bytes", "peak reserved": "peak_reserved_bytes",
}  # fmt: skip


def measured_page(page: Page, record: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """What a generation took."""
    _title(page, record, stated)
    memory, time = record.get("memory") or {}, record.get("time") or {}
    rows = [
        (name, gib(memory[key]), f"{memory[key]:,}")
        for name, key in _BYTES.items()
        if memory.get(key) is not None
    ]
    rows += [
        (f"peak in {name}", gib(size), f"{size:,}")
        for name, size in (memory.get("phases") or {}).items()
    ]
    if rows:
        page.table(("Memory", ">size", ">bytes"), rows)
    if time.get("time_per_output_token_s"):
        page.table(("Time", ">ms"), [
            ("prefill, median", f"{1000 * time['prefill_s']:,.2f}"),
            ("one token, median", f"{1000 * time['time_per_output_token_s']:,.2f}"),
            ("p10", f"{1000 * time['p10_s']:,.2f}"), ("p90", f"{1000 * time['p90_s']:,.2f}"),
        ])  # fmt: skip
        page.line(f"{time['tokens_per_s']:,.1f} tokens/s while decoding")
        page.line()
    for line in _how(record):
        page.line(line)


def verified_page(page: Page, record: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """What a generation took beside what was predicted."""
    _title(page, record, stated)
    comparison = record.get("comparison")
    if comparison is None:
        return
    for group, said in _GROUPS.items():
        table_of(page, said, [row for row in comparison["rows"] if row["group"] == group])
    for line in _how(record):
        page.line(line)
    page.line("band of tensors: 0, they are compared exactly; times have none and are not judged")
    calibration = record["estimate"]["time"]["calibration"]
    page.line(
        "times: measured only; `memcalc calibrate` makes rates of this device"
        if calibration is None
        else f"calibration of the times: {calibration}"
    )
    page.line()
    page.line(verdict_line(record), "bold green" if comparison["verified"] else "bold red")


def quiet_line(record: Mapping[str, Any]) -> str:
    """The verdict where there is one, the peak, seconds of a token and the status, in one line."""
    memory, time = record.get("memory") or {}, record.get("time") or {}
    comparison = record.get("comparison")
    verdict = "" if comparison is None else "verified " if comparison["verified"] else "outside "
    peak, token = memory.get("peak_requested_bytes"), time.get("time_per_output_token_s")
    return (
        f"{verdict}requested {'none' if peak is None else peak} token_s "
        f"{'none' if token is None else format(token, '.6g')} status {record['status']}"
    )


def _title(page: Page, record: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    setup, device, decode = record["setup"], record["device"], record["decode"]
    model, kernels = setup["model"], setup["kernels"]
    page.line(f"{model['name']}, {model['num_hidden_layers']} layers, on {device['name']}", "bold")
    page.line(
        f"batch {decode['batch']}, prompt {decode['prompt']}, {decode['new_tokens']} new tokens, cache "
        f"{decode['cache']}, {setup['training']['precision']}, attention {kernels['attention']}"
    )
    cuda = f", CUDA {device['cuda']}, driver {device['driver']}" if device["cuda"] else ""
    threads = f", {device['cpu_threads']} threads" if device["type"] == "cpu" else ""
    page.line(f"torch {device['torch']}{cuda}{threads}")
    for name, value in stated.items():
        page.line(f"set {name} = {value}")
    page.line()


def _how(record: Mapping[str, Any]) -> list[str]:
    memory, time = record.get("memory") or {}, record.get("time") or {}
    lines = []
    if memory.get("tensors_by"):
        lines.append(
            "tensors: every storage PyTorch's dispatcher shows, on real tensors, one generation"
        )
    if memory and memory.get("allocator") is None:
        lines.append("allocated, reserved: a CPU has no such counters")
    if time.get("passes_s"):
        lines.append(
            f"times: {time['method']} between passes, medians of {len(time['passes_s'])} generations"
        )
    return lines
