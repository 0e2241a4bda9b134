"""The training setup and the layout of a row, in the terms of `memcalc.estimate`.

What a row leaves open takes the default of the command line, and is named as an assumption where it
decides memory. Nothing here knows a byte.
Checked by: unit/test_accuracy_express.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from memcalc.accuracy.adapters import fine_tuning, in_own_code
from memcalc.accuracy.models import model_of
from memcalc.accuracy.notes import NotExpressedError, refuse
from memcalc.accuracy.rows import Row
from memcalc.errors import ConfigError
from memcalc.inputs.clusters import Cluster, load_cluster
from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import stack_names
from memcalc.inputs.training import TrainingSetup

#: Frameworks without a profile of their own yet, and the stack nearest to them.
NEAREST_STACK: Final = {"internevo": "megatron"}
#: Spellings of GPUs that have no profile, and the same chip that has one.
SAME_CHIP: Final = {"h100-96gb-500w": "h100-80gb"}
#: (framework, loss as a row calls it) -> the loss its code runs. torchtune's head returns fp32 logits
#: whatever the loss (torchtune/modules/transformer.py, unembed).
_OWN_LOSS: Final = {("torchtune", "plain"): "fp32"}
#: Kernels of attention that keep what another one keeps, at a speed of their own.
_SAME_SAVED: Final = {"triton": "flash"}
#: Part of a source's name -> what its training code does that the stack's default does not. llm-foundry:
#: flash-attn's cross-entropy keeps 16-bit logits alone (llmfoundry/models/mpt/modeling_mpt.py,
#: fused_crossentropy), DecoupledAdamW is a loop over parameters (composer/optim/decoupled_weight_decay.py),
#: every recipe clips (scripts/train/yamls/pretrain: gradient_clipping); checkpoints of PyTorch 1.13 and
#: 2.0, which it ran (submit_benchmarks.py, --image), recompute a whole block: early stop came with 2.1.
#: Megatron-LM, nanotron's benchmarks, torchtitan and InternEvo clip at 1.0 by default
#: (training/arguments.py, clip_grad;
#: scripts/scaling_benchmarks.py; job_config.py, max_norm; configs/7B_sft.py), as the Trainer of
#: transformers does, which QwenLM/Qwen's finetune.py runs (training_args.py, max_grad_norm), on PyTorch
#: 2.0 (README.md, profiling).
_CLIPS: Final[Mapping[str, Any]] = {"grad_clip": True}
_OWN_TRAINING: Final[Mapping[str, Mapping[str, Any]]] = {
    "llm-foundry": {"loss": "plain", "optimizer_impl": "loop", "recomputes_all": True, **_CLIPS},
    "Megatron": _CLIPS, "Korthikanti": _CLIPS, "MT-NLG": _CLIPS, "BigScience": _CLIPS,
    "nanotron": _CLIPS, "torchtitan": _CLIPS, "InternEvo": _CLIPS,
    "Qwen-1 finetune": {"recomputes_all": True, **_CLIPS},
}  # fmt: skip
#: Part of a source's name -> how its exchanges overlap where the nearest stack differs. InternEvo:
#: configs/7B_sft.py, overlap_sync_grad without overlap_sync_param.
_OWN_OVERLAP: Final[Mapping[str, Mapping[str, bool]]] = {
    "InternEvo": {"overlap_grad_reduce": True},
}
#: Part of a source's name -> kernels of the release it ran, where the stack describes a later one.
#: torchtitan compiles its loss since 2025-03 (components/loss.py); train.py of 2024 leaves it eager.
#: The H200 rows' source prints their command, which is not run_train.sh: no expandable segments.
#: InternEvo ran flash-attn 1.0.5 (doc/en/install.md).
_OF_RELEASE: Final[Mapping[str, Mapping[str, Any]]] = {
    "torchtitan 2024": {"compile_loss": False},
    "torchtitan H200": {"expandable_segments": False},
    "InternEvo": {"attention_code": "flash1"},
}
#: Part of a source's name -> kernels of its runs under DeepSpeed, which has no autocast: modeling_qwen.py's
#: loss hands 16-bit logits to cross-entropy, 6 bytes a logit. Under autocast accelerate copies the output to
#: fp32 beside it (utils/operations.py, ConvertOutputsToFp32): 12 bytes either way.
_UNDER_DEEPSPEED: Final[Mapping[str, Mapping[str, Any]]] = {
    "Qwen-1 finetune": {"narrow_loss": True},
}
#: Part of a source's name -> the ZeRO stage of rows that leave it out. QwenLM/Qwen, issue 424: the stages
#: are the scripts'; finetune/finetune_ds.sh passes ds_config_zero3.json (README.md, Finetuning).
_SCRIPT_ZERO: Final = {"Qwen-1 finetune": 3}
#: GPUs of a node where a row does not say.
_NODE_GPUS: Final = 8
_BYTES_PER_GBIT: Final = 1e9 / 8
_DEFAULTS: Final = {
    "precision": "bf16-mixed", "optimizer": "adamw", "recompute": "none", "attention": "flash",
}  # fmt: skip


class Expressed(NamedTuple):
    """A row as arguments of `memcalc.estimate`; assumed: what the row did not state.

    cluster: of the GPU, where the row says how its nodes are joined.
    """

    config: ModelConfig
    setup: TrainingSetup
    plan: ParallelPlan
    gpu: str | None
    assumed: list[str]
    kernels: dict[str, Any] = {}  # noqa: RUF012  # never changed
    cluster: Cluster | None = None

    @property
    def device(self) -> Cluster | str | None:
        """What `estimate` takes as its gpu."""
        return self.cluster or self.gpu


def express(row: Row) -> Expressed:
    """What `memcalc.estimate` takes for a row. Raises NotExpressedError with the reason it cannot."""
    refuse(row)
    config, assumed = model_of(row)
    config, about_code = in_own_code(row, config)
    try:
        setup, more = setup_of(row)
        plan = plan_of(row)
        gpu, about_gpu = gpu_of(row)
        cluster = cluster_of(row, gpu)
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None
    kernels = dict(_own(_OF_RELEASE, row))
    if _framework(row) == "deepspeed":
        kernels |= _own(_UNDER_DEEPSPEED, row)
    if row.text("attention") in _SAME_SAVED:
        kernels["attention_code"] = row.text("attention")
    if "fp8 all-gather" in (row.text("precision_text") or ""):
        kernels["fp8_gather"] = True
    if row.whole("zero") is None and plan.zero and not plan.fsdp:
        more.append(f"ZeRO stage not stated: {plan.zero}, as the source's script")
    assumed = [*assumed, *about_code, *more, *about_gpu]
    return Expressed(config, setup, plan, gpu, assumed, kernels, cluster)


def setup_of(row: Row) -> tuple[TrainingSetup, list[str]]:
    """The training setup a row states, and what was assumed of it."""
    said = {name: row.text(name) or default for name, default in _DEFAULTS.items()}
    assumed = [
        f"{name} not stated: {default}"
        for name, default in _DEFAULTS.items()
        if row.text(name) is None
    ]
    stack, about_stack = _stack(row)
    peft, said["precision"], about_peft = fine_tuning(row, said["precision"])
    base, _, blocks = said["recompute"].partition(":")
    optimizer = said["optimizer"]
    if optimizer == "paged-adamw-8bit":
        optimizer = "adamw-8bit"
        assumed.append("paged states priced as resident")
    attention = said["attention"]
    if attention == "sdpa":
        attention = "efficient" if said["precision"] in ("fp32", "tf32") else "flash"
        assumed.append(f"sdpa read as its {attention} kernel")
    attention = _SAME_SAVED.get(attention, attention)
    own = _own(_OWN_TRAINING, row)
    dims_stated = row.whole("hidden_size") is not None
    setup = TrainingSetup(
        seq_len=row.whole("seq"),
        **_batch(row),
        precision=said["precision"],
        optimizer=optimizer,
        optimizer_impl=row.text("optimizer_impl") or own.get("optimizer_impl"),
        recompute=base,
        recompute_layers=int(blocks) if blocks else None,
        reentrant=base == "full" and bool(own.get("recomputes_all", False)),
        attention=attention,
        grad_clip=bool(own.get("grad_clip", False)),
        loss=_OWN_LOSS.get((_framework(row), row.text("loss") or ""))
        or row.text("loss")
        or own.get("loss"),
        stack=stack,
        compile=bool(row.flag("compile")),
        optimizer_in_backward=bool(row.flag("optimizer_in_backward")),
        num_layers=None if dims_stated else row.whole("num_hidden_layers"),
        peft=peft,
    )
    return setup, [*assumed, *about_stack, *about_peft]


def _own(table: Mapping[str, Mapping[str, Any]], row: Row) -> Mapping[str, Any]:
    """The entry of a table by parts of sources' names that the row's source holds, or none."""
    return next((own for name, own in table.items() if name in row.source), {})


def _batch(row: Row) -> dict[str, Any]:
    """Micro-batch and the number of them, by its own column or out of the global batch."""
    micro, steps = row.whole("micro_batch"), row.whole("grad_accum")
    if steps is None:
        return {"micro_batch_size": micro, "global_batch": row.whole("global_batch")}
    return {"micro_batch_size": micro, "grad_accum_steps": steps}


def _stack(row: Row) -> tuple[str, list[str]]:
    """The stack whose code a row ran, or the nearest one there is."""
    stated = row.text("stack")
    if stated is None:
        return "torch", ["stack not stated: torch"]
    name = _framework(row)
    if name in stack_names():
        return name, []
    nearest = NEAREST_STACK.get(name)
    if nearest in stack_names():
        return nearest, [f"stack {name} priced as {nearest}"]
    raise NotExpressedError(f"stack {name!r} is not in this version")


def _framework(row: Row) -> str:
    return (row.text("stack") or "").removeprefix("other:")


def plan_of(row: Row) -> ParallelPlan:
    """The layout a row states; degrees it leaves out are 1, dp what the GPUs leave."""
    kind, zero = row.text("fsdp"), _zero(row)
    tp, vpp = row.whole("tp") or 1, row.whole("vpp") or 1
    return ParallelPlan(
        gpus=row.whole("n_gpus"),
        gpus_per_node=row.whole("gpus_per_node"),
        tp=tp,
        pp=row.whole("pp") or 1,
        vpp=vpp,
        cp=row.whole("cp") or 1,
        ep=row.whole("ep") or 1,
        etp=row.whole("etp"),
        dp=row.whole("dp"),
        sp=row.flag("sp") if tp > 1 else None,
        zero=3 if kind == "fsdp2" else zero,
        fsdp=kind == "fsdp2",
        shard=row.whole("shard_group"),
        reshard=False if kind == "fsdp2" and row.whole("zero") == 2 else None,
        schedule=row.text("schedule") or ("interleaved" if vpp > 1 else "1f1b"),
        stage_layers=row.wholes("stage_layers"),
        cp_method=row.text("cp_method") or "ring",
        offload=row.text("offload") or "none",
        **_own(_OWN_OVERLAP, row),
    )


def _zero(row: Row) -> int:
    """The stage a row states; else, under DeepSpeed, that of its source's script."""
    stated = row.whole("zero")
    if stated is None and _framework(row) == "deepspeed":
        return next((stage for name, stage in _SCRIPT_ZERO.items() if name in row.source), 0)
    return stated or 0


