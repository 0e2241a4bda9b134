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

from memcalc.engine.kernel_log import Ran
from memcalc.engine.sizes import ONE, ZERO, product
from memcalc.engine.tensors import Shape, Storage, Tape, Tensor, bytes_of

_KERNELS: Final = frozenset({"mm", "addmm", "bmm", "baddbmm", "_scaled_mm"})
_ATTENTION: Final = "_scaled_dot_product_"
_REDUCTIONS: Final = frozenset({"mean.dim", "sum", "sum.dim_IntList", "linalg_vector_norm"})
_NORMS: Final = frozenset(
    {
        "_fused_rms_norm", "native_layer_norm",
        "_fused_rms_norm_backward", "native_layer_norm_backward",
    }
)  # fmt: skip
#: With a norm's statistics: what is computed once where a block's code computes it twice.
_SHARED: Final = frozenset(
    {"_to_copy", "pow.Tensor_Scalar", "mean.dim", "linalg_vector_norm", "empty_like"}
)
#: Pointwise results whose elements do not lie where those of their operands do: never made in place.
_MOVING: Final = frozenset({"cat", "clone", "slice_backward", "select_backward"})


#: Stored values something is computed from -> whether element by element.
Operands = dict[int, bool]


class Value:
    """One tensor of the graph. reads: value -> whether element i of this one needs only its element i.

    users counts the values of its own direction that read this one; ran: the kernels that make it, of a
    matrix product or attention.
    """

    __slots__ = (
        "backward", "dtype", "index", "kind", "name", "op", "order", "reads", "shape",
        "ran", "recomputed", "size", "users",
    )  # fmt: skip

    def __init__(self, index: int, kind: str, name: str, shape: Shape, dtype: str) -> None:
        self.index, self.kind, self.name = index, kind, name
        self.shape, self.dtype = shape, dtype
        self.size = bytes_of(shape, dtype)
        self.order: tuple[int, ...] | None = None
        self.op = ""
        self.backward = self.recomputed = False
        self.reads: dict[int, bool] = {}
        self.users = 0
        self.ran: list[Ran] = []


