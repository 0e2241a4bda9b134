"""The optimizer's step as allocations: PyTorch's implementations, written over symbolic tensors.

Each program runs over all parameters in registration order and allocates what torch.optim does:
`foreach` works on whole lists at once, `loop` one parameter at a time, `fused` in place.
AdamW, SGD, momentum, Adafactor and Muon follow torch.optim (Checked by: oracle/test_step_peak.py);
Lion and 8-bit AdamW have no torch implementation and are closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Shape, Tape, Tensor

#: The ledger's operator that sums gradients of which each rank has a term, before the step.
PARTIAL_GRADIENTS: Final = "partial_gradients"


class OptimizerPlan(NamedTuple):
    """Which optimizer, how it runs, in which dtype its states are, and what precedes it."""

    name: str = "adamw"
    impl: str = "foreach"
    state_dtype: str | None = None  # None: the parameters' own
    master: bool = False  # fp32 copies of 16-bit parameters
    grad_clip: bool = False
    widens_gradients: bool = True  # with masters: the step works on fp32 copies of gradients
    in_backward: bool = False  # each parameter is stepped as its gradient is there
    scores: int = (
        0  # tensors as large as a parameter that its method keeps beside the states (AdaLoRA)
    )


def state_tensors(leaf: Tensor, plan: OptimizerPlan) -> list[tuple[tuple[Size, ...], str]]:
    """Shape and dtype of every state of one parameter, in order of creation (master copy first)."""
    return [*_own_states(leaf, plan), *[(leaf.shape, leaf.dtype)] * plan.scores]


def _own_states(leaf: Tensor, plan: OptimizerPlan) -> list[tuple[tuple[Size, ...], str]]:
    dtype = plan.state_dtype or ("fp32" if plan.master else leaf.dtype)
    shape = leaf.shape
    master = [(shape, "fp32")] if plan.master else []
    own = gradient_shape(leaf)
    name = plan.name
    is_matrix = len(shape) > 1
    if name == "muon":
        name = "momentum" if is_matrix and leaf.name.startswith("layers.") else "adamw"
    if name == "adamw":
        step: list[tuple[tuple[Size, ...], str]] = (
            [((ONE,), "fp32")] if plan.impl == "fused" else []
        )
        return [*master, *step, (shape, dtype), (shape, dtype)]
    if name == "adamw-8bit":
        return [*master, *_eight_bit(leaf)]
    if name == "momentum":  # begins as a copy of the gradient
        return [*master, (own, dtype)]
    if name == "lion":
        return [*master, (shape, dtype)]
    if name == "adafactor":
        if is_matrix:
            row = (*shape[:-1], ONE)
            column = (*shape[:-2], ONE, shape[-1])
            return [*master, (row, dtype), (column, dtype)]
        return [*master, (shape, dtype)]
    return master


def _eight_bit(leaf: Tensor) -> list[tuple[tuple[Size, ...], str]]:
    """Two states of one byte an element and one fp32 scale a block of 256 (Dettmers 2021).

    Source: bitsandbytes, arXiv:2110.02861; vectors (biases, norms) keep fp32 states, as tensors
    under 4,096 elements do there. A closed form, not compared with a running library.
    """
    if len(leaf.shape) == 1:
        return [(leaf.shape, "fp32"), (leaf.shape, "fp32")]
    scales = leaf.numel.over(256)
    return [(leaf.shape, "uint8"), (leaf.shape, "uint8"), ((scales,), "fp32"), ((scales,), "fp32")]


def run_step(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan, partial: bool = False) -> None:
    """Allocations of clipping and of one optimizer step; states exist already.

    partial: gradients that are terms of a sum over ranks are summed first, one after the other.
    """
    tape.at(PARTIAL_GRADIENTS, -1, "backward")
    for leaf in leaves:
        if partial and leaf.placed and leaf.placed.partial:
            tape.empty("all_reduce", leaf.shape, leaf.dtype)
    tape.at("grad_clip", -1, "optimizer")
    if plan.grad_clip and leaves:
        _clip(tape, leaves)
    tape.at("optimizer")
    update(tape, leaves, plan)


def update(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    """Allocations of the optimizer's own step over these parameters, in the op at work."""
    if plan.master and plan.widens_gradients:
        wide = [tape.empty("_to_copy", gradient_shape(leaf), "fp32") for leaf in leaves]
        _PROGRAMS[plan.name](tape, [_named(leaf, "fp32") for leaf in leaves], plan)
        del wide
    else:
        _PROGRAMS[plan.name](tape, leaves, plan)


