"""Generation by the plain decoder (stack torch): a prompt's pass, then greedy steps over a cache.

What `memcalc verify --decode` holds a run against: the same traced blocks as in training, with gradients
off, and nothing of a serving engine. Peaks are of the first pass, of the step after it and of the last;
no step between them holds more, for a window's tensors are largest in the first, all others in the last.
Checked by: oracle/test_harness_decode.py, event for event against the harness's decoder.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.kernels import Kernels
from memcalc.engine.serving.cache_size import cache_bytes
from memcalc.engine.serving.forward import Forward, Positions, forward_of
from memcalc.engine.serving.memory import Peak, peak_of
from memcalc.engine.serving.pass_time import PassTime, Pricing, pass_time
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.engine.timing.topology import Wires
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.rates import Rates


class Generation(NamedTuple):
    """What runs: b prompts of `prompt` positions, `steps` passes of one new position each after them.

    code: of the cache, grow | static | whole (engine/blocks/cache.py).
    """

    config: ModelConfig
    kernels: Kernels
    batch: int
    prompt: int
    steps: int
    code: str = "grow"

    @property
    def context(self) -> int:
        """Positions of a sequence that the cache holds at the end."""
        return self.prompt + self.steps

    @property
    def stands(self) -> bool:
        """Whether the cache is made beforehand."""
        return self.code != "grow"

    def prefill(self) -> Forward:
        """The pass over the prompts."""
        return self._pass(self.prompt, 0, None)

    def step(self, past: int) -> Forward:
        """A step over so many positions; the first finds a window's tensors as the prompts left them."""
        return self._pass(1, past, past if past == self.prompt else None)

    def _pass(self, new: int, past: int, held: int | None) -> Forward:
        capacity = {"grow": None, "static": self.context, "whole": past + new}[self.code]
        at = Positions(self.batch, new, past, capacity, held)
        return forward_of(self.config, self.kernels, at, self.code)


class GenerationMemory(NamedTuple):
    """Requested bytes. cache_bytes: at the end; prompt_cache_bytes: after the prompts' pass.

    phases: the most that is alive in prefill and in decode.
    """

    weights_bytes: int
    prompt_cache_bytes: int
    cache_bytes: int
    phases: dict[str, Peak]

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at any time."""
        return max(one.bytes for one in self.phases.values())


def generation_memory(asked: Generation) -> GenerationMemory:
    """Bytes of weights, cache and passes of a generation."""
    first = asked.prefill()
    weights = sum(
        bytes_of_held(leaf, first.values) for leaf in all_leaves(first.structure, first.runs)
    )
    last = asked.step(asked.context - 1)
    held, whole = cache_bytes(first), cache_bytes(last)
    if asked.stands:
        held = whole = _standing_bytes(asked, last)
    phases = {"prefill": _peak("prefill", first, weights, held if asked.stands else 0)}
    for past in dict.fromkeys((asked.prompt, asked.context - 1)):
        before = held if past == asked.prompt else cache_bytes(asked.step(past - 1))
        one = _peak("decode", asked.step(past), weights, whole if asked.stands else before)
        known = phases.get("decode")
        phases["decode"] = one if known is None or one.bytes > known.bytes else known
    return GenerationMemory(weights, held, whole, phases)


def _peak(phase: str, forward: Forward, weights: int, cache: int) -> Peak:
    return peak_of(phase, forward, weights + cache, cache)


def _standing_bytes(asked: Generation, last: Forward) -> int:
    """Bytes of a cache of the whole context, of which `last` reads all."""
    return cache_bytes(last)


class GenerationTime(NamedTuple):
    """Seconds of the prompts' pass and of a step in the middle of the generation, by the calibration."""

    prefill: PassTime
    step: PassTime


def generation_time(asked: Generation, rates: Rates, wires: Wires) -> GenerationTime:
    """Time of a generation's passes, kernel by kernel."""
    rates = rates.generating or rates
    item = ITEMSIZE[asked.kernels.compute_dtype]
    how = Pricing(rates, wires, {}, "dense", rates.launch_s, False, float(item), 1)
    middle = asked.prompt + (asked.steps - 1) // 2
    prompt, step = rates.pass_residuals
    return GenerationTime(
        _times(pass_time(asked.prefill(), how), prompt),
        _times(pass_time(asked.step(middle), how), step),
    )


def _times(one: PassTime, residual: float) -> PassTime:
    """A pass whose kernels take so many times what they were timed to take one by one."""
    kernels = ("kernels_s", "weights_s", "attention_s", "cache_s")
    return one._replace(**{name: residual * getattr(one, name) for name in kernels})
