"""Losses over pairs of a chosen and a rejected sequence: DPO, and the training of a reward model.

Symbols: b sequences are b/2 pairs, the chosen ones first; s positions, s_r of them the response's, V
vocabulary. DPO's reference runs inside the loss, while everything the policy saved is alive.
Source: TRL 1.0.0, trainer/dpo_trainer.py (sigmoid loss), reward_trainer.py.
Checked by: oracle/test_feedback.py, event for event against PyTorch.
"""

from __future__ import annotations

from memcalc.engine.aten.feedback_ops import log_sigmoid, mean_all, subtract, zero_where
from memcalc.engine.aten.litgpt_ops import sum_all
from memcalc.engine.aten.pointwise import neg, scale, shift
from memcalc.engine.aten.routing import sum_dim
from memcalc.engine.aten.shape import contiguous, narrow, reshape, split
from memcalc.engine.blocks.feedback_parts import (
    Trunk,
    as_output,
    chosen_logps,
    enter_loss,
    entropies_of,
    scored,
    whole_logits,
)
from memcalc.engine.build import REFERENCE, Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import Size, number
from memcalc.engine.tensors import Tensor


def dpo(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """DPO's sigmoid loss; the frozen model's pass is inside it unless its values are known."""
    end, tape, s = build.kernels.loss_end, build.tape, build["s"]
    assert end is not None
    own = [kind for kind in layers if kind.stack != "reference"]
    others = [kind for kind in layers if kind.stack == "reference"]
    logits = whole_logits(build, ids, own, trunk)
    enter_loss(build)
    shifted = contiguous(narrow(logits, s - 1, 1))
    labels = tape.empty("clone", (build["b"], s - 1), "int64")
    mask = tape.empty("clone", (build["b"], s - 1), "int64")
    logps = _masked_logps(build, shifted, labels)
    summed = sum_dim(logps, 1, False)
    chosen, rejected = _halves(build, summed)
    if end.reference == "none":
        shape = (build["b/2"],)
        ref_chosen, ref_rejected = (tape.external(shape, "fp32") for _ in range(2))
    else:
        tape.grad_enabled = False
        tape.phase = "reference"
        ref_logits = _reference_logits(build, ids, others, trunk)
        build.at("loss", "loss")
        ref_shifted = contiguous(narrow(ref_logits, s - 1, 1))
        ref_logps = _masked_logps(build, ref_shifted, labels)
        ref_summed = sum_dim(ref_logps, 1, False)
        ref_chosen, ref_rejected = _halves(build, ref_summed)
        tape.grad_enabled = True
        enter_loss(build)
    chosen_ratios = subtract(chosen, ref_chosen)
    rejected_ratios = subtract(rejected, ref_rejected)
    delta = subtract(chosen_ratios, rejected_ratios)
    loss = shift(scale(mean_all(neg(log_sigmoid(scale(delta))))))
    _dpo_metrics(build, shifted.detach(), mask)
    return loss


def _masked_logps(build: Build, shifted: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities (b, s - 1), of the prompt's positions set to zero in place."""
    stacked = chosen_logps(build, shifted, labels)
    view = stacked.view_as(labels.shape, None, None)
    mask = build.tape.empty("eq.Scalar", labels.shape, "bool")
    return zero_where(stacked, view, mask)


def _halves(build: Build, x: Tensor) -> tuple[Tensor, ...]:
    return split(x, (build["b/2"], build["b/2"]), 0)


def _reference_logits(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """The frozen model's logits: its own blocks, or the same ones with their adapters off."""
    end, kernels, hooks, ends = build.kernels.loss_end, build.kernels, build.hooks, build.injectors
    assert end is not None
    adapter = kernels.adapter
    if adapter is not None:
        adapter = adapter._replace(targets=frozenset(), input_gradients=False)
    build.kernels, build.hooks, build.injectors = kernels._replace(adapter=adapter), [], ()
    build.beside = "" if end.reference == "adapter" else REFERENCE
    build.borrows = end.reference == "adapter"
    logits = whole_logits(build, ids, layers, trunk, len(layers))
    build.kernels, build.hooks, build.injectors = kernels, hooks, ends
    build.beside, build.borrows = "", False
    return logits


def _dpo_metrics(build: Build, shifted: Tensor, mask: Tensor) -> None:
    """What is logged of the policy's logits before the loss is handed out."""
    tape, half, V = build.tape, build["b/2"], build["V"]
    s, r = build["s"] - 1, build["s_r"]
    entropies = entropies_of(build, shifted)
    mean_all(_selected(build, entropies, (build["b"], s), (build["b"] * r,)))
    whole = shifted.view_as((half, s, V), None, None)
    total = sum_all(_means(_selected(build, whole, (half, s), (half * r, V))))
    other = sum_all(_means(_selected(build, whole, (half, s), (half * r, V))))
    del total, other
    tape.loads(whole)
    predictions = tape.empty("argmax", (half, s), "int64")
    del predictions, entropies


def _selected(build: Build, x: Tensor, mask: tuple[Size, ...], shape: tuple[Size, ...]) -> Tensor:
    """x[mask.bool()]: the mask's cast, the places that are set, and what is taken of x."""
    tape = build.tape
    flags = tape.empty("_to_copy", mask, "bool")
    places = tape.empty("nonzero", (shape[0], number(2)), "int64")
    tape.loads_bytes(x.numel * 0 + shape[0])
    out = tape.empty("index.Tensor", shape, x.dtype)
    del places, flags
    return out


def _means(x: Tensor) -> Tensor:
    """Means (n) of rows (n, V)."""
    x.tape.loads(x)
    return x.tape.empty("mean.dim", x.shape[:1], x.dtype)


def reward(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """A reward model's loss: how much higher the chosen sequence scores than the rejected one."""
    scores = as_output(build, scored(build, ids, layers, trunk))
    enter_loss(build)
    chosen, rejected = _halves(build, reshape(scores, (build["b"],)))
    return neg(mean_all(log_sigmoid(subtract(chosen, rejected))))
