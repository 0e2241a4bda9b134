"""A transformer block, and a model, under a tensor layout: per GPU parameters, activations, traffic.

Sizes come off the ledger: a block's weights, its products, and the tensors it keeps for backward. Only
the division of each kind of tensor is the layout's (`layouts`). Kinds of kept tensors are told by their
dims: of tokens and a width, of tokens alone (statistics of rows), of widths alone (copies of weights),
of neither (random state, whole on every rank).
Not counted: the sums of norms' statistics over a row of ranks, 2 x tokens x 4 bytes a norm.
Checked by: unit/test_tensor_layouts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.ledger import OpRecord
from memcalc.engine.parallel.layouts.layouts import (
    Product,
    TensorLayout,
    buffer_bytes,
    product_traffic,
)
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import Size
from memcalc.engine.states import block_of, multiplicity
from memcalc.engine.structure import Structure
from memcalc.engine.tensors import Tensor
from memcalc.errors import ConfigError

_TOKENS = frozenset({"b", "s"})
#: Widths inside attention and MLP, cut in every layout; h is the stream's and not cut in 1D.
_INNER = frozenset({"a", "k", "g", "f", "V"})


class BlockFigures(NamedTuple):
    """One interior block on one rank of a layout; elements, and bytes of one micro-batch."""

    parameters: int
    saved_bytes: int
    forward_bytes: int  # a rank sends
    backward_bytes: int
    buffer_bytes: int  # of the largest product


def block_figures(plan: Plan, layout: TensorLayout) -> BlockFigures:
    """An interior block of the plan's whole model under a layout.

    Raises ConfigError when the layout does not divide the model's widths or its sequences.
    """
    plan = plan.whole
    check_divides(plan, layout)
    structure, runs = plan.structure(plan.keeps_gradients)
    block = next(number for number, times in _by_use(multiplicity(runs)))
    values = plan.values
    leaves = [leaf for leaf in structure.leaves if block_of(leaf) == block]
    products = [
        one
        for (number, _), record in structure.records.items()
        if number == block
        for one in _products(record, plan)
    ]
    passes = [product_traffic(layout, one) for one in products]
    if layout.name == "1d":
        forward = sum(one.forward_bytes for one in passes)
        backward = forward  # every region that ends in a sum begins with one in backward
    else:
        forward = sum(one.forward_bytes for one in passes)
        backward = sum(one.backward_bytes for one in passes)
    return BlockFigures(
        parameters=sum(leaf_elements(leaf, layout, values) for leaf in leaves),
        saved_bytes=_saved(structure, block, layout, values),
        forward_bytes=forward,
        backward_bytes=backward,
        buffer_bytes=max(buffer_bytes(layout, one) for one in products),
    )


def model_parameters(plan: Plan, layout: TensorLayout) -> int:
    """Elements of the whole model's parameters on one rank: embedding and head divided as matrices."""
    plan = plan.whole
    check_divides(plan, layout)
    structure, runs = plan.structure(plan.keeps_gradients)
    times = multiplicity(runs)
    return sum(
        times[block_of(leaf)] * leaf_elements(leaf, layout, plan.values)
        for leaf in structure.leaves
    )


def leaf_elements(leaf: Tensor, layout: TensorLayout, values: Mapping[str, int]) -> int:
    """Elements of one parameter on one rank, rounded up."""
    if len(leaf.shape) > 1:
        parts = layout.matrices
    else:
        inner = bool(leaf.numel.dims & _INNER)
        parts = layout.ranks if layout.name == "1d" and inner else layout.vectors
    return -(-leaf.numel.value(values) // parts)


def check_divides(plan: Plan, layout: TensorLayout) -> None:
    """Raise ConfigError unless widths and sequences fall into equal parts on every rank."""
    config, values = plan.config, plan.values
    if config.moe is not None or config.mla is not None:
        raise ConfigError(
            f"tp_layout: got {layout.name} with {config.name}; rule: dense blocks without latent "
            "attention; valid: 1d"
        )
    if values["b"] * values["s"] == 1:
        raise ConfigError(
            "seq: got 1 with micro-batch 1; rule: a layout divides tokens; valid: 2 on"
        )
    widths = {"heads": "a", "key/value heads": "k", "MLP width": "f", "hidden size": "h"}
    for what, letter in widths.items():
        parts = layout.stream if letter == "h" else layout.heads
        if values[letter] % parts:
            raise ConfigError(
                f"tp: {layout.name} on {layout.ranks} ranks cuts {what} into {parts}; got "
                f"{values[letter]}; rule: equal parts"
            )
    if values["b"] % layout.rows:
        near = max(1, round(values["b"] / layout.rows)) * layout.rows
        raise ConfigError(
            f"micro-batch: got {values['b']}; rule: {layout.name} on {layout.ranks} ranks cuts the "
            f"sequences into {layout.rows}; nearest valid: {near}"
        )


def _by_use(times: Mapping[int, int]) -> list[tuple[int, int]]:
    """Traced blocks by how many layers each stands for, most first."""
    return sorted(((b, n) for b, n in times.items() if b >= 0), key=lambda pair: -pair[1])


def _products(record: OpRecord, plan: Plan) -> list[Product]:
    """The linears of one op, in bytes of the compute dtype; none for products of activations."""
    if not record.params:
        return []
    width, values = ITEMSIZE[plan.kernels.compute_dtype], plan.values
    found = []
    for rows, columns, inner in record.gemms:
        m, n, k = (size.value(values) for size in (rows, columns, inner))
        is_row = columns is plan.dims["h"] and bool(inner.dims & _INNER)
        found.append(Product(width * m * k, width * k * n, width * m * n, is_row))
    return found


def _saved(
    structure: Structure, block: int, layout: TensorLayout, values: Mapping[str, int]
) -> int:
    """Bytes of the block's kept tensors on one rank."""
    total = 0
    for storage in structure.kept:
        if structure.labels[structure.labels_of[storage]].block == block:
            size = structure.sizes[storage]
            total += -(-size.value(values) // _kept_parts(size, layout))
    return total


def _kept_parts(size: Size, layout: TensorLayout) -> int:
    """Into how many parts a kept tensor falls, by the dims its size is made of."""
    dims = size.dims
    if not dims & _TOKENS:
        return layout.matrices if dims else 1
    if dims <= _TOKENS:
        return layout.rows
    return layout.rows * (layout.heads if dims & _INNER else layout.stream)
