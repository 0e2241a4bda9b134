"""torchtitan's settings: TOML up to 0.2, command-line flags from 0.3; one table, and what differs.

Whose code is estimated: stack torchtitan for models of the Llama form, torch for others.
Source: torchtitan 0.2.0, torchtitan/config/job_config.py, distributed/pipeline_parallel.py,
distributed/utils.py (maybe_enable_amp), models/llama3/infra/parallelize.py; torchtitan 0.3.0,
torchtitan/config/configs.py, config/manager.py, distributed/activation_checkpoint.py,
models/llama3/config_registry.py; run_train.sh (NGPU).
Checked by: unit/test_interop_torchtitan.py, unit/test_interop_packages.py (their own classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from memcalc.engine.blocks.layer_limits import check_layer_code
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import NEAREST, Reading, Row, always, fixed, same, seen, words
from memcalc.planning.interop.titan_rules import (
    SCHEDULES,
    batches,
    checkpointing,
    degrees,
    layers_per_stage,
    module_names,
    precision,
    replicas,
    shard_degree,
    stages,
)
from memcalc.planning.interop.titan_words import (
    FLAVORS,
    HARMLESS,
    NO_EFFECT,
    REASONS,
    RECIPES,
    UNPRICED,
)
from memcalc.planning.interop.tool import Tool

_P: Final = "parallelism."
_IMPLEMENTATIONS: Final = {"loop": "for-loop", "foreach": "foreach", "fused": "fused"}
_COMPUTE: Final = {"bf16": "bfloat16", "bf16-mixed": "bfloat16", "fp8-mixed": "bfloat16",
                   "fp32": "float32"}  # fmt: skip


def _flavor(part: int) -> Any:
    """torchtitan's name or flavor of a model, None for one that is not among its own."""
    back = {ours: theirs for theirs, ours in FLAVORS.items()}
    return lambda facts: back[facts.config.name][part] if facts.config.name in back else None


def _recipe(part: int) -> Any:
    back = {recipe.model: (recipe.module, name) for name, recipe in RECIPES.items()}
    return lambda facts: back[facts.config.name][part] if facts.config.name in back else None


def _compiles_loss(facts: Facts) -> bool:
    own = facts.stack.choices.get("compile_loss", False)
    return bool(facts.stated.get("kernels.compile_loss", own))


def _fp8(facts: Facts) -> bool:
    return bool(facts["precision"] == "fp8-mixed")


def _stages(facts: Facts) -> bool:
    return bool(facts["pp"] > 1)


def _resharding(facts: Facts) -> str | None:
    named = {None: "default", True: "always", False: "never"}
    return named.get(facts["reshard"]) if facts["zero"] != 2 else "never"


