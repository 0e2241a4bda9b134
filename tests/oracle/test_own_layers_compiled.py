"""Compiled layers of torchtune and torchtitan, checkpoints compiled with them, and compiled losses.

Against PyTorch's compiler: its CUDA programs of one layer and of a cross-entropy, run on tensors without
data (support/inductor.py). Bytes kept for backward, and the most of forward and of backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memcalc.engine.autograd import backward
from memcalc.engine.blocks.compiled import compiled_block
from memcalc.engine.blocks.compiled_loss import compiled_cross_entropy
from memcalc.engine.blocks.embedding import contexts
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import KEEP_ATTENTION, KEEP_EVERY_SECOND
from memcalc.engine.layer import block
from memcalc.engine.make_plan import make_plan
from memcalc.engine.sizes import dim
from memcalc.engine.tensors import Tape
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve
from tests.oracle.support.compiled import _Tracker
from tests.oracle.support.own_layers import BF16, Layer, every_second, only_attention
from tests.oracle.support.reference import RefConfig, model_of
from tests.oracle.test_compiled import needs_the_release

pytestmark = needs_the_release
_KEPT: dict[str, tuple[Any, frozenset[str] | None]] = {
    "none": (None, None),
    "sac": (every_second, KEEP_EVERY_SECOND),
    "attention": (only_attention, KEEP_ATTENTION),
}


class Bytes(NamedTuple):
    """Kept for backward (the result left out), most of forward, most of backward."""

    kept: int
    forward: int
    backward: int


def _compiled(function: Callable[..., Tensor], *given: Tensor) -> Callable[..., Tensor]:
    """The function by the compiler's CUDA programs; both are made before anybody looks on."""
    from tests.oracle.support.inductor import backend

    torch._dynamo.reset()
    made = torch.compile(function, backend=backend(), fullgraph=True)
    first = given[0].detach().requires_grad_()
    out = made(first * 1, *given[1:])
    out.backward(torch.empty_like(out))
    return made  # type: ignore[no-any-return]


def _theirs(
    function: Callable[..., Tensor], module: torch.nn.Module | None, *given: Tensor
) -> Bytes:
    run = _compiled(function, *given)
    for parameter in module.parameters() if module else ():
        parameter.grad = None
    first = given[0].detach().requires_grad_() * 1
    with torch.device("meta"):
        gradient = torch.empty_like(run(first, *given[1:]))
    tracker = _Tracker("meta")
    tracker.track(module, first, gradient, *given)
    with tracker:
        before = tracker.live
        out = run(first, *given[1:])
        kept, most = tracker.live - before, tracker.peak - before
        tracker.set_phase("backward")
        out.backward(gradient)
    return Bytes(kept - out.nbytes, most, tracker.phase_peaks["backward"].nbytes - before)


def _ours(tape: Tape, values: dict[str, int], forward: int, result: int) -> Bytes:
    """Bytes of a tape whose first `forward` events are forward's."""
    sizes = [size.value(values) for size in tape.sizes]
    live, peaks, kept = 0, [0, 0], 0
    for position, event in enumerate(tape.events):
        live += sizes[event] if event >= 0 else -sizes[~event]
        in_backward = position >= forward
        peaks[in_backward] = max(peaks[in_backward], live)
        kept = live if position == forward - 1 else kept
    return Bytes(kept - result, peaks[0], peaks[1])


def _layer_by_the_engine(config: ModelConfig, code: str, keep: frozenset[str] | None) -> Bytes:
    setup = TrainingSetup(
        micro_batch_size=2, seq_len=128, precision="bf16", stack=code, compile=True
    )
    plan = make_plan(resolve(setup, config), load_stack(code), {"watched": True})
    tape = Tape(watched=True)
    build = Build(tape, config, plan.kernels, plan.dims)
    x = tape.external((build["b"], build["s"], build["h"]), "bf16")
    x.requires_grad = True
    context = contexts(build, {"full"})["full"]
    tape.block = 0
    out = compiled_block(block, build, x, context, keep)
    forward = len(tape.events)
    tape.phase = "backward"
    backward(out, tape.external(out.shape, out.dtype))
    result = 2 * 2 * 128 * config.hidden_size
    return _ours(tape, dict(plan.values), forward, result)


