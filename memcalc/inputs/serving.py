"""ServingSetup: what a user states about serving a model, validated, in the contract's names.

Nothing here knows a byte. `resolve_serving` fills what was left open from the model and the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.engines import ENGINES, Engine, load_engine
from memcalc.inputs.model import ModelConfig, check_choice, check_dim
from memcalc.inputs.training import ATTENTIONS

KV_CACHES: Final = ("bf16", "fp16", "fp8", "int8")
#: Bytes of a cached element; llama.cpp's 8 bits (q8_0) are blocks of 32 with a scale of two bytes.
ITEM_BYTES: Final = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
Q8_0_BYTES: Final = 34 / 32
#: What an engine can cache in, where that is not the activations' dtype alone.
CACHED_IN: Final = {
    "vllm": ("bf16", "fp16", "fp8"),
    "llama.cpp": ("bf16", "fp16", "int8"),
}
CACHES: Final = ("grow", "tuple", "static", "paged", "whole")
_MAX_TOKENS: Final = 1 << 40


@dataclass(frozen=True, kw_only=True)
class ServingSetup:
    """How a model is served. Raises ConfigError with what, got, rule, nearest valid.

    batch: sequences at once. context: positions of each at the end, the prompt included (None: at most
    2048). prompt: positions before the first new token (None: half of the context). weights: a format of
    `memcalc list weights`. kv_cache: dtype of the cache (None: the activations'). cache: grow | tuple |
    static | paged | whole (None: the engine's). prefill_tokens: positions of one forward pass at most.
    shared_prefix: positions at the prompt's start that all sequences share (engine vllm).
    gpu_memory_utilization: of the device's memory that the engine takes (engine vllm). repeat_kv: keys
    and values are copied to every query head before the kernel, as transformers did up to 4.47.
    Checked by: unit/test_serving_setup.py.
    """

    batch: int = 1
    context: int | None = None
    prompt: int | None = None
    weights: str = "bf16"
    kv_cache: str | None = None
    engine: str = "transformers"
    attention: str = "flash"
    cache: str | None = None
    prefill_tokens: int | None = None
    shared_prefix: int = 0
    gpu_memory_utilization: float | None = None
    cuda_graphs: bool | None = None
    repeat_kv: bool = False
    num_layers: int | None = None

    def __post_init__(self) -> None:
        check_dim("batch", self.batch)
        for name in ("context", "prompt", "prefill_tokens", "num_layers"):
            if getattr(self, name) is not None:
                check_dim(name, getattr(self, name))
        check_dim("shared_prefix", self.shared_prefix, 0)
        check_choice("engine", self.engine, ENGINES)
        check_choice("attention", self.attention, ATTENTIONS)
        if self.kv_cache is not None:
            check_choice("kv_cache", self.kv_cache, KV_CACHES)
        if self.cache is not None:
            check_choice("cache", self.cache, CACHES)
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"gpu_memory_utilization: got {share}; rule: 0 < share <= 1")


class ResolvedServing(NamedTuple):
    """A ServingSetup with nothing left open, and the model it is for (truncated if asked)."""

    setup: ServingSetup
    config: ModelConfig
    engine: Engine
    batch: int
    context: int
    prompt: int
    cache: str
    kv_dtype: str
    compute_dtype: str
    prefill_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def item_bytes(self) -> float:
        """Bytes of one element of the cache."""
        if self.engine.name == "llama.cpp" and self.kv_dtype == "int8":
            return Q8_0_BYTES
        return ITEM_BYTES[self.kv_dtype]

    @property
    def generated(self) -> int:
        """New tokens of a sequence."""
        return self.context - self.prompt

    @property
    def cuda_graphs(self) -> bool:
        """Whether a decode step is replayed as one graph."""
        stated = self.setup.cuda_graphs
        return bool(self.engine.values["cuda_graphs"]) if stated is None else stated

    def sized(self, batch: int, context: int) -> ResolvedServing:
        """The same with other sizes; a prompt that was not stated, or is too long, is half of it."""
        stated = self.setup.prompt
        prompt = stated if stated is not None and stated < context else max(1, context // 2)
        return self._replace(batch=batch, context=context, prompt=prompt)


def resolve_serving(setup: ServingSetup, config: ModelConfig) -> ResolvedServing:
    """Fill defaults, truncate the model, check what only shows with model and engine at hand."""
    engine = load_engine(setup.engine)
    notes = list(config.notes)
    if setup.num_layers is not None:
        from memcalc.inputs.training import truncate

        config, said = truncate(config, setup.num_layers)
        notes += said
    context = setup.context or min(2048, config.max_position_embeddings)
    _check_context(context, setup, config, notes)
    prompt = setup.prompt if setup.prompt is not None else max(1, context // 2)
    compute = setup.weights if setup.weights in ("fp32", "fp16") else "bf16"
    kv_dtype = setup.kv_cache or ("fp16" if setup.engine == "llama.cpp" else compute)
    valid = CACHED_IN.get(setup.engine, (compute,))
    if setup.kv_cache is not None and kv_dtype not in valid:
        raise NotInThisVersionError(
            f"kv_cache: got {kv_dtype} on engine {setup.engine} with activations in {compute}: not in "
            f"this version; valid: {', '.join(valid)}"
        )
    cache = setup.cache or engine.caches[0]
    if cache not in engine.caches:
        raise ConfigError(
            f"cache: got {cache} on engine {engine.name}; valid: {', '.join(engine.caches)}"
        )
    _check_engine(setup, prompt)
    limit = setup.prefill_tokens or int(engine.values["prefill_tokens"])
    return ResolvedServing(
        setup, config, engine, setup.batch, context, prompt, cache, kv_dtype, compute, limit,
        tuple(notes),
    )  # fmt: skip


def _check_context(
    context: int, setup: ServingSetup, config: ModelConfig, notes: list[str]
) -> None:
    if context < 2:
        raise ConfigError(f"context: got {context}; rule: a prompt and a new token, at least 2")
    if setup.batch * context > _MAX_TOKENS:
        raise ConfigError(
            f"batch x context: got {setup.batch} x {context} positions; rule: at most 2^40"
        )
    if setup.prompt is not None and setup.prompt >= context:
        raise ConfigError(
            f"prompt: got {setup.prompt}; rule: below the context of {context}; nearest valid: "
            f"{context - 1}"
        )
    limit = config.max_position_embeddings
    if context <= limit:
        return
    if config.position_embedding == "learned":
        raise ConfigError(
            f"context: got {context}; rule: at most {limit}, the learned positions of {config.name}"
        )
    notes.append(f"context {context} is beyond the {limit} positions {config.name} was made for")


def _check_engine(setup: ServingSetup, prompt: int) -> None:
    """What only engine vllm has."""
    if setup.engine != "vllm":
        for name in ("shared_prefix", "gpu_memory_utilization", "prefill_tokens"):
            if getattr(setup, name):
                raise ConfigError(
                    f"{name}: got {getattr(setup, name)} on engine {setup.engine}; valid: "
                    "--engine vllm"
                )
    if setup.shared_prefix > prompt:
        raise ConfigError(
            f"shared_prefix: got {setup.shared_prefix}; rule: at most the prompt of {prompt}"
        )
