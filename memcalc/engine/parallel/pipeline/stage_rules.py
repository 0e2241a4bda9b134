"""Which pipelines a model and a setup allow, and what a reader must know of one.

Every refusal is one line: what was got, the rule, what is valid. Checked by: unit/test_stages.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from memcalc.engine.parallel.megatron.nanotron_layout import runs_nanotron
from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.parallel.pipeline.pipeline_rules import rules_of
from memcalc.engine.parallel.pipeline.schedules import SPLIT_BACKWARD, check_pipe
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.parallel import SCHEDULES, ParallelPlan
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def check_stages(layout: ParallelPlan, plan: Plan, stack: Stack) -> tuple[str, ...]:
    """Raise ConfigError unless the pipeline can be cut and run; returns notes. One stage is none."""
    if layout.pp == 1:
        return ()
    _check_cut(layout, plan)
    _check_code(layout, plan, stack)
    pipe = Pipe(layout.pp, layout.vpp, plan.resolved.grad_accum_steps)
    check_pipe(layout.schedule, pipe, rules_of(stack).fewer_batches)
    return tuple(_notes(layout, plan, stack))


def _check_cut(layout: ParallelPlan, plan: Plan) -> None:
    """Every chunk has a block, or the embedding, or the head."""
    name, layers, chunks = plan.config.name, plan.config.num_hidden_layers, layout.chunks
    given = layout.stage_layers
    if given is None:
        if chunks > layers:
            degrees = f"{layout.pp}{f' x vpp {layout.vpp}' if layout.vpp > 1 else ''}"
            raise ConfigError(
                f"pp: got {degrees}; rule: a block for each chunk; valid: 1 to "
                f"{layers // layout.vpp}, the layers of {name}"
            )
        return
    stated = f"stage_layers: got {','.join(map(str, given))}"
    if len(given) != chunks or sum(given) != layers:
        raise ConfigError(f"{stated}; rule: {chunks} numbers that sum to the {layers} layers")
    if not all(given[1:-1]) and not runs_nanotron(plan.kernels):
        raise ConfigError(f"{stated}; rule: only the first and the last may have no block")


def _check_code(layout: ParallelPlan, plan: Plan, stack: Stack) -> None:
    """What a stack's code cannot cut, or not run in this order."""
    kernels, schedule = plan.kernels, layout.schedule
    if kernels.hf:
        raise ConfigError(
            f"pp: got {layout.pp} with stack {stack.name}, whose code has no stages; valid: 1, "
            "or --stack torch"
        )
    if plan.config.tie_word_embeddings and not rules_of(stack).ties:
        raise ConfigError(
            f"pp: got {layout.pp} for {plan.config.name}, whose head is its embedding; rule: stack "
            f"{stack.name} keeps no copy of it on the last stage; valid: 1, --stack megatron, or "
            "--set model.tie_word_embeddings=false"
        )
    known = stack.parallel.get("schedules", list(SCHEDULES))
    if schedule not in known:
        raise ConfigError(
            f"schedule: got {schedule!r} with stack {stack.name}; valid: {', '.join(known)}"
        )
    _check_sharding(layout, stack)
    if schedule not in SPLIT_BACKWARD:
        return
    if layout.copies > 1:
        raise NotInThisVersionError(
            f"dp: got {layout.copies} with schedule {schedule}, whose halves of backward run no "
            "hooks of DDP or FSDP here; valid: 1, or --schedule gpipe, 1f1b, interleaved"
        )
    if kernels.compiled:
        raise ConfigError(
            f"schedule: got {schedule!r} with compiled blocks; rule: PyTorch splits no compiled "
            "backward; valid: gpipe, 1f1b, interleaved"
        )
    if plan.resolved.setup.recompute not in ("none", "selective"):
        raise ConfigError(
            f"recompute: got {plan.resolved.setup.recompute!r} with schedule {schedule}; rule: "
            "PyTorch's split backward recomputes a block once for every parameter; valid: none"
        )
    if kernels.loss == "chunked":
        raise ConfigError(
            f"loss: got 'chunked' with schedule {schedule}; rule: its chunks are recomputed, which "
            "PyTorch's split backward does twice; valid: fp32, plain, fused"
        )


def _check_sharding(layout: ParallelPlan, stack: Stack) -> None:
    """PyTorch's stages keep what FSDP2 gathered until the step is over."""
    if stack.parallel.get("states") != "fsdp2" or layout.reshard in (None, False):
        return
    raise NotInThisVersionError(
        f"reshard: got {str(layout.reshard).lower()} with pp {layout.pp}: gathering for every "
        "micro-batch is not in this version; valid: false, PyTorch's way beside stages"
    )


def _notes(layout: ParallelPlan, plan: Plan, stack: Stack) -> Iterator[str]:
    if plan.config.tie_word_embeddings:
        yield (
            f"the head of {plan.config.name} is its embedding: the last stage has a copy, with "
            "gradient and optimizer states of its own; the two gradients are summed in place"
        )
    if stack.parallel.get("states") == "fsdp2" and layout.zero > 1:
        yield (
            "fsdp with stages: gathered parameters and whole gradients stay from the first forward to "
            "the last backward, as PyTorch keeps them"
        )
    if layout.schedule == "dualpipe":
        yield (
            "dualpipe: DualPipeV, as PyTorch has it; DualPipe proper holds every parameter twice"
        )
