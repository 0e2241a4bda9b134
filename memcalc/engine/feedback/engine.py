"""A serving engine in the trainer's process: what it takes awake, asleep, and while weights are synced.

vLLM takes its share of the device when it starts, whatever it needs, and gives it back asleep: level 1
keeps its weights on the host, level 2 drops them; the cache goes in both. TRL wakes the weights alone,
writes the policy's into them parameter by parameter, then wakes the cache. With fewer bytes of cache than
all responses need, sequences wait for their turn. What a sleeping engine still holds (CUDA graphs, its
communicators) is not estimated.
Source: TRL 1.0.0, generation/vllm_generation.py; vLLM's sleep mode (docs, features/sleep_mode).
Checked by: unit/test_feedback_program.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.serving.infer import infer
from memcalc.engine.serving.serving_results import ServingEstimate
from memcalc.inputs.feedback import ResolvedFeedback
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.serving import ServingSetup


class Colocated(NamedTuple):
    """One engine. taken_bytes: of the device, awake; at_once: sequences its cache has room for."""

    sleep: int
    weights_bytes: int
    cache_bytes: int  # of all responses at their end
    taken_bytes: int
    at_once: int
    serving: ServingEstimate

    @property
    def awake_bytes(self) -> int:
        """While it generates."""
        return self.taken_bytes

    @property
    def syncing_bytes(self) -> int:
        """While it gets the policy's weights: asleep but for them."""
        return self.weights_bytes if self.sleep else self.taken_bytes

    @property
    def asleep_bytes(self) -> int:
        """While the trainer works."""
        return 0 if self.sleep else self.taken_bytes

    @property
    def host_bytes(self) -> int:
        """On the host while asleep."""
        return self.weights_bytes if self.sleep == 1 else 0


def colocated(config: ModelConfig, feedback: ResolvedFeedback, device: Device) -> Colocated | None:
    """The engine of a setup; None where the policy's own code generates."""
    if feedback.setup.engine != "vllm":
        return None
    found = _served(config, feedback, device, feedback.rollout_batch)
    memory = found.memory
    if memory.pool_bytes is None or device.usable_bytes is None:
        taken = memory.peak_allocated_bytes
        return Colocated(
            feedback.sleep, found.weights_bytes, found.kv_cache_bytes, taken,
            feedback.rollout_batch, found,
        )  # fmt: skip
    each = -(-found.kv_cache_bytes // feedback.rollout_batch)
    at_once = min(feedback.rollout_batch, memory.pool_bytes // max(1, each))
    taken = int(feedback.gpu_share * device.usable_bytes) - device.context_bytes
    if 0 < at_once < feedback.rollout_batch:
        found = _served(config, feedback, device, at_once)
    return Colocated(
        feedback.sleep, found.weights_bytes, each * feedback.rollout_batch,
        max(taken, found.weights_bytes), at_once, found,
    )  # fmt: skip


def _served(
    config: ModelConfig, feedback: ResolvedFeedback, device: Device, batch: int
) -> ServingEstimate:
    setup = ServingSetup(
        batch=batch, context=feedback.prompt + feedback.generate, prompt=feedback.prompt,
        engine="vllm", gpu_memory_utilization=feedback.gpu_share,
    )  # fmt: skip
    return infer(config, setup, gpu=device)
