"""What of a setup can be written into another tool's settings: every field, resolved.

Fields have the names of TrainingSetup and ParallelPlan; `kernels.NAME`, `stack.NAME` and `model.NAME` are
what `--set` changes. Checked by: property/test_interop.py, unit/test_interop_tables.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.stacks import PREFIX, Stack, load_stack, with_choices
from memcalc.inputs.training import TrainingSetup

TRAINING: Final = tuple(f.name for f in fields(TrainingSetup))
LAYOUT: Final = tuple(f.name for f in fields(ParallelPlan))
_DEFAULTS: Final = {
    **{f.name: f.default for f in fields(TrainingSetup)},
    **{f.name: f.default for f in fields(ParallelPlan)},
}


@dataclass(frozen=True, slots=True)
class Facts:
    """A setup to be written for another tool.

    name: the model as stated; base: with what --set changed of it; config: truncated and with its
    dropout, too. values: every field of the
    setup and the layout with what was left open filled in, but None where the stack decides.
    stated: fields that differ from memcalc's defaults, `kernels.*`, `stack.*` and `model.*` among them.
    """

    name: str
    base: ModelConfig
    config: ModelConfig
    values: Mapping[str, Any]
    stated: Mapping[str, Any]
    stack: Stack

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    @property
    def steps(self) -> int:
        """Sequences of an optimizer step over all ranks."""
        return int(self["micro_batch_size"] * self["grad_accum_steps"] * self["dp"])


def facts_of(
    name: str,
    config: ModelConfig,
    setup: TrainingSetup,
    parallel: ParallelPlan,
    overrides: Mapping[str, Any],
    model_sets: Mapping[str, Any],
) -> Facts:
    """The facts of a request. Raises ConfigError where memcalc could not estimate it.

    overrides: `--set` values of kernels and of the stack (`stack.NAME`); model_sets: of the model.
    """
    plan = plan_of(config, setup, overrides, parallel)
    stack, _ = with_choices(load_stack(setup.code), overrides)
    layout = with_degrees(parallel)
    if plan.undivided is not None:
        layout = plan.parallel
    values = _values(plan, setup, layout)
    stated = {
        **{n: getattr(setup, n) for n in TRAINING if getattr(setup, n) != default_of(n)},
        **{n: getattr(parallel, n) for n in LAYOUT if getattr(parallel, n) != default_of(n)},
        **{n if n.startswith(PREFIX) else f"kernels.{n}": v for n, v in overrides.items()},
        **{f"model.{n}": v for n, v in model_sets.items()},
    }
    return Facts(name, config, plan.whole.config, values, stated, stack)


def _values(plan: Plan, setup: TrainingSetup, layout: ParallelPlan) -> dict[str, Any]:
    """Every field, resolved: what the estimate itself goes by."""
    resolved = plan.resolved
    own = resolved.optimizer_impl == plan.optimizer.impl
    return {
        **{name: getattr(setup, name) for name in TRAINING},
        "stack": setup.base,
        "seq_len": resolved.seq_len,
        "micro_batch_size": resolved.micro_batch_size,
        "grad_accum_steps": resolved.grad_accum_steps,
        "optimizer_impl": setup.optimizer_impl or (resolved.optimizer_impl if own else None),
        "loss": plan.kernels.loss,
        "attention": plan.kernels.attention,
        "dropout": setup.dropout,
        **{name: getattr(layout, name) for name in LAYOUT},
        "sp": bool(layout.sp),
    }


def default_of(field: str) -> Any:
    """memcalc's default of a field of the setup or the layout, None for any other."""
    return _DEFAULTS.get(field)
