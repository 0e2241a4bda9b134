"""Transformer Engine's and Megatron's autograd functions as real torch ones, kernels left out.

Written from their sources, each with the variables theirs has, so that PyTorch's own engine and
reference counts decide when memory comes and goes. A kernel is a torch.empty of its result. Weight
gradients are added in place: a function returns one dummy a shape, made beforehand.
Source: TransformerEngine 2.11, pytorch/module/{layernorm_linear,linear}.py, attention/; Megatron-Core
0.14, tensor_parallel/layers.py, fusions/. Used by: oracle/test_megatron_functions.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Parallel:
    """Ranks of tensor parallelism and whether the stream is divided over them."""

    tp: int = 1
    sp: bool = False


def like(x: Tensor, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A kernel's result."""
    return torch.empty(shape, dtype=dtype, device=x.device)


def dummy(param: Tensor) -> Tensor:
    """get_dummy_wgrad: another look at a tensor that is there all the time."""
    found: Tensor = param.dummy.detach()  # type: ignore[attr-defined]
    return found


def gather(x: Tensor, ranks: int) -> Tensor:
    """All-gather along the first dim."""
    return like(x, x.shape[0] * ranks, *x.shape[1:])


def scatter(x: Tensor, ranks: int) -> Tensor:
    """Reduce-scatter along the first dim."""
    return like(x, x.shape[0] // ranks, *x.shape[1:])


def clear(*tensors: Tensor) -> None:
    """clear_tensor_data: the tensor lets go of its memory while others still name it."""
    for tensor in tensors:
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


class NormLinear(Function):
    """te.LayerNormLinear, column-parallel."""

    @staticmethod
    def forward(ctx: Any, how: Parallel, inp: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        """rest: norm's weight, its bias under LayerNorm, and the linear's bias where it has one."""
        norms = tuple(one for one in rest if one.is_norm)  # type: ignore[attr-defined]
        ln_out = like(inp, *inp.shape)
        rows = inp.numel() // inp.shape[-1]
        stats = [like(inp, rows, dtype=torch.float32) for _ in norms]
        ln_out_total = gather(ln_out, how.tp) if how.sp else ln_out
        out = like(inp, *ln_out_total.shape[:-1], weight.shape[0])
        if how.sp:
            clear(ln_out_total)
        ctx.save_for_backward(inp, ln_out, weight, *rest, *stats)
        ctx.how, ctx.count = how, len(rest)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        inp, ln_out, weight, *others = ctx.saved_tensors
        rest = others[: ctx.count]
        ln_out_total = gather(ln_out, ctx.how.tp) if ctx.how.sp else ln_out
        gemm_out = like(grad, *ln_out_total.shape)
        dgrad = gemm_out
        if ctx.how.sp:
            dgrad = scatter(dgrad, ctx.how.tp)
        biases = [like(one, *one.shape) for one in rest if not one.is_norm]
        clear(ln_out)
        if ctx.how.sp:
            clear(ln_out_total)
        made = like(grad, *inp.shape)  # rmsnorm_bwd returns both at once
        norms = [like(one, *one.shape) for one in rest if one.is_norm]
        dgrad = made
        return (None, dgrad, dummy(weight), *norms, *biases)


class Linear(Function):
    """te.Linear, row-parallel."""

    @staticmethod
    def forward(ctx: Any, how: Parallel, inp: Tensor, weight: Tensor) -> Tensor:
        gemm_out = like(inp, *inp.shape[:-1], weight.shape[0])
        out = gemm_out
        if how.sp:
            out = scatter(out, how.tp)
        ctx.save_for_backward(inp, weight)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inp, weight = ctx.saved_tensors
        (grad_output,) = grads
        if ctx.how.sp:
            grad_output = gather(grad_output, ctx.how.tp)
        dgrad = like(grad_output, *inp.shape)
        if ctx.how.sp:
            clear(grad_output)
        return None, dgrad, dummy(weight)


class Head(Function):
    """Megatron's column-parallel head; the gathered rows go to a buffer that is there."""

    @staticmethod
    def forward(ctx: Any, how: Parallel, inp: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inp, weight)
        ctx.how = how
        rows = inp.shape[0] * (how.tp if how.sp else 1)
        return like(inp, rows, inp.shape[1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inp, weight = ctx.saved_tensors
        (grad_output,) = grads
        grad_input = like(inp, *grad_output.shape[:-1], inp.shape[-1])
        if ctx.how.sp:
            sub_grad_input = like(inp, *inp.shape)
            return None, sub_grad_input, dummy(weight)
        return None, grad_input, dummy(weight)


class Rope(Function):
    """FusedRoPEFunc."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return like(t, *t.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return like(grads[0], *grads[0].shape)


class Split(Function):
    """SplitAlongDim over the last dim."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        ctx.shape = mixed.shape
        return torch.split(mixed, sizes, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        pointers = {grad.untyped_storage()._cdata for grad in grads}
        if len(pointers) == 1:
            whole = torch.Tensor().to(device=grads[0].device, dtype=grads[0].dtype)
            whole.set_(grads[0].untyped_storage(), 0, ctx.shape)  # type: ignore[call-overload]
            return whole, None
        return torch.cat(grads, dim=-1), None


class Attention(Function):
    """FusedAttnFunc: q, k, v, the output, log-sum-exp and generator state."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s, b, a, _ = q.shape
        out = like(q, s, b, a, v.shape[3])
        aux = [like(q, b, a, s, dtype=torch.float32), like(q, 2, dtype=torch.int64)]
        ctx.save_for_backward(q, k, v, out, *aux)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _out, *_aux = ctx.saved_tensors
        if q.untyped_storage()._cdata == k.untyped_storage()._cdata:
            whole = like(q, *q.shape[:3], 3 * q.shape[3])
            return torch.split(whole, q.shape[3], dim=-1)
        return tuple(like(one, *one.shape) for one in (q, k, v))


class Activation(Function):
    """BiasSwiGLUFunction, SwiGLUFunction or GeLUFunction."""

    @staticmethod
    def forward(ctx: Any, gated: bool, y: Tensor, *bias: Tensor) -> Tensor:
        ctx.save_for_backward(y, *bias)
        return like(y, *y.shape[:-1], y.shape[-1] // (2 if gated else 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, *bias = ctx.saved_tensors
        tmp = like(y, *y.shape)
        return (None, tmp, *(tmp for _ in bias))


class BiasDropoutAdd(Function):
    """bias_dropout_add_fused_train."""

    @staticmethod
    def forward(ctx: Any, p: float, x: Tensor, residual: Tensor, *bias: Tensor) -> Tensor:
        out = like(x, *x.shape)
        ctx.save_for_backward(*([like(x, *x.shape, dtype=torch.bool)] if p else []), *bias)
        ctx.p, ctx.has_bias = p, bool(bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        saved = ctx.saved_tensors
        made = like(grad, *grad.shape) if ctx.p else grad
        if not ctx.has_bias:
            return None, made, grad
        return None, made, grad, like(grad, *saved[-1].shape)


class InPlaceLoss(Function):
    """Transformer Engine's CrossEntropyFunction: the gradient is written over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        loss = like(logits, *logits.shape[:-1], dtype=torch.float32)
        _statistics = like(logits, loss.numel() * 3, dtype=torch.float32)
        ctx.save_for_backward(logits.detach())
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        found: Tensor = logits
        return found


class ParallelLoss(Function):
    """Megatron's vocab_parallel_cross_entropy without label smoothing."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        wide = logits.float()
        rows = (wide.numel() // wide.shape[-1],)
        logits_max = like(wide, *rows, dtype=torch.float32)
        indices = like(wide, *rows, dtype=torch.int64)
        del indices
        mask = like(wide, *rows, dtype=torch.bool)
        target = like(wide, *rows, dtype=torch.int64)
        predicted = like(wide, *rows, dtype=torch.float32)
        total = like(wide, *rows, dtype=torch.float32)
        loss = like(wide, *wide.shape[:-1], dtype=torch.float32)
        del logits_max, predicted, total
        ctx.save_for_backward(wide, mask, target)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        softmax, mask, _target = ctx.saved_tensors
        _update = like(softmax, *mask.shape, dtype=torch.float32)
        del _update
        found: Tensor = softmax
        return found


class MeanLoss(Function):
    """loss_func's sum of masked losses."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor) -> Tensor:
        ctx.shape = losses.shape
        masked = like(losses, *losses.shape, dtype=torch.float32)
        out = like(losses, dtype=torch.float32)
        del masked
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return like(grads[0], *ctx.shape, dtype=torch.float32)


class ZeroRows(Function):
    """output_parallel[input_mask, :] = 0.0"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return like(grads[0], *grads[0].shape), None


class ScatterRows(Function):
    """reduce_scatter_to_sequence_parallel_region."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return scatter(x, ranks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gather(grads[0], ctx.ranks), None
