"""torch.compile on each block: the same gradients, and steps whose loss falls."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from memcalc import TrainingSetup, estimate
from memcalc.errors import ConfigError
from memcalc.harness.local import local_plan
from memcalc.harness.measure import MeasureOptions
from memcalc.harness.model.decoder import build
from memcalc.harness.step import TrainingStep
from memcalc.harness.verify import verify
from tests.harness.models import LLAMA, cpu_plan

pytestmark = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU"
)


@pytest.mark.parametrize("model", [LLAMA], ids=lambda m: m.name)
def test_compiled_blocks_give_the_same_gradients(model) -> None:  # type: ignore[no-untyped-def]
    plan = cpu_plan(model)
    ids = torch.randint(500, (2, 48), generator=torch.Generator().manual_seed(2))
    gradients = []
    for compiled in (False, True):
        decoder = build(plan, "cpu", seed=1)
        for block in decoder.layers if compiled else ():
            block.compile()
        decoder(ids, ids).backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for plain, other in zip(*gradients, strict=True):
        assert plain is not None and other is not None
        assert float((plain - other).abs().max() / plain.abs().max()) < 1e-5


def test_a_compiled_step_learns() -> None:
    step = TrainingStep(cpu_plan(LLAMA, compile=True), "cpu")
    losses = [float(step.run(keep_loss=True)) for _ in range(6)]  # type: ignore[arg-type]
    assert losses[-1] < losses[0] - 0.01


def test_cuda_graphs_want_compiled_blocks() -> None:
    with pytest.raises(ConfigError, match="cuda_graphs: got true without --compile"):
        cpu_plan(LLAMA, {"cuda_graphs": True})


def test_gate_and_up_may_be_one_projection() -> None:
    """Half the products, the same bytes of parameters; the order of the product's factors differs."""
    plain, fused = (
        build(cpu_plan(LLAMA, {"fused_gate_up": flag}), "cpu") for flag in (False, True)
    )
    names = {name for name, _ in fused.named_parameters()}
    assert "layers.0.mlp.gate_up_proj.weight" in names
    assert not any("gate_proj" in name or name.endswith("mlp.up_proj.weight") for name in names)
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, fused)]
    assert count[0] == count[1]


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_a_compiled_model_is_verified(precision: str) -> None:
    """States and saved bytes equal the estimate; the rest is out of the tracker's sight, and said."""
    setup = TrainingSetup(seq_len=64, micro_batch_size=2, precision=precision, compile=True)
    config = replace(LLAMA, hidden_size=128, intermediate_size=320, head_dim=32)
    plan = local_plan(config, setup, {}, "cpu")
    kernels = {"device": "cpu", "norm": plan.kernels.norm}
    options = MeasureOptions(device="cpu", steps=1, warmup=1, ceiling=False)
    told = estimate(config, setup, kernels=kernels).to_dict()
    comparison = verify(plan, told, options)["comparison"]
    verdicts = {row["name"]: row["verdict"] for row in comparison["rows"]}
    equal = {"parameters", "gradients", "optimizer", "saved for backward"}
    assert {name for name, verdict in verdicts.items() if verdict == "equal"} == equal
    assert verdicts["peak requested"] == "not measured" and comparison["verified"]
    assert "compiled" in comparison["differences"][0]["cause"]
