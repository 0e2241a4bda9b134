"""The tensor layouts that a number of ranks allows, side by side: parameters, activations, traffic.

Closed forms of the papers (`layouts`), on the ledger's sizes; they have no timeline, so no peak.
Checked by: unit/test_explain_layouts.py, unit/test_tensor_layouts.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.parallel.layouts.layout_blocks import block_figures, model_parameters
from memcalc.engine.parallel.layouts.layouts import TensorLayout, tensor_layout
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import TP_LAYOUTS, ParallelPlan

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

#: Layers of 2.5D shown, where the ranks allow them.
_DEPTHS = (2, 4, 8)


class LayoutRow(NamedTuple):
    """One layout on the ranks stated. Per GPU: elements of the model, bytes of one block and micro-batch.

    reason: why the model does not fall into equal parts, then the figures are 0.
    """

    layout: str
    ranks: int
    parameters: int
    saved_per_layer_bytes: int
    sent_forward_bytes: int
    sent_backward_bytes: int
    buffer_bytes: int
    reason: str = ""


def layout_table(plan: Plan, parallel: ParallelPlan) -> tuple[LayoutRow, ...]:
    """Every layout of `parallel.tp` ranks; the one asked for must be possible.

    plan: of the whole model. Raises ConfigError when the layout stated does not go with tp or the model.
    """
    rows = []
    for name in TP_LAYOUTS:
        found = _of_ranks(name, parallel.tp)
        if name == parallel.tp_layout and not found:
            tensor_layout(name, parallel.tp)  # raises, naming the valid numbers
        for layout in found:
            try:
                rows.append(_row(plan, layout))
            except ConfigError as error:
                if name == parallel.tp_layout:
                    raise
                rows.append(LayoutRow(_name(layout), layout.ranks, 0, 0, 0, 0, 0, str(error)))
    return tuple(rows)


def _of_ranks(name: str, ranks: int) -> list[TensorLayout]:
    found = []
    for depth in _DEPTHS if name == "2.5d" else (1,):
        try:
            found.append(tensor_layout(name, ranks, depth))
        except ConfigError:
            continue
    return found


def _name(layout: TensorLayout) -> str:
    return f"{layout.name}, depth {layout.depth}" if layout.depth > 1 else layout.name


def _row(plan: Plan, layout: TensorLayout) -> LayoutRow:
    block = block_figures(plan, layout)
    return LayoutRow(
        layout=_name(layout),
        ranks=layout.ranks,
        parameters=model_parameters(plan, layout),
        saved_per_layer_bytes=block.saved_bytes,
        sent_forward_bytes=block.forward_bytes,
        sent_backward_bytes=block.backward_bytes,
        buffer_bytes=block.buffer_bytes,
    )
