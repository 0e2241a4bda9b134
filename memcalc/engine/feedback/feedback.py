"""feedback: from what the user states about PPO, GRPO, DPO or a reward model to memory, time, a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from memcalc.engine.device_side import Device, device_of, with_modules
from memcalc.engine.estimate import estimate_of
from memcalc.engine.feedback.clock import IterationTime, iteration_time
from memcalc.engine.feedback.engine import colocated
from memcalc.engine.feedback.members import Asked, check_plan, members_of
from memcalc.engine.feedback.program import PhaseMemory, Program, program_of
from memcalc.engine.feedback.replay import replayed
from memcalc.engine.feedback.results import FeedbackEstimate, ModelRow, PhaseRow
from memcalc.engine.feedback.words import assumptions_of, notes_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.rules import check_size
from memcalc.engine.rank_memory import MAX_BYTES, WORKSPACES, communication_of, used_bytes
from memcalc.engine.results import Breakdown, Estimate, MemoryEstimate
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.errors import ConfigError
from memcalc.inputs.feedback import FeedbackSetup, resolve_feedback
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup

#: TRL trains transformers' models.
DEFAULT_STACK: Final = "hf"


def feedback(
    model: ModelConfig | str,
    setup: FeedbackSetup,
    training: TrainingSetup | None = None,
    *,
    parallel: ParallelPlan | None = None,
    gpu: Gpu | str | Device | None = None,
    kernels: Mapping[str, Any] | None = None,
) -> FeedbackEstimate:
    """Memory and time of one iteration of a method, on one GPU or on each rank of data parallelism.

    model: the policy (rm: the reward model that is trained). training: of the models that train, stack hf
    unless stated. Raises ConfigError when the inputs cannot be used, NotInThisVersionError for layouts and
    stacks that are not described. "Does not fit" is a result.
    Checked by: oracle/test_feedback.py, unit/test_worked_feedback.py, cli/test_feedback.py.
    """
    config = load_model(model) if isinstance(model, str) else model
    training = training or TrainingSetup(stack=DEFAULT_STACK)
    layout = parallel or ParallelPlan()
    stack = load_stack(training.code)
    device = with_modules(gpu if isinstance(gpu, Device) else device_of(gpu), stack)
    plan = plan_of(config, training, kernels, layout)
    resolved = resolve_feedback(setup, plan.resolved, config.name)
    check_plan(plan, resolved)
    check_size(plan.parallel, device.cluster)
    members = members_of(Asked(config, training, resolved, kernels or {}, layout))
    engine = colocated(plan.config, resolved, device)
    program = program_of(resolved, members, engine)
    if program.worst.peak_bytes > MAX_BYTES:
        raise ConfigError(
            f"rlhf: got {program.worst.peak_bytes} bytes on one GPU; rule: below 2^50"
        )
    policy = program.member("policy").update
    assert policy is not None
    ordinary = estimate_of(plan, stack, device, False)
    memory, fits = _memory(program, device, ordinary)
    time = iteration_time(program, device)
    return FeedbackEstimate(
        estimate=_estimate(program, device, ordinary, (memory, fits), time),
        method=resolved.method,
        models=tuple(_models(program)),
        phases=tuple(_rows(program, time)),
        worst=program.worst.name,
        settings=_settings(program),
        generated_tokens_per_s=None if time is None else time.generated_tokens_per_s,
        at_once=None if engine is None else engine.at_once,
    )


class _Numbers(NamedTuple):
    """allocated: trainer and engine at the worst; reserved: as the driver sees both."""

    allocated: int
    reserved: int
    fits: bool | None


def _numbers(program: Program, device: Device, driver: int) -> _Numbers:
    """Allocated and reserved bytes, and whether they fit.

    Before a colocated engine wakes the trainer gives its cached blocks back (torch.cuda.empty_cache), so
    while it is awake what the trainer holds counts, not what it once reserved.
    """
    workspaces = (device.workspace_bytes,) * WORKSPACES
    found = replayed(program, workspaces)
    asleep = 0 if program.engine is None else program.engine.asleep_bytes
    own = [phase for phase in program.phases if phase.engine_bytes == asleep]
    most = max(phase.trainer_bytes for phase in own) if own else 0
    trainer = max(found.peak_allocated_bytes, most + sum(workspaces))
    awake = [
        phase.peak_bytes + sum(workspaces)
        for phase in program.phases
        if phase.engine_bytes != asleep
    ]
    allocated = max([trainer + asleep, *awake])
    reserved = max(allocated, found.peak_reserved_bytes + asleep)
    usable = device.usable_bytes
    if usable is None:
        return _Numbers(allocated, reserved, None)
    fits = allocated + driver <= usable
    if fits and reserved + driver > usable:
        fits = not replayed(program, workspaces, usable - driver - asleep).out_of_memory
    if program.engine is not None and program.engine.at_once < 1:
        fits = False
    return _Numbers(allocated, reserved, fits)


def _memory(
    program: Program, device: Device, ordinary: Estimate
) -> tuple[MemoryEstimate, bool | None]:
    plan = program.member("policy").update
    assert plan is not None
    between = communication_of(plan, 0, device)
    found = _numbers(program, device, device.context_bytes + between.expected)
    used, low, high = used_bytes(plan, device, between, found.allocated, found.reserved)
    worst, workspace = program.worst, device.workspace_bytes * WORKSPACES
    host = sum(row.host_bytes for row in _models(program))
    trained = [one for one in program.members if one.role == "trained"]
    frozen = sum(one.weights_bytes for one in program.members if one.role == "frozen")
    memory = ordinary.memory._replace(
        peak_requested_bytes=worst.peak_bytes,
        peak_allocated_bytes=found.allocated,
        peak_reserved_bytes=found.reserved,
        device_used_bytes=used,
        headroom_bytes=None if device.usable_bytes is None else device.usable_bytes - used,
        low_bytes=low,
        high_bytes=high,
        peak_at=f"{worst.name}: {worst.working.at}",
        peak_primitive="",
        breakdown=Breakdown(
            **program.breakdown(worst), workspace=workspace,
            rounding=found.allocated - worst.peak_bytes - workspace,
        ),
        reserved_overhead_bytes=found.reserved - found.allocated,
        communication_bytes=between.expected,
        phases={phase.name: phase.peak_bytes for phase in program.phases},
        phase_peaks_at={phase.name: phase.working.at for phase in program.phases},
        states={
            "parameters": sum(one.weights_bytes for one in trained) + frozen,
            "gradients": sum(one.gradient_bytes for one in trained),
            "optimizer": sum(one.optimizer_bytes for one in trained),
            "master": 0,
        },
        saved_for_backward_bytes=max(phase.working.saved_bytes for phase in program.phases),
        host_bytes=host,
    )  # fmt: skip
    return memory, found.fits


def _estimate(
    program: Program,
    device: Device,
    ordinary: Estimate,
    judged: tuple[MemoryEstimate, bool | None],
    time: IterationTime | None,
) -> Estimate:
    """The estimate's contract, filled with the method's numbers."""
    memory, fits = judged
    verdict = None
    if fits is not None:
        tight = memory.high_bytes is not None and memory.high_bytes > (memory.usable_bytes or 0)
        verdict = "does-not-fit" if not fits else "tight" if tight else "fits"
    step = _iteration(ordinary.time, time, program.member("policy").base.parallel.size)
    setup = {**ordinary.setup, "rlhf": program.feedback.method}
    return Estimate(
        model=ordinary.model,
        setup=setup,
        memory=memory,
        time=step,
        fits=fits,
        verdict=verdict,
        assumptions=tuple(
            dict.fromkeys(
                (
                    *assumptions_of(program, device),
                    *ordinary.assumptions,
                    *(() if time is None else time.said),
                )
            )
        ),
        notes=(*ordinary.notes, *notes_of(program)),
        advice=(),
    )


def _iteration(step: TimeEstimate, time: IterationTime | None, ranks: int) -> TimeEstimate:
    """Rates of an iteration; a step's parts, bounds, band and utilisations are not its own."""
    plain = TimeEstimate(
        step.model_flops_per_token, step.model_flops_causal_per_token,
        step.executed_flops_per_token, step.executed_flops,
    )  # fmt: skip
    if time is None:
        return plain
    return plain._replace(
        step_s=time.iteration_s,
        tokens_per_s=time.tokens_per_s,
        tokens_per_s_per_gpu=time.tokens_per_s / ranks,
        samples_per_s=time.samples_per_s,
        calibration=time.calibration,
    )


