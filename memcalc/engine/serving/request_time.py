"""Time of a batch of requests: the prompts, then one token a step of every sequence.

Prompts: in one pass of all sequences, or in passes of at most `prefill_tokens` positions, several short
prompts together or a long one in pieces. A token's time is that of the step in the middle of the
generation: nothing in a step grows faster than with the number of keys.
Stages of a pipeline (vLLM) work on as many micro-batches of requests as there are stages: a token takes the
longer of the way of one micro-batch through all stages and of all micro-batches through the slowest.
llama.cpp's devices take turns in a step and overlap in a prompt of several pieces, the host's layers apart:
the GPU multiplies a prompt there, its weights copied for each piece (of 32 positions and more).
With a draft a step is its K passes, and one of the model over K + 1 positions; it makes
(1 - a^(K+1)) / (1 - a) tokens (Leviathan et al. 2023, arXiv:2211.17192).
Checked by: unit/test_serving_time.py, unit/test_serving_drafts.py, unit/test_serving_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from memcalc.engine.serving.forward import Forward
from memcalc.engine.serving.pass_time import PassTime, Pricing, pass_time
from memcalc.engine.serving.serving_layout import Place
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.timing.topology import Group, exchange_s

#: Rows from which ggml copies weights to the GPU rather than multiply on the host (ggml-cuda.cu, offload_op).
OFFLOADED_ROWS: Final = 32
_STREAM_BYTES: Final = {"vllm": 4, "llama.cpp": 4}  # of an element: x and residual in 16 bits; fp32


#: The forward pass of what one device runs.
Forwards = Callable[[ServingPlan], Forward]


class StepTime(NamedTuple):
    """Seconds of one step or pass over all devices; parts: of each that works, in order."""

    seconds: float
    parts: tuple[PassTime, ...]
    hops_s: float = 0.0

    @property
    def kernels_s(self) -> float:
        return sum(part.kernels_s for part in self.parts)

    @property
    def exchanges_s(self) -> float:
        return self.hops_s + sum(part.exchanges_s for part in self.parts)

    @property
    def launch_s(self) -> float:
        return sum(part.launch_s for part in self.parts)

    @property
    def kernels(self) -> int:
        return sum(part.kernels for part in self.parts)

    @property
    def moved_bytes(self) -> float:
        return sum(part.moved_bytes for part in self.parts)

    @property
    def bound(self) -> str:
        """What the slowest device waits for."""
        return max(self.parts, key=lambda part: part.seconds).bound


class Clock(NamedTuple):
    """What a plan's passes are priced with, for each place in order, and bytes of weights it holds.

    copy_bytes_per_s: of weights from the host to the GPU. offloads: pricing of the GPU, for prompts over
    layers that lie on the host. draft: the same of the model that proposes tokens.
    """

    plan: ServingPlan
    pricings: tuple[Pricing, ...]
    copy_bytes_per_s: float = 0.0
    held: tuple[int, ...] = ()
    draft: Clock | None = None
    offloads: Pricing | None = None


class RequestTime(NamedTuple):
    """Seconds until the first token of all sequences, of a later token, and tokens/s.

    tokens_per_s: new tokens of all sequences over the whole request, prompts included;
    decode_tokens_per_s: over the time of the steps alone. step: the step that is priced, of one token or
    of several where they are drafted (draft_s of it by the draft). request_s: of all.
    """

    prefill_s: float
    time_per_output_token_s: float
    request_s: float
    tokens_per_s: float
    decode_tokens_per_s: float
    step: StepTime
    draft_s: float = 0.0


def request_time(clock: Clock) -> RequestTime:
    """Time of a batch of requests that start together."""
    plan = clock.plan
    resolved = plan.resolved
    prefill = prompts_s(clock) + (prompts_s(clock.draft) if clock.draft else 0.0)
    steps = resolved.generated - 1
    past = min(resolved.prompt + max(1, steps) // 2, resolved.context - 1)
    step = step_time(clock, past)
    drafted = resolved.drafted * step_time(clock.draft, past).seconds if clock.draft else 0.0
    token = (step.seconds + drafted) / resolved.tokens_a_step
    whole = prefill + steps * token
    return RequestTime(
        prefill_s=prefill,
        time_per_output_token_s=token,
        request_s=whole,
        tokens_per_s=resolved.batch * resolved.generated / whole,
        decode_tokens_per_s=resolved.batch / token,
        step=step,
        draft_s=drafted,
    )


def step_time(clock: Clock, past: int) -> StepTime:
    """One step of all sequences over so many positions each."""
    plan = clock.plan
    waves = 1
    batch = plan.sequences
    if plan.resolved.engine.name == "vllm" and plan.layout.pp > 1:
        waves = min(plan.layout.pp, batch)
        batch = -(-batch // waves)

    def forward(own: ServingPlan) -> Forward:
        if own.resolved.drafted:
            return own.verify(past, timed=True)
        return own.decode(past, timed=True, batch=batch)

    parts, hops = _parts(clock, forward, batch)
    each = [part.seconds for part in parts]
    return StepTime(max(sum(each) + hops, waves * max(each)), parts, hops)


def _parts(clock: Clock, forward: Forwards, rows: int) -> tuple[tuple[PassTime, ...], float]:
    """Each device's share of a pass of so many rows, and the seconds of handing the stream on."""
    parts = []
    for number, (place, how) in enumerate(zip(clock.plan.places, clock.pricings, strict=True)):
        one = forward(clock.plan.on(place))
        parts.append(_part(clock, number, place, pass_time(one, how), one))
    stream = _STREAM_BYTES.get(clock.plan.resolved.engine.name, 2)
    hidden = rows * clock.plan.config.hidden_size * stream
    return tuple(parts), (len(parts) - 1) * _hop_s(clock, hidden)