def _layer_by_the_compiler(config: ModelConfig, code: str, context_fn: Any) -> Bytes:
    with torch.device("meta"):
        layer = Layer(config, code, packed=True)
        half = config.head_dim // 2
        titan = code == "torchtitan"
        dtype = torch.complex64 if titan else torch.float32
        table = torch.empty((128, half) if titan else (256, half, 2), dtype=dtype)
        positions = torch.zeros(2, 128, dtype=torch.long)
        x = torch.empty(2, 128, config.hidden_size, dtype=BF16)

    def run(*args: Tensor) -> Tensor:
        if context_fn is None:
            return layer(*args)  # type: ignore[no-any-return]
        options = {"preserve_rng_state": False, "context_fn": context_fn}
        return checkpoint(layer, *args, use_reentrant=False, **options)  # type: ignore[no-any-return]

    return _theirs(run, layer, x, table, positions)


_WIDE = {"h": 128, "a": 4, "k": 2, "d": 32, "f": 384}


@pytest.mark.parametrize(
    ("code", "kept", "shape", "most_off"),
    [
        ("torchtune", "none", _WIDE, 0.0),
        ("torchtitan", "none", _WIDE, 0.0),
        ("torchtitan", "sac", {"h": 256, "a": 4, "k": 4, "d": 64, "f": 640}, 0.08),
        ("torchtitan", "attention", {"h": 256, "a": 8, "k": 1, "d": 32, "f": 768}, 0.02),
    ],
)
def test_a_layer(code: str, kept: str, shape: dict[str, int], most_off: float) -> None:
    """Kept bytes and forward's peak are equal, backward's too where the MLP decides it.

    Where attention does, the compiler delays weights' gradients, which the engine does not follow.
    A checkpoint that keeps no more than the attention kernel stands for one that keeps nothing: the
    compiler cannot make the kernel again without a GPU, for it asks for its random state.
    """
    config = model_of(RefConfig(V=64, L=1, **shape))
    context_fn, keep = _KEPT[kept]
    ours = _layer_by_the_engine(config, code, keep)
    theirs = _layer_by_the_compiler(config, code, context_fn)
    assert ours[:2] == theirs[:2]
    assert ours.backward == pytest.approx(theirs.backward, rel=most_off or 1e-12)


@pytest.mark.parametrize("mean", [True, False])
def test_a_cross_entropy_stores_no_fp32_logits(mean: bool) -> None:
    tokens, vocabulary = 512, 32000
    tape = Tape(watched=True)
    logits = tape.external((dim("T"), dim("V")), "bf16")
    logits.requires_grad = True
    loss = compiled_cross_entropy(logits, tape.external((dim("T"),), "int64"), mean)
    forward = len(tape.events)
    backward(loss, tape.external(loss.shape, loss.dtype))
    ours = _ours(tape, {"T": tokens, "V": vocabulary}, forward, 4)

    def run(logits: Tensor, labels: Tensor) -> Tensor:
        chances = F.log_softmax(logits.float(), -1)
        likelihood = torch.ops.aten.nll_loss_forward  # F.nll_loss has no gradient on "meta"
        return likelihood(chances, labels, None, 1 if mean else 2, -100)[0]  # type: ignore[no-any-return]

    with torch.device("meta"):
        given = torch.empty(tokens, vocabulary, dtype=BF16), torch.zeros(tokens, dtype=torch.long)
    theirs = _theirs(run, None, *given)
    assert (ours.kept, ours.forward) == (theirs.kept, theirs.forward)
    assert ours.backward == tokens * vocabulary * 2 + 8 * tokens + 4 + 4 * mean
