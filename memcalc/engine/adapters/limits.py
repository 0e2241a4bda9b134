"""Which fine-tuning methods run on which model and setup: what is refused, in one line.

Checked by: unit/test_adapter_limits.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from memcalc.engine.adapters.prompt import OWN_CODE
from memcalc.engine.kernels import Kernels
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.peft import VIRTUAL, PeftSetup
from memcalc.inputs.training import ResolvedSetup
from memcalc.inputs.weights import WeightFormat

#: Methods the plain decoder runs.
PLAIN = ("lora", "qlora", "bitfit", "freeze")
#: Families with gaps that prefix tuning falls into: caches of windows, keys of one head.
_WINDOWED = ("gemma2", "gemma3_text")
#: Families whose linears keep their weights as (in, out).
CONV1D = ("gpt2", "openai-gpt")
#: Families whose attention is sdpa through transformers' interface, which builds the mask of a prefix.
_OWN_ATTENTION = ("falcon", "gptj", "bloom", "gpt_oss")


def check_method(peft: PeftSetup, resolved: ResolvedSetup, kernels: Kernels) -> None:
    """Raise ConfigError where the method does not run so, NotInThisVersionError where it may."""
    config = resolved.config
    if peft.method in VIRTUAL:
        _check_virtual(peft, resolved)
    if peft.method == "prefix":
        _check_prefix(resolved, kernels)
    if peft.method == "dora":
        _check_dora(peft, config)
    if peft.method == "adalora" and peft.packed:
        raise NotInThisVersionError(
            f"peft: adalora beside weights in {peft.packed} is not in this version; valid: qlora"
        )
    if peft.method == "adapter":
        _check_bottleneck(peft, config, kernels)


def check_plain(peft: PeftSetup) -> None:
    """Raise NotInThisVersionError for what the plain decoder (stack torch) has no code for."""
    if peft.method not in PLAIN:
        raise NotInThisVersionError(
            f"peft: {peft.method} on stack torch is not in this version; nearest valid: --stack hf, or "
            f"{', '.join(PLAIN)}"
        )
    if peft.packed == "int8":
        raise NotInThisVersionError(
            "weights: int8 on stack torch, whose packed linear has 4 bits, is not in this version; "
            "nearest valid: --stack hf, or --weights nf4"
        )


def _check_virtual(peft: PeftSetup, resolved: ResolvedSetup) -> None:
    config = resolved.config
    longest = config.max_position_embeddings - peft.tokens
    if config.position_embedding == "learned" and resolved.seq_len > longest:
        raise ConfigError(
            f"seq_len: got {resolved.seq_len} with {peft.tokens} virtual tokens; rule: at most the "
            f"{config.max_position_embeddings} positions of {config.name}; nearest valid: {longest}"
        )
    if (config.word_embed_proj_dim or config.hidden_size) != config.hidden_size:
        raise ConfigError(
            f"peft: got {peft.method} with {config.name}, whose embeddings are narrower than its layers; "
            "rule: PEFT makes virtual tokens as wide as a layer; nearest valid: lora"
        )


def _check_prefix(resolved: ResolvedSetup, kernels: Kernels) -> None:
    """Prefix tuning's cache: what PEFT itself refuses, and what nothing here describes."""
    config = resolved.config
    if resolved.setup.recompute == "full" and config.model_type not in OWN_CODE:
        raise ConfigError(
            "recompute: got full with peft prefix; rule: PEFT refuses gradient checkpointing with prefix "
            "tuning; nearest valid: --recompute none"
        )
    if config.mla is not None or config.model_type in _WINDOWED:
        raise NotInThisVersionError(
            f"peft: prefix tuning of {config.model_type} is not in this version; valid: prompt, p-tuning"
        )
    if config.position_embedding == "alibi" and config.model_type == "baichuan":
        raise NotInThisVersionError(
            "peft: prefix tuning with ALiBi of baichuan is not in this version"
        )
    if config.model_type in _OWN_ATTENTION and kernels.attention != "eager":
        raise NotInThisVersionError(
            f"attention: {kernels.attention} of {config.model_type} with peft prefix is not in this "
            "version; nearest valid: --attention eager"
        )


def _check_bottleneck(peft: PeftSetup, config: ModelConfig, kernels: Kernels) -> None:
    """Layers whose code takes the adapters: with norms first, attention and MLP one after the other."""
    plain = kernels.traits.block == "sequential" and config.norm_placement in ("pre", "sandwich")
    if not plain or config.moe is not None or config.mla is not None:
        raise NotInThisVersionError(
            f"peft: bottleneck adapters in {config.model_type} are not in this version; valid: lora"
        )
    if kernels.traits.inline_mlp and peft.bottleneck_kind == "parallel":
        raise NotInThisVersionError(
            f"adapter_kind: parallel in {config.model_type}, whose MLP is no module, is not in this version; "
            "valid: houlsby, pfeiffer"
        )


def _check_dora(peft: PeftSetup, config: ModelConfig) -> None:
    """DoRA where PEFT takes another path than the one described."""
    if peft.packed:
        raise NotInThisVersionError(
            f"peft: dora beside weights in {peft.packed} is not in this version; valid: qlora"
        )
    if peft.dropout and config.model_type in CONV1D:
        raise NotInThisVersionError(
            f"peft: dora with dropout on {config.model_type}'s transposed weights is not in this version"
        )


def check_packed(fmt: WeightFormat, config: ModelConfig, precision: str, compute: str) -> None:
    """Raise where a format's linears are not described under a method."""
    if fmt.kernel not in ("dequantise", "int8"):
        raise NotInThisVersionError(
            f"weights: {fmt.name} under adapters is not in this version; valid: nf4, nf4-plain, fp4, "
            "fp4-plain, int8"
        )
    refused: Mapping[str, str] = {"t5": "", "mt5": "", "bert": "", "openai-gpt": ""}
    if config.model_type in refused:
        raise NotInThisVersionError(
            f"weights: {fmt.name} of {config.model_type} under adapters is not in this version"
        )
    if compute == "fp32":
        raise ConfigError(
            f"weights: got {fmt.name} with {precision}; rule: products in 16 bits; "
            "nearest valid: --precision bf16-mixed"
        )
