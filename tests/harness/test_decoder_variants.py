"""Ways of computing the same step give the same gradients; 16-bit ways give nearly the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memcalc.harness.model.decoder import build
from memcalc.harness.model.fp8 import fp8_linear
from memcalc.inputs.model import ModelConfig
from tests.harness.models import GPT2, LLAMA, MIXTRAL, cpu_plan

MODELS = {"llama": LLAMA, "gpt2": GPT2, "mixtral": MIXTRAL}


def _gradients(
    config: ModelConfig, kernels: dict[str, Any] | None = None, **setup: Any
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one micro-batch, weights and tokens always the same."""
    model = build(cpu_plan(config, kernels, **setup), "cpu", seed=3)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(config.vocab_size, (2, 48), generator=generator)
    labels = torch.randint(config.vocab_size, (2, 48), generator=generator)
    loss = model(ids, labels)
    loss.backward()
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return float(loss), found


def _largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[n] - g).abs().max() / g.abs().max()) for n, g in theirs.items())


@pytest.mark.parametrize("recompute", ["selective", "sac", "sac-attention", "full", "reentrant"])
@pytest.mark.parametrize("model", MODELS)
def test_recomputation_changes_nothing(model: str, recompute: str) -> None:
    setup = {"recompute": "full", "reentrant": True} if recompute == "reentrant" else {
        "recompute": recompute
    }  # fmt: skip
    loss, plain = _gradients(MODELS[model])
    again, recomputed = _gradients(MODELS[model], **setup)
    assert again == loss
    assert _largest_difference(recomputed, plain) < 1e-6


@pytest.mark.parametrize("loss", ["plain", "chunked", "fused"])
@pytest.mark.parametrize("model", MODELS)
def test_the_way_of_the_loss_changes_nothing(model: str, loss: str) -> None:
    value, plain = _gradients(MODELS[model], loss="fp32")
    other, found = _gradients(MODELS[model], loss=loss, loss_chunks=4)
    assert other == pytest.approx(value, rel=1e-5)
    assert _largest_difference(found, plain) < 1e-5


@pytest.mark.parametrize("norm", ["hand", "decomposed"])
@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_kernels_change_nothing(norm: str, attention: str) -> None:
    _, plain = _gradients(LLAMA)
    _, found = _gradients(LLAMA, {"norm": norm}, attention=attention)
    assert _largest_difference(found, plain) < 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
@pytest.mark.parametrize("loss", ["plain", "fp32", "chunked", "fused"])
def test_sixteen_bits_come_close(precision: str, loss: str) -> None:
    value, plain = _gradients(LLAMA)
    other, found = _gradients(LLAMA, precision=precision, loss=loss)
    assert other == pytest.approx(value, rel=0.01)
    norm = sum(float(g.square().sum()) for g in plain.values()) ** 0.5
    apart = sum(float((found[n] - g).square().sum()) for n, g in plain.items()) ** 0.5
    assert apart / norm < 0.03


def _as_real(x: Tensor) -> Tensor:
    return x.detach().float().requires_grad_(True)


def test_fp8_products_come_close() -> None:
    """e4m3 keeps 3 bits, e5m2 gradients 2: products of random matrices within a few per cent."""
    torch.manual_seed(0)
    x = torch.randn(3, 32, 64, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(48, 64, dtype=torch.bfloat16) * 0.02).requires_grad_(True)
    wide_x, wide_weight = _as_real(x), _as_real(weight)
    gradient = torch.randn(3, 32, 48, dtype=torch.bfloat16)
    try:
        out = fp8_linear(x, weight)
    except RuntimeError as error:
        pytest.skip(f"no fp8 product on this CPU: {error}")
    out.backward(gradient)
    exact = wide_x @ wide_weight.t()
    exact.backward(gradient.float())
    pairs = ((out, exact), (x.grad, wide_x.grad), (weight.grad, wide_weight.grad))
    for ours, theirs in pairs:
        assert ours is not None and theirs is not None
        apart = (ours.float() - theirs).norm() / theirs.norm()
        assert 1e-4 < float(apart) < 0.08


@pytest.mark.parametrize("model", MODELS)
def test_dropout_drops(model: str) -> None:
    losses = {_gradients(MODELS[model], dropout=p)[0] for p in (0.0, 0.3)}
    assert len(losses) == 2