def _named(leaf: Tensor, dtype: str) -> Tensor:
    copy = leaf.tape.external(leaf.shape, dtype)
    copy.name, copy.placed = leaf.name, leaf.placed
    return copy


def gradient_shape(leaf: Tensor) -> Shape:
    """The shape of a parameter's gradient: its own, but for one that ranks hold whole."""
    return (leaf.placed and leaf.placed.gradient) or leaf.shape


def _cut(tape: Tape, leaves: list[Tensor], operands: int = 1) -> None:
    """An operator that reads gradients takes copies of this rank's rows of those that are whole."""
    whole = [leaf for leaf in leaves if gradient_shape(leaf) != leaf.shape]
    copies = [tape.empty("clone", leaf.shape, leaf.dtype) for leaf in whole * operands]
    del copies


def _clip(tape: Tape, leaves: list[Tensor]) -> None:
    """clip_grad_norm_: a norm a tensor, their stack, the total, the coefficient."""
    dtype = leaves[0].dtype
    norms = [tape.empty("linalg_vector_norm", (ONE,), dtype) for _ in leaves]
    parts = [tape.empty("div.Tensor", (ONE,), dtype) for leaf in leaves if _every_rank_has(leaf)]
    stacked = tape.empty("stack", (number(len(leaves)),), dtype)
    del parts
    roots = stacked
    for _ in range(leaves[0].placed.axes if leaves[0].placed else 0):
        roots = _of_all_ranks(tape, roots)
    total = tape.empty("linalg_vector_norm", (ONE,), dtype)
    del roots, stacked, norms
    shifted = tape.empty("add", (ONE,), dtype)
    inverse = tape.empty("reciprocal", (ONE,), dtype)
    coefficient = tape.empty("mul", (ONE,), dtype)
    del shifted, inverse
    clamped = tape.empty("clamp", (ONE,), dtype)
    del coefficient, clamped, total


def _every_rank_has(leaf: Tensor) -> bool:
    """Whether the norm of a gradient is that of the whole, of which a rank takes its part."""
    return leaf.placed is not None and (leaf.placed.whole or leaf.placed.gradient is not None)


def _of_all_ranks(tape: Tape, norms: Tensor) -> Tensor:
    """Norms of the whole gradients from those of the ranks' parts: the root of summed squares."""
    squares = tape.empty("pow", norms.shape, norms.dtype)
    summed = tape.empty("all_reduce", norms.shape, norms.dtype)
    roots = tape.empty("pow", norms.shape, norms.dtype)
    del squares, summed
    return roots


def _state_dtype(leaf: Tensor, plan: OptimizerPlan) -> str:
    return plan.state_dtype or leaf.dtype


