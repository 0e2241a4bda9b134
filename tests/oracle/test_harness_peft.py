"""Fine-tuning steps of the harness's decoder: no byte of difference from the engine.

Method, linears, dtype of adapters, dropout, packed weights, precision, recomputation, loss, optimizer and
accumulation are drawn with the family; each on real CPU tensors, or on tensors without data under CUDA's
kernels. Compared: every state, saved bytes, peaks of all phases, categories at the peak, FLOPs.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from memcalc.engine.flops import step_flops
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.harness.local import local_plan
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.flop_count import counted_flops
from memcalc.harness.watch.tensors import tracked_step
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup
from tests.draws import draws
from tests.oracle.support.step import _without_data
from tests.oracle.support.tiny import TINY, attention_of

ALL = ("all-linear",)
DENSE = ("llama", "gpt2", "qwen2", "qwen3", "gemma2", "phi3", "bloom", "opt")
BIASED = ("gpt2", "qwen2", "bloom", "opt")
OWN_NAMES = ("gpt2", "phi3", "bloom", "opt")
RECOMPUTES = ("none", "selective", "sac", "sac-attention", "full", "reentrant")


def plan_for(family: str, device: str, layers: int = 3, **setup: Any) -> Plan:
    changes = {"n_layer": layers, "num_hidden_layers": layers}
    config = model_from_config({**TINY[family], **changes}, family)
    recompute = setup.pop("recompute", "none")
    stated = TrainingSetup(
        seq_len=24, micro_batch_size=2, recompute="full" if recompute == "reentrant" else recompute,
        reentrant=recompute == "reentrant", **setup,
    )  # fmt: skip
    if device == "cpu":
        return local_plan(config, stated, {}, "cpu")
    return plan_of(config, stated, {"watched": True, "norm": "hand"})


def differences(plan: Plan, device: str) -> dict[str, tuple[Any, Any]]:
    """What engine and PyTorch say differently of a step: {name: (engine, PyTorch)}."""
    if device == "cpu":
        step = TrainingStep(plan, "cpu")
        step.run()
        seen = tracked_step(step)
    else:
        with _without_data("meta"):
            step = TrainingStep(plan, "meta")
            step.run()
            seen = tracked_step(step)
    told = step_memory(plan)
    held = told.states
    pairs: dict[str, tuple[Any, Any]] = {
        "saved": (told.saved_bytes, seen.saved),
        "peak": (told.peak_bytes, seen.peak),
        "breakdown": (told.breakdown, seen.breakdown),
        "parameters": (held.parameter_bytes, seen.states["parameters"]),
        "gradients": (held.gradient_bytes, seen.states["gradients"]),
        "optimizer": (held.optimizer_bytes, seen.states["optimizer"]),
        **{name: (size, seen.phases[name]) for name, size in told.phases.items()},
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def drawn_method(rng: random.Random, family: str, method: str) -> PeftSetup:
    if method == "bitfit":
        return PeftSetup(method="bitfit")
    if method == "freeze":
        parts = rng.choice([(), (), ("down_proj",), ("o_proj", "up_proj")])
        parts = () if family in OWN_NAMES else parts
        return PeftSetup(method="freeze", layers=rng.choice([1, 2, 3]), targets=parts)
    own = {
        "targets": rng.choice([ALL, ("o_proj", "down_proj"), ("v_proj", "q_proj"), ("up_proj",)]),
        "rank": rng.choice([1, 4, 16]),
        "dropout": rng.choice([0.0, 0.05]),
        "dtype": rng.choice([None, "bf16"]),
    }
    if family in OWN_NAMES:
        own["targets"] = ALL
    if method == "qlora":
        own["weights"] = rng.choice(["nf4", "nf4-plain", "fp4", "fp4-plain"])
    return PeftSetup(method=method, **own)


def drawn_setup(rng: random.Random, family: str, method: str) -> dict[str, Any]:
    precision = rng.choice(["bf16", "bf16-mixed", "bf16-mixed", "fp32"])
    if method == "qlora" and precision == "fp32":
        precision = "bf16"
    flash = attention_of(family) == "flash" and rng.random() < 0.7
    return {
        "precision": precision,
        "recompute": rng.choice(RECOMPUTES),
        "attention": "flash" if flash else "eager",
        "loss": rng.choice(["plain", "fp32", "chunked", "fused"]),
        "optimizer": rng.choice(["adamw", "adamw", "momentum", "muon"]),
        "optimizer_impl": rng.choice(["foreach", "loop"]),
        "grad_accum_steps": rng.choice([1, 2]),
        "grad_clip": rng.random() < 0.3,
        "set_to_none": rng.random() < 0.7,
        "peft": drawn_method(rng, family, method),
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("method", ["lora", "qlora", "freeze", "bitfit"])
@pytest.mark.parametrize("family", DENSE)
def test_steps_of_drawn_setups(family: str, method: str, device: str) -> None:
    """4 an item, 224 in all."""
    if method == "bitfit" and family not in BIASED:
        pytest.skip("no biases")
    rng = random.Random(f"peft {family} {method} {device}")
    wrong = []
    for setup in [drawn_setup(rng, family, method) for _ in range(4)][: draws(4)]:
        if found := differences(plan_for(family, device, **setup), device):
            wrong.append(f"{setup}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("family", "peft"),
    [("mixtral", PeftSetup(targets=("q_proj", "o_proj"), rank=3)),
     ("mixtral", PeftSetup(method="freeze", layers=1)),
     ("deepseek_v3", PeftSetup(method="freeze", layers=2)),
     ("gpt_oss", PeftSetup(method="bitfit"))],
)  # fmt: skip
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_steps_of_sparse_models(family: str, peft: PeftSetup, recompute: str) -> None:
    """Experts and latent attention under what can be done to them."""
    attention = attention_of(family)
    for precision in ("bf16", "bf16-mixed"):
        setup = {"precision": precision, "recompute": recompute, "attention": attention}
        assert not differences(plan_for(family, "cpu", peft=peft, **setup), "cpu")


def test_blocks_that_are_not_traced_are_counted() -> None:
    peft = PeftSetup(method="qlora", targets=ALL, rank=4, dropout=0.05)
    plan = plan_for("llama", "cpu", layers=9, precision="bf16-mixed", recompute="full", peft=peft)
    assert not differences(plan, "cpu")
    freeze = PeftSetup(method="freeze", layers=3)
    assert not differences(plan_for("llama", "cpu", layers=9, precision="bf16", peft=freeze), "cpu")


@pytest.mark.parametrize("recompute", ["none", "full", "sac"])
@pytest.mark.parametrize(
    "peft",
    [PeftSetup(targets=ALL), PeftSetup(method="freeze", layers=1),
     PeftSetup(method="qlora", targets=("q_proj",))],
    ids=lambda p: p.method,
)  # fmt: skip
def test_counted_flops_are_the_ledgers(peft: PeftSetup, recompute: str) -> None:
    """What frozen weights spare is not executed."""
    plan = plan_for("llama", "cpu", precision="bf16", recompute=recompute, peft=peft)
    assert counted_flops(TrainingStep(plan, "cpu")) == step_flops(plan).executed


@pytest.mark.parametrize("method", ["lora", "qlora", "freeze", "bitfit"])
def test_what_trains_learns_and_nothing_else_moves(method: str) -> None:
    peft = PeftSetup(method=method, layers=1 if method == "freeze" else None)
    precision = "bf16-mixed" if method == "qlora" else "fp32"
    step = TrainingStep(plan_for("qwen2", "cpu", precision=precision, peft=peft), "cpu")
    before = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    losses = [step.run(keep_loss=True) for _ in range(12)]
    assert losses[0] is not None and losses[-1] is not None and losses[-1] < losses[0]
    for name, parameter in step.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trained = {name for name, p in step.model.named_parameters() if p.requires_grad}
    endings = {"lora": "lora_", "qlora": "lora_", "freeze": "layers.2.", "bitfit": ".bias"}
    assert trained and all(endings[method] in name for name in trained)


def test_a_wrong_method_is_seen() -> None:
    """A step of q and v held against the estimate of every linear."""
    plan = plan_for("llama", "cpu", precision="bf16", peft=PeftSetup(targets=("q_proj", "v_proj")))
    other = plan_for("llama", "cpu", precision="bf16", peft=PeftSetup(targets=ALL))
    step = TrainingStep(plan, "cpu")
    step.run()
    assert tracked_step(step).saved < step_memory(other).saved_bytes


def test_methods_without_code_here_are_refused() -> None:
    for method in ("dora", "ia3", "prompt"):
        with pytest.raises(ConfigError, match="stack torch is not in this version"):
            plan_for("llama", "cpu", peft=PeftSetup(method=method))
