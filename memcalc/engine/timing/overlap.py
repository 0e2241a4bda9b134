"""Overlap: what of a rank's exchanges shows in its step, and what runs beside compute.

Rules, with the code they are read in:
- FSDP and ZeRO-3: a block's gather runs while the block before it computes, forward and backward; the
  first of each and the root's have nothing beside them. Gradients of a block are scattered beside the
  next block's backward; the last block's and the root's are not. On one tier of wires they follow each
  other, on two (HSDP) they run side by side. PyTorch 2.13, distributed/fsdp/
  _fully_shard/_fsdp_param_group.py (unshard, post_backward); DeepSpeed, partitioned_param_coordinator.py.
- Buckets of DDP and of Megatron with overlap_grad_reduce: beside the backward of a step's last
  micro-batch, all but the last bucket. PyTorch, csrc/distributed/c10d/reducer.cpp; Megatron-Core 0.14,
  distributed/param_and_grad_buffer.py. With overlap_param_gather parameters are gathered beside the
  forward of the first micro-batch.
- Tensor parallelism: exposed, but for what a linear's backward runs beside its own products
  (tp_beside_products of a stack): TransformerEngine 2.11, pytorch/module/linear.py; nanotron 0.5,
  parallel/tensor_parallel/functional.py. Rings of context parallelism run beside the attention of a step.
- Everything else is exposed: all-to-alls of experts and of Ulysses, gradients summed after backward,
  the gather after the optimizer, the norm. What stages send is the schedule's.
- Copies that lay an exchange's tensors out run on the compute stream and show.
Compute beside a collective is slower by `Rates.overlap_slowdown`.
Checked by: unit/test_overlap.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from memcalc.engine.plan import Plan
from memcalc.engine.timing.arith import Num, maximum, minimum
from memcalc.engine.timing.exchanges import Exchange
from memcalc.engine.timing.op_time import ComputeTime
from memcalc.inputs.rates import Rates


class Phases(NamedTuple):
    """Seconds of compute that exchanges may run beside, of one micro-batch of a chunk.

    block_backward_s: with what it recomputes. layers: blocks of the chunk; outside: embedding, head, loss.
    """

    block_forward_s: Any
    block_backward_s: Any
    layers: int
    outside_forward_s: Any = 0.0
    outside_backward_s: Any = 0.0
    micro_batches: int = 1


class Exposed(NamedTuple):
    """Seconds that exchanges add to a step of one chunk.

    forward_s, backward_s: to every micro-batch; last_s: once, to its first or last micro-batch; step_s:
    once, around the optimizer. Each holds its part of slowed_s. hidden_s, slowed_s: of a whole step, what
    runs beside compute and what that compute takes longer.
    """

    forward_s: Any = 0.0
    backward_s: Any = 0.0
    last_s: Any = 0.0
    step_s: Any = 0.0
    hidden_s: Any = 0.0
    slowed_s: Any = 0.0


class _Shown(NamedTuple):
    """Seconds of some exchanges that show, and that do not."""

    shown: Num = 0.0
    hidden: Num = 0.0

    def plus(self, other: _Shown) -> _Shown:
        return _Shown(self.shown + other.shown, self.hidden + other.hidden)


def phases_of(plan: Plan, compute: ComputeTime) -> Phases:
    """The phases of a chunk's compute; time that launching takes is the blocks'."""
    layers = max(1, len(plan.kinds))
    later = compute.backward.once_s + compute.recompute.once_s
    return Phases(
        (compute.forward_s - compute.forward.once_s) / layers,
        (compute.backward_s - later) / layers,
        layers,
        compute.forward.once_s,
        later,
        plan.resolved.grad_accum_steps,
    )


def exposed(exchanges: Iterable[Exchange], phases: Phases, rates: Rates | None = None) -> Exposed:
    """What exchanges add to a step. Sizes and rates may be arrays. Checked by: unit/test_overlap.py."""
    found = [one for one in exchanges if one.axis != "pp"]
    forward = _of_layers(found, "forward").plus(_copies(found, "forward", "micro-batch"))
    backward = _of_layers(found, "backward").plus(_copies(found, "backward", "micro-batch"))
    ahead = phases.block_forward_s + forward.shown / phases.layers
    behind = phases.block_backward_s + backward.shown / phases.layers
    layers, gathers = phases.layers, _of_blocks(found, "forward", "micro-batch")
    forward = forward.plus(_gathered(gathers, ahead, layers))
    backward = backward.plus(_of_backward(found, behind, phases))
    once = _in_last(found, behind * layers)
    once = once.plus(_gathered(_of_blocks(found, "forward", "step"), ahead, layers))
    once = once.plus(_in_first(found, ahead * layers))
    once = once.plus(_copies(found, "forward", "step")).plus(_copies(found, "backward", "step"))
    slower = rates.overlap_slowdown if rates else 0.0
    batches = phases.micro_batches
    hidden = batches * (forward.hidden + backward.hidden) + once.hidden
    return Exposed(
        forward.shown + slower * forward.hidden,
        backward.shown + slower * backward.hidden,
        once.shown + slower * once.hidden,
        _sum(one for one in found if one.when == "step") + _copies(found, "step", "step").shown,
        hidden,
        slower * hidden,
    )


def _of_layers(found: list[Exchange], when: str) -> _Shown:
    """Exchanges of a layer's own ops, and whatever of a micro-batch has nothing beside it."""
    whens = ("backward", "recompute") if when == "backward" else (when,)
    total = _Shown()
    for one in found:
        if one.when not in whens or one.place or one.per != "micro-batch":
            continue
        total = total.plus(_beside(one.seconds, one.calls * one.beside_s))
    return total


