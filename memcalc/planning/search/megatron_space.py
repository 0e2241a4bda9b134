"""Megatron's space: which cells, splits and ways to hold states there are for a model on so many GPUs.

    tp      divides heads, key/value heads, MLP width, GPUs      sp   with tp above 1: on, off
    cp      divides GPUs, twice into the sequence (ring)         pp   divides GPUs, at most the layers
    ep      divides the experts; etp 1 or tp                     vpp  2 and more, by the interleaved schedule
    micro-batch divides the batch of a replica                   dp   what is left of the GPUs
    recompute   none, full:1 to full (all k), selective by each set of modules named below
    states      zero 0 or 1 (distributed optimizer), over dp x cp or over each of its replicas (shard);
                gradients summed beside backward, parameters gathered beside forward (with zero 1)
    stages      blocks evenly, first chunks one more; or fewer on the first and the last stage, all others
                alike (--decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers)

vpp are the divisors above 1 of a stage's blocks (rounded up) that leave a block for each chunk. Not in it:
other cp methods, offload, fp8, uneven stages by hand; a plan of `estimate` may have them.
Checked by: unit/test_search_space.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from memcalc.engine.make_plan import plan_of
from memcalc.engine.search.cells import Family
from memcalc.engine.search.splits import Split, is_ordered
from memcalc.engine.search.states_grid import StatesOption
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.planning.search.wishes import Wishes, text_of

#: Positions a rank of context parallelism has at least, unless cp is fixed or bounded.
LEAST_POSITIONS: Final = 1024
#: Sets of modules that recompute selective names, beside core_attn; those a model has not are left out.
MODULES: Final = (
    ("core_attn",),
    ("moe_act",),
    ("layernorm", "mla_up_proj", "moe_act"),
)


class MegatronSpace(NamedTuple):
    """families: cells by what divides a layer; splits and options: of each. refused: reasons, and how many
    families had them."""

    families: tuple[Family, ...]
    splits: tuple[Split, ...]
    options: tuple[StatesOption, ...]
    refused: dict[str, int]


def megatron_space(wishes: Wishes) -> MegatronSpace:
    """The space of stack megatron. Raises ConfigError where the stack cannot run the model at all."""
    if not is_ordered(wishes.config):
        raise ConfigError(
            f"search: {wishes.config.name} has dense blocks after sparse ones; rule: stack megatron "
            "searches models whose sparse blocks come last; nearest valid: memcalc compare"
        )
    refused: dict[str, int] = {}
    families = tuple(_families(wishes, refused))
    splits = tuple(_splits(wishes))
    return MegatronSpace(families, splits, tuple(_options(wishes)), refused)


def _families(wishes: Wishes, refused: dict[str, int]) -> Iterator[Family]:
    micro_batches = tuple(wishes.chosen("micro-batch", divisors(wishes.batch)))
    if not micro_batches:
        refused[f"micro-batch: none divides the batch of {wishes.batch} as asked"] = 1
        return
    for layout in _layouts(wishes):
        for setup in _setups(wishes):
            setup = replace(setup, micro_batch_size=micro_batches[0], grad_accum_steps=2)
            try:
                plan = plan_of(wishes.config, setup, None, layout)
            except ConfigError as error:
                reason = str(error)
                refused[reason] = refused.get(reason, 0) + 1
                continue
            yield Family(plan, micro_batches)


def _layouts(wishes: Wishes) -> Iterator[ParallelPlan]:
    config, gpus = wishes.config, wishes.gpus
    heads = math.gcd(config.num_attention_heads, config.num_key_value_heads)
    moe = config.moe
    experts = wishes.chosen("ep", divisors(moe.num_experts) if moe else [1])
    degrees = wishes.chosen("tp", divisors(math.gcd(heads, gpus)))
    if moe and "tp" not in wishes.fixed and "tp" not in wishes.most:  # experts are spread instead
        degrees = [tp for tp in degrees if tp <= wishes.domain]
    for tp in degrees:
        for sp in wishes.chosen("sp", (False,) if tp == 1 else (True,) if moe else (True, False)):
            for cp in _rings(wishes, gpus // tp):
                for ep in experts:
                    for etp in wishes.chosen("etp", sorted({1, tp}) if moe else [1]):
                        room = ep * etp if moe else 1
                        if tp * cp > gpus or gpus % room:
                            continue
                        dp = room // math.gcd(room, tp * cp)
                        yield ParallelPlan(
                            tp=tp, sp=sp if tp > 1 else None, cp=cp, ep=ep, dp=dp,
                            etp=etp if moe else None, gpus_per_node=wishes.gpus_per_node,
                        )  # fmt: skip


def _rings(wishes: Wishes, gpus: int) -> list[int]:
    """Ranks a sequence is split over: unless bounded, none has fewer positions than is worth it."""
    seq = wishes.setup.seq_len or wishes.config.max_position_embeddings
    found = wishes.chosen("cp", divisors(gpus))
    if "cp" in wishes.fixed or "cp" in wishes.most:
        return found
    return [cp for cp in found if cp == 1 or seq // cp >= LEAST_POSITIONS]


def _setups(wishes: Wishes) -> Iterator:  # type: ignore[type-arg]
    """What is computed again by name; blocks computed again whole are columns, not families."""
    base = replace(
        wishes.setup, stack="megatron", global_batch=None, recompute="none", recompute_layers=None,
        recompute_modules=(),
    )  # fmt: skip
    texts = wishes.fixed.get("recompute")
    if texts is None or any(text == "none" or text.startswith("full") for text in texts):
        yield base
    if texts is None or "selective" in texts:
        for modules in MODULES if wishes.config.moe else MODULES[:1]:
            try:
                yield replace(base, recompute="selective", recompute_modules=modules)
            except ConfigError:
                continue


def _splits(wishes: Wishes) -> Iterator[Split]:
    config = wishes.config
    layers = config.num_hidden_layers
    for pp in wishes.chosen("pp", [p for p in divisors(wishes.gpus) if p <= layers]):
        if wishes.allows("schedule", "1f1b") and wishes.allows("vpp", 1):
            yield from _cuts(wishes, Split(pp))
        if pp == 1 or not wishes.allows("schedule", "interleaved"):
            continue
        stage = -(-layers // pp)
        for vpp in wishes.chosen("vpp", [v for v in divisors(stage) if v > 1 and pp * v <= layers]):
            yield from _cuts(wishes, Split(pp, vpp, "interleaved"))


def _cuts(wishes: Wishes, split: Split) -> Iterator[Split]:
    """Blocks evenly, and fewer on the first and the last stage with all others alike."""
    stated = wishes.fixed.get("stage-layers")
    if stated is None or "even" in stated:
        yield split
    for counts in uneven(wishes.config.num_hidden_layers, split):
        if stated is None or "uneven" in stated or text_of(counts) in stated:
            yield split._replace(stage_layers=counts)


def uneven(layers: int, split: Split) -> Iterator[tuple[int, ...]]:
    """Blocks of every chunk where the first and the last have fewer, but at least half, of the others'.

    Interleaved: one fewer on both; two stages: every division near the middle.
    """
    chunks, inner = split.chunks, split.chunks - 2
    if chunks < 2:
        return
    if inner == 0:
        for first in range(layers * 2 // 5, layers - layers * 2 // 5 + 1):
            if first != layers - layers // 2:
                yield (first, layers - first)
        return
    for each in range(-(-layers // chunks), layers // inner + 1):
        rest = layers - inner * each
        for first in range(-(-each // 2), each + 1):
            last = rest - first
            if not -(-each // 2) <= last <= each or first == last == each:
                continue
            if split.vpp == 1 or first == last == each - 1:
                yield (first, *(each,) * inner, last)


def _options(wishes: Wishes) -> Iterator[StatesOption]:
    """Ways to hold states; replicas: powers of two, each with a distributed optimizer of its own."""
    flags = [
        (reduce, gather)
        for reduce in wishes.chosen("overlap-grad-reduce", (False, True))
        for gather in wishes.chosen("overlap-param-gather", (False, True))
        if reduce or not gather
    ]
    if wishes.allows("zero", 0):
        for reduce in dict.fromkeys(reduce for reduce, _ in flags):
            if wishes.allows("overlap-param-gather", False):
                yield StatesOption(0, 1, reduce)
    if not wishes.allows("zero", 1):
        return
    replicas = 1
    while replicas < wishes.gpus:
        for flag in flags:
            yield StatesOption(1, replicas, *flag)
        replicas *= 2
