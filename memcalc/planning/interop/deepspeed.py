"""DeepSpeed's JSON: the table of its keys.

Source: DeepSpeed 0.18.2 and 0.19.8, runtime/config.py, runtime/constants.py, runtime/zero/config.py,
runtime/zero/offload_config.py, runtime/engine.py (_configure_basic_optimizer). What "auto" means:
transformers 5.23.0, integrations/deepspeed.py (HfTrainerDeepSpeedConfig).
Checked by: unit/test_interop_deepspeed.py, unit/test_interop_packages.py (DeepSpeedConfig itself).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from memcalc.planning.interop.deepspeed_rules import batches, offload, precision
from memcalc.planning.interop.deepspeed_words import AUTOMATIC, NO_EFFECT, REASONS
from memcalc.planning.interop.deepspeed_words import UNPRICED as NOT_ESTIMATED
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import (
    NEAREST,
    UNPRICED,
    Reading,
    Row,
    fixed,
    seen,
    size,
    words,
)
from memcalc.planning.interop.tool import Tool

_OPTIMIZERS: Final = {"adamw": "AdamW", "lion": "Lion", "sgd": "SGD", "momentum": "SGD"}
_ZERO: Final = "zero_optimization"
_OFFLOADS: Final = ("optimizer", "params", "all")
#: Where the JSON names a path of the user's own.
_NVME: Final = "/local_nvme"


def sharded(facts: Facts) -> bool:
    """ZeRO is on."""
    return int(facts["zero"]) >= 1


def _stage3(facts: Facts) -> bool:
    return int(facts["zero"]) == 3


def offloads(facts: Facts) -> bool:
    """Optimizer states leave the GPU."""
    return facts["offload"] in _OFFLOADS


def offloads_parameters(facts: Facts) -> bool:
    """Parameters leave it too."""
    return facts["offload"] in ("params", "all")


def _on_disk(when: Callable[[Facts], bool]) -> Callable[[Facts], bool]:
    return lambda facts: when(facts) and facts["offload_device"] == "nvme"


def _enabled(dtype: str) -> Callable[[Facts], bool | None]:
    return lambda facts: True if str(facts["precision"]).startswith(dtype) else None


def _clips(value: Any, reading: Reading) -> None:
    reading.fields["grad_clip"] = value > 0


def _optimizer_type(value: Any, reading: Reading) -> None:
    reading.seen["optimizer.type"] = value
    name = str(value).lower()
    found = {"adam": "adamw", "adamw": "adamw", "lion": "lion", "sgd": "sgd"}.get(name)
    if found is None:
        reading.say("optimizer.type", UNPRICED, f"{value} is not estimated here; adamw taken")
    else:
        reading.fields["optimizer"] = found


def _implementation(key: str) -> Callable[[Facts], bool | None]:
    wanted = {
        "torch_adam": {"foreach": True, "fused": True, "loop": True},
        "fused": {"fused": True},
        "foreach": {"loop": False},
    }[key]
    return lambda facts: (
        wanted.get(facts["optimizer_impl"]) if facts["optimizer"] == "adamw" else None
    )


def _overlap(facts: Facts) -> bool | None:
    if not sharded(facts):
        return None
    return _stage3(facts) or bool(facts.stack.parallel["overlap_comm"])


def _device(when: Callable[[Facts], bool]) -> Callable[[Facts], str | None]:
    return lambda facts: facts["offload_device"] if when(facts) else None


def _pinned(when: Callable[[Facts], bool]) -> Callable[[Facts], bool | None]:
    return lambda facts: bool(facts["pin_memory"]) if when(facts) else None


ROWS: Final = (
    seen("train_batch_size", "count", "--global-batch, --gpus", lambda f: f.steps,
         "micro-batch x grad-accum x GPUs; read, it gives the GPUs"),
    seen("train_micro_batch_size_per_gpu", "count", "--micro-batch",
         lambda f: f["micro_batch_size"]),
    seen("gradient_accumulation_steps", "count", "--grad-accum", lambda f: f["grad_accum_steps"]),
    Row("gradient_clipping", "number", "--grad-clip", lambda f: 1.0 if f["grad_clip"] else 0.0,
        _clips, "above 0; absent is off here, as up to DeepSpeed 0.18 (0.19: 1.0)"),
    seen("bf16.enabled", "switch", "--precision", _enabled("bf16"), "true is bf16-mixed"),
    seen("fp16.enabled", "switch", "--precision", _enabled("fp16"),
         "true is fp16-mixed; neither is fp32"),
    Row("optimizer.type", "text", "--optimizer", lambda f: _OPTIMIZERS.get(f["optimizer"]),
        _optimizer_type, "`AdamW`, `Adam`, `Lion`, `SGD`; without the block the script's, adamw taken"),
    seen("optimizer.params.torch_adam", "switch", "--optimizer-impl", _implementation("torch_adam"),
         "false or absent is DeepSpeed's FusedAdam; true is torch.optim's foreach"),
    seen("optimizer.params.fused", "switch", "--optimizer-impl fused", _implementation("fused"),
         "beside torch_adam"),
    seen("optimizer.params.foreach", "switch", "--optimizer-impl loop", _implementation("foreach"),
         "false, beside torch_adam"),
    seen("optimizer.params.momentum", "number", "--optimizer momentum",
         lambda f: 0.9 if f["optimizer"] == "momentum" else None, "above 0, of SGD"),
    words(f"{_ZERO}.stage", "zero", {0: 0, 1: 1, 2: 2, 3: 3}, "count"),
    size(f"{_ZERO}.reduce_bucket_size", "reduce_bucket_size", sharded),
    seen(f"{_ZERO}.overlap_comm", "switch", "--set stack.overlap_comm", _overlap,
         "stages 1 and 2; stage 3 is estimated with it on"),
    size(f"{_ZERO}.sub_group_size", "sub_group_size", _stage3),
    size(f"{_ZERO}.stage3_prefetch_bucket_size", "stage3_prefetch_bucket_size", _stage3),
    size(f"{_ZERO}.stage3_param_persistence_threshold", "stage3_param_persistence_threshold",
         _stage3),
    size(f"{_ZERO}.stage3_max_live_parameters", "stage3_max_live_parameters", _stage3),
    size(f"{_ZERO}.stage3_max_reuse_distance", "stage3_max_reuse_distance", _stage3),
    seen(f"{_ZERO}.offload_optimizer.device", "text", "--offload optimizer, --offload-device",
         _device(offloads), "`cpu`, `nvme`, `none`"),
    seen(f"{_ZERO}.offload_optimizer.pin_memory", "switch", "--pin-memory", _pinned(offloads)),
    size(f"{_ZERO}.offload_optimizer.buffer_count", "offload_optimizer_buffer_count",
         _on_disk(offloads)),
    fixed(f"{_ZERO}.offload_optimizer.nvme_path", _NVME, _on_disk(offloads), "a path of yours"),
    seen(f"{_ZERO}.offload_param.device", "text", "--offload params, --offload-device",
         _device(offloads_parameters), "`cpu`, `nvme`, `none`"),
    seen(f"{_ZERO}.offload_param.pin_memory", "switch", "--pin-memory",
         _pinned(offloads_parameters)),
    size(f"{_ZERO}.offload_param.buffer_count", "offload_param_buffer_count",
         _on_disk(offloads_parameters)),
    size(f"{_ZERO}.offload_param.buffer_size", "offload_param_buffer_size",
         _on_disk(offloads_parameters)),
    size(f"{_ZERO}.offload_param.max_in_cpu", "offload_param_max_in_cpu",
         _on_disk(offloads_parameters)),
    fixed(f"{_ZERO}.offload_param.nvme_path", _NVME, _on_disk(offloads_parameters),
          "a path of yours"),
)  # fmt: skip


def finish(reading: Reading) -> None:
    """What keys mean together: batch sizes, dtypes, the optimizer's code, offload."""
    reading.fields["stack"] = "deepspeed"
    batches(
        reading,
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    )
    precision(reading)
    if "grad_clip" not in reading.fields:
        why = "absent: off, as up to DeepSpeed 0.18; 0.19.8 clips at 1.0"
        reading.say("gradient_clipping", NEAREST, why)
    _optimizer_code(reading)
    offload(reading, f"{_ZERO}.offload_optimizer.device", f"{_ZERO}.offload_param.device")
    _pins(reading)
    if reading.fields.get("stack.stage3_prefetch_bucket_size") == 0:
        reading.fields["stack.stage3_prefetch_bucket_size"] = 1
        why = "no prefetch: one element is taken"
        reading.say(f"{_ZERO}.stage3_prefetch_bucket_size", NEAREST, why)
    overlap = reading.seen.get(f"{_ZERO}.overlap_comm")
    stage = reading.any("zero", 0)
    if overlap is False and stage == 3:
        why = "stage 3 is estimated with exchanges beside compute"
        reading.say(f"{_ZERO}.overlap_comm", UNPRICED, why)
    elif overlap is not None and stage in (1, 2):
        reading.fields["stack.overlap_comm"] = overlap


