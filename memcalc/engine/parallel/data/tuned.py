"""Fine-tuning methods on several ranks: which layouts hold them, and what is refused.

Every rank runs the same adapters on its own rows: DDP sums the gradients of what trains, FSDP2, FSDP1
and ZeRO cut what trains and what does not alike, ZeRO-3 by parameter. What is not here is named with the
nearest that is.
Checked by: unit/test_tuned_layouts.py.
"""

from __future__ import annotations

from memcalc.errors import NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import ResolvedSetup

#: Degrees that divide a layer or the model's depth, where nobody has followed adapters.
_INSIDE = ("tp", "pp", "cp", "ep")


def check_tuned(resolved: ResolvedSetup, parallel: ParallelPlan) -> None:
    """Raise NotInThisVersionError where a fine-tuning method meets a layout that was not built."""
    peft = resolved.setup.peft
    if peft is None:
        return
    for name in _INSIDE:
        degree = getattr(parallel, name)
        if degree > 1:
            raise NotInThisVersionError(
                f"peft: got {peft.method} with {name} {degree}, not in this version; nearest valid: "
                f"--{name} 1 with data parallelism (--gpus N, --fsdp, --zero)"
            )
    reshard = parallel.reshard
    if peft.method == "freeze" and reshard is not None and not isinstance(reshard, bool):
        raise NotInThisVersionError(
            f"reshard: got {reshard} with peft freeze, not in this version; rule: FSDP2 keeps what blocks "
            "without a backward kept on fewer ranks; nearest valid: true, false"
        )
    if peft.method == "dora" and parallel.zero == 3 and not parallel.fsdp:
        raise NotInThisVersionError(
            "peft: got dora with zero 3, not in this version; rule: its norms gather weights once more; "
            "nearest valid: lora, or --zero 2"
        )
    if peft.packed is not None and parallel.zero > 2:
        raise NotInThisVersionError(
            f"weights: got {peft.packed} cut over ranks ({_cut(parallel)}), not in this version; "
            "nearest valid: DDP or --zero 1, 2, where each rank has the packed base whole"
        )
    if resolved.setup.optimizer_in_backward:
        raise NotInThisVersionError("peft: with optimizer_in_backward it is not in this version")


def _cut(parallel: ParallelPlan) -> str:
    return "fsdp" if parallel.fsdp else f"zero {parallel.zero}"
