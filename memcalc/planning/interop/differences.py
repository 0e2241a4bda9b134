"""What a document does not say of a setup: it is read back, and whatever differs is named.

So nothing can be dropped silently: an import of the document with the options named here gives the
setup's own estimate. Checked by: property/test_interop.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.planning.interop.facts import LAYOUT, TRAINING, Facts, default_of
from memcalc.planning.interop.rows import Document, Reading
from memcalc.planning.interop.tool import Tool, read

#: Fields that follow from others; these are compared in their place.
_DERIVED: Final = ("dp", "global_batch", "peft")
#: Fields of which only the resolved value counts.
_RESOLVED: Final = ("micro_batch_size", "grad_accum_steps", "gpus", "seq_len")
#: Facts of a model that no estimate on a stack with one code for all families reads.
_NAMES: Final = ("name", "model_type", "dtype", "notes", "max_position_embeddings", "fused_qkv")
#: A field that is stated beside a document takes the place of these of the document's, too.
REPLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "zero": ("fsdp", "shard", "reshard"),
    "fsdp": ("zero", "shard", "reshard"),
    "gpus": ("gpus_per_node",),
    "pp": ("vpp", "schedule", "stage_layers"),
    "vpp": ("stage_layers",),
    "recompute": ("recompute_modules",),
    "optimizer": ("optimizer_impl", "optimizer_dtype"),
}
_WHY: Final = "not among its settings"


class Unexpressed(NamedTuple):
    """A field the document does not state, the value it has, and where the tool has it instead."""

    field: str
    value: Any
    why: str


def unexpressed(tool: Tool, document: Document, facts: Facts) -> list[Unexpressed]:
    """What an import of the document lacks of the setup, field by field."""
    reading = read(tool, document, _reader(tool, facts))
    model = _model(tool, reading, facts)
    known = {one.field for one in model}
    if "model" not in known and reading.model is not None:
        known |= {"num_layers", "dropout"} if tool.name == "megatron" else set()
    found = [*model]
    for name in (*TRAINING, *LAYOUT):
        if name in _DERIVED or name in known:
            continue
        value = _lacking(tool, name, reading.fields, facts)
        if value is not _SAME or name in tool.elsewhere:
            value = facts[name] if value is _SAME else value
            if name == "recompute_layers" and all(one.field != "recompute" for one in found):
                found.append(Unexpressed("recompute", facts["recompute"], _why(tool, name)))
            found.append(Unexpressed(name, value, _why(tool, name)))
    found = _together(tool, found, facts)
    return [*found, *_overridden(tool, reading.fields, facts), *_adapters(tool, facts)]


def _together(tool: Tool, found: list[Unexpressed], facts: Facts) -> list[Unexpressed]:
    """The list with what goes with its fields: stated beside a document they replace that too."""
    lacking = {one.field for one in found}
    if facts["fsdp"] and not lacking.isdisjoint(("zero", "fsdp")):
        found = [one for one in found if one.field not in ("zero", "fsdp")]
        found.append(Unexpressed("fsdp", True, _why(tool, "fsdp")))
    for name in lacking:
        for other in REPLACES.get(name, ()):
            if other in facts.stated and other not in lacking and other not in ("zero", "fsdp"):
                lacking = lacking | {other}
                found.append(Unexpressed(other, facts[other], _why(tool, other)))
    return found


def _why(tool: Tool, name: str) -> str:
    return tool.reasons.get(name) or _WHY


class _Same:
    """No difference."""


_SAME: Final = _Same()


def _reader(tool: Tool, facts: Facts) -> Reading:
    """What is known beside the document: what it never says, and the model unless it can name it."""
    names = any("MODEL" in row.options for row in tool.rows)
    shapes = names and tool.name == "megatron"
    told = {name: facts[name] for name in tool.elsewhere}
    if facts["num_layers"] is not None and not shapes:
        told["num_layers"] = facts["num_layers"]
    return Reading(None if shapes else facts.base, told)


def _lacking(tool: Tool, name: str, got: Mapping[str, Any], facts: Facts) -> Any:
    """The value to state beside the document; _SAME where an import has the setup's own."""
    full = _canonical(tool, facts.values, facts)
    layout = _layout(got)
    theirs = _canonical(tool, {**facts.values, **_defaults(), **got, **layout}, facts)[name]
    ours = facts.stated.get(name, default_of(name))
    if theirs == full[name]:
        return _SAME
    if name not in _RESOLVED and theirs == ours and not _moved(name, facts):
        return _SAME
    return facts[name] if name in _RESOLVED or ours is None else ours


