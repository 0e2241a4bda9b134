"""What ends a model in feedback training: the loss of a method, or what is scored without gradients.

Symbols: b sequences, s positions, s_r of them the response's, V vocabulary. Every sequence is as long as
stated; a mask selects the whole response. GRPO asks for the response's logits alone.
Source: TRL 1.0.0, trainer/grpo_trainer.py, experimental/ppo/ppo_trainer.py, experimental/utils.py.
Checked by: oracle/test_feedback.py, event for event against PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memcalc.engine.aten.feedback_ops import exp, extreme, subtract
from memcalc.engine.aten.litgpt_ops import divided, sum_all
from memcalc.engine.aten.pointwise import add, mul, neg, out_like, scale, shift
from memcalc.engine.aten.routing import clamp
from memcalc.engine.aten.shape import cat, narrow, reshape
from memcalc.engine.blocks.feedback_pairs import dpo, reward
from memcalc.engine.blocks.feedback_parts import (
    Trunk,
    as_output,
    chosen_logps,
    enter_loss,
    entropies_of,
    over_temperature,
    scored,
    values_of,
)
from memcalc.engine.blocks.feedback_ppo import joint, policy, shared, value
from memcalc.engine.blocks.hf_loss import logits_of
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def feedback_end(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """The loss of `kernels.loss_end`, or what it makes without gradients."""
    end = build.kernels.loss_end
    assert end is not None
    return _ENDS[end.kind](build, ids, layers, trunk)


def grpo(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """GRPO's loss of the response's tokens, clipped, with a divergence from a reference if asked for."""
    end, tape = build.kernels.loss_end, build.tape
    assert end is not None
    b, r = build["b"], build["s_r"]
    per_token, entropies = _response_logps(build, ids, layers, trunk)
    advantages = tape.external((b, ONE), "fp32")
    mask = tape.external((b, r), "int64")
    log_ratio = subtract(per_token, tape.external((b, r), "fp32"))
    coef_1 = exp(log_ratio)
    divergence = None
    if end.beta:
        reference = tape.external((b, r), "fp32")
        one = exp(subtract(reference, per_token))
        divergence = shift(subtract(one, subtract(reference, per_token)))
        del one
    coef_2 = clamp(coef_1, True)
    loss1 = mul(coef_1, advantages)
    loss2 = mul(coef_2, advantages)
    each = neg(extreme(loss1, loss2, "minimum"))
    if divergence is not None:
        each = add(each, scale(divergence))
    total = sum_all(mul(each, mask))
    items = out_like("div.Tensor", tape.external((ONE,), "fp32"))
    loss = divided(total, items)
    del entropies
    return loss


def _response_logps(
    build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (b, s_r) of the response and entropies, as GRPO asks for them."""
    tape, b, r = build.tape, build["b"], build["s_r"]
    with build.autocast():
        hidden = trunk(build, ids, layers)
        logits = logits_of(build, narrow(hidden, r + 1, 1))
        del hidden
    logits = as_output(build, logits)
    enter_loss(build)
    changed = over_temperature(logits, r)
    logps = chosen_logps(build, changed, ids.view_as((b, r), None, None))
    learns, tape.grad_enabled = tape.grad_enabled, False
    entropies = entropies_of(build, changed)
    tape.grad_enabled = learns
    logps = reshape(logps, (b, r))
    whole = cat((logps,), 0)
    return whole, cat((entropies,), 0)


def _score_logps(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """Log-probabilities (b, s_r, 1) of the response: PPO's way from all logits, or GRPO's from its own."""
    end, b, r = build.kernels.loss_end, build["b"], build["s_r"]
    assert end is not None
    held: list[Tensor] = []
    with build.autocast():
        if end.keeps_hidden:
            logits = logits_of(build, trunk(build, ids, layers, 0, held))
        else:
            hidden = trunk(build, ids, layers)
            logits = logits_of(build, narrow(hidden, r + 1, 1))
            del hidden
    logits = as_output(build, logits)
    held = [as_output(build, one) for one in held]
    build.at("loss", "loss")
    changed = over_temperature(logits, r)
    return chosen_logps(build, changed, ids.view_as((b, r), None, None))


def _score(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """Rewards: PPO's from the values of all positions, GRPO's as a classifier gives them."""
    end = build.kernels.loss_end
    assert end is not None
    if end.keeps_hidden:
        return values_of(build, ids, layers, trunk)
    return as_output(build, scored(build, ids, layers, trunk))


_ENDS: Final[dict[str, Callable[[Build, Tensor, list[BlockKind], Trunk], Tensor]]] = {
    "dpo": dpo, "reward": reward, "grpo": grpo, "policy": policy, "value": value, "shared": shared,
    "joint": joint, "logps": _score_logps, "values": values_of, "score": _score,
}  # fmt: skip
