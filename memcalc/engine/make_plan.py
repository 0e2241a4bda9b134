"""Make plans: a model in a setup on a stack, divided as a layout states.

Checked by: unit/test_plan.py and everything that estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from memcalc.engine.adapters.choice import (
    builds_masks,
    check_layout,
    rank_values,
    scores_of,
    training_kinds,
    with_packed_base,
)
from memcalc.engine.blocks.layer_limits import untied
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.encoders import check_encoder, encoder_kinds
from memcalc.engine.in_backward import offloading, stepping_in_backward
from memcalc.engine.kernel_choice import PRECISIONS, has_expandable_segments, kernels_of
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.optimizer import OptimizerPlan
from memcalc.engine.parallel.choose import resolve_layout, split_kernels, strategy_for
from memcalc.engine.parallel.deepspeed.deepspeed_setup import deepspeed_optimizer, runs_deepspeed
from memcalc.engine.parallel.local import local_values
from memcalc.engine.parallel.megatron.megatron_layout import (
    megatron_optimizer,
    megatron_sizes,
    megatron_values,
)
from memcalc.engine.parallel.megatron.nanotron_layout import (
    nanotron_optimizer,
    padded_vocabulary,
    runs_nanotron,
)
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import Size
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.stacks import Stack, as_stated, load_stack, with_choices
from memcalc.inputs.training import ResolvedSetup, TrainingSetup, resolve


def make_plan(
    resolved: ResolvedSetup,
    stack: Stack,
    overrides: Mapping[str, Any] | None = None,
    parallel: ParallelPlan = ParallelPlan(),  # noqa: B008  # immutable
) -> Plan:
    """The plan of a setup on a stack; overrides are `kernels.*` and `stack.*` values set by hand.

    parallel: the resolved layout. With stages the plan still has every block; `engine.parallel.ranks`
    cuts it.
    """
    stack, overrides = with_choices(as_stated(stack, parallel), overrides or {})
    resolved = untied(resolved, stack)
    setup, config = resolved.setup, resolved.config
    kernels, notes = kernels_of(resolved, stack, overrides)
    check_layout(resolved, parallel)
    check_encoder(resolved, kernels, parallel)
    values = dim_values(
        config, resolved.micro_batch_size, resolved.seq_len, setup.imbalance, resolved.target_len
    )
    values |= rank_values(resolved)
    optimizer = OptimizerPlan(
        name=setup.optimizer,
        impl=resolved.optimizer_impl,
        state_dtype=setup.optimizer_dtype,
        master=PRECISIONS[setup.precision].master,
        grad_clip=setup.grad_clip,
        scores=scores_of(kernels),
    )
    if runs_nanotron(kernels):
        optimizer = nanotron_optimizer(optimizer, resolved)
    elif kernels.megatron is not None:
        optimizer = megatron_optimizer(optimizer, kernels)
    elif runs_deepspeed(stack):
        optimizer = deepspeed_optimizer(optimizer, setup, kernels, parallel)
    if setup.optimizer_dtype and not optimizer.master:
        notes.append(f"optimizer states in {setup.optimizer_dtype}: a closed form")
    kinds = training_kinds(resolved, block_kinds(resolved, kernels))
    plan = Plan(
        resolved, kernels, kinds, values, dim_sizes(values), optimizer, tuple(notes),
        expandable=has_expandable_segments(stack, overrides),
    )  # fmt: skip
    if parallel.offload == "activations" and kernels.traits.code == "torchtune":
        plan = offloading(plan, parallel)
    if setup.optimizer_in_backward:
        return stepping_in_backward(plan, parallel)
    if plan.kernels.offloads:
        return plan
    is_whole = parallel.is_single and kernels.megatron is None and not runs_deepspeed(stack)
    return with_packed_base(plan) if is_whole else divided(plan, parallel, stack)


def plan_of(
    config: ModelConfig,
    setup: TrainingSetup,
    overrides: Mapping[str, Any] | None = None,
    parallel: ParallelPlan | None = None,
) -> Plan:
    """The plan of a model in a setup, on the setup's own stack, divided as `parallel` states."""
    stack = load_stack(setup.code)
    layout = with_degrees(parallel or ParallelPlan())
    return make_plan(resolve(setup, config, layout.copies), stack, overrides, layout)


def divided(plan: Plan, parallel: ParallelPlan, stack: Stack) -> Plan:
    """The plan of one rank of a layout: its part of each layer, and how it holds the states."""
    layout, notes = resolve_layout(parallel, plan, stack)
    kernels = split_kernels(plan, layout, stack)
    values, dims = local_dims(plan, layout)
    plan = plan._replace(
        undivided=plan,
        parallel=layout,
        kernels=kernels,
        values=values,
        dims=dims,
        notes=(*plan.notes, *notes),
    )
    strategy = strategy_for(plan, stack)
    kernels = strategy.kernels(kernels)
    kinds = training_kinds(plan.resolved, block_kinds(plan.resolved, kernels))
    return with_packed_base(plan._replace(strategy=strategy, kernels=kernels, kinds=kinds))


def local_dims(plan: Plan, layout: ParallelPlan) -> tuple[dict[str, int], dict[str, Size]]:
    """Values and Sizes of one rank's dims, by whose code divides the model."""
    if plan.kernels.megatron is None:
        values = local_values(plan.values, layout)
        return values, dim_sizes(values)
    values = megatron_values(plan.values, plan.config, layout, plan.resolved.setup)
    if runs_nanotron(plan.kernels):
        values["V"] = padded_vocabulary(plan.values["V"], layout.tp) // layout.tp
    return values, megatron_sizes(values, layout)


def block_kinds(
    resolved: ResolvedSetup, kernels: Kernels, layers: Sequence[int] | None = None
) -> tuple[BlockKind, ...]:
    """The kind of every layer, or of a stage's. full:N means the first N blocks of the stage.

    Windows count only where the attention code builds a second mask.
    """
    setup, config = resolved.setup, resolved.config
    recompute = "none" if setup.recompute == "selective" else setup.recompute
    if recompute == "sac" and kernels.traits.code == "torchtitan":
        recompute = "sac-every-second"
    if setup.reentrant or (kernels.megatron is not None and recompute == "full"):
        recompute = "reentrant"
    limit = setup.recompute_layers or config.num_hidden_layers
    if config.is_encoder:
        return encoder_kinds(config, recompute)
    numbers = range(config.num_hidden_layers) if layers is None else tuple(layers)
    windows = config.layer_types if builds_masks(kernels) else ()
    return _kinds(
        numbers, windows, config.moe.sparse_layers if config.moe else (), recompute, limit
    )


@lru_cache(maxsize=256)
def _kinds(
    layers: range | tuple[int, ...],
    windows: tuple[str, ...],
    sparse: tuple[int, ...],
    recompute: str,
    limit: int,
) -> tuple[BlockKind, ...]:
    """The kinds of these layers; the plans of a sweep ask for the same ones thousands of times."""
    return tuple(
        BlockKind(
            windows[layer] if windows else "full",
            layer in sparse,
            recompute if number < limit else "none",
        )
        for number, layer in enumerate(layers)
    )
