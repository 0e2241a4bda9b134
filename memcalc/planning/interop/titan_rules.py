"""What several of torchtitan's keys mean together: ranks, batches, dtypes, stages, recomputation.

Source: torchtitan 0.2.0, torchtitan/distributed/parallel_dims.py, distributed/pipeline_parallel.py
(generate_llm_fqn_per_model_part), distributed/utils.py (maybe_enable_amp), train.py (global_batch_size),
distributed/activation_checkpoint.py. Checked by: unit/test_interop_torchtitan.py.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import NEAREST, UNPRICED, Reading

_P: Final = "parallelism."
#: memcalc's schedules by torchtitan's names; it has no zero bubble with one stage a rank.
SCHEDULES: Final = {
    "1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B", "zb-v": "ZBVZeroBubble",
    "dualpipe": "DualPipeV",
}  # fmt: skip
_SINGLE: Final = ("1f1b", "gpipe")
#: GPUs of run_train.sh where nothing else is said.
_NGPU: Final = 8


def shard_degree(facts: Facts) -> int:
    """Ranks of dp in a sharding group; those of cp are in it besides."""
    if facts["zero"] < 2:
        return 1
    ranks = facts["shard"] or facts["dp"] * facts["cp"]
    return max(1, int(ranks // facts["cp"]))


def replicas(facts: Facts) -> int:
    """Copies of a sharding group, or of the whole model."""
    return max(1, int(facts["dp"] // shard_degree(facts)))


def degrees(reading: Reading) -> None:
    """GPUs, sharding and offload from the degrees of data parallelism."""
    fields, got = reading.fields, reading.seen
    inner = 1
    for name in ("tp", "pp", "cp"):
        inner *= reading.any(name, 1)
    copies = got[f"{_P}data_parallel_replicate_degree"]
    shard = got[f"{_P}data_parallel_shard_degree"]
    if copies < 1 or inner < 1 or (shard < 1 and shard != -1):
        raise ConfigError(
            f"torchtitan, {_P}data_parallel_*: got {copies}, {shard}; rule: 1 and more"
        )
    if shard == -1:
        shard = _left_over(reading, copies * inner)
    elif "gpus" not in reading.stated and "dp" not in reading.stated:
        fields["gpus"] = copies * shard * inner
    cp = reading.any("cp", 1)
    if shard * cp > 1:
        fields["fsdp"] = True
        if copies > 1:
            fields["shard"] = shard * cp
    if got.get("training.enable_cpu_offload"):
        fields["offload"] = "params"


def _left_over(reading: Reading, others: int) -> int:
    """The shard degree -1: what the GPUs leave, 8 unless stated, as run_train.sh has it."""
    gpus = reading.stated.get("gpus")
    if gpus is None and "dp" in reading.stated:
        return int(reading.stated["dp"])
    if gpus is None:
        gpus = max(1, _NGPU // others) * others
        reading.fields["gpus"] = gpus
        key = f"{_P}data_parallel_shard_degree"
        reading.say(key, NEAREST, f"-1 of --gpus, which is not stated: {gpus} GPUs in all taken")
    return max(1, int(gpus // others))


def batches(reading: Reading) -> None:
    """Micro-batch and accumulation; with stages a local batch is cut into the pipeline's micro-batches."""
    got = reading.seen
    local, total = got["training.local_batch_size"], got["training.global_batch_size"]
    if local < 1:
        raise ConfigError(f"torchtitan, training.local_batch_size: got {local}; rule: at least 1")
    copies = _copies(reading)
    rounds = 1
    if total > 0:
        if total % (local * copies):
            raise ConfigError(
                f"torchtitan, training.global_batch_size: got {total}; rule: a multiple of "
                f"local_batch_size x dp = {local * copies}"
            )
        rounds = total // (local * copies)
    micro = local
    if reading.any("pp", 1) > 1:
        key = f"{_P}pipeline_parallel_microbatch_size"
        micro = got.get(key, 1)
        if micro < 1 or local % micro:
            raise ConfigError(
                f"torchtitan, {key}: got {micro}; rule: divides local_batch_size {local}"
            )
        if rounds > 1:
            why = "several pipelines a step are taken as one of all micro-batches"
            reading.say("training.global_batch_size", NEAREST, why)
    reading.fields["micro_batch_size"] = micro
    reading.fields["grad_accum_steps"] = local // micro * rounds


