"""The plain decoder's layers as one rank of tensor parallelism runs them, by PyTorch's DTensor.

Column-wise are q, k, v, gate and up: each rank has its heads and columns, and reads the stream whole.
Row-wise are o and down, whose results the ranks sum; a bias of theirs is whole, each rank adds a part.
Norms and sums work on a rank's part of the stream: all of it, or with sequence parallelism s_t = s/tp
positions. Without tensor parallelism everything here passes its tensor through.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053), sec. 3; Korthikanti et al. 2022 (arXiv:2205.05198),
sec. 4. Checked by: oracle/test_tensor_parallel.py, against memcalc/harness/ranks/split_layers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memcalc.engine.parallel.tensor.dtensor import (
    all_gather_rows,
    all_gather_sequence,
    all_reduce,
    as_it_is,
    from_local,
    own_rows,
    redistribute,
    reduce_scatter_sequence,
    to_local,
)
from memcalc.engine.parallel.tensor.placed import WHOLE, Placed
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

COLUMNS: Final = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj"})
ROWS: Final = frozenset({"o_proj", "down_proj"})
#: Norms inside a head: their gradient is a sum over the heads of all ranks.
_OF_HEADS: Final = frozenset({"q_norm", "k_norm"})


def whole_stream(build: Build, x: Tensor, op: str, part: str) -> Tensor:
    """The stream as column-wise linears read it, (b, s, h) whole on every rank, as the op `op`."""
    split = build.kernels.dtensor
    if split is None:
        return x
    build.at(op, part)
    x = from_local(x)
    if split.sequence:
        shape = (build["b"], build["s"], x.shape[2])
        return redistribute(x, shape, all_gather_sequence, reduce_scatter_sequence)
    return redistribute(x, x.shape, as_it_is, all_reduce)


def summed_stream(build: Build, x: Tensor) -> Tensor:
    """The ranks' sum of x (b, s, h): this rank's part of the stream, unwrapped."""
    split = build.kernels.dtensor
    assert split is not None
    if split.sequence:
        shape = (x.shape[0], build.positions, x.shape[2])
        return to_local(redistribute(x, shape, reduce_scatter_sequence, all_gather_sequence))
    return to_local(redistribute(x, x.shape, all_reduce, as_it_is))


def entered(build: Build, x: Tensor, name: str) -> Tensor:
    """The input of the linear `name`: wrapped where it is row-wise."""
    return from_local(x) if build.kernels.dtensor and name in ROWS else x


def left(build: Build, x: Tensor, name: str) -> Tensor:
    """The output of the linear `name`: unwrapped, summed where it is row-wise; the head's as it is."""
    if build.kernels.dtensor is None:
        return x
    if name in ROWS:
        return summed_stream(build, x)
    return to_local(x) if name in COLUMNS else x


def bias_placed(name: str) -> Placed | None:
    """How ranks share the bias of the linear `name`: a row-wise one is whole."""
    return WHOLE if name in ROWS else None


def norm_placed(build: Build, op: str) -> Placed | None:
    """How ranks share a norm's parameters: whole, the gradient a sum where ranks have parts of x."""
    split = build.kernels.dtensor
    if split is None:
        return None
    return Placed(partial=split.sequence or op in _OF_HEADS)


def normed_part(build: Build, x: Tensor) -> Tensor:
    """What a norm makes of a rank's part of the stream, unwrapped."""
    if build.kernels.dtensor is None:
        return x
    return to_local(redistribute(x, x.shape, as_it_is, as_it_is))


def position_rows(build: Build, x: Tensor) -> Tensor:
    """Rows of a position table (s, h), which every rank has: this rank's part of them."""
    split = build.kernels.dtensor
    if split is None:
        return x
    if split.sequence:
        shape = (build.positions, x.shape[1])
        return to_local(redistribute(x, shape, own_rows, all_gather_rows))
    return to_local(redistribute(x, x.shape, as_it_is, as_it_is))


def whole_loss(build: Build, loss: Tensor) -> Tensor:
    """The loss, which every rank has, unwrapped."""
    return normed_part(build, loss)