def _moved(name: str, facts: Facts) -> bool:
    """Whether a field's canonical form is not the stated one."""
    return name in ("fsdp", "zero", "reshard")


def _defaults() -> dict[str, Any]:
    found = {name: default_of(name) for name in (*TRAINING, *LAYOUT)}
    return {**found, "micro_batch_size": 1, "grad_accum_steps": 1}


def _layout(got: Mapping[str, Any]) -> dict[str, Any]:
    """The document's layout with its degrees filled in, or as it stands where they do not divide."""
    own = {name: got[name] for name in LAYOUT if name in got}
    try:
        plan = with_degrees(ParallelPlan(**own))
    except ConfigError:
        return own
    return {name: getattr(plan, name) for name in LAYOUT}


def _canonical(tool: Tool, values: Mapping[str, Any], facts: Facts) -> Mapping[str, Any]:
    """One form of setups that are the same: stage 3 and 2 of PyTorch's sharding are --fsdp."""
    found = dict(tool.canonical(values))
    if facts.stack.parallel.get("states") in ("fsdp1", "fsdp2") and found["zero"] in (2, 3):
        keeps = found["zero"] == 2 or found["reshard"] is False
        with_stages = found["pp"] > 1 and found["reshard"] in (None, False)
        found["reshard"] = None if with_stages else False if keeps else found["reshard"]
        if found["reshard"] is True and tool.name == "accelerate":
            found["reshard"] = None  # its default, by another name
        found |= {"zero": 3, "fsdp": True}
    return found


def _model(tool: Tool, reading: Reading, facts: Facts) -> list[Unexpressed]:
    """The model, where the document does not name it or names another."""
    if reading.model is not None:
        config = load_model(reading.model)
        own = {name.removeprefix("model."): value for name, value in reading.fields.items()
               if name.startswith("model.")}  # fmt: skip
        if tool.name == "megatron" and _same_model(_with(config, own), facts.config):
            return []
        changed = any(name.startswith("model.") for name in facts.stated)
        if tool.name != "megatron" and config.name == facts.config.name and not changed:
            return []
    why = tool.reasons.get("model", "the script names it")
    sets = [
        Unexpressed(name, value, why)
        for name, value in facts.stated.items()
        if name.startswith("model.")
    ]
    return [Unexpressed("model", facts.name, why), *sets]


def _with(config: ModelConfig, own: Mapping[str, Any]) -> ModelConfig | None:
    """A model with fields set; None where parts of it would have to be set too."""
    plain = {name: value for name, value in own.items() if "." not in name}
    if len(plain) < len(own):
        return None
    try:
        return replace(config, **plain)
    except ConfigError:
        return None


def _same_model(one: ModelConfig | None, other: ModelConfig) -> bool:
    if one is None:
        return False
    compared = (f.name for f in fields(ModelConfig) if f.name not in _NAMES)
    return all(getattr(one, name) == getattr(other, name) for name in compared)


def _overridden(tool: Tool, got: Mapping[str, Any], facts: Facts) -> list[Unexpressed]:
    """Values of kernels and of the stack that were set, or that the document sets otherwise."""
    found = []
    names = [name for name in (*facts.stated, *got) if name.startswith(("kernels.", "stack."))]
    for name in dict.fromkeys(names):
        table, _, key = name.partition(".")
        own = facts.stack.parallel if table == "stack" else facts.stack.choices
        ours = facts.stated.get(name, own.get(key, False))
        if got.get(name, own.get(key, False) if name not in facts.stated else None) != ours:
            found.append(Unexpressed(name, ours, _why(tool, name)))
    return found


def _adapters(tool: Tool, facts: Facts) -> list[Unexpressed]:
    peft = facts.stated.get("peft")
    return [] if peft is None else [Unexpressed("peft", peft, _why(tool, "peft"))]
