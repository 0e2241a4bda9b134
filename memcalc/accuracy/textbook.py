"""The closed forms of papers and blog posts that one would use without memcalc: the report's baseline.

Nothing of memcalc's own description is in them but a model's parameters, which a user reads off its card.
Letters: s tokens, b sequences of a micro-batch, h hidden, a heads, v vocabulary, t tensor-parallel ranks.
Memory: 16 bytes a parameter, states divided as ZeRO divides them (Rajbhandari et al. 2020,
arXiv:1910.02054, section 3.1), and what a layer keeps, 34 s b h, with eager attention 5 a s^2 b more,
embedding and head beside (Korthikanti et al. 2022, arXiv:2205.05198, sections 4.1 to 5).
Time: 6 FLOPs a parameter and token (Kaplan et al. 2020, arXiv:2001.08361) at 40 % of the dense peak.
Serving: 2 bytes a parameter, keys and values of every position, both read for each token.
Checked by: unit/test_report_accuracy_textbook.py (figures of the papers).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.inputs.hardware import Gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup

#: Share of the dense peak that a step is taken to reach.
UTILISATION: Final = 0.40
#: Bytes of a parameter, of its gradient, and of what the optimizer keeps of it with two moments.
_WIDE: Final = (4.0, 4.0, 8.0)
_NARROW: Final = (2.0, 2.0, 4.0)
_MIXED: Final = (2.0, 2.0, 12.0)
_OF_PRECISION: Final = {"fp32": _WIDE, "tf32": _WIDE, "bf16": _NARROW, "fp16": _NARROW}
#: Moments an optimizer keeps; the rest keep two.
_MOMENTS: Final = {"sgd": 0, "none": 0, "adafactor": 0, "momentum": 1, "muon": 1, "lion": 1}


class Ways(NamedTuple):
    """How ranks divide a step. shard: ranks that states are cut over, by the stage of ZeRO."""

    stage: int = 0
    shard: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    sp: bool = False


ALONE: Final = Ways()


def parameters(config: ModelConfig) -> int:
    """A model's parameters by its width alone."""
    return by_width(config.num_hidden_layers, config.hidden_size, config.vocab_size)


def by_width(layers: int, h: int, v: int) -> int:
    """12 layers h^2 + v h (Kaplan et al. 2020, table 1, and the embedding)."""
    return 12 * layers * h * h + v * h


def state_bytes(
    count: float, setup: TrainingSetup, ways: Ways = ALONE, trained: float | None = None
) -> float:
    """Parameters, gradients and optimizer of a rank; 16 bytes a parameter where nothing is divided.

    count: parameters of the model; trained: those that train, where not all do. 8 bytes where every state
    is in 16 bit; 4 (2) less for a moment that the optimizer does not keep.
    """
    weight, gradient, optimizer = _OF_PRECISION.get(setup.precision, _MIXED)
    moment = 2.0 if weight == 2 and optimizer == 4 else 4.0
    optimizer -= moment * (2 - _MOMENTS.get(setup.optimizer, 2))
    if setup.optimizer == "adamw-8bit":
        optimizer = 2.0 + (4.0 if weight == 2 and optimizer > 8 else 0.0)
    stage, shard = ways.stage, ways.shard
    a_trained = gradient / (shard if stage >= 2 else 1) + optimizer / (shard if stage >= 1 else 1)
    held = count * weight / (shard if stage >= 3 else 1)
    return (held + (count if trained is None else trained) * a_trained) / (ways.tp * ways.pp)


def saved_bytes(config: ModelConfig, setup: TrainingSetup, ways: Ways = ALONE) -> float:
    """Activations kept for backward: 34 s b h a layer (5 a s^2 b more, eager), and of the head.

    Of a pipeline the first stage, which holds as many layers' worth as there are. Doubled in fp32.
    """
    s, b = (setup.seq_len or config.max_position_embeddings) / ways.cp, setup.micro_batch_size or 1
    sbh = s * b * config.hidden_size
    scores = 5 * config.num_attention_heads * s * s * b if setup.attention == "eager" else 0.0
    spread = ways.tp if ways.sp else 1
    layer = sbh * (10 / spread + 24 / ways.tp) + scores / ways.tp
    if setup.recompute == "selective":
        layer -= scores / ways.tp
    layers = config.num_hidden_layers
    again = layers if setup.recompute_layers is None else min(layers, setup.recompute_layers)
    if setup.recompute != "full":
        again = 0
    total = (layers - again) * layer + again * 2 * sbh / spread
    if ways.pp == 1:
        total += 4 * sbh * (1 + config.vocab_size / config.hidden_size) / ways.tp
    wide = 2 if setup.precision in ("fp32", "tf32") else 1
    return total * wide


def peak_bytes(
    config: ModelConfig, setup: TrainingSetup, count: float, ways: Ways = ALONE,
    trained: float | None = None,
) -> float:  # fmt: skip
    """States and activations of a rank."""
    return state_bytes(count, setup, ways, trained) + saved_bytes(config, setup, ways)


def step_seconds(count: float, tokens: float, peak_flops_per_s: float) -> float:
    """6 FLOPs a parameter and token at UTILISATION of a GPU's peak; tokens: of one GPU."""
    return 6 * count * tokens / (UTILISATION * peak_flops_per_s)


def cache_bytes(config: ModelConfig, tokens: float, batch: float) -> float:
    """2 (keys and values) x 2 bytes x layers x key/value heads x head width x positions x sequences."""
    return (
        4.0
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.head_dim
        * tokens
        * batch
    )


def serving_bytes(
    config: ModelConfig, count: float, tokens: float, batch: float, bytes_a_weight: float = 2.0
) -> float:
    """Weights and cache; tokens: positions of a sequence at the end."""
    return count * bytes_a_weight + cache_bytes(config, tokens, batch)


def decode_tokens_per_s(
    config: ModelConfig, read_bytes: float, tokens: float, batch: float, gpu: Gpu
) -> float:
    """Tokens a second of a batch: each step reads the weights (read_bytes) and the cache once.

    tokens: positions of a sequence at the end, of which half are taken to be read on average.
    """
    moved = read_bytes + cache_bytes(config, tokens, batch)
    return batch * gpu.memory_bandwidth_bytes_per_s / moved
