"""estimate: from what the user states to the four numbers, their breakdown and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from memcalc.engine.adapters.choice import adapter_file_bytes
from memcalc.engine.blocks.compiled_limits import ASSUMPTIONS
from memcalc.engine.device_side import Device, device_from, with_modules
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory_band import memory_band
from memcalc.engine.parallel.rules import check_size
from memcalc.engine.plan import Plan
from memcalc.engine.rank_memory import WORKSPACES, RankMemory, rank_memory
from memcalc.engine.results import Estimate, MemoryEstimate, ModelSummary
from memcalc.engine.states import States, states
from memcalc.engine.timing.answer import time_estimate
from memcalc.inputs.clusters import Cluster
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import Stack, load_stack
from memcalc.inputs.training import TrainingSetup
from memcalc.units import MIB


def estimate(
    model: ModelConfig | str,
    setup: TrainingSetup | None = None,
    *,
    parallel: ParallelPlan | None = None,
    gpu: Gpu | Cluster | str | Device | None = None,
    kernels: Mapping[str, Any] | None = None,
    allocator: bool = True,
) -> Estimate:
    """Memory of one training step of a model on one GPU, or on each stage of several.

    model: a ModelConfig, a profile's name, or a path to a config.json. parallel: how several GPUs
    divide it; `memory` is then the rank that needs most, `memory.stages` one rank of each pipeline
    stage. gpu: a GPU, or the cluster that has it. kernels: overrides of the stack's choices, e.g.
    {"norm": "hand"}. allocator: simulate PyTorch's caching allocator; without it reserved and
    driver-used bytes are None and allocated leaves rounding out. Times are made from the default rates
    of the GPU, or from those that a `device_of(gpu, calibration=...)` names; without a GPU they are None.
    Raises ConfigError when the inputs cannot be used. "Does not fit" is a result, not an error.
    Checked by: oracle/test_step_peak.py, cli/test_estimate.py, benchmarks/engine_speed.py.
    """
    config = load_model(model) if isinstance(model, str) else model
    setup = setup or TrainingSetup()
    stack = load_stack(setup.code)
    device = with_modules(device_from(gpu), stack)
    plan = plan_of(config, setup, kernels, parallel)
    check_size(plan.parallel, device.cluster)
    return estimate_of(plan, stack, device, allocator)


def estimate_of(plan: Plan, stack: Stack, device: Device, allocator: bool) -> Estimate:
    """The estimate of a plan; allocator: simulate PyTorch's."""
    ranks = [rank_memory(plan, stage, device, allocator) for stage in range(plan.parallel.pp)]
    worst = max(ranks, key=lambda rank: _need(rank.memory))
    memory = worst.memory._replace(
        stages=tuple(rank.memory for rank in ranks) if len(ranks) > 1 else ()
    )
    fits = None if worst.fits is None else all(rank.fits for rank in ranks)
    lacking = memory.host.lacking(device.cluster)
    fits = fits and lacking is None
    verdict = None
    if fits is not None:
        tight = memory.high_bytes is not None and memory.high_bytes > (memory.usable_bytes or 0)
        verdict = "does-not-fit" if not fits else "tight" if tight else "fits"
    time, about_time = time_estimate(plan, device)
    held = worst.step.states if plan.undivided is None else _whole_states(plan.whole)
    return Estimate(
        model=ModelSummary(
            name=plan.config.name,
            model_type=plan.config.model_type,
            parameters=held.parameters,
            active_parameters=held.active_parameters,
            num_hidden_layers=plan.config.num_hidden_layers,
            parameter_tensors=held.tensors,
            trainable_parameters=held.trainable_parameters,
            adapter_file_bytes=adapter_file_bytes(plan.whole),
        ),
        setup=_setup_dict(plan, stack, device),
        memory=memory,
        time=time,
        fits=fits,
        verdict=verdict,
        assumptions=(
            *_assumptions(plan, stack, device),
            *_between(plan, device, worst),
            *about_time,
        ),
        notes=(*device.notes, *plan.resolved.notes, *plan.notes, *([lacking] if lacking else [])),
        advice=(),
    )


