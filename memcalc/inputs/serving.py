"""ServingSetup: what a user states about serving a model, validated, in the contract's names.

Nothing here knows a byte. `resolve_serving` fills what was left open from the model and the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.engines import ENGINES, Engine, load_engine
from memcalc.inputs.model import ModelConfig, check_choice, check_dim
from memcalc.inputs.serving_checks import check_context, check_engine, check_numbers
from memcalc.inputs.training_names import ATTENTIONS

KV_CACHES: Final = ("bf16", "fp16", "fp8", "int8", "int4", "int2")
#: Bytes of a cached element as it is stored, scales apart.
ITEM_BYTES: Final = {
    "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "int2": 0.25,
}  # fmt: skip
#: llama.cpp's q8_0 and q4_0: blocks of 32 with a scale of two bytes (ggml/src/ggml-common.h).
GGML_BYTES: Final = {"int8": 34 / 32, "int4": 18 / 32}
#: transformers' integer caches: groups of 64 with a scale and a zero point of two bytes each.
GROUPED_BYTES: Final = {"int8": 68 / 64, "int4": 36 / 64, "int2": 20 / 64}
#: Positions at a sequence's end that transformers' integer caches keep as they are, at most.
RESIDUAL: Final = 128
#: What an engine can cache in, where that is not the activations' dtype alone.
CACHED_IN: Final = {
    "transformers": ("fp8", "int8", "int4", "int2"),
    "vllm": ("bf16", "fp16", "fp8"),
    "llama.cpp": ("bf16", "fp16", "int8", "int4"),
}
CACHES: Final = ("grow", "tuple", "static", "paged", "whole")
DEVICES: Final = ("gpu", "cpu")
#: A draft that has no weights: words of the prompt that came after the last ones.
NGRAM: Final = "ngram"
DRAFT_TOKENS, ACCEPTANCE = 5, 0.7


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
    draft: a model that proposes draft_tokens tokens a step, each taken with probability acceptance; ngram
    (no model) or self:N (the model's own first N layers). imbalance: token rows of the busiest rank's
    experts over the mean. device: gpu or cpu. gpu_layers: layers on the GPU, the last ones (llama.cpp's
    -ngl); auto: as many as fit; None: all, and the head. host_memory_bytes, host_bytes_per_s: the host's.
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
    draft: str | None = None
    draft_tokens: int | None = None
    acceptance: float | None = None
    imbalance: float = 1.0
    device: str = "gpu"
    gpu_layers: int | str | None = None
    host_memory_bytes: int | None = None
    host_bytes_per_s: float | None = None

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
        check_choice("device", self.device, DEVICES)
        check_numbers(self)


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
        """Bytes of one element of the cache, scales included."""
        own = {"llama.cpp": GGML_BYTES, "transformers": GROUPED_BYTES}.get(self.engine.name, {})
        return own.get(self.kv_dtype, ITEM_BYTES[self.kv_dtype])

    @property
    def drafted(self) -> int:
        """Tokens that a draft proposes a step; 0 without one."""
        if self.setup.draft is None:
            return 0
        return self.setup.draft_tokens or DRAFT_TOKENS

    @property
    def acceptance(self) -> float:
        """Probability that a drafted token is taken."""
        return ACCEPTANCE if self.setup.acceptance is None else self.setup.acceptance

    @property
    def tokens_a_step(self) -> float:
        """Expected new tokens of a sequence in a step: (1 - a^(K+1)) / (1 - a), K drafted tokens.

        Source: Leviathan et al. 2023 (arXiv:2211.17192), eq. 1.
        """
        a, k = self.acceptance, self.drafted
        return float(k + 1) if a == 1 else (1 - a ** (k + 1)) / (1 - a)

    @property
    def generated(self) -> int:
        """New tokens of a sequence."""
        return self.context - self.prompt

    @property
    def cuda_graphs(self) -> bool:
        """Whether a decode step is replayed as one graph; nothing is on a CPU."""
        if self.setup.device == "cpu":
            return False
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
    check_context(context, setup, config, notes)
    prompt = setup.prompt if setup.prompt is not None else max(1, context // 2)
    compute = setup.weights if setup.weights in ("fp32", "fp16") else "bf16"
    kv_dtype = setup.kv_cache or ("fp16" if setup.engine == "llama.cpp" else compute)
    valid = CACHED_IN[setup.engine]
    valid = valid if compute in valid else (compute, *valid)
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
    check_engine(setup, prompt)
    if setup.engine == "transformers" and kv_dtype in ("fp8", *GROUPED_BYTES):
        cache = _quantised_cache(setup, config, kv_dtype)
    limit = setup.prefill_tokens or int(engine.values["prefill_tokens"])
    return ResolvedServing(
        setup, config, engine, setup.batch, context, prompt, cache, kv_dtype, compute, limit,
        tuple(notes),
    )  # fmt: skip


def _quantised_cache(setup: ServingSetup, config: ModelConfig, kv_dtype: str) -> str:
    """Which of transformers' QuantizedCache layers holds the cache: fp8, or grouped integers."""
    if setup.cache not in (None, "grow"):
        raise ConfigError(f"cache: got {setup.cache} in {kv_dtype}; valid: grow")
    if "sliding" in config.layer_types:
        raise ConfigError(
            f"kv_cache: got {kv_dtype} for {config.name} with sliding windows; rule: transformers' "
            "QuantizedCache is for full attention alone; valid: bf16"
        )
    return "fp8" if kv_dtype == "fp8" else "grouped"
