"""Estimates held against real steps on real CPU tensors: no difference, FLOPs included.

100 configurations: every model with every kind of recomputation and precision; losses, optimizers,
attention kernels and accumulation drawn with them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.events import step_events
from memcalc.engine.flops import step_flops
from memcalc.engine.memory import step_memory
from memcalc.harness.local import local_plan
from memcalc.harness.measure import MeasureOptions
from memcalc.harness.step import TrainingStep
from memcalc.harness.verify import differences, verify
from memcalc.harness.watch.flop_count import counted_flops
from memcalc.harness.watch.op_times import op_times
from memcalc.harness.watch.step_timeline import instants, timeline_record
from memcalc.harness.watch.tensors import tracked_step
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup
from memcalc.planning.charts.timeline import every_instant
from tests.harness.models import GPT2, LLAMA, MIXTRAL, cpu_plan

MODELS = {
    "llama": LLAMA,
    "llama, biases and norms of q and k": replace(LLAMA, qk_norm="head", attention_bias=True),
    "gpt2": GPT2,
    "gpt2 with dropout": replace(GPT2, residual_dropout=0.1, embedding_dropout=0.1),
    "mixtral": MIXTRAL,
}
RECOMPUTE = ("none", "selective", "sac", "sac-attention", "full")
FAST = MeasureOptions(device="cpu", steps=1, warmup=1, threads=1, ceiling=False)


def _drawn(rng: random.Random, precision: str) -> dict[str, Any]:
    return {
        "precision": precision,
        "loss": rng.choice(["plain", "fp32", "chunked", "fused"]),
        "attention": rng.choice(["flash", "flash", "eager"]),
        "optimizer": rng.choice(["adamw", "adamw", "momentum", "adafactor"]),
        "optimizer_impl": rng.choice(["foreach", "loop"]),
        "grad_accum_steps": rng.choice([1, 2]),
        "grad_clip": rng.random() < 0.3,
        "set_to_none": rng.random() < 0.7,
    }


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("model", MODELS)
def test_real_tensors_take_the_predicted_bytes(model: str, recompute: str) -> None:
    """4 an item, 100 in all: saved bytes, every phase, the step's peak and its categories."""
    rng = random.Random(f"real {model} {recompute}")
    for precision in ("fp32", "bf16", "bf16-mixed", "bf16-master"):
        setup = TrainingSetup(
            seq_len=48, micro_batch_size=2, recompute=recompute, **_drawn(rng, precision)
        )
        plan = local_plan(MODELS[model], setup, {}, "cpu")
        step = TrainingStep(plan, "cpu")
        step.run()
        seen, told = tracked_step(step), step_memory(plan)
        if setup.optimizer == "adafactor":  # its three scalars lie on the host, here the device
            assert 0 <= seen.phases["optimizer"] - told.phases["optimizer"] <= 12
            assert 0 <= seen.peak - told.peak_bytes <= 12
            assert seen.saved == told.saved_bytes
            continue
        ours = (told.saved_bytes, told.peak_bytes, told.phases, told.breakdown)
        phases = {name: seen.phases[name] for name in told.phases}
        assert ours == (seen.saved, seen.peak, phases, seen.breakdown), setup


@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize("model", MODELS)
def test_counted_flops_are_the_ledgers(model: str, attention: str) -> None:
    for recompute in RECOMPUTE:
        plan = cpu_plan(MODELS[model], attention=attention, recompute=recompute)
        assert counted_flops(TrainingStep(plan, "cpu")) == step_flops(plan).executed, recompute


