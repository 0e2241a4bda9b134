"""Tape, Storage and Tensor: PyTorch's tensors without data, over symbolic sizes.

The blocks of the ledger are written as ordinary eager code over these tensors. Creating a storage
appends an allocation to the tape; when the last reference to it goes, CPython's reference count
appends the free, at the very instant PyTorch would free it. So lifetimes are never stated: they
follow from the code, as they do in PyTorch.

Order of events depends on sizes only through dims that equal 1 (a transpose over such a dim needs
no copy); those are traced as the constant 1, so one structure, traced once, serves every size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memcalc.engine.kernel_log import KernelLog, read_bytes
from memcalc.engine.kernel_log import bytes_of as bytes_of
from memcalc.engine.sizes import ONE, ZERO, Size, product

if TYPE_CHECKING:
    from typing import Protocol

    from memcalc.engine.autograd import LeafNode, Node
    from memcalc.engine.ledger import OpRecord
    from memcalc.engine.parallel.tensor.placed import Placed

    class Packing(Protocol):
        """What happens to a tensor a node saves: kept as it is, or handed to a checkpoint frame."""

        def pack(self, tensor: Tensor) -> Any: ...

    class Dispatch(Protocol):
        """Selective checkpointing's way into an operator: keep its outputs, or hand them out again."""

        def outputs(self, name: str, compute: Any) -> tuple[Tensor, ...]: ...


Shape = tuple[Size, ...]
#: The op that makes trained keys and values: its nodes run after all blocks' in backward.
PREFIX: Final = "prefix"
#: The op of a loss over the adapters of each layer: its nodes run before all blocks' in backward.
ORTHOGONAL: Final = "orthogonal"
#: A primitive that the first repetition of a block runs and no other does.
FIRST: Final = "first"
#: Of nodes that belong to a block, and run apart from its others: what marks their stretch.
APART: Final = {PREFIX: "cache", ORTHOGONAL: "tail"}


class Label(NamedTuple):
    """Where on the step an allocation happens: phase, block (-1 outside the blocks) and ledger op."""

    phase: str
    block: int
    op: str
    recomputed: bool = False


class Tape(KernelLog):
    """The allocations and frees of one traced structure, with the label of each allocation.

    events: i >= 0 allocates storage i, ~i frees it. sizes[i], labels_of[i], names[i]: its bytes, its
    label's index, the primitive that made it. Only storages made while tracing are here; parameters,
    optimizer states and inputs exist before and are summed by `memory.py`.
    """

    def __init__(
        self, device: str = "cuda", values: dict[str, int] | None = None, watched: bool = False
    ) -> None:
        super().__init__()
        self.device = device
        self.watched = watched  # as under a dispatch mode: sums and scatters make copies
        self.values = values or {}  # only the optimizer of Muon compares sizes
        self.events: list[int] = []
        self.sizes: list[Size] = []
        self.labels_of: list[int] = []
        self.names: list[str] = []
        self.labels: list[Label] = []
        self.marks: list[tuple[int, str, int]] = []
        self.records: dict[tuple[int, str], OpRecord] = {}
        self.leaves: dict[str, Tensor] = {}
        self.gradients: list[Tensor] = []  # what injectors keep as gradients instead of the leaves'
        self.earlier: set[int] = set()  # storages that an earlier micro-batch made
        self.passing: set[int] = set()  # gradients' storages that end with their micro-batch
        self.hosted: list[tuple[int, Size]] = []  # (block, bytes) of copies that wait on the host
        self.gradient_hooks: list[Callable[[Tensor], None]] = []
        self.block_hooks: list[Callable[[int, int], None]] = []
        self.op_hooks: list[Callable[[int, str], None]] = []
        self.working: tuple[int, str] | None = None  # the operator that op_hooks last heard of
        self.grad_enabled = True
        self.keeps_inputs = (
            False  # linears keep their input for backward though the weight is frozen
        )
        self.recomputing = 0
        self.sequence = 0
        self.label = 0
        self.phase = "forward"
        self.block = -1
        self.op = ""
        self.packing: list[Packing] = []
        self.dispatch: list[Dispatch] = []
        self.record: OpRecord | None = None  # of the op at work; None while recomputing
        self._label_index: dict[tuple[str, int, str, bool], int] = {}

    def at(self, op: str, block: int | None = None, phase: str | None = None) -> None:
        """Everything from here on happens in this op (and block, and phase)."""
        self.op = op
        if block is not None:
            self.block = block
        if phase is not None:
            self.phase = phase
        key = (self.phase, self.block, op, self.recomputing > 0)
        known = self._label_index.get(key)
        if known is None:
            known = self._label_index[key] = len(self.labels)
            self.labels.append(Label(*key))
        self.label = known
        self.forget()
        self.record = None if self.recomputing else self.records.get((self.block, op))

    def reads(self, tensors: Iterable[Tensor | None]) -> None:
        """Note what the next primitive reads; it is moved once that allocates a result.

        A view allocates nothing, so what it looks at is never counted.
        """
        total = ZERO
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                dense = tensor._strides is None
                size = bytes_of(tensor.shape, tensor.dtype) if dense else read_bytes(tensor)
                total = size if total is ZERO else total + size
        self._loaded, self._making = total, ""

    def using(self, tensors: Iterable[Tensor]) -> None:
        """Note what the next result alone reads, where a primitive makes several."""
        self.loads(*tensors)

    def mark(self, what: str, index: int) -> None:
        """Note a boundary (start of a block, of a phase) at this point of the event list."""
        self.marks.append((len(self.events), what, index))

    def empty(
        self, name: str, shape: Shape, dtype: str, order: tuple[int, ...] | None = None
    ) -> Tensor:
        """A new tensor on a new storage: the one place where memory is allocated."""
        size = bytes_of(shape, dtype)
        if size is ZERO:
            return Tensor(UNTRACKED, self, shape, dtype, order)
        index = len(self.sizes)
        self.made(name, size, dtype)
        if self.record is not None and self.phase != "backward":
            self.record.note_result(shape)
        self.sizes.append(size)
        self.labels_of.append(self.label)
        self.names.append(name)
        self.events.append(index)
        return Tensor(Storage(self.events, index), self, shape, dtype, order)

    def external(self, shape: Shape, dtype: str) -> Tensor:
        """A tensor that exists before the step (parameters, token ids): no event."""
        return Tensor(Storage(None, -1), self, shape, dtype, None)

    def earlier_made(self, name: str, shape: Shape, dtype: str) -> Tensor:
        """A tensor an earlier micro-batch made: no allocation here, but the event of its release."""
        made = self.empty(name, shape, dtype)
        if made.storage.index >= 0:
            self.events.pop()
            self.earlier.add(made.storage.index)
        return made

    def leaf(self, name: str, shape: Shape, dtype: str, trains: bool = True) -> Tensor:
        """The parameter of this name; made at first use, the same tensor ever after."""
        found = self.leaves.get(name)
        if found is None:
            found = self.external(shape, dtype)
            found.requires_grad = trains
            found.name = name
            self.leaves[name] = found
        return found


