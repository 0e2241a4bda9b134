"""Context parallelism of the decoder: every rank has some positions of each sequence.

Everything but attention works on a rank's own positions. ring: PyTorch's context parallelism, in which
keys and values of the other ranks come by; a rank has one chunk from the front of the sequence and one
from the back, so that causal attention is as much work for each. ulysses: attention on whole sequences
and a rank's own heads, an all-to-all before it and one after; chunks in order.
Sources: torch/distributed/tensor/experimental/_context_parallel (ring), used as torchtitan does
(torchtitan/distributed/context_parallel.py); Jacobs et al. 2023 (arXiv:2309.14509), with the copies of
DeepSpeed's deepspeed/sequence/layer.py (ulysses).
Checked by: oracle/test_context_parallel.py, harness/test_distributed.py (ulysses; the ring has no CPU
kernel and was never run between processes).
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.experimental import _attention as ring
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from memcalc.harness.model.attention import HEADS_FIRST, AttentionCore
from memcalc.harness.watch.scopes import op

_SEQUENCE: Final = 2  # of q, k and v (b, a, s, d)


def own_positions(seq: int, ranks: int, rank: int, method: str) -> Tensor:
    """The positions of one rank, (seq / ranks) of them: int64 on the current device."""
    every = torch.arange(seq)
    if method == "ring":
        chunks = every.chunk(2 * ranks)
        return torch.cat((chunks[rank], chunks[-1 - rank]))
    return every.chunk(ranks)[rank].clone()


def split_sequence(model: nn.Module, mesh: DeviceMesh, method: str) -> None:
    """Let every attention core of a decoder work over the ranks of a mesh of one dimension."""
    style: ParallelStyle
    if method == "ring":
        ring._cp_options.enable_load_balance = True
        ring._enable_context_parallel_dispatcher()
        sdpa = ring._ContextParallel.AttentionType.SDPA
        style = ring._ContextParallel(seq_dim=_SEQUENCE, attention_type=sdpa)
    else:
        style = _Ulysses()
    for module in model.modules():
        if isinstance(module, AttentionCore):
            parallelize_module(module, mesh, style)


class _Ulysses(ParallelStyle):
    """q, k and v of a rank's positions become those of its heads; the result goes back."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group = device_mesh.get_group()

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            with op("attention"):
                moved = (_AllToAll.apply(x, True, group) for x in args[:3])  # type: ignore[no-untyped-call]
                return (*moved, *args[3:])

        def after(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            with op("attention"):
                return _AllToAll.apply(out, False, group)  # type: ignore[no-untyped-call,no-any-return]

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module


class _AllToAll(torch.autograd.Function):
    """Exchange heads for positions, or back; backward is the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_heads: bool, group: dist.ProcessGroup) -> Tensor:
        ctx.to_heads, ctx.group = to_heads, group
        return _exchanged(x, to_heads, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(grads[0], not ctx.to_heads, ctx.group), None, None


def _exchanged(x: Tensor, to_heads: bool, group: dist.ProcessGroup) -> Tensor:
    """(b, a, s / c, d) to (b, a / c, s, d), or the reverse: laid out by rank, sent, laid out again.

    Token-major inside, as projections make q, k and v and as the output projection reads the result.
    """
    ranks = dist.get_world_size(group)
    x = x.permute(HEADS_FIRST)
    cut, outermost = (2, (2, 0, 1, 3, 4)) if to_heads else (1, (1, 0, 2, 3, 4))
    parts: Tensor = x.unflatten(cut, (ranks, -1))  # type: ignore[no-untyped-call]
    sent = parts.permute(outermost).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    del x, parts, sent
    joined = (1, 0, 2, 3, 4) if to_heads else (1, 2, 0, 3, 4)
    received = received.permute(joined)
    return received.flatten(1 if to_heads else 2, 2 if to_heads else 3).permute(HEADS_FIRST)
