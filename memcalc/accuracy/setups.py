"""The training setup and the layout of a row, in the terms of `memcalc.estimate`.

What a row leaves open takes the default of the command line, and is named as an assumption where it
decides memory. Nothing here knows a byte.
Checked by: unit/test_accuracy_express.py.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memcalc.accuracy.models import model_of
from memcalc.accuracy.notes import NotExpressedError, refuse
from memcalc.accuracy.rows import Row
from memcalc.errors import ConfigError
from memcalc.inputs import training
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

#: Frameworks without a profile of their own yet, and the stack nearest to them.
NEAREST_STACK: Final = {"internevo": "megatron"}
#: Spellings of GPUs that have no profile, and the same chip that has one.
SAME_CHIP: Final = {"h100-96gb-500w": "h100-80gb"}
#: (framework, loss as a row calls it) -> the loss its code runs. torchtune's head returns fp32 logits
#: whatever the loss (torchtune/modules/transformer.py, unembed).
_OWN_LOSS: Final = {("torchtune", "plain"): "fp32"}
#: Part of a source's name -> kernels of the release it ran, where the stack describes a later one.
#: torchtitan compiles its loss since 2025-03 (components/loss.py); train.py of 2024 leaves it eager.
#: The H200 rows' source prints their command, which is not run_train.sh: no expandable segments.
_OF_RELEASE: Final = {
    "torchtitan 2024": {"compile_loss": False},
    "torchtitan H200": {"expandable_segments": False},
}
_DEFAULTS: Final = {
    "precision": "bf16-mixed", "optimizer": "adamw", "recompute": "none", "attention": "flash",
}  # fmt: skip


class Expressed(NamedTuple):
    """A row as arguments of `memcalc.estimate`; assumed: what the row did not state."""

    config: ModelConfig
    setup: TrainingSetup
    plan: ParallelPlan
    gpu: str | None
    assumed: list[str]
    kernels: dict[str, Any] = {}  # noqa: RUF012  # never changed


def express(row: Row) -> Expressed:
    """What `memcalc.estimate` takes for a row. Raises NotExpressedError with the reason it cannot."""
    refuse(row)
    config, assumed = model_of(row)
    try:
        setup, more = setup_of(row)
        plan = plan_of(row)
        gpu, about_gpu = gpu_of(row)
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None
    kernels = dict(next((k for name, k in _OF_RELEASE.items() if name in row.source), {}))
    if "fp8 all-gather" in (row.text("precision_text") or ""):
        kernels["fp8_gather"] = True
    return Expressed(config, setup, plan, gpu, [*assumed, *more, *about_gpu], kernels)


def setup_of(row: Row) -> tuple[TrainingSetup, list[str]]:
    """The training setup a row states, and what was assumed of it."""
    said = {name: row.text(name) or default for name, default in _DEFAULTS.items()}
    assumed = [
        f"{name} not stated: {default}"
        for name, default in _DEFAULTS.items()
        if row.text(name) is None
    ]
    stack, about_stack = _stack(row)
    base, _, blocks = said["recompute"].partition(":")
    optimizer = said["optimizer"]
    if optimizer == "paged-adamw-8bit":
        optimizer = "adamw-8bit"
        assumed.append("paged states priced as resident")
    attention = said["attention"]
    if attention == "sdpa":
        attention = "efficient" if said["precision"] in ("fp32", "tf32") else "flash"
        assumed.append(f"sdpa read as its {attention} kernel")
    dims_stated = row.whole("hidden_size") is not None
    setup = TrainingSetup(
        seq_len=row.whole("seq"),
        **_batch(row),
        precision=said["precision"],
        optimizer=optimizer,
        optimizer_impl=row.text("optimizer_impl"),
        recompute=base,
        recompute_layers=int(blocks) if blocks else None,
        attention=attention,
        loss=_OWN_LOSS.get((_framework(row), row.text("loss") or ""), row.text("loss")),
        stack=stack,
        compile=bool(row.flag("compile")),
        optimizer_in_backward=bool(row.flag("optimizer_in_backward")),
        num_layers=None if dims_stated else row.whole("num_hidden_layers"),
    )
    return setup, [*assumed, *about_stack]


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
    if name in training.STACKS:
        return name, []
    nearest = NEAREST_STACK.get(name)
    if nearest in training.STACKS:
        return nearest, [f"stack {name} priced as {nearest}"]
    raise NotExpressedError(f"stack {name!r} is not in this version")


def _framework(row: Row) -> str:
    return (row.text("stack") or "").removeprefix("other:")


def plan_of(row: Row) -> ParallelPlan:
    """The layout a row states; degrees it leaves out are 1, dp what the GPUs leave."""
    kind, zero = row.text("fsdp"), row.whole("zero") or 0
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
    )


def gpu_of(row: Row) -> tuple[str | None, list[str]]:
    """The GPU profile a row's card has, None where it names none."""
    stated = row.text("gpu")
    if stated is None:
        return None, ["GPU not stated: workspace and context of a Hopper card"]
    if stated in SAME_CHIP:
        return SAME_CHIP[stated], [f"GPU {stated}: context and workspace of {SAME_CHIP[stated]}"]
    gpu, notes = load_gpu(stated)
    return gpu.slug, notes
