"""Megatron-LM's argument list: the table of its arguments, the model's shape among them.

Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py; megatron-core 0.14.0 and 0.16.1,
transformer/transformer_config.py, model_parallel_config.py, optimizer/optimizer_config.py.
Checked by: unit/test_interop_megatron.py, unit/test_interop_packages.py (TransformerConfig itself).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.megatron_model import MODEL_ROWS, model_of
from memcalc.planning.interop.megatron_read import cut, dropouts, recomputed, world
from memcalc.planning.interop.megatron_words import HARMLESS, NO_EFFECT, REASONS, UNPRICED
from memcalc.planning.interop.rows import (
    UNPRICED as NOT_MODELLED,
)
from memcalc.planning.interop.rows import (
    Reading,
    Row,
    always,
    same,
    seen,
    words,
)
from memcalc.planning.interop.tool import Tool

_OVERLAPS: Final = ("overlap_grad_reduce", "overlap_param_gather")


def _true(when: Callable[[Facts], Any]) -> Callable[[Facts], bool | None]:
    """A flag without a value: there, or not."""
    return lambda facts: True if when(facts) else None


def flag(key: str, name: str, says: str = "") -> Row:
    """An argument without a value that sets a field to true."""

    def read(value: Any, reading: Reading) -> None:
        reading.fields[name] = True

    return same(key, "switch", name)._replace(write=_true(lambda f: f[name]), read=read, says=says)


def _above_one(key: str, name: str, says: str = "") -> Row:
    return same(key, "count", name, lambda f: f[name] not in (None, 1), says)


def _overlap(key: str, name: str) -> Row:
    return flag(key, name)._replace(write=_true(lambda f: f.stack.parallel.get(name) or f[name]))


def _bf16_states(facts: Facts) -> bool:
    return bool(facts["optimizer_dtype"] == "bf16" and facts["zero"] == 1)


def _experts(facts: Facts) -> bool:
    return facts.config.moe is not None


def _first_or_last(facts: Facts, end: int) -> int | None:
    """Blocks of the first or the last stage, where all between have as many."""
    counts = facts["stage_layers"]
    if counts is None or facts["vpp"] > 1 or not _middle_even(counts):
        return None
    return int(counts[end])


def _middle_even(counts: tuple[int, ...]) -> bool:
    return len(counts) > 2 and len(set(counts[1:-1])) == 1


def _layout(facts: Facts) -> str | None:
    """Megatron's pipeline layout: a letter a block, a bar between stages, E and L the two ends."""
    counts = facts["stage_layers"]
    if counts is None or _first_or_last(facts, 0) is not None:
        return None
    parts = ["t" * count for count in counts]
    return "E" + "|".join(parts) + "L"


def _estimated(key: str, value: Any, when: Callable[[Facts], Any]) -> Row:
    """An argument whose other values are not estimated."""
    kind = "switch" if value is True else "text"
    return seen(key, kind, "", lambda facts: value if when(facts) else None, "what is estimated")


def _cp_method(value: Any, reading: Reading) -> None:
    """One type for all layers, or a list of one a layer."""
    kinds = {str(one) for one in (value if isinstance(value, list) else [value])}
    found = {"p2p": "ring", "a2a": "ulysses"}.get(kinds.pop()) if len(kinds) == 1 else None
    if found is None:
        reading.say("cp-comm-type", NOT_MODELLED, "p2p (a ring) or a2a in every layer is estimated")
    else:
        reading.fields["cp_method"] = found


def _clips(value: Any, reading: Reading) -> None:
    reading.fields["grad_clip"] = value > 0


