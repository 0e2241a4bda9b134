"""A measurement as text: peaks, phases, categories, step times, utilisation, what was measured how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.console import Page
from memcalc.units import gib, si

_KINDS = ("requested_bytes", "allocated_bytes", "active_bytes", "reserved_bytes")


def measure_page(page: Page, record: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """The whole page; parts that were not reached are left out."""
    title(page, record, stated)
    memory = record.get("memory") or {}
    if memory:
        _peaks(page, memory)
        _phases(page, memory)
        _breakdown(page, memory)
    times(page, record)
    utilisation(page, record)
    _profile(page, record.get("profile"))
    _readings(page, record.get("readings"))
    for line in how(record):
        page.line(line)


def quiet_line(record: Mapping[str, Any]) -> str:
    """Throughput, the four numbers in bytes and the status, in one line; `none` is unknown."""
    memory, time = record.get("memory") or {}, record.get("time") or {}

    def said(value: Any) -> str:
        return (
            "none" if value is None else f"{value:.6g}" if isinstance(value, float) else f"{value}"
        )

    return (
        f"tokens/s {said(time.get('tokens_per_s'))} step_s {said(time.get('median_s'))} "
        f"requested {said(memory.get('peak_requested_bytes'))} "
        f"allocated {said(memory.get('peak_allocated_bytes'))} "
        f"reserved {said(memory.get('peak_reserved_bytes'))} "
        f"used {said(memory.get('device_used_bytes'))} status {record['status']}"
    )


def title(page: Page, record: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """What ran where: model, setup, torch and its device, what --set changed."""
    setup, device = record["setup"], record["device"]
    model, training, resolved = setup["model"], setup["training"], setup["resolved"]
    page.line(f"{model['name']}, {model['num_hidden_layers']} layers, on {device['name']}", "bold")
    recompute = training["recompute"]
    if training.get("recompute_layers"):
        recompute = f"{recompute}:{training['recompute_layers']}"
    kernels = setup["kernels"]
    norm = kernels["norm"] if model["norm_type"] == "rmsnorm" else "layernorm"
    page.line(
        f"seq {resolved['seq_len']}, micro-batch {resolved['micro_batch_size']}, grad-accum "
        f"{resolved['grad_accum_steps']}, {training['precision']}, {training['optimizer']} "
        f"({resolved['optimizer_impl']}), attention {kernels['attention']}, norm "
        f"{norm}, loss {kernels['loss']}, recompute {recompute}"
    )
    if training.get("peft"):
        page.line(_tuning(training["peft"], resolved))
    cuda = f", CUDA {device['cuda']}, driver {device['driver']}" if device["cuda"] else ""
    threads = f", {device['cpu_threads']} threads" if device["type"] == "cpu" else ""
    page.line(f"torch {device['torch']}{cuda}{threads}")
    for name, value in stated.items():
        page.line(f"set {name} = {value}")
    page.line()


def _tuning(peft: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """What trains, in a line."""
    adapter = resolved["kernels"]["adapter"]
    method = peft["method"] if peft["layers"] is None else f"{peft['method']}:{peft['layers']}"
    names = adapter["targets"] or adapter["parts"]
    said = f"peft {method}"
    if adapter["targets"]:
        said += f", rank {resolved['dims']['r_A']}, dropout {peft['dropout']:g}, {adapter['dtype']}"
    if adapter["quantised"]:
        said += ", packed base"
    return f"{said}: {', '.join(names)}" if names else said


def _amount(value: int | None) -> tuple[str, str]:
    return ("not measured", "") if value is None else (gib(value), f"{value:,}")


def _peaks(page: Page, memory: Mapping[str, Any]) -> None:
    on_gpu = memory["allocator"] is not None
    rows = [("requested", *_amount(memory["peak_requested_bytes"]), "bytes of tensors")]
    if not on_gpu and memory["peak_requested_bytes"] is None:
        return
    if on_gpu:
        rows += [
            ("allocated", *_amount(memory["peak_allocated_bytes"]), "max_memory_allocated"),
            ("active", *_amount(memory["peak_active_bytes"]), "and freed, still in use"),
            ("reserved", *_amount(memory["peak_reserved_bytes"]), "max_memory_reserved"),
            ("driver-used", *_amount(memory["device_used_bytes"]), "as the driver counts"),
        ]
    if memory.get("saved_for_backward_bytes") is not None:
        rows.append(("saved for backward", *_amount(memory["saved_for_backward_bytes"]), ""))
    page.table(("Peak memory", ">size", ">bytes", "meaning"), rows)


def _phases(page: Page, memory: Mapping[str, Any]) -> None:
    """Peaks phase by phase: tensors, and on a GPU what its allocator says."""
    tensors = memory.get("phases") or {}
    allocator = ((memory.get("allocator") or {}).get("step") or {}).get("phases") or {}
    names = [name for name in tensors or allocator if name != "zero_grad"]
    if not names:
        return
    if not allocator:
        at = memory["phase_peaks_at"]
        rows = [(name, gib(tensors[name]), f"{tensors[name]:,}", at[name]) for name in names]
        page.table(("Phase", ">peak requested", ">bytes", "peaks at"), rows)
        return
    table = [
        (name, _amount(tensors.get(name))[0],
         *(_amount(allocator.get(name, {}).get(kind))[0] for kind in _KINDS))
        for name in names
    ]  # fmt: skip
    page.table(("Phase", ">tensors", ">asked for", ">allocated", ">active", ">reserved"), table)
    unseen = memory.get("unseen_bytes") or {}
    if unseen:
        parts = ", ".join(f"{name} {gib(unseen[name])}" for name in names if name in unseen)
        page.line(f"beyond tensors at each peak (workspaces, scratch inside kernels): {parts}")
        page.line()


def _breakdown(page: Page, memory: Mapping[str, Any]) -> None:
    parts = {name: size for name, size in (memory.get("breakdown") or {}).items() if size}
    total = sum(parts.values())
    if not total:
        return
    rows = [(name, gib(size), f"{size:,}", f"{size / total:.1%}") for name, size in parts.items()]
    rows.append(("total", gib(total), f"{total:,}", "100.0%"))
    page.table((f"At the peak, {memory['peak_at']}", ">size", ">bytes", ">share"), rows)


def times(page: Page, record: Mapping[str, Any]) -> None:
    """Step times, tokens/s, and whether the loss fell."""
    time, loss = record.get("time") or {}, record.get("loss")
    steps = time.get("step_s") or []
    if steps:
        rows = [
            (f"median of {len(steps)}", _ms(time["median_s"])),
            ("p10", _ms(time["p10_s"])),
            ("p90", _ms(time["p90_s"])),
            ("first step, apart", _ms(time.get("first_step_s"))),
        ]
        page.table(("Step time", ">ms"), rows)
        page.line(f"{time['tokens_per_s']:,.1f} tokens/s, {time['tokens_per_step']:,} a step")
    if loss:
        fell = {True: "fell", False: "DID NOT FALL", None: "too few steps to judge"}[loss["fell"]]
        word = fell if record.get("loss_fell") is not None else "no optimizer, no change expected"
        page.line(f"loss on one fixed batch: {loss['first']:.4g} to {loss['last']:.4g}, {word}")
    if steps or loss:
        page.line()


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:,.2f}"


def utilisation(page: Page, record: Mapping[str, Any]) -> None:
    """FLOPs over the peaks that are known, and throughput over a reference."""
    found = record.get("utilisation")
    if not found:
        return
    rows = []
    if (sheet := found["datasheet"]) is not None:
        peak = f"datasheet, {sheet['source']} {sheet['dtype']} dense"
        rows.append(_ratios(peak, sheet))
    if (matmul := found["measured_matmul"]) is not None:
        rows.append(_ratios(f"measured peak, {matmul['n']}^3 {matmul['dtype']}", matmul))
    if rows:
        columns = ("Share of a peak", ">FLOP/s", ">full square", ">causal", ">executed")
        page.table(columns, rows)
    page.line(
        f"model FLOPs a token: {si(found['model_flops_per_token'], 'FLOP')} full square, "
        f"{si(found['model_flops_causal_per_token'], 'FLOP')} causal; executed "
        f"{si(found['executed_flops_per_token'], 'FLOP')}"
    )
    if (against := found["throughput"]) is not None:
        reference = against["reference_tokens_per_s"]
        page.line(f"throughput: {against['ratio']:.3f} of the reference, {reference:,.1f} tokens/s")
    page.line()


def _ratios(peak: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{entry[name]:.1%}" for name in ("mfu", "mfu_causal", "hfu"))
    return (peak, si(entry["flops_per_s"]), *shares)


def _profile(page: Page, profile: Mapping[str, Any] | None) -> None:
    if profile is None:
        return
    names = {"tensor_core_share": "tensor-core kernels", "idle_share": "idle",
             "communication_share": "communication"}  # fmt: skip
    rows = [
        (said, "not measured" if profile.get(name) is None else f"{profile[name]:.1%}")
        for name, said in names.items()
    ]
    page.table(("Share of the step, profiled", ">share"), rows)


def _readings(page: Page, readings: Mapping[str, Any] | None) -> None:
    if readings is None:
        return
    units = {"sm_clock_hz": ("SM clock, MHz", 1e6), "memory_clock_hz": ("memory clock, MHz", 1e6),
             "power_w": ("power, W", 1.0), "temperature_c": ("temperature, C", 1.0)}  # fmt: skip
    rows = [
        (said, *(f"{readings[name][column] / scale:,.0f}" for column in ("min", "median", "max")))
        for name, (said, scale) in units.items()
        if readings.get(name)
    ]
    if rows:
        page.table(("Over the timed steps", ">min", ">median", ">max"), rows)
    for reason, share in (readings.get("throttle") or {}).items():
        page.line(f"clocks held back by {reason}: {share:.0%} of readings")


def how(record: Mapping[str, Any]) -> list[str]:
    """What was measured how, a line each."""
    memory, time = record.get("memory") or {}, record.get("time") or {}
    lines = []
    if memory.get("tensors_by"):
        lines.append("tensors: every storage PyTorch's dispatcher shows, on real tensors, one step")
    if memory.get("allocator"):
        lines.append("allocated, active, reserved: PyTorch's allocator, steps after the first")
    if memory.get("driver"):
        lines.append(f"driver-used: {memory['driver']['method']}, the most at any reading")
    elif memory:
        lines.append("allocated, reserved, driver-used: a CPU has no such counters")
    if time.get("step_s"):
        lines.append(f"step times: {time['method']} between steps, nothing read back inside")
    return lines