class Storage:
    """One block of memory; its end of life is written to the tape by reference counting."""

    __slots__ = ("events", "index")

    def __init__(self, events: list[int] | None, index: int) -> None:
        self.events = events
        self.index = index

    def __del__(self) -> None:
        if self.events is not None:
            self.events.append(~self.index)


UNTRACKED: Final = Storage(None, -1)


class Tensor:
    """A view of a storage: shape, dtype, layout, and its place in the autograd graph.

    order lists the dims from outermost to innermost in memory (None: row-major, the usual case).
    strides is None for a dense tensor, whose strides follow from shape and order; slices and
    broadcasts carry theirs.
    """

    __slots__ = (
        "_strides", "dtype", "grad", "is_view", "leaf_node", "name", "node", "order", "output_nr",
        "placed", "requires_grad", "shape", "storage", "tape",
    )  # fmt: skip

    def __init__(
        self,
        storage: Storage,
        tape: Tape,
        shape: Shape,
        dtype: str,
        order: tuple[int, ...] | None = None,
    ) -> None:
        self.storage = storage
        self.tape = tape
        self.shape = shape
        self.dtype = dtype
        self.order = order
        self._strides: Shape | None = None
        self.is_view = False
        self.node: Node | None = None
        self.output_nr = 0
        self.requires_grad = False
        self.grad: Tensor | None = None
        self.leaf_node: weakref.ref[LeafNode] | None = None
        self.name = ""
        self.placed: Placed | None = None  # of a tensor that ranks share; None: a plain one

    def view_as(self, shape: Shape, order: tuple[int, ...] | None, strides: Shape | None) -> Tensor:
        """Another tensor on the same storage with this layout, outside the autograd graph."""
        view = Tensor(self.storage, self.tape, shape, self.dtype, order)
        view._strides = strides
        view.is_view = True
        return view

    def detach(self) -> Tensor:
        """The same tensor outside the autograd graph."""
        return self.view_as(self.shape, self.order, self._strides)

    @property
    def is_dense(self) -> bool:
        """Whether the elements fill a gap-free stretch of the storage (not a slice or broadcast)."""
        return self._strides is None

    @property
    def strides(self) -> Shape:
        """Elements between neighbours along each dim."""
        return self._strides or dense_strides(self.shape, self.order)

    def is_contiguous(self) -> bool:
        """Whether elements lie in row-major order without gaps; dims equal to 1 do not count."""
        if self.order is None and self._strides is None:
            return True
        expected = dense_strides(self.shape, None)
        return all(
            have is want or size is ONE
            for have, want, size in zip(self.strides, expected, self.shape, strict=True)
        )

    @property
    def numel(self) -> Size:
        """Number of elements."""
        return product(self.shape)


_STRIDES: Final[dict[tuple[Shape, tuple[int, ...] | None], Shape]] = {}


def dense_strides(shape: Shape, order: tuple[int, ...] | None) -> Shape:
    """Strides of a gap-free tensor whose dims lie in memory in this order, outermost first."""
    key = (shape, order)
    known = _STRIDES.get(key)
    if known is None:
        strides = [ONE] * len(shape)
        step = ONE
        for d in reversed(order if order is not None else range(len(shape))):
            strides[d] = step
            step = step * shape[d]
        known = _STRIDES[key] = tuple(strides)
    return known
