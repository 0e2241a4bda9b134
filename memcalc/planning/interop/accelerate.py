"""accelerate's YAML: the table of its keys, for DDP, FSDP, tp and cp, DeepSpeed, Megatron-LM.

Whose training code is estimated follows from distributed_type: FSDP version 2 and MULTI_GPU are stack hf
(torch beside tensor or context parallelism), FSDP version 1 fsdp1, DEEPSPEED deepspeed, MEGATRON_LM megatron.
Source: accelerate 1.15.0, commands/config/config_args.py, commands/config/cluster.py, commands/launch.py,
utils/dataclasses.py, parallelism_config.py.
Checked by: unit/test_interop_accelerate.py, unit/test_interop_packages.py (ClusterConfig itself).
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.planning.interop.accelerate_rows import PLUGIN_ROWS
from memcalc.planning.interop.accelerate_words import HARMLESS, NO_EFFECT, REASONS
from memcalc.planning.interop.accelerate_words import UNPRICED as NOT_ESTIMATED
from memcalc.planning.interop.deepspeed_rules import offload
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import (
    NEAREST,
    UNPRICED,
    Reading,
    Row,
    always,
    fixed,
    seen,
    words,
)
from memcalc.planning.interop.tool import Tool

_FSDP: Final = "fsdp_config.fsdp_"
_DEGREES: Final = "parallelism_config.parallelism_config_"
_NODE: Final = 8
_PRECISIONS: Final = {
    "fp32": "no", "bf16-mixed": "bf16", "fp16-mixed": "fp16", "fp8-mixed": "fp8",
}  # fmt: skip
_STRATEGIES: Final = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD")


def _type(facts: Facts) -> str:
    """accelerate's distributed_type for a setup."""
    named = {"deepspeed": "DEEPSPEED", "megatron": "MEGATRON_LM"}.get(facts["stack"])
    if named:
        return named
    if facts["zero"] >= 2:
        return "FSDP"
    return "MULTI_GPU" if facts["gpus"] > 1 else "NO"


def _is_fsdp(facts: Facts) -> bool:
    return _type(facts) == "FSDP"


def _is_fsdp1(facts: Facts) -> bool:
    return _is_fsdp(facts) and facts["stack"] == "fsdp1"


