"""Cases of the phases beside a step: the first step, evaluating, loading, saving, alone and of one rank.

Peaks of an evaluation and of a gathered state dict are over what stands; where nothing is gathered there is
no figure to record. Peaks of loading by transformers are bounds, as the engine says of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.exact.case import Answer, Case, counted, drawn_by, parameters_of, ways_of
from memcalc.accuracy import textbook
from memcalc.engine.make_plan import plan_of
from memcalc.engine.phases.evaluation import evaluation
from memcalc.engine.phases.files import on_disk
from memcalc.engine.phases.first_step import first_step
from memcalc.engine.phases.loading import loading
from memcalc.engine.phases.loading_ranks import loading_of
from memcalc.engine.phases.saving import saving
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.parallel import ParallelPlan
from tests.harness.models import LLAMA
from tests.oracle import (
    test_loading,
    test_loading_ranks,
    test_phases,
    test_phases_ranks,
    test_saving,
)
from tests.oracle.support.compare import said
from tests.oracle.support.data_parallel import engine_plan
from tests.oracle.support.rank_draw import RankSetup
from tests.oracle.support.reference import How, RefConfig, model_of, setup_of
from tests.oracle.support.reference import plan_of as plan_of_reference
from tests.oracle.support.step import run_step

_OVER = "over what stands"
FIRST, EVALUATION = "peak of a first step", f"evaluation: peak {_OVER}"
ON_DISK = "tensors of a checkpoint on disk"
EVALUATED, LOADED = f"{EVALUATION}, transformers", "loading by from_pretrained: peak"
#: Of one rank; the report puts "peak of a rank" before them.
RANK_FIRST, RANK_EVALUATION = "first step", f"evaluation, {_OVER}"
RANK_LOADED, GATHERED = "loading", f"gathered state dict, {_OVER}"
#: Bytes of a number that from_pretrained reads, by format.
_WIDE = {"bf16": 2.0, "nf4": 0.5, "int8": 1.0}


def phases() -> Iterator[Case]:
    """Drawn decoders on one device; what is written of them."""
    tests = [name for name in vars(test_phases) if "first_step" in name and name[:5] == "test_"]
    for number, (cfg, how) in enumerate(drawn_by(test_phases, "check_first", *tests)):
        yield Case(
            f"first step {number}", f"{said(cfg)}; {how.optimizer} {how.impl} x{how.accum}",
            lambda cfg=cfg, how=how: {FIRST: max(first_step(plan_of_reference(cfg, how)).values())},
            partial(_first_by_torch, cfg, how), partial(_first_by_hand, cfg, how),
        )  # fmt: skip
    for stated in parameters_of(test_phases.test_the_peak_of_a_forward_pass_without_gradients):
        how = test_phases.without_dropout(stated["seed"])
        yield Case(
            f"evaluation {stated['seed']}", said(how[0]),
            lambda how=how: {EVALUATION: evaluation(plan_of_reference(*how)).forward_bytes},
            lambda how=how: {EVALUATION: test_phases.evaluated(*how)},
        )  # fmt: skip
    for stated in parameters_of(test_saving.test_tensors_of_a_checkpoint_are_those_torch_saves):
        plan = test_saving.checkpointed(**stated)
        words = f"{stated['model'].model_type} {stated['optimizer']} {stated['impl']}"
        yield Case(
            f"checkpoint {words}", f"{words}, fp32",
            lambda plan=plan: {ON_DISK: on_disk(plan).total_bytes},
            lambda plan=plan: {ON_DISK: sum(test_saving.sizes_of(test_saving.stepped(plan)))},
            partial(_on_disk_by_hand, plan),
        )  # fmt: skip


def _first_by_torch(cfg: RefConfig, how: How) -> Answer:
    return {FIRST: max(peak.nbytes for peak in run_step(cfg, how, steps=1).phase_peaks.values())}


def _first_by_hand(cfg: RefConfig, how: How) -> Answer:
    config = model_of(cfg)
    return {FIRST: textbook.peak_bytes(config, setup_of(cfg, how), counted(config))}


def _on_disk_by_hand(plan: Any) -> Answer:
    """States without gradients."""
    count = counted(plan.config)
    return {ON_DISK: textbook.state_bytes(count, plan.resolved.setup) - 4 * count}


def evaluations() -> Iterator[Case]:
    """By transformers' own code: every family, encoders, a model with adapters."""
    for stated in parameters_of(test_phases.test_an_evaluation_of_transformers_own_code):
        family, vocab = stated["family"], stated["vocab"]
        yield _evaluation(
            f"{family} {vocab}", f"{family}, {vocab} words, 2 x 64 tokens, bf16",
            partial(test_phases.hf_plan, family, vocab),
            partial(test_phases.evaluated_by_hf, family, vocab),
        )  # fmt: skip
    for name, config in test_phases_ranks.ENCODERS.items():
        yield _evaluation(
            name, f"{name}, bf16, eager", partial(test_phases_ranks.encoder_plan, config),
            partial(test_phases_ranks.encoder_evaluated, config),
        )  # fmt: skip
    for dropout in (0.0, 0.1):
        yield _evaluation(
            f"adapters {dropout}", f"llama with LoRA, dropout {dropout} in training, bf16",
            partial(test_phases_ranks.adapter_plan, dropout),
            partial(test_phases_ranks.adapter_evaluated, dropout),
        )  # fmt: skip


