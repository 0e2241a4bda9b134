"""Activation checkpointing: PyTorch's non-reentrant, selective and reentrant variants.

Non-reentrant: the forward runs as usual but every tensor a node saves is replaced by a holder; the
frame keeps the arguments. The first unpack in backward runs the function again, hands each saved
tensor to its holder, and stops at the last one (early stop), so what follows is not executed.
Selective: outputs of listed operators are kept in a cache during forward and handed out again.
Reentrant: the forward runs without a graph; backward runs the function whole and a backward inside.

Source: torch/utils/checkpoint.py of PyTorch 2.13. Checked by: oracle/test_torch_events.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from memcalc.engine.activation_offload import HostStash
from memcalc.engine.autograd import Grads, Node, backward, node_for
from memcalc.engine.tensors import Tape, Tensor

Function = Callable[..., Tensor]
_PRODUCTS: Final = ("mm", "_scaled_mm")
#: Operators whose outputs selective checkpointing keeps.
KEEP_ATTENTION: Final = frozenset(
    {
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    }
)
#: torchtitan's list: products of two matrices, every second one, and two attention kernels
#: (torchtitan/parallelisms/parallelize_llama.py, _save_list and _get_custom_policy). An fp8 product is
#: a product of matrices to the policy: it sees the tensors' subclass.
KEEP_EVERY_SECOND: Final = frozenset(
    {
        "mm",
        "_scaled_mm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
    }
)
KEEP_MATMULS: Final = KEEP_ATTENTION | {"mm", "addmm", "bmm", "_grouped_mm", "_scaled_mm"}


def policy(keep: frozenset[str]) -> Callable[[str], bool]:
    """Whether the next operator's outputs are kept, asked once an operator in the order they run."""
    if keep is not KEEP_EVERY_SECOND:
        return keep.__contains__
    products = 0

    def keeps(name: str) -> bool:
        nonlocal products
        products += name in _PRODUCTS
        return name in keep and (name not in _PRODUCTS or products % 2 == 1)

    return keeps


class _EarlyStopError(Exception):
    """Recomputation has produced the last saved tensor."""


class _Holder:
    """Stands for one saved tensor until it is recomputed."""

    __slots__ = ("__weakref__",)


class _Keep:
    """Forward of selective checkpointing: outputs of the listed operators go to the cache."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.keeps = policy(frame.keep)

    def outputs(self, name: str, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        made = compute()
        if self.keeps(name):
            self.frame.cache.setdefault(name, []).append(tuple(t.detach() for t in made))
        return made


class _Reuse:
    """Recomputation of selective checkpointing: kept outputs are taken from the cache."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.keeps = policy(frame.keep)

    def outputs(self, name: str, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if not self.keeps(name):
            return compute()
        return self.frame.cache[name].pop(0)


class _Rerun:
    """Packing while a frame recomputes: each saved tensor goes to the holder of the same rank."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.count = 0

    def pack(self, tensor: Tensor) -> Any:
        frame = self.frame
        holder = frame.holders[self.count]()
        self.count += 1
        if holder is not None:
            frame.recomputed[holder] = tensor
        if self.count == len(frame.holders):
            raise _EarlyStopError
        return tensor.detach()

    def unpack(self, kept: Any) -> Any:
        return kept


class Frame:
    """One checkpointed call: its function and arguments, its holders, what was recomputed."""

    def __init__(self, function: Function, args: tuple[Any, ...], keep: frozenset[str]) -> None:
        self.tape: Tape = next(t for t in args if isinstance(t, Tensor)).tape
        self.function = function
        outer = self.tape.packing[-1] if self.tape.packing else None
        self.outer = outer if isinstance(outer, HostStash) else None
        self.args = args if self.outer is None else self.outer.pack_arguments(args)
        self.keep = keep
        self.cache: dict[str, list[tuple[Tensor, ...]]] = {}
        self.holders: list[weakref.ref[_Holder]] = []
        self.recomputed: dict[_Holder, Tensor] = {}
        self.is_recomputed = False

    def pack(self, tensor: Tensor) -> _Holder:
        holder = _Holder()
        self.holders.append(weakref.ref(holder))
        return holder

    def unpack(self, holder: _Holder) -> Tensor:
        if not self.is_recomputed:
            self._recompute()
        return self.recomputed.pop(holder)

    def _recompute(self) -> None:
        tape, outer = self.tape, self.outer
        args = self.args if outer is None else tuple(map(outer.unpack, self.args))
        block, op, was_enabled = tape.block, tape.op, tape.grad_enabled
        tape.packing.append(_Rerun(self))
        if self.keep:
            tape.dispatch.append(_Reuse(self))
        tape.recomputing += 1
        tape.grad_enabled = True
        try:
            self.function(*args)
        except _EarlyStopError:
            pass
        finally:
            tape.grad_enabled = was_enabled
            tape.recomputing -= 1
            if self.keep:
                tape.dispatch.pop()
            tape.packing.pop()
            tape.at(op, block)
        self.is_recomputed = True


def checkpoint(function: Function, *args: Any, keep: frozenset[str] = frozenset()) -> Tensor:
    """Run function(*args) under a non-reentrant checkpoint, keeping the outputs of `keep`."""
    tape: Tape = next(t for t in args if isinstance(t, Tensor)).tape
    frame = Frame(function, args, keep)
    tape.packing.append(frame)
    if keep:
        tape.dispatch.append(_Keep(frame))
    try:
        return function(*args)
    finally:
        if keep:
            tape.dispatch.pop()
        tape.packing.pop()


def checkpoint_reentrant(function: Function, *tensors: Tensor) -> Tensor:
    """Run function(*tensors) under a reentrant checkpoint: no graph now, a whole one in backward."""
    tape = tensors[0].tape
    node = node_for(_reentrant_backward, *tensors)
    if node:
        node.meta = function
        for tensor in tensors:
            node.save(tensor, "dgrad")
    was_enabled, tape.grad_enabled = tape.grad_enabled, False
    try:
        out = function(*tensors)
    finally:
        tape.grad_enabled = was_enabled
    return node.output(out) if node else out


def _reentrant_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    again = []
    for tensor, needs in zip(saved, node.needs, strict=True):
        copy = tensor.detach()
        copy.requires_grad = needs
        again.append(copy)
    tape = again[0].tape
    was_enabled, tape.grad_enabled = tape.grad_enabled, True
    tape.recomputing += 1
    try:
        out = node.meta(*again)
    finally:
        tape.recomputing -= 1
    seed = grads[0]
    assert seed is not None
    backward(out, seed)
    tape.grad_enabled = was_enabled
    tape.at(node.op, node.block)
    return [copy.grad for copy in again]
