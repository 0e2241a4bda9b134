"""Phases where ranks divide a model: ZeRO's by hand, files by layout, what is refused."""

from __future__ import annotations

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.phases.evaluation import evaluation
from memcalc.engine.phases.files import File, on_disk
from memcalc.engine.phases.loading_ranks import loading_of
from memcalc.engine.phases.program import PHASES, Wanted, program
from memcalc.engine.phases.saving import FORMS, saving
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

P = 1_235_814_400
TABLE = 128256 * 2048
LORA = PeftSetup(rank=16, targets=("all-linear",))
ADDED = 11_272_192


def made(stack: str = "deepspeed", peft: PeftSetup | None = None, **layout: object) -> Plan:
    """Llama-3.2-1B; with stages a model whose head is its own."""
    plan = ParallelPlan(**layout)  # type: ignore[arg-type]
    setup = TrainingSetup(
        stack=stack, seq_len=64, micro_batch_size=1, peft=peft, grad_accum_steps=plan.pp,
        precision="bf16" if stack == "hf" else "bf16-mixed",
    )  # fmt: skip
    model = load_model("llama-7b" if plan.pp > 1 else "llama-3.2-1b")
    return plan_of(model, setup, None, plan)


def test_zero_3_gathers_a_module_to_save_in_16_bits() -> None:
    """The embedding is the largest; rank 0's host then has everything."""
    found = saving(made(gpus=4, zero=3))
    assert found.gathered_bytes == 2 * TABLE and found.host_bytes == 2 * P and not found.exact
    assert saving(made(gpus=4, zero=3), "sharded").gathered_bytes == 0
    assert saving(made(gpus=4, zero=2)).gathered_bytes == 0


def test_parts_that_wait_on_the_host_are_copied_beside_what_is_gathered() -> None:
    found = saving(made(gpus=4, zero=3, offload="params"))
    assert found.gathered_bytes == 2 * TABLE + 2 * TABLE // 4


def test_zero_3_loads_a_module_whole_after_the_other() -> None:
    found = loading_of(made(gpus=4, zero=3))
    assert (found.weights_bytes, found.passing_bytes) == (2 * P // 4, 2 * TABLE)
    assert loading_of(made(gpus=4, zero=2)).peak_bytes == 2 * P


def test_zero_3_evaluates_without_looking_ahead_to_backward() -> None:
    """At the head's end nothing of the blocks has been gathered again for backward."""
    plan = made(gpus=4, zero=3)
    found = evaluation(plan)
    assert found.gathered_bytes == 0  # what is whole is let go with the last module
    assert 2 * TABLE < found.forward_bytes < 2 * P


@pytest.mark.parametrize("zero", [1, 2])
def test_files_of_zero_1_and_2(zero: int) -> None:
    files = on_disk(made(gpus=4, zero=zero)).files
    assert files[0] == File("model_states", 1, 2 * P)
    assert files[1][:2] == ("optim_states", 4)
    assert 4 * files[1].each_bytes == pytest.approx(12 * P, rel=1e-5)


def test_files_of_zero_3() -> None:
    """12 bytes a parameter over the ranks, the 16-bit model once where it is gathered."""
    full, sharded = (on_disk(made(gpus=4, zero=3), form).files for form in ("full", "sharded"))
    assert full[0] == File("16-bit model", 1, 2 * P) and full[1:] == sharded
    assert [one.name for one in sharded] == ["optim_states"]


def test_frozen_parameters_are_in_every_ranks_file_of_zero_3() -> None:
    files = on_disk(made(peft=LORA, gpus=4, zero=3), "sharded").files
    assert files[0] == File("model_states", 4, -(-2 * P // 4))
    assert 4 * files[1].each_bytes == pytest.approx(12 * ADDED, rel=1e-3)


def test_sharded_files_are_as_many_as_hold_different_parts() -> None:
    plan = made("torch", gpus=8, fsdp=True, shard=4)
    model, optimizer = on_disk(plan, "sharded").files
    assert (model.count, model.each_bytes) == (4, P) and optimizer.count == 4
    assert [one.count for one in on_disk(plan).files] == [1, 1]


def test_an_adapters_file_and_a_merged_model() -> None:
    plan = made("hf", LORA, gpus=4)
    adapter, merged = on_disk(plan, "adapter"), on_disk(plan, "merged")
    assert adapter.model_bytes == 4 * ADDED and merged.model_bytes == 2 * P
    assert adapter.optimizer_bytes == pytest.approx(8 * ADDED, rel=1e-3)
    assert merged.optimizer_bytes == 0
    packed = on_disk(made("hf", PeftSetup(method="qlora", targets=("all-linear",))), "full")
    assert 0.4 * 2 * P < packed.model_bytes < 0.6 * 2 * P


def test_a_packed_checkpoint_passes_nothing() -> None:
    plan = made("hf", PeftSetup(method="qlora"))
    packing, packed = loading_of(plan), loading_of(plan, prequantised=True)
    assert packing.weights_bytes == packed.weights_bytes == packed.peak_bytes
    assert packing.peak_bytes >= packed.peak_bytes


@pytest.mark.parametrize(
    ("plan", "wanted", "how", "said"),
    [
        ({"stack": "hf"}, "save", {"save_as": "adapter"}, "nearest valid: full"),
        ({"stack": "hf"}, "save", {"save_as": "merged"}, "nearest valid: full"),
        ({"gpus": 4, "zero": 3}, "save", {"save_as": "full-gpu"}, "nearest valid: full"),
        ({"stack": "hf", "peft": PeftSetup(method="qlora")}, "save", {"save_as": "merged"},
         "nearest valid: adapter"),
        ({"stack": "torch", "pp": 2}, "save", {"save_as": "full"}, "nearest valid: sharded"),
        ({"stack": "torch", "pp": 2}, "eval", {}, "nearest valid"),
        ({"stack": "torch", "pp": 2}, "load", {"load_by": "rank0"}, "nearest valid: --fsdp"),
        ({"stack": "hf"}, "load", {"prequantised": True}, "nearest valid: 16bit"),
        ({"stack": "hf", "gpus": 4}, "load", {"load_by": "rank0"}, "nearest valid: --fsdp"),
        ({"stack": "fsdp1", "gpus": 4, "zero": 3}, "eval", {}, "nearest valid"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_refused_in_a_line(
    plan: dict[str, object], wanted: str, how: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        program(made(**plan), wanted, Wanted(**how))  # type: ignore[arg-type]
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_all_gives_what_there_is_and_says_what_is_not() -> None:
    found = program(made("torch", pp=2), "all")
    assert [one.name for one in found.phases] == ["load", "save"] and len(found.notes) == 2
    whole = program(made("torch", gpus=4, fsdp=True), "all")
    assert [one.name for one in whole.phases] == ["load", "first step", "eval", "save"]
    assert not whole.notes and "all" in PHASES
    for one in whole.phases:
        assert sum(one.parts.values()) == one.peak_bytes


def test_a_pipelines_fullest_rank_is_the_one_that_counts() -> None:
    """Stages hold half the blocks and a table each: with what adamw keeps of them, in fp32."""
    found = program(made("torch", pp=2), "all").phases
    block = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    most = 4 * (16 * block + 32000 * 4096 + 4096)
    assert found[0].peak_bytes == most
    assert 3 * most < found[1].peak_bytes < 3.01 * most


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_saved_adapter_model_sums_up(form: str) -> None:
    plan = made("hf", LORA, gpus=2)
    found = saving(plan, form)
    (phase,) = program(plan, "save", Wanted(save_as=form)).phases
    assert phase.peak_bytes == found.peak_bytes == sum(phase.parts.values())