SHARED: Final = (
    seen("training.local_batch_size", "count", "--micro-batch, --grad-accum",
         lambda f: f["micro_batch_size"] * (f["grad_accum_steps"] if f["pp"] > 1 else 1),
         "the micro-batch; with stages all micro-batches of a step"),
    seen("training.global_batch_size", "count", "--global-batch", lambda f: f.steps,
         "-1 is local_batch_size x dp"),
    same("training.seq_len", "count", "seq_len"),
    seen("training.max_norm", "number", "--grad-clip", lambda f: 1.0,
         "gradients are always clipped, but for optimizer-in-backward"),
    seen("training.enable_cpu_offload", "switch", "--offload params",
         lambda f: f["offload"] in ("params", "all")),
    seen("training.dtype", "text", "--precision",
         lambda f: "bfloat16" if f["precision"] == "bf16" else "float32",
         "`float32`; `bfloat16` is bf16"),
    seen("training.mixed_precision_param", "text", "--precision",
         lambda f: _COMPUTE.get(f["precision"], "bfloat16"),
         "`bfloat16` is bf16-mixed under FSDP, DDP or on one GPU, fp32 beside tp or pp alone"),
    words("optimizer.implementation", "optimizer_impl", _IMPLEMENTATIONS),
    seen(f"{_P}data_parallel_replicate_degree", "count", "--gpus, --shard", replicas,
         "DDP; beside a shard degree the groups of HSDP"),
    seen(f"{_P}data_parallel_shard_degree", "count", "--fsdp, --shard, --gpus", shard_degree,
         "above 1, or cp above 1, is --fsdp; -1 is what the GPUs leave"),
    words(f"{_P}fsdp_reshard_after_forward", "reshard",
          {None: "default", True: "always", False: "never"})._replace(write=_resharding),
    same(f"{_P}tensor_parallel_degree", "count", "tp"),
    same(f"{_P}pipeline_parallel_degree", "count", "pp"),
    words(f"{_P}pipeline_parallel_schedule", "schedule", SCHEDULES),
    seen(f"{_P}pipeline_parallel_microbatch_size", "count", "--micro-batch",
         lambda f: f["micro_batch_size"] if f["pp"] > 1 else None, "with stages"),
    seen(f"{_P}pipeline_parallel_layers_per_stage", "count", "--vpp, --stage-layers",
         layers_per_stage, "blocks of a stage, the two keys below counted in"),
    seen(f"{_P}pipeline_parallel_first_stage_less_layers", "count", "--stage-layers",
         lambda f: 0 if _stages(f) else None),
    seen(f"{_P}pipeline_parallel_last_stage_less_layers", "count", "--stage-layers",
         lambda f: 0 if _stages(f) else None),
    same(f"{_P}context_parallel_degree", "count", "cp"),
    same(f"{_P}expert_parallel_degree", "count", "ep"),
    same("compile.enable", "switch", "compile"),
    seen("compile.components", "any", "--set kernels.compile_loss",
         lambda f: ["model", "loss"][: 1 + _compiles_loss(f)] if f["compile"] else None,
         "with `loss` the cross-entropy is compiled too"),
)  # fmt: skip
TOML_ROWS: Final = (
    seen("model.name", "text", "MODEL", _flavor(0)),
    seen("model.flavor", "text", "MODEL", _flavor(1)),
    seen("model.converters", "any", "--precision fp8-mixed", lambda f: ["float8"] if _fp8(f) else None,
         "`float8` is fp8-mixed"),
    seen("float8.enable_fsdp_float8_all_gather", "switch", "--set kernels.fp8_gather",
         lambda f: None, "0.1's name of the next"),
    seen("training.batch_size", "count", "--micro-batch", lambda f: None,
         "0.1's local_batch_size"),
    seen("quantize.linear.float8.enable_fsdp_float8_all_gather", "switch",
         "--set kernels.fp8_gather",
         lambda f: bool(f.stated.get("kernels.fp8_gather", False)) if _fp8(f) else None),
    words("optimizer.name", "optimizer", {"adamw": "AdamW"}),
    same("optimizer.early_step_in_backward", "switch", "optimizer_in_backward"),
    seen("activation_checkpoint.mode", "text", "--recompute",
         lambda f: {"full": "full", "sac": "selective", "sac-attention": "selective"}.get(
             f["recompute"], "none"),
         "`none`, `full`, `selective`"),
    seen("activation_checkpoint.selective_ac_option", "text", "--recompute sac",
         lambda f: "op" if f["recompute"] in ("sac", "sac-attention") else None,
         "`op` is sac; a number N recomputes every Nth block, full:N of as many"),
    same(f"{_P}expert_tensor_parallel_degree", "count", "etp", lambda f: f["etp"] is not None),
    seen(f"{_P}module_fqns_per_model_part", "any", "--stage-layers", module_names,
         "the blocks of every stage by name"),
)  # fmt: skip
FLAG_ROWS: Final = (
    seen("module", "text", "MODEL", _recipe(0)),
    seen("config", "text", "MODEL", _recipe(1), "the recipe that flags change"),
    fixed("training.disable_cuda_graphs", True, always,
          "its CUDA graphs' pools are not estimated"),
    same("loss.num_chunks", "count", "loss_chunks", lambda f: f["loss"] == "chunked")._replace(
        options="--set training.loss_chunks"
    ),
    same(f"{_P}enable_sequence_parallel", "switch", "sp", lambda f: f["tp"] > 1),
    seen("activation-checkpoint", "text", "--recompute",
         lambda f: {"full": "full", "sac": "selective", "sac-attention": "selective"}.get(
             f["recompute"], "none"),
         "the last word: `activation-checkpoint:full` is full, `selective` sac, `none`"),
)  # fmt: skip


