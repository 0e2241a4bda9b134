"""The layouts of two and of four ranks that are held against one process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from memcalc.engine.plan import Plan
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.model import ModelConfig
from tests.harness.models import GPT2, LLAMA, MIXTRAL, cpu_plan

#: Steps whose losses are compared.
STEPS = 4
QWEN3 = replace(LLAMA, name="small-qwen3", qk_norm="head", attention_bias=True)
THREE = replace(LLAMA, name="three-layers", num_hidden_layers=3)
assert MIXTRAL.moe is not None
TWO = replace(MIXTRAL, moe=replace(MIXTRAL.moe, num_experts=2, num_experts_per_tok=1))
EIGHT = replace(MIXTRAL, moe=replace(MIXTRAL.moe, num_experts=8))
DDP, FSDP = Layout(dp=2), Layout(dp=2, fsdp=True)
TP, TP_SP = Layout(tp=2), Layout(tp=2, sp=True)
ONE_F_ONE_B, GPIPE = Layout(pp=2), Layout(pp=2, schedule="gpipe")


@dataclass(frozen=True)
class Case:
    """A layout, a model and a setup; mem_tracker: also hold the peak against torch's MemTracker."""

    layout: Layout
    config: ModelConfig = LLAMA
    setup: dict[str, Any] = field(default_factory=dict)
    mem_tracker: bool = False


def _case(layout: Layout, config: ModelConfig = LLAMA, mem: bool = False, **setup: Any) -> Case:
    return Case(layout, config, setup, mem)


#: SGD shows a gradient's scale, which Adam hides; with clipping it shows the norm over all ranks.
SGD: dict[str, Any] = {"optimizer": "sgd"}
CLIP: dict[str, Any] = {"optimizer": "sgd", "grad_clip": True}

CASES = {
    "ddp": _case(DDP, mem=True),
    "ddp-accum": _case(DDP, grad_accum_steps=2, **SGD),
    "ddp-gpt2": _case(DDP, GPT2, **CLIP),
    "fsdp": _case(FSDP, mem=True),
    "fsdp-mixed": _case(FSDP, mem=True, precision="bf16-mixed"),
    "fsdp-full": _case(FSDP, mem=True, recompute="full", **SGD),
    "fsdp-sac-accum": _case(FSDP, recompute="sac", grad_accum_steps=2, **CLIP),
    "fsdp-gpt2-chunked": _case(FSDP, GPT2, loss="chunked"),
    "fsdp-mixtral": _case(FSDP, MIXTRAL, **SGD),
    "tp": _case(TP),
    "tp-gpt2": _case(TP, GPT2, **SGD),
    "tp-sp": _case(TP_SP, mem=True),
    "tp-sp-qwen3-full": _case(TP_SP, QWEN3, recompute="full", **SGD),
    "tp-sp-gpt2-chunked": _case(TP_SP, GPT2, loss="chunked", **CLIP),
    "cp-ulysses": _case(Layout(cp=2, cp_method="ulysses"), GPT2, **CLIP),
    "fsdp-cp-ulysses-full": _case(
        Layout(cp=2, cp_method="ulysses", fsdp=True), recompute="full", **SGD
    ),
    "ep-mixtral": _case(Layout(dp=2, ep=2, fsdp=True), MIXTRAL, **SGD),
    "pp-1f1b": _case(ONE_F_ONE_B, grad_accum_steps=3, **SGD),
    "pp-gpipe": _case(GPIPE, grad_accum_steps=3, **CLIP),
    "pp-uneven": _case(
        ONE_F_ONE_B, THREE, grad_accum_steps=2, recompute="full", recompute_layers=1
    ),
}

#: Two degrees at once, on four ranks.
GRIDS = {
    "fsdp x tp-sp": _case(Layout(dp=2, tp=2, sp=True, fsdp=True), GPT2, grad_accum_steps=2, **CLIP),
    "fsdp x tp": _case(Layout(dp=2, tp=2, fsdp=True), recompute="full", **SGD),
    "fsdp-rows-cut": _case(Layout(dp=4, fsdp=True), TWO, **SGD),
    "ep-rows-cut": _case(Layout(dp=4, ep=2, fsdp=True), TWO, **SGD),
    "ep x fsdp": _case(Layout(dp=4, ep=2, fsdp=True), EIGHT, grad_accum_steps=2, **SGD),
    "pp x tp": _case(Layout(pp=2, tp=2), QWEN3, grad_accum_steps=2, **CLIP),
    "pp x ddp": _case(Layout(pp=2, dp=2), grad_accum_steps=2, **SGD),
    "pp x fsdp": _case(Layout(pp=2, dp=2, fsdp=True), grad_accum_steps=3, **CLIP),
}


def plan_of_case(case: Case, rows: int = 2) -> Plan:
    """The plan of each rank; rows 4 for one process with the whole batch of two."""
    return cpu_plan(case.config, micro_batch_size=rows, **case.setup)
