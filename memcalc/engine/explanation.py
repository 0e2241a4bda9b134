"""What explain answers: the ledger as rows, totals with their formulas, what a rank holds.

Checked by: unit/test_explain.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from memcalc.engine.holdings import Holding
from memcalc.engine.parallel.layouts.layout_table import LayoutRow
from memcalc.engine.sizes import Size

FLOP_KINDS = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True, slots=True)
class Amount:
    """A quantity of an interior layer, in symbols and as an integer, and its total over all layers."""

    size: Size
    value: int
    total: int

    @property
    def formula(self) -> str:
        """The quantity in symbols."""
        return str(self.size)


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor held from forward to backward: bytes, the kernel that made it, whose gradient needs it."""

    formula: str
    value: int
    made_by: str
    needed_by: str  # dgrad | wgrad | both | run (held by the running code, not by a node)


@dataclass(frozen=True, slots=True)
class Row:
    """One op of the layers of one kind (layers 1 and kind "once" outside the blocks)."""

    op: str
    part: str
    kind: str
    layers: int
    input_shape: str
    output_shape: str
    weights: Mapping[str, str]
    params: Amount
    saved: Amount
    kept: tuple[KeptTensor, ...]
    flops: Mapping[str, Amount]
    traffic: Mapping[str, Amount]
    gemms: tuple[tuple[str, str, str], ...]
    programs: Mapping[str, tuple[str, ...]]  # micro-programs, forward and backward


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over the ledger: the formula in symbols, the same with numbers put in, the value."""

    name: str
    unit: str
    formula: str
    numbers: str
    value: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The ledger of one micro-batch and its totals; dims holds each letter's value.

    holdings: what one rank holds of each part of the model; states: its bytes of optimizer states and
    master copies. layouts: closed forms of tensor layouts.
    """

    model: str
    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    dims: Mapping[str, int]
    notes: tuple[str, ...] = ()
    holdings: tuple[Holding, ...] = ()
    states: Mapping[str, int] = field(default_factory=dict)
    layouts: tuple[LayoutRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts for JSON."""
        found: dict[str, Any] = plain(self)
        return {"schema": 1, **found}


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON sees them; an amount's size as its formula."""
    if isinstance(value, Amount):
        return {"formula": value.formula, "value": value.value, "total": value.total}
    if isinstance(value, (Holding, LayoutRow)):
        return value._asdict()
    if is_dataclass(value):
        return {spec.name: plain(getattr(value, spec.name)) for spec in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    return value
