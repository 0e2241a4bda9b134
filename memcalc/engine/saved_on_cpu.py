"""torch.autograd.graph.save_on_cpu around the forward pass: what nodes save waits on the host.

Every tensor that a node saves is copied to the host as it is saved, parameters and token ids among
them, once for each node that saves it; a strided one by way of a dense copy on the GPU. Backward copies
each back when its node runs, and frees it with the node. Under a checkpoint the block's arguments are
what is saved; what its backward recomputes stays on the GPU.
Source: PyTorch 2.13, torch/autograd/graph.py (save_on_cpu), torch/csrc/autograd/saved_variable.cpp
(hooks see leaves too), aten/src/ATen/native/cuda/Copy.cu (copy_requires_temporaries).
Checked by: unit/test_offload.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.activation_offload import HostStash
from memcalc.engine.tensors import Shape, Tensor, bytes_of


class _Copy(NamedTuple):
    """What stands for a tensor on the host."""

    shape: Shape
    dtype: str
    requires_grad: bool


class SavedOnCpu(HostStash):
    """The pair of hooks."""

    def pack(self, tensor: Tensor) -> Any:
        """A copy on the host; the tensor itself goes when nothing else holds it."""
        if not tensor.is_contiguous():
            self.tape.loads(tensor)
            self.tape.empty("contiguous", tensor.shape, tensor.dtype)
        size = bytes_of(tensor.shape, tensor.dtype)
        self.tape.hosted.append((self.tape.block, size))
        return _Copy(tensor.shape, tensor.dtype, tensor.requires_grad)

    def unpack(self, kept: Any) -> Any:
        """A new tensor on the GPU."""
        if not isinstance(kept, _Copy):
            return kept
        back = self.tape.empty("to", kept.shape, kept.dtype)
        back.requires_grad = kept.requires_grad
        return back
