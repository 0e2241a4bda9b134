"""Saved tensors on the host between forward and backward, as torchtune moves them.

A hook takes every tensor a node saves, the arguments of a checkpointed call among them, to host memory
on a stream of its own; the last few stay on the GPU too, so that the copy can end. Backward brings each
back when its node runs. Parameters and what is smaller than a kilobyte stay where they are; so does
all that head and loss save. A closed form: the streams' own delays are not followed.
Source: pytorch/torchtune torchtune/training/_activation_offloading.py (max_fwd_stash_size 5,
min_offload_size 1024); torch/utils/checkpoint.py, _NoopSaveInputs. Checked by:
unit/test_stack_torchtune.py.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memcalc.engine.tensors import Shape, Tape, Tensor, bytes_of

#: Tensors the hook has seen last, which are on the GPU still.
_STASH: Final = 5
_SMALLEST_BYTES: Final = 1024


class _OnHost(NamedTuple):
    """A tensor on the host: its number, and what it was."""

    number: int
    shape: Shape
    dtype: str
    order: tuple[int, ...] | None
    requires_grad: bool


class HostStash:
    """The hook: packs into host memory, unpacks into new tensors."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.count = 0
        self.recent: dict[int, Tensor] = {}
        self.returned: Tensor | None = None

    def pack(self, tensor: Tensor) -> Any:
        """The tensor itself where it stays, else what stands for it."""
        self.count += 1
        size = bytes_of(tensor.shape, tensor.dtype)
        small = not size.dims and size.value({}) < _SMALLEST_BYTES
        if tensor.name or small or tensor.storage.index < 0:
            return tensor
        for number in [n for n in self.recent if n <= self.count - _STASH]:
            del self.recent[number]
        self.recent[self.count] = tensor
        return _OnHost(self.count, tensor.shape, tensor.dtype, tensor.order, tensor.requires_grad)

    def unpack(self, kept: Any) -> Any:
        """The tensor on the GPU; the one brought back before goes."""
        if not isinstance(kept, _OnHost):
            return kept
        still = self.recent.pop(kept.number, None)
        self.recent.clear()
        if still is not None:
            return still
        back = self.tape.empty("to", kept.shape, kept.dtype, kept.order)
        self.returned = back.detach()
        back.requires_grad = kept.requires_grad
        return back

    def pack_arguments(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a checkpointed call; PyTorch saves an empty tensor before them."""
        self.count += 1
        return tuple(self.pack(one) if isinstance(one, Tensor) else one for one in arguments)
