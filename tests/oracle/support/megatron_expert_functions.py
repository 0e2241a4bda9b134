"""Functions of Megatron's mixture of experts as real torch ones, kernels left out.

A kernel is a torch.empty of its result. `Freed` is CheckpointWithoutOutput: storages are resized to
nothing, and back once a later gradient is there.
Source: Megatron-Core 0.14, transformer/moe/moe_utils.py, fusions/fused_bias_swiglu.py,
tensor_parallel/random.py; TransformerEngine 2.11, pytorch/permutation.py, module/grouped_linear.py.
Used by: oracle/support/megatron_experts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from tests.oracle.support import megatron_functions as te
from tests.oracle.support.megatron_functions import like


class Gate(Function):
    """RouterGatingLinearFunction."""

    @staticmethod
    def forward(ctx: Any, inp: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(inp, weight)
        ctx.dtype = dtype
        return like(inp, inp.shape[0], weight.shape[0], dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inp, weight = ctx.saved_tensors
        grad_input = _product(weight.to(ctx.dtype), inp.shape)
        grad_weight = _product(inp.to(ctx.dtype), weight.shape)
        grad_input = grad_input.to(inp.dtype)
        grad_weight = grad_weight.to(weight.dtype)
        return grad_input, grad_weight, None


def _product(operand: Tensor, shape: torch.Size) -> Tensor:
    return like(operand, *shape, dtype=operand.dtype)


class Permute(Function):
    """_moe_permute_mask_map: rows, their probabilities, and the map."""

    @staticmethod
    def forward(ctx: Any, inp: Tensor, probs: Tensor, rows: int) -> tuple[Tensor, ...]:
        tokens, experts = probs.shape
        row_id_map = like(inp, tokens, experts * 2 + 1, dtype=torch.int32)
        output = like(inp, rows, inp.shape[1])
        permuted = like(inp, rows, dtype=probs.dtype)
        ctx.save_for_backward(row_id_map)
        ctx.mark_non_differentiable(row_id_map)
        ctx.shape, ctx.dtype = probs.shape, probs.dtype
        return output, row_id_map, permuted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        act_grad = like(grads[0], ctx.shape[0], grads[0].shape[1])
        return act_grad, like(grads[0], *ctx.shape, dtype=ctx.dtype), None


class Unpermute(Function):
    """_moe_unpermute_mask_map without probabilities."""

    @staticmethod
    def forward(ctx: Any, inp: Tensor, row_id_map: Tensor) -> Tensor:
        ctx.save_for_backward(row_id_map)
        ctx.rows = inp.shape[0]
        return like(inp, row_id_map.shape[0], inp.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return like(grads[0], ctx.rows, grads[0].shape[1]), None


class Sort(Function):
    """_moe_chunk_sort of rows and, going in, of their probabilities."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> tuple[Tensor, ...]:
        row_id_map = like(parts[0], parts[0].shape[0], dtype=torch.int32)
        ctx.save_for_backward(row_id_map)
        return tuple(like(one, *one.shape, dtype=one.dtype) for one in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(like(one, *one.shape, dtype=one.dtype) for one in grads)


class Grouped(Function):
    """te.GroupedLinear with weight gradients added in place; the weights are one parameter here."""

    @staticmethod
    def forward(ctx: Any, inp: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inp, weight)
        return like(inp, inp.shape[0], weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        inp, weight = ctx.saved_tensors
        return like(grads[0], *inp.shape), te.dummy(weight)


class Weighted(Function):
    """WeightedSwiGLUFunction."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(y, weights)
        return like(y, y.shape[0], y.shape[1] // 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        y, weights = ctx.saved_tensors
        return like(y, *y.shape), like(y, *weights.shape, dtype=weights.dtype)


class Moved(Function):
    """An all-to-all, an all-gather or a reduce-scatter over rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> Tensor:
        ctx.rows = x.shape[0]
        return like(x, rows, *x.shape[1:], dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return like(grads[0], ctx.rows, *grads[0].shape[1:], dtype=grads[0].dtype), None


class Column(Function):
    """te.Linear, column-parallel."""

    @staticmethod
    def forward(ctx: Any, how: te.Parallel, inp: Tensor, weight: Tensor) -> Tensor:
        total = te.gather(inp, how.tp) if how.sp else inp
        out = like(inp, *total.shape[:-1], weight.shape[0])
        ctx.save_for_backward(inp, weight)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inp, weight = ctx.saved_tensors
        total = te.gather(inp, ctx.how.tp) if ctx.how.sp else inp
        dgrad = like(grads[0], *total.shape)
        if ctx.how.sp:
            dgrad = te.scatter(dgrad, ctx.how.tp)
        return None, dgrad, te.dummy(weight)


class Freed:
    """CheckpointWithoutOutput: outputs freed until the gradient of a later tensor is there."""

    def __init__(self, function: Callable[..., Any], *inputs: Tensor) -> None:
        self.function = function
        made = _Run.apply(self, *inputs)
        self.outputs: tuple[Tensor, ...] = (made,) if isinstance(made, Tensor) else made

    def discard(self, later: Tensor) -> None:
        for output in self.outputs:
            output.untyped_storage().resize_(0)
        later.register_hook(self.recompute)

    def recompute(self, _: Tensor) -> None:
        with torch.enable_grad():
            made = self.function(*self.ctx.saved_tensors)
        made = (made,) if isinstance(made, Tensor) else made
        for output, again in zip(self.outputs, made, strict=True):
            output.untyped_storage().resize_(again.untyped_storage().size())
        self.ctx.outputs = made
        self.outputs = ()
        self.ctx = None


class _Run(Function):
    @staticmethod
    def forward(ctx: Any, frame: Freed, *inputs: Tensor) -> Any:
        out = frame.function(*inputs)
        ctx.save_for_backward(*(one.detach().requires_grad_(one.requires_grad) for one in inputs))
        frame.ctx = ctx
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, outputs = ctx.saved_tensors, ctx.outputs
        torch.autograd.backward(outputs, list(grads))
        ctx.outputs = None
        return (None, *(one.grad for one in inputs))
