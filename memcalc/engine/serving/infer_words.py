"""What `infer` says beside its figures: the resolved setup, what was assumed, notes and advice."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memcalc.engine.device_side import Device
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.serving.verdict import Need
from memcalc.inputs.parallel import ParallelPlan


def setup_dict(plan: ServingPlan, device: Device) -> dict[str, Any]:
    """Every resolved input."""
    resolved, layout = plan.resolved, plan.layout
    on_gpu = sum(place.part.layers[1] - place.part.layers[0] for place in plan.gpu_places
                 if place.part.layers)  # fmt: skip
    return {
        **asdict(resolved.setup),
        "context": resolved.context,
        "prompt": resolved.prompt,
        "generated": resolved.generated,
        "weights": plan.format.name,
        "kv_cache": resolved.kv_dtype,
        "cache": resolved.cache,
        "compute_dtype": resolved.compute_dtype,
        "attention": plan.timed.attention,
        "prefill_tokens": resolved.prefill_tokens,
        "cuda_graphs": resolved.cuda_graphs,
        "num_layers": plan.config.num_hidden_layers,
        "draft_tokens": resolved.drafted or None,
        "acceptance": resolved.acceptance if resolved.drafted else None,
        "gpu_layers": on_gpu if plan.host_places else None,
        "tp": layout.tp,
        "pp": layout.pp,
        "dp": layout.copies,
        "ep": layout.ep,
        "gpus": layout.size,
        "gpu": None if device.gpu is None else device.gpu.slug,
        "cluster": None if device.cluster is None else device.cluster.slug,
        "profile_hashes": {
            "engine": resolved.engine.profile_hash,
            "weights": plan.format.profile_hash,
            "gpu": None if device.gpu is None else device.gpu.profile_hash,
        },
    }


def assumptions(plan: ServingPlan, device: Device, host: tuple[str, ...]) -> list[str]:
    """What the figures rest on, in lines."""
    engine, resolved, layout = plan.resolved.engine, plan.resolved, plan.layout
    said = [
        f"engine {engine.name}: {engine.verified_against}",
        "all sequences start together and reach the end of their context together",
        *device.assumptions,
        *(host if plan.host_places or resolved.setup.device == "cpu" else ()),
    ]
    if engine.name == "transformers":
        said += _of_transformers(plan)
    if engine.name == "vllm":
        said.append("CUDA graphs' memory and Python between steps are not estimated")
        said += _of_vllm(plan, layout)
    if resolved.drafted:
        stated = "stated" if resolved.setup.acceptance is not None else "assumed"
        said.append(
            f"a drafted token is taken with probability {resolved.acceptance:g}, {stated}, whatever came "
            f"before: {resolved.tokens_a_step:.3g} tokens a step"
        )
    if plan.host_places and engine.name == "llama.cpp":
        said.append(
            "the table of tokens and the first layers lie on the host, as llama.cpp has them"
        )
    return said


def _of_transformers(plan: ServingPlan) -> list[str]:
    resolved = plan.resolved
    said = []
    if resolved.cache in ("fp8", "grouped") or resolved.drafted:
        said.append("reserved: as allocated; growth of this cache is not played")
    else:
        said.append("reserved: growth between the first and the last step played as one change")
    if resolved.cache == "grouped":
        said.append("cache in groups of 64 with a residual of up to 128 positions; scratch of packing "
                    "is not counted")  # fmt: skip
    if resolved.setup.device == "gpu":
        said.append(f"launching: {resolved.engine.sources['launch_s']}")
    return said


def _of_vllm(plan: ServingPlan, layout: ParallelPlan) -> list[str]:
    config, said = plan.config, []
    if config.mla is not None:
        said.append("latent attention: every tp rank holds all latents; prompts pad values to the width "
                    "of keys (FlashAttention-2)")  # fmt: skip
    if config.moe is not None and layout.copies > 1:
        said.append("dp replicas gather their tokens at the experts (allgather-reducescatter)")
    if config.moe is not None and layout.ep > 1:
        said.append(
            f"token rows of the busiest rank: {plan.resolved.setup.imbalance:g} of the mean"
        )
    if layout.pp > 1:
        said.append(f"pipeline: {layout.pp} micro-batches of requests, one a stage")
    return said


def notes(plan: ServingPlan, need: Need, longest: int | None) -> list[str]:
    """What a user should know of this setup."""
    found = []
    limit = plan.config.max_position_embeddings
    if longest is not None and longest > limit:
        found.append(
            f"memory has room for {longest} positions; {plan.config.name} was made for {limit}"
        )
    if need.host_usable_bytes is not None and need.host_bytes > need.host_usable_bytes:
        found.append(
            f"host memory: needs {need.host_bytes} bytes of {need.host_usable_bytes} stated"
        )
    return found


def advice(
    plan: ServingPlan, need: Need, batches: int | None, longest: int | None
) -> tuple[str, ...]:
    """What would make it fit."""
    if need.fits is not False:
        return ()
    context, batch = plan.resolved.context, plan.resolved.batch
    found = []
    if batches:
        found.append(f"--batch {batches}: the most that fits at context {context}")
    if longest:
        found.append(f"--context {longest}: the longest that fits at batch {batch}")
    if not batches and plan.format.is_dense:
        found.append("--weights nf4 or gptq: fewer bits a weight")
    if (
        not batches
        and plan.resolved.engine.name == "llama.cpp"
        and not plan.resolved.setup.gpu_layers
    ):
        found.append("--gpu-layers auto: the layers that do not fit stay on the host")
    return tuple(found)
