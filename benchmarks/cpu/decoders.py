"""Random small decoders for the CPU benchmark: drawn from a seed, the same ones every time. No torch.

Shapes of GPT-2 (LayerNorm, learned positions, GELU, biases) and of Llama (RMSNorm, rotation, SwiGLU,
grouped heads). A draw whose step would execute more than MOST_FLOPS, attention over the full square,
is passed over, so that twenty of them take a few minutes on one core.
Checked by: tests/harness/test_cpu_time.py.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from memcalc.engine.flops import step_flops
from memcalc.engine.plan import Plan
from memcalc.harness.local import local_plan
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup

MOST_FLOPS = 2e11
PRECISIONS = ("fp32", "bf16-mixed")


class Drawn(NamedTuple):
    """One decoder and its step."""

    family: str  # gpt2 | llama
    hidden_size: int
    heads: int
    kv_heads: int
    intermediate_size: int
    layers: int
    vocab_size: int
    seq_len: int
    micro_batch_size: int
    precision: str
    optimizer_impl: str
    tied: bool

    @property
    def label(self) -> str:
        """A line a reader knows it by."""
        return (
            f"{self.family} h={self.hidden_size} L={self.layers} a={self.heads}/{self.kv_heads} "
            f"V={self.vocab_size} {self.micro_batch_size}x{self.seq_len} {self.precision} "
            f"{self.optimizer_impl}"
        )

    def plan(self, **changed: Any) -> Plan:
        """The engine's plan, with a CPU's kernels; changed: fields of the training setup."""
        stated = {
            "seq_len": self.seq_len, "micro_batch_size": self.micro_batch_size,
            "precision": self.precision, "optimizer_impl": self.optimizer_impl,
        }  # fmt: skip
        setup = TrainingSetup(**{**stated, **changed})
        return local_plan(model_from_config(self._config(), "drawn"), setup, {}, "cpu")

    def _config(self) -> dict[str, object]:
        if self.family == "gpt2":
            return {
                "model_type": "gpt2", "n_embd": self.hidden_size, "n_layer": self.layers,
                "n_head": self.heads, "n_positions": 512, "vocab_size": self.vocab_size,
                "n_inner": self.intermediate_size, "tie_word_embeddings": self.tied,
            }  # fmt: skip
        return {
            "model_type": "llama", "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size, "max_position_embeddings": 512,
            "tie_word_embeddings": self.tied,
        }  # fmt: skip


def drawn(rng: random.Random) -> Drawn:
    """One draw: widths 128 to 1024, 2 to 6 layers, sequences of 64 to 512, micro-batches of 1 to 4."""
    family = rng.choice(("gpt2", "llama"))
    hidden = rng.choice(range(128, 1025, 64))
    head_dim = 64 if hidden % 128 else rng.choice((64, 64, 128))
    heads = hidden // head_dim
    sharing = rng.choice([n for n in (1, 2, 4) if heads % n == 0])
    wide = rng.choice((2.5, 2.75, 3.5)) if family == "llama" else 4
    return Drawn(
        family=family,
        hidden_size=hidden,
        heads=heads,
        kv_heads=heads // sharing if family == "llama" else heads,
        intermediate_size=int(wide * hidden) // 32 * 32,
        layers=rng.randint(2, 6),
        vocab_size=rng.choice((1024, 2048, 4096, 8192)),
        seq_len=rng.choice(range(64, 513, 64)),
        micro_batch_size=rng.randint(1, 4),
        precision=rng.choice(PRECISIONS),
        optimizer_impl=rng.choice(("foreach", "fused")),
        tied=rng.random() < 0.5,
    )


def draw(count: int, seed: int) -> list[Drawn]:
    """`count` decoders that are not too long to run."""
    rng = random.Random(f"cpu decoders {seed}")
    found: list[Drawn] = []
    while len(found) < count:
        one = drawn(rng)
        if step_flops(one.plan()).executed <= MOST_FLOPS:
            found.append(one)
    return found
