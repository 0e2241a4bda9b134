"""Tensor and sequence parallelism of the decoder by DTensor: which module is split how.

Column-wise: q, k, v, gate, up (a head or a column of the MLP stays on one rank); row-wise: o, down, and
the embedding over the vocabulary; the head over the vocabulary too, with a loss that sums over the
ranks. Between layers runs the stream: whole on each rank, or with sequence parallelism split along
positions, where norms and sums work on their part. Parameters that are not split are replicated
DTensors, so that optimizers and clipping see one kind.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053), sec. 3; Korthikanti et al. 2022 (arXiv:2205.05198), sec. 4.
Checked by: harness/test_distributed.py (losses of one process; bytes against MemTracker).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement

from memcalc.harness.model.decoder import Decoder
from memcalc.harness.watch.scopes import op

SEQUENCE: Final = 1  # of the stream (b, s, h)
_HEADS: Final = 2  # of q and k where they are normed (b, s, heads, d)
_COLUMNS: Final = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj"})
_ROWS: Final = frozenset({"o_proj", "down_proj"})


def split_layers(model: Decoder, mesh: DeviceMesh, sequence: bool) -> None:
    """Split a decoder on the meta device over a mesh of one dimension, hooks and parameters."""
    stream = Shard(SEQUENCE) if sequence else Replicate()
    for name, module in list(model.named_modules()):
        style = _style(name.rpartition(".")[2], stream)
        if style is not None:
            parallelize_module(module, mesh, style)
    heads, ranks = model.config.num_attention_heads, mesh.size()
    here = replace(
        model.config,
        num_attention_heads=heads // ranks,
        num_key_value_heads=model.config.num_key_value_heads // ranks,
    )
    for module in model.modules():
        if hasattr(module, "qkv_proj"):
            module.config = here  # type: ignore[assignment]  # it cuts q, k and v by it


def _style(name: str, stream: Placement) -> ParallelStyle | None:
    """How a module of this name is split; None where its own parts are."""
    if name in _COLUMNS:
        return ColwiseParallel()
    if name in _ROWS:
        return RowwiseParallel(output_layouts=stream)
    if name == "embedding":
        return RowwiseParallel(input_layouts=Replicate(), output_layouts=stream)
    if name == "position_embedding":
        rows = Shard(0) if stream.is_shard() else Replicate()
        return _Whole(name, Replicate(), rows)
    if name in ("q_norm", "k_norm"):
        return _Whole(name, Shard(_HEADS), Shard(_HEADS))
    if name.endswith("_norm"):
        return _Whole(name, stream, stream)
    if name in ("attn", "mlp"):
        return _Gathered(f"{name}_gather", stream)
    return _Vocabulary() if name == "lm_head" else None


class _Whole(ParallelStyle):
    """Parameters whole on every rank; what goes in and comes out are this rank's parts."""

    def __init__(self, name: str, takes: Placement, gives: Placement) -> None:
        super().__init__()
        self.name, self.takes, self.gives = name, takes, gives

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _place_parameters(module, device_mesh, Replicate())

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            with op(self.name):
                return (DTensor.from_local(args[0], device_mesh, [self.takes], run_check=False),)

        def after(_: nn.Module, args: tuple[Any, ...], out: DTensor) -> Tensor:
            with op(self.name):
                return out.redistribute(placements=[self.gives]).to_local()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module


class _Gathered(ParallelStyle):
    """The first argument is gathered from its parts; the module's own linears are split."""

    def __init__(self, name: str, stream: Placement) -> None:
        super().__init__()
        self.name, self.stream = name, stream

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (gathered(self.name, args[0], device_mesh, self.stream), *args[1:])

        module.register_forward_pre_hook(before)
        return module


class _Vocabulary(ParallelStyle):
    """The head's parameters, split over the vocabulary; it is no module that is called."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _place_parameters(module, device_mesh, Shard(0))
        return module


def gathered(name: str, x: Tensor, mesh: DeviceMesh, stream: Placement) -> DTensor:
    """The stream as a tensor that is whole on every rank, as the ledger's operator `name`."""
    with op(name):
        part = DTensor.from_local(x, mesh, [stream], run_check=False)
        return part.redistribute(placements=[Replicate()])


def _place_parameters(module: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        placed = distribute_tensor(parameter, mesh, [placement])
        module.register_parameter(name, nn.Parameter(placed))


def split_dims(model: nn.Module) -> dict[str, int]:
    """Parameters that are split, by name, and along which dimension."""
    found = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and isinstance(parameter.placements[0], Shard):
            found[name] = parameter.placements[0].dim
    return found


@torch.no_grad()
def part_of(
    name: str, whole: Tensor, dim: int, parts: tuple[int, ...], place: int, ranks: int
) -> Tensor:
    """A rank's part of a whole parameter: one of `ranks` equal pieces along dim.

    parts: rows of q, k and v where one weight has all three, so that each is cut for itself; else ().
    """
    if not parts:
        return whole.chunk(ranks, dim)[place]
    pieces = torch.split(whole, list(parts), dim)
    return torch.cat([piece.chunk(ranks, dim)[place] for piece in pieces], dim)


@torch.no_grad()
def sum_partial_gradients(model: nn.Module) -> None:
    """Sum over the ranks what each has of a replicated parameter's gradient (norms of a part)."""
    for parameter in model.parameters():
        grad = parameter.grad
        if isinstance(grad, DTensor) and any(p.is_partial() for p in grad.placements):
            parameter.grad = grad.redistribute(placements=[Replicate()] * grad.device_mesh.ndim)
