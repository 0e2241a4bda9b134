"""The joint graph of a compiled block: every value of its forward and backward, with what it reads.

torch.compile traces a block once, forward and backward together, before anything is allocated. The
RegionTape does the same with the block's own description: where a plain tape would allocate, it notes
a Value. What is then stored, and when, is decided in `compiled_plan`.

A value is of one of these kinds. `input`: exists before the block (x, tables, parameters, the
incoming gradient). `kernel`: the result of a matrix product or attention kernel. `reduction`: sums,
means, statistics and dropout masks. `pointwise`: all else, computed inside the kernels that read it.
Source: torch/_inductor/scheduler.py and lowering.py of PyTorch 2.13. Checked by: oracle/test_compiled.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from memcalc.engine.sizes import ONE, ZERO, Size, product
from memcalc.engine.tensors import Shape, Storage, Tape, Tensor, bytes_of

_KERNELS: Final = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_ATTENTION: Final = "_scaled_dot_product_"
_REDUCTIONS: Final = frozenset({"mean.dim", "sum", "sum.dim_IntList"})
_NORMS: Final = frozenset(
    {
        "_fused_rms_norm", "native_layer_norm",
        "_fused_rms_norm_backward", "native_layer_norm_backward",
    }
)  # fmt: skip
#: Pointwise results whose elements do not lie where those of their operands do: never made in place.
_MOVING: Final = frozenset({"cat", "clone", "slice_backward", "select_backward"})


class Value:
    """One tensor of the graph. reads: value -> whether element i of this one needs only its element i.

    users counts the values that read this one; flops are those of the kernel that makes it.
    """

    __slots__ = (
        "backward", "dtype", "flops", "index", "kind", "name", "op", "order", "reads", "shape",
        "size", "users",
    )  # fmt: skip

    def __init__(self, index: int, kind: str, name: str, shape: Shape, dtype: str) -> None:
        self.index, self.kind, self.name = index, kind, name
        self.shape, self.dtype = shape, dtype
        self.size = bytes_of(shape, dtype)
        self.order: tuple[int, ...] | None = None
        self.op = ""
        self.backward = False
        self.reads: dict[int, bool] = {}
        self.users = 0
        self.flops: list[tuple[str, Size]] = []


class RegionTape(Tape):
    """A tape that allocates nothing: it notes the values of a compiled block's joint graph."""

    def __init__(self, outer: Tape) -> None:
        super().__init__(outer.device, outer.values)
        self.outer = outer
        self.block = outer.block
        self.grad_enabled = outer.grad_enabled
        self.graph: list[Value] = []
        self.entered: dict[int, Tensor] = {}  # value -> the outer tensor it is
        self._reading: list[Tensor] = []
        self._flops: list[tuple[str, Size]] = []
        self._casts: dict[tuple[int, str, Shape], Tensor] = {}

    def enter(self, tensor: Tensor) -> Tensor:
        """An outer tensor as an input of the graph, outside the outer autograd graph."""
        inside = self._input(tensor.shape, tensor.dtype)
        inside.order, inside._strides = tensor.order, tensor._strides
        inside.requires_grad, inside.name = tensor.requires_grad, tensor.name
        self.entered[inside.storage.index] = tensor
        return inside

    def tangent(self, shape: Shape, dtype: str) -> Tensor:
        """The gradient that will come in: from here on values belong to backward."""
        self.phase = "backward"
        return self._input(shape, dtype)

    def leaf(self, name: str, shape: Shape, dtype: str, trains: bool = True) -> Tensor:
        """A parameter, as an input; the outer tape registers it."""
        found = self.leaves.get(name)
        if found is None:
            found = self.leaves[name] = self.enter(self.outer.leaf(name, shape, dtype, trains))
        return found

    def _input(self, shape: Shape, dtype: str) -> Tensor:
        value = self._note("input", "input", shape, dtype)
        return Tensor(Storage(None, value.index), self, shape, dtype, None)

    def empty(
        self, name: str, shape: Shape, dtype: str, order: tuple[int, ...] | None = None
    ) -> Tensor:
        """Note the value a primitive makes; equal casts of one value are one value."""
        if bytes_of(shape, dtype) is ZERO:
            return super().empty(name, shape, dtype, order)
        if self.record is not None:
            self.record.note_traffic(self.phase, ZERO, shape)
        if name == "_softmax":
            return self._softmax(shape, dtype, order)
        if name != "_to_copy" or len(self._reading) != 1 or not self._reading[0].is_dense:
            return self._made(_kind(name, shape, dtype), name, shape, dtype, order)
        key = (self._reading[0].storage.index, dtype, shape)
        known = self._casts.get(key)
        if known is None:
            known = self._casts[key] = self._made("pointwise", name, shape, dtype, order)
        return known.detach()

    def _made(
        self, kind: str, name: str, shape: Shape, dtype: str, order: tuple[int, ...] | None
    ) -> Tensor:
        dtype = "bool" if name == "bernoulli" else dtype  # a compiled mask, whatever the device
        value = self._note(kind, name, shape, dtype)
        value.order = order
        numel = product(shape)
        for tensor in self._reading:
            index = tensor.storage.index
            in_place = tensor.is_dense and tensor.numel is numel and name not in _MOVING
            value.reads[index] = in_place and value.reads.get(index, True)
        for index in value.reads:
            self.graph[index].users += 1
        value.flops, self._flops = self._flops, []
        return Tensor(Storage(None, value.index), self, shape, dtype, order)

    def _softmax(self, shape: Shape, dtype: str, order: tuple[int, ...] | None) -> Tensor:
        """A softmax as its maximum and its sum a row, which are stored, and the rest."""
        rows = (*shape[:-1], ONE)
        largest = self._made("reduction", "amax", rows, dtype, None)
        total = self._made("reduction", "sum", rows, dtype, None)
        self.using((*self._reading, largest, total))
        return self._made("pointwise", "_softmax", shape, dtype, order)

    def _note(self, kind: str, name: str, shape: Shape, dtype: str) -> Value:
        value = Value(len(self.graph), kind, name, shape, dtype)
        value.op, value.backward = self.op, self.phase == "backward"
        self.graph.append(value)
        self.sizes.append(value.size)
        self.names.append(name)
        return value

    def reads(self, tensors: Iterable[Tensor | None]) -> None:
        """Note what the next primitive reads."""
        self._reading = [tensor for tensor in tensors if isinstance(tensor, Tensor)]

    def using(self, tensors: Iterable[Tensor]) -> None:
        """Note what the next result alone reads, where a primitive makes several."""
        self.reads(tensors)

    def add_flops(self, kind: str, flops: Size) -> None:
        """FLOPs of the kernel whose result comes next."""
        self._flops.append((kind, flops))


def _kind(name: str, shape: Shape, dtype: str) -> str:
    """What kind of value a primitive makes."""
    if name in _KERNELS or name.startswith(_ATTENTION):
        return "kernel"
    if name in _REDUCTIONS or name == "bernoulli" or (name == "native_dropout" and dtype == "bool"):
        return "reduction"
    if name in _NORMS and (shape[-1] is ONE or len(shape) == 1):
        return "reduction"  # statistics of a row, the gradient of a weight
    return "pointwise"