def _need(memory: MemoryEstimate) -> int:
    """What decides which rank is the worst."""
    return memory.device_used_bytes or memory.peak_allocated_bytes


def _whole_states(plan: Plan) -> States:
    structure, runs = plan.structure(plan.keeps_gradients)
    return states(structure, runs, plan.optimizer, plan.values)


def _assumptions(plan: Plan, stack: Stack, device: Device) -> list[str]:
    setup = plan.resolved.setup
    said = [
        f"stack {stack.title}: {stack.verified_against}",
        "second and later optimizer steps; the first may reserve more",
        f"matmul workspaces: {WORKSPACES} of {device.workspace_bytes / MIB:.3g} MiB "
        "(forward and autograd threads)",
        *device.assumptions,
        f"band: open figures of context, workspace and attention scratch; {memory_band().reason}",
    ]
    if setup.precision == "tf32":
        said.append("tf32 is stored as 4 bytes an element (19 significant bits in 32)")
    if plan.kernels.compiled:
        said += ASSUMPTIONS
    is_plain = plan.kernels.norm == "fused" and plan.kernels.megatron is None
    if is_plain and plan.config.norm_type == "rmsnorm":
        said.append("RMSNorm runs as one fused kernel (F.rms_norm on CUDA)")
    if plan.config.moe is not None:
        said.append(_load(setup.imbalance, setup.capacity_factor))
    return said


def _load(imbalance: float, capacity: float | None) -> str:
    """What was assumed of how many token rows reach the experts of a rank."""
    fullest = "every rank's receive as many token rows (--imbalance 1)"
    if imbalance != 1:
        fullest = f"the fullest rank's receive {imbalance:g} times the mean of token rows"
    dropped = (
        "none is dropped" if capacity is None else f"an expert takes {capacity:g} times its mean"
    )
    return f"experts: {fullest}; {dropped}"


def _between(plan: Plan, device: Device, worst: RankMemory) -> list[str]:
    """What the figures of communication rest on."""
    reasons = worst.communication.reasons
    if not reasons:
        return []
    cluster, nodes = device.cluster, plan.parallel.gpus_per_node
    said = [f"communicators (driver memory, never measured here): {'; '.join(reasons)}"]
    if cluster is None and nodes is None:
        said.append("no cluster named: nodes of 8 GPUs behind NVSwitch assumed")
    return said


def _setup_dict(plan: Plan, stack: Stack, device: Device) -> dict[str, Any]:
    """Every resolved input, defaults filled in, with the hashes of the profiles used."""
    resolved = plan.resolved
    stated = asdict(resolved.setup)
    kernels = plan.kernels._asdict()
    traits = kernels.pop("traits")._asdict()
    for name in ("megatron", "dtensor", "adapter"):
        kernels[name] = None if kernels[name] is None else kernels[name]._asdict()
    layout = plan.parallel
    found = {
        **stated,
        "stack": resolved.setup.code,
        "seq_len": resolved.seq_len,
        "micro_batch_size": resolved.micro_batch_size,
        "grad_accum_steps": resolved.grad_accum_steps,
        "global_batch": resolved.micro_batch_size * resolved.grad_accum_steps * layout.copies,
        "optimizer_impl": plan.optimizer.impl,
        "loss": plan.kernels.loss,
        "attention": plan.kernels.attention,
        "num_layers": resolved.config.num_hidden_layers,
        **asdict(layout),
        "gpu": None if device.gpu is None else device.gpu.slug,
        "cluster": None if device.cluster is None else device.cluster.slug,
        "kernels": kernels,
        "traits": traits,
        "profile_hashes": {
            "stack": stack.profile_hash,
            "gpu": None if device.gpu is None else device.gpu.profile_hash,
            "cluster": None if device.cluster is None else device.cluster.profile_hash,
        },
        "dims": dict(plan.values),
    }
    return {name: _as_json(value) for name, value in found.items()}


def _as_json(value: Any) -> Any:
    """The value with lists for tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if hasattr(value, "_asdict"):
        return _as_json(value._asdict())
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


def with_advice(result: Estimate, advice: list[str]) -> Estimate:
    """The same estimate with advice filled in."""
    return replace(result, advice=tuple(advice))