def _copies(found: list[Exchange], when: str, per: str) -> _Shown:
    """Copies around exchanges: on the compute stream, so that they always show."""
    own = (one.copy_s for one in found if one.when == when and one.per == per)
    return _Shown(sum(own, 0.0))


def _beside(seconds: Num, compute_s: Num) -> _Shown:
    """So many seconds of exchanges beside so many of compute."""
    return _Shown(maximum(seconds - compute_s, 0.0), minimum(seconds, compute_s))


def _of_blocks(found: list[Exchange], when: str, per: str) -> list[Exchange]:
    return [one for one in found if one.when == when and one.per == per and one.place in _PLACES]


_PLACES = ("block", "root")


def _split(found: list[Exchange]) -> tuple[Num, list[Exchange]]:
    """Seconds with nothing beside them (the root's, and where nothing runs ahead), and the others."""
    ahead = [one for one in found if one.place == "block" and one.overlaps]
    alone = [one for one in found if one.place != "block" or not one.overlaps]
    return _sum(alone), ahead


def _sum(found: Iterable[Exchange]) -> Num:
    return sum((one.seconds for one in found), 0.0)


def _busiest(found: list[Exchange]) -> Num:
    """Seconds of the exchanges of one tier, of that which takes longest: tiers work side by side."""
    longest: Num = 0.0
    for tier in {one.tier for one in found}:
        longest = maximum(longest, _sum(one for one in found if one.tier == tier))
    return longest


def _gathered(found: list[Exchange], block_s: Num, layers: int) -> _Shown:
    """Gathers ahead of blocks: the root's and the first block's show, others run beside a block."""
    alone, ahead = _split(found)
    if not ahead:
        return _Shown(alone)
    each = _sum(ahead) / layers
    beside = _beside(each, block_s)
    return _Shown(alone + each + (layers - 1) * beside.shown, (layers - 1) * beside.hidden)


def _of_backward(found: list[Exchange], block_s: Num, phases: Phases) -> _Shown:
    """Backward's gathers and reductions of blocks share the wires: together beside each block.

    A block runs beside the gather of the next and the reduction of the one before. The first gather has
    the head and the loss beside it, the last reduction nothing.
    """
    alone, ahead = _split(_of_blocks(found, "backward", "micro-batch"))
    if not ahead:
        return _Shown(alone)
    layers = phases.layers
    each = _sum(ahead) / layers
    gather = _sum(one for one in ahead if one.kind == "all_gather") / layers
    first = _beside(gather, phases.outside_backward_s)
    inner = _beside(_busiest(ahead) / layers, block_s).shown
    shown = alone + first.shown + (each - gather) + (layers - 1) * inner
    return _Shown(shown, first.hidden + (layers - 1) * (each - inner))


def _in_last(found: list[Exchange], blocks_s: Num) -> _Shown:
    """Buckets beside a step's last backward: they fill evenly, the last one when it is over."""
    rest = last = 0.0
    total = _Shown()
    for one in found:
        if one.when != "backward" or one.per != "step":
            continue
        if not one.overlaps:
            total = total.plus(_Shown(one.seconds))
        elif one.place == "last":
            last = last + one.seconds
        else:
            rest = rest + one.seconds
    beside = _beside(rest, blocks_s)
    return total.plus(_Shown(beside.shown + last, beside.hidden))


def _in_first(found: list[Exchange], blocks_s: Num) -> _Shown:
    """Parameters gathered beside a step's first forward."""
    chosen = [
        o for o in found if o.when == "forward" and o.per == "step" and o.place not in _PLACES
    ]
    return _beside(_sum(chosen), blocks_s)