def _evaluation(name: str, words: str, plan: Any, oracle: Any) -> Case:
    return Case(
        name, words, lambda: {EVALUATED: evaluation(plan()).forward_bytes},
        lambda: {EVALUATED: oracle()},
    )  # fmt: skip


def loads() -> Iterator[Case]:
    """from_pretrained on a CPU, less the tables that are no weights."""
    for fmt in _WIDE:
        yield Case(
            fmt, f"llama of 3 layers, h 256, {fmt}",
            lambda fmt=fmt: {LOADED: loading(test_loading.weights(fmt)).peak_bytes},
            partial(_loaded_by_transformers, fmt), partial(_loaded_by_hand, fmt),
        )  # fmt: skip


def _loaded_by_transformers(fmt: str) -> Answer:
    with TemporaryDirectory() as folder:
        peak, live = test_loading.read_by_transformers(fmt, Path(folder))
    return {LOADED: peak - (live - loading(test_loading.weights(fmt)).weights_bytes)}


def _loaded_by_hand(fmt: str) -> Answer:
    config = model_from_config({"model_type": "llama", **test_loading.SIZES}, "m")
    return {LOADED: textbook.serving_bytes(config, counted(config), 0, 0, _WIDE[fmt])}


def phase_ranks() -> Iterator[Case]:
    """One rank of several on the fake process group."""
    cases = test_phases_ranks.CASES
    for stated in parameters_of(test_phases_ranks.test_the_first_step_of_a_rank):
        yield _first_of_rank(stated["name"], cases[stated["name"]])
    for name, one in cases.items():
        yield Case(
            f"evaluation: {name}", one.name,
            lambda one=one: {RANK_EVALUATION: evaluation(engine_plan(one)).forward_bytes},
            lambda one=one: {RANK_EVALUATION: test_phases_ranks.evaluated(one)[0]},
        )  # fmt: skip
    for stated in parameters_of(test_loading_ranks.test_fully_shard_cuts_a_model_block_by_block):
        yield _loaded(stated["model"], stated["ranks"], None)
    for stated in parameters_of(test_loading_ranks.test_rank_0_sends_one_parameter_after_the_other):
        yield _loaded(LLAMA, stated["ranks"], stated["rank"])
    for shards in (2, 4, 3):
        yield from _gathered(Layout(dp=shards, fsdp=True), ("full", "full-gpu"))
    yield from _gathered(Layout(tp=2), ("full", "full-gpu"))
    yield from _gathered(Layout(dp=4, tp=2, fsdp=True), ("full",))
    for form in ("adapter", "full"):
        yield Case(
            f"saving: adapters {form}", f"llama with LoRA, dp4 fsdp, {form}",
            lambda form=form: {GATHERED: saving(test_saving.TUNED.plan(), form).gathered_bytes},
            lambda form=form: {GATHERED: test_saving.of_adapters(form)},
        )  # fmt: skip


def _first_of_rank(name: str, one: RankSetup) -> Case:
    return Case(
        f"first step: {name}", one.name,
        lambda: {RANK_FIRST: max(first_step(engine_plan(one)).values())},
        lambda: {RANK_FIRST: max(test_phases_ranks.stepped_first(one).values())},
        lambda: {RANK_FIRST: textbook.peak_bytes(one.config, one.setup, counted(one.config),
                                            ways_of(one.layout))},
    )  # fmt: skip


def _loaded(model: Any, ranks: int, rank: int | None) -> Case:
    """rank: that receives from rank 0; None: each cuts what it made itself, block by block."""
    words = "block by block" if rank is None else f"from rank 0, rank {rank}"
    how = "direct" if rank is None else "rank0"

    def theirs() -> Answer:
        load = test_loading_ranks.block_by_block
        if rank is not None:
            load = test_loading_ranks.from_rank_0(rank)
        return {RANK_LOADED: test_loading_ranks.seen(model, ranks, rank or 0, load)}

    return Case(
        f"loading: {model.model_type} {ranks} {words}",
        f"{model.model_type} fp32, {words}, of {ranks} fsdp",
        lambda: {RANK_LOADED: loading_of(test_loading_ranks.planned(model, ranks), how).peak_bytes},
        theirs,
        lambda: {RANK_LOADED: 4 * counted(model) / ranks},
    )


def _gathered(layout: Layout, forms: tuple[str, ...]) -> Iterator[Case]:
    """A full state dict, on the host ("full") or on the GPU."""
    plan = plan_of(
        LLAMA, test_saving.SETUP, None,
        ParallelPlan(dp=layout.dp, tp=layout.tp, fsdp=layout.fsdp),
    )  # fmt: skip
    for form in forms:
        words = f"dp{layout.dp} tp{layout.tp}{' fsdp' * layout.fsdp}, {form}"
        yield Case(
            f"saving: {words}", f"llama {words}",
            lambda form=form: {GATHERED: saving(plan, form).gathered_bytes},
            lambda form=form: {GATHERED: test_saving.of_layout(
                layout, full_state_dict=True, cpu_offload=form == "full")},
        )  # fmt: skip
