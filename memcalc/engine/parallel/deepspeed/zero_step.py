"""DeepSpeed's optimizer step as allocations: norms, fp32 copies of gradients, the step on flat parts.

Without ZeRO: every gradient in fp32, all of them in one flat tensor, then the copies go. Stages 1 and 2:
the norm of each piece in fp64, one after the other; the part's 16-bit gradients in one flat tensor,
which is widened to fp32. Stage 3 does so for one sub-group of parameters after the other. fp16 looks for
overflow first. FusedAdam works in place.
Source: DeepSpeed 0.18.2, runtime/fp16/fused_optimizer.py (step), runtime/zero/stage_1_and_2.py (step,
get_grad_norm_direct, _has_inf_or_nan), runtime/zero/stage3.py (step, _prepare_fp32_grad_for_sub_group,
_create_fp16_sub_groups). Checked by: unit/test_deepspeed.py.
"""

from __future__ import annotations

from memcalc.engine.optimizer import OptimizerPlan, run_step
from memcalc.engine.parallel.strategy import held
from memcalc.engine.sizes import ZERO, Size, number
from memcalc.engine.tensors import Tape, Tensor


def flat_part(leaves: list[Tensor], ranks: int) -> list[Tensor]:
    """The fp32 flat tensor a rank of stage 1 or 2 steps over; of one rank everything."""
    total = sum((leaf.numel for leaf in leaves), ZERO)
    size = total.over(2 * ranks) * 2 if ranks > 1 else total
    return [held(leaves[0], (size,), "fp32")]


def sub_groups(leaves: list[Tensor], sizes: dict[str, int], ranks: int, group: int) -> list[Tensor]:
    """The fp32 flat tensors a rank of stage 3 steps over, one after the other.

    sizes: elements of each leaf; group: elements of parts at which a sub-group closes.
    """
    groups: list[Size] = []
    open_size, filled = ZERO, 0
    for leaf in leaves:
        open_size = open_size + leaf.numel.over(ranks)
        filled += -(-sizes[leaf.name] // ranks)
        if filled >= group:
            groups.append(open_size)
            open_size, filled = ZERO, 0
    if filled:
        groups.append(open_size)
    return [held(leaves[0], (size,), "fp32") for size in groups]


def whole_step(tape: Tape, leaves: list[Tensor], flats: list[Tensor], plan: OptimizerPlan) -> None:
    """Without ZeRO, 16-bit parameters: all gradients widened, then joined."""
    tape.at("optimizer", -1, "optimizer")
    wide = [tape.empty("_to_copy", leaf.shape, "fp32") for leaf in leaves]
    joined = [tape.empty("flatten", flat.shape, "fp32") for flat in flats]
    del wide
    _update(tape, flats, plan)
    del joined


def part_step(tape: Tape, flats: list[Tensor], dtype: str, piece: int, plan: OptimizerPlan) -> None:
    """A rank's part of the step. dtype: of gradients; piece: elements of the largest of them."""
    tape.at("grad_norm", -1, "optimizer")
    if dtype == "fp16":
        _overflow(tape, piece)
    tape.empty("double", (number(piece),), "fp64")
    tape.at("optimizer", -1, "optimizer")
    for flat in flats:
        gradient = tape.empty("flatten", flat.shape, dtype)
        if dtype != "fp32":
            gradient = tape.empty("_to_copy", flat.shape, "fp32")
        _update(tape, [flat], plan)
        del gradient


def _overflow(tape: Tape, piece: int) -> None:
    """Whether a gradient has an infinity or no number: masks of a byte, the last again in fp32."""
    shape = (number(piece),)
    wide = tape.empty("_to_copy", shape, "fp32")
    masks = [tape.empty(name, shape, "bool") for name in ("isnan", "isinf", "logical_or")]
    again = tape.empty("_to_copy", shape, "fp32")
    del again, masks, wide


def _update(tape: Tape, flats: list[Tensor], plan: OptimizerPlan) -> None:
    """The optimizer itself; norms and clipping are DeepSpeed's own."""
    run_step(tape, flats, plan._replace(master=False, grad_clip=False))