def gpu_of(row: Row) -> tuple[str | None, list[str]]:
    """The GPU profile a row's card has, None where it names none."""
    stated = row.text("gpu")
    if stated is None:
        return None, ["GPU not stated: workspace and context of a Hopper card"]
    if stated in SAME_CHIP:
        return SAME_CHIP[stated], [f"GPU {stated}: context and workspace of {SAME_CHIP[stated]}"]
    gpu, notes = load_gpu(stated)
    return gpu.slug, notes


def _has_switch(card: Gpu) -> bool:
    """Whether the GPUs of a node reach each other over a fast link, and not in pairs alone."""
    link = (card.link or "none").lower()
    return not link.startswith(("pcie", "none")) and "bridge" not in link


def cluster_of(row: Row, gpu: str | None) -> Cluster | None:
    """The row's nodes and their network: a profile by name, or what a node sends to others.

    None where the row says neither. Raises ConfigError for a cluster of other GPUs.
    """
    named, network = row.text("cluster"), row.number("node_network_gbps")
    if named is not None:
        cluster = load_cluster(named)
        if gpu is not None and cluster.gpu != gpu:
            raise ConfigError(f"cluster: got {cluster.slug}; rule: one of {gpu}, the row's GPU")
        return cluster
    if network is None or gpu is None:
        return None
    card, count = load_gpu(gpu)[0], row.whole("gpus_per_node") or _NODE_GPUS
    if card.link_unidirectional_bytes_per_s is None:
        return None
    return Cluster(
        name=f"nodes of {count} {card.name}",
        slug="stated-by-the-row",
        gpu=card.slug,
        gpus_per_node=count,
        domain_gpus=count,
        link=card.link or "unknown",
        topology="switch" if _has_switch(card) else "host",
        link_bytes_per_s=card.link_unidirectional_bytes_per_s,
        network=row.text("interconnect_text"),
        nics_per_node=1,
        nic_bytes_per_s=network * _BYTES_PER_GBIT,
    )
