"""PPO's losses: the policy's, the critic's, both of one trunk, both models in one backward.

Symbols: b sequences, s positions, s_r of them the response's, V vocabulary. The loop that makes the losses
has names for outputs and intermediate results until its step is over: `Build.standing`.
Source: TRL 1.0.0, experimental/ppo/ppo_trainer.py.
Checked by: oracle/test_feedback.py, event for event against PyTorch.
"""

from __future__ import annotations

from memcalc.engine.aten.feedback_ops import exp, extreme, subtract, within
from memcalc.engine.aten.litgpt_ops import divided, sum_all
from memcalc.engine.aten.pointwise import add, mul, neg, out_like, scale, square
from memcalc.engine.aten.routing import clamp, masked_fill
from memcalc.engine.aten.shape import narrow, reshape
from memcalc.engine.blocks.feedback_parts import (
    Trunk,
    as_output,
    chosen_logps,
    enter_loss,
    over_temperature,
    score_head,
    values_of,
)
from memcalc.engine.blocks.hf_loss import logits_of
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def policy(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """PPO's clipped loss of a policy whose outputs hold every block's hidden states."""
    hidden: list[Tensor] = []
    with build.autocast():
        logits = logits_of(build, trunk(build, ids, layers, 0, hidden))
    logits = as_output(build, logits)
    hidden = [as_output(build, one) for one in hidden]
    enter_loss(build)
    loss, alive = _clipped_policy_loss(build, logits, ids)
    build.standing.append([logits, *hidden, *alive])
    return loss


def _clipped_policy_loss(build: Build, logits: Tensor, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """PPO's clipped loss of whole logits, and the tensors that its loop has names for."""
    tape, b, r = build.tape, build["b"], build["s_r"]
    changed = over_temperature(logits, r)
    new = reshape(chosen_logps(build, changed, ids.view_as((b, r), None, None)), (b, r))
    padding = tape.external((b, r), "bool")
    new = masked_fill(new, padding)
    diff = subtract(new, tape.external((b, r), "fp32"))
    ratio = exp(diff)
    advantages = tape.external((b, r), "fp32")
    losses = mul(neg(advantages), ratio)
    losses2 = mul(neg(advantages), clamp(ratio, True))
    most = extreme(losses, losses2, "maximum")
    loss = masked_mean(most, padding)
    return loss, [changed, new, diff, ratio, losses, losses2, most]


def masked_mean(x: Tensor, padding: Tensor) -> Tensor:
    """(x times what is not padding).sum() over how many those are."""
    tape = x.tape
    tape.loads(padding)
    mask = tape.empty("bitwise_not", x.shape, "bool")
    total = sum_all(mul(x, mask))
    tape.loads(mask)
    count = tape.empty("sum", (ONE,), "int64")
    del mask
    return divided(total, count)


def shared(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """Policy and values of one trunk: a value head on the hidden states that the vocabulary's reads."""
    with build.autocast():
        hidden = trunk(build, ids, layers)
        predicted = score_head(build, hidden)
        logits = logits_of(build, hidden)
        del hidden
    logits = as_output(build, logits)
    predicted = as_output(build, predicted)
    enter_loss(build)
    of_values, alive = _clipped_value_loss(build, predicted)
    of_policy, more = _clipped_policy_loss(build, logits, ids)
    loss = add(of_policy, scale(of_values))
    build.standing.append([logits, predicted, of_values, of_policy, *alive, *more])
    return loss


def joint(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """Policy and a critic of its architecture, whose outputs live through the policy's forward."""
    own = [kind for kind in layers if kind.stack != "critic"]
    others = [kind for kind in layers if kind.stack == "critic"]
    of_critic: list[Tensor] = []
    hidden: list[Tensor] = []
    with build.autocast():
        kernels, build.beside = build.kernels, "critic."
        build.kernels = kernels._replace(adapter=None)
        predicted = score_head(build, trunk(build, ids, others, len(own), of_critic))
        build.kernels, build.beside = kernels, ""
        logits = logits_of(build, trunk(build, ids, own, 0, hidden))
        of_critic.clear()
    logits = as_output(build, logits)
    hidden = [as_output(build, one) for one in hidden]
    predicted = as_output(build, predicted)
    enter_loss(build)
    of_policy, alive = _clipped_policy_loss(build, logits, ids)
    of_values, more = _clipped_value_loss(build, predicted)
    loss = add(of_policy, scale(of_values))
    build.standing.append([logits, *hidden, predicted, of_values, of_policy, *alive, *more])
    return loss


def value(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """PPO's clipped loss of a critic's values."""
    predicted = values_of(build, ids, layers, trunk)
    enter_loss(build)
    loss, alive = _clipped_value_loss(build, predicted)
    build.standing.append([predicted, *alive])
    return loss


def _clipped_value_loss(build: Build, predicted: Tensor) -> tuple[Tensor, list[Tensor]]:
    """PPO's clipped loss of values (b, s, 1), and the tensors that its loop has names for."""
    tape, b, r = build.tape, build["b"], build["s_r"]
    values = reshape(narrow(predicted, r, 1), (b, r))
    values = masked_fill(values, tape.external((b, r), "bool"))
    old = tape.external((b, r), "fp32")
    low, high = (out_like(name, old) for name in ("sub.Tensor", "add.Tensor"))
    clipped = within(values, low, high)
    del low, high
    returns = tape.external((b, r), "fp32")
    losses1 = square(subtract(values, returns))
    losses2 = square(subtract(clipped, returns))
    most = extreme(losses1, losses2, "maximum")
    loss = scale(masked_mean(most, tape.external((b, r), "bool")))
    return loss, [values, clipped, losses1, losses2, most]
