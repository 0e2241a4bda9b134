"""The ledger as narrow tables: what each op holds, what it computes, and where the totals come from."""

from __future__ import annotations

from memcalc.engine.explanation import FLOP_KINDS, Explanation, Row
from memcalc.output.console import Page
from memcalc.units import gib, si


def explain_page(page: Page, found: Explanation) -> None:
    """The dims, the tables, the kept tensors, the totals with their formulas."""
    page.line(f"{found.model}: the ledger of one micro-batch", "bold")
    page.line("where " + ", ".join(f"{name} = {value:,}" for name, value in found.dims.items()))
    page.line()
    ledger_tables(page, found)
    _kept(page, found)
    page.line("Totals", "bold")
    for total in found.totals:
        page.line(f"{total.name}: {total.value:,} {total.unit}", "bold")
        page.line(f"  = {total.formula}")
        page.line(f"  = {total.numbers}")
    page.line()
    _holdings(page, found)
    _layouts(page, found)


def _holdings(page: Page, found: Explanation) -> None:
    rows = [
        (one.part, f"{one.model_elements:,}", f"{one.rank_elements:,}", gib(one.parameter_bytes),
         gib(one.gradient_bytes))
        for one in found.holdings
    ]  # fmt: skip
    head = ("part", ">of the model", ">of a rank", ">parameters", ">gradients")
    page.table(head, rows, "What one rank holds: elements, then bytes after sharding over dp")
    for name, size in found.states.items():
        page.line(f"{name}: {gib(size)} ({size:,} bytes)")
    page.line()


def _layouts(page: Page, found: Explanation) -> None:
    if not found.layouts:
        return
    rows = [
        (one.layout, f"{one.parameters:,}", gib(one.saved_per_layer_bytes),
         gib(one.sent_forward_bytes), gib(one.sent_backward_bytes), gib(one.buffer_bytes))
        for one in found.layouts
        if not one.reason
    ]  # fmt: skip
    head = ("layout", ">parameters", ">saved", ">sent fwd", ">sent bwd", ">buffers")
    ranks = found.layouts[0].ranks
    title = f"Tensor layouts of {ranks} GPUs, each GPU: the model's elements; bytes a block"
    page.table(head, rows, title)
    for one in found.layouts:
        if one.reason:
            page.line(f"{one.layout}: {one.reason}")


def ledger_tables(page: Page, found: Explanation) -> None:
    """Each kind of block: parameters and saved bytes, then FLOPs and traffic, a layer."""
    kinds = dict.fromkeys((row.kind, row.layers) for row in found.rows)
    for kind, layers in kinds:
        rows = [row for row in found.rows if row.kind == kind]
        where = "outside the blocks" if kind == "once" else f"{kind} block, {layers} x"
        page.table(
            ("op", "input", "output", ">params", ">saved"),
            [(row.op, row.input_shape, row.output_shape, _count(row.params.value),
              _size(row.saved.value)) for row in rows],
            f"{where}: shapes, parameters, bytes saved for backward",
        )  # fmt: skip
        page.table(
            ("op", ">forward", ">dgrad", ">wgrad", ">moved fwd", ">moved bwd"),
            [_work(row) for row in rows],
            f"{where}: matmul FLOPs, bytes moved by its kernels",
        )


def _work(row: Row) -> tuple[str, ...]:
    flops = (_flops(row.flops[kind].value) for kind in FLOP_KINDS)
    traffic = (_size(row.traffic[d].value) for d in ("forward", "backward"))
    return (row.op, *flops, *traffic)


def _kept(page: Page, found: Explanation) -> None:
    rows = [
        (row.op, kept.made_by, kept.needed_by, kept.formula, _size(kept.value))
        for row in found.rows
        for kept in row.kept
    ]
    if rows:
        page.table(("op", "made by", "for", "bytes", ">size"), rows, "Tensors saved for backward")


def programs(page: Page, found: Explanation) -> None:
    """Each op's micro-program: + allocates (what made it: its bytes), - frees."""
    page.line("What each op allocates (+) and frees (-), in order", "bold")
    for row in found.rows:
        for direction, steps in row.programs.items():
            if steps:
                page.line(f"{row.op}, {direction}: {', '.join(steps)}")
    page.line()


def _count(value: int) -> str:
    return f"{value:,}" if value else "-"


def _size(value: int) -> str:
    return gib(value) if value else "-"


def _flops(value: int) -> str:
    return si(value) if value else "-"
