"""Products with quantised matrices: every allocation and release of bitsandbytes' own CUDA code."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed; pip install memcalc[test]"
)

from memcalc.engine.aten.pointwise import out_like  # noqa: E402
from memcalc.engine.aten.quantised import Quantised, quantised_linear, writes_out  # noqa: E402
from memcalc.engine.autograd import backward, node_for  # noqa: E402
from memcalc.engine.sizes import dim  # noqa: E402
from memcalc.engine.tensors import Tape, Tensor  # noqa: E402
from memcalc.harness.watch.tracker import Alloc, StorageTracker  # noqa: E402
from tests.oracle.support.bitsandbytes_cuda import cuda_code, linear_of  # noqa: E402

VALUES = {"b": 2, "s": 1024, "i": 512, "o": 1088}
QUANTISED = {
    "nf4": Quantised(4), "nf4-plain": Quantised(4, nested=False), "int8": Quantised(8),
}  # fmt: skip


def theirs(fmt: str, values: dict[str, int], bias: bool, needs: bool, dtype: torch.dtype):
    """Bytes of every allocation (positive) and release but flags of one byte, and of what is kept."""
    b, s, i, o = (values[name] for name in "bsio")
    layer = linear_of(fmt, i, o, bias)
    layer.train()
    x = torch.empty(b, s, i, dtype=dtype, device="meta").requires_grad_(needs)
    tracker = StorageTracker("meta")
    tracker.track(layer, x)
    state = getattr(layer.weight, "quant_state", None)
    tracker.track([] if state is None else [state.absmax, state.code])
    if state is not None and state.nested:
        tracker.track([state.offset, state.state2.absmax, state.state2.code])
    if fmt == "int8":
        tracker.track([layer.weight.CB, layer.weight.SCB])
    tracker.reset()
    before = tracker.live
    with cuda_code(), tracker:
        out = layer(x.sin())
        saved = tracker.live - before
        if needs:
            gradient = torch.empty_like(out)
            out.backward(gradient)
            del gradient
    del out
    sizes = (e.nbytes if isinstance(e, Alloc) else -e.nbytes for e in tracker.events)
    return [size for size in sizes if abs(size) > 1], saved


def ours(quantised: Quantised, values: dict[str, int], bias: bool, needs: bool, dtype: str):
    tape = Tape(watched=True)
    x = tape.external((dim("b"), dim("s"), dim("i")), dtype)
    x.requires_grad = needs
    if needs:
        x = tape.leaf("x", x.shape, dtype)
    weight = tape.leaf("w.weight", (dim("o"), dim("i")), "bf16", trains=False)
    b = tape.leaf("w.bias", (dim("o"),), "bf16", trains=False) if bias else None
    out = quantised_linear(sin(x), weight, b, quantised)
    saved = sum(
        tape.sizes[e if e >= 0 else ~e].value(values) * (1 if e >= 0 else -1) for e in tape.events
    )
    if needs:
        gradient = tape.empty("empty_like", out.shape, out.dtype)
        backward(out, gradient)
        del gradient
    del out
    sizes = [size.value(values) for size in tape.sizes]
    events = (sizes[e] if e >= 0 else -sizes[~e] for e in tape.events)
    return [size for size in events if abs(size) > 1], saved


def sin(x: Tensor) -> Tensor:
    """A tensor that the step makes, for the product to keep or not; its own input existed before."""
    node = node_for(_sin_backward, x)
    if node:
        node.save(x, "dgrad")
    out = out_like("sin", x)
    return node.output(out) if node else out


def _sin_backward(node, grads, saved):
    factor = out_like("cos", saved[0])
    return [out_like("mul.Tensor", factor)]


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("needs", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("fmt", QUANTISED)
def test_every_event_is_that_of_bitsandbytes(fmt, needs, bias):
    events, saved = theirs(fmt, VALUES, bias, needs, torch.bfloat16)
    found, kept = ours(QUANTISED[fmt], VALUES, bias, needs, "bf16")
    assert found == events
    assert kept == saved


def test_few_rows_run_the_kernel_that_unpacks_as_it_reads():
    few = {**VALUES, "b": 1, "s": 4}
    assert not writes_out(4)
    events, _ = theirs("nf4", few, False, False, torch.bfloat16)
    found, _ = ours(QUANTISED["nf4"]._replace(writes_out=False), few, False, False, "bf16")
    assert found == events == [4096, 4 * 1088 * 2, -4096, -4 * 1088 * 2]
