"""litgpt's loss of a finetuning step: fp32 logits but for the last position, 128 rows at a time.

Shapes: logits (b, s, V). Lightning Fabric hands the model's result back in fp32 whatever the precision,
and the loop's name for it lives until the next micro-batch's result takes it: one block of 4 b s V bytes
stands for the whole run, a second while both exist (`standing_bytes`, replacing). Cutting off the last
position copies the logits of several samples, of one it is a view. Every chunk keeps its
log-probabilities; backward joins the chunks' gradients, then fills one of all positions.
Source: Lightning-AI/litgpt litgpt/utils.py (chunked_cross_entropy, chunk_size 128),
litgpt/finetune/full.py (fit); Lightning, fabric/plugins/precision/half.py and amp.py (convert_output),
fabric/wrappers.py. Checked by: unit/test_stack_litgpt.py, event for event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from memcalc.engine.aten.fused import log_softmax
from memcalc.engine.aten.litgpt_ops import (
    at_least_one,
    count_where,
    divided,
    nll_rows,
    replacing,
    sum_all,
)
from memcalc.engine.aten.pointwise import scale
from memcalc.engine.aten.shape import cat, narrow, reshape, split
from memcalc.engine.build import Build
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Tensor

#: chunk_size of chunked_cross_entropy.
CHUNK_ROWS: Final = 128


def litgpt_chunks(batch: int, seq_len: int) -> int:
    """How many chunks the loss of a micro-batch has."""
    return max(1, -(-batch * (seq_len - 1) // CHUNK_ROWS))


def litgpt_loss(build: Build, logits: list[Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy of 16-bit logits, the only element of the list, over the loop's steps."""
    build.at("lm_head", "head")
    if build.casts is not None:
        build.casts.clear()  # autocast ends with the model's forward
    wide = replacing(logits, "fp32") if logits[0].dtype != "fp32" else logits[0]
    build.tape.phase = "loss"
    build.at("loss", "loss")
    loss = _chunked(build, narrow(wide, build["s"] - ONE, 1), labels)
    return scale(loss, "div.Tensor")  # by the number of micro-batches


def _chunked(build: Build, logits: Tensor, labels: Tensor) -> Tensor:
    rows = build["b"] * (build["s"] - ONE)
    logits = reshape(logits, (rows, build["V"]))
    targets = _targets(build, labels, rows)
    sizes = _sizes(build, rows)
    parts = split(logits, sizes, 0)
    target_parts = [targets.view_as((size,), None, None) for size in sizes]
    losses = [
        nll_rows(log_softmax(part), target)
        for part, target in zip(parts, target_parts, strict=True)
    ]
    count = count_where(targets)
    total = sum_all(cat(tuple(losses), 0))
    return divided(total, at_least_one(count))


def _targets(build: Build, labels: Tensor, rows: Size) -> Tensor:
    """Labels but for the first position: of several samples a copy, of one a view."""
    if build["b"] is ONE:
        return labels.view_as((rows,), None, labels.strides[1:])
    return labels.tape.empty("clone", (rows,), labels.dtype)


def _sizes(build: Build, rows: Size) -> tuple[Size, ...]:
    n = build.kernels.loss_chunks
    part = number(CHUNK_ROWS)
    return (part,) * (n - 1) + (rows - part * (n - 1),)


def standing_bytes(values: Mapping[str, int], table_dtype: str) -> int:
    """Bytes that stay between micro-batches: fp32 logits, labels, two rotary tables (s, r)."""
    tokens = values["b"] * values["s"]
    tables = 2 * values["s"] * values["r"] * ITEMSIZE[table_dtype]
    return tokens * values["V"] * 4 + tokens * 8 + tables
