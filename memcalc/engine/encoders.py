"""Encoders and encoder-decoders: their blocks, what else decides their kernels, where they run.

An encoder-decoder's blocks are those of the encoder, then those of the decoder. The first of each half
makes the position bias of all, so it is of a kind of its own.
Checked by: unit/test_encoders.py, oracle/test_hf_encoders.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.errors import NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import ResolvedSetup

#: Elements that rows of a bias are padded to for the efficient kernel (PyTorch's mem_eff_alignment).
ALIGNED = 16


def encoder_kinds(config: ModelConfig, recompute: str) -> tuple[BlockKind, ...]:
    """The kind of every block: BERT's alike; T5's by half, the first of each apart."""
    if not config.is_encoder_decoder:
        return (BlockKind(recompute=recompute, stack="encoder"),) * config.num_hidden_layers
    halves = (("encoder", config.num_encoder_layers), ("cross", config.num_hidden_layers))
    return tuple(
        BlockKind(recompute=recompute, stack=stack, first=number == 0)
        for stack, count in halves
        for number in range(count)
    )


def padded_rows(resolved: ResolvedSetup, attention: str) -> tuple[bool, bool]:
    """Whether rows of scores over source and target positions are padded."""
    if not resolved.config.is_encoder_decoder or attention == "eager":
        return False, False
    return resolved.seq_len % ALIGNED != 0, resolved.target_len % ALIGNED != 0


def input_tokens(config: ModelConfig, values: Mapping[str, int], apart: bool) -> int:
    """Token ids and labels of a micro-batch. apart: a decoder's labels are not its ids.

    Labels of a masked model never are; an encoder-decoder's are its target.
    """
    tokens = values["b"] * values.get("s_i", values["s"])
    if config.is_encoder_decoder:
        return tokens + values["b"] * values["u"]
    return tokens * (2 if apart or config.bidirectional else 1)


def _named(config: ModelConfig) -> str:
    return "an encoder-decoder" if config.is_encoder_decoder else "an encoder"


def check_code(config: ModelConfig, stack: str, family_code: bool) -> None:
    """Raise where a stack has no code for an encoder: all but transformers' own."""
    if config.is_encoder and not family_code:
        raise NotInThisVersionError(
            f"stack: got {stack} with {config.name}, {_named(config)}; rule: transformers' own code; "
            "nearest valid: --stack hf"
        )


def _lora(peft: PeftSetup) -> bool:
    return peft.method == "lora" and peft.packed is None


def check_encoder(resolved: ResolvedSetup, kernels: Kernels, parallel: ParallelPlan) -> None:
    """Raise where an encoder meets what nothing describes: divided layers, stages, and so on."""
    config, setup = resolved.config, resolved.setup
    if not config.is_encoder:
        return
    refused = {
        "a layer or its sequence divided, or stages": parallel.inner > 1,
        f"offload {parallel.offload}": parallel.offload in ("activations", "all"),
        "a fine-tuning method other than LoRA": setup.peft is not None and not _lora(setup.peft),
        "--precision fp8-mixed": kernels.fp8_linear,
        "--optimizer-in-backward": setup.optimizer_in_backward,
        f"--recompute full:{setup.recompute_layers}": setup.recompute_layers is not None,
        f"--recompute {setup.recompute}": setup.recompute not in ("none", "full"),
        "reentrant recomputation": setup.reentrant,
    }
    for what, present in refused.items():
        if present:
            raise NotInThisVersionError(
                f"{config.name}: got {what}, not in this version with {_named(config)}; nearest valid: "
                "without it"
            )