def _part(clock: Clock, number: int, place: Place, own: PassTime, one: Forward) -> PassTime:
    """A device's share; of the host's layers in a prompt, what the GPU takes with their weights copied."""
    rows = one.values["b"] * one.values["s"]
    if not place.host or clock.offloads is None or rows < OFFLOADED_ROWS:
        return own
    found = pass_time(one, clock.offloads)
    copied = clock.held[number] / clock.copy_bytes_per_s
    return found._replace(exchanges_s=found.exchanges_s + copied)


def _hop_s(clock: Clock, size: float) -> float:
    """Seconds of handing a stream to the next device."""
    wires, layout = clock.pricings[0].wires, clock.plan.layout
    stride = layout.tp * layout.copies
    local = 2 if 2 * stride <= wires.domain else 1
    return float(exchange_s("send", size, Group(2, local, 2 // local), wires))


def prompts_s(clock: Clock) -> float:
    """Seconds of all prompts; a shared prefix is the first sequence's alone."""
    total, last = 0.0, StepTime(0.0, ())
    overlaps = len(clock.plan.gpu_places) > 1 and not clock.offloads
    for times, batch, new, past in _prompts(clock.plan):

        def forward(
            own: ServingPlan, batch: int = batch, new: int = new, past: int = past
        ) -> Forward:
            return own.prefill(batch, new, past, timed=True)

        parts, hops = _parts(clock, forward, batch * new)
        each = [part.seconds for part in parts]
        last = StepTime(sum(each) + hops, parts, hops)
        total += times * (max(each) if overlaps else last.seconds)
    if overlaps:
        total += last.seconds - max(part.seconds for part in last.parts)
    return total


#: (how often, sequences, new positions, positions before) of a pass over prompts.
Passes = Iterator[tuple[int, int, int, int]]


def _prompts(plan: ServingPlan) -> Passes:
    resolved = plan.resolved
    batch, prompt, limit = plan.sequences, resolved.prompt, resolved.prefill_tokens
    shared = resolved.setup.shared_prefix
    if not limit:
        yield 1, batch, prompt, 0
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
        yield full, together, new, past
        if rest:
            yield 1, rest, new, past
        return
    for begin in range(0, new, limit):
        yield batch, 1, min(limit, new - begin), past + begin