def _copies(reading: Reading) -> int:
    """Ranks that split the batch."""
    if "dp" in reading.stated:
        return int(reading.stated["dp"])
    inner = 1
    for name in ("tp", "pp", "cp"):
        inner *= reading.any(name, 1)
    return max(1, int(reading.any("gpus", inner) // inner))


def precision(reading: Reading) -> None:
    """The dtype of parameters and of products; tp or pp without FSDP has no mixed precision."""
    got, fields = reading.seen, reading.fields
    dtype = str(got["training.dtype"])
    compute = str(got["training.mixed_precision_param"])
    named = {
        ("float32", "bfloat16"): "bf16-mixed",
        ("bfloat16", "bfloat16"): "bf16",
        ("float32", "float32"): "fp32",
    }
    found = named.get((dtype, compute))
    if found is None:
        why = f"{dtype} with {compute} is not estimated; bf16 taken"
        reading.say("training.dtype", UNPRICED, why)
        found = "bf16"
    alone = not fields.get("fsdp") and (reading.any("tp", 1) > 1 or reading.any("pp", 1) > 1)
    if found == "bf16-mixed" and alone:
        found = "fp32"
        why = "torchtitan mixes no precision beside tp or pp without FSDP: fp32"
        reading.say("training.mixed_precision_param", NEAREST, why)
    fields["precision"] = "fp8-mixed" if got.get("fp8") and found == "bf16-mixed" else found


def checkpointing(reading: Reading, mode: str, option: str) -> None:
    """Recomputation from the mode and, of selective, its option: `op`, or every Nth block."""
    fields = reading.fields
    key = "activation_checkpoint.selective_ac_option"
    if mode in ("none", "full"):
        fields["recompute"] = mode
    elif mode == "selective" and option == "op":
        fields["recompute"] = "sac"
    elif mode == "selective" and option.isdecimal() and int(option) > 0:
        fields["recompute"] = "full"
        layers = _layers(reading)
        if int(option) > 1 and layers:
            fields["recompute_layers"] = max(1, layers // int(option))
            why = f"every {option}th block recomputed: the first {fields['recompute_layers']} taken"
            reading.say(key, NEAREST, why)
    else:
        why = f"{mode} {option} is not estimated; none taken"
        reading.say("activation_checkpoint.mode", UNPRICED, why)


def layers_per_stage(facts: Facts) -> int | None:
    """Most blocks of a stage, where this number alone gives memcalc's own cut."""
    chunks, layers = int(facts["pp"] * facts["vpp"]), facts.config.num_hidden_layers
    most = -(-layers // chunks)
    if facts["pp"] == 1 or facts["stage_layers"] is not None or -(-layers // most) != chunks:
        return None
    return most


def module_names(facts: Facts) -> list[list[str]] | None:
    """The modules of every stage by name, where stages differ."""
    counts = facts["stage_layers"]
    if counts is None:
        return None
    parts, first = [], 0
    for number, count in enumerate(counts):
        blocks = [f"layers.{layer}" for layer in range(first, first + count)]
        start = ["tok_embeddings"] if number == 0 else []
        end = ["norm", "output"] if number == len(counts) - 1 else []
        parts.append([*start, *blocks, *end])
        first += count
    return parts


def stages(reading: Reading) -> None:
    """Chunks of a rank and blocks of a stage, by torchtitan's own division."""
    fields, got = reading.fields, reading.seen
    pp = reading.any("pp", 1)
    if pp == 1:
        fields.pop("schedule", None)
        return
    parts = got.get(f"{_P}module_fqns_per_model_part")
    if parts:
        counts = _named_blocks(parts)
    elif _layers(reading):
        counts = _divided(reading, pp, _layers(reading))
    else:
        return
    if len(counts) % pp:
        raise ConfigError(f"torchtitan, stages: got {len(counts)}; rule: a multiple of {pp} ranks")
    if len(counts) > pp:
        fields["vpp"] = len(counts) // pp
    if counts != _evenly(sum(counts), len(counts)):
        fields["stage_layers"] = tuple(counts)


def _named_blocks(parts: Any) -> list[int]:
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        key = f"{_P}module_fqns_per_model_part"
        raise ConfigError(f"torchtitan, {key}: rule: a list of lists of names")
    return [sum(str(name).startswith("layers.") for name in part) for part in parts]


def _divided(reading: Reading, pp: int, layers: int) -> list[int]:
    """Blocks of each stage: embedding and head count as blocks of their own where torchtitan says so."""
    got = reading.seen
    first = got.get(f"{_P}pipeline_parallel_first_stage_less_layers", 1)
    last = got.get(f"{_P}pipeline_parallel_last_stage_less_layers", 1)
    whole = layers + first + last
    each = got.get(f"{_P}pipeline_parallel_layers_per_stage")
    if each is None:
        count = pp * (1 if reading.any("schedule", "1f1b") in _SINGLE else 2)
    elif each < 1:
        raise ConfigError(
            f"torchtitan, {_P}pipeline_parallel_layers_per_stage: got {each}; rule: >= 1"
        )
    else:
        count = -(-whole // each)
    counts = _evenly(whole, count)
    counts[0] -= first
    counts[-1] -= last
    if min(counts) < 0 or sum(counts) != layers:
        raise ConfigError(
            f"torchtitan, stages: got {count} for {layers} blocks; rule: a block for each"
        )
    return counts


def _evenly(whole: int, parts: int) -> list[int]:
    """A whole cut into parts, the first ones one more: memcalc's rule and torchtitan's."""
    least, more = divmod(whole, parts)
    return [least + (number < more) for number in range(parts)]


def _layers(reading: Reading) -> int:
    """Blocks of the model, 0 where it is not known."""
    own = 0 if reading.config is None else reading.config.num_hidden_layers
    return int(reading.stated.get("num_layers") or own)
