"""DeepSpeed's ZeRO beside frozen parameters: what is cut, bucketed, gathered and on the host, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.deepspeed.zero_gather import Gathers
from memcalc.engine.parallel.deepspeed.zero_modules import (
    Module,
    modules_of,
    parameters_of,
    recorded_order,
)
from memcalc.engine.parallel.strategy import HostBlock
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

LORA = PeftSetup(rank=16, targets=("all-linear",))
#: LoRA of all linears of Llama-3.2-1B at rank 16: 16 times the inputs and outputs of seven linears.
TRAINED = 16 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 2 * (2048 + 8192) + 8192 + 2048)
WHOLE = 1_235_814_400


def made(peft: PeftSetup | None = LORA, name: str = "llama-3.2-1b", **layout: object) -> Plan:
    setup = TrainingSetup(
        stack="deepspeed", seq_len=128, micro_batch_size=1, precision="bf16-mixed", peft=peft
    )
    plan = ParallelPlan(**{"gpus": 4, **layout})  # type: ignore[arg-type]
    return plan_of(load_model(name), setup, None, plan)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_are_of_what_trains(zero: int) -> None:
    """Parameters whole but in stage 3; gradients and 12 bytes of states cut from stage 1 on."""
    held = step_memory(made(zero=zero)).states
    cut = 4 if zero else 1
    assert held.trainable_parameters == TRAINED
    assert held.parameter_bytes == 2 * (WHOLE + TRAINED) // (4 if zero == 3 else 1)
    assert held.gradient_bytes == 2 * TRAINED // cut
    assert held.optimizer_bytes + held.master_bytes == 12 * TRAINED // cut


def test_buckets_hold_what_trains_alone() -> None:
    plan = made(zero=2)
    strategy = plan.strategy
    assert isinstance(strategy, DeepSpeed)
    assert sum(size for _, size in strategy.parameters) == TRAINED
    assert all(".lora_" in name for name, _ in strategy.parameters)
    assert sum(size for _, size in parameters_of(strategy.modules)) == WHOLE + TRAINED


def test_the_host_has_frozen_parameters_one_by_one() -> None:
    """Trained ones in one pinned buffer with gradients and states, frozen ones pageable as they are."""
    plan = made(gpus=1, zero=3, offload="params")
    strategy = plan.strategy
    blocks = strategy.host(plan)
    parameters = [block for block in blocks if block.what == "parameters"]
    assert parameters[0] == HostBlock("parameters", 2 * TRAINED, True)
    assert sum(block.size_bytes for block in parameters[1:]) == 2 * WHOLE
    assert not any(block.pinned for block in parameters[1:])
    states = sum(block.size_bytes for block in blocks if block.what == "optimizer")
    assert states == 12 * TRAINED


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b"])
def test_a_recorded_order_is_the_chain_where_everything_trains(name: str, recompute: str) -> None:
    """What the recording says of a plain decoder is what the stated order says, tied head and all."""
    setup = TrainingSetup(stack="deepspeed", seq_len=128, recompute=recompute)
    plan = plan_of(load_model(name), setup, None, ParallelPlan(gpus=2, zero=3))
    strategy = plan.strategy
    assert isinstance(strategy, DeepSpeed) and not strategy.recorded
    gathers = next(one for one in strategy.injectors(plan) if isinstance(one, Gathers))
    recorded = replace_recorded(gathers, plan)
    stated = _without_twins([(module.block, module.op) for module in gathers.order()])
    assert _without_twins([(m.block, m.op) for m in recorded.order()]) == stated


def replace_recorded(gathers: Gathers, plan: Plan) -> Gathers:
    return gathers._replace(recorded=recorded_order(plan, gathers.modules))


def _without_twins(order: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Neighbours that are the same are one visit: no hook hears of the second."""
    return [one for i, one in enumerate(order) if not i or order[i - 1] != one]


def test_frozen_modules_without_a_backward_are_not_visited_there() -> None:
    """The embedding and the first block's linears of a frozen model give nobody a gradient."""
    plan = made(zero=3)
    strategy = plan.strategy
    assert isinstance(strategy, DeepSpeed)
    backward = {(block, op) for way, block, op, _ in strategy.recorded if way != "forward"}
    forward = {(block, op) for way, block, op, _ in strategy.recorded if way == "forward"}
    assert (-1, "embedding") in forward and (-1, "embedding") not in backward
    assert (0, "q_proj") in forward and (0, "q_proj") not in backward
    assert (0, "q_proj.lora") in backward and (1, "q_proj") in backward


def test_a_tied_head_is_gathered() -> None:
    """Its weight is the embedding's: 262,668,288 elements again at the end of forward."""
    modules = modules_of(made(None, zero=3))
    assert modules[-1] == Module(-1, "lm_head", (("embedding.weight", 128256 * 2048),))


def test_an_encoder_decoders_decoder_reads_the_same_embedding() -> None:
    setup = TrainingSetup(
        stack="deepspeed", seq_len=64, target_seq_len=8, precision="fp32", peft=PeftSetup()
    )
    plan = plan_of(load_model("flan-t5-small"), setup, None, ParallelPlan(gpus=2, zero=3))
    strategy = plan.strategy
    assert isinstance(strategy, DeepSpeed)
    ops = [op for way, _, op, _ in strategy.recorded if way == "forward"]
    assert ops.index("embedding") < ops.index("decoder_embedding") < ops.index("lm_head")


def test_zero_3_keeps_the_inputs_of_frozen_linears() -> None:
    """zero.Init's linear saves its input whatever trains: those of gate and up, of down, of the head.

    The queries' input is the adapter's too, attention's output is kept by attention.
    """
    adapted = PeftSetup(rank=16, targets=("q_proj",))
    less, more = (step_memory(made(adapted, zero=zero)).saved_bytes for zero in (2, 3))
    assert more - less == 2 * 128 * (16 * (2048 + 8192) + 2048)
    full = [step_memory(made(None, zero=zero)).saved_bytes for zero in (2, 3)]
    assert full[0] == full[1]


def test_adapters_are_in_the_models_dtype() -> None:
    assert made().kernels.adapter.dtype == "bf16"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="lora_dtype: got fp32.*nearest valid: bf16"):
        made(replace(LORA, dtype="fp32"))


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_packed_base_is_whole_on_every_rank(zero: int) -> None:
    """NF4's bytes are those of one GPU, states those of the adapters."""
    qlora = replace(LORA, method="qlora")
    one = TrainingSetup(
        stack="hf", seq_len=128, precision="bf16", peft=replace(qlora, dtype="bf16")
    )
    alone = step_memory(plan_of(load_model("llama-3.2-1b"), one)).states
    held = step_memory(made(qlora, zero=zero)).states
    assert held.parameter_bytes == alone.parameter_bytes
    assert held.optimizer_bytes + held.master_bytes == 12 * TRAINED // (4 if zero else 1)
