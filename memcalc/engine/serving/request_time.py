"""Time of a batch of requests: the prompts, then one token a step of every sequence.

Prompts: in one pass of all sequences, or in passes of at most `prefill_tokens` positions, several short
prompts together or a long one in pieces. A token's time is that of the step in the middle of the
generation: nothing in a step grows faster than with the number of keys.
Checked by: unit/test_serving_time.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from memcalc.engine.serving.forward import Forward
from memcalc.engine.serving.pass_time import PassTime, Pricing, pass_time
from memcalc.engine.serving.serving_plan import ServingPlan

#: (how often, pass)
Passes = Iterator[tuple[int, Forward]]


class RequestTime(NamedTuple):
    """Seconds until the first token of all sequences, of a later token, and tokens/s.

    tokens_per_s: new tokens of all sequences over the whole request, prompts included;
    decode_tokens_per_s: over the time of the steps alone. step: the step that is priced. request_s: of all.
    """

    prefill_s: float
    time_per_output_token_s: float
    request_s: float
    tokens_per_s: float
    decode_tokens_per_s: float
    step: PassTime
    prompt: PassTime


def request_time(plan: ServingPlan, how: Pricing) -> RequestTime:
    """Time of a batch of requests that start together."""
    resolved = plan.resolved
    passes = [(times, pass_time(one, how)) for times, one in _prompts(plan)]
    prefill = sum(times * one.seconds for times, one in passes)
    steps = resolved.generated - 1
    middle = resolved.prompt + max(1, steps) // 2
    step = pass_time(plan.decode(min(middle, resolved.context - 1), timed=True), how)
    whole = prefill + steps * step.seconds
    return RequestTime(
        prefill_s=prefill,
        time_per_output_token_s=step.seconds,
        request_s=whole,
        tokens_per_s=resolved.batch * resolved.generated / whole,
        decode_tokens_per_s=resolved.batch / step.seconds,
        step=step,
        prompt=passes[-1][1],
    )


def _prompts(plan: ServingPlan) -> Passes:
    """(times, pass) of the passes over all prompts; a shared prefix is the first sequence's alone."""
    resolved = plan.resolved
    batch, prompt, limit = resolved.batch, resolved.prompt, resolved.prefill_tokens
    shared = resolved.setup.shared_prefix
    if not limit:
        yield 1, plan.prefill(batch, prompt, timed=True)
    elif shared and batch > 1:
        yield from _over(plan, 1, prompt, 0)
        rest = max(1, prompt - shared)
        yield from _over(plan, batch - 1, rest, prompt - rest)
    else:
        yield from _over(plan, batch, prompt, 0)


def _over(plan: ServingPlan, batch: int, new: int, past: int) -> Passes:
    """Passes over `new` positions of so many prompts: several together, or one prompt in pieces."""
    limit = plan.resolved.prefill_tokens
    together = min(limit // new, batch)
    if together:
        full, rest = divmod(batch, together)
        yield full, plan.prefill(together, new, past, timed=True)
        if rest:
            yield 1, plan.prefill(rest, new, past, timed=True)
        return
    for begin in range(0, new, limit):
        yield batch, plan.prefill(1, min(limit, new - begin), past + begin, timed=True)