def _machines(facts: Facts) -> int:
    """Nodes: the layout's, else of 8 GPUs."""
    return max(1, -(-int(facts["gpus"]) // int(facts["gpus_per_node"] or _NODE)))


def _keeps(facts: Facts) -> bool:
    return facts["reshard"] is False or facts["zero"] == 2


def _reshard(facts: Facts) -> bool | str | None:
    if not _is_fsdp(facts):
        return None
    if not _is_fsdp1(facts):
        return not _keeps(facts)
    whole = facts["shard"] in (None, facts["dp"])
    return ("SHARD_GRAD_OP" if _keeps(facts) else "FULL_SHARD") if whole else "HYBRID_SHARD"


def _meshes(facts: Facts) -> bool:
    """FSDP2 over part of the ranks, or beside tensor or context parallelism."""
    split = facts["tp"] > 1 or facts["cp"] > 1
    part = facts["shard"] not in (None, facts["dp"] * facts["cp"])
    return _is_fsdp(facts) and not _is_fsdp1(facts) and (split or part)


def _shard(facts: Facts) -> int:
    """Ranks of dp that share a sharding group; those of cp are in it besides."""
    ranks = facts["shard"] or facts["dp"] * facts["cp"]
    return max(1, int(ranks // facts["cp"]))


def _wrap(value: Any, reading: Reading) -> None:
    if value != "TRANSFORMER_BASED_WRAP":
        reading.say(f"{_FSDP}auto_wrap_policy", UNPRICED, "every block is a group here")


ROWS: Final = (
    fixed("compute_environment", "LOCAL_MACHINE", always, "where it runs"),
    seen("distributed_type", "text", "--stack, --fsdp, --zero", _type,
         "`FSDP`, `DEEPSPEED`, `MEGATRON_LM`, `MULTI_GPU` (DDP), `NO`"),
    words("mixed_precision", "precision", _PRECISIONS),
    seen("num_processes", "count", "--gpus", lambda f: f["gpus"]),
    seen("num_machines", "count", "--gpus-per-node", _machines, "nodes of 8 GPUs unless stated"),
    fixed("machine_rank", 0, always, "which node this is"),
    fixed("main_training_function", "main", always, "the script's function"),
    fixed("rdzv_backend", "static", always, "how nodes find each other"),
    fixed("same_network", True, always, "how nodes find each other"),
    fixed("use_cpu", False, always, "on GPUs"),
    seen(f"{_FSDP}version", "count", "--stack hf, --stack fsdp1",
         lambda f: (1 if _is_fsdp1(f) else 2) if _is_fsdp(f) else None,
         "2 is PyTorch's fully_shard, 1 (where absent) FullyShardedDataParallel"),
    seen(f"{_FSDP}reshard_after_forward", "any", "--reshard, --zero 2, --shard", _reshard,
         "version 2: true, or false as --reshard false; version 1: `FULL_SHARD`, `SHARD_GRAD_OP` as "
         "--reshard false, `HYBRID_SHARD` as --shard of a node's GPUs, `NO_SHARD` as DDP"),
    seen(f"{_FSDP}sharding_strategy", "any", "--reshard, --zero 2, --shard", lambda f: None,
         "version 1's older name of the same"),
    Row(f"{_FSDP}offload_params", "switch", "--offload params",
        lambda f: f["offload"] in ("params", "all") if _is_fsdp(f) else None,
        lambda value, reading: reading.seen.update({"offloads": value})),
    Row(f"{_FSDP}activation_checkpointing", "switch", "--recompute full",
        lambda f: f["recompute"] == "full" if _is_fsdp(f) else None,
        lambda value, reading: reading.fields.update(recompute="full" if value else "none")),
    Row(f"{_FSDP}auto_wrap_policy", "text", "",
        lambda f: "TRANSFORMER_BASED_WRAP" if _is_fsdp(f) else None, _wrap, "every block a group"),
    fixed(f"{_FSDP}state_dict_type", "SHARDED_STATE_DICT", _is_fsdp, "of checkpoints"),
    fixed(f"{_FSDP}cpu_ram_efficient_loading", True, _is_fsdp, "of loading"),
    seen(f"{_DEGREES}dp_replicate_size", "count", "--shard",
         lambda f: f["dp"] // _shard(f) if _meshes(f) else None, "sharding groups"),
    seen(f"{_DEGREES}dp_shard_size", "count", "--shard",
         lambda f: _shard(f) if _meshes(f) else None, "ranks of a sharding group, over cp"),
    seen(f"{_DEGREES}tp_size", "count", "--tp", lambda f: f["tp"] if _meshes(f) else None),
    seen(f"{_DEGREES}cp_size", "count", "--cp", lambda f: f["cp"] if _meshes(f) else None),
    *PLUGIN_ROWS,
)  # fmt: skip


def finish(reading: Reading) -> None:
    """What keys mean together: whose code runs, how many GPUs, how they are grouped."""
    kind = str(reading.seen.get("distributed_type", "NO")).upper()
    code = {"DEEPSPEED": "deepspeed", "MEGATRON_LM": "megatron"}.get(kind, "hf")
    if kind not in ("DEEPSPEED", "MEGATRON_LM", "FSDP", "MULTI_GPU", "NO"):
        raise ConfigError(
            f"accelerate, distributed_type: got {kind!r}; valid: NO, MULTI_GPU, FSDP, DEEPSPEED, "
            "MEGATRON_LM"
        )
    reading.fields["stack"] = code
    _gpus(reading, kind)
    if kind == "FSDP":
        _fsdp(reading)
    elif kind == "DEEPSPEED":
        if "deepspeed_config.deepspeed_config_file" not in _keys(reading):
            reading.fields.setdefault("zero", 2)  # DeepSpeedPlugin's default
        names = ("offload_optimizer_device", "offload_param_device")
        offload(reading, *(f"deepspeed_config.{name}" for name in names))
    elif kind == "MEGATRON_LM":
        _megatron(reading)
    reading.fields.setdefault("precision", "fp32")


def _gpus(reading: Reading, kind: str) -> None:
    gpus = 1 if kind == "NO" else reading.seen.get("num_processes")
    if gpus is None:
        return
    reading.fields["gpus"] = gpus
    nodes = reading.seen.get("num_machines", 1)
    if nodes < 1 or gpus < nodes or gpus % nodes:
        raise ConfigError(
            f"accelerate, num_machines: got {nodes}; rule: divides num_processes = {gpus}"
        )
    here = gpus // nodes
    if here != _NODE and not (nodes == 1 and here < _NODE):
        reading.fields["gpus_per_node"] = here


def _fsdp(reading: Reading) -> None:
    """fully_shard or FullyShardedDataParallel, over which ranks, beside what."""
    fields, got = reading.fields, reading.seen
    version = got.get(f"{_FSDP}version", 1)
    fields["fsdp"] = True
    reshard = got.get(f"{_FSDP}sharding_strategy", got.get(f"{_FSDP}reshard_after_forward"))
    if version == 1:
        fields["stack"] = "fsdp1"
        _strategy(reading, str(reshard or "FULL_SHARD").upper())
    elif str(reshard).lower() == "false":
        fields["reshard"] = False
    if got.get("offloads"):
        fields["offload"] = "params"
    sizes = {name: got.get(f"{_DEGREES}{name}_size") for name in ("tp", "cp")}
    fields |= {name: degree for name, degree in sizes.items() if (degree or 1) > 1}
    if any((degree or 1) > 1 for degree in sizes.values()):
        fields["stack"] = "torch"
    groups = got.get(f"{_DEGREES}dp_replicate_size") or 1
    ranks = got.get(f"{_DEGREES}dp_shard_size") or 1
    cp, tp = sizes["cp"] or 1, sizes["tp"] or 1
    if groups > 1:
        fields["shard"] = ranks * cp
    if f"{_DEGREES}dp_shard_size" in got:
        fields.setdefault("gpus", groups * ranks * cp * tp)


def _strategy(reading: Reading, name: str) -> None:
    """FSDP1's ShardingStrategy, by name or by accelerate's number."""
    name = _STRATEGIES[int(name) - 1] if name in ("1", "2", "3", "4") else name
    if name not in _STRATEGIES:
        raise ConfigError(
            f"accelerate, {_FSDP}sharding_strategy: got {name!r}; valid: {', '.join(_STRATEGIES)}"
        )
    if name == "SHARD_GRAD_OP":
        reading.fields["reshard"] = False
    elif name == "NO_SHARD":
        reading.fields.pop("fsdp")
    elif name == "HYBRID_SHARD":
        gpus = reading.any("gpus", _NODE)
        reading.fields["shard"] = min(gpus, reading.any("gpus_per_node", None) or _NODE)


def _keys(reading: Reading) -> set[str]:
    return {remark.key for remark in reading.remarks}


def _megatron(reading: Reading) -> None:
    """What MegatronLMPlugin fills in where its keys are absent."""
    fields, prefix = reading.fields, "megatron_lm_config.megatron_lm_"
    fields.setdefault("grad_clip", True)
    if reading.any("tp", 1) > 1:
        fields.setdefault("sp", False)
    if "cp" not in fields:
        why = "absent: accelerate 1.15 fills in 2; 1 taken, as other releases have it"
        reading.say(f"{prefix}context_parallel_size", NEAREST, why)
    _recomputes(reading)


def _recomputes(reading: Reading) -> None:
    """Megatron-LM through accelerate: recompute_activations is selective; else its granularity."""
    section = "megatron_lm_config.megatron_lm_recompute_"
    got = reading.seen
    if got.get(f"{section}activations"):
        reading.fields["recompute"] = "selective"
        return
    granularity = got.get(f"{section}granularity", "full")
    reading.fields["recompute"] = "selective" if granularity == "selective" else "full"
    if f"{section}granularity" not in got:
        why = "accelerate 1.15 fills in recompute_granularity full where nothing is stated"
        reading.say(f"{section}granularity", NEAREST, why)
    if got.get(f"{section}method") == "block":
        reading.fields["recompute_layers"] = max(1, got.get(f"{section}num_layers", 1))
    elif got.get(f"{section}num_layers", 1) != 1:
        reading.say(f"{section}num_layers", UNPRICED, "each layer is a checkpoint of its own here")


def check(facts: Facts) -> None:
    """Raise ConfigError for what accelerate launches in no way."""
    if facts["stack"] in ("deepspeed", "megatron"):
        return
    for name in ("tp", "cp"):
        if facts[name] > 1 and not _is_fsdp(facts):
            raise ConfigError(
                f"{name}: got {facts[name]} without fsdp; rule: accelerate has its parallelism_config "
                "beside FSDP version 2 alone; valid: --fsdp"
            )


TOOL: Final = Tool(
    name="accelerate",
    rows=ROWS,
    stacks=("hf", "torch", "fsdp1", "deepspeed", "megatron"),
    known="accelerate 1.15.0",
    finish=finish,
    check=check,
    no_effect=NO_EFFECT,
    unpriced=NOT_ESTIMATED,
    harmless=HARMLESS,
    reasons=REASONS,
    elsewhere=("seq_len", "micro_batch_size"),
)