def _models(program: Program) -> list[ModelRow]:
    rows = [
        ModelRow(
            one.name, one.config.name, one.role, one.elements, one.trains, one.weights_bytes,
            one.gradient_bytes, one.optimizer_bytes, 0 if one.stays else one.weights_bytes,
        )
        for one in program.members
    ]  # fmt: skip
    engine, policy = program.engine, program.member("policy")
    if engine is not None:
        rows.append(
            ModelRow(
                "engine",
                policy.config.name,
                "engine",
                0,
                0,
                engine.weights_bytes,
                0,
                0,
                engine.host_bytes,
            )  # fmt: skip
        )
    return rows


def _rows(program: Program, time: IterationTime | None) -> list[PhaseRow]:
    if time is None:
        return [PhaseRow(phase) for phase in program.phases]
    return [_timed(phase, time, number) for number, phase in enumerate(program.phases)]


def _timed(phase: PhaseMemory, time: IterationTime, number: int) -> PhaseRow:
    found = time.phases[number]
    share = found.seconds / time.iteration_s
    return PhaseRow(phase, found.seconds, found.times, found.tokens, share)


def _settings(program: Program) -> dict[str, Any]:
    """Every resolved input of the method."""
    feedback = program.feedback
    found = {name: value for name, value in feedback._asdict().items() if name != "setup"}
    setup = feedback.setup
    found |= {
        "engine": setup.engine, "frozen_dtype": setup.frozen_dtype,
        "offload_frozen": setup.offload_frozen, "keeps_logits": setup.keeps_logits,
        "joint_update": setup.joint_update,
    }  # fmt: skip
    return found
