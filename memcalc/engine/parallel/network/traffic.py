"""Traffic: the bytes one rank sends a step, by group and collective, for every way to divide a run.

Everything here is arithmetic on bytes that come from elsewhere: parameters and gradients from the
states, activations from the ledger. Collectives are rings: of a tensor of B bytes over n ranks a rank
sends (n - 1)/n B in an all-gather, a reduce-scatter and an all-to-all, twice that in an all-reduce.
Papers leave (n - 1)/n out; `volume_bytes` does so too. Times and overlap are not decided here.
Sources: Rajbhandari et al. 2020 (arXiv:1910.02054), sec. 7, ZeRO; Korthikanti et al. 2022
(arXiv:2205.05198), sec. 4.2, sequence parallelism; Liu et al. 2023 (arXiv:2310.01889), ring attention;
Jacobs et al. 2023 (arXiv:2309.14509), Ulysses; PyTorch 2.13.0, fully_shard and context parallelism.
Checked by: unit/test_traffic.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

#: Times a tensor passes through a rank in a ring: an all-reduce is a reduce-scatter and an all-gather.
PASSES: Final = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1, "send": 1}


class Traffic(NamedTuple):
    """One collective of one group over a step.

    ranks: of the group; calls: a step; call_bytes: the whole tensor of one call (all-to-all and send:
    this rank's own).
    """

    group: str  # dp | shard | replica | tp | cp | ep | pp | embedding
    collective: str  # keys of PASSES
    ranks: int
    calls: int
    call_bytes: int

    @property
    def volume_bytes(self) -> int:
        """Bytes through this rank a step with (n - 1)/n left out, as papers count."""
        return PASSES[self.collective] * self.calls * self.call_bytes if self.ranks > 1 else 0

    @property
    def sent_bytes(self) -> int:
        """Bytes this rank sends a step, rounded up a call."""
        if self.ranks == 1:
            return 0
        if self.collective == "send":
            return self.calls * self.call_bytes
        share = -(-self.call_bytes * (self.ranks - 1) // self.ranks)
        return PASSES[self.collective] * self.calls * share


class Copies(NamedTuple):
    """The ranks that hold the same weights and how often they meet.

    ranks: data-parallel ranks (and context-parallel ones); shard: of one sharding group, all of them
    unless this is HSDP. micro_batches: a step. reduce_every: gradients are reduced after every
    micro-batch, not only the last. reshard: parameters are freed after forward; an int keeps them
    split over so many ranks.
    """

    ranks: int
    shard: int
    micro_batches: int = 1
    reduce_every: bool = True
    reshard: bool | int = True


def ddp(gradient_bytes: int, copies: Copies) -> tuple[Traffic, ...]:
    """Whole copies: gradients are all-reduced, 2 P of volume a reduction."""
    return (Traffic("dp", "all-reduce", copies.ranks, _reductions(copies), gradient_bytes),)


def zero(
    stage: int, parameter_bytes: int, gradient_bytes: int, copies: Copies
) -> tuple[Traffic, ...]:
    """DeepSpeed's stages: volume 2 P a step up to stage 2, 3 P at stage 3 (one micro-batch).

    Stage 1 reduces once a step where gradients accumulate. Stages 2 and 3 keep no whole gradients and
    reduce after every micro-batch; stage 3 gathers parameters for forward and again for backward.
    Source: arXiv:1910.02054, sec. 7.2.
    """
    ranks, micro = copies.ranks, copies.micro_batches
    if stage == 0:
        return ddp(gradient_bytes, copies)
    reductions = micro if stage > 1 else _reductions(copies)
    gathers = 2 * micro if stage == 3 else 1
    return (
        Traffic("dp", "all-gather", ranks, gathers, parameter_bytes),
        Traffic("dp", "reduce-scatter", ranks, reductions, gradient_bytes),
    )


def fsdp(
    parameter_bytes: int, gradient_bytes: int, copies: Copies, kept_bytes: int = 0
) -> tuple[Traffic, ...]:
    """PyTorch's fully_shard, and HSDP where a sharding group is smaller than all ranks.

    parameter_bytes: in the dtype that is gathered; gradient_bytes: in the one that is reduced.
    kept_bytes: of the parameters, those not freed after forward in any case (the root's group).
    Replicas of a shard all-reduce its gradients.
    Source: PyTorch 2.13.0, distributed/fsdp/_fully_shard/_fsdp_param_group.py.
    """
    shard, micro = copies.shard, copies.micro_batches
    found = [Traffic("shard", "all-gather", shard, micro, parameter_bytes)]
    if copies.reshard:
        again = shard if copies.reshard is True else int(copies.reshard)
        found.append(Traffic("shard", "all-gather", again, micro, parameter_bytes - kept_bytes))
    reductions = _reductions(copies)
    found.append(Traffic("shard", "reduce-scatter", shard, reductions, gradient_bytes))
    if copies.ranks > shard:
        part = -(-gradient_bytes // shard)
        found.append(Traffic("replica", "all-reduce", copies.ranks // shard, reductions, part))
    return tuple(found)


def _reductions(copies: Copies) -> int:
    return copies.micro_batches if copies.reduce_every else 1


class Split(NamedTuple):
    """Layers that tp ranks share, over a step.

    activation_bytes: the stream between layers, b s h of one micro-batch, whole. regions: pairs of a
    column- and a row-split product, two in a usual block, over this rank's layers. forwards: 2 where
    blocks are recomputed in full.
    """

    activation_bytes: int
    regions: int
    ranks: int
    micro_batches: int = 1
    forwards: int = 1


def tensor_parallel(split: Split, sp: bool, gathers_again: bool = True) -> tuple[Traffic, ...]:
    """Tensor parallelism: an all-reduce a region, forward and backward.

    sp: each all-reduce becomes an all-gather and a reduce-scatter of the same volume, and, where the
    saved input is kept split (gathers_again, as Megatron does), backward gathers it once more.
    Source: arXiv:1909.08053, sec. 3; arXiv:2205.05198, sec. 4.2.2.
    """
    calls = split.regions * split.micro_batches * (split.forwards + 1)
    if not sp:
        return (Traffic("tp", "all-reduce", split.ranks, calls, split.activation_bytes),)
    more = split.regions * split.micro_batches if gathers_again else 0
    return (
        Traffic("tp", "all-gather", split.ranks, calls + more, split.activation_bytes),
        Traffic("tp", "reduce-scatter", split.ranks, calls, split.activation_bytes),
    )


class Attention(NamedTuple):
    """Attention layers that cp ranks share, over a step; bytes are of this rank's part, one micro-batch.

    kv_bytes: keys and values; qo_bytes: queries and outputs.
    """

    kv_bytes: int
    qo_bytes: int
    layers: int
    ranks: int
    micro_batches: int = 1
    forwards: int = 1


def context_parallel(attention: Attention, method: str) -> tuple[Traffic, ...]:
    """Ring: keys and values visit every rank; Ulysses: four all-to-alls a layer and direction.

    Ring, forward: n - 1 hops of this rank's keys and values; backward the same again, and n hops of
    their gradients, the last one home (in the dtype of the values: some codes use fp32).
    Source: PyTorch 2.13.0, experimental/_context_parallel/_attention.py; arXiv:2309.14509.
    """
    kv, qo, layers, ranks, micro, forwards = attention
    passes = layers * micro
    if method == "ulysses":
        calls = passes * (forwards + 1)
        return (
            Traffic("cp", "all-to-all", ranks, 2 * calls, kv // 2),
            Traffic("cp", "all-to-all", ranks, 2 * calls, qo // 2),
        )
    hops = passes * ((forwards + 1) * (ranks - 1) + ranks)
    return (Traffic("cp", "send", ranks, hops, kv),)


def expert_parallel(rows_bytes: int, calls: int, ranks: int) -> tuple[Traffic, ...]:
    """Tokens go to their experts and back: two all-to-alls a sparse layer and pass.

    rows_bytes: this rank's routed token rows, top-k counted; balanced, (n - 1)/n of them leave.
    calls: sparse layers x micro-batches x passes, where backward is one pass.
    Source: Lepikhin et al. 2020 (arXiv:2006.16668), sec. 3.
    """
    return (Traffic("ep", "all-to-all", ranks, 2 * calls, rows_bytes),)


def pipeline(
    activation_bytes: int, onward: int, backward: int, micro_batches: int
) -> tuple[Traffic, ...]:
    """Stages: an activation onward and a gradient back, for each micro-batch and chunk.

    onward, backward: chunks of this rank that have a next and a previous one elsewhere.
    Source: Narayanan et al. 2021 (arXiv:2104.04473), sec. 2.2.
    """
    calls = (onward + backward) * micro_batches
    return (Traffic("pp", "send", 2, calls, activation_bytes),)


def tied_embedding(gradient_bytes: int) -> tuple[Traffic, ...]:
    """First and last stage sum the gradient of the embedding they both hold, once a step."""
    return (Traffic("embedding", "all-reduce", 2, 1, gradient_bytes),)


def by_group(found: Iterable[Traffic]) -> dict[str, int]:
    """Bytes this rank sends a step, by group."""
    sums: dict[str, int] = {}
    for one in found:
        sums[one.group] = sums.get(one.group, 0) + one.sent_bytes
    return sums


def transfer_s(moved_bytes: float, bytes_per_s: float) -> float:
    """Seconds to move bytes at a rate with nothing beside them: a bound, not an estimate."""
    return moved_bytes / bytes_per_s
