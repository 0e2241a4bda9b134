"""Plans whose model ends in a loss of feedback training, or in what is scored without gradients.

A plan of ordinary training becomes one of feedback training by another end of its kernels, the dims of
the response, and for DPO the blocks of a second, frozen model. Everything else (layout, optimizer,
adapters, recomputation) is the plan's own.
Checked by: oracle/test_feedback.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.blocks.feedback_parts import ENTROPY_ROWS
from memcalc.engine.build import Build, Handed
from memcalc.engine.dims import dim_sizes
from memcalc.engine.kernels import LossEnd
from memcalc.engine.plan import Plan
from memcalc.engine.structure import Run, Structure, architecture_key, find_runs, freeze
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import forward_only

#: Losses over pairs of sequences.
PAIRED: Final = ("dpo", "reward")
#: Ends without gradients.
SCORING: Final = ("logps", "values", "score")
#: Ends whose caller holds outputs until its step is over.
HOLDING: Final = ("policy", "value", "shared", "joint")


def updating(
    plan: Plan, kind: str, response: int, *, reference: str = "none", beta: bool = False
) -> Plan:
    """The plan with this loss. response: positions of a sequence that are not the prompt's."""
    if plan.undivided is not None:
        whole = updating(plan.undivided, kind, response, reference=reference, beta=beta)
        plan = plan._replace(undivided=whole)
    rows = plan.resolved.micro_batch_size
    end = LossEnd(
        kind, rows, _chunks(kind, rows, plan.resolved.seq_len, response),
        reference if kind == "dpo" else "none", beta and kind == "grpo",
        kind in ("policy", "value", "joint"),
    )  # fmt: skip
    kinds = plan.kinds
    if kind == "joint":
        kinds = (*kinds, *(one._replace(stack="critic") for one in plan.kinds))
    if end.reference != "none":
        again = (one._replace(stack="reference", recompute="none") for one in plan.kinds)
        kinds = (*kinds, *again)
    return _ending(plan, end, response)._replace(kinds=kinds)


def scoring(plan: Plan, kind: str, response: int, keeps_hidden: bool) -> Plan:
    """The plan of a forward pass without gradients: its batch is the plan's micro-batch."""
    end = LossEnd(kind, plan.resolved.micro_batch_size, keeps_hidden=keeps_hidden)
    kinds = tuple(one._replace(recompute="none") for one in plan.kinds)
    return _ending(plan, end, response)._replace(kinds=kinds)


def _ending(plan: Plan, end: LossEnd, response: int) -> Plan:
    values = {**plan.values, "s_r": response}
    if end.kind in PAIRED:
        values["b/2"] = end.rows // 2
    kernels = plan.kernels._replace(loss_end=end)
    return plan._replace(kernels=kernels, values=values, dims=dim_sizes(values))


def _chunks(kind: str, rows: int, seq: int, response: int) -> int:
    """Stretches of positions whose entropy is made one after the other."""
    if kind == "dpo":
        return -(-rows * (seq - 1) // ENTROPY_ROWS)
    return -(-rows * response // ENTROPY_ROWS) if kind == "grpo" else 0


_CACHE: dict[object, Structure] = {}
_CACHE_LIMIT: Final = 64


def scoring_structure(plan: Plan) -> tuple[Structure, tuple[Run, ...]]:
    """The traced forward pass of a plan of `scoring`, and its runs."""
    runs, kernels = find_runs(plan.kinds), plan.kernels
    few = tuple(run._replace(count=run.traced, depth=run.traced) for run in runs)
    key = (architecture_key(plan.config), kernels, few, tuple(plan.dims.items()))
    found = _CACHE.get(key)
    if found is None:
        if len(_CACHE) >= _CACHE_LIMIT:
            _CACHE.pop(next(iter(_CACHE)))
        tape = Tape(device=kernels.device, watched=kernels.watched)
        layers = [kind for run in few for _ in range(run.count) for kind in run.pattern]
        forward_only(Build(tape, plan.config, kernels, dict(plan.dims)), layers, "")
        found = _CACHE[key] = freeze(tape, few, Handed())
    return found, runs
