"""Changes of one GPU's work: kernels, recomputation, micro-batch, optimizer, precision, offload.

Each generator looks at what the setup already does and proposes what differs; what a stack or model does
not have is refused by the estimate and falls out there, so no rule of theirs is restated here.
Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from memcalc.inputs.stacks import base_of
from memcalc.inputs.training_names import COMPILED_STACKS, RECOMPUTE
from memcalc.planning.advise.change import Change, Situation, Value

_LARGEST_MICRO: Final = 64
_SHORTEST: Final = 128
_SIXTEEN_BIT: Final = ("bf16", "bf16-master")


def singles(at: Situation) -> list[Change]:
    """Every change of this page that is open to the setup."""
    found = [*_kernels(at), *_recompute(at), *_micro(at), *_offload(at), *_numerics(at)]
    return [*found, *_method(at)]


def _differs(at: Situation, field: str, value: Any) -> bool:
    return bool(at.setup[field] != value)


def _kernels(at: Situation) -> Iterator[Change]:
    """The same arithmetic by other code."""
    setup = at.setup
    if setup["optimizer"] in ("adamw", "sgd", "momentum") and setup["optimizer_impl"] != "fused":
        yield Change("impl", "same", {"optimizer-impl": "fused"})
    if setup["optimizer_impl"] == "foreach":
        yield Change("impl", "same", {"optimizer-impl": "loop"})
    for kernel in ("flash", "cudnn"):
        if setup["attention"] in ("eager", "efficient") and setup["attention"] != kernel:
            yield Change("attention", "same", {"attention": kernel})
    for loss in ("chunked", "fused"):
        if _differs(at, "loss", loss):
            yield Change("loss", "same", {"loss": loss})
    in_one_step = setup["grad_accum_steps"] == 1 and not setup["grad_clip"]
    if not setup["set_to_none"]:
        yield Change("gradients", "same", {"no-set-to-none": None})
    elif in_one_step and not setup["optimizer_in_backward"]:
        yield Change("gradients", "same", {"optimizer-in-backward": True})
    if base_of(setup["stack"]) in COMPILED_STACKS and not setup["compile"]:
        yield Change("compile", "same", {"compile": True})


def _recompute(at: Situation) -> Iterator[Change]:
    setup = at.setup
    for word in RECOMPUTE:
        if _differs(at, "recompute", word) or setup["recompute_layers"] is not None:
            yield recompute(word)
    if base_of(setup["stack"]) == "megatron" and setup["recompute"] == "none":
        options = {"recompute": "selective", "recompute-modules": "moe_act,layernorm"}
        yield Change("recompute", "same", options)


def recompute(word: str) -> Change:
    """What backward computes again."""
    return Change("recompute", "same", {"recompute": word, "recompute-modules": None})


def _micro(at: Situation) -> Iterator[Change]:
    """Smaller or larger micro-batches, at the same batch where that can be."""
    micro = at.micro
    while micro > 1:
        micro //= 2
        if (options := at.same_batch(at.copies, micro)) is not None:
            yield Change("micro", "same", options)
    micro = at.micro
    while micro < _LARGEST_MICRO:
        micro *= 2
        options = at.same_batch(at.copies, micro)
        if options is not None:
            yield Change("micro", "same", options)
        elif at.fits and at.setup["grad_accum_steps"] == 1:
            batch = micro * at.copies
            grown: dict[str, Value] = {"micro-batch": str(micro), "global-batch": None}
            yield Change("micro", "method", grown, f"the batch grows to {batch} sequences")


def _offload(at: Situation) -> Iterator[Change]:
    setup = at.setup
    if setup["offload"] != "none":
        none: dict[str, Value] = {"offload": None, "offload-device": None}
        yield Change("offload", "same", {**none, "pin-memory": None, "no-pin-memory": None})
        return
    yield Change("offload", "same", {"offload": "activations"})
    stack = base_of(setup["stack"])
    if stack in ("deepspeed", "megatron-deepspeed"):
        for stage in ("1", "2", "3"):
            if int(stage) >= setup["zero"]:
                yield Change("offload", "same", {"zero": stage, "offload": "optimizer"})
        yield Change("offload", "same", {"zero": "3", "offload": "params"})
        return
    yield Change("offload", "same", {"fsdp": True, "zero": None, "offload": "params"})
    yield Change("offload", "same", {"fsdp": True, "zero": None, "offload": "all"})


def _numerics(at: Situation) -> Iterator[Change]:
    """Other arithmetic for the same training."""
    setup, gpu = at.setup, at.case.device.gpu
    precision = setup["precision"]
    if setup["optimizer"] == "adamw":
        yield Change("optimizer", "numerics", {"optimizer": "adamw-8bit", "optimizer-impl": None})
        if setup["optimizer_dtype"] is None and precision not in _SIXTEEN_BIT:
            yield Change("optimizer", "numerics", {"optimizer-dtype": "bf16"})
    peaks = {} if gpu is None else gpu.peak_flops_per_s
    if precision == "fp32" and peaks.get("tf32"):
        yield Change("precision", "numerics", {"precision": "tf32"})
    if precision in ("fp32", "tf32") and peaks.get("bf16"):
        yield Change("precision", "numerics", {"precision": "bf16-mixed"})
    if precision not in _SIXTEEN_BIT and peaks.get("bf16"):
        yield Change("precision", "numerics", {"precision": "bf16"}, "states in 16 bit too")
    if precision == "bf16-mixed" and peaks.get("fp8"):
        yield Change("precision", "numerics", {"precision": "fp8-mixed"})


def _method(at: Situation) -> Iterator[Change]:
    """Other training: adapters (code of stack hf), shorter sequences."""
    setup = at.setup
    if setup["peft"] is None and not at.fits:
        alone: dict[str, Value] = {
            "stack": "hf", "loss": None, "compile": None, "optimizer-in-backward": None, "tp": None,
            "pp": None, "vpp": None, "cp": None, "ep": None, "schedule": None, "sp": None,
        }  # fmt: skip
        if at.gpus > 1:
            alone |= {"gpus": str(at.gpus), "dp": None}
        lora: dict[str, Value] = {**alone, "peft": "lora"}
        if str(setup["precision"]).endswith("-mixed"):
            lora["weights"] = str(setup["precision"]).removesuffix("-mixed")
        whole: dict[str, Value] = {"fsdp": None, "zero": None, "shard": None, "reshard": None}
        for how in (lora, {**alone, **whole, "peft": "qlora"}):  # packed weights are never cut
            words = "only adapters train, by transformers' and PEFT's code"
            yield Change("peft", "method", how, words)
    seq = int(setup["seq_len"])
    while not at.fits and seq > _SHORTEST:
        seq //= 2
        yield Change("seq", "method", {"seq": str(seq)}, "samples are cut shorter")