def _pins(reading: Reading) -> None:
    """Page-locked host memory of either block; what is absent differs between releases."""
    found = False
    for block in ("offload_optimizer", "offload_param"):
        key = f"{_ZERO}.{block}.pin_memory"
        if key in reading.seen and "offload" in reading.fields:
            reading.fields["pin_memory"] = reading.seen[key]
            found = True
    if "offload" in reading.fields and not found:
        why = "absent: false, as up to DeepSpeed 0.18; true in 0.19.8"
        reading.say(f"{_ZERO}.offload_optimizer.pin_memory", NEAREST, why)


def _optimizer_code(reading: Reading) -> None:
    got = reading.seen
    if reading.fields.get("optimizer") == "sgd" and got.get("optimizer.params.momentum", 0) > 0:
        reading.fields["optimizer"] = "momentum"
    if not got.get("optimizer.params.torch_adam"):
        return
    loop = got.get("optimizer.params.foreach") is False
    fused = got.get("optimizer.params.fused") is True
    reading.fields["optimizer_impl"] = "fused" if fused else "loop" if loop else "foreach"


TOOL: Final = Tool(
    name="deepspeed",
    rows=ROWS,
    stacks=("deepspeed",),
    known="DeepSpeed 0.18.2, 0.19.8",
    finish=finish,
    auto=AUTOMATIC,
    no_effect=NO_EFFECT,
    unpriced=NOT_ESTIMATED,
    harmless={
        f"{_ZERO}.reduce_scatter": (True,),
        f"{_ZERO}.use_multi_rank_bucket_allreduce": (True,),
        f"{_ZERO}.zero_hpz_partition_size": (1,),
        f"{_ZERO}.offload_optimizer.ratio": (1, 1.0),
    },
    reasons=REASONS,
    elsewhere=("seq_len",),
    canonical=lambda values: {
        **values,
        "precision": {"bf16-master": "bf16-mixed"}.get(values["precision"], values["precision"]),
    },
)
