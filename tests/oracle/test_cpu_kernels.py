"""`kernels.device=cpu`: the kernels whose kept set differs on a CPU, against PyTorch on fake CPU tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from memcalc.engine.aten.fused import flash_attention, layer_norm
from memcalc.engine.aten.pointwise import dropout
from memcalc.engine.sizes import number
from memcalc.engine.tensors import Tape, Tensor
from memcalc.harness.watch.tracker import StorageTracker

B, A, S, D = 2, 4, 48, 16


def _real(call: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> int:
    """Bytes alive after a bf16 forward that were not before."""
    with FakeTensorMode():
        inputs = [torch.zeros(s, dtype=torch.bfloat16, requires_grad=True) for s in shapes]
        tracker = StorageTracker("cpu")
        tracker.track(*inputs)
        before = tracker.live
        with tracker:
            out = call(*inputs)
            return tracker.live - before + 0 * out.numel()


def _ours(call: Callable[..., Tensor], *shapes: tuple[int, ...]) -> int:
    tape = Tape(device="cpu")
    inputs = [tape.external(tuple(map(number, s)), "bf16") for s in shapes]
    for tensor in inputs:
        tensor.requires_grad = True
    out = call(*inputs)
    alive = sum(
        tape.sizes[e if e >= 0 else ~e].value({}) * (1 if e >= 0 else -1) for e in tape.events
    )
    del out
    return alive


CASES = {
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, (D,), w, b),
        layer_norm,
        ((B, S, D), (D,), (D,)),
    ),
    "dropout": (lambda x: F.dropout(x, 0.1), lambda x: dropout(x, 0.1), ((B, S, D),)),
    "flash": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        flash_attention,
        ((B, A, S, D),) * 3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cpu_kernel_keeps_what_pytorch_keeps(name: str) -> None:
    real, ours, shapes = CASES[name]
    assert _ours(ours, *shapes) == _real(real, *shapes)


@pytest.mark.parametrize("name", ["layer_norm", "dropout"])
def test_the_cuda_variant_differs(name: str) -> None:
    _, call, shapes = CASES[name]
    tape = Tape()
    inputs = [tape.external(tuple(map(number, s)), "bf16") for s in shapes]
    for tensor in inputs:
        tensor.requires_grad = True
    out = call(*inputs)
    cuda = sum(size.value({}) for size in tape.sizes)
    assert out.requires_grad and cuda != _ours(call, *shapes)
