"""What losses of feedback training share: outputs, log-probabilities, entropies, value heads.

Symbols: b sequences, s positions, s_r of them the response's, V vocabulary. Outputs of a model under
autocast are made fp32, as accelerate does it. Log-probabilities are made one sequence after the other:
from a log-sum over fp32 logits, else by log_softmax.
Source: TRL 1.0.0, trainer/utils.py (selective_log_softmax, entropy_from_logits); transformers 5.23,
modeling_layers.py (GenericForSequenceClassification); accelerate 1.15, utils/operations.py.
Checked by: oracle/test_feedback.py, event for event against PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memcalc.engine.aten.feedback_ops import divide_view, exp, logsumexp, rows_of, stack, subtract
from memcalc.engine.aten.fused import log_softmax
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import mul, neg, to
from memcalc.engine.aten.routing import gather_last, sum_dim, take_rows
from memcalc.engine.aten.shape import cat, narrow, reshape
from memcalc.engine.blocks.hf_loss import logits_of
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Tensor

#: (build, ids, layers, number of the first, list that takes hidden states) -> normed hidden states.
Trunk = Callable[..., Tensor]
#: Rows of logits whose entropy TRL makes at a time.
ENTROPY_ROWS: Final = 128


def whole_logits(
    build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk, first: int = 0
) -> Tensor:
    """Logits (b, s, V) as the prepared model gives them."""
    with build.autocast():
        logits = logits_of(build, trunk(build, ids, layers, first))
    return as_output(build, logits)


def as_output(build: Build, x: Tensor) -> Tensor:
    """What a prepared model hands out: fp32 under autocast."""
    return to(x, "fp32") if build.kernels.autocast else x


def enter_loss(build: Build) -> None:
    """From here on it is the loss."""
    build.tape.phase = "loss"
    build.at("loss", "loss")


def chosen_logps(build: Build, logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (b, n, 1) of ids among logits (b, n, V), sequence by sequence."""
    end = build.kernels.loss_end
    assert end is not None
    index = ids.view_as((*ids.shape, ONE), None, None)
    if logits.dtype == "fp32":
        selected = gather_last(logits, index)
        sums = stack([logsumexp(row) for row in rows_of(logits, end.rows)], build["b"])
        return subtract(selected, reshape(sums, (*sums.shape, ONE)))
    kept = []
    labels = rows_of(index, end.rows)
    for number_of, row in enumerate(rows_of(logits, end.rows)):
        row_logps = log_softmax(row)
        row_per_token = gather_last(row_logps, labels[number_of])
        kept.append(row_per_token)
    return stack(kept, build["b"])


def entropies_of(build: Build, logits: Tensor) -> Tensor:
    """Entropy (b, n) of each position, a stretch of positions after the other, without gradients."""
    end = build.kernels.loss_end
    assert end is not None
    tape = build.tape
    total = logits.shape[0] * logits.shape[1]
    flat = reshape(logits, (total, logits.shape[2]))
    sizes = [number(ENTROPY_ROWS)] * (end.chunks - 1)
    sizes.append(total - number(ENTROPY_ROWS) * (end.chunks - 1))
    entropies = []
    for size in sizes:
        logps = log_softmax(flat.view_as((size, flat.shape[1]), None, None))
        tape.loads(logps)
        entropy = neg(sum_dim(mul(exp(logps), logps), 1, False))
        entropies.append(entropy)
    whole = cat(tuple(entropies), 0, total)
    return reshape(whole, logits.shape[:2])


def over_temperature(logits: Tensor, r: Size) -> Tensor:
    """The response's logits (b, s_r, V), divided by the temperature where they are."""
    view = logits.detach()
    view = narrow(view, r, 1)
    return divide_view(logits, view)


def score_head(build: Build, hidden: Tensor) -> Tensor:
    """The value head (b, s, 1): a linear without bias in place of the vocabulary's.

    Beside an adapter PEFT trains a copy of it (modules_to_save) and keeps the first.
    """
    build.at("score_head", "head")
    shape = (ONE, build["h"])
    if build.kernels.adapter is not None:
        build.param("score.original.weight", shape)
    leaf = build.tape.leaf("score.weight", shape, build.kernels.param_dtype)
    build.tape.records[build.tape.block, build.tape.op].params["score.weight"] = leaf.numel
    return linear(build.narrow(hidden), build.cast_param(leaf))


def values_of(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """Values (b, s, 1) of a critic, whose backbone was asked for all its hidden states."""
    with build.autocast():
        hidden: list[Tensor] = []
        predicted = score_head(build, trunk(build, ids, layers, 0, hidden))
        hidden.clear()
    return as_output(build, predicted)


def scored(build: Build, ids: Tensor, layers: list[BlockKind], trunk: Trunk) -> Tensor:
    """Scores (b, 1) of a sequence classifier: its head's value at the last token that is no padding."""
    tape, b, s = build.tape, build["b"], build["s"]
    with build.autocast():
        hidden = trunk(build, ids, layers)
        values = score_head(build, hidden)
        compared = tape.empty("ne.Scalar", (b, s), "bool")
        flags = to(compared, "int32")
        del compared
        places = tape.empty("arange", (s,), "int32")
        product = tape.empty("mul.Tensor", (b, s), "int32")
        last = tape.empty("argmax", (b,), "int64")
        del product
        rows = tape.empty("arange", (b,), "int64")
        pooled = _pooled(values, rows, last)
        del hidden, flags, places
    return pooled


def _pooled(values: Tensor, rows: Tensor, last: Tensor) -> Tensor:
    """values[rows, last] (b, 1): both indices are kept."""
    flat = values.view_as((values.shape[0] * values.shape[1], ONE), None, None)
    flat.requires_grad, flat.node, flat.output_nr = (
        values.requires_grad, values.node, values.output_nr,
    )  # fmt: skip
    out = take_rows(flat, last)
    if out.node is not None:
        out.node.inputs[0] = (values.shape, values.dtype)
        out.node.save(rows, "dgrad")
    return out
