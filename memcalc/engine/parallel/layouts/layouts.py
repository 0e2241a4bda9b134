"""Tensor layouts: how 1D, 2D, 2.5D and 3D tensor parallelism divide a product Y = X W, in closed form.

P ranks; X (tokens x k), W (k x n), Y (tokens x n). A part is 1/parts of the whole tensor:

    layout   ranks    weights   vectors   X, Y: rows x columns   collectives a product
    1d       P        P         1 or P    1 x (1 or P)           one all-reduce of X or Y
    2d       q^2      q^2       q^2       q x q                  SUMMA: W and X broadcast, sums reduced
    2.5d     q^2 d    q^2       q         q d x q                SUMMA on each of d layers, W summed
    3d       q^3      q^3       q         q^2 x q                X and W gathered, Y scattered

A broadcast or a reduction of one block after the other over q ranks moves what an all-gather or a
reduce-scatter of the panel does, (q - 1) blocks a rank, and is written so. Vectors are biases and
norms. In 1D a linear's bias is divided where its output is.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053); Xu et al. 2021 (arXiv:2104.05343), 2D; Wang et al. 2021
(arXiv:2105.14500), 2.5D; Bian et al. 2021 (arXiv:2105.14450), 3D; tables of costs and worked shapes:
hpcaitech/ColossalAI docs/source/en/features/{1D,2D,2p5D,3D}_tensor_parallel.md; vectors: its layers.
Checked by: unit/test_tensor_layouts.py.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final, NamedTuple

from memcalc.engine.parallel.network.traffic import Traffic
from memcalc.errors import ConfigError
from memcalc.inputs.model import check_choice
from memcalc.inputs.parallel import TP_LAYOUTS

_RULES: Final = {"1d": "any", "2d": "q^2", "2.5d": "q^2 x depth", "3d": "q^3"}


class TensorLayout(NamedTuple):
    """How many parts each kind of tensor is cut into. Made by `tensor_layout`."""

    name: str
    ranks: int
    q: int  # edge of the square or cube of ranks; ranks in 1D
    depth: int = 1  # layers of 2.5D

    @property
    def matrices(self) -> int:
        """Parts of a weight matrix."""
        return self.q * self.q if self.name == "2.5d" else self.ranks

    @property
    def vectors(self) -> int:
        """Parts of a norm's weight, or of a bias added to the stream between layers."""
        return {"1d": 1, "2d": self.q * self.q}.get(self.name, self.q)

    @property
    def rows(self) -> int:
        """Parts of the tokens, that is of the sequences."""
        return {"1d": 1, "2d": self.q, "2.5d": self.q * self.depth}.get(self.name, self.q**2)

    @property
    def stream(self) -> int:
        """Parts of the width of the stream between layers."""
        return 1 if self.name == "1d" else self.q

    @property
    def heads(self) -> int:
        """Parts of the widths inside attention and MLP."""
        return self.q


def tensor_layout(name: str, ranks: int, depth: int = 1) -> TensorLayout:
    """The layout of this many ranks. depth: of 2.5D only.

    Raises ConfigError naming the valid numbers of ranks.
    """
    check_choice("tp_layout", name, TP_LAYOUTS)
    if depth < 1 or (depth > 1 and name != "2.5d"):
        raise ConfigError(
            f"depth: got {depth} with layout {name}; rule: 2.5d alone has one; valid: 1"
        )
    edge = _edge(name, ranks, depth)
    if edge is None:
        valid = [n for n in range(1, 4 * ranks + 8) if _edge(name, n, depth)]
        shown = ", ".join(map(str, valid[:8]))
        near = min(valid, key=lambda n: abs(n - ranks))
        raise ConfigError(
            f"tp: got {ranks} with layout {name}; rule: {_RULES[name]}; valid: {shown}; "
            f"nearest valid: {near}"
        )
    return TensorLayout(name, ranks, edge, depth)


def _edge(name: str, ranks: int, depth: int) -> int | None:
    """q of a square or a cube of ranks; None where there is none."""
    if name == "1d":
        return ranks
    if ranks % depth:
        return None
    square = ranks // depth
    edge = round(square ** (1 / 3)) if name == "3d" else math.isqrt(square)
    return edge if edge ** (3 if name == "3d" else 2) == square else None


