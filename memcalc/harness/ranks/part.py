"""What one rank runs of a decoder: some of its blocks, and of each layer its part.

The whole decoder is made on the meta device, cut, wrapped, and only then given memory; weights are drawn
whole, one parameter at a time, in the order and from the generator of a run in one process, and each
rank keeps its part. So every layout begins with the same model.
Checked by: harness/test_distributed.py (losses equal those of one process).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Replicate, Shard

from memcalc.engine.plan import Plan
from memcalc.engine.states import names_expert
from memcalc.harness.model.block import Block
from memcalc.harness.model.casting import DTYPES, cast_scope
from memcalc.harness.model.decoder import Decoder, assemble, draw, parameters_made
from memcalc.harness.model.recompute import run_block
from memcalc.harness.ranks.context import own_positions, split_sequence
from memcalc.harness.ranks.experts import cut_along, expert_weights, split_experts
from memcalc.harness.ranks.fsdp_stages import name_stages
from memcalc.harness.ranks.ranks import Ranks
from memcalc.harness.ranks.split_layers import SEQUENCE, gathered, part_of, split_dims, split_layers

__all__ = ["Part", "build_part", "running_plan"]


def running_plan(plan: Plan, ranks: Ranks) -> Plan:
    """The plan as this rank runs it: under fsdp the policy casts, not the decoder; a stage's blocks.

    recompute full:N means the first N blocks of each stage.
    """
    kernels, layout = plan.kernels, ranks.layout
    if layout.fsdp:
        kernels = kernels._replace(autocast=False)
    limit = plan.resolved.setup.recompute_layers
    own = layout.stage_layers(len(plan.kinds))[ranks.place.pp]
    kinds = list(plan.kinds)
    if limit is not None and layout.pp > 1:
        recompute = plan.kinds[0].recompute  # the first N blocks of the model, at least one
        for number, index in enumerate(own):
            kinds[index] = kinds[index]._replace(recompute=recompute if number < limit else "none")
    return plan._replace(kernels=kernels, kinds=tuple(kinds))


class Part(Decoder):
    """A decoder cut to a stage's blocks, with the layers that come before the first or after the last.

    The first stage takes token ids (b, s), the others what the stage before gave; the last gives the
    mean loss, the others the stream (b, s, h), with sequence parallelism a rank's part of s.
    """

    def __init__(self, plan: Plan, ranks: Ranks) -> None:
        super().__init__(plan.config, plan.kernels, plan.kinds)
        self.ranks, self.seq_len = ranks, plan.resolved.seq_len // ranks.layout.cp
        # Taken once: taking a mesh apart makes tensors on the host.
        self.tp_mesh = ranks.along("tp") if ranks.layout.tp > 1 else None
        own = ranks.layout.stage_layers(len(plan.kinds))[ranks.place.pp]
        blocks = {str(index): self.layers[index] for index in own}
        self.layers = nn.ModuleDict(blocks)  # type: ignore[assignment]  # a block keeps its name
        self.kinds = tuple(plan.kinds[index] for index in own)
        if not ranks.is_first_stage:
            for name in ("embedding", "project_in", "position_embedding", "embedding_norm"):
                if hasattr(self, name):
                    setattr(self, name, None)
        if not ranks.is_last_stage:
            self.final_norm = self.project_out = None
            self.lm_head = None  # type: ignore[assignment]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels int64 (b, s) go to the last stage."""
        with cast_scope(self.kernels.autocast):
            x, _tables = self.hidden_states(x)
            if not self.ranks.is_last_stage:
                return x
            assert labels is not None
            loss = self._loss(x, labels.view(-1))
        loss = loss.full_tensor() if isinstance(loss, DTensor) else loss
        return loss if self.ranks.layout.pp == 1 else loss.float().view(1)  # pieces can be joined

    def hidden_states(self, ids: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
        """What the last of these blocks returns, and what all of them read."""
        x = self._embed(ids) if self.ranks.is_first_stage else ids
        contexts = self._contexts(ids.new_empty((0, self.seq_len)))  # the whole stream's
        for kind, block in zip(self.kinds, self.layers.values(), strict=True):  # type: ignore[operator]
            x = run_block(block, kind.recompute, x, *contexts[kind.attention])
        return x, contexts

    def _final(self, x: Tensor) -> Tensor:
        x = super()._final(x)
        if self.tp_mesh is None:
            return x
        stream = Shard(SEQUENCE) if self.ranks.layout.sp else Replicate()
        return gathered("head_gather", x, self.tp_mesh, stream)


def build_part(plan: Plan, ranks: Ranks, seed: int) -> Decoder:
    """This rank's part of a plan's decoder on its device, weights drawn. plan: as `running_plan` gives.

    Raises ConfigError for kernels the decoder does not run.
    """
    layout = ranks.layout
    cut = layout.tp > 1 or layout.pp > 1
    with parameters_made(plan.kernels.param_dtype, "meta" if cut or layout.fsdp else ranks.device):
        model = Part(plan, ranks) if cut else Decoder(plan.config, plan.kernels, plan.kinds)
    if layout.tp > 1:
        split_layers(model, ranks.along("tp"), layout.sp)
    if layout.cp > 1:
        split_sequence(model, ranks.along("cp"), layout.cp_method)
        model.positions = rank_positions(plan, ranks)
    if layout.ep > 1:
        split_experts(model, ranks.along("ep"))
    dims = split_dims(model)
    if layout.fsdp:
        _shard(model, plan, ranks)
    if cut or layout.fsdp:
        model.to_empty(device=ranks.device)
    _fill(model, plan, ranks, dims, seed)
    return model


def rank_positions(plan: Plan, ranks: Ranks) -> Tensor:
    """The positions of a sequence that this rank has, on its device."""
    layout, seq = ranks.layout, plan.resolved.seq_len
    return own_positions(seq, layout.cp, ranks.place.cp, layout.cp_method).to(ranks.device)


def _shard(model: Decoder, plan: Plan, ranks: Ranks) -> None:
    """FSDP2: every block is a group of its own, the rest is the root's.

    16-bit mixed precision: parameters are cast before they are gathered, gradients are reduced in
    fp32. With stages a block stays gathered between forward and backward unless the layout says
    otherwise, or it would be gathered anew for every micro-batch. The root stays gathered always.
    """
    kernels = plan.kernels
    policy = MixedPrecisionPolicy()
    if kernels.param_dtype != kernels.compute_dtype:
        policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[kernels.compute_dtype], reduce_dtype=torch.float32
        )
    mesh, reshard = ranks.sharding, ranks.layout.frees_after_forward
    blocks = model.layers.values() if isinstance(model.layers, nn.ModuleDict) else model.layers
    for block in blocks:
        placement = _expert_placement(block, plan, ranks)
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=reshard,
            shard_placement_fn=placement,
        )
        assert isinstance(block, Block)
        name_stages(block, block.index)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    name_stages(model, None)


