"""The built-in 4-bit matrix: its codes, what unpacking gives back, its gradient, its size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memcalc.engine.quantised import weights_of_plan
from memcalc.harness.model import packed
from memcalc.harness.model.packed import BLOCK, TABLES, Packed
from memcalc.harness.step import TrainingStep
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.weights import load_weights
from tests.harness.models import cpu_plan

FORMATS = ("nf4", "nf4-plain", "fp4", "fp4-plain")


def _packed(name: str, shape: tuple[int, int] = (96, 128)) -> tuple[Packed, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(shape) * 0.02
    made = Packed(shape, name, torch.float32)
    made.pack(weight)
    return made, weight


@pytest.mark.parametrize("name", FORMATS)
def test_unpacked_weights_are_the_nearest_numbers(name: str) -> None:
    """No number of the table times the block's largest is nearer; nested scales are 8-bit numbers."""
    made, weight = _packed(name)
    found = made.written(torch.float32)
    largest = weight.reshape(-1, BLOCK).abs().amax(1)
    table = torch.tensor(TABLES[name.partition("-")[0]])
    shares = weight.reshape(-1, BLOCK) / largest[:, None]
    nearest = (shares[..., None] - table).abs().amin(-1) * largest[:, None]
    error = (found - weight).abs().reshape(-1, BLOCK)
    slack = 0.0 if name.endswith("plain") else 0.02  # of the scale, by its own code
    assert (error <= nearest + slack * largest[:, None] + 1e-7).all()
    assert error.max() > 0


@pytest.mark.parametrize("name", ["nf4-plain", "fp4-plain"])
def test_codes_and_scales_are_those_of_bitsandbytes(name: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    made, weight = _packed(name)
    codes, state = functional.quantize_4bit(
        weight, blocksize=BLOCK, quant_type=name.partition("-")[0]
    )
    assert torch.equal(state.absmax, made.absmax)
    theirs = functional.dequantize_4bit(codes, state)
    assert torch.allclose(theirs, made.written(torch.float32), atol=1e-8)


@pytest.mark.parametrize("piece", [packed._PIECE, 256])
def test_a_product_and_its_gradient(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Those of the unpacked matrix, in pieces or in one."""
    monkeypatch.setattr(packed, "_PIECE", piece)
    made, _ = _packed("nf4", (40, 72))
    matrix = made.written(torch.float32)
    x = torch.randn(2, 5, 72, requires_grad=True)
    bias = torch.randn(40)
    out = made(x, bias)
    assert torch.allclose(out, F.linear(x.detach(), matrix, bias), atol=1e-6)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    assert x.grad is not None and torch.allclose(x.grad, gradient @ matrix, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_the_formats(name: str) -> None:
    plan = cpu_plan(precision="bf16", peft=PeftSetup(method="qlora", weights=name))
    model = TrainingStep(plan, "cpu").model
    held = {one.name: one for one in weights_of_plan(plan, load_weights(name), "bf16").leaves}
    for number, block in enumerate(model.layers):
        for path, module in block.named_modules():
            if isinstance(module, Packed):
                leaf = held[f"layers.{number}.{path.split('.')[-2]}.weight"]
                assert sum(b.nbytes for b in module.buffers()) == leaf.resident_bytes