def _verified(config: ModelConfig, **setup: Any) -> Any:
    from memcalc import estimate

    stated = TrainingSetup(seq_len=48, micro_batch_size=2, **setup)
    plan = local_plan(config, stated, {}, "cpu")
    kernels = {"device": "cpu", "norm": plan.kernels.norm}
    return verify(plan, estimate(config, stated, kernels=kernels).to_dict(), FAST)


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=lambda m: m.name)
def test_a_small_model_is_verified(model: ModelConfig) -> None:
    record = _verified(model)
    assert record["status"] == "ok" and record["kind"] == "verify"
    comparison = record["comparison"]
    assert comparison["verified"] and comparison["differences"] == []
    verdicts = {row["name"]: row["verdict"] for row in comparison["rows"]}
    assert verdicts.pop("step time") == "not predicted"
    assert set(verdicts.values()) == {"equal"}


def test_a_wrong_estimate_is_caught() -> None:
    from memcalc import estimate

    stated = TrainingSetup(seq_len=48, micro_batch_size=2)
    plan = local_plan(LLAMA, stated, {}, "cpu")
    wrong = estimate(LLAMA, stated, kernels={"device": "cpu", "attention": "eager"}).to_dict()
    comparison = verify(plan, wrong, FAST)["comparison"]
    outside = {row["name"] for row in comparison["rows"] if row["verdict"] == "outside"}
    assert not comparison["verified"]
    assert "saved for backward" in outside and "parameters" not in outside


def test_an_imbalance_is_listed_as_a_difference() -> None:
    record = _verified(MIXTRAL, imbalance=1.5)
    listed = record["comparison"]["differences"]
    assert len(listed) == 1 and "router" in listed[0]["cause"]
    by_name = {row["name"]: row for row in record["comparison"]["rows"]}
    assert by_name["saved for backward"]["verdict"] == "explained"
    assert record["comparison"]["verified"]


def test_plain_plans_have_no_listed_differences() -> None:
    record = {"device": {"type": "cpu"}}
    assert differences(cpu_plan(), record) == []


@pytest.mark.parametrize(
    ("model", "accum"),
    [(LLAMA, 1), (LLAMA, 3), (GPT2, 2), (MIXTRAL, 2)],
    ids=["llama-1", "llama-3", "gpt2-2", "mixtral-2"],
)
def test_the_timeline_follows_the_prediction(model: ModelConfig, accum: int) -> None:
    """Allocation by allocation up to the optimizer, whose host scalar a CPU counts."""
    setup = TrainingSetup(seq_len=48, micro_batch_size=2, grad_accum_steps=accum)
    plan = local_plan(model, setup, {}, "cpu")
    step = TrainingStep(plan, "cpu")
    step.run()
    seen = instants(tracked_step(step))
    told = every_instant(step_events(plan), accum - len(plan.strategy.micro_batches(plan)))
    upto = [i.phase for i in seen].index("optimizer")
    assert [i.event.live_bytes for i in told[:upto]] == [i.live_bytes for i in seen[:upto]]
    assert [i.event.phase for i in told[:upto]] == [i.phase for i in seen[:upto]]
    assert max(i.event.live_bytes for i in told) == max(i.live_bytes for i in seen)
    kept = timeline_record(seen)
    assert kept["allocations"] == len(seen) >= len(kept["at"])
    assert kept["live_bytes"] == [seen[at].live_bytes for at in kept["at"]]
    assert max(kept["live_bytes"]) == max(i.live_bytes for i in seen)


@pytest.mark.parametrize("model", [LLAMA, MIXTRAL], ids=lambda m: m.name)
def test_operators_take_most_of_the_step(model: ModelConfig) -> None:
    times = op_times(TrainingStep(cpu_plan(model, recompute="full"), "cpu"))
    ways = {way: {t.op for t in times if t.direction == way} for way in
            ("forward", "backward", "recompute", "step")}  # fmt: skip
    products = {"q_proj", "k_proj", "v_proj", "o_proj", "attention", "attn_norm"}
    assert products <= ways["forward"] & ways["backward"] & ways["recompute"]
    assert "lm_head" in ways["forward"] & ways["backward"]
    assert "lm_head" not in ways["recompute"]
    assert "optimizer" in ways["step"]
    layers = model.num_hidden_layers
    assert next(t for t in times if t[:2] == ("q_proj", "forward")).calls == layers
