"""Fine-tuning methods and encoders in layouts: what runs, what is refused in one line with the nearest."""

from __future__ import annotations

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

LORA = PeftSetup(targets=("all-linear",))


def made(
    peft: PeftSetup | None, stack: str = "hf", model: str = "llama-3.2-1b", **layout: object
) -> Plan:
    precision = "bf16-mixed" if stack == "deepspeed" else "bf16"
    setup = TrainingSetup(
        stack=stack, seq_len=64, micro_batch_size=1, precision=precision, peft=peft
    )
    return plan_of(load_model(model), setup, None, ParallelPlan(**layout))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("peft", "stack", "layout", "near"),
    [
        (LORA, "hf", {"tp": 2}, "--tp 1"),
        (LORA, "hf", {"pp": 2}, "--pp 1"),
        (LORA, "hf", {"cp": 2}, "--cp 1"),
        (PeftSetup(method="qlora"), "deepspeed", {"gpus": 4, "zero": 3}, "--zero 1, 2"),
        (PeftSetup(method="dora"), "deepspeed", {"gpus": 4, "zero": 3}, "--zero 2"),
        (
            PeftSetup(method="freeze", layers=2),
            "hf",
            {"gpus": 8, "fsdp": True, "reshard": 4},
            "true",
        ),
    ],
    ids=["tp", "pp", "cp", "qlora zero 3", "dora zero 3", "freeze on fewer"],
)
def test_what_nobody_followed_is_refused_in_a_line(
    peft: PeftSetup, stack: str, layout: dict[str, object], near: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(peft, stack, **layout)
    said = str(caught.value)
    assert "nearest valid" in said and near in said and "\n" not in said


@pytest.mark.parametrize("model", ["flan-t5-small", "bert-base-uncased"])
def test_encoders_are_divided_over_the_batch_alone(model: str) -> None:
    for layout in ({"gpus": 4}, {"gpus": 4, "fsdp": True}):
        assert step_memory(made(None, "hf", model, **layout)).peak_bytes > 0
    for zero in (0, 2, 3):
        assert step_memory(made(None, "deepspeed", model, gpus=4, zero=zero)).peak_bytes > 0
    for layout in ({"tp": 2}, {"pp": 2}, {"offload": "activations"}):
        with pytest.raises(ConfigError, match="nearest valid"):
            made(None, "hf", model, **layout)


def test_more_ranks_of_fsdp_take_less_and_ddp_as_much() -> None:
    alone, two, eight = (
        step_memory(made(LORA, gpus=gpus, fsdp=gpus > 1)).peak_bytes for gpus in (1, 2, 8)
    )
    assert alone > two > eight
    whole = step_memory(made(LORA, gpus=8))
    assert (
        whole.peak_bytes >= alone
        and whole.states.gradient_bytes < whole.states.parameter_bytes / 10
    )


@pytest.mark.parametrize("stack", ["hf", "deepspeed"])
def test_stages_of_zero_never_take_more_states(stack: str) -> None:
    """Parameters, gradients and states of a rank, stage after stage."""
    layouts: list[dict[str, object]] = [{"gpus": 8, "zero": zero} for zero in (0, 1, 2, 3)]
    if stack == "hf":
        layouts = [{"gpus": 8}, {"gpus": 8, "zero": 1}, {"gpus": 8, "fsdp": True}]
    sums = []
    for layout in layouts:
        held = step_memory(made(LORA, stack, **layout)).states
        sums.append(
            held.parameter_bytes + held.gradient_bytes + held.optimizer_bytes + held.master_bytes
        )
    assert sums == sorted(sums, reverse=True) and sums[-1] < sums[0] / 6
