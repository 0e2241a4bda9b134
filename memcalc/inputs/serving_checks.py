"""Checks of a ServingSetup that need a few lines each: numbers, the context, what only one engine has.

Every error is one line that names the nearest valid value. Checked by: unit/test_serving_setup.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig, check_dim

if TYPE_CHECKING:
    from memcalc.inputs.serving import ServingSetup

_MAX_TOKENS: Final = 1 << 40
_MOST_DRAFTED: Final = 64
#: What only one engine has, and whose it is.
_OWN: Final = {
    "shared_prefix": "vllm", "gpu_memory_utilization": "vllm", "prefill_tokens": "vllm",
    "gpu_layers": "llama.cpp",
}  # fmt: skip


def check_numbers(setup: ServingSetup) -> None:
    """Shares, probabilities and counts that have a range. Raises ConfigError."""
    share = setup.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"gpu_memory_utilization: got {share}; rule: 0 < share <= 1")
    if not 1 <= setup.imbalance <= 1e6:
        raise ConfigError(f"imbalance: got {setup.imbalance}; rule: 1 or more, the mean is 1")
    if setup.draft is None:
        for name in ("draft_tokens", "acceptance"):
            if getattr(setup, name) is not None:
                raise ConfigError(f"{name}: got {getattr(setup, name)} without a draft; valid: "
                                  "--draft MODEL, ngram or self:N")  # fmt: skip
    if setup.draft_tokens is not None:
        check_dim("draft_tokens", setup.draft_tokens)
        if setup.draft_tokens > _MOST_DRAFTED:
            raise ConfigError(
                f"draft_tokens: got {setup.draft_tokens}; rule: 1 to {_MOST_DRAFTED} a step"
            )
    if setup.acceptance is not None and not 0 <= setup.acceptance <= 1:
        raise ConfigError(f"acceptance: got {setup.acceptance}; rule: a probability, 0 to 1")
    layers = setup.gpu_layers
    if isinstance(layers, str) and layers != "auto":
        raise ConfigError(f"gpu_layers: got {layers!r}; rule: a number of layers, or auto")
    if isinstance(layers, int):
        check_dim("gpu_layers", layers, 0)
    if setup.host_memory_bytes is not None and setup.host_memory_bytes < 1:
        raise ConfigError(f"host_memory: got {setup.host_memory_bytes}; rule: above 0")


def check_context(context: int, setup: ServingSetup, config: ModelConfig, notes: list[str]) -> None:
    """A prompt and a new token within the model's positions; beyond them, where it can be, a note."""
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


def check_engine(setup: ServingSetup, prompt: int) -> None:
    """What only one engine has, and what a device or a batch rules out. Raises ConfigError."""
    for name, engine in _OWN.items():
        if getattr(setup, name) not in (None, 0) and setup.engine != engine:
            raise ConfigError(
                f"{name}: got {getattr(setup, name)} on engine {setup.engine}; valid: --engine {engine}"
            )
    if setup.gpu_layers == 0 and setup.engine != "llama.cpp":
        raise ConfigError(f"gpu_layers: got 0 on engine {setup.engine}; valid: --engine llama.cpp")
    if setup.shared_prefix > prompt:
        raise ConfigError(
            f"shared_prefix: got {setup.shared_prefix}; rule: at most the prompt of {prompt}"
        )
    if setup.device == "cpu":
        if setup.engine == "vllm":
            raise ConfigError("device: got cpu on engine vllm; valid: --engine llama.cpp")
        if setup.gpu_layers is not None:
            raise ConfigError(f"gpu_layers: got {setup.gpu_layers} with device cpu; valid: a GPU")
    if setup.draft is not None and setup.engine == "transformers" and setup.batch > 1:
        raise ConfigError(
            f"batch: got {setup.batch} with a draft on engine transformers; rule: assisted generation "
            "is of one sequence; valid: 1"
        )
