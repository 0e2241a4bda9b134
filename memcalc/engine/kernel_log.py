"""KernelLog: the kernels a traced step launches, noted as the operators' descriptions run.

A primitive says what it reads (`reads`, `loads`) and allocates its results; the log makes one kernel of
a primitive's results, with the bytes it reads and writes. Matrix products and attention state their
shape (`ran`), and their results then add nothing. What works in place, and so allocates nothing, is
noted by `in_place`. Views launch nothing. Bytes are the least a kernel can move: each operand once.
Symbols: m, n, k of a product (m, k) x (k, n); b, a, s, d of attention.
Checked by: unit/test_works.py, oracle/test_works.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.sizes import ONE, ZERO, Size, product

if TYPE_CHECKING:
    from memcalc.engine.tensors import Tensor

#: Results that no kernel of the decoder makes: bare memory, exchanges between ranks, copies from the host.
NO_KERNEL: Final = frozenset(
    {
        "empty", "new_empty", "resize_", "to", "recv",
        "all_gather", "reduce_scatter", "all_to_all", "all_reduce", "all_gather_into_tensor",
        "reduce_scatter_tensor", "all_to_all_single", "alltoall_base_",
    }
)  # fmt: skip

#: Primitives of several kernels: a fill and what writes into it; a norm's two gradients; a sort.
_LAUNCHES: Final = {
    "slice_backward": 2, "select_backward": 2, "nll_loss_backward": 2,
    "native_layer_norm_backward": 2, "_fused_rms_norm_backward": 2, "rmsnorm_bwd": 2,
    "layernorm_bwd": 2, "embedding_dense_backward": 2, "sort": 2,
}  # fmt: skip

#: Kernels of attention's backward: row sums of dO O, the products, dQ cast from fp32 (FlashAttention-2).
_ATTENTION_BACKWARD: Final = 3


class Ran(NamedTuple):
    """What one kernel did; fields as in `works.Work`. part of attention: forward | dgrad."""

    kind: str
    name: str
    dtype: str
    part: str
    shape: tuple[Size, ...]
    flops: Size
    moved: Size
    launches: int = 1


class Kernel(NamedTuple):
    """A kernel and where on the step it ran: block (-1 outside), ledger op, phase (or recompute)."""

    block: int
    op: str
    phase: str
    ran: Ran

    @property
    def direction(self) -> str:
        """forward (loss included), backward, or recompute."""
        return self.phase if self.phase in ("backward", "recompute") else "forward"


def flops_kind(kernel: Kernel) -> str:
    """Which executed FLOPs a product counts to: forward, dgrad, wgrad, or recompute."""
    if kernel.direction == "recompute" and kernel.ran.part == "forward":
        return "recompute"
    return kernel.ran.part


@functools.cache
def gemm(
    name: str, part: str, shape: tuple[Size, ...], dtype: str, out: str = "", adds: bool = False
) -> Ran:
    """A product of shape (batch, m, n, k), 2 batch m n k FLOPs, operands of a dtype.

    out: dtype of the result where it is another. adds: to what the result holds already.
    """
    batch, m, n, k = shape
    result = batch * m * n * ITEMSIZE[out or dtype] * (2 if adds else 1)
    moved = batch * (m * k + n * k) * ITEMSIZE[dtype] + result
    return Ran("gemm", name, dtype, part, shape, product(shape) * 2, moved)


@functools.cache
def grouped(name: str, part: str, shape: tuple[Size, ...], dtype: str, adds: str = "") -> Ran:
    """Products of shape (groups, rows of all groups, n, k): rows (rows, k) times one (n, k) a group.

    The weights' gradients have the same four: (n, rows) x (rows, k) a group, added to what is there in
    the dtype `adds`, if one is given.
    """
    groups, rows, n, k = shape
    weights, tokens = groups * n * k * ITEMSIZE[dtype], rows * (n + k) * ITEMSIZE[dtype]
    if adds:
        weights = groups * n * k * ITEMSIZE[adds] * 2
    return Ran("grouped", name, dtype, part, shape, rows * n * k * 2, weights + tokens)


@functools.cache
def attention(name: str, part: str, shape: tuple[Size, ...], dtype: str) -> Ran:
    """An attention kernel of shape (b, a, kv heads, s_q, s_kv, d_qk, d_v), over the full square.

    FLOPs: 2 b a s_q s_kv (d_qk + d_v) forward; backward makes q k^T anew, dV = P^T dO, dP = dO V^T,
    dQ = dS K, dK = dS^T Q: 2 b a s_q s_kv (3 d_qk + 2 d_v). Moved: each operand, gradient and fp32
    log-sum-exp once.
    """
    b, a, kv, s_q, s_kv, d, d_v = shape
    item = ITEMSIZE[dtype]
    queries, outputs = b * a * s_q * d * item, b * a * s_q * d_v * item
    keys, statistics = b * kv * s_kv * (d + d_v) * item, b * a * s_q * 4
    square = b * a * s_q * s_kv * 2
    if part == "forward":
        moved = queries + keys + outputs + statistics
        return Ran("attention", name, dtype, part, shape, square * (d + d_v), moved)
    moved = (queries + keys + outputs) * 2 + statistics
    flops = square * (d * 3 + d_v * 2)
    return Ran("attention", name, dtype, part, shape, flops, moved, _ATTENTION_BACKWARD)


def gemm_shape(m: Size, n: Size, k: Size) -> tuple[Size, ...]:
    """The shape of a product without a batch."""
    return (ONE, m, n, k)


_BYTES: Final[dict[tuple[tuple[Size, ...], str], Size]] = {}


def bytes_of(shape: tuple[Size, ...], dtype: str) -> Size:
    """Bytes of a dense tensor."""
    key = (shape, dtype)
    known = _BYTES.get(key)
    if known is None:
        known = _BYTES[key] = product(shape) * ITEMSIZE[dtype]
    return known


def read_bytes(tensor: Tensor) -> Size:
    """Bytes a kernel reads of a tensor: of a broadcast one only what is there."""
    shape, strides = tensor.shape, tensor._strides
    if strides is not None and ZERO in strides:
        shape = tuple(n for n, step in zip(shape, strides, strict=True) if step is not ZERO)
    return bytes_of(shape, tensor.dtype)


class KernelLog:
    """What a tape knows of kernels; the tape sets block, op, phase and recomputing."""

    block: int
    op: str
    phase: str
    recomputing: int

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.aside = 0  # inside an injector: what it launches is no operator's
        self.sums_in = ""  # dtype of buffers that gradients are added to, each micro-batch
        self._loaded: Size | None = None  # bytes the next kernel reads; None: nobody said
        self._making = ""  # the primitive whose results are being made
        self._covered = False  # they are part of a kernel that was noted in full

    def loads(self, *tensors: Tensor | None) -> None:
        """A kernel begins that reads these, each once; without any, it only writes."""
        total = ZERO
        for tensor in tensors:
            if tensor is not None:
                total = total + read_bytes(tensor)
        self._loaded, self._making = total, ""

    def loads_bytes(self, size: Size) -> None:
        """A kernel begins that reads this much."""
        self._loaded, self._making = size, ""

    def operands(self, name: str, *tensors: Tensor) -> None:
        """As `loads`, for a kernel `name` of which nobody said what it reads."""
        if self._loaded is None and not (self._covered and self._making == name):
            self.loads(*tensors)

    def covered(self, name: str) -> None:
        """Results of this name that come next belong to a kernel already noted, or to none."""
        self._loaded, self._making, self._covered = None, name, True

    def ran(self, kernel: Ran, again: bool = False) -> None:
        """Note a kernel stated in full; its results, under its name, come next. again: recomputed."""
        self._loaded, self._making, self._covered = None, kernel.name, True
        if not self.aside:
            phase = "recompute" if again or self.recomputing else self.phase
            self.kernels.append(Kernel(self.block, self.op, phase, kernel))

    def in_place(self, name: str, target: Tensor, *others: Tensor) -> None:
        """A kernel that reads and rewrites target and reads the others; it allocates nothing."""
        moved = read_bytes(target) * 2
        for other in others:
            moved = moved + read_bytes(other)
        self.moves(name, target.dtype, moved)

    def moves(self, name: str, dtype: str, moved: Size) -> None:
        """A kernel that reads and writes so many bytes; it allocates nothing."""
        self.ran(_moving(name, dtype, moved, 1))
        self._making = ""

    def gradient_made(self, gradient: Tensor, before: Tensor | None) -> None:
        """Note the sum of a parameter's gradient and what earlier micro-batches left, if any."""
        if gradient.storage.index < 0:  # a product has added it already
            return
        if self.sums_in:
            sums = bytes_of(gradient.shape, self.sums_in) * 2
            self.moves("add_", self.sums_in, sums + read_bytes(gradient))
        elif before is not None:
            self.in_place("add_", before, gradient)
        self.loads(gradient)  # a strided one is copied

    def forget(self) -> None:
        """Nobody has said what the next kernel reads."""
        self._loaded, self._making = None, ""

    def made(self, name: str, size: Size, dtype: str) -> None:
        """A primitive allocated a result: part of the kernel at work, or of a new one."""
        if name == self._making:
            if not self._covered:
                block, op, phase, ran = self.kernels[-1]
                ran = _moving(name, ran.dtype, ran.moved + size, ran.launches)
                self.kernels[-1] = Kernel(block, op, phase, ran)
            return
        if self._loaded is not None:
            size, self._loaded = size + self._loaded, None
        self._making, self._covered = name, bool(self.aside) or name in NO_KERNEL
        if not self._covered:
            phase = "recompute" if self.recomputing else self.phase
            ran = _moving(name, dtype, size, _LAUNCHES.get(name, 1))
            self.kernels.append(Kernel(self.block, self.op, phase, ran))


@functools.cache
def _moving(name: str, dtype: str, moved: Size, launches: int) -> Ran:
    """A kernel that only moves bytes; one object for equal ones."""
    return Ran("moved", name, dtype, "", (), ZERO, moved, launches)
