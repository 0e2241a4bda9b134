"""memcalc: GPU memory and throughput of language models, from one exact description of the decoder.

from memcalc import ParallelPlan, TrainingSetup, estimate
result = estimate("llama-3.2-1b", TrainingSetup(seq_len=4096), gpu="h100-80gb")
sharded = estimate("llama-3.1-8b", parallel=ParallelPlan(gpus=8, fsdp=True), gpu="h100-80gb")
result.memory.peak_allocated_bytes, result.fits
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from memcalc.engine.estimate import estimate
    from memcalc.engine.explain import explain
    from memcalc.engine.feedback.feedback import feedback
    from memcalc.engine.feedback.results import FeedbackEstimate
    from memcalc.engine.results import Breakdown, Estimate, MemoryEstimate
    from memcalc.engine.serving.infer import infer
    from memcalc.engine.serving.serving_results import ServingEstimate
    from memcalc.engine.timing.time_estimate import TimeEstimate
    from memcalc.errors import ConfigError, MemcalcError
    from memcalc.inputs.clusters import Cluster, load_cluster
    from memcalc.inputs.feedback import FeedbackSetup
    from memcalc.inputs.hardware import Gpu, load_gpu
    from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig
    from memcalc.inputs.models import load_model
    from memcalc.inputs.parallel import ParallelPlan
    from memcalc.inputs.serving import ServingSetup
    from memcalc.inputs.training import TrainingSetup

_HOMES = {
    "estimate": "memcalc.engine.estimate",
    "explain": "memcalc.engine.explain",
    "Breakdown": "memcalc.engine.results",
    "Estimate": "memcalc.engine.results",
    "MemoryEstimate": "memcalc.engine.results",
    "TimeEstimate": "memcalc.engine.timing.time_estimate",
    "ConfigError": "memcalc.errors",
    "MemcalcError": "memcalc.errors",
    "Cluster": "memcalc.inputs.clusters",
    "load_cluster": "memcalc.inputs.clusters",
    "ParallelPlan": "memcalc.inputs.parallel",
    "Gpu": "memcalc.inputs.hardware",
    "load_gpu": "memcalc.inputs.hardware",
    "MlaConfig": "memcalc.inputs.model",
    "ModelConfig": "memcalc.inputs.model",
    "MoeConfig": "memcalc.inputs.model",
    "load_model": "memcalc.inputs.models",
    "TrainingSetup": "memcalc.inputs.training",
    "feedback": "memcalc.engine.feedback.feedback",
    "FeedbackEstimate": "memcalc.engine.feedback.results",
    "FeedbackSetup": "memcalc.inputs.feedback",
    "infer": "memcalc.engine.serving.infer",
    "ServingEstimate": "memcalc.engine.serving.serving_results",
    "ServingSetup": "memcalc.inputs.serving",
}

__all__ = [
    "Breakdown",
    "Cluster",
    "ConfigError",
    "Estimate",
    "FeedbackEstimate",
    "FeedbackSetup",
    "Gpu",
    "MemcalcError",
    "MemoryEstimate",
    "MlaConfig",
    "ModelConfig",
    "MoeConfig",
    "ParallelPlan",
    "ServingEstimate",
    "ServingSetup",
    "TimeEstimate",
    "TrainingSetup",
    "estimate",
    "explain",
    "feedback",
    "infer",
    "load_cluster",
    "load_gpu",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so `import memcalc` stays light."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'memcalc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