ROWS: Final = (
    *MODEL_ROWS,
    *(seen(key, "any", "--gpus", lambda f: None, "torchrun's, in a script")
      for key in ("nproc_per_node", "nproc-per-node", "nnodes")),
    seen("world", "count", "--gpus", lambda f: None,
         "not an argument: nproc_per_node x nnodes of a script's torchrun"),
    same("seq-length", "count", "seq_len"),
    same("micro-batch-size", "count", "micro_batch_size"),
    seen("global-batch-size", "count", "--grad-accum", lambda f: f.steps,
         "micro-batch x grad-accum x dp"),
    flag("bf16", "bf16")._replace(
        options="--precision", write=_true(lambda f: f["precision"] == "bf16-mixed"),
        read=lambda value, reading: reading.fields.update(precision="bf16-mixed"),
        says="bf16-mixed; neither is fp32"),
    flag("fp16", "fp16")._replace(
        options="--precision", write=_true(lambda f: f["precision"] == "fp16-mixed"),
        read=lambda value, reading: reading.fields.update(precision="fp16-mixed"),
        says="fp16-mixed"),
    words("optimizer", "optimizer", {"adamw": "adam", "sgd": "sgd"}),
    flag("use-precision-aware-optimizer", "optimizer_dtype")._replace(
        options="--optimizer-dtype bf16", write=_true(_bf16_states),
        read=lambda value, reading: None, says="with the two below"),
    seen("exp-avg-dtype", "text", "--optimizer-dtype bf16",
         lambda f: "bf16" if _bf16_states(f) else None, "`bf16`, both"),
    seen("exp-avg-sq-dtype", "text", "--optimizer-dtype bf16",
         lambda f: "bf16" if _bf16_states(f) else None),
    Row("clip-grad", "number", "--grad-clip", lambda f: 1.0 if f["grad_clip"] else 0.0, _clips,
        "above 0; 1.0 where absent"),
    seen("hidden-dropout", "number", "--dropout", lambda f: f.config.residual_dropout,
         "0.1 where absent"),
    seen("attention-dropout", "number", "--dropout", lambda f: f.config.attention_dropout,
         "0.1 where absent"),
    seen("recompute-granularity", "text", "--recompute",
         lambda f: {"full": "full", "selective": "selective"}.get(f["recompute"]),
         "`full`, `selective`; absent is none"),
    seen("recompute-activations", "switch", "--recompute selective", lambda f: None,
         "the older name of selective"),
    seen("recompute-method", "text", "--recompute full:N",
         lambda f: ("block" if f["recompute_layers"] else "uniform")
         if f["recompute"] == "full" else None,
         "`uniform` over 1 block is full, `block` full:N"),
    seen("recompute-num-layers", "count", "--recompute full:N",
         lambda f: (f["recompute_layers"] or 1) if f["recompute"] == "full" else None),
    seen("recompute-modules", "any", "--recompute-modules",
         lambda f: list(f["recompute_modules"]) or None, "words after it, core_attn where absent"),
    words("attention-backend", "attention",
          {"flash": "auto", "cudnn": "fused", "eager": "unfused"}),
    flag("cross-entropy-loss-fusion", "loss")._replace(
        options="--loss fused", write=_true(lambda f: f["loss"] == "fused"),
        read=lambda value, reading: None, says="with cross-entropy-fusion-impl te"),
    seen("cross-entropy-fusion-impl", "text", "--loss fused",
         lambda f: "te" if f["loss"] == "fused" else None, "`te`"),
    _above_one("tensor-model-parallel-size", "tp"),
    _above_one("pipeline-model-parallel-size", "pp"),
    _above_one("num-virtual-stages-per-pipeline-rank", "vpp", "and --schedule interleaved"),
    seen("num-layers-per-virtual-pipeline-stage", "count", "--vpp", lambda f: None,
         "blocks of a chunk"),
    seen("decoder-first-pipeline-num-layers", "count", "--stage-layers",
         lambda f: _first_or_last(f, 0), "stages between have as many each"),
    seen("decoder-last-pipeline-num-layers", "count", "--stage-layers",
         lambda f: _first_or_last(f, -1)),
    seen("pipeline-model-parallel-layout", "text", "--stage-layers", _layout,
         "a letter t a block, a bar between stages"),
    _above_one("context-parallel-size", "cp"),
    Row(
        "cp-comm-type",
        "any",
        "--cp-method",
        lambda f: {"ring": "p2p", "ulysses": "a2a"}[f["cp_method"]] if f["cp"] > 1 else None,
        _cp_method,
        "`p2p` is ring, `a2a` ulysses",
    ),
    _above_one("expert-model-parallel-size", "ep"),
    same("expert-tensor-parallel-size", "count", "etp", lambda f: f["etp"] is not None),
    flag("sequence-parallel", "sp"),
    flag("use-distributed-optimizer", "zero")._replace(
        options="--zero 1", write=_true(lambda f: f["zero"] == 1),
        read=lambda value, reading: reading.fields.update(zero=1)),
    seen("num-distributed-optimizer-instances", "count", "--shard",
         lambda f: f["dp"] * f["cp"] // f["shard"] if f["shard"] else None,
         "dp x cp over --shard"),
    *(_overlap(name.replace("_", "-"), name) for name in _OVERLAPS),
    flag("no-gradient-accumulation-fusion", "adds_in_place")._replace(
        options="--set stack.adds_in_place=false",
        write=_true(lambda f: not f.stack.parallel["adds_in_place"]),
        read=lambda value, reading: reading.fields.update({"stack.adds_in_place": False})),
    same("moe-expert-capacity-factor", "number", "capacity_factor"),
    flag("moe-pad-expert-input-to-capacity", "pad_to_capacity"),
    _estimated("moe-token-dispatcher-type", "alltoall", _experts),
    _estimated("moe-grouped-gemm", True, _experts),
    _estimated("moe-permute-fusion", True, _experts),
    _estimated("transformer-impl", "transformer_engine", always),
)  # fmt: skip


def finish(reading: Reading) -> None:
    """What arguments mean together: the model, the batch, recomputation, stages."""
    fields, got = reading.fields, reading.seen
    fields["stack"] = "megatron"
    fields.setdefault("precision", "fp32")
    fields.setdefault("grad_clip", True)  # --clip-grad is 1.0 unless stated
    if reading.any("tp", 1) > 1:
        fields.setdefault("sp", False)
    model_of(reading)
    if {got.get("exp-avg-dtype"), got.get("exp-avg-sq-dtype")} == {"bf16"}:
        fields["optimizer_dtype"] = "bf16"
    if got.get("cross-entropy-fusion-impl") == "te":
        fields["loss"] = "fused"
    recomputed(reading)
    cut(reading)
    world(reading)
    dropouts(reading)
    _check_estimated(reading)


def _check_estimated(reading: Reading) -> None:
    """Say where layers run otherwise than they are estimated; absent means Megatron's default."""
    got = reading.seen
    if got.get("transformer-impl", "transformer_engine") != "transformer_engine":
        reading.say("transformer-impl", NOT_MODELLED, "transformer_engine is estimated")
    if "num-experts" not in got:
        return
    if got.get("moe-token-dispatcher-type", "allgather") != "alltoall":
        why = "alltoall is estimated; allgather where absent"
        reading.say("moe-token-dispatcher-type", NOT_MODELLED, why)
    for key in ("moe-grouped-gemm", "moe-permute-fusion"):
        if not got.get(key):
            reading.say(key, NOT_MODELLED, "estimated as on; off where absent")


TOOL: Final = Tool(
    name="megatron",
    rows=ROWS,
    stacks=("megatron",),
    known="Megatron-LM core_v0.14.0, megatron-core 0.14.0, 0.16.1",
    finish=finish,
    no_effect=NO_EFFECT,
    unpriced=UNPRICED,
    harmless=HARMLESS,
    reasons=REASONS,
    elsewhere=("gpus",),
)