class RegionTape(Tape):
    """A tape that allocates nothing: it notes the values of a compiled block's joint graph."""

    def __init__(self, outer: Tape, long_rows: bool = False) -> None:
        super().__init__(outer.device, outer.values, watched=True)  # a graph makes every sum anew
        self.outer, self.long_rows = outer, long_rows
        self.block = outer.block
        self.grad_enabled = outer.grad_enabled
        self.graph: list[Value] = []
        self.entered: dict[int, Tensor] = {}  # value -> the outer tensor it is
        self._reading: list[Tensor] = []
        self._ran: list[Ran] = []
        self._seeds: Tensor | None = None
        self._positive: dict[int, Tensor] = {}  # result of a relu -> its mask
        self._statistics = 0  # those the primitive at work has made
        self._shared: dict[tuple[str, int, str, Shape, int], Tensor] = {}

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
        """Note the value a primitive makes; equal casts and statistics of one value are made once."""
        if bytes_of(shape, dtype) is ZERO:
            return super().empty(name, shape, dtype, order)
        if self.record is not None and self.phase != "backward":
            self.record.note_result(shape)
        if name == "_softmax":
            return self._softmax(shape, dtype, order)
        if name == "_softmax_backward_data" and self.long_rows:
            self._multiply_rows(shape, dtype, order)
        if _is_mask(name, dtype):
            return self._mask(name, shape, order)
        if name in ("relu", "threshold_backward"):
            return self._relu(name, shape, dtype, order)
        kind = _kind(name, shape, dtype)
        statistic = name in _NORMS and shape[-1] is ONE
        if not (statistic or name in _SHARED) or not self._reading[0].is_dense:
            return self._made(kind, name, shape, dtype, order)
        self._statistics += statistic
        key = (name, self._reading[0].storage.index, dtype, shape, self._statistics)
        known = self._shared.get(key)
        if known is None:
            known = self._shared[key] = self._made(kind, name, shape, dtype, order)
        return known.detach()

    def _made(
        self, kind: str, name: str, shape: Shape, dtype: str, order: tuple[int, ...] | None
    ) -> Tensor:
        value = self._note(kind, name, shape, dtype)
        value.order = order
        numel = product(shape)
        for tensor in self._reading:
            index = tensor.storage.index
            in_place = tensor.is_dense and tensor.numel is numel and name not in _MOVING
            value.reads[index] = in_place and value.reads.get(index, True)
        for index in value.reads:
            self.graph[index].users += self.graph[index].backward == value.backward
        value.ran, self._ran = self._ran, []
        return Tensor(Storage(None, value.index), self, shape, dtype, order)

    def _softmax(self, shape: Shape, dtype: str, order: tuple[int, ...] | None) -> Tensor:
        """A softmax as its maximum and its sum a row, which are stored, and the rest."""
        rows = (*shape[:-1], ONE)
        largest = self._made("reduction", "amax", rows, dtype, None)
        total = self._made("reduction", "sum", rows, dtype, None)
        self.using((*self._reading, largest, total))
        return self._made("pointwise", "_softmax", shape, dtype, order)

    def _multiply_rows(self, shape: Shape, dtype: str, order: tuple[int, ...] | None) -> None:
        """A softmax's backward over long rows: gradient times result, for a row's sum and once more.

        What follows reads the products instead of the gradient.
        """
        gradient, *rest = self._reading
        products = self._made("pointwise", "mul.Tensor", shape, dtype, order)
        self.graph[products.storage.index].users += 1  # the sum, which is not stored
        self.using((*rest, products))

    def _relu(self, name: str, shape: Shape, dtype: str, order: tuple[int, ...] | None) -> Tensor:
        """relu and its backward, which reads a mask of one byte an element and not the result."""
        if name == "relu":
            out = self._made("pointwise", name, shape, dtype, order)
            self.using((out,))
            self._positive[out.storage.index] = self._made("reduction", "le", shape, "bool", order)
            return out
        self.using([self._positive.get(t.storage.index, t) for t in self._reading])
        return self._made("pointwise", name, shape, dtype, order)

    def _mask(self, name: str, shape: Shape, order: tuple[int, ...] | None) -> Tensor:
        """A dropout's mask, one byte an element on any device, from its seed.

        The seeds of all dropouts are one tensor, drawn before the first.
        """
        if self._seeds is None:
            self.using(())
            self._seeds = self._made("reduction", "randint", (ONE,), "int64", None)
        else:
            seeds = self.graph[self._seeds.storage.index]
            seeds.shape = (seeds.shape[0] + 1,)
            seeds.size = bytes_of(seeds.shape, seeds.dtype)
        self.using((self._seeds,))
        return self._made("reduction", name, shape, "bool", order)

    def _note(self, kind: str, name: str, shape: Shape, dtype: str) -> Value:
        value = Value(len(self.graph), kind, name, shape, dtype)
        value.op, value.backward = self.op, self.phase == "backward"
        self.graph.append(value)
        self.sizes.append(value.size)
        self.names.append(name)
        return value

    def reads(self, tensors: Iterable[Tensor | None]) -> None:
        """Note what the next primitive reads."""
        self._statistics = 0
        self._reading = [tensor for tensor in tensors if isinstance(tensor, Tensor)]

    def using(self, tensors: Iterable[Tensor]) -> None:
        """Note what the next result alone reads, where a primitive makes several."""
        self.reads(tensors)

    def ran(self, kernel: Ran, again: bool = False) -> None:
        """Note the kernel whose result comes next; element-wise ones follow from the graph."""
        if kernel.kind != "moved":
            self._ran.append(kernel)


def _is_mask(name: str, dtype: str) -> bool:
    return name == "bernoulli" or (name == "native_dropout" and dtype == "bool")


def _kind(name: str, shape: Shape, dtype: str) -> str:
    """What kind of value a primitive makes."""
    if name in _KERNELS or name.startswith(_ATTENTION) or dtype == "complex64":
        return "kernel"  # complex numbers: no code is generated for them
    if name in _REDUCTIONS or (name in _NORMS and (shape[-1] is ONE or len(shape) == 1)):
        return "reduction"  # of norms: statistics of a row, the gradient of a weight
    return "pointwise"


def large_operands(graph: list[Value], reads: dict[int, Operands], value: Value) -> set[int]:
    """Operands of the value's own number of elements, inputs of the block left out."""
    numel = product(value.shape)
    return {
        i
        for i in reads[value.index]
        if graph[i].kind != "input" and product(graph[i].shape) is numel
    }