def _expert_placement(block: nn.Module, plan: Plan, ranks: Ranks) -> Any:
    """What fully_shard asks of each parameter of a block; None where all have one mesh."""
    layout, experts = ranks.layout, expert_weights(block)
    cut = cut_along(layout, plan.config)
    if not experts or (layout.ep == 1 and cut.dim == 0):
        return None
    if layout.ep == 1:
        return lambda parameter: cut if parameter in experts else None
    own = FSDPMeshInfo(mesh=ranks.along("edp"), shard_mesh_dim=0)
    rest = FSDPMeshInfo(mesh=ranks.sharding, shard_mesh_dim=0)

    def placed(parameter: nn.Parameter) -> ShardPlacementResult:
        if parameter in experts:
            return ShardPlacementResult(placement=cut, mesh_info=own)
        return ShardPlacementResult(placement=Shard(0), mesh_info=rest)

    return placed


@torch.no_grad()
def _fill(model: Decoder, plan: Plan, ranks: Ranks, dims: dict[str, int], seed: int) -> None:
    """Draw every parameter of the whole model in its order; keep this rank's part of those it has."""
    config, layout, place = plan.config, ranks.layout, ranks.place
    a, k = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    own = dict(model.named_parameters())
    torch.manual_seed(seed)
    whole_model = assemble(config, plan.kernels, plan.kinds, "meta")
    for name, like in whole_model.named_parameters():
        values = torch.empty(like.shape, dtype=like.dtype, device=ranks.device)
        draw(name, values, whole_model)
        if name not in own:
            continue
        if name in dims:
            parts = (a, k, k) if ".qkv_proj." in name else ()
            values = part_of(name, values, dims[name], parts, place.tp, layout.tp)
        if layout.fsdp:
            values = _fsdp_part(name, values, plan, ranks)
        parameter = own[name]
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        local.copy_(values)
    torch.manual_seed(seed + ranks.share)  # dropout: masks of their own for each share of the batch


def _fsdp_part(name: str, values: Tensor, plan: Plan, ranks: Ranks) -> Tensor:
    """What FSDP leaves this rank of a parameter, of an expert's first what its ep rank has."""
    layout, dim, part, count = ranks.layout, 0, ranks.share, ranks.layout.shard_ranks
    if names_expert(name):
        values = values.chunk(layout.ep, 0)[part % layout.ep]
        dim = cut_along(layout, plan.config).dim
        part, count = part // layout.ep, count // layout.ep
    pieces, part = values.chunk(count, dim), part % count
    return pieces[part] if part < len(pieces) else values[:0]
