"""Every dense family of the profiles, small: two blocks with the family's own options.

As a program, `python -m tests.oracle.support.compiled_families` holds each against the compiler's CUDA
programs in bf16 and under bf16 autocast, and prints what differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.engine.structure import architecture_key
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import profile_names
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.compiled import differences, meta_facts

HEADS, WIDTH = 4, 32


def shrunk(config: ModelConfig) -> ModelConfig:
    """A model with the same options and small sizes, ready for a comparison."""
    grouped = 1 if config.num_key_value_heads == 1 else HEADS // 2
    whole = config.num_key_value_heads == config.num_attention_heads
    partial = config.rotary_dim is not None and config.rotary_dim < config.head_dim
    narrow = (config.word_embed_proj_dim or config.hidden_size) != config.hidden_size
    changed: dict[str, Any] = {
        "hidden_size": HEADS * WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if whole else grouped,
        "head_dim": WIDTH,
        "intermediate_size": 384,
        "vocab_size": 512,
        "num_hidden_layers": 2,
        "layer_types": config.layer_types[:2],
        "max_position_embeddings": 512,
        "num_position_rows": 512 if config.num_position_rows else 0,
        "rotary_dim": WIDTH // 2 if partial else None,
        "word_embed_proj_dim": HEADS * WIDTH // 2 if narrow else None,
        "sliding_window": 64 if config.sliding_window else None,
    }
    return replace(config, **changed)


def compiled(config: ModelConfig, **setup: Any) -> Plan:
    """The plan of a small model with compiled blocks, as a tracker sees it."""
    stated = {"seq_len": 128, "micro_batch_size": 2, "compile": True, **setup}
    return plan_of(config, TrainingSetup(**stated), {"watched": True})


def dense_shapes() -> dict[str, ModelConfig]:
    """One small model for each distinct set of options, under the first profile that has it."""
    found: dict[str, ModelConfig] = {}
    seen: set[tuple[Any, ...]] = set()
    for name in profile_names("models"):
        config = load_model(name)
        if config.moe is not None or config.mla is not None or config.is_encoder:
            continue
        small = shrunk(config)
        sizes = (small.num_key_value_heads, small.rotary_dim, small.word_embed_proj_dim)
        options = (architecture_key(small), sizes, small.layer_types)
        if options not in seen:
            seen.add(options)
            found[name] = small
    return found


def main() -> None:
    """Compare every shape; those the engine refuses are named."""
    for name, config in dense_shapes().items():
        for precision in ("bf16", "bf16-mixed"):
            try:
                plan = compiled(config, precision=precision)
            except ConfigError as refusal:
                print(f"{name} ({config.model_type}): {refusal}")
                break
            wrong = differences(plan, meta_facts(plan))
            print(f"{name} ({config.model_type}), {precision}: {wrong or 'equal'}", flush=True)


if __name__ == "__main__":
    main()