def _adamw(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    if plan.impl == "foreach":
        _cut(tape, leaves)
        _cut(tape, leaves, 2)
        roots = [tape.empty("_foreach_sqrt", x.shape, _state_dtype(x, plan)) for x in leaves]
        del roots
        return
    if plan.impl in ("fused", "multi_tensor"):
        _cut(tape, leaves)
        return
    denominator: Tensor | None = None
    for leaf in leaves:
        _cut(tape, [leaf])
        _cut(tape, [leaf], 2)
        root = tape.empty("sqrt", leaf.shape, _state_dtype(leaf, plan))
        quotient = tape.empty("div", leaf.shape, _state_dtype(leaf, plan))
        del root
        denominator = quotient
        del quotient
    del denominator


def _sgd(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    """In place, with and without momentum."""
    _cut(tape, leaves)


def _nothing(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    """No step at all."""


def _lion(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    """One update tensor at a time (Chen et al. 2023, arXiv:2302.06675); a closed form."""
    for leaf in leaves:
        tape.empty("update", leaf.shape, _state_dtype(leaf, plan))


def _adafactor(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    matrices = [x for x in leaves if len(x.shape) > 1]
    vectors = [x for x in leaves if len(x.shape) == 1]
    if plan.impl != "foreach":
        _adafactor_loop(tape, leaves)
        return
    first_is_matrix = bool(leaves) and len(leaves[0].shape) > 1
    groups = [(_adafactor_matrices, matrices), (_adafactor_vectors, vectors)]
    held: list[Tensor] = []
    for program, group in groups if first_is_matrix else groups[::-1]:
        if group:
            held = program(tape, group, held)
    del held


def _adafactor_matrices(tape: Tape, group: list[Tensor], held: list[Tensor]) -> list[Tensor]:
    """held: the previous group's updates, alive until this group's replace them."""
    rows = [tape.empty("linalg_vector_norm", _rows(x), x.dtype) for x in group]
    del rows
    columns = [tape.empty("linalg_vector_norm", _columns(x), x.dtype) for x in group]
    del columns
    estimates = [tape.empty("mm", x.shape, x.dtype) for x in group]
    means = [tape.empty("mean", (ONE,), x.dtype) for x in group]
    del means
    return estimates


def _adafactor_vectors(tape: Tape, group: list[Tensor], held: list[Tensor]) -> list[Tensor]:
    squared = [tape.empty("_foreach_mul", x.shape, x.dtype) for x in group]
    del squared
    return [tape.empty("clone", x.shape, x.dtype) for x in group]


def _rows(x: Tensor) -> tuple[Size, ...]:
    return (*x.shape[:-1], ONE)


def _columns(x: Tensor) -> tuple[Size, ...]:
    return (*x.shape[:-2], ONE, x.shape[-1])


def _adafactor_loop(tape: Tape, leaves: list[Tensor]) -> None:
    """Locals of one parameter live until the next one rebinds them, as in the Python loop."""
    row = column = squared = estimate = update = None
    for leaf in leaves:
        tape.empty("linalg_vector_norm", (ONE,), leaf.dtype)
        if len(leaf.shape) > 1:
            row = tape.empty("linalg_vector_norm", _rows(leaf), leaf.dtype)
            column = tape.empty("linalg_vector_norm", _columns(leaf), leaf.dtype)
            estimate = tape.empty("mm", leaf.shape, leaf.dtype)
            tape.empty("mean", (ONE,), leaf.dtype)
        else:
            squared = tape.empty("mul", leaf.shape, leaf.dtype)
            estimate = tape.empty("clone", leaf.shape, leaf.dtype)
        update = estimate
        tape.empty("linalg_vector_norm", (ONE,), leaf.dtype)
    del row, column, squared, estimate, update


def _muon(tape: Tape, leaves: list[Tensor], plan: OptimizerPlan) -> None:
    """torch.optim.Muon on the blocks' matrices, AdamW on the rest."""
    matrices = [x for x in leaves if len(x.shape) == 2 and x.name.startswith("layers.")]
    chosen = set(map(id, matrices))
    update: Tensor | None = None
    for leaf in matrices:
        update = tape.empty("lerp", leaf.shape, leaf.dtype)  # replaces the previous parameter's
        update = _newton_schulz(tape, leaf, update)
    del update
    _adamw(tape, [x for x in leaves if id(x) not in chosen], plan)


def _newton_schulz(tape: Tape, leaf: Tensor, blended: Tensor) -> Tensor:
    """Five quintic iterations in bf16 over the smaller Gram matrix."""
    current = blended if leaf.dtype == "bf16" else tape.empty("_to_copy", leaf.shape, "bf16")
    side = leaf.shape[0] if _is_wide(tape, leaf) else leaf.shape[1]
    gram = update = None
    for _ in range(5):
        gram = tape.empty("mm", (side, side), "bf16")
        update = tape.empty("addmm", (side, side), "bf16")
        current = tape.empty("addmm", leaf.shape, "bf16")
    del gram, update
    return current


def _is_wide(tape: Tape, leaf: Tensor) -> bool:
    """Whether a matrix has at most as many rows as columns, by the dims' values."""
    values = tape.values
    return leaf.shape[0].value(values) <= leaf.shape[1].value(values)


_PROGRAMS: dict[str, Callable[[Tape, list[Tensor], OptimizerPlan], None]] = {
    "adamw": _adamw,
    "adamw-8bit": _sgd,
    "sgd": _sgd,
    "momentum": _sgd,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
    "none": _nothing,
}
