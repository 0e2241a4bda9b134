"""Random small generations for the CPU benchmark of decoding: drawn from a seed, the same ones each time.

The decoders are those of benchmarks/cpu/decoders.py, at sizes whose step takes milliseconds, with prompts,
batches and kinds of cache drawn beside them. No torch.
Checked by: tests/harness/test_decode_time.py.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from benchmarks.cpu.decoders import Drawn, drawn
from memcalc.engine.serving.generation import Generation

#: Prompt's tokens times hidden size squared times layers at most, so that a prefill is short.
_MOST_WORK = 3e9
#: (cache, attention kernel)
_CODES = (("grow", "flash"), ("grow", "eager"), ("whole", "flash"), ("static", "eager"))


class Asked(NamedTuple):
    """One drawn generation: a decoder, and what it generates."""

    decoder: Drawn
    batch: int
    prompt: int
    steps: int
    code: str
    attention: str
    precision: str  # fp32 | bf16

    @property
    def label(self) -> str:
        """A line a reader knows it by."""
        one = self.decoder
        return (
            f"{one.family} h={one.hidden_size} L={one.layers} a={one.heads}/{one.kv_heads} "
            f"V={one.vocab_size} b={self.batch} {self.prompt}+{self.steps} {self.precision} "
            f"{self.attention} {self.code}"
        )

    def generation(self) -> Generation:
        """The engine's description, with a CPU's kernels."""
        plan = self.decoder.plan(
            precision=self.precision, attention=self.attention, seq_len=self.prompt + self.steps
        )
        return Generation(plan.config, plan.kernels, self.batch, self.prompt, self.steps, self.code)


def draw(count: int, seed: int, steps: int = 16) -> list[Asked]:
    """`count` generations whose prompts are not too long to run."""
    rng = random.Random(f"cpu generations {seed}")
    found: list[Asked] = []
    while len(found) < count:
        one = drawn(rng)
        code, attention = rng.choice(_CODES)
        prompt, batch = rng.choice((16, 32, 64, 128, 256)), rng.choice((1, 1, 2, 4, 8))
        precision = rng.choice(("fp32", "bf16"))
        if batch * prompt * one.hidden_size**2 * one.layers <= _MOST_WORK:
            found.append(Asked(one, batch, prompt, steps, code, attention, precision))
    return found
