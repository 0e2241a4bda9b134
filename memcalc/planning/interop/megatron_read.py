"""What several of Megatron-LM's arguments mean together: recomputation, stages, GPUs, dropout.

Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py (validate_args); megatron-core 0.14.0,
transformer/pipeline_parallel_layer_layout.py. Checked by: unit/test_interop_megatron.py.
"""

from __future__ import annotations

from memcalc.errors import ConfigError
from memcalc.planning.interop.rows import NEAREST, Reading
from memcalc.planning.interop.rows import UNPRICED as NOT_MODELLED


def recomputed(reading: Reading) -> None:
    """Recomputation from its granularity, method and number of blocks, or the modules named."""
    fields, got = reading.fields, reading.seen
    granularity = got.get("recompute-granularity")
    if got.get("recompute-activations"):
        granularity = "selective"
    if granularity is None:
        return
    if granularity not in ("full", "selective"):
        raise ConfigError(
            f"megatron, recompute-granularity: got {granularity!r}; valid: full, selective"
        )
    fields["recompute"] = granularity
    modules = got.get("recompute-modules")
    if granularity == "selective" and modules:
        listed = modules if isinstance(modules, list) else [modules]
        fields["recompute_modules"] = tuple(str(module) for module in listed)
    layers = got.get("recompute-num-layers", 1)
    if granularity == "full" and got.get("recompute-method") == "block":
        fields["recompute_layers"] = layers
    elif granularity == "full" and layers != 1:
        reading.say("recompute-num-layers", NEAREST, "each block is a checkpoint of its own here")


def cut(reading: Reading) -> None:
    """Chunks of a rank and blocks of a stage."""
    fields, got = reading.fields, reading.seen
    pp, layers = reading.any("pp", 1), reading.seen.get("num-layers", 0)
    each = got.get("num-layers-per-virtual-pipeline-stage")
    if each and pp > 1:
        if each < 1 or layers % (pp * each):
            raise ConfigError(
                f"megatron, num-layers-per-virtual-pipeline-stage: got {each}; rule: stages x it "
                f"divides {layers} layers"
            )
        fields["vpp"] = layers // (pp * each)
    if fields.get("vpp", 1) > 1:
        fields["schedule"] = "interleaved"
    layout = got.get("pipeline-model-parallel-layout")
    if layout is not None and pp > 1:
        _drawn(reading, layout)
        return
    ends = [got.get(f"decoder-{end}-pipeline-num-layers") for end in ("first", "last")]
    if pp > 1 and any(end is not None for end in ends):
        _uneven(reading, pp, layers, ends)


def _drawn(reading: Reading, layout: str) -> None:
    """--pipeline-model-parallel-layout without repetition: Et|t|tL."""
    plain = layout.replace(",", "").strip()
    if not plain or set(plain) - set("EtL|"):
        why = "written with repetition or other blocks: --stage-layers"
        reading.say("pipeline-model-parallel-layout", NOT_MODELLED, why)
        return
    counts = tuple(part.count("t") for part in plain.split("|"))
    reading.fields["stage_layers"] = counts


def _uneven(reading: Reading, pp: int, layers: int, ends: list[int | None]) -> None:
    between = pp - sum(end is not None for end in ends)
    left = layers - sum(end or 0 for end in ends)
    if between < 1 or left < 0 or left % between:
        raise ConfigError(
            f"megatron, decoder-*-pipeline-num-layers: got {ends[0]}, {ends[1]}; rule: leave a "
            f"multiple of {between} stages of {layers} layers"
        )
    each = left // between
    first, last = (each if end is None else end for end in ends)
    reading.fields["stage_layers"] = (first, *[each] * (pp - 2), last)


def world(reading: Reading) -> None:
    """GPUs of torchrun's words, and accumulation from the global batch."""
    fields, got = reading.fields, reading.seen
    inner = 1
    for name in ("tp", "pp", "cp"):
        inner *= reading.any(name, 1)
    if {"gpus", "dp"}.isdisjoint(reading.stated) and "world" in got:
        fields["gpus"] = got["world"]
    gpus = reading.any("gpus", None)
    copies = reading.any("dp", None) or max(1, (gpus or inner) // max(1, inner))
    total, micro = got.get("global-batch-size"), reading.any("micro_batch_size", 1)
    if gpus is None and "dp" not in reading.stated:
        said = f"the list does not say how many GPUs: {inner}, one copy; state --gpus"
        reading.say("world size", NEAREST, said)
    if total is not None:
        if micro < 1 or total < 1 or total % (micro * copies):
            raise ConfigError(
                f"megatron, global-batch-size: got {total}; rule: a multiple of micro-batch x dp = "
                f"{micro * copies} (--gpus)"
            )
        fields["grad_accum_steps"] = total // (micro * copies)
    instances = got.get("num-distributed-optimizer-instances", 1)
    if instances > 1:
        fields["shard"] = copies * reading.any("cp", 1) // instances


def dropouts(reading: Reading) -> None:
    """One rate for both; 0.1 where Megatron is told nothing."""
    rates = [reading.seen.get(f"{name}-dropout", 0.1) for name in ("hidden", "attention")]
    fixed_model = reading.config
    own = None if fixed_model is None else [
        fixed_model.residual_dropout, fixed_model.attention_dropout,
    ]  # fmt: skip
    if rates != own:
        reading.fields["dropout"] = max(rates)
        if rates[0] != rates[1]:
            reading.say(
                "attention-dropout", NEAREST, f"one rate for both is estimated: {max(rates)}"
            )
