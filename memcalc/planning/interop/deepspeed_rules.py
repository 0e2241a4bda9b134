"""Batch sizes, dtypes and offload as DeepSpeed's settings state them, in its JSON or in accelerate's YAML.

Any two of the three batch sizes give the third; a total gives the number of GPUs where --gpus does not.
Source: DeepSpeed 0.18.2, runtime/config.py (_set_batch_related_parameters), runtime/zero/offload_config.py.
Checked by: unit/test_interop_deepspeed.py.
"""

from __future__ import annotations

from memcalc.errors import ConfigError
from memcalc.planning.interop.rows import AUTO, NEAREST, Reading


def batches(reading: Reading, total_key: str, micro_key: str, accum_key: str) -> None:
    """Micro-batch, accumulation and GPUs from a document's batch sizes: any two give the third.

    Without --gpus the total gives the GPUs; with it the total is checked against them.
    """
    got = reading.seen
    micro, accum, total = got.get(micro_key), got.get(accum_key), got.get(total_key)
    ranks = reading.any("gpus", None) or reading.any("dp", None)
    if total is not None and micro is None:
        step = (ranks or 1) * (accum or 1)
        micro = _divided(total_key, total, step, "GPUs x accumulation")
    elif total is not None and accum is None and ranks is not None:
        accum = _divided(total_key, total, micro * ranks, "micro-batch x GPUs")
    if micro is not None:
        reading.fields["micro_batch_size"] = micro
    if accum is not None:
        reading.fields["grad_accum_steps"] = accum
    if total is None or micro is None:
        return
    if ranks is None:
        step = micro * (accum or 1)
        reading.fields["gpus"] = _divided(total_key, total, step, "micro-batch x accumulation")
        if accum is None:
            reading.say(total_key, NEAREST, "no accumulation stated and no --gpus: 1 taken")
    else:
        reading.fields["global_batch"] = total


def _divided(key: str, total: int, step: int, what: str) -> int:
    if step < 1 or total < 1 or total % step:
        raise ConfigError(f"deepspeed, {key}: got {total}; rule: a multiple of {what} = {step}")
    return int(total // step)


def precision(reading: Reading) -> None:
    """bf16.enabled and fp16.enabled as one precision; both is an error, as DeepSpeed has it."""
    bf16, fp16 = reading.seen.get("bf16.enabled"), reading.seen.get("fp16.enabled")
    if bf16 and fp16:
        raise ConfigError("deepspeed, bf16.enabled: got fp16.enabled too; rule: one of them")
    automatic = reading.seen.get(AUTO, ())
    if not bf16 and not fp16:
        bf16, fp16 = "bf16" in automatic, "fp16" in automatic
    reading.fields["precision"] = "bf16-mixed" if bf16 else "fp16-mixed" if fp16 else "fp32"


def offload(reading: Reading, optimizer_key: str, param_key: str) -> None:
    """What leaves the GPU, and where to, from the devices of optimizer and parameters."""
    devices = {
        key: str(reading.seen.get(key, "none")).lower() for key in (optimizer_key, param_key)
    }
    for key, device in devices.items():
        if device not in ("none", "cpu", "nvme"):
            raise ConfigError(f"deepspeed, {key}: got {device!r}; valid: none, cpu, nvme")
    optimizer, parameters = devices.values()
    if (optimizer, parameters) == ("none", "none"):
        return
    reading.fields["offload"] = "optimizer" if parameters == "none" else "params"
    device = parameters if optimizer == "none" else optimizer
    if device != "cpu":
        reading.fields["offload_device"] = device
    if "none" not in (optimizer, parameters) and optimizer != parameters:
        why = f"one device for both is estimated: {device}"
        reading.say(param_key, NEAREST, why)
