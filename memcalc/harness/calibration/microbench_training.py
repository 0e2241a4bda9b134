"""The rest of a step: loss, embedding's backward, optimizer, clipping.

The code timed is the decoder's own (`harness.loss`, `harness.optimizers`). Bytes of AdamW are the
least a step must move for N parameters: read parameter, gradient and both moments, write all but the
gradient: 28 N in fp32, 14 N in bf16. Clipping reads gradients for the norm, then reads and writes
them to scale: three passes. Letters: T tokens, V vocabulary, h hidden.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Task, point
from memcalc.harness.calibration.timing import Bench
from memcalc.harness.model.loss import chunked_loss, cross_entropy, fused_loss, logits_of
from memcalc.harness.optimizers import torch_optimizers

_BF16 = torch.bfloat16
_CHUNKS = 8
#: Head and loss together: products of T x V x h, two FLOPs each, that each variant runs.
_HEAD_PRODUCTS = {"fp32": 3, "chunked": 4, "fused": 3}


def losses(scale: Scale) -> list[Task]:
    """Cross-entropy alone, of logits in each dtype, then head and loss together in three ways."""
    rows, vocab, h = scale.vocabulary
    alone = [_loss_task(variant, rows, vocab) for variant in ("fp32", "plain")]
    alone += [_loss_task("fp32", rows, vocab, dtype) for dtype in scale.dtypes if dtype != "bf16"]
    return alone + [_head_task(variant, rows, vocab, h) for variant in _HEAD_PRODUCTS]


def _loss_task(variant: str, rows: int, vocab: int, dtype: str = "bf16") -> Task:
    def run(bench: Bench) -> Point:
        logits = bench.randn(rows, vocab, dtype=DTYPES[dtype]).requires_grad_()
        labels = bench.randint(vocab, rows)

        def call(_: int) -> object:
            loss = cross_entropy(logits, labels, variant == "fp32", False)
            return torch.autograd.grad(loss, logits)

        what = {"what": variant, "with_head": False, "tokens": rows, "vocab_size": vocab,
                "dtype": dtype}  # fmt: skip
        return point("loss", what, bench.time(call))

    return Task(f"cross-entropy {variant} {dtype} {rows}x{vocab}, forward and backward", run)


def _head_task(variant: str, rows: int, vocab: int, h: int) -> Task:
    flops = 2 * rows * vocab * h * _HEAD_PRODUCTS[variant]
    kernels = Kernels(loss=variant, loss_chunks=_CHUNKS)

    def run(bench: Bench) -> Point:
        hidden = bench.randn(rows, h, dtype=_BF16).requires_grad_()
        weight = bench.randn(vocab, h, dtype=_BF16, scale=0.02).requires_grad_()
        labels = bench.randint(vocab, rows)

        def call(_: int) -> object:
            loss = _head_and_loss(hidden, weight, labels, kernels)
            return torch.autograd.grad(loss, (hidden, weight))

        what = {"what": variant, "with_head": True, "tokens": rows, "vocab_size": vocab,
                "hidden_size": h, "chunks": 1 if variant == "fp32" else _CHUNKS,
                "dtype": "bf16"}  # fmt: skip
        return point("loss", what, bench.time(call), flops)

    return Task(f"head and loss {variant} {rows}x{vocab}x{h}, forward and backward", run)


def _head_and_loss(hidden: Tensor, weight: Tensor, labels: Tensor, kernels: Kernels) -> Tensor:
    head = (weight, None)
    if kernels.loss == "chunked":
        return chunked_loss(hidden, labels, head, None, kernels)
    if kernels.loss == "fused":
        return fused_loss(hidden, labels, weight, kernels)
    return cross_entropy(logits_of(hidden, head, None, kernels), labels, True, False)


def embedding(scale: Scale) -> list[Task]:
    """The gradient of an embedding's weight: V h zeros, then T rows added."""
    rows, vocab, h = scale.vocabulary
    moved = (vocab * h + 2 * rows * h) * _BF16.itemsize

    def run(bench: Bench) -> Point:
        weight = bench.randn(vocab, h, dtype=_BF16).requires_grad_()
        out = F.embedding(bench.randint(vocab, rows), weight)
        gradient = torch.randn_like(out)
        timed = bench.time(
            lambda call: torch.autograd.grad(out, weight, gradient, retain_graph=True)
        )
        what = {"tokens": rows, "vocab_size": vocab, "hidden_size": h, "dtype": "bf16"}
        return point("embedding_backward", what, timed, moved=moved)

    return [Task(f"embedding backward {rows}x{h}, vocabulary {vocab}", run)]


def optimizers(scale: Scale) -> list[Task]:
    """AdamW: fused and foreach over fp32, fused over bf16, at each number of parameters, then over
    many small ones."""
    number, side = scale.small_matrices
    sizes = [*((count, scale.matrix) for count in scale.optimizer_params), (number * side**2, side)]
    return [
        _adamw_task(impl, dtype, count, side)
        for count, side in sizes
        for impl, dtype in (("fused", "fp32"), ("foreach", "fp32"), ("fused", "bf16"))
    ]


def _parameters(bench: Bench, count: int, matrix: int, dtype: str) -> list[Tensor]:
    """Square matrices, together at least `count` elements, with random gradients."""
    number = max(1, -(-count // matrix**2))
    found = []
    for _ in range(number):
        parameter = bench.randn(matrix, matrix, dtype=DTYPES[dtype], scale=0.02).requires_grad_()
        parameter.grad = bench.randn(matrix, matrix, dtype=DTYPES[dtype])
        found.append(parameter)
    return found


def _adamw_task(impl: str, dtype: str, count: int, matrix: int) -> Task:
    def run(bench: Bench) -> Point:
        parameters = _parameters(bench, count, matrix, dtype)
        named = {str(index): parameter for index, parameter in enumerate(parameters)}
        [optimizer] = torch_optimizers(named, "adamw", impl)
        what, size = _what(parameters, dtype, {"what": "adamw", "impl": impl})
        return point("optimizer", what, bench.time(_step(optimizer)), moved=7 * size)

    return Task(f"AdamW {impl} {dtype} {count / 1e6:g} M parameters", run)


def _step(optimizer: torch.optim.Optimizer) -> Callable[[int], object]:
    return lambda call: optimizer.step()


def clipping(scale: Scale) -> list[Task]:
    """Clip the gradients of the most parameters by their norm."""
    count = scale.optimizer_params[0]

    def run(bench: Bench) -> Point:
        parameters = _parameters(bench, count, scale.matrix, "fp32")
        timed = bench.time(lambda call: nn.utils.clip_grad_norm_(parameters, 1.0))
        what, size = _what(parameters, "fp32", {"what": "clip"})
        return point("optimizer", what, timed, moved=3 * size)

    return [Task(f"gradient clipping, {count / 1e6:g} M parameters", run)]


def _what(parameters: list[Tensor], dtype: str, said: Point) -> tuple[Point, int]:
    """What a point says of its parameters, and the bytes of one pass over them."""
    count = sum(parameter.numel() for parameter in parameters)
    what = {**said, "dtype": dtype, "parameters": count, "tensors": len(parameters)}
    return what, count * DTYPES[dtype].itemsize