class Product(NamedTuple):
    """One linear layer on a micro-batch, whole, in bytes of the dtype that is sent.

    is_row: in 1D, whether its weight is cut along the inputs (the second of a pair).
    """

    input_bytes: int
    weight_bytes: int
    output_bytes: int
    is_row: bool = False


class Passes(NamedTuple):
    """What a product moves between ranks, forward and backward."""

    forward: tuple[Traffic, ...]
    backward: tuple[Traffic, ...]

    @property
    def forward_bytes(self) -> int:
        """Bytes a rank sends in forward."""
        return sum(one.sent_bytes for one in self.forward)

    @property
    def backward_bytes(self) -> int:
        """Bytes a rank sends in backward."""
        return sum(one.sent_bytes for one in self.backward)


def product_traffic(layout: TensorLayout, product: Product) -> Passes:
    """The collectives of one product: Y = X W forward; dX = dY W^T and dW = X^T dY backward."""
    x, w, y = product.input_bytes, product.weight_bytes, product.output_bytes
    if layout.name == "1d":
        if product.is_row:
            return Passes((_moved("all-reduce", layout.ranks, y),), ())
        return Passes((), (_moved("all-reduce", layout.ranks, x),))
    q = layout.q
    if layout.name == "3d":
        x, w, y = (_part(size, q * q) for size in (x, w, y))
        forward = (
            _moved("all-gather", q, x),
            _moved("all-gather", q, w),
            _moved("reduce-scatter", q, y),
        )
        back = (
            _moved("all-gather", q, y),
            _moved("reduce-scatter", q, x),
            _moved("reduce-scatter", q, w),
        )
        return Passes(forward, back)
    x, w = _part(x, q * layout.depth), _part(w, q)
    gathers = (_moved("all-gather", q, x), _moved("all-gather", q, w))
    sums = (_moved("reduce-scatter", q, x), _moved("reduce-scatter", q, w))
    layers = (_moved("all-reduce", layout.depth, _part(w, q)),) if layout.depth > 1 else ()
    return Passes(gathers, (*gathers, *sums, *layers))


def _moved(collective: str, ranks: int, whole_bytes: int) -> Traffic:
    return Traffic("tp", collective, ranks, 1, whole_bytes)


def _part(size: int, parts: int) -> int:
    return -(-size // parts)


def buffer_bytes(layout: TensorLayout, product: Product) -> int:
    """Bytes of a product's own buffers on a rank: SUMMA's two blocks of X and of W; 3D's gathered ones.

    3D's gathered X and W, and Y before it is scattered. ColossalAI's Linear3D keeps the gathered X and
    W until backward, q times what the paper's closed form of activations has.
    Source: hpcaitech/ColossalAI colossalai/nn/layer/parallel_2d/_operation.py, parallel_3d/_operation.py.
    """
    x, w, y = product.input_bytes, product.weight_bytes, product.output_bytes
    if layout.name == "1d":
        return 0
    if layout.name == "3d":
        return sum(_part(size, layout.q**2) for size in (x, w, y))
    return 2 * (_part(x, layout.rows * layout.q) + _part(w, layout.q**2))


class Factors(NamedTuple):
    """The published table for a product with X, W and Y of one unit: per rank, over the unit."""

    parameters: Fraction
    activations: Fraction
    bandwidth: Fraction  # forward and backward


def published_factors(layout: TensorLayout) -> Factors:
    """ColossalAI's table of the four papers' costs, leading terms.

    Bandwidth of 2D and 2.5D there is the time of rings that pass a block on only when it is complete:
    q times the bytes a rank sends. It leaves out 2.5D's sum of dW over the layers.
    """
    q, d, ranks = layout.q, layout.depth, layout.ranks
    if layout.name == "1d":
        return Factors(Fraction(1, ranks), Fraction(1), Fraction(2 * (ranks - 1), ranks))
    bandwidth = {
        "2d": Fraction(6 * (q - 1), q),
        "2.5d": Fraction(3 * (q - 1) * (d + 1), d * q),
        "3d": Fraction(6 * (q - 1), q**3),
    }
    parts = layout.rows * layout.stream
    return Factors(Fraction(1, layout.matrices), Fraction(1, parts), bandwidth[layout.name])