def _finish(reading: Reading) -> None:
    """What both versions' keys mean together."""
    if reading.config is None and reading.model is not None:
        reading.config = load_model(reading.model)
    elif reading.config is not None and reading.model not in (None, reading.config.name):
        said = f"the settings name {reading.model}; {reading.config.name} was stated and taken"
        reading.say("model", NEAREST, said)
    reading.fields["stack"] = stack_of(reading.config)
    degrees(reading)
    stages(reading)
    batches(reading)
    precision(reading)
    in_backward = reading.any("optimizer_in_backward", False)
    reading.fields["grad_clip"] = not in_backward
    components = reading.seen.get("compile.components")
    if reading.fields.get("compile") and isinstance(components, list):
        own = reading.fields["stack"] == "torchtitan"
        if ("loss" in components) != own:
            reading.fields["kernels.compile_loss"] = "loss" in components


def finish_toml(reading: Reading) -> None:
    """Version 0.2 and before: the model, float8, sequence parallelism."""
    name, flavor = reading.seen.get("model.name"), reading.seen.get("model.flavor")
    reading.model = FLAVORS.get((str(name), str(flavor)))
    converters = reading.seen.get("model.converters") or []
    reading.seen["fp8"] = "float8" in converters
    gathers = any(
        reading.seen.get(f"{table}float8.enable_fsdp_float8_all_gather")
        for table in ("quantize.linear.", "")
    )
    if "training.batch_size" in reading.seen:
        reading.seen["training.local_batch_size"] = reading.seen["training.batch_size"]
    if reading.seen["fp8"] and gathers:
        reading.fields["kernels.fp8_gather"] = True
    if reading.any("tp", 1) > 1:
        reading.fields["sp"] = True
    option = str(reading.seen.get("activation_checkpoint.selective_ac_option", "2"))
    _finish(reading)
    checkpointing(reading, str(reading.seen.get("activation_checkpoint.mode")), option)


def finish_flags(reading: Reading) -> None:
    """Version 0.3: the recipe, whose own values flags change, and its loss in chunks."""
    name = str(reading.seen.get("config"))
    recipe = RECIPES.get(name)
    reading.model = None if recipe is None else recipe.model
    if recipe is None:
        reading.say(
            "config", NEAREST, f"the values of {name} are not known here: torchtitan's defaults"
        )
    reading.seen["fp8"] = recipe is not None and recipe.fp8
    reading.fields["loss"] = "chunked"
    if reading.any("tp", 1) == 1:
        reading.fields.pop("sp", None)
    else:
        reading.fields.setdefault("sp", True)
    _finish(reading)
    checkpointing(reading, str(reading.seen.get("activation-checkpoint")), "op")


def stack_of(config: ModelConfig | None) -> str:
    """torchtitan where its Llama layer is the model's, else torch."""
    if config is None:
        return "torchtitan"
    try:
        check_layer_code(config, "torchtitan", "flash")
    except ConfigError:
        return "torch"
    return "torchtitan"


_BASE: Final[Mapping[str, Any]] = {
    "training.local_batch_size": 8, "training.global_batch_size": -1, "training.seq_len": 2048,
    "training.dtype": "float32", "training.mixed_precision_param": "bfloat16",
    "optimizer.implementation": "fused", f"{_P}data_parallel_replicate_degree": 1,
    f"{_P}data_parallel_shard_degree": -1,
}  # fmt: skip


def recipe_base(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What flags change: the recipe's own values over torchtitan's defaults."""
    recipe = RECIPES.get(str(document.get("config")))
    return {
        **_BASE, "activation-checkpoint": "selective", "loss.num_chunks": 8,
        **({} if recipe is None else recipe.values),
    }  # fmt: skip


def _tool(known: str, rows: tuple[Row, ...], finish: Any, base: Any) -> Tool:
    return Tool(
        name="torchtitan",
        rows=(*rows, *SHARED),
        stacks=("torchtitan", "torch"),
        known=known,
        finish=finish,
        base=base,
        no_effect=NO_EFFECT,
        unpriced=UNPRICED,
        harmless=HARMLESS,
        reasons=REASONS,
    )


TOML: Final = _tool(
    "torchtitan 0.2.0",
    TOML_ROWS,
    finish_toml,
    lambda document: {
        **_BASE,
        "activation_checkpoint.mode": "selective",
        "activation_checkpoint.selective_ac_option": "2",
    },
)
FLAGS: Final = _tool("torchtitan 0.3.0", FLAG_ROWS, finish_flags, recipe_base)
