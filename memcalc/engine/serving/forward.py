"""Forward passes without gradients: a prefill of many positions, a decode step of one.

The same blocks as in training, traced with gradients off and a cache of keys and values at hand. A trace
depends on block kinds, kernels, the kind of cache and which dims are 1, never on sizes; it is made once.
Checked by: oracle/test_serving.py, oracle/test_kv_cache.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.blocks.cache import CacheKind, KeyCache
from memcalc.engine.blocks.sampling import GREEDY
from memcalc.engine.build import Build, Handed
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.serving.rank_values import rank_values
from memcalc.engine.structure import Run, Structure, architecture_key, find_runs, freeze
from memcalc.engine.tensors import Shape, Tape
from memcalc.engine.trace import forward_only
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan

#: Most new positions of a sequence whose attention is priced, and by vLLM run, as decoding.
DECODE_ROWS: Final = 16
#: Shape and dtype of the keys and of the values that a layer caches.
Cached = tuple[tuple[Shape, str], ...]


class Positions(NamedTuple):
    """Sizes of one forward pass: b sequences of `new` positions over `past` that are in the cache.

    capacity: positions of a cache made beforehand. window_held: positions of the tensors that hold a
    sliding layer's past; None: as a decode step left them.
    """

    batch: int
    new: int
    past: int = 0
    capacity: int | None = None
    window_held: int | None = None


class Part(NamedTuple):
    """What of a model one rank runs.

    layout: whose tp, dp and ep ranks divide each layer. layers: (first, one past the last), None: all.
    ends: (embedding, final norm and head). imbalance: token rows of the busiest rank's experts over the
    mean. every: logits of every new position, not of the last.
    """

    layout: ParallelPlan = ParallelPlan()
    layers: tuple[int, int] | None = None
    ends: tuple[bool, bool] = (True, True)
    imbalance: float = 1.0
    every: bool = False


class Forward(NamedTuple):
    """A traced forward pass with the values of its dims. cached: by traced block."""

    structure: Structure
    runs: tuple[Run, ...]
    values: dict[str, int]
    cached: dict[int, Cached]


def layer_kinds(config: ModelConfig) -> tuple[BlockKind, ...]:
    """The kind of every layer: windows count, for the cache ends with them."""
    return tuple(
        BlockKind(config.layer_type(layer), config.is_sparse(layer))
        for layer in range(config.num_hidden_layers)
    )


def position_values(config: ModelConfig, at: Positions) -> dict[str, int]:
    """Values of the cache's dims: see engine/blocks/cache.py."""
    window = config.sliding_window
    if at.capacity is not None:
        found = {"s_kv": at.capacity}
        if window is not None:
            found["w_kv"] = min(window, at.capacity)
        return found
    if not at.past:
        return {}
    found = {"s_p": at.past, "s_kv": at.past + at.new}
    if window is not None:
        seen = min(at.past, window - 1)
        held = min(at.past, window) if at.window_held is None else at.window_held
        found |= {"w_p": held, "w_kv": seen + at.new}
    return found


_CACHE: dict[object, tuple[Structure, dict[int, Cached]]] = {}
_CACHE_LIMIT = 128


def forward_of(
    config: ModelConfig,
    kernels: Kernels,
    at: Positions,
    code: str = "grow",
    layout: ParallelPlan | Part = Part(),  # noqa: B008  # immutable
    samples: str = GREEDY,
) -> Forward:
    """The forward pass of a model through a cache of this code (engine/blocks/cache.py).

    layout: whose tp ranks divide each layer, or the part of the model that a rank runs. samples: how next
    tokens are chosen (blocks/sampling.py).
    """
    part = layout if isinstance(layout, Part) else Part(layout)
    vllm = kernels.traits.code == "vllm"
    whole = dim_values(config, at.batch, at.new)
    values = rank_values(whole, part.layout, vllm, part.imbalance) | position_values(config, at)
    sizes = dim_sizes(values)
    kernels = kernels._replace(use_dropout=False)
    first, stop = part.layers or (0, config.num_hidden_layers)
    runs = find_runs(layer_kinds(config)[first:stop])
    few = vllm and config.mla is not None and at.past > 0 and at.new < DECODE_ROWS
    kind = CacheKind(code, at.past > 0, few, part.every)
    key = (
        architecture_key(config), kernels, kind, samples, tuple((run.pattern, run.traced) for run in runs),
        tuple(sizes.items()), part.ends,
    )  # fmt: skip
    found = _CACHE.get(key)
    if found is None:
        if len(_CACHE) >= _CACHE_LIMIT:
            _CACHE.pop(next(iter(_CACHE)))
        build = Build(
            Tape(device=kernels.device, watched=kernels.watched), config, kernels, sizes,
            cache=KeyCache(kind), ends=part.ends,
        )  # fmt: skip
        found = _CACHE[key] = _traced(build, runs, samples)
    return Forward(found[0], runs, values, found[1])


def _traced(
    build: Build, runs: tuple[Run, ...], samples: str
) -> tuple[Structure, dict[int, Cached]]:
    few = tuple(run._replace(count=run.traced, depth=run.traced) for run in runs)
    layers = [kind for run in few for _ in range(run.count) for kind in run.pattern]
    forward_only(build, layers, samples)
    assert build.cache is not None
    return freeze(build.tape, few, Handed()), build.cache.shapes
