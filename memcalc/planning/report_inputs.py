"""Inputs of a report: what was stated, and the defaults that decide memory and speed.

One row an input, its value as it was resolved. What was stated and has no row of its own is listed as it
was written. Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from memcalc.engine.results import Estimate
from memcalc.engine.words import layout_line, peft_words
from memcalc.units import count_text

Setup = Mapping[str, Any]
#: Options by name as the command line states them: text, True for a flag, a list where repeated.
Stated = Mapping[str, str | bool | list[str]]


class _Input(NamedTuple):
    """name: what the page calls it. options: those that state it. value: "" where it says nothing."""

    name: str
    options: tuple[str, ...]
    value: Callable[[Setup], str]


_LAYOUT = (
    "gpus", "tp", "pp", "cp", "dp", "ep", "etp", "vpp", "sp", "no-sp", "zero", "fsdp", "shard", "reshard",
    "schedule", "cp-method", "tp-layout", "offload", "offload-device", "cluster",
)  # fmt: skip


def inputs_of(result: Estimate, stated: Stated) -> list[dict[str, Any]]:
    """[{"name", "value", "stated"}]: the model, every row that says something, then what is left.

    stated: the options of the command that prices this setup alone.
    """
    rows = [{"name": "model", "value": _model(result), "stated": True}]
    for one in _INPUTS:
        if value := one.value(result.setup):
            said = any(option in stated for option in one.options)
            rows.append({"name": one.name, "value": value, "stated": said})
    shown = {option for one in _INPUTS for option in one.options}
    rows += [
        {"name": f"--{name}", "value": _text(value), "stated": True}
        for name, value in stated.items()
        if name not in shown
    ]
    return rows


def _model(result: Estimate) -> str:
    model = result.model
    active = ""
    if model.active_parameters != model.parameters:
        active = f", {count_text(model.active_parameters)} active"
    return (
        f"{model.name}: {count_text(model.parameters)} parameters ({model.parameters:,}){active}, "
        f"{model.num_hidden_layers} layers"
    )


def _text(value: str | bool | list[str]) -> str:
    if isinstance(value, bool):
        return "yes"
    return value if isinstance(value, str) else ", ".join(value)


def _batch(setup: Setup) -> str:
    sequences = setup["global_batch"]
    if sequences is None:
        return ""
    return f"{_sequences(sequences)}, {sequences * setup['seq_len']:,} tokens"


def _sequences(count: int) -> str:
    return f"{count:,} sequence{'s' * (count > 1)}"


def _recompute(setup: Setup) -> str:
    blocks = f" of {setup['recompute_layers']} blocks" if setup["recompute_layers"] else ""
    modules = f" of {' + '.join(setup['recompute_modules'])}" if setup["recompute_modules"] else ""
    return f"{setup['recompute']}{blocks}{modules}"


def _optimizer(setup: Setup) -> str:
    how = f"{setup['optimizer_impl']}{', in backward' if setup['optimizer_in_backward'] else ''}"
    dtype = f", states in {setup['optimizer_dtype']}" if setup["optimizer_dtype"] else ""
    return f"{setup['optimizer']} ({how}{dtype})"


def _stack(setup: Setup) -> str:
    compiled = setup["compile"] and setup["stack"] != "torch-compile"
    return f"{setup['stack']}{', compiled' if compiled else ''}"


_PEFT = (
    "peft", "lora-rank", "lora-targets", "lora-dropout", "lora-dtype", "virtual-tokens",
    "prefix-projection", "prompt-width", "adapter-kind", "adapter-reduction", "adapter-width", "weights",
)  # fmt: skip
_INPUTS = (
    _Input("GPU", ("gpu", "cluster"), lambda s: s["gpu"] or "none"),
    _Input("layout", _LAYOUT, layout_line),
    _Input("sequence length", ("seq",), lambda s: f"{s['seq_len']:,} tokens"),
    _Input("micro-batch", ("micro-batch",), lambda s: _sequences(s["micro_batch_size"])),
    _Input("gradient accumulation", ("grad-accum",), lambda s: f"{s['grad_accum_steps']:,}"),
    _Input("global batch", ("global-batch",), _batch),
    _Input("precision", ("precision",), lambda s: s["precision"]),
    _Input("optimizer", ("optimizer", "optimizer-impl", "optimizer-dtype"), _optimizer),
    _Input("fine-tuning", _PEFT, peft_words),
    _Input("recomputation", ("recompute", "recompute-modules"), _recompute),
    _Input("attention", ("attention",), lambda s: s["attention"]),
    _Input("loss", ("loss",), lambda s: s["loss"]),
    _Input("stack", ("stack", "compile"), _stack),
)
