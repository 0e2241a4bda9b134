"""An estimate as text: four numbers, breakdown with a bar, phases, states, verdict, advice."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from memcalc.engine.results import Estimate, MemoryEstimate
from memcalc.engine.words import layout_line, peft_words
from memcalc.output.charts.text import mark, stacked
from memcalc.output.console import Page
from memcalc.output.host_text import host_table
from memcalc.output.stages_text import stages_table
from memcalc.output.time_text import time_tables
from memcalc.units import count_text, gib, si


def estimate_page(
    page: Page, result: Estimate, largest: list[tuple[str, int, int]], stated: dict[str, Any]
) -> None:
    """The whole page."""
    _title(page, result, stated)
    numbers_table(page, result.memory)
    stages_table(page, result)
    breakdown_table(page, result.memory)
    _phases(page, result.memory)
    host_table(page, result.memory)
    _states(page, result)
    time_tables(page, result)
    if largest:
        rows = [(name, f"{count:,}", gib(size)) for name, count, size in largest]
        page.table(("Largest at the peak", ">tensors", ">size"), rows)
    page.line(verdict_line(result), _verdict_style(result))
    for line in result.advice:
        page.line(f"advice: {line}")
    if result.advice:
        page.line("more, with speed: memcalc advise, with the same options")


def verdict_line(result: Estimate) -> str:
    """`fits: 27.1 of 79.1 GiB ...` in one line."""
    memory = result.memory
    used, usable = memory.device_used_bytes, memory.usable_bytes
    needs = "unknown" if used is None else gib(used)
    if result.fits is None or usable is None:
        return f"no verdict: needs {needs}; name a GPU with --gpu"
    word = {"fits": "fits", "tight": "tight", "does-not-fit": "does not fit"}[result.verdict or ""]
    room = memory.headroom_bytes
    spare = ""
    if room is not None:
        spare = f", headroom {gib(room)}" if room >= 0 else f", {gib(-room)} too much"
    if result.fits is False and room is not None and room >= 0:
        spare += " on the GPU; the host lacks memory"
    if result.fits and room is not None and room < 0:
        spare += " unless cached blocks are released, which the allocator does"
    return f"{word}: needs {needs} of {gib(usable)} usable{spare}"


def quiet_line(result: Estimate) -> str:
    """The four numbers in bytes and the verdict, in one line."""
    memory = result.memory
    return (
        f"requested {memory.peak_requested_bytes} allocated {memory.peak_allocated_bytes} "
        f"reserved {memory.peak_reserved_bytes} used {memory.device_used_bytes} "
        f"verdict {result.verdict or 'none'}"
    )


def _verdict_style(result: Estimate) -> str:
    styles = {"fits": "bold green", "tight": "bold yellow", "does-not-fit": "bold red"}
    return styles.get(result.verdict or "", "bold")


def _title(page: Page, result: Estimate, stated: dict[str, Any]) -> None:
    model, setup = result.model, result.setup
    active = ""
    if model.active_parameters != model.parameters:
        active = f", {count_text(model.active_parameters)} active"
    page.line(
        f"{model.name}: {count_text(model.parameters)} parameters ({model.parameters:,}){active}, "
        f"{model.num_hidden_layers} layers", "bold",
    )  # fmt: skip
    recompute = setup["recompute"]
    if setup.get("recompute_layers"):
        recompute = f"{recompute}:{setup['recompute_layers']}"
    if setup.get("recompute_modules"):
        recompute = f"{recompute} of {' + '.join(setup['recompute_modules'])}"
    optimizer = setup["optimizer"]
    how = setup["optimizer_impl"]
    if setup.get("optimizer_in_backward"):
        how = f"{how}, in backward"
    stack = setup["stack"]
    if setup.get("compile") and stack != "torch-compile":
        stack = f"{stack}, compiled"
    page.line(
        f"seq {setup['seq_len']}, micro-batch {setup['micro_batch_size']}, grad-accum "
        f"{setup['grad_accum_steps']}, {setup['precision']}, {optimizer} "
        f"({how}), attention {setup['attention']}, loss {setup['loss']}, "
        f"recompute {recompute}, stack {stack}, gpu {setup['gpu'] or 'none'}"
    )
    if layout := layout_line(setup):
        page.line(layout)
    if words := peft_words(setup):
        page.line(f"{words}; trains {_trained(result)}")
    for name, value in stated.items():
        page.line(f"set {name} = {value}")
    page.line()


def _trained(result: Estimate) -> str:
    """How many parameters train, their share, and the file they are saved in."""
    model = result.model
    share = model.trainable_parameters / model.parameters
    file = model.adapter_file_bytes
    saved = "" if file is None else f"; adapter file {file / 1e6:,.2f} MB ({gib(file)})"
    return f"{model.trainable_parameters:,} parameters ({share:.2%}){saved}"


def _amount(value: int | None) -> tuple[str, str]:
    return ("unknown", "unknown") if value is None else (gib(value), f"{value:,}")


def numbers_table(page: Page, memory: MemoryEstimate) -> None:
    """The four numbers, and the band of the last."""
    rows = [
        ("requested", *_amount(memory.peak_requested_bytes), "bytes of tensors"),
        ("allocated", *_amount(memory.peak_allocated_bytes), "max_memory_allocated"),
        ("reserved", *_amount(memory.peak_reserved_bytes), "max_memory_reserved"),
        ("driver-used", *_amount(memory.device_used_bytes), _driver(memory)),
    ]
    page.table(("Peak memory", ">size", ">bytes", "meaning"), rows)
    if memory.low_bytes is not None and memory.high_bytes is not None:
        low, high = gib(memory.low_bytes), gib(memory.high_bytes)
        page.line(f"driver-used lies between {low} and {high}; peak at {memory.peak_at}")
        page.line()


def _driver(memory: MemoryEstimate) -> str:
    """What driver-used bytes are made of."""
    between = memory.communication_bytes
    if not between:
        return "reserved and CUDA context"
    return f"reserved, context, {gib(between)} NCCL"


def breakdown_table(page: Page, memory: MemoryEstimate) -> None:
    """What is alive at the peak, as a bar and as a table."""
    parts = {name: size for name, size in memory.breakdown._asdict().items() if size}
    total = memory.peak_allocated_bytes
    page.console.print(stacked(page, parts, total, page.width))
    rows = []
    for name, size in parts.items():
        rows.append(
            (mark(page, name) + Text(f" {name}"), gib(size), f"{size:,}", f"{size / total:.1%}")
        )
    rows.append((Text("total", style="bold"), gib(total), f"{total:,}", "100.0%"))
    page.table(("At the peak", ">size", ">bytes", ">share"), rows)


def _phases(page: Page, memory: MemoryEstimate) -> None:
    rows = [
        (name, gib(size), f"{size:,}", memory.phase_peaks_at.get(name, ""))
        for name, size in memory.phases.items()
    ]
    page.table(("Phase", ">peak requested", ">bytes", "peaks at"), rows)


def _states(page: Page, result: Estimate) -> None:
    memory = result.memory
    states = [(name, size) for name, size in memory.states.items() if size]
    total = sum(size for _, size in states)
    rows = [(name, gib(size), f"{size:,}") for name, size in states]
    rows += [
        ("all states", gib(total), f"{total:,}"),
        ("saved for backward", *_amount(memory.saved_for_backward_bytes)),
        ("saved per layer", *_amount(memory.saved_per_layer_bytes)),
    ]
    page.table(("Model states and saved tensors", ">size", ">bytes"), rows)
    time = result.time
    page.line(
        f"FLOPs: {si(time.model_flops_per_token, 'FLOP')} a token (causal: "
        f"{si(time.model_flops_causal_per_token, 'FLOP')}), executed "
        f"{si(time.executed_flops, 'FLOP')} a step"
    )
    page.line()
